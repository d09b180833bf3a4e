//! What waits to be sent: a list of segments per connection, over one pool per shard.
//!
//! An outbox is four integers. A segment stands in the pool once, however many connections wait for it, and is counted
//! there; what only one connection gets (answers, greetings) is collected in a *direct* segment that grows while it is
//! last in its list. The pool knows nothing of rooms or of what the bytes mean, except that they are whole frames.
//!
//! Invariants: `bytes` of an outbox is exactly what is unsent in its list; a segment lives while a list names it.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use slab::Slab;

use super::slack::{give_back_list, give_back_slab};
use crate::planted::{self, Bug};
use crate::wire::websocket;

const NONE: u32 = u32::MAX;
const DIRECT_BYTES_MAX: usize = 64 * 1024;
/// Up to so much is copied together for one write.
const CORK_BYTES: usize = 16 * 1024;

/// The unsent output of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Outbox {
    head: u32,
    tail: u32,
    offset: u32,
    bytes: u32,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, offset: 0, bytes: 0 }
    }
}

impl Outbox {
    /// Bytes not yet sent.
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

struct Node {
    segment: u32,
    next: u32,
}

enum Bytes {
    Shared(Arc<[u8]>),
    Direct(Vec<u8>),
}

struct Entry {
    bytes: Bytes,
    links: u32,
    /// It is to be found by the address of its bytes.
    is_indexed: bool,
}

impl Entry {
    fn slice(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Shared(bytes) => bytes,
            Bytes::Direct(bytes) => bytes,
        }
    }
}

/// A shared segment that is being handed to connections.
#[derive(Clone, Copy, Debug)]
pub struct SegmentHandle {
    segment: u32,
    length: u32,
}

impl SegmentHandle {
    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.length as usize
    }
}

/// All segments and list nodes of a shard.
pub struct OutboxPool {
    nodes: Vec<Node>,
    free: u32,
    used: usize,
    segments: Slab<Entry>,
    /// Segments by the address of their bytes, of those that come in again and again.
    index: BTreeMap<usize, u32>,
    shared_bytes: usize,
    direct_bytes: usize,
}

impl Default for OutboxPool {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
            used: 0,
            segments: Slab::new(),
            index: BTreeMap::new(),
            shared_bytes: 0,
            direct_bytes: 0,
        }
    }
}

impl OutboxPool {
    /// Bytes of live shared segments, each counted once.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Bytes that direct segments occupy.
    pub fn direct_bytes(&self) -> usize {
        self.direct_bytes
    }

    /// Takes a segment in; it must be ended with [`OutboxPool::release`] once it is linked where it should be.
    pub fn hold(&mut self, frames: Arc<[u8]>) -> SegmentHandle {
        let length = frames.len() as u32;
        self.shared_bytes += frames.len();
        let segment = self.segments.insert(Entry { bytes: Bytes::Shared(frames), links: 1, is_indexed: false }) as u32;
        SegmentHandle { segment, length }
    }

    /// As [`OutboxPool::hold`], for what comes in once for each of many connections: it stands in the pool once all the
    /// same, as long as somebody waits for it.
    pub fn hold_once(&mut self, frames: &Arc<[u8]>) -> SegmentHandle {
        let address = frames.as_ptr() as usize;
        if let Some(&segment) = self.index.get(&address) {
            self.segments[segment as usize].links += 1;
            return SegmentHandle { segment, length: frames.len() as u32 };
        }
        let handle = self.hold(frames.clone());
        self.segments[handle.segment as usize].is_indexed = true;
        self.index.insert(address, handle.segment);
        handle
    }

    /// Appends a held segment to an outbox.
    pub fn link(&mut self, outbox: &mut Outbox, handle: SegmentHandle) {
        self.segments[handle.segment as usize].links += 1;
        self.append(outbox, handle.segment);
        outbox.bytes += handle.length;
    }

    /// Ends the hold: a segment that nobody waits for is freed.
    pub fn release(&mut self, handle: SegmentHandle) {
        self.unlink(handle.segment);
    }

    /// Appends bytes that only this connection gets: `write` puts whole frames behind what is there.
    pub fn append_direct(&mut self, outbox: &mut Outbox, write: impl FnOnce(&mut Vec<u8>)) {
        let segment = match self.open_direct(outbox) {
            Some(segment) => segment,
            None => {
                let segment =
                    self.segments.insert(Entry { bytes: Bytes::Direct(Vec::new()), links: 1, is_indexed: false })
                        as u32;
                self.append(outbox, segment);
                segment
            }
        };
        if let Bytes::Direct(bytes) = &mut self.segments[segment as usize].bytes {
            let (length, capacity) = (bytes.len(), bytes.capacity());
            write(bytes);
            self.direct_bytes += bytes.capacity() - capacity;
            outbox.bytes += (bytes.len() - length) as u32;
        }
    }

