//! Decides what becomes of a durable request where there is no store: new, the same again, or a conflict.
//!
//! With a store its transactions decide, by the same rules and with the same [`Verdict`]s; this one remembers in memory, for
//! a while, one for all rooms that are at home on a shard. It knows no content: what would need it is left to services, who
//! are believed, and refused to users. Nothing here knows members, bursts or replies.
//!
//! Invariants: records stand in the order in which they are forgotten; each is indexed by its id, and by its
//! `Idempotency-Key` if it had one.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::Now;
use super::ids::{HashKey, RoomName};
use super::store::{Action, Actor, Outcome, Post, Verdict, Write};
use crate::config::Limits;
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;

/// The memory of what was published, in the scope (room, id) and (room, `Idempotency-Key`).
#[derive(Debug)]
pub struct Orderer {
    key: HashKeyed,
    records: VecDeque<Record>,
    /// The number of the first record; numbers wrap around.
    first: u32,
    by_id: HashTable<Place>,
    by_key: HashTable<Place>,
}

/// One remembered message: 64 bytes and one allocation.
#[derive(Debug)]
struct Record {
    digest: u128,
    room: RoomName,
    /// The id, the timestamp and the `Idempotency-Key`, one behind the other.
    text: Box<str>,
    seq: u64,
    forget_ms: u64,
    timestamp_end: u32,
    id_end: u16,
    id_numeric: bool,
    has_key: bool,
}

/// A record's number, and the hash under which it stands, so that a growing table need not look at the record.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: u32,
    hash: u32,
}

struct HashKeyed(HashKey);

/// Records forgotten per request because their time is over: more than one comes in, and no request pays for many.
const FORGOTTEN_PER_REQUEST: usize = 8;

impl Orderer {
    /// An orderer that remembers nothing; `key` keeps its tables from being aimed at.
    pub fn new(key: HashKey) -> Self {
        let (by_id, by_key) = (HashTable::new(), HashTable::new());
        Self { key: HashKeyed(key), records: VecDeque::new(), first: 0, by_id, by_key }
    }

    /// Decides a request; if it is new it gets `next_seq`.
    pub fn decide(&mut self, now: Now, limits: &Limits, write: &Write, next_seq: u64) -> Verdict {
        let is_service = write.change.by == Actor::Service;
        match &write.change.action {
            Action::Post(post) => match self.find_post(now, &write.room, post) {
                Some(verdict) => verdict,
                None => {
                    self.record(now, limits, write, post, next_seq);
                    Verdict::New { seq: next_seq }
                }
            },
            Action::React { .. } => Verdict::New { seq: next_seq },
            Action::Edit { .. } | Action::Delete { .. } | Action::Unreact { .. } if is_service => {
                Verdict::New { seq: next_seq }
            }
            Action::RemoveRoom => Verdict::Done,
            _ => Verdict::Refused(ErrorCode::Unavailable),
        }
    }

    /// What a message is that was posted before; `None` for a new one.
    fn find_post(&mut self, now: Now, room: &RoomName, post: &Post) -> Option<Verdict> {
        self.forget_expired(now);
        let by_id = if post.id_given { self.find_id(now, room, post.id.text()) } else { None };
        let by_key = post.idempotency_key.as_deref().and_then(|key| self.find_key(now, room, key));
        match (by_id, by_key) {
            (None, None) => None,
            (Some(record), None) | (None, Some(record)) if record.digest == post.digest => {
                Some(Verdict::Same(record.outcome()))
            }
            (Some(record), Some(other)) if record.digest == post.digest && other.digest == post.digest => {
                Some(Verdict::Same(record.outcome()))
            }
            _ => Some(Verdict::Refused(ErrorCode::Conflict)),
        }
    }

