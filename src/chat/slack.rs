//! Gives back what a storm left behind.
//!
//! Queues and tables keep their capacity while there is work, since the next turn may need it. When a shard is about to
//! sleep, at most once a second, what is empty and was much larger than usual is freed, so that ten thousand joins in a
//! second cost no memory in the hours after them. Costs a few compares where there is nothing to give back.
//!
//! What a storm leaves behind is also where things stand: the tables of rooms grow among its buffers, and when those are
//! freed each table keeps pages that hold nothing else. So after many changes the rooms are *compacted*, some each
//! turn: their tables are moved together, before the allocator is asked to give back what is free.

use std::collections::VecDeque;

use hashbrown::HashTable;
use slab::Slab;

use super::shard::Shard;
use super::wheel::TICK_MS;

/// Places that a queue or table keeps while it is empty.
const KEPT: usize = 256;

/// Blocks of this size have pages of their own: there is nothing to gain from moving them.
pub const APART_BYTES: usize = 128 * 1024;

/// Entries of tables that are moved before others have their turn; one room may exceed it.
const MOVED_PER_TURN: usize = 4096;

/// So many connections, memberships and rooms that came or went leave enough holes in the heap to be worth closing; and an eighth
/// of the connections, so that a look, whose cost grows with the heap, is paid for by changes that grow alike.
const CHANGES_MIN: u32 = 4096;
/// Ticks (250 ms) between two times that the holes are closed.
const TICKS_MIN: u32 = 4;

/// When memory was last given back, and how much has come and gone since.
#[derive(Default)]
pub struct Churn {
    changes: u32,
    tick: u32,
    /// The number of the next room to compact, while that goes on.
    compacting: Option<u32>,
}

impl Churn {
    /// A connection or a membership came or went, or a room went.
    pub fn note(&mut self) {
        self.changes = self.changes.saturating_add(1);
    }

    /// When the heap of so many connections is to be looked at, on the tick clock, if it is worth it.
    pub fn due_ms(&self, connections: usize) -> Option<u64> {
        if self.compacting.is_some() {
            return Some(0);
        }
        self.is_worth(connections).then(|| u64::from(self.tick + TICKS_MIN) * TICK_MS)
    }

    fn is_worth(&self, connections: usize) -> bool {
        self.changes >= CHANGES_MIN.max(connections as u32 / 8)
    }

    fn is_too_soon(&self, tick: u32) -> bool {
        tick < self.tick + TICKS_MIN
    }

    /// Begins anew, with the rooms to compact if the heap is worth a look. If it is not, the changes go on counting.
    fn restart(&mut self, tick: u32, connections: usize) {
        let is_worth = self.is_worth(connections);
        let changes = if is_worth { 0 } else { self.changes };
        *self = Self { changes, tick, compacting: is_worth.then_some(0) };
    }
}

impl Shard {
    /// Frees what is empty and large, at most once a second; to be called when there is nothing to do. Returns whether
    /// so much has come and gone that the heap is worth a look as well, once the rooms are compacted.
    pub fn give_back(&mut self) -> bool {
        let tick = self.tick();
        if self.churn.compacting.is_some() {
            return self.compact_rooms();
        }
        if self.churn.is_too_soon(tick) {
            return false;
        }
        give_back_queue(&mut self.fired);
        give_back_queue(&mut self.resumed);
        give_back_list(&mut self.dead);
        give_back_list(&mut self.shut);
        give_back_slab(&mut self.joins);
        self.queues.give_back();
        self.connections.give_back();
        self.addresses.give_back();
        self.users.give_back();
        self.user_homes.give_back();
        self.pool.give_back();
        self.rooms.give_back();
        self.churn.restart(tick, self.connections.len());
        self.compact_rooms()
    }

    /// Compacts some of the rooms; returns whether they were the last.
    fn compact_rooms(&mut self) -> bool {
        let Some(mut number) = self.churn.compacting else { return false };
        let mut moved = 0;
        while moved < MOVED_PER_TURN {
            let (home, here) = (self.rooms.compact(number), self.local_rooms.compact(number));
            if home.is_none() && here.is_none() {
                self.churn.compacting = None;
                return true;
            }
            // A place without a room is looked at as well.
            moved += 1 + home.unwrap_or(0) + here.unwrap_or(0);
            number += 1;
        }
        self.churn.compacting = Some(number);
        false
    }
}

/// Frees an empty queue that was long.
pub fn give_back_queue<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEPT {
        queue.shrink_to(KEPT);
    }
}

/// Frees an empty slab that was large.
pub fn give_back_slab<T>(slab: &mut Slab<T>) {
    if slab.is_empty() && slab.capacity() > KEPT {
        *slab = Slab::new();
    }
}

/// Shrinks a table of numbers that had many more entries; `hash` tells the hash of an entry.
///
/// Also a table whose entries come and go would grow otherwise: places of removed entries are not all free again.
pub fn give_back_table(table: &mut HashTable<u32>, hash: impl Fn(&u32) -> u64) {
    if table.capacity() > KEPT && table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2, hash);
    }
}

/// Frees an empty list that was long.
pub fn give_back_list<T>(list: &mut Vec<T>) {
    if list.is_empty() && list.capacity() > KEPT {
        list.shrink_to(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_and_was_long_is_freed_and_nothing_else() {
        let mut queue: VecDeque<u32> = (0..100_000).collect();
        give_back_queue(&mut queue);
        assert_eq!(queue.len(), 100_000);
        queue.clear();
        give_back_queue(&mut queue);
        assert!(queue.capacity() <= 2 * KEPT, "{}", queue.capacity());
        let mut list: Vec<u32> = Vec::with_capacity(KEPT);
        give_back_list(&mut list);
        assert_eq!(list.capacity(), KEPT);
    }

    #[test]
    fn the_heap_is_looked_at_after_many_changes_and_not_too_often() {
        let mut churn = Churn::default();
        (1..CHANGES_MIN).for_each(|_| churn.note());
        churn.restart(100, 0);
        assert!(churn.due_ms(0).is_none() && churn.compacting.is_none());
        churn.note();
        assert!(churn.due_ms(1_000_000).is_none());
        assert_eq!(churn.due_ms(19_000), Some(u64::from(100 + TICKS_MIN) * TICK_MS));
        assert!(churn.is_too_soon(100 + TICKS_MIN - 1) && !churn.is_too_soon(100 + TICKS_MIN));
        churn.restart(100 + TICKS_MIN, 0);
        assert_eq!((churn.compacting, churn.due_ms(0)), (Some(0), Some(0)), "the rooms are compacted first, and now");
        churn.compacting = None;
        assert!(churn.due_ms(0).is_none());
    }
}
