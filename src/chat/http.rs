//! An HTTP connection: requests in, answers out in the order of the requests.
//!
//! Owns the ring of requests under way. A request gets a number when its head is complete; its answer may come at once, or
//! later from another shard; what leaves is always the front of the ring, and everything that is ready at the front leaves
//! in one write. Routes stand in `routes`.

use core::net::IpAddr;
use std::borrow::Cow;
use std::collections::VecDeque;

use super::connection::{Flag, Phase};
use super::denial::DenialReason;
use super::envelope::Answer;
use super::ids::UserId;
use super::routes::{Body, Gather, Handled, origin};
use super::shard::Shard;
use super::wheel::TICK_MS;
use crate::config::{Origins, Service};
use crate::wire::body::ChunkedDecoder;
use crate::wire::client::ErrorCode;
use crate::wire::http::{
    BodyLength, Framing, Head, Limits as HttpLimits, Methods, Reject, Status, is_head, parse_head,
};
use crate::wire::response::{CONTINUE, HttpDate, Response, put_response};

/// The HTTP side of a connection.
#[derive(Default)]
pub struct Http {
    framing: Option<Framing>,
    scanned: usize,
    chunked: Option<ChunkedDecoder>,
    /// Bytes behind the head that the decoder has seen.
    decoded: usize,
    body: Vec<u8>,
    continue_sent: bool,
    ring: VecDeque<Pending>,
    first: u32,
    /// No further request is read.
    last: bool,
    /// When the present state is over, on the tick clock.
    deadline_ms: u64,
    /// Who is at the other end, if that is to be told from whom a proxy names.
    pub(super) peer: Option<IpAddr>,
}

impl Http {
    /// Bytes of a body that is being decoded.
    pub fn body_bytes(&self) -> usize {
        self.body.capacity()
    }
}

/// How an answer is to be written.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The connection may carry another request.
    pub keep_alive: bool,
    /// The request was HEAD.
    pub head_only: bool,
    /// The value of `Access-Control-Allow-Origin`, if the request came from a web page that may read the answer.
    pub allow_origin: Option<Box<str>>,
}

/// A request under way.
struct Pending {
    manner: Manner,
    state: State,
}

enum State {
    Ready(Vec<u8>),
    /// For what a room's home, or the store, says to the user who asks.
    Waiting(Option<UserId>),
    Gathering(Option<UserId>, Box<Gather>),
}

impl State {
    fn user(&self) -> Option<&UserId> {
        match self {
            Self::Ready(_) => None,
            Self::Waiting(user) | Self::Gathering(user, _) => user.as_ref(),
        }
    }
}

/// An answer before it is written.
pub struct Rest {
    /// The status code.
    pub status: u16,
    /// Fields besides those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// What the body is.
    pub content_type: Cow<'static, str>,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

/// Where reading stopped.
enum Read {
    /// More bytes are needed.
    Partial,
    /// The connection does not want to read now.
    Paused,
    /// This many bytes were used up.
    Used(usize),
}

impl Shard {
    /// Takes bytes of an HTTP connection.
    pub(super) fn http_input(&mut self, slot: u32, input: &[u8]) {
        let mut tail = std::mem::take(&mut self.connections[slot].extra_mut().tail);
        if tail.is_empty() {
            let used = self.http_read(slot, input);
            self.http_keep(slot, input[used..].to_vec(), true);
        } else {
            tail.extend_from_slice(input);
            self.http_resume(slot, tail);
        }
    }

    /// Reads on in what was kept.
    pub(super) fn http_resume(&mut self, slot: u32, mut tail: Vec<u8>) {
        let used = self.http_read(slot, &tail);
        tail.drain(..used);
        self.http_keep(slot, tail, used > 0);
        if self.connections[slot].phase == Phase::Http && self.connections[slot].has(Flag::EndOfInput) {
            self.http_ended(slot);
        }
    }

    /// Handles the requests that are complete in `data`; returns the bytes that are done with.
    fn http_read(&mut self, slot: u32, data: &[u8]) -> usize {
        let mut at = 0;
        while at < data.len() {
            let mut http = self.take_http(slot);
            let outcome = self.read_request(slot, &mut http, &data[at..]);
            if self.connections[slot].phase != Phase::Http {
                // Upgraded, or gone: what is left belongs to what it has become.
                if let Read::Used(used) = outcome {
                    self.after_upgrade(slot, &data[at + used..]);
                }
                return data.len();
            }
            self.connections[slot].extra_mut().http = Some(http);
            match outcome {
                Read::Used(used) => at += used,
                Read::Partial => break,
                Read::Paused => {
                    self.connections[slot].mark(Flag::Paused);
                    break;
                }
            }
        }
        at
    }

