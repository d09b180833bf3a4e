//! Presence in large rooms: a cut list, net changes once per interval, and the change from one mode to the other.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use crate::client::{Client, types};
use crate::server::Server;

/// Above five users a room is large here; below four it is small again.
const LIMIT: [(&str, &str); 2] = [("CHAT_PRESENCE_LIST_LIMIT", "5"), ("CHAT_PRESENCE_DIFF_MS", "250")];

fn join_all(server: &Server, count: usize) -> Vec<Client> {
    (0..count).map(|number| Client::in_room(server, &format!("u{number}"), "r")).collect()
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().expect("a list").iter().filter_map(|user| user.as_str().map(str::to_owned)).collect()
}

fn is_update(message: &Value, truncated: bool) -> bool {
    message["type"] == "online_update" && (message["truncated"] == true) == truncated
}

#[test]
fn at_the_limit_a_room_is_small() {
    let server = Server::start_with(&LIMIT);
    let mut members = join_all(&server, 4);
    let mut last = Client::user(&server, "last");
    let update = last.join("r");
    assert!(is_update(&update, false), "{update}");
    assert_eq!(names(&update["online"]).len(), 5);
    assert_eq!(members[3].expect("user_joined")["userId"], "last");
}

#[test]
fn above_the_limit_the_list_is_cut_and_counted() {
    let server = Server::start_with(&LIMIT);
    let _members = join_all(&server, 7);
    let mut last = Client::user(&server, "last");
    last.send(json!({"type": "join_room", "roomId": "r"}));
    assert_eq!(last.expect("user_joined")["userId"], "last");
    let update = last.expect("online_update");
    assert_eq!(update["truncated"], true, "{update}");
    assert_eq!(update["count"], 8);
    assert_eq!(update["online"].as_array().map(Vec::len), Some(5));
    let online = server.http().service("GET", "/api/chat/rooms/r/online", None).json();
    assert_eq!(online["count"], 8, "{online}");
}

#[test]
fn a_room_that_grows_large_sends_everybody_a_fresh_list() {
    let server = Server::start_with(&LIMIT);
    let mut members = join_all(&server, 6);
    for member in &mut members[..5] {
        let (before, update) = member.until(|message| is_update(message, true));
        assert!(types(&before).iter().all(|kind| *kind == "user_joined"), "{before:?}");
        assert_eq!(update["count"], 6);
    }
}

#[test]
fn others_come_and_go_as_net_changes() {
    let server = Server::start_with(&LIMIT);
    let mut members = join_all(&server, 8);
    let mut observer = members.remove(0);
    observer.until(|message| is_update(message, true));
    let _late = Client::in_room(&server, "late", "r");
    let diff =
        observer.until(|message| message["type"] == "presence_diff" && names(&message["joined"]).contains("late")).1;
    assert_eq!(diff["roomId"], "r");
    assert_eq!(diff["count"], 9, "{diff}");
    assert!(diff["left"].is_array());
    members.pop();
    let (before, diff) =
        observer.until(|message| message["type"] == "presence_diff" && names(&message["left"]).contains("u7"));
    assert_eq!(diff["count"], 8, "{diff}");
    assert!(types(&before).iter().all(|kind| *kind == "presence_diff"), "no single joins or leaves: {before:?}");
}

