//! Operations on two shards that talk to each other: what must hold between turns is checked after each turn, and when
//! everybody is gone nothing may be left.
//!
//! Input: limits, then turns. A turn has a shard, a passage of time, up to three things that happen to connections, and
//! how the sockets and the other shard's mailbox behave.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sizland_chat::auth::{Keys, Role};
use sizland_chat::chat::Now;
use sizland_chat::chat::drain::Stage;
use sizland_chat::chat::envelope::Batch;
use sizland_chat::chat::ids::{ConnId, HashKey, ShardId};
use sizland_chat::chat::queues::SendBudget;
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::config::{Config, Limits};
use sizland_chat::wire::value::Id;

use super::input::Input;
use super::server_frame::split;

const SHARDS: usize = 2;
const PEERS_MAX: usize = 24;
/// Turns in which nothing comes of anything.
const IDLE_TURNS_MAX: usize = 20_000;
const STARTED_MS: u64 = 1_700_000_000_000;
const SECRET: &str = "a secret of the fuzz targets, long enough";
const API_KEY: &str = "an api key of the fuzz targets";
const USERS: [&str; 4] = ["1", "2", "ana", "bob"];
const STAGES: [Stage; 4] = [Stage::Notice, Stage::Quiesce, Stage::Close, Stage::Settle];
const STEPS_MS: [u64; 8] = [0, 0, 1, 20, 250, 1_100, 5_000, 40_000];
const MASKING_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Does what the input says, then heals, settles, ends everybody and looks at what is left.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    while !input.is_empty() {
        world.turn_of(&mut input);
    }
    world.settle();
    world.check_interest();
    world.end();
}

/// The shards, their peers, and the time.
struct World {
    shards: Vec<Shard>,
    gauges: Arc<Gauges>,
    now: Now,
    peers: Vec<Peer>,
    /// Batches under way, by the shard that is to take them.
    flights: [VecDeque<Batch>; SHARDS],
    stages: usize,
}

/// The other end of a connection.
struct Peer {
    shard: usize,
    conn: ConnId,
    is_blocked: bool,
    has_ended: bool,
    /// The rest of what was sent in part.
    unsent: Vec<u8>,
    received: Received,
}

/// How one turn's sockets take what they are given.
#[derive(Clone, Copy)]
enum Sockets {
    All,
    Some(usize),
    Nothing,
    Interrupted,
}

/// What is special about a turn.
struct Turn {
    shard: usize,
    takes_posts: bool,
    is_mailbox_full: bool,
    is_small: bool,
    sockets: Sockets,
}

