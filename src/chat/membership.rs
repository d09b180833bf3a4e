//! Connections in rooms: joining, leaving, and handing a room's bursts to its members here.
//!
//! A join is *pending* from the Subscribe to the answer of the room's home. Its entry outlives the connection, so that for
//! each Subscribed there is exactly one Unsubscribe, and never one before it. What a connection says about a room while
//! its join is pending waits in the entry, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::burst::{Frames, Kind, Segment};
use super::connection::{Flag, JoinBatch, NONE, Phase};
use super::entry::denial;
use super::envelope::{Answer, Ask, Envelope, Origin, ReplyTo, Request, RoomAsk, Since};
use super::history::Missed;
use super::ids::{ConnId, RoomName, UserId, home};
use super::outbox::SegmentHandle;
use super::shard::Shard;
use super::store::Change;
use crate::access::{Level, Right};
use crate::chat::closing::CloseReason;
use crate::planted::{self, Bug};
use crate::wire::client::ErrorCode;
use crate::wire::event::{self, AnsweredRoom, RoomAnswer, UserEvent};
use crate::wire::websocket::Opcode;

/// More than the window of any connection.
const PLAIN_ONLY: u8 = 16;

/// More than an outbox may hold, also of what does not count as being behind: its lengths have 32 bits.
const OUTBOX_BYTES_MAX: usize = 1 << 30;

const NOT_JOINED: &str = "the room cannot be joined";

/// Rooms with more members than this on a shard are sent from the bulk queue.
const EXPRESS_MEMBERS_MAX: usize = 64;

/// A join whose answer has not come.
pub struct PendingJoin {
    pub(super) conn: ConnId,
    user: UserId,
    pub(super) room: u32,
    /// The connection is in the room already.
    again: bool,
    /// The connection takes what is compressed.
    deflates: bool,
    /// What the connection may do in the room, if its token says it.
    level: Option<Level>,
    /// The connection has gone.
    pub(super) closed: bool,
    reference: Option<Box<str>>,
    batch: Option<u32>,
    parked: VecDeque<RoomRequest>,
}

/// What a connection can ask about one room.
#[derive(Debug)]
pub struct RoomRequest {
    /// The `ref`, as written.
    pub reference: Option<Box<str>>,
    /// What it asks.
    pub action: RoomAction,
}

/// What is asked about a room.
#[derive(Debug)]
pub enum RoomAction {
    /// To come in.
    Join {
        /// The number of the `join_rooms` of which it is a part.
        batch: Option<u32>,
        /// Up to where it knows the room, if it wants to be sent what it has missed.
        since: Option<Box<Since>>,
    },
    /// To leave.
    Leave,
    /// `typing_start` or `typing_stop`.
    Typing(bool),
    /// Something durable.
    Change(Box<Change>),
}

impl RoomAction {
    /// What one must be allowed to do this; nothing is needed to leave.
    fn right(&self) -> Option<Right> {
        match self {
            Self::Join { .. } => Some(Right::Read),
            Self::Leave => None,
            Self::Typing(_) => Some(Right::Write),
            Self::Change(change) => Some(change.right()),
        }
    }

    /// Whether what a token settles, or leaves to the room's home, does not forbid this.
    fn is_allowed(&self, level: Option<Level>) -> bool {
        level.zip(self.right()).is_none_or(|(level, right)| level.allows(right))
    }
}

