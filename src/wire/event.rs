//! What the server sends: every message of the WebSocket vocabulary, and the body of a REST error.
//!
//! Each function appends one JSON object to a buffer, without a frame header. Owns the names and
//! the order of the fields: `type`, then `roomId`, the rest, and `timestamp` last but for `seq`.
//! Knows nothing about who gets an event. A `timestamp` and every other time is integer
//! milliseconds since the epoch; `reference` is the raw JSON of a client's `ref`, and is echoed as
//! it is.

use crate::wire::client::ErrorCode;
use crate::wire::value::{Id, IdRef, put_json_string};

/// Every `type` that the server itself sends, now or in an extension. A posted event has none of
/// them, so that nobody can be made to believe that the server speaks.
pub const SERVER_TYPES: [&str; 19] = [
    "ack",
    "connected",
    "draining",
    "error",
    "message_deleted",
    "message_updated",
    "new_message",
    "online_update",
    "pong",
    "presence_diff",
    "reaction",
    "reaction_removed",
    "read_receipt",
    "removed_from_room",
    "shed",
    "typing_start",
    "typing_stop",
    "user_joined",
    "user_left",
];

/// The events that say no more than that one user did something in one room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserEvent {
    /// `user_joined`
    Joined,
    /// `user_left`
    Left,
    /// `typing_start`
    TypingStart,
    /// `typing_stop`
    TypingStop,
}

impl UserEvent {
    /// The `type` on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            UserEvent::Joined => "user_joined",
            UserEvent::Left => "user_left",
            UserEvent::TypingStart => "typing_start",
            UserEvent::TypingStop => "typing_stop",
        }
    }
}

/// One room in the answer to `join_rooms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomAnswer<'a> {
    /// The room's name.
    pub room: AnsweredRoom<'a>,
    /// Why it was not joined; `None` if it was.
    pub code: Option<ErrorCode>,
}

/// How an answer names a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredRoom<'a> {
    /// By its valid name.
    Named(&'a str),
    /// By the raw JSON value that the client gave for a `roomId`, which is no valid name.
    AsGiven(&'a str),
}

/// `connected`, the first message on every connection. `expires_at` is when the token expires, and
/// is left out for a token that does not.
pub fn connected(
    out: &mut Vec<u8>,
    user: IdRef<'_>,
    connection_id: &str,
    heartbeat_ms: u64,
    server_time_ms: u64,
    expires_at: Option<u64>,
    timestamp: u64,
) {
    open(out, "connected");
    id(out, "userId", user);
    text(out, "connectionId", connection_id);
    number(out, "heartbeatMs", heartbeat_ms);
    number(out, "serverTime", server_time_ms);
    if let Some(expires_at) = expires_at {
        number(out, "expiresAt", expires_at);
    }
    close(out, timestamp);
}

/// `user_joined`, `user_left`, `typing_start` or `typing_stop`.
pub fn user_event(out: &mut Vec<u8>, event: UserEvent, room: &str, user: IdRef<'_>, timestamp: u64) {
    open(out, event.as_str());
    text(out, "roomId", room);
    name(out, "userId");
    user.put_json(out);
    close(out, timestamp);
}

/// `online_update`: who is in the room, as of the durable event `seq` of `epoch`. `truncated` is
/// the number of all users where `online` lists only some. `recovered` answers a client that said what it has: whether
/// what it missed follows.
#[allow(clippy::too_many_arguments, reason = "the fields of one event")]
pub fn online_update<'a>(
    out: &mut Vec<u8>,
    room: &str,
    online: impl Iterator<Item = IdRef<'a>>,
    seq: u64,
    epoch: &str,
    truncated: Option<u32>,
    recovered: Option<bool>,
    timestamp: u64,
) {
    open(out, "online_update");
    text(out, "roomId", room);
    ids(out, "online", online);
    if let Some(count) = truncated {
        number(out, "count", count.into());
        raw(out, "truncated", "true");
    }
    number(out, "seq", seq);
    text(out, "epoch", epoch);
    if let Some(recovered) = recovered {
        raw(out, "recovered", if recovered { "true" } else { "false" });
    }
    close(out, timestamp);
}