impl Turn {
    /// A turn in which everything goes well.
    fn fine(shard: usize) -> Self {
        Self { shard, takes_posts: true, is_mailbox_full: false, is_small: false, sockets: Sockets::All }
    }
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let mut config = Config::for_tests(SECRET, API_KEY);
        config.rates = input.byte() & 1 == 1;
        (config.threads, config.limits) = (SHARDS, limits(input));
        let (config, gauges) = (Arc::new(config), Arc::new(Gauges::default()));
        let now = Now { tick_ms: 1000, wall_ms: STARTED_MS };
        let shard = |number: usize| {
            let setup = ShardSetup {
                config: config.clone(),
                id: ShardId(number as u16),
                shards: SHARDS,
                key: HashKey::new([7; 16]),
                seed: [number as u8; 32],
                gauges: gauges.clone(),
                store: None,
            };
            Shard::new(setup, now)
        };
        let shards = (0..SHARDS).map(shard).collect();
        Self { shards, gauges, now, peers: Vec::new(), flights: Default::default(), stages: 0 }
    }

    fn turn_of(&mut self, input: &mut Input<'_>) {
        let head = input.byte();
        let sockets = match head >> 4 & 3 {
            0 => Sockets::All,
            1 => Sockets::Some(input.byte().into()),
            2 => Sockets::Nothing,
            _ => Sockets::Interrupted,
        };
        let turn = Turn {
            shard: usize::from(head & 1),
            takes_posts: head & 0x80 == 0,
            is_mailbox_full: head & 0x40 != 0,
            is_small: head & 8 != 0,
            sockets,
        };
        self.pass(input.byte());
        self.begin(&turn);
        for _ in 0..head >> 1 & 3 {
            self.act(turn.shard, input);
        }
        self.finish(&turn);
    }

    fn pass(&mut self, byte: u8) {
        let ms = STEPS_MS[usize::from(byte & 7)];
        self.now.tick_ms += ms;
        self.now.wall_ms += ms;
        match byte >> 3 {
            // The wall clock is set.
            30 => self.now.wall_ms += 3_600_000,
            31 => self.now.wall_ms = self.now.wall_ms.saturating_sub(3_600_000).max(STARTED_MS),
            _ => {}
        }
    }

    fn begin(&mut self, turn: &Turn) {
        let shard = &mut self.shards[turn.shard];
        shard.begin_turn(self.now);
        let posts = if turn.takes_posts { self.flights[turn.shard].len() } else { 0 };
        for batch in self.flights[turn.shard].drain(..posts) {
            shard.handle_batch(batch);
        }
        while shard.poll_resumed().is_some() {}
    }

    /// The rest of a turn, in the order of the event loop.
    fn finish(&mut self, turn: &Turn) {
        let (timers, local) = if turn.is_small { (1, 1) } else { (1024, 4096) };
        let shard = &mut self.shards[turn.shard];
        shard.handle_timers(timers, |_| false);
        shard.handle_local(local);
        shard.freeze();
        shard.handle_local(local);
        self.write(turn);
        self.post(turn);
        let shard = &mut self.shards[turn.shard];
        while let Some(slot) = shard.poll_dead() {
            shard.free(slot);
            self.peers.retain(|peer| (peer.shard, peer.conn.slot()) != (turn.shard, slot));
        }
        shard.check_invariants();
        assert_eq!(self.shards.iter().map(Shard::connections).sum::<usize>(), self.peers.len());
    }

    fn write(&mut self, turn: &Turn) {
        let shard = &mut self.shards[turn.shard];
        let mut budget =
            if turn.is_small { SendBudget { express: 1, bulk: 1 } } else { SendBudget { express: 100, bulk: 100 } };
        while let Some(slot) = shard.poll_transmit(&mut budget) {
            let mut slices = [IoSlice::new(&[]); 64];
            let count = shard.gather(slot, &mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            assert!(!bytes.is_empty(), "who is to be sent something has something");
            let (taken, is_blocked) = match turn.sockets {
                Sockets::All => (bytes.len(), false),
                Sockets::Some(count) => (count.min(bytes.len()), count < bytes.len()),
                Sockets::Nothing => (0, true),
                Sockets::Interrupted => (0, false),
            };
            let is_it = |peer: &&mut Peer| (peer.shard, peer.conn.slot()) == (turn.shard, slot);
            let peer = self.peers.iter_mut().find(is_it).expect("who is sent something is there");
            assert!(!peer.is_blocked, "who is blocked is sent nothing");
            peer.is_blocked = is_blocked;
            peer.received.take(&bytes[..taken]);
            shard.handle_sent(slot, taken, is_blocked);
        }
        while shard.poll_shut().is_some() {}
    }

    fn post(&mut self, turn: &Turn) {
        let target = 1 - turn.shard;
        let shard = &mut self.shards[turn.shard];
        let id = ShardId(target as u16);
        while let Some(batch) = shard.poll_batch(id) {
            if turn.is_mailbox_full {
                return shard.restore_batch(id, batch);
            }
            self.flights[target].push_back(batch);
        }
    }

    /// Something happens to a connection of the shard, or to the server.
    fn act(&mut self, shard: usize, input: &mut Input<'_>) {
        match input.below(16) {
            0 => self.open(shard, upgrade(input), &[]),
            1 => {
                let (head, message) = (upgrade(input), message(input));
                self.open(shard, head, &frames(input, &message));
            }
            2 => self.open(shard, Vec::new(), &[]),
            3 | 4 => {
                let message = message(input);
                let bytes = frames(input, &message);
                self.send(shard, input, bytes, None);
            }
            5 => {
                let (message, cut) = (message(input), input.byte());
                let bytes = frames(input, &message);
                self.send(shard, input, bytes, Some(cut));
            }
            6 => self.send(shard, input, Vec::new(), None),
            7 => {
                let bytes = raw(input);
                self.send(shard, input, bytes, None);
            }
            8 => {
                let first = input.pick(&[0x81, 0x82, 0x88, 0x89, 0x8a, 0x01, 0x80]);
                let bytes = frame(first, &raw(input));
                self.send(shard, input, bytes, None);
            }
            9 | 10 => {
                let bytes = request(input);
                self.send(shard, input, bytes, None);
            }
            11 => {
                let (bytes, cut) = (request(input), input.byte());
                self.send(shard, input, bytes, Some(cut));
            }
            12 => self.end_of_input(shard, input),
            13 => self.fail(shard, input),
            14 => self.writable(shard, input),
            _ => self.stop(input),
        }
    }

    fn open(&mut self, shard: usize, mut head: Vec<u8>, more: &[u8]) {
        if self.peers.len() == PEERS_MAX || !self.shards[shard].can_accept() || self.stages > 1 {
            return;
        }
        let conn = self.shards[shard].handle_accept();
        let received = Received::default();
        self.peers.push(Peer { shard, conn, is_blocked: false, has_ended: false, unsent: Vec::new(), received });
        head.extend_from_slice(more);
        if !head.is_empty() && self.shards[shard].wants_input(conn.slot()) {
            self.shards[shard].handle_input(conn.slot(), &mut head);
        }
    }

    /// One of the shard's peers.
    fn peer(&mut self, shard: usize, input: &mut Input<'_>) -> Option<(&mut Shard, &mut Peer)> {
        let count = self.peers.iter().filter(|peer| peer.shard == shard).count();
        let nth = input.below(count.max(1));
        let peer = self.peers.iter_mut().filter(|peer| peer.shard == shard).nth(nth)?;
        Some((&mut self.shards[shard], peer))
    }

    /// A peer sends what it owes and `bytes`; with `cut`, all but so many bytes of it.
    fn send(&mut self, shard: usize, input: &mut Input<'_>, bytes: Vec<u8>, cut: Option<u8>) {
        let Some((shard, peer)) = self.peer(shard, input) else { return };
        if peer.has_ended || !shard.wants_input(peer.conn.slot()) {
            return;
        }
        peer.unsent.extend(bytes);
        let kept = cut.map_or(0, usize::from).min(peer.unsent.len());
        let unsent = peer.unsent.split_off(peer.unsent.len() - kept);
        let mut bytes = std::mem::replace(&mut peer.unsent, unsent);
        if !bytes.is_empty() {
            shard.handle_input(peer.conn.slot(), &mut bytes);
        }
    }

    fn end_of_input(&mut self, shard: usize, input: &mut Input<'_>) {
        let Some((shard, peer)) = self.peer(shard, input) else { return };
        if !peer.has_ended && shard.wants_input(peer.conn.slot()) {
            peer.has_ended = true;
            shard.handle_end_of_input(peer.conn.slot());
        }
    }

    fn fail(&mut self, shard: usize, input: &mut Input<'_>) {
        let Some((shard, peer)) = self.peer(shard, input) else { return };
        shard.handle_failure(peer.conn.slot());
    }

    fn writable(&mut self, shard: usize, input: &mut Input<'_>) {
        let Some((shard, peer)) = self.peer(shard, input) else { return };
        peer.is_blocked = false;
        shard.handle_writable(peer.conn.slot());
    }

    /// The server goes on to the next stage of stopping, or ends the window of the last.
    fn stop(&mut self, input: &mut Input<'_>) {
        // Once in a while, or hardly any input would see a server that runs.
        if input.byte() < 192 {
            return;
        }
        match STAGES.get(self.stages) {
            Some(&stage) if stage < Stage::Settle => self.shards.iter_mut().for_each(|shard| shard.handle_stage(stage)),
            _ => self.shards.iter_mut().for_each(Shard::handle_window_over),
        }
        self.stages += 1;
    }

    /// Sockets and mailboxes take everything until nothing is left to do.
    fn settle(&mut self) {
        for shard in 0..SHARDS {
            self.begin(&Turn::fine(shard));
            for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard) {
                peer.is_blocked = false;
                self.shards[shard].handle_writable(peer.conn.slot());
            }
            self.finish(&Turn::fine(shard));
        }
        let is_busy = |world: &Self, shard: usize| {
            world.shards[shard].has_work() || world.shards[shard].is_holding() || !world.flights[shard].is_empty()
        };
        let mut turns = 0;
        while let Some(shard) = (0..SHARDS).find(|&shard| is_busy(self, shard)) {
            self.begin(&Turn::fine(shard));
            self.finish(&Turn::fine(shard));
            turns += 1;
            assert!(turns < IDLE_TURNS_MAX, "the shards turn for ever");
        }
    }

    /// What the homes believe of the shards is what the shards have.
    fn check_interest(&self) {
        let mut members: BTreeMap<String, (u32, Vec<u16>)> = BTreeMap::new();
        for (number, shard) in self.shards.iter().enumerate() {
            for (room, count) in shard.subscriptions() {
                let entry = members.entry(room).or_default();
                entry.0 += count;
                entry.1.push(number as u16);
            }
        }
        let mut interest = BTreeMap::new();
        for (room, count, mut shards) in self.shards.iter().flat_map(Shard::interest) {
            shards.sort_unstable();
            assert!(interest.insert(room, (count, shards)).is_none(), "a room has one home");
        }
        assert_eq!(members, interest);
    }

    /// Everybody is gone at once.
    fn end(&mut self) {
        for shard in 0..SHARDS {
            self.begin(&Turn::fine(shard));
            for peer in self.peers.iter().filter(|peer| peer.shard == shard) {
                self.shards[shard].handle_failure(peer.conn.slot());
            }
            self.finish(&Turn::fine(shard));
        }
        self.settle();
        self.shards.iter().for_each(Shard::check_empty);
        assert_eq!(self.gauges.websockets(), 0, "every WebSocket is counted out");
    }
}