impl Shard {
    /// Does what a connection asks about a room, now or behind its pending join.
    pub(super) fn ask_about_room(&mut self, slot: u32, room: &str, request: RoomRequest) {
        // What was sent before this one may have closed the connection.
        if !self.connections[slot].is_open() {
            return;
        }
        if self.is_quiescing() {
            return self.refuse(slot, room, request, ErrorCode::Unavailable, "the server is stopping");
        }
        let hash = self.key.hash(room);
        let number = self.local_rooms.find_text(hash, room);
        if let Some(join) = number.and_then(|number| self.pending_join(slot, number)) {
            if planted::is(Bug::EarlyUnsubscribe) && matches!(request.action, RoomAction::Leave) {
                let (name, user) = (RoomName::new(room, hash), self.joins[join].user.clone());
                let deflates = self.connections[slot].deflates();
                self.unsubscribe(name, user, self.connections.id(slot), deflates);
            }
            let parked = &mut self.joins[join].parked;
            if parked.len() < self.config.limits.parked_messages_max {
                parked.push_back(request);
            } else {
                self.refuse(slot, room, request, ErrorCode::Overloaded, "too much is waiting behind the join");
            }
            return;
        }
        match (&request.action, number) {
            (RoomAction::Join { .. }, _) => self.join(slot, hash, room, request),
            (RoomAction::Leave, _) => self.leave(slot, number, room, request.reference),
            (_, Some(number)) if self.connections[slot].rooms.find(number).is_some() => {
                let user = self.users.id(self.connections[slot].user).clone();
                let conn = self.connections.id(slot);
                let name = self.local_rooms[number].name.clone();
                let level = self.level_in(slot, self.local_rooms[number].mode, room);
                if let Some(level) = level.filter(|_| !request.action.is_allowed(level)) {
                    let (code, text) = denial(level);
                    self.refuse(slot, room, request, code, text);
                } else if let Err(request) = self.forward(conn, &user, &name, level, request) {
                    self.refuse(slot, room, request, ErrorCode::Overloaded, "the room is busy, try again");
                }
            }
            _ => self.refuse(slot, room, request, ErrorCode::NotInRoom, "join the room first"),
        }
    }

    /// Sends what a member says about a room to the room's home.
    fn forward(
        &mut self,
        conn: ConnId,
        user: &UserId,
        room: &RoomName,
        level: Option<Level>,
        request: RoomRequest,
    ) -> Result<(), RoomRequest> {
        let to = match (&request.reference, &request.action) {
            (Some(reference), _) => ReplyTo::Reference(reference.clone(), room.clone()),
            (None, RoomAction::Change(_)) => ReplyTo::Refusal(room.clone()),
            (None, _) => ReplyTo::Nobody,
        };
        let ask = match request.action {
            RoomAction::Typing(start) => RoomAsk::Typing { user: user.clone(), start },
            RoomAction::Change(change) => RoomAsk::Change(change),
            RoomAction::Join { .. } | RoomAction::Leave => return Ok(()),
        };
        let target = home(room.hash_code(), self.shards);
        let ask = Ask::Room(room.clone(), visitor(level, user), ask);
        let posted = self.mail.request(target, Request { origin: Origin { conn, to }, ask });
        // Only what names the answer is needed of a request that could not be posted.
        posted.map_err(|_| RoomRequest { reference: request.reference, action: RoomAction::Leave })
    }

    fn join(&mut self, slot: u32, hash: u64, room: &str, request: RoomRequest) {
        let RoomRequest { reference, action } = request;
        let (batch, since) = if let RoomAction::Join { batch, since } = action { (batch, since) } else { (None, None) };
        let conn = &self.connections[slot];
        let pending = conn.rooms.joins().count();
        let limits = &self.config.limits;
        let target = home(hash, self.shards);
        let mode = self.config.access.mode_of(room);
        let level = self.level_in(slot, mode, room);
        let number = self.local_rooms.enter(hash, room, target, mode);
        let again = conn.rooms.find(number).is_some();
        let denied = level.filter(|level| !level.allows(Right::Read));
        let failure = if let Some(level) = denied {
            Some(denial(level))
        } else if !again && conn.rooms.len() + pending >= limits.rooms_per_connection_max {
            Some((ErrorCode::RoomLimit, "too many rooms on this connection"))
        } else if self.joins.len() >= limits.pending_joins_max {
            Some((ErrorCode::Overloaded, "too many joins under way, try again"))
        } else {
            let deflates = conn.deflates();
            let (conn, user) = (self.connections.id(slot), self.users.id(conn.user).clone());
            let name = self.local_rooms[number].name.clone();
            let entry = self.joins.vacant_entry();
            let join = entry.key() as u32;
            let ask = RoomAsk::Subscribe { user: user.clone(), again, deflates, since };
            let ask = Ask::Room(name, visitor(level, &user), ask);
            let posted = self.mail.request(target, Request { origin: Origin { conn, to: ReplyTo::Join(join) }, ask });
            if posted.is_ok() {
                let parked = VecDeque::new();
                let reference = reference.clone();
                let (room, closed) = (number, false);
                entry.insert(PendingJoin {
                    conn,
                    user,
                    room,
                    again,
                    deflates,
                    level,
                    closed,
                    reference,
                    batch,
                    parked,
                });
                self.connections[slot].rooms.push_join(number, join);
                self.local_rooms[number].pending += 1;
            }
            posted.err().map(|_| (ErrorCode::Overloaded, "too many requests under way, try again"))
        };
        if let Some((code, text)) = failure {
            self.local_rooms.release(number);
            let action = RoomAction::Join { batch, since: None };
            self.refuse(slot, room, RoomRequest { reference, action }, code, text);
        }
    }

