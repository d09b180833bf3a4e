//! Rates: what a connection and its user may send, and how that holds over reconnects and over several threads.
//!
//! A bucket is a generic cell rate algorithm: one 32-bit time up to which what was taken is paid for. A full bucket is a
//! time that has passed, so whoever sends little costs nothing. A connection has one bucket, for all that it sends; it is
//! what dismisses a flood. A user has one for each [`RateClass`], shared by the user's connections on a thread and by REST.
//!
//! Debts stand in a table of bounded size and leave it when they are paid. A connection that ends takes the user's debts to
//! the user's home, which gives them to the next one with its admission. Once a second each thread tells the homes what
//! users have taken who take more than a thread's share of their rate, and is told what they owe in all. So a user whose
//! connections lie on several threads may take the burst on each at once, and in the long run at most twice the rate: what
//! is told is limited exactly, and what is not told is on all threads together less than the rate.

use hashbrown::HashTable;
use slab::Slab;

use super::closing::CloseReason;
use super::connection::{NONE, Phase};
use super::denial::DenialReason;
use super::envelope::Envelope;
use super::ids::{ShardId, UserId, home};
use super::shard::Shard;
use super::slack::{give_back_slab, give_back_table};
use crate::auth::Role;
use crate::config::Limits;
use crate::wire::client::Request;

/// What is limited together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RateClass {
    /// Joining and leaving rooms, each room by itself.
    Join,
    /// Typing.
    Typing,
    /// Reactions, and how far one has read.
    Reaction,
    /// Messages, their edits and deletions.
    Message,
    /// REST calls, besides the class of what they do.
    Rest,
}

/// Classes that there are.
pub const CLASSES: usize = 5;
/// Where the bucket of the user's last connection stands, behind those of the classes.
const CONNECTION: usize = CLASSES;
/// Milliseconds between two settlements.
const SETTLE_MS: u64 = 1000;
/// Entries of a table that one turn looks at.
const SWEEP_MAX: usize = 16_384;

impl RateClass {
    /// The class of what a client asks, and how much of it; what has none counts for the connection only.
    pub fn of(request: &Request<'_>) -> Option<(Self, u32)> {
        Some(match request {
            Request::JoinRoom { .. } | Request::LeaveRoom { .. } => (Self::Join, 1),
            // A message that asks for a hundred rooms is not one message's worth of work.
            Request::JoinRooms { rooms } => (Self::Join, rooms.len().max(1) as u32),
            Request::Typing { .. } => (Self::Typing, 1),
            Request::Reaction { .. } | Request::MarkRead { .. } => (Self::Reaction, 1),
            Request::SendMessage { .. } | Request::EditMessage { .. } | Request::DeleteMessage { .. } => {
                (Self::Message, 1)
            }
            Request::Ping | Request::Auth { .. } | Request::RefreshToken { .. } => return None,
        })
    }

    /// The name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Typing => "typing",
            Self::Reaction => "reaction",
            Self::Message => "message",
            Self::Rest => "rest",
        }
    }

    fn rule(self, limits: &Limits) -> Rule {
        match self {
            Self::Join => Rule::new(limits.rate_join_per_second, limits.rate_join_burst),
            Self::Typing => Rule::new(limits.rate_typing_per_second, limits.rate_typing_burst),
            Self::Reaction => Rule::new(limits.rate_reaction_per_second, limits.rate_reaction_burst),
            Self::Message => Rule::new(limits.rate_message_per_second, limits.rate_message_burst),
            Self::Rest => Rule::new(limits.rate_rest_per_second, limits.rate_rest_burst),
        }
    }
}

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

    fn cost_ms(self, tokens: u32) -> u32 {
        (u64::from(tokens) * 1000 / u64::from(self.per_second)).min(u64::from(DEBT_MAX_MS)) as u32
    }
}

/// The greatest debt, 12 days.
const DEBT_MAX_MS: u32 = 1 << 30;
/// A time that has passed is kept for so long, which is known to be long ago; so any two times are comparable.
const PAST_MAX_MS: u32 = 1 << 29;

/// What is still to be paid of a debt up to that time.
fn owed_ms(until: u32, now: u32) -> u32 {
    let left = until.wrapping_sub(now);
    if left <= u32::MAX / 2 { left } else { 0 }
}

