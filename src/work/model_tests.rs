//! Random operations against a model that keeps everything in lists, with batches that fail in every way.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::database::Database;
use super::database_tests::{Folder, open};
use super::ledger::Ledger;
use super::ledger_tests::*;
use super::reader::Reader;
use crate::access::Level;
use crate::chat::store::{Action, Actor, Found, Lookup, StoreFacts, Trace, TracePlace, Verdict, Write};
use crate::config::Limits;
use crate::wire::client::ErrorCode;
use crate::wire::value::Id;

const ROOMS: [&str; 2] = ["one", "two"];
const IDS: [&str; 4] = ["a", "b", "7", "\"7\""];
const USERS: [&str; 3] = ["1", "\"2\"", "3"];
const EMOJIS: [&str; 2] = ["+", "\u{1f600}"];
const KEYS: [Option<&str>; 4] = [None, None, Some("k"), Some("l")];

/// What a batch meets.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fine,
    /// A statement is interrupted after so many instructions.
    Interrupted(i64),
    DiskFull,
    AnswerLost {
        committed: bool,
    },
    /// It is fine, and then the process ends and another begins.
    Reopened,
}

#[derive(Clone, Debug)]
struct Op {
    kind: u8,
    room: usize,
    id: usize,
    user: usize,
    other: usize,
    flag: bool,
}

fn ops() -> impl Strategy<Value = Vec<(Fate, Vec<Op>)>> {
    let op = (0..20_u8, 0..2_usize, 0..4_usize, 0..3_usize, 0..4_usize, any::<bool>())
        .prop_map(|(kind, room, id, user, other, flag)| Op { kind, room, id, user, other, flag });
    let fate = prop_oneof![
        6 => Just(Fate::Fine),
        2 => (1..3_000_i64).prop_map(Fate::Interrupted),
        1 => Just(Fate::DiskFull),
        2 => any::<bool>().prop_map(|committed| Fate::AnswerLost { committed }),
        1 => Just(Fate::Reopened),
    ];
    prop::collection::vec((fate, prop::collection::vec(op, 1..12)), 1..12)
}

impl Op {
    fn write(&self, model: &Model, serial: usize) -> Write {
        let (room, id, user_id) = (ROOMS[self.room], IDS[self.id], USERS[self.user]);
        let content = ["x", "y"][usize::from(self.flag)];
        let by = match self.other {
            0 => Actor::Service,
            1 => Actor::Moderator(raw("9")),
            _ => user(user_id),
        };
        let emoji = EMOJIS[self.other % 2];
        match self.kind {
            0..4 => {
                let mut write = post(room, id, content, (self.other > 0).then_some(user_id));
                posted(&mut write).idempotency_key = KEYS[self.other].map(Box::from);
                write
            }
            4..6 => {
                let mut write = post(room, &format!("made-{serial}"), content, Some(user_id));
                posted(&mut write).id_given = false;
                posted(&mut write).idempotency_key = KEYS[self.other].map(Box::from);
                write
            }
            6..8 => edit(room, by, id, content),
            8 => delete(room, by, id),
            9..12 => react(room, id, emoji, user_id, self.flag),
            12 => unreact(room, id, emoji, user_id),
            13..15 => {
                let last = model.rooms[self.room].last_seq;
                mark(room, user_id, last.saturating_sub(self.other as u64))
            }
            15..18 => {
                let level = [Level::Nothing, Level::Reader, Level::Member][self.id % 3];
                let last = model.rooms[self.room].highest();
                let version = [None, Some(last + 1), Some(last.max(1)), Some((last + 5).div_ceil(2))][self.other];
                set_member(room, user_id, level, version)
            }
            18 => {
                let members = USERS[..self.user].iter().map(|user| (raw(user), Level::Member)).collect();
                let last = model.rooms[self.room].highest();
                replace_members(room, members, [None, Some(last + 1), Some(last.max(1)), Some(1)][self.other])
            }
            _ if self.flag => forget(room, user_id),
            _ if self.other == 0 => remove(room),
            _ => unreact(room, id, emoji, user_id),
        }
    }
}

