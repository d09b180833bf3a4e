//! Answers posts, in bursts behind commits, at a pace: what the load generator needs to work. Nothing of a post is looked
//! at but its length and its id.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};

const LISTENER: Token = Token(usize::MAX);
const COMMITTED: Token = Token(usize::MAX - 1);
const READ_BYTES: usize = 64 * 1024;
/// Answers that may be made up for.
const BEHIND_MAX: u64 = 256;

/// The way to the thread that answers.
pub struct Answers {
    waker: Arc<Waker>,
    first: Receiver<()>,
}

struct Answering {
    listener: TcpListener,
    registry: Registry,
    connections: Vec<Connection>,
    /// Posts not answered yet: the connection and the id.
    posts: VecDeque<(usize, Vec<u8>)>,
    per_s: f64,
    began: Option<Instant>,
    answered: u64,
    first: Sender<()>,
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    out: Vec<u8>,
}

impl Answers {
    /// Listens, and answers at most so many posts a second from the first on.
    pub fn start(port: u16, per_s: f64) -> io::Result<Self> {
        let mut poll = Poll::new()?;
        let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), COMMITTED)?);
        let registry = poll.registry().try_clone()?;
        let (sender, first) = channel();
        let (connections, posts) = (Vec::new(), VecDeque::new());
        let mut answering =
            Answering { listener, registry, connections, posts, per_s, began: None, answered: 0, first: sender };
        thread::spawn(move || {
            let mut events = Events::with_capacity(1024);
            while poll.poll(&mut events, None).is_ok() || answering.began.is_none() {
                answering.turn(&events);
            }
        });
        Ok(Self { waker, first })
    }

    /// Waits for a post.
    pub fn wait_for_first(&self) {
        let _ = self.first.recv();
    }

    /// A batch has been committed.
    pub fn committed(&self) -> io::Result<()> {
        self.waker.wake()
    }
}

impl Answering {
    fn turn(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.accept(),
                COMMITTED => self.answer(),
                Token(index) => {
                    if self.connections.get_mut(index).is_some_and(|connection| connection.read().is_ok()) {
                        self.take(index);
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = Token(self.connections.len());
            let _ = stream.set_nodelay(true);
            if self.registry.register(&mut stream, token, Interest::READABLE).is_ok() {
                self.connections.push(Connection { stream, unread: Vec::new(), out: Vec::new() });
            }
        }
    }

    /// Takes the whole posts that a connection has sent.
    fn take(&mut self, index: usize) {
        let unread = &mut self.connections[index].unread;
        let mut taken = 0;
        while let Some((id, length)) = post(&unread[taken..]) {
            self.posts.push_back((index, id));
            taken += length;
        }
        unread.drain(..taken);
        if taken > 0 && self.began.is_none() {
            self.began = Some(Instant::now());
            let _ = self.first.send(());
        }
    }

    /// Answers as many as are due, with one write for each connection.
    fn answer(&mut self) {
        let Some(began) = self.began else { return };
        let due = (began.elapsed().as_secs_f64() * self.per_s) as u64;
        let count = due.saturating_sub(self.answered).min(self.posts.len() as u64);
        // What nobody has asked for is made up for only so far.
        self.answered = (self.answered + count).max(due.saturating_sub(BEHIND_MAX));
        for (index, id) in self.posts.drain(..count as usize) {
            let out = &mut self.connections[index].out;
            let rest = "\",\"timestamp\":1795384335534,\"seq\":1234567,\"delivered\":{\"users\":0,\"connections\":0}}";
            let length = "{\"id\":\"".len() + id.len() + rest.len();
            let _ = write!(
                out,
                "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{\"id\":\""
            );
            out.extend_from_slice(&id);
            out.extend_from_slice(rest.as_bytes());
        }
        for connection in self.connections.iter_mut().filter(|connection| !connection.out.is_empty()) {
            // The load reads all along: its socket is never full.
            let _ = connection.stream.write_all(&connection.out);
            connection.out.clear();
        }
    }
}

impl Connection {
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The id of the post that the bytes begin with, and how long it is.
fn post(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    const LENGTH: &[u8] = b"Content-Length: ";
    const ID: &[u8] = b"\"id\":\"";
    let head = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let at = memmem::find(&bytes[..head], LENGTH)? + LENGTH.len();
    let digits = bytes[at..].split(|byte| *byte == b'\r').next()?;
    let length: usize = str::from_utf8(digits).ok()?.parse().ok()?;
    let body = bytes.get(head..head + length)?;
    let id = &body[memmem::find(body, ID)? + ID.len()..];
    let id = id.split(|byte| *byte == b'"').next()?;
    Some((id.to_vec(), head + length))
}
