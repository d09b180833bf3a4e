//! Well-behaved clients beside an attack: a small room in which messages flow for as long as it lasts.
//!
//! Owns three members, of which one writes, and a backend that posts. Every message must arrive at every member, in order
//! and once, within the deadline of the sockets; the next is sent when the last one has arrived everywhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::client::{Client, unique};
use crate::server::Server;

/// Messages that flow at least, however short the attack.
const ROUNDS_MIN: u64 = 20;

/// Runs `attack` beside a live room and gives what it gives; fails if the room loses anything.
#[track_caller]
pub fn beside<T>(server: &Server, attack: impl FnOnce() -> T) -> T {
    let room = unique("live");
    let names = ["ana", "ben", "cem"].map(|name| format!("{room}-{name}"));
    let mut members = names.map(|name| Client::in_room(server, &name, &room));
    let [first, second, _] = &mut members;
    for (member, joins) in [(first, 2), (second, 1)] {
        (0..joins).for_each(|_| drop(member.expect("user_joined")));
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let flow = scope.spawn(|| flow(server, &room, members, &ended));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        ended.store(true, Ordering::Relaxed);
        let rounds = flow.join().expect("the well-behaved lose nothing");
        println!("{rounds} messages arrived beside the attack");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Lets messages flow, and one more once the attack has ended; gives how many.
fn flow(server: &Server, room: &str, mut members: [Client; 3], ended: &AtomicBool) -> u64 {
    let mut http = server.http();
    let mut seq = 0;
    loop {
        let is_last = ended.load(Ordering::Relaxed) && seq >= ROUNDS_MIN;
        seq += 1;
        if seq % 2 == 0 {
            members[0].send(json!({"type": "reaction", "roomId": room, "messageId": seq, "emoji": "+1"}));
        } else {
            assert_eq!(http.post(room, &json!({"id": seq, "content": "x"}))["seq"], seq);
        }
        for member in &mut members {
            let event = member.next();
            let number = event["id"].as_u64().or(event["messageId"].as_u64());
            assert_eq!((number, event["seq"].as_u64()), (Some(seq), Some(seq)), "{event}");
        }
        if is_last {
            assert_all_there(server, &mut http, room);
            return seq;
        }
    }
}

fn assert_all_there(server: &Server, http: &mut crate::http_client::Http, room: &str) {
    let online = http.service("GET", &format!("/api/chat/rooms/{room}/online"), None).json();
    assert_eq!(online["count"], 3, "{online}");
    assert_eq!(server.http().service("GET", "/readyz", None).status, 200);
    let users: Vec<&Value> = online["online"].as_array().expect("a list").iter().collect();
    assert!(users.iter().all(|user| user.as_str().is_some_and(|user| user.starts_with(room))), "{online}");
}
