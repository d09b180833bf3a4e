//! The keys that backends send as `X-API-Key`.
//!
//! Owns their names and digests; a key itself is not kept. What a peer sends is hashed and compared with every digest
//! whole, so that the time says neither how much of a key was right nor which key it was.

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Least bytes of a key.
pub const API_KEY_BYTES_MIN: usize = 16;
/// Most keys.
const API_KEYS_MAX: usize = 1024;
/// The name of a key that is given alone.
pub const DEFAULT_NAME: &str = "default";
/// In front of a digest, in place of a key.
const HASHED: &str = "sha256:";
const NAME_BYTES_MAX: usize = 64;

/// Named keys.
#[derive(Clone, Default)]
pub struct ApiKeys {
    keys: Vec<(Box<str>, [u8; 32])>,
}

impl ApiKeys {
    /// One key, which is called `default`; how long it must be is the configuration's rule.
    pub fn one(key: &[u8]) -> ApiKeys {
        ApiKeys { keys: vec![(DEFAULT_NAME.into(), Sha256::digest(key).into())] }
    }

    /// Reads `name:key` or `name:sha256:HEX`, one after the other.
    ///
    /// # Errors
    /// Which is wrong, counted from 1, and how, without the key.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<ApiKeys, String> {
        let mut keys = ApiKeys::default();
        for (at, entry) in entries.into_iter().enumerate() {
            let wrong = |reason| format!("key {}: {reason}", at + 1);
            let (name, digest) = parse_entry(entry.trim()).map_err(wrong)?;
            keys.insert(name, digest).map_err(wrong)?;
        }
        Ok(keys)
    }

    /// Reads a file: a key per line as in [`ApiKeys::parse`]; empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// Which line is wrong, and how, without the key.
    pub fn parse_file(text: &str) -> Result<ApiKeys, String> {
        let mut keys = ApiKeys::default();
        for (at, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason| format!("line {}: {reason}", at + 1);
            let (name, digest) = parse_entry(line).map_err(wrong)?;
            keys.insert(name, digest).map_err(wrong)?;
        }
        Ok(keys)
    }

    /// Adds all of the others.
    ///
    /// # Errors
    /// Two have the same name, or they are too many.
    pub fn and(mut self, others: &ApiKeys) -> Result<ApiKeys, String> {
        for (name, digest) in &others.keys {
            self.insert(name, *digest).map_err(|reason| format!("{name}: {reason}"))?;
        }
        Ok(self)
    }

    fn insert(&mut self, name: &str, digest: [u8; 32]) -> Result<(), &'static str> {
        if self.keys.iter().any(|(known, _)| **known == *name) {
            return Err("another key has this name");
        }
        if self.keys.len() >= API_KEYS_MAX {
            return Err("these are more keys than are taken");
        }
        self.keys.push((name.into(), digest));
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name of the key that a peer sent, if it is one.
    pub fn find(&self, given: &[u8]) -> Option<&str> {
        let digest: [u8; 32] = Sha256::digest(given).into();
        let mut found = Choice::from(0);
        let mut place = 0;
        for (at, (_, key)) in self.keys.iter().enumerate() {
            // Of two names for the same key the first.
            let is_it = key.ct_eq(&digest) & !found;
            place |= at * usize::from(is_it.unwrap_u8());
            found |= is_it;
        }
        let (name, _) = self.keys.get(place)?;
        bool::from(found).then_some(name)
    }
}

/// What a key is hashed to in a configuration.
pub fn hashed(name: &str, key: &[u8]) -> String {
    let mut line = format!("{name}:{HASHED}");
    for byte in Sha256::digest(key) {
        let _ = write!(line, "{byte:02x}");
    }
    line
}

/// Whether a key may have this name.
pub fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fine)
}

fn parse_entry(entry: &str) -> Result<(&str, [u8; 32]), &'static str> {
    let (name, key) = entry.split_once(':').ok_or("there is no : between a name and a key")?;
    if !is_name(name) {
        return Err("a name has 1 to 64 of the letters a to z, digits, -, _ and .");
    }
    match key.strip_prefix(HASHED) {
        Some(hex) => Ok((name, digest_of(hex).ok_or("behind sha256: stand 64 hexadecimal digits")?)),
        None if key.len() < API_KEY_BYTES_MIN => Err("a key needs at least 16 bytes"),
        None => Ok((name, Sha256::digest(key).into())),
    }
}

fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"0123456789abcdef";

    #[test]
    fn keys_compare_whole_and_tell_their_name() {
        let line = hashed("hashed", b"another-key-of-16");
        let keys = ApiKeys::parse(["erp:0123456789abcdef", &line, "with:colons:in:the:key"]).unwrap();
        assert_eq!(keys.find(KEY), Some("erp"));
        assert_eq!(keys.find(b"another-key-of-16"), Some("hashed"));
        assert_eq!(keys.find(b"colons:in:the:key"), Some("with"));
        let digest = line.rsplit(':').next().unwrap();
        for wrong in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0", digest, "erp"] {
            assert_eq!(keys.find(wrong.as_bytes()), None, "{wrong}");
        }
        let one = |name: &str| ApiKeys::parse([format!("{name}:0123456789abcdef").as_str()]).unwrap();
        let again = keys.and(&one("again")).and_then(|keys| keys.and(&one("and-again"))).unwrap();
        assert_eq!(again.find(KEY), Some("erp"), "of several names the first");
        assert_eq!(ApiKeys::default().find(b""), None);
        assert_eq!(ApiKeys::one(KEY).find(KEY), Some("default"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (entry, reason) in [
            ("abc", "there is no : between"),
            (":0123456789abcdef", "a name has"),
            ("a b:0123456789abcdef", "a name has"),
            ("a:0123456789abcde", "at least 16 bytes"),
            ("a:sha256:0123", "64 hexadecimal digits"),
            ("erp:0123456789abcdef", "another key has this name"),
        ] {
            let error = ApiKeys::parse(["erp:fedcba9876543210", entry]).unwrap_err();
            assert!(error.starts_with("key 2: ") && error.contains(reason), "{error}");
            assert!(!error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn files_have_comments() {
        let text = "# of the ERP\n\nerp:0123456789abcdef  \r\n   # old\n";
        assert_eq!(ApiKeys::parse_file(text).unwrap().find(KEY), Some("erp"));
        assert_eq!(ApiKeys::parse_file("\nx").unwrap_err(), "line 2: there is no : between a name and a key");
        assert!(ApiKeys::parse_file("# none\n").unwrap().is_empty());
        let both = ApiKeys::one(KEY).and(&ApiKeys::one(KEY)).unwrap_err();
        assert_eq!(both, "default: another key has this name");
    }
}
