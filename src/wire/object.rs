//! Splits a JSON object into its top-level members without reading the values.
//!
//! Owns the one way in which peer JSON is taken apart: keys are compared after unescaping, values
//! stay the text that the peer wrote. It must not know what any field means. Invariants: the work
//! is linear in the input, nothing recurses on it (serde_json skips a raw value with a loop), and a
//! borrowed text is always a part of the input.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// One member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The key's bytes after unescaping. An unpaired surrogate is its three bytes in generalized
    /// UTF-8, so that two spellings of it are still the same key.
    pub key: Cow<'a, [u8]>,
    /// The key as it was written, with quotes and escapes.
    pub raw_key: &'a str,
    /// The value's JSON text, without surrounding white space.
    pub raw_value: &'a str,
}

/// Why a text could not be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitError {
    /// The text is not JSON (RFC 8259).
    NotJson,
    /// The text is JSON, but no object.
    NotObject,
}

/// Calls `each` for every top-level member of the JSON object `text`, in order, repeated keys
/// included. After an error, the members seen so far count for nothing.
pub fn split<'a>(text: &'a str, each: impl FnMut(Member<'a>)) -> Result<(), SplitError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let split = json.deserialize_map(Members(each));
    match split.and_then(|()| json.end()) {
        Ok(()) => Ok(()),
        // A value of another kind is reported at its first byte, before the rest was looked at.
        Err(_) if is_json(text) => Err(SplitError::NotObject),
        Err(_) => Err(SplitError::NotJson),
    }
}

/// Does the same in a fraction of the time for the objects that clients mostly send: all values are
/// strings without escapes or integers without sign. Returns false for everything else, objects or
/// not, possibly after calls of `each`; then [`split`] decides.
pub fn split_plain<'a>(text: &'a str, each: impl FnMut(Member<'a>)) -> bool {
    Plain { text, at: 0 }.members(each).is_some()
}

/// Whether one of the keys occurs twice. Sorts them, so that many keys cost no more than a sort.
pub fn has_duplicate(keys: &mut [Cow<'_, [u8]>]) -> bool {
    keys.sort_unstable();
    keys.windows(2).any(|pair| pair.first() == pair.last())
}

/// The string that a raw JSON value holds: `None` if it is no string, or has an unpaired surrogate.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.as_bytes().contains(&b'\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
}

/// The bytes of a raw JSON string after unescaping, unpaired surrogates in generalized UTF-8. What
/// is no JSON string comes back unchanged.
pub fn string_bytes(raw: &str) -> Cow<'_, [u8]> {
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let Some(inner) = inner else {
        return Cow::Borrowed(raw.as_bytes());
    };
    if !inner.as_bytes().contains(&b'\\') {
        return Cow::Borrowed(inner.as_bytes());
    }
    let mut json = serde_json::Deserializer::from_str(raw);
    match json.deserialize_bytes(StringBytes) {
        Ok(bytes) => Cow::Owned(bytes),
        Err(_) => Cow::Borrowed(raw.as_bytes()),
    }
}

/// The elements of a raw JSON array, as written: `None` if it is no array or has more than
/// `count_max` elements. An array that is too long is skipped, never stored.
pub fn elements(raw: &str, count_max: usize) -> Option<Vec<&str>> {
    let mut json = serde_json::Deserializer::from_str(raw);
    json.deserialize_seq(Elements { count_max }).ok().flatten()
}

/// Whether arrays and objects in the JSON text are nested deeper than `depth_max`, the outermost
/// one included.
pub fn is_deeper_than(text: &str, depth_max: usize) -> bool {
    let mut depth: usize = 0;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
        if depth > depth_max {
            return true;
        }
    }
    false
}

/// The integer that a raw JSON value is, if it is written as one: digits, perhaps after a minus, no
/// fraction, no exponent, and within 2^53 of zero, where every JSON reader agrees on it.
pub fn integer(raw: &str) -> Option<i64> {
    const EXACT_MAX: u64 = 1 << 53;
    let number: i64 = raw.parse().ok()?;
    (number.unsigned_abs() <= EXACT_MAX).then_some(number)
}

