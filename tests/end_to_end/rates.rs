//! Rates of users by class: over all their connections, over reconnects, over threads, and for REST.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, service_token, token, user_token};
use crate::http_client::messages_path;
use crate::server::Server;

/// Each class gives three at once and one a second; what a connection may send in all is not in the way.
fn server(more: &[(&str, &str)]) -> Server {
    let mut env = vec![("CHAT_RATES", "on"), ("CHAT_RATE_BURST", "100000"), ("CHAT_RATE_PER_SECOND", "1000")];
    for class in ["JOIN", "TYPING", "REACTION", "MESSAGE", "REST"] {
        // Leaked, since there are five of them in a process that ends with its tests.
        env.push((format!("CHAT_RATE_{class}_PER_SECOND").leak(), "1"));
        env.push((format!("CHAT_RATE_{class}_BURST").leak(), "3"));
    }
    env.extend(more);
    Server::start_with(&env)
}

fn message(number: u64) -> Value {
    json!({"type": "send_message", "roomId": "r", "content": number.to_string()})
}

fn requests() -> [(&'static str, Value); 6] {
    [
        ("join", json!({"type": "join_room", "roomId": "r"})),
        ("typing", json!({"type": "typing_start", "roomId": "r"})),
        ("reaction", json!({"type": "reaction", "roomId": "r", "messageId": 1, "emoji": "x", "action": "add"})),
        ("reaction", json!({"type": "mark_read", "roomId": "r", "seq": 1})),
        ("message", message(1)),
        ("message", json!({"type": "delete_message", "roomId": "r", "messageId": "none"})),
    ]
}

fn is_limited(answer: &Value) -> bool {
    answer["code"] == "rate_limited"
}

#[test]
fn each_class_is_limited_by_itself_and_says_when_to_come_again() {
    let server = server(&[]);
    for (number, (class, request)) in requests().into_iter().enumerate() {
        let mut client = Client::user(&server, &format!("user-{number}"));
        client.request(json!({"type": "join_room", "roomId": "r"}));
        let left = if class == "join" { 2 } else { 3 };
        for _ in 0..left {
            assert!(!is_limited(&client.request(request.clone()).1), "{class}");
        }
        let refused = client.request(request.clone()).1;
        assert!(is_limited(&refused), "{class}: {refused}");
        let retry_ms = refused["retryAfterMs"].as_u64().expect("a time");
        assert!((1..=1_000).contains(&retry_ms), "{refused}");
        let other = if class == "typing" { message(2) } else { json!({"type": "typing_stop", "roomId": "r"}) };
        assert!(!is_limited(&client.request(other).1), "{class}: another class is not concerned");
        assert_eq!(client.request(json!({"type": "ping"})).1["type"], "pong");
        // A timer may be early.
        std::thread::sleep(Duration::from_millis(retry_ms - 1));
        assert!(!is_limited(&client.request(request).1), "{class}: served when it was told to come again");
    }
}

#[test]
fn joining_many_rooms_at_once_counts_each() {
    let server = server(&[]);
    let mut client = Client::user(&server, "ana");
    let rooms = |count: usize| {
        let rooms: Vec<Value> = (0..count).map(|room| json!({"roomId": format!("r{room}")})).collect();
        json!({"type": "join_rooms", "rooms": rooms})
    };
    // More than the burst is served when nothing is owed.
    assert!(!is_limited(&client.request(rooms(5)).1));
    let refused = client.request(rooms(1)).1;
    assert!(is_limited(&refused) && refused["retryAfterMs"].as_u64().expect("a time") > 2_000, "{refused}");
}

#[test]
fn a_service_is_never_limited() {
    let server = server(&[("CHAT_STORE", "memory")]);
    let both = token(&json!({"userId": "erp", "chatRole": "service"}));
    let mut client = Client::connect(&server, &both);
    client.request(json!({"type": "join_room", "roomId": "r"}));
    let mut http = server.http();
    for number in 0..20 {
        assert_eq!(client.request(message(number)).1["type"], "ack");
        let body = json!({"content": "x"});
        assert_eq!(http.bearer(&service_token(), "POST", &messages_path("r"), Some(&body)).status, 201);
        assert_eq!(http.service("POST", &messages_path("r"), Some(&body)).status, 201);
    }
}

#[test]
fn a_limit_holds_over_reconnects_to_any_thread() {
    let server = server(&[("CHAT_RATE_MESSAGE_BURST", "30")]);
    let mut taken = 0;
    let begun = Instant::now();
    for _ in 0..12 {
        let mut client = Client::user(&server, "ana");
        client.request(json!({"type": "join_room", "roomId": "r"}));
        taken += (0..10).filter(|&number| client.request(message(number)).1["code"] != "rate_limited").count();
        client.close();
    }
    let earned = begun.elapsed().as_secs() as usize + 1;
    // Not joined in some of the later ones, since joins are limited as well; a message that is refused for that was taken.
    assert!((30..=30 + earned).contains(&taken), "{taken} messages, {earned} earned");
}

#[test]
fn a_flood_is_not_forgotten_by_coming_again() {
    let env =
        [("CHAT_RATES", "on"), ("CHAT_RATE_PER_SECOND", "1"), ("CHAT_RATE_BURST", "5"), ("CHAT_RATE_FLOOD", "20")];
    let server = Server::start_with(&env);
    let flood = |client: &mut Client| {
        let mut pongs = 0;
        loop {
            if !client.try_send(json!({"type": "ping", "ref": 1})) {
                return (pongs, client.expect_close().0);
            }
            match client.read() {
                Ok(answer) => pongs += u32::from(answer["type"] == "pong"),
                Err(crate::client::End::Close(code, _)) => return (pongs, code),
                Err(end) => panic!("{end}"),
            }
        }
    };
    let mut other = Client::user(&server, "ana");
    assert_eq!(flood(&mut Client::user(&server, "ana")), (5, 4029));
    for _ in 0..3 {
        assert_eq!(flood(&mut Client::user(&server, "ana")), (0, 4029));
    }
    // The tab that did nothing wrong has its own bucket.
    assert_eq!(other.request(json!({"type": "ping"})).1["type"], "pong");
}

#[test]
fn connections_of_a_user_and_its_calls_share_what_there_is() {
    let server = server(&[("CHAT_THREADS", "1"), ("CHAT_RATE_JOIN_BURST", "100"), ("CHAT_RATE_REST_BURST", "100")]);
    let mut tabs: Vec<Client> = (0..3).map(|_| Client::user(&server, "ana")).collect();
    for tab in &mut tabs {
        tab.request(json!({"type": "join_room", "roomId": "r"}));
        assert!(!is_limited(&tab.request(message(1)).1));
    }
    assert!(tabs.iter_mut().all(|tab| is_limited(&tab.request(message(2)).1)));
    let response =
        server.http().bearer(&user_token("ana"), "POST", &messages_path("r"), Some(&json!({"content": "x"})));
    response.assert_error(429, "rate_limited");
    assert_eq!(response.header("retry-after"), Some("1"));
}

#[test]
fn calls_are_limited_by_user_and_not_by_connection() {
    let server = server(&[("CHAT_THREADS", "1"), ("CHAT_RATE_REST_BURST", "5")]);
    let online = "/api/chat/rooms/r/online";
    // A proxy's connection carries many users' calls.
    let mut http = server.http();
    for user in 0..20 {
        assert_eq!(http.bearer(&user_token(&format!("user-{user}")), "GET", online, None).status, 200);
    }
    let statuses: Vec<u16> =
        (0..7).map(|_| server.http().bearer(&user_token("ana"), "GET", online, None).status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
}

#[test]
fn several_threads_grant_together_what_is_documented() {
    let env = [
        ("CHAT_RATES", "on"),
        ("CHAT_RATE_MESSAGE_PER_SECOND", "10"),
        ("CHAT_RATE_MESSAGE_BURST", "10"),
        ("CHAT_RATE_PER_SECOND", "1000"),
        ("CHAT_RATE_BURST", "100000"),
    ];
    let server = Server::start_with(&env);
    let mut tabs: Vec<Client> = (0..12).map(|_| Client::user(&server, "ana")).collect();
    for tab in &mut tabs {
        tab.request(json!({"type": "join_room", "roomId": "r"}));
    }
    let (begun, mut taken) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(6) {
        for tab in &mut tabs {
            taken += usize::from(!is_limited(&tab.request(message(1)).1));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let most = 4 * 10 + 2 * 10 * (begun.elapsed().as_secs() as usize + 1);
    assert!((60..=most).contains(&taken), "{taken} of at most {most}");
}
