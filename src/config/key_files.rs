//! Where keys come from besides the configuration itself: files, and a document on the web.
//!
//! Owns what the configuration says of them, and reading those that are files. Must not know when they are read again,
//! nor how a document is fetched.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::http::Uri;

use crate::auth::jwks::{self, KeySet};
use crate::auth::{ApiKeys, CANDIDATES_MAX, Credentials, Key, Keys, pem};
use crate::error::Error;

use super::settings::{CHAT_API_KEYS_FILE, CHAT_JWKS, CHAT_JWT_KEYS, Setting};

const PEM_COUNT_ACCEPTED: &str = "at most four of a kind, since they have no name and a token is tried with no more; \
                                  take out those that are not used any more";
const PEM_ACCEPTED: &str = "PEM with PUBLIC KEY, RSA PUBLIC KEY or CERTIFICATE, of RSA with 2048 to 4096 bits, ECDSA \
                            P-256 or P-384, or Ed25519";
const JWKS_ACCEPTED: &str = "a JSON Web Key Set with a public key for signatures: RSA of 2048 to 4096 bits, ECDSA P-256 \
                             or P-384, or Ed25519";
const API_KEYS_ACCEPTED: &str = "name:key or name:sha256:HEX in each line, each name once";

/// Reads a file whole.
pub type ReadFile = fn(&Path) -> io::Result<String>;

/// What is configured.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// The rules of tokens, and what needs no file: secrets.
    pub base: Keys,
    /// The API keys that need no file.
    pub base_api_keys: ApiKeys,
    /// Files of public keys.
    pub pem: Vec<PathBuf>,
    /// A JSON Web Key Set.
    pub jwks: Option<JwksPlace>,
    /// A file of API keys.
    pub api_keys: Option<PathBuf>,
}

/// Where a JSON Web Key Set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksPlace {
    /// In a file.
    File(PathBuf),
    /// At an `http` or `https` URL.
    Url(String),
}

impl JwksPlace {
    /// A URL, or else a path.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => None,
            url if is_url(url) => Some(Self::Url(url.to_owned())),
            other if other.contains("://") => None,
            path => Some(Self::File(path.into())),
        }
    }
}

impl KeyFiles {
    /// Nothing but what the configuration has itself.
    pub fn none(base: Keys, base_api_keys: ApiKeys) -> Self {
        Self { base, base_api_keys, pem: Vec::new(), jwks: None, api_keys: None }
    }

    /// What is in the PEM files.
    ///
    /// # Errors
    /// The first that cannot be read or used, or has a key more of its kind than a token is tried with.
    pub fn read_pem(&self, read_file: ReadFile) -> Result<Vec<Arc<Key>>, Error> {
        let mut keys = Vec::new();
        for path in &self.pem {
            let found = read(path, read_file).and_then(|text| pem::keys(&text).map_err(str::to_owned));
            let found = found.map_err(|reason| unusable(CHAT_JWT_KEYS, path, &reason, PEM_ACCEPTED))?;
            keys.extend(found.into_iter().map(Arc::new));
            if let Some(kind) = Keys::of(keys.clone()).crowded_kind() {
                let reason = format!("with it the files have more than {CANDIDATES_MAX} {} keys", kind.name());
                return Err(unusable(CHAT_JWT_KEYS, path, &reason, PEM_COUNT_ACCEPTED));
            }
        }
        Ok(keys)
    }

    /// What is in the file of the key set; nothing if it is none, or elsewhere.
    ///
    /// # Errors
    /// It cannot be read, or has no key that can be used.
    pub fn read_jwks(&self, read_file: ReadFile) -> Result<Vec<Arc<Key>>, Error> {
        let Some(JwksPlace::File(path)) = &self.jwks else { return Ok(Vec::new()) };
        let set = read(path, read_file).and_then(|text| jwks::keys(text.as_bytes()));
        set.map(taken).map_err(|reason| unusable(CHAT_JWKS, path, &reason, JWKS_ACCEPTED))
    }

    /// The API keys, those of the file included.
    ///
    /// # Errors
    /// The file cannot be read or used.
    pub fn read_api_keys(&self, read_file: ReadFile) -> Result<ApiKeys, Error> {
        let Some(path) = &self.api_keys else { return Ok(self.base_api_keys.clone()) };
        let keys = read(path, read_file).and_then(|text| ApiKeys::parse_file(&text));
        let keys = keys.and_then(|keys| self.base_api_keys.clone().and(&keys));
        keys.map_err(|reason| unusable(CHAT_API_KEYS_FILE, path, &reason, API_KEYS_ACCEPTED))
    }

    /// All together.
    pub fn credentials(&self, pem: &[Arc<Key>], jwks: &[Arc<Key>], api_keys: ApiKeys) -> Credentials {
        let keys = self.base.clone().and(pem.iter().chain(jwks).cloned());
        let is_fetched = matches!(self.jwks, Some(JwksPlace::Url(_)));
        Credentials { keys: if is_fetched { keys.that_may_grow() } else { keys }, api_keys }
    }
}

/// The keys of a set, after a word about those that were left out.
pub fn taken(set: KeySet) -> Vec<Arc<Key>> {
    if let Some((count, reason)) = set.left_out {
        tracing::info!(count, first = reason, "keys of the key set are not used");
    }
    set.keys.into_iter().map(Arc::new).collect()
}

/// Whether a text is a URL that can be asked: `http` or `https`, with a host, without a name to log in with.
pub fn is_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_bare = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    is_http && is_bare && uri.host().is_some_and(|host| !host.is_empty()) && !text.contains('#')
}

/// A URL that can be asked, as the log shows it: without its query, where there may be a key.
pub fn shown_url(url: &str) -> &str {
    url.split_once('?').map_or(url, |(shown, _query)| shown)
}

fn read(path: &Path, read_file: ReadFile) -> Result<String, String> {
    read_file(path).map_err(|error| format!("it cannot be read: {error}"))
}

fn unusable(setting: Setting, path: &Path, reason: &str, accepted: &'static str) -> Error {
    Error::NamedFile { key: setting.key, path: path.to_owned(), reason: reason.to_owned(), accepted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["http://a", "https://erp.example.com:8443/jwks?x=1", "http://[::1]:3/k"] {
            assert!(is_url(good), "{good}");
            assert!(matches!(JwksPlace::parse(good), Some(JwksPlace::Url(_))));
        }
        for bad in ["file:///etc/keys", "ftp://a/b", "http://", "https:///x", "http://a/#b", "http://u:p@a/b"] {
            assert!(!is_url(bad), "{bad}");
            assert_eq!(JwksPlace::parse(bad), None, "{bad}");
        }
        assert_eq!(shown_url("https://erp.example.com:8443/jwks?key=x?y"), "https://erp.example.com:8443/jwks");
        assert_eq!(shown_url("http://[::1]:3/k"), "http://[::1]:3/k");
        assert_eq!(JwksPlace::parse("/etc/keys"), Some(JwksPlace::File("/etc/keys".into())));
    }
}
