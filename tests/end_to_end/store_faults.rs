//! A disk that fails under a running server: durable writes are refused and nothing else, and it heals by itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Client, now_s, token};
use crate::http_client::{Response, messages_path};
use crate::server::{BINARY, Server, Signal, bare, eventually, isolate, serve, with_defaults};
use crate::store_folder::{StoreFolder, exported, exported_by};

/// How long the end of a server may take whose disk hangs; it waits for itself no longer than ten seconds.
const HANGING_MAX: Duration = Duration::from_secs(60);
const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/end_to_end/faults/faults.c");

/// Says loudly that a test did not run; where nothing may be skipped, that is a failure.
fn skip(why: &str) {
    eprintln!("*** SKIPPED: {why}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "skipped: {why}");
}

fn store_state(server: &Server) -> (u16, String) {
    let response = server.http().call("GET", "/readyz", &[], None);
    (response.status, response.json()["store"].as_str().unwrap_or_default().to_owned())
}

/// Posts a message; whether it was acknowledged, or refused as the contract says.
fn post(server: &Server, room: &str, id: &str, bytes: usize) -> bool {
    let message = json!({"id": id, "content": "x".repeat(bytes)});
    let response = server.http().service("POST", &messages_path(room), Some(&message));
    if response.status != 201 {
        response.assert_error(503, "unavailable");
        assert!(response.header("retry-after").is_some(), "{response:?}");
    }
    response.status == 201
}

/// What passes no disk goes on.
fn assert_ephemeral_goes_on(server: &Server, member: &mut Client) {
    let response = server.http().service("POST", "/api/chat/rooms/r/events", Some(&json!({"type": "build_started"})));
    assert_eq!(response.status, 202, "{response:?}");
    member.wait_for("build_started");
    let mut other = Client::in_room(server, "bob", "r");
    other.send(json!({"type": "typing_start", "roomId": "r"}));
    member.wait_for("typing_start");
    assert_eq!(server.http().call("GET", "/healthz", &[], None).status, 200);
}

/// Each acknowledged message is in the store exactly once.
fn assert_kept(rooms: &BTreeMap<String, Vec<(u64, String)>>, acknowledged: &[(String, String)]) {
    for (room, id) in acknowledged {
        let count = rooms.get(room).map_or(0, |room| room.iter().filter(|(_, other)| other == id).count());
        assert_eq!(count, 1, "{room} {id}");
    }
}

/// A server whose store lies on a disk of 2 MiB that nobody else sees.
fn on_small_disk(folder: &StoreFolder) -> Option<Server> {
    let path = folder.text("disk");
    fs::create_dir(&path).expect("the folder can be written");
    let mount = "mount -t tmpfs -o size=2m tmpfs \"$0\"";
    let tried = Command::new("unshare").args(["--mount", "sh", "-c", mount, &path]).status();
    if !tried.is_ok_and(|status| status.success()) {
        return None;
    }
    let store = format!("{path}/chat.db");
    Some(Server::launch(|port| {
        let mut command = Command::new("unshare");
        isolate(&mut command);
        let script = format!("{mount} && exec \"$1\" serve");
        command.args(["--mount", "sh", "-c", &script, &path, BINARY]);
        with_defaults(&mut command, port, &[("CHAT_STORE", &store)]);
        command
    }))
}

#[test]
fn a_full_disk() {
    let folder = StoreFolder::new();
    let Some(server) = on_small_disk(&folder) else {
        return skip("a full disk needs the right to mount one");
    };
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut acknowledged = Vec::new();
    for number in 0..5 {
        let id = format!("before{number}");
        assert!(post(&server, "r", &id, 100));
        acknowledged.push(("r".to_owned(), id));
    }
    // The disk as the server's mount namespace has it.
    let filler = PathBuf::from(format!("/proc/{}/root{}/filler", server.pid(), folder.text("disk")));
    let mut file = File::create(&filler).expect("the disk can be written");
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0; 1]).is_ok() {}

    let rooms: Vec<String> = (0..1000).map(|number| format!("room{number}")).collect();
    let message = json!({"id": "burst", "content": "x".repeat(1_000)});
    let body = json!({"rooms": rooms, "message": message});
    let response = server.http().service("POST", "/api/chat/broadcast", Some(&body));
    assert_eq!(response.status, 200);
    let results = response.json()["results"].as_array().expect("a result for each room").clone();
    assert_eq!(results.len(), 1000);
    let (kept, refused): (Vec<&Value>, Vec<&Value>) = results.iter().partition(|result| result["seq"].is_u64());
    assert!(refused.len() > 500, "{} were refused", refused.len());
    assert!(refused.iter().all(|result| result["code"] == "unavailable"), "{refused:?}");
    acknowledged.extend(kept.iter().map(|result| (result["roomId"].as_str().unwrap().to_owned(), "burst".to_owned())));

    assert_eq!(store_state(&server), (200, "failing".to_owned()));
    assert!(!post(&server, "r", "while", 100));
    let (_, answer) = ana.request(json!({"type": "send_message", "roomId": "r", "content": "x"}));
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("unavailable")), "{answer}");
    assert_ephemeral_goes_on(&server, &mut ana);

    drop(file);
    fs::remove_file(&filler).expect("it is there");
    eventually("the store heals without traffic", || (store_state(&server).1 == "ok").then_some(()));
    let room = refused[0]["roomId"].as_str().unwrap();
    let again = server.http().post(room, &message);
    assert_eq!(again["seq"], 1, "what was refused had left nothing");
    acknowledged.push((room.to_owned(), "burst".to_owned()));
    assert!(post(&server, "r", "after", 100));
    acknowledged.push(("r".to_owned(), "after".to_owned()));

    let mut export = Command::new("nsenter");
    isolate(&mut export);
    export.args(["--target", &server.pid().to_string(), "--mount", BINARY, "export"]);
    let found = exported_by(export, &format!("{}/chat.db", folder.text("disk")));
    assert_kept(&found, &acknowledged);
    let count: usize = found.values().map(Vec::len).sum();
    assert_eq!(count, acknowledged.len(), "nothing but what was acknowledged");
}

