//! A million real connections to the real server: opened, joined, told one message each, and what that cost.
//!
//! One thread and one poll hold all clients, in a few dozen bytes each. Fails unless every member of every room gets the
//! room's message exactly once. `run` beside this file prepares a kernel that allows so many files.

mod crowd;
mod member;
mod poster;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crowd::{Crowd, Target};
use server::{API_KEY, Memory, SECRET, Server};

/// How long nothing may arrive before what goes on is thought to have come to rest.
const QUIET: Duration = Duration::from_secs(3);
/// How long nothing may arrive while something is waited for.
const STALL_MAX: Duration = Duration::from_secs(90);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(about = "Opens very many WebSockets to the real server and has each told a message")]
struct Options {
    /// The server's binary.
    #[arg(long)]
    server: PathBuf,
    /// WebSockets, each of a user of its own.
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
    /// Members of a room.
    #[arg(long, default_value_t = 1_000)]
    room_size: usize,
    /// Threads of the server.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Addresses of the loopback over which the connections are spread.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=254))]
    destinations: u8,
    /// Time that each phase may take.
    #[arg(long, default_value_t = 900)]
    phase_seconds_max: u64,
}

/// How long each phase took, and the memory before the first and after each.
struct Outcome {
    opening: Duration,
    joining: Duration,
    telling: Duration,
    before: Memory,
    open: Memory,
    joined: Memory,
    told: Memory,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // The last line is what a script waits for: it may not want to wait until all sockets are closed.
    match run(&options) {
        Ok(()) => {
            println!("result: passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("result: failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let Options { connections, room_size, .. } = *options;
    if room_size == 0 || connections == 0 || !connections.is_multiple_of(room_size) {
        return Err("the connections must fill whole rooms".to_owned());
    }
    let files = rlimit::increase_nofile_limit(u64::MAX).map_err(|error| error.to_string())?;
    if files < connections as u64 + 128 {
        return Err(format!("only {files} files may be open"));
    }
    let server = Server::start(&options.server, connections, options.threads)?;
    let target = Target { port: server.port(), destinations: options.destinations, secret: SECRET, api_key: API_KEY };
    let mut crowd = Crowd::new(target, connections, room_size).map_err(|error| error.to_string())?;
    let limit = Duration::from_secs(options.phase_seconds_max);

    let before = server.memory();
    let opening = phase(&mut crowd, "open", limit, connections, Crowd::open_some, |crowd| crowd.tally().greeted)?;
    let open = server.memory();
    let joining = phase(&mut crowd, "joined", limit, connections, Crowd::join_some, |crowd| crowd.tally().joined)?;
    settle(&mut crowd, limit)?;
    let joined = server.memory();
    crowd.post_all().map_err(|error| format!("cannot post: {error}"))?;
    let telling = phase(&mut crowd, "told", limit, connections, |_| Ok(()), |crowd| crowd.tally().told)?;
    // A second copy would come now, and the answers to the last posts.
    settle(&mut crowd, limit)?;
    let told = server.memory();

    report(options, &crowd, &Outcome { opening, joining, telling, before, open, joined, told });
    let rooms = connections / room_size;
    if crowd.posted() != rooms {
        return Err(format!("{} of {rooms} posts were answered", crowd.posted()));
    }
    Ok(())
}

/// Feeds the crowd and takes what it gets until `done` says that all are there.
fn phase(
    crowd: &mut Crowd,
    name: &str,
    limit: Duration,
    goal: usize,
    feed: impl Fn(&mut Crowd) -> Result<(), String>,
    done: impl Fn(&Crowd) -> usize,
) -> Result<Duration, String> {
    let started = Instant::now();
    let (mut heard, mut printed) = (started, started);
    while done(crowd) < goal {
        feed(crowd).map_err(|error| format!("{name} {} of {goal}: {error}", done(crowd)))?;
        let any = crowd.step(Duration::from_secs(1)).map_err(|error| format!("{name} {}: {error}", done(crowd)))?;
        let now = Instant::now();
        if any {
            heard = now;
        }
        if now - started > limit || now - heard > STALL_MAX {
            return Err(format!("{name} {} of {goal} after {:.0?}", done(crowd), now - started));
        }
        if now - printed > PROGRESS_EVERY {
            printed = now;
            println!("{name} {} after {:.0?}", done(crowd), now - started);
        }
    }
    Ok(started.elapsed())
}

/// Takes what still comes, until nothing does.
fn settle(crowd: &mut Crowd, limit: Duration) -> Result<(), String> {
    let started = Instant::now();
    while crowd.step(QUIET)? {
        if started.elapsed() > limit {
            return Err(format!("no rest within {limit:?}"));
        }
    }
    Ok(())
}

fn report(options: &Options, crowd: &Crowd, outcome: &Outcome) {
    let (connections, tally) = (options.connections, crowd.tally());
    let Outcome { before, open, joined, told, .. } = *outcome;
    let each = |now: u64, then: u64| (now as f64 - then as f64) / connections as f64;
    let rate = |time: Duration| connections as f64 / time.as_secs_f64();
    println!();
    println!("connections open and joined    {} in {} rooms", tally.joined, connections / options.room_size);
    println!("opened in                      {:.1?} ({:.0} a second)", outcome.opening, rate(outcome.opening));
    println!("joined in                      {:.1?} ({:.0} a second)", outcome.joining, rate(outcome.joining));
    println!("events about presence          {}", tally.presence);
    println!("posts answered 201             {}", crowd.posted());
    println!("messages arrived, each once    {}", tally.told);
    println!("all arrived in                 {:.1?} ({:.0} a second)", outcome.telling, rate(outcome.telling));
    println!("bytes per connection           open   joined   told");
    let row = |name: &str, of: fn(&Memory) -> u64| {
        let values = [open, joined, told].map(|memory| format!("{:6.0}", each(of(&memory), of(&before))));
        println!("  {name:<28} {}", values.join("   "));
    };
    row("server, resident", |memory| memory.server);
    row("this client, resident", |memory| memory.client);
    row("kernel slab, both ends", |memory| memory.slab);
    row("  of it unreclaimable", |memory| memory.slab_unreclaimable);
    row("TCP buffers, both ends", |memory| memory.tcp);
    println!(
        "  {:<28} {:6.0}   {:6.0}   {:6.0}",
        "all memory of the machine",
        each(before.free, open.free),
        each(before.free, joined.free),
        each(before.free, told.free)
    );
    println!("server, resident, in all       {:.1} MiB", told.server as f64 / 1048576.0);
}
