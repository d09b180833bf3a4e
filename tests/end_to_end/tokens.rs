//! Tokens: where they are looked for, what verifies, and what happens when they end.

use std::thread;
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::client::{Client, forged, now_ms, now_s, signed, token, user_token};
use crate::server::{SECRET, Server, eventually};

/// How an upgrade with a token ends.
#[derive(Debug, PartialEq)]
enum Outcome {
    Connected(Value),
    Closed(u16, String),
}

fn outcome(server: &Server, path: &str, headers: &[(&str, &str)]) -> Outcome {
    let mut client = Client::dial(server.socket(), path, headers).expect("the upgrade is served");
    match client.read() {
        Ok(message) => {
            assert_eq!(message["type"], "connected");
            Outcome::Connected(message["userId"].clone())
        }
        Err(crate::client::End::Close(code, reason)) => Outcome::Closed(code, reason),
        Err(end) => panic!("{end}"),
    }
}

fn with_query(server: &Server, token: &str) -> Outcome {
    outcome(server, &format!("/ws?token={token}"), &[])
}

fn invalid() -> Outcome {
    Outcome::Closed(1008, "Invalid token".to_owned())
}

fn missing() -> Outcome {
    Outcome::Closed(1008, "No authentication token".to_owned())
}

#[test]
fn the_algorithms() {
    let server = Server::start();
    let claims = json!({"userId": "ana", "exp": now_s() + 60});
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(
            with_query(&server, &signed(algorithm, SECRET, &claims)),
            Outcome::Connected(json!("ana")),
            "{algorithm:?}"
        );
        assert_eq!(with_query(&server, &signed(algorithm, "another-secret-of-at-least-32-bytes!", &claims)), invalid());
    }
    let good = token(&claims);
    let signature = good.rsplit('.').next().expect("three parts");
    for (header, signature) in [
        (json!({"alg": "none", "typ": "JWT"}), ""),
        (json!({"alg": "none", "typ": "JWT"}), signature),
        (json!({"alg": "None"}), ""),
        (json!({"alg": "RS256", "typ": "JWT"}), signature),
        (json!({"alg": "ES256", "typ": "JWT"}), signature),
        (json!({"alg": "HS512", "typ": "JWT"}), signature),
        (json!({"alg": "unheard-of"}), signature),
        (json!({"typ": "JWT"}), signature),
        (json!({"alg": "HS256", "typ": "JWT"}), ""),
        (json!([]), signature),
    ] {
        assert_eq!(with_query(&server, &forged(&header, &claims, signature)), invalid(), "{header}");
    }
}

#[test]
fn a_token_that_was_changed_does_not_verify() {
    let server = Server::start();
    let good = user_token("ana");
    let other = user_token("ben");
    let parts: Vec<&str> = good.split('.').collect();
    let foreign: Vec<&str> = other.split('.').collect();
    for token in [
        format!("{}.{}.{}", parts[0], foreign[1], parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], foreign[2]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}.x"),
        format!("{good}x"),
        format!("{}.{}.", parts[0], parts[1]),
    ] {
        assert_eq!(with_query(&server, &token), invalid(), "{token}");
    }
}

#[test]
fn the_times_and_the_identity() {
    let server = Server::start();
    let now = now_s();
    let ana = Outcome::Connected(json!("ana"));
    for (claims, expected) in [
        (json!({"userId": "ana"}), &ana),
        (json!({"userId": "ana", "exp": now + 60}), &ana),
        (json!({"userId": "ana", "exp": now as f64 + 60.5}), &ana),
        (json!({"userId": "ana", "nbf": now - 60}), &ana),
        (json!({"userId": "ana", "nbf": now as f64 - 1.5}), &ana),
        (json!({"userId": "ana", "iat": now + 600}), &ana),
        (json!({"userId": "ana", "aud": "anyone", "iss": "anyone"}), &ana),
        (json!({"userId": "ana", "aud": ["a", "b"], "iss": "anyone"}), &ana),
        (json!({"userId": "ana", "role": "service", "extra": {"deep": []}}), &ana),
        // No leeway.
        (json!({"userId": "ana", "exp": now - 1}), &invalid()),
        (json!({"userId": "ana", "exp": now as f64 - 0.5}), &invalid()),
        (json!({"userId": "ana", "exp": 0}), &invalid()),
        (json!({"userId": "ana", "nbf": now + 60}), &invalid()),
        (json!({"userId": "ana", "nbf": now as f64 + 30.5}), &invalid()),
        (json!({"userId": "ana", "exp": "tomorrow"}), &invalid()),
        (json!({"userId": "ana", "exp": (now + 60).to_string()}), &invalid()),
        (json!({"userId": "ana", "nbf": "yesterday"}), &invalid()),
        (json!({"exp": now + 60}), &invalid()),
        (json!({"userId": "", "exp": now + 60}), &invalid()),
        (json!({"userId": 1.5, "exp": now + 60}), &invalid()),
        (json!({"userId": true, "exp": now + 60}), &invalid()),
        (json!({"userId": ["ana"], "exp": now + 60}), &invalid()),
        (json!({"userId": "a".repeat(129), "exp": now + 60}), &invalid()),
    ] {
        assert_eq!(&with_query(&server, &token(&claims)), expected, "{claims}");
    }
}

