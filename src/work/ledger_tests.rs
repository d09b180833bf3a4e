//! What becomes of each kind of write, as tables; and what the tests of the store share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::database::Database;
use super::ledger::Ledger;
use super::reader::find_on;
use crate::access::Level;
use crate::chat::ids::RoomName;
use crate::chat::store::{Action, Actor, Change, Found, Lookup, Outcome, Post, StoreFacts, Verdict, Write};
use crate::config::{Limits, Store};
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;

pub(super) const AT_MS: u64 = 1_700_000_000_000;

/// A store in memory.
pub(super) struct World {
    pub ledger: Ledger,
    pub facts: StoreFacts,
}

pub(super) fn world() -> World {
    world_with(&Limits::default())
}

pub(super) fn world_with(limits: &Limits) -> World {
    let database = Database::open(&Store::Memory).unwrap();
    World { ledger: Ledger::new(database.writer().unwrap(), limits), facts: database.facts() }
}

impl World {
    pub fn write(&mut self, write: Write) -> Verdict {
        self.ledger.commit(&[Arc::new(write)]).unwrap().remove(0)
    }

    pub fn find(&self, lookup: Lookup) -> Found {
        find_on(self.ledger.connection(), &self.facts, &lookup)
    }

    pub fn json(&self, lookup: Lookup) -> Value {
        json_of(&self.find(lookup))
    }

    pub fn page(&self, room: &str) -> Value {
        self.json(Lookup::Page { room: name(room), before: None, after: None, limit: 1_000 })
    }
}

pub(super) fn json_of(found: &Found) -> Value {
    match found {
        Found::Json(body) | Found::Feed { body, .. } => serde_json::from_slice(body).unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn name(room: &str) -> RoomName {
    RoomName::new(room, room.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into())))
}

pub(super) fn raw(text: &str) -> Id {
    Id::parse_raw(text).or_else(|| Id::from_text(text)).unwrap()
}

pub(super) fn user(id: &str) -> Actor {
    Actor::User(raw(id))
}

fn prefix(room: &str, kind: &str, members: &[(&str, Value)]) -> Vec<u8> {
    let mut out = format!("{{\"type\":{},\"roomId\":{}", json!(kind), json!(room));
    for (key, value) in members {
        out.push_str(&format!(",{}:{value}", json!(key)));
    }
    out.into_bytes()
}

fn id_json(id: &str) -> Value {
    let mut out = Vec::new();
    raw(id).put_json(&mut out);
    serde_json::from_slice(&out).unwrap()
}

pub(super) fn change(room: &str, by: Actor, prefix: Vec<u8>, action: Action) -> Write {
    Write { room: name(room), at_ms: AT_MS, change: Change { by, prefix, action } }
}

/// A message with a given id; its digest is made of its content.
pub(super) fn post(room: &str, id: &str, content: &str, sender: Option<&str>) -> Write {
    let sender_json = sender.map_or(Value::Null, id_json);
    let members = [("id", id_json(id)), ("content", json!(content)), ("sender_user_id", sender_json)];
    let post = Post {
        id: raw(id),
        id_given: true,
        idempotency_key: None,
        digest: content.bytes().fold(1, |digest: u128, byte| digest.wrapping_mul(257).wrapping_add(byte.into())),
        timestamp: None,
        sender: sender.map(raw),
        author: None,
    };
    change(room, Actor::Service, prefix(room, "new_message", &members), Action::Post(post))
}

pub(super) fn posted(write: &mut Write) -> &mut Post {
    match &mut write.change.action {
        Action::Post(post) => post,
        other => panic!("{other:?}"),
    }
}

pub(super) fn edit(room: &str, by: Actor, id: &str, content: &str) -> Write {
    let members = [("id", id_json(id)), ("content", json!(content)), ("edited", json!(true)), ("userId", json!("u"))];
    let fields = format!("\"content\":{}", json!(content)).into_bytes();
    change(room, by, prefix(room, "message_updated", &members), Action::Edit { message: raw(id), fields })
}

pub(super) fn delete(room: &str, by: Actor, id: &str) -> Write {
    let members = [("id", id_json(id)), ("userId", json!("u"))];
    change(room, by, prefix(room, "message_deleted", &members), Action::Delete { message: raw(id) })
}

pub(super) fn react(room: &str, id: &str, emoji: &str, who: &str, repeats: bool) -> Write {
    let members = [("messageId", id_json(id)), ("emoji", json!(emoji)), ("userId", id_json(who))];
    let action = Action::React { message: raw(id), emoji: emoji.into(), user: raw(who), repeats };
    change(room, user(who), prefix(room, "reaction", &members), action)
}