    /// Remembers what a new message became, for `idempotency_ms` or until too many others came.
    fn record(&mut self, now: Now, limits: &Limits, write: &Write, post: &Post, seq: u64) {
        let room = &write.room;
        let entries_max = limits.idempotency_entries_max.min(u32::MAX as usize / 2);
        while self.records.len() >= entries_max.max(1) {
            self.forget_first();
        }
        if entries_max == 0 {
            return;
        }
        let number = self.first.wrapping_add(self.records.len() as u32);
        let id = Place { number, hash: self.key.hash(room, post.id.text()) };
        self.by_id.insert_unique(id.spread(), id, Place::spread);
        if let Some(key) = post.idempotency_key.as_deref() {
            let key = Place { number, hash: self.key.hash(room, key) };
            self.by_key.insert_unique(key.spread(), key, Place::spread);
        }
        let forget_ms = now.tick_ms.saturating_add(limits.idempotency_ms);
        self.records.push_back(Record::new(room, post, &write.outcome(seq), forget_ms));
    }

    /// How many messages are remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Checks the invariants.
    pub fn check_invariants(&self) {
        assert_eq!(self.by_id.len(), self.records.len());
        assert_eq!(self.by_key.len(), self.records.iter().filter(|record| record.has_key).count());
        let mut places = self.by_id.iter().chain(&self.by_key);
        assert!(places.all(|place| self.at(*place).is_some()), "a place names a record");
        let next = self.records.iter().skip(1);
        assert!(self.records.iter().zip(next).all(|(record, next)| record.forget_ms <= next.forget_ms));
    }

    fn find_id(&self, now: Now, room: &RoomName, id: &str) -> Option<&Record> {
        let hash = self.key.hash(room, id);
        let place = self.by_id.find(spread(hash), |place| {
            let record = self.at(*place);
            record.is_some_and(|r| r.forget_ms > now.tick_ms && r.id() == id && r.room == *room)
        })?;
        self.at(*place)
    }

    fn find_key(&self, now: Now, room: &RoomName, key: &str) -> Option<&Record> {
        let hash = self.key.hash(room, key);
        let place = self.by_key.find(spread(hash), |place| {
            let record = self.at(*place);
            record.is_some_and(|r| r.forget_ms > now.tick_ms && r.key() == Some(key) && r.room == *room)
        })?;
        self.at(*place)
    }

    fn at(&self, place: Place) -> Option<&Record> {
        self.records.get(place.number.wrapping_sub(self.first) as usize)
    }

    fn forget_expired(&mut self, now: Now) {
        for _ in 0..FORGOTTEN_PER_REQUEST {
            match self.records.front() {
                Some(record) if record.forget_ms <= now.tick_ms => self.forget_first(),
                _ => return,
            }
        }
    }

    fn forget_first(&mut self) {
        let Some(record) = self.records.pop_front() else { return };
        let number = self.first;
        self.first = self.first.wrapping_add(1);
        remove(&mut self.by_id, number, self.key.hash(&record.room, record.id()));
        if let Some(key) = record.key() {
            remove(&mut self.by_key, number, self.key.hash(&record.room, key));
        }
    }
}

impl Record {
    fn new(room: &RoomName, message: &Post, outcome: &Outcome, forget_ms: u64) -> Self {
        let key = message.idempotency_key.as_deref();
        let text = [message.id.text(), &outcome.timestamp, key.unwrap_or_default()].concat();
        let id_end = message.id.text().len();
        Self {
            digest: message.digest,
            room: room.clone(),
            seq: outcome.seq,
            forget_ms,
            timestamp_end: (id_end + outcome.timestamp.len()) as u32,
            id_end: id_end as u16,
            id_numeric: message.id.is_numeric(),
            has_key: key.is_some(),
            text: text.into(),
        }
    }

    fn id(&self) -> &str {
        self.text.get(..usize::from(self.id_end)).unwrap_or_default()
    }

    fn timestamp(&self) -> &str {
        self.text.get(usize::from(self.id_end)..self.timestamp_end as usize).unwrap_or_default()
    }

    fn key(&self) -> Option<&str> {
        if self.has_key { self.text.get(self.timestamp_end as usize..) } else { None }
    }

