//! Calls about a room as a whole: which there are, who is there, what has been read, and that it be removed.

use crate::chat::envelope::{Ask, Origin, ReplyTo, Request, RoomAsk, RoomSummary, ShardAsk};
use crate::chat::http::Rest;
use crate::chat::ids::{RoomName, ShardId};
use crate::chat::mail::NoCredit;
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::{Action, Lookup};
use crate::wire::client::ErrorCode;
use crate::wire::rest_body::{parse_limit, parse_read, parse_room_event};
use crate::wire::value::{Id, put_json_string};

use super::{BUSY, bad_room, bad_user, called_room, put_list, refused};

const ROOMS_PAGE_DEFAULT: u32 = 100;
const ROOMS_PAGE_MAX: u32 = 200;

impl Shard {
    pub(in crate::chat) fn list_online(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        self.pending(call, |shard, to| shard.ask_room(call.slot, (room, call.visitor.clone()), to, RoomAsk::Online))
    }

    pub(in crate::chat) fn post_room_event(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        match parse_room_event(call.body, room) {
            Ok(prefix) => {
                self.pending(call, |shard, to| shard.ask_room(call.slot, (room, None), to, RoomAsk::Ephemeral(prefix)))
            }
            Err(refusal) => refused(&refusal),
        }
    }

    pub(in crate::chat) fn list_all_rooms(&mut self, call: &Call<'_>) -> Handled {
        let limit = call.target.query("limit");
        let limit = match parse_limit(limit.as_deref(), ROOMS_PAGE_DEFAULT, ROOMS_PAGE_MAX) {
            Ok(limit) => limit,
            Err(refusal) => return refused(&refusal),
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

    pub(super) fn ask_rooms(
        &mut self,
        slot: u32,
        number: u32,
        shard: u16,
        from: u32,
        limit: u32,
    ) -> Result<(), NoCredit> {
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::RestPart(number, 0) };
        self.mail.request(ShardId(shard), Request { origin, ask: Ask::Shard(ShardAsk::Rooms { from, limit }) })
    }

    pub(in crate::chat) fn remove_room(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        self.pending(call, |shard, to| shard.ask_change(call, room, to, Vec::new(), Action::RemoveRoom))
    }

    pub(in crate::chat) fn read_state(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        let Some(user) = called_reader(call) else { return bad_user() };
        let name = self.room_name(room);
        self.permitted_lookup(call, room, Lookup::ReadMark { room: name, user })
    }

    /// Moves a user's mark, and answers how it then stands.
    pub(in crate::chat) fn mark_read(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        let Some(user) = called_reader(call) else { return bad_user() };
        let seq = match parse_read(call.body) {
            Ok(seq) => seq,
            Err(refusal) => return refused(&refusal),
        };
        if let Some(turned_away) = self.turn_away(call).or_else(|| self.without_store()) {
            return turned_away;
        }
        let action = Action::MarkRead { user: user.clone(), seq };
        match self.ask_change(call, room, ReplyTo::RestPart(call.number, 0), Vec::new(), action) {
            Ok(()) => Handled::Gather(Box::new(Gather::ReadState { room: self.room_name(room), user })),
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    pub(super) fn gather_read_state(&mut self, slot: u32, number: u32, room: &RoomName, user: &Id) -> Option<Rest> {
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::RestPart(number, 0) };
        let lookup = Lookup::ReadMark { room: room.clone(), user: user.clone() };
        let refused = self.lookup(origin, lookup).is_err();
        // The mark is moved; who repeats the call finds it so.
        refused.then(|| Rest::error(503, ErrorCode::Overloaded, BUSY))
    }
}

fn called_reader(call: &Call<'_>) -> Option<Id> {
    match call.caller.user() {
        Some(user) => Some(user.clone()),
        None => Id::from_url(call.target.segments.get(5)?),
    }
}

pub(super) fn rooms_json(rooms: &[RoomSummary], next: Option<(u16, u32)>) -> Vec<u8> {
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
