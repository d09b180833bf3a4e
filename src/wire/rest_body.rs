//! The bodies of REST calls but for the message itself, broadcast, events, disconnect, read state, members, and the queries of
//! those that give pages.
//!
//! Owns how a JSON body is read and refused, and which fields these calls know. Knows nothing about
//! paths, credentials or status lines. Invariants: what passes through to clients stays as it was
//! written; a body is refused as a whole; no input makes parsing panic, or recurse without bound.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::wire::client::ErrorCode;
use crate::wire::digest::DEPTH_MAX;
use crate::wire::event::SERVER_TYPES;
use crate::wire::object::{self, Member, SplitError};
use crate::wire::timestamp;
use crate::wire::value::{Id, put_json_string};

/// Most rooms in one broadcast.
pub const BROADCAST_ROOMS_MAX: usize = 1_000;
/// Longest `type` of a posted event in bytes.
pub const EVENT_TYPE_BYTES_MAX: usize = 64;
/// Longest reason of a disconnect in bytes: what fits into a close frame (RFC 6455, section 5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// How many messages are in a page that does not say.
pub const PAGE_DEFAULT: u32 = 50;
/// Most messages in one page.
pub const PAGE_MAX: u32 = 200;
/// How long the feed lets a reader wait at most.
pub const WAIT_SECONDS_MAX: u64 = 60;

/// The greatest version, which a JSON number holds.
const VERSION_MAX: u64 = 1 << 53;

const VERSION: &str = "version must be an integer from 1 to 2^53";
const MEMBER_ROLE: &str = "role must be member or reader";
const USER: &str = "userId must be a string of 1 to 128 bytes or an integer within 2^53";
const SEQ: &str = "seq must be an integer from 1 to 2^53";
const TYPE: &str = "type must be a string of 1 to 64 bytes, none of the server's own types";
const ROOM: &str = "roomId must be left out, or be the room of the path";
const ROOMS: &str = "rooms must be an array of 1 to 1000 strings";
const MESSAGE: &str = "message must be a JSON object";
const REASON: &str = "reason must be a string of at most 123 bytes";
const CONNECTION_ID: &str = "connectionId must be a string";
const REVOKE_BEFORE: &str = "revokeBefore must be integer milliseconds since the epoch or an RFC 3339 string";

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostRefusal {
    /// The HTTP status: 400 for what is not JSON, else 422.
    pub status: u16,
    /// The code of the REST error.
    pub code: ErrorCode,
    /// What is wrong and what would be accepted, in English.
    pub message: Cow<'static, str>,
}

impl PostRefusal {
    /// A body that is not JSON.
    pub(crate) fn not_json(message: &'static str) -> PostRefusal {
        PostRefusal { status: 400, code: ErrorCode::InvalidJson, message: message.into() }
    }

    /// A body that is JSON, but not what the call takes.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> PostRefusal {
        PostRefusal { status: 422, code: ErrorCode::InvalidMessage, message: message.into() }
    }
}

/// The members of a body, in the order given. No key occurs twice, and nothing is nested deeper
/// than [`DEPTH_MAX`].
pub(crate) fn members(body: &[u8]) -> Result<Vec<Member<'_>>, PostRefusal> {
    let text = str::from_utf8(body).map_err(|_| PostRefusal::not_json("the body is not UTF-8"))?;
    let mut members = Vec::new();
    let split = object::split(text, |member| members.push(member));
    split.map_err(|error| match error {
        SplitError::NotJson => PostRefusal::not_json("the body is not JSON"),
        SplitError::NotObject => PostRefusal::invalid("the body must be a JSON object"),
    })?;
    let mut keys: Vec<_> = members.iter().map(|member| member.key.clone()).collect();
    if object::has_duplicate(&mut keys) {
        return Err(PostRefusal::invalid("a key is given twice"));
    }
    if object::is_deeper_than(text, DEPTH_MAX) {
        return Err(PostRefusal::invalid("the body is nested deeper than 100 levels"));
    }
    Ok(members)
}

/// A broadcast: one message for many rooms.
#[derive(Debug)]
pub struct Broadcast<'a> {
    /// 1 to [`BROADCAST_ROOMS_MAX`] texts in the order given. Whether each is a valid room name is
    /// answered room by room.
    pub rooms: Vec<String>,
    /// A JSON object, to be parsed as a posted message for each room.
    pub message: &'a RawValue,
}

