//! `floor`: the least work with which the kernel lets a chat server do its job, as the lower bound
//! of the comparison. A bare epoll loop with edge-triggered events and sockets registered once; it
//! builds each frame once, collects all frames of a room in a turn and does one `send` per member and turn.
//!
//! It believes everything: tokens are not verified, API keys not looked at, JSON is not parsed but
//! searched for the fields it needs as `"name":` without blanks, a connection is in one room at a
//! time, and there are no limits. It must never be run for anything but this comparison.
//!
//! The environment names the `PORT`. Invariant: an entry of `conns` is indexed by its descriptor and
//! is closed only while its own event is handled, so no event of a turn can be stale.

mod sys;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// `Conn::room` of a connection that speaks HTTP.
const HTTP: u32 = u32::MAX;
/// `Conn::room` of a WebSocket that has joined nothing.
const NO_ROOM: u32 = u32::MAX - 1;
/// `Conn::slot` of a connection whose join takes effect at the end of the turn.
const JOINING: u32 = u32::MAX;
const READ_BYTES: usize = 256 * 1024;
const BURST_BYTES_KEPT: usize = 4096;
const USER_BYTES: usize = 23;

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").map_err(|_| io::Error::other("PORT is not set"))?;
    sys::raise_file_limit();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    listener.set_nonblocking(true)?;
    let listener = listener.into_raw_fd();
    sys::prepare_listener(listener)?;
    let epoll = sys::epoll_create()?;
    sys::epoll_add(epoll, listener, sys::READABLE)?;
    println!("floor listening on port {port}");
    Floor::new(epoll, listener).run()
}

/// The loop and all it owns.
struct Floor {
    epoll: i32,
    listener: i32,
    conns: Conns,
    rooms: Vec<Room>,
    room_numbers: HashMap<Box<[u8]>, u32>,
    /// Rooms with something to send at the end of the turn.
    dirty: Vec<u32>,
    now_ms: u128,
    inbox: Vec<u8>,
    text: Vec<u8>,
    reply: Vec<u8>,
}

