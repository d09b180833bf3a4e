//! The store: what is kept on disk, and the threads that wait for it.
//!
//! Owns everything that may block. It takes what [`chat::store`](crate::chat::store) asks and answers in the same words;
//! it knows no connection, no member and no burst, and nothing in `chat`, `wire` or `reactor` may use it.

pub mod backup;
mod batch;
mod checkpointer;
mod connections;
pub mod database;
mod failure;
mod feed;
pub mod import;
mod import_line;
pub mod ledger;
mod members;
pub mod reader;
mod readers;
pub mod retention;
pub mod schema;
pub mod store;
pub mod transfer;
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
