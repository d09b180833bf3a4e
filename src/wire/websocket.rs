//! WebSocket frames as the server sends them (RFC 6455), and the types shared with the [decoder](super::decoder).
//!
//! Owns the layout of unmasked, unfragmented frames in their shortest form. Knows nothing about sockets or connections:
//! every function appends to, or looks at, bytes of the caller.

use tungstenite::protocol::frame::coding::CloseCode;

/// The largest payload of a control frame, in bytes (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// The reserved bit that marks a compressed message on its first frame: RSV1 (RFC 7692, section 6).
pub const DEFLATED: u8 = 0x40;

/// What a frame is (RFC 6455, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of the message under way.
    Continuation,
    /// A text message, or its first fragment.
    Text,
    /// A binary message, or its first fragment.
    Binary,
    /// The closing handshake.
    Close,
    /// A question whether the peer is there.
    Ping,
    /// The answer to a ping, or an unasked heartbeat.
    Pong,
}

impl Opcode {
    /// The four bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    /// The opcode of four bits from the wire; `None` for those that the RFC reserves.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xa => Some(Self::Pong),
            _ => None,
        }
    }

    /// Whether frames of this kind are control frames, which may stand between the fragments of a message.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The payload of a Close frame that has one (RFC 6455, section 5.5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// The status code, one that may be sent on the wire.
    pub code: u16,
    /// The reason, at most 123 bytes, often empty.
    pub reason: String,
}

/// A breach of the protocol by the peer; the connection is to be closed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The close code: 1002 (protocol error), 1007 (invalid UTF-8) or 1009 (message too big).
    pub code: u16,
    /// The close reason, at most 123 bytes.
    pub reason: &'static str,
}

/// The bytes of the header of a server frame with `payload_len` bytes of payload.
pub fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends the header of an unmasked, final frame; the length takes its shortest form.
pub fn put_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    debug_assert!(!opcode.is_control() || payload_len <= CONTROL_BYTES_MAX);
    put_header_behind(out, 0x80 | opcode.bits(), payload_len);
}

/// Appends the header of a frame that is a whole message, compressed to `payload_len` bytes (RFC 7692, section 6).
pub fn put_deflated_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    debug_assert!(!opcode.is_control());
    put_header_behind(out, 0x80 | DEFLATED | opcode.bits(), payload_len);
}

/// Appends the rest of a header behind its first byte.
fn put_header_behind(out: &mut Vec<u8>, first: u8, payload_len: usize) {
    match payload_len {
        0..=125 => out.extend_from_slice(&[first, payload_len as u8]),
        126..=0xffff => {
            let [a, b] = (payload_len as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, a, b]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// Appends one unmasked, final frame whose payload is the concatenation of `parts`.
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, parts: &[&[u8]]) {
    let payload_len = parts.iter().map(|part| part.len()).sum();
    out.reserve(header_len(payload_len) + payload_len);
    put_header(out, opcode, payload_len);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a Close frame; `reason` is cut at the end of a character so that the payload fits a control frame.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let end = reason.floor_char_boundary(CONTROL_BYTES_MAX - 2);
    let reason = reason.get(..end).unwrap_or_default();
    put_frame(out, Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()]);
}

/// Where the frame ends that has been begun when `offset` bytes of `stream` are sent.
///
/// `stream` is a row of whole server frames and `offset` at most its length. The result is the end of the frame in
/// which `offset` lies strictly inside, or `offset` itself when it lies between two frames. Bytes that are no whole
/// frame count as one frame up to the end of `stream`.
pub fn frame_end(stream: &[u8], offset: usize) -> usize {
    let mut end = 0;
    while end < offset {
        let frame = stream.get(end..).unwrap_or_default();
        match whole_frame_len(frame) {
            Some(len) if len <= frame.len() => end += len,
            _ => return stream.len(),
        }
    }
    end
}

/// The first of a row of whole server frames: its first byte, its payload, and what is behind it. `None` at the end of
/// the row, and for what is no whole frame.
pub fn split_frame(frames: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (header, payload) = frame_lens(frames)?;
    let (frame, rest) = frames.split_at_checked(header.checked_add(payload)?)?;
    Some((*frame.first()?, frame.get(header..)?, rest))
}

/// The payloads of a row of whole server frames.
pub fn frame_payloads(frames: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let (_, payload, behind) = split_frame(rest)?;
        rest = behind;
        Some(payload)
    })
}

/// Whether a peer may send `code` in a Close frame: the codes that IANA registers for the wire, 3000 to 3999 for
/// libraries and 4000 to 4999 for private use (RFC 6455, section 7.4).
pub fn is_close_code_valid(code: u16) -> bool {
    // 1014 (Bad Gateway) was registered after tungstenite's table was made.
    code == 1014 || CloseCode::from(code).is_allowed()
}

