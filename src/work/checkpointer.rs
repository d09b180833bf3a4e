//! The thread that writes the log back into the database file, besides.
//!
//! Owns when: soon after the log has become large, and once nothing has been written for a second. So the database file
//! is brought to the disk here rather than in the thread that writes, and the log is short when the process starts again.
//! It sleeps while nothing is written and nothing is left to do. Must not know what is in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, select};

use super::failure::{Complaints, Failure, Health};

/// A log of more than this is written back soon. The longer it is, the more versions of a page are written back as one, and
/// the less often commits wait for that.
pub(crate) const LARGE_BYTES: u64 = 32 * 1024 * 1024;
/// The same where there is little room, or something was erased.
pub(crate) const LARGE_BYTES_LEAST: u64 = 4 * 1024 * 1024;
/// A log behind which nothing was written for so long is written back.
pub(crate) const QUIET: Duration = Duration::from_secs(1);
/// Between two checkpoints, however large the log: a reader may keep all of it in use.
const PAUSE: Duration = Duration::from_millis(100);

/// What is written back.
pub(crate) trait Log {
    /// Writes back what can be without keeping anybody waiting; whether that was all, so that the next commit begins the
    /// log again.
    fn checkpoint(&mut self) -> Result<bool, Failure>;

    /// Empties the log, all of which is written back; `false` if somebody uses it.
    fn clear(&mut self) -> bool;
}

/// How the writer tells that it has written.
#[derive(Debug)]
pub(crate) struct Written {
    shared: Arc<Shared>,
    wake: Sender<()>,
}

/// How the checkpointer hears of it.
#[derive(Debug)]
pub(crate) struct Heard {
    shared: Arc<Shared>,
    woken: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    /// A log of more than this is written back soon.
    large_bytes: AtomicU64,
    commits: AtomicU64,
    /// What was erased from the database is still in the log.
    has_erased: AtomicBool,
    /// The log was written back a moment ago, but for what was committed meanwhile: little is missing.
    is_nearly_done: AtomicBool,
    /// The next commit has to wake the thread, which otherwise looks at the count by itself.
    is_asleep: AtomicBool,
}

/// The two ends between the writer and the checkpointer.
pub(crate) fn written() -> (Written, Heard) {
    let (wake, woken) = bounded(1);
    let shared = Arc::new(Shared {
        large_bytes: AtomicU64::new(LARGE_BYTES),
        commits: AtomicU64::new(0),
        has_erased: AtomicBool::new(false),
        is_nearly_done: AtomicBool::new(false),
        is_asleep: AtomicBool::new(false),
    });
    (Written { shared: Arc::clone(&shared), wake }, Heard { shared, woken })
}

impl Written {
    /// Whether little of the log is missing in the database file, which is said once.
    pub fn take_nearly_done(&self) -> bool {
        // Most often it is not set, and then nothing need be written.
        self.shared.is_nearly_done.load(Ordering::Relaxed) && self.shared.is_nearly_done.swap(false, Ordering::SeqCst)
    }

    /// Whether a log of so many bytes is to be written back soon.
    pub fn is_large(&self, log_bytes: u64) -> bool {
        let Shared { large_bytes, has_erased, .. } = &*self.shared;
        log_bytes > large_bytes.load(Ordering::Relaxed)
            || log_bytes > LARGE_BYTES_LEAST && has_erased.load(Ordering::Relaxed)
    }

    /// A log of more than so many bytes is to be written back soon.
    pub fn set_large(&self, bytes: u64) {
        self.shared.large_bytes.store(bytes, Ordering::Relaxed);
    }

    /// What is committed next erases something, so that the log is to be emptied behind it.
    pub fn note_erased(&self) {
        self.shared.has_erased.store(true, Ordering::SeqCst);
    }

    /// Something was committed, and the log now has so many bytes.
    pub fn note(&self, log_bytes: u64) {
        self.shared.commits.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_asleep.swap(false, Ordering::SeqCst) || self.is_large(log_bytes) {
            // If it is full, the thread is about to be woken.
            let _ = self.wake.try_send(());
        }
    }
}

/// Writes `log` back, until `stop` has no sender any more. A log that cannot be written back is tried again, with nobody
/// writing, and `health` tells of it.
pub(crate) fn run(mut log: impl Log, heard: &Heard, stop: &Receiver<()>, quiet: Duration, health: &Health) {
    let Heard { shared, woken } = heard;
    let mut complaints = Complaints::default();
    let (mut written_back, mut has_failed) = (0, false);
    loop {
        shared.is_asleep.store(true, Ordering::SeqCst);
        // Looked at behind the flag, or a commit between the two would wake nobody.
        let is_done =
            shared.commits.load(Ordering::SeqCst) == written_back && !shared.has_erased.load(Ordering::SeqCst);
        if is_done && !has_failed {
            select! {
                recv(woken) -> _ => {}
                recv(stop) -> _ => return,
            }
        }
        shared.is_asleep.store(false, Ordering::SeqCst);
        if !wait_for_quiet(heard, stop, quiet) {
            return;
        }
        let commits = shared.commits.load(Ordering::SeqCst);
        let checkpoint = log.checkpoint();
        if checkpoint.is_err() != has_failed {
            has_failed = !has_failed;
            health.note(has_failed);
        }
        match checkpoint {
            Ok(is_all) => {
                written_back = commits;
                shared.is_nearly_done.store(!is_all, Ordering::SeqCst);
                // A wake from before is out of date: the next commit begins the log again.
                let _ = woken.try_recv();
                // Whoever erases says so before the commit.
                if shared.commits.load(Ordering::SeqCst) == commits
                    && shared.has_erased.swap(false, Ordering::SeqCst)
                    && !log.clear()
                {
                    shared.has_erased.store(true, Ordering::SeqCst);
                }
            }
            Err(failure) => {
                if let Some(count) = complaints.count(Instant::now()) {
                    tracing::error!(reason = %failure, count, "the store fails: its log cannot be written back");
                }
            }
        }
        select! {
            recv(stop) -> _ => return,
            default(PAUSE.min(quiet)) => {}
        }
    }
}

