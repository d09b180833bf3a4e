//! The latest durable events of a room as ready frames, for those who come back.
//!
//! What a burst froze is kept here as it is, without a copy. Chunks that follow each other are put together while they are
//! small, so that a room that says one thing a turn does not keep a thousand pieces. The history knows nothing of members,
//! and of what the frames mean only which message an event is about.
//!
//! Invariants: the events are consecutive; `bytes` is the sum of the chunks.

use std::collections::VecDeque;
use std::sync::Arc;

use memchr::memmem;

use super::store::Chunk;
use crate::planted::{self, Bug};
use crate::wire::stored::{is_about, tombstone};
use crate::wire::value::Id;
use crate::wire::websocket::{self, Opcode, frame_payloads};

/// Chunks are put together up to this size.
const CHUNK_BYTES: usize = 16 * 1024;

/// The events that one connection has missed, in order: shared with everybody who missed the same.
pub type Missed = Arc<[Arc<[u8]>]>;

/// Recent events of one room.
#[derive(Default, Debug)]
pub struct History {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

/// How much a room keeps.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// At least so many of the latest events, if there have been so many and they fit.
    pub events: u64,
    /// At most so many bytes of frames, but always the latest chunk.
    pub bytes: usize,
}

impl History {
    /// Takes in what follows on the last event.
    pub fn push(&mut self, chunk: Chunk, keep: Keep) {
        debug_assert!(self.last_seq().is_none_or(|last| last + 1 == chunk.first_seq), "events are consecutive");
        debug_assert!(chunk.first_seq <= chunk.last_seq);
        if keep.events == 0 {
            return;
        }
        self.bytes += chunk.frames.len();
        self.chunks.push_back(chunk);
        while let [.., before, last] = self.chunks.make_contiguous() {
            let bytes = before.frames.len() + last.frames.len();
            // Only of like size, so that an event is copied a few times in all and not with each that follows.
            if bytes > CHUNK_BYTES || before.frames.len() > 2 * last.frames.len() {
                break;
            }
            before.frames = [&*before.frames, &*last.frames].concat().into();
            before.last_seq = last.last_seq;
            self.chunks.pop_back();
        }
        self.drop_superfluous(keep);
    }

    /// Takes in what comes before the first event, if it does: otherwise it is of no use, and dropped.
    pub fn prepend(&mut self, chunks: Vec<Chunk>, next_seq: u64) {
        let first = self.first_seq().unwrap_or(next_seq);
        let fits = chunks.last().is_some_and(|chunk| chunk.last_seq + 1 == first);
        if fits || planted::is(Bug::PrependUnchecked) {
            for chunk in chunks.into_iter().rev() {
                self.bytes += chunk.frames.len();
                self.chunks.push_front(chunk);
            }
        }
    }

    /// The `seq` of the first event.
    pub fn first_seq(&self) -> Option<u64> {
        self.chunks.front().map(|chunk| chunk.first_seq)
    }

    /// Bytes of frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The events behind `since` up to `last_seq`, which is the room's: `None` if not all of them are here, or they are
    /// more than `bytes_max`.
    pub fn missed(&self, since: u64, last_seq: u64, bytes_max: usize) -> Option<Missed> {
        if since == last_seq {
            return Some(Arc::from([]));
        }
        if self.first_seq()? > since + 1 || self.last_seq()? != last_seq {
            return None;
        }
        let from = self.chunks.partition_point(|chunk| chunk.last_seq <= since);
        let mut missed = Vec::with_capacity(self.chunks.len() - from);
        let mut bytes = 0;
        for chunk in self.chunks.range(from..) {
            let frames = if chunk.first_seq > since { chunk.frames.clone() } else { chunk_behind(chunk, since) };
            bytes += frames.len();
            missed.push(frames);
        }
        (bytes <= bytes_max).then(|| missed.into())
    }

