//! TLS between a thread's sockets and its chat.
//!
//! Owns a session of rustls per connection, which holds keys and no buffer, and the buffers of the thread, through which
//! all records pass. It knows no file and no clock, and the chat knows nothing of it. What it keeps of one connection is
//! only what a socket makes it keep: the beginning of a record that has not come whole, and the end of one that was not
//! taken whole; both are freed when they are empty. Each of the two has a budget of its own. Where one is used up, those go
//! who have held such a record longest, so that nobody can take the room of those who finish theirs.
//!
//! Three rules keep the latches of the turn true. No more is read than the caller's buffer takes, and plaintext is shorter
//! than what it came in: so nothing that was opened ever waits, and whether a read was short is what the socket said.
//! What is written counts as taken over once it is sealed, since it cannot be taken back; if the socket did not take all
//! of it, the write is reported as blocked and the rest goes out, before anything else, when the socket is writable. And
//! one record is sealed at a time, so that the rest is never more than that.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use rustls::server::UnbufferedServerConnection;
use rustls::server::danger::ClientCertVerifier;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};

use super::io::{Input, Received, Written};
use super::unfinished::{Holding, Unfinished};
use crate::chat::ids::ConnId;

/// The most plaintext of one record (RFC 8446, section 5.1).
const PLAIN_BYTES_MAX: usize = 1 << 14;
/// A record as it is sent, for which a session rarely needs more.
const SEALED_BYTES: usize = PLAIN_BYTES_MAX + 512;
/// The most that is kept of what has not come whole: a record, or a message of a handshake with a long chain.
const TAIL_BYTES_MAX: usize = 32 * 1024;
/// What is read at once.
const READ_BYTES: usize = 64 * 1024;

/// What new connections are shown, and by whom they are trusted.
#[derive(Debug)]
pub struct Certificates {
    /// Certificate, key, versions and resumption.
    pub config: Arc<ServerConfig>,
    /// Who judges the certificates of clients, if they may have one.
    pub clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// The TLS of one thread.
pub struct Tls {
    certificates: Arc<Certificates>,
    /// By slot. A connection gets its session with the first byte that it sends.
    sessions: Vec<Option<Box<Session>>>,
    /// By slot, as registered.
    conns: Vec<ConnId>,
    /// What was read, behind what was kept of the same connection.
    records: Box<[u8]>,
    /// Where small pieces of one record are put together.
    plain: Vec<u8>,
    /// A record on its way out.
    sealed: Vec<u8>,
    /// What all sessions keep of what came in.
    tails: Unfinished,
    /// What all sessions keep of what goes out.
    rests: Unfinished,
    /// Whose record was dropped for want of room, and is to be read so that the caller learns of it.
    dropped: Vec<ConnId>,
    /// The time that a record has to come whole.
    record_ms: u64,
    now_ms: u64,
}

/// How far a session has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// In the middle of the handshake.
    Opening,
    /// In use.
    Open,
    /// The peer has taken its leave; it can still be written to.
    PeerClosed,
    /// The peer broke the protocol, or its record was dropped; what came before that was handed on.
    Failing,
    /// The same, and the caller knows. The peer was told, and is not listened to.
    Failed,
}

struct Session {
    conn: UnbufferedServerConnection,
    stage: Stage,
    /// What was received and is not complete.
    tail: Vec<u8>,
    tail_since_ms: u64,
    /// What was sealed and the socket did not take.
    rest: Vec<u8>,
    rest_since_ms: u64,
}

/// What a read has opened.
#[derive(Default)]
struct Opened {
    /// Bytes of plaintext.
    bytes: usize,
    /// Bytes of the records that are done with.
    used: usize,
    /// What is to be sent at once.
    answer: Vec<u8>,
}

impl Tls {
    /// With no connection. All together may keep so many bytes of unfinished records, half of them of what comes in, and a
    /// record has so many milliseconds to come whole.
    pub fn new(certificates: Arc<Certificates>, kept_bytes_max: usize, record_ms: u64) -> Self {
        Self {
            certificates,
            sessions: Vec::new(),
            conns: Vec::new(),
            records: vec![0; READ_BYTES].into(),
            plain: Vec::with_capacity(PLAIN_BYTES_MAX),
            sealed: vec![0; SEALED_BYTES],
            tails: Unfinished::new(kept_bytes_max / 2),
            rests: Unfinished::new(kept_bytes_max / 2),
            dropped: Vec::new(),
            record_ms,
            now_ms: 0,
        }
    }

