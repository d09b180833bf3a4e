//! A shard that is driven as the event loop drives it, without sockets: every peer reads all that it is sent at once.
//!
//! Owns the order of a turn, the clock and what clients write. Must not know what is measured. Invariant: it holds no
//! memory that grows with the number of connections, so what is on the heap is the shard's.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use sizland_chat::auth::{Keys, Role};
use sizland_chat::chat::Now;
use sizland_chat::chat::ids::{HashKey, ShardId};
use sizland_chat::chat::queues::SendBudget;
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::config::{Config, Limits};
use sizland_chat::wire::value::Id;

/// As in `reactor::turn`.
const LOCAL_MAX: usize = 4096;
const TIMERS_MAX: usize = 1024;
const BULK_MAX: usize = 128;
const EXPRESS_MAX: usize = 1024;
const SLICES_MAX: usize = 64;
const ACCEPTS_MAX: usize = 64;

/// How long one turn of opening lasts: 6,400 new connections per second.
const TURN_MS: u64 = 10;
const STARTED_MS: u64 = 1_700_000_000_000;
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const API_KEY: &str = "a key of the tests";
const MASKING_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One shard and the world around it.
pub struct DrivenShard {
    shard: Shard,
    keys: Keys,
    now: Now,
    sent_bytes: u64,
    peers: u128,
    /// A header line of every upgrade, or nothing.
    pub offer: &'static str,
}

impl DrivenShard {
    /// A shard without connections, the only one of its server; every limit has its default but for rates, which a
    /// measurement would run into.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// As [`DrivenShard::new`], with other limits.
    pub fn with(limit: impl FnOnce(&mut Limits)) -> Self {
        let mut config = Config::for_tests("a secret of the tests, long enough", API_KEY);
        config.rates = false;
        limit(&mut config.limits);
        let keys = config.credentials.keys.clone();
        let now = Now { tick_ms: 1000, wall_ms: STARTED_MS };
        let setup = ShardSetup {
            config: Arc::new(config),
            id: ShardId(0),
            shards: 1,
            key: HashKey::new([7; 16]),
            seed: [9; 32],
            gauges: Arc::new(Gauges::default()),
            store: None,
        };
        Self { shard: Shard::new(setup, now), keys, now, sent_bytes: 0, peers: 0, offer: "" }
    }

    /// Opens `count` connections, each of a user of its own, spread evenly over `rooms` rooms, and lets all of it
    /// settle; their slots are appended to `slots`. Users are numbered from `first_user` on.
    pub fn populate(&mut self, first_user: usize, count: usize, rooms: usize, slots: &mut Vec<u32>) {
        let users: Vec<String> = (first_user..first_user + count).map(|user| format!("user-{user:05}")).collect();
        self.populate_by(&users, rooms, slots);
    }

