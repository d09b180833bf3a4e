//! All members and their sockets in one poll, and the one connection that posts.
//! It knows no protocol beyond the order of things: open, join, be told.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::member::{Member, Tally, UPGRADE_KEY};
use crate::poster::Poster;

/// Connections that are being opened at once; the server's backlog holds more.
const OPENING_MAX: usize = 1024;
/// Joins that are unanswered at once.
const JOINING_MAX: usize = 2000;
const EVENTS_MAX: usize = 4096;
const READ_BYTES: usize = 64 * 1024;
const POSTER: Token = Token(usize::MAX);
const TOKEN_TTL_S: u64 = 24 * 3600;

/// Whom to connect to, and as whom.
pub struct Target {
    /// The port of the server, which listens on every address.
    pub port: u16,
    /// Addresses 127.0.0.1 and up over which the connections are spread: each has 64,000 ports at most.
    pub destinations: u8,
    /// What tokens are signed with.
    pub secret: &'static str,
    /// What posts are authorized by.
    pub api_key: &'static str,
}

/// The members.
pub struct Crowd {
    target: Target,
    key: EncodingKey,
    issued_s: u64,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    size: usize,
    room_size: usize,
    asked: usize,
    tally: Tally,
    poster: Option<Poster>,
    buffer: Vec<u8>,
    replies: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// TCP was still under way when the upgrade was to be sent.
    unsent: bool,
    member: Member,
}

impl Crowd {
    /// Nobody yet; `size` connections to come, in rooms of `room_size`.
    pub fn new(target: Target, size: usize, room_size: usize) -> io::Result<Self> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            key: EncodingKey::from_secret(target.secret.as_bytes()),
            issued_s: since_epoch.as_secs(),
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_MAX),
            connections: Vec::with_capacity(size),
            size,
            room_size,
            asked: 0,
            tally: Tally::default(),
            poster: None,
            buffer: vec![0; READ_BYTES],
            replies: Vec::new(),
        })
    }

    /// What all have seen.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Posts answered, and that to each as many connections as a room has members.
    pub fn posted(&self) -> usize {
        self.poster.as_ref().map_or(0, Poster::answered)
    }

    /// Opens connections as far as the window allows.
    ///
    /// # Errors
    /// A connection cannot be opened.
    pub fn open_some(&mut self) -> Result<(), String> {
        while self.connections.len() < self.size && self.connections.len() - self.tally.greeted < OPENING_MAX {
            let index = self.connections.len();
            self.open(index).map_err(|error| format!("connection {index} cannot be opened: {error}"))?;
        }
        Ok(())
    }

    /// Asks for joins, room by room, as far as the window allows.
    ///
    /// # Errors
    /// A connection does not take the request.
    pub fn join_some(&mut self) -> Result<(), String> {
        while self.asked < self.size && self.asked - self.tally.joined < JOINING_MAX {
            let Connection { stream, member, .. } = &mut self.connections[self.asked];
            write_whole(stream, &member.ask()).map_err(|error| format!("member {} cannot ask: {error}", self.asked))?;
            self.asked += 1;
        }
        Ok(())
    }

    /// Begins to post one message to each room.
    ///
    /// # Errors
    /// The connection for it cannot be opened.
    pub fn post_all(&mut self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address(0))?;
        self.poll.registry().register(&mut stream, POSTER, Interest::READABLE | Interest::WRITABLE)?;
        let rooms = self.size / self.room_size;
        self.poster = Some(Poster::new(stream, self.target.api_key, rooms, self.room_size));
        Ok(())
    }

    /// Waits for events for so long at most, and takes them. Whether there were any.
    ///
    /// # Errors
    /// A connection ended, or got what it must not get.
    pub fn step(&mut self, wait: Duration) -> Result<bool, String> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            polled => polled.map_err(|error| error.to_string())?,
        }
        let tokens: Vec<(Token, bool)> = self.events.iter().map(|e| (e.token(), e.is_read_closed())).collect();
        for &(token, is_ending) in &tokens {
            match &mut self.poster {
                Some(poster) if token == POSTER => poster.turn(&mut self.buffer)?,
                _ => self.turn(token.0, is_ending).map_err(|error| format!("member {}: {error}", token.0))?,
            }
        }
        Ok(!tokens.is_empty())
    }

    fn address(&self, index: usize) -> SocketAddr {
        let last = (index % usize::from(self.target.destinations)) as u8 + 1;
        SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), self.target.port))
    }

    fn open(&mut self, index: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address(index))?;
        // On the loopback TCP is established by now, as a rule, and nothing has to be waited for.
        let unsent = match write_whole(&mut stream, &self.upgrade_request(index)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            written => written.map(|()| false)?,
        };
        let interest = if unsent { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        self.connections.push(Connection { stream, unsent, member: Member::new((index / self.room_size) as u32) });
        Ok(())
    }

    fn upgrade_request(&self, index: usize) -> Vec<u8> {
        let claims = serde_json::json!({
            "userId": format!("user-{index}"),
            "iat": self.issued_s,
            "exp": self.issued_s + TOKEN_TTL_S,
        });
        // An HMAC over any claims and any key succeeds; an empty token would be refused by the server, which is an error.
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.key).unwrap_or_default();
        format!(
            "GET /ws?token={token} HTTP/1.1\r\nHost: million\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {UPGRADE_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        .into_bytes()
    }

    fn turn(&mut self, index: usize, is_ending: bool) -> Result<(), String> {
        if self.connections[index].unsent {
            let request = self.upgrade_request(index);
            match write_whole(&mut self.connections[index].stream, &request) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                written => written.map_err(|error| error.to_string())?,
            }
            self.connections[index].unsent = false;
        }
        let Connection { stream, member, .. } = &mut self.connections[index];
        loop {
            let held = member.restore(&mut self.buffer);
            let (size, read) = (self.buffer.len(), stream.read(&mut self.buffer[held..]));
            let read = match read {
                Ok(0) => return Err("the server ended the connection".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error.to_string()),
            };
            member.take(&self.buffer[..held + read], &mut self.tally, &mut self.replies)?;
            if !self.replies.is_empty() {
                write_whole(stream, &self.replies).map_err(|error| error.to_string())?;
                self.replies.clear();
            }
            // After a short read an event tells of more, unless the end came with it.
            if read == 0 || held + read < size && !is_ending {
                return Ok(());
            }
        }
    }
}

/// Writes all of a few hundred bytes. They fit into the kernel's buffer of a connection on which nothing else waits.
fn write_whole(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let written = stream.write(bytes)?;
    if written < bytes.len() { Err(ErrorKind::WriteZero.into()) } else { Ok(()) }
}
