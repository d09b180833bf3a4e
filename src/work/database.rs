//! The database file: its lock, its checks, its schema, and the connections to it.
//!
//! Owns what has to be true before anything is read or written: one process at a time, a file that is a database of
//! this server and not damaged, the newest schema. Owns the pragmas of every connection. Knows nothing of what the rows
//! mean. Whatever keeps a file from being used is told in words that say what to do, and leaves the file as it was.
//!
//! In memory there is exactly one connection, the writer's, on which reads are done as well: see
//! [`Database::is_memory`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode as Sqlite, OpenFlags, TransactionBehavior};

use super::{log_file, schema};
use crate::chat::store::StoreFacts;
use crate::config::Store;
use crate::error::Error;

/// How long the check for damage may hold the start. It has looked through some 2 GB by then.
const CHECK_MS_MAX: u64 = 2_000;
/// Virtual instructions between two looks at the clock.
const CHECK_INSTRUCTIONS: i32 = 1_000;
/// How long a connection waits for another process that is at the file, such as a backup that ends.
const BUSY_MS_MAX: u64 = 5_000;
/// Page cache of the writer, in KiB.
const WRITER_CACHE_KIB: i64 = 8_192;
/// Page cache of any other connection, in KiB.
const READER_CACHE_KIB: i64 = 4_096;
/// Statements that a connection keeps prepared.
const STATEMENTS_MAX: usize = 64;

const HEADER: &[u8; 16] = b"SQLite format 3\0";

const DAMAGED: &str = "restore a backup, or move the file away to begin with an empty store";
const FOREIGN: &str = "move it away, or name another file with CHAT_STORE";

/// An open database. The file is locked against other processes as long as this lives.
#[derive(Debug)]
pub struct Database {
    place: Place,
    facts: StoreFacts,
}

#[derive(Debug)]
enum Place {
    File {
        path: PathBuf,
        /// The database file, to bring it to the disk. Closing it drops the locks that SQLite holds on the file, so that
        /// it must outlive the connections.
        file: File,
        _lock: File,
    },
    /// The connection until somebody has taken it.
    Memory(Mutex<Option<Connection>>),
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Write,
    Read,
    Checkpoint,
}

impl Database {
    /// Opens the database, and makes it if there is none: folder and file, the file readable by its owner only.
    ///
    /// # Errors
    /// [`Error::Store`] if the store is [`Store::None`], another process has the file, it is no database of this
    /// server, one of a newer version, or damaged as far as could be seen in two seconds, or cannot be written.
    pub fn open(store: &Store) -> Result<Self, Error> {
        match store {
            Store::None => Err(refusal(Path::new("none"), "there is no store to open: set CHAT_STORE")),
            Store::Memory => {
                let opened = Connection::open_in_memory().and_then(|connection| configured(connection, Use::Write));
                let connection = opened.and_then(|mut connection| {
                    schema::migrate(&mut connection)?;
                    Ok(connection)
                });
                let connection = connection.map_err(|error| explain(Path::new(":memory:"), &error))?;
                let facts = schema::facts(&connection).map_err(|error| explain(Path::new(":memory:"), &error))?;
                Ok(Self { place: Place::Memory(Mutex::new(Some(connection))), facts })
            }
            Store::File(path) => Self::open_file(path),
        }
    }