impl Floor {
    fn new(epoll: i32, listener: i32) -> Self {
        Self {
            epoll,
            listener,
            conns: Conns(Vec::new()),
            rooms: Vec::new(),
            room_numbers: HashMap::new(),
            dirty: Vec::new(),
            now_ms: 0,
            inbox: vec![0; READ_BYTES],
            text: Vec::new(),
            reply: Vec::new(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = sys::event_buffer();
        loop {
            let count = sys::epoll_wait(self.epoll, &mut events)?;
            self.now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            for event in &events[..count] {
                let fd = event.u64 as i32;
                if fd == self.listener {
                    self.accept();
                    continue;
                }
                if event.events & sys::WRITABLE != 0 {
                    self.conns.flush(fd);
                }
                if event.events & sys::READABLE_OR_ENDED != 0 {
                    self.read(fd, event.events & sys::ENDED != 0);
                }
            }
            self.flush_rooms();
        }
    }

    fn accept(&mut self) {
        while let Some(fd) = sys::accept(self.listener) {
            let index = fd as usize;
            if self.conns.0.len() <= index {
                self.conns.0.resize_with(index + 1, Conn::default);
            }
            self.conns.0[index] = Conn::default();
            if sys::epoll_add(self.epoll, fd, sys::CONNECTION).is_err() {
                sys::close(fd);
            }
        }
    }

    fn read(&mut self, fd: i32, ended: bool) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut len = 0;
        if let Some(spill) = &mut self.conns.at(fd).spill {
            len = spill.unread.len();
            inbox[..len].copy_from_slice(&spill.unread);
            spill.unread.clear();
        }
        let mut open = true;
        loop {
            let room = inbox.len() - len;
            let Some(count) = sys::recv(fd, &mut inbox[len..]) else {
                break;
            };
            len += count;
            let taken = if count == 0 { None } else { self.consume(fd, &mut inbox[..len]) };
            let Some(taken) = taken.filter(|&taken| taken > 0 || len < READ_BYTES) else {
                open = false;
                break;
            };
            inbox.copy_within(taken..len, 0);
            len -= taken;
            // A short read has emptied the socket; only an end of stream would not be told again.
            if count < room && !ended {
                break;
            }
        }
        if !self.reply.is_empty() {
            self.conns.send(fd, &self.reply);
            self.reply.clear();
        }
        if !open {
            self.close(fd);
        } else if len > 0 {
            let spill = self.conns.at(fd).spill.get_or_insert_default();
            spill.unread.extend_from_slice(&inbox[..len]);
        }
        self.inbox = inbox;
    }

    /// Handles the whole requests and frames in `bytes`; returns how many bytes they took, or
    /// nothing if the connection is to be closed.
    fn consume(&mut self, fd: i32, bytes: &mut [u8]) -> Option<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &mut bytes[taken..];
            let step = if self.conns.at(fd).room == HTTP {
                self.consume_request(fd, rest)?
            } else {
                self.consume_frame(fd, rest)?
            };
            if step == 0 {
                break;
            }
            taken += step;
        }
        Some(taken)
    }

    fn consume_request(&mut self, fd: i32, bytes: &[u8]) -> Option<usize> {
        let Some(head_end) = find(bytes, b"\r\n\r\n") else {
            return Some(0);
        };
        let (head, after) = (&bytes[..head_end + 2], &bytes[head_end + 4..]);
        if head.starts_with(b"GET /ws") {
            self.upgrade(fd, head)?;
            return Some(head_end + 4);
        }
        let body_len: usize = str::from_utf8(header(head, b"content-length")?).ok()?.trim().parse().ok()?;
        if after.len() < body_len {
            return Some(0);
        }
        let path = head.strip_prefix(b"POST /api/chat/rooms/")?;
        let name = &path[..find(path, b"/messages")?];
        self.post(name, &after[..body_len])?;
        Some(head_end + 4 + body_len)
    }

    fn upgrade(&mut self, fd: i32, head: &[u8]) -> Option<()> {
        let accept = tungstenite::handshake::derive_accept_key(header(head, b"sec-websocket-key")?);
        let user = UserJson::from_request(head)?;
        write!(
            self.reply,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n",
        )
        .ok()?;
        begin(&mut self.text, b"connected");
        field(&mut self.text, b"userId", user.json());
        end(&mut self.text, self.now_ms);
        push_frame(&mut self.reply, &self.text);
        let conn = self.conns.at(fd);
        conn.user = user;
        conn.room = NO_ROOM;
        Some(())
    }

    fn post(&mut self, name: &[u8], body: &[u8]) -> Option<()> {
        let number = self.room_number(name);
        let members = body.strip_prefix(b"{")?;
        begin(&mut self.text, b"new_message");
        self.text.extend_from_slice(b",\"roomId\":\"");
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(b"\",");
        self.text.extend_from_slice(members);
        self.push_to_room(number);
        begin_answer(&mut self.text, json_field(body, b"\"id\":").unwrap_or(b"0"));
        end(&mut self.text, self.now_ms);
        write!(
            self.reply,
            "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.text.len(),
        )
        .ok()?;
        self.reply.extend_from_slice(&self.text);
        Some(())
    }

    fn consume_frame(&mut self, fd: i32, bytes: &mut [u8]) -> Option<usize> {
        let &mut [first, second, ..] = bytes else {
            return Some(0);
        };
        let (head_len, len) = match second & 0x7f {
            127 => return None,
            126 if bytes.len() < 4 => return Some(0),
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            short => (2, usize::from(short)),
        };
        let start = head_len + 4;
        if bytes.len() < start + len {
            return Some(0);
        }
        let (head, payload) = bytes.split_at_mut(start);
        let mask = [head[head_len], head[head_len + 1], head[head_len + 2], head[head_len + 3]];
        let payload = &mut payload[..len];
        for chunk in payload.chunks_mut(4) {
            for (byte, mask) in chunk.iter_mut().zip(mask) {
                *byte ^= mask;
            }
        }
        match first & 0x0f {
            1 => self.message(fd, payload),
            8 => return None,
            _ => {}
        }
        Some(start + len)
    }

    fn message(&mut self, fd: i32, text: &[u8]) {
        let name = json_field(text, b"\"roomId\":").unwrap_or_default();
        let name = name.strip_prefix(b"\"").unwrap_or_default();
        let name = name.strip_suffix(b"\"").unwrap_or_default();
        match json_field(text, b"\"type\":").unwrap_or_default() {
            b"\"join_room\"" => self.join(fd, name),
            b"\"leave_room\"" => self.leave(fd),
            b"\"reaction\"" => {
                let number = self.room_number(name);
                begin(&mut self.text, b"reaction");
                field_text(&mut self.text, b"roomId", name);
                let message_id = json_field(text, b"\"messageId\":").unwrap_or(b"null");
                field(&mut self.text, b"messageId", message_id);
                let emoji = json_field(text, b"\"emoji\":").unwrap_or(b"null");
                field(&mut self.text, b"emoji", emoji);
                field(&mut self.text, b"userId", self.conns.at(fd).user.json());
                end(&mut self.text, self.now_ms);
                self.push_to_room(number);
            }
            _ => {}
        }
    }

    fn join(&mut self, fd: i32, name: &[u8]) {
        self.leave(fd);
        let number = self.room_number(name);
        let room = &mut self.rooms[number as usize];
        room.joining.push((fd, room.burst.len()));
        let conn = self.conns.at(fd);
        (conn.room, conn.slot) = (number, JOINING);
        self.push_presence(number, b"user_joined", fd);
    }

    fn leave(&mut self, fd: i32) {
        let conn = self.conns.at(fd);
        let (number, slot) = (conn.room, conn.slot);
        if number >= NO_ROOM {
            return;
        }
        conn.room = NO_ROOM;
        let room = &mut self.rooms[number as usize];
        if slot == JOINING {
            room.joining.retain(|&(joiner, _)| joiner != fd);
        } else {
            room.members.swap_remove(slot as usize);
            if let Some(&moved) = room.members.get(slot as usize) {
                self.conns.at(moved).slot = slot;
            }
        }
        self.push_presence(number, b"user_left", fd);
    }

    fn close(&mut self, fd: i32) {
        self.leave(fd);
        *self.conns.at(fd) = Conn::default();
        sys::close(fd);
    }

    fn push_presence(&mut self, number: u32, kind: &[u8], fd: i32) {
        begin(&mut self.text, kind);
        field_text(&mut self.text, b"roomId", &self.rooms[number as usize].name);
        field(&mut self.text, b"userId", self.conns.at(fd).user.json());
        end(&mut self.text, self.now_ms);
        self.push_to_room(number);
    }

    /// Adds the frame of `self.text` to what the room sends at the end of the turn.
    fn push_to_room(&mut self, number: u32) {
        let room = &mut self.rooms[number as usize];
        if room.burst.is_empty() {
            self.dirty.push(number);
        }
        push_frame(&mut room.burst, &self.text);
    }

    fn flush_rooms(&mut self) {
        for number in self.dirty.drain(..) {
            let room = &mut self.rooms[number as usize];
            for &fd in &room.members {
                self.conns.send(fd, &room.burst);
            }
            if !room.joining.is_empty() {
                room.admit(&mut self.conns, &mut self.text, self.now_ms);
            }
            room.burst.clear();
            // What a storm of joins needed is given back.
            room.burst.shrink_to(BURST_BYTES_KEPT);
        }
    }

    fn room_number(&mut self, name: &[u8]) -> u32 {
        if let Some(&number) = self.room_numbers.get(name) {
            return number;
        }
        let number = self.rooms.len() as u32;
        self.rooms.push(Room { name: name.into(), ..Room::default() });
        self.room_numbers.insert(name.into(), number);
        number
    }
}

