//! Who is in a room: per user for the lists, per shard for the bursts, and the net changes of a large room.
//!
//! Presence is user -> count per source, so that a source that ends is removed in one step. The home knows sources, never
//! the connections behind them. Nothing here encodes or sends an event.
//!
//! Invariants: an entry's count is not 0; exactly one entry of each user is its first; a user that is both joined and left
//! since the last diff is not in the diff.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashTable;

use super::ids::{ShardId, UserId};
use super::slack::APART_BYTES;
use crate::planted::{self, Bug};

/// The users of a room, with the connections that each has on each source.
#[derive(Default, Debug)]
pub struct Presence {
    entries: HashTable<Entry>,
    users: u32,
}

/// One user on one source: 16 bytes. A user on several sources has several entries under the same hash.
#[derive(Debug)]
struct Entry {
    user: UserId,
    count: u32,
    source: ShardId,
    /// Lists and counts of users look at this entry of the user only.
    first: bool,
}

/// What a connection that left was to its user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Left {
    /// The user has other connections in the room.
    Stays,
    /// It was the user's last; the user as it was shown.
    Gone(UserId),
}

/// What the end of a source did.
#[derive(Default, Debug)]
pub struct SourceEnd {
    /// Users that are no longer in the room.
    pub gone: Vec<UserId>,
    /// Users that the source had and that other sources still have.
    pub staying: Vec<UserId>,
}

/// Below this capacity the table is not worth shrinking.
const SHRINK_CAPACITY_MIN: usize = 64;

impl Presence {
    /// Counts a connection; whether it is the user's first in the room.
    pub fn join(&mut self, source: ShardId, user: &UserId) -> bool {
        let hash = user.hash_code();
        if let Some(entry) = self.entries.find_mut(hash, |e| e.source == source && e.user == *user) {
            entry.count += 1;
            return false;
        }
        // The form of the user's first connection is the one that is shown.
        let known = self.shown(user).cloned();
        let first = known.is_none();
        let entry = Entry { user: known.unwrap_or_else(|| user.clone()), count: 1, source, first };
        self.entries.insert_unique(hash, entry, |e| e.user.hash_code());
        self.users += u32::from(first);
        first
    }

    /// Uncounts a connection; `None` if the source has none of this user.
    pub fn leave(&mut self, source: ShardId, user: &UserId) -> Option<Left> {
        let found = self.entries.find_entry(user.hash_code(), |e| {
            (e.source == source || planted::is(Bug::PresenceNotPerSource)) && e.user == *user
        });
        let mut occupied = found.ok()?;
        let entry = occupied.get_mut();
        if entry.count > 1 {
            entry.count -= 1;
            return Some(Left::Stays);
        }
        let (entry, _) = occupied.remove();
        let left = self.removed(entry);
        self.shrink();
        Some(left)
    }

    /// Removes all that a source had.
    pub fn end_source(&mut self, source: ShardId) -> SourceEnd {
        let removed: Vec<Entry> = self.entries.extract_if(|e| e.source == source).collect();
        let mut end = SourceEnd::default();
        for entry in removed {
            let user = entry.user.clone();
            match self.removed(entry) {
                Left::Stays => end.staying.push(user),
                Left::Gone(user) => end.gone.push(user),
            }
        }
        self.shrink();
        end
    }

    /// The user as it is shown, if it is in the room.
    pub fn shown(&self, user: &UserId) -> Option<&UserId> {
        self.entries.find(user.hash_code(), |e| e.user == *user).map(|e| &e.user)
    }

    /// The sources on which a user is.
    pub fn sources_of(&self, user: &UserId) -> impl Iterator<Item = ShardId> {
        self.entries.iter_hash(user.hash_code()).filter(move |e| e.user == *user).map(|e| e.source)
    }

    /// Distinct users.
    pub fn users(&self) -> u32 {
        self.users
    }

