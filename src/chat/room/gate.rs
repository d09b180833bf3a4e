//! Who is let into the room, where its home has to find out: what is known of each user, who waits for that, and how an
//! access ends.
//!
//! The home is the one owner of this. It asks the store about a user when the user first asks for something, and knows it
//! for as long as the user is in the room; or it asks the ERP, whose answer counts for the time that it names, and again
//! about those who are still in the room then. One question about a user is under way at a time. **Each change of a membership passes here as well**, in the order of the store:
//! while one is under way everything that the user asks waits for its verdict, so that what the store has taken is either
//! before the change or was judged by it. Who loses access is removed from the shards behind the answers of the turn, and
//! so also when the join was answered in that very turn; the change itself is answered when that has taken effect.
//!
//! Invariants: who waits, waits for an answer or a verdict that is still to come; what is known never becomes older; a
//! removal ends when all shards concerned have answered it.

use std::collections::HashMap;

use hashbrown::HashTable;
use slab::Slab;

use super::{Asked, Due, Room, RoomContext};
use crate::access::{Level, Mode, Permit, Right, decide};
use crate::auth::Role;
use crate::chat::desk::Entrusted;
use crate::chat::envelope::{Answer, Origin, RoomAsk};
use crate::chat::ids::{ShardId, UserId};
use crate::chat::job::Question;
use crate::chat::store::{Action, Asker, Found, Lookup, Verdict};
use crate::planted::{self, Bug};
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;

/// How soon it is asked again what could not be answered about somebody who is in the room, and how soon at the earliest
/// what was.
pub(super) const RETRY_MS: u64 = 1_000;
const NEVER: u64 = u64::MAX;

/// What a room knows of those who may enter it.
#[derive(Debug)]
pub(super) struct Gate {
    mode: Mode,
    entries: HashTable<Entry>,
    /// Entries that something is under way for.
    busy: u32,
    /// Changes under way of all memberships at once.
    replacing: u32,
    removals: Slab<Removal>,
    /// To be told at the end of the turn.
    untold: Vec<(ShardId, UserId, u32)>,
    /// When it is asked again about some of those who are in the room, on the tick clock.
    retry_ms: Option<u64>,
}

/// What is known of one user.
#[derive(Debug)]
struct Entry {
    user: UserId,
    level: Option<Level>,
    /// Of the membership.
    version: u64,
    /// When it is asked again, if the user is still in the room then; `NEVER` while that is not needed.
    due_ms: u64,
    busy: Option<Box<Busy>>,
}

/// What is under way for one user.
#[derive(Default, Debug)]
struct Busy {
    is_asked: bool,
    /// The answer that is to come may be older than what has happened meanwhile.
    is_outdated: bool,
    /// Changes of the membership.
    changes: u32,
    parked: Vec<Asked>,
}

impl Entry {
    fn is_asked(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.is_asked)
    }
}

/// A loss of access on its way to the shards.
#[derive(Debug)]
struct Removal {
    /// Shards that have not answered, once for each user.
    left: Vec<ShardId>,
    /// What is answered then, and to whom.
    reply: Option<(ShardId, Origin, Answer)>,
}

impl Gate {
    /// The gate of a room with this mode, if it is the room's to know who may enter.
    pub(super) fn of(mode: Option<Mode>) -> Option<Box<Self>> {
        let mode = mode?;
        decide(Some(mode), Role::User, None, "", None).is_none().then(|| {
            Box::new(Self {
                mode,
                entries: HashTable::new(),
                busy: 0,
                replacing: 0,
                removals: Slab::new(),
                untold: Vec::new(),
                retry_ms: None,
            })
        })
    }

    /// Whether an answer or a verdict is awaited.
    pub(super) fn is_busy(&self) -> bool {
        self.busy > 0 || self.replacing > 0 || !self.removals.is_empty()
    }

    fn find(&self, user: &UserId) -> Option<&Entry> {
        self.entries.find(user.hash_code(), |entry| entry.user == *user)
    }

