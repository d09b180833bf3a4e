//! What arrived: for each member and publisher the next message expected, and so every gap, double and reordering; counts,
//! errors and latencies. It knows nothing of sockets or of HTTP, and reads no clock.
//!
//! Invariants: `progress` is the sum of `next` over the members still checked, so everything has arrived exactly when it
//! equals what was sent times the members there are. A delivery costs no allocation unless something is wrong.

use std::collections::{BTreeMap, HashMap};

use hdrhistogram::Histogram;
use memchr::memmem::{self, Finder};

use crate::marker::{MARKER_BYTES, Marker, PREFIX_BYTES};

/// Of a member whose first message is still to come, and may be any.
const UNSEEN: u32 = u32::MAX;
/// Ranges of missing messages remembered, to tell a late one from a double.
const HOLES_MAX: usize = 1 << 20;
/// Types of messages counted each on its own.
const TYPES_MAX: usize = 100;
/// How a member is closed that does not read.
const SLOW_CONSUMER: &str = "close_4008";
const LATENCY_US_MAX: u64 = 600_000_000;

/// What a message tells about its publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The publisher's number over all rooms.
    pub publisher: usize,
    /// The message's number.
    pub counter: u32,
}

/// The books of a run.
pub struct Ledger {
    needle: Finder<'static>,
    rooms: usize,
    per_room: usize,
    next: Vec<u32>,
    /// Entries of `next` before this one belong to members checked fully.
    checked: usize,
    holes: HashMap<usize, Vec<(u32, u32)>>,
    hole_count: usize,
    open: Vec<u64>,
    progress: u64,
    measured_from_us: u64,
    /// Messages of this run received, by anybody.
    pub deliveries: u64,
    /// Messages missing between two that came.
    pub gaps: u64,
    /// Messages that came again.
    pub doubles: u64,
    /// Messages that came after a later one.
    pub reordered: u64,
    /// Connections that ended without being asked to.
    pub closed: u64,
    /// What went wrong, by code: `error` messages, HTTP statuses, reasons of closes, breaches of the protocol.
    pub errors: BTreeMap<String, u64>,
    /// Stalled members whose connection ended, by how it did.
    pub stalled: BTreeMap<String, u64>,
    /// Breaches that fail the run whatever else was delivered.
    pub failures: u64,
    /// Messages of other types, by type.
    pub others: BTreeMap<String, u64>,
    /// From the moment of sending, of measured messages, in microseconds.
    pub latency_us: Histogram<u64>,
    /// From the moment of scheduled sending, in microseconds.
    pub scheduled_us: Histogram<u64>,
    /// From the moment of scheduled posting to the answer, in microseconds.
    pub answer_us: Histogram<u64>,
}

impl Ledger {
    /// Books for `members` (those to be checked fully come first), of which member i is in room i modulo `rooms`.
    pub fn new(prefix: &[u8; PREFIX_BYTES], members: usize, rooms: usize, per_room: usize) -> Self {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds are valid");
        Self {
            needle: Finder::new(prefix).into_owned(),
            rooms,
            per_room,
            next: vec![UNSEEN; members * per_room],
            checked: 0,
            holes: HashMap::new(),
            hole_count: 0,
            open: vec![0; rooms],
            progress: 0,
            measured_from_us: u64::MAX,
            deliveries: 0,
            gaps: 0,
            doubles: 0,
            reordered: 0,
            closed: 0,
            errors: BTreeMap::new(),
            stalled: BTreeMap::new(),
            failures: 0,
            others: BTreeMap::new(),
            latency_us: histogram(),
            scheduled_us: histogram(),
            answer_us: histogram(),
        }
    }

    /// From here on the member must get every message, from the first.
    pub fn check_fully(&mut self, member: usize) {
        self.next[member * self.per_room..][..self.per_room].fill(0);
        self.checked = self.checked.max((member + 1) * self.per_room);
        self.open[member % self.rooms] += 1;
    }

    /// The member knows the first messages of each publisher: it must get those that follow.
    pub fn know(&mut self, member: usize, messages: u32) {
        let next = &mut self.next[member * self.per_room..][..self.per_room];
        for next in next {
            self.progress += u64::from(messages - *next);
            *next = messages;
        }
    }

    /// The member is gone: nothing more is expected of it.
    pub fn excuse(&mut self, member: usize) {
        let next = &mut self.next[member * self.per_room..][..self.per_room];
        self.progress -= next.iter().map(|n| u64::from(*n)).sum::<u64>();
        next.fill(UNSEEN);
        self.open[member % self.rooms] -= 1;
    }

    /// The member begins anew, with any message.
    pub fn forget(&mut self, member: usize) {
        self.next[member * self.per_room..][..self.per_room].fill(UNSEEN);
    }

    /// Latencies count for messages sent from now on.
    pub fn measure_from(&mut self, now_us: u64) {
        self.measured_from_us = now_us;
    }

