//! The judgement: what was told to everybody against what is in the store.
//!
//! Knows nothing of connections. An event that was seen must be in the store byte for byte, unless its message was deleted:
//! then the store has a tombstone in its place. What was asked for and acknowledged must be there once, and there may be
//! nothing else.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::book::{Action, Book, Changed};
use crate::history::History;
use crate::member::{Legacy, Page};
use crate::store::{Event, Store};

/// Only so many violations of one kind are told.
const TOLD_MAX: usize = 8;

/// All that was said and heard.
#[derive(Clone)]
pub struct Evidence {
    pub rooms: Vec<String>,
    pub books: Vec<Book>,
    pub legacies: Vec<Legacy>,
    pub pages: Vec<Page>,
    /// The feed as it was followed, and as it is from the beginning.
    pub feeds: [Vec<String>; 2],
}

/// What was judged.
#[derive(Default, Debug)]
pub struct Summary {
    pub events: usize,
    pub messages: usize,
    pub edits: usize,
    pub deletions: usize,
    pub reactions: usize,
    pub seen: usize,
    pub pages: usize,
}

struct Judge<'e> {
    evidence: &'e Evidence,
    store: &'e Store,
    /// The events of each room in order; that with `seq` 1 is the first.
    rooms: Vec<Vec<&'e Event>>,
    /// Messages that were deleted.
    deleted: HashSet<(usize, &'e str)>,
    /// What somebody has seen of events that are tombstones now.
    erased: HashMap<(usize, u64), Value>,
    violations: Vec<String>,
    summary: Summary,
}

/// Judges everything; the violations, and what was looked at.
pub fn judge(evidence: &Evidence, store: &Store) -> (Vec<String>, Summary) {
    let mut rooms: Vec<Vec<&Event>> = evidence.rooms.iter().map(|_| Vec::new()).collect();
    let mut deleted = HashSet::new();
    for event in &store.events {
        rooms[event.room].push(event);
        if event.value["type"] == "message_deleted" {
            deleted.insert((event.room, event.value["id"].as_str().unwrap_or_default()));
        }
    }
    let (violations, erased, summary) = (store.violations.clone(), HashMap::new(), Summary::default());
    let mut judge = Judge { evidence, store, rooms, deleted, erased, violations, summary };
    judge.summary.events = store.events.len();
    judge.transcripts();
    judge.feeds();
    judge.messages();
    judge.changes();
    judge.pages();
    (judge.violations, judge.summary)
}

impl<'e> Judge<'e> {
    fn transcripts(&mut self) {
        for legacy in &self.evidence.legacies {
            for (transcript, is_last) in legacy
                .transcripts
                .iter()
                .map(|last| (last, true))
                .chain(legacy.discarded.iter().map(|old| (old, false)))
            {
                let (room, who) = (transcript.room, &legacy.name);
                for (text, seq) in transcript.events.iter().zip(transcript.begin + 1..) {
                    self.seen(room, seq, text, who);
                }
                let (last, kept) = (transcript.last_seq(), self.rooms[room].len() as u64);
                if is_last && (last != kept || transcript.paged_from > 1) {
                    let (name, from) = (&self.evidence.rooms[room], transcript.paged_from);
                    self.fail(format!("{who} has {from} to {last} of {name:?}, the store 1 to {kept}"));
                }
            }
        }
    }

    /// Somebody has seen an event.
    fn seen(&mut self, room: usize, seq: u64, text: &str, who: &str) {
        self.summary.seen += 1;
        let kept = self.rooms[room].get((seq as usize).wrapping_sub(1)).copied();
        let Some(kept) = kept else {
            return self.fail(format!("{who} has seen what the store does not have: {text}"));
        };
        if kept.text == text {
            return;
        }
        let seen: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        if !self.is_tombstone_of(kept, &seen) {
            return self.fail(format!("{who} has seen {text}, and the store has {}", kept.text));
        }
        self.erased.insert((room, seq), seen);
    }

    fn is_tombstone_of(&self, kept: &Event, seen: &Value) -> bool {
        let (Some(left), Some(whole)) = (kept.value.as_object(), seen.as_object()) else { return false };
        let id = kept.value["id"].as_str().unwrap_or_default();
        let is_erasable = matches!(kept.value["type"].as_str(), Some("new_message" | "message_updated"));
        is_erasable
            && kept.value["deleted"] == true
            && !whole.contains_key("deleted")
            && self.deleted.contains(&(kept.room, id))
            && left.iter().all(|(name, value)| name == "deleted" || whole.get(name) == Some(value))
    }

    fn feeds(&mut self) {
        let kept: Vec<&Event> = self.store.events.iter().collect();
        for (feed, name) in self.evidence.feeds.iter().zip(["the feed as it was followed", "the feed at the end"]) {
            if feed.len() != kept.len() {
                self.fail(format!("{name} has {} events, the store {}", feed.len(), kept.len()));
            }
            for (text, event) in feed.iter().zip(&kept) {
                self.seen(event.room, event.seq, text, name);
            }
        }
    }

