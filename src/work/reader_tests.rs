//! Pages, frames, the feed and traces at their edges.

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::{Value, json};

use super::ledger_tests::*;
use super::model_tests::frames;
use super::reader::ANSWER_BYTES_MAX;
use crate::chat::store::{Found, Lookup, Trace, TracePlace};
use crate::wire::client::ErrorCode;

const NONE: RangeInclusive<u64> = RangeInclusive::new(1, 0);

fn filled(messages: usize, content: &str) -> World {
    let mut world = world();
    let writes: Vec<_> = (0..messages).map(|n| Arc::new(post("r", &format!("m{n}"), content, Some("1")))).collect();
    world.ledger.commit(&writes).unwrap();
    world
}

fn seqs(page: &Value) -> Vec<u64> {
    page["messages"].as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()).collect()
}

#[test]
fn pages() {
    let mut world = filled(10, "x");
    world.write(react("r", "m0", "+", "1", false));
    for (before, after, limit, expected, more) in [
        (None, None, 3, 8..=10, true),
        (None, None, 10, 1..=10, false),
        (Some(8), None, 3, 5..=7, true),
        (Some(4), None, 3, 1..=3, false),
        (Some(u64::MAX), None, 1, 10..=10, true),
        (None, Some(0), 3, 1..=3, true),
        (None, Some(7), 3, 8..=10, false),
        (Some(5), Some(2), 9, 3..=4, false),
        (Some(5), Some(2), 1, 3..=3, true),
        (None, Some(u64::MAX), 3, NONE, false),
        (Some(1), None, 3, NONE, false),
    ] {
        let page = world.json(Lookup::Page { room: name("r"), before, after, limit });
        assert_eq!(seqs(&page), expected.collect::<Vec<_>>(), "{before:?} {after:?} {limit}");
        assert_eq!((&page["more"], &page["firstSeq"], &page["lastSeq"]), (&json!(more), &json!(1), &json!(11)));
    }
    let unknown = world.page("unknown");
    assert_eq!(
        unknown,
        json!({"messages": [], "epoch": &*world.facts.epoch, "firstSeq": 1, "lastSeq": 0, "more": false})
    );
}

#[test]
fn a_page_shows_what_is_current() {
    let mut world = world();
    let mut write = post("r", "a", "x", Some("1"));
    write.change.prefix.extend_from_slice(b",\"edited\":true,\"extra\":1.50");
    world.write(write);
    world.write(post("r", "b", "x", Some("1")));
    world.write(edit("r", user("1"), "b", "y"));
    for n in 0..150 {
        world.write(react("r", "a", "+", &n.to_string(), false));
    }
    world.write(react("r", "a", "-", "\"0\"", false));
    let Found::Json(body) = world.find(Lookup::Page { room: name("r"), before: None, after: None, limit: 9 }) else {
        panic!()
    };
    assert!(String::from_utf8(body).unwrap().contains("\"extra\":1.50"), "what was posted goes out as written");
    let page = world.page("r");
    let [a, b] = &page["messages"].as_array().unwrap()[..] else { panic!() };
    assert_eq!((&a["edited"], &a["editedAt"], &a["deleted"]), (&json!(true), &json!(null), &json!(false)));
    assert_eq!((&b["content"], &b["edited"], &b["editedAt"]), (&json!("y"), &json!(true), &json!(AT_MS)));
    assert_eq!(b["reactionSummary"], json!([]));
    let summary = &a["reactionSummary"];
    assert_eq!((&summary[0]["emoji"], &summary[0]["count"]), (&json!("+"), &json!(150)));
    assert_eq!(summary[0]["userIds"], json!((0..100).collect::<Vec<_>>()));
    assert_eq!(summary[1], json!({"emoji": "-", "count": 1, "userIds": ["0"]}));
}

#[test]
fn answers_are_bounded() {
    let world = filled(40, &"x".repeat(60_000));
    let page = world.page("r");
    assert_eq!((seqs(&page), &page["more"]), ((23..=40).collect(), &json!(true)));
    let first = world.json(Lookup::Page { room: name("r"), before: None, after: Some(0), limit: 100 });
    assert_eq!((seqs(&first), &first["more"]), ((1..=18).collect(), &json!(true)));
    let Found::Feed { body, position, is_empty } = world.find(Lookup::Feed { after: None, limit: 1_000 }) else {
        panic!()
    };
    assert!(position == 18 && !is_empty && body.len() < ANSWER_BYTES_MAX + 65_536);
}

