//! The seed contract, row by row: what existing frontends and the ERP rely on.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::Message;

use crate::client::{Client, RawClient, fence, now_ms, token, types, unique, user_token};
use crate::server::{Server, eventually};

/// What a field of the seed's messages holds.
#[derive(Clone, Copy)]
enum Field {
    Text,
    Millis,
    List,
}

/// Type and fields besides `type`, as in the seed's table.
const SERVER_SENDS: [(&str, &[(&str, Field)]); 7] = [
    ("connected", &[("userId", Field::Text), ("timestamp", Field::Millis)]),
    ("user_joined", &[("roomId", Field::Text), ("userId", Field::Text), ("timestamp", Field::Millis)]),
    ("user_left", &[("roomId", Field::Text), ("userId", Field::Text), ("timestamp", Field::Millis)]),
    ("typing_start", &[("roomId", Field::Text), ("userId", Field::Text), ("timestamp", Field::Millis)]),
    ("typing_stop", &[("roomId", Field::Text), ("userId", Field::Text), ("timestamp", Field::Millis)]),
    ("online_update", &[("roomId", Field::Text), ("online", Field::List), ("timestamp", Field::Millis)]),
    (
        "reaction",
        &[
            ("roomId", Field::Text),
            ("messageId", Field::Text),
            ("emoji", Field::Text),
            ("userId", Field::Text),
            ("timestamp", Field::Millis),
        ],
    ),
];

#[track_caller]
fn assert_seed_shape(message: &Value) {
    let kind = message["type"].as_str().expect("a type");
    let (_, fields) = SERVER_SENDS.iter().find(|(name, _)| *name == kind).expect("a type of the seed");
    for (name, field) in *fields {
        let value = &message[name];
        let fits = match field {
            Field::Text => value.is_string(),
            Field::Millis => value.as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000),
            Field::List => value.is_array(),
        };
        assert!(fits, "{name} of {message}");
    }
}

/// Sorted, because the order of the online list means nothing.
fn online(update: &Value) -> Vec<String> {
    let list = update["online"].as_array().expect("a list");
    let mut users: Vec<String> = list.iter().map(|user| user.as_str().expect("a string").to_owned()).collect();
    users.sort();
    users
}

#[test]
fn connected_is_the_first_message() {
    let server = Server::start();
    let client = Client::user(&server, "ana");
    assert_seed_shape(&client.connected);
    assert_eq!(client.connected["userId"], "ana");
}

#[test]
fn join_tells_everybody_and_answers_the_joiner_with_the_list() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send(json!({"type": "join_room", "roomId": "room-123"}));
    let joined = ana.expect("user_joined");
    assert_seed_shape(&joined);
    assert_eq!((&joined["roomId"], &joined["userId"]), (&json!("room-123"), &json!("ana")));
    let update = ana.expect("online_update");
    assert_seed_shape(&update);
    assert_eq!(update["roomId"], "room-123");
    assert_eq!(online(&update), ["ana"]);

    let mut ben = Client::user(&server, "ben");
    let update = ben.join("room-123");
    assert_eq!(online(&update), ["ana", "ben"]);
    assert_eq!(ana.expect("user_joined")["userId"], "ben");
    // The list goes to the joiner only.
    assert_eq!(fence("room-123", &mut ben, [&mut ana]), (vec![], [vec![]]));
}

#[test]
fn leave_tells_those_who_remain_and_not_the_leaver() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    ben.send(json!({"type": "leave_room", "roomId": "r"}));
    let left = ana.expect("user_left");
    assert_seed_shape(&left);
    assert_eq!((&left["roomId"], &left["userId"]), (&json!("r"), &json!("ben")));
    // Coming back is the leaver's next message: the leave itself and what happened meanwhile were not sent to it.
    fence("r", &mut ana, []);
    ben.join("r");
}

#[test]
fn typing_goes_to_everybody_but_the_sender() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    for kind in ["typing_start", "typing_stop"] {
        ana.send(json!({"type": kind, "roomId": "r"}));
        let typing = ben.expect(kind);
        assert_seed_shape(&typing);
        assert_eq!((&typing["roomId"], &typing["userId"]), (&json!("r"), &json!("ana")));
    }
    assert_eq!(fence("r", &mut ben, [&mut ana]), (vec![], [vec![]]));
}

