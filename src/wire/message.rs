//! Messages that are posted, by a service or by a user, and the `new_message` made of them.
//!
//! Owns which fields of a message are the poster's and which the server's, and when two posts are
//! the same. Knows nothing about rooms, rights, or where ids and times come from. Invariants: what
//! the poster wrote goes out as written, in the poster's order; what the server owns cannot be
//! posted.

use crate::wire::digest::{DEPTH_MAX, Digester, Entries};
use crate::wire::object::{self, Member};
use crate::wire::rest_body::{members, put_member};
use crate::wire::stored::edit_fields;
use crate::wire::timestamp;
use crate::wire::value::{Id, put_json_string};

pub use crate::wire::rest_body::PostRefusal;
pub use crate::wire::stored::{apply_edit, is_changed_by, tombstone};

/// Names that only the server gives, but for `roomId`, which may repeat the path.
const RESERVED: [&str; 6] = ["type", "seq", "epoch", "deleted", "editedAt", "reactionSummary"];

/// What stands in a user's message for a field that is absent. `reactions` and `edited` are the
/// server's there, so they always stand.
const USER_DEFAULTS: [(&str, &str); 5] = [
    ("attachments", "[]"),
    ("reactions", "[]"),
    ("reply_to", "null"),
    ("edited", "false"),
    ("messageType", "\"text\""),
];

const ROOM: &str = "roomId must be left out, or be the room of the path";
const ID: &str = "id must be a string of 1 to 128 bytes or an integer within 2^53";
const UUID: &str = "id must be a UUID";
const REPLY_TO: &str = "reply_to must be null, a string of 1 to 128 bytes or an integer within 2^53";
const SENDER: &str = "sender_user_id must be null, a string of 1 to 128 bytes or an integer within 2^53";
const TIMESTAMP: &str = "timestamp must be integer milliseconds since the epoch or an RFC 3339 string";
const CONTENT: &str = "content must be a string";
const ATTACHMENTS: &str = "attachments must be an array";
const EDIT: &str = "give content, attachments or both";
const DEPTH: &str = "the body is nested deeper than 100 levels";

/// Who posts a message.
#[derive(Debug, Clone, Copy)]
pub enum Author<'a> {
    /// A service, whose message goes out as posted.
    Service,
    /// A user, who gives the content only.
    User(&'a Id),
}

/// A message that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// The poster's id; without one, the server makes it.
    pub id: Option<Id>,
    /// The poster's timestamp as raw JSON (an integer or an RFC 3339 string), only from a service;
    /// without one, the server gives it.
    pub timestamp: Option<String>,
    /// The members that go out besides `type`, `roomId`, `id`, `timestamp` and `seq`: raw JSON,
    /// separated by commas, perhaps empty.
    pub fields: Vec<u8>,
    /// Equal for two posts if author and JSON value are equal, `timestamp` aside. Fields that are
    /// ignored do not count, and an id counts as its text.
    pub digest: u128,
    /// Who may edit and delete it: the user who posts, or the `sender_user_id` that a service gives.
    pub sender: Option<Id>,
}

/// An edit that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The new members as raw JSON, separated by commas: `"content":...`, `"attachments":...` or both.
    pub fields: Vec<u8>,
}

/// Parses the body of a post to `room`; `key` is the process's hash key, under which digests are
/// made.
///
/// # Errors
/// 400 for what is not JSON, 422 for the rest: no object, a key given twice, a reserved name,
/// another room, a known field of the wrong type, or nesting deeper than 100 levels.
pub fn parse_posted(body: &[u8], room: &str, key: (u64, u64), author: &Author<'_>) -> Result<Posted, PostRefusal> {
    read(members(body)?, body.len(), room, key, author)
}

/// Parses a `send_message` to `room`, the one that it names, as a user's post; `type`, `ref` and `roomId` are the
/// request's and no part of the message. The same message sent and posted is the same.
///
/// # Errors
/// As [`parse_posted`].
pub fn parse_sent(text: &str, room: &str, key: (u64, u64), user: &Id) -> Result<Posted, PostRefusal> {
    let mut members = members(text.as_bytes())?;
    members.retain(|member| !matches!(&*member.key, b"type" | b"ref" | b"roomId"));
    read(members, text.len(), room, key, &Author::User(user))
}

