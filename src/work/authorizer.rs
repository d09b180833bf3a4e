//! Asks the ERP who may enter a room, for threads that may block.
//!
//! Owns the form of question and answer, what counts while there is no answer that can be used, and the circuit breaker:
//! when so many questions in a row have failed the ERP is left alone for a while, then one question tries it. It keeps no
//! answer and knows nobody who waits. The lock is between the threads of the crew; it is never held while one asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::fetch::{FetchError, Fetched, Fetcher};
use crate::access::{Level, Permit};
use crate::chat::ids::{RoomName, UserId};
use crate::config::{Config, shown_url};

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// No answer counts for longer.
const TTL_MS_MAX: u64 = 3_600_000;
/// Failures in a row that open the circuit.
const FAILURES_MAX: u32 = 5;

/// Asks; clones share connections and the circuit breaker.
#[derive(Clone)]
pub struct Authorizer {
    fetcher: Fetcher,
    url: String,
    /// The value of `Authorization`, if there is one.
    authorization: Option<String>,
    ttl_ms: u64,
    allows_without: bool,
    breaker: Arc<Mutex<Breaker>>,
}

impl Authorizer {
    /// Asks as it is configured, if it is.
    pub fn of(config: &Config) -> Option<Self> {
        let (point, limits) = (config.access_point.as_ref()?, &config.limits);
        Some(Self {
            fetcher: Fetcher::new(Duration::from_millis(limits.access_timeout_ms), ANSWER_BYTES_MAX),
            url: point.url.clone(),
            authorization: point.key.as_ref().map(|key| format!("Bearer {key}")),
            ttl_ms: limits.access_ttl_ms,
            allows_without: point.allows_without,
            breaker: Arc::new(Mutex::new(Breaker::new(Duration::from_millis(limits.access_retry_ms)))),
        })
    }

    /// What the user may do in the room; `None` if that cannot be told now.
    pub fn ask(&self, room: &RoomName, user: &UserId) -> Option<Permit> {
        if !self.breaker().admits(Instant::now()) {
            return self.without_answer();
        }
        let headers = self.authorization.as_ref().map(|value| ("Authorization", value.as_str()));
        let fetched = self.fetcher.post_json(&self.url, headers.as_slice(), &question(room, user));
        let permit = read_answer(fetched, self.ttl_ms);
        let change = self.breaker().note(permit.is_ok(), Instant::now());
        match (&permit, change) {
            (Err(reason), Some(Change::Opened)) => {
                tracing::warn!(
                    url = shown_url(&self.url),
                    reason,
                    "the ERP cannot say who may enter a room, and is left alone for a while"
                );
            }
            (Err(reason), _) => tracing::debug!(reason, "the ERP cannot say who may enter a room"),
            (Ok(_), Some(_)) => tracing::info!(url = shown_url(&self.url), "the ERP says again who may enter a room"),
            (Ok(_), None) => {}
        }
        permit.ok().or_else(|| self.without_answer())
    }

    /// It is not kept, so that the ERP counts as soon as it answers.
    fn without_answer(&self) -> Option<Permit> {
        self.allows_without.then_some(Permit { level: Level::Member, ttl_ms: 0 })
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing is half done in it when a thread panics.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked, as JSON.
fn question(room: &RoomName, user: &UserId) -> Vec<u8> {
    let mut json = b"{\"user\":".to_vec();
    user.as_ref().put_json(&mut json);
    json.extend_from_slice(b",\"roomId\":");
    json.extend_from_slice(serde_json::Value::from(room.text()).to_string().as_bytes());
    json.push(b'}');
    json
}

#[derive(Deserialize)]
struct Answer {
    allow: bool,
    role: Option<String>,
    #[serde(rename = "ttlMs")]
    ttl_ms: Option<u64>,
}

/// What an answer says, or why it cannot be used.
fn read_answer(fetched: Result<Fetched, FetchError>, ttl_ms: u64) -> Result<Permit, String> {
    let Fetched { status, body } = fetched.map_err(|error| error.to_string())?;
    if status != 200 {
        return Err(format!("the status is {status} and not 200"));
    }
    // An array would be taken for the members of an object, in order.
    let answer = Some(body.trim_ascii_start()).filter(|body| body.starts_with(b"{"));
    let answer: Answer = answer
        .and_then(|body| serde_json::from_slice(body).ok())
        .ok_or("the answer is not {\"allow\": true or false, \"role\", \"ttlMs\"}")?;
    let level = match (answer.allow, answer.role) {
        (false, _) => Level::Nothing,
        (true, None) => Level::Member,
        (true, Some(role)) => Level::from_role(&role).ok_or("the role is neither member nor reader")?,
    };
    Ok(Permit { level, ttl_ms: answer.ttl_ms.unwrap_or(ttl_ms).min(TTL_MS_MAX) })
}

/// Whether the ERP is asked at all.
#[derive(Debug)]
struct Breaker {
    /// Failures since the last success.
    failures: u32,
    /// Until when it is left alone, or, while one tries it, how long that one is waited for.
    closed_again: Option<Instant>,
    retry: Duration,
}

/// What has become of the circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Opened,
    Closed,
}

impl Breaker {
    fn new(retry: Duration) -> Self {
        Self { failures: 0, closed_again: None, retry }
    }

