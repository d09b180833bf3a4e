//! Floods, and clients that are slow on purpose: what becomes of them, and that nobody beside them loses anything.
//!
//! The README's table of attacks names these tests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use serde_json::json;

use crate::client::{Client, RawClient, masked_frame, upgrade_request, user_token};
use crate::http_client::Http;
use crate::live_room::beside;
use crate::server::{API_KEY, DEADLINE, Server, eventually};

/// What slow peers wait between two bytes.
const DRIP: Duration = Duration::from_millis(50);
const MIB: u64 = 1024 * 1024;

/// Sends a byte of `bytes` at a time to all, beginning anew at its end, until the server has ended each; gives what it
/// said to them.
fn drip(mut peers: Vec<TcpStream>, bytes: &[u8]) -> Vec<String> {
    let end = Instant::now() + DEADLINE;
    let mut said = Vec::new();
    for peer in &peers {
        peer.set_nonblocking(true).expect("a socket can be made non-blocking");
    }
    for byte in bytes.iter().cycle() {
        peers.retain_mut(|peer| {
            let is_open = peer.write_all(&[*byte]).is_ok();
            let mut answer = [0; 1024];
            match peer.read(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && is_open => true,
                read => {
                    said.push(String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned());
                    false
                }
            }
        });
        if peers.is_empty() {
            return said;
        }
        assert!(Instant::now() < end, "{} of those who drip are still served", peers.len());
        thread::sleep(DRIP);
    }
    unreachable!("a cycle has no end");
}

fn open_files(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the process runs").count()
}

/// Waits until the server has as many files open as before.
fn assert_files_return(server: &Server, before: usize) {
    eventually("all descriptors are given back", || (open_files(server) <= before).then_some(()));
}

#[test]
fn slow_heads() {
    let server = Server::start_with(&[("CHAT_HANDSHAKE_MS", "1000")]);
    let before = open_files(&server);
    let said = beside(&server, || {
        let peers: Vec<TcpStream> = (0..200).map(|_| server.socket()).collect();
        drip(peers, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    });
    assert!(said.iter().all(|said| said.is_empty() || said.starts_with("HTTP/1.1 408 ")), "{said:?}");
    assert!(said.iter().any(|said| !said.is_empty()), "nobody is told");
    assert_files_return(&server, before);
}

#[test]
fn slow_bodies() {
    let server = Server::start_with(&[("CHAT_REST_IDLE_MS", "1500")]);
    let before = open_files(&server);
    let said = beside(&server, || {
        let peers = (0..200).map(|_| {
            let mut peer = server.socket();
            let head = format!(
                "POST /api/chat/rooms/r/messages HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nContent-Length: 9000\r\n\r\n"
            );
            peer.write_all(head.as_bytes()).expect("the server reads");
            peer
        });
        drip(peers.collect(), b"{\"content\": \"x\"")
    });
    assert!(said.iter().all(|said| said.is_empty() || said.starts_with("HTTP/1.1 408 ")), "{said:?}");
    assert_files_return(&server, before);
}

#[test]
fn slow_frames() {
    // Each shard has a MiB for what is unfinished, which is a good deal less than all of them hold back.
    let server = Server::start_with(&[("CHAT_INPUT_POOL_BYTES", &(4 * MIB).to_string())]);
    let closed = beside(&server, || {
        let mut peers: Vec<RawClient> =
            (0..200).map(|number| RawClient::connect(&server, &format!("u{number}"))).collect();
        let frame = masked_frame(0x81, &vec![b' '; 60_000]);
        peers.iter_mut().for_each(|peer| _ = peer.try_write(&frame[..50_000]));
        for byte in frame[50_000..].iter().take(20) {
            peers.iter_mut().for_each(|peer| _ = peer.try_write(&[*byte]));
            thread::sleep(DRIP);
        }
        // Who is still there finishes, and is answered.
        let rest = &frame[50_020..];
        let ends = peers.iter_mut().map(|peer| {
            peer.try_write(rest);
            let (opcode, payload) = peer.frame().unwrap_or((8, vec![0x03, 0xf1]));
            (opcode == 8).then(|| u16::from_be_bytes([payload[0], payload[1]]))
        });
        ends.collect::<Vec<_>>()
    });
    let dismissed = closed.iter().flatten().count();
    assert!(closed.iter().flatten().all(|code| *code == 1009), "{closed:?}");
    assert!((110..=180).contains(&dismissed), "{dismissed} of 200 were more than there is room for");
}

#[test]
fn a_million_tiny_frames() {
    const FRAMES: usize = 125_000;
    let server = Server::start();
    let bytes_before = server.resident_bytes_max();
    beside(&server, || {
        // Pongs that nobody asked for want no answer; a text of no JSON does.
        let quiet = masked_frame(0x8a, b"").repeat(1_000);
        let loud = masked_frame(0x81, b"x");
        let flood = |number: usize| {
            let mut peer = RawClient::connect(&server, &format!("u{number}"));
            for batch in 0..FRAMES / 1_000 {
                peer.write(&quiet);
                if batch % 10 == 0 {
                    peer.write(&loud.repeat(100));
                    for _ in 0..100 {
                        let (opcode, payload) = peer.frame().expect("an answer");
                        assert!(opcode == 1 && String::from_utf8_lossy(&payload).contains("invalid_json"));
                    }
                }
            }
        };
        thread::scope(|scope| (0..8).for_each(|number| drop(scope.spawn(move || flood(number)))));
    });
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 16 * MIB, "{grown} bytes more");

    // With rates, who floods is gone after a burst.
    let server = Server::start_with(&[("CHAT_RATES", "on")]);
    let mut peer = RawClient::connect(&server, "u");
    while peer.try_write(&masked_frame(0x81, b"x").repeat(100)) && peer.frame().is_some_and(|frame| frame.0 != 8) {}
    let mut peer = RawClient::connect(&server, "v");
    peer.write(&masked_frame(0x81, b"x").repeat(5_000));
    assert_eq!(peer.close_code(), 4029);
}

