//! The home side of a room: it alone emits the room's events, in the order that the orderer gave.
//!
//! Asks come in (`handle_*`) and collect, in one burst, the events that they cause; [`Room::freeze`] ends the turn and hands
//! out the burst and then the replies. **Joins, leaves and answers take effect at that boundary**: the burst is for those
//! who were told before that they are members, and the answer to a joiner shows the room as it is after the burst. As what
//! goes from home to shard stays in order, a member sees each durable event exactly once.
//!
//! The home knows sources, never the connections behind them but for the one that holds a user's typing. It reads no clock
//! and sends nothing. What a join costs does not depend on how many are in the room.
//!
//! Invariants: interest equals presence, summed per shard; `seq` has no holes; a room without members has neither typists
//! nor changes to tell; each ask has exactly one reply.

use std::sync::Arc;

use super::Now;
use super::burst::{Burst, Frames, Kind, Segment};
use super::envelope::{Answer, Origin, Publish, Reply, RoomAsk, RoomSummary};
use super::ids::{ConnId, RoomName, ShardId, UserId};
use super::orderer::{Decision, Orderer, Outcome};
use super::presence::{Change, Interest, Left, Presence, PresenceDiff};
use super::typing::{Pace, Typing};
use crate::config::Limits;
use crate::wire::client::ErrorCode;
use crate::wire::deflate::Deflater;
use crate::wire::event::{self, UserEvent};
use crate::wire::websocket::{self, Opcode};

/// Most users that [`Answer::Users`] names.
pub const USERS_LISTED_MAX: usize = 10_000;

/// Most ids each way in one `presence_diff`.
const DIFF_USERS_MAX: usize = 100;

/// More than frame header, timestamp and `seq` add to the prefix of an event.
const ADDED_BYTES_MAX: usize = 96;

/// What a room needs of its surroundings while it handles something.
pub struct RoomContext<'a> {
    /// The time of the turn.
    pub now: Now,
    /// The limits.
    pub limits: &'a Limits,
    /// The memory that tells retries, shared by the rooms of a shard.
    pub orderer: &'a mut Orderer,
    /// Compresses what is sent, for those members that take it.
    pub deflater: &'a mut Deflater,
    /// The server is draining: presence and typing go on, but are told to nobody.
    pub quiet: bool,
}

/// A room at its home.
#[derive(Debug)]
pub struct Room {
    name: RoomName,
    epoch: Box<str>,
    last_seq: u64,
    presence: Presence,
    interest: Interest,
    typing: Typing,
    /// Joins and leaves are told as differences.
    large: bool,
    diff: PresenceDiff,
    /// All members are to get a fresh `online_update` at the end of the turn's burst.
    online_due: bool,
    burst: Burst,
    replies: Vec<(ShardId, Origin, Due)>,
    linger_until_ms: u64,
}

/// What is to be answered at the end of the turn.
#[derive(Debug)]
enum Due {
    Answer(Answer),
    /// To a joiner, with the time of its `user_joined`.
    Subscribed(u64),
    Online,
}

/// What a room has to say at the end of a turn: first the burst, then the replies.
#[derive(Debug)]
pub struct Frozen {
    /// The burst's segments; empty if nothing happened.
    pub segments: Arc<[Segment]>,
    /// The sum of their lengths, both variants counted.
    pub bytes: usize,
    /// The shards that get the burst: those with members that are no joiners of this turn.
    pub to: Vec<ShardId>,
    /// In the order of the asks.
    pub replies: Vec<(ShardId, Reply)>,
}

impl Room {
    /// A room that nobody is in, with sources numbered below `shards`. It is dead after the turn unless somebody joins or
    /// publishes.
    pub fn new(name: RoomName, epoch: String, shards: usize, now: Now) -> Self {
        Self {
            name,
            epoch: epoch.into(),
            last_seq: 0,
            presence: Presence::default(),
            interest: Interest::new(shards),
            typing: Typing::default(),
            large: false,
            diff: PresenceDiff::default(),
            online_due: false,
            burst: Burst::default(),
            replies: Vec::new(),
            linger_until_ms: now.tick_ms,
        }
    }

    /// Handles what a shard asks; the reply comes with the next [`Room::freeze`].
    pub fn handle_ask(&mut self, cx: &mut RoomContext<'_>, source: ShardId, origin: Origin, ask: RoomAsk) {
        let due = match ask {
            RoomAsk::Subscribe { user, again, deflates } => {
                if !again {
                    self.join(cx, source, &user, deflates);
                }
                Due::Subscribed(cx.now.wall_ms)
            }
            RoomAsk::Typing { user, start } => Due::Answer(self.type_or_stop(cx, &user, origin.conn, start)),
            RoomAsk::Publish(publish) => Due::Answer(self.publish(cx, &publish)),
            RoomAsk::Ephemeral(prefix) => Due::Answer(self.relay(cx, &prefix)),
            RoomAsk::Refresh => Due::Online,
            RoomAsk::Fence => Due::Answer(Answer::Done),
            RoomAsk::Online => {
                let users = self.presence.iter().take(USERS_LISTED_MAX).cloned().collect();
                Due::Answer(Answer::Users(users, self.presence.users()))
            }
        };
        self.replies.push((source, origin, due));
    }

    /// A connection of `user` on `source`, of which Subscribed was told, is a member no longer.
    pub fn handle_unsubscribe(
        &mut self,
        cx: &mut RoomContext<'_>,
        source: ShardId,
        user: &UserId,
        conn: ConnId,
        deflates: bool,
    ) {
        // What is not counted went with its source.
        let Some(left) = self.presence.leave(source, user) else { return };
        self.interest.leave(source, deflates);
        match left {
            Left::Stays => {
                let ended = self.typing.stop_held_by(user, conn, self.pace(cx));
                self.tell_stop_if(cx, ended, user);
            }
            Left::Gone(user) => self.tell_gone(cx, &user),
        }
        self.note_members(cx);
    }

