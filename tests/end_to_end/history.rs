//! What is kept of a room: pages of it, messages sent over the WebSocket, and what is said where nothing is kept.

use serde_json::{Value, json};

use crate::client::{Client, fence, types, user_token};
use crate::http_client::messages_path;
use crate::server::Server;

const ID: &str = "0190a5b0-0000-7000-8000-00000000000f";

fn seqs(page: &Value) -> Vec<u64> {
    let messages = page["messages"].as_array().expect("a page has messages");
    messages.iter().map(|message| message["seq"].as_u64().expect("a message has a seq")).collect()
}

fn page(server: &Server, path: &str) -> Value {
    let response = server.http().service("GET", path, None);
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

#[test]
fn pages_ascend_and_meet() {
    let server = Server::start_durable();
    for n in 1..=5 {
        server.http().post("r", &json!({"content": n, "id": n}));
    }
    for (query, expected, more) in [
        ("", vec![1, 2, 3, 4, 5], false),
        ("?limit=2", vec![4, 5], true),
        ("?before=4&limit=2", vec![2, 3], true),
        ("?before=2", vec![1], false),
        ("?before=1", vec![], false),
        ("?after=0&limit=3", vec![1, 2, 3], true),
        ("?after=3&limit=3", vec![4, 5], false),
        ("?after=5", vec![], false),
        ("?limit=100000", vec![1, 2, 3, 4, 5], false),
    ] {
        let page = page(&server, &format!("/api/chat/rooms/r/messages{query}"));
        assert_eq!((seqs(&page), &page["more"]), (expected, &json!(more)), "{query}: {page}");
        assert_eq!((&page["firstSeq"], &page["lastSeq"]), (&json!(1), &json!(5)), "{query}");
    }
    let epoch = Client::user(&server, "ana").join("r")["epoch"].clone();
    let by_query = page(&server, "/api/chat/messages?roomId=r&limit=1");
    assert_eq!(by_query["epoch"], epoch);
    let message = &by_query["messages"][0];
    assert_eq!((&message["id"], &message["content"], &message["type"]), (&json!(5), &json!(5), &json!("new_message")));
    assert_eq!((&message["edited"], &message["deleted"]), (&json!(false), &json!(false)), "{message}");
    assert_eq!(message["reactionSummary"], json!([]));
}

#[test]
fn users_read_too_and_a_head_has_no_body() {
    let server = Server::start_durable();
    server.http().post("a%2Fb", &json!({"content": "x"}));
    let path = messages_path("a%2Fb");
    let mut http = server.http();
    let get = http.bearer(&user_token("ana"), "GET", &path, None);
    assert_eq!((get.status, seqs(&get.json())), (200, vec![1]));
    let head = http.service("HEAD", &path, None);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), get.header("content-length"));
    let unknown = page(&server, &messages_path("never-heard-of"));
    assert_eq!((seqs(&unknown), &unknown["firstSeq"], &unknown["lastSeq"]), (vec![], &json!(1), &json!(0)));
}

#[test]
fn a_message_sent_over_the_websocket_is_answered_with_its_place() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");
    let text = json!({"type": "send_message", "roomId": "r", "content": "hi", "id": ID, "reply_to": 7, "x": {"y": 1}});
    let (before, ack) = ana.request(text.clone());
    assert_eq!(types(&before), ["new_message"], "the event comes before the answer");
    assert_eq!(
        (&ack["type"], &ack["roomId"], &ack["id"], &ack["seq"]),
        (&json!("ack"), &json!("r"), &json!(ID), &json!(1))
    );
    assert_eq!(ack["timestamp"], before[0]["timestamp"]);
    let message = ben.expect("new_message");
    assert_eq!(message, before[0]);
    for (field, expected) in [
        ("content", json!("hi")),
        ("sender_user_id", json!("ana")),
        ("reply_to", json!(7)),
        ("x", json!({"y": 1})),
        ("messageType", json!("text")),
        ("edited", json!(false)),
        ("seq", json!(1)),
    ] {
        assert_eq!(message[field], expected, "{field} of {message}");
    }
    assert!(message.get("ref").is_none(), "{message}");

    // A retry here or over REST is the same message, and nobody hears it again.
    let (before, again) = ana.request(text);
    assert!(before.is_empty(), "{before:?}");
    assert_eq!((&again["seq"], &again["timestamp"]), (&ack["seq"], &ack["timestamp"]));
    let body = json!({"content": "hi", "id": ID, "reply_to": 7, "x": {"y": 1.0}});
    let posted = server.http().bearer(&user_token("ana"), "POST", &messages_path("r"), Some(&body));
    assert_eq!((posted.status, posted.header("idempotency-replayed")), (201, Some("true")), "{posted:?}");
    let (_, error) = ana.request(json!({"type": "send_message", "roomId": "r", "content": "other", "id": ID}));
    assert_eq!((&error["type"], &error["code"], &error["roomId"]), (&json!("error"), &json!("conflict"), &json!("r")));
    assert_eq!(fence("r", &mut ana, [&mut ben]), (vec![], [vec![]]));
}