    /// Each user once, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &UserId> {
        self.entries.iter().filter(|e| e.first).map(|e| &e.user)
    }

    /// Checks the invariants, and the counts against `interest`.
    pub fn check_invariants(&self, interest: &Interest) {
        assert_eq!(self.iter().count(), self.users as usize, "each user has one first entry");
        let mut counts = vec![0; interest.shards.len()];
        for entry in &self.entries {
            assert!(entry.count > 0, "an entry stands for a connection");
            if let Some(count) = counts.get_mut(entry.source.index()) {
                *count += entry.count;
            }
        }
        assert!(interest.shards.iter().map(|s| s.members).eq(counts), "interest equals presence");
        assert_eq!(interest.shards.iter().map(|s| s.members).sum::<u32>(), interest.members);
        assert_eq!(interest.shards.iter().map(|s| s.untold).sum::<u32>(), interest.untold);
        assert_eq!(interest.shards.iter().map(|s| s.deflating).sum::<u32>(), interest.deflating);
        assert!(interest.shards.iter().all(|s| s.untold <= s.members && s.deflating <= s.members));
    }

    fn removed(&mut self, entry: Entry) -> Left {
        let other = self.entries.find_mut(entry.user.hash_code(), |e| e.user == entry.user);
        match other {
            Some(other) => {
                other.first |= entry.first;
                Left::Stays
            }
            None => {
                self.users -= 1;
                Left::Gone(entry.user)
            }
        }
    }

    /// Moves the table to where the heap has room for it as it is now; returns how many entries that took.
    pub fn compact(&mut self) -> usize {
        let moved = self.entries.len();
        if moved * size_of::<Entry>() >= APART_BYTES {
            return 0;
        }
        let mut compact = HashTable::with_capacity(moved);
        for entry in self.entries.drain() {
            compact.insert_unique(entry.user.hash_code(), entry, |e: &Entry| e.user.hash_code());
        }
        self.entries = compact;
        moved
    }

    /// A room that was large once does not stay so in memory, nor in the cost of walking it.
    fn shrink(&mut self) {
        let capacity = self.entries.capacity();
        if capacity > SHRINK_CAPACITY_MIN && self.entries.len() < capacity / 8 {
            self.entries.shrink_to(self.entries.len() * 2, |e| e.user.hash_code());
        }
    }
}

/// How many members each shard has, how many of them were not yet told that they are, and how many take what is
/// compressed.
///
/// A member that joined in this turn is told after the turn's burst, so the burst goes only where somebody was told before.
#[derive(Debug)]
pub struct Interest {
    shards: Box<[ShardInterest]>,
    members: u32,
    untold: u32,
    deflating: u32,
}

#[derive(Clone, Copy, Default, Debug)]
struct ShardInterest {
    members: u32,
    untold: u32,
    deflating: u32,
}

impl Interest {
    /// Nobody, on any of so many shards.
    pub fn new(shards: usize) -> Self {
        Self { shards: vec![ShardInterest::default(); shards].into(), members: 0, untold: 0, deflating: 0 }
    }

    /// A member more, not told yet; whether it takes what is compressed.
    pub fn join(&mut self, shard: ShardId, deflates: bool) {
        if let Some(interest) = self.shards.get_mut(shard.index()) {
            interest.members += 1;
            interest.untold += 1;
            interest.deflating += u32::from(deflates);
            self.members += 1;
            self.untold += 1;
            self.deflating += u32::from(deflates);
        }
    }

    /// A member less, one that had been told: an Unsubscribe never overtakes the Subscribed.
    pub fn leave(&mut self, shard: ShardId, deflates: bool) {
        if let Some(interest) = self.shards.get_mut(shard.index()) {
            debug_assert!(interest.members > interest.untold, "who leaves was told to be in the room");
            debug_assert!(!deflates || interest.deflating > 0, "who leaves takes what it took when it came");
            let left = interest.members.min(1);
            let deflated = interest.deflating.min(u32::from(deflates));
            let untold = interest.untold.min(interest.members - left);
            self.members -= left;
            self.untold -= interest.untold - untold;
            self.deflating -= deflated;
            let (members, deflating) = (interest.members - left, interest.deflating - deflated);
            *interest = ShardInterest { members, untold, deflating };
        }
    }

