//! What users owe: buckets, and a bounded table of those that are not full.
//!
//! Owns the arithmetic of rates. Knows no shard, connection or class but by its number; times are of the caller's clock, in
//! milliseconds, and wrap.

use hashbrown::HashTable;
use slab::Slab;

use super::{CLASSES, RateClass, SWEEP_MAX};
use crate::chat::ids::UserId;
use crate::chat::slack::{give_back_slab, give_back_table};

/// How much may be taken, in milliseconds of the rate.
#[derive(Clone, Copy)]
pub struct Rule {
    per_second: u32,
    burst_ms: u32,
}

impl Rule {
    /// So many a second in the long run, and so many at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let rule = Self { per_second, burst_ms: 0 };
        Self { burst_ms: rule.cost_ms(burst), ..rule }
    }

    /// How long to wait where `owed_ms` is owed and what costs `cost_ms` is wanted; `None` if it can be had now. What is
    /// more than the burst can be had when nothing is owed.
    ///
    /// Who comes when told, with a timer that was a little early, is not sent away for another millisecond: it is had
    /// [`EARLY_MS`] before, but less than a token of the burst. It costs the same, so the rate in the long run is exact.
    pub(in crate::chat) fn wait_ms(self, owed_ms: u32, cost_ms: u32) -> Option<u32> {
        let wait_ms = owed_ms.min(owed_ms.saturating_add(cost_ms).saturating_sub(self.burst_ms));
        (wait_ms > EARLY_MS.min(cost_ms / 2)).then_some(wait_ms)
    }

    pub(super) fn burst_ms(self) -> u32 {
        self.burst_ms
    }

    pub(in crate::chat) fn cost_ms(self, tokens: u32) -> u32 {
        (u64::from(tokens) * 1000 / u64::from(self.per_second)).min(u64::from(DEBT_MAX_MS)) as u32
    }
}

/// How much before its time something is had.
const EARLY_MS: u32 = 2;
/// The greatest debt, 12 days.
pub(super) const DEBT_MAX_MS: u32 = 1 << 30;
/// A time that has passed is kept for so long, which is known to be long ago; so any two times are comparable.
const PAST_MAX_MS: u32 = 1 << 29;

/// What is still to be paid of a debt up to that time.
pub(in crate::chat) fn owed_ms(until: u32, now: u32) -> u32 {
    let left = until.wrapping_sub(now);
    if left <= u32::MAX / 2 { left } else { 0 }
}

/// The later one of two times.
pub(in crate::chat) fn later(one: u32, other: u32) -> u32 {
    if owed_ms(one, other) > 0 { one } else { other }
}

/// The buckets of a user, as one thread knows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Debts {
    /// Up to when each class is paid for, and behind them the connection that ended last.
    pub(super) until: [u32; CLASSES + 1],
    /// What was taken of each class since it was told to the user's home.
    pub(super) taken_ms: [u32; CLASSES],
}

impl Debts {
    /// Nothing owed at the time `now`.
    pub(super) fn none(now: u32) -> Self {
        Self { until: [now.wrapping_sub(PAST_MAX_MS); CLASSES + 1], taken_ms: [0; CLASSES] }
    }

    /// Takes tokens of a class.
    ///
    /// # Errors
    /// The milliseconds until as many can be had, if they cannot now.
    pub(super) fn take(&mut self, class: RateClass, rule: Rule, tokens: u32, now: u32) -> Result<(), u32> {
        let (owed, cost) = (owed_ms(self.until[class as usize], now), rule.cost_ms(tokens));
        if let Some(wait_ms) = rule.wait_ms(owed, cost) {
            return Err(wait_ms);
        }
        self.until[class as usize] = now.wrapping_add(owed.saturating_add(cost).min(DEBT_MAX_MS));
        let taken = &mut self.taken_ms[class as usize];
        *taken = taken.saturating_add(cost);
        Ok(())
    }

