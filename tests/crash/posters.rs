//! Who publishes over REST: many posts on a connection without waiting for answers, and changes one by one.
//!
//! Whatever is not answered as wished is sent again, byte for byte, until it is.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde_json::json;

use crate::book::{Action, Author, Book, Operation, Posted, content};
use crate::client::{Answer, Credential, Http, Lost, escape, messages_path, request};
use crate::random::Random;
use crate::run::{Run, Stage};

/// Requests that are sent before the first of them is answered.
const WINDOW: usize = 6;

/// How retries of a post are told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    ById,
    ByKey,
}

/// A post on its way.
struct Post {
    room: usize,
    id: Option<String>,
    content: String,
    request: Vec<u8>,
}

/// The service, which pipelines.
pub struct Poster<'r> {
    run: &'r Run,
    name: String,
    retries: Retries,
    random: Random,
    count: u64,
    sent: VecDeque<Post>,
    unsent: VecDeque<Post>,
    book: Book,
    /// The last `seq` told per room; nothing is told of the order once a post was refused.
    last_seqs: HashMap<usize, u64>,
    was_refused: bool,
}

impl<'r> Poster<'r> {
    pub fn new(run: &'r Run, name: String, retries: Retries, random: Random) -> Self {
        Self {
            run,
            name,
            retries,
            random,
            count: 0,
            sent: VecDeque::new(),
            unsent: VecDeque::new(),
            book: Book::default(),
            last_seqs: HashMap::new(),
            was_refused: false,
        }
    }

    /// Posts until the storm is over and everything is answered.
    pub fn run(mut self) -> Book {
        while !self.run.has_failed() && !self.is_done() {
            let _lost = self.use_connection();
            // Unanswered requests go first, in their order.
            while let Some(post) = self.sent.pop_back() {
                self.unsent.push_front(post);
            }
        }
        self.run.publisher_is_done();
        self.book
    }

    fn is_done(&self) -> bool {
        self.run.stage() != Stage::Storm && self.sent.is_empty() && self.unsent.is_empty()
    }

    fn use_connection(&mut self) -> Result<(), Lost> {
        let mut http = Http::dial(self.run)?;
        while !self.is_done() {
            // Giving up a connection makes retries of requests that are still under way.
            if self.random.one_in(150) {
                return Err(Lost);
            }
            self.fill(&mut http)?;
            let answer = http.answer()?;
            self.take(&answer);
            self.run.pause(Duration::from_millis(self.random.below(16) as u64));
        }
        Ok(())
    }

    /// Sends up to the window, all in one write.
    fn fill(&mut self, http: &mut Http<'_>) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        while self.sent.len() < WINDOW {
            let post = match self.unsent.pop_front() {
                Some(post) => post,
                None if self.run.stage() == Stage::Storm => self.make(),
                None => break,
            };
            bytes.extend_from_slice(&post.request);
            self.sent.push_back(post);
        }
        http.send(&bytes)
    }

    fn make(&mut self) -> Post {
        self.count += 1;
        let room = self.random.below(self.run.rooms.len());
        let content = content(&self.name, self.count, &mut self.random);
        let unique = format!("{}-{}", self.name, self.count);
        let mut body = json!({"content": content, "sender_user_id": self.name, "messageType": "text"});
        let (id, key) = match self.retries {
            Retries::ById => (Some(unique), None),
            Retries::ByKey => (None, Some(unique)),
        };
        if let Some(id) = &id {
            body["id"] = json!(id);
        }
        let path = messages_path(&self.run.rooms[room]);
        let request = request("POST", &path, &Credential::Service, key.as_deref(), Some(&body.to_string()));
        Post { room, id, content, request }
    }

    fn take(&mut self, answer: &Answer) {
        let Some(post) = self.sent.pop_front() else { return };
        if answer.status == 503 {
            self.was_refused = true;
            return self.unsent.push_back(post);
        }
        let told = answer.json();
        let (Some(seq), Some(id)) = (told["seq"].as_u64(), told["id"].as_str()) else {
            return self.run.fail(format!("{}: a post of {:?} was answered {answer:?}", self.name, post.content));
        };
        let asked = post.id.as_deref().unwrap_or(id);
        if answer.status != 201 || asked != id {
            return self.run.fail(format!("{}: {asked} was answered {answer:?}", self.name));
        }
        let last = self.last_seqs.insert(post.room, seq).unwrap_or(0);
        if seq <= last && !self.was_refused {
            self.run.fail(format!("{}: {id} has seq {seq} behind {last}, which was posted before", self.name));
        }
        self.run.acknowledge();
        self.run.offer(post.room, id);
        let timestamp = told["timestamp"].clone();
        let (room, content) = (post.room, post.content);
        self.book.posts.push(Posted { room, id: id.to_owned(), seq, timestamp, content, request: Some(post.request) });
    }
}

