use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::desk::Desk;
use crate::chat::envelope::ReplyTo;
use crate::chat::envelope::Since;
use crate::chat::ids::HashKey;
use crate::chat::store::{
    Action, Actor, Asker, Change as Durable, Chunk, Found, Job, Lookup, Outcome, Post, StoreFacts, Verdict,
};
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;
use crate::wire::websocket::{self, Opcode};

pub(super) const A: ShardId = ShardId(0);
pub(super) const B: ShardId = ShardId(1);
pub(super) const SHARDS: usize = 3;
pub(super) const WALL_MS: u64 = 1_700_000_000_000;

pub(super) fn key() -> HashKey {
    HashKey::new([9; 16])
}

pub(super) fn user(name: &str) -> UserId {
    UserId::new(&Id::from_text(name).unwrap(), key().hash(name))
}

pub(super) fn conn(source: ShardId, slot: u32) -> ConnId {
    ConnId::new(source, 0, slot)
}

fn message(id: &str, digest: u128) -> Durable {
    let prefix = format!("{{\"type\":\"new_message\",\"id\":\"{id}\"").into_bytes();
    let id = Id::from_text(id).unwrap();
    let post = Post { id, id_given: true, idempotency_key: None, digest, timestamp: None, sender: None, author: None };
    Durable { by: Actor::Service, prefix, action: Action::Post(post) }
}

fn written_by(author: &str, mut message: Durable) -> Durable {
    if let Action::Post(post) = &mut message.action {
        post.author = Some(user(author));
    }
    message
}

fn with_prefix(prefix: Vec<u8>, message: Durable) -> Durable {
    Durable { prefix, ..message }
}

/// A room with a clock, and what it said in the last turn.
pub(super) struct World {
    pub(super) room: Room,
    orderer: Orderer,
    desk: Desk,
    pub(super) errands: Errands,
    pub(super) permits: Permits,
    deflater: Deflater,
    limits: Limits,
    quiet: bool,
    pub(super) tick_ms: u64,
}

/// One turn, decoded.
pub(super) struct Turn {
    events: Vec<(Value, Kind, Option<String>)>,
    to: Vec<ShardId>,
    pub(super) replies: Vec<(ShardId, Reply)>,
}

impl Turn {
    /// `type userId` of each event, as one text.
    pub(super) fn told(&self) -> String {
        let line = |event: &Value| match (&event["userId"], &event["seq"]) {
            (Value::String(user), _) => format!("{} {user}", event["type"].as_str().unwrap()),
            (_, Value::Number(seq)) => format!("{} #{seq}", event["type"].as_str().unwrap()),
            _ => event["type"].as_str().unwrap().to_owned(),
        };
        self.events.iter().map(|(event, ..)| line(event)).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn answer(&self, n: usize) -> &Answer {
        &self.replies[n].1.answer
    }

    fn online(&self, n: usize) -> Value {
        match self.answer(n) {
            Answer::Subscribed { online, .. } | Answer::Online(online) => payloads(&online.plain).remove(0),
            other => panic!("{other:?}"),
        }
    }
}

fn payloads(mut frames: &[u8]) -> Vec<Value> {
    let mut values = Vec::new();
    while let [0x81, length, rest @ ..] = frames {
        let (length, rest) = match length {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
            length => (usize::from(*length), rest),
        };
        values.push(serde_json::from_slice(&rest[..length]).unwrap());
        frames = &rest[length..];
    }
    assert!(frames.is_empty());
    values
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> Self {
        let name = RoomName::new("r", key().hash("r"));
        let room = Room::new(name, "e1".into(), None, SHARDS, Now { tick_ms: 0, wall_ms: WALL_MS }, false);
        let deflater = Deflater::new(limits.deflate_threshold_bytes);
        let (desk, errands) = (Desk::new(None, &limits, 1), Errands::new(&limits, 1));
        let permits = Permits::new(limits.access_entries_max);
        Self { room, orderer: Orderer::new(key()), desk, errands, permits, deflater, limits, quiet: false, tick_ms: 0 }
    }

    pub(super) fn run<T>(&mut self, run: impl FnOnce(&mut Room, &mut RoomContext<'_>) -> T) -> T {
        let now = Now { tick_ms: self.tick_ms, wall_ms: WALL_MS + self.tick_ms };
        let (limits, orderer, quiet) = (&self.limits, &mut self.orderer, self.quiet);
        let (deflater, desk) = (&mut self.deflater, &mut self.desk);
        let (errands, permits, key) = (&mut self.errands, &mut self.permits, key());
        let mut cx = RoomContext { now, limits, number: 0, key, orderer, desk, errands, permits, deflater, quiet };
        run(&mut self.room, &mut cx)
    }

    fn ask(&mut self, source: ShardId, slot: u32, ask: RoomAsk) {
        let origin = Origin { conn: conn(source, slot), to: ReplyTo::Nobody };
        let asked = Asked { source, origin, visitor: None, ask };
        self.run(|room, cx| room.handle_ask(cx, asked));
    }

    fn join(&mut self, source: ShardId, slot: u32, name: &str) {
        self.ask(source, slot, RoomAsk::Subscribe { user: user(name), again: false, deflates: false, since: None });
    }

    fn typing(&mut self, source: ShardId, slot: u32, name: &str, start: bool) {
        self.ask(source, slot, RoomAsk::Typing { user: user(name), start });
    }

    pub(super) fn leave(&mut self, source: ShardId, slot: u32, name: &str) {
        self.run(|room, cx| room.handle_unsubscribe(cx, source, &user(name), conn(source, slot), false));
    }

    fn publish(&mut self, change: Durable) {
        self.ask(A, 0, RoomAsk::Change(change.into()));
    }

    fn later(&mut self, ms: u64) -> Turn {
        self.tick_ms += ms;
        self.run(|room, cx| room.handle_timeout(cx));
        self.turn()
    }

    pub(super) fn turn(&mut self) -> Turn {
        let frozen = self.run(|room, cx| room.freeze(cx));
        assert_eq!(frozen.bytes, frozen.segments.iter().map(|s| s.frames.bytes()).sum::<usize>());
        assert!(!self.room.has_work());
        let mut events = Vec::new();
        for segment in frozen.segments.iter() {
            let payloads = payloads(&segment.frames.plain);
            assert_eq!(payloads.len(), segment.events as usize);
            let exclude = segment.exclude.as_ref().map(|user| user.text().to_owned());
            events.extend(payloads.into_iter().map(|payload| (payload, segment.kind, exclude.clone())));
        }
        for (event, kind, exclude) in &events {
            assert_eq!(
                *kind == Kind::Durable,
                event["seq"].is_u64() && event["type"] != "online_update" && event["type"] != "read_receipt"
            );
            let typing = event["type"].as_str().unwrap().starts_with("typing");
            assert_eq!(exclude.as_deref(), if typing { event["userId"].as_str() } else { None });
        }
        Turn { events, to: frozen.to, replies: frozen.replies }
    }

    /// Joins in a turn of its own.
    fn member(&mut self, source: ShardId, slot: u32, name: &str) {
        self.join(source, slot, name);
        self.turn();
    }

    /// A room in large mode with users u0, u1, ... on shard B.
    fn large(users: u32) -> Self {
        let mut world = World::with(Limits { presence_list_limit: 10, ..Limits::default() });
        (0..users).for_each(|n| world.join(B, n, &format!("u{n}")));
        world.turn();
        assert!(world.room.large);
        world
    }
}

#[test]
fn the_first_connection_is_told_to_the_others_and_the_list_to_the_joiner() {
    let mut world = World::new();
    world.join(A, 1, "ana");
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), turn.to.len()), ("", 0), "nobody was there to hear it");
    let expected = json!({"type": "online_update", "roomId": "r", "online": ["ana"], "seq": 0, "epoch": "e1",
        "timestamp": WALL_MS});
    assert_eq!(turn.online(0), expected);
    world.tick_ms += 5;
    world.join(B, 1, "ben");
    world.join(B, 2, "ben");
    let turn = world.turn();
    assert_eq!(turn.told(), "user_joined ben");
    assert_eq!(turn.to, [A], "no joiner of the turn gets its burst");
    assert_eq!(turn.events[0].0["timestamp"], WALL_MS + 5);
    for n in 0..2 {
        let Answer::Subscribed { timestamp_ms, online, missed: None } = turn.answer(n) else { panic!() };
        assert_eq!(*timestamp_ms, WALL_MS + 5);
        let Answer::Subscribed { online: first, .. } = turn.answer(0) else { panic!() };
        assert!(Arc::ptr_eq(&online.plain, &first.plain), "one frame for all joiners");
    }
    assert_eq!((world.room.users(), world.room.connections()), (2, 3));
    world.leave(B, 1, "ben");
    assert_eq!(world.turn().told(), "");
    world.leave(B, 2, "ben");
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), turn.to), ("user_left ben", vec![A]));
}

