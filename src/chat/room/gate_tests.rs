//! The gate of a room whose mode is `ask`: one question at a time, answers that count for their time, and who loses access.

use super::gate::RETRY_MS;
use super::tests::{A, B, SHARDS, Turn, WALL_MS, World, conn, key, user};
use super::*;
use crate::access::{Level, Permit};
use crate::chat::envelope::ReplyTo;
use crate::chat::job::Job;
use crate::wire::client::ErrorCode;

/// A room that asks the ERP about its visitors.
struct Guarded {
    world: World,
}

impl Guarded {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let mut world = World::with(limits);
        let name = RoomName::new("r", key().hash("r"));
        let now = Now { tick_ms: 0, wall_ms: WALL_MS };
        world.room = Room::new(name, "e1".into(), Some(Mode::Ask), SHARDS, now, false);
        Self { world }
    }

    fn ask(&mut self, source: ShardId, slot: u32, name: &str, ask: RoomAsk) {
        let origin = Origin { conn: conn(source, slot), to: ReplyTo::Nobody };
        let asked = Asked { source, origin, visitor: Some(user(name)), ask };
        self.world.run(|room, cx| room.handle_ask(cx, asked));
        self.check();
    }

    fn join(&mut self, source: ShardId, slot: u32, name: &str) {
        let ask = RoomAsk::Subscribe { user: user(name), again: false, deflates: false, since: None };
        self.ask(source, slot, name, ask);
    }

    /// The users that the ERP is asked about now.
    fn asked(&mut self) -> Vec<String> {
        let jobs = std::iter::from_fn(|| self.world.errands.poll_job());
        let text = |job| match job {
            Job::Permit(question) => question.user.text().to_owned(),
            other => panic!("{other:?}"),
        };
        jobs.map(text).collect()
    }

    /// The ERP answers; `None` if it could not be asked.
    fn permit(&mut self, name: &str, permit: Option<(Level, u64)>) {
        self.world.errands.note_answered(&user(name));
        let permit = permit.map(|(level, ttl_ms)| Permit { level, ttl_ms });
        self.world.run(|room, cx| room.handle_permit(cx, &user(name), permit));
        self.check();
    }

    /// Joins as somebody whom the ERP lets in for so long.
    fn member(&mut self, source: ShardId, slot: u32, name: &str, ttl_ms: u64) {
        self.join(source, slot, name);
        assert_eq!(self.asked(), [name]);
        self.permit(name, Some((Level::Member, ttl_ms)));
        assert!(is_in(&self.turn(), 0));
    }

    fn later(&mut self, ms: u64) {
        self.world.tick_ms += ms;
        self.world.run(|room, cx| room.handle_timeout(cx));
        self.check();
    }

    fn turn(&mut self) -> Turn {
        let turn = self.world.turn();
        self.check();
        turn
    }

    fn removals(&mut self) -> Vec<(ShardId, UserId, u32)> {
        self.world.run(|room, cx| room.freeze(cx)).removals
    }

    fn is_inside(&self, name: &str) -> bool {
        self.world.room.presence.shown(&user(name)).is_some()
    }

    fn check(&self) {
        self.world.room.check_gate();
        self.world.permits.check_invariants();
    }
}

fn is_in(turn: &Turn, n: usize) -> bool {
    matches!(turn.answer(n), Answer::Subscribed { .. })
}

#[test]
fn one_question_is_for_all_that_a_user_asks_meanwhile() {
    let mut guarded = Guarded::new();
    guarded.member(B, 9, "kim", 60_000);
    guarded.join(A, 1, "ana");
    guarded.ask(A, 1, "ana", RoomAsk::Typing { user: user("ana"), start: true });
    // What needs no right stays behind what was asked before.
    guarded.ask(A, 1, "ana", RoomAsk::Fence);
    guarded.join(B, 2, "ana");
    guarded.join(A, 3, "ben");
    assert_eq!(guarded.asked(), ["ana", "ben"]);
    assert!(guarded.turn().replies.is_empty() && !guarded.is_inside("ana"));
    guarded.permit("ana", Some((Level::Member, 60_000)));
    let turn = guarded.turn();
    assert_eq!(turn.told(), "user_joined ana, typing_start ana");
    assert!(is_in(&turn, 0) && is_in(&turn, 3));
    assert!(matches!((turn.answer(1), turn.answer(2)), (Answer::Done, Answer::Done)));
    guarded.permit("ben", Some((Level::Nothing, 60_000)));
    assert!(matches!(guarded.turn().answer(0), Answer::Denied(Level::Nothing)));
    assert!(guarded.asked().is_empty() && !guarded.is_inside("ben"));
}

#[test]
fn an_answer_counts_for_its_time_and_for_what_it_allows() {
    let mut guarded = Guarded::new();
    guarded.ask(A, 1, "ana", RoomAsk::MayRead);
    guarded.asked();
    guarded.permit("ana", Some((Level::Reader, 1_000)));
    assert!(matches!(guarded.turn().answer(0), Answer::Done));
    guarded.later(999);
    guarded.ask(A, 1, "ana", RoomAsk::Typing { user: user("ana"), start: true });
    assert!(matches!(guarded.turn().answer(0), Answer::Denied(Level::Reader)), "a reader may not type");
    assert!(guarded.asked().is_empty(), "it is known");
    guarded.later(1);
    guarded.ask(A, 1, "ana", RoomAsk::MayRead);
    assert_eq!(guarded.asked(), ["ana"], "it counts no more");
    // What counts for no time at all is enough for what has waited for it.
    guarded.permit("ana", Some((Level::Member, 0)));
    assert!(matches!(guarded.turn().answer(0), Answer::Done));
    guarded.ask(A, 1, "ana", RoomAsk::MayRead);
    assert_eq!(guarded.asked(), ["ana"]);
}

