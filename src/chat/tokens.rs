//! The check of a token that a client has sent, at once or later.
//!
//! Owns the keys in force, what is remembered of tokens that verified, and the state of a check that waits for its answer.
//! Meanwhile the connection is not read: what the client sends behind its token takes effect behind it. A token that came
//! with an HTTP request leaves the request unread, and it is read again when the answer is there; one that came in a
//! message is kept with it. What is remembered is the content of a token by the SHA-256 of all of it; whether it has
//! expired or is revoked is asked each time, and other keys make everything forgotten.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::address_homes::AddressKey;
use super::connection::{Flag, Phase};
use super::denial::DenialReason;
use super::ids::ConnId;
use super::job::{CheckMark, Verified, Verify};
use super::shard::Shard;
use crate::auth::{Claims, Credentials, Identity, Look, TokenError};
use crate::wire::value::Id;

/// What became of a token.
#[derive(Debug)]
pub enum Checked {
    /// It is somebody's.
    Good(Identity),
    /// It is nobody's.
    Bad,
    /// Too many are being checked.
    Busy,
    /// It is not known yet; the same question is asked again when it is.
    Later,
}

/// The check of a token that came on a connection.
#[derive(Debug)]
pub struct TokenCheck {
    state: State,
    /// What brought the token, if that was a message.
    message: Option<TokenMessage>,
}

#[derive(Debug)]
enum State {
    UnderWay,
    /// Where keys come from was asked; the token is to be looked at once more.
    KeySought,
    Answered(Verified),
}

#[derive(Debug)]
struct TokenMessage {
    token: Box<str>,
    reference: Option<Box<str>>,
}

impl TokenCheck {
    /// Whether it waits for an answer.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::UnderWay)
    }
}

/// Tokens that verified, by their digest. When half of the room is taken by those used lately, the other half, used
/// longer ago, is forgotten.
#[derive(Debug)]
pub struct TokenCache {
    recent: HashMap<[u8; 32], Claims>,
    older: HashMap<[u8; 32], Claims>,
    max: usize,
}

impl TokenCache {
    /// Remembers at most `max` tokens.
    pub fn new(max: usize) -> Self {
        Self { recent: HashMap::new(), older: HashMap::new(), max }
    }

    fn find(&mut self, digest: &[u8; 32]) -> Option<Claims> {
        if let Some(claims) = self.recent.get(digest) {
            return Some(claims.clone());
        }
        let claims = self.older.remove(digest)?;
        self.insert(*digest, claims.clone());
        Some(claims)
    }

    fn insert(&mut self, digest: [u8; 32], claims: Claims) {
        if self.max == 0 {
            return;
        }
        if self.recent.len() >= self.max.div_ceil(2) {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(digest, claims);
    }

    fn clear(&mut self) {
        (self.recent, self.older) = Default::default();
    }
}

impl Shard {
    /// Other keys are in force from now on. Who is there already stays, until the own token expires.
    pub fn handle_credentials(&mut self, credentials: Arc<Credentials>) {
        self.credentials = credentials;
        self.keys_generation = self.keys_generation.wrapping_add(1);
        self.verified.clear();
    }

    /// Verifies a token that came on a connection, and that its user has not been told to get a new one; says why not in
    /// the record of denials.
    pub(super) fn check_token(&mut self, slot: u32, token: &str) -> Checked {
        let before = self.connections[slot].extra.as_mut().and_then(|extra| extra.check.take());
        let state = before.map(|check| check.state);
        // A key is sought once for a token. Behind a check it was sought already, where it had to be.
        let is_sought = matches!(state, Some(State::KeySought | State::Answered(_)));
        let conn = self.connections.id(slot);
        let address = self.sharing_address(slot);
        let mut look = self.credentials.keys.look(token, self.now.wall_ms, is_sought);
        if matches!(look, Look::UnknownKey) && self.verified.find(&digest(token)).is_some() {
            // It has verified with a key that bears no name; no other needs to be sought.
            look = self.credentials.keys.look(token, self.now.wall_ms, true);
        }
        let claims = match look {
            Look::Known(claims) => claims,
            Look::UnknownKey if self.errands.seek_key(conn, address).is_ok() => return self.wait_for_check(slot),
            Look::UnknownKey => return Checked::Busy,
            Look::Unchecked(check) => {
                let mark = CheckMark { conn, digest: digest(token), generation: self.keys_generation };
                match (state, self.verified.find(&mark.digest)) {
                    (Some(State::Answered(verified)), _) if verified.mark == mark => verified.claims,
                    (_, Some(claims)) => Ok(claims),
                    _ if self.errands.verify(Verify { mark, check }, address).is_ok() => {
                        return self.wait_for_check(slot);
                    }
                    _ => return Checked::Busy,
                }
            }
        };
        self.judge_claims(slot, claims)
    }