#[test]
fn the_places_and_which_decides() {
    let server = Server::start();
    let (ana, ben) = (user_token("ana"), user_token("ben"));
    let is = |user: &str| Outcome::Connected(json!(user));
    let query = format!("/ws?token={ana}");
    let bearer = format!("Bearer {ben}");
    let lower = format!("bearer {ben}");
    let protocol = format!("sizland.v1, bearer.{ben}");
    for (path, headers, expected) in [
        (query.as_str(), vec![], is("ana")),
        ("/ws", vec![("Authorization", bearer.as_str())], is("ben")),
        ("/ws", vec![("Authorization", lower.as_str())], is("ben")),
        ("/ws?token=", vec![("Authorization", bearer.as_str())], is("ben")),
        ("/ws", vec![("Sec-WebSocket-Protocol", protocol.as_str())], is("ben")),
        // The first place that has one decides, good or bad.
        (query.as_str(), vec![("Authorization", bearer.as_str())], is("ana")),
        (query.as_str(), vec![("Authorization", "Bearer nonsense")], is("ana")),
        ("/ws?token=nonsense", vec![("Authorization", bearer.as_str())], invalid()),
        ("/ws", vec![("Authorization", "Bearer nonsense"), ("Sec-WebSocket-Protocol", protocol.as_str())], invalid()),
        // Another scheme is no token.
        ("/ws", vec![("Authorization", "Basic YTpi")], missing()),
        ("/ws", vec![("Sec-WebSocket-Protocol", "sizland.v1, bearer.nonsense")], invalid()),
    ] {
        assert_eq!(outcome(&server, path, &headers), expected, "{path} {headers:?}");
    }
}

#[test]
fn the_answer_selects_the_subprotocol_only_when_offered() {
    let server = Server::start();
    let protocol = format!("sizland.v1, bearer.{}", user_token("ana"));
    let selected = |client: &Client| {
        client.upgrade.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap_or("").to_owned())
    };
    let client = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", &protocol)]).expect("served");
    assert_eq!(selected(&client).as_deref(), Some("sizland.v1"));
    let client = Client::user(&server, "ana");
    assert_eq!(selected(&client), None);
}

#[test]
fn the_first_message_may_authenticate() {
    let server = Server::start();
    let alone = [("Sec-WebSocket-Protocol", "sizland.v1")];
    let mut client = Client::dial(server.socket(), "/ws", &alone).expect("served");
    client.send(json!({"type": "auth", "token": user_token("ana")}));
    assert_eq!(client.expect("connected")["userId"], "ana");
    client.join("r");

    let mut client = Client::dial(server.socket(), "/ws", &alone).expect("served");
    client.send(json!({"type": "auth", "token": "nonsense"}));
    assert_eq!(client.expect_close(), (1008, "Invalid token".to_owned()));

    for first in
        [json!({"type": "join_room", "roomId": "r"}), json!({"type": "auth"}), json!({"type": "auth", "token": ""})]
    {
        let mut client = Client::dial(server.socket(), "/ws", &alone).expect("served");
        client.send(first.clone());
        let (before, close) = client.messages_until_close();
        assert_eq!(close, (1008, "No authentication token".to_owned()), "{first}");
        assert!(before.is_empty(), "{before:?}");
    }
}

#[test]
fn auth_and_what_follows_may_come_in_one_write() {
    let server = Server::start();
    let mut client = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]).expect("served");
    client.send_together(&[
        json!({"type": "auth", "token": user_token("ana")}),
        json!({"type": "join_room", "roomId": "r"}),
    ]);
    client.expect("connected");
    client.expect("user_joined");
    client.expect("online_update");
}

#[test]
fn the_first_message_has_a_deadline() {
    let server = Server::start_with(&[("CHAT_AUTH_MS", "500")]);
    let begun = Instant::now();
    let mut client = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]).expect("served");
    assert_eq!(client.expect_close(), (1008, "No authentication token".to_owned()));
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
}

