//! Keeps what an export or the ERP has: events that have happened, with the places that they had.
//!
//! Owns how a line becomes rows, and when it is there already. It does not go through the
//! [`Ledger`](super::ledger::Ledger): that decides what is asked (an edit to what a message already says is none), while
//! a line is what became of it. What it writes is what the ledger would have written.
//!
//! Invariants: a batch of lines is one transaction, so a bad one leaves none of its batch; importing again changes
//! nothing; the events of a room have `seq` without holes, and begin above 1 only where all of the room is imported.

use std::io::BufRead;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::batch::Kind;
use super::import_line::{Line, LineKind, parse_line};
use super::room::Room;
use super::{members, places, revocations};
use crate::access::Level;
use crate::error::Error;
use crate::wire::message::tombstone;
use crate::wire::value::Id;

/// Lines of one transaction.
const BATCH_LINES: usize = 1_000;
/// A message of a room, `?1`, by its id, `?2`.
const BY_ID: &str = "position = (SELECT position FROM message WHERE room = ?1 AND message_id = ?2)";
/// Longest line in bytes: the largest body that can be configured, and what is around it.
const LINE_BYTES_MAX: u64 = 17 * 1024 * 1024;

/// What became of the lines.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Imported {
    /// Events, marks and the like that are new.
    pub kept: u64,
    /// Those that were there already.
    pub skipped: u64,
}

/// Why an import ended early.
enum Halt {
    /// The line cannot be kept.
    Line(String),
    /// The store fails.
    Store(rusqlite::Error),
}

impl From<rusqlite::Error> for Halt {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error)
    }
}

/// Reads `lines` to their end into the store that `connection` writes. `name` is what messages call the input, `key`
/// that of the store's digests, and `now_ms` the time of what has none.
///
/// # Errors
/// A line that cannot be read or kept, with its number; or the disk's. The batches before it are kept.
pub fn import(
    connection: &mut Connection,
    mut lines: impl BufRead,
    name: &Path,
    key: (u64, u64),
    now_ms: u64,
) -> Result<Imported, Error> {
    let fail = |reason: String| Error::File { path: name.to_owned(), reason };
    let (mut imported, mut number, mut is_over) = (Imported::default(), 0_u64, false);
    while !is_over {
        let first = number + 1;
        let mut batch = Vec::with_capacity(BATCH_LINES);
        while batch.len() < BATCH_LINES && !is_over {
            number += 1;
            let bytes = read_line(&mut lines).map_err(|error| fail(format!("line {number}: {error}")))?;
            is_over = bytes.is_empty();
            let text = bytes.trim_ascii();
            if !text.is_empty() {
                let line = parse_line(text, key, now_ms);
                batch.push((number, line.map_err(|wrong| fail(refused(number, &wrong, first)))?));
            }
        }
        let kept = keep_batch(connection, &batch);
        let kept = kept.map_err(|(number, halt)| match halt {
            Halt::Line(wrong) => fail(refused(number, &wrong, first)),
            Halt::Store(error) => fail(refused(number, &format!("the store cannot be written: {error}"), first)),
        })?;
        imported.kept += kept.kept;
        imported.skipped += kept.skipped;
    }
    Ok(imported)
}

