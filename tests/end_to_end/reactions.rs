//! Reactions that last: once each, taken back, summed up.

use serde_json::{Value, json};

use crate::client::{Client, fence, types, user_token};
use crate::http_client::messages_path;
use crate::server::Server;

const THUMB: &str = "%F0%9F%91%8D";

fn reaction(emoji: &str, action: Option<&str>) -> Value {
    let mut message = json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": emoji});
    if let Some(action) = action {
        message["action"] = json!(action);
    }
    message
}

fn summary(server: &Server) -> Value {
    let page = server.http().service("GET", &messages_path("r"), None).json();
    page["messages"][0]["reactionSummary"].clone()
}

#[test]
fn a_reaction_counts_once_and_can_be_taken_back() {
    let server = Server::start_durable();
    server.http().post("r", &json!({"id": "m", "content": "x"}));
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");

    let (before, ack) = ana.request(reaction("👍", Some("add")));
    assert_eq!((types(&before), &ack["type"], &before[0]["seq"]), (vec!["reaction"], &json!("ack"), &json!(2)));
    assert_eq!(ben.expect("reaction"), before[0]);
    let (before, ack) = ana.request(reaction("👍", Some("add")));
    assert_eq!((before.len(), &ack["type"]), (0, &json!("ack")), "a repeat is an ack without event");
    ben.request(reaction("👍", Some("add")));
    ben.request(reaction("🎉", None));
    ana.until(|message| message["emoji"] == "🎉");
    // A client of the seed is heard each time, and counted once.
    ben.request(reaction("🎉", None));
    ana.until(|message| message["emoji"] == "🎉");
    assert_eq!(
        summary(&server),
        json!([{"emoji": "👍", "count": 2, "userIds": ["ana", "ben"]}, {"emoji": "🎉", "count": 1, "userIds": ["ben"]}])
    );

    let (before, _) = ana.request(reaction("👍", Some("remove")));
    assert_eq!(types(&before), ["reaction_removed"]);
    let removed = &before[0];
    let expected = (&json!("m"), &json!("👍"), &json!("ana"), &json!(6));
    assert_eq!((&removed["messageId"], &removed["emoji"], &removed["userId"], &removed["seq"]), expected);
    let (before, ack) = ana.request(reaction("👍", Some("remove")));
    assert_eq!((before.len(), &ack["type"]), (0, &json!("ack")));
    let expected =
        json!([{"emoji": "👍", "count": 1, "userIds": ["ben"]}, {"emoji": "🎉", "count": 1, "userIds": ["ben"]}]);
    assert_eq!(summary(&server), expected);
    assert_eq!(fence("r", &mut ben, [&mut ana]).1, [Vec::<Value>::new()]);
}

#[test]
fn over_rest_a_service_names_the_user_and_a_user_is_itself() {
    let server = Server::start_durable();
    server.http().post("r", &json!({"id": "m", "content": "x"}));
    let mut ana = Client::in_room(&server, "ana", "r");
    let path = format!("{}/m/reactions/{THUMB}", messages_path("r"));
    server.http().service("PUT", &path, None).assert_error(422, "invalid_message");
    let mut http = server.http();
    let by_service = format!("{path}?userId=42");
    let response = http.service("PUT", &by_service, None);
    assert_eq!((response.status, &response.json()["seq"]), (200, &json!(2)), "{response:?}");
    let event = ana.expect("reaction");
    assert_eq!((&event["userId"], &event["emoji"]), (&json!(42), &json!("👍")), "{event}");
    let again = http.service("PUT", &by_service, None);
    assert_eq!((again.status, again.json().get("seq")), (200, None));
    let by_user = http.bearer(&user_token("ben"), "PUT", &path, None);
    assert_eq!(by_user.status, 200);
    assert_eq!(ana.expect("reaction")["userId"], "ben");
    let taken_back = http.bearer(&user_token("ben"), "DELETE", &format!("{path}?userId=ben"), None);
    assert_eq!((taken_back.status, &taken_back.json()["seq"]), (200, &json!(4)));
    assert_eq!(ana.expect("reaction_removed")["userId"], "ben");
    http.bearer(&user_token("ben"), "DELETE", &by_service, None).assert_error(403, "forbidden");
    let long = "x".repeat(65);
    let path = format!("{}/m/reactions/{long}?userId=42", messages_path("r"));
    http.service("PUT", &path, None).assert_error(422, "invalid_message");
    // A message that was never seen here may be reacted to: the ERP may hold it.
    let unseen = format!("{}/77/reactions/{THUMB}?userId=42", messages_path("r"));
    assert_eq!(http.service("PUT", &unseen, None).status, 200);
    assert_eq!(ana.expect("reaction")["messageId"], 77);
    assert_eq!(summary(&server), json!([{"emoji": "👍", "count": 1, "userIds": [42]}]));
}
