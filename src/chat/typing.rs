//! Who is typing in a room, and when the others are to be told so.
//!
//! Owns the rules of pace and expiry. It decides and the room sends: a returned user or `true` is one event to be sent.
//!
//! Invariants: each typist has exactly one end in the schedule; a stop is returned only for a start that was, and once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use super::ids::{ConnId, ShardId, UserId};
use super::presence::KeyedHasher;

/// The typists of a room.
#[derive(Default, Debug)]
pub struct Typing {
    typists: HashMap<UserId, Typist, BuildHasherDefault<KeyedHasher>>,
    /// When each typist ends, the number making equal times distinct.
    ends: BTreeMap<End, UserId>,
    ends_made: u64,
    /// The times of the events sent in the last second, kept only where these are limited.
    sent_ms: VecDeque<u64>,
    /// Typists that have ended but whose stop waits for the pace.
    stops_waiting: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct End {
    at_ms: u64,
    number: u64,
}

#[derive(Debug)]
struct Typist {
    /// The connection that last sent a start.
    holder: ConnId,
    end: End,
    /// When the others were last told; `None` if they never were, and then no stop is sent either.
    told_ms: Option<u64>,
    /// It has ended, and the stop waits.
    stop_waits: bool,
}

/// What holds for a room in this moment.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The tick.
    pub now_ms: u64,
    /// How long a start lasts.
    pub typing_ms: u64,
    /// How far apart repeated starts are passed on.
    pub repeat_ms: u64,
    /// How many events are sent within a second; `None` in a small room.
    pub per_second_max: Option<u32>,
    /// Nothing is sent, because nobody would get it.
    pub silent: bool,
    /// Starts are not sent, because the room has too much to send already.
    pub full: bool,
}

const SECOND_MS: u64 = 1000;

impl Typing {
    /// `user` types, on `holder`; whether a start is to be sent.
    pub fn start(&mut self, user: &UserId, holder: ConnId, pace: Pace) -> bool {
        let may_send = !pace.silent && !pace.full && self.start_fits(pace);
        let end = self.next_end(pace.now_ms + pace.typing_ms);
        let typist =
            self.typists.entry(user.clone()).or_insert(Typist { holder, end, told_ms: None, stop_waits: false });
        self.ends.remove(&typist.end);
        self.ends.insert(end, user.clone());
        typist.end = end;
        typist.holder = holder;
        if std::mem::take(&mut typist.stop_waits) {
            // The others have not heard of the stop, so for them it has never been.
            self.stops_waiting -= 1;
        }
        let due = typist.told_ms.is_none_or(|told| pace.now_ms >= told + pace.repeat_ms);
        let send = due && may_send;
        if send {
            typist.told_ms = Some(pace.now_ms);
            self.note_sent(pace);
        }
        send
    }

    /// `user` types no longer; whether a stop is to be sent now.
    pub fn stop(&mut self, user: &UserId, pace: Pace) -> bool {
        let Some(typist) = self.typists.get_mut(user) else { return false };
        if typist.stop_waits {
            return false;
        }
        if typist.told_ms.is_none() || pace.silent || stop_fits(&mut self.sent_ms, pace) {
            let send = typist.told_ms.is_some() && !pace.silent;
            self.remove(user);
            if send {
                self.note_sent(pace);
            }
            return send;
        }
        typist.stop_waits = true;
        self.stops_waiting += 1;
        self.put_off(user, pace);
        false
    }

    /// As [`Typing::stop`], if the connection is the one that holds the typing.
    pub fn stop_held_by(&mut self, user: &UserId, conn: ConnId, pace: Pace) -> bool {
        self.typists.get(user).is_some_and(|typist| typist.holder == conn) && self.stop(user, pace)
    }

    /// As [`Typing::stop`], if a connection of the shard holds the typing.
    pub fn stop_held_on(&mut self, user: &UserId, shard: ShardId, pace: Pace) -> bool {
        self.typists.get(user).is_some_and(|typist| typist.holder.shard() == shard) && self.stop(user, pace)
    }