    /// The marker in a message, if it has one of this run.
    #[inline]
    pub fn find(&self, payload: &[u8]) -> Option<Marker> {
        let at = self.needle.find(payload)?;
        Marker::decode(payload.get(at..at + MARKER_BYTES)?)
    }

    /// Enters a message that `member`, of the given room, received. `sent` says how many each publisher has sent.
    #[inline]
    pub fn deliver(
        &mut self,
        member: usize,
        room: u32,
        marker: &Marker,
        sent: impl Fn(usize) -> u32,
        now_us: u64,
    ) -> Option<Delivery> {
        self.deliveries += 1;
        let publisher = marker.publisher as usize * self.rooms + marker.room as usize;
        if marker.room != room {
            self.breach("wrong_room");
            return None;
        }
        if marker.publisher as usize >= self.per_room || marker.counter >= sent(publisher) {
            self.breach("never_sent");
            return None;
        }
        if marker.sent_us >= self.measured_from_us {
            let latency = now_us.saturating_sub(marker.sent_us);
            self.latency_us.saturating_record(latency);
            if marker.late_us > 0 {
                self.scheduled_us.saturating_record(latency + marker.late_us);
            } else {
                self.scheduled_us.saturating_record(latency);
            }
        }
        let index = member * self.per_room + marker.publisher as usize;
        self.advance(index, marker.counter);
        Some(Delivery { publisher, counter: marker.counter })
    }

    /// Enters the answer to a post.
    #[inline]
    pub fn answer(&mut self, marker: &Marker, now_us: u64) {
        if marker.sent_us >= self.measured_from_us {
            self.answer_us.saturating_record(now_us.saturating_sub(marker.sent_us) + marker.late_us);
        }
    }

    /// Whether all members have all of what was sent, given per publisher.
    pub fn is_complete(&self, sent: impl Iterator<Item = u32>) -> bool {
        self.expected(sent) == self.progress
    }

    /// Messages at the end that members still lack.
    pub fn missing(&self, sent: impl Iterator<Item = u32>) -> u64 {
        self.expected(sent).saturating_sub(self.progress)
    }

    /// Counts something that went wrong.
    pub fn error(&mut self, code: impl Into<String>) {
        *self.errors.entry(code.into()).or_default() += 1;
    }

    /// Counts something that went wrong and fails the run.
    pub fn breach(&mut self, code: impl Into<String>) {
        self.failures += 1;
        self.error(code);
    }

    /// The connection of a stalled member ended. A server may close it for being slow, or, since such a member does not read
    /// that either, just end it; any other reason fails the run.
    pub fn close_stalled(&mut self, why: &str) {
        *self.stalled.entry(why.to_owned()).or_default() += 1;
        if why.starts_with("close_") && why != SLOW_CONSUMER {
            self.breach(format!("stalled_{why}"));
        }
    }

    /// Counts a message that is no delivery, and the code of an error.
    pub fn other(&mut self, payload: &[u8]) {
        let kind = message_type(payload);
        if kind == b"error" {
            let value = serde_json::from_slice::<serde_json::Value>(payload);
            let code = value.ok().and_then(|v| Some(v["code"].as_str()?.to_owned()));
            self.error(code.unwrap_or_else(|| "error_without_code".to_owned()));
            return;
        }
        let Ok(kind) = std::str::from_utf8(kind) else {
            return self.error("type_not_text");
        };
        if let Some(count) = self.others.get_mut(kind) {
            *count += 1;
        } else if self.others.len() < TYPES_MAX {
            self.others.insert(kind.to_owned(), 1);
        } else {
            self.error("too_many_types");
        }
    }

    fn expected(&self, sent: impl Iterator<Item = u32>) -> u64 {
        sent.enumerate().map(|(publisher, n)| u64::from(n) * self.open[publisher % self.rooms]).sum()
    }

    #[inline]
    fn advance(&mut self, index: usize, counter: u32) {
        let next = self.next[index];
        if counter == next && index < self.checked {
            self.next[index] = counter + 1;
            self.progress += 1;
        } else if index >= self.checked {
            self.advance_unchecked(index, counter, next);
        } else {
            self.advance_oddly(index, counter, next);
        }
    }

    /// A member that comes and goes may begin with any message and miss some, but never goes back.
    fn advance_unchecked(&mut self, index: usize, counter: u32, next: u32) {
        if next == UNSEEN || counter >= next {
            self.next[index] = counter + 1;
        } else if counter + 1 == next {
            self.doubles += 1;
        } else {
            self.reordered += 1;
        }
    }

    /// Not the message that was expected: one too far on, or one that lies behind.
    #[cold]
    fn advance_oddly(&mut self, index: usize, counter: u32, next: u32) {
        if counter > next {
            self.gaps += u64::from(counter - next);
            self.progress += u64::from(counter - next) + 1;
            self.next[index] = counter + 1;
            if self.hole_count < HOLES_MAX {
                self.hole_count += 1;
                self.holes.entry(index).or_default().push((next, counter));
            }
        } else if self.fill_hole(index, counter) {
            self.gaps -= 1;
            self.reordered += 1;
        } else {
            self.doubles += 1;
        }
    }

