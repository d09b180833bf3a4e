//! Removes what need not be kept any more, in steps that hold nobody up.
//!
//! Owns how much a step does, and in which order things go: rows of removed rooms, events that are too old, events that
//! are too many in their room, keys of requests that are over. The time of day comes in; how long a step takes is measured
//! here, and the next one does half as much or somewhat more.
//!
//! Invariants: an event goes together with its room's `first_seq`, so that the events of a room never have a hole; the
//! room's row stays. A reaction goes with its message or with its own event, whichever is removed first. The highest
//! position of what is gone is noted before it is gone, in the same transaction.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::batch::Kind;
use super::places;
use crate::config::Limits;

/// Behind a step that took longer than this the next one does half as much.
const STEP_LONG: Duration = Duration::from_millis(5);
/// Behind a step that took less the next one does more.
const STEP_SHORT: Duration = Duration::from_millis(2);
/// What a step costs, at most and at least: a row that is removed 1, and 1 more for each page that its text fills.
pub(super) const COST_MAX: usize = 256;
const COST_MIN: usize = 4;
/// Small rows that are removed by one statement.
const ROWS_AT_ONCE: usize = 16;
/// Bytes of text that fill a page.
const PAGE_BYTES: usize = 4_096;
/// Rooms whose number of events is looked at in a step.
const ROOMS_LOOKED_AT: usize = 256;
const DAY_MS: u64 = 86_400_000;
const DELETE_EVENT: &str = "DELETE FROM event WHERE position = ?1";

/// How far the removing has come.
#[derive(Debug)]
pub struct Retention {
    age_ms_max: Option<u64>,
    events_max: Option<u64>,
    idempotency_ms: u64,
    /// What the next step may cost.
    cost: usize,
    /// The room up to which numbers of events were looked at in this round.
    looked_at: u64,
    has_changed_rooms: bool,
}

/// An event to be removed.
struct Doomed {
    position: u64,
    room: u64,
    seq: u64,
    ordinal: u64,
    kind: u8,
    message_id: String,
    sender: Option<String>,
    emoji: Option<String>,
    bytes: usize,
}

/// One step.
struct Step<'t> {
    transaction: Transaction<'t>,
    cost_left: usize,
    ends: Instant,
    trimmed_position: u64,
}

impl Retention {
    /// Removes what `limits` do not keep: by age, by number, and keys that are over.
    pub fn new(limits: &Limits) -> Self {
        Self {
            age_ms_max: (limits.retention_days > 0).then(|| limits.retention_days.saturating_mul(DAY_MS)),
            events_max: (limits.retention_events > 0).then_some(limits.retention_events),
            idempotency_ms: limits.store_idempotency_ms,
            cost: COST_MAX / 8,
            looked_at: 0,
            has_changed_rooms: false,
        }
    }

    /// Removes some of what is to go, in one transaction of a few milliseconds, on the writer's connection between two
    /// of its batches. Returns whether there may be more to do now; if not, ask again in a while.
    ///
    /// # Errors
    /// Those of SQLite; then nothing was removed.
    pub fn trim_step(&mut self, connection: &mut Connection, now_ms: u64) -> rusqlite::Result<bool> {
        self.has_changed_rooms = false;
        let begun = Instant::now();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut step = Step { transaction, cost_left: self.cost, ends: begun + STEP_LONG, trimmed_position: 0 };
        let has_more = self.remove_some(&mut step, now_ms)?;
        let cost = self.cost - step.cost_left;
        if cost == 0 {
            step.transaction.rollback()?;
            return Ok(has_more);
        }
        step.note_trimmed()?;
        step.transaction.commit()?;
        self.adapt(begun.elapsed(), cost);
        Ok(has_more)
    }

    /// Whether the last step changed rows of rooms, so that what is known of them is old.
    pub fn has_changed_rooms(&self) -> bool {
        self.has_changed_rooms
    }

    fn remove_some(&mut self, step: &mut Step<'_>, now_ms: u64) -> rusqlite::Result<bool> {
        if step.clear_removed_rooms()? {
            return Ok(true);
        }
        if let Some(age_ms_max) = self.age_ms_max {
            let before = step.cost_left;
            let has_more = step.remove_older(now_ms.saturating_sub(age_ms_max))?;
            self.has_changed_rooms |= step.cost_left < before;
            if has_more {
                return Ok(true);
            }
        }
        if step.remove_keys(now_ms.saturating_sub(self.idempotency_ms))? {
            return Ok(true);
        }
        match self.events_max {
            Some(events_max) => self.remove_surplus(step, events_max),
            None => Ok(false),
        }
    }