/// The later one of two times.
fn later(one: u32, other: u32) -> u32 {
    if owed_ms(one, other) > 0 { one } else { other }
}

/// The buckets of a user, as one thread knows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Debts {
    /// Up to when each class is paid for, and behind them the connection that ended last.
    until: [u32; CLASSES + 1],
    /// What was taken of each class since it was told to the user's home.
    taken_ms: [u32; CLASSES],
}

impl Debts {
    /// Nothing owed at the time `now`.
    fn none(now: u32) -> Self {
        Self { until: [now.wrapping_sub(PAST_MAX_MS); CLASSES + 1], taken_ms: [0; CLASSES] }
    }

    /// Takes tokens of a class.
    ///
    /// # Errors
    /// The milliseconds until as many can be had, if they cannot now. What is more than the burst can be had when
    /// nothing is owed.
    fn take(&mut self, class: RateClass, rule: Rule, tokens: u32, now: u32) -> Result<(), u32> {
        let (owed, cost) = (owed_ms(self.until[class as usize], now), rule.cost_ms(tokens));
        let wanted = owed.saturating_add(cost);
        if owed > 0 && wanted > rule.burst_ms {
            return Err(owed.min(wanted - rule.burst_ms));
        }
        self.until[class as usize] = now.wrapping_add(wanted.min(DEBT_MAX_MS));
        let taken = &mut self.taken_ms[class as usize];
        *taken = taken.saturating_add(cost);
        Ok(())
    }

    /// Adds what another thread has taken; debts above `max_ms` are cut.
    fn add(&mut self, other: &Self, max_ms: impl Fn(usize) -> u32, now: u32) {
        for (class, until) in self.until.iter_mut().enumerate() {
            let taken = other.taken_ms.get(class).copied().unwrap_or(0);
            let total = later(*until, other.until[class].wrapping_sub(taken)).wrapping_add(taken);
            let most = now.wrapping_add(max_ms(class));
            *until = if owed_ms(total, most) > 0 { most } else { total };
        }
    }

    /// Takes over what the home knows, in addition to what was not told to it yet.
    fn raise(&mut self, known: &Self, now: u32) {
        for (class, until) in self.until.iter_mut().enumerate() {
            let taken = self.taken_ms.get(class).copied().unwrap_or(0);
            let total = owed_ms(known.until[class], now).saturating_add(taken).min(DEBT_MAX_MS);
            if owed_ms(known.until[class], now) > 0 {
                *until = later(*until, now.wrapping_add(total));
            }
        }
    }

    /// What is to be told to the home: all that counts, and what was taken counts as told.
    fn tell(&mut self) -> Self {
        let told = *self;
        self.taken_ms = [0; CLASSES];
        told
    }

    /// Keeps times that have passed from getting so old that they seem to lie ahead.
    fn age(&mut self, now: u32) {
        let oldest = now.wrapping_sub(PAST_MAX_MS);
        self.until.iter_mut().for_each(|until| *until = later(*until, oldest));
    }