/// A user who does one thing after the other over REST, or the service in their name.
pub fn edit_over_rest(run: &Run, mut author: Author) -> Book {
    let mut http = None;
    while !run.has_failed() && run.stage() == Stage::Storm {
        let mut operation = author.next(run);
        let bytes = rest_request(run, &mut author, &operation);
        let answer = loop {
            if run.has_failed() {
                return author.book;
            }
            operation.attempts += 1;
            match call(run, &mut http, &bytes) {
                Ok(answer) if answer.status != 503 => break answer,
                Ok(_) => run.pause(Duration::from_millis(20)),
                Err(Lost) => http = None,
            }
        };
        take_rest_answer(run, &mut author, operation, &answer, bytes);
        run.pause(Duration::from_millis(author.random.below(5) as u64));
        if author.random.one_in(100) {
            http = None;
        }
    }
    run.publisher_is_done();
    author.book
}

fn call<'r>(run: &'r Run, http: &mut Option<Http<'r>>, bytes: &[u8]) -> Result<Answer, Lost> {
    let connection = match http {
        Some(connection) => connection,
        None => http.insert(Http::dial(run)?),
    };
    connection.call(bytes)
}

fn rest_request(run: &Run, author: &mut Author, operation: &Operation) -> Vec<u8> {
    let messages = messages_path(&run.rooms[operation.room]);
    let message = format!("{messages}/{}", escape(&operation.message));
    let user = Credential::User(author.user.clone());
    match &operation.action {
        Action::Post { content } => {
            let body = json!({"id": operation.message, "content": content}).to_string();
            request("POST", &messages, &user, None, Some(&body))
        }
        Action::Edit { content } => {
            let by = if author.random.one_in(4) { Credential::Service } else { user };
            request("PATCH", &message, &by, None, Some(&json!({"content": content}).to_string()))
        }
        Action::Delete => request("DELETE", &message, &user, None, None),
        Action::React { emoji, adds } => {
            let method = if *adds { "PUT" } else { "DELETE" };
            let path = format!("{message}/reactions/{}", escape(emoji));
            match author.random.one_in(2) {
                true => request(method, &path, &user, None, None),
                false => {
                    let path = format!("{path}?userId={}", author.user);
                    request(method, &path, &Credential::Service, None, None)
                }
            }
        }
    }
}

fn take_rest_answer(run: &Run, author: &mut Author, operation: Operation, answer: &Answer, bytes: Vec<u8>) {
    let told = answer.json();
    let (seq, timestamp) = (told["seq"].as_u64(), &told["timestamp"]);
    let is_post = matches!(operation.action, Action::Post { .. });
    match answer.status {
        201 if is_post && seq.is_some() && told["id"] == operation.message.as_str() => {
            author.told(run, operation, seq, timestamp, Some(bytes));
        }
        200 if !is_post && (seq.is_some() || operation.attempts > 1 || operation.may_be_void()) => {
            author.told(run, operation, seq, timestamp, None);
        }
        404 if !operation.is_own => author.told_gone(run, operation),
        _ => run.fail(format!("{}: {operation:?} was answered {answer:?}", author.user)),
    }
}
