//! `floor`: the least work with which the kernel lets a chat server do its job, as the lower bound
//! of the comparison. A bare epoll loop with edge-triggered events and sockets registered once; it
//! builds each frame once, and a member that is behind gets all that it lacks in one `send`.
//!
//! A turn takes the input that is there and then serves a slice of those who are behind, so that what
//! is said meanwhile goes out together with what they lack. A shorter slice coalesces more and polls
//! more often; `FLOOR_SLICE` sets it. A room is served for up to `FLOOR_ROUND` sends, then the others
//! come first: while it is, its sockets are warm, and its publishers may say more; without a bound one
//! room would keep all others waiting.
//!
//! It pings its connections as this server does: each 30 s after it was opened, those of a quarter of a second together
//! in bursts, behind each of which it rests as long as nothing else is to be done.
//!
//! It believes everything: tokens are not verified, API keys not looked at, JSON is not parsed but
//! searched for the fields it needs as `"name":` without blanks, a connection is in one room at a
//! time, and there are no limits. It must never be run for anything but this comparison.
//!
//! The environment names the `PORT`. Invariant: an entry of `conns` is indexed by its descriptor and
//! is closed only while its own event is handled, so no event of a turn can be stale.

mod conns;
mod room;
mod sys;
mod text;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conns::{Conns, HTTP, JOINING, NO_ROOM};
use room::Room;
use text::{UserJson, begin, begin_answer, end, field, field_text, find, header, json_field, push_frame};

const READ_BYTES: usize = 256 * 1024;
/// Members served between two polls, as many as this server serves, unless `FLOOR_SLICE` says otherwise.
const SLICE: usize = 16;
/// Sends that a room gets before the others come first, as this server has it too, unless `FLOOR_ROUND` says otherwise.
const ROUND: usize = 512;
/// Between two rounds of pings, in ms.
const TICK_MS: u16 = 250;
/// Pings after which it rests, and how long.
const BURST: usize = 32;
const REST: Duration = Duration::from_millis(1);

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").map_err(|_| io::Error::other("PORT is not set"))?;
    sys::raise_file_limit();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    listener.set_nonblocking(true)?;
    let listener = listener.into_raw_fd();
    sys::prepare_listener(listener)?;
    let epoll = sys::epoll_create()?;
    sys::epoll_add(epoll, listener, sys::READABLE)?;
    let (slice, round) = (number("FLOOR_SLICE", SLICE), number("FLOOR_ROUND", ROUND));
    let echo_first = std::env::var("FLOOR_ECHO").is_ok_and(|text| text == "first");
    println!("floor listening on port {port}");
    Floor::new(epoll, listener, slice, round, echo_first).run()
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The loop and all it owns.
struct Floor {
    epoll: i32,
    listener: i32,
    conns: Conns,
    rooms: Vec<Room>,
    room_numbers: HashMap<Box<[u8]>, u32>,
    /// Rooms in which something was said in this turn.
    dirty: Vec<u32>,
    /// Rooms with somebody behind.
    behind: VecDeque<u32>,
    slice: usize,
    round: usize,
    /// What is left of the round of the room that is being served.
    round_left: usize,
    /// Whether those who said something in this turn are served before everybody else.
    echo_first: bool,
    /// Those who said something in this turn, if it matters.
    speakers: Vec<i32>,
    now_ms: u128,
    started: Instant,
    inbox: Vec<u8>,
    text: Vec<u8>,
    reply: Vec<u8>,
}

