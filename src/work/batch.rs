//! One batch of durable requests, from the beginning of its transaction to its commit.
//!
//! Owns the rules by which a request is decided, each a few statements against what the transaction sees, and what is
//! remembered of the database so that most requests need none but their own insert. Whether the commit succeeds is the
//! [`ledger`](super::ledger)'s to find out.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use crate::chat::ids::RoomName;
use crate::chat::store::{Action, Actor, Outcome, Post, Verdict, Write};
use crate::wire::client::ErrorCode;
use crate::wire::message::{apply_edit, is_changed_by, tombstone};
use crate::wire::object;
use crate::wire::value::Id;

use super::places::Places;
use super::room::Room;

/// Rooms whose rows are remembered.
const ROOMS_MAX: usize = 16_384;
/// Pairs of room and user known to stand in `reader`.
const PARTICIPANTS_MAX: usize = 65_536;

const INSERT: &str = "INSERT INTO event (position, room, seq, is_message, kind, is_deleted, at_ms, ordinal, message_id, \
                      id_numeric, sender, emoji, digest, body) \
                      VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
const FIND_POSTED: &str = "SELECT seq, message_id, id_numeric, digest, body FROM event WHERE position = ?1";
const FIND_POSTED_BY_KEY: &str = "SELECT e.seq, e.message_id, e.id_numeric, e.digest, e.body \
                                  FROM idempotency i CROSS JOIN event e \
                                  ON e.room = i.room AND e.is_message = 1 AND e.seq = i.seq \
                                  WHERE i.room = ?1 AND i.key = ?2 AND i.at_ms > ?3";
const FIND_MESSAGE: &str = "SELECT position, is_deleted, sender, coalesce(current, body) FROM event \
                            WHERE position = ?1";
const IS_DELETED: &str = "SELECT is_deleted FROM event WHERE position = ?1";

/// What an event is, as it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// `new_message`
    Message = 1,
    /// `message_updated`
    Update = 2,
    /// `message_deleted`
    Deletion = 3,
    /// `reaction`
    Reaction = 4,
    /// `reaction_removed`
    ReactionRemoved = 5,
}

/// What is known of the database without asking it.
#[derive(Debug)]
pub(super) struct Memory {
    /// `None`: nothing is known.
    pub(super) counters: Option<Counters>,
    rooms: HashMap<RoomName, Room>,
    /// Hashes of room number and user.
    participants: HashSet<u64>,
    hasher: RandomState,
    places: Places,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counters {
    pub(super) batch: u64,
    pub(super) last_position: u64,
    pub(super) trimmed_position: u64,
}

impl Memory {
    /// Nothing is known, and up to `ids_max` ids of messages will be remembered.
    pub(super) fn new(ids_max: usize) -> Self {
        Self {
            counters: None,
            rooms: HashMap::new(),
            participants: HashSet::new(),
            hasher: RandomState::new(),
            places: Places::new(ids_max),
        }
    }

    /// Reads back what is needed besides rows, in a transaction.
    pub(super) fn prepare(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.places.load(connection)
    }

    /// A batch has failed, so that nothing is known.
    pub(super) fn forget(&mut self) {
        self.forget_rooms();
        self.places.forget();
    }

    /// Rows of rooms have changed, and events may be gone.
    pub(super) fn forget_rooms(&mut self) {
        self.counters = None;
        self.rooms.clear();
        self.participants.clear();
    }

    /// Keeps it bounded; what is dropped between batches is in the database.
    pub(super) fn make_room(&mut self) {
        if self.rooms.len() >= ROOMS_MAX {
            self.rooms.clear();
        }
        if self.participants.len() >= PARTICIPANTS_MAX {
            self.participants.clear();
        }
    }
}

/// A transaction under way.
pub(super) struct Batch<'a> {
    insert: CachedStatement<'a>,
    find_posted: CachedStatement<'a>,
    pub(super) connection: &'a Connection,
    memory: &'a mut Memory,
    counters: Counters,
    /// The last position before the batch.
    first_position: u64,
    /// Whether anything was written that no event tells of.
    pub(super) has_changed: bool,
    idempotency_ms: u64,
    body: Vec<u8>,
}

/// What an event is besides its text.
struct Entry<'e> {
    kind: Kind,
    message: &'e Id,
    sender: Option<&'e str>,
    emoji: Option<&'e str>,
    digest: Option<[u8; 16]>,
}

/// A message that was posted before.
struct Posted {
    seq: u64,
    id: Option<Id>,
    /// `None` if it was imported as it has become, so that its own request is not known any more.
    digest: Option<u128>,
    body: Vec<u8>,
}

