//! The event loop: what a shard decides is done to real sockets here.
//!
//! [`Turn`](turn::Reactor) is generic over [`Io`](io::Io); `mio_io` is the one that makes system calls, the simulation
//! brings another. Nothing here knows a room, a user or a message.

pub mod io;
pub mod jobs;
pub mod mailbox;
pub mod mio_io;
pub mod moderation;
pub mod neighbours;
pub mod tls;
pub mod turn;
pub mod unfinished;

#[cfg(test)]
mod tls_tests;
#[cfg(test)]
mod turn_tests;