    /// A connection was accepted.
    pub fn register(&mut self, conn: ConnId) {
        let at = conn.slot() as usize;
        if self.sessions.len() <= at {
            self.sessions.resize_with(at + 1, || None);
            self.conns.resize(at + 1, conn);
        }
        self.conns[at] = conn;
    }

    /// A turn begins, at that time on the tick clock.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// How long until [`Tls::poll_due`] names a connection; `None` is for ever.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.dropped.is_empty() {
            return Some(Duration::ZERO);
        }
        let due_ms = self.tails.next_since_ms()?.saturating_add(self.record_ms);
        Some(Duration::from_millis(due_ms.saturating_sub(self.now_ms)))
    }

    /// Names a connection that is to be read without an event of its socket: its record was dropped, or is overdue unless
    /// the rest of it is there. The connection may be gone.
    pub fn poll_due(&mut self) -> Option<ConnId> {
        if let Some(conn) = self.dropped.pop() {
            return Some(conn);
        }
        let slot = self.tails.poll_overdue(self.now_ms.checked_sub(self.record_ms)?)?;
        Some(self.conns[slot as usize])
    }

    /// From now on new connections are shown these; the others go on as they are.
    pub fn renew(&mut self, certificates: Arc<Certificates>) {
        self.certificates = certificates;
    }

    /// Whether the connection has not finished its handshake.
    pub fn is_opening(&self, slot: u32) -> bool {
        let session = self.sessions.get(slot as usize).and_then(Option::as_ref);
        session.is_none_or(|session| session.stage == Stage::Opening)
    }

    /// Reads from the socket once and opens what it had into `buffer`, which is to take 64 KiB.
    ///
    /// # Errors
    /// Those of the socket; and when the connection cannot be served any longer.
    pub fn read(&mut self, slot: u32, socket: &mut (impl Read + Write), buffer: &mut [u8]) -> io::Result<Received> {
        let at = slot as usize;
        let mut session = self.sessions[at].take();
        let before = holdings(session.as_deref());
        let received = self.read_session(&mut session, socket, buffer);
        self.sessions[at] = session;
        self.settle(slot, before);
        received
    }

    fn read_session(
        &mut self,
        session: &mut Option<Box<Session>>,
        socket: &mut (impl Read + Write),
        buffer: &mut [u8],
    ) -> io::Result<Received> {
        match session.as_mut().map(|session| (session.stage, session)) {
            Some((Stage::PeerClosed, _)) => return Ok(Received::End),
            Some((Stage::Failing, session)) => {
                session.stage = Stage::Failed;
                return Ok(Received::Refused);
            }
            _ => {}
        }
        let kept = session.as_ref().map_or(0, |session| session.tail.len());
        let room = buffer.len().min(READ_BYTES);
        let begun_by_ms = self.now_ms.checked_sub(self.record_ms);
        let bytes = match (socket.read(&mut self.records[kept..room]), session.as_mut()) {
            (Err(error), Some(session))
                if error.kind() == io::ErrorKind::WouldBlock && session.is_overdue(begun_by_ms) =>
            {
                return Ok(session.give_up());
            }
            (read, _) => read?,
        };
        if bytes == 0 {
            return Ok(Received::End);
        }
        let is_short = bytes < room - kept;
        let session = match session {
            Some(session) => session,
            None => session.insert(Box::new(Session::new(&self.certificates.config)?)),
        };
        if session.stage == Stage::Failed {
            return Ok(Received::Input(Input { bytes: 0, is_short, is_certified: false }));
        }
        self.records[..kept].copy_from_slice(&session.tail);
        let (was_opening, records) = (session.stage == Stage::Opening, &mut self.records[..kept + bytes]);
        let opened = session.open(records, buffer);
        if kept == 0 || opened.used > 0 {
            session.tail_since_ms = self.now_ms;
        }
        session.keep(&records[opened.used..]);
        session.send(socket, &opened.answer, self.now_ms)?;
        if session.tail.len() > TAIL_BYTES_MAX {
            tracing::debug!("an unfinished message of TLS takes too much");
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if session.is_overdue(begun_by_ms) {
            return Ok(session.give_up());
        }
        let is_certified = was_opening && session.stage != Stage::Opening && session.is_certified(&self.certificates);
        // What has ended but for what was opened says so when it is read again, for which no event will come.
        let is_short = is_short && !matches!(session.stage, Stage::PeerClosed | Stage::Failing);
        match session.stage {
            Stage::PeerClosed if opened.bytes == 0 => Ok(Received::End),
            Stage::Failing if opened.bytes == 0 => {
                session.stage = Stage::Failed;
                Ok(Received::Refused)
            }
            _ => Ok(Received::Input(Input { bytes: opened.bytes, is_short, is_certified })),
        }
    }

    /// Seals what lies in `slices` and writes it, until the socket refuses.
    ///
    /// # Errors
    /// Those of the socket; and when the connection has sealed as much as its keys are good for.
    pub fn write(&mut self, slot: u32, socket: &mut impl Write, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        let session = self.sessions.get_mut(slot as usize).and_then(Option::as_mut);
        let session = session.filter(|session| matches!(session.stage, Stage::Open | Stage::PeerClosed));
        // To whom no word can be sent, none is.
        let Some(session) = session else { return Ok(Written { bytes: total, is_blocked: false }) };
        let before = session.holdings();
        let written = session.write(socket, slices, &mut self.plain, &mut self.sealed, self.now_ms);
        self.settle(slot, before);
        written
    }

    /// Writes what was sealed before and not taken; whether nothing of it is left. A socket that fails says so to whoever
    /// reads or writes next.
    pub fn flush(&mut self, slot: u32, socket: &mut impl Write) -> bool {
        let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::as_mut) else { return true };
        let before = session.holdings();
        let flushed = session.flush(socket).unwrap_or(true);
        self.settle(slot, before);
        flushed
    }

    /// Tells the peer, once, that nothing will follow, if the socket takes it now.
    pub fn take_leave(&mut self, slot: u32, socket: &mut impl Write) {
        let session = self.sessions.get_mut(slot as usize).and_then(Option::as_mut);
        let Some(session) = session.filter(|session| matches!(session.stage, Stage::Open | Stage::PeerClosed)) else {
            return;
        };
        if !session.rest.is_empty() {
            return;
        }
        let UnbufferedStatus { state, .. } = session.conn.process_tls_records(&mut session.tail);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state
            && let Ok(sealed) = traffic.queue_close_notify(&mut self.sealed)
            && sealed > 0
        {
            // A peer that is gone already is no news.
            let _ = socket.write(&self.sealed[..sealed]);
        }
    }

    /// Forgets a connection.
    pub fn remove(&mut self, slot: u32) {
        let session = self.sessions.get_mut(slot as usize).and_then(Option::take);
        self.settle(slot, holdings(session.as_deref()));
    }

    /// What all sessions keep, to look at.
    pub fn kept_bytes(&self) -> usize {
        self.tails.bytes() + self.rests.bytes()
    }

    /// Takes account of what a session holds, which was this before, and makes room if there is none.
    fn settle(&mut self, slot: u32, before: [Holding; 2]) {
        let after = holdings(self.sessions.get(slot as usize).and_then(Option::as_deref));
        self.tails.change(slot, before[0], after[0]);
        self.rests.change(slot, before[1], after[1]);
        if self.tails.is_full() {
            self.drop_oldest("unfinished TLS records take too much", |tls| &tls.tails);
        }
        if self.rests.is_full() {
            self.drop_oldest("unsent TLS records take too much", |tls| &tls.rests);
        }
    }

    /// Drops the records of those who have held one longest.
    fn drop_oldest(&mut self, text: &'static str, pool: impl Fn(&Self) -> &Unfinished) {
        let (bytes, mut count) = (pool(self).bytes(), 0);
        while pool(self).is_nearly_full()
            && let Some(slot) = pool(self).oldest()
            && let Some(session) = &mut self.sessions[slot as usize]
        {
            let before = session.holdings();
            session.drop_records();
            self.tails.change(slot, before[0], Holding::default());
            self.rests.change(slot, before[1], Holding::default());
            self.dropped.push(self.conns[slot as usize]);
            count += 1;
        }
        tracing::warn!(bytes, count, "{text}: the oldest are dropped");
    }
}

