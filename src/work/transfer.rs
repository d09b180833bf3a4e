//! `export` and `import`: the store as lines of JSON.
//!
//! Owns the form. First come all events that are kept, in the order of their commits and as they were sent, but for
//! messages, which are as they are now; then `read_mark` lines, how far users have read; then `member` and
//! `members_replaced` lines, who may enter rooms; then a `room_position` line for each room of which nothing is kept but how far it
//! had come; then `revocation` lines, whose older tokens are refused. An export reads one state of the store, also while a
//! server writes it; an import needs it alone.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Row};

use super::database::Database;
use super::import::{Imported, import};
use super::members::level;
use crate::config::Store;
use crate::error::Error;
use crate::wire::value::{IdRef, put_json_string};

const EVENTS: &str = "SELECT coalesce(e.current, e.body) FROM event e JOIN room r ON r.number = e.room \
                      WHERE e.seq >= r.first_seq ORDER BY e.position";
const MARKS: &str = "SELECT r.name, m.seq, m.user FROM reader m JOIN room r ON r.number = m.room \
                     WHERE m.seq > 0 ORDER BY r.name, m.user";
const REPLACED: &str = "SELECT name, members_version FROM room WHERE members_version > 0 ORDER BY name";
const MEMBERS: &str = "SELECT r.name, m.version, m.user, m.level, m.user_numeric FROM member m \
                       JOIN room r ON r.number = m.room ORDER BY r.name, m.user";
const POSITIONS: &str = "SELECT name, last_seq FROM room_now WHERE first_seq > last_seq AND last_seq > 0 ORDER BY name";

const REVOCATIONS: &str = "SELECT user, before_ms FROM revocation ORDER BY number";

/// Lines that were written.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Exported {
    /// Events.
    pub events: u64,
    /// Marks of what users have read, memberships, positions of empty rooms, and revocations.
    pub others: u64,
}

/// Writes the store to a new file, or to standard output.
///
/// # Errors
/// There is no store in a file, it cannot be read, or `target` exists or cannot be written.
pub fn export_to(store: &Store, target: Option<&Path>) -> Result<Exported, Error> {
    let store = store_file(store)?;
    let mut connection = Database::open_beside(store)?;
    let Some(target) = target else {
        return export(&mut connection, store, BufWriter::new(io::stdout().lock()), Path::new("standard output"));
    };
    let file = private().create_new(true).open(target).map_err(|error| unusable(target, &error))?;
    let exported = export(&mut connection, store, BufWriter::new(&file), target);
    match exported {
        Ok(exported) => file.sync_all().map(|()| exported).map_err(|error| unusable(target, &error)),
        Err(error) => Err(give_up(target, error)),
    }
}

/// What could be read of a damaged store keeps a name that says that it is not all; nothing is kept of what could not be
/// written.
fn give_up(target: &Path, error: Error) -> Error {
    let partial = partial_of(target);
    let is_kept = matches!(error, Error::Store { .. }) && std::fs::hard_link(target, &partial).is_ok();
    // Half an export under this name is worse than none.
    let _ = std::fs::remove_file(target);
    match error {
        Error::Store { path, reason } if is_kept => Error::Store {
            path,
            reason: format!("{reason}; what could be read before that is in {}", partial.display()),
        },
        error => error,
    }
}