#[test]
fn a_message_is_compressed_once_and_only_while_somebody_takes_it() {
    let mut world = World::with(Limits { deflate_threshold_bytes: 200, ..Limits::default() });
    let long = || format!("{{\"type\":\"x\",\"text\":\"{:500}\"", "").into_bytes();
    let mut next = 0;
    let mut variants = |world: &mut World| {
        next += 1;
        world.publish(with_prefix(long(), message(&next.to_string(), next)));
        let frozen = world.run(|room, cx| room.freeze(cx));
        assert_eq!(frozen.bytes, frozen.segments.iter().map(|segment| segment.frames.bytes()).sum::<usize>());
        let deflated = frozen.segments[0].frames.deflated.clone();
        (deflated.map(|deflated| deflated.window_bits), frozen.to)
    };
    let join = |world: &mut World, source, name, deflates| {
        world.ask(source, 1, RoomAsk::Subscribe { user: user(name), again: false, deflates, since: None });
        let turn = world.turn();
        let Answer::Subscribed { online, .. } = turn.answer(0) else { panic!() };
        online.deflated.is_some()
    };
    let leave = |world: &mut World, source, name, deflates| {
        world.run(|room, cx| room.handle_unsubscribe(cx, source, &user(name), conn(source, 1), deflates));
        world.turn();
    };
    assert!(!join(&mut world, A, "ana", false));
    assert_eq!(variants(&mut world), (None, vec![A]));
    let name = "ben who has the longest name of all, so that the list of who is there is above the threshold as well, \
        name after name";
    assert!(join(&mut world, B, name, true), "the list that the joiner gets");
    assert_eq!(variants(&mut world), (Some(10), vec![A, B]), "one variant for all shards");
    assert!(join(&mut world, A, "eva", true));
    leave(&mut world, B, name, true);
    assert_eq!(variants(&mut world), (Some(10), vec![A]));
    leave(&mut world, A, "eva", true);
    assert_eq!(variants(&mut world), (None, vec![A]), "nobody takes it any more");
    assert!(join(&mut world, B, name, true));
    world.run(|room, cx| room.source_ended(cx, B));
    assert_eq!(variants(&mut world), (None, vec![A]));
    leave(&mut world, A, "ana", false);
    assert_eq!(variants(&mut world).1, []);
}

#[test]
fn joining_again_only_answers() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.ask(A, 1, RoomAsk::Subscribe { user: user("ana"), again: true, deflates: false, since: None });
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), turn.online(0)["online"].clone()), ("", json!(["ana"])));
    assert_eq!(world.room.connections(), 1);
}

#[test]
fn a_message_of_the_turn_is_history_for_its_joiners() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.join(B, 1, "ben");
    world.publish(message("m", 1));
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), &turn.to), ("user_joined ben, new_message #1", &vec![A]));
    assert_eq!(turn.online(0)["seq"], 1);
    world.publish(message("n", 2));
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), turn.to), ("new_message #2", vec![A, B]));
}

#[test]
fn a_leave_and_a_join_in_one_turn_keep_their_order() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.member(B, 1, "ben");
    world.leave(B, 1, "ben");
    world.join(B, 2, "ben");
    let turn = world.turn();
    assert_eq!((turn.told().as_str(), turn.to), ("user_left ben, user_joined ben", vec![A]));
}

