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

mod debts;

use super::closing::CloseReason;
use super::connection::{NONE, Phase};
use super::denial::DenialReason;
use super::envelope::Envelope;
use super::ids::{ShardId, UserId, home};
use super::shard::Shard;
use crate::auth::Role;
use crate::config::Limits;
use crate::wire::client::Request;

use debts::DEBT_MAX_MS;
pub use debts::{DebtTable, Debts, Rule};
pub(super) use debts::{later, owed_ms};

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
        let is_refused = rule.wait_ms(debt, cost).is_some();
        let owed = debt.saturating_add(if is_refused { (cost / 2).max(1) } else { cost });
        conn.rate = now.wrapping_add(owed.min(flood_ms + 1));
        if owed > flood_ms && conn.phase != Phase::Http {
            self.close(slot, &CloseReason::Flooding);
        }
        // What it costs to be refused is waited for as well.
        let wait_ms = rule.wait_ms(owed, cost).filter(|_| is_refused);
        wait_ms.map_or(Ok(()), |wait_ms| Err(u64::from(wait_ms)))
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
            rules
                .get(class)
                .map_or(DEBT_MAX_MS, |class| class.rule(limits).burst_ms().saturating_mul(2).min(DEBT_MAX_MS))
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
