//! One seed: random steps, then healing, settling, looking, and a drain.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sizland_chat::auth::Role;
use sizland_chat::chat::Now;
use sizland_chat::chat::ids::{HashKey, ShardId};
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::chat::store::StoreFacts;
use sizland_chat::config::{Config, Limits};
use sizland_chat::reactor::turn::Reactor;
use sizland_chat::wire::value::Id;

use super::change::{Change, text};
use super::client::{Client, Speaks};
use super::plan::{Faults, Plan};
use super::random::Random;
use super::rest::{Expect, Manner, Rest};
use super::socket::{Allowed, Memory, Offer, Socket};
use super::store::Store;
use super::world::{SimIo, World};

const SECRET: &str = "a secret of at least thirty-two bytes";
const API_KEY: &str = "an api key of the simulation";
/// A shard that turns so often without anything coming of it turns for ever.
const IDLE_TURNS_MAX: usize = 3_000;

pub struct Simulation {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) world: Rc<RefCell<World>>,
    config: Arc<Config>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) reactors: Vec<Reactor<SimIo>>,
    /// Until when (tick clock) a shard is not turned.
    stalled_until: Vec<u64>,
    slept_at: Vec<u64>,
    pub(super) clients: Vec<Client>,
    made: usize,
    pub(super) draining: bool,
    /// What clients that are gone leave to those that come.
    pub(super) memories: VecDeque<(String, Memory)>,
    pub(super) open: VecDeque<Change>,
    /// Without a store, (room, epoch, seq) -> what it is.
    pub(super) told: BTreeMap<(String, String, u64), serde_json::Value>,
    hash: u64,
    pub step: usize,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let mut world = World::new(plan.shards, plan.faults.clone(), Random::new(random.next()));
        world.send_buffer_bytes = plan.send_buffer_bytes;
        world.mailbox_batches = plan.mailbox_batches;
        if plan.has_store {
            let facts = StoreFacts {
                epoch: format!("{:016x}", random.next()).into(),
                digest_key: (random.next(), random.next()),
            };
            world.store = Some(Store::new(&plan.limits, facts, plan.faults.restart > 0));
        }
        let mut config = Config::for_tests(SECRET, API_KEY);
        (config.threads, config.rates) = (plan.shards, plan.rates);
        config.limits = plan.limits.clone();
        if plan.late_tokens {
            config.credentials.keys = config.credentials.keys.that_check_late();
        }
        let mut simulation = Self {
            random,
            world: Rc::new(RefCell::new(world)),
            config: Arc::new(config),
            gauges: Arc::default(),
            reactors: Vec::new(),
            stalled_until: vec![0; plan.shards],
            slept_at: vec![0; plan.shards],
            clients: Vec::new(),
            made: 0,
            draining: false,
            memories: VecDeque::new(),
            open: VecDeque::new(),
            told: BTreeMap::new(),
            hash: 0,
            step: 0,
            plan,
        };
        simulation.start();
        simulation
    }

    /// Begins a process: its shards know nothing.
    fn start(&mut self) {
        self.gauges = Arc::default();
        let (key, shards) = (HashKey::new(self.random.bytes()), self.plan.shards);
        let (start, store) = {
            let world = self.world.borrow();
            let facts = world.store.as_ref().map(Store::facts);
            (Now { tick_ms: world.now_ms, wall_ms: world.wall_ms }, facts)
        };
        let reactor = |number: usize, random: &mut Random| {
            let id = ShardId(number as u16);
            let (config, gauges) = (self.config.clone(), self.gauges.clone());
            let setup = ShardSetup { config, id, shards, key, seed: random.bytes(), gauges, store: store.clone() };
            let io = SimIo { shard: number, world: self.world.clone() };
            Reactor::with_budgets(Shard::new(setup, start), id, shards, io, self.plan.budgets.clone())
        };
        self.reactors = (0..shards).map(|number| reactor(number, &mut self.random)).collect();
        self.stalled_until.fill(0);
        self.slept_at.fill(start.tick_ms);
    }

    /// The process ends at once, another begins, and whoever was there comes back.
    fn restart(&mut self) {
        self.world.borrow_mut().restart();
        for client in &mut self.clients {
            client.has_stalled = true;
            client.end_by_crash(&self.world);
        }
        self.start();
        for _ in 0..self.random.below(self.plan.clients) {
            self.replace_client();
        }
    }

    /// Runs the seed; returns a fingerprint of all bytes that clients received.
    pub fn run(&mut self) -> u64 {
        for _ in 0..self.plan.steps {
            self.step += 1;
            self.random_step();
        }
        self.heal();
        self.settle(12_000);
        self.check_settled();
        self.decide_membership();
        self.settle(12_000);
        for _ in 0..3 {
            self.settle_membership();
            self.settle(12_000);
        }
        self.check_settled();
        self.audit();
        self.look();
        self.drain();
        self.world.borrow().store.iter().for_each(Store::check);
        let clients = std::mem::take(&mut self.clients);
        clients.into_iter().for_each(|client| self.note(client));
        self.hash
    }

    fn random_step(&mut self) {
        match self.random.below(50) {
            40..=45 => self.converse(),
            46..=48 if self.plan.has_store => {
                self.world.borrow_mut().work();
            }
            49 if self.plan.has_store && self.random.one_in(self.plan.faults.restart) => self.restart(),
            0..=15 => {
                let shard = self.random.below(self.plan.shards);
                if self.is_runnable(shard) || self.random.one_in(20) {
                    self.turn(shard);
                }
            }
            16..=17 => {
                let shard = self.random.below(self.plan.shards);
                let count = self.random.range(1, 3);
                self.world.borrow_mut().land(shard, count);
            }
            18 => self.pass_time(),
            19 => self.fault(),
            20..=21 => self.replace_client(),
            22 if self.plan.faults.reset > 0 => self.take_over_slot(),
            _ => self.client_step(),
        }
    }

    fn client_step(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.below(self.clients.len());
        let (split, faults) = (self.plan.faults.split, self.plan.faults.clone());
        let client = &mut self.clients[at];
        match self.random.below(10) {
            0..=3 => client.act(&mut self.random, split),
            4..=6 => {
                let max = if split { self.random.range(1, 60) } else { 1 << 20 };
                client.transfer(&self.world, max);
            }
            7..=8 if client.not_reading > 0 => client.not_reading -= 1,
            7..=8 => {
                let max = if split { self.random.range(1, 400) } else { 1 << 20 };
                client.receive(&self.world, max);
            }
            _ if self.random.one_in(faults.reset) => client.reset(&self.world),
            _ if self.random.one_in(faults.half_close) => client.fin = true,
            _ if self.random.one_in(faults.stop_reading) => {
                (client.not_reading, client.has_stalled) = (self.random.range(5, 60), true);
            }
            _ => {}
        }
        self.collect(at);
    }

    /// A client changes something, or comes back, and what it says goes some of its way.
    fn converse(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.random.below(self.clients.len());
        let client = &mut self.clients[at];
        (0..self.random.range(1, 3)).for_each(|_| client.converse(&mut self.random));
        client.transfer(&self.world, usize::MAX);
        for _ in 0..self.random.range(1, 6) {
            let shard = self.random.below(self.plan.shards);
            self.world.borrow_mut().land(shard, 1);
            self.turn(shard);
            if self.random.one_in(3) {
                self.world.borrow_mut().work();
            }
        }
        let client = &mut self.clients[at];
        if client.not_reading == 0 {
            client.receive(&self.world, 1 << 20);
        }
        self.collect(at);
    }

    /// One client asks and is gone, another asks in its place, and the answers meet.
    fn take_over_slot(&mut self) {
        let shard = self.random.below(self.plan.shards);
        self.world.borrow_mut().preferred = Some(shard);
        for is_first in [true, false] {
            let Some(at) = self.connect() else { break };
            let client = &mut self.clients[at];
            (0..4).for_each(|_| client.act(&mut self.random, false));
            client.transfer(&self.world, usize::MAX);
            // The others do not answer yet.
            (0..3).for_each(|_| self.turn(shard));
            if is_first {
                self.clients[at].reset(&self.world);
                self.turn(shard);
            }
        }
        self.world.borrow_mut().preferred = None;
    }

    /// Fills the ranks: a client that is over is forgotten, and a new one connects.
    fn replace_client(&mut self) {
        let over: Vec<usize> = (0..self.clients.len()).rev().filter(|&at| self.clients[at].ended).collect();
        for at in over {
            let client = self.clients.remove(at);
            self.note(client);
        }
        if self.clients.len() < self.plan.clients {
            self.connect();
        }
    }

    fn connect(&mut self) -> Option<usize> {
        let link = self.world.borrow_mut().connect()?;
        self.made += 1;
        let rooms: Vec<String> = (0..self.plan.rooms).map(|room| format!("room-{room}")).collect();
        let users: Vec<String> = (0..self.plan.users).map(|user| user.to_string()).collect();
        let (limits, plan) = (&self.plan.limits, &self.plan);
        let drops = plan.drops();
        let manner = Manner { big: plan.big_messages, may_drop: drops, has_store: plan.has_store };
        let mut client = if self.random.one_in(4) {
            let mut rest = Rest::new(format!("c{}", self.made), API_KEY, rooms, users, manner);
            rest.open = self.open.drain(..self.open.len().min(5)).collect();
            Client::new(link, Speaks::Rest(Box::new(rest)))
        } else {
            let heir = if self.random.one_in(4) { None } else { self.memories.pop_front() };
            let mut user = || self.random.pick(&users.iter().collect::<Vec<_>>()).clone();
            let (user, memory) = heir.unwrap_or_else(|| (user(), Memory::default()));
            // The same user, once as a number and once as text.
            let id = if self.random.one_in(2) { Id::parse_raw(&user) } else { Id::from_text(&user) };
            let wall_ms = self.world.borrow().wall_ms;
            let expires = self.random.one_in(8);
            let ttl = Duration::from_secs(if expires { 5 } else { 3_600_000 });
            let token = self.config.credentials.keys.mint(id.as_ref(), Role::User, ttl, wall_ms).unwrap();
            let defaults = Limits::default();
            let allowed = Allowed {
                slow: limits.outbox_soft_bytes < defaults.outbox_soft_bytes
                    || limits.segment_pool_bytes < defaults.segment_pool_bytes,
                flooding: plan.rates,
                replaced: limits.connections_per_user_max < defaults.connections_per_user_max,
                input_pool: drops,
                expired: expires,
                refused: limits.connections_max < defaults.connections_max
                    || limits.shard_credits_max < defaults.shard_credits_max,
                draining: false,
                loud: drops,
            };
            let mut client_out = Default::default();
            let late = self.random.one_in(6);
            let offer = Offer { late, window_bits: self.random.pick(&[0, 0, 8, 9, 10, 15]) };
            let first = self.made as u64 * 1_000;
            let mut socket = Socket::new(user, rooms, &token, &mut client_out, allowed, offer, first);
            socket.memory = memory;
            let mut client = Client::new(link, Speaks::Socket(Box::new(socket)));
            client.out = client_out;
            client
        };
        if self.random.one_in(3) {
            (0..3).for_each(|_| client.act(&mut self.random, false));
        }
        if self.random.one_in(2) {
            client.transfer(&self.world, usize::MAX);
        }
        self.clients.push(client);
        Some(self.clients.len() - 1)
    }

    fn fault(&mut self) {
        let faults = self.plan.faults.clone();
        if self.random.one_in(faults.stall) {
            let shard = self.random.below(self.plan.shards);
            self.stalled_until[shard] = self.world.borrow().now_ms + self.random.range(10, 2_000) as u64;
        }
        if self.random.one_in(faults.wall_jump) {
            let by = self.random.range(0, 7_200_000) as i64 - 3_600_000;
            let world = &mut *self.world.borrow_mut();
            world.wall_ms = world.wall_ms.saturating_add_signed(by);
        }
    }

    fn pass_time(&mut self) {
        let ms = if self.random.one_in(30) { self.random.range(100, 3_000) } else { self.random.range(0, 60) };
        self.advance(ms as u64);
    }

    fn advance(&mut self, ms: u64) {
        let world = &mut *self.world.borrow_mut();
        world.now_ms += ms;
        world.wall_ms += ms;
    }

    fn is_runnable(&self, shard: usize) -> bool {
        let world = self.world.borrow();
        if world.now_ms < self.stalled_until[shard] || self.reactors[shard].is_ended() {
            return false;
        }
        let due = self.reactors[shard].timeout().map(|timeout| self.slept_at[shard] + timeout.as_millis() as u64);
        world.has_event(shard) || due.is_some_and(|due| due <= world.now_ms)
    }

    pub(super) fn turn(&mut self, shard: usize) {
        if self.world.borrow().now_ms < self.stalled_until[shard] || self.reactors[shard].is_ended() {
            return;
        }
        self.reactors[shard].turn().unwrap();
        let reactor = &self.reactors[shard];
        reactor.shard().check_invariants();
        let world = self.world.borrow();
        self.slept_at[shard] = world.now_ms;
        let sleeps = reactor.timeout() != Some(Duration::ZERO);
        assert!(
            !sleeps || reactor.is_ended() || !world.is_unheard(shard),
            "a post lies unread behind a sleeping shard"
        );
    }

    /// Faults end, everybody reads, nobody begins anything.
    fn heal(&mut self) {
        self.plan.faults = Faults::default();
        self.world.borrow_mut().faults = Faults::default();
        self.stalled_until.fill(0);
        for client in &mut self.clients {
            client.not_reading = 0;
            if let Speaks::Rest(rest) = &mut client.speaks {
                rest.quiet = true;
            }
        }
    }

    /// Lets everything run that can, for so long on the tick clock.
    pub(super) fn settle(&mut self, ms: u64) {
        let end_ms = self.world.borrow().now_ms + ms;
        loop {
            self.run_all();
            let now_ms = self.world.borrow().now_ms;
            if now_ms >= end_ms {
                return;
            }
            let sleep =
                |shard: usize| self.reactors[shard].timeout().map(|t| self.slept_at[shard] + t.as_millis() as u64);
            let due = (0..self.plan.shards).filter(|&s| !self.reactors[s].is_ended()).filter_map(sleep).min();
            let next_ms = due.unwrap_or(end_ms).clamp(now_ms + 1, end_ms);
            self.advance(next_ms - now_ms);
        }
    }

    /// Runs at the present time until nothing moves.
    pub(super) fn run_all(&mut self) {
        let mut idle_turns = 0;
        let mut last = 0;
        loop {
            let mut moved = self.world.borrow_mut().work();
            for shard in 0..self.plan.shards {
                self.world.borrow_mut().land(shard, usize::MAX);
            }
            for at in 0..self.clients.len() {
                moved |= self.clients[at].transfer(&self.world, 1 << 20);
                moved |= self.clients[at].receive(&self.world, 1 << 20);
                self.collect(at);
            }
            for shard in 0..self.plan.shards {
                if self.is_runnable(shard) {
                    self.turn(shard);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
            let progress = self.world.borrow().ports.iter().map(|port| port.progress).sum();
            idle_turns = if progress == last { idle_turns + 1 } else { 0 };
            assert!(idle_turns < IDLE_TURNS_MAX, "a shard turns for ever and nothing comes of it");
            last = progress;
        }
    }

    fn check_settled(&mut self) {
        for (at, client) in self.clients.iter().enumerate() {
            assert_eq!(client.unanswered(), 0, "client {at} is still waiting");
            assert!(!client.fin_sent || client.ended, "client {at} has ended its side and is still there");
        }
        for reactor in &self.reactors {
            reactor.shard().check_settled();
        }
        let mut subscribed: BTreeMap<String, (u32, BTreeSet<u16>)> = BTreeMap::new();
        for (shard, reactor) in self.reactors.iter().enumerate() {
            for (room, members) in reactor.shard().subscriptions() {
                let entry = subscribed.entry(room).or_default();
                entry.0 += members;
                entry.1.insert(shard as u16);
            }
        }
        let interest = self.reactors.iter().flat_map(|reactor| reactor.shard().interest());
        let interest: BTreeMap<String, (u32, BTreeSet<u16>)> =
            interest.map(|(room, members, shards)| (room, (members, shards.into_iter().collect()))).collect();
        assert_eq!(interest, subscribed, "interest equals subscriptions");
    }

    /// Every client says for each room whether it is in, so that it is known.
    fn decide_membership(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.ended) {
            let Client { speaks: Speaks::Socket(socket), out, .. } = client else { continue };
            if !socket.is_open() {
                continue;
            }
            for room in 0..self.plan.rooms {
                let room = format!("room-{room}");
                if self.random.one_in(2) { socket.join(&room, out) } else { socket.leave(&room, out) }
            }
        }
    }

    /// Who cannot know whether it is in a room, since its join was refused, leaves it.
    fn settle_membership(&mut self) {
        for client in self.clients.iter_mut().filter(|client| !client.ended) {
            let Client { speaks: Speaks::Socket(socket), out, .. } = client else { continue };
            if socket.is_open() {
                socket.unsure().iter().for_each(|room| socket.leave(room, out));
            }
        }
    }

    /// Compares what clients believe with what the homes say.
    fn look(&mut self) {
        let Some(at) = self.connect_prober() else { return };
        let rooms: Vec<String> = (0..self.plan.rooms).map(|room| format!("room-{room}")).collect();
        for room in &rooms {
            self.prober(at, |rest, out| rest.online(room, out));
            self.settle(10);
        }
        self.prober(at, |rest, out| rest.list(out));
        self.settle(10);
        let Speaks::Rest(rest) = &self.clients[at].speaks else { unreachable!() };
        let answers = rest.answers.clone();
        assert_eq!(answers.len(), rooms.len() + 1, "each question has an answer");
        let mut joined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for client in self.clients.iter_mut().filter(|client| !client.ended) {
            let Some(socket) = client.socket().filter(|socket| socket.is_open()) else { continue };
            for (room, view) in socket.views.iter().filter(|(_, view)| view.joined) {
                joined.entry(room.clone()).or_default().insert(socket.user.clone());
                assert!(view.typing.is_empty() || socket.shed > 0, "{:?} type in {room} for ever", view.typing);
            }
        }
        for (expect, status, body) in &answers {
            assert!(matches!(status, 200), "{expect:?}: {status} {body}");
            if let Expect::Online { room } = expect {
                let online: BTreeSet<String> = body["online"].as_array().unwrap().iter().map(text).collect();
                assert_eq!(online, joined.get(room).cloned().unwrap_or_default(), "who is in {room}");
                self.check_views(room, &online);
            }
            if matches!(expect, Expect::Rooms) {
                for line in body["rooms"].as_array().unwrap() {
                    self.check_last(&text(&line["roomId"]), line["lastSeq"].as_u64().unwrap());
                }
            }
        }
    }

    fn check_views(&mut self, room: &str, online: &BTreeSet<String>) {
        for socket in self.clients.iter_mut().filter(|client| !client.ended).filter_map(Client::socket) {
            let user = socket.user.clone();
            let Some(view) = socket.views.get(room).filter(|view| view.joined && socket.is_open()) else { continue };
            assert!(
                view.truncated || view.online == *online,
                "{user} in {room} sees {:?}, not {online:?}",
                view.online
            );
        }
    }

    fn check_last(&mut self, room: &str, last: u64) {
        for socket in self.clients.iter_mut().filter(|client| !client.ended).filter_map(Client::socket) {
            let Some(view) = socket.views.get(room).filter(|view| view.joined && socket.is_open()) else { continue };
            assert_eq!(view.last, last, "{} in {room} has everything", socket.user);
        }
    }

    pub(super) fn connect_prober(&mut self) -> Option<usize> {
        let link = self.world.borrow_mut().connect()?;
        let drops = self.plan.drops();
        let manner = Manner { big: false, may_drop: drops, has_store: self.plan.has_store };
        let rest = Rest::new(format!("probe{}", self.clients.len()), API_KEY, vec![], vec![], manner);
        self.clients.push(Client::new(link, Speaks::Rest(Box::new(rest))));
        Some(self.clients.len() - 1)
    }

    pub(super) fn prober(&mut self, at: usize, ask: impl FnOnce(&mut Rest, &mut VecDeque<u8>)) {
        let Client { speaks: Speaks::Rest(rest), out, .. } = &mut self.clients[at] else { return };
        ask(rest, out);
    }

    fn note(&mut self, client: Client) {
        self.hash = self.hash.rotate_left(5) ^ client.hash;
        match client.speaks {
            Speaks::Socket(socket) if socket.connected => self.memories.push_back(socket.into_memory()),
            Speaks::Socket(_) => {}
            Speaks::Rest(rest) => self.open.extend(rest.into_open()),
        }
    }
}
