//! What clients send over the WebSocket, parsed into requests that hold only valid values.
//!
//! Owns the vocabulary of the client's side: message types, their fields, `ref`, and the code and
//! text of each refusal. Knows nothing about connections, rooms joined or rights. Invariants: a
//! [`Request`] is valid by construction, a well-formed message allocates only where a text has
//! escapes (and for ids and lists), and no input makes parsing panic or recurse.

use std::borrow::Cow;
use std::fmt;

use crate::wire::object::{self, Member, SplitError};
use crate::wire::value::{Id, room_name};

/// Longest `ref` in bytes, after unescaping.
pub const REF_BYTES_MAX: usize = 64;
/// Longest `emoji` in bytes, after unescaping.
pub const EMOJI_BYTES_MAX: usize = 64;
/// Most rooms in one `join_rooms`.
pub const JOIN_ROOMS_MAX: usize = 100;

/// Longest raw `roomId` that is repeated in the answer about it: a valid one with every byte
/// escaped.
const ECHO_BYTES_MAX: usize = 6 * 256 + 2;

const REF: &str = "ref must be a string of at most 64 bytes or an integer within 2^53";
const REPEATED: &str = "a key is given twice";
const TYPE: &str = "type must be a string";
const UNKNOWN_TYPE: &str = "type must be one of join_room, join_rooms, leave_room, typing_start, \
    typing_stop, reaction, ping, auth, refresh_token";
const ROOM: &str = "roomId must be a string of 1 to 256 bytes without control characters, \
    and neither . nor ..";
const ROOMS: &str = "rooms must be an array of 1 to 100 objects with a roomId";
const MESSAGE_ID: &str = "messageId must be a string of 1 to 128 bytes or an integer within 2^53";
const EMOJI: &str = "emoji must be a string of 1 to 64 bytes";
const ACTION: &str = "action must be \"add\" or \"remove\"";
const TOKEN: &str = "token must be a string";

/// One message of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientMessage<'a> {
    /// What the answer to the request carries, if the client asked for an answer.
    pub reference: Option<Ref<'a>>,
    /// What the client asks for.
    pub request: Request<'a>,
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// `join_room`
    JoinRoom {
        /// The room.
        room: Cow<'a, str>,
    },
    /// `join_rooms`
    JoinRooms {
        /// 1 to [`JOIN_ROOMS_MAX`] entries in the order given, repetitions included.
        rooms: Vec<RoomEntry<'a>>,
    },
    /// `leave_room`
    LeaveRoom {
        /// The room.
        room: Cow<'a, str>,
    },
    /// `typing_start` and `typing_stop`
    Typing {
        /// The room.
        room: Cow<'a, str>,
        /// Whether typing starts.
        start: bool,
    },
    /// `reaction`
    Reaction {
        /// The room.
        room: Cow<'a, str>,
        /// The message reacted to.
        message_id: Id,
        /// 1 to [`EMOJI_BYTES_MAX`] bytes of any text.
        emoji: Cow<'a, str>,
        /// `None` as seed clients send it.
        action: Option<Action>,
    },
    /// `ping`
    Ping,
    /// `auth`
    Auth {
        /// The token, not verified.
        token: Token<'a>,
    },
    /// `refresh_token`
    RefreshToken {
        /// The token, not verified.
        token: Token<'a>,
    },
}

/// One entry of `join_rooms`.
#[derive(Debug, PartialEq, Eq)]
pub enum RoomEntry<'a> {
    /// An object with a valid `roomId`.
    Room(Cow<'a, str>),
    /// Anything else, to be answered `invalid_message`. Holds the raw JSON that was given for
    /// `roomId`, or `null`.
    Malformed(&'a str),
}

/// What a reaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The user reacts.
    Add,
    /// The user takes the reaction back.
    Remove,
}

/// A client's `ref`: raw JSON, a string of at most [`REF_BYTES_MAX`] bytes or an integer within
/// 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ref<'a>(&'a str);

impl<'a> Ref<'a> {
    /// The JSON text as the client wrote it, to be echoed.
    pub fn as_json(self) -> &'a str {
        self.0
    }
}

/// A token that a client sent. Its `Debug` does not show it.
#[derive(PartialEq, Eq)]
pub struct Token<'a>(Cow<'a, str>);

impl Token<'_> {
    /// The token itself. It must not reach a log.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(***)")
    }
}

/// Why a message was refused, ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `invalid_json`, `invalid_message` or `unknown_type`.
    pub code: ErrorCode,
    /// The raw JSON of the message's `ref`, if it has a valid one.
    pub reference: Option<String>,
    /// The message's room, if it names a valid one.
    pub room: Option<String>,
    /// What is wrong and what would be accepted, in English.
    pub message: &'static str,
}

