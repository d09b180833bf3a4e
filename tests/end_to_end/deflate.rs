//! permessage-deflate (RFC 7692) as a client sees it: what is agreed, what is compressed, and what closes a connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};

use crate::client::{Client, RawClient, masked_frame, unique, upgrade_request, user_token};
use crate::http_client::Http;
use crate::server::Server;

const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
const BOTH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// A client that negotiated compression, or at least offered it.
struct Deflating {
    raw: RawClient,
    /// What the server said about it.
    agreed: Option<String>,
}

impl Deflating {
    fn connect(server: &Server, user: &str, offer: &str) -> Self {
        let (raw, head) = RawClient::offering(server, user, offer);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let agreed = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        let mut client = Self { raw, agreed: agreed.map(str::to_owned) };
        let (message, _) = client.next();
        assert_eq!(message["type"], "connected");
        client
    }

    fn in_room(server: &Server, user: &str, room: &str, offer: &str) -> Self {
        let mut client = Self::connect(server, user, offer);
        client.send(&json!({"type": "join_room", "roomId": room}));
        client.wait_for("online_update");
        client
    }

    fn send(&mut self, message: &Value) {
        self.raw.write(&masked_frame(0x81, message.to_string().as_bytes()));
    }

    fn send_deflated(&mut self, message: &Value) {
        self.raw.write(&masked_frame(0xc1, &deflate(message.to_string().as_bytes())));
    }

    /// The next message, and the length of its payload if it was compressed. Other frames are skipped.
    #[track_caller]
    fn next(&mut self) -> (Value, Option<usize>) {
        loop {
            let (first, payload) = self.raw.marked_frame().expect("a message");
            let (text, compressed) = match first {
                0x81 => (payload, None),
                0xc1 => (inflate(&payload), Some(payload.len())),
                0x89 | 0x8a => continue,
                _ => panic!("{first:#x} {payload:?}"),
            };
            return (serde_json::from_slice(&text).expect("the server sends JSON"), compressed);
        }
    }

