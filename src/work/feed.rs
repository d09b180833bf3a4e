//! The feed: all events of all rooms, in the order of their commits.
//!
//! Owns what a cursor is: the epoch of the database and a position in it. Positions have gaps where events were removed.

use rusqlite::{Connection, params};

use super::reader::ANSWER_BYTES_MAX;
use crate::chat::store::Found;
use crate::wire::client::ErrorCode;

const MALFORMED: &str = "after must be a cursor that an earlier answer gave as next";
const OTHER_EPOCH: &str = "the cursor belongs to another state of the store: begin again without after";

/// A page of the feed behind a cursor.
pub(super) fn find(connection: &Connection, epoch: &str, after: Option<&str>, limit: u32) -> rusqlite::Result<Found> {
    let sql = "SELECT last_position, trimmed_position FROM store_now";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?));
    let (last_position, trimmed_position) = connection.prepare_cached(sql)?.query_row([], read)?;
    let from = match after.map(|cursor| parse(cursor)) {
        None => 0,
        Some(None) => return Ok(Found::Refused(ErrorCode::InvalidMessage, MALFORMED)),
        Some(Some((of, position))) if of == epoch && position <= last_position => position,
        Some(Some(_)) => return Ok(Found::Refused(ErrorCode::Conflict, OTHER_EPOCH)),
    };
    let mut body = b"{\"events\":[".to_vec();
    let empty = body.len();
    let position = put_events(&mut body, connection, (from, last_position), limit.max(1))?;
    // That events are gone is news as well.
    let is_empty = body.len() == empty && trimmed_position <= from;
    let has_more = position < last_position;
    body.extend_from_slice(format!("],\"next\":\"{epoch}-{position:x}\",\"more\":{has_more}").as_bytes());
    if trimmed_position > from {
        body.extend_from_slice(b",\"trimmed\":true");
    }
    body.push(b'}');
    Ok(Found::Feed { body, is_empty, position })
}

/// Appends events behind `from`, and returns the last position that they cover.
fn put_events(
    body: &mut Vec<u8>,
    connection: &Connection,
    (from, last_position): (u64, u64),
    limit: u32,
) -> rusqlite::Result<u64> {
    let sql = "SELECT position, body FROM event WHERE position > ?1 \
               AND NOT EXISTS (SELECT 1 FROM removed_room WHERE number = room) ORDER BY position";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![from])?;
    let (begin, mut count, mut position) = (body.len(), 0, from);
    while let Some(row) = rows.next()? {
        if count >= limit || body.len() >= ANSWER_BYTES_MAX {
            return Ok(position);
        }
        if body.len() > begin {
            body.push(b',');
        }
        position = row.get(0)?;
        body.extend_from_slice(row.get_ref(1)?.as_blob().unwrap_or(b"null"));
        count += 1;
    }
    Ok(last_position)
}

/// Takes a cursor apart into epoch and position.
fn parse(cursor: &str) -> Option<(&str, u64)> {
    let (epoch, position) = cursor.split_once('-')?;
    let is_hex = |text: &str, length_max: usize| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (1..=length_max).contains(&text.len()) && text.bytes().all(is_digit)
    };
    if !is_hex(epoch, 16) || !is_hex(position, 16) {
        return None;
    }
    Some((epoch, u64::from_str_radix(position, 16).ok()?))
}
