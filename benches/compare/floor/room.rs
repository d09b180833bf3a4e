//! A room: one log of frames, and for each member only how far into it that member has been sent.
//!
//! Whoever is behind stands in a ring and is served in the order in which it fell behind; those who fall behind together
//! stand there in the order of joining. Serving a member is one `send` of everything up to the log's end, so a member that
//! had to wait while more was said gets all of it at once.
//!
//! Invariants: whoever is behind is in the ring, at least once; an entry of somebody who is not is skipped. Positions
//! count bytes and wrap around; the log never holds more than what the slowest member lacks and one round of the ring.

use std::collections::VecDeque;

use crate::conns::Conns;
use crate::text;

/// Room that an idle room's log keeps.
const LOG_BYTES_KEPT: usize = 256;

/// A room, its members' descriptors and its log.
#[derive(Default)]
pub struct Room {
    /// As in JSON, without the quotes.
    pub name: Box<[u8]>,
    /// Whether it stands in the queue of rooms with somebody behind.
    pub is_queued: bool,
    members: Vec<i32>,
    /// How far each member has been sent.
    sent: Vec<u32>,
    /// Who joined in this turn, and where in the log its own `user_joined` begins.
    joining: Vec<(i32, u32)>,
    ring: VecDeque<u32>,
    log: Vec<u8>,
    /// The position of the log's first byte.
    start: u32,
    /// Up to where the members had been told before this turn.
    told: u32,
    /// Up to where the log may be cut once the ring has gone round, and how many entries that still takes.
    cut: (u32, usize),
}

impl Room {
    /// A room without members.
    pub fn new(name: &[u8]) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Appends the frame of `text`.
    pub fn push(&mut self, text: &[u8]) {
        text::push_frame(&mut self.log, text);
    }

    /// The connection becomes a member at the end of the turn; what is pushed from now on is for it as well.
    pub fn join(&mut self, fd: i32) {
        self.joining.push((fd, self.end()));
    }

    /// The connection is no member any more. Joining and leaving are rare, so they may cost a walk through the ring.
    pub fn leave(&mut self, fd: i32, slot: Option<u32>, conns: &mut Conns) {
        let Some(slot) = slot else {
            return self.joining.retain(|&(joiner, _)| joiner != fd);
        };
        let last = self.members.len() as u32 - 1;
        self.members.swap_remove(slot as usize);
        self.sent.swap_remove(slot as usize);
        self.ring.retain(|&entry| entry != slot);
        if slot != last {
            self.ring.iter_mut().filter(|entry| **entry == last).for_each(|entry| *entry = slot);
            conns.at(self.members[slot as usize]).slot = slot;
        }
        self.cut = (self.start, self.ring.len());
    }

    /// Ends the turn's input: puts those who have fallen behind into the ring, and makes members of those who joined.
    pub fn close_turn(&mut self, conns: &mut Conns, now_ms: u128) {
        let end = self.end();
        if self.told != end {
            for (slot, &sent) in self.sent.iter().enumerate() {
                if sent == self.told {
                    self.ring.push_back(slot as u32);
                }
            }
            self.told = end;
        }
        if !self.joining.is_empty() {
            self.admit(conns, now_ms);
        }
    }

    /// Sends to the next member that is behind; false if nobody is.
    pub fn serve(&mut self, conns: &mut Conns) -> bool {
        while let Some(slot) = self.ring.pop_front() {
            self.note_round();
            if self.catch_up(slot, conns) {
                return true;
            }
        }
        self.start = self.end();
        self.log.clear();
        // What a storm of joins needed is given back.
        self.log.shrink_to(LOG_BYTES_KEPT);
        self.ring.shrink_to(self.members.len());
        self.cut = (self.start, 0);
        false
    }

    /// Sends a member all that it lacks; false if it lacks nothing.
    pub fn catch_up(&mut self, slot: u32, conns: &mut Conns) -> bool {
        let slot = slot as usize;
        let from = self.sent[slot].wrapping_sub(self.start) as usize;
        if from >= self.log.len() {
            return false;
        }
        conns.send(self.members[slot], &self.log[from..]);
        self.sent[slot] = self.end();
        true
    }

    fn end(&self) -> u32 {
        self.start.wrapping_add(self.log.len() as u32)
    }

    /// Once all entries that were in the ring at the last cut have been served, nobody lacks what was said before it.
    fn note_round(&mut self) {
        self.cut.1 = self.cut.1.saturating_sub(1);
        if self.cut.1 == 0 {
            let gone = self.cut.0.wrapping_sub(self.start) as usize;
            self.log.drain(..gone);
            self.start = self.cut.0;
            self.cut = (self.end(), self.ring.len() + 1);
        }
    }

    /// One list of users serves all who joined in this turn.
    fn admit(&mut self, conns: &mut Conns, now_ms: u128) {
        let end = self.end();
        for &(fd, _) in &self.joining {
            conns.at(fd).slot = self.members.len() as u32;
            self.members.push(fd);
            self.sent.push(end);
        }
        let mut text = Vec::new();
        text::begin(&mut text, b"online_update");
        text::field_text(&mut text, b"roomId", &self.name);
        text.extend_from_slice(b",\"online\":[");
        for &fd in &self.members {
            text.extend_from_slice(conns.at(fd).user.json());
            text.push(b',');
        }
        text.pop();
        text.push(b']');
        text::end(&mut text, now_ms);
        let mut piece = Vec::new();
        for (fd, from) in std::mem::take(&mut self.joining) {
            piece.clear();
            piece.extend_from_slice(&self.log[from.wrapping_sub(self.start) as usize..]);
            text::push_frame(&mut piece, &text);
            conns.send(fd, &piece);
        }
    }
}
