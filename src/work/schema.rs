//! The tables of the store and how they came to be.
//!
//! Owns the schema, its versions and the steps between them. A database has the number of the last step taken in
//! `user_version`; the steps that are missing are taken in one transaction.
//!
//! What the tables mean:
//!
//! - `store` has one row. `batch` counts the transactions of the [`Ledger`](super::ledger::Ledger) that changed something
//!   without an event; by it and by the last position the ledger finds out what became of one whose commit failed.
//!   `trimmed_position` is the highest position of an event that is gone.
//! - `room`: a name's number, and how far the room had come when its row was written last. The events of a room that are
//!   kept have `first_seq <= seq <= last_seq` without a hole. `messages` counts those there ever were,
//!   `messages_trimmed` those that are gone.
//! - `store_now` and `room_now` say how far the store and each room have come: what the row says, or the newest event. So
//!   an event writes neither row, each of which would be one more page of every commit.
//! - `removed_room`: numbers without a name, whose rows in other tables count as gone. Removing a room gives its name a
//!   new number, which is higher than all; a number is never given twice.
//! - `event`: what is sent, in the order of commits. `message_id` is the message that it is or is about; `sender` who
//!   wrote it or reacted; `current` the message as it is after edits, as long as it was edited.
//! - `message`: the positions of messages by their ids, of those up to `indexed_position` of `store` for certain, and perhaps
//!   of others.
//! - `idempotency`: the keys of requests, in the order in which they are forgotten.
//! - `reaction`: those that stand, each with the `seq` of its event, with which it goes.
//! - `reader`: who took part in a room, and how far they have read, 0 for not at all; `ordinal` is how many messages
//!   the room had then.
//! - `member`: who is a member of a room (`level` 2) or a reader (1); 0 says that somebody is not any more. Whoever has
//!   no row is nothing since `members_version` of the room, and no row has a lower `version`.
//! - `revocation`: users whose tokens from before a time are refused, in the order in which they are forgotten.

use rusqlite::{Connection, TransactionBehavior};

use crate::chat::store::StoreFacts;

/// The version of the schema that this server writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Marks a database as one of this server: `SzCh`.
const APPLICATION_ID: i64 = 0x537a_4368;

/// What leads from each version to the next.
const STEPS: [&str; 5] = [FIRST, POSITIONS_OF_EVENTS, MEMBERS, REVOCATIONS, PLACES_OF_MESSAGES];

const FIRST: &str = "
CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL,
    digest_key BLOB NOT NULL,
    batch INTEGER NOT NULL,
    last_position INTEGER NOT NULL,
    trimmed_position INTEGER NOT NULL
) STRICT;
CREATE TABLE room (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    messages_trimmed INTEGER NOT NULL,
    last_position INTEGER NOT NULL
) STRICT;
CREATE TABLE removed_room (number INTEGER PRIMARY KEY) STRICT;
CREATE TABLE event (
    position INTEGER PRIMARY KEY,
    room INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    is_message INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    is_deleted INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    id_numeric INTEGER NOT NULL,
    sender TEXT,
    emoji TEXT,
    digest BLOB,
    body BLOB NOT NULL,
    current BLOB
) STRICT;
CREATE UNIQUE INDEX event_by_seq ON event (room, is_message, seq);
CREATE UNIQUE INDEX event_by_message ON event (room, message_id) WHERE is_message = 1;
CREATE INDEX event_by_update ON event (room, message_id) WHERE kind = 2;
CREATE TABLE idempotency (
    number INTEGER PRIMARY KEY,
    room INTEGER NOT NULL,
    key TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    UNIQUE (room, key)
) STRICT;
CREATE TABLE reaction (
    room INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    emoji TEXT NOT NULL,
    user TEXT NOT NULL,
    user_numeric INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (room, message_id, emoji, user)
) STRICT, WITHOUT ROWID;
CREATE TABLE reader (
    user TEXT NOT NULL,
    room INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    PRIMARY KEY (user, room)
) STRICT, WITHOUT ROWID;
CREATE INDEX reader_by_room ON reader (room);
";

/// From here on the rows of `store` and `room` may be behind the events.
const POSITIONS_OF_EVENTS: &str = "
CREATE VIEW store_now AS SELECT
    s.batch,
    s.trimmed_position,
    max(s.last_position, s.trimmed_position, ifnull((SELECT max(position) FROM event), 0)) AS last_position
FROM store s;
CREATE VIEW room_now AS SELECT
    r.number,
    r.name,
    r.first_seq,
    max(
        r.last_seq,
        ifnull((SELECT max(e.seq) FROM event e WHERE e.room = r.number AND e.is_message = 0), 0),
        ifnull((SELECT max(e.seq) FROM event e WHERE e.room = r.number AND e.is_message = 1), 0)
    ) AS last_seq,
    max(
        r.messages,
        ifnull((SELECT e.ordinal FROM event e WHERE e.room = r.number AND e.is_message = 1 ORDER BY e.seq DESC LIMIT 1), 0)
    ) AS messages,
    r.messages_trimmed,
    max(
        r.last_position,
        ifnull((SELECT e.position FROM event e WHERE e.room = r.number AND e.is_message = 0 ORDER BY e.seq DESC LIMIT 1), 0),
        ifnull((SELECT e.position FROM event e WHERE e.room = r.number AND e.is_message = 1 ORDER BY e.seq DESC LIMIT 1), 0)
    ) AS last_position
FROM room r;
";