/// Parses the body of a broadcast. Unknown fields are ignored.
pub fn parse_broadcast(body: &[u8]) -> Result<Broadcast<'_>, PostRefusal> {
    let (mut rooms, mut message) = (None, None);
    for member in members(body)? {
        match &*member.key {
            b"rooms" => rooms = Some(member.raw_value),
            b"message" => message = Some(member.raw_value),
            _ => {}
        }
    }
    let rooms = rooms
        .and_then(|raw| object::elements(raw, BROADCAST_ROOMS_MAX))
        .and_then(|raws| raws.into_iter().map(room_text).collect::<Option<Vec<_>>>())
        .filter(|rooms| !rooms.is_empty())
        .ok_or(PostRefusal::invalid(ROOMS))?;
    let message = message
        .filter(|raw| raw.starts_with('{'))
        .and_then(|raw| serde_json::from_str(raw).ok())
        .ok_or(PostRefusal::invalid(MESSAGE))?;
    Ok(Broadcast { rooms, message })
}

/// Parses an ephemeral event for `room` into the beginning of what goes out:
/// `{"type":...,"roomId":...` and the poster's other fields as written. `timestamp` is the
/// server's, so a given one is dropped; the caller completes the object with
/// [`finish_ephemeral`](crate::wire::event::finish_ephemeral).
pub fn parse_room_event(body: &[u8], room: &str) -> Result<Vec<u8>, PostRefusal> {
    event(body, Some(room))
}

/// Parses an ephemeral event for all connections of a user, as [`parse_room_event`] does, but
/// without a room: a `roomId` is the poster's like any other field.
pub fn parse_user_event(body: &[u8]) -> Result<Vec<u8>, PostRefusal> {
    event(body, None)
}

/// What `disconnect` is to do. Absent and `null` are the same.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// The text of the close frame, at most [`REASON_BYTES_MAX`] bytes.
    pub reason: Option<String>,
    /// The one connection that is meant, instead of all.
    pub connection_id: Option<String>,
    /// Tokens issued before this are refused, in milliseconds since the epoch.
    pub revoke_before_ms: Option<i64>,
}

/// Parses the body of a disconnect, which may be empty. Unknown fields are ignored.
pub fn parse_disconnect(body: &[u8]) -> Result<Disconnect, PostRefusal> {
    let mut disconnect = Disconnect::default();
    if body.trim_ascii().is_empty() {
        return Ok(disconnect);
    }
    for member in members(body)? {
        let raw = member.raw_value;
        if raw == "null" {
            continue;
        }
        match &*member.key {
            b"reason" => {
                let reason = object::string(raw).filter(|text| text.len() <= REASON_BYTES_MAX);
                let reason = reason.ok_or(PostRefusal::invalid(REASON))?;
                disconnect.reason = Some(reason.into_owned());
            }
            b"connectionId" => {
                let id = object::string(raw).ok_or(PostRefusal::invalid(CONNECTION_ID))?;
                disconnect.connection_id = Some(id.into_owned());
            }
            b"revokeBefore" => {
                let ms = timestamp::parse_raw(raw).ok_or(PostRefusal::invalid(REVOKE_BEFORE))?;
                disconnect.revoke_before_ms = Some(ms);
            }
            _ => {}
        }
    }
    Ok(disconnect)
}

/// Parses the body of a mark of what was read: the `seq` of a message, from 1 to 2^53. Unknown fields are ignored.
pub fn parse_read(body: &[u8]) -> Result<u64, PostRefusal> {
    let members = members(body)?;
    let seq = members.iter().find(|member| *member.key == *b"seq").and_then(|member| object::integer(member.raw_value));
    seq.filter(|seq| *seq > 0).map(i64::unsigned_abs).ok_or(PostRefusal::invalid(SEQ))
}

/// What a user is to be in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberBody {
    /// A reader rather than a member.
    pub reads_only: bool,
    /// Of the membership, 1 to 2^53.
    pub version: Option<u64>,
}

/// All that are to be in a room.
#[derive(Debug, PartialEq, Eq)]
pub struct MembersBody {
    /// Each user once.
    pub members: Vec<(Id, MemberBody)>,
    /// Of all memberships, 1 to 2^53.
    pub version: Option<u64>,
}

/// Parses the body of a membership: `{role?, version?}`, or nothing, which makes a member. Unknown fields are ignored.
pub fn parse_member(body: &[u8]) -> Result<MemberBody, PostRefusal> {
    let members = if body.trim_ascii().is_empty() { Vec::new() } else { members(body)? };
    member_of(&members)
}