    fn open_file(path: &Path) -> Result<Self, Error> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| unwritable(path, &error))?;
        }
        let lock = lock(path)?;
        let (file, length) = create(path)?;
        look_at_header(path, length)?;
        let facts = prepare(path, length == 0)?;
        Ok(Self { place: Place::File { path: path.to_owned(), file, _lock: lock }, facts })
    }

    /// Opens the database of a server that may be running, to read and to back it up, without its lock. Nothing is
    /// made, migrated or written.
    ///
    /// # Errors
    /// As [`Database::open`], and if there is no such file.
    pub fn open_beside(path: &Path) -> Result<Connection, Error> {
        let length = fs::metadata(path).map_err(|error| refusal(path, &format!("cannot be opened: {error}")))?.len();
        look_at_header(path, length)?;
        let opened = connect(path, Use::Read).and_then(|connection| Ok((schema::version(&connection)?, connection)));
        let (version, connection) = opened.map_err(|error| explain(path, &error))?;
        refuse_other_versions(path, &connection, version)?;
        if version < schema::VERSION {
            return Err(refusal(path, "is of an older version: start the server with it once"));
        }
        Ok(connection)
    }

    /// What is fixed as long as the database is.
    pub fn facts(&self) -> StoreFacts {
        self.facts.clone()
    }

    /// Where the file is; `None` in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::File { path, .. } => Some(path),
            Place::Memory(_) => None,
        }
    }

    /// Whether it is in memory. Then [`Database::writer`] works once, [`Database::reader`] and
    /// [`Database::checkpointer`] never: reads are done on the writer's connection
    /// ([`reader::find_on`](super::reader::find_on)), and there is no log to write back.
    pub fn is_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// A connection to write. There must be one at a time; a new one may take the place of one that failed.
    pub fn writer(&self) -> rusqlite::Result<Connection> {
        match &self.place {
            Place::File { path, .. } => connect(path, Use::Write),
            Place::Memory(connection) => {
                let taken = connection.lock().unwrap_or_else(PoisonError::into_inner).take();
                taken.ok_or(rusqlite::Error::InvalidQuery)
            }
        }
    }

    /// A connection that can only read. There may be many.
    pub fn reader(&self) -> rusqlite::Result<Connection> {
        self.connect(Use::Read)
    }

    /// A connection to write the log back with (`PRAGMA wal_checkpoint`).
    pub fn checkpointer(&self) -> rusqlite::Result<Connection> {
        self.connect(Use::Checkpoint)
    }

    /// Brings the database file to the disk as it is.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        match &self.place {
            Place::File { file, .. } => file.sync_data(),
            Place::Memory(_) => Ok(()),
        }
    }

    /// Makes the log's file so long that commits write over what it has rather than make it longer, for which the file
    /// system has to note something of its own each time: `to` so many bytes. Returns whether there was room. Nobody may
    /// write meanwhile.
    pub fn lengthen_log(&self, to: u64) -> bool {
        let Place::File { path, .. } = &self.place else { return true };
        let lengthened = log_file::lengthen(path, to);
        if let Err(error) = &lengthened {
            tracing::debug!(%error, "the store's log is not made longer");
        }
        lengthened.is_ok()
    }

    fn connect(&self, purpose: Use) -> rusqlite::Result<Connection> {
        match &self.place {
            Place::File { path, .. } => connect(path, purpose),
            Place::Memory(_) => Err(rusqlite::Error::InvalidQuery),
        }
    }
}

/// Takes the lock beside the file. It is not one on the file itself: closing a second descriptor of that would drop the
/// locks that SQLite holds there.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = private().create(true).truncate(false).open(&name).map_err(|error| unwritable(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(refusal(path, "another process has it open: stop that one, or name another file with CHAT_STORE"))
        }
        Err(TryLockError::Error(error)) => Err(refusal(path, &format!("cannot be locked: {error}"))),
    }
}

/// Opens the file, and makes it if there is none; and how long it is. A file that somebody has emptied is none of a
/// store, unless nothing says that it was one.
fn create(path: &Path) -> Result<(File, u64), Error> {
    let was_there = path.exists();
    let made = private().create(true).truncate(false).open(path);
    let made = made.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = made.map_err(|error| unwritable(path, &error))?;
    if !metadata.is_file() {
        return Err(refusal(path, &format!("is no file: {FOREIGN}")));
    }
    if metadata.len() == 0 && log_file::is_used(path) {
        let log = log_file::path_of(path);
        let log = log.display();
        return Err(refusal(
            path,
            &format!(
                "is empty, but {log} beside it is not: restore a backup, or move both away to begin with an empty store"
            ),
        ));
    }
    if metadata.len() == 0 && was_there {
        tracing::warn!(path = %path.display(), "the file is empty: a new store begins in it");
    }
    Ok((file, metadata.len()))
}

#[cfg(unix)]
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Looks at what SQLite would take for an empty database, or complain about in its own words.
fn look_at_header(path: &Path, length: u64) -> Result<(), Error> {
    if length == 0 {
        return Ok(());
    }
    let mut header = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER.len() as u64).read_to_end(&mut header));
    read.map_err(|error| refusal(path, &format!("cannot be read: {error}")))?;
    if header != HEADER {
        return Err(refusal(path, &format!("is no database, or its beginning is damaged: {FOREIGN}, or {DAMAGED}")));
    }
    Ok(())
}

/// Brings the file to where connections can work with it, on a connection of its own.
fn prepare(path: &Path, is_fresh: bool) -> Result<StoreFacts, Error> {
    let mut connection = connect(path, Use::Write).map_err(|error| explain(path, &error))?;
    if connection.is_readonly("main").unwrap_or(true) {
        return Err(unwritable(path, &io::ErrorKind::PermissionDenied.into()));
    }
    let version = schema::version(&connection).map_err(|error| explain(path, &error))?;
    refuse_other_versions(path, &connection, version)?;
    if !is_fresh {
        // What a crash left in the log belongs to the file before it is looked at.
        let written = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        written.map_err(|error| explain(path, &error))?;
        look_for_damage(path, &mut connection)?;
    }
    if (1..schema::VERSION).contains(&version) {
        let known = schema::VERSION;
        tracing::info!(version, known, "the store is brought to a newer version, which may take a while");
    }
    schema::migrate(&mut connection).map_err(|error| explain(path, &error))?;
    prove_writable(&mut connection).map_err(|error| explain(path, &error))?;
    let position = connection.query_row("SELECT last_position FROM store_now", [], |row| row.get::<_, u64>(0));
    let position = position.map_err(|error| explain(path, &error))?;
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    // A mistyped or relative path shows here, and so does a file that somebody has emptied.
    tracing::info!(path = %whole.display(), is_new = version == 0, events_ever = position, "the store is open");
    schema::facts(&connection).map_err(|error| explain(path, &error))
}

