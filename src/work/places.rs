//! Where messages are, by their ids.
//!
//! Owns the table `message`, which leads from a room and an id to a position, and what is not in it yet. Ids come in no
//! order, so that in a table each would cost its commit a page of its own. So those of the newest messages are only
//! remembered, and brought into the table later, in the table's order, some with each commit: the two levels of a
//! log-structured merge tree (`O'Neil` et al., Acta Informatica 33, 1996). Of a table of a hundred thousand messages dozens
//! come to a page, of one of ten million hardly more than one. `store.indexed_position` says up to where the table is
//! complete; what lies behind it is read back from the events at the start and after a failure.
//!
//! Must not know what a message is. Invariants: a message that is kept is in the table, or remembered, or both. Both may
//! lead to an event that is gone, where nothing is found, as no position is given twice. At most twice `ids_max` ids are
//! remembered, and those of one batch.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

/// Ids brought into the table for each new event, so that one generation is done before the next is full.
const SETTLED_PER_EVENT: u64 = 2;
/// Events for each id that may be remembered, among which those are looked for at a start.
const EVENTS_PER_ID: u64 = 2;

/// Ids that are not in the table, or not for certain.
#[derive(Debug)]
pub(super) struct Places {
    ids_max: usize,
    /// `None` until it is read back.
    levels: Option<Levels>,
}

#[derive(Debug)]
struct Levels {
    /// Of the newest messages.
    fresh: Generation,
    /// Of those before, which are being brought into the table.
    settling: Option<Generation>,
}

/// The ids of the messages among the events of a time.
#[derive(Debug, Default)]
struct Generation {
    positions: BTreeMap<(u64, Box<str>), u64>,
    /// The position before its first event.
    from: u64,
}

impl Places {
    /// Remembers `ids_max` ids before these are brought into the table, and others meanwhile.
    pub(super) fn new(ids_max: usize) -> Self {
        Self { ids_max, levels: None }
    }

    /// After a failure: what is remembered may not be what is kept.
    pub(super) fn forget(&mut self) {
        self.levels = None;
    }

    /// Reads back what is not in the table, if that is not known. All of it is brought there if it is much: a generation
    /// that was not finished begins anew, and could do so for ever.
    pub(super) fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.levels.is_some() {
            return Ok(());
        }
        let sql = "SELECT indexed_position, (SELECT last_position FROM store_now) FROM store";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let (from, last): (u64, u64) = connection.query_row(sql, [], read)?;
        let mut fresh = Generation { from, ..Generation::default() };
        let sql = "SELECT room, message_id, position FROM event WHERE position > ?1 AND is_message = 1";
        let mut unsettled = connection.prepare_cached(sql)?;
        let mut unsettled = unsettled.query([from])?;
        while let Some(row) = unsettled.next()? {
            fresh.insert(row.get(0)?, row.get::<_, String>(1)?.into(), row.get(2)?);
        }
        let is_much = fresh.positions.len() > self.ids_max || last.saturating_sub(from) > self.events_max();
        if is_much {
            while let Some((room, id, position)) = fresh.pop_first() {
                insert(connection, room, &id, position)?;
            }
            note_complete(connection, last)?;
            fresh.from = last;
        }
        self.levels = Some(Levels { fresh, settling: None });
        Ok(())
    }

    fn events_max(&self) -> u64 {
        self.ids_max as u64 * EVENTS_PER_ID
    }

    /// The position of a message, at which there may be nothing any more.
    pub(super) fn find(&self, connection: &Connection, room: u64, id: &str) -> rusqlite::Result<Option<u64>> {
        let remembered = self.levels.as_ref().and_then(|levels| {
            let settling = || levels.settling.as_ref().and_then(|settling| settling.find(room, id));
            levels.fresh.find(room, id).or_else(settling)
        });
        if remembered.is_some() {
            return Ok(remembered);
        }
        let sql = "SELECT position FROM message WHERE room = ?1 AND message_id = ?2";
        connection.prepare_cached(sql)?.query_row(params![room, id], |row| row.get(0)).optional()
    }

    /// Notes where a new message is.
    pub(super) fn note(&mut self, room: u64, id: &str, position: u64) {
        if let Some(levels) = &mut self.levels {
            levels.fresh.insert(room, id.into(), position);
        }
    }

    /// Brings some ids into the table, behind so many new events of which `last` is the last. Of what lies up to `trimmed`
    /// some may be gone.
    pub(super) fn settle(
        &mut self,
        connection: &Connection,
        events: u64,
        last: u64,
        trimmed: u64,
    ) -> rusqlite::Result<()> {
        let events_max = self.events_max();
        let Some(Levels { fresh, settling }) = &mut self.levels else { return Ok(()) };
        let is_full = fresh.positions.len() >= self.ids_max || last.saturating_sub(fresh.from) >= events_max;
        if settling.is_none() && is_full {
            let next = Generation { from: last, ..Generation::default() };
            *settling = Some(std::mem::replace(fresh, next));
        }
        let Some(generation) = settling else { return Ok(()) };
        for _ in 0..events * SETTLED_PER_EVENT {
            let Some((room, id, position)) = generation.pop_first() else {
                // What is fresh begins where this ends.
                note_complete(connection, fresh.from)?;
                *settling = None;
                break;
            };
            if position > trimmed || is_there(connection, position)? {
                insert(connection, room, &id, position)?;
            }
        }
        Ok(())
    }
}

