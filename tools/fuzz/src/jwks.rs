//! JSON Web Key Sets: every key is taken or left out, none is a secret, and none verifies what is signed by what can be read.
//!
//! Input: the document, or behind a byte of 1 one key of it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::Value;

use sizland_chat::auth::{Algorithm, KeyKind, Keys, jwks};

use super::peer_bytes::STARTED_MS;

/// Reads the document and asks its keys.
pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((1, key)) => check(&[b"{\"keys\":[", key, b"]}"].concat()),
        _ => check(data),
    }
}

fn check(document: &[u8]) {
    let set = match jwks::keys(document) {
        Ok(set) => set,
        Err(reason) => return assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}"),
    };
    assert!(!set.keys.is_empty());
    // Unpaired surrogates may stand where nobody looks.
    if let Ok(parsed) = serde_json::from_slice::<Value>(document) {
        let given = parsed["keys"].as_array().expect("a set has keys");
        assert_eq!(given.len(), set.keys.len() + set.left_out.map_or(0, |(count, _)| count));
        for key in &set.keys {
            let is_named = |one: &Value| one["kid"].as_str() == key.id();
            assert!(given.iter().any(is_named), "{:?} is not in the document", key.id());
        }
    }
    for key in &set.keys {
        assert_ne!(key.kind(), KeyKind::Secret, "a public document holds no secret");
        assert!(Algorithm::ALL.iter().any(|algorithm| key.serves(*algorithm, STARTED_MS)));
        assert!(key.is_same(key));
    }
    let keys: Vec<_> = set.keys.into_iter().map(Arc::new).collect();
    let keys = Keys::of(keys).with_algorithms(Algorithm::ALL.to_vec());
    let claims = URL_SAFE_NO_PAD.encode(r#"{"userId":"u"}"#);
    for (name, algorithm) in [("HS256", jsonwebtoken::Algorithm::HS256), ("HS512", jsonwebtoken::Algorithm::HS512)] {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{name}"}}"#));
        let message = format!("{header}.{claims}");
        for secret in [document, b""] {
            let signature = crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), algorithm);
            let token = format!("{message}.{}", signature.expect("a secret signs"));
            assert!(keys.verify(&token, STARTED_MS).is_err());
        }
    }
}