    /// Adds what another thread has taken; debts above `max_ms` are cut.
    pub(super) fn add(&mut self, other: &Self, max_ms: impl Fn(usize) -> u32, now: u32) {
        for (class, until) in self.until.iter_mut().enumerate() {
            let taken = other.taken_ms.get(class).copied().unwrap_or(0);
            let total = later(*until, other.until[class].wrapping_sub(taken)).wrapping_add(taken);
            let most = now.wrapping_add(max_ms(class));
            *until = if owed_ms(total, most) > 0 { most } else { total };
        }
    }

    /// Takes over what the home knows, in addition to what was not told to it yet.
    pub(super) fn raise(&mut self, known: &Self, now: u32) {
        for (class, until) in self.until.iter_mut().enumerate() {
            let taken = self.taken_ms.get(class).copied().unwrap_or(0);
            let total = owed_ms(known.until[class], now).saturating_add(taken).min(DEBT_MAX_MS);
            if owed_ms(known.until[class], now) > 0 {
                *until = later(*until, now.wrapping_add(total));
            }
        }
    }

    /// What is to be told to the home: all that counts, and what was taken counts as told.
    pub(super) fn tell(&mut self) -> Self {
        let told = *self;
        self.taken_ms = [0; CLASSES];
        told
    }

    /// Keeps times that have passed from getting so old that they seem to lie ahead.
    fn age(&mut self, now: u32) {
        let oldest = now.wrapping_sub(PAST_MAX_MS);
        self.until.iter_mut().for_each(|until| *until = later(*until, oldest));
    }

    pub(super) fn is_paid(&self, now: u32) -> bool {
        self.until.iter().all(|&until| owed_ms(until, now) == 0)
    }
}

struct Debtor {
    user: UserId,
    debts: Debts,
}

/// Users who owe something, so many at most.
pub struct DebtTable {
    table: HashTable<u32>,
    entries: Slab<Debtor>,
    max: usize,
    /// Where the next sweep goes on.
    hand: usize,
}

impl DebtTable {
    /// A table of at most `max` users.
    pub fn new(max: usize) -> Self {
        Self { table: HashTable::new(), entries: Slab::new(), max, hand: 0 }
    }

    fn find(&self, user: &UserId) -> Option<u32> {
        self.table.find(user.hash_code(), |&n| self.entries[n as usize].user == *user).copied()
    }

    /// The user's debts, if there are any.
    pub(super) fn get(&mut self, user: &UserId) -> Option<&mut Debts> {
        let number = self.find(user)?;
        Some(&mut self.entries[number as usize].debts)
    }

    /// The user's debts, from now on kept. When the table is full the one that the sweep would look at next is forgotten.
    pub(super) fn enter(&mut self, user: &UserId, now: u32) -> &mut Debts {
        let number = self.find(user).unwrap_or_else(|| {
            if self.entries.len() >= self.max {
                let next = (self.hand..self.entries.capacity()).chain(0..self.hand);
                if let Some(victim) = next.into_iter().find(|&number| self.entries.contains(number)) {
                    self.remove(victim);
                    self.hand = victim + 1;
                }
            }
            let number = self.entries.insert(Debtor { user: user.clone(), debts: Debts::none(now) }) as u32;
            let entries = &self.entries;
            self.table.insert_unique(user.hash_code(), number, |&n| entries[n as usize].user.hash_code());
            number
        });
        &mut self.entries[number as usize].debts
    }

    fn remove(&mut self, number: usize) -> Debts {
        let Debtor { user, debts } = self.entries.remove(number);
        if let Ok(entry) = self.table.find_entry(user.hash_code(), |&n| n as usize == number) {
            entry.remove();
        }
        debts
    }

    /// Shows entries to `look`, a bounded number, and forgets those that are paid.
    pub(super) fn sweep(&mut self, now: u32, mut look: impl FnMut(&UserId, &mut Debts)) {
        for _ in 0..self.entries.capacity().min(SWEEP_MAX) {
            self.hand = if self.hand >= self.entries.capacity() { 0 } else { self.hand };
            if let Some(Debtor { user, debts }) = self.entries.get_mut(self.hand) {
                look(user, debts);
                debts.age(now);
                if debts.is_paid(now) {
                    self.remove(self.hand);
                }
            }
            self.hand += 1;
        }
        let entries = &self.entries;
        give_back_table(&mut self.table, |&n| entries[n as usize].user.hash_code());
        give_back_slab(&mut self.entries);
    }

