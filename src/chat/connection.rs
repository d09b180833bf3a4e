//! A connection as the shard keeps it, and the slab of them.
//!
//! What every idle connection has is small and stands here; what few have, and only for a while, is in [`Extra`] and goes
//! when it is no longer needed. The socket, its readiness and its timer link stand in arrays of their owners beside it.

use std::collections::VecDeque;

use super::http::Http;
use super::ids::{ConnId, ShardId};
use super::outbox::Outbox;
use super::slack::give_back_queue;
use super::tokens::TokenCheck;
use crate::auth::Role;
use crate::wire::decoder::Partial;

/// No user, no room, no slot.
pub const NONE: u32 = u32::MAX;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The slot belongs to nobody.
    Free,
    /// Speaks HTTP.
    Http,
    /// Upgraded; the first message has to bring a token.
    Auth,
    /// Its user's home is being asked; what the client sends stays unread.
    Admitting,
    /// A WebSocket that was greeted.
    Open,
    /// Our Close frame is on its way out; what comes in is looked through for the peer's.
    Closing,
    /// The last HTTP answer is on its way out; what comes in is thrown away.
    Lingering,
    /// To be freed at the end of the turn.
    Dead,
}

/// One room of a connection: its number on this shard, and the place in the room's list of members; or, with a mark, a
/// join under way.
#[derive(Clone, Copy, Debug)]
pub struct RoomLink {
    room: u32,
    /// The place in the list of members.
    pub index: u32,
}

/// In the room of a link: the connection missed an ephemeral event of the room.
const SHED: u32 = 1 << 31;
/// In the room of a link: a join under way, and `index` is its number.
const PENDING: u32 = 1 << 30;

impl RoomLink {
    /// The room's number on this shard.
    pub fn room(&self) -> u32 {
        self.room & !(SHED | PENDING)
    }

    fn is_free(&self) -> bool {
        self.room == NONE
    }

    fn is_member(&self) -> bool {
        self.room & PENDING == 0
    }

    fn is_pending(&self) -> bool {
        !self.is_free() && !self.is_member()
    }
}

const NO_ROOM: RoomLink = RoomLink { room: NONE, index: 0 };

/// The rooms of a connection and its joins under way, two of them without an allocation: ten thousand that join at once
/// leave no holes in the heap.
#[derive(Debug)]
pub struct Rooms {
    inline: [RoomLink; 2],
    #[expect(clippy::box_collection, reason = "a thin pointer, since few connections are in more than two rooms")]
    more: Option<Box<Vec<RoomLink>>>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { inline: [NO_ROOM; 2], more: None }
    }
}

