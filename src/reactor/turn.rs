//! The turn of the event loop.
//!
//! Readiness is a latch per socket: set by events, cleared only when the socket says `WouldBlock` (or, for reading, by a
//! short read while the peer has not ended its side: data and end together give one event and no other ever comes).
//! Whoever stops early, because a budget is used up or the connection is paused, keeps the latch and stays queued. Writes
//! are tried first; writability is waited for only when a socket refuses.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::time::Duration;

use crate::chat::drain::Stage;
use crate::chat::ids::ShardId;
use crate::chat::queues::SendBudget;
use crate::chat::shard::Shard;
use crate::planted::{self, Bug};
use crate::wire::http::Status;
use crate::wire::proxy::{HEADER_BYTES_MAX, parse_proxy_header};

use super::io::{Event, Io, Post, Received, Written};
use super::moderation::Moderation;

const SLICES_MAX: usize = 64;
/// How soon a full mailbox is tried again.
const HELD_BACK: Duration = Duration::from_millis(2);
/// How soon accepting is tried again when the process has no descriptor or memory left.
const ACCEPT_AGAIN_MS: u64 = 100;

const READABLE: u8 = 1;
const READ_CLOSED: u8 = 2;
const QUEUED: u8 = 4;
/// The stream begins with a PROXY header that was not read yet.
const PROXIED: u8 = 8;

/// How much of each kind one turn does at most; what is left is done in the next. None may be 0.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Posts taken out of the mailbox.
    pub posts_max: usize,
    /// Envelopes of the shard to itself.
    pub local_max: usize,
    /// Connections accepted.
    pub accepts_max: usize,
    /// Bytes read from all connections together; the last read may exceed it.
    pub input_bytes_max: usize,
    /// Reads for handshakes of TLS. One that signs costs up to a millisecond, and most of a handshake are two reads.
    pub handshakes_max: usize,
    /// Timers of connections, most of which are pings: what comes meanwhile waits for so many writes.
    pub timers_max: usize,
    /// Writes to connections with answers or events of small rooms.
    pub express_max: usize,
    /// Writes to connections with events of large rooms. Answers and small rooms wait at most for so many, and what is said
    /// to a large room while it is being served waits no longer before it joins what the rest is sent.
    pub bulk_max: usize,
    /// The read buffer, and so the most that one connection is read in a turn.
    pub read_bytes: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            posts_max: 256,
            local_max: 4096,
            accepts_max: 64,
            input_bytes_max: 1024 * 1024,
            handshakes_max: 8,
            timers_max: 128,
            express_max: 1024,
            bulk_max: 16,
            read_bytes: 64 * 1024,
        }
    }
}

/// One event loop: a shard and the world that it acts on.
pub struct Reactor<I: Io> {
    shard: Shard,
    shards: u16,
    id: ShardId,
    io: I,
    budgets: Budgets,
    events: Vec<Event>,
    /// The latches of each slot.
    latches: Vec<u8>,
    /// Slots with something to read.
    readable: VecDeque<u32>,
    /// Slots with something to read that are in the middle of a handshake.
    opening: VecDeque<u32>,
    buffer: Box<[u8]>,
    /// Where small segments of one connection are put together for one write.
    cork: Vec<u8>,
    moderation: Moderation,
    acceptable: bool,
    accept_again_ms: u64,
    listening: bool,
    /// The mailbox was not emptied.
    posts_left: bool,
    /// When this turn began, on the tick clock.
    now_ms: u64,
    /// A stage that the server has named and that is not reported as done.
    stage: Option<Stage>,
    ended: bool,
}

impl<I: Io> Reactor<I> {
    /// The loop of `shard`, one of `shards`.
    pub fn new(shard: Shard, id: ShardId, shards: usize, io: I) -> Self {
        Self::with_budgets(shard, id, shards, io, Budgets::default())
    }

    /// The loop of `shard` with other budgets.
    pub fn with_budgets(shard: Shard, id: ShardId, shards: usize, io: I, budgets: Budgets) -> Self {
        Self {
            shard,
            shards: shards as u16,
            id,
            io,
            events: Vec::new(),
            latches: Vec::new(),
            readable: VecDeque::new(),
            opening: VecDeque::new(),
            buffer: vec![0; budgets.read_bytes].into(),
            budgets,
            cork: Vec::new(),
            moderation: Moderation::default(),
            // A connection may have come before the listener was registered.
            acceptable: true,
            accept_again_ms: 0,
            listening: true,
            posts_left: true,
            now_ms: 0,
            stage: None,
            ended: false,
        }
    }

