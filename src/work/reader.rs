//! Answers what is asked of the store.
//!
//! Owns how rows become pages, frames and the feed. It only reads, each question in one short transaction, so that a
//! page shows everything up to its `lastSeq` and no reader holds the log for long. It knows nothing of who asks, and
//! does not ask who may.
//!
//! Invariant: every answer is bounded, whatever is stored: by rows, and by about [`ANSWER_BYTES_MAX`].

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::batch::{Kind, id, text};
use super::room::Room;
use super::{feed, members};
use crate::chat::store::{Chunk, Found, Lookup, StoreFacts, Trace, TracePlace};
use crate::wire::object::{self, Member};
use crate::wire::rest_body::put_member;
use crate::wire::value::{Id, IdRef, put_json_string};
use crate::wire::websocket::{self, Opcode};

/// Bytes after which an answer ends, and says that there is more. What crosses it is still in it.
pub const ANSWER_BYTES_MAX: usize = 1_048_576;
/// Bytes after which a chunk of frames ends.
const CHUNK_BYTES: usize = 65_536;
/// Users that the summary of a reaction lists, the first who reacted.
const SUMMARY_USERS_MAX: usize = 100;
/// Emojis that the summary of a message has, those that came first.
const SUMMARY_EMOJIS_MAX: usize = 100;
/// Rooms in a user's list, those with the newest events.
const ROOMS_MAX: u32 = 200;
/// Traces in one answer.
const TRACES_MAX: usize = 100;
/// Events looked through for one answer of traces.
const TRACE_EVENTS_MAX: u32 = 2_000;
/// Rooms looked through for one answer of traces.
const TRACE_ROOMS_MAX: usize = 200;

/// The database as it is read.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    facts: StoreFacts,
}

/// A message as it is now.
struct Message {
    seq: u64,
    message_id: String,
    json: String,
    is_deleted: bool,
}

impl Reader {
    /// A reader by `connection`, a [reader](super::database::Database::reader) of the database with these facts.
    pub fn new(connection: Connection, facts: StoreFacts) -> Self {
        Self { connection, facts }
    }

    /// Answers a question; [`Found::Failed`], with a line in the log, if the disk does not.
    pub fn find(&mut self, lookup: &Lookup) -> Found {
        find_on(&self.connection, &self.facts, lookup)
    }
}

/// Answers a question on a connection that is in no transaction; for a database in memory it is the
/// [ledger's](super::ledger::Ledger::connection).
pub fn find_on(connection: &Connection, facts: &StoreFacts, lookup: &Lookup) -> Found {
    try_find_on(connection, facts, lookup).unwrap_or_else(|error| {
        tracing::warn!(%error, "the store could not be read");
        Found::Failed
    })
}

/// Does the same, and leaves it to the caller what to say if the disk does not answer.
///
/// # Errors
/// Those of SQLite.
pub fn try_find_on(connection: &Connection, facts: &StoreFacts, lookup: &Lookup) -> rusqlite::Result<Found> {
    let transaction = connection.unchecked_transaction()?;
    let found = answer(&transaction, facts, lookup)?;
    // Nothing was written, so that nothing is lost.
    transaction.rollback()?;
    Ok(found)
}

fn answer(connection: &Connection, facts: &StoreFacts, lookup: &Lookup) -> rusqlite::Result<Found> {
    match lookup {
        Lookup::Position(room) => {
            let room = Room::find(connection, room.text())?;
            Ok(Found::Position { last_seq: room.map_or(0, |room| room.last_seq) })
        }
        Lookup::Events { room, after, to, bytes_max } => match Room::find(connection, room.text())? {
            Some(room) => events(connection, room, (*after, *to), *bytes_max),
            None => Ok(Found::Events(Vec::new())),
        },
        Lookup::Page { room, before, after, limit } => {
            let room = Room::find(connection, room.text())?;
            page(connection, &facts.epoch, room, (*before, *after), *limit)
        }
        Lookup::ReadMark { room, user } => {
            let room = Room::find(connection, room.text())?;
            read_mark(connection, room, user)
        }
        Lookup::RoomsOf { user } => rooms_of(connection, user),
        Lookup::Member { room, user } => {
            let room = Room::find(connection, room.text())?;
            members::find_member(connection, room.map(|room| room.number), user)
        }
        Lookup::Members { room, after, limit } => {
            let room = Room::find(connection, room.text())?;
            members::page(connection, room.map(|room| room.number), after.as_deref(), *limit)
        }
        Lookup::Feed { after, limit } => feed::find(connection, &facts.epoch, after.as_deref(), *limit),
        Lookup::Traces { user, from } => traces(connection, user, *from),
    }
}

