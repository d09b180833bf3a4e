//! permessage-deflate (RFC 7692): compressing and inflating the payloads of messages.
//!
//! Owns the rules of section 7.2: the tail that is taken off and put back, blocks that call themselves final, what a
//! compressed payload may be. Which parameters a connection has is agreed in [`extensions`](super::extensions). Knows
//! nothing of connections and rooms.
//!
//! Neither side keeps a window between messages, so one [`Deflater`] and one [`Inflater`] serve all connections of a
//! thread, and a frame that is compressed once fits every connection whose window is large enough for it: a reference
//! back never reaches beyond the start of its message, so that a message of at most 2^N bytes needs a window of N bits
//! whatever the compressor's own.
//!
//! Invariants: what is compressed is smaller than it was, unless everything is to be compressed; inflating stops at the
//! limit, whatever the input promises; a buffer that an unusual message has made large is given back.

use std::mem;
use std::sync::Arc;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::decoder::{INVALID_TEXT, TOO_BIG};
use super::utf8;
use super::websocket::{DEFLATED, Opcode, Violation, put_deflated_header, put_frame, split_frame};

/// The level of compression: the first that codes a block by its own statistics, and so has most of what more work would
/// bring. What is left of a chat message of words and ids in JSON, and the least time that it took of 60 tries on one core
/// of a busy machine (zlib-rs 0.6.8):
///
/// | level | 1 KiB | 8 KiB | 64 KiB |
/// | --- | --- | --- | --- |
/// | 1 | 79 %, 12 us | 58 %, 58 us | 55 %, 410 us |
/// | 2 | 59 %, 25 us | 43 %, 110 us | 40 %, 760 us |
/// | 3 | 59 %, 26 us | 42 %, 140 us | 39 %, 960 us |
/// | 6 | 59 %, 59 us | 42 %, 160 us | 37 %, 4100 us |
const LEVEL: u32 = 2;

/// The widest window, and the one that a message is compressed with unless its receiver has a narrower one.
const WINDOW_BITS_MAX: u8 = 15;

/// The narrowest window that there is a compressor for. A receiver with 8 bits gets messages of up to 256 bytes only.
const COMPRESSOR_BITS_MIN: u8 = 9;

/// What a flush ends with, and a sender leaves out (section 7.2.1).
const TAIL: &[u8; 4] = &[0, 0, 0xff, 0xff];

/// An empty final block. Behind the tail it tells whether the message had ended between two blocks.
const END: &[u8; 2] = &[3, 0];

/// Blocks in one message that say that they are the last. Each costs a new beginning, so there is a limit.
const FINAL_BLOCKS_MAX: usize = 64;

/// The reach of a reference back.
const WINDOW_BYTES: usize = 1 << WINDOW_BITS_MAX;

/// The first size of the buffer that a message is inflated into.
const INFLATED_BYTES_STEP: usize = 4096;

/// What a buffer may keep between two messages.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

const BAD_DATA: Violation = Violation { code: 1007, reason: "compressed data is broken" };

/// The longest compressed payload of a message of at most `message_bytes_max` bytes: what cannot be compressed grows by
/// the headers of its blocks.
pub fn compressed_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_add(message_bytes_max / 64 + 64)
}

/// Frames of which at least one is compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeflatedFrames {
    /// Whole, unmasked WebSocket frames.
    pub frames: Arc<[u8]>,
    /// The window that a receiver must have, as its base-2 logarithm, 8 to 15.
    pub window_bits: u8,
}

/// Compresses for all connections of a thread.
pub struct Deflater {
    bytes_min: usize,
    /// One for each width of window that was asked for, from [`COMPRESSOR_BITS_MIN`] on.
    compressors: [Option<Compress>; 7],
    compressed: Vec<u8>,
    frames: Vec<u8>,
}

