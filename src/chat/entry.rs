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
            if self.connections[slot].rooms.find(number).is_none() {
                // Being told of a room before this one has closed it, and its rooms may be gone.
                return;
            }
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::access::Rules;
    use crate::auth::Keys;
    use crate::chat::Now;
    use crate::chat::connection::Phase;
    use crate::chat::ids::HashKey;
    use crate::chat::shard::{Gauges, ShardSetup};
    use crate::config::Config;
    use crate::wire::value::Id;

    const NOW: Now = Now { tick_ms: 1_000, wall_ms: 1_700_000_000_000 };

    fn shard(config: Config) -> Shard {
        let (id, key, gauges) = (ShardId(0), HashKey::new([7; 16]), Arc::new(Gauges::default()));
        let config = Arc::new(config);
        Shard::new(ShardSetup { config, id, shards: 1, key, seed: [9; 32], gauges, store: None }, NOW)
    }

    fn token(keys: &Keys, role: Role) -> String {
        let user = Id::from_text("ana");
        keys.mint(user.as_ref(), role, Duration::from_secs(60), NOW.wall_ms).unwrap()
    }

    /// Opens a WebSocket whose peer reads nothing.
    fn open(shard: &mut Shard, token: &str) -> u32 {
        let slot = shard.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST)).slot();
        let upgrade = format!(
            "GET /ws?token={token} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        shard.handle_input(slot, &mut upgrade.into_bytes());
        turn(shard);
        assert!(shard.connections[slot].is_open());
        slot
    }

    fn say(shard: &mut Shard, slot: u32, text: &str) {
        let mut frame = match text.len() {
            length @ ..126 => vec![0x81, 0x80 | length as u8],
            length => [[0x81, 0x80 | 126], (length as u16).to_be_bytes()].concat(),
        };
        // The mask, which changes nothing.
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        shard.handle_input(slot, &mut frame);
        turn(shard);
    }

    fn turn(shard: &mut Shard) {
        shard.handle_local(1_000);
        shard.freeze();
        shard.handle_local(1_000);
        while shard.poll_resumed().is_some() {}
    }

    #[test]
    fn who_is_too_slow_to_be_told_of_a_lesser_token_is_closed() {
        let mut config = Config::for_tests("a secret of at least thirty-two bytes", "");
        config.access = Rules::parse("claims").unwrap();
        let (keys, hard) = (config.credentials.keys.clone(), config.limits.outbox_hard_bytes);
        let mut shard = shard(config);
        let slot = open(&mut shard, &token(&keys, Role::Service));
        for room in ["a", "b", "c"] {
            say(&mut shard, slot, &format!(r#"{{"type":"join_room","roomId":"{room}"}}"#));
        }
        assert_eq!(shard.connections[slot].rooms.len(), 3);
        let ping = r#"{"type":"ping","ref":"a reference that is long enough for this to be over soon"}"#;
        while shard.connections[slot].behind_bytes() < hard {
            say(&mut shard, slot, ping);
        }
        assert!(shard.connections[slot].is_open(), "it is closed with what it is told next");
        let refresh = format!(r#"{{"type":"refresh_token","token":"{}"}}"#, token(&keys, Role::User));
        say(&mut shard, slot, &refresh);
        assert!(shard.connections[slot].rooms.is_empty());
        assert!(matches!(shard.connections[slot].phase, Phase::Closing));
        let due_ms = shard.wheel.due_ms(slot).expect("it has so long to close");
        assert!(due_ms <= NOW.tick_ms + shard.config.limits.close_ms + 250, "{due_ms}");
        assert_eq!(shard.rooms.iter().map(|room| room.connections()).sum::<u32>(), 0);
    }
}
