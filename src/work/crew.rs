//! A few threads that work on jobs of one kind.
//!
//! Owns a queue per shard, of which a free thread takes the first job of one that waits, by chance: so a shard with many
//! waits longer, and the others do not. The queues have no limit of their own; a shard bounds what it has under way. A
//! job may block; nothing but its own crew waits for it. Ending waits for a bounded time, since what a job waits for may
//! never come. Must not know what is worked on.

use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, unbounded};

use crate::chat::ids::ShardId;
use crate::chat::job::Done;
use crate::reactor::io::Post;
use crate::reactor::mailbox::Mailer;

/// How long the end of a crew may take.
const END_MAX: Duration = Duration::from_secs(2);

/// The threads, and the way to them.
#[derive(Debug)]
pub struct Crew<J> {
    name: &'static str,
    queues: Vec<Sender<J>>,
    stop: Sender<()>,
    ended: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> Crew<J> {
    /// Starts `threads` threads for the jobs of so many shards; each calls `work` on its own clone.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start<W>(name: &'static str, threads: usize, shards: usize, work: W) -> io::Result<Self>
    where
        W: FnMut(ShardId, J) + Clone + Send + 'static,
    {
        let (queues, jobs): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let (stop, stopped) = unbounded();
        let (end, ended) = unbounded();
        let mut crew = Self { name, queues, stop, ended, threads: Vec::new() };
        for number in 0..threads {
            let (jobs, stopped, end, mut work) = (jobs.clone(), stopped.clone(), end.clone(), work.clone());
            let run = move || {
                run(&jobs, &stopped, &mut work);
                let _ = end.send(());
            };
            crew.threads.push(Builder::new().name(format!("{name}-{number}")).spawn(run)?);
        }
        Ok(crew)
    }

    /// The way of a shard's jobs.
    pub fn queue(&self, shard: ShardId) -> Sender<J> {
        self.queues[shard.index()].clone()
    }

    /// Ends the threads, once each has done the job that it is at. One that does not end is left behind.
    pub fn stop(self) {
        drop(self.stop);
        let deadline = Instant::now() + END_MAX;
        for _ in &self.threads {
            if self.ended.recv_deadline(deadline).is_err() {
                tracing::warn!(crew = self.name, "a thread does not end and is left behind");
                return;
            }
        }
        for thread in self.threads {
            // Whoever panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Works until `stopped` has no sender any more.
fn run<J>(jobs: &[Receiver<J>], stopped: &Receiver<()>, work: &mut impl FnMut(ShardId, J)) {
    let mut select = Select::new();
    let stop = select.recv(stopped);
    for queue in jobs {
        select.recv(queue);
    }
    loop {
        let operation = select.select();
        let at = operation.index();
        if at == stop {
            // Nobody sends here, so it was dropped.
            let _ = operation.recv(stopped);
            return;
        }
        let shard = at - 1;
        match operation.recv(&jobs[shard]) {
            Ok(job) => work(ShardId(shard as u16), job),
            Err(_) => select.remove(at),
        }
    }
}

/// What brings answers to the shards, waiting for room in their mailboxes.
pub fn poster(mailers: &[Mailer<Post>]) -> impl Fn(ShardId, Done) + Clone + Send + 'static {
    let mailers = mailers.to_vec();
    move |shard, done| {
        if let Some(mailer) = mailers.get(shard.index()) {
            // A shard that has ended waits for nothing.
            let _ = mailer.post(Post::Done(done));
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_shard_with_many_jobs_is_not_served_before_the_others() {
        let (done, dones) = unbounded();
        let (gate, opened) = bounded::<()>(0);
        let work = move |shard: ShardId, job: u32| {
            if job == 0 {
                opened.recv().unwrap();
            }
            done.send((shard, job)).unwrap();
        };
        let crew = Crew::start("test", 1, 2, work).unwrap();
        let (busy, calm) = (crew.queue(ShardId(0)), crew.queue(ShardId(1)));
        busy.send(0).unwrap();
        (1..=1000).for_each(|job| busy.send(job).unwrap());
        calm.send(7).unwrap();
        gate.send(()).unwrap();
        let at = (0..1002).position(|_| dones.recv_timeout(PATIENCE).unwrap() == (ShardId(1), 7)).unwrap();
        assert!(at < 100, "it came behind {at} others");
        drop((busy, calm));
        crew.stop();
    }

    #[test]
    fn the_end_does_not_wait_for_a_job_that_never_ends() {
        let (never, nothing) = bounded::<()>(0);
        let (begun, begins) = unbounded();
        let work = move |_, ()| {
            begun.send(()).unwrap();
            let _ = nothing.recv();
        };
        let crew = Crew::start("test", 2, 1, work).unwrap();
        crew.queue(ShardId(0)).send(()).unwrap();
        begins.recv_timeout(PATIENCE).unwrap();
        crew.stop();
        drop(never);
    }
}
