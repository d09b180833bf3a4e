//! The load: opens very many connections to a chat server, joins rooms, publishes, and checks every delivery.
//!
//! It shares no code with the server, so that it is an independent check of it, and speaks only the part of the protocol
//! that every server of this kind speaks: `GET /ws?token=`, `connected`, `join_room`, `online_update`, `reaction`, and
//! `POST /api/chat/rooms/{room}/messages`. One thread serves all connections; a delivery costs it one read shared with its
//! neighbours, a byte search and a compare, so the server is what is measured.
//!
//! From here down: `run` leads through the phases, `client` owns the connections (a `slot` each), `ledger` keeps the books, `presence` those
//! of who was told of whom, `publisher` fills the output, `comeback` knows what those say who come back; `feed` is a mode of its own; `gate` waits for another program; `dial`, `http`, `frame` and `marker` are the formats, `probe` asks the kernel, `report` prints.

mod args;
mod client;
mod comeback;
mod dial;
mod feed;
mod frame;
mod gate;
mod http;
mod ledger;
mod marker;
mod presence;
mod probe;
mod publisher;
mod report;
mod run;
mod slot;
mod stream;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use args::{Args, Mode};
use feed::Reading;
use run::Run;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

const EXIT_CHECK_FAILED: u8 = 1;
const EXIT_CANNOT_RUN: u8 = 2;
/// Files that are open besides the connections.
const FILES_BESIDES: u64 = 32;

fn main() -> ExitCode {
    let args = Args::from_command_line();
    match load(&args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(EXIT_CANNOT_RUN)
        }
    }
}

fn load(args: &Args) -> Result<ExitCode, String> {
    let files = probe::raise_file_limit();
    let needed = (args.sockets() + args.publishers()) as u64 + FILES_BESIDES;
    if needed > files {
        return Err(format!("{needed} open files are needed, {files} allowed"));
    }
    if let Some(pid) = args.pid
        && (probe::cpu_ns(pid).is_none() || probe::rss_bytes(pid).is_none())
    {
        return Err(format!("cannot read CPU time and memory of process {pid}"));
    }
    if let Some(cpu) = args.pin {
        probe::pin(cpu)?;
    }
    if args.mode == Mode::Feed {
        let reading = Reading::of(args).map_err(|e| e.to_string())?;
        let _ = writeln!(io::stdout(), "{}", reading.json());
        return Ok(if reading.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHECK_FAILED) });
    }
    let interrupted = watch_signals().map_err(|e| format!("cannot watch signals: {e}"))?;
    let mut run = Run::new(args, interrupted, run_number()).map_err(|e| e.to_string())?;
    let any = run.go().map_err(|e| format!("cannot poll: {e}"))?;
    let report = run.report();
    let text = if args.json { report.json().to_string() } else { report.to_string() };
    // Nobody is left to tell when standard output is gone; the exit code still says it.
    let _ = writeln!(io::stdout(), "{text}");
    if !any {
        return Err(format!("no connection to {} could be opened", args.address));
    }
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHECK_FAILED) })
}

/// The first signal ends the phase under way, the second the process.
fn watch_signals() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = i32::from(EXIT_CHECK_FAILED);
        flag::register_conditional_shutdown(signal, code, Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// A number by which this run's messages are told from those of others.
fn run_number() -> u32 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since_epoch.map_or(0, |d| d.as_nanos() as u64);
    (nanos >> 10) as u32 ^ std::process::id().rotate_left(16)
}
