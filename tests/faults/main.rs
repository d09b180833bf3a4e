//! Faults of networks, clocks, processes and limits, against the real binary: whoever recovers has lost nothing, presence is
//! right soon, and nothing is left behind.
//!
//! Owns the cases. They need the rights of root, so they run only when asked for, side by side:
//! `cargo test --test faults -- --ignored --test-threads 8`. Each has networks of its own, which end with this process.
//! `FAULTS_SEED` repeats the dice of a run.

#[path = "../end_to_end/client.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
mod client;
#[path = "../end_to_end/http_client.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
mod http_client;
mod link;
#[path = "../end_to_end/live_room.rs"]
mod live_room;
mod member;
#[path = "../end_to_end/server.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests, which use all of it")]
mod server;
#[path = "../end_to_end/stream.rs"]
#[allow(dead_code, reason = "the faults speak without TLS")]
mod stream;
mod system;
mod world;

mod clock;
mod line;
mod process;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The seed of this run, printed once.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let given = std::env::var("FAULTS_SEED").ok().map(|seed| seed.parse().expect("FAULTS_SEED is a number"));
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()));
        eprintln!("FAULTS_SEED={seed}");
        seed
    })
}

/// Says loudly that a case did not run; where nothing may be skipped, that is a failure.
fn skip(why: &str) {
    eprintln!("*** SKIPPED: {why}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "skipped: {why}");
}
