//! Bytes to values and back: WebSocket frames, HTTP/1.1, and the JSON vocabulary of the protocol.
//!
//! Pure functions and small state machines over caller-owned buffers. Nothing here knows a connection, a room or a clock.

pub mod body;
pub mod client;
pub mod decoder;
pub mod deflate;
mod digest;
pub mod event;
pub mod extensions;
pub mod http;
#[cfg(test)]
mod http_tests;
mod mask;
pub mod masking;
pub mod message;
pub(crate) mod object;
pub mod proxy;
pub mod response;
pub mod rest_body;
pub mod stored;
pub mod target;
pub(crate) mod timestamp;
pub mod upgrade;
mod utf8;
pub mod value;
pub mod websocket;