/// Parses the body of an edit: `content` and `attachments`, at least one of them. A user's are a string and an array, a
/// service's are any JSON. Unknown fields are ignored.
///
/// # Errors
/// 400 for what is not JSON, 422 for the rest.
pub fn parse_edit(body: &[u8], author: &Author<'_>) -> Result<Edited, PostRefusal> {
    let by_user = matches!(author, Author::User(_));
    let (mut content, mut attachments) = (None, None);
    for member in members(body)? {
        let raw = member.raw_value;
        match &*member.key {
            b"content" if by_user && !raw.starts_with('"') => return Err(PostRefusal::invalid(CONTENT)),
            b"attachments" if by_user && !raw.starts_with('[') => return Err(PostRefusal::invalid(ATTACHMENTS)),
            b"content" => content = Some(raw),
            b"attachments" => attachments = Some(raw),
            _ => {}
        }
    }
    if content.is_none() && attachments.is_none() {
        return Err(PostRefusal::invalid(EDIT));
    }
    Ok(Edited { fields: edit_fields(content, attachments) })
}

fn read(
    members: Vec<Member<'_>>,
    bytes: usize,
    room: &str,
    key: (u64, u64),
    author: &Author<'_>,
) -> Result<Posted, PostRefusal> {
    let digester = Digester::new(key);
    let fields = Vec::with_capacity(bytes + 128);
    let mut posted = Posted { id: None, timestamp: None, fields, digest: 0, sender: None };
    let mut entries = Entries::default();
    let mut given = Given::default();
    for member in members {
        let raw = member.raw_value;
        match role(&member.key, raw, room, author)? {
            Role::Ignored => continue,
            Role::Timestamp => posted.timestamp = Some(raw.to_owned()),
            Role::Id(id) => {
                entries.add(member.key, digester.string(id.text().as_bytes()));
                posted.id = Some(id);
            }
            Role::Field => {
                given.note(&member.key);
                if *member.key == *b"sender_user_id" {
                    posted.sender = Id::parse_raw(raw);
                }
                put_member(&mut posted.fields, &member);
                let value = digester.value(raw, DEPTH_MAX - 1);
                entries.add(member.key, value.ok_or(PostRefusal::invalid(DEPTH))?);
            }
        }
    }
    let value = digester.object(entries).to_le_bytes();
    posted.digest = match author {
        Author::Service => digester.parts(b'S', &[&value]),
        Author::User(id) => digester.parts(b'U', &[id.text().as_bytes(), &value]),
    };
    if let Author::User(id) = author {
        complete(&mut posted.fields, &given, id)?;
        posted.sender = Some((*id).clone());
    }
    if !posted.fields.is_empty() {
        posted.fields.remove(0);
    }
    Ok(posted)
}

/// Appends the beginning of a `new_message`, which the room's home completes with
/// [`finish`](crate::wire::event::finish): without a timestamp if the poster gave one, which is
/// then already in here.
pub fn new_message_prefix(out: &mut Vec<u8>, room: &str, id: &Id, posted: &Posted) {
    out.reserve(posted.fields.len() + room.len() + 256);
    out.extend_from_slice(b"{\"type\":\"new_message\",\"roomId\":");
    put_json_string(out, room);
    out.extend_from_slice(b",\"id\":");
    id.put_json(out);
    if !posted.fields.is_empty() {
        out.push(b',');
        out.extend_from_slice(&posted.fields);
    }
    if let Some(timestamp) = &posted.timestamp {
        out.extend_from_slice(b",\"timestamp\":");
        out.extend_from_slice(timestamp.as_bytes());
    }
}

/// What becomes of a member.
enum Role {
    Id(Id),
    Timestamp,
    Field,
    Ignored,
}

