//! The mode `ask`: a real HTTP server says who may enter, well or badly.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::access::{May, tried};
use crate::client::{Client, service_token, user_token};
use crate::http_client::messages_path;
use crate::server::{Server, eventually, free_port, run, serve};

/// What the ERP does with a question.
#[derive(Clone)]
enum Conduct {
    /// The whole answer.
    Say(u16, String),
    /// Nothing, until it behaves otherwise.
    Hold,
    /// An answer for each user.
    Each(fn(&str) -> Value),
}

/// An ERP of its own, which notes what it was asked.
struct Erp {
    url: String,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    conduct: Conduct,
    /// The heads and bodies of questions.
    asked: Vec<(String, Value)>,
}

impl Erp {
    fn start(conduct: Conduct) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/may-enter", listener.local_addr().expect("an address"));
        let state = Arc::new((Mutex::new(State { conduct, asked: Vec::new() }), Condvar::new()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || while answer(&stream, &shared).is_some() {});
            }
        });
        Self { url, state }
    }

    fn saying(answer: &Value) -> Self {
        Self::start(Conduct::Say(200, answer.to_string()))
    }

    fn behave(&self, conduct: Conduct) {
        self.state.0.lock().expect("the state").conduct = conduct;
        self.state.1.notify_all();
    }

    fn say(&self, answer: &Value) {
        self.behave(Conduct::Say(200, answer.to_string()));
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.state.0.lock().expect("the state").asked.clone()
    }

    fn count(&self) -> usize {
        self.asked().len()
    }

    fn server(&self, more: &[(&str, &str)]) -> Server {
        let mut env = vec![("CHAT_ROOM_ACCESS", "lobby=open,*=ask"), ("CHAT_ACCESS_URL", &self.url)];
        env.push(("CHAT_STORE", "memory"));
        env.extend_from_slice(more);
        Server::start_with(&env)
    }
}

/// Answers one question; `None` once the connection has ended.
fn answer(mut stream: &TcpStream, (state, changed): &(Mutex<State>, Condvar)) -> Option<()> {
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>| {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        bytes.extend_from_slice(&buffer[..length]);
        Some(())
    };
    let head_bytes = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        read(&mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..head_bytes]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let end = head_bytes + length.unwrap_or(0_usize);
    while bytes.len() < end {
        read(&mut bytes)?;
    }
    let question: Value = serde_json::from_slice(&bytes[head_bytes..end]).expect("JSON");
    let mut state = state.lock().expect("the state");
    state.asked.push((String::from_utf8_lossy(&bytes[..head_bytes]).into_owned(), question.clone()));
    while matches!(state.conduct, Conduct::Hold) {
        state = changed.wait(state).expect("the state");
    }
    let (status, body) = match &state.conduct {
        Conduct::Say(status, body) => (*status, body.clone()),
        Conduct::Each(of) => (200, of(question["user"].as_str().expect("a user")).to_string()),
        Conduct::Hold => return None,
    };
    drop(state);
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok()
}

fn join(client: &mut Client, room: &str) -> Value {
    client.request(json!({"type": "join_room", "roomId": room})).1
}

#[test]
fn the_erp_says_who_may_enter() {
    let erp = Erp::start(Conduct::Each(|user| match user {
        "ana" => json!({"allow": true}),
        "ben" => json!({"allow": true, "role": "reader"}),
        _ => json!({"allow": false}),
    }));
    let server = erp.server(&[("CHAT_ACCESS_KEY", "the-key-of-the-erp"), ("CHAT_LOG_FORMAT", "json")]);
    for (user, may) in [("ana", May::Write), ("ben", May::Read), ("cem", May::Nothing)] {
        let before = erp.count();
        assert_eq!(tried(&server, &user_token(user), user, "r"), may, "{user}");
        assert_eq!(erp.count() - before, 1, "an answer is remembered");
    }
    let (head, question) = erp.asked().swap_remove(0);
    assert_eq!(question, json!({"user": "ana", "roomId": "r"}));
    assert!(head.starts_with("POST /may-enter HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: bearer the-key-of-the-erp\r\n"), "{head}");
    assert_eq!(tried(&server, &service_token(), "erp", "r"), May::Write);
    assert_eq!(tried(&server, &user_token("cem"), "cem", "lobby"), May::Write);
    assert_eq!(erp.count(), 3);
    // The log has the denials of both ways, and not the key.
    let denied = |detail: &str| {
        eventually(detail, || {
            let log = server.log();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
            lines.into_iter().find(|line| line["reason"] == "forbidden" && line["detail"] == detail)
        })
    };
    assert_eq!(denied("r")["user"], "ben");
    assert_eq!(denied("REST")["user"], "ben");
    assert!(!server.log().contains("the-key-of-the-erp"));
}