    /// What is to be sent next as one piece, at most `bytes_max`: a segment itself, or several small ones copied to
    /// `cork`. `None` where there are several and they are more than `cork` is for.
    ///
    /// A copy of some hundred bytes costs less than what the kernel does for a second slice.
    pub fn gather_whole<'a>(&'a self, outbox: &Outbox, cork: &'a mut Vec<u8>, bytes_max: usize) -> Option<&'a [u8]> {
        let Node { segment, next } = self.nodes[outbox.head as usize];
        let first = &self.segments[segment as usize].slice()[outbox.offset as usize..];
        if next == NONE {
            return Some(&first[..first.len().min(bytes_max)]);
        }
        if outbox.bytes() > CORK_BYTES.min(bytes_max) {
            return None;
        }
        cork.clear();
        cork.extend_from_slice(first);
        let mut node = next;
        while node != NONE {
            let Node { segment, next } = self.nodes[node as usize];
            cork.extend_from_slice(self.segments[segment as usize].slice());
            node = next;
        }
        Some(cork)
    }

    /// Fills `slices` with what is to be sent next, up to `bytes_max`, and returns how many were filled.
    pub fn gather<'a>(&'a self, outbox: &Outbox, slices: &mut [IoSlice<'a>], bytes_max: usize) -> usize {
        let (mut node, mut offset, mut bytes, mut count) = (outbox.head, outbox.offset as usize, 0, 0);
        while node != NONE && count < slices.len() && bytes < bytes_max {
            let Node { segment, next } = self.nodes[node as usize];
            let rest = &self.segments[segment as usize].slice()[offset..];
            let rest = &rest[..rest.len().min(bytes_max - bytes)];
            if !rest.is_empty() {
                slices[count] = IoSlice::new(rest);
                (bytes, count) = (bytes + rest.len(), count + 1);
            }
            (node, offset) = (next, 0);
        }
        count
    }

    /// Takes `sent` bytes off the front.
    pub fn advance(&mut self, outbox: &mut Outbox, sent: usize) {
        debug_assert!(sent <= outbox.bytes());
        outbox.bytes -= sent as u32;
        let mut sent = outbox.offset as usize + sent;
        while outbox.head != NONE {
            let length = self.segments[self.nodes[outbox.head as usize].segment as usize].slice().len();
            if sent < length {
                break;
            }
            sent -= length;
            self.pop(outbox);
        }
        outbox.offset = sent as u32;
    }

    /// Drops all that is unsent, but for the rest of a frame of which a part is out already.
    pub fn cut(&mut self, outbox: &mut Outbox) {
        let rest = self.begun_frame(outbox);
        self.clear(outbox);
        if !rest.is_empty() && !planted::is(Bug::CutInsideFrame) {
            self.append_direct(outbox, |out| out.extend_from_slice(&rest));
        }
    }

    /// Drops all that is unsent.
    pub fn clear(&mut self, outbox: &mut Outbox) {
        while outbox.head != NONE {
            self.pop(outbox);
        }
        *outbox = Outbox::default();
    }

    /// Frees what nothing stands in.
    pub fn give_back(&mut self) {
        give_back_list(&mut self.nodes);
        give_back_slab(&mut self.segments);
    }

    /// Segments that some outbox names.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Checks one outbox against its list.
    pub fn check_invariants(&self, outbox: &Outbox) {
        let (mut node, mut bytes, mut last) = (outbox.head, 0, NONE);
        while node != NONE {
            let entry = &self.segments[self.nodes[node as usize].segment as usize];
            assert!(entry.links > 0);
            bytes += entry.slice().len();
            (last, node) = (node, self.nodes[node as usize].next);
        }
        assert_eq!((bytes - outbox.offset as usize, last), (outbox.bytes(), outbox.tail));
    }

    fn begun_frame(&self, outbox: &Outbox) -> Vec<u8> {
        if outbox.head == NONE {
            return Vec::new();
        }
        let bytes = self.segments[self.nodes[outbox.head as usize].segment as usize].slice();
        let offset = outbox.offset as usize;
        // The answer to an upgrade stands in front of the first frame, and is never dropped.
        let head = if bytes.starts_with(b"HTTP/") {
            memchr::memmem::find(bytes, b"\r\n\r\n").map_or(0, |at| at + 4)
        } else {
            0
        };
        let end = head + websocket::frame_end(&bytes[head..], offset.saturating_sub(head));
        bytes[offset..end.max(offset)].to_vec()
    }

    fn open_direct(&self, outbox: &Outbox) -> Option<u32> {
        if outbox.tail == NONE {
            return None;
        }
        let segment = self.nodes[outbox.tail as usize].segment;
        match &self.segments[segment as usize].bytes {
            Bytes::Direct(bytes) if bytes.len() < DIRECT_BYTES_MAX => Some(segment),
            _ => None,
        }
    }

