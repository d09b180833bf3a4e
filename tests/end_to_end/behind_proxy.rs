//! The server behind nginx, configured as the README says, and behind HAProxy.
//!
//! These tests need the proxies and are ignored unless asked for, as `tools/test` does:
//! `cargo test --test end_to_end behind_proxy -- --ignored`.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tungstenite::protocol::Message;

use crate::client::{Client, user_token};
use crate::http_client::{Http, request};
use crate::http_conformance::Random;
use crate::http_table::{Fate, MARKED_ROOM, Row, TABLE_ROOM, expand, mark, table};
use crate::proxy::{Logged, Proxy, Variant, readme_snippet};
use crate::server::{API_KEY, Server};

const KEY: [(&str, &str); 1] = [("X-API-Key", API_KEY)];
const HONEST_CLIENTS: usize = 4;
const ATTACKERS: usize = 8;
/// Honest requests that one client sends in one write.
const PIPELINED: usize = 4;
/// How long an attacker waits for an answer that may never come.
const UNFINISHED_PATIENCE: Duration = Duration::from_secs(3);

#[test]
#[ignore = "needs nginx; tools/test runs it"]
fn nginx_passes_websocket_and_rest() {
    passes_websocket_and_rest(Variant::Readme);
}

fn passes_websocket_and_rest(variant: Variant) {
    let server = Server::start();
    let proxy = Proxy::start(&server, variant);
    let mut ana = Client::over(proxy.socket(), &user_token("ana"));
    let mut bob = Client::over(proxy.socket(), &user_token("bob"));
    let room = "project/7";
    ana.join(room);
    bob.join(room);
    assert_eq!(ana.expect("user_joined")["userId"], "bob");

    ana.send(json!({"type": "typing_start", "roomId": room}));
    assert_eq!(bob.expect("typing_start")["userId"], "ana");
    let mut http = Http::over(proxy.socket());
    let path = "/api/chat/rooms/project%2F7/messages";
    let answer = http.service("POST", path, Some(&json!({"id": "m1", "content": "x".repeat(60_000)})));
    assert_eq!(answer.json()["delivered"], json!({"users": 2, "connections": 2}));
    for member in [&mut ana, &mut bob] {
        assert_eq!(member.expect("new_message")["id"], "m1");
    }
    let online = http.service("GET", "/api/chat/rooms/project%2F7/online", None);
    assert_eq!(online.json()["count"], 2);
    assert_eq!(http.service("POST", "/api/chat/nowhere", Some(&json!({}))).status, 404);

    ana.send_message(Message::Ping(b"a ping".to_vec().into()));
    assert_eq!(ana.next_message(), Message::Pong(b"a ping".to_vec().into()));
    http.service("POST", "/api/chat/users/ana/disconnect", Some(&json!({"reason": "enough"})));
    assert_eq!(ana.expect_close(), (4500, "enough".to_owned()));
    bob.send_message(Message::Binary(vec![0xff].into()));
    assert_eq!(bob.wait_for("error")["code"], "invalid_json");
    bob.close();
    let mut nobody = Client::dial(proxy.socket(), "/ws", &[]).expect("the upgrade is served");
    assert_eq!(nobody.expect_close(), (1008, "No authentication token".to_owned()));
    server.stop_in_order();
}

#[test]
#[ignore = "needs nginx; tools/test runs it"]
fn nginx_passes_pipelined_requests_in_order() {
    let server = Server::start();
    for variant in [Variant::Readme, Variant::Unbuffered] {
        let proxy = Proxy::start(&server, variant);
        let mut http = Http::over(proxy.socket());
        let mut bytes = Vec::new();
        for number in 0..64 {
            let room = format!("/api/chat/rooms/r{}/messages", number % 5);
            let id = format!("{variant:?}-{number}");
            bytes.extend(match number % 3 {
                0 => request("POST", &room, &KEY, Some(&json!({"id": id}).to_string())),
                1 => request("GET", "/api/chat/rooms", &KEY, None),
                _ => request("POST", &room, &[], Some("{}")),
            });
        }
        http.send(&bytes);
        for number in 0..64 {
            let response = http.response();
            match number % 3 {
                0 => assert_eq!(response.json()["id"], json!(format!("{variant:?}-{number}"))),
                1 => assert!(response.json()["rooms"].is_array(), "{response:?}"),
                _ => assert_eq!(response.status, 401),
            }
        }
    }
}

