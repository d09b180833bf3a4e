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
    /// From the server: the time for closing in order is over.
    WindowOver,
    /// From the server: the thread is to end.
    End,
}

/// Sockets, listener, mailbox and clocks of one shard.
pub trait Io {
    /// A connection that was accepted and not registered yet.
    type Socket;

    /// Appends what has happened to `events`; waits for at most `timeout`, or for ever.
    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()>;

    /// The time now.
    fn now(&mut self) -> Now;

    /// Takes a waiting connection and its peer's address, or says `WouldBlock`.
    fn accept(&mut self) -> io::Result<(Self::Socket, IpAddr)>;

    /// Registers a socket for both directions, under its handle's token and at its slot.
    fn register(&mut self, socket: Self::Socket, conn: ConnId) -> io::Result<()>;

    /// Stops listening.
    fn close_listener(&mut self);

    /// Reads into `buffer`; 0 is the end of the stream.
    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize>;

    /// As `read`, but what was read stays to be read.
    fn peek(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from `slices`.
    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends this side of the stream; the other may go on.
    fn shut(&mut self, slot: u32);

    /// Closes the socket of a slot.
    fn close(&mut self, slot: u32);

    /// Takes the next thing out of the mailbox. After it has said `None`, a post made later wakes the poll.
    fn receive(&mut self) -> Option<Post>;

    /// Posts to another shard, and wakes it if it may be asleep; gives the batch back if its mailbox is full.
    fn post(&mut self, target: ShardId, batch: Batch) -> Result<(), Batch>;

    /// Hands a job to the threads of its kind; gives it back if there are none, or they have ended.
    fn submit(&mut self, job: Job) -> Result<(), Job>;

    /// Gives memory that a storm has left empty back to the system.
    fn trim(&mut self);

    /// Tells the server that the shard has done what the present stage asks for.
    fn report_stage_done(&mut self, stage: Stage);
}
