//! Which key and algorithm a token is verified with.
//!
//! Owns the choice, which only the configuration makes: a token's `alg` has to be one that is allowed and its `kid`, if it
//! has one, only picks among the keys that are there. Nothing else of its header is looked at, so that no key and no place
//! of a key (`jwk`, `jku`, `x5c`, `x5u`) is ever taken from a token. A secret is compared at once; what a public key has
//! to verify takes long, and is a [`Check`] for whoever may take as long.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, crypto};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::algorithm::{Algorithm, KeyKind};
use super::claims::{ClaimRules, Claims};
use super::key::Key;
use super::{Identity, Role, TOKEN_BYTES_MAX, TokenError};
use crate::wire::value::{Id, put_json_string};

/// Most keys that one token is verified with.
pub const CANDIDATES_MAX: usize = 4;

/// The keys and the rules by which tokens are verified. Clones share them.
#[derive(Clone)]
pub struct Keys {
    keys: Arc<[Arc<Key>]>,
    /// Those that are allowed; without, all that there are keys for.
    algorithms: Option<Vec<Algorithm>>,
    rules: Arc<ClaimRules>,
    signing: Option<EncodingKey>,
    may_grow: bool,
    checks_late: bool,
}

/// What there is to say of a token at first sight.
#[derive(Debug)]
pub enum Look {
    /// Whether it verifies.
    Known(Result<Claims, TokenError>),
    /// Its signature is to be verified with a public key.
    Unchecked(Check),
    /// No key has its `kid`, or there is no key of its kind; where keys come from there may be one by now.
    UnknownKey,
}

/// A signature that is to be verified, which takes from tenths of a millisecond to some.
#[derive(Clone, Debug)]
pub struct Check {
    token: Box<str>,
    algorithm: Algorithm,
    candidates: Vec<Arc<Key>>,
    rules: Arc<ClaimRules>,
}

/// The fields of a JOSE header that matter; others may have any shape.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

impl Check {
    /// Verifies the signature, and reads what is signed.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn run(&self) -> Result<Claims, TokenError> {
        let (message, signature) = self.token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        if !self.candidates.iter().any(|key| key.has_signed(message, signature, self.algorithm)) {
            return Err(TokenError::Signature);
        }
        let (_, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        self.rules.read(&decode_part(payload)?)
    }

    /// The whole token.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Keys {
    /// Keys for an HMAC secret: every algorithm, no issuer, no audience, the usual claims.
    pub fn new(secret: &[u8]) -> Keys {
        let signing = Some(EncodingKey::from_secret(secret));
        Keys { signing, ..Keys::of(vec![Arc::new(Key::secret(secret, None))]) }
    }

    /// These keys, with which nothing can be signed.
    pub fn of(keys: Vec<Arc<Key>>) -> Keys {
        Keys {
            keys: keys.into(),
            algorithms: None,
            rules: Arc::default(),
            signing: None,
            may_grow: false,
            checks_late: false,
        }
    }

    /// The same with further keys.
    pub fn and(mut self, more: impl IntoIterator<Item = Arc<Key>>) -> Keys {
        self.keys = self.keys.iter().cloned().chain(more).collect();
        self
    }

    /// Accepts only these algorithms; with none, no token verifies.
    pub fn with_algorithms(mut self, algorithms: Vec<Algorithm>) -> Keys {
        self.algorithms = Some(algorithms);
        self
    }

    /// Requires `iss` to be one of these, unless there are none.
    pub fn with_issuers(mut self, issuers: Vec<String>) -> Keys {
        Arc::make_mut(&mut self.rules).issuers = issuers;
        self
    }

    /// Requires `aud` to name one of these, unless there are none.
    pub fn with_audiences(mut self, audiences: Vec<String>) -> Keys {
        Arc::make_mut(&mut self.rules).audiences = audiences;
        self
    }

    /// Reads the role from the claim of this name.
    pub fn with_role_claim(mut self, name: String) -> Keys {
        Arc::make_mut(&mut self.rules).role_claim = name;
        self
    }

    /// Reads the rooms that a token grants from the claim of this name; from none unless there is one.
    pub fn with_rooms_claim(mut self, name: Option<String>) -> Keys {
        Arc::make_mut(&mut self.rules).rooms_claim = name;
        self
    }

    /// Reads the user from the claim of this name alone, if there is one.
    pub fn with_user_claim(mut self, name: Option<String>) -> Keys {
        Arc::make_mut(&mut self.rules).user_claim = name;
        self
    }

    /// Says that where the keys come from there may be more, so that an unknown one is worth a question.
    pub fn that_may_grow(mut self) -> Keys {
        self.may_grow = true;
        self
    }

