//! Ephemeral events, and what REST tells and does about users.

use serde_json::{Value, json};

use crate::client::{Client, now_s, token, unique};
use crate::server::{Server, eventually};

#[test]
fn a_room_event_reaches_the_members_and_is_not_numbered() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    let mut http = server.http();
    let answer =
        http.service("POST", "/api/chat/rooms/r/events", Some(&json!({"type": "task_moved", "task": {"id": 5}})));
    assert_eq!((answer.status, &answer.json()["delivered"]), (202, &json!({"users": 2, "connections": 2})));
    for client in [&mut ana, &mut ben] {
        let event = client.expect("task_moved");
        assert_eq!(event["task"], json!({"id": 5}));
        assert_eq!(event["roomId"], "r");
        assert!(event.get("seq").is_none(), "{event}");
    }
    assert_eq!(http.post("r", &json!({"content": "x"}))["seq"], 1, "an event takes no number");
}

#[test]
fn a_user_event_reaches_all_connections_of_the_user_only() {
    let server = Server::start();
    let mut tabs: Vec<Client> = (0..4).map(|_| Client::user(&server, "ana")).collect();
    let mut ben = Client::user(&server, "ben");
    let mut http = server.http();
    let answer = http.service("POST", "/api/chat/users/ana/events", Some(&json!({"type": "badge", "count": 3})));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["delivered"]["connections"], 4);
    for tab in &mut tabs {
        assert_eq!(tab.expect("badge")["count"], 3);
    }
    // The same way, so behind it.
    let mark = unique("mark");
    http.service("POST", "/api/chat/users/ben/events", Some(&json!({"type": "mark", "mark": mark})));
    assert_eq!(ben.expect("mark")["mark"], mark);
    let nobody = http.service("POST", "/api/chat/users/nobody/events", Some(&json!({"type": "badge"})));
    assert_eq!((nobody.status, &nobody.json()["delivered"]["connections"]), (202, &json!(0)));
}

#[test]
fn an_event_may_not_look_like_the_server_s() {
    let server = Server::start();
    let mut http = server.http();
    for path in ["/api/chat/rooms/r/events", "/api/chat/users/ana/events"] {
        for kind in [
            "connected",
            "new_message",
            "user_joined",
            "user_left",
            "typing_start",
            "typing_stop",
            "online_update",
            "reaction",
            "error",
            "ack",
            "pong",
            "shed",
            "draining",
            "presence_diff",
            "removed_from_room",
            "message_updated",
            "message_deleted",
            "reaction_removed",
            "read_receipt",
        ] {
            http.service("POST", path, Some(&json!({"type": kind}))).assert_error(422, "invalid_message");
        }
        for body in [json!({}), json!({"type": 1}), json!({"type": ""}), json!([])] {
            http.service("POST", path, Some(&body)).assert_error(422, "invalid_message");
        }
    }
}

#[test]
fn a_user_is_told_with_connections_and_rooms() {
    let server = Server::start();
    let mut http = server.http();
    let nobody = http.service("GET", "/api/chat/users/ana", None);
    assert_eq!(
        (nobody.status, nobody.json()["online"].clone(), nobody.json()["connections"].clone()),
        (200, json!(false), json!([]))
    );
    let mut first = Client::in_room(&server, "ana", "a");
    first.join("b");
    let second = Client::user(&server, "ana");
    let answer = http.service("GET", "/api/chat/users/ana", None).json();
    assert_eq!(answer["online"], true);
    let connections = answer["connections"].as_array().expect("a list");
    assert_eq!(connections.len(), 2);
    for (client, rooms) in [(&first, 2_usize), (&second, 0)] {
        let found =
            connections.iter().find(|connection| connection["connectionId"] == client.connected["connectionId"]);
        let connection = found.unwrap_or_else(|| panic!("{} in {answer}", client.connected));
        assert!(connection["connectedAt"].is_u64(), "{connection}");
        match &connection["rooms"] {
            Value::Array(names) => assert_eq!(names.len(), rooms, "{connection}"),
            count => assert_eq!(count, &json!(rooms), "{connection}"),
        }
    }
    drop(second);
    eventually("one connection remains", || {
        let answer = http.service("GET", "/api/chat/users/ana", None).json();
        (answer["connections"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
}

#[test]
fn a_kick_closes_all_connections_of_the_user() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut tabs: Vec<Client> = (0..4).map(|_| Client::in_room(&server, "ana", "r")).collect();
    ben.expect("user_joined");
    let answer = server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&json!({"reason": "goodbye"})));
    assert!((200..=204).contains(&answer.status), "{answer:?}");
    for tab in &mut tabs {
        assert_eq!(tab.expect_close().0, 4500);
    }
    assert_eq!(ben.expect("user_left")["userId"], "ana");
    // Nothing was revoked, so the user may come back.
    Client::in_room(&server, "ana", "r");
    assert_eq!(ben.expect("user_joined")["userId"], "ana");
}

#[test]
fn a_kick_may_name_one_connection() {
    let server = Server::start();
    let mut first = Client::user(&server, "ana");
    let mut second = Client::user(&server, "ana");
    let body = json!({"connectionId": first.connected["connectionId"]});
    let answer = server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&body));
    assert!((200..=204).contains(&answer.status), "{answer:?}");
    assert_eq!(first.expect_close().0, 4500);
    second.expect_none();
    second.join("r");
}

#[test]
fn a_kick_without_a_body_is_one_of_all() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let answer = server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&json!({})));
    assert!((200..=204).contains(&answer.status), "{answer:?}");
    assert_eq!(ana.expect_close().0, 4500);
    let nobody = server.http().service("POST", "/api/chat/users/nobody/disconnect", Some(&json!({})));
    assert!((200..=204).contains(&nobody.status) || nobody.status == 404, "{nobody:?}");
}

#[test]
fn tokens_issued_before_a_revocation_are_refused() {
    let server = Server::start();
    let issued =
        |seconds_ago: i64| token(&json!({"userId": "ana", "iat": now_s() as i64 - seconds_ago, "exp": now_s() + 600}));
    let old = issued(100);
    let mut ana = Client::connect(&server, &old);
    // Milliseconds, as every time here.
    let body = json!({"revokeBefore": (now_s() - 50) * 1000});
    let answer = server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&body));
    assert!((200..=204).contains(&answer.status), "{answer:?}");
    assert_eq!(ana.expect_close().0, 4500);
    let mut refused = Client::dial(server.socket(), &format!("/ws?token={old}"), &[]).expect("the upgrade is served");
    assert_eq!(refused.expect_close(), (1008, "Invalid token".to_owned()));
    let answer = server.http().bearer(&old, "GET", "/api/chat/rooms/r/online", None);
    assert_eq!(answer.status, 401, "{answer:?}");
    // A newer token of the same user, and older ones of others, are good.
    let mut ana = Client::connect(&server, &issued(10));
    ana.join("r");
    let (_, error) = ana.request(json!({"type": "refresh_token", "token": old}));
    assert_eq!(error["type"], "error", "{error}");
    Client::connect(&server, &token(&json!({"userId": "ben", "iat": now_s() - 100})));
}

#[test]
fn health_and_readiness_need_no_credential() {
    let server = Server::start();
    for path in ["/healthz", "/readyz"] {
        let response = server.http().call("GET", path, &[], None);
        assert_eq!(response.status, 200, "{path}");
    }
}
