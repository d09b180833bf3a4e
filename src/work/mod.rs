//! The threads that may block: the store, which is what is kept on disk; crews for jobs of other kinds; and what looks
//! after files that may change.
//!
//! Owns everything that may block. The store takes what [`chat::store`](crate::chat::store) asks and answers in the same words;
//! it knows no connection, no member and no burst, and nothing in `chat`, `wire` or `reactor` may use it.

pub mod authorizer;
pub mod backup;
mod batch;
pub mod certificates;
mod checkpointer;
mod connections;
pub mod crew;
pub mod database;
mod failure;
mod feed;
pub mod fetch;
pub mod import;
mod import_line;
pub mod keyring;
pub mod ledger;
mod log_file;
mod members;
mod places;
pub mod reader;
mod readers;
pub mod retention;
pub mod revocations;
mod room;
pub mod schema;
pub mod store;
pub mod transfer;
pub mod watch;
mod writer;

#[cfg(test)]
mod database_tests;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod retention_tests;
