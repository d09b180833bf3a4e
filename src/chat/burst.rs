//! What a room's home emits in a turn: an ordered list of segments, each a run of ready WebSocket frames.
//!
//! A burst crosses once per interested shard, whatever the number of members there, and each member gets it in one write.
//! A segment is frozen once and then only shared. It is the place where a deflated variant of the same frames will stand
//! beside the plain one.

use std::sync::Arc;

use super::ids::UserId;
use crate::wire::websocket::{self, Opcode};

/// A segment is closed at this size; one larger frame is a segment of its own.
pub const SEGMENT_BYTES: usize = 256 * 1024;

/// What a room keeps of its buffer between two bursts; it counts towards what an idle room may hold.
const BUFFER_KEPT_BYTES: usize = 256;

/// Whether an event is part of the room's history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Has a `seq` and is never dropped.
    Durable,
    /// May be left out for a connection that is behind.
    Ephemeral,
}

/// A run of whole frames of one kind for the same receivers.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Whole, unmasked WebSocket frames.
    pub frames: Arc<[u8]>,
    /// How many events the frames are.
    pub events: u32,
    /// Whether a slow connection may miss it.
    pub kind: Kind,
    /// The user none of whose connections gets it.
    pub exclude: Option<UserId>,
}

/// The segments of one room in one turn, being collected.
#[derive(Default, Debug)]
pub struct Burst {
    closed: Vec<Segment>,
    open: Vec<u8>,
    open_events: u32,
    open_kind: Option<(Kind, Option<UserId>)>,
    bytes: usize,
}

impl Burst {
    /// Appends one text frame whose payload is `parts` joined.
    pub fn push(&mut self, kind: Kind, exclude: Option<&UserId>, parts: &[&[u8]]) {
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let frame = websocket::header_len(payload) + payload;
        let same = self.open_kind.as_ref().is_some_and(|(k, user)| *k == kind && user.as_ref() == exclude);
        if !same || self.open.len() + frame > SEGMENT_BYTES {
            self.close_segment();
            self.open_kind = Some((kind, exclude.cloned()));
        }
        websocket::put_frame(&mut self.open, Opcode::Text, parts);
        self.open_events += 1;
        self.bytes += frame;
    }

    /// The bytes collected so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Ends the burst and hands its segments out; the burst is empty again.
    pub fn freeze(&mut self) -> Arc<[Segment]> {
        self.close_segment();
        self.bytes = 0;
        std::mem::take(&mut self.closed).into()
    }

    fn close_segment(&mut self) {
        if let Some((kind, exclude)) = self.open_kind.take() {
            let frames = Arc::from(&self.open[..]);
            self.closed.push(Segment { frames, events: self.open_events, kind, exclude });
        }
        // The buffer is kept for the next burst unless an unusual one made it large.
        self.open.clear();
        self.open.shrink_to(BUFFER_KEPT_BYTES);
        self.open_events = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    fn user(name: &str) -> UserId {
        UserId::new(&Id::from_text(name).unwrap(), HashKey::new([1; 16]).hash(name))
    }

    #[test]
    fn a_segment_begins_when_kind_or_receivers_change() {
        let (ana, ben) = (user("ana"), user("ben"));
        let mut burst = Burst::default();
        burst.push(Kind::Durable, None, &[b"{", b"}"]);
        burst.push(Kind::Durable, None, &[b"{}"]);
        burst.push(Kind::Ephemeral, None, &[b"{}"]);
        burst.push(Kind::Ephemeral, Some(&ana), &[b"{}"]);
        burst.push(Kind::Ephemeral, Some(&user("ana")), &[b"{}"]);
        burst.push(Kind::Ephemeral, Some(&ben), &[b"{}"]);
        assert_eq!(burst.bytes(), 24);
        let segments = burst.freeze();
        let events: Vec<u32> = segments.iter().map(|s| s.events).collect();
        assert_eq!(events, [2, 1, 2, 1]);
        assert_eq!(&segments[0].frames[..], b"\x81\x02{}\x81\x02{}");
        assert!(burst.is_empty() && burst.freeze().is_empty());
    }

    #[test]
    fn a_segment_is_bounded_but_a_frame_is_never_cut() {
        let mut burst = Burst::default();
        let big = vec![b'x'; SEGMENT_BYTES + 1];
        burst.push(Kind::Durable, None, &[b"{}"]);
        burst.push(Kind::Durable, None, &[&big]);
        burst.push(Kind::Durable, None, &[b"{}"]);
        let lengths: Vec<usize> = burst.freeze().iter().map(|s| s.frames.len()).collect();
        assert_eq!(lengths, [4, big.len() + 10, 4]);
    }
}
