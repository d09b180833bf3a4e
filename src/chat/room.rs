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
//! What the room has to do with the store stands in `durable`, what those get who come back in `recovery`, and who is let in
//! in `gate`.
//!
//! Invariants: interest equals presence, summed per shard; `seq` has no holes; a room without members has neither typists
//! nor changes to tell; each ask has exactly one reply.

mod durable;
mod gate;
mod receipts;
mod recovery;

use std::sync::Arc;

use super::Now;
use super::burst::{Burst, Frames, Kind, Segment};
use super::desk::Desk;
use super::envelope::{Answer, Origin, Reply, RoomAsk, RoomSummary, Since};
use super::errands::Errands;
use super::history::History;
use super::ids::{ConnId, HashKey, RoomName, ShardId, UserId};
use super::orderer::Orderer;
use super::permits::Permits;
use super::presence::{Change, Interest, Left, Presence, PresenceDiff};
use super::typing::{Pace, Typing};
use crate::access::Mode;
use crate::config::Limits;
use crate::planted::{self, Bug};
use crate::wire::client::ErrorCode;
use crate::wire::deflate::Deflater;
use crate::wire::event::{self, UserEvent};

use durable::StoreSide;
use gate::Gate;
use receipts::Receipts;

/// Most users that [`Answer::Users`] names.
pub const USERS_LISTED_MAX: usize = 10_000;

/// Most ids each way in one `presence_diff`.
const DIFF_USERS_MAX: usize = 100;

/// More than frame header, timestamps and `seq` add to the prefix of an event.
const ADDED_BYTES_MAX: usize = 128;

/// So long at most a room without members is kept whose events are in the store.
const STORED_LINGER_MS: u64 = 10_000;

/// What a room needs of its surroundings while it handles something.
pub struct RoomContext<'a> {
    /// The time of the turn.
    pub now: Now,
    /// The limits.
    pub limits: &'a Limits,
    /// The room's number on its shard.
    pub number: u32,
    /// The key of all maps.
    pub key: HashKey,
    /// Where there is no store, the memory that tells retries, shared by the rooms of a shard.
    pub orderer: &'a mut Orderer,
    /// The way to the store, if there is one.
    pub desk: &'a mut Desk,
    /// The way to the ERP, which may have to be asked who may enter.
    pub errands: &'a mut Errands,
    /// What it has said.
    pub permits: &'a mut Permits,
    /// Compresses what is sent, for those members that take it.
    pub deflater: &'a mut Deflater,
    /// The server is draining: presence and typing go on, but are told to nobody.
    pub quiet: bool,
}

/// Something asked of a room, on its way through it.
#[derive(Debug)]
pub struct Asked {
    /// The shard that asks.
    pub source: ShardId,
    /// Its question.
    pub origin: Origin,
    /// For whom, where it is for the room to find out whether the one may.
    pub visitor: Option<UserId>,
    /// What.
    pub ask: RoomAsk,
}

/// A room at its home.
#[derive(Debug)]
pub struct Room {
    name: RoomName,
    epoch: Box<str>,
    /// The last `seq` that was emitted.
    last_seq: u64,
    /// The last `seq` that left with a burst.
    told_seq: u64,
    history: History,
    store: StoreSide,
    /// Where it is for the room to find out who may enter.
    gate: Option<Box<Gate>>,
    receipts: Receipts,
    presence: Presence,
    interest: Interest,
    typing: Typing,
    /// Joins and leaves are told as differences.
    large: bool,
    diff: PresenceDiff,
    /// All members are to get a fresh `online_update` at the end of the turn's burst.
    online_due: bool,
    /// Behind this turn's burst nobody is in the room any more.
    ends: bool,
    burst: Burst,
    replies: Vec<(ShardId, Origin, Due)>,
    linger_until_ms: u64,
}

