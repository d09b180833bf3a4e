//! The values that name things in the protocol: ids and room names.
//!
//! Owns which texts are valid ids and room names, when two ids are the same, and how they are
//! written as JSON. Knows nothing about messages, connections or rooms. An [`Id`] is valid by
//! construction.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Longest id, in bytes of UTF-8 after unescaping.
pub const ID_BYTES_MAX: usize = 128;
/// Longest room name, in bytes of UTF-8 after unescaping.
pub const ROOM_NAME_BYTES_MAX: usize = 256;

/// Largest magnitude of an integer id: every integer up to it is exact in JavaScript.
const ID_INTEGER_MAX: u64 = 1 << 53;

/// The id of a user or a message: a string of 1 to [`ID_BYTES_MAX`] bytes, or an integer within
/// 2^53.
///
/// `7` and `"7"` name the same thing, so equality, order and hash look at the text only. The form
/// is remembered because what is sent out keeps the form in which it came.
#[derive(Clone)]
pub struct Id {
    text: Box<str>,
    numeric: bool,
}

impl Id {
    /// Reads an id from one raw JSON value.
    ///
    /// A number must be an integer without fraction or exponent; it is kept as canonical decimal
    /// text (`-0` is `0`). A string is unescaped, which refuses unpaired surrogates; control
    /// characters are allowed. Anything else is `None`.
    pub fn parse_raw(raw_json: &str) -> Option<Id> {
        match raw_json.as_bytes().first()? {
            b'"' => {
                let text: String = serde_json::from_str(raw_json).ok()?;
                Id::from_text(&text)
            }
            b'-' | b'0'..=b'9' => parse_integer(raw_json),
            _ => None,
        }
    }

    /// Takes a decoded text, such as a path segment, as an id in string form.
    pub fn from_text(text: &str) -> Option<Id> {
        if text.is_empty() || text.len() > ID_BYTES_MAX {
            return None;
        }
        Some(Id { text: text.into(), numeric: false })
    }

    /// Takes a decoded part of a URL as an id, which has no form of its own there: what is written as a canonical integer
    /// within 2^53 is a number, as the ids of databases are.
    pub fn from_url(text: &str) -> Option<Id> {
        let number = Id::parse_raw(text).filter(|id| id.numeric && *id.text == *text);
        number.or_else(|| Id::from_text(text))
    }

    /// The id as text: what makes it the same as another.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the id came as a JSON number.
    pub fn is_numeric(&self) -> bool {
        self.numeric
    }

    /// Appends the id as a JSON number or string, in the form in which it came.
    pub fn put_json(&self, out: &mut Vec<u8>) {
        if self.numeric {
            out.extend_from_slice(self.text.as_bytes());
        } else {
            put_json_string(out, &self.text);
        }
    }
}

impl Id {
    /// The id as it is written.
    pub fn as_ref(&self) -> IdRef<'_> {
        IdRef { text: &self.text, numeric: self.numeric }
    }
}

/// An id on its way out, wherever its text is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRef<'a> {
    /// The id as text.
    pub text: &'a str,
    /// Whether it goes out as a JSON number.
    pub numeric: bool,
}

impl IdRef<'_> {
    /// The id, with a text of its own.
    pub fn to_id(self) -> Id {
        Id { text: self.text.into(), numeric: self.numeric }
    }

    /// Appends the id as JSON.
    pub fn put_json(self, out: &mut Vec<u8>) {
        if self.numeric {
            out.extend_from_slice(self.text.as_bytes());
        } else {
            put_json_string(out, self.text);
        }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Id) -> bool {
        self.text == other.text
    }
}