    /// How many users.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::CONNECTION;
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    const CLASS: RateClass = RateClass::Message;

    fn user(number: usize) -> UserId {
        let name = number.to_string();
        UserId::new(&Id::from_text(&name).unwrap(), HashKey::new([3; 16]).hash(&name))
    }

    fn rule() -> Rule {
        Rule::new(20, 100)
    }

    #[test]
    fn a_full_bucket_gives_the_burst_and_then_the_rate() {
        // Also where the time wraps.
        for start in [0, 5_000, u32::MAX - 700] {
            let mut debts = Debts::none(start);
            let taken = (0..1_000).filter(|_| debts.take(CLASS, rule(), 1, start).is_ok()).count();
            assert_eq!(taken, 100);
            let later = |ms: u32| start.wrapping_add(ms);
            assert_eq!(debts.take(CLASS, rule(), 1, later(0)), Err(50));
            assert_eq!(debts.take(CLASS, rule(), 1, later(47)), Err(3));
            assert_eq!(debts.take(CLASS, rule(), 1, later(48)), Ok(()));
            // What was had early is missing later.
            assert_eq!(debts.take(CLASS, rule(), 1, later(97)), Err(3));
            let taken = (50..10_048).filter(|&ms| debts.take(CLASS, rule(), 1, later(ms)).is_ok()).count();
            assert_eq!(taken, 199);
            assert!(!debts.is_paid(later(10_050)) && debts.is_paid(later(60_000)));
        }
    }

    #[test]
    fn what_is_more_than_the_burst_is_had_when_nothing_is_owed() {
        let mut debts = Debts::none(0);
        assert_eq!(debts.take(CLASS, rule(), 150, 0), Ok(()));
        assert_eq!(debts.take(CLASS, rule(), 150, 7_000), Err(500));
        assert_eq!(debts.take(CLASS, rule(), 150, 7_497), Err(3));
        assert_eq!(debts.take(CLASS, rule(), 150, 7_499), Ok(()));
    }

    #[test]
    fn a_timer_may_be_early_and_the_burst_is_exact_all_the_same() {
        for (per_second, early_ms) in [(1, 2), (20, 2), (250, 2), (500, 1), (1_000, 0)] {
            let rule = Rule::new(per_second, 10);
            let mut debts = Debts::none(0);
            assert_eq!((0..100).filter(|_| debts.take(CLASS, rule, 1, 0).is_ok()).count(), 10, "{per_second} a second");
            for _ in 0..1_000 {
                let now = debts.until[CLASS as usize].wrapping_sub(rule.burst_ms);
                let wait_ms = debts.take(CLASS, rule, 1, now).unwrap_err();
                assert_eq!(wait_ms, rule.cost_ms(1));
                let too_early = debts.take(CLASS, rule, 1, now + wait_ms - early_ms - 1);
                assert_eq!(too_early, Err(early_ms + 1), "{per_second} a second");
                debts.take(CLASS, rule, 1, now + wait_ms - early_ms).unwrap();
            }
            // Always early, nobody gets more of it.
            assert_eq!(debts.until[CLASS as usize], rule.burst_ms + 1_000 * rule.cost_ms(1));
        }
    }

