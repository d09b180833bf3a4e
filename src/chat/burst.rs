//! What a room's home emits in a turn: an ordered list of segments, each a run of ready WebSocket frames.
//!
//! A burst crosses once per interested shard, whatever the number of members there, and each member gets it in one write.
//! A segment is frozen once and then only shared. Where somebody negotiated permessage-deflate it has two variants of the
//! same frames, so that each message is compressed once, however many members get it.

use std::sync::Arc;

use super::ids::UserId;
use crate::wire::deflate::{DeflatedFrames, Deflater};
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

/// Ready frames that several connections share.
#[derive(Clone, Debug)]
pub struct Frames {
    /// Whole, unmasked WebSocket frames.
    pub plain: Arc<[u8]>,
    /// The same messages, some of them compressed; absent if that saves nothing, or nobody takes it.
    pub deflated: Option<DeflatedFrames>,
}

impl Frames {
    /// Takes frames in; with a `deflater` also compressed.
    pub fn new(plain: Arc<[u8]>, deflater: Option<&mut Deflater>) -> Self {
        let deflated = deflater.and_then(|deflater| deflater.deflate_frames(&plain));
        Self { plain, deflated }
    }

    /// What both variants take.
    pub fn bytes(&self) -> usize {
        self.plain.len() + self.deflated.as_ref().map_or(0, |deflated| deflated.frames.len())
    }

    /// The variant for a connection with such a window, 0 if it takes nothing compressed.
    pub fn for_window(self, window_bits: u8) -> Arc<[u8]> {
        match self.deflated {
            Some(deflated) if deflated.window_bits <= window_bits => deflated.frames,
            _ => self.plain,
        }
    }
}

/// A run of whole frames of one kind for the same receivers.
#[derive(Clone, Debug)]
pub struct Segment {
    /// One frame for each event.
    pub frames: Frames,
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

    /// Appends durable events that are frames already.
    pub fn push_ready(&mut self, frames: Arc<[u8]>, events: u32) {
        self.close_segment();
        self.bytes += frames.len();
        let frames = Frames::new(frames, None);
        self.closed.push(Segment { frames, events, kind: Kind::Durable, exclude: None });
    }

    /// The bytes collected so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Ends the burst and hands its segments out, with a `deflater` also compressed; the burst is empty again.
    pub fn freeze(&mut self, deflater: Option<&mut Deflater>) -> Arc<[Segment]> {
        self.close_segment();
        self.bytes = 0;
        let mut closed = std::mem::take(&mut self.closed);
        if let Some(deflater) = deflater {
            for Segment { frames, .. } in &mut closed {
                frames.deflated = deflater.deflate_frames(&frames.plain);
            }
        }
        closed.into()
    }

    /// Frees the buffer of an empty burst.
    pub fn compact(&mut self) {
        if self.is_empty() {
            self.open = Vec::new();
        }
    }

    fn close_segment(&mut self) {
        if let Some((kind, exclude)) = self.open_kind.take() {
            let frames = Frames::new(Arc::from(&self.open[..]), None);
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
        let segments = burst.freeze(None);
        let events: Vec<u32> = segments.iter().map(|s| s.events).collect();
        assert_eq!(events, [2, 1, 2, 1]);
        assert_eq!(&segments[0].frames.plain[..], b"\x81\x02{}\x81\x02{}");
        assert!(burst.is_empty() && burst.freeze(None).is_empty());
    }

    #[test]
    fn a_segment_is_bounded_but_a_frame_is_never_cut() {
        let mut burst = Burst::default();
        let big = vec![b'x'; SEGMENT_BYTES + 1];
        burst.push(Kind::Durable, None, &[b"{}"]);
        burst.push(Kind::Durable, None, &[&big]);
        burst.push(Kind::Durable, None, &[b"{}"]);
        let lengths: Vec<usize> = burst.freeze(None).iter().map(|s| s.frames.plain.len()).collect();
        assert_eq!(lengths, [4, big.len() + 10, 4]);
    }

    #[test]
    fn each_receiver_gets_the_variant_that_fits() {
        let mut burst = Burst::default();
        let (small, large) = (vec![b'x'; 100], vec![b'x'; 1000]);
        burst.push(Kind::Durable, None, &[&small]);
        burst.push(Kind::Durable, None, &[&large]);
        burst.push(Kind::Ephemeral, None, &[&small]);
        let mut deflater = Deflater::new(512);
        let segments = burst.freeze(Some(&mut deflater));
        let [both, plain] = &segments[..] else { panic!("{segments:?}") };
        assert!(plain.frames.deflated.is_none(), "nothing to gain");
        let deflated = both.frames.deflated.clone().unwrap();
        assert_eq!(deflated.window_bits, 10);
        assert_eq!(both.frames.bytes(), both.frames.plain.len() + deflated.frames.len());
        for window_bits in 0..=15 {
            let expected = if window_bits < 10 { &both.frames.plain } else { &deflated.frames };
            assert!(Arc::ptr_eq(&both.frames.clone().for_window(window_bits), expected));
        }
        assert!(Arc::ptr_eq(&plain.frames.clone().for_window(15), &plain.frames.plain));
    }
}
