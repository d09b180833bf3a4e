//! What a shard has handed to threads other than the store's, and what it will hand out at the end of the turn.
//!
//! Owns the bounds: of each kind so many are under way, then the next is refused, and a share of them for one address or
//! user, so that nobody can take all. It knows nothing of what a job means.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use super::address_homes::AddressKey;
use super::ids::{ConnId, UserId};
use super::job::{Job, Question, Verify};
use crate::config::Limits;

/// As many as may be are under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busy;

/// What of all places one address may take, in parts: one of so many.
const SHARES: usize = 8;

/// What is under way between a shard and the crews.
#[derive(Debug)]
pub struct Errands {
    waiting: VecDeque<Job>,
    checks: Tally<AddressKey>,
    searches: Tally<AddressKey>,
    questions: Tally<UserId>,
    /// From where those come that are counted in the shares of addresses; each has one check or search under way.
    addresses: HashMap<ConnId, AddressKey>,
}

/// How many jobs of a kind are under way, and may be; in all, and for each who asks.
#[derive(Debug)]
struct Tally<K> {
    under_way: usize,
    max: usize,
    shares: HashMap<K, usize>,
    share_max: usize,
}

impl<K: Clone + Eq + Hash> Tally<K> {
    fn new(max: usize, share_max: usize) -> Self {
        Self { under_way: 0, max, shares: HashMap::new(), share_max: share_max.max(1) }
    }

    /// One more, for somebody whose share is looked at, or for nobody.
    fn enter(&mut self, max: usize, whose: Option<&K>) -> Result<(), Busy> {
        let share = whose.map_or(0, |whose| self.shares.get(whose).copied().unwrap_or(0));
        if self.under_way >= max || share >= self.share_max {
            return Err(Busy);
        }
        self.under_way += 1;
        if let Some(whose) = whose {
            self.shares.insert(whose.clone(), share + 1);
        }
        Ok(())
    }

    fn leave(&mut self) {
        debug_assert!(self.under_way > 0, "each answer has a job");
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// One less of somebody's share.
    fn give_back(&mut self, whose: &K) {
        if let Some(share) = self.shares.get_mut(whose) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(whose);
            }
        }
    }

    fn check_invariants(&self) {
        assert!(self.under_way <= self.max && self.shares.values().sum::<usize>() <= self.under_way);
        assert!(self.shares.values().all(|&share| share > 0 && share <= self.share_max));
    }
}

impl Errands {
    /// The errands of one of `shards`.
    pub fn new(limits: &Limits, shards: usize) -> Self {
        let tokens_max = limits.token_checks_max.div_ceil(shards);
        let tokens = || Tally::new(tokens_max, tokens_max / SHARES);
        let questions_max = limits.access_questions_max.div_ceil(shards);
        // Whoever comes back asks for all rooms at once; but half of the places are others'.
        let share_max = (questions_max / SHARES).max(limits.rooms_per_connection_max).min(questions_max / 2);
        Self {
            waiting: VecDeque::new(),
            checks: tokens(),
            searches: tokens(),
            questions: Tally::new(questions_max, share_max),
            addresses: HashMap::new(),
        }
    }

    /// Has a signature verified, of a token that came from an address, if that has a share of its own.
    ///
    /// # Errors
    /// Too many are under way, of all or of the address.
    pub fn verify(&mut self, verify: Verify, address: Option<AddressKey>) -> Result<(), Busy> {
        self.checks.enter(self.checks.max, address.as_ref())?;
        self.addresses.extend(address.map(|address| (verify.mark.conn, address)));
        self.waiting.push_back(Job::Verify(verify.into()));
        Ok(())
    }

    /// Has a key sought for the token of a connection, which came from an address, if that has a share of its own.
    ///
    /// # Errors
    /// Too many are under way, of all or of the address.
    pub fn seek_key(&mut self, conn: ConnId, address: Option<AddressKey>) -> Result<(), Busy> {
        self.searches.enter(self.searches.max, address.as_ref())?;
        self.addresses.extend(address.map(|address| (conn, address)));
        self.waiting.push_back(Job::SeekKey(conn));
        Ok(())
    }