    /// Removes all members of a source that has ended; replies to it are dropped.
    pub fn source_ended(&mut self, cx: &mut RoomContext<'_>, source: ShardId) {
        self.replies.retain(|(to, ..)| *to != source);
        self.interest.end_source(source);
        let end = self.presence.end_source(source);
        for user in &end.staying {
            let ended = self.typing.stop_held_on(user, source, self.pace(cx));
            self.tell_stop_if(cx, ended, user);
        }
        for user in &end.gone {
            self.tell_gone(cx, user);
        }
        self.note_members(cx);
    }

    /// Ends the typing whose time is over, and tells the changes of a large room when they are due.
    pub fn handle_timeout(&mut self, cx: &mut RoomContext<'_>) {
        while let Some(user) = self.typing.expire(self.pace(cx)) {
            self.tell_typing(cx, UserEvent::TypingStop, &user);
        }
        if self.diff.due_ms().is_some_and(|due| due <= cx.now.tick_ms) {
            self.tell_diff(cx);
        }
    }

    /// When [`Room::handle_timeout`], or the end of the room, is due next on the tick clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let linger = (self.interest.members() == 0).then_some(self.linger_until_ms);
        [self.typing.next_deadline_ms(), self.diff.due_ms(), linger].into_iter().flatten().min()
    }

    /// Whether the room may be forgotten: nobody is in it, nothing waits, and it has lingered long enough.
    pub fn is_dead(&self, now: Now) -> bool {
        self.interest.members() == 0 && !self.has_work() && now.tick_ms >= self.linger_until_ms
    }

    /// Whether [`Room::freeze`] has something to hand out.
    pub fn has_work(&self) -> bool {
        !self.burst.is_empty() || !self.replies.is_empty() || self.online_due
    }

    /// Ends the turn for the room. The burst is to be sent before the replies.
    pub fn freeze(&mut self, cx: &mut RoomContext<'_>) -> Frozen {
        let tell_all = std::mem::take(&mut self.online_due) && self.is_heard(cx);
        if tell_all || self.interest.told() == 0 {
            // Every member gets a list that is newer than all differences noted.
            self.diff.clear();
        }
        let due = std::mem::take(&mut self.replies);
        let ask_online = due.iter().any(|(_, _, due)| !matches!(due, Due::Answer(_)));
        let mut online = Vec::new();
        let mut frame = Vec::new();
        if tell_all || ask_online {
            self.put_online_update(cx, &mut online);
        }
        if tell_all {
            self.burst.push(Kind::Ephemeral, None, &[&online]);
        }
        if ask_online {
            websocket::put_frame(&mut frame, Opcode::Text, &[&online]);
        }
        let mut deflater = (self.interest.deflating() > 0).then_some(&mut *cx.deflater);
        let frame = Frames::new(frame.into(), deflater.as_deref_mut());
        let to = if self.burst.is_empty() { Vec::new() } else { self.interest.told_shards().collect() };
        self.interest.tell_all();
        let replies = due.into_iter().map(|(to, origin, due)| (to, Reply { origin, answer: due.answer(&frame) }));
        let replies = replies.collect();
        // What nobody is told need not be compressed.
        let segments = self.burst.freeze(deflater.filter(|_| !to.is_empty()));
        let bytes = segments.iter().map(|segment| segment.frames.bytes()).sum();
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
        Frozen { segments, bytes, to, replies }
    }

    /// Emits an event that the orderer found new, and says what to answer.
    ///
    /// Deciding and emitting are apart so that an orderer may take its time: outcomes are to be emitted in the order of
    /// their `seq`, without holes.
    pub fn emit(&mut self, cx: &mut RoomContext<'_>, publish: &Publish, outcome: Outcome) -> Answer {
        debug_assert_eq!(outcome.seq, self.last_seq + 1, "a room's sequence has no holes");
        if let Some(author) = &publish.author {
            let ended = self.typing.stop(author, self.pace(cx));
            self.tell_stop_if(cx, ended, author);
        }
        // A timestamp of the poster's own is part of the prefix.
        let mut end = Vec::with_capacity(ADDED_BYTES_MAX);
        if publish.timestamp.is_none() {
            end.extend_from_slice(b",\"timestamp\":");
            end.extend_from_slice(outcome.timestamp.as_bytes());
        }
        event::finish(&mut end, None, outcome.seq);
        self.burst.push(Kind::Durable, None, &[&publish.prefix, &end]);
        self.last_seq = outcome.seq;
        self.published(outcome, false)
    }

    /// The shards that have members.
    pub fn interested(&self) -> impl Iterator<Item = ShardId> {
        self.interest.shards()
    }

    /// The room in the list of rooms.
    pub fn summary(&self) -> RoomSummary {
        let (users, connections) = (self.users(), self.connections());
        RoomSummary { room: self.name.clone(), users, connections, last_seq: self.last_seq }
    }

    /// Distinct users in the room.
    pub fn users(&self) -> u32 {
        self.presence.users()
    }

    /// Connections in the room.
    pub fn connections(&self) -> u32 {
        self.interest.members()
    }

    /// The last `seq` emitted, 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Checks the invariants.
    pub fn check_invariants(&self) {
        self.presence.check_invariants(&self.interest);
        self.typing.check_invariants(|user| self.presence.shown(user).is_some());
        if self.interest.members() == 0 {
            assert_eq!(self.presence.users(), 0);
            assert!(self.typing.next_deadline_ms().is_none(), "nobody types in an empty room");
            assert!(!self.large && !self.online_due, "an empty room is small");
        }
        assert!(self.large || self.diff.due_ms().is_none(), "a small room has no differences to tell");
    }

    fn join(&mut self, cx: &RoomContext<'_>, source: ShardId, user: &UserId, deflates: bool) {
        self.interest.join(source, deflates);
        if self.presence.join(source, user) {
            self.tell_change(cx, user, Change::Joined);
            self.note_members(cx);
        }
    }

    fn type_or_stop(&mut self, cx: &RoomContext<'_>, user: &UserId, conn: ConnId, start: bool) -> Answer {
        let pace = self.pace(cx);
        let Some(user) = self.presence.shown(user) else { return Answer::Refused(ErrorCode::NotInRoom) };
        let user = user.clone();
        let (tell, kind) = match start {
            true => (self.typing.start(&user, conn, pace), UserEvent::TypingStart),
            false => (self.typing.stop(&user, pace), UserEvent::TypingStop),
        };
        if tell {
            self.tell_typing(cx, kind, &user);
        }
        Answer::Done
    }

    fn publish(&mut self, cx: &mut RoomContext<'_>, publish: &Publish) -> Answer {
        if self.is_full(cx, publish.prefix.len()) {
            return Answer::Refused(ErrorCode::Overloaded);
        }
        self.linger(cx);
        match cx.orderer.decide(cx.now, &self.name, publish) {
            Decision::Conflict => Answer::Refused(ErrorCode::Conflict),
            Decision::Same(outcome) => self.published(outcome, true),
            Decision::New => {
                let id = publish.message.as_ref().map(|message| message.id.clone());
                let made = || itoa::Buffer::new().format(cx.now.wall_ms).into();
                let timestamp = publish.timestamp.clone().unwrap_or_else(made);
                let outcome = Outcome { id, seq: self.last_seq + 1, timestamp };
                cx.orderer.record(cx.now, cx.limits, &self.name, publish, &outcome);
                self.emit(cx, publish, outcome)
            }
        }
    }

    fn published(&self, outcome: Outcome, replayed: bool) -> Answer {
        let Outcome { id, seq, timestamp } = outcome;
        let (users, connections) = (self.users(), self.connections());
        Answer::Published { id, seq, timestamp, replayed, users, connections }
    }

    /// Passes on an ephemeral event that was posted.
    fn relay(&mut self, cx: &RoomContext<'_>, prefix: &[u8]) -> Answer {
        if self.is_full(cx, prefix.len()) {
            return Answer::Refused(ErrorCode::Overloaded);
        }
        let connections = self.interest.told();
        if connections > 0 {
            let mut end = Vec::with_capacity(ADDED_BYTES_MAX);
            event::finish_ephemeral(&mut end, cx.now.wall_ms);
            self.burst.push(Kind::Ephemeral, None, &[prefix, &end]);
        }
        Answer::Delivered { users: self.presence.users(), connections }
    }

    /// The user's last connection has left: its typing ends before it does.
    fn tell_gone(&mut self, cx: &RoomContext<'_>, user: &UserId) {
        let ended = self.typing.stop(user, self.pace(cx));
        self.tell_stop_if(cx, ended, user);
        self.tell_change(cx, user, Change::Left);
    }

    fn tell_stop_if(&mut self, cx: &RoomContext<'_>, ended: bool, user: &UserId) {
        if ended {
            self.tell_typing(cx, UserEvent::TypingStop, user);
        }
    }

    fn tell_typing(&mut self, cx: &RoomContext<'_>, kind: UserEvent, user: &UserId) {
        let mut typing = Vec::with_capacity(128);
        let user = self.presence.shown(user).unwrap_or(user);
        event::user_event(&mut typing, kind, self.name.text(), user.as_ref(), cx.now.wall_ms);
        self.burst.push(Kind::Ephemeral, Some(user), &[&typing]);
    }

    fn tell_change(&mut self, cx: &RoomContext<'_>, user: &UserId, change: Change) {
        if cx.quiet {
            return;
        }
        if self.large {
            self.diff.note(user, change, cx.now.tick_ms + cx.limits.presence_diff_ms);
        } else if self.is_full(cx, user.text().len()) {
            // While the way out is closed the burst must not grow with each coming and going; one list says it all.
            self.online_due = true;
        } else if self.is_heard(cx) {
            let kind = if change == Change::Joined { UserEvent::Joined } else { UserEvent::Left };
            let mut presence = Vec::with_capacity(128);
            event::user_event(&mut presence, kind, self.name.text(), user.as_ref(), cx.now.wall_ms);
            self.burst.push(Kind::Ephemeral, None, &[&presence]);
        }
    }

    fn tell_diff(&mut self, cx: &RoomContext<'_>) {
        if !self.is_heard(cx) {
            // Who joins now gets a list that has it all.
            self.diff.clear();
            return;
        }
        if self.is_full(cx, 0) {
            self.diff.defer(cx.now.tick_ms + cx.limits.presence_diff_ms);
            return;
        }
        let (joined, left) = (self.diff.users(Change::Joined), self.diff.users(Change::Left));
        let truncated = [Change::Joined, Change::Left].iter().any(|way| self.diff.users(*way).count() > DIFF_USERS_MAX);
        let mut diff = Vec::with_capacity(1024);
        event::presence_diff(
            &mut diff,
            self.name.text(),
            joined.take(DIFF_USERS_MAX).map(UserId::as_ref),
            left.take(DIFF_USERS_MAX).map(UserId::as_ref),
            self.users(),
            truncated,
            cx.now.wall_ms,
        );
        self.burst.push(Kind::Ephemeral, None, &[&diff]);
        self.diff.clear();
    }

    /// The number of users has changed: the room may have become large, small or empty.
    fn note_members(&mut self, cx: &RoomContext<'_>) {
        if self.interest.members() == 0 {
            self.linger(cx);
            self.typing.clear();
            self.diff.clear();
            self.large = false;
            self.online_due = false;
            return;
        }
        let (users, limit) = (self.users() as usize, cx.limits.presence_list_limit);
        // A room that became large is small again only below 80 % of the limit, or it might change with every join.
        let large = if self.large { users * 5 >= limit * 4 } else { users > limit };
        if large != self.large {
            self.large = large;
            self.online_due = true;
            // The list that all get says what the differences would have said.
            self.diff.clear();
        }
    }

    fn linger(&mut self, cx: &RoomContext<'_>) {
        self.linger_until_ms = cx.now.tick_ms.saturating_add(cx.limits.room_linger_ms);
    }

    fn put_online_update(&self, cx: &RoomContext<'_>, out: &mut Vec<u8>) {
        let listed = if self.large { cx.limits.presence_list_limit } else { usize::MAX };
        event::online_update(
            out,
            self.name.text(),
            self.presence.iter().take(listed).map(UserId::as_ref),
            self.last_seq,
            &self.epoch,
            self.large.then(|| self.users()),
            None,
            cx.now.wall_ms,
        );
    }

    fn pace(&self, cx: &RoomContext<'_>) -> Pace {
        Pace {
            now_ms: cx.now.tick_ms,
            typing_ms: cx.limits.typing_ms,
            repeat_ms: cx.limits.typing_repeat_ms,
            per_second_max: self.large.then_some(cx.limits.typing_per_second_max),
            silent: !self.is_heard(cx),
            full: self.is_full(cx, 0),
        }
    }

    /// Whether somebody would get what presence and typing have to tell.
    fn is_heard(&self, cx: &RoomContext<'_>) -> bool {
        !cx.quiet && self.interest.told() > 0
    }

    /// Whether an event would make the burst too large. The first always fits: no event is too large for ever.
    fn is_full(&self, cx: &RoomContext<'_>, prefix_bytes: usize) -> bool {
        let bytes = self.burst.bytes() + prefix_bytes + ADDED_BYTES_MAX;
        !self.burst.is_empty() && bytes > cx.limits.burst_bytes_max
    }
}