/// A message as it is now.
struct Message {
    position: u64,
    is_deleted: bool,
    sender: Option<Box<str>>,
    json: String,
}

impl<'a> Batch<'a> {
    /// A batch in the transaction that was just begun.
    pub(super) fn new(
        connection: &'a Connection,
        memory: &'a mut Memory,
        counters: Counters,
        idempotency_ms: u64,
    ) -> rusqlite::Result<Self> {
        memory.prepare(connection)?;
        Ok(Self {
            first_position: counters.last_position,
            insert: connection.prepare_cached(INSERT)?,
            find_posted: connection.prepare_cached(FIND_POSTED)?,
            connection,
            memory,
            counters,
            has_changed: false,
            idempotency_ms,
            body: Vec::new(),
        })
    }

    /// Decides the next request, and keeps what it becomes.
    pub(super) fn decide(&mut self, write: &Write) -> rusqlite::Result<Verdict> {
        let room = self.find_room(&write.room)?;
        match &write.change.action {
            Action::Post(post) => self.post(write, room, post),
            Action::Edit { message, fields } => self.edit(write, room, message, fields),
            Action::Delete { message } => self.delete(write, room, message),
            Action::React { message, emoji, user, repeats } => {
                self.react(write, room, (message, emoji, user), *repeats)
            }
            Action::Unreact { message, emoji, user } => self.unreact(write, room, (message, emoji, user)),
            Action::MarkRead { user, seq } => self.mark_read(room, user, *seq),
            Action::ForgetReader { user } => self.forget_reader(room, user),
            Action::RemoveRoom => self.remove_room(&write.room, room),
            Action::SetMember { user, level, version } => self.set_member(write, room, (user, *level), *version),
            Action::ReplaceMembers { members, version } => self.replace_members(write, room, members, *version),
        }
    }

    fn post(&mut self, write: &Write, room: Option<Room>, post: &Post) -> rusqlite::Result<Verdict> {
        let key = post.idempotency_key.as_deref();
        if let Some(room) = room {
            let by_id = self.find_posted(room.number, &post.id)?;
            // An id that was made here is none of another's.
            let (by_id, is_taken) = if post.id_given { (by_id, false) } else { (None, by_id.is_some()) };
            let by_key = key.map(|key| self.find_posted_by_key(room.number, key, write.at_ms));
            let by_key = by_key.transpose()?.flatten();
            let found = [&by_id, &by_key].into_iter().flatten();
            let is_same = found.into_iter().all(|posted| posted.digest.is_none_or(|digest| digest == post.digest));
            match by_id.or(by_key) {
                Some(posted) if is_same => return Ok(posted.verdict()),
                Some(_) => return Ok(Verdict::Refused(ErrorCode::Conflict)),
                None if is_taken => return Ok(Verdict::Refused(ErrorCode::Conflict)),
                None => {}
            }
        }
        let sender = post.sender.as_ref().map(Id::text);
        let digest = Some(post.digest.to_le_bytes());
        let entry = Entry { kind: Kind::Message, message: &post.id, sender, emoji: None, digest };
        let room = self.place(write, room, &entry)?;
        if let Some(key) = key {
            let sql = "INSERT OR REPLACE INTO idempotency (room, key, seq, at_ms) VALUES (?1, ?2, ?3, ?4)";
            let row = params![room.number, key, room.last_seq, write.at_ms];
            self.connection.prepare_cached(sql)?.execute(row)?;
        }
        if let Some(sender) = sender {
            self.take_part(room.number, sender)?;
        }
        Ok(Verdict::New { seq: room.last_seq })
    }

    fn edit(&mut self, write: &Write, room: Option<Room>, id: &Id, fields: &[u8]) -> rusqlite::Result<Verdict> {
        let by = &write.change.by;
        match self.find_message(room, id)? {
            None if *by != Actor::Service => return Ok(Verdict::Refused(ErrorCode::NotFound)),
            None => {}
            Some(message) if message.is_deleted => return Ok(Verdict::Refused(ErrorCode::NotFound)),
            Some(message) if !message.is_open_to(by) => return Ok(Verdict::Refused(ErrorCode::Forbidden)),
            Some(message) if !is_changed_by(&message.json, fields) => return Ok(Verdict::Unchanged),
            Some(message) => {
                let Some(current) = apply_edit(&message.json, fields, write.at_ms) else {
                    return Ok(Verdict::Refused(ErrorCode::Internal));
                };
                let sql = "UPDATE event SET current = ?1 WHERE position = ?2";
                self.connection.prepare_cached(sql)?.execute(params![current, message.position])?;
            }
        }
        self.place_about(write, room, Kind::Update, id)
    }

