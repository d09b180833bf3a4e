//! Revocations in the store: whose older tokens are refused.
//!
//! Owns the table `revocation`. It has as many rows as the shards have entries, and the same goes first.

use rusqlite::Connection;

/// Keeps that tokens of the user from before a time, in milliseconds since the epoch, are refused. An earlier time than
/// one that is kept already changes nothing.
///
/// # Errors
/// Those of SQLite; then nothing is changed.
pub(super) fn keep(connection: &Connection, user: &str, before_ms: u64, max: usize) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    insert(&transaction, user, before_ms)?;
    let count: usize = transaction.query_row("SELECT count(*) FROM revocation", [], |row| row.get(0))?;
    if count > max {
        let oldest = "DELETE FROM revocation WHERE number IN (SELECT number FROM revocation ORDER BY number LIMIT ?1)";
        transaction.execute(oldest, [count - max])?;
    }
    transaction.commit()
}

/// The same within a transaction, and however many there are; `false` if it was known.
pub(super) fn insert(connection: &Connection, user: &str, before_ms: u64) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO revocation (user, before_ms) VALUES (?1, ?2)
               ON CONFLICT (user) DO UPDATE SET before_ms = excluded.before_ms WHERE excluded.before_ms > before_ms";
    Ok(connection.prepare_cached(sql)?.execute((user, before_ms))? > 0)
}

/// All of them, the oldest first, by user and time.
///
/// # Errors
/// Those of SQLite.
pub fn all(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut statement = connection.prepare("SELECT user, before_ms FROM revocation ORDER BY number")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn they_are_kept_in_order_and_bounded() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection).unwrap();
        for (user, before_ms) in [("ana", 5), ("ben", 7), ("ana", 9), ("ben", 3), ("cem", 1)] {
            keep(&connection, user, before_ms, 2).unwrap();
        }
        let kept = all(&connection).unwrap();
        assert_eq!(kept, [("ben".to_owned(), 7), ("cem".to_owned(), 1)]);
    }
}
