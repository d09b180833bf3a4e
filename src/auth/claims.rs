//! What the payload of a token says: bytes whose signature verifies -> [`Claims`], and those at a time -> [`Identity`].
//!
//! Owns the names of the claims and the rules for them, which are those of Node's `jsonwebtoken`. `exp` and `nbf` count
//! when present and without leeway. Node compares them with its clock cut to whole seconds; here the comparison is exact
//! to the millisecond, which is the same for whole seconds, and lets a fractional `exp` end, and a fractional `nbf`
//! begin, at the moment that it names.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Identity, ROLE_CLAIM_DEFAULT, Role, TokenError};
use crate::wire::value::Id;

/// Times in milliseconds stop here, so that they are exact as JSON numbers everywhere.
const TIME_MS_MAX: f64 = 9_007_199_254_740_992.0;

/// Which claims are read, and what they must be.
#[derive(Clone, Debug)]
pub(super) struct ClaimRules {
    /// One of them must be `iss`, unless there are none.
    pub issuers: Vec<String>,
    /// One of them must be in `aud`, unless there are none.
    pub audiences: Vec<String>,
    /// The claim that names the role.
    pub role_claim: String,
    /// The claim that names the user; without, `userId` and else `sub`.
    pub user_claim: Option<String>,
}

/// What a token says that verifies, whenever that is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    identity: Identity,
    not_before_ms: Option<u64>,
}

impl Claims {
    /// Who the token says somebody is, at a time in milliseconds since the epoch.
    ///
    /// # Errors
    /// It is not good yet, or no more.
    pub fn at(&self, now_ms: u64) -> Result<Identity, TokenError> {
        if self.not_before_ms.is_some_and(|time_ms| time_ms > now_ms) {
            return Err(TokenError::NotYetValid);
        }
        if self.identity.expires_at_ms.is_some_and(|time_ms| time_ms <= now_ms) {
            return Err(TokenError::Expired);
        }
        Ok(self.identity.clone())
    }
}

impl Default for ClaimRules {
    fn default() -> Self {
        let (issuers, audiences) = (Vec::new(), Vec::new());
        Self { issuers, audiences, role_claim: ROLE_CLAIM_DEFAULT.to_owned(), user_claim: None }
    }
}

impl ClaimRules {
    /// Reads a payload.
    pub fn read(&self, payload: &str) -> Result<Claims, TokenError> {
        let mut deserializer = serde_json::Deserializer::from_str(payload);
        let raw = ClaimsSeed(self)
            .deserialize(&mut deserializer)
            .and_then(|claims| deserializer.end().map(|()| claims))
            .map_err(|_| TokenError::Malformed)?;
        let expires_at_ms = time_ms(raw.exp)?.map(|time| whole_ms(time.ceil()));
        let not_before_ms = time_ms(raw.nbf)?.map(|time| whole_ms(time.ceil()));
        let issued_at_ms = time_ms(raw.iat)?.map(|time| whole_ms(time.floor()));
        if !self.issuers.is_empty() && !names_one_of(raw.iss, &self.issuers, false) {
            return Err(TokenError::Issuer);
        }
        if !self.audiences.is_empty() && !names_one_of(raw.aud, &self.audiences, true) {
            return Err(TokenError::Audience);
        }
        let role = raw.role.and_then(role_of).unwrap_or_default();
        let user = match (&self.user_claim, raw.user.filter(|raw| names_somebody(raw))) {
            (None, None) => raw.sub.filter(|raw| names_somebody(raw)),
            (_, user) => user,
        };
        let user = match user {
            Some(raw) => Some(Id::parse_raw(raw.get()).ok_or(TokenError::User)?),
            None if role == Role::Service => None,
            None => return Err(TokenError::User),
        };
        Ok(Claims { identity: Identity { user, role, expires_at_ms, issued_at_ms }, not_before_ms })
    }

    /// The claim that names the user, or the first of two.
    pub fn user_claim(&self) -> &str {
        self.user_claim.as_deref().unwrap_or("userId")
    }
}

/// The claims that matter, as written. Of a name given twice the last counts, as in `JSON.parse`.
#[derive(Default)]
struct RawClaims<'a> {
    user: Option<&'a RawValue>,
    sub: Option<&'a RawValue>,
    exp: Option<&'a RawValue>,
    nbf: Option<&'a RawValue>,
    iat: Option<&'a RawValue>,
    iss: Option<&'a RawValue>,
    aud: Option<&'a RawValue>,
    role: Option<&'a RawValue>,
}

/// Reads [`RawClaims`] without building a map, some names being configurable.
struct ClaimsSeed<'k>(&'k ClaimRules);

impl<'de> DeserializeSeed<'de> for ClaimsSeed<'_> {
    type Value = RawClaims<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<RawClaims<'de>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimsSeed<'_> {
    type Value = RawClaims<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawClaims<'de>, A::Error> {
        let mut claims = RawClaims::default();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let value: &'de RawValue = map.next_value()?;
            if name.0 == self.0.role_claim {
                claims.role = Some(value);
            }
            if name.0 == self.0.user_claim() {
                claims.user = Some(value);
            }
            let slot = match name.0.as_ref() {
                "sub" => &mut claims.sub,
                "exp" => &mut claims.exp,
                "nbf" => &mut claims.nbf,
                "iat" => &mut claims.iat,
                "iss" => &mut claims.iss,
                "aud" => &mut claims.aud,
                _ => continue,
            };
            *slot = Some(value);
        }
        Ok(claims)
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A time claim in seconds, as milliseconds.
fn time_ms(claim: Option<&RawValue>) -> Result<Option<f64>, TokenError> {
    let Some(raw) = claim else { return Ok(None) };
    let seconds: f64 = serde_json::from_str(raw.get()).map_err(|_| TokenError::Time)?;
    Ok(Some(seconds * 1000.0))
}

fn whole_ms(time: f64) -> u64 {
    // The cast is exact: the value is whole and between 0 and 2^53.
    time.clamp(0.0, TIME_MS_MAX) as u64
}

/// Whether a claim is, or with `list` is or contains, one of the accepted strings.
fn names_one_of(claim: Option<&RawValue>, accepted: &[String], list: bool) -> bool {
    let value = claim.and_then(|raw| serde_json::from_str::<serde_json::Value>(raw.get()).ok());
    let is_accepted = |value: &serde_json::Value| {
        let text = value.as_str();
        text.is_some_and(|text| accepted.iter().any(|one| one == text))
    };
    match value {
        Some(serde_json::Value::Array(values)) if list => values.iter().any(is_accepted),
        Some(value) => is_accepted(&value),
        None => false,
    }
}

fn names_somebody(raw: &RawValue) -> bool {
    !matches!(raw.get(), "null" | "\"\"")
}

fn role_of(raw: &RawValue) -> Option<Role> {
    let name: String = serde_json::from_str(raw.get()).ok()?;
    Role::from_name(&name)
}
