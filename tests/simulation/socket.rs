//! A WebSocket client and what it knows: the shadow model of a member.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};

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
    epoch: String,
    /// A leave without `ref` was sent; answers to requests from this number on settle what became of it.
    unsure: Option<u64>,
    pub online: BTreeSet<String>,
    pub truncated: bool,
    pub typing: BTreeSet<String>,
}

#[derive(Debug)]
enum Sent {
    Join(String),
    Leave(String),
    Rooms,
    Other,
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
    /// Ids of messages with their place.
    pub seen: Vec<(String, String, u64, String)>,
}

pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
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
            seen: Vec::new(),
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
        match random.below(24) {
            0..=5 => self.join(&room, out),
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

    pub fn join(&mut self, room: &str, out: &mut VecDeque<u8>) {
        let reference = self.number(Sent::Join(room.to_owned()));
        put(out, 1, true, json!({"type": "join_room", "roomId": room, "ref": reference}).to_string().as_bytes());
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
        if let (Sent::Join(room) | Sent::Leave(room), true) = (&sent, kind == "ack") {
            assert_eq!(message["roomId"], **room, "{message}");
            let view = self.views.entry(room.clone()).or_default();
            if view.unsure.is_some_and(|since| reference >= since) {
                view.unsure = None;
            }
            match sent {
                Sent::Leave(_) => view.joined = false,
                _ => assert!(view.joined, "a join is answered behind the greeting"),
            }
        }
    }

    fn room_event(&mut self, kind: &str, message: &Value) {
        let room = text(&message["roomId"]);
        let user = text(&message["userId"]);
        if kind == "user_joined" && user == self.user {
            self.greeted = Some(room);
            return;
        }
        let view = self.views.entry(room.clone()).or_default();
        assert!(view.joined, "{} gets {message} without being in the room", self.user);
        if let Some(seq) = message["seq"].as_u64().filter(|_| kind != "online_update") {
            assert_eq!(seq, view.last + 1, "{} in {room}: {message}", self.user);
            view.last = seq;
            let id = if kind == "new_message" { text(&message["id"]) } else { String::new() };
            self.seen.push((room.clone(), view.epoch.clone(), seq, id));
        }
        let view = self.views.entry(room.clone()).or_default();
        match kind {
            "new_message" | "reaction" => assert!(message["seq"].is_u64(), "{message}"),
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
            other => panic!("{other}: {message}"),
        }
    }

    fn take_list(&mut self, room: &str, message: &Value, greeting: bool) {
        let view = self.views.entry(room.to_owned()).or_default();
        let (seq, epoch) = (message["seq"].as_u64().unwrap(), text(&message["epoch"]));
        if view.joined && view.unsure.is_none() {
            assert_eq!((seq, &*epoch), (view.last, &*view.epoch), "a list shows the room as it was told: {message}");
        }
        assert!(greeting || view.joined);
        (view.joined, view.last, view.epoch) = (true, seq, epoch);
        view.online = message["online"].as_array().unwrap().iter().map(text).collect();
        view.truncated = message["truncated"] == true;
        if greeting {
            view.typing.clear();
        }
        assert!(view.truncated || view.online.contains(&self.user), "who is told is in the list: {message}");
    }
}

fn say(deflates: bool, out: &mut VecDeque<u8>, message: Value, random: &mut Random, split: bool) {
    let text = message.to_string().into_bytes();
    let (opcode, payload) = if deflates { (0x41, deflate(&text)) } else { (1, text) };
    if split && random.one_in(4) {
        let at = random.below(payload.len());
        put(out, opcode, false, &payload[..at]);
        put(out, 9, true, b"between");
        put(out, 0, true, &payload[at..]);
    } else {
        put(out, opcode, true, &payload);
    }
}

/// What a sender takes off the end of a compressed message.
const TAIL: &[u8] = &[0, 0, 0xff, 0xff];

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 100);
    Compress::new(Compression::fast(), false).compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - TAIL.len());
    out
}

/// What is in a compressed message.
fn inflate(payload: &[u8]) -> Vec<u8> {
    let input = [payload, TAIL].concat();
    let (mut stream, mut out) = (Decompress::new(false), Vec::with_capacity(1 << 20));
    stream.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!(stream.total_in(), input.len() as u64, "a compressed message ends with its last block");
    assert!(out.len() > payload.len(), "it is compressed only if that makes it smaller");
    out
}

fn put(out: &mut VecDeque<u8>, opcode: u8, fin: bool, payload: &[u8]) {
    out.push_back(opcode | if fin { 0x80 } else { 0 });
    match payload.len() {
        length @ 0..=125 => out.push_back(0x80 | length as u8),
        length => {
            out.push_back(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
}

/// The first whole frame: first byte, payload, length in all.
fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert!(matches!(first & 0xf0, 0x80 | 0xc0), "a server frame is whole: {first:#x} {second:#x}");
    assert_eq!(second & 0x80, 0, "a server frame is not masked");
    let (start, length) = match second {
        126 => {
            let length = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
            assert!(length > 125, "the shortest form is used");
            (4, usize::from(length))
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize;
            assert!(length > 0xffff && length < 1 << 30, "the shortest form is used");
            (10, length)
        }
        length => (2, usize::from(length)),
    };
    assert!(matches!(first & 0x7f, 0x41 | 1 | 8 | 9 | 10), "opcode {first:#x}");
    let payload = bytes.get(start..start + length)?;
    Some((first, payload.to_vec(), start + length))
}