fn partial_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Reads a file, or standard input if it is `-`, into the store.
///
/// # Errors
/// There is no store in a file, a server uses it, or a line cannot be kept: what is before its batch is.
pub fn import_from(store: &Store, source: &Path) -> Result<Imported, Error> {
    let lines: Box<dyn BufRead> = match source.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(File::open(source).map_err(|error| unusable(source, &error))?)),
    };
    store_file(store)?;
    let database = Database::open(store)?;
    let path = database.path().unwrap_or(Path::new("")).to_owned();
    let mut connection = database.writer().map_err(|error| unreadable(&path, &error))?;
    // Nobody else is here to write the log back.
    let limited = connection.pragma_update(None, "wal_autocheckpoint", 4_000);
    limited.map_err(|error| unreadable(&path, &error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    import(&mut connection, lines, source, database.facts().digest_key, now.as_millis() as u64)
}

/// The file of the store that is configured.
pub(super) fn store_file(store: &Store) -> Result<&PathBuf, Error> {
    match store {
        Store::File(path) => Ok(path),
        Store::None | Store::Memory => Err(Error::Argument {
            reason: "CHAT_STORE names no file: give the path of the store's database".to_owned(),
        }),
    }
}

fn export(connection: &mut Connection, store: &Path, mut out: impl Write, name: &Path) -> Result<Exported, Error> {
    let read = |error: rusqlite::Error| unreadable(store, &error);
    let transaction = connection.transaction().map_err(read)?;
    let mut exported = Exported::default();
    let mut write = |line: &[u8]| {
        let written = out.write_all(line).and_then(|()| out.write_all(b"\n"));
        written.map_err(|error| unusable(name, &error))
    };
    {
        let mut events = transaction.prepare(EVENTS).map_err(read)?;
        let mut rows = events.query([]).map_err(read)?;
        while let Some(row) = rows.next().map_err(read)? {
            write(row.get_ref(0).and_then(blob).map_err(read)?)?;
            exported.events += 1;
        }
    }
    // A replacement says of whom there is no other line, so it comes behind those.
    let others = [Other::Mark, Other::Member, Other::Replaced, Other::Position, Other::Revocation];
    for kind in others {
        let sql = kind.sql();
        let mut lines = transaction.prepare(sql).map_err(read)?;
        let lines = lines.query_map([], |row| kind.line(row)).map_err(read)?;
        for line in lines {
            write(&line.map_err(read)?)?;
            exported.others += 1;
        }
    }
    out.flush().map_err(|error| unusable(name, &error))?;
    Ok(exported)
}

/// What a line is that is no event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    /// Up to where a user has read.
    Mark,
    /// Since when those are nothing in a room who have no line of their own.
    Replaced,
    /// What a user is in a room.
    Member,
    /// How far a room had come.
    Position,
    /// From when on a user's tokens count.
    Revocation,
}

impl Other {
    fn sql(self) -> &'static str {
        match self {
            Self::Mark => MARKS,
            Self::Replaced => REPLACED,
            Self::Member => MEMBERS,
            Self::Position => POSITIONS,
            Self::Revocation => REVOCATIONS,
        }
    }

    /// The line of a row that begins with the name of a room, or a user, and a number.
    fn line(self, row: &Row<'_>) -> rusqlite::Result<Vec<u8>> {
        let (kind, name, number) = match self {
            Self::Mark => ("read_mark", "roomId", "seq"),
            Self::Replaced => ("members_replaced", "roomId", "version"),
            Self::Member => ("member", "roomId", "version"),
            Self::Position => ("room_position", "roomId", "seq"),
            Self::Revocation => ("revocation", "userId", "revokeBefore"),
        };
        let mut line = format!("{{\"type\":\"{kind}\",\"{name}\":").into_bytes();
        put_json_string(&mut line, &row.get::<_, String>(0)?);
        if matches!(self, Self::Mark | Self::Member) {
            line.extend_from_slice(b",\"userId\":");
            let (text, numeric) = (row.get::<_, String>(2)?, self == Self::Member && row.get(4)?);
            IdRef { text: &text, numeric }.put_json(&mut line);
        }
        if self == Self::Member {
            let role = level(row.get(3)?).role().map_or("null".to_owned(), |role| format!("\"{role}\""));
            line.extend_from_slice(format!(",\"role\":{role}").as_bytes());
        }
        line.extend_from_slice(format!(",\"{number}\":{}}}", row.get::<_, u64>(1)?).as_bytes());
        Ok(line)
    }
}

fn blob(value: rusqlite::types::ValueRef<'_>) -> rusqlite::Result<&[u8]> {
    value.as_blob().map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, value.data_type(), Box::new(error)))
}

#[cfg(unix)]
pub(super) fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::AlreadyExists => "exists already: name another file, or move it away".to_owned(),
        _ => format!("cannot be used: {error}"),
    };
    Error::File { path: path.to_owned(), reason }
}

pub(super) fn unreadable(store: &Path, error: &rusqlite::Error) -> Error {
    Error::Store { path: store.to_owned(), reason: format!("cannot be used: {error}") }
}