    fn delete(&mut self, write: &Write, room: Option<Room>, id: &Id) -> rusqlite::Result<Verdict> {
        let by = &write.change.by;
        match self.find_message(room, id)? {
            None if *by != Actor::Service => return Ok(Verdict::Refused(ErrorCode::NotFound)),
            None => {}
            Some(message) if message.is_deleted => return Ok(Verdict::Unchanged),
            Some(message) if !message.is_open_to(by) => return Ok(Verdict::Refused(ErrorCode::Forbidden)),
            Some(message) => self.bury(message.position, &message.json)?,
        }
        if let Some(room) = room {
            self.bury_updates(room.number, id)?;
            let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2";
            self.connection.prepare_cached(sql)?.execute(params![room.number, id.text()])?;
        }
        self.place_about(write, room, Kind::Deletion, id)
    }

    fn react(
        &mut self,
        write: &Write,
        room: Option<Room>,
        (message, emoji, user): (&Id, &str, &Id),
        repeats: bool,
    ) -> rusqlite::Result<Verdict> {
        if let Some(room) = room {
            if self.is_deleted(room.number, message)? {
                return Ok(Verdict::Refused(ErrorCode::NotFound));
            }
            if !repeats {
                let sql = "SELECT 1 FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 AND user = ?4";
                let key = params![room.number, message.text(), emoji, user.text()];
                if self.connection.prepare_cached(sql)?.exists(key)? {
                    return Ok(Verdict::Unchanged);
                }
            }
        }
        let sender = Some(user.text());
        let entry = Entry { kind: Kind::Reaction, message, sender, emoji: Some(emoji), digest: None };
        let room = self.place(write, room, &entry)?;
        // One that stands already keeps its place.
        let sql = "INSERT INTO reaction (room, message_id, emoji, user, user_numeric, seq) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let row = params![room.number, message.text(), emoji, user.text(), user.is_numeric(), room.last_seq];
        self.connection.prepare_cached(sql)?.execute(row)?;
        self.take_part(room.number, user.text())?;
        Ok(Verdict::New { seq: room.last_seq })
    }

    fn unreact(
        &mut self,
        write: &Write,
        room: Option<Room>,
        (message, emoji, user): (&Id, &str, &Id),
    ) -> rusqlite::Result<Verdict> {
        let Some(known) = room else { return Ok(Verdict::Unchanged) };
        let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 AND user = ?4";
        let key = params![known.number, message.text(), emoji, user.text()];
        match self.connection.prepare_cached(sql)?.execute(key)? {
            0 => Ok(Verdict::Unchanged),
            _ => self.place_about(write, room, Kind::ReactionRemoved, message),
        }
    }

    fn mark_read(&mut self, room: Option<Room>, user: &Id, seq: u64) -> rusqlite::Result<Verdict> {
        let Some(room) = room.filter(|room| seq <= room.last_seq) else {
            return Ok(Verdict::Refused(ErrorCode::NotFound));
        };
        let sql = "SELECT ordinal FROM event WHERE room = ?1 AND is_message = 1 AND seq = ?2";
        let mut message = self.connection.prepare_cached(sql)?;
        let ordinal = message.query_row(params![room.number, seq], |row| row.get::<_, u64>(0)).optional()?;
        let Some(ordinal) = ordinal else {
            return Ok(Verdict::Refused(ErrorCode::NotFound));
        };
        let sql = "INSERT INTO reader (user, room, seq, ordinal) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE \
                   SET seq = excluded.seq, ordinal = excluded.ordinal WHERE excluded.seq > seq";
        let mut mark = self.connection.prepare_cached(sql)?;
        if mark.execute(params![user.text(), room.number, seq, ordinal])? == 0 {
            return Ok(Verdict::Unchanged);
        }
        self.has_changed = true;
        Ok(Verdict::Done)
    }

    fn forget_reader(&mut self, room: Option<Room>, user: &Id) -> rusqlite::Result<Verdict> {
        if let Some(room) = room {
            self.memory.participants.remove(&self.memory.hasher.hash_one((room.number, user.text())));
            let sql = "DELETE FROM reader WHERE user = ?1 AND room = ?2";
            self.connection.prepare_cached(sql)?.execute(params![user.text(), room.number])?;
            self.has_changed = true;
        }
        Ok(Verdict::Done)
    }

