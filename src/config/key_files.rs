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
            let found = pem::keys(&read(path, read_file)?).map_err(|reason| unusable(path, reason))?;
            keys.extend(found.into_iter().map(Arc::new));
            if let Some(kind) = Keys::of(keys.clone()).crowded_kind() {
                let kind = kind.name();
                let reason = format!(
                    "is one too many: with it there are more than {CANDIDATES_MAX} {kind} keys in files, which have no name, \
                     and a token is tried with {CANDIDATES_MAX} at most; remove those that are out of use"
                );
                return Err(unusable(path, reason));
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
        let set = jwks::keys(read(path, read_file)?.as_bytes()).map_err(|reason| unusable(path, reason))?;
        Ok(taken(set))
    }

    /// The API keys, those of the file included.
    ///
    /// # Errors
    /// The file cannot be read or used.
    pub fn read_api_keys(&self, read_file: ReadFile) -> Result<ApiKeys, Error> {
        let Some(path) = &self.api_keys else { return Ok(self.base_api_keys.clone()) };
        let keys = ApiKeys::parse_file(&read(path, read_file)?);
        let keys = keys.and_then(|keys| self.base_api_keys.clone().and(&keys));
        keys.map_err(|reason| unusable(path, reason))
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

fn read(path: &Path, read_file: ReadFile) -> Result<String, Error> {
    read_file(path).map_err(|error| unusable(path, format!("cannot be read: {error}")))
}

fn unusable(path: &Path, reason: impl AsRef<str>) -> Error {
    Error::File { path: path.to_owned(), reason: reason.as_ref().to_owned() }
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
        assert_eq!(JwksPlace::parse("/etc/keys"), Some(JwksPlace::File("/etc/keys".into())));
    }
}
