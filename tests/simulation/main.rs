//! The whole server in one thread, without a socket: random clients, faults and limits drawn from a seed, against a shadow
//! model of what each client may see. Two seeds of three have a store, which fails, loses answers and crashes, against the
//! one order of what was ever committed.
//!
//! `SIMULATION_SEED=n` replays one seed, `SIMULATION_SEEDS=n` runs that many. A failure names the seed and the step.

mod audit;
mod change;
mod client;
mod drain;
mod frames;
mod plan;
#[path = "../random/mod.rs"]
mod random;
mod rest;
mod simulation;
mod socket;
mod store;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use simulation::Simulation;

const SEEDS: u64 = 256;

fn run(seed: u64) -> u64 {
    let mut simulation = Simulation::new(seed);
    match catch_unwind(AssertUnwindSafe(|| simulation.run())) {
        Ok(hash) => hash,
        Err(panic) => {
            eprintln!("SIMULATION_SEED={seed} fails at step {}", simulation.step);
            resume_unwind(panic)
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(feature = "planted-bugs")]
fn plant() {
    use sizland_chat::planted::{self, Bug};
    let wanted = std::env::var("PLANTED_BUG").ok();
    planted::plant(wanted.map(|name| {
        let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
        found.unwrap_or_else(|| panic!("PLANTED_BUG must be one of {:?}", Bug::ALL))
    }));
}

#[cfg(not(feature = "planted-bugs"))]
fn plant() {}

/// Runs the seeds from `from` in steps of `by`.
fn run_some(from: u64, by: u64) {
    plant();
    match number("SIMULATION_SEED") {
        Some(seed) if seed % by == from => {
            run(seed);
        }
        Some(_) => {}
        None => {
            for seed in (from..number("SIMULATION_SEEDS").unwrap_or(SEEDS)).step_by(by as usize) {
                run(seed);
            }
        }
    }
}

#[test]
fn even_seeds() {
    run_some(0, 2);
}

#[test]
fn odd_seeds() {
    run_some(1, 2);
}

#[test]
fn a_seed_always_gives_the_same_bytes() {
    for seed in 1000..1004 {
        assert_eq!(run(seed), run(seed));
    }
}