    /// Makes tombstones of all that is here of a message that was deleted by the event `deleted_seq`.
    pub fn erase(&mut self, message: &Id, deleted_seq: u64) {
        // Only a chunk in which the id stands, perhaps written with escapes, is looked at event by event.
        let id = memmem::Finder::new(message.text());
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.first_seq < deleted_seq) {
            if id.find(&chunk.frames).is_none() && memchr::memchr(b'\\', &chunk.frames).is_none() {
                continue;
            }
            let mut frames = Vec::with_capacity(chunk.frames.len());
            let mut changed = false;
            for (seq, payload) in (chunk.first_seq..).zip(frame_payloads(&chunk.frames)) {
                let text = str::from_utf8(payload).unwrap_or_default();
                let erased = if seq < deleted_seq && is_about(text, message) { tombstone(text) } else { None };
                changed |= erased.is_some();
                websocket::put_frame(&mut frames, Opcode::Text, &[erased.as_deref().unwrap_or(payload)]);
            }
            if changed {
                self.bytes = self.bytes - chunk.frames.len() + frames.len();
                chunk.frames = frames.into();
            }
        }
    }

    /// Forgets the older half; returns the bytes that this frees.
    pub fn forget_half(&mut self) -> usize {
        let before = self.bytes;
        for _ in 0..self.chunks.len().div_ceil(2) {
            self.pop_front();
        }
        self.chunks.shrink_to_fit();
        before - self.bytes
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Checks the invariants; `last_seq` is the room's.
    pub fn check_invariants(&self, last_seq: u64) {
        assert_eq!(self.bytes, self.chunks.iter().map(|chunk| chunk.frames.len()).sum::<usize>());
        let next = self.chunks.iter().skip(1);
        assert!(self.chunks.iter().zip(next).all(|(chunk, next)| chunk.last_seq + 1 == next.first_seq));
        assert!(self.last_seq().is_none_or(|last| last == last_seq), "the history ends with the last event");
        let count = |chunk: &Chunk| frame_payloads(&chunk.frames).count() as u64;
        assert!(self.chunks.iter().all(|chunk| chunk.last_seq - chunk.first_seq + 1 == count(chunk)));
    }

    fn last_seq(&self) -> Option<u64> {
        self.chunks.back().map(|chunk| chunk.last_seq)
    }

    fn drop_superfluous(&mut self, keep: Keep) {
        while let (Some(second), Some(last)) = (self.chunks.get(1), self.chunks.back()) {
            let kept = last.last_seq - second.first_seq + 1;
            if kept < keep.events && self.bytes <= keep.bytes {
                return;
            }
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(chunk) = self.chunks.pop_front() {
            self.bytes -= chunk.frames.len();
        }
    }
}

/// The frames of a chunk that stand behind the event `since`.
fn chunk_behind(chunk: &Chunk, since: u64) -> Arc<[u8]> {
    let mut frames = &chunk.frames[..];
    for _ in chunk.first_seq..=since {
        frames = websocket::split_frame(frames).map_or(&[][..], |(_, _, rest)| rest);
    }
    frames.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Keep = Keep { events: 1_000, bytes: 1 << 20 };

    fn event(seq: u64, id: &str, size: usize) -> String {
        let content = "x".repeat(size);
        format!(r#"{{"type":"new_message","roomId":"r","id":"{id}","content":"{content}","seq":{seq}}}"#)
    }

    fn chunk(first_seq: u64, events: u64, size: usize) -> Chunk {
        let mut frames = Vec::new();
        for seq in first_seq..first_seq + events {
            let payload = event(seq, &format!("m{seq}"), size);
            websocket::put_frame(&mut frames, Opcode::Text, &[payload.as_bytes()]);
        }
        Chunk { first_seq, last_seq: first_seq + events - 1, frames: frames.into() }
    }

    fn payloads(missed: &Missed) -> Vec<String> {
        let payloads = missed.iter().flat_map(|frames| frame_payloads(frames));
        payloads.map(|payload| String::from_utf8(payload.to_vec()).unwrap()).collect()
    }

    fn seqs(missed: &Missed) -> Vec<u64> {
        let seq = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["seq"].as_u64().unwrap();
        payloads(missed).into_iter().map(seq).collect()
    }

    #[test]
    fn small_chunks_are_put_together() {
        let mut history = History::default();
        for seq in 1..=1_000 {
            history.push(chunk(seq, 1, 10), KEEP);
        }
        history.check_invariants(1_000);
        assert!(history.chunks.len() < 20, "{}", history.chunks.len());
        assert_eq!(seqs(&history.missed(990, 1_000, 1 << 20).unwrap()), (991..=1_000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_all_here_is_not_given() {
        let mut history = History::default();
        assert!(history.missed(0, 0, 9).is_some_and(|missed| missed.is_empty()));
        assert!(history.missed(3, 4, 9).is_none());
        history.push(chunk(5, 3, 10), KEEP);
        assert!(history.missed(3, 7, 1 << 20).is_none());
        assert_eq!(seqs(&history.missed(4, 7, 1 << 20).unwrap()), [5, 6, 7]);
        assert!(history.missed(4, 7, 100).is_none(), "too large");
        assert!(history.missed(4, 8, 1 << 20).is_none(), "the last is not here");
        history.prepend(vec![chunk(1, 2, 10), chunk(3, 1, 10)], 8);
        assert!(history.missed(3, 7, 1 << 20).is_none(), "it did not fit and was dropped");
        history.prepend(vec![chunk(1, 2, 10), chunk(3, 2, 10)], 8);
        assert_eq!(seqs(&history.missed(0, 7, 1 << 20).unwrap()), [1, 2, 3, 4, 5, 6, 7]);
        history.clear();
        history.prepend(vec![chunk(6, 2, 10)], 8);
        assert_eq!(seqs(&history.missed(5, 7, 1 << 20).unwrap()), [6, 7]);
    }

    #[test]
    fn a_message_is_erased_wherever_it_stands() {
        let mut history = History::default();
        history.push(chunk(1, 3, 10), KEEP);
        let update = r#"{"type":"message_updated","roomId":"r","id":"\u006d2","content":"new","edited":true,"seq":4}"#;
        let mut frames = Vec::new();
        websocket::put_frame(&mut frames, Opcode::Text, &[update.as_bytes()]);
        history.push(Chunk { first_seq: 4, last_seq: 4, frames: frames.into() }, KEEP);
        history.erase(&Id::from_text("m2").unwrap(), 2);
        assert!(payloads(&history.missed(0, 4, 1 << 20).unwrap())[1].contains("xxx"), "not deleted by what is before");
        history.erase(&Id::from_text("m2").unwrap(), 5);
        history.check_invariants(4);
        let told = payloads(&history.missed(0, 4, 1 << 20).unwrap());
        assert!(told[0].contains("xxx") && told[2].contains("xxx"));
        assert_eq!(told[1], r#"{"type":"new_message","roomId":"r","id":"m2","deleted":true,"seq":2}"#);
        assert!(told[3].contains("\"deleted\":true") && !told[3].contains("new\""), "{}", told[3]);
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_wanted() {
        let mut history = History::default();
        history.push(chunk(1, 3, 10), Keep { events: 0, ..KEEP });
        assert_eq!((history.bytes(), history.first_seq()), (0, None));
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end(
            sizes in prop::collection::vec((1u64..40, 0usize..3_000), 1..60),
            events in 1u64..200,
            bytes in 1_000usize..100_000,
            since in 0u64..400,
        ) {
            let keep = Keep { events, bytes };
            let (mut history, mut next) = (History::default(), 1);
            for (count, size) in sizes {
                history.push(chunk(next, count, size), keep);
                next += count;
                history.check_invariants(next - 1);
            }
            let (first, last) = (history.first_seq().unwrap(), next - 1);
            prop_assert!(history.bytes() <= bytes || history.chunks.len() == 1);
            prop_assert!(last - first + 1 >= events.min(last) || history.bytes() + 100_000 > bytes);
            match history.missed(since, last, usize::MAX) {
                Some(missed) => prop_assert_eq!(seqs(&missed), (since + 1..=last).collect::<Vec<_>>()),
                None => prop_assert!(since + 1 < first || since > last),
            }
            let before = history.bytes();
            prop_assert_eq!(history.forget_half(), before - history.bytes());
        }
    }
}
