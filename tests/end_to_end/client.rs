//! A blocking WebSocket client: what a frontend does, step by step, and what no frontend should.
//!
//! Owns one connection. A read waits for an event; the timeout of the socket is reached only by a test that fails. That
//! something does *not* arrive is shown by a fence: a later event of the same origin that does.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::Response;
use tungstenite::protocol::{Message, WebSocket, WebSocketConfig};
use tungstenite::{Error, http};

use crate::server::{SECRET, Server};
use crate::stream::Stream;

/// One WebSocket connection after its upgrade.
pub struct Client {
    socket: WebSocket<Stream>,
    /// The answer to the upgrade.
    pub upgrade: Response,
    /// The first message, when the connection was opened by [`Client::connect`].
    pub connected: Value,
}

impl Client {
    /// Connects as a frontend does and takes `connected`.
    pub fn connect(server: &Server, token: &str) -> Self {
        Self::over(server.socket(), token)
    }

    /// Connects as `user` and takes `connected`.
    pub fn user(server: &Server, user: &str) -> Self {
        Self::connect(server, &user_token(user))
    }

    /// The same over a socket prepared by the caller.
    pub fn over(stream: impl Into<Stream>, token: &str) -> Self {
        let mut client = Self::dial(stream, &format!("/ws?token={token}"), &[]).expect("the upgrade is served");
        client.connected = client.expect("connected");
        client
    }

    /// Connects as `user` and joins `room`; the join's own two messages are taken.
    pub fn in_room(server: &Server, user: &str, room: &str) -> Self {
        let mut client = Self::user(server, user);
        client.join(room);
        client
    }

    /// Upgrades with this path and these headers, and reads nothing; the status where the upgrade is refused.
    pub fn dial(
        stream: impl Into<Stream>,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Box<http::Response<Option<Vec<u8>>>>> {
        let mut stream = stream.into();
        let address = stream.tcp().peer_addr().expect("the socket is connected");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("the path is valid");
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a valid header name");
            request.headers_mut().append(name, value.parse().expect("a valid header value"));
        }
        let config = WebSocketConfig::default().read_buffer_size(16 * 1024);
        match tungstenite::client::client_with_config(request, stream, Some(config)) {
            Ok((socket, upgrade)) => Ok(Self { socket, upgrade, connected: Value::Null }),
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => Err(response),
            Err(error) => panic!("the upgrade failed: {error}"),
        }
    }

    /// Joins and takes the joiner's own `user_joined` and `online_update`; gives the latter.
    pub fn join(&mut self, room: &str) -> Value {
        self.send(json!({"type": "join_room", "roomId": room}));
        let joined = self.expect("user_joined");
        assert_eq!(joined["roomId"], room);
        let online = self.expect("online_update");
        assert_eq!(online["roomId"], room);
        online
    }

