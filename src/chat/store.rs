//! What a shard asks of the store, and what the store answers.
//!
//! Values only. A home stamps what is to be kept and hands it out as a [`Job`]; the store orders it in its transactions
//! and answers with [`Done`], write by write in the order in which the shard had handed them out. Nothing here knows which
//! store it is, nor that there are threads or files.

use std::sync::Arc;

use super::envelope::{Disconnect, Origin};
use super::ids::{RoomName, UserId};
use crate::access::{Level, Right};
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::value::Id;

/// What the store is, fixed at the start.
#[derive(Clone, Debug)]
pub struct StoreFacts {
    /// The epoch of all its rooms; a restored backup has another one.
    pub epoch: Box<str>,
    /// The key of the digests that tell retries, which outlives the process.
    pub digest_key: (u64, u64),
}

/// A durable request, valid but not yet ordered.
#[derive(Debug)]
pub struct Change {
    /// Who asks.
    pub by: Actor,
    /// The event that it becomes, as JSON but for what [`Write::finish`] adds; empty if it becomes none.
    pub prefix: Vec<u8>,
    /// What is asked.
    pub action: Action,
}

impl Change {
    /// What a user needs for it in the room.
    pub fn right(&self) -> Right {
        match self.action {
            Action::MarkRead { .. } => Right::Read,
            _ => Right::Write,
        }
    }

    /// What it holds of the account of what is under way.
    pub fn bytes(&self) -> usize {
        let members = match &self.action {
            Action::ReplaceMembers { members, .. } => members.iter().map(|(user, _)| user.text().len() + 32).sum(),
            _ => 0,
        };
        self.prefix.len() + members
    }
}

/// Who asks for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The ERP: it may change what it likes, and what the store has never seen.
    Service,
    /// A user who may edit and delete the messages of others.
    Moderator(Id),
    /// A user.
    User(Id),
}

/// What a change does.
#[derive(Debug)]
pub enum Action {
    /// A new message.
    Post(Post),
    /// Other content for a message.
    Edit {
        /// Which.
        message: Id,
        /// The new members as raw JSON, separated by commas: `"content":...`, `"attachments":...` or both.
        fields: Vec<u8>,
    },
    /// A message becomes a tombstone.
    Delete {
        /// Which.
        message: Id,
    },
    /// A reaction.
    React {
        /// To which message, perhaps one never seen here.
        message: Id,
        /// 1 to 64 bytes.
        emoji: Box<str>,
        /// Whose.
        user: Id,
        /// It is an event also if the user had reacted so already, as clients of the seed expect.
        repeats: bool,
    },
    /// A reaction is taken back.
    Unreact {
        /// From which message.
        message: Id,
        /// Which.
        emoji: Box<str>,
        /// Whose.
        user: Id,
    },
    /// A user has read the room up to a message.
    MarkRead {
        /// Who.
        user: Id,
        /// The message's `seq`.
        seq: u64,
    },
    /// Nothing is kept any more of what a user has read, or that the user was here.
    ForgetReader {
        /// Who.
        user: Id,
    },
    /// Nothing is kept of the room but its position, and nobody is a member.
    RemoveRoom,
    /// A user becomes a member, a reader, or neither.
    SetMember {
        /// Who.
        user: Id,
        /// What the user is from now on.
        level: Level,
        /// Of the user's membership; the next one without.
        version: Option<u64>,
    },
    /// These users are the room's members, and nobody else.
    ReplaceMembers {
        /// Each once.
        members: Vec<(Id, Level)>,
        /// Of all memberships; the next one without.
        version: Option<u64>,
    },
}