fn holdings(session: Option<&Session>) -> [Holding; 2] {
    session.map(Session::holdings).unwrap_or_default()
}

impl Session {
    fn new(config: &Arc<ServerConfig>) -> io::Result<Self> {
        let conn = UnbufferedServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        let (tail, rest) = (Vec::new(), Vec::new());
        Ok(Self { conn, stage: Stage::Opening, tail, tail_since_ms: 0, rest, rest_since_ms: 0 })
    }

    /// What is kept of what came in, and of what goes out.
    fn holdings(&self) -> [Holding; 2] {
        [
            Holding { bytes: self.tail.capacity(), since_ms: self.tail_since_ms },
            Holding { bytes: self.rest.capacity(), since_ms: self.rest_since_ms },
        ]
    }

    /// Whether the record that is not complete was begun at that time or before.
    fn is_overdue(&self, begun_by_ms: Option<u64>) -> bool {
        !self.tail.is_empty() && begun_by_ms.is_some_and(|begun_by_ms| self.tail_since_ms <= begun_by_ms)
    }

    /// The record that is not complete is waited for no longer.
    fn give_up(&mut self) -> Received {
        tracing::debug!("a TLS record did not come whole in time");
        (self.tail, self.stage) = (Vec::new(), Stage::Failed);
        Received::Refused
    }

