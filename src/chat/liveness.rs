//! What happens when a connection's timer fires: pings and silence, token expiry, and the deadlines of opening, idling
//! and closing.
//!
//! One deadline per connection stands in the wheel. What it is for follows from the phase when it fires, so traffic never
//! touches the wheel.

use super::closing::CloseReason;
use super::connection::{Flag, Phase};
use super::shard::Shard;
use super::wheel::TICK_MS;

impl Shard {
    /// Handles at most `budget` timers; `is_unread` says of a slot that the poll has reported input that was not
    /// read, and that is next to be unless its connection is paused.
    pub fn handle_timers(&mut self, budget: usize, is_unread: impl Fn(u32) -> bool) {
        let mut fired = Vec::new();
        self.wheel.expire(self.now.tick_ms, &mut fired);
        self.fired.extend(fired);
        for _ in 0..budget {
            let Some(slot) = self.fired.pop_front() else { break };
            if self.wheel.due_ms(slot).is_some() {
                // It was set anew since it fired, perhaps for the next owner of the slot.
                continue;
            }
            self.handle_deadline(slot, is_unread(slot));
        }
        self.handle_room_timers();
        self.settle_rates();
        self.address_homes.sweep(self.now.tick_ms);
        self.tell_suppressed_denials();
    }

    fn handle_deadline(&mut self, slot: u32, is_unread: bool) {
        match self.connections[slot].phase {
            Phase::Free | Phase::Dead => {}
            Phase::Http => self.http_deadline(slot, is_unread),
            // The client has done its part in time.
            Phase::Auth if self.connections[slot].has(Flag::Checking) => self.wheel.set(slot, self.now.tick_ms + 1000),
            Phase::Auth => self.close(slot, &CloseReason::NoToken),
            Phase::Admitting => self.wheel.set(slot, self.now.tick_ms + 1000),
            Phase::Closing | Phase::Lingering => self.kill(slot),
            Phase::Open => self.open_deadline(slot, is_unread),
        }
    }

    fn open_deadline(&mut self, slot: u32, is_unread: bool) {
        if self.is_expired(slot) {
            return self.close(slot, &CloseReason::Expired);
        }
        if self.drain_due(slot) {
            return;
        }
        let interval = self.heartbeat_ticks();
        let intervals = self.tick().wrapping_sub(self.connections[slot].opened) / interval;
        let conn = &mut self.connections[slot];
        // The parity of the interval tells the first firing in it from one that stood for something else.
        let is_odd = intervals % 2 == 1;
        if intervals > 0 && is_odd != conn.has(Flag::PingedOdd) {
            let is_lenient = self.now.tick_ms < self.lenient_until_ms;
            if conn.has(Flag::Pinged) && !is_unread && !conn.has(Flag::Paused) && !is_lenient {
                return self.kill(slot);
            }
            conn.mark(Flag::Pinged);
            if is_odd {
                conn.mark(Flag::PingedOdd)
            } else {
                conn.unmark(Flag::PingedOdd)
            }
            // One for all that are pinged in this tick.
            let ping = self.pool.hold_once(&self.ping);
            self.pool.link(&mut conn.outbox, ping);
            self.pool.release(ping);
            self.pings += 1;
            self.mark_express(slot);
        }
        self.arm_open(slot);
    }

    /// Sets the next deadline of an open connection: its next ping, or the end of its token.
    pub(super) fn arm_open(&mut self, slot: u32) {
        if self.is_draining() {
            // The deadline is the connection's turn to be closed.
            return;
        }
        let interval = self.heartbeat_ticks();
        let conn = &self.connections[slot];
        let intervals = self.tick().wrapping_sub(conn.opened) / interval;
        let ping_ms = u64::from(conn.opened + (intervals + 1) * interval) * TICK_MS;
        let expiry_ms = self.expires_in_ms(slot).map(|left_ms| self.now.tick_ms + left_ms);
        self.wheel.set(slot, expiry_ms.map_or(ping_ms, |expiry_ms| expiry_ms.min(ping_ms)));
    }

    fn heartbeat_ticks(&self) -> u32 {
        (self.config.limits.heartbeat_ms / TICK_MS).max(1) as u32
    }

    fn expires_in_ms(&self, slot: u32) -> Option<u64> {
        let expires_at_s = self.connections[slot].expires_at_s;
        let enforced = expires_at_s != 0 && self.config.enforce_expiry;
        enforced.then(|| (u64::from(expires_at_s) * 1000).saturating_sub(self.now.wall_ms))
    }

    fn is_expired(&self, slot: u32) -> bool {
        self.expires_in_ms(slot) == Some(0)
    }

    /// A connection that had missed events has sent everything: it is told, and asks for what is so now.
    pub(super) fn handle_caught_up(&mut self, slot: u32) {
        let now = self.now.wall_ms;
        let Some(extra) = &mut self.connections[slot].extra else { return };
        extra.missed_bytes = 0;
        let count = std::mem::take(&mut extra.shed);
        if count == 0 && extra.refresh.is_empty() {
            return self.tidy_extra(slot);
        }
        let marked = self.connections[slot].rooms.take_shed();
        let extra = self.connections[slot].extra_mut();
        for room in marked {
            if !extra.refresh.contains(&room) {
                extra.refresh.push(room);
            }
        }
        if count > 0 {
            self.send_json(slot, |out| crate::wire::event::shed(out, u64::from(count), now));
        }
        self.ask_refresh(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::*;
    use crate::chat::Now;
    use crate::chat::ids::{HashKey, ShardId};
    use crate::chat::shard::{Gauges, ShardSetup};
    use crate::config::Config;

    const NOW: Now = Now { tick_ms: 1_000, wall_ms: 1_700_000_000_000 };

    /// A connection that has said nothing, at the end of its time.
    fn overdue() -> (Shard, u32) {
        let config = Arc::new(Config::for_tests("a secret of at least thirty-two bytes", ""));
        let (id, key, gauges) = (ShardId(0), HashKey::new([7; 16]), Arc::new(Gauges::default()));
        let mut shard = Shard::new(ShardSetup { config, id, shards: 1, key, seed: [9; 32], gauges, store: None }, NOW);
        let slot = shard.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST)).slot();
        let due_ms = NOW.tick_ms + 2 * shard.config.limits.handshake_ms;
        shard.begin_turn(Now { tick_ms: due_ms, ..NOW });
        (shard, slot)
    }

    #[test]
    fn who_has_sent_what_was_not_read_is_not_dismissed_as_idle() {
        let (mut shard, slot) = overdue();
        shard.handle_timers(8, |_| true);
        assert!(matches!(shard.connections[slot].phase, Phase::Http));
        let now = Now { tick_ms: shard.now.tick_ms + TICK_MS, ..NOW };
        shard.begin_turn(now);
        shard.handle_timers(8, |_| false);
        assert!(!matches!(shard.connections[slot].phase, Phase::Http));
    }

    #[test]
    fn who_is_not_read_from_for_not_reading_is_dismissed() {
        let (mut shard, slot) = overdue();
        shard.connections[slot].mark(Flag::Paused);
        shard.handle_timers(8, |_| true);
        assert!(!matches!(shard.connections[slot].phase, Phase::Http));
    }
}
