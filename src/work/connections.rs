//! The connections of the store's threads, and what each does on its own.
//!
//! Owns what an answer of SQLite means for the threads (try again, or take another connection), and when the log is too
//! long. Must not know how threads wait for each other.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode as Sqlite, Row};

use super::checkpointer::{Log, Written};
use super::database::Database;
use super::failure::{Complaints, Failure};
use super::ledger::Ledger;
use super::log_file;
use super::reader;
use super::readers::Source;
use super::retention::Retention;
use super::writer::Core;
use crate::chat::store::{Action, Found, Lookup, Revoke, StoreFacts, Verdict, Write};
use crate::config::Limits;
use crate::error::Error;

/// How long the thread that writes waits for others when it writes the log back itself.
const BOUND_MS_MAX: u64 = 5;
/// Between two attempts at that: somebody who reads all along, a backup for instance, keeps the log as it is.
const BOUND_INTERVAL: Duration = Duration::from_secs(1);
/// What the disk has to take before the store is well again.
const PROBE_BYTES: usize = 256 * 1024;
/// How long a connection otherwise waits, as [`Database`] sets it.
const BUSY_MS_MAX: u64 = 5_000;

/// What a page takes in the log.
const FRAME_BYTES: u64 = 4_096 + 24;
/// Passes over the log that one checkpoint makes to get to its end.
const PASSES_MAX: usize = 3;

/// The connection that writes.
pub(crate) struct WriteConnection {
    /// `None` from when it failed until there is another. Before the database in each connection here, so that it is
    /// closed before the file of the database may be.
    ledger: Option<Ledger>,
    database: Arc<Database>,
    limits: Limits,
    retention: Retention,
    written: Written,
    /// How long the log is, of which the file may be longer.
    log_bytes: Arc<AtomicU64>,
    bounded: Option<Instant>,
    complaints: Complaints,
}

impl WriteConnection {
    /// The one connection of `database` that writes; `written` is told of what it commits.
    pub fn open(database: &Arc<Database>, limits: &Limits, written: Written) -> Result<Self, Error> {
        let log_bytes = Arc::default();
        let mut ledger = open_ledger(database, limits, &log_bytes).map_err(|error| refusal(database, &error))?;
        ledger.prepare().map_err(|error| refusal(database, &error))?;
        let has_room = database.lengthen_log(log_file::length(limits));
        written.set_large(log_file::large_bytes(limits, has_room));
        let retention = Retention::new(limits);
        let (database, limits) = (Arc::clone(database), limits.clone());
        Ok(Self {
            ledger: Some(ledger),
            database,
            limits,
            retention,
            written,
            log_bytes,
            bounded: None,
            complaints: Complaints::default(),
        })
    }

    /// Writes the log back, so that the next start finds none.
    pub fn close(self) {
        if !self.database.is_memory()
            && let Some(ledger) = &self.ledger
            && let Err(error) = write_log_back(ledger.connection(), "TRUNCATE")
        {
            tracing::warn!(%error, "the store's log could not be written back; the next start does it");
        }
    }

    fn ledger(&mut self) -> Result<&mut Ledger, Failure> {
        self.ledger.as_mut().ok_or_else(closed)
    }

    fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Begins the log again: little of it is missing in the database file, or it is too long.
    fn restart_log(&mut self) -> rusqlite::Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let connection = ledger.connection();
        let patience = |ms| connection.busy_timeout(Duration::from_millis(ms));
        let written_back = patience(BOUND_MS_MAX).and_then(|()| write_log_back(connection, "RESTART"));
        let restarted = patience(BUSY_MS_MAX).and(written_back).map(drop);
        if restarted.is_ok() {
            self.log_bytes.store(0, Ordering::Relaxed);
        }
        restarted
    }
}

impl Core for WriteConnection {
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<Vec<Verdict>, Failure> {
        if writes.iter().any(|write| erases(&write.change.action)) {
            self.written.note_erased();
        }
        let verdicts = self.ledger()?.commit(writes).map_err(|error| failure(&error))?;
        self.written.note(self.log_bytes());
        Ok(verdicts)
    }

    fn revoke(&mut self, revoke: &Revoke) -> Result<(), Failure> {
        let max = self.limits.revocations_max;
        let kept = self.ledger()?.revoke(revoke.order.user.text(), revoke.before_ms, max);
        kept.map_err(|error| failure(&error))?;
        self.written.note(self.log_bytes());
        Ok(())
    }

