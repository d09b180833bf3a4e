//! How a connection becomes a user's: the token, the user's home, the greeting.
//!
//! The token is verified here; then the user's home admits the connection, counts it against the user's limit and tells
//! the form of the user's id. Only then is the client greeted, and what it sent meanwhile is read.

use super::closing::CloseReason;
use super::connection::{Admission, Connection, Flag, NONE, Phase};
use super::denial::DenialReason;
use super::envelope::{Answer, Ask, Origin, ReplyTo, Request, UserAsk};
use super::ids::{UserId, home};
use super::mail::NoCredit;
use super::shard::Shard;
use super::tokens::Checked;
use super::wheel::TICK_MS;
use crate::auth::Identity;
use crate::wire::client::ErrorCode;
use crate::wire::event;
use crate::wire::value::Id;

impl Shard {
    /// The shared form of a user's id.
    pub(super) fn user_id(&self, id: &Id) -> UserId {
        UserId::new(id, self.key.hash(id.text()))
    }

    /// Asks the user's home, and before it that of the address if those are limited, to admit a connection whose token was
    /// verified. `upgrade` is the answer to the HTTP request,
    /// to be sent in front of the greeting.
    ///
    /// # Errors
    /// Gives the upgrade answer back when the user's home takes no more requests.
    pub(super) fn admit(
        &mut self,
        slot: u32,
        user: &Id,
        identity: &Identity,
        upgrade: Vec<u8>,
        reference: Option<Box<str>>,
    ) -> Result<(), Vec<u8>> {
        let user = self.user_id(user);
        let asked = match self.ask_address(slot, identity.role) {
            Ok(false) => self.ask_admission(slot, &user),
            asked => asked.map(|_| ()),
        };
        if asked.is_err() {
            return Err(upgrade);
        }
        let number = self.users.enter(&user, slot);
        let conn = &mut self.connections[slot];
        conn.user = number;
        conn.role = identity.role;
        conn.phase = Phase::Admitting;
        note_times(conn, identity.issued_at_ms, identity.expires_at_ms);
        let expires_at_ms = identity.expires_at_ms;
        conn.extra_mut().admission = Some(Admission { upgrade, expires_at_ms, reference });
        self.note_grants(slot, identity);
        Ok(())
    }

    pub(super) fn ask_admission(&mut self, slot: u32, user: &UserId) -> Result<(), NoCredit> {
        let origin = Origin { conn: self.connections.id(slot), to: ReplyTo::Admission };
        let target = home(user.hash_code(), self.shards);
        self.mail.request(target, Request { origin, ask: Ask::User(user.clone(), UserAsk::Admit) })
    }

    /// The user's home has answered.
    pub(super) fn finish_admission(&mut self, slot: u32, answer: Answer) {
        let Answer::Admitted(form, debts) = answer else { return };
        if self.connections[slot].phase != Phase::Admitting {
            return;
        }
        let Some(admission) = self.connections[slot].extra.as_mut().and_then(|extra| extra.admission.take()) else {
            return;
        };
        let tick = self.tick();
        let conn = &mut self.connections[slot];
        self.users.set_form(conn.user, &form);
        conn.phase = Phase::Open;
        (conn.opened, conn.seen) = (tick, tick);
        conn.unmark(Flag::PingedOdd);
        if !admission.upgrade.is_empty() {
            self.pool.append_direct(&mut conn.outbox, |out| out.extend_from_slice(&admission.upgrade));
        }
        if let Some(debts) = debts {
            self.take_over_debts(slot, &debts);
        }
        let connection_id = self.key.connection_id(self.connections.id(slot));
        let (now, heartbeat_ms) = (self.now.wall_ms, self.config.limits.heartbeat_ms);
        self.send_json(slot, |out| {
            event::connected(out, form.as_ref(), &connection_id, heartbeat_ms, now, admission.expires_at_ms, now);
        });
        if let Some(reference) = admission.reference {
            self.send_json(slot, |out| event::ack(out, Some(&reference), None, now));
        }
        self.arm_open(slot);
        self.connections[slot].mark(Flag::Paused);
        self.resume(slot);
        self.tidy_extra(slot);
        if self.is_draining() {
            self.close_draining(slot);
        }
    }

