//! What a shard has handed to the store, and what it will hand out at the end of the turn.
//!
//! Owns the bounds: so many writes, bytes and reads under way, then the next is refused. Writes are answered in the order
//! in which they went out, so what an answer belongs to is always the oldest one, and needs no number. The desk knows
//! nothing of what a change means.

use std::collections::VecDeque;
use std::sync::Arc;

use super::envelope::Origin;
use super::ids::ShardId;
use super::store::{Asker, Job, Lookup, Revoke, StoreFacts, Write};
use crate::config::Limits;

/// The store takes no more now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeskFull;

/// A write that the store has not answered.
#[derive(Debug)]
pub struct Entrusted {
    /// The number of its room.
    pub room: u32,
    /// The shard that asked.
    pub source: ShardId,
    /// Its question.
    pub origin: Origin,
    /// What was asked.
    pub write: Arc<Write>,
}

/// What is under way between a shard and the store.
#[derive(Debug)]
pub struct Desk {
    facts: Option<StoreFacts>,
    entrusted: VecDeque<Entrusted>,
    /// The last so many of those are still to be handed out.
    unposted: usize,
    reads: VecDeque<(Asker, Lookup)>,
    revokes: VecDeque<Revoke>,
    watch: Option<u64>,
    bytes: usize,
    reads_under_way: usize,
    writes_max: usize,
    bytes_max: usize,
    reads_max: usize,
}

impl Desk {
    /// The desk of one of `shards`.
    pub fn new(facts: Option<StoreFacts>, limits: &Limits, shards: usize) -> Self {
        Self {
            facts,
            entrusted: VecDeque::new(),
            unposted: 0,
            reads: VecDeque::new(),
            revokes: VecDeque::new(),
            watch: None,
            bytes: 0,
            reads_under_way: 0,
            writes_max: limits.store_writes_max.div_ceil(shards),
            bytes_max: limits.store_bytes_max.div_ceil(shards),
            reads_max: limits.store_reads_max.div_ceil(shards),
        }
    }

    /// The store, if there is one.
    pub fn facts(&self) -> Option<&StoreFacts> {
        self.facts.as_ref()
    }

    /// Entrusts a write to the store.
    ///
    /// # Errors
    /// Too much is under way; the first write is always taken.
    pub fn write(&mut self, entrusted: Entrusted) -> Result<(), DeskFull> {
        let bytes = entrusted.write.change.bytes();
        let is_full = self.entrusted.len() >= self.writes_max || self.bytes + bytes > self.bytes_max;
        if is_full && !self.entrusted.is_empty() {
            return Err(DeskFull);
        }
        self.bytes += bytes;
        self.unposted += 1;
        self.entrusted.push_back(entrusted);
        Ok(())
    }

    /// Asks the store.
    ///
    /// # Errors
    /// Too many reads are under way.
    pub fn read(&mut self, asker: Asker, lookup: Lookup) -> Result<(), DeskFull> {
        if self.reads_under_way >= self.reads_max {
            return Err(DeskFull);
        }
        self.reads_under_way += 1;
        self.reads.push_back((asker, lookup));
        Ok(())
    }

    /// Has a revocation kept, which counts like a read.
    ///
    /// # Errors
    /// Too many are under way.
    pub fn revoke(&mut self, revoke: Revoke) -> Result<(), DeskFull> {
        if self.reads_under_way >= self.reads_max {
            return Err(DeskFull);
        }
        self.reads_under_way += 1;
        self.revokes.push_back(revoke);
        Ok(())
    }

    /// Asks to be told when the feed has moved beyond `position`; replaces what was asked before.
    pub fn watch_feed(&mut self, position: u64) {
        self.watch = Some(position);
    }

    /// The oldest write, which the store has answered.
    pub fn take_written(&mut self) -> Option<Entrusted> {
        let entrusted = self.entrusted.pop_front()?;
        self.bytes -= entrusted.write.change.bytes();
        if self.entrusted.is_empty() {
            self.entrusted.shrink_to(256);
        }
        Some(entrusted)
    }

    /// A read, or a revocation, was answered.
    pub fn note_found(&mut self) {
        self.reads_under_way = self.reads_under_way.saturating_sub(1);
    }

    /// What is to be handed to the store next.
    pub fn poll_job(&mut self) -> Option<Job> {
        if self.unposted > 0 {
            let posted = self.entrusted.len() - std::mem::take(&mut self.unposted);
            return Some(Job::Write(self.entrusted.range(posted..).map(|entrusted| entrusted.write.clone()).collect()));
        }
        if let Some((asker, lookup)) = self.reads.pop_front() {
            return Some(Job::Read(asker, lookup));
        }
        if let Some(revoke) = self.revokes.pop_front() {
            return Some(Job::Revoke(revoke));
        }
        self.watch.take().map(Job::WatchFeed)
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.entrusted.is_empty() && self.reads_under_way == 0
    }

    /// Checks that what is to go out is among what is under way.
    pub fn check_invariants(&self) {
        assert!(self.unposted <= self.entrusted.len() && self.reads.len() + self.revokes.len() <= self.reads_under_way);
        let bytes: usize = self.entrusted.iter().map(|entrusted| entrusted.write.change.bytes()).sum();
        assert_eq!(bytes, self.bytes);
    }
}