/// The codes of `error` messages and of REST errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not JSON.
    InvalidJson,
    /// A field is missing, ill-typed or out of range.
    InvalidMessage,
    /// The server knows no such `type`.
    UnknownType,
    /// The request needs a room that the connection has not joined.
    NotInRoom,
    /// The user may not do that.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The same id names something else already.
    Conflict,
    /// The connection is in as many rooms as it may.
    RoomLimit,
    /// A size limit is exceeded.
    TooLarge,
    /// The client sends faster than it may.
    RateLimited,
    /// The server has more work than it takes on.
    Overloaded,
    /// Something that the request needs is out of service.
    Unavailable,
    /// The server is at fault.
    Internal,
}

impl ErrorCode {
    /// The code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidJson => "invalid_json",
            ErrorCode::InvalidMessage => "invalid_message",
            ErrorCode::UnknownType => "unknown_type",
            ErrorCode::NotInRoom => "not_in_room",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "not_found",
            ErrorCode::Conflict => "conflict",
            ErrorCode::RoomLimit => "room_limit",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }
}

/// Parses the payload of one text or binary message.
///
/// # Errors
/// `invalid_json` for what is not UTF-8, not JSON or no object, `unknown_type`, and
/// `invalid_message` for a wrong field, a wrong `ref`, or a key given twice. Unknown fields are
/// ignored.
pub fn parse(payload: &[u8]) -> Result<ClientMessage<'_>, Refusal> {
    let text = str::from_utf8(payload).map_err(|_| unreadable(ErrorCode::InvalidJson, "the message is not UTF-8"))?;
    let fields = Fields::read(text).map_err(|error| match error {
        SplitError::NotJson => unreadable(ErrorCode::InvalidJson, "the message is not JSON"),
        SplitError::NotObject => unreadable(ErrorCode::InvalidMessage, "the message must be a JSON object"),
    })?;
    match fields.request() {
        Ok(request) => Ok(ClientMessage { reference: fields.reference().unwrap_or_default(), request }),
        Err((code, message)) => Err(Refusal {
            code,
            reference: (fields.reference().ok().flatten()).map(|found| found.as_json().to_owned()),
            room: fields.room().ok().map(Cow::into_owned),
            message,
        }),
    }
}

fn unreadable(code: ErrorCode, message: &'static str) -> Refusal {
    Refusal { code, reference: None, room: None, message }
}