/// What makes a message one of a kind.
#[derive(Debug)]
pub struct Post {
    /// The poster's id, or one made by the sender's shard.
    pub id: Id,
    /// Whether the id was the poster's.
    pub id_given: bool,
    /// The header `Idempotency-Key`.
    pub idempotency_key: Option<Box<str>>,
    /// Keyed hash of poster and JSON value, timestamp aside.
    pub digest: u128,
    /// The poster's own timestamp as raw JSON, if the prefix contains one.
    pub timestamp: Option<Box<str>>,
    /// The `sender_user_id`: who may edit and delete it.
    pub sender: Option<Id>,
    /// The user whose typing it ends.
    pub author: Option<UserId>,
}

/// A change on its way to the store.
#[derive(Debug)]
pub struct Write {
    /// Where.
    pub room: RoomName,
    /// When the home took it, in milliseconds since the epoch.
    pub at_ms: u64,
    /// What.
    pub change: Change,
}

impl Write {
    /// Appends what the event has behind [`Change::prefix`], closing brace included.
    pub fn finish(&self, out: &mut Vec<u8>, seq: u64) {
        let timestamp = match &self.change.action {
            Action::Post(Post { timestamp: Some(_), .. }) => None,
            Action::Edit { .. } => {
                event::edited_at(out, self.at_ms);
                Some(self.at_ms)
            }
            _ => Some(self.at_ms),
        };
        event::finish(out, timestamp, seq);
    }

    /// The place that it gets, if it is new, as its poster is told.
    pub fn outcome(&self, seq: u64) -> Outcome {
        let made = || itoa::Buffer::new().format(self.at_ms).into();
        match &self.change.action {
            Action::Post(post) => {
                let timestamp = post.timestamp.clone().unwrap_or_else(made);
                Outcome { id: Some(post.id.clone()), seq, timestamp }
            }
            _ => Outcome { id: None, seq, timestamp: made() },
        }
    }
}

/// The place that an event got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The message's id; `None` for what is no message.
    pub id: Option<Id>,
    /// Its place in the room.
    pub seq: u64,
    /// Its timestamp, as JSON.
    pub timestamp: Box<str>,
}

/// What became of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is the room's event with this `seq`, and to be emitted.
    New {
        /// From 1, without holes.
        seq: u64,
    },
    /// It is a retry of the message that has this place.
    Same(Outcome),
    /// It has taken effect and is no event: a mark moved forward, a room removed, a reader forgotten.
    Done,
    /// It was so already.
    Unchanged,
    /// A membership is as was asked, perhaps it was before, and has this version.
    Version(u64),
    /// A membership has this version, to which what was asked does not fit.
    Stale(u64),
    /// It may not, or cannot, be.
    Refused(ErrorCode),
}

/// What the store is asked to read.
#[derive(Debug)]
pub enum Lookup {
    /// The room's last `seq`: [`Found::Position`].
    Position(RoomName),
    /// Events of a room, `after < seq <= to`: [`Found::Events`].
    Events {
        /// Which room.
        room: RoomName,
        /// Above this.
        after: u64,
        /// Up to this.
        to: u64,
        /// Where they are more, the newest of them.
        bytes_max: usize,
    },
    /// A page of messages: [`Found::Json`].
    Page {
        /// Which room.
        room: RoomName,
        /// Below this `seq`; the newest of them unless `after` is given.
        before: Option<u64>,
        /// Above this `seq`, the oldest of them.
        after: Option<u64>,
        /// At most so many.
        limit: u32,
    },
    /// What a user has read of a room: [`Found::Json`].
    ReadMark {
        /// Which room.
        room: RoomName,
        /// Who.
        user: Id,
    },
    /// The rooms in which a user has written or read: [`Found::Json`].
    RoomsOf {
        /// Who.
        user: Id,
    },
    /// What a user is in a room: [`Found::Member`].
    Member {
        /// Which room.
        room: RoomName,
        /// Who.
        user: Id,
    },
    /// A page of a room's members: [`Found::Json`].
    Members {
        /// Which room.
        room: RoomName,
        /// Behind this user.
        after: Option<Box<str>>,
        /// At most so many.
        limit: u32,
    },
    /// Events of all rooms in the order of their commits: [`Found::Feed`].
    Feed {
        /// The cursor that an earlier answer gave; from the beginning without.
        after: Option<Box<str>>,
        /// At most so many.
        limit: u32,
    },
    /// What a user has left behind, some of it: [`Found::Traces`].
    Traces {
        /// Who.
        user: Id,
        /// Where the last answer ended.
        from: TracePlace,
    },
}