#[test]
#[ignore = "needs nginx; tools/test runs it"]
fn nginx_keeps_a_quiet_websocket_that_is_pinged() {
    let seconds = readme_snippet();
    let (_, seconds) = seconds.split_once("proxy_read_timeout ").expect("a timeout");
    let seconds: u64 = seconds.split_once("s;").and_then(|(seconds, _)| seconds.parse().ok()).expect("seconds");
    assert!(seconds > 2 * 30, "the README's timeout is above two of the default heartbeats");

    let server = Server::start_with(&[("CHAT_HEARTBEAT_MS", "250")]);
    let proxy = Proxy::start(&server, Variant::Impatient);
    let mut ana = Client::over(proxy.socket(), &user_token("ana"));
    // Ten pings take longer than the second that nginx would wait.
    for _ in 0..10 {
        assert!(matches!(ana.next_message(), Message::Ping(_)));
    }
    ana.expect_none();
}

#[test]
#[ignore = "needs nginx; tools/test runs it"]
fn nginx_lets_no_request_be_seen_twice_or_by_the_wrong_party() {
    let rows = table();
    for variant in [Variant::Readme, Variant::Unbuffered] {
        attack(&rows, variant);
    }
}

#[test]
#[ignore = "needs HAProxy; tools/test runs it"]
fn haproxy_lets_no_request_be_seen_twice_or_by_the_wrong_party() {
    attack(&table(), Variant::HaProxy);
}

#[test]
#[ignore = "needs HAProxy; tools/test runs it"]
fn haproxy_passes_websocket_and_rest() {
    passes_websocket_and_rest(Variant::HaProxy);
}

/// Sends every row through the proxy, twice, while honest clients use the same connections to the server; then holds what
/// arrived against what the proxy says that it was asked.
fn attack(rows: &[Row], variant: Variant) {
    let server = Server::start();
    let proxy = Proxy::start(&server, variant);
    let mut member = Client::in_room(&server, "member", MARKED_ROOM);
    let mut random = Random::from_environment();
    let splits: Vec<Option<usize>> = rows.iter().flat_map(|_| [None, Some(random.below(1_000_000))]).collect();

    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let ports = Mutex::new(HashMap::new());
    let honest = thread::scope(|scope| {
        let honest: Vec<_> = (0..HONEST_CLIENTS)
            .map(|client| {
                scope.spawn({
                    let (proxy, over) = (&proxy, &over);
                    move || post_until(proxy, client, over)
                })
            })
            .collect();
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let turn = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(row), Some(split)) = (rows.get(turn / 2), splits.get(turn)) else { break };
                        let port = send_row(&proxy, row, turn / 2, *split);
                        ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port, turn / 2);
                    }
                })
            })
            .collect();
        let attacked: Vec<_> = attackers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        assert!(attacked.iter().all(Result::is_ok), "an attacker failed");
        honest
            .into_iter()
            .map(|client| client.join().expect("an honest client got its own answers"))
            .collect::<Vec<_>>()
    });

    Http::over(proxy.socket()).service("GET", "/api/chat/rooms?fence", None);
    let log = proxy.log_until("/api/chat/rooms?fence");
    // Besides the member's there are only those that the proxy keeps for the next request, whoever sends it.
    assert!(server.established() > 1, "{variant:?}: no connection is kept to the server");
    let ports = ports.into_inner().unwrap_or_else(PoisonError::into_inner);
    let posted = |path: &str| log.iter().filter(|request| request.posted(path)).collect::<Vec<_>>();

    // A marked message may only come from a request that the proxy has read as one of that very attacker's.
    let mut allowed: HashMap<String, usize> = HashMap::new();
    for request in posted(&format!("/api/chat/rooms/{MARKED_ROOM}/messages")) {
        let row = ports.get(&request.client_port).expect("only attackers post marks");
        *allowed.entry(mark(*row)).or_default() += 1;
    }
    server.http().post(MARKED_ROOM, &json!({"content": "fence"}));
    let (before, _) = member.until(|message| message["content"] == "fence");
    let mut arrived: HashMap<String, usize> = HashMap::new();
    for message in &before {
        *arrived.entry(message["content"].as_str().expect("a mark").to_owned()).or_default() += 1;
    }
    assert_eq!(arrived, allowed, "{variant:?}: what arrived, and what the proxy was asked for");

    // Every other message, too, is there once for each request.
    let mut expected = vec![(TABLE_ROOM.to_owned(), posted(&format!("/api/chat/rooms/{TABLE_ROOM}/messages")).len())];
    for (client, count) in honest.iter().enumerate() {
        let room = format!("honest-{client}");
        assert_eq!(posted(&format!("/api/chat/rooms/{room}/messages")).len(), *count, "{variant:?}: {room}");
        expected.push((room, *count));
    }
    for (room, count) in expected {
        assert!(count > 0, "{variant:?}: nobody posted to {room}");
        let last = server.http().post(&room, &json!({"content": "last"}));
        assert_eq!(last["seq"], json!(count + 1), "{variant:?}: {room}");
    }
    println!(
        "{variant:?}: {} attacks, {} honest requests, {before} marks of proper requests",
        2 * rows.len(),
        honest.iter().sum::<usize>(),
        before = before.len()
    );
}

