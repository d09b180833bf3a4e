//! What each member has been told of who is in its room. It knows nothing of sockets and reads no clock.
//!
//! A member has been told everything when it knows of as many users as its room has members: by the last list it was sent
//! and what it heard of those who came and went since, or by the last count, where a large room sends no whole lists.
//!
//! Invariant: `complete` is the number of members that have been told everything.

use memchr::{memchr, memmem};

const USER: &[u8] = b"\"user-";

/// Who knows of whom. Member i is user `user-<i>` in room i modulo `rooms`.
pub struct Presence {
    members: usize,
    rooms: usize,
    told: Vec<Told>,
    complete: usize,
}

/// What one member has been told.
#[derive(Clone, Default)]
struct Told {
    own_join: bool,
    known: Known,
}

#[derive(Clone, Default)]
enum Known {
    #[default]
    Nothing,
    /// A bit per member of the room, and how many are set.
    Listed(Vec<u64>, usize),
    Counted(usize),
}

impl Presence {
    /// Nobody has been told anything.
    pub fn new(members: usize, rooms: usize) -> Self {
        Self { members, rooms, told: vec![Told::default(); members], complete: 0 }
    }

    /// All members are gone, and begin anew.
    pub fn reset(&mut self) {
        self.told.fill(Told::default());
        self.complete = 0;
    }

    /// Members that have been told everything.
    pub fn complete(&self) -> usize {
        self.complete
    }

    /// Enters a message of this type that a member received; an error names what may not be.
    pub fn enter(&mut self, member: usize, kind: &[u8], payload: &[u8]) -> Result<(), &'static str> {
        if member >= self.members {
            return Ok(());
        }
        let expected = self.expected(member);
        let before = self.told[member].is_complete(expected);
        let outcome = match kind {
            b"user_joined" => self.joined(member, payload),
            b"user_left" => self.left(member, payload),
            b"online_update" => self.listed(member, payload),
            b"presence_diff" => self.counted(member, payload),
            _ => Ok(()),
        };
        let after = self.told[member].is_complete(expected);
        self.complete = self.complete + usize::from(after) - usize::from(before);
        outcome
    }

    fn joined(&mut self, member: usize, payload: &[u8]) -> Result<(), &'static str> {
        let user = user_of(payload).ok_or("joined_without_user")?;
        if user == member {
            self.told[member].own_join = true;
        }
        let place = self.place(member, user)?;
        if let Known::Listed(bits, count) = &mut self.told[member].known {
            let bit = 1 << (place % 64);
            if bits[place / 64] & bit != 0 {
                return Err("joined_twice");
            }
            bits[place / 64] |= bit;
            *count += 1;
        }
        Ok(())
    }

    fn left(&mut self, member: usize, payload: &[u8]) -> Result<(), &'static str> {
        let user = user_of(payload).ok_or("left_without_user")?;
        let place = self.place(member, user)?;
        if let Known::Listed(bits, count) = &mut self.told[member].known {
            let bit = 1 << (place % 64);
            *count -= usize::from(bits[place / 64] & bit != 0);
            bits[place / 64] &= !bit;
        }
        Ok(())
    }

    fn listed(&mut self, member: usize, payload: &[u8]) -> Result<(), &'static str> {
        if !self.told[member].own_join {
            return Err("listed_before_joined");
        }
        if memmem::find(payload, b"\"truncated\":true").is_some() {
            return self.counted(member, payload);
        }
        let mut bits = vec![0_u64; self.members.div_ceil(self.rooms).div_ceil(64)];
        let mut count = 0;
        let start = memmem::find(payload, b"\"online\":[").ok_or("list_without_users")?;
        let end = memchr(b']', &payload[start..]).ok_or("list_without_end")?;
        let list = &payload[start..start + end];
        for at in memmem::find_iter(list, USER) {
            let place = self.place(member, number(&list[at + USER.len()..]).ok_or("list_of_strangers")?)?;
            count += usize::from(bits[place / 64] & 1 << (place % 64) == 0);
            bits[place / 64] |= 1 << (place % 64);
        }
        self.told[member].known = Known::Listed(bits, count);
        Ok(())
    }

    fn counted(&mut self, member: usize, payload: &[u8]) -> Result<(), &'static str> {
        const COUNT: &[u8] = b"\"count\":";
        let at = memmem::find(payload, COUNT).ok_or("diff_without_count")?;
        let count = number(&payload[at + COUNT.len()..]).ok_or("diff_without_count")?;
        self.told[member].known = Known::Counted(count);
        Ok(())
    }

    /// Where a user stands among the members of the member's room.
    fn place(&self, member: usize, user: usize) -> Result<usize, &'static str> {
        if user >= self.members || user % self.rooms != member % self.rooms {
            return Err("user_of_another_room");
        }
        Ok(user / self.rooms)
    }

    fn expected(&self, member: usize) -> usize {
        (self.members - member % self.rooms).div_ceil(self.rooms)
    }
}

