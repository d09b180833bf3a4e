//! Calls about a user: its connections, its rooms, an event for it, a kick.

use std::sync::Arc;

use crate::chat::burst::Frames;
use crate::chat::envelope::{Ask, ConnectionSummary, Disconnect, Origin, ReplyTo, Request, ShardAsk, UserAsk};
use crate::chat::ids::{ShardId, home};
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::Lookup;
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::rest_body::{parse_disconnect, parse_user_event};
use crate::wire::value::{Id, put_json_string};
use crate::wire::websocket::{Opcode, put_frame};

use super::{BUSY, bad_user, put_list, refused};

impl Shard {
    pub(in crate::chat) fn post_user_event(&mut self, call: &Call<'_>) -> Handled {
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

    pub(in crate::chat) fn describe_user(&mut self, call: &Call<'_>) -> Handled {
        let Some(user) = self.called_user(call) else { return bad_user() };
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        match self.ask_all(call, |_| ShardAsk::Connections(user.clone())) {
            Some(left) => Handled::Gather(Box::new(Gather::User { connections: Vec::new(), left })),
            None => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    pub(in crate::chat) fn post_disconnect(&mut self, call: &Call<'_>) -> Handled {
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

    pub(in crate::chat) fn list_rooms_of_user(&mut self, call: &Call<'_>) -> Handled {
        let user = call.target.segments.get(3).and_then(|user| Id::from_url(user));
        let Some(user) = user else { return bad_user() };
        self.pending_lookup(call, Lookup::RoomsOf { user })
    }
}

pub(super) fn user_json(connections: &[ConnectionSummary]) -> Vec<u8> {
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