fn role(key: &[u8], raw: &str, room: &str, author: &Author<'_>) -> Result<Role, PostRefusal> {
    let by_user = matches!(author, Author::User(_));
    let require = |fine: bool, message| match fine {
        true => Ok(Role::Field),
        false => Err(PostRefusal::invalid(message)),
    };
    match key {
        b"id" => {
            let id = Id::parse_raw(raw).ok_or(PostRefusal::invalid(ID))?;
            if by_user && (id.is_numeric() || !is_uuid(id.text())) {
                return Err(PostRefusal::invalid(UUID));
            }
            Ok(Role::Id(id))
        }
        b"roomId" => {
            let repeats_path = object::string(raw).as_deref() == Some(room);
            require(repeats_path, ROOM).map(|_| Role::Ignored)
        }
        b"timestamp" | b"sender_user_id" | b"reactions" | b"edited" if by_user => Ok(Role::Ignored),
        b"timestamp" => require(timestamp::parse_raw(raw).is_some(), TIMESTAMP).map(|_| Role::Timestamp),
        b"reply_to" => require(is_id_or_null(raw), REPLY_TO),
        b"sender_user_id" => require(is_id_or_null(raw), SENDER),
        b"content" if by_user => require(raw.starts_with('"'), CONTENT),
        _ => match RESERVED.iter().find(|name| name.as_bytes() == key) {
            Some(name) => Err(PostRefusal::invalid(format!("{name} is a reserved name"))),
            None => Ok(Role::Field),
        },
    }
}

/// Which of the fields that a user's message always has were given.
#[derive(Default)]
struct Given {
    content: bool,
    defaults: [bool; USER_DEFAULTS.len()],
}

impl Given {
    fn note(&mut self, key: &[u8]) {
        self.content |= key == b"content";
        for (given, (name, _)) in self.defaults.iter_mut().zip(USER_DEFAULTS) {
            *given |= key == name.as_bytes();
        }
    }
}

/// Adds what the server gives to a user's message.
fn complete(fields: &mut Vec<u8>, given: &Given, user: &Id) -> Result<(), PostRefusal> {
    if !given.content {
        return Err(PostRefusal::invalid(CONTENT));
    }
    for (given, (name, json)) in given.defaults.iter().zip(USER_DEFAULTS) {
        if !given {
            fields.extend_from_slice(b",\"");
            fields.extend_from_slice(name.as_bytes());
            fields.extend_from_slice(b"\":");
            fields.extend_from_slice(json.as_bytes());
        }
    }
    fields.extend_from_slice(b",\"sender_user_id\":");
    user.put_json(fields);
    Ok(())
}

fn is_id_or_null(raw: &str) -> bool {
    raw == "null" || Id::parse_raw(raw).is_some()
}

