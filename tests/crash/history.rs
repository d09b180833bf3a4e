//! What a page of messages must show: the messages of one room as they are after some of its events.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::member::Page;
use crate::store::Event;

/// The messages of a room up to an event.
#[derive(Default)]
pub struct History {
    last_seq: u64,
    messages: BTreeMap<u64, Message>,
    by_id: HashMap<String, u64>,
    /// By message: emoji, user and `seq` of those that stand, the oldest first.
    reactions: HashMap<String, Vec<(String, Value, u64)>>,
}

struct Message {
    id: String,
    /// As it is shown, reactions aside.
    shown: Value,
    /// Whether nobody knows any more what it was before it was deleted.
    is_unknown: bool,
}

impl History {
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Goes on by one event. `whole` is what somebody has seen of one that is a tombstone now.
    pub fn apply(&mut self, event: &Event, whole: Option<&Value>) {
        self.last_seq = event.seq;
        let value = whole.unwrap_or(&event.value);
        let is_unknown = value["deleted"] == true;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        match value["type"].as_str().unwrap_or_default() {
            "new_message" => {
                let mut shown = value.clone();
                shown["deleted"] = json!(false);
                shown["editedAt"] = Value::Null;
                if shown["edited"].is_null() {
                    shown["edited"] = json!(false);
                }
                self.by_id.insert(text("id"), event.seq);
                self.messages.insert(event.seq, Message { id: text("id"), shown, is_unknown });
            }
            "message_updated" => {
                let Some(message) = self.by_id.get(&text("id")).and_then(|seq| self.messages.get_mut(seq)) else {
                    return;
                };
                message.is_unknown |= is_unknown;
                for name in ["content", "edited", "editedAt"] {
                    message.shown[name] = value[name].clone();
                }
            }
            "message_deleted" => {
                self.reactions.remove(&text("id"));
                let Some(message) = self.by_id.get(&text("id")).and_then(|seq| self.messages.get_mut(seq)) else {
                    return;
                };
                let kept = ["type", "roomId", "id", "timestamp", "sender_user_id", "seq"];
                let kept = kept.iter().filter(|name| !message.shown[**name].is_null());
                let mut shown: Value = kept.map(|name| ((*name).to_owned(), message.shown[*name].clone())).collect();
                shown["deleted"] = json!(true);
                shown["edited"] = json!(false);
                shown["editedAt"] = Value::Null;
                (message.shown, message.is_unknown) = (shown, false);
            }
            "reaction" => {
                let standing = self.reactions.entry(text("messageId")).or_default();
                standing.push((text("emoji"), value["userId"].clone(), event.seq));
            }
            _ => {
                let standing = self.reactions.entry(text("messageId")).or_default();
                standing.retain(|(emoji, user, _)| *emoji != text("emoji") || *user != value["userId"]);
            }
        }
    }

    /// Whether a page is exactly what it should be.
    pub fn check(&self, page: &Page, body: &Value) -> Result<(), String> {
        let found = body["messages"].as_array().ok_or("it has no messages")?;
        let mut wanted: Vec<&Message> = match (page.before, page.after) {
            (_, Some(after)) => self.messages.range(after + 1..).map(|(_, message)| message).collect(),
            (Some(before), None) => self.messages.range(..before).map(|(_, message)| message).rev().collect(),
            (None, None) => self.messages.values().rev().collect(),
        };
        let more = wanted.len() > page.limit;
        wanted.truncate(page.limit);
        if page.after.is_none() {
            wanted.reverse();
        }
        if (body["more"].as_bool(), body["firstSeq"].as_u64()) != (Some(more), Some(1)) {
            return Err(format!("more is {} and firstSeq {}, not {more} and 1", body["more"], body["firstSeq"]));
        }
        if found.len() != wanted.len() {
            return Err(format!("it has {} messages and not {}", found.len(), wanted.len()));
        }
        for (found, wanted) in found.iter().zip(wanted) {
            self.check_message(found, wanted)?;
        }
        Ok(())
    }

    fn check_message(&self, found: &Value, wanted: &Message) -> Result<(), String> {
        let mut shown = wanted.shown.clone();
        shown["reactionSummary"] = self.summary(&wanted.id);
        let is_same = match wanted.is_unknown {
            false => *found == shown,
            true => ["id", "seq", "timestamp", "sender_user_id", "deleted", "reactionSummary"]
                .iter()
                .all(|name| found[*name] == shown[*name]),
        };
        if is_same { Ok(()) } else { Err(format!("it shows {found} and not {shown}")) }
    }

    fn summary(&self, id: &str) -> Value {
        let mut summary: Vec<Value> = Vec::new();
        for (emoji, user, _) in self.reactions.get(id).into_iter().flatten() {
            match summary.iter_mut().find(|entry| entry["emoji"] == **emoji) {
                Some(entry) => {
                    entry["count"] = json!(entry["count"].as_u64().unwrap_or(0) + 1);
                    if let Some(users) = entry["userIds"].as_array_mut() {
                        users.push(user.clone());
                    }
                }
                None => summary.push(json!({"emoji": emoji, "count": 1, "userIds": [user]})),
            }
        }
        Value::from(summary)
    }
}