    /// Looks at the next rooms for one with too many events, and removes some of its oldest.
    fn remove_surplus(&mut self, step: &mut Step<'_>, events_max: u64) -> rusqlite::Result<bool> {
        let sql = "SELECT number, last_seq - first_seq + 1 FROM room_now WHERE number > ?1 ORDER BY number LIMIT ?2";
        let mut rooms = step.transaction.prepare_cached(sql)?;
        let read = |row: &Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?));
        let found = rooms.query_map(params![self.looked_at, ROOMS_LOOKED_AT], read)?;
        let found: Vec<(u64, u64)> = found.collect::<rusqlite::Result<_>>()?;
        drop(rooms);
        for &(room, events) in &found {
            if events > events_max {
                self.has_changed_rooms = true;
                if step.remove_oldest(room, events - events_max)? {
                    return Ok(true);
                }
            }
            self.looked_at = room;
        }
        let is_round_over = found.len() < ROOMS_LOOKED_AT;
        if is_round_over {
            self.looked_at = 0;
        }
        Ok(!is_round_over)
    }

    /// Lets the next step do as much as fits.
    fn adapt(&mut self, took: Duration, cost: usize) {
        self.cost = match took {
            took if took > STEP_LONG => cost / 2,
            took if took < STEP_SHORT => self.cost + self.cost / 4,
            _ => self.cost,
        };
        self.cost = self.cost.clamp(COST_MIN, COST_MAX);
    }
}