impl Generation {
    fn find(&self, room: u64, id: &str) -> Option<u64> {
        self.positions.get(&(room, id.into())).copied()
    }

    fn insert(&mut self, room: u64, id: Box<str>, position: u64) {
        self.positions.insert((room, id), position);
    }

    /// Takes the first id in the order of the table.
    fn pop_first(&mut self) -> Option<(u64, Box<str>, u64)> {
        let ((room, id), position) = self.positions.pop_first()?;
        Some((room, id, position))
    }
}

/// The table leads to all messages up to a position.
fn note_complete(connection: &Connection, position: u64) -> rusqlite::Result<()> {
    connection.execute("UPDATE store SET indexed_position = ?1", [position]).map(drop)
}

fn is_there(connection: &Connection, position: u64) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM event WHERE position = ?1")?.exists([position])
}

/// Puts an id into the table. Of two messages with the same id, of which the first is gone, it leads to the later.
pub(super) fn insert(connection: &Connection, room: u64, id: &str, position: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO message (room, message_id, position) VALUES (?1, ?2, ?3) \
               ON CONFLICT DO UPDATE SET position = excluded.position WHERE position <> excluded.position";
    connection.prepare_cached(sql)?.execute(params![room, id, position]).map(drop)
}

/// Takes out of the table the id of a message that is about to go.
pub(super) fn remove(connection: &Connection, room: u64, id: &str, position: u64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM message WHERE room = ?1 AND message_id = ?2 AND position = ?3";
    connection.prepare_cached(sql)?.execute(params![room, id, position]).map(drop)
}