/// What a peer has been sent, as far as it is not looked at yet.
#[derive(Default)]
struct Received {
    unread: Vec<u8>,
    stage: Reading,
}

#[derive(Default, PartialEq)]
enum Reading {
    /// The head of the first answer.
    #[default]
    Head,
    /// Answers of which no more is looked at.
    Http,
    Frames,
    Closed,
}

impl Received {
    /// Checks that there is an answer first, then, for a WebSocket, whole frames up to one Close.
    fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        if self.stage == Reading::Head {
            let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            assert!(self.unread.starts_with(b"HTTP/1.1 "));
            let is_upgrade = self.unread.starts_with(b"HTTP/1.1 101 ");
            self.stage = if is_upgrade { Reading::Frames } else { Reading::Http };
            self.unread.drain(..end + 4);
        }
        if self.stage == Reading::Http {
            self.unread.clear();
        }
        let mut left = &self.unread[..];
        while self.stage == Reading::Frames
            && let Some((first, payload, rest)) = split(left)
        {
            match first {
                0x81 => assert!(payload.starts_with(b"{\"type\":\"") && payload.ends_with(b"}")),
                0x88 => self.stage = Reading::Closed,
                _ => assert!(matches!(first, 0x89 | 0x8a), "{first:x}"),
            }
            assert!(str::from_utf8(payload).is_ok() || first != 0x81);
            left = rest;
        }
        self.unread.drain(..self.unread.len() - left.len());
        assert!(self.stage != Reading::Closed || self.unread.is_empty(), "nothing follows a Close");
    }
}

