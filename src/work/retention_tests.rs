//! What is removed, and what of it is seen.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rusqlite::hooks::Wal;
use serde_json::json;

use super::database::Database;
use super::database_tests::{Folder, open};
use super::ledger::Ledger;
use super::ledger_tests::*;
use super::retention::{COST_MAX, Retention};
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

/// What each step of removing all that `limits` do not keep wrote to the log, in pages, and how long it took.
fn steps(database: &Database, limits: &Limits, now_ms: u64) -> Vec<(u64, Duration)> {
    let mut connection = database.writer().unwrap();
    let (pages_out, pages) = channel();
    connection
        .wal_hook(Some(move |_: &mut Wal, frames: c_int| {
            let _ = pages_out.send(frames as u64);
            Ok(())
        }))
        .unwrap();
    let (mut ledger, mut retention) = (Ledger::new(connection, limits), Retention::new(limits));
    let mut steps = Vec::new();
    loop {
        let (begun, before) = (Instant::now(), ledger.connection().total_changes());
        let has_more = ledger.trim(&mut retention, now_ms).unwrap();
        let took = begun.elapsed();
        if ledger.connection().total_changes() > before {
            steps.push((pages.try_iter().last().unwrap(), took));
            ledger.connection().query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        }
        if !has_more {
            return steps;
        }
    }
}

/// Messages of all sizes in many rooms, each with reactions, in an order that none of the indexes has.
fn fill(ledger: &mut Ledger, rooms: u64, messages: u64) {
    let scattered = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    for first in (0..messages).step_by(500) {
        let mut batch = Vec::new();
        for n in first..(first + 500).min(messages) {
            let (room, id) = (format!("r{}", scattered(n) % rooms), format!("{:x}", scattered(n)));
            let content = "x".repeat(if n % 50 == 0 { 60_000 } else { 100 + (n % 7) as usize * 40 });
            batch.push(Arc::new(post(&room, &id, &content, Some("1"))));
            batch.extend((0..n % 3).map(|user| Arc::new(react(&room, &id, "+", &user.to_string(), false))));
        }
        ledger.commit(&batch).unwrap();
    }
}

#[test]
fn a_step_touches_a_bounded_number_of_pages_whatever_goes() {
    let folder = Folder::new("steps");
    let database = open(&folder.path("chat.db"));
    let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
    fill(&mut ledger, 40, 4_000);
    ledger.commit(&(0..20).map(|room| Arc::new(remove(&format!("r{room}")))).collect::<Vec<_>>()).unwrap();
    drop(ledger);
    let limits = Limits { retention_days: 1, ..Limits::default() };
    let steps = steps(&database, &limits, AT_MS + 2 * DAY_MS);
    assert!(steps.len() > 20, "{}", steps.len());
    // A row stands in three trees at most besides its own, and few of a step's rows share a page in any.
    let most = steps.iter().map(|&(pages, _)| pages).max().unwrap();
    assert!(most <= 4 * COST_MAX as u64 + 32, "{most}");
    let left: u64 = database.reader().unwrap().query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

/// `cargo test --release --lib -- --ignored --nocapture how_long_steps_take`
#[test]
#[ignore = "prints figures; nothing is asserted of the clock"]
fn how_long_steps_take() {
    let folder = Folder::new("steps-time");
    let database = open(&folder.path("chat.db"));
    fill(&mut Ledger::new(database.writer().unwrap(), &Limits::default()), 500, 200_000);
    let limits = Limits { retention_days: 1, ..Limits::default() };
    let mut steps: Vec<Duration> = steps(&database, &limits, AT_MS + 2 * DAY_MS).iter().map(|step| step.1).collect();
    steps.sort_unstable();
    let at = |share: f64| steps[(share * (steps.len() - 1) as f64) as usize];
    println!("{} steps: p50 {:?}, p99 {:?}, max {:?}", steps.len(), at(0.5), at(0.99), at(1.0));
}
