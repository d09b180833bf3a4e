//! `ref`, `ack` and `error`, `ping`, `join_rooms`, and every way to say something wrong.

use serde_json::{Value, json};
use tungstenite::Message;

use crate::client::{Client, fence, now_ms, types};
use crate::server::Server;

#[test]
fn each_ref_is_answered_once_after_the_events_it_caused() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    for (message, events) in [
        (json!({"type": "join_room", "roomId": "r"}), &["user_joined", "online_update"][..]),
        (json!({"type": "join_room", "roomId": "r"}), &["user_joined", "online_update"]),
        (json!({"type": "typing_start", "roomId": "r"}), &[]),
        (json!({"type": "typing_stop", "roomId": "r"}), &[]),
        (json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x"}), &["reaction"]),
        (json!({"type": "leave_room", "roomId": "r"}), &[]),
        (json!({"type": "leave_room", "roomId": "r"}), &[]),
    ] {
        let (before, ack) = ana.request(message.clone());
        assert_eq!(types(&before), events, "{message}");
        assert_eq!(ack["type"], "ack", "{message}");
        assert_eq!(ack["roomId"], "r", "answers about a room carry its id: {ack}");
    }
    ana.expect_none();
}

#[test]
fn a_ref_is_a_short_string_or_an_integer() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let longest = "r".repeat(64);
    for reference in
        [json!("a"), json!(longest), json!(0), json!(-5), json!(9_007_199_254_740_991_u64), json!("\u{1f44b}\"\\")]
    {
        ana.send(json!({"type": "ping", "ref": reference}));
        let pong = ana.expect("pong");
        assert_eq!(pong["ref"], reference);
    }
    for bad in [json!("r".repeat(65)), json!(1.5), json!(true), json!([1]), json!({"a": 1})] {
        ana.send(json!({"type": "ping", "ref": bad}));
        let error = ana.expect("error");
        assert_eq!(error["code"], "invalid_message", "{bad}");
        assert!(error.get("ref").is_none(), "{error}");
    }
    // Null counts as absent.
    ana.send(json!({"type": "ping", "ref": null}));
    assert!(ana.expect("pong").get("ref").is_none());
    ana.send(json!({"type": "leave_room", "roomId": "r", "ref": null}));
    ana.expect_none();
}

#[test]
fn the_same_ref_twice_is_answered_twice() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send_together(&[json!({"type": "ping", "ref": "x"}), json!({"type": "ping", "ref": "x"})]);
    for _ in 0..2 {
        assert_eq!(ana.expect("pong")["ref"], "x");
    }
}

#[test]
fn ping_is_answered_by_pong_with_the_time() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send(json!({"type": "ping"}));
    let pong = ana.expect("pong");
    assert!(pong["timestamp"].as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000), "{pong}");
    // And a ping frame by a pong frame with its payload.
    ana.send_message(Message::Ping("payload".into()));
    assert_eq!(ana.next_message(), Message::Pong("payload".into()));
}

#[test]
fn connected_tells_more_than_the_seed() {
    let server = Server::start_with(&[("CHAT_HEARTBEAT_MS", "20000")]);
    let first = Client::user(&server, "ana").connected;
    let second = Client::user(&server, "ana").connected;
    assert!(first["connectionId"].as_str().is_some_and(|id| !id.is_empty()), "{first}");
    assert_ne!(first["connectionId"], second["connectionId"]);
    assert_eq!(first["heartbeatMs"], 20_000);
    assert!(first["serverTime"].as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000), "{first}");
    assert!(first["expiresAt"].as_u64().is_some_and(|at| at > now_ms()), "milliseconds: {first}");
}

