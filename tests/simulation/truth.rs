//! What was ever committed, in its order: the one order that every client's transcript is a piece of.
//!
//! It is made of each batch and how it was decided, before anything can have been told of it, and kept as it was then. What
//! is compared with it may be a tombstone, but only if the deletion stands in the order too.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use serde_json::Value;
use sizland_chat::chat::store::{Verdict, Write};
use sizland_chat::wire::message::tombstone;

use super::change::{Change, What, text};
use super::members::{GUARDED, Members, Told};

/// A committed event.
pub struct Event {
    pub room: String,
    pub seq: u64,
    pub value: Value,
    bytes: u64,
    /// What it becomes if its message is deleted.
    tombstone: Option<Value>,
}

#[derive(Default)]
pub struct Truth {
    /// In the order of the feed.
    events: Vec<Event>,
    /// The places in `events` of each room's, by `seq` from 1.
    rooms: BTreeMap<String, Vec<usize>>,
    /// (room, message) -> the `seq`s of its deletions.
    deleted: BTreeMap<(String, String), Vec<u64>>,
    /// (room, message) -> its `seq`.
    messages: BTreeMap<(String, String), u64>,
    pub members: Members,
    pub guarded: bool,
    /// What somebody was told that it is kept.
    acknowledged: Vec<(Change, Option<u64>)>,
    /// The last `seq` that somebody was sent, by room.
    delivered: BTreeMap<String, u64>,
}

impl Truth {
    pub fn last_position(&self) -> u64 {
        self.events.len() as u64
    }

    pub fn last_seq(&self, room: &str) -> u64 {
        self.rooms.get(room).map_or(0, |events| events.len() as u64)
    }

    /// At most so many bytes of frames stand behind a place.
    pub fn bytes_behind(&self, room: &str, since: u64) -> u64 {
        let places = self.rooms.get(room).into_iter().flatten().skip(since as usize);
        places.map(|&place| self.events[place].bytes + 10).sum()
    }

    /// Takes in a batch that was committed, and how it was decided.
    pub fn take_in(&mut self, batch: &[Arc<Write>], verdicts: &[Verdict]) {
        for (write, verdict) in batch.iter().zip(verdicts) {
            if self.guarded {
                self.members.take_in(write, verdict);
            }
            if let Verdict::New { seq } = *verdict {
                let mut body = write.change.prefix.clone();
                write.finish(&mut body, seq);
                self.push(write.room.text().to_owned(), seq, str::from_utf8(&body).unwrap());
            }
        }
    }

    fn push(&mut self, room: String, seq: u64, body: &str) {
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!((value["seq"].as_u64(), text(&value["roomId"])), (Some(seq), room.clone()), "{body}");
        let message = (room.clone(), text(&value["id"]));
        match value["type"].as_str().unwrap() {
            "new_message" => {
                let twice = self.messages.insert(message, seq);
                assert_eq!(twice, None, "a message is kept twice: {body}");
            }
            "message_deleted" => {
                self.deleted.entry(message).or_default().push(seq);
            }
            _ => {}
        }
        let places = self.rooms.entry(room.clone()).or_default();
        places.push(self.events.len());
        assert_eq!(seq, places.len() as u64, "a room's sequence has no holes: {body}");
        let tombstone = tombstone(body).map(|body| serde_json::from_slice(&body).unwrap());
        let bytes = body.len() as u64;
        self.events.push(Event { room, seq, value, bytes, tombstone });
    }

    /// Somebody was told that a change of memberships is kept.
    pub fn acknowledge_members(&mut self, told: Told) {
        let last_seq = self.last_seq(GUARDED);
        self.members.acknowledge(told, last_seq);
    }

    /// A crash has taken back what was committed behind a position.
    pub fn roll_back(&mut self, position: u64, connection: &Connection) {
        self.members.reload(connection);
        for event in self.events.drain(position as usize..) {
            self.rooms.get_mut(&event.room).unwrap().pop();
            if let Some(seqs) = self.deleted.get_mut(&(event.room.clone(), text(&event.value["id"]))) {
                seqs.retain(|&seq| seq < event.seq);
            }
            self.messages.retain(|(room, _), &mut seq| (&**room, seq) != (&*event.room, event.seq));
        }
        for (room, &seq) in &self.delivered {
            assert!(seq <= self.last_seq(room), "{room}: {seq} was delivered and is lost");
        }
        self.check_acknowledged();
    }

    /// Somebody was sent an event; `told_to` is what the one knew of the room who was sent what it had missed.
    pub fn deliver(&mut self, room: &str, seq: u64, event: &Value, told_to: Option<u64>) {
        let kept = self.event(room, seq);
        let kept = kept.unwrap_or_else(|| panic!("delivered and not committed: {event}"));
        let is_erased_by = |upto: u64| self.is_erased(kept, upto);
        let is_kept = *event == kept.value;
        assert!(is_kept || kept.tombstone.as_ref() == Some(event), "another event was kept:\n{event}\n{}", kept.value);
        assert!(is_kept || is_erased_by(u64::MAX), "a tombstone of what was not deleted: {event}");
        if let Some(upto) = told_to.filter(|_| is_kept && kept.tombstone.is_some()) {
            assert!(!is_erased_by(upto), "an erased message is told as of {upto}: {event}");
        }
        let delivered = self.delivered.entry(room.to_owned()).or_default();
        *delivered = seq.max(*delivered);
    }