#[test]
fn typing_ends_once_in_each_way() {
    type End = fn(&mut World) -> Turn;
    let ends: [(&str, &str, End); 6] = [
        ("stop from another tab", "typing_stop ana", |w| {
            w.typing(B, 2, "ana", false);
            w.turn()
        }),
        ("holder leaves", "typing_stop ana", |w| {
            w.leave(A, 1, "ana");
            w.turn()
        }),
        ("last connection leaves", "typing_stop ana, user_left ana", |w| {
            w.leave(B, 2, "ana");
            assert_eq!(w.turn().told(), "", "the other tab does not hold it");
            w.leave(A, 1, "ana");
            w.turn()
        }),
        ("own message", "typing_stop ana, new_message #1", |w| {
            w.publish(written_by("ana", message("m", 1)));
            w.turn()
        }),
        ("time", "typing_stop ana", |w| {
            assert_eq!(w.room.next_deadline_ms(), Some(10_000));
            assert_eq!(w.later(9_999).told(), "");
            w.later(1)
        }),
        ("source ends", "typing_stop ana, user_left eva", |w| {
            w.member(A, 3, "eva");
            w.run(|room, cx| room.source_ended(cx, A));
            w.turn()
        }),
    ];
    for (name, told, end) in ends {
        let mut world = World::new();
        world.member(A, 1, "ana");
        world.member(B, 2, "ana");
        world.member(B, 3, "ben");
        world.typing(A, 1, "ana", true);
        world.typing(A, 1, "ana", true);
        let turn = world.turn();
        assert_eq!((turn.told().as_str(), turn.replies.len()), ("typing_start ana", 2), "{name}");
        assert!(turn.replies.iter().all(|(to, reply)| *to == A && matches!(reply.answer, Answer::Done)));
        assert_eq!(end(&mut world).told(), told, "{name}");
        world.typing(B, 2, "ana", false);
        assert_eq!(world.turn().told(), "", "{name}: one stop only");
        assert_eq!(world.later(60_000).told(), "", "{name}");
    }
}

#[test]
fn typing_without_being_there_is_refused() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.typing(A, 2, "ben", true);
    let turn = world.turn();
    assert_eq!(turn.told(), "");
    assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::NotInRoom)));
}

#[test]
fn a_large_room_thins_typing_out() {
    let mut world = World::large(20);
    for n in 0..20 {
        world.typing(B, n, &format!("u{n}"), true);
    }
    assert_eq!(world.turn().events.len(), 10);
    for n in 0..20 {
        world.typing(B, n, &format!("u{n}"), false);
    }
    assert_eq!(world.turn().events.len(), 0);
    let told = world.later(1_000).told();
    assert_eq!(told.matches("typing_stop").count(), 10, "{told}");
    assert_eq!(world.room.next_deadline_ms(), None);
}

#[test]
fn a_message_is_ordered_and_answered() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.publish(message("m", 1));
    let mut own = message("n", 2);
    if let Action::Post(post) = &mut own.action {
        post.timestamp = Some("5".into());
    }
    let mut prefix = own.prefix.clone();
    prefix.extend_from_slice(b",\"timestamp\":5");
    world.publish(with_prefix(prefix, own));
    let (message_id, by) = (Id::from_text("x").unwrap(), Id::from_text("ana").unwrap());
    let react = Action::React { message: message_id, emoji: "y".into(), user: by.clone(), repeats: true };
    world.publish(Durable { by: Actor::User(by), action: react, ..message("x", 3) });
    world.publish(message("m", 1));
    world.publish(message("m", 9));
    let turn = world.turn();
    assert_eq!(turn.told(), "new_message #1, new_message #2, new_message #3");
    assert_eq!(turn.events[0].0["timestamp"], WALL_MS);
    assert_eq!(turn.events[1].0["timestamp"], 5);
    let made = WALL_MS.to_string();
    assert!(matches!(turn.answer(2), Answer::Changed { seq: Some(3), .. }));
    for (n, expected) in
        [(0, (Some("m"), 1, made.as_str(), false)), (1, (Some("n"), 2, "5", false)), (3, (Some("m"), 1, &made, true))]
    {
        let Answer::Published { id, seq, timestamp, replayed, users, connections } = turn.answer(n) else { panic!() };
        assert_eq!((id.as_ref().map(Id::text), *seq, &**timestamp, *replayed), expected, "{n}");
        assert_eq!((*users, *connections), (1, 1));
    }
    assert!(matches!(turn.answer(4), Answer::Refused(ErrorCode::Conflict)));
    assert_eq!(world.room.last_seq(), 3);
}

#[test]
fn a_full_burst_refuses_before_ordering_and_sums_presence_up() {
    let mut world = World::with(Limits { burst_bytes_max: 400, ..Limits::default() });
    world.member(A, 1, "ana");
    world.publish(with_prefix(vec![b' '; 500], message("b", 1)));
    world.publish(message("m", 1));
    world.ask(A, 0, RoomAsk::Ephemeral(b"{\"type\":\"x\"".to_vec()));
    world.join(B, 2, "ben");
    world.typing(B, 2, "ben", true);
    let before = world.room.burst.bytes();
    for slot in 0..100 {
        world.join(B, slot, "eva");
    }
    assert_eq!(world.room.burst.bytes(), before);
    assert_eq!(world.room.last_seq(), 1);
    let frozen = world.run(|room, cx| room.freeze(cx));
    let answers: Vec<&Answer> = frozen.replies.iter().map(|(_, reply)| &reply.answer).collect();
    assert!(matches!(answers[0], Answer::Published { seq: 1, .. }), "an empty burst takes any event");
    assert!(matches!(answers[1..3], [Answer::Refused(ErrorCode::Overloaded), Answer::Refused(ErrorCode::Overloaded)]));
    let last = payloads(&frozen.segments.last().unwrap().frames.plain);
    assert_eq!(last.len(), 1);
    assert_eq!(last[0]["online"].as_array().unwrap().len(), 3);
    world.typing(B, 2, "ben", false);
    assert_eq!(world.turn().told(), "", "a start that was not sent has no stop");
    world.publish(message("m", 1));
    assert!(matches!(world.turn().answer(0), Answer::Published { seq: 2, replayed: false, .. }));
}

