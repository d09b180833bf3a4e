//! Limits per address: how many connections of users come from it, and how fast new ones may come.
//!
//! An address has a home shard, found by its hash as a user's is, which alone counts; so the limits hold exactly on any
//! number of threads. They are off unless configured: behind one address there may be a company, or a proxy that nobody
//! has named. An IPv6 address is its /64, since that is what one subscriber has. Services are not counted.
//!
//! Each connection that asks is counted until it is gone, also one that is refused, so that nothing has to be known of
//! an answer that comes too late. What stands in the table is bounded by the connections that are counted, and for those
//! addresses that only owe something, by a limit: beyond, one of them is forgotten.

use core::net::IpAddr;

use hashbrown::HashTable;
use slab::Slab;

use super::closing::CloseReason;
use super::connection::Phase;
use super::denial::DenialReason;
use super::envelope::{Answer, Ask, Envelope, Origin, Reply, ReplyTo, Request};
use super::http::{Manner, Rest};
use super::ids::{HashKey, ShardId, home};
use super::mail::NoCredit;
use super::rates::{Rule, later, owed_ms};
use super::shard::Shard;
use super::slack::{give_back_slab, give_back_table};
use crate::auth::Role;
use crate::wire::client::ErrorCode;
use crate::wire::event;

/// Entries that a sweep looks at.
const SWEEP_MAX: usize = 16_384;
/// Milliseconds between two sweeps.
const SWEEP_MS: u64 = 1000;

/// What is limited as one: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressKey(u64);

impl AddressKey {
    /// The key of an address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            // In a prefix that is reserved, so that it is no /64 of a host.
            IpAddr::V4(narrow) => 1 << 32 | u64::from(narrow.to_bits()),
            IpAddr::V6(wide) => (wide.to_bits() >> 64) as u64,
        })
    }

    fn hash_code(self, key: HashKey) -> u64 {
        key.hash_number(self.0)
    }
}

struct Entry {
    key: AddressKey,
    /// Connections that are counted.
    count: u32,
    /// Up to when the connections that came are paid for.
    until: u32,
}

/// The addresses at home on a shard.
pub struct AddressHomes {
    table: HashTable<u32>,
    entries: Slab<Entry>,
    /// Addresses that have no connection and only owe something.
    absent: usize,
    absent_max: usize,
    key: HashKey,
    hand: usize,
    sweep_ms: u64,
}

impl AddressHomes {
    /// Nobody has come yet; of addresses that only owe something, `absent_max` are known.
    pub fn new(key: HashKey, absent_max: usize) -> Self {
        Self { table: HashTable::new(), entries: Slab::new(), absent: 0, absent_max, key, hand: 0, sweep_ms: 0 }
    }

