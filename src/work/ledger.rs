//! Decides durable requests and keeps what they become, a batch in one transaction.
//!
//! Owns what may be, what is a retry, and the next `seq` of each room. It is the writer's only way to the database. It
//! knows no thread and no clock: a request brings the time at which its home took it.
//!
//! Invariants: a request is decided by what the transaction sees, so also by those before it in the batch; none makes
//! the others of its batch fail, only the disk does. What is remembered between batches is what the database says;
//! after a failure nothing is remembered, and all is read back before the next batch. The events of a room have `seq`
//! without holes, and positions grow with every event.

use std::sync::Arc;

use rusqlite::Connection;

use super::batch::{Batch, Counters, Memory};
use super::retention::Retention;
use super::revocations;
use crate::chat::store::{Verdict, Write};
use crate::config::Limits;

/// The writer's side of the database.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    idempotency_ms: u64,
    memory: Memory,
    /// Whether what is committed is on the disk then.
    is_synchronous: bool,
}

impl Ledger {
    /// A ledger that writes by `connection`, a [writer](super::database::Database::writer).
    pub fn new(connection: Connection, limits: &Limits) -> Self {
        Self {
            connection,
            idempotency_ms: limits.store_idempotency_ms,
            memory: Memory::new(limits.store_recent_ids_max),
            is_synchronous: true,
        }
    }

    /// Reads back what has to be known of the database before anything is decided, so that the first batch need not.
    ///
    /// # Errors
    /// The disk's.
    pub fn prepare(&mut self) -> rusqlite::Result<()> {
        self.execute("BEGIN IMMEDIATE")?;
        let prepared = self.memory.prepare(&self.connection).and_then(|()| self.execute("COMMIT"));
        if prepared.is_err() {
            self.abandon();
        }
        prepared
    }

    /// Decides the writes in their order, and keeps what is new, in one transaction: one verdict for each.
    ///
    /// # Errors
    /// The disk's. Then nothing of the batch is kept, as far as can be told: if the answer of the commit was lost and it
    /// cannot be read back either, it may be. A retry is decided by what is there.
    pub fn commit(&mut self, writes: &[Arc<Write>]) -> rusqlite::Result<Vec<Verdict>> {
        match self.decide_all(writes) {
            Ok((verdicts, next)) => {
                let committed = self.execute("COMMIT");
                self.settle(committed, verdicts, next)
            }
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    /// Keeps that older tokens of a user are refused, of at most `max` users.
    ///
    /// # Errors
    /// The disk's. Then it is not kept.
    pub fn revoke(&mut self, user: &str, before_ms: u64, max: usize) -> rusqlite::Result<()> {
        self.synchronize(true)?;
        revocations::keep(&self.connection, user, before_ms, max)
    }

    /// The position of the last event that was committed, 0 before the first.
    pub fn last_position(&mut self) -> rusqlite::Result<u64> {
        Ok(self.counters()?.last_position)
    }

    /// Takes one [step](Retention::trim_step) of removing what need not be kept any more. Returns whether there is more
    /// to do.
    pub fn trim(&mut self, retention: &mut Retention, now_ms: u64) -> rusqlite::Result<bool> {
        // Should the machine crash, what was removed is there again, and is removed again. So the disk need not be waited
        // for, and the next message is not held up by it.
        let trimmed = self.synchronize(false).and_then(|()| retention.trim_step(&mut self.connection, now_ms));
        // If it fails, the next batch does it before it begins.
        let _ = self.synchronize(true);
        if retention.has_changed_rooms() || trimmed.is_err() {
            self.memory.forget_rooms();
        }
        trimmed
    }

    /// The connection, on which a database in memory is read as well. Nothing may be written by it.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn counters(&mut self) -> rusqlite::Result<Counters> {
        let counters = match self.memory.counters {
            Some(counters) => counters,
            None => read_counters(&self.connection)?,
        };
        self.memory.counters = Some(counters);
        Ok(counters)
    }

    fn synchronize(&mut self, is_synchronous: bool) -> rusqlite::Result<()> {
        if self.is_synchronous != is_synchronous {
            self.is_synchronous = false;
            self.connection.pragma_update(None, "synchronous", if is_synchronous { "FULL" } else { "NORMAL" })?;
            self.is_synchronous = is_synchronous;
        }
        Ok(())
    }

    fn decide_all(&mut self, writes: &[Arc<Write>]) -> rusqlite::Result<(Vec<Verdict>, Counters)> {
        self.synchronize(true)?;
        self.memory.make_room();
        let counters = self.counters()?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut batch = Batch::new(&self.connection, &mut self.memory, counters, self.idempotency_ms)?;
        let mut verdicts = Vec::with_capacity(writes.len());
        for write in writes {
            verdicts.push(batch.decide(write)?);
        }
        Ok((verdicts, batch.finish()?))
    }

    /// Looks at what became of a batch of which `next` would be the state behind it.
    fn settle(
        &mut self,
        committed: rusqlite::Result<()>,
        verdicts: Vec<Verdict>,
        next: Counters,
    ) -> rusqlite::Result<Vec<Verdict>> {
        let Err(error) = committed else {
            self.memory.counters = Some(next);
            return Ok(verdicts);
        };
        self.abandon();
        match read_counters(&self.connection) {
            Ok(found) if found == next => Ok(verdicts),
            _ => Err(error),
        }
    }

    fn abandon(&mut self) {
        self.memory.forget();
        if !self.connection.is_autocommit() {
            // If this fails as well, the next batch cannot begin, and comes here again.
            let _ = self.execute("ROLLBACK");
        }
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

fn read_counters(connection: &Connection) -> rusqlite::Result<Counters> {
    let mut read = connection.prepare_cached("SELECT batch, last_position, trimmed_position FROM store_now")?;
    read.query_row([], |row| {
        Ok(Counters { batch: row.get(0)?, last_position: row.get(1)?, trimmed_position: row.get(2)? })
    })
}

#[cfg(test)]
mod tests {
    use super::super::database::Database;
    use super::*;
    use crate::config::Store;

    impl Ledger {
        /// Commits, or rolls back, and takes it for failed.
        pub(in crate::work) fn commit_and_lose_the_answer(
            &mut self,
            writes: &[Arc<Write>],
            committed: bool,
        ) -> rusqlite::Result<Vec<Verdict>> {
            let (verdicts, next) = self.decide_all(writes)?;
            self.execute(if committed { "COMMIT" } else { "ROLLBACK" })?;
            self.settle(Err(rusqlite::Error::InvalidQuery), verdicts, next)
        }
    }

    #[test]
    fn a_revocation_is_on_the_disk_when_it_is_kept() {
        let database = Database::open(&Store::Memory).unwrap();
        let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
        let level = |ledger: &Ledger| -> i64 {
            ledger.connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap()
        };
        // As behind a step of retention that could not turn it on again.
        ledger.synchronize(false).unwrap();
        assert_eq!(level(&ledger), 1);
        ledger.revoke("ana", 5, 10).unwrap();
        assert_eq!(level(&ledger), 2);
        assert_eq!(revocations::all(&ledger.connection).unwrap(), [("ana".to_owned(), 5)]);
    }
}