/// What is to be answered at the end of the turn.
#[derive(Debug)]
enum Due {
    Answer(Answer),
    /// To a joiner, with the time of its `user_joined`, and up to where it knows the room.
    Subscribed(u64, Option<Box<Since>>),
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
    /// Behind the burst nobody is in the room any more.
    pub ends: bool,
    /// Frames for all connections of a user on a shard.
    pub to_users: Vec<(ShardId, UserId, Frames)>,
    /// In the order of the asks.
    pub replies: Vec<(ShardId, Reply)>,
    /// Users who may not be in the room any more, each with the number of the removal; to be sent behind the replies.
    pub removals: Vec<(ShardId, UserId, u32)>,
}

impl Room {
    /// A room that nobody is in, with sources numbered below `shards`. It is dead after the turn unless somebody joins or
    /// publishes. With a store its last `seq` is asked for before anything else.
    pub fn new(name: RoomName, epoch: Box<str>, mode: Option<Mode>, shards: usize, now: Now, in_store: bool) -> Self {
        Self {
            name,
            epoch,
            last_seq: 0,
            told_seq: 0,
            history: History::default(),
            store: StoreSide::new(in_store),
            gate: Gate::of(mode),
            receipts: Receipts::default(),
            presence: Presence::default(),
            interest: Interest::new(shards),
            typing: Typing::default(),
            large: false,
            diff: PresenceDiff::default(),
            online_due: false,
            ends: false,
            burst: Burst::default(),
            replies: Vec::new(),
            linger_until_ms: now.tick_ms,
        }
    }

    /// Moves what a storm of joins has left scattered over the heap; returns how many entries that took.
    pub fn compact(&mut self) -> usize {
        self.burst.compact();
        self.presence.compact()
    }

    /// Handles what a shard asks; the reply comes with the next [`Room::freeze`], or once the store has answered.
    pub fn handle_ask(&mut self, cx: &mut RoomContext<'_>, asked: Asked) {
        if !self.store.is_known() {
            return self.wait_for_position(cx, asked);
        }
        if let Some(asked) = self.pass(cx, asked) {
            self.handle_passed(cx, asked);
        }
    }

    /// Handles what is asked by somebody who may.
    fn handle_passed(&mut self, cx: &mut RoomContext<'_>, asked: Asked) {
        let Asked { source, origin, visitor, ask } = asked;
        let due = match ask {
            RoomAsk::Subscribe { user, again, deflates, since } => {
                if since.as_ref().is_some_and(|since| self.must_read(cx, since)) {
                    let ask = RoomAsk::Subscribe { user, again, deflates, since };
                    return self.park(Asked { source, origin, visitor, ask });
                }
                if !again {
                    self.join(cx, source, &user, deflates);
                }
                if let Some(visitor) = &visitor {
                    self.look_again_at(cx, visitor);
                }
                Due::Subscribed(cx.now.wall_ms, since)
            }
            RoomAsk::Typing { user, start } => Due::Answer(self.type_or_stop(cx, &user, origin.conn, start)),
            RoomAsk::Change(change) => match self.change(cx, source, &origin, *change) {
                Some(answer) => Due::Answer(answer),
                None => return,
            },
            RoomAsk::Ephemeral(prefix) => Due::Answer(self.relay(cx, &prefix)),
            RoomAsk::Refresh => Due::Online,
            RoomAsk::Fence | RoomAsk::MayRead => Due::Answer(Answer::Done),
            RoomAsk::Position => Due::Answer(Answer::Position { epoch: self.epoch.clone(), last_seq: self.last_seq }),
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
            Left::Gone(user) => {
                self.tell_gone(cx, &user);
                self.forget_visitor(&user);
            }
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
            self.forget_visitor(user);
        }
        self.end_removals_of(source);
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
        self.tell_due_receipts(cx);
        self.look_again(cx);
        self.ask_again(cx);
    }