    /// Leaving takes effect here at once; its answer comes from the home, behind those to what was asked before.
    fn leave(&mut self, slot: u32, number: Option<u32>, room: &str, reference: Option<Box<str>>) {
        let member = number.filter(|&number| self.connections[slot].rooms.find(number).is_some());
        let name = member.map(|number| self.local_rooms[number].name.clone());
        if let Some(number) = member {
            self.remove_member(slot, number);
        }
        let Some(reference) = reference else { return };
        let now = self.now.wall_ms;
        let posted = name.is_some_and(|name| {
            let target = home(name.hash_code(), self.shards);
            let to = ReplyTo::Reference(reference.clone(), name.clone());
            let origin = Origin { conn: self.connections.id(slot), to };
            let user = self.users.id(self.connections[slot].user);
            let visitor = visitor(self.level_in(slot, self.config.access.mode_of(room), room), user);
            self.mail.request(target, Request { origin, ask: Ask::Room(name, visitor, RoomAsk::Fence) }).is_ok()
        });
        if !posted {
            self.send_json(slot, |out| event::ack(out, Some(&reference), Some(room), now));
        }
    }

    /// The home of the room has answered a pending join.
    pub(super) fn finish_join(&mut self, number: u32, answer: Answer) {
        let Some(mut join) = self.joins.try_remove(number as usize) else { return };
        let room = self.local_rooms[join.room].name.clone();
        let slot = join.conn.slot();
        if !join.closed {
            self.connections[slot].rooms.remove_join(number);
            match answer {
                Answer::Subscribed { .. } if !self.is_still_granted(slot, &join) => {
                    if !join.again {
                        self.unsubscribe(room.clone(), join.user.clone(), join.conn, join.deflates);
                    }
                    self.answer_join(slot, &room, &join, Some(denial(Level::Nothing)));
                }
                Answer::Subscribed { .. } if join.again && self.connections[slot].rooms.find(join.room).is_none() => {
                    let failure = (ErrorCode::NotInRoom, "the room was left while it was joined again");
                    self.answer_join(slot, &room, &join, Some(failure));
                }
                Answer::Subscribed { online, timestamp_ms, missed } => {
                    if !join.again {
                        self.add_member(slot, join.room);
                    }
                    self.greet(slot, &room, &join.user, online, timestamp_ms);
                    self.send_missed(slot, missed);
                    self.answer_join(slot, &room, &join, None);
                }
                Answer::Refused(code) => self.answer_join(slot, &room, &join, Some((code, NOT_JOINED))),
                Answer::Denied(level) => self.answer_join(slot, &room, &join, Some(denial(level))),
                _ => debug_assert!(false, "a join is answered by Subscribed, Refused or Denied"),
            }
            for request in std::mem::take(&mut join.parked) {
                self.ask_about_room(slot, room.text(), request);
            }
        } else if matches!(answer, Answer::Subscribed { .. }) && !join.again {
            self.finish_for_the_gone(&mut join, &room);
        }
        // Until here the entry has kept the room's number from being given to another.
        self.local_rooms[join.room].pending -= 1;
        self.local_rooms.release(join.room);
        if self.connections.is_current(join.conn) {
            self.tidy_extra(slot);
        }
    }

    /// Whether the token that a connection has by now lets it into the room that its pending join asked for.
    fn is_still_granted(&self, slot: u32, join: &PendingJoin) -> bool {
        let room = &self.local_rooms[join.room];
        let level = self.level_in(slot, room.mode, room.name.text());
        // What was left to the home it has decided; what was not it has not looked at.
        level.map_or(join.level.is_none(), |level| level.allows(Right::Read))
    }

    /// A connection that joined, spoke and closed at once: what it said still takes effect, then it leaves.
    fn finish_for_the_gone(&mut self, join: &mut PendingJoin, room: &RoomName) {
        for request in std::mem::take(&mut join.parked) {
            if matches!(request.action, RoomAction::Leave | RoomAction::Join { .. }) {
                break;
            }
            let request = RoomRequest { reference: None, ..request };
            if request.action.is_allowed(join.level)
                && self.forward(join.conn, &join.user, room, join.level, request).is_err()
            {
                break;
            }
        }
        self.unsubscribe(room.clone(), join.user.clone(), join.conn, join.deflates);
    }