    fn take_http(&mut self, slot: u32) -> Box<Http> {
        let deadline_ms = self.now.tick_ms + self.config.limits.handshake_ms;
        let fresh = || Box::new(Http { deadline_ms, ..Http::default() });
        self.connections[slot].extra_mut().http.take().unwrap_or_else(fresh)
    }

    /// Keeps what is not used up, and sets the deadline of a request that has begun; then sends what is ready.
    fn http_keep(&mut self, slot: u32, rest: Vec<u8>, is_new: bool) {
        if self.connections[slot].phase != Phase::Http {
            return;
        }
        let (now_ms, limits) = (self.now.tick_ms, &self.config.limits);
        let opened_ms = u64::from(self.connections[slot].opened + 1) * TICK_MS;
        let extra = self.connections[slot].extra_mut();
        if is_new {
            extra.unfinished_ms = now_ms;
        }
        extra.tail = rest;
        if extra.tail.capacity() > 4 * extra.tail.len() {
            // What is left of a large read must not hold all of its memory.
            extra.tail.shrink_to_fit();
        }
        if let Some(http) = extra.http.as_mut().filter(|_| !extra.tail.is_empty()) {
            let window_ms = if http.framing.is_some() { limits.rest_idle_ms } else { limits.handshake_ms };
            // The first head shares its time with what came before it.
            let is_first_head = http.framing.is_none() && http.first == 0 && http.ring.is_empty();
            let begun_ms = if is_first_head { extra.unfinished_ms.min(opened_ms) } else { extra.unfinished_ms };
            http.deadline_ms = begun_ms + window_ms;
            let due_ms = http.deadline_ms;
            self.arm_http(slot, due_ms);
        }
        self.tidy_extra(slot);
        self.http_flush(slot);
    }

    /// Reads one request from the start of `data`, and handles it if it is complete.
    fn read_request(&mut self, slot: u32, http: &mut Http, data: &[u8]) -> Read {
        let is_checking = self.connections[slot].has(Flag::Checking);
        if http.last || is_checking || http.ring.len() >= self.config.limits.requests_under_way_max {
            return Read::Paused;
        }
        let limits = HttpLimits {
            header_bytes_max: self.config.limits.header_bytes_max,
            // Whether a body is too large is said after the path, the method and the credential were looked at.
            body_bytes_max: usize::MAX >> 1,
            methods: match self.config.service {
                Service::Chat => Methods::Implemented,
                Service::Echo => Methods::Any,
            },
        };
        let (head, framing) = match parse_head(data, &mut http.scanned, &limits) {
            Ok(Status::Complete(complete)) => complete,
            Ok(Status::Partial) => return Read::Partial,
            Err(reject) => return self.reject(http, &reject, data),
        };
        http.framing = Some(framing);
        let body_max = self.config.limits.body_bytes_max;
        let behind = &data[framing.head_len..];
        let (body, used) = match framing.body {
            BodyLength::None => (Body::Absent, 0),
            BodyLength::Length(length) if length > body_max => (Body::TooLarge, behind.len()),
            BodyLength::Length(length) if behind.len() < length => return self.want_body(http, &framing),
            BodyLength::Length(length) => (Body::Bytes(&behind[..length]), length),
            BodyLength::Chunked => {
                let decoder = http.chunked.get_or_insert_default();
                let from = http.decoded.min(behind.len());
                match decoder.decode(&behind[from..], &mut http.body, body_max) {
                    Ok((used, true)) => (Body::Decoded, from + used),
                    Ok((used, false)) => {
                        http.decoded = from + used;
                        return self.want_body(http, &framing);
                    }
                    Err(reject) if reject.status == 413 => (Body::TooLarge, behind.len()),
                    Err(reject) => return self.reject(http, &reject, data),
                }
            }
        };
        let decoded = std::mem::take(&mut http.body);
        let body = if matches!(body, Body::Decoded) { Body::Bytes(&decoded) } else { body };
        (http.scanned, http.framing, http.continue_sent) = (0, None, false);
        (http.chunked, http.decoded) = (None, 0);
        self.handle_complete(slot, http, &head, &framing, body, framing.head_len + used)
    }

