//! Which connections have something to send, in the order in which they get to.
//!
//! Two queues: *express* for answers and small rooms, *bulk* for large rooms, so that one room of ten thousand does not
//! stand in front of every small one. The order of bytes within a connection is its outbox's and never changes. A
//! connection whose socket refuses bytes is in neither; it comes back when it is writable.

use std::collections::VecDeque;

use super::connection::{Connection, Connections, Flag, Phase};

/// How many connections may still be flushed in a turn.
#[derive(Clone, Copy, Debug)]
pub struct SendBudget {
    /// Of those with answers and of small rooms.
    pub express: usize,
    /// Of those of large rooms, whatever the others take.
    pub bulk: usize,
}

/// Connections that wait to be flushed.
#[derive(Default)]
pub struct SendQueues {
    pub(super) express: VecDeque<u32>,
    pub(super) bulk: VecDeque<u32>,
}

impl SendQueues {
    /// Queues a connection with an answer, or with events of a small room.
    pub fn express(&mut self, conn: &mut Connection, slot: u32) {
        if !conn.has(Flag::Express) && !conn.has(Flag::Blocked) {
            conn.mark(Flag::Express);
            self.express.push_back(slot);
        }
    }

    /// Queues a connection with events of a large room.
    pub fn bulk(&mut self, conn: &mut Connection, slot: u32) {
        if !conn.has(Flag::Express) && !conn.has(Flag::Bulk) && !conn.has(Flag::Blocked) {
            conn.mark(Flag::Bulk);
            self.bulk.push_back(slot);
        }
    }

    /// The next connection to flush: at most `budget.express` of the first queue, then at most `budget.bulk` of the
    /// other, each counted down.
    pub fn next(&mut self, connections: &mut Connections, budget: &mut SendBudget) -> Option<u32> {
        while budget.express > 0 {
            let Some(slot) = self.express.pop_front() else { break };
            if take(&mut connections[slot], Flag::Express) {
                budget.express -= 1;
                return Some(slot);
            }
        }
        while budget.bulk > 0 {
            let slot = self.bulk.pop_front()?;
            if take(&mut connections[slot], Flag::Bulk) {
                budget.bulk -= 1;
                return Some(slot);
            }
        }
        None
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.express.is_empty() && self.bulk.is_empty()
    }
}

/// Takes the mark off; false for an entry that outlived its connection or its purpose.
fn take(conn: &mut Connection, flag: Flag) -> bool {
    let queued = conn.has(flag);
    conn.unmark(flag);
    queued && conn.phase != Phase::Free && !conn.outbox.is_empty() && !conn.has(Flag::Blocked)
}
