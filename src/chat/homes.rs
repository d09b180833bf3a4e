//! The home side of rooms on a shard: finding them, asking them, and sending their bursts at the end of the turn.

use hashbrown::HashTable;
use slab::Slab;

use super::connection::{Flag, NONE, Phase};
use super::envelope::{
    Answer, Ask, ConnectionSummary, Disconnect, Envelope, Origin, Reply, Request, RoomAsk, ShardAsk,
};
use super::ids::{ConnId, HashKey, RoomName, ShardId, UserId};
use super::job::Question;
use super::orderer::Orderer;
use super::permits::Permits;
use super::room::{Asked, Room, RoomContext};
use super::shard::Shard;
use super::slack::{give_back_list, give_back_slab, give_back_table};
use super::store::{Asker, Done, Found, Job, Verdict};
use super::wheel::{TICK_MS, Wheel};
use crate::access::Permit;
use crate::chat::closing::CloseReason;
use crate::planted::{self, Bug};
use crate::wire::client::ErrorCode;

/// Places that one page of rooms looks at, so that many empty rooms do not hold up a turn.
const ROOMS_LOOKED_AT_MAX: u32 = 10_000;

/// Places that one turn looks at for histories to cut.
const HISTORIES_LOOKED_AT_MAX: usize = 4_096;

struct Entry {
    /// Apart, so that a room that goes leaves no more than a thin place.
    room: Box<Room>,
    name: RoomName,
    /// In the list of those to be frozen, or held back by a shut window.
    dirty: bool,
}

/// The rooms at home on a shard.
pub struct RoomHomes {
    table: HashTable<u32>,
    entries: Slab<Entry>,
    dirty: Vec<u32>,
    blocked: Vec<u32>,
    wheel: Wheel,
    orderer: Orderer,
    permits: Permits,
    /// What the histories of all rooms hold.
    history_bytes: usize,
    /// The room whose history is next to be cut when they hold too much.
    cut_next: usize,
}

impl RoomHomes {
    /// No rooms yet.
    pub fn new(key: HashKey, permits_max: usize) -> Self {
        Self {
            table: HashTable::new(),
            entries: Slab::new(),
            dirty: Vec::new(),
            blocked: Vec::new(),
            wheel: Wheel::default(),
            orderer: Orderer::new(key),
            permits: Permits::new(permits_max),
            history_bytes: 0,
            cut_next: 0,
        }
    }

    /// Whether a room has something to send.
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Frees what the lists of rooms no longer need.
    pub fn give_back(&mut self) {
        give_back_list(&mut self.dirty);
        give_back_list(&mut self.blocked);
        give_back_slab(&mut self.entries);
        let entries = &self.entries;
        give_back_table(&mut self.table, |&n| entries[n as usize].name.hash_code());
    }

    /// Has the room of this number, if there is one, [compact](Room::compact) its tables; `None` behind the last number.
    pub fn compact(&mut self, number: u32) -> Option<usize> {
        let place = number as usize;
        if place >= self.entries.capacity() {
            return None;
        }
        let Some(entry) = self.entries.try_remove(place) else { return Some(0) };
        let (mut scattered, name, dirty) = (entry.room, entry.name, entry.dirty);
        let moved = scattered.compact();
        // The place that was freed last is the one that is taken next.
        let taken = self.entries.insert(Entry { room: Box::new(*scattered), name, dirty });
        debug_assert_eq!(taken, place);
        Some(moved)
    }

    /// A window has opened: those that waited try again.
    pub fn unblock(&mut self) {
        self.dirty.append(&mut self.blocked);
    }