/// The events `after < seq <= to`, read from the newest on, until they are too much or one is missing.
fn events(connection: &Connection, room: Room, (after, to): (u64, u64), bytes_max: usize) -> rusqlite::Result<Found> {
    // The index keeps messages and other events apart; the two are merged as they are read.
    let sql = "SELECT seq, body FROM event WHERE room = ?1 AND is_message = 1 AND seq > ?2 AND seq <= ?3 \
               UNION ALL \
               SELECT seq, body FROM event WHERE room = ?1 AND is_message = 0 AND seq > ?2 AND seq <= ?3 \
               ORDER BY 1 DESC";
    if after >= to || to > room.last_seq {
        return Ok(Found::Events(Vec::new()));
    }
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![room.number, after, to])?;
    let (mut bodies, mut bytes, mut expected) = (Vec::new(), 0, to);
    while let Some(row) = rows.next()? {
        let (seq, body): (u64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        bytes += websocket::header_len(body.len()) + body.len();
        if seq != expected || bytes > bytes_max {
            break;
        }
        expected = seq.saturating_sub(1);
        bodies.push((seq, body));
    }
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut frames, mut first_seq) = (Vec::new(), None);
    while let Some((seq, body)) = bodies.pop() {
        websocket::put_frame(&mut frames, Opcode::Text, &[&body]);
        let first = *first_seq.get_or_insert(seq);
        if frames.len() >= CHUNK_BYTES || bodies.is_empty() {
            chunks.push(Chunk { first_seq: first, last_seq: seq, frames: std::mem::take(&mut frames).into() });
            first_seq = None;
        }
    }
    Ok(Found::Events(chunks))
}

/// One page of messages, ascending.
fn page(
    connection: &Connection,
    epoch: &str,
    room: Option<Room>,
    (before, after): (Option<u64>, Option<u64>),
    limit: u32,
) -> rusqlite::Result<Found> {
    let (first_seq, last_seq) = room.map_or((1, 0), |room| (room.first_seq, room.last_seq));
    let (messages, has_more) = match room {
        Some(room) => messages(connection, room, (before, after), limit)?,
        None => (Vec::new(), false),
    };
    let mut out = b"{\"messages\":[".to_vec();
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(message);
    }
    out.extend_from_slice(b"],\"epoch\":");
    put_json_string(&mut out, epoch);
    out.extend_from_slice(format!(",\"firstSeq\":{first_seq},\"lastSeq\":{last_seq},\"more\":{has_more}}}").as_bytes());
    Ok(Found::Json(out))
}

/// The messages of a page, ready, and whether there are more in the direction in which it was read.
fn messages(
    connection: &Connection,
    room: Room,
    (before, after): (Option<u64>, Option<u64>),
    limit: u32,
) -> rusqlite::Result<(Vec<Vec<u8>>, bool)> {
    let sql = match after {
        Some(_) => {
            "SELECT seq, message_id, is_deleted, coalesce(current, body) FROM event \
             WHERE room = ?1 AND is_message = 1 AND seq > ?2 AND seq < ?3 ORDER BY seq LIMIT ?4"
        }
        None => {
            "SELECT seq, message_id, is_deleted, coalesce(current, body) FROM event \
             WHERE room = ?1 AND is_message = 1 AND seq > ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4"
        }
    };
    let limit = limit.max(1);
    let above = after.unwrap_or(0).min(room.last_seq);
    let below = before.unwrap_or(u64::MAX).min(room.last_seq + 1);
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![room.number, above, below, u64::from(limit) + 1])?;
    let (mut found, mut bytes, mut has_more) = (Vec::new(), 0, false);
    while let Some(row) = rows.next()? {
        if found.len() >= limit as usize || bytes >= ANSWER_BYTES_MAX {
            has_more = true;
            break;
        }
        let message = render(connection, room.number, &Message::read(row)?)?;
        bytes += message.len();
        found.push(message);
    }
    if after.is_none() {
        found.reverse();
    }
    Ok((found, has_more))
}

