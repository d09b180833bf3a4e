//! A WebSocket: from bytes to requests, and from answers to messages.
//!
//! Every message is answered: what is bad gets an `error`, and the connection stays open unless it floods.

use super::closing::CloseReason;
use super::connection::{Flag, JoinBatch, Phase};
use super::entry::denial;
use super::envelope::{Answer, Since};
use super::ids::RoomName;
use super::membership::{RoomAction, RoomRequest};
use super::rates::RateClass;
use super::shard::Shard;
use super::store::{self, Actor, Change};
use crate::auth::Role;
use crate::config::Service;
use crate::wire::client::{self, Action, ErrorCode, Request, RoomEntry};
use crate::wire::decoder::{Event, Rules, decode_by};
use crate::wire::event;
use crate::wire::message::parse_sent;
use crate::wire::value::Id;
use crate::wire::websocket::{Opcode, put_frame};

impl Shard {
    /// Takes bytes that came in on a connection; they may be changed in place.
    pub fn handle_input(&mut self, slot: u32, input: &mut [u8]) {
        let tick = self.tick();
        let conn = &mut self.connections[slot];
        conn.seen = tick;
        conn.unmark(Flag::Pinged);
        match conn.phase {
            Phase::Http => self.http_input(slot, input),
            Phase::Auth | Phase::Open if conn.has(Flag::Checking) => self.keep_input(slot, input),
            Phase::Auth | Phase::Open | Phase::Closing => self.websocket_input(slot, input),
            Phase::Admitting => self.keep_input(slot, input),
            Phase::Lingering | Phase::Dead | Phase::Free => {}
        }
    }

    /// Bytes that came while the connection was paused are taken up again.
    pub(super) fn take_up_tail(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        let is_read = matches!(conn.phase, Phase::Http | Phase::Auth | Phase::Open | Phase::Closing);
        if !is_read || conn.has(Flag::Checking) {
            return;
        }
        let Some(extra) = &mut conn.extra else { return };
        // An HTTP connection looks at its tail even if it is empty: a finished answer may let it close.
        let mut tail = std::mem::take(&mut extra.tail);
        if conn.phase == Phase::Http {
            self.http_resume(slot, tail);
        } else if !tail.is_empty() {
            self.websocket_input(slot, &mut tail);
        }
    }

    pub(super) fn websocket_input(&mut self, slot: u32, input: &mut [u8]) {
        let deflate = self.connections[slot].deflates();
        let rules = Rules { message_bytes_max: self.config.limits.message_bytes_max, deflate };
        let mut partial = self.connections[slot].extra.as_mut().and_then(|extra| extra.partial.take());
        let mut at = 0;
        while at < input.len() {
            match self.connections[slot].phase {
                Phase::Auth | Phase::Open | Phase::Closing if !self.connections[slot].has(Flag::Checking) => {}
                Phase::Auth | Phase::Open | Phase::Admitting => {
                    self.keep_input(slot, &input[at..]);
                    break;
                }
                _ => return,
            }
            let step = match decode_by(&mut partial, &mut input[at..], rules) {
                Ok(step) => step,
                Err(violation) => return self.close(slot, &CloseReason::Violation(violation)),
            };
            at += step.consumed;
            if let Some(event) = step.event {
                self.handle_event(slot, event);
            }
        }
        let alive = !matches!(self.connections[slot].phase, Phase::Free | Phase::Dead | Phase::Lingering);
        if partial.is_some() && alive {
            let now_ms = self.now.tick_ms;
            let extra = self.connections[slot].extra_mut();
            if extra.charged == 0 {
                extra.unfinished_ms = now_ms;
            }
            extra.partial = partial;
        }
        self.tidy_extra(slot);
    }