    /// When a room's timer fires next, on the tick clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.wheel.next_ms()
    }

    /// How many rooms.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All rooms.
    pub fn iter(&self) -> impl Iterator<Item = &Room> {
        self.entries.iter().map(|(_, entry)| &*entry.room)
    }

    /// Checks each room, and that a room that has something to say is in one of the lists.
    pub fn check_invariants(&self) {
        self.iter().for_each(Room::check_invariants);
        self.wheel.check_invariants();
        self.permits.check_invariants();
        let history_bytes: usize = self.iter().map(Room::history_bytes).sum();
        assert_eq!(history_bytes, self.history_bytes, "the account of the histories is their sum");
        let listed = self.dirty.len() + self.blocked.len();
        assert_eq!(self.entries.iter().filter(|(_, entry)| entry.dirty).count(), listed);
        assert!(self.entries.iter().all(|(_, entry)| entry.dirty || !entry.room.has_work()));
    }

    fn find(&self, name: &RoomName) -> Option<u32> {
        self.table.find(name.hash_code(), |&n| self.entries[n as usize].name == *name).copied()
    }

    fn insert(&mut self, name: &RoomName, room: Room) -> u32 {
        let number = self.entries.insert(Entry { room: Box::new(room), name: name.clone(), dirty: false }) as u32;
        let entries = &self.entries;
        self.table.insert_unique(name.hash_code(), number, |&n| entries[n as usize].name.hash_code());
        number
    }

    fn remove(&mut self, number: u32) {
        self.wheel.cancel(number);
        let Entry { room, name, .. } = self.entries.remove(number as usize);
        self.history_bytes -= room.history_bytes();
        if let Ok(found) = self.table.find_entry(name.hash_code(), |&n| n == number) {
            found.remove();
        }
    }

    /// Forgets older halves of histories, in turn, until all together hold at most `bytes_max`; or for as long as one
    /// turn may look.
    fn cut_histories(&mut self, bytes_max: usize) {
        for _ in 0..HISTORIES_LOOKED_AT_MAX {
            if self.history_bytes <= bytes_max {
                return;
            }
            if let Some(entry) = self.entries.get_mut(self.cut_next) {
                self.history_bytes -= entry.room.cut_history();
            }
            self.cut_next = if self.cut_next < self.entries.capacity() { self.cut_next + 1 } else { 0 };
        }
    }

    fn mark_dirty(&mut self, number: u32) {
        let entry = &mut self.entries[number as usize];
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(number);
        }
    }
}

impl Shard {
    /// Answers what this shard is asked.
    pub(super) fn handle_request(&mut self, from: ShardId, request: Request) {
        let Request { origin, ask } = request;
        match ask {
            Ask::Room(room, visitor, ask) => {
                self.handle_room_ask(&room, Asked { source: from, origin, visitor, ask });
            }
            Ask::User(user, ask) => self.handle_user_ask(from, origin, &user, ask),
            Ask::Address(address) => self.handle_address_ask(from, origin, address),
            Ask::Shard(ask) => {
                let answer = self.handle_shard_ask(ask);
                self.mail.reply(from, Reply { origin, answer });
            }
        }
    }

    fn handle_room_ask(&mut self, name: &RoomName, asked: Asked) {
        let number = match self.rooms.find(name) {
            Some(number) => number,
            None => {
                let answer = match asked.ask {
                    RoomAsk::Online if asked.visitor.is_none() => Some(Answer::Users(Vec::new(), 0)),
                    RoomAsk::Ephemeral(_) => Some(Answer::Delivered { users: 0, connections: 0 }),
                    RoomAsk::Fence => Some(Answer::Done),
                    _ if self.rooms.len() >= self.config.limits.rooms_max.div_ceil(self.shards) => {
                        Some(Answer::Refused(ErrorCode::Overloaded))
                    }
                    _ => None,
                };
                if let Some(answer) = answer {
                    return self.mail.reply(asked.source, Reply { origin: asked.origin, answer });
                }
                self.make_room(name)
            }
        };
        self.with_room(number, |room, cx| room.handle_ask(cx, asked));
        self.rooms.mark_dirty(number);
    }

    fn make_room(&mut self, name: &RoomName) -> u32 {
        let facts = self.desk.facts().map(|facts| facts.epoch.clone());
        let in_store = facts.is_some();
        let epoch = facts.unwrap_or_else(|| format!("{:016x}", self.random() as u64).into());
        let mode = self.config.access.mode_of(name.text());
        let room = Room::new(name.clone(), epoch, mode, self.shards, self.now, in_store);
        self.rooms.insert(name, room)
    }