impl Eq for Id {}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Id) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Id {
    fn cmp(&self, other: &Id) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.numeric { f.write_str(&self.text) } else { fmt::Debug::fmt(&self.text, f) }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns `text` if it is a valid room name: 1 to [`ROOM_NAME_BYTES_MAX`] bytes, no control
/// character, and not `.` or `..`, which proxies resolve away in a path.
pub fn room_name(text: &str) -> Option<&str> {
    let sized = !text.is_empty() && text.len() <= ROOM_NAME_BYTES_MAX;
    let dots = text == "." || text == "..";
    (sized && !dots && !text.chars().any(char::is_control)).then_some(text)
}

/// Appends `text` as a JSON string with quotes (RFC 8259, section 7). Only what must be escaped is.
pub fn put_json_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| must_escape(byte)) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, after)) = from.split_first() else {
            break;
        };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn parse_integer(raw: &str) -> Option<Id> {
    let (sign, digits) = match raw.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", raw),
    };
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    if leading_zero || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let magnitude: u64 = digits.parse().ok()?;
    if magnitude > ID_INTEGER_MAX {
        return None;
    }
    let text = if magnitude == 0 { "0".to_owned() } else { format!("{sign}{magnitude}") };
    Some(Id { text: text.into_boxed_str(), numeric: true })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn json(id: &Id) -> String {
        let mut out = Vec::new();
        id.put_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn ids_that_are_accepted() {
        for (raw, text, out) in [
            ("7", "7", "7"),
            ("\"7\"", "7", "\"7\""),
            ("0", "0", "0"),
            ("-0", "0", "0"),
            ("-12", "-12", "-12"),
            ("9007199254740992", "9007199254740992", "9007199254740992"),
            ("-9007199254740992", "-9007199254740992", "-9007199254740992"),
            (r#""\u0041\n""#, "A\n", r#""A\n""#),
            (r#""\ud83d\ude00""#, "😀", "\"😀\""),
            (r#""a\"b\\c""#, "a\"b\\c", r#""a\"b\\c""#),
            (r#""\u0001""#, "\u{1}", r#""\u0001""#),
        ] {
            let id = Id::parse_raw(raw).unwrap_or_else(|| panic!("{raw}"));
            assert_eq!(id.text(), text, "{raw}");
            assert_eq!(json(&id), out, "{raw}");
        }
    }

    #[test]
    fn ids_in_urls() {
        for (text, out) in [
            ("7", "7"),
            ("-12", "-12"),
            ("9007199254740993", "\"9007199254740993\""),
            ("007", "\"007\""),
            ("-0", "\"-0\""),
            ("1.5", "\"1.5\""),
            ("\"7\"", r#""\"7\"""#),
            ("null", "\"null\""),
        ] {
            let id = Id::from_url(text).unwrap();
            assert_eq!((id.text(), &*json(&id)), (text, out), "{text}");
        }
        assert!(Id::from_url("").is_none() && Id::from_url(&"1".repeat(129)).is_none());
    }

    #[test]
    fn ids_that_are_refused() {
        for raw in [
            "",
            "\"\"",
            "7.0",
            "1e3",
            "01",
            "-",
            "--1",
            "+1",
            "1 ",
            "9007199254740993",
            "-9007199254740993",
            "99999999999999999999999",
            "null",
            "true",
            "[]",
            "{}",
            "\"a",
            r#""\ud800""#,
            r#""\udc00x""#,
            "\"a\nb\"",
        ] {
            assert!(Id::parse_raw(raw).is_none(), "{raw:?}");
        }
    }

    #[test]
    fn length_counts_bytes_after_unescaping() {
        let escaped = format!("\"{}\"", "\\u0041".repeat(128));
        assert_eq!(Id::parse_raw(&escaped).unwrap().text().len(), 128);
        assert!(Id::parse_raw(&format!("\"{}\"", "a".repeat(129))).is_none());
        assert!(Id::from_text(&"é".repeat(64)).is_some());
        assert!(Id::from_text(&"é".repeat(65)).is_none());
        assert!(Id::from_text("").is_none());
    }

    #[test]
    fn number_and_string_name_the_same() {
        let number = Id::parse_raw("7").unwrap();
        let string = Id::parse_raw("\"7\"").unwrap();
        assert_eq!(number, string);
        assert_ne!(number, Id::from_text("07").unwrap());
        let set = HashSet::from([number]);
        assert!(set.contains(&string));
        assert!(set.contains("7"));
    }

    #[test]
    fn room_names() {
        for good in ["room-1", "a b", "...", "é", "a/b", "\u{1f600}"] {
            assert_eq!(room_name(good), Some(good));
        }
        let longest = "r".repeat(256);
        assert!(room_name(&longest).is_some());
        let too_long = "r".repeat(257);
        for bad in ["", ".", "..", "a\n", "\0", "\u{7f}", "\u{85}", too_long.as_str()] {
            assert_eq!(room_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn json_strings_are_read_back() {
        let every: String = (0..0x2100).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        put_json_string(&mut out, &every);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), every);
    }
}
