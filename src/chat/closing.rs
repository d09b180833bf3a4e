//! How connections end.
//!
//! Every way in which the server dismisses a peer is a [`CloseReason`]. A WebSocket gets a Close frame behind what is
//! queued for it (or in its place, if it is too slow for that), then has a while to answer; an HTTP connection gets its
//! last answer, then its side is shut and the rest of what it sends is thrown away, so that the answer is not lost to a
//! reset (RFC 9112, section 9.6). A slot is freed only at the end of the turn.

use super::connection::{Flag, NONE, Phase};
use super::denial::DenialReason;
use super::envelope::Envelope;
use super::ids::home;
use super::shard::Shard;
use crate::wire::decoder::Partial;
use crate::wire::websocket::{Violation, put_close};

/// One per way a peer is dismissed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No token came.
    NoToken,
    /// The token does not verify, or was revoked.
    InvalidToken,
    /// The peer broke the WebSocket protocol or a limit of it.
    Violation(Violation),
    /// The token's time is over.
    Expired,
    /// It did not read fast enough.
    SlowConsumer,
    /// It went on sending far above its rate.
    Flooding,
    /// An administrator removed it.
    Removed(String),
    /// Its user has a newer connection and too many of them.
    Replaced,
    /// The server is going away.
    GoingAway,
    /// The input pool is full and this one's message was unfinished longest.
    InputPoolFull,
}

impl CloseReason {
    /// The code of the Close frame.
    pub fn code(&self) -> u16 {
        match self {
            Self::NoToken | Self::InvalidToken => 1008,
            Self::Violation(violation) => violation.code,
            Self::Expired => 4001,
            Self::SlowConsumer => 4008,
            Self::Flooding => 4029,
            Self::Removed(_) => 4500,
            Self::Replaced => 4503,
            Self::GoingAway => 1001,
            Self::InputPoolFull => 1009,
        }
    }

    /// The text of the Close frame.
    pub fn text(&self) -> &str {
        match self {
            Self::NoToken => "No authentication token",
            Self::InvalidToken => "Invalid token",
            Self::Violation(violation) => violation.reason,
            Self::Expired => "Token expired",
            Self::SlowConsumer => "Slow consumer",
            Self::Flooding => "Flooding",
            Self::Removed(reason) => reason,
            Self::Replaced => "Replaced by a newer connection",
            Self::GoingAway => "Going away",
            Self::InputPoolFull => "Unfinished message dropped",
        }
    }

    /// The name in logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::InvalidToken => "invalid_token",
            Self::Violation(_) => "violation",
            Self::Expired => "expired",
            Self::SlowConsumer => "slow_consumer",
            Self::Flooding => "flooding",
            Self::Removed(_) => "removed",
            Self::Replaced => "replaced",
            Self::GoingAway => "going_away",
            Self::InputPoolFull => "input_pool_full",
        }
    }

    /// Whether what is queued is dropped rather than sent first.
    fn drops_queue(&self) -> bool {
        matches!(self, Self::SlowConsumer)
    }

    /// Whether nothing sensible can follow from the peer.
    fn ends_input(&self) -> bool {
        matches!(self, Self::Violation(_) | Self::InputPoolFull)
    }
}

impl Shard {
    /// Dismisses a connection.
    pub(super) fn close(&mut self, slot: u32, reason: &CloseReason) {
        let conn = &self.connections[slot];
        match conn.phase {
            Phase::Free | Phase::Dead | Phase::Lingering => return,
            Phase::Closing if !reason.ends_input() => return,
            Phase::Http => return self.kill(slot),
            _ => {}
        }
        let begun = conn.phase == Phase::Closing;
        self.deny_further(slot, reason);
        let (upgrade, partial, tail) = self.take_stream(slot);
        self.leave_everything(slot);
        if !begun {
            let conn = &mut self.connections[slot];
            if reason.drops_queue() {
                self.pool.cut(&mut conn.outbox);
            }
            if !upgrade.is_empty() {
                self.pool.append_direct(&mut conn.outbox, |out| out.extend_from_slice(&upgrade));
            }
            self.pool.append_direct(&mut conn.outbox, |out| put_close(out, reason.code(), reason.text()));
        }
        self.connections[slot].phase = if reason.ends_input() { Phase::Lingering } else { Phase::Closing };
        if !reason.ends_input() && (partial.is_some() || !tail.is_empty()) {
            let extra = self.connections[slot].extra_mut();
            (extra.partial, extra.tail) = (partial, tail);
            self.tidy_extra(slot);
        }
        self.wheel.set(slot, self.now.tick_ms + self.config.limits.close_ms);
        self.mark_express(slot);
        self.resume(slot);
        self.drained_already(slot);
    }

