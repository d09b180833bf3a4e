//! Handles and names.
//!
//! A handle is a plain number that crosses threads and the poll; a name is shared text with its keyed hash beside it, so
//! that no table hashes it twice and no message copies it.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use triomphe::ThinArc;

use crate::wire::value::{Id, IdRef};

/// One event-loop thread, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

impl ShardId {
    /// A number that no shard has; there are never so many.
    pub const NOWHERE: Self = Self((1 << 12) - 1);

    /// The shard as an index into per-shard tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A connection: shard (12 bits), generation (28 bits), slot (24 bits). It is also the token of its socket in the poll,
/// so an event that comes late for a slot that was given to somebody else is seen as stale.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 28;

/// The number of slots that a shard can have.
pub const SLOTS_MAX: usize = (1 << SLOT_BITS) - 1;

impl ConnId {
    /// Puts a handle together; a generation is taken modulo 2^28.
    pub fn new(shard: ShardId, generation: u32, slot: u32) -> Self {
        debug_assert!((slot as usize) <= SLOTS_MAX);
        let generation = u64::from(generation) & ((1 << GENERATION_BITS) - 1);
        Self(u64::from(shard.0) << (SLOT_BITS + GENERATION_BITS) | generation << SLOT_BITS | u64::from(slot))
    }

    /// The handle of a poll token.
    pub fn from_token(token: u64) -> Self {
        Self(token)
    }

    /// The token for the poll.
    pub fn token(self) -> u64 {
        self.0
    }

    /// The shard that owns the connection.
    pub fn shard(self) -> ShardId {
        ShardId((self.0 >> (SLOT_BITS + GENERATION_BITS)) as u16)
    }

    /// How often the slot had been given out before, modulo 2^28.
    pub fn generation(self) -> u32 {
        ((self.0 >> SLOT_BITS) & ((1 << GENERATION_BITS) - 1)) as u32
    }

    /// The place in the shard's slab.
    pub fn slot(self) -> u32 {
        (self.0 & ((1 << SLOT_BITS) - 1)) as u32
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", self.shard().0, self.slot(), self.generation())
    }
}

/// The 128-bit key of all maps and of [`home`]: who does not know it cannot aim names at one bucket or shard.
#[derive(Clone, Copy)]
pub struct HashKey {
    k0: u64,
    k1: u64,
}

impl HashKey {
    /// The key from 16 random bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self { k0: value as u64, k1: (value >> 64) as u64 }
    }

    /// The two halves, for hashers that take them.
    pub fn halves(&self) -> (u64, u64) {
        (self.k0, self.k1)
    }

    /// SipHash-1-3 of some text.
    pub fn hash(&self, text: &str) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write(text.as_bytes());
        hasher.finish()
    }

    /// SipHash-1-3 of a number.
    pub fn hash_number(&self, number: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write_u64(number);
        hasher.finish()
    }

    /// The opaque, stable public name of a connection: 16 hexadecimal digits.
    pub fn connection_id(&self, conn: ConnId) -> String {
        let mut hasher = SipHasher13::new_with_keys(!self.k0, self.k1);
        hasher.write_u64(conn.token());
        format!("{:016x}", hasher.finish())
    }
}

/// The shard of `shards` at which the room or user with this hash is at home.
pub fn home(hash: u64, shards: usize) -> ShardId {
    // The high half of a product spreads evenly and needs no division (Lemire, 2019). The halves are swapped first: the
    // tables tag their entries with the highest bits, which must still differ among the names of one home.
    ShardId(((u128::from(hash.rotate_left(32)) * shards as u128) >> 64) as u16)
}

macro_rules! shared_name {
    ($(#[$doc:meta])* $name:ident, $header:ty) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(ThinArc<$header, u8>);

        impl $name {
            /// The text.
            pub fn text(&self) -> &str {
                // The bytes come from a `str` in every constructor; were they not, an empty name is the safe answer.
                std::str::from_utf8(&self.0.slice).unwrap_or_default()
            }

            fn same_text(&self, other: &Self) -> bool {
                self.0.as_ptr() == other.0.as_ptr() || self.0.slice == other.0.slice
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.hash_code() == other.hash_code() && self.same_text(other)
            }
        }

        impl Eq for $name {}

        impl std::hash::Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write_u64(self.hash_code());
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.text())
            }
        }
    };
}

shared_name! {
    /// The name of a room, shared, with its keyed hash. One thin pointer.
    RoomName, u64
}

impl RoomName {
    /// A room's name; `hash` is [`HashKey::hash`] of the text.
    pub fn new(text: &str, hash: u64) -> Self {
        Self(ThinArc::from_header_and_slice(hash, text.as_bytes()))
    }

    /// The keyed hash of the text.
    pub fn hash_code(&self) -> u64 {
        self.0.header.header
    }
}

/// The bit of a user's hash that holds whether the id is a number: one that no table and no [`home`] looks at first.
const NUMERIC: u64 = 1 << 56;

shared_name! {
    /// A user, shared, with its keyed hash and the JSON form that it has in what is sent out. One thin pointer. `7` and
    /// `"7"` are the same user.
    UserId, u64
}

impl UserId {
    /// A user's name; `hash` is [`HashKey::hash`] of the text.
    pub fn new(id: &Id, hash: u64) -> Self {
        let numeric = if id.is_numeric() { NUMERIC } else { 0 };
        Self(ThinArc::from_header_and_slice(hash & !NUMERIC | numeric, id.text().as_bytes()))
    }

    /// The keyed hash of the text, but for one bit.
    pub fn hash_code(&self) -> u64 {
        self.0.header.header & !NUMERIC
    }

    /// The user as it is written.
    pub fn as_ref(&self) -> IdRef<'_> {
        IdRef { text: self.text(), numeric: self.is_numeric() }
    }

    /// Whether it goes out as a JSON number.
    pub fn is_numeric(&self) -> bool {
        self.0.header.header & NUMERIC != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conn_id_keeps_its_parts() {
        let id = ConnId::new(ShardId(4095), (1 << 28) - 1, SLOTS_MAX as u32);
        assert_eq!((id.shard(), id.generation(), id.slot()), (ShardId(4095), (1 << 28) - 1, SLOTS_MAX as u32));
        assert_eq!(ConnId::new(ShardId(1), 1 << 28, 7).generation(), 0);
        assert_eq!(ConnId::from_token(id.token()), id);
    }

    #[test]
    fn homes_cover_all_shards() {
        let key = HashKey::new([7; 16]);
        let mut seen = [0; 4];
        for n in 0..4000 {
            seen[home(key.hash(&format!("room-{n}")), 4).index()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 800), "{seen:?}");
    }

    #[test]
    fn a_number_and_its_text_are_one_user() {
        let key = HashKey::new([7; 16]);
        let number = UserId::new(&Id::parse_raw("7").unwrap(), key.hash("7"));
        let text = UserId::new(&Id::from_text("7").unwrap(), key.hash("7"));
        assert_eq!(number, text);
        assert!(number.is_numeric() && !text.is_numeric());
        assert_eq!(size_of::<UserId>(), 8);
    }
}
