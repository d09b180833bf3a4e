//! What all threads of a run share: where the server is, how far the run has come, and what was found wrong.
//!
//! Owns the stages and the violations. Invariant: after the first violation nobody waits for anything any more.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before it counts as not happening. Nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition that has no event of its own is looked at.
pub const POLL: Duration = Duration::from_millis(10);
/// Messages of others that are offered to whoever wants to react.
const RECENT_MAX: usize = 64;

/// How far the run has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub enum Stage {
    /// The server is killed, again and again.
    Storm,
    /// It is not killed any more; who publishes gets an answer to all that was asked, and asks for nothing else.
    Calm,
    /// Everything was answered; who reads catches up and ends.
    End,
}

/// One run.
pub struct Run {
    pub seed: u64,
    pub address: SocketAddr,
    pub rooms: Vec<String>,
    stage: AtomicU8,
    has_failed: AtomicBool,
    violations: Mutex<Vec<String>>,
    acknowledged: AtomicU64,
    publishers: AtomicUsize,
    epoch: OnceLock<String>,
    last_seqs: OnceLock<Vec<u64>>,
    recent: Mutex<VecDeque<(usize, String)>>,
}

impl Run {
    pub fn new(seed: u64, address: SocketAddr, rooms: Vec<String>, publishers: usize) -> Self {
        Self {
            seed,
            address,
            rooms,
            stage: AtomicU8::new(Stage::Storm as u8),
            has_failed: AtomicBool::new(false),
            violations: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            publishers: AtomicUsize::new(publishers),
            epoch: OnceLock::new(),
            last_seqs: OnceLock::new(),
            recent: Mutex::default(),
        }
    }

    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::SeqCst) {
            0 => Stage::Storm,
            1 => Stage::Calm,
            _ => Stage::End,
        }
    }

    pub fn calm(&self) {
        self.stage.store(Stage::Calm as u8, Ordering::SeqCst);
    }

    /// The last stage; these are the last `seq` of the rooms.
    pub fn end(&self, last_seqs: Vec<u64>) {
        self.last_seqs.set(last_seqs).expect("there is one end");
        self.stage.store(Stage::End as u8, Ordering::SeqCst);
    }

    /// The last `seq` of every room, from [`Stage::End`] on.
    pub fn last_seqs(&self) -> Option<&[u64]> {
        self.last_seqs.get().map(Vec::as_slice)
    }

    /// Something that must not be.
    pub fn fail(&self, violation: impl Into<String>) {
        self.violations.lock().expect("no thread panics here").push(violation.into());
        self.has_failed.store(true, Ordering::SeqCst);
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("no thread panics here").clone()
    }

    /// The server has said what the epoch is.
    pub fn check_epoch(&self, epoch: Option<&str>, place: &str) {
        let Some(epoch) = epoch else { return self.fail(format!("{place}: no epoch")) };
        let first = self.epoch.get_or_init(|| epoch.to_owned());
        if first != epoch {
            self.fail(format!("{place}: the epoch was {first} and is {epoch}"));
        }
    }

    pub fn epoch(&self) -> Option<&str> {
        self.epoch.get().map(String::as_str)
    }

    /// A request was answered as its sender wished.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// One who published has an answer to everything.
    pub fn publisher_is_done(&self) {
        self.publishers.fetch_sub(1, Ordering::SeqCst);
    }

    pub fn publishers(&self) -> usize {
        self.publishers.load(Ordering::SeqCst)
    }

    /// A message that others may react to.
    pub fn offer(&self, room: usize, id: &str) {
        let mut recent = self.recent.lock().expect("no thread panics here");
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back((room, id.to_owned()));
    }

    /// One of the latest messages in one of these rooms.
    pub fn recent(&self, rooms: &[usize], choice: usize) -> Option<(usize, String)> {
        let recent = self.recent.lock().expect("no thread panics here");
        let here: Vec<_> = recent.iter().filter(|(room, _)| rooms.contains(room)).collect();
        here.get(choice % here.len().max(1)).map(|found| (*found).clone())
    }

    /// Waits for something that must come about; `false` if it did not, which is a violation, or the run has failed.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            if self.has_failed() {
                return false;
            }
            if Instant::now() >= end {
                self.fail(format!("not within {PATIENCE:?}: {what}"));
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    /// Waits a moment, which may be cut short.
    pub fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.has_failed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(POLL));
        }
    }
}

/// Makes a violation of the panic of a thread, so that the others end as well.
pub struct Watch<'r>(pub &'r Run, pub String);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(format!("{} panicked", self.1));
        }
    }
}