    fn greet(&mut self, slot: u32, room: &RoomName, user: &UserId, online: Frames, timestamp_ms: u64) {
        self.send_json(slot, |out| event::user_event(out, UserEvent::Joined, room.text(), user.as_ref(), timestamp_ms));
        let online = online.for_window(self.connections[slot].window_bits());
        self.send_shared(slot, online);
    }

    /// Sends what a client that came back has missed. It is linked, not copied, and does not count as being behind.
    fn send_missed(&mut self, slot: u32, missed: Option<Missed>) {
        let missed = missed.unwrap_or_default();
        let bytes: usize = missed.iter().map(|frames| frames.len()).sum();
        if bytes == 0 || !self.connections[slot].may_be_told() {
            return;
        }
        let conn = &mut self.connections[slot];
        if conn.outbox.bytes() + bytes > OUTBOX_BYTES_MAX {
            return self.close(slot, &CloseReason::SlowConsumer);
        }
        conn.extra_mut().missed_bytes += bytes;
        for frames in missed.iter() {
            let handle = self.pool.hold_once(frames);
            self.pool.link(&mut conn.outbox, handle);
            self.pool.release(handle);
        }
        self.mark_express(slot);
    }

    fn answer_join(&mut self, slot: u32, room: &RoomName, join: &PendingJoin, failure: Option<(ErrorCode, &str)>) {
        let (now, reference) = (self.now.wall_ms, join.reference.as_deref());
        if join.batch.is_some() {
            self.answer_part(slot, join.batch, room.text(), failure.map(|(code, _)| code));
            return;
        }
        match (failure, reference) {
            (None, Some(reference)) => {
                self.send_json(slot, |out| event::ack(out, Some(reference), Some(room.text()), now))
            }
            (None, None) => {}
            (Some((code, text)), reference) => self.send_error(slot, code, text, reference, Some(room.text())),
        }
    }

    /// Notes the outcome of one room of a `join_rooms`; the last one answers it.
    pub(super) fn answer_part(&mut self, slot: u32, batch: Option<u32>, room: &str, failure: Option<ErrorCode>) {
        let now = self.now.wall_ms;
        self.deny_in_room(slot, failure, room);
        let Some(extra) = &mut self.connections[slot].extra else { return };
        let Some(at) = extra.batches.iter().position(|b| Some(b.number) == batch) else { return };
        let batch = &mut extra.batches[at];
        batch.left -= 1;
        if let Some(entry) = batch.rooms.iter_mut().find(|entry| &*entry.0 == room && entry.1.is_none()) {
            entry.1 = failure;
        }
        if batch.left > 0 {
            return;
        }
        let Some(JoinBatch { reference, rooms, .. }) = extra.batches.remove(at) else { return };
        let rooms = rooms.iter().map(|(room, code)| match code {
            Some(ErrorCode::InvalidMessage) => RoomAnswer { room: AnsweredRoom::AsGiven(room), code: *code },
            _ => RoomAnswer { room: AnsweredRoom::Named(room), code: *code },
        });
        self.send_json(slot, |out| event::ack_rooms(out, reference.as_deref(), rooms, now));
    }

    fn refuse(&mut self, slot: u32, room: &str, request: RoomRequest, code: ErrorCode, text: &str) {
        match request.action {
            RoomAction::Join { batch: batch @ Some(_), .. } => self.answer_part(slot, batch, room, Some(code)),
            _ => self.send_error(slot, code, text, request.reference.as_deref(), Some(room)),
        }
    }

    fn pending_join(&self, slot: u32, room: u32) -> Option<usize> {
        self.connections[slot].rooms.find_join(room).map(|join| join as usize)
    }

    fn add_member(&mut self, slot: u32, number: u32) {
        self.churn.note();
        let room = &mut self.local_rooms[number];
        let conn = &mut self.connections[slot];
        conn.rooms.push(number, room.members.len() as u32);
        room.members.push(slot);
    }

