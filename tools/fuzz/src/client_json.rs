//! What clients and backends write as JSON: of one mind with serde_json on what is JSON, and with what the fields say.
//!
//! Input: the text, for each of the parsers.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use sizland_chat::wire::client::{Action, ClientMessage, ErrorCode, Request, RoomEntry, Since, parse};
use sizland_chat::wire::event::finish;
use sizland_chat::wire::message::{
    Author, PostRefusal, Posted, apply_edit, is_changed_by, new_message_prefix, parse_edit, parse_posted, parse_sent,
    tombstone,
};
use sizland_chat::wire::value::{Id, room_name};

const KEY: (u64, u64) = (3, 4);
const ROOM: &str = "r";

/// Gives the text to every parser.
pub fn run(data: &[u8]) {
    let is_json = str::from_utf8(data).is_ok() && serde_json::from_slice::<IgnoredAny>(data).is_ok();
    // Not all that is JSON is a value for serde_json: it refuses unpaired surrogates and great depth.
    let fields = serde_json::from_slice::<Map<String, Value>>(data).ok();
    check_client(data, is_json, fields.as_ref());
    check_posted(data, is_json, &Author::Service);
    if let Some(user) = Id::from_text("ana") {
        check_posted(data, is_json, &Author::User(&user));
    }
}

fn check_client(data: &[u8], is_json: bool, fields: Option<&Map<String, Value>>) {
    match parse(data) {
        Ok(message) => {
            assert!(is_json);
            if let Some(fields) = fields {
                check_message(&message, fields);
            }
        }
        Err(refusal) => {
            assert_eq!(refusal.code == ErrorCode::InvalidJson, !is_json, "{refusal:?}");
            let reference = refusal.reference.as_deref().map(serde_json::from_str::<IgnoredAny>);
            assert!(reference.is_none_or(|parsed| parsed.is_ok()), "what is echoed is JSON");
            assert!(refusal.room.as_deref().is_none_or(|room| room_name(room).is_some()));
            let kind = fields.and_then(|fields| fields.get("type"));
            assert!(refusal.code != ErrorCode::UnknownType || kind.is_none_or(Value::is_string));
        }
    }
}

/// What was understood is what stands in the fields.
fn check_message(message: &ClientMessage<'_>, fields: &Map<String, Value>) {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let reference = message.reference.map(|reference| serde_json::from_str::<Value>(reference.as_json()));
    match reference {
        None => assert!(fields.get("ref").is_none_or(Value::is_null)),
        Some(reference) => assert_eq!(reference.ok().as_ref(), fields.get("ref")),
    }
    let check_room = |kind: &str, room: &str| {
        assert_eq!((text("type"), text("roomId")), (kind, room));
        assert_eq!(room_name(room), Some(room));
    };
    match &message.request {
        Request::JoinRoom { room, since } => {
            check_room("join_room", room);
            check_since(since.as_ref(), |name| fields.get(name));
        }
        Request::LeaveRoom { room } => check_room("leave_room", room),
        Request::Typing { room, start: true } => check_room("typing_start", room),
        Request::Typing { room, start: false } => check_room("typing_stop", room),
        Request::Reaction { room, message_id, emoji, action } => {
            check_room("reaction", room);
            assert_eq!(text("emoji"), emoji);
            let id = &fields["messageId"];
            assert_eq!(message_id.is_numeric(), id.is_number());
            assert!(id.is_f64() || id.as_str().map_or(id.to_string(), str::to_owned) == message_id.text());
            let named = action.map(|action| if action == Action::Add { "add" } else { "remove" });
            assert_eq!(fields.get("action").and_then(Value::as_str), named);
        }
        Request::JoinRooms { rooms } => {
            let given = fields["rooms"].as_array().map(Vec::as_slice).unwrap_or_default();
            assert!(text("type") == "join_rooms" && given.len() == rooms.len() && !rooms.is_empty());
            for (entry, given) in rooms.iter().zip(given) {
                match entry {
                    RoomEntry::Room(room, since) => {
                        assert_eq!(given["roomId"].as_str(), Some(&**room));
                        check_since(since.as_ref(), |name| given.get(name));
                    }
                    RoomEntry::Malformed(raw) => assert!(serde_json::from_str::<IgnoredAny>(raw).is_ok()),
                }
            }
        }
        Request::SendMessage { room, text } => {
            check_room("send_message", room);
            if let Some(user) = Id::from_text("ana") {
                match parse_sent(text, room, KEY, &user) {
                    Ok(posted) => assert_eq!((posted.sender, posted.timestamp), (Some(user), None)),
                    Err(refusal) => check_refusal(&refusal, true),
                }
            }
        }
        Request::EditMessage { room, fields: edit, .. } => {
            check_room("edit_message", room);
            check_edit(edit);
        }
        Request::DeleteMessage { room, .. } => check_room("delete_message", room),
        Request::MarkRead { room, seq } => {
            check_room("mark_read", room);
            assert_eq!(fields["seq"], *seq);
        }
        Request::Ping => assert_eq!(text("type"), "ping"),
        Request::Auth { token } => assert_eq!((text("type"), text("token")), ("auth", token.as_str())),
        Request::RefreshToken { token } => {
            assert_eq!((text("type"), text("token")), ("refresh_token", token.as_str()));
        }
    }
}