    fn entry(&mut self, user: &UserId) -> &mut Entry {
        let hash = user.hash_code();
        let entry = self.entries.entry(hash, |entry| entry.user == *user, |entry| entry.user.hash_code());
        let fresh = || Entry { user: user.clone(), level: None, version: 0, due_ms: NEVER, busy: None };
        entry.or_insert_with(fresh).into_mut()
    }

    fn busy(&mut self, user: &UserId) -> &mut Busy {
        if self.find(user).is_none_or(|entry| entry.busy.is_none()) {
            self.busy += 1;
        }
        self.entry(user).busy.get_or_insert_default()
    }

    /// Whether somebody has to wait for a change that is under way.
    fn is_changing(&self, user: &UserId) -> bool {
        let changes = self.find(user).and_then(|entry| entry.busy.as_ref()).map_or(0, |busy| busy.changes);
        let overtakes = planted::is(Bug::WriteOvertakesRevoke);
        (self.replacing > 0 || changes > 0) && !overtakes
    }

    /// It is asked again about a user who is in the room.
    fn look_at(&mut self, user: &UserId, due_ms: u64) {
        self.entry(user).due_ms = due_ms;
        self.retry_ms = Some(self.retry_ms.map_or(due_ms, |other| other.min(due_ms)));
    }

    pub(super) fn users(&self) -> Vec<UserId> {
        self.entries.iter().map(|entry| entry.user.clone()).collect()
    }

    /// Takes what waits for the user, if nothing is left to wait for.
    fn take_parked(&mut self, user: &UserId) -> Vec<Asked> {
        if self.is_changing(user) || self.find(user).is_none_or(|entry| entry.is_asked() || entry.busy.is_none()) {
            return Vec::new();
        }
        self.busy -= 1;
        self.entry(user).busy.take().map(|busy| busy.parked).unwrap_or_default()
    }

    /// Forgets a user who is not in the room, unless something is under way.
    fn forget(&mut self, user: &UserId) {
        let found = self.entries.find_entry(user.hash_code(), |entry| entry.user == *user);
        if let Ok(found) = found
            && found.get().busy.is_none()
        {
            found.remove();
        }
    }
}

impl Room {
    /// Lets something that is asked through if who asks may. Otherwise it is answered here, or waits until it is known.
    pub(super) fn pass(&mut self, cx: &mut RoomContext<'_>, asked: Asked) -> Option<Asked> {
        let Some(user) = asked.visitor.clone() else { return Some(asked) };
        let Some(gate) = &mut self.gate else {
            debug_assert!(false, "a room without a gate is asked about a visitor");
            self.replies.push((asked.source, asked.origin, Due::Answer(Answer::Denied(Level::Nothing))));
            return None;
        };
        let entry = gate.find(&user);
        let (is_asked, known) = (entry.is_some_and(Entry::is_asked), entry.and_then(|entry| entry.level));
        if is_asked || gate.is_changing(&user) {
            // What needs no right waits as well, to stay behind what was asked before.
            gate.busy(&user).parked.push(asked);
            return None;
        }
        if right_of(&asked.ask).is_none() {
            return Some(asked);
        }
        let known = match gate.mode {
            Mode::Ask => cx.permits.find(&self.name, &user, cx.now.tick_ms).map(|(level, _)| level),
            _ => known,
        };
        match decide(Some(gate.mode), Role::User, None, self.name.text(), known) {
            Some(level) => self.judge(asked, level),
            None => {
                gate.busy(&user).parked.push(asked);
                self.ask_about(cx, &user);
                None
            }
        }
    }

    /// Lets something through that the level is enough for, and denies it otherwise.
    fn judge(&mut self, asked: Asked, level: Level) -> Option<Asked> {
        if right_of(&asked.ask).is_none_or(|right| level.allows(right)) {
            return Some(asked);
        }
        self.replies.push((asked.source, asked.origin, Due::Answer(Answer::Denied(level))));
        None
    }

