//! Public keys from a JSON Web Key Set (RFC 7517).
//!
//! Owns which keys of a set are taken: those for signatures, of a kind that is known. A key that is not is left out, as
//! the RFC wants it (section 5), and so is a secret: whoever can read a public document must not be able to sign.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::algorithm::{Algorithm, KeyKind};
use super::key::{Key, Unusable};

/// Largest document that is read, in bytes.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// Most keys of a set.
const KEYS_MAX: usize = 256;

/// What a document holds.
#[derive(Debug)]
pub struct KeySet {
    /// The keys that can be used, at least one.
    pub keys: Vec<Key>,
    /// How many were left out, and why the first of them was.
    pub left_out: Option<(usize, Unusable)>,
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a key that matter. Others may have any shape, the certificates of `x5c` and `x5u` among them.
#[derive(Deserialize)]
struct Jwk<'a> {
    #[serde(borrow)]
    kty: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "use")]
    used_for: Option<Cow<'a, str>>,
    key_ops: Option<Vec<String>>,
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    crv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    #[serde(borrow)]
    x: Option<Cow<'a, str>>,
    #[serde(borrow)]
    y: Option<Cow<'a, str>>,
}

/// The keys of a document.
///
/// # Errors
/// Why there is none that can be used.
pub fn keys(document: &[u8]) -> Result<KeySet, String> {
    if document.len() > JWKS_BYTES_MAX {
        return Err(format!("it is larger than {JWKS_BYTES_MAX} bytes"));
    }
    let parsed: Result<Document<'_>, _> = serde_json::from_slice(document);
    let Ok(Document { keys: all }) = parsed else {
        return Err("it is no JSON Web Key Set: an object with an array keys".to_owned());
    };
    if all.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    let (mut keys, mut left_out) = (Vec::new(), None);
    for raw in all {
        match key(raw.get()) {
            Ok(key) => keys.push(key),
            Err(reason) => left_out.get_or_insert((0, reason)).0 += 1,
        }
    }
    match (keys.is_empty(), left_out) {
        (false, left_out) => Ok(KeySet { keys, left_out }),
        (true, Some((_, reason))) => Err(format!("it has no key that can be used: of the first, {reason}")),
        (true, None) => Err("it has no keys".to_owned()),
    }
}

fn key(text: &str) -> Result<Key, Unusable> {
    let jwk: Jwk<'_> = serde_json::from_str(text).map_err(|_| "a member has another type than it should")?;
    if jwk.used_for.is_some_and(|used_for| used_for != "sig") {
        return Err("its use is not sig");
    }
    if jwk.key_ops.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("its key_ops do not have verify");
    }
    let only = match &jwk.alg {
        Some(name) => Some(Algorithm::from_name(name).ok_or("its alg is not known")?),
        None => None,
    };
    let member = |value: &Option<Cow<'_, str>>, missing| {
        let text = value.as_deref().ok_or(missing)?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| "a member is not base64url")
    };
    let key = match (&*jwk.kty, jwk.crv.as_deref()) {
        ("RSA", _) => Key::rsa(&member(&jwk.n, "n is missing")?, &member(&jwk.e, "e is missing")?)?,
        ("EC", Some(curve)) => {
            let (kind, bytes) = match curve {
                "P-256" => (KeyKind::P256, 32),
                "P-384" => (KeyKind::P384, 48),
                _ => return Err("of elliptic curves only P-256, P-384 and Ed25519 are known"),
            };
            let (x, y) = (member(&jwk.x, "x is missing")?, member(&jwk.y, "y is missing")?);
            if x.len() != bytes || y.len() != bytes {
                return Err("x and y must have the length of the curve");
            }
            Key::ec(kind, &[&[4], &x[..], &y[..]].concat())?
        }
        ("OKP", Some("Ed25519")) => Key::ed25519(&member(&jwk.x, "x is missing")?)?,
        ("oct", _) => return Err("it is a secret, which is no key to publish"),
        _ => return Err("its kty or crv is not known"),
    };
    key.described(jwk.kid.map(|id| Box::from(&*id)), only)
}
