//! What the REST calls do, and how answers become JSON.

use std::sync::Arc;

use super::burst::Frames;
use super::envelope::{
    Answer, Ask, ConnectionSummary, Disconnect, Origin, ReplyTo, Request, RoomAsk, RoomSummary, ShardAsk, UserAsk,
};
use super::http::Rest;
use super::ids::{RoomName, ShardId, UserId, home};
use super::mail::NoCredit;
use super::routes::{Call, Caller, Handled, error};
use super::shard::Shard;
use super::store::{Action, Actor, Change, Post};
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::message::{Author, Posted, new_message_prefix, parse_posted};
use crate::wire::rest_body::{PostRefusal, parse_broadcast, parse_disconnect, parse_room_event, parse_user_event};
use crate::wire::value::{Id, put_json_string, room_name};
use crate::wire::websocket::{Opcode, put_frame};

const ROOMS_PAGE_DEFAULT: u32 = 100;
const ROOMS_PAGE_MAX: u32 = 200;
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// A broadcast is parsed and copied once per room, in one turn.
const BROADCAST_BYTES_MAX: usize = 8 << 20;
const BUSY: &str = "too much is under way, try again";

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
        /// Shards that have not answered.
        left: usize,
    },
}

impl Shard {
    pub(super) fn post_message(&mut self, call: &Call<'_>, room: &str) -> Handled {
        let Some(room) = room_name(room) else { return bad_room() };
        if call.idempotency_key.is_some_and(|key| key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX) {
            return error(422, ErrorCode::InvalidMessage, "Idempotency-Key must have 1 to 255 bytes of UTF-8");
        }
        let posted = match self.parse_message(call, call.body, room) {
            Ok(posted) => posted,
            Err(refusal) => return refused(&refusal),
        };
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        let to = ReplyTo::Rest(call.number);
        match self.publish(call, room, posted, to) {
            Ok(()) => Handled::Pending,
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    fn parse_message(&self, call: &Call<'_>, body: &[u8], room: &str) -> Result<Posted, PostRefusal> {
        let author = match &call.caller {
            Caller::Service => Author::Service,
            Caller::User(user) => Author::User(user),
        };
        parse_posted(body, room, self.digest_key(), &author)
    }

    fn publish(&mut self, call: &Call<'_>, room: &str, posted: Posted, to: ReplyTo) -> Result<(), NoCredit> {
        let id_given = posted.id.is_some();
        let id = posted.id.clone().unwrap_or_else(|| self.make_id());
        let mut prefix = Vec::new();
        new_message_prefix(&mut prefix, room, &id, &posted);
        let author = match &call.caller {
            Caller::Service => None,
            Caller::User(user) => Some(self.user_id(user)),
        };
        let by = match &call.caller {
            Caller::Service => Actor::Service,
            Caller::User(user) => Actor::User(user.clone()),
        };
        let post = Post {
            id,
            id_given,
            idempotency_key: call.idempotency_key.map(Box::from),
            digest: posted.digest,
            timestamp: posted.timestamp.map(String::into_boxed_str),
            sender: None,
            author,
        };
        let change = Change { by, prefix, action: Action::Post(post) };
        self.ask_room(call.slot, room, to, RoomAsk::Change(change.into()))
    }

    fn ask_room(&mut self, slot: u32, room: &str, to: ReplyTo, ask: RoomAsk) -> Result<(), NoCredit> {
        let hash = self.key.hash(room);
        let known = self.local_rooms.find_text(hash, room);
        let name = known.map_or_else(|| RoomName::new(room, hash), |number| self.local_rooms[number].name.clone());
        let origin = Origin { conn: self.connections.id(slot), to };
        self.mail.request(home(hash, self.shards), Request { origin, ask: Ask::Room(name, ask) })
    }

    /// A random UUID (RFC 9562, version 4).
    fn make_id(&mut self) -> Id {
        let bits = (self.random() & !(0xf << 76 | 0b11 << 62)) | 4 << 76 | 0b10 << 62;
        let hex = format!("{bits:032x}");
        let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Id::from_text(&text).unwrap_or_else(|| unreachable!("a UUID has 36 bytes"))
    }

    pub(super) fn list_online(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = call.target.segments.get(3).and_then(|room| room_name(room)) else { return bad_room() };
        self.pending(call, |shard, to| shard.ask_room(call.slot, room, to, RoomAsk::Online))
    }

    pub(super) fn post_room_event(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = call.target.segments.get(3).and_then(|room| room_name(room)) else { return bad_room() };
        match parse_room_event(call.body, room) {
            Ok(prefix) => {
                self.pending(call, |shard, to| shard.ask_room(call.slot, room, to, RoomAsk::Ephemeral(prefix)))
            }
            Err(refusal) => refused(&refusal),
        }
    }

    pub(super) fn post_user_event(&mut self, call: &Call<'_>) -> Handled {
        let Some(user) = self.called_user(call) else { return bad_user() };
        let mut text = match parse_user_event(call.body) {
            Ok(text) => text,
            Err(refusal) => return refused(&refusal),
        };
        event::finish_ephemeral(&mut text, self.now.wall_ms);
        let mut frame = Vec::with_capacity(text.len() + 10);
        put_frame(&mut frame, Opcode::Text, &[&text]);
        let target = home(user.hash_code(), self.shards);
        let conn = self.connections.id(call.slot);
        self.pending(call, |shard, to| {
            let frames = Frames::new(frame.into(), shard.config.deflate.then_some(&mut shard.deflater));
            let ask = Ask::User(user, UserAsk::Event(frames));
            shard.mail.request(target, Request { origin: Origin { conn, to }, ask })
        })
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

    pub(super) fn post_broadcast(&mut self, call: &Call<'_>) -> Handled {
        let broadcast = match parse_broadcast(call.body) {
            Ok(broadcast) => broadcast,
            Err(refusal) => return refused(&refusal),
        };
        let max = self.config.limits.broadcast_rooms_max;
        if broadcast.rooms.len() > max {
            return error(422, ErrorCode::InvalidMessage, &format!("rooms must be at most {max}"));
        }
        if broadcast.rooms.len().saturating_mul(broadcast.message.get().len()) > BROADCAST_BYTES_MAX {
            return error(413, ErrorCode::TooLarge, "rooms times message is more than is taken at once, 8 MiB");
        }
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        let message = broadcast.message.get().as_bytes();
        let mut results: Vec<(Box<str>, Option<Answer>)> = Vec::with_capacity(broadcast.rooms.len());
        for room in &broadcast.rooms {
            let part = results.len() as u32;
            let outcome = match room_name(room) {
                None => Some(Answer::Refused(ErrorCode::InvalidMessage)),
                Some(room) => match self.parse_message(call, message, room) {
                    // What is wrong with the message is wrong in every room.
                    Err(refusal) if refusal.status == 400 || part == 0 => return refused(&refusal),
                    Err(_) => Some(Answer::Refused(ErrorCode::InvalidMessage)),
                    Ok(posted) => self
                        .publish(call, room, posted, ReplyTo::RestPart(call.number, part))
                        .err()
                        .map(|_| Answer::Refused(ErrorCode::Overloaded)),
                },
            };
            results.push((Box::from(room.as_str()), outcome));
        }
        let left = results.iter().filter(|(_, outcome)| outcome.is_none()).count();
        if left == 0 {
            return Handled::Now(Rest::json(200, broadcast_json(&results)));
        }
        Handled::Gather(Box::new(Gather::Broadcast { results, left }))
    }

    pub(super) fn list_all_rooms(&mut self, call: &Call<'_>) -> Handled {
        let limit = match call.target.query("limit") {
            None => ROOMS_PAGE_DEFAULT,
            Some(text) => match text.parse::<u32>() {
                Ok(limit) if limit > 0 => limit.min(ROOMS_PAGE_MAX),
                _ => return error(422, ErrorCode::InvalidMessage, "limit must be a positive integer"),
            },
        };
        let cursor = call.target.query("after").filter(|after| !after.is_empty());
        let (shard, from) = match cursor.as_deref().map_or(Some((0, 0)), parse_cursor) {
            Some((shard, from)) if usize::from(shard) < self.shards => (shard, from),
            _ => {
                return error(
                    422,
                    ErrorCode::InvalidMessage,
                    "after must be a cursor that an earlier page gave as next",
                );
            }
        };
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        if self.ask_rooms(call.slot, call.number, shard, from, limit).is_err() {
            return error(503, ErrorCode::Overloaded, BUSY);
        }
        Handled::Gather(Box::new(Gather::Rooms { rooms: Vec::new(), shard, limit }))
    }

    fn ask_rooms(&mut self, slot: u32, number: u32, shard: u16, from: u32, limit: u32) -> Result<(), NoCredit> {
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::RestPart(number, 0) };
        self.mail.request(ShardId(shard), Request { origin, ask: Ask::Shard(ShardAsk::Rooms { from, limit }) })
    }

    pub(super) fn describe_user(&mut self, call: &Call<'_>) -> Handled {
        let Some(user) = self.called_user(call) else { return bad_user() };
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        match self.ask_all(call, |_| ShardAsk::Connections(user.clone())) {
            Some(left) => Handled::Gather(Box::new(Gather::User { connections: Vec::new(), left })),
            None => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    pub(super) fn post_disconnect(&mut self, call: &Call<'_>) -> Handled {
        let Some(user) = self.called_user(call) else { return bad_user() };
        let order = match parse_disconnect(call.body) {
            Ok(order) => order,
            Err(refusal) => return refused(&refusal),
        };
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        let order = Arc::new(Disconnect {
            user,
            reason: order.reason.unwrap_or_else(|| "Removed by an administrator".to_owned()),
            connection_id: order.connection_id,
            revoke_before_ms: order.revoke_before_ms.map(|ms| ms.max(0) as u64),
        });
        match self.ask_all(call, |_| ShardAsk::Disconnect(order.clone())) {
            Some(left) => Handled::Gather(Box::new(Gather::Disconnect { count: 0, left })),
            None => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Asks every shard, or none if one of them takes no more requests; returns how many will answer.
    fn ask_all(&mut self, call: &Call<'_>, ask: impl Fn(u16) -> ShardAsk) -> Option<usize> {
        let all = 0..self.shards as u16;
        if !all.clone().all(|shard| self.mail.has_credit(ShardId(shard))) {
            return None;
        }
        let conn = self.connections.id(call.slot);
        let posted = all.filter(|&shard| {
            let origin = Origin { conn, to: ReplyTo::RestPart(call.number, u32::from(shard)) };
            self.mail.request(ShardId(shard), Request { origin, ask: Ask::Shard(ask(shard)) }).is_ok()
        });
        Some(posted.count())
    }

    fn called_user(&self, call: &Call<'_>) -> Option<UserId> {
        let id = Id::from_text(call.target.segments.get(3)?)?;
        Some(self.user_id(&id))
    }

    /// The answer to a request that was waiting for one.
    pub(super) fn render(&self, answer: Answer) -> Rest {
        match answer {
            Answer::Published { replayed, .. } => {
                let mut body = b"{".to_vec();
                put_published(&mut body, &answer);
                body.push(b'}');
                let mut rest = Rest::json(201, body);
                if replayed {
                    rest.headers.push(("Idempotency-Replayed", "true".to_owned()));
                }
                rest
            }
            Answer::Refused(code) => Rest::error(status_of(code), code, text_of(code)),
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
                Some(Rest::json(200, rooms_json(rooms, from.map(|from| (at, from)))))
            }
            (Gather::Broadcast { results, left }, answer) => {
                *results.get_mut(part? as usize).map(|result| &mut result.1)? = Some(answer);
                *left -= 1;
                (*left == 0).then(|| Rest::json(200, broadcast_json(results)))
            }
            (Gather::User { connections, left }, Answer::Connections(found)) => {
                connections.extend(found);
                *left -= 1;
                (*left == 0).then(|| Rest::json(200, user_json(connections)))
            }
            (Gather::Disconnect { count, left }, Answer::Disconnected(closed)) => {
                *count += closed;
                *left -= 1;
                (*left == 0).then(|| Rest::json(200, format!("{{\"disconnected\":{count}}}").into_bytes()))
            }
            (_, answer) => Some(self.render(answer)),
        }
    }
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

fn text_of(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Conflict => "another message has this id or Idempotency-Key",
        ErrorCode::Overloaded => "the room is busy, try again",
        ErrorCode::InvalidMessage => "the room's name is not valid",
        _ => "the room did not take it",
    }
}

fn put_published(out: &mut Vec<u8>, answer: &Answer) {
    let Answer::Published { id, seq, timestamp, users, connections, .. } = answer else { return };
    if let Some(id) = id {
        out.extend_from_slice(b"\"id\":");
        id.put_json(out);
        out.push(b',');
    }
    out.extend_from_slice(format!("\"timestamp\":{timestamp},\"seq\":{seq},").as_bytes());
    out.extend_from_slice(format!("\"delivered\":{{\"users\":{users},\"connections\":{connections}}}").as_bytes());
}

fn broadcast_json(results: &[(Box<str>, Option<Answer>)]) -> Vec<u8> {
    let mut out = b"{\"results\":[".to_vec();
    put_list(&mut out, results, |out, (room, answer)| {
        out.extend_from_slice(b"{\"roomId\":");
        put_json_string(out, room);
        out.push(b',');
        match answer {
            Some(answer @ Answer::Published { .. }) => put_published(out, answer),
            Some(Answer::Refused(code)) => put_failure(out, *code),
            _ => put_failure(out, ErrorCode::Internal),
        }
        out.push(b'}');
    });
    out.extend_from_slice(b"]}");
    out
}

fn put_failure(out: &mut Vec<u8>, code: ErrorCode) {
    out.extend_from_slice(format!("\"error\":\"{}\",\"code\":\"{}\"", text_of(code), code.as_str()).as_bytes());
}

fn rooms_json(rooms: &[RoomSummary], next: Option<(u16, u32)>) -> Vec<u8> {
    let mut out = b"{\"rooms\":[".to_vec();
    put_list(&mut out, rooms, |out, room| {
        out.extend_from_slice(b"{\"roomId\":");
        put_json_string(out, room.room.text());
        let RoomSummary { users, connections, last_seq, .. } = room;
        let numbers = format!(",\"users\":{users},\"connections\":{connections},\"lastSeq\":{last_seq}}}");
        out.extend_from_slice(numbers.as_bytes());
    });
    let end = match next {
        Some((shard, from)) => format!("],\"more\":true,\"next\":\"{shard:x}-{from:x}\"}}"),
        None => "],\"more\":false,\"next\":null}".to_owned(),
    };
    out.extend_from_slice(end.as_bytes());
    out
}

fn parse_cursor(text: &str) -> Option<(u16, u32)> {
    let (shard, from) = text.split_once('-')?;
    Some((u16::from_str_radix(shard, 16).ok()?, u32::from_str_radix(from, 16).ok()?))
}

fn user_json(connections: &[ConnectionSummary]) -> Vec<u8> {
    let mut out = format!("{{\"online\":{},\"connections\":[", !connections.is_empty()).into_bytes();
    put_list(&mut out, connections, |out, connection| {
        let ConnectionSummary { connection_id, connected_at_ms, rooms } = connection;
        out.extend_from_slice(
            format!("{{\"connectionId\":\"{connection_id}\",\"connectedAt\":{connected_at_ms},").as_bytes(),
        );
        out.extend_from_slice(b"\"rooms\":[");
        put_list(out, rooms, |out, room| put_json_string(out, room.text()));
        out.extend_from_slice(b"]}");
    });
    out.extend_from_slice(b"]}");
    out
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put(out, item);
    }
}
