//! The settings that are not limits: one table from which messages and the README come.
//!
//! Owns names, defaults and what is accepted. Must not know where values come from.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use crate::auth::Algorithm;
use crate::log::Format;
use crate::wire::timestamp::rfc3339_ms;

use super::key_files::is_url;
use super::limits::Limits;
use super::{Store, TlsVersion};

/// One setting as it is documented.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The key in the environment.
    pub key: &'static str,
    /// Whether its value is masked wherever it would be shown.
    pub secret: bool,
    /// The value unless configured, in words where it is derived.
    pub default: &'static str,
    /// What is accepted.
    pub accepted: &'static str,
    /// What the setting is for, in one line.
    pub doc: &'static str,
}

macro_rules! settings {
    ($($key:ident $secret:literal, $default:literal, $accepted:literal, $doc:literal;)+) => {
        $(
            #[doc = $doc]
            pub const $key: Setting = Setting {
                key: stringify!($key),
                secret: $secret,
                default: $default,
                accepted: $accepted,
                doc: $doc,
            };
        )+

        /// Every setting that is no limit, in the order of the documentation.
        pub const TABLE: &[Setting] = &[$($key),+];
    };
}

settings! {
    JWT_SECRET true, "none", "at least 32 bytes (shorter only with --dev), no PEM",
        "The secret that tokens are signed with, the same as in the ERP. Required unless there are public keys.";
    WS_PORT false, "3001", "a port from 0 to 65535 (0: any free one)",
        "The port of WebSocket and REST.";
    PORT false, "none", "a port from 0 to 65535 (0: any free one)",
        "The port where WS_PORT is not set.";
    CHAT_API_KEY true, "none", "at least 16 bytes, or empty for none",
        "What a backend sends as X-API-Key; its name is default. Without any REST takes tokens only.";
    CHAT_API_KEYS true, "none", "name:key or name:sha256:HEX, separated by commas",
        "Further API keys by name, or their SHA-256; the command api-key makes one.";
    CHAT_API_KEYS_FILE false, "none", "the path of a file with name:key or name:sha256:HEX in each line",
        "The same in a file, which is read again on SIGHUP and when it changes. Lines that begin with # are left out.";
    CHAT_CONFIG false, "none", "the path of a TOML file",
        "The configuration file.";
    CHAT_LISTEN false, "::", "an IP address",
        "The address to listen on. The default is every address, IPv4 included; with --dev it is 127.0.0.1.";
    CHAT_TLS_CERT false, "none", "the path of a PEM file, or empty for none",
        "The certificate, and behind it those that it is signed with. With it every connection is TLS. Read again when it changes.";
    CHAT_TLS_KEY false, "none", "the path of a PEM file, or empty for none",
        "The private key of the certificate: PKCS #8, PKCS #1 or SEC 1, not encrypted. Read again when it changes.";
    CHAT_TLS_CLIENT_CA false, "none", "the path of a PEM file, or empty for none",
        "Authorities of client certificates: who shows one that they have signed may call REST as a service. Nobody has to.";
    CHAT_TLS_MIN false, "1.2", "1.2 or 1.3",
        "The least version of TLS.";
    CHAT_THREADS false, "cores", "an integer from 1 to 256",
        "Threads that serve connections.";
    CHAT_STORE false, "data/chat.db", "the path of a database file, memory, or none",
        "Where messages are kept. A file that does not exist is made, with its folder; with --dev it is memory.";
    CHAT_READY_REQUIRES_STORE false, "off", "on or off",
        "Whether /readyz answers 503 while the store fails. Its body says so in any case.";
    CHAT_RATES false, "on", "on or off",
        "Rate limits of any kind; off is for load tests.";
    CHAT_DEFLATE false, "on", "on or off",
        "Whether messages are compressed for clients that offer permessage-deflate.";
    CHAT_ENFORCE_EXPIRY false, "on", "on or off",
        "Whether a connection closes (4001) when its token expires.";
    CHAT_ORIGINS false, "*", "*, or origins such as https://app.example.com or https://*.example.com, separated by commas",
        "Web pages that may connect; *. is every subdomain, not the domain itself. A client without an Origin always may.";
    CHAT_TRUSTED_PROXIES false, "none", "addresses and networks such as 10.0.0.0/8, separated by commas, or empty for none",
        "Proxies whose X-Forwarded-For and PROXY header say from where a client comes.";
    CHAT_PROXY_PROTOCOL false, "off", "on or off",
        "Whether a connection from a trusted proxy must begin with a PROXY header (version 1 or 2). Others are served without.";
    CHAT_JWT_KEYS false, "none", "paths of PEM files, separated by commas",
        "Public keys (SubjectPublicKeyInfo, PKCS #1, or of a certificate) for tokens that are signed with their private ones.";
    CHAT_JWKS false, "none", "the path or the http or https URL of a JSON Web Key Set",
        "The same as a document, from which a token's kid picks.";
    CHAT_JWT_PREVIOUS_SECRET true, "none", "at least 32 bytes, no PEM",
        "The secret before JWT_SECRET, with which tokens still verify for a while.";
    CHAT_JWT_PREVIOUS_UNTIL false, "none", "seconds since the epoch, or a time such as 2030-01-31T00:00:00Z",
        "Until when they do.";
    CHAT_JWT_ALGORITHMS false, "all for which there is a key", "HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, separated by commas",
        "Algorithms that a token may be signed with.";
    CHAT_JWT_ISSUER false, "none", "names separated by commas, or empty for none",
        "Where set, a token's iss must be one of them.";
    CHAT_JWT_AUDIENCE false, "none", "names separated by commas, or empty for none",
        "Where set, a token's aud must name one of them.";
    CHAT_USER_CLAIM false, "userId, else sub", "1 to 128 bytes, none of exp, nbf, iat, iss, aud",
        "The claim that names the user.";
    CHAT_ROLE_CLAIM false, "chatRole", "1 to 128 bytes, none of userId, sub, exp, nbf, iat, iss, aud",
        "The claim that grants the rights of a service or moderator.";
    CHAT_ROOM_ACCESS false, "open", "open, claims, members or ask, or items pattern=mode such as project/*=members, separated by commas",
        "Who may enter which room: of the patterns that match a room the first counts, and no match closes it.";
    CHAT_ROOMS_CLAIM false, "rooms", "1 to 128 bytes, none of userId, sub, exp, nbf, iat, iss, aud",
        "The claim that lists the rooms of a token where the mode is claims.";
    CHAT_ACCESS_URL false, "none", "an http or https URL without a name to log in with, or empty for none",
        "Where the ERP is asked who may enter a room. Required where the mode is ask.";
    CHAT_ACCESS_KEY true, "none", "1 to 4096 visible ASCII characters, or empty for none",
        "What is sent along as a bearer token.";
    CHAT_ACCESS_FALLBACK false, "deny", "deny or allow",
        "What counts while the ERP gives no answer that can be used: deny answers unavailable, allow lets everybody in.";
    CHAT_LOG false, "info", "off, error, warn, info, debug or trace",
        "The least severe level that is logged.";
    CHAT_LOG_FORMAT false, "auto", "auto, text or json",
        "The form of the log: auto is text on a terminal and JSON otherwise.";
}

