//! The world of the shards: clocks, sockets, listeners and mailboxes, edge-triggered to the letter.
//!
//! A readable edge comes when the first byte reaches an empty buffer, one edge with the end of the stream, a writable edge
//! only after a refusal; then silence. What has two edges at once gives one event. Between shards everything goes through
//! one queue per receiver, in order, and lands in its mailbox at some moment, possibly while that is being emptied.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sizland_chat::chat::Now;
use sizland_chat::chat::drain::Stage;
use sizland_chat::chat::envelope::Batch;
use sizland_chat::chat::ids::{ConnId, ShardId};
use sizland_chat::chat::job::{Done, Job, Verify};
use sizland_chat::planted::{self, Bug};
use sizland_chat::reactor::io::{Event, Io, Post, Received, Written};
use sizland_chat::reactor::tls::Certificates;

use super::plan::Faults;
use super::random::Random;
use super::store::{Store, Told};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;
const READ_CLOSED: u8 = 4;

/// One TCP connection between a client and a shard.
#[derive(Default)]
pub struct Link {
    /// On its way to the server.
    pub to_server: VecDeque<u8>,
    /// The client has ended its side.
    pub client_fin: bool,
    /// The client has reset it.
    pub reset: bool,
    /// On its way to the client.
    pub to_client: VecDeque<u8>,
    /// The server has ended its side; what is in `to_client` still arrives.
    pub server_fin: bool,
    /// The server has closed the socket.
    pub closed: bool,
    owner: Option<(usize, ConnId)>,
    edges: u8,
    refused: bool,
}

/// A post on its way, and the state of the store that it shows, 0 for none.
pub type Parcel = (Post, u64);

/// What one shard sees.
#[derive(Default)]
pub struct Port {
    /// Posted and not arrived.
    pub flight: VecDeque<Parcel>,
    /// Arrived and not received.
    pub mailbox: VecDeque<Parcel>,
    /// The wake flag: a wake is on its way.
    wake_pending: bool,
    /// The wake itself.
    woken: bool,
    pub backlog: VecDeque<usize>,
    acceptable: bool,
    pub listening: bool,
    sockets: Vec<Option<usize>>,
    old: Vec<ConnId>,
    pub reports: Vec<Stage>,
    /// Things that happened because of this shard: a shard that turns without end must do something.
    pub progress: u64,
}

/// Everything that is not a shard or a client.
pub struct World {
    pub now_ms: u64,
    pub wall_ms: u64,
    pub links: Vec<Link>,
    pub ports: Vec<Port>,
    pub faults: Faults,
    pub random: Random,
    pub store: Option<Store>,
    /// Tokens that wait for a thread that verifies them.
    checks: Vec<(usize, Box<Verify>)>,
    pub send_buffer_bytes: usize,
    pub mailbox_batches: usize,
    /// The listener that the kernel picks now.
    pub preferred: Option<usize>,
}

impl World {
    pub fn new(shards: usize, faults: Faults, random: Random) -> Self {
        let port = |_| Port { listening: true, ..Port::default() };
        let ports = (0..shards).map(port).collect();
        Self {
            now_ms: 0,
            wall_ms: 1_800_000_000_000,
            links: Vec::new(),
            ports,
            faults,
            random,
            store: None,
            checks: Vec::new(),
            send_buffer_bytes: 1000,
            mailbox_batches: 8,
            preferred: None,
        }
    }

    /// A client connects; the kernel picks a listener.
    pub fn connect(&mut self) -> Option<usize> {
        let shard = self.preferred.unwrap_or_else(|| self.random.below(self.ports.len()));
        if !self.ports[shard].listening {
            return None;
        }
        let link = self.links.len();
        self.links.push(Link::default());
        let port = &mut self.ports[shard];
        port.acceptable |= port.backlog.is_empty();
        port.backlog.push_back(link);
        Some(link)
    }

    pub fn client_write(&mut self, link: usize, bytes: &[u8], fin: bool) {
        let link = &mut self.links[link];
        if !bytes.is_empty() && link.to_server.is_empty() {
            link.edges |= READABLE;
        }
        link.to_server.extend(bytes);
        if fin && !link.client_fin {
            link.client_fin = true;
            link.edges |= READABLE | READ_CLOSED;
        }
    }

