//! The rules of RFC 6455 as seen from outside: what closes a connection, with which code, and what does not.

use std::io::Write;

use serde_json::json;

use crate::client::{Client, RawClient, masked_frame, upgrade_request, user_token};
use crate::http_client::Http;
use crate::server::Server;

#[test]
fn violations_close_with_the_right_code() {
    let server = Server::start();
    let mut unmasked = masked_frame(0x81, b"{}");
    unmasked[1] &= 0x7f;
    let mut long_control = vec![0x89, 0x80 | 126, 0, 126, 0, 0, 0, 0];
    long_control.extend_from_slice(&[b'x'; 126]);
    let mut two_starts = masked_frame(0x01, b"{");
    two_starts.extend(masked_frame(0x81, b"}"));
    let mut length_not_minimal = vec![0x81, 0x80 | 126, 0, 2, 0, 0, 0, 0];
    length_not_minimal.extend_from_slice(b"{}");
    let mut split_utf8 = masked_frame(0x01, &[b'"', 0xe2, 0x82]);
    split_utf8.extend(masked_frame(0x80, b"x\""));
    let mut close_bad_utf8 = 1000_u16.to_be_bytes().to_vec();
    close_bad_utf8.extend_from_slice(&[0xff, 0xfe]);
    let rows: Vec<(&str, Vec<u8>, u16)> = vec![
        ("not masked", unmasked, 1002),
        ("first reserved bit", masked_frame(0xc1, b"{}"), 1002),
        ("second reserved bit", masked_frame(0xa1, b"{}"), 1002),
        ("third reserved bit", masked_frame(0x91, b"{}"), 1002),
        ("reserved data opcode", masked_frame(0x83, b"{}"), 1002),
        ("reserved control opcode", masked_frame(0x8b, b""), 1002),
        ("fragmented ping", masked_frame(0x09, b""), 1002),
        ("long ping", long_control, 1002),
        ("continuation of nothing", masked_frame(0x80, b"{}"), 1002),
        ("a start within a message", two_starts, 1002),
        ("length not minimal", length_not_minimal, 1002),
        ("length above 2^63", vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], 1002),
        ("close with one byte", masked_frame(0x88, &[3]), 1002),
        ("close 1005", masked_frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close 1006", masked_frame(0x88, &1006_u16.to_be_bytes()), 1002),
        ("close 999", masked_frame(0x88, &999_u16.to_be_bytes()), 1002),
        ("close 1016", masked_frame(0x88, &1016_u16.to_be_bytes()), 1002),
        ("close 5000", masked_frame(0x88, &5000_u16.to_be_bytes()), 1002),
        ("bad UTF-8 in a close reason", masked_frame(0x88, &close_bad_utf8), 1007),
        ("bad UTF-8", masked_frame(0x81, &[b'"', 0xff, b'"']), 1007),
        ("surrogate in UTF-8", masked_frame(0x81, &[0xed, 0xa0, 0x80]), 1007),
        ("cut UTF-8", masked_frame(0x81, &[b'"', 0xe2, 0x82]), 1007),
        ("bad UTF-8 over fragments", split_utf8, 1007),
        ("too large", masked_frame(0x81, &vec![b' '; 64 * 1024 + 1]), 1009),
        ("too large by its head", vec![0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0], 1009),
    ];
    for (what, bytes, code) in rows {
        let mut raw = RawClient::connect(&server, "raw");
        raw.write(&bytes);
        assert_eq!(raw.close_code(), code, "{what}");
    }
}

#[test]
fn too_large_counts_all_fragments() {
    let server = Server::start();
    let mut raw = RawClient::connect(&server, "raw");
    raw.write(&masked_frame(0x01, &vec![b' '; 40_000]));
    raw.write(&masked_frame(0x00, &vec![b' '; 20_000]));
    raw.try_write(&masked_frame(0x80, &vec![b' '; 20_000]));
    assert_eq!(raw.close_code(), 1009);
}

#[test]
fn bad_utf8_fails_before_the_message_ends() {
    let server = Server::start();
    let mut raw = RawClient::connect(&server, "raw");
    raw.write(&masked_frame(0x01, &[b'"', 0xc0, 0xaf]));
    assert_eq!(raw.close_code(), 1007);
}

