//! What one shard tells another.
//!
//! Three kinds, each bounded in its own way. A *request* takes a credit of its (source, target) pair, and whoever has
//! none refuses it. A *reply* gives the credit back, so replies are bounded by requests. An *obligation* (a member that
//! left, a burst) is never refused: the first is bounded by the memberships that there are, the second by a window of
//! bytes per pair. So is a revocation that the store keeps, which takes a credit that may not be there; the desk of the
//! store bounds those. What users owe is told once a second, and not at all to a shard whose mailbox is full.

use std::sync::Arc;

use super::address_homes::AddressKey;
use super::burst::{Frames, Segment};
use super::history::Missed;
use super::ids::{ConnId, RoomName, ShardId, UserId};
use super::rates::Debts;
use super::store::{Change, Found};
use crate::access::Level;
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;

/// All that one shard has for another at the end of a turn: one message, one wake.
#[derive(Debug)]
pub struct Batch {
    /// The shard that sends.
    pub from: ShardId,
    /// In the order in which they take effect.
    pub envelopes: Vec<Envelope>,
    /// Credits given back to the receiver of this batch.
    pub credits: u32,
    /// Bytes of bursts of the receiver that the sender has taken over, for the receiver's window.
    pub window_bytes: usize,
}

/// One thing that a shard tells another.
#[derive(Debug)]
pub enum Envelope {
    /// Takes a credit and has exactly one reply.
    Request(Request),
    /// Answers a request.
    Reply(Reply),
    /// A connection of `user` on the sending shard is no longer in the room.
    Unsubscribe {
        /// The room, at home at the receiver.
        room: RoomName,
        /// Whose connection.
        user: UserId,
        /// Which one, for what it holds in the room.
        conn: ConnId,
        /// Whether it took what is compressed.
        deflates: bool,
    },
    /// A room's events for the members on the receiving shard.
    Burst {
        /// The room, at home at the sender.
        room: RoomName,
        /// The same list for every interested shard.
        segments: Arc<[Segment]>,
        /// The sum of the segments' lengths, both variants counted.
        bytes: usize,
        /// Behind it nobody is in the room any more.
        ends: bool,
    },
    /// No connection of `user` may be in the room any more; [`Envelope::Removed`] answers it.
    Remove {
        /// The room, at home at the sender.
        room: RoomName,
        /// Whose connections.
        user: UserId,
        /// Names the removal at the room.
        number: u32,
    },
    /// A removal has taken effect on the sending shard, behind what it made leave.
    Removed {
        /// The room, at home at the receiver.
        room: RoomName,
        /// The removal.
        number: u32,
    },
    /// An admitted connection of `user` has ended.
    UserGone {
        /// The user, at home at the receiver.
        user: UserId,
        /// Which connection.
        conn: ConnId,
        /// What the user owes on the sending shard, and has taken there since it was told last.
        debts: Option<Box<Debts>>,
    },
    /// What a user has taken on the sending shard in the last second, who takes much; once a second at most for each.
    Taken {
        /// The user, at home at the receiver.
        user: UserId,
        /// What was taken, and up to when it is paid for.
        told: Box<Debts>,
    },
    /// What a user owes in all, to a shard that has just told what was taken there.
    Owed {
        /// The user, at home at the sender.
        user: UserId,
        /// Up to when everything is paid for.
        known: Box<Debts>,
    },
    /// A connection that was asked for at the home of its address, and is counted there, no longer is.
    AddressGone {
        /// The address, at home at the receiver.
        address: AddressKey,
    },
    /// Close a connection because its user has a newer one in its place.
    Replace {
        /// The connection, owned by the receiver.
        conn: ConnId,
    },
    /// One frame for all connections of a user on the receiving shard.
    ToUser {
        /// The user.
        user: UserId,
        /// A whole text frame.
        frame: Frames,
    },
}

impl Envelope {
    /// What it takes of the window from its sender to its receiver.
    pub fn window_bytes(&self) -> usize {
        match self {
            Self::Burst { bytes, .. } => *bytes,
            Self::ToUser { frame, .. } => frame.bytes(),
            _ => 0,
        }
    }
}

/// Where an answer goes.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The connection that asked.
    pub conn: ConnId,
    /// Which of its questions.
    pub to: ReplyTo,
}

/// Which question of a connection an answer belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyTo {
    /// None: only the credit comes back.
    Nobody,
    /// A WebSocket request with this `ref`, as written; and the room that it is about.
    Reference(Box<str>, RoomName),
    /// A WebSocket request about this room without a `ref`: the answer is told if it is a refusal.
    Refusal(RoomName),
    /// The REST request with this number.
    Rest(u32),
    /// Part `.1` of the REST request `.0`.
    RestPart(u32, u32),
    /// The pending join with this number.
    Join(u32),
    /// Whether its address may have the connection.
    Address,
    /// The connection's own admission.
    Admission,
    /// A fresh `online_update` of this room for a connection that missed ephemeral events.
    Refresh(RoomName),
    /// The user's home asks which of the user's connections is silent longest.
    Eviction(UserId),
}

/// Something asked of another shard.
#[derive(Debug)]
pub struct Request {
    /// Where the answer goes.
    pub origin: Origin,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug)]
pub enum Ask {
    /// Of the home of a room; with the user for whom it is asked, where the home has to find out whether the one may.
    Room(RoomName, Option<UserId>, RoomAsk),
    /// Of the home of a user.
    User(UserId, UserAsk),
    /// Of the home of an address: may a connection from there be opened?
    Address(AddressKey),
    /// Of any shard.
    Shard(ShardAsk),
}