    pub fn client_read(&mut self, link: usize, max: usize) -> Vec<u8> {
        let buffer = self.send_buffer_bytes;
        let link = &mut self.links[link];
        let count = max.min(link.to_client.len());
        let bytes = link.to_client.drain(..count).collect();
        if link.refused && link.to_client.len() <= buffer / 2 {
            link.refused = false;
            link.edges |= WRITABLE;
        }
        bytes
    }

    pub fn client_reset(&mut self, link: usize) {
        let link = &mut self.links[link];
        link.reset = true;
        link.to_client.clear();
        link.to_server.clear();
        link.edges |= READABLE | WRITABLE | READ_CLOSED;
    }

    /// Lets up to `max` posts arrive at a shard.
    pub fn land(&mut self, shard: usize, max: usize) {
        let port = &mut self.ports[shard];
        for _ in 0..max {
            let Some(post) = port.flight.pop_front() else { return };
            port.mailbox.push_back(post);
            if !port.wake_pending {
                port.wake_pending = true;
                port.woken = true;
            }
        }
    }

    /// Lets the threads that may block do some of what waits; whether there was anything.
    pub fn work(&mut self) -> bool {
        self.check_token() | self.work_store()
    }

    /// Verifies one of the tokens that wait, whichever comes to hand.
    fn check_token(&mut self) -> bool {
        if self.checks.is_empty() {
            return false;
        }
        let at = self.random.below(self.checks.len());
        let (shard, verify) = self.checks.swap_remove(at);
        self.ports[shard].flight.push_back((Post::Done(Done::Verified(verify.run().into())), 0));
        if !self.random.one_in(self.faults.store_slow) {
            self.land(shard, usize::MAX);
        }
        true
    }

    fn work_store(&mut self) -> bool {
        let Some(store) = self.store.as_mut().filter(|store| store.has_work()) else { return false };
        for Told { shard, done, state } in store.work(&mut self.random, &self.faults) {
            self.ports[shard].flight.push_back((Post::Done(Done::Store(done)), state));
            if !self.random.one_in(self.faults.store_slow) {
                self.land(shard, usize::MAX);
            }
        }
        true
    }

    /// The process ends at once: of its sockets only what was written to them is left.
    pub fn restart(&mut self) {
        for link in &mut self.links {
            if link.closed {
                continue;
            }
            (link.owner, link.edges, link.refused) = (None, 0, false);
            (link.closed, link.server_fin, link.client_fin) = (true, true, true);
            link.to_server.clear();
            if self.random.one_in(2) {
                link.to_client.clear();
                link.reset = true;
            }
        }
        for port in &mut self.ports {
            *port = Port { listening: true, ..Port::default() };
        }
        self.checks.clear();
        if let Some(store) = &mut self.store {
            store.crash(&mut self.random);
        }
    }

    /// Whether the poll of a shard would return at once.
    pub fn has_event(&self, shard: usize) -> bool {
        let port = &self.ports[shard];
        let edges = |link: usize| self.links[link].edges != 0;
        port.woken || port.acceptable || port.sockets.iter().flatten().any(|&link| edges(link))
    }

    /// Whether a post lies in the mailbox and no wake is on its way.
    pub fn is_unheard(&self, shard: usize) -> bool {
        !self.ports[shard].mailbox.is_empty() && !self.ports[shard].woken
    }

    fn socket(&self, shard: usize, slot: u32) -> io::Result<usize> {
        let found = self.ports[shard].sockets.get(slot as usize).copied().flatten();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }

    fn poll(&mut self, shard: usize, events: &mut Vec<Event>) {
        if self.ports[shard].woken {
            self.ports[shard].woken = false;
            if !planted::is(Bug::WakeFlagLate) {
                self.ports[shard].wake_pending = false;
            }
            events.push(Event::Woken);
        }
        if std::mem::take(&mut self.ports[shard].acceptable) {
            events.push(Event::Acceptable);
        }
        let links: Vec<usize> = self.ports[shard].sockets.iter().flatten().copied().collect();
        for link in links {
            let Some((_, conn)) = self.links[link].owner else { continue };
            let spurious =
                if self.random.one_in(self.faults.spurious_event) { self.random.next() as u8 & 3 } else { 0 };
            let late = self.random.one_in(self.faults.late_event);
            let edges = if late { 0 } else { std::mem::take(&mut self.links[link].edges) };
            push_event(events, conn, edges | spurious);
        }
        if self.random.one_in(self.faults.stale_event) && !self.ports[shard].old.is_empty() {
            let at = self.random.below(self.ports[shard].old.len());
            let bits = self.random.next() as u8 & 7;
            push_event(events, self.ports[shard].old[at], bits);
        }
    }

