//! What the REST calls do, and how answers become JSON.
//!
//! Owns the answers that come from elsewhere, whole or in parts. What a call reads and asks stands in the modules by
//! topic: `messages`, `broadcast`, `rooms`, `members`, `users`, `erase` and `feed`.

use super::entry::denial;
use super::envelope::{Answer, Ask, ConnectionSummary, Origin, ReplyTo, Request, RoomAsk, RoomSummary};
use super::http::Rest;
use super::ids::{RoomName, UserId, home};
use super::mail::NoCredit;
use super::routes::{Call, Handled, error};
use super::shard::Shard;
use super::store::{Action, Change, Found, Lookup};
use crate::wire::client::ErrorCode;
use crate::wire::rest_body::PostRefusal;
use crate::wire::value::{Id, room_name};

pub use erase::Erasure;
pub use feed::{FeedWait, FeedWaits};

mod broadcast;
mod erase;
mod feed;
mod members;
mod messages;
mod rooms;
mod users;

const BUSY: &str = "too much is under way, try again";
const NEEDS_STORE: &str = "this needs a store, and none is configured";

/// An answer that comes in parts.
pub enum Gather {
    /// A page of rooms, collected shard by shard.
    Rooms {
        /// So far.
        rooms: Vec<RoomSummary>,
        /// The shard that is being asked.
        shard: u16,
        /// How many are wanted.
        limit: u32,
    },
    /// A broadcast: per room the outcome, once it is known.
    Broadcast {
        /// In the order asked.
        results: Vec<(Box<str>, Option<Answer>)>,
        /// How many are open.
        left: usize,
    },
    /// A user's connections.
    User {
        /// So far.
        connections: Vec<ConnectionSummary>,
        /// Shards that have not answered.
        left: usize,
    },
    /// A kick.
    Disconnect {
        /// Connections closed so far.
        count: u32,
        /// Shards that have not answered, and the store if it is asked.
        left: usize,
        /// The store has not said that it cannot keep it.
        is_kept: bool,
    },
    /// What a user has read, once the mark is moved.
    ReadState {
        /// The room.
        room: RoomName,
        /// Who.
        user: Id,
    },
    /// What is looked up once the room's home has let the user.
    Permitted(Option<Lookup>),
    /// A user's traces are being removed.
    Erase(Erasure),
    /// A page of the feed.
    Feed(FeedWait),
}

impl Shard {
    pub(super) fn ask_room(
        &mut self,
        slot: u32,
        (room, visitor): (&str, Option<UserId>),
        to: ReplyTo,
        ask: RoomAsk,
    ) -> Result<(), NoCredit> {
        let name = self.room_name(room);
        let hash = name.hash_code();
        let origin = Origin { conn: self.connections.id(slot), to };
        self.mail.request(home(hash, self.shards), Request { origin, ask: Ask::Room(name, visitor, ask) })
    }

    /// Asks the home of a room for something durable.
    fn ask_change(
        &mut self,
        call: &Call<'_>,
        room: &str,
        to: ReplyTo,
        prefix: Vec<u8>,
        action: Action,
    ) -> Result<(), NoCredit> {
        let change = Change { by: call.caller.actor(), prefix, action };
        self.ask_room(call.slot, (room, call.visitor.clone()), to, RoomAsk::Change(change.into()))
    }

    fn room_name(&self, room: &str) -> RoomName {
        let hash = self.key.hash(room);
        let known = self.local_rooms.find_text(hash, room);
        known.map_or_else(|| RoomName::new(room, hash), |number| self.local_rooms[number].name.clone())
    }

    /// A random UUID (RFC 9562, version 4).
    pub(super) fn make_id(&mut self) -> Id {
        let bits = (self.random() & !(0xf << 76 | 0b11 << 62)) | 4 << 76 | 0b10 << 62;
        let hex = format!("{bits:032x}");
        let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Id::from_text(&text).unwrap_or_else(|| unreachable!("a UUID has 36 bytes"))
    }

