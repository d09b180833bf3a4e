//! Calls about messages: posting them, reading them, and what may be done to one.

use crate::chat::envelope::{ReplyTo, RoomAsk};
use crate::chat::mail::NoCredit;
use crate::chat::routes::{Call, Caller, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::{Action, Lookup, Post};
use crate::wire::client::{EMOJI_BYTES_MAX, ErrorCode};
use crate::wire::event;
use crate::wire::message::{Posted, new_message_prefix, parse_edit, parse_posted};
use crate::wire::rest_body::{PostRefusal, parse_page};
use crate::wire::value::{Id, put_json_string, room_name};

use super::{BUSY, bad_room, bad_user, called_room, refused};

const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

impl Shard {
    pub(in crate::chat) fn post_message(&mut self, call: &Call<'_>, room: &str) -> Handled {
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

    pub(super) fn parse_message(&self, call: &Call<'_>, body: &[u8], room: &str) -> Result<Posted, PostRefusal> {
        parse_posted(body, room, self.digest_key(), &call.caller.author())
    }

    pub(super) fn publish(&mut self, call: &Call<'_>, room: &str, posted: Posted, to: ReplyTo) -> Result<(), NoCredit> {
        let (prefix, post) = self.make_post(room, posted, call.caller.user());
        let post = Post { idempotency_key: call.idempotency_key.map(Box::from), ..post };
        self.ask_change(call, room, to, prefix, Action::Post(post))
    }

    /// A message that is ready to be ordered; `author` is the user who writes it.
    pub(in crate::chat) fn make_post(&mut self, room: &str, posted: Posted, author: Option<&Id>) -> (Vec<u8>, Post) {
        let id_given = posted.id.is_some();
        let id = posted.id.clone().unwrap_or_else(|| self.make_id());
        let mut prefix = Vec::new();
        new_message_prefix(&mut prefix, room, &id, &posted);
        let post = Post {
            id,
            id_given,
            idempotency_key: None,
            digest: posted.digest,
            timestamp: posted.timestamp.map(String::into_boxed_str),
            sender: posted.sender,
            author: author.map(|user| self.user_id(user)),
        };
        (prefix, post)
    }

    pub(in crate::chat) fn list_messages(&mut self, call: &Call<'_>, room: &str) -> Handled {
        let Some(room) = room_name(room) else { return bad_room() };
        let [before, after, limit] = ["before", "after", "limit"].map(|name| call.target.query(name));
        let page = match parse_page(before.as_deref(), after.as_deref(), limit.as_deref()) {
            Ok(page) => page,
            Err(refusal) => return refused(&refusal),
        };
        if self.store().is_none() {
            // Nothing is kept, but how far the room has come is known at its home.
            return self.pending(call, |shard, to| {
                shard.ask_room(call.slot, (room, call.visitor.clone()), to, RoomAsk::Position)
            });
        }
        let name = self.room_name(room);
        let (before, after, limit) = (page.before, page.after, page.limit);
        self.permitted_lookup(call, room, Lookup::Page { room: name, before, after, limit })
    }

    pub(in crate::chat) fn edit_message(&mut self, call: &Call<'_>) -> Handled {
        let (room, message, user) = match called_message(call) {
            Ok(called) => called,
            Err(refused) => return refused,
        };
        let fields = match parse_edit(call.body, &call.caller.author()) {
            Ok(edited) => edited.fields,
            Err(refusal) => return refused(&refusal),
        };
        let mut prefix = Vec::new();
        event::message_updated_prefix(&mut prefix, room, &message, &fields, user.as_ref().map(Id::as_ref));
        let action = Action::Edit { message, fields };
        self.pending(call, |shard, to| shard.ask_change(call, room, to, prefix, action))
    }

    pub(in crate::chat) fn delete_message(&mut self, call: &Call<'_>) -> Handled {
        let (room, message, user) = match called_message(call) {
            Ok(called) => called,
            Err(refused) => return refused,
        };
        let mut prefix = Vec::new();
        event::message_deleted_prefix(&mut prefix, room, &message, user.as_ref().map(Id::as_ref));
        self.pending(call, |shard, to| shard.ask_change(call, room, to, prefix, Action::Delete { message }))
    }

    /// Adds a reaction, or takes it back.
    pub(in crate::chat) fn react(&mut self, call: &Call<'_>, adds: bool) -> Handled {
        let (room, message, user) = match called_message(call) {
            Ok(called) => called,
            Err(refused) => return refused,
        };
        let Some(user) = user else {
            return error(422, ErrorCode::InvalidMessage, "the query needs userId: whose reaction it is");
        };
        let emoji: &str = call.target.segments.get(7).map_or("", |emoji| emoji);
        if !(1..=EMOJI_BYTES_MAX).contains(&emoji.len()) {
            return error(422, ErrorCode::InvalidMessage, "the emoji must have 1 to 64 bytes");
        }
        let mut prefix = Vec::with_capacity(192);
        let put = if adds { event::reaction_prefix } else { event::reaction_removed_prefix };
        put(&mut prefix, room, &message, emoji, user.as_ref());
        let emoji = emoji.into();
        let action = match adds {
            true => Action::React { message, emoji, user, repeats: false },
            false => Action::Unreact { message, emoji, user },
        };
        self.pending(call, |shard, to| shard.ask_change(call, room, to, prefix, action))
    }
}

/// The page of a room of which nothing is kept.
pub(super) fn empty_page(epoch: &str, last_seq: u64) -> Vec<u8> {
    let mut out = b"{\"messages\":[],\"epoch\":".to_vec();
    put_json_string(&mut out, epoch);
    let first_seq = last_seq + 1;
    out.extend_from_slice(format!(",\"firstSeq\":{first_seq},\"lastSeq\":{last_seq},\"more\":false}}").as_bytes());
    out
}

/// The room, the message, and the user for whom the call acts: a service may act for nobody.
fn called_message<'c>(call: &'c Call<'_>) -> Result<(&'c str, Id, Option<Id>), Handled> {
    let room = called_room(call).ok_or_else(bad_room)?;
    let message = call.target.segments.get(5).and_then(|id| Id::from_url(id));
    let message =
        message.ok_or_else(|| error(422, ErrorCode::InvalidMessage, "a message id must have 1 to 128 bytes"))?;
    let user = match (&call.caller, call.target.query("userId")) {
        (Caller::User(user) | Caller::Moderator(user), _) => Some(user.clone()),
        (Caller::Service, Some(named)) => Some(Id::from_url(&named).ok_or_else(bad_user)?),
        (Caller::Service, None) => None,
    };
    Ok((room, message, user))
}