fn skip_string(bytes: &mut std::str::Bytes<'_>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// A reader of plain objects. Each step is `None` where the text is not as plain as that.
struct Plain<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Plain<'a> {
    fn members(mut self, mut each: impl FnMut(Member<'a>)) -> Option<()> {
        self.take(b'{')?;
        loop {
            let raw_key = self.string()?;
            self.take(b':')?;
            let raw_value = match self.peek()? {
                b'"' => self.string()?,
                _ => self.integer()?,
            };
            each(Member { key: Cow::Borrowed(raw_key.as_bytes().get(1..raw_key.len() - 1)?), raw_key, raw_value });
            if self.take(b',').is_none() {
                break;
            }
        }
        self.take(b'}')?;
        self.peek().is_none().then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let rest = self.text.as_bytes().get(self.at..)?;
        let length = plain_length(rest)?;
        if *rest.get(length)? != b'"' {
            return None;
        }
        let start = self.at - 1;
        self.at += length + 1;
        self.text.get(start..self.at)
    }

    fn integer(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.at..)?;
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let digits = rest.get(..length)?;
        if digits.is_empty() || (length > 1 && digits.starts_with('0')) {
            return None;
        }
        self.at += length;
        Some(digits)
    }

    /// Steps over the next byte that is not white space, if it is `byte`.
    fn take(&mut self, byte: u8) -> Option<()> {
        let found = self.peek()? == byte;
        self.at += usize::from(found);
        found.then_some(())
    }

    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }
}

/// The number of bytes before the first quote, backslash or control character, eight at a time.
fn plain_length(text: &[u8]) -> Option<usize> {
    let (chunks, tail) = text.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let ends = end_marks(u64::from_le_bytes(*chunk));
        if ends != 0 {
            return Some(index * 8 + ends.trailing_zeros() as usize / 8);
        }
    }
    let is_end = |byte: &u8| *byte == b'"' || *byte == b'\\' || *byte < b' ';
    let length = tail.iter().position(is_end)?;
    Some(chunks.len() * 8 + length)
}

/// Marks the bytes of a word that end a plain string in their highest bit. The lowest mark is exact;
/// those above it may come from a borrow.
fn end_marks(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, b' ') | is(b'"') | is(b'\\')) & (ONES * 0x80)
}

struct Members<F>(F);

impl<'de, F: FnMut(Member<'de>)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            (self.0)(Member { key: string_bytes(key.get()), raw_key: key.get(), raw_value: value.get() });
        }
        Ok(())
    }
}

struct StringBytes;

impl Visitor<'_> for StringBytes {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

struct Elements {
    count_max: usize,
}

