//! A hashed timer wheel (Varghese and Lauck, 1987) over slot numbers.
//!
//! One deadline per slot, held in intrusive lists, so that setting, moving and cancelling cost a few stores and an idle
//! slot costs twelve bytes. A deadline fires at its tick or up to one tick later, never earlier. Deadlines further away
//! than a turn of the wheel stay in their list and are passed over until they are due.

/// The length of a tick in milliseconds.
pub const TICK_MS: u64 = 250;

const BUCKETS: usize = 1024;
const WORDS: usize = BUCKETS / 64;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    due: u32,
}

const UNARMED: Link = Link { previous: NONE, next: NONE, due: 0 };

/// Deadlines of slots.
pub struct Wheel {
    heads: Box<[u32; BUCKETS]>,
    occupied: [u64; WORDS],
    links: Vec<Link>,
    passed: u32,
    armed: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { heads: Box::new([NONE; BUCKETS]), occupied: [0; WORDS], links: Vec::new(), passed: 0, armed: 0 }
    }
}

impl Wheel {
    /// Sets the slot's one deadline, in place of an earlier or later one.
    pub fn set(&mut self, slot: u32, due_ms: u64) {
        self.cancel(slot);
        let index = slot as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, UNARMED);
        }
        // Rounded up, and at least the next tick: a tick that has passed is not looked at again.
        let due = (due_ms.div_ceil(TICK_MS) as u32).max(self.passed + 1);
        let bucket = due as usize % BUCKETS;
        let next = self.heads[bucket];
        self.links[index] = Link { previous: NONE, next, due };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }

    /// Takes the slot's deadline away, if it has one.
    pub fn cancel(&mut self, slot: u32) {
        let Some(&link) = self.links.get(slot as usize) else { return };
        if link.due == 0 {
            return;
        }
        let bucket = link.due as usize % BUCKETS;
        if link.previous == NONE {
            self.heads[bucket] = link.next;
        } else {
            self.links[link.previous as usize].next = link.next;
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        if self.heads[bucket] == NONE {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
        self.links[slot as usize] = UNARMED;
        self.armed -= 1;
    }

    /// When the slot fires, if it is armed.
    pub fn due_ms(&self, slot: u32) -> Option<u64> {
        let link = self.links.get(slot as usize)?;
        (link.due != 0).then(|| u64::from(link.due) * TICK_MS)
    }

    /// The time at which [`Wheel::expire`] should be called next; early for a deadline that is more than a turn away.
    pub fn next_ms(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let start = (self.passed as usize + 1) % BUCKETS;
        let mut distance = 0;
        while distance < BUCKETS {
            let bucket = (start + distance) % BUCKETS;
            let word = self.occupied[bucket / 64] >> (bucket % 64);
            if word != 0 {
                let found = distance + word.trailing_zeros() as usize;
                return Some((u64::from(self.passed) + 1 + found as u64) * TICK_MS);
            }
            distance += 64 - bucket % 64;
        }
        None
    }

    /// Disarms all slots that are due and appends them to `fired`, those of an earlier tick first.
    pub fn expire(&mut self, now_ms: u64, fired: &mut Vec<u32>) {
        let now = (now_ms / TICK_MS) as u32;
        let from = (self.passed + 1).max(now.saturating_sub(BUCKETS as u32 - 1));
        for tick in from..=now {
            let mut slot = self.heads[tick as usize % BUCKETS];
            while slot != NONE {
                let link = self.links[slot as usize];
                if link.due <= now {
                    self.cancel(slot);
                    fired.push(slot);
                }
                slot = link.next;
            }
        }
        self.passed = self.passed.max(now);
    }

    /// Checks that lists, bitmap and count agree.
    pub fn check_invariants(&self) {
        let mut armed = 0;
        let is_marked = |bucket: &usize| self.occupied[bucket / 64] >> (bucket % 64) & 1 == 1;
        // Most buckets are empty, and this is called after every turn of a simulation.
        let words = (0..WORDS).filter(|&word| self.occupied[word] != 0);
        for bucket in words.flat_map(|word| word * 64..word * 64 + 64).filter(is_marked) {
            let (mut previous, mut slot) = (NONE, self.heads[bucket]);
            assert_ne!(slot, NONE);
            while slot != NONE {
                let link = self.links[slot as usize];
                assert_eq!((link.due as usize % BUCKETS, link.previous), (bucket, previous));
                (previous, slot, armed) = (slot, link.next, armed + 1);
            }
        }
        assert_eq!(armed, self.armed);
        let marked: u32 = self.occupied.iter().map(|word| word.count_ones()).sum();
        assert_eq!(self.heads.iter().filter(|&&head| head != NONE).count(), marked as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn expired(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.expire(now_ms, &mut fired);
        fired.sort_unstable();
        fired
    }

    #[test]
    fn fires_at_its_tick_or_later_but_never_earlier() {
        let mut wheel = Wheel::default();
        wheel.set(3, 1001);
        assert!(expired(&mut wheel, 1249).is_empty());
        assert_eq!(wheel.next_ms(), Some(1250));
        assert_eq!(expired(&mut wheel, 1250), [3]);
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick() {
        let mut wheel = Wheel::default();
        assert!(expired(&mut wheel, 5000).is_empty());
        wheel.set(1, 0);
        assert_eq!(wheel.next_ms(), Some(5250));
        assert_eq!(expired(&mut wheel, 5250), [1]);
    }

    #[test]
    fn a_deadline_days_away_survives_the_turns() {
        let mut wheel = Wheel::default();
        let day = 86_400_000;
        wheel.set(1, day);
        let mut now = 0;
        while let Some(next) = wheel.next_ms() {
            assert!(next > now && next <= day);
            now = next;
            if !expired(&mut wheel, now).is_empty() {
                break;
            }
        }
        assert_eq!(now, day);
    }

    #[test]
    fn a_long_stall_fires_everything_once() {
        let mut wheel = Wheel::default();
        (0..3000).for_each(|slot| wheel.set(slot, u64::from(slot) * 300));
        assert_eq!(expired(&mut wheel, 3000 * 300), (0..3000).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in prop::collection::vec((0u32..50, 0u64..600_000, 0u8..4), 1..300)) {
            let (mut wheel, mut model, mut now) = (Wheel::default(), BTreeMap::new(), 0u64);
            for (slot, value, kind) in steps {
                match kind {
                    0 | 1 => {
                        wheel.set(slot, now + value);
                        model.insert(slot, (now + value).div_ceil(TICK_MS).max(now / TICK_MS + 1));
                    }
                    2 => {
                        wheel.cancel(slot);
                        model.remove(&slot);
                    }
                    _ => {
                        now += value / 3;
                        let due: Vec<u32> = model.iter().filter(|(_, due)| **due <= now / TICK_MS).map(|(s, _)| *s).collect();
                        prop_assert_eq!(expired(&mut wheel, now), due.clone());
                        due.iter().for_each(|slot| { model.remove(slot); });
                    }
                }
                wheel.check_invariants();
            }
        }
    }
}