#[test]
fn refresh_online_and_ephemeral_are_answered() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.ask(B, 0, RoomAsk::Ephemeral(b"{\"type\":\"x\"".to_vec()));
    world.ask(A, 1, RoomAsk::Refresh);
    world.ask(B, 0, RoomAsk::Online);
    world.join(B, 1, "ben");
    let turn = world.turn();
    assert_eq!(turn.events[0].0, json!({"type": "x", "timestamp": WALL_MS}));
    assert!(matches!(turn.answer(0), Answer::Delivered { users: 1, connections: 1 }));
    let (Answer::Online(refresh), Answer::Subscribed { online, .. }) = (turn.answer(1), turn.answer(3)) else {
        panic!()
    };
    assert!(Arc::ptr_eq(&refresh.plain, &online.plain));
    assert!(matches!(turn.answer(2), Answer::Users(users, 1) if *users == [user("ana")]));
    assert_eq!(turn.replies.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [B, A, B, B]);
}

#[test]
fn a_room_becomes_large_and_small_again() {
    let mut world = World::with(Limits { presence_list_limit: 10, ..Limits::default() });
    (0..10).for_each(|n| world.member(B, n, &format!("u{n}")));
    world.join(A, 1, "u10");
    world.join(A, 2, "u11");
    let turn = world.turn();
    assert_eq!(turn.told(), "user_joined u10, online_update #0", "the second join is in the list's count");
    let list = &turn.events[1].0;
    assert_eq!((&list["count"], &list["truncated"]), (&json!(12), &json!(true)));
    assert_eq!(list["online"].as_array().unwrap().len(), 10);
    assert_eq!(&turn.online(0), list);
    for n in 0..4 {
        world.leave(B, n, &format!("u{n}"));
    }
    assert_eq!(world.turn().told(), "", "80 % is not below 80 %");
    world.leave(B, 4, "u4");
    let turn = world.turn();
    assert_eq!(turn.told(), "online_update #0");
    assert_eq!(turn.events[0].0["online"].as_array().unwrap().len(), 7);
    assert_eq!(turn.events[0].0["truncated"], Value::Null);
    assert_eq!(world.later(1_000).told(), "", "the list said it all");
    world.leave(B, 5, "u5");
    assert_eq!(world.turn().told(), "user_left u5");
}

#[test]
fn a_large_room_tells_net_changes_each_second() {
    let mut world = World::large(20);
    world.join(A, 1, "new");
    world.join(A, 2, "short");
    world.turn();
    world.leave(B, 0, "u0");
    world.leave(A, 2, "short");
    assert_eq!(world.turn().told(), "");
    assert_eq!(world.room.next_deadline_ms(), Some(1_000));
    let turn = world.later(1_000);
    let expected = json!({"type": "presence_diff", "roomId": "r", "joined": ["new"], "left": ["u0"], "count": 20,
        "timestamp": WALL_MS + 1_000});
    assert_eq!(turn.events[0].0, expected);
    assert_eq!(world.later(5_000).told(), "");
    for n in 0..101 {
        world.join(A, n, &format!("v{n}"));
    }
    world.turn();
    let diff = &world.later(1_000).events[0].0;
    assert_eq!(diff["joined"].as_array().unwrap().len(), 100);
    assert_eq!((&diff["truncated"], &diff["count"]), (&json!(true), &json!(121)));
}

#[test]
fn ten_thousand_joins_of_a_turn_cost_little() {
    let mut world = World::with(Limits::default());
    world.member(A, 0, "first");
    for n in 1..10_000 {
        world.join(B, n, &format!("user-{n}"));
    }
    let frozen = world.run(|room, cx| room.freeze(cx));
    assert_eq!((frozen.replies.len(), frozen.to), (9_999, vec![A]));
    assert!(frozen.bytes < 200 * 100 + 200 * 20);
    assert_eq!(world.room.users(), 10_000);
}

#[test]
fn a_quiet_room_keeps_its_state_and_says_nothing_of_it() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.typing(A, 1, "ana", true);
    world.turn();
    world.quiet = true;
    world.join(B, 1, "ben");
    world.typing(B, 1, "ben", true);
    world.publish(message("m", 1));
    world.leave(A, 1, "ana");
    let turn = world.turn();
    assert_eq!(turn.told(), "new_message #1");
    assert_eq!(turn.online(0)["online"], json!(["ben"]));
    assert_eq!(world.later(60_000).told(), "");
    let mut world = World::large(20);
    world.quiet = true;
    (0..19).for_each(|n| world.leave(B, n, &format!("u{n}")));
    assert_eq!(world.turn().told() + &world.later(1_000).told(), "");
}

#[test]
fn a_room_outlives_its_last_member_for_a_while() {
    let mut world = World::new();
    assert!(world.room.is_dead(Now { tick_ms: 0, wall_ms: 0 }));
    world.join(A, 1, "ana");
    assert!(world.room.has_work());
    world.turn();
    assert_eq!(world.room.next_deadline_ms(), None);
    world.tick_ms = 1_000;
    world.leave(A, 1, "ana");
    world.turn();
    assert_eq!(world.room.next_deadline_ms(), Some(301_000));
    world.tick_ms = 2_000;
    world.publish(message("m", 1));
    assert_eq!(world.turn().to, []);
    assert_eq!(world.room.next_deadline_ms(), Some(302_000));
    for (tick_ms, dead) in [(301_999, false), (302_000, true)] {
        assert_eq!(world.room.is_dead(Now { tick_ms, wall_ms: 0 }), dead);
    }
}

