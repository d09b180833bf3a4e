//! Who somebody is: (keys, token, time) -> [`Identity`].
//!
//! Owns the verification of JSON Web Tokens, the roles, the API key, and the minting of tokens for
//! development. Reads no clock: the time is an argument. Knows nothing about where a token came
//! from or what an identity may do. Invariants: nothing of a token is believed before its signature
//! verifies with a configured algorithm; no secret is ever shown by `Debug`.
//!
//! The rules are those of Node's `jsonwebtoken`. `exp` and `nbf` count when present and without
//! leeway. Node compares them with its clock cut to whole seconds; here the comparison is exact to
//! the millisecond, which is the same for whole seconds, and lets a fractional `exp` end, and a
//! fractional `nbf` begin, at the moment that it names.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use crate::access::Grants;
use crate::wire::value::{Id, put_json_string};

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The claim that grants rights, unless configured otherwise.
pub const ROLE_CLAIM_DEFAULT: &str = "chatRole";

/// Times in milliseconds stop here, so that they are exact as JSON numbers everywhere.
const TIME_MS_MAX: f64 = 9_007_199_254_740_992.0;

/// An algorithm that a token may be signed with (RFC 7518, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
}

impl Algorithm {
    /// Every algorithm, which is what Node's `jsonwebtoken` accepts for a secret.
    pub const ALL: [Algorithm; 3] = [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512];

    /// The algorithm with this `alg` name, compared exactly.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|alg| alg.name() == name)
    }

    /// The name in a token's header.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Hs384 => "HS384",
            Algorithm::Hs512 => "HS512",
        }
    }

    fn implementation(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::Hs384 => jsonwebtoken::Algorithm::HS384,
            Algorithm::Hs512 => jsonwebtoken::Algorithm::HS512,
        }
    }
}

/// What somebody may do beyond their own messages and rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// No special right.
    #[default]
    User,
    /// May edit and delete the messages of others.
    Moderator,
    /// A backend, such as the ERP: may do everything.
    Service,
}

impl Role {
    /// The role that a claim's value names.
    pub fn from_name(name: &str) -> Option<Role> {
        match name {
            "user" => Some(Role::User),
            "moderator" => Some(Role::Moderator),
            "service" => Some(Role::Service),
            _ => None,
        }
    }

    /// The value of the claim.
    pub fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Moderator => "moderator",
            Role::Service => "service",
        }
    }
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The claim `userId`, else `sub`. Only a service may have none.
    pub user: Option<Id>,
    /// The rights.
    pub role: Role,
    /// When the token ends, in milliseconds since the epoch; at most 2^53.
    pub expires_at_ms: Option<u64>,
    /// When the token was made, in milliseconds since the epoch; at most 2^53.
    pub issued_at_ms: Option<u64>,
    /// The rooms that it grants, where a claim is read for that.
    pub grants: Option<Arc<Grants>>,
}

/// Why a token does not verify. For logs and metrics: a peer only learns that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    TooLarge,
    /// Not three parts of base64url with JSON objects in the first two.
    Malformed,
    /// `alg` is `none`, unknown or not configured, or `crit` asks for an extension.
    Algorithm,
    /// The signature is not one of the configured key.
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
    /// `exp`, `nbf` or `iat` is not a number.
    Time,
    /// An issuer is configured and `iss` is absent or another.
    Issuer,
    /// An audience is configured and `aud` is absent or names others.
    Audience,
    /// Neither `userId` nor `sub` names a user, or the one that counts is not a valid id.
    User,
}

