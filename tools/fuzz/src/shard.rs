//! Operations on two shards that talk to each other: what must hold between turns is checked after each turn, and when
//! everybody is gone nothing may be left.
//!
//! Input: limits, then turns. A turn has a shard, a passage of time, up to three things that happen to connections, and
//! how the sockets and the other shard's mailbox behave.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sizland_chat::chat::Now;
use sizland_chat::chat::drain::Stage;
use sizland_chat::chat::envelope::Batch;
use sizland_chat::chat::ids::{ConnId, HashKey, ShardId};
use sizland_chat::chat::queues::SendBudget;
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::config::{Config, Limits};

use flate2::{Decompress, FlushDecompress};

use super::input::Input;
use super::peer_bytes::{API_KEY, SECRET, STARTED_MS, frame, frames, message, raw, request, upgrade};
use super::server_frame::split;

const SHARDS: usize = 2;
const PEERS_MAX: usize = 24;
/// Turns in which nothing comes of anything.
const IDLE_TURNS_MAX: usize = 20_000;
const STAGES: [Stage; 4] = [Stage::Notice, Stage::Quiesce, Stage::Close, Stage::Settle];
const STEPS_MS: [u64; 8] = [0, 0, 1, 20, 250, 1_100, 5_000, 40_000];

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
        let first = input.byte();
        config.rates = first & 1 == 1;
        (config.threads, config.limits) = (SHARDS, limits(input));
        if first & 2 == 2 {
            config.limits.deflate_threshold_bytes = 1;
        }
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
        let conn = self.shards[shard].handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST));
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
    /// Compression was agreed.
    is_deflated: bool,
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
            self.is_deflated = self.unread[..end].windows(18).any(|name| name == b"permessage-deflate");
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
                0x81 => check_event(payload),
                0xc1 if self.is_deflated => check_event(&inflated(payload)),
                0x88 => self.stage = Reading::Closed,
                _ => assert!(matches!(first, 0x89 | 0x8a), "{first:x}"),
            }
            left = rest;
        }
        self.unread.drain(..self.unread.len() - left.len());
        assert!(self.stage != Reading::Closed || self.unread.is_empty(), "nothing follows a Close");
    }
}

fn check_event(text: &[u8]) {
    assert!(text.starts_with(b"{\"type\":\"") && text.ends_with(b"}"));
    assert!(str::from_utf8(text).is_ok());
}

/// A compressed message, which needs nothing of the ones before it.
fn inflated(payload: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(1 << 20);
    let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
    Decompress::new(false).decompress_vec(&whole, &mut text, FlushDecompress::Sync).expect("a message inflates");
    text
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