impl Rooms {
    fn links(&self) -> impl Iterator<Item = &RoomLink> {
        self.inline.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    fn members_mut(&mut self) -> impl Iterator<Item = &mut RoomLink> {
        let links = self.inline.iter_mut().chain(self.more.iter_mut().flat_map(|more| more.iter_mut()));
        links.filter(|link| link.is_member())
    }

    /// All rooms that it is in.
    pub fn iter(&self) -> impl Iterator<Item = &RoomLink> {
        self.links().filter(|link| link.is_member())
    }

    /// How many it is in.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether it is in none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The entry of a room.
    pub fn find(&self, room: u32) -> Option<&RoomLink> {
        self.iter().find(|link| link.room() == room)
    }

    /// Adds a room that is not there yet.
    pub fn push(&mut self, room: u32, index: u32) {
        debug_assert!(self.find(room).is_none() && room < PENDING);
        self.add(RoomLink { room, index });
    }

    /// Takes a room away.
    pub fn remove(&mut self, room: u32) -> Option<RoomLink> {
        self.take(|link| link.is_member() && link.room() == room)
    }

    /// The numbers of the joins under way.
    pub fn joins(&self) -> impl Iterator<Item = u32> {
        self.links().filter(|link| link.is_pending()).map(|link| link.index)
    }

    /// The number of the join under way to a room.
    pub fn find_join(&self, room: u32) -> Option<u32> {
        self.links().find(|link| link.is_pending() && link.room() == room).map(|link| link.index)
    }

    /// Adds a join to a room to which none is under way.
    pub fn push_join(&mut self, room: u32, join: u32) {
        debug_assert!(self.find_join(room).is_none() && room < PENDING);
        self.add(RoomLink { room: room | PENDING, index: join });
    }

    /// Takes a join away, by its number.
    pub fn remove_join(&mut self, join: u32) {
        self.take(|link| link.is_pending() && link.index == join);
    }

    fn add(&mut self, link: RoomLink) {
        match self.inline.iter_mut().find(|link| link.is_free()) {
            Some(free) => *free = link,
            None => self.more.get_or_insert_default().push(link),
        }
    }

    fn take(&mut self, wanted: impl Fn(&RoomLink) -> bool) -> Option<RoomLink> {
        if let Some(link) = self.inline.iter_mut().find(|link| wanted(link)) {
            return Some(std::mem::replace(link, NO_ROOM));
        }
        let more = self.more.as_mut()?;
        let at = more.iter().position(wanted)?;
        let link = more.swap_remove(at);
        if more.is_empty() {
            self.more = None;
        }
        Some(link)
    }

    /// Notes that the connection stands elsewhere in the room's list.
    pub fn set_index(&mut self, room: u32, index: u32) {
        if let Some(link) = self.members_mut().find(|link| link.room() == room) {
            link.index = index;
        }
    }

    /// Notes that the connection missed an ephemeral event of the room.
    pub fn mark_shed(&mut self, room: u32) {
        if let Some(link) = self.members_mut().find(|link| link.room() == room) {
            link.room |= SHED;
        }
    }

    /// Clears the marks and returns the rooms that had one.
    pub fn take_shed(&mut self) -> Vec<u32> {
        let marked = self.members_mut().filter(|link| link.room & SHED != 0);
        marked
            .map(|link| {
                link.room &= !SHED;
                link.room
            })
            .collect()
    }
}

/// A `join_rooms` whose rooms are not all answered.
#[derive(Debug)]
pub struct JoinBatch {
    /// Names it among those of the connection.
    pub number: u32,
    /// The `ref`, as written.
    pub reference: Option<Box<str>>,
    /// The room's name and, once it is answered, the code of its failure.
    pub rooms: Vec<(Box<str>, Option<crate::wire::client::ErrorCode>)>,
    /// How many have no answer yet.
    pub left: usize,
}

/// What few connections have, and only for a while.
#[derive(Default)]
pub struct Extra {
    /// The HTTP side, until the upgrade.
    pub http: Option<Box<Http>>,
    /// An unfinished WebSocket frame or message.
    pub partial: Option<Box<Partial>>,
    /// Input that came while the connection was paused.
    pub tail: Vec<u8>,
    /// When what is unfinished was begun, as a tick.
    pub unfinished_ms: u64,
    /// `join_rooms` under way.
    pub batches: VecDeque<JoinBatch>,
    /// Ephemeral events that were left out since the last `shed`.
    pub shed: u32,
    /// Rooms for which a fresh `online_update` is still to be asked.
    pub refresh: Vec<u32>,
    /// Unsent bytes that the connection had missed before it came back, and is not to be blamed for.
    pub missed_bytes: usize,
    /// What the greeting and the upgrade answer need, while the user's home is asked.
    pub admission: Option<Admission>,
    /// The check of its token.
    pub check: Option<TokenCheck>,
    /// What the input pool is charged for this connection.
    pub charged: usize,
}

impl Extra {
    /// Whether nothing is left in it.
    pub fn is_default(&self) -> bool {
        self.http.is_none()
            && self.partial.is_none()
            && self.tail.is_empty()
            && self.batches.is_empty()
            && self.shed == 0
            && self.refresh.is_empty()
            && self.missed_bytes == 0
            && self.admission.is_none()
            && self.check.is_none()
            && self.charged == 0
    }
}

/// What is kept while the user's home decides on a connection.
pub struct Admission {
    /// The ready answer to the upgrade; empty when it was sent before the token came.
    pub upgrade: Vec<u8>,
    /// The token's expiry.
    pub expires_at_ms: Option<u64>,
    /// The `ref` of the `auth` message that brought the token.
    pub reference: Option<Box<str>>,
}

/// One connection of a shard.
pub struct Connection {
    /// What waits to be sent.
    pub outbox: Outbox,
    /// How often the slot had been given out before.
    pub generation: u32,
    /// How far it has come.
    pub phase: Phase,
    /// What its token allows.
    pub role: Role,
    flags: u16,
    /// The tick (250 ms) at which the peer was last heard.
    pub seen: u32,
    /// The user's number on this shard, or [`NONE`].
    pub user: u32,
    /// The tick at which it was opened.
    pub opened: u32,
    /// The rooms that it is in.
    pub rooms: Rooms,
    /// What few have.
    pub extra: Option<Box<Extra>>,
    /// When the token expires, in whole seconds since the epoch, rounded up; 0 for never.
    pub expires_at_s: u32,
    /// When the token was issued, in seconds since the epoch; 0 if it does not say.
    pub issued_at_s: u32,
    /// The theoretical arrival time of the rate limit (GCRA), in milliseconds of the tick clock, modulo 2^32.
    pub rate: u32,
}

/// A mark on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Waits in the queue of those with something direct or of a small room.
    Express = 1,
    /// Waits in the queue of large rooms.
    Bulk = 2,
    /// The socket refused bytes; it is flushed when it is writable again.
    Blocked = 4,
    /// A ping is unanswered.
    Pinged = 8,
    /// The peer has ended its side.
    EndOfInput = 16,
    /// The peer's Close frame was seen.
    PeerClosed = 32,
    /// Counted among the WebSockets of the server.
    Counted = 64,
    /// Its own side of the socket was shut.
    Shut = 128,
    /// Its input waits until it is resumed.
    Paused = 256,
    /// The last ping stood at an odd multiple of the interval.
    PingedOdd = 512,
    /// The peer has shown a certificate that is trusted.
    Certified = 1024,
    /// Its token is being checked; what the client sends stays unread.
    Checking = 2048,
}