    /// Leaves also what is signed with a secret to a [`Check`], so that a simulation needs no public keys.
    #[doc(hidden)]
    pub fn that_check_late(mut self) -> Keys {
        self.checks_late = true;
        self
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A kind of which there are more keys than [a token without a name of its key is tried with](CANDIDATES_MAX).
    pub fn crowded_kind(&self) -> Option<KeyKind> {
        let count = |kind| self.keys.iter().filter(|key| key.kind() == kind).count();
        KeyKind::ALL.into_iter().find(|&kind| count(kind) > CANDIDATES_MAX)
    }

    /// Looks at a token in JWS compact form (RFC 7515, section 7.1) at a time in milliseconds since the epoch. With
    /// `is_final` there is no [`Look::UnknownKey`].
    pub fn look(&self, token: &str, now_ms: u64, is_final: bool) -> Look {
        match self.look_closely(token, now_ms, is_final) {
            Ok(look) => look,
            Err(error) => Look::Known(Err(error)),
        }
    }

    fn look_closely(&self, token: &str, now_ms: u64, is_final: bool) -> Result<Look, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, _) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header = decode_part(header)?;
        let header: Header<'_> = serde_json::from_str(&header).map_err(|_| TokenError::Malformed)?;
        let algorithm = self.algorithm_of(&header)?;
        let candidates = self.candidates(algorithm, header.kid.as_deref(), now_ms);
        let is_named = header.kid.as_deref().is_some_and(|id| candidates.iter().any(|key| key.id() == Some(id)));
        let is_public = algorithm.key_kind() != KeyKind::Secret;
        if self.may_grow && is_public && !is_final && !is_named && (candidates.is_empty() || header.kid.is_some()) {
            return Ok(Look::UnknownKey);
        }
        if candidates.is_empty() {
            return Err(TokenError::Key);
        }
        let candidates: Vec<_> = candidates.into_iter().filter(|key| key.may_have_made(signature)).cloned().collect();
        if candidates.is_empty() {
            return Err(TokenError::Signature);
        }
        let check = Check { token: token.into(), algorithm, candidates, rules: self.rules.clone() };
        Ok(if is_public || self.checks_late { Look::Unchecked(check) } else { Look::Known(check.run()) })
    }

    /// Verifies a token at a time in milliseconds since the epoch, however long it takes.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, TokenError> {
        match self.look(token, now_ms, true) {
            Look::Known(claims) => claims,
            Look::Unchecked(check) => check.run(),
            Look::UnknownKey => Err(TokenError::Key),
        }?
        .at(now_ms)
    }

    fn algorithm_of(&self, header: &Header<'_>) -> Result<Algorithm, TokenError> {
        if header.crit.is_some() {
            return Err(TokenError::Algorithm);
        }
        let algorithm = Algorithm::from_name(&header.alg).ok_or(TokenError::Algorithm)?;
        let is_allowed = match &self.algorithms {
            Some(allowed) => allowed.contains(&algorithm),
            // Where more may come, a kind of which there is no key yet is one that cannot be verified, not a wrong one.
            None if self.may_grow && algorithm.key_kind() != KeyKind::Secret => true,
            None => self.keys.iter().any(|key| key.kind() == algorithm.key_kind()),
        };
        is_allowed.then_some(algorithm).ok_or(TokenError::Algorithm)
    }

    /// The keys that may have signed: those of the `kid`, then those that have no name of their own, as a secret or a key
    /// from a file; without a `kid` all.
    fn candidates(&self, algorithm: Algorithm, id: Option<&str>, now_ms: u64) -> Vec<&Arc<Key>> {
        let serving = || self.keys.iter().filter(|key| key.serves(algorithm, now_ms));
        let named = serving().filter(|key| id.is_some() && key.id() == id);
        let others = serving().filter(|key| id.is_none() || key.id().is_none());
        named.chain(others).take(CANDIDATES_MAX).collect()
    }

    /// Signs a token that these keys verify from `now_ms` on for `ttl`, with the first configured algorithm of the
    /// secret, issuer and audience. Times are cut to whole seconds, as is usual; `None` when there is no secret, or no
    /// algorithm for it.
    pub fn mint(&self, user: Option<&Id>, role: Role, ttl: Duration, now_ms: u64) -> Option<String> {
        let signing = self.signing.as_ref()?;
        let allowed = self.algorithms.as_deref().unwrap_or(&Algorithm::ALL);
        let algorithm = *allowed.iter().find(|algorithm| algorithm.key_kind() == KeyKind::Secret)?;
        let mut claims = b"{".to_vec();
        if let Some(user) = user {
            put_json_string(&mut claims, self.rules.user_claim());
            claims.push(b':');
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
            put(&self.rules.role_claim, role.name());
        }
        if let Some(issuer) = self.rules.issuers.first() {
            put("iss", issuer);
        }
        if let Some(audience) = self.rules.audiences.first() {
            put("aud", audience);
        }
        let issued = now_ms / 1000;
        let expires = issued.saturating_add(ttl.as_secs());
        claims.extend_from_slice(format!("\"iat\":{issued},\"exp\":{expires}}}").as_bytes());
        let header = format!(r#"{{"alg":"{}","typ":"JWT"}}"#, algorithm.name());
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims));
        let signature = crypto::sign(token.as_bytes(), signing, algorithm.implementation()).ok()?;
        token.push('.');
        token.push_str(&signature);
        Some(token)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("keys", &self.keys)
            .field("algorithms", &self.algorithms)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

fn decode_part(part: &str) -> Result<String, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    String::from_utf8(bytes).map_err(|_| TokenError::Malformed)
}