impl TokenError {
    /// A short name for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            TokenError::TooLarge => "too_large",
            TokenError::Malformed => "malformed",
            TokenError::Algorithm => "algorithm",
            TokenError::Signature => "signature",
            TokenError::Expired => "expired",
            TokenError::NotYetValid => "not_yet_valid",
            TokenError::Time => "time",
            TokenError::Issuer => "issuer",
            TokenError::Audience => "audience",
            TokenError::User => "user",
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl std::error::Error for TokenError {}

/// The secret and the rules by which tokens are verified.
#[derive(Clone)]
pub struct Keys {
    verifying: DecodingKey,
    signing: EncodingKey,
    algorithms: Vec<Algorithm>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    role_claim: String,
    rooms_claim: Option<String>,
}

impl Keys {
    /// Keys for an HMAC secret: every algorithm, no issuer, no audience, [`ROLE_CLAIM_DEFAULT`].
    pub fn new(secret: &[u8]) -> Keys {
        Keys {
            verifying: DecodingKey::from_secret(secret),
            signing: EncodingKey::from_secret(secret),
            algorithms: Algorithm::ALL.to_vec(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            role_claim: ROLE_CLAIM_DEFAULT.to_owned(),
            rooms_claim: None,
        }
    }

    /// Accepts only these algorithms; with none, no token verifies.
    pub fn with_algorithms(mut self, algorithms: Vec<Algorithm>) -> Keys {
        self.algorithms = algorithms;
        self
    }

    /// Requires `iss` to be one of these, unless there are none.
    pub fn with_issuers(mut self, issuers: Vec<String>) -> Keys {
        self.issuers = issuers;
        self
    }

    /// Requires `aud` to name one of these, unless there are none.
    pub fn with_audiences(mut self, audiences: Vec<String>) -> Keys {
        self.audiences = audiences;
        self
    }

    /// Reads the role from the claim of this name.
    pub fn with_role_claim(mut self, name: String) -> Keys {
        self.role_claim = name;
        self
    }

    /// Reads the rooms that a token grants from the claim of this name; from none unless there is one.
    pub fn with_rooms_claim(mut self, name: Option<String>) -> Keys {
        self.rooms_claim = name;
        self
    }

    /// Verifies a token in JWS compact form (RFC 7515, section 7.1) at a time in milliseconds
    /// since the epoch.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let algorithm = self.algorithm_of(header)?;
        let signed = crypto::verify(signature, message.as_bytes(), &self.verifying, algorithm.implementation());
        if !signed.is_ok_and(|good| good) {
            return Err(TokenError::Signature);
        }
        let claims = decode_part(payload)?;
        self.identify(&claims, now_ms)
    }

    /// Signs a token that these keys verify from `now_ms` on for `ttl`, with the first configured
    /// algorithm, issuer and audience. Times are cut to whole seconds, as is usual; `None` when no
    /// algorithm is configured.
    pub fn mint(&self, user: Option<&Id>, role: Role, ttl: Duration, now_ms: u64) -> Option<String> {
        let algorithm = *self.algorithms.first()?;
        let mut claims = b"{".to_vec();
        if let Some(user) = user {
            claims.extend_from_slice(b"\"userId\":");
            user.put_json(&mut claims);
            claims.push(b',');
        }
        let mut put = |name: &str, value: &str| {
            put_json_string(&mut claims, name);
            claims.push(b':');
            put_json_string(&mut claims, value);
            claims.push(b',');
        };
        if role != Role::User {
            put(&self.role_claim, role.name());
        }
        if let Some(issuer) = self.issuers.first() {
            put("iss", issuer);
        }
        if let Some(audience) = self.audiences.first() {
            put("aud", audience);
        }
        let issued = now_ms / 1000;
        let expires = issued.saturating_add(ttl.as_secs());
        claims.extend_from_slice(format!("\"iat\":{issued},\"exp\":{expires}}}").as_bytes());
        let header = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, algorithm.name());
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims));
        let signature = crypto::sign(token.as_bytes(), &self.signing, algorithm.implementation()).ok()?;
        token.push('.');
        token.push_str(&signature);
        Some(token)
    }

    fn algorithm_of(&self, header: &str) -> Result<Algorithm, TokenError> {
        let text = decode_part(header)?;
        let header: Header<'_> = serde_json::from_str(&text).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        Algorithm::from_name(&header.alg)
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or(TokenError::Algorithm)
    }

    fn identify(&self, payload: &str, now_ms: u64) -> Result<Identity, TokenError> {
        let mut deserializer = serde_json::Deserializer::from_str(payload);
        let seed = ClaimsSeed { role_claim: &self.role_claim, rooms_claim: self.rooms_claim.as_deref() };
        let claims = seed
            .deserialize(&mut deserializer)
            .and_then(|claims| deserializer.end().map(|()| claims))
            .map_err(|_| TokenError::Malformed)?;
        let expires_at = time_ms(claims.exp)?;
        let not_before = time_ms(claims.nbf)?;
        let issued_at = time_ms(claims.iat)?;
        if not_before.is_some_and(|time| whole_ms(time.ceil()) > now_ms) {
            return Err(TokenError::NotYetValid);
        }
        let expires_at_ms = expires_at.map(|time| whole_ms(time.ceil()));
        if expires_at_ms.is_some_and(|time_ms| time_ms <= now_ms) {
            return Err(TokenError::Expired);
        }
        if !self.issuers.is_empty() && !names_one_of(claims.iss, &self.issuers, false) {
            return Err(TokenError::Issuer);
        }
        if !self.audiences.is_empty() && !names_one_of(claims.aud, &self.audiences, true) {
            return Err(TokenError::Audience);
        }
        let role = claims.role.and_then(role_of).unwrap_or_default();
        let user = match claims.user_id.filter(|raw| names_somebody(raw)) {
            Some(raw) => Some(raw),
            None => claims.sub.filter(|raw| names_somebody(raw)),
        };
        let user = match user {
            Some(raw) => Some(Id::parse_raw(raw.get()).ok_or(TokenError::User)?),
            None if role == Role::Service => None,
            None => return Err(TokenError::User),
        };
        let issued_at_ms = issued_at.map(|time| whole_ms(time.floor()));
        let grants = claims.rooms.and_then(Grants::parse).map(Arc::new);
        Ok(Identity { user, role, expires_at_ms, issued_at_ms, grants })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("algorithms", &self.algorithms)
            .field("issuers", &self.issuers)
            .field("audiences", &self.audiences)
            .field("role_claim", &self.role_claim)
            .field("rooms_claim", &self.rooms_claim)
            .finish_non_exhaustive()
    }
}