    /// `auth`: the token of a connection that was upgraded without one.
    pub(super) fn handle_auth(&mut self, slot: u32, token: &str, reference: Option<Box<str>>) {
        if self.connections[slot].phase != Phase::Auth {
            let text = "the connection has a token; refresh_token replaces it";
            return self.send_error(slot, ErrorCode::InvalidMessage, text, reference.as_deref(), None);
        }
        let identity = match self.check_token(slot, token) {
            Checked::Good(identity) => identity,
            Checked::Bad => return self.close(slot, &CloseReason::InvalidToken),
            Checked::Busy => return self.turn_away_auth(slot, reference.as_deref()),
            Checked::Later => return self.keep_token_message(slot, token, reference),
        };
        let Some(user) = identity.user.clone() else { return self.close(slot, &CloseReason::InvalidToken) };
        if self.admit(slot, &user, &identity, Vec::new(), reference.clone()).is_err() {
            self.turn_away_auth(slot, reference.as_deref());
        }
    }

    fn turn_away_auth(&mut self, slot: u32, reference: Option<&str>) {
        let text = "too many are connecting, try again";
        self.send_error(slot, ErrorCode::Overloaded, text, reference, None);
        // What it sent behind the token would otherwise count as a first message without one, which is final.
        self.close(slot, &CloseReason::GoingAway);
    }

    /// `refresh_token`: a newer token of the same user replaces the claims.
    pub(super) fn handle_refresh_token(&mut self, slot: u32, token: &str, reference: Option<Box<str>>) {
        let now = self.now.wall_ms;
        let number = self.connections[slot].user;
        let identity = match self.check_token(slot, token) {
            Checked::Good(identity) => Some(identity),
            Checked::Bad => None,
            Checked::Busy => {
                let text = "too many tokens are being checked, try again";
                return self.send_error(slot, ErrorCode::Overloaded, text, reference.as_deref(), None);
            }
            Checked::Later => return self.keep_token_message(slot, token, reference),
        };
        let is_valid = identity.is_some();
        let same = identity.as_ref().and_then(|identity| identity.user.as_ref());
        let same = number != NONE && same.is_some_and(|user| user.text() == self.users.id(number).text());
        let Some(identity) = identity.filter(|_| same) else {
            if is_valid {
                self.deny(slot, DenialReason::Forbidden, None, "a token of another user");
            }
            let text = "the token does not verify, or is another user's";
            return self.send_error(slot, ErrorCode::Forbidden, text, reference.as_deref(), None);
        };
        let conn = &mut self.connections[slot];
        let role_before = std::mem::replace(&mut conn.role, identity.role);
        note_times(conn, identity.issued_at_ms, identity.expires_at_ms);
        self.note_grants(slot, &identity);
        self.leave_what_is_not_granted(slot, role_before);
        if !self.connections[slot].is_open() {
            return;
        }
        self.arm_open(slot);
        self.send_json(slot, |out| event::ack_expires(out, reference.as_deref(), identity.expires_at_ms, now));
    }

    /// When the connection was opened, in milliseconds since the epoch.
    pub(super) fn connected_at_ms(&self, slot: u32) -> u64 {
        let age_ms = self.now.tick_ms.saturating_sub(u64::from(self.connections[slot].opened) * TICK_MS);
        self.now.wall_ms.saturating_sub(age_ms)
    }
}

/// Notes when a token was issued and when it expires, in milliseconds since the epoch: as far away as it can be noted.
fn note_times(conn: &mut Connection, issued_at_ms: Option<u64>, expires_at_ms: Option<u64>) {
    let noted = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
    conn.issued_at_s = issued_at_ms.map_or(0, |ms| noted(ms / 1000));
    conn.expires_at_s = expires_at_ms.map_or(0, |ms| noted(ms.div_ceil(1000)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::connection::Connections;
    use crate::chat::ids::ShardId;

    #[test]
    fn times_beyond_what_can_be_noted_are_the_last_that_can() {
        let mut connections = Connections::new(ShardId(0));
        let slot = connections.insert(0).slot();
        let mut noted = |issued, expires| {
            note_times(&mut connections[slot], issued, expires);
            (connections[slot].issued_at_s, connections[slot].expires_at_s)
        };
        assert_eq!(noted(None, None), (0, 0));
        assert_eq!(noted(Some(1_700_000_000_999), Some(1_700_000_000_001)), (1_700_000_000, 1_700_000_001));
        let beyond = (u64::from(u32::MAX) + 6) * 1000;
        assert_eq!(noted(Some(beyond), Some(beyond)), (u32::MAX, u32::MAX));
        assert_eq!(noted(Some(u64::MAX), Some(u64::MAX)), (u32::MAX, u32::MAX));
    }
}
