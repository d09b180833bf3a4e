//! Limits a client can run into: connections, connections of a user, rate, size.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;

use crate::client::{Client, End, user_token};
use crate::http_client::request;
use crate::server::{Server, eventually};

#[test]
fn over_the_users_limit_the_connection_silent_longest_goes() {
    let server = Server::start_with(&[("CHAT_CONNECTIONS_PER_USER_MAX", "2")]);
    let mut first = Client::in_room(&server, "ana", "r");
    let mut second = Client::in_room(&server, "ana", "r");
    // The older one keeps talking, long enough for the clock that silence is measured by.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_000) {
        first.expect_none();
        thread::sleep(Duration::from_millis(50));
    }
    let mut third = Client::user(&server, "ana");
    let (before, (code, _)) = second.messages_until_close();
    assert_eq!((before, code), (vec![], 4503));
    first.expect_none();
    third.join("r");
    // Another user is not concerned.
    Client::user(&server, "ben");
    first.expect_none();
}

#[test]
fn the_users_limit_holds_over_all_shards_under_a_rush() {
    let server = Server::start_with(&[("CHAT_CONNECTIONS_PER_USER_MAX", "5")]);
    let clients: Vec<Client> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..5).map(|_| rush(&server)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no client panics")).flatten().collect()
    });
    eventually("five connections remain", || {
        let user = server.http().service("GET", "/api/chat/users/ana", None).json();
        (user["connections"].as_array().map(Vec::len) == Some(5)).then_some(())
    });
    drop(clients);
}

/// A connection that may be replaced before its first message.
fn rush(server: &Server) -> Option<Client> {
    let mut client = Client::dial(server.socket(), &format!("/ws?token={}", user_token("ana")), &[]).expect("served");
    match client.read() {
        Ok(message) => {
            assert_eq!(message["type"], "connected");
            Some(client)
        }
        Err(End::Close(code, _)) => {
            assert_eq!(code, 4503);
            None
        }
        Err(end) => panic!("{end}"),
    }
}

#[test]
fn above_the_connection_limit_upgrades_wait_and_rest_goes_on() {
    let server = Server::start_with(&[("CHAT_CONNECTIONS_MAX", "3"), ("CHAT_THREADS", "1")]);
    let mut clients: Vec<Client> = Vec::new();
    let refused = loop {
        let path = format!("/ws?token={}", user_token(&format!("u{}", clients.len())));
        match Client::dial(server.socket(), &path, &[]) {
            Ok(mut client) => {
                client.expect("connected");
                clients.push(client);
                assert!(clients.len() <= 3, "more than the limit");
            }
            Err(response) => break response,
        }
    };
    assert!(!clients.is_empty());
    assert_eq!(refused.status(), 503);
    let retry_after = refused.headers().get("retry-after").expect("Retry-After").to_str().expect("text");
    assert!(retry_after.parse::<u32>().is_ok(), "{retry_after}");
    assert_eq!(server.http().service("GET", "/healthz", None).status, 200);
    server.http().post("r", &json!({"content": "still served"}));
    drop(clients.pop());
    eventually("a slot is free again", || {
        Client::dial(server.socket(), &format!("/ws?token={}", user_token("late")), &[]).ok().map(drop)
    });
    clients[0].expect_none();
}

#[test]
fn too_many_messages_are_refused_and_a_flood_is_closed() {
    let env =
        [("CHAT_RATES", "on"), ("CHAT_RATE_PER_SECOND", "5"), ("CHAT_RATE_BURST", "10"), ("CHAT_RATE_FLOOD", "50")];
    let server = Server::start_with(&env);
    let mut watcher = Client::in_room(&server, "watcher", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    watcher.expect("user_joined");
    let mut refused = 0;
    let code = 'flood: loop {
        for number in 0..20 {
            if !ana.try_send(json!({"type": "ping", "ref": number})) {
                break;
            }
        }
        for _ in 0..20 {
            match ana.read() {
                Ok(answer) if answer["type"] == "error" => {
                    assert_eq!(answer["code"], "rate_limited");
                    assert!(answer["ref"].is_u64(), "{answer}");
                    refused += 1;
                }
                Ok(answer) => assert_eq!(answer["type"], "pong"),
                Err(End::Close(code, _)) => break 'flood code,
                Err(end) => panic!("{end}"),
            }
        }
        assert!(refused < 10_000, "never closed");
    };
    assert_eq!(code, 4029);
    assert!(refused >= 10, "refused first: {refused}");
    assert_eq!(watcher.expect("user_left")["userId"], "ana");
}