    /// Gives up its records, and with them the connection: nothing can follow one that is incomplete.
    fn drop_records(&mut self) {
        (self.tail, self.rest) = (Vec::new(), Vec::new());
        if self.stage != Stage::Failed {
            self.stage = Stage::Failing;
        }
    }

    /// Opens the records in place, and puts what they bring into `plain`, which is at least as long.
    fn open(&mut self, records: &mut [u8], plain: &mut [u8]) -> Opened {
        let mut opened = Opened::default();
        loop {
            let UnbufferedStatus { discard, state } = self.conn.process_tls_records(&mut records[opened.used..]);
            let mut is_done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        let end = opened.bytes + record.payload.len();
                        plain[opened.bytes..end].copy_from_slice(record.payload);
                        (opened.bytes, opened.used) = (end, opened.used + record.discard);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut opened.answer),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.stage = Stage::PeerClosed,
                Ok(ConnectionState::WriteTraffic(_)) => {
                    if self.stage == Stage::Opening {
                        self.stage = Stage::Open;
                    }
                    is_done = true;
                }
                // More is needed; or there will be no more; or it is what was not agreed to.
                Ok(_) => is_done = true,
                Err(error) => {
                    tracing::debug!(%error, handshake = self.stage == Stage::Opening, "TLS is refused");
                    self.stage = Stage::Failing;
                    is_done = true;
                }
            }
            opened.used += discard;
            if is_done {
                break;
            }
        }
        if self.stage == Stage::Failing {
            // The alert; what is left of the records is not looked at again.
            opened.used = records.len();
            while self.conn.wants_write()
                && let Ok(ConnectionState::EncodeTlsData(mut data)) = self.conn.process_tls_records(&mut []).state
            {
                encode(&mut data, &mut opened.answer);
            }
        }
        opened
    }

    /// Keeps what is not complete.
    fn keep(&mut self, unfinished: &[u8]) {
        self.tail.clear();
        self.tail.extend_from_slice(unfinished);
        if self.tail.capacity() > 2 * self.tail.len() {
            self.tail.shrink_to_fit();
        }
    }

    /// Writes what lies in `slices`, record by record, behind what waits, until the socket refuses.
    fn write(
        &mut self,
        socket: &mut impl Write,
        slices: &[IoSlice<'_>],
        plain: &mut Vec<u8>,
        sealed: &mut Vec<u8>,
        now_ms: u64,
    ) -> io::Result<Written> {
        let mut written = Written { bytes: 0, is_blocked: !self.flush(socket)? };
        let mut pieces = Pieces { slices, at: 0 };
        while !written.is_blocked
            && let Some(piece) = pieces.next(plain)
        {
            let length = self.seal(piece, sealed)?;
            written.bytes += piece.len();
            written.is_blocked = !self.send(socket, &sealed[..length], now_ms)?;
        }
        Ok(written)
    }

    /// Seals at most one record's worth; returns how much of `sealed` it takes.
    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<usize> {
        let mut answer = Vec::new();
        loop {
            // What was kept is looked at, and is still not complete.
            match self.conn.process_tls_records(&mut self.tail).state.map_err(io::Error::other)? {
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, &mut answer),
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => {
                    if sealed.len() < SEALED_BYTES + answer.len() {
                        sealed.resize(SEALED_BYTES + answer.len(), 0);
                    }
                    sealed[..answer.len()].copy_from_slice(&answer);
                    return Ok(answer.len() + encrypt(&mut traffic, plain, sealed, answer.len())?);
                }
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Writes what has been sealed, behind which nothing waits; whether the socket took all of it.
    fn send(&mut self, socket: &mut impl Write, sealed: &[u8], now_ms: u64) -> io::Result<bool> {
        if !self.rest.is_empty() {
            // Answers to what is read, which are small; what is written waits for the rest to go.
            self.rest.extend_from_slice(sealed);
            return Ok(false);
        }
        let taken = if sealed.is_empty() { 0 } else { write(socket, sealed)? };
        self.rest.extend_from_slice(&sealed[taken..]);
        self.rest_since_ms = now_ms;
        Ok(taken == sealed.len())
    }

    /// Writes what was not taken; whether nothing of it is left.
    fn flush(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        if !self.rest.is_empty() {
            let taken = write(socket, &self.rest)?;
            self.rest.drain(..taken);
            if self.rest.is_empty() {
                self.rest = Vec::new();
            }
        }
        Ok(self.rest.is_empty())
    }

    /// Whether the peer has shown a certificate that is trusted now. It was when it was first shown; a session that was
    /// resumed may have outlived that.
    fn is_certified(&self, certificates: &Certificates) -> bool {
        let Some(verifier) = &certificates.clients else { return false };
        let Some((leaf, intermediates)) = self.conn.peer_certificates().and_then(<[_]>::split_first) else {
            return false;
        };
        verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
    }
}

/// What lies in several slices, in pieces of at most one record.
struct Pieces<'a, 'b> {
    slices: &'a [IoSlice<'b>],
    /// Bytes of the first slice that are done with.
    at: usize,
}

impl<'a> Pieces<'a, '_> {
    /// The next piece: as it lies, or put together in `plain` where it lies in several slices.
    fn next<'p>(&mut self, plain: &'p mut Vec<u8>) -> Option<&'p [u8]>
    where
        'a: 'p,
    {
        let (first, others) = self.slices.split_first()?;
        let left = &first[self.at..];
        if left.len() >= PLAIN_BYTES_MAX || others.is_empty() {
            let piece = &left[..left.len().min(PLAIN_BYTES_MAX)];
            self.skip(piece.len());
            return (!piece.is_empty()).then_some(piece);
        }
        plain.clear();
        while plain.len() < PLAIN_BYTES_MAX
            && let Some(first) = self.slices.first()
        {
            let left = &first[self.at..];
            let piece = &left[..left.len().min(PLAIN_BYTES_MAX - plain.len())];
            plain.extend_from_slice(piece);
            self.skip(piece.len());
        }
        (!plain.is_empty()).then_some(plain)
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
        if self.slices.first().is_some_and(|first| first.len() == self.at) {
            (self.slices, self.at) = (&self.slices[1..], 0);
        }
    }
}

/// Writes once; 0 if the socket takes nothing.
fn write(socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    match socket.write(bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        written => written,
    }
}

/// Appends a record of the session's own to `out`.
fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    let at = out.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut out[at..]) {
        out.resize(at + required_size, 0);
        let encoded = data.encode(&mut out[at..]);
        debug_assert!(encoded.is_ok_and(|bytes| bytes == required_size));
    }
}

/// Seals `plain` into `sealed` from `at` on, which is made longer if it has to be; returns the bytes.
fn encrypt<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    plain: &[u8],
    sealed: &mut Vec<u8>,
    at: usize,
) -> io::Result<usize> {
    loop {
        match traffic.encrypt(plain, &mut sealed[at..]) {
            Ok(bytes) => return Ok(bytes),
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                sealed.resize(at + required_size, 0);
            }
            Err(EncryptError::EncryptExhausted) => return Err(io::Error::other(EncryptError::EncryptExhausted)),
        }
    }
}
