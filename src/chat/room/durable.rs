//! What a room has to do with the store: changes on their way there, and the verdicts on their way back.
//!
//! Without a store the orderer of the shard decides at once, by the same path: [`Room::settle`] makes of each verdict what
//! the room says and what is answered.
//!
//! A verdict whose `seq` is not the next one says that the store has events that the room has not emitted: a commit whose
//! answer was lost. So does a retry of what has a place that was not emitted. The room asks for the events, and emits them
//! first; until then what comes behind is held.
//!
//! Invariants: a change has one answer; verdicts are settled in the order of their `seq`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{ADDED_BYTES_MAX, Asked, Due, Room, RoomContext};
use crate::chat::burst::Kind;
use crate::chat::desk::Entrusted;
use crate::chat::envelope::{Answer, Origin, RoomAsk};
use crate::chat::ids::ShardId;
use crate::chat::store::{Action, Asker, Change, Chunk, Found, Lookup, Outcome, Verdict, Write};
use crate::planted::{self, Bug};
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::stored::deleted_message;
use crate::wire::value::Id;
use crate::wire::websocket::frame_payloads;

/// How soon events that could not be read are asked for again.
const RETRY_MS: u64 = 1_000;

/// What a room has under way with the store.
#[derive(Debug)]
pub(super) struct StoreSide {
    /// Whether the room knows its last `seq`.
    is_known: bool,
    reading: Option<Reading>,
    /// Writes without a verdict, and the bytes of their events.
    writes: u32,
    write_bytes: usize,
    waiting: Option<Box<Waiting>>,
}

/// What waits for the store, in the few rooms where something does.
#[derive(Default, Debug)]
struct Waiting {
    /// Asks that wait for what is read.
    parked: Vec<Asked>,
    /// Verdicts behind a gap.
    held: VecDeque<(Entrusted, Verdict)>,
    /// When the gap is asked for again, on the tick clock.
    retry_ms: Option<u64>,
    /// When it is looked whether what was refused is kept after all.
    recheck_ms: Option<u64>,
    /// Messages of which nothing may be left in the history, and by which event they are deleted.
    erased: Vec<(Id, u64)>,
    /// What was missed behind this `seq` was asked for, and is not to be had.
    tried_after: Option<u64>,
}

/// What the store is being asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    Position,
    /// Events behind this `seq`, for those who come back.
    Missed(u64),
    /// Events that the room should have emitted.
    Gap,
    /// Whether there are such events.
    Recheck,
}

impl StoreSide {
    pub(super) fn new(in_store: bool) -> Self {
        Self { is_known: !in_store, reading: None, writes: 0, write_bytes: 0, waiting: None }
    }

    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Whether an answer of the store is awaited.
    pub(super) fn is_busy(&self) -> bool {
        self.reading.is_some() || self.is_writing()
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writes > 0 || self.has_held()
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    pub(super) fn write_bytes(&self) -> usize {
        self.write_bytes
    }

    /// When [`Room::look_again`] is due next, on the tick clock.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let waiting = self.waiting.as_ref()?;
        [waiting.retry_ms, waiting.recheck_ms].into_iter().flatten().min()
    }

    fn retry_ms(&self) -> Option<u64> {
        self.waiting.as_ref()?.retry_ms
    }

    /// Whether what was missed behind this `seq` was asked for in this turn, and so is not to be had if it is not here.
    pub(super) fn has_tried(&self, seq: u64) -> bool {
        let tried_after = self.waiting.as_ref().and_then(|waiting| waiting.tried_after);
        tried_after.is_some_and(|after| after <= seq)
    }

    /// The messages of which nothing may be left in the history; called when a turn's events are in it.
    pub(super) fn end_turn(&mut self) -> Vec<(Id, u64)> {
        let Some(waiting) = &mut self.waiting else { return Vec::new() };
        // What is being read may have been read before the deletion, and comes into the history behind it.
        let erased = if self.reading.is_some() { waiting.erased.clone() } else { std::mem::take(&mut waiting.erased) };
        if self.reading.is_none() && waiting.parked.is_empty() {
            waiting.tried_after = None;
            if waiting.held.is_empty() && waiting.retry_ms.is_none() && waiting.recheck_ms.is_none() {
                self.waiting = None;
            }
        }
        erased
    }

