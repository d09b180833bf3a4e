//! What peers of the target `shard` send: requests, upgrades, messages, and what is wrong with them.

use std::sync::OnceLock;
use std::time::Duration;

use sizland_chat::auth::{Keys, Role};
use sizland_chat::wire::value::Id;

use super::input::Input;

/// What tokens are signed with.
pub const SECRET: &str = "a secret of the fuzz targets, long enough";
/// The backend's.
pub const API_KEY: &str = "an api key of the fuzz targets";
/// When the tokens were made.
pub const STARTED_MS: u64 = 1_700_000_000_000;
const USERS: [&str; 4] = ["1", "2", "ana", "bob"];
const MASKING_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Tokens of each user: one that lasts and one that does not.
fn tokens() -> &'static [String] {
    static TOKENS: OnceLock<Vec<String>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        let keys = Keys::new(SECRET.as_bytes());
        let token = |user: &str, seconds: u64| {
            let id = Id::parse_raw(user).or(Id::from_text(user));
            keys.mint(id.as_ref(), Role::User, Duration::from_secs(seconds), STARTED_MS).expect("keys sign")
        };
        USERS.iter().flat_map(|user| [token(user, 3_600_000), token(user, 5)]).collect()
    })
}

fn token(input: &mut Input<'_>) -> &'static str {
    let tokens = tokens();
    tokens.get(input.below(tokens.len() + 1)).map_or("none", String::as_str)
}

/// A request that opens a WebSocket, and in half of the cases offers compression.
pub fn upgrade(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.below(32);
    let (path, fields) = match kind % 8 {
        0 => ("/ws".to_owned(), String::new()),
        1 => ("/ws".to_owned(), format!("Authorization: Bearer {}\r\n", token(input))),
        2 => ("/ws".to_owned(), format!("Sec-WebSocket-Protocol: sizland.v1, bearer.{}\r\n", token(input))),
        3 => ("/ws".to_owned(), "Sec-WebSocket-Protocol: sizland.v1\r\n".to_owned()),
        _ => (format!("/ws?token={}", token(input)), String::new()),
    };
    let offer = match kind / 8 {
        1 => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
        2 => "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n",
        _ => "",
    };
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{fields}{offer}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    head.into_bytes()
}

/// A message of a client.
pub fn message(input: &mut Input<'_>) -> String {
    let kind = input.below(12);
    let room = format!("room-{}", input.below(4));
    let reference = match input.below(3) {
        0 => String::new(),
        number => format!(r#","ref":{number}"#),
    };
    let of_room = |kind: &str, more: &str| format!(r#"{{"type":"{kind}","roomId":"{room}"{more}{reference}}}"#);
    match kind {
        0..=2 => of_room("join_room", ""),
        3 => of_room("leave_room", ""),
        4 => of_room("typing_start", ""),
        5 => of_room("typing_stop", ""),
        6 => of_room("reaction", r#","messageId":7,"emoji":"+1""#),
        7 => of_room("reaction", r#","messageId":"7","emoji":"+1","action":"add""#),
        8 => of_room("reaction", r#","messageId":7,"emoji":"+1","action":"remove""#),
        9 => format!(r#"{{"type":"join_rooms","rooms":[{{"roomId":"room-0"}},{{"roomId":"{room}"}},7]{reference}}}"#),
        10 => format!(r#"{{"type":"ping"{reference}}}"#),
        _ => {
            let kind = input.pick(&["auth", "refresh_token"]);
            format!(r#"{{"type":"{kind}","token":"{}"{reference}}}"#, token(input))
        }
    }
}

/// A message in one frame, or in two with a ping between them.
pub fn frames(input: &mut Input<'_>, message: &str) -> Vec<u8> {
    let message = message.as_bytes();
    match input.below(8) {
        0 => {
            let (start, end) = message.split_at(message.len() / 2);
            [frame(0x01, start), frame(0x89, b"?"), frame(0x80, end)].concat()
        }
        1 => frame(0x82, message),
        2 => frame(0x81, message).repeat(3),
        3 => frame(0xc1, &stored(message)),
        _ => frame(0x81, message),
    }
}

/// As a compressed message that is not compressed: a block of bytes as they are, and the begin of an empty one.
fn stored(message: &[u8]) -> Vec<u8> {
    let length = message.len() as u16;
    [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), message, &[0]].concat()
}

/// A masked frame, as a client sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend(MASKING_KEY);
    bytes.extend(payload.iter().zip(MASKING_KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Bytes of the input as they are.
pub fn raw(input: &mut Input<'_>) -> Vec<u8> {
    let count = usize::from(input.byte());
    input.bytes(count).to_vec()
}

/// A request of a backend, or of a user.
pub fn request(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.below(14);
    let (room, user) = (input.below(4), input.pick(&USERS));
    let (method, path, body) = match kind {
        0..=2 => ("POST", format!("/api/chat/rooms/room-{room}/messages"), r#"{"content":"hello"}"#.to_owned()),
        3 => {
            let body = format!(r#"{{"id":"{}","content":"{room}"}}"#, input.below(3));
            ("POST", format!("/api/chat/rooms/room-{room}/messages"), body)
        }
        4 => {
            let body = format!(r#"{{"content":"{}"}}"#, "x".repeat(usize::from(input.byte()) * 8));
            ("POST", format!("/api/chat/messages?roomId=room-{room}"), body)
        }
        5 => ("POST", format!("/api/chat/rooms/room-{room}/events"), r#"{"type":"custom","x":1}"#.to_owned()),
        6 => ("POST", format!("/api/chat/users/{user}/events"), r#"{"type":"custom"}"#.to_owned()),
        7 => {
            let body = format!(r#"{{"rooms":["room-0","room-1","room-{room}"],"message":{{"content":"all"}}}}"#);
            ("POST", "/api/chat/broadcast".to_owned(), body)
        }
        8 => ("POST", format!("/api/chat/users/{user}/disconnect"), r#"{"reason":"out"}"#.to_owned()),
        9 => {
            let body = format!(r#"{{"revokeBefore":{}}}"#, STARTED_MS + 1000);
            ("POST", format!("/api/chat/users/{user}/disconnect"), body)
        }
        10 => ("GET", format!("/api/chat/rooms/room-{room}/online"), String::new()),
        11 => ("GET", "/api/chat/rooms?limit=2".to_owned(), String::new()),
        12 => ("GET", format!("/api/chat/users/{user}"), String::new()),
        _ => ("HEAD", "/healthz".to_owned(), String::new()),
    };
    let credential = match input.below(6) {
        0 => String::new(),
        1 => format!("Authorization: Bearer {}\r\n", token(input)),
        _ => format!("X-API-Key: {API_KEY}\r\n"),
    };
    let more =
        input.pick(&["", "", "", "", "Connection: close\r\n", "Idempotency-Key: k\r\n", "Expect: 100-continue\r\n"]);
    let length = body.len();
    let (coding, body) = match input.below(6) {
        0 if length > 0 => ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{body}\r\n0\r\n\r\n")),
        _ => (format!("Content-Length: {length}\r\n"), body),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: chat\r\n{credential}{more}{coding}\r\n{body}").into_bytes()
}