    /// Gives the name another number, so that nothing is found under it any more. The rows go later, in steps.
    fn remove_room(&mut self, name: &RoomName, room: Option<Room>) -> rusqlite::Result<Verdict> {
        let Some(room) = room else { return Ok(Verdict::Done) };
        self.has_changed = true;
        let number = Room::next_number(self.connection)?;
        // All that was known by the events of the old number is in the row from here on.
        let sql = "UPDATE room SET number = ?2, first_seq = ?3 + 1, last_seq = ?3, messages = 0, messages_trimmed = 0, \
                   last_position = ?4 WHERE number = ?1";
        let row = params![room.number, number, room.last_seq, room.last_position];
        self.connection.prepare_cached(sql)?.execute(row)?;
        self.connection.prepare_cached("INSERT INTO removed_room (number) VALUES (?1)")?.execute([room.number])?;
        self.drop_members(room.number, number)?;
        if room.first_seq <= room.last_seq {
            self.counters.trimmed_position = self.counters.trimmed_position.max(room.last_position);
        }
        let emptied = Room { number, first_seq: room.last_seq + 1, messages: 0, messages_trimmed: 0, ..room };
        self.memory.rooms.insert(name.clone(), emptied);
        Ok(Verdict::Done)
    }

    /// An event that only is about a message.
    fn place_about(
        &mut self,
        write: &Write,
        room: Option<Room>,
        kind: Kind,
        message: &Id,
    ) -> rusqlite::Result<Verdict> {
        let entry = Entry { kind, message, sender: None, emoji: None, digest: None };
        let room = self.place(write, room, &entry)?;
        Ok(Verdict::New { seq: room.last_seq })
    }

    /// Gives the event its place, and returns the room with the event in it.
    fn place(&mut self, write: &Write, room: Option<Room>, entry: &Entry<'_>) -> rusqlite::Result<Room> {
        let mut room = self.room_or_new(&write.room, room)?;
        let is_message = entry.kind == Kind::Message;
        room.last_seq += 1;
        room.messages += u64::from(is_message);
        room.last_position = self.counters.last_position + 1;
        self.body.clear();
        self.body.extend_from_slice(&write.change.prefix);
        write.finish(&mut self.body, room.last_seq);
        self.insert.execute(params![
            room.last_position,
            room.number,
            room.last_seq,
            is_message,
            entry.kind as u8,
            write.at_ms,
            room.messages,
            entry.message.text(),
            entry.message.is_numeric(),
            entry.sender,
            entry.emoji,
            entry.digest.as_ref().map(|digest| &digest[..]),
            self.body,
        ])?;
        self.counters.last_position = room.last_position;
        if is_message {
            self.memory.places.note(room.number, entry.message.text(), room.last_position);
        }
        match self.memory.rooms.get_mut(&write.room) {
            Some(known) => *known = room,
            None => drop(self.memory.rooms.insert(write.room.clone(), room)),
        }
        Ok(room)
    }

    fn find_room(&mut self, name: &RoomName) -> rusqlite::Result<Option<Room>> {
        if let Some(room) = self.memory.rooms.get(name) {
            return Ok(Some(*room));
        }
        let found = Room::find(self.connection, name.text())?;
        if let Some(room) = found {
            self.memory.rooms.insert(name.clone(), room);
        }
        Ok(found)
    }

    /// The room, which is made if there is none.
    pub(super) fn room_or_new(&mut self, name: &RoomName, room: Option<Room>) -> rusqlite::Result<Room> {
        if let Some(room) = room {
            return Ok(room);
        }
        Room::make(self.connection, name.text())
    }

    /// Notes that a user is known in a room.
    fn take_part(&mut self, room: u64, user: &str) -> rusqlite::Result<()> {
        let hash = self.memory.hasher.hash_one((room, user));
        if self.memory.participants.insert(hash) {
            let sql = "INSERT OR IGNORE INTO reader (user, room, seq, ordinal) VALUES (?1, ?2, 0, 0)";
            self.connection.prepare_cached(sql)?.execute(params![user, room])?;
        }
        Ok(())
    }

    fn find_posted(&mut self, room: u64, id: &Id) -> rusqlite::Result<Option<Posted>> {
        let Some(position) = self.memory.places.find(self.connection, room, id.text())? else { return Ok(None) };
        self.find_posted.query_row([position], Posted::read).optional()
    }

    fn find_posted_by_key(&self, room: u64, key: &str, now_ms: u64) -> rusqlite::Result<Option<Posted>> {
        let over_ms = now_ms.saturating_sub(self.idempotency_ms);
        let mut find = self.connection.prepare_cached(FIND_POSTED_BY_KEY)?;
        find.query_row(params![room, key, over_ms], Posted::read).optional()
    }