    fn has_held(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| !waiting.held.is_empty())
    }

    fn take_parked(&mut self) -> Vec<Asked> {
        self.waiting.as_mut().map(|waiting| std::mem::take(&mut waiting.parked)).unwrap_or_default()
    }

    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }
}

impl Room {
    /// Takes an answer of the store to what this room asked.
    pub fn handle_found(&mut self, cx: &mut RoomContext<'_>, found: Found) {
        let Some(reading) = self.store.reading.take() else {
            debug_assert!(false, "nothing was asked");
            return;
        };
        match (reading, found) {
            (Reading::Position, Found::Position { last_seq }) => {
                self.store.is_known = true;
                (self.last_seq, self.told_seq) = (last_seq, last_seq);
            }
            (Reading::Position, _) => return self.refuse_parked(cx),
            (Reading::Missed(after), found) => {
                if let Found::Events(chunks) = found {
                    self.history.prepend(chunks, self.told_seq + 1);
                }
                self.store.waiting().tried_after = Some(after);
            }
            (Reading::Gap, Found::Events(chunks)) if !chunks.is_empty() => self.close_gap(chunks),
            (Reading::Gap, _) => self.store.waiting().retry_ms = Some(cx.now.tick_ms + RETRY_MS),
            // Verdicts that are still to come tell by themselves.
            (Reading::Recheck, Found::Position { last_seq }) if !self.store.is_writing() => {
                if last_seq > self.last_seq {
                    self.ask_for_gap(cx, last_seq);
                }
            }
            (Reading::Recheck, _) => self.store.waiting().recheck_ms = Some(cx.now.tick_ms + RETRY_MS),
        }
        self.settle_held(cx);
        self.take_up_parked(cx);
    }

    /// Takes the store's verdict on a change of this room.
    pub fn handle_verdict(&mut self, cx: &mut RoomContext<'_>, entrusted: Entrusted, verdict: Verdict) {
        self.store.writes -= 1;
        self.store.write_bytes -= entrusted.write.change.bytes();
        if verdict == Verdict::Refused(ErrorCode::Unavailable) {
            self.store.waiting().recheck_ms.get_or_insert(cx.now.tick_ms + RETRY_MS);
        }
        if self.store.has_held() || self.gap_before(&verdict).is_some() {
            self.store.waiting().held.push_back((entrusted, verdict));
            self.settle_held(cx);
        } else {
            self.settle_entrusted(cx, &entrusted, verdict);
        }
        if self.store.reading.is_none() {
            self.take_up_parked(cx);
        }
    }

    /// Hands a change to who decides; the answer, unless it comes from the store.
    pub(super) fn change(
        &mut self,
        cx: &mut RoomContext<'_>,
        source: ShardId,
        origin: &Origin,
        change: Change,
    ) -> Option<Answer> {
        let bytes = change.bytes();
        if self.is_full(cx, bytes) {
            return Some(Answer::Refused(ErrorCode::Overloaded));
        }
        self.linger(cx);
        let write = Write { room: self.name.clone(), at_ms: cx.now.wall_ms, change };
        if cx.desk.facts().is_none() {
            let verdict = cx.orderer.decide(cx.now, cx.limits, &write, self.last_seq + 1);
            return Some(self.settle(cx, &write, verdict));
        }
        let write = Arc::new(write);
        let entrusted = Entrusted { room: cx.number, source, origin: origin.clone(), write: write.clone() };
        if cx.desk.write(entrusted).is_err() {
            return Some(Answer::Refused(ErrorCode::Overloaded));
        }
        if planted::is(Bug::DeliveredBeforeCommit) && !write.change.prefix.is_empty() {
            self.emit(cx, &write, self.last_seq + 1);
        }
        if self.is_change_of_members(&write.change.action) {
            self.begin_change_of_members(cx, &write.change.action);
        }
        self.store.writes += 1;
        self.store.write_bytes += bytes;
        None
    }

    /// An ask that comes before the room knows its last `seq` waits for it.
    pub(super) fn wait_for_position(&mut self, cx: &mut RoomContext<'_>, asked: Asked) {
        self.park(asked);
        if self.store.reading.is_none() {
            match cx.desk.read(Asker::Room(cx.number), Lookup::Position(self.name.clone())) {
                Ok(()) => self.store.reading = Some(Reading::Position),
                Err(_) => self.refuse_parked(cx),
            }
        }
    }

