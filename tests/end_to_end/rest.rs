//! Messages over REST: what a post answers and sends, retries, lists and broadcasts.

use serde_json::{Value, json};

use crate::client::{Client, RawClient, fence, masked_frame, now_ms, service_token, types, user_token};
use crate::http_client::{messages_path, request};
use crate::server::{API_KEY, Server};

const POST: &str = "/api/chat/rooms/r/messages";

#[test]
fn a_post_answers_what_was_made_for_it() {
    let server = Server::start();
    let mut tabs = [
        Client::in_room(&server, "ana", "r"),
        Client::in_room(&server, "ana", "r"),
        Client::in_room(&server, "ben", "r"),
    ];
    let answer = server.http().post("r", &json!({"content": "hello"}));
    assert!(answer["id"].as_str().is_some_and(|id| !id.is_empty()), "{answer}");
    assert!(answer["timestamp"].as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000), "{answer}");
    assert_eq!(answer["seq"], 1);
    assert_eq!(answer["delivered"], json!({"users": 2, "connections": 3}));
    for tab in &mut tabs {
        let message = tab.wait_for("new_message");
        assert_eq!(message["id"], answer["id"]);
        assert_eq!(message["timestamp"], answer["timestamp"]);
        assert_eq!(message["seq"], 1);
        // From a service, what was left out stays out.
        for absent in ["attachments", "reactions", "reply_to", "edited", "messageType", "sender_user_id"] {
            assert!(message.get(absent).is_none(), "{absent} in {message}");
        }
    }
    let second = server.http().post("r", &json!({"content": "again"}));
    assert_eq!(second["seq"], 2);
    assert_ne!(second["id"], answer["id"]);
}

#[test]
fn a_room_without_members_takes_messages() {
    let server = Server::start();
    let answer = server.http().post("nobody", &json!({"content": "hello"}));
    assert_eq!((&answer["seq"], &answer["delivered"]), (&json!(1), &json!({"users": 0, "connections": 0})));
    let mut ana = Client::user(&server, "ana");
    let update = ana.join("nobody");
    assert_eq!(update["seq"], 1, "the last one: {update}");
    assert!(update["epoch"].is_string(), "{update}");
}

#[test]
fn added_fields_are_kept_and_the_body_may_name_the_room() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    server.http().post("r", &json!({"roomId": "r", "content": null, "project": {"id": 5, "tags": ["a"]}, "timestamp": "2024-05-01T10:00:00.5Z"}));
    let message = ana.expect("new_message");
    assert_eq!(message["roomId"], "r");
    assert_eq!(message["project"], json!({"id": 5, "tags": ["a"]}));
    assert_eq!(message["timestamp"], "2024-05-01T10:00:00.5Z");
    assert_eq!(message["content"], Value::Null);
    server
        .http()
        .service("POST", POST, Some(&json!({"roomId": "other", "content": "x"})))
        .assert_error(422, "invalid_message");
}

