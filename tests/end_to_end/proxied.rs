//! From where a client comes when a proxy stands in front: the PROXY header and `X-Forwarded-For`, and whose word counts.
//!
//! The proxy is at 127.0.0.2, so that the server can still be asked from 127.0.0.1 whether it is ready.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use crate::client::{RawClient, upgrade_request, user_token};
use crate::http_client::{Http, request};
use crate::server::{Server, eventually, prepare};

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x02\xc6\x33\x64\x01\x01\x02\x01\xbb";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn server(trusted: &str, header: &str) -> Server {
    let env = [("CHAT_LOG_FORMAT", "json"), ("CHAT_TRUSTED_PROXIES", trusted), ("CHAT_PROXY_PROTOCOL", header)];
    Server::start_with(&env)
}

/// A connection from the proxy.
fn from_proxy(server: &Server) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("all of 127.0.0.0/8 is this machine");
    socket.connect(&server.address().into()).expect("the server listens");
    let stream = TcpStream::from(socket);
    prepare(&stream);
    stream
}

fn denials(server: &Server, reason: &str) -> Vec<Value> {
    let log = server.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["message"] == "denied" && line["reason"] == reason).collect()
}

/// Sends a request that is refused, behind `front` and with `X-Forwarded-For`, and gives the address that is logged.
fn address(server: &Server, front: &[&[u8]], forwarded: &[&str]) -> String {
    let before = denials(server, "api_key").len();
    let mut stream = from_proxy(server);
    for bytes in front {
        stream.write_all(bytes).expect("the server reads");
    }
    let mut http = Http::over(stream);
    let mut headers = vec![("X-API-Key", "not the key, by far")];
    headers.extend(forwarded.iter().map(|&value| ("X-Forwarded-For", value)));
    http.call("GET", "/api/chat/rooms", &headers, None).assert_error(401, "forbidden");
    let denial = eventually("the denial is logged", || denials(server, "api_key").into_iter().nth(before));
    denial["address"].as_str().expect("an address").to_owned()
}

/// What the server answers before it closes the connection.
fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset is also an end.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn a_proxy_header_says_from_where_the_connection_is() {
    let server = server("127.0.0.2", "on");
    for (front, expected) in [(V1, "192.0.2.1"), (V1_UNKNOWN, "127.0.0.2"), (V2, "192.0.2.2"), (V2_LOCAL, "127.0.0.2")]
    {
        assert_eq!(address(&server, &[front], &[]), expected);
        let bytes: Vec<&[u8]> = front.chunks(1).collect();
        assert_eq!(address(&server, &bytes, &[]), expected, "byte by byte");
    }
    // The client itself is no proxy, and its word does not count.
    assert_eq!(address(&server, &[V1], &["203.0.113.9"]), "192.0.2.1");
    // A proxy that speaks for itself may be one behind which others are.
    assert_eq!(address(&server, &[V2_LOCAL], &["203.0.113.9"]), "203.0.113.9");
}

#[test]
fn a_trusted_proxy_without_its_header_is_refused() {
    let server = server("127.0.0.2", "on");
    let plain = request("GET", "/healthz", &[], None);
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
    let cases: [&[u8]; 6] = [
        &plain,
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
        long.as_bytes(),
        &V2[..12],
        &V1[..20],
        b"\x16\x03\x01",
    ];
    for (count, begin) in (1..).zip(cases) {
        let mut stream = from_proxy(&server);
        stream.write_all(begin).expect("the server reads");
        // Together with the end of the stream, so that what is unfinished stays so.
        // It may have been refused already.
        let _ = stream.shutdown(Shutdown::Write);
        assert_eq!(answer(stream), b"", "{}", begin.escape_ascii());
        eventually("it is logged", || (denials(&server, "proxy_header").len() == count).then_some(()));
    }
    // One that only looks whether the port is open is no denial.
    let stream = from_proxy(&server);
    stream.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(answer(stream), b"");
    assert_eq!(denials(&server, "proxy_header").len(), cases.len());
}

#[test]
fn a_header_and_the_end_together_are_still_served() {
    let server = server("127.0.0.2", "on");
    let mut stream = from_proxy(&server);
    stream.write_all(&[V1, &request("GET", "/healthz", &[], None)].concat()).expect("the server reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    assert!(answer(stream).starts_with(b"HTTP/1.1 200 "));
}

#[test]
fn others_are_served_plainly_and_their_word_does_not_count() {
    let server = server("192.0.2.0/24", "on");
    assert_eq!(address(&server, &[], &["203.0.113.9"]), "127.0.0.2");
    let mut stream = from_proxy(&server);
    stream.write_all(V1).expect("the server reads");
    let answer = answer(stream);
    let status = answer.strip_prefix(b"HTTP/1.1 ").expect("an answer")[0];
    assert!(matches!(status, b'4' | b'5'), "a header from elsewhere is no request: {}", answer.escape_ascii());
}

#[test]
fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
    let server = server("127.0.0.2,10.0.0.0/8", "off");
    for (forwarded, expected) in [
        (&[][..], "127.0.0.2"),
        (&["203.0.113.9"], "203.0.113.9"),
        (&["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (&["6.6.6.6, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (&["6.6.6.6", "203.0.113.9", "10.1.2.3"], "203.0.113.9"),
        (&["2001:db8::1"], "2001:db8::1"),
        (&["6.6.6.6, rubbish"], "127.0.0.2"),
        (&["10.9.9.9"], "10.9.9.9"),
    ] {
        assert_eq!(address(&server, &[], forwarded), expected, "{forwarded:?}");
    }
    // Each request of a proxy's connection has its own.
    let mut http = Http::over(from_proxy(&server));
    for forwarded in [Some("203.0.113.7"), Some("203.0.113.8"), None] {
        let mut headers = vec![("X-API-Key", "not the key, by far")];
        headers.extend(forwarded.map(|value| ("X-Forwarded-For", value)));
        http.call("GET", "/api/chat/rooms", &headers, None).assert_error(401, "forbidden");
    }
    let addresses = eventually("all are logged", || {
        let all = denials(&server, "api_key");
        (all.len() == 11).then(|| all[8..].iter().map(|line| line["address"].clone()).collect::<Vec<Value>>())
    });
    assert_eq!(addresses, ["203.0.113.7", "203.0.113.8", "127.0.0.2"]);
    // A WebSocket keeps the one of its upgrade.
    let upgrade = upgrade_request(&format!("/ws?token={}", user_token("ana")), &[("X-Forwarded-For", "203.0.113.6")]);
    let (mut client, head) = RawClient::sending(from_proxy(&server), &upgrade);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.write(b"\x81\x02{}");
    assert_eq!(client.close_code(), 1002);
    let violation = eventually("it is logged", || denials(&server, "violation").pop());
    assert_eq!((&violation["address"], &violation["user"]), (&"203.0.113.6".into(), &"ana".into()));
}
