//! A million connections in rooms, without a socket: what the server itself holds and does for them.
//!
//! The shards run in one thread on a world whose clients keep almost nothing: a count of what each was told. Prints the
//! bytes per connection and the time, and fails if anybody misses a message.

mod world;

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use sizland_chat::auth::Role;
use sizland_chat::chat::Now;
use sizland_chat::chat::ids::{HashKey, ShardId};
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::config::Config;
use sizland_chat::reactor::turn::Reactor;
use sizland_chat::wire::value::Id;

use world::{SimIo, World};

const SECRET: &str = "a secret of at least thirty-two bytes";
const API_KEY: &str = "an api key of the simulation";
/// Connections that are opened before the shards run again.
const WAVE: usize = 2_000;
const WALL_MS: u64 = 1_800_000_000_000;

#[derive(Parser)]
#[command(about = "Holds simulated connections in rooms and measures what they cost the server")]
struct Options {
    /// Connections.
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
    /// Rooms, each connection in one.
    #[arg(long, default_value_t = 10_000)]
    rooms: usize,
    /// Event loops, all in this thread.
    #[arg(long, default_value_t = 2)]
    shards: usize,
    /// Rooms that get a message.
    #[arg(long, default_value_t = 1_000)]
    broadcasts: usize,
}

struct Simulation {
    options: Options,
    world: Rc<RefCell<World>>,
    reactors: Vec<Reactor<SimIo>>,
    config: Arc<Config>,
    made: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let (connections, broadcasts) = (options.connections, options.broadcasts.min(options.rooms));
    let started = Instant::now();
    let mut simulation = Simulation::new(options)?;
    let bytes_before = resident_bytes()?;
    simulation.connect(connections)?;
    let clients_bytes = simulation.world.borrow().bytes();
    let bytes = resident_bytes()?.saturating_sub(bytes_before).saturating_sub(clients_bytes);
    println!("joined      {connections} connections in {:.1} s", started.elapsed().as_secs_f64());
    println!("server      {} bytes per connection", bytes / connections.max(1));
    println!("simulation  {} bytes per connection, not counted above", clients_bytes / connections.max(1));

    let at = Instant::now();
    let delivered = simulation.broadcast(broadcasts)?;
    println!("broadcast   {broadcasts} rooms, {delivered} deliveries in {:.2} s", at.elapsed().as_secs_f64());

    let at = Instant::now();
    let churned = connections / 100;
    simulation.disconnect(churned)?;
    simulation.connect(churned)?;
    println!("churn       {churned} left and came in {:.2} s", at.elapsed().as_secs_f64());
    let delivered = simulation.broadcast(broadcasts)?;
    println!("broadcast   {broadcasts} rooms, {delivered} deliveries");
    println!("total       {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

impl Simulation {
    fn new(options: Options) -> Result<Self, Box<dyn Error>> {
        let world = Rc::new(RefCell::new(World::new(options.shards)));
        let mut config = Config::for_tests(SECRET, API_KEY);
        (config.rates, config.threads) = (false, options.shards);
        config.limits.connections_max = options.connections + 1;
        let (config, gauges) = (Arc::new(config), Arc::new(Gauges::default()));
        let reactor = |number: usize| {
            let id = ShardId(number as u16);
            let (config, gauges) = (config.clone(), gauges.clone());
            let key = HashKey::new([7; 16]);
            let (seed, store) = ([number as u8; 32], None);
            let setup = ShardSetup { config, id, shards: options.shards, key, seed, gauges, store };
            let shard = Shard::new(setup, Now { tick_ms: 0, wall_ms: WALL_MS });
            Reactor::new(shard, id, options.shards, SimIo { shard: number, world: world.clone() })
        };
        let reactors = (0..options.shards).map(reactor).collect();
        Ok(Self { options, world, reactors, config, made: 0 })
    }

    /// The token of a user that has no connection yet.
    fn token(&mut self) -> Result<String, Box<dyn Error>> {
        self.made += 1;
        let id = Id::from_text(&format!("user-{}", self.made));
        let token = self.config.credentials.keys.mint(id.as_ref(), Role::User, Duration::from_secs(3_600_000), WALL_MS);
        Ok(token.ok_or("no token can be made")?)
    }

    fn connect(&mut self, count: usize) -> Result<(), Box<dyn Error>> {
        let mut left = count;
        while left > 0 {
            let wave = left.min(WAVE);
            for _ in 0..wave {
                let token = self.token()?;
                self.world.borrow_mut().connect(&token, self.options.rooms);
            }
            self.run()?;
            left -= wave;
        }
        let joined = self.world.borrow().joined();
        if joined != self.options.connections {
            return Err(format!("{joined} of {} connections have joined", self.options.connections).into());
        }
        Ok(())
    }

    fn disconnect(&mut self, count: usize) -> Result<(), Box<dyn Error>> {
        self.world.borrow_mut().disconnect(count);
        self.run()
    }

    /// Posts a message to each of the first rooms, and checks that every member has got it once.
    fn broadcast(&mut self, rooms: usize) -> Result<usize, Box<dyn Error>> {
        self.world.borrow_mut().forget_messages();
        for room in 0..rooms {
            self.world.borrow_mut().post(room, API_KEY);
            if room % 100 == 99 {
                self.run()?;
            }
        }
        self.run()?;
        self.world.borrow().check_messages(rooms)
    }

    /// Turns the shards until nothing is left to do.
    fn run(&mut self) -> Result<(), Box<dyn Error>> {
        loop {
            let mut worked = false;
            for (shard, reactor) in self.reactors.iter_mut().enumerate() {
                while self.world.borrow().has_event(shard) || reactor.timeout() == Some(Duration::ZERO) {
                    reactor.turn()?;
                    worked = true;
                }
            }
            if !worked {
                return Ok(());
            }
        }
    }
}

/// The resident set of this process.
fn resident_bytes() -> Result<usize, Box<dyn Error>> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).ok_or("statm has no second field")?.parse()?;
    Ok(pages * 4096)
}
