//! Who is a member of which room: what was committed, and what follows from it for those who are told, and for those who
//! ask.

use std::collections::BTreeMap;

use rusqlite::Connection;
use sizland_chat::access::{Level, Right};
use sizland_chat::chat::store::{Action, Actor, Verdict, Write};

/// The room that is for members.
pub const GUARDED: &str = "room-0";

/// A change of memberships as somebody was told that it is kept.
#[derive(Clone, Debug)]
pub struct Told {
    /// Nobody in particular for all at once.
    pub user: Option<String>,
    pub version: u64,
}

/// The memberships of the guarded room.
#[derive(Default)]
pub struct Members {
    rows: BTreeMap<String, (Level, u64)>,
    /// The version of those without a row.
    replaced: u64,
    /// Who may hear nothing behind an event since the revocation was answered.
    barred: BTreeMap<String, u64>,
    told: Vec<Told>,
}

impl Members {
    pub fn level(&self, user: &str) -> Level {
        self.of(user).0
    }

    fn of(&self, user: &str) -> (Level, u64) {
        self.rows.get(user).copied().unwrap_or((Level::Nothing, self.replaced))
    }

    fn highest(&self) -> u64 {
        self.rows.values().map(|row| row.1).max().unwrap_or(0).max(self.replaced)
    }

    /// Takes in a write in the order of commits: who may not write has not, and the version decides.
    pub fn take_in(&mut self, write: &Write, verdict: &Verdict) {
        if write.room.text() != GUARDED {
            return;
        }
        let change = &write.change;
        if let Actor::User(user) | Actor::Moderator(user) = &change.by {
            let is_read = matches!(change.action, Action::MarkRead { .. });
            let right = if is_read { Right::Read } else { Right::Write };
            let level = self.level(user.text());
            assert!(level.allows(right), "{} is {level:?} and has the store decide {change:?}", user.text());
        }
        match &change.action {
            Action::SetMember { user, level, version } => {
                let (known, last) = self.of(user.text());
                let Some(version) = judged(*version, last, known == *level, verdict) else { return };
                self.rows.insert(user.text().to_owned(), (*level, version));
                if *level > Level::Nothing {
                    self.barred.remove(user.text());
                }
            }
            Action::ReplaceMembers { members, version } => {
                let count = self.rows.values().filter(|row| row.0 > Level::Nothing).count();
                let is_same = count == members.len() && members.iter().all(|(u, level)| self.level(u.text()) == *level);
                let Some(version) = judged(*version, self.highest(), is_same, verdict) else { return };
                let row = |(user, level): &(sizland_chat::wire::value::Id, Level)| {
                    (user.text().to_owned(), (*level, version))
                };
                (self.rows, self.replaced) = (members.iter().map(row).collect(), version);
                self.barred.retain(|user, _| !members.iter().any(|(member, _)| member.text() == user));
            }
            _ => {}
        }
    }

    /// Somebody was told of a change when the room had come so far.
    pub fn acknowledge(&mut self, told: Told, last_seq: u64) {
        let users: Vec<String> = match &told.user {
            Some(user) => vec![user.clone()],
            None => (0..10).map(|user| user.to_string()).collect(),
        };
        for user in users {
            let (level, version) = self.of(&user);
            assert!(version >= told.version, "{told:?} is lost: {user} has {version}");
            // Unless somebody has been let in again meanwhile.
            if (level, version) == (Level::Nothing, told.version) {
                self.barred.entry(user).or_insert(last_seq);
            }
        }
        self.told.push(told);
    }

    /// A user was sent an event.
    pub fn deliver(&self, user: &str, seq: u64) {
        let last = self.barred.get(user);
        assert!(last.is_none_or(|&last| seq <= last), "{user} was revoked at {last:?} and hears of {seq}");
    }

    /// A crash may have taken back what nobody was told.
    pub fn reload(&mut self, connection: &Connection) {
        let sql = "SELECT m.user, m.level, m.version FROM member m JOIN room r ON r.number = m.room WHERE r.name = ?1";
        let mut rows = connection.prepare(sql).unwrap();
        let level = |number: u8| [Level::Nothing, Level::Reader, Level::Member][usize::from(number)];
        let rows = rows.query_map([GUARDED], |row| Ok((row.get(0)?, (level(row.get(1)?), row.get(2)?)))).unwrap();
        self.rows = rows.map(Result::unwrap).collect();
        let sql = "SELECT coalesce(max(members_version), 0) FROM room WHERE name = ?1";
        self.replaced = connection.query_row(sql, [GUARDED], |row| row.get(0)).unwrap();
        for told in std::mem::take(&mut self.told) {
            self.acknowledge(told, u64::MAX);
        }
        self.barred.clear();
    }

    /// Compares a database with what was committed.
    pub fn check(&self, connection: &Connection) {
        let mut found = Self::default();
        found.reload(connection);
        assert_eq!((&found.rows, found.replaced), (&self.rows, self.replaced), "who is a member");
    }
}

/// The version of a change that was decided so, if it changed something.
fn judged(version: Option<u64>, last: u64, is_same: bool, verdict: &Verdict) -> Option<u64> {
    let wanted = version.unwrap_or(last + 1);
    let expected = match wanted {
        wanted if wanted > last || wanted == last && is_same => Verdict::Version(wanted),
        _ => Verdict::Stale(last),
    };
    assert_eq!(*verdict, expected, "{version:?} behind {last}");
    (wanted > last).then_some(wanted)
}