    fn handle_event(&mut self, slot: u32, event: Event<'_>) {
        let closing = self.connections[slot].phase == Phase::Closing;
        match event {
            Event::Close(_) if closing => {
                self.connections[slot].mark(Flag::PeerClosed);
                if !self.connections[slot].has_unsent() {
                    self.kill(slot);
                }
            }
            Event::Close(frame) => self.close_by_peer(slot, frame.map(|frame| frame.code)),
            _ if closing => {}
            Event::Pong(_) => {}
            Event::Ping(payload) => {
                if self.connections[slot].behind_bytes() >= self.config.limits.outbox_hard_bytes {
                    self.close(slot, &CloseReason::SlowConsumer);
                } else if self.charge(slot, None).is_ok() {
                    let outbox = &mut self.connections[slot].outbox;
                    self.pool.append_direct(outbox, |out| put_frame(out, Opcode::Pong, &[&payload]));
                    self.mark_express(slot);
                }
            }
            Event::Message { payload, binary, deflated: true } => self.handle_deflated(slot, &payload, binary),
            Event::Message { payload, binary, .. } => self.take_message(slot, &payload, binary),
        }
    }

    /// Hands a message to who answers.
    fn take_message(&mut self, slot: u32, payload: &[u8], binary: bool) {
        match self.config.service {
            Service::Chat => self.handle_message(slot, payload),
            Service::Echo => self.echo_message(slot, payload, binary),
        }
    }

    fn handle_deflated(&mut self, slot: u32, payload: &[u8], binary: bool) {
        let message_bytes_max = self.config.limits.message_bytes_max;
        let mut message = self.inflater.take_buffer();
        match self.inflater.inflate(payload, !binary, message_bytes_max, &mut message) {
            Ok(()) => self.take_message(slot, &message, binary),
            Err(violation) => self.close(slot, &CloseReason::Violation(violation)),
        }
        self.inflater.keep_buffer(message);
    }

    fn handle_message(&mut self, slot: u32, payload: &[u8]) {
        let parsed = client::parse(payload);
        if self.connections[slot].phase == Phase::Auth && !matches!(&parsed, Ok(message) if is_auth(&message.request)) {
            return self.close(slot, &CloseReason::NoToken);
        }
        let class = parsed.as_ref().ok().and_then(|message| RateClass::of(&message.request));
        if let Err(retry_after_ms) = self.charge(slot, class) {
            let reference = match &parsed {
                Ok(message) => message.reference.map(|reference| reference.as_json()),
                Err(refusal) => refusal.reference.as_deref(),
            };
            self.send_rate_limited(slot, reference, retry_after_ms);
            return;
        }
        match parsed {
            Ok(message) => {
                let reference = message.reference.map(|reference| Box::from(reference.as_json()));
                self.handle_client_request(slot, reference, message.request);
            }
            Err(refusal) => {
                let (reference, room) = (refusal.reference.as_deref(), refusal.room.as_deref());
                self.send_error(slot, refusal.code, refusal.message, reference, room);
            }
        }
    }

    fn handle_client_request(&mut self, slot: u32, reference: Option<Box<str>>, request: Request<'_>) {
        let now = self.now.wall_ms;
        match request {
            Request::Auth { token } => return self.handle_auth(slot, token.as_str(), reference),
            Request::Ping => return self.send_json(slot, |out| event::pong(out, reference.as_deref(), now)),
            _ => {}
        }
        match request {
            Request::JoinRoom { room, since } => {
                let action = RoomAction::Join { batch: None, since: since.as_ref().map(known) };
                self.ask_about_room(slot, &room, RoomRequest { reference, action });
            }
            Request::JoinRooms { rooms } => self.join_rooms(slot, reference, &rooms),
            Request::LeaveRoom { room } => {
                self.ask_about_room(slot, &room, RoomRequest { reference, action: RoomAction::Leave });
            }
            Request::Typing { room, start } => {
                self.ask_about_room(slot, &room, RoomRequest { reference, action: RoomAction::Typing(start) });
            }
            Request::SendMessage { room, text } => self.send_posted(slot, reference, &room, text),
            Request::Reaction { room, message_id, emoji, action } => {
                let change = self.reaction(slot, &room, message_id, &emoji, action);
                self.ask_for_change(slot, reference, &room, change);
            }
            Request::EditMessage { room, message_id, fields } => {
                let (by, mut prefix) = (self.actor(slot), Vec::new());
                let user = self.users.id(self.connections[slot].user).as_ref();
                event::message_updated_prefix(&mut prefix, &room, &message_id, &fields, Some(user));
                let action = store::Action::Edit { message: message_id, fields };
                self.ask_for_change(slot, reference, &room, Change { by, prefix, action });
            }
            Request::DeleteMessage { room, message_id } => {
                let (by, mut prefix) = (self.actor(slot), Vec::new());
                let user = self.users.id(self.connections[slot].user).as_ref();
                event::message_deleted_prefix(&mut prefix, &room, &message_id, Some(user));
                let action = store::Action::Delete { message: message_id };
                self.ask_for_change(slot, reference, &room, Change { by, prefix, action });
            }
            Request::MarkRead { room, seq } => {
                let user = self.users.id(self.connections[slot].user).as_ref().to_id();
                let (by, action) = (self.actor(slot), store::Action::MarkRead { user, seq });
                self.ask_for_change(slot, reference, &room, Change { by, prefix: Vec::new(), action });
            }
            Request::RefreshToken { token } => self.handle_refresh_token(slot, token.as_str(), reference),
            Request::Ping | Request::Auth { .. } => {}
        }
    }

