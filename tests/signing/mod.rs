//! Who signs tokens for the tests: private keys that are good for nothing else, and their public halves beside them.
//!
//! Used by the unit tests of the library and by the tests of the real binary.

#![allow(dead_code, reason = "each of the two uses its part")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use rsa::pkcs8::Document;
use rsa::pkcs8::der::Decode;
use rsa::{pkcs1, pkcs8};

/// A private key of a test.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    name: &'static str,
}

/// The text of a public key, or of a certificate.
pub fn public(name: &str) -> &'static str {
    match name {
        "rsa" => include_str!("rsa.pub.pem"),
        "rsa.pkcs1" => include_str!("rsa.pkcs1.pem"),
        "rsa.crt" => include_str!("rsa.crt.pem"),
        "rsa2" => include_str!("rsa2.pub.pem"),
        "small" => include_str!("small.pub.pem"),
        "p256" => include_str!("p256.pub.pem"),
        "p256.crt" => include_str!("p256.crt.pem"),
        "p384" => include_str!("p384.pub.pem"),
        "p521" => include_str!("p521.pub.pem"),
        "ed25519" => include_str!("ed25519.pub.pem"),
        "private" => include_str!("rsa.pem"),
        _ => panic!("no such key: {name}"),
    }
}

/// The public key as a JSON Web Key, without the closing brace, so that a test adds what it likes.
pub fn jwk(name: &str) -> String {
    let (_, document) = Document::from_pem(public(name)).unwrap();
    let info = pkcs8::spki::SubjectPublicKeyInfoRef::from_der(document.as_bytes()).unwrap();
    let bytes = info.subject_public_key.as_bytes().unwrap();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match name {
        "rsa" | "rsa2" | "small" => {
            let key = pkcs1::RsaPublicKey::from_der(bytes).unwrap();
            let (n, e) = (key.modulus.as_bytes(), key.public_exponent.as_bytes());
            format!(r#"{{"kty":"RSA","n":"{}","e":"{}""#, text(n), text(e))
        }
        "ed25519" => format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}""#, text(bytes)),
        _ => {
            let (x, y) = bytes[1..].split_at((bytes.len() - 1) / 2);
            let curve = name.to_uppercase().replace('P', "P-");
            format!(r#"{{"kty":"EC","crv":"{curve}","x":"{}","y":"{}""#, text(x), text(y))
        }
    }
}

impl Signer {
    /// The key that the tests have for an algorithm, such as `RS256`.
    pub fn of(algorithm: &'static str) -> Self {
        match algorithm {
            "ES256" => Self::with(include_str!("p256.pem"), algorithm),
            "ES384" => Self::with(include_str!("p384.pem"), algorithm),
            "EdDSA" => Self::with(include_str!("ed25519.pem"), algorithm),
            _ => Self::with(include_str!("rsa.pem"), algorithm),
        }
    }

    /// The second RSA key.
    pub fn second(algorithm: &'static str) -> Self {
        Self::with(include_str!("rsa2.pem"), algorithm)
    }

    fn with(pem: &str, name: &'static str) -> Self {
        let (_, document) = Document::from_pem(pem).unwrap();
        let algorithm: Algorithm = name.parse().unwrap();
        let key = match name {
            "ES256" | "ES384" => EncodingKey::from_ec_der(document.as_bytes()),
            "EdDSA" => EncodingKey::from_ed_der(document.as_bytes()),
            _ => EncodingKey::from_rsa_der(document.as_bytes()),
        };
        Self { key, algorithm, name }
    }

    /// A token of these claims; `header` has further members, each with a comma in front.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        self.sign_as(&format!(r#"{{"alg":"{}"{header}}}"#, self.name), claims)
    }

    /// The same, whatever the header says.
    pub fn sign_as(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}