#[test]
fn an_answer_counts_for_its_time_also_for_those_inside() {
    let erp = Erp::saying(&json!({"allow": true, "ttlMs": 300}));
    let server = erp.server(&[]);
    let mut ben = Client::connect(&server, &service_token());
    ben.join("r");
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut tab = Client::in_room(&server, "ana", "r");
    eventually("it is asked again", || (erp.count() >= 2).then_some(()));
    // A failure leaves her inside.
    erp.behave(Conduct::Say(500, String::new()));
    let before = erp.count();
    eventually("it is tried again", || (erp.count() >= before + 2).then_some(()));
    erp.say(&json!({"allow": false, "ttlMs": 60_000}));
    for client in [&mut ana, &mut tab] {
        assert_eq!(client.wait_for("removed_from_room")["roomId"], "r");
        assert_eq!(join(client, "r")["code"], "forbidden");
    }
    ben.wait_for("user_left");
}

#[test]
fn an_answer_without_time_is_not_kept() {
    let erp = Erp::saying(&json!({"allow": true, "ttlMs": 0}));
    let server = erp.server(&[]);
    let (ana, path) = (user_token("ana"), messages_path("r"));
    for count in 1..=3 {
        assert_eq!(server.http().bearer(&ana, "GET", &path, None).status, 200);
        assert_eq!(erp.count(), count);
    }
    erp.say(&json!({"allow": false}));
    server.http().bearer(&ana, "GET", &path, None).assert_error(403, "forbidden");
}

#[test]
fn of_many_joins_at_once_one_question_is_asked_and_others_go_on() {
    let erp = Erp::start(Conduct::Hold);
    let server = erp.server(&[("CHAT_ACCESS_TIMEOUT_MS", "60000")]);
    let mut tabs: Vec<Client> = (0..20).map(|_| Client::user(&server, "ana")).collect();
    for tab in &mut tabs {
        tab.send(json!({"type": "join_room", "roomId": "r", "ref": 1}));
    }
    eventually("a question", || (erp.count() > 0).then_some(()));
    // Others are served meanwhile, in that room and in others.
    let mut erp_client = Client::connect(&server, &service_token());
    erp_client.join("r");
    let mut ben = Client::in_room(&server, "ben", "lobby");
    assert_eq!(ben.request(json!({"type": "send_message", "roomId": "lobby", "content": "x"})).1["type"], "ack");
    erp.say(&json!({"allow": true}));
    for tab in &mut tabs {
        assert_eq!(tab.until(|message| message["ref"] == 1).1["type"], "ack");
    }
    assert_eq!(erp.count(), 1);
}

#[test]
fn an_erp_that_fails_is_left_alone_for_a_while() {
    let garbage = Conduct::Say(200, "<html>".to_owned());
    for conduct in [garbage, Conduct::Say(503, "{}".to_owned()), Conduct::Say(200, " ".repeat(100_000)), Conduct::Hold]
    {
        let erp = Erp::start(conduct);
        let server = erp.server(&[("CHAT_ACCESS_TIMEOUT_MS", "200"), ("CHAT_ACCESS_RETRY_MS", "500")]);
        let mut ana = Client::user(&server, "ana");
        for _ in 0..5 {
            assert_eq!(join(&mut ana, "r")["code"], "unavailable");
        }
        assert_eq!(erp.count(), 5);
        server.http().bearer(&user_token("ana"), "GET", &messages_path("r"), None).assert_error(503, "unavailable");
        server.log_line(|line| line.contains("left alone"));
        erp.say(&json!({"allow": true}));
        eventually("it is tried again", || (join(&mut ana, "r")["type"] == "ack").then_some(()));
        assert!(erp.count() <= 7, "{} questions", erp.count());
    }
}

