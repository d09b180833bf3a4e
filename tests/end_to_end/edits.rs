//! Edits and deletions: whose, what everybody hears, and what is left.

use serde_json::{Value, json};

use crate::client::{Client, fence, now_ms, now_s, token, types, user_token};
use crate::http_client::messages_path;
use crate::server::Server;

fn page(server: &Server, room: &str) -> Vec<Value> {
    let response = server.http().service("GET", &messages_path(room), None);
    response.json()["messages"].as_array().expect("a page has messages").clone()
}

fn send(client: &mut Client, room: &str, content: &str) -> Value {
    let (_, ack) = client.request(json!({"type": "send_message", "roomId": room, "content": content}));
    assert_eq!(ack["type"], "ack", "{ack}");
    ack["id"].clone()
}

fn moderator() -> String {
    token(&json!({"userId": "mod", "chatRole": "moderator", "exp": now_s() + 3600}))
}

#[test]
fn an_edit_is_heard_and_kept() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");
    let id = send(&mut ana, "r", "first");
    ben.expect("new_message");
    let edit =
        json!({"type": "edit_message", "roomId": "r", "messageId": id, "content": "second", "attachments": [1.50]});
    let (before, ack) = ana.request(edit.clone());
    assert_eq!((types(&before), &ack["type"]), (vec!["message_updated"], &json!("ack")));
    let updated = ben.expect("message_updated");
    assert_eq!(updated, before[0]);
    for (field, expected) in [
        ("id", id.clone()),
        ("content", json!("second")),
        ("attachments", json!([1.5])),
        ("edited", json!(true)),
        ("userId", json!("ana")),
        ("seq", json!(2)),
    ] {
        assert_eq!(updated[field], expected, "{field} of {updated}");
    }
    assert!(updated["editedAt"].as_u64().is_some_and(|at| at.abs_diff(now_ms()) < 60_000), "{updated}");
    let message = &page(&server, "r")[0];
    assert_eq!((&message["content"], &message["edited"], &message["seq"]), (&json!("second"), &json!(true), &json!(1)));
    assert_eq!(message["editedAt"], updated["editedAt"]);
    // The same again changes nothing, and nobody hears it.
    let (before, ack) = ana.request(edit);
    assert_eq!((before.len(), &ack["type"]), (0, &json!("ack")));
    assert_eq!(fence("r", &mut ana, [&mut ben]), (vec![], [vec![]]));
}

#[test]
fn only_its_sender_or_a_moderator_changes_a_message() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    let id = send(&mut ana, "r", "mine");
    let mut ben = Client::in_room(&server, "ben", "r");
    for request in [
        json!({"type": "edit_message", "roomId": "r", "messageId": id, "content": "x"}),
        json!({"type": "delete_message", "roomId": "r", "messageId": id}),
    ] {
        let (before, error) = ben.request(request.clone());
        assert_eq!((before.len(), &error["code"]), (0, &json!("forbidden")), "{error}");
        let mut unknown = request;
        unknown["messageId"] = json!("unknown");
        let (_, error) = ben.request(unknown.clone());
        assert_eq!(error["code"], "not_found", "{error}");
        // Nothing is ignored, also without a ref.
        ben.send(unknown);
        assert_eq!(ben.expect("error")["code"], "not_found");
    }
    let path = format!("{}/{}", messages_path("r"), id.as_str().expect("made here"));
    let edit = json!({"content": "x"});
    server.http().bearer(&user_token("ben"), "PATCH", &path, Some(&edit)).assert_error(403, "forbidden");
    server.http().bearer(&user_token("ben"), "DELETE", &path, None).assert_error(403, "forbidden");
    let unknown = format!("{}/unknown", messages_path("r"));
    server.http().bearer(&user_token("ben"), "DELETE", &unknown, None).assert_error(404, "not_found");

    let own = server.http().bearer(&user_token("ana"), "PATCH", &path, Some(&json!({"content": "by rest"})));
    assert_eq!((own.status, &own.json()["seq"]), (200, &json!(2)));
    assert_eq!(ben.expect("message_updated")["userId"], "ana");
    let edited = server.http().bearer(&moderator(), "PATCH", &path, Some(&json!({"content": "moderated"})));
    assert_eq!(edited.status, 200, "{edited:?}");
    assert_eq!(ben.expect("message_updated")["userId"], "mod");
    let mut moderator = Client::connect(&server, &moderator());
    moderator.join("r");
    let (before, _) = moderator.request(json!({"type": "delete_message", "roomId": "r", "messageId": id}));
    assert_eq!((types(&before), &before[0]["userId"]), (vec!["message_deleted"], &json!("mod")));
}