    /// The peer began the closing handshake: its Close frame is echoed.
    pub(super) fn close_by_peer(&mut self, slot: u32, code: Option<u16>) {
        self.leave_everything(slot);
        let conn = &mut self.connections[slot];
        self.pool.append_direct(&mut conn.outbox, |out| match code {
            Some(code) => put_close(out, code, ""),
            None => out.extend_from_slice(&[0x88, 0]),
        });
        conn.phase = Phase::Closing;
        conn.mark(Flag::PeerClosed);
        self.wheel.set(slot, self.now.tick_ms + self.config.limits.close_ms);
        self.mark_express(slot);
    }

    /// Lets an HTTP connection go once its last answer is out.
    pub(super) fn linger(&mut self, slot: u32) {
        self.drop_extra(slot);
        self.connections[slot].phase = Phase::Lingering;
        self.wheel.set(slot, self.now.tick_ms + self.config.limits.close_ms);
        self.mark_express(slot);
        self.resume(slot);
        self.drained_already(slot);
    }

    /// A connection that has nothing left to send goes on as if it had just sent it.
    fn drained_already(&mut self, slot: u32) {
        if !self.connections[slot].has_unsent() {
            self.handle_drained(slot);
        }
    }

    /// Ends a connection without another word.
    pub(super) fn kill(&mut self, slot: u32) {
        if matches!(self.connections[slot].phase, Phase::Free | Phase::Dead) {
            return;
        }
        self.leave_everything(slot);
        let conn = &mut self.connections[slot];
        self.pool.clear(&mut conn.outbox);
        conn.phase = Phase::Dead;
        self.wheel.cancel(slot);
        self.dead.push(slot);
    }

    /// What follows when everything queued was sent.
    pub(super) fn handle_drained(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        let ended = conn.has(Flag::EndOfInput);
        match conn.phase {
            Phase::Closing if conn.has(Flag::PeerClosed) || ended => self.kill(slot),
            Phase::Lingering if ended => self.kill(slot),
            Phase::Lingering if !conn.has(Flag::Shut) => {
                conn.mark(Flag::Shut);
                self.shut.push(slot);
            }
            Phase::Open if conn.extra.is_some() => self.handle_caught_up(slot),
            _ => {}
        }
    }

    /// The peer has ended its side.
    pub fn handle_end_of_input(&mut self, slot: u32) {
        let conn = &mut self.connections[slot];
        conn.mark(Flag::EndOfInput);
        match conn.phase {
            // Who asked and shut its side is still answered.
            Phase::Http => self.http_ended(slot),
            Phase::Lingering if conn.has_unsent() => {}
            _ => self.kill(slot),
        }
    }

    /// The peer has shown a certificate that is trusted.
    pub fn handle_certificate(&mut self, slot: u32) {
        self.connections[slot].mark(Flag::Certified);
    }

    /// The transport takes nothing more from the peer, and has said so; it is given the time to read that.
    pub fn handle_refusal(&mut self, slot: u32) {
        self.deny(slot, DenialReason::Tls, None, "");
        if self.connections[slot].phase == Phase::Http {
            self.pool.clear(&mut self.connections[slot].outbox);
            self.linger(slot);
        } else if self.connections[slot].phase != Phase::Lingering {
            self.kill(slot);
        }
    }

    /// The socket failed.
    pub fn handle_failure(&mut self, slot: u32) {
        self.kill(slot);
    }

    /// What a closing WebSocket still needs of its rare part: the answer to its upgrade if that was held back, and where
    /// in the stream of frames its input stands.
    fn take_stream(&mut self, slot: u32) -> (Vec<u8>, Option<Box<Partial>>, Vec<u8>) {
        let Some(extra) = &mut self.connections[slot].extra else { return Default::default() };
        let upgrade = extra.admission.take().map(|admission| admission.upgrade).unwrap_or_default();
        (upgrade, extra.partial.take(), std::mem::take(&mut extra.tail))
    }

    /// Takes the connection out of its rooms, its pending joins and its user, and frees what it need no longer hold.
    pub(super) fn leave_everything(&mut self, slot: u32) {
        self.leave_address(slot);
        self.leave_all_rooms(slot);
        self.drop_extra(slot);
        self.grants.remove(&slot);
        let id = self.connections.id(slot);
        let conn = &mut self.connections[slot];
        let number = std::mem::replace(&mut conn.user, NONE);
        if number != NONE {
            let user = self.users.id(number).clone();
            self.users.leave(number, slot);
            let debts = self.leave_debts(slot, &user);
            let target = home(user.hash_code(), self.shards);
            self.mail.post(target, Envelope::UserGone { user, conn: id, debts });
        }
        let conn = &mut self.connections[slot];
        if conn.has(Flag::Counted) {
            conn.unmark(Flag::Counted);
            self.gauges.leave();
        }
    }

    pub(super) fn drop_extra(&mut self, slot: u32) {
        if let Some(extra) = self.connections[slot].extra.take() {
            self.input_bytes -= extra.charged;
        }
        self.connections[slot].unmark(Flag::Checking);
    }
}