#[test]
fn a_source_that_ends_takes_its_members_and_replies_along() {
    let mut world = World::new();
    world.member(A, 1, "ana");
    world.member(B, 1, "ana");
    world.member(B, 2, "ben");
    world.join(B, 3, "eva");
    world.run(|room, cx| room.source_ended(cx, B));
    let turn = world.turn();
    assert_eq!((turn.replies.len(), turn.to.clone()), (0, vec![A]));
    assert!(turn.told().contains("user_left ben") && !turn.told().contains("ana"), "{}", turn.told());
    assert_eq!((world.room.users(), world.room.connections()), (1, 1));
    world.leave(B, 2, "ben");
    assert_eq!(world.room.connections(), 1, "a late leave finds nothing");
}

#[derive(Clone, Debug)]
enum Op {
    Join(u8),
    Leave(u8),
    Typing(u8, bool),
    Publish(u8, bool),
    Wait(u16),
    Freeze,
    EndSource(u8),
    Quiet,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..48).prop_map(Op::Join),
        4 => (0u8..48).prop_map(Op::Leave),
        6 => (0u8..48, any::<bool>()).prop_map(|(n, start)| Op::Typing(n, start)),
        3 => (0u8..48, any::<bool>()).prop_map(|(n, again)| Op::Publish(n, again)),
        3 => (1u16..4_000).prop_map(Op::Wait),
        6 => Just(Op::Freeze),
        1 => (0u8..3).prop_map(Op::EndSource),
        1 => Just(Op::Quiet),
    ]
}

/// What a naive observer knows. Connection `n` is on shard `n % 3` and of user `n / 4`.
#[derive(Default)]
struct Model {
    told: BTreeSet<u8>,
    joining: BTreeSet<u8>,
    /// Users as a member sees them who was there all the time, while the room is small.
    seen: Option<BTreeSet<String>>,
    typing: BTreeSet<String>,
    seq: u64,
    ids: BTreeMap<u64, u64>,
}

impl Model {
    fn users(&self) -> BTreeSet<String> {
        self.told.iter().chain(&self.joining).map(|n| name(*n)).collect()
    }

    fn observe(&mut self, turn: &Turn, quiet: bool) {
        if turn.events.iter().any(|(event, ..)| event["type"] == "online_update") {
            // A turn in which the mode changes may tell what its list makes superfluous.
            self.seen = None;
        }
        for (event, ..) in &turn.events {
            let user = || event["userId"].as_str().unwrap().to_owned();
            match event["type"].as_str().unwrap() {
                "typing_start" => assert!(!quiet),
                "typing_stop" => assert!(self.typing.remove(&user()), "a stop has a start"),
                "user_joined" => assert!(self.seen.as_mut().is_none_or(|seen| seen.insert(user()))),
                "user_left" => assert!(self.seen.as_mut().is_none_or(|seen| seen.remove(&user()))),
                "online_update" if event["truncated"].is_null() => self.seen = Some(names(&event["online"])),
                "online_update" | "presence_diff" => self.seen = None,
                _ => {
                    self.seq += 1;
                    assert_eq!(event["seq"], self.seq);
                }
            }
            if event["type"] == "typing_start" {
                self.typing.insert(user());
            }
        }
    }
}

fn name(n: u8) -> String {
    format!("u{}", n / 4)
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|user| user.as_str().unwrap().to_owned()).collect()
}

fn source(n: u8) -> ShardId {
    ShardId(u16::from(n % 3))
}

fn freeze(world: &mut World, model: &mut Model) {
    let had_told = !model.told.is_empty();
    let to: BTreeSet<ShardId> = model.told.iter().map(|n| source(*n)).collect();
    let turn = world.turn();
    if !turn.events.is_empty() {
        assert_eq!(turn.to.iter().copied().collect::<BTreeSet<_>>(), to);
    }
    if !had_told {
        model.seen = None;
    }
    model.observe(&turn, world.quiet);
    model.told.append(&mut model.joining);
    let users = model.users();
    assert_eq!(world.room.users() as usize, users.len());
    assert_eq!(world.room.connections() as usize, model.told.len());
    for (n, (_, reply)) in turn.replies.iter().enumerate() {
        if let Answer::Subscribed { .. } = reply.answer {
            let online = turn.online(n);
            assert_eq!(online["seq"], model.seq);
            let listed = names(&online["online"]);
            assert!(listed.is_subset(&users) && listed.len() == users.len().min(if world.room.large { 6 } else { 99 }));
            assert!(online["count"].is_null() || online["count"] == users.len());
        }
    }
    if world.quiet || users.is_empty() {
        model.seen = None;
        return;
    }
    match &model.seen {
        Some(seen) if !world.room.large => assert_eq!(*seen, users, "a member that listens knows who is there"),
        None if !world.room.large => model.seen = Some(users),
        _ => {}
    }
}

fn apply(world: &mut World, model: &mut Model, op: Op) {
    match op {
        Op::Join(n) if !model.told.contains(&n) && model.joining.insert(n) => {
            world.join(source(n), n.into(), &name(n));
        }
        Op::Leave(n) if model.told.remove(&n) => world.leave(source(n), n.into(), &name(n)),
        Op::Typing(n, start) if model.told.contains(&n) => world.typing(source(n), n.into(), &name(n), start),
        Op::Publish(n, again) => {
            let id = if again { u64::from(n % 4) } else { 1_000 + world.tick_ms * 64 + u64::from(n) };
            let before = world.room.last_seq();
            world.publish(written_by(&name(n), message(&id.to_string(), id.into())));
            let seq = *model.ids.entry(id).or_insert(before + 1);
            assert_eq!(world.room.last_seq(), before.max(seq));
        }
        Op::Wait(ms) => {
            world.tick_ms += u64::from(ms);
            world.run(|room, cx| room.handle_timeout(cx));
        }
        Op::Freeze => freeze(world, model),
        Op::EndSource(n) => {
            let source_ended = ShardId(n.into());
            model.told.retain(|n| source(*n) != source_ended);
            model.joining.retain(|n| source(*n) != source_ended);
            world.run(|room, cx| room.source_ended(cx, source_ended));
        }
        Op::Quiet => {
            freeze(world, model);
            world.quiet = !world.quiet;
            model.seen = None;
        }
        _ => {}
    }
    if model.told.is_empty() {
        // Nobody is left to whom a stop could be told.
        model.seen = None;
    }
    world.room.check_invariants();
    world.orderer.check_invariants();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operations_agree_with_a_naive_model(ops in prop::collection::vec(op(), 1..120)) {
        let limits = Limits { presence_list_limit: 6, typing_per_second_max: 2, ..Limits::default() };
        let mut world = World::with(limits);
        let mut model = Model::default();
        for op in ops {
            apply(&mut world, &mut model, op);
        }
        freeze(&mut world, &mut model);
    }
}