    fn append(&mut self, outbox: &mut Outbox, segment: u32) {
        let node = if self.free == NONE {
            self.nodes.push(Node { segment, next: NONE });
            (self.nodes.len() - 1) as u32
        } else {
            let node = self.free;
            self.free = self.nodes[node as usize].next;
            self.nodes[node as usize] = Node { segment, next: NONE };
            node
        };
        self.used += 1;
        if outbox.tail == NONE {
            outbox.head = node;
            outbox.offset = 0;
        } else {
            self.nodes[outbox.tail as usize].next = node;
        }
        outbox.tail = node;
    }

    fn pop(&mut self, outbox: &mut Outbox) {
        let node = outbox.head;
        let Node { segment, next } = self.nodes[node as usize];
        outbox.head = next;
        outbox.offset = 0;
        if next == NONE {
            outbox.tail = NONE;
        }
        self.nodes[node as usize].next = self.free;
        self.free = node;
        self.used -= 1;
        if self.used == 0 {
            self.nodes.clear();
            self.free = NONE;
        }
        self.unlink(segment);
    }

    fn unlink(&mut self, segment: u32) {
        let entry = &mut self.segments[segment as usize];
        entry.links -= 1;
        if entry.links == 0 {
            let Entry { bytes, is_indexed, .. } = self.segments.remove(segment as usize);
            match bytes {
                Bytes::Shared(bytes) => {
                    self.shared_bytes -= bytes.len();
                    if is_indexed {
                        self.index.remove(&(bytes.as_ptr() as usize));
                    }
                }
                Bytes::Direct(bytes) => self.direct_bytes -= bytes.capacity(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::websocket::{Opcode, put_frame};
    use proptest::prelude::*;

    fn frames(texts: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        texts.iter().for_each(|text| put_frame(&mut out, Opcode::Text, &[text.as_bytes()]));
        out
    }

    fn drain(pool: &mut OutboxPool, outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let count = pool.gather(outbox, &mut slices, step);
            let chunk: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
            assert!(!chunk.is_empty() && chunk.len() <= step);
            sent.extend_from_slice(&chunk);
            pool.advance(outbox, chunk.len());
            pool.check_invariants(outbox);
        }
        sent
    }

    #[test]
    fn a_segment_lives_as_long_as_somebody_waits_for_it() {
        let (mut pool, mut ana, mut ben) = (OutboxPool::default(), Outbox::default(), Outbox::default());
        let handle = pool.hold(frames(&["hello"]).into());
        pool.link(&mut ana, handle);
        pool.link(&mut ben, handle);
        pool.release(handle);
        assert_eq!(pool.shared_bytes(), 7);
        drain(&mut pool, &mut ana, 100);
        assert_eq!(pool.shared_bytes(), 7);
        pool.clear(&mut ben);
        assert_eq!((pool.shared_bytes(), pool.used, pool.segments.len()), (0, 0, 0));
    }

    #[test]
    fn nobody_interested_frees_at_once() {
        let mut pool = OutboxPool::default();
        let handle = pool.hold(frames(&["hello"]).into());
        pool.release(handle);
        assert_eq!((pool.shared_bytes(), pool.segments.len()), (0, 0));
    }

    #[test]
    fn cutting_ends_the_frame_that_was_begun_and_no_other() {
        let (mut pool, mut outbox) = (OutboxPool::default(), Outbox::default());
        let all = frames(&["one", "two", "three"]);
        for sent in 0..all.len() {
            let handle = pool.hold(all.clone().into());
            pool.link(&mut outbox, handle);
            pool.release(handle);
            pool.append_direct(&mut outbox, |out| out.extend_from_slice(&frames(&["four"])));
            pool.advance(&mut outbox, sent);
            pool.cut(&mut outbox);
            pool.check_invariants(&outbox);
            let end = [0, 5, 10, 17].into_iter().find(|&end| end >= sent).unwrap();
            assert_eq!(drain(&mut pool, &mut outbox, 100), &all[sent..end], "after {sent} bytes");
        }
        assert_eq!((pool.shared_bytes(), pool.direct_bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            items in prop::collection::vec((any::<bool>(), 1usize..300), 1..40),
            step in 1usize..500,
        ) {
            let (mut pool, mut outbox, mut expected) = (OutboxPool::default(), Outbox::default(), Vec::new());
            for (n, (direct, length)) in items.into_iter().enumerate() {
                let bytes = vec![n as u8; length];
                expected.extend_from_slice(&bytes);
                if direct {
                    pool.append_direct(&mut outbox, |out| out.extend_from_slice(&bytes));
                } else {
                    let handle = pool.hold(bytes.into());
                    pool.link(&mut outbox, handle);
                    pool.release(handle);
                }
                pool.check_invariants(&outbox);
            }
            prop_assert_eq!(outbox.bytes(), expected.len());
            prop_assert_eq!(drain(&mut pool, &mut outbox, step), expected);
            prop_assert_eq!((pool.shared_bytes(), pool.direct_bytes(), pool.used), (0, 0, 0));
        }
    }
}