#[derive(Clone, Default)]
struct Model {
    rooms: [Room; 2],
    /// Room and `seq` of every event, in the order of commits.
    feed: Vec<(usize, u64)>,
    trimmed: u64,
}

#[derive(Clone, Default)]
struct Room {
    first_seq: u64,
    last_seq: u64,
    events: Vec<Event>,
    reactions: Vec<(Id, String, Id, u64)>,
    /// User, and the `seq` read.
    readers: Vec<(Id, u64)>,
    keys: Vec<(String, u64)>,
    members: Vec<(Id, Level, u64)>,
    /// The version of those who are not among them.
    replaced: u64,
}

#[derive(Clone)]
struct Event {
    seq: u64,
    position: u64,
    /// Which message it is, or is about in an update.
    id: Option<Id>,
    is_message: bool,
    sender: Option<Id>,
    digest: u128,
    body: Value,
    current: Value,
    is_deleted: bool,
}

impl Model {
    fn apply(&mut self, write: &Write) -> Verdict {
        let index = ROOMS.iter().position(|room| *room == write.room.text()).unwrap();
        let room = &mut self.rooms[index];
        let before = room.last_seq;
        let verdict = room.decide(write, self.feed.len() as u64 + 1);
        if room.last_seq > before {
            self.feed.push((index, room.last_seq));
        }
        if matches!(write.change.action, Action::RemoveRoom) {
            self.trimmed = self.trimmed.max(room.events.iter().map(|event| event.position).max().unwrap_or(0));
            let replaced = room.highest();
            *room = Room { first_seq: room.last_seq + 1, last_seq: room.last_seq, replaced, ..Room::default() };
        }
        verdict
    }
}

impl Room {
    /// The highest version of a membership.
    fn highest(&self) -> u64 {
        self.members.iter().map(|member| member.2).max().unwrap_or(0).max(self.replaced)
    }

    fn member(&self, user: &Id) -> (Level, u64) {
        let found = self.members.iter().find(|member| member.0 == *user);
        found.map_or((Level::Nothing, self.replaced), |member| (member.1, member.2))
    }

    fn message(&self, id: &Id) -> Option<usize> {
        self.events.iter().position(|event| event.is_message && event.id.as_ref() == Some(id))
    }

    fn emit(&mut self, write: &Write, position: u64, id: Option<&Id>) -> &mut Event {
        self.last_seq += 1;
        let mut body = write.change.prefix.clone();
        write.finish(&mut body, self.last_seq);
        let body: Value = serde_json::from_slice(&body).unwrap();
        self.events.push(Event {
            seq: self.last_seq,
            position,
            id: id.cloned(),
            is_message: false,
            sender: None,
            digest: 0,
            current: body.clone(),
            body,
            is_deleted: false,
        });
        self.events.last_mut().unwrap()
    }

    fn take_part(&mut self, user: &Id) {
        if !self.readers.iter().any(|(reader, _)| reader == user) {
            self.readers.push((user.clone(), 0));
        }
    }