pub(super) fn unreact(room: &str, id: &str, emoji: &str, who: &str) -> Write {
    let members = [("messageId", id_json(id)), ("emoji", json!(emoji)), ("userId", id_json(who))];
    let action = Action::Unreact { message: raw(id), emoji: emoji.into(), user: raw(who) };
    change(room, user(who), prefix(room, "reaction_removed", &members), action)
}

pub(super) fn mark(room: &str, who: &str, seq: u64) -> Write {
    change(room, user(who), Vec::new(), Action::MarkRead { user: raw(who), seq })
}

pub(super) fn forget(room: &str, who: &str) -> Write {
    change(room, Actor::Service, Vec::new(), Action::ForgetReader { user: raw(who) })
}

pub(super) fn set_member(room: &str, who: &str, level: Level, version: Option<u64>) -> Write {
    let action = Action::SetMember { user: raw(who), level, version };
    change(room, Actor::Service, Vec::new(), action)
}

pub(super) fn replace_members(room: &str, members: Vec<(Id, Level)>, version: Option<u64>) -> Write {
    change(room, Actor::Service, Vec::new(), Action::ReplaceMembers { members, version })
}

pub(super) fn remove(room: &str) -> Write {
    change(room, Actor::Service, Vec::new(), Action::RemoveRoom)
}

pub(super) fn new(seq: u64) -> Verdict {
    Verdict::New { seq }
}

const NOT_FOUND: Verdict = Verdict::Refused(ErrorCode::NotFound);
const FORBIDDEN: Verdict = Verdict::Refused(ErrorCode::Forbidden);
const CONFLICT: Verdict = Verdict::Refused(ErrorCode::Conflict);

fn check(table: Vec<(Write, Verdict)>) {
    // One by one, and as one batch: the verdicts are the same.
    let (writes, expected): (Vec<_>, Vec<_>) =
        table.into_iter().map(|(write, verdict)| (Arc::new(write), verdict)).unzip();
    let mut single = world();
    for (index, (write, expected)) in writes.iter().zip(&expected).enumerate() {
        let verdict = single.ledger.commit(std::slice::from_ref(write)).unwrap();
        assert_eq!(verdict, std::slice::from_ref(expected), "{index}: {write:?}");
    }
    let mut batch = world();
    assert_eq!(batch.ledger.commit(&writes).unwrap(), expected);
    let new = expected.iter().filter(|verdict| matches!(verdict, Verdict::New { .. })).count() as u64;
    assert_eq!((single.ledger.last_position().unwrap(), batch.ledger.last_position().unwrap()), (new, new));
}

fn keyed(mut write: Write, given: bool, key: Option<&str>) -> Write {
    let post = posted(&mut write);
    (post.id_given, post.idempotency_key) = (given, key.map(Box::from));
    write
}

fn same(id: &str, seq: u64) -> Verdict {
    Verdict::Same(Outcome { id: Some(raw(id)), seq, timestamp: AT_MS.to_string().into() })
}

#[test]
fn what_a_retry_is() {
    let p = |id: &str, content: &str, given, key| keyed(post("r", id, content, None), given, key);
    check(vec![
        (p("a", "1", true, None), new(1)),
        (p("made", "2", false, Some("k")), new(2)),
        (p("b", "3", true, Some("l")), new(3)),
        (p("7", "4", true, None), new(4)),
        (p("a", "1", true, None), same("a", 1)),
        (p("a", "1", true, Some("new")), same("a", 1)),
        (p("a", "9", true, None), CONFLICT),
        (p("other", "2", false, Some("k")), same("made", 2)),
        (p("other", "9", false, Some("k")), CONFLICT),
        (p("made", "9", true, None), CONFLICT),
        (p("made", "2", true, None), same("made", 2)),
        (p("b", "3", true, Some("l")), same("b", 3)),
        (p("b", "3", true, Some("k")), CONFLICT),
        (p("c", "9", true, Some("l")), CONFLICT),
        (p("\"7\"", "4", true, None), same("7", 4)),
        (p("k", "1", true, Some("a")), new(5)),
        (keyed(post("elsewhere", "a", "9", None), true, Some("k")), new(1)),
        // An id that was made here and is there already harms nobody else.
        (p("a", "1", false, None), CONFLICT),
        (p("d", "5", true, None), new(6)),
    ]);
}

