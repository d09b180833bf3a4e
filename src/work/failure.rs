//! What goes wrong in the store, and how often it is said.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::chat::shard::Gauges;

/// Between two lines about the same trouble.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Why the store could not do something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// In words, with what the system answered.
    pub reason: String,
    /// Whether the connection to the file cannot be trusted any more, and another one may do better.
    pub is_of_connection: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Says the first time, and then at most every ten seconds, that something fails.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    said: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    /// Counts a failure; how many there were since the last line if one is due now.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= COMPLAINT_INTERVAL);
        is_due.then(|| {
            self.said = Some(now);
            std::mem::take(&mut self.unsaid)
        })
    }
}

/// Whether one of the store's threads fails; the store does as long as one of them does.
#[derive(Debug)]
pub(crate) struct Health {
    failing: Arc<Mutex<Vec<bool>>>,
    part: usize,
    gauges: Arc<Gauges>,
}

impl Health {
    /// The health of `count` threads, told together to the gauges.
    pub fn parts(gauges: &Arc<Gauges>, count: usize) -> Vec<Self> {
        let failing = Arc::new(Mutex::new(vec![false; count]));
        let part = |part| Self { failing: Arc::clone(&failing), part, gauges: Arc::clone(gauges) };
        (0..count).map(part).collect()
    }

    /// Notes whether this thread fails.
    pub fn note(&self, is_failing: bool) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing[self.part] = is_failing;
        self.gauges.note_store(failing.contains(&true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_fails_while_one_of_its_threads_does() {
        let gauges = Arc::new(Gauges::default());
        let parts = Health::parts(&gauges, 2);
        for (part, is_failing, all) in [(0, true, true), (1, true, true), (0, false, true), (1, false, false)] {
            parts[part].note(is_failing);
            assert_eq!(gauges.is_store_failing(), all);
        }
    }

    #[test]
    fn the_first_is_said_and_then_one_line_for_many() {
        let (mut complaints, start) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.count(start), Some(1));
        for second in 1..10 {
            assert_eq!(complaints.count(start + Duration::from_secs(second)), None);
        }
        assert_eq!(complaints.count(start + Duration::from_secs(10)), Some(10));
        assert_eq!(complaints.count(start + Duration::from_secs(11)), None);
    }
}
