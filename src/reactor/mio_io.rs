//! The world as mio shows it: the only system calls of the event loops.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use mio::event::Event as MioEvent;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::io::writev;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::io::{Event, Io, Post, Received, Written};
use super::jobs::Jobs;
use super::mailbox::{Mailbox, Mailer, mailbox};
use super::neighbours::Neighbours;
use super::tls::{Certificates, Tls};
use crate::allocator;
use crate::chat::Now;
use crate::chat::drain::Stage;
use crate::chat::envelope::Batch;
use crate::chat::ids::{ConnId, ShardId};
use crate::chat::job::{Done, Job};
use crate::chat::store;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const EVENTS_MAX: usize = 1024;
const BACKLOG: i32 = 4096;
/// How often a loop gives the core away in one poll, at most.
const YIELDS_MAX: usize = 4;

/// Sockets, poll and mailbox of one thread.
pub struct MioIo {
    id: ShardId,
    poll: Poll,
    events: Events,
    listener: Option<TcpListener>,
    sockets: Vec<Option<TcpStream>>,
    /// What stands between sockets and chat, if anything does.
    tls: Option<Tls>,
    mailbox: Mailbox<Post>,
    mailers: Vec<Mailer<Post>>,
    reports: Sender<(ShardId, Stage)>,
    jobs: Jobs,
    started: Instant,
    neighbours: Neighbours,
}

/// What is made for a shard before its thread starts, so that all can know all mailboxes.
pub struct Endpoint {
    poll: Poll,
    listener: TcpListener,
    mailbox: Mailbox<Post>,
}

impl Endpoint {
    /// A poll, a mailbox of at most `posts_max` posts, and the listener registered with the poll.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(listener: Socket, posts_max: usize) -> io::Result<(Self, Mailer<Post>)> {
        let poll = Poll::new()?;
        let (mailer, mailbox) = mailbox(posts_max, Waker::new(poll.registry(), WAKER)?);
        let mut listener = TcpListener::from_std(listener.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok((Self { poll, listener, mailbox }, mailer))
    }

    /// The descriptor of its poll.
    pub fn poll_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

impl MioIo {
    /// The world of shard `id`. With `tls` all its connections are; `jobs` leads to the threads that may block; `started`
    /// is where the tick clock begins, the same for all shards; `neighbours` are the server's other threads.
    #[expect(clippy::too_many_arguments, reason = "what a thread is given at its start")]
    pub fn new(
        id: ShardId,
        endpoint: Endpoint,
        tls: Option<Tls>,
        mailers: Vec<Mailer<Post>>,
        reports: Sender<(ShardId, Stage)>,
        jobs: Jobs,
        started: Instant,
        neighbours: Neighbours,
    ) -> Self {
        let Endpoint { poll, listener, mailbox } = endpoint;
        let events = Events::with_capacity(EVENTS_MAX);
        let (listener, sockets) = (Some(listener), Vec::new());
        Self { id, poll, events, listener, sockets, tls, mailbox, mailers, reports, jobs, started, neighbours }
    }

    /// Gives the core to the other threads when they want it, and while one of the loops has posts that it has not begun to
    /// take. What it makes of them may be for this one, and joins what is about to be sent. Posts for this one come first:
    /// whoever wants the core is asked behind them.
    fn share_core(&mut self) {
        if self.has_posts() {
            return;
        }
        let mut want_core = self.neighbours.want_core();
        for _ in 0..YIELDS_MAX {
            let is_wanted = want_core || self.neighbours.are_crowded() && self.mailers.iter().any(Mailer::is_waiting);
            if !is_wanted {
                return;
            }
            std::thread::yield_now();
            if self.has_posts() {
                return;
            }
            want_core = false;
        }
    }

    /// Whether there are posts for this loop that it has not begun to take.
    fn has_posts(&self) -> bool {
        self.mailers[usize::from(self.id.0)].is_waiting()
    }
}

impl Io for MioIo {
    type Socket = TcpStream;