    fn handle_complete(
        &mut self,
        slot: u32,
        http: &mut Http,
        head: &Head<'_>,
        framing: &Framing,
        body: Body<'_>,
        used: usize,
    ) -> Read {
        self.note_client(slot, http, head);
        // Behind a refused upgrade there may be frames already, which are no requests.
        let wants_upgrade = head.list_has("upgrade", "websocket");
        let reads_on = !wants_upgrade && !matches!(body, Body::TooLarge) && !self.is_quiescing();
        let keep_alive = framing.keep_alive && reads_on;
        let allow_origin = origin(head).filter(|origin| self.config.origins.allows(Some(origin))).map(|origin| {
            let any = matches!(self.config.origins, Origins::Any);
            Box::from(if any { "*" } else { origin })
        });
        let manner = Manner { keep_alive, head_only: head.method == "HEAD", allow_origin };
        let number = http.first.wrapping_add(http.ring.len() as u32);
        let is_first = http.ring.is_empty();
        let (handled, user) = match self.config.service {
            Service::Chat => self.handle_http_request(slot, number, head, framing, &body, is_first),
            Service::Echo => (self.echo_request(slot, head, framing, &body, is_first), None),
        };
        let state = match handled {
            Handled::Now(rest) => State::Ready(self.write_rest(&manner, &rest)),
            Handled::Pending => State::Waiting(user),
            Handled::Gather(gather) => State::Gathering(user, gather),
            Handled::NotYet => return Read::Paused,
            Handled::Upgraded => return Read::Used(used),
        };
        http.last = !keep_alive;
        http.ring.push_back(Pending { manner, state });
        Read::Used(used)
    }

    /// The body is still to come; a client that waits for a sign gets it, behind the answers before it.
    fn want_body(&mut self, http: &mut Http, framing: &Framing) -> Read {
        if framing.expect_continue && !http.continue_sent {
            http.continue_sent = true;
            let manner = Manner { keep_alive: true, head_only: false, allow_origin: None };
            http.ring.push_back(Pending { manner, state: State::Ready(CONTINUE.to_vec()) });
        }
        Read::Partial
    }

    /// Refuses the request that `data` begins with; nothing of what follows it is read.
    fn reject(&mut self, http: &mut Http, reject: &Reject, data: &[u8]) -> Read {
        let manner = Manner { keep_alive: false, head_only: is_head(data), allow_origin: None };
        let mut rest = Rest::error(reject.status, error_code(reject.status), reject.reason);
        rest.headers.extend(reject.headers().iter().map(|&(name, value)| (name, value.to_owned())));
        let state = State::Ready(self.write_rest(&manner, &rest));
        http.last = true;
        http.ring.push_back(Pending { manner, state });
        Read::Used(data.len())
    }

    pub(super) fn write_rest(&self, manner: &Manner, rest: &Rest) -> Vec<u8> {
        let mut headers: Vec<(&str, &str)> = rest.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        if let Some(origin) = &manner.allow_origin {
            headers.push(("Access-Control-Allow-Origin", origin));
            headers.push(("Access-Control-Expose-Headers", "Idempotency-Replayed, Retry-After"));
        }
        if matches!(self.config.origins, Origins::List(_)) {
            // Also where none was sent, or one that is not allowed: the same answer must not be kept for one that is.
            headers.push(("Vary", "Origin"));
        }
        let date = HttpDate::from_unix_ms(self.now.wall_ms);
        let response = Response {
            status: rest.status,
            headers: &headers,
            content_type: Some(&rest.content_type),
            date: Some(&date),
            body: &rest.body,
        };
        let mut out = Vec::new();
        put_response(&mut out, &response, manner.keep_alive, manner.head_only);
        out
    }

    /// Takes the answer to a request, or to a part of one.
    pub(super) fn answer_http(&mut self, slot: u32, number: u32, part: Option<u32>, answer: Answer) {
        let Some(mut http) = self.connections[slot].extra.as_mut().and_then(|extra| extra.http.take()) else { return };
        let at = number.wrapping_sub(http.first) as usize;
        if matches!(answer, Answer::Refused(ErrorCode::Forbidden) | Answer::Denied(_)) {
            let user = http.ring.get(at).and_then(|pending| pending.state.user());
            self.deny(slot, DenialReason::Forbidden, user.map(UserId::text), "REST");
        }
        if let Some(pending) = http.ring.get_mut(at) {
            let finished = match &mut pending.state {
                State::Ready(_) => None,
                State::Waiting(_) => Some(self.render(answer)),
                State::Gathering(_, gather) => self.gather_part(slot, number, gather, part, answer),
            };
            if let Some(rest) = finished {
                pending.state = State::Ready(self.write_rest(&pending.manner, &rest));
            }
        }
        self.connections[slot].extra_mut().http = Some(http);
        self.http_flush(slot);
    }