    /// Takes what the ERP says about a user, if it could be asked. What has waited for it is judged by it, however short it
    /// counts.
    pub fn handle_permit(&mut self, cx: &mut RoomContext<'_>, user: &UserId, permit: Option<Permit>) {
        let Some(gate) = &mut self.gate else { return };
        gate.busy(user).is_asked = false;
        let Some(Permit { level, ttl_ms }) = permit else {
            return self.refuse_visitor(cx, user, ErrorCode::Unavailable);
        };
        let now_ms = cx.now.tick_ms;
        cx.permits.keep(&self.name, user, level, now_ms.saturating_add(ttl_ms), now_ms);
        let parked = gate.take_parked(user);
        if self.presence.shown(user).is_some() {
            if level == Level::Nothing {
                self.remove(std::slice::from_ref(user), None);
            }
            self.look_again_at(cx, user);
        }
        for asked in parked {
            if let Some(asked) = self.judge(asked, level) {
                self.handle_passed(cx, asked);
            }
        }
        if self.presence.shown(user).is_none() {
            self.forget_visitor(user);
        }
    }

    /// Who has entered by the word of the ERP is looked at again when that counts no more.
    pub(super) fn look_again_at(&mut self, cx: &RoomContext<'_>, user: &UserId) {
        let Some(gate) = self.gate.as_mut().filter(|gate| gate.mode == Mode::Ask) else { return };
        let known = cx.permits.find(&self.name, user, cx.now.tick_ms);
        let until_ms = known.map_or(0, |(_, until_ms)| until_ms);
        gate.look_at(user, until_ms.max(cx.now.tick_ms + RETRY_MS));
    }

    /// Takes what the store says about a user.
    pub fn handle_member(&mut self, cx: &mut RoomContext<'_>, user: &UserId, found: &Found) {
        let Some(gate) = &mut self.gate else { return };
        let busy = gate.busy(user);
        busy.is_asked = false;
        if std::mem::take(&mut busy.is_outdated) && !planted::is(Bug::OldMembership) {
            return self.ask_about(cx, user);
        }
        match *found {
            Found::Member { level, version } => {
                if self.learn(user, level, version) {
                    self.remove(std::slice::from_ref(user), None);
                }
                self.take_up_visitor(cx, user);
            }
            _ => self.refuse_visitor(cx, user, ErrorCode::Unavailable),
        }
    }

    /// A shard has no connection any more of a user who was removed.
    pub fn handle_removed(&mut self, source: ShardId, number: u32) {
        let Some(gate) = &mut self.gate else { return };
        let Some(removal) = gate.removals.get_mut(number as usize) else { return };
        if let Some(at) = removal.left.iter().position(|&shard| shard == source) {
            removal.left.swap_remove(at);
        }
        self.end_removals();
    }

    /// The source has ended: it will answer nothing.
    pub(super) fn end_removals_of(&mut self, source: ShardId) {
        let Some(gate) = &mut self.gate else { return };
        gate.untold.retain(|(shard, ..)| *shard != source);
        gate.removals.iter_mut().for_each(|(_, removal)| removal.left.retain(|&shard| shard != source));
        self.end_removals();
    }

    fn end_removals(&mut self) {
        let Some(gate) = &mut self.gate else { return };
        let ended = gate.removals.iter().filter(|(_, removal)| removal.left.is_empty()).map(|(number, _)| number);
        for number in ended.collect::<Vec<_>>() {
            if let Some((source, origin, answer)) = gate.removals.remove(number).reply {
                self.replies.push((source, origin, Due::Answer(answer)));
            }
        }
    }

    /// A change of memberships is on its way to the store.
    pub(super) fn begin_change_of_members(&mut self, cx: &RoomContext<'_>, action: &Action) {
        let Some(gate) = &mut self.gate else { return };
        match action {
            Action::SetMember { user, .. } => gate.busy(&user_id(cx, user)).changes += 1,
            _ => gate.replacing += 1,
        }
    }

