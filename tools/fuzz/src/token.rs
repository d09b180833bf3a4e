//! JSON Web Tokens: nothing unsigned is believed, and what is signed means what serde_json reads in it.
//!
//! Input: one byte for what is sent and by which algorithm it is signed, one for the length of the header, then header
//! and claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::{Map, Value};

use sizland_chat::auth::{Identity, Keys, Role, TokenError};
use sizland_chat::wire::value::Id;

use super::input::Input;
use super::peer_bytes::{SECRET, STARTED_MS};

const ALGORITHMS: [(&str, jsonwebtoken::Algorithm); 3] = [
    ("HS256", jsonwebtoken::Algorithm::HS256),
    ("HS384", jsonwebtoken::Algorithm::HS384),
    ("HS512", jsonwebtoken::Algorithm::HS512),
];
const FOREIGN: &[u8] = b"a secret of somebody else, long enough";
const ISSUER: &str = "erp";
const AUDIENCE: &str = "chat";

/// Verifies what the input says, as it stands or signed.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let header_bytes = usize::from(input.byte());
    let (name, algorithm) = ALGORITHMS[usize::from(kind >> 2) % ALGORITHMS.len()];
    let keys = Keys::new(SECRET.as_bytes());
    match kind & 3 {
        // Nobody who does not know the secret makes a token.
        0 => {
            if let Ok(token) = str::from_utf8(input.rest()) {
                assert!(keys.verify(token, STARTED_MS).is_err(), "{token}");
            }
        }
        // Whatever the header says, the signature counts.
        1 => {
            let header = input.bytes(header_bytes);
            let token = signed(header, input.rest(), FOREIGN, algorithm);
            assert!(keys.verify(&token, STARTED_MS).is_err(), "{token}");
            let token = signed(header, input.rest(), SECRET.as_bytes(), algorithm);
            if keys.verify(&token, STARTED_MS).is_ok() {
                assert_eq!(serde_json::from_slice::<Map<String, Value>>(header).expect("an object")["alg"], name);
            }
        }
        // Claims under a good header and signature.
        kind => {
            let header = format!(r#"{{"alg":"{name}"}}"#);
            let token = signed(header.as_bytes(), input.rest(), SECRET.as_bytes(), algorithm);
            let narrow = kind == 3;
            let keys = if narrow {
                keys.with_issuers(vec![ISSUER.into()]).with_audiences(vec![AUDIENCE.into()])
            } else {
                keys
            };
            check_claims(keys.verify(&token, STARTED_MS), input.rest(), narrow);
        }
    }
}

fn signed(header: &[u8], claims: &[u8], secret: &[u8], algorithm: jsonwebtoken::Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(secret);
    let signature = crypto::sign(message.as_bytes(), &key, algorithm).expect("a secret signs");
    format!("{message}.{signature}")
}

fn check_claims(verified: Result<Identity, TokenError>, claims: &[u8], narrow: bool) {
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(claims) else {
        // What serde_json cannot hold in a value, an unpaired surrogate, may stand in a claim that nobody looks at.
        assert!(verified.is_err() || serde_json::from_slice::<Value>(claims).is_err());
        return;
    };
    let is_number = |name: &str| fields.get(name).is_none_or(Value::is_number);
    let seconds = |name: &str| fields.get(name).and_then(Value::as_f64);
    let now = STARTED_MS as f64;
    match verified {
        Ok(identity) => {
            assert!(is_number("exp") && is_number("nbf") && is_number("iat"), "{fields:?}");
            assert_eq!(identity.expires_at_ms.is_some(), fields.contains_key("exp"));
            assert!(seconds("exp").is_none_or(|exp| exp * 1000.0 > now), "{fields:?}");
            assert!(seconds("nbf").is_none_or(|nbf| nbf * 1000.0 <= now), "{fields:?}");
            assert!(identity.expires_at_ms.is_none_or(|at| at > STARTED_MS));
            let role = fields.get("chatRole").and_then(Value::as_str).and_then(Role::from_name);
            assert_eq!(identity.role, role.unwrap_or_default());
            match identity.user {
                Some(user) => assert!(names(&user, fields.get("userId")) || names(&user, fields.get("sub"))),
                None => assert_eq!(identity.role, Role::Service),
            }
            assert!(!narrow || (fields["iss"] == ISSUER && is_for_us(&fields["aud"])));
        }
        Err(TokenError::Expired) => assert!(seconds("exp").is_some_and(|exp| exp * 1000.0 <= now)),
        Err(TokenError::NotYetValid) => assert!(seconds("nbf").is_some_and(|nbf| nbf * 1000.0 > now)),
        Err(TokenError::Time) => assert!(!is_number("exp") || !is_number("nbf") || !is_number("iat")),
        Err(TokenError::Issuer) => assert!(narrow && fields.get("iss").is_none_or(|issuer| issuer != ISSUER)),
        Err(TokenError::Audience) => assert!(narrow && fields.get("aud").is_none_or(|audience| !is_for_us(audience))),
        Err(TokenError::User) => {
            let plain =
                |name: &str| fields.get(name).and_then(Value::as_i64).is_some_and(|id| (0..1 << 53).contains(&id));
            assert!(!plain("userId"), "{fields:?}");
        }
        Err(TokenError::TooLarge) => assert!(claims.len() > 8 * 1024),
        Err(error) => panic!("{error} for claims that are well formed and signed: {fields:?}"),
    }
}

fn names(user: &Id, claim: Option<&Value>) -> bool {
    match claim {
        Some(Value::String(text)) => !user.is_numeric() && user.text() == text,
        Some(Value::Number(_)) => user.is_numeric(),
        _ => false,
    }
}

fn is_for_us(audience: &Value) -> bool {
    audience == AUDIENCE || audience.as_array().is_some_and(|list| list.iter().any(|one| one == AUDIENCE))
}