    /// Nobody is there any more.
    pub fn end_source(&mut self, shard: ShardId) {
        if let Some(interest) = self.shards.get_mut(shard.index()) {
            let ended = std::mem::take(interest);
            self.members -= ended.members;
            self.untold -= ended.untold;
            self.deflating -= ended.deflating;
        }
    }

    /// All members are told now.
    pub fn tell_all(&mut self) {
        if self.untold > 0 {
            self.shards.iter_mut().for_each(|shard| shard.untold = 0);
            self.untold = 0;
        }
    }

    /// All members.
    pub fn members(&self) -> u32 {
        self.members
    }

    /// The members that take what is compressed.
    pub fn deflating(&self) -> u32 {
        self.deflating
    }

    /// The members that get the burst of this turn.
    pub fn told(&self) -> u32 {
        self.members - self.untold
    }

    /// The shards that have a member.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.shards_where(|shard| shard.members > 0)
    }

    /// The shards that get the burst of this turn.
    pub fn told_shards(&self) -> impl Iterator<Item = ShardId> {
        self.shards_where(|shard| shard.members > shard.untold)
    }

    fn shards_where(&self, wanted: impl Fn(&ShardInterest) -> bool) -> impl Iterator<Item = ShardId> {
        let numbered = self.shards.iter().enumerate();
        numbered.filter(move |(_, shard)| wanted(shard)).map(|(index, _)| ShardId(index as u16))
    }
}

/// Which way a user went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Into the room.
    Joined,
    /// Out of it.
    Left,
}

/// The net joins and leaves of a large room since it last told them.
#[derive(Default, Debug)]
pub struct PresenceDiff {
    changes: HashMap<UserId, Change, BuildHasherDefault<KeyedHasher>>,
    due_ms: Option<u64>,
}

impl PresenceDiff {
    /// Notes a change, to be told at `due_ms` unless that is promised for earlier; a change and its opposite cancel.
    pub fn note(&mut self, user: &UserId, change: Change, due_ms: u64) {
        match self.changes.get(user) {
            Some(&noted) if noted != change => {
                self.changes.remove(user);
            }
            _ => {
                self.changes.insert(user.clone(), change);
            }
        }
        self.due_ms = if self.changes.is_empty() { None } else { self.due_ms.or(Some(due_ms)) };
    }

    /// When to tell, on the tick clock; `None` if there is nothing.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// Puts off what is due.
    pub fn defer(&mut self, due_ms: u64) {
        self.due_ms = self.due_ms.map(|_| due_ms);
    }

    /// The users that went this way.
    pub fn users(&self, change: Change) -> impl Iterator<Item = &UserId> {
        self.changes.iter().filter(move |(_, noted)| **noted == change).map(|(user, _)| user)
    }

    /// Forgets all changes.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The hasher of maps whose keys carry their own keyed hash.
#[derive(Default, Debug)]
pub struct KeyedHasher(u64);

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(false, "the keys of these maps hash to one u64");
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn user(raw: &str) -> UserId {
        let id = Id::parse_raw(raw).or_else(|| Id::from_text(raw)).unwrap();
        UserId::new(&id, HashKey::new([3; 16]).hash(id.text()))
    }