    pub fn send(&mut self, message: Value) {
        self.send_text(&message.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text));
    }

    pub fn send_message(&mut self, message: Message) {
        self.socket.send(message).expect("the server reads");
    }

    /// Sends, and tells whether the connection still took it.
    pub fn try_send(&mut self, message: Value) -> bool {
        self.socket.send(Message::text(message.to_string())).is_ok()
    }

    /// All messages in one write, so that they reach the server together.
    pub fn send_together(&mut self, messages: &[Value]) {
        for message in messages {
            self.socket.write(Message::text(message.to_string())).expect("the write buffer has room");
        }
        self.socket.flush().expect("the server reads");
    }

    /// The socket below, past tungstenite.
    pub fn raw(&mut self) -> &mut TcpStream {
        self.socket.get_mut().tcp()
    }

    /// What is spoken over, past tungstenite.
    pub fn stream(&mut self) -> &mut Stream {
        self.socket.get_mut()
    }

    /// The next message of the chat; control frames are answered on the way.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        match self.read() {
            Ok(value) => value,
            Err(end) => panic!("expected a message, got {end}"),
        }
    }

    /// The next message, which must have this type.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let message = self.next();
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    /// Reads until `wanted` holds; gives what came before, and that message.
    #[track_caller]
    pub fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> (Vec<Value>, Value) {
        let mut before = Vec::new();
        loop {
            match self.read() {
                Ok(message) if wanted(&message) => return (before, message),
                Ok(message) => before.push(message),
                Err(end) => panic!("{end}, after {before:#?}"),
            }
        }
    }

    /// Reads until a message of this type, and gives that one only.
    #[track_caller]
    pub fn wait_for(&mut self, kind: &str) -> Value {
        self.until(|message| message["type"] == kind).1
    }

    /// Sends with a fresh `ref` and reads until its answer; gives what came before, and the answer.
    #[track_caller]
    pub fn request(&mut self, mut message: Value) -> (Vec<Value>, Value) {
        let reference = unique("ref");
        message["ref"] = json!(reference);
        self.send(message);
        self.until(|answer| answer["ref"] == json!(reference))
    }

    /// Asserts that nothing but the answer to a `ping` is waiting. The server answers in order, so what the connection had
    /// caused itself would have come before.
    #[track_caller]
    pub fn expect_none(&mut self) {
        let (before, pong) = self.request(json!({"type": "ping"}));
        assert_eq!(pong["type"], "pong");
        assert!(before.is_empty(), "unexpected: {before:#?}");
    }

    /// The close code and reason that end the connection; messages before it are skipped.
    #[track_caller]
    pub fn expect_close(&mut self) -> (u16, String) {
        self.messages_until_close().1
    }

    /// Everything up to the close, and the close.
    #[track_caller]
    pub fn messages_until_close(&mut self) -> (Vec<Value>, (u16, String)) {
        let mut before = Vec::new();
        loop {
            match self.read() {
                Ok(message) => before.push(message),
                Err(End::Close(code, reason)) => return (before, (code, reason)),
                Err(end) => panic!("expected a close frame, got {end} after {before:?}"),
            }
        }
    }

    /// Closes in order and waits for the server's answer.
    pub fn close(mut self) {
        self.socket.close(None).expect("the server reads");
        while let Ok(_message) = self.read() {}
    }

    /// The next message, or how the connection ended.
    pub fn read(&mut self) -> Result<Value, End> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    return Ok(serde_json::from_str(&text).expect("the server sends JSON"));
                }
                Ok(Message::Close(Some(frame))) => {
                    // One more turn sends our half of the closing handshake.
                    let _ = self.socket.flush();
                    return Err(End::Close(frame.code.into(), frame.reason.to_string()));
                }
                Ok(Message::Close(None)) => return Err(End::Close(1005, String::new())),
                Ok(Message::Binary(_)) => panic!("the server sends no binary frames"),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    // The pong that tungstenite queued leaves now and not with the next read.
                    let _ = self.socket.flush();
                }
                Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(End::Silence);
                }
                Err(error) => return Err(End::Broken(error.to_string())),
            }
        }
    }

    /// The next frame's message as tungstenite gives it, control frames included.
    pub fn next_message(&mut self) -> Message {
        self.socket.read().expect("a message")
    }
}

/// How a connection stopped giving messages.
#[derive(Debug)]
pub enum End {
    Close(u16, String),
    Silence,
    Broken(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Close(code, reason) => write!(formatter, "close {code} {reason:?}"),
            Self::Silence => formatter.write_str("nothing within the deadline"),
            Self::Broken(error) => formatter.write_str(error),
        }
    }
}

/// A reaction passes through the room's home behind everything that was sent before it, so once all of `members` have it,
/// what they had to receive has been received. Gives what each got before it.
#[track_caller]
pub fn fence<const N: usize>(
    room: &str,
    sender: &mut Client,
    members: [&mut Client; N],
) -> (Vec<Value>, [Vec<Value>; N]) {
    let mark = unique("fence");
    sender.send(json!({"type": "reaction", "roomId": room, "messageId": mark, "emoji": "f"}));
    let own = sender.until(|message| message["messageId"] == json!(mark)).0;
    (own, members.map(|member| member.until(|message| message["messageId"] == json!(mark)).0))
}