#[test]
fn who_is_inside_is_asked_about_again_and_goes_when_the_answer_is_no() {
    let mut guarded = Guarded::new();
    guarded.member(A, 1, "ana", 5_000);
    guarded.member(B, 2, "ben", 60_000);
    assert_eq!(guarded.world.room.gate_due_ms(), Some(5_000));
    guarded.later(4_999);
    assert!(guarded.asked().is_empty());
    guarded.later(1);
    assert_eq!(guarded.asked(), ["ana"]);
    guarded.permit("ana", Some((Level::Member, 5_000)));
    assert_eq!(guarded.world.room.gate_due_ms(), Some(10_000));
    guarded.later(5_000);
    assert_eq!(guarded.asked(), ["ana"]);
    guarded.permit("ana", Some((Level::Nothing, 5_000)));
    let removals = guarded.removals();
    let [(A, removed, number)] = &removals[..] else { panic!("{removals:?}") };
    assert!(*removed == user("ana") && guarded.world.room.gate.as_ref().unwrap().is_busy());
    guarded.world.leave(A, 1, "ana");
    guarded.world.run(|room, _| room.handle_removed(A, *number));
    assert_eq!(guarded.turn().told(), "user_left ana");
    assert!(!guarded.world.room.gate.as_ref().unwrap().is_busy() && guarded.is_inside("ben"));
    guarded.join(A, 3, "ana");
    assert!(matches!(guarded.turn().answer(0), Answer::Denied(Level::Nothing)), "it is known for its time");
}

#[test]
fn a_short_answer_is_asked_for_again_after_a_second_at_the_earliest() {
    let mut guarded = Guarded::new();
    guarded.member(A, 1, "ana", 0);
    assert_eq!(guarded.world.room.gate_due_ms(), Some(RETRY_MS));
    for _ in 0..3 {
        guarded.later(RETRY_MS);
        assert_eq!(guarded.asked(), ["ana"]);
        guarded.permit("ana", Some((Level::Member, 1)));
        assert!(guarded.is_inside("ana"));
    }
}

#[test]
fn where_the_erp_gives_no_answer_nobody_enters_and_nobody_has_to_go() {
    let mut guarded = Guarded::new();
    guarded.member(A, 1, "ana", 5_000);
    guarded.join(B, 2, "ben");
    guarded.ask(B, 2, "ben", RoomAsk::Fence);
    assert_eq!(guarded.asked(), ["ben"]);
    guarded.permit("ben", None);
    let turn = guarded.turn();
    assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::Unavailable)));
    assert!(matches!(turn.answer(1), Answer::Done), "this needs nobody's word");
    guarded.later(5_000);
    assert_eq!(guarded.asked(), ["ana"]);
    guarded.permit("ana", None);
    assert!(guarded.is_inside("ana") && guarded.removals().is_empty());
    guarded.later(RETRY_MS - 1);
    assert!(guarded.asked().is_empty());
    guarded.later(1);
    assert_eq!(guarded.asked(), ["ana"], "it is tried again");
    // Who only visits is forgotten.
    assert_eq!(guarded.world.room.gate.as_ref().unwrap().users(), [user("ana")]);
}

#[test]
fn of_too_many_questions_the_next_is_refused_and_half_are_for_those_who_enter() {
    let mut guarded = Guarded::with(Limits { access_questions_max: 2, ..Limits::default() });
    guarded.member(A, 1, "ana", 1_000);
    guarded.member(A, 2, "ben", 1_000);
    guarded.later(1_000);
    assert_eq!(guarded.asked().len(), 1, "of two who are inside one has to wait");
    guarded.join(B, 3, "eve");
    assert_eq!(guarded.asked(), ["eve"]);
    guarded.join(B, 4, "kim");
    let turn = guarded.turn();
    assert!(guarded.asked().is_empty());
    assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::Overloaded)));
    assert!(guarded.is_inside("ana") && guarded.is_inside("ben"));
    guarded.permit("eve", Some((Level::Member, 60_000)));
    assert!(is_in(&guarded.turn(), 0));
}

#[test]
fn who_leaves_while_it_is_asked_is_forgotten_with_the_answer() {
    let mut guarded = Guarded::new();
    guarded.member(B, 2, "ben", 60_000);
    guarded.member(A, 1, "ana", 1_000);
    guarded.later(1_000);
    assert_eq!(guarded.asked(), ["ana"]);
    guarded.world.leave(A, 1, "ana");
    assert_eq!(guarded.turn().told(), "user_left ana");
    guarded.permit("ana", Some((Level::Nothing, 1_000)));
    assert!(guarded.removals().is_empty() && !guarded.world.room.gate.as_ref().unwrap().is_busy());
    assert_eq!(guarded.world.room.gate.as_ref().unwrap().users(), [user("ben")]);
    assert_eq!(guarded.world.room.gate_due_ms(), Some(60_000));
}