#[test]
fn closes_are_echoed() {
    let server = Server::start();
    for (payload, code) in [(1000_u16, 1000_u16), (1001, 1001), (1011, 1011), (3000, 3000), (4999, 4999)] {
        let mut raw = RawClient::connect(&server, "raw");
        raw.write(&masked_frame(0x88, &payload.to_be_bytes()));
        assert_eq!(raw.close_code(), code);
        raw.drain();
    }
    let mut raw = RawClient::connect(&server, "raw");
    raw.write(&masked_frame(0x88, b""));
    let (opcode, payload) = raw.frame().expect("an answer");
    assert_eq!(opcode, 8);
    assert!(payload.is_empty() || payload.starts_with(&1000_u16.to_be_bytes()), "{payload:?}");
    raw.drain();
}

#[test]
fn fragments_may_be_split_anywhere_with_control_frames_between() {
    let server = Server::start();
    let mut raw = RawClient::connect(&server, "raw");
    let text = json!({"type": "ping", "ref": "€"}).to_string().into_bytes();
    for at in 0..text.len() {
        let mut bytes = masked_frame(0x01, &text[..at]);
        bytes.extend(masked_frame(0x89, b"between"));
        bytes.extend(masked_frame(0x00, b""));
        bytes.extend(masked_frame(0x80, &text[at..]));
        raw.write(&bytes);
        assert_eq!(raw.frame().expect("a pong frame"), (10, b"between".to_vec()));
        let (opcode, payload) = raw.frame().expect("a pong message");
        assert_eq!(opcode, 1);
        assert!(String::from_utf8_lossy(&payload).contains("€"));
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let server = Server::start();
    let mut bytes = upgrade_request(&format!("/ws?token={}", user_token("ana")), &[]);
    bytes.extend(masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
    bytes.extend(masked_frame(0x81, br#"{"type":"ping","ref":"end"}"#));
    let mut stream = server.socket();
    for byte in bytes {
        stream.write_all(&[byte]).expect("the server reads");
    }
    let mut http = Http::over(stream.try_clone().expect("a clone"));
    assert_eq!(http.response().status, 101);
}

#[test]
fn what_follows_the_upgrade_in_one_write_is_served() {
    let server = Server::start();
    let mut watcher = Client::in_room(&server, "watcher", "r");
    let mut bytes = upgrade_request(&format!("/ws?token={}", user_token("ana")), &[]);
    bytes.extend(masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
    let mut stream = server.socket();
    stream.write_all(&bytes).expect("the server reads");
    assert_eq!(watcher.expect("user_joined")["userId"], "ana");
}

#[test]
fn a_mask_is_applied() {
    let server = Server::start();
    let mut raw = RawClient::connect(&server, "raw");
    let mask = [0xde, 0xad, 0xbe, 0xef];
    let text = br#"{"type":"ping","ref":"masked"}"#;
    let mut frame = vec![0x81, 0x80 | text.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(text.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    raw.write(&frame);
    let (_, payload) = raw.frame().expect("a pong");
    assert!(String::from_utf8_lossy(&payload).contains("masked"));
}

#[test]
fn an_upgrade_that_is_none_is_told_why() {
    let server = Server::start();
    let path = format!("/ws?token={}", user_token("ana"));
    let good = String::from_utf8(upgrade_request(&path, &[])).expect("text");
    for (what, head, statuses) in [
        ("a plain GET", format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), &[400, 426][..]),
        ("another version", good.replace("Version: 13", "Version: 8"), &[400, 426]),
        ("no key", good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), &[400]),
        ("a bad key", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), &[400]),
        ("no Upgrade in Connection", good.replace("Connection: Upgrade", "Connection: keep-alive"), &[400, 426]),
        ("another method", good.replacen("GET", "POST", 1), &[400, 405]),
        ("another path", good.replacen("/ws?", "/wss?", 1), &[404]),
    ] {
        let mut http = server.http();
        http.send(head.as_bytes());
        let response = http.response();
        assert!(statuses.contains(&response.status), "{what}: {response:?}");
        if what == "another version" {
            assert_eq!(response.header("sec-websocket-version"), Some("13"));
        }
    }
}

#[test]
fn the_upgrade_is_answered_by_the_book() {
    let server = Server::start();
    let mut http = server.http();
    let path = format!("/ws?token={}", user_token("ana"));
    http.send(&upgrade_request(&path, &[("Sec-WebSocket-Extensions", "permessage-unheard-of; x=1")]));
    let response = http.response();
    assert_eq!(response.status, 101);
    assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(response.lists("connection", "upgrade"));
    assert!(response.lists("upgrade", "websocket"));
    assert_eq!(response.header("sec-websocket-extensions"), None);
    assert_eq!(response.header("sec-websocket-protocol"), None);
}
