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
    #[arg(long, default_value_t = 1500)]
    phase_seconds_max: u64,
}

/// The server, its crowd, and the memory before there was one.
struct Run {
    server: Server,
    crowd: Crowd,
    connections: usize,
    before: Memory,
    limit: Duration,
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
    let crowd = Crowd::new(target, connections, room_size).map_err(|error| error.to_string())?;
    let limit = Duration::from_secs(options.phase_seconds_max);
    let mut run = Run { before: server.memory(), server, crowd, connections, limit };
    run.phase("open", Crowd::open_some, |crowd| crowd.tally().greeted)?;
    run.phase("joined", Crowd::join_some, |crowd| crowd.tally().joined)?;
    run.crowd.post_all().map_err(|error| format!("cannot post: {error}"))?;
    run.phase("told", |_| Ok(()), |crowd| crowd.tally().told)?;
    let (rooms, posted, tally) = (connections / room_size, run.crowd.posted(), run.crowd.tally());
    println!(
        "{posted} posts to {rooms} rooms were answered 201; {} members got theirs, each once; {} events about presence",
        tally.told, tally.presence
    );
    if posted == rooms { Ok(()) } else { Err("a post was not answered".to_owned()) }
}

impl Run {
    /// Feeds the crowd and takes what it gets until `done` says that all are there and nothing more comes: a second copy of
    /// a message would. Prints time and memory, also when it fails.
    fn phase(
        &mut self,
        name: &str,
        feed: impl Fn(&mut Crowd) -> Result<(), String>,
        done: impl Fn(&Crowd) -> usize,
    ) -> Result<(), String> {
        let started = Instant::now();
        let reached = self.reach(name, feed, &done);
        let elapsed = started.elapsed();
        let rested = reached.and_then(|()| self.rest());
        let count = done(&self.crowd);
        println!(
            "{name} {count} of {} in {elapsed:.1?}, {:.0} a second",
            self.connections,
            count as f64 / elapsed.as_secs_f64()
        );
        self.print_memory();
        rested.map_err(|error| format!("{name} {count} of {}: {error}", self.connections))
    }

    fn reach(
        &mut self,
        name: &str,
        feed: impl Fn(&mut Crowd) -> Result<(), String>,
        done: impl Fn(&Crowd) -> usize,
    ) -> Result<(), String> {
        let started = Instant::now();
        let (mut heard, mut printed) = (started, started);
        while done(&self.crowd) < self.connections {
            feed(&mut self.crowd)?;
            let any = self.crowd.step(Duration::from_secs(1))?;
            let now = Instant::now();
            if any {
                heard = now;
            }
            if now - started > self.limit {
                return Err("it takes too long".to_owned());
            }
            if now - heard > STALL_MAX {
                return Err(format!("nothing arrived for {STALL_MAX:?}"));
            }
            if now - printed > PROGRESS_EVERY {
                printed = now;
                println!("  {name} {} after {:.0?}", done(&self.crowd), now - started);
            }
        }
        Ok(())
    }

    /// Takes what still comes, until nothing does.
    fn rest(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while self.crowd.step(QUIET)? {
            if started.elapsed() > self.limit {
                return Err("it does not come to rest".to_owned());
            }
        }
        Ok(())
    }

    fn print_memory(&self) {
        let (now, before, open) = (self.server.memory(), self.before, self.crowd.tally().greeted.max(1));
        let each = |now: u64, before: u64| (now as f64 - before as f64) / open as f64;
        println!(
            "  bytes per connection: server {:.0}, these clients {:.0}; both ends in the kernel: slab {:.0} ({:.0} of it \
             unreclaimable), TCP buffers {:.0}; memory of the machine {:.0}",
            each(now.server, before.server),
            each(now.client, before.client),
            each(now.slab, before.slab),
            each(now.slab_unreclaimable, before.slab_unreclaimable),
            each(now.tcp, before.tcp),
            each(before.free, now.free),
        );
    }
}