fn check_since<'a>(since: Option<&Since<'_>>, field: impl Fn(&str) -> Option<&'a Value>) {
    let given = |name: &str| field(name).filter(|value| !value.is_null());
    assert_eq!(since.map(|since| since.seq), given("since").and_then(Value::as_u64));
    if let Some(since) = since {
        assert_eq!(since.epoch.as_deref(), given("epoch").and_then(Value::as_str));
    }
}

/// An edit takes effect once, and a deletion leaves nothing of it.
fn check_edit(fields: &[u8]) {
    let message = r#"{"type":"new_message","roomId":"r","id":7,"content":null,"timestamp":5,"seq":9}"#;
    let Some(edited) = apply_edit(message, fields, 6).and_then(|edited| String::from_utf8(edited).ok()) else {
        panic!("an edit that was taken cannot be applied");
    };
    assert!(serde_json::from_str::<IgnoredAny>(&edited).is_ok() && edited.ends_with(",\"seq\":9}"));
    assert!(!is_changed_by(&edited, fields));
    assert_eq!(tombstone(&edited), tombstone(message));
}

fn check_posted(data: &[u8], is_json: bool, author: &Author<'_>) {
    let posted = match parse_posted(data, ROOM, KEY, author) {
        Ok(posted) => posted,
        Err(refusal) => return check_refusal(&refusal, is_json),
    };
    assert!(is_json);
    let Some(id) = posted.id.clone().or(Id::from_text("made")) else { return };
    let mut out = Vec::new();
    new_message_prefix(&mut out, ROOM, &id, &posted);
    finish(&mut out, posted.timestamp.is_none().then_some(5), 9);
    assert!(serde_json::from_slice::<IgnoredAny>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
    if let Ok(sent) = serde_json::from_slice::<Map<String, Value>>(&out) {
        assert_eq!((&sent["type"], &sent["roomId"], &sent["seq"]), (&"new_message".into(), &ROOM.into(), &9.into()));
    }
    let stone = str::from_utf8(&out).ok().and_then(tombstone);
    let stone = stone.and_then(|stone| serde_json::from_slice::<Map<String, Value>>(&stone).ok());
    assert!(stone.is_none_or(|stone| stone["deleted"] == true && !stone.contains_key("content")));
    match parse_edit(data, author) {
        Ok(edited) => check_edit(&edited.fields),
        Err(refusal) => check_refusal(&refusal, is_json),
    }
    check_same(data, &posted, author);
}

/// The same members in another order and with other white space are the same post.
fn check_same(data: &[u8], posted: &Posted, author: &Author<'_>) {
    // Unpaired surrogates in keys are refused here, and then there is nothing to compare.
    let Ok(members) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(data) else { return };
    let member = |(key, value): (&String, &&RawValue)| {
        format!("\t{} : {}\r\n", serde_json::to_string(key).unwrap_or_default(), value.get())
    };
    let text = format!(" {{{}}}", members.iter().rev().map(member).collect::<Vec<_>>().join(","));
    let again = parse_posted(text.as_bytes(), ROOM, KEY, author);
    let of = |posted: &Posted| (posted.digest, posted.id.clone(), posted.timestamp.clone());
    assert_eq!(again.as_ref().map(of), Ok(of(posted)), "{text}");
}

fn check_refusal(refusal: &PostRefusal, is_json: bool) {
    assert_eq!(refusal.status, if is_json { 422 } else { 400 }, "{refusal:?}");
}
