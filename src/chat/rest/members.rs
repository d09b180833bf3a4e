//! Calls about who may enter a room.

use crate::access::Level;
use crate::chat::routes::{Call, Handled};
use crate::chat::shard::Shard;
use crate::chat::store::{Action, Lookup};
use crate::wire::rest_body::{MemberBody, parse_limit, parse_member, parse_members, parse_version};
use crate::wire::value::Id;

use super::{bad_room, bad_user, called_room, refused};

const PAGE_DEFAULT: u32 = 200;
const PAGE_MAX: u32 = 1_000;

impl Shard {
    /// Makes a user a member or a reader.
    pub(in crate::chat) fn put_member(&mut self, call: &Call<'_>) -> Handled {
        let body = match parse_member(call.body) {
            Ok(body) => body,
            Err(refusal) => return refused(&refusal),
        };
        self.set_member(call, level(&body), body.version)
    }

    /// Ends a membership.
    pub(in crate::chat) fn delete_member(&mut self, call: &Call<'_>) -> Handled {
        match parse_version(call.target.query("version").as_deref()) {
            Ok(version) => self.set_member(call, Level::Nothing, version),
            Err(refusal) => refused(&refusal),
        }
    }

    fn set_member(&mut self, call: &Call<'_>, level: Level, version: Option<u64>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        let user = call.target.segments.get(5).and_then(|user| Id::from_url(user));
        let Some(user) = user else { return bad_user() };
        let action = Action::SetMember { user, level, version };
        self.pending(call, |shard, to| shard.ask_change(call, room, to, Vec::new(), action))
    }

    /// Makes the users of the body the members, and nobody else.
    pub(in crate::chat) fn replace_members(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        let body = match parse_members(call.body, self.config.limits.members_replaced_max) {
            Ok(body) => body,
            Err(refusal) => return refused(&refusal),
        };
        let members = body.members.into_iter().map(|(user, member)| (user, level(&member))).collect();
        let action = Action::ReplaceMembers { members, version: body.version };
        self.pending(call, |shard, to| shard.ask_change(call, room, to, Vec::new(), action))
    }

    pub(in crate::chat) fn list_members(&mut self, call: &Call<'_>) -> Handled {
        let Some(room) = called_room(call) else { return bad_room() };
        let limit = match parse_limit(call.target.query("limit").as_deref(), PAGE_DEFAULT, PAGE_MAX) {
            Ok(limit) => limit,
            Err(refusal) => return refused(&refusal),
        };
        let after = call.target.query("after").filter(|after| !after.is_empty()).map(|after| after.into());
        let room = self.room_name(room);
        self.pending_lookup(call, Lookup::Members { room, after, limit })
    }
}

fn level(body: &MemberBody) -> Level {
    if body.reads_only { Level::Reader } else { Level::Member }
}