/// The settings as a Markdown table, as in the README.
pub fn table_markdown() -> String {
    let mut table = String::from("| key | default | accepted | what it is |\n| --- | --- | --- | --- |\n");
    for setting in TABLE {
        let Setting { key, default, accepted, doc, .. } = setting;
        table.push_str(&format!("| `{key}` | {default} | {accepted} | {doc} |\n"));
    }
    table
}

/// Whether a key exists.
pub(crate) fn is_known(key: &str) -> bool {
    TABLE.iter().any(|setting| setting.key == key) || Limits::TABLE.iter().any(|row| row.key() == key)
}

/// Every key, settings first.
pub(crate) fn keys() -> Vec<String> {
    let limits = Limits::TABLE.iter().map(|row| row.key());
    let settings = TABLE.iter().map(|setting| setting.key.to_owned());
    settings.chain(limits).collect()
}

/// Whether an empty value says something, rather than that nothing is said.
pub(crate) fn empty_means_none(key: &str) -> bool {
    let keys = [
        CHAT_API_KEY,
        CHAT_API_KEYS,
        CHAT_TRUSTED_PROXIES,
        CHAT_JWT_ISSUER,
        CHAT_JWT_AUDIENCE,
        CHAT_TLS_CERT,
        CHAT_TLS_KEY,
        CHAT_TLS_CLIENT_CA,
        CHAT_ACCESS_URL,
        CHAT_ACCESS_KEY,
    ];
    keys.iter().any(|setting| setting.key == key)
}

pub(crate) fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// `None` is none.
pub(crate) fn access_url(text: &str) -> Option<Option<String>> {
    (text.is_empty() || is_url(text)).then(|| Some(text.to_owned()).filter(|url| !url.is_empty()))
}

/// What can stand in a header field. `None` is none.
pub(crate) fn access_key(text: &str) -> Option<Option<String>> {
    let is_visible = text.len() <= 4096 && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_visible.then(|| Some(text.to_owned()).filter(|key| !key.is_empty()))
}

pub(crate) fn deny_or_allow(text: &str) -> Option<bool> {
    match text {
        "deny" => Some(false),
        "allow" => Some(true),
        _ => None,
    }
}

pub(crate) fn store_setting(text: &str) -> Option<Store> {
    match text {
        "" => None,
        "none" => Some(Store::None),
        "memory" => Some(Store::Memory),
        path => Some(Store::File(path.into())),
    }
}

pub(crate) fn optional_path(text: &str) -> Option<Option<PathBuf>> {
    Some((!text.is_empty()).then(|| text.into()))
}

