//! One connection of the load: its socket, what it is for, how far it has come; and the count of all by how far they are.
//! It knows no message.

use std::io::{ErrorKind, Read, Write};
use std::{io, mem};

use crate::stream::Stream;

const TAIL_BYTES_KEPT: usize = 16 * 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A member whose every delivery is checked.
    Checked,
    /// A member that stops reading.
    Stalled,
    /// A connection that comes and goes.
    Churner,
    /// Posts, as publisher of this number.
    Http(usize),
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not open.
    Closed,
    /// TCP is under way.
    Connecting,
    /// The upgrade is under way.
    Upgrading,
    /// Waits for `connected`.
    Upgraded,
    /// Has `connected`.
    Greeted,
    /// Waits for `online_update`.
    Joining,
    /// Is in its room.
    Joined,
    /// Speaks HTTP.
    Posting,
}

/// One connection.
pub struct Slot {
    /// Its socket while it is open.
    pub stream: Option<Stream>,
    /// How far it has come.
    pub state: State,
    /// What it is for.
    pub kind: Kind,
    /// The number of its room.
    pub room: u32,
    /// The peer has sent its last byte: a short read no longer means that an event will follow.
    pub read_closed: bool,
    /// Bytes received in all, also by earlier sockets.
    pub received: u64,
    /// What is still to be written.
    pub out: Vec<u8>,
    /// The beginning of what was not whole when it was read.
    tail: Vec<u8>,
}

impl Slot {
    /// A connection that is not open yet.
    pub fn new(kind: Kind, room: u32) -> Self {
        Self {
            stream: None,
            state: State::Closed,
            kind,
            room,
            read_closed: false,
            received: 0,
            out: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Whether something waits until the socket is writable.
    pub fn wants_flush(&self) -> bool {
        !self.out.is_empty() || self.stream.as_ref().is_some_and(Stream::is_secure)
    }

    /// Reads into `buffer`, behind what was kept, and grows it if there is no room. Says how much is then filled; `None`
    /// when nothing is there to read, 0 at the end.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let held = self.tail.len();
        if held == buffer.len() {
            buffer.resize(held * 2, 0);
        }
        buffer[..held].copy_from_slice(&self.tail);
        loop {
            match stream.read(&mut buffer[held..]) {
                Ok(0) => return Ok(Some(0)),
                Ok(count) => {
                    self.received += count as u64;
                    return Ok(Some(held + count));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps what was not whole, instead of what was kept before.
    #[inline]
    pub fn keep(&mut self, rest: &[u8]) {
        self.tail.clear();
        if !rest.is_empty() {
            self.tail.extend_from_slice(rest);
        } else if self.tail.capacity() > TAIL_BYTES_KEPT {
            self.tail = Vec::new();
        }
    }

    /// Writes what is to be written, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut done = 0;
        let mut result = self.stream.as_mut().map_or(Ok(()), Stream::flush);
        while let Some(stream) = &mut self.stream
            && done < self.out.len()
        {
            match stream.write(&self.out[done..]) {
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.out.drain(..done);
        result
    }

    /// Forgets the socket and all that belonged to it; returns how far the connection had come.
    pub fn close(&mut self) -> State {
        self.stream = None;
        self.read_closed = false;
        self.out.clear();
        self.tail = Vec::new();
        mem::replace(&mut self.state, State::Closed)
    }
}

/// How many connections have come how far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    /// Opened, not yet greeted.
    pub opening: usize,
    /// Greeted with `connected`, or ready to post.
    pub open: usize,
    /// Asked to join, not yet answered.
    pub joining: usize,
    /// Answered with `online_update`.
    pub joined: usize,
    /// Failed before they had joined.
    pub failed: usize,
    /// Times that a churner was closed and opened again.
    pub churned: u64,
}

impl Census {
    /// A connection that had come so far is gone.
    pub fn leave(&mut self, state: State) {
        match state {
            State::Closed => {}
            State::Connecting | State::Upgrading | State::Upgraded => self.opening -= 1,
            State::Greeted | State::Posting => self.open -= 1,
            State::Joining => {
                self.joining -= 1;
                self.open -= 1;
            }
            State::Joined => {
                self.joined -= 1;
                self.open -= 1;
            }
        }
    }
}
