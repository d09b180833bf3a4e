//! The database file, read without the server: what is really there.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

/// An event as it is kept.
#[derive(Clone)]
pub struct Event {
    /// The index of its room.
    pub room: usize,
    pub seq: u64,
    pub text: String,
    pub value: Value,
}

/// All events in the order of their commits.
#[derive(Clone)]
pub struct Store {
    pub events: Vec<Event>,
    /// What contradicts itself.
    pub violations: Vec<String>,
}

/// Opens the file read-only and reads all of it.
pub fn read(path: &Path, rooms: &[String], epoch: Option<&str>) -> rusqlite::Result<Store> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut store = Store { events: Vec::new(), violations: Vec::new() };
    let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if integrity != "ok" {
        store.violations.push(format!("the database is corrupt: {integrity}"));
    }
    let kept: String = connection.query_row("SELECT epoch FROM store", [], |row| row.get(0))?;
    if epoch != Some(&kept) {
        store.violations.push(format!("the epoch in the database is {kept}, and was told as {epoch:?}"));
    }
    let mut known =
        connection.prepare("SELECT number, name, first_seq, last_seq, messages, messages_trimmed FROM room_now")?;
    let mut known = known.query([])?;
    let mut numbers: Vec<(u64, usize, u64, u64)> = Vec::new();
    while let Some(row) = known.next()? {
        let (name, first, trimmed): (String, u64, u64) = (row.get(1)?, row.get(2)?, row.get(5)?);
        match rooms.iter().position(|room| *room == name) {
            Some(room) if (first, trimmed) == (1, 0) => {
                numbers.push((row.get(0)?, room, row.get(3)?, row.get(4)?));
            }
            _ => store.violations.push(format!("room {name:?} begins at {first}, {trimmed} messages are gone")),
        }
    }
    let mut last = vec![(0, 0); rooms.len()];
    let mut rows = connection.prepare("SELECT room, seq, is_message, body FROM event ORDER BY position")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let (number, seq, is_message, body): (u64, u64, bool, Vec<u8>) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let text = String::from_utf8_lossy(&body).into_owned();
        let Some((_, room, ..)) = numbers.iter().find(|(known, ..)| *known == number) else {
            store.violations.push(format!("an event of room {number}, which is unknown: {text}"));
            continue;
        };
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let (room, (last_seq, messages)) = (*room, &mut last[*room]);
        if seq != *last_seq + 1 || value["seq"] != seq || value["roomId"] != *rooms[room] {
            store.violations.push(format!("behind {last_seq} of {:?} is {seq}: {text}", rooms[room]));
        }
        *last_seq = seq;
        *messages += u64::from(is_message);
        store.events.push(Event { room, seq, text, value });
    }
    for (_, room, last_seq, messages) in numbers {
        if last[room] != (last_seq, messages) {
            let (found, name) = (last[room], &rooms[room]);
            store.violations.push(format!("room {name:?} says {last_seq}, {messages} messages, and has {found:?}"));
        }
    }
    Ok(store)
}