/// A message as a page shows it.
fn render(connection: &Connection, room: u64, message: &Message) -> rusqlite::Result<Vec<u8>> {
    const SHOWN: [(&str, &str); 3] = [("\"edited\"", "false"), ("\"editedAt\"", "null"), ("\"deleted\"", "false")];
    let mut out = Vec::with_capacity(message.json.len() + 80);
    let mut is_given = [false; SHOWN.len()];
    let split = object::split(&message.json, |member| {
        for (given, (name, _)) in is_given.iter_mut().zip(SHOWN) {
            *given |= name.as_bytes().get(1..name.len() - 1) == Some(&*member.key);
        }
        put_member(&mut out, &member);
    });
    if split.is_err() {
        // No event is like this. One that is must not spoil the page.
        out = format!(",\"seq\":{}", message.seq).into_bytes();
    }
    for (given, (raw_key, raw_value)) in is_given.into_iter().zip(SHOWN) {
        if !given {
            put_member(&mut out, &Member { key: raw_key.as_bytes().into(), raw_key, raw_value });
        }
    }
    out.extend_from_slice(b",\"reactionSummary\":");
    match message.is_deleted {
        true => out.extend_from_slice(b"[]"),
        false => put_summary(&mut out, connection, room, &message.message_id)?,
    }
    out.push(b'}');
    if let Some(first) = out.first_mut() {
        *first = b'{';
    }
    Ok(out)
}

/// The reactions to a message, by emoji, the oldest first.
fn put_summary(out: &mut Vec<u8>, connection: &Connection, room: u64, message_id: &str) -> rusqlite::Result<()> {
    let sql = "SELECT emoji, count(*), min(seq) FROM reaction WHERE room = ?1 AND message_id = ?2 \
               GROUP BY emoji ORDER BY 3 LIMIT ?3";
    let mut emojis = connection.prepare_cached(sql)?;
    let mut emojis = emojis.query(params![room, message_id, SUMMARY_EMOJIS_MAX])?;
    out.push(b'[');
    let mut before = "";
    while let Some(row) = emojis.next()? {
        let (emoji, count): (String, u64) = (row.get(0)?, row.get(1)?);
        out.extend_from_slice(before.as_bytes());
        out.extend_from_slice(b"{\"emoji\":");
        put_json_string(out, &emoji);
        out.extend_from_slice(format!(",\"count\":{count},\"userIds\":[").as_bytes());
        let sql = "SELECT user, user_numeric FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 \
                   ORDER BY seq LIMIT ?4";
        let mut users = connection.prepare_cached(sql)?;
        let mut users = users.query(params![room, message_id, emoji, SUMMARY_USERS_MAX])?;
        let mut is_first = true;
        while let Some(row) = users.next()? {
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            let user: String = row.get(0)?;
            IdRef { text: &user, numeric: row.get(1)? }.put_json(out);
        }
        out.extend_from_slice(b"]}");
        before = ",";
    }
    out.push(b']');
    Ok(())
}

