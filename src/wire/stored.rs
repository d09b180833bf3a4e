//! What becomes of a message that is kept when it is edited or deleted.
//!
//! Owns which members of an event survive a deletion and how an edit shows in a message. Works on the JSON text of whole
//! events, the same for the store and for the memory of a room's home, and knows neither. Invariants: what is kept is
//! kept as it was written, in its order; `seq` stays last; nothing that a poster chose but the ids and the time is left
//! in a tombstone.

use crate::wire::digest::{DEPTH_MAX, Digester};
use crate::wire::object::{self, Member};
use crate::wire::rest_body::put_member;
use crate::wire::value::Id;

/// What a tombstone of either type keeps, `seq` aside.
const KEPT: [&[u8]; 5] = [b"type", b"roomId", b"id", b"timestamp", b"sender_user_id"];
/// What a tombstone of a `message_updated` keeps besides. In a `new_message` these may be the poster's.
const KEPT_OF_UPDATE: [&[u8]; 3] = [b"userId", b"edited", b"editedAt"];

/// The tombstone of a whole `new_message` or `message_updated`: the same event with only `type, roomId, id, timestamp,
/// sender_user_id` (of a `message_updated` also `userId, edited, editedAt`), `"deleted":true` and `seq`. That of a
/// tombstone is the same again. `None` if the payload is no such event.
pub fn tombstone(payload: &str) -> Option<Vec<u8>> {
    let members = members(payload)?;
    let kind = members.iter().find(|member| *member.key == *b"type")?;
    let is_update = match object::string(kind.raw_value)?.as_ref() {
        "new_message" => false,
        "message_updated" => true,
        _ => return None,
    };
    let mut out = Vec::with_capacity(payload.len().min(512));
    for member in &members {
        let key = &*member.key;
        if KEPT.contains(&key) || is_update && KEPT_OF_UPDATE.contains(&key) {
            put_member(&mut out, member);
        }
    }
    out.extend_from_slice(b",\"deleted\":true");
    close(out, seq(&members)?)
}

/// A whole `new_message` after an edit: its members named in `fields` (raw JSON members, separated by commas) have the
/// values there, what it does not have yet is added, `edited` is true, and `editedAt` is `edited_at`, in milliseconds
/// since the epoch. `None` if either is no JSON, or the payload has no `seq`.
pub fn apply_edit(payload: &str, fields: &[u8], edited_at: u64) -> Option<Vec<u8>> {
    let wrapped = wrap(fields)?;
    let edit = members(&wrapped)?;
    let members = members(payload)?;
    let mut edited_at_text = itoa::Buffer::new();
    let marks = [("\"edited\"", "true"), ("\"editedAt\"", edited_at_text.format(edited_at))];
    let marks = marks.map(|(raw_key, raw_value)| Member { key: object::string_bytes(raw_key), raw_key, raw_value });
    let is_marked = |key: &[u8]| marks.iter().any(|mark| *mark.key == *key);
    let changes: Vec<&Member<'_>> = edit.iter().filter(|member| !is_marked(&member.key)).chain(&marks).collect();
    let mut out = Vec::with_capacity(payload.len() + fields.len() + 48);
    for member in members.iter().filter(|member| *member.key != *b"seq") {
        match changes.iter().find(|change| change.key == member.key) {
            Some(change) => put_member(&mut out, &Member { raw_value: change.raw_value, ..member.clone() }),
            None => put_member(&mut out, member),
        }
    }
    for change in changes {
        if !members.iter().any(|member| member.key == change.key) {
            put_member(&mut out, change);
        }
    }
    close(out, seq(&members)?)
}

/// Whether an event is the message itself, or an edit of it.
pub fn is_about(event: &str, message: &Id) -> bool {
    let (mut is_message, mut is_this) = (false, false);
    let split = object::split(event, |member| match &*member.key {
        b"type" => is_message = matches!(member.raw_value, "\"new_message\"" | "\"message_updated\""),
        b"id" => is_this = Id::parse_raw(member.raw_value).as_ref() == Some(message),
        _ => {}
    });
    split.is_ok() && is_message && is_this
}

/// The message that an event deletes.
pub fn deleted_message(event: &str) -> Option<Id> {
    let (mut is_deletion, mut message) = (false, None);
    let split = object::split(event, |member| match &*member.key {
        b"type" => is_deletion = member.raw_value == "\"message_deleted\"",
        b"id" => message = Id::parse_raw(member.raw_value),
        _ => {}
    });
    message.filter(|_| split.is_ok() && is_deletion)
}