    #[track_caller]
    fn wait_for(&mut self, kind: &str) -> (Value, Option<usize>) {
        loop {
            let next = self.next();
            if next.0["type"] == kind {
                return next;
            }
        }
    }
}

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut compressor = Compress::new(Compression::default(), false);
    let mut out = Vec::with_capacity(text.len() + 100);
    compressor.compress_vec(text, &mut out, FlushCompress::Sync).expect("it can be compressed");
    assert!(out.len() < out.capacity() && out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

fn inflate(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let input = [payload, &TAIL].concat();
    let mut stream = Decompress::new(false);
    stream.decompress_vec(&input, &mut out, FlushDecompress::Sync).expect("the server's data is right");
    assert_eq!(stream.total_in(), input.len() as u64);
    out
}

fn post(http: &mut Http, room: &str, content: &str) {
    http.post(room, &json!({"content": content}));
}

#[test]
fn what_is_offered_is_agreed_or_declined() {
    let server = Server::start();
    let with_window = |bits: u8| Some(format!("{BOTH}; server_max_window_bits={bits}"));
    let both = || Some(BOTH.to_owned());
    let table = [
        ("permessage-deflate", both()),
        ("permessage-deflate; client_max_window_bits", both()),
        ("permessage-deflate; server_max_window_bits=8", with_window(8)),
        ("permessage-deflate; server_max_window_bits=\"15\"; client_max_window_bits=9", with_window(15)),
        ("permessage-deflate; server_max_window_bits=16, permessage-deflate", both()),
        ("permessage-bzip2, permessage-deflate; client_no_context_takeover", both()),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; level=9", None),
        ("x-webkit-deflate-frame", None),
    ];
    for (offer, agreed) in table {
        assert_eq!(Deflating::connect(&server, "ana", offer).agreed, agreed, "{offer}");
    }
    let (_, head) = RawClient::offering(&server, "ana", "permessage-deflate; =");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[test]
fn a_mixed_room_gets_the_same_text_in_both_forms() {
    for threads in ["1", "3"] {
        let server = Server::start_with(&[("CHAT_THREADS", threads)]);
        let mut http = server.http();
        let mut plain: Vec<Client> = (0..3).map(|n| Client::in_room(&server, &format!("p{n}"), "r")).collect();
        let offer = "permessage-deflate; client_max_window_bits";
        let mut deflating: Vec<Deflating> =
            (0..3).map(|n| Deflating::in_room(&server, &format!("d{n}"), "r", offer)).collect();
        let large = "the same words again and again, ".repeat(100);
        let noise: String = (0..700_u32).map(|n| char::from(b'!' + (n.wrapping_mul(n + 7) % 90) as u8)).collect();
        let contents = [large.as_str(), "small", &large, &noise];
        contents.iter().for_each(|content| post(&mut http, "r", content));
        for content in contents {
            let messages: Vec<Value> = plain.iter_mut().map(|client| client.wait_for("new_message")).collect();
            assert_eq!(messages[0]["content"], content);
            for client in &mut deflating {
                let (message, compressed) = client.wait_for("new_message");
                assert_eq!(message, messages[0]);
                assert_eq!(compressed.is_some(), content.len() > 600, "{content}");
                assert!(compressed.is_none_or(|length| length < message.to_string().len()));
            }
        }
        // The last that takes it leaves, and one that does comes again.
        deflating.drain(..).for_each(|mut client| {
            client.send(&json!({"type": "leave_room", "roomId": "r", "ref": 1}));
            client.wait_for("ack");
        });
        post(&mut http, "r", &large);
        assert_eq!(plain[0].wait_for("new_message")["content"], large.as_str());
        let mut late = Deflating::in_room(&server, "d9", "r", offer);
        post(&mut http, "r", &large);
        assert!(late.wait_for("new_message").1.is_some());
    }
}

#[test]
fn the_threshold_is_one_of_the_payload() {
    let server = Server::start_with(&[("CHAT_DEFLATE_THRESHOLD_BYTES", "2000")]);
    let mut http = server.http();
    let mut client = Deflating::in_room(&server, "ana", "r", "permessage-deflate");
    // The event's length around its content, `seq` having one digit.
    post(&mut http, "r", "");
    let around = client.wait_for("new_message").0.to_string().len();
    for (length, is_compressed) in [(1999, false), (2000, true)] {
        post(&mut http, "r", &"x".repeat(length - around));
        let (message, compressed) = client.wait_for("new_message");
        assert_eq!((message.to_string().len(), compressed.is_some()), (length, is_compressed));
    }
}

#[test]
fn it_can_be_turned_off() {
    let server = Server::start_with(&[("CHAT_DEFLATE", "off")]);
    let mut client = Deflating::in_room(&server, "ana", "r", "permessage-deflate");
    assert_eq!(client.agreed, None);
    post(&mut server.http(), "r", &"x".repeat(5000));
    assert_eq!(client.wait_for("new_message").1, None);
    client.send_deflated(&json!({"type": "ping"}));
    assert_eq!(client.raw.close_code(), 1002);
}

#[test]
fn a_window_that_is_too_narrow_gets_the_plain_variant() {
    let server = Server::start();
    let mut http = server.http();
    let offer = |bits: u8| format!("permessage-deflate; server_max_window_bits={bits}");
    let mut clients: Vec<(u8, Deflating)> =
        (8..=15).map(|bits| (bits, Deflating::in_room(&server, &format!("w{bits}"), "r", &offer(bits)))).collect();
    for (length, bits_min) in [(700, 10), (1500, 11), (6000, 13), (40_000, 15)] {
        post(&mut http, "r", &"words ".repeat(length / 6));
        for (bits, client) in &mut clients {
            let (message, compressed) = client.wait_for("new_message");
            assert_eq!(message["content"].as_str().map(str::len), Some(length / 6 * 6));
            assert_eq!(compressed.is_some(), *bits >= bits_min, "{length} bytes, {bits} bits");
        }
    }
}

#[test]
fn what_goes_to_one_connection_is_compressed_for_its_window() {
    let server = Server::start();
    let rooms: Vec<Value> = (0..40).map(|n| json!({"roomId": format!("a-room-with-a-longer-name-{n:04}")})).collect();
    for bits in 8..=15 {
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let mut client = Deflating::connect(&server, "ana", &offer);
        client.send(&json!({"type": "join_rooms", "rooms": rooms, "ref": "all"}));
        let (ack, compressed) = client.wait_for("ack");
        assert_eq!(ack["rooms"].as_array().map(Vec::len), Some(40));
        assert_eq!(compressed.is_some(), bits > 8, "{bits}");
        let note = json!({"type": "note", "x": "y".repeat(900)});
        let answer = server.http().service("POST", "/api/chat/users/ana/events", Some(&note));
        assert_eq!(answer.status, 202);
        assert_eq!(client.wait_for("note").1.is_some(), bits >= 10, "{bits}");
    }
}

#[test]
fn a_client_may_compress_what_it_sends() {
    let server = Server::start();
    let mut client = Deflating::connect(&server, "ana", "permessage-deflate");
    let reference = unique("ref");
    let ping = json!({"type": "ping", "ref": reference, "more": "x".repeat(3000)});
    client.send_deflated(&ping);
    assert_eq!(client.wait_for("pong").0["ref"], reference);
    // Binary, and uncompressed in between.
    client.raw.write(&masked_frame(0xc2, &deflate(ping.to_string().as_bytes())));
    assert_eq!(client.wait_for("pong").0["ref"], reference);
    client.send(&ping);
    assert_eq!(client.wait_for("pong").0["ref"], reference);
    // In fragments that end anywhere, with a ping between.
    let payload = deflate(ping.to_string().as_bytes());
    for at in 0..=payload.len() {
        let mut bytes = masked_frame(0x41, &payload[..at]);
        bytes.extend(masked_frame(0x89, b"between"));
        bytes.extend(masked_frame(0x80, &payload[at..]));
        client.raw.write(&bytes);
        assert_eq!(client.raw.marked_frame(), Some((0x8a, b"between".to_vec())));
        assert_eq!(client.wait_for("pong").0["ref"], reference);
    }
}

#[test]
fn violations_close_with_the_right_code() {
    let server = Server::start();
    let two = |first: u8, second: u8| {
        let payload = deflate(br#"{"type":"ping"}"#);
        [masked_frame(first, &payload[..3]), masked_frame(second, &payload[3..])].concat()
    };
    let bomb = deflate(&vec![b' '; 10_000_000]);
    assert!(bomb.len() < 60_000, "it passes the limit of what is received");
    let rows = [
        ("a bomb", masked_frame(0xc1, &bomb), 1009),
        ("a byte above the limit", masked_frame(0xc1, &deflate(&vec![b' '; 64 * 1024 + 1])), 1009),
        ("garbage", masked_frame(0xc1, b"{\"type\":\"ping\"}"), 1007),
        ("cut off", masked_frame(0xc1, &deflate(&vec![b' '; 1000])[..4]), 1007),
        ("bad UTF-8", masked_frame(0xc1, &deflate(&[b'"', 0xff, b'"'])), 1007),
        ("marked in the middle", two(0x41, 0xc0), 1002),
        ("marked at the end of a plain message", two(0x02, 0xc0), 1002),
        ("a marked ping", masked_frame(0xc9, b""), 1002),
        ("a marked close", masked_frame(0xc8, &1000_u16.to_be_bytes()), 1002),
        ("the second reserved bit", masked_frame(0xa1, b"{}"), 1002),
        ("the first two reserved bits", masked_frame(0xe1, b"{}"), 1002),
    ];
    for (what, bytes, code) in rows {
        let mut client = Deflating::connect(&server, "ana", "permessage-deflate");
        client.raw.write(&bytes);
        assert_eq!(client.raw.close_code(), code, "{what}");
    }
    let mut client = Deflating::connect(&server, "ana", "permessage-deflate; server_max_window_bits=7");
    client.send_deflated(&json!({"type": "ping"}));
    assert_eq!(client.raw.close_code(), 1002, "not negotiated");
    let mut client = Deflating::connect(&server, "ana", "permessage-deflate");
    client.raw.write(&masked_frame(0xc1, &deflate(&vec![b' '; 64 * 1024])));
    assert_eq!(client.wait_for("error").0["code"], "invalid_json", "as long as is allowed");
}

#[test]
fn it_holds_from_the_first_message_whatever_the_token_came_with() {
    let server = Server::start();
    let headers = [
        ("Sec-WebSocket-Protocol", "sizland.v1"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; foo, mux"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
    ];
    let mut request = upgrade_request("/ws", &headers);
    let auth = json!({"type": "auth", "token": user_token("ana"), "ref": "x"}).to_string();
    // In one write with the upgrade, as a client that does not wait would.
    request.extend(masked_frame(0xc1, &deflate(auth.as_bytes())));
    let (mut raw, head) = RawClient::sending(server.socket(), &request);
    assert!(head.contains(&format!("Sec-WebSocket-Extensions: {BOTH}\r\n")), "{head}");
    let (_, connected) = raw.frame().expect("a greeting");
    assert!(String::from_utf8_lossy(&connected).contains("connected"));
}
