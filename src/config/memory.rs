//! The bound on memory that follows from a configuration.
//!
//! Owns the sum and what one of each thing costs at most. Knows nothing about how it is held.

use std::fmt;

use super::{Config, Store};
use crate::access::Mode;
use crate::auth::TOKEN_BYTES_MAX;

/// The program, its log queue and the allocator's slack.
pub const BASE_BYTES: u64 = 32 << 20;
/// A thread's stack, read buffer and wheel.
pub const THREAD_BYTES: u64 = 8 << 20;
/// A thread's compressors, one for each width of window, its inflater, and buffers for a segment of usual size.
pub const CODEC_BYTES: u64 = 3 << 20;
/// A connection with its identity, index entries and two rooms.
pub const SLOT_BYTES: u64 = 320;
/// A session of TLS with its keys, as measured with the allocator's share.
pub const TLS_SESSION_BYTES: u64 = 5 << 10;
/// A room that a connection is in, beyond the two that its slot holds.
pub const MEMBERSHIP_BYTES: u64 = 40;
/// Rooms that a slot holds.
pub const ROOMS_IN_SLOT: u64 = 2;
/// A room's state without members and events.
pub const ROOM_BYTES: u64 = 1024;
/// A join under way.
pub const PENDING_JOIN_BYTES: u64 = 128;
/// An idempotency entry or a revocation.
pub const ENTRY_BYTES: u64 = 512;
/// A user who owes something, in one of the two tables of a thread.
pub const DEBTOR_BYTES: u64 = 96;
/// A verified token that is remembered, without the rooms that it grants.
pub const TOKEN_BYTES: u64 = 512;
/// What the rooms that a token grants take at most, by the bytes of the token: four for a room of one letter become a
/// place in a list and a block of the allocator.
pub const GRANTS_FACTOR: u64 = 14;
/// What a room's home knows of a user, where it has to know who may enter.
pub const GATE_ENTRY_BYTES: u64 = 96;
/// An address whose connections are counted.
pub const ADDRESS_BYTES: u64 = 48;
/// An answer of the ERP that is remembered, with its names of usual length.
pub const PERMIT_BYTES: u64 = 512;
/// The page caches of the store: 8 MiB to write, 4 for each of two that read and for the one that writes the log back;
/// and the stacks and prepared statements of their threads.
pub const STORE_BASE_BYTES: u64 = 32 << 20;
/// An id of a message that is not in the store's table yet, with its place in the tree; most are shorter.
pub const RECENT_ID_BYTES: u64 = 192;
/// A read of the store that waits.
pub const READ_BYTES: u64 = 256;
/// A batch's place in a mailbox.
pub const BATCH_BYTES: u64 = 64;
/// The kernel doubles the send buffer that is asked of it (socket(7), `SO_SNDBUF`).
pub const SEND_BUFFER_FACTOR: u64 = 2;
/// What a send buffer takes beyond that: the kernel looks whether it is full before it begins a segment, which then becomes
/// as long as it can, 64 KiB unless `gso_max_size` of the device was raised. As measured, up to one with a peer that does not
/// read, and up to two while data moves.
pub const SEND_BUFFER_EXCESS_BYTES: u64 = 2 << 16;

/// What the process and, for its sockets, the kernel hold at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// The parts of the process, by name, in bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// The send buffers in the kernel, in bytes.
    pub kernel_bytes: u64,
}

impl MemoryBound {
    /// What the process holds at most, in bytes.
    pub fn process_bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|(_, bytes)| *bytes);
        parts.fold(0, u64::saturating_add)
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes) in &self.parts {
            writeln!(f, "  {name:<34} {:>10}", mebibytes(*bytes))?;
        }
        writeln!(f, "  {:<34} {:>10}", "process", mebibytes(self.process_bytes()))?;
        writeln!(f, "  {:<34} {:>10}", "kernel, send buffers", mebibytes(self.kernel_bytes))
    }
}