    fn last_position(&mut self) -> Result<u64, Failure> {
        self.ledger()?.last_position().map_err(|error| failure(&error))
    }

    fn probe(&mut self) -> Result<(), Failure> {
        if let Some(path) = self.database.path() {
            probe_disk(path).map_err(|error| Failure { reason: error.to_string(), is_of_connection: false })?;
        }
        let connection = self.ledger()?.connection();
        // Given the value that it has, the number is written all the same.
        let probed = connection
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .and_then(|version| connection.pragma_update(None, "user_version", version));
        probed.map_err(|error| failure(&error))
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        if self.database.is_memory() {
            return Ok(());
        }
        self.ledger = None;
        let ledger = open_ledger(&self.database, &self.limits, &self.log_bytes).map_err(|error| failure(&error))?;
        self.ledger = Some(ledger);
        Ok(())
    }

    fn trim(&mut self) -> Result<bool, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ledger = self.ledger.as_mut().ok_or_else(closed)?;
        let before = ledger.connection().total_changes();
        let trimmed = ledger.trim(&mut self.retention, now.as_millis() as u64);
        if ledger.connection().total_changes() > before {
            self.written.note_erased();
            self.written.note(self.log_bytes());
        }
        trimmed.map_err(|error| failure(&error))
    }

    fn bound_log(&mut self) {
        if self.written.take_nearly_done() && self.written.is_large(self.log_bytes()) {
            // If somebody reads it, it is longer at the next checkpoint.
            let _ = self.restart_log();
            return;
        }
        let is_soon = self.bounded.is_some_and(|bounded| bounded.elapsed() < BOUND_INTERVAL);
        if is_soon || self.log_bytes() <= self.limits.store_log_bytes_max {
            return;
        }
        self.bounded = Some(Instant::now());
        // Somebody reads it, or the disk fails and will tell the next commit.
        if let Err(error) = self.restart_log()
            && let Some(count) = self.complaints.count(Instant::now())
        {
            tracing::warn!(%error, count, bytes = self.log_bytes(), "the store's log stays long");
        }
    }

    fn find(&mut self, lookup: &Lookup) -> Found {
        match &self.ledger {
            Some(ledger) => reader::find_on(ledger.connection(), &self.database.facts(), lookup),
            None => Found::Failed,
        }
    }
}

/// A connection that reads.
pub(crate) struct ReadConnection {
    connection: Connection,
    database: Arc<Database>,
    facts: StoreFacts,
}

impl ReadConnection {
    /// One of the connections of `database` that read.
    pub fn open(database: &Arc<Database>) -> Result<Self, Error> {
        let connection = database.reader().map_err(|error| refusal(database, &error))?;
        Ok(Self { database: Arc::clone(database), facts: database.facts(), connection })
    }
}

impl Source for ReadConnection {
    fn find(&mut self, lookup: &Lookup) -> Result<Found, Failure> {
        reader::try_find_on(&self.connection, &self.facts, lookup).map_err(|error| failure(&error))
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        let connection = self.database.reader().map_err(|error| failure(&error))?;
        // Opening alone reads nothing.
        connection.query_row("SELECT epoch FROM store", [], |_| Ok(())).map_err(|error| failure(&error))?;
        self.connection = connection;
        Ok(())
    }
}

/// The connection that writes the log back.
pub(crate) struct LogConnection {
    /// `None` from when it failed until there is another.
    connection: Option<Connection>,
    database: Arc<Database>,
}

impl LogConnection {
    /// The one connection of `database` that writes the log back besides.
    pub fn open(database: &Arc<Database>) -> Result<Self, Error> {
        let connection = database.checkpointer().map_err(|error| refusal(database, &error))?;
        Ok(Self { database: Arc::clone(database), connection: Some(connection) })
    }
}

impl Log for LogConnection {
    fn checkpoint(&mut self) -> Result<bool, Failure> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.checkpointer().map_err(|error| failure(&error))?,
        };
        let written_back = self.write_back(&connection);
        if !matches!(&written_back, Err(failure) if failure.is_of_connection) {
            self.connection = Some(connection);
        }
        written_back
    }

    fn clear(&mut self) -> bool {
        let Some(connection) = &self.connection else { return false };
        // Whoever is writing or reading now is not kept waiting: the next time will do.
        let patience = |ms| connection.busy_timeout(Duration::from_millis(ms));
        let cleared = patience(0).and_then(|()| write_log_back(connection, "TRUNCATE"));
        match patience(BUSY_MS_MAX).and(cleared) {
            Ok(_) => self.lengthen(connection),
            Err(error) => {
                tracing::debug!(%error, "the store's log is not empty");
                return false;
            }
        }
        true
    }
}