/// `presence_diff`: the net changes in a large room; `count` is the number of users after them, and
/// `truncated` says that not all changes are listed.
pub fn presence_diff<'a>(
    out: &mut Vec<u8>,
    room: &str,
    joined: impl Iterator<Item = IdRef<'a>>,
    left: impl Iterator<Item = IdRef<'a>>,
    count: u32,
    truncated: bool,
    timestamp: u64,
) {
    open(out, "presence_diff");
    text(out, "roomId", room);
    ids(out, "joined", joined);
    ids(out, "left", left);
    number(out, "count", count.into());
    if truncated {
        raw(out, "truncated", "true");
    }
    close(out, timestamp);
}

/// `pong`, the answer to `ping`.
pub fn pong(out: &mut Vec<u8>, reference: Option<&str>, timestamp: u64) {
    open(out, "pong");
    put_reference(out, reference);
    close(out, timestamp);
}

/// `ack` of a request that has no result of its own.
pub fn ack(out: &mut Vec<u8>, reference: Option<&str>, room: Option<&str>, timestamp: u64) {
    open(out, "ack");
    put_room(out, room);
    put_reference(out, reference);
    close(out, timestamp);
}

/// `ack` of `send_message`: the message's id and its place. `timestamp` is the message's, as raw JSON.
pub fn ack_sent(out: &mut Vec<u8>, reference: Option<&str>, room: &str, message: &Id, seq: u64, timestamp: &str) {
    open(out, "ack");
    text(out, "roomId", room);
    put_reference(out, reference);
    id(out, "id", message.as_ref());
    raw(out, "timestamp", timestamp);
    number(out, "seq", seq);
    out.push(b'}');
}

/// `ack` of `refresh_token`: when the new token expires, left out if it does not.
pub fn ack_expires(out: &mut Vec<u8>, reference: Option<&str>, expires_at: Option<u64>, timestamp: u64) {
    open(out, "ack");
    put_reference(out, reference);
    if let Some(expires_at) = expires_at {
        number(out, "expiresAt", expires_at);
    }
    close(out, timestamp);
}

/// `ack` of `join_rooms`: one entry per room asked for, in the order asked.
pub fn ack_rooms<'a>(
    out: &mut Vec<u8>,
    reference: Option<&str>,
    rooms: impl IntoIterator<Item = RoomAnswer<'a>>,
    timestamp: u64,
) {
    open(out, "ack");
    put_reference(out, reference);
    name(out, "rooms");
    let mut before = b'[';
    for answer in rooms {
        out.push(before);
        out.extend_from_slice(b"{\"roomId\":");
        match answer.room {
            AnsweredRoom::Named(room) => put_json_string(out, room),
            AnsweredRoom::AsGiven(json) => out.extend_from_slice(json.as_bytes()),
        }
        if let Some(code) = answer.code {
            text(out, "code", code.as_str());
        }
        out.push(b'}');
        before = b',';
    }
    end_list(out, before);
    close(out, timestamp);
}

/// `error`, the answer to a request that was refused. `retry_after_ms` says when it may succeed.
pub fn error(
    out: &mut Vec<u8>,
    code: ErrorCode,
    message: &str,
    reference: Option<&str>,
    room: Option<&str>,
    retry_after_ms: Option<u64>,
    timestamp: u64,
) {
    open(out, "error");
    put_room(out, room);
    text(out, "code", code.as_str());
    text(out, "message", message);
    put_reference(out, reference);
    if let Some(retry_after_ms) = retry_after_ms {
        number(out, "retryAfterMs", retry_after_ms);
    }
    close(out, timestamp);
}

/// `shed`: `count` ephemeral events were dropped for a connection that was behind.
pub fn shed(out: &mut Vec<u8>, count: u64, timestamp: u64) {
    open(out, "shed");
    number(out, "count", count);
    close(out, timestamp);
}

/// `draining`: the connection will be closed as planned; the client should come back
/// `reconnect_in_ms` after the close.
pub fn draining(out: &mut Vec<u8>, reconnect_in_ms: u64, timestamp: u64) {
    open(out, "draining");
    number(out, "reconnectInMs", reconnect_in_ms);
    close(out, timestamp);
}

/// `removed_from_room`, the last message of a room whose access is revoked.
pub fn removed_from_room(out: &mut Vec<u8>, room: &str, reason: &str, timestamp: u64) {
    open(out, "removed_from_room");
    text(out, "roomId", room);
    text(out, "reason", reason);
    close(out, timestamp);
}

