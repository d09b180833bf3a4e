//! The threads that read.
//!
//! Owns the answers to lookups: each thread takes the next one that waits, on a connection of its own, so a long page
//! stands in front of none but those behind it. Shards bound how many wait (`store_reads_max`). A thread whose
//! connection fails takes another once a second, also without traffic. Must not know what is looked up.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};

use super::failure::{Complaints, Failure, Health};
use crate::chat::ids::ShardId;
use crate::chat::store::{Done, Found, Job, Lookup};

/// Where a thread reads.
pub(crate) trait Source {
    /// Answers a lookup.
    fn find(&mut self, lookup: &Lookup) -> Result<Found, Failure>;
    /// Takes another connection, and reads something.
    fn reopen(&mut self) -> Result<(), Failure>;
}

/// The state of one thread.
pub(crate) struct Reading<S, P> {
    source: S,
    post: P,
    health: Health,
    /// Between two attempts of a connection that fails.
    retry: Duration,
    retry_at: Option<Instant>,
    complaints: Complaints,
}

impl<S: Source, P: FnMut(ShardId, Done)> Reading<S, P> {
    /// A thread that reads from `source`, and tells `post` what it found.
    pub fn new(source: S, post: P, health: Health, retry: Duration) -> Self {
        Self { source, post, health, retry, retry_at: None, complaints: Complaints::default() }
    }

    /// Works until `stop` has no sender any more, and then through what has been handed out.
    pub fn run(mut self, jobs: &Receiver<(ShardId, Job)>, stop: &Receiver<()>) {
        loop {
            let timer = self.retry_at.map_or_else(never, at);
            select! {
                recv(jobs) -> job => match job {
                    Ok((shard, job)) => self.answer(shard, job),
                    Err(_) => return,
                },
                recv(stop) -> _ => break,
                recv(timer) -> _ => self.heal(),
            }
        }
        for (shard, job) in jobs.try_iter() {
            self.answer(shard, job);
        }
    }

    fn answer(&mut self, shard: ShardId, job: Job) {
        let Job::Read(asker, lookup) = job else {
            debug_assert!(false, "only what reads comes here");
            return;
        };
        let found = match self.retry_at {
            Some(_) => Found::Failed,
            None => self.source.find(&lookup).unwrap_or_else(|failure| {
                self.fail(&failure);
                Found::Failed
            }),
        };
        (self.post)(shard, Done::Found(asker, found));
    }

    fn heal(&mut self) {
        match self.source.reopen() {
            Ok(()) => {
                self.retry_at = None;
                self.health.note(false);
                tracing::info!("the store can be read again");
            }
            Err(failure) => self.fail(&failure),
        }
    }

    fn fail(&mut self, failure: &Failure) {
        let now = Instant::now();
        if let Some(count) = self.complaints.count(now) {
            tracing::error!(reason = %failure, count, "the store cannot be read");
        }
        if failure.is_of_connection {
            self.retry_at = Some(now + self.retry);
            self.health.note(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::{Sender, unbounded};

    use super::*;
    use crate::chat::ids::RoomName;
    use crate::chat::shard::Gauges;
    use crate::chat::store::Asker;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Fails as often as it is told to, and notes when it is reopened.
    struct Fake {
        failures: Vec<Failure>,
        reopened: Sender<()>,
    }

    impl Source for Fake {
        fn find(&mut self, _: &Lookup) -> Result<Found, Failure> {
            self.failures.pop().map_or(Ok(Found::Position { last_seq: 1 }), Err)
        }

        fn reopen(&mut self) -> Result<(), Failure> {
            let _ = self.reopened.send(());
            Ok(())
        }
    }

    #[test]
    fn a_connection_that_fails_is_replaced_without_traffic() {
        let (jobs, jobs_in) = unbounded();
        let (post, posts) = unbounded();
        let (stop, stopped) = unbounded::<()>();
        let (reopened, reopens) = unbounded();
        let gauges = Arc::new(Gauges::default());
        let failure = |is_of_connection| Failure { reason: "it fails".to_owned(), is_of_connection };
        let source = Fake { failures: vec![failure(true), failure(false)], reopened };
        let health = Health::parts(&gauges, 1).remove(0);
        let post = move |shard, done| drop(post.send((shard, done)));
        let reading = Reading::new(source, post, health, Duration::from_millis(2));
        let thread = std::thread::spawn(move || reading.run(&jobs_in, &stopped));
        let found = || {
            let read = Job::Read(Asker::Room(3), Lookup::Position(RoomName::new("r", 0)));
            jobs.send((ShardId(1), read)).unwrap();
            format!("{:?}", posts.recv_timeout(PATIENCE).expect("an answer"))
        };
        assert!(found().contains("Failed") && !gauges.is_store_failing(), "one that is nobody's fault");
        assert!(found().contains("Failed"));
        reopens.recv_timeout(PATIENCE).expect("it is reopened");
        while found().contains("Failed") {}
        assert!(!gauges.is_store_failing());
        drop(stop);
        thread.join().unwrap();
    }
}