impl Deflater {
    /// One that leaves payloads of less than `bytes_min` bytes alone; with 0 it compresses all, also what grows by it.
    /// Memory is taken when it is first used.
    pub fn new(bytes_min: usize) -> Self {
        Self { bytes_min, compressors: Default::default(), compressed: Vec::new(), frames: Vec::new() }
    }

    /// Appends a message as one frame, compressed for a receiver with a window of 2^`window_bits` bytes if that makes it
    /// smaller; 0 is a receiver that takes nothing compressed.
    pub fn put_message(&mut self, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], window_bits: u8) {
        if window_bits > 0 && payload.len() >= self.bytes_min && self.compress(payload, window_bits) {
            put_deflated_header(out, opcode, self.compressed.len());
            out.extend_from_slice(&self.compressed);
        } else {
            put_frame(out, opcode, &[payload]);
        }
        give_back(&mut self.compressed);
    }

    /// The same messages, each compressed if that makes it smaller; `None` if it does so for none of them. `frames` is a
    /// row of whole server frames.
    pub fn deflate_frames(&mut self, frames: &[u8]) -> Option<DeflatedFrames> {
        if frames.len() < self.bytes_min {
            return None;
        }
        let mut window_bits = 0;
        let mut rest = frames;
        while let Some((first, payload, behind)) = split_frame(rest) {
            let opcode = Opcode::from_bits(first & 0x0f).filter(|opcode| !opcode.is_control() && first & DEFLATED == 0);
            match opcode {
                Some(opcode) if payload.len() >= self.bytes_min && self.compress(payload, WINDOW_BITS_MAX) => {
                    window_bits = window_bits.max(window_bits_for(payload.len()));
                    put_deflated_header(&mut self.frames, opcode, self.compressed.len());
                    self.frames.extend_from_slice(&self.compressed);
                }
                _ => self.frames.extend_from_slice(&rest[..rest.len() - behind.len()]),
            }
            rest = behind;
        }
        let deflated = (window_bits > 0).then(|| DeflatedFrames { frames: Arc::from(&self.frames[..]), window_bits });
        give_back(&mut self.frames);
        give_back(&mut self.compressed);
        deflated
    }

    /// Compresses into the buffer for a receiver with such a window; whether that made the payload smaller.
    fn compress(&mut self, payload: &[u8], window_bits: u8) -> bool {
        let fits = window_bits_for(payload.len()) <= window_bits;
        let width = if fits { WINDOW_BITS_MAX } else { window_bits };
        let Some(index) = width.checked_sub(COMPRESSOR_BITS_MIN).map(usize::from) else { return false };
        let Some(place) = self.compressors.get_mut(index) else { return false };
        let compressor =
            place.get_or_insert_with(|| Compress::new_with_window_bits(Compression::new(LEVEL), false, width));
        compressor.reset();
        self.compressed.clear();
        self.compressed.reserve(compressed_bytes_max(payload.len()) + TAIL.len());
        let status = compressor.compress_vec(payload, &mut self.compressed, FlushCompress::Sync);
        // A flush that has filled the buffer may have more to say, but then it saves nothing.
        let is_whole = status.is_ok()
            && compressor.total_in() == payload.len() as u64
            && self.compressed.len() < self.compressed.capacity()
            && self.compressed.ends_with(TAIL);
        self.compressed.truncate(self.compressed.len().saturating_sub(TAIL.len()));
        is_whole && (self.bytes_min == 0 || self.compressed.len() < payload.len())
    }
}

/// Inflates for all connections of a thread.
#[derive(Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    buffer: Vec<u8>,
}

impl Inflater {
    /// The buffer to inflate into, which is to be brought back to [`Inflater::keep_buffer`].
    pub fn take_buffer(&mut self) -> Vec<u8> {
        mem::take(&mut self.buffer)
    }