    /// Takes a connection out of a room's list and tells the home.
    pub(super) fn remove_member(&mut self, slot: u32, number: u32) {
        let Some(link) = self.connections[slot].rooms.remove(number) else { return };
        self.churn.note();
        let room = &mut self.local_rooms[number];
        let at = link.index as usize;
        room.members.swap_remove(at);
        if let Some(&moved) = room.members.get(at) {
            self.connections[moved].rooms.set_index(number, link.index);
        }
        let name = room.name.clone();
        let (conn, deflates) = (self.connections.id(slot), self.connections[slot].deflates());
        let user = self.users.id(self.connections[slot].user).clone();
        self.local_rooms.release(number);
        self.unsubscribe(name, user, conn, deflates);
    }

    fn unsubscribe(&mut self, room: RoomName, user: UserId, conn: ConnId, deflates: bool) {
        let target = home(room.hash_code(), self.shards);
        self.mail.post(target, Envelope::Unsubscribe { room, user, conn, deflates });
    }

    /// Takes a connection out of all its rooms and marks its pending joins.
    pub(super) fn leave_all_rooms(&mut self, slot: u32) {
        let rooms: Vec<u32> = self.connections[slot].rooms.iter().map(|link| link.room()).collect();
        for number in rooms {
            self.remove_member(slot, number);
        }
        let joins: Vec<u32> = self.connections[slot].rooms.joins().collect();
        for join in joins {
            self.connections[slot].rooms.remove_join(join);
            self.joins[join as usize].closed = true;
        }
    }

    /// Hands a room's burst to its members on this shard; if it `ends` the room, nobody is a member behind it.
    pub(super) fn deliver(&mut self, room: &RoomName, segments: &[Segment], ends: bool) {
        let Some(number) = self.local_rooms.find(room) else { return };
        self.hand_out(number, segments, ends);
        if ends {
            let members = self.local_rooms[number].members.clone();
            members.into_iter().for_each(|slot| self.remove_member(slot, number));
        }
    }

    fn hand_out(&mut self, number: u32, segments: &[Segment], ends: bool) {
        let held: Vec<Held> = segments.iter().map(|segment| self.hold(segment)).collect();
        let room = &mut self.local_rooms[number];
        let bulk = room.members.len() > EXPRESS_MEMBERS_MAX;
        if bulk {
            room.ring = self.queues.ring(number, room.ring, room.members.len());
        }
        let (soft, hard) = (self.config.limits.outbox_soft_bytes, self.config.limits.outbox_hard_bytes);
        let mut slow = Vec::new();
        for &slot in &room.members {
            let conn = &mut self.connections[slot];
            let (user, window_bits) = (conn.user, conn.window_bits());
            let is_other_tab = planted::is(Bug::ExcludeConnection) && self.users.slots(user)[0] != slot;
            for segment in held.iter().filter(|segment| segment.exclude != user || is_other_tab) {
                let mut unsent = conn.outbox.bytes();
                if unsent >= soft {
                    unsent = conn.behind_bytes();
                }
                if unsent >= hard {
                    slow.push(slot);
                    break;
                }
                let handle = if segment.window_bits <= window_bits { segment.deflated } else { segment.plain };
                if segment.kind == Kind::Ephemeral && unsent > 0 && unsent + handle.bytes() > soft && !ends {
                    conn.extra_mut().shed += segment.events;
                    conn.rooms.mark_shed(number);
                } else {
                    self.pool.link(&mut conn.outbox, handle);
                }
            }
            if bulk {
                self.queues.bulk(conn, slot, room.ring);
            } else {
                self.queues.express(conn, slot);
            }
        }
        for segment in held {
            self.pool.release(segment.plain);
            if segment.window_bits != PLAIN_ONLY {
                self.pool.release(segment.deflated);
            }
        }
        slow.iter().for_each(|&slot| self.close(slot, &CloseReason::SlowConsumer));
    }

    fn hold(&mut self, segment: &Segment) -> Held {
        let exclude = segment.exclude.as_ref().and_then(|user| self.users.find(user)).unwrap_or(NONE);
        let plain = self.pool.hold(segment.frames.plain.clone());
        let (deflated, window_bits) = match &segment.frames.deflated {
            Some(deflated) => (self.pool.hold(deflated.frames.clone()), deflated.window_bits),
            None => (plain, PLAIN_ONLY),
        };
        Held { plain, deflated, window_bits, exclude, kind: segment.kind, events: segment.events }
    }