/// A room whose events are in a store that the test plays.
struct Stored {
    world: World,
}

impl Stored {
    fn new(limits: Limits) -> Self {
        let facts = StoreFacts { epoch: "e1".into(), digest_key: (1, 2) };
        let mut world = World::with(limits);
        world.desk = Desk::new(Some(facts), &world.limits, 1);
        let name = RoomName::new("r", key().hash("r"));
        world.room = Room::new(name, "e1".into(), None, SHARDS, Now { tick_ms: 0, wall_ms: WALL_MS }, true);
        Self { world }
    }

    fn known(last_seq: u64) -> Self {
        let mut stored = Self::new(Limits::default());
        stored.world.join(A, 1, "ana");
        assert!(matches!(stored.jobs()[..], [Job::Read(Asker::Room(0), Lookup::Position(_))]));
        stored.found(Found::Position { last_seq });
        stored.world.turn();
        stored
    }

    fn jobs(&mut self) -> Vec<Job> {
        std::iter::from_fn(|| self.world.desk.poll_job()).collect()
    }

    fn found(&mut self, found: Found) {
        self.world.desk.note_found();
        self.world.run(|room, cx| room.handle_found(cx, found));
    }

    fn decided(&mut self, verdict: Verdict) {
        self.jobs();
        let entrusted = self.world.desk.take_written().unwrap();
        self.world.run(|room, cx| room.handle_verdict(cx, entrusted, verdict));
    }

    fn post(&mut self, id: &str, seq: u64) {
        self.world.publish(message(id, 1));
        self.decided(Verdict::New { seq });
    }

    fn come_back(&mut self, slot: u32, seq: u64, epoch: &str) {
        let since = Some(Box::new(Since { seq, epoch: epoch.into(), is_read: false }));
        let ask = RoomAsk::Subscribe { user: user("ben"), again: false, deflates: false, since };
        self.world.ask(B, slot, ask);
    }
}

fn chunk(first_seq: u64, last_seq: u64) -> Chunk {
    let mut frames = Vec::new();
    for seq in first_seq..=last_seq {
        let payload = format!("{{\"type\":\"new_message\",\"id\":\"old-{seq}\",\"seq\":{seq}}}");
        websocket::put_frame(&mut frames, Opcode::Text, &[payload.as_bytes()]);
    }
    Chunk { first_seq, last_seq, frames: frames.into() }
}

/// Whether the joiner is told to have recovered, and the `seq` of each event that it is sent.
fn recovery(turn: &Turn, n: usize) -> (Value, Vec<u64>) {
    let Answer::Subscribed { online, missed, .. } = turn.answer(n) else { panic!("{:?}", turn.answer(n)) };
    let recovered = payloads(&online.plain)[0]["recovered"].clone();
    let missed = missed.iter().flat_map(|missed| missed.iter()).flat_map(|frames| payloads(frames));
    (recovered, missed.map(|event| event["seq"].as_u64().unwrap()).collect())
}

#[test]
fn a_room_asks_the_store_where_it_stands_before_it_does_anything() {
    let mut stored = Stored::new(Limits::default());
    stored.world.join(A, 1, "ana");
    stored.world.publish(message("m", 1));
    assert_eq!(stored.jobs().len(), 1);
    assert_eq!(stored.world.turn().replies.len(), 0);
    stored.found(Found::Position { last_seq: 41 });
    let turn = stored.world.turn();
    assert_eq!((turn.online(0)["seq"].as_u64(), turn.replies.len()), (Some(41), 1));
    assert!(!stored.world.room.is_dead(Now { tick_ms: 1 << 40, wall_ms: 0 }), "a verdict is awaited");
    stored.decided(Verdict::New { seq: 42 });
    let turn = stored.world.turn();
    assert_eq!(turn.told(), "new_message #42");
    assert!(matches!(turn.answer(0), Answer::Published { seq: 42, connections: 1, .. }));
    let mut stored = Stored::new(Limits::default());
    stored.world.join(A, 1, "ana");
    stored.world.ask(B, 0, RoomAsk::Fence);
    stored.jobs();
    stored.found(Found::Failed);
    let turn = stored.world.turn();
    assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::Unavailable)));
    assert!(matches!(turn.answer(1), Answer::Done));
    assert!(stored.world.room.is_dead(Now { tick_ms: 0, wall_ms: 0 }));
}

#[test]
fn each_verdict_has_its_answer() {
    let mut stored = Stored::known(0);
    for id in ["a", "a", "b", "c", "d"] {
        stored.world.publish(message(id, 1));
    }
    let outcome = Outcome { id: Id::from_text("a"), seq: 1, timestamp: "5".into() };
    let refused = Verdict::Refused(ErrorCode::Conflict);
    for verdict in [Verdict::New { seq: 1 }, Verdict::Same(outcome), refused, Verdict::Unchanged, Verdict::Done] {
        stored.decided(verdict);
    }
    let turn = stored.world.turn();
    assert_eq!(turn.told(), "new_message #1");
    assert!(matches!(turn.answer(0), Answer::Published { seq: 1, replayed: false, .. }));
    assert!(matches!(turn.answer(1), Answer::Published { seq: 1, replayed: true, .. }));
    assert!(matches!(turn.answer(2), Answer::Refused(ErrorCode::Conflict)));
    assert!(matches!(turn.answer(3), Answer::Changed { seq: None, .. }));
    assert!(matches!(turn.answer(4), Answer::Changed { seq: None, .. }));
}