#[test]
fn ten_thousand_half_open_connections() {
    const COUNT: usize = 10_000;
    let server = Server::start_with(&[("CHAT_HANDSHAKE_MS", "4000")]);
    let before = open_files(&server);
    let bytes_before = server.resident_bytes_max();
    beside(&server, || {
        let begun = Instant::now();
        let peers: Vec<TcpStream> = (0..COUNT)
            .map(|number| {
                let mut peer = server.socket();
                // Half say nothing, half do not finish.
                if number % 2 == 0 {
                    peer.write_all(b"GET /ws?token=").expect("the server reads");
                }
                peer
            })
            .collect();
        println!("{COUNT} connections within {:?}", begun.elapsed());
        // Whoever is dismissed is told, or just closed.
        for mut peer in peers {
            let mut answer = Vec::new();
            let read = peer.read_to_end(&mut answer);
            let is_told = answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 ");
            assert!(read.is_ok() && is_told, "{read:?} {}", String::from_utf8_lossy(&answer));
        }
    });
    assert_files_return(&server, before);
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 32 * MIB, "{grown} bytes more for {COUNT}");
}

#[test]
fn ping_floods() {
    let env = [("CHAT_OUTBOX_HARD_BYTES", "262144"), ("CHAT_OUTBOX_SOFT_BYTES", "65536"), ("CHAT_CLOSE_MS", "500")];
    let server = Server::start_with(&env);
    let bytes_before = server.resident_bytes_max();
    beside(&server, || {
        let mut readers: Vec<RawClient> =
            (0..4).map(|number| RawClient::connect(&server, &format!("r{number}"))).collect();
        let pings = masked_frame(0x89, &[b'p'; 125]).repeat(100);
        // Who reads the pongs gets each.
        for reader in &mut readers {
            for _ in 0..50 {
                reader.write(&pings);
                (0..100).for_each(|_| assert_eq!(reader.frame().expect("a pong"), (10, vec![b'p'; 125])));
            }
        }
        // Who does not is closed, and what waits for it is bounded.
        for number in 0..4 {
            let mut peer = RawClient::connect(&server, &format!("u{number}"));
            let begun = Instant::now();
            while peer.try_write(&pings) {
                assert!(begun.elapsed() < DEADLINE, "never closed");
            }
        }
    });
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 16 * MIB, "{grown} bytes more");

    let server = Server::start_with(&[("CHAT_RATES", "on")]);
    let mut peer = RawClient::connect(&server, "u");
    peer.write(&masked_frame(0x89, b"p").repeat(5_000));
    assert_eq!(peer.close_code(), 4029);
}

#[test]
fn fragment_floods() {
    let server = Server::start();
    let bytes_before = server.resident_bytes_max();
    beside(&server, || {
        // A message of very many fragments, a control frame between any two, is a message.
        let mut peer = RawClient::connect(&server, "u");
        let text = json!({"type": "ping", "pad": "x".repeat(20_000)}).to_string();
        let mut frames = masked_frame(0x01, b"");
        for byte in text.as_bytes() {
            frames.extend(masked_frame(0x00, &[*byte]));
            frames.extend(masked_frame(0x8a, b""));
        }
        frames.extend(masked_frame(0x80, b""));
        peer.write(&frames);
        assert!(String::from_utf8_lossy(&peer.frame().expect("an answer").1).contains("pong"));
        // One that never ends costs nobody anything, as long as nothing is in its fragments.
        peer.write(&masked_frame(0x01, b""));
        for _ in 0..200 {
            peer.write(&masked_frame(0x00, b"").repeat(1_000));
        }
        // And is too long as soon as there is too much in them.
        while peer.try_write(&masked_frame(0x00, b"xxxxxxxx").repeat(1_000)) {}
        let mut peer = RawClient::connect(&server, "v");
        peer.write(&masked_frame(0x01, b"x"));
        peer.write(&masked_frame(0x00, b"xxxxxxxx").repeat(8_192));
        assert_eq!(peer.close_code(), 1009);
    });
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 8 * MIB, "{grown} bytes more");
}

