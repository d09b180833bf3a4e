//! A wall clock that jumps by an hour, and back by two.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tungstenite::Message;

use crate::client::{Client, now_ms, now_s, token};
use crate::live_room::beside;
use crate::member::Member;
use crate::server::{Server, eventually, serve};
use crate::skip;
use crate::world::{Before, await_online};

const HOUR_S: i64 = 3600;
const HEARTBEAT: Duration = Duration::from_millis(2500);

/// Reads until so many pings of the server have come, and been answered.
fn live_through(client: &mut Client, pings: usize) {
    let mut count = 0;
    while count < pings {
        match client.next_message() {
            Message::Ping(_) => count += 1,
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

#[test]
#[ignore = "needs a C compiler"]
fn an_hour_forward_and_two_back() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the target directory can be written");
    let (library, offset) = (folder.join("clock.so"), folder.join("offset"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    if !built.is_ok_and(|status| status.success()) {
        return skip("a clock that jumps needs a C compiler");
    }
    let jump = |seconds: i64| {
        // Never half of a number.
        fs::write(folder.join("next"), seconds.to_string()).expect("the folder can be written");
        fs::rename(folder.join("next"), &offset).expect("the folder can be written");
    };
    let server = Server::launch(|port| {
        let mut command =
            serve(port, &[("CHAT_HEARTBEAT_MS", "2500"), ("CHAT_TYPING_MS", "2000"), ("CHAT_STORE", "memory")]);
        command.env("LD_PRELOAD", &library).env("CLOCK_OFFSET", &offset);
        command
    });
    let before = Before::of(&server);
    let mut http = server.http();
    let day = |user: &str| token(&json!({"userId": user, "exp": now_s() + 86_400}));
    let mut ana = Client::connect(&server, &day("ana"));
    let mut ben = Client::connect(&server, &day("ben"));
    ana.join("r");
    ben.join("r");
    let mut member = Member::join(server.socket(), "cem", "clock");

    let mut posted = 0;
    for at in [0, HOUR_S, -HOUR_S, 0] {
        let mut brief = (at == HOUR_S).then(|| {
            let token = token(&json!({"userId": "brief", "exp": now_s() + 1800}));
            let mut brief = Client::connect(&server, &token);
            brief.join("brief");
            brief
        });
        jump(at);
        posted += 1;
        let answer = http.post("clock", &json!({"id": posted, "content": "x"}));
        let shift_ms = answer["timestamp"].as_i64().expect("a time") - i64::try_from(now_ms()).expect("a time");
        assert!((shift_ms - at * 1000).abs() < 10_000, "the clock did not jump: {shift_ms} ms for {at} s");
        assert_eq!(answer["seq"], posted, "the sequence knows no clock");
        // A retry is one, whatever the time is.
        let again = http.post("clock", &json!({"id": posted, "content": "x"}));
        assert_eq!((&again["seq"], &again["timestamp"]), (&answer["seq"], &answer["timestamp"]));
        member.read_to(posted);
        if let Some(brief) = &mut brief {
            let (code, _) = brief.expect_close();
            assert_eq!(code, 4001, "a token that has expired by this clock");
            await_online(&mut http, "brief", 0, HEARTBEAT);
        }
        // Nobody else is judged by it: deadlines follow another clock.
        thread::scope(|scope| {
            for client in [&mut ana, &mut ben, &mut member.client] {
                scope.spawn(|| live_through(client, 2));
            }
        });
        ana.send(json!({"type": "typing_start", "roomId": "r"}));
        ben.wait_for("typing_start");
        ben.wait_for("typing_stop");
        assert_eq!(ana.request(json!({"type": "ping"})).1["type"], "pong");
        assert_eq!(crate::world::online(&mut http, "r"), 2);
    }
    beside(&server, || [1800, -HOUR_S, 0].map(jump));
    drop((ana, ben, member));
    let users = ["ana", "ben", "cem", "brief"].map(str::to_owned);
    before.assert_returned(&server, &mut http, "r", &users);
    eventually("the folder goes", || fs::remove_dir_all(&folder).ok());
}