    fn ask_for_change(&mut self, slot: u32, reference: Option<Box<str>>, room: &str, change: Change) {
        self.ask_about_room(slot, room, RoomRequest { reference, action: RoomAction::Change(change.into()) });
    }

    fn send_posted(&mut self, slot: u32, reference: Option<Box<str>>, room: &str, text: &str) {
        let user = self.users.id(self.connections[slot].user).as_ref().to_id();
        match parse_sent(text, room, self.digest_key(), &user) {
            Ok(posted) => {
                let (prefix, post) = self.make_post(room, posted, Some(&user));
                let change = Change { by: self.actor(slot), prefix, action: store::Action::Post(post) };
                self.ask_for_change(slot, reference, room, change);
            }
            Err(refusal) => {
                self.send_error(slot, refusal.code, &refusal.message, reference.as_deref(), Some(room));
            }
        }
    }

    fn reaction(&self, slot: u32, room: &str, message: Id, emoji: &str, action: Option<Action>) -> Change {
        let mut prefix = Vec::with_capacity(192);
        let user = self.users.id(self.connections[slot].user).as_ref();
        let removes = action == Some(Action::Remove);
        let put = if removes { event::reaction_removed_prefix } else { event::reaction_prefix };
        put(&mut prefix, room, &message, emoji, user);
        let (user, emoji) = (user.to_id(), Box::from(emoji));
        let action = match action {
            Some(Action::Remove) => store::Action::Unreact { message, emoji, user },
            _ => store::Action::React { message, emoji, user, repeats: action.is_none() },
        };
        Change { by: self.actor(slot), prefix, action }
    }

    /// As whom a connection changes something durable.
    fn actor(&self, slot: u32) -> Actor {
        let conn = &self.connections[slot];
        let user = || self.users.id(conn.user).as_ref().to_id();
        match conn.role {
            Role::Service => Actor::Service,
            Role::Moderator => Actor::Moderator(user()),
            Role::User => Actor::User(user()),
        }
    }