impl Logged {
    fn posted(&self, path: &str) -> bool {
        self.method == "POST" && self.status == 201 && self.uri == path
    }
}

/// Posts until told to stop, several requests at a time, and checks that each answer is the one asked for; gives how many.
fn post_until(proxy: &Proxy, client: usize, over: &AtomicBool) -> usize {
    let mut http = Http::over(proxy.socket());
    let path = format!("/api/chat/rooms/honest-{client}/messages");
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let ids: Vec<String> = (0..PIPELINED).map(|at| format!("{client}-{}", count + at)).collect();
        let requests = ids.iter().flat_map(|id| {
            let body = json!({"id": id, "content": "honest"}).to_string();
            request("POST", &path, &KEY, Some(&body))
        });
        http.send(&requests.collect::<Vec<u8>>());
        for id in &ids {
            let response = http.response();
            assert_eq!((response.status, &response.json()["id"]), (201, &json!(id)), "{response:?}");
            count += 1;
            assert_eq!(response.json()["seq"], json!(count));
        }
    }
    count
}

/// Sends a row and an honest request behind it, and reads all that comes back; gives the port that it was sent from.
fn send_row(proxy: &Proxy, row: &Row, number: usize, split: Option<usize>) -> u16 {
    let mut stream = proxy.attack_socket();
    let port = stream.local_addr().expect("a connected socket").port();
    let mut bytes = expand(row.request, number);
    if row.fate != Fate::Waits {
        bytes.extend(request("GET", "/api/chat/rooms", &KEY, None));
    }
    let at = split.map_or(0, |millionths| 1 + (bytes.len() - 1) * millionths / 1_000_000);
    let (first, second) = bytes.split_at(at);
    // The proxy may have answered and closed before all of it is sent.
    let _ = stream.write_all(first);
    if split.is_some() {
        thread::sleep(Duration::from_millis(2));
    }
    let _ = stream.write_all(second);
    // HAProxy waits long for a body that does not come: whoever sent one, or has heard nothing, gives up.
    stream.set_read_timeout(Some(UNFINISHED_PATIENCE)).expect("a timeout can be set");
    let unfinished = row.fate == Fate::Waits;
    let (mut seen, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock && (unfinished || seen.is_empty()) => break,
            Err(error) => panic!("{:?}: {error}, after {}", row.name, String::from_utf8_lossy(&seen)),
        }
        if seen.windows(13).any(|window| window == b"HTTP/1.1 101 ") {
            break;
        }
    }
    port
}
