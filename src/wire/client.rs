//! What clients send over the WebSocket, parsed into requests that hold only valid values.
//!
//! Owns the vocabulary of the client's side: message types, their fields, `ref`, and the code and
//! text of each refusal. Knows nothing about connections, rooms joined or rights. Invariants: a
//! [`Request`] is valid by construction, a well-formed message allocates only where a text has
//! escapes (and for ids and lists), and no input makes parsing panic or recurse.

use std::borrow::Cow;
use std::fmt;

use fields::Fields;

use crate::wire::object::SplitError;
use crate::wire::value::Id;

mod fields;

/// Longest `ref` in bytes, after unescaping.
pub const REF_BYTES_MAX: usize = 64;
/// Longest `emoji` in bytes, after unescaping.
pub const EMOJI_BYTES_MAX: usize = 64;
/// Longest `epoch` in bytes, after unescaping.
pub const EPOCH_BYTES_MAX: usize = 64;
/// Most rooms in one `join_rooms`.
pub const JOIN_ROOMS_MAX: usize = 100;

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
        /// What the client has of it already.
        since: Option<Since<'a>>,
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
    /// `send_message`
    SendMessage {
        /// The room.
        room: Cow<'a, str>,
        /// All of the client's message, for [`parse_sent`](crate::wire::message::parse_sent).
        text: &'a str,
    },
    /// `edit_message`
    EditMessage {
        /// The room.
        room: Cow<'a, str>,
        /// Which message.
        message_id: Id,
        /// The new members as raw JSON, separated by commas: `"content":...`, `"attachments":...` or both.
        fields: Vec<u8>,
    },
    /// `delete_message`
    DeleteMessage {
        /// The room.
        room: Cow<'a, str>,
        /// Which message.
        message_id: Id,
    },
    /// `mark_read`
    MarkRead {
        /// The room.
        room: Cow<'a, str>,
        /// The `seq` of the last message read, from 1 to 2^53.
        seq: u64,
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
    /// An object with a valid `roomId`, and what the client has of the room already.
    Room(Cow<'a, str>, Option<Since<'a>>),
    /// Anything else, to be answered `invalid_message`. Holds the raw JSON that was given for
    /// `roomId`, or `null`.
    Malformed(&'a str),
}

/// What a client has of a room already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since<'a> {
    /// The last `seq` that it has seen; 0 for none.
    pub seq: u64,
    /// The epoch in which, at most [`EPOCH_BYTES_MAX`] bytes; `None` if the client gave none.
    pub epoch: Option<Cow<'a, str>>,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::fields::*;
    use super::*;
    use crate::wire::value::room_name;

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
        let join = |since| Request::JoinRoom { room: room(), since };
        let leave = || Request::LeaveRoom { room: room() };
        let table = [
            (r#"{"type":"join_room","roomId":"r1"}"#, join(None)),
            (r#"{"type":"join_room","roomId":"r1","since":null,"epoch":null,"x":{"type":1}}"#, join(None)),
            (r#"{"type":"join_room","roomId":"r1","epoch":"e"}"#, join(None)),
            (r#"{"type":"join_room","roomId":"r1","since":0}"#, join(since(0, None))),
            (
                r#"{"type":"join_room","roomId":"r1","since":9007199254740992,"epoch":"\u0065"}"#,
                join(since(1 << 53, Some("e"))),
            ),
            (r#"{"type":"leave_room","roomId":"r1","since":-1,"epoch":[],"seq":"x","content":1}"#, leave()),
            (r#" {"roomId" : "\u0072\u0031", "type":"leave_room"} "#, leave()),
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

    fn since<'a>(seq: u64, epoch: Option<&'a str>) -> Option<Since<'a>> {
        Some(Since { seq, epoch: epoch.map(Cow::Borrowed) })
    }

    #[test]
    fn what_is_kept() {
        let room = || Cow::Borrowed("r1");
        let message_id = || Id::parse_raw("7").unwrap();
        let edit =
            |fields: &str| Request::EditMessage { room: room(), message_id: message_id(), fields: fields.into() };
        let send = r#"{"type":"send_message","roomId":"r1","content":7,"x":{}}"#;
        let table = [
            (send, Request::SendMessage { room: room(), text: send }),
            (
                r#"{"type":"edit_message","roomId":"r1","messageId":7,"c\u006fntent":"\ud800"}"#,
                edit(r#""content":"\ud800""#),
            ),
            (
                r#"{"type":"edit_message","attachments":[ {}],"roomId":"r1","messageId":"7","content":"","edited":1}"#,
                edit(r#""content":"","attachments":[ {}]"#),
            ),
            (r#"{"type":"edit_message","attachments":[],"roomId":"r1","messageId":"7"}"#, edit(r#""attachments":[]"#)),
            (
                r#"{"type":"delete_message","roomId":"r1","messageId":"7"}"#,
                Request::DeleteMessage { room: room(), message_id: message_id() },
            ),
            (r#"{"type":"mark_read","roomId":"r1","seq":1}"#, Request::MarkRead { room: room(), seq: 1 }),
            (
                r#"{"type":"mark_read","roomId":"r1","seq":9007199254740992}"#,
                Request::MarkRead { room: room(), seq: 1 << 53 },
            ),
        ];
        for (text, expected) in table {
            assert_eq!(request(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_rooms_are_kept_apart() {
        let text = r#"{"type":"join_rooms","rooms":[{"roomId":"a","since":1,"epoch":"e"},{"roomId":".."},{"roomId":[1]},7,{},
            {"roomId":"b","roomId":"b"},{"roomId":"a"},{"roomId":"c","since":"1"},{"roomId":"d","epoch":1}]}"#;
        let expected = vec![
            RoomEntry::Room("a".into(), since(1, Some("e"))),
            RoomEntry::Malformed("\"..\""),
            RoomEntry::Malformed("[1]"),
            RoomEntry::Malformed("null"),
            RoomEntry::Malformed("null"),
            RoomEntry::Malformed("\"b\""),
            RoomEntry::Room("a".into(), None),
            RoomEntry::Malformed("\"c\""),
            RoomEntry::Malformed("\"d\""),
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
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
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
            (r#"{"type":"join_room","roomId":"r","since":-1}"#, SINCE),
            (r#"{"type":"join_room","roomId":"r","since":1.0}"#, SINCE),
            (r#"{"type":"join_room","roomId":"r","since":9007199254740993}"#, SINCE),
            (r#"{"type":"join_room","roomId":"r","since":"1","epoch":"e"}"#, SINCE),
            (r#"{"type":"join_room","roomId":"r","since":1,"epoch":7}"#, EPOCH),
            (r#"{"type":"join_room","roomId":"r","epoch":[]}"#, EPOCH),
            (&format!(r#"{{"type":"join_room","roomId":"r","since":1,"epoch":{long}}}"#), EPOCH),
            (r#"{"type":"send_message","content":"x"}"#, ROOM),
            (r#"{"type":"edit_message","roomId":"r","messageId":1}"#, EDIT),
            (r#"{"type":"edit_message","roomId":"r","content":"x"}"#, MESSAGE_ID),
            (r#"{"type":"edit_message","messageId":1,"content":"x"}"#, ROOM),
            (r#"{"type":"edit_message","roomId":"r","messageId":1,"content":null}"#, CONTENT),
            (r#"{"type":"edit_message","roomId":"r","messageId":1,"content":"x","attachments":{}}"#, ATTACHMENTS),
            (&format!(r#"{{"type":"edit_message","roomId":"r","messageId":1,"attachments":{deep}}}"#), ATTACHMENTS),
            (r#"{"type":"delete_message","roomId":"r"}"#, MESSAGE_ID),
            (r#"{"type":"delete_message","messageId":1}"#, ROOM),
            (r#"{"type":"mark_read","roomId":"r"}"#, SEQ),
            (r#"{"type":"mark_read","roomId":"r","seq":0}"#, SEQ),
            (r#"{"type":"mark_read","roomId":"r","seq":-1}"#, SEQ),
            (r#"{"type":"mark_read","roomId":"r","seq":9007199254740993}"#, SEQ),
            (r#"{"type":"mark_read","seq":1}"#, ROOM),
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
            kind in "join_rooms?|reaction|auth|typing_stop|edit_message|mark_read|x",
            fields in prop::collection::vec(
                ("type|ref|roomId|rooms|messageId|emoji|action|token|since|epoch|content|attachments|seq|x", values()),
                0..8,
            ),
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
