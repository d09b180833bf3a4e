//! The row of a room, as everything that reads or writes the store sees it.
//!
//! Owns how a room is found, made and numbered. What becomes of it is for those who ask.

use rusqlite::{Connection, OptionalExtension, Row, params};

/// A row of `room_now`, as it was when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    pub(super) number: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// Messages that there ever were.
    pub(super) messages: u64,
    /// Those of them that are not kept any more.
    pub(super) messages_trimmed: u64,
    pub(super) last_position: u64,
}

impl Room {
    /// Columns that [`Room::read`] takes.
    pub(super) const COLUMNS: usize = 6;

    /// The room of this name, if there is one.
    pub(super) fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT number, first_seq, last_seq, messages, messages_trimmed, last_position FROM room_now \
                   WHERE name = ?1";
        connection.prepare_cached(sql)?.query_row([name], Self::read).optional()
    }

    /// Makes the room of this name, of which there is none.
    pub(super) fn make(connection: &Connection, name: &str) -> rusqlite::Result<Self> {
        let number = Self::next_number(connection)?;
        let sql = "INSERT INTO room (number, name, first_seq, last_seq, messages, messages_trimmed, last_position) \
                   VALUES (?1, ?2, 1, 0, 0, 0, 0)";
        connection.prepare_cached(sql)?.execute(params![number, name])?;
        Ok(Self { number, first_seq: 1, last_seq: 0, messages: 0, messages_trimmed: 0, last_position: 0 })
    }

    /// A number that no room has.
    pub(super) fn next_number(connection: &Connection) -> rusqlite::Result<u64> {
        let sql = "SELECT coalesce(max(number), 0) + 1 FROM room";
        connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
    }

    /// The room in a row that begins with its columns, in the order of the fields.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            first_seq: row.get(1)?,
            last_seq: row.get(2)?,
            messages: row.get(3)?,
            messages_trimmed: row.get(4)?,
            last_position: row.get(5)?,
        })
    }

    /// The messages behind the first `ordinal` ones that are kept.
    pub(super) fn unread(&self, ordinal: u64) -> u64 {
        self.messages.saturating_sub(ordinal.max(self.messages_trimmed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::schema;

    #[test]
    fn what_is_made_is_found_and_counts_what_is_kept() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection).unwrap();
        assert_eq!(Room::find(&connection, "r").unwrap(), None);
        let (first, second) = (Room::make(&connection, "r").unwrap(), Room::make(&connection, "s").unwrap());
        assert_eq!((first.number, second.number), (1, 2));
        assert_eq!(Room::find(&connection, "s").unwrap(), Some(second));
        let sql = "UPDATE room SET first_seq = 4, last_seq = 9, messages = 7, messages_trimmed = 3, last_position = 20 \
                   WHERE number = 1";
        connection.execute(sql, []).unwrap();
        let room = Room::find(&connection, "r").unwrap().unwrap();
        let expected = Room { first_seq: 4, last_seq: 9, messages: 7, messages_trimmed: 3, last_position: 20, ..first };
        assert_eq!(room, expected);
        assert_eq!([0, 3, 5, 7, 8].map(|ordinal| room.unread(ordinal)), [4, 4, 2, 0, 0]);
    }
}
