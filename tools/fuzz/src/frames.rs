//! The frame decoder: the same for every split of its input, within its memory, and of one mind with tungstenite.
//!
//! Input: one byte for the limit on a message, the cuts, then what the client sends.

use std::io;

use sizland_chat::wire::decoder::{Event, Partial, decode};
use sizland_chat::wire::websocket::{CONTROL_BYTES_MAX, Violation};
use tungstenite::error::{Error, ProtocolError};
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use super::input::{Input, Splits};

const BYTES_MAX: usize = 1 << 20;
/// The decoder sets aside so much when the first bytes of a message arrive.
const STEP_BYTES: usize = 512;
/// What tungstenite calls a Close whose code it does not accept.
const THEIR_VIOLATION: &str = "Protocol violation";

/// Decodes in one piece, in the pieces given and byte by byte, and compares with tungstenite.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    // Below the size of a control frame tungstenite refuses those as well, so no limit is smaller.
    let message_bytes_max = match input.byte() {
        0 => BYTES_MAX,
        some => CONTROL_BYTES_MAX + usize::from(some),
    };
    let splits = Splits::read(&mut input);
    let stream = input.rest();

    let whole = Decoded::of([stream].into_iter(), message_bytes_max);
    let split = Decoded::of(splits.pieces(stream), message_bytes_max);
    assert_eq!(whole, split, "the pieces make a difference");
    let bytewise = Decoded::of(stream.chunks(1), message_bytes_max);
    assert_eq!(whole, bytewise, "single bytes make a difference");
    compare(&whole, stream, message_bytes_max);
}

/// What a client has sent, as either decoder tells it.
#[derive(Debug, PartialEq)]
enum Sent {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// What came out of the decoder.
#[derive(Debug, Default, PartialEq)]
struct Decoded {
    events: Vec<Sent>,
    violation: Option<Violation>,
    is_unfinished: bool,
}

impl Decoded {
    fn of<'a>(pieces: impl Iterator<Item = &'a [u8]>, message_bytes_max: usize) -> Self {
        let mut decoded = Self::default();
        let mut partial = None;
        let mut received = 0;
        for piece in pieces {
            received += piece.len();
            decoded.feed(&mut partial, piece, message_bytes_max);
            let bound = size_of::<Partial>() + CONTROL_BYTES_MAX + STEP_BYTES + 2 * received;
            assert!(
                partial.as_ref().is_none_or(|partial| partial.bytes() <= bound),
                "memory follows what was received"
            );
        }
        decoded.is_unfinished = partial.is_some();
        assert!(!(decoded.is_unfinished && decoded.has_ended()));
        decoded
    }

    fn feed(&mut self, partial: &mut Option<Box<Partial>>, piece: &[u8], message_bytes_max: usize) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while !self.has_ended() {
            match decode(partial, &mut piece[at..], message_bytes_max) {
                Ok(step) => {
                    at += step.consumed;
                    let Some(event) = step.event else {
                        assert_eq!(at, piece.len(), "without an event all is consumed");
                        return;
                    };
                    assert!(step.consumed > 0, "an event takes bytes");
                    self.note(event, message_bytes_max);
                }
                Err(violation) => self.violation = Some(violation),
            }
        }
    }

    fn note(&mut self, event: Event<'_>, message_bytes_max: usize) {
        self.events.push(match event {
            Event::Message { payload, binary, .. } => {
                assert!(payload.len() <= message_bytes_max);
                assert!(binary || str::from_utf8(&payload).is_ok(), "text is UTF-8");
                if binary { Sent::Binary(payload.into_owned()) } else { Sent::Text(payload.into_owned()) }
            }
            Event::Ping(payload) => Sent::Ping(payload.into_owned()),
            Event::Pong(payload) => Sent::Pong(payload.into_owned()),
            Event::Close(close) => Sent::Close(close.map(|close| (close.code, close.reason))),
        });
    }

    fn has_ended(&self) -> bool {
        self.violation.is_some() || matches!(self.events.last(), Some(Sent::Close(_)))
    }
}

/// Compares with tungstenite, but for the differences that are known.
fn compare(ours: &Decoded, stream: &[u8], message_bytes_max: usize) {
    // It knows no code 1014.
    if matches!(ours.events.last(), Some(Sent::Close(Some((code, reason)))) if *code == 1014 || reason == THEIR_VIOLATION)
    {
        return;
    }
    let Some(violation) = ours.violation else {
        let theirs = Theirs::read(stream.to_vec(), message_bytes_max);
        assert_eq!(ours.events, theirs.events);
        assert_eq!(theirs.code, None, "they refuse what we accept");
        return;
    };
    // It judges whole frames only, so the one at fault is filled up; zeros then are no frame that a client may send.
    let padding = if message_bytes_max == BYTES_MAX { 0 } else { message_bytes_max + 16 };
    let padded = [stream, &vec![0; padding]].concat();
    let theirs = Theirs::read(padded, message_bytes_max);
    if matches!(violation.reason, "length not in its shortest form" | "control frame too long") {
        // It accepts longer forms of a length, in control frames as well, and goes on.
        assert!(theirs.events.starts_with(&ours.events));
        return;
    }
    assert_eq!(ours.events, theirs.events);
    match (violation.code, theirs.code) {
        // It looks at the size of a frame first, and at the reason of a Close before its code.
        (1002, Some(1009)) => {}
        (1002, Some(1007)) => assert_eq!(violation.reason, "invalid close code"),
        (_, None) => assert_eq!(padding, 0, "they accept what we refuse: {violation:?}"),
        (ours, Some(theirs)) => assert_eq!(ours, theirs, "{violation:?}"),
    }
}

struct Theirs {
    events: Vec<Sent>,
    code: Option<u16>,
}

impl Theirs {
    /// The same bytes through tungstenite as a server.
    fn read(stream: Vec<u8>, message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let mut socket = WebSocket::from_raw_socket(Loopback(io::Cursor::new(stream)), Role::Server, Some(config));
        let mut events = Vec::new();
        let code = loop {
            match socket.read() {
                Ok(Message::Text(text)) => events.push(Sent::Text(text.as_bytes().to_vec())),
                Ok(Message::Binary(payload)) => events.push(Sent::Binary(payload.to_vec())),
                Ok(Message::Ping(payload)) => events.push(Sent::Ping(payload.to_vec())),
                Ok(Message::Pong(payload)) => events.push(Sent::Pong(payload.to_vec())),
                Ok(Message::Close(Some(close))) if close.reason == THEIR_VIOLATION => break Some(1002),
                Ok(Message::Close(close)) => {
                    events.push(Sent::Close(close.map(|close| (close.code.into(), close.reason.to_string()))));
                    break None;
                }
                Ok(Message::Frame(frame)) => panic!("raw frame {frame:?}"),
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break None,
                Err(Error::Protocol(_)) => break Some(1002),
                Err(Error::Utf8(_)) => break Some(1007),
                Err(Error::Capacity(_)) => break Some(1009),
                Err(error) => panic!("{error}"),
            }
        };
        Self { events, code }
    }
}

/// A peer that has sent all it will send, and takes every answer.
struct Loopback(io::Cursor<Vec<u8>>);

impl io::Read for Loopback {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl io::Write for Loopback {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
