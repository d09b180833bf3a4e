//! The HTTP/1.1 of a client: the upgrade request, the head of its answer, and answers to pipelined posts.
//! It keeps no state: whoever reads calls again with more bytes.

use std::net::SocketAddr;

use memchr::memmem;

/// The sample key of RFC 6455 section 1.3 and the answer it must get; one key serves all connections.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// More bytes are needed.
    Partial,
    /// The connection speaks WebSocket from so many bytes on.
    Upgraded(usize),
    /// An answer with this status (0: none that can be read) that is no upgrade.
    Refused(u16),
}

/// An answer to a post.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// More bytes are needed.
    Partial,
    /// A whole answer of so many bytes.
    Whole {
        /// HTTP status.
        status: u16,
        /// Head and body, in bytes.
        size: usize,
    },
    /// What came is no HTTP answer with a length.
    Broken,
}

/// The request that opens a WebSocket.
pub fn upgrade_request(address: SocketAddr, token: &str) -> Vec<u8> {
    format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Reads the answer to an upgrade request.
pub fn upgrade_answer(bytes: &[u8]) -> Head {
    let Some(end) = head_end(bytes) else {
        return if bytes.len() > HEAD_BYTES_MAX { Head::Refused(0) } else { Head::Partial };
    };
    let head = &bytes[..end];
    match status(head) {
        Some(101) if header(head, b"sec-websocket-accept") == Some(ACCEPT) => Head::Upgraded(end),
        Some(101) | None => Head::Refused(0),
        Some(status) => Head::Refused(status),
    }
}

/// The head of a post; the body of `length` bytes follows it.
pub fn post_head(address: SocketAddr, room: &str, api_key: &str, length: usize) -> Vec<u8> {
    format!(
        "POST /api/chat/rooms/{room}/messages HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {api_key}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads one answer at the head of `bytes`.
pub fn answer(bytes: &[u8]) -> Answer {
    let Some(end) = head_end(bytes) else {
        return if bytes.len() > HEAD_BYTES_MAX { Answer::Broken } else { Answer::Partial };
    };
    let head = &bytes[..end];
    let Some(status) = status(head) else {
        return Answer::Broken;
    };
    let chunked = header(head, b"transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked"));
    let body = if matches!(status, 100..=199 | 204 | 304) {
        Some(0)
    } else if chunked {
        match chunks_end(&bytes[end..]) {
            Ok(size) => size,
            Err(()) => return Answer::Broken,
        }
    } else {
        match header(head, b"content-length").and_then(number) {
            Some(length) => (bytes.len() - end >= length).then_some(length),
            None => return Answer::Broken,
        }
    };
    match body {
        Some(body) => Answer::Whole { status, size: end + body },
        None => Answer::Partial,
    }
}

/// The body of a whole answer that has a length.
pub fn body(answer: &[u8]) -> &[u8] {
    head_end(answer).map_or(&[], |end| &answer[end..])
}

/// Where a chunked body ends (RFC 9112 section 7.1), `None` if it does not yet. Trailers are taken for the end.
fn chunks_end(bytes: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    loop {
        let Some(line) = memmem::find(&bytes[at..], b"\r\n") else {
            return if bytes.len() - at > 1024 { Err(()) } else { Ok(None) };
        };
        let digits = bytes[at..at + line].split(|b| *b == b';').next();
        let digits = std::str::from_utf8(digits.unwrap_or_default()).map_err(|_| ())?;
        let size = usize::from_str_radix(digits.trim(), 16).map_err(|_| ())?;
        if size > 1 << 30 {
            return Err(());
        }
        if size == 0 {
            let rest = &bytes[at + line..];
            return Ok(memmem::find(rest, b"\r\n\r\n").map(|end| at + line + end + 4));
        }
        at += line + 2 + size + 2;
        if at > bytes.len() {
            return Ok(None);
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.1 ")?;
    rest.get(..3).and_then(number).map(|n| n as u16)
}

/// The value of a header, given by its name in small letters.
fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|b| *b == b'\n').skip(1).find_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        let value = &line[colon + 1..];
        line[..colon].eq_ignore_ascii_case(name).then_some(value.trim_ascii())
    })
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_where_they_end() {
        let plain = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1";
        let chunked = b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1";
        for (bytes, expected) in [(&plain[..], 201), (&chunked[..], 500)] {
            let whole = bytes.len() - 8;
            for cut in 0..whole {
                assert_eq!(answer(&bytes[..cut]), Answer::Partial, "{cut}");
            }
            assert_eq!(answer(bytes), Answer::Whole { status: expected, size: whole });
        }
        assert_eq!(answer(b"nonsense\r\n\r\n"), Answer::Broken);
    }

    #[test]
    fn an_upgrade_needs_the_right_key() {
        let good = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nx";
        assert_eq!(upgrade_answer(good), Head::Upgraded(good.len() - 1));
        assert_eq!(upgrade_answer(&good[..40]), Head::Partial);
        let bad = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x=\r\n\r\n";
        assert_eq!(upgrade_answer(bad), Head::Refused(0));
        let full = b"HTTP/1.1 503 Busy\r\n\r\n";
        assert_eq!(upgrade_answer(full), Head::Refused(503));
    }
}