    /// Takes a message out of the range of missing ones that it lies in.
    fn fill_hole(&mut self, index: usize, counter: u32) -> bool {
        let Some(holes) = self.holes.get_mut(&index) else {
            return false;
        };
        let Some(at) = holes.iter().position(|h| (h.0..h.1).contains(&counter)) else {
            return false;
        };
        let (from, to) = holes.swap_remove(at);
        let rest = [(from, counter), (counter + 1, to)];
        holes.extend(rest.iter().filter(|h| h.0 < h.1));
        true
    }
}

/// The value of `type` in a message, empty if it has none. The first occurrence counts, which is the right one for all
/// messages that the protocol knows, whatever the order of their keys.
#[inline]
pub fn message_type(payload: &[u8]) -> &[u8] {
    const USUAL: &[u8] = b"{\"type\":\"";
    const KEY: &[u8] = b"\"type\"";
    let rest = match payload.strip_prefix(USUAL) {
        Some(rest) => rest,
        None => {
            let Some(at) = memmem::find(payload, KEY) else {
                return b"";
            };
            let value = payload[at + KEY.len()..].trim_ascii_start();
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii_start();
            value.strip_prefix(b"\"").unwrap_or(value)
        }
    };
    let end = memchr::memchr(b'"', rest).unwrap_or(0);
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker;

    /// Two rooms, members 0 to 3 checked, 4 not; one publisher in each room has sent ten.
    fn world() -> Ledger {
        let mut ledger = Ledger::new(&marker::prefix(1), 5, 2, 1);
        (0..4).for_each(|member| ledger.check_fully(member));
        ledger
    }

    fn deliver(ledger: &mut Ledger, member: usize, counters: &[u32]) {
        for counter in counters {
            let marker = Marker { room: member as u32 % 2, publisher: 0, counter: *counter, sent_us: 0, late_us: 0 };
            ledger.deliver(member, member as u32 % 2, &marker, |_| 10, 0);
        }
    }

    #[test]
    fn in_order_is_complete_when_all_have_all() {
        let mut ledger = world();
        for member in 0..4 {
            assert!(!ledger.is_complete([3, 3].into_iter()));
            deliver(&mut ledger, member, &[0, 1, 2]);
        }
        assert!(ledger.is_complete([3, 3].into_iter()));
        assert_eq!(ledger.missing([4, 3].into_iter()), 2);
        ledger.excuse(0);
        assert!(ledger.is_complete([3, 3].into_iter()));
        assert_eq!(ledger.gaps + ledger.doubles + ledger.reordered, 0);
    }

    #[test]
    fn each_fault_is_named() {
        for (counters, faults) in [
            (&[0, 2, 3][..], (1, 0, 0)),
            (&[0, 1, 1, 2], (0, 1, 0)),
            (&[0, 2, 1, 3], (0, 0, 1)),
            (&[0, 4, 2, 2, 5], (2, 1, 1)),
            (&[5], (5, 0, 0)),
        ] {
            let mut ledger = world();
            deliver(&mut ledger, 1, counters);
            let found = (ledger.gaps, ledger.doubles, ledger.reordered);
            assert_eq!(found, faults, "{counters:?}");
        }
    }

    #[test]
    fn an_unchecked_member_may_begin_anywhere() {
        let mut ledger = world();
        deliver(&mut ledger, 4, &[5, 6]);
        ledger.forget(4);
        deliver(&mut ledger, 4, &[8, 9, 9, 7]);
        let faults = (ledger.gaps, ledger.doubles, ledger.reordered);
        assert_eq!(faults, (0, 1, 1));
        assert_eq!(ledger.progress, 0);
    }

    #[test]
    fn what_nobody_sent_is_a_breach() {
        let mut ledger = world();
        deliver(&mut ledger, 0, &[10]);
        assert_eq!(ledger.errors["never_sent"], 1);
        assert_eq!(ledger.failures, 1);
    }

    #[test]
    fn who_stalls_is_closed_for_that_alone() {
        let mut ledger = world();
        ["close_4008", "eof", "read_ConnectionReset", "close_4008"].iter().for_each(|why| ledger.close_stalled(why));
        assert_eq!((ledger.stalled["close_4008"], ledger.stalled["eof"], ledger.failures), (2, 1, 0));
        assert!(ledger.errors.is_empty());
        ledger.close_stalled("close_1011");
        assert_eq!((ledger.failures, ledger.errors["stalled_close_1011"]), (1, 1));
    }

    #[test]
    fn types_are_found_in_any_order_of_keys() {
        assert_eq!(message_type(b"{\"type\":\"reaction\",\"a\":1}"), b"reaction");
        assert_eq!(message_type(b"{\"a\":1, \"type\" : \"error\"}"), b"error");
        assert_eq!(message_type(b"[]"), b"");
    }
}