/// One line with its end; empty behind the last.
fn read_line(lines: &mut impl BufRead) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::io::Read::take(&mut *lines, LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
    match read {
        Ok(length) if length as u64 == LINE_BYTES_MAX => Err(format!("a line has at most {LINE_BYTES_MAX} bytes")),
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

fn refused(number: u64, wrong: &str, first: u64) -> String {
    let before = match first - 1 {
        0 => "nothing was kept".to_owned(),
        last => format!("lines 1 to {last} are kept"),
    };
    format!("line {number}: {wrong}; {before}; importing again goes on where it stopped")
}

fn keep_batch(connection: &mut Connection, batch: &[(u64, Line)]) -> Result<Imported, (u64, Halt)> {
    let Some(&(first, _)) = batch.first() else { return Ok(Imported::default()) };
    let at_store = |error| (first, Halt::Store(error));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(at_store)?;
    let read = transaction.query_row("SELECT last_position FROM store_now", [], |row| row.get(0));
    let mut importer = Importer { connection: &transaction, position: read.map_err(at_store)? };
    places::settle_all(&transaction).map_err(at_store)?;
    let mut imported = Imported::default();
    for (number, line) in batch {
        match importer.keep(line).map_err(|halt| (*number, halt))? {
            true => imported.kept += 1,
            false => imported.skipped += 1,
        }
    }
    let position = importer.position;
    let sql = "UPDATE store SET batch = batch + 1, last_position = ?1, indexed_position = ?1";
    let noted = transaction.execute(sql, [position]);
    noted.and_then(|_| transaction.commit()).map_err(at_store)?;
    Ok(imported)
}

/// A transaction under way.
struct Importer<'t> {
    connection: &'t Connection,
    /// That of the last event.
    position: u64,
}

/// An event that is in the store.
struct Stored {
    seq: u64,
    kind: u8,
    message: String,
    is_deleted: bool,
    digest: Option<[u8; 16]>,
    body: Vec<u8>,
}

impl Importer<'_> {
    /// Keeps a line; `false` if it was there.
    fn keep(&mut self, line: &Line) -> Result<bool, Halt> {
        if let LineKind::Revocation { user, before_ms } = &line.kind {
            return Ok(revocations::insert(self.connection, user.text(), *before_ms)?);
        }
        let room = self.room(&line.room)?;
        match &line.kind {
            LineKind::ReadMark { user } => return self.mark_read(&room, user, line.seq.unwrap_or_default()),
            LineKind::RoomPosition => return self.move_room(&room, line.seq.unwrap_or_default()),
            LineKind::Member { user, level, version } => return self.set_member(&room, (user, *level), *version),
            LineKind::MembersReplaced { version } => return self.note_replaced(&room, *version),
            _ => {}
        }
        if self.is_there(&room, line)? {
            return Ok(false);
        }
        let room = self.at_place(room, line)?;
        self.insert(&room, line)?;
        self.apply(&room, line)?;
        Ok(true)
    }

    fn room(&self, name: &str) -> rusqlite::Result<Room> {
        let found = Room::find(self.connection, name)?;
        found.map_or_else(|| Room::make(self.connection, name), Ok)
    }

    /// Whether the store has it: at its place, or, being a message, under its id.
    fn is_there(&self, room: &Room, line: &Line) -> Result<bool, Halt> {
        if let LineKind::Message { id, digest, .. } = &line.kind
            && let Some(stored) = self.stored(room, BY_ID, &id.text())?
        {
            let is_same = digest.is_some_and(|digest| stored.digest == Some(digest.to_le_bytes())) || stored.is_deleted;
            let seq = stored.seq;
            return match line.seq {
                None if is_same || line.body(seq) == stored.body => Ok(true),
                Some(given) if given == seq && (is_same || line.body(seq) == stored.body) => Ok(true),
                _ => Err(Halt::Line(format!("the room has another message with this id, or at another place, {seq}"))),
            };
        }
        let Some(seq) = line.seq.filter(|&seq| seq <= room.last_seq) else { return Ok(false) };
        if seq < room.first_seq {
            // It was removed since.
            return Ok(true);
        }
        match self.stored(room, "seq = ?2 AND is_message IN (0, 1)", &seq)? {
            Some(stored) if stored.kind == kind(&line.kind) as u8 && stored.message == about(&line.kind) => {
                match stored.is_deleted || stored.body == line.body(seq) {
                    true => Ok(true),
                    false => Err(Halt::Line(format!("the room's event {seq} is another one"))),
                }
            }
            _ => Err(Halt::Line(format!("the room's event {seq} is another one; leave seq out for new messages"))),
        }
    }

    fn stored(&self, room: &Room, which: &str, value: &dyn rusqlite::ToSql) -> rusqlite::Result<Option<Stored>> {
        let sql = format!(
            "SELECT seq, kind, message_id, is_deleted, digest, coalesce(current, body) FROM event \
             WHERE room = ?1 AND {which}"
        );
        let read = |row: &Row<'_>| {
            Ok(Stored {
                seq: row.get(0)?,
                kind: row.get(1)?,
                message: row.get(2)?,
                is_deleted: row.get(3)?,
                digest: row.get(4)?,
                body: row.get(5)?,
            })
        };
        self.connection.prepare_cached(&sql)?.query_row(params![room.number, value], read).optional()
    }

    /// The room as it is once the event has its place.
    fn at_place(&self, mut room: Room, line: &Line) -> Result<Room, Halt> {
        let next = room.last_seq + 1;
        match line.seq {
            Some(seq) if seq != next && room.last_seq > 0 => {
                return Err(Halt::Line(format!("seq must be {next}, the room's next, or be left out")));
            }
            // What was before was not kept any more where it was exported.
            Some(seq) if room.last_seq == 0 => (room.first_seq, room.last_seq) = (seq, seq),
            _ => room.last_seq = next,
        }
        room.messages += u64::from(matches!(line.kind, LineKind::Message { .. }));
        Ok(room)
    }

    fn insert(&mut self, room: &Room, line: &Line) -> rusqlite::Result<()> {
        let sql = "INSERT INTO event (position, room, seq, is_message, kind, is_deleted, at_ms, ordinal, message_id, \
                   id_numeric, sender, emoji, digest, body) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
        let (mut sender, mut emoji, mut digest, mut is_deleted) = (None, None, None, false);
        let message = match &line.kind {
            LineKind::Message { id, sender: by, digest: of, is_deleted: deleted } => {
                (sender, digest, is_deleted) = (by.as_ref(), of.map(u128::to_le_bytes), *deleted);
                id
            }
            LineKind::Update { message, is_deleted: deleted } => {
                is_deleted = *deleted;
                message
            }
            LineKind::Reaction { message, emoji: with, user, is_removed: false } => {
                (sender, emoji) = (Some(user), Some(with));
                message
            }
            LineKind::Reaction { message, .. } | LineKind::Deletion { message } => message,
            _ => return Ok(()),
        };
        self.position += 1;
        let is_message = matches!(line.kind, LineKind::Message { .. });
        self.connection.prepare_cached(sql)?.execute(params![
            self.position,
            room.number,
            room.last_seq,
            is_message,
            kind(&line.kind) as u8,
            is_deleted,
            line.at_ms,
            room.messages,
            message.text(),
            message.is_numeric(),
            sender.map(Id::text),
            emoji,
            digest.as_ref().map(|digest| &digest[..]),
            line.body(room.last_seq),
        ])?;
        if is_message {
            places::insert(self.connection, room.number, message.text(), self.position)?;
        }
        let sql = "UPDATE room SET first_seq = ?1, last_seq = ?2, messages = ?3, last_position = ?4 WHERE number = ?5";
        let row = params![room.first_seq, room.last_seq, room.messages, self.position, room.number];
        self.connection.prepare_cached(sql)?.execute(row).map(drop)
    }

    /// What follows from the event beside itself.
    fn apply(&self, room: &Room, line: &Line) -> rusqlite::Result<()> {
        match &line.kind {
            LineKind::Message { sender: Some(sender), .. } => self.take_part(room, sender),
            LineKind::Reaction { message, emoji, user, is_removed: true } => {
                let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 AND user = ?4";
                let key = params![room.number, message.text(), emoji, user.text()];
                self.connection.prepare_cached(sql)?.execute(key).map(drop)
            }
            LineKind::Reaction { message, emoji, user, is_removed: false } => {
                let sql = "INSERT OR IGNORE INTO reaction (room, message_id, emoji, user, user_numeric, seq) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                let row = params![room.number, message.text(), emoji, user.text(), user.is_numeric(), room.last_seq];
                self.connection.prepare_cached(sql)?.execute(row)?;
                self.take_part(room, user)
            }
            LineKind::Deletion { message } => {
                let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2";
                self.connection.prepare_cached(sql)?.execute(params![room.number, message.text()])?;
                self.bury(room, message)
            }
            _ => Ok(()),
        }
    }

    /// Leaves tombstones of a message and its edits, where the export has not.
    fn bury(&self, room: &Room, message: &Id) -> rusqlite::Result<()> {
        let sql = format!(
            "SELECT position, coalesce(current, body) FROM event WHERE room = ?1 AND {BY_ID} AND is_deleted = 0 \
             UNION ALL SELECT position, coalesce(current, body) FROM event \
             WHERE room = ?1 AND message_id = ?2 AND kind = 2 AND is_deleted = 0"
        );
        let mut left = self.connection.prepare_cached(&sql)?;
        let rows = left.query_map(params![room.number, message.text()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows: Vec<(u64, Vec<u8>)> = rows.collect::<rusqlite::Result<_>>()?;
        for (position, body) in rows {
            let tombstone = str::from_utf8(&body).ok().and_then(tombstone).unwrap_or(b"{\"deleted\":true}".to_vec());
            let sql = "UPDATE event SET is_deleted = 1, body = ?1, current = NULL WHERE position = ?2";
            self.connection.prepare_cached(sql)?.execute(params![tombstone, position])?;
        }
        Ok(())
    }

    fn take_part(&self, room: &Room, user: &Id) -> rusqlite::Result<()> {
        let sql = "INSERT OR IGNORE INTO reader (user, room, seq, ordinal) VALUES (?1, ?2, 0, 0)";
        self.connection.prepare_cached(sql)?.execute(params![user.text(), room.number]).map(drop)
    }

    fn mark_read(&self, room: &Room, user: &Id, seq: u64) -> Result<bool, Halt> {
        if seq > room.last_seq {
            return Err(Halt::Line(format!("seq must be at most {}, the room's last", room.last_seq)));
        }
        // The message may be one that is not kept any more.
        let sql =
            "SELECT ordinal FROM event WHERE room = ?1 AND is_message = 1 AND seq <= ?2 ORDER BY seq DESC LIMIT 1";
        let mut message = self.connection.prepare_cached(sql)?;
        let ordinal: u64 = message.query_row(params![room.number, seq], |row| row.get(0)).optional()?.unwrap_or(0);
        let sql = "INSERT INTO reader (user, room, seq, ordinal) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE \
                   SET seq = excluded.seq, ordinal = excluded.ordinal WHERE excluded.seq > seq";
        let mut mark = self.connection.prepare_cached(sql)?;
        Ok(mark.execute(params![user.text(), room.number, seq, ordinal])? > 0)
    }

    fn set_member(&self, room: &Room, (user, level): (&Id, Level), version: u64) -> Result<bool, Halt> {
        let (known, last) = members::find(self.connection, room.number, user)?;
        if version == last && level != known {
            return Err(Halt::Line(format!("the user is something else in the room since version {version}")));
        }
        if version > last {
            let row = params![room.number, user.text(), user.is_numeric(), level as u8, version];
            self.connection.prepare_cached(members::SET)?.execute(row)?;
        }
        Ok(version > last)
    }

    fn note_replaced(&self, room: &Room, version: u64) -> Result<bool, Halt> {
        let sql = "UPDATE room SET members_version = ?1 WHERE number = ?2 AND members_version < ?1";
        let is_new = self.connection.prepare_cached(sql)?.execute(params![version, room.number])? > 0;
        let sql = "DELETE FROM member WHERE room = ?1 AND version < ?2";
        self.connection.prepare_cached(sql)?.execute(params![room.number, version])?;
        Ok(is_new)
    }

    fn move_room(&self, room: &Room, seq: u64) -> Result<bool, Halt> {
        if room.last_seq > 0 {
            return Ok(false);
        }
        let sql = "UPDATE room SET first_seq = ?1 + 1, last_seq = ?1 WHERE number = ?2";
        self.connection.prepare_cached(sql)?.execute(params![seq, room.number])?;
        Ok(true)
    }
}

fn kind(line: &LineKind) -> Kind {
    match line {
        LineKind::Message { .. } => Kind::Message,
        LineKind::Update { .. } => Kind::Update,
        LineKind::Deletion { .. } => Kind::Deletion,
        LineKind::Reaction { is_removed: false, .. } => Kind::Reaction,
        // The others are no events.
        _ => Kind::ReactionRemoved,
    }
}

fn about(line: &LineKind) -> &str {
    match line {
        LineKind::Message { id, .. } => id.text(),
        LineKind::Update { message, .. } | LineKind::Deletion { message } | LineKind::Reaction { message, .. } => {
            message.text()
        }
        _ => "",
    }
}