impl Step<'_> {
    fn is_over(&self) -> bool {
        self.cost_left == 0 || Instant::now() >= self.ends
    }

    fn spend(&mut self, rows: usize, bytes: usize) {
        self.cost_left = self.cost_left.saturating_sub(rows + bytes / PAGE_BYTES);
    }

    /// Removes rows of rooms that have no name any more. Returns whether the step is over with it.
    fn clear_removed_rooms(&mut self) -> rusqlite::Result<bool> {
        const ROWS: [&str; 4] = [
            "DELETE FROM reaction WHERE room = ?1 AND (message_id, emoji, user) IN \
             (SELECT message_id, emoji, user FROM reaction WHERE room = ?1 LIMIT ?2)",
            "DELETE FROM reader WHERE room = ?1 AND user IN (SELECT user FROM reader WHERE room = ?1 LIMIT ?2)",
            "DELETE FROM member WHERE room = ?1 AND user IN (SELECT user FROM member WHERE room = ?1 LIMIT ?2)",
            "DELETE FROM idempotency WHERE number IN (SELECT number FROM idempotency WHERE room = ?1 LIMIT ?2)",
        ];
        loop {
            let sql = "SELECT number FROM removed_room LIMIT 1";
            let next = self.transaction.prepare_cached(sql)?.query_row([], |row| row.get::<_, u64>(0)).optional()?;
            let Some(room) = next else { return Ok(false) };
            if self.clear_events(room)? {
                return Ok(true);
            }
            for sql in ROWS {
                loop {
                    if self.is_over() {
                        return Ok(true);
                    }
                    // A few at a time, so that the clock is looked at between them.
                    let rows = self.cost_left.min(ROWS_AT_ONCE);
                    let removed = self.transaction.prepare_cached(sql)?.execute(params![room, rows])?;
                    self.spend(removed, 0);
                    if removed < rows {
                        break;
                    }
                }
            }
            self.transaction.prepare_cached("DELETE FROM removed_room WHERE number = ?1")?.execute([room])?;
            self.spend(1, 0);
        }
    }

    /// Removes events of a room that has no name any more. Returns whether the step is over with it.
    fn clear_events(&mut self, room: u64) -> rusqlite::Result<bool> {
        for is_message in [true, false] {
            loop {
                if self.is_over() {
                    return Ok(true);
                }
                let sql = "SELECT position, length(body) + ifnull(length(current), 0), message_id FROM event \
                           WHERE room = ?1 AND is_message = ?2 LIMIT 1";
                let read = |row: &Row<'_>| Ok((row.get::<_, u64>(0)?, row.get(1)?, row.get::<_, String>(2)?));
                let next =
                    self.transaction.prepare_cached(sql)?.query_row(params![room, is_message], read).optional()?;
                let Some((position, bytes, id)) = next else { break };
                if is_message {
                    places::remove(&self.transaction, room, &id, position)?;
                }
                self.transaction.prepare_cached(DELETE_EVENT)?.execute([position])?;
                self.spend(1, bytes);
            }
        }
        Ok(false)
    }

    /// Removes events in the order of their positions up to the first that is not older than `oldest_ms`. Returns
    /// whether there are others.
    fn remove_older(&mut self, oldest_ms: u64) -> rusqlite::Result<bool> {
        loop {
            let sql = "SELECT position, room, seq, ordinal, kind, message_id, sender, emoji, \
                       length(body) + ifnull(length(current), 0), at_ms FROM event \
                       ORDER BY position LIMIT 1";
            let read = |row: &Row<'_>| Ok((Doomed::read(row)?, row.get::<_, u64>(9)?));
            let oldest = self.transaction.prepare_cached(sql)?.query_row([], read).optional()?;
            match oldest {
                Some((event, at_ms)) if at_ms < oldest_ms => {
                    if self.is_over() || !self.remove(&event)? {
                        return Ok(true);
                    }
                }
                _ => return Ok(false),
            }
        }
    }

    /// Removes the oldest events of a room. Returns whether some of them are left.
    fn remove_oldest(&mut self, room: u64, events: u64) -> rusqlite::Result<bool> {
        for _ in 0..events {
            if self.is_over() {
                return Ok(true);
            }
            let sql = "SELECT position, room, seq, ordinal, kind, message_id, sender, emoji, \
                       length(body) + ifnull(length(current), 0) FROM event \
                       WHERE room = ?1 AND is_message IN (0, 1) \
                       AND seq = (SELECT first_seq FROM room WHERE number = ?1)";
            let event = self.transaction.prepare_cached(sql)?.query_row([room], Doomed::read).optional()?;
            let Some(event) = event else { return Ok(false) };
            if !self.remove(&event)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes an event, the first of its room, and what goes with it. Returns false if the step is over before.
    fn remove(&mut self, event: &Doomed) -> rusqlite::Result<bool> {
        let is_message = event.kind == Kind::Message as u8;
        if is_message {
            loop {
                if self.is_over() {
                    return Ok(false);
                }
                let rows = self.cost_left.min(ROWS_AT_ONCE);
                let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2 AND (emoji, user) IN \
                           (SELECT emoji, user FROM reaction WHERE room = ?1 AND message_id = ?2 LIMIT ?3)";
                let row = params![event.room, event.message_id, rows];
                let removed = self.transaction.prepare_cached(sql)?.execute(row)?;
                self.spend(removed, 0);
                if removed < rows {
                    break;
                }
            }
            places::remove(&self.transaction, event.room, &event.message_id, event.position)?;
        } else if let (Some(user), Some(emoji)) = (&event.sender, &event.emoji) {
            let sql = "DELETE FROM reaction WHERE room = ?1 AND message_id = ?2 AND emoji = ?3 AND user = ?4 \
                       AND seq = ?5";
            let key = params![event.room, event.message_id, emoji, user, event.seq];
            self.transaction.prepare_cached(sql)?.execute(key)?;
        }
        self.transaction.prepare_cached(DELETE_EVENT)?.execute([event.position])?;
        // The row says how far the room had come when its last event is gone.
        let sql = "UPDATE room SET first_seq = ?2 + 1, last_seq = max(last_seq, ?2), messages = max(messages, ?3), \
                   messages_trimmed = messages_trimmed + ?4, last_position = max(last_position, ?5) WHERE number = ?1";
        let row = params![event.room, event.seq, event.ordinal, is_message, event.position];
        self.transaction.prepare_cached(sql)?.execute(row)?;
        self.trimmed_position = self.trimmed_position.max(event.position);
        self.spend(1, event.bytes);
        Ok(true)
    }

    /// Removes keys of requests that are over. Returns whether there are others.
    fn remove_keys(&mut self, over_ms: u64) -> rusqlite::Result<bool> {
        loop {
            if self.is_over() {
                return Ok(true);
            }
            let rows = self.cost_left.min(ROWS_AT_ONCE);
            let sql = "DELETE FROM idempotency WHERE number IN \
                       (SELECT number FROM idempotency ORDER BY number LIMIT ?2) AND at_ms <= ?1";
            let removed = self.transaction.prepare_cached(sql)?.execute(params![over_ms, rows])?;
            self.spend(removed, 0);
            if removed < rows {
                return Ok(false);
            }
        }
    }

    fn note_trimmed(&self) -> rusqlite::Result<()> {
        let sql = "UPDATE store SET trimmed_position = max(trimmed_position, ?1)";
        self.transaction.prepare_cached(sql)?.execute([self.trimmed_position]).map(drop)
    }
}

impl Doomed {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            position: row.get(0)?,
            room: row.get(1)?,
            seq: row.get(2)?,
            ordinal: row.get(3)?,
            kind: row.get(4)?,
            message_id: row.get(5)?,
            sender: row.get(6)?,
            emoji: row.get(7)?,
            bytes: row.get(8)?,
        })
    }
}
