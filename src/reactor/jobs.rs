//! The way of a loop's jobs to the threads that may block.
//!
//! Owns the channels, by kind: for the store what changes it goes to the one thread that writes, what reads it to those
//! that read. They have no limit of their own, because handing out must neither block nor fail half-way: a shard bounds
//! what it has under way of each kind (such as `store_writes_max`), and so what can lie here.

use crossbeam_channel::Sender;

use crate::chat::ids::{ConnId, ShardId};
use crate::chat::job::{Job, Question, Verify};
use crate::chat::store;

/// Hands the jobs of one shard over.
#[derive(Clone, Debug)]
pub struct Jobs {
    shard: ShardId,
    store: Option<StoreJobs>,
    checks: Option<Sender<Box<Verify>>>,
    searches: Option<Sender<(ShardId, ConnId)>>,
    questions: Option<Sender<Box<Question>>>,
}

/// The way to the store. The two channels may be the same.
#[derive(Clone, Debug)]
pub struct StoreJobs {
    /// What changes it.
    pub changes: Sender<(ShardId, store::Job)>,
    /// What reads it.
    pub reads: Sender<(ShardId, store::Job)>,
}

impl Jobs {
    /// Jobs of `shard`, which nobody takes yet.
    pub fn new(shard: ShardId) -> Self {
        Self { shard, store: None, checks: None, searches: None, questions: None }
    }

    /// Adds the way to the store, if there is one.
    pub fn with_store(mut self, store: Option<StoreJobs>) -> Self {
        self.store = store;
        self
    }

    /// Adds the way to those who verify signatures.
    pub fn with_checks(mut self, checks: Sender<Box<Verify>>) -> Self {
        self.checks = Some(checks);
        self
    }

    /// Adds the way to who fetches keys, if there is somebody.
    pub fn with_searches(mut self, searches: Option<Sender<(ShardId, ConnId)>>) -> Self {
        self.searches = searches;
        self
    }

    /// Adds the way to those who ask the ERP, if there is somebody.
    pub fn with_questions(mut self, questions: Option<Sender<Box<Question>>>) -> Self {
        self.questions = questions;
        self
    }

    /// Hands a job over, without waiting.
    ///
    /// # Errors
    /// Gives the job back if nobody takes its kind, or the threads have ended.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        match job {
            Job::Store(job) => self.submit_to_store(job).map_err(Job::Store),
            Job::Verify(verify) => match &self.checks {
                Some(checks) => checks.send(verify).map_err(|error| Job::Verify(error.0)),
                None => Err(Job::Verify(verify)),
            },
            Job::SeekKey(conn) => match &self.searches {
                Some(searches) => searches.send((self.shard, conn)).map_err(|_| Job::SeekKey(conn)),
                None => Err(Job::SeekKey(conn)),
            },
            Job::Permit(question) => match &self.questions {
                Some(questions) => questions.send(question).map_err(|error| Job::Permit(error.0)),
                None => Err(Job::Permit(question)),
            },
        }
    }

    fn submit_to_store(&self, job: store::Job) -> Result<(), store::Job> {
        let Some(StoreJobs { changes, reads }) = &self.store else { return Err(job) };
        let channel = match job {
            store::Job::Read(..) => reads,
            store::Job::Write(_) | store::Job::Revoke(_) | store::Job::WatchFeed(_) => changes,
        };
        channel.send((self.shard, job)).map_err(|error| error.0.1)
    }
}