fn read_mark(connection: &Connection, room: Option<Room>, user: &Id) -> rusqlite::Result<Found> {
    let (mut seq, mut unread) = (0, 0);
    if let Some(room) = room {
        let sql = "SELECT seq, ordinal FROM reader WHERE user = ?1 AND room = ?2";
        let mut mark = connection.prepare_cached(sql)?;
        let mark =
            mark.query_row(params![user.text(), room.number], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let (read, ordinal) = mark.unwrap_or((0, 0));
        (seq, unread) = (read, room.unread(ordinal));
    }
    Ok(Found::Json(format!("{{\"seq\":{seq},\"unread\":{unread}}}").into_bytes()))
}

/// The rooms in which a user took part, those with the newest events first, at most [`ROOMS_MAX`], with the newest
/// message of each.
fn rooms_of(connection: &Connection, user: &Id) -> rusqlite::Result<Found> {
    let sql = "SELECT r.number, r.first_seq, r.last_seq, r.messages, r.messages_trimmed, r.last_position, r.name, u.ordinal \
               FROM reader u JOIN room_now r ON r.number = u.room WHERE u.user = ?1 ORDER BY r.last_position DESC LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![user.text(), ROOMS_MAX])?;
    let mut out = b"[".to_vec();
    while let Some(row) = rows.next()? {
        if out.len() >= ANSWER_BYTES_MAX {
            break;
        }
        let room = Room::read(row)?;
        let (name, ordinal): (String, u64) = (row.get(Room::COLUMNS)?, row.get(Room::COLUMNS + 1)?);
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"roomId\":");
        put_json_string(&mut out, &name);
        let numbers = format!(",\"lastSeq\":{},\"unread\":{},\"lastMessage\":", room.last_seq, room.unread(ordinal));
        out.extend_from_slice(numbers.as_bytes());
        match messages(connection, room, (None, None), 1)?.0.first() {
            Some(message) => out.extend_from_slice(message),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
    out.push(b']');
    Ok(Found::Json(out))
}

/// What a user left behind, from a place on: in each room where the user took part or is a member, first messages and reactions, in
/// their order, then the membership, then the mark.
fn traces(connection: &Connection, user: &Id, from: TracePlace) -> rusqlite::Result<Found> {
    let sql = "SELECT r.number, r.first_seq, r.last_seq, r.messages, r.messages_trimmed, r.last_position, r.name, \
               EXISTS (SELECT 1 FROM member WHERE room = r.number AND user = ?1 AND level > 0) \
               FROM (SELECT room FROM reader WHERE user = ?1 UNION SELECT room FROM member WHERE user = ?1 AND level > 0) u \
               JOIN room_now r ON r.number = u.room WHERE u.room >= ?2 ORDER BY u.room LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let start = from.room.min(i64::MAX as u64);
    let mut rows = statement.query(params![user.text(), start, TRACE_ROOMS_MAX + 1])?;
    let (mut found, mut events_left, mut rooms_left) = (Vec::new(), TRACE_EVENTS_MAX, TRACE_ROOMS_MAX);
    while let Some(row) = rows.next()? {
        let room = Room::read(row)?;
        let name: String = row.get(Room::COLUMNS)?;
        let mut place = TracePlace { room: room.number, seq: if room.number == from.room { from.seq } else { 0 } };
        if rooms_left == 0
            || !traces_of_room(connection, user, (room, &name), &mut place, &mut found, &mut events_left)?
        {
            return Ok(Found::Traces(found, Some(place)));
        }
        if row.get(Room::COLUMNS + 1)? {
            found.push(Trace::Member { room: name.as_str().into() });
        }
        found.push(Trace::Mark { room: name.into() });
        rooms_left -= 1;
    }
    Ok(Found::Traces(found, None))
}

/// Looks through the events of one room. Returns false if the answer is full before its end, which `place` then names.
fn traces_of_room(
    connection: &Connection,
    user: &Id,
    (room, name): (Room, &str),
    place: &mut TracePlace,
    found: &mut Vec<Trace>,
    events_left: &mut u32,
) -> rusqlite::Result<bool> {
    let sql = "SELECT seq, kind, is_deleted, message_id, id_numeric, sender, emoji FROM event \
               WHERE room = ?1 AND is_message = 1 AND seq > ?2 \
               UNION ALL \
               SELECT seq, kind, is_deleted, message_id, id_numeric, sender, emoji FROM event \
               WHERE room = ?1 AND is_message = 0 AND seq > ?2 \
               ORDER BY 1";
    let stands = "SELECT 1 FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 AND user = ?4 AND seq = ?5";
    let mut stands = connection.prepare_cached(stands)?;
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![room.number, place.seq.min(room.last_seq)])?;
    while let Some(row) = rows.next()? {
        if found.len() >= TRACES_MAX - 1 || *events_left == 0 {
            return Ok(false);
        }
        *events_left -= 1;
        place.seq = row.get(0)?;
        let sender: Option<String> = row.get(5)?;
        if sender.as_deref() != Some(user.text()) {
            continue;
        }
        let (kind, is_deleted, message_id): (u8, bool, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let Some(message) = id(&message_id, row.get(4)?) else { continue };
        let emoji: Option<String> = row.get(6)?;
        if let Some(emoji) = emoji {
            if stands.exists(params![room.number, message_id, emoji, user.text(), place.seq])? {
                found.push(Trace::Reaction { room: name.into(), message, emoji: emoji.into() });
            }
        } else if kind == Kind::Message as u8 && !is_deleted {
            found.push(Trace::Message { room: name.into(), id: message });
        }
    }
    Ok(true)
}

impl Message {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { seq: row.get(0)?, message_id: row.get(1)?, is_deleted: row.get(2)?, json: text(row, 3)? })
    }
}
