//! How many instructions the hot paths take, counted by callgrind and compared with what is committed.
//!
//! ```sh
//! cargo run --release --example instructions -- check     # compares with benches/instructions/counts.toml
//! cargo run --release --example instructions -- record    # writes it anew
//! cargo run --release --example instructions -- run connect 200
//! ```
//!
//! An operation is done N times and 2 N times, each in a process of its own behind an uncounted N; the difference over N is
//! its count, in which start-up has no part. Counts depend on the compiler, the C library and the instruction set that
//! valgrind shows to the program (one of its own, with AVX2 where the processor has it, and without the SHA extensions),
//! not on the time, the load of the machine, the environment or where the build lies.

mod counts;
#[path = "../../tests/driven_shard/mod.rs"]
#[allow(dead_code, reason = "some of it is for the tests only")]
mod driven_shard;
mod operations;

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use counts::{Counts, Toolchain};
use operations::{OPERATIONS, Operation};

const TOLERANCE_PERCENT: f64 = 3.0;
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/counts.toml");
const RECORD: &str = "cargo run --release --example instructions -- record";
/// The exit code of a check that could not compare; 1 is a comparison that failed.
const SKIPPED: u8 = 2;

#[derive(Parser)]
#[command(about = "Counts the instructions of the hot paths under callgrind")]
enum Action {
    /// Compares with the committed counts; exits with 1 if one differs, with 2 if they cannot be compared.
    Check,
    /// Replaces the committed counts.
    Record,
    /// Does an operation so many times behind as many uncounted ones; run this under valgrind.
    Run {
        /// Its name.
        operation: String,
        /// How many times, the uncounted ones not included.
        times: u32,
    },
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    match Action::parse() {
        Action::Check => check(),
        Action::Record => record(),
        Action::Run { operation, times } => run(&operation, times),
    }
}

fn run(name: &str, times: u32) -> Result<ExitCode, Box<dyn Error>> {
    let operation = OPERATIONS.iter().find(|operation| operation.name == name).ok_or("no such operation")?;
    let mut act = (operation.prepare)();
    (0..operation.times + times).for_each(|_| act());
    Ok(ExitCode::SUCCESS)
}

fn record() -> Result<ExitCode, Box<dyn Error>> {
    let mut measured = Counts { toolchain: Toolchain::present()?, ..Counts::default() };
    for operation in &OPERATIONS {
        let count = count(operation)?;
        println!("{:<14}{count:>10}", operation.name);
        measured.counts.insert(operation.name.to_owned(), count);
    }
    fs::write(PATH, measured.to_text())?;
    Ok(ExitCode::SUCCESS)
}

fn check() -> Result<ExitCode, Box<dyn Error>> {
    let committed = Counts::parse(&fs::read_to_string(PATH)?)?;
    let present = Toolchain::present()?;
    if (&present.rustc, &present.target) != (&committed.toolchain.rustc, &committed.toolchain.target) {
        println!("*** NOT COMPARED: the counts were taken with {}, this is {present}", committed.toolchain);
        return Ok(ExitCode::from(SKIPPED));
    }
    let named = OPERATIONS.iter().filter(|operation| committed.counts.contains_key(operation.name)).count();
    let mut differ = named != OPERATIONS.len() || committed.counts.len() != named;
    println!("{:<14}{:>10}{:>10}{:>12}", "instructions", "committed", "measured", "difference");
    for operation in &OPERATIONS {
        let before = committed.counts.get(operation.name).copied().unwrap_or_default();
        let now = count(operation)?;
        let percent = (now as f64 / before as f64 - 1.0) * 100.0;
        let is_other = !(-TOLERANCE_PERCENT..=TOLERANCE_PERCENT).contains(&percent);
        differ |= is_other;
        let mark = if is_other { "  <- beyond the tolerance" } else { "" };
        println!("{:<14}{before:>10}{now:>10}{percent:>+10.2} %{mark}", operation.name);
    }
    if !differ {
        return Ok(ExitCode::SUCCESS);
    }
    println!("more than {TOLERANCE_PERCENT} % up or down, or other names than committed");
    if present != committed.toolchain {
        println!("the counts were taken with {}, this is {present}", committed.toolchain);
    }
    println!("when that is meant, also for the better, re-record with: {RECORD}");
    Ok(ExitCode::FAILURE)
}

/// The instructions of one operation.
fn count(operation: &Operation) -> Result<u64, Box<dyn Error>> {
    let times = u64::from(operation.times);
    let (shorter, longer) = (total(operation, operation.times)?, total(operation, 2 * operation.times)?);
    Ok((longer - shorter + times / 2) / times)
}

/// The instructions of a whole process.
fn total(operation: &Operation, times: u32) -> Result<u64, Box<dyn Error>> {
    let program = env::current_exe()?;
    // The length of its own path lies on the stack of a program and would move what is behind it.
    let (folder, name) = (program.parent().ok_or("no folder")?, program.file_name().ok_or("no name")?);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(Path::new(".").join(name))
        .args(["run", operation.name, &times.to_string()])
        .current_dir(folder)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split_once("Collected : "));
    match collected.map(|(_, total)| total.trim().parse()) {
        Some(Ok(total)) if output.status.success() => Ok(total),
        _ => Err(format!("{} under valgrind failed: {}\n{report}", operation.name, output.status).into()),
    }
}
