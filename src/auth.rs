//! Who somebody is: (keys, token, time) -> [`Identity`].
//!
//! Owns the verification of JSON Web Tokens, the roles, the API keys, and the minting of tokens for
//! development. Reads no clock: the time is an argument. Knows nothing about where a token or a key came
//! from or what an identity may do. Invariants: nothing of a token is believed before its signature
//! verifies with a configured algorithm; no secret is ever shown by `Debug`.

mod algorithm;
pub mod api_keys;
mod claims;
pub mod jwks;
mod key;
mod keys;
pub mod pem;

#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use crate::access::Grants;
use crate::wire::value::Id;

pub use algorithm::{Algorithm, KeyKind};
pub use api_keys::ApiKeys;
pub use claims::Claims;
pub use key::Key;
pub use keys::{CANDIDATES_MAX, Check, Keys, Look};

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The claim that grants rights, unless configured otherwise.
pub const ROLE_CLAIM_DEFAULT: &str = "chatRole";

/// All that a peer's word is compared with.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// For tokens.
    pub keys: Keys,
    /// For `X-API-Key`.
    pub api_keys: ApiKeys,
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
    /// The claim `userId`, else `sub`, or the one configured. Only a service may have none.
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
    /// There is no key of the token's `kid` and kind.
    Key,
    /// The signature is not one of the configured keys.
    Signature,
    /// Nobody could look at its signature.
    Unchecked,
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
    /// No claim names a user, or the one that counts is not a valid id.
    User,
}

impl TokenError {
    /// A short name for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            TokenError::TooLarge => "too_large",
            TokenError::Malformed => "malformed",
            TokenError::Algorithm => "algorithm",
            TokenError::Key => "key",
            TokenError::Signature => "signature",
            TokenError::Unchecked => "unchecked",
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
