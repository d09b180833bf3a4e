//! The budgets of the turn that need a transport with handshakes, and its rests, over sockets that only count.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::io::{Event, Input, Io, Post, Received, Written};
use super::tls::Certificates;
use super::turn::{Budgets, Reactor};
use crate::chat::Now;
use crate::chat::drain::Stage;
use crate::chat::echo;
use crate::chat::envelope::Batch;
use crate::chat::ids::{ConnId, HashKey, ShardId};
use crate::chat::job::Job;
use crate::chat::shard::{Gauges, Shard, ShardSetup};
use crate::config::Config;

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const UPGRADE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// Most of a handshake are two reads.
const HANDSHAKE_READS: usize = 2;

/// A client whose handshake takes some reads, after which it has requests.
#[derive(Default)]
struct Peer {
    handshake_reads: usize,
    /// Its request is to become a WebSocket.
    upgrades: bool,
    requests: usize,
    answers: usize,
}

#[derive(Default)]
struct Sockets {
    arriving: VecDeque<Peer>,
    /// By slot.
    peers: Vec<Peer>,
    events: Vec<Event>,
    /// The slots of handshakes that were read for in this turn, and how many requests had been read before the first.
    handshakes: Vec<u32>,
    requests_before: usize,
    requests_read: usize,
    now_ms: u64,
    /// How often it was let rest.
    rests: usize,
}

impl Io for Sockets {
    type Socket = Peer;

    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        let is_idle = self.peers.iter().all(|peer| peer.handshake_reads == 0 && peer.requests == 0);
        let has_news = !self.events.is_empty() || !self.arriving.is_empty();
        assert!(is_idle || has_news || timeout == Some(Duration::ZERO), "it sleeps in front of work");
        events.append(&mut self.events);
        events.extend((!self.arriving.is_empty()).then_some(Event::Acceptable));
        self.handshakes.clear();
        (self.requests_before, self.requests_read) = (0, 0);
        Ok(())
    }

    fn rest(&mut self, time: Duration) {
        assert!(time > Duration::ZERO);
        self.rests += 1;
    }

    fn now(&mut self) -> Now {
        self.now_ms += 1;
        Now { tick_ms: self.now_ms, wall_ms: self.now_ms }
    }

    fn accept(&mut self) -> io::Result<(Peer, IpAddr)> {
        let peer = self.arriving.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        Ok((peer, IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }

    fn register(&mut self, peer: Peer, conn: ConnId) -> io::Result<()> {
        assert_eq!(conn.slot() as usize, self.peers.len());
        self.peers.push(peer);
        self.events.push(Event::Socket { conn, readable: true, writable: true, read_closed: false });
        Ok(())
    }

    fn is_opening(&self, slot: u32) -> bool {
        self.peers[slot as usize].handshake_reads > 0
    }

    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Received> {
        let peer = &mut self.peers[slot as usize];
        let bytes = if peer.handshake_reads > 0 {
            peer.handshake_reads -= 1;
            if self.handshakes.is_empty() {
                self.requests_before = self.requests_read;
            }
            self.handshakes.push(slot);
            0
        } else if peer.requests > 0 {
            peer.requests -= 1;
            self.requests_read += 1;
            let request = if peer.upgrades { UPGRADE } else { REQUEST };
            buffer[..request.len()].copy_from_slice(request);
            request.len()
        } else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        Ok(Received::Input(Input { bytes, is_short: false, is_certified: false }))
    }

    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        self.peers[slot as usize].answers += 1;
        Ok(Written::plain(total, total))
    }

    fn peek(&mut self, _slot: u32, _buffer: &mut [u8]) -> io::Result<usize> {
        unreachable!("no proxy is trusted")
    }

    fn take(&mut self, _slot: u32, _buffer: &mut [u8]) -> io::Result<usize> {
        unreachable!("no proxy is trusted")
    }

    fn receive(&mut self) -> Option<Post> {
        None
    }

    fn post(&mut self, _target: ShardId, batch: Batch) -> Result<(), Batch> {
        Err(batch)
    }

    fn submit(&mut self, job: Job) -> Result<(), Job> {
        Err(job)
    }

    fn close_listener(&mut self) {}
    fn shut(&mut self, _slot: u32) {}
    fn close(&mut self, _slot: u32, _is_blocked: bool) {}
    fn renew(&mut self, _certificates: Arc<Certificates>) {}
    fn trim(&mut self) {}
    fn report_stage_done(&mut self, _stage: Stage) {}
}