/// Whether a text has the form of a UUID (RFC 9562, section 4).
fn is_uuid(text: &str) -> bool {
    let is_part = |(index, byte): (usize, u8)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::wire::event::finish;

    const KEY: (u64, u64) = (3, 4);
    const UUID_TEXT: &str = "0190a5b0-0000-7000-8000-00000000000F";

    fn user() -> Id {
        Id::parse_raw("42").unwrap()
    }

    fn service(body: &str) -> Result<Posted, PostRefusal> {
        parse_posted(body.as_bytes(), "r", KEY, &Author::Service)
    }

    fn by_user(body: &str) -> Result<Posted, PostRefusal> {
        parse_posted(body.as_bytes(), "r", KEY, &Author::User(&user()))
    }

    fn sent(posted: &Posted) -> String {
        let made = Id::from_text("made").unwrap();
        let mut out = Vec::new();
        new_message_prefix(&mut out, "r", posted.id.as_ref().unwrap_or(&made), posted);
        let timestamp = posted.timestamp.is_none().then_some(5);
        finish(&mut out, timestamp, 9);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_service_posts_as_written() {
        let table = [
            ("{}", r#"{"type":"new_message","roomId":"r","id":"made","timestamp":5,"seq":9}"#),
            (
                r#" {"content" : "a\u0062", "n": 1.50e+01 ,"id":7,"x":{"type": 1, "type":2},"timestamp":1700000000000} "#,
                r#"{"type":"new_message","roomId":"r","id":7,"content":"a\u0062","n":1.50e+01,"x":{"type": 1, "type":2},"timestamp":1700000000000,"seq":9}"#,
            ),
            (
                r#"{"timestamp":"2024-02-29T12:34:56+02:00","content":{"html":"\ud800"},"\u0062":12345678901234567890123,"reply_to":null,"sender_user_id":"s","roomId":"\u0072"}"#,
                r#"{"type":"new_message","roomId":"r","id":"made","content":{"html":"\ud800"},"\u0062":12345678901234567890123,"reply_to":null,"sender_user_id":"s","timestamp":"2024-02-29T12:34:56+02:00","seq":9}"#,
            ),
            (
                r#"{"id":"7","reply_to":7,"sender_user_id":null,"edited":true,"reactions":[1],"\ud800":1,"":2}"#,
                r#"{"type":"new_message","roomId":"r","id":"7","reply_to":7,"sender_user_id":null,"edited":true,"reactions":[1],"\ud800":1,"":2,"timestamp":5,"seq":9}"#,
            ),
        ];
        for (body, expected) in table {
            assert_eq!(sent(&service(body).unwrap()), expected);
        }
    }

    #[test]
    fn a_user_posts_the_content() {
        let table = [
            (
                r#"{"content":"hi"}"#.to_owned(),
                r#"{"type":"new_message","roomId":"r","id":"made","content":"hi","attachments":[],"reactions":[],"reply_to":null,"edited":false,"messageType":"text","sender_user_id":42,"timestamp":5,"seq":9}"#.to_owned(),
            ),
            (
                format!(r#"{{"sender_user_id":{{}},"timestamp":"x","reactions":[1],"\u0065dited":true,"messageType":"image","content":"","id":"{UUID_TEXT}","reply_to":"m","attachments":[ 1],"extra":1.0,"roomId":"r"}}"#),
                format!(r#"{{"type":"new_message","roomId":"r","id":"{UUID_TEXT}","messageType":"image","content":"","reply_to":"m","attachments":[ 1],"extra":1.0,"reactions":[],"edited":false,"sender_user_id":42,"timestamp":5,"seq":9}}"#),
            ),
        ];
        for (body, expected) in table {
            assert_eq!(sent(&by_user(&body).unwrap()), expected);
        }
    }

    #[test]
    fn refused() {
        let table = [
            ("[]", "the body must be a JSON object"),
            ("\"x\"", "the body must be a JSON object"),
            (r#"{"content":1,"c\u006fntent":1}"#, "a key is given twice"),
            (r#"{"timestamp":1,"timestamp":1}"#, "a key is given twice"),
            (r#"{"roomId":"s"}"#, ROOM),
            (r#"{"roomId":null}"#, ROOM),
            (r#"{"typ\u0065":"x"}"#, "type is a reserved name"),
            (r#"{"seq":null}"#, "seq is a reserved name"),
            (r#"{"epoch":1}"#, "epoch is a reserved name"),
            (r#"{"deleted":false}"#, "deleted is a reserved name"),
            (r#"{"editedAt":1}"#, "editedAt is a reserved name"),
            (r#"{"reactionSummary":[]}"#, "reactionSummary is a reserved name"),
            (r#"{"id":null}"#, ID),
            (r#"{"id":1.0}"#, ID),
            (r#"{"id":""}"#, ID),
            (r#"{"id":"\ud800"}"#, ID),
            (r#"{"reply_to":[]}"#, REPLY_TO),
            (r#"{"reply_to":"\udc00"}"#, REPLY_TO),
            (r#"{"sender_user_id":{}}"#, SENDER),
        ];
        for (body, message) in table {
            let refusal = service(body).unwrap_err();
            assert_eq!((refusal.status, &*refusal.message), (422, message), "{body}");
            let refusal = by_user(body).unwrap_err();
            let ignored = message == SENDER;
            let message = if ignored { CONTENT } else { message };
            assert_eq!((refusal.status, &*refusal.message), (422, message), "{body}");
        }
        for raw in ["null", "1.5", "-1", "\"2024-02-29\"", "\"\"", "[]"] {
            let refusal = service(&format!(r#"{{"timestamp":{raw}}}"#)).unwrap_err();
            assert_eq!((refusal.status, &*refusal.message), (422, TIMESTAMP), "{raw}");
        }
        for body in ["", "{", "{\"a\":01}", "{\"a\":1}}", "{\"a\":\"\\x\"}"] {
            let refusal = service(body).unwrap_err();
            assert_eq!((refusal.status, refusal.code.as_str()), (400, "invalid_json"), "{body}");
        }
        let refusal = parse_posted(b"{\"a\":\"\xc0\"}", "r", KEY, &Author::Service).unwrap_err();
        assert_eq!(refusal.status, 400);
    }

    #[test]
    fn refused_from_a_user() {
        let table = [
            ("{}", CONTENT),
            (r#"{"content":null}"#, CONTENT),
            (r#"{"content":7}"#, CONTENT),
            (r#"{"content":"x","id":7}"#, UUID),
            (r#"{"content":"x","id":"7"}"#, UUID),
            (r#"{"content":"x","id":"0190a5b0-0000-7000-8000-00000000000g"}"#, UUID),
            (r#"{"content":"x","id":"0190a5b00-000-7000-8000-000000000000"}"#, UUID),
        ];
        for (body, message) in table {
            let refusal = by_user(body).unwrap_err();
            assert_eq!((refusal.status, &*refusal.message), (422, message), "{body}");
        }
    }

    #[test]
    fn what_is_sent_is_what_is_posted() {
        let table = [
            (
                r#"{"type":"send_message","ref":7,"roomId":"r","content":"hi","reply_to":7,"x":1.0}"#.to_owned(),
                r#"{"x":1,"content":"h\u0069","reply_to":"7"}"#.to_owned(),
            ),
            (
                format!(
                    r#"{{"r\u0065f":null,"type":"send_message","roomId":"r","id":"{UUID_TEXT}","edited":1,"content":""}}"#
                ),
                format!(r#"{{"id":"{UUID_TEXT}","content":""}}"#),
            ),
        ];
        for (text, body) in table {
            let sent = parse_sent(&text, "r", KEY, &user()).unwrap();
            let posted = by_user(&body).unwrap();
            // The form of what is inside may differ, and goes out as written.
            assert_eq!(sent.id, posted.id, "{text}");
            assert_eq!(sent.sender, Some(user()), "{text}");
            if !text.contains("reply_to") {
                assert_eq!((sent.digest, &sent.fields), (posted.digest, &posted.fields), "{text}");
            }
        }
        let text = r#"{"type":"send_message","roomId":"r","content":"hi","ref":"a"}"#;
        assert_eq!(parse_sent(text, "r", KEY, &user()).unwrap(), by_user(r#"{"content":"hi"}"#).unwrap());
        for (text, message) in [
            (r#"{"type":"send_message","roomId":"r"}"#, CONTENT),
            (r#"{"type":"send_message","roomId":"r","content":7}"#, CONTENT),
            (r#"{"type":"send_message","roomId":"r","content":"x","id":7}"#, UUID),
            (r#"{"type":"send_message","roomId":"r","content":"x","seq":7}"#, "seq is a reserved name"),
        ] {
            assert_eq!(parse_sent(text, "r", KEY, &user()).unwrap_err(), PostRefusal::invalid(message), "{text}");
        }
    }

    #[test]
    fn senders() {
        let table = [
            ("{}", None),
            (r#"{"sender_user_id":null}"#, None),
            (r#"{"sender\u005fuser_id":7}"#, Some("7")),
            (r#"{"sender_user_id":"a\u0062"}"#, Some("ab")),
        ];
        for (body, expected) in table {
            let sender = service(body).unwrap().sender;
            assert_eq!(sender.as_ref().map(Id::text), expected, "{body}");
        }
        assert_eq!(by_user(r#"{"content":"x","sender_user_id":1}"#).unwrap().sender, Some(user()));
    }

    #[test]
    fn edits() {
        let user = user();
        let by = |author: &Author<'_>, body: &str| {
            let edited = parse_edit(body.as_bytes(), author);
            edited
                .map(|edited| String::from_utf8(edited.fields).unwrap())
                .map_err(|refusal| refusal.message.into_owned())
        };
        let table = [
            (r#"{"content":"x"}"#, Ok(r#""content":"x""#), Ok(r#""content":"x""#)),
            (
                r#"{"attachments":[ 1.0],"edited":7,"c\u006fntent":"\ud800"}"#,
                Ok(r#""content":"\ud800","attachments":[ 1.0]"#),
                Ok(r#""content":"\ud800","attachments":[ 1.0]"#),
            ),
            (r#"{"content":{"html":null}}"#, Ok(r#""content":{"html":null}"#), Err(CONTENT)),
            (r#"{"attachments":null}"#, Ok(r#""attachments":null"#), Err(ATTACHMENTS)),
            (r#"{"messageType":"image"}"#, Err(EDIT), Err(EDIT)),
            ("{}", Err(EDIT), Err(EDIT)),
            ("[]", Err("the body must be a JSON object"), Err("the body must be a JSON object")),
            ("{", Err("the body is not JSON"), Err("the body is not JSON")),
        ];
        for (body, by_service, by_user) in table {
            assert_eq!(by(&Author::Service, body), by_service.map(str::to_owned).map_err(str::to_owned), "{body}");
            assert_eq!(by(&Author::User(&user), body), by_user.map(str::to_owned).map_err(str::to_owned), "{body}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let body = |depth| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let posted = service(&body(DEPTH_MAX - 1)).unwrap();
        assert!(serde_json::from_str::<Value>(&sent(&posted)).is_ok());
        for depth in [DEPTH_MAX, 100_000] {
            assert_eq!(service(&body(depth)).unwrap_err().message, DEPTH);
        }
    }

    #[test]
    fn digests() {
        let digest = |body: &str| service(body).unwrap().digest;
        let first = digest(r#"{"id":7,"a":1,"b":{"c":[1.0],"d":"é"},"timestamp":1}"#);
        for same in [
            r#"{"b":{"d":"\u00e9","c":[1]},"timestamp":"2024-02-29T12:34:56Z","a":10e-1,"id":"7"}"#,
            r#"{"id":"\u0037","roomId":"r","a":1,"b":{"c":[1.00],"d":"é"}}"#,
        ] {
            assert_eq!(digest(same), first, "{same}");
        }
        for other in [
            r#"{"id":8,"a":1,"b":{"c":[1.0],"d":"é"}}"#,
            r#"{"a":1,"b":{"c":[1.0],"d":"é"}}"#,
            r#"{"id":7,"a":"1","b":{"c":[1.0],"d":"é"}}"#,
            r#"{"id":7,"a":1,"b":{"c":[1.0],"d":"é","timestamp":1}}"#,
            r#"{"id":7,"a":1,"b":{"c":[1.0],"d":"é"},"x":null}"#,
        ] {
            assert_ne!(digest(other), first, "{other}");
        }
        let body = r#"{"content":"x"}"#;
        let other = Id::parse_raw("43").unwrap();
        let other = parse_posted(body.as_bytes(), "r", KEY, &Author::User(&other)).unwrap();
        let mine = by_user(body).unwrap();
        assert_ne!(mine.digest, service(body).unwrap().digest);
        assert_ne!(mine.digest, other.digest);
        assert_eq!(mine.digest, by_user(r#"{"content":"x","timestamp":0,"edited":true}"#).unwrap().digest);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(".*", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_posted(&body, "r", KEY, &Author::Service);
            let _ = parse_edit(&body, &Author::Service);
        }

        #[test]
        fn any_message_goes_out_as_it_came(
            fields in prop::collection::hash_map("content|x|.{0,5}", values(), 0..6),
        ) {
            let fields: Map<String, Value> = fields.into_iter().collect();
            let known = ["id", "timestamp", "roomId", "reply_to", "sender_user_id"];
            prop_assume!(!fields.keys().any(|key| known.contains(&&**key) || RESERVED.contains(&&**key)));
            let body = Value::Object(fields.clone());
            let compact = service(&body.to_string()).unwrap();
            let pretty = service(&format!("{body:#}")).unwrap();
            prop_assert_eq!(compact.digest, pretty.digest);
            let found: Value = serde_json::from_str(&sent(&compact)).unwrap();
            let mut expected = json!({
                "type": "new_message", "roomId": "r", "id": "made", "timestamp": 5, "seq": 9,
            });
            expected.as_object_mut().unwrap().extend(fields);
            // Both went through text once, so that floats were rounded alike.
            let expected: Value = serde_json::from_str(&expected.to_string()).unwrap();
            prop_assert_eq!(found, expected);
        }
    }
}