/// The length of the unmasked frame at the start of `bytes`, read from its header alone.
fn whole_frame_len(bytes: &[u8]) -> Option<usize> {
    let (header, payload) = frame_lens(bytes)?;
    payload.checked_add(header)
}

/// The lengths of header and payload of the unmasked frame at the start of `bytes`.
fn frame_lens(bytes: &[u8]) -> Option<(usize, usize)> {
    let (header, payload) = match *bytes {
        [_, 126, a, b, ..] => (4, u64::from(u16::from_be_bytes([a, b]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        [_, len @ 0..=125, ..] => (2, u64::from(len)),
        _ => return None,
    };
    Some((header, usize::try_from(payload).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_take_the_shortest_form() {
        for (payload_len, expected) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (0xffff, &[0x81, 126, 0xff, 0xff]),
            (0x1_0000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            put_header(&mut out, Opcode::Text, payload_len);
            assert_eq!(out, expected);
            assert_eq!(out.len(), header_len(payload_len));
        }
    }

    #[test]
    fn server_examples_of_section_5_7() {
        let mut out = Vec::new();
        put_frame(&mut out, Opcode::Text, &[b"Hel", b"", b"lo"]);
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        put_frame(&mut out, Opcode::Ping, &[b"Hello"]);
        assert_eq!(out, [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        put_frame(&mut out, Opcode::Binary, &[&[7; 256]]);
        assert_eq!(out[..4], [0x82, 0x7e, 0x01, 0x00]);
        out.clear();
        put_frame(&mut out, Opcode::Binary, &[&[7; 65536]]);
        assert_eq!(out[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(out.len(), 10 + 65536);
    }

    #[test]
    fn frames_are_split_off_one_by_one() {
        let mut out = Vec::new();
        put_frame(&mut out, Opcode::Text, &[b"one"]);
        put_deflated_header(&mut out, Opcode::Text, 300);
        out.extend_from_slice(&[7; 300]);
        let (first, payload, rest) = split_frame(&out).unwrap();
        assert_eq!((first, payload), (0x81, &b"one"[..]));
        let (first, payload, rest) = split_frame(rest).unwrap();
        assert_eq!((first, payload, rest), (0xc1, &[7; 300][..], &[][..]));
        assert_eq!((split_frame(rest), split_frame(&out[..4]), split_frame(&[0x81, 126])), (None, None, None));
    }

    #[test]
    fn opcodes_survive_the_wire() {
        for bits in 0..=0xff {
            let known = matches!(bits, 0..=2 | 8..=10);
            assert_eq!(Opcode::from_bits(bits).map(Opcode::bits), known.then_some(bits));
        }
    }

    #[test]
    fn close_carries_code_and_reason() {
        let mut out = vec![0xee];
        put_close(&mut out, 1008, "Invalid token");
        assert_eq!(out[..5], [0xee, 0x88, 15, 0x03, 0xf0]);
        assert_eq!(&out[5..], b"Invalid token");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        for (reason, kept) in [
            ("x".repeat(123), 123),
            ("x".repeat(124), 123),
            ("ä".repeat(100), 122),
            (format!("{}€", "x".repeat(121)), 121),
            (format!("{}😀", "x".repeat(119)), 123),
            (format!("{}😀", "x".repeat(120)), 120),
        ] {
            let mut out = Vec::new();
            put_close(&mut out, 4001, &reason);
            assert_eq!(usize::from(out[1]), kept + 2);
            assert_eq!(&out[4..], &reason.as_bytes()[..kept]);
        }
    }

    #[test]
    fn close_codes_valid_on_the_wire() {
        let valid = |code: &u16| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        for code in 0..=u16::MAX {
            assert_eq!(is_close_code_valid(code), valid(&code), "{code}");
        }
    }

    #[test]
    fn frame_end_is_the_next_boundary_at_or_after_the_offset() {
        let mut stream = Vec::new();
        let mut boundaries = vec![0];
        for payload_len in [0, 1, 125, 126, 127, 0, 0, 300, 0xffff, 0x1_0000, 5] {
            // A payload that looks like headers must not be taken for one.
            put_frame(&mut stream, Opcode::Text, &[&vec![0x81; payload_len]]);
            boundaries.push(stream.len());
        }
        for offset in 0..=stream.len() {
            let next = boundaries[boundaries.partition_point(|&at| at < offset)];
            assert_eq!(frame_end(&stream, offset), next, "{offset}");
        }
    }

    #[test]
    fn frame_end_of_a_torn_stream_is_its_end() {
        for stream in [&[0x81][..], &[0x81, 5, 1], &[0x81, 126, 1], &[0x81, 127, 0xff], &[0x81, 0xff, 1]] {
            assert_eq!(frame_end(stream, 0), 0);
            assert_eq!(frame_end(stream, 1), stream.len());
        }
        assert_eq!(frame_end(&[0x81, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 3), 11);
        assert_eq!(frame_end(&[], 0), 0);
    }
}
