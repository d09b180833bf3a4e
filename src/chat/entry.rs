//! Who may enter a room, as far as the shard of a connection can tell, and how an access ends there.
//!
//! Owns what the tokens of the connections here grant. What a token settles is settled here, and what is asked goes to
//! the room's home without a visitor; where it depends on what the home knows, the user goes along and the home decides.

use std::collections::HashMap;
use std::sync::Arc;

use super::connection::NONE;
use super::envelope::Envelope;
use super::ids::{RoomName, ShardId, UserId};
use super::shard::Shard;
use crate::access::{Grants, Level, Mode, Right, decide};
use crate::auth::{Identity, Role};
use crate::wire::client::ErrorCode;
use crate::wire::event;

const REVOKED: &str = "access was revoked";
const NOT_GRANTED: &str = "the new token does not grant the room";

/// What tokens grant, for those connections whose token says something.
pub(super) type GrantTable = HashMap<u32, Arc<Grants>>;

impl Shard {
    /// Notes what the token of a connection grants, sharing it with another connection of the user if it is the same.
    pub(super) fn note_grants(&mut self, slot: u32, identity: &Identity) {
        let Some(grants) = &identity.grants else {
            self.grants.remove(&slot);
            return;
        };
        let others = self.users.slots(self.connections[slot].user);
        let same = others.iter().filter_map(|other| self.grants.get(other)).find(|known| *known == grants);
        let grants = same.unwrap_or(grants).clone();
        self.grants.insert(slot, grants);
    }

    /// What a connection may do in a room; `None` if that is for the room's home to find out.
    pub(super) fn level_in(&self, slot: u32, mode: Option<Mode>, room: &str) -> Option<Level> {
        decide(mode, self.connections[slot].role, self.grants.get(&slot).map(|grants| &**grants), room, None)
    }

    /// What a request by REST may do in a room.
    ///
    /// # Errors
    /// The level, which is not enough.
    pub(super) fn visitor(&self, identity: &Identity, room: &str, right: Right) -> Result<Option<UserId>, Level> {
        let mode = self.config.access.mode_of(room);
        match decide(mode, identity.role, identity.grants.as_deref(), room, None) {
            Some(level) if level.allows(right) => Ok(None),
            Some(level) => Err(level),
            None => Ok(identity.user.as_ref().map(|user| self.user_id(user))),
        }
    }

    /// The token of a connection was replaced: it leaves the rooms that are not granted any more. What it was let into by
    /// the rights of a service the home would have to look at; it may ask again.
    pub(super) fn leave_what_is_not_granted(&mut self, slot: u32, role_before: Role) {
        let rooms: Vec<u32> = self.connections[slot].rooms.iter().map(|link| link.room()).collect();
        for number in rooms {
            let room = &self.local_rooms[number];
            let level = self.level_in(slot, room.mode, room.name.text());
            let stays = level.map_or(role_before != Role::Service, |level| level.allows(Right::Read));
            if !stays {
                self.dismiss(slot, number, NOT_GRANTED);
            }
        }
    }

    /// The home of a room says that a user may not be there any more.
    pub(super) fn handle_remove(&mut self, from: ShardId, room: RoomName, user: &UserId, removal: u32) {
        let slots = self.users.find(user).map(|number| self.users.slots(number)).unwrap_or_default();
        for slot in slots {
            let number = self.local_rooms.find(&room).unwrap_or(NONE);
            if self.connections[slot].rooms.find(number).is_some() {
                self.dismiss(slot, number, REVOKED);
            }
        }
        self.mail.post(from, Envelope::Removed { room, number: removal });
    }

    /// Takes a connection out of a room, of which it gets the last message.
    fn dismiss(&mut self, slot: u32, number: u32, reason: &str) {
        let (room, now) = (self.local_rooms[number].name.clone(), self.now.wall_ms);
        let user = self.users.id(self.connections[slot].user).text();
        tracing::debug!(user = ?user, room = ?room, reason, "removed from a room");
        self.send_json(slot, |out| event::removed_from_room(out, room.text(), reason, now));
        // Being told may have closed it, and then it is in no room any more.
        self.remove_member(slot, number);
    }
}

/// How it is said that a level is not enough.
pub(super) fn denial(level: Level) -> (ErrorCode, &'static str) {
    let text = match level {
        Level::Nothing => "this room is not open to you",
        Level::Reader | Level::Member => "you may only read in this room",
    };
    (ErrorCode::Forbidden, text)
}