/// The beginning of a `reaction`, which the room's home completes with [`finish`].
pub fn reaction_prefix(out: &mut Vec<u8>, room: &str, message_id: &Id, emoji: &str, user: IdRef<'_>) {
    open(out, "reaction");
    text(out, "roomId", room);
    id(out, "messageId", message_id.as_ref());
    text(out, "emoji", emoji);
    id(out, "userId", user);
}

/// The beginning of a `reaction_removed`, which the room's home completes with [`finish`].
pub fn reaction_removed_prefix(out: &mut Vec<u8>, room: &str, message_id: &Id, emoji: &str, user: IdRef<'_>) {
    open(out, "reaction_removed");
    text(out, "roomId", room);
    id(out, "messageId", message_id.as_ref());
    text(out, "emoji", emoji);
    id(out, "userId", user);
}

/// The beginning of a `message_updated`, which is completed with [`edited_at`] and [`finish`]. `fields` are the changed
/// members as raw JSON, separated by commas; `user` is who edits, or `None` for a service that acts for nobody.
pub fn message_updated_prefix(out: &mut Vec<u8>, room: &str, message: &Id, fields: &[u8], user: Option<IdRef<'_>>) {
    open(out, "message_updated");
    text(out, "roomId", room);
    id(out, "id", message.as_ref());
    out.push(b',');
    out.extend_from_slice(fields);
    raw(out, "edited", "true");
    put_user(out, user);
}

/// The beginning of a `message_deleted`, which is completed with [`finish`]. `user` is who deletes, or `None` for a
/// service that acts for nobody.
pub fn message_deleted_prefix(out: &mut Vec<u8>, room: &str, message: &Id, user: Option<IdRef<'_>>) {
    open(out, "message_deleted");
    text(out, "roomId", room);
    id(out, "id", message.as_ref());
    put_user(out, user);
}

/// `read_receipt`: the user has read the room up to the message with this `seq`. The event has no place of its own.
pub fn read_receipt(out: &mut Vec<u8>, room: &str, user: IdRef<'_>, seq: u64, timestamp: u64) {
    open(out, "read_receipt");
    text(out, "roomId", room);
    id(out, "userId", user);
    number(out, "seq", seq);
    close(out, timestamp);
}

/// Completes a durable event with what only the room's home knows. `timestamp` is `None` if the
/// beginning already has one.
pub fn finish(out: &mut Vec<u8>, timestamp: Option<u64>, seq: u64) {
    if let Some(timestamp) = timestamp {
        number(out, "timestamp", timestamp);
    }
    number(out, "seq", seq);
    out.push(b'}');
}

/// Appends when a message was changed.
pub fn edited_at(out: &mut Vec<u8>, edited_at: u64) {
    number(out, "editedAt", edited_at);
}

/// Completes the beginning of an ephemeral event that was posted.
pub fn finish_ephemeral(out: &mut Vec<u8>, timestamp: u64) {
    close(out, timestamp);
}

/// The body of a REST error.
pub fn rest_error(out: &mut Vec<u8>, code: ErrorCode, message: &str) {
    out.extend_from_slice(b"{\"error\":");
    put_json_string(out, message);
    text(out, "code", code.as_str());
    out.push(b'}');
}

fn open(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.push(b'"');
}

fn close(out: &mut Vec<u8>, timestamp: u64) {
    number(out, "timestamp", timestamp);
    out.push(b'}');
}

fn put_room(out: &mut Vec<u8>, room: Option<&str>) {
    if let Some(room) = room {
        text(out, "roomId", room);
    }
}

fn put_user(out: &mut Vec<u8>, user: Option<IdRef<'_>>) {
    if let Some(user) = user {
        id(out, "userId", user);
    }
}

fn put_reference(out: &mut Vec<u8>, reference: Option<&str>) {
    if let Some(reference) = reference {
        raw(out, "ref", reference);
    }
}

fn name(out: &mut Vec<u8>, field: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(b"\":");
}

fn raw(out: &mut Vec<u8>, field: &str, json: &str) {
    name(out, field);
    out.extend_from_slice(json.as_bytes());
}

fn text(out: &mut Vec<u8>, field: &str, value: &str) {
    name(out, field);
    put_json_string(out, value);
}

fn id(out: &mut Vec<u8>, field: &str, value: IdRef<'_>) {
    name(out, field);
    value.put_json(out);
}