/// A room, its members' descriptors and the frames of the turn.
#[derive(Default)]
struct Room {
    name: Box<[u8]>,
    members: Vec<i32>,
    /// Who joined in this turn, and where in `burst` its own `user_joined` begins.
    joining: Vec<(i32, usize)>,
    burst: Vec<u8>,
}

impl Room {
    /// Makes members of those who joined in this turn; one list of users serves them all.
    fn admit(&mut self, conns: &mut Conns, text: &mut Vec<u8>, now_ms: u128) {
        for &(fd, _) in &self.joining {
            conns.at(fd).slot = self.members.len() as u32;
            self.members.push(fd);
        }
        begin(text, b"online_update");
        field_text(text, b"roomId", &self.name);
        text.extend_from_slice(b",\"online\":[");
        for &fd in &self.members {
            text.extend_from_slice(conns.at(fd).user.json());
            text.push(b',');
        }
        text.pop();
        text.push(b']');
        end(text, now_ms);
        let mut piece = Vec::new();
        for (fd, start) in std::mem::take(&mut self.joining) {
            piece.clear();
            piece.extend_from_slice(&self.burst[start..]);
            push_frame(&mut piece, text);
            conns.send(fd, &piece);
        }
    }
}

/// All connections, by descriptor.
struct Conns(Vec<Conn>);

