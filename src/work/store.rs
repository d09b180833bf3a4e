//! The store as the server sees it: opened before it listens, started with the shards, ended behind them.
//!
//! Owns which threads there are: one that writes, [`READERS`] that read, one that writes the log back. A store in memory
//! has one connection, so there the thread that writes answers reads too, between its batches. Ending waits for a
//! bounded time: a disk that hangs must not hold the process, and what it has not taken was not acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::checkpointer::{self, Heard};
use super::connections::{LogConnection, ReadConnection, WriteConnection};
use super::crew;
use super::database::Database;
use super::failure::Health;
use super::readers::Reading;
use super::revocations;
use super::writer::{Pace, Writer};
use crate::chat::ids::ShardId;
use crate::chat::job;
use crate::chat::shard::Gauges;
use crate::chat::store::{Done, Job, StoreFacts};
use crate::config::{Config, Limits};
use crate::error::Error;
use crate::reactor::io::Post;
use crate::reactor::jobs::StoreJobs;
use crate::reactor::mailbox::Mailer;

/// Threads that read a store in a file.
pub const READERS: usize = 2;
/// How long the end of the store may take.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two attempts of what fails.
const RETRY: Duration = Duration::from_secs(1);
/// Of the thread that writes the log back: of the time of a busy core it gets a tenth of what the others get.
const LOG_NICENESS: i32 = 10;
/// Between two looks for what has become too old.
const AGE_LOOK: Duration = Duration::from_secs(60);

/// A database that is open and nobody uses yet.
#[derive(Debug)]
pub struct Store {
    database: Arc<Database>,
    limits: Limits,
}

/// The threads of a store, and the way to them.
#[derive(Debug)]
pub struct StoreThreads {
    changes: Sender<(ShardId, Job)>,
    reads: Sender<(ShardId, Job)>,
    stop: Sender<()>,
    stopped: Receiver<()>,
    ended: Receiver<()>,
    end: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// Opens what the configuration names, and makes it if it does not exist.
    ///
    /// # Errors
    /// Those of [`Database::open`].
    pub fn open(config: &Config) -> Result<Self, Error> {
        let database = Arc::new(Database::open(&config.store)?);
        Ok(Self { database, limits: config.limits.clone() })
    }

    /// What is fixed as long as the database is.
    pub fn facts(&self) -> StoreFacts {
        self.database.facts()
    }

    /// Whose older tokens are refused, the oldest entry first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn revocations(&self) -> Result<Vec<(String, u64)>, Error> {
        if self.database.is_memory() {
            return Ok(Vec::new());
        }
        let found = self.database.reader().and_then(|connection| revocations::all(&connection));
        let path = self.database.path().unwrap_or(Path::new("memory")).to_owned();
        found.map_err(|error| Error::Store { path, reason: error.to_string() })
    }

    /// Starts the threads. What they find goes to the shards by `mailers`; how they are, to `gauges`.
    ///
    /// # Errors
    /// The database does not take as many connections, or the system no more threads.
    pub fn start(self, mailers: &[Mailer<Post>], gauges: &Arc<Gauges>) -> Result<StoreThreads, Error> {
        let (changes, changes_in) = unbounded();
        let (stop, stopped) = unbounded();
        let (end, ended) = unbounded();
        let readers = if self.database.is_memory() { 0 } else { READERS };
        let (of_readers, reads_in) = unbounded();
        let reads = if readers == 0 { changes.clone() } else { of_readers };
        let mut threads = StoreThreads { changes, reads, stop, stopped, ended, end, threads: Vec::new() };
        let mut health = Health::parts(gauges, 2 + readers).into_iter();
        let (written, heard) = checkpointer::written();
        let core = WriteConnection::open(&self.database, &self.limits, written)?;
        let trim_look = (self.limits.retention_days > 0).then_some(AGE_LOOK);
        let pace = Pace { trim_look, ..Pace::default() };
        let post = poster(mailers);
        if let Some(health) = health.next() {
            let writer = Writer::new(core, changes_in, post, health, pace);
            let stopped = threads.stopped.clone();
            threads.spawn("store-writer", move || writer.run(&stopped).close())?;
        }
        let of_log = health.next();
        for (number, health) in health.enumerate() {
            let jobs = reads_in.clone();
            let source = ReadConnection::open(&self.database)?;
            let reading = Reading::new(source, poster(mailers), health, RETRY);
            let stopped = threads.stopped.clone();
            threads.spawn(&format!("store-reader-{number}"), move || reading.run(&jobs, &stopped))?;
        }
        if !self.database.is_memory()
            && let Some(health) = of_log
        {
            threads.write_log_back(&self.database, heard, health)?;
        }
        Ok(threads)
    }
}

impl StoreThreads {
    /// The way to them.
    pub fn jobs(&self) -> StoreJobs {
        StoreJobs { changes: self.changes.clone(), reads: self.reads.clone() }
    }

    /// Commits what was handed out, writes the log back, and ends the threads. If the disk hangs, they are left behind.
    pub fn stop(self) {
        drop(self.stop);
        drop(self.end);
        let deadline = Instant::now() + END_MAX;
        for _ in &self.threads {
            match self.ended.recv_deadline(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!("the store does not end: what it has acknowledged is in its log");
                    return;
                }
            }
        }
        for thread in self.threads {
            // Whoever panicked has said so.
            let _ = thread.join();
        }
    }

    fn write_log_back(&mut self, database: &Arc<Database>, heard: Heard, health: Health) -> Result<(), Error> {
        let log = LogConnection::open(database)?;
        let stopped = self.stopped.clone();
        self.spawn("store-log", move || {
            // It copies megabytes at a time, which would keep commits and loops waiting for the core. What it does with the
            // writer locked out, behind an erasure with nobody writing, is a few milliseconds' work, which may take ten times
            // as long so. On Linux it is for this thread alone. Not being let do it costs only that.
            let _ = rustix::process::nice(LOG_NICENESS);
            checkpointer::run(log, &heard, &stopped, checkpointer::QUIET, &health);
        })
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let end = self.end.clone();
        let work = move || {
            work();
            let _ = end.send(());
        };
        let spawned = Builder::new().name(name.to_owned()).spawn(work);
        let thread = spawned.map_err(|source| Error::System { action: "start a thread of the store", source })?;
        self.threads.push(thread);
        Ok(())
    }
}

fn poster(mailers: &[Mailer<Post>]) -> impl FnMut(ShardId, Done) + Send + 'static {
    let post = crew::poster(mailers);
    move |shard, done| post(shard, job::Done::Store(done))
}
