//! The opening handshake of a WebSocket (RFC 6455 4.2).
//!
//! Owns the check of the request and the key's answer. Knows nothing of tokens, subprotocol names or who may connect:
//! that is decided from the `Head` and the offered subprotocols by the caller; and what the offered extensions mean stands
//! in [`extensions`].

use std::str;

use tungstenite::handshake::derive_accept_key;

use super::extensions::{self, Terms};
use super::http::{BodyLength, Framing, Head, Reject, is_token};

/// Subprotocols that one request may offer.
const PROTOCOLS_MAX: usize = 32;

/// A valid request for a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade<'b> {
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// The subprotocols offered, in the client's order of preference; each is a token, compared with its case.
    pub protocols: Vec<&'b str>,
    /// The terms on which permessage-deflate may be used, if it was offered.
    pub deflate: Option<Terms>,
}

/// Checks that a request to the WebSocket's path is a correct opening handshake.
///
/// # Errors
/// 426 if no WebSocket is asked for or one of another version, 400 for a broken handshake. `Reject::headers` says what
/// a 426 must carry.
pub fn upgrade<'b>(head: &Head<'b>, framing: &Framing) -> Result<Upgrade<'b>, Reject> {
    if head.method == "HEAD" {
        return Err(Reject::with(426, "only WebSocket is served here"));
    }
    if head.method != "GET" {
        return Err(Reject::bad("a WebSocket is opened with GET"));
    }
    if head.minor_version == 0 {
        // The field is ignored there (RFC 9110 7.8). It is mostly a proxy that was not told to speak HTTP/1.1.
        return Err(Reject::with(426, "a WebSocket needs HTTP/1.1"));
    }
    if !head.list_has("upgrade", "websocket") {
        return Err(Reject::with(426, "only WebSocket is served here"));
    }
    if !head.list_has("connection", "upgrade") {
        return Err(Reject::bad("Connection does not name upgrade"));
    }
    if !matches!(framing.body, BodyLength::None | BodyLength::Length(0)) {
        return Err(Reject::bad("a WebSocket handshake has no body"));
    }
    match single(head, "sec-websocket-version")? {
        b"13" => {}
        version if version.iter().all(|byte| byte.is_ascii_digit() || b", ".contains(byte)) => {
            return Err(Reject::with(426, "WebSocket version is not 13"));
        }
        _ => return Err(Reject::bad("malformed Sec-WebSocket-Version")),
    }
    let key = single(head, "sec-websocket-key")?;
    if !is_key(key) {
        return Err(Reject::bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let deflate = extensions::agree(head.header_values("sec-websocket-extensions"))?;
    Ok(Upgrade { accept: derive_accept_key(key), protocols: protocols(head)?, deflate })
}

/// The value of a field that must be there exactly once (RFC 6455 11.3).
fn single<'b>(head: &Head<'b>, name: &str) -> Result<&'b [u8], Reject> {
    let mut values = head.header_values(name);
    match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() => Ok(value),
        _ => Err(Reject::bad("Sec-WebSocket-Version and -Key must be given once each")),
    }
}

/// 16 bytes take 22 digits and two signs of padding. What the last digit's four spare bits hold is not looked at
/// (RFC 4648 3.5 leaves that open).
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key
            .strip_suffix(b"==")
            .is_some_and(|digits| digits.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')))
}

fn protocols<'b>(head: &Head<'b>) -> Result<Vec<&'b str>, Reject> {
    let mut protocols = Vec::new();
    for protocol in head.list("sec-websocket-protocol") {
        let text = str::from_utf8(protocol).ok();
        match text {
            Some(text) if is_token(protocol) => protocols.push(text),
            _ => return Err(Reject::bad("malformed Sec-WebSocket-Protocol")),
        }
        if protocols.len() > PROTOCOLS_MAX {
            return Err(Reject::bad("too many subprotocols"));
        }
    }
    Ok(protocols)
}

#[cfg(test)]
mod tests {
    use super::super::http::{Limits, Methods, Status, parse_head};
    use super::*;

