//! Handles and names.
//!
//! A handle is a plain number that crosses threads and the poll; a name is text with its keyed hash beside it, so that no
//! table hashes it twice. Rooms' names and long ids of users are shared, short ids stand where they are used.

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

/// The name of a room, shared, with its keyed hash. One thin pointer.
#[derive(Clone)]
pub struct RoomName(ThinArc<u64, u8>);

impl RoomName {
    /// A room's name; `hash` is [`HashKey::hash`] of the text.
    pub fn new(text: &str, hash: u64) -> Self {
        Self(ThinArc::from_header_and_slice(hash, text.as_bytes()))
    }

    /// The text.
    pub fn text(&self) -> &str {
        as_text(&self.0.slice)
    }

    /// The keyed hash of the text.
    pub fn hash_code(&self) -> u64 {
        self.0.header.header
    }
}

impl PartialEq for RoomName {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ptr() == other.0.as_ptr() || self.hash_code() == other.hash_code() && self.0.slice == other.0.slice
    }
}

/// The longest id of a user that needs no allocation: any number of ten digits.
const INLINE_BYTES: usize = 10;

/// Whether the id is a number, in the header of one that is shared: above the 32 bits of its hash.
const NUMERIC: u64 = 1 << 63;

/// A user, with its keyed hash and the JSON form that it has in what is sent out: 16 bytes, without an allocation for a
/// short id. `7` and `"7"` are the same user.
#[derive(Clone)]
pub struct UserId(Form);

#[derive(Clone)]
enum Form {
    Inline(Inline),
    /// The hash, of 32 bits as well, and the text.
    Shared(ThinArc<u64, u8>),
}

#[derive(Clone, Copy)]
struct Inline {
    length: u8,
    is_numeric: bool,
    text: [u8; INLINE_BYTES],
    hash: u32,
}

impl UserId {
    /// A user's name; `hash` is [`HashKey::hash`] of the text.
    pub fn new(id: &Id, hash: u64) -> Self {
        let (bytes, hash) = (id.text().as_bytes(), (hash >> 32) as u32);
        if bytes.len() > INLINE_BYTES {
            let numeric = if id.is_numeric() { NUMERIC } else { 0 };
            return Self(Form::Shared(ThinArc::from_header_and_slice(u64::from(hash) | numeric, bytes)));
        }
        let mut text = [0; INLINE_BYTES];
        text[..bytes.len()].copy_from_slice(bytes);
        Self(Form::Inline(Inline { length: bytes.len() as u8, is_numeric: id.is_numeric(), text, hash }))
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Inline(inline) => &inline.text[..usize::from(inline.length)],
            Form::Shared(shared) => &shared.slice,
        }
    }

    fn hash_bits(&self) -> u32 {
        match &self.0 {
            Form::Inline(inline) => inline.hash,
            Form::Shared(shared) => shared.header.header as u32,
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        as_text(self.bytes())
    }

    /// A hash of the user: 32 bits of the keyed hash of the text, spread over 64, since tables look at both ends.
    pub fn hash_code(&self) -> u64 {
        // Multiplicative hashing by the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4).
        u64::from(self.hash_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The user as it is written.
    pub fn as_ref(&self) -> IdRef<'_> {
        IdRef { text: self.text(), numeric: self.is_numeric() }
    }

    /// Whether it goes out as a JSON number.
    pub fn is_numeric(&self) -> bool {
        match &self.0 {
            Form::Inline(inline) => inline.is_numeric,
            Form::Shared(shared) => shared.header.header & NUMERIC != 0,
        }
    }
}

impl PartialEq for UserId {
    fn eq(&self, other: &Self) -> bool {
        self.hash_bits() == other.hash_bits() && self.bytes() == other.bytes()
    }
}

/// The bytes come from a `str` in every constructor; were they not, an empty name is the safe answer.
fn as_text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

macro_rules! hashed_name {
    ($name:ident) => {
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

hashed_name!(RoomName);
hashed_name!(UserId);

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
        assert_eq!((size_of::<UserId>(), size_of::<Option<UserId>>()), (16, 16));
    }

    #[test]
    fn an_id_is_the_same_whether_it_fits_or_is_shared() {
        let key = HashKey::new([7; 16]);
        let of = |text: &str| UserId::new(&Id::from_text(text).unwrap(), key.hash(text));
        for length in 1..40 {
            let text: String = "0123456789".chars().cycle().skip(1).take(length).collect();
            let (user, other) = (of(&text), of(&text));
            // What is longer is no integer that everybody can read.
            let number = Id::parse_raw(&text).filter(|_| length < 16);
            let number = number.map_or_else(|| of(&text), |id| UserId::new(&id, key.hash(&text)));
            assert_eq!((user.text(), user.is_numeric(), user.hash_code()), (&*text, false, other.hash_code()));
            assert_eq!((&user, &user, number.text()), (&other, &number, &*text));
            assert_eq!(user.hash_code(), number.hash_code());
            assert_ne!(user, of(&text.replacen('1', "x", 1)), "{text}");
            assert_eq!(matches!(user.0, Form::Inline(_)), length <= INLINE_BYTES);
        }
    }
}