#[test]
fn what_is_under_way_to_the_store_is_bounded() {
    let mut stored = Stored::new(Limits { store_writes_max: 2, burst_bytes_max: 1 << 20, ..Limits::default() });
    stored.world.join(A, 1, "ana");
    stored.jobs();
    stored.found(Found::Position { last_seq: 0 });
    stored.world.turn();
    (0..3).for_each(|n| stored.world.publish(message(&n.to_string(), 1)));
    let turn = stored.world.turn();
    assert!(matches!(turn.answer(0), Answer::Refused(ErrorCode::Overloaded)));
    assert_eq!(turn.replies.len(), 1);
    stored.decided(Verdict::New { seq: 1 });
    stored.decided(Verdict::New { seq: 2 });
    assert_eq!(stored.world.turn().told(), "new_message #1, new_message #2");
}

#[test]
fn who_comes_back_gets_what_was_missed_from_memory() {
    let mut stored = Stored::known(10);
    (11..=14).for_each(|seq| stored.post(&seq.to_string(), seq));
    stored.come_back(1, 12, "e1");
    stored.come_back(2, 14, "e1");
    stored.come_back(3, 12, "other");
    stored.come_back(4, 15, "e1");
    let turn = stored.world.turn();
    // The posts were answered first.
    assert_eq!(recovery(&turn, 4), (json!(true), vec![13, 14]));
    assert_eq!(recovery(&turn, 5), (json!(true), vec![]));
    assert_eq!(recovery(&turn, 6), (json!(false), vec![]));
    assert_eq!(recovery(&turn, 7), (json!(false), vec![]));
    assert!(stored.jobs().is_empty(), "nothing was read");
}

#[test]
fn what_memory_lacks_comes_from_the_store() {
    let mut stored = Stored::known(10);
    stored.post("x", 11);
    stored.world.turn();
    stored.come_back(1, 8, "e1");
    stored.come_back(2, 9, "e1");
    let [Job::Read(Asker::Room(0), Lookup::Events { after: 8, to: 10, .. })] = stored.jobs()[..] else { panic!() };
    stored.post("y", 12);
    assert_eq!(stored.world.turn().told(), "new_message #12");
    stored.found(Found::Events(vec![chunk(9, 9), chunk(10, 10)]));
    let turn = stored.world.turn();
    assert_eq!(recovery(&turn, 0), (json!(true), vec![9, 10, 11, 12]));
    assert_eq!(recovery(&turn, 1), (json!(true), vec![10, 11, 12]));
    stored.come_back(3, 8, "e1");
    assert_eq!(recovery(&stored.world.turn(), 0).1, [9, 10, 11, 12], "it is in memory now");
    assert!(stored.jobs().is_empty());
}

#[test]
fn what_the_store_lacks_is_not_recovered() {
    let mut stored = Stored::known(10);
    for found in [Found::Events(vec![chunk(9, 10)]), Found::Events(vec![]), Found::Failed] {
        stored.world.room.history.clear();
        stored.come_back(1, 3, "e1");
        assert_eq!(stored.jobs().len(), 1);
        stored.found(found);
        assert_eq!(recovery(&stored.world.turn(), 0), (json!(false), vec![]));
        stored.world.leave(B, 1, "ben");
        stored.world.turn();
    }
    let mut stored = Stored::known(5_000);
    stored.come_back(1, 10, "e1");
    assert!(stored.jobs().is_empty(), "more than is ever sent");
    assert_eq!(recovery(&stored.world.turn(), 0), (json!(false), vec![]));
}

#[test]
fn a_commit_whose_answer_was_lost_is_told_before_what_follows() {
    let mut stored = Stored::known(10);
    stored.world.publish(message("lost", 1));
    stored.decided(Verdict::Refused(ErrorCode::Unavailable));
    stored.world.publish(message("next", 1));
    stored.decided(Verdict::New { seq: 12 });
    stored.world.publish(message("lost", 1));
    let outcome = Outcome { id: Id::from_text("lost"), seq: 11, timestamp: "5".into() };
    stored.decided(Verdict::Same(outcome));
    let turn = stored.world.turn();
    assert_eq!((turn.told().as_str(), turn.replies.len()), ("", 1));
    stored.world.desk.note_found();
    stored.world.run(|room, cx| room.handle_found(cx, Found::Failed));
    assert!(stored.jobs().is_empty(), "not at once again");
    stored.world.tick_ms += 1_000;
    stored.world.run(|room, cx| room.handle_timeout(cx));
    let [Job::Read(_, Lookup::Events { after: 10, to: 11, .. })] = stored.jobs()[..] else { panic!() };
    stored.found(Found::Events(vec![chunk(11, 11)]));
    let turn = stored.world.turn();
    assert_eq!(turn.told(), "new_message #11, new_message #12");
    assert!(matches!(turn.answer(0), Answer::Published { seq: 12, replayed: false, .. }));
    assert!(matches!(turn.answer(1), Answer::Published { seq: 11, replayed: true, .. }));
    stored.come_back(1, 10, "e1");
    assert_eq!(recovery(&stored.world.turn(), 0), (json!(true), vec![11, 12]));
}

#[test]
fn what_is_deleted_is_gone_from_memory_at_once() {
    let mut stored = Stored::known(0);
    stored.post("m", 1);
    let (by, prefix) = (Actor::Service, b"{\"type\":\"message_deleted\"".to_vec());
    stored.world.publish(Durable { by, prefix, action: Action::Delete { message: Id::from_text("m").unwrap() } });
    stored.decided(Verdict::New { seq: 2 });
    assert_eq!(stored.world.turn().told(), "new_message #1, message_deleted #2");
    stored.come_back(1, 0, "e1");
    let turn = stored.world.turn();
    let Answer::Subscribed { missed: Some(missed), .. } = turn.answer(0) else { panic!() };
    assert_eq!(payloads(&missed[0])[0]["deleted"], true);
}

fn delete(id: &str) -> Durable {
    let prefix = format!("{{\"type\":\"message_deleted\",\"id\":\"{id}\"").into_bytes();
    Durable { by: Actor::Service, prefix, action: Action::Delete { message: Id::from_text(id).unwrap() } }
}