#[test]
fn a_deleted_message_leaves_nothing_of_its_content() {
    let server = Server::start_durable();
    let epoch = Client::user(&server, "ana").join("r")["epoch"].clone();
    let mut ana = Client::in_room(&server, "ana", "r");
    let id = send(&mut ana, "r", "secret-1");
    ana.request(json!({"type": "edit_message", "roomId": "r", "messageId": id, "content": "secret-2"}));
    ana.request(json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "x", "action": "add"}));
    let delete = json!({"type": "delete_message", "roomId": "r", "messageId": id});
    let (before, ack) = ana.request(delete.clone());
    assert_eq!((types(&before), &ack["type"]), (vec!["message_deleted"], &json!("ack")));
    assert_eq!((&before[0]["id"], &before[0]["userId"], &before[0]["seq"]), (&id, &json!("ana"), &json!(4)));
    let (before, ack) = ana.request(delete);
    assert_eq!((before.len(), &ack["type"]), (0, &json!("ack")), "deleting again is an ack");

    let message = &page(&server, "r")[0];
    assert_eq!((&message["deleted"], &message["id"], &message["sender_user_id"]), (&json!(true), &id, &json!("ana")));
    assert_eq!(message["reactionSummary"], json!([]));
    let feed = server.http().service("GET", "/api/chat/events", None).json();
    let mut back = Client::user(&server, "ana");
    back.send(json!({"type": "join_room", "roomId": "r", "since": 0, "epoch": epoch}));
    let replayed = (0..6).map(|_| back.next()).collect::<Vec<_>>();
    assert_eq!(types(&replayed)[2..], ["new_message", "message_updated", "reaction", "message_deleted"]);
    assert_eq!((&replayed[2]["deleted"], &replayed[3]["deleted"]), (&json!(true), &json!(true)));
    for shown in [json!(page(&server, "r")), feed, json!(replayed)] {
        assert!(!shown.to_string().contains("secret"), "{shown}");
    }

    for request in [
        json!({"type": "edit_message", "roomId": "r", "messageId": id, "content": "x"}),
        json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "y", "action": "add"}),
        json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "y"}),
    ] {
        let (before, error) = ana.request(request);
        assert_eq!((before.len(), &error["code"]), (0, &json!("not_found")), "{error}");
    }
}

#[test]
fn a_service_changes_any_message_also_one_never_seen() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    server.http().post("r", &json!({"id": 7, "content": {"html": "x"}, "sender_user_id": "ana"}));
    ana.expect("new_message");
    let edit = json!({"content": {"html": "y"}});
    let path = |id: &str| format!("{}/{id}", messages_path("r"));
    let response = server.http().service("PATCH", &path("7"), Some(&edit));
    assert_eq!((response.status, &response.json()["seq"]), (200, &json!(2)), "{response:?}");
    let updated = ana.expect("message_updated");
    assert_eq!((&updated["id"], &updated["content"]), (&json!(7), &json!({"html": "y"})));
    assert!(updated.get("userId").is_none(), "nobody is named: {updated}");
    let again = server.http().service("PATCH", &path("7"), Some(&edit));
    assert_eq!((again.status, again.json().get("seq")), (200, None), "{again:?}");

    server.http().service("PATCH", &path("unseen?userId=ben"), Some(&edit));
    let relayed = ana.expect("message_updated");
    assert_eq!((&relayed["id"], &relayed["userId"], &relayed["seq"]), (&json!("unseen"), &json!("ben"), &json!(3)));
    server.http().service("DELETE", &path("unseen"), None);
    assert_eq!(ana.expect("message_deleted")["id"], "unseen");
    // The sender that the service named may change it too.
    let (before, _) = ana.request(json!({"type": "delete_message", "roomId": "r", "messageId": "7"}));
    assert_eq!(types(&before), ["message_deleted"]);
}
