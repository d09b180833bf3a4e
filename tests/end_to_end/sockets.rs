//! What real sockets do: close in the middle, stop reading, run out of descriptors, stand still.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Client, RawClient, masked_frame, unique, upgrade_request, user_token};
use crate::http_client::{Http, request};
use crate::outbox::narrow_socket;
use crate::server::{
    API_KEY, BINARY, DEADLINE, Server, Signal, bare, eventually, isolate, prepare, serve, with_defaults,
};
use crate::store_folder::StoreFolder;

#[test]
fn a_client_that_sends_and_closes_at_once_is_heard_and_gone() {
    let server = Server::start();
    let mut watcher = Client::in_room(&server, "watcher", "r");
    for number in 0..50 {
        let user = format!("u{number}");
        let mut bytes = upgrade_request(&format!("/ws?token={}", user_token(&user)), &[]);
        bytes.extend(masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
        bytes.extend(masked_frame(0x81, br#"{"type":"reaction","roomId":"r","messageId":"m","emoji":"x"}"#));
        let mut stream = server.socket();
        stream.write_all(&bytes).expect("the server reads");
        // Data and the end of the stream arrive together.
        let mut http = Http::over(stream);
        http.finish_sending();
        for kind in ["user_joined", "reaction", "user_left"] {
            assert_eq!(watcher.expect(kind)["userId"], user);
        }
    }
    let gone = Instant::now();
    eventually("every slot is free", || {
        let online = server.http().service("GET", "/api/chat/rooms/r/online", None).json();
        (online["count"] == 1).then_some(())
    });
    assert!(gone.elapsed() < Duration::from_secs(2), "{:?}", gone.elapsed());
}

#[test]
fn a_client_that_resets_is_gone_at_once() {
    let server = Server::start();
    let mut watcher = Client::in_room(&server, "watcher", "r");
    for number in 0..20 {
        let mut client = Client::in_room(&server, &format!("u{number}"), "r");
        watcher.expect("user_joined");
        socket2::SockRef::from(&*client.raw()).set_linger(Some(Duration::ZERO)).expect("linger can be set");
        drop(client);
        watcher.expect("user_left");
    }
}

#[test]
fn a_post_is_answered_after_a_half_close() {
    let server = Server::start();
    let mut ana = Client::in_room(&server, "ana", "r");
    for number in 0..20 {
        let mut http = server.http();
        let body = json!({"content": number}).to_string();
        http.send(&request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(&body)));
        http.finish_sending();
        assert_eq!(http.response().status, 201);
        assert!(http.closes());
        assert_eq!(ana.expect("new_message")["content"], number);
    }
    // The same with many under way.
    let mut http = server.http();
    let one = request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(r#"{"content":"x"}"#));
    http.send(&one.repeat(30));
    http.finish_sending();
    for _ in 0..30 {
        assert_eq!(http.response().status, 201);
    }
    assert!(http.closes());
}

#[test]
fn a_request_cut_off_by_a_half_close_is_dropped() {
    let server = Server::start();
    let mut http = server.http();
    let one = request("POST", "/api/chat/rooms/r/messages", &[("X-API-Key", API_KEY)], Some(r#"{"content":"x"}"#));
    http.send(&one[..one.len() - 1]);
    http.finish_sending();
    if let Some(response) = http.try_response() {
        assert_eq!(response.status, 400);
    }
    assert_eq!(server.http().post("r", &json!({"content": "y"}))["seq"], 1);
}

#[test]
fn out_of_descriptors_it_keeps_serving_and_recovers() {
    let server = Server::launch(|port| {
        let mut command = Command::new("sh");
        isolate(&mut command);
        command.args(["-c", "ulimit -n 220; exec \"$0\" serve", BINARY]);
        with_defaults(&mut command, port, &[("CHAT_HANDSHAKE_MS", "60000"), ("CHAT_THREADS", "2")]);
        command
    });
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut http = server.http();
    http.post("r", &json!({"content": "before"}));
    assert_eq!(ana.wait_for("new_message")["content"], "before");
    // More than there are descriptors: the rest stays in the listeners' queues.
    let idle: Vec<TcpStream> = (0..300).map(|_| server.socket()).collect();
    let mut waiting = asked_from_the_queue(&server);
    for number in 0..20 {
        http.post("r", &json!({"content": number}));
        assert_eq!(ana.wait_for("new_message")["content"], number);
        assert_eq!(ana.request(json!({"type": "ping"})).1["type"], "pong");
    }
    // They close, nothing new arrives, and who waited in the queue is served.
    drop(idle);
    assert_eq!(waiting.response().status, 200);
    let mut ben = Client::in_room(&server, "ben", "r");
    ben.expect_none();
}

/// A request sent at once on a connection that may wait in the queue of a listener.
fn asked_from_the_queue(server: &Server) -> Http {
    let stream = TcpStream::connect(server.address()).expect("the queue has room");
    prepare(&stream);
    let mut http = Http::over(stream);
    http.send(&request("GET", "/healthz", &[], None));
    http
}

#[test]
fn a_server_that_stood_still_closes_nobody() {
    let server = Server::start_with(&[("CHAT_HEARTBEAT_MS", "1000")]);
    let mut clients: Vec<Client> = (0..20).map(|number| Client::in_room(&server, &format!("u{number}"), "r")).collect();
    server.signal(Signal::STOP);
    // Several heartbeats long.
    thread::sleep(Duration::from_millis(3_500));
    server.signal(Signal::CONT);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(3_500) {
        for client in &mut clients {
            let (before, pong) = client.request(json!({"type": "ping"}));
            assert_eq!(pong["type"], "pong");
            assert!(before.iter().all(|message| message["type"] == "user_joined"), "{before:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_full_pipe_as_output_blocks_nothing() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let capacity = rustix::pipe::fcntl_getpipe_size(&writer).expect("a pipe has a size");
    writer.write_all(&vec![b'\n'; capacity]).expect("exactly full");
    let mut server = Server::launch(|port| {
        let mut command = serve(port, &[("CHAT_DRAIN_WINDOW_MS", "500")]);
        command.stdout(writer.try_clone().expect("a clone")).stderr(writer.try_clone().expect("a clone"));
        command
    });
    let mut ana = Client::in_room(&server, "ana", "r");
    for _ in 0..200 {
        let mut refused = Client::dial(server.socket(), "/ws?token=bad", &[]).expect("served");
        assert_eq!(refused.expect_close().0, 1008);
        let mut raw = RawClient::connect(&server, "raw");
        raw.write(&[0xff, 0xff]);
        raw.shutdown();
    }
    server.http().post("r", &json!({"content": "x"}));
    ana.expect("new_message");
    server.signal(Signal::TERM);
    assert_eq!(ana.expect_close().0, 1001);
    drop(ana);
    assert_eq!(server.wait_exit(DEADLINE).code(), Some(0));
    drop(reader);
}

#[test]
fn a_reader_of_the_log_that_goes_away_ends_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let server = Server::launch(|port| {
        let mut command = serve(port, &[]);
        command.stdout(writer.try_clone().expect("a clone")).stderr(writer.try_clone().expect("a clone"));
        command
    });
    drop((reader, writer));
    for _ in 0..20 {
        let mut refused = Client::dial(server.socket(), "/ws?token=bad", &[]).expect("served");
        assert_eq!(refused.expect_close().0, 1008);
    }
    Client::in_room(&server, "ana", "r");
}

#[test]
fn narrow_buffers_carry_large_messages_both_ways() {
    let server = Server::start_with(&[("CHAT_SOCKET_SEND_BUFFER_BYTES", "4096")]);
    let size = 60 * 1024;
    let count = 10;
    let mut members: Vec<Client> =
        (0..4).map(|number| Client::over(narrow_socket(&server), &user_token(&format!("u{number}")))).collect();
    for member in &mut members {
        member.join("r");
    }
    thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || {
            let mut http = Http::over(narrow_socket(server));
            for number in 0..count {
                http.post("r", &json!({"content": "x".repeat(size), "number": number}));
            }
        });
        for member in &mut members {
            scope.spawn(move || {
                // Each sends as much as it gets, in turns, so that both directions are full.
                for number in 0..count {
                    member.send(json!({"type": "reaction", "roomId": "r", "messageId": unique("m"), "emoji": "x", "pad": "y".repeat(size)}));
                    let message = member.until(|message| message["type"] == "new_message").1;
                    assert_eq!(message["number"], number);
                    assert_eq!(message["content"].as_str().map(str::len), Some(size));
                }
                // Answered behind all the others, so those have all taken effect.
                let last = json!({"type": "reaction", "roomId": "r", "messageId": unique("m"), "emoji": "x"});
                assert_eq!(member.request(last).1["type"], "ack");
            });
        }
    });
    let events = 4 * (count + 1) + count;
    assert_eq!(server.http().post("r", &json!({"content": "end"}))["seq"], events + 1, "nothing lost, nothing twice");
}

#[test]
fn connections_that_say_nothing_harm_nobody() {
    let server = Server::start_with(&[("CHAT_HANDSHAKE_MS", "1000")]);
    let silent: Vec<TcpStream> = (0..200).map(|_| server.socket()).collect();
    let mut ana = Client::in_room(&server, "ana", "r");
    ana.expect_none();
    for stream in silent {
        let mut http = Http::over(stream);
        match http.try_response() {
            Some(response) => assert_eq!(response.status, 408),
            None => assert!(http.closes()),
        }
    }
    ana.expect_none();
}

#[test]
fn a_working_directory_and_environment_of_its_own_are_enough() {
    // Without any environment but the secret, all defaults apply.
    let folder = StoreFolder::new();
    let server = Server::launch(|port| {
        let mut command = bare(&["serve"]);
        command.env("JWT_SECRET", crate::server::SECRET).env("PORT", port.to_string()).current_dir(folder.path());
        command
    });
    Client::in_room(&server, "ana", "r").expect_none();
}