    /// As [`DrivenShard::populate`], for users of these ids.
    pub fn populate_by(&mut self, users: &[String], rooms: usize, slots: &mut Vec<u32>) {
        let count = users.len();
        for start in (0..count).step_by(ACCEPTS_MAX) {
            let batch = start..(start + ACCEPTS_MAX).min(count);
            let opened = slots.len();
            for number in batch.clone() {
                slots.push(self.open(&users[number]));
            }
            self.settle();
            for (number, &slot) in batch.zip(&slots[opened..]) {
                self.text(slot, &format!(r#"{{"type":"join_room","roomId":"room-{:04}"}}"#, number % rooms));
            }
            self.settle();
            self.advance(TURN_MS);
        }
        // The differences of large rooms are told after a second.
        self.pass(2_000, slots);
    }

    /// Opens a WebSocket for a user and returns its slot; it is greeted in the next turn.
    pub fn open(&mut self, user: &str) -> u32 {
        let mut request = self.upgrade_request(user);
        let slot = self.accept();
        self.input(slot, &mut request);
        slot
    }

    /// What a browser sends to open a WebSocket, with a token of the user.
    pub fn upgrade_request(&self, user: &str) -> Vec<u8> {
        let user = Id::from_text(user);
        let token = self.keys.mint(user.as_ref(), Role::User, TOKEN_TTL, self.now.wall_ms).expect("keys sign");
        let offer = self.offer;
        let request = format!(
            "GET /ws?token={token} HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        request.into_bytes()
    }

    /// A connection that has sent nothing yet, from an address of its own; returns its slot.
    pub fn accept(&mut self) -> u32 {
        self.peers += 1;
        let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | self.peers << 64);
        self.shard.handle_accept(IpAddr::V6(address)).slot()
    }

    /// A backend posts a message.
    pub fn post_message(&mut self, slot: u32, room: &str, body: &str) {
        self.input(slot, &mut post_request(room, body));
    }

    /// A client sends a text message.
    pub fn text(&mut self, slot: u32, text: &str) {
        let mut frame = Vec::with_capacity(text.len() + 8);
        put_client_frame(&mut frame, 0x81, text.as_bytes());
        self.input(slot, &mut frame);
    }

    /// Bytes come in.
    pub fn input(&mut self, slot: u32, bytes: &mut [u8]) {
        assert!(self.shard.wants_input(slot), "nothing is sent to a connection that is not read");
        self.shard.handle_input(slot, bytes);
    }

    /// The peer of a connection is gone.
    pub fn end(&mut self, slot: u32) {
        self.shard.handle_end_of_input(slot);
    }

    /// Lets `ms` go by in steps of a timer tick, while the clients in `slots` answer pings.
    pub fn pass(&mut self, ms: u64, slots: &[u32]) {
        let pongs_due = self.now.tick_ms + ms;
        while self.now.tick_ms < pongs_due {
            self.advance(250);
            self.settle();
        }
        for &slot in slots {
            let mut pong = Vec::with_capacity(8);
            put_client_frame(&mut pong, 0x8a, b"");
            self.input(slot, &mut pong);
        }
        self.settle();
    }

    /// Turns until nothing is left to do.
    pub fn settle(&mut self) {
        loop {
            self.turn();
            if !self.shard.has_work() {
                return;
            }
        }
    }

    /// Bytes that were handed to sockets so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.shard.connections()
    }

    fn advance(&mut self, ms: u64) {
        self.now = Now { tick_ms: self.now.tick_ms + ms, wall_ms: self.now.wall_ms + ms };
    }

    fn turn(&mut self) {
        let shard = &mut self.shard;
        shard.begin_turn(self.now);
        while shard.poll_resumed().is_some() {}
        shard.handle_timers(TIMERS_MAX, |_| false);
        shard.handle_local(LOCAL_MAX);
        shard.freeze();
        shard.handle_local(LOCAL_MAX);
        self.write();
        while let Some(slot) = self.shard.poll_dead() {
            self.shard.free(slot);
        }
    }

    fn write(&mut self) {
        let mut budget = SendBudget { express: EXPRESS_MAX, bulk: BULK_MAX };
        while let Some(slot) = self.shard.poll_transmit(&mut budget) {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.shard.gather(slot, &mut slices);
            let total: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            self.sent_bytes += total as u64;
            self.shard.handle_sent(slot, total, false);
        }
        while self.shard.poll_shut().is_some() {}
    }
}

/// What a backend sends to post a message.
pub fn post_request(room: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let request = format!(
        "POST /api/chat/rooms/{room}/messages HTTP/1.1\r\nHost: chat\r\nX-API-Key: {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    request.into_bytes()
}

/// Appends a masked frame with a payload of less than 64 KiB, as a client sends it.
pub fn put_client_frame(out: &mut Vec<u8>, first_byte: u8, payload: &[u8]) {
    out.push(first_byte);
    match u8::try_from(payload.len()) {
        Ok(short @ ..=125) => out.push(0x80 | short),
        _ => {
            let length = u16::try_from(payload.len()).expect("less than 64 KiB");
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&MASKING_KEY);
    out.extend(payload.iter().zip(MASKING_KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
}
