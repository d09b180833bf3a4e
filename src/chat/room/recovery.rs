//! What those get who come back: the events that they have missed, from the history, which is filled from the store where
//! it does not reach back.
//!
//! A join that names where it left off is answered at the boundary of a burst like any other. What lies between is handed
//! to the joiner's shard as ready frames, the same for all who missed the same; the live events follow.

use std::collections::BTreeMap;

use super::{Due, Room, RoomContext};
use crate::chat::burst::{Frames, Kind, Segment};
use crate::chat::envelope::{Answer, Reply, Since};
use crate::chat::history::{Keep, Missed};
use crate::chat::ids::ShardId;
use crate::chat::store::Chunk;
use crate::planted::{self, Bug};
use crate::wire::websocket::{self, Opcode};

/// The `online_update` of a turn, in each form that somebody needs.
#[derive(Default)]
struct Online {
    plain: Option<Frames>,
    recovered: Option<Frames>,
    lost: Option<Frames>,
}

impl Room {
    /// Whether the answer to a client that comes back has to wait for the store, which is then asked.
    pub(super) fn must_read(&mut self, cx: &mut RoomContext<'_>, since: &Since) -> bool {
        if cx.desk.facts().is_none() || *since.epoch != *self.epoch {
            return false;
        }
        if since.seq > self.last_seq {
            // A page may have told of what is committed and not yet emitted.
            return self.store.is_writing();
        }
        let is_too_far = self.last_seq - since.seq > cx.limits.recovery_events as u64;
        let is_here =
            since.seq >= self.told_seq || self.history.first_seq().is_some_and(|first| first <= since.seq + 1);
        if is_too_far || is_here || since.is_read || self.store.has_tried(since.seq) {
            return false;
        }
        self.store.is_reading() || self.read_missed(cx, since.seq)
    }

    /// Takes the durable events of a burst into the history.
    pub(super) fn remember(&mut self, cx: &RoomContext<'_>, segments: &[Segment]) {
        let keep = Keep { events: cx.limits.recovery_events as u64, bytes: cx.limits.recovery_bytes_max };
        for segment in segments.iter().filter(|segment| segment.kind == Kind::Durable) {
            let (first_seq, last_seq) = (self.told_seq + 1, self.told_seq + u64::from(segment.events));
            self.history.push(Chunk { first_seq, last_seq, frames: segment.frames.plain.clone() }, keep);
            self.told_seq = last_seq;
        }
        for (message, deleted_seq) in self.store.end_turn() {
            if !planted::is(Bug::ErasedInMemory) {
                self.history.erase(&message, deleted_seq);
            }
        }
    }

    /// The replies of the turn, behind its burst.
    pub(super) fn answer_all(&mut self, cx: &mut RoomContext<'_>) -> Vec<(ShardId, Reply)> {
        let mut online = Online::default();
        let mut missed = BTreeMap::new();
        let due = std::mem::take(&mut self.replies);
        let mut replies = Vec::with_capacity(due.len());
        for (to, origin, due) in due {
            let answer = match due {
                Due::Answer(answer) => answer,
                Due::Online => Answer::Online(self.online(cx, &mut online, None)),
                Due::Subscribed(timestamp_ms, None) => {
                    Answer::Subscribed { online: self.online(cx, &mut online, None), timestamp_ms, missed: None }
                }
                Due::Subscribed(timestamp_ms, Some(since)) => {
                    let missed = self.missed(cx, &since, &mut missed);
                    let online = self.online(cx, &mut online, Some(missed.is_some()));
                    Answer::Subscribed { online, timestamp_ms, missed }
                }
            };
            replies.push((to, Reply { origin, answer }));
        }
        replies
    }

    /// What a joiner has missed, found once for all who missed the same; `None` if it cannot be told.
    fn missed(&self, cx: &RoomContext<'_>, since: &Since, found: &mut BTreeMap<u64, Option<Missed>>) -> Option<Missed> {
        let count = self.last_seq.checked_sub(since.seq)?;
        if *since.epoch != *self.epoch || count > cx.limits.recovery_events as u64 {
            return None;
        }
        let find = || self.history.missed(since.seq, self.last_seq, cx.limits.recovery_bytes_max);
        found.entry(since.seq).or_insert_with(find).clone()
    }

    fn online(&self, cx: &mut RoomContext<'_>, online: &mut Online, recovered: Option<bool>) -> Frames {
        let form = match recovered {
            None => &mut online.plain,
            Some(true) => &mut online.recovered,
            Some(false) => &mut online.lost,
        };
        let make = || {
            let (mut text, mut frame) = (Vec::new(), Vec::new());
            self.put_online_update(cx, recovered, &mut text);
            websocket::put_frame(&mut frame, Opcode::Text, &[&text]);
            Frames::new(frame.into(), (self.interest.deflating() > 0).then_some(&mut *cx.deflater))
        };
        form.get_or_insert_with(make).clone()
    }
}
