//! The marker that every published message carries as its id: who sent it, which one it is, and when.
//!
//! A marker is `~L` and 25 characters of six bits each, so it passes through JSON unescaped and is found by a plain byte
//! search whatever the order of keys. The run's number makes the markers of another run, or of an earlier one kept by the
//! server, not match.

/// Length of a marker in bytes.
pub const MARKER_BYTES: usize = 27;
/// Length of the part that is the same for all messages of a run.
pub const PREFIX_BYTES: usize = 5;

const ALPHABET: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const ROOM_CHARS: usize = 3;
const PUBLISHER_CHARS: usize = 2;
const COUNTER_CHARS: usize = 5;
const TIME_CHARS: usize = 6;
const INVALID: u8 = 0xff;
const VALUES: [u8; 256] = values();

/// The highest counter that a marker can carry.
pub const COUNTER_MAX: u32 = (1 << (6 * COUNTER_CHARS)) - 1;

/// What a message says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Room number.
    pub room: u32,
    /// Number of the publisher within its room.
    pub publisher: u32,
    /// Number of the message of this publisher, from 0.
    pub counter: u32,
    /// When it was sent, in microseconds of the run's clock.
    pub sent_us: u64,
    /// How long after its scheduled time it was sent, in microseconds; 0 where there is no schedule.
    pub late_us: u64,
}

/// The bytes that begin each marker of a run.
pub fn prefix(run: u32) -> [u8; PREFIX_BYTES] {
    let mut bytes = *b"~L...";
    put(&mut bytes[2..], u64::from(run));
    bytes
}

impl Marker {
    /// Writes what follows the prefix.
    pub fn encode(&self, prefix: &[u8; PREFIX_BYTES]) -> [u8; MARKER_BYTES] {
        let mut bytes = [0; MARKER_BYTES];
        bytes[..PREFIX_BYTES].copy_from_slice(prefix);
        let mut at = PREFIX_BYTES;
        for (chars, value) in [
            (ROOM_CHARS, u64::from(self.room)),
            (PUBLISHER_CHARS, u64::from(self.publisher)),
            (COUNTER_CHARS, u64::from(self.counter)),
            (TIME_CHARS, self.sent_us),
            (TIME_CHARS, self.late_us),
        ] {
            put(&mut bytes[at..at + chars], value);
            at += chars;
        }
        bytes
    }

    /// Reads a marker from bytes that begin with the prefix; `None` if they are cut short or hold another character.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(PREFIX_BYTES..MARKER_BYTES)?;
        let mut take = |chars: usize| {
            let (head, tail) = rest.split_at_checked(chars)?;
            rest = tail;
            head.iter().try_fold(0_u64, |sum, byte| {
                let value = VALUES[usize::from(*byte)];
                (value != INVALID).then_some(sum << 6 | u64::from(value))
            })
        };
        // Each part is narrower than the type it goes into.
        Some(Self {
            room: take(ROOM_CHARS)? as u32,
            publisher: take(PUBLISHER_CHARS)? as u32,
            counter: take(COUNTER_CHARS)? as u32,
            sent_us: take(TIME_CHARS)?,
            late_us: take(TIME_CHARS)?,
        })
    }
}

/// Writes the low bits of `value`, six to a character, filling `target`.
fn put(target: &mut [u8], mut value: u64) {
    for byte in target.iter_mut().rev() {
        *byte = ALPHABET[(value & 63) as usize];
        value >>= 6;
    }
}

const fn values() -> [u8; 256] {
    let mut table = [INVALID; 256];
    let mut i = 0;
    while i < ALPHABET.len() {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_survives_the_round_trip() {
        let marker = Marker { room: 99_999, publisher: 4_095, counter: COUNTER_MAX, sent_us: 299_999_999, late_us: 17 };
        let bytes = marker.encode(&prefix(123_456));
        assert_eq!(Marker::decode(&bytes), Some(marker));
        assert_eq!(Marker::decode(&bytes[..MARKER_BYTES - 1]), None);
        let mut broken = bytes;
        broken[20] = b'"';
        assert_eq!(Marker::decode(&broken), None);
    }
}