    fn sorted(presence: &Presence) -> Vec<&str> {
        let mut users: Vec<&str> = presence.iter().map(UserId::text).collect();
        users.sort_unstable();
        users
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Entry>() <= 16);
    }

    #[test]
    fn only_the_first_and_the_last_connection_matter() {
        let (ana, ben) = (user("ana"), user("ben"));
        let mut presence = Presence::default();
        assert!(presence.join(A, &ana));
        assert!(!presence.join(A, &ana));
        assert!(!presence.join(B, &ana));
        assert!(presence.join(B, &ben));
        assert_eq!((presence.users(), sorted(&presence)), (2, vec!["ana", "ben"]));
        assert_eq!(presence.leave(A, &ana), Some(Left::Stays));
        assert_eq!(presence.leave(A, &ana), Some(Left::Stays));
        assert_eq!(sorted(&presence), ["ana", "ben"], "another entry of the user is listed now");
        assert_eq!(presence.leave(A, &ana), None, "nothing left of this user at that source");
        assert_eq!(presence.leave(B, &ana), Some(Left::Gone(ana)));
        assert_eq!((presence.users(), sorted(&presence)), (1, vec!["ben"]));
    }

    #[test]
    fn a_source_that_ends_is_removed_in_one_step() {
        let (ana, ben, eva) = (user("ana"), user("ben"), user("eva"));
        let mut presence = Presence::default();
        for (source, who) in [(A, &ana), (A, &ana), (A, &ben), (B, &ben), (B, &eva)] {
            presence.join(source, who);
        }
        let end = presence.end_source(A);
        assert_eq!((end.gone, end.staying), (vec![ana], vec![ben]));
        assert_eq!((presence.users(), sorted(&presence)), (2, vec!["ben", "eva"]));
    }

    #[test]
    fn the_form_of_the_first_connection_is_shown() {
        let (number, text) = (user("7"), user("\"7\""));
        let mut presence = Presence::default();
        presence.join(A, &number);
        presence.join(B, &text);
        presence.leave(A, &text);
        assert!(presence.shown(&text).unwrap().is_numeric());
        assert!(presence.iter().all(UserId::is_numeric));
    }

    #[test]
    fn a_table_shrinks_behind_those_who_left() {
        let mut presence = Presence::default();
        let users: Vec<UserId> = (0..5000).map(|n| user(&format!("u{n}"))).collect();
        users.iter().for_each(|user| assert!(presence.join(A, user)));
        for user in &users[10..] {
            assert!(matches!(presence.leave(A, user), Some(Left::Gone(_))));
        }
        assert_eq!(presence.iter().count(), 10);
        assert!(presence.entries.capacity() <= 2 * SHRINK_CAPACITY_MIN);
    }

    #[test]
    fn a_burst_goes_where_somebody_was_told() {
        let mut interest = Interest::new(3);
        interest.join(A, true);
        interest.tell_all();
        interest.join(A, false);
        interest.join(B, true);
        assert_eq!((interest.members(), interest.told(), interest.deflating()), (3, 1, 2));
        assert_eq!(interest.shards().collect::<Vec<_>>(), [A, B]);
        assert_eq!(interest.told_shards().collect::<Vec<_>>(), [A]);
        interest.leave(A, true);
        assert_eq!((interest.told_shards().count(), interest.told()), (0, 0));
        interest.end_source(B);
        assert_eq!((interest.members(), interest.shards().collect::<Vec<_>>()), (1, vec![A]));
        assert_eq!(interest.deflating(), 0);
    }

    #[test]
    fn a_diff_holds_net_changes_and_keeps_its_promise() {
        let (ana, ben, eva) = (user("ana"), user("ben"), user("eva"));
        let mut diff = PresenceDiff::default();
        diff.note(&ana, Change::Joined, 1000);
        diff.note(&ben, Change::Left, 1500);
        diff.note(&eva, Change::Left, 1600);
        diff.note(&ana, Change::Left, 1700);
        diff.note(&eva, Change::Joined, 1800);
        assert_eq!(diff.due_ms(), Some(1000));
        assert_eq!(diff.users(Change::Joined).count(), 0);
        assert_eq!(diff.users(Change::Left).collect::<Vec<_>>(), [&ben]);
        diff.note(&ben, Change::Joined, 1900);
        assert_eq!(diff.due_ms(), None);
    }
}