    /// Takes the store's verdict on a change of memberships.
    pub(super) fn settle_members(&mut self, cx: &mut RoomContext<'_>, entrusted: &Entrusted, verdict: Verdict) {
        let action = &entrusted.write.change.action;
        let Some(gate) = &mut self.gate else { return };
        let users = match action {
            Action::SetMember { user, .. } => vec![user_id(cx, user)],
            _ => gate.users(),
        };
        match action {
            Action::SetMember { .. } => users.iter().for_each(|user| gate.busy(user).changes -= 1),
            _ => gate.replacing -= 1,
        }
        let levels: HashMap<&str, Level> = match action {
            Action::SetMember { user, level, .. } => HashMap::from([(user.text(), *level)]),
            Action::ReplaceMembers { members, .. } => {
                members.iter().map(|(user, level)| (user.text(), *level)).collect()
            }
            _ => HashMap::new(),
        };
        let mut gone = Vec::new();
        for user in &users {
            match verdict {
                Verdict::Version(version) => {
                    let level = levels.get(user.text()).copied().unwrap_or(Level::Nothing);
                    if self.learn(user, level, version) {
                        gone.push(user.clone());
                    }
                }
                // The room was removed, or it cannot be told what became of the change.
                Verdict::Done | Verdict::Refused(ErrorCode::Unavailable) => self.doubt(cx, user),
                _ => {}
            }
        }
        let answer = self.settle(cx, &entrusted.write, verdict);
        self.remove(&gone, Some((entrusted.source, entrusted.origin.clone(), answer)));
        users.iter().for_each(|user| self.take_up_visitor(cx, user));
    }

    /// Notes what a user is. Returns whether the user is in the room and may not be.
    fn learn(&mut self, user: &UserId, level: Level, version: u64) -> bool {
        let Some(gate) = &mut self.gate else { return false };
        let entry = gate.entry(user);
        if entry.level.is_none() || version >= entry.version || planted::is(Bug::OldMembership) {
            (entry.level, entry.version) = (Some(level), version);
        }
        entry.level == Some(Level::Nothing) && self.presence.shown(user).is_some()
    }

    /// What was known of a user may be so no more.
    fn doubt(&mut self, cx: &mut RoomContext<'_>, user: &UserId) {
        let Some(gate) = &mut self.gate else { return };
        let entry = gate.entry(user);
        entry.level = None;
        match entry.busy.as_mut().filter(|busy| busy.is_asked) {
            Some(busy) => busy.is_outdated = true,
            None if self.presence.shown(user).is_some() => self.ask_about(cx, user),
            None => {}
        }
    }

    /// Asks the store or the ERP about a user; who waits for the answer is refused if no more questions are taken.
    fn ask_about(&mut self, cx: &mut RoomContext<'_>, user: &UserId) {
        let inside = self.presence.shown(user).is_some();
        let Some(gate) = &mut self.gate else { return };
        let (number, room) = (cx.number, self.name.clone());
        let is_asked = if gate.mode == Mode::Ask {
            cx.errands.ask(Question { number, room, user: user.clone() }, inside).is_ok()
        } else {
            let lookup = Lookup::Member { room, user: user.as_ref().to_id() };
            cx.desk.read(Asker::Member(number, user.clone()), lookup).is_ok()
        };
        gate.busy(user).is_asked = is_asked;
        if !is_asked {
            self.refuse_visitor(cx, user, ErrorCode::Overloaded);
        }
    }

    /// Removes users from the shards that have them; when that has taken effect, it is replied.
    fn remove(&mut self, users: &[UserId], reply: Option<(ShardId, Origin, Answer)>) {
        let Some(gate) = &mut self.gate else { return };
        let number = gate.removals.vacant_key() as u32;
        let mut left = Vec::new();
        for user in users {
            for source in self.presence.sources_of(user) {
                gate.untold.push((source, user.clone(), number));
                left.push(source);
            }
        }
        gate.removals.insert(Removal { left, reply });
        self.end_removals();
    }

    /// Goes on with what had to wait for a user.
    fn take_up_visitor(&mut self, cx: &mut RoomContext<'_>, user: &UserId) {
        let parked = self.gate.as_mut().map(|gate| gate.take_parked(user)).unwrap_or_default();
        for asked in parked {
            self.handle_ask(cx, asked);
        }
        if self.presence.shown(user).is_none() {
            self.forget_visitor(user);
        }
    }