    /// Has the ERP asked. Those who are `inside` already leave half of the places to those who wait to enter.
    ///
    /// # Errors
    /// Too many questions are under way, of all or of the user.
    pub fn ask(&mut self, question: Question, inside: bool) -> Result<(), Busy> {
        let max = self.questions.max;
        self.questions.enter(if inside { max.div_ceil(2) } else { max }, Some(&question.user))?;
        self.waiting.push_back(Job::Permit(question.into()));
        Ok(())
    }

    /// A question about a user has been answered, or was given up.
    pub fn note_answered(&mut self, user: &UserId) {
        self.questions.leave();
        self.questions.give_back(user);
    }

    /// A signature was verified, of the token of a connection that may be gone.
    pub fn note_verified(&mut self, conn: ConnId) {
        self.checks.leave();
        if let Some(address) = self.addresses.remove(&conn) {
            self.checks.give_back(&address);
        }
    }

    /// A key was sought, for a connection that may be gone.
    pub fn note_sought(&mut self, conn: ConnId) {
        self.searches.leave();
        if let Some(address) = self.addresses.remove(&conn) {
            self.searches.give_back(&address);
        }
    }

    /// What is to be handed out next.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.waiting.pop_front()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    /// Checks that what is to go out is among what is under way.
    pub fn check_invariants(&self) {
        assert!(self.waiting.len() <= self.under_way());
        assert!(self.addresses.len() <= self.checks.under_way + self.searches.under_way);
        self.checks.check_invariants();
        self.searches.check_invariants();
        self.questions.check_invariants();
    }

    fn under_way(&self) -> usize {
        self.checks.under_way + self.searches.under_way + self.questions.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::{HashKey, RoomName, ShardId};
    use crate::wire::value::Id;

    fn address(text: &str) -> Option<AddressKey> {
        Some(AddressKey::of(text.parse().unwrap()))
    }

    fn conn(slot: u32) -> ConnId {
        ConnId::new(ShardId(0), 0, slot)
    }

    #[test]
    fn an_address_has_an_eighth_of_the_checks_and_a_proxy_has_all() {
        let mut errands = Errands::new(&Limits { token_checks_max: 32, ..Limits::default() }, 2);
        assert_eq!(errands.seek_key(conn(0), address("2001:db8::1")), Ok(()));
        assert_eq!(errands.seek_key(conn(1), address("2001:db8::2")), Ok(()));
        assert_eq!(errands.seek_key(conn(2), address("2001:db8::3")), Err(Busy));
        assert_eq!(errands.seek_key(conn(2), address("2001:db8:0:1::3")), Ok(()));
        (3..16).for_each(|slot| assert_eq!(errands.seek_key(conn(slot), None), Ok(())));
        assert_eq!(errands.seek_key(conn(16), None), Err(Busy));
        errands.check_invariants();
        while errands.poll_job().is_some() {}
        errands.note_sought(conn(1));
        assert_eq!(errands.seek_key(conn(1), address("2001:db8::2")), Ok(()));
        (0..16).for_each(|slot| errands.note_sought(conn(slot)));
        while errands.poll_job().is_some() {}
        errands.check_invariants();
        assert!(errands.is_idle() && errands.addresses.is_empty() && errands.searches.shares.is_empty());
    }

    #[test]
    fn a_user_cannot_take_all_questions() {
        let key = HashKey::new([1; 16]);
        let question = |user: &str, number: u32| {
            let user = Id::from_text(user).unwrap();
            let user = UserId::new(&user, key.hash(user.text()));
            Question { number, room: RoomName::new("r", key.hash("r")), user }
        };
        let taken = |questions_max: usize, rooms_max: usize| {
            let limits = Limits {
                access_questions_max: questions_max,
                rooms_per_connection_max: rooms_max,
                ..Limits::default()
            };
            let mut errands = Errands::new(&limits, 1);
            let taken = (0..1000).take_while(|&number| errands.ask(question("ana", number), false).is_ok()).count();
            let is_left = errands.ask(question("ben", 0), false).is_ok();
            errands.note_answered(&question("ana", 0).user);
            let again = errands.ask(question("ana", 0), false).is_ok();
            while errands.poll_job().is_some() {}
            errands.check_invariants();
            (taken, is_left, again)
        };
        assert_eq!(taken(800, 50), (100, true, true));
        assert_eq!(taken(800, 200), (200, true, true), "all rooms of a connection");
        assert_eq!(taken(100, 200), (50, true, true), "but half is left to others");
        assert_eq!(taken(1, 200).0, 1);
    }
}