/// How far the search for a user's traces has come; the default is the beginning.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TracePlace {
    /// The store's number of the room that is being looked through.
    pub room: u64,
    /// The last `seq` looked at.
    pub seq: u64,
}

/// Something that a user has left behind in a room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trace {
    /// A message.
    Message {
        /// The room.
        room: Box<str>,
        /// Its id.
        id: Id,
    },
    /// A reaction.
    Reaction {
        /// The room.
        room: Box<str>,
        /// To which message.
        message: Id,
        /// Which.
        emoji: Box<str>,
    },
    /// The user is a member.
    Member {
        /// The room.
        room: Box<str>,
    },
    /// How far the user has read.
    Mark {
        /// The room.
        room: Box<str>,
    },
}

/// Ready frames of consecutive durable events.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The `seq` of the first.
    pub first_seq: u64,
    /// The `seq` of the last.
    pub last_seq: u64,
    /// One text frame for each.
    pub frames: Arc<[u8]>,
}

/// What the store has read.
#[derive(Debug)]
pub enum Found {
    /// 0 for a room of which it knows nothing.
    Position {
        /// The last `seq` given.
        last_seq: u64,
    },
    /// In order, without a hole; none if there are none. They end at `to`, but begin later where more would have been too
    /// much, or older ones are not kept any more.
    Events(Vec<Chunk>),
    /// What a user is in a room.
    Member {
        /// What the user may.
        level: Level,
        /// Since when, or since when nothing.
        version: u64,
    },
    /// The body of an answer 200.
    Json(Vec<u8>),
    /// A page of the feed.
    Feed {
        /// The body of an answer 200.
        body: Vec<u8>,
        /// Whether it says nothing: neither an event, nor that events are gone.
        is_empty: bool,
        /// The last position that it covers.
        position: u64,
    },
    /// Some traces, and where to go on, or `None` if there are no others.
    Traces(Vec<Trace>, Option<TracePlace>),
    /// It cannot be answered: the request's fault, in words.
    Refused(ErrorCode, &'static str),
    /// It cannot be answered: the store's fault.
    Failed,
}

/// Whom an answer of the store is for.
#[derive(Clone, Debug)]
pub enum Asker {
    /// The room at home here with this number.
    Room(u32),
    /// The room at home here with this number, which asks about a user.
    Member(u32, UserId),
    /// A request of a connection here.
    Connection(Origin),
}

/// The older tokens of a user are to be refused.
#[derive(Clone, Debug)]
pub struct Revoke {
    /// Who asks.
    pub origin: Origin,
    /// Whose, and from when on they are good.
    pub order: Arc<Disconnect>,
    /// When, in milliseconds since the epoch.
    pub before_ms: u64,
}

/// What a shard hands to the store at the end of a turn.
#[derive(Debug)]
pub enum Job {
    /// To be decided and kept in this order; answered by as many verdicts.
    Write(Vec<Arc<Write>>),
    /// To be read.
    Read(Asker, Lookup),
    /// To be kept before it is answered; answered by [`Done::Revoked`].
    Revoke(Revoke),
    /// To be told once, by [`Done::FeedMoved`], when an event has a higher position in the feed.
    WatchFeed(u64),
}

/// What the store tells a shard.
#[derive(Debug)]
pub enum Done {
    /// For as many of the shard's writes, in their order.
    Written(Vec<Verdict>),
    /// An answer.
    Found(Asker, Found),
    /// There are events behind the position that was watched.
    FeedMoved,
    /// Whether that is kept now.
    Revoked(Revoke, bool),
}
