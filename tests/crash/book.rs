//! What was asked of the server and what it answered, and what one who writes asks for next.
//!
//! An [`Author`] owns its messages and its reactions: nobody else changes them, and it has at most one request under way
//! for a message. So what the store must hold is known exactly, however often a request is repeated.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::random::Random;
use crate::run::Run;

const EMOJIS: [&str; 3] = ["+1", "\u{1f389}", "sizl"];

/// All that was acknowledged.
#[derive(Clone, Default)]
pub struct Book {
    pub posts: Vec<Posted>,
    pub changes: Vec<Changed>,
}

/// A message that was acknowledged.
#[derive(Clone)]
pub struct Posted {
    pub room: usize,
    pub id: String,
    pub seq: u64,
    pub timestamp: Value,
    pub content: String,
    /// What to send over HTTP to repeat it.
    pub request: Option<Vec<u8>>,
}

/// A change that was answered.
#[derive(Clone)]
pub struct Changed {
    pub room: usize,
    pub message: String,
    pub user: String,
    pub action: Action,
    /// The event that it became, where that was told.
    pub seq: Option<u64>,
    /// Whether it became an event. If not, it may have become one if the message was deleted, before that.
    pub is_certain: bool,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Post { content: String },
    Edit { content: String },
    Delete,
    React { emoji: &'static str, adds: bool },
}

/// A request.
#[derive(Clone, Debug)]
pub struct Operation {
    pub room: usize,
    pub message: String,
    pub action: Action,
    /// How often it was sent.
    pub attempts: u32,
    /// Whether the message is the author's own, so that nobody else can have deleted it.
    pub is_own: bool,
}

impl Operation {
    /// Whether it may be acknowledged and yet be no event: taking back a reaction that went with its message.
    pub fn may_be_void(&self) -> bool {
        !self.is_own && matches!(self.action, Action::React { adds: false, .. })
    }
}

/// One who writes, edits, deletes and reacts.
pub struct Author {
    pub user: String,
    pub rooms: Vec<usize>,
    pub book: Book,
    pub random: Random,
    own: Vec<(usize, String)>,
    reactions: HashMap<(usize, String, &'static str), bool>,
    under_way: HashSet<String>,
    gone: HashSet<String>,
    count: u64,
}

impl Author {
    pub fn new(user: String, rooms: Vec<usize>, random: Random) -> Self {
        Self {
            user,
            rooms,
            book: Book::default(),
            random,
            own: Vec::new(),
            reactions: HashMap::new(),
            under_way: HashSet::new(),
            gone: HashSet::new(),
            count: 0,
        }
    }

    /// What to ask for next.
    pub fn next(&mut self, run: &Run) -> Operation {
        let operation = self.change(run).unwrap_or_else(|| self.post());
        self.under_way.insert(operation.message.clone());
        operation
    }

    /// The answer to a change, or to a post as `(seq, timestamp)`.
    pub fn told(&mut self, run: &Run, done: Operation, seq: Option<u64>, timestamp: &Value, request: Option<Vec<u8>>) {
        let is_certain = !done.may_be_void() || seq.is_some();
        let Operation { room, message, action, .. } = done;
        self.under_way.remove(&message);
        run.acknowledge();
        if let Action::Post { content } = action {
            self.own.push((room, message.clone()));
            run.offer(room, &message);
            let (seq, timestamp) = (seq.unwrap_or_default(), timestamp.clone());
            return self.book.posts.push(Posted { room, id: message, seq, timestamp, content, request });
        }
        if action == Action::Delete {
            self.own.retain(|(_, id)| *id != message);
            self.gone.insert(message.clone());
        }
        let user = self.user.clone();
        self.book.changes.push(Changed { room, message, user, action, seq, is_certain });
    }

    /// The answer that a message which was not ours has been deleted.
    pub fn told_gone(&mut self, run: &Run, done: Operation) {
        let Operation { room, message, action, .. } = done;
        run.acknowledge();
        self.under_way.remove(&message);
        self.gone.insert(message.clone());
        let user = self.user.clone();
        self.book.changes.push(Changed { room, message, user, action, seq: None, is_certain: false });
    }

    fn post(&mut self) -> Operation {
        let (room, content) = (self.random.pick(&self.rooms), self.content());
        let message = uuid(&mut self.random);
        Operation { room, message, action: Action::Post { content }, attempts: 0, is_own: true }
    }

    /// A change of a message that no request is under way for, if the dice and the messages are so.
    fn change(&mut self, run: &Run) -> Option<Operation> {
        let dice = self.random.below(100);
        if dice < 45 {
            return None;
        }
        let own = self.own.get(self.random.below(self.own.len()));
        let foreign = run.recent(&self.rooms, self.random.next() as usize);
        let (room, message) = if dice >= 85 { foreign? } else { own.cloned()? };
        if self.under_way.contains(&message) || self.gone.contains(&message) {
            return None;
        }
        let is_own = self.own.iter().any(|(_, id)| *id == message);
        let action = match dice {
            45..65 => Action::Edit { content: self.content() },
            65..70 => Action::Delete,
            _ => {
                let emoji = self.random.pick(&EMOJIS);
                let stands = self.reactions.entry((room, message.clone(), emoji)).or_default();
                *stands = !*stands;
                Action::React { emoji, adds: *stands }
            }
        };
        Some(Operation { room, message, action, attempts: 0, is_own })
    }

    fn content(&mut self) -> String {
        self.count += 1;
        content(&self.user, self.count, &mut self.random)
    }
}

/// A content that is like no other.
pub fn content(user: &str, count: u64, random: &mut Random) -> String {
    let length = random.pick(&[0, 0, 20, 100, 300]);
    format!("{user} {count} {}", "\u{e4}x\"".repeat(length / 3))
}

/// A random UUID.
pub fn uuid(random: &mut Random) -> String {
    let [a, b] = [random.next(), random.next()];
    let (b, c) = (b & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000, a & 0xfff | 0x4000);
    format!("{:08x}-{:04x}-{c:04x}-{:04x}-{:012x}", a >> 32, a >> 16 & 0xffff, b >> 48, b & 0xffff_ffff_ffff)
}