    /// Keeps the buffer for the next message.
    pub fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        give_back(&mut buffer);
        self.buffer = buffer;
    }

    /// Inflates the payload of a message into `out`, replacing what is there (section 7.2.2).
    ///
    /// A payload that lacks the tail's last header, because it ends with a final block or with a whole flush, is taken
    /// as well; so is an empty one.
    ///
    /// # Errors
    /// 1009 as soon as there are more than `bytes_max` bytes; 1007 for data that is broken or incomplete, and for a text
    /// that is not UTF-8.
    pub fn inflate(
        &mut self,
        payload: &[u8],
        is_text: bool,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        out.clear();
        let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
        stream.reset(false);
        // No payload whose tail was taken off ends like this: its last bits are the header of an empty block.
        let has_tail = payload.is_empty() || payload.ends_with(TAIL);
        let parts: [&[u8]; 3] = [payload, if has_tail { &[] } else { TAIL }, END];
        inflate_parts(stream, parts, bytes_max, out)?;
        if is_text && !utf8::is_valid(out) { Err(INVALID_TEXT) } else { Ok(()) }
    }
}

/// Inflates `parts` as one stream, up to a final block at the end of the first or of the last of them.
fn inflate_parts(
    stream: &mut Decompress,
    parts: [&[u8]; 3],
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), Violation> {
    let mut final_blocks = 0;
    for (index, mut rest) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
        loop {
            if out.len() == out.capacity() {
                // One byte more than is allowed shows that there is more.
                let wanted = out.len().saturating_mul(2).max(INFLATED_BYTES_STEP).min(bytes_max.saturating_add(1));
                out.reserve_exact(wanted.saturating_sub(out.len()).max(1));
            }
            let (taken_before, len_before) = (stream.total_in(), out.len());
            let status = stream.decompress_vec(rest, out, FlushDecompress::None).map_err(|_| BAD_DATA)?;
            let taken = stream.total_in().saturating_sub(taken_before) as usize;
            rest = rest.get(taken..).unwrap_or_default();
            if out.len() > bytes_max {
                return Err(TOO_BIG);
            }
            if status == Status::StreamEnd {
                if rest.is_empty() && index != 1 {
                    return Ok(());
                }
                final_blocks += 1;
                begin_again(stream, final_blocks, out)?;
            }
            // With room left in the buffer nothing that was taken is still to come out.
            if rest.is_empty() && out.len() < out.capacity() {
                break;
            }
            if taken == 0 && out.len() == len_before {
                return Err(BAD_DATA);
            }
        }
    }
    Err(BAD_DATA)
}

/// A block that says that it is the last may be followed by others (section 7.2.1), which may refer to what was before.
fn begin_again(stream: &mut Decompress, final_blocks: usize, out: &[u8]) -> Result<(), Violation> {
    if final_blocks > FINAL_BLOCKS_MAX {
        return Err(BAD_DATA);
    }
    stream.reset(false);
    let window = out.get(out.len().saturating_sub(WINDOW_BYTES)..).unwrap_or_default();
    stream.set_dictionary(window).map_err(|_| BAD_DATA)?;
    Ok(())
}

/// The window that a message of so many bytes needs at most.
fn window_bits_for(payload_len: usize) -> u8 {
    (8..WINDOW_BITS_MAX).find(|&bits| payload_len <= 1 << bits).unwrap_or(WINDOW_BITS_MAX)
}

