//! A REST client: requests pipelined in one direction, answers expected in the same order.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::change::{Change, What, text};
use super::members::{GUARDED, Told};
use super::random::Random;

#[derive(Clone, Debug)]
pub enum Expect {
    Change(Change),
    Page {
        room: String,
    },
    /// The feed behind a position.
    Feed {
        position: u64,
    },
    ReadState,
    Online {
        room: String,
    },
    Rooms,
    Health,
    Event,
    Broadcast,
    Disconnect,
    User,
    /// A change of memberships, of one user or of all.
    Members(Option<String>),
}

/// How a client is, and the server.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub big: bool,
    pub may_drop: bool,
    pub has_store: bool,
    pub guarded: bool,
}

pub struct Rest {
    api_key: String,
    rooms: Vec<String>,
    users: Vec<String>,
    name: String,
    count: u64,
    big: bool,
    has_store: bool,
    /// How far it has read the feed, and the cursor there.
    feed: (u64, Option<String>),
    input: Vec<u8>,
    pub expected: VecDeque<Expect>,
    /// The server said that it closes.
    pub last: bool,
    pub quiet: bool,
    /// It may be dropped without an answer.
    pub may_drop: bool,
    /// Changes of which it is not known whether they are kept.
    pub open: Vec<Change>,
    pub acknowledged: Vec<(Change, Option<u64>)>,
    guarded: bool,
    pub members: Vec<Told>,
    /// Messages that it may change, by room.
    own: Vec<(String, String)>,
    pub answers: Vec<(Expect, u16, Value)>,
    /// Pages of rooms and of the feed.
    pub pages: Vec<(Expect, Value)>,
}

impl Rest {
    pub fn new(name: String, api_key: &str, rooms: Vec<String>, users: Vec<String>, manner: Manner) -> Self {
        let Manner { big, may_drop, has_store, guarded } = manner;
        Self {
            api_key: api_key.to_owned(),
            rooms,
            users,
            name,
            count: 0,
            big,
            has_store,
            feed: (0, None),
            input: Vec::new(),
            expected: VecDeque::new(),
            last: false,
            quiet: false,
            may_drop,
            open: Vec::new(),
            acknowledged: Vec::new(),
            guarded,
            members: Vec::new(),
            own: Vec::new(),
            answers: Vec::new(),
            pages: Vec::new(),
        }
    }

    pub fn unanswered(&self) -> usize {
        if self.last { 0 } else { self.expected.len() }
    }