const MEMBERS: &str = "
ALTER TABLE room ADD COLUMN members_version INTEGER NOT NULL DEFAULT 0;
CREATE TABLE member (
    room INTEGER NOT NULL,
    user TEXT NOT NULL,
    user_numeric INTEGER NOT NULL,
    level INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (room, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX member_by_user ON member (user) WHERE level > 0;
";

const REVOCATIONS: &str = "
CREATE TABLE revocation (
    number INTEGER PRIMARY KEY,
    user TEXT NOT NULL UNIQUE,
    before_ms INTEGER NOT NULL
) STRICT;
";

/// The index was written with every message; the table is what [`places`](super::places) makes of it.
const PLACES_OF_MESSAGES: &str = "
CREATE TABLE message (
    room INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (room, message_id)
) STRICT, WITHOUT ROWID;
INSERT INTO message SELECT room, message_id, position FROM event WHERE is_message = 1 ORDER BY room, message_id;
DROP INDEX event_by_message;
ALTER TABLE store ADD COLUMN indexed_position INTEGER NOT NULL DEFAULT 0;
UPDATE store SET indexed_position = (SELECT last_position FROM store_now);
";

#[cfg(test)]
pub(super) use tests::make_first_version;

/// The version of a database; 0 if it has no tables of ours.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether the database is one of this server, or empty.
pub(super) fn is_ours(connection: &Connection, version: i64) -> rusqlite::Result<bool> {
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if application == APPLICATION_ID {
        return Ok(true);
    }
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(application == 0 && version == 0 && tables == 0)
}

/// Takes the steps that are missing. A new database gets its epoch and its key.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    migrate_by(connection, &STEPS)
}

fn migrate_by(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version(&transaction)?;
    let taken = usize::try_from(version).unwrap_or_default();
    for step in steps.iter().skip(taken) {
        transaction.execute_batch(step)?;
    }
    if taken < steps.len() {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", steps.len() as i64)?;
    }
    if taken == 0 {
        let (epoch, key) = (epoch()?, random::<16>()?);
        let sql = "INSERT INTO store (one, epoch, digest_key, batch, last_position, trimmed_position) \
                   VALUES (1, ?1, ?2, 0, 0, 0)";
        transaction.execute(sql, (&*epoch, &key[..]))?;
    }
    transaction.commit()
}

/// What is fixed as long as the database is.
pub(super) fn facts(connection: &Connection) -> rusqlite::Result<StoreFacts> {
    connection.query_row("SELECT epoch, digest_key FROM store", [], |row| {
        let key: [u8; 16] = row.get(1)?;
        let key = u128::from_le_bytes(key);
        let epoch: String = row.get(0)?;
        Ok(StoreFacts { epoch: epoch.into(), digest_key: (key as u64, (key >> 64) as u64) })
    })
}

/// Gives a copy of a database another epoch, so that nobody takes its positions for those of the original.
///
/// # Errors
/// Those of SQLite; then it has the old one.
pub fn renew_epoch(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("UPDATE store SET epoch = ?1", [&*epoch()?])?;
    Ok(())
}

/// 16 hexadecimal digits.
fn epoch() -> rusqlite::Result<Box<str>> {
    Ok(format!("{:016x}", u64::from_le_bytes(random()?)).into())
}

fn random<const N: usize>() -> rusqlite::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    filled.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes what the first release made of an empty database.
    pub(in crate::work) fn make_first_version(connection: &mut Connection) {
        migrate_by(connection, &STEPS[..1]).unwrap();
    }

    #[test]
    fn steps_that_are_missing_are_taken_together_or_not_at_all() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert!(is_ours(&connection, 0).unwrap());
        make_first_version(&mut connection);
        let before = facts(&connection).unwrap();
        let next = "ALTER TABLE room ADD COLUMN topic TEXT";
        migrate_by(&mut connection, &[FIRST, next, "no statement"]).unwrap_err();
        assert_eq!(version(&connection).unwrap(), 1);
        assert!(connection.prepare("SELECT topic FROM room").is_err(), "the whole is rolled back");
        for _ in 0..2 {
            migrate_by(&mut connection, &[FIRST, next]).unwrap();
            assert_eq!(version(&connection).unwrap(), 2);
            connection.prepare("SELECT topic FROM room").unwrap();
        }
        let after = facts(&connection).unwrap();
        assert_eq!((after.epoch, after.digest_key), (before.epoch, before.digest_key));
        assert!(is_ours(&connection, 2).unwrap());
    }
    #[test]
    fn a_store_of_the_first_version_gets_members() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_by(&mut connection, &[FIRST]).unwrap();
        connection.execute("INSERT INTO room VALUES (1, 'r', 1, 5, 2, 0, 5)", []).unwrap();
        migrate(&mut connection).unwrap();
        let read = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(version(&connection).unwrap(), VERSION);
        assert_eq!((read("SELECT last_seq FROM room"), read("SELECT members_version FROM room")), (5, 0));
        assert_eq!(read("SELECT count(*) FROM member"), 0);
    }

    #[test]
    fn a_store_from_before_the_table_of_messages_leads_to_all_of_them() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_by(&mut connection, &STEPS[..4]).unwrap();
        for (position, id, kind) in [(1, "b", 1), (2, "b", 4), (3, "a", 1), (7, "a", 3)] {
            let sql = "INSERT INTO event (position, room, seq, is_message, kind, is_deleted, at_ms, ordinal, message_id, \
                       id_numeric, body) VALUES (?1, 1, ?1, ?3 = 1, ?3, 0, 0, 0, ?2, 0, x'')";
            connection.execute(sql, (position, id, kind)).unwrap();
        }
        migrate(&mut connection).unwrap();
        let mut table = connection.prepare("SELECT message_id, position FROM message").unwrap();
        let rows = table.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let rows: Vec<(String, u64)> = rows.map(Result::unwrap).collect();
        assert_eq!(rows, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
        let complete = connection.query_row("SELECT indexed_position FROM store", [], |row| row.get::<_, u64>(0));
        assert_eq!(complete.unwrap(), 7);
    }
}