#[test]
fn a_retry_is_told_what_the_first_was_told() {
    let mut world = world();
    let mut first = post("r", "7", "x", Some("5"));
    first.change.prefix.extend_from_slice(b",\"timestamp\":\"2026-01-01T00:00:00Z\"");
    posted(&mut first).timestamp = Some("\"2026-01-01T00:00:00Z\"".into());
    let mut again = post("r", "\"7\"", "x", Some("5"));
    again.at_ms += 5;
    assert_eq!(world.write(first), new(1));
    for write in [edit("r", Actor::Service, "7", "y"), delete("r", Actor::Service, "7")] {
        assert!(matches!(world.write(write), Verdict::New { .. }));
        let mut retry = post("r", "\"7\"", "x", Some("5"));
        retry.at_ms = again.at_ms;
        let Verdict::Same(outcome) = world.write(retry) else { panic!() };
        assert!(outcome.id.as_ref().is_some_and(Id::is_numeric));
        assert_eq!((outcome.seq, &*outcome.timestamp), (1, "\"2026-01-01T00:00:00Z\""));
    }
}

#[test]
fn keys_are_forgotten_in_time() {
    let mut world = world_with(&Limits { store_idempotency_ms: 1_000, ..Limits::default() });
    let at = |id: &str, ms: u64| Write { at_ms: AT_MS + ms, ..keyed(post("r", id, "x", None), false, Some("k")) };
    assert_eq!(world.write(at("a", 0)), new(1));
    assert_eq!(world.write(at("b", 999)), same("a", 1));
    assert_eq!(world.write(at("c", 1_000)), new(2));
    assert!(matches!(world.write(at("d", 1_500)), Verdict::Same(outcome) if outcome.seq == 2));
    assert_eq!(world.write(keyed(post("r", "a", "x", None), true, None)), same("a", 1));
}

#[test]
fn who_may_edit_and_delete() {
    check(vec![
        (edit("r", user("1"), "a", "x"), NOT_FOUND),
        (delete("r", Actor::Moderator(raw("9")), "a"), NOT_FOUND),
        (post("r", "a", "x", Some("1")), new(1)),
        (post("r", "free", "x", None), new(2)),
        (edit("r", user("2"), "a", "y"), FORBIDDEN),
        (edit("r", user("1"), "free", "y"), FORBIDDEN),
        (delete("r", user("2"), "a"), FORBIDDEN),
        (edit("r", user("\"1\""), "a", "y"), new(3)),
        (edit("r", user("1"), "a", "y"), Verdict::Unchanged),
        (edit("r", Actor::Moderator(raw("9")), "a", "z"), new(4)),
        (edit("r", Actor::Service, "a", "x"), new(5)),
        (delete("r", user("1"), "a"), new(6)),
        (delete("r", user("1"), "a"), Verdict::Unchanged),
        (delete("r", Actor::Service, "a"), Verdict::Unchanged),
        (edit("r", Actor::Service, "a", "y"), NOT_FOUND),
        (edit("r", user("1"), "a", "y"), NOT_FOUND),
        (post("r", "a", "x", Some("1")), same("a", 1)),
        (post("r", "a", "other", Some("1")), CONFLICT),
        (delete("r", Actor::Moderator(raw("9")), "free"), new(7)),
        (edit("r", Actor::Service, "unseen", "y"), new(8)),
        (delete("r", Actor::Service, "unseen"), new(9)),
        (edit("fresh", Actor::Service, "unseen", "y"), new(1)),
    ]);
}

#[test]
fn reactions() {
    check(vec![
        (unreact("r", "a", "+", "1"), Verdict::Unchanged),
        (react("r", "a", "+", "1", false), new(1)),
        (react("r", "a", "+", "\"1\"", false), Verdict::Unchanged),
        (react("r", "a", "+", "1", true), new(2)),
        (post("r", "a", "x", None), new(3)),
        (react("r", "a", "+", "2", false), new(4)),
        (react("r", "a", "-", "2", false), new(5)),
        (unreact("r", "a", "+", "2"), new(6)),
        (unreact("r", "a", "+", "2"), Verdict::Unchanged),
        (react("r", "a", "+", "2", false), new(7)),
        (delete("r", Actor::Service, "a"), new(8)),
        (react("r", "a", "+", "2", false), NOT_FOUND),
        (react("r", "a", "+", "2", true), NOT_FOUND),
        (unreact("r", "a", "+", "2"), Verdict::Unchanged),
    ]);
}

