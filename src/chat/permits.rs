//! What the ERP has said about users and rooms, for as long as that counts.
//!
//! Owns the answers for all rooms at home on a shard, at most so many: of more the oldest goes. Nothing depends on an answer
//! being here, since the ERP can be asked again. It knows no rule and nobody who waits.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::ids::{RoomName, UserId};
use crate::access::Level;

/// The answers.
#[derive(Debug)]
pub struct Permits {
    table: HashTable<Entry>,
    /// By the number of the entry, oldest first. An entry that was renewed leaves its former place behind.
    order: VecDeque<(u64, u64)>,
    next: u64,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    room: RoomName,
    user: UserId,
    level: Level,
    /// Until when it counts, on the tick clock.
    until_ms: u64,
    number: u64,
}

impl Entry {
    fn hash(&self) -> u64 {
        hash(&self.room, &self.user)
    }
}

/// Both names have keyed hashes; turned, so that a room and a user of the same name are not the same as two others.
fn hash(room: &RoomName, user: &UserId) -> u64 {
    room.hash_code().rotate_left(17) ^ user.hash_code()
}

impl Permits {
    /// Keeps at most `max` answers.
    pub fn new(max: usize) -> Self {
        Self { table: HashTable::new(), order: VecDeque::new(), next: 0, max }
    }

    /// What is known at `now_ms` of a user and a room, and until when.
    pub fn find(&self, room: &RoomName, user: &UserId, now_ms: u64) -> Option<(Level, u64)> {
        let entry = self.table.find(hash(room, user), |entry| entry.user == *user && entry.room == *room)?;
        (entry.until_ms > now_ms).then_some((entry.level, entry.until_ms))
    }

    /// Keeps an answer until `until_ms`, in the place of what was known before; one that does not count beyond `now_ms`
    /// only ends that.
    pub fn keep(&mut self, room: &RoomName, user: &UserId, level: Level, until_ms: u64, now_ms: u64) {
        let hash = hash(room, user);
        if let Ok(found) = self.table.find_entry(hash, |entry| entry.user == *user && entry.room == *room) {
            found.remove();
        }
        self.forget_former();
        if until_ms <= now_ms || self.max == 0 {
            return;
        }
        while self.table.len() >= self.max {
            let Some((hash, number)) = self.order.pop_front() else { break };
            self.remove(hash, number);
        }
        let number = self.next;
        self.next += 1;
        self.order.push_back((hash, number));
        let entry = Entry { room: room.clone(), user: user.clone(), level, until_ms, number };
        self.table.insert_unique(hash, entry, Entry::hash);
    }

    fn remove(&mut self, hash: u64, number: u64) {
        if let Ok(found) = self.table.find_entry(hash, |entry| entry.number == number) {
            found.remove();
        }
    }

    /// Drops places that were left behind, once they are as many as those of entries.
    fn forget_former(&mut self) {
        if self.order.len() <= 2 * self.table.len() + 64 {
            return;
        }
        let table = &self.table;
        self.order.retain(|&(hash, number)| table.find(hash, |entry| entry.number == number).is_some());
    }

    /// Checks that each answer has its place in the order, and that the places are bounded.
    pub fn check_invariants(&self) {
        assert!(self.table.len() <= self.max && self.order.len() <= 2 * self.table.len() + 66);
        let placed = self
            .order
            .iter()
            .filter(|&&(hash, number)| self.table.find(hash, |entry| entry.number == number).is_some());
        assert_eq!(placed.count(), self.table.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    fn names(room: &str, user: &str) -> (RoomName, UserId) {
        let key = HashKey::new([7; 16]);
        (RoomName::new(room, key.hash(room)), UserId::new(&Id::from_text(user).unwrap(), key.hash(user)))
    }

    #[test]
    fn an_answer_counts_for_its_time_and_its_room() {
        let mut permits = Permits::new(10);
        let ((room, ana), (other, ben)) = (names("r", "ana"), names("s", "ben"));
        permits.keep(&room, &ana, Level::Reader, 100, 50);
        assert_eq!(permits.find(&room, &ana, 99), Some((Level::Reader, 100)));
        assert_eq!(permits.find(&room, &ana, 100), None);
        assert_eq!((permits.find(&room, &ben, 99), permits.find(&other, &ana, 99)), (None, None));
        permits.keep(&room, &ana, Level::Nothing, 200, 100);
        assert_eq!(permits.find(&room, &ana, 100), Some((Level::Nothing, 200)));
        permits.keep(&room, &ana, Level::Member, 150, 150);
        assert_eq!(permits.find(&room, &ana, 150), None, "what is not kept ends what was");
        permits.check_invariants();
    }

    #[test]
    fn of_more_than_may_be_the_oldest_goes() {
        let mut permits = Permits::new(3);
        let keep = |permits: &mut Permits, user: &str| {
            let (room, user) = names("r", user);
            permits.keep(&room, &user, Level::Member, 100, 0);
            permits.check_invariants();
        };
        let has = |permits: &Permits, user: &str| {
            let (room, user) = names("r", user);
            permits.find(&room, &user, 0).is_some()
        };
        ["a", "b", "c", "a", "d"].iter().for_each(|user| keep(&mut permits, user));
        assert_eq!(["a", "b", "c", "d"].map(|user| has(&permits, user)), [true, false, true, true]);
        (0..10_000).for_each(|number| keep(&mut permits, if number % 2 == 0 { "c" } else { "e" }));
        assert!(has(&permits, "c") && has(&permits, "e"));
        let mut none = Permits::new(0);
        keep(&mut none, "a");
        assert!(!has(&none, "a"));
    }
}