impl Conns {
    fn at(&mut self, fd: i32) -> &mut Conn {
        &mut self.0[fd as usize]
    }

    /// Sends what the socket takes and keeps the rest. A failed socket is closed by its own event.
    fn send(&mut self, fd: i32, bytes: &[u8]) {
        let conn = self.at(fd);
        if let Some(spill) = &mut conn.spill
            && !spill.unsent.is_empty()
        {
            spill.unsent.extend_from_slice(bytes);
            return;
        }
        let sent = sys::send(fd, bytes);
        if sent < bytes.len() {
            let spill = conn.spill.get_or_insert_default();
            spill.unsent.extend_from_slice(&bytes[sent..]);
        }
    }

    fn flush(&mut self, fd: i32) {
        let conn = self.at(fd);
        let Some(spill) = &mut conn.spill else {
            return;
        };
        if !spill.unsent.is_empty() {
            let sent = sys::send(fd, &spill.unsent);
            spill.unsent.drain(..sent);
        }
        if spill.unsent.is_empty() && spill.unread.is_empty() {
            conn.spill = None;
        }
    }
}

/// A connection in 40 bytes.
struct Conn {
    user: UserJson,
    spill: Option<Box<Spill>>,
    room: u32,
    slot: u32,
}

impl Default for Conn {
    fn default() -> Self {
        Self { user: UserJson::default(), spill: None, room: HTTP, slot: 0 }
    }
}

/// What a socket did not take yet, and the beginning of something not wholly read.
#[derive(Default)]
struct Spill {
    unsent: Vec<u8>,
    unread: Vec<u8>,
}

/// A user's id as it stands in JSON, a string with its quotes or a number.
#[derive(Default)]
struct UserJson {
    bytes: [u8; USER_BYTES],
    len: u8,
}

impl UserJson {
    /// The id claimed by the token in the query, or a constant without one; nothing if it is too long.
    fn from_request(head: &[u8]) -> Option<Self> {
        let claims = find(head, b"token=")
            .and_then(|at| head[at..].split(|&byte| byte == b'.').nth(1))
            .map(base64_url)
            .unwrap_or_default();
        let json =
            json_field(&claims, b"\"userId\":").or_else(|| json_field(&claims, b"\"sub\":")).unwrap_or(b"\"nobody\"");
        let mut bytes = [0; USER_BYTES];
        bytes.get_mut(..json.len())?.copy_from_slice(json);
        Some(Self { bytes, len: json.len() as u8 })
    }

    fn json(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

fn begin(text: &mut Vec<u8>, kind: &[u8]) {
    text.clear();
    text.extend_from_slice(b"{\"type\":\"");
    text.extend_from_slice(kind);
    text.push(b'"');
}

fn begin_answer(text: &mut Vec<u8>, id: &[u8]) {
    text.clear();
    text.extend_from_slice(b"{\"id\":");
    text.extend_from_slice(id);
}

fn field(text: &mut Vec<u8>, name: &[u8], json: &[u8]) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name);
    text.extend_from_slice(b"\":");
    text.extend_from_slice(json);
}

fn field_text(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    field(text, name, b"\"");
    text.extend_from_slice(value);
    text.push(b'"');
}

fn end(text: &mut Vec<u8>, now_ms: u128) {
    // Writing to a vector does not fail.
    let _ = write!(text, ",\"timestamp\":{now_ms}}}");
}

fn push_frame(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        len @ ..126 => out.extend_from_slice(&[0x81, len as u8]),
        len @ ..65_536 => {
            out.extend_from_slice(&[0x81, 126]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.extend_from_slice(&[0x81, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(text);
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The JSON text behind `key`, which is given with quotes and colon; strings without escapes only.
fn json_field<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let value = &text[find(text, key)? + key.len()..];
    let len = if value.first() == Some(&b'"') {
        value[1..].iter().position(|&byte| byte == b'"')? + 2
    } else {
        value.iter().position(|&byte| byte == b',' || byte == b'}')?
    };
    Some(&value[..len])
}

/// The value of the header with this name, given in lower case; `head` ends with a line end.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        key.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

fn base64_url(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0_u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
