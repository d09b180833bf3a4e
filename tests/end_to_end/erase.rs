//! Erasing a person, and removing a room.

use serde_json::{Value, json};

use crate::client::{Client, types, user_token};
use crate::http_client::messages_path;
use crate::server::Server;

fn page(server: &Server, room: &str) -> Value {
    server.http().service("GET", &format!("{}?limit=200", messages_path(room)), None).json()
}

#[test]
fn an_erased_person_leaves_nothing() {
    let server = Server::start_durable();
    let mut ben = Client::in_room(&server, "ben", "room-0");
    let mut http = server.http();
    for n in 0..120 {
        let room = format!("room-{}", n % 3);
        let body = json!({"content": format!("secret-{n}"), "id": format!("m-{n}"), "sender_user_id": 42});
        http.post(&room, &body);
        let reaction = format!("{}/m-{n}/reactions/x?userId=42", messages_path(&room));
        if n % 4 == 0 {
            assert_eq!(http.service("PUT", &reaction, None).status, 200);
        }
    }
    http.post("room-0", &json!({"content": "of ben", "id": "ben-1", "sender_user_id": "ben"}));
    http.service("PUT", &format!("{}/ben-1/reactions/y?userId=42", messages_path("room-0")), None);
    http.service("PUT", &format!("{}/ben-1/reactions/y?userId=7", messages_path("room-0")), None);
    http.service("PUT", "/api/chat/rooms/room-1/read/42", Some(&json!({"seq": 1})));

    let erased = http.service("POST", "/api/chat/users/42/erase", None);
    assert_eq!(erased.status, 200, "{erased:?}");
    let counts = erased.json();
    assert_eq!(counts["messages"], 120, "{counts}");
    assert!(counts["reactions"].as_u64().is_some_and(|count| count >= 1), "{counts}");
    for room in ["room-0", "room-1", "room-2"] {
        let page = page(&server, room);
        assert!(!page.to_string().contains("secret"), "{page}");
        for message in page["messages"].as_array().expect("messages") {
            let of_ben = message["id"] == "ben-1";
            assert_eq!(message["deleted"], !of_ben, "{message}");
            if of_ben {
                assert_eq!(message["reactionSummary"], json!([{"emoji": "y", "count": 1, "userIds": [7]}]));
            }
        }
    }
    let feed = http.service("GET", "/api/chat/events?limit=5000", None).json();
    assert!(!feed.to_string().contains("secret"));
    assert_eq!(http.service("GET", "/api/chat/users/42/rooms", None).json(), json!([]));
    assert_eq!(http.service("GET", "/api/chat/rooms/room-1/read/42", None).json()["seq"], 0);
    let again = http.service("POST", "/api/chat/users/42/erase", None);
    assert_eq!((again.status, again.json()), (200, json!({"messages": 0, "reactions": 0})));
    // The room has heard of each deletion.
    let (_, last) = ben.until(|message| message["type"] == "message_deleted" && message["id"] == "m-117");
    assert!(last.get("userId").is_none(), "{last}");
}

#[test]
fn a_removed_room_keeps_its_position_only() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    for n in 1..=3 {
        http.post("r", &json!({"id": n, "content": n}));
        ana.expect("new_message");
    }
    let removed = http.service("DELETE", "/api/chat/rooms/r", None);
    assert_eq!(removed.status, 200, "{removed:?}");
    assert_eq!(ana.expect("removed_from_room")["roomId"], "r");
    let (before, error) = ana.request(json!({"type": "send_message", "roomId": "r", "content": "x"}));
    assert_eq!((types(&before), &error["code"]), (vec![], &json!("not_in_room")));
    let page = page(&server, "r");
    assert_eq!((&page["messages"], &page["firstSeq"], &page["lastSeq"]), (&json!([]), &json!(4), &json!(3)), "{page}");
    let posted = http.bearer(&user_token("ana"), "POST", &messages_path("r"), Some(&json!({"content": "again"})));
    assert_eq!((posted.status, &posted.json()["seq"]), (201, &json!(4)));
    // An id of before is free again.
    assert_eq!(http.post("r", &json!({"id": 1, "content": "other"}))["seq"], 5);
    assert_eq!(http.service("DELETE", "/api/chat/rooms/never-heard-of", None).status, 200);
}