    fn find(&self, address: AddressKey) -> Option<usize> {
        let found = self.table.find(address.hash_code(self.key), |&n| self.entries[n as usize].key == address);
        found.map(|&number| number as usize)
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// The milliseconds until it is worth another try.
    fn enter(&mut self, address: AddressKey, rule: Option<Rule>, count_max: u32, now: u32) -> Result<(), u32> {
        let number = self.find(address).unwrap_or_else(|| {
            let number = self.entries.insert(Entry { key: address, count: 0, until: now });
            self.absent += 1;
            let (entries, key) = (&self.entries, self.key);
            let rehash = |&n: &u32| entries[n as usize].key.hash_code(key);
            self.table.insert_unique(address.hash_code(key), number as u32, rehash);
            number
        });
        let entry = &mut self.entries[number];
        self.absent -= usize::from(entry.count == 0);
        entry.count += 1;
        if entry.count > count_max {
            return Err(1000);
        }
        let Some(rule) = rule else { return Ok(()) };
        if let Some(wait_ms) = rule.wait_ms(owed_ms(entry.until, now), rule.cost_ms(1)) {
            return Err(wait_ms);
        }
        entry.until = later(entry.until, now).wrapping_add(rule.cost_ms(1));
        Ok(())
    }

    /// Counts a connection out.
    fn leave(&mut self, address: AddressKey, now: u32) {
        let Some(number) = self.find(address) else { return };
        let entry = &mut self.entries[number];
        entry.count -= 1;
        if entry.count > 0 {
            return;
        }
        self.absent += 1;
        if owed_ms(entry.until, now) == 0 || self.absent > self.absent_max {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: usize) {
        let hash = self.entries.remove(number).key.hash_code(self.key);
        self.absent -= 1;
        if let Ok(entry) = self.table.find_entry(hash, |&n| n as usize == number) {
            entry.remove();
        }
    }

    /// When addresses that owe nothing any more are to be forgotten, on the tick clock.
    pub fn due_ms(&self) -> Option<u64> {
        (self.absent > 0).then_some(self.sweep_ms)
    }

    /// Forgets addresses without connections that owe nothing, if it is time.
    pub fn sweep(&mut self, tick_ms: u64) {
        if self.due_ms().is_none_or(|due_ms| due_ms > tick_ms) {
            return;
        }
        self.sweep_ms = tick_ms + SWEEP_MS;
        for _ in 0..self.entries.capacity().min(SWEEP_MAX) {
            self.hand = if self.hand >= self.entries.capacity() { 0 } else { self.hand };
            let entry = self.entries.get(self.hand);
            if entry.is_some_and(|entry| entry.count == 0 && owed_ms(entry.until, tick_ms as u32) == 0) {
                self.remove(self.hand);
            }
            self.hand += 1;
        }
        let (entries, key) = (&self.entries, self.key);
        give_back_table(&mut self.table, |&n| entries[n as usize].key.hash_code(key));
        give_back_slab(&mut self.entries);
    }

    /// How many addresses.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Connections that are counted.
    pub fn connections(&self) -> u32 {
        self.entries.iter().map(|(_, entry)| entry.count).sum()
    }
}

impl Shard {
    /// Asks the home of the connection's address to let one of that role in, if addresses are limited. Returns whether it
    /// asks.
    pub(super) fn ask_address(&mut self, slot: u32, role: Role) -> Result<bool, NoCredit> {
        let limits = &self.config.limits;
        let is_limited = limits.address_connections_max > 0 || limits.address_connects_per_second > 0;
        if !self.config.rates || !is_limited || role == Role::Service {
            return Ok(false);
        }
        let address = AddressKey::of(self.addresses.of(slot));
        let target = home(address.hash_code(self.key), self.shards);
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::Address };
        self.mail.request(target, Request { origin, ask: Ask::Address(address) })?;
        self.addresses.count(slot);
        Ok(true)
    }

    /// The home of an address is asked to let a connection in.
    pub(super) fn handle_address_ask(&mut self, from: ShardId, origin: Origin, address: AddressKey) {
        let limits = &self.config.limits;
        let per_second = limits.address_connects_per_second;
        let rule = (per_second > 0).then(|| Rule::new(per_second, limits.address_connects_burst));
        let count_max = match limits.address_connections_max {
            0 => u32::MAX,
            max => max,
        };
        let entered = self.address_homes.enter(address, rule, count_max, self.now.tick_ms as u32);
        let answer = match entered {
            Ok(()) => Answer::Done,
            Err(retry_ms) => Answer::TurnedAway(u64::from(retry_ms)),
        };
        self.mail.reply(from, Reply { origin, answer });
    }

    /// A connection that was counted is gone, at the home of its address.
    pub(super) fn handle_address_gone(&mut self, address: AddressKey) {
        self.address_homes.leave(address, self.now.tick_ms as u32);
    }

    /// Tells the home of a connection's address that it no longer counts.
    pub(super) fn leave_address(&mut self, slot: u32) {
        if self.addresses.uncount(slot) {
            let address = AddressKey::of(self.addresses.of(slot));
            let target = home(address.hash_code(self.key), self.shards);
            self.mail.post(target, Envelope::AddressGone { address });
        }
    }

    /// The home of a connection's address has answered: the user's home is asked next, or the upgrade is refused.
    pub(super) fn finish_address(&mut self, slot: u32, answer: &Answer) {
        if self.connections[slot].phase != Phase::Admitting {
            return;
        }
        let Answer::TurnedAway(retry_ms) = *answer else {
            let user = self.users.id(self.connections[slot].user).clone();
            if self.ask_admission(slot, &user).is_err() {
                self.refuse_admission(slot, 503, ErrorCode::Overloaded, "too many are connecting, try again", 1000);
            }
            return;
        };
        self.deny(slot, DenialReason::AddressLimit, None, "");
        self.refuse_admission(slot, 429, ErrorCode::RateLimited, "too many connections from this address", retry_ms);
    }

    /// Refuses a connection whose token is good: the upgrade, or if that is answered already, the `auth`.
    fn refuse_admission(&mut self, slot: u32, status: u16, code: ErrorCode, text: &str, retry_ms: u64) {
        let Some(admission) = self.connections[slot].extra.as_mut().and_then(|extra| extra.admission.take()) else {
            return;
        };
        if admission.upgrade.is_empty() {
            self.connections[slot].phase = Phase::Auth;
            let (reference, now) = (admission.reference.as_deref(), self.now.wall_ms);
            self.send_json(slot, |out| event::error(out, code, text, reference, None, Some(retry_ms), now));
            let is_limited = code == ErrorCode::RateLimited;
            return self.close(slot, if is_limited { &CloseReason::Flooding } else { &CloseReason::GoingAway });
        }
        self.leave_everything(slot);
        let mut rest = Rest::error(status, code, text);
        rest.set_retry_after(retry_ms.div_ceil(1000));
        let answer = self.write_rest(&Manner { keep_alive: false, head_only: false, allow_origin: None }, &rest);
        self.pool.append_direct(&mut self.connections[slot].outbox, |out| out.extend_from_slice(&answer));
        self.linger(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(absent_max: usize) -> AddressHomes {
        AddressHomes::new(HashKey::new([3; 16]), absent_max)
    }

    fn key(text: &str) -> AddressKey {
        AddressKey::of(text.parse().unwrap())
    }

    #[test]
    fn an_address_is_one_host_of_ipv4_and_one_subscriber_of_ipv6() {
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("::1"), key("0.0.0.1"));
    }

    #[test]
    fn connections_are_counted_until_they_are_gone() {
        let mut homes = homes(10);
        let (one, other) = (key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!((0..3).map(|_| homes.enter(one, None, 2, 0)).collect::<Vec<_>>(), [Ok(()), Ok(()), Err(1000)]);
        assert_eq!(homes.enter(other, None, 2, 0), Ok(()));
        // The one that was refused counts until it says that it is gone.
        homes.leave(one, 0);
        assert_eq!(homes.enter(one, None, 2, 0), Err(1000));
        (0..3).for_each(|_| homes.leave(one, 0));
        homes.leave(other, 0);
        homes.leave(other, 0);
        assert!(homes.is_empty() && homes.table.is_empty() && homes.absent == 0);
    }

    #[test]
    fn the_rate_outlives_the_connections_and_what_is_kept_is_bounded() {
        let (mut homes, rule) = (homes(10), Some(Rule::new(2, 4)));
        let mut come = |address, now| {
            let entered = homes.enter(address, rule, u32::MAX, now);
            homes.leave(address, now);
            (entered, homes.len())
        };
        let one = key("192.0.2.1");
        assert_eq!((0..10).filter(|_| come(one, 0).0.is_ok()).count(), 4);
        assert_eq!((come(one, 400), come(one, 500)), ((Err(100), 1), (Ok(()), 1)));
        for number in 0..100_u8 {
            let (entered, known) = come(key(&format!("198.51.100.{number}")), 500);
            assert!(entered.is_ok() && known <= 10);
        }
        homes.sweep(501);
        assert_eq!((homes.len(), homes.due_ms()), (10, Some(1_501)));
        homes.sweep(5_000);
        assert!(homes.is_empty() && homes.table.is_empty() && homes.due_ms().is_none());
    }
}
