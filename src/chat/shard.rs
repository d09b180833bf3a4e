//! One shard: the connections, rooms and users that one event-loop thread owns.
//!
//! The grammar is that of a state machine without I/O: `handle_*` takes in what happened (bytes, the end of a stream, a
//! batch from another shard, the time), `poll_*` gives out what is to be done (bytes to send, sockets to shut or close,
//! batches to post). [`Shard`] itself is only the owner; what it does stands in the modules of this folder by topic.
//!
//! Invariants: all of a connection's state is here or nowhere; a room's events are made by its home alone; slots are
//! freed only by [`Shard::free`], which is called between turns.

use core::net::IpAddr;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use slab::Slab;

use super::Now;
use super::address_homes::AddressHomes;
use super::addresses::Addresses;
use super::closing::CloseReason;
use super::connection::{Connections, Flag, Phase};
use super::denial::Denials;
use super::desk::Desk;
use super::drain::Stage;
use super::entry::GrantTable;
use super::envelope::{Batch, Envelope, Origin};
use super::errands::Errands;
use super::homes::RoomHomes;
use super::ids::{ConnId, HashKey, SLOTS_MAX, ShardId};
use super::job::{Done, Job};
use super::mail::{Mail, NoCredit};
use super::membership::PendingJoin;
use super::outbox::OutboxPool;
use super::queues::{SendBudget, SendQueues};
use super::rates::Rates;
use super::rest::FeedWaits;
use super::revocations::Revocations;
use super::slack::Churn;
use super::store::{Asker, Lookup, StoreFacts};
use super::tables::{LocalRooms, Users};
use super::tokens::TokenCache;
use super::user_homes::UserHomes;
use super::wheel::Wheel;
use crate::auth::Credentials;
use crate::config::{Config, Service};
use crate::wire::deflate::{Deflater, Inflater};

/// At most this much is handed to the socket in one write.
pub const WRITE_BYTES_MAX: usize = 256 * 1024;

/// Counters that all shards share; nothing is written to them per message.
#[derive(Default, Debug)]
pub struct Gauges {
    websockets: AtomicUsize,
    store_failing: AtomicBool,
}

impl Gauges {
    /// Counts a WebSocket in, unless there are `max` already.
    pub fn enter(&self, max: usize) -> bool {
        let enter = |count| (count < max).then_some(count + 1);
        self.websockets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }

    /// Counts a WebSocket out.
    pub fn leave(&self) {
        self.websockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes whether the store fails.
    pub fn note_store(&self, failing: bool) {
        self.store_failing.store(failing, Ordering::Relaxed);
    }

    /// Whether the store fails.
    pub fn is_store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed)
    }

    /// WebSockets that are open, or opening, in the whole server.
    pub fn websockets(&self) -> usize {
        self.websockets.load(Ordering::Relaxed)
    }
}

/// What a shard needs to know of the server.
pub struct ShardSetup {
    /// The configuration.
    pub config: Arc<Config>,
    /// Which shard.
    pub id: ShardId,
    /// Of how many.
    pub shards: usize,
    /// The key of all maps and homes, the same for all shards.
    pub key: HashKey,
    /// For ids and epochs, another for each shard.
    pub seed: [u8; 32],
    /// Counters shared by all shards.
    pub gauges: Arc<Gauges>,
    /// The store, if there is one.
    pub store: Option<StoreFacts>,
}

/// The state of one event-loop thread.
pub struct Shard {
    pub(super) config: Arc<Config>,
    pub(super) id: ShardId,
    pub(super) shards: usize,
    pub(super) key: HashKey,
    pub(super) rng: ChaCha12Rng,
    pub(super) now: Now,
    pub(super) gauges: Arc<Gauges>,
    pub(super) connections: Connections,
    pub(super) addresses: Addresses,
    pub(super) pool: OutboxPool,
    /// The frame of a ping.
    pub(super) ping: Arc<[u8]>,
    /// Of this turn.
    pub(super) pings: usize,
    pub(super) wheel: Wheel,
    pub(super) fired: VecDeque<u32>,
    /// Until then (tick clock) nobody is judged silent, since we were late ourselves.
    pub(super) lenient_until_ms: u64,
    pub(super) users: Users,
    pub(super) grants: GrantTable,
    pub(super) local_rooms: LocalRooms,
    pub(super) joins: Slab<PendingJoin>,
    pub(super) mail: Mail,
    pub(super) rooms: RoomHomes,
    pub(super) desk: Desk,
    pub(super) feed: FeedWaits,
    pub(super) user_homes: UserHomes,
    pub(super) address_homes: AddressHomes,
    pub(super) revocations: Revocations,
    pub(super) credentials: Arc<Credentials>,
    /// How often they were replaced.
    pub(super) keys_generation: u32,
    pub(super) verified: TokenCache,
    pub(super) errands: Errands,
    pub(super) stage: Stage,
    /// One of each for all connections: no message is compressed with what stands in another.
    pub(super) deflater: Deflater,
    pub(super) inflater: Inflater,
    pub(super) input_bytes: usize,
    pub(super) dead: Vec<u32>,
    pub(super) shut: Vec<u32>,
    pub(super) queues: SendQueues,
    pub(super) resumed: VecDeque<u32>,
    pub(super) churn: Churn,
    pub(super) denials: Denials,
    pub(super) rates: Rates,
}

