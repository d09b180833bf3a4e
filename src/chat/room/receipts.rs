//! Who has read how far, told at a bounded rate: of each user at most one receipt a second, and always the latest.
//!
//! In a room up to the limit of lists everybody is told; in a large one only the user's own connections, so that a
//! thousand readers are not a thousand events for each of a thousand members.

use std::collections::{BTreeMap, VecDeque};

use super::{Room, RoomContext};
use crate::chat::burst::{Frames, Kind};
use crate::chat::ids::{ShardId, UserId};
use crate::wire::event;
use crate::wire::value::Id;
use crate::wire::websocket::{self, Opcode};

const INTERVAL_MS: u64 = 1_000;

/// The receipts of the last second.
#[derive(Default, Debug)]
pub(super) struct Receipts(Option<Box<Second>>);

#[derive(Default, Debug)]
struct Second {
    /// Who was told of within the last second, and what is to be told when it is over.
    users: BTreeMap<Id, Option<u64>>,
    /// When each second is over, on the tick clock, in order.
    due: VecDeque<(u64, Id)>,
    private: Vec<(ShardId, UserId, Frames)>,
}

impl Receipts {
    /// When the next second of a user is over.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.0.as_ref()?.due.front().map(|(due_ms, _)| *due_ms)
    }

    /// What is only for the readers' own connections.
    pub(super) fn take_private(&mut self) -> Vec<(ShardId, UserId, Frames)> {
        self.0.as_mut().map(|second| std::mem::take(&mut second.private)).unwrap_or_default()
    }

    fn second(&mut self) -> &mut Second {
        self.0.get_or_insert_default()
    }

    pub(super) fn has_private(&self) -> bool {
        self.0.as_ref().is_some_and(|second| !second.private.is_empty())
    }
}

impl Room {
    /// A user has read up to `seq`.
    pub(super) fn note_receipt(&mut self, cx: &RoomContext<'_>, user: &Id, seq: u64) {
        if let Some(untold) = self.receipts.second().users.get_mut(user) {
            *untold = Some(seq);
            return;
        }
        self.tell_receipt(cx, user, seq);
        self.receipts.second().users.insert(user.clone(), None);
        self.receipts.second().due.push_back((cx.now.tick_ms + INTERVAL_MS, user.clone()));
    }

    /// Tells what has waited for a second.
    pub(super) fn tell_due_receipts(&mut self, cx: &RoomContext<'_>) {
        while self.receipts.due_ms().is_some_and(|due_ms| due_ms <= cx.now.tick_ms) {
            let Some((_, user)) = self.receipts.second().due.pop_front() else { break };
            if let Some(Some(seq)) = self.receipts.second().users.remove(&user) {
                self.note_receipt(cx, &user, seq);
            }
        }
        if self.receipts.due_ms().is_none() && !self.receipts.has_private() {
            self.receipts = Receipts::default();
        }
    }

    fn tell_receipt(&mut self, cx: &RoomContext<'_>, user: &Id, seq: u64) {
        if !self.is_heard(cx) || self.is_full(cx, 0) {
            return;
        }
        let mut text = Vec::with_capacity(128);
        event::read_receipt(&mut text, self.name.text(), user.as_ref(), seq, cx.now.wall_ms);
        if !self.large {
            return self.burst.push(Kind::Ephemeral, None, &[&text]);
        }
        let user = UserId::new(user, cx.key.hash(user.text()));
        let mut frame = Vec::with_capacity(text.len() + 10);
        websocket::put_frame(&mut frame, Opcode::Text, &[&text]);
        let frames = Frames::new(frame.into(), None);
        for source in self.presence.sources_of(&user) {
            self.receipts.second().private.push((source, user.clone(), frames.clone()));
        }
    }
}