#[test]
fn a_refused_client_that_slows_down_is_served_again() {
    let env =
        [("CHAT_RATES", "on"), ("CHAT_RATE_PER_SECOND", "5"), ("CHAT_RATE_BURST", "5"), ("CHAT_RATE_FLOOD", "1000")];
    let server = Server::start_with(&env);
    let mut ana = Client::user(&server, "ana");
    let answers: Vec<Value> = (0..30).map(|_| ana.request(json!({"type": "ping"})).1).collect();
    assert_eq!(answers[0]["type"], "pong");
    assert!(answers.iter().any(|answer| answer["code"] == "rate_limited"));
    eventually("served again", || {
        thread::sleep(Duration::from_millis(300));
        (ana.request(json!({"type": "ping"})).1["type"] == "pong").then_some(())
    });
}

#[test]
fn bad_messages_cost_too() {
    let env =
        [("CHAT_RATES", "on"), ("CHAT_RATE_PER_SECOND", "1"), ("CHAT_RATE_BURST", "5"), ("CHAT_RATE_FLOOD", "20")];
    let server = Server::start_with(&env);
    let mut ana = Client::user(&server, "ana");
    let end = loop {
        if !ana.try_send(json!("not a message")) {
            break ana.expect_close().0;
        }
        match ana.read() {
            Ok(answer) => assert_eq!(answer["type"], "error"),
            Err(End::Close(code, _)) => break code,
            Err(end) => panic!("{end}"),
        }
    };
    assert_eq!(end, 4029);
}

#[test]
fn rates_off_means_no_limit() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for _ in 0..20 {
        let batch: Vec<Value> = (0..100).map(|number| json!({"type": "ping", "ref": number})).collect();
        ana.send_together(&batch);
        for number in 0..100 {
            assert_eq!(ana.expect("pong")["ref"], number);
        }
    }
}

#[test]
fn a_message_may_be_as_long_as_the_limit_and_no_longer() {
    let server = Server::start();
    let padded = |length: usize| {
        let empty = json!({"type": "ping", "pad": ""}).to_string().len();
        json!({"type": "ping", "pad": "x".repeat(length - empty)}).to_string()
    };
    let mut ana = Client::user(&server, "ana");
    ana.send_text(&padded(64 * 1024));
    ana.expect("pong");
    ana.send_text(&padded(64 * 1024 + 1));
    assert_eq!(ana.expect_close().0, 1009);

    let server = Server::start_with(&[("CHAT_MESSAGE_BYTES_MAX", "2048")]);
    let mut ana = Client::user(&server, "ana");
    ana.send_text(&padded(2048));
    ana.expect("pong");
    ana.send_message(Message::binary(padded(2049).into_bytes()));
    assert_eq!(ana.expect_close().0, 1009);
}

#[test]
fn heads_and_bodies_have_limits() {
    let env = [("CHAT_HEADER_BYTES_MAX", "2048"), ("CHAT_BODY_BYTES_MAX", "4096"), ("CHAT_MESSAGE_BYTES_MAX", "4096")];
    let server = Server::start_with(&env);
    let mut http = server.http();
    let long = "x".repeat(4096);
    http.send(&request("GET", "/healthz", &[("X-Long", &long)], None));
    assert_eq!(http.response().status, 431);
    let mut http = server.http();
    http.send(&request("GET", &format!("/{long}"), &[], None));
    let status = http.response().status;
    assert!(status == 414 || status == 431, "{status}");
    let body = json!({"content": "x".repeat(5000)});
    server.http().service("POST", "/api/chat/rooms/r/messages", Some(&body)).assert_error(413, "too_large");
    let body = json!({"content": "x".repeat(4000)});
    assert_eq!(server.http().service("POST", "/api/chat/rooms/r/messages", Some(&body)).status, 201);
}

#[test]
fn an_unfinished_request_has_a_deadline() {
    let server = Server::start_with(&[("CHAT_HANDSHAKE_MS", "500")]);
    let mut http = server.http();
    http.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n");
    assert_eq!(http.response().status, 408);
    assert!(http.closes());
    // A connection that never says anything is closed as well.
    let mut http = server.http();
    match http.try_response() {
        Some(response) => assert_eq!(response.status, 408),
        None => assert!(http.closes()),
    }
}

#[test]
fn an_idle_rest_connection_is_closed() {
    let server = Server::start_with(&[("CHAT_REST_IDLE_MS", "500")]);
    let mut http = server.http();
    assert_eq!(http.service("GET", "/healthz", None).status, 200);
    assert!(http.closes());
}