    /// Asks the store for the events behind `after` that the history lacks; whether it takes the question.
    pub(super) fn read_missed(&mut self, cx: &mut RoomContext<'_>, after: u64) -> bool {
        let to = self.history.first_seq().map_or(self.told_seq, |first| first - 1);
        let bytes_max = cx.limits.recovery_bytes_max;
        let lookup = Lookup::Events { room: self.name.clone(), after, to, bytes_max };
        let taken = cx.desk.read(Asker::Room(cx.number), lookup).is_ok();
        if taken {
            self.store.reading = Some(Reading::Missed(after));
        }
        taken
    }

    /// Keeps an ask until the store has answered.
    pub(super) fn park(&mut self, asked: Asked) {
        self.store.waiting().parked.push(asked);
    }

    /// Looks again for what the store may have kept unheard, if its time has come.
    pub(super) fn look_again(&mut self, cx: &mut RoomContext<'_>) {
        let now_ms = cx.now.tick_ms;
        let is_due = |due_ms: Option<u64>| due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        if is_due(self.store.retry_ms()) {
            self.store.waiting().retry_ms = None;
            self.settle_held(cx);
        }
        let Some(waiting) = self.store.waiting.as_mut().filter(|waiting| is_due(waiting.recheck_ms)) else { return };
        waiting.recheck_ms = Some(now_ms + RETRY_MS);
        if self.store.reading.is_none() {
            let lookup = Lookup::Position(self.name.clone());
            if cx.desk.read(Asker::Room(cx.number), lookup).is_ok() {
                waiting.recheck_ms = None;
                self.store.reading = Some(Reading::Recheck);
            }
        }
    }

    /// Makes of a verdict what the room says, and the answer.
    pub(super) fn settle(&mut self, cx: &mut RoomContext<'_>, write: &Write, verdict: Verdict) -> Answer {
        match verdict {
            Verdict::New { seq } => self.emit(cx, write, seq),
            Verdict::Same(outcome) => self.published(outcome, true),
            Verdict::Unchanged => Answer::Changed { seq: None, timestamp_ms: write.at_ms },
            Verdict::Refused(code) => Answer::Refused(code),
            Verdict::Version(version) => Answer::Version(version),
            Verdict::Stale(version) => Answer::Stale(version),
            Verdict::Done => {
                match &write.change.action {
                    Action::MarkRead { user, seq } => self.note_receipt(cx, user, *seq),
                    Action::RemoveRoom => {
                        self.history.clear();
                        self.ends = true;
                    }
                    _ => {}
                }
                Answer::Changed { seq: None, timestamp_ms: write.at_ms }
            }
        }
    }

    /// Emits an event that has its place, and says what to answer.
    fn emit(&mut self, cx: &mut RoomContext<'_>, write: &Write, seq: u64) -> Answer {
        if planted::is(Bug::DeliveredBeforeCommit) && seq <= self.last_seq {
            return self.published(write.outcome(seq), false);
        }
        debug_assert_eq!(seq, self.last_seq + 1, "a room's sequence has no holes");
        if let Action::Post(post) = &write.change.action
            && let Some(author) = &post.author
        {
            let ended = self.typing.stop(author, self.pace(cx));
            self.tell_stop_if(cx, ended, author);
        }
        let mut end = Vec::with_capacity(ADDED_BYTES_MAX);
        write.finish(&mut end, seq);
        self.burst.push(Kind::Durable, None, &[&write.change.prefix, &end]);
        self.last_seq = seq;
        match &write.change.action {
            Action::Post(_) => self.published(write.outcome(seq), false),
            action => {
                if let Action::Delete { message } = action {
                    self.store.waiting().erased.push((message.clone(), seq));
                }
                Answer::Changed { seq: Some(seq), timestamp_ms: write.at_ms }
            }
        }
    }

    fn published(&self, outcome: Outcome, replayed: bool) -> Answer {
        let Outcome { id, seq, timestamp } = outcome;
        let (users, connections) = (self.users(), self.connections());
        Answer::Published { id, seq, timestamp, replayed, users, connections }
    }

