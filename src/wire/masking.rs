//! Hiding tokens in URLs that are to be logged.

use std::borrow::Cow;

/// Replaces the value of every parameter `token` in a URL or request target by `***`.
///
/// The name is compared without case and after percent-decoding, since a server may decode it
/// too, and it is found wherever a parameter could begin, also in a target that is malformed.
pub fn mask_token(url: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut copied = 0;
    let mut begin = 0;
    while let Some(rest) = url.get(begin..) {
        let name_end = rest.find(|c| is_boundary(c) || c == '=');
        let Some(name_bytes) = name_end else { break };
        let at = begin + name_bytes;
        if url.as_bytes().get(at) != Some(&b'=') {
            begin = at + boundary_bytes(url, at);
            continue;
        }
        let value = at + 1;
        if is_token(&url[begin..at]) {
            let value_end = url[value..].find(ends_value).map_or(url.len(), |bytes| value + bytes);
            masked.push_str(&url[copied..value]);
            masked.push_str("***");
            copied = value_end;
            begin = value_end;
        } else {
            begin = value;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(url);
    }
    masked.push_str(&url[copied..]);
    Cow::Owned(masked)
}

fn is_boundary(c: char) -> bool {
    matches!(c, '?' | '/') || ends_value(c)
}

fn ends_value(c: char) -> bool {
    matches!(c, '&' | ';' | '#') || c.is_whitespace()
}

fn boundary_bytes(url: &str, at: usize) -> usize {
    url[at..].chars().next().map_or(1, char::len_utf8)
}

fn is_token(name: &str) -> bool {
    let mut wanted = b"token".iter();
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            match (digit(), digit()) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(0),
                _ => return false,
            }
        } else {
            byte
        };
        if wanted.next() != Some(&byte.to_ascii_lowercase()) {
            return false;
        }
    }
    wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_masked_wherever_they_stand() {
        for (url, masked) in [
            ("/ws?token=abc.def.ghi", "/ws?token=***"),
            ("/ws?a=1&token=abc&b=2", "/ws?a=1&token=***&b=2"),
            ("/ws?TOKEN=abc", "/ws?TOKEN=***"),
            ("/ws?Token=abc&token=def", "/ws?Token=***&token=***"),
            ("/ws?%74oken=abc", "/ws?%74oken=***"),
            ("/ws?%54%6F%4ben=abc", "/ws?%54%6F%4ben=***"),
            ("/ws?token=a/b?c=d#end", "/ws?token=***#end"),
            ("/ws?token=a=b", "/ws?token=***"),
            ("/ws&token=abc", "/ws&token=***"),
            ("/ws?x;token=abc;y", "/ws?x;token=***;y"),
            ("token=abc", "token=***"),
            ("/ws?a=token=abc", "/ws?a=token=***"),
            ("ws://h/ws?token=abc HTTP/1.1", "ws://h/ws?token=*** HTTP/1.1"),
            ("/ws?token=", "/ws?token=***"),
            ("/é\u{2003}?é=1&token=é", "/é\u{2003}?é=1&token=***"),
        ] {
            assert_eq!(mask_token(url), masked, "{url}");
        }
    }

    #[test]
    fn what_is_no_token_stays() {
        for url in [
            "",
            "/",
            "/ws",
            "/token/x",
            "/ws?tokens=1",
            "/ws?xtoken=1",
            "/ws?token",
            "/ws?%7=1",
            "/ws?%zz=1",
            "/\u{2003}",
        ] {
            assert!(matches!(mask_token(url), Cow::Borrowed(_)), "{url}");
            assert_eq!(mask_token(url), url);
        }
    }
}
