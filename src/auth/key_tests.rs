//! Public keys: every algorithm, every form of a key, and what must not be confused.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

#[path = "../../tests/signing/mod.rs"]
mod signing;

use signing::{Signer, jwk, public};

const NOW_MS: u64 = 1_700_000_000_000;
const CLAIMS: &str = r#"{"userId":"u"}"#;
const PUBLIC: [(&str, &str); 9] = [
    ("RS256", "rsa"),
    ("RS384", "rsa"),
    ("RS512", "rsa"),
    ("PS256", "rsa"),
    ("PS384", "rsa"),
    ("PS512", "rsa"),
    ("ES256", "p256"),
    ("ES384", "p384"),
    ("EdDSA", "ed25519"),
];

fn from_pem(name: &str) -> Keys {
    Keys::of(pem::keys(public(name)).unwrap().into_iter().map(Arc::new).collect())
}

fn from_jwks(keys: &[String]) -> Keys {
    let set = jwks::keys(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes()).unwrap();
    Keys::of(set.keys.into_iter().map(Arc::new).collect())
}

fn result(keys: &Keys, token: &str) -> Result<(), TokenError> {
    keys.verify(token, NOW_MS).map(|_| ())
}

#[test]
fn every_algorithm_verifies_by_its_own_key_alone() {
    let all = ["rsa", "p256", "p384", "ed25519"];
    for (algorithm, own) in PUBLIC {
        let token = Signer::of(algorithm).sign("", CLAIMS);
        for name in all {
            let expected = if name == own { Ok(()) } else { Err(TokenError::Algorithm) };
            assert_eq!(result(&from_pem(name), &token), expected, "{algorithm} with {name}");
            assert_eq!(result(&from_jwks(&[jwk(name) + "}"]), &token), expected, "{algorithm} with {name}");
        }
        let every = all.iter().fold(Keys::new(b"a secret of at least thirty-two bytes"), |keys, name| {
            keys.and(pem::keys(public(name)).unwrap().into_iter().map(Arc::new))
        });
        assert_eq!(result(&every, &token), Ok(()), "{algorithm}");
        let other = Signer::of(algorithm).sign("", r#"{"userId":"v"}"#);
        let forged = format!("{}.{}", token.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1);
        assert_eq!(result(&every, &forged), Err(TokenError::Signature), "{algorithm}");
        let cut = &token[..token.len() - 4];
        assert_eq!(result(&every, cut), Err(TokenError::Signature), "{algorithm}");
    }
}

#[test]
fn an_algorithm_is_only_ever_the_configurations() {
    let only = |name: &str, algorithm| from_pem(name).with_algorithms(vec![algorithm]);
    let pss = Signer::of("PS256").sign("", CLAIMS);
    assert_eq!(result(&only("rsa", Algorithm::Rs256), &pss), Err(TokenError::Algorithm));
    let renamed = Signer::of("RS256").sign_as(r#"{"alg":"PS256"}"#, CLAIMS);
    assert_eq!(result(&from_pem("rsa"), &renamed), Err(TokenError::Signature));
    let curve = Signer::of("ES256").sign_as(r#"{"alg":"ES384"}"#, CLAIMS);
    assert_eq!(result(&from_pem("p256"), &curve), Err(TokenError::Algorithm));
    let both = from_pem("p256").and(pem::keys(public("p384")).unwrap().into_iter().map(Arc::new));
    assert_eq!(result(&both, &curve), Err(TokenError::Signature));
    for none in ["none", "None", "NONE", "nOnE", "rs256", "Rs256", "RS256 ", ""] {
        let header = format!(r#"{{"alg":"{none}"}}"#);
        for token in [
            Signer::of("RS256").sign_as(&header, CLAIMS),
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode(CLAIMS)),
        ] {
            assert_eq!(result(&from_pem("rsa"), &token), Err(TokenError::Algorithm), "{none}");
        }
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    for name in ["rsa", "rsa.pkcs1", "p256", "ed25519"] {
        let text = public(name);
        let id = Id::from_text("u");
        for secret in [text, text.trim_end()] {
            let ttl = std::time::Duration::from_secs(60);
            let token = Keys::new(secret.as_bytes()).mint(id.as_ref(), Role::Service, ttl, NOW_MS).unwrap();
            assert_eq!(result(&from_pem(name), &token), Err(TokenError::Algorithm), "{name}");
            let with_secret = from_pem(name).and([Arc::new(Key::secret(b"another secret", None))]);
            assert_eq!(result(&with_secret, &token), Err(TokenError::Signature), "{name}");
        }
    }
}

#[test]
fn keys_come_in_several_forms() {
    for (name, algorithm) in [("rsa.pkcs1", "RS256"), ("rsa.crt", "PS512"), ("p256.crt", "ES256")] {
        assert_eq!(result(&from_pem(name), &Signer::of(algorithm).sign("", CLAIMS)), Ok(()), "{name}");
    }
    let bundle = format!("of the ERP\n{}\nand its next\n{}\n", public("rsa2"), public("rsa"));
    assert_eq!(pem::keys(&bundle).unwrap().len(), 2);
    for (text, reason) in [
        ("", "no -----BEGIN"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "malformed"),
        ("-----BEGIN PUBLIC KEY-----\n", "malformed"),
        (public("private"), "private key"),
        (public("small"), "at least 2048 bits"),
        (public("p521"), "only P-256, P-384 and Ed25519"),
    ] {
        let error = pem::keys(text).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_a_set_says_of_a_key_counts() {
    for (members, expected) in [
        (r#","use":"sig""#, Ok(())),
        (r#","use":"enc""#, Err("its use is not sig")),
        (r#","key_ops":["verify"]"#, Ok(())),
        (r#","key_ops":["encrypt"]"#, Err("key_ops")),
        (r#","key_ops":[]"#, Err("key_ops")),
        (r#","alg":"RS256""#, Ok(())),
        (r#","alg":"ES256""#, Err("its alg is not one for this kind")),
        (r#","alg":"RSA-OAEP""#, Err("its alg is not known")),
        (r#","kid":7"#, Err("another type")),
        (r#","x5c":[1],"x5u":{},"oth":null"#, Ok(())),
    ] {
        let document = format!(r#"{{"keys":[{}{members}}}]}}"#, jwk("rsa"));
        match (jwks::keys(document.as_bytes()), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(reason)) => assert!(error.contains(reason), "{error}"),
            (result, _) => panic!("{members}: {result:?}"),
        }
    }
    let only = from_jwks(&[jwk("rsa") + r#","alg":"RS256"}"#]);
    assert_eq!(result(&only, &Signer::of("RS256").sign("", CLAIMS)), Ok(()));
    assert_eq!(result(&only, &Signer::of("RS512").sign("", CLAIMS)), Err(TokenError::Key));
}

#[test]
fn sets_that_are_none() {
    let secret = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;
    let off_curve = jwk("p256").replace(r#""y":""#, r#""y":"AAAA"#);
    let off_curve = format!(r#"{{"keys":[{off_curve}}}]}}"#);
    let wrong_curve = format!(r#"{{"keys":[{}}}]}}"#, jwk("p256").replace("P-256", "P-384"));
    let small = format!(r#"{{"keys":[{}}}]}}"#, jwk("small"));
    let many = format!(r#"{{"keys":[{}]}}"#, ["{}"; 300].join(","));
    for (document, reason) in [
        ("", "no JSON Web Key Set"),
        ("<html>", "no JSON Web Key Set"),
        ("{}", "no JSON Web Key Set"),
        (r#"{"keys":{}}"#, "no JSON Web Key Set"),
        (r#"{"keys":[]}"#, "no keys"),
        (secret, "a secret"),
        (&off_curve, "length of the curve"),
        (&wrong_curve, "length of the curve"),
        (&small, "at least 2048 bits"),
        (&many, "more than 256"),
        (r#"{"keys":[{"kty":"RSA","n":"!","e":"AQAB"}]}"#, "not base64url"),
        (r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"}]}"#, "kty or crv"),
        (r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA"}]}"#, "no key of Ed25519"),
    ] {
        let error = jwks::keys(document.as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{document}: {error}");
    }
    assert!(jwks::keys(&[b' '; jwks::JWKS_BYTES_MAX + 1]).unwrap_err().contains("larger"));
    let mixed = format!(r#"{{"keys":[{{"kty":"oct","k":"AA"}},{}}}]}}"#, jwk("rsa"));
    let set = jwks::keys(mixed.as_bytes()).unwrap();
    assert_eq!((set.keys.len(), set.left_out.unwrap().0), (1, 1));
}

#[test]
fn a_kid_picks_and_is_never_guessed() {
    let keys = from_jwks(&[jwk("rsa") + r#","kid":"one"}"#, jwk("rsa2") + r#","kid":"two"}"#]);
    let (first, second) = (Signer::of("RS256"), Signer::second("RS256"));
    assert_eq!(result(&keys, &first.sign(r#","kid":"one""#, CLAIMS)), Ok(()));
    assert_eq!(result(&keys, &second.sign(r#","kid":"two""#, CLAIMS)), Ok(()));
    assert_eq!(result(&keys, &first.sign("", CLAIMS)), Ok(()), "without a kid all are tried");
    assert_eq!(result(&keys, &first.sign(r#","kid":"two""#, CLAIMS)), Err(TokenError::Signature));
    let long = format!(r#","kid":"{}""#, "k".repeat(9000));
    for odd in
        [r#","kid":"three""#, r#","kid":"""#, r#","kid":"ONE""#, r#","kid":"../one""#, r#","kid":"\u0000""#, &long]
    {
        assert_eq!(result(&keys, &first.sign(odd, CLAIMS)), Err(TokenError::Key), "{odd}");
    }
    for no_text in [r#","kid":1"#, r#","kid":["one"]"#, r#","kid":{}"#] {
        assert_eq!(result(&keys, &first.sign(no_text, CLAIMS)), Err(TokenError::Malformed), "{no_text}");
    }
    let growing = keys.clone().that_may_grow();
    let look = |token: &str, is_final| growing.look(token, NOW_MS, is_final);
    let unknown = first.sign(r#","kid":"three""#, CLAIMS);
    assert!(matches!(look(&unknown, false), Look::UnknownKey));
    assert!(matches!(look(&unknown, true), Look::Known(Err(TokenError::Key))));
    assert!(matches!(look(&first.sign(r#","kid":"one""#, CLAIMS), false), Look::Unchecked(_)));
    assert!(matches!(look(&Signer::of("ES256").sign("", CLAIMS), false), Look::UnknownKey), "a kind that may come");
}

#[test]
fn a_token_is_tried_with_four_keys_at_most_and_first_with_the_one_that_it_names() {
    let unnamed = |count: usize| (0..count).map(|_| Arc::new(pem::keys(public("rsa2")).unwrap().remove(0)));
    let named = jwks::keys(format!(r#"{{"keys":[{},"kid":"one"}}]}}"#, jwk("rsa")).as_bytes()).unwrap().keys;
    let named: Vec<_> = named.into_iter().map(Arc::new).collect();
    let token = |header| Signer::of("RS256").sign(header, CLAIMS);
    for (count, without, crowded) in [(3, Ok(()), None), (4, Err(TokenError::Signature), Some(KeyKind::Rsa))] {
        let keys = Keys::of(unnamed(count).collect()).and(named.clone());
        assert_eq!(result(&keys, &token("")), without, "{count}");
        assert_eq!(result(&keys, &token(r#","kid":"one""#)), Ok(()), "{count}");
        assert_eq!(keys.crowded_kind(), crowded, "{count}");
    }
}

#[test]
fn nothing_of_a_header_is_followed() {
    let own = jwk("rsa2") + "}";
    let members = format!(
        r#","jwk":{own},"jku":"http://127.0.0.1:1/keys","x5u":"http://127.0.0.1:1/crt","x5c":["AAAA"],"cty":"JWT""#
    );
    let forged = Signer::second("RS256").sign(&members, CLAIMS);
    assert_eq!(result(&from_pem("rsa"), &forged), Err(TokenError::Signature));
    let nested = Signer::of("RS256").sign(r#","cty":"JWT""#, &Signer::of("RS256").sign("", CLAIMS));
    assert_eq!(result(&from_pem("rsa"), &nested), Err(TokenError::Malformed));
    let huge = format!("{}.{}", "a".repeat(1 << 20), forged);
    assert_eq!(result(&from_pem("rsa"), &huge), Err(TokenError::TooLarge));
}

#[test]
fn a_previous_secret_ends_in_time() {
    let previous: &[u8] = b"the secret before, of thirty-two bytes";
    let keys =
        Keys::new(b"the secret of now, of thirty-two bytes").and([Arc::new(Key::secret(previous, Some(NOW_MS)))]);
    let id = Id::from_text("u");
    let mint = |keys: &Keys| keys.mint(id.as_ref(), Role::User, std::time::Duration::from_secs(9999), 0).unwrap();
    let (old, new) = (mint(&Keys::new(previous)), mint(&keys));
    assert!(keys.look(&old, NOW_MS - 1, true).is_good() && !keys.look(&old, NOW_MS, true).is_good());
    assert!(keys.look(&new, NOW_MS, true).is_good(), "signed with the secret of now");
}

#[test]
fn the_claim_of_the_user_can_have_another_name() {
    let signer = Signer::of("EdDSA");
    let keys = from_pem("ed25519").with_user_claim(Some("https://erp/uid".into()));
    let verify = |claims: &str| keys.verify(&signer.sign("", claims), NOW_MS).map(|identity| identity.user);
    assert_eq!(
        verify(r#"{"https://erp/uid":7,"userId":"u","sub":"s"}"#),
        Ok(Id::from_text("7").and(Id::parse_raw("7")))
    );
    assert_eq!(verify(r#"{"userId":"u","sub":"s"}"#), Err(TokenError::User));
    let by_sub = from_pem("ed25519").with_user_claim(Some("sub".into()));
    let token = signer.sign("", r#"{"userId":"u","sub":"s"}"#);
    assert_eq!(by_sub.verify(&token, NOW_MS).unwrap().user, Id::from_text("s"));
}

impl Look {
    fn is_good(&self) -> bool {
        matches!(self, Look::Known(Ok(_)))
    }
}