    /// Settles the verdicts that are next, up to a gap.
    fn settle_held(&mut self, cx: &mut RoomContext<'_>) {
        while self.store.has_held() {
            let Some((entrusted, verdict)) = self.store.waiting().held.pop_front() else { return };
            if let Some(to) = self.gap_before(&verdict) {
                self.store.waiting().held.push_front((entrusted, verdict));
                return self.ask_for_gap(cx, to);
            }
            self.settle_entrusted(cx, &entrusted, verdict);
        }
    }

    fn settle_entrusted(&mut self, cx: &mut RoomContext<'_>, entrusted: &Entrusted, verdict: Verdict) {
        if self.is_change_of_members(&entrusted.write.change.action) {
            return self.settle_members(cx, entrusted, verdict);
        }
        let answer = self.settle(cx, &entrusted.write, verdict);
        self.replies.push((entrusted.source, entrusted.origin.clone(), Due::Answer(answer)));
    }

    /// Up to where the store has events that the room has not emitted, and has to before it settles the verdict.
    fn gap_before(&self, verdict: &Verdict) -> Option<u64> {
        let to = match verdict {
            Verdict::New { seq } => seq - 1,
            // A retry of what was kept when the answer was lost: its event is part of the gap.
            Verdict::Same(outcome) => outcome.seq,
            _ => return None,
        };
        if planted::is(Bug::GapLeftOpen) {
            return None;
        }
        (to > self.last_seq).then_some(to)
    }

    fn ask_for_gap(&mut self, cx: &mut RoomContext<'_>, to: u64) {
        if self.store.reading.is_some() || self.store.retry_ms().is_some() {
            return;
        }
        tracing::warn!(room = ?self.name, last_seq = self.last_seq, to, "events were kept whose answer was lost");
        let (room, after) = (self.name.clone(), self.last_seq);
        let lookup = Lookup::Events { room, after, to, bytes_max: usize::MAX };
        match cx.desk.read(Asker::Room(cx.number), lookup) {
            Ok(()) => self.store.reading = Some(Reading::Gap),
            Err(_) => self.store.waiting().retry_ms = Some(cx.now.tick_ms + RETRY_MS),
        }
    }

    /// Emits events that the store had kept before the room knew of them.
    fn close_gap(&mut self, chunks: Vec<Chunk>) {
        for Chunk { first_seq, last_seq, frames } in chunks {
            debug_assert_eq!(first_seq, self.last_seq + 1, "the gap is closed from its beginning");
            for (seq, payload) in (first_seq..).zip(frame_payloads(&frames)) {
                let deleted = deleted_message(str::from_utf8(payload).unwrap_or_default());
                self.store.waiting().erased.extend(deleted.map(|message| (message, seq)));
            }
            self.burst.push_ready(frames, (last_seq - first_seq + 1) as u32);
            self.last_seq = last_seq;
        }
    }

    fn take_up_parked(&mut self, cx: &mut RoomContext<'_>) {
        for mut asked in self.store.take_parked() {
            if let RoomAsk::Subscribe { since: Some(since), .. } = &mut asked.ask {
                // Who may enter may have to be asked first, and be known only in a later turn.
                since.is_read |= self.store.has_tried(since.seq);
            }
            if planted::is(Bug::JudgedOnce) && matches!(asked.ask, RoomAsk::Subscribe { since: Some(_), .. }) {
                asked.visitor = None;
            }
            self.handle_ask(cx, asked);
        }
    }

    /// The store cannot say where the room stands: nothing that needs to know it can be done.
    fn refuse_parked(&mut self, cx: &RoomContext<'_>) {
        for Asked { source, origin, visitor, ask } in self.store.take_parked() {
            let answer = match ask {
                RoomAsk::Fence => Answer::Done,
                RoomAsk::Online if visitor.is_none() => Answer::Users(Vec::new(), 0),
                RoomAsk::Ephemeral(_) => Answer::Delivered { users: 0, connections: 0 },
                _ => Answer::Refused(ErrorCode::Unavailable),
            };
            self.replies.push((source, origin, Due::Answer(answer)));
        }
        self.linger_until_ms = cx.now.tick_ms;
    }

    /// The last words of a room that was removed.
    pub(super) fn tell_removal(&mut self, cx: &RoomContext<'_>) {
        let mut text = Vec::with_capacity(128);
        event::removed_from_room(&mut text, self.name.text(), "the room was removed", cx.now.wall_ms);
        self.burst.push(Kind::Ephemeral, None, &[&text]);
    }
}
