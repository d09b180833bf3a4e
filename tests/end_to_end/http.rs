//! HTTP/1.1 on the wire, beyond what one row of `http_table` can say: long pipelines, late bodies, and CORS.

use serde_json::json;

use crate::client::{Client, RawClient, upgrade_request, user_token};
use crate::http_client::request;
use crate::server::{API_KEY, Server};

const MESSAGES: &str = "/api/chat/rooms/r/messages";
const KEY: [(&str, &str); 1] = [("X-API-Key", API_KEY)];

#[test]
fn thirty_two_pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    let mut bytes = Vec::new();
    for number in 0..32 {
        // Rooms of several shards and answers of several kinds, so that answers are ready out of order.
        match number % 4 {
            0 => {
                bytes.extend(request("POST", MESSAGES, &KEY, Some(&json!({"id": number, "content": "x"}).to_string())))
            }
            1 => bytes.extend(request("GET", "/healthz", &[], None)),
            2 => bytes.extend(request("GET", "/api/chat/rooms", &KEY, None)),
            _ => bytes.extend(request(
                "POST",
                &format!("/api/chat/rooms/r{number}/messages"),
                &KEY,
                Some(&json!({"id": number}).to_string()),
            )),
        }
    }
    http.send(&bytes);
    for number in 0..32 {
        let response = http.response();
        match number % 4 {
            1 => assert_eq!(response.status, 200),
            2 => assert!(response.json()["rooms"].is_array()),
            _ => assert_eq!((response.status, &response.json()["id"]), (201, &json!(number))),
        }
    }
    for number in (0..32).step_by(4) {
        assert_eq!(ana.expect("new_message")["id"], number);
    }
}