#[test]
fn events_end_where_asked_and_have_no_hole() {
    let mut world = filled(10, &"x".repeat(20_000));
    for n in 0..10 {
        world.write(react("r", "m0", "+", &n.to_string(), false));
    }
    for (after, to, bytes_max, expected) in [
        (0, 20, usize::MAX, 1..=20),
        (3, 12, usize::MAX, 4..=12),
        (0, 10, 50_000, 9..=10),
        (0, 10, 100, NONE),
        (5, 5, usize::MAX, NONE),
        (7, 5, usize::MAX, NONE),
        (0, 21, usize::MAX, NONE),
        (u64::MAX, u64::MAX, usize::MAX, NONE),
    ] {
        let Found::Events(chunks) = world.find(Lookup::Events { room: name("r"), after, to, bytes_max }) else {
            panic!()
        };
        let found: Vec<u64> = frames(&chunks).iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{after} {to} {bytes_max}");
        assert!(chunks.iter().all(|chunk| chunk.frames.len() < 65_536 + 21_000));
    }
}

#[test]
fn cursors() {
    let mut world = filled(5, "x");
    let epoch = world.facts.epoch.clone();
    let feed = |world: &World, after: &str| world.find(Lookup::Feed { after: Some(after.into()), limit: 2 });
    for cursor in ["", "x", "-1", "a-", "a-g", "a-b-c", "0123456789abcdef0-1", "a-11111111111111111", "A-1", "é-1"] {
        assert!(matches!(feed(&world, cursor), Found::Refused(ErrorCode::InvalidMessage, _)), "{cursor}");
    }
    for cursor in ["0-1".to_owned(), format!("{epoch}-6"), format!("{epoch}-ffffffffffffffff")] {
        let Found::Refused(ErrorCode::Conflict, words) = feed(&world, &cursor) else { panic!("{cursor}") };
        assert!(words.contains("without after"));
    }
    let page = json_of(&feed(&world, &format!("{epoch}-2")));
    assert_eq!((&page["next"], &page["more"]), (&json!(format!("{epoch}-4")), &json!(true)));
    let page = json_of(&feed(&world, &format!("{epoch}-3")));
    assert_eq!((&page["next"], &page["more"]), (&json!(format!("{epoch}-5")), &json!(false)));
    let end = format!("{epoch}-5");
    assert!(matches!(feed(&world, &end), Found::Feed { is_empty: true, position: 5, .. }));
    world.write(post("r", "removed", "x", None));
    world.write(remove("r"));
    let Found::Feed { body, is_empty: false, position: 6 } = feed(&world, &end) else { panic!() };
    let page: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page, json!({"events": [], "next": format!("{epoch}-6"), "more": false, "trimmed": true}));
}

#[test]
fn traces_go_on_where_they_ended() {
    let mut world = world();
    let mut expected = 0;
    let writes = (0..5_000).map(|n| {
        let sender = if n % 10 == 0 { "1" } else { "2" };
        expected += usize::from(n % 10 == 0);
        Arc::new(post(["a", "b"][n % 2], &format!("m{n}"), "x", Some(sender)))
    });
    let writes: Vec<_> = writes.collect();
    world.ledger.commit(&writes).unwrap();
    world.write(react("c", "unseen", "+", "1", false));
    world.write(mark("b", "1", 1));
    let (mut found, mut place, mut answers) = (Vec::new(), Some(TracePlace::default()), 0);
    while let Some(from) = place {
        let Found::Traces(traces, next) = world.find(Lookup::Traces { user: raw("1"), from }) else { panic!() };
        assert!(traces.len() <= 100);
        found.extend(traces);
        (place, answers) = (next, answers + 1);
    }
    let is = |kind: fn(&Trace) -> bool| found.iter().filter(|trace| kind(trace)).count();
    assert_eq!(is(|trace| matches!(trace, Trace::Message { .. })), expected);
    assert_eq!(is(|trace| matches!(trace, Trace::Reaction { room, .. } if &**room == "c")), 1);
    assert_eq!(is(|trace| matches!(trace, Trace::Mark { .. })), 3);
    assert!(answers >= 6);
}