    /// Every acknowledged message is there once, where its poster was told, and there are no others.
    fn messages(&mut self) {
        let mut kept: HashMap<(usize, &str), &Event> = HashMap::new();
        for event in self.store.events.iter().filter(|event| event.value["type"] == "new_message") {
            let key = (event.room, event.value["id"].as_str().unwrap_or_default());
            self.summary.messages += 1;
            if let Some(other) = kept.insert(key, event) {
                self.fail(format!("an id is there twice: {} and {}", other.text, event.text));
            }
        }
        for post in self.evidence.books.iter().flat_map(|book| &book.posts) {
            let (name, id) = (&self.evidence.rooms[post.room], &post.id);
            let Some(event) = kept.remove(&(post.room, id.as_str())) else {
                self.fail(format!(
                    "{id} in {name:?} was acknowledged with seq {} and is lost or was told twice",
                    post.seq
                ));
                continue;
            };
            let is_same = event.value["content"] == post.content.as_str() || event.value["deleted"] == true;
            if event.seq != post.seq || event.value["timestamp"] != post.timestamp || !is_same {
                let (seq, timestamp) = (post.seq, &post.timestamp);
                self.fail(format!("{id} was told as {seq} of {timestamp}, {:?}, and is {}", post.content, event.text));
            }
        }
        for event in kept.values() {
            self.violations.push(format!("nobody was told of {}", event.text));
        }
    }

    /// Every acknowledged change is there once, in the order of its author, and there are no others.
    fn changes(&mut self) {
        let mut kept: HashMap<(usize, &str, String), Vec<&Event>> = HashMap::new();
        for event in &self.store.events {
            let value = &event.value;
            let (id, topic) = match value["type"].as_str().unwrap_or_default() {
                "new_message" => continue,
                kind @ ("message_updated" | "message_deleted") => (&value["id"], kind.to_owned()),
                _ => (&value["messageId"], format!("{}{}", value["emoji"], value["userId"])),
            };
            kept.entry((event.room, id.as_str().unwrap_or_default(), topic)).or_default().push(event);
        }
        kept.values_mut().for_each(|events| events.reverse());
        for change in self.evidence.books.iter().flat_map(|book| &book.changes) {
            let topic = match &change.action {
                Action::Edit { .. } => "message_updated".to_owned(),
                Action::Delete => "message_deleted".to_owned(),
                Action::React { emoji, .. } => format!("{}{}", Value::from(*emoji), Value::from(change.user.as_str())),
                Action::Post { .. } => continue,
            };
            let events = kept.get_mut(&(change.room, change.message.as_str(), topic));
            let next = events.and_then(|events| match events.last() {
                Some(event) if is_made_by(event, change) => events.pop(),
                _ => None,
            });
            let is_deleted = self.deleted.contains(&(change.room, change.message.as_str()));
            let Changed { message, action, seq, user, is_certain, .. } = change;
            match next {
                Some(event) if seq.is_none_or(|seq| seq == event.seq) => match action {
                    Action::Edit { .. } => self.summary.edits += 1,
                    Action::Delete => self.summary.deletions += 1,
                    _ => self.summary.reactions += 1,
                },
                None if !is_certain && is_deleted => {}
                found => {
                    let found = found.map(|event| &event.text);
                    self.fail(format!(
                        "{action:?} of {message} by {user} was acknowledged as {seq:?}, there is {found:?}"
                    ));
                }
            }
        }
        for event in kept.into_values().flatten() {
            self.fail(format!("nobody was told of {}", event.text));
        }
    }

    /// Every page shows the messages as they were at its `lastSeq`.
    fn pages(&mut self) {
        let mut pages: Vec<(u64, &Page, Value)> = Vec::new();
        for page in self.evidence.pages.iter().chain(self.evidence.legacies.iter().flat_map(|legacy| &legacy.pages)) {
            let body: Value = serde_json::from_str(&page.body).unwrap_or(Value::Null);
            pages.push((body["lastSeq"].as_u64().unwrap_or(u64::MAX), page, body));
        }
        pages.sort_by_key(|(last_seq, ..)| *last_seq);
        let mut histories: Vec<History> = self.rooms.iter().map(|_| History::default()).collect();
        self.summary.pages = pages.len();
        for (last_seq, page, body) in pages {
            let (history, events) = (&mut histories[page.room], &self.rooms[page.room]);
            while history.last_seq() < last_seq {
                let Some(event) = events.get(history.last_seq() as usize) else { break };
                history.apply(event, self.erased.get(&(page.room, event.seq)));
            }
            let judged = match history.last_seq() == last_seq {
                true => history.check(page, &body),
                false => Err("the store has not come so far".to_owned()),
            };
            if let Err(why) = judged {
                let Page { before, after, limit, .. } = page;
                let name = &self.evidence.rooms[page.room];
                self.fail(format!(
                    "a page of {name:?} before {before:?} after {after:?} limit {limit}, up to {last_seq}: {why}"
                ));
            }
        }
    }

    fn fail(&mut self, violation: String) {
        // One bug is found by many; the first ones are enough.
        if self.violations.len() < 4 * TOLD_MAX {
            self.violations.push(violation);
        }
    }
}

fn is_made_by(event: &Event, change: &Changed) -> bool {
    let value = &event.value;
    match &change.action {
        Action::Post { .. } => false,
        Action::Edit { content } => value["content"] == content.as_str() || value["deleted"] == true,
        Action::Delete => true,
        Action::React { adds, .. } => value["type"] == if *adds { "reaction" } else { "reaction_removed" },
    }
}
