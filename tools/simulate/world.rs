//! The world of the simulated connections: no clock that moves, no fault, and clients that keep a few bytes each.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sizland_chat::chat::Now;
use sizland_chat::chat::drain::Stage;
use sizland_chat::chat::envelope::Batch;
use sizland_chat::chat::ids::{ConnId, ShardId};
use sizland_chat::chat::job::Job;
use sizland_chat::reactor::io::{Event, Io, Post, Received, Written};
use sizland_chat::reactor::tls::Certificates;

/// A client: 16 bytes.
#[derive(Clone, Copy, Default)]
struct Client {
    room: u32,
    /// Own greeting, list and so on, which come before a message may.
    state: State,
    messages: u16,
    generation: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// The slot has no client.
    #[default]
    Absent,
    /// Not joined yet.
    Joining,
    Joined,
    /// Posts by REST.
    Poster,
    /// Has ended its side.
    Leaving,
}

#[derive(Default)]
struct Port {
    /// What waiting connections will say, and the room, or none for a poster.
    backlog: VecDeque<(Vec<u8>, Option<u32>)>,
    clients: Vec<Client>,
    /// What those who have just connected will say.
    input: std::collections::HashMap<u32, Vec<u8>>,
    edges: Vec<(ConnId, bool)>,
    mailbox: VecDeque<Post>,
    woken: bool,
    acceptable: bool,
}

/// All of it.
pub struct World {
    ports: Vec<Port>,
    connected: usize,
    received: Vec<u8>,
}

impl World {
    pub fn new(shards: usize) -> Self {
        Self { ports: (0..shards).map(|_| Port::default()).collect(), connected: 0, received: Vec::new() }
    }

