//! A tiny blocking HTTP/1.1 client that can also say what no polite client would.
//!
//! Owns one connection and the bytes read from it; requests are sent when told and answers read when asked for, so pipelining
//! is two calls in another order. It checks nothing of what it sends.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use serde_json::Value;

use crate::server::API_KEY;
use crate::stream::Stream;

/// One connection.
pub struct Http {
    stream: Stream,
    buffer: Vec<u8>,
}

/// One answer; the body is decoded from its framing.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The text behind the status.
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Http {
    pub fn over(stream: impl Into<Stream>) -> Self {
        Self { stream: stream.into(), buffer: Vec::new() }
    }

    /// One request with the service's key, and its answer.
    pub fn service(&mut self, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.call(method, path, &[("X-API-Key", API_KEY)], body)
    }

    /// One request with a bearer token, and its answer.
    pub fn bearer(&mut self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.call(method, path, &[("Authorization", &format!("Bearer {token}"))], body)
    }

    /// One request with exactly these headers (and the framing of the body), and its answer.
    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Response {
        self.send(&request(method, path, headers, body.map(Value::to_string).as_deref()));
        self.response_to(method)
    }

    /// A message of the service's, which must be taken.
    pub fn post(&mut self, room: &str, message: &Value) -> Value {
        let response = self.service("POST", &messages_path(room), Some(message));
        assert_eq!(response.status, 201, "{response:?}");
        response.json()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next answer, to anything but HEAD.
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// The next answer, to a request of this method.
    pub fn response_to(&mut self, method: &str) -> Response {
        self.read_response(method)
            .unwrap_or_else(|error| panic!("no answer to {method}: {error}; read {:?}", self.seen()))
    }

    pub fn try_response(&mut self) -> Option<Response> {
        self.read_response("GET").ok()
    }

    /// What it speaks over.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// No more requests follow; answers still can.
    pub fn finish_sending(&mut self) {
        self.stream.tcp().shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// All bytes up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_ok() {}
        std::mem::take(&mut self.buffer)
    }

    /// Whether the server closes now, without another byte. A reset counts: what was sent after the fault is unread there.
    pub fn closes(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Whether the server ends the connection now, in order and without another byte.
    pub fn ends_in_order(&mut self) -> bool {
        self.buffer.is_empty() && self.stream.read(&mut [0; 1]).is_ok_and(|count| count == 0)
    }

    /// Takes a frame of a WebSocket and looks for `text` in it.
    pub fn take_frame_of(&mut self, text: &str) -> Result<(), String> {
        loop {
            let seen = self.seen();
            if self.buffer.first().is_some_and(|&byte| byte == 0x81) && seen.contains(text) {
                return Ok(());
            }
            self.fill().map_err(|error| format!("no {text}: {error}, after {seen:?}"))?;
        }
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// The next answer, to a request of this method, or why there is none.
    pub fn read_response(&mut self, method: &str) -> io::Result<Response> {
        let head_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head = String::from_utf8(self.buffer.drain(..head_end + 4).collect()).map_err(io::Error::other)?;
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let status_line = lines.next().unwrap_or_default();
        assert!(status_line.starts_with("HTTP/1.1 "), "status line {status_line:?}");
        let status: u16 = status_line[9..12].parse().map_err(io::Error::other)?;
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("header line {line:?}")))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let reason = status_line.get(13..).unwrap_or_default().to_owned();
        let mut response = Response { status, reason, headers, body: Vec::new() };
        let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if !bodiless {
            response.body = self.read_body(&response)?;
        }
        Ok(response)
    }

    fn read_body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.read_chunks();
        }
        let length = response.header("content-length").unwrap_or_else(|| panic!("no length in {response:?}"));
        let length: usize = length.parse().map_err(io::Error::other)?;
        self.take(length)
    }

    fn read_chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = find(&self.buffer, b"\r\n") {
                    break at;
                }
                self.fill()?;
            };
            let line = self.take(line_end + 2)?;
            let size = String::from_utf8_lossy(&line[..line_end]).into_owned();
            let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
            let chunk = self.take(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        let count = self.stream.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(())
    }
}

impl Response {
    /// The value of a header, its name compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether a header that holds a list has this item, compared without case.
    pub fn lists(&self, name: &str, item: &str) -> bool {
        self.header(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(item)))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }

    /// Asserts an error in the documented shape.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        assert!(body["error"].is_string(), "{body}");
        assert_eq!(body["code"], code, "{body}");
    }
}

/// The bytes of a request; a body brings its length and type unless `headers` name them.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !given("Host") {
        text.push_str("Host: chat.test\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        if !given("Content-Type") {
            text.push_str("Content-Type: application/json\r\n");
        }
        if !given("Transfer-Encoding") {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or_default());
    text.into_bytes()
}

/// The path that messages of a room are posted to; `room` must need no escaping.
pub fn messages_path(room: &str) -> String {
    format!("/api/chat/rooms/{room}/messages")
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
