//! What users have read, and the list of their rooms.

use serde_json::{Value, json};

use crate::client::{Client, fence, user_token};
use crate::server::Server;

const READ: &str = "/api/chat/rooms/r/read/ana";

fn posted(server: &Server, room: &str, count: u64) {
    for n in 1..=count {
        server.http().post(room, &json!({"id": n, "content": n}));
    }
}

#[test]
fn a_mark_moves_forward_and_the_room_hears_of_it() {
    let server = Server::start_durable();
    posted(&server, "r", 3);
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");
    let state = || server.http().service("GET", READ, None).json();
    assert_eq!(state(), json!({"seq": 0, "unread": 3}));
    let (_, ack) = ana.request(json!({"type": "mark_read", "roomId": "r", "seq": 2}));
    assert_eq!(ack["type"], "ack", "{ack}");
    let receipt = ben.expect("read_receipt");
    assert_eq!((&receipt["userId"], &receipt["seq"], &receipt["roomId"]), (&json!("ana"), &json!(2), &json!("r")));
    assert_eq!(state(), json!({"seq": 2, "unread": 1}));
    // Back is nowhere, and so is what no message is.
    let (_, ack) = ana.request(json!({"type": "mark_read", "roomId": "r", "seq": 1}));
    assert_eq!(ack["type"], "ack");
    let (_, error) = ana.request(json!({"type": "mark_read", "roomId": "r", "seq": 9}));
    assert_eq!(error["code"], "not_found", "{error}");
    assert_eq!(state(), json!({"seq": 2, "unread": 1}));
    let heard = fence("r", &mut ben, [&mut ana]).0;
    assert!(heard.is_empty(), "{heard:?}");
}

#[test]
fn over_rest_the_new_state_is_answered() {
    let server = Server::start_durable();
    posted(&server, "r", 3);
    let mut http = server.http();
    let ana = user_token("ana");
    for (seq, expected) in
        [(1, json!({"seq": 1, "unread": 2})), (3, json!({"seq": 3, "unread": 0})), (2, json!({"seq": 3, "unread": 0}))]
    {
        let response = http.bearer(&ana, "PUT", READ, Some(&json!({"seq": seq})));
        assert_eq!((response.status, response.json()), (200, expected.clone()), "{seq}");
        assert_eq!(http.bearer(&ana, "GET", READ, None).json(), expected);
    }
    http.service("PUT", READ, Some(&json!({"seq": 4}))).assert_error(404, "not_found");
    let by_service = http.service("PUT", "/api/chat/rooms/r/read/ben", Some(&json!({"seq": 1})));
    assert_eq!(by_service.json(), json!({"seq": 1, "unread": 2}));
    http.bearer(&ana, "GET", "/api/chat/rooms/r/read/ben", None).assert_error(403, "forbidden");
    let unknown = http.service("GET", "/api/chat/rooms/nowhere/read/ana", None);
    assert_eq!(unknown.json(), json!({"seq": 0, "unread": 0}));
}

#[test]
fn a_user_s_rooms_are_those_it_wrote_or_read_in() {
    let server = Server::start_durable();
    let rooms = || server.http().service("GET", "/api/chat/users/ana/rooms", None).json();
    assert_eq!(rooms(), json!([]));
    posted(&server, "read", 2);
    posted(&server, "other", 1);
    let body = json!({"content": "mine"});
    let written = server.http().bearer(&user_token("ana"), "POST", "/api/chat/rooms/written/messages", Some(&body));
    assert_eq!(written.status, 201);
    server.http().service("PUT", "/api/chat/rooms/read/read/ana", Some(&json!({"seq": 1})));
    let listed = rooms();
    let names: Vec<&Value> = listed.as_array().expect("a list").iter().map(|room| &room["roomId"]).collect();
    assert_eq!(names, ["written", "read"], "the newest first: {listed}");
    assert_eq!(
        (&listed[1]["lastSeq"], &listed[1]["unread"], &listed[1]["lastMessage"]["seq"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!(listed[0]["lastMessage"]["content"], "mine");
}