/// Waits until nothing has been written for a while, or the log is large; `false` is the end.
fn wait_for_quiet(heard: &Heard, stop: &Receiver<()>, quiet: Duration) -> bool {
    let Heard { shared, woken } = heard;
    loop {
        let seen = shared.commits.load(Ordering::SeqCst);
        select! {
            recv(woken) -> _ => return true,
            recv(stop) -> _ => return false,
            recv(after(quiet)) -> _ => {}
        }
        if shared.commits.load(Ordering::SeqCst) == seen {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;
    use crate::chat::shard::Gauges;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A log that does what it is told to; all is well without orders.
    struct Fake {
        calls: Sender<Call>,
        orders: Receiver<Call>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Call {
        Checkpoint(bool),
        Clear(bool),
    }

    impl Fake {
        fn call(&mut self, well: Call) -> Call {
            let call = self.orders.try_recv().unwrap_or(well);
            let _ = self.calls.send(call);
            call
        }
    }

    impl Log for Fake {
        fn checkpoint(&mut self) -> Result<bool, Failure> {
            match self.call(Call::Checkpoint(true)) {
                Call::Checkpoint(true) => Ok(true),
                _ => Err(Failure { reason: "the disk is full".to_owned(), is_of_connection: false }),
            }
        }

        fn clear(&mut self) -> bool {
            self.call(Call::Clear(true)) == Call::Clear(true)
        }
    }

    /// A checkpointer that takes `quiet` to be quiet.
    struct World {
        written: Written,
        calls: Receiver<Call>,
        orders: Sender<Call>,
        gauges: Arc<Gauges>,
        stop: Sender<()>,
        thread: std::thread::JoinHandle<()>,
    }

    impl World {
        fn new(quiet: Duration) -> Self {
            let (calls_out, calls) = unbounded();
            let (orders, orders_in) = unbounded();
            let (stop, stopped) = unbounded::<()>();
            let (written, heard) = written();
            let gauges = Arc::new(Gauges::default());
            let health = Health::parts(&gauges, 1).remove(0);
            let log = Fake { calls: calls_out, orders: orders_in };
            let thread = std::thread::spawn(move || run(log, &heard, &stopped, quiet, &health));
            Self { written, calls, orders, gauges, stop, thread }
        }

        fn call(&self) -> Call {
            self.calls.recv_timeout(PATIENCE).expect("the log is called")
        }

        fn end(self) {
            drop(self.stop);
            self.thread.join().unwrap();
        }
    }

    #[test]
    fn every_commit_is_written_back_once_it_is_quiet_and_then_it_sleeps() {
        let world = World::new(Duration::from_millis(1));
        for _ in 0..20 {
            world.written.note(1);
            assert_eq!(world.call(), Call::Checkpoint(true));
        }
        assert!(world.calls.recv_timeout(Duration::from_millis(20)).is_err(), "nothing was written");
        world.end();
    }

    #[test]
    fn a_large_log_does_not_wait_for_quiet() {
        let world = World::new(PATIENCE * 10);
        world.written.note(LARGE_BYTES);
        while world.calls.is_empty() {
            world.written.note(LARGE_BYTES + 1);
            std::thread::yield_now();
        }
        world.end();
    }

    #[test]
    fn behind_what_erases_the_log_is_emptied_as_soon_as_nobody_uses_it() {
        let world = World::new(Duration::from_millis(1));
        for call in [Call::Checkpoint(true), Call::Clear(false), Call::Checkpoint(true), Call::Clear(false)] {
            world.orders.send(call).unwrap();
        }
        world.written.note_erased();
        world.written.note(1);
        for is_cleared in [false, false, true] {
            assert_eq!((world.call(), world.call()), (Call::Checkpoint(true), Call::Clear(is_cleared)));
        }
        world.written.note(1);
        assert_eq!(world.call(), Call::Checkpoint(true));
        assert!(world.calls.recv_timeout(Duration::from_millis(20)).is_err(), "nothing more was erased");
        world.end();
    }

    #[test]
    fn a_log_that_cannot_be_written_back_is_told_and_tried_again() {
        let world = World::new(Duration::from_millis(1));
        world.orders.send(Call::Checkpoint(false)).unwrap();
        world.orders.send(Call::Checkpoint(false)).unwrap();
        world.written.note(1);
        assert_eq!(world.call(), Call::Checkpoint(false));
        assert_eq!(world.call(), Call::Checkpoint(false));
        assert!(world.gauges.is_store_failing());
        assert_eq!(world.call(), Call::Checkpoint(true));
        let gauges = Arc::clone(&world.gauges);
        world.end();
        assert!(!gauges.is_store_failing());
    }
}
