//! Status codes of REST, and the order in which they are checked.

use serde_json::{Value, json};

use crate::client::{forged, now_s, token, user_token};
use crate::http_client::request;
use crate::server::{API_KEY, Server};

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum By {
    Nobody,
    WrongKey,
    WrongToken,
    User,
    Moderator,
    Service,
}

fn credentials(by: By) -> Vec<(&'static str, String)> {
    match by {
        By::Nobody => vec![],
        By::WrongKey => vec![("X-API-Key", "not-the-key-of-the-tests".to_owned())],
        By::WrongToken => vec![("Authorization", "Bearer nonsense".to_owned())],
        By::User => vec![("Authorization", format!("Bearer {}", user_token("ana")))],
        By::Moderator => {
            let claims = json!({"userId": "mod", "chatRole": "moderator", "exp": now_s() + 3600});
            vec![("Authorization", format!("Bearer {}", token(&claims)))]
        }
        By::Service => vec![("X-API-Key", API_KEY.to_owned())],
    }
}

const MESSAGES: &str = "/api/chat/rooms/r/messages";
const MESSAGE: &str = "/api/chat/rooms/r/messages/7";
const REACTION: &str = "/api/chat/rooms/r/messages/7/reactions/%F0%9F%91%8D";
const READ: &str = "/api/chat/rooms/r/read/ana";
const BROADCAST: &str = "/api/chat/broadcast";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