/// Where in the flags the width of the window stands.
const WINDOW_SHIFT: u32 = 12;

impl Connection {
    /// Unsent bytes by which it is behind: what it had missed before it came back does not count.
    pub fn behind_bytes(&self) -> usize {
        let missed_bytes = self.extra.as_ref().map_or(0, |extra| extra.missed_bytes);
        self.outbox.bytes().saturating_sub(missed_bytes)
    }

    /// Whether something is to be sent, or was handed over and waits for the socket.
    pub fn has_unsent(&self) -> bool {
        !self.outbox.is_empty() || self.has(Flag::Blocked)
    }

    /// The window that it has for what is compressed, as the base-2 logarithm, 8 to 15; 0 if it takes nothing compressed.
    pub fn window_bits(&self) -> u8 {
        (self.flags >> WINDOW_SHIFT) as u8
    }

    /// Notes what was negotiated: 8 to 15, or 0.
    pub fn set_window_bits(&mut self, window_bits: u8) {
        debug_assert!(matches!(window_bits, 0 | 8..=15));
        self.flags = self.flags & !(0xf << WINDOW_SHIFT) | u16::from(window_bits) << WINDOW_SHIFT;
    }

    /// Whether permessage-deflate was negotiated.
    pub fn deflates(&self) -> bool {
        self.window_bits() > 0
    }

    /// Whether the mark is set.
    pub fn has(&self, flag: Flag) -> bool {
        self.flags & flag as u16 != 0
    }

    /// Sets the mark.
    pub fn mark(&mut self, flag: Flag) {
        self.flags |= flag as u16;
    }

    /// Removes the mark.
    pub fn unmark(&mut self, flag: Flag) {
        self.flags &= !(flag as u16);
    }

    /// The rarely needed part, made if absent.
    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Whether it is a WebSocket that no Close frame was queued for.
    pub fn may_be_told(&self) -> bool {
        matches!(self.phase, Phase::Auth | Phase::Open)
    }

    /// Whether it is an admitted WebSocket that may be sent events.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
}

/// The connections of a shard. A slot that was freed is given out again last, with another generation.
pub struct Connections {
    shard: ShardId,
    slots: Vec<Connection>,
    free: VecDeque<u32>,
}

impl Connections {
    /// An empty slab.
    pub fn new(shard: ShardId) -> Self {
        Self { shard, slots: Vec::new(), free: VecDeque::new() }
    }