#[test]
fn the_posted_bytes_go_out_as_written() {
    let server = Server::start();
    let mut raw = RawClient::connect(&server, "raw");
    raw.write(&masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
    for _ in 0..2 {
        raw.frame().expect("the join's own messages");
    }
    let body = r#"{"content":"\ud800 \u00e9","price":1.10,"big":123456789012345678901234567890,"exp":1E+5,"zero":-0}"#;
    let mut http = server.http();
    http.send(&request("POST", POST, &[("X-API-Key", API_KEY)], Some(body)));
    assert_eq!(http.response().status, 201);
    let (opcode, payload) = raw.frame().expect("the message");
    let text = String::from_utf8(payload).expect("UTF-8");
    assert_eq!(opcode, 1);
    for part in [r"\ud800", r#""price":1.10"#, "123456789012345678901234567890", "1E+5", "-0"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn reserved_names_cannot_be_smuggled() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for body in [
        r#"{"content":"x","type":"user_left"}"#,
        r#"{"content":"x","\u0074ype":"user_left"}"#,
        r#"{"content":"x","seq":99}"#,
        r#"{"content":"x","epoch":"e"}"#,
        r#"{"content":"x","deleted":true}"#,
    ] {
        let mut http = server.http();
        http.send(&request("POST", POST, &[("X-API-Key", API_KEY)], Some(body)));
        let response = http.response();
        if response.status == 201 {
            let message = ana.expect("new_message");
            assert_eq!(message["seq"], response.json()["seq"], "{body}");
            assert!(message.get("epoch").is_none() && message.get("deleted").is_none(), "{message}");
        } else {
            response.assert_error(422, "invalid_message");
        }
    }
    for twice in [r#"{"content":"x","content":"y"}"#, r#"{"content":"x","c\u006fntent":"y"}"#, r#"{"id":"1","id":"2"}"#]
    {
        let mut http = server.http();
        http.send(&request("POST", POST, &[("X-API-Key", API_KEY)], Some(twice)));
        http.response().assert_error(422, "invalid_message");
    }
}

#[test]
fn a_user_s_message_is_completed_and_signed_by_the_server() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let forged = json!({"content": "hi", "sender_user_id": "ben", "timestamp": 1, "edited": true, "reactions": ["x"]});
    let answer = server.http().bearer(&user_token("ana"), "POST", POST, Some(&forged));
    assert_eq!(answer.status, 201, "{answer:?}");
    let message = ana.expect("new_message");
    assert_eq!(message["sender_user_id"], "ana");
    assert!(message["timestamp"].as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000), "{message}");
    assert_eq!(
        (
            &message["attachments"],
            &message["reactions"],
            &message["reply_to"],
            &message["edited"],
            &message["messageType"]
        ),
        (&json!([]), &json!([]), &Value::Null, &json!(false), &json!("text"))
    );
    let uuid = "0191d7c0-7f3e-7b1a-8c2d-0123456789ab";
    let answer = server.http().bearer(&user_token("ana"), "POST", POST, Some(&json!({"content": "hi", "id": uuid})));
    assert_eq!((answer.status, &answer.json()["id"]), (201, &json!(uuid)));
    let answer = server.http().bearer(&user_token("ana"), "POST", POST, Some(&json!({"content": "hi", "id": "m-1"})));
    answer.assert_error(422, "invalid_message");
}

#[test]
fn the_same_id_again_is_a_replay() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    let message = json!({"id": "m-1", "content": "once", "sender_user_id": "u", "timestamp": 5});
    let first = http.service("POST", POST, Some(&message));
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
    ana.expect("new_message");
    // The same value written otherwise and at another time.
    let again = json!({"timestamp": 6, "sender_user_id": "u", "content": "once", "id": "m-1"});
    let replay = http.service("POST", POST, Some(&again));
    assert_eq!((replay.status, replay.header("idempotency-replayed")), (201, Some("true")));
    for field in ["id", "seq", "timestamp"] {
        assert_eq!(replay.json()[field], first.json()[field], "{field}");
    }
    let other = json!({"id": "m-1", "content": "twice", "sender_user_id": "u"});
    http.service("POST", POST, Some(&other)).assert_error(409, "conflict");
    // The scope is the room.
    assert_eq!(http.service("POST", "/api/chat/rooms/other/messages", Some(&other)).status, 201);
    assert_eq!(fence("r", &mut ana, []).0, Vec::<Value>::new(), "sent once");
}

#[test]
fn the_number_seven_and_the_string_are_one_id() {
    let server = Server::start();
    let mut http = server.http();
    assert_eq!(http.post("r", &json!({"id": 7, "content": "a"}))["id"], 7);
    http.service("POST", POST, Some(&json!({"id": "7", "content": "b"}))).assert_error(409, "conflict");
    assert_eq!(http.post("r", &json!({"id": 8, "content": "c"}))["seq"], 2);
}

