//! permessage-deflate: inflating is bounded and of one mind with flate2's own reader, and what is deflated comes back.
//!
//! Input: one byte for the limit, one for the kind of message and the window, then a payload, taken as compressed first
//! and as plain after that.

use std::io::Read;

use flate2::Decompress;
use flate2::FlushDecompress;
use flate2::bufread::DeflateDecoder;
use sizland_chat::wire::deflate::{Deflater, Inflater};
use sizland_chat::wire::websocket::{Opcode, put_frame};

use super::input::Input;
use super::server_frame::split;

/// What a sender leaves out (RFC 7692, section 7.2.1).
const TAIL: &[u8] = &[0, 0, 0xff, 0xff];
/// An empty final block.
const END: &[u8] = &[3, 0];
const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
/// The first size of the buffer.
const STEP_BYTES: usize = 4096;

/// Inflates the payload, deflates it, and inflates that.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let bytes_max = input.pick(&[64, 1000, 65_536, 1 << 20]);
    let flags = input.byte();
    let (is_text, window_bits) = (flags & 1 == 1, (flags >> 1) % 16);
    let payload = input.rest();

    let mut inflater = Inflater::default();
    let mut out = inflater.take_buffer();
    let outcome = inflater.inflate(payload, is_text, bytes_max, &mut out).map_err(|violation| violation.code);
    assert!(out.capacity() <= bytes_max.max(STEP_BYTES) + 1, "{} bytes for {bytes_max}", out.capacity());
    compare(payload, is_text, bytes_max, outcome.map(|()| &out[..]));

    inflater.keep_buffer(out);
    let mut out = inflater.take_buffer();
    assert_eq!(inflater.inflate(HELLO, true, 5, &mut out), Ok(()), "nothing is left of the message before");
    assert_eq!(out, b"Hello");

    check_message(&mut inflater, payload, window_bits);
    check_frames(&mut inflater, payload);
}

/// Compares with flate2's reader, which ends with the first block that says it is the last.
fn compare(payload: &[u8], is_text: bool, bytes_max: usize, ours: Result<&[u8], u16>) {
    let has_tail = payload.is_empty() || payload.ends_with(TAIL);
    let stream = [payload, if has_tail { &[] } else { TAIL }, END].concat();
    let mut reader = DeflateDecoder::new(&stream[..]);
    let mut theirs = Vec::new();
    let read = (&mut reader).take(bytes_max as u64 + 1).read_to_end(&mut theirs);
    let is_too_big = theirs.len() > bytes_max;
    let end = usize::try_from(reader.total_in()).unwrap_or(usize::MAX);
    let is_whole = read.is_ok() && !is_too_big && (end == stream.len() || end == payload.len());
    match ours {
        Ok(ours) if is_whole => assert_eq!(ours, theirs),
        // Other blocks follow the final one.
        Ok(ours) => assert!(read.is_ok() && ours.starts_with(&theirs) && ours.len() <= bytes_max),
        Err(1009) => assert!(is_too_big || !is_whole),
        Err(1007) => assert!(!is_whole || (is_text && str::from_utf8(&theirs).is_err())),
        Err(code) => panic!("{code} is no answer to a broken message"),
    }
    assert!(ours.is_err() || !is_text || str::from_utf8(ours.unwrap_or_default()).is_ok());
}

/// A message for a receiver with such a window comes back, and needs no more than the window.
fn check_message(inflater: &mut Inflater, plain: &[u8], window_bits: u8) {
    let mut frame = Vec::new();
    Deflater::new(1).put_message(&mut frame, Opcode::Binary, plain, window_bits);
    let Some((first, payload, rest)) = split(&frame) else { panic!("a frame is whole") };
    assert!(rest.is_empty());
    check_payload(inflater, first, payload, plain);
    if first == 0xc2 {
        assert!((8..=15).contains(&window_bits), "a window of {window_bits} bits");
        // There is no inflater for 8 bits.
        let mut narrow = Decompress::new_with_window_bits(false, window_bits.max(9));
        let mut out = Vec::with_capacity(plain.len() + 1);
        let status = narrow.decompress_vec(&[payload, TAIL].concat(), &mut out, FlushDecompress::Sync);
        assert!(status.is_ok() && out == plain, "the window is too narrow: {status:?}");
    }
}

/// Of a row of frames each comes back in its place.
fn check_frames(inflater: &mut Inflater, plain: &[u8]) {
    let (start, end) = plain.split_at(plain.len() / 3);
    let mut frames = Vec::new();
    put_frame(&mut frames, Opcode::Binary, &[start]);
    put_frame(&mut frames, Opcode::Ping, &[b"?"]);
    put_frame(&mut frames, Opcode::Binary, &[end]);
    let Some(deflated) = Deflater::new(32).deflate_frames(&frames) else { return };
    assert!(deflated.frames.len() < frames.len() && (8..=15).contains(&deflated.window_bits));
    let mut left = &deflated.frames[..];
    for (expected, is_message) in [(start, true), (b"?", false), (end, true)] {
        let Some((first, payload, rest)) = split(left) else { panic!("a frame is missing") };
        if is_message {
            check_payload(inflater, first, payload, expected);
        } else {
            assert_eq!((first, payload), (0x89, expected));
        }
        left = rest;
    }
    assert!(left.is_empty());
}

fn check_payload(inflater: &mut Inflater, first: u8, payload: &[u8], plain: &[u8]) {
    if first == 0x82 {
        return assert_eq!(payload, plain);
    }
    assert!(first == 0xc2 && payload.len() < plain.len(), "what is compressed is smaller");
    let mut out = Vec::new();
    assert_eq!(inflater.inflate(payload, false, plain.len(), &mut out), Ok(()));
    assert_eq!(out, plain);
}
