//! A durable change that a client asks for, until it knows that it is kept.

use serde_json::{Value, json};

/// What is asked, and in which room.
#[derive(Clone, Debug)]
pub struct Change {
    pub room: String,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Message { id: String },
    Edit { id: String, content: String },
    Delete { id: String },
    React { id: String, emoji: String, user: String },
    Unreact { id: String, emoji: String },
    MarkRead { seq: u64 },
}

impl Change {
    /// The message of a WebSocket client, without `ref`.
    pub fn message(&self) -> Value {
        let room = &self.room;
        match &self.what {
            What::Message { id } => {
                json!({"type": "send_message", "roomId": room, "id": id, "content": format!("of {id}")})
            }
            What::Edit { id, content } => {
                json!({"type": "edit_message", "roomId": room, "messageId": id, "content": content})
            }
            What::Delete { id } => json!({"type": "delete_message", "roomId": room, "messageId": id}),
            What::React { id, emoji, .. } => {
                json!({"type": "reaction", "roomId": room, "messageId": id, "emoji": emoji, "action": "add"})
            }
            What::Unreact { id, emoji } => {
                json!({"type": "reaction", "roomId": room, "messageId": id, "emoji": emoji, "action": "remove"})
            }
            What::MarkRead { seq } => json!({"type": "mark_read", "roomId": room, "seq": seq}),
        }
    }

    /// The call of a service: method, path and body.
    pub fn call(&self) -> (&'static str, String, Option<Value>) {
        let messages = format!("/api/chat/rooms/{}/messages", self.room);
        match &self.what {
            What::Message { id } => ("POST", messages, Some(json!({"id": id, "content": content_of(id)}))),
            What::Edit { id, content } => ("PATCH", format!("{messages}/{id}"), Some(json!({"content": content}))),
            What::Delete { id } => ("DELETE", format!("{messages}/{id}"), None),
            What::React { id, emoji, user } => {
                ("PUT", format!("{messages}/{id}/reactions/{emoji}?userId={user}"), None)
            }
            What::Unreact { id, emoji } => ("DELETE", format!("{messages}/{id}/reactions/{emoji}?userId=1"), None),
            What::MarkRead { seq } => {
                ("PUT", format!("/api/chat/rooms/{}/read/1", self.room), Some(json!({"seq": seq})))
            }
        }
    }
}

/// The content of a message with that id, which ends with the length that it is to have.
fn content_of(id: &str) -> String {
    let length = id.rsplit('-').next().and_then(|length| length.parse().ok()).unwrap_or(3);
    "x".repeat(length)
}

/// An id or another text in a message.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