/// Parses the body that replaces all memberships: `{members: [{userId, role?}], version?}`, of at most `max` users.
pub fn parse_members(body: &[u8], max: usize) -> Result<MembersBody, PostRefusal> {
    let all = members(body)?;
    let version = member_of(&all)?.version;
    let list = all.iter().find(|member| *member.key == *b"members");
    let invalid = || PostRefusal::invalid(format!("members must be an array of at most {max} objects with userId"));
    let list = list.and_then(|list| object::elements(list.raw_value, max)).ok_or_else(invalid)?;
    let mut found = Vec::with_capacity(list.len());
    for raw in list {
        let fields = members(raw.as_bytes()).map_err(|_| invalid())?;
        let user = fields.iter().find(|member| *member.key == *b"userId");
        let user = user.and_then(|user| Id::parse_raw(user.raw_value)).ok_or(PostRefusal::invalid(USER))?;
        let member = member_of(&fields)?;
        if member.version.is_some() {
            return Err(PostRefusal::invalid("version stands beside members, and is that of all"));
        }
        found.push((user, member));
    }
    let mut texts: Vec<&str> = found.iter().map(|(user, _)| user.text()).collect();
    texts.sort_unstable();
    if texts.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(PostRefusal::invalid("a user is given twice"));
    }
    Ok(MembersBody { members: found, version })
}

/// Parses the `version` of a query.
pub fn parse_version(version: Option<&str>) -> Result<Option<u64>, PostRefusal> {
    let version = parse_number(version, VERSION, 1)?;
    if version.is_some_and(|version| version > VERSION_MAX) {
        return Err(PostRefusal::invalid(VERSION));
    }
    Ok(version)
}

fn member_of(members: &[Member<'_>]) -> Result<MemberBody, PostRefusal> {
    let raw = |key: &[u8]| {
        let member = members.iter().find(|member| *member.key == *key);
        member.map(|member| member.raw_value).filter(|raw| *raw != "null")
    };
    let reads_only = match raw(b"role").map(object::string) {
        None => false,
        Some(Some(role)) if role == "member" => false,
        Some(Some(role)) if role == "reader" => true,
        Some(_) => return Err(PostRefusal::invalid(MEMBER_ROLE)),
    };
    let number = |raw: &str| {
        let number = object::integer(raw).and_then(|number| u64::try_from(number).ok());
        number.filter(|number| (1..=VERSION_MAX).contains(number)).ok_or(PostRefusal::invalid(VERSION))
    };
    Ok(MemberBody { reads_only, version: raw(b"version").map(number).transpose()? })
}

/// Which messages of a room are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Below this `seq`.
    pub before: Option<u64>,
    /// Above this `seq`; never together with `before`.
    pub after: Option<u64>,
    /// At most so many, 1 to [`PAGE_MAX`].
    pub limit: u32,
}

/// Parses the query of a page of messages, in which each value may be absent.
pub fn parse_page(before: Option<&str>, after: Option<&str>, limit: Option<&str>) -> Result<Page, PostRefusal> {
    let before = parse_number(before, "before must be a positive integer", 1)?;
    let after = parse_number(after, "after must be an integer from 0 on", 0)?;
    if before.is_some() && after.is_some() {
        return Err(PostRefusal::invalid("give before or after, not both"));
    }
    let limit = parse_limit(limit, PAGE_DEFAULT, PAGE_MAX)?;
    Ok(Page { before, after, limit })
}

/// Parses the `limit` of a page: a positive integer, of which no more than `max` counts.
pub fn parse_limit(limit: Option<&str>, default: u32, max: u32) -> Result<u32, PostRefusal> {
    let limit = parse_number(limit, "limit must be a positive integer", 1)?;
    Ok(limit.map_or(default, |limit| u32::try_from(limit).unwrap_or(max).min(max)))
}

/// Parses the `wait` of the feed into milliseconds: whole seconds, 0 to 60, none if absent.
pub fn parse_wait(wait: Option<&str>) -> Result<u64, PostRefusal> {
    const WAIT: &str = "wait must be a number of seconds from 0 to 60";
    let seconds = parse_number(wait, WAIT, 0)?.unwrap_or(0);
    if seconds > WAIT_SECONDS_MAX { Err(PostRefusal::invalid(WAIT)) } else { Ok(seconds * 1000) }
}

