//! Who may enter rooms, as the store keeps it: how memberships change, and how they are read.
//!
//! Owns the rule of versions. A user's membership of a room has a version, which only grows: what brings a lower one is
//! late, and changes nothing. That holds also for whoever has no row, whose version is that of the room's last
//! replacement; so a grant that comes late never undoes a newer revocation.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::batch::Batch;
use super::reader::ANSWER_BYTES_MAX;
use super::room::Room;
use crate::access::Level;
use crate::chat::store::{Found, Verdict, Write};
use crate::planted::{self, Bug};
use crate::wire::value::{Id, IdRef};

/// The greatest version, which a JSON number still holds.
const VERSION_MAX: u64 = 1 << 53;

const FIND: &str = "SELECT level, version FROM member WHERE room = ?1 AND user = ?2";
const FLOOR: &str = "SELECT members_version FROM room WHERE number = ?1";
const HIGHEST: &str = "SELECT max(members_version, coalesce((SELECT max(version) FROM member WHERE room = ?1), 0)) \
                       FROM room WHERE number = ?1";
pub(super) const SET: &str = "INSERT INTO member (room, user, user_numeric, level, version) VALUES (?1, ?2, ?3, ?4, ?5) \
                   ON CONFLICT DO UPDATE SET user_numeric = excluded.user_numeric, level = excluded.level, \
                   version = excluded.version";

impl Batch<'_> {
    /// Makes a user a member, a reader, or neither.
    pub(super) fn set_member(
        &mut self,
        write: &Write,
        room: Option<Room>,
        (user, level): (&Id, Level),
        version: Option<u64>,
    ) -> rusqlite::Result<Verdict> {
        let room = self.room_or_new(&write.room, room)?;
        let (known, last) = find(self.connection, room.number, user)?;
        let last = if planted::is(Bug::StaleMember) { 0 } else { last };
        let version = match judge(version, last, known == level) {
            Ok(version) => version,
            Err(verdict) => return Ok(verdict),
        };
        let row = params![room.number, user.text(), user.is_numeric(), level as u8, version];
        self.connection.prepare_cached(SET)?.execute(row)?;
        self.has_changed = true;
        Ok(Verdict::Version(version))
    }

    /// Makes these users the members, and nobody else. Nothing of it is done if somebody's membership is newer.
    pub(super) fn replace_members(
        &mut self,
        write: &Write,
        room: Option<Room>,
        members: &[(Id, Level)],
        version: Option<u64>,
    ) -> rusqlite::Result<Verdict> {
        let room = self.room_or_new(&write.room, room)?;
        let last = highest(self.connection, room.number)?;
        let is_same = Some(last) == version && self.are_members(room.number, members)?;
        let version = match judge(version, last, is_same) {
            Ok(version) => version,
            Err(verdict) => return Ok(verdict),
        };
        self.connection.prepare_cached("DELETE FROM member WHERE room = ?1")?.execute([room.number])?;
        let sql = "UPDATE room SET members_version = ?1 WHERE number = ?2";
        self.connection.prepare_cached(sql)?.execute(params![version, room.number])?;
        let mut set = self.connection.prepare_cached(SET)?;
        for (user, level) in members {
            set.execute(params![room.number, user.text(), user.is_numeric(), *level as u8, version])?;
        }
        self.has_changed = true;
        Ok(Verdict::Version(version))
    }

    /// Notes in a room that gets another number that nobody is a member any more.
    pub(super) fn drop_members(&self, before: u64, now: u64) -> rusqlite::Result<()> {
        let sql = "UPDATE room SET members_version = \
                   max(members_version, coalesce((SELECT max(version) FROM member WHERE room = ?1), 0)) WHERE number = ?2";
        self.connection.prepare_cached(sql)?.execute([before, now]).map(drop)
    }

    fn are_members(&self, room: u64, members: &[(Id, Level)]) -> rusqlite::Result<bool> {
        let sql = "SELECT count(*) FROM member WHERE room = ?1 AND level > 0";
        let count: usize = self.connection.prepare_cached(sql)?.query_row([room], |row| row.get(0))?;
        for (user, level) in members.iter().filter(|_| count == members.len()) {
            if find(self.connection, room, user)?.0 != *level {
                return Ok(false);
            }
        }
        Ok(count == members.len())
    }
}

/// The version that a change gets, or what is answered instead: it is late, or it was so already.
fn judge(version: Option<u64>, last: u64, is_same: bool) -> Result<u64, Verdict> {
    match version {
        Some(version) if version > last => Ok(version),
        Some(version) if version == last && is_same => Err(Verdict::Version(version)),
        None if last < VERSION_MAX => Ok(last + 1),
        _ => Err(Verdict::Stale(last)),
    }
}

/// What a user is in a room, and since which version.
pub(super) fn find(connection: &Connection, room: u64, user: &Id) -> rusqlite::Result<(Level, u64)> {
    let read = |row: &Row<'_>| Ok((level(row.get(0)?), row.get(1)?));
    match connection.prepare_cached(FIND)?.query_row(params![room, user.text()], read).optional()? {
        Some(found) => Ok(found),
        None => Ok((Level::Nothing, connection.prepare_cached(FLOOR)?.query_row([room], |row| row.get(0))?)),
    }
}

fn highest(connection: &Connection, room: u64) -> rusqlite::Result<u64> {
    connection.prepare_cached(HIGHEST)?.query_row([room], |row| row.get(0))
}

/// Answers a room about a user.
pub(super) fn find_member(connection: &Connection, room: Option<u64>, user: &Id) -> rusqlite::Result<Found> {
    let (level, version) = match room {
        Some(room) => find(connection, room, user)?,
        None => (Level::Nothing, 0),
    };
    Ok(Found::Member { level, version })
}

/// A page of members in the order of their ids.
pub(super) fn page(
    connection: &Connection,
    room: Option<u64>,
    after: Option<&str>,
    limit: u32,
) -> rusqlite::Result<Found> {
    let sql = "SELECT user, user_numeric, level, version FROM member \
               WHERE room = ?1 AND level > 0 AND user > ?2 ORDER BY user LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![room.unwrap_or(0), after.unwrap_or_default(), u64::from(limit) + 1])?;
    let (mut out, mut count, mut next) = (b"{\"members\":[".to_vec(), 0, None);
    let mut last: Option<String> = None;
    while let Some(row) = rows.next()? {
        if count == limit || out.len() >= ANSWER_BYTES_MAX {
            next = last;
            break;
        }
        let (user, numeric, version): (String, bool, u64) = (row.get(0)?, row.get(1)?, row.get(3)?);
        out.extend_from_slice(if count > 0 { b",{\"userId\":" } else { b"{\"userId\":" });
        IdRef { text: &user, numeric }.put_json(&mut out);
        let role = level(row.get(2)?).role().unwrap_or_default();
        out.extend_from_slice(format!(",\"role\":\"{role}\",\"version\":{version}}}").as_bytes());
        (count, last) = (count + 1, Some(user));
    }
    let more = next.is_some();
    out.extend_from_slice(format!("],\"more\":{more},\"next\":").as_bytes());
    match next {
        Some(next) => crate::wire::value::put_json_string(&mut out, &next),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(Found::Json(out))
}

/// What a number in the table means; what it does not grants nothing.
pub(super) fn level(number: u8) -> Level {
    match number {
        1 => Level::Reader,
        2 => Level::Member,
        _ => Level::Nothing,
    }
}