    /// A client connects and joins the next room.
    pub fn connect(&mut self, token: &str, rooms: usize) {
        let room = (self.connected % rooms) as u32;
        let mut input = format!(
            "GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes();
        let join = format!(r#"{{"type":"join_room","roomId":"room-{room}"}}"#);
        // A mask of zeros leaves the text as it is.
        input.extend([0x81, 0x80 | join.len() as u8, 0, 0, 0, 0]);
        input.extend(join.bytes());
        self.arrive(input, Some(room));
    }

    pub fn post(&mut self, room: usize, api_key: &str) {
        let body = r#"{"content":"hello"}"#;
        let head = format!(
            "POST /api/chat/rooms/room-{room}/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {api_key}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.arrive(head.into_bytes(), None);
    }

    /// The first of each shard's members end their side, `count` in all.
    pub fn disconnect(&mut self, count: usize) {
        let shards = self.ports.len();
        for (shard, port) in self.ports.iter_mut().enumerate() {
            let wanted = count / shards + usize::from(shard < count % shards);
            let members = port.clients.iter_mut().enumerate().filter(|(_, client)| client.state == State::Joined);
            for (slot, client) in members.take(wanted) {
                client.state = State::Leaving;
                port.edges.push((ConnId::new(ShardId(shard as u16), client.generation, slot as u32), true));
            }
        }
    }

    pub fn joined(&self) -> usize {
        self.clients().filter(|client| client.state == State::Joined).count()
    }

    pub fn forget_messages(&mut self) {
        self.ports.iter_mut().flat_map(|port| &mut port.clients).for_each(|client| client.messages = 0);
    }

    /// Every member of the first rooms has one message and nobody else has any; says how many.
    pub fn check_messages(&self, rooms: usize) -> Result<usize, Box<dyn Error>> {
        let mut count = 0;
        for client in self.clients().filter(|client| client.state == State::Joined) {
            let wanted = u16::from((client.room as usize) < rooms);
            if client.messages != wanted {
                return Err(format!("a member of room-{} has {} messages", client.room, client.messages).into());
            }
            count += usize::from(wanted);
        }
        Ok(count)
    }

    /// What the clients themselves take.
    pub fn bytes(&self) -> usize {
        let of_port = |port: &Port| {
            port.clients.capacity() * size_of::<Client>()
                + port.edges.capacity() * size_of::<(ConnId, bool)>()
                + port.backlog.capacity() * size_of::<(Vec<u8>, Option<u32>)>()
        };
        self.ports.iter().map(of_port).sum()
    }

    pub fn has_event(&self, shard: usize) -> bool {
        let port = &self.ports[shard];
        port.woken || port.acceptable || !port.edges.is_empty()
    }

    fn clients(&self) -> impl Iterator<Item = &Client> {
        self.ports.iter().flat_map(|port| &port.clients)
    }

    fn arrive(&mut self, input: Vec<u8>, room: Option<u32>) {
        // Not in step with the rooms, so that each has members on all shards.
        let shard = self.connected.wrapping_mul(0x9e37_79b9) >> 16;
        self.connected += 1;
        let shards = self.ports.len();
        let port = &mut self.ports[shard % shards];
        port.backlog.push_back((input, room));
        port.acceptable = true;
    }
}

/// The world as one shard has it.
pub struct SimIo {
    pub shard: usize,
    pub world: Rc<RefCell<World>>,
}

impl Io for SimIo {
    type Socket = (Vec<u8>, Option<u32>);

    fn poll(&mut self, events: &mut Vec<Event>, _: Option<Duration>) -> io::Result<()> {
        let port = &mut self.world.borrow_mut().ports[self.shard];
        if std::mem::take(&mut port.woken) {
            events.push(Event::Woken);
        }
        if std::mem::take(&mut port.acceptable) {
            events.push(Event::Acceptable);
        }
        for (conn, read_closed) in port.edges.drain(..) {
            events.push(Event::Socket { conn, readable: true, writable: false, read_closed });
        }
        Ok(())
    }

    fn rest(&mut self, _: Duration) {}

    fn now(&mut self) -> Now {
        Now { tick_ms: 0, wall_ms: super::WALL_MS }
    }

    fn accept(&mut self) -> io::Result<(Self::Socket, IpAddr)> {
        let waiting = self.world.borrow_mut().ports[self.shard].backlog.pop_front();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        waiting.map(|socket| (socket, address)).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn register(&mut self, (input, room): Self::Socket, conn: ConnId) -> io::Result<()> {
        let port = &mut self.world.borrow_mut().ports[self.shard];
        let slot = conn.slot() as usize;
        if port.clients.len() <= slot {
            port.clients.resize(slot + 1, Client::default());
        }
        let state = if room.is_some() { State::Joining } else { State::Poster };
        port.clients[slot] =
            Client { room: room.unwrap_or_default(), state, messages: 0, generation: conn.generation() };
        port.input.insert(conn.slot(), input);
        port.edges.push((conn, room.is_none()));
        Ok(())
    }

    fn close_listener(&mut self) {}

    fn is_opening(&self, _: u32) -> bool {
        false
    }

    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Received> {
        let port = &mut self.world.borrow_mut().ports[self.shard];
        if let Some(input) = port.input.remove(&slot) {
            buffer[..input.len()].copy_from_slice(&input);
            return Ok(Received::plain(input.len(), buffer.len()));
        }
        match port.clients[slot as usize].state {
            State::Leaving | State::Poster => Ok(Received::End),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn peek(&mut self, _: u32, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn take(&mut self, _: u32, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let World { ports, received, .. } = &mut *self.world.borrow_mut();
        received.clear();
        slices.iter().for_each(|slice| received.extend_from_slice(slice));
        let client = &mut ports[self.shard].clients[slot as usize];
        if client.state == State::Joining && contains(received, b"\"online_update\"") {
            client.state = State::Joined;
        }
        if client.state == State::Joined {
            client.messages += u16::from(contains(received, b"\"new_message\""));
        }
        Ok(Written::plain(received.len(), received.len()))
    }

    fn shut(&mut self, _: u32) {}

    fn close(&mut self, slot: u32, _is_blocked: bool) {
        let port = &mut self.world.borrow_mut().ports[self.shard];
        port.clients[slot as usize].state = State::Absent;
        port.input.remove(&slot);
    }

    fn receive(&mut self) -> Option<Post> {
        self.world.borrow_mut().ports[self.shard].mailbox.pop_front()
    }

    fn post(&mut self, target: ShardId, batch: Batch) -> Result<(), Batch> {
        let port = &mut self.world.borrow_mut().ports[target.index()];
        port.mailbox.push_back(Post::Batch(batch));
        port.woken = true;
        Ok(())
    }

    fn submit(&mut self, job: Job) -> Result<(), Job> {
        Err(job)
    }

    fn renew(&mut self, _: Arc<Certificates>) {}

    fn trim(&mut self) {}

    fn report_stage_done(&mut self, _: Stage) {}
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