    #[test]
    fn a_debt_goes_with_the_user_from_thread_to_thread() {
        let mut first = Debts::none(1_000);
        (0..100).for_each(|_| first.take(CLASS, rule(), 1, 1_000).unwrap());
        first.until[CONNECTION] = 2_500;
        let mut home = Debts::none(1_000);
        home.add(&first.tell(), |_| 10_000, 1_500);
        // Told again it is not counted again.
        home.add(&first.tell(), |_| 10_000, 1_600);
        let mut second = Debts::none(2_000);
        second.raise(&home, 2_000);
        assert_eq!((second.until[CLASS as usize], second.until[CONNECTION]), (6_000, 2_500));
        assert_eq!((0..1_000).filter(|_| second.take(CLASS, rule(), 1, 2_000).is_ok()).count(), 20);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_paid() {
        let mut table = DebtTable::new(10);
        for number in 0..100 {
            table.enter(&user(number), 0).take(CLASS, rule(), 1, 0).unwrap();
            assert!(table.len() <= 10 && table.find(&user(number)).is_some());
        }
        table.enter(&user(99), 0).take(CLASS, rule(), 100, 40).unwrap_err();
        table.enter(&user(99), 0).take(CLASS, rule(), 20, 0).unwrap();
        table.sweep(50, |_, _| {});
        assert_eq!((table.len(), table.find(&user(99)).is_some()), (1, true));
        table.sweep(2_000, |_, _| {});
        assert!(table.is_empty() && table.table.is_empty());
    }

    proptest! {
        /// Never more than the burst and the rate over any span; a refusal says truly when to come again.
        #[test]
        fn a_bucket_never_gives_more_than_its_rule(
            per_second in 1_u32..=1_000,
            burst in 1_u32..200,
            steps in prop::collection::vec((0_u32..400, 1_u32..5), 1..200),
            start in any::<u32>(),
        ) {
            let rule = Rule::new(per_second, burst);
            let (mut debts, mut now) = (Debts::none(start), start);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (step, tokens) in steps {
                now = now.wrapping_add(step);
                let tokens = tokens.min(burst);
                match debts.take(CLASS, rule, tokens, now) {
                    Ok(()) => taken.push((now, tokens)),
                    Err(retry_ms) => {
                        let (mut early, mut due) = (debts, debts);
                        let early_ms = EARLY_MS.min(rule.cost_ms(tokens) / 2);
                        prop_assert!(retry_ms > early_ms);
                        let too_early = now.wrapping_add(retry_ms - early_ms - 1);
                        prop_assert!(early.take(CLASS, rule, tokens, too_early).is_err());
                        prop_assert!(due.take(CLASS, rule, tokens, now.wrapping_add(retry_ms)).is_ok());
                    }
                }
            }
            for (at, &(first, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for &(last, tokens) in &taken[at..] {
                    sum += tokens;
                    let span_ms = last.wrapping_sub(first) + EARLY_MS;
                    prop_assert!(rule.cost_ms(sum) <= rule.burst_ms.saturating_add(span_ms).saturating_add(sum));
                }
            }
        }

        /// A user who sends as fast as it may on several threads gets the burst on each and at most twice the rate; one
        /// who stays below the rate in all is never refused.
        #[test]
        fn several_threads_together_grant_at_most_twice_the_rate(
            threads in 2_usize..8,
            greedy in any::<bool>(),
            offsets in prop::collection::vec(0_u32..1_000, 8),
        ) {
            let (rule, mut home) = (rule(), Debts::none(0));
            let mut local = vec![Debts::none(0); threads];
            let share_ms = 1_000 / threads as u32;
            let (mut granted, mut refused) = (0, 0);
            for now in 0..60_000 {
                for (thread, debts) in local.iter_mut().enumerate() {
                    // All together a little below the rate, or everything that is to be had.
                    let is_time = (now + offsets[thread]) % (52 * threads as u32) == 0;
                    if greedy || is_time {
                        match debts.take(CLASS, rule, 1, now) {
                            Ok(()) => granted += 1,
                            Err(_) => refused += 1,
                        }
                    }
                    if (now + offsets[thread]) % 1_000 == 0 {
                        if debts.taken_ms[CLASS as usize] > share_ms {
                            home.add(&debts.tell(), |_| 2 * rule.burst_ms, now);
                            debts.raise(&home, now);
                        } else {
                            debts.taken_ms = [0; CLASSES];
                        }
                    }
                }
            }
            if greedy {
                let most = threads as u32 * 100 + 2 * 20 * 60;
                prop_assert!(granted <= most, "{granted} of {most}");
            } else {
                prop_assert_eq!(refused, 0);
            }
        }
    }
}