    /// Turns until the server ends the thread.
    ///
    /// # Errors
    /// Only if the poll itself fails.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.ended {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn. Blocks only in the poll.
    pub fn turn(&mut self) -> io::Result<()> {
        if !self.has_work() && self.shard.give_back() {
            (self.readable, self.opening) = (VecDeque::new(), VecDeque::new());
            self.io.trim();
        }
        let timeout = self.timeout();
        self.events.clear();
        if let Some(rest) = self.moderation.take_rest() {
            self.io.rest(rest);
        }
        self.io.poll(&mut self.events, timeout)?;
        let now = self.io.now();
        self.now_ms = now.tick_ms;
        self.shard.begin_turn(now);
        self.latch_events();
        self.take_posts();
        self.accept();
        self.read();
        let (latches, io, shard) = (&self.latches, &self.io, &mut self.shard);
        shard.handle_timers(self.budgets.timers_max, |slot| {
            // Handshakes wait in line, and have their time for that too.
            latches.get(slot as usize).is_some_and(|latch| latch & READABLE != 0) && !io.is_opening(slot)
        });
        shard.handle_local(self.budgets.local_max);
        shard.freeze();
        // Bursts and answers for this shard's own members; what they ask in turn belongs to the next turn.
        shard.handle_local(self.budgets.local_max);
        // The store begins while the others are written to.
        self.submit();
        let writes = self.write();
        self.moderation.note_turn(self.now_ms, self.shard.pings(), writes);
        self.post();
        self.submit();
        self.report_stage();
        self.free();
        Ok(())
    }