    fn join_rooms(&mut self, slot: u32, reference: Option<Box<str>>, entries: &[RoomEntry<'_>]) {
        let extra = self.connections[slot].extra_mut();
        let number = extra.batches.back().map_or(0, |batch| batch.number.wrapping_add(1));
        let mut rooms: Vec<(Box<str>, Option<ErrorCode>)> = Vec::with_capacity(entries.len());
        let mut asked = Vec::new();
        for entry in entries {
            match entry {
                RoomEntry::Room(room, since) => {
                    // A room named twice is joined, and answered, once.
                    if !asked.iter().any(|(name, _)| *name == &**room) {
                        asked.push((&**room, since.as_ref().map(known)));
                        rooms.push((Box::from(&**room), None));
                    }
                }
                RoomEntry::Malformed(raw) => rooms.push((Box::from(*raw), Some(ErrorCode::InvalidMessage))),
            }
        }
        // One more than there are rooms, so that the last step answers also when there is no valid room.
        extra.batches.push_back(JoinBatch { number, reference, rooms, left: asked.len() + 1 });
        for (room, since) in asked {
            let action = RoomAction::Join { batch: Some(number), since };
            self.ask_about_room(slot, room, RoomRequest { reference: None, action });
        }
        self.answer_part(slot, Some(number), "", None);
        self.tidy_extra(slot);
    }

    /// Answers a request about a room: one without a `ref` is told only that it was refused.
    pub(super) fn answer_request(&mut self, slot: u32, reference: Option<&str>, room: &RoomName, answer: &Answer) {
        if !self.connections[slot].is_open() {
            return;
        }
        let (now, room) = (self.now.wall_ms, room.text());
        match (answer, reference) {
            (Answer::Refused(code), _) => {
                let text = self.text_of(*code);
                self.send_error(slot, *code, text, reference, Some(room));
            }
            (Answer::Denied(level), _) => {
                let (code, text) = denial(*level);
                self.send_error(slot, code, text, reference, Some(room));
            }
            (_, None) => {}
            (Answer::Published { id: Some(id), seq, timestamp, .. }, _) => {
                self.send_json(slot, |out| event::ack_sent(out, reference, room, id, *seq, timestamp));
            }
            _ => self.send_json(slot, |out| event::ack(out, reference, Some(room), now)),
        }
    }

    /// Sends an `error`, and records it if the user may not do something in a room.
    pub(super) fn send_error(
        &mut self,
        slot: u32,
        code: ErrorCode,
        text: &str,
        reference: Option<&str>,
        room: Option<&str>,
    ) {
        if let Some(room) = room {
            self.deny_in_room(slot, Some(code), room);
        }
        let now = self.now.wall_ms;
        self.send_json(slot, |out| event::error(out, code, text, reference, room, None, now));
    }

    fn send_rate_limited(&mut self, slot: u32, reference: Option<&str>, retry_after_ms: u64) {
        let now = self.now.wall_ms;
        let text = "too many messages, slow down";
        self.send_json(slot, |out| {
            event::error(out, ErrorCode::RateLimited, text, reference, None, Some(retry_after_ms), now);
        });
    }

    /// Keeps bytes until the connection may be read again.
    pub(super) fn keep_input(&mut self, slot: u32, input: &[u8]) {
        let now_ms = self.now.tick_ms;
        let conn = &mut self.connections[slot];
        conn.mark(Flag::Paused);
        let extra = conn.extra_mut();
        if extra.charged == 0 {
            extra.unfinished_ms = now_ms;
        }
        extra.tail.extend_from_slice(input);
        self.tidy_extra(slot);
    }

    /// Frees the rare part of a connection when nothing is in it, and keeps the account of the input pool.
    pub(super) fn tidy_extra(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        let Some(extra) = &mut conn.extra else { return };
        let held = extra.tail.capacity()
            + extra.partial.as_ref().map_or(0, |partial| partial.bytes())
            + extra.http.as_ref().map_or(0, |http| http.body_bytes());
        self.input_bytes = self.input_bytes - extra.charged + held;
        extra.charged = held;
        if extra.is_default() {
            conn.extra = None;
        }
        if self.input_bytes > self.config.limits.input_pool_bytes / self.shards {
            self.keep_within_input_pool();
        }
    }

    /// Closes those whose message has been unfinished longest.
    fn keep_within_input_pool(&mut self) {
        let max = self.config.limits.input_pool_bytes / self.shards;
        let holding = self.connections.iter().filter_map(|(slot, conn)| {
            conn.extra.as_ref().filter(|extra| extra.charged > 0).map(|extra| (extra.unfinished_ms, slot))
        });
        let mut oldest: Vec<(u64, u32)> = holding.collect();
        oldest.sort_unstable();
        tracing::warn!(shard = self.id.0, bytes = self.input_bytes, max, "input pool full");
        for (_, slot) in oldest {
            if self.input_bytes <= max - max / 10 {
                break;
            }
            self.close(slot, &CloseReason::InputPoolFull);
        }
    }
}

/// Where a client left off; without an epoch it cannot be known what its `seq` means.
fn known(since: &client::Since<'_>) -> Box<Since> {
    let epoch = since.epoch.as_deref().unwrap_or_default().into();
    Box::new(Since { seq: since.seq, epoch, is_read: false })
}

/// Whether a message is the one with which a connection without a token has to begin.
fn is_auth(request: &Request<'_>) -> bool {
    matches!(request, Request::Auth { token } if !token.as_str().is_empty())
}
