//! Sizland Chat.

#![forbid(unsafe_code)]

pub mod auth;
pub mod chat;
pub mod config;
pub mod dev;
pub mod error;
pub mod log;
pub mod reactor;
pub mod server;
pub mod wire;