    /// The next user whose time is over and whose stop is to be sent. To be called until it returns `None`.
    pub fn expire(&mut self, pace: Pace) -> Option<UserId> {
        loop {
            let (end, user) = self.ends.first_key_value()?;
            if end.at_ms > pace.now_ms {
                return None;
            }
            let user = user.clone();
            let waits = self.typists.get(&user).is_some_and(|typist| typist.stop_waits);
            if !waits {
                if self.stop(&user, pace) {
                    return Some(user);
                }
            } else if pace.silent || stop_fits(&mut self.sent_ms, pace) {
                self.remove(&user);
                if !pace.silent {
                    self.note_sent(pace);
                    return Some(user);
                }
            } else {
                self.put_off(&user, pace);
            }
        }
    }

    /// When [`Typing::expire`] has something to do, on the tick clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.ends.first_key_value().map(|(end, _)| end.at_ms)
    }

    /// Forgets everybody, silently.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Checks the invariants; `present` says who is in the room.
    pub fn check_invariants(&self, present: impl Fn(&UserId) -> bool) {
        assert_eq!(self.typists.len(), self.ends.len(), "each typist has one end");
        for (end, user) in &self.ends {
            let typist = self.typists.get(user);
            assert!(typist.is_some_and(|typist| typist.end == *end), "an end belongs to a typist");
            assert!(typist.is_some_and(|typist| typist.stop_waits || present(user)), "who types is in the room");
        }
        let waiting = self.typists.values().filter(|typist| typist.stop_waits);
        assert!(waiting.clone().all(|typist| typist.told_ms.is_some()), "a stop follows a start that was sent");
        assert_eq!(waiting.count(), self.stops_waiting);
    }

    fn remove(&mut self, user: &UserId) {
        if let Some(typist) = self.typists.remove(user) {
            self.ends.remove(&typist.end);
            self.stops_waiting -= usize::from(typist.stop_waits);
        }
        if self.typists.is_empty() {
            // A room in which nobody types owns no memory for it.
            self.typists.shrink_to_fit();
        }
    }

    /// Lets a stop wait until the pace allows an event.
    fn put_off(&mut self, user: &UserId, pace: Pace) {
        let at_ms = self.sent_ms.front().map_or(pace.now_ms, |sent| *sent) + SECOND_MS;
        let end = self.next_end(at_ms);
        if let Some(typist) = self.typists.get_mut(user) {
            self.ends.remove(&typist.end);
            typist.end = end;
            self.ends.insert(end, user.clone());
        }
    }

    fn next_end(&mut self, at_ms: u64) -> End {
        self.ends_made += 1;
        End { at_ms, number: self.ends_made }
    }

    /// Stops that wait go first, or starts could hold them off for ever.
    fn start_fits(&mut self, pace: Pace) -> bool {
        let max = pace.per_second_max;
        max.is_none_or(|max| sent_in_last_second(&mut self.sent_ms, pace) + self.stops_waiting < max as usize)
    }

    fn note_sent(&mut self, pace: Pace) {
        if pace.per_second_max.is_some() {
            self.sent_ms.push_back(pace.now_ms);
        } else {
            self.sent_ms = VecDeque::new();
        }
    }
}

/// A limit of 0 still lets stops pass, or what was shown before could never end.
fn stop_fits(sent_ms: &mut VecDeque<u64>, pace: Pace) -> bool {
    pace.per_second_max.is_none_or(|max| sent_in_last_second(sent_ms, pace) < max.max(1) as usize)
}