/// The bound for a configuration.
pub fn memory_bound(config: &Config) -> MemoryBound {
    let limits = &config.limits;
    let threads = count(config.threads);
    let connections = count(limits.connections_max);
    let rooms_beyond = count(limits.rooms_per_connection_max).saturating_sub(ROOMS_IN_SLOT);
    // Every thread keeps its own.
    let entries = threads * (count(limits.idempotency_entries_max) + count(limits.revocations_max));
    let addresses = match (limits.address_connections_max, limits.address_connects_per_second) {
        (0, 0) => 0,
        _ => connections + threads * count(limits.addresses_max),
    };
    let tables = [
        threads * count(limits.pending_joins_max) * PENDING_JOIN_BYTES,
        threads * count(limits.mailbox_batches_max) * BATCH_BYTES,
        entries * ENTRY_BYTES,
        threads * count(limits.rate_users_max) * 2 * DEBTOR_BYTES,
        addresses * ADDRESS_BYTES,
    ];
    // A token that is being checked is there as it came and, for the thread that looks at it, taken apart.
    let token_bytes = count(TOKEN_BYTES_MAX);
    let grants_bytes = if config.access.has(Mode::Claims) { GRANTS_FACTOR * token_bytes } else { 0 };
    let checks = count(limits.token_checks_max) * (2 * token_bytes + TOKEN_BYTES + grants_bytes);
    let remembered = count(limits.token_cache_max) * (TOKEN_BYTES + grants_bytes);
    let has_public_keys = !config.key_files.pem.is_empty() || config.key_files.jwks.is_some();
    let is_gated = config.access.has(Mode::Members) || config.access.has(Mode::Ask);
    let known = if is_gated { connections * count(limits.rooms_per_connection_max) } else { 0 };
    let store = match config.store {
        Store::None => 0,
        Store::Memory | Store::File(_) => {
            let reads = count(limits.store_reads_max) * READ_BYTES;
            let ids = 2 * count(limits.store_recent_ids_max) * RECENT_ID_BYTES;
            STORE_BASE_BYTES + count(limits.store_bytes_max) + reads + ids
        }
    };
    let tls = match config.tls {
        None => 0,
        Some(_) => connections * TLS_SESSION_BYTES + count(limits.tls_pool_bytes),
    };
    let permits = match config.access_point {
        None => 0,
        Some(_) => (count(limits.access_entries_max) + count(limits.access_questions_max)) * PERMIT_BYTES,
    };
    // While a message is inflated or compressed, its buffers are as large as it is.
    let codec = CODEC_BYTES + count(limits.message_bytes_max) + 2 * count(limits.body_bytes_max);
    let send_buffer = count(limits.socket_send_buffer_bytes) * SEND_BUFFER_FACTOR + SEND_BUFFER_EXCESS_BYTES;
    MemoryBound {
        parts: vec![
            ("base", BASE_BYTES + threads * THREAD_BYTES),
            ("connections", connections * SLOT_BYTES),
            ("TLS, its sessions and pool", tls),
            ("rooms beyond two per connection", connections * rooms_beyond * MEMBERSHIP_BYTES),
            ("rooms", count(limits.rooms_max) * ROOM_BYTES),
            ("tokens, checked and remembered", if has_public_keys { checks + remembered } else { 0 }),
            ("access to rooms", connections * grants_bytes + known * GATE_ENTRY_BYTES),
            ("segment pool", count(limits.segment_pool_bytes)),
            ("direct pool", count(limits.direct_pool_bytes)),
            ("input pool", count(limits.input_pool_bytes)),
            ("history pool", count(limits.history_pool_bytes)),
            ("store, its queue and caches", store),
            ("compression", if config.deflate { threads * codec } else { 0 }),
            ("tables and mailboxes", tables.iter().sum::<u64>() + permits),
        ],
        kernel_bytes: connections * send_buffer,
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