    /// The shard, to look at.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The world, to act on in tests.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Whether the server has ended the loop.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// How long the next turn may sleep in the poll; `None` is for ever.
    pub fn timeout(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        let now_ms = self.now_ms;
        let accept = (self.listening && self.acceptable).then_some(self.accept_again_ms);
        let next = [self.shard.next_deadline_ms(), accept].into_iter().flatten().min();
        let next = next.map(|due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms)));
        if self.shard.is_holding() { Some(next.map_or(HELD_BACK, |next| next.min(HELD_BACK))) } else { next }
    }

    fn has_work(&self) -> bool {
        let must_report = self.stage.is_some() && self.is_stage_done();
        self.shard.has_work() || self.has_input() || self.posts_left || must_report
    }

    fn has_input(&self) -> bool {
        !self.readable.is_empty() || !self.opening.is_empty()
    }

    fn latch_events(&mut self) {
        for at in 0..self.events.len() {
            match self.events[at] {
                Event::Acceptable => self.acceptable = true,
                Event::Woken => {}
                Event::Socket { conn, readable, writable, read_closed } => {
                    if !self.shard.is_current(conn) {
                        continue;
                    }
                    let slot = conn.slot();
                    if readable || read_closed {
                        self.latches[slot as usize] |= READABLE | if read_closed { READ_CLOSED } else { 0 };
                        self.queue(slot);
                    }
                    if writable {
                        self.shard.handle_writable(slot);
                    }
                }
            }
        }
    }

    fn take_posts(&mut self) {
        self.posts_left = false;
        for _ in 0..self.budgets.posts_max {
            let Some(post) = self.io.receive() else { return };
            self.moderation.note_work(self.now_ms);
            match post {
                Post::Batch(batch) => self.shard.handle_batch(batch),
                Post::Done(done) => self.shard.handle_done(done),
                Post::Certificates(certificates) => self.io.renew(certificates),
                Post::Credentials(credentials) => self.shard.handle_credentials(credentials),
                Post::Stage(stage) => self.enter_stage(stage),
                Post::WindowOver => self.shard.handle_window_over(),
                Post::End => self.ended = true,
            }
        }
        // There may be more, for which no wake will come.
        self.posts_left = true;
    }

    fn enter_stage(&mut self, stage: Stage) {
        if stage >= Stage::Quiesce && self.listening {
            // Who has connected before the listener closes is served, or told.
            (self.acceptable, self.accept_again_ms) = (true, 0);
            while self.acceptable && self.accept_again_ms == 0 {
                self.accept();
            }
            self.io.close_listener();
            self.listening = false;
        }
        self.shard.handle_stage(stage);
        self.stage = Some(stage);
    }

    fn accept(&mut self) {
        let now_ms = self.now_ms;
        if !self.acceptable || !self.listening || now_ms < self.accept_again_ms {
            return;
        }
        self.accept_again_ms = 0;
        for _ in 0..self.budgets.accepts_max {
            if !self.shard.can_accept() {
                self.accept_again_ms = now_ms + ACCEPT_AGAIN_MS;
                return;
            }
            match self.io.accept() {
                Ok((socket, address)) => self.admit(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return;
                }
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, shard = self.id.0, "accepting is paused");
                    self.accept_again_ms = now_ms + ACCEPT_AGAIN_MS;
                    return;
                }
                // The peer was gone before it was accepted; the next one may be there.
                Err(_) => {}
            }
        }
    }

    fn admit(&mut self, socket: I::Socket, address: IpAddr) {
        let conn = self.shard.handle_accept(address);
        let slot = conn.slot() as usize;
        self.moderation.note_work(self.now_ms);
        if self.latches.len() <= slot {
            self.latches.resize(slot + 1, 0);
        }
        self.latches[slot] &= QUEUED;
        if self.shard.expects_proxy_header(address) {
            self.latches[slot] |= PROXIED;
        }
        if self.io.register(socket, conn).is_err() {
            self.shard.handle_failure(conn.slot());
        }
    }

    fn queue(&mut self, slot: u32) {
        let latch = &mut self.latches[slot as usize];
        if *latch & QUEUED == 0 {
            *latch |= QUEUED;
            let queue = if self.io.is_opening(slot) { &mut self.opening } else { &mut self.readable };
            queue.push_back(slot);
        }
    }

    /// Reads from whoever has something, in turn, until the turn's share of input is used up.
    fn read(&mut self) {
        while let Some(slot) = self.shard.poll_resumed() {
            if self.latches[slot as usize] & READABLE != 0 {
                self.queue(slot);
            }
        }
        let mut budget = self.budgets.input_bytes_max;
        for _ in 0..self.readable.len() {
            if budget == 0 {
                if planted::is(Bug::BudgetWithoutRequeue) {
                    self.readable.clear();
                    self.latches.iter_mut().for_each(|latch| *latch &= !QUEUED);
                }
                break;
            }
            let Some(slot) = self.readable.pop_front() else { break };
            budget = budget.saturating_sub(self.read_slot(slot));
        }
        for _ in 0..self.opening.len().min(self.budgets.handshakes_max) {
            let Some(slot) = self.opening.pop_front() else { break };
            self.read_slot(slot);
        }
    }

    /// Reads once from a slot that was queued; returns the bytes.
    fn read_slot(&mut self, slot: u32) -> usize {
        let at = slot as usize;
        self.latches[at] &= !QUEUED;
        // A paused connection keeps its latch, and is queued again when it is resumed.
        if self.latches[at] & READABLE == 0 || !self.shard.wants_input(slot) {
            return 0;
        }
        if self.latches[at] & PROXIED != 0 {
            self.read_proxy_header(slot);
            return 0;
        }
        match self.io.read(slot, &mut self.buffer) {
            Ok(Received::Input(input)) => {
                let is_ended = self.latches[at] & READ_CLOSED != 0;
                if input.is_short && (!is_ended || planted::is(Bug::LatchWithFin)) {
                    self.latches[at] &= !READABLE;
                } else {
                    self.queue(slot);
                }
                if input.is_certified {
                    self.shard.handle_certificate(slot);
                }
                if input.bytes > 0 {
                    self.shard.handle_input(slot, &mut self.buffer[..input.bytes]);
                }
                return input.bytes;
            }
            Ok(Received::End) => {
                self.latches[at] &= !READABLE;
                self.shard.handle_end_of_input(slot);
            }
            Ok(Received::Refused) => {
                self.queue(slot);
                self.shard.handle_refusal(slot);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => self.latches[at] &= !READABLE,
                io::ErrorKind::Interrupted => self.queue(slot),
                _ => {
                    self.latches[at] &= !READABLE;
                    self.shard.handle_failure(slot);
                }
            },
        }
        0
    }

    /// Reads the PROXY header in front of everything else, once it has come whole: until then it waits in the socket, and
    /// the connection's first deadline runs.
    fn read_proxy_header(&mut self, slot: u32) {
        let window = self.buffer.len().min(HEADER_BYTES_MAX);
        let length = match self.io.peek(slot, &mut self.buffer[..window]) {
            Ok(0) => return self.shard.handle_end_of_input(slot),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.latches[slot as usize] &= !READABLE;
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.queue(slot),
            Err(_) => return self.shard.handle_failure(slot),
        };
        match parse_proxy_header(&self.buffer[..length]) {
            Ok(Status::Complete(header)) => match self.io.take(slot, &mut self.buffer[..header.bytes]) {
                Ok(taken) if taken == header.bytes => {
                    self.latches[slot as usize] &= !PROXIED;
                    self.shard.handle_proxy_header(slot, header.client);
                    self.queue(slot);
                }
                _ => self.shard.handle_failure(slot),
            },
            Ok(Status::Partial) if self.latches[slot as usize] & READ_CLOSED == 0 => {
                // What is still to come gives another event.
                self.latches[slot as usize] &= !READABLE;
            }
            Ok(Status::Partial) => self.shard.refuse_proxy_header(slot, "the stream ends within the PROXY header"),
            Err(fault) => self.shard.refuse_proxy_header(slot, fault),
        }
    }

    /// At most one write per connection and turn; large rooms get a bounded share, so that they never stand in front.
    /// Returns how many there were.
    fn write(&mut self) -> usize {
        let mut writes = 0;
        let mut budget = SendBudget { express: self.budgets.express_max, bulk: self.budgets.bulk_max };
        while let Some(slot) = self.shard.poll_transmit(&mut budget) {
            writes += 1;
            let written = match self.shard.gather_whole(slot, &mut self.cork) {
                Some(bytes) => self.io.write(slot, &[IoSlice::new(bytes)]),
                None => self.write_gathered(slot),
            };
            match written {
                Ok(Written { bytes, is_blocked }) => self.shard.handle_sent(slot, bytes, is_blocked),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.shard.handle_sent(slot, 0, true),
                    io::ErrorKind::Interrupted => self.shard.handle_sent(slot, 0, false),
                    _ => self.shard.handle_failure(slot),
                },
            }
        }
        while let Some(slot) = self.shard.poll_shut() {
            self.io.shut(slot);
        }
        writes
    }

    /// Writes what lies in several segments.
    fn write_gathered(&mut self, slot: u32) -> io::Result<Written> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.shard.gather(slot, &mut slices);
        self.io.write(slot, &slices[..count])
    }

    fn post(&mut self) {
        for target in (0..self.shards).map(ShardId).filter(|&target| target != self.id) {
            while let Some(batch) = self.shard.poll_batch(target) {
                if let Err(batch) = self.io.post(target, batch) {
                    self.shard.restore_batch(target, batch);
                    break;
                }
            }
        }
    }

    fn submit(&mut self) {
        while let Some(job) = self.shard.poll_job() {
            if let Err(job) = self.io.submit(job) {
                self.shard.handle_lost_job(job);
            }
        }
    }

    fn is_stage_done(&self) -> bool {
        self.shard.is_stage_done()
            && (self.stage != Some(Stage::Quiesce) || !self.has_input() && !self.shard.has_work())
    }

    fn report_stage(&mut self) {
        if let Some(stage) = self.stage
            && self.is_stage_done()
        {
            self.stage = None;
            self.io.report_stage_done(stage);
        }
    }

    fn free(&mut self) {
        while let Some(slot) = self.shard.poll_dead() {
            self.io.close(slot, self.shard.is_blocked(slot));
            self.latches[slot as usize] &= QUEUED;
            self.shard.free(slot);
        }
    }
}

/// Whether the process or the system has run out of descriptors or memory: waiting helps, trying again at once does not.
fn is_exhausted(error: &io::Error) -> bool {
    // ENFILE, EMFILE, ENOMEM, ENOBUFS of Linux; other systems name the first two alike.
    matches!(error.raw_os_error(), Some(23 | 24 | 12 | 105))
}