impl Due {
    fn answer(self, frame: &Frames) -> Answer {
        match self {
            Due::Answer(answer) => answer,
            Due::Subscribed(timestamp_ms) => Answer::Subscribed { online: frame.clone(), timestamp_ms },
            Due::Online => Answer::Online(frame.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::chat::envelope::{MessageKey, ReplyTo};
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);
    const SHARDS: usize = 3;
    const WALL_MS: u64 = 1_700_000_000_000;

    fn key() -> HashKey {
        HashKey::new([9; 16])
    }

    fn user(name: &str) -> UserId {
        UserId::new(&Id::from_text(name).unwrap(), key().hash(name))
    }

    fn conn(source: ShardId, slot: u32) -> ConnId {
        ConnId::new(source, 0, slot)
    }

    fn message(id: &str, digest: u128) -> Publish {
        let prefix = format!("{{\"type\":\"new_message\",\"id\":\"{id}\"").into_bytes();
        let id = Id::from_text(id).unwrap();
        let message = Some(MessageKey { id, id_given: true, idempotency_key: None, digest });
        Publish { prefix, timestamp: None, author: None, message }
    }

    /// A room with a clock, and what it said in the last turn.
    struct World {
        room: Room,
        orderer: Orderer,
        deflater: Deflater,
        limits: Limits,
        quiet: bool,
        tick_ms: u64,
    }

    /// One turn, decoded.
    struct Turn {
        events: Vec<(Value, Kind, Option<String>)>,
        to: Vec<ShardId>,
        replies: Vec<(ShardId, Reply)>,
    }

    impl Turn {
        /// `type userId` of each event, as one text.
        fn told(&self) -> String {
            let line = |event: &Value| match (&event["userId"], &event["seq"]) {
                (Value::String(user), _) => format!("{} {user}", event["type"].as_str().unwrap()),
                (_, Value::Number(seq)) => format!("{} #{seq}", event["type"].as_str().unwrap()),
                _ => event["type"].as_str().unwrap().to_owned(),
            };
            self.events.iter().map(|(event, ..)| line(event)).collect::<Vec<_>>().join(", ")
        }

        fn answer(&self, n: usize) -> &Answer {
            &self.replies[n].1.answer
        }

        fn online(&self, n: usize) -> Value {
            match self.answer(n) {
                Answer::Subscribed { online, .. } | Answer::Online(online) => payloads(&online.plain).remove(0),
                other => panic!("{other:?}"),
            }
        }
    }

    fn payloads(mut frames: &[u8]) -> Vec<Value> {
        let mut values = Vec::new();
        while let [0x81, length, rest @ ..] = frames {
            let (length, rest) = match length {
                126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
                127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
                length => (usize::from(*length), rest),
            };
            values.push(serde_json::from_slice(&rest[..length]).unwrap());
            frames = &rest[length..];
        }
        assert!(frames.is_empty());
        values
    }

    impl World {
        fn new() -> Self {
            Self::with(Limits::default())
        }

        fn with(limits: Limits) -> Self {
            let name = RoomName::new("r", key().hash("r"));
            let room = Room::new(name, "e1".into(), SHARDS, Now { tick_ms: 0, wall_ms: WALL_MS });
            let deflater = Deflater::new(limits.deflate_threshold_bytes);
            Self { room, orderer: Orderer::new(key()), deflater, limits, quiet: false, tick_ms: 0 }
        }

        fn run<T>(&mut self, run: impl FnOnce(&mut Room, &mut RoomContext<'_>) -> T) -> T {
            let now = Now { tick_ms: self.tick_ms, wall_ms: WALL_MS + self.tick_ms };
            let (limits, orderer, quiet) = (&self.limits, &mut self.orderer, self.quiet);
            let deflater = &mut self.deflater;
            run(&mut self.room, &mut RoomContext { now, limits, orderer, deflater, quiet })
        }

        fn ask(&mut self, source: ShardId, slot: u32, ask: RoomAsk) {
            let origin = Origin { conn: conn(source, slot), to: ReplyTo::Nobody };
            self.run(|room, cx| room.handle_ask(cx, source, origin, ask));
        }

        fn join(&mut self, source: ShardId, slot: u32, name: &str) {
            self.ask(source, slot, RoomAsk::Subscribe { user: user(name), again: false, deflates: false });
        }

        fn typing(&mut self, source: ShardId, slot: u32, name: &str, start: bool) {
            self.ask(source, slot, RoomAsk::Typing { user: user(name), start });
        }

        fn leave(&mut self, source: ShardId, slot: u32, name: &str) {
            self.run(|room, cx| room.handle_unsubscribe(cx, source, &user(name), conn(source, slot), false));
        }

        fn publish(&mut self, publish: Publish) {
            self.ask(A, 0, RoomAsk::Publish(publish));
        }

        fn later(&mut self, ms: u64) -> Turn {
            self.tick_ms += ms;
            self.run(|room, cx| room.handle_timeout(cx));
            self.turn()
        }

        fn turn(&mut self) -> Turn {
            let frozen = self.run(|room, cx| room.freeze(cx));
            assert_eq!(frozen.bytes, frozen.segments.iter().map(|s| s.frames.bytes()).sum::<usize>());
            assert!(!self.room.has_work());
            let mut events = Vec::new();
            for segment in frozen.segments.iter() {
                let payloads = payloads(&segment.frames.plain);
                assert_eq!(payloads.len(), segment.events as usize);
                let exclude = segment.exclude.as_ref().map(|user| user.text().to_owned());
                events.extend(payloads.into_iter().map(|payload| (payload, segment.kind, exclude.clone())));
            }
            for (event, kind, exclude) in &events {
                assert_eq!(*kind == Kind::Durable, event["type"] == "new_message" || event["type"] == "reaction");
                let typing = event["type"].as_str().unwrap().starts_with("typing");
                assert_eq!(exclude.as_deref(), if typing { event["userId"].as_str() } else { None });
            }
            Turn { events, to: frozen.to, replies: frozen.replies }
        }

        /// Joins in a turn of its own.
        fn member(&mut self, source: ShardId, slot: u32, name: &str) {
            self.join(source, slot, name);
            self.turn();
        }

        /// A room in large mode with users u0, u1, ... on shard B.
        fn large(users: u32) -> Self {
            let mut world = World::with(Limits { presence_list_limit: 10, ..Limits::default() });
            (0..users).for_each(|n| world.join(B, n, &format!("u{n}")));
            world.turn();
            assert!(world.room.large);
            world
        }
    }

    #[test]
    fn the_first_connection_is_told_to_the_others_and_the_list_to_the_joiner() {
        let mut world = World::new();
        world.join(A, 1, "ana");
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.to.len()), ("", 0), "nobody was there to hear it");
        let expected = json!({"type": "online_update", "roomId": "r", "online": ["ana"], "seq": 0, "epoch": "e1",
            "timestamp": WALL_MS});
        assert_eq!(turn.online(0), expected);
        world.tick_ms += 5;
        world.join(B, 1, "ben");
        world.join(B, 2, "ben");
        let turn = world.turn();
        assert_eq!(turn.told(), "user_joined ben");
        assert_eq!(turn.to, [A], "no joiner of the turn gets its burst");
        assert_eq!(turn.events[0].0["timestamp"], WALL_MS + 5);
        for n in 0..2 {
            let Answer::Subscribed { timestamp_ms, online } = turn.answer(n) else { panic!() };
            assert_eq!(*timestamp_ms, WALL_MS + 5);
            let Answer::Subscribed { online: first, .. } = turn.answer(0) else { panic!() };
            assert!(Arc::ptr_eq(&online.plain, &first.plain), "one frame for all joiners");
        }
        assert_eq!((world.room.users(), world.room.connections()), (2, 3));
        world.leave(B, 1, "ben");
        assert_eq!(world.turn().told(), "");
        world.leave(B, 2, "ben");
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.to), ("user_left ben", vec![A]));
    }

    #[test]
    fn a_message_is_compressed_once_and_only_while_somebody_takes_it() {
        let mut world = World::with(Limits { deflate_threshold_bytes: 200, ..Limits::default() });
        let long =
            || Publish { prefix: format!("{{\"type\":\"x\",\"text\":\"{:500}\"", "").into_bytes(), ..message("m", 1) };
        let mut next = 0;
        let mut variants = |world: &mut World| {
            next += 1;
            let id = Id::from_text(&next.to_string()).unwrap();
            let message = MessageKey { id, id_given: true, idempotency_key: None, digest: next };
            world.publish(Publish { message: Some(message), ..long() });
            let frozen = world.run(|room, cx| room.freeze(cx));
            assert_eq!(frozen.bytes, frozen.segments.iter().map(|segment| segment.frames.bytes()).sum::<usize>());
            let deflated = frozen.segments[0].frames.deflated.clone();
            (deflated.map(|deflated| deflated.window_bits), frozen.to)
        };
        let join = |world: &mut World, source, name, deflates| {
            world.ask(source, 1, RoomAsk::Subscribe { user: user(name), again: false, deflates });
            let turn = world.turn();
            let Answer::Subscribed { online, .. } = turn.answer(0) else { panic!() };
            online.deflated.is_some()
        };
        let leave = |world: &mut World, source, name, deflates| {
            world.run(|room, cx| room.handle_unsubscribe(cx, source, &user(name), conn(source, 1), deflates));
            world.turn();
        };
        assert!(!join(&mut world, A, "ana", false));
        assert_eq!(variants(&mut world), (None, vec![A]));
        let name = "ben who has the longest name of all, so that the list of who is there is above the threshold as well, \
            name after name";
        assert!(join(&mut world, B, name, true), "the list that the joiner gets");
        assert_eq!(variants(&mut world), (Some(10), vec![A, B]), "one variant for all shards");
        assert!(join(&mut world, A, "eva", true));
        leave(&mut world, B, name, true);
        assert_eq!(variants(&mut world), (Some(10), vec![A]));
        leave(&mut world, A, "eva", true);
        assert_eq!(variants(&mut world), (None, vec![A]), "nobody takes it any more");
        assert!(join(&mut world, B, name, true));
        world.run(|room, cx| room.source_ended(cx, B));
        assert_eq!(variants(&mut world), (None, vec![A]));
        leave(&mut world, A, "ana", false);
        assert_eq!(variants(&mut world).1, []);
    }

    #[test]
    fn joining_again_only_answers() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.ask(A, 1, RoomAsk::Subscribe { user: user("ana"), again: true, deflates: false });
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.online(0)["online"].clone()), ("", json!(["ana"])));
        assert_eq!(world.room.connections(), 1);
    }

    #[test]
    fn a_message_of_the_turn_is_history_for_its_joiners() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.join(B, 1, "ben");
        world.publish(message("m", 1));
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), &turn.to), ("user_joined ben, new_message #1", &vec![A]));
        assert_eq!(turn.online(0)["seq"], 1);
        world.publish(message("n", 2));
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.to), ("new_message #2", vec![A, B]));
    }

    #[test]
    fn a_leave_and_a_join_in_one_turn_keep_their_order() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.member(B, 1, "ben");
        world.leave(B, 1, "ben");
        world.join(B, 2, "ben");
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.to), ("user_left ben, user_joined ben", vec![A]));
    }

    #[test]
    fn typing_ends_once_in_each_way() {
        type End = fn(&mut World) -> Turn;
        let ends: [(&str, &str, End); 6] = [
            ("stop from another tab", "typing_stop ana", |w| {
                w.typing(B, 2, "ana", false);
                w.turn()
            }),
            ("holder leaves", "typing_stop ana", |w| {
                w.leave(A, 1, "ana");
                w.turn()
            }),
            ("last connection leaves", "typing_stop ana, user_left ana", |w| {
                w.leave(B, 2, "ana");
                assert_eq!(w.turn().told(), "", "the other tab does not hold it");
                w.leave(A, 1, "ana");
                w.turn()
            }),
            ("own message", "typing_stop ana, new_message #1", |w| {
                w.publish(Publish { author: Some(user("ana")), ..message("m", 1) });
                w.turn()
            }),
            ("time", "typing_stop ana", |w| {
                assert_eq!(w.room.next_deadline_ms(), Some(10_000));
                assert_eq!(w.later(9_999).told(), "");
                w.later(1)
            }),
            ("source ends", "typing_stop ana, user_left eva", |w| {
                w.member(A, 3, "eva");
                w.run(|room, cx| room.source_ended(cx, A));
                w.turn()
            }),
        ];
        for (name, told, end) in ends {
            let mut world = World::new();
            world.member(A, 1, "ana");
            world.member(B, 2, "ana");
            world.member(B, 3, "ben");
            world.typing(A, 1, "ana", true);
            world.typing(A, 1, "ana", true);
            let turn = world.turn();
            assert_eq!((turn.told().as_str(), turn.replies.len()), ("typing_start ana", 2), "{name}");
            assert!(turn.replies.iter().all(|(to, reply)| *to == A && matches!(reply.answer, Answer::Done)));
            assert_eq!(end(&mut world).told(), told, "{name}");
            world.typing(B, 2, "ana", false);
            assert_eq!(world.turn().told(), "", "{name}: one stop only");
            assert_eq!(world.later(60_000).told(), "", "{name}");
        }
    }

    #[test]
    fn typing_without_being_there_is_refused() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.typing(A, 2, "ben", true);
        let turn = world.turn();
        assert_eq!(turn.told(), "");
        assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::NotInRoom)));
    }

    #[test]
    fn a_large_room_thins_typing_out() {
        let mut world = World::large(20);
        for n in 0..20 {
            world.typing(B, n, &format!("u{n}"), true);
        }
        assert_eq!(world.turn().events.len(), 10);
        for n in 0..20 {
            world.typing(B, n, &format!("u{n}"), false);
        }
        assert_eq!(world.turn().events.len(), 0);
        let told = world.later(1_000).told();
        assert_eq!(told.matches("typing_stop").count(), 10, "{told}");
        assert_eq!(world.room.next_deadline_ms(), None);
    }

    #[test]
    fn a_message_is_ordered_and_answered() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.publish(message("m", 1));
        let own = Publish { timestamp: Some("5".into()), ..message("n", 2) };
        let mut prefix = own.prefix.clone();
        prefix.extend_from_slice(b",\"timestamp\":5");
        world.publish(Publish { prefix, ..own });
        world.publish(Publish { message: None, ..message("x", 3) });
        world.publish(message("m", 1));
        world.publish(message("m", 9));
        let turn = world.turn();
        assert_eq!(turn.told(), "new_message #1, new_message #2, new_message #3");
        assert_eq!(turn.events[0].0["timestamp"], WALL_MS);
        assert_eq!(turn.events[1].0["timestamp"], 5);
        let made = WALL_MS.to_string();
        for (n, expected) in [
            (0, (Some("m"), 1, made.as_str(), false)),
            (1, (Some("n"), 2, "5", false)),
            (2, (None, 3, &made, false)),
            (3, (Some("m"), 1, &made, true)),
        ] {
            let Answer::Published { id, seq, timestamp, replayed, users, connections } = turn.answer(n) else {
                panic!()
            };
            assert_eq!((id.as_ref().map(Id::text), *seq, &**timestamp, *replayed), expected, "{n}");
            assert_eq!((*users, *connections), (1, 1));
        }
        assert!(matches!(turn.answer(4), Answer::Refused(ErrorCode::Conflict)));
        assert_eq!(world.room.last_seq(), 3);
    }

    #[test]
    fn a_full_burst_refuses_before_ordering_and_sums_presence_up() {
        let mut world = World::with(Limits { burst_bytes_max: 400, ..Limits::default() });
        world.member(A, 1, "ana");
        world.publish(Publish { prefix: vec![b' '; 500], ..message("b", 1) });
        world.publish(message("m", 1));
        world.ask(A, 0, RoomAsk::Ephemeral(b"{\"type\":\"x\"".to_vec()));
        world.join(B, 2, "ben");
        world.typing(B, 2, "ben", true);
        let before = world.room.burst.bytes();
        for slot in 0..100 {
            world.join(B, slot, "eva");
        }
        assert_eq!(world.room.burst.bytes(), before);
        assert_eq!(world.room.last_seq(), 1);
        let frozen = world.run(|room, cx| room.freeze(cx));
        let answers: Vec<&Answer> = frozen.replies.iter().map(|(_, reply)| &reply.answer).collect();
        assert!(matches!(answers[0], Answer::Published { seq: 1, .. }), "an empty burst takes any event");
        assert!(matches!(
            answers[1..3],
            [Answer::Refused(ErrorCode::Overloaded), Answer::Refused(ErrorCode::Overloaded)]
        ));
        let last = payloads(&frozen.segments.last().unwrap().frames.plain);
        assert_eq!(last.len(), 1);
        assert_eq!(last[0]["online"].as_array().unwrap().len(), 3);
        world.typing(B, 2, "ben", false);
        assert_eq!(world.turn().told(), "", "a start that was not sent has no stop");
        world.publish(message("m", 1));
        assert!(matches!(world.turn().answer(0), Answer::Published { seq: 2, replayed: false, .. }));
    }

    #[test]
    fn refresh_online_and_ephemeral_are_answered() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.ask(B, 0, RoomAsk::Ephemeral(b"{\"type\":\"x\"".to_vec()));
        world.ask(A, 1, RoomAsk::Refresh);
        world.ask(B, 0, RoomAsk::Online);
        world.join(B, 1, "ben");
        let turn = world.turn();
        assert_eq!(turn.events[0].0, json!({"type": "x", "timestamp": WALL_MS}));
        assert!(matches!(turn.answer(0), Answer::Delivered { users: 1, connections: 1 }));
        let (Answer::Online(refresh), Answer::Subscribed { online, .. }) = (turn.answer(1), turn.answer(3)) else {
            panic!()
        };
        assert!(Arc::ptr_eq(&refresh.plain, &online.plain));
        assert!(matches!(turn.answer(2), Answer::Users(users, 1) if *users == [user("ana")]));
        assert_eq!(turn.replies.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [B, A, B, B]);
    }

    #[test]
    fn a_room_becomes_large_and_small_again() {
        let mut world = World::with(Limits { presence_list_limit: 10, ..Limits::default() });
        (0..10).for_each(|n| world.member(B, n, &format!("u{n}")));
        world.join(A, 1, "u10");
        world.join(A, 2, "u11");
        let turn = world.turn();
        assert_eq!(turn.told(), "user_joined u10, online_update #0", "the second join is in the list's count");
        let list = &turn.events[1].0;
        assert_eq!((&list["count"], &list["truncated"]), (&json!(12), &json!(true)));
        assert_eq!(list["online"].as_array().unwrap().len(), 10);
        assert_eq!(&turn.online(0), list);
        for n in 0..4 {
            world.leave(B, n, &format!("u{n}"));
        }
        assert_eq!(world.turn().told(), "", "80 % is not below 80 %");
        world.leave(B, 4, "u4");
        let turn = world.turn();
        assert_eq!(turn.told(), "online_update #0");
        assert_eq!(turn.events[0].0["online"].as_array().unwrap().len(), 7);
        assert_eq!(turn.events[0].0["truncated"], Value::Null);
        assert_eq!(world.later(1_000).told(), "", "the list said it all");
        world.leave(B, 5, "u5");
        assert_eq!(world.turn().told(), "user_left u5");
    }

    #[test]
    fn a_large_room_tells_net_changes_each_second() {
        let mut world = World::large(20);
        world.join(A, 1, "new");
        world.join(A, 2, "short");
        world.turn();
        world.leave(B, 0, "u0");
        world.leave(A, 2, "short");
        assert_eq!(world.turn().told(), "");
        assert_eq!(world.room.next_deadline_ms(), Some(1_000));
        let turn = world.later(1_000);
        let expected = json!({"type": "presence_diff", "roomId": "r", "joined": ["new"], "left": ["u0"], "count": 20,
            "timestamp": WALL_MS + 1_000});
        assert_eq!(turn.events[0].0, expected);
        assert_eq!(world.later(5_000).told(), "");
        for n in 0..101 {
            world.join(A, n, &format!("v{n}"));
        }
        world.turn();
        let diff = &world.later(1_000).events[0].0;
        assert_eq!(diff["joined"].as_array().unwrap().len(), 100);
        assert_eq!((&diff["truncated"], &diff["count"]), (&json!(true), &json!(121)));
    }

    #[test]
    fn ten_thousand_joins_of_a_turn_cost_little() {
        let mut world = World::with(Limits::default());
        world.member(A, 0, "first");
        for n in 1..10_000 {
            world.join(B, n, &format!("user-{n}"));
        }
        let frozen = world.run(|room, cx| room.freeze(cx));
        assert_eq!((frozen.replies.len(), frozen.to), (9_999, vec![A]));
        assert!(frozen.bytes < 200 * 100 + 200 * 20);
        assert_eq!(world.room.users(), 10_000);
    }

    #[test]
    fn a_quiet_room_keeps_its_state_and_says_nothing_of_it() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.typing(A, 1, "ana", true);
        world.turn();
        world.quiet = true;
        world.join(B, 1, "ben");
        world.typing(B, 1, "ben", true);
        world.publish(message("m", 1));
        world.leave(A, 1, "ana");
        let turn = world.turn();
        assert_eq!(turn.told(), "new_message #1");
        assert_eq!(turn.online(0)["online"], json!(["ben"]));
        assert_eq!(world.later(60_000).told(), "");
        let mut world = World::large(20);
        world.quiet = true;
        (0..19).for_each(|n| world.leave(B, n, &format!("u{n}")));
        assert_eq!(world.turn().told() + &world.later(1_000).told(), "");
    }

    #[test]
    fn a_room_outlives_its_last_member_for_a_while() {
        let mut world = World::new();
        assert!(world.room.is_dead(Now { tick_ms: 0, wall_ms: 0 }));
        world.join(A, 1, "ana");
        assert!(world.room.has_work());
        world.turn();
        assert_eq!(world.room.next_deadline_ms(), None);
        world.tick_ms = 1_000;
        world.leave(A, 1, "ana");
        world.turn();
        assert_eq!(world.room.next_deadline_ms(), Some(301_000));
        world.tick_ms = 2_000;
        world.publish(message("m", 1));
        assert_eq!(world.turn().to, []);
        assert_eq!(world.room.next_deadline_ms(), Some(302_000));
        for (tick_ms, dead) in [(301_999, false), (302_000, true)] {
            assert_eq!(world.room.is_dead(Now { tick_ms, wall_ms: 0 }), dead);
        }
    }

    #[test]
    fn a_source_that_ends_takes_its_members_and_replies_along() {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.member(B, 1, "ana");
        world.member(B, 2, "ben");
        world.join(B, 3, "eva");
        world.run(|room, cx| room.source_ended(cx, B));
        let turn = world.turn();
        assert_eq!((turn.replies.len(), turn.to.clone()), (0, vec![A]));
        assert!(turn.told().contains("user_left ben") && !turn.told().contains("ana"), "{}", turn.told());
        assert_eq!((world.room.users(), world.room.connections()), (1, 1));
        world.leave(B, 2, "ben");
        assert_eq!(world.room.connections(), 1, "a late leave finds nothing");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Join(u8),
        Leave(u8),
        Typing(u8, bool),
        Publish(u8, bool),
        Wait(u16),
        Freeze,
        EndSource(u8),
        Quiet,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u8..48).prop_map(Op::Join),
            4 => (0u8..48).prop_map(Op::Leave),
            6 => (0u8..48, any::<bool>()).prop_map(|(n, start)| Op::Typing(n, start)),
            3 => (0u8..48, any::<bool>()).prop_map(|(n, again)| Op::Publish(n, again)),
            3 => (1u16..4_000).prop_map(Op::Wait),
            6 => Just(Op::Freeze),
            1 => (0u8..3).prop_map(Op::EndSource),
            1 => Just(Op::Quiet),
        ]
    }

    /// What a naive observer knows. Connection `n` is on shard `n % 3` and of user `n / 4`.
    #[derive(Default)]
    struct Model {
        told: BTreeSet<u8>,
        joining: BTreeSet<u8>,
        /// Users as a member sees them who was there all the time, while the room is small.
        seen: Option<BTreeSet<String>>,
        typing: BTreeSet<String>,
        seq: u64,
        ids: BTreeMap<u64, u64>,
    }

    impl Model {
        fn users(&self) -> BTreeSet<String> {
            self.told.iter().chain(&self.joining).map(|n| name(*n)).collect()
        }

        fn observe(&mut self, turn: &Turn, quiet: bool) {
            if turn.events.iter().any(|(event, ..)| event["type"] == "online_update") {
                // A turn in which the mode changes may tell what its list makes superfluous.
                self.seen = None;
            }
            for (event, ..) in &turn.events {
                let user = || event["userId"].as_str().unwrap().to_owned();
                match event["type"].as_str().unwrap() {
                    "typing_start" => assert!(!quiet),
                    "typing_stop" => assert!(self.typing.remove(&user()), "a stop has a start"),
                    "user_joined" => assert!(self.seen.as_mut().is_none_or(|seen| seen.insert(user()))),
                    "user_left" => assert!(self.seen.as_mut().is_none_or(|seen| seen.remove(&user()))),
                    "online_update" if event["truncated"].is_null() => self.seen = Some(names(&event["online"])),
                    "online_update" | "presence_diff" => self.seen = None,
                    _ => {
                        self.seq += 1;
                        assert_eq!(event["seq"], self.seq);
                    }
                }
                if event["type"] == "typing_start" {
                    self.typing.insert(user());
                }
            }
        }
    }

    fn name(n: u8) -> String {
        format!("u{}", n / 4)
    }

    fn names(list: &Value) -> BTreeSet<String> {
        list.as_array().unwrap().iter().map(|user| user.as_str().unwrap().to_owned()).collect()
    }

    fn source(n: u8) -> ShardId {
        ShardId(u16::from(n % 3))
    }

    fn freeze(world: &mut World, model: &mut Model) {
        let had_told = !model.told.is_empty();
        let to: BTreeSet<ShardId> = model.told.iter().map(|n| source(*n)).collect();
        let turn = world.turn();
        if !turn.events.is_empty() {
            assert_eq!(turn.to.iter().copied().collect::<BTreeSet<_>>(), to);
        }
        if !had_told {
            model.seen = None;
        }
        model.observe(&turn, world.quiet);
        model.told.append(&mut model.joining);
        let users = model.users();
        assert_eq!(world.room.users() as usize, users.len());
        assert_eq!(world.room.connections() as usize, model.told.len());
        for (n, (_, reply)) in turn.replies.iter().enumerate() {
            if let Answer::Subscribed { .. } = reply.answer {
                let online = turn.online(n);
                assert_eq!(online["seq"], model.seq);
                let listed = names(&online["online"]);
                assert!(
                    listed.is_subset(&users) && listed.len() == users.len().min(if world.room.large { 6 } else { 99 })
                );
                assert!(online["count"].is_null() || online["count"] == users.len());
            }
        }
        if world.quiet || users.is_empty() {
            model.seen = None;
            return;
        }
        match &model.seen {
            Some(seen) if !world.room.large => assert_eq!(*seen, users, "a member that listens knows who is there"),
            None if !world.room.large => model.seen = Some(users),
            _ => {}
        }
    }

    fn apply(world: &mut World, model: &mut Model, op: Op) {
        match op {
            Op::Join(n) if !model.told.contains(&n) && model.joining.insert(n) => {
                world.join(source(n), n.into(), &name(n));
            }
            Op::Leave(n) if model.told.remove(&n) => world.leave(source(n), n.into(), &name(n)),
            Op::Typing(n, start) if model.told.contains(&n) => world.typing(source(n), n.into(), &name(n), start),
            Op::Publish(n, again) => {
                let author = Some(user(&name(n)));
                let id = if again { u64::from(n % 4) } else { 1_000 + world.tick_ms * 64 + u64::from(n) };
                let before = world.room.last_seq();
                world.publish(Publish { author, ..message(&id.to_string(), id.into()) });
                let seq = *model.ids.entry(id).or_insert(before + 1);
                assert_eq!(world.room.last_seq(), before.max(seq));
            }
            Op::Wait(ms) => {
                world.tick_ms += u64::from(ms);
                world.run(|room, cx| room.handle_timeout(cx));
            }
            Op::Freeze => freeze(world, model),
            Op::EndSource(n) => {
                let source_ended = ShardId(n.into());
                model.told.retain(|n| source(*n) != source_ended);
                model.joining.retain(|n| source(*n) != source_ended);
                world.run(|room, cx| room.source_ended(cx, source_ended));
            }
            Op::Quiet => {
                freeze(world, model);
                world.quiet = !world.quiet;
                model.seen = None;
            }
            _ => {}
        }
        if model.told.is_empty() {
            // Nobody is left to whom a stop could be told.
            model.seen = None;
        }
        world.room.check_invariants();
        world.orderer.check_invariants();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_operations_agree_with_a_naive_model(ops in prop::collection::vec(op(), 1..120)) {
            let limits = Limits { presence_list_limit: 6, typing_per_second_max: 2, ..Limits::default() };
            let mut world = World::with(limits);
            let mut model = Model::default();
            for op in ops {
                apply(&mut world, &mut model, op);
            }
            freeze(&mut world, &mut model);
        }
    }
}
