//! WebSocket frames as a client sees them (RFC 6455 section 5): server frames parsed in place, client frames built masked.
//! It keeps no state and never copies a payload it reads.

/// Opcode of a text frame.
pub const TEXT: u8 = 1;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;
/// Opcode of a pong.
pub const PONG: u8 = 10;

/// One masking key for all frames: the load is no browser, so nothing has to be unpredictable, and frames can be prebuilt.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const HEADER_BYTES_MAX: usize = 14;

/// The outcome of looking for a frame at the head of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole frame, and the bytes it takes.
    Frame {
        /// One of the opcodes above, or binary.
        opcode: u8,
        /// The payload, in place.
        payload: &'a [u8],
        /// Header and payload, in bytes.
        size: usize,
    },
    /// More bytes are needed; the frame takes so many in all, as far as is known.
    Partial(usize),
    /// No server may send this.
    Broken(&'static str),
}

/// Looks at the frame that `bytes` begins with.
#[inline]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let &[first, second, ..] = bytes else {
        return Parsed::Partial(2);
    };
    if first & 0x70 != 0 {
        return Parsed::Broken("reserved_bits");
    }
    if second & 0x80 != 0 {
        return Parsed::Broken("masked_frame");
    }
    let (header, length) = match second {
        127 => match bytes.get(2..10).and_then(|b| b.try_into().ok()) {
            Some(wide) => (10, u64::from_be_bytes(wide)),
            None => return Parsed::Partial(10),
        },
        126 => match bytes.get(2..4).and_then(|b| b.try_into().ok()) {
            Some(wide) => (4, u64::from(u16::from_be_bytes(wide))),
            None => return Parsed::Partial(4),
        },
        short => (2, u64::from(short)),
    };
    if length > 1 << 30 {
        return Parsed::Broken("frame_too_large");
    }
    let size = header + length as usize;
    let opcode = first & 0x0f;
    match bytes.get(header..size) {
        // No server of this protocol fragments, and a check that guessed at fragments would be no check.
        Some(_) if first & 0x80 == 0 || opcode == 0 => Parsed::Broken("fragmented"),
        Some(payload) => Parsed::Frame { opcode, payload, size },
        None => Parsed::Partial(size),
    }
}

/// A whole client frame, and where in it the payload begins.
pub fn masked(opcode: u8, payload: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::with_capacity(payload.len() + HEADER_BYTES_MAX);
    bytes.push(0x80 | opcode);
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        wide @ 126..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(wide as u16).to_be_bytes());
        }
        huge => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(huge as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    mask(&mut bytes[start..], 0);
    (bytes, start)
}

/// Masks bytes that stand `offset` bytes into their frame's payload.
pub fn mask(bytes: &mut [u8], offset: usize) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte ^= MASK[(offset + i) & 3];
    }
}

/// The code in a close frame's payload; 1005 stands for none (RFC 6455 section 7.1.5).
pub fn close_code(payload: &[u8]) -> u16 {
    match payload {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 1005,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_all_three_widths_parse_at_every_cut() {
        for length in [0_usize, 125, 126, 65_535, 65_536] {
            let mut bytes = vec![0x81];
            match length {
                0..126 => bytes.push(length as u8),
                126..0x1_0000 => {
                    bytes.push(126);
                    bytes.extend_from_slice(&(length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(127);
                    bytes.extend_from_slice(&(length as u64).to_be_bytes());
                }
            }
            bytes.resize(bytes.len() + length, b'x');
            for cut in (0..bytes.len().min(16)).chain([bytes.len() - 1]) {
                assert!(matches!(parse(&bytes[..cut]), Parsed::Partial(n) if n > cut));
            }
            assert!(matches!(
                parse(&bytes),
                Parsed::Frame { opcode: TEXT, payload, size }
                    if payload.len() == length && size == bytes.len()
            ));
        }
    }

    #[test]
    fn what_no_server_may_send_is_broken() {
        assert_eq!(parse(&[0xc1, 0]), Parsed::Broken("reserved_bits"));
        assert_eq!(parse(&[0x81, 0x80]), Parsed::Broken("masked_frame"));
        assert_eq!(parse(&[0x01, 0]), Parsed::Broken("fragmented"));
        assert_eq!(parse(&[0x80, 0]), Parsed::Broken("fragmented"));
    }

    #[test]
    fn a_masked_frame_unmasks_to_its_payload() {
        for length in [3, 200, 70_000] {
            let payload = vec![b'p'; length];
            let (mut bytes, start) = masked(TEXT, &payload);
            assert_eq!(bytes[0], 0x81);
            assert_eq!(&bytes[start - 4..start], &MASK);
            mask(&mut bytes[start..], 0);
            assert_eq!(&bytes[start..], &payload[..]);
        }
    }
}
