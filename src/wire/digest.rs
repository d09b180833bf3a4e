//! Keyed digests of JSON values, equal exactly if the values are.
//!
//! Owns what "the same JSON value" means for retries: the order of keys does not count, at no
//! level; numbers are compared by their exact decimal value (`1.0` is `1`, and no float is
//! involved); strings are compared after unescaping, unpaired surrogates included; white space does
//! not count. Knows no field names. Invariants: only texts that are already known to be JSON come
//! in, the work is linear but for sorting keys, and recursion ends at [`DEPTH_MAX`].

use std::borrow::Cow;
use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::wire::object;

/// How deep arrays and objects may be nested, the outermost one included. Readers with a recursion
/// limit of 128 can then still read a message inside a page of messages.
pub const DEPTH_MAX: usize = 100;

/// Makes digests under one 128-bit key, without which nobody can choose two values that collide.
#[derive(Clone, Copy)]
pub struct Digester {
    key: (u64, u64),
}

/// The members of one object, gathered before their order is made canonical.
#[derive(Default)]
pub struct Entries<'a>(Vec<(Cow<'a, [u8]>, u128)>);

impl Digester {
    /// A digester under `key`.
    pub fn new(key: (u64, u64)) -> Digester {
        Digester { key }
    }

    /// The digest of one raw JSON value: `None` if it is nested deeper than `depth_max`.
    pub fn value(&self, raw: &str, depth_max: usize) -> Option<u128> {
        let mut walker = Walker { digester: self, text: raw, at: 0 };
        walker.value(depth_max)
    }

    /// The digest of the string value `text`.
    pub fn string(&self, text: &[u8]) -> u128 {
        self.parts(b's', &[text])
    }

    /// The digest of the object that has these entries, in whatever order they were added. A key
    /// that was added twice keeps the order of its values.
    pub fn object(&self, mut entries: Entries<'_>) -> u128 {
        entries.0.sort_by(|one, other| one.0.cmp(&other.0));
        let mut hasher = self.hasher(b'o');
        for (key, value) in &entries.0 {
            hasher.write(&(key.len() as u64).to_le_bytes());
            hasher.write(key);
            hasher.write(&value.to_le_bytes());
        }
        hasher.finish128().into()
    }

    /// The digest of a sequence of byte strings under a tag that no other kind of digest uses.
    pub fn parts(&self, tag: u8, parts: &[&[u8]]) -> u128 {
        let mut hasher = self.hasher(tag);
        for part in parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        hasher.finish128().into()
    }

    fn number(&self, raw: &str) -> u128 {
        match Decimal::parse(raw) {
            Some(decimal) => {
                let exponent = decimal.exponent.to_le_bytes();
                self.parts(b'n', &[&[decimal.negative.into()], &decimal.digits, &exponent])
            }
            None => self.parts(b'r', &[raw.as_bytes()]),
        }
    }

    fn hasher(&self, tag: u8) -> SipHasher13 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(&[tag]);
        hasher
    }
}

impl<'a> Entries<'a> {
    /// Adds a member: its unescaped key and the digest of its value.
    pub fn add(&mut self, key: Cow<'a, [u8]>, value: u128) {
        self.0.push((key, value));
    }
}

/// A number as an integer without trailing zeros and a power of ten; zero has no digits.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i128,
}

impl Decimal {
    /// `None` if the exponent has more digits than anybody needs.
    fn parse(raw: &str) -> Option<Decimal> {
        let (negative, magnitude) = match raw.strip_prefix('-') {
            Some(magnitude) => (true, magnitude),
            None => (false, raw),
        };
        let (mantissa, exponent) = match magnitude.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (magnitude, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{integer}{fraction}");
        let significant = digits.trim_end_matches('0');
        if significant.is_empty() {
            return Some(Decimal { negative: false, digits: Vec::new(), exponent: 0 });
        }
        let zeros = digits.len() - significant.len();
        let shift = zeros as i128 - fraction.len() as i128;
        Some(Decimal {
            negative,
            digits: significant.trim_start_matches('0').into(),
            exponent: i128::from(exponent) + shift,
        })
    }
}

/// Walks one JSON text. Every step answers `None` where the text is no JSON, so that a broken
/// promise of the caller is no panic.
struct Walker<'d, 'a> {
    digester: &'d Digester,
    text: &'a str,
    at: usize,
}

impl<'a> Walker<'_, 'a> {
    fn value(&mut self, depth_left: usize) -> Option<u128> {
        match self.peek()? {
            b'{' => self.object(depth_left.checked_sub(1)?),
            b'[' => self.array(depth_left.checked_sub(1)?),
            b'"' => {
                let raw = self.string()?;
                Some(self.digester.string(&object::string_bytes(raw)))
            }
            b'-' | b'0'..=b'9' => {
                let raw = self.word();
                Some(self.digester.number(raw))
            }
            _ => {
                let raw = self.word();
                (!raw.is_empty()).then(|| self.digester.parts(b'w', &[raw.as_bytes()]))
            }
        }
    }