    fn poll(&mut self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            self.share_core();
        }
        let timeout = [timeout, self.tls.as_ref().and_then(Tls::timeout)].into_iter().flatten().min();
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            match event.token() {
                LISTENER => events.push(Event::Acceptable),
                WAKER => {
                    self.mailbox.clear_wake();
                    events.push(Event::Woken);
                }
                token => {
                    let mut event = socket_event(token, event);
                    if let (Some(tls), Event::Socket { conn, writable, .. }) = (&mut self.tls, &mut event)
                        && *writable
                    {
                        // The shard has handed over all that waits before it.
                        let slot = conn.slot();
                        *writable = socket(&mut self.sockets, slot).is_ok_and(|socket| tls.flush(slot, socket));
                    }
                    events.push(event);
                }
            }
        }
        if let Some(tls) = &mut self.tls {
            tls.begin_turn(clock(self.started).tick_ms);
            while let Some(conn) = tls.poll_due() {
                events.push(Event::Socket { conn, readable: true, writable: false, read_closed: false });
            }
        }
        Ok(())
    }

    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn now(&mut self) -> Now {
        clock(self.started)
    }

    fn accept(&mut self) -> io::Result<(TcpStream, IpAddr)> {
        let listener = self.listener.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?;
        listener.accept().map(|(socket, address)| (socket, address.ip()))
    }

    fn register(&mut self, mut socket: TcpStream, conn: ConnId) -> io::Result<()> {
        let token = Token(conn.token() as usize);
        self.poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        if let Some(tls) = &mut self.tls {
            tls.register(conn);
        }
        let slot = conn.slot() as usize;
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.sockets[slot] = Some(socket);
        Ok(())
    }

    fn close_listener(&mut self) {
        self.listener = None;
    }

    fn is_opening(&self, slot: u32) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_opening(slot))
    }

    fn read(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<Received> {
        let socket = socket(&mut self.sockets, slot)?;
        match &mut self.tls {
            None => Ok(Received::plain(receive(socket, buffer)?, buffer.len())),
            Some(tls) => tls.read(slot, socket, buffer),
        }
    }

    fn peek(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize> {
        socket(&mut self.sockets, slot)?.peek(buffer)
    }

    fn take(&mut self, slot: u32, buffer: &mut [u8]) -> io::Result<usize> {
        receive(socket(&mut self.sockets, slot)?, buffer)
    }

    fn write(&mut self, slot: u32, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let socket = socket(&mut self.sockets, slot)?;
        if let Some(tls) = &mut self.tls {
            return tls.write(slot, socket, slices);
        }
        // Rust has the signal of a broken pipe ignored; the error says it.
        let bytes = match slices {
            [one] => send(socket, one, SendFlags::empty())?,
            _ => writev(socket, slices)?,
        };
        Ok(Written::plain(bytes, slices.iter().map(|slice| slice.len()).sum()))
    }

    fn shut(&mut self, slot: u32) {
        let Ok(socket) = socket(&mut self.sockets, slot) else { return };
        if let Some(tls) = &mut self.tls {
            tls.take_leave(slot, socket);
        }
        // A peer that is gone already is no news.
        let _ = socket.shutdown(Shutdown::Write);
    }

    fn close(&mut self, slot: u32, is_blocked: bool) {
        if let (Some(tls), Ok(socket)) = (&mut self.tls, socket(&mut self.sockets, slot)) {
            tls.take_leave(slot, socket);
            tls.remove(slot);
        }
        if is_blocked && let Ok(socket) = socket(&mut self.sockets, slot) {
            // A reset; if it cannot be had, the kernel gives up by itself in the end.
            let _ = SockRef::from(&*socket).set_linger(Some(Duration::ZERO));
        }
        // Closing the descriptor takes it out of the poll.
        if let Some(socket) = self.sockets.get_mut(slot as usize) {
            *socket = None;
        }
    }

    fn receive(&mut self) -> Option<Post> {
        let post = self.mailbox.receive();
        if let Some(Post::Done(Done::Store(store::Done::Written(verdicts)))) = &post {
            self.neighbours.note_answered(verdicts.len());
        }
        post
    }

    fn post(&mut self, target: ShardId, batch: Batch) -> Result<(), Batch> {
        match self.mailers[target.index()].try_post(Post::Batch(batch)) {
            Err(Post::Batch(batch)) => Err(batch),
            _ => Ok(()),
        }
    }

    fn submit(&mut self, job: Job) -> Result<(), Job> {
        let writes = match &job {
            Job::Store(store::Job::Write(writes)) => writes.len(),
            _ => 0,
        };
        self.jobs.submit(job)?;
        self.neighbours.note_submitted(writes);
        Ok(())
    }

    fn renew(&mut self, certificates: Arc<Certificates>) {
        if let Some(tls) = &mut self.tls {
            tls.renew(certificates);
        }
    }

    fn trim(&mut self) {
        allocator::trim();
    }

    fn report_stage_done(&mut self, stage: Stage) {
        // The server outlives its shards; if it does not, nobody waits.
        let _ = self.reports.send((self.id, stage));
    }
}

/// The present time, on a tick clock that began at `started`.
pub fn clock(started: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { tick_ms: started.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
}

/// A socket that listens on `address`, which it shares with the listeners of the other threads if `shared` is set. What
/// is set here is inherited by what it accepts.
///
/// # Errors
/// The address is taken, or not this machine's.
pub fn listen(address: SocketAddr, shared: bool, send_buffer_bytes: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_send_buffer_size(send_buffer_bytes)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Reads what has come, up to the buffer's length. As what is sent, by the system call itself: the C library's is one
/// that threads can be cancelled in, and pays for that at each.
fn receive(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = recv(socket, buffer, RecvFlags::empty())?;
    Ok(bytes)
}

fn socket(sockets: &mut [Option<TcpStream>], slot: u32) -> io::Result<&mut TcpStream> {
    let socket = sockets.get_mut(slot as usize).and_then(Option::as_mut);
    socket.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
}

fn socket_event(token: Token, event: &MioEvent) -> Event {
    Event::Socket {
        conn: ConnId::from_token(token.0 as u64),
        readable: event.is_readable(),
        writable: event.is_writable(),
        read_closed: event.is_read_closed() || event.is_error(),
    }
}
