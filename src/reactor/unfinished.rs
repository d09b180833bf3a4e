//! Who holds an unfinished record of TLS, in one direction, since when, and what all of them take.
//!
//! Owns the order in which they go when there is no room. Knows no session and no clock.

use std::collections::BTreeSet;

/// What one connection holds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Holding {
    /// The memory, 0 if there is no such record.
    pub bytes: usize,
    /// When the record was begun, on the tick clock.
    pub since_ms: u64,
}

/// The unfinished records of one direction.
#[derive(Debug)]
pub struct Unfinished {
    bytes: usize,
    bytes_max: usize,
    /// By age, with the slot.
    holders: BTreeSet<(u64, u32)>,
    /// Up to here [`Unfinished::poll_overdue`] has named them. Whoever begins later stands behind.
    named: (u64, u32),
}

impl Unfinished {
    /// None; all together may take so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, holders: BTreeSet::new(), named: (0, 0) }
    }

    /// What a connection holds has become something else.
    pub fn change(&mut self, slot: u32, before: Holding, after: Holding) {
        self.bytes = self.bytes + after.bytes - before.bytes;
        let entry = |holding: Holding| (holding.bytes > 0).then_some((holding.since_ms, slot));
        if entry(before) == entry(after) {
            return;
        }
        if let Some(entry) = entry(before) {
            self.holders.remove(&entry);
        }
        self.holders.extend(entry(after));
    }

    /// What all take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is more than they may.
    pub fn is_full(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// Whether some are still to go once it was full: a tenth is made free, so that the next is not in want at once.
    pub fn is_nearly_full(&self) -> bool {
        self.bytes > self.bytes_max - self.bytes_max / 10
    }

    /// The slot whose record was begun first.
    pub fn oldest(&self) -> Option<u32> {
        self.holders.first().map(|(_, slot)| *slot)
    }

    /// When the oldest that was not named yet was begun.
    pub fn next_since_ms(&self) -> Option<u64> {
        self.next().map(|(since_ms, _)| since_ms)
    }

    /// Names a slot whose record was begun at `until_ms` or before, each once.
    pub fn poll_overdue(&mut self, until_ms: u64) -> Option<u32> {
        let (since_ms, slot) = self.next().filter(|(since_ms, _)| *since_ms <= until_ms)?;
        // The next one of the same moment has a greater slot.
        self.named = (since_ms, slot + 1);
        Some(slot)
    }

    fn next(&self) -> Option<(u64, u32)> {
        self.holders.range(self.named..).next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(bytes: usize, since_ms: u64) -> Holding {
        Holding { bytes, since_ms }
    }

    #[test]
    fn the_one_that_began_first_is_the_oldest_until_it_is_finished() {
        let mut unfinished = Unfinished::new(100);
        unfinished.change(7, Holding::default(), holding(60, 5));
        unfinished.change(3, Holding::default(), holding(40, 8));
        assert!(!unfinished.is_full() && unfinished.is_nearly_full());
        unfinished.change(3, holding(40, 8), holding(41, 8));
        assert!(unfinished.is_full());
        assert_eq!(unfinished.oldest(), Some(7));
        // It has finished one record and begun another.
        unfinished.change(7, holding(60, 5), holding(10, 9));
        assert_eq!((unfinished.oldest(), unfinished.bytes()), (Some(3), 51));
        unfinished.change(3, holding(41, 8), Holding::default());
        unfinished.change(7, holding(10, 9), Holding::default());
        assert_eq!((unfinished.oldest(), unfinished.bytes(), unfinished.next_since_ms()), (None, 0, None));
    }

    #[test]
    fn each_that_is_overdue_is_named_once() {
        let mut unfinished = Unfinished::new(100);
        for (slot, since_ms) in [(4, 10), (0, 10), (9, 10), (1, 11)] {
            unfinished.change(slot, Holding::default(), holding(1, since_ms));
        }
        assert_eq!((unfinished.poll_overdue(9), unfinished.next_since_ms()), (None, Some(10)));
        let named: Vec<u32> = std::iter::from_fn(|| unfinished.poll_overdue(10)).collect();
        assert_eq!((named, unfinished.next_since_ms()), (vec![0, 4, 9], Some(11)));
        // Those who were named are the first to go all the same.
        assert_eq!(unfinished.oldest(), Some(0));
        unfinished.change(0, holding(1, 10), holding(1, 12));
        assert_eq!(unfinished.poll_overdue(11), Some(1));
        assert_eq!(unfinished.poll_overdue(12), Some(0));
        assert_eq!(unfinished.poll_overdue(u64::MAX), None);
    }
}