    /// A shard has removed a user from a room.
    pub(super) fn handle_removed(&mut self, from: ShardId, name: &RoomName, number: u32) {
        let Some(room) = self.rooms.find(name) else { return };
        self.with_room(room, |room, _| room.handle_removed(from, number));
        self.rooms.mark_dirty(room);
    }

    /// A connection on shard `from` is no longer in the room.
    pub(super) fn handle_unsubscribe(
        &mut self,
        from: ShardId,
        name: &RoomName,
        user: &UserId,
        conn: ConnId,
        deflates: bool,
    ) {
        let Some(number) = self.rooms.find(name) else { return };
        self.with_room(number, |room, cx| room.handle_unsubscribe(cx, from, user, conn, deflates));
        self.rooms.mark_dirty(number);
    }

    /// Ends what is due in the rooms: typing, presence differences, rooms that nobody needs any more.
    pub(super) fn handle_room_timers(&mut self) {
        let mut fired = Vec::new();
        self.rooms.wheel.expire(self.now.tick_ms, &mut fired);
        for number in fired {
            self.with_room(number, |room, cx| room.handle_timeout(cx));
            self.rooms.mark_dirty(number);
        }
    }

    /// Freezes the bursts of the turn and posts them, and behind each what the room has answered.
    pub fn freeze(&mut self) {
        for number in std::mem::take(&mut self.rooms.dirty) {
            let entry = &self.rooms.entries[number as usize];
            if !entry.room.interested().all(|shard| self.mail.is_window_open(shard)) {
                self.rooms.blocked.push(number);
                continue;
            }
            let mut frozen = self.with_room(number, |room, cx| room.freeze(cx));
            if planted::is(Bug::JoinBeforeFreeze) {
                std::mem::take(&mut frozen.replies).into_iter().for_each(|(to, reply)| self.mail.reply(to, reply));
            }
            let entry = &mut self.rooms.entries[number as usize];
            entry.dirty = false;
            for target in frozen.to {
                let (segments, bytes) = (frozen.segments.clone(), frozen.bytes);
                let (room, ends) = (entry.name.clone(), frozen.ends);
                self.mail.post(target, Envelope::Burst { room, segments, bytes, ends });
            }
            for (target, user, frame) in frozen.to_users {
                self.mail.post(target, Envelope::ToUser { user, frame });
            }
            for (target, reply) in frozen.replies {
                self.mail.reply(target, reply);
            }
            // Behind the answers, so that nobody comes in by one of them afterwards.
            for (target, user, number) in frozen.removals {
                self.mail.post(target, Envelope::Remove { room: entry.name.clone(), user, number });
            }
            if entry.room.is_dead(self.now) {
                self.rooms.remove(number);
                self.churn.note();
            } else if let Some(due_ms) = entry.room.next_deadline_ms() {
                self.rooms.wheel.set(number, due_ms);
            }
        }
        self.rooms.cut_histories(self.config.limits.history_pool_bytes / self.shards);
        self.keep_within_output_pools();
    }

    /// Takes an answer of the store.
    pub(super) fn handle_stored(&mut self, done: Done) {
        match done {
            Done::Written(mut verdicts) => {
                if planted::is(Bug::VerdictsReordered) {
                    verdicts.reverse();
                }
                for verdict in verdicts {
                    let Some(entrusted) = self.desk.take_written() else {
                        debug_assert!(false, "each verdict has a write");
                        return;
                    };
                    let number = entrusted.room;
                    self.with_room(number, |room, cx| room.handle_verdict(cx, entrusted, verdict));
                    self.rooms.mark_dirty(number);
                }
            }
            Done::Found(Asker::Room(number), found) => {
                self.desk.note_found();
                self.with_room(number, |room, cx| room.handle_found(cx, found));
                self.rooms.mark_dirty(number);
            }
            Done::Found(Asker::Member(number, user), found) => {
                self.desk.note_found();
                self.with_room(number, |room, cx| room.handle_member(cx, &user, &found));
                self.rooms.mark_dirty(number);
            }
            Done::Found(Asker::Connection(origin), found) => {
                self.desk.note_found();
                self.handle_reply(Reply { origin, answer: Answer::Found(found) });
            }
            Done::FeedMoved => self.handle_feed_moved(),
            Done::Revoked(revoke, is_kept) => {
                self.desk.note_found();
                self.finish_revoke(&revoke, is_kept);
            }
        }
    }

