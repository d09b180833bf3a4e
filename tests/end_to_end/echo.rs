//! The echo that conformance suites are pointed at: whatever is asked comes back, within the rules and limits of the
//! server below it.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tungstenite::protocol::Message;

use crate::client::{Client, RawClient, masked_frame, upgrade_request};
use crate::http_client::{Http, request};
use crate::server::{BINARY, DEADLINE, Server, isolate};

const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

fn start() -> Server {
    let folder = Path::new(BINARY).parent().expect("the binary is in a folder");
    let binary = folder.join("examples").join("echo");
    assert!(binary.exists(), "{}: built by `cargo test`, or by `cargo build --example echo`", binary.display());
    Server::launch(|port| {
        let mut command = Command::new(&binary);
        isolate(&mut command);
        command.args(["--port", &port.to_string()]);
        command
    })
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

#[test]
fn it_says_where_it_listens() {
    let server = start();
    let line = server.stdout_line(|line| line.starts_with("listening on "));
    assert_eq!(line, format!("listening on {}", server.address()));
    server.stop_in_order();
}

#[test]
fn any_method_and_path_give_the_body_back() {
    let server = start();
    let mut http = server.http();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "X-own!"] {
        for (path, body) in [("/", Some("hello")), ("/a/%20b?c=d", None), ("http://else.test/e", Some(""))] {
            http.send(&request(method, path, &[("Content-Type", "text/own")], body));
            let response = http.response();
            assert_eq!(
                (response.status, &*response.body),
                (200, body.unwrap_or_default().as_bytes()),
                "{method} {path}"
            );
            assert_eq!(response.header("content-type"), Some("text/own"));
            assert_eq!(response.header("connection"), Some("keep-alive"));
        }
    }
    http.send(&request("HEAD", "/", &[], Some("hello")));
    assert_eq!(http.response_to("HEAD").header("content-length"), Some("5"));
    http.send(&request("OPTIONS", "*", &[], None));
    let options = http.response();
    assert_eq!(options.header("content-type"), Some("application/octet-stream"));
    assert!(options.lists("allow", "TRACE"));
    // A field that asks for a WebSocket counts only in a GET.
    http.send(&request("POST", "/", &[("Upgrade", "websocket"), ("Connection", "Upgrade")], Some("hello")));
    assert_eq!(http.response().body, b"hello");
    assert!(http.closes(), "what follows may be frames");
}

#[test]
fn pipelined_requests_come_back_in_order() {
    let server = start();
    let mut http = server.http();
    let mut sent = Vec::new();
    for number in 0..100 {
        if number % 2 == 0 {
            sent.extend(request("POST", "/", &[], Some(&number.to_string())));
        } else {
            let chunk = format!("{:x}\r\n{number}\r\n0\r\n\r\n", number.to_string().len());
            sent.extend(request("PUT", "/", &[("Transfer-Encoding", "chunked")], Some(&chunk)));
        }
    }
    http.send(&sent);
    for number in 0..100 {
        assert_eq!(http.response().body, number.to_string().as_bytes());
    }
}

#[test]
fn what_the_server_refuses_is_refused() {
    let server = start();
    for (sent, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16777217\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000001\r\n", 413),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n", 417),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ] {
        let mut http = server.http();
        http.send(sent.as_bytes());
        assert_eq!(http.response().status, status, "{sent:?}");
        assert!(http.closes(), "{sent:?}");
    }
}

#[test]
fn a_body_of_sixteen_mib_comes_back() {
    let server = start();
    let mut http = server.http();
    let body = bytes(MESSAGE_BYTES_MAX);
    http.send(
        format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len())
            .as_bytes(),
    );
    assert_eq!(http.response().status, 100);
    http.send(&body);
    assert!(http.response().body == body);
    let mut chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(100_000) {
        chunked.extend(format!("{:X};own=\"1\"\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\nX-Trailer: 1\r\n\r\n");
    http.send(&chunked);
    assert!(http.response().body == body);
}

#[test]
fn messages_come_back_as_they_were_sent() {
    let server = start();
    let protocols = [("Sec-WebSocket-Protocol", "one, two")];
    let mut client = Client::dial(server.socket(), "/any/path?token=none", &protocols).expect("any path is upgraded");
    assert_eq!(client.upgrade.headers()["sec-websocket-protocol"], "one");
    let longest = "ä".repeat(MESSAGE_BYTES_MAX / 2);
    for message in [
        Message::text("text"),
        Message::binary(vec![0, 255]),
        Message::text(""),
        Message::binary(vec![]),
        Message::binary(bytes(MESSAGE_BYTES_MAX)),
        Message::text(longest),
    ] {
        client.send_message(message.clone());
        assert!(client.next_message() == message);
    }
    client.send_message(Message::Ping(vec![1, 2].into()));
    assert_eq!(client.next_message(), Message::Pong(vec![1, 2].into()));
    client.send_message(Message::binary(bytes(MESSAGE_BYTES_MAX + 1)));
    assert_eq!(client.expect_close().0, 1009);
}

#[test]
fn frames_behind_the_upgrade_are_not_lost() {
    let server = start();
    let mut stream = server.socket();
    let mut sent = upgrade_request("/", &[]);
    sent.extend(masked_frame(0x81, b"at once"));
    sent.extend(masked_frame(0x88, &1000_u16.to_be_bytes()));
    stream.write_all(&sent).expect("the server reads");
    let mut http = Http::over(stream);
    assert_eq!(http.response().status, 101);
    assert_eq!(http.rest(), [&b"\x81\x07at once"[..], b"\x88\x02\x03\xe8"].concat());
}

/// Two ends that both only write would fill the memory of the one that takes.
#[test]
fn who_does_not_read_is_not_read() {
    const MESSAGES: usize = 6;
    let server = start();
    let payload = bytes(MESSAGE_BYTES_MAX);
    let sent = masked_frame(0x82, &payload).repeat(MESSAGES);
    let mut stream = server.socket();
    // On a slow machine it may look blocked before it is, which makes the test weaker but not wrong.
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
    let mut raw = RawClient::upgraded(stream.try_clone().expect("a socket can be cloned"), "/");
    let mut taken = 0;
    let end = loop {
        match stream.write(&sent[taken..]) {
            Ok(0) => panic!("all of it was taken, and nothing read"),
            Ok(count) => taken += count,
            Err(error) => break error,
        }
    };
    assert!(matches!(end.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{end}");
    assert!(server.resident_bytes_max() < 80 * 1024 * 1024, "{} bytes", server.resident_bytes_max());
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout can be set");
    let rest = std::thread::spawn(move || stream.write_all(&sent[taken..]).expect("it is read again"));
    let mut left = MESSAGES;
    while left > 0 {
        match raw.frame().expect("the connection is open") {
            (9, _) => {}
            (opcode, echoed) => {
                assert!(opcode == 2 && echoed == payload);
                left -= 1;
            }
        }
    }
    rest.join().expect("the writer ends");
}
