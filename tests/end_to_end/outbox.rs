//! Slow readers: shed first, closed at the limit, and nobody else waits for them.

use std::net::TcpStream;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::client::{Client, End, RawClient, masked_frame, types, user_token};
use crate::server::{DEADLINE, POLL_INTERVAL, Server, bare, prepare, run, with_defaults};

/// A socket whose kernel buffer takes next to nothing.
pub fn narrow_socket(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a receive buffer");
    socket.set_send_buffer_size(4096).expect("a send buffer");
    socket.connect(&server.address().into()).expect("the server accepts");
    let stream = TcpStream::from(socket);
    prepare(&stream);
    stream
}

fn post_many(server: &Server, room: &str, count: usize, bytes: usize) {
    let mut http = server.http();
    for number in 0..count {
        http.post(room, &json!({"id": format!("m{number}"), "content": "x".repeat(bytes), "number": number}));
    }
}

#[test]
fn a_reader_that_stops_is_closed_at_its_limit_and_others_go_on() {
    let server = Server::start_with(&[
        ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
        ("CHAT_OUTBOX_HARD_BYTES", "262144"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
        ("CHAT_CLOSE_MS", "60000"),
    ]);
    let mut fast = Client::in_room(&server, "fast", "r");
    let mut slow = Client::over(narrow_socket(&server), &user_token("slow"));
    slow.join("r");
    fast.expect("user_joined");
    let count = 60;
    let (mut http, mut left) = (server.http(), 0);
    for number in 0..count {
        // One at a time, so that the fast one is never behind.
        http.post("r", &json!({"id": format!("m{number}"), "content": "x".repeat(16_000), "number": number}));
        let (before, message) = fast.until(|message| message["type"] == "new_message");
        assert_eq!(message["number"], number, "in order, nothing missing");
        left += types(&before).iter().filter(|kind| **kind == "user_left").count();
    }
    if left == 0 {
        assert_eq!(fast.expect("user_left")["userId"], "slow");
    }
    // What was begun is finished, the rest is dropped, and the reason is told.
    let mut received = 0;
    let code = loop {
        match slow.read() {
            Ok(message) if message["type"] == "new_message" => {
                assert_eq!(message["number"], received);
                received += 1;
            }
            Ok(message) => assert_ne!(message["type"], "error", "{message}"),
            Err(End::Close(code, _)) => break code,
            Err(end) => panic!("{end} after {received} messages"),
        }
    };
    assert_eq!(code, 4008);
    assert!(received < count as u64, "{received}");
}

#[test]
fn of_a_reader_that_stopped_nothing_stays_in_the_kernel() {
    let server = Server::start_with(&[
        ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
        ("CHAT_OUTBOX_HARD_BYTES", "262144"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
        ("CHAT_CLOSE_MS", "500"),
    ]);
    let mut fast = Client::in_room(&server, "fast", "r");
    let socket = narrow_socket(&server);
    let peer = socket.local_addr().expect("a connected socket");
    let mut slow = Client::over(socket, &user_token("slow"));
    slow.join("r");
    fast.expect("user_joined");
    let mut http = server.http();
    let mut has_left = false;
    for number in 0..60 {
        http.post("r", &json!({"content": "x".repeat(16_000)}));
        let (before, _) = fast.until(|message| message["type"] == "new_message");
        has_left |= types(&before).contains(&"user_left");
        // Below its limit, and more than its window takes.
        assert!(number != 10 || server.has_unsent_to(peer));
    }
    if !has_left {
        fast.expect("user_left");
    }
    // Its peer still reads nothing: an orderly end of the connection would take minutes.
    let end = Instant::now() + DEADLINE;
    while server.has_unsent_to(peer) {
        assert!(Instant::now() < end, "the kernel keeps what nobody reads");
        thread::sleep(POLL_INTERVAL);
    }
    loop {
        match slow.read() {
            Ok(message) => assert_ne!(message["type"], "error", "{message}"),
            Err(End::Broken(_)) => break,
            Err(end) => panic!("{end}"),
        }
    }
}

#[test]
fn a_reader_that_is_behind_is_shed_and_then_caught_up() {
    let server = Server::start_with(&[
        ("CHAT_OUTBOX_SOFT_BYTES", "32768"),
        ("CHAT_OUTBOX_HARD_BYTES", "4194304"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
        ("CHAT_TYPING_REPEAT_MS", "0"),
    ]);
    let mut slow = Client::over(narrow_socket(&server), &user_token("slow"));
    slow.join("r");
    let mut typist = Client::in_room(&server, "typist", "r");
    let count = 20;
    post_many(&server, "r", count, 16_000);
    for _ in 0..count {
        typist.expect("new_message");
    }
    let toggles = 100;
    for _ in 0..toggles {
        typist.send(json!({"type": "typing_start", "roomId": "r"}));
        typist.send(json!({"type": "typing_stop", "roomId": "r"}));
    }
    assert_eq!(typist.request(json!({"type": "typing_stop", "roomId": "r"})).1["type"], "ack");
    let mut messages = 0;
    let mut typing = 0;
    let shed = loop {
        let message = slow.next();
        match message["type"].as_str() {
            Some("new_message") => {
                assert_eq!(message["number"], messages, "durable events are never dropped");
                messages += 1;
            }
            Some("typing_start" | "typing_stop") => typing += 1,
            Some("user_joined") => {}
            Some("shed") => break message["count"].as_u64().expect("a count"),
            _ => panic!("{message}"),
        }
    };
    assert_eq!(messages, count as u64);
    assert!(shed >= 1, "{typing} sent");
    assert_eq!(shed + typing, 2 * toggles, "what is missing is what was told to be missing: {typing} came");
    let update = slow.wait_for("online_update");
    assert_eq!(update["roomId"], "r");
    assert_eq!(update["online"].as_array().map(Vec::len), Some(2), "{update}");
    // Caught up: live again.
    typist.send(json!({"type": "typing_start", "roomId": "r"}));
    slow.wait_for("typing_start");
}

#[test]
fn one_that_never_reads_its_own_answers_is_closed_too() {
    let server = Server::start_with(&[
        ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
        ("CHAT_OUTBOX_HARD_BYTES", "262144"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
        ("CHAT_CLOSE_MS", "1000"),
    ]);
    let mut fast = Client::in_room(&server, "fast", "r");
    let mut slow = Client::over(narrow_socket(&server), &user_token("slow"));
    slow.join("r");
    fast.expect("user_joined");
    slow.raw().set_write_timeout(Some(std::time::Duration::from_millis(500))).expect("a timeout can be set");
    // Either the server stops reading what it cannot answer, or it closes the connection; it never keeps the answers.
    let batch: Vec<Value> =
        (0..500).map(|number| json!({"type": "ping", "ref": number, "pad": "x".repeat(1_000)})).collect();
    let mut sent = 0;
    while sent < 100 && batch.iter().all(|message| slow.try_send(message.clone())) {
        sent += 1;
    }
    assert!(sent < 100, "fifty thousand answers are kept for a client that reads none");
    crate::client::fence("r", &mut fast, []);
}

/// Joins with long names are the dearest answers that a client can ask for; its connection ends while some are parked.
#[test]
fn one_that_joins_and_joins_and_reads_nothing_ends_only_itself() {
    let server = Server::start_with(&[("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"), ("CHAT_CLOSE_MS", "500")]);
    let mut fast = Client::in_room(&server, "fast", "r");
    for attempt in 0..3 {
        let mut slow = RawClient::over(narrow_socket(&server), &format!("slow-{attempt}"));
        let joins: Vec<u8> = (0..200)
            .flat_map(|_| {
                let join = json!({"type": "join_room", "roomId": "x".repeat(256), "ref": 1});
                masked_frame(0x81, join.to_string().as_bytes())
            })
            .collect();
        for _ in 0..100 {
            if !slow.try_write(&joins) {
                break;
            }
        }
        slow.drain();
        crate::client::fence("r", &mut fast, []);
    }
}

#[test]
fn nothing_follows_a_close_frame() {
    let env = [("CHAT_RATES", "on"), ("CHAT_RATE_BURST", "5"), ("CHAT_RATE_FLOOD", "20"), ("CHAT_CLOSE_MS", "500")];
    let server = Server::start_with(&env);
    let mut flooding = RawClient::connect(&server, "ana");
    let flood: Vec<u8> = (0..200).flat_map(|_| masked_frame(0x81, b"[]")).collect();
    flooding.write(&flood);
    let mut closed = false;
    while let Some((first, payload)) = flooding.frame() {
        assert!(!closed, "{:?} behind the Close frame", String::from_utf8_lossy(&payload));
        closed = first == 8;
    }
    assert!(closed);
}

/// Small pools, so that fifty megabytes are far beyond them.
const SMALL_POOLS: [(&str, &str); 9] = [
    ("CHAT_CONNECTIONS_MAX", "500"),
    ("CHAT_ROOMS_MAX", "1000"),
    ("CHAT_ROOMS_PER_CONNECTION_MAX", "10"),
    ("CHAT_SEGMENT_POOL_BYTES", "8388608"),
    ("CHAT_BURST_WINDOW_BYTES", "4194304"),
    ("CHAT_DIRECT_POOL_BYTES", "2097152"),
    ("CHAT_INPUT_POOL_BYTES", "2097152"),
    ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
    ("CHAT_IDEMPOTENCY_ENTRIES_MAX", "1000"),
];

#[test]
fn memory_stays_within_the_bound_that_check_prints() {
    let mut check = bare(&["check"]);
    with_defaults(&mut check, 0, &[("WS_PORT", "3001")]);
    check.envs(SMALL_POOLS);
    let printed = run(check).stdout;
    let bound = printed.iter().find_map(|line| line.trim().strip_prefix("process")?.trim().strip_suffix(" MiB"));
    let bound: u64 = bound.unwrap_or_else(|| panic!("no bound in {printed:#?}")).trim().parse().expect("a number");

    let server = Server::start_with(&SMALL_POOLS);
    let mut fast = Client::in_room(&server, "fast", "fast");
    // Each in a room of its own, so that what waits for one is shared with none; all below their own limit.
    let slow: Vec<Client> = (0..50)
        .map(|number| {
            let mut client = Client::over(narrow_socket(&server), &user_token(&format!("slow-{number}")));
            client.join(&format!("room-{number}"));
            client
        })
        .collect();
    let mut http = server.http();
    let content = "x".repeat(30_000);
    for round in 0..32 {
        for number in 0..slow.len() {
            http.post(&format!("room-{number}"), &json!({"content": content}));
        }
        http.post("fast", &json!({"content": round}));
        assert_eq!(fast.expect("new_message")["content"], round, "whoever reads is served");
    }
    let resident = server.resident_bytes_max() / 1024 / 1024;
    assert!(resident <= bound, "{resident} MiB resident, {bound} MiB promised");
    let answer = http.service("GET", "/api/chat/rooms?limit=200", None).json();
    let rooms = answer["rooms"].as_array().expect("a list").len();
    assert!(rooms < slow.len(), "those furthest behind were closed: {rooms} rooms still have members");
}