fn give_back(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(BUFFER_KEPT_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES_MAX: usize = 64 * 1024;

    fn inflate_to(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, u16> {
        let mut out = Vec::new();
        let outcome = Inflater::default().inflate(payload, false, bytes_max, &mut out);
        assert!(out.capacity() <= bytes_max.max(INFLATED_BYTES_STEP) + 1, "{} bytes", out.capacity());
        outcome.map(|()| out).map_err(|violation| violation.code)
    }

    fn inflate(payload: &[u8]) -> Result<Vec<u8>, u16> {
        inflate_to(payload, BYTES_MAX)
    }

    /// The payload of a message for a receiver with such a window, if it was compressed.
    fn deflate(payload: &[u8], window_bits: u8) -> Option<Vec<u8>> {
        let mut frame = Vec::new();
        Deflater::new(1).put_message(&mut frame, Opcode::Text, payload, window_bits);
        let (first, sent, rest) = split_frame(&frame).unwrap();
        assert!(rest.is_empty());
        match first {
            0xc1 => {
                assert!(sent.len() < payload.len());
                Some(sent.to_vec())
            }
            _ => {
                assert_eq!((first, sent), (0x81, payload));
                None
            }
        }
    }

    fn words(bytes: usize) -> Vec<u8> {
        let words = ["message", "room", "delivery", "the", "of", "invoice", "and", "tomorrow", "7", "please"];
        let mut state = 1u32;
        let mut text = Vec::new();
        while text.len() < bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend_from_slice(words[(state >> 24) as usize % words.len()].as_bytes());
            text.push(b' ');
        }
        text.truncate(bytes);
        text
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1u64;
        let byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(byte).take(bytes).collect()
    }

    #[test]
    fn examples_of_section_7_2_3() {
        let table: &[(&str, &[u8], &[u8])] = &[
            ("one block", &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], b"Hello"),
            ("with the window of the one before", &[0xf2, 0x00, 0x11, 0x00, 0x00], b""),
            ("no compression", &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00], b"Hello"),
            ("final block", &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], b"Hello"),
            ("two blocks", &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00], b"Hello"),
            ("empty", &[0x00], b""),
        ];
        for (name, payload, expected) in table {
            let outcome = inflate(payload);
            // The second message of 7.2.3.2 refers to the first, which nobody keeps here.
            let expected = if name.contains("before") { Err(1007) } else { Ok(expected.to_vec()) };
            assert_eq!(outcome, expected, "{name}");
        }
    }

    #[test]
    fn what_else_is_taken_and_what_is_not() {
        let hello_flushed = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00, 0x00, 0xff, 0xff];
        let hello_final = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let twice = [&hello_final[..], &hello_final, &[0]].concat();
        let taken: &[(&str, &[u8], &[u8])] = &[
            ("nothing at all", &[], b""),
            ("the tail left on", &hello_flushed, b"Hello"),
            ("a final block and no header behind it", &hello_final, b"Hello"),
            ("blocks behind a final one", &twice, b"HelloHello"),
            ("the empty block is the final one", &[0x01], b""),
        ];
        for (name, payload, expected) in taken {
            assert_eq!(inflate(payload), Ok(expected.to_vec()), "{name}");
        }
        let refused: &[(&str, &[u8])] = &[
            ("an unknown kind of block", &[0x06]),
            ("cut inside a block", &[0xf2, 0x48, 0xcd]),
            ("a length and its complement differ", &[0x00, 0x05, 0x00, 0xfa, 0xfe, 0x48]),
            ("a reference to before the start", &[0xf2, 0x00, 0x11, 0x00, 0x00]),
            ("garbage behind a final block", &[&hello_final[..], &[0xff, 0xff]].concat()),
            ("text", b"Hello, this is not compressed"),
        ];
        for (name, payload) in refused {
            assert_eq!(inflate(payload), Err(1007), "{name}");
        }
    }

    #[test]
    fn a_block_behind_a_final_one_refers_back() {
        // "Hello" in a final block, then the second message of 7.2.3.2, which is a reference to it.
        let payload = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xf2, 0x00, 0x11, 0x00, 0x00];
        assert_eq!(inflate(&payload), Ok(b"HelloHello".to_vec()));
        let finals = |count: usize| [&[3, 0].repeat(count)[..], &[0]].concat();
        assert_eq!(inflate(&finals(FINAL_BLOCKS_MAX - 1)), Ok(Vec::new()));
        assert_eq!(inflate(&finals(FINAL_BLOCKS_MAX + 1)), Err(1007));
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let zeros = vec![0; 10_000_000];
        let bomb = deflate(&zeros, 15).unwrap();
        assert!(bomb.len() < 100_000);
        // The helper checks that the buffer has not grown beyond the limit.
        for bytes_max in [1, 1000, 4096, BYTES_MAX, 9_999_999] {
            assert_eq!(inflate_to(&bomb, bytes_max), Err(1009), "{bytes_max}");
        }
        assert!(inflate_to(&bomb, 10_000_000).unwrap() == zeros);
    }

    #[test]
    fn the_limit_counts_inflated_bytes() {
        for bytes in [1, 4095, 4096, 4097, 8192, 10_000] {
            let text = words(bytes);
            let payload = deflate(&text, 15).unwrap_or_else(|| {
                // Too short to shrink: a stored block.
                [&[0][..], &(bytes as u16).to_le_bytes(), &(!(bytes as u16)).to_le_bytes(), &text, &[0]].concat()
            });
            assert_eq!(inflate_to(&payload, bytes), Ok(text), "{bytes}");
            assert_eq!(inflate_to(&payload, bytes - 1), Err(1009), "{bytes}");
        }
    }

    #[test]
    fn text_must_be_utf8() {
        let mut inflater = Inflater::default();
        let mut out = Vec::new();
        let broken = deflate(&[0xff; 100], 15).unwrap();
        assert_eq!(inflater.inflate(&broken, false, BYTES_MAX, &mut out), Ok(()));
        assert_eq!(inflater.inflate(&broken, true, BYTES_MAX, &mut out), Err(INVALID_TEXT));
        let text = deflate("äöü".repeat(20).as_bytes(), 15).unwrap();
        assert_eq!(inflater.inflate(&text, true, BYTES_MAX, &mut out), Ok(()));
        assert_eq!(out, "äöü".repeat(20).as_bytes());
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        assert_eq!(deflate(&noise(5000), 15), None);
        assert_eq!(deflate(b"", 15), None);
        assert_eq!(deflate(b"x", 15), None);
        assert_eq!(deflate(&words(5000), 0), None, "the receiver takes nothing compressed");
        let mut out = Vec::new();
        Deflater::new(1000).put_message(&mut out, Opcode::Binary, &words(999), 15);
        assert_eq!(out[0], 0x82, "below the threshold");
        out.clear();
        Deflater::new(1000).put_message(&mut out, Opcode::Binary, &words(1000), 15);
        assert_eq!(out[0], 0xc2);
    }

    #[test]
    fn a_message_fits_the_window_of_its_receiver() {
        for bytes in [200, 256, 257, 512, 513, 3000, 33_000, 100_000] {
            let text = words(bytes);
            for window_bits in 8..=15 {
                let sent = deflate(&text, window_bits);
                assert_eq!(sent.is_none(), window_bits == 8 && bytes > 256, "{bytes} {window_bits}");
                let Some(sent) = sent else { continue };
                assert!(inflate_to(&sent, bytes) == Ok(text.clone()), "{bytes} {window_bits}");
            }
        }
        // Noise repeats nothing but itself: it shrinks only by references that are as long as it is.
        for window_bits in 9..=15 {
            let beyond = noise((1 << window_bits) + 1);
            assert_eq!(deflate(&beyond.repeat(2), window_bits), None, "{window_bits}");
            let within = noise((1 << window_bits) - 300);
            assert!(deflate(&within.repeat(2), window_bits).is_some(), "{window_bits}");
        }
    }

    #[test]
    fn a_row_of_frames_is_compressed_message_by_message() {
        let mut frames = Vec::new();
        let texts = [words(100), words(2000), words(512), words(511), words(700)];
        texts.iter().for_each(|text| put_frame(&mut frames, Opcode::Text, &[text]));
        put_frame(&mut frames, Opcode::Ping, &[b"still there?"]);
        let mut deflater = Deflater::new(512);
        let deflated = deflater.deflate_frames(&frames).unwrap();
        assert_eq!(deflated.window_bits, 11);
        assert!(deflated.frames.len() < frames.len() / 2);
        let mut rest = &deflated.frames[..];
        for (text, compressed) in texts.iter().zip([false, true, true, false, true]) {
            let (first, payload, behind) = split_frame(rest).unwrap();
            let received = if compressed { inflate(payload).unwrap() } else { payload.to_vec() };
            assert_eq!((first, &received), (if compressed { 0xc1 } else { 0x81 }, text));
            rest = behind;
        }
        assert_eq!(split_frame(rest).unwrap().0, 0x89);
        assert_eq!(deflater.deflate_frames(&frames), Some(deflated), "no message knows of an earlier one");
        assert_eq!(Deflater::new(2001).deflate_frames(&frames), None);
        assert_eq!(Deflater::new(usize::MAX).deflate_frames(&frames), None);
        assert_eq!(deflater.deflate_frames(&[]), None);
    }

    #[test]
    fn buffers_shrink_after_an_unusual_message() {
        let (mut deflater, mut inflater) = (Deflater::new(1), Inflater::default());
        let text = words(1_000_000);
        let mut frame = Vec::new();
        put_frame(&mut frame, Opcode::Text, &[&text]);
        let deflated = deflater.deflate_frames(&frame).unwrap();
        let mut buffer = inflater.take_buffer();
        let (_, payload, _) = split_frame(&deflated.frames).unwrap();
        inflater.inflate(payload, true, text.len(), &mut buffer).unwrap();
        assert!(buffer == text);
        inflater.keep_buffer(buffer);
        for buffer in [&deflater.frames, &deflater.compressed, &inflater.buffer] {
            assert!(buffer.capacity() <= BUFFER_KEPT_BYTES);
        }
    }

    fn message() -> impl Strategy<Value = Vec<u8>> {
        let noise = prop::collection::vec(any::<u8>(), 0..3000);
        let text = (1usize..40_000, any::<usize>())
            .prop_map(|(bytes, skip)| words(bytes + skip % 1000).split_off(skip % 1000));
        let run = (any::<u8>(), 0usize..70_000).prop_map(|(byte, bytes)| vec![byte; bytes]);
        prop::collection::vec(prop_oneof![noise, text, run], 1..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_compressed_comes_back(messages in prop::collection::vec((message(), 8u8..=15), 1..4)) {
            // One of each for all messages, as on a thread.
            let (mut deflater, mut inflater, mut out) = (Deflater::new(1), Inflater::default(), Vec::new());
            for (message, window_bits) in messages {
                let mut frame = Vec::new();
                deflater.put_message(&mut frame, Opcode::Binary, &message, window_bits);
                let (first, payload, _) = split_frame(&frame).unwrap();
                if first & DEFLATED == 0 {
                    prop_assert!(payload == message);
                    continue;
                }
                prop_assert!(payload.len() < message.len());
                prop_assert_eq!(inflater.inflate(payload, false, message.len(), &mut out), Ok(()));
                prop_assert!(out == message);
            }
        }

        #[test]
        fn garbage_is_refused_or_stays_within_the_limit(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            let outcome = Inflater::default().inflate(&payload, false, 1000, &mut out);
            prop_assert!(outcome.is_err() || out.len() <= 1000);
            prop_assert!(outcome.is_ok_and(|()| true) || outcome.is_err_and(|violation| [1007, 1009].contains(&violation.code)));
        }
    }

    #[test]
    fn everything_is_compressed_if_that_is_asked_for() {
        let mut deflater = Deflater::new(0);
        // The bytes of a hash do not get smaller.
        let random: Vec<u8> =
            (0..70_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
        for payload in [&b""[..], b"x", b"0123456789abcdef", &random[..300], &random] {
            for window_bits in [9, 15] {
                let mut out = Vec::new();
                deflater.put_message(&mut out, Opcode::Binary, payload, window_bits);
                let (first, compressed, rest) = split_frame(&out).unwrap();
                assert_eq!((first, rest), (0x80 | DEFLATED | 2, &[][..]), "{} bytes", payload.len());
                assert_eq!(inflate_to(compressed, payload.len()).as_deref(), Ok(payload));
            }
        }
    }
}
