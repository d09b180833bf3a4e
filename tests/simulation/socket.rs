//! A WebSocket client and what it knows: the shadow model of a member.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::change::{Change, What, text};
use super::frames::{frame, inflate, put, say};
use super::members::GUARDED;
use super::random::Random;

/// What must be known to judge how a connection may end.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    pub slow: bool,
    pub flooding: bool,
    pub replaced: bool,
    pub input_pool: bool,
    pub expired: bool,
    /// Without a close frame: it was given no answer for lack of something.
    pub refused: bool,
    pub draining: bool,
    pub loud: bool,
}

/// How a client opens.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The token comes in a message.
    pub late: bool,
    /// What is offered for compressed messages, 0 for nothing.
    pub window_bits: u8,
}

/// A room as a client sees it.
#[derive(Default, Debug)]
pub struct View {
    pub joined: bool,
    pub last: u64,
    pub epoch: String,
    /// What is sent up to there was missed, and is as it was when the room had come so far.
    missed_to: u64,
    /// A leave without `ref` was sent; answers to requests from this number on settle what became of it.
    unsure: Option<u64>,
    pub online: BTreeSet<String>,
    pub truncated: bool,
    pub typing: BTreeSet<String>,
}

#[derive(Debug)]
enum Sent {
    /// With where it left off, if it says so.
    Join(String, Option<Place>),
    Leave(String),
    Rooms,
    Change(Change),
    Other,
}

/// Up to where a client knows a room.
pub type Place = (u64, String);

/// What a client has learned of one event.
#[derive(Debug)]
pub struct Seen {
    pub room: String,
    pub epoch: String,
    pub seq: u64,
    pub event: Value,
    /// It was missed, and is as it was when the room had come so far.
    pub told_to: Option<u64>,
}

