//! A member of rooms: a WebSocket that comes back, says what it has, and keeps what it was told.
//!
//! Owns the transcripts. Invariant: within a transcript every event is the one behind the last, or it is a violation; a
//! transcript ends only where the server says that it cannot tell what was missed.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::client::{Credential, Http, Lost, Socket, messages_path, request, user_token};
use crate::random::Random;
use crate::run::Run;

const DURABLE: [&str; 5] = ["new_message", "message_updated", "message_deleted", "reaction", "reaction_removed"];
/// Pages of a room that are read when it is begun anew; the others only at the end.
const FIRST_PAGES: usize = 2;
const PAGE_LIMIT: usize = 50;

/// What a member was told of a room without a break.
#[derive(Clone)]
pub struct Transcript {
    pub room: usize,
    /// The `seq` up to which pages tell.
    pub begin: u64,
    /// The messages below this `seq` were not paged.
    pub paged_from: u64,
    /// Those behind `begin`, each with its `seq`, as sent.
    pub events: Vec<String>,
}

impl Transcript {
    pub fn last_seq(&self) -> u64 {
        self.begin + self.events.len() as u64
    }
}

/// A page of messages, with what was asked for.
#[derive(Clone)]
pub struct Page {
    pub room: usize,
    pub before: Option<u64>,
    pub after: Option<u64>,
    pub limit: usize,
    pub body: String,
}

/// What a member leaves behind.
#[derive(Clone)]
pub struct Legacy {
    pub name: String,
    /// Those that go on to the end.
    pub transcripts: Vec<Transcript>,
    /// Those that were discarded.
    pub discarded: Vec<Transcript>,
    pub pages: Vec<Page>,
    /// How often a room was recovered.
    pub recoveries: u64,
}

/// One user with one connection at a time.
pub struct Member<'r> {
    run: &'r Run,
    name: String,
    token: String,
    rooms: Vec<usize>,
    random: Random,
    socket: Option<Socket>,
    /// Rooms whose join was answered on this connection.
    joined: Vec<usize>,
    current: HashMap<usize, Transcript>,
    legacy: Legacy,
}

impl<'r> Member<'r> {
    pub fn new(run: &'r Run, name: &str, rooms: Vec<usize>, random: Random) -> Self {
        let legacy = Legacy {
            name: name.to_owned(),
            transcripts: Vec::new(),
            discarded: Vec::new(),
            pages: Vec::new(),
            recoveries: 0,
        };
        Self {
            run,
            name: name.to_owned(),
            token: user_token(name),
            rooms,
            random,
            socket: None,
            joined: Vec::new(),
            current: HashMap::new(),
            legacy,
        }
    }

    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Connects and asks for all rooms.
    pub fn connect(&mut self) -> Result<(), Lost> {
        self.disconnect();
        self.socket = Some(Socket::dial(self.run, &self.token)?);
        let since = |room: &usize| {
            let mut join = json!({"roomId": self.run.rooms[*room]});
            if let (Some(transcript), Some(epoch)) = (self.current.get(room), self.run.epoch()) {
                join["since"] = json!(transcript.last_seq());
                join["epoch"] = json!(epoch);
            }
            join
        };
        let mut joins: Vec<Value> = self.rooms.iter().map(since).collect();
        if self.random.one_in(2) {
            return self.send(&json!({"type": "join_rooms", "rooms": joins}));
        }
        for join in &mut joins {
            join["type"] = json!("join_room");
            self.send(join)?;
        }
        Ok(())
    }

    /// Ends the connection without a word.
    pub fn disconnect(&mut self) {
        self.socket = None;
        self.joined.clear();
    }

    pub fn send(&mut self, message: &Value) -> Result<(), Lost> {
        let sent = self.socket.as_mut().ok_or(Lost)?.send(message);
        if sent.is_err() {
            self.disconnect();
        }
        sent
    }

    /// Takes what comes next, if anything does. What is no matter of the rooms is returned.
    pub fn take(&mut self) -> Result<Option<Value>, Lost> {
        let taken = self.try_take();
        if taken.is_err() {
            self.disconnect();
        }
        taken
    }

    /// The last `seq` of a room, 0 if nothing of it is held.
    pub fn last_seq(&self, room: usize) -> u64 {
        self.current.get(&room).map_or(0, Transcript::last_seq)
    }

    /// Whether the join of a room was answered on this connection.
    pub fn has_joined(&self, room: usize) -> bool {
        self.joined.contains(&room)
    }

    /// Whether nothing is missing, once it is known how much there is.
    pub fn is_complete(&self) -> bool {
        let Some(last_seqs) = self.run.last_seqs() else { return false };
        self.rooms.iter().all(|room| self.has_joined(*room) && self.last_seq(*room) >= last_seqs[*room])
    }

    /// Reads what lies before the first pages, and ends.
    pub fn finish(mut self) -> Legacy {
        self.disconnect();
        let mut transcripts: Vec<Transcript> = self.current.drain().map(|(_, transcript)| transcript).collect();
        for transcript in &mut transcripts {
            while !self.run.has_failed() && transcript.paged_from > 1 {
                let _lost = self.page(transcript, usize::MAX);
            }
        }
        self.legacy.transcripts = transcripts;
        self.legacy
    }