    /// When [`Room::handle_timeout`], or the end of the room, is due next on the tick clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let linger = (self.interest.members() == 0 && !self.is_waiting()).then_some(self.linger_until_ms);
        let own = [self.typing.next_deadline_ms(), self.diff.due_ms(), linger];
        own.into_iter().chain([self.receipts.due_ms(), self.store.due_ms(), self.gate_due_ms()]).flatten().min()
    }

    /// Whether the room may be forgotten: nobody is in it, nothing waits, and it has lingered long enough.
    pub fn is_dead(&self, now: Now) -> bool {
        let is_idle = self.interest.members() == 0 && !self.has_work() && !self.is_waiting();
        is_idle && now.tick_ms >= self.linger_until_ms
    }

    /// Whether [`Room::freeze`] has something to hand out.
    pub fn has_work(&self) -> bool {
        !self.burst.is_empty()
            || !self.replies.is_empty()
            || self.online_due
            || self.ends
            || self.receipts.has_private()
            || self.has_removals()
    }

    /// Whether something that it has asked for is still to come.
    fn is_waiting(&self) -> bool {
        self.store.is_busy() || self.gate.as_ref().is_some_and(|gate| gate.is_busy())
    }

    /// Ends the turn for the room. The burst is to be sent before the replies.
    pub fn freeze(&mut self, cx: &mut RoomContext<'_>) -> Frozen {
        let tell_all = std::mem::take(&mut self.online_due) && self.is_heard(cx);
        if tell_all || self.interest.told() == 0 {
            // Every member gets a list that is newer than all differences noted.
            self.diff.clear();
        }
        if tell_all {
            let mut online = Vec::new();
            self.put_online_update(cx, None, &mut online);
            self.burst.push(Kind::Ephemeral, None, &[&online]);
        }
        let ends = std::mem::take(&mut self.ends) && self.interest.told() > 0;
        if ends {
            self.tell_removal(cx);
        }
        let to = if self.burst.is_empty() { Vec::new() } else { self.interest.told_shards().collect() };
        self.interest.tell_all();
        // What nobody is told need not be compressed.
        let deflater = (self.interest.deflating() > 0 && !to.is_empty()).then_some(&mut *cx.deflater);
        let segments = self.burst.freeze(deflater);
        self.remember(cx, &segments);
        let replies = self.answer_all(cx);
        let bytes = segments.iter().map(|segment| segment.frames.bytes()).sum();
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
        let to_users = self.receipts.take_private();
        let removals = self.take_removals();
        Frozen { segments, bytes, to, ends, to_users, replies, removals }
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

    /// Bytes of recent events that it keeps.
    pub fn history_bytes(&self) -> usize {
        self.history.bytes()
    }

    /// Forgets the older half of its recent events; returns the bytes that this frees.
    pub fn cut_history(&mut self) -> usize {
        self.history.forget_half()
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
        if self.burst.is_empty() {
            assert_eq!(self.told_seq, self.last_seq, "what is emitted is in the burst, or was told");
        }
        self.history.check_invariants(self.told_seq);
        self.check_gate();
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
        let linger_ms = cx.limits.room_linger_ms;
        // What the store knows as well need not be kept for long.
        let linger_ms = if cx.desk.facts().is_some() { linger_ms.min(STORED_LINGER_MS) } else { linger_ms };
        self.linger_until_ms = cx.now.tick_ms.saturating_add(linger_ms);
    }

    fn put_online_update(&self, cx: &RoomContext<'_>, recovered: Option<bool>, out: &mut Vec<u8>) {
        let listed = if self.large { cx.limits.presence_list_limit } else { usize::MAX };
        event::online_update(
            out,
            self.name.text(),
            self.presence.iter().take(listed).map(UserId::as_ref),
            self.last_seq + u64::from(planted::is(Bug::JoinedAtAssigned) && self.store.is_writing()),
            &self.epoch,
            self.large.then(|| self.users()),
            recovered,
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
        let before = self.burst.bytes() + self.store.write_bytes();
        before > 0 && before + prefix_bytes + ADDED_BYTES_MAX > cx.limits.burst_bytes_max
    }
}

#[cfg(test)]
mod gate_tests;
#[cfg(test)]
mod tests;