/// The raw values of the fields that some message type knows.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a str>,
    reference: Option<&'a str>,
    room: Option<&'a str>,
    rooms: Option<&'a str>,
    message_id: Option<&'a str>,
    emoji: Option<&'a str>,
    action: Option<&'a str>,
    token: Option<&'a str>,
    unknown: Vec<Cow<'a, [u8]>>,
    repeated: bool,
    repeated_reference: bool,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Fields<'a>, SplitError> {
        let mut fields = Fields::default();
        if !object::split_plain(text, |member| fields.take(member)) {
            fields = Fields::default();
            object::split(text, |member| fields.take(member))?;
        }
        fields.repeated |= object::has_duplicate(&mut fields.unknown);
        Ok(fields)
    }

    fn take(&mut self, member: Member<'a>) {
        let field = match &*member.key {
            b"type" => &mut self.kind,
            b"ref" => &mut self.reference,
            b"roomId" => &mut self.room,
            b"rooms" => &mut self.rooms,
            b"messageId" => &mut self.message_id,
            b"emoji" => &mut self.emoji,
            b"action" => &mut self.action,
            b"token" => &mut self.token,
            _ => return self.unknown.push(member.key),
        };
        if field.replace(member.raw_value).is_some() {
            self.repeated = true;
            self.repeated_reference |= *member.key == *b"ref";
        }
    }

    fn request(&self) -> Result<Request<'a>, (ErrorCode, &'static str)> {
        let wrong = |message| (ErrorCode::InvalidMessage, message);
        if self.repeated {
            return Err(wrong(REPEATED));
        }
        self.reference().map_err(wrong)?;
        let kind = self.kind.and_then(object::string).ok_or(wrong(TYPE))?;
        let request = match &*kind {
            "join_room" => self.room().map(|room| Request::JoinRoom { room }),
            "join_rooms" => self.rooms().map(|rooms| Request::JoinRooms { rooms }),
            "leave_room" => self.room().map(|room| Request::LeaveRoom { room }),
            "typing_start" => self.room().map(|room| Request::Typing { room, start: true }),
            "typing_stop" => self.room().map(|room| Request::Typing { room, start: false }),
            "reaction" => self.reaction(),
            "ping" => Ok(Request::Ping),
            "auth" => self.token().map(|token| Request::Auth { token }),
            "refresh_token" => self.token().map(|token| Request::RefreshToken { token }),
            _ => return Err((ErrorCode::UnknownType, UNKNOWN_TYPE)),
        };
        request.map_err(wrong)
    }

    fn reaction(&self) -> Result<Request<'a>, &'static str> {
        let emoji = self.emoji.and_then(object::string).ok_or(EMOJI)?;
        if !(1..=EMOJI_BYTES_MAX).contains(&emoji.len()) {
            return Err(EMOJI);
        }
        Ok(Request::Reaction {
            room: self.room()?,
            message_id: self.message_id.and_then(Id::parse_raw).ok_or(MESSAGE_ID)?,
            emoji,
            action: self.action()?,
        })
    }

    fn reference(&self) -> Result<Option<Ref<'a>>, &'static str> {
        let raw = match self.reference {
            None | Some("null") => return Ok(None),
            Some(raw) => raw,
        };
        let fine = if raw.starts_with('"') {
            object::string_bytes(raw).len() <= REF_BYTES_MAX
        } else {
            object::integer(raw).is_some()
        };
        if !fine || self.repeated_reference {
            return Err(REF);
        }
        Ok(Some(Ref(raw)))
    }

    fn room(&self) -> Result<Cow<'a, str>, &'static str> {
        let room = self.room.and_then(object::string).ok_or(ROOM)?;
        room_name(&room).ok_or(ROOM)?;
        Ok(room)
    }

    fn rooms(&self) -> Result<Vec<RoomEntry<'a>>, &'static str> {
        let raw = self.rooms.ok_or(ROOMS)?;
        let entries = object::elements(raw, JOIN_ROOMS_MAX).ok_or(ROOMS)?;
        if entries.is_empty() {
            return Err(ROOMS);
        }
        Ok(entries.into_iter().map(RoomEntry::read).collect())
    }

    fn action(&self) -> Result<Option<Action>, &'static str> {
        let Some(raw) = self.action else {
            return Ok(None);
        };
        match object::string(raw).as_deref() {
            Some("add") => Ok(Some(Action::Add)),
            Some("remove") => Ok(Some(Action::Remove)),
            _ => Err(ACTION),
        }
    }

    fn token(&self) -> Result<Token<'a>, &'static str> {
        let token = self.token.and_then(object::string).ok_or(TOKEN)?;
        Ok(Token(token))
    }
}