fn refuse_other_versions(path: &Path, connection: &Connection, version: i64) -> Result<(), Error> {
    let is_ours = schema::is_ours(connection, version).map_err(|error| explain(path, &error))?;
    if !is_ours {
        return Err(refusal(path, &format!("is the database of another program: {FOREIGN}")));
    }
    if version > schema::VERSION {
        let known = schema::VERSION;
        let reason = format!(
            "has version {version}, and this server knows versions up to {known}: run the newer server, or restore a \
             backup that an older one made"
        );
        return Err(refusal(path, &reason));
    }
    Ok(())
}

/// Checks the file, as far as it comes in [`CHECK_MS_MAX`], and its length, always.
fn look_for_damage(path: &Path, connection: &mut Connection) -> Result<(), Error> {
    let end = Instant::now() + Duration::from_millis(CHECK_MS_MAX);
    let limited = connection.progress_handler(CHECK_INSTRUCTIONS, Some(move || Instant::now() >= end));
    limited.map_err(|error| explain(path, &error))?;
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    let freed = connection.progress_handler(0, None::<fn() -> bool>);
    freed.map_err(|error| explain(path, &error))?;
    match found {
        Ok(word) if word == "ok" => {}
        Ok(word) => return Err(refusal(path, &format!("is damaged ({}): {DAMAGED}", one_line(&word)))),
        Err(error) if error.sqlite_error_code() == Some(Sqlite::OperationInterrupted) => {
            tracing::info!(path = %path.display(), ms = CHECK_MS_MAX, "the store is large: only a part was checked");
        }
        Err(error) => return Err(explain(path, &error)),
    }
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, u64>(0));
    let expected = number("PRAGMA page_count").and_then(|pages| Ok(pages * number("PRAGMA page_size")?));
    let expected = expected.map_err(|error| explain(path, &error))?;
    let length = fs::metadata(path).map_err(|error| refusal(path, &format!("cannot be read: {error}")))?.len();
    if length < expected {
        return Err(refusal(path, &format!("is damaged ({length} of {expected} bytes are there): {DAMAGED}")));
    }
    Ok(())
}

/// Writes something, so that a disk that takes nothing is known at the start.
fn prove_writable(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("UPDATE store SET batch = batch + 1", [])?;
    transaction.commit()
}

fn connect(path: &Path, purpose: Use) -> rusqlite::Result<Connection> {
    // Reading needs the right to write too, since readers take part in the log's index; `query_only` keeps them to it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    configured(Connection::open_with_flags(path, flags)?, purpose)
}

fn configured(connection: Connection, purpose: Use) -> rusqlite::Result<Connection> {
    let cache_kib = if purpose == Use::Write { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    connection.busy_timeout(Duration::from_millis(BUSY_MS_MAX))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    if purpose == Use::Write {
        connection.pragma_update(None, "journal_mode", "WAL")?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    if purpose == Use::Read {
        connection.pragma_update(None, "query_only", true)?;
    }
    Ok(connection)
}

fn refusal(path: &Path, reason: &str) -> Error {
    Error::Store { path: path.to_owned(), reason: reason.to_owned() }
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull => "cannot be written, the disk is full: make room".to_owned(),
        _ => format!("cannot be written ({error}): give the server the right to write the file and its folder"),
    };
    refusal(path, &reason)
}

/// What SQLite's complaint means for the operator.
fn explain(path: &Path, error: &rusqlite::Error) -> Error {
    let text = one_line(&error.to_string());
    let reason = match error.sqlite_error_code() {
        Some(Sqlite::NotADatabase) => format!("is no database: {FOREIGN}"),
        Some(Sqlite::DatabaseCorrupt) => format!("is damaged ({text}): {DAMAGED}"),
        Some(Sqlite::ReadOnly | Sqlite::PermissionDenied | Sqlite::CannotOpen) => {
            format!("cannot be written ({text}): give the server the right to write the file and its folder")
        }
        Some(Sqlite::DiskFull) => "cannot be written, the disk is full: make room".to_owned(),
        Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => {
            "another process is at it: stop that one, or name another file with CHAT_STORE".to_owned()
        }
        Some(Sqlite::SystemIoFailure) => format!("the disk fails ({text}): look at it, or {DAMAGED}"),
        _ => format!("cannot be used ({text}): {DAMAGED}"),
    };
    refusal(path, &reason)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
