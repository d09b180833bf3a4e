//! The rows: what the server writes for a post with an id of its own, and no more.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{CachedStatement, Connection, params};

const ALPHABET: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const INSERT: &str = "INSERT INTO event (position, room, seq, is_message, kind, is_deleted, at_ms, ordinal, message_id, \
                      id_numeric, sender, emoji, digest, body) \
                      VALUES (?1, ?2, ?3, 1, 1, 0, ?4, ?3, ?5, 0, 'load', NULL, ?6, ?7)";

const INSERT_ID: &str = "INSERT INTO message (room, message_id, position) VALUES (?1, ?2, ?3)";

/// The statements, and how far they have come.
pub struct Table<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    insert_id: CachedStatement<'c>,
    /// The last `seq` of each room.
    rooms: Vec<u64>,
    /// Messages of each who posts.
    posters: Vec<u64>,
    position: u64,
    body: Vec<u8>,
}

impl<'c> Table<'c> {
    /// A table with rows for so many rooms, and nothing in them.
    pub fn new(connection: &'c Connection, rooms: u32, posters: u32) -> rusqlite::Result<Self> {
        for room in 0..rooms {
            let sql = "INSERT INTO room (number, name, first_seq, last_seq, messages, messages_trimmed, last_position) \
                       VALUES (?1, ?2, 1, 0, 0, 0, 0)";
            connection.execute(sql, params![room + 1, format!("load-{room}")])?;
        }
        Ok(Self {
            connection,
            insert: connection.prepare_cached(INSERT)?,
            insert_id: connection.prepare_cached(INSERT_ID)?,
            rooms: vec![0; rooms as usize],
            posters: vec![0; posters as usize],
            position: 0,
            body: Vec::new(),
        })
    }

    /// Commits so many messages of those who post, in turn.
    pub fn commit(&mut self, rows: u32) -> rusqlite::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = now.as_millis() as u64;
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for _ in 0..rows {
            let poster = (self.position % self.posters.len() as u64) as usize;
            self.position += 1;
            self.insert(poster, now_ms)?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([]).map(drop)
    }

    fn insert(&mut self, poster: usize, now_ms: u64) -> rusqlite::Result<()> {
        let number = poster % self.rooms.len();
        let seq = &mut self.rooms[number];
        *seq += 1;
        let id = message_id(poster as u64, self.posters[poster]);
        self.posters[poster] += 1;
        let id = str::from_utf8(&id).unwrap_or_default();
        self.body.clear();
        // 100 bytes of it are what is posted.
        let _ = write!(
            self.body,
            "{{\"type\":\"new_message\",\"roomId\":\"load-{number}\",\"id\":\"{id}\",\"content\":\"xxxxxxxxxxxxxxxxxx\",\
             \"sender_user_id\":\"load\",\"timestamp\":{now_ms},\"seq\":{seq}}}"
        );
        let mut digest = [7; 16];
        digest[..8].copy_from_slice(&self.position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        self.insert.execute(params![self.position, number + 1, *seq, now_ms, id, digest, self.body])?;
        self.insert_id.execute(params![number + 1, id, self.position]).map(drop)
    }
}

/// As long as the load generator's, and in the same order.
fn message_id(poster: u64, message: u64) -> [u8; 27] {
    let mut id = *b"~Labc0000000000000000000000";
    for (from, to, mut value) in [(5, 10, poster), (10, 15, message)] {
        for byte in id[from..to].iter_mut().rev() {
            *byte = ALPHABET[(value & 63) as usize];
            value >>= 6;
        }
    }
    id
}