#[test]
fn typing_goes_to_no_connection_of_the_sender_s_user() {
    let server = Server::start();
    let mut first = Client::in_room(&server, "ana", "r");
    // Several, so that they sit on several shards.
    let mut others: Vec<Client> = (0..6).map(|_| Client::in_room(&server, "ana", "r")).collect();
    let mut ben = Client::in_room(&server, "ben", "r");
    first.send(json!({"type": "typing_start", "roomId": "r"}));
    first.send(json!({"type": "typing_stop", "roomId": "r"}));
    ben.expect("typing_start");
    ben.expect("typing_stop");
    let mark = unique("m");
    ben.send(json!({"type": "reaction", "roomId": "r", "messageId": mark, "emoji": "x"}));
    for tab in others.iter_mut().chain([&mut first]) {
        let (before, _) = tab.until(|message| message["messageId"] == json!(mark));
        assert_eq!(types(&before), ["user_joined"], "only ben's arrival");
    }
}

#[test]
fn reaction_goes_to_everybody_and_the_sender() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    ana.send(json!({"type": "reaction", "roomId": "r", "messageId": "m-1", "emoji": "👍"}));
    for client in [&mut ana, &mut ben] {
        let reaction = client.expect("reaction");
        assert_seed_shape(&reaction);
        assert_eq!(reaction["roomId"], "r");
        assert_eq!(reaction["messageId"], "m-1");
        assert_eq!(reaction["emoji"], "👍");
        assert_eq!(reaction["userId"], "ana");
    }
}

#[test]
fn a_reaction_of_a_seed_client_is_broadcast_each_time() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for _ in 0..3 {
        ana.send(json!({"type": "reaction", "roomId": "r", "messageId": 12, "emoji": "x"}));
        assert_eq!(ana.expect("reaction")["messageId"], 12, "a number stays a number");
    }
}

#[test]
fn a_posted_message_goes_out_as_posted() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    let posted = json!({
        "id": "m-1", "content": "hello \u{1f44b}", "attachments": [{"name": "a.pdf", "size": 1}], "reactions": [],
        "reply_to": null, "edited": false, "timestamp": 1_700_000_000_123_u64, "sender_user_id": "u-9", "messageType": "text"
    });
    let answer = server.http().post("r", &posted);
    assert_eq!(answer["id"], "m-1");
    assert_eq!(answer["timestamp"], 1_700_000_000_123_u64);
    for client in [&mut ana, &mut ben] {
        let message = client.expect("new_message");
        assert_eq!(message["roomId"], "r");
        for (name, value) in posted.as_object().expect("an object") {
            assert_eq!(&message[name], value, "{name}");
        }
    }
}

#[test]
fn no_token_upgrades_and_then_closes() {
    let server = Server::start();
    for path in ["/ws", "/ws?token=", "/ws?other=1"] {
        let mut client = Client::dial(server.socket(), path, &[]).expect("the upgrade is served");
        assert_eq!(client.expect_close(), (1008, "No authentication token".to_owned()), "{path}");
    }
}

#[test]
fn a_bad_token_upgrades_and_then_closes() {
    let server = Server::start();
    for path in ["/ws?token=garbage", "/ws?token=a.b.c", "/ws?token=..", "/ws?token=%F0%9F%91%8B"] {
        let mut client = Client::dial(server.socket(), path, &[]).expect("the upgrade is served");
        assert_eq!(client.expect_close(), (1008, "Invalid token".to_owned()), "{path}");
    }
}

#[test]
fn an_unknown_type_or_broken_json_keeps_the_connection() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    ana.send(json!({"type": "dance", "roomId": "r"}));
    assert_eq!(ana.expect("error")["code"], "unknown_type");
    ana.send_text("{not json");
    assert_eq!(ana.expect("error")["code"], "invalid_json");
    fence("r", &mut ana, []);
}

#[test]
fn a_connection_that_ends_leaves_all_its_rooms() {
    let server = Server::start();
    let rooms = ["a", "b", "c", "d", "e"];
    let mut ana = Client::user(&server, "ana");
    let mut ben = Client::user(&server, "ben");
    for room in rooms {
        ana.join(room);
        ben.join(room);
        ana.expect("user_joined");
    }
    drop(ben);
    let mut left: Vec<String> =
        rooms.iter().map(|_| ana.expect("user_left")["roomId"].as_str().unwrap_or("").to_owned()).collect();
    left.sort();
    assert_eq!(left, rooms);
}