    /// The answer to that request, while it is gathered.
    pub(super) fn gathering(&mut self, slot: u32, number: u32) -> Option<&mut Gather> {
        let http = self.connections[slot].extra.as_mut()?.http.as_mut()?;
        let at = number.wrapping_sub(http.first) as usize;
        match &mut http.ring.get_mut(at)?.state {
            State::Gathering(_, gather) => Some(gather),
            State::Ready(_) | State::Waiting(_) => None,
        }
    }

    /// Looks at all answers of a connection that are gathered.
    pub(super) fn each_gathering(&self, slot: u32, mut look: impl FnMut(&Gather)) {
        let Some(http) = self.connections[slot].extra.as_ref().and_then(|extra| extra.http.as_ref()) else { return };
        for pending in &http.ring {
            if let State::Gathering(_, gather) = &pending.state {
                look(gather);
            }
        }
    }

    /// Ends the gathering of those answers for which `finish` has one.
    pub(super) fn finish_gathering(&mut self, slot: u32, mut finish: impl FnMut(&mut Gather) -> Option<Rest>) {
        let Some(mut http) = self.connections[slot].extra.as_mut().and_then(|extra| extra.http.take()) else { return };
        for pending in &mut http.ring {
            let State::Gathering(_, gather) = &mut pending.state else { continue };
            if let Some(rest) = finish(gather) {
                pending.state = State::Ready(self.write_rest(&pending.manner, &rest));
            }
        }
        self.connections[slot].extra_mut().http = Some(http);
        self.http_flush(slot);
    }

    /// Sends everything that is ready at the front of the ring, and reads on if that made room.
    fn http_flush(&mut self, slot: u32) {
        let now_ms = self.now.tick_ms;
        let conn = &mut self.connections[slot];
        let has_tail = conn.extra.as_ref().is_some_and(|extra| !extra.tail.is_empty());
        let Some(http) = conn.extra.as_mut().and_then(|extra| extra.http.as_mut()) else { return };
        let (before, has_head) = (http.ring.len(), http.framing.is_some());
        while let Some(Pending { state: State::Ready(_), .. }) = http.ring.front() {
            let Some(Pending { state: State::Ready(bytes), .. }) = http.ring.pop_front() else { break };
            http.first = http.first.wrapping_add(1);
            self.pool.append_direct(&mut conn.outbox, |out| out.extend_from_slice(&bytes));
        }
        let (is_empty, last) = (http.ring.is_empty(), http.last);
        if http.ring.len() == before {
            return;
        }
        // A request that has begun keeps its own deadline, set when its bytes came.
        let idle_ms = now_ms + self.config.limits.rest_idle_ms;
        let due_ms = if has_tail { http.deadline_ms.max(now_ms + 1) } else { idle_ms };
        http.deadline_ms = due_ms;
        let (ended, paused) = (conn.has(Flag::EndOfInput), conn.has(Flag::Paused));
        let comes_still = has_tail && (paused || has_head && !ended);
        self.mark_express(slot);
        if is_empty && (last || (ended || self.is_draining()) && !comes_still) {
            self.linger(slot);
        } else {
            self.arm_http(slot, due_ms);
            self.resume(slot);
        }
    }

    /// Makes the timer fire no later than that; a later deadline is found when it has fired.
    pub(super) fn arm_http(&mut self, slot: u32, due_ms: u64) {
        if self.wheel.due_ms(slot).is_none_or(|armed_ms| armed_ms > due_ms) {
            self.wheel.set(slot, due_ms);
        }
    }

    /// The client has shut its side; what it asked is still answered.
    pub(super) fn http_ended(&mut self, slot: u32) {
        let conn = &self.connections[slot];
        let http = conn.extra.as_ref().and_then(|extra| extra.http.as_ref());
        if http.is_none_or(|http| http.ring.is_empty()) && !conn.has(Flag::Paused) {
            if conn.has_unsent() { self.linger(slot) } else { self.kill(slot) }
        }
    }