impl<'de> Visitor<'de> for Elements {
    type Value = Option<Vec<&'de str>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element::<&RawValue>()? {
            if elements.len() == self.count_max {
                while seq.next_element::<&RawValue>()?.is_some() {}
                return Ok(None);
            }
            elements.push(element.get());
        }
        Ok(Some(elements))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, String)>, SplitError> {
        let mut pairs = Vec::new();
        split(text, |member| {
            let key = String::from_utf8_lossy(&member.key).into_owned();
            pairs.push((key, member.raw_value.to_owned()));
        })?;
        Ok(pairs)
    }

    #[test]
    fn members_keep_their_text() {
        let found = pairs(r#" {"a" : 1.50 , "\u0062":{ "c": [] },"a":"\ud800"} "#).unwrap();
        let expected = [("a", "1.50"), ("b", r#"{ "c": [] }"#), ("a", r#""\ud800""#)];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn other_texts_are_told_apart() {
        for text in [
            "",
            " ",
            "{",
            "{]",
            "{\"a\":1,}",
            "{} x",
            "[1,",
            "nul",
            "\"a",
            "01",
            "{a:1}",
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
            "{1:2}",
        ] {
            assert_eq!(pairs(text), Err(SplitError::NotJson), "{text:?}");
        }
        for text in ["[]", "[1,{}]", "null", "true", "7", "-1e999", "\"a\"", "\"\\ud800\""] {
            assert_eq!(pairs(text), Err(SplitError::NotObject), "{text:?}");
        }
    }

    #[test]
    fn depth_is_no_recursion() {
        let depth = 200_000;
        let text = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(pairs(&text).unwrap().len(), 1);
        assert_eq!(pairs(&text[5..text.len() - 1]), Err(SplitError::NotObject));
    }

    #[test]
    fn keys_are_compared_unescaped() {
        let table = [
            (r#"{"a":1,"b":2}"#, false),
            (r#"{"a":1,"a":1}"#, true),
            (r#"{"a":1,"b":2,"\u0061":3}"#, true),
            (r#"{"\ud800":1,"\uD800":2}"#, true),
            (r#"{"\ud800":1,"\ud801":2}"#, false),
            (r#"{"a":1,"A":2}"#, false),
        ];
        for (text, expected) in table {
            let mut keys = Vec::new();
            split(text, |member| keys.push(member.key)).unwrap();
            assert_eq!(has_duplicate(&mut keys), expected, "{text}");
        }
    }

    #[test]
    fn strings_and_integers() {
        assert_eq!(string(r#""a""#).as_deref(), Some("a"));
        assert_eq!(string(r#""\"\ud83d\ude00""#).as_deref(), Some("\"😀"));
        for raw in ["1", "null", r#""\ud800""#, "[\"a\"]"] {
            assert_eq!(string(raw), None, "{raw}");
        }
        assert_eq!(integer("9007199254740992"), Some(1 << 53));
        assert_eq!(integer("-9007199254740992"), Some(-(1 << 53)));
        for raw in ["9007199254740993", "1.0", "1e3", "\"1\"", "null", "99999999999999999999"] {
            assert_eq!(integer(raw), None, "{raw}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert!(!is_deeper_than(r#"{"a":["[[[\"[["],"b":{}}"#, 2));
        assert!(is_deeper_than(r#"{"a":[[]]}"#, 2));
        assert!(!is_deeper_than("7", 0));
    }

    #[test]
    fn elements_are_bounded() {
        assert_eq!(elements("[1, {} ]", 2), Some(vec!["1", "{}"]));
        assert_eq!(elements("[1,2,3]", 2), None);
        assert_eq!(elements("[]", 2), Some(vec![]));
        assert_eq!(elements("{}", 2), None);
    }

    fn plain(text: &str) -> Option<Vec<Member<'_>>> {
        let mut found = Vec::new();
        split_plain(text, |member| found.push(member)).then_some(found)
    }

    #[test]
    fn plain_objects() {
        for text in [r#"{"a":"b"}"#, " { \"a\" : 10 ,\"\":\"é\"\r\n, \"a\":0\t} "] {
            let mut expected = Vec::new();
            split(text, |member| expected.push(member)).unwrap();
            assert_eq!(plain(text), Some(expected), "{text}");
        }
        let others = [
            "",
            "{",
            "{}",
            "{\"a\":1",
            "{\"a\":1,}",
            "{\"a\":1}}",
            "{\"a\":01}",
            "{\"a\":1.5}",
            "{\"a\":-1}",
            "{\"a\":null}",
            "{\"a\":\"\\n\"}",
            "{\"a\":\"\n\"}",
            "{\"a\" 1}",
            "{\"a\":[]}",
            "[\"a\"]",
            "{\"a\":1e3}",
            "{\"a\":1 2}",
            "{,\"a\":1}",
            "{\"a\":\"b}",
            "{\"a\":}",
            "\u{feff}{\"a\":1}",
            "{\"a\":1}\u{a0}",
        ];
        for text in others {
            assert_eq!(plain(text), None, "{text}");
        }
    }

    #[test]
    fn every_byte_at_every_place() {
        for byte in 0..=255 {
            for place in 0..20 {
                let mut text = *b"abcdefgh\xc3\xa9!#[]\x7f^_ '~";
                text[place] = byte;
                let is_end = byte < 0x20 || byte == b'"' || byte == b'\\';
                assert_eq!(plain_length(&text), is_end.then_some(place), "{byte}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_plain_is_split_alike(
            text in "\\{( ?\"[a-cé\\\\\n]{0,2}\" ?: ?(\"[a\\\\é]{0,2}\"|[0-9]{0,2}|[-.e0]|null),?){0,3}\\} ?,?",
        ) {
            if let Some(found) = plain(&text) {
                let mut expected = Vec::new();
                prop_assert_eq!(split(&text, |member| expected.push(member)), Ok(()));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