/// Brings all ids into the table, for somebody who remembers none.
pub(super) fn settle_all(connection: &Connection) -> rusqlite::Result<()> {
    Places::new(0).load(connection)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Limits;
    use crate::work::database_tests::{Folder, open};
    use crate::work::ledger::Ledger;
    use crate::work::ledger_tests::post;

    fn event(connection: &Connection, position: u64, id: &str, is_message: bool) {
        let sql = "INSERT INTO event (position, room, seq, is_message, kind, is_deleted, at_ms, ordinal, message_id, id_numeric, \
                   body) VALUES (?1, 1, ?1, ?3, 1, 0, 0, 0, ?2, 0, x'')";
        connection.execute(sql, params![position, id, is_message]).unwrap();
    }

    proptest! {
        /// Against a map that forgets nothing: events come, the oldest go, all that is remembered is lost.
        #[test]
        fn every_message_is_found_where_it_is(
            ids_max in 2_usize..6,
            steps in prop::collection::vec((0_u8..12, 0_u8..30), 1..200),
        ) {
            let folder = Folder::new("places");
            let database = open(&folder.path("chat.db"));
            let connection = database.writer().unwrap();
            connection.pragma_update(None, "synchronous", "OFF").unwrap();
            let mut places = Places::new(ids_max);
            let (mut kept, mut last, mut first, mut trimmed) = (BTreeMap::<String, u64>::new(), 0, 1, 0);
            for (what, id) in steps {
                let id = format!("id-{id}");
                places.load(&connection).unwrap();
                match what {
                    0 => places.forget(),
                    1 | 2 if first <= last => {
                        // As the retention does it: the oldest goes.
                        let gone = kept.iter().find(|(_, position)| **position == first).map(|(id, _)| id.clone());
                        if let Some(id) = gone {
                            remove(&connection, 1, &id, first).unwrap();
                            kept.remove(&id);
                        }
                        connection.execute("DELETE FROM event WHERE position = ?1", [first]).unwrap();
                        (trimmed, first) = (first, first + 1);
                    }
                    _ => {
                        last += 1;
                        let is_message = what > 4 && !kept.contains_key(&id);
                        event(&connection, last, &id, is_message);
                        if is_message {
                            places.note(1, &id, last);
                            kept.insert(id, last);
                        }
                        places.settle(&connection, 1, last, trimmed).unwrap();
                        let levels = places.levels.as_ref().unwrap();
                        let settling = levels.settling.as_ref().map_or(0, |settling| settling.positions.len());
                        prop_assert!(levels.fresh.positions.len() + settling <= 2 * ids_max);
                    }
                }
                places.load(&connection).unwrap();
                for id in (0..30).map(|id| format!("id-{id}")) {
                    let found = places.find(&connection, 1, &id).unwrap();
                    let found = found.filter(|&position| is_there(&connection, position).unwrap());
                    prop_assert_eq!(found, kept.get(&id).copied(), "{}", id);
                }
            }
            connection.execute("UPDATE store SET last_position = ?1", [last]).unwrap();
            settle_all(&connection).unwrap();
            let mut table = connection.prepare("SELECT message_id, position FROM message ORDER BY position").unwrap();
            let rows = table.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            let rows: BTreeMap<String, u64> = rows.map(Result::unwrap).collect();
            prop_assert_eq!(rows, kept, "what is gone leaves nothing in the table");
        }
    }

    #[test]
    fn runs_that_are_too_short_to_finish_leave_nothing_behind() {
        let folder = Folder::new("short-runs");
        let database = open(&folder.path("chat.db"));
        let limits = Limits { store_recent_ids_max: 100, ..Limits::default() };
        let mut number = 0;
        for run in 0..40 {
            let mut ledger = Ledger::new(database.writer().unwrap(), &limits);
            ledger.prepare().unwrap();
            for _ in 0..10 {
                number += 1;
                ledger.commit(&[Arc::new(post("r", &format!("m{number}"), "word", None))]).unwrap();
            }
            let sql = "SELECT (SELECT max(position) FROM event) - indexed_position FROM store";
            let left: u64 = ledger.connection().query_row(sql, [], |row| row.get(0)).unwrap();
            assert!(left <= 110, "{left} ids are not in the table behind run {run}");
        }
    }

    #[test]
    fn ids_in_no_order_do_not_cost_a_page_each() {
        let folder = Folder::new("amplification");
        let database = open(&folder.path("chat.db"));
        let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
        let bytes = || std::fs::metadata(folder.path("chat.db-wal")).unwrap().len();
        let mut number = 0_u64;
        let mut commit = |ledger: &mut Ledger, rows: u64| {
            let writes = (0..rows).map(|_| {
                number += 1;
                let id = format!("m{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                Arc::new(post("r", &id, "word", None))
            });
            ledger.commit(&writes.collect::<Vec<_>>()).unwrap();
        };
        // Enough for a table of hundreds of pages, and the ids of all but the last behind their generation.
        for _ in 0..90 {
            commit(&mut ledger, 1_000);
        }
        ledger.connection().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        for _ in 0..100 {
            commit(&mut ledger, 32);
        }
        let pages = bytes() / 4_120;
        assert!(pages < 100 * 16, "{pages} pages for 100 commits of 32 messages");
        drop(ledger);
        // The next one remembers what the last did.
        let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
        let same = ledger.commit(&[Arc::new(post("r", "m9e3779b97f4a7c15", "word", None))]).unwrap();
        assert!(matches!(same[0], crate::chat::store::Verdict::Same(_)), "{same:?}");
    }
}
