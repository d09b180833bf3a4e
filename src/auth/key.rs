//! One key that tokens are verified with.
//!
//! Owns what a key is good for: the algorithms of its kind, and of those only the one that its document names. A key is
//! checked when it is made (size, curve, point), so that a signature is only ever compared with a key that can be used.

use std::fmt;

use jsonwebtoken::{DecodingKey, DecodingKeyKind, crypto};
use rsa::BigUint;
use rsa::traits::PublicKeyParts;

use super::algorithm::{Algorithm, KeyKind};

/// Least bits of an RSA key (NIST SP 800-131A).
const RSA_BITS_MIN: usize = 2048;
/// Most bits of an RSA key: what verifying costs grows with their square.
const RSA_BITS_MAX: usize = 4096;

/// A key, and what it is good for.
pub struct Key {
    /// Its `kid`, if it has one.
    id: Option<Box<str>>,
    kind: KeyKind,
    /// The only algorithm, where the key's document names one.
    only: Option<Algorithm>,
    verifying: DecodingKey,
    /// The length of its signatures, where they all have one.
    signature_bytes: Option<usize>,
    /// It is no longer good from then on, in milliseconds since the epoch.
    until_ms: Option<u64>,
}

/// Why a key cannot be used, in words for the operator.
pub(super) type Unusable = &'static str;

impl Key {
    /// A secret for HMAC, good until a time in milliseconds since the epoch if one is given.
    pub fn secret(secret: &[u8], until_ms: Option<u64>) -> Key {
        let verifying = DecodingKey::from_secret(secret);
        Key { id: None, kind: KeyKind::Secret, only: None, verifying, signature_bytes: None, until_ms }
    }

    /// A public RSA key of this modulus and exponent.
    pub(super) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Key, Unusable> {
        let (n, e) = (BigUint::from_bytes_be(modulus), BigUint::from_bytes_be(exponent));
        let bits = n.bits();
        if bits < RSA_BITS_MIN {
            return Err("an RSA key needs at least 2048 bits");
        }
        if bits > RSA_BITS_MAX {
            return Err("an RSA key may have at most 4096 bits");
        }
        let key = rsa::RsaPublicKey::new(n, e).map_err(|_| "this is no RSA key")?;
        let verifying = DecodingKey::from_rsa_raw_components(&key.n().to_bytes_be(), &key.e().to_bytes_be());
        Ok(Self::public(KeyKind::Rsa, verifying, key.size()))
    }

    /// A point on P-256 or P-384, compressed or not (SEC 1, section 2.3.3).
    pub(super) fn ec(kind: KeyKind, point: &[u8]) -> Result<Key, Unusable> {
        let (algorithm, signature_bytes) = match kind {
            KeyKind::P256 => (Algorithm::Es256, 64),
            KeyKind::P384 => (Algorithm::Es384, 96),
            _ => return Err("only the curves P-256 and P-384 are known"),
        };
        let verifying = DecodingKey::from_ec_der(point);
        if !can_verify(&verifying, algorithm) {
            return Err("the point does not lie on its curve");
        }
        Ok(Self::public(kind, verifying, signature_bytes))
    }

    /// A public key of Ed25519 (RFC 8032, section 5.1.5).
    pub(super) fn ed25519(key: &[u8]) -> Result<Key, Unusable> {
        let verifying = DecodingKey::from_ed_der(key);
        if key.len() != 32 || !can_verify(&verifying, Algorithm::EdDsa) {
            return Err("this is no key of Ed25519");
        }
        Ok(Self::public(KeyKind::Ed25519, verifying, 64))
    }

    fn public(kind: KeyKind, verifying: DecodingKey, signature_bytes: usize) -> Key {
        Key { id: None, kind, only: None, verifying, signature_bytes: Some(signature_bytes), until_ms: None }
    }

    /// Gives it what its document says of it.
    pub(super) fn described(mut self, id: Option<Box<str>>, only: Option<Algorithm>) -> Result<Key, Unusable> {
        if only.is_some_and(|algorithm| algorithm.key_kind() != self.kind) {
            return Err("its alg is not one for this kind of key");
        }
        (self.id, self.only) = (id, only);
        Ok(self)
    }

    /// Its `kid`, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Whether it is the same key, with the same name and for the same.
    pub fn is_same(&self, other: &Key) -> bool {
        let attributes = |key: &Key| (key.kind, key.only, key.until_ms);
        self.id == other.id && attributes(self) == attributes(other) && self.material() == other.material()
    }

    fn material(&self) -> (&[u8], &[u8]) {
        match self.verifying.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => (bytes, &[]),
            DecodingKeyKind::RsaModulusExponent { n, e } => (n, e),
        }
    }

    /// Whether it verifies signatures of this algorithm at a time in milliseconds since the epoch.
    pub fn serves(&self, algorithm: Algorithm, now_ms: u64) -> bool {
        self.kind == algorithm.key_kind()
            && self.only.is_none_or(|only| only == algorithm)
            && self.until_ms.is_none_or(|until_ms| now_ms < until_ms)
    }

    /// Whether a signature in base64url can be one of this key, by its length.
    pub(super) fn may_have_made(&self, signature: &str) -> bool {
        // Four characters hold three bytes; there is no padding.
        self.signature_bytes.is_none_or(|bytes| signature.len() == (bytes * 4).div_ceil(3))
    }

    /// Whether the signature, in base64url, is this key's.
    pub(super) fn has_signed(&self, message: &str, signature: &str, algorithm: Algorithm) -> bool {
        debug_assert_eq!(self.kind, algorithm.key_kind());
        let verified = crypto::verify(signature, message.as_bytes(), &self.verifying, algorithm.implementation());
        verified.is_ok_and(|good| good)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Whether the implementation takes the key; a signature that is none is only looked at if it does.
fn can_verify(key: &DecodingKey, algorithm: Algorithm) -> bool {
    crypto::verify("", b"", key, algorithm.implementation()).is_ok()
}
