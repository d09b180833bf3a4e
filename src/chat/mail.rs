//! What a shard has for the others, and for itself, until the end of the turn.
//!
//! Owns the credits and the windows of each pair, seen from this side. A shard's post to itself goes through the same
//! door, so that one thread and many behave alike; it is handled in the same turn.

use std::collections::VecDeque;

use super::envelope::{Answer, Batch, Envelope, Reply, ReplyTo, Request};
use super::ids::ShardId;
use crate::planted::{self, Bug};

/// Room for so many envelopes is kept for the next turn.
const LOCAL_KEPT: usize = 256;

/// Too many requests are under way from one shard to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoCredit;

struct Outgoing {
    /// What could not be handed over, ahead of everything else.
    held: Option<Batch>,
    envelopes: Vec<Envelope>,
    credits_back: u32,
    window_back: usize,
    /// Below 0 by what was [obliged](Mail::oblige) without one.
    credits: isize,
    window_used: usize,
}

/// The outgoing side of a shard.
pub struct Mail {
    id: ShardId,
    targets: Vec<Outgoing>,
    local: VecDeque<Envelope>,
    credits_max: usize,
    window_bytes: usize,
}

impl Mail {
    /// Mail of shard `id` among `shards`, with `credits_max` requests and `window_bytes` of bursts under way per pair.
    pub fn new(id: ShardId, shards: usize, credits_max: usize, window_bytes: usize) -> Self {
        let target = || Outgoing {
            held: None,
            envelopes: Vec::new(),
            credits_back: 0,
            window_back: 0,
            credits: credits_max as isize,
            window_used: 0,
        };
        let targets = (0..shards).map(|_| target()).collect();
        Self { id, targets, local: VecDeque::new(), credits_max, window_bytes }
    }

    /// Posts a request.
    ///
    /// # Errors
    /// The pair has no credit left; the request is dropped, to be refused by whoever made it.
    pub fn request(&mut self, target: ShardId, request: Request) -> Result<(), NoCredit> {
        if !self.has_credit(target) {
            return Err(NoCredit);
        }
        self.oblige(target, request);
        Ok(())
    }

    /// Posts a request that must not be refused, also without a credit, which the reply makes good. Whoever makes it bounds
    /// how many there are.
    pub fn oblige(&mut self, target: ShardId, request: Request) {
        self.targets[target.index()].credits -= 1;
        self.post(target, Envelope::Request(request));
    }

    /// Whether a request to that shard would be taken.
    pub fn has_credit(&self, target: ShardId) -> bool {
        self.targets[target.index()].credits > 0
    }

    /// Posts the reply to a request that came from `target`, and with it the credit.
    pub fn reply(&mut self, target: ShardId, reply: Reply) {
        if target == self.id {
            self.targets[target.index()].credits += 1;
        } else {
            self.targets[target.index()].credits_back += 1;
        }
        // A reply that nobody waits for is only the credit.
        let is_awaited = match reply.origin.to {
            ReplyTo::Nobody => false,
            ReplyTo::Refusal(_) => matches!(reply.answer, Answer::Refused(_) | Answer::Denied(_)),
            _ => true,
        };
        if is_awaited {
            self.post(target, Envelope::Reply(reply));
        }
    }

    /// Posts an obligation.
    pub fn post(&mut self, target: ShardId, envelope: Envelope) {
        self.targets[target.index()].window_used += envelope.window_bytes();
        if target == self.id {
            self.local.push_back(envelope);
        } else {
            self.targets[target.index()].envelopes.push(envelope);
        }
    }

    /// Whether bursts may be sent to that shard.
    pub fn is_window_open(&self, target: ShardId) -> bool {
        self.targets[target.index()].window_used < self.window_bytes
    }