    /// Whose share of the checks under way a token takes; a trusted proxy that names no client speaks for many.
    fn sharing_address(&self, slot: u32) -> Option<AddressKey> {
        let address = self.addresses.of(slot);
        (!self.config.trusted_proxies.contains(address)).then(|| AddressKey::of(address))
    }

    fn judge_claims(&mut self, slot: u32, claims: Result<Claims, TokenError>) -> Checked {
        let identity = match claims.and_then(|claims| claims.at(self.now.wall_ms)) {
            Ok(identity) => identity,
            Err(error) => {
                self.deny(slot, DenialReason::InvalidToken, None, error.label());
                return Checked::Bad;
            }
        };
        let user = identity.user.as_ref().map(Id::text);
        if user.is_some_and(|user| self.revocations.refuses(user, identity.issued_at_ms)) {
            self.deny(slot, DenialReason::RevokedToken, user, "");
            return Checked::Bad;
        }
        Checked::Good(identity)
    }

    fn wait_for_check(&mut self, slot: u32) -> Checked {
        let conn = &mut self.connections[slot];
        conn.mark(Flag::Checking);
        conn.mark(Flag::Paused);
        conn.extra_mut().check = Some(TokenCheck { state: State::UnderWay, message: None });
        Checked::Later
    }

    /// Keeps a message whose token is being checked.
    pub(super) fn keep_token_message(&mut self, slot: u32, token: &str, reference: Option<Box<str>>) {
        if let Some(check) = self.connections[slot].extra.as_mut().and_then(|extra| extra.check.as_mut()) {
            check.message = Some(TokenMessage { token: token.into(), reference });
        }
    }

    /// A signature was looked at.
    pub(super) fn handle_verified(&mut self, verified: Verified) {
        self.errands.note_verified(verified.mark.conn);
        if let Ok(claims) = &verified.claims
            && verified.mark.generation == self.keys_generation
        {
            self.verified.insert(verified.mark.digest, claims.clone());
        }
        self.end_check(verified.mark.conn, State::Answered(verified));
    }

    /// All keys that there are were handed on before.
    pub(super) fn handle_key_sought(&mut self, conn: ConnId) {
        self.errands.note_sought(conn);
        self.end_check(conn, State::KeySought);
    }

    /// Goes on with a connection whose check has an answer, if it is still there and waits for it.
    fn end_check(&mut self, conn: ConnId, state: State) {
        let slot = conn.slot();
        if !self.connections.is_current(conn) || !self.connections[slot].has(Flag::Checking) {
            return;
        }
        let conn = &mut self.connections[slot];
        conn.unmark(Flag::Checking);
        let Some(check) = conn.extra.as_mut().and_then(|extra| extra.check.as_mut()) else { return };
        check.state = state;
        let phase = conn.phase;
        match check.message.take() {
            Some(TokenMessage { token, reference }) if phase == Phase::Auth => {
                self.handle_auth(slot, &token, reference);
            }
            Some(TokenMessage { token, reference }) => self.handle_refresh_token(slot, &token, reference),
            None => {}
        }
        let conn = &mut self.connections[slot];
        if !conn.has(Flag::Checking) {
            // The pause may have been taken back when the outbox was drained; the input kept since still waits.
            conn.mark(Flag::Paused);
            self.resume(slot);
        }
    }

    /// A check that nobody has taken is one that failed for the time being.
    pub(super) fn handle_unchecked(&mut self, verify: &Verify) {
        self.handle_verified(Verified { mark: verify.mark, claims: Err(TokenError::Unchecked) });
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Keys;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let keys = Keys::new(b"a secret of at least thirty-two bytes");
        let id = Id::from_text("ana");
        let token = keys.mint(id.as_ref(), Default::default(), std::time::Duration::from_secs(60), 0).unwrap();
        let Look::Known(Ok(claims)) = keys.look(&token, 0, true) else { panic!() };
        let mut cache = TokenCache::new(10);
        for number in 0..1000u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&number.to_le_bytes());
            cache.insert(digest, claims.clone());
            assert!(number == 0 || cache.find(&[0; 32]).is_some(), "what is used stays: {number}");
            assert!(cache.recent.len() + cache.older.len() <= 10);
        }
        cache.clear();
        assert!(cache.find(&[0; 32]).is_none());
        let mut none = TokenCache::new(0);
        none.insert([0; 32], claims);
        assert!(none.find(&[0; 32]).is_none());
    }
}