    fn decide(&mut self, write: &Write, position: u64) -> Verdict {
        let refused = Verdict::Refused;
        let may = |event: &Event| match &write.change.by {
            Actor::User(user) => event.sender.as_ref() == Some(user),
            _ => true,
        };
        match &write.change.action {
            Action::Post(post) => {
                let by_id = self.message(&post.id).filter(|_| post.id_given);
                let key = post.idempotency_key.as_deref();
                let by_key = key.and_then(|key| self.keys.iter().find(|(known, _)| known == key));
                let by_key = by_key.map(|(_, seq)| self.events.iter().position(|event| event.seq == *seq).unwrap());
                let found: Vec<&Event> = [by_id, by_key].iter().flatten().map(|&at| &self.events[at]).collect();
                if let Some(first) = found.first() {
                    if found.iter().any(|event| event.digest != post.digest) {
                        return refused(ErrorCode::Conflict);
                    }
                    let id = raw(&first.body["id"].to_string());
                    let timestamp = first.body["timestamp"].to_string().into();
                    return Verdict::Same(crate::chat::store::Outcome { id: Some(id), seq: first.seq, timestamp });
                }
                let event = self.emit(write, position, Some(&post.id));
                (event.is_message, event.digest, event.sender) = (true, post.digest, post.sender.clone());
                post.sender.iter().for_each(|sender| self.take_part(sender));
                self.keys.extend(key.map(|key| (key.to_owned(), self.last_seq)));
                new(self.last_seq)
            }
            Action::Edit { message, fields } => {
                match self.message(message) {
                    None if write.change.by != Actor::Service => return refused(ErrorCode::NotFound),
                    None => {}
                    Some(at) => {
                        let event = &mut self.events[at];
                        if event.is_deleted {
                            return refused(ErrorCode::NotFound);
                        }
                        if !may(event) {
                            return refused(ErrorCode::Forbidden);
                        }
                        let fields = format!("{{{}}}", String::from_utf8_lossy(fields));
                        let fields: Value = serde_json::from_str(&fields).unwrap();
                        if event.current["content"] == fields["content"] {
                            return Verdict::Unchanged;
                        }
                        event.current["content"] = fields["content"].clone();
                        event.current["edited"] = json!(true);
                        event.current["editedAt"] = json!(AT_MS);
                    }
                }
                self.emit(write, position, Some(message));
                new(self.last_seq)
            }
            Action::Delete { message } => {
                match self.message(message).map(|at| &self.events[at]) {
                    None if write.change.by != Actor::Service => return refused(ErrorCode::NotFound),
                    Some(event) if event.is_deleted => return Verdict::Unchanged,
                    Some(event) if !may(event) => return refused(ErrorCode::Forbidden),
                    _ => {}
                }
                for event in self.events.iter_mut().filter(|event| event.id.as_ref() == Some(message)) {
                    event.is_deleted = true;
                    let is_update = event.body["type"] == "message_updated";
                    let kept = ["type", "roomId", "id", "timestamp", "sender_user_id", "seq"];
                    let kept_of_update = ["userId", "edited", "editedAt"];
                    let body = event.body.as_object_mut().unwrap();
                    body.retain(|key, _| {
                        kept.contains(&key.as_str()) || is_update && kept_of_update.contains(&key.as_str())
                    });
                    body.insert("deleted".into(), json!(true));
                    event.current = event.body.clone();
                }
                self.reactions.retain(|reaction| reaction.0 != *message);
                self.emit(write, position, None);
                new(self.last_seq)
            }
            Action::React { message, emoji, user, repeats } => {
                if self.message(message).is_some_and(|at| self.events[at].is_deleted) {
                    return refused(ErrorCode::NotFound);
                }
                let stands = self.reactions.iter().any(|r| (&r.0, &*r.1, &r.2) == (message, emoji, user));
                if stands && !repeats {
                    return Verdict::Unchanged;
                }
                self.emit(write, position, None);
                if !stands {
                    self.reactions.push((message.clone(), emoji.to_string(), user.clone(), self.last_seq));
                }
                self.take_part(user);
                new(self.last_seq)
            }
            Action::Unreact { message, emoji, user } => {
                let before = self.reactions.len();
                self.reactions.retain(|r| (&r.0, &*r.1, &r.2) != (message, emoji, user));
                if self.reactions.len() == before {
                    return Verdict::Unchanged;
                }
                self.emit(write, position, None);
                new(self.last_seq)
            }
            Action::MarkRead { user, seq } => {
                if !self.events.iter().any(|event| event.is_message && event.seq == *seq) {
                    return refused(ErrorCode::NotFound);
                }
                self.take_part(user);
                let mark = self.readers.iter_mut().find(|(reader, _)| reader == user).unwrap();
                let is_forward = *seq > mark.1;
                mark.1 = mark.1.max(*seq);
                if is_forward { Verdict::Done } else { Verdict::Unchanged }
            }
            Action::ForgetReader { user } => {
                self.readers.retain(|(reader, _)| reader != user);
                Verdict::Done
            }
            Action::RemoveRoom => Verdict::Done,
            Action::SetMember { user, level, version } => {
                let (known, last) = self.member(user);
                match version.unwrap_or(last + 1) {
                    version if version > last => {
                        self.members.retain(|member| member.0 != *user);
                        self.members.push((user.clone(), *level, version));
                        Verdict::Version(version)
                    }
                    version if version == last && known == *level => Verdict::Version(version),
                    _ => Verdict::Stale(last),
                }
            }
            Action::ReplaceMembers { members, version } => {
                let last = self.highest();
                let is_here = |(user, level): &(Id, Level)| self.member(user).0 == *level;
                let count = self.members.iter().filter(|member| member.1 > Level::Nothing).count();
                let is_same = members.iter().all(is_here) && count == members.len();
                match version.unwrap_or(last + 1) {
                    version if version > last => {
                        self.replaced = version;
                        self.members = members.iter().map(|(user, level)| (user.clone(), *level, version)).collect();
                        Verdict::Version(version)
                    }
                    version if version == last && is_same => Verdict::Version(version),
                    _ => Verdict::Stale(last),
                }
            }
        }
    }

