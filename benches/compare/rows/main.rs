//! `rows`: the least that keeping messages takes, as the lower bound of the durable scenarios. A bare loop that commits
//! the rows of posted messages in the store's own schema, a batch in a transaction, as fast as it can; nothing is looked
//! up or decided.
//!
//! A second thread writes the log back, as the server's does. Named a port, a third answers posts from there, as many a
//! second as it is told, so that the load generator takes the CPU from the loop that it takes from the server. Told no such
//! number, the loop commits a row for each post that has come, as many at once as there are, and they are answered then:
//! the least that a durable server does. The measured time begins behind a warm-up, and that with the first post.
//!
//! It prints one JSON object when the measured time is over, and goes on until it is ended. It must never be run for
//! anything but the comparison.

mod answers;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sizland_chat::config::Store;
use sizland_chat::work::database::Database;

use answers::Answers;
use table::Table;

/// Between two looks at the log.
const WRITE_BACK: Duration = Duration::from_millis(100);
/// Committed before anything is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// A bare loop that commits the rows of messages.
#[derive(Debug, Parser)]
struct Args {
    /// The database, which is made
    #[arg(long)]
    file: PathBuf,
    /// Measured time
    #[arg(long)]
    seconds: f64,
    /// Rows in a transaction, or the most of them
    #[arg(long, default_value_t = 256)]
    batch: u32,
    /// Rooms that the rows are of, in turn
    #[arg(long, default_value_t = 1)]
    rooms: u32,
    /// Those who post, in turn: each one's ids follow each other
    #[arg(long, default_value_t = 64)]
    posters: u32,
    /// Answers posts here
    #[arg(long)]
    port: Option<u16>,
    /// Posts answered per second, at most; without it, those whose rows are committed
    #[arg(long, requires = "port")]
    answers: Option<f64>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let database = Arc::new(Database::open(&Store::File(args.file.clone())).map_err(io::Error::other)?);
    let log = database.checkpointer().map_err(io::Error::other)?;
    thread::spawn(move || {
        loop {
            thread::sleep(WRITE_BACK);
            // A log in use is written back as far as it can be.
            let _ = log.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
    });
    let answers = args.port.map(|port| Answers::start(port, args.answers)).transpose()?;
    // Posts without a row of their own.
    let mut waiting = answers.as_ref().map_or(Ok(0), Answers::wait)?;
    let connection = database.writer().map_err(io::Error::other)?;
    let mut table = Table::new(&connection, args.rooms, args.posters).map_err(io::Error::other)?;
    // The rows that were committed, and how long it took.
    let mut commit = || {
        let mut rows = args.batch;
        if let (Some(answers), None) = (&answers, args.answers) {
            if waiting == 0 {
                waiting = answers.wait()?;
            }
            rows = waiting.min(u64::from(args.batch)) as u32;
            waiting -= u64::from(rows);
        }
        let started = Instant::now();
        table.commit(rows).map_err(io::Error::other)?;
        let took = started.elapsed();
        if let Some(answers) = &answers {
            answers.committed(rows)?;
        }
        io::Result::Ok((rows, took))
    };
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        commit()?;
    }
    let (begin, begin_ns, mut times_us, mut rows) = (Instant::now(), cpu_ns(), Vec::new(), 0.0);
    while begin.elapsed().as_secs_f64() < args.seconds {
        let (committed, took) = commit()?;
        rows += f64::from(committed);
        times_us.push(took.as_secs_f64() * 1e6);
    }
    let (seconds, count) = (begin.elapsed().as_secs_f64(), times_us.len());
    times_us.sort_by(f64::total_cmp);
    let at = |share: f64| times_us.get((count as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let outcome = serde_json::json!({
        "rows_per_s": rows / seconds,
        "cpu_us_per_row": (cpu_ns() - begin_ns) as f64 / 1e3 / rows,
        "commit_us": { "p50": at(0.5), "p99": at(0.99), "max": times_us.last() },
        "stopped": null,
        "ok": true,
    });
    let mut out = io::stdout();
    writeln!(out, "{outcome}")?;
    out.flush()?;
    if args.port.is_some() {
        loop {
            commit()?;
        }
    }
    Ok(())
}

/// CPU time of this thread, the kernel's share included.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0)
}