#[test]
fn statuses_are_checked_in_order() {
    let server = Server::start_with(&[("CHAT_BODY_BYTES_MAX", "2048"), ("CHAT_MESSAGE_BYTES_MAX", "2048")]);
    server.http().post("r", &json!({"id": "taken", "content": "x"}));
    let large = format!("[{}", " ".repeat(3000));
    let good = r#"{"content":"x"}"#;
    let rows: Vec<(&str, &str, By, &str, &str, u16, &str)> = vec![
        // 404 before everything else.
        ("GET", "/nowhere", By::Nobody, JSON, "", 404, "not_found"),
        ("PUT", "/api/chat/nowhere", By::WrongKey, TEXT, &large, 404, "not_found"),
        ("POST", "/api/chat/rooms/r/nothing", By::Nobody, JSON, good, 404, "not_found"),
        ("POST", "/api/chat/rooms//messages/", By::Nobody, JSON, good, 404, "not_found"),
        ("PATCH", "/api/chat/rooms/r/messages/", By::Nobody, JSON, good, 404, "not_found"),
        ("PUT", "/api/chat/rooms/r/messages/7/reactions", By::Nobody, JSON, "", 404, "not_found"),
        ("GET", "/api/chat/rooms/r/read", By::Nobody, JSON, "", 404, "not_found"),
        ("DELETE", "/api/chat/rooms/", By::Service, JSON, "", 404, "not_found"),
        // 405 before 401.
        ("DELETE", MESSAGES, By::Nobody, JSON, "", 405, ""),
        ("POST", MESSAGE, By::Nobody, JSON, good, 405, ""),
        ("GET", MESSAGE, By::Nobody, JSON, "", 405, ""),
        ("PATCH", REACTION, By::Nobody, JSON, good, 405, ""),
        ("DELETE", READ, By::Nobody, JSON, "", 405, ""),
        ("GET", "/api/chat/rooms/r", By::WrongKey, JSON, "", 405, ""),
        ("POST", "/api/chat/users/ana/rooms", By::Nobody, JSON, good, 405, ""),
        ("GET", "/api/chat/users/ana/erase", By::Nobody, JSON, "", 405, ""),
        ("POST", "/api/chat/events", By::Nobody, JSON, good, 405, ""),
        ("PUT", MESSAGES, By::Nobody, TEXT, &large, 405, ""),
        ("GET", BROADCAST, By::Nobody, JSON, "", 405, ""),
        ("DELETE", "/api/chat/rooms/r/online", By::WrongToken, JSON, "", 405, ""),
        ("POST", "/healthz", By::Nobody, JSON, good, 405, ""),
        // 401 before 403 and 413.
        ("POST", MESSAGES, By::Nobody, TEXT, &large, 401, ""),
        ("POST", MESSAGES, By::WrongKey, JSON, good, 401, ""),
        ("POST", MESSAGES, By::WrongToken, JSON, good, 401, ""),
        ("POST", BROADCAST, By::WrongToken, TEXT, &large, 401, ""),
        ("GET", "/api/chat/rooms", By::Nobody, JSON, "", 401, ""),
        ("GET", "/api/chat/users/ana", By::Nobody, JSON, "", 401, ""),
        ("PATCH", MESSAGE, By::Nobody, TEXT, &large, 401, ""),
        ("DELETE", "/api/chat/rooms/r", By::WrongToken, JSON, "", 401, ""),
        ("GET", "/api/chat/events", By::WrongKey, JSON, "", 401, ""),
        // 403 before 413.
        ("PATCH", "/api/chat/rooms/r/messages/7?userId=ben", By::User, TEXT, &large, 403, "forbidden"),
        ("PUT", "/api/chat/rooms/r/messages/7/reactions/x?userId=ben", By::User, JSON, "", 403, "forbidden"),
        ("DELETE", "/api/chat/rooms/r/messages/7/reactions/x?userId=ben", By::Moderator, JSON, "", 403, "forbidden"),
        ("PUT", "/api/chat/rooms/r/read/ben", By::User, TEXT, &large, 403, "forbidden"),
        ("GET", READ, By::Moderator, JSON, "", 403, "forbidden"),
        ("GET", "/api/chat/users/ana/rooms", By::User, JSON, "", 403, "forbidden"),
        ("POST", "/api/chat/users/ana/erase", By::User, JSON, "", 403, "forbidden"),
        ("DELETE", "/api/chat/rooms/r", By::Moderator, JSON, "", 403, "forbidden"),
        ("GET", "/api/chat/events", By::User, JSON, "", 403, "forbidden"),
        ("POST", BROADCAST, By::User, TEXT, &large, 403, "forbidden"),
        ("GET", "/api/chat/rooms", By::User, JSON, "", 403, "forbidden"),
        ("GET", "/api/chat/users/ana", By::User, JSON, "", 403, "forbidden"),
        ("POST", "/api/chat/users/ana/disconnect", By::User, JSON, "{}", 403, "forbidden"),
        ("POST", "/api/chat/users/ana/events", By::User, JSON, "{}", 403, "forbidden"),
        ("POST", "/api/chat/rooms/r/events", By::User, JSON, "{}", 403, "forbidden"),
        // 413 before 415.
        ("POST", MESSAGES, By::Service, TEXT, &large, 413, "too_large"),
        ("POST", MESSAGES, By::User, TEXT, &large, 413, "too_large"),
        ("PATCH", MESSAGE, By::User, TEXT, &large, 413, "too_large"),
        ("PUT", READ, By::User, TEXT, &large, 413, "too_large"),
        // 415 before 400.
        ("PATCH", MESSAGE, By::User, TEXT, "{broken", 415, ""),
        ("PUT", READ, By::User, TEXT, "{broken", 415, ""),
        ("POST", MESSAGES, By::Service, TEXT, "{broken", 415, ""),
        ("POST", MESSAGES, By::Service, "application/x-www-form-urlencoded", good, 415, ""),
        ("POST", MESSAGES, By::Service, "application/jsonx", good, 415, ""),
        // 400 before 422.
        ("POST", MESSAGES, By::Service, JSON, "{broken", 400, "invalid_json"),
        ("POST", MESSAGES, By::Service, JSON, "", 400, "invalid_json"),
        ("POST", MESSAGES, By::Service, JSON, "{\"content\":1}{}", 400, "invalid_json"),
        ("PATCH", MESSAGE, By::User, JSON, "{broken", 400, "invalid_json"),
        ("PUT", READ, By::User, JSON, "{broken", 400, "invalid_json"),
        // 422 before 409 and 503.
        ("GET", "/api/chat/rooms/r/messages?before=x", By::User, JSON, "", 422, "invalid_message"),
        ("GET", "/api/chat/rooms/r/messages?before=9&after=1", By::Service, JSON, "", 422, "invalid_message"),
        ("GET", "/api/chat/rooms/r/messages?limit=0", By::Service, JSON, "", 422, "invalid_message"),
        ("GET", "/api/chat/messages", By::Service, JSON, "", 422, "invalid_message"),
        ("GET", "/api/chat/rooms/%0a/messages", By::Service, JSON, "", 422, "invalid_message"),
        ("PATCH", MESSAGE, By::User, JSON, "{}", 422, "invalid_message"),
        ("PATCH", MESSAGE, By::User, JSON, r#"{"content":7}"#, 422, "invalid_message"),
        ("PATCH", "/api/chat/rooms/r/messages/7?userId=", By::Service, JSON, good, 422, "invalid_message"),
        ("PUT", REACTION, By::Service, JSON, "", 422, "invalid_message"),
        ("DELETE", REACTION, By::Service, JSON, "", 422, "invalid_message"),
        ("PUT", READ, By::User, JSON, r#"{"seq":0}"#, 422, "invalid_message"),
        ("GET", "/api/chat/events?limit=x", By::Service, JSON, "", 422, "invalid_message"),
        ("GET", "/api/chat/events?wait=61", By::Service, JSON, "", 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, "[]", 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, "\"text\"", 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":1.5,"content":"x"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":"","content":"x"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":true,"content":"x"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":"a\ud800","content":"x"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":"taken","content":"y","content":"z"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"timestamp":"yesterday","content":"x"}"#, 422, "invalid_message"),
        ("POST", MESSAGES, By::Service, JSON, r#"{"roomId":"s","content":"x"}"#, 422, "invalid_message"),
        ("POST", BROADCAST, By::Service, JSON, r#"{"rooms":"r","message":{}}"#, 422, "invalid_message"),
        ("POST", BROADCAST, By::Service, JSON, r#"{"rooms":["r"]}"#, 422, "invalid_message"),
        // 409, and what is good.
        ("POST", MESSAGES, By::Service, JSON, r#"{"id":"taken","content":"y"}"#, 409, "conflict"),
        ("POST", MESSAGES, By::Service, "application/json; charset=utf-8", good, 201, ""),
        ("POST", MESSAGES, By::Service, "Application/JSON", good, 201, ""),
        ("POST", MESSAGES, By::User, JSON, good, 201, ""),
    ];
    for (method, path, by, content_type, body, status, code) in rows {
        let credentials = credentials(by);
        let mut headers: Vec<(&str, &str)> = credentials.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.push(("Content-Type", content_type));
        let mut http = server.http();
        http.send(&request(method, path, &headers, (method != "GET").then_some(body)));
        let response = http.response();
        let what = format!("{method} {path} by {by:?} {content_type} {}", body.get(..40).unwrap_or(body));
        assert_eq!(response.status, status, "{what}: {}", String::from_utf8_lossy(&response.body));
        if status >= 400 {
            let error = response.json();
            assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {error}");
            assert!(error["code"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {error}");
            assert!(code.is_empty() || error["code"] == code, "{what}: {error}");
        }
        if status == 405 {
            let allow = response.header("allow").unwrap_or_else(|| panic!("{what}: no Allow"));
            assert!(!allow.to_ascii_uppercase().contains(method), "{what}: {allow}");
        }
    }
}

#[test]
fn no_content_type_is_json() {
    let server = Server::start();
    let mut http = server.http();
    let body = r#"{"content":"x"}"#;
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    http.send(head.as_bytes());
    assert_eq!(http.response().status, 201);
}

#[test]
fn allow_names_what_is() {
    let server = Server::start();
    for (method, path, allowed) in [
        ("PUT", MESSAGES, &["POST"][..]),
        ("POST", "/api/chat/rooms/r/online", &["GET"]),
        ("PATCH", BROADCAST, &["POST"]),
        ("DELETE", "/healthz", &["GET"]),
    ] {
        let response = server.http().call(method, path, &[], Some(&json!({})));
        assert_eq!(response.status, 405, "{method} {path}");
        for name in allowed {
            assert!(response.lists("allow", name), "{method} {path}: {:?}", response.header("allow"));
        }
    }
}

#[test]
fn tokens_count_in_rest_as_on_the_websocket() {
    let server = Server::start();
    let claims = json!({"userId": "ana", "chatRole": "service", "exp": now_s() + 60});
    let with = |token: &str| server.http().bearer(token, "GET", "/api/chat/rooms", None).status;
    assert_eq!(with(&token(&claims)), 200);
    for (claims, status) in [
        (json!({"userId": "ana", "chatRole": "service", "exp": 1}), 401),
        (json!({"userId": "ana", "chatRole": "service", "nbf": now_s() + 60}), 401),
        // A claim `role` means nothing, and no other role is a service.
        (json!({"userId": "ana", "role": "service"}), 403),
        (json!({"userId": "ana", "chatRole": "moderator"}), 403),
        (json!({"userId": "ana", "chatRole": "Service"}), 403),
    ] {
        assert_eq!(with(&token(&claims)), status, "{claims}");
    }
    assert_eq!(with(&forged(&json!({"alg": "none"}), &claims, "")), 401);
}

#[test]
fn a_room_s_name_has_rules_in_the_path_too() {
    let server = Server::start();
    let mut http = server.http();
    let long = "x".repeat(257);
    for room in ["%2E", "..", "%2e%2e", "a%0Ab", long.as_str()] {
        let response =
            http.service("POST", &format!("/api/chat/rooms/{room}/messages"), Some(&json!({"content": "x"})));
        assert!([400, 404, 422].contains(&response.status), "{room}: {response:?}");
        assert!(response.json()["code"].is_string());
    }
    let longest = "x".repeat(256);
    assert_eq!(
        http.service("POST", &format!("/api/chat/rooms/{longest}/messages"), Some(&json!({"content": "x"}))).status,
        201
    );
    let unicode = http.service("POST", "/api/chat/rooms/caf%C3%A9/messages", Some(&json!({"content": "x"})));
    assert_eq!(unicode.status, 201, "{unicode:?}");
}

#[test]
fn without_a_key_configured_only_tokens_count() {
    let server = Server::start_with(&[("CHAT_API_KEY", "")]);
    let mut http = server.http();
    for key in ["", API_KEY] {
        let response = http.call("POST", MESSAGES, &[("X-API-Key", key)], Some(&json!({"content": "x"})));
        assert_eq!(response.status, 401, "{key:?}");
    }
    let answer: Value =
        http.bearer(&crate::client::service_token(), "POST", MESSAGES, Some(&json!({"content": "x"}))).json();
    assert_eq!(answer["seq"], 1);
}
