//! The store's file: where it is made, what refuses to start on it, and copies of it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::client::{Client, unique};
use crate::http_client::messages_path;
use crate::server::{Finished, SECRET, Server, bare, free_port, run, serve, with_defaults};
use crate::store_folder::{StoreFolder, exported};

fn start(store: &str) -> Server {
    Server::start_with(&[("CHAT_STORE", store)])
}

fn refused(store: &str) -> String {
    let finished = run(serve(free_port(), &[("CHAT_STORE", store)]));
    assert_eq!(finished.code, Some(2), "{:#?}", finished.stderr);
    one_line(&finished)
}

fn one_line(finished: &Finished) -> String {
    let lines: Vec<&String> = finished.stderr.iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines[0].clone()
}

/// A store with some messages that no server uses.
fn filled(folder: &StoreFolder) -> String {
    let store = folder.text("chat.db");
    let server = start(&store);
    let mut http = server.http();
    for number in 0..200 {
        http.post(&format!("r{}", number % 7), &json!({"id": format!("m{number}"), "content": "x".repeat(500)}));
    }
    server.stop_in_order();
    assert!(!folder.file("chat.db-wal").exists(), "a stop in order leaves no log");
    store
}

#[test]
fn by_default_it_lies_in_the_working_directory() {
    let folder = StoreFolder::new();
    let server = Server::launch(|port| {
        let mut command = bare(&["serve"]);
        with_defaults(&mut command, port, &[]);
        command.env_remove("CHAT_STORE").current_dir(folder.path());
        command
    });
    let response = server.http().call("GET", "/readyz", &[], None);
    assert_eq!(response.json(), json!({"status": "ready", "store": "ok"}));
    assert!(folder.file("data/chat.db").is_file());
    server.stop_in_order();
    let mut check = bare(&["check"]);
    let elsewhere = StoreFolder::new();
    check.env("JWT_SECRET", SECRET).current_dir(elsewhere.path());
    let finished = run(check);
    assert!(finished.stdout.iter().any(|line| line.contains("data/chat.db")), "{:#?}", finished.stdout);
    assert!(!elsewhere.file("data").exists(), "check opens nothing");
}

#[test]
fn messages_outlive_the_process() {
    let folder = StoreFolder::new();
    let store = filled(&folder);
    let server = start(&store);
    let again = server.http().post("r0", &json!({"id": "m0", "content": "x".repeat(500)}));
    assert_eq!(again["seq"], 1);
    let next = server.http().post("r0", &json!({"id": "next", "content": "x"}));
    assert_eq!(next["seq"], 30);
    server.stop_in_order();
    assert_eq!(exported(&store)["r0"].len(), 30);
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start() {
    let folder = StoreFolder::new();
    let store = filled(&folder);
    let sound = fs::read(&store).expect("the store can be read");
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        fs::write(&store, &bytes).expect("the store can be written");
        let line = refused(&store);
        assert_eq!(fs::read(&store).expect("it is there"), bytes, "it is left as it was");
        assert!(line.contains("chat.db"), "{line}");
        line
    };
    for (what, change, words) in [
        (
            "cut",
            Box::new(|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2)) as Box<dyn Fn(&mut Vec<u8>)>,
            "damaged",
        ),
        ("flipped", Box::new(|bytes| bytes[3] ^= 4), "damaged"),
        ("flipped within", Box::new(|bytes| bytes[100] ^= 0xff), "damaged"),
        ("text", Box::new(|bytes| *bytes = b"These are my notes.\n".repeat(100)), "no database"),
        ("newer", Box::new(|bytes| bytes[60..64].copy_from_slice(&99_u32.to_be_bytes())), "version 99"),
    ] {
        let line = damaged(&*change);
        assert!(line.contains(words), "{what}: {line}");
        assert!(line.contains("backup") || line.contains("CHAT_STORE"), "it says what to do: {line}");
    }
    fs::write(&store, &sound).expect("the store can be written");
    start(&store).stop_in_order();
}

#[test]
fn only_one_process_has_it() {
    let folder = StoreFolder::new();
    let store = folder.text("chat.db");
    let server = start(&store);
    let line = refused(&store);
    assert!(line.contains("another process") && line.contains("CHAT_STORE"), "{line}");
    let lines = folder.text("lines");
    fs::write(&lines, "{\"roomId\":\"r\",\"id\":1}\n").expect("a file can be written");
    let mut import = bare(&["import", &lines]);
    import.env("CHAT_STORE", &store);
    let finished = run(import);
    assert_eq!(finished.code, Some(2));
    assert!(one_line(&finished).contains("another process"), "{:#?}", finished.stderr);
    assert_eq!(server.http().post("r", &json!({"content": "still served"}))["seq"], 1);
}

#[test]
fn a_backup_while_it_is_written_has_what_was_acknowledged_before() {
    let folder = StoreFolder::new();
    let store = folder.text("chat.db");
    let server = start(&store);
    let epoch = |server: &Server| Client::user(server, "ana").join("r")["epoch"].clone();
    let (first_epoch, is_over) = (epoch(&server), AtomicBool::new(false));
    let post =
        |number: u32| server.http().post("r", &json!({"id": format!("m{number}"), "content": "x".repeat(2_000)}));
    (0..50).for_each(|number| drop(post(number)));
    thread::scope(|scope| {
        let posts = scope.spawn(|| {
            let mut number = 50;
            while !is_over.load(Ordering::Relaxed) {
                post(number);
                number += 1;
            }
            number
        });
        for copy in ["b1.db", "b2.db", "b3.db"] {
            let mut backup = bare(&["backup", &folder.text(copy)]);
            backup.env("CHAT_STORE", &store);
            let finished = run(backup);
            assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(posts.join().expect("all posts were taken") > 50);
    });
    server.stop_in_order();
    for copy in ["b1.db", "b2.db", "b3.db"] {
        let messages = exported(&folder.text(copy)).remove("r").unwrap_or_default();
        assert!(messages.len() >= 50, "{} messages", messages.len());
        for (seq, id) in messages {
            assert_eq!(id, format!("m{}", seq - 1));
        }
    }
    let restored = start(&folder.text("b1.db"));
    assert_ne!(epoch(&restored), first_epoch);
    // A retry of what it has is still told.
    let response =
        restored.http().service("POST", &messages_path("r"), Some(&json!({"id": "m7", "content": "x".repeat(2_000)})));
    assert_eq!(response.header("idempotency-replayed"), Some("true"), "{response:?}");
    restored.stop_in_order();
}

#[test]
fn an_export_is_imported_into_a_server_of_its_own() {
    let folder = StoreFolder::new();
    let store = filled(&folder);
    let lines = folder.text("lines");
    let command = |arguments: &[&str], store: &str| {
        let mut command = bare(arguments);
        command.env("CHAT_STORE", store);
        let finished = run(command);
        assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
        finished.stdout.join("\n")
    };
    command(&["export", &lines], &store);
    let copy = folder.text("copy.db");
    assert!(command(&["import", &lines], &copy).starts_with("200 lines kept, 0 "));
    assert!(command(&["import", &lines], &copy).starts_with("0 lines kept, 200 "));
    let server = start(&copy);
    let name = unique("new");
    assert_eq!(server.http().post("r0", &json!({"id": name, "content": "x"}))["seq"], 30);
    server.stop_in_order();
    let (old, new) = (exported(&store), exported(&copy));
    assert_eq!(old["r1"], new["r1"]);
    assert_eq!(new["r0"].last(), Some(&(30, name)));
}