/// What is left of a client when its connection is over, for the next one of the same user.
#[derive(Clone, Default, Debug)]
pub struct Memory {
    pub places: BTreeMap<String, Place>,
    /// Changes of which it is not known whether they are kept.
    pub open: Vec<Change>,
    /// Messages that it has written, or heard of, which may be changed.
    pub own: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Socket {
    pub user: String,
    rooms: Vec<String>,
    input: Vec<u8>,
    upgraded: bool,
    /// What is offered for compressed messages, 0 for nothing; and whether it was agreed.
    window_bits: u8,
    deflates: bool,
    pub connected: bool,
    pub closed: Option<u16>,
    close_sent: bool,
    pub views: BTreeMap<String, View>,
    sent: BTreeMap<u64, Sent>,
    /// No other client uses the same numbers, so an answer meant for another is seen.
    next: u64,
    /// The room whose `online_update` must come now.
    greeted: Option<String>,
    pub drained: bool,
    /// Refs below this must be answered before a close for draining.
    pub must_answer_below: u64,
    pub shed: u64,
    pub allowed: Allowed,
    pub memory: Memory,
    pub seen: Vec<Seen>,
    pub acknowledged: Vec<(Change, Option<u64>)>,
    /// What the last one who said where it left off was told.
    pub recovered: Option<bool>,
}

impl Socket {
    pub fn new(
        user: String,
        rooms: Vec<String>,
        token: &str,
        out: &mut VecDeque<u8>,
        allowed: Allowed,
        offer: Offer,
        first: u64,
    ) -> Self {
        let Offer { late, window_bits } = offer;
        let query = if late { String::new() } else { format!("?token={token}") };
        let protocol = if late { "Sec-WebSocket-Protocol: sizland.v1\r\n" } else { "" };
        let offer = match window_bits {
            0 => String::new(),
            bits => format!("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={bits}\r\n"),
        };
        let head = format!(
            "GET /ws{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{protocol}{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        out.extend(head.bytes());
        let mut socket = Self {
            user,
            rooms,
            input: Vec::new(),
            upgraded: false,
            window_bits,
            deflates: false,
            connected: false,
            closed: None,
            close_sent: false,
            views: BTreeMap::new(),
            sent: BTreeMap::new(),
            next: first,
            greeted: None,
            drained: false,
            must_answer_below: 0,
            shed: 0,
            allowed,
            memory: Memory::default(),
            seen: Vec::new(),
            acknowledged: Vec::new(),
            recovered: None,
        };
        if late {
            let reference = socket.number(Sent::Other);
            put(out, 1, true, json!({"type": "auth", "token": token, "ref": reference}).to_string().as_bytes());
        }
        socket
    }

    pub fn unanswered(&self) -> usize {
        if self.close_sent || self.closed.is_some() { 0 } else { self.sent.len() + usize::from(!self.connected) }
    }

    pub fn is_open(&self) -> bool {
        self.connected && !self.close_sent && self.closed.is_none()
    }

    pub fn is_in(&self, room: &str) -> bool {
        self.views.get(room).is_some_and(|view| view.joined && view.unsure.is_none())
    }

    /// Rooms of which it is not known whether this client is in them.
    pub fn unsure(&self) -> Vec<String> {
        self.views.iter().filter(|(_, view)| view.unsure.is_some()).map(|(room, _)| room.clone()).collect()
    }

    pub fn next_ref(&self) -> u64 {
        self.next
    }

    pub fn act(&mut self, random: &mut Random, out: &mut VecDeque<u8>, split: bool) {
        if self.close_sent || self.closed.is_some() {
            return;
        }
        let room = self.rooms[random.below(self.rooms.len())].clone();
        match random.below(32) {
            0..=2 => self.join(&room, out),
            3..=5 => self.come_back(&room, random, out),
            24..=30 => self.change(&room, random, out, split),
            6..=7 => self.leave(&room, out),
            8 => {
                self.views.entry(room.clone()).or_default().unsure = Some(self.next);
                say(self.deflates, out, json!({"type": "leave_room", "roomId": room}), random, split);
                if random.one_in(2) { self.join(&room, out) } else { self.leave(&room, out) }
            }
            9..=12 => {
                let kind = random.pick(&["typing_start", "typing_stop"]);
                let reference = self.number(Sent::Other);
                say(self.deflates, out, json!({"type": kind, "roomId": room, "ref": reference}), random, split);
            }
            13..=16 => {
                let reference = self.number(Sent::Other);
                let message =
                    json!({"type": "reaction", "roomId": room, "messageId": "m", "emoji": "x", "ref": reference});
                say(self.deflates, out, message, random, split);
            }
            17 => {
                let reference = self.number(Sent::Rooms);
                let rooms: Vec<Value> = self.rooms.iter().map(|room| json!({"roomId": room})).collect();
                say(self.deflates, out, json!({"type": "join_rooms", "rooms": rooms, "ref": reference}), random, split);
            }
            18 => {
                let reference = self.number(Sent::Other);
                say(
                    self.deflates,
                    out,
                    json!({"type": random.pick(&["ping", "nonsense", "join_room"]), "ref": reference}),
                    random,
                    split,
                );
            }
            19 => put(out, 9, true, b"ping"),
            20 => say(self.deflates, out, json!({"type": "typing_start", "roomId": room}), random, split),
            21 => say(self.deflates, out, json!({"type": "join_room", "roomId": room}), random, split),
            22 => {
                // Join, speak and leave in one write.
                self.join(&room, out);
                say(self.deflates, out, json!({"type": "typing_start", "roomId": room}), random, split);
                self.leave(&room, out);
            }
            _ if random.one_in(4) => self.say_close(out),
            _ => {}
        }
    }

    /// Changes something in a room that it is in, or joins one.
    pub fn converse(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        if self.close_sent || self.closed.is_some() {
            return;
        }
        let inside: Vec<&String> = self.rooms.iter().filter(|room| self.is_in(room)).collect();
        if inside.is_empty() || random.one_in(5) {
            let room = self.rooms[random.below(self.rooms.len())].clone();
            return self.come_back(&room, random, out);
        }
        let room = inside[random.below(inside.len())].clone();
        self.change(&room, random, out, false);
    }

    pub fn join(&mut self, room: &str, out: &mut VecDeque<u8>) {
        let reference = self.number(Sent::Join(room.to_owned(), None));
        put(out, 1, true, json!({"type": "join_room", "roomId": room, "ref": reference}).to_string().as_bytes());
    }

    /// Joins and says where it left off, or something like it.
    pub fn come_back(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>) {
        let view = self.views.get(room).map(|view| (view.last, view.epoch.clone()));
        let known = view.filter(|(_, epoch)| !epoch.is_empty()).or_else(|| self.memory.places.get(room).cloned());
        let Some((last, epoch)) = known else { return self.join(room, out) };
        let place = match random.below(8) {
            0..=3 => (last, epoch),
            4..=5 => (last.saturating_sub(random.range(1, 6) as u64), epoch),
            6 => (0, epoch),
            _ => {
                if random.one_in(2) {
                    (last + 1_000, epoch)
                } else {
                    (last, "another".to_owned())
                }
            }
        };
        self.join_from(room, place, out);
    }

    pub fn join_from(&mut self, room: &str, place: Place, out: &mut VecDeque<u8>) {
        let (since, epoch) = &place;
        let mut message = json!({"type": "join_room", "roomId": room, "since": since, "epoch": epoch});
        message["ref"] = json!(self.number(Sent::Join(room.to_owned(), Some(place))));
        put(out, 1, true, message.to_string().as_bytes());
    }

    /// Asks for something durable: anew, or what it does not know to be kept.
    fn change(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>, split: bool) {
        let change = if !self.memory.open.is_empty() && random.one_in(2) {
            self.memory.open.swap_remove(random.below(self.memory.open.len()))
        } else {
            self.draw(room, random)
        };
        let mut message = change.message();
        message["ref"] = json!(self.number(Sent::Change(change)));
        say(self.deflates, out, message, random, split);
    }

    fn draw(&mut self, room: &str, random: &mut Random) -> Change {
        let number = self.next;
        let own: Vec<&String> = self.memory.own.iter().filter(|(of, _)| of == room).map(|(_, id)| id).collect();
        let room = room.to_owned();
        let id = match own.len() {
            0 => format!("{number:08x}-0000-4000-8000-000000000000"),
            count => own[random.below(count)].clone(),
        };
        let what = match random.below(8) {
            _ if own.is_empty() => What::Message { id },
            0..=2 => What::Message { id: format!("{number:08x}-0000-4000-8000-000000000000") },
            3 => What::Edit { id, content: format!("edit {number}") },
            4 => What::Delete { id },
            5 => What::React { id, emoji: format!("e{}", number % 7), user: self.user.clone() },
            6 => What::Unreact { id, emoji: format!("e{}", number % 7) },
            _ => What::MarkRead { seq: self.views.get(&room).map_or(1, |view| view.last.max(1)) },
        };
        Change { room, what }
    }

    /// What is left of it for the next connection.
    pub fn into_memory(self) -> (String, Memory) {
        let mut memory = self.memory;
        for (room, view) in self.views {
            if !view.epoch.is_empty() {
                memory.places.insert(room, (view.last, view.epoch));
            }
        }
        let open = self.sent.into_values().filter_map(|sent| match sent {
            Sent::Change(change) => Some(change),
            _ => None,
        });
        memory.open.extend(open);
        memory.open.truncate(20);
        (self.user, memory)
    }

    pub fn leave(&mut self, room: &str, out: &mut VecDeque<u8>) {
        let reference = self.number(Sent::Leave(room.to_owned()));
        put(out, 1, true, json!({"type": "leave_room", "roomId": room, "ref": reference}).to_string().as_bytes());
    }

    pub fn react(&mut self, room: &str, out: &mut VecDeque<u8>) {
        let reference = self.number(Sent::Other);
        let message = json!({"type": "reaction", "roomId": room, "messageId": "m", "emoji": "x", "ref": reference});
        put(out, 1, true, message.to_string().as_bytes());
    }

    fn say_close(&mut self, out: &mut VecDeque<u8>) {
        self.close_sent = true;
        put(out, 8, true, &1000u16.to_be_bytes());
    }

    fn number(&mut self, sent: Sent) -> u64 {
        self.next += 1;
        self.sent.insert(self.next - 1, sent);
        self.next - 1
    }

    /// Takes bytes in.
    pub fn take(&mut self, bytes: &[u8], out: &mut VecDeque<u8>) {
        if self.closed == Some(0) {
            // The body of the answer that refused the upgrade.
            return;
        }
        let shown = String::from_utf8_lossy(bytes);
        assert!(
            bytes.is_empty() || self.closed.is_none(),
            "nothing follows a Close frame ({:?}): {shown:?}",
            self.closed
        );
        self.input.extend_from_slice(bytes);
        if !self.upgraded {
            let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") else {
                assert!(self.input.is_empty() || b"HTTP/1.1 ".starts_with(&self.input[..self.input.len().min(9)]));
                return;
            };
            let head = String::from_utf8(self.input.drain(..end + 4).collect()).unwrap();
            if head.starts_with("HTTP/1.1 503") || head.starts_with("HTTP/1.1 408") {
                assert!(self.allowed.refused || self.drained || self.allowed.draining, "refused: {head}");
                (self.closed, self.close_sent) = (Some(0), true);
                self.input.clear();
                return;
            }
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            self.deflates = head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; ");
            assert_eq!(self.deflates, self.window_bits > 0, "what is offered is taken: {head}");
            self.upgraded = true;
        }
        while let Some((first, payload, length)) = frame(&self.input) {
            self.input.drain(..length);
            match first & 0x7f {
                0x41 => {
                    assert!(self.deflates, "compressed for a client that did not offer it");
                    let text = inflate(&payload);
                    self.message(&serde_json::from_slice(&text).unwrap());
                }
                1 => {
                    let value = serde_json::from_slice(&payload);
                    self.message(&value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&payload))));
                }
                8 => {
                    let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                    self.close(code, out);
                }
                9 => put(out, 10, true, &payload),
                10 => {}
                other => panic!("opcode {other}"),
            }
        }
    }

    fn close(&mut self, code: u16, out: &mut VecDeque<u8>) {
        assert!(self.input.is_empty(), "nothing follows a Close frame");
        self.closed = Some(code);
        let allowed = match code {
            1000 => self.close_sent,
            // Draining, or an `auth` that was refused for lack of credits.
            1001 if !self.connected => self.allowed.draining || self.allowed.refused,
            1001 => self.allowed.draining && (self.drained || self.allowed.slow),
            1009 => self.allowed.input_pool,
            4001 => self.allowed.expired,
            1008 => self.allowed.expired,
            4008 => self.allowed.slow,
            4029 => self.allowed.flooding,
            4500 => true,
            4503 => self.allowed.replaced,
            _ => false,
        };
        assert!(allowed, "closed with {code}, which nothing calls for: {self:?}");
        if code == 1001 && self.connected {
            let open = self.sent.range(..self.must_answer_below).next();
            assert!(open.is_none() || self.close_sent, "closed for draining with {open:?} unanswered");
        }
        if !self.close_sent {
            self.close_sent = true;
            put(out, 8, true, &code.to_be_bytes());
        }
    }

    pub fn end(&mut self, excused: bool) {
        if !excused && !self.close_sent {
            assert!(self.closed.is_some() || self.allowed.loud, "ended without a Close frame");
        }
        let torn = !self.input.is_empty() && !excused && !self.allowed.loud;
        assert!(!torn, "ended inside of a frame");
    }

    fn message(&mut self, message: &Value) {
        let kind = message["type"].as_str().unwrap().to_owned();
        if !self.connected && kind == "error" && self.allowed.refused {
            // The home of the user takes no more requests now.
            assert_eq!(message["code"], "overloaded");
            return;
        }
        if !self.connected {
            assert_eq!(kind, "connected", "the greeting comes first: {message}");
            assert_eq!(text(&message["userId"]), self.user);
            self.connected = true;
            return;
        }
        if let Some(room) = self.greeted.take() {
            assert!(
                kind == "online_update" && message["roomId"] == *room,
                "the list follows one's own joining: {message}"
            );
            return self.take_list(&room, message, true);
        }
        assert!(!self.drained || matches!(&*kind, "draining"), "nothing follows draining: {message}");
        match &*kind {
            "ack" | "error" | "pong" => self.answer(&kind, message),
            "shed" => self.shed += message["count"].as_u64().unwrap(),
            "draining" => self.drained = true,
            _ => self.room_event(&kind, message),
        }
    }

    fn answer(&mut self, kind: &str, message: &Value) {
        let Some(reference) = message["ref"].as_u64() else {
            assert_eq!(kind, "error", "only an error may answer what has no ref: {message}");
            return;
        };
        let sent = self.sent.remove(&reference);
        let sent = sent.unwrap_or_else(|| panic!("answered twice, or never asked: {message}"));
        match sent {
            Sent::Change(change) => self.take_verdict(kind == "ack", change, message),
            Sent::Join(room, _) if kind == "ack" => {
                let view = self.settle(&room, reference, message);
                assert!(view.joined, "a join is answered behind the greeting");
                assert!(view.last >= view.missed_to, "{} of {} missed: {message}", view.last, view.missed_to);
            }
            Sent::Leave(room) if kind == "ack" => self.settle(&room, reference, message).joined = false,
            _ => {}
        }
    }

    /// What has become of a leave without `ref` is known behind the answer to something later.
    fn settle(&mut self, room: &str, reference: u64, message: &Value) -> &mut View {
        assert_eq!(message["roomId"], *room, "{message}");
        let view = self.views.entry(room.to_owned()).or_default();
        if view.unsure.is_some_and(|since| reference >= since) {
            view.unsure = None;
        }
        view
    }

    fn take_verdict(&mut self, is_kept: bool, change: Change, message: &Value) {
        if !is_kept {
            let code = message["code"].as_str().unwrap();
            assert!(code == "rate_limited" || message["roomId"] == *change.room, "{message}");
            let may_be_lost = matches!(code, "unavailable" | "overloaded" | "rate_limited" | "not_in_room");
            let is_guarded = code == "forbidden" && change.room == GUARDED;
            let is_other =
                is_guarded || matches!(code, "not_found" | "forbidden") && !matches!(change.what, What::Message { .. });
            assert!(may_be_lost || is_other, "{change:?} was answered {message}");
            if may_be_lost && self.memory.open.len() < 20 {
                self.memory.open.push(change);
            }
            return;
        }
        let seq = message["seq"].as_u64();
        if let What::Message { id } = &change.what {
            assert_eq!((&message["id"], seq.is_some()), (&json!(id), true), "{message}");
            self.memory.own.push((change.room.clone(), id.clone()));
            let leaves = self.sent.values().any(|sent| matches!(sent, Sent::Leave(room) if *room == change.room));
            let view = self.views.entry(change.room.clone()).or_default();
            let has_it = !view.joined || view.unsure.is_some() || leaves || seq <= Some(view.last);
            assert!(has_it, "{} knows the room up to {} only: {message}", self.user, view.last);
        }
        self.acknowledged.push((change, seq));
    }

    fn room_event(&mut self, kind: &str, message: &Value) {
        let room = text(&message["roomId"]);
        let user = text(&message["userId"]);
        if kind == "user_joined" && user == self.user {
            self.greeted = Some(room);
            return;
        }
        if kind == "read_receipt" && user == self.user {
            // Of a large room all connections of the reader are told.
            return;
        }
        let view = self.views.entry(room.clone()).or_default();
        assert!(view.joined, "{} gets {message} without being in the room", self.user);
        if let Some(seq) = message["seq"].as_u64().filter(|_| !matches!(kind, "online_update" | "read_receipt")) {
            assert_eq!(seq, view.last + 1, "{} in {room}: {message}", self.user);
            view.last = seq;
            let (told_to, epoch) = ((seq <= view.missed_to).then_some(view.missed_to), view.epoch.clone());
            self.seen.push(Seen { room: room.clone(), epoch, seq, event: message.clone(), told_to });
            if kind == "new_message" && self.memory.own.len() < 10 {
                self.memory.own.push((room.clone(), text(&message["id"])));
            }
        }
        let view = self.views.entry(room.clone()).or_default();
        match kind {
            "new_message" | "message_updated" | "message_deleted" | "reaction" | "reaction_removed" => {
                assert!(message["seq"].is_u64(), "{message}");
            }
            "read_receipt" => {}
            "user_joined" => {
                view.online.insert(user);
            }
            "user_left" => {
                assert_ne!(user, self.user, "who is in the room has not left it: {message}");
                view.online.remove(&user);
                view.typing.remove(&user);
            }
            "typing_start" | "typing_stop" => {
                assert_ne!(user, self.user, "one's own typing is not told: {message}");
                if kind == "typing_start" {
                    view.typing.insert(user);
                } else {
                    view.typing.remove(&user);
                }
            }
            "online_update" => self.take_list(&room, message, false),
            "presence_diff" => {
                for user in message["joined"].as_array().unwrap() {
                    view.online.insert(text(user));
                }
                for user in message["left"].as_array().unwrap() {
                    view.online.remove(&text(user));
                }
            }
            "custom" => {}
            "removed_from_room" => {
                assert_eq!(room, GUARDED, "{message}");
                (view.joined, view.missed_to) = (false, 0);
                view.typing.clear();
            }
            other => panic!("{other}: {message}"),
        }
    }

    /// Where the events begin that are sent now, if what was missed is.
    fn since(&mut self, room: &str, recovered: Option<bool>) -> Option<Place> {
        let recovered = recovered?;
        // Joins that say where they left off are answered in order, each by a greeting or an error.
        let mut places = self.sent.values().filter_map(|sent| match sent {
            Sent::Join(of, Some(place)) if of == room => Some(place),
            _ => None,
        });
        let place = places.next().cloned().unwrap_or_else(|| panic!("nobody said where {room} was left"));
        self.recovered = Some(recovered);
        recovered.then_some(place)
    }

    fn take_list(&mut self, room: &str, message: &Value, greeting: bool) {
        let since = self.since(room, message["recovered"].as_bool().filter(|_| greeting));
        let view = self.views.entry(room.to_owned()).or_default();
        let (seq, epoch) = (message["seq"].as_u64().unwrap(), text(&message["epoch"]));
        if view.joined && view.unsure.is_none() {
            assert_eq!((seq, &*epoch), (view.last, &*view.epoch), "a list shows the room as it was told: {message}");
        }
        assert!(greeting || view.joined);
        if let Some((since, of)) = &since {
            assert!(*since <= seq && *of == epoch, "recovered from {since} of {of}: {message}");
        }
        view.missed_to = if since.is_some() { seq } else { 0 };
        (view.joined, view.last, view.epoch) = (true, since.map_or(seq, |(since, _)| since), epoch);
        view.online = message["online"].as_array().unwrap().iter().map(text).collect();
        view.truncated = message["truncated"] == true;
        if greeting {
            view.typing.clear();
        }
        assert!(view.truncated || view.online.contains(&self.user), "who is told is in the list: {message}");
    }
}