impl Floor {
    fn new(epoll: i32, listener: i32, slice: usize, round: usize, echo_first: bool) -> Self {
        Self {
            epoll,
            listener,
            conns: Conns::default(),
            rooms: Vec::new(),
            room_numbers: HashMap::new(),
            dirty: Vec::new(),
            behind: VecDeque::new(),
            slice,
            round,
            round_left: round,
            echo_first,
            speakers: Vec::new(),
            now_ms: 0,
            started: Instant::now(),
            inbox: vec![0; READ_BYTES],
            text: Vec::new(),
            reply: Vec::new(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = sys::event_buffer();
        let mut pinged = 0;
        loop {
            let timeout = if self.behind.is_empty() && pinged == 0 { i32::from(TICK_MS) } else { 0 };
            let count = sys::epoll_wait(self.epoll, &mut events, timeout)?;
            if count > 0 || timeout > 0 {
                self.now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
            }
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
            self.close_turn();
            self.serve();
            pinged = self.conns.ping(self.tick());
            if pinged >= BURST && self.behind.is_empty() {
                std::thread::sleep(REST);
            }
        }
    }

    /// Ticks since the start.
    fn tick(&self) -> u32 {
        (self.started.elapsed().as_millis() / u128::from(TICK_MS)) as u32
    }

    fn accept(&mut self) {
        let tick = self.tick();
        while let Some(fd) = sys::accept(self.listener) {
            self.conns.open(fd, tick);
            if sys::epoll_add(self.epoll, fd, sys::CONNECTION).is_err() {
                sys::close(fd);
            }
        }
    }

    fn read(&mut self, fd: i32, ended: bool) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut len = self.conns.take_unread(fd, &mut inbox);
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
            self.conns.keep_unread(fd, &inbox[..len]);
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
                if self.echo_first {
                    self.speakers.push(fd);
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, fd: i32, name: &[u8]) {
        self.leave(fd);
        let number = self.room_number(name);
        self.rooms[number as usize].join(fd);
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
        self.rooms[number as usize].leave(fd, (slot != JOINING).then_some(slot), &mut self.conns);
        self.push_presence(number, b"user_left", fd);
    }

    fn close(&mut self, fd: i32) {
        self.leave(fd);
        self.conns.close(fd);
    }

    fn push_presence(&mut self, number: u32, kind: &[u8], fd: i32) {
        begin(&mut self.text, kind);
        field_text(&mut self.text, b"roomId", &self.rooms[number as usize].name);
        field(&mut self.text, b"userId", self.conns.at(fd).user.json());
        end(&mut self.text, self.now_ms);
        self.push_to_room(number);
    }

    /// Adds the frame of `self.text` to the room's log.
    fn push_to_room(&mut self, number: u32) {
        self.rooms[number as usize].push(&self.text);
        if self.dirty.last() != Some(&number) {
            self.dirty.push(number);
        }
    }

    fn close_turn(&mut self) {
        for number in self.dirty.drain(..) {
            let room = &mut self.rooms[number as usize];
            room.close_turn(&mut self.conns, self.now_ms);
            if !room.is_queued {
                room.is_queued = true;
                self.behind.push_back(number);
            }
        }
        for fd in self.speakers.drain(..) {
            let conn = self.conns.at(fd);
            if conn.room < NO_ROOM && conn.slot != JOINING {
                let (number, slot) = (conn.room, conn.slot);
                self.rooms[number as usize].catch_up(slot, &mut self.conns);
            }
        }
    }

    /// Serves a slice of those who are behind, one room after the other.
    fn serve(&mut self) {
        let mut left = self.slice;
        while left > 0
            && let Some(&number) = self.behind.front()
        {
            let room = &mut self.rooms[number as usize];
            while left > 0 && self.round_left > 0 && room.is_queued {
                room.is_queued = room.serve(&mut self.conns);
                left -= 1;
                self.round_left -= 1;
            }
            if !room.is_queued {
                self.behind.pop_front();
            } else if self.round_left == 0 {
                self.behind.rotate_left(1);
            } else {
                // The slice ends within this room, which goes on with the next.
                return;
            }
            self.round_left = self.round;
        }
    }

    fn room_number(&mut self, name: &[u8]) -> u32 {
        if let Some(&number) = self.room_numbers.get(name) {
            return number;
        }
        let number = self.rooms.len() as u32;
        self.rooms.push(Room::new(name));
        self.room_numbers.insert(name.into(), number);
        number
    }
}