    fn messages(&self) -> Vec<Value> {
        let messages = self.events.iter().filter(|event| event.is_message);
        messages.map(|event| self.shown(event)).collect()
    }

    fn shown(&self, event: &Event) -> Value {
        let mut shown = event.current.clone();
        let object = shown.as_object_mut().unwrap();
        for (key, value) in [("edited", json!(false)), ("editedAt", json!(null)), ("deleted", json!(false))] {
            object.entry(key).or_insert(value);
        }
        let mut summary: Vec<Value> = Vec::new();
        for (_, emoji, user, _) in self.reactions.iter().filter(|reaction| Some(&reaction.0) == event.id.as_ref()) {
            let mut out = Vec::new();
            user.put_json(&mut out);
            let user: Value = serde_json::from_slice(&out).unwrap();
            match summary.iter_mut().find(|entry| entry["emoji"] == **emoji) {
                Some(entry) => {
                    entry["count"] = json!(entry["count"].as_u64().unwrap() + 1);
                    entry["userIds"].as_array_mut().unwrap().push(user);
                }
                None => summary.push(json!({"emoji": emoji, "count": 1, "userIds": [user]})),
            }
        }
        object.insert("reactionSummary".into(), json!(summary));
        shown
    }

    fn unread(&self, user: &Id) -> (u64, usize) {
        let seq = self.readers.iter().find(|(reader, _)| reader == user).map_or(0, |(_, seq)| *seq);
        (seq, self.events.iter().filter(|event| event.is_message && event.seq > seq).count())
    }
}

/// A store in a file, with a way to interrupt it.
struct Store {
    database: Database,
    facts: StoreFacts,
    ledger: Ledger,
    reader: Reader,
    fuse: Arc<AtomicI64>,
}

impl Store {
    fn open(folder: &Folder) -> Self {
        let database = open(&folder.path("chat.db"));
        let mut connection = database.writer().unwrap();
        // Nothing here loses power.
        connection.pragma_update(None, "synchronous", "OFF").unwrap();
        let fuse = Arc::new(AtomicI64::new(0));
        let burning = Arc::clone(&fuse);
        connection.progress_handler(1, Some(move || burning.fetch_sub(1, Ordering::Relaxed) == 1)).unwrap();
        let (facts, reader) = (database.facts(), database.reader().unwrap());
        let reader = Reader::new(reader, facts.clone());
        // So that there are ids at every stage of their way into the table.
        let limits = Limits { store_recent_ids_max: 3, ..Limits::default() };
        Self { ledger: Ledger::new(connection, &limits), facts, database, reader, fuse }
    }

