//! One line of an import, checked: which event it is, and what is kept of it.
//!
//! Owns what a line may say: what `export` writes, or a message as the ERP has it, without `type`. A message is checked
//! as one that a service posts. What is wrong is told in words that name what is accepted. Must not know what the store
//! already has.

use crate::access::Level;
use crate::wire::event;
use crate::wire::message::{Author, new_message_prefix, parse_posted};
use crate::wire::object::{self, Member};
use crate::wire::rest_body::{members, put_member};
use crate::wire::timestamp;
use crate::wire::value::{Id, room_name};

/// Longest emoji in bytes, as in a reaction that is sent.
const EMOJI_BYTES_MAX: usize = 64;
/// What the server alone gives a message, and an exported one has.
const SERVERS: [&[u8]; 4] = [b"type", b"seq", b"deleted", b"editedAt"];
/// What is left of a deleted message.
const OF_TOMBSTONE: [&[u8]; 7] = [b"type", b"roomId", b"id", b"timestamp", b"sender_user_id", b"deleted", b"seq"];

const TYPE: &str = "type must be new_message, message_updated, message_deleted, reaction, reaction_removed, read_mark, \
                    member, members_replaced, room_position or revocation, or be left out for a message";
const ROOM: &str = "roomId must be a string of 1 to 256 bytes without control characters, not . or ..";
const SEQ: &str = "seq must be an integer from 1 to 2^53";
const TIMESTAMP: &str = "timestamp must be integer milliseconds since the epoch or an RFC 3339 string";
const DELETED: &str = "deleted must be true or be left out";
const TOMBSTONE: &str =
    "a deleted message has no other members than type, roomId, id, timestamp, sender_user_id and seq";
const EDITED_AT: &str = "editedAt must be integer milliseconds since the epoch";
const MESSAGE_ID: &str = "a message needs an id, by which importing again knows it";
const VERSION: &str = "version must be an integer from 1 to 2^53";
const REVOKE_BEFORE: &str = "revokeBefore must be integer milliseconds since the epoch";
const ROLE: &str = "role must be member, reader or null";
const EMOJI: &str = "emoji must be a string of 1 to 64 bytes";

/// A line that can be kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Where it belongs; empty if to no room.
    pub room: String,
    /// Its place there, if it names one.
    pub seq: Option<u64>,
    /// What it is.
    pub kind: LineKind,
    /// When it was, in milliseconds since the epoch.
    pub at_ms: u64,
    /// The event but for `seq` and the closing brace.
    pub prefix: Vec<u8>,
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// A message as it is now.
    Message { id: Id, sender: Option<Id>, digest: Option<u128>, is_deleted: bool },
    /// An edit.
    Update { message: Id, is_deleted: bool },
    /// A deletion.
    Deletion { message: Id },
    /// A reaction, or its end.
    Reaction { message: Id, emoji: String, user: Id, is_removed: bool },
    /// How far a user has read.
    ReadMark { user: Id },
    /// What a user is in a room.
    Member { user: Id, level: Level, version: u64 },
    /// Since when those are nothing in a room who have no line of their own.
    MembersReplaced { version: u64 },
    /// How far a room had come of which nothing is kept.
    RoomPosition,
    /// From when on a user's tokens count, in milliseconds since the epoch.
    Revocation { user: Id, before_ms: u64 },
}

impl Line {
    /// The event with its place.
    pub fn body(&self, seq: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.prefix.len() + 32);
        body.extend_from_slice(&self.prefix);
        event::finish(&mut body, None, seq);
        body
    }
}