#[test]
fn compressed_bombs() {
    let server = Server::start();
    let bytes_before = server.resident_bytes_max();
    let mut bomb = Vec::with_capacity(MIB as usize);
    let mut deflate = Compress::new(Compression::best(), false);
    let zeroes = vec![b' '; 60 * MIB as usize];
    deflate.compress_vec(&zeroes, &mut bomb, FlushCompress::Sync).expect("spaces shrink");
    assert!(bomb.len() < 64 * 1024, "{}", bomb.len());
    beside(&server, || {
        for number in 0..100 {
            let (mut peer, head) = RawClient::offering(&server, &format!("u{number}"), "permessage-deflate");
            assert!(head.contains("permessage-deflate"), "{head}");
            peer.write(&masked_frame(0xc1, &bomb));
            assert_eq!(peer.close_code(), 1009);
        }
    });
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 8 * MIB, "{grown} bytes more for bombs of {} bytes each", zeroes.len());
}

#[test]
fn connections_that_come_and_go() {
    let server = Server::start();
    let before = open_files(&server);
    beside(&server, || {
        let upgrade = upgrade_request(&format!("/ws?token={}", user_token("u")), &[]);
        for number in 0..2_000 {
            let mut peer = server.socket();
            // Some are gone before they said anything, some amid a head, some before they are greeted.
            let sent = [0, upgrade.len() / 2, upgrade.len()][number % 3];
            let _ = peer.write_all(&upgrade[..sent]);
        }
    });
    assert_files_return(&server, before);
    eventually("nobody is left", || {
        let user = server.http().service("GET", "/api/chat/users/u", None).json();
        (user["online"] == false).then_some(())
    });
}

#[test]
fn requests_that_nobody_reads_the_answers_of() {
    let server = Server::start_with(&[("CHAT_REST_IDLE_MS", "2000"), ("CHAT_OUTBOX_SOFT_BYTES", "65536")]);
    let bytes_before = server.resident_bytes_max();
    let before = open_files(&server);
    beside(&server, || {
        let peers: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut peer = server.socket();
                peer.set_nonblocking(true).expect("a socket can be made non-blocking");
                let calls = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10_000);
                // As much as the server reads.
                let _ = peer.write_all(&calls);
                peer
            })
            .collect();
        // Another is served at once.
        let mut http = server.http();
        (0..100).for_each(|_| assert_eq!(http.service("GET", "/healthz", None).status, 200));
        drop(peers);
    });
    let grown = server.resident_bytes_max() - bytes_before;
    assert!(grown < 32 * MIB, "{grown} bytes more");
    assert_files_return(&server, before);
}

#[test]
fn a_head_of_very_many_fields() {
    let server = Server::start();
    beside(&server, || {
        for _ in 0..50 {
            let mut http = Http::over(server.socket());
            let fields = "X-A: 1\r\n".repeat(1_000_000);
            // Refused long before its end.
            let _ = http.try_send(format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
            if let Some(response) = http.try_response() {
                assert_eq!(response.status, 431);
            }
        }
    });
    Client::in_room(&server, "ana", "r").expect_none();
}

#[test]
fn names_that_collide() {
    let server = Server::start();
    beside(&server, || {
        // All the same to a hash without a key, such as Java's.
        let name = |bits: u32| (0..11).map(|pair| if bits >> pair & 1 == 0 { "Aa" } else { "BB" }).collect::<String>();
        let mut crowd: Vec<Client> = (0..21).map(|number| Client::user(&server, &name(number))).collect();
        for (number, client) in crowd.iter_mut().enumerate() {
            let rooms: Vec<_> = (0..90).map(|room| json!({"roomId": name(number as u32 * 90 + room)})).collect();
            let (_, answer) = client.request(json!({"type": "join_rooms", "rooms": rooms}));
            assert!(answer["rooms"].as_array().is_some_and(|rooms| rooms.iter().all(|room| room["code"].is_null())));
        }
        crowd.iter_mut().for_each(Client::expect_none);
    });
}