/// The key that a backend sends as `X-API-Key`.
#[derive(Clone)]
pub struct ApiKey {
    key: Box<[u8]>,
}

impl ApiKey {
    /// A key of these bytes; how long it must be is the configuration's rule.
    pub fn new(key: &[u8]) -> ApiKey {
        ApiKey { key: key.into() }
    }

    /// Whether what a peer sent is the key. Takes the same time wherever the first difference is;
    /// only the length can be learned from it.
    pub fn matches(&self, given: &[u8]) -> bool {
        bool::from(self.key.ct_eq(given))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

/// The fields of a JOSE header that matter; others may have any shape.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    crit: Option<IgnoredAny>,
}

/// The claims that matter, as written. Of a name given twice the last counts, as in `JSON.parse`.
#[derive(Default)]
struct Claims<'a> {
    user_id: Option<&'a RawValue>,
    sub: Option<&'a RawValue>,
    exp: Option<&'a RawValue>,
    nbf: Option<&'a RawValue>,
    iat: Option<&'a RawValue>,
    iss: Option<&'a RawValue>,
    aud: Option<&'a RawValue>,
    role: Option<&'a RawValue>,
    rooms: Option<&'a RawValue>,
}

/// Reads [`Claims`] without building a map, two names being configurable.
struct ClaimsSeed<'k> {
    role_claim: &'k str,
    rooms_claim: Option<&'k str>,
}

