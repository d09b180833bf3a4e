//! Several connections of one user, and the order in which one connection's requests take effect.

use serde_json::{Value, json};

use crate::client::{Client, fence, token, types};
use crate::server::Server;

#[test]
fn others_hear_the_first_connection_come_and_the_last_go() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut first = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    // The second tab gets its own two messages; nobody else hears of it.
    let mut second = Client::in_room(&server, "ana", "r");
    assert_eq!(fence("r", &mut ben, [&mut first, &mut second]), (vec![], [vec![], vec![]]));
    drop(second);
    first.send(json!({"type": "typing_start", "roomId": "r"}));
    assert_eq!(ben.expect("typing_start")["userId"], "ana");
    first.send(json!({"type": "leave_room", "roomId": "r"}));
    ben.expect("typing_stop");
    // Whether the second connection's end or the leave came last, ana is gone exactly once.
    assert_eq!(ben.expect("user_left")["userId"], "ana");
    assert_eq!(fence("r", &mut ben, []).0, Vec::<Value>::new());
}

#[test]
fn a_user_is_listed_once_however_many_tabs() {
    let server = Server::start();
    let _tabs: Vec<Client> = (0..5).map(|_| Client::in_room(&server, "ana", "r")).collect();
    let mut ben = Client::user(&server, "ben");
    let update = ben.join("r");
    let mut online: Vec<&str> = update["online"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    online.sort_unstable();
    assert_eq!(online, ["ana", "ben"]);
}

#[test]
fn joining_again_is_answered_and_heard_by_nobody() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    for _ in 0..3 {
        let update = ana.join("r");
        assert_eq!(update["online"].as_array().map(Vec::len), Some(2));
    }
    assert_eq!(fence("r", &mut ana, [&mut ben]), (vec![], [vec![]]));
    // Joined three times, left with one leave.
    ana.send(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!(ben.expect("user_left")["userId"], "ana");
}

#[test]
fn a_leave_while_another_tab_stays_is_heard_by_nobody() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut first = Client::in_room(&server, "ana", "r");
    let mut second = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    let (before, ack) = first.request(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!((before, &ack["type"], &ack["roomId"]), (vec![], &json!("ack"), &json!("r")));
    // The other tab is still in: it gets, and its user is still listed.
    assert_eq!(fence("r", &mut ben, [&mut second]), (vec![], [vec![]]));
    second.send(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!(ben.expect("user_left")["userId"], "ana");
}

#[test]
fn leaving_a_room_not_joined_is_no_error() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::user(&server, "ana");
    let (before, ack) = ana.request(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!((before, &ack["type"]), (vec![], &json!("ack")));
    ana.send(json!({"type": "leave_room", "roomId": "r"}));
    ana.expect_none();
    assert_eq!(fence("r", &mut ben, []).0, Vec::<Value>::new());
}

#[test]
fn one_tab_never_affects_another() {
    let server = Server::start();
    let mut tabs: Vec<Client> = (0..4).map(|_| Client::in_room(&server, "ana", "r")).collect();
    let mut ben = Client::in_room(&server, "ben", "r");
    while tabs.len() > 1 {
        drop(tabs.remove(0));
        let own = fence("r", &mut ben, []).0;
        assert!(own.is_empty(), "{own:?}");
        let last = tabs.last_mut().expect("one stays");
        let (before, _) = last.until(|message| message["type"] == "reaction");
        assert!(types(&before).iter().all(|kind| *kind == "user_joined"), "{before:?}");
    }
    drop(tabs);
    assert_eq!(ben.expect("user_left")["userId"], "ana");
}

#[test]
fn join_typing_leave_join_in_one_write_take_effect_in_order() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::user(&server, "ana");
    ana.send_together(&[
        json!({"type": "join_room", "roomId": "r", "ref": 1}),
        json!({"type": "typing_start", "roomId": "r", "ref": 2}),
        json!({"type": "leave_room", "roomId": "r", "ref": 3}),
        json!({"type": "join_room", "roomId": "r", "ref": 4}),
    ]);
    let (mut before, last) = ana.until(|message| message["ref"] == 4);
    before.push(last);
    let told: Vec<(&str, &Value)> =
        before.iter().map(|message| (message["type"].as_str().unwrap_or(""), &message["ref"])).collect();
    let (one, two, three, four) = (json!(1), json!(2), json!(3), json!(4));
    assert_eq!(
        told,
        [
            ("user_joined", &Value::Null),
            ("online_update", &Value::Null),
            ("ack", &one),
            ("ack", &two),
            ("ack", &three),
            ("user_joined", &Value::Null),
            ("online_update", &Value::Null),
            ("ack", &four),
        ]
    );
    let heard = fence("r", &mut ana, [&mut ben]).1;
    assert_eq!(types(&heard[0]), ["user_joined", "typing_start", "typing_stop", "user_left", "user_joined"]);
}

#[test]
fn what_waits_behind_a_join_is_answered_in_order_and_bounded() {
    let server = Server::start();
    let mut ana = Client::user(&server, "ana");
    let mut messages = vec![json!({"type": "join_room", "roomId": "r", "ref": 0})];
    messages
        .extend((1..=60).map(
            |number| json!({"type": "reaction", "roomId": "r", "messageId": number, "emoji": "x", "ref": number}),
        ));
    ana.send_together(&messages);
    let mut answers = vec![Value::Null; messages.len()];
    let mut reacted = Vec::new();
    while answers.iter().any(Value::is_null) {
        let message = ana.next();
        if let Some(number) = message["ref"].as_u64() {
            assert_eq!(answers[number as usize], Value::Null, "one answer each");
            answers[number as usize] = message;
        } else if message["type"] == "reaction" {
            reacted.push(message["messageId"].as_u64().unwrap_or(0));
        }
    }
    for (number, answer) in answers.iter().enumerate() {
        let refused = answer["type"] == "error" && answer["code"] == "overloaded";
        assert!(answer["type"] == "ack" || (refused && number > 16), "at least 16 wait: {answer}");
    }
    let taken: Vec<u64> = (1..=60).filter(|number| answers[*number as usize]["type"] == "ack").collect();
    assert_eq!(reacted, taken, "what was acknowledged happened, in order");
}

#[test]
fn leaving_at_once_leaves_nobody_behind() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::user(&server, "ana");
    for _ in 0..20 {
        ana.send_together(&[json!({"type": "join_room", "roomId": "r"}), json!({"type": "leave_room", "roomId": "r"})]);
        assert_eq!(ana.expect("user_joined")["userId"], "ana");
        ana.expect("online_update");
        ben.expect("user_joined");
        ben.expect("user_left");
    }
    assert_eq!(server.http().service("GET", "/api/chat/rooms/r/online", None).json()["online"], json!(["ben"]));
}

#[test]
fn seven_and_the_string_seven_are_one_user_in_the_form_first_seen() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut number = Client::connect(&server, &token(&json!({"userId": 7})));
    assert_eq!(number.connected["userId"], 7);
    number.join("r");
    assert_eq!(ben.expect("user_joined")["userId"], 7);
    let mut text = Client::connect(&server, &token(&json!({"userId": "7"})));
    text.join("r");
    text.send(json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x"}));
    // The string form is the same user, so ben hears of no second arrival, and of the reaction in the first form.
    assert_eq!(ben.expect("reaction")["userId"], 7);
    drop(number);
    assert_eq!(fence("r", &mut text, [&mut ben]).1, [Vec::<Value>::new()]);
    drop(text);
    assert_eq!(ben.expect("user_left")["userId"], 7);
}

#[test]
fn a_disconnect_stops_typing_before_the_user_leaves() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send(json!({"type": "typing_start", "roomId": "r"}));
    ben.expect("typing_start");
    drop(ana);
    assert_eq!(ben.expect("typing_stop")["userId"], "ana");
    assert_eq!(ben.expect("user_left")["userId"], "ana");
}