    /// The verdicts, or `None` if nothing has happened.
    fn commit(&mut self, writes: &[Arc<Write>], fate: Fate) -> Option<Vec<Verdict>> {
        match fate {
            Fate::Fine | Fate::Reopened => Some(self.ledger.commit(writes).unwrap()),
            Fate::Interrupted(instructions) => {
                self.fuse.store(instructions, Ordering::Relaxed);
                let done = self.ledger.commit(writes).ok();
                self.fuse.store(0, Ordering::Relaxed);
                done
            }
            Fate::DiskFull => {
                let pages = |count: u32| self.ledger.connection().pragma_update(None, "max_page_count", count).unwrap();
                pages(1);
                let large = Arc::new(post("one", "large", &"x".repeat(100_000), None));
                let with_large: Vec<_> = writes.iter().cloned().chain([large]).collect();
                assert!(self.ledger.commit(&with_large).is_err());
                let pages = |count: u32| self.ledger.connection().pragma_update(None, "max_page_count", count).unwrap();
                pages(1_000_000);
                None
            }
            Fate::AnswerLost { committed } => self.ledger.commit_and_lose_the_answer(writes, committed).ok(),
        }
    }

    fn json(&mut self, lookup: Lookup) -> Value {
        json_of(&self.reader.find(&lookup))
    }

    fn check(&mut self, model: &Model) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.ledger.last_position().unwrap(), model.feed.len() as u64);
        for (index, room) in model.rooms.iter().enumerate() {
            self.check_room(ROOMS[index], room)?;
        }
        let (mut events, mut after, mut trimmed) = (Vec::new(), None::<Box<str>>, false);
        loop {
            let page = self.json(Lookup::Feed { after: after.clone(), limit: 7 });
            events.extend_from_slice(page["events"].as_array().unwrap());
            after = page["next"].as_str().map(Box::from);
            trimmed |= page["trimmed"] == true;
            if page["more"] == false {
                break;
            }
        }
        let expected = model.feed.iter().filter_map(|(room, seq)| {
            model.rooms[*room].events.iter().find(|event| event.seq == *seq).map(|event| event.body.clone())
        });
        prop_assert_eq!(events, expected.collect::<Vec<_>>());
        prop_assert_eq!(trimmed, model.trimmed > 0);
        for user in USERS {
            self.check_user(&raw(user), model)?;
        }
        Ok(())
    }

    fn check_room(&mut self, room_name: &str, room: &Room) -> Result<(), TestCaseError> {
        let last_seq = room.last_seq;
        let Found::Position { last_seq: found } = self.reader.find(&Lookup::Position(name(room_name))) else {
            panic!();
        };
        prop_assert_eq!(found, last_seq);
        let lookup = Lookup::Events { room: name(room_name), after: 0, to: last_seq, bytes_max: usize::MAX };
        let Found::Events(chunks) = self.reader.find(&lookup) else { panic!() };
        let mut expected = Vec::new();
        for event in &room.events {
            expected.push(event.body.clone());
        }
        prop_assert_eq!(frames(&chunks), expected);
        let page = self.json(Lookup::Page { room: name(room_name), before: None, after: None, limit: 1_000 });
        prop_assert_eq!(&page["messages"], &json!(room.messages()));
        prop_assert_eq!(&page["epoch"], &*self.facts.epoch);
        prop_assert_eq!((&page["firstSeq"], &page["lastSeq"]), (&json!(room.first_seq.max(1)), &json!(last_seq)));
        let mut members: Vec<_> = room.members.iter().filter(|member| member.1 > Level::Nothing).collect();
        members.sort_by_key(|member| member.0.text().to_owned());
        let page = self.json(Lookup::Members { room: name(room_name), after: None, limit: 1_000 });
        let listed: Vec<_> = page["members"].as_array().unwrap().iter().map(|member| &member["version"]).collect();
        prop_assert_eq!(listed, members.iter().map(|member| member.2).collect::<Vec<_>>());
        for user in USERS {
            let found = self.reader.find(&Lookup::Member { room: name(room_name), user: raw(user) });
            let Found::Member { level, version } = found else { panic!("{found:?}") };
            prop_assert_eq!((level, version), room.member(&raw(user)));
            let mark = self.json(Lookup::ReadMark { room: name(room_name), user: raw(user) });
            let (seq, unread) = room.unread(&raw(user));
            prop_assert_eq!(mark, json!({"seq": seq, "unread": unread}));
        }
        Ok(())
    }

    fn check_user(&mut self, user: &Id, model: &Model) -> Result<(), TestCaseError> {
        let took_part = |room: &Room| room.readers.iter().any(|(reader, _)| reader == user);
        let mut rooms: Vec<usize> = (0..2).filter(|&index| took_part(&model.rooms[index])).collect();
        rooms.sort_by_key(|&index| std::cmp::Reverse(model.feed.iter().rposition(|(room, _)| *room == index)));
        let expected = rooms.iter().map(|&index| {
            let room = &model.rooms[index];
            let last = room.messages().last().cloned();
            let unread = room.unread(user).1;
            json!({"roomId": ROOMS[index], "lastSeq": room.last_seq, "unread": unread, "lastMessage": last})
        });
        prop_assert_eq!(self.json(Lookup::RoomsOf { user: user.clone() }), Value::Array(expected.collect()));
        let (mut found, mut place) = (Vec::new(), Some(TracePlace::default()));
        while let Some(from) = place {
            let Found::Traces(traces, next) = self.reader.find(&Lookup::Traces { user: user.clone(), from }) else {
                panic!()
            };
            found.extend(traces.iter().map(|trace| format!("{trace:?}")));
            place = next;
        }
        let mut expected = Vec::new();
        let is_member = |room: &Room| room.member(user).0 > Level::Nothing;
        for index in (0..2).filter(|&index| took_part(&model.rooms[index]) || is_member(&model.rooms[index])) {
            if is_member(&model.rooms[index]) {
                expected.push(format!("{:?}", Trace::Member { room: ROOMS[index].into() }));
            }
            let room: Box<str> = ROOMS[index].into();
            for event in model.rooms[index].events.iter().filter(|event| event.sender.as_ref() == Some(user)) {
                if !event.is_deleted {
                    let id = event.id.clone().unwrap();
                    expected.push(format!("{:?}", Trace::Message { room: room.clone(), id }));
                }
            }
            for (message, emoji, _, _) in model.rooms[index].reactions.iter().filter(|reaction| reaction.2 == *user) {
                let (message, emoji) = (message.clone(), emoji.as_str().into());
                expected.push(format!("{:?}", Trace::Reaction { room: room.clone(), message, emoji }));
            }
            expected.push(format!("{:?}", Trace::Mark { room }));
        }
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
        Ok(())
    }
}