/// Whether an edit with `fields` would give the message another JSON value: a number counts by its value and a string
/// after unescaping, as in a retry. What cannot be read counts as changed.
pub fn is_changed_by(payload: &str, fields: &[u8]) -> bool {
    let Some(wrapped) = wrap(fields) else { return true };
    let (Some(edit), Some(members)) = (members(&wrapped), members(payload)) else { return true };
    // The key need not be secret: who finds two values that collide has only an edit of their own passed over.
    let digester = Digester::new((0x7369_7a6c_616e_642d, 0x6564_6974_732d_2d31));
    let is_same = |one: &str, other: &str| {
        let digest = |raw| digester.value(raw, DEPTH_MAX);
        one == other || digest(one).is_some_and(|found| Some(found) == digest(other))
    };
    let is_kept = |change: &Member<'_>| {
        let before = members.iter().find(|member| member.key == change.key);
        before.is_some_and(|before| is_same(before.raw_value, change.raw_value))
    };
    !edit.iter().all(is_kept)
}

/// What an edit gives a message anew, as raw JSON members: each of the two raw values that there is, under its name.
pub(crate) fn edit_fields(content: Option<&str>, attachments: Option<&str>) -> Vec<u8> {
    let mut fields = Vec::new();
    for (name, raw) in [("\"content\":", content), ("\"attachments\":", attachments)] {
        let Some(raw) = raw else { continue };
        if !fields.is_empty() {
            fields.push(b',');
        }
        fields.extend_from_slice(name.as_bytes());
        fields.extend_from_slice(raw.as_bytes());
    }
    fields
}

fn members(text: &str) -> Option<Vec<Member<'_>>> {
    let mut members = Vec::new();
    object::split(text, |member| members.push(member)).ok()?;
    Some(members)
}

/// The object that has these members.
fn wrap(fields: &[u8]) -> Option<String> {
    Some(format!("{{{}}}", str::from_utf8(fields).ok()?))
}

fn seq<'a>(members: &'a [Member<'a>]) -> Option<&'a Member<'a>> {
    members.iter().find(|member| *member.key == *b"seq")
}