impl<'de> DeserializeSeed<'de> for ClaimsSeed<'_> {
    type Value = Claims<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Claims<'de>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimsSeed<'_> {
    type Value = Claims<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims<'de>, A::Error> {
        let mut claims = Claims::default();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let value: &'de RawValue = map.next_value()?;
            if name.0 == self.role_claim {
                claims.role = Some(value);
            }
            if Some(&*name.0) == self.rooms_claim {
                claims.rooms = Some(value);
            }
            let slot = match name.0.as_ref() {
                "userId" => &mut claims.user_id,
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

fn decode_part(part: &str) -> Result<String, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    String::from_utf8(bytes).map_err(|_| TokenError::Malformed)
}

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
    const NOW_MS: u64 = 1_700_000_000_000;

    fn keys() -> Keys {
        Keys::new(SECRET)
    }

    fn sign_raw(header: &str, claims: &[u8], secret: &[u8], algorithm: Algorithm) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(secret);
        let signature = crypto::sign(message.as_bytes(), &key, algorithm.implementation()).unwrap();
        format!("{message}.{signature}")
    }

    fn sign(claims: &str) -> String {
        sign_raw(r#"{"alg":"HS256","typ":"JWT"}"#, claims.as_bytes(), SECRET, Algorithm::Hs256)
    }

    fn verify(claims: &str) -> Result<Identity, TokenError> {
        keys().verify(&sign(claims), NOW_MS)
    }

    fn user_of(claims: &str) -> Result<String, TokenError> {
        verify(claims).map(|identity| {
            let mut out = Vec::new();
            identity.user.unwrap().put_json(&mut out);
            String::from_utf8(out).unwrap()
        })
    }

    #[test]
    fn a_token_made_by_node_verifies() {
        // jwt.sign({userId: 'u1'}, 'secret', {noTimestamp: true}) of Node's jsonwebtoken.
        let token =
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VySWQiOiJ1MSJ9.GLfcFPlBqgXn4SBWZYc5BZyGHhStrsW3WD3umIQY3vM";
        let identity = Keys::new(b"secret").verify(token, NOW_MS).unwrap();
        assert_eq!(identity.user, Id::from_text("u1"));
        assert_eq!(identity.role, Role::User);
        assert_eq!(identity.expires_at_ms, None);
        assert_eq!(identity.issued_at_ms, None);
    }

    #[test]
    fn algorithms() {
        let claims = br#"{"userId":"u"}"#;
        for algorithm in Algorithm::ALL {
            let header = format!(r#"{{"alg":"{}"}}"#, algorithm.name());
            let token = sign_raw(&header, claims, SECRET, algorithm);
            assert!(keys().verify(&token, NOW_MS).is_ok(), "{algorithm:?}");
            let others = Algorithm::ALL.into_iter().filter(|one| *one != algorithm);
            let refusing = keys().with_algorithms(others.collect());
            assert_eq!(refusing.verify(&token, NOW_MS), Err(TokenError::Algorithm));
            assert_eq!(keys().with_algorithms(Vec::new()).verify(&token, NOW_MS), Err(TokenError::Algorithm));
        }
        // Signed with one algorithm, said to be another.
        let token = sign_raw(r#"{"alg":"HS512"}"#, claims, SECRET, Algorithm::Hs256);
        assert_eq!(keys().verify(&token, NOW_MS), Err(TokenError::Signature));
    }

    #[test]
    fn headers() {
        let claims = br#"{"userId":"u"}"#;
        for (header, expected) in [
            (r#"{"alg":"none"}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":"None"}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":"hs256"}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":"RS256"}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":"ES512"}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":""}"#, Err(TokenError::Algorithm)),
            (r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, Err(TokenError::Algorithm)),
            (r#"{"typ":"JWT"}"#, Err(TokenError::Malformed)),
            (r#"{"alg":null}"#, Err(TokenError::Malformed)),
            (r#"{"alg":["HS256"]}"#, Err(TokenError::Malformed)),
            (r#""HS256""#, Err(TokenError::Malformed)),
            ("", Err(TokenError::Malformed)),
            ("{", Err(TokenError::Malformed)),
            (r#"{"alg":"HS256","typ":7,"kid":"x","v":1,"x":{"y":[]}}"#, Ok(())),
            (r#"{"alg":"H\u0053256"}"#, Ok(())),
        ] {
            let token = sign_raw(header, claims, SECRET, Algorithm::Hs256);
            let result = keys().verify(&token, NOW_MS).map(|_| ());
            assert_eq!(result, expected, "{header}");
        }
    }

    #[test]
    fn no_signature_and_wrong_signatures() {
        let token = sign(r#"{"userId":"u"}"#);
        let (message, signature) = token.rsplit_once('.').unwrap();
        for bad in [
            String::new(),
            signature[1..].to_owned(),
            format!("{signature}="),
            format!("{signature}A"),
            "!!!".to_owned(),
            signature.replace(|c: char| c.is_ascii_lowercase(), "A"),
        ] {
            let result = keys().verify(&format!("{message}.{bad}"), NOW_MS);
            assert_eq!(result, Err(TokenError::Signature), "{bad}");
        }
        let unsigned =
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(r#"{"userId":"u"}"#));
        let result = keys().verify(&unsigned, NOW_MS);
        assert_eq!(result, Err(TokenError::Algorithm));
        let other = Keys::new(b"another secret of thirty-two bytes or more");
        assert_eq!(other.verify(&token, NOW_MS), Err(TokenError::Signature));
    }

    #[test]
    fn garbage_is_malformed() {
        let good = sign(r#"{"userId":"u"}"#);
        let header = good.split('.').next().unwrap();
        for token in ["", ".", "..", "...", "a", "a.b", "a.b.c", "é.é.é", "undefined", "null"] {
            let result = keys().verify(token, NOW_MS);
            assert_eq!(result, Err(TokenError::Malformed), "{token}");
        }
        // A fourth part is part of what is signed, so the signature cannot match.
        let result = keys().verify(&format!("{good}.x"), NOW_MS);
        assert_eq!(result, Err(TokenError::Signature));
        let result = keys().verify(&format!("{header}=.x.y"), NOW_MS);
        assert_eq!(result, Err(TokenError::Malformed));
    }

    #[test]
    fn payloads_that_are_no_claims() {
        for payload in [
            &b""[..],
            b"null",
            b"7",
            b"\"u\"",
            b"[]",
            b"{\"userId\":\"u\"} x",
            b"{\"userId\":\"u\"",
            b"\xff",
            b"{\"userId\":\"\xff\"}",
        ] {
            let token = sign_raw(r#"{"alg":"HS256"}"#, payload, SECRET, Algorithm::Hs256);
            let result = keys().verify(&token, NOW_MS);
            assert_eq!(result, Err(TokenError::Malformed), "{payload:?}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let padded = |bytes: usize| sign(&format!(r#"{{"userId":"u","x":"{}"}}"#, "x".repeat(bytes)));
        assert!(keys().verify(&padded(12_000), NOW_MS).is_ok());
        let large = padded(12_300);
        assert!(large.len() > TOKEN_BYTES_MAX);
        assert_eq!(keys().verify(&large, NOW_MS), Err(TokenError::TooLarge));
        let huge = "a".repeat(10_000_000);
        assert_eq!(keys().verify(&huge, NOW_MS), Err(TokenError::TooLarge));
        let deep = |name: &str| {
            let nested = format!("{}{}", "[".repeat(4000), "]".repeat(4000));
            format!(r#"{{"userId":"u","{name}":{nested}}}"#)
        };
        // Whatever is not looked at may be nested; what is looked at never overflows the stack.
        assert!(verify(&deep("x")).is_ok());
        for name in ["exp", "sub", "chatRole", "iss", "aud"] {
            let configured = keys().with_issuers(vec!["i".into()]).with_audiences(vec!["a".into()]);
            let _ = configured.verify(&sign(&deep(name)), NOW_MS);
        }
        assert_eq!(verify(&deep("userId")), Err(TokenError::User));
        assert_eq!(verify(&deep("exp")), Err(TokenError::Time));
    }

    #[test]
    fn users() {
        for (claims, expected) in [
            (r#"{"userId":"u1"}"#, Ok("\"u1\"")),
            (r#"{"userId":7}"#, Ok("7")),
            (r#"{"userId":0}"#, Ok("0")),
            (r#"{"userId":"7"}"#, Ok("\"7\"")),
            (r#"{"sub":"s"}"#, Ok("\"s\"")),
            (r#"{"sub":9}"#, Ok("9")),
            (r#"{"userId":"u","sub":"s"}"#, Ok("\"u\"")),
            (r#"{"sub":"s","userId":"u"}"#, Ok("\"u\"")),
            (r#"{"userId":"u","sub":{"not":"looked at"}}"#, Ok("\"u\"")),
            (r#"{"userId":"","sub":"s"}"#, Ok("\"s\"")),
            (r#"{"userId":null,"sub":"s"}"#, Ok("\"s\"")),
            (r#"{"userId":"a","userId":"b"}"#, Ok("\"b\"")),
            (r#"{"user\u0049d":"u"}"#, Ok("\"u\"")),
            (r#"{"userId":"\u0041"}"#, Ok("\"A\"")),
            ("{}", Err(TokenError::User)),
            (r#"{"id":"u","user":"u"}"#, Err(TokenError::User)),
            (r#"{"userId":""}"#, Err(TokenError::User)),
            (r#"{"userId":"","sub":""}"#, Err(TokenError::User)),
            (r#"{"userId":7.5,"sub":"s"}"#, Err(TokenError::User)),
            (r#"{"userId":7.0}"#, Err(TokenError::User)),
            (r#"{"userId":9007199254740993}"#, Err(TokenError::User)),
            (r#"{"userId":true}"#, Err(TokenError::User)),
            (r#"{"userId":{"id":1}}"#, Err(TokenError::User)),
            (r#"{"userId":["u"]}"#, Err(TokenError::User)),
            (r#"{"userId":"\ud800"}"#, Err(TokenError::User)),
        ] {
            let result = user_of(claims);
            assert_eq!(result, expected.map(str::to_owned), "{claims}");
        }
        let long = json!({"userId": "u".repeat(129)}).to_string();
        assert_eq!(user_of(&long), Err(TokenError::User));
    }

    #[test]
    fn times() {
        let now = NOW_MS / 1000;
        for (claims, expected) in [
            (format!(r#"{{"sub":"u","exp":{}}}"#, now + 1), Ok(())),
            (format!(r#"{{"sub":"u","exp":{now}}}"#), Err(TokenError::Expired)),
            (format!(r#"{{"sub":"u","exp":{now}.001}}"#), Ok(())),
            (format!(r#"{{"sub":"u","exp":{}.999}}"#, now - 1), Err(TokenError::Expired)),
            (r#"{"sub":"u","exp":0}"#.into(), Err(TokenError::Expired)),
            (r#"{"sub":"u","exp":-1}"#.into(), Err(TokenError::Expired)),
            (r#"{"sub":"u","exp":1e300}"#.into(), Ok(())),
            (r#"{"sub":"u","exp":1e999}"#.into(), Err(TokenError::Time)),
            (r#"{"sub":"u","exp":"9999999999"}"#.into(), Err(TokenError::Time)),
            (r#"{"sub":"u","exp":null}"#.into(), Err(TokenError::Time)),
            (r#"{"sub":"u","exp":[]}"#.into(), Err(TokenError::Time)),
            (format!(r#"{{"sub":"u","nbf":{now}}}"#), Ok(())),
            (format!(r#"{{"sub":"u","nbf":{now}.001}}"#), Err(TokenError::NotYetValid)),
            (format!(r#"{{"sub":"u","nbf":{}}}"#, now + 1), Err(TokenError::NotYetValid)),
            (r#"{"sub":"u","nbf":-1}"#.into(), Ok(())),
            (r#"{"sub":"u","nbf":"0"}"#.into(), Err(TokenError::Time)),
            (r#"{"sub":"u","nbf":null}"#.into(), Err(TokenError::Time)),
            (r#"{"sub":"u","iat":"0"}"#.into(), Err(TokenError::Time)),
            (format!(r#"{{"sub":"u","iat":{}}}"#, now + 99), Ok(())),
        ] {
            assert_eq!(verify(&claims).map(|_| ()), expected, "{claims}");
        }
    }

    #[test]
    fn times_are_handed_on_in_milliseconds() {
        let identity = verify(r#"{"sub":"u","exp":1700000001.0005,"iat":1699999999.0005}"#).unwrap();
        assert_eq!(identity.expires_at_ms, Some(1_700_000_001_001));
        assert_eq!(identity.issued_at_ms, Some(1_699_999_999_000));
        let endless = verify(r#"{"sub":"u","exp":1e300}"#).unwrap();
        assert_eq!(endless.expires_at_ms, Some(1 << 53));
    }

    #[test]
    fn issuer_and_audience_count_only_where_configured() {
        let both =
            || keys().with_issuers(vec!["erp".into(), "hr".into()]).with_audiences(vec!["chat".into(), "all".into()]);
        for (claims, expected) in [
            (r#"{"iss":"erp","aud":"chat"}"#, Ok(())),
            (r#"{"iss":"hr","aud":["x","all"]}"#, Ok(())),
            (r#"{"iss":"erp","aud":[7,"chat"]}"#, Ok(())),
            (r#"{"aud":"chat"}"#, Err(TokenError::Issuer)),
            (r#"{"iss":"ERP","aud":"chat"}"#, Err(TokenError::Issuer)),
            (r#"{"iss":["erp"],"aud":"chat"}"#, Err(TokenError::Issuer)),
            (r#"{"iss":null,"aud":"chat"}"#, Err(TokenError::Issuer)),
            (r#"{"iss":"erp"}"#, Err(TokenError::Audience)),
            (r#"{"iss":"erp","aud":"x"}"#, Err(TokenError::Audience)),
            (r#"{"iss":"erp","aud":[]}"#, Err(TokenError::Audience)),
            (r#"{"iss":"erp","aud":["x"]}"#, Err(TokenError::Audience)),
            (r#"{"iss":"erp","aud":{"chat":1}}"#, Err(TokenError::Audience)),
            (r#"{"iss":"erp","aud":["\ud800"]}"#, Err(TokenError::Audience)),
        ] {
            let with_user = claims.replacen('{', r#"{"userId":"u","#, 1);
            let token = sign(&with_user);
            let result = both().verify(&token, NOW_MS).map(|_| ());
            assert_eq!(result, expected, "{claims}");
            assert!(keys().verify(&token, NOW_MS).is_ok(), "{claims}");
        }
        for claims in [r#"{"userId":"u","iss":{},"aud":7}"#, r#"{"userId":"u"}"#] {
            assert!(verify(claims).is_ok(), "{claims}");
        }
    }

    #[test]
    fn roles() {
        for (claims, expected) in [
            (r#"{"userId":"u"}"#, Role::User),
            (r#"{"userId":"u","chatRole":"service"}"#, Role::Service),
            (r#"{"userId":"u","chatRole":"moderator"}"#, Role::Moderator),
            (r#"{"userId":"u","chatRole":"user"}"#, Role::User),
            (r#"{"userId":"u","chatRole":"admin"}"#, Role::User),
            (r#"{"userId":"u","chatRole":"Service"}"#, Role::User),
            (r#"{"userId":"u","chatRole":["service"]}"#, Role::User),
            (r#"{"userId":"u","chatRole":null}"#, Role::User),
            (r#"{"userId":"u","chatRole":1}"#, Role::User),
            (r#"{"userId":"u","role":"service"}"#, Role::User),
            (r#"{"userId":"u","role":"moderator"}"#, Role::User),
            (r#"{"userId":"u","chatrole":"service"}"#, Role::User),
        ] {
            assert_eq!(verify(claims).unwrap().role, expected, "{claims}");
        }
    }

    #[test]
    fn the_role_claim_can_have_another_name() {
        let renamed = keys().with_role_claim("https://sizland/role".into());
        let token = sign(r#"{"userId":"u","https://sizland/role":"moderator"}"#);
        assert_eq!(renamed.verify(&token, NOW_MS).unwrap().role, Role::Moderator);
        let token = sign(r#"{"userId":"u","chatRole":"service"}"#);
        assert_eq!(renamed.verify(&token, NOW_MS).unwrap().role, Role::User);
    }

    #[test]
    fn only_a_service_needs_no_user() {
        let identity = verify(r#"{"chatRole":"service"}"#).unwrap();
        assert_eq!((identity.user, identity.role), (None, Role::Service));
        let named = verify(r#"{"chatRole":"service","sub":"erp"}"#).unwrap();
        assert_eq!(named.user, Id::from_text("erp"));
        for claims in [r#"{"chatRole":"moderator"}"#, r#"{"chatRole":"service","userId":1.5}"#] {
            assert_eq!(verify(claims), Err(TokenError::User), "{claims}");
        }
    }

    #[test]
    fn minted_tokens_verify() {
        let keys = keys()
            .with_algorithms(vec![Algorithm::Hs384])
            .with_issuers(vec!["erp".into()])
            .with_audiences(vec!["chat".into()])
            .with_role_claim("r\"ole".into());
        let user = Id::from_text("ü\"1").unwrap();
        for role in [Role::User, Role::Moderator, Role::Service] {
            let token = keys.mint(Some(&user), role, Duration::from_secs(60), NOW_MS);
            let token = token.unwrap();
            let identity = keys.verify(&token, NOW_MS).unwrap();
            assert_eq!(identity.user.as_ref(), Some(&user));
            assert_eq!(identity.role, role);
            assert_eq!(identity.issued_at_ms, Some(NOW_MS));
            assert_eq!(identity.expires_at_ms, Some(NOW_MS + 60_000));
            let later = keys.verify(&token, NOW_MS + 60_000);
            assert_eq!(later, Err(TokenError::Expired));
        }
        let service = keys.mint(None, Role::Service, Duration::from_secs(60), NOW_MS);
        assert_eq!(keys.verify(&service.unwrap(), NOW_MS).unwrap().user, None);
        let none = keys.with_algorithms(Vec::new());
        assert_eq!(none.mint(None, Role::Service, Duration::ZERO, 0), None);
    }

    #[test]
    fn api_keys_compare_whole() {
        let key = ApiKey::new(b"0123456789abcdef");
        assert!(key.matches(b"0123456789abcdef"));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdeF", b"0123456789abcdef0"] {
            assert!(!key.matches(wrong));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?} {:?}", keys(), ApiKey::new(SECRET));
        assert!(!shown.contains("thirty-two"), "{shown}");
        assert!(!shown.contains("97, 32"), "{shown}");
    }
}
