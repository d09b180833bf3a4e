//! Public keys from PEM files (RFC 7468).
//!
//! Owns which forms are known: SubjectPublicKeyInfo (`PUBLIC KEY`), PKCS #1 (`RSA PUBLIC KEY`) and X.509 certificates, of
//! which only the key counts: neither their issuer nor their dates are looked at.

use rsa::pkcs1;
use rsa::pkcs8::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use rsa::pkcs8::der::{self, Decode, Reader, Tag, Tagged};
use rsa::pkcs8::spki::SubjectPublicKeyInfoRef;
use rsa::pkcs8::{Document, ObjectIdentifier as Oid};

use super::algorithm::KeyKind;
use super::key::{Key, Unusable};

const RSA: Oid = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: Oid = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: Oid = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: Oid = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: Oid = ObjectIdentifier::new_unwrap("1.3.132.0.34");

const BEGIN: &str = "-----BEGIN ";
const MALFORMED: Unusable = "it is malformed";

/// All keys of a file's text.
///
/// # Errors
/// What is wrong with the first that cannot be used, or that there is none.
pub fn keys(text: &str) -> Result<Vec<Key>, Unusable> {
    let starts = text.match_indices(BEGIN).map(|(at, _)| at);
    let ends = text.match_indices(BEGIN).map(|(at, _)| at).skip(1).chain([text.len()]);
    let blocks: Vec<&str> = starts.zip(ends).map(|(from, to)| &text[from..to]).collect();
    if blocks.is_empty() {
        return Err("there is no -----BEGIN in it");
    }
    blocks.into_iter().map(key).collect()
}

fn key(block: &str) -> Result<Key, Unusable> {
    // What stands behind the block is a comment.
    let end = block.find("-----END ").and_then(|at| block[at + 9..].find("-----").map(|dashes| at + 9 + dashes + 5));
    let block = end.map_or(block, |end| &block[..end]);
    let (label, document) = Document::from_pem(block).map_err(|_| MALFORMED)?;
    let bytes = document.as_bytes();
    match label {
        "PUBLIC KEY" => {
            let info = SubjectPublicKeyInfoRef::from_der(bytes).map_err(|_| MALFORMED)?;
            key_of_info(&info)
        }
        "RSA PUBLIC KEY" => rsa_key(bytes),
        "CERTIFICATE" => {
            let info = info_of_certificate(bytes).map_err(|_| MALFORMED)?;
            key_of_info(&info)
        }
        label if label.contains("PRIVATE") => Err("it holds a private key, which must stay with who signs"),
        _ => Err("only PUBLIC KEY, RSA PUBLIC KEY and CERTIFICATE are known"),
    }
}

fn key_of_info(info: &SubjectPublicKeyInfoRef<'_>) -> Result<Key, Unusable> {
    let key = info.subject_public_key.as_bytes().ok_or(MALFORMED)?;
    let curve = || info.algorithm.parameters_oid().ok();
    match info.algorithm.oid {
        RSA => rsa_key(key),
        EC if curve() == Some(P256) => Key::ec(KeyKind::P256, key),
        EC if curve() == Some(P384) => Key::ec(KeyKind::P384, key),
        EC => Err("of elliptic curves only P-256, P-384 and Ed25519 are known"),
        ED25519 => Key::ed25519(key),
        _ => Err("only keys for RSA, ECDSA and Ed25519 are known"),
    }
}

fn rsa_key(pkcs1: &[u8]) -> Result<Key, Unusable> {
    let key = pkcs1::RsaPublicKey::from_der(pkcs1).map_err(|_| MALFORMED)?;
    Key::rsa(key.modulus.as_bytes(), key.public_exponent.as_bytes())
}

/// The key's part of a certificate (RFC 5280, section 4.1).
fn info_of_certificate(bytes: &[u8]) -> der::Result<SubjectPublicKeyInfoRef<'_>> {
    AnyRef::from_der(bytes)?.sequence(|certificate| {
        let signed: AnyRef<'_> = certificate.decode()?;
        let (_algorithm, _signature): (AnyRef<'_>, BitStringRef<'_>) = (certificate.decode()?, certificate.decode()?);
        signed.sequence(|fields| {
            let first: AnyRef<'_> = fields.decode()?;
            // The version is left out by those of the first; then this was the serial number.
            let before = if first.tag() == Tag::Integer { 4 } else { 5 };
            for _ in 0..before {
                fields.decode::<AnyRef<'_>>()?;
            }
            let info = fields.decode()?;
            while !fields.is_finished() {
                fields.decode::<AnyRef<'_>>()?;
            }
            Ok(info)
        })
    })
}
