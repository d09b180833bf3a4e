//! What a shard hands to threads that may block, and what they answer.
//!
//! Values only. Which threads there are, and how a [`Job`] gets to those of its kind, is not known here; each has exactly
//! one [`Done`], which comes through the shard's mailbox, or is given back at once as lost.

use super::ids::{ConnId, RoomName, UserId};
use super::store;
use crate::access::Permit;
use crate::auth::{Check, Claims, TokenError};

/// What a shard hands out at the end of a turn.
#[derive(Debug)]
pub enum Job {
    /// For the store.
    Store(store::Job),
    /// A signature to be verified.
    Verify(Box<Verify>),
    /// Where keys come from, to be asked once more for the sake of this connection's token.
    SeekKey(ConnId),
    /// Whether a user may enter a room, for the ERP to say.
    Permit(Box<Question>),
}

/// What comes back.
#[derive(Debug)]
pub enum Done {
    /// From the store.
    Store(store::Done),
    /// Whether the signature is good.
    Verified(Box<Verified>),
    /// All keys that there are have been handed on.
    KeySought(ConnId),
    /// What the ERP has said.
    Permitted(Box<Question>, Option<Permit>),
}

/// Who may enter what; the ERP has the answer, which is `None` if none could be had.
#[derive(Debug)]
pub struct Question {
    /// The number of the room at its home.
    pub number: u32,
    /// The room.
    pub room: RoomName,
    /// The user.
    pub user: UserId,
}

/// A token whose signature is to be verified.
#[derive(Debug)]
pub struct Verify {
    /// Which it is.
    pub mark: CheckMark,
    /// The work.
    pub check: Check,
}

/// A token whose signature was looked at.
#[derive(Debug)]
pub struct Verified {
    /// Which it was.
    pub mark: CheckMark,
    /// What it says, if it is good.
    pub claims: Result<Claims, TokenError>,
}

/// Which check of which token it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckMark {
    /// On which connection it came.
    pub conn: ConnId,
    /// The SHA-256 of the whole token.
    pub digest: [u8; 32],
    /// How often the keys had been replaced before.
    pub generation: u32,
}

impl Verify {
    /// Does the work.
    pub fn run(&self) -> Verified {
        Verified { mark: self.mark, claims: self.check.run() }
    }
}
