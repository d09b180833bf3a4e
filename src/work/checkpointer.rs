//! The thread that writes the log back into the database file, besides.
//!
//! Owns when: soon after the log has become large, and once nothing has been written for a second. So the fsyncs of the
//! database file happen here rather than in the thread that writes, and the log is short when the process starts again.
//! It sleeps while nothing is written. Must not know what is in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, select};

use super::failure::{Complaints, Failure};

/// A log of more than this is written back soon.
pub(crate) const LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// A log behind which nothing was written for so long is written back.
pub(crate) const QUIET: Duration = Duration::from_secs(1);
/// Between two checkpoints, however large the log: a reader may keep all of it in use, and the longer one waits, the more
/// often a page was written to the log that is written back once.
const PAUSE: Duration = Duration::from_millis(500);

/// What is written back.
pub(crate) trait Log {
    /// Writes back what can be without keeping anybody waiting.
    fn checkpoint(&mut self) -> Result<(), Failure>;

    /// Empties the log, all of which is written back, unless somebody uses it: what was erased is not to stay in it.
    fn clear(&mut self);
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

#[derive(Debug, Default)]
struct Shared {
    commits: AtomicU64,
    /// The log was written back a moment ago, so that little is missing.
    is_fresh: AtomicBool,
    /// The next commit has to wake the thread, which otherwise looks at the count by itself.
    is_asleep: AtomicBool,
}

/// The two ends between the writer and the checkpointer.
pub(crate) fn written() -> (Written, Heard) {
    let (wake, woken) = bounded(1);
    let shared = Arc::new(Shared::default());
    (Written { shared: Arc::clone(&shared), wake }, Heard { shared, woken })
}

impl Written {
    /// Whether the log has been written back since this was asked last.
    pub fn take_fresh(&self) -> bool {
        self.shared.is_fresh.swap(false, Ordering::SeqCst)
    }

    /// Something was committed, and the log now has so many bytes.
    pub fn note(&self, log_bytes: u64) {
        self.shared.commits.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_asleep.swap(false, Ordering::SeqCst) || log_bytes > LARGE_BYTES {
            // If it is full, the thread is about to be woken.
            let _ = self.wake.try_send(());
        }
    }
}

/// Writes `log` back, until `stop` has no sender any more.
pub(crate) fn run(mut log: impl Log, heard: &Heard, stop: &Receiver<()>, quiet: Duration) {
    let Heard { shared, woken } = heard;
    let mut complaints = Complaints::default();
    let mut written_back = 0;
    loop {
        shared.is_asleep.store(true, Ordering::SeqCst);
        // Looked at behind the flag, or a commit between the two would wake nobody.
        if shared.commits.load(Ordering::SeqCst) == written_back {
            select! {
                recv(woken) -> _ => {}
                recv(stop) -> _ => return,
            }
        }
        shared.is_asleep.store(false, Ordering::SeqCst);
        if !wait_for_quiet(heard, stop, quiet) {
            return;
        }
        written_back = shared.commits.load(Ordering::SeqCst);
        match log.checkpoint() {
            Ok(()) => {
                shared.is_fresh.store(true, Ordering::SeqCst);
                if shared.commits.load(Ordering::SeqCst) == written_back {
                    log.clear();
                }
            }
            Err(failure) => {
                if let Some(count) = complaints.count(Instant::now()) {
                    tracing::warn!(reason = %failure, count, "the store's log could not be written back");
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

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Fake(Sender<()>);

    impl Log for Fake {
        fn checkpoint(&mut self) -> Result<(), Failure> {
            let _ = self.0.send(());
            Ok(())
        }

        fn clear(&mut self) {}
    }

    /// A checkpointer that takes `quiet` to be quiet; its checkpoints, and its end.
    fn start(quiet: Duration) -> (Written, Receiver<()>, impl FnOnce()) {
        let (done, checkpoints) = unbounded();
        let (stop, stopped) = unbounded::<()>();
        let (written, heard) = written();
        let thread = std::thread::spawn(move || run(Fake(done), &heard, &stopped, quiet));
        let end = move || {
            drop(stop);
            thread.join().unwrap();
        };
        (written, checkpoints, end)
    }

    #[test]
    fn every_commit_is_written_back_once_it_is_quiet_and_then_it_sleeps() {
        let (written, checkpoints, end) = start(Duration::from_millis(1));
        for _ in 0..20 {
            written.note(1);
            checkpoints.recv_timeout(PATIENCE).expect("a checkpoint");
        }
        assert!(checkpoints.recv_timeout(Duration::from_millis(20)).is_err(), "nothing was written");
        end();
    }

    #[test]
    fn a_large_log_does_not_wait_for_quiet() {
        let (written, checkpoints, end) = start(PATIENCE * 10);
        written.note(LARGE_BYTES);
        while checkpoints.is_empty() {
            written.note(LARGE_BYTES + 1);
            std::thread::yield_now();
        }
        end();
    }
}
