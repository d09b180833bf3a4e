//! Raw requests with the outcome that the RFCs, read strictly, ask for; and properties of the parsers over all splits.

use proptest::prelude::*;

use super::body::ChunkedDecoder;
use super::http::{BodyLength, Framing, Limits, Methods, Reject, Status, is_head, parse_head};

const LIMITS: Limits = Limits { header_bytes_max: 16 * 1024, body_bytes_max: 1000, methods: Methods::Implemented };

use BodyLength::{Chunked, Length, None as Empty};

const KEPT: bool = true;
const CLOSED: bool = false;

/// Each request with what it is read as (target, body, whether the connection is kept) or the status of the refusal. A
/// `$` in front stands for a request line and a `Host` of HTTP/1.1.
#[expect(clippy::type_complexity, reason = "a name for it would say less")]
const TABLE: &[(&str, Result<(&str, BodyLength, bool), u16>)] = &[
    // Request lines that are accepted.
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a", Empty, KEPT))),
    ("POST /a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a", Empty, KEPT))),
    ("PUT /a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a", Empty, KEPT))),
    ("PATCH /a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a", Empty, KEPT))),
    ("DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a", Empty, KEPT))),
    ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("*", Empty, KEPT))),
    ("GET /a?b=%20|\"<>\\^`{} HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/a?b=%20|\"<>\\^`{}", Empty, KEPT))),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/", Empty, KEPT))),
    // Absolute-form: the authority of the target takes the place of Host.
    ("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/b?c", Empty, KEPT))),
    ("GET HTTPS://a:443/b HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/b", Empty, KEPT))),
    ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("?b", Empty, KEPT))),
    ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("*", Empty, KEPT))),
    ("GET http://[::1]:3001/ HTTP/1.1\r\nHost: b\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET http:///b HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET http://u@a/b HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET http://a/b HTTP/1.1\r\n\r\n", Err(400)),
    ("GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    // Methods.
    ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Err(501)),
    ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Err(501)),
    ("get / HTTP/1.1\r\nHost: a\r\n\r\n", Err(501)),
    ("PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", Err(501)),
    ("AAAAAAAAAAAAAAAAAAAAAAAA", Err(501)),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(501)),
    ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("\u{16}\u{3}\u{1}", Err(400)),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    // Targets.
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    // Versions.
    ("GET / HTTP/1.0\r\n\r\n", Ok(("/", Empty, CLOSED))),
    ("GET /\r\n\r\n", Err(400)),
    ("GET\r\n\r\n", Err(400)),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Err(505)),
    ("GET / HTTP/3.1\r\nHost: a\r\n\r\n", Err(505)),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET / HTTP/1.9\r\n\r\n", Err(400)),
    ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Err(505)),
    ("GET / HTTP/3\r\nHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", Err(400)),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Err(400)),
    ("GET / \r\nHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1,1\r\nHost: a\r\n\r\n", Err(400)),
    // Line ends and folding.
    ("GET / HTTP/1.1\nHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", Err(400)),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\rHost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Err(400)),
    ("$X: a\rb\r\n\r\n", Err(400)),
    ("$X: a\r\r\n\r\n", Err(400)),
    ("$\r\r\n", Err(400)),
    ("$X: a\r\n b\r\n\r\n", Err(400)),
    ("$X: a\r\n\tb\r\n\r\n", Err(400)),
    ("$X:\r\n b\r\n\r\n", Err(400)),
    ("$X: a\r\n \r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\n\tX: b\r\nHost: a\r\n\r\n", Err(400)),
    // Names and values.
    ("$X : a\r\n\r\n", Err(400)),
    ("$X\t: a\r\n\r\n", Err(400)),
    ("$: a\r\n\r\n", Err(400)),
    ("$X\r\n\r\n", Err(400)),
    ("$X Y: a\r\n\r\n", Err(400)),
    ("$X(: a\r\n\r\n", Err(400)),
    ("$\u{e9}: a\r\n\r\n", Err(400)),
    ("$X: a\0b\r\n\r\n", Err(400)),
    ("$X: a\u{1}b\r\n\r\n", Err(400)),
    ("$X: a\u{7f}b\r\n\r\n", Err(400)),
    ("$X: a\u{b}b\r\n\r\n", Err(400)),
    ("$X:\t a \tb\t \r\nY:\r\nZ: \u{e9}\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("$!#$%&'*+-.^_`|~0Az: a\r\n\r\n", Ok(("/", Empty, KEPT))),
    // Host.
    ("GET / HTTP/1.1\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nX: a\r\n\r\n", Err(400)),
    ("$Host: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: :80\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: [g::1]\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", Err(400)),
    ("GET / HTTP/1.1\r\nhOST:a_b.example:3001 \r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET / HTTP/1.1\r\nHost: [::ffff:1.2.3.4]:80\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET / HTTP/1.1\r\nHost: 127.0.0.1:\r\n\r\n", Ok(("/", Empty, KEPT))),
    // Content-Length.
    ("$Content-Length: 0\r\n\r\n", Ok(("/", Length(0), KEPT))),
    ("$content-length:1000\r\n\r\n", Ok(("/", Length(1000), KEPT))),
    ("$Content-Length: 007\r\n\r\n", Ok(("/", Length(7), KEPT))),
    ("$Content-Length: 1001\r\n\r\n", Err(413)),
    ("$Content-Length: 18446744073709551615\r\n\r\n", Err(413)),
    ("$Content-Length: 18446744073709551616\r\n\r\n", Err(400)),
    ("$Content-Length: 5\r\nContent-Length: 5\r\n\r\n", Err(400)),
    ("$Content-Length: 5\r\nContent-Length: 6\r\n\r\n", Err(400)),
    ("$Content-Length: 5, 5\r\n\r\n", Err(400)),
    ("$Content-Length: +5\r\n\r\n", Err(400)),
    ("$Content-Length: -5\r\n\r\n", Err(400)),
    ("$Content-Length:\r\n\r\n", Err(400)),
    ("$Content-Length: 0x5\r\n\r\n", Err(400)),
    ("$Content-Length: 5 5\r\n\r\n", Err(400)),
    ("$Content-Length: 5.0\r\n\r\n", Err(400)),
    ("$Content-Length: 5a\r\n\r\n", Err(400)),
    ("$Content-Length : 5\r\n\r\n", Err(400)),
    ("GET / HTTP/1.0\r\nContent-Length: 5\r\n\r\n", Ok(("/", Length(5), CLOSED))),
    // Transfer-Encoding.
    ("$Transfer-Encoding: chunked\r\n\r\n", Ok(("/", Chunked, KEPT))),
    ("$transfer-encoding:CHUNKED\r\n\r\n", Ok(("/", Chunked, KEPT))),
    ("$Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Err(400)),
    ("$Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
    ("$Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Err(400)),
    ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: gzip, chunked\r\n\r\n", Err(501)),
    ("$Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", Err(501)),
    ("$Transfer-Encoding: gzip\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: identity\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked, gzip\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked, identity\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked, chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: xchunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunkedx\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: x chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: \u{b}chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked\u{b}\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked \r\n\r\n", Err(400)),
    ("$Transfer-Encoding:\tchunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding:  chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: \"chunked\"\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked;q=1\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: ,chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: chunked,\r\n\r\n", Err(400)),
    ("$Transfer-Encoding:\r\n\r\n", Err(400)),
    ("$Transfer-Encoding: \r\n\r\n", Err(400)),
    ("$Transfer-Encoding : chunked\r\n\r\n", Err(400)),
    ("$Transfer-Encoding\r\n: chunked\r\n\r\n", Err(400)),
    ("$X: a\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
    ("$Transfer_Encoding: chunked\r\n\r\n", Ok(("/", Empty, KEPT))),
    // Expect: `expect_continue` has its own test.
    ("$Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", Ok(("/", Length(5), KEPT))),
    ("$Expect: 200-ok\r\n\r\n", Err(417)),
    ("$Expect: 100-continue, x\r\n\r\n", Err(417)),
    ("$Expect: 100-continue, 100-Continue\r\nContent-Length: 5\r\n\r\n", Ok(("/", Length(5), KEPT))),
    ("$Expect:\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("$Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n", Err(413)),
    ("GET / HTTP/1.0\r\nExpect: x\r\n\r\n", Ok(("/", Empty, CLOSED))),
    // Connection.
    ("$Connection: close\r\n\r\n", Ok(("/", Empty, CLOSED))),
    ("$Connection: x, CLOSE ,y\r\n\r\n", Ok(("/", Empty, CLOSED))),
    ("$Connection: keep-alive\r\nConnection: close\r\n\r\n", Ok(("/", Empty, CLOSED))),
    ("$Connection: closed\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("$Connection: keep-alive, Upgrade\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", Ok(("/", Empty, KEPT))),
    ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", Ok(("/", Empty, CLOSED))),
];

fn request(row: &str) -> Vec<u8> {
    match row.strip_prefix('$') {
        Some(fields) => format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}").into_bytes(),
        None => row.as_bytes().to_vec(),
    }
}

/// What is compared between ways of feeding: everything that a caller can see of a head.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    method: String,
    target: String,
    minor_version: u8,
    headers: Vec<(String, Vec<u8>)>,
    framing: Framing,
}

fn parse(input: &[u8], scanned: &mut usize, limits: &Limits) -> Result<Status<Seen>, Reject> {
    Ok(match parse_head(input, scanned, limits)? {
        Status::Partial => Status::Partial,
        Status::Complete((head, framing)) => Status::Complete(Seen {
            method: head.method.to_string(),
            target: head.target.to_string(),
            minor_version: head.minor_version,
            headers: head.headers().map(|(name, value)| (name.to_string(), value.to_vec())).collect(),
            framing,
        }),
    })
}

/// Feeds ever longer prefixes, as a socket does, until there is an outcome.
fn parse_in_pieces(input: &[u8], pieces: &[usize], limits: &Limits) -> Result<Status<Seen>, Reject> {
    let mut scanned = 0;
    let mut pieces = pieces.iter().copied().cycle();
    let mut have = 0;
    while have < input.len() {
        have = (have + pieces.next().unwrap_or(1).max(1)).min(input.len());
        let status = parse(&input[..have], &mut scanned, limits)?;
        if status != Status::Partial {
            assert_eq!(parse(&input[..have], &mut scanned, limits), Ok(status.clone()), "second pass");
            return Ok(status);
        }
    }
    Ok(Status::Partial)
}

#[test]
fn table() {
    assert!(TABLE.len() >= 100);
    for (row, expected) in TABLE {
        let request = request(row);
        let outcome = parse(&request, &mut 0, &LIMITS);
        match (&outcome, expected) {
            (Ok(Status::Complete(Seen { target, framing, .. })), Ok(expected)) => {
                assert_eq!((target.as_str(), framing.body, framing.keep_alive), *expected, "{row:?}");
                assert_eq!(framing.head_len, request.len(), "{row:?}");
                for end in 0..request.len() {
                    assert_eq!(parse(&request[..end], &mut 0, &LIMITS), Ok(Status::Partial), "{row:?} to {end}");
                }
            }
            (Err(reject), Err(status)) => {
                assert_eq!(reject.status, *status, "{row:?}: {}", reject.reason)
            }
            _ => panic!("{row:?}: {outcome:?}, not {expected:?}"),
        }
        assert_eq!(parse_in_pieces(&request, &[1], &LIMITS), outcome, "{row:?} bytewise");
    }
}

#[test]
fn refuses_as_early_as_provable() {
    for (first, status) in [
        ("\u{16}", 400),
        ("G@", 400),
        ("BREW ", 501),
        ("GET / HTTP/2.0\r\n", 505),
        ("GET / HTTP/1.1\r\nHost: a\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\rb", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n ", 400),
        ("GET / HTTP/1.1\r\nHost: a\0", 400),
    ] {
        let rejected = parse(first.as_bytes(), &mut 0, &LIMITS).map_err(|reject| reject.status);
        assert_eq!(rejected, Err(status), "{first:?}");
        let before = &first.as_bytes()[..first.len() - 1];
        assert_eq!(parse(before, &mut 0, &LIMITS), Ok(Status::Partial), "{first:?}");
    }
}

#[test]
fn any_method_that_is_a_token() {
    let limits = Limits { methods: Methods::Any, ..LIMITS };
    let longest = "M".repeat(64);
    for (line, expected) in [
        ("TRACE /a HTTP/1.1".to_owned(), Ok("TRACE")),
        ("get /a HTTP/1.1".to_owned(), Ok("get")),
        ("!#$%&'*+-.^_`|~ /a HTTP/1.1".to_owned(), Ok("!#$%&'*+-.^_`|~")),
        (format!("{longest} / HTTP/1.1"), Ok(&*longest)),
        (format!("{longest}M / HTTP/1.1"), Err(501)),
        ("M".repeat(100), Err(501)),
        ("G(T / HTTP/1.1".to_owned(), Err(400)),
        ("PRI * HTTP/2.0".to_owned(), Err(505)),
        ("FOO * HTTP/1.1".to_owned(), Err(400)),
        // A tunnel is never made, so the right form is told from a wrong one only in the refusal.
        ("CONNECT a:443 HTTP/1.1".to_owned(), Err(501)),
        ("CONNECT [::1]:443 HTTP/1.1".to_owned(), Err(501)),
        ("CONNECT a HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT a: HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT a:65536 HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT :443 HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT [::1] HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT /a HTTP/1.1".to_owned(), Err(400)),
        ("CONNECT http://a:443/ HTTP/1.1".to_owned(), Err(400)),
    ] {
        let request = format!("{line}\r\nHost: a\r\n\r\n");
        let outcome = parse_in_pieces(request.as_bytes(), &[1], &limits);
        assert_eq!(parse(request.as_bytes(), &mut 0, &limits), outcome, "{line}");
        match outcome {
            Ok(Status::Complete(seen)) => assert_eq!(Ok(&*seen.method), expected, "{line}"),
            Ok(Status::Partial) => panic!("{line}: not complete"),
            Err(reject) => assert_eq!(Err(reject.status), expected, "{line}"),
        }
    }
}

#[test]
fn limits() {
    let status = |input: String, limits: &Limits| {
        let whole = parse(input.as_bytes(), &mut 0, limits);
        assert_eq!(parse_in_pieces(input.as_bytes(), &[7], limits), whole);
        whole.map(|status| status != Status::Partial).map_err(|reject| reject.status)
    };
    let head =
        |target: usize, fields: &str| format!("GET /{} HTTP/1.1\r\nHost: a\r\n{fields}\r\n", "t".repeat(target - 1));
    let long = |length: usize| format!("X: {}\r\n", "v".repeat(length));
    let exact = Limits { header_bytes_max: head(1, &long(100)).len(), ..LIMITS };

    assert_eq!(status(head(8192, ""), &LIMITS), Ok(true));
    assert_eq!(status(head(8193, ""), &LIMITS), Err(414));
    assert_eq!(status(format!("GET /{}", "t".repeat(8192)), &LIMITS), Err(414));
    assert_eq!(status(head(1, &"X: y\r\n".repeat(99)), &LIMITS), Ok(true));
    assert_eq!(status(head(1, &"X: y\r\n".repeat(100)), &LIMITS), Err(431));
    assert_eq!(status(head(1, &long(20_000)), &LIMITS), Err(431));
    assert_eq!(status(head(1, &long(100)), &exact), Ok(true));
    assert_eq!(status(head(1, &long(101)), &exact), Err(431));
    assert_eq!(status(head(200, ""), &exact), Err(414));
    assert_eq!(status(format!("GET / {}", "x".repeat(200)), &exact), Err(431));
}

#[test]
fn a_head_request_is_known_by_its_first_bytes() {
    for (input, expected) in [
        ("HEAD / HTTP/1.1\r\n\r\n", true),
        ("\r\n\r\nHEAD ", true),
        ("HEAD", false),
        ("HEADER / HTTP/1.1", false),
        ("head / HTTP/1.1", false),
        ("GET /HEAD HTTP/1.1", false),
        ("", false),
    ] {
        assert_eq!(is_head(input.as_bytes()), expected, "{input:?}");
    }
}

#[test]
fn fields_are_found_and_bodies_left_alone() {
    let input = b"POST /x HTTP/1.1\r\nHost: h:1\r\nX-List: a, b\r\nx-list:,c\r\nX-Bytes: \xff\r\nContent-Length: 2\r\n\r\n\n\0GET";
    let Ok(Status::Complete((head, framing))) = parse_head(input, &mut 0, &LIMITS) else {
        panic!("not complete");
    };
    assert_eq!(&input[framing.head_len..], b"\n\0GET");
    assert_eq!(head.host(), Some("h:1"));
    assert_eq!(head.header_str("x-LIST"), Some("a, b"));
    assert_eq!(head.header_values("X-List").count(), 2);
    assert_eq!(head.list("x-list").collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    assert!(head.list_has("x-list", "C") && !head.list_has("x-list", "d"));
    assert_eq!((head.header("x-bytes"), head.header_str("x-bytes")), (Some(&b"\xff"[..]), None));
    assert_eq!(head.header("x-none"), None);

    let input = b"GET http://t:2/ HTTP/1.1\r\nHost: h\r\n\r\n";
    let Ok(Status::Complete((head, _))) = parse_head(input, &mut 0, &LIMITS) else {
        panic!("not complete");
    };
    assert_eq!(head.host(), Some("t:2"));
}

#[test]
fn expect_continue_only_where_a_body_follows() {
    for (version, fields, expected) in [
        ("1.1", "Expect: 100-continue\r\nContent-Length: 5\r\n", true),
        ("1.1", "Expect: 100-continue, 100-continue\r\nContent-Length: 5\r\n", true),
        ("1.1", "Expect: 100-CONTINUE\r\nTransfer-Encoding: chunked\r\n", true),
        ("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n", false),
        ("1.1", "Expect: 100-continue\r\n", false),
        ("1.1", "Content-Length: 5\r\n", false),
        ("1.0", "Expect: 100-continue\r\nContent-Length: 5\r\n", false),
    ] {
        let request = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let Ok(Status::Complete((_, framing))) = parse_head(request.as_bytes(), &mut 0, &LIMITS) else {
            panic!("not complete: {request:?}");
        };
        assert_eq!(framing.expect_continue, expected, "{request:?}");
    }
}

/// Returns the body, the bytes consumed and whether it is complete.
fn decode_in_pieces(input: &[u8], pieces: &[usize], body_bytes_max: usize) -> Result<(Vec<u8>, usize, bool), Reject> {
    let mut decoder = ChunkedDecoder::new();
    let mut pieces = pieces.iter().copied().cycle();
    let (mut out, mut consumed, mut have, mut done) = (Vec::new(), 0, 0, false);
    while !done && have < input.len() {
        have = (have + pieces.next().unwrap_or(1).max(1)).min(input.len());
        let (taken, finished) = decoder.decode(&input[consumed..have], &mut out, body_bytes_max)?;
        consumed += taken;
        done = finished;
        assert!(done || consumed == have, "an unfinished body takes all");
    }
    Ok((out, consumed, done))
}

#[test]
fn chunked() {
    let long = |length: usize| "x".repeat(length);
    let table: &[(String, Result<&str, u16>)] = &[
        ("0\r\n\r\n".into(), Ok("")),
        ("5\r\nhello\r\n0\r\n\r\n".into(), Ok("hello")),
        ("5\r\nhello\r\n00a\r\n, my world\r\n000\r\n\r\n".into(), Ok("hello, my world")),
        ("A\r\n0123456789\r\n0\r\n\r\n".into(), Ok("0123456789")),
        ("2\r\n\r\n\r\n0\r\n\r\n".into(), Ok("\r\n")),
        ("0000000000000001\r\na\r\n0\r\n\r\n".into(), Ok("a")),
        ("1;a\r\na\r\n0;b=c;d=\"e;f\"\r\n\r\n".into(), Ok("a")),
        ("1 \t; a = b\r\na\r\n0\r\n\r\n".into(), Ok("a")),
        (format!("1;{}\r\na\r\n0\r\n\r\n", long(255)), Ok("a")),
        ("0\r\nX: y\r\nContent-Length: 5\r\nE:\r\n\r\n".into(), Ok("")),
        ("0\r\nX: \u{e9}\t\r\n\r\n".into(), Ok("")),
        (format!("0\r\nX:{}\r\n\r\n", long(8000)), Ok("")),
        (format!("14\r\n{}\r\n0\r\n\r\n", long(20)), Ok("xxxxxxxxxxxxxxxxxxxx")),
        (format!("15\r\n{}\r\n0\r\n\r\n", long(21)), Err(413)),
        (format!("10\r\n{}\r\n5", long(16)), Err(413)),
        ("ffffffffffffffff".into(), Err(413)),
        ("00000000000000001".into(), Err(400)),
        ("\r\n".into(), Err(400)),
        (";a\r\n".into(), Err(400)),
        ("+1\r\n".into(), Err(400)),
        ("-1\r\n".into(), Err(400)),
        (" 1\r\n".into(), Err(400)),
        ("0x1\r\n".into(), Err(400)),
        ("1_0\r\n".into(), Err(400)),
        ("g\r\n".into(), Err(400)),
        ("1 \r\n".into(), Err(400)),
        ("1 1\r\n".into(), Err(400)),
        ("1\n".into(), Err(400)),
        ("1\ra".into(), Err(400)),
        ("1\r\r".into(), Err(400)),
        ("1;\r\n".into(), Err(400)),
        ("1;=a\r\n".into(), Err(400)),
        ("1;a\n".into(), Err(400)),
        ("1;a\rb".into(), Err(400)),
        ("1;a=\"\n\"\r\n".into(), Err(400)),
        ("1;a\0".into(), Err(400)),
        (format!("1;{}", long(256)), Err(400)),
        (format!("1{}", " ".repeat(257)), Err(400)),
        ("1\r\nab".into(), Err(400)),
        ("1\r\na\n".into(), Err(400)),
        ("1\r\na\rb".into(), Err(400)),
        ("1\r\na0\r\n\r\n".into(), Err(400)),
        ("0\r\n\n".into(), Err(400)),
        ("0\r\n\rx".into(), Err(400)),
        ("0\r\nX\r\n\r\n".into(), Err(400)),
        ("0\r\nX : y\r\n\r\n".into(), Err(400)),
        ("0\r\n: y\r\n\r\n".into(), Err(400)),
        ("0\r\n X: y\r\n\r\n".into(), Err(400)),
        ("0\r\nX: y\r\n z\r\n\r\n".into(), Err(400)),
        ("0\r\nX: y\n\r\n".into(), Err(400)),
        ("0\r\nX: y\rz".into(), Err(400)),
        ("0\r\nX: \0".into(), Err(400)),
        ("0\r\nGET / HTTP/1.1\r\n".into(), Err(400)),
        (format!("0\r\nX:{}", long(8200)), Err(431)),
    ];
    for (input, expected) in table {
        let with_next = format!("{input}{}", if expected.is_ok() { "GET /" } else { "" });
        let outcome = decode_in_pieces(with_next.as_bytes(), &[usize::MAX / 2], 20);
        let bytewise = decode_in_pieces(with_next.as_bytes(), &[1], 20);
        assert_eq!(outcome, bytewise, "{input:?}");
        let expected = expected.map(|body| (body.as_bytes().to_vec(), input.len(), true));
        assert_eq!(outcome.map_err(|reject| reject.status), expected, "{input:?}");
    }
}

#[test]
fn extensions_are_bounded_over_the_body() {
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(200));
    let outcome = decode_in_pieces(chunk.repeat(100).as_bytes(), &[1000], 1000);
    assert_eq!(outcome.map_err(|reject| reject.status), Err(400));
}

/// Requests near the rows of the table: whole rows, and rows with a few bytes replaced, removed or put in.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![prop::sample::select(b"\r\n\t :;,#/*\0\x7f\xff0123HTP".to_vec()), any::<u8>()];
    let edit = (any::<prop::sample::Index>(), 0..3_u8, byte);
    (prop::sample::select(TABLE), prop::collection::vec(edit, 0..4)).prop_map(|((row, _), edits)| {
        let mut input = request(row);
        for (index, kind, byte) in edits {
            let at = index.index(input.len());
            match kind {
                0 => input[at] = byte,
                1 if input.len() > 1 => {
                    input.remove(at);
                }
                _ => input.insert(at, byte),
            }
        }
        input
    })
}

fn chunked_like() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::sample::select(vec![
        "0",
        "1",
        "5",
        "a",
        "\r\n",
        "\r\n",
        "\r\n",
        "hello",
        "x",
        ";",
        "k=v",
        " ",
        "X: y\r\n",
        ":",
        "\n",
        "\r",
        "\0",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "1;e\r\nx\r\n",
    ]);
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    #[test]
    fn head_does_not_depend_on_the_split(input in mutated(), pieces in prop::collection::vec(1..40_usize, 1..6)) {
        let whole = parse(&input, &mut 0, &LIMITS);
        prop_assert_eq!(parse_in_pieces(&input, &pieces, &LIMITS), whole);
    }

    #[test]
    fn head_under_small_limits_does_not_depend_on_the_split(
        input in mutated(), pieces in prop::collection::vec(1..9_usize, 1..6), header_bytes_max in 0..60_usize,
    ) {
        let limits = Limits { header_bytes_max, body_bytes_max: 3, ..LIMITS };
        let whole = parse(&input, &mut 0, &limits);
        prop_assert_eq!(parse_in_pieces(&input, &pieces, &limits), whole);
    }

    #[test]
    fn chunked_does_not_depend_on_the_split(input in chunked_like(), pieces in prop::collection::vec(1..9_usize, 1..6)) {
        let whole = decode_in_pieces(&input, &[usize::MAX / 2], 12);
        prop_assert_eq!(decode_in_pieces(&input, &pieces, 12), whole);
    }

    #[test]
    fn chunked_gives_back_what_was_encoded(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), pieces in prop::collection::vec(1..30_usize, 1..6),
    ) {
        let mut encoded = Vec::new();
        for chunk in &chunks {
            encoded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            encoded.extend_from_slice(chunk);
            encoded.extend_from_slice(b"\r\n");
        }
        encoded.extend_from_slice(b"0\r\n\r\n");
        let expected = Ok((chunks.concat(), encoded.len(), true));
        prop_assert_eq!(decode_in_pieces(&encoded, &pieces, 1000), expected);
    }

    #[test]
    fn random_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..300), scanned in 0..400_usize) {
        let mut scanned = scanned;
        let _ = parse(&input, &mut scanned, &LIMITS);
        let _ = decode_in_pieces(&input, &[3], 100);
    }
}
