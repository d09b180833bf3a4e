//! A mix of attackers beside small rooms: what it does to the latency of those who behave.
//!
//! The attackers are threads of this program, on the load generator's core so that they take none of the server's; each
//! pauses between its blows, for a flood that fills the core measures the load generator. The server's limits and rates are its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::{Compress, Compression, FlushCompress};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use crate::run::{SECRET, SERVER_CPU};

const TIMEOUT: Duration = Duration::from_secs(5);
const SLOW_PEERS: usize = 500;

/// Attacks until `ended`; gives how many blows were dealt.
pub(crate) fn attack(port: u16, ended: &AtomicBool) -> u64 {
    let blows = AtomicU64::new(0);
    let bomb = bomb();
    thread::scope(|scope| {
        let attacker = |pause_ms: u64, mut blow: Box<dyn FnMut() + Send>| {
            let blows = &blows;
            scope.spawn(move || {
                leave_the_servers_core();
                while !ended.load(Ordering::Relaxed) {
                    blow();
                    blows.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(pause_ms));
                }
            });
        };
        let mut slow: Vec<TcpStream> = Vec::new();
        attacker(1_000, Box::new(move || slow_heads(port, &mut slow)));
        attacker(20, Box::new(move || flood(port, "tiny", &frame(0x81, b"x").repeat(1_000))));
        attacker(20, Box::new(move || flood(port, "ping", &frame(0x89, b"p").repeat(1_000))));
        let mut endless = None;
        attacker(10, Box::new(move || fragments(port, &mut endless)));
        attacker(50, Box::new(move || flood(port, "bomb", &frame(0xc1, &bomb))));
        attacker(
            5,
            Box::new(move || refused(port, "GET /ws?token=eyJhbGciOiJIUzI1NiJ9.e30.AAAA HTTP/1.1\r\nHost: x\r\n\r\n")),
        );
        attacker(5, Box::new(move || refused(port, "BREW /%c0%af/../ HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n")));
    });
    blows.into_inner()
}

/// Onto every core but that one, if there is another.
fn leave_the_servers_core() {
    let Ok(mut cores) = rustix::thread::sched_getaffinity(None) else { return };
    if cores.count() > 1 {
        cores.unset(SERVER_CPU as usize);
        // Where this is not allowed the figure is worse, and no less true.
        let _ = rustix::thread::sched_setaffinity(None, &cores);
    }
}

fn dial(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(TIMEOUT)).ok()?;
    Some(stream)
}

/// One byte more of each head; whoever was dismissed comes back.
fn slow_heads(port: u16, peers: &mut Vec<TcpStream>) {
    peers.retain_mut(|peer| peer.write_all(b"a").is_ok());
    while peers.len() < SLOW_PEERS {
        let Some(mut peer) = dial(port) else { return };
        if peer.write_all(b"GET /").is_ok() {
            peers.push(peer);
        }
    }
}

fn upgraded(port: u16, user: &str) -> Option<TcpStream> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let claims = json!({"userId": user, "exp": now + 3600});
    let token = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).ok()?;
    let mut stream = dial(port)?;
    let head = format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.read(&mut [0; 4096]).ok().filter(|count| *count > 0)?;
    Some(stream)
}

/// Sends the same until the server has had enough, for five rounds at most, and reads what it says.
fn flood(port: u16, user: &str, bytes: &[u8]) {
    let Some(mut stream) = upgraded(port, user) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
    for _ in 0..5 {
        if stream.write_all(bytes).is_err() {
            return;
        }
        match stream.read(&mut [0; 65_536]) {
            Ok(0) => return,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// A thousand more empty fragments of a message that never ends.
fn fragments(port: u16, stream: &mut Option<TcpStream>) {
    if stream.is_none() {
        *stream = upgraded(port, "fragments");
        stream.as_mut().map(|stream| stream.write_all(&frame(0x01, b"")));
    }
    if stream.as_mut().is_some_and(|stream| stream.write_all(&frame(0x00, b"").repeat(1_000)).is_err()) {
        *stream = None;
    }
}

/// A request that is refused, and the answer.
fn refused(port: u16, request: &str) {
    let Some(mut stream) = dial(port) else { return };
    let _ = stream.write_all(request.as_bytes());
    let _ = stream.read(&mut [0; 4096]);
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Spaces, a thousand times smaller than they are.
fn bomb() -> Vec<u8> {
    let mut bomb = Vec::with_capacity(1 << 16);
    // What does not fit any more is not needed: the server inflates no further than a message may be long.
    let _ = Compress::new(Compression::best(), false).compress_vec(&[b' '; 1 << 25], &mut bomb, FlushCompress::Sync);
    bomb
}
