//! The record of denials: who was refused what, and why.
//!
//! Every refusal that an operator may want to know of goes through `Shard::deny`, so that it is logged in one form, with
//! reason, user and address, and at a limited rate: a peer that is refused a million times a second writes a few lines of
//! each reason, and one that counts the rest. Whatever a peer chose is handed to the log as a string value, never as a
//! part of the line, so that the log's own form quotes and escapes it.

use super::closing::CloseReason;
use super::connection::NONE;
use super::shard::Shard;
use crate::wire::client::ErrorCode;

/// At most this much of a text that a peer chose is logged.
const TEXT_BYTES_MAX: usize = 256;

/// Why somebody was denied something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DenialReason {
    /// A token does not verify.
    InvalidToken,
    /// There was neither token nor API key.
    NoCredential,
    /// The token was issued before its user's tokens were revoked.
    RevokedToken,
    /// The API key is not known.
    ApiKey,
    /// The credential is good, but not for this.
    Forbidden,
    /// The page's origin is not among those allowed.
    Origin,
    /// More messages or requests than the rate allows.
    RateLimited,
    /// A connection was closed since it went on above its rate.
    Flooding,
    /// More connections from an address than are taken.
    AddressLimit,
    /// The PROXY header of a trusted proxy is missing or malformed.
    ProxyHeader,
    /// The TLS handshake failed, or what came behind it was no TLS.
    Tls,
    /// The peer broke the WebSocket protocol or a limit of it.
    Violation,
    /// The connection did not read fast enough.
    SlowConsumer,
    /// An administrator removed it.
    Removed,
    /// Its user has a newer connection and too many of them.
    Replaced,
    /// Its message was unfinished longest when the input pool was full.
    InputPoolFull,
}

impl DenialReason {
    /// Each of them, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::InvalidToken,
        Self::NoCredential,
        Self::RevokedToken,
        Self::ApiKey,
        Self::Forbidden,
        Self::Origin,
        Self::RateLimited,
        Self::Flooding,
        Self::AddressLimit,
        Self::ProxyHeader,
        Self::Tls,
        Self::Violation,
        Self::SlowConsumer,
        Self::Removed,
        Self::Replaced,
        Self::InputPoolFull,
    ];

    /// The name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid_token",
            Self::NoCredential => "no_credential",
            Self::RevokedToken => "revoked_token",
            Self::ApiKey => "api_key",
            Self::Forbidden => "forbidden",
            Self::Origin => "origin",
            Self::RateLimited => "rate_limited",
            Self::Flooding => "flooding",
            Self::AddressLimit => "address_limit",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
            Self::Violation => "violation",
            Self::SlowConsumer => "slow_consumer",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
            Self::InputPoolFull => "input_pool_full",
        }
    }

    /// The reason of a close, if it is to be recorded there: a token is recorded where it is refused, and going away or
    /// an expiry in time is nothing to look into.
    fn of_close(reason: &CloseReason) -> Option<Self> {
        match reason {
            CloseReason::NoToken => Some(Self::NoCredential),
            CloseReason::Violation(_) => Some(Self::Violation),
            CloseReason::SlowConsumer => Some(Self::SlowConsumer),
            CloseReason::Flooding => Some(Self::Flooding),
            CloseReason::Removed(_) => Some(Self::Removed),
            CloseReason::Replaced => Some(Self::Replaced),
            CloseReason::InputPoolFull => Some(Self::InputPoolFull),
            CloseReason::InvalidToken | CloseReason::Expired | CloseReason::GoingAway => None,
        }
    }
}

/// How many lines of a reason were written in a second, and how many were left out.
#[derive(Clone, Copy, Default)]
struct Window {
    second: u64,
    lines: u32,
    suppressed: u64,
    /// Left out in seconds before it, and not told yet.
    untold: u64,
}

impl Window {
    fn enter(&mut self, second: u64) {
        if self.second != second {
            self.untold += std::mem::take(&mut self.suppressed);
            (self.second, self.lines) = (second, 0);
        }
    }

    fn has_left_out(&self) -> bool {
        self.suppressed > 0 || self.untold > 0
    }
}

/// Which denials are logged one by one, and which are only counted.
pub struct Denials {
    windows: [Window; DenialReason::ALL.len()],
    lines_max: u32,
    /// Windows with something left out.
    suppressing: u32,
}

impl Denials {
    /// At most `lines_max` lines a second for each reason.
    pub fn new(lines_max: u32) -> Self {
        Self { windows: [Window::default(); DenialReason::ALL.len()], lines_max, suppressing: 0 }
    }