#[test]
fn more_than_thirty_two_wait_and_are_answered_too() {
    let server = Server::start();
    let mut http = server.http();
    let one = request("POST", MESSAGES, &KEY, Some(r#"{"content":"x"}"#));
    http.send(&one.repeat(200));
    for number in 1..=200 {
        assert_eq!(http.response().json()["seq"], number);
    }
}

#[test]
fn requests_may_be_split_anywhere() {
    let server = Server::start();
    let one = request("POST", MESSAGES, &KEY, Some(r#"{"content":"x"}"#));
    let mut http = server.http();
    for at in (1..one.len()).step_by(7) {
        http.send(&one[..at]);
        http.send(&one[at..]);
        assert_eq!(http.response().status, 201, "split at {at}");
    }
}

#[test]
fn an_error_of_the_chat_keeps_the_connection() {
    let server = Server::start();
    let mut http = server.http();
    assert_eq!(http.service("POST", MESSAGES, Some(&json!([]))).status, 422);
    assert_eq!(http.service("GET", "/nowhere", None).status, 404);
    assert_eq!(http.call("POST", MESSAGES, &[], Some(&json!({"content": "x"}))).status, 401);
    assert_eq!(http.service("POST", MESSAGES, Some(&json!({"content": "x"}))).status, 201);
}

#[test]
fn a_chunked_body_is_put_together() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    let head =
        format!("POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nTransfer-Encoding: chunked\r\n\r\n");
    http.send(head.as_bytes());
    http.send(b"5\r\n{\"con\r\nA;ext=\"1\"\r\ntent\": \"a \r\n");
    http.send(b"00B\r\nlong story\"\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n");
    assert_eq!(http.response().status, 201);
    assert_eq!(ana.expect("new_message")["content"], "a long story");
    // The connection is in step afterwards.
    assert_eq!(http.call("GET", "/healthz", &[], None).status, 200);
    // The limit counts what chunks add up to.
    let mut http = server.http();
    http.send(head.as_bytes());
    for _ in 0..10 {
        let chunk = [b"8000\r\n".as_slice(), &[b' '; 0x8000], b"\r\n"].concat();
        if http.try_send(&chunk).is_err() {
            break;
        }
    }
    if let Some(response) = http.try_response() {
        assert_eq!(response.status, 413);
    }
}

#[test]
fn expect_100_continue() {
    let server = Server::start();
    let mut http = server.http();
    let body = r#"{"content":"x"}"#;
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    http.send(head.as_bytes());
    assert_eq!(http.response().status, 100);
    http.send(body.as_bytes());
    assert_eq!(http.response().status, 201);
    // Together with the body, the interim answer may be left out.
    http.send(format!("{head}{body}").as_bytes());
    let mut response = http.response();
    if response.status == 100 {
        response = http.response();
    }
    assert_eq!(response.status, 201);
    // What will be refused anyway is refused instead of asked for.
    let mut http = server.http();
    http.send(format!("POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nExpect: 100-continue\r\nContent-Length: 999999999\r\n\r\n").as_bytes());
    assert_eq!(http.response().status, 413);
}

#[test]
fn answers_are_dated_json() {
    let server = Server::start();
    let response = server.http().service("POST", MESSAGES, Some(&json!({"content": "x"})));
    assert!(response.header("content-type").is_some_and(|value| value.starts_with("application/json")), "{response:?}");
}

#[test]
fn a_preflight_lets_a_page_of_another_origin_post() {
    let server = Server::start();
    let origin = "https://app.example";
    let headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, content-type, idempotency-key, x-api-key"),
    ];
    let mut http = server.http();
    let preflight = http.call("OPTIONS", MESSAGES, &headers, None);
    assert!((200..=204).contains(&preflight.status), "{preflight:?}");
    let allowed = preflight.header("access-control-allow-origin");
    assert!(allowed == Some("*") || allowed == Some(origin), "{preflight:?}");
    assert!(preflight.lists("access-control-allow-methods", "POST"), "{preflight:?}");
    for name in ["authorization", "content-type", "idempotency-key", "x-api-key"] {
        assert!(preflight.lists("access-control-allow-headers", name), "{name}: {preflight:?}");
    }
    assert_ne!(preflight.header("access-control-allow-credentials"), Some("true"), "no credential is ambient");
    // Good and bad answers alike can be read by the page.
    for (key, status) in [(API_KEY, 201), ("wrong", 401)] {
        let response =
            http.call("POST", MESSAGES, &[("Origin", origin), ("X-API-Key", key)], Some(&json!({"content": "x"})));
        assert_eq!(response.status, status);
        let allowed = response.header("access-control-allow-origin");
        assert!(allowed == Some("*") || allowed == Some(origin), "{response:?}");
    }
}

#[test]
fn restricted_origins_hold_for_rest_and_upgrades() {
    let server = Server::start_with(&[("CHAT_ORIGINS", "https://app.example,https://*.other.example")]);
    let mut http = server.http();
    for (origin, allowed) in [
        ("https://app.example", true),
        ("https://a.b.other.example", true),
        ("https://other.example", false),
        ("https://evilother.example", false),
        ("https://evil.example", false),
        ("null", false),
    ] {
        let path = format!("/ws?token={}", user_token("ana"));
        let upgrade = Client::dial(server.socket(), &path, &[("Origin", origin)]);
        assert_eq!(upgrade.err().map(|response| response.status().as_u16()), (!allowed).then_some(403), "{origin}");
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ];
        let preflight = http.call("OPTIONS", MESSAGES, &headers, None);
        assert_eq!(
            preflight.header("access-control-allow-origin"),
            allowed.then_some(origin),
            "{origin}: {preflight:?}"
        );
        assert!(preflight.lists("vary", "origin"), "{preflight:?}");
        let response = http.call("GET", "/healthz", &[("Origin", origin)], None);
        assert_eq!(response.header("access-control-allow-origin"), allowed.then_some(origin));
        assert!(response.lists("vary", "origin"), "{response:?}");
    }
    // An answer to no page must not be kept for one either.
    assert!(http.call("GET", "/healthz", &[], None).lists("vary", "origin"));
    // Two are not none.
    let path = format!("/ws?token={}", user_token("ana"));
    let twice = upgrade_request(&path, &[("Origin", "https://evil.example"), ("Origin", "https://app.example")]);
    assert!(RawClient::sending(server.socket(), &twice).1.starts_with("HTTP/1.1 403 "));
    // A caller that is no browser sends no origin.
    assert_eq!(http.service("POST", MESSAGES, Some(&json!({"content": "x"}))).status, 201);
}