    fn find_message(&self, room: Option<Room>, id: &Id) -> rusqlite::Result<Option<Message>> {
        let Some(room) = room else { return Ok(None) };
        let Some(position) = self.memory.places.find(self.connection, room.number, id.text())? else { return Ok(None) };
        let mut find = self.connection.prepare_cached(FIND_MESSAGE)?;
        find.query_row([position], Message::read).optional()
    }

    fn is_deleted(&self, room: u64, id: &Id) -> rusqlite::Result<bool> {
        let Some(position) = self.memory.places.find(self.connection, room, id.text())? else { return Ok(false) };
        let mut is_deleted = self.connection.prepare_cached(IS_DELETED)?;
        Ok(is_deleted.query_row([position], |row| row.get(0)).optional()?.unwrap_or(false))
    }

    /// Makes a tombstone of an event.
    fn bury(&self, position: u64, json: &str) -> rusqlite::Result<()> {
        // What cannot be read has nothing that could be kept.
        let tombstone = tombstone(json).unwrap_or_else(|| b"{\"deleted\":true}".to_vec());
        let sql = "UPDATE event SET is_deleted = 1, body = ?1, current = NULL WHERE position = ?2";
        self.connection.prepare_cached(sql)?.execute(params![tombstone, position]).map(drop)
    }

    fn bury_updates(&self, room: u64, message: &Id) -> rusqlite::Result<()> {
        let sql = "SELECT position, body FROM event \
                   WHERE room = ?1 AND message_id = ?2 AND kind = 2 AND is_deleted = 0 AND position > ?3 \
                   ORDER BY position LIMIT 1";
        let mut next = self.connection.prepare_cached(sql)?;
        let mut last = 0;
        loop {
            let read = |row: &Row<'_>| Ok((row.get::<_, u64>(0)?, text(row, 1)?));
            let update = next.query_row(params![room, message.text(), last], read).optional()?;
            let Some((position, json)) = update else { return Ok(()) };
            self.bury(position, &json)?;
            last = position;
        }
    }

    /// Writes what no event tells of, and returns what is to be in the database then.
    pub(super) fn finish(mut self) -> rusqlite::Result<Counters> {
        let Counters { last_position: last, trimmed_position: trimmed, .. } = self.counters;
        self.memory.places.settle(self.connection, last - self.first_position, last, trimmed)?;
        if self.has_changed {
            self.counters.batch += 1;
            let sql = "UPDATE store SET batch = ?1, trimmed_position = ?2";
            let Counters { batch, trimmed_position, .. } = self.counters;
            self.connection.prepare_cached(sql)?.execute(params![batch, trimmed_position])?;
        }
        Ok(self.counters)
    }
}

impl Posted {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (text, is_numeric): (String, bool) = (row.get(1)?, row.get(2)?);
        let digest: Option<[u8; 16]> = row.get(3)?;
        let digest = digest.map(u128::from_le_bytes);
        Ok(Self { seq: row.get(0)?, id: id(&text, is_numeric), digest, body: row.get(4)? })
    }

    /// The outcome as its poster was told.
    fn verdict(&self) -> Verdict {
        let mut timestamp = None;
        let split = object::split(str::from_utf8(&self.body).unwrap_or_default(), |member| {
            if *member.key == *b"timestamp" {
                timestamp = Some(member.raw_value.into());
            }
        });
        match (split, timestamp) {
            (Ok(()), Some(timestamp)) => Verdict::Same(Outcome { id: self.id.clone(), seq: self.seq, timestamp }),
            _ => Verdict::Refused(ErrorCode::Internal),
        }
    }
}

impl Message {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let sender = row.get::<_, Option<String>>(2)?.map(Into::into);
        Ok(Self { position: row.get(0)?, is_deleted: row.get(1)?, sender, json: text(row, 3)? })
    }

    /// Whether somebody may change it.
    fn is_open_to(&self, by: &Actor) -> bool {
        match by {
            Actor::Service | Actor::Moderator(_) => true,
            Actor::User(user) => self.sender.as_deref() == Some(user.text()),
        }
    }
}

/// An id in the form in which it came.
pub(super) fn id(text: &str, is_numeric: bool) -> Option<Id> {
    if is_numeric { Id::parse_raw(text) } else { Id::from_text(text) }
}

/// The JSON in a column; empty if it is no text, which no event is.
pub(super) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    let bytes: Vec<u8> = row.get(column)?;
    Ok(String::from_utf8(bytes).unwrap_or_default())
}
