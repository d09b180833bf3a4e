//! WebSocket frames as a client writes and reads them.

use std::collections::VecDeque;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::Value;

use super::random::Random;

pub fn say(deflates: bool, out: &mut VecDeque<u8>, message: Value, random: &mut Random, split: bool) {
    let text = message.to_string().into_bytes();
    let (opcode, payload) = if deflates { (0x41, deflate(&text)) } else { (1, text) };
    if split && random.one_in(4) {
        let at = random.below(payload.len());
        put(out, opcode, false, &payload[..at]);
        put(out, 9, true, b"between");
        put(out, 0, true, &payload[at..]);
    } else {
        put(out, opcode, true, &payload);
    }
}

/// What a sender takes off the end of a compressed message.
const TAIL: &[u8] = &[0, 0, 0xff, 0xff];

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 100);
    Compress::new(Compression::fast(), false).compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - TAIL.len());
    out
}

/// What is in a compressed message.
pub fn inflate(payload: &[u8]) -> Vec<u8> {
    let input = [payload, TAIL].concat();
    let (mut stream, mut out) = (Decompress::new(false), Vec::with_capacity(1 << 20));
    stream.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!(stream.total_in(), input.len() as u64, "a compressed message ends with its last block");
    assert!(out.len() > payload.len(), "it is compressed only if that makes it smaller");
    out
}

pub fn put(out: &mut VecDeque<u8>, opcode: u8, fin: bool, payload: &[u8]) {
    out.push_back(opcode | if fin { 0x80 } else { 0 });
    match payload.len() {
        length @ 0..=125 => out.push_back(0x80 | length as u8),
        length => {
            out.push_back(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
}

/// The first whole frame: first byte, payload, length in all.
pub fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert!(matches!(first & 0xf0, 0x80 | 0xc0), "a server frame is whole: {first:#x} {second:#x}");
    assert_eq!(second & 0x80, 0, "a server frame is not masked");
    let (start, length) = match second {
        126 => {
            let length = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
            assert!(length > 125, "the shortest form is used");
            (4, usize::from(length))
        }
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize;
            assert!(length > 0xffff && length < 1 << 30, "the shortest form is used");
            (10, length)
        }
        length => (2, usize::from(length)),
    };
    assert!(matches!(first & 0x7f, 0x41 | 1 | 8 | 9 | 10), "opcode {first:#x}");
    let payload = bytes.get(start..start + length)?;
    Some((first, payload.to_vec(), start + length))
}