/// Ends an object whose members stand in `out`, each behind a comma.
fn close(mut out: Vec<u8>, seq: &Member<'_>) -> Option<Vec<u8>> {
    put_member(&mut out, seq);
    *out.first_mut()? = b'{';
    out.push(b'}');
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn text(bytes: Option<Vec<u8>>) -> Option<String> {
        bytes.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn tombstones() {
        let table = [
            (
                r#"{"type":"new_message","roomId":"r\"1","id":7,"content":"x","attachments":[],"userId":"mine","edited":true,"editedAt":3,"sender_user_id":42,"deleted_by":1,"timestamp":"2024-02-29T12:34:56Z","seq":9}"#,
                Some(
                    r#"{"type":"new_message","roomId":"r\"1","id":7,"sender_user_id":42,"timestamp":"2024-02-29T12:34:56Z","deleted":true,"seq":9}"#,
                ),
            ),
            (
                r#"{"type":"new_message","roomId":"r","id":"a","\u0069\u0064x":1,"sender\u005fuser_id":null,"timestamp":5,"seq":1}"#,
                Some(
                    r#"{"type":"new_message","roomId":"r","id":"a","sender\u005fuser_id":null,"timestamp":5,"deleted":true,"seq":1}"#,
                ),
            ),
            (
                r#"{"type":"message_updated","roomId":"r","id":7,"content":"x","attachments":[1],"edited":true,"userId":"u","editedAt":3,"timestamp":3,"seq":10}"#,
                Some(
                    r#"{"type":"message_updated","roomId":"r","id":7,"edited":true,"userId":"u","editedAt":3,"timestamp":3,"deleted":true,"seq":10}"#,
                ),
            ),
            (r#"{"type":"new_message","roomId":"r","id":"a","timestamp":5}"#, None),
            (r#"{"type":"reaction","roomId":"r","messageId":7,"emoji":"x","userId":1,"timestamp":3,"seq":10}"#, None),
            (r#"{"roomId":"r","seq":10}"#, None),
            (r#"{"type":7,"seq":10}"#, None),
            ("[]", None),
            ("{", None),
            ("", None),
        ];
        for (payload, expected) in table {
            let found = text(tombstone(payload));
            assert_eq!(found.as_deref(), expected, "{payload}");
            if let Some(found) = found {
                assert_eq!(text(tombstone(&found)).as_deref(), Some(&*found), "{payload}");
            }
        }
    }

    #[test]
    fn edits() {
        let table = [
            (
                r#"{"type":"new_message","roomId":"r","id":7,"content":"x","n":1.50,"edited":false,"timestamp":5,"seq":9}"#,
                r#""content":{"a": 1.0}"#,
                Some(
                    r#"{"type":"new_message","roomId":"r","id":7,"content":{"a": 1.0},"n":1.50,"edited":true,"timestamp":5,"editedAt":8,"seq":9}"#,
                ),
            ),
            (
                r#"{"type":"new_message","roomId":"r","id":7,"timestamp":5,"seq":9}"#,
                r#""attachments":["\ud800"],"c\u006fntent":"y""#,
                Some(
                    r#"{"type":"new_message","roomId":"r","id":7,"timestamp":5,"attachments":["\ud800"],"c\u006fntent":"y","edited":true,"editedAt":8,"seq":9}"#,
                ),
            ),
            (
                r#"{"type":"new_message","c\u006fntent":1,"edited":true,"editedAt":4,"timestamp":5,"seq":9}"#,
                r#""content":2,"edited":false"#,
                Some(r#"{"type":"new_message","c\u006fntent":2,"edited":true,"editedAt":8,"timestamp":5,"seq":9}"#),
            ),
            (r#"{"type":"new_message","timestamp":5,"seq":9}"#, "\"content\"", None),
            (r#"{"type":"new_message","timestamp":5}"#, "\"content\":1", None),
            ("[]", "\"content\":1", None),
        ];
        for (payload, fields, expected) in table {
            assert_eq!(text(apply_edit(payload, fields.as_bytes(), 8)).as_deref(), expected, "{payload}");
        }
        assert_eq!(apply_edit(r#"{"seq":1}"#, b"\"content\":\"\xff\"", 8), None);
    }

    #[test]
    fn changes() {
        let payload = r#"{"content":"\u0061","attachments":[{"size":1.0,"name":"n"}],"edited":true,"seq":9}"#;
        let table = [
            (r#""content":"a""#, false),
            (r#""content":"b""#, true),
            (r#""c\u006fntent":"a","attachments":[{"name":"n","size":10e-1}]"#, false),
            (r#""content":"a","attachments":[]"#, true),
            (r#""messageType":null"#, true),
            (r#""content":"#, true),
            ("", false),
        ];
        for (fields, expected) in table {
            assert_eq!(is_changed_by(payload, fields.as_bytes()), expected, "{fields}");
        }
        assert!(is_changed_by("{", b""));
        assert!(is_changed_by(payload, b"\xff"));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
    }

    proptest! {
        #[test]
        fn any_text_is_survived(payload in ".*|\\{[\"a-z:,1{}\\[\\]]{0,30}\\}", fields in ".*|[\"a-z:,1{}]{0,30}") {
            let _ = tombstone(&payload);
            let _ = apply_edit(&payload, fields.as_bytes(), 1);
            let _ = is_changed_by(&payload, fields.as_bytes());
        }

        #[test]
        fn an_edit_changes_what_it_names(
            posted in prop::collection::hash_map("content|attachments|edited|editedAt|.{0,4}", values(), 0..6),
            edit in prop::collection::hash_map("content|attachments", values(), 1..3),
        ) {
            let mut before = json!({"type": "new_message", "id": "m", "sender_user_id": 4, "timestamp": 5});
            before.as_object_mut().unwrap().extend(posted.into_iter().filter(|(key, _)| key != "seq" && key != "type"));
            let head = before.to_string();
            let payload = format!("{},\"seq\":9}}", &head[..head.len() - 1]);
            let fields: Map<String, Value> = edit.into_iter().collect();
            let raw = Value::Object(fields.clone()).to_string();
            let raw = &raw.as_bytes()[1..raw.len() - 1];
            let after = text(apply_edit(&payload, raw, 8)).unwrap();
            let ends_in_seq = after.ends_with(",\"seq\":9}");
            prop_assert!(ends_in_seq);
            let found: Value = serde_json::from_str(&after).unwrap();
            let mut expected = before.clone();
            expected.as_object_mut().unwrap().extend(fields.clone());
            let marks = json!({"edited": true, "editedAt": 8, "seq": 9});
            expected.as_object_mut().unwrap().extend(marks.as_object().unwrap().clone());
            prop_assert_eq!(&found, &expected);
            let same = fields.iter().all(|(key, value)| before.get(key) == Some(value));
            prop_assert_eq!(is_changed_by(&payload, raw), !same);
            prop_assert!(!is_changed_by(&after, raw));

            let stone: Value = serde_json::from_slice(&tombstone(&after).unwrap()).unwrap();
            let mut left: Vec<&str> = stone.as_object().unwrap().keys().map(|key| key.as_str()).collect();
            left.sort_unstable();
            let mut kept = vec!["deleted", "id", "seq", "sender_user_id", "timestamp", "type"];
            kept.extend(expected.get("roomId").map(|_| "roomId"));
            kept.sort_unstable();
            prop_assert_eq!(left, kept);
        }
    }
}