    /// Takes what the ERP says about a user and a room, if it could be asked.
    pub(super) fn handle_permitted(&mut self, question: &Question, permit: Option<Permit>) {
        self.errands.note_answered(&question.user);
        self.with_room(question.number, |room, cx| room.handle_permit(cx, &question.user, permit));
        self.rooms.mark_dirty(question.number);
    }

    /// The store is gone, and the answer with it.
    pub(super) fn handle_unstored(&mut self, job: Job) {
        match job {
            Job::Write(writes) => {
                let refused = Verdict::Refused(ErrorCode::Unavailable);
                self.handle_stored(Done::Written(vec![refused; writes.len()]));
            }
            Job::Read(asker, _) => self.handle_stored(Done::Found(asker, Found::Failed)),
            Job::WatchFeed(_) => self.handle_feed_unwatched(),
            Job::Revoke(revoke) => self.handle_stored(Done::Revoked(revoke, false)),
        }
    }

    fn with_room<T>(&mut self, number: u32, act: impl FnOnce(&mut Room, &mut RoomContext<'_>) -> T) -> T {
        // Before the first connection is closed anywhere, so that no shard tells of those that another closes.
        let quiet = self.is_quiescing();
        let RoomHomes { entries, orderer, permits, history_bytes, .. } = &mut self.rooms;
        let (limits, deflater) = (&self.config.limits, &mut self.deflater);
        let (desk, errands) = (&mut self.desk, &mut self.errands);
        let (now, key) = (self.now, self.key);
        let mut cx = RoomContext { now, limits, number, key, orderer, desk, errands, permits, deflater, quiet };
        let room = &mut entries[number as usize].room;
        let before = room.history_bytes();
        let result = act(room, &mut cx);
        *history_bytes = *history_bytes - before + room.history_bytes();
        result
    }

    fn handle_shard_ask(&mut self, ask: ShardAsk) -> Answer {
        match ask {
            ShardAsk::Rooms { from, limit } => self.list_rooms(from, limit),
            ShardAsk::Connections(user) => {
                let slots = self.slots_of(&user);
                Answer::Connections(slots.into_iter().map(|slot| self.summary(slot)).collect())
            }
            ShardAsk::Silence(user) => {
                let tick = self.tick();
                let silence = |slot: u32| u64::from(tick.wrapping_sub(self.connections[slot].seen)) * TICK_MS;
                let slots = self.slots_of(&user);
                Answer::Silence(slots.into_iter().map(|slot| (self.connections.id(slot), silence(slot))).collect())
            }
            ShardAsk::Disconnect(order) => Answer::Disconnected(self.disconnect(&order)),
        }
    }

    fn list_rooms(&self, from: u32, limit: u32) -> Answer {
        let mut found = Vec::new();
        let end = self.rooms.entries.capacity() as u32;
        for number in from..end.min(from.saturating_add(ROOMS_LOOKED_AT_MAX)) {
            let Some(entry) = self.rooms.entries.get(number as usize) else { continue };
            if entry.room.connections() == 0 {
                continue;
            }
            if found.len() == limit as usize {
                return Answer::Rooms(found, Some(number));
            }
            found.push(entry.room.summary());
        }
        let next = from.saturating_add(ROOMS_LOOKED_AT_MAX);
        Answer::Rooms(found, (next < end).then_some(next))
    }

    fn slots_of(&self, user: &UserId) -> Vec<u32> {
        let slots = self.users.find(user).map(|number| self.users.slots(number)).unwrap_or_default();
        slots.into_iter().filter(|&slot| self.connections[slot].is_open()).collect()
    }

    fn summary(&self, slot: u32) -> ConnectionSummary {
        let rooms = self.connections[slot].rooms.iter().map(|link| self.local_rooms[link.room()].name.clone());
        ConnectionSummary {
            connection_id: self.key.connection_id(self.connections.id(slot)),
            connected_at_ms: self.connected_at_ms(slot),
            rooms: rooms.collect(),
        }
    }

    fn disconnect(&mut self, order: &Disconnect) -> u32 {
        if let Some(before_ms) = order.revoke_before_ms {
            self.revocations.insert(order.user.text(), before_ms);
        }
        let slots = self.users.find(&order.user).map(|number| self.users.slots(number)).unwrap_or_default();
        let mut count = 0;
        for slot in slots {
            let conn = &self.connections[slot];
            // Cut to seconds, which is what tokens give.
            let issued_ms = u64::from(conn.issued_at_s) * 1000;
            let meant = order.revoke_before_ms.is_none_or(|before_ms| issued_ms < before_ms)
                && order
                    .connection_id
                    .as_ref()
                    .is_none_or(|id| self.key.connection_id(self.connections.id(slot)) == *id);
            if meant && matches!(conn.phase, Phase::Open | Phase::Admitting) {
                count += 1;
                self.close(slot, &CloseReason::Removed(order.reason.clone()));
            }
        }
        count
    }

    /// Asks for a fresh `online_update` of each room of which the connection missed events.
    pub(super) fn ask_refresh(&mut self, slot: u32) {
        let conn = self.connections.id(slot);
        let Some(extra) = &mut self.connections[slot].extra else { return };
        let mut wanted = std::mem::take(&mut extra.refresh);
        wanted.retain(|&number| {
            if self.connections[slot].rooms.find(number).is_none() {
                return false;
            }
            let room = self.local_rooms[number].name.clone();
            let target = self.local_rooms[number].home;
            let origin = Origin { conn, to: super::envelope::ReplyTo::Refresh(room.clone()) };
            self.mail.request(target, Request { origin, ask: Ask::Room(room, None, RoomAsk::Refresh) }).is_err()
        });
        // What could not be asked now is asked when the connection has sent something again.
        self.connections[slot].extra_mut().refresh = wanted;
        self.tidy_extra(slot);
    }

    /// Takes an answer to something that this shard had asked.
    pub(super) fn handle_reply(&mut self, reply: Reply) {
        use super::envelope::ReplyTo;
        let Reply { origin, answer } = reply;
        let is_current = self.connections.is_current(origin.conn);
        let slot = origin.conn.slot();
        match origin.to {
            ReplyTo::Join(join) => self.finish_join(join, answer),
            ReplyTo::Eviction(user) => self.finish_silence(&user, answer),
            // The connection is gone; a late answer to a slot that has a new owner is nobody's.
            _ if !is_current && !planted::is(Bug::LateAnswer) => {}
            ReplyTo::Nobody => {}
            ReplyTo::Address => self.finish_address(slot, &answer),
            ReplyTo::Admission => self.finish_admission(slot, answer),
            ReplyTo::Reference(reference, room) => self.answer_request(slot, Some(&reference), &room, &answer),
            ReplyTo::Refusal(room) => self.answer_request(slot, None, &room, &answer),
            ReplyTo::Refresh(room) => self.finish_refresh(slot, &room, answer),
            ReplyTo::Rest(number) => self.answer_http(slot, number, None, answer),
            ReplyTo::RestPart(number, part) => self.answer_http(slot, number, Some(part), answer),
        }
    }

    fn finish_refresh(&mut self, slot: u32, room: &RoomName, answer: Answer) {
        let number = self.local_rooms.find(room).unwrap_or(NONE);
        let conn = &mut self.connections[slot];
        let (Answer::Online(frame), true) = (answer, conn.is_open() && conn.rooms.find(number).is_some()) else {
            return;
        };
        let frame = frame.for_window(conn.window_bits());
        // Behind again: then the next time it has caught up.
        if conn.has(Flag::Blocked) && conn.behind_bytes() + frame.len() > self.config.limits.outbox_soft_bytes {
            conn.extra_mut().refresh.push(number);
            return;
        }
        self.send_shared(slot, frame);
    }
}
