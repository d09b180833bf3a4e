//! The bodies of REST calls: taken exactly when what serde_json reads in them fits, and understood as it reads them.
//!
//! Input: the body, for each of the calls.

use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use sizland_chat::wire::event::{SERVER_TYPES, finish_ephemeral};
use sizland_chat::wire::rest_body::{
    BROADCAST_ROOMS_MAX, Disconnect, EVENT_TYPE_BYTES_MAX, PostRefusal, REASON_BYTES_MAX, parse_broadcast,
    parse_disconnect, parse_page, parse_read, parse_room_event, parse_user_event,
};

const ROOM: &str = "r";
const DEPTH_MAX: usize = 100;
const DATE_MS_MAX: i64 = 8_640_000_000_000_000;

/// Gives the body to every call.
pub fn run(data: &[u8]) {
    let is_json = str::from_utf8(data).is_ok() && serde_json::from_slice::<IgnoredAny>(data).is_ok();
    let body = serde_json::from_slice::<Members>(data).ok();
    let is_sound = body.as_ref().is_some_and(|body| !body.has_duplicate && depth(&body.fields) <= DEPTH_MAX);
    let fields = body.as_ref().filter(|_| is_sound).map(|body| &body.fields);
    // Not all that is JSON is a value for serde_json: it refuses unpaired surrogates and great depth.
    let is_known = body.is_some() || !is_json;

    check_events(data, is_json, is_known.then_some(fields));
    let read = parse_read(data).map_err(|refusal| check_refusal(&refusal, is_json)).ok();
    let broadcast = parse_broadcast(data).map_err(|refusal| check_refusal(&refusal, is_json)).ok();
    let disconnect = parse_disconnect(data).map_err(|refusal| {
        check_refusal(&refusal, is_json);
        assert!(!data.trim_ascii().is_empty());
    });
    if is_known && !data.trim_ascii().is_empty() {
        let seq = fields.and_then(|fields| fields.get("seq")?.as_u64()).filter(|seq| (1..=1 << 53).contains(seq));
        assert_eq!(read, seq);
        check_disconnect(disconnect.ok(), fields);
        let broadcast =
            broadcast.map(|broadcast| (broadcast.rooms, serde_json::from_str(broadcast.message.get()).ok()));
        assert_eq!(broadcast, fields.and_then(expected_broadcast));
    }
    check_query(data);
}

/// A JSON object, and whether it has a key twice.
struct Members {
    fields: Map<String, Value>,
    has_duplicate: bool,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members { fields: Map::new(), has_duplicate: false };
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    members.has_duplicate |= members.fields.insert(key, value).is_some();
                }
                Ok(members)
            }
        }

        from.deserialize_map(Fields)
    }
}

fn depth(fields: &Map<String, Value>) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(of).max().unwrap_or(0),
            Value::Object(fields) => depth(fields),
            _ => 0,
        }
    }
    1 + fields.values().map(of).max().unwrap_or(0)
}

/// `fields` is `None` where serde_json cannot tell, and `Some(None)` for what must be refused.
fn check_events(data: &[u8], is_json: bool, fields: Option<Option<&Map<String, Value>>>) {
    for (event, room) in [(parse_room_event(data, ROOM), Some(ROOM)), (parse_user_event(data), None)] {
        let sent = match event {
            Ok(mut event) => {
                finish_ephemeral(&mut event, 5);
                assert!(is_json && serde_json::from_slice::<IgnoredAny>(&event).is_ok());
                Some(event)
            }
            Err(refusal) => {
                check_refusal(&refusal, is_json);
                None
            }
        };
        let Some(fields) = fields else { continue };
        let expected = fields.and_then(|fields| expected_event(fields, room));
        assert_eq!(sent.and_then(|sent| serde_json::from_slice::<Value>(&sent).ok()), expected);
    }
}

fn expected_event(fields: &Map<String, Value>, room: Option<&str>) -> Option<Value> {
    let kind = fields.get("type")?.as_str()?;
    let is_free = (1..=EVENT_TYPE_BYTES_MAX).contains(&kind.len()) && !SERVER_TYPES.contains(&kind);
    let is_elsewhere = room.is_some_and(|room| fields.get("roomId").is_some_and(|given| given != room));
    if !is_free || is_elsewhere || fields.contains_key("seq") || fields.contains_key("epoch") {
        return None;
    }
    let mut expected = fields.clone();
    expected.insert("timestamp".to_owned(), json!(5));
    if let Some(room) = room {
        expected.insert("roomId".to_owned(), json!(room));
    }
    Some(expected.into())
}

fn expected_broadcast(fields: &Map<String, Value>) -> Option<(Vec<String>, Option<Value>)> {
    let rooms = fields.get("rooms")?.as_array()?;
    let rooms: Vec<String> = rooms.iter().map(|room| room.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    let message = fields.get("message").filter(|message| message.is_object())?;
    (1..=BROADCAST_ROOMS_MAX).contains(&rooms.len()).then(|| (rooms, Some(message.clone())))
}

fn check_disconnect(taken: Option<Disconnect>, fields: Option<&Map<String, Value>>) {
    let Some(fields) = fields else { return assert_eq!(taken, None) };
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let (reason, id, time) = (given("reason"), given("connectionId"), given("revokeBefore"));
    let is_short = |text: &str| text.len() <= REASON_BYTES_MAX;
    let is_fine = reason.is_none_or(|reason| reason.as_str().is_some_and(is_short)) && id.is_none_or(Value::is_string);
    let ms = time.and_then(Value::as_i64).filter(|ms| (0..=DATE_MS_MAX).contains(ms));
    let is_text = time.is_some_and(Value::is_string);
    let Some(disconnect) = taken else {
        return assert!(!is_fine || is_text || time.is_some() && ms.is_none(), "{fields:?}");
    };
    assert!(is_fine);
    assert_eq!(disconnect.reason.as_deref(), reason.and_then(Value::as_str));
    assert_eq!(disconnect.connection_id.as_deref(), id.and_then(Value::as_str));
    assert!(is_text && disconnect.revoke_before_ms.is_some() || disconnect.revoke_before_ms == ms);
}

/// The queries of pages: three texts, separated by `&`.
fn check_query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut parts = text.splitn(3, '&').map(|part| Some(part).filter(|part| *part != "-"));
    let (before, after, limit) = (parts.next().flatten(), parts.next().flatten(), parts.next().flatten());
    let number = |text: &str, min: u64| {
        let number = text.parse::<u64>().ok().filter(|_| !text.starts_with('+'));
        number.is_some_and(|number| (min..=1 << 53).contains(&number))
    };
    let is_fine = before.is_none_or(|text| number(text, 1))
        && after.is_none_or(|text| number(text, 0))
        && limit.is_none_or(|text| number(text, 1))
        && (before.is_none() || after.is_none());
    assert_eq!(parse_page(before, after, limit).is_ok(), is_fine, "{text:?}");
}

fn check_refusal(refusal: &PostRefusal, is_json: bool) {
    assert_eq!(refusal.status, if is_json { 422 } else { 400 }, "{refusal:?}");
}
