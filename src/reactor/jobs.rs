//! The way of a loop's jobs to the threads of the store.
//!
//! Owns two channels: what changes the store goes to the one thread that writes, what reads it to those that read. They
//! have no limit of their own, because handing out must neither block nor fail half-way: a shard bounds what it has
//! under way (`store_writes_max`, `store_bytes_max`, `store_reads_max`), and so what can lie here.

use crossbeam_channel::Sender;

use crate::chat::ids::ShardId;
use crate::chat::store::Job;

/// Hands the jobs of one shard over.
#[derive(Clone, Debug)]
pub struct Jobs {
    shard: ShardId,
    changes: Sender<(ShardId, Job)>,
    reads: Sender<(ShardId, Job)>,
}

impl Jobs {
    /// Jobs of `shard`. The two channels may be the same.
    pub fn new(shard: ShardId, changes: Sender<(ShardId, Job)>, reads: Sender<(ShardId, Job)>) -> Self {
        Self { shard, changes, reads }
    }

    /// Hands a job over, without waiting.
    ///
    /// # Errors
    /// Gives the job back if the threads have ended.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let channel = match job {
            Job::Read(..) => &self.reads,
            Job::Write(_) | Job::WatchFeed(_) => &self.changes,
        };
        channel.send((self.shard, job)).map_err(|error| error.0.1)
    }
}
