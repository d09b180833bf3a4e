//! The settings that are not limits: one table from which messages and the README come.
//!
//! Owns names, defaults and what is accepted. Must not know where values come from.

use tracing::level_filters::LevelFilter;

use crate::auth::Algorithm;
use crate::log::Format;

use super::Store;
use super::limits::Limits;

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
    JWT_SECRET true, "none", "at least 32 bytes (shorter only with --dev)",
        "The secret that tokens are signed with, the same as in the ERP. Required.";
    WS_PORT false, "3001", "a port from 0 to 65535 (0: any free one)",
        "The port of WebSocket and REST.";
    PORT false, "none", "a port from 0 to 65535 (0: any free one)",
        "The port where WS_PORT is not set.";
    CHAT_API_KEY true, "none", "at least 16 bytes, or empty for none",
        "What a backend sends as X-API-Key. Without one REST takes tokens only.";
    CHAT_CONFIG false, "none", "the path of a TOML file",
        "The configuration file.";
    CHAT_LISTEN false, "::", "an IP address",
        "The address to listen on. The default is every address, IPv4 included; with --dev it is 127.0.0.1.";
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
    CHAT_ORIGINS false, "*", "* or origins such as https://app.example.com, separated by commas",
        "Web pages that may connect. A client without an Origin always may.";
    CHAT_JWT_ALGORITHMS false, "HS256,HS384,HS512", "HS256, HS384, HS512, separated by commas",
        "Algorithms that a token may be signed with.";
    CHAT_JWT_ISSUER false, "none", "names separated by commas, or empty for none",
        "Where set, a token's iss must be one of them.";
    CHAT_JWT_AUDIENCE false, "none", "names separated by commas, or empty for none",
        "Where set, a token's aud must name one of them.";
    CHAT_ROLE_CLAIM false, "chatRole", "1 to 128 bytes, none of userId, sub, exp, nbf, iat, iss, aud",
        "The claim that grants the rights of a service or moderator.";
    CHAT_ROOM_ACCESS false, "open", "open, claims or members, or items pattern=mode such as project/*=members, separated by commas",
        "Who may enter which room: of the patterns that match a room the first counts, and no match closes it.";
    CHAT_ROOMS_CLAIM false, "rooms", "1 to 128 bytes, none of userId, sub, exp, nbf, iat, iss, aud",
        "The claim that lists the rooms of a token where the mode is claims.";
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
    [CHAT_API_KEY.key, CHAT_JWT_ISSUER.key, CHAT_JWT_AUDIENCE.key].contains(&key)
}

pub(crate) fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
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

pub(crate) fn names(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let names = text.split(',').map(|name| name.trim().to_owned());
    let names: Vec<String> = names.collect();
    (!names.iter().any(String::is_empty)).then_some(names)
}

pub(crate) fn algorithms(text: &str) -> Option<Vec<Algorithm>> {
    let names = text.split(',').map(|name| Algorithm::from_name(name.trim()));
    names.collect()
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
        assert_eq!(algorithms("HS512, HS256"), Some(vec![Algorithm::Hs512, Algorithm::Hs256]));
        for bad in ["", "none", "hs256", "HS256,", "RS256"] {
            assert_eq!(algorithms(bad), None, "{bad}");
        }
        assert_eq!(claim_name("role"), Some("role".into()));
        for bad in ["", "userId", "sub", "exp"] {
            assert_eq!(claim_name(bad), None, "{bad}");
        }
        assert_eq!(on_or_off("true"), None);
        assert_eq!(log_level("INFO"), None);
        assert_eq!(log_format("JSON"), None);
    }
}
