//! `Sec-WebSocket-Extensions`: what a client offers, and what is agreed (RFC 6455 9.1, RFC 7692 5 and 7.1).
//!
//! Owns the syntax of the field and which offer of permessage-deflate is taken. Knows nothing of compression itself.
//!
//! An offer with a parameter that is unknown, repeated or out of range is declined, and the next one looked at; other
//! extensions are declined. A field that breaks the syntax fails the handshake, as RFC 6455 9.1 asks for.

use super::http::{Reject, is_token, is_token_byte};

const EXTENSION: &str = "permessage-deflate";

/// The terms of permessage-deflate on one connection. Neither side keeps its window from one message to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The window that the server may use, as its base-2 logarithm, 8 to 15.
    pub window_bits: u8,
    /// Whether the client asked for it, and so has to be told.
    is_window_named: bool,
}

impl Terms {
    /// The value of `Sec-WebSocket-Extensions` in the answer.
    ///
    /// `client_no_context_takeover` may be asked for whether or not it was offered (RFC 7692 7.1.1.2); of
    /// `client_max_window_bits` nothing is said, since any window of the client's is taken.
    pub fn answer(self) -> String {
        let mut answer = format!("{EXTENSION}; server_no_context_takeover; client_no_context_takeover");
        if self.is_window_named {
            answer.push_str(&format!("; server_max_window_bits={}", self.window_bits));
        }
        answer
    }
}

/// The terms of the first offer that can be accepted among the values of all lines of the field.
///
/// # Errors
/// 400 for a value that does not have the syntax of the field.
pub fn agree<'b>(values: impl Iterator<Item = &'b [u8]>) -> Result<Option<Terms>, Reject> {
    let mut agreed = None;
    for value in values {
        let mut rest = Scanner(value);
        // Empty elements of a list are to be skipped (RFC 9110 5.6.1.2).
        while rest.skip(b", \t") {
            let offer = rest.extension().ok_or_else(|| Reject::bad("malformed Sec-WebSocket-Extensions"))?;
            agreed = agreed.or_else(|| offer.terms());
        }
    }
    Ok(agreed)
}

/// One element of the field.
struct Offer<'b> {
    name: &'b [u8],
    params: Vec<(&'b [u8], Option<Vec<u8>>)>,
}

impl Offer<'_> {
    /// What follows from accepting it, if it can be accepted.
    fn terms(&self) -> Option<Terms> {
        if self.name != EXTENSION.as_bytes() {
            return None;
        }
        let mut terms = Terms { window_bits: 15, is_window_named: false };
        for (index, (name, value)) in self.params.iter().enumerate() {
            if self.params.iter().take(index).any(|(earlier, _)| earlier == name) {
                return None;
            }
            match (*name, value.as_deref()) {
                (b"server_no_context_takeover" | b"client_no_context_takeover" | b"client_max_window_bits", None) => {}
                (b"client_max_window_bits", Some(value)) => {
                    window_bits(value)?;
                }
                (b"server_max_window_bits", Some(value)) => {
                    terms = Terms { window_bits: window_bits(value)?, is_window_named: true };
                }
                _ => return None,
            }
        }
        Some(terms)
    }
}

/// A decimal from 8 to 15 without leading zeros (RFC 7692 7.1.2.1).
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// What is left of a value.
struct Scanner<'b>(&'b [u8]);

impl<'b> Scanner<'b> {
    /// Skips any of `bytes`; whether something is left.
    fn skip(&mut self, bytes: &[u8]) -> bool {
        let length = self.0.iter().take_while(|byte| bytes.contains(byte)).count();
        self.0 = self.0.get(length..).unwrap_or_default();
        !self.0.is_empty()
    }

    /// Whether `byte`, with white space around it, comes next, which is then taken.
    fn takes(&mut self, byte: u8) -> bool {
        self.skip(b" \t");
        let Some(rest) = self.0.strip_prefix(&[byte]) else { return false };
        self.0 = rest;
        self.skip(b" \t");
        true
    }