fn sent_in_last_second(sent_ms: &mut VecDeque<u64>, pace: Pace) -> usize {
    while sent_ms.front().is_some_and(|sent| sent + SECOND_MS <= pace.now_ms) {
        sent_ms.pop_front();
    }
    sent_ms.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    fn user(name: &str) -> UserId {
        UserId::new(&Id::from_text(name).unwrap(), HashKey::new([1; 16]).hash(name))
    }

    fn conn(slot: u32) -> ConnId {
        ConnId::new(ShardId(slot as u16 % 2), 0, slot)
    }

    fn at(now_ms: u64) -> Pace {
        let (typing_ms, repeat_ms) = (10_000, 2_000);
        Pace { now_ms, typing_ms, repeat_ms, per_second_max: None, silent: false, full: false }
    }

    fn large(now_ms: u64, max: u32) -> Pace {
        Pace { per_second_max: Some(max), ..at(now_ms) }
    }

    fn expired(typing: &mut Typing, pace: Pace) -> usize {
        let count = std::iter::from_fn(|| typing.expire(pace)).count();
        typing.check_invariants(|_| true);
        count
    }

    #[test]
    fn repeated_starts_are_thinned_out_but_all_count() {
        let (mut typing, ana) = (Typing::default(), user("ana"));
        for (now_ms, sent) in [(0, true), (1, false), (1_999, false), (2_000, true), (3_999, false), (5_000, true)] {
            assert_eq!(typing.start(&ana, conn(1), at(now_ms)), sent, "{now_ms}");
        }
        typing.start(&ana, conn(1), at(6_000));
        assert_eq!(typing.next_deadline_ms(), Some(16_000));
        assert_eq!(expired(&mut typing, at(15_999)), 0);
        assert_eq!(typing.expire(at(16_000)), Some(ana.clone()));
        assert_eq!((typing.expire(at(16_000)), typing.next_deadline_ms()), (None, None));
        assert!(!typing.stop(&ana, at(16_001)), "one stop only");
    }

    #[test]
    fn a_start_after_a_stop_is_no_repetition() {
        let (mut typing, ana) = (Typing::default(), user("ana"));
        for now_ms in 0..3 {
            assert!(typing.start(&ana, conn(1), at(now_ms)));
            assert!(typing.stop(&ana, at(now_ms)));
            assert!(!typing.stop(&ana, at(now_ms)));
        }
    }

    #[test]
    fn the_last_start_holds() {
        let (mut typing, ana) = (Typing::default(), user("ana"));
        typing.start(&ana, conn(1), at(0));
        typing.start(&ana, conn(2), at(1));
        assert!(!typing.stop_held_by(&ana, conn(1), at(2)));
        assert!(!typing.stop_held_on(&ana, ShardId(1), at(2)));
        assert!(typing.stop_held_on(&ana, ShardId(0), at(2)));
        typing.start(&ana, conn(2), at(3));
        assert!(typing.stop_held_by(&ana, conn(2), at(4)));
    }

    #[test]
    fn a_start_that_was_not_sent_has_no_stop() {
        let (mut typing, ana) = (Typing::default(), user("ana"));
        for pace in [Pace { silent: true, ..at(0) }, Pace { full: true, ..at(0) }, large(0, 0)] {
            assert!(!typing.start(&ana, conn(1), pace));
            assert!(!typing.stop(&ana, at(1)));
            typing.start(&ana, conn(1), pace);
            assert_eq!(expired(&mut typing, at(10_000)), 0);
            assert_eq!(typing.next_deadline_ms(), None);
        }
        typing.start(&ana, conn(1), Pace { full: true, ..at(0) });
        assert!(typing.start(&ana, conn(1), at(1)), "the next one may be sent at once");
        assert!(typing.stop(&ana, Pace { full: true, ..at(2) }), "a stop passes where no start does");
    }

    #[test]
    fn a_large_room_sends_so_many_in_any_second() {
        let mut typing = Typing::default();
        let users: Vec<UserId> = (0..30).map(|n| user(&format!("u{n}"))).collect();
        let sent = users.iter().filter(|user| typing.start(user, conn(1), large(500, 10))).count();
        assert_eq!(sent, 10);
        assert!(users.iter().all(|user| !typing.stop(user, large(1_499, 10))), "ten stops wait");
        typing.check_invariants(|_| false);
        assert_eq!(typing.next_deadline_ms(), Some(1_500));
        assert!(!typing.start(&users[20], conn(1), large(1_500, 10)), "waiting stops go first");
        assert_eq!(expired(&mut typing, large(1_500, 10)), 10);
        assert!(!typing.start(&users[21], conn(1), large(2_499, 10)));
        assert!(typing.start(&users[21], conn(1), large(2_500, 10)));
    }

    #[test]
    fn a_start_takes_a_waiting_stop_back() {
        let (mut typing, ana, ben) = (Typing::default(), user("ana"), user("ben"));
        assert!(typing.start(&ana, conn(1), large(0, 1)));
        assert!(!typing.stop(&ana, large(10, 1)));
        assert!(!typing.start(&ana, conn(1), large(20, 1)));
        typing.check_invariants(|_| true);
        assert!(!typing.start(&ben, conn(2), large(30, 1)));
        assert_eq!(expired(&mut typing, large(1_100, 1)), 0);
        assert!(typing.stop(&ana, large(1_100, 1)));
    }
}