/// Reads a line. `key` is that of the store's digests; `now_ms` is when it happened unless it says so.
///
/// # Errors
/// What is wrong, and what is accepted.
pub(crate) fn parse_line(text: &[u8], key: (u64, u64), now_ms: u64) -> Result<Line, String> {
    let members = members(text).map_err(|refusal| refusal.message.replace("the body", "the line"))?;
    let fields = Fields(&members);
    let kind = fields.raw("type").map(|raw| object::string(raw).ok_or(TYPE)).transpose()?;
    if kind.as_deref() == Some("revocation") {
        let before_ms = fields.raw("revokeBefore").and_then(integer).ok_or(REVOKE_BEFORE)?;
        let kind = LineKind::Revocation { user: fields.id("userId")?, before_ms };
        return Ok(Line { room: String::new(), seq: None, kind, at_ms: now_ms, prefix: Vec::new() });
    }
    let room = fields.string("roomId").filter(|room| room_name(room).is_some()).ok_or(ROOM)?;
    let seq = fields.raw("seq").map(|raw| integer(raw).filter(|&seq| seq >= 1).ok_or(SEQ)).transpose()?;
    let time = fields.raw("timestamp").map(|raw| timestamp::parse_raw(raw).ok_or(TIMESTAMP)).transpose()?;
    // Nothing that was before 1970 is older than all else.
    let at_ms = time.map_or(now_ms, |ms| u64::try_from(ms).unwrap_or_default());
    let line = |kind, prefix| Line { room: room.clone(), seq, kind, at_ms, prefix };
    match kind.as_deref() {
        None | Some("new_message") => {
            message(&fields, &room, key, now_ms, kind.is_some()).map(|(kind, prefix)| line(kind, prefix))
        }
        Some("message_updated") => {
            let kind = LineKind::Update { message: fields.id("id")?, is_deleted: fields.is_deleted()? };
            Ok(line(kind, fields.as_written(now_ms)))
        }
        Some("message_deleted") => {
            Ok(line(LineKind::Deletion { message: fields.id("id")? }, fields.as_written(now_ms)))
        }
        Some(name @ ("reaction" | "reaction_removed")) => {
            let emoji = fields.string("emoji").filter(|emoji| (1..=EMOJI_BYTES_MAX).contains(&emoji.len()));
            let (message, user) = (fields.id("messageId")?, fields.id("userId")?);
            let is_removed = name == "reaction_removed";
            let kind = LineKind::Reaction { message, emoji: emoji.ok_or(EMOJI)?, user, is_removed };
            Ok(line(kind, fields.as_written(now_ms)))
        }
        Some("read_mark" | "room_position") if seq.is_none() => Err(SEQ.to_owned()),
        Some("read_mark") => Ok(line(LineKind::ReadMark { user: fields.id("userId")? }, Vec::new())),
        Some("member") => {
            let (user, level, version) = (fields.id("userId")?, fields.level()?, fields.version()?);
            Ok(line(LineKind::Member { user, level, version }, Vec::new()))
        }
        Some("members_replaced") => {
            let version = fields.version()?;
            Ok(line(LineKind::MembersReplaced { version }, Vec::new()))
        }
        Some("room_position") => Ok(line(LineKind::RoomPosition, Vec::new())),
        Some(_) => Err(TYPE.to_owned()),
    }
}

/// A message, checked as one that a service posts. With its type it stays as it is written, since that is how it was sent.
fn message(
    fields: &Fields<'_>,
    room: &str,
    key: (u64, u64),
    now_ms: u64,
    is_typed: bool,
) -> Result<(LineKind, Vec<u8>), String> {
    let is_deleted = fields.is_deleted()?;
    if is_deleted && fields.0.iter().any(|member| !OF_TOMBSTONE.contains(&&*member.key)) {
        return Err(TOMBSTONE.to_owned());
    }
    if fields.raw("editedAt").is_some_and(|raw| integer(raw).is_none()) {
        return Err(EDITED_AT.to_owned());
    }
    let mut posted = Vec::new();
    for member in fields.0.iter().filter(|member| !SERVERS.contains(&&*member.key)) {
        put_member(&mut posted, member);
    }
    // The room is always there, so there is a comma in front.
    posted.splice(..1, [b'{']);
    posted.push(b'}');
    let posted = parse_posted(&posted, room, key, &Author::Service);
    let posted = posted.map_err(|refusal| refusal.message.replace("the body", "the line"))?;
    let id = posted.id.clone().ok_or(MESSAGE_ID)?;
    let sender = fields.raw("sender_user_id").and_then(Id::parse_raw);
    let prefix = if is_typed {
        fields.as_written(now_ms)
    } else {
        let mut prefix = Vec::new();
        new_message_prefix(&mut prefix, room, &id, &posted);
        if posted.timestamp.is_none() {
            put_timestamp(&mut prefix, now_ms);
        }
        prefix
    };
    // What was posted cannot be told from what it has become.
    let digest = (!is_deleted && fields.raw("editedAt").is_none()).then_some(posted.digest);
    Ok((LineKind::Message { id, sender, digest, is_deleted }, prefix))
}

/// The members of a line.
struct Fields<'a>(&'a [Member<'a>]);

impl<'a> Fields<'a> {
    fn raw(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|member| *member.key == *key.as_bytes()).map(|member| member.raw_value)
    }

    fn string(&self, key: &str) -> Option<String> {
        object::string(self.raw(key)?).map(|text| text.into_owned())
    }

    fn id(&self, key: &str) -> Result<Id, String> {
        let id = self.raw(key).and_then(Id::parse_raw);
        id.ok_or_else(|| format!("{key} must be a string of 1 to 128 bytes or an integer within 2^53"))
    }

    fn version(&self) -> Result<u64, String> {
        self.raw("version").and_then(integer).filter(|&version| version >= 1).ok_or_else(|| VERSION.to_owned())
    }

    fn level(&self) -> Result<Level, String> {
        match self.raw("role") {
            Some("null") => Ok(Level::Nothing),
            _ => self.string("role").and_then(|role| Level::from_role(&role)).ok_or_else(|| ROLE.to_owned()),
        }
    }

    fn is_deleted(&self) -> Result<bool, String> {
        match self.raw("deleted") {
            None => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(DELETED.to_owned()),
        }
    }

    /// All but `seq`, in order, and a time.
    fn as_written(&self, now_ms: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for member in self.0.iter().filter(|member| *member.key != *b"seq") {
            put_member(&mut out, member);
        }
        // There is at least the type, so there is a comma in front.
        out.splice(..1, [b'{']);
        if self.raw("timestamp").is_none() {
            put_timestamp(&mut out, now_ms);
        }
        out
    }
}