    /// One extension with its parameters, up to the comma behind it.
    fn extension(&mut self) -> Option<Offer<'b>> {
        let mut offer = Offer { name: self.token()?, params: Vec::new() };
        while self.takes(b';') {
            let name = self.token()?;
            let value = if self.takes(b'=') { Some(self.value()?) } else { None };
            offer.params.push((name, value));
        }
        (self.0.is_empty() || self.takes(b',')).then_some(offer)
    }

    fn token(&mut self) -> Option<&'b [u8]> {
        let length = self.0.iter().take_while(|&&byte| is_token_byte(byte)).count();
        let (token, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or a quoted string that is a token once it is unquoted (RFC 6455 9.1).
    fn value(&mut self) -> Option<Vec<u8>> {
        let Some(quoted) = self.0.strip_prefix(b"\"") else { return self.token().map(<[u8]>::to_vec) };
        let mut value = Vec::new();
        let mut bytes = quoted.iter();
        loop {
            match bytes.next()? {
                b'"' => break,
                b'\\' => value.push(*bytes.next()?),
                byte => value.push(*byte),
            }
        }
        self.0 = bytes.as_slice();
        is_token(&value).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn answer(values: &[&str]) -> Result<Option<String>, u16> {
        let agreed = agree(values.iter().map(|value| value.as_bytes()));
        agreed.map(|terms| terms.map(Terms::answer)).map_err(|reject| reject.status)
    }

    /// What follows of one value: the window that the answer names, 0 for none named.
    fn window(value: &str) -> Result<Option<u8>, u16> {
        let answer = answer(&[value])?;
        Ok(answer.map(|answer| match answer.strip_prefix(BOTH) {
            Some("") => 0,
            Some(window) => window.strip_prefix("; server_max_window_bits=").unwrap().parse().unwrap(),
            None => panic!("{answer}"),
        }))
    }

    #[test]
    fn legal_offers() {
        let table: &[(&str, u8)] = &[
            // The examples of RFC 7692, sections 5.1, 7 and 7.1.3.
            ("permessage-deflate", 0),
            ("permessage-deflate; client_max_window_bits", 0),
            ("permessage-deflate; client_max_window_bits; server_max_window_bits=10", 10),
            (
                "permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate; client_max_window_bits",
                10,
            ),
            ("permessage-foo; x=10, permessage-deflate", 0),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", 10),
            // What browsers and libraries send.
            ("permessage-deflate; client_max_window_bits, x-webkit-deflate-frame", 0),
            ("x-webkit-deflate-frame, permessage-deflate;client_max_window_bits", 0),
            ("permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits", 0),
            // Each value, each form.
            ("permessage-deflate; server_max_window_bits=8", 8),
            ("permessage-deflate; server_max_window_bits=9", 9),
            ("permessage-deflate; server_max_window_bits=15", 15),
            ("permessage-deflate; server_max_window_bits=\"12\"", 12),
            ("permessage-deflate; server_max_window_bits=\"1\\2\"", 12),
            ("permessage-deflate; client_max_window_bits=8", 0),
            ("permessage-deflate; client_max_window_bits=15; server_max_window_bits=15", 15),
            ("permessage-deflate;server_max_window_bits=11;client_no_context_takeover", 11),
            ("  permessage-deflate\t;  server_max_window_bits = 11 ", 11),
            (", ,permessage-deflate,,", 0),
        ];
        for (value, expected) in table {
            assert_eq!(window(value), Ok(Some(*expected)), "{value}");
        }
    }

    #[test]
    fn illegal_offers_are_declined_and_the_next_is_taken() {
        for params in [
            "server_no_context_takeover=1",
            "server_no_context_takeover=\"true\"",
            "client_no_context_takeover=0",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=010",
            "server_max_window_bits=1",
            "server_max_window_bits=100",
            "server_max_window_bits=+9",
            "server_max_window_bits=-9",
            "server_max_window_bits=9.0",
            "server_max_window_bits=0x9",
            "server_max_window_bits=x",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=09",
            "client_max_window_bits=x",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "server_max_window_bits=10; server_max_window_bits=10",
            "server_max_window_bits=10; server_max_window_bits=11",
            "client_max_window_bits; client_max_window_bits=10",
            "unknown",
            "unknown=1",
            "Server_No_Context_Takeover",
            "mux",
        ] {
            assert_eq!(window(&format!("permessage-deflate; {params}")), Ok(None), "{params}");
            let two = format!("permessage-deflate; {params}, permessage-deflate; server_max_window_bits=9");
            assert_eq!(window(&two), Ok(Some(9)), "{params}");
        }
        for name in
            ["deflate", "permessage-bzip2", "permessage-deflate2", "Permessage-Deflate", "x-webkit-deflate-frame"]
        {
            assert_eq!(window(name), Ok(None), "{name}");
        }
    }

    #[test]
    fn broken_syntax_fails_the_handshake() {
        for value in [
            ";",
            "=",
            "permessage-deflate;",
            "permessage-deflate; ",
            "permessage-deflate;;client_max_window_bits",
            "permessage-deflate; =9",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=,",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=\"9\\",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=\"9 \"",
            "permessage-deflate; server_max_window_bits=\"9\"9",
            "permessage-deflate; server_max_window_bits=9=9",
            "permessage-deflate server_max_window_bits=9",
            "permessage-deflate; client max",
            "permessage/deflate",
            "\"permessage-deflate\"",
            "permessage-deflate, (",
            "permessage-déflate",
            "permessage-deflate, x; y=\u{7f}",
        ] {
            assert_eq!(window(value), Err(400), "{value}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(answer(&[]), Ok(None));
        assert_eq!(answer(&[""]), Ok(None));
        assert_eq!(answer(&["a; b=\"c\"", "permessage-deflate"]), Ok(Some(BOTH.to_owned())));
        assert_eq!(
            answer(&["permessage-deflate; server_max_window_bits=9", "permessage-deflate"]),
            Ok(Some(format!("{BOTH}; server_max_window_bits=9")))
        );
        assert_eq!(answer(&["permessage-deflate", "\""]), Err(400));
        assert_eq!(answer(&["permessage-deflate; server_max_window_bits=\"9", "\""]), Err(400));
    }
}