    /// Whether a question may be asked. When the time is over one may, and its result counts for all.
    fn admits(&mut self, now: Instant) -> bool {
        match self.closed_again {
            None => true,
            Some(at) if now < at => false,
            Some(_) => {
                // If nothing comes of this one, another may try after as long again.
                self.closed_again = Some(now + self.retry);
                true
            }
        }
    }

    fn note(&mut self, is_success: bool, now: Instant) -> Option<Change> {
        if is_success {
            self.failures = 0;
            return self.closed_again.take().map(|_| Change::Closed);
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES_MAX {
            return None;
        }
        let opened = self.closed_again.is_none().then_some(Change::Opened);
        self.closed_again = Some(now + self.retry);
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ids::HashKey;
    use crate::wire::value::Id;

    fn answered(status: u16, body: &str) -> Result<Permit, String> {
        read_answer(Ok(Fetched { status, body: body.as_bytes().to_vec() }), 60_000)
    }

    #[test]
    fn what_is_asked() {
        let key = HashKey::new([7; 16]);
        for (id, room, json) in [
            ("42", "r", r#"{"user":42,"roomId":"r"}"#),
            (r#""a\"b""#, "pro\"ject/ä", r#"{"user":"a\"b","roomId":"pro\"ject/ä"}"#),
        ] {
            let user = UserId::new(&Id::parse_raw(id).unwrap(), 1);
            let asked = question(&RoomName::new(room, key.hash(room)), &user);
            assert_eq!(String::from_utf8(asked).unwrap(), json);
        }
    }

    #[test]
    fn what_an_answer_says() {
        for (body, level, ttl_ms) in [
            (r#"{"allow":true}"#, Level::Member, 60_000),
            (r#" {"allow":true,"role":"member","ttlMs":5,"more":[1]}"#, Level::Member, 5),
            (r#"{"allow":true,"role":"reader","ttlMs":0}"#, Level::Reader, 0),
            (r#"{"allow":false,"role":"member"}"#, Level::Nothing, 60_000),
            (r#"{"allow":false,"ttlMs":99999999999}"#, Level::Nothing, 3_600_000),
            (r#"{"allow":true,"role":null,"ttlMs":null}"#, Level::Member, 60_000),
        ] {
            assert_eq!(answered(200, body), Ok(Permit { level, ttl_ms }), "{body}");
        }
        for garbage in [
            "",
            "true",
            "[true]",
            "{}",
            r#"{"allow":1}"#,
            r#"{"allow":"true"}"#,
            r#"{"allow":true,"role":"owner"}"#,
            r#"{"allow":true,"ttlMs":-1}"#,
            r#"{"allow":true,"ttlMs":"5"}"#,
            r#"{"allow":true}x"#,
            r#"{"allow":true,"allow":false}"#,
        ] {
            assert!(answered(200, garbage).is_err(), "{garbage}");
        }
        assert!(answered(204, r#"{"allow":true}"#).is_err() && answered(403, r#"{"allow":false}"#).is_err());
        assert!(read_answer(Err(FetchError::TimedOut), 0).is_err());
    }

    #[test]
    fn after_failures_in_a_row_one_question_tries_again() {
        let (start, retry) = (Instant::now(), Duration::from_secs(5));
        let mut breaker = Breaker::new(retry);
        for _ in 0..2 {
            (1..FAILURES_MAX)
                .for_each(|_| assert_eq!((breaker.admits(start), breaker.note(false, start)), (true, None)));
            assert_eq!(breaker.note(true, start), None, "a success in between begins anew");
        }
        (1..FAILURES_MAX).for_each(|_| assert_eq!(breaker.note(false, start), None));
        assert_eq!(breaker.note(false, start), Some(Change::Opened));
        assert!(!breaker.admits(start + retry - Duration::from_millis(1)));
        let later = start + retry;
        assert_eq!((breaker.admits(later), breaker.admits(later)), (true, false), "one at a time");
        assert_eq!(breaker.note(false, later), None);
        assert!(!breaker.admits(later + retry - Duration::from_millis(1)));
        let later = later + retry;
        assert_eq!((breaker.admits(later), breaker.note(true, later)), (true, Some(Change::Closed)));
        assert!(breaker.admits(later) && breaker.admits(later));
    }
}
