//! The chat itself, pure and deterministic.
//!
//! Time and bytes come in as arguments (`handle_*`), effects go out as values (`poll_*`). Nothing here reads a clock,
//! opens a socket, starts a thread or draws a random number from outside its seed.

pub mod address_homes;
pub mod addresses;
mod admission;
pub mod burst;
pub mod closing;
pub mod connection;
pub mod denial;
pub mod desk;
pub mod drain;
pub mod echo;
mod entry;
pub mod envelope;
pub mod errands;
pub mod history;
mod homes;
pub mod http;
pub mod ids;
mod invariants;
pub mod job;
mod liveness;
pub mod mail;
mod membership;
pub mod orderer;
pub mod outbox;
pub mod permits;
pub mod presence;
mod proxied;
pub mod queues;
pub mod rates;
mod rest;
pub mod revocations;
pub mod room;
pub mod routes;
mod session;
pub mod shard;
pub mod slack;
pub mod store;
pub mod tables;
pub mod tokens;
pub mod typing;
pub mod user_homes;
pub mod wheel;

/// The time of a turn, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a monotonic clock that starts near 0: all deadlines.
    pub tick_ms: u64,
    /// Milliseconds since the Unix epoch: timestamps and token expiry, nothing else.
    pub wall_ms: u64,
}