    /// Notes that so many bytes that shard `from` sent through its window were taken over here. Returns whether that was
    /// this shard's own window to itself, and it is open again.
    pub fn take_over(&mut self, from: ShardId, bytes: usize) -> bool {
        if from == self.id {
            return self.handle_returned(from, 0, bytes);
        }
        self.targets[from.index()].window_back += bytes;
        false
    }

    /// Notes what a batch from `from` gives back. Returns whether a window that was shut is open again.
    pub fn handle_returned(&mut self, from: ShardId, credits: u32, window_bytes: usize) -> bool {
        let was_open = self.is_window_open(from);
        let target = &mut self.targets[from.index()];
        target.credits += credits as isize;
        target.window_used -= window_bytes;
        !was_open && self.is_window_open(from)
    }

    /// The next thing that the shard posted to itself.
    pub fn next_local(&mut self) -> Option<Envelope> {
        let next = self.local.pop_front();
        if self.local.is_empty() {
            // A storm must not leave its high-water mark behind.
            self.local.shrink_to(LOCAL_KEPT);
        }
        next
    }

    /// Whether the shard has something to tell itself.
    pub fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    /// What there is for `target`, if anything; what it refuses goes to [`Mail::restore`].
    pub fn poll_batch(&mut self, target: ShardId) -> Option<Batch> {
        let from = self.id;
        let outgoing = &mut self.targets[target.index()];
        if let Some(batch) = outgoing.held.take() {
            return Some(batch);
        }
        if outgoing.envelopes.is_empty() && outgoing.credits_back == 0 && outgoing.window_back == 0 {
            return None;
        }
        Some(Batch {
            from,
            envelopes: std::mem::take(&mut outgoing.envelopes),
            credits: std::mem::take(&mut outgoing.credits_back),
            window_bytes: std::mem::take(&mut outgoing.window_back),
        })
    }

    /// Takes back a batch whose receiver's mailbox was full.
    pub fn restore(&mut self, target: ShardId, batch: Batch) {
        self.targets[target.index()].held = Some(batch);
    }

    /// Whether a batch is held back.
    pub fn is_holding(&self) -> bool {
        self.targets.iter().any(|target| target.held.is_some())
    }

    /// Whether every request was answered, every burst taken over and everything handed over.
    pub fn is_settled(&self) -> bool {
        let settled = |t: &Outgoing| {
            let answered = t.credits == self.credits_max as isize && t.window_used == 0;
            t.held.is_none() && t.envelopes.is_empty() && (answered || planted::is(Bug::DrainWithBurst))
        };
        self.local.is_empty() && self.targets.iter().all(settled)
    }

    /// Checks that no more came back than was given out.
    pub fn check_invariants(&self) {
        assert!(
            self.targets.iter().all(|target| target.credits <= self.credits_max as isize),
            "a credit came back twice"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::envelope::{Ask, Origin, ShardAsk};
    use crate::chat::ids::ConnId;

    #[test]
    fn what_must_not_be_refused_needs_no_credit_and_owes_one() {
        let (here, there) = (ShardId(0), ShardId(1));
        let request = || {
            let origin = Origin { conn: ConnId::new(here, 0, 0), to: ReplyTo::Nobody };
            Request { origin, ask: Ask::Shard(ShardAsk::Rooms { from: 0, limit: 1 }) }
        };
        let mut mail = Mail::new(here, 2, 1, 1000);
        assert_eq!(mail.request(there, request()), Ok(()));
        assert_eq!(mail.request(there, request()), Err(NoCredit));
        mail.oblige(there, request());
        assert_eq!(mail.poll_batch(there).map(|batch| batch.envelopes.len()), Some(2));
        assert!(!mail.is_settled());
        // The credit of one of the two is owed.
        mail.handle_returned(there, 1, 0);
        assert_eq!((mail.request(there, request()), mail.is_settled()), (Err(NoCredit), false));
        mail.handle_returned(there, 1, 0);
        assert!(mail.is_settled());
        mail.check_invariants();
        assert_eq!(mail.request(there, request()), Ok(()));
    }
}