#[test]
fn an_idempotency_key_makes_a_retry_safe() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    let headers = [("X-API-Key", API_KEY), ("Idempotency-Key", "key-1")];
    let first = http.call("POST", POST, &headers, Some(&json!({"content": "once"})));
    let replay = http.call("POST", POST, &headers, Some(&json!({"content": "once"})));
    assert_eq!((first.status, replay.status), (201, 201));
    assert_eq!((first.header("idempotency-replayed"), replay.header("idempotency-replayed")), (None, Some("true")));
    assert_eq!((&first.json()["id"], &first.json()["seq"]), (&replay.json()["id"], &replay.json()["seq"]));
    http.call("POST", POST, &headers, Some(&json!({"content": "other"}))).assert_error(409, "conflict");
    ana.expect("new_message");
    assert_eq!(fence("r", &mut ana, []).0, Vec::<Value>::new());
    // Only 201 is remembered: what was refused may come right under the same key.
    let headers = [("X-API-Key", API_KEY), ("Idempotency-Key", "key-2")];
    http.call("POST", POST, &headers, Some(&json!([]))).assert_error(422, "invalid_message");
    let right = http.call("POST", POST, &headers, Some(&json!({"content": "right"})));
    assert_eq!((right.status, right.header("idempotency-replayed")), (201, None));
}

#[test]
fn retries_at_the_same_moment_make_one_message() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.http().post("r", &json!({"id": "m", "content": "x"})))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no poster panics")).collect()
    });
    assert!(answers.iter().all(|answer| answer["seq"] == 1 && answer["id"] == "m"), "{answers:?}");
    ana.expect("new_message");
    assert_eq!(fence("r", &mut ana, []).0, Vec::<Value>::new());
}

#[test]
fn a_remembered_id_is_forgotten_after_its_time() {
    let server = Server::start_with(&[("CHAT_IDEMPOTENCY_MS", "1000")]);
    let mut http = server.http();
    http.post("r", &json!({"id": "m", "content": "x"}));
    crate::server::eventually("forgotten", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        (http.service("POST", POST, Some(&json!({"id": "m", "content": "y"}))).status == 201).then_some(())
    });
}

#[test]
fn the_room_may_be_named_in_the_query() {
    let server = Server::start();
    let mut http = server.http();
    let mut ana = Client::in_room(&server, "ana", "a/b c");
    for path in
        ["/api/chat/messages?roomId=a%2Fb%20c", "/api/chat/messages?roomId=a/b+c", "/api/chat/rooms/a%2Fb%20c/messages"]
    {
        let response = http.service("POST", path, Some(&json!({"content": path})));
        assert_eq!(response.status, 201, "{path}: {response:?}");
        let message = ana.expect("new_message");
        assert_eq!((&message["roomId"], &message["content"]), (&json!("a/b c"), &json!(path)));
    }
    // Split before it is decoded, and decoded once.
    http.service("POST", "/api/chat/rooms/a/b/messages", Some(&json!({"content": "x"}))).assert_error(404, "not_found");
    let mut twice = Client::in_room(&server, "ana", "a%2Fb");
    assert_eq!(http.service("POST", "/api/chat/rooms/a%252Fb/messages", Some(&json!({"content": "x"}))).status, 201);
    twice.expect("new_message");
    let status = http.service("POST", "/api/chat/messages", Some(&json!({"content": "x"}))).status;
    assert!(status == 404 || status == 422, "no room at all: {status}");
}

#[test]
fn messages_of_one_poster_keep_their_order() {
    let server = Server::start();
    let mut members: Vec<Client> = (0..8).map(|number| Client::in_room(&server, &format!("u{number}"), "r")).collect();
    let mut http = server.http();
    for number in 0..200 {
        http.send(&request("POST", POST, &[("X-API-Key", API_KEY)], Some(&json!({"content": number}).to_string())));
        if number >= 16 {
            assert_eq!(http.response().status, 201);
        }
    }
    for member in &mut members {
        for number in 0..200 {
            let message = member.wait_for("new_message");
            assert_eq!((&message["content"], &message["seq"]), (&json!(number), &json!(number + 1)));
        }
    }
}