    /// Gives out a slot in phase [`Phase::Http`].
    pub fn insert(&mut self, tick: u32) -> ConnId {
        let slot = self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(Connection {
                outbox: Outbox::default(),
                generation: 0,
                phase: Phase::Free,
                role: Role::User,
                flags: 0,
                seen: 0,
                user: NONE,
                opened: 0,
                rooms: Rooms::default(),
                extra: None,
                expires_at_s: 0,
                issued_at_s: 0,
                rate: 0,
            });
            (self.slots.len() - 1) as u32
        });
        let conn = &mut self.slots[slot as usize];
        conn.phase = Phase::Http;
        (conn.seen, conn.opened) = (tick, tick);
        self.id(slot)
    }

    /// Takes a slot back.
    pub fn remove(&mut self, slot: u32) {
        let conn = &mut self.slots[slot as usize];
        debug_assert!(conn.outbox.is_empty() && conn.rooms.links().all(RoomLink::is_free) && conn.user == NONE);
        conn.generation = conn.generation.wrapping_add(1);
        conn.phase = Phase::Free;
        conn.role = Role::User;
        conn.flags = 0;
        conn.extra = None;
        (conn.expires_at_s, conn.issued_at_s, conn.rate) = (0, 0, 0);
        self.free.push_back(slot);
    }

    /// The handle of a slot as it is now.
    pub fn id(&self, slot: u32) -> ConnId {
        ConnId::new(self.shard, self.slots[slot as usize].generation, slot)
    }

    /// Whether the handle still names the connection for which it was made.
    pub fn is_current(&self, conn: ConnId) -> bool {
        let slot = self.slots.get(conn.slot() as usize);
        slot.is_some_and(|c| c.phase != Phase::Free && self.id(conn.slot()) == conn)
    }

    /// All slots, the free ones included.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        self.slots.iter().enumerate().map(|(slot, conn)| (slot as u32, conn))
    }

    /// Frees what the list of free slots no longer needs.
    pub fn give_back(&mut self) {
        give_back_queue(&mut self.free);
    }

    /// Connections that exist.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots ever made: the bound of the numbers in use.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }
}

impl std::ops::Index<u32> for Connections {
    type Output = Connection;
    fn index(&self, slot: u32) -> &Connection {
        &self.slots[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Connections {
    fn index_mut(&mut self, slot: u32) -> &mut Connection {
        &mut self.slots[slot as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_keep_their_links_beyond_two() {
        let mut rooms = Rooms::default();
        (0..5).for_each(|room| rooms.push(room, room * 10));
        rooms.push_join(4, 70);
        rooms.push_join(8, 71);
        rooms.mark_shed(1);
        rooms.mark_shed(4);
        assert_eq!((rooms.len(), rooms.find(8).is_some()), (5, false));
        assert_eq!((rooms.find_join(4), rooms.find_join(1), rooms.joins().count()), (Some(70), None, 2));
        assert_eq!(rooms.take_shed(), [1, 4]);
        assert_eq!(rooms.remove(1).unwrap().index, 10);
        rooms.set_index(4, 7);
        assert_eq!(rooms.find(4).unwrap().index, 7);
        rooms.push(9, 0);
        rooms.remove_join(71);
        assert_eq!((rooms.find_join(8), rooms.find_join(4)), (None, Some(70)));
        for room in 0..10 {
            rooms.remove(room);
        }
        assert!(rooms.is_empty() && rooms.find_join(4).is_some());
        rooms.remove_join(70);
        assert!(rooms.links().all(RoomLink::is_free) && rooms.more.is_none());
    }

    #[test]
    fn an_old_handle_is_seen_as_stale() {
        let mut slab = Connections::new(ShardId(2));
        let first = slab.insert(0);
        slab.remove(first.slot());
        let second = slab.insert(0);
        assert_eq!((first.slot(), slab.is_current(first), slab.is_current(second)), (second.slot(), false, true));
    }

    #[test]
    fn the_window_stands_beside_the_marks() {
        let mut slab = Connections::new(ShardId(0));
        let slot = slab.insert(0).slot();
        for window_bits in 8..=15 {
            let conn = &mut slab[slot];
            conn.mark(Flag::PingedOdd);
            assert!(!conn.deflates() && conn.window_bits() == 0);
            conn.set_window_bits(window_bits);
            conn.unmark(Flag::PingedOdd);
            assert_eq!((conn.window_bits(), conn.flags), (window_bits, u16::from(window_bits) << WINDOW_SHIFT));
            slab.remove(slot);
            slab.insert(0);
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 80, "{}", size_of::<Connection>());
    }
}