    fn outcome(&self) -> Outcome {
        let id = if self.id_numeric { Id::parse_raw(self.id()) } else { Id::from_text(self.id()) };
        Outcome { id, seq: self.seq, timestamp: self.timestamp().into() }
    }
}

impl Place {
    fn spread(&self) -> u64 {
        spread(self.hash)
    }
}

impl HashKeyed {
    fn hash(&self, room: &RoomName, text: &str) -> u32 {
        (self.0.hash(text) ^ room.hash_code().rotate_left(17)) as u32
    }
}

impl std::fmt::Debug for HashKeyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKeyed")
    }
}

/// The table takes its bucket from the low bits and its tag from the high ones; a product fills both.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn remove(index: &mut HashTable<Place>, number: u32, hash: u32) {
    if let Ok(entry) = index.find_entry(spread(hash), |place| place.number == number) {
        entry.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::store::Change;

    const KEY: [u8; 16] = [5; 16];

    fn room(name: &str) -> RoomName {
        RoomName::new(name, HashKey::new(KEY).hash(name))
    }

    fn now(tick_ms: u64) -> Now {
        Now { tick_ms, wall_ms: 1_700_000_000_000 + tick_ms }
    }

    fn post(here: &RoomName, id: &str, given: bool, key: Option<&str>, digest: u128) -> Write {
        let id = Id::parse_raw(id).or_else(|| Id::from_text(id)).unwrap();
        let (idempotency_key, timestamp) = (key.map(Box::from), Some("17".into()));
        let post = Post { id, id_given: given, idempotency_key, digest, timestamp, sender: None, author: None };
        write(here, Actor::Service, Action::Post(post))
    }

    fn write(here: &RoomName, by: Actor, action: Action) -> Write {
        Write { room: here.clone(), at_ms: 1, change: Change { by, prefix: b"{}".to_vec(), action } }
    }

    fn remember(orderer: &mut Orderer, at: u64, limits: &Limits, write: &Write, seq: u64) {
        assert_eq!(orderer.decide(now(at), limits, write, seq), Verdict::New { seq });
        orderer.check_invariants();
    }

    #[test]
    fn records_are_small() {
        assert!(size_of::<Record>() <= 64 && size_of::<Place>() == 8);
    }

    #[test]
    fn what_a_retry_is() {
        let (limits, here, there) = (Limits::default(), room("here"), room("there"));
        let mut orderer = Orderer::new(HashKey::new(KEY));
        remember(&mut orderer, 0, &limits, &post(&here, "a", true, None, 1), 1);
        remember(&mut orderer, 0, &limits, &post(&here, "made", false, Some("k"), 2), 2);
        remember(&mut orderer, 0, &limits, &post(&here, "b", true, Some("l"), 3), 3);
        remember(&mut orderer, 0, &limits, &post(&here, "7", true, None, 4), 4);
        for (id, given, key, digest, expected) in [
            ("a", true, None, 1, Some(1)),
            ("a", true, Some("new"), 1, Some(1)),
            ("a", true, None, 9, None),
            ("other", false, Some("k"), 2, Some(2)),
            ("other", false, Some("k"), 9, None),
            ("made", true, None, 9, None),
            ("made", true, None, 2, Some(2)),
            ("b", true, Some("l"), 3, Some(3)),
            ("b", true, Some("k"), 3, None),
            ("c", true, Some("l"), 9, None),
            ("\"7\"", true, None, 4, Some(4)),
        ] {
            let verdict = orderer.decide(now(1), &limits, &post(&here, id, given, key, digest), 5);
            match expected {
                Some(seq) => assert!(matches!(verdict, Verdict::Same(o) if o.seq == seq), "{id} {key:?} {digest}"),
                None => assert_eq!(verdict, Verdict::Refused(ErrorCode::Conflict), "{id} {key:?} {digest}"),
            }
        }
        for fresh in [post(&here, "k", true, Some("a"), 1), post(&here, "a", false, None, 1)] {
            assert_eq!(orderer.decide(now(1), &limits, &fresh, 5), Verdict::New { seq: 5 });
        }
        assert_eq!(orderer.decide(now(1), &limits, &post(&there, "a", true, None, 9), 1), Verdict::New { seq: 1 });
    }

    #[test]
    fn an_outcome_comes_back_as_it_was() {
        let (limits, here) = (Limits::default(), room("here"));
        let mut orderer = Orderer::new(HashKey::new(KEY));
        let mut first = post(&here, "7", true, Some("key"), 1);
        if let Action::Post(post) = &mut first.change.action {
            post.timestamp = Some("\"2026-01-01T00:00:00Z\"".into());
        }
        remember(&mut orderer, 0, &limits, &first, 12);
        let Verdict::Same(again) = orderer.decide(now(1), &limits, &post(&here, "x", false, Some("key"), 1), 13) else {
            panic!()
        };
        assert_eq!(again, first.outcome(12));
        assert!(again.id.unwrap().is_numeric());
    }

    #[test]
    fn what_needs_the_content_is_for_services() {
        let (limits, here) = (Limits::default(), room("here"));
        let mut orderer = Orderer::new(HashKey::new(KEY));
        let id = || Id::from_text("m").unwrap();
        let delete = |by| write(&here, by, Action::Delete { message: id() });
        assert_eq!(orderer.decide(now(0), &limits, &delete(Actor::Service), 3), Verdict::New { seq: 3 });
        let refused = Verdict::Refused(ErrorCode::Unavailable);
        assert_eq!(orderer.decide(now(0), &limits, &delete(Actor::User(id())), 3), refused);
        let read = write(&here, Actor::Service, Action::MarkRead { user: id(), seq: 1 });
        assert_eq!(orderer.decide(now(0), &limits, &read, 3), refused);
    }

    #[test]
    fn a_reaction_is_always_new() {
        let (limits, here) = (Limits::default(), room("here"));
        let mut orderer = Orderer::new(HashKey::new(KEY));
        let (message, user) = (Id::from_text("m").unwrap(), Id::from_text("u").unwrap());
        let react = Action::React { message, emoji: "x".into(), user: user.clone(), repeats: true };
        let reaction = write(&here, Actor::User(user), react);
        for seq in 1..3 {
            assert_eq!(orderer.decide(now(0), &limits, &reaction, seq), Verdict::New { seq });
        }
        assert!(orderer.is_empty());
    }

    #[test]
    fn memory_ends_with_time_and_with_number() {
        let limits = Limits { idempotency_ms: 1000, idempotency_entries_max: 3, ..Limits::default() };
        let here = room("here");
        let mut orderer = Orderer::new(HashKey::new(KEY));
        for n in 0..5 {
            remember(&mut orderer, n, &limits, &post(&here, &format!("m{n}"), true, Some(&format!("k{n}")), 1), n);
        }
        assert_eq!(orderer.len(), 3);
        for (id, at, known) in [("m2", 5, true), ("m2", 1001, true), ("m3", 1003, false), ("m1", 1003, false)] {
            let verdict = orderer.decide(now(at), &limits, &post(&here, id, true, None, 1), 9);
            assert_eq!(verdict != (Verdict::New { seq: 9 }), known, "{id}");
        }
        orderer.decide(now(9999), &limits, &post(&here, "x", true, None, 1), 9);
        assert_eq!(orderer.len(), 1);
        orderer.check_invariants();
    }

    #[test]
    fn what_is_over_but_still_held_does_not_count() {
        let limits = Limits { idempotency_ms: 1000, ..Limits::default() };
        let here = room("here");
        let mut orderer = Orderer::new(HashKey::new(KEY));
        for n in 0..20 {
            remember(&mut orderer, 0, &limits, &post(&here, &format!("m{n}"), true, None, 1), n);
        }
        remember(&mut orderer, 1000, &limits, &post(&here, "m19", true, None, 2), 20);
        let verdict = orderer.decide(now(1001), &limits, &post(&here, "m19", true, None, 2), 21);
        assert!(matches!(verdict, Verdict::Same(outcome) if outcome.seq == 20));
    }
}