#[test]
fn join_rooms_joins_all_with_one_ack() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "b");
    let mut ana = Client::user(&server, "ana");
    let (before, ack) =
        ana.request(json!({"type": "join_rooms", "rooms": [{"roomId": "a"}, {"roomId": "b"}, {"roomId": "c"}]}));
    assert_eq!(ack["type"], "ack", "{ack}");
    let rooms: Vec<&str> =
        ack["rooms"].as_array().expect("a list").iter().filter_map(|room| room["roomId"].as_str()).collect();
    assert_eq!(rooms, ["a", "b", "c"]);
    assert!(
        ack["rooms"].as_array().expect("a list").iter().all(|room| room.get("code").is_none_or(Value::is_null)),
        "{ack}"
    );
    for room in ["a", "b", "c"] {
        let of_room: Vec<Value> = before.iter().filter(|message| message["roomId"] == room).cloned().collect();
        assert_eq!(types(&of_room), ["user_joined", "online_update"], "{room}");
    }
    assert_eq!(ben.expect("user_joined")["userId"], "ana");
    for room in ["a", "b", "c"] {
        fence(room, &mut ana, []);
    }
}

#[test]
fn join_rooms_takes_a_hundred_and_no_more() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let rooms: Vec<Value> = (0..100).map(|number| json!({"roomId": format!("r{number}")})).collect();
    let (_, ack) = ana.request(json!({"type": "join_rooms", "rooms": rooms}));
    assert_eq!(ack["rooms"].as_array().map(Vec::len), Some(100));
    let rooms: Vec<Value> = (0..101).map(|number| json!({"roomId": format!("r{number}")})).collect();
    let (_, error) = ana.request(json!({"type": "join_rooms", "rooms": rooms}));
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("invalid_message")));
    for bad in [json!({"type": "join_rooms"}), json!({"type": "join_rooms", "rooms": "r"})] {
        assert_eq!(ana.request(bad.clone()).1["code"], "invalid_message", "{bad}");
    }
    let (_, ack) = ana.request(json!({"type": "join_rooms", "rooms": [1, {"roomId": ""}, {"roomId": "r0"}]}));
    let codes: Vec<&Value> = ack["rooms"].as_array().expect("a list").iter().map(|room| &room["code"]).collect();
    assert_eq!(codes, [&json!("invalid_message"), &json!("invalid_message"), &Value::Null]);
}

#[test]
fn join_rooms_over_the_limit_says_which() {
    let server = Server::start_with(&[("CHAT_ROOMS_PER_CONNECTION_MAX", "2")]);
    let mut ana = Client::user(&server, "ana");
    let (_, ack) =
        ana.request(json!({"type": "join_rooms", "rooms": [{"roomId": "a"}, {"roomId": "b"}, {"roomId": "c"}]}));
    let refused: Vec<&Value> =
        ack["rooms"].as_array().expect("a list").iter().filter(|room| room["code"] == "room_limit").collect();
    assert_eq!(refused.len(), 1, "{ack}");
}

#[test]
fn room_limit_holds_and_a_leave_makes_room() {
    let server = Server::start_with(&[("CHAT_ROOMS_PER_CONNECTION_MAX", "2")]);
    let mut ana = Client::user(&server, "ana");
    ana.join("a");
    ana.join("b");
    let (before, error) = ana.request(json!({"type": "join_room", "roomId": "c"}));
    assert_eq!((before, &error["code"], &error["roomId"]), (vec![], &json!("room_limit"), &json!("c")));
    ana.join("a");
    ana.send(json!({"type": "leave_room", "roomId": "a"}));
    ana.join("c");
}

#[test]
fn acting_on_a_room_not_joined_is_an_error() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::user(&server, "ana");
    for message in [
        json!({"type": "typing_start", "roomId": "r"}),
        json!({"type": "typing_stop", "roomId": "r"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x"}),
    ] {
        let (_, error) = ana.request(message.clone());
        assert_eq!(
            (&error["type"], &error["code"], &error["roomId"]),
            (&json!("error"), &json!("not_in_room"), &json!("r"))
        );
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        // Without a ref the error comes as well.
        ana.send(message);
        assert_eq!(ana.expect("error")["code"], "not_in_room");
    }
    assert_eq!(fence("r", &mut ben, []).0, Vec::<Value>::new());
}

#[test]
fn what_is_not_json_is_told() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    for text in [
        "",
        "{",
        "hello",
        "{\"type\":\"ping\"",
        "{\"type\":\"ping\"} x",
        "{'type':'ping'}",
        "{\"type\":\"ping\",}",
        "\u{feff}{}",
        "nul",
    ] {
        ana.send_text(text);
        let error = ana.expect("error");
        assert_eq!(error["code"], "invalid_json", "{text:?}: {error}");
    }
    ana.expect_none();
}

