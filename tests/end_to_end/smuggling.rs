//! Requests that two parties on the way could read differently: refused with 400, and the connection closed.

use crate::http_client::request;
use crate::server::{API_KEY, Server};

const MESSAGES: &str = "/api/chat/rooms/r/messages";

/// A POST with these header lines, and a body that would itself be a request.
fn post(lines: &str, body: &str) -> String {
    format!("POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\n{lines}\r\n{body}")
}

#[test]
fn ambiguous_requests_are_400_and_close() {
    let server = Server::start();
    let hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let chunked = "0\r\n\r\n";
    let get = |lines: &str| format!("GET /healthz HTTP/1.1\r\n{lines}\r\n");
    let rows: Vec<(&str, String)> = vec![
        ("both lengths", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &format!("{chunked}{hidden}"))),
        (
            "both lengths, the other order",
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("{chunked}{hidden}")),
        ),
        ("two lengths that differ", post("Content-Length: 0\r\nContent-Length: 37\r\n", hidden)),
        ("two lengths that agree", post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}")),
        ("a list of lengths", post("Content-Length: 2, 2\r\n", "{}")),
        ("a signed length", post("Content-Length: +2\r\n", "{}")),
        ("a negative length", post("Content-Length: -1\r\n", "{}")),
        ("a hexadecimal length", post("Content-Length: 0x2\r\n", "{}")),
        ("an empty length", post("Content-Length: \r\n", "{}")),
        ("a length beyond 64 bits", post("Content-Length: 18446744073709551618\r\n", "{}")),
        ("a length with a letter", post("Content-Length: 2a\r\n", "{}")),
        ("folding", post("Content-Length: 2\r\nX-Folded: a\r\n b\r\n", "{}")),
        ("folding of the length", post("Content-Length:\r\n 2\r\n", "{}")),
        ("space before the colon", post("Content-Length : 2\r\n", "{}")),
        ("tab before the colon", post("Transfer-Encoding\t: chunked\r\n", chunked)),
        ("space before the first header", get(" Host: x\r\n")),
        ("bare LF after a header", get("Host: x\nX-A: b\r\n")),
        ("bare LF throughout", "GET /healthz HTTP/1.1\nHost: x\n\n".to_owned()),
        ("bare CR in a value", get("Host: x\r\nX-A: b\rc\r\n")),
        ("NUL in a value", get("Host: x\r\nX-A: b\0c\r\n")),
        ("two hosts", get("Host: x\r\nHost: y\r\n")),
        ("no host", get("")),
        ("a header without a colon", get("Host: x\r\nNonsense\r\n")),
        ("an empty header name", get("Host: x\r\n: value\r\n")),
        ("a header name with a space", get("Host: x\r\nX A: b\r\n")),
        ("two codings that end in another", post("Transfer-Encoding: chunked, identity\r\n", chunked)),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", chunked)),
        ("chunked in two headers", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked)),
        ("a coding with a vertical tab", post("Transfer-Encoding: \u{b}chunked\r\n", chunked)),
        (
            "chunked with HTTP/1.0",
            format!("POST {MESSAGES} HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"),
        ),
        ("a chunk size that is none", post("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n")),
        ("a signed chunk size", post("Transfer-Encoding: chunked\r\n", "+2\r\n{}\r\n0\r\n\r\n")),
        ("a chunk size with 0x", post("Transfer-Encoding: chunked\r\n", "0x2\r\n{}\r\n0\r\n\r\n")),
        ("a chunk size beyond 64 bits", post("Transfer-Encoding: chunked\r\n", "10000000000000002\r\n{}\r\n0\r\n\r\n")),
        ("a chunk that is longer than its size", post("Transfer-Encoding: chunked\r\n", "1\r\n{}\r\n0\r\n\r\n")),
        ("bare LF after a chunk size", post("Transfer-Encoding: chunked\r\n", "2\n{}\r\n0\r\n\r\n")),
        ("two spaces in the request line", "GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("a tab in the request line", "GET\t/healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("no version", "GET /healthz\r\nHost: x\r\n\r\n".to_owned()),
        ("bytes that are no request", "\u{16}\u{3}\u{1} no TLS here\r\n\r\n".to_owned()),
    ];
    for (what, bytes) in rows {
        let mut http = server.http();
        http.send(bytes.as_bytes());
        let response = http.response();
        let expected: &[u16] = match what {
            // These name something that is not implemented rather than something that is not allowed.
            "two codings that end in another"
            | "chunked twice"
            | "chunked in two headers"
            | "a coding with a vertical tab" => &[400, 501],
            "no version" => &[400, 505],
            "a length beyond 64 bits" | "a chunk size beyond 64 bits" => &[400, 413],
            _ => &[400],
        };
        assert!(expected.contains(&response.status), "{what}: {response:?}");
        assert!(http.closes(), "{what}: another byte after {response:?}");
    }
}

#[test]
fn other_faults_of_http_have_their_own_status() {
    let server = Server::start();
    let long = "x".repeat(40_000);
    for (what, bytes, statuses) in [
        ("HTTP/2.0", "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n".to_owned(), &[505][..]),
        ("HTTP/1.2 or later is not ours", "GET /healthz HTTP/3.7\r\nHost: x\r\n\r\n".to_owned(), &[505]),
        ("an unknown method", "BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[501, 405]),
        ("a coding we do not know", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), &[501]),
        ("an unknown expectation", post("Expect: a-miracle\r\nContent-Length: 2\r\n", "{}"), &[417]),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), &[414]),
        ("a long header", format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"), &[431]),
        ("many headers", format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(2_000)), &[431]),
        ("a path with a bad escape", "GET /api/chat/rooms/%zz/online HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[400]),
        ("a path that is no UTF-8", "GET /api/chat/rooms/%ff/online HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[400]),
    ] {
        let mut http = server.http();
        // The server may answer and close before all of it is sent.
        let _ = http.try_send(bytes.as_bytes());
        let response = http.response();
        assert!(statuses.contains(&response.status), "{what}: {}", response.status);
    }
}

#[test]
fn what_follows_a_fault_is_not_served() {
    let server = Server::start();
    let mut http = server.http();
    let mut bytes = request("GET", "/healthz", &[], None);
    bytes.extend_from_slice(b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n");
    bytes.extend(request("GET", "/readyz", &[], None));
    http.send(&bytes);
    assert_eq!(http.response().status, 200, "what came before is");
    assert_eq!(http.response().status, 400);
    assert!(http.closes());
}

#[test]
fn a_body_that_is_refused_is_never_taken_for_a_request() {
    let server = Server::start();
    let mut http = server.http();
    let body = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = format!("POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    http.send(format!("{head}{body}").as_bytes());
    assert_eq!(http.response().status, 401);
    // Either the connection is closed now, or the body was skipped and the next answer belongs to the next request.
    if http.try_send(&request("GET", "/nowhere", &[], None)).is_ok()
        && let Some(response) = http.try_response()
    {
        assert_eq!(response.status, 404);
    }
}

#[test]
fn an_empty_line_before_a_request_is_tolerated_or_refused() {
    let server = Server::start();
    let mut http = server.http();
    http.send(b"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    let status = http.response().status;
    assert!(status == 200 || status == 400, "{status}");
}
