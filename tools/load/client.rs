//! All connections of the load on one thread: a slot each, edge-triggered readiness, one read buffer for all, and the turn.
//! It knows the protocol's order (upgrade, `connected`, `join_room`, `online_update`) but not the phases of a run.
//!
//! Invariants: a slot without a stream gets no bytes; a frame is parsed where it was read, only an unfinished tail is kept;
//! a publisher's next message leaves as soon as the event that gave it room is handled, not at the end of the turn.

use std::io::{self, ErrorKind};
use std::mem;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::args::Args;
use crate::comeback::Comeback;
use crate::dial::Dialer;
use crate::frame::{self, Parsed};
use crate::http::{self, Answer, Head};
use crate::ledger::{Ledger, message_type};
use crate::marker::{self, PREFIX_BYTES};
use crate::presence::Presence;
use crate::publisher::{OUTPUT_BYTES_MAX, Publisher, Schedule};
use crate::slot::{Census, Kind, Slot, State};

const BUFFER_BYTES: usize = 256 * 1024;
const EVENTS_PER_TURN: usize = 1024;

/// The connections and what arrived on them.
pub struct Client {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    slots: Vec<Slot>,
    publishers: Vec<Publisher>,
    /// Publishers whose window may have room.
    ready: Vec<usize>,
    dialer: Dialer,
    prefix: [u8; PREFIX_BYTES],
    start: Instant,
    now_us: u64,
    event_type: &'static [u8],
    room_prefix: String,
    rooms: usize,
    /// Messages in flight per publisher; `None` while nothing is sent in answer to what arrives.
    window: Option<u32>,
    reading_stalled: bool,
    ending: bool,
    unwatched: bool,
    joins_come_first: bool,
    /// Where the members left off, if they come back.
    pub comeback: Option<Comeback>,
    /// The books.
    pub ledger: Ledger,
    /// The books of who was told of whom, if they are kept.
    pub presence: Option<Presence>,
    /// Pings answered.
    pub pings: u64,
    /// The count of connections.
    pub census: Census,
    /// When something last went forward, in microseconds.
    pub progress_us: u64,
}

