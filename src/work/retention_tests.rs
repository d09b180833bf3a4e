//! What is removed, and what of it is seen.

use serde_json::json;

use super::ledger_tests::*;
use super::retention::Retention;
use crate::chat::store::{Lookup, Verdict, Write};
use crate::config::Limits;

const DAY_MS: u64 = 86_400_000;

fn trim(world: &mut World, limits: &Limits, now_ms: u64) -> u32 {
    let mut retention = Retention::new(limits);
    let mut steps = 0;
    while world.ledger.trim(&mut retention, now_ms).unwrap() {
        steps += 1;
        assert!(steps < 10_000);
    }
    steps
}

fn count(world: &World, table: &str) -> u64 {
    world.ledger.connection().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn nothing_goes_unless_configured() {
    let mut world = world();
    for n in 0..50 {
        world.write(post("r", &format!("m{n}"), "x", Some("1")));
    }
    trim(&mut world, &Limits::default(), AT_MS * 2);
    assert_eq!(count(&world, "event"), 50);
}

#[test]
fn by_number() {
    let mut world = world();
    for n in 0..300 {
        world.write(post("r", &format!("m{n}"), "x", Some("1")));
        world.write(react("r", &format!("m{n}"), "+", "1", false));
    }
    world.write(mark("r", "2", 301));
    world.write(post("small", "m", "x", Some("1")));
    let limits = Limits { retention_events: 101, ..Limits::default() };
    trim(&mut world, &limits, AT_MS);
    let page = world.page("r");
    assert_eq!((&page["firstSeq"], &page["lastSeq"]), (&json!(500), &json!(600)));
    assert_eq!(page["messages"].as_array().unwrap().len(), 50);
    assert_eq!((count(&world, "event"), count(&world, "reaction")), (102, 50));
    assert_eq!(world.json(Lookup::ReadMark { room: name("r"), user: raw("2") }), json!({"seq": 301, "unread": 50}));
    assert_eq!(world.write(mark("r", "2", 499)), Verdict::Refused(crate::wire::client::ErrorCode::NotFound));
    assert_eq!(world.write(post("r", "m0", "x", Some("1"))), new(601), "a trimmed id is free again");
    let feed = world.json(Lookup::Feed { after: None, limit: 10_000 });
    assert_eq!((&feed["trimmed"], feed["events"].as_array().unwrap().len()), (&json!(true), 103));
    assert_eq!(
        world.json(Lookup::Feed { after: feed["next"].as_str().map(Box::from), limit: 1 })["trimmed"],
        json!(null)
    );
}

#[test]
fn by_age() {
    let mut world = world();
    for n in 0..20 {
        let late = |write: Write| Write { at_ms: AT_MS + n * DAY_MS, ..write };
        world.write(late(post("r", &format!("m{n}"), "x", None)));
        world.write(late(react("r", "unseen", &format!("e{n}"), "1", false)));
    }
    let limits = Limits { retention_days: 5, ..Limits::default() };
    trim(&mut world, &limits, AT_MS + 15 * DAY_MS);
    assert_eq!(world.page("r")["firstSeq"], json!(21));
    assert_eq!(count(&world, "reaction"), 10, "a reaction to what was never seen goes with its event");
    trim(&mut world, &limits, AT_MS + 99 * DAY_MS);
    assert_eq!((count(&world, "event"), count(&world, "room")), (0, 1));
    let page = world.page("r");
    assert_eq!((&page["firstSeq"], &page["lastSeq"]), (&json!(41), &json!(40)));
    assert_eq!(world.write(post("r", "m0", "x", None)), new(41));
    assert_eq!(world.ledger.last_position().unwrap(), 41);
}

#[test]
fn keys_and_removed_rooms() {
    let mut world = world();
    for n in 0..100 {
        let mut write = post("r", &format!("m{n}"), "x", Some("1"));
        posted(&mut write).idempotency_key = Some(format!("k{n}").into());
        world.write(Write { at_ms: AT_MS + n, ..write });
        world.write(react("r", "m0", "+", &n.to_string(), false));
        world.write(post("stays", &format!("m{n}"), "x", Some("1")));
    }
    let limits = Limits { store_idempotency_ms: 1_000, ..Limits::default() };
    trim(&mut world, &limits, AT_MS + 1_049);
    assert_eq!(count(&world, "idempotency"), 50);
    world.write(remove("r"));
    let feed = world.json(Lookup::Feed { after: None, limit: 1_000 });
    assert_eq!((&feed["trimmed"], feed["events"].as_array().unwrap().len()), (&json!(true), 100));
    world.write(post("r", "m1", "new", Some("1")));
    trim(&mut world, &limits, AT_MS);
    for (table, rows) in [("event", 101), ("reaction", 0), ("reader", 2), ("idempotency", 0), ("removed_room", 0)] {
        assert_eq!(count(&world, table), rows, "{table}");
    }
    assert_eq!(world.page("r")["messages"][0]["seq"], json!(201));
}
