//! What the turn needs of the world, and nothing else.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::Credentials;
use crate::chat::Now;
use crate::chat::drain::Stage;
use crate::chat::envelope::Batch;
use crate::chat::ids::{ConnId, ShardId};
use crate::chat::job::{Done, Job};

use super::tls::Certificates;

/// What the poll reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The listener has connections waiting.
    Acceptable,
    /// Another thread has posted something.
    Woken,
    /// A socket's readiness has changed; edges, not levels.
    Socket {
        /// As it was registered; the connection may be gone.
        conn: ConnId,
        /// There may be something to read.
        readable: bool,
        /// There may be room to write.
        writable: bool,
        /// The peer has ended its side, or the socket has failed.
        read_closed: bool,
    },
}

/// What reaches a shard from outside.
#[derive(Debug)]
pub enum Post {
    /// From another shard.
    Batch(Batch),
    /// From a thread that may block.
    Done(Done),
    /// Other keys are in force.
    Credentials(Arc<Credentials>),
    /// From the server, which leads the shards through stopping.
    Stage(Stage),
    /// From the server: what new TLS connections are shown, and whom they are trusted by.
    Certificates(Arc<Certificates>),
    /// From the server: the time for closing in order is over.
    WindowOver,
    /// From the server: the thread is to end.
    End,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// There was something.
    Input(Input),
    /// The peer has ended its side.
    End,
    /// What came was no good for the transport, which has said so to the peer; the rest is thrown away.
    Refused,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// How much of it is for the chat; 0 if it was all for the transport.
    pub bytes: usize,
    /// The socket had no more.
    pub is_short: bool,
    /// From now on the peer is one that has shown a certificate which is trusted.
    pub is_certified: bool,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// What was taken over, and is not to be given again.
    pub bytes: usize,
    /// The socket refuses more until it is writable; something that was taken over may wait for that as well.
    pub is_blocked: bool,
}

impl Received {
    /// A read without a transport in between: so many bytes, into a buffer with that much room.
    pub fn plain(bytes: usize, room: usize) -> Self {
        match bytes {
            0 => Self::End,
            _ => Self::Input(Input { bytes, is_short: bytes < room, is_certified: false }),
        }
    }
}

impl Written {
    /// A write without a transport in between: so many bytes of so many.
    pub fn plain(bytes: usize, total: usize) -> Self {
        Self { bytes, is_blocked: bytes < total }
    }
}

/// Sockets, listener, mailbox and clocks of one shard.
pub trait Io {
    /// A connection that was accepted and not registered yet.
    type Socket;

    /// Appends what has happened to `events`; waits for at most `timeout`, or for ever.
    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()>;

    /// Lets time pass without a look at anything.
    fn rest(&mut self, time: Duration);

    /// The time now.
    fn now(&mut self) -> Now;

    /// Takes a waiting connection and its peer's address, or says `WouldBlock`.
    fn accept(&mut self) -> io::Result<(Self::Socket, IpAddr)>;

    /// Registers a socket for both directions, under its handle's token and at its slot.
    fn register(&mut self, socket: Self::Socket, conn: ConnId) -> io::Result<()>;

    /// Stops listening.
    fn close_listener(&mut self);

    /// Whether what is read next belongs to a handshake of the transport, which is costly.
    fn is_opening(&self, slot: u32) -> bool;

    /// Reads into `buffer`.
    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Received>;

    /// Reads the stream itself, in front of any TLS; what was read stays to be read. 0 is its end.
    fn peek(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes what was looked at by `peek` out of the stream, as far as `buffer` is long.
    fn take(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from `slices`.
    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<Written>;

    /// Ends this side of the stream; the other may go on.
    fn shut(&mut self, slot: u32);

    /// Closes the socket of a slot. What was written and not yet read is still delivered, unless the socket is blocked: a
    /// peer that reads nothing would keep it in memory for minutes, and has already missed what was refused.
    fn close(&mut self, slot: u32, is_blocked: bool);

    /// Takes the next thing out of the mailbox. After it has said `None`, a post made later wakes the poll.
    fn receive(&mut self) -> Option<Post>;

    /// Posts to another shard, and wakes it if it may be asleep; gives the batch back if its mailbox is full.
    fn post(&mut self, target: ShardId, batch: Batch) -> Result<(), Batch>;

    /// Hands a job to the threads of its kind; gives it back if there are none, or they have ended.
    fn submit(&mut self, job: Job) -> Result<(), Job>;

    /// Takes what new TLS connections are shown.
    fn renew(&mut self, certificates: Arc<Certificates>);

    /// Gives memory that a storm has left empty back to the system.
    fn trim(&mut self);

    /// Tells the server that the shard has done what the present stage asks for.
    fn report_stage_done(&mut self, stage: Stage);
}
