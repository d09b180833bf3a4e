//! Fewer polls for a loop that has nothing to do but to ping.
//!
//! The pings of a tick go out in bursts of a turn's budget, and their pongs come back one by one. A loop that polls
//! as soon as the first is there polls for every few of them, and is back at a connection when the caches have long
//! lost it. So a *quiet* loop, one that for a second has said nothing but pings, rests a millisecond behind a burst and
//! reads with one poll what has come meanwhile, as a network card moderates its interrupts. Whoever ends the silence
//! waits for the end of that rest at most, and nobody does for the second that follows.

use std::time::Duration;

use crate::chat::wheel::TICK_MS;

/// Longer than a client on the same machine takes for the pongs of a burst.
const REST: Duration = Duration::from_millis(1);
/// With fewer pings in a turn there is nothing to gain.
const PINGS_MIN: usize = 32;
/// How long a loop has said nothing else when it may rest.
const QUIET_MS: u64 = 1000;

/// Whether a loop is quiet, and may rest.
#[derive(Default, Debug)]
pub struct Moderation {
    /// When something was said or asked last, on the tick clock.
    worked_ms: u64,
    is_due: bool,
}

impl Moderation {
    /// Something came or went besides pings and pongs.
    pub fn note_work(&mut self, now_ms: u64) {
        self.worked_ms = now_ms;
    }

    /// A turn has made so many writes, and queued so many pings before.
    pub fn note_turn(&mut self, now_ms: u64, pings: usize, writes: usize) {
        if writes > pings {
            self.note_work(now_ms);
        }
        // Not when the pings of a tick have taken half of it: resting must not make the next ones late.
        let is_early = now_ms % TICK_MS < TICK_MS / 2;
        self.is_due = pings >= PINGS_MIN && is_early && now_ms >= self.worked_ms + QUIET_MS;
    }

    /// How long the loop rests before it polls, if it does; once for each time that it may.
    pub fn take_rest(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.is_due).then_some(REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: u64 = 40 * TICK_MS;

    fn rests(worked_ms: u64, now_ms: u64, pings: usize, writes: usize) -> bool {
        let mut moderation = Moderation::default();
        moderation.note_work(worked_ms);
        moderation.note_turn(now_ms, pings, writes);
        let rest = moderation.take_rest();
        assert_eq!(moderation.take_rest(), None, "once");
        rest.is_some()
    }

    #[test]
    fn rests_behind_a_burst_of_pings_and_nothing_else() {
        assert!(rests(0, QUIET, PINGS_MIN, PINGS_MIN));
        assert!(rests(0, QUIET, PINGS_MIN, PINGS_MIN - 1), "a socket may refuse");
        assert!(!rests(0, QUIET, PINGS_MIN - 1, PINGS_MIN - 1), "not worth it");
        assert!(!rests(0, QUIET, PINGS_MIN, PINGS_MIN + 1), "somebody was told something");
        assert!(!rests(0, QUIET, 0, 0));
    }

    #[test]
    fn does_not_rest_soon_after_work_nor_when_the_tick_is_half_over() {
        assert!(!rests(QUIET, QUIET, PINGS_MIN, PINGS_MIN));
        assert!(!rests(QUIET, QUIET + QUIET_MS - TICK_MS, PINGS_MIN, PINGS_MIN));
        assert!(rests(QUIET, QUIET + QUIET_MS, PINGS_MIN, PINGS_MIN));
        assert!(!rests(0, QUIET + TICK_MS / 2, PINGS_MIN, PINGS_MIN));
        assert!(rests(0, QUIET + TICK_MS, PINGS_MIN, PINGS_MIN));
    }
}