#[test]
fn a_second_auth_is_no_way_to_change_the_user() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let (_, answer) = ana.request(json!({"type": "auth", "token": user_token("ben")}));
    assert_eq!(answer["type"], "error", "{answer}");
    ana.send(json!({"type": "join_room", "roomId": "r"}));
    assert_eq!(ana.expect("user_joined")["userId"], "ana");
}

#[test]
fn a_connection_closes_when_its_token_expires() {
    let server = Server::start();
    let exp = now_ms() as f64 / 1000.0 + 1.5;
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::connect(&server, &token(&json!({"userId": "ana", "exp": exp})));
    let expires_at = ana.connected["expiresAt"].as_f64().expect("a time");
    assert!((expires_at - exp * 1000.0).abs() <= 1_000.0, "{expires_at} for {exp}");
    ana.join("r");
    assert_eq!(ana.expect_close().0, 4001);
    assert!(now_ms() as f64 >= exp * 1000.0 - 1.0, "not before");
    ben.expect("user_joined");
    assert_eq!(ben.expect("user_left")["userId"], "ana");
}

#[test]
fn expiry_can_be_left_unenforced() {
    let server = Server::start_with(&[("CHAT_ENFORCE_EXPIRY", "off")]);
    let exp = now_s() + 2;
    let mut ana = Client::connect(&server, &token(&json!({"userId": "ana", "exp": exp})));
    // The clock has to pass the expiry and a tick; meanwhile and afterwards the connection answers.
    while now_ms() < exp * 1000 + 1_000 {
        ana.expect_none();
        thread::sleep(Duration::from_millis(100));
    }
    ana.expect_none();
    // It still does not open the door.
    assert_eq!(with_query(&server, &token(&json!({"userId": "ana", "exp": exp}))), invalid());
}

#[test]
fn a_refreshed_token_lives_on() {
    let server = Server::start();
    let exp = now_s() + 2;
    let mut ana = Client::connect(&server, &token(&json!({"userId": "ana", "exp": exp})));
    ana.join("r");
    let later = now_s() + 600;
    let (before, ack) =
        ana.request(json!({"type": "refresh_token", "token": token(&json!({"userId": "ana", "exp": later}))}));
    assert_eq!((before, &ack["type"]), (vec![], &json!("ack")));
    assert_eq!(ack["expiresAt"], later * 1000);
    while now_ms() < exp * 1000 + 1_000 {
        ana.expect_none();
        thread::sleep(Duration::from_millis(100));
    }
    ana.send(json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x"}));
    ana.expect("reaction");
    // And it can be shortened again.
    let soon = now_s() + 1;
    let (_, ack) =
        ana.request(json!({"type": "refresh_token", "token": token(&json!({"userId": "ana", "exp": soon}))}));
    assert_eq!(ack["type"], "ack");
    assert_eq!(ana.expect_close().0, 4001);
}

#[test]
fn a_refresh_is_for_the_same_user_and_must_verify() {
    let server = Server::start();
    let mut ana = Client::connect(&server, &token(&json!({"userId": 7})));
    for bad in [user_token("ben"), "nonsense".to_owned(), token(&json!({"userId": 7, "exp": 1}))] {
        let (_, error) = ana.request(json!({"type": "refresh_token", "token": bad}));
        assert_eq!(error["type"], "error", "{error}");
        assert!(error["code"] == "forbidden" || error["code"] == "invalid_message", "{error}");
    }
    // The string 7 names the same user.
    let (_, ack) =
        ana.request(json!({"type": "refresh_token", "token": token(&json!({"userId": "7", "exp": now_s() + 60}))}));
    assert_eq!(ack["type"], "ack", "{ack}");
}

#[test]
fn tokens_are_masked_in_the_log() {
    let server = Server::start();
    let token = user_token("ana");
    drop(Client::connect(&server, &token));
    with_query(&server, "a-bad-token-that-must-not-be-logged");
    let log = server.log();
    assert!(!log.contains(&token) && !log.contains("a-bad-token-that-must-not-be-logged"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

#[test]
fn no_token_reaches_the_log() {
    let server = Server::start_with(&[("CHAT_LOG", "trace")]);
    let good = user_token("ana");
    let bad = good[..good.len() - 4].to_owned();
    Client::connect(&server, &good).close();
    let mut refused = Client::dial(server.socket(), &format!("/ws?token={bad}"), &[]).expect("served");
    assert_eq!(refused.expect_close().0, 1008);
    let log = eventually("the refusal is logged", || Some(server.log()).filter(|log| log.contains("token=***")));
    for part in good.split('.').chain([&*bad]) {
        assert!(!log.contains(part), "{part} in {log}");
    }
}