/// The library that makes calls fail, if there is a compiler.
fn shim(folder: &StoreFolder) -> Option<String> {
    let library = folder.text("faults.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o", &library, SHIM]).status();
    built.is_ok_and(|status| status.success()).then_some(library)
}

/// A user whose tokens are revoked while the store fails.
struct Revoked {
    user: String,
    token: String,
    client: Client,
}

impl Revoked {
    fn new(server: &Server, number: usize) -> Self {
        let user = format!("cem{number}");
        let token = token(&json!({"userId": user, "iat": now_s() - 100, "exp": now_s() + 600}));
        let client = Client::connect(server, &token);
        Self { user, token, client }
    }

    fn revoke(&self, server: &Server) -> Response {
        let path = format!("/api/chat/users/{}/disconnect", self.user);
        server.http().service("POST", &path, Some(&json!({"revokeBefore": (now_s() - 50) * 1000})))
    }

    /// The connection is closed, and no thread takes the token.
    fn assert_out(&mut self, server: &Server) {
        assert_eq!(self.client.expect_close().0, 4500);
        let status = || server.http().bearer(&self.token, "GET", "/api/chat/rooms/r/online", None).status;
        assert!((0..8).all(|_| status() == 401));
    }
}

#[test]
fn a_disk_that_answers_with_errors() {
    let folder = StoreFolder::new();
    let Some(library) = shim(&folder) else {
        return skip("failing calls need a C compiler");
    };
    let (store, orders) = (folder.text("chat.db"), folder.text("orders"));
    let server = Server::launch(|port| {
        let env = [("CHAT_STORE", &*store), ("CHAT_READY_REQUIRES_STORE", "on")];
        let mut command = serve(port, &env);
        command.env("LD_PRELOAD", &library).env("FAULTS", &orders);
        command
    });
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut acknowledged = Vec::new();
    // EIO, EROFS (a disk that was remounted because of errors), ENOSPC, and EIO of the flush alone.
    for (round, order) in ["write 5", "write 30", "write 28", "sync 5"].iter().enumerate() {
        let before = format!("before{round}");
        assert!(post(&server, "r", &before, 100), "{order}");
        acknowledged.push(("r".to_owned(), before));
        fs::write(&orders, order).expect("the folder can be written");
        let refused = format!("refused{round}");
        assert!(!post(&server, "r", &refused, 100), "{order}");
        assert_eq!(store_state(&server), (503, "failing".to_owned()), "{order}");
        assert_ephemeral_goes_on(&server, &mut ana);
        let mut revoked = Revoked::new(&server, round);
        let refusal = revoked.revoke(&server);
        refusal.assert_error(503, "unavailable");
        assert!(refusal.json()["error"].as_str().is_some_and(|text| text.contains("try again")), "{refusal:?}");
        revoked.assert_out(&server);
        fs::remove_file(&orders).expect("it is there");
        eventually("the store heals without traffic", || {
            (store_state(&server) == (200, "ok".to_owned())).then_some(())
        });
        assert!(post(&server, "r", &refused, 100), "{order}: a retry");
        assert_eq!(revoked.revoke(&server).status, 200, "{order}: a retry");
        acknowledged.push(("r".to_owned(), refused));
    }
    server.log_line(|line| line.contains("the store takes writes again"));
    server.stop_in_order();
    let found = exported(&store);
    assert_kept(&found, &acknowledged);
    assert_eq!(found["r"].len(), acknowledged.len());
}