    pub(super) fn is_http_paused(&self, slot: u32) -> bool {
        let conn = &self.connections[slot];
        let http = conn.extra.as_ref().and_then(|extra| extra.http.as_ref());
        let limits = &self.config.limits;
        let full = http.is_some_and(|http| http.last || http.ring.len() >= limits.requests_under_way_max);
        full || conn.has(Flag::Checking) || conn.outbox.bytes() >= limits.outbox_soft_bytes
    }

    /// An HTTP connection's time is over: 408 for a request that has begun, nothing for one that only idles. `is_unread`
    /// says that something has come that was not read yet.
    pub(super) fn http_deadline(&mut self, slot: u32, is_unread: bool) {
        let now_ms = self.now.tick_ms;
        let wait_ms = self.end_feed_waits(slot);
        let conn = &mut self.connections[slot];
        if conn.phase != Phase::Http {
            return;
        }
        let is_checking = conn.has(Flag::Checking);
        let Some(extra) = &mut conn.extra else { return self.dismiss_idle(slot, is_unread) };
        let Some(http) = &mut extra.http else { return self.dismiss_idle(slot, is_unread) };
        if !http.ring.is_empty() || is_checking {
            http.deadline_ms = http.deadline_ms.max(now_ms + 1000);
        }
        if http.deadline_ms > now_ms {
            let due_ms = http.deadline_ms.min(wait_ms.unwrap_or(u64::MAX));
            return self.wheel.set(slot, due_ms);
        }
        if extra.tail.is_empty() {
            return self.dismiss_idle(slot, is_unread);
        }
        let tail = std::mem::take(&mut extra.tail);
        let mut http = self.take_http(slot);
        self.reject(&mut http, &Reject::with(408, "the request did not arrive in time"), &tail);
        self.connections[slot].extra_mut().http = Some(http);
        self.http_flush(slot);
    }

    /// Ends a connection that has not begun a request in its time, unless what it sent is about to be read: where the thread
    /// stood still, it is not to blame. Where it is not read because the peer does not read its answers, it is.
    fn dismiss_idle(&mut self, slot: u32, is_unread: bool) {
        let conn = &self.connections[slot];
        let is_about_to_be_read = is_unread && !conn.has(Flag::Paused) && !conn.has_unsent();
        if is_about_to_be_read { self.wheel.set(slot, self.now.tick_ms + TICK_MS) } else { self.kill(slot) }
    }

    /// Ends an HTTP connection while the server stops, once what it asked is answered.
    pub(super) fn http_drain(&mut self, slot: u32) {
        let under_way = self.connections[slot].extra.as_ref().and_then(|extra| extra.http.as_ref());
        if self.connections[slot].has(Flag::Checking) {
            return;
        }
        if under_way.is_none_or(|http| http.ring.is_empty()) {
            if self.connections[slot].has_unsent() { self.linger(slot) } else { self.kill(slot) }
        }
    }

    /// What came behind an upgrade request in the same read.
    fn after_upgrade(&mut self, slot: u32, rest: &[u8]) {
        match self.connections[slot].phase {
            Phase::Admitting if !rest.is_empty() => self.keep_input(slot, rest),
            Phase::Auth | Phase::Open if !rest.is_empty() => {
                let mut rest = rest.to_vec();
                self.websocket_input(slot, &mut rest);
            }
            _ => self.tidy_extra(slot),
        }
    }
}

impl Rest {
    /// An answer with a JSON body.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), content_type: Cow::Borrowed("application/json"), body }
    }

    /// An error as REST gives them.
    pub fn error(status: u16, code: ErrorCode, text: &str) -> Self {
        let mut body = Vec::new();
        crate::wire::event::rest_error(&mut body, code, text);
        let mut rest = Self::json(status, body);
        if matches!(status, 429 | 503) {
            rest.headers.push(("Retry-After", "1".to_owned()));
        }
        rest
    }

    /// Says after how many seconds it is worth another try.
    pub fn set_retry_after(&mut self, seconds: u64) {
        self.headers.retain(|(name, _)| *name != "Retry-After");
        self.headers.push(("Retry-After", seconds.max(1).to_string()));
    }
}

/// The code in the body of an error that HTTP's own rules call for.
fn error_code(status: u16) -> ErrorCode {
    match status {
        413 | 414 | 431 => ErrorCode::TooLarge,
        404 => ErrorCode::NotFound,
        _ => ErrorCode::InvalidMessage,
    }
}