#[test]
fn marks_only_move_forward() {
    check(vec![
        (mark("r", "1", 1), NOT_FOUND),
        (post("r", "a", "x", None), new(1)),
        (react("r", "a", "+", "1", false), new(2)),
        (post("r", "b", "x", None), new(3)),
        (mark("r", "1", 2), NOT_FOUND),
        (mark("r", "1", 4), NOT_FOUND),
        (mark("r", "1", u64::MAX), NOT_FOUND),
        (mark("r", "1", 0), NOT_FOUND),
        (mark("r", "1", 1), Verdict::Done),
        (mark("r", "1", 1), Verdict::Unchanged),
        (mark("r", "1", 3), Verdict::Done),
        (mark("r", "1", 1), Verdict::Unchanged),
        (forget("r", "1"), Verdict::Done),
        (forget("nowhere", "1"), Verdict::Done),
        (mark("r", "1", 1), Verdict::Done),
    ]);
}

#[test]
fn a_removed_room_keeps_its_position_only() {
    check(vec![
        (remove("r"), Verdict::Done),
        (keyed(post("r", "a", "x", Some("1")), true, Some("k")), new(1)),
        (react("r", "a", "+", "1", false), new(2)),
        (mark("r", "1", 1), Verdict::Done),
        (remove("r"), Verdict::Done),
        (mark("r", "1", 1), NOT_FOUND),
        (edit("r", user("1"), "a", "y"), NOT_FOUND),
        (react("r", "a", "+", "1", false), new(3)),
        (keyed(post("r", "a", "other", Some("1")), true, Some("k")), new(4)),
        (mark("r", "1", 4), Verdict::Done),
        (remove("r"), Verdict::Done),
        (remove("r"), Verdict::Done),
        (post("r", "a", "x", Some("1")), new(5)),
    ]);
}

#[test]
fn a_deletion_leaves_no_content() {
    let mut world = world();
    for write in [
        post("r", "a", "secret-1", Some("1")),
        edit("r", user("1"), "a", "secret-2"),
        edit("r", user("1"), "a", "secret-3"),
        react("r", "a", "+", "2", false),
        post("r", "b", "kept", Some("1")),
        edit("r", user("1"), "b", "kept"),
        delete("r", user("1"), "a"),
    ] {
        world.write(write);
    }
    let Found::Events(chunks) = world.find(Lookup::Events { room: name("r"), after: 0, to: 6, bytes_max: 10_000 })
    else {
        panic!()
    };
    let frames: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.frames.iter().copied()).collect();
    let feed = world.json(Lookup::Feed { after: None, limit: 100 }).to_string();
    let page = world.page("r");
    for text in [String::from_utf8_lossy(&frames).into_owned(), feed, page.to_string()] {
        assert!(!text.contains("secret") && text.contains("kept"), "{text}");
        assert!(text.contains("\"deleted\":true"), "{text}");
    }
    let expected = json!({"type": "new_message", "roomId": "r", "id": "a", "timestamp": AT_MS, "sender_user_id": 1,
        "seq": 1, "deleted": true, "edited": false, "editedAt": null, "reactionSummary": []});
    assert_eq!(page["messages"][0], expected);
}

#[test]
fn a_batch_that_fails_leaves_nothing() {
    let database = Database::open(&Store::Memory).unwrap();
    let mut connection = database.writer().unwrap();
    let is_cut = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&is_cut);
    connection.progress_handler(1, Some(move || cut.load(Ordering::Relaxed))).unwrap();
    let mut ledger = Ledger::new(connection, &Limits::default());
    let commit = |ledger: &mut Ledger, ids: &[&str]| {
        let writes: Vec<_> = ids.iter().map(|id| Arc::new(post("r", id, "x", Some("1")))).collect();
        ledger.commit(&writes)
    };
    assert_eq!(commit(&mut ledger, &["a", "b"]).unwrap(), [new(1), new(2)]);
    ledger.connection().pragma_update(None, "max_page_count", 1).unwrap();
    let large: Vec<_> = (0..2_000).map(|n| Arc::new(post("r", &format!("n{n}"), &"x".repeat(99), None))).collect();
    let error = ledger.commit(&large).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
    ledger.connection().pragma_update(None, "max_page_count", 1_000_000).unwrap();
    assert_eq!(ledger.last_position().unwrap(), 2);
    assert_eq!(commit(&mut ledger, &["c", "a", "c"]).unwrap(), [new(3), same("a", 1), same("c", 3)]);
    is_cut.store(true, Ordering::Relaxed);
    assert!(commit(&mut ledger, &["d"]).is_err());
    is_cut.store(false, Ordering::Relaxed);
    assert_eq!(commit(&mut ledger, &["d", "a"]).unwrap(), [new(4), same("a", 1)]);
}