fn ids<'a>(out: &mut Vec<u8>, field: &str, values: impl Iterator<Item = IdRef<'a>>) {
    name(out, field);
    let mut before = b'[';
    for value in values {
        out.push(before);
        value.put_json(out);
        before = b',';
    }
    end_list(out, before);
}

/// Ends a list whose next element would have come after `before`: the bracket itself if there was
/// no element.
fn end_list(out: &mut Vec<u8>, before: u8) {
    if before == b'[' {
        out.push(b'[');
    }
    out.push(b']');
}

fn number(out: &mut Vec<u8>, field: &str, value: u64) {
    name(out, field);
    let start = out.len();
    let mut rest = value;
    loop {
        out.push(b'0' + (rest % 10) as u8);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out[start..].reverse();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn id(raw: &str) -> Id {
        Id::parse_raw(raw).unwrap()
    }

    #[test]
    fn presence_and_connection() {
        let (user, number) = (id("\"u\""), id("7"));
        let table = [
            (
                written(|out| connected(out, number.as_ref(), "c1", 30_000, 5, Some(9), 5)),
                r#"{"type":"connected","userId":7,"connectionId":"c1","heartbeatMs":30000,"serverTime":5,"expiresAt":9,"timestamp":5}"#,
            ),
            (
                written(|out| connected(out, user.as_ref(), "c", 1, 2, None, 0)),
                r#"{"type":"connected","userId":"u","connectionId":"c","heartbeatMs":1,"serverTime":2,"timestamp":0}"#,
            ),
            (
                written(|out| user_event(out, UserEvent::Joined, "r\"1", user.as_ref(), 1)),
                r#"{"type":"user_joined","roomId":"r\"1","userId":"u","timestamp":1}"#,
            ),
            (
                written(|out| {
                    online_update(out, "r", [user.as_ref(), number.as_ref()].into_iter(), 3, "e", None, Some(false), 1)
                }),
                r#"{"type":"online_update","roomId":"r","online":["u",7],"seq":3,"epoch":"e","recovered":false,"timestamp":1}"#,
            ),
            (
                written(|out| online_update(out, "r", [].into_iter(), 0, "e", Some(900), None, 1)),
                r#"{"type":"online_update","roomId":"r","online":[],"count":900,"truncated":true,"seq":0,"epoch":"e","timestamp":1}"#,
            ),
            (
                written(|out| presence_diff(out, "r", [user.as_ref()].into_iter(), [].into_iter(), 4, false, 1)),
                r#"{"type":"presence_diff","roomId":"r","joined":["u"],"left":[],"count":4,"timestamp":1}"#,
            ),
            (
                written(|out| {
                    presence_diff(out, "r", [].into_iter(), [user.as_ref(), number.as_ref()].into_iter(), 4, true, 1)
                }),
                r#"{"type":"presence_diff","roomId":"r","joined":[],"left":["u",7],"count":4,"truncated":true,"timestamp":1}"#,
            ),
            (written(|out| shed(out, 12, 1)), r#"{"type":"shed","count":12,"timestamp":1}"#),
            (
                written(|out| draining(out, 500, u64::MAX)),
                r#"{"type":"draining","reconnectInMs":500,"timestamp":18446744073709551615}"#,
            ),
            (
                written(|out| removed_from_room(out, "r", "revoked", 1)),
                r#"{"type":"removed_from_room","roomId":"r","reason":"revoked","timestamp":1}"#,
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn answers() {
        let rooms = [
            RoomAnswer { room: AnsweredRoom::Named("a"), code: None },
            RoomAnswer { room: AnsweredRoom::AsGiven("[1]"), code: Some(ErrorCode::InvalidMessage) },
        ];
        let table = [
            (written(|out| pong(out, Some("\"x\""), 1)), r#"{"type":"pong","ref":"x","timestamp":1}"#),
            (written(|out| pong(out, None, 1)), r#"{"type":"pong","timestamp":1}"#),
            (written(|out| ack(out, Some("7"), Some("r"), 1)), r#"{"type":"ack","roomId":"r","ref":7,"timestamp":1}"#),
            (
                written(|out| ack_sent(out, Some("7"), "r", &id("8"), 3, "\"2024-02-29T12:34:56Z\"")),
                r#"{"type":"ack","roomId":"r","ref":7,"id":8,"timestamp":"2024-02-29T12:34:56Z","seq":3}"#,
            ),
            (
                written(|out| ack_sent(out, None, "r", &id("\"a\""), 3, "5")),
                r#"{"type":"ack","roomId":"r","id":"a","timestamp":5,"seq":3}"#,
            ),
            (written(|out| ack_expires(out, None, Some(8), 1)), r#"{"type":"ack","expiresAt":8,"timestamp":1}"#),
            (
                written(|out| ack_rooms(out, Some("7"), rooms, 1)),
                r#"{"type":"ack","ref":7,"rooms":[{"roomId":"a"},{"roomId":[1],"code":"invalid_message"}],"timestamp":1}"#,
            ),
            (written(|out| ack_rooms(out, None, [], 1)), r#"{"type":"ack","rooms":[],"timestamp":1}"#),
            (
                written(|out| error(out, ErrorCode::RateLimited, "slow", Some("7"), Some("r"), Some(3), 1)),
                r#"{"type":"error","roomId":"r","code":"rate_limited","message":"slow","ref":7,"retryAfterMs":3,"timestamp":1}"#,
            ),
            (
                written(|out| error(out, ErrorCode::InvalidJson, "no", None, None, None, 1)),
                r#"{"type":"error","code":"invalid_json","message":"no","timestamp":1}"#,
            ),
            (
                written(|out| rest_error(out, ErrorCode::NotFound, "no \"x\"")),
                r#"{"error":"no \"x\"","code":"not_found"}"#,
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn durable_events_are_finished_by_the_home() {
        let (message, user) = (id("7"), id("\"u\""));
        let fields = br#""content":"x","attachments":[]"#;
        let updated = |user: Option<IdRef<'_>>| {
            written(|out| {
                message_updated_prefix(out, "r", &message, fields, user);
                edited_at(out, 4);
                finish(out, Some(5), 10);
            })
        };
        let deleted = |user: Option<IdRef<'_>>| {
            written(|out| {
                message_deleted_prefix(out, "r", &message, user);
                finish(out, Some(5), 10);
            })
        };
        let table = [
            (
                written(|out| {
                    reaction_prefix(out, "r", &message, "👍", user.as_ref());
                    finish(out, Some(5), 10);
                }),
                r#"{"type":"reaction","roomId":"r","messageId":7,"emoji":"👍","userId":"u","timestamp":5,"seq":10}"#,
            ),
            (
                written(|out| {
                    reaction_removed_prefix(out, "r", &message, "👍", user.as_ref());
                    finish(out, Some(5), 10);
                }),
                r#"{"type":"reaction_removed","roomId":"r","messageId":7,"emoji":"👍","userId":"u","timestamp":5,"seq":10}"#,
            ),
            (
                updated(Some(user.as_ref())),
                r#"{"type":"message_updated","roomId":"r","id":7,"content":"x","attachments":[],"edited":true,"userId":"u","editedAt":4,"timestamp":5,"seq":10}"#,
            ),
            (
                updated(None),
                r#"{"type":"message_updated","roomId":"r","id":7,"content":"x","attachments":[],"edited":true,"editedAt":4,"timestamp":5,"seq":10}"#,
            ),
            (
                deleted(Some(user.as_ref())),
                r#"{"type":"message_deleted","roomId":"r","id":7,"userId":"u","timestamp":5,"seq":10}"#,
            ),
            (deleted(None), r#"{"type":"message_deleted","roomId":"r","id":7,"timestamp":5,"seq":10}"#),
            (
                written(|out| read_receipt(out, "r", user.as_ref(), 9, 5)),
                r#"{"type":"read_receipt","roomId":"r","userId":"u","seq":9,"timestamp":5}"#,
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn own_types_are_sorted() {
        assert!(SERVER_TYPES.is_sorted());
        for event in [UserEvent::Joined, UserEvent::Left, UserEvent::TypingStart, UserEvent::TypingStop] {
            assert!(SERVER_TYPES.contains(&event.as_str()));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(room in ".*", user in ".{1,30}", emoji in ".*", seq in any::<u64>()) {
            let user = Id::from_text(&user).unwrap();
            let mut out = Vec::new();
            reaction_prefix(&mut out, &room, &user, &emoji, user.as_ref());
            finish(&mut out, Some(seq), seq);
            let found: Value = serde_json::from_slice(&out).unwrap();
            let expected = json!({
                "type": "reaction", "roomId": room, "messageId": user.text(), "emoji": emoji,
                "userId": user.text(), "timestamp": seq, "seq": seq,
            });
            prop_assert_eq!(found, expected);
        }
    }
}