pub(crate) fn tls_version(text: &str) -> Option<TlsVersion> {
    match text {
        "1.2" => Some(TlsVersion::Tls12),
        "1.3" => Some(TlsVersion::Tls13),
        _ => None,
    }
}

pub(crate) fn names(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let names = text.split(',').map(|name| name.trim().to_owned());
    let names: Vec<String> = names.collect();
    (!names.iter().any(String::is_empty)).then_some(names)
}

/// `None` is all for which there is a key.
pub(crate) fn algorithms(text: &str) -> Option<Option<Vec<Algorithm>>> {
    if text.is_empty() {
        return Some(None);
    }
    let names = text.split(',').map(|name| Algorithm::from_name(name.trim()));
    names.collect::<Option<_>>().map(Some)
}

/// A secret. A PEM file has public keys, and whoever knows one could sign with it if it was taken for a secret.
pub(crate) fn secret(text: &str, bytes_min: usize) -> Option<String> {
    (text.len() >= bytes_min && !text.contains("-----BEGIN ")).then(|| text.to_owned())
}

/// In milliseconds since the epoch.
pub(crate) fn previous_until(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let ms = if is_number { text.parse::<u64>().ok()?.checked_mul(1000) } else { rfc3339_ms(text)?.try_into().ok() };
    ms.map(Some)
}

pub(crate) fn user_claim(text: &str) -> Option<Option<String>> {
    let taken = ["exp", "nbf", "iat", "iss", "aud"].contains(&text);
    (text.len() <= 128 && !taken).then(|| (!text.is_empty()).then(|| text.to_owned()))
}

pub(crate) fn claim_name(text: &str) -> Option<String> {
    let taken = ["userId", "sub", "exp", "nbf", "iat", "iss", "aud"].contains(&text);
    ((1..=128).contains(&text.len()) && !taken).then(|| text.to_owned())
}

pub(crate) fn log_level(text: &str) -> Option<LevelFilter> {
    Some(match text {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

pub(crate) fn log_format(text: &str) -> Option<Format> {
    Some(match text {
        "auto" => Format::Auto,
        "text" => Format::Text,
        "json" => Format::Json,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_documented_and_unique() {
        let mut all = keys();
        assert_eq!(all.len(), TABLE.len() + Limits::TABLE.len());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), TABLE.len() + Limits::TABLE.len());
        for setting in TABLE {
            assert!(setting.doc.ends_with('.'), "{setting:?}");
            assert!(is_known(setting.key));
        }
        assert_eq!(table_markdown().lines().count(), TABLE.len() + 2);
    }

    #[test]
    fn lists_and_words() {
        assert_eq!(names(""), Some(vec![]));
        assert_eq!(names("a, b"), Some(vec!["a".into(), "b".into()]));
        assert_eq!(names("a,,b"), None);
        assert_eq!(algorithms("EdDSA, HS256"), Some(Some(vec![Algorithm::EdDsa, Algorithm::Hs256])));
        assert_eq!(algorithms(""), Some(None));
        for bad in ["none", "hs256", "HS256,", "ES512"] {
            assert_eq!(algorithms(bad), None, "{bad}");
        }
        assert_eq!(previous_until("1700000000"), Some(Some(1_700_000_000_000)));
        assert_eq!(previous_until("2023-11-14T22:13:20Z"), Some(Some(1_700_000_000_000)));
        assert_eq!(previous_until(""), Some(None));
        for bad in ["-1", "1e9", "2023-11-14", "soon"] {
            assert_eq!(previous_until(bad), None, "{bad}");
        }
        assert_eq!(user_claim(""), Some(None));
        assert_eq!((user_claim("sub"), user_claim("exp")), (Some(Some("sub".into())), None));
        assert!(secret("0123456789", 10).is_some() && secret("0123456789", 11).is_none());
        assert_eq!(secret("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA", 8), None);
        assert_eq!(claim_name("role"), Some("role".into()));
        for bad in ["", "userId", "sub", "exp"] {
            assert_eq!(claim_name(bad), None, "{bad}");
        }
        assert_eq!((access_url(""), access_key("")), (Some(None), Some(None)));
        assert_eq!(access_url("https://erp/may?x=1"), Some(Some("https://erp/may?x=1".into())));
        for bad in ["erp/may", "ftp://erp/may", "http://", "http://me:it@erp/may", "http://erp/#may"] {
            assert_eq!(access_url(bad), None, "{bad}");
        }
        for bad in ["a b", "ä", "a\r\nX: y"] {
            assert_eq!(access_key(bad), None, "{bad}");
        }
        assert_eq!((deny_or_allow("deny"), deny_or_allow("on")), (Some(false), None));
        assert_eq!(on_or_off("true"), None);
        assert_eq!(log_level("INFO"), None);
        assert_eq!(log_format("JSON"), None);
    }
}