    fn try_take(&mut self) -> Result<Option<Value>, Lost> {
        let Some(text) = self.socket.as_mut().ok_or(Lost)?.read()? else { return Ok(None) };
        let Ok(message) = serde_json::from_str::<Value>(&text) else {
            self.fail(format!("got {text:?}, which is no JSON"));
            return Err(Lost);
        };
        let kind = message["type"].as_str().unwrap_or_default();
        let room = message["roomId"].as_str().and_then(|room| self.run.rooms.iter().position(|other| other == room));
        match (kind, room) {
            ("online_update", Some(room)) => self.take_update(room, &message)?,
            (kind, Some(room)) if DURABLE.contains(&kind) => self.take_event(room, &message, text)?,
            ("ack", _) if message["rooms"].is_array() => {
                let mut rooms = message["rooms"].as_array().into_iter().flatten();
                // Whoever is too busy is asked again.
                return if rooms.any(|room| room["code"].is_string()) { Err(Lost) } else { Ok(None) };
            }
            ("error", _) if message["ref"].is_null() => match message["code"].as_str() {
                Some("overloaded" | "unavailable") => return Err(Lost),
                _ => self.fail(format!("got {text}")),
            },
            ("ack" | "error", _) => return Ok(Some(message)),
            _ => {}
        }
        Ok(None)
    }

    fn take_event(&mut self, room: usize, message: &Value, text: String) -> Result<(), Lost> {
        let seq = message["seq"].as_u64().unwrap_or_default();
        let is_joined = self.has_joined(room);
        match self.current.get_mut(&room) {
            Some(transcript) if is_joined && seq == transcript.last_seq() + 1 => {
                transcript.events.push(text);
                Ok(())
            }
            transcript => {
                let last = transcript.map(|transcript| transcript.last_seq());
                self.fail(format!("joined: {is_joined}, behind {last:?} of {:?} came {text}", self.run.rooms[room]));
                Err(Lost)
            }
        }
    }

    fn take_update(&mut self, room: usize, update: &Value) -> Result<(), Lost> {
        self.run.check_epoch(update["epoch"].as_str(), &self.name);
        if self.has_joined(room) {
            return Ok(());
        }
        self.joined.push(room);
        let Some(seq) = update["seq"].as_u64() else {
            self.fail(format!("got {update}, which has no seq"));
            return Err(Lost);
        };
        if seq < self.last_seq(room) {
            self.fail(format!("had {} and now got {update}", self.last_seq(room)));
            return Err(Lost);
        }
        match (self.current.remove(&room), update["recovered"].as_bool()) {
            (Some(transcript), Some(true)) => {
                self.legacy.recoveries += u64::from(seq > transcript.last_seq());
                self.current.insert(room, transcript);
                return Ok(());
            }
            (Some(transcript), Some(false)) => self.legacy.discarded.push(transcript),
            (None, None) => {}
            (held, _) => {
                self.fail(format!("asked with {:?} and got {update}", held.map(|held| held.last_seq())));
                return Err(Lost);
            }
        }
        let mut transcript = Transcript { room, begin: seq, paged_from: seq + 1, events: Vec::new() };
        let paged = self.page(&mut transcript, FIRST_PAGES);
        self.current.insert(room, transcript);
        // What was sent meanwhile waits in the socket.
        paged
    }

    /// Reads pages back from what is held, until there are no more messages.
    fn page(&mut self, transcript: &mut Transcript, pages_max: usize) -> Result<(), Lost> {
        let mut http = Http::dial(self.run)?;
        let path = messages_path(&self.run.rooms[transcript.room]);
        for _ in 0..pages_max {
            if transcript.paged_from <= 1 {
                break;
            }
            let query = format!("{path}?before={}&limit={PAGE_LIMIT}", transcript.paged_from);
            let answer = http.call(&request("GET", &query, &Credential::User(self.name.clone()), None, None))?;
            if answer.status == 503 {
                return Err(Lost);
            }
            let page = answer.json();
            let first = page["messages"][0]["seq"].as_u64();
            if answer.status != 200 || page["lastSeq"].as_u64().is_none_or(|last| last < transcript.begin) {
                self.fail(format!("had {} and was given {answer:?} for {query}", transcript.begin));
                return Err(Lost);
            }
            let (before, after) = (Some(transcript.paged_from), None);
            let (room, limit, body) = (transcript.room, PAGE_LIMIT, answer.body);
            self.legacy.pages.push(Page { room, before, after, limit, body });
            transcript.paged_from = match (page["more"].as_bool(), first) {
                (Some(true), Some(first)) if first < transcript.paged_from => first,
                _ => 1,
            };
        }
        Ok(())
    }

    fn fail(&self, what: String) {
        self.run.fail(format!("{} {what}", self.name));
    }
}