/// A number that is written as plain digits.
fn parse_number(text: Option<&str>, refusal: &'static str, min: u64) -> Result<Option<u64>, PostRefusal> {
    let Some(text) = text else { return Ok(None) };
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = object::integer(text).filter(|_| is_plain).and_then(|number| u64::try_from(number).ok());
    number.filter(|number| *number >= min).map(Some).ok_or(PostRefusal::invalid(refusal))
}

fn event(body: &[u8], room: Option<&str>) -> Result<Vec<u8>, PostRefusal> {
    let mut kind = None;
    let mut fields = Vec::with_capacity(body.len());
    for member in members(body)? {
        match (&*member.key, room) {
            (b"type", _) => kind = object::string(member.raw_value),
            (b"timestamp", _) => {}
            (b"seq", _) => return Err(PostRefusal::invalid("seq is a reserved name")),
            (b"epoch", _) => return Err(PostRefusal::invalid("epoch is a reserved name")),
            (b"roomId", Some(room)) => {
                if object::string(member.raw_value).as_deref() != Some(room) {
                    return Err(PostRefusal::invalid(ROOM));
                }
            }
            _ => put_member(&mut fields, &member),
        }
    }
    let is_free = |kind: &Cow<'_, str>| {
        let length_fits = (1..=EVENT_TYPE_BYTES_MAX).contains(&kind.len());
        length_fits && !SERVER_TYPES.contains(&&**kind)
    };
    let kind = kind.filter(is_free).ok_or(PostRefusal::invalid(TYPE))?;
    let mut out = Vec::with_capacity(fields.len() + 64);
    out.extend_from_slice(b"{\"type\":");
    put_json_string(&mut out, &kind);
    if let Some(room) = room {
        out.extend_from_slice(b",\"roomId\":");
        put_json_string(&mut out, room);
    }
    out.extend_from_slice(&fields);
    Ok(out)
}

/// Appends a comma and the member as it was written.
pub(crate) fn put_member(out: &mut Vec<u8>, member: &Member<'_>) {
    out.push(b',');
    out.extend_from_slice(member.raw_key.as_bytes());
    out.push(b':');
    out.extend_from_slice(member.raw_value.as_bytes());
}