impl LogConnection {
    /// Writes back what can be; whether that was all. SQLite brings the database file to the disk only if nothing was
    /// committed meanwhile, and something is while somebody writes all along: then the writer would have to do it, with all
    /// the rest waiting.
    fn write_back(&self, connection: &Connection) -> Result<bool, Failure> {
        for _ in 0..PASSES_MAX {
            // What a pass calls all is all that there was when it began.
            let written_back = write_log_back(connection, "PASSIVE").and_then(|_| write_log_back(connection, "NOOP"));
            if written_back.map_err(|error| failure(&error))? {
                return Ok(true);
            }
            let synced = self.database.sync();
            synced.map_err(|error| Failure { reason: error.to_string(), is_of_connection: false })?;
        }
        Ok(false)
    }

    /// Makes the log's file long again, while nobody writes.
    fn lengthen(&self, connection: &Connection) {
        let alone = connection.execute_batch("BEGIN IMMEDIATE");
        if alone.is_ok() {
            self.database.lengthen_log(log_file::LENGTH_SHORT);
            // Nothing was written by it, so that nothing is lost.
            let _ = connection.execute_batch("ROLLBACK");
        }
    }
}

fn open_ledger(database: &Database, limits: &Limits, log_bytes: &Arc<AtomicU64>) -> rusqlite::Result<Ledger> {
    let mut connection = database.writer()?;
    if !database.is_memory() {
        // So the file becomes shorter again behind a round through a log that was much too long, and keeps its length behind
        // others: to make it shorter and then longer again would hold up commits.
        let kept_bytes = limits.store_log_bytes_max.saturating_mul(4).min(i64::MAX as u64);
        connection.pragma_update(None, "journal_size_limit", kept_bytes as i64)?;
        let log_bytes = Arc::clone(log_bytes);
        connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, frames: std::ffi::c_int| {
            log_bytes.store(u64::try_from(frames).unwrap_or_default() * FRAME_BYTES, Ordering::Relaxed);
            Ok(())
        }))?;
    }
    Ok(Ledger::new(connection, limits))
}

/// Writes the log back in one of SQLite's modes; whether all of it is in the database file. That somebody kept it from
/// being finished is an error only of those modes that wait.
fn write_log_back(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let written_back = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], read)?;
    let (is_busy, frames, frames_written): (bool, i64, i64) = written_back;
    if is_busy && !matches!(mode, "PASSIVE" | "NOOP") {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(rusqlite::Error::SqliteFailure(busy, Some("somebody reads it".to_owned())));
    }
    Ok(!is_busy && frames == frames_written)
}

/// Whether something that was kept is to be found nowhere any more.
fn erases(action: &Action) -> bool {
    match action {
        Action::Delete { .. } | Action::Unreact { .. } | Action::ForgetReader { .. } | Action::RemoveRoom => true,
        Action::Post(_)
        | Action::Edit { .. }
        | Action::React { .. }
        | Action::MarkRead { .. }
        | Action::SetMember { .. }
        | Action::ReplaceMembers { .. } => false,
    }
}

/// Whether the disk takes more than a page or two. What a failed transaction has left in the log would be enough for a
/// tiny one, and the store would seem well until the next message.
fn probe_disk(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".probe");
    let written = File::create(&name).and_then(|mut file| {
        file.write_all(&[0xa5; PROBE_BYTES])?;
        file.sync_data()
    });
    written.and(fs::remove_file(&name))
}

fn closed() -> Failure {
    Failure { reason: "the database could not be opened again".to_owned(), is_of_connection: true }
}

/// What an answer of SQLite means for a thread.
fn failure(error: &rusqlite::Error) -> Failure {
    let is_of_connection = matches!(
        error.sqlite_error_code(),
        Some(
            Sqlite::SystemIoFailure
                | Sqlite::DatabaseCorrupt
                | Sqlite::NotADatabase
                | Sqlite::CannotOpen
                | Sqlite::ReadOnly
                | Sqlite::FileLockingProtocolFailed
        )
    );
    Failure { reason: error.to_string(), is_of_connection }
}

fn refusal(database: &Database, error: &rusqlite::Error) -> Error {
    let path = database.path().unwrap_or(Path::new(":memory:")).to_owned();
    Error::Store { path, reason: format!("cannot be opened once more: {error}") }
}