    /// It cannot be said now what a user may: nothing that needs to be known is done, and who is in the room stays there
    /// until it is.
    fn refuse_visitor(&mut self, cx: &mut RoomContext<'_>, user: &UserId, code: ErrorCode) {
        let is_here = self.presence.shown(user).is_some();
        let Some(gate) = &mut self.gate else { return };
        if is_here {
            gate.look_at(user, cx.now.tick_ms + RETRY_MS);
        }
        for asked in gate.take_parked(user) {
            match right_of(&asked.ask) {
                Some(_) => self.replies.push((asked.source, asked.origin, Due::Answer(Answer::Refused(code)))),
                None => self.handle_ask(cx, asked),
            }
        }
        if !is_here {
            self.forget_visitor(user);
        }
    }

    /// Asks again about those who are in the room and whose time has come.
    pub(super) fn ask_again(&mut self, cx: &mut RoomContext<'_>) {
        let Some(gate) = &mut self.gate else { return };
        if gate.retry_ms.take_if(|due_ms| *due_ms <= cx.now.tick_ms).is_none() {
            return;
        }
        let now_ms = cx.now.tick_ms;
        let mut users = Vec::new();
        for entry in &mut gate.entries {
            if entry.due_ms > now_ms {
                continue;
            }
            // What is under way may say it, or fail to.
            entry.due_ms = if entry.busy.is_some() { now_ms + RETRY_MS } else { NEVER };
            if entry.level.is_none() && entry.busy.is_none() {
                users.push(entry.user.clone());
            }
        }
        gate.retry_ms = gate.entries.iter().map(|entry| entry.due_ms).min().filter(|due_ms| *due_ms < NEVER);
        users.iter().for_each(|user| self.ask_about(cx, user));
    }

    /// The user is not in the room.
    pub(super) fn forget_visitor(&mut self, user: &UserId) {
        if let Some(gate) = &mut self.gate {
            gate.forget(user);
        }
    }

    /// When [`Room::ask_again`] is due, on the tick clock.
    pub(super) fn gate_due_ms(&self) -> Option<u64> {
        self.gate.as_ref()?.retry_ms
    }

    /// Whether shards are still to be told of removals.
    pub(super) fn has_removals(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| !gate.untold.is_empty())
    }

    pub(super) fn take_removals(&mut self) -> Vec<(ShardId, UserId, u32)> {
        self.gate.as_mut().map(|gate| std::mem::take(&mut gate.untold)).unwrap_or_default()
    }

    /// Whether a change passes the gate.
    pub(super) fn is_change_of_members(&self, action: &Action) -> bool {
        let changes = matches!(action, Action::SetMember { .. } | Action::ReplaceMembers { .. } | Action::RemoveRoom);
        changes && self.gate.as_ref().is_some_and(|gate| gate.mode == Mode::Members)
    }

    /// Checks the invariants.
    pub(super) fn check_gate(&self) {
        let Some(gate) = &self.gate else { return };
        assert_eq!(gate.entries.iter().filter(|entry| entry.busy.is_some()).count(), gate.busy as usize);
        for Entry { user, busy, .. } in &gate.entries {
            match busy {
                Some(busy) => assert!(busy.parked.is_empty() || busy.is_asked || gate.is_changing(user)),
                None => assert!(self.presence.shown(user).is_some(), "who is known is in the room"),
            }
        }
        assert!(gate.removals.iter().all(|(_, removal)| !removal.left.is_empty()));
    }
}

/// What somebody must be allowed to ask this; `None` for what follows from an earlier permission.
fn right_of(ask: &RoomAsk) -> Option<Right> {
    match ask {
        RoomAsk::Subscribe { .. } | RoomAsk::Online | RoomAsk::Position | RoomAsk::MayRead => Some(Right::Read),
        RoomAsk::Typing { .. } => Some(Right::Write),
        RoomAsk::Change(change) => Some(change.right()),
        RoomAsk::Ephemeral(_) | RoomAsk::Refresh | RoomAsk::Fence => None,
    }
}

fn user_id(cx: &RoomContext<'_>, user: &Id) -> UserId {
    UserId::new(user, cx.key.hash(user.text()))
}