    fn is_paid(&self, now: u32) -> bool {
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
    fn get(&mut self, user: &UserId) -> Option<&mut Debts> {
        let number = self.find(user)?;
        Some(&mut self.entries[number as usize].debts)
    }

    /// The user's debts, from now on kept. When the table is full the one that the sweep would look at next is forgotten.
    fn enter(&mut self, user: &UserId, now: u32) -> &mut Debts {
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
    fn sweep(&mut self, now: u32, mut look: impl FnMut(&UserId, &mut Debts)) {
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

/// The debts that a shard knows.
pub struct Rates {
    /// Of users with connections or calls here.
    local: DebtTable,
    /// Of users at home here.
    home: DebtTable,
    /// When the next settlement is due, on the tick clock.
    settle_ms: u64,
}

impl Rates {
    /// Nobody owes anything; each of the two tables holds `users_max`.
    pub fn new(users_max: usize) -> Self {
        Self { local: DebtTable::new(users_max), home: DebtTable::new(users_max), settle_ms: 0 }
    }

    /// When debts are to be looked at, on the tick clock.
    pub fn due_ms(&self) -> Option<u64> {
        (!self.local.is_empty() || !self.home.is_empty()).then_some(self.settle_ms)
    }
}

impl Shard {
    fn rate_now(&self) -> u32 {
        self.now.tick_ms as u32
    }

    /// Charges a message of a WebSocket: its connection, and of `class` its user as well.
    ///
    /// # Errors
    /// The milliseconds after which it is worth another try; the refusal is recorded.
    pub(super) fn charge(&mut self, slot: u32, class: Option<(RateClass, u32)>) -> Result<(), u64> {
        if !self.config.rates || self.connections[slot].role == Role::Service {
            return Ok(());
        }
        if let Err(retry_ms) = self.charge_connection(slot) {
            if self.connections[slot].may_be_told() {
                self.deny(slot, DenialReason::RateLimited, None, "connection");
            }
            return Err(retry_ms);
        }
        let number = self.connections[slot].user;
        let (Some((class, tokens)), true) = (class, number != NONE) else { return Ok(()) };
        let (rule, now) = (class.rule(&self.config.limits), self.rate_now());
        let debts = self.rates.local.enter(self.users.id(number), now);
        debts.take(class, rule, tokens, now).map_err(|retry_ms| {
            self.deny(slot, DenialReason::RateLimited, None, class.label());
            // Who is refused and goes on all the same is on the way to be a flood.
            let _ = self.charge_connection(slot);
            u64::from(retry_ms)
        })
    }

    /// Charges a user's REST call, and of `class` what it does.
    ///
    /// # Errors
    /// The milliseconds after which it is worth another try; the refusal is recorded.
    pub(super) fn charge_call(&mut self, slot: u32, user: &UserId, class: Option<RateClass>) -> Result<(), u64> {
        if !self.config.rates {
            return Ok(());
        }
        let now = self.rate_now();
        for class in [Some(RateClass::Rest), class].into_iter().flatten() {
            let rule = class.rule(&self.config.limits);
            if let Err(retry_ms) = self.rates.local.enter(user, now).take(class, rule, 1, now) {
                self.deny(slot, DenialReason::RateLimited, Some(user.text()), class.label());
                return Err(u64::from(retry_ms));
            }
        }
        Ok(())
    }

    /// Takes a token of the connection's bucket. What is refused costs half, and enough of that closes the connection.
    fn charge_connection(&mut self, slot: u32) -> Result<(), u64> {
        let (rule, flood_ms, now) = (self.connection_rule(), self.flood_ms(), self.rate_now());
        let (cost, debt) = (rule.cost_ms(1), self.connection_debt_ms(slot));
        let conn = &mut self.connections[slot];
        let wanted = debt.saturating_add(cost);
        let is_refused = wanted > rule.burst_ms;
        let owed = if is_refused { debt.saturating_add((cost / 2).max(1)) } else { wanted };
        conn.rate = now.wrapping_add(owed.min(flood_ms + 1));
        if owed > flood_ms && conn.phase != Phase::Http {
            self.close(slot, &CloseReason::Flooding);
        }
        if is_refused { Err(u64::from(owed.saturating_add(cost).saturating_sub(rule.burst_ms))) } else { Ok(()) }
    }

    fn connection_rule(&self) -> Rule {
        Rule::new(self.config.limits.rate_per_second, self.config.limits.rate_burst)
    }

    /// The debt above which a connection is a flood.
    fn flood_ms(&self) -> u32 {
        let limits = &self.config.limits;
        self.connection_rule().cost_ms(limits.rate_burst.saturating_add(limits.rate_flood))
    }

    fn connection_debt_ms(&self, slot: u32) -> u32 {
        let debt = owed_ms(self.connections[slot].rate, self.rate_now());
        // More than can be owed is a time so long ago that it seems to lie ahead.
        if debt <= self.flood_ms() + 1 { debt } else { 0 }
    }

    /// What the home of a connection's user is told of debts when the connection ends.
    pub(super) fn leave_debts(&mut self, slot: u32, user: &UserId) -> Option<Box<Debts>> {
        let (now, debt) = (self.rate_now(), self.connection_debt_ms(slot));
        if debt > 0 {
            let debts = self.rates.local.enter(user, now);
            debts.until[CONNECTION] = later(debts.until[CONNECTION], now.wrapping_add(debt));
        }
        self.rates.local.get(user).map(|debts| Box::new(debts.tell()))
    }

    /// What a user at home here owes, for one who is admitted.
    pub(super) fn known_debts(&mut self, user: &UserId) -> Option<Box<Debts>> {
        let now = self.rate_now();
        self.rates.home.get(user).filter(|debts| !debts.is_paid(now)).map(|debts| Box::new(*debts))
    }

    /// A connection is admitted whose user owes something: the debts of the last one are its own.
    pub(super) fn take_over_debts(&mut self, slot: u32, known: &Debts) {
        let now = self.rate_now();
        let conn = &mut self.connections[slot];
        conn.rate = now.wrapping_add(owed_ms(known.until[CONNECTION], now));
        self.rates.local.enter(self.users.id(conn.user), now).raise(known, now);
    }

    /// Another thread tells what a user at home here has taken.
    pub(super) fn add_debts(&mut self, user: &UserId, told: &Debts) -> Debts {
        let (now, limits) = (self.rate_now(), &self.config.limits);
        let rules = [RateClass::Join, RateClass::Typing, RateClass::Reaction, RateClass::Message, RateClass::Rest];
        // What many threads have granted at once is forgiven above twice the burst.
        let max_ms = |class: usize| {
            rules.get(class).map_or(DEBT_MAX_MS, |class| class.rule(limits).burst_ms.saturating_mul(2).min(DEBT_MAX_MS))
        };
        let debts = self.rates.home.enter(user, now);
        debts.add(told, max_ms, now);
        *debts
    }

    /// A thread tells what was taken there, and is told what is owed in all.
    pub(super) fn settle_debts(&mut self, from: ShardId, user: UserId, told: &Debts) {
        let known = Box::new(self.add_debts(&user, told));
        self.mail.post(from, Envelope::Owed { user, known });
    }

    /// The home of a user has told what the user owes in all.
    pub(super) fn learn_debts(&mut self, user: &UserId, known: &Debts) {
        let now = self.rate_now();
        if !known.is_paid(now) {
            self.rates.local.enter(user, now).raise(known, now);
        }
    }

    /// Once a second: tells the homes of users what those have taken who take much, and forgets who has paid.
    pub(super) fn settle_rates(&mut self) {
        if self.rates.due_ms().is_none_or(|due_ms| due_ms > self.now.tick_ms) {
            return;
        }
        let (now, shards) = (self.rate_now(), self.shards);
        self.rates.settle_ms = self.now.tick_ms + SETTLE_MS;
        self.rates.home.sweep(now, |_, _| {});
        let share_ms = (SETTLE_MS as usize / shards) as u32;
        let Self { rates, mail, .. } = self;
        // While a mailbox is full nothing is added to what waits for it.
        let is_holding = mail.is_holding();
        rates.local.sweep(now, |user, debts| {
            if debts.taken_ms.iter().all(|&taken_ms| taken_ms <= share_ms) || shards == 1 {
                debts.taken_ms = [0; CLASSES];
            } else if !is_holding {
                let target = home(user.hash_code(), shards);
                mail.post(target, Envelope::Taken { user: user.clone(), told: Box::new(debts.tell()) });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ids::HashKey;
    use super::*;
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
            assert_eq!(debts.take(CLASS, rule(), 1, later(49)), Err(1));
            assert_eq!(debts.take(CLASS, rule(), 1, later(50)), Ok(()));
            let taken = (50..10_050).filter(|&ms| debts.take(CLASS, rule(), 1, later(ms)).is_ok()).count();
            assert_eq!(taken, 199);
            assert!(!debts.is_paid(later(10_050)) && debts.is_paid(later(60_000)));
        }
    }

    #[test]
    fn what_is_more_than_the_burst_is_had_when_nothing_is_owed() {
        let mut debts = Debts::none(0);
        assert_eq!(debts.take(CLASS, rule(), 150, 0), Ok(()));
        assert_eq!(debts.take(CLASS, rule(), 150, 7_000), Err(500));
        assert_eq!(debts.take(CLASS, rule(), 150, 7_500), Ok(()));
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
                        prop_assert!(early.take(CLASS, rule, tokens, now.wrapping_add(retry_ms - 1)).is_err());
                        prop_assert!(due.take(CLASS, rule, tokens, now.wrapping_add(retry_ms)).is_ok());
                    }
                }
            }
            for (at, &(first, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for &(last, tokens) in &taken[at..] {
                    sum += tokens;
                    let span_ms = last.wrapping_sub(first);
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