    const REQUEST: &str = "GET /ws?token=t HTTP/1.1\r\nHost: chat.example:3001\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    fn check(request: &str) -> Result<(String, Vec<String>), u16> {
        let limits = Limits { header_bytes_max: 16 * 1024, body_bytes_max: 1024, methods: Methods::Implemented };
        let parsed = parse_head(request.as_bytes(), &mut 0, &limits);
        let Ok(Status::Complete((head, framing))) = parsed else {
            panic!("not a complete head: {parsed:?}");
        };
        match upgrade(&head, &framing) {
            Ok(upgrade) => Ok((upgrade.accept, upgrade.protocols.iter().map(ToString::to_string).collect())),
            Err(reject) => {
                assert_eq!(reject.headers().is_empty(), reject.status != 426);
                Err(reject.status)
            }
        }
    }

    #[test]
    fn accepts_the_sample_of_the_rfc() {
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_string();
        assert_eq!(check(REQUEST), Ok((accept, vec![])));
    }

    #[test]
    fn variants() {
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let table: &[(&str, &str, Result<(), u16>)] = &[
            ("Upgrade: websocket", "upgrade: WebSocket", Ok(())),
            ("Upgrade: websocket", "Upgrade: h2c, websocket", Ok(())),
            ("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket", Ok(())),
            ("keep-alive, Upgrade", "uPGRADE", Ok(())),
            ("keep-alive, Upgrade", "keep-alive\r\nConnection: upgrade", Ok(())),
            ("Host: ", "Content-Length: 0\r\nHost: ", Ok(())),
            ("dGhlIHNhbXBsZSBub25jZQ==", "abcdefghijklmnopqrstuv==", Ok(())),
            ("Upgrade: websocket\r\n", "", Err(426)),
            ("Upgrade: websocket", "Upgrade: websocket/13", Err(426)),
            ("Upgrade: websocket", "Upgrade: h2c", Err(426)),
            ("HTTP/1.1", "HTTP/1.0", Err(426)),
            ("Version: 13", "Version: 8", Err(426)),
            ("Version: 13", "Version: 14", Err(426)),
            ("Version: 13", "Version: 8, 13", Err(426)),
            ("Version: 13", "Version: x", Err(400)),
            ("Version: 13", "Version:", Err(400)),
            ("Sec-WebSocket-Version: 13\r\n", "", Err(400)),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13", Err(400)),
            ("GET", "HEAD", Err(426)),
            ("GET", "POST", Err(400)),
            ("keep-alive, Upgrade", "keep-alive", Err(400)),
            ("Connection: keep-alive, Upgrade\r\n", "", Err(400)),
            (key, "", Err(400)),
            (key, "Sec-WebSocket-Key:\r\n", Err(400)),
            ("ZQ==", "ZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", Err(400)),
            ("ZQ==", "ZQ=", Err(400)),
            ("ZQ==", "ZQ", Err(400)),
            ("ZQ==", "ZQ===", Err(400)),
            ("ZQ==", "ZQxx", Err(400)),
            ("ZQ==", "Z===", Err(400)),
            ("dGhl", "dG-l", Err(400)),
            ("dGhl", "", Err(400)),
            ("Host: ", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nHost: ", Ok(())),
            ("Host: ", "Sec-WebSocket-Extensions: permessage-deflate;\r\nHost: ", Err(400)),
            ("Host: ", "Content-Length: 5\r\nHost: ", Err(400)),
            ("Host: ", "Transfer-Encoding: chunked\r\nHost: ", Err(400)),
        ];
        for (from, to, expected) in table {
            assert!(REQUEST.contains(from), "{from}");
            let outcome = check(&REQUEST.replacen(from, to, 1)).map(|_| ());
            assert_eq!(outcome, *expected, "{from} -> {to}");
        }
    }

    #[test]
    fn subprotocols() {
        let many = vec!["p"; PROTOCOLS_MAX + 1].join(",");
        let table: &[(&str, Result<&[&str], u16>)] = &[
            ("sizland.v1", Ok(&["sizland.v1"])),
            ("sizland.v1, bearer.a-b_c.d.e", Ok(&["sizland.v1", "bearer.a-b_c.d.e"])),
            ("a\r\nSec-WebSocket-Protocol: b ,, c", Ok(&["a", "b", "c"])),
            ("", Ok(&[])),
            ("A, a, a", Ok(&["A", "a", "a"])),
            ("a b", Err(400)),
            ("a=b", Err(400)),
            ("\u{e9}", Err(400)),
            (&many, Err(400)),
        ];
        for (offer, expected) in table {
            let request = REQUEST.replacen("Host:", &format!("Sec-WebSocket-Protocol: {offer}\r\nHost:"), 1);
            let outcome = check(&request).map(|(_, protocols)| protocols);
            let expected = expected.map(|list| list.iter().map(ToString::to_string).collect());
            assert_eq!(outcome, expected, "{offer}");
        }
    }
}
