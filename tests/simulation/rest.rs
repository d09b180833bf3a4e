//! A REST client: requests pipelined in one direction, answers expected in the same order.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::random::Random;

#[derive(Clone, Debug)]
pub enum Expect {
    Post { room: String, id: String },
    Online { room: String },
    Rooms,
    Health,
    Event,
    Broadcast(usize),
    Disconnect,
    User,
}

pub struct Rest {
    api_key: String,
    rooms: Vec<String>,
    users: Vec<String>,
    name: String,
    count: u64,
    big: bool,
    input: Vec<u8>,
    pub expected: VecDeque<Expect>,
    /// The server said that it closes.
    pub last: bool,
    pub quiet: bool,
    /// It may be dropped without an answer.
    pub may_drop: bool,
    pub posted: Vec<(String, String, u64)>,
    pub answers: Vec<(Expect, u16, Value)>,
}

impl Rest {
    pub fn new(name: String, api_key: &str, rooms: Vec<String>, users: Vec<String>, big: bool, may_drop: bool) -> Self {
        Self {
            api_key: api_key.to_owned(),
            rooms,
            users,
            name,
            count: 0,
            big,
            input: Vec::new(),
            expected: VecDeque::new(),
            last: false,
            quiet: false,
            may_drop,
            posted: Vec::new(),
            answers: Vec::new(),
        }
    }

    pub fn unanswered(&self) -> usize {
        if self.last { 0 } else { self.expected.len() }
    }

    pub fn act(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        if self.quiet || self.last {
            return;
        }
        let room = self.rooms[random.below(self.rooms.len())].clone();
        match random.below(20) {
            0..=9 => self.post(&room, random, out),
            10..=11 => self.online(&room, out),
            12 => self.ask(out, "GET", "/api/chat/rooms", None, Expect::Rooms),
            13 => self.ask(out, "GET", "/healthz", None, Expect::Health),
            14 => {
                let path = format!("/api/chat/rooms/{room}/events");
                self.ask(out, "POST", &path, Some(json!({"type": "custom", "x": 1})), Expect::Event);
            }
            15 => {
                let body = json!({"rooms": self.rooms, "message": {"content": "all"}});
                self.ask(out, "POST", "/api/chat/broadcast", Some(body), Expect::Broadcast(self.rooms.len()));
            }
            16 if random.one_in(4) => {
                let path = format!("/api/chat/users/{}/disconnect", self.users[random.below(self.users.len())]);
                self.ask(out, "POST", &path, Some(json!({"reason": "out"})), Expect::Disconnect);
            }
            17 => {
                let path = format!("/api/chat/users/{}", self.users[random.below(self.users.len())]);
                self.ask(out, "GET", &path, None, Expect::User);
            }
            _ => (0..3).for_each(|_| self.post(&room, random, out)),
        }
    }

    pub fn post(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>) {
        self.count += 1;
        let id = format!("{}-{}", self.name, self.count);
        let size = if self.big { random.pick(&[10, 1_000, 30_000]) } else { random.pick(&[3, 50, 200]) };
        let body = json!({"id": id, "content": "x".repeat(size)});
        let expect = Expect::Post { room: room.to_owned(), id };
        self.ask(out, "POST", &format!("/api/chat/rooms/{room}/messages"), Some(body), expect);
    }

    pub fn online(&mut self, room: &str, out: &mut VecDeque<u8>) {
        let expect = Expect::Online { room: room.to_owned() };
        self.ask(out, "GET", &format!("/api/chat/rooms/{room}/online"), None, expect);
    }

    pub fn list(&mut self, out: &mut VecDeque<u8>) {
        self.ask(out, "GET", "/api/chat/rooms", None, Expect::Rooms);
    }

    fn ask(&mut self, out: &mut VecDeque<u8>, method: &str, path: &str, body: Option<Value>, expect: Expect) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\n", self.api_key);
        match body.map(|body| body.to_string()) {
            Some(body) if self.count % 5 == 1 => {
                text += &format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            }
            Some(body) => text += &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            None => text += "\r\n",
        }
        out.extend(text.bytes());
        self.expected.push_back(expect);
    }

    pub fn take(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while let Some((status, close, body, length)) = response(&self.input) {
            self.input.drain(..length);
            if status == 100 {
                continue;
            }
            assert!(!self.last, "nothing follows the last answer");
            self.last = close;
            if status == 408 {
                assert!(close);
                return;
            }
            let expect = self.expected.pop_front().expect("an answer has a question");
            self.check(&expect, status, &body);
            self.answers.push((expect, status, body));
        }
    }

    fn check(&mut self, expect: &Expect, status: u16, body: &Value) {
        if status == 503 {
            assert!(body["code"].is_string(), "{body}");
            return;
        }
        let good = match expect {
            Expect::Post { room, id } => {
                if status == 201 {
                    self.posted.push((room.clone(), id.clone(), body["seq"].as_u64().unwrap()));
                }
                status == 201 && text_is(&body["id"], id)
            }
            Expect::Online { .. } => status == 200 && body["online"].is_array(),
            Expect::Rooms => status == 200 && body["rooms"].is_array(),
            Expect::Health => status == 200 && body["status"] == "alive",
            Expect::Event => status == 202,
            Expect::Broadcast(rooms) => status == 200 && body["results"].as_array().is_some_and(|r| r.len() == *rooms),
            Expect::Disconnect => status == 200 && body["disconnected"].is_u64(),
            Expect::User => status == 200 && body["connections"].is_array(),
        };
        assert!(good, "{expect:?} was answered {status} {body}");
    }

    pub fn end(&mut self, excused: bool) {
        let complete = self.input.is_empty() && self.expected.is_empty();
        assert!(complete || excused || self.last || self.may_drop, "ended with {:?} unanswered", self.expected);
    }
}

fn text_is(value: &Value, id: &str) -> bool {
    value.as_str() == Some(id)
}

/// The first whole response: status, whether it is the last, body, length.
fn response(bytes: &[u8]) -> Option<(u16, bool, Value, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    assert!(head.starts_with("HTTP/1.1 "), "{head}");
    let status: u16 = head[9..12].parse().unwrap();
    let head = head.to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length = field("content-length:").map_or(0, |length| length.parse().unwrap());
    let body = bytes.get(end..end + length)?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
    Some((status, field("connection:") == Some("close"), body, end + length))
}
