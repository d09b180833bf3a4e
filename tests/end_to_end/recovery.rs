//! Coming back: what was missed, exactly once and in order, from memory and from the store; also over a restart.

use serde_json::{Value, json};

use crate::client::{Client, user_token};
use crate::server::{DEADLINE, Server, Signal, eventually};
use crate::store_folder::StoreFolder;

const MEMORY: &[(&str, &str)] = &[("CHAT_STORE", "memory")];

/// Where a client left off.
struct Left {
    seq: u64,
    epoch: String,
}

fn left(online: &Value) -> Left {
    Left { seq: online["seq"].as_u64().unwrap(), epoch: online["epoch"].as_str().unwrap().to_owned() }
}

fn post(server: &Server, room: &str, contents: std::ops::Range<u64>) {
    let mut http = server.http();
    for n in contents {
        http.post(room, &json!({"id": format!("m{n}"), "content": n}));
    }
}

/// Comes back to a room: whether it recovered, and what it was sent up to the `ack`.
fn come_back(client: &mut Client, room: &str, left: &Left) -> (Value, Vec<Value>) {
    let join = json!({"type": "join_room", "roomId": room, "since": left.seq, "epoch": left.epoch});
    let (events, ack) = client.request(join);
    assert_eq!(ack["type"], "ack", "{ack}");
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("user_joined"), &json!("online_update")));
    (events[1]["recovered"].clone(), events[2..].to_vec())
}

fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

#[test]
fn what_was_missed_follows_and_then_what_is_live() {
    for env in [MEMORY, &[("CHAT_STORE", "none")]] {
        let server = Server::start_with(env);
        let mut ana = Client::user(&server, "ana");
        let known = left(&ana.join("r"));
        post(&server, "r", 1..4);
        ana.close();
        post(&server, "r", 4..8);
        let mut ana = Client::user(&server, "ana");
        let (recovered, missed) = come_back(&mut ana, "r", &known);
        assert_eq!((recovered, seqs(&missed)), (json!(true), (1..8).collect()));
        assert_eq!(missed[6]["content"], 7);
        post(&server, "r", 8..9);
        assert_eq!(ana.expect("new_message")["seq"], 8);
        let known = Left { seq: 8, ..known };
        let (recovered, missed) = come_back(&mut ana, "r", &known);
        assert_eq!((recovered, missed.len()), (json!(true), 0));
    }
}

#[test]
fn what_cannot_be_told_is_said_and_not_guessed() {
    let server = Server::start_with(&[("CHAT_STORE", "memory"), ("CHAT_RECOVERY_EVENTS", "5")]);
    let mut ana = Client::user(&server, "ana");
    let known = left(&ana.join("r"));
    post(&server, "r", 1..8);
    let mut ben = Client::user(&server, "ben");
    for (seq, epoch, expected) in [
        (2, known.epoch.as_str(), Some(5)),
        (7, &known.epoch, Some(0)),
        (1, &known.epoch, None),
        (8, &known.epoch, None),
        (5, "another", None),
    ] {
        let (recovered, missed) = come_back(&mut ben, "r", &Left { seq, epoch: epoch.to_owned() });
        assert_eq!((recovered, missed.len()), (json!(expected.is_some()), expected.unwrap_or(0)), "{seq} {epoch}");
    }
    let (_, answer) = ben.request(json!({"type": "join_room", "roomId": "r", "since": -1}));
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("invalid_message")));
    let (events, _) = ben.request(json!({"type": "join_room", "roomId": "r", "since": 3}));
    assert_eq!(events[1]["recovered"], false, "without an epoch nobody knows what 3 is");
    let (events, _) = ben.request(json!({"type": "join_room", "roomId": "r", "since": null}));
    assert!(events[1].get("recovered").is_none(), "{}", events[1]);
}

#[test]
fn many_rooms_come_back_with_one_message() {
    let server = Server::start_with(MEMORY);
    let mut ana = Client::user(&server, "ana");
    let known: Vec<Left> = (0..20).map(|room| left(&ana.join(&format!("r{room}")))).collect();
    ana.close();
    (0..20).for_each(|room| post(&server, &format!("r{room}"), 1..4));
    let mut ana = Client::user(&server, "ana");
    let rooms: Vec<Value> = (known.iter().enumerate())
        .map(|(room, left)| json!({"roomId": format!("r{room}"), "since": left.seq, "epoch": left.epoch}))
        .collect();
    let (events, ack) = ana.request(json!({"type": "join_rooms", "rooms": rooms}));
    assert_eq!(ack["rooms"].as_array().unwrap().len(), 20);
    for room in 0..20 {
        let name = format!("r{room}");
        let told: Vec<&Value> = events.iter().filter(|event| event["roomId"] == *name).collect();
        let types: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["user_joined", "online_update", "new_message", "new_message", "new_message"]);
        let last: Vec<&Value> = told[2..].iter().map(|event| &event["seq"]).collect();
        assert_eq!(last, [1, 2, 3]);
    }
}