/// The events in frames, each checked to be one text frame.
pub(super) fn frames(chunks: &[crate::chat::store::Chunk]) -> Vec<Value> {
    let mut events = Vec::new();
    for chunk in chunks {
        let mut rest = &chunk.frames[..];
        while let [0x81, length, tail @ ..] = rest {
            let (length, tail) = match (*length, tail) {
                (126, [a, b, tail @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), tail),
                (127, tail) => (u64::from_be_bytes(tail[..8].try_into().unwrap()) as usize, &tail[8..]),
                (length, tail) => (usize::from(length), tail),
            };
            let event: Value = serde_json::from_slice(&tail[..length]).unwrap();
            if rest.len() == chunk.frames.len() {
                assert_eq!(event["seq"], chunk.first_seq);
            }
            events.push(event);
            rest = &tail[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(events.last().unwrap()["seq"], chunk.last_seq);
    }
    events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_store_is_what_the_model_is(batches in ops()) {
        let folder = Folder::new("model");
        let mut store = Store::open(&folder);
        let (mut model, mut serial) = (Model::default(), 0);
        for (fate, ops) in batches {
            let writes = ops.iter().map(|op| {
                serial += 1;
                Arc::new(op.write(&model, serial))
            });
            let writes: Vec<Arc<Write>> = writes.collect();
            if let Some(verdicts) = store.commit(&writes, fate) {
                let expected: Vec<Verdict> = writes.iter().map(|write| model.apply(write)).collect();
                prop_assert_eq!(verdicts, expected);
            }
            if matches!(fate, Fate::Reopened) {
                let Store { database, ledger, reader, .. } = store;
                drop((ledger, reader, database));
                store = Store::open(&folder);
            }
            store.check(&model)?;
        }
    }
}