    /// Whether one more is to be logged; if not, it is counted.
    fn may_log(&mut self, reason: DenialReason, now_ms: u64) -> bool {
        let window = &mut self.windows[reason as usize];
        window.enter(now_ms / 1000);
        if window.lines < self.lines_max {
            window.lines += 1;
            return true;
        }
        self.suppressing += u32::from(!window.has_left_out());
        window.suppressed += 1;
        false
    }

    /// What was left out in seconds that are over, by reason.
    fn take_suppressed(&mut self, now_ms: u64) -> Vec<(DenialReason, u64)> {
        let mut taken = Vec::new();
        if self.suppressing > 0 {
            for (reason, window) in DenialReason::ALL.into_iter().zip(&mut self.windows) {
                window.enter(now_ms / 1000);
                if window.untold > 0 {
                    taken.push((reason, std::mem::take(&mut window.untold)));
                    self.suppressing -= u32::from(!window.has_left_out());
                }
            }
        }
        taken
    }

    /// When something that was left out is to be told, on the tick clock.
    pub fn due_ms(&self) -> Option<u64> {
        let waiting = self.windows.iter().filter(|window| self.suppressing > 0 && window.has_left_out());
        waiting.map(|window| (window.second + 1) * 1000).min()
    }
}

impl Shard {
    /// Records that the peer of a connection was denied something. `user` is who it is known to be; with `None` it is who
    /// the connection belongs to, if anybody. `detail` says more about the reason and may be of the peer's making, but
    /// never is a token, a key or content.
    pub(super) fn deny(&mut self, slot: u32, reason: DenialReason, user: Option<&str>, detail: &str) {
        if !self.denials.may_log(reason, self.now.tick_ms) {
            return;
        }
        let number = self.connections[slot].user;
        let owner = if number == NONE { "" } else { self.users.id(number).text() };
        let user = user.unwrap_or(owner);
        tracing::info!(reason = reason.label(), detail = cut(detail), user = cut(user), address = %self.addresses.of(slot), "denied");
    }

    /// Records the refusal of something in a room, if it is since the user may not.
    pub(super) fn deny_in_room(&mut self, slot: u32, failure: Option<ErrorCode>, room: &str) {
        if failure == Some(ErrorCode::Forbidden) {
            self.deny(slot, DenialReason::Forbidden, None, room);
        }
    }

    /// Records the close of a connection, if it is one that an operator may want to look into.
    pub(super) fn deny_further(&mut self, slot: u32, reason: &CloseReason) {
        if let Some(denial) = DenialReason::of_close(reason) {
            self.deny(slot, denial, None, reason.text());
        }
    }

    /// Tells how many denials were not logged one by one, once their second is over.
    pub(super) fn tell_suppressed_denials(&mut self) {
        for (reason, suppressed) in self.denials.take_suppressed(self.now.tick_ms) {
            tracing::info!(reason = reason.label(), suppressed, "more were denied");
        }
    }
}

/// The beginning of a text, at most [`TEXT_BYTES_MAX`] long.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_of_each_reason_and_one_that_counts_the_rest() {
        let mut denials = Denials::new(2);
        let logged = |denials: &mut Denials, reason, now_ms| (0..5).filter(|_| denials.may_log(reason, now_ms)).count();
        assert_eq!(logged(&mut denials, DenialReason::Origin, 1_000), 2);
        assert_eq!(logged(&mut denials, DenialReason::ApiKey, 1_999), 2);
        assert_eq!((denials.take_suppressed(1_999), denials.due_ms()), (vec![], Some(2_000)));
        // What goes on is told while it goes on, also when some of each second comes before the count.
        for second in 2..5 {
            assert_eq!(logged(&mut denials, DenialReason::ApiKey, second * 1_000), 2);
            let told = denials.take_suppressed(second * 1_000);
            assert_eq!(
                told.iter().find(|(reason, _)| *reason == DenialReason::ApiKey),
                Some(&(DenialReason::ApiKey, 3))
            );
            assert_eq!(told.contains(&(DenialReason::Origin, 3)), second == 2);
        }
        assert_eq!((denials.take_suppressed(4_999), denials.due_ms()), (vec![], Some(5_000)));
        assert_eq!(denials.take_suppressed(5_000), [(DenialReason::ApiKey, 3)]);
        assert_eq!((denials.take_suppressed(9_000), denials.due_ms()), (vec![], None));
    }

    #[test]
    fn reasons_stand_in_their_order_and_have_names_of_their_own() {
        for (at, reason) in DenialReason::ALL.into_iter().enumerate() {
            assert_eq!(at, reason as usize);
            let namesakes = DenialReason::ALL.into_iter().filter(|other| other.label() == reason.label());
            assert_eq!(namesakes.count(), 1, "{reason:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(200);
        assert_eq!(cut(&format!("x{long}")).len(), 255);
    }
}