#[test]
fn a_room_that_was_left_sends_nothing_more() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    let (before, ack) = ben.request(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!((before, &ack["type"]), (vec![], &json!("ack")));
    server.http().post("r", &json!({"content": "unheard"}));
    ana.expect("user_left");
    ana.expect("new_message");
    ben.join("r");
}

#[test]
fn rooms_are_kept_apart() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "one");
    let mut ben = Client::in_room(&server, "ben", "two");
    fence("one", &mut ana, []);
    assert_eq!(fence("two", &mut ben, []).0, Vec::<Value>::new());
    ben.join("one");
    assert_eq!(ana.expect("user_joined")["userId"], "ben");
}

#[test]
fn pings_each_interval_and_terminates_the_silent() {
    let server = Server::start_with(&[("CHAT_HEARTBEAT_MS", "1000")]);
    let mut watcher = Client::in_room(&server, "watcher", "r");
    assert!(matches!(watcher.next_message(), Message::Ping(_)), "an idle connection is pinged");
    // Reads, but answers no ping. The watcher answers meanwhile, as it reads, and is still there afterwards.
    let mut silent = RawClient::connect(&server, "silent");
    thread::scope(|scope| {
        let gone = scope.spawn(move || {
            assert!(
                std::iter::from_fn(|| silent.frame()).any(|(opcode, _)| opcode == 9),
                "pinged before it is given up"
            );
            silent.drain();
        });
        while !gone.is_finished() {
            fence("r", &mut watcher, []);
            thread::sleep(Duration::from_millis(50));
        }
    });
    fence("r", &mut watcher, []);
}

#[test]
fn a_silent_member_leaves_its_rooms_when_terminated() {
    let server = Server::start_with(&[("CHAT_HEARTBEAT_MS", "1000")]);
    let mut watcher = Client::in_room(&server, "watcher", "r");
    let mut silent = RawClient::connect(&server, "silent");
    silent.write(&crate::client::masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
    assert_eq!(watcher.expect("user_joined")["userId"], "silent");
    assert_eq!(watcher.expect("user_left")["userId"], "silent");
}

#[test]
fn any_origin_is_accepted_unless_restricted() {
    let server = Server::start();
    for origin in ["https://app.example", "http://localhost:5173", "null"] {
        let path = format!("/ws?token={}", user_token("ana"));
        let mut client = Client::dial(server.socket(), &path, &[("Origin", origin)]).expect("any origin");
        client.expect("connected");
    }
    let server = Server::start_with(&[("CHAT_ORIGINS", "https://app.example")]);
    let path = format!("/ws?token={}", user_token("ana"));
    let mut client =
        Client::dial(server.socket(), &path, &[("Origin", "https://app.example")]).expect("the origin configured");
    client.expect("connected");
    let refused = Client::dial(server.socket(), &path, &[("Origin", "https://evil.example")]);
    assert_eq!(refused.err().map(|response| response.status().as_u16()), Some(403));
    // A client that is no browser sends none.
    Client::connect(&server, &user_token("ana"));
}

#[test]
fn the_identity_is_user_id_else_sub() {
    let server = Server::start();
    for (claims, user) in [
        (json!({"userId": "u", "sub": "s"}), json!("u")),
        (json!({"sub": "s"}), json!("s")),
        (json!({"userId": 7}), json!(7)),
        (json!({"sub": 8}), json!(8)),
    ] {
        let client = Client::connect(&server, &token(&claims));
        assert_eq!(client.connected["userId"], user, "{claims}");
    }
}

#[test]
fn a_closing_handshake_is_answered() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut raw = RawClient::connect(&server, "raw");
    raw.write(&crate::client::masked_frame(0x88, &1000_u16.to_be_bytes()));
    assert_eq!(raw.close_code(), 1000);
    raw.drain();
    let ben = Client::in_room(&server, "ben", "r");
    ana.expect("user_joined");
    ben.close();
    assert_eq!(ana.expect("user_left")["userId"], "ben");
    // The slot is free at once, whoever closed.
    eventually("ben is gone", || {
        let user = server.http().service("GET", "/api/chat/users/ben", None);
        (user.json()["online"] == false).then_some(())
    });
}