#[test]
fn online_lists_users_and_counts_them() {
    let server = Server::start();
    let mut http = server.http();
    let empty = http.service("GET", "/api/chat/rooms/r/online", None);
    assert_eq!(
        (empty.status, empty.json()["online"].clone(), empty.json()["count"].clone()),
        (200, json!([]), json!(0))
    );
    let _tabs = [
        Client::in_room(&server, "ana", "r"),
        Client::in_room(&server, "ana", "r"),
        Client::in_room(&server, "ben", "r"),
    ];
    let answer = http.service("GET", "/api/chat/rooms/r/online", None).json();
    let mut online: Vec<&str> = answer["online"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    online.sort_unstable();
    assert_eq!((online, &answer["count"]), (vec!["ana", "ben"], &json!(2)));
    let answer = http.bearer(&user_token("ben"), "GET", "/api/chat/rooms/r/online", None);
    assert_eq!((answer.status, &answer.json()["count"]), (200, &json!(2)));
}

#[test]
fn rooms_are_listed_with_a_cursor() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let mut second = Client::user(&server, "ana");
    let names: Vec<String> = (0..25).map(|number| format!("room-{number:02}")).collect();
    for name in &names {
        ana.join(name);
    }
    second.join("room-00");
    server.http().post("room-00", &json!({"content": "x"}));
    let mut http = server.http();
    let mut seen = Vec::new();
    let mut path = "/api/chat/rooms?limit=10".to_owned();
    loop {
        let page = http.service("GET", &path, None).json();
        let rooms = page["rooms"].as_array().expect("a list").clone();
        assert!(rooms.len() <= 10);
        for room in &rooms {
            let first = room["roomId"] == "room-00";
            assert_eq!((&room["users"], &room["connections"]), (&json!(1), &json!(1 + u8::from(first))), "{room}");
            assert_eq!(room["lastSeq"], u8::from(first), "{room}");
        }
        seen.extend(rooms.iter().map(|room| room["roomId"].as_str().expect("a name").to_owned()));
        if page["more"] == false {
            break;
        }
        assert_eq!(page["more"], true);
        path = format!("/api/chat/rooms?limit=10&after={}", page["next"].as_str().expect("a cursor"));
        assert!(seen.len() <= 25, "{seen:?}");
    }
    seen.sort();
    assert_eq!(seen, names, "each once");
}

#[test]
fn a_broadcast_answers_for_each_room() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "a");
    let mut ben = Client::in_room(&server, "ben", "b");
    let body = json!({"rooms": ["a", "b", "c", ".."], "message": {"id": "news-1", "content": "news"}});
    let mut http = server.http();
    let answer = http.service("POST", "/api/chat/broadcast", Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].as_array().expect("a list").clone();
    assert_eq!(results.len(), 4);
    for (result, room) in results.iter().zip(["a", "b", "c"]) {
        assert_eq!(
            (&result["roomId"], &result["id"], &result["seq"]),
            (&json!(room), &json!("news-1"), &json!(1)),
            "{result}"
        );
    }
    assert_eq!((&results[3]["roomId"], &results[3]["code"]), (&json!(".."), &json!("invalid_message")));
    for client in [&mut ana, &mut ben] {
        assert_eq!(client.expect("new_message")["content"], "news");
    }
    // Safe to repeat.
    let again = http.service("POST", "/api/chat/broadcast", Some(&body)).json();
    assert_eq!(again["results"][0]["seq"], 1);
    assert_eq!(fence("a", &mut ana, []).0, Vec::<Value>::new());
    let rooms: Vec<String> = (0..1_001).map(|number| format!("r{number}")).collect();
    let many = json!({"rooms": rooms, "message": {"content": "x"}});
    http.service("POST", "/api/chat/broadcast", Some(&many)).assert_error(422, "invalid_message");
    let thousand = json!({"rooms": rooms[..1_000], "message": {"content": "x"}});
    let answer = http.service("POST", "/api/chat/broadcast", Some(&thousand)).json();
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(1_000));
}

#[test]
fn a_service_token_may_do_what_the_key_may() {
    let server = Server::start();
    let mut http = server.http();
    let answer =
        http.bearer(&service_token(), "POST", POST, Some(&json!({"content": "x", "sender_user_id": "someone"})));
    assert_eq!(answer.status, 201);
    assert_eq!(http.bearer(&service_token(), "GET", "/api/chat/rooms", None).status, 200);
    // A service's connection is an ordinary one.
    let mut erp = Client::connect(&server, &service_token());
    assert_eq!(types(&[erp.join(&messages_path("x"))]), ["online_update"]);
}