impl Shard {
    /// An empty shard.
    pub fn new(setup: ShardSetup, now: Now) -> Self {
        let ShardSetup { config, id, shards, key, seed, gauges, store } = setup;
        let limits = &config.limits;
        Self {
            id,
            shards,
            key,
            rng: ChaCha12Rng::from_seed(seed),
            now,
            gauges,
            connections: Connections::new(id),
            addresses: Addresses::default(),
            pool: OutboxPool::default(),
            ping: Arc::new([0x89, 0]),
            pings: 0,
            wheel: Wheel::default(),
            fired: VecDeque::new(),
            lenient_until_ms: 0,
            users: Users::default(),
            grants: GrantTable::default(),
            local_rooms: LocalRooms::default(),
            joins: Slab::new(),
            mail: Mail::new(id, shards, limits.shard_credits_max, limits.burst_window_bytes),
            rooms: RoomHomes::new(key, limits.access_entries_max.div_ceil(shards)),
            desk: Desk::new(store, limits, shards),
            feed: FeedWaits::default(),
            user_homes: UserHomes::default(),
            address_homes: AddressHomes::new(key, limits.addresses_max),
            revocations: Revocations::new(limits.revocations_max),
            credentials: Arc::new(config.credentials.clone()),
            keys_generation: 0,
            verified: TokenCache::new(limits.token_cache_max / shards),
            errands: Errands::new(limits, shards),
            stage: Stage::Running,
            deflater: Deflater::new(limits.deflate_threshold_bytes),
            inflater: Inflater::default(),
            input_bytes: 0,
            dead: Vec::new(),
            shut: Vec::new(),
            queues: SendQueues::default(),
            resumed: VecDeque::new(),
            churn: Churn::default(),
            denials: Denials::new(limits.denial_lines_per_second),
            rates: Rates::new(limits.rate_users_max),
            config,
        }
    }

