//! Faults of the process: no more descriptors, and a thread that stands still.

use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::live_room::beside;
use crate::member::Member;
use crate::server::{BINARY, Server, eventually, isolate, with_defaults};
use crate::skip;
use crate::system::while_held;
use crate::world::{Before, await_online, open_files};

#[test]
#[ignore = "runs with the others"]
fn no_more_descriptors() {
    const FILES_MAX: usize = 200;
    let server = Server::launch(|port| {
        let mut command = Command::new("sh");
        isolate(&mut command);
        command.args(["-c", &format!("ulimit -n {FILES_MAX} && exec \"$0\" serve"), BINARY]);
        with_defaults(&mut command, port, &[("CHAT_HANDSHAKE_MS", "3000")]);
        command
    });
    let before = Before::of(&server);
    beside(&server, || {
        let crowd: Vec<TcpStream> = (0..2 * FILES_MAX).map(|_| server.socket()).collect();
        eventually("all descriptors are used", || (open_files(&server) >= FILES_MAX - 1).then_some(()));
        drop(crowd);
        // What waited in the backlog is taken and let go.
        assert_eq!(server.http().service("GET", "/healthz", None).status, 200);
    });
    before.assert_files_return(&server);
    let mut members: Vec<Member> =
        (0..20).map(|number| Member::join(server.socket(), &format!("u{number}"), "r")).collect();
    server.http().post("r", &json!({"content": "x"}));
    members.iter_mut().for_each(|member| _ = member.read_to(1));
}

/// The kernel's number of a thread of the server.
fn thread_of(server: &Server, name: &str) -> i32 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the process runs");
    let mut numbers = tasks.map(|task| task.expect("a thread").path());
    let path = numbers.find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let path = path.unwrap_or_else(|| panic!("no thread is called {name}"));
    path.file_name().and_then(|number| number.to_str()).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
#[ignore = "needs to trace a process"]
fn a_thread_that_stands_still_while_most_leave() {
    const ROOMS: usize = 8;
    const STALL: Duration = Duration::from_secs(5);
    let server = Server::start();
    let before = Before::of(&server);
    let join = |number: usize| Member::join(server.socket(), &format!("u{number}"), &format!("room{}", number % ROOMS));
    let mut members: Vec<Member> = (0..1_200).map(join).collect();
    // Every fourth of each room stays.
    let mut stay = Vec::new();
    let mut leave = Vec::new();
    for (number, member) in members.drain(..).enumerate() {
        if (number / ROOMS).is_multiple_of(4) { stay.push(member) } else { leave.push(member) }
    }
    let held = thread::scope(|scope| {
        let posters: Vec<_> = (0..ROOMS)
            .map(|room| {
                let mut http = server.http();
                scope.spawn(move || {
                    (0..20).for_each(|number| {
                        http.post(&format!("room{room}"), &json!({"id": number, "content": "x"}));
                    })
                })
            })
            .collect();
        let held = while_held(thread_of(&server, "shard-1"), || {
            drop(leave);
            thread::sleep(STALL);
        });
        posters.into_iter().for_each(|poster| poster.join().expect("every message is taken once the thread goes on"));
        held
    });
    if held.is_none() {
        return skip("a thread of another process can be held by root only");
    }
    let mut http = server.http();
    for room in 0..ROOMS {
        let late =
            await_online(&mut http, &format!("room{room}"), stay.len() as u64 / ROOMS as u64, Duration::from_secs(5));
        println!("room{room}: presence is right {late:?} after the stall");
    }
    // Nobody who stayed was taken for silent, nor lost a message.
    stay.iter_mut().for_each(|member| _ = member.read_to(20));
    drop(stay);
    for room in 0..ROOMS {
        await_online(&mut http, &format!("room{room}"), 0, Duration::from_secs(5));
    }
    before.assert_returned(
        &server,
        &mut http,
        "room0",
        &(0..1_200).map(|number| format!("u{number}")).collect::<Vec<_>>(),
    );
}