    fn object(&mut self, depth_left: usize) -> Option<u128> {
        let mut entries = Entries::default();
        self.at += 1;
        while self.peek()? != b'}' {
            let key = object::string_bytes(self.string()?);
            self.expect(b':')?;
            let value = self.value(depth_left)?;
            entries.add(key, value);
            if self.peek()? != b'}' {
                self.expect(b',')?;
            }
        }
        self.at += 1;
        Some(self.digester.object(entries))
    }

    fn array(&mut self, depth_left: usize) -> Option<u128> {
        let mut hasher = self.digester.hasher(b'a');
        self.at += 1;
        while self.peek()? != b']' {
            let value = self.value(depth_left)?;
            hasher.write(&value.to_le_bytes());
            if self.peek()? != b']' {
                self.expect(b',')?;
            }
        }
        self.at += 1;
        Some(hasher.finish128().into())
    }

    /// The string at hand, with its quotes.
    fn string(&mut self) -> Option<&'a str> {
        if self.peek()? != b'"' {
            return None;
        }
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        self.at = end + 1;
        self.text.get(start..self.at)
    }

    /// The number, `true`, `false` or `null` at hand.
    fn word(&mut self) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let length = rest.bytes().take_while(is_part).count();
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        let found = self.peek()? == byte;
        self.at += 1;
        found.then_some(())
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: (u64, u64) = (1, 2);

    fn digest(raw: &str) -> u128 {
        Digester::new(KEY).value(raw, DEPTH_MAX).unwrap()
    }

    #[test]
    fn the_same_value() {
        let table = [
            ("1", "1.0"),
            ("1", "10e-1"),
            ("100", "1E+2"),
            ("0", "-0.000e7"),
            ("-12.50", "-1.25e1"),
            ("9007199254740993", "9007199254740993.0"),
            ("\"aé\"", r#""\u0061\u00e9""#),
            ("\"/\"", r#""\/""#),
            ("\"😀\"", r#""\ud83d\uDE00""#),
            (r#""\ud800""#, r#""\uD800""#),
            ("[]", "[ ]"),
            (r#"{"a":1,"b":[2,{"c":3,"d":4}]}"#, "{ \"b\" : [2.0,{\"\\u0064\":4,\"c\":3}]\n,\"a\":1}"),
            ("1e999999999999999999999", "1e999999999999999999999"),
        ];
        for (one, other) in table {
            assert_eq!(digest(one), digest(other), "{one} {other}");
        }
    }

    #[test]
    fn another_value() {
        let values = [
            "null",
            "true",
            "false",
            "0",
            "1",
            "-1",
            "10",
            "0.1",
            "1e400",
            "1e401",
            "9007199254740992",
            "9007199254740993",
            "\"\"",
            "\"1\"",
            "\"null\"",
            "\"a\"",
            "\"A\"",
            r#""\ud800""#,
            r#""\ud801""#,
            r#""\\ud800""#,
            "[]",
            "{}",
            "[[]]",
            "[null]",
            "[1,2]",
            "[2,1]",
            "[[1],2]",
            "[12]",
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":{"b":2}}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":2,"a":1}"#,
        ];
        for (index, one) in values.iter().enumerate() {
            for other in &values[index + 1..] {
                assert_ne!(digest(one), digest(other), "{one} {other}");
            }
        }
        assert_ne!(Digester::new((1, 3)).value("1", 1), Some(digest("1")));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let digester = Digester::new(KEY);
        assert!(digester.value(&nested(DEPTH_MAX), DEPTH_MAX).is_some());
        assert!(digester.value(&nested(DEPTH_MAX + 1), DEPTH_MAX).is_none());
        assert!(digester.value(&nested(1_000_000), DEPTH_MAX).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".*|[\\[\\]{}\",:\\\\eu0-9. +-]{0,40}") {
            let _ = Digester::new(KEY).value(&text, DEPTH_MAX);
        }

        #[test]
        fn every_integer_equals_its_other_forms(number in any::<i64>(), zeros in 0usize..5) {
            let zeros = "0".repeat(zeros);
            prop_assert_eq!(digest(&number.to_string()), digest(&format!("{number}.{zeros}0")));
            let shifted = format!("{number}{zeros}e-{}", zeros.len());
            prop_assert_eq!(digest(&number.to_string()), digest(&shifted));
        }
    }
}