impl Client {
    /// Prepares all connections; none is opened.
    pub fn new(args: &Args, dialer: Dialer, run: u32) -> io::Result<Self> {
        let prefix = marker::prefix(run);
        let per_room = args.publishers_per_room();
        let posting = if args.posts() { args.publishers() } else { 0 };
        let kind = |i: usize| match i {
            _ if i >= args.sockets() => Kind::Http(i - args.sockets()),
            _ if i >= args.connections => Kind::Churner,
            _ if i >= args.connections - args.stall => Kind::Stalled,
            _ => Kind::Checked,
        };
        let slots = (0..args.sockets() + posting).map(|i| Slot::new(kind(i), (i % args.rooms) as u32));
        let first = if posting > 0 { args.sockets() } else { 0 };
        let mut ledger = Ledger::new(&prefix, args.sockets(), args.rooms, per_room);
        (0..args.connections - args.stall).for_each(|member| ledger.check_fully(member));
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_TURN),
            buffer: vec![0; BUFFER_BYTES],
            slots: slots.collect(),
            publishers: (0..args.publishers()).map(|i| Publisher::new(args, i, first + i)).collect(),
            ready: Vec::new(),
            dialer,
            prefix,
            start: Instant::now(),
            now_us: 0,
            event_type: if posting > 0 { b"new_message" } else { b"reaction" },
            room_prefix: args.room_prefix.clone(),
            rooms: args.rooms,
            window: None,
            reading_stalled: true,
            ending: false,
            unwatched: false,
            joins_come_first: args.history > 0,
            comeback: None,
            ledger,
            presence: args.presence.then(|| Presence::new(args.connections, args.rooms)),
            pings: 0,
            census: Census::default(),
            progress_us: 0,
        })
    }

    /// Connections in all.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Microseconds since the start of the run.
    pub fn clock_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Waits for events, at most so long, and handles them.
    pub fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        let mut events = mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        };
        self.now_us = self.clock_us();
        for event in &events {
            let index = event.token().0;
            let slot = &mut self.slots[index];
            slot.read_closed |= event.is_read_closed();
            if slot.state == State::Connecting {
                if event.is_writable() || event.is_error() {
                    self.connected(index);
                }
                continue;
            }
            if event.is_writable() && slot.wants_flush() {
                self.flush(index);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.read(index);
            }
            self.pump();
        }
        self.events = events;
        polled
    }

    /// Opens the connection of a slot.
    pub fn open(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let small = slot.kind == Kind::Stalled;
        let opened = self.dialer.dial(index, small).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            registry.register(stream.socket_mut(), Token(index), interest)?;
            Ok(stream)
        });
        self.census.opening += 1;
        slot.state = State::Connecting;
        match opened {
            Ok(stream) => slot.stream = Some(stream),
            Err(error) => self.lost(index, &format!("connect_{:?}", error.kind())),
        }
    }

    /// Sends `join_room` for the slot's own room.
    pub fn join(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.state != State::Greeted {
            return;
        }
        let room = index % self.rooms;
        let since = self.comeback.as_ref().map(Comeback::members).unwrap_or_default();
        let text = format!("{{\"type\":\"join_room\",\"roomId\":\"{}{room}\"{since}}}", self.room_prefix);
        slot.state = State::Joining;
        self.census.joining += 1;
        self.send(index, frame::TEXT, text.as_bytes());
    }

    /// From now on stalled members read, or do not. What they left unread is then read at once.
    pub fn read_stalled(&mut self, reading: bool) {
        self.reading_stalled = reading;
        for index in 0..self.slots.len() {
            if reading && self.slots[index].kind == Kind::Stalled {
                self.read(index);
            }
        }
    }

    /// Opens the windows of all publishers; `None` closes them.
    pub fn publish(&mut self, window: Option<u32>) {
        self.window = window;
        self.ready.extend(0..self.publishers.len());
        self.pump();
        self.ready.clear();
    }

    /// Sends what is due by the schedule; false once no publisher has anything left to send.
    pub fn publish_due(&mut self, schedule: &mut Schedule) -> bool {
        let now_us = self.clock_us();
        let count = self.publishers.len();
        let mut idle = 0;
        while schedule.due_us() <= now_us && idle < count {
            let publisher = &mut self.publishers[schedule.publisher(count)];
            let slot = &mut self.slots[publisher.slot];
            if slot.out.len() > OUTPUT_BYTES_MAX {
                break;
            }
            idle += 1;
            if publisher.sent < publisher.limit && slot.stream.is_some() {
                idle = 0;
                let late_us = now_us - schedule.due_us();
                publisher.write(&self.prefix, now_us, late_us, &mut slot.out);
                self.ready.push(publisher.slot);
            }
            schedule.advance();
        }
        let touched = mem::take(&mut self.ready);
        for index in touched {
            self.flush(index);
        }
        self.publishers.iter().any(|p| p.sent < p.limit)
    }

    /// Each publisher stops after so many more messages.
    pub fn limit(&mut self, messages: u32) {
        for publisher in &mut self.publishers {
            publisher.limit(messages);
        }
    }

    /// Whether posts go to rooms that nobody has joined yet; once not, members know each publisher's first `known`.
    pub fn unwatch(&mut self, unwatched: bool, known: u32) {
        self.unwatched = unwatched;
        let members = if unwatched { 0 } else { self.slots.len() };
        for member in (0..members).filter(|&index| self.slots[index].kind == Kind::Checked) {
            self.ledger.know(member, known);
        }
    }

    /// Whether everything sent is answered.
    pub fn is_answered(&self) -> bool {
        self.publishers.iter().all(|p| p.answered >= p.sent)
    }

    /// Whether each publisher has sent all that it may.
    pub fn is_exhausted(&self) -> bool {
        self.publishers.iter().all(|p| p.sent >= p.limit)
    }

    /// Messages sent by each publisher.
    pub fn sent(&self) -> impl Iterator<Item = u32> + '_ {
        self.publishers.iter().map(|p| p.sent)
    }

    /// Whether everything sent is answered and has reached every member.
    pub fn is_settled(&self) -> bool {
        self.is_answered() && self.ledger.is_complete(self.sent())
    }

    /// Closes a churner that has joined, politely or not, and opens it again; false if it has not joined.
    pub fn churn(&mut self, index: usize, polite: bool) -> bool {
        if self.slots[index].state != State::Joined {
            return false;
        }
        if polite {
            self.send(index, frame::CLOSE, &1000_u16.to_be_bytes());
        }
        let slot = &mut self.slots[index];
        let Some(stream) = slot.stream.take() else {
            return false;
        };
        if !polite {
            // A reset instead of a close: what a phone that loses its network may leave behind.
            let _ = socket2::SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO));
        }
        drop(stream);
        let state = slot.close();
        self.census.leave(state);
        self.ledger.forget(index);
        self.census.churned += 1;
        self.open(index);
        true
    }

    /// Bytes that a connection has received.
    pub fn received(&self, index: usize) -> u64 {
        self.slots[index].received
    }

    /// All who have joined leave by closing their connection; nothing may have been published yet.
    pub fn part(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].state != State::Joined {
                continue;
            }
            self.send(index, frame::CLOSE, &1000_u16.to_be_bytes());
            // If sending failed, the connection has been counted as lost, and is closed.
            let state = self.slots[index].close();
            self.census.leave(state);
        }
        if let Some(presence) = &mut self.presence {
            presence.reset();
        }
    }

    /// Says goodbye on all connections; what ends from now on counts as nothing.
    pub fn end(&mut self) {
        self.ending = true;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.stream.is_some() && !matches!(slot.kind, Kind::Http(_)) {
                self.send(index, frame::CLOSE, &1000_u16.to_be_bytes());
            }
            self.slots[index].stream = None;
        }
    }

    /// The TCP connection stands, or has failed.
    fn connected(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(stream) = &slot.stream else { return };
        let failure = match stream.socket().take_error() {
            Ok(None) => stream.socket().peer_addr().err(),
            Ok(failure) => failure,
            Err(error) => Some(error),
        };
        match failure {
            Some(error) if error.kind() == ErrorKind::NotConnected => return,
            Some(error) => return self.lost(index, &format!("connect_{:?}", error.kind())),
            None => {}
        }
        if matches!(slot.kind, Kind::Http(_)) {
            slot.state = State::Posting;
            self.census.opening -= 1;
            self.census.open += 1;
            self.progress_us = self.now_us;
            return;
        }
        slot.state = State::Upgrading;
        slot.out = self.dialer.upgrade_request(index);
        self.flush(index);
    }

    /// Reads until nothing is left, or until a short read says that nothing can be.
    fn read(&mut self, index: usize) {
        let mut buffer = mem::take(&mut self.buffer);
        loop {
            let slot = &mut self.slots[index];
            if slot.kind == Kind::Stalled && slot.state == State::Joined && !self.reading_stalled {
                break;
            }
            match slot.read(&mut buffer) {
                Ok(None) => break,
                Ok(Some(0)) => {
                    self.lost(index, "eof");
                    break;
                }
                Ok(Some(filled)) => {
                    let is_plain = slot.stream.as_ref().is_some_and(|stream| !stream.is_secure());
                    let short = filled < buffer.len() && !slot.read_closed && is_plain;
                    self.now_us = self.clock_us();
                    let used = self.consume(index, &buffer[..filled]);
                    self.slots[index].keep(&buffer[used..filled]);
                    if short {
                        break;
                    }
                }
                Err(error) => {
                    self.lost(index, &format!("read_{:?}", error.kind()));
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Handles what is whole in `bytes` and says how many that were.
    fn consume(&mut self, index: usize, bytes: &[u8]) -> usize {
        let mut used = 0;
        if let Kind::Http(publisher) = self.slots[index].kind {
            return self.consume_answers(index, publisher, bytes);
        }
        if self.slots[index].state == State::Upgrading {
            match http::upgrade_answer(bytes) {
                Head::Partial => return 0,
                Head::Upgraded(size) => used = size,
                Head::Refused(status) => {
                    self.lost(index, &format!("upgrade_{status}"));
                    return bytes.len();
                }
            }
            self.slots[index].state = State::Upgraded;
        }
        loop {
            match frame::parse(&bytes[used..]) {
                Parsed::Frame { opcode, payload, size } => {
                    used += size;
                    if opcode == frame::TEXT {
                        self.text(index, payload);
                    } else if !self.control(index, opcode, payload) {
                        return bytes.len();
                    }
                }
                Parsed::Partial(_) => return used,
                Parsed::Broken(why) => {
                    self.ledger.breach(why);
                    self.lost(index, why);
                    return bytes.len();
                }
            }
        }
    }

    fn consume_answers(&mut self, index: usize, publisher: usize, bytes: &[u8]) -> usize {
        let mut used = 0;
        loop {
            match http::answer(&bytes[used..]) {
                Answer::Partial => return used,
                Answer::Broken => {
                    self.ledger.breach("http_broken");
                    self.lost(index, "http_broken");
                    return bytes.len();
                }
                Answer::Whole { status, size } => {
                    used += size;
                    if status != 201 {
                        self.ledger.error(format!("http_{status}"));
                    }
                    let found = self.ledger.find(&bytes[used - size..used]);
                    match found.filter(|marker| self.publishers[publisher].is_answer(marker)) {
                        Some(marker) => self.ledger.answer(&marker, self.now_us),
                        None if status == 201 => self.ledger.breach("answer_to_another"),
                        None => {}
                    }
                    let posted = &mut self.publishers[publisher];
                    posted.answered += 1;
                    if self.unwatched {
                        posted.seen = posted.answered;
                    }
                    self.ready.push(publisher);
                    self.progress_us = self.now_us;
                }
            }
            if used == bytes.len() {
                return used;
            }
        }
    }

    /// The hot path: one delivery, without allocation.
    #[inline]
    fn text(&mut self, index: usize, payload: &[u8]) {
        let slot = &self.slots[index];
        let marker = match self.ledger.find(payload) {
            Some(marker) if message_type(payload) == self.event_type => marker,
            _ => return self.text_besides(index, payload),
        };
        if slot.kind == Kind::Stalled {
            return;
        }
        if self.joins_come_first && slot.state != State::Joined {
            self.ledger.breach("message_before_join");
        }
        let publishers = &self.publishers;
        let sent = |publisher: usize| publishers.get(publisher).map_or(0, |p| p.sent);
        let now_us = self.now_us;
        let delivery = self.ledger.deliver(index, slot.room, &marker, sent, now_us);
        let Some(delivery) = delivery else { return };
        self.progress_us = now_us;
        let publisher = &mut self.publishers[delivery.publisher];
        let posts = publisher.answered != u32::MAX;
        let watcher = if posts { delivery.publisher % self.rooms } else { publisher.slot };
        if watcher == index {
            publisher.seen = publisher.seen.max(delivery.counter + 1);
            if self.ready.last() != Some(&delivery.publisher) {
                self.ready.push(delivery.publisher);
            }
        }
    }

    /// Whatever is no delivery: it may be what this connection waits for.
    fn text_besides(&mut self, index: usize, payload: &[u8]) {
        self.ledger.other(payload);
        let kind = message_type(payload);
        if let Some(presence) = &mut self.presence
            && let Err(code) = presence.enter(index, kind, payload)
        {
            self.ledger.breach(code);
        }
        let slot = &mut self.slots[index];
        match (slot.state, kind) {
            (State::Upgraded, b"connected") => {
                slot.state = State::Greeted;
                self.census.opening -= 1;
                self.census.open += 1;
                if slot.kind == Kind::Churner && self.census.churned > 0 {
                    self.join(index);
                }
            }
            (State::Joining, b"online_update") => {
                if self.comeback.is_some() && !Comeback::is_answered_by(payload) {
                    self.ledger.breach("not_recovered");
                }
                slot.state = State::Joined;
                self.census.joining -= 1;
                self.census.joined += 1;
            }
            (State::Joining, b"error") => self.lost(index, "join_refused"),
            // Whoever waits to be told everything makes progress by anything.
            _ if self.presence.is_some() => {}
            _ => return,
        }
        self.progress_us = self.now_us;
    }

    /// Answers a ping, notes a close; false when the connection is gone.
    fn control(&mut self, index: usize, opcode: u8, payload: &[u8]) -> bool {
        match opcode {
            frame::PING => {
                self.pings += 1;
                self.send(index, frame::PONG, payload);
            }
            frame::PONG => {}
            frame::CLOSE => {
                self.send(index, frame::CLOSE, payload);
                let code = frame::close_code(payload);
                self.lost(index, &format!("close_{code}"));
            }
            _ => {
                self.ledger.breach("unexpected_opcode");
                self.lost(index, "unexpected_opcode");
            }
        }
        self.slots[index].stream.is_some()
    }

    /// Fills the windows that have room.
    fn pump(&mut self) {
        while let Some(number) = self.ready.pop() {
            let Some(window) = self.window else { continue };
            let publisher = &mut self.publishers[number];
            let slot = publisher.slot;
            let credit = publisher.credit(window);
            if credit == 0 || self.slots[slot].stream.is_none() {
                continue;
            }
            let sent_us = self.start.elapsed().as_micros() as u64;
            for _ in 0..credit {
                publisher.write(&self.prefix, sent_us, 0, &mut self.slots[slot].out);
            }
            self.flush(slot);
        }
    }

    fn send(&mut self, index: usize, opcode: u8, payload: &[u8]) {
        let (bytes, _) = frame::masked(opcode, payload);
        self.slots[index].out.extend_from_slice(&bytes);
        self.flush(index);
    }

    fn flush(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        // When the peer has closed, the close frame that says why may still be unread; it is the better reason.
        if let Err(error) = slot.flush()
            && !slot.read_closed
        {
            self.lost(index, &format!("write_{:?}", error.kind()));
        }
    }

    /// A connection ended, or could not begin, for the reason given.
    fn lost(&mut self, index: usize, why: &str) {
        let slot = &mut self.slots[index];
        let kind = slot.kind;
        let state = slot.close();
        if self.ending || state == State::Closed {
            return;
        }
        self.census.leave(state);
        if kind == Kind::Stalled && state == State::Joined {
            return self.ledger.close_stalled(why);
        }
        if let Kind::Http(number) = kind {
            let publisher = &self.publishers[number];
            // A server may close a connection that has no request under way.
            if self.window.is_none() && publisher.answered >= publisher.sent && why == "eof" {
                return;
            }
        }
        if kind == Kind::Checked {
            self.ledger.excuse(index);
        }
        if !matches!(state, State::Joined | State::Posting) {
            self.census.failed += 1;
        }
        self.ledger.closed += 1;
        self.ledger.error(why);
    }
}
