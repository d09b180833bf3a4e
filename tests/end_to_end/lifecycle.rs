//! Stopping: what is under way is answered, everybody is told, and the process ends with 0.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, types};
use crate::http_client::{Http, request};
use crate::server::{API_KEY, DEADLINE, Server, Signal, eventually};

/// Sends the signal and waits until it shows: `/readyz` says so while the listeners are still open.
fn begin_to_drain(server: &Server, signal: Signal) {
    server.signal(signal);
    eventually("/readyz answers 503", || (server.http().call("GET", "/readyz", &[], None).status == 503).then_some(()));
}

#[test]
fn clients_are_told_and_closed_with_1001() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start_with(&[("CHAT_DRAIN_WINDOW_MS", "500")]);
        let mut clients: Vec<Client> =
            (0..10).map(|number| Client::in_room(&server, &format!("u{number}"), "r")).collect();
        server.signal(signal);
        for client in &mut clients {
            let (before, (code, _)) = client.messages_until_close();
            assert_eq!(code, 1001);
            let kinds = types(&before);
            assert_eq!(kinds.last(), Some(&"draining"), "{kinds:?}");
            assert_eq!(kinds.iter().filter(|kind| **kind == "draining").count(), 1);
            assert!(before.last().is_some_and(|message| message["reconnectInMs"].is_u64()), "{before:?}");
            assert!(!kinds.contains(&"user_left"), "no presence storm: {kinds:?}");
        }
        drop(clients);
        assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    }
}

#[test]
fn a_hangup_has_files_read_again_and_ends_nothing() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for _ in 0..3 {
        server.signal(Signal::HUP);
    }
    server.log_line(|line| line.contains("reading again what can be"));
    server.http().post("r", &json!({"content": "still there"}));
    assert_eq!(ana.wait_for("new_message")["content"], "still there");
    drop(ana);
    server.stop_in_order();
}

#[test]
fn all_are_closed_within_the_window() {
    let mut server = Server::start_with(&[("CHAT_DRAIN_WINDOW_MS", "1000"), ("CHAT_CLOSE_MS", "500")]);
    // They neither read nor close, so only the window ends them.
    let _clients: Vec<Client> = (0..20).map(|number| Client::user(&server, &format!("u{number}"))).collect();
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn an_idle_server_stops_at_once() {
    let server = Server::start();
    let begun = Instant::now();
    server.stop_in_order();
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody is there to wait for: {:?}", begun.elapsed());
}

#[test]
fn while_it_says_so_it_still_serves() {
    let mut server = Server::start_with(&[
        ("CHAT_DRAIN_DELAY_MS", "3000"),
        ("CHAT_CLOSE_MS", "500"),
        ("CHAT_DRAIN_WINDOW_MS", "500"),
    ]);
    let mut ana = Client::in_room(&server, "ana", "r");
    begin_to_drain(&server, Signal::TERM);
    assert_eq!(server.http().call("GET", "/healthz", &[], None).status, 200, "alive, though not ready");
    server.http().post("r", &json!({"content": "late"}));
    assert_eq!(ana.wait_for("new_message")["content"], "late");
    let _late = Client::user(&server, "late");
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn a_post_under_way_is_answered() {
    let mut server = Server::start_with(&[
        ("CHAT_DRAIN_DELAY_MS", "2000"),
        ("CHAT_CLOSE_MS", "500"),
        ("CHAT_DRAIN_WINDOW_MS", "1000"),
    ]);
    let mut ana = Client::in_room(&server, "ana", "r");
    let post = request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(r#"{"content":"half"}"#));
    let (half, rest) = post.split_at(post.len() - 4);
    let mut http = server.http();
    http.send(half);
    begin_to_drain(&server, Signal::TERM);
    http.send(rest);
    assert_eq!(http.response().status, 201);
    assert_eq!(ana.wait_for("new_message")["content"], "half");
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}

#[test]
fn what_was_answered_was_delivered() {
    let mut server = Server::start_with(&[("CHAT_DRAIN_WINDOW_MS", "500")]);
    let mut ana = Client::in_room(&server, "ana", "r");
    let taken = thread::scope(|scope| {
        let poster = scope.spawn(|| post_until_refused(server.http()));
        let first = ana.expect("new_message");
        assert_eq!(first["seq"], 1);
        server.signal(Signal::TERM);
        poster.join().expect("the poster does not panic")
    });
    let (messages, (code, _)) = ana.messages_until_close();
    assert_eq!(code, 1001);
    let delivered = messages.iter().filter(|message| message["type"] == "new_message").count() as u64 + 1;
    assert!(delivered >= taken, "{taken} were answered, {delivered} arrived");
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
}

/// How many posts were answered 201 before the server stopped taking them.
fn post_until_refused(mut http: Http) -> u64 {
    let post = request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(r#"{"content":"x"}"#));
    let mut taken = 0;
    while http.try_send(&post).is_ok() {
        match http.try_response() {
            Some(response) if response.status == 201 => taken += 1,
            Some(response) => {
                assert_eq!(response.status, 503, "{response:?}");
                break;
            }
            None => break,
        }
    }
    taken
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start_with(&[("CHAT_DRAIN_DELAY_MS", "60000"), ("CHAT_DRAIN_WINDOW_MS", "60000")]);
    let _ana = Client::in_room(&server, "ana", "r");
    begin_to_drain(&server, Signal::TERM);
    server.signal(Signal::TERM);
    server.wait_exit(DEADLINE);
}

#[test]
fn a_typing_user_is_not_told_to_stop_by_a_shutdown() {
    let server = Server::start_with(&[("CHAT_DRAIN_WINDOW_MS", "500")]);
    let mut ben = Client::in_room(&server, "ben", "r");
    let mut ana = Client::in_room(&server, "ana", "r");
    ana.send(json!({"type": "typing_start", "roomId": "r"}));
    ben.wait_for("typing_start");
    server.signal(Signal::TERM);
    let (before, _): (Vec<Value>, _) = ben.messages_until_close();
    assert_eq!(types(&before), ["draining"], "presence and typing are silent");
}

#[test]
fn after_a_kill_the_port_is_free_again() {
    let server = Server::start();
    let port = server.port();
    let mut clients: Vec<Client> = (0..10).map(|number| Client::in_room(&server, &format!("u{number}"), "r")).collect();
    let http = server.http();
    thread::scope(|scope| {
        let poster = scope.spawn(|| {
            let mut http = http;
            let post =
                request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(r#"{"content":"x"}"#));
            while http.try_send(&post).is_ok() && http.try_response().is_some() {}
        });
        clients[9].wait_for("new_message");
        // Killed under load, its connections still in the kernel.
        drop(server);
        poster.join().expect("the poster does not panic");
    });
    let server = Server::start_on(port, &[]);
    let mut ana = Client::in_room(&server, "ana", "r");
    server.http().post("r", &json!({"content": "back"}));
    assert_eq!(ana.wait_for("new_message")["seq"], 1);
}

#[test]
fn start_and_stop_are_logged_once_each() {
    let mut server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for _ in 0..50 {
        crate::client::fence("r", &mut ana, []);
    }
    drop(ana);
    server.signal(Signal::TERM);
    server.wait_exit(DEADLINE);
    // The output is read by a thread of its own, up to its end.
    let log = eventually("a line at start and at stop", || Some(server.log()).filter(|log| log.lines().count() >= 2));
    let lines = log.lines().filter(|line| !line.is_empty()).count();
    assert!(lines < 30, "none per message: {log}");
    // Not a terminal, so each line is JSON.
    for line in log.lines().filter(|line| !line.is_empty()) {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}