#[test]
fn what_is_json_and_no_message_is_told() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let long = "x".repeat(257);
    let rows = [
        json!([]),
        json!("ping"),
        json!(1),
        json!(null),
        json!({}),
        json!({"type": 1}),
        json!({"type": null}),
        json!({"type": "join_room"}),
        json!({"type": "join_room", "roomId": null}),
        json!({"type": "join_room", "roomId": 5}),
        json!({"type": "join_room", "roomId": ""}),
        json!({"type": "join_room", "roomId": "."}),
        json!({"type": "join_room", "roomId": ".."}),
        json!({"type": "join_room", "roomId": "a\nb"}),
        json!({"type": "join_room", "roomId": "a\u{0}b"}),
        json!({"type": "join_room", "roomId": "a\u{7f}b"}),
        json!({"type": "join_room", "roomId": long}),
        json!({"type": "leave_room"}),
        json!({"type": "typing_start"}),
        json!({"type": "reaction", "roomId": "r"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m"}),
        json!({"type": "reaction", "roomId": "r", "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "", "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m".repeat(129), "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": 1.5, "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": 9_007_199_254_740_993_u64, "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": true, "emoji": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": ""}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x".repeat(65)}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": 1}),
        json!({"type": "refresh_token"}),
    ];
    for row in rows {
        ana.send(row.clone());
        let error = ana.expect("error");
        assert_eq!(error["code"], "invalid_message", "{row}: {error}");
    }
    ana.expect_none();
}

#[test]
fn the_limits_of_ids_are_within_reach() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    for room in
        ["x".repeat(256), "…".to_owned(), "a/b?c#d%e".to_owned(), " ".to_owned(), "...".to_owned(), "é".repeat(128)]
    {
        ana.join(&room);
    }
    ana.join("r");
    for id in [json!("m".repeat(128)), json!(0), json!(-1), json!(9_007_199_254_740_991_u64)] {
        ana.send(json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "x".repeat(64)}));
        assert_eq!(ana.expect("reaction")["messageId"], id);
    }
}

#[test]
fn unknown_types_and_unknown_fields() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    for kind in ["unknown", "JOIN_ROOM", "new_message", "connected", "toString", "__proto__"] {
        let (_, error) = ana.request(json!({"type": kind, "roomId": "r"}));
        assert_eq!(error["code"], "unknown_type", "{kind:?}: {error}");
    }
    ana.send(json!({"type": "join_room", "roomId": "r", "future": {"deep": [1, 2, {"x": null}]}}));
    ana.expect("user_joined");
    ana.expect("online_update");
}

#[test]
fn keys_may_come_in_any_order_and_escaped() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send_text("  {\"roomId\" : \"r\\u0061\", \"\\u0074ype\" : \"join_\\u0072oom\"}\n");
    assert_eq!(ana.expect("user_joined")["roomId"], "ra");
    assert_eq!(ana.expect("online_update")["roomId"], "ra");
}

#[test]
fn an_unpaired_surrogate_is_refused_in_an_id() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send_text(r#"{"type":"join_room","roomId":"a\ud800b"}"#);
    let code = ana.expect("error")["code"].clone();
    assert!(code == "invalid_message" || code == "invalid_json", "{code}");
    ana.expect_none();
}

#[test]
fn a_binary_frame_of_json_counts_as_text() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    ana.send_message(Message::binary(br#"{"type":"join_room","roomId":"r"}"#.to_vec()));
    ana.expect("user_joined");
    ana.expect("online_update");
    ana.send_message(Message::binary(b"{nonsense".to_vec()));
    assert_eq!(ana.expect("error")["code"], "invalid_json");
}

#[test]
fn deep_nesting_is_refused_and_harmless() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let deep = format!("{{\"type\":\"ping\",\"x\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
    ana.send_text(&deep);
    let answer = ana.next();
    assert!(answer["type"] == "pong" || answer["type"] == "error", "{answer}");
    ana.expect_none();
}