    /// Hands one frame to all connections of a user on this shard.
    pub(super) fn deliver_to_user(&mut self, user: &UserId, frames: &Frames) {
        let Some(number) = self.users.find(user) else { return };
        let (soft, hard) = (self.config.limits.outbox_soft_bytes, self.config.limits.outbox_hard_bytes);
        for slot in self.users.slots(number) {
            let conn = &mut self.connections[slot];
            let unsent = conn.behind_bytes();
            let frame = frames.clone().for_window(conn.window_bits());
            if unsent >= hard {
                self.close(slot, &CloseReason::SlowConsumer);
            } else if conn.is_open() && unsent > 0 && unsent + frame.len() > soft {
                conn.extra_mut().shed += 1;
            } else if conn.is_open() {
                self.send_shared(slot, frame);
            }
        }
    }

    /// Appends a shared frame to one connection, unless its Close frame is already queued.
    pub(super) fn send_shared(&mut self, slot: u32, frame: Arc<[u8]>) {
        if !self.connections[slot].may_be_told() {
            return;
        }
        let handle = self.pool.hold(frame);
        self.pool.link(&mut self.connections[slot].outbox, handle);
        self.pool.release(handle);
        self.mark_express(slot);
    }

    /// Appends one JSON text frame to one connection, unless its Close frame is already queued.
    pub(super) fn send_json(&mut self, slot: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.connections[slot].may_be_told() {
            return;
        }
        let mut text = Vec::with_capacity(160);
        write(&mut text);
        self.send_message(slot, Opcode::Text, &text);
    }

    /// Appends one message to one connection, compressed if that was negotiated and makes it smaller, unless its Close
    /// frame is already queued.
    pub(super) fn send_message(&mut self, slot: u32, opcode: Opcode, payload: &[u8]) {
        let conn = &mut self.connections[slot];
        if !conn.may_be_told() {
            return;
        }
        let window_bits = conn.window_bits();
        let behind = conn.behind_bytes() >= self.config.limits.outbox_hard_bytes;
        let deflater = &mut self.deflater;
        self.pool.append_direct(&mut conn.outbox, |out| deflater.put_message(out, opcode, payload, window_bits));
        self.mark_express(slot);
        if behind {
            // It asks and asks, and reads no answer.
            self.close(slot, &CloseReason::SlowConsumer);
        }
    }

    /// Closes those furthest behind when what waits to be sent fills one of its pools. Called once a turn, when nothing
    /// else is being done to a connection; those whose socket has not refused anything are not behind.
    pub(super) fn keep_within_output_pools(&mut self) {
        let limits = &self.config.limits;
        let segments_max = limits.segment_pool_bytes / self.shards;
        let direct_max = limits.direct_pool_bytes / self.shards;
        if self.pool.shared_bytes() <= segments_max && self.pool.direct_bytes() <= direct_max {
            return;
        }
        let blocked = self.connections.iter().filter(|(_, conn)| conn.has(Flag::Blocked));
        let mut behind: Vec<(usize, u32)> = blocked.map(|(slot, conn)| (conn.outbox.bytes(), slot)).collect();
        behind.sort_unstable_by(|a, b| b.cmp(a));
        let (segments, direct) = (self.pool.shared_bytes(), self.pool.direct_bytes());
        tracing::warn!(shard = self.id.0, segments, segments_max, direct, direct_max, "an output pool is full");
        for (_, slot) in behind {
            let has_room = |held: usize, max: usize| held <= max - max / 10;
            if has_room(self.pool.shared_bytes(), segments_max) && has_room(self.pool.direct_bytes(), direct_max) {
                break;
            }
            match self.connections[slot].phase {
                Phase::Auth | Phase::Open => self.close(slot, &CloseReason::SlowConsumer),
                _ => self.kill(slot),
            }
        }
    }
}

/// The user who goes along to the home of a room, for it to find out what the user may.
fn visitor(level: Option<Level>, user: &UserId) -> Option<UserId> {
    level.is_none().then(|| user.clone())
}

/// A segment in the pool of this shard while it is handed out.
struct Held {
    plain: SegmentHandle,
    /// The plain one again where there is no other.
    deflated: SegmentHandle,
    /// The window that the deflated one needs, or [`PLAIN_ONLY`].
    window_bits: u8,
    exclude: u32,
    kind: Kind,
    events: u32,
}