fn limits(input: &mut Input<'_>) -> Limits {
    let mut limits = Limits::default();
    let bits = u16::from_le_bytes([input.byte(), input.byte()]);
    let small = |bit: u32, value: &mut usize, to: usize| {
        if bits >> bit & 1 == 1 {
            *value = to;
        }
    };
    small(0, &mut limits.shard_credits_max, 1);
    small(1, &mut limits.burst_window_bytes, 200);
    small(2, &mut limits.burst_bytes_max, 300);
    small(3, &mut limits.parked_messages_max, 1);
    small(4, &mut limits.presence_list_limit, 1);
    small(5, &mut limits.requests_under_way_max, 2);
    small(6, &mut limits.rooms_per_connection_max, 2);
    small(7, &mut limits.connections_per_user_max, 1);
    small(8, &mut limits.pending_joins_max, 1);
    small(9, &mut limits.outbox_soft_bytes, 300);
    small(10, &mut limits.input_pool_bytes, 2_000);
    small(11, &mut limits.segment_pool_bytes, 4_000);
    small(12, &mut limits.connections_max, 3);
    small(13, &mut limits.rooms_max, 2);
    small(14, &mut limits.idempotency_entries_max, 1);
    small(15, &mut limits.message_bytes_max, 100);
    limits.outbox_hard_bytes = limits.outbox_hard_bytes.min(limits.outbox_soft_bytes * 4);
    limits
}

