//! Blocking threads: the store.

pub(crate) mod checkpointer;
pub(crate) mod failure;
pub(crate) mod readers;
pub(crate) mod writer;