    pub fn act(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        if self.quiet || self.last {
            return;
        }
        if self.guarded && random.one_in(4) {
            return self.change_members(random, out);
        }
        let room = self.rooms[random.below(self.rooms.len())].clone();
        match random.below(28) {
            20..=23 => self.change(&room, random, out),
            24..=25 => self.page(&room, random, out),
            26 => self.feed(random, out),
            27 => {
                let path = format!("/api/chat/rooms/{room}/read/1");
                self.ask(out, "GET", &path, None, Expect::ReadState);
            }
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
                self.ask(out, "POST", "/api/chat/broadcast", Some(body), Expect::Broadcast);
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

    /// Posts or changes a message.
    pub fn converse(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        if self.quiet || self.last {
            return;
        }
        if self.guarded && random.one_in(3) {
            return self.change_members(random, out);
        }
        let room = self.rooms[random.below(self.rooms.len())].clone();
        match random.below(4) {
            0 => self.post(&room, random, out),
            _ => self.change(&room, random, out),
        }
    }

    pub fn post(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>) {
        self.count += 1;
        let size = if self.big { random.pick(&[10, 1_000, 30_000]) } else { random.pick(&[3, 50, 200]) };
        let id = format!("{}-{}-{size}", self.name, self.count);
        self.own.push((room.to_owned(), id.clone()));
        self.ask_change(Change { room: room.to_owned(), what: What::Message { id } }, out);
    }

    /// Changes a message, or repeats what may not be kept.
    fn change(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>) {
        if !self.open.is_empty() && random.one_in(2) {
            let change = self.open.swap_remove(random.below(self.open.len()));
            return self.ask_change(change, out);
        }
        self.count += 1;
        let own: Vec<&String> = self.own.iter().filter(|(of, _)| of == room).map(|(_, id)| id).collect();
        let id = match own.len() {
            0 => "never-seen".to_owned(),
            count => own[random.below(count)].clone(),
        };
        let emoji = format!("e{}", self.count % 7);
        let what = match random.below(6) {
            0..=1 => What::Edit { id, content: format!("edit {} of {}", self.count, self.name) },
            2 => What::Delete { id },
            3 => What::React { id, emoji, user: "1".to_owned() },
            4 => What::Unreact { id, emoji },
            _ => What::MarkRead { seq: random.range(1, 10) as u64 },
        };
        self.ask_change(Change { room: room.to_owned(), what }, out);
    }

    fn ask_change(&mut self, change: Change, out: &mut VecDeque<u8>) {
        let (method, path, body) = change.call();
        self.ask(out, method, &path, body, Expect::Change(change));
    }

    /// Lets somebody in, or out.
    pub fn set_member(&mut self, user: &str, is_in: bool, out: &mut VecDeque<u8>) {
        if self.quiet || self.last {
            return;
        }
        let path = format!("/api/chat/rooms/{GUARDED}/members/{user}");
        self.ask(out, if is_in { "PUT" } else { "DELETE" }, &path, None, Expect::Members(Some(user.to_owned())));
    }

    /// Lets somebody in, or out; now and then with a version that is late.
    pub fn change_members(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        let path = format!("/api/chat/rooms/{GUARDED}/members");
        let version = random.one_in(3).then(|| random.range(1, 40));
        if random.one_in(12) {
            let listed = random.below(self.users.len() + 1);
            let members: Vec<Value> = self.users.iter().take(listed).map(|user| json!({"userId": user})).collect();
            let body = json!({"members": members, "version": version});
            return self.ask(out, "PUT", &path, Some(body), Expect::Members(None));
        }
        let user = self.users[random.below(self.users.len())].clone();
        let expect = Expect::Members(Some(user.clone()));
        if random.one_in(3) {
            let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
            return self.ask(out, "DELETE", &format!("{path}/{user}{query}"), None, expect);
        }
        let role = random.pick(&["member", "member", "member", "reader"]);
        self.ask(out, "PUT", &format!("{path}/{user}"), Some(json!({"role": role, "version": version})), expect);
    }

    fn page(&mut self, room: &str, random: &mut Random, out: &mut VecDeque<u8>) {
        let query = match random.below(3) {
            0 => String::new(),
            1 => format!("?limit={}", random.range(1, 5)),
            _ => format!("?after={}&limit={}", random.below(10), random.range(1, 5)),
        };
        let expect = Expect::Page { room: room.to_owned() };
        self.ask(out, "GET", &format!("/api/chat/rooms/{room}/messages{query}"), None, expect);
    }

    /// Reads on in the feed.
    pub fn feed(&mut self, random: &mut Random, out: &mut VecDeque<u8>) {
        if self.expected.iter().any(|expect| matches!(expect, Expect::Feed { .. })) {
            return;
        }
        let (position, cursor) = self.feed.clone();
        let after = cursor.map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let path = format!("/api/chat/events?limit={}&wait={}{after}", random.range(1, 20), random.below(3));
        self.ask(out, "GET", &path, None, Expect::Feed { position });
    }

    /// The whole feed, page by page: what is asked next when nothing is asked.
    pub fn feed_on(&mut self, out: &mut VecDeque<u8>) {
        let (position, cursor) = self.feed.clone();
        let after = cursor.map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        self.ask(out, "GET", &format!("/api/chat/events?limit=100{after}"), None, Expect::Feed { position });
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
            if let Expect::Change(change) = expect {
                self.open.push(change.clone());
            }
            return;
        }
        if matches!(expect, Expect::Page { .. } | Expect::Feed { .. }) {
            self.pages.push((expect.clone(), body.clone()));
        }
        let good = match expect {
            Expect::Change(change) => {
                let seq = body["seq"].as_u64();
                if status < 300 {
                    self.acknowledged.push((change.clone(), seq));
                }
                match &change.what {
                    What::Message { id } => status == 201 && body["id"] == **id && seq.is_some(),
                    _ => matches!(status, 200 | 404),
                }
            }
            Expect::Page { .. } => status == 200 && body["lastSeq"].is_u64(),
            Expect::ReadState => status == 200 && body["seq"].is_u64(),
            Expect::Feed { .. } => {
                let next = body["next"].as_str().unwrap_or_default();
                let position = next.rsplit('-').next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
                self.feed = (position.unwrap_or_default(), Some(next.to_owned()));
                status == 200 && position.is_some() && self.has_store
            }
            Expect::Online { .. } => status == 200 && body["online"].is_array(),
            Expect::Rooms => status == 200 && body["rooms"].is_array(),
            Expect::Health => status == 200 && body["status"] == "alive",
            Expect::Event => status == 202,
            Expect::Broadcast => {
                let results = body["results"].as_array().unwrap();
                for result in results.iter().filter(|result| result["seq"].is_u64()) {
                    let what = What::Message { id: text(&result["id"]) };
                    self.acknowledged.push((Change { room: text(&result["roomId"]), what }, result["seq"].as_u64()));
                }
                status == 200 && results.len() == self.rooms.len()
            }
            Expect::Disconnect => status == 200 && body["disconnected"].is_u64(),
            Expect::Members(user) => {
                let version = body["version"].as_u64();
                self.members.extend(version.map(|version| Told { user: user.clone(), version }));
                version.is_some() == (status == 200) && matches!(status, 200 | 409)
            }
            Expect::User => status == 200 && body["connections"].is_array(),
        };
        assert!(good, "{expect:?} was answered {status} {body}");
    }

    /// The rooms that took a change.
    pub fn changed_rooms(&self) -> Vec<String> {
        let taken = self.answers.iter().filter(|(_, status, _)| *status < 300);
        let rooms = taken.filter_map(|(expect, ..)| match expect {
            Expect::Change(change) => Some(change.room.clone()),
            _ => None,
        });
        rooms.collect()
    }

    /// What may not be kept, for another client to repeat.
    pub fn into_open(self) -> Vec<Change> {
        let unanswered = self.expected.into_iter().filter_map(|expect| match expect {
            Expect::Change(change) => Some(change),
            _ => None,
        });
        self.open.into_iter().chain(unanswered).take(20).collect()
    }

    pub fn end(&mut self, excused: bool) {
        let complete = self.input.is_empty() && self.expected.is_empty();
        assert!(complete || excused || self.last || self.may_drop, "ended with {:?} unanswered", self.expected);
    }
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
