//! Erasing a person's content: the store names what there is, and each room's home takes it away as for anybody.
//!
//! One pass goes through all traces; passes follow until one has found nothing to do, so that what came in between is
//! gone as well. Little is under way at a time, and an erasure that was broken off can be begun again.

use std::collections::VecDeque;

use crate::access::Level;
use crate::chat::envelope::{Answer, Origin, ReplyTo, RoomAsk};
use crate::chat::http::Rest;
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::{Action, Actor, Change, Found, Lookup, Trace, TracePlace};
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::value::Id;

use super::{BUSY, bad_user};

/// So many changes of one erasure are under way at once.
const UNDER_WAY_MAX: usize = 64;

/// Which answer a part is.
const LOOKUP: u32 = 0;
const MESSAGE: u32 = 1;
const REACTION: u32 = 2;
const MARK: u32 = 3;
const MEMBER: u32 = 4;

/// How far an erasure has come.
pub struct Erasure {
    user: Id,
    /// Found, and not yet asked to be removed.
    traces: VecDeque<Trace>,
    /// Where the search goes on.
    next: Option<TracePlace>,
    under_way: usize,
    messages: u64,
    reactions: u64,
    /// Whether this pass has removed something.
    has_removed: bool,
}

impl Shard {
    pub(in crate::chat) fn erase_user(&mut self, call: &Call<'_>) -> Handled {
        let user = call.target.segments.get(3).and_then(|user| Id::from_url(user));
        let Some(user) = user else { return bad_user() };
        if let Some(turned_away) = self.turn_away(call).or_else(|| self.without_store()) {
            return turned_away;
        }
        let erasure = Erasure {
            user,
            traces: VecDeque::new(),
            next: None,
            under_way: 0,
            messages: 0,
            reactions: 0,
            has_removed: false,
        };
        match self.look_for_traces(call.slot, call.number, &erasure.user, TracePlace::default()) {
            Ok(()) => Handled::Gather(Box::new(Gather::Erase(erasure))),
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Takes an answer that an erasure was waiting for, and goes on.
    pub(super) fn gather_traces(
        &mut self,
        slot: u32,
        number: u32,
        erasure: &mut Erasure,
        part: Option<u32>,
        answer: Answer,
    ) -> Option<Rest> {
        match (part, answer) {
            (Some(LOOKUP), Answer::Found(Found::Traces(traces, next))) => {
                erasure.traces.extend(traces);
                erasure.next = next;
            }
            (Some(part @ (MESSAGE | REACTION | MARK)), Answer::Changed { seq, .. }) => {
                erasure.under_way -= 1;
                erasure.has_removed |= seq.is_some();
                erasure.messages += u64::from(part == MESSAGE && seq.is_some());
                erasure.reactions += u64::from(part == REACTION && seq.is_some());
            }
            (Some(MEMBER), Answer::Version(_)) => erasure.under_way -= 1,
            // Somebody else has removed it meanwhile.
            (Some(MESSAGE | REACTION | MARK), Answer::Refused(ErrorCode::NotFound)) => erasure.under_way -= 1,
            (_, answer) => return Some(self.render(answer)),
        }
        if self.is_quiescing() {
            return Some(Rest::error(503, ErrorCode::Unavailable, "the server is stopping"));
        }
        let busy = || Some(Rest::error(503, ErrorCode::Overloaded, BUSY));
        while erasure.under_way < UNDER_WAY_MAX {
            // A mark leads to the room, and is the last to go: while it stands, what is left there is found again.
            let is_mark = matches!(erasure.traces.front(), Some(Trace::Mark { .. }));
            if is_mark && erasure.under_way > 0 {
                break;
            }
            let Some(trace) = erasure.traces.pop_front() else { break };
            let (room, part, change) = removal(trace, &erasure.user);
            let to = ReplyTo::RestPart(number, part);
            if self.ask_room(slot, (&room, None), to, RoomAsk::Change(change.into())).is_err() {
                return busy();
            }
            erasure.under_way += 1;
        }
        if erasure.under_way > 0 {
            return None;
        }
        let from = match erasure.next.take() {
            Some(next) => next,
            None if std::mem::take(&mut erasure.has_removed) => TracePlace::default(),
            None => return Some(Rest::json(200, erasure.summary())),
        };
        match self.look_for_traces(slot, number, &erasure.user, from) {
            Ok(()) => None,
            Err(_) => busy(),
        }
    }

    fn look_for_traces(
        &mut self,
        slot: u32,
        number: u32,
        user: &Id,
        from: TracePlace,
    ) -> Result<(), crate::chat::mail::NoCredit> {
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::RestPart(number, LOOKUP) };
        self.lookup(origin, Lookup::Traces { user: user.clone(), from })
    }
}

impl Erasure {
    fn summary(&self) -> Vec<u8> {
        format!("{{\"messages\":{},\"reactions\":{}}}", self.messages, self.reactions).into_bytes()
    }
}

/// What takes a trace away, and the part that its answer is.
fn removal(trace: Trace, user: &Id) -> (Box<str>, u32, Change) {
    let mut prefix = Vec::new();
    let (room, part, action) = match trace {
        Trace::Message { room, id } => {
            event::message_deleted_prefix(&mut prefix, &room, &id, None);
            (room, MESSAGE, Action::Delete { message: id })
        }
        Trace::Reaction { room, message, emoji } => {
            event::reaction_removed_prefix(&mut prefix, &room, &message, &emoji, user.as_ref());
            (room, REACTION, Action::Unreact { message, emoji, user: user.clone() })
        }
        Trace::Member { room } => {
            let action = Action::SetMember { user: user.clone(), level: Level::Nothing, version: None };
            (room, MEMBER, action)
        }
        Trace::Mark { room } => (room, MARK, Action::ForgetReader { user: user.clone() }),
    };
    (room, part, Change { by: Actor::Service, prefix, action })
}