impl<'a> RoomEntry<'a> {
    fn read(raw: &'a str) -> RoomEntry<'a> {
        let Ok(fields) = Fields::read(raw) else {
            return RoomEntry::Malformed("null");
        };
        match fields.room() {
            Ok(room) if !fields.repeated => RoomEntry::Room(room),
            _ => RoomEntry::Malformed((fields.room.filter(|raw| raw.len() <= ECHO_BYTES_MAX)).unwrap_or("null")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn request(text: &str) -> Request<'_> {
        match parse(text.as_bytes()) {
            Ok(message) => message.request,
            Err(refusal) => panic!("{text}: {refusal:?}"),
        }
    }

    fn refusal(text: &str) -> Refusal {
        match parse(text.as_bytes()) {
            Ok(message) => panic!("{text}: {message:?}"),
            Err(refusal) => refusal,
        }
    }

    #[test]
    fn every_type() {
        let room = || Cow::Borrowed("r1");
        let reaction = |action| Request::Reaction {
            room: room(),
            message_id: Id::parse_raw("7").unwrap(),
            emoji: Cow::Borrowed("👍"),
            action,
        };
        let table = [
            (r#"{"type":"join_room","roomId":"r1"}"#, Request::JoinRoom { room: room() }),
            (
                r#"{"type":"join_room","roomId":"r1","since":-1,"epoch":[],"x":{"type":1}}"#,
                Request::JoinRoom { room: room() },
            ),
            (r#" {"roomId" : "\u0072\u0031", "type":"leave_room"} "#, Request::LeaveRoom { room: room() }),
            (r#"{"\u0074ype":"typing_st\u0061rt","roomId":"r1"}"#, Request::Typing { room: room(), start: true }),
            (r#"{"type":"typing_stop","roomId":"r1"}"#, Request::Typing { room: room(), start: false }),
            (r#"{"type":"reaction","roomId":"r1","messageId":7,"emoji":"👍"}"#, reaction(None)),
            (
                r#"{"type":"reaction","roomId":"r1","messageId":"7","emoji":"\ud83d\udc4d","action":"add"}"#,
                reaction(Some(Action::Add)),
            ),
            (
                r#"{"type":"reaction","roomId":"r1","messageId":7,"emoji":"👍","action":"remove"}"#,
                reaction(Some(Action::Remove)),
            ),
            (r#"{"type":"ping"}"#, Request::Ping),
            (r#"{"type":"auth","token":"t"}"#, Request::Auth { token: Token("t".into()) }),
            (r#"{"type":"refresh_token","token":"t"}"#, Request::RefreshToken { token: Token("t".into()) }),
        ];
        for (text, expected) in table {
            assert_eq!(request(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_rooms_are_kept_apart() {
        let text = r#"{"type":"join_rooms","rooms":[{"roomId":"a","since":1},{"roomId":".."},{"roomId":[1]},7,{},
            {"roomId":"b","roomId":"b"},{"roomId":"a"}]}"#;
        let expected = vec![
            RoomEntry::Room("a".into()),
            RoomEntry::Malformed("\"..\""),
            RoomEntry::Malformed("[1]"),
            RoomEntry::Malformed("null"),
            RoomEntry::Malformed("null"),
            RoomEntry::Malformed("\"b\""),
            RoomEntry::Room("a".into()),
        ];
        assert_eq!(request(text), Request::JoinRooms { rooms: expected });
        let long = json!({"type": "join_rooms", "rooms": [{"roomId": "r".repeat(9_000)}]}).to_string();
        let expected = vec![RoomEntry::Malformed("null")];
        assert_eq!(request(&long), Request::JoinRooms { rooms: expected });
    }

    #[test]
    fn number_of_rooms() {
        let rooms = |count| json!({"type": "join_rooms", "rooms": vec![json!({"roomId": "r"}); count]});
        for count in [1, 100] {
            let text = rooms(count).to_string();
            assert!(matches!(request(&text), Request::JoinRooms { rooms } if rooms.len() == count));
        }
        for count in [0, 101, 5_000] {
            assert_eq!(refusal(&rooms(count).to_string()).message, ROOMS);
        }
    }

    #[test]
    fn not_json() {
        let deep = "[".repeat(100_000);
        let payloads: [&[u8]; 10] = [
            b"",
            b" ",
            b"hello",
            b"{",
            b"{}{}",
            b"{\"type\":\"ping\",}",
            b"{\"type\":\"\xff\"}",
            b"{\"type\":\"ping\"}\0",
            b"{'type':'ping'}",
            deep.as_bytes(),
        ];
        for payload in payloads {
            let refusal = parse(payload).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::InvalidJson, "{payload:?}");
            assert_eq!((refusal.reference, refusal.room), (None, None));
        }
    }

    #[test]
    fn no_object() {
        for payload in ["[]", "null", "\"ping\"", "7"] {
            assert_eq!(parse(payload.as_bytes()).unwrap_err().code, ErrorCode::InvalidMessage, "{payload}");
        }
    }

    #[test]
    fn wrong_fields() {
        let long = format!("\"{}\"", "x".repeat(65));
        let table = [
            (r#"{}"#, TYPE),
            (r#"{"type":7}"#, TYPE),
            (r#"{"type":null}"#, TYPE),
            (r#"{"type":"join_room"}"#, ROOM),
            (r#"{"type":"join_room","roomId":7}"#, ROOM),
            (r#"{"type":"join_room","roomId":""}"#, ROOM),
            (r#"{"type":"leave_room","roomId":"."}"#, ROOM),
            (r#"{"type":"typing_start","roomId":"a\n"}"#, ROOM),
            (r#"{"type":"typing_stop","roomId":"\ud800"}"#, ROOM),
            (r#"{"type":"join_rooms"}"#, ROOMS),
            (r#"{"type":"join_rooms","rooms":{}}"#, ROOMS),
            (r#"{"type":"reaction","roomId":"r","emoji":"x"}"#, MESSAGE_ID),
            (r#"{"type":"reaction","roomId":"r","emoji":"x","messageId":1.5}"#, MESSAGE_ID),
            (r#"{"type":"reaction","roomId":"r","emoji":"x","messageId":null}"#, MESSAGE_ID),
            (r#"{"type":"reaction","emoji":"x","messageId":1}"#, ROOM),
            (r#"{"type":"reaction","roomId":"r","messageId":1}"#, EMOJI),
            (r#"{"type":"reaction","roomId":"r","messageId":1,"emoji":""}"#, EMOJI),
            (r#"{"type":"reaction","roomId":"r","messageId":1,"emoji":1}"#, EMOJI),
            (&format!(r#"{{"type":"reaction","roomId":"r","messageId":1,"emoji":{long}}}"#), EMOJI),
            (r#"{"type":"reaction","roomId":"r","messageId":1,"emoji":"x","action":"toggle"}"#, ACTION),
            (r#"{"type":"reaction","roomId":"r","messageId":1,"emoji":"x","action":null}"#, ACTION),
            (r#"{"type":"auth"}"#, TOKEN),
            (r#"{"type":"refresh_token","token":{}}"#, TOKEN),
            (r#"{"type":"ping","type":"ping"}"#, REPEATED),
            (r#"{"type":"ping","x":1,"y":2,"\u0078":3}"#, REPEATED),
        ];
        for (text, message) in table {
            let refusal = refusal(text);
            assert_eq!((refusal.code, refusal.message), (ErrorCode::InvalidMessage, message), "{text}");
        }
    }

    #[test]
    fn references() {
        let longest = format!("\"{}\"", "\\u0041".repeat(64));
        for raw in ["\"\"", "\"a\\u0062\"", "0", "-7", "9007199254740992", &longest] {
            let text = format!(r#"{{"type":"ping","ref": {raw} }}"#);
            let message = parse(text.as_bytes()).unwrap();
            assert_eq!(message.reference.map(Ref::as_json), Some(raw));
        }
        assert_eq!(parse(br#"{"type":"ping","ref":null}"#).unwrap().reference, None);
        let too_long = format!("\"{}\"", "a".repeat(65));
        for raw in ["true", "1.5", "1e3", "9007199254740993", "[]", "{}", &too_long] {
            let refusal = refusal(&format!(r#"{{"type":"join_room","roomId":"r","ref":{raw}}}"#));
            let expected =
                Refusal { code: ErrorCode::InvalidMessage, reference: None, room: Some("r".to_owned()), message: REF };
            assert_eq!(refusal, expected);
        }
    }

    #[test]
    fn refusals_carry_what_the_answer_needs() {
        let table = [
            (r#"{"type":"nope","ref":"a"}"#, ErrorCode::UnknownType, Some("\"a\""), None),
            (r#"{"type":"nope","roomId":"r"}"#, ErrorCode::UnknownType, None, Some("r")),
            (r#"{"type":"reaction","ref":7,"roomId":"\u0072"}"#, ErrorCode::InvalidMessage, Some("7"), Some("r")),
            (r#"{"type":"join_room","ref":7,"roomId":".."}"#, ErrorCode::InvalidMessage, Some("7"), None),
            (r#"{"type":"ping","ref":7,"x":1,"x":2}"#, ErrorCode::InvalidMessage, Some("7"), None),
            (r#"{"type":"ping","ref":7,"ref":7}"#, ErrorCode::InvalidMessage, None, None),
        ];
        for (text, code, reference, room) in table {
            let refusal = refusal(text);
            let found = (refusal.code, refusal.reference.as_deref(), refusal.room.as_deref());
            assert_eq!(found, (code, reference, room), "{text}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let shown = format!("{:?}", parse(br#"{"type":"auth","token":"secret"}"#).unwrap());
        assert!(!shown.contains("secret"));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,70}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("roomId|[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&payload);
        }

        #[test]
        fn any_fields_are_survived(
            kind in "join_rooms?|reaction|auth|typing_stop|x",
            fields in prop::collection::vec(("type|ref|roomId|rooms|messageId|emoji|action|token|x", values()), 0..8),
        ) {
            let members: String = fields.iter().map(|(key, value)| format!(",\"{key}\":{value}")).collect();
            let text = format!("{{\"type\":\"{kind}\"{members}}}");
            if let Err(refusal) = parse(text.as_bytes()) {
                prop_assert_ne!(refusal.code, ErrorCode::InvalidJson);
            }
        }

        #[test]
        fn any_reaction_is_read(room in "[^\\p{Cc}]{1,60}", id in ".{1,30}", emoji in ".{1,16}") {
            prop_assume!(room_name(&room).is_some());
            let text = json!({"type": "reaction", "roomId": room, "messageId": id, "emoji": emoji}).to_string();
            let expected = Request::Reaction {
                room: room.into(),
                message_id: Id::from_text(&id).unwrap(),
                emoji: emoji.into(),
                action: None,
            };
            prop_assert_eq!(request(&text), expected);
        }
    }
}