#[test]
fn a_disk_that_fails_or_hangs_at_the_end_does_not_hold_the_stop() {
    let folder = StoreFolder::new();
    let Some(library) = shim(&folder) else {
        return skip("failing calls need a C compiler");
    };
    let (store, orders) = (folder.text("chat.db"), folder.text("orders"));
    for (round, order) in ["write 5", "sync 5", "write -1"].iter().enumerate() {
        let mut server = Server::launch(|port| {
            let mut command = serve(port, &[("CHAT_STORE", &store)]);
            command.env("LD_PRELOAD", &library).env("FAULTS", &orders);
            command
        });
        let id = format!("kept{round}");
        assert!(post(&server, "r", &id, 100));
        fs::write(&orders, order).expect("the folder can be written");
        server.signal(Signal::TERM);
        assert_eq!(server.wait_exit(HANGING_MAX).code(), Some(0), "{order}");
        fs::remove_file(&orders).expect("it is there");
        // What was acknowledged stands in the log.
        assert_kept(&exported(&store), &[("r".to_owned(), id)]);
    }
    Server::start_with(&[("CHAT_STORE", &store)]).stop_in_order();
}

#[test]
fn a_read_only_disk_stops_the_start() {
    let folder = StoreFolder::new();
    let store = folder.text("disk/chat.db");
    fs::create_dir(folder.file("disk")).expect("the folder can be written");
    let server = Server::start_with(&[("CHAT_STORE", &store)]);
    assert!(post(&server, "r", "kept", 100));
    server.stop_in_order();
    let disk = folder.text("disk");
    let mount = "mount --bind -o ro \"$0\" \"$0\"";
    let tried = Command::new("unshare").args(["--mount", "sh", "-c", mount, &disk]).status();
    if !tried.is_ok_and(|status| status.success()) {
        return skip("a read-only disk needs the right to mount one");
    }
    let mut command = Command::new("unshare");
    isolate(&mut command);
    command.args(["--mount", "sh", "-c", &format!("{mount} && exec \"$1\" serve"), &disk, BINARY]);
    with_defaults(&mut command, crate::server::free_port(), &[("CHAT_STORE", &store)]);
    let finished = crate::server::run(command);
    assert_eq!(finished.code, Some(2), "{:#?}", finished.stderr);
    let line = finished.stderr.join("\n");
    assert!(line.contains("chat.db") && line.contains("cannot be written"), "{line}");
    let mut check = bare(&["check"]);
    with_defaults(&mut check, 1, &[("CHAT_STORE", &store)]);
    assert_eq!(crate::server::run(check).code, Some(0), "check opens nothing");
}