    fn read(&mut self, shard: usize, slot: u32, buffer: &mut [u8]) -> io::Result<usize> {
        let link = self.socket(shard, slot)?;
        if self.random.one_in(self.faults.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let link = &mut self.links[link];
        if link.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if link.to_server.is_empty() {
            return if link.client_fin { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let count = buffer.len().min(link.to_server.len());
        link.to_server.drain(..count).zip(buffer).for_each(|(byte, place)| *place = byte);
        self.ports[shard].progress += 1;
        Ok(count)
    }

    fn write(&mut self, shard: usize, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let link = self.socket(shard, slot)?;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(total > 0, "nothing is written only when there is something");
        if self.random.one_in(self.faults.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let room = self.send_buffer_bytes.saturating_sub(self.links[link].to_client.len());
        let mut count = total.min(room);
        let artificial = self.random.one_in(self.faults.short_write);
        if artificial {
            count = self.random.below(count + 1);
        }
        let link = &mut self.links[link];
        if link.reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        assert!(!link.server_fin, "nothing is written behind the end");
        link.to_client.extend(slices.iter().flat_map(|slice| slice.iter()).take(count));
        if count < total {
            link.refused = true;
            if artificial && link.to_client.len() <= self.send_buffer_bytes / 2 {
                link.refused = false;
                link.edges |= WRITABLE;
            }
        }
        self.ports[shard].progress += u64::from(count > 0);
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn close(&mut self, shard: usize, slot: u32) {
        // A socket that could not be registered is closed all the same.
        let Ok(link) = self.socket(shard, slot) else { return };
        self.ports[shard].sockets[slot as usize] = None;
        let link = &mut self.links[link];
        if let Some((_, conn)) = link.owner.take() {
            self.ports[shard].old.push(conn);
        }
        (link.closed, link.server_fin) = (true, true);
        self.ports[shard].progress += 1;
    }
}

fn push_event(events: &mut Vec<Event>, conn: ConnId, edges: u8) {
    if edges != 0 {
        let [readable, writable, read_closed] = [READABLE, WRITABLE, READ_CLOSED].map(|bit| edges & bit != 0);
        events.push(Event::Socket { conn, readable, writable, read_closed });
    }
}

/// The world as one shard has it.
pub struct SimIo {
    pub shard: usize,
    pub world: Rc<RefCell<World>>,
}

impl Io for SimIo {
    type Socket = usize;

    fn poll(&mut self, events: &mut Vec<Event>, _: Option<Duration>) -> io::Result<()> {
        self.world.borrow_mut().poll(self.shard, events);
        Ok(())
    }

    /// Time passes between turns only, as the plan has it.
    fn rest(&mut self, _: Duration) {}

    fn now(&mut self) -> Now {
        let world = self.world.borrow();
        Now { tick_ms: world.now_ms, wall_ms: world.wall_ms }
    }

    fn accept(&mut self) -> io::Result<(usize, IpAddr)> {
        let world = &mut *self.world.borrow_mut();
        if world.ports[self.shard].backlog.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if world.random.one_in(world.faults.exhausted) {
            return Err(io::Error::from_raw_os_error(24));
        }
        if world.random.one_in(world.faults.aborted) {
            let link = world.ports[self.shard].backlog.pop_front().unwrap();
            world.client_reset(link);
            world.links[link].closed = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        world.ports[self.shard].progress += 1;
        Ok((world.ports[self.shard].backlog.pop_front().unwrap(), IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }

    fn register(&mut self, link: usize, conn: ConnId) -> io::Result<()> {
        let world = &mut *self.world.borrow_mut();
        if world.random.one_in(world.faults.register) {
            world.client_reset(link);
            world.links[link].closed = true;
            return Err(io::Error::from_raw_os_error(28));
        }
        let sockets = &mut world.ports[self.shard].sockets;
        let slot = conn.slot() as usize;
        if sockets.len() <= slot {
            sockets.resize(slot + 1, None);
        }
        assert!(sockets[slot].replace(link).is_none(), "a slot has one socket");
        let link = &mut world.links[link];
        link.owner = Some((self.shard, conn));
        let (data, end) = (!link.to_server.is_empty(), link.client_fin || link.reset);
        link.edges = WRITABLE | if data || end { READABLE } else { 0 } | if end { READ_CLOSED } else { 0 };
        Ok(())
    }

    fn close_listener(&mut self) {
        let world = &mut *self.world.borrow_mut();
        world.ports[self.shard].listening = false;
        while let Some(link) = world.ports[self.shard].backlog.pop_front() {
            world.client_reset(link);
            world.links[link].closed = true;
        }
    }

    fn is_opening(&self, _: u32) -> bool {
        false
    }

    fn peek(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize> {
        let world = &mut *self.world.borrow_mut();
        let link = world.socket(self.shard, slot)?;
        let waiting = &world.links[link].to_server;
        let count = buffer.len().min(waiting.len());
        buffer.iter_mut().zip(waiting).for_each(|(to, &byte)| *to = byte);
        if count > 0 || world.links[link].client_fin { Ok(count) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn take(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize> {
        self.world.borrow_mut().read(self.shard, slot, buffer)
    }

    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Received> {
        let read = self.world.borrow_mut().read(self.shard, slot, buffer);
        read.map(|bytes| Received::plain(bytes, buffer.len()))
    }

    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let written = self.world.borrow_mut().write(self.shard, slot, slices);
        written.map(|bytes| Written::plain(bytes, slices.iter().map(|slice| slice.len()).sum()))
    }

    fn shut(&mut self, slot: u32) {
        let world = &mut *self.world.borrow_mut();
        if let Ok(link) = world.socket(self.shard, slot) {
            world.links[link].server_fin = true;
        }
    }

    fn close(&mut self, slot: u32, _is_blocked: bool) {
        self.world.borrow_mut().close(self.shard, slot);
    }

    fn receive(&mut self) -> Option<Post> {
        let world = &mut *self.world.borrow_mut();
        if let Some((post, state)) = world.ports[self.shard].mailbox.pop_front() {
            world.ports[self.shard].progress += 1;
            world.store.iter_mut().for_each(|store| store.note_seen(state));
            return Some(post);
        }
        // The box was seen empty; now something arrives.
        if world.random.one_in(world.faults.slow_post) {
            world.land(self.shard, 1);
        }
        if planted::is(Bug::WakeFlagLate) {
            world.ports[self.shard].wake_pending = false;
        }
        None
    }

    fn post(&mut self, target: ShardId, batch: Batch) -> Result<(), Batch> {
        let world = &mut *self.world.borrow_mut();
        let (max, slow) = (world.mailbox_batches, world.random.one_in(world.faults.slow_post));
        let full = world.random.one_in(world.faults.mailbox_full);
        let port = &mut world.ports[target.index()];
        if full || port.flight.len() + port.mailbox.len() >= max {
            return Err(batch);
        }
        port.flight.push_back((Post::Batch(batch), 0));
        world.ports[self.shard].progress += 1;
        if !slow {
            world.land(target.index(), usize::MAX);
        }
        Ok(())
    }

    fn submit(&mut self, job: Job) -> Result<(), Job> {
        let world = &mut *self.world.borrow_mut();
        match (job, &mut world.store) {
            (Job::Store(job), Some(store)) => store.submit(self.shard, job),
            (Job::Verify(verify), _) => world.checks.push((self.shard, verify)),
            (job, _) => return Err(job),
        }
        world.ports[self.shard].progress += 1;
        Ok(())
    }

    fn renew(&mut self, _: Arc<Certificates>) {}

    fn trim(&mut self) {}

    fn report_stage_done(&mut self, stage: Stage) {
        self.world.borrow_mut().ports[self.shard].reports.push(stage);
    }
}
