//! Answers posts behind commits, at a pace or those whose rows were committed: what the load generator needs to work.
//! Nothing of a post is looked at but its length and its id.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// How many posts have come since it was told last.
    posts: Receiver<u64>,
    /// Rows committed so far.
    committed: Arc<AtomicU64>,
}

struct Answering {
    listener: TcpListener,
    registry: Registry,
    connections: Vec<Connection>,
    /// Posts not answered yet: the connection and the id.
    posts: VecDeque<(usize, Vec<u8>)>,
    /// The pace; without one, as many are answered as were committed.
    per_s: Option<f64>,
    committed: Arc<AtomicU64>,
    began: Option<Instant>,
    answered: u64,
    told: Sender<u64>,
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    out: Vec<u8>,
}

impl Answers {
    /// Listens, and answers at most so many posts a second from the first on, or those that were committed.
    pub fn start(port: u16, per_s: Option<f64>) -> io::Result<Self> {
        let mut poll = Poll::new()?;
        let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), COMMITTED)?);
        let registry = poll.registry().try_clone()?;
        let (told, posts) = channel();
        let committed = Arc::new(AtomicU64::new(0));
        let mut answering = Answering {
            listener,
            registry,
            connections: Vec::new(),
            posts: VecDeque::new(),
            per_s,
            committed: committed.clone(),
            began: None,
            answered: 0,
            told,
        };
        thread::spawn(move || {
            let mut events = Events::with_capacity(1024);
            loop {
                match poll.poll(&mut events, None) {
                    Ok(()) => answering.turn(&events),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self { waker, posts, committed })
    }

    /// Waits for posts, and says how many have come since.
    pub fn wait(&self) -> io::Result<u64> {
        let first = self.posts.recv().map_err(|_| io::Error::other("nobody answers posts any more"))?;
        Ok(first + self.posts.try_iter().sum::<u64>())
    }

    /// So many more rows have been committed.
    pub fn committed(&self, rows: u32) -> io::Result<()> {
        self.committed.fetch_add(u64::from(rows), Ordering::Release);
        self.waker.wake()
    }
}

impl Answering {
    fn turn(&mut self, events: &Events) {
        let mut taken = 0;
        for event in events {
            match event.token() {
                LISTENER => self.accept(),
                COMMITTED => self.answer(),
                Token(index) => {
                    if self.connections.get_mut(index).is_some_and(|connection| connection.read().is_ok()) {
                        taken += self.take(index);
                    }
                }
            }
        }
        if taken > 0 && (self.began.is_none() || self.per_s.is_none()) {
            self.began.get_or_insert_with(Instant::now);
            let _ = self.told.send(taken);
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

    /// Takes the whole posts that a connection has sent, and says how many.
    fn take(&mut self, index: usize) -> u64 {
        let unread = &mut self.connections[index].unread;
        let (mut taken, before) = (0, self.posts.len());
        while let Some((id, length)) = post(&unread[taken..]) {
            self.posts.push_back((index, id));
            taken += length;
        }
        unread.drain(..taken);
        (self.posts.len() - before) as u64
    }

    /// Answers as many as are due, with one write for each connection.
    fn answer(&mut self) {
        let Some(began) = self.began else { return };
        let due = match self.per_s {
            Some(per_s) => (began.elapsed().as_secs_f64() * per_s) as u64,
            None => self.committed.load(Ordering::Acquire),
        };
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
