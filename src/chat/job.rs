//! What a shard hands to threads that may block, and what they answer.
//!
//! Values only. Which threads there are, and how a [`Job`] gets to those of its kind, is not known here; each has exactly
//! one [`Done`], which comes through the shard's mailbox, or is given back at once as lost.

use super::store;

/// What a shard hands out at the end of a turn.
#[derive(Debug)]
pub enum Job {
    /// For the store.
    Store(store::Job),
}

/// What comes back.
#[derive(Debug)]
pub enum Done {
    /// From the store.
    Store(store::Done),
}