fn room_text(raw: &str) -> Option<String> {
    object::string(raw).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::event::finish_ephemeral;

    fn refused<T: std::fmt::Debug>(parsed: Result<T, PostRefusal>) -> (u16, &'static str, String) {
        let refusal = parsed.unwrap_err();
        (refusal.status, refusal.code.as_str(), refusal.message.into_owned())
    }

    fn invalid(message: &str) -> (u16, &'static str, String) {
        (422, "invalid_message", message.to_owned())
    }

    #[test]
    fn broadcast() {
        let body = br#"{"message": {"id":1.0} ,"rooms":["a","\u0062","."],"x":1}"#;
        let parsed = parse_broadcast(body).unwrap();
        assert_eq!(parsed.rooms, ["a", "b", "."]);
        assert_eq!(parsed.message.get(), r#"{"id":1.0}"#);
        let many = |count| format!(r#"{{"message":{{}},"rooms":{:?}}}"#, vec!["r"; count]);
        assert!(parse_broadcast(many(1_000).as_bytes()).is_ok());
        let table = [
            (r#"{"message":{}}"#, ROOMS),
            (r#"{"message":{},"rooms":[]}"#, ROOMS),
            (r#"{"message":{},"rooms":[7]}"#, ROOMS),
            (r#"{"message":{},"rooms":"a"}"#, ROOMS),
            (&many(1_001), ROOMS),
            (r#"{"rooms":["a"]}"#, MESSAGE),
            (r#"{"rooms":["a"],"message":[]}"#, MESSAGE),
            (r#"{"rooms":["a"],"message":{},"rooms":["a"]}"#, "a key is given twice"),
        ];
        for (body, message) in table {
            assert_eq!(refused(parse_broadcast(body.as_bytes())), invalid(message), "{body}");
        }
    }

    #[test]
    fn memberships() {
        let member = |reads_only, version| Ok(MemberBody { reads_only, version });
        for (body, expected) in [
            ("", member(false, None)),
            ("{}", member(false, None)),
            (r#"{"role":"reader","version":7,"x":1}"#, member(true, Some(7))),
            (r#"{"role":null,"version":9007199254740992}"#, member(false, Some(1 << 53))),
            (r#"{"role":"owner"}"#, Err(MEMBER_ROLE)),
            (r#"{"role":7}"#, Err(MEMBER_ROLE)),
            (r#"{"version":0}"#, Err(VERSION)),
            (r#"{"version":1.0}"#, Err(VERSION)),
            (r#"{"version":"1"}"#, Err(VERSION)),
            (r#"{"version":9007199254740993}"#, Err(VERSION)),
            ("[]", Err("the body must be a JSON object")),
        ] {
            let parsed = parse_member(body.as_bytes());
            assert_eq!(parsed.map_err(|refusal| refusal.message), expected.map_err(Into::into), "{body}");
        }
        let parsed = parse_members(br#"{"version":3,"members":[{"userId":7},{"userId":"a","role":"reader"}]}"#, 2);
        let users: Vec<_> =
            parsed.unwrap().members.iter().map(|(user, m)| (user.text().to_owned(), m.reads_only)).collect();
        assert_eq!(users, [("7".to_owned(), false), ("a".to_owned(), true)]);
        assert_eq!(parse_members(br#"{"members":[]}"#, 2), Ok(MembersBody { members: Vec::new(), version: None }));
        let all = "members must be an array of at most 2 objects with userId";
        for (body, message) in [
            ("{}", all),
            (r#"{"members":{}}"#, all),
            (r#"{"members":["a"]}"#, all),
            (r#"{"members":[{"userId":1},{"userId":2},{"userId":3}]}"#, all),
            (r#"{"members":[{}]}"#, USER),
            (r#"{"members":[{"userId":7},{"userId":"7"}]}"#, "a user is given twice"),
            (r#"{"members":[{"userId":7,"role":"x"}]}"#, MEMBER_ROLE),
            (r#"{"members":[{"userId":7,"version":1}]}"#, "version stands beside members, and is that of all"),
        ] {
            assert_eq!(refused(parse_members(body.as_bytes(), 2)), invalid(message), "{body}");
        }
        assert_eq!(parse_version(None), Ok(None));
        assert_eq!(parse_version(Some("7")), Ok(Some(7)));
        for bad in ["", "0", "-1", "9007199254740993", "x"] {
            assert_eq!(refused(parse_version(Some(bad))), invalid(VERSION), "{bad}");
        }
    }

    #[test]
    fn events() {
        let finished = |mut out: Vec<u8>| {
            finish_ephemeral(&mut out, 5);
            String::from_utf8(out).unwrap()
        };
        let body = br#"{"a": 1.50,"type":"task_\u006dove","timestamp":"x","roomId":"r\"","\u0062":"\ud800"}"#;
        assert_eq!(
            finished(parse_room_event(body, "r\"").unwrap()),
            r#"{"type":"task_move","roomId":"r\"","a":1.50,"\u0062":"\ud800","timestamp":5}"#,
        );
        assert_eq!(
            finished(parse_user_event(body).unwrap()),
            r#"{"type":"task_move","a":1.50,"roomId":"r\"","\u0062":"\ud800","timestamp":5}"#,
        );
        assert_eq!(
            finished(parse_room_event(br#"{"type":"x"}"#, "r").unwrap()),
            r#"{"type":"x","roomId":"r","timestamp":5}"#,
        );
    }

    #[test]
    fn refused_events() {
        let long = format!(r#"{{"type":"{}"}}"#, "x".repeat(65));
        let table = [
            ("{}", TYPE),
            (r#"{"type":7}"#, TYPE),
            (r#"{"type":""}"#, TYPE),
            (r#"{"type":"new_message"}"#, TYPE),
            (r#"{"type":"user\u005fjoined"}"#, TYPE),
            (r#"{"type":"\ud800"}"#, TYPE),
            (&long, TYPE),
            (r#"{"type":"x","roomId":"other"}"#, ROOM),
            (r#"{"type":"x","roomId":null}"#, ROOM),
            (r#"{"type":"x","s\u0065q":1}"#, "seq is a reserved name"),
            (r#"{"type":"x","epoch":1}"#, "epoch is a reserved name"),
            (r#"{"type":"x","type":"y"}"#, "a key is given twice"),
            ("[]", "the body must be a JSON object"),
        ];
        for (body, message) in table {
            assert_eq!(refused(parse_room_event(body.as_bytes(), "r")), invalid(message), "{body}");
        }
        for kind in SERVER_TYPES {
            let body = format!(r#"{{"type":"{kind}"}}"#);
            assert_eq!(refused(parse_user_event(body.as_bytes())), invalid(TYPE));
        }
        for body in [&b""[..], b"{", b"{\"type\":\"\xff\"}"] {
            assert_eq!(parse_room_event(body, "r").unwrap_err().status, 400);
        }
        let deep = format!(r#"{{"type":"x","a":{}{}}}"#, "[".repeat(100), "]".repeat(100));
        let message = "the body is nested deeper than 100 levels";
        assert_eq!(refused(parse_room_event(deep.as_bytes(), "r")), invalid(message));
    }

    #[test]
    fn disconnect() {
        for body in ["", " \n", "{}", r#"{"reason":null,"connectionId":null,"revokeBefore":null,"x":1}"#] {
            assert_eq!(parse_disconnect(body.as_bytes()).unwrap(), Disconnect::default());
        }
        let expected = Disconnect {
            reason: Some("bye".to_owned()),
            connection_id: Some("c".to_owned()),
            revoke_before_ms: Some(1_000),
        };
        for time in ["1000", "\"1970-01-01T00:00:01Z\""] {
            let body = format!(r#"{{"reason":"b\u0079e","connectionId":"c","revokeBefore":{time}}}"#);
            assert_eq!(parse_disconnect(body.as_bytes()).unwrap(), expected);
        }
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(124));
        let table = [
            (r#"{"reason":7}"#, REASON),
            (&long, REASON),
            (r#"{"connectionId":7}"#, CONNECTION_ID),
            (r#"{"revokeBefore":-1}"#, REVOKE_BEFORE),
            (r#"{"revokeBefore":"yesterday"}"#, REVOKE_BEFORE),
            ("[]", "the body must be a JSON object"),
        ];
        for (body, message) in table {
            assert_eq!(refused(parse_disconnect(body.as_bytes())), invalid(message), "{body}");
        }
        assert_eq!(parse_disconnect(b"x").unwrap_err().status, 400);
    }

    #[test]
    fn read_marks() {
        for (body, expected) in [
            (r#"{"seq":1}"#, Ok(1)),
            (r#"{"x":1,"s\u0065q":9007199254740992}"#, Ok(1 << 53)),
            (r#"{"seq":0}"#, Err(SEQ)),
            (r#"{"seq":-1}"#, Err(SEQ)),
            (r#"{"seq":1.0}"#, Err(SEQ)),
            (r#"{"seq":9007199254740993}"#, Err(SEQ)),
            (r#"{"seq":"1"}"#, Err(SEQ)),
            ("{}", Err(SEQ)),
            (r#"{"seq":1,"seq":2}"#, Err("a key is given twice")),
        ] {
            assert_eq!(parse_read(body.as_bytes()), expected.map_err(PostRefusal::invalid), "{body}");
        }
        assert_eq!(parse_read(b"").unwrap_err().status, 400);
    }

    #[test]
    fn pages() {
        let page = |before, after, limit| Ok(Page { before, after, limit });
        let refused = |message: &'static str| Err(PostRefusal::invalid(message));
        let (before, after) = ("before must be a positive integer", "after must be an integer from 0 on");
        let limit = "limit must be a positive integer";
        for (query, expected) in [
            ((None, None, None), page(None, None, PAGE_DEFAULT)),
            ((Some("1"), None, Some("7")), page(Some(1), None, 7)),
            ((None, Some("0"), Some("200")), page(None, Some(0), 200)),
            ((None, Some("9007199254740992"), Some("201")), page(None, Some(1 << 53), 200)),
            ((None, None, Some("9007199254740992")), page(None, None, 200)),
            ((Some("0"), None, None), refused(before)),
            ((Some("-1"), None, None), refused(before)),
            ((Some("+1"), None, None), refused(before)),
            ((Some("9007199254740993"), None, None), refused(before)),
            ((Some("99999999999999999999"), None, None), refused(before)),
            ((None, Some(""), None), refused(after)),
            ((None, Some("x"), None), refused(after)),
            ((None, None, Some("0")), refused(limit)),
            ((None, None, Some("1.5")), refused(limit)),
            ((Some("1"), Some("1"), None), refused("give before or after, not both")),
        ] {
            assert_eq!(parse_page(query.0, query.1, query.2), expected, "{query:?}");
        }
        for (wait, expected) in [(None, Some(0)), (Some("0"), Some(0)), (Some("60"), Some(60_000))] {
            assert_eq!(parse_wait(wait).ok(), expected);
        }
        for wait in ["61", "-1", "1.5", "", "1s"] {
            assert_eq!(parse_wait(Some(wait)).unwrap_err().status, 422, "{wait}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_broadcast(&body);
            let _ = parse_room_event(&body, "r");
            let _ = parse_user_event(&body);
            let _ = parse_disconnect(&body);
            let _ = parse_read(&body);
        }
    }
}
