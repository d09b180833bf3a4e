//! Typing: who holds it, what ends it, and how often it is passed on.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, fence, types, user_token};
use crate::server::Server;

fn typing(kind: &str) -> Value {
    json!({"type": kind, "roomId": "r"})
}

#[test]
fn ends_by_itself_with_one_stop() {
    let server = Server::start_with(&[("CHAT_TYPING_MS", "1500"), ("CHAT_TYPING_REPEAT_MS", "500")]);
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    let started = Instant::now();
    ana.send(typing("typing_start"));
    ben.expect("typing_start");
    assert_eq!(ben.expect("typing_stop")["userId"], "ana");
    assert!(started.elapsed() >= Duration::from_millis(1_200), "too early: {:?}", started.elapsed());
    // A stop after the end is nothing new.
    ana.send(typing("typing_stop"));
    assert_eq!(fence("r", &mut ana, [&mut ben]).1, [Vec::<Value>::new()]);
}

#[test]
fn a_repeat_extends_it() {
    let server = Server::start_with(&[("CHAT_TYPING_MS", "2000"), ("CHAT_TYPING_REPEAT_MS", "2000")]);
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    let mut last = Instant::now();
    for _ in 0..6 {
        last = Instant::now();
        ana.send(typing("typing_start"));
        thread::sleep(Duration::from_millis(500));
    }
    let (before, _) = ben.until(|message| message["type"] == "typing_stop");
    assert!(types(&before).iter().all(|kind| *kind == "typing_start"), "{before:?}");
    assert!(last.elapsed() >= Duration::from_millis(1_700), "counted from the last start: {:?}", last.elapsed());
}

#[test]
fn a_stop_from_any_connection_of_the_user_ends_it() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut tabs: Vec<Client> = (0..4).map(|_| Client::in_room(&server, "ana", "r")).collect();
    ben.expect("user_joined");
    for other in 1..4 {
        tabs[0].send(typing("typing_start"));
        ben.expect("typing_start");
        tabs[other].send(typing("typing_stop"));
        ben.expect("typing_stop");
    }
    assert_eq!(fence("r", &mut tabs[0], [&mut ben]).1, [Vec::<Value>::new()]);
}

#[test]
fn ends_with_the_holder_and_not_with_another_tab() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut first = Client::in_room(&server, "ana", "r");
    let mut second = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    // The second tab takes over; the repeat itself is not passed on.
    first.send(typing("typing_start"));
    ben.expect("typing_start");
    let (_, ack) = second.request(typing("typing_start"));
    assert_eq!(ack["type"], "ack");
    // The first one leaves: it holds nothing any more.
    let (_, ack) = first.request(json!({"type": "leave_room", "roomId": "r"}));
    assert_eq!(ack["type"], "ack");
    assert_eq!(fence("r", &mut second, [&mut ben]).1, [Vec::<Value>::new()]);
    // The holder closes, and the first tab comes back before: the user stays, typing ends.
    first.join("r");
    drop(second);
    assert_eq!(ben.expect("typing_stop")["userId"], "ana");
    assert_eq!(fence("r", &mut first, [&mut ben]).1, [Vec::<Value>::new()]);
}

#[test]
fn leave_of_the_holder_ends_it_before_the_user_leaves() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send_together(&[typing("typing_start"), json!({"type": "leave_room", "roomId": "r"})]);
    let (before, _) = ben.until(|message| message["type"] == "user_left");
    assert_eq!(types(&before), ["typing_start", "typing_stop"]);
}

#[test]
fn the_user_s_own_message_ends_it() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send(typing("typing_start"));
    ben.expect("typing_start");
    let path = "/api/chat/rooms/r/messages";
    let response = server.http().bearer(&user_token("ana"), "POST", path, Some(&json!({"content": "done"})));
    assert_eq!(response.status, 201, "{response:?}");
    let (mut before, message) = ben.until(|message| message["type"] == "new_message");
    assert_eq!(message["sender_user_id"], "ana");
    before.extend(fence("r", &mut ana, [&mut ben]).1.into_iter().flatten());
    assert_eq!(types(&before), ["typing_stop"], "exactly one stop");
}

#[test]
fn another_user_s_message_does_not_end_it() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send(typing("typing_start"));
    ben.expect("typing_start");
    server.http().post("r", &json!({"content": "x", "sender_user_id": "someone"}));
    ben.expect("new_message");
    assert_eq!(fence("r", &mut ana, [&mut ben]).1, [Vec::<Value>::new()]);
}

#[test]
fn repeats_are_passed_on_once_per_interval() {
    let server = Server::start_with(&[("CHAT_TYPING_MS", "120000"), ("CHAT_TYPING_REPEAT_MS", "60000")]);
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send_together(&vec![typing("typing_start"); 20]);
    let heard = fence("r", &mut ana, [&mut ben]).1;
    assert_eq!(types(&heard[0]), ["typing_start"]);
}

#[test]
fn repeats_are_passed_on_again_after_the_interval() {
    let server = Server::start_with(&[("CHAT_TYPING_MS", "5000"), ("CHAT_TYPING_REPEAT_MS", "500")]);
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    // A client that repeats while its user goes on typing.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_000) {
        assert_eq!(ana.request(typing("typing_start")).1["type"], "ack");
        thread::sleep(Duration::from_millis(50));
    }
    let elapsed = begun.elapsed();
    let heard = fence("r", &mut ana, [&mut ben]).1;
    let starts = heard[0].len();
    assert!(types(&heard[0]).iter().all(|kind| *kind == "typing_start"), "{heard:?}");
    assert!(starts >= 2, "repeated at all");
    assert!(starts as u128 <= elapsed.as_millis() / 500 + 2, "{starts} in {elapsed:?}");
}

#[test]
fn several_stops_are_heard_as_one() {
    let server = Server::start();
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ben.expect("user_joined");
    ana.send_together(&[typing("typing_start"), typing("typing_stop"), typing("typing_stop"), typing("typing_stop")]);
    let heard = fence("r", &mut ana, [&mut ben]).1;
    assert_eq!(types(&heard[0]), ["typing_start", "typing_stop"], "one stop ends it");
}

#[test]
fn a_large_room_hears_at_most_ten_typing_events_a_second() {
    let server = Server::start_with(&[("CHAT_PRESENCE_LIST_LIMIT", "5")]);
    let mut members: Vec<Client> = (0..40).map(|number| Client::in_room(&server, &format!("u{number}"), "r")).collect();
    let mut observer = Client::in_room(&server, "observer", "r");
    let begun = Instant::now();
    for member in &mut members {
        assert_eq!(member.request(typing("typing_start")).1["type"], "ack");
    }
    let (heard, _) = fence("r", &mut observer, []);
    let count = types(&heard).iter().filter(|kind| **kind == "typing_start").count();
    let allowed = 10 * (begun.elapsed().as_secs() as usize + 2);
    assert!(count >= 1 && count <= allowed, "{count} typing events in {:?}", begun.elapsed());
}