/// The types of messages, in order.
pub fn types(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["type"].as_str().expect("every message has a type")).collect()
}

/// A raw WebSocket connection: upgraded and greeted, then bytes.
pub struct RawClient {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl RawClient {
    pub fn connect(server: &Server, user: &str) -> Self {
        Self::over(server.socket(), user)
    }

    pub fn over(stream: TcpStream, user: &str) -> Self {
        let mut client = Self::upgraded(stream, &format!("/ws?token={}", user_token(user)));
        let (opcode, payload) = client.frame().expect("a greeting");
        assert_eq!(opcode, 1);
        assert!(String::from_utf8_lossy(&payload).contains("connected"));
        client
    }

    /// Upgraded, and nothing else read.
    pub fn upgraded(stream: TcpStream, path: &str) -> Self {
        let (client, head) = Self::sending(stream, &upgrade_request(path, &[]));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    /// Connects with an offer of extensions; gives the head of the answer as well.
    pub fn offering(server: &Server, user: &str, offer: &str) -> (Self, String) {
        let headers = [("Sec-WebSocket-Extensions", offer)];
        Self::sending(server.socket(), &upgrade_request(&format!("/ws?token={}", user_token(user)), &headers))
    }

    /// Sends an upgrade, and what may stand behind it; gives the head of the answer as well.
    pub fn sending(mut stream: TcpStream, request: &[u8]) -> (Self, String) {
        stream.write_all(request).expect("the server reads");
        let mut client = Self { stream, buffer: Vec::new() };
        let head = client.head();
        (client, head)
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame's opcode and payload; `None` when the server has closed the connection.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        self.marked_frame().map(|(first, payload)| (first & 0x0f, payload))
    }

    /// The next frame's first byte and payload; `None` when the server has closed the connection.
    pub fn marked_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((first, header, length)) = parse_frame(&self.buffer)
                && self.buffer.len() >= header + length
            {
                let bytes: Vec<u8> = self.buffer.drain(..header + length).collect();
                return Some((first, bytes[header..].to_vec()));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The code of the next close frame; other frames are skipped.
    #[track_caller]
    pub fn close_code(&mut self) -> u16 {
        loop {
            let (opcode, payload) = self.frame().expect("a close frame before the end");
            if opcode == 8 {
                assert!(payload.len() >= 2, "a close frame with a code");
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// Reads to the end of the connection.
    pub fn drain(&mut self) {
        while self.fill() {
            self.buffer.clear();
        }
    }

    pub fn shutdown(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return String::from_utf8(self.buffer.drain(..at + 4).collect()).expect("an ASCII head");
            }
            assert!(self.fill(), "no answer to the upgrade");
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}, with {} bytes read", self.buffer.len()),
        }
    }
}

/// A client frame: `first` is the first byte (FIN, reserved bits, opcode); the mask is zero, so the payload is as written.
pub fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// The bytes of an upgrade.
pub fn upgrade_request(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!(
        "GET {path} HTTP/1.1\r\nHost: chat.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// A token for a user that expires in an hour.
pub fn user_token(user: &str) -> String {
    token(&json!({"userId": user, "exp": now_s() + 3600}))
}

/// A token with the rights of a service.
pub fn service_token() -> String {
    token(&json!({"userId": "erp", "chatRole": "service", "exp": now_s() + 3600}))
}

/// HS256 with the secret of the tests.
pub fn token(claims: &Value) -> String {
    signed(Algorithm::HS256, SECRET, claims)
}

pub fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(algorithm), claims, &key).expect("claims can be signed")
}

/// A token whose header names any algorithm at all, with the signature given.
pub fn forged(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

pub fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(elapsed.as_millis()).expect("before the year 500 million")
}

pub fn now_s() -> u64 {
    now_ms() / 1000
}

/// A name that no other call of this process gave.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// First byte, header length and payload length of a server's frame, if the header is complete.
fn parse_frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (header, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        length => (2, usize::from(length)),
    };
    Some((first, header, length))
}