impl Told {
    fn is_complete(&self, expected: usize) -> bool {
        match self.known {
            Known::Nothing => false,
            Known::Listed(_, count) | Known::Counted(count) => self.own_join && count == expected,
        }
    }
}

/// The number of the user that a message names.
fn user_of(payload: &[u8]) -> Option<usize> {
    let at = memmem::find(payload, b"\"userId\":")?;
    let at = at + memmem::find(&payload[at..], USER)? + USER.len();
    number(&payload[at..])
}

fn number(bytes: &[u8]) -> Option<usize> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
    let mut length = 0;
    let value = digits
        .inspect(|_| length += 1)
        .try_fold(0_usize, |value, digit| value.checked_mul(10)?.checked_add(usize::from(digit - b'0')));
    value.filter(|_| length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(presence: &mut Presence, member: usize, payload: &str) -> Result<(), &'static str> {
        let kind = crate::ledger::message_type(payload.as_bytes()).to_owned();
        presence.enter(member, &kind, payload.as_bytes())
    }

    #[test]
    fn a_list_and_what_follows_it_make_a_member_complete() {
        // Room 1 of two has the members 1, 3 and 5.
        let mut presence = Presence::new(6, 2);
        let joined = |user: usize| format!(r#"{{"type":"user_joined","roomId":"r","userId":"user-{user}"}}"#);
        let list = r#"{"type":"online_update","roomId":"r","online":["user-1","user-3"],"seq":0}"#;
        assert_eq!(enter(&mut presence, 3, list), Err("listed_before_joined"));
        assert_eq!(enter(&mut presence, 3, &joined(3)), Ok(()));
        assert_eq!(enter(&mut presence, 3, list), Ok(()));
        assert_eq!(presence.complete(), 0);
        assert_eq!(enter(&mut presence, 3, &joined(5)), Ok(()));
        assert_eq!(presence.complete(), 1);
        assert_eq!(enter(&mut presence, 3, &joined(5)), Err("joined_twice"));
        assert_eq!(enter(&mut presence, 3, &joined(2)), Err("user_of_another_room"));
        let left = r#"{"type":"user_left","roomId":"r","userId":"user-1"}"#;
        assert_eq!(enter(&mut presence, 3, left), Ok(()));
        assert_eq!(presence.complete(), 0);
    }

    #[test]
    fn a_large_room_is_told_by_its_count() {
        let mut presence = Presence::new(1_000, 1);
        enter(&mut presence, 7, r#"{"type":"user_joined","userId":"user-7"}"#).unwrap();
        enter(&mut presence, 7, r#"{"type":"online_update","online":["user-1"],"count":500,"truncated":true}"#)
            .unwrap();
        assert_eq!(presence.complete(), 0);
        enter(&mut presence, 7, r#"{"type":"presence_diff","joined":[],"left":[],"count":1000}"#).unwrap();
        assert_eq!(presence.complete(), 1);
        presence.reset();
        assert_eq!(presence.complete(), 0);
    }
}