fn put_timestamp(out: &mut Vec<u8>, now_ms: u64) {
    out.extend_from_slice(b",\"timestamp\":");
    out.extend_from_slice(itoa::Buffer::new().format(now_ms).as_bytes());
}

/// An integer from 0 to 2^53.
fn integer(raw: &str) -> Option<u64> {
    let number = u64::try_from(object::integer(raw)?).ok()?;
    (number <= 1 << 53).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn parse(text: &str) -> Result<Line, String> {
        parse_line(text.as_bytes(), (1, 2), NOW_MS)
    }

    fn body(text: &str) -> String {
        String::from_utf8(parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).body(9)).unwrap()
    }

    #[test]
    fn what_was_exported_stays_as_it_was() {
        for line in [
            r#"{"type":"new_message","roomId":"r","id":7,"content":"\u00e9","n":1.50,"timestamp":"2024-02-29T12:34:56Z","seq":9}"#,
            r#"{"type":"new_message","roomId":"r","id":"a","content":"x","timestamp":5,"edited":true,"editedAt":8,"seq":9}"#,
            r#"{"type":"new_message","roomId":"r","id":"a","sender_user_id":42,"timestamp":5,"deleted":true,"seq":9}"#,
            r#"{"type":"message_updated","roomId":"r","id":"a","content":"y","edited":true,"userId":1,"editedAt":3,"timestamp":3,"seq":9}"#,
            r#"{"type":"message_updated","roomId":"r","id":"a","edited":true,"editedAt":3,"timestamp":3,"deleted":true,"seq":9}"#,
            r#"{"type":"message_deleted","roomId":"r","id":"a","userId":"u","timestamp":3,"seq":9}"#,
            r#"{"type":"reaction","roomId":"r","messageId":"a","emoji":"x","userId":"u","timestamp":3,"seq":9}"#,
            r#"{"type":"reaction_removed","roomId":"r","messageId":"a","emoji":"x","userId":"u","timestamp":3,"seq":9}"#,
        ] {
            assert_eq!(body(line), line);
            assert_eq!(parse(line).unwrap().seq, Some(9));
        }
    }

    #[test]
    fn a_message_as_the_erp_has_it() {
        assert_eq!(
            body(r#" {"id": 7, "roomId": "r", "content": "x", "sender_user_id": 4, "timestamp": 5} "#),
            r#"{"type":"new_message","roomId":"r","id":7,"content":"x","sender_user_id":4,"timestamp":5,"seq":9}"#
        );
        let made = body(r#"{"id":7,"roomId":"r"}"#);
        assert_eq!(made, r#"{"type":"new_message","roomId":"r","id":7,"timestamp":1700000000000,"seq":9}"#);
        // The time does not make it another message.
        let digest = |text: &str| match parse(text).unwrap().kind {
            LineKind::Message { digest, .. } => digest,
            other => panic!("{other:?}"),
        };
        assert_eq!(digest(r#"{"id":7,"roomId":"r"}"#), digest(r#"{"id":7,"roomId":"r","timestamp":5}"#));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (line, message) in [
            ("", "the line is not JSON"),
            ("[]", "the line must be a JSON object"),
            (r#"{"roomId":"r","roomId":"r"}"#, "a key is given twice"),
            (r#"{"id":7}"#, ROOM),
            (r#"{"roomId":"..","id":7}"#, ROOM),
            (r#"{"roomId":"r"}"#, MESSAGE_ID),
            (r#"{"roomId":"r","id":{}}"#, "id must be a string of 1 to 128 bytes or an integer within 2^53"),
            (r#"{"roomId":"r","id":7,"timestamp":"now"}"#, TIMESTAMP),
            (r#"{"roomId":"r","id":7,"epoch":"x"}"#, "epoch is a reserved name"),
            (r#"{"roomId":"r","id":7,"seq":0}"#, SEQ),
            (r#"{"roomId":"r","id":7,"deleted":false}"#, DELETED),
            (r#"{"roomId":"r","id":7,"deleted":true,"content":"x"}"#, TOMBSTONE),
            (r#"{"roomId":"r","id":7,"editedAt":"x"}"#, EDITED_AT),
            (r#"{"type":"typing_start","roomId":"r"}"#, TYPE),
            (r#"{"type":7,"roomId":"r"}"#, TYPE),
            (r#"{"type":"reaction","roomId":"r","messageId":1,"userId":1,"emoji":""}"#, EMOJI),
            (r#"{"type":"read_mark","roomId":"r","userId":1}"#, SEQ),
            (r#"{"type":"revocation","userId":1}"#, REVOKE_BEFORE),
            (r#"{"type":"revocation","userId":1,"revokeBefore":-1}"#, REVOKE_BEFORE),
            (
                r#"{"type":"revocation","revokeBefore":1}"#,
                "userId must be a string of 1 to 128 bytes or an integer within 2^53",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), message, "{line}");
        }
    }
}
