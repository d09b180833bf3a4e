//! What must hold of a shard between turns, for the simulation and the tests.
//!
//! Nothing here changes anything. The cost is that of looking at everything that there is, so a server never calls it.

use super::connection::{Connection, Flag, NONE, Phase};
use super::shard::Shard;
use super::tokens::TokenCheck;
use crate::config::Service;

impl Shard {
    /// Checks what must hold after each turn.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_invariants(&self) {
        let (mut input_bytes, mut linked, mut users) = (0, 0, 0);
        for (slot, conn) in self.connections.iter() {
            self.pool.check_invariants(&conn.outbox);
            input_bytes += conn.extra.as_ref().map_or(0, |extra| extra.charged);
            linked += usize::from(!conn.outbox.is_empty());
            users += usize::from(conn.user != NONE);
            self.check_phase(conn);
            self.check_rooms(slot, conn);
        }
        assert_eq!(input_bytes, self.input_bytes, "the input pool's account is the sum of what is charged");
        assert!(linked > 0 || self.pool.segments() == 0, "a segment lives while an outbox names it");
        assert!(self.pool.segments() > 0 || self.pool.shared_bytes() + self.pool.direct_bytes() == 0);
        let of_users: usize = (0..).take(self.connections.slots()).map(|slot| self.check_user(slot)).sum();
        assert_eq!(of_users, users);
        self.check_lists();
        self.mail.check_invariants();
        self.wheel.check_invariants();
        self.desk.check_invariants();
        self.errands.check_invariants();
        self.rooms.check_invariants();
    }

    /// Checks what must hold when nobody has anything under way: nothing waits, nothing is owed.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_settled(&self) {
        assert!(!self.has_work() && !self.is_holding(), "nothing is left to do");
        assert!(self.mail.is_settled(), "nothing is under way between the shards");
        assert!(self.joins.is_empty(), "each join is answered");
        assert!(self.desk.is_idle(), "the store has answered everything");
        assert_eq!((self.pool.shared_bytes(), self.pool.direct_bytes(), self.pool.segments()), (0, 0, 0));
        assert_eq!(self.input_bytes, 0, "nothing is unfinished");
        let open = self.connections.iter().filter(|(_, conn)| conn.phase == Phase::Open);
        assert!(open.into_iter().all(|(_, conn)| conn.extra.is_none()), "who idles has nothing extra");
    }

    /// Checks that the last connection has left nothing behind.
    ///
    /// # Panics
    /// If it has.
    pub fn check_empty(&self) {
        self.check_settled();
        assert_eq!((self.addresses.wide(), self.address_homes.connections()), (0, 0));
        assert!(self.connections.is_empty() && self.users.is_empty() && self.user_homes.is_empty());
        assert_eq!(self.local_rooms.iter().count(), 0);
        assert_eq!(self.rooms.iter().map(|room| room.connections()).sum::<u32>(), 0);
    }

    /// The rooms with members here, and how many members.
    pub fn subscriptions(&self) -> Vec<(String, u32)> {
        let with_members = self.local_rooms.iter().filter(|(_, room)| !room.members.is_empty());
        with_members.map(|(_, room)| (room.name.text().to_owned(), room.members.len() as u32)).collect()
    }

    /// The rooms at home here that have members, how many, and on which shards.
    pub fn interest(&self) -> Vec<(String, u32, Vec<u16>)> {
        let summary = |room: &super::room::Room| {
            let shards = room.interested().map(|shard| shard.0).collect();
            (room.summary().room.text().to_owned(), room.connections(), shards)
        };
        self.rooms.iter().filter(|room| room.connections() > 0).map(summary).collect()
    }

    fn check_phase(&self, conn: &Connection) {
        match conn.phase {
            Phase::Free => assert!(conn.outbox.is_empty() && conn.extra.is_none() && conn.user == NONE),
            Phase::Open if self.config.service == Service::Echo => assert_eq!(conn.user, NONE, "an echo knows nobody"),
            Phase::Admitting | Phase::Open => assert_ne!(conn.user, NONE, "who is admitted has a user"),
            _ => assert!(conn.user == NONE && conn.rooms.is_empty(), "only a WebSocket that is open is in rooms"),
        }
        let is_checking =
            conn.extra.as_ref().is_some_and(|extra| extra.check.as_ref().is_some_and(TokenCheck::is_open));
        assert_eq!(conn.has(Flag::Checking), is_checking, "who waits for a check has one");
        assert!(!is_checking || matches!(conn.phase, Phase::Http | Phase::Auth | Phase::Open));
        assert!(conn.phase != Phase::Dead, "the dead are freed at the end of the turn");
        assert!(conn.rooms.joins().next().is_none() || conn.phase == Phase::Open);
    }

    fn check_rooms(&self, slot: u32, conn: &Connection) {
        for link in conn.rooms.iter() {
            let member = self.local_rooms[link.room()].members[link.index as usize];
            assert_eq!(member, slot, "a link names its place in the room's list");
        }
        for number in conn.rooms.joins() {
            let join = &self.joins[number as usize];
            assert!(join.conn == self.connections.id(slot) && !join.closed);
            assert_eq!(conn.rooms.find_join(join.room), Some(number), "a room has at most one join of a connection");
        }
    }

    /// Whether the slot has a user, and if so that the user has the slot.
    fn check_user(&self, slot: u32) -> usize {
        let user = self.connections[slot].user;
        if user == NONE {
            return 0;
        }
        assert_eq!(self.users.find(self.users.id(user)), Some(user));
        assert_eq!(self.users.slots(user).iter().filter(|&&other| other == slot).count(), 1);
        1
    }

    fn check_lists(&self) {
        let links: usize = self.connections.iter().map(|(_, conn)| conn.rooms.len()).sum();
        let members: usize = self.local_rooms.iter().map(|(_, room)| room.members.len()).sum();
        assert_eq!(links, members, "as many links as members");
        for (number, room) in self.local_rooms.iter() {
            let pending = self.joins.iter().filter(|(_, join)| join.room == number).count();
            assert_eq!(pending as u32, room.pending, "a room counts its pending joins");
            assert!(room.pending > 0 || !room.members.is_empty(), "a room without members is forgotten");
        }
    }
}