#[test]
fn what_is_sent_waits_behind_the_join_and_is_answered_only_if_asked() {
    let server = Server::start_durable();
    let mut ana = Client::user(&server, "ana");
    ana.send_together(&[
        json!({"type": "join_room", "roomId": "r"}),
        json!({"type": "send_message", "roomId": "r", "content": "a"}),
        json!({"type": "send_message", "roomId": "r", "content": "b", "ref": 1}),
        json!({"type": "send_message", "roomId": "r", "content": 7}),
        json!({"type": "send_message", "roomId": "elsewhere", "content": "c"}),
        json!({"type": "delete_message", "roomId": "r", "messageId": "nothing"}),
    ]);
    let (mut codes, mut rest) = (Vec::new(), Vec::new());
    while codes.len() < 3 || rest.len() < 5 {
        let message = ana.next();
        match &message["code"] {
            Value::String(code) => codes.push(code.clone()),
            _ => rest.push(message["type"].as_str().expect("a type").to_owned()),
        }
    }
    codes.sort();
    assert_eq!(codes, ["invalid_message", "not_found", "not_in_room"]);
    assert_eq!(rest, ["user_joined", "online_update", "new_message", "new_message", "ack"]);
    ana.expect_none();
}

#[test]
fn who_comes_back_gets_what_was_missed() {
    let server = Server::start_durable();
    let first = Client::user(&server, "ana").join("r");
    for n in 1..=3 {
        server.http().post("r", &json!({"content": n}));
    }
    let mut ana = Client::user(&server, "ana");
    ana.send(json!({"type": "join_room", "roomId": "r", "since": 1, "epoch": first["epoch"]}));
    let online = ana.wait_for("online_update");
    assert_eq!((&online["recovered"], &online["seq"]), (&json!(true), &json!(3)), "{online}");
    assert_eq!([ana.expect("new_message")["seq"].clone(), ana.expect("new_message")["seq"].clone()], [2, 3]);
    ana.send(
        json!({"type": "join_rooms", "rooms": [{"roomId": "r", "since": 2}, {"roomId": "s", "since": "x"}], "ref": 1}),
    );
    let (before, ack) = ana.until(|message| message["type"] == "ack");
    assert_eq!(types(&before), ["user_joined", "online_update"]);
    assert_eq!(before[1]["recovered"], false, "without the epoch nobody knows what 2 means");
    assert_eq!(ack["rooms"], json!([{"roomId": "r"}, {"roomId": "s", "code": "invalid_message"}]));
    ana.expect_none();
}

#[test]
fn without_a_store_the_place_of_a_room_is_known() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    server.http().post("r", &json!({"content": "x"}));
    let mut ben = Client::user(&server, "ben");
    let online = ben.join("r");
    let expected = json!({"messages": [], "epoch": online["epoch"], "firstSeq": 2, "lastSeq": 1, "more": false});
    assert_eq!(page(&server, &messages_path("r")), expected);
    ana.wait_for("user_joined");
    let (before, ack) = ana.request(json!({"type": "send_message", "roomId": "r", "content": "hi"}));
    assert_eq!((types(&before), &ack["seq"]), (vec!["new_message"], &json!(2)));
}

#[test]
fn what_needs_a_store_says_so() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mark = json!({"seq": 1});
    for (method, path, body) in [
        ("GET", "/api/chat/rooms/r/read/ana", None),
        ("PUT", "/api/chat/rooms/r/read/ana", Some(&mark)),
        ("GET", "/api/chat/users/ana/rooms", None),
        ("POST", "/api/chat/users/ana/erase", None),
        ("GET", "/api/chat/events", None),
    ] {
        let response = server.http().service(method, path, body);
        response.assert_error(503, "unavailable");
        assert!(response.json()["error"].as_str().is_some_and(|text| text.contains("store")), "{path}: {response:?}");
        assert!(response.header("retry-after").is_some(), "{path}");
    }
    let edit = json!({"content": "y"});
    let message = "/api/chat/rooms/r/messages/7";
    let reaction = "/api/chat/rooms/r/messages/7/reactions/x";
    for (method, path, body) in [("PATCH", message, Some(&edit)), ("DELETE", message, None), ("DELETE", reaction, None)]
    {
        server.http().bearer(&user_token("ana"), method, path, body).assert_error(503, "unavailable");
    }
    for request in [
        json!({"type": "edit_message", "roomId": "r", "messageId": 7, "content": "y"}),
        json!({"type": "delete_message", "roomId": "r", "messageId": 7}),
        json!({"type": "mark_read", "roomId": "r", "seq": 1}),
        json!({"type": "reaction", "roomId": "r", "messageId": 7, "emoji": "x", "action": "remove"}),
    ] {
        let (before, error) = ana.request(request);
        assert_eq!((before.len(), &error["code"]), (0, &json!("unavailable")), "{error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains("store")), "{error}");
    }
    // A service is believed: what it says of messages is passed on.
    let by_service = format!("{reaction}?userId=ben");
    for (method, path, body, event) in [
        ("PATCH", message, Some(&edit), "message_updated"),
        ("DELETE", message, None, "message_deleted"),
        ("PUT", &*by_service, None, "reaction"),
        ("DELETE", &*by_service, None, "reaction_removed"),
    ] {
        let response = server.http().service(method, path, body);
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(ana.expect(event)["seq"], response.json()["seq"]);
    }
}
