//! Connections to a server that may be gone at any moment: HTTP and WebSocket, blocking, and never for long.
//!
//! Owns what is on the wire. That a connection is lost is no fault; that nothing comes for very long is one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tungstenite::protocol::{Message, WebSocket};
use tungstenite::{Error, HandshakeError};

use crate::run::{PATIENCE, POLL, Run};
use crate::server::{API_KEY, SECRET};

/// How long a read waits before its caller looks around.
const READ_TIMEOUT: Duration = Duration::from_millis(20);

/// The connection has ended, as one to a killed server does; or the run has failed.
#[derive(Debug)]
pub struct Lost;

/// Whose request it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credential {
    Service,
    User(String),
}

/// One HTTP connection.
pub struct Http<'r> {
    run: &'r Run,
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub is_replay: bool,
    pub body: String,
}

/// One WebSocket connection.
pub struct Socket {
    socket: WebSocket<TcpStream>,
}

impl<'r> Http<'r> {
    pub fn dial(run: &'r Run) -> Result<Self, Lost> {
        let stream = dial(run)?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(|_| Lost)?;
        Ok(Self { run, stream, buffer: Vec::new() })
    }

    pub fn send(&mut self, request: &[u8]) -> Result<(), Lost> {
        self.stream.write_all(request).map_err(|_| Lost)
    }

    /// The next answer.
    pub fn answer(&mut self) -> Result<Answer, Lost> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.parse() {
                return Ok(answer);
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Lost),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return Err(Lost),
            }
            if self.run.has_failed() {
                return Err(Lost);
            }
            if Instant::now() >= end {
                self.run.fail(format!("no answer over HTTP within {PATIENCE:?}"));
                return Err(Lost);
            }
        }
    }

    /// One request and its answer.
    pub fn call(&mut self, request: &[u8]) -> Result<Answer, Lost> {
        self.send(request)?;
        self.answer()
    }

    fn parse(&mut self) -> Option<Answer> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(&self.buffer).expect("an answer is HTTP") else {
            return None;
        };
        let status = response.code.expect("a complete head has a status");
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            str::from_utf8(found.value).ok()
        };
        let is_replay = header("Idempotency-Replayed") == Some("true");
        let length: usize = header("Content-Length").and_then(|length| length.parse().ok()).expect("a length");
        let body = self.buffer.get(head..head + length)?;
        let body = String::from_utf8(body.to_vec()).expect("a body is UTF-8");
        self.buffer.drain(..head + length);
        Some(Answer { status, is_replay, body })
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

impl Socket {
    /// Connects as a user, and takes `connected`.
    pub fn dial(run: &Run, token: &str) -> Result<Self, Lost> {
        let stream = dial(run)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|_| Lost)?;
        let url = format!("ws://{}/ws?token={token}", run.address);
        let socket = match tungstenite::client::client(url, stream) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(Error::Http(response))) => {
                run.fail(format!("the upgrade was answered {}", response.status()));
                return Err(Lost);
            }
            Err(_) => return Err(Lost),
        };
        socket.get_ref().set_read_timeout(Some(READ_TIMEOUT)).map_err(|_| Lost)?;
        let mut socket = Self { socket };
        let first = loop {
            if let Some(text) = socket.read()? {
                break text;
            }
            if run.has_failed() {
                return Err(Lost);
            }
        };
        if !first.starts_with(r#"{"type":"connected""#) {
            run.fail(format!("the first message is {first}"));
        }
        Ok(socket)
    }

    pub fn send(&mut self, message: &Value) -> Result<(), Lost> {
        self.socket.send(Message::text(message.to_string())).map_err(|_| Lost)
    }

    /// The next message; `None` if there is none yet.
    pub fn read(&mut self) -> Result<Option<String>, Lost> {
        match self.socket.read() {
            Ok(Message::Text(text)) => Ok(Some(text.as_str().to_owned())),
            Ok(Message::Close(_)) => Err(Lost),
            Ok(_) => self.socket.flush().map(|()| None).map_err(|_| Lost),
            Err(Error::Io(error)) if is_timeout(&error) => Ok(None),
            Err(_) => Err(Lost),
        }
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, by: &Credential, key: Option<&str>, body: Option<&str>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: crash\r\n");
    match by {
        Credential::Service => text.push_str(&format!("X-API-Key: {API_KEY}\r\n")),
        Credential::User(user) => text.push_str(&format!("Authorization: Bearer {}\r\n", user_token(user))),
    }
    if let Some(key) = key {
        text.push_str(&format!("Idempotency-Key: {key}\r\n"));
    }
    let body = body.unwrap_or_default();
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

/// The path of a room's messages.
pub fn messages_path(room: &str) -> String {
    format!("/api/chat/rooms/{}/messages", escape(room))
}

/// A segment of a path.
pub fn escape(segment: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(byte).collect()
}

/// A token for a user that expires in a day.
pub fn user_token(user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
    let claims = json!({"userId": user, "exp": now + 86_400});
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
        .expect("claims can be signed")
}

/// A connection, as soon as there is somebody to take it.
fn dial(run: &Run) -> Result<TcpStream, Lost> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = TcpStream::connect_timeout(&run.address, PATIENCE) {
            stream.set_write_timeout(Some(PATIENCE)).map_err(|_| Lost)?;
            stream.set_nodelay(true).map_err(|_| Lost)?;
            return Ok(stream);
        }
        if run.has_failed() {
            return Err(Lost);
        }
        if Instant::now() >= end {
            run.fail(format!("nobody listens for {PATIENCE:?}"));
            return Err(Lost);
        }
        thread::sleep(POLL);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