#[test]
fn diffs_add_up_to_who_is_there() {
    let server = Server::start_with(&[("CHAT_PRESENCE_LIST_LIMIT", "5"), ("CHAT_PRESENCE_DIFF_MS", "1000")]);
    let mut members = join_all(&server, 10);
    let mut observer = Client::user(&server, "observer");
    observer.send(json!({"type": "join_room", "roomId": "r"}));
    assert_eq!(observer.wait_for("online_update")["count"], 11);
    // Comes and goes within an interval: net, nothing.
    let mut fleeting = Client::user(&server, "fleeting");
    fleeting.send(json!({"type": "join_room", "roomId": "r"}));
    let (_, ack) = fleeting.request(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!(ack["type"], "ack");
    drop(members.remove(0));
    drop(members.remove(0));
    let _stays = Client::in_room(&server, "stays", "r");
    let mut present: BTreeSet<String> = BTreeSet::new();
    let mut gone: BTreeSet<String> = BTreeSet::new();
    let mut count = Value::Null;
    while !(present.contains("stays") && gone.contains("u0") && gone.contains("u1") && count == 10) {
        let (_, diff) = observer.until(|message| message["type"] == "presence_diff");
        let (joined, left) = (names(&diff["joined"]), names(&diff["left"]));
        assert!(joined.is_disjoint(&left), "net changes: {diff}");
        assert!(!joined.is_empty() || !left.is_empty(), "no change is not sent: {diff}");
        assert_ne!(diff["truncated"], true, "{diff}");
        count = diff["count"].clone();
        for user in &left {
            present.remove(user);
        }
        gone.extend(left);
        present.extend(joined);
    }
    assert!(!present.contains("fleeting"));
}

#[test]
fn a_room_that_shrinks_is_small_below_four_fifths() {
    let server = Server::start_with(&LIMIT);
    let mut members = join_all(&server, 7);
    let mut observer = members.remove(0);
    observer.until(|message| is_update(message, true));
    // Six leave one by one: at five and at four users the room is still large.
    while members.len() > 2 {
        let mut leaver = members.pop().expect("members remain");
        assert_eq!(leaver.request(json!({"type": "leave_room", "roomId": "r"})).1["type"], "ack");
    }
    let (before, update) = observer.until(|message| is_update(message, false));
    assert!(types(&before).iter().all(|kind| *kind == "presence_diff"), "{before:?}");
    assert_eq!(names(&update["online"]), BTreeSet::from(["u0".to_owned(), "u1".to_owned(), "u2".to_owned()]));
    // Small again: single events.
    let mut leaver = members.pop().expect("members remain");
    assert_eq!(leaver.request(json!({"type": "leave_room", "roomId": "r"})).1["type"], "ack");
    assert_eq!(observer.expect("user_left")["userId"], "u2");
}

#[test]
fn presence_of_many_arrivals_costs_a_member_little() {
    let server = Server::start_with(&[("CHAT_PRESENCE_LIST_LIMIT", "20"), ("CHAT_PRESENCE_DIFF_MS", "1000")]);
    let begun = Instant::now();
    let mut members = join_all(&server, 200);
    let last = Client::in_room(&server, "last", "r");
    let mut observer = members.remove(0);
    observer.send(json!({"type": "reaction", "roomId": "r", "messageId": "end", "emoji": "x"}));
    let (before, _) = observer.until(|message| message["type"] == "reaction");
    let diffs = types(&before).iter().filter(|kind| **kind == "presence_diff").count();
    assert!(diffs as u64 <= begun.elapsed().as_secs() + 1, "{diffs} diffs in {:?}", begun.elapsed());
    let single = types(&before).iter().filter(|kind| **kind == "user_joined").count();
    assert!(single <= 20, "{single} single joins");
    drop(last);
}

#[test]
fn a_diff_names_at_most_a_hundred_each_way() {
    let server = Server::start_with(&[("CHAT_PRESENCE_LIST_LIMIT", "5"), ("CHAT_PRESENCE_DIFF_MS", "5000")]);
    let mut observer = Client::in_room(&server, "observer", "r");
    let _members = join_all(&server, 250);
    let mut named = 0;
    let mut cut = false;
    loop {
        let message = observer.next();
        match message["type"].as_str() {
            Some("presence_diff") => {
                let joined = names(&message["joined"]).len();
                assert!(joined <= 100 && names(&message["left"]).len() <= 100);
                named += joined;
                cut |= message["truncated"] == true;
                if message["count"] == 251 {
                    break;
                }
            }
            Some("online_update") => named += names(&message["online"]).len(),
            Some("user_joined") => named += 1,
            _ => panic!("{message}"),
        }
    }
    assert!(cut || named >= 250, "what is not named is marked as cut: {named}");
}