#[test]
fn a_commit_whose_answer_is_lost() {
    let mut world = world();
    let writes = [Arc::new(post("r", "a", "x", None)), Arc::new(post("r", "a", "y", None))];
    assert_eq!(world.ledger.commit_and_lose_the_answer(&writes, true).unwrap(), [new(1), CONFLICT]);
    let more = [Arc::new(post("r", "b", "x", None))];
    assert!(world.ledger.commit_and_lose_the_answer(&more, false).is_err());
    assert_eq!(world.ledger.commit(&more).unwrap(), [new(2)]);
    let done = [Arc::new(mark("r", "1", 2))];
    assert!(world.ledger.commit_and_lose_the_answer(&done, false).is_err());
    assert_eq!(world.ledger.commit_and_lose_the_answer(&done, true).unwrap(), [Verdict::Done]);
    assert_eq!(world.ledger.commit(&done).unwrap(), [Verdict::Unchanged]);
}

#[test]
fn of_two_changes_of_a_membership_the_version_decides() {
    use Level::{Member, Nothing, Reader};
    let mut world = world();
    let (done, late) = (Verdict::Version, Verdict::Stale);
    for (level, version, verdict) in [
        (Member, None, done(1)),
        (Nothing, Some(9), done(9)),
        (Member, Some(8), late(9)),
        (Member, Some(9), late(9)),
        (Nothing, Some(9), done(9)),
        (Reader, None, done(10)),
        (Reader, Some(10), done(10)),
        (Member, Some(1 << 53), done(1 << 53)),
        (Nothing, None, late(1 << 53)),
    ] {
        assert_eq!(world.write(set_member("r", "1", level, version)), verdict, "{level:?} {version:?}");
    }
    // A revocation that comes first is remembered of somebody who was never a member.
    assert_eq!(world.write(set_member("s", "1", Nothing, Some(5))), done(5));
    assert_eq!(world.write(set_member("s", "1", Member, Some(4))), late(5));
    assert_eq!(world.write(set_member("s", "1", Member, Some(6))), done(6));
}

#[test]
fn replacing_the_members_is_newer_than_all_or_nothing() {
    use Level::{Member, Nothing, Reader};
    let mut world = world();
    let (done, late) = (Verdict::Version, Verdict::Stale);
    let all = || vec![(raw("1"), Member), (raw("2"), Reader)];
    world.write(set_member("r", "3", Nothing, Some(7)));
    assert_eq!(world.write(replace_members("r", all(), Some(6))), late(7), "somebody's is newer");
    assert_eq!(world.write(replace_members("r", all(), Some(8))), done(8));
    assert_eq!(world.write(replace_members("r", all(), Some(8))), done(8));
    assert_eq!(world.write(replace_members("r", vec![(raw("1"), Member)], Some(8))), late(8));
    assert_eq!(world.write(replace_members("r", vec![(raw("1"), Member), (raw("2"), Member)], Some(8))), late(8));
    // Who was not named is out as of then, known before or not.
    for who in ["3", "4"] {
        assert_eq!(world.write(set_member("r", who, Member, Some(7))), late(8), "{who}");
        assert_eq!(world.write(set_member("r", who, Member, Some(8))), late(8), "{who}");
        assert_eq!(world.write(set_member("r", who, Nothing, Some(8))), done(8), "{who}");
    }
    assert_eq!(world.write(replace_members("r", Vec::new(), None)), done(9));
    assert_eq!(world.write(set_member("r", "1", Member, Some(9))), late(9));
    // Also a room that was removed remembers it.
    assert_eq!(world.write(remove("r")), Verdict::Done);
    assert_eq!(world.write(set_member("r", "1", Member, Some(9))), late(9));
    assert_eq!(world.write(set_member("r", "1", Member, None)), done(10));
    let page = world.json(Lookup::Members { room: name("r"), after: None, limit: 9 });
    let one = json!({"userId": 1, "role": "member", "version": 10});
    assert_eq!(page, json!({"members": [one], "more": false, "next": null}));
}

#[test]
fn members_come_in_pages() {
    let mut world = world();
    let everybody = ["10", "\"ana\"", "2", "\"ben\""].map(|user| (raw(user), Level::Reader));
    world.write(replace_members("r", everybody.to_vec(), Some(3)));
    world.write(set_member("r", "\"ana\"", Level::Nothing, None));
    let (mut after, mut found) = (None, Vec::new());
    for more in [true, true, false] {
        let page = world.json(Lookup::Members { room: name("r"), after, limit: 1 });
        assert_eq!(page["more"], more, "{page}");
        found.push(page["members"][0]["userId"].clone());
        after = page["next"].as_str().map(Box::from);
    }
    assert_eq!(found, [json!(10), json!(2), json!("ben")]);
    let nobody = world.json(Lookup::Members { room: name("other"), after: None, limit: 1 });
    assert_eq!(nobody, json!({"members": [], "more": false, "next": null}));
}