    fn pending(&mut self, call: &Call<'_>, ask: impl FnOnce(&mut Self, ReplyTo) -> Result<(), NoCredit>) -> Handled {
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        match ask(self, ReplyTo::Rest(call.number)) {
            Ok(()) => Handled::Pending,
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Asks the store, once it is known that there is one.
    fn pending_lookup(&mut self, call: &Call<'_>, lookup: Lookup) -> Handled {
        let origin = Origin { conn: self.connections.id(call.slot), to: ReplyTo::Rest(call.number) };
        if let Some(turned_away) = self.turn_away(call).or_else(|| self.without_store()) {
            return turned_away;
        }
        match self.lookup(origin, lookup) {
            Ok(()) => Handled::Pending,
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Asks the store about a room, once it is known that there is one and that who asks may read there.
    fn permitted_lookup(&mut self, call: &Call<'_>, room: &str, lookup: Lookup) -> Handled {
        let Some(visitor) = call.visitor.clone() else { return self.pending_lookup(call, lookup) };
        if let Some(turned_away) = self.turn_away(call).or_else(|| self.without_store()) {
            return turned_away;
        }
        let to = ReplyTo::RestPart(call.number, 0);
        match self.ask_room(call.slot, (room, Some(visitor)), to, RoomAsk::MayRead) {
            Ok(()) => Handled::Gather(Box::new(Gather::Permitted(Some(lookup)))),
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// The answer to what needs a store, if there is none.
    fn without_store(&self) -> Option<Handled> {
        self.store().is_none().then(|| error(503, ErrorCode::Unavailable, NEEDS_STORE))
    }

    fn called_user(&self, call: &Call<'_>) -> Option<UserId> {
        let id = Id::from_text(call.target.segments.get(3)?)?;
        Some(self.user_id(&id))
    }

    /// What is said of a request that was refused elsewhere.
    pub(super) fn text_of(&self, code: ErrorCode) -> &'static str {
        match code {
            ErrorCode::Conflict => "another message has this id or Idempotency-Key",
            ErrorCode::Forbidden => "only its sender or a moderator may change a message",
            ErrorCode::NotFound => "there is no such message, or it was deleted",
            ErrorCode::NotInRoom => "join the room first",
            ErrorCode::Overloaded => "the room is busy, try again",
            ErrorCode::Unavailable if self.config.access_point.is_some() => {
                "the store, or the ERP that says who may enter, is out of service, try again"
            }
            ErrorCode::Unavailable if self.store().is_none() => NEEDS_STORE,
            ErrorCode::Unavailable => "the store is out of service, try again",
            ErrorCode::InvalidMessage => "the room cannot take this",
            _ => "the room did not take it",
        }
    }

    fn refusal(&self, code: ErrorCode) -> Rest {
        Rest::error(status_of(code), code, self.text_of(code))
    }

    /// The answer to a request that was waiting for one.
    pub(super) fn render(&self, answer: Answer) -> Rest {
        match answer {
            Answer::Published { replayed, .. } => {
                let mut body = b"{".to_vec();
                broadcast::put_published(&mut body, &answer);
                body.push(b'}');
                let mut rest = Rest::json(201, body);
                if replayed {
                    rest.headers.push(("Idempotency-Replayed", "true".to_owned()));
                }
                rest
            }
            Answer::Refused(code) => self.refusal(code),
            Answer::Denied(level) => {
                let (code, text) = denial(level);
                Rest::error(status_of(code), code, text)
            }
            Answer::Version(version) => Rest::json(200, format!("{{\"version\":{version}}}").into_bytes()),
            Answer::Stale(version) => {
                let text = format!("what is known has version {version}: give a higher one, or the same content");
                Rest::error(409, ErrorCode::Conflict, &text)
            }
            Answer::Changed { seq, timestamp_ms } => {
                let seq = seq.map(|seq| format!(",\"seq\":{seq}")).unwrap_or_default();
                Rest::json(200, format!("{{\"timestamp\":{timestamp_ms}{seq}}}").into_bytes())
            }
            Answer::Position { epoch, last_seq } => Rest::json(200, messages::empty_page(&epoch, last_seq)),
            Answer::Found(Found::Json(body)) => Rest::json(200, body),
            Answer::Found(Found::Refused(code, text)) => Rest::error(status_of(code), code, text),
            Answer::Found(Found::Failed) => self.refusal(ErrorCode::Unavailable),
            Answer::Users(users, count) => {
                let mut body = b"{\"online\":[".to_vec();
                put_list(&mut body, &users, |out, user| user.as_ref().put_json(out));
                body.extend_from_slice(format!("],\"count\":{count}}}").as_bytes());
                Rest::json(200, body)
            }
            Answer::Delivered { users, connections } => {
                let counts = format!("{{\"users\":{users},\"connections\":{connections}}}");
                Rest::json(202, format!("{{\"delivered\":{counts}}}").into_bytes())
            }
            _ => {
                debug_assert!(false, "no route waits for such an answer");
                Rest::error(500, ErrorCode::Internal, "internal error")
            }
        }
    }

    /// Takes one part of an answer; returns the whole once it is complete.
    pub(super) fn gather_part(
        &mut self,
        slot: u32,
        number: u32,
        gather: &mut Gather,
        part: Option<u32>,
        answer: Answer,
    ) -> Option<Rest> {
        match (gather, answer) {
            (Gather::Rooms { rooms, shard, limit }, Answer::Rooms(found, next)) => {
                rooms.extend(found);
                let (mut at, mut from) = (*shard, next);
                if next.is_none() && usize::from(at) + 1 < self.shards {
                    (at, from) = (at + 1, Some(0));
                }
                let wanted = *limit - rooms.len() as u32;
                if let (Some(from), true) = (from, wanted > 0) {
                    *shard = at;
                    if self.ask_rooms(slot, number, at, from, wanted).is_ok() {
                        return None;
                    }
                }
                Some(Rest::json(200, rooms::rooms_json(rooms, from.map(|from| (at, from)))))
            }
            (Gather::Broadcast { results, left }, answer) => {
                *results.get_mut(part? as usize).map(|result| &mut result.1)? = Some(answer);
                *left -= 1;
                (*left == 0).then(|| Rest::json(200, self.broadcast_json(results)))
            }
            (Gather::User { connections, left }, Answer::Connections(found)) => {
                connections.extend(found);
                *left -= 1;
                (*left == 0).then(|| Rest::json(200, users::user_json(connections)))
            }
            (Gather::Disconnect { count, left, is_kept }, answer) => {
                match answer {
                    Answer::Disconnected(closed) => *count += closed,
                    answer => *is_kept = matches!(answer, Answer::Done),
                }
                *left -= 1;
                (*left == 0).then(|| users::disconnected(*count, *is_kept))
            }
            (Gather::Permitted(lookup), Answer::Done) => {
                let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::RestPart(number, 0) };
                let refused = self.lookup(origin, lookup.take()?).is_err();
                refused.then(|| Rest::error(503, ErrorCode::Overloaded, BUSY))
            }
            (Gather::ReadState { room, user }, Answer::Changed { .. }) => {
                self.gather_read_state(slot, number, room, user)
            }
            (Gather::Erase(erasure), answer) => self.gather_traces(slot, number, erasure, part, answer),
            (Gather::Feed(wait), answer) => self.gather_feed(slot, number, wait, answer),
            (_, answer) => Some(self.render(answer)),
        }
    }
}

fn called_room<'c>(call: &'c Call<'_>) -> Option<&'c str> {
    call.target.segments.get(3).and_then(|room| room_name(room))
}

fn refused(refusal: &PostRefusal) -> Handled {
    error(refusal.status, refusal.code, &refusal.message)
}

fn bad_room() -> Handled {
    error(422, ErrorCode::InvalidMessage, "roomId must have 1 to 256 bytes, no control character, and not be . or ..")
}

fn bad_user() -> Handled {
    error(422, ErrorCode::InvalidMessage, "a user id must have 1 to 128 bytes")
}

fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Conflict => 409,
        ErrorCode::Forbidden => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::Overloaded | ErrorCode::Unavailable => 503,
        ErrorCode::InvalidMessage => 422,
        _ => 500,
    }
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put(out, item);
    }
}
