//! Which connections have something to send, in the order in which they get to.
//!
//! Two queues: *express* for answers and small rooms, *bulk* for large rooms, so that one room of ten thousand does not
//! stand in front of every small one. In the bulk queue stand rooms, each with the *ring* of its members that are behind.
//! The room in front is served for up to `ROUND` writes, then it goes behind the others: so what is said in a room while
//! it is being served goes out together with what its members lack, and none waits for more than a round of each other.
//! The order of bytes within a connection is its outbox's and never changes. A connection whose socket refuses bytes is in
//! no queue; it comes back when it is writable.
//!
//! A large room of which the store is keeping something waits for the verdict, a moment at most and not again before many
//! writes: those members that are still behind are then sent both at once, as they are without a store, where it is there
//! at once.

use std::collections::VecDeque;

use slab::Slab;

use super::connection::{Connection, Connections, Flag, NONE, Phase};
use super::slack::{give_back_queue, give_back_slab};

/// Writes that a large room gets before the next one does.
const ROUND: u32 = 512;
/// How long a room waits for a verdict of the store, on a clock that counts whole milliseconds.
const HOLD_MS: u64 = 5;
/// Writes that a room gets between two such waits, at least.
const HELD_EVERY: u32 = 256;
/// How long no room waits if the store was slower than that.
const UNHELD_MS: u64 = 50;

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
    held: Option<Hold>,
    /// No room waits for the store before that.
    unheld_until_ms: u64,
}

/// A ring that waits for the store.
struct Hold {
    ring: u32,
    /// The last of so many verdicts is the one.
    verdicts: usize,
    has_verdict: bool,
    until_ms: u64,
}

/// Members of one room that are behind.
struct Ring {
    room: u32,
    slots: VecDeque<u32>,
    /// Writes until the next room's turn.
    left: u32,
    /// Writes since it waited for the store.
    since_held: u32,
}

impl Default for SendQueues {
    fn default() -> Self {
        let (express, bulk, spare) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { express, bulk, rings: Slab::new(), rest: NONE, spare, held: None, unheld_until_ms: 0 }
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
        let number = self.rings.insert(Ring { room, slots, left: ROUND, since_held: HELD_EVERY }) as u32;
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

    /// Whether members of large rooms are behind.
    pub fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    /// Lets the large room that had the ring `last` wait for the last of the next `verdicts`, if anybody in it is behind.
    /// One that waits already waits for this one too, though not longer.
    pub fn hold(&mut self, room: u32, last: u32, verdicts: usize, now_ms: u64) {
        if let Some(hold) = self.held.as_mut().filter(|hold| hold.ring == last) {
            hold.verdicts = verdicts;
        }
        let ring = self.rings.get_mut(last as usize).filter(|ring| ring.room == room && ring.since_held >= HELD_EVERY);
        if let Some(ring) = ring
            && self.held.is_none()
            && self.unheld_until_ms <= now_ms
        {
            ring.since_held = 0;
            self.held = Some(Hold { ring: last, verdicts, has_verdict: false, until_ms: now_ms + HOLD_MS });
        }
    }

    /// There was a verdict.
    pub fn note_verdict(&mut self) {
        if let Some(hold) = &mut self.held {
            hold.has_verdict = true;
            hold.verdicts -= 1;
            if hold.verdicts == 0 {
                self.held = None;
            }
        }
    }

    /// Lets nobody wait any longer than is allowed.
    pub fn expire(&mut self, now_ms: u64) {
        if let Some(hold) = self.held.take_if(|hold| hold.until_ms <= now_ms)
            && !hold.has_verdict
        {
            self.unheld_until_ms = now_ms + UNHELD_MS;
        }
    }

    /// When [`SendQueues::expire`] is due.
    pub fn due_ms(&self) -> Option<u64> {
        self.held.as_ref().map(|hold| hold.until_ms)
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
            if self.is_held(number) {
                if self.bulk.len() == 1 {
                    return None;
                }
                self.bulk.rotate_left(1);
                continue;
            }
            let ring = &mut self.rings[number as usize];
            if let Some(slot) = ring.slots.pop_front() {
                ring.since_held = ring.since_held.saturating_add(1);
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

    fn is_held(&self, ring: u32) -> bool {
        self.held.as_ref().is_some_and(|hold| hold.ring == ring)
    }

    /// Whether nobody waits, but perhaps for the store.
    pub fn is_idle(&self) -> bool {
        self.express.is_empty() && self.bulk.iter().all(|&ring| self.is_held(ring))
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
        assert!(queues.is_idle() && queues.rings.is_empty());
    }

    #[test]
    fn a_room_waits_for_the_store_but_neither_long_nor_often() {
        let (mut connections, mut pool, mut queues) =
            (Connections::new(ShardId(0)), OutboxPool::default(), SendQueues::default());
        let handle = pool.hold(vec![1; 8].into());
        let mut rings = [NONE; 2];
        for room in [0, 1] {
            rings[room as usize] = queues.ring(room, NONE, 1_000);
            for _ in 0..1_000 {
                let slot = connections.insert(0).slot();
                pool.link(&mut connections[slot].outbox, handle);
                queues.bulk(&mut connections[slot], slot, rings[room as usize]);
            }
        }
        // How many of a hundred writes each room gets.
        let mut serve = |queues: &mut SendQueues| {
            let mut budget = SendBudget { express: 0, bulk: 100 };
            let mut counts = [0; 2];
            while let Some(slot) = queues.next(&mut connections, &mut budget) {
                counts[(slot / 1_000) as usize] += 1;
            }
            counts
        };
        let hold = |queues: &mut SendQueues, now_ms| queues.hold(0, rings[0], 2, now_ms);
        hold(&mut queues, 10);
        assert_eq!((serve(&mut queues), queues.due_ms()), ([0, 100], Some(15)));
        queues.note_verdict();
        assert_eq!(serve(&mut queues), [0, 100], "that was the verdict on something else");
        queues.note_verdict();
        assert_eq!((serve(&mut queues), queues.due_ms(), queues.is_idle()), ([0, 100], None, false));
        for _ in 0..9 {
            serve(&mut queues);
        }
        hold(&mut queues, 11);
        queues.expire(15);
        assert_eq!((serve(&mut queues), queues.due_ms()), ([0, 100], Some(16)));
        queues.expire(16);
        for _ in 0..5 {
            serve(&mut queues);
        }
        hold(&mut queues, 17);
        assert_eq!(queues.due_ms(), None, "the store is slow");
        hold(&mut queues, 66);
        assert_eq!((serve(&mut queues), queues.due_ms(), queues.is_idle()), ([0, 0], Some(71), true));
    }
}
