//! Calls about a user: its connections, its rooms, an event for it, a kick.

use std::sync::Arc;

use crate::chat::burst::Frames;
use crate::chat::envelope::{Answer, Ask, ConnectionSummary, Disconnect, Origin, ReplyTo, Request, ShardAsk, UserAsk};
use crate::chat::http::Rest;
use crate::chat::ids::{ShardId, home};
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::{Lookup, Revoke};
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
        match self.ask_all(call.slot, call.number, |_| ShardAsk::Connections(user.clone())) {
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
        let origin = Origin { conn: self.connections.id(call.slot), to: ReplyTo::Rest(call.number) };
        if let (Some(before_ms), Some(_)) = (order.revoke_before_ms, self.store()) {
            // It takes effect at once, and is answered when it outlives the process.
            return match self.desk.revoke(Revoke { origin, order: order.clone(), before_ms }) {
                Ok(()) => self.oblige_all(call, &order),
                Err(_) => error(503, ErrorCode::Overloaded, BUSY),
            };
        }
        match self.ask_all(call.slot, call.number, |_| ShardAsk::Disconnect(order.clone())) {
            Some(left) => Handled::Gather(Box::new(Gather::Disconnect { count: 0, left, is_kept: true })),
            None => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Has every shard refuse older tokens of a user and close their connections. What the store is to keep must not be
    /// unknown to a shard, so it is no request; the desk bounds how many there are.
    fn oblige_all(&mut self, call: &Call<'_>, order: &Arc<Disconnect>) -> Handled {
        let conn = self.connections.id(call.slot);
        for shard in 0..self.shards as u16 {
            let origin = Origin { conn, to: ReplyTo::RestPart(call.number, u32::from(shard)) };
            let ask = Ask::Shard(ShardAsk::Disconnect(order.clone()));
            self.mail.oblige(ShardId(shard), Request { origin, ask });
        }
        Handled::Gather(Box::new(Gather::Disconnect { count: 0, left: self.shards + 1, is_kept: true }))
    }

    /// The store has kept a revocation, or could not. It has taken effect in any case.
    pub(in crate::chat) fn finish_revoke(&mut self, revoke: &Revoke, is_kept: bool) {
        let Origin { conn, to: ReplyTo::Rest(number) } = revoke.origin else { return };
        if self.connections.is_current(conn) {
            let answer = if is_kept { Answer::Done } else { Answer::Refused(ErrorCode::Unavailable) };
            self.answer_http(conn.slot(), number, None, answer);
        }
    }

    /// Asks every shard, or none if one of them takes no more requests; returns how many will answer.
    fn ask_all(&mut self, slot: u32, number: u32, ask: impl Fn(u16) -> ShardAsk) -> Option<usize> {
        let (conn, all) = (self.connections.id(slot), 0..self.shards as u16);
        if !all.clone().all(|shard| self.mail.has_credit(ShardId(shard))) {
            return None;
        }
        let posted = all.filter(|&shard| {
            let origin = Origin { conn, to: ReplyTo::RestPart(number, u32::from(shard)) };
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

/// The answer to a kick.
pub(super) fn disconnected(count: u32, is_kept: bool) -> Rest {
    if is_kept {
        return Rest::json(200, format!("{{\"disconnected\":{count}}}").into_bytes());
    }
    let text = "older tokens are refused and their connections closed, but the store cannot keep that now, so that a \
                restart would undo it: try again";
    Rest::error(503, ErrorCode::Unavailable, text)
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