#[test]
fn a_restart_and_a_crash_lose_nothing() {
    let folder = StoreFolder::new();
    let database = folder.text("chat.db");
    let env = [("CHAT_STORE", database.as_str())];
    let mut server = Server::start_with(&env);
    let mut ana = Client::user(&server, "ana");
    let known = left(&ana.join("r"));
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        let first = 1 + round as u64 * 10;
        post(&server, "r", first..first + 10);
        server.signal(signal);
        server.wait_exit(DEADLINE);
        server = Server::start_with(&env);
        // What was answered before is the same again.
        let replay = server.http().service(
            "POST",
            "/api/chat/rooms/r/messages",
            Some(&json!({"id": format!("m{first}"), "content": first})),
        );
        assert_eq!((replay.status, replay.header("idempotency-replayed")), (201, Some("true")));
        assert_eq!(replay.json()["seq"], first);
        let mut ana = Client::user(&server, "ana");
        let (recovered, missed) = come_back(&mut ana, "r", &known);
        assert_eq!((recovered, seqs(&missed)), (json!(true), (1..first + 10).collect()));
    }
}

#[test]
fn a_room_that_has_left_memory_comes_back_with_its_position() {
    let server = Server::start_with(&[("CHAT_STORE", "memory"), ("CHAT_ROOM_LINGER_MS", "0")]);
    let mut ana = Client::user(&server, "ana");
    let known = left(&ana.join("r"));
    post(&server, "r", 1..4);
    ana.close();
    let mut ben = Client::user(&server, "ben");
    eventually("nobody is in the room", || {
        let list = server.http().service("GET", "/api/chat/rooms", None).json();
        list["rooms"].as_array()?.is_empty().then_some(())
    });
    let (recovered, missed) = come_back(&mut ben, "r", &known);
    assert_eq!((recovered, seqs(&missed)), (json!(true), vec![1, 2, 3]));
    assert_eq!(left(&ben.join("r")).epoch, known.epoch);
}

/// Ten times what may be unsent for a connection that is behind: it is sent as it reads, and nobody is closed for it.
#[test]
fn who_reads_slowly_what_it_missed_is_not_behind() {
    let server = Server::start_with(&[
        ("CHAT_STORE", "memory"),
        ("CHAT_OUTBOX_SOFT_BYTES", "16384"),
        ("CHAT_OUTBOX_HARD_BYTES", "65536"),
        ("CHAT_MESSAGE_BYTES_MAX", "16384"),
        ("CHAT_BODY_BYTES_MAX", "16384"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096"),
    ]);
    let mut ana = Client::user(&server, "ana");
    let known = left(&ana.join("r"));
    ana.close();
    let mut http = server.http();
    for n in 0..90 {
        http.post("r", &json!({"id": format!("m{n}"), "content": "x".repeat(10_000)}));
    }
    let mut ana = Client::connect(&server, &user_token("ana"));
    ana.send(json!({"type": "join_room", "roomId": "r", "since": known.seq, "epoch": known.epoch, "ref": 1}));
    // It does not read while the room goes on.
    for n in 90..95 {
        http.post("r", &json!({"id": format!("m{n}"), "content": "y"}));
    }
    ana.expect("user_joined");
    assert_eq!(ana.expect("online_update")["recovered"], true);
    let mut seq = 0;
    while seq < 95 {
        let event = ana.next();
        match event["type"].as_str().unwrap() {
            "new_message" => {
                seq += 1;
                assert_eq!(event["seq"], seq);
            }
            kind => assert_eq!(kind, "ack"),
        }
    }
}

#[test]
fn what_is_deleted_leaves_the_files_too() {
    let folder = StoreFolder::new();
    let database = folder.text("chat.db");
    let server = Server::start_with(&[("CHAT_STORE", database.as_str())]);
    let secret = "a-word-that-stands-nowhere-else";
    let mut http = server.http();
    http.post("r", &json!({"id": "m", "content": secret}));
    let deleted = http.service("DELETE", "/api/chat/rooms/r/messages/m", None);
    assert_eq!(deleted.status, 200);
    eventually("neither the database nor its log has the text", || {
        let files = ["", "-wal"].map(|end| std::fs::read(format!("{database}{end}")).unwrap_or_default());
        let has = |file: &Vec<u8>| file.windows(secret.len()).any(|window| window == secret.as_bytes());
        (!files.iter().any(has)).then_some(())
    });
}
