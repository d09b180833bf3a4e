//! The path and query of a request target (RFC 3986 3.3 and 3.4).
//!
//! Owns percent-decoding. Knows nothing of routes. The path is split before it is decoded, and decoded once, so an
//! encoded slash stays inside its segment and `%252F` stays `%2F`. Dot segments have no meaning here: no file is served.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::http::Reject;

/// A target taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The decoded segments of the path: none for `/` and for `*`, an empty last one behind a trailing slash.
    pub segments: Vec<Cow<'a, str>>,
    /// As received, known to decode.
    query: &'a str,
}

/// Takes apart a target as `Head::target` gives it.
///
/// # Errors
/// 400 for a percent sign without two hexadecimal digits, for bytes that are not UTF-8, and for NUL.
pub fn parse_target(target: &str) -> Result<Target<'_>, Reject> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut segments = Vec::with_capacity(8);
    match path.strip_prefix('/') {
        Some("") => {}
        Some(path) => {
            for segment in path.split('/') {
                segments.push(decode(segment, Plus::Literal)?);
            }
        }
        None if path.is_empty() || path == "*" => {}
        None => return Err(Reject::bad("request target must begin with a slash")),
    }
    for part in query.split(['&', '=']) {
        decode(part, Plus::Space)?;
    }
    Ok(Target { segments, query })
}

impl<'a> Target<'a> {
    /// The first value of that name, decoded, with `+` as a space; empty if the name has no `=`.
    pub fn query(&self, name: &str) -> Option<Cow<'a, str>> {
        self.pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All names and values of the query, decoded, in the order received.
    pub fn pairs(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> + use<'a> {
        let query = self.query;
        query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, Plus::Space).ok()?;
            Some((name, decode(value, Plus::Space).ok()?))
        })
    }
}

/// What a plus sign means: itself in a path, a space in a query (as HTML forms and `URLSearchParams` write it).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Literal,
    Space,
}

fn decode(text: &str, plus: Plus) -> Result<Cow<'_, str>, Reject> {
    let bytes = text.as_bytes();
    let special = match plus {
        Plus::Literal => memchr(b'%', bytes),
        Plus::Space => memchr2(b'%', b'+', bytes),
    };
    let Some(special) = special else {
        return match memchr(0, bytes) {
            None => Ok(Cow::Borrowed(text)),
            Some(_) => Err(Reject::bad("NUL in request target")),
        };
    };
    let mut decoded = Vec::with_capacity(bytes.len());
    let (plain, mut rest) = bytes.split_at(special);
    decoded.extend_from_slice(plain);
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        decoded.push(match byte {
            b'%' => {
                let (value, behind) = escaped(behind)?;
                rest = behind;
                value
            }
            b'+' if plus == Plus::Space => b' ',
            _ => *byte,
        });
    }
    if memchr(0, &decoded).is_some() {
        return Err(Reject::bad("NUL in request target"));
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Reject::bad("request target is not UTF-8"))
}

/// The byte that two hexadecimal digits stand for, and what is behind them.
fn escaped(digits: &[u8]) -> Result<(u8, &[u8]), Reject> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if let [high, low, rest @ ..] = digits
        && let (Some(high), Some(low)) = (digit(*high), digit(*low))
    {
        return Ok((high << 4 | low, rest));
    }
    Err(Reject::bad("malformed percent-encoding in request target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(target: &str) -> Result<Vec<String>, u16> {
        parse_target(target)
            .map(|target| target.segments.into_iter().map(Cow::into_owned).collect())
            .map_err(|reject| reject.status)
    }

    #[test]
    fn paths() {
        let table: &[(&str, Result<&[&str], u16>)] = &[
            ("/", Ok(&[])),
            ("*", Ok(&[])),
            ("?a=b", Ok(&[])),
            ("/ws", Ok(&["ws"])),
            ("/ws/", Ok(&["ws", ""])),
            ("//ws", Ok(&["", "ws"])),
            ("/a%2Fb/c", Ok(&["a/b", "c"])),
            ("/a%252Fb", Ok(&["a%2Fb"])),
            ("/a+b", Ok(&["a+b"])),
            ("/%E2%82%ac", Ok(&["\u{20ac}"])),
            ("/a/../b/.", Ok(&["a", "..", "b", "."])),
            ("/%2e%2E", Ok(&[".."])),
            ("/a%3Fb?c", Ok(&["a?b"])),
            ("/%", Err(400)),
            ("/%2", Err(400)),
            ("/%zz", Err(400)),
            ("/%+1", Err(400)),
            ("/%00", Err(400)),
            ("/a\0", Err(400)),
            ("/%ff", Err(400)),
            ("/%C0%AF", Err(400)),
            ("/%ED%A0%80", Err(400)),
            ("/%E2/%82%ac", Err(400)),
            ("/?a=%", Err(400)),
            ("/?%00", Err(400)),
            ("/?a=%ff", Err(400)),
            ("/?a=%E2&b=%82%ac", Err(400)),
            ("ws", Err(400)),
            ("", Ok(&[])),
        ];
        for (target, expected) in table {
            let expected = expected.map(|list| list.iter().map(ToString::to_string).collect());
            assert_eq!(segments(target), expected, "{target}");
        }
    }

    #[test]
    fn queries() {
        let target = "/ws?token=abc.def&x=1%2B1+2&x=other&flag&%74o=%26%3D&=nameless&e=a=b?c&&last=";
        let target = parse_target(target).expect("a valid target");
        for (name, expected) in [
            ("token", Some("abc.def")),
            ("x", Some("1+1 2")),
            ("flag", Some("")),
            ("to", Some("&=")),
            ("", Some("nameless")),
            ("e", Some("a=b?c")),
            ("last", Some("")),
            ("Token", None),
        ] {
            assert_eq!(target.query(name).as_deref(), expected, "{name}");
        }
        let token = target.query("token");
        assert!(matches!(token, Some(Cow::Borrowed(_))), "plain values are not copied");
    }

    proptest::proptest! {
        #[test]
        fn decodes_what_was_encoded(text in "[^\0]{0,20}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let target = format!("/a/{encoded}?k={encoded}");
            let target = parse_target(&target).expect("a valid target");
            proptest::prop_assert_eq!(target.segments[1].as_ref(), text.as_str());
            proptest::prop_assert_eq!(target.query("k"), Some(Cow::Borrowed(text.as_str())));
        }

        #[test]
        fn never_panics(text in "[/?%&=+0-9a-f\u{80}-\u{90}*]{0,40}") {
            if let Ok(target) = parse_target(&text) {
                let _ = target.query("a");
            }
        }
    }
}