#[test]
fn whoever_comes_is_let_in_without_an_answer_if_that_is_wanted() {
    let gone = format!("http://127.0.0.1:{}/", free_port());
    let env = [("CHAT_ROOM_ACCESS", "ask"), ("CHAT_ACCESS_URL", &*gone), ("CHAT_STORE", "memory")];
    let server = Server::start_with(&env);
    assert_eq!(join(&mut Client::user(&server, "ana"), "r")["code"], "unavailable");
    let server = Server::start_with(&[&env[..], &[("CHAT_ACCESS_FALLBACK", "allow")]].concat());
    assert_eq!(tried(&server, &user_token("ana"), "ana", "r"), May::Write);
}

#[test]
fn more_questions_than_may_wait_are_refused() {
    let erp = Erp::start(Conduct::Hold);
    let server =
        erp.server(&[("CHAT_ACCESS_TIMEOUT_MS", "60000"), ("CHAT_ACCESS_QUESTIONS_MAX", "1"), ("CHAT_THREADS", "1")]);
    let mut ana = Client::user(&server, "ana");
    ana.send(json!({"type": "join_room", "roomId": "r", "ref": 1}));
    eventually("a question", || (erp.count() > 0).then_some(()));
    assert_eq!(join(&mut Client::user(&server, "ben"), "r")["code"], "overloaded");
    erp.say(&json!({"allow": true}));
    assert_eq!(ana.until(|message| message["ref"] == 1).1["type"], "ack");
}

#[test]
fn one_user_cannot_take_all_questions() {
    let erp = Erp::start(Conduct::Hold);
    let server = erp.server(&[
        ("CHAT_ACCESS_TIMEOUT_MS", "60000"),
        ("CHAT_ACCESS_QUESTIONS_MAX", "24"),
        ("CHAT_ROOMS_PER_CONNECTION_MAX", "2"),
        ("CHAT_THREADS", "1"),
    ]);
    let mut tabs: Vec<Client> = (0..5).map(|_| Client::user(&server, "ana")).collect();
    for (number, tab) in tabs.iter_mut().enumerate() {
        tab.send(json!({"type": "join_room", "roomId": format!("invented-{number}"), "ref": 1}));
        // In their order.
        tab.send(json!({"type": "ping", "ref": 2}));
        if number < 3 {
            tab.wait_for("pong");
        }
    }
    for tab in &mut tabs[3..] {
        assert_eq!(tab.until(|message| message["ref"] == 1).1["code"], "overloaded");
    }
    let mut ben = Client::user(&server, "ben");
    ben.send(json!({"type": "join_room", "roomId": "r", "ref": 1}));
    eventually("ben is asked about", || erp.asked().iter().any(|(_, asked)| asked["user"] == "ben").then_some(()));
    erp.say(&json!({"allow": true}));
    for client in tabs[..3].iter_mut().chain([&mut ben]) {
        assert_eq!(client.until(|message| message["ref"] == 1).1["type"], "ack");
    }
}

#[test]
fn it_has_to_be_said_whom_to_ask() {
    for (env, word) in [
        (vec![("CHAT_ROOM_ACCESS", "a=ask")], "CHAT_ACCESS_URL"),
        (vec![("CHAT_ACCESS_URL", "ftp://erp/may")], "CHAT_ACCESS_URL=ftp://erp/may"),
        (vec![("CHAT_ACCESS_FALLBACK", "maybe")], "CHAT_ACCESS_FALLBACK=maybe"),
    ] {
        let finished = run(serve(free_port(), &env));
        assert_eq!(finished.code, Some(2), "{env:?}");
        assert!(finished.stderr.join("\n").contains(word), "{:#?}", finished.stderr);
    }
}