/// Tokens of each user: one that lasts and one that does not.
fn tokens() -> &'static [String] {
    static TOKENS: OnceLock<Vec<String>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let keys = Keys::new(SECRET.as_bytes());
        let token = |user: &str, seconds: u64| {
            let id = Id::parse_raw(user).or(Id::from_text(user));
            keys.mint(id.as_ref(), Role::User, Duration::from_secs(seconds), STARTED_MS).expect("keys sign")
        };
        USERS.iter().flat_map(|user| [token(user, 3_600_000), token(user, 5)]).collect()
    })
}

fn token(input: &mut Input<'_>) -> &'static str {
    let tokens = tokens();
    tokens.get(input.below(tokens.len() + 1)).map_or("none", String::as_str)
}

/// A request that opens a WebSocket.
fn upgrade(input: &mut Input<'_>) -> Vec<u8> {
    let (path, fields) = match input.below(8) {
        0 => ("/ws".to_owned(), String::new()),
        1 => ("/ws".to_owned(), format!("Authorization: Bearer {}\r\n", token(input))),
        2 => ("/ws".to_owned(), format!("Sec-WebSocket-Protocol: sizland.v1, bearer.{}\r\n", token(input))),
        3 => ("/ws".to_owned(), "Sec-WebSocket-Protocol: sizland.v1\r\n".to_owned()),
        _ => (format!("/ws?token={}", token(input)), String::new()),
    };
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{fields}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    head.into_bytes()
}

/// A message of a client.
fn message(input: &mut Input<'_>) -> String {
    let kind = input.below(12);
    let room = format!("room-{}", input.below(4));
    let reference = match input.below(3) {
        0 => String::new(),
        number => format!(r#","ref":{number}"#),
    };
    let of_room = |kind: &str, more: &str| format!(r#"{{"type":"{kind}","roomId":"{room}"{more}{reference}}}"#);
    match kind {
        0..=2 => of_room("join_room", ""),
        3 => of_room("leave_room", ""),
        4 => of_room("typing_start", ""),
        5 => of_room("typing_stop", ""),
        6 => of_room("reaction", r#","messageId":7,"emoji":"+1""#),
        7 => of_room("reaction", r#","messageId":"7","emoji":"+1","action":"add""#),
        8 => of_room("reaction", r#","messageId":7,"emoji":"+1","action":"remove""#),
        9 => format!(r#"{{"type":"join_rooms","rooms":[{{"roomId":"room-0"}},{{"roomId":"{room}"}},7]{reference}}}"#),
        10 => format!(r#"{{"type":"ping"{reference}}}"#),
        _ => {
            let kind = input.pick(&["auth", "refresh_token"]);
            format!(r#"{{"type":"{kind}","token":"{}"{reference}}}"#, token(input))
        }
    }
}

/// A message in one frame, or in two with a ping between them.
fn frames(input: &mut Input<'_>, message: &str) -> Vec<u8> {
    let message = message.as_bytes();
    match input.below(8) {
        0 => {
            let (start, end) = message.split_at(message.len() / 2);
            [frame(0x01, start), frame(0x89, b"?"), frame(0x80, end)].concat()
        }
        1 => frame(0x82, message),
        2 => frame(0x81, message).repeat(3),
        _ => frame(0x81, message),
    }
}

/// A masked frame, as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend(MASKING_KEY);
    bytes.extend(payload.iter().zip(MASKING_KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Bytes of the input as they are.
fn raw(input: &mut Input<'_>) -> Vec<u8> {
    let count = usize::from(input.byte());
    input.bytes(count).to_vec()
}

/// A request of a backend, or of a user.
fn request(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.below(14);
    let (room, user) = (input.below(4), input.pick(&USERS));
    let (method, path, body) = match kind {
        0..=2 => ("POST", format!("/api/chat/rooms/room-{room}/messages"), r#"{"content":"hello"}"#.to_owned()),
        3 => {
            let body = format!(r#"{{"id":"{}","content":"{room}"}}"#, input.below(3));
            ("POST", format!("/api/chat/rooms/room-{room}/messages"), body)
        }
        4 => {
            let body = format!(r#"{{"content":"{}"}}"#, "x".repeat(usize::from(input.byte()) * 8));
            ("POST", format!("/api/chat/messages?roomId=room-{room}"), body)
        }
        5 => ("POST", format!("/api/chat/rooms/room-{room}/events"), r#"{"type":"custom","x":1}"#.to_owned()),
        6 => ("POST", format!("/api/chat/users/{user}/events"), r#"{"type":"custom"}"#.to_owned()),
        7 => {
            let body = format!(r#"{{"rooms":["room-0","room-1","room-{room}"],"message":{{"content":"all"}}}}"#);
            ("POST", "/api/chat/broadcast".to_owned(), body)
        }
        8 => ("POST", format!("/api/chat/users/{user}/disconnect"), r#"{"reason":"out"}"#.to_owned()),
        9 => {
            let body = format!(r#"{{"revokeBefore":{}}}"#, STARTED_MS + 1000);
            ("POST", format!("/api/chat/users/{user}/disconnect"), body)
        }
        10 => ("GET", format!("/api/chat/rooms/room-{room}/online"), String::new()),
        11 => ("GET", "/api/chat/rooms?limit=2".to_owned(), String::new()),
        12 => ("GET", format!("/api/chat/users/{user}"), String::new()),
        _ => ("HEAD", "/healthz".to_owned(), String::new()),
    };
    let credential = match input.below(6) {
        0 => String::new(),
        1 => format!("Authorization: Bearer {}\r\n", token(input)),
        _ => format!("X-API-Key: {API_KEY}\r\n"),
    };
    let more =
        input.pick(&["", "", "", "", "Connection: close\r\n", "Idempotency-Key: k\r\n", "Expect: 100-continue\r\n"]);
    let length = body.len();
    let (coding, body) = match input.below(6) {
        0 if length > 0 => ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{body}\r\n0\r\n\r\n")),
        _ => (format!("Content-Length: {length}\r\n"), body),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: chat\r\n{credential}{more}{coding}\r\n{body}").into_bytes()
}