fn reactor(budgets: Budgets) -> Reactor<Sockets> {
    reactor_of(Config::for_tests("a secret of the tests, long enough", "a key of the tests"), budgets)
}

fn reactor_of(config: Config, budgets: Budgets) -> Reactor<Sockets> {
    let setup = ShardSetup {
        config: Arc::new(config),
        id: ShardId(0),
        shards: 1,
        key: HashKey::new([7; 16]),
        seed: [9; 32],
        gauges: Arc::new(Gauges::default()),
        store: None,
    };
    let shard = Shard::new(setup, Now { tick_ms: 0, wall_ms: 0 });
    Reactor::with_budgets(shard, ShardId(0), 1, Sockets::default(), budgets)
}

#[test]
fn a_flood_of_handshakes_has_its_share_of_each_turn_and_no_more() {
    for handshakes_max in [1, 8] {
        let mut reactor = reactor(Budgets { handshakes_max, ..Budgets::default() });
        let live = Peer { requests: usize::MAX, ..Peer::default() };
        reactor.io_mut().arriving.push_back(live);
        reactor.turn().unwrap();
        let flood = 50;
        let handshake = || Peer { handshake_reads: HANDSHAKE_READS, ..Peer::default() };
        reactor.io_mut().arriving.extend((0..flood).map(|_| handshake()));
        reactor.turn().unwrap();
        let (mut read, mut order) = (0, Vec::new());
        while read < flood * HANDSHAKE_READS {
            let answers = reactor.io_mut().peers[0].answers;
            reactor.turn().unwrap();
            let sockets = reactor.io_mut();
            let left = flood * HANDSHAKE_READS - read;
            assert_eq!(sockets.handshakes.len(), handshakes_max.min(left), "its share, as long as there is something");
            assert_eq!(sockets.requests_before, 1, "whoever is there is read first");
            assert_eq!(sockets.peers[0].answers, answers + 1, "and is answered in each turn");
            read += sockets.handshakes.len();
            order.append(&mut sockets.handshakes);
        }
        // Each has its turn before one has its second.
        let once: Vec<u32> = (1..=flood as u32).collect();
        assert_eq!(order, [once.clone(), once].concat());
    }
}

#[test]
fn who_has_finished_the_handshake_is_served_like_anybody() {
    let mut reactor = reactor(Budgets::default());
    let peer = || Peer { handshake_reads: HANDSHAKE_READS, requests: 3, ..Peer::default() };
    reactor.io_mut().arriving.extend((0..100).map(|_| peer()));
    let is_served = |peer: &Peer| peer.requests == 0 && peer.answers == 3;
    let turns = 100 * HANDSHAKE_READS / Budgets::default().handshakes_max + 10;
    for _ in 0..turns {
        reactor.turn().unwrap();
    }
    assert!(reactor.io_mut().peers.iter().all(is_served));
    assert_ne!(reactor.timeout(), Some(Duration::ZERO), "nothing is left to do");
}

#[test]
fn a_quiet_loop_rests_behind_bursts_of_pings_and_one_that_is_asked_does_not() {
    let config = echo::config();
    let heartbeat_ms = config.limits.heartbeat_ms;
    for is_asked in [false, true] {
        let mut reactor = reactor_of(config.clone(), Budgets::default());
        let members = 2 * Budgets::default().timers_max;
        let member = || Peer { upgrades: true, requests: 1, ..Peer::default() };
        let mut client = Some(Peer { requests: 1, ..Peer::default() });
        reactor.io_mut().arriving.extend((0..members).map(|_| member()));
        let has_pings = |reactor: &mut Reactor<Sockets>| reactor.io_mut().peers.iter().any(|peer| peer.answers > 1);
        while !has_pings(&mut reactor) {
            reactor.turn().unwrap();
            let sockets = reactor.io_mut();
            assert_eq!(sockets.rests, 0, "there was nothing to rest from");
            if is_asked && sockets.now_ms > heartbeat_ms - 500 {
                sockets.arriving.extend(client.take());
            }
        }
        let turns = 2 * members / Budgets::default().timers_max;
        for _ in 0..turns {
            reactor.turn().unwrap();
        }
        assert_eq!(reactor.io_mut().rests > 0, !is_asked);
    }
}