    /// Somebody was told that a change is kept, perhaps where.
    pub fn acknowledge(&mut self, change: Change, seq: Option<u64>) {
        self.check_one(&change, seq);
        self.acknowledged.push((change, seq));
    }

    pub fn check_acknowledged(&self) {
        self.acknowledged.iter().for_each(|(change, seq)| self.check_one(change, *seq));
    }

    fn check_one(&self, change: &Change, seq: Option<u64>) {
        let Change { room, what } = change;
        let of_room = || {
            let places = self.rooms.get(room).into_iter().flatten();
            places.map(|&place| &self.events[place].value)
        };
        let has = |kind: &str, wanted: &[(&str, &str)]| {
            of_room()
                .any(|value| value["type"] == kind && wanted.iter().all(|(key, text_)| text(&value[*key]) == *text_))
        };
        let is_kept = match what {
            What::Message { id } => {
                let found = self.messages.get(&(room.clone(), id.clone())).copied();
                found.is_some() && (seq.is_none() || found == seq)
            }
            What::Edit { id, content } => has("message_updated", &[("id", id), ("content", content)]),
            What::Delete { id } => has("message_deleted", &[("id", id)]),
            What::React { id, emoji, user } => {
                has("reaction", &[("messageId", id), ("emoji", emoji), ("userId", user)])
            }
            What::Unreact { .. } => true,
            What::MarkRead { seq } => of_room().any(|value| value["seq"] == *seq && value["type"] == "new_message"),
        };
        assert!(is_kept, "acknowledged with {seq:?} and not kept: {change:?}");
    }

    /// Whether the message of an event was deleted behind it, up to a place.
    fn is_erased(&self, event: &Event, upto: u64) -> bool {
        let deletions = self.deleted.get(&(event.room.clone(), text(&event.value["id"])));
        deletions.into_iter().flatten().any(|&deleted| event.seq < deleted && deleted <= upto)
    }

    /// An event as it is kept now.
    fn now(&self, place: usize) -> &Value {
        let event = &self.events[place];
        event.tombstone.as_ref().filter(|_| self.is_erased(event, u64::MAX)).unwrap_or(&event.value)
    }

    pub fn event(&self, room: &str, seq: u64) -> Option<&Event> {
        let place = *self.rooms.get(room)?.get(usize::try_from(seq).ok()?.checked_sub(1)?)?;
        Some(&self.events[place])
    }

    /// A page of the feed behind a position: events as they are, or were when it was read.
    pub fn check_feed(&self, position: u64, events: &[Value], is_now: bool) {
        for (place, event) in (position as usize..).zip(events) {
            let kept = self.events.get(place).unwrap_or_else(|| panic!("in the feed and not committed: {event}"));
            let was_so = !is_now && *event == kept.value;
            assert!(was_so || *event == *self.now(place), "position {place} of the feed: {event} {}", kept.value);
        }
    }

    /// A page of a room's messages: as the events up to its `lastSeq` left them.
    pub fn check_page(&self, room: &str, page: &Value) {
        let last = page["lastSeq"].as_u64().unwrap();
        assert!(last <= self.last_seq(room), "a page of what was not committed: {page}");
        let mut next = 0;
        for message in page["messages"].as_array().unwrap() {
            let seq = message["seq"].as_u64().unwrap();
            assert!(seq > next && seq <= last, "a page is in order: {page}");
            next = seq;
            let (mut content, mut deleted) = (&Value::Null, false);
            for place in &self.rooms[room][seq as usize - 1..last as usize] {
                let value = &self.events[*place].value;
                if text(&value["id"]) != text(&message["id"]) {
                    continue;
                }
                match value["type"].as_str().unwrap() {
                    "new_message" => (content, deleted) = (&value["content"], value["deleted"] == true),
                    "message_updated" if value["deleted"] != true => content = &value["content"],
                    "message_deleted" => deleted = true,
                    _ => {}
                }
            }
            let content = if deleted { &Value::Null } else { content };
            assert_eq!((&message["content"], &message["deleted"]), (content, &Value::Bool(deleted)), "{message}");
        }
    }

    /// Compares a database with what was committed.
    pub fn check(&self, connection: &Connection) {
        self.check_acknowledged();
        self.members.check(connection);
        let mut statement = connection.prepare("SELECT body FROM event ORDER BY position").unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut place = 0;
        while let Some(row) = rows.next().unwrap() {
            let body: Vec<u8> = row.get(0).unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(value, *self.now(place), "what is kept at position {}", place + 1);
            place += 1;
        }
        assert_eq!(place, self.events.len(), "everything is still there");
    }
}
