//! A line between two networks that loses, delays, reorders and interrupts, as a seed says.
//!
//! Owns two TUN devices and the threads that carry packets between them. It is made of user space, since not every kernel
//! has a queue that does this. Each direction draws from a generator of its own, so that the seed decides what becomes of
//! the n-th packet of each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::server::{DEADLINE, prepare};
use crate::system::Network;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Packets under way in each direction; further ones are lost, as on any line.
const UNDER_WAY_MAX: usize = 20_000;

/// What happens to packets.
#[derive(Default)]
pub struct Weather {
    pub lost_permille: AtomicU32,
    pub delay_ms: AtomicU32,
    /// Added by chance, so that packets overtake each other.
    pub jitter_ms: AtomicU32,
    pub is_cut: AtomicBool,
    pub carried: AtomicU64,
    pub lost: AtomicU64,
}

/// Two networks and the line between them.
pub struct Link {
    pub server: Network,
    pub clients: Network,
    pub weather: Arc<Weather>,
}

impl Link {
    /// `None` where this process may not have networks.
    pub fn new(seed: u64) -> Option<Self> {
        let (server, clients) = (Network::new()?, Network::new()?);
        let ends = [
            server.tun(&SERVER.to_string(), &CLIENTS.to_string())?,
            clients.tun(&CLIENTS.to_string(), &SERVER.to_string())?,
        ];
        let weather = Arc::<Weather>::default();
        for (from, to) in [(0, 1), (1, 0)] {
            let (from_end, to_end) = (ends[from].try_clone().ok()?, ends[to].try_clone().ok()?);
            carry(from_end, to_end, ChaCha12Rng::seed_from_u64(seed * 2 + from as u64), &weather);
        }
        Some(Self { server, clients, weather })
    }

    /// A connection over the line.
    pub fn socket(&self, port: u16) -> TcpStream {
        self.clients.within(|| {
            let address = SocketAddr::new(IpAddr::V4(SERVER), port);
            let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("the server is reached over the line");
            prepare(&stream);
            stream
        })
    }

    pub fn set(&self, lost_permille: u32, delay_ms: u32, jitter_ms: u32) {
        self.weather.lost_permille.store(lost_permille, Ordering::Relaxed);
        self.weather.delay_ms.store(delay_ms, Ordering::Relaxed);
        self.weather.jitter_ms.store(jitter_ms, Ordering::Relaxed);
    }

    pub fn cut(&self, is_cut: bool) {
        self.weather.is_cut.store(is_cut, Ordering::Relaxed);
    }

    pub fn carried_and_lost(&self) -> (u64, u64) {
        (self.weather.carried.load(Ordering::Relaxed), self.weather.lost.load(Ordering::Relaxed))
    }
}

/// Packets by when they arrive, and in the order sent among those of one moment.
type UnderWay = Arc<(Mutex<BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>>, Condvar)>;

/// Carries packets one way for as long as the process runs: the devices and their threads end with it.
fn carry(mut from: File, mut to: File, mut dice: ChaCha12Rng, weather: &Arc<Weather>) {
    let under_way = UnderWay::default();
    let (arriving, weather) = (under_way.clone(), weather.clone());
    thread::spawn(move || {
        let mut packet = vec![0; 65_536];
        for number in 0.. {
            let Ok(length) = from.read(&mut packet) else { return };
            let (chance, late) = (dice.next_u32() % 1000, dice.next_u32());
            let jitter_ms = weather.jitter_ms.load(Ordering::Relaxed);
            let is_lost =
                chance < weather.lost_permille.load(Ordering::Relaxed) || weather.is_cut.load(Ordering::Relaxed);
            let mut heap = under_way.0.lock().expect("no panic");
            if is_lost || heap.len() >= UNDER_WAY_MAX {
                weather.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            weather.carried.fetch_add(1, Ordering::Relaxed);
            let delay_ms = weather.delay_ms.load(Ordering::Relaxed) + if jitter_ms == 0 { 0 } else { late % jitter_ms };
            let due = Instant::now() + Duration::from_millis(u64::from(delay_ms));
            heap.push(Reverse((due, number, packet[..length].to_vec())));
            under_way.1.notify_one();
        }
    });
    thread::spawn(move || {
        loop {
            let mut heap = arriving.0.lock().expect("no panic");
            let wait = match heap.peek() {
                None => Duration::from_secs(3600),
                Some(Reverse((due, ..))) => due.saturating_duration_since(Instant::now()),
            };
            if !wait.is_zero() {
                drop(arriving.1.wait_timeout(heap, wait).expect("no panic"));
                continue;
            }
            let Some(Reverse((_, _, packet))) = heap.pop() else { continue };
            drop(heap);
            // A device that is full loses the packet.
            let _ = to.write(&packet);
        }
    });
}
