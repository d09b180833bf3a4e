//! Who sits in rooms: readers, who come and go, and speakers, who also write over the socket.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use crate::book::{Action, Author, Book, Operation};
use crate::client::Lost;
use crate::member::{Legacy, Member};
use crate::random::Random;
use crate::run::{Run, Stage};

/// Requests of a speaker that are not answered yet.
const WINDOW: usize = 4;
/// Of its last messages a speaker repeats so many at the end.
const REPLAYS: usize = 30;

/// Reads until everything was read; leaves now and then, and comes back.
pub fn read(run: &Run, mut member: Member<'_>, mut random: Random) -> Legacy {
    while !run.has_failed() && !member.is_complete() {
        if !member.is_connected() && member.connect().is_err() {
            continue;
        }
        let _ = member.take();
        if run.stage() < Stage::End && random.one_in(400) {
            member.disconnect();
            run.pause(Duration::from_millis(random.below(500) as u64));
        }
    }
    member.finish()
}

/// A request that is not answered yet.
struct Sent {
    reference: u64,
    operation: Operation,
    /// The `seq` and the timestamp told before, of a message that is repeated for the sake of it.
    told: Option<(u64, Value)>,
}

/// One who writes over the socket on which it reads.
pub struct Speaker<'r> {
    run: &'r Run,
    member: Member<'r>,
    author: Author,
    sent: VecDeque<Sent>,
    references: u64,
    replays: Option<VecDeque<Sent>>,
}

impl<'r> Speaker<'r> {
    pub fn new(run: &'r Run, member: Member<'r>, author: Author) -> Self {
        Self { run, member, author, sent: VecDeque::new(), references: 0, replays: None }
    }

    /// Speaks while the storm lasts, then repeats its last messages, and then reads to the end.
    pub fn run(mut self) -> (Book, Legacy) {
        let mut is_done = false;
        while !self.run.has_failed() && (!is_done || !self.member.is_complete()) {
            if !self.member.is_connected() && self.come_back().is_err() {
                continue;
            }
            let turned = self.turn();
            if turned.is_ok() && !is_done && self.has_said_all() {
                is_done = true;
                self.run.publisher_is_done();
            }
            if self.author.random.one_in(1500) {
                self.member.disconnect();
            }
        }
        (self.author.book, self.member.finish())
    }

    /// Connects, and sends again what was not answered.
    fn come_back(&mut self) -> Result<(), Lost> {
        self.member.connect()?;
        for at in 0..self.sent.len() {
            self.transmit(at)?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), Lost> {
        if self.sent.len() < WINDOW
            && let Some(sent) = self.next()
        {
            self.sent.push_back(sent);
            self.transmit(self.sent.len() - 1)?;
        }
        match self.member.take()? {
            Some(answer) => self.take_answer(&answer),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> Option<Sent> {
        self.references += 1;
        let reference = self.references;
        if self.run.stage() == Stage::Storm {
            let speaks = self.author.random.one_in(2);
            return speaks.then(|| Sent { reference, operation: self.author.next(self.run), told: None });
        }
        let replays = self.replays.get_or_insert_with(|| replays(&self.author.book));
        replays.pop_front().map(|replay| Sent { reference, ..replay })
    }

    fn has_said_all(&self) -> bool {
        self.sent.is_empty() && self.replays.as_ref().is_some_and(VecDeque::is_empty)
    }

    fn transmit(&mut self, at: usize) -> Result<(), Lost> {
        let Some(Sent { reference, operation, .. }) = self.sent.get_mut(at) else { return Ok(()) };
        operation.attempts += 1;
        let (room, message) = (&self.run.rooms[operation.room], &operation.message);
        let request = match &operation.action {
            Action::Post { content } => {
                json!({"type": "send_message", "roomId": room, "id": message, "content": content, "ref": reference})
            }
            Action::Edit { content } => {
                let kind = "edit_message";
                json!({"type": kind, "roomId": room, "messageId": message, "content": content, "ref": reference})
            }
            Action::Delete => {
                json!({"type": "delete_message", "roomId": room, "messageId": message, "ref": reference})
            }
            Action::React { emoji, adds } => {
                let action = if *adds { "add" } else { "remove" };
                json!({"type": "reaction", "roomId": room, "messageId": message, "emoji": emoji, "action": action,
                       "ref": reference})
            }
        };
        self.member.send(&request)
    }

    fn take_answer(&mut self, answer: &Value) -> Result<(), Lost> {
        let at = self.sent.iter().position(|sent| answer["ref"] == json!(sent.reference));
        let Some(at) = at else {
            self.run.fail(format!("{} asked nothing that {answer} answers", self.author.user));
            return Err(Lost);
        };
        let is_ack = answer["type"] == "ack";
        match answer["code"].as_str() {
            Some("overloaded" | "unavailable") => {
                self.run.pause(Duration::from_millis(20));
                return self.transmit(at);
            }
            Some("not_found") if !self.sent[at].operation.is_own => {}
            Some(_) => {
                self.run.fail(format!("{} was answered {answer} to {:?}", self.author.user, self.sent[at].operation));
                return Err(Lost);
            }
            None => {}
        }
        let Some(Sent { operation, told, .. }) = self.sent.remove(at) else { return Ok(()) };
        if !is_ack {
            self.author.told_gone(self.run, operation);
            return Ok(());
        }
        let seq = answer["seq"].as_u64();
        if matches!(operation.action, Action::Post { .. }) {
            self.check_post(answer, &operation, told.as_ref())?;
        }
        if told.is_none() {
            let seq = seq.filter(|_| matches!(operation.action, Action::Post { .. }));
            self.author.told(self.run, operation, seq, &answer["timestamp"], None);
        }
        Ok(())
    }

    /// The answer to a message names it, is the same as before, and comes behind the event.
    fn check_post(&self, answer: &Value, sent: &Operation, told: Option<&(u64, Value)>) -> Result<(), Lost> {
        let seq = answer["seq"].as_u64();
        let is_as_told = told.is_none_or(|told| seq == Some(told.0) && answer["timestamp"] == told.1);
        let is_behind = sent.attempts > 1 || seq.is_some_and(|seq| seq <= self.member.last_seq(sent.room));
        if answer["id"] == json!(sent.message) && seq.is_some() && is_as_told && is_behind {
            return Ok(());
        }
        let (user, last) = (&self.author.user, self.member.last_seq(sent.room));
        self.run.fail(format!("{user}, told {told:?}, having {last}, was answered {answer} to {sent:?}"));
        Err(Lost)
    }
}

fn replays(book: &Book) -> VecDeque<Sent> {
    let last = book.posts.iter().rev().take(REPLAYS);
    let replay = |post: &crate::book::Posted| {
        let action = Action::Post { content: post.content.clone() };
        let operation = Operation { room: post.room, message: post.id.clone(), action, attempts: 0, is_own: true };
        Sent { reference: 0, operation, told: Some((post.seq, post.timestamp.clone())) }
    };
    last.map(replay).collect()
}