    /// Refuses tokens that were revoked before the process began, by user and time.
    pub fn load_revocations<'a>(&mut self, kept: impl IntoIterator<Item = (&'a str, u64)>) {
        kept.into_iter().for_each(|(user, before_ms)| self.revocations.insert(user, before_ms));
    }

    /// Begins a turn at the time `now`.
    pub fn begin_turn(&mut self, now: Now) {
        if let Some(due_ms) = self.wheel.next_ms() {
            let late_ms = now.tick_ms.saturating_sub(due_ms);
            if late_ms > 1000 {
                tracing::warn!(late_ms, shard = self.id.0, "the event loop was held up");
                let grace_ms = late_ms.min(self.config.limits.heartbeat_ms);
                self.lenient_until_ms = now.tick_ms + grace_ms.max(1000);
            }
        }
        self.now = now;
        self.pings = 0;
    }

    /// How many connections were pinged in this turn.
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// Whether another connection can be accepted.
    pub fn can_accept(&self) -> bool {
        self.connections.len() < SLOTS_MAX
    }

    /// A connection was accepted from a peer at that address; its socket is to be registered under the handle.
    pub fn handle_accept(&mut self, address: IpAddr) -> ConnId {
        self.churn.note();
        let conn = self.connections.insert(self.tick());
        self.addresses.set(conn.slot(), address);
        self.wheel.set(conn.slot(), self.now.tick_ms + self.config.limits.handshake_ms);
        conn
    }

    /// Whether a token of the poll names a connection that is still there.
    pub fn is_current(&self, conn: ConnId) -> bool {
        self.connections.is_current(conn)
    }

    /// Takes a batch of another shard.
    pub fn handle_batch(&mut self, batch: Batch) {
        if self.mail.handle_returned(batch.from, batch.credits, batch.window_bytes) {
            self.rooms.unblock();
        }
        for envelope in batch.envelopes {
            self.handle_envelope(batch.from, envelope);
        }
    }

    /// Takes what the shard posted to itself, at most `budget` envelopes.
    pub fn handle_local(&mut self, budget: usize) {
        for _ in 0..budget {
            let Some(envelope) = self.mail.next_local() else { return };
            self.handle_envelope(self.id, envelope);
        }
    }

    fn handle_envelope(&mut self, from: ShardId, envelope: Envelope) {
        let window_bytes = envelope.window_bytes();
        match envelope {
            Envelope::Request(request) => self.handle_request(from, request),
            Envelope::Reply(reply) => self.handle_reply(reply),
            Envelope::Unsubscribe { room, user, conn, deflates } => {
                self.handle_unsubscribe(from, &room, &user, conn, deflates);
            }
            Envelope::Burst { room, segments, ends, .. } => self.deliver(&room, &segments, ends),
            Envelope::Remove { room, user, number } => self.handle_remove(from, room, &user, number),
            Envelope::Removed { room, number } => self.handle_removed(from, &room, number),
            Envelope::UserGone { user, conn, debts } => {
                if let Some(debts) = debts {
                    self.add_debts(&user, &debts);
                }
                self.user_homes.leave(&user, conn);
            }
            Envelope::AddressGone { address } => self.handle_address_gone(address),
            Envelope::Taken { user, told } => self.settle_debts(from, user, &told),
            Envelope::Owed { user, known } => self.learn_debts(&user, &known),
            Envelope::Replace { conn } => {
                if self.connections.is_current(conn) {
                    self.close(conn.slot(), &CloseReason::Replaced);
                }
            }
            Envelope::ToUser { user, frame } => self.deliver_to_user(&user, &frame),
        }
        if window_bytes > 0 && self.mail.take_over(from, window_bytes) {
            self.rooms.unblock();
        }
    }

    /// The next connection with something to send, within the turn's budget.
    pub fn poll_transmit(&mut self, budget: &mut SendBudget) -> Option<u32> {
        self.queues.next(&mut self.connections, budget)
    }

    /// What the connection is to send next, if it is one piece or small enough to be copied to `cork`; otherwise it is to be
    /// gathered.
    pub fn gather_whole<'a>(&'a self, slot: u32, cork: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        self.pool.gather_whole(&self.connections[slot].outbox, cork, WRITE_BYTES_MAX)
    }

    /// Fills `slices` with what the connection is to send next.
    pub fn gather<'a>(&'a self, slot: u32, slices: &mut [IoSlice<'a>]) -> usize {
        self.pool.gather(&self.connections[slot].outbox, slices, WRITE_BYTES_MAX)
    }

    /// `bytes` were taken over for the socket; with `blocked` it refuses more until it is writable again.
    pub fn handle_sent(&mut self, slot: u32, bytes: usize, blocked: bool) {
        let conn = &mut self.connections[slot];
        self.pool.advance(&mut conn.outbox, bytes);
        if blocked {
            // Also if nothing is left to hand over: what was taken may not have been sent.
            conn.mark(Flag::Blocked);
        } else if conn.outbox.is_empty() {
            self.handle_drained(slot);
        } else {
            self.queues.again(conn, slot);
        }
        self.resume_if_drained(slot);
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        if conn.has(Flag::Blocked) {
            conn.unmark(Flag::Blocked);
            if conn.outbox.is_empty() {
                self.handle_drained(slot);
                self.resume_if_drained(slot);
            } else {
                self.mark_express(slot);
            }
        }
    }

    /// The next connection that may be read again after a pause.
    pub fn poll_resumed(&mut self) -> Option<u32> {
        let slot = self.resumed.pop_front()?;
        self.take_up_tail(slot);
        Some(slot)
    }

    /// The next connection whose sending side is to be shut.
    pub fn poll_shut(&mut self) -> Option<u32> {
        self.shut.pop()
    }

    /// The next connection whose socket is to be closed; then call [`Shard::free`].
    pub fn poll_dead(&mut self) -> Option<u32> {
        self.dead.pop()
    }

    /// Whether the connection's socket has refused bytes and has not been writable since.
    pub fn is_blocked(&self, slot: u32) -> bool {
        self.connections[slot].has(Flag::Blocked)
    }

    /// Frees the slot of a dead connection, between turns.
    pub fn free(&mut self, slot: u32) {
        debug_assert_eq!(self.connections[slot].phase, Phase::Dead);
        self.connections.remove(slot);
        self.addresses.clear(slot);
        self.churn.note();
    }

    /// What there is for another shard; what it cannot take goes to [`Shard::restore_batch`].
    pub fn poll_batch(&mut self, target: ShardId) -> Option<Batch> {
        self.mail.poll_batch(target)
    }

    /// Takes back a batch that a full mailbox refused.
    pub fn restore_batch(&mut self, target: ShardId, batch: Batch) {
        self.mail.restore(target, batch);
    }

    /// The store, if there is one.
    pub(super) fn store(&self) -> Option<&StoreFacts> {
        self.desk.facts()
    }

    /// Asks the store for a connection; the answer comes as [`Answer::Found`](super::envelope::Answer::Found).
    pub(super) fn lookup(&mut self, origin: Origin, lookup: Lookup) -> Result<(), NoCredit> {
        self.desk.read(Asker::Connection(origin), lookup).map_err(|_| NoCredit)
    }

    /// The key of the digests that tell retries: the store's, which outlives the process, or the process's.
    pub(super) fn digest_key(&self) -> (u64, u64) {
        self.store().map_or_else(|| self.key.halves(), |facts| facts.digest_key)
    }

    /// What there is for the threads that may block; what they do not take goes to [`Shard::handle_lost_job`].
    pub fn poll_job(&mut self) -> Option<Job> {
        self.desk.poll_job().map(Job::Store).or_else(|| self.errands.poll_job())
    }

    /// Takes the answer to a job.
    pub fn handle_done(&mut self, done: Done) {
        match done {
            Done::Store(done) => self.handle_stored(done),
            Done::Verified(verified) => self.handle_verified(*verified),
            Done::KeySought(conn) => self.handle_key_sought(conn),
            Done::Permitted(question, permit) => self.handle_permitted(&question, permit),
        }
    }

    /// Nobody has taken the job, and nobody else will answer it.
    pub fn handle_lost_job(&mut self, job: Job) {
        match job {
            Job::Store(job) => self.handle_unstored(job),
            Job::Verify(verify) => self.handle_unchecked(&verify),
            Job::SeekKey(conn) => self.handle_key_sought(conn),
            Job::Permit(question) => self.handle_permitted(&question, None),
        }
    }

    /// Whether a batch is held back because a mailbox was full.
    pub fn is_holding(&self) -> bool {
        self.mail.is_holding()
    }

    /// Whether there is something to do without waiting.
    pub fn has_work(&self) -> bool {
        self.mail.has_local()
            || self.rooms.has_dirty()
            || !self.queues.is_empty()
            || !self.resumed.is_empty()
            || !self.fired.is_empty()
            || !self.dead.is_empty()
    }

    /// When a timer fires next, on the tick clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let due_ms = [
            self.wheel.next_ms(),
            self.rooms.next_deadline_ms(),
            self.churn.due_ms(self.connections.len()),
            self.denials.due_ms(),
            self.rates.due_ms(),
            self.address_homes.due_ms(),
        ];
        due_ms.into_iter().flatten().min()
    }

    /// Whether the connection may be read now; if not, [`Shard::poll_resumed`] names it once it may.
    pub fn wants_input(&mut self, slot: u32) -> bool {
        let conn = &self.connections[slot];
        let wants = match conn.phase {
            _ if conn.has(Flag::Checking) => false,
            Phase::Free | Phase::Dead | Phase::Admitting => false,
            Phase::Http => !self.is_http_paused(slot),
            // A WebSocket is read even while it is behind: both ends waiting for the other to read would be for ever.
            Phase::Open if self.config.service == Service::Echo => !self.is_echo_behind(slot),
            Phase::Auth | Phase::Open | Phase::Closing | Phase::Lingering => true,
        };
        if !wants {
            self.connections[slot].mark(Flag::Paused);
        }
        wants
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The present tick of 250 ms.
    pub(super) fn tick(&self) -> u32 {
        (self.now.tick_ms / super::wheel::TICK_MS) as u32
    }

    /// Queues a connection with something direct to send.
    pub(super) fn mark_express(&mut self, slot: u32) {
        self.queues.express(&mut self.connections[slot], slot);
    }

    /// Lets a connection be read again, if it was paused.
    pub(super) fn resume(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        if conn.has(Flag::Paused) {
            conn.unmark(Flag::Paused);
            self.resumed.push_back(slot);
        }
    }

    fn resume_if_drained(&mut self, slot: u32) {
        let conn = &self.connections[slot];
        if conn.has(Flag::Paused) && !conn.has_unsent() {
            self.resume(slot);
        }
    }

    /// 128 random bits.
    pub(super) fn random(&mut self) -> u128 {
        u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64())
    }
}
