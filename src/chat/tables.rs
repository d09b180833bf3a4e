//! The users and rooms that a shard has connections of, by number.
//!
//! Hash entries hold four-byte numbers; the names stand once in a slab. A number is valid while it has a connection (of
//! a user) or a member or pending join (of a room).

use hashbrown::HashTable;
use slab::Slab;

use super::connection::NONE;
use super::ids::{RoomName, ShardId, UserId};
use super::slack::{APART_BYTES, give_back_slab, give_back_table};
use crate::access::Mode;

struct UserEntry {
    id: UserId,
    first: u32,
    /// Where the slots of the other connections stand, or [`NONE`]: few users have a second one.
    more: u32,
}

/// The users with connections on this shard, and their connections.
#[derive(Default)]
pub struct Users {
    table: HashTable<u32>,
    entries: Slab<UserEntry>,
    more: Slab<Vec<u32>>,
}

impl Users {
    /// Adds a connection of a user and returns the user's number.
    pub fn enter(&mut self, user: &UserId, slot: u32) -> u32 {
        if let Some(number) = self.find(user) {
            let entry = &mut self.entries[number as usize];
            if entry.first == NONE {
                entry.first = slot;
            } else if entry.more == NONE {
                entry.more = self.more.insert(vec![slot]) as u32;
            } else {
                self.more[entry.more as usize].push(slot);
            }
            return number;
        }
        let number = self.entries.insert(UserEntry { id: user.clone(), first: slot, more: NONE }) as u32;
        let entries = &self.entries;
        self.table.insert_unique(user.hash_code(), number, |&n| entries[n as usize].id.hash_code());
        number
    }

    /// Removes a connection of a user; with the last one the number is free.
    pub fn leave(&mut self, number: u32, slot: u32) {
        let entry = &mut self.entries[number as usize];
        let is_first = entry.first == slot;
        if let Some(more) = self.more.get_mut(entry.more as usize) {
            if is_first {
                entry.first = more.pop().unwrap_or(NONE);
            } else {
                more.retain(|&other| other != slot);
            }
            if more.is_empty() {
                self.more.remove(entry.more as usize);
                entry.more = NONE;
            }
        } else if is_first {
            entry.first = NONE;
        }
        if entry.first == NONE {
            let id = self.entries.remove(number as usize).id;
            if let Ok(found) = self.table.find_entry(id.hash_code(), |&n| n == number) {
                found.remove();
            }
        }
    }

    /// The number of a user that has connections here.
    pub fn find(&self, user: &UserId) -> Option<u32> {
        self.table.find(user.hash_code(), |&n| self.entries[n as usize].id == *user).copied()
    }

    /// Takes over the form of the id that the user's home has told, and its allocation.
    pub fn set_form(&mut self, number: u32, form: &UserId) {
        debug_assert!(self.entries[number as usize].id == *form);
        self.entries[number as usize].id = form.clone();
    }

    /// The user of a number.
    pub fn id(&self, number: u32) -> &UserId {
        &self.entries[number as usize].id
    }

    /// The slots of the user's connections.
    pub fn slots(&self, number: u32) -> Vec<u32> {
        let entry = &self.entries[number as usize];
        let more = self.more.get(entry.more as usize).into_iter().flatten().copied();
        std::iter::once(entry.first).chain(more).collect()
    }

    /// Frees what many more users needed.
    pub fn give_back(&mut self) {
        let entries = &self.entries;
        give_back_table(&mut self.table, |&n| entries[n as usize].id.hash_code());
        give_back_slab(&mut self.entries);
        give_back_slab(&mut self.more);
    }

    /// How many users.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A connection in a room's list.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its slot.
    pub slot: u32,
    /// Its user's number on this shard.
    pub user: u32,
}

/// A room of which this shard has members.
pub struct LocalRoom {
    /// Its name.
    pub name: RoomName,
    /// Where it is at home.
    pub home: ShardId,
    /// How it is found out who may enter; closed to all but services without.
    pub mode: Option<Mode>,
    /// The members here, in no order.
    pub members: Vec<Member>,
    /// Joins under way.
    pub pending: u32,
    /// The number of its last ring in the [`SendQueues`](super::queues::SendQueues), or [`NONE`].
    pub ring: u32,
}

/// The rooms with members or pending joins on this shard.
#[derive(Default)]
pub struct LocalRooms {
    table: HashTable<u32>,
    rooms: Slab<LocalRoom>,
}

impl LocalRooms {
    /// The number of a room by hash and text.
    pub fn find_text(&self, hash: u64, text: &str) -> Option<u32> {
        self.table.find(hash, |&n| self.rooms[n as usize].name.text() == text).copied()
    }

    /// The number of a room.
    pub fn find(&self, name: &RoomName) -> Option<u32> {
        self.table.find(name.hash_code(), |&n| self.rooms[n as usize].name == *name).copied()
    }

    /// The number of a room, which is added if it is new here.
    pub fn enter(&mut self, hash: u64, text: &str, home: ShardId, mode: Option<Mode>) -> u32 {
        if let Some(number) = self.find_text(hash, text) {
            return number;
        }
        let name = RoomName::new(text, hash);
        let room = LocalRoom { name, home, mode, members: Vec::new(), pending: 0, ring: NONE };
        let number = self.rooms.insert(room) as u32;
        let rooms = &self.rooms;
        self.table.insert_unique(hash, number, |&n| rooms[n as usize].name.hash_code());
        number
    }

    /// Forgets the room if it has neither member nor pending join.
    pub fn release(&mut self, number: u32) {
        let room = &mut self.rooms[number as usize];
        if !room.members.is_empty() || room.pending > 0 {
            // A list that was ten times as long must not keep its memory.
            if room.members.capacity() > 64 && room.members.len() < room.members.capacity() / 8 {
                room.members.shrink_to(room.members.len() * 2);
            }
            return;
        }
        let name = self.rooms.remove(number as usize).name;
        if let Ok(found) = self.table.find_entry(name.hash_code(), |&n| n == number) {
            found.remove();
        }
    }

    /// Moves the list of members of the room of this number, if there is one, to where the heap has room for it as it is
    /// now; returns how many members that took, and `None` behind the last number.
    pub fn compact(&mut self, number: u32) -> Option<usize> {
        let place = number as usize;
        if place >= self.rooms.capacity() {
            return None;
        }
        let Some(room) = self.rooms.get_mut(place) else { return Some(0) };
        let moved = room.members.len();
        if moved * size_of::<Member>() >= APART_BYTES {
            return Some(0);
        }
        // With some room, so that the next to join does not double it.
        let mut members = Vec::with_capacity(moved + moved / 8);
        members.append(&mut room.members);
        room.members = members;
        Some(moved)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &LocalRoom)> {
        self.rooms.iter().map(|(number, room)| (number as u32, room))
    }
}

impl std::ops::Index<u32> for LocalRooms {
    type Output = LocalRoom;
    fn index(&self, number: u32) -> &LocalRoom {
        &self.rooms[number as usize]
    }
}

impl std::ops::IndexMut<u32> for LocalRooms {
    fn index_mut(&mut self, number: u32) -> &mut LocalRoom {
        &mut self.rooms[number as usize]
    }
}
