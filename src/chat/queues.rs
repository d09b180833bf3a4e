//! Which connections have something to send, in the order in which they get to.
//!
//! Two queues: *express* for answers and small rooms, *bulk* for large rooms, so that one room of ten thousand does not
//! stand in front of every small one. In the bulk queue stand rooms, each with the *ring* of its members that are behind.
//! The room in front is served for up to `ROUND` writes, then it goes behind the others: so what is said in a room while
//! it is being served goes out together with what its members lack, and none waits for more than a round of each other.
//! The order of bytes within a connection is its outbox's and never changes. A connection whose socket refuses bytes is in
//! no queue; it comes back when it is writable.

use std::collections::VecDeque;

use slab::Slab;

use super::connection::{Connection, Connections, Flag, NONE, Phase};
use super::slack::{give_back_queue, give_back_slab};

/// Writes that a large room gets before the next one does.
const ROUND: u32 = 512;

/// How many connections may still be flushed in a turn.
#[derive(Clone, Copy, Debug)]
pub struct SendBudget {
    /// Of those with answers and of small rooms.
    pub express: usize,
    /// Of those of large rooms, whatever the others take.
    pub bulk: usize,
}

/// Connections that wait to be flushed.
pub struct SendQueues {
    express: VecDeque<u32>,
    /// The numbers of the rings, in the order in which they are served.
    bulk: VecDeque<u32>,
    rings: Slab<Ring>,
    /// The ring of those of whom one write was not enough.
    rest: u32,
    /// Of a ring that is done, for the next.
    spare: VecDeque<u32>,
}

/// Members of one room that are behind.
struct Ring {
    room: u32,
    slots: VecDeque<u32>,
    /// Writes until the next room's turn.
    left: u32,
}

impl Default for SendQueues {
    fn default() -> Self {
        let (express, bulk, spare) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { express, bulk, rings: Slab::new(), rest: NONE, spare }
    }
}

impl SendQueues {
    /// Queues a connection with an answer, or with events of a small room.
    pub fn express(&mut self, conn: &mut Connection, slot: u32) {
        if !conn.has(Flag::Express) && !conn.has(Flag::Blocked) {
            conn.mark(Flag::Express);
            self.express.push_back(slot);
        }
    }

    /// The ring of a large room, which had the number `last` if it has one; up to `members` connections will be added.
    pub fn ring(&mut self, room: u32, last: u32, members: usize) -> u32 {
        if self.rings.get(last as usize).is_some_and(|ring| ring.room == room) {
            return last;
        }
        let mut slots = std::mem::take(&mut self.spare);
        slots.reserve(members);
        let number = self.rings.insert(Ring { room, slots, left: ROUND }) as u32;
        self.bulk.push_back(number);
        number
    }

    /// Queues a connection with events of the large room that has this ring.
    pub fn bulk(&mut self, conn: &mut Connection, slot: u32, ring: u32) {
        if !conn.has(Flag::Express) && !conn.has(Flag::Bulk) && !conn.has(Flag::Blocked) {
            conn.mark(Flag::Bulk);
            self.rings[ring as usize].slots.push_back(slot);
        }
    }

    /// Queues a connection that has more than one write was allowed to take: the others come first.
    pub fn again(&mut self, conn: &mut Connection, slot: u32) {
        self.rest = self.ring(NONE, self.rest, 1);
        self.bulk(conn, slot, self.rest);
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
            let slot = self.next_bulk()?;
            if take(&mut connections[slot], Flag::Bulk) {
                budget.bulk -= 1;
                return Some(slot);
            }
        }
        None
    }

    fn next_bulk(&mut self) -> Option<u32> {
        loop {
            let number = *self.bulk.front()?;
            let ring = &mut self.rings[number as usize];
            if let Some(slot) = ring.slots.pop_front() {
                ring.left -= 1;
                if ring.left == 0 {
                    ring.left = ROUND;
                    self.bulk.rotate_left(1);
                }
                return Some(slot);
            }
            self.bulk.pop_front();
            let slots = self.rings.remove(number as usize).slots;
            if slots.capacity() > self.spare.capacity() {
                self.spare = slots;
            }
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.express.is_empty() && self.bulk.is_empty()
    }

    /// Frees what is empty and was long.
    pub fn give_back(&mut self) {
        give_back_queue(&mut self.express);
        give_back_queue(&mut self.bulk);
        give_back_queue(&mut self.spare);
        give_back_slab(&mut self.rings);
    }
}

/// Takes the mark off; false for an entry that outlived its connection or its purpose.
fn take(conn: &mut Connection, flag: Flag) -> bool {
    let queued = conn.has(flag);
    conn.unmark(flag);
    queued && conn.phase != Phase::Free && !conn.outbox.is_empty() && !conn.has(Flag::Blocked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::ShardId;
    use crate::chat::outbox::OutboxPool;

    #[test]
    fn a_room_is_served_for_a_round_and_takes_along_what_is_said_meanwhile() {
        let (mut connections, mut pool, mut queues) =
            (Connections::new(ShardId(0)), OutboxPool::default(), SendQueues::default());
        let rooms = [ROUND + 10, 100];
        let handle = pool.hold(vec![1; 8].into());
        let mut queue = |connections: &mut Connections, queues: &mut SendQueues, room: u32, last: u32, slot: u32| {
            let ring = queues.ring(room, last, 1);
            pool.link(&mut connections[slot].outbox, handle);
            queues.bulk(&mut connections[slot], slot, ring);
            ring
        };
        let mut rings = [NONE; 2];
        for (room, members) in (0..).zip(rooms) {
            for _ in 0..members {
                let slot = connections.insert(0).slot();
                rings[room as usize] = queue(&mut connections, &mut queues, room, rings[room as usize], slot);
            }
        }
        let mut budget = SendBudget { express: 0, bulk: usize::MAX };
        let mut order = Vec::new();
        while let Some(slot) = queues.next(&mut connections, &mut budget) {
            order.push(slot);
            if order.len() == 600 {
                // Somebody served long ago, in the room that is being served.
                queue(&mut connections, &mut queues, 1, rings[1], ROUND + 10);
            }
        }
        let (first, second) = (0..ROUND, ROUND + 10..ROUND + 110);
        let expected: Vec<u32> = first.chain(second).chain([ROUND + 10]).chain(ROUND..ROUND + 10).collect();
        assert_eq!(order, expected);
        assert!(queues.is_empty() && queues.rings.is_empty());
    }
}