/// What the home of a room is asked.
#[derive(Debug)]
pub enum RoomAsk {
    /// A connection of `user` joins; with `again` it is a member already and only wants to be told.
    Subscribe {
        /// Who.
        user: UserId,
        /// Whether the connection is counted already.
        again: bool,
        /// Whether the connection takes what is compressed.
        deflates: bool,
        /// Up to where it knows the room, if it wants to be sent what it has missed.
        since: Option<Box<Since>>,
    },
    /// `typing_start` or `typing_stop`.
    Typing {
        /// Who.
        user: UserId,
        /// Whether it begins.
        start: bool,
    },
    /// Something durable.
    Change(Box<Change>),
    /// An ephemeral event from the REST interface: a whole JSON object but for timestamp and closing brace.
    Ephemeral(Vec<u8>),
    /// A fresh `online_update`.
    Refresh,
    /// Who is there.
    Online,
    /// How far it has come.
    Position,
    /// Nothing but whether the user may read there.
    MayRead,
    /// Nothing but to be answered behind what was asked before.
    Fence,
}

/// Up to where a client that comes back knows a room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Since {
    /// The `seq` of the last event that it has.
    pub seq: u64,
    /// The epoch in which that was.
    pub epoch: Box<str>,
    /// The store was asked for what it has missed, and it is not asked again: what did not come then is not to be had.
    pub is_read: bool,
}

/// What the home of a user is asked.
#[derive(Debug)]
pub enum UserAsk {
    /// May this connection (the origin's) be opened?
    Admit,
    /// One whole text frame for all connections of the user.
    Event(Frames),
}

/// What any shard is asked.
#[derive(Debug)]
pub enum ShardAsk {
    /// The rooms at home there from a position on.
    Rooms {
        /// First position looked at.
        from: u32,
        /// Most rooms to name.
        limit: u32,
    },
    /// The user's connections there.
    Connections(UserId),
    /// How long each of the user's connections there has been silent.
    Silence(UserId),
    /// Close connections of a user.
    Disconnect(Arc<Disconnect>),
}

/// A kick.
#[derive(Debug)]
pub struct Disconnect {
    /// Whose connections.
    pub user: UserId,
    /// The text of the close frame.
    pub reason: String,
    /// Only this one.
    pub connection_id: Option<String>,
    /// Tokens issued before (milliseconds since the epoch) are refused from now on; with it only their connections close.
    pub revoke_before_ms: Option<u64>,
}

/// An answer on its way back.
#[derive(Debug)]
pub struct Reply {
    /// Where it goes.
    pub origin: Origin,
    /// What it says.
    pub answer: Answer,
}

/// What an answer says.
#[derive(Debug)]
pub enum Answer {
    /// It took effect.
    Done,
    /// It did not.
    Refused(ErrorCode),
    /// It did not: who asks has no more than this level in the room.
    Denied(Level),
    /// A membership has this version.
    Version(u64),
    /// It did not: a membership has this version, which is newer, or another content under the same.
    Stale(u64),
    /// The connection is in the room; live events follow.
    Subscribed {
        /// The `online_update`, one whole frame, shared by all joiners of the turn.
        online: Frames,
        /// The time of the `user_joined` that the joiner is to see, in milliseconds since the epoch.
        timestamp_ms: u64,
        /// The events between what it had and what is live.
        missed: Option<Missed>,
    },
    /// A fresh `online_update`, one whole frame.
    Online(Frames),
    /// A message has its place.
    Published {
        /// The message's id.
        id: Option<Id>,
        /// Its place in the room.
        seq: u64,
        /// Its timestamp, as JSON.
        timestamp: Box<str>,
        /// Whether an earlier request had done it already.
        replayed: bool,
        /// Users in the room at that moment.
        users: u32,
        /// Connections in the room at that moment.
        connections: u32,
    },
    /// A message was changed, reacted to, or read; or was so already.
    Changed {
        /// The place of the event, if it is one.
        seq: Option<u64>,
        /// When, in milliseconds since the epoch.
        timestamp_ms: u64,
    },
    /// How far a room has come.
    Position {
        /// What its sequence belongs to.
        epoch: Box<str>,
        /// The last `seq` given.
        last_seq: u64,
    },
    /// What the store has found.
    Found(Found),
    /// An ephemeral event was queued.
    Delivered {
        /// For so many users.
        users: u32,
        /// On so many connections.
        connections: u32,
    },
    /// Who is in a room: at most the first 10,000, and how many in all.
    Users(Vec<UserId>, u32),
    /// Rooms, and the position to go on from, if there are more.
    Rooms(Vec<RoomSummary>, Option<u32>),
    /// A user's connections on one shard.
    Connections(Vec<ConnectionSummary>),
    /// The connection may open; the user in the form of its first connection, and what it owes.
    Admitted(UserId, Option<Box<Debts>>),
    /// There are too many connections from an address; after so many milliseconds it is worth another try.
    TurnedAway(u64),
    /// Connections of a user with the milliseconds since each was heard.
    Silence(Vec<(ConnId, u64)>),
    /// So many connections were closed.
    Disconnected(u32),
}

/// A line of `GET /api/chat/rooms`.
#[derive(Clone, Debug)]
pub struct RoomSummary {
    /// Its name.
    pub room: RoomName,
    /// Distinct users.
    pub users: u32,
    /// Connections.
    pub connections: u32,
    /// The last `seq` given.
    pub last_seq: u64,
}

/// A line of `GET /api/chat/users/{user}`.
#[derive(Clone, Debug)]
pub struct ConnectionSummary {
    /// The public name of the connection.
    pub connection_id: String,
    /// When it opened, in milliseconds since the epoch.
    pub connected_at_ms: u64,
    /// The rooms that it is in.
    pub rooms: Vec<RoomName>,
}
