//! The rules of tokens, with a secret.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const SECRET_ALGORITHMS: [Algorithm; 3] = [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512];
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
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VySWQiOiJ1MSJ9.GLfcFPlBqgXn4SBWZYc5BZyGHhStrsW3WD3umIQY3vM";
    let identity = Keys::new(b"secret").verify(token, NOW_MS).unwrap();
    assert_eq!(identity.user, Id::from_text("u1"));
    assert_eq!(identity.role, Role::User);
    assert_eq!(identity.expires_at_ms, None);
    assert_eq!(identity.issued_at_ms, None);
}

#[test]
fn algorithms() {
    let claims = br#"{"userId":"u"}"#;
    for algorithm in SECRET_ALGORITHMS {
        let header = format!(r#"{{"alg":"{}"}}"#, algorithm.name());
        let token = sign_raw(&header, claims, SECRET, algorithm);
        assert!(keys().verify(&token, NOW_MS).is_ok(), "{algorithm:?}");
        let others = SECRET_ALGORITHMS.into_iter().filter(|one| *one != algorithm);
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
fn secrets_are_not_shown() {
    let shown = format!("{:?} {:?}", keys(), ApiKeys::one(SECRET));
    assert!(!shown.contains("thirty-two"), "{shown}");
    assert!(!shown.contains("97, 32"), "{shown}");
}