/// What the joiner is sent that it has missed.
fn missed(turn: &Turn, n: usize) -> Vec<Value> {
    let Answer::Subscribed { missed: Some(missed), .. } = turn.answer(n) else { panic!("{:?}", turn.answer(n)) };
    missed.iter().flat_map(|frames| payloads(frames)).collect()
}

#[test]
fn a_retry_of_what_was_kept_unheard_is_answered_behind_its_event() {
    let mut stored = Stored::known(10);
    stored.world.publish(message("lost", 1));
    stored.decided(Verdict::Refused(ErrorCode::Unavailable));
    stored.world.publish(message("lost", 1));
    let outcome = Outcome { id: Id::from_text("lost"), seq: 11, timestamp: "5".into() };
    stored.decided(Verdict::Same(outcome));
    let [Job::Read(_, Lookup::Events { after: 10, to: 11, .. })] = stored.jobs()[..] else { panic!() };
    stored.found(Found::Events(vec![chunk(11, 11)]));
    let turn = stored.world.turn();
    assert_eq!(turn.told(), "new_message #11");
    assert!(matches!(turn.answer(1), Answer::Published { seq: 11, replayed: true, .. }));
}

#[test]
fn what_was_read_before_a_deletion_is_erased_when_it_comes() {
    let mut stored = Stored::known(10);
    stored.come_back(1, 8, "e1");
    assert_eq!(stored.jobs().len(), 1);
    stored.world.publish(delete("old-9"));
    stored.decided(Verdict::New { seq: 11 });
    assert_eq!(stored.world.turn().told(), "message_deleted #11");
    stored.found(Found::Events(vec![chunk(9, 10)]));
    let told = missed(&stored.world.turn(), 0);
    assert_eq!((&told[0]["seq"], &told[0]["deleted"]), (&json!(9), &json!(true)));
    assert_eq!((&told[1]["seq"], &told[1]["deleted"]), (&json!(10), &Value::Null));
}

#[test]
fn what_a_deletion_in_a_gap_deletes_is_erased() {
    let mut stored = Stored::known(10);
    stored.post("m", 11);
    stored.world.publish(delete("m"));
    stored.decided(Verdict::Refused(ErrorCode::Unavailable));
    stored.world.publish(message("next", 1));
    stored.decided(Verdict::New { seq: 13 });
    let mut frames = Vec::new();
    let deletion: &[u8] = br#"{"type":"message_deleted","id":"m","seq":12}"#;
    websocket::put_frame(&mut frames, Opcode::Text, &[deletion]);
    stored.found(Found::Events(vec![Chunk { first_seq: 12, last_seq: 12, frames: frames.into() }]));
    stored.world.turn();
    stored.come_back(1, 10, "e1");
    let told = missed(&stored.world.turn(), 0);
    assert_eq!((&told[0]["seq"], &told[0]["deleted"]), (&json!(11), &json!(true)));
}

#[test]
fn receipts_are_told_once_a_second_and_in_large_rooms_to_the_reader() {
    let mut stored = Stored::known(9);
    let read = |stored: &mut Stored, seq| {
        let action = Action::MarkRead { user: Id::from_text("ana").unwrap(), seq };
        stored.world.publish(Durable { by: Actor::Service, prefix: Vec::new(), action });
        stored.decided(Verdict::Done);
    };
    for seq in 3..6 {
        read(&mut stored, seq);
    }
    let turn = stored.world.turn();
    assert_eq!((turn.events.len(), &turn.events[0].0["seq"]), (1, &json!(3)));
    let turn = stored.world.later(1_000);
    assert_eq!((turn.told().as_str(), &turn.events[0].0["seq"]), ("read_receipt ana", &json!(5)));
    assert_eq!(stored.world.later(1_000).told(), "");
    assert_eq!(stored.world.room.next_deadline_ms(), None, "nothing is left of it");
    stored.world.room.large = true;
    read(&mut stored, 8);
    let frozen = stored.world.run(|room, cx| room.freeze(cx));
    assert!(frozen.segments.is_empty());
    let [(A, reader, frames)] = &frozen.to_users[..] else { panic!("{:?}", frozen.to_users) };
    assert_eq!((reader, &payloads(&frames.plain)[0]["seq"]), (&user("ana"), &json!(8)));
}

#[test]
fn a_removed_room_says_so_last_and_has_nobody_behind_it() {
    let mut stored = Stored::known(3);
    stored.post("m", 4);
    stored.world.turn();
    stored.world.publish(Durable { by: Actor::Service, prefix: Vec::new(), action: Action::RemoveRoom });
    stored.decided(Verdict::Done);
    stored.post("n", 5);
    let frozen = stored.world.run(|room, cx| room.freeze(cx));
    assert!(frozen.ends && frozen.to == [A]);
    let last = payloads(&frozen.segments.last().unwrap().frames.plain);
    assert_eq!(last.last().unwrap()["type"], "removed_from_room");
}

#[test]
fn an_idle_room_is_small() {
    assert!(size_of::<Room>() <= 488, "{}", size_of::<Room>());
}

#[test]
fn what_was_kept_though_it_was_refused_is_told_without_a_retry() {
    let mut stored = Stored::known(10);
    stored.world.publish(message("lost", 1));
    stored.decided(Verdict::Refused(ErrorCode::Unavailable));
    stored.world.turn();
    assert_eq!(stored.world.room.next_deadline_ms(), Some(1_000));
    for found in [Found::Failed, Found::Position { last_seq: 11 }] {
        stored.world.tick_ms += 1_000;
        stored.world.run(|room, cx| room.handle_timeout(cx));
        assert!(matches!(stored.jobs()[..], [Job::Read(_, Lookup::Position(_))]));
        stored.found(found);
        stored.world.turn();
    }
    let [Job::Read(_, Lookup::Events { after: 10, to: 11, .. })] = stored.jobs()[..] else { panic!() };
    stored.found(Found::Events(vec![chunk(11, 11)]));
    assert_eq!(stored.world.turn().told(), "new_message #11");
    assert_eq!(stored.world.room.next_deadline_ms(), None);
}
