//! The table of raw HTTP/1.1 requests: each with its exact answers and what becomes of the connection.
//!
//! Owns the data only; how a row is sent and judged stands in `http_conformance`, and again, through a proxy, in
//! `behind_proxy`. In a request these stand for longer text: `$GET` and `$POST` for a request line and the fields that
//! every good request needs, `$JSON` for a body of 15 (hexadecimal `f`) bytes, `$UPGRADE` for the head of a good
//! handshake without its end, `$KEY` for the API key's field, `$X{n}` for a letter and `$Y{n}` for a field n times, and `$EVIL` for a whole
//! request that posts to a room where nothing may ever arrive; `$EVILLEN` and `$EVILHEX` are its length.

use crate::client::user_token;
use crate::server::API_KEY;

/// The room that nothing may be posted to.
pub const MARKED_ROOM: &str = "marked";
/// The room that `$POST` posts to.
pub const TABLE_ROOM: &str = "table";

/// One row.
pub struct Row {
    pub name: &'static str,
    pub request: &'static str,
    pub answers: Vec<Answer>,
    pub fate: Fate,
}

/// What becomes of the connection behind the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A second request is answered.
    Kept,
    /// A second request is not answered, and the connection ends in order.
    Closed,
    /// The request is not complete: nothing comes, and nothing comes either once the client shuts its side.
    Waits,
    /// It has become a WebSocket.
    Upgraded,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Code and text of an error's body.
    pub error: Option<(&'static str, &'static str)>,
    /// The whole body.
    pub body: Option<&'static str>,
    /// To a HEAD: the length is told, the body left out.
    pub head: bool,
    pub fields: Vec<(&'static str, &'static str)>,
    pub absent: Vec<&'static str>,
}

impl Answer {
    fn of(status: u16) -> Self {
        Self { status, error: None, body: None, head: false, fields: Vec::new(), absent: Vec::new() }
    }

    fn field(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.absent.push(name);
        self
    }

    fn of_head(mut self) -> Self {
        self.head = true;
        self
    }
}

fn alive() -> Answer {
    Answer { body: Some(r#"{"status":"alive"}"#), ..Answer::of(200) }.field("Content-Length", "18")
}

fn posted() -> Answer {
    Answer::of(201)
}

fn error(status: u16, code: &'static str, text: &'static str) -> Answer {
    Answer { error: Some((code, text)), ..Answer::of(status) }
}

fn bad(text: &'static str) -> Answer {
    error(400, "invalid_message", text)
}

fn not_found() -> Answer {
    error(404, "not_found", "there is nothing at this path")
}

fn not_allowed(allow: &'static str) -> Answer {
    error(405, "invalid_message", "this path does not take this method").field("Allow", allow)
}

fn no_length() -> Answer {
    error(411, "invalid_message", "give Content-Length, or send chunks")
}

fn too_large() -> Answer {
    error(413, "too_large", "the body is larger than is accepted")
}

fn unauthorized() -> Answer {
    error(401, "forbidden", "give X-API-Key, or Authorization: Bearer with a token").field("WWW-Authenticate", "Bearer")
}

fn upgrade_required(text: &'static str) -> Answer {
    error(426, "invalid_message", text).field("Upgrade", "websocket").field("Sec-WebSocket-Version", "13")
}

fn switched() -> Answer {
    Answer::of(101).field("Upgrade", "websocket").field("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
}

const READING: &str = "GET, HEAD, OPTIONS";
const POSTING: &str = "POST, OPTIONS";

/// All rows.
pub fn table() -> Vec<Row> {
    [
        start_lines(),
        versions(),
        targets(),
        methods(),
        hosts(),
        fields(),
        lengths(),
        codings(),
        chunks(),
        expectations(),
        persistence(),
        cross_origin(),
        limits(),
        upgrades(),
        pipelines(),
        smuggling(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn row(name: &'static str, request: &'static str, answers: impl Into<Vec<Answer>>, fate: Fate) -> Row {
    Row { name, request, answers: answers.into(), fate }
}

fn kept(name: &'static str, request: &'static str, answer: Answer) -> Row {
    row(name, request, [answer], Fate::Kept)
}

fn closed(name: &'static str, request: &'static str, answer: Answer) -> Row {
    row(name, request, [answer], Fate::Closed)
}

/// A refusal with 400.
fn refused(name: &'static str, request: &'static str, text: &'static str) -> Row {
    closed(name, request, bad(text))
}

fn waits(name: &'static str, request: &'static str) -> Row {
    row(name, request, [], Fate::Waits)
}

/// RFC 9112 2.2 and 3.
fn start_lines() -> Vec<Row> {
    let malformed = "malformed request line";
    vec![
        kept("a plain request", "$GET\r\n", alive()),
        kept("an empty line before it", "\r\n$GET\r\n", alive()),
        kept("four empty lines before it", "\r\n\r\n\r\n\r\n$GET\r\n", alive()),
        refused("five empty lines before it", "\r\n\r\n\r\n\r\n\r\n$GET\r\n", malformed),
        refused("a bare LF before it", "\n$GET\r\n", "line feed without carriage return"),
        refused("a bare CR before it", "\r$GET\r\n", "carriage return without line feed"),
        refused("a space before it", " $GET\r\n", "invalid method"),
        refused("a byte order mark before it", "\u{feff}$GET\r\n", "invalid method"),
        refused("bare LF throughout", "GET /healthz HTTP/1.1\nHost: x\n\n", "line feed without carriage return"),
        refused(
            "a bare CR behind the request line",
            "GET /healthz HTTP/1.1\rHost: x\r\n\r\n",
            "carriage return without line feed",
        ),
        refused("two spaces", "GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("two spaces before the version", "GET /healthz  HTTP/1.1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("a tab for a space", "GET\t/healthz HTTP/1.1\r\nHost: x\r\n\r\n", "invalid method"),
        refused("a space behind the version", "GET /healthz HTTP/1.1 \r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n", malformed),
        refused("a method alone", "GET\r\nHost: x\r\n\r\n", malformed),
        refused("bytes of TLS", "\u{16}\u{3}\u{1}\0\u{5}\u{1}\r\n\r\n", "control character in head"),
        refused(
            "a control character in the method",
            "G\u{1}T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            "control character in head",
        ),
        waits("an unfinished request line", "GET /healthz HTTP/1.1"),
        waits("an unfinished head", "$GET"),
    ]
}

/// RFC 9110 2.5 and 6.2: a minor version above ours is read as ours.
fn versions() -> Vec<Row> {
    vec![
        closed("HTTP/1.0", "GET /healthz HTTP/1.0\r\n\r\n", alive()),
        kept("HTTP/1.2", "GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n", alive()),
        kept("HTTP/1.9", "GET /healthz HTTP/1.9\r\nHost: x\r\n\r\n", alive()),
        refused("HTTP/1.2 without Host", "GET /healthz HTTP/1.2\r\n\r\n", "missing Host"),
        closed("HTTP/2.0", "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", version()),
        closed("HTTP/0.9 by name", "GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n", version()),
        closed("HTTP/3.7", "GET /healthz HTTP/3.7\r\nHost: x\r\n\r\n", version()),
        refused("HTTP/0.9, which has none", "GET /healthz\r\n\r\n", "malformed request line"),
        refused("two digits", "GET /healthz HTTP/1.10\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("a leading zero", "GET /healthz HTTP/01.1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("no minor version", "GET /healthz HTTP/1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("a comma", "GET /healthz HTTP/1,1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("lower case", "GET /healthz http/1.1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        refused("another protocol", "GET /healthz HTTPS/1.1\r\nHost: x\r\n\r\n", "malformed HTTP version"),
        closed(
            "the preface of HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            error(501, "invalid_message", "method not implemented"),
        ),
    ]
}

fn version() -> Answer {
    error(505, "invalid_message", "HTTP version not supported")
}

/// RFC 9112 3.2.
fn targets() -> Vec<Row> {
    let slash = "request target must begin with a slash";
    vec![
        kept("absolute-form", "GET http://chat.test/healthz HTTP/1.1\r\nHost: chat.test\r\n\r\n", alive()),
        kept("absolute-form of https", "GET HTTPS://chat.test:443/healthz HTTP/1.1\r\nHost: a\r\n\r\n", alive()),
        kept("absolute-form that Host does not match", "GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n", alive()),
        kept("absolute-form without a path", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        refused("absolute-form without Host", "GET http://a/healthz HTTP/1.1\r\n\r\n", "missing Host"),
        refused(
            "absolute-form without an authority",
            "GET http:///healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "invalid host in request target",
        ),
        refused(
            "absolute-form with a user",
            "GET http://u@a/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "invalid host in request target",
        ),
        refused("another scheme", "GET ftp://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n", slash),
        refused("authority-form of another method", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", slash),
        refused("asterisk-form of another method", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", slash),
        refused("no slash", "GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", slash),
        refused("a query alone", "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", slash),
        refused("a fragment", "GET /healthz#a HTTP/1.1\r\nHost: a\r\n\r\n", "invalid character in request target"),
        refused(
            "a target beyond ASCII",
            "GET /h\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "invalid character in request target",
        ),
        refused("NUL in the target", "GET /\0healthz HTTP/1.1\r\nHost: a\r\n\r\n", "control character in head"),
        refused("a space in the target", "GET /health z HTTP/1.1\r\nHost: a\r\n\r\n", "malformed HTTP version"),
        kept("an encoded NUL", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", bad("NUL in request target")),
        kept(
            "half an escape",
            "GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n",
            bad("malformed percent-encoding in request target"),
        ),
        kept("bytes that are not UTF-8", "GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n", bad("request target is not UTF-8")),
        kept("an encoded letter", "GET /%68ealthz HTTP/1.1\r\nHost: a\r\n\r\n", alive()),
        kept("an encoded slash is none", "GET /api%2Fchat/rooms HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        kept("dot segments mean nothing", "GET /x/../healthz HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        kept("two slashes", "GET //healthz HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        kept("a query", "GET /healthz?a=b&c HTTP/1.1\r\nHost: a\r\n\r\n", alive()),
    ]
}

/// RFC 9110 9 and 15.5.6.
fn methods() -> Vec<Row> {
    let unknown = || error(501, "invalid_message", "method not implemented");
    vec![
        kept("HEAD", "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", alive().of_head()),
        kept("HEAD of nothing", "HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", not_found().of_head()),
        kept("HEAD where only POST is", "HEAD /api/chat/broadcast HTTP/1.1\r\nHost: a\r\n\r\n", {
            not_allowed(POSTING).of_head()
        }),
        closed("HEAD of the WebSocket", "HEAD /ws HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {
            upgrade_required("only WebSocket is served here").of_head()
        }),
        closed("HEAD without Host", "HEAD /healthz HTTP/1.1\r\n\r\n", bad("missing Host").of_head()),
        closed(
            "HEAD with a bad chunk",
            "HEAD /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
            bad("invalid chunk size").of_head(),
        ),
        kept("OPTIONS of the server", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {
            Answer::of(204).field("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS").without("Content-Length")
        }),
        kept("OPTIONS of the server, absolute", "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", {
            Answer::of(204).field("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
        }),
        kept("OPTIONS of a path", "OPTIONS /api/chat/broadcast HTTP/1.1\r\nHost: a\r\n\r\n", {
            Answer::of(204).field("Allow", POSTING).without("Content-Type")
        }),
        kept("OPTIONS of nothing", "OPTIONS /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        kept("OPTIONS with a body", "OPTIONS /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", {
            Answer::of(204).field("Allow", READING)
        }),
        kept("PUT of what is read", "PUT /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", {
            not_allowed(READING)
        }),
        kept("DELETE", "DELETE /api/chat/rooms HTTP/1.1\r\nHost: a\r\n\r\n", not_allowed(READING)),
        kept("PATCH", "PATCH /api/chat/messages HTTP/1.1\r\nHost: a\r\n\r\n", {
            not_allowed("GET, HEAD, POST, OPTIONS")
        }),
        kept("GET where only POST is", "GET /api/chat/broadcast HTTP/1.1\r\nHost: a\r\n\r\n", not_allowed(POSTING)),
        kept("a path that is not", "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        kept(
            "POST without a credential",
            "POST /api/chat/broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
            unauthorized(),
        ),
        kept("POST", "$POSTContent-Length: 15\r\n\r\n$JSON", posted()),
        closed("TRACE", "TRACE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", unknown()),
        closed("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", unknown()),
        closed("an unknown method", "BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n", unknown()),
        closed("a method in lower case", "get /healthz HTTP/1.1\r\nHost: a\r\n\r\n", unknown()),
        closed("a method that does not end", "GETGETGETGETGETGETGET", unknown()),
        refused("a method that is no token", "GE(T /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "invalid method"),
    ]
}

/// RFC 9112 3.2 and RFC 9110 7.2.
fn hosts() -> Vec<Row> {
    let invalid = "invalid Host";
    vec![
        refused("no Host", "GET /healthz HTTP/1.1\r\n\r\n", "missing Host"),
        refused("two hosts", "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "more than one Host"),
        refused("the same host twice", "$GETHost: chat.test\r\n\r\n", "more than one Host"),
        refused("two hosts in HTTP/1.0", "GET /healthz HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", "more than one Host"),
        refused("an empty host", "GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", invalid),
        refused("a list of hosts", "GET /healthz HTTP/1.1\r\nHost: a, b\r\n\r\n", invalid),
        refused("a host with a path", "GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", invalid),
        refused("a host with a user", "GET /healthz HTTP/1.1\r\nHost: u@a\r\n\r\n", invalid),
        refused("a port that is no number", "GET /healthz HTTP/1.1\r\nHost: a:b\r\n\r\n", invalid),
        refused("a port too large", "GET /healthz HTTP/1.1\r\nHost: a:65536\r\n\r\n", invalid),
        refused("an address of IPv6 without brackets", "GET /healthz HTTP/1.1\r\nHost: ::1\r\n\r\n", invalid),
        kept("an address of IPv6", "GET /healthz HTTP/1.1\r\nHost: [::1]:3001\r\n\r\n", alive()),
        kept("a host with an empty port", "GET /healthz HTTP/1.1\r\nhOST:a.example: \r\n\r\n", alive()),
    ]
}

/// RFC 9112 5 and 2.2.
fn fields() -> Vec<Row> {
    let folding = "line folding is not allowed";
    let name = "invalid header name";
    vec![
        refused("folding", "$GETX: a\r\n b\r\n\r\n", folding),
        refused("folding with a tab", "$GETX: a\r\n\tb\r\n\r\n", folding),
        refused("folding of nothing", "$GETX:\r\n \r\n\r\n", folding),
        refused("space before the first field", "GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", folding),
        refused("space before the colon", "$GETX : a\r\n\r\n", name),
        refused("tab before the colon", "$GETX\t: a\r\n\r\n", name),
        refused("an empty name", "$GET: a\r\n\r\n", name),
        refused("no colon", "$GETX\r\n\r\n", name),
        refused("a name with a space", "$GETX Y: a\r\n\r\n", name),
        refused("a name with a bracket", "$GETX(Y): a\r\n\r\n", name),
        refused("a name beyond ASCII", "$GETX\u{e9}: a\r\n\r\n", name),
        refused("NUL in a name", "$GETX\0: a\r\n\r\n", "control character in head"),
        refused("NUL in a value", "$GETX: a\0b\r\n\r\n", "control character in head"),
        refused("DEL in a value", "$GETX: a\u{7f}\r\n\r\n", "control character in head"),
        refused("a bare CR in a value", "$GETX: a\rb\r\n\r\n", "carriage return without line feed"),
        refused("a bare LF at the end of a field", "$GETX: a\n\r\n", "line feed without carriage return"),
        refused("a bare LF at the end of the head", "$GET\n", "line feed without carriage return"),
        refused("two CR before the LF", "$GETX: a\r\r\n\r\n", "carriage return without line feed"),
        kept("whitespace around a value", "$GETX: \t a \t \r\n\r\n", alive()),
        kept("empty values", "$GETX:\r\nY: \r\n\r\n", alive()),
        kept("a value beyond ASCII", "$GETX: \u{e9}\r\n\r\n", alive()),
        kept("every character of a name", "$GET!#$%&'*+-.^_`|~0Az: a\r\n\r\n", alive()),
    ]
}

/// RFC 9110 8.6 and RFC 9112 6.3.
fn lengths() -> Vec<Row> {
    let invalid = "invalid Content-Length";
    vec![
        kept("leading zeros", "$POSTContent-Length: 00015\r\n\r\n$JSON", posted()),
        kept("spaces around a length", "$POSTContent-Length: \t15 \r\n\r\n$JSON", posted()),
        kept("a body that a GET has", "$GETContent-Length: 15\r\n\r\n$JSON", alive()),
        kept("a length of nothing", "$GETContent-Length: 0\r\n\r\n", alive()),
        kept("no length where a body is needed", "$POST\r\n", no_length()),
        kept("an empty body where JSON is needed", "$POSTContent-Length: 0\r\n\r\n", {
            error(400, "invalid_json", "the body is not JSON")
        }),
        refused("a plus sign", "$POSTContent-Length: +15\r\n\r\n$JSON", invalid),
        refused("a minus sign", "$POSTContent-Length: -1\r\n\r\n$JSON", invalid),
        refused("a hexadecimal length", "$POSTContent-Length: 0xf\r\n\r\n$JSON", invalid),
        refused("an empty length", "$POSTContent-Length:\r\n\r\n$JSON", invalid),
        refused("a length with a letter", "$POSTContent-Length: 15a\r\n\r\n$JSON", invalid),
        refused("a length with a space", "$POSTContent-Length: 1 5\r\n\r\n$JSON", invalid),
        refused("a length with a point", "$POSTContent-Length: 15.0\r\n\r\n$JSON", invalid),
        refused("a length with an underscore", "$POSTContent-Length: 1_5\r\n\r\n$JSON", invalid),
        refused("a length in other digits", "$POSTContent-Length: \u{661}\u{665}\r\n\r\n$JSON", invalid),
        refused("a list of equal lengths", "$POSTContent-Length: 15, 15\r\n\r\n$JSON", invalid),
        refused("a list of lengths", "$POSTContent-Length: 15,16\r\n\r\n$JSON", invalid),
        refused("beyond 64 bits", "$POSTContent-Length: 18446744073709551631\r\n\r\n$JSON", invalid),
        refused(
            "equal lengths",
            "$POSTContent-Length: 15\r\nContent-Length: 15\r\n\r\n$JSON",
            "more than one Content-Length",
        ),
        refused(
            "different lengths",
            "$POSTContent-Length: 15\r\nContent-Length: 0\r\n\r\n$JSON",
            "more than one Content-Length",
        ),
        closed("above the limit", "$POSTContent-Length: 262145\r\n\r\n$JSON", too_large()),
        closed("far above the limit", "$POSTContent-Length: 9223372036854775807\r\n\r\n$JSON", too_large()),
        waits("a body that does not come", "$POSTContent-Length: 16\r\n\r\n$JSON"),
    ]
}

/// RFC 9112 6.1 and 6.3.
fn codings() -> Vec<Row> {
    let malformed = "malformed Transfer-Encoding";
    let last = "Transfer-Encoding must end in one chunked";
    let unknown = || error(501, "invalid_message", "transfer coding not implemented");
    vec![
        kept("chunked", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\n\r\n", posted()),
        kept("chunked in any case", "$POSTtransfer-encoding:cHuNkEd\r\n\r\nf\r\n$JSON\r\n0\r\n\r\n", posted()),
        kept("chunked with a GET", "$GETTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", alive()),
        refused("chunked twice", "$POSTTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", last),
        refused(
            "chunked in two fields",
            "$POSTTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            last,
        ),
        refused("identity", "$POSTTransfer-Encoding: identity\r\n\r\n$JSON", last),
        refused("chunked before identity", "$POSTTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", last),
        refused("chunked before gzip", "$POSTTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", last),
        refused("xchunked", "$POSTTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", last),
        refused("chunked with a parameter", "$POSTTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", last),
        refused("chunked in quotes", "$POSTTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", malformed),
        refused("no coding", "$POSTTransfer-Encoding:\r\n\r\n0\r\n\r\n", malformed),
        refused("a tab before chunked", "$POSTTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", malformed),
        refused("two spaces before chunked", "$POSTTransfer-Encoding:  chunked\r\n\r\n0\r\n\r\n", malformed),
        refused("a space behind chunked", "$POSTTransfer-Encoding: chunked \r\n\r\n0\r\n\r\n", malformed),
        refused("a comma before chunked", "$POSTTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", malformed),
        refused(
            "a vertical tab before chunked",
            "$POSTTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n",
            "control character in head",
        ),
        closed("gzip and chunked", "$POSTTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", unknown()),
        closed(
            "gzip and chunked in two fields",
            "$POSTTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            unknown(),
        ),
        refused(
            "chunked in HTTP/1.0",
            "POST /api/chat/messages HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding in HTTP/1.0",
        ),
        kept("TE is not Transfer-Encoding", "$GETTE: trailers, chunked\r\nConnection: TE\r\n\r\n", alive()),
    ]
}

/// RFC 9112 7.1.
fn chunks() -> Vec<Row> {
    let size = "invalid chunk size";
    let extension = "malformed chunk extension";
    let line = "malformed line end in chunked body";
    let longer = "chunk is longer than its size";
    vec![
        kept(
            "several chunks",
            "$POSTTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\nD\r\n\"content\":\"x\"\r\n001\r\n}\r\n00\r\n\r\n",
            posted(),
        ),
        kept(
            "extensions",
            "$POSTTransfer-Encoding: chunked\r\n\r\nF;a;b=c;d=\"e;f \\\" g\"\r\n$JSON\r\n0;z\r\n\r\n",
            posted(),
        ),
        kept(
            "blanks around an extension",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf \t; a = b\r\n$JSON\r\n0\r\n\r\n",
            posted(),
        ),
        kept(
            "a trailer",
            "$POSTTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\nf\r\n$JSON\r\n0\r\nX: y\r\n\r\n",
            posted(),
        ),
        kept(
            "trailers that count for nothing",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\nContent-Length: 99\r\nHost: evil\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\nX-API-Key: none\r\n\r\n",
            posted(),
        ),
        kept(
            "sixteen digits",
            "$POSTTransfer-Encoding: chunked\r\n\r\n000000000000000f\r\n$JSON\r\n0\r\n\r\n",
            posted(),
        ),
        refused(
            "seventeen digits",
            "$POSTTransfer-Encoding: chunked\r\n\r\n0000000000000000f\r\n$JSON\r\n0\r\n\r\n",
            "chunk size has too many digits",
        ),
        refused("a size with a sign", "$POSTTransfer-Encoding: chunked\r\n\r\n+f\r\n$JSON\r\n0\r\n\r\n", size),
        refused("a negative size", "$POSTTransfer-Encoding: chunked\r\n\r\n-f\r\n$JSON\r\n0\r\n\r\n", size),
        refused("a size with 0x", "$POSTTransfer-Encoding: chunked\r\n\r\n0xf\r\n$JSON\r\n0\r\n\r\n", size),
        refused("a size with an underscore", "$POSTTransfer-Encoding: chunked\r\n\r\n0_f\r\n$JSON\r\n0\r\n\r\n", size),
        refused("a space before the size", "$POSTTransfer-Encoding: chunked\r\n\r\n f\r\n$JSON\r\n0\r\n\r\n", size),
        refused("no size", "$POSTTransfer-Encoding: chunked\r\n\r\n\r\n$JSON\r\n0\r\n\r\n", size),
        refused("an extension without a size", "$POSTTransfer-Encoding: chunked\r\n\r\n;a\r\n", size),
        refused("a space behind the size", "$POSTTransfer-Encoding: chunked\r\n\r\nf \r\n$JSON\r\n", extension),
        refused("a semicolon alone", "$POSTTransfer-Encoding: chunked\r\n\r\nf;\r\n$JSON\r\n", extension),
        refused("NUL in an extension", "$POSTTransfer-Encoding: chunked\r\n\r\nf;a\0\r\n$JSON\r\n", extension),
        refused("a bare LF in an extension", "$POSTTransfer-Encoding: chunked\r\n\r\nf;a\n$JSON\r\n", extension),
        refused("a bare CR in an extension", "$POSTTransfer-Encoding: chunked\r\n\r\nf;a\rb\r\n$JSON\r\n", line),
        refused(
            "an extension that is too long",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf;$X{300}\r\n$JSON\r\n0\r\n\r\n",
            "chunk extension too long",
        ),
        refused("a bare LF behind the size", "$POSTTransfer-Encoding: chunked\r\n\r\nf\n$JSON\r\n0\r\n\r\n", size),
        refused("a bare CR behind the size", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r$JSON\r\n0\r\n\r\n", line),
        refused("a bare LF behind the data", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\n0\r\n\r\n", longer),
        refused("nothing behind the data", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON0\r\n\r\n", longer),
        refused("more data than the size", "$POSTTransfer-Encoding: chunked\r\n\r\ne\r\n$JSON\r\n0\r\n\r\n", longer),
        refused(
            "a bare LF at the end",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\n\n",
            "malformed trailer",
        ),
        refused(
            "a bare LF in a trailer",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\nX: y\n\r\n",
            "malformed trailer",
        ),
        refused(
            "a folded trailer",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\nX: y\r\n z\r\n\r\n",
            "malformed trailer",
        ),
        refused(
            "a request in place of a trailer",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\n$EVIL",
            "malformed trailer",
        ),
        closed(
            "trailers that are too long",
            "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\nX: $X{9000}\r\n\r\n",
            error(431, "too_large", "trailers too large"),
        ),
        closed("a size above the limit", "$POSTTransfer-Encoding: chunked\r\n\r\n40001\r\n$JSON", too_large()),
        closed("a size of 64 bits", "$POSTTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n$JSON", too_large()),
        waits("the last chunk is missing", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n"),
        waits("the last line is missing", "$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\n"),
    ]
}

/// RFC 9110 10.1.1. The interim answer may be left out once some of the body has come.
fn expectations() -> Vec<Row> {
    let unknown = || error(417, "invalid_message", "expectation cannot be met");
    vec![
        kept("100-continue and the body", "$POSTExpect: 100-continue\r\nContent-Length: 15\r\n\r\n$JSON", posted()),
        kept("100-continue in any case", "$POSTExpect: 100-Continue\r\nContent-Length: 15\r\n\r\n$JSON", posted()),
        kept(
            "100-continue twice",
            "$POSTExpect: 100-continue, 100-continue\r\nContent-Length: 15\r\n\r\n$JSON",
            posted(),
        ),
        kept("100-continue without a body", "$GETExpect: 100-continue\r\n\r\n", alive()),
        kept("no expectation", "$GETExpect:\r\n\r\n", alive()),
        closed("100-continue for too much", "$POSTExpect: 100-continue\r\nContent-Length: 262145\r\n\r\n", too_large()),
        closed("another expectation", "$POSTExpect: 200-ok\r\nContent-Length: 15\r\n\r\n$JSON", unknown()),
        closed("another expectation besides", "$GETExpect: 100-continue, x\r\n\r\n", unknown()),
        closed("another expectation in HTTP/1.0", "GET /healthz HTTP/1.0\r\nExpect: x\r\n\r\n", alive()),
        row(
            "100-continue and no body",
            "$POSTExpect: 100-continue\r\nContent-Length: 15\r\n\r\n",
            [Answer::of(100)],
            Fate::Waits,
        ),
    ]
}

/// RFC 9112 9.3 and RFC 9110 7.6.1.
fn persistence() -> Vec<Row> {
    vec![
        closed("close", "$GETConnection: close\r\n\r\n", alive()),
        closed("close in a list, in any case", "$GETConnection: x, CLOSE ,y\r\n\r\n", alive()),
        closed("close in a second field", "$GETConnection: keep-alive\r\nConnection: close\r\n\r\n", alive()),
        closed("close beats keep-alive", "$GETConnection: close, keep-alive\r\n\r\n", alive()),
        kept("a token like close", "$GETConnection: closed\r\n\r\n", alive()),
        kept("empty elements", "$GETConnection: , ,\r\n\r\n", alive()),
        kept("fields of one hop", "$GETConnection: X-A\r\nX-A: b\r\nKeep-Alive: timeout=1\r\n\r\n", alive()),
        kept("HTTP/1.0 that asks", "GET /healthz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", alive()),
        closed(
            "HTTP/1.0 that asks for both",
            "GET /healthz HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
            alive(),
        ),
        kept(
            "HTTP/1.0 with a body",
            "POST /api/chat/rooms/table/messages HTTP/1.0\r\n$KEYConnection: keep-alive\r\nContent-Length: 15\r\n\r\n$JSON",
            posted(),
        ),
        closed("close with a body", "$POSTConnection: close\r\nContent-Length: 15\r\n\r\n$JSON", posted()),
        closed("close with an error", "GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", not_found()),
    ]
}

/// The Fetch standard's preflight.
fn cross_origin() -> Vec<Row> {
    vec![
        kept(
            "a preflight",
            "OPTIONS /api/chat/broadcast HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\nAccess-Control-Request-Method: POST\r\n\r\n",
            Answer::of(204)
                .field("Access-Control-Allow-Origin", "*")
                .field("Access-Control-Allow-Methods", POSTING)
                .field("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, X-API-Key")
                .without("Access-Control-Allow-Credentials"),
        ),
        kept("an origin", "$GETOrigin: https://b\r\n\r\n", alive().field("Access-Control-Allow-Origin", "*")),
        kept("no origin", "$GET\r\n", alive().without("Access-Control-Allow-Origin")),
        kept(
            "an error for a page",
            "GET /nowhere HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\n\r\n",
            not_found().field("Access-Control-Allow-Origin", "*"),
        ),
    ]
}

fn limits() -> Vec<Row> {
    let long_target = || error(414, "too_large", "request target too long");
    let large_head = || error(431, "too_large", "request head too large");
    vec![
        kept("a target of 8,000 bytes", "GET /healthz?$X{7991} HTTP/1.1\r\nHost: a\r\n\r\n", alive()),
        closed("a target of 8,193 bytes", "GET /$X{8192} HTTP/1.1\r\nHost: a\r\n\r\n", long_target()),
        closed("a target of 40,000 bytes", "GET /$X{39999} HTTP/1.1\r\nHost: a\r\n\r\n", long_target()),
        kept("a field of 15,000 bytes", "$GETX: $X{15000}\r\n\r\n", alive()),
        closed("a field of 40,000 bytes", "$GETX: $X{40000}\r\n\r\n", large_head()),
        closed("a name of 40,000 bytes", "$GET$X{40000}: a\r\n\r\n", large_head()),
        kept("99 fields and Host", "$GET$Y{99}\r\n", alive()),
        closed("100 fields and Host", "$GET$Y{100}\r\n", error(431, "too_large", "too many header fields")),
        closed("2,000 fields", "$GET$Y{2000}\r\n", error(431, "too_large", "too many header fields")),
        closed("a field that does not end", "$GETX: $X{20000}", large_head()),
    ]
}

/// RFC 6455 4.2 and RFC 9110 7.8. Whoever asks for a WebSocket in vain is closed, since frames may follow already.
fn upgrades() -> Vec<Row> {
    vec![
        row("an upgrade", "$UPGRADE\r\n", [switched().without("Date")], Fate::Upgraded),
        row("an upgrade behind a request", "$GET\r\n$UPGRADE\r\n", [alive(), switched()], Fate::Upgraded),
        row("an upgrade with an empty body", "$UPGRADEContent-Length: 0\r\n\r\n", [switched()], Fate::Upgraded),
        row("an offer of h2c besides", "$UPGRADEUpgrade: h2c\r\n\r\n", [switched()], Fate::Upgraded),
        closed(
            "an upgrade with a body",
            "$UPGRADEContent-Length: 5\r\n\r\nhello",
            bad("a WebSocket handshake has no body"),
        ),
        closed(
            "an upgrade with chunks",
            "$UPGRADETransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            bad("a WebSocket handshake has no body"),
        ),
        kept("no upgrade", "GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", upgrade_required("only WebSocket is served here")),
        closed(
            "Connection does not name it",
            "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            bad("Connection does not name upgrade"),
        ),
        closed(
            "another version, with a request for a frame",
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n$EVIL",
            upgrade_required("WebSocket version is not 13"),
        ),
        closed(
            "a bad key, with a request for a frame",
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: short\r\n\r\n$EVIL",
            bad("Sec-WebSocket-Key is not 16 bytes in base64"),
        ),
        closed(
            "two keys",
            "$UPGRADESec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            bad("Sec-WebSocket-Version and -Key must be given once each"),
        ),
        closed(
            "an upgrade of a POST",
            "POST /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n$EVIL",
            not_allowed(READING),
        ),
        closed(
            "an upgrade in HTTP/1.0",
            "GET /ws HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            upgrade_required("a WebSocket needs HTTP/1.1"),
        ),
        kept(
            "h2c, which is ignored",
            "$GETConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            alive().without("Upgrade"),
        ),
        kept(
            "TLS, which is ignored",
            "$GETConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
            alive().without("Upgrade"),
        ),
    ]
}

/// RFC 9112 9.3.2.
fn pipelines() -> Vec<Row> {
    vec![
        row(
            "answers in order",
            "$POSTContent-Length: 15\r\n\r\n$JSON$GET\r\nHEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n$POSTTransfer-Encoding: chunked\r\n\r\nf\r\n$JSON\r\n0\r\n\r\n",
            [posted(), alive(), alive().of_head(), not_found(), posted()],
            Fate::Kept,
        ),
        row(
            "an empty line between",
            "$POSTContent-Length: 15\r\n\r\n$JSON\r\n$GET\r\n",
            [posted(), alive()],
            Fate::Kept,
        ),
        row(
            "errors of the chat between",
            "$POSTContent-Length: 2\r\n\r\n{}$POST\r\n$POSTContent-Type: text/plain\r\nContent-Length: 15\r\n\r\n$JSON$GET\r\n",
            [posted(), no_length(), error(415, "invalid_message", "send Content-Type: application/json"), alive()],
            Fate::Kept,
        ),
        row(
            "nothing behind a fault",
            "$GET\r\nGET /healthz HTTP/1.1\r\n\r\n$EVIL",
            [alive(), bad("missing Host")],
            Fate::Closed,
        ),
        row("nothing behind a close", "$GET\r\n$GETConnection: close\r\n\r\n$EVIL", [alive(), alive()], Fate::Closed),
        row(
            "nothing behind a body too large",
            "$POSTContent-Length: 15\r\n\r\n$JSON$POSTContent-Length: 262145\r\n\r\n$EVIL",
            [posted(), too_large()],
            Fate::Closed,
        ),
        row("half a request behind one", "$GET\r\n$POSTContent-Length: 15\r\n\r\n{", [alive()], Fate::Waits),
    ]
}

/// What two parties on the way could read differently. What hides behind the faults is a whole request.
fn smuggling() -> Vec<Row> {
    let both = "both Content-Length and Transfer-Encoding are present";
    let name = "invalid header name";
    vec![
        refused("CL.TE", "$POSTContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n$EVIL", both),
        refused(
            "TE.CL",
            "$POSTTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            both,
        ),
        refused(
            "CL.TE with a length of nothing",
            "$GETContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n$EVIL",
            both,
        ),
        refused(
            "TE.TE by a second coding",
            "$POSTContent-Length: 4\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "Transfer-Encoding must end in one chunked",
        ),
        refused(
            "TE.TE by a first coding",
            "$POSTContent-Length: 4\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            both,
        ),
        refused(
            "TE.TE by a space before the colon",
            "$POSTContent-Length: 4\r\nTransfer-Encoding : chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            name,
        ),
        refused(
            "TE.TE by a space before the name",
            "$POSTContent-Length: 4\r\n Transfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "line folding is not allowed",
        ),
        refused(
            "TE.TE by a vertical tab",
            "$POSTContent-Length: 4\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "control character in head",
        ),
        refused(
            "TE.TE by folding",
            "$POSTContent-Length: 4\r\nTransfer-Encoding:\r\n chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "line folding is not allowed",
        ),
        refused(
            "TE.TE by a bare LF",
            "$POSTContent-Length: 4\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "line feed without carriage return",
        ),
        refused(
            "TE.TE by a bare CR",
            "$POSTContent-Length: 4\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "carriage return without line feed",
        ),
        refused(
            "TE.TE by NUL in the name",
            "$POSTContent-Length: 4\r\nTransfer-Encoding\0: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            "control character in head",
        ),
        refused(
            "TE.TE by a name with a space",
            "$POSTContent-Length: 4\r\nX Transfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            name,
        ),
        refused(
            "TE.TE by a name without a value",
            "$POSTContent-Length: 4\r\nTransfer-Encoding\r\n: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            name,
        ),
        kept(
            "a name with an underscore is another",
            "$POSTTransfer_Encoding: chunked\r\nContent-Length: 15\r\n\r\n$JSON",
            posted(),
        ),
        kept("CL.0: the body is no request", "$GETContent-Length: $EVILLEN\r\n\r\n$EVIL", alive()),
        kept(
            "CL.0 where nothing is",
            "POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: $EVILLEN\r\n\r\n$EVIL",
            not_found(),
        ),
        kept(
            "CL.0 without a credential",
            "POST /api/chat/messages HTTP/1.1\r\nHost: a\r\nContent-Length: $EVILLEN\r\n\r\n$EVIL",
            unauthorized(),
        ),
        refused(
            "0.CL: a length that is folded",
            "$GETContent-Length:\r\n $EVILLEN\r\n\r\n$EVIL",
            "line folding is not allowed",
        ),
        refused("0.CL: a space before the colon", "$GETContent-Length : $EVILLEN\r\n\r\n$EVIL", name),
        refused(
            "0.CL: two lengths",
            "$POSTContent-Length: 0\r\nContent-Length: $EVILLEN\r\n\r\n$EVIL",
            "more than one Content-Length",
        ),
        kept(
            "a body in chunks is no request",
            "$GETTransfer-Encoding: chunked\r\n\r\n$EVILHEX\r\n$EVIL\r\n0\r\n\r\n",
            alive(),
        ),
        refused(
            "TERM.EXT: LF ends an extension",
            "$POSTTransfer-Encoding: chunked\r\n\r\n2;\n{}\r\n0\r\n\r\n$EVIL",
            "malformed chunk extension",
        ),
        refused(
            "EXT.TERM: LF within an extension",
            "$POSTTransfer-Encoding: chunked\r\n\r\n2;a\nxx\r\n4f\r\n0\r\n\r\n$EVIL",
            "malformed chunk extension",
        ),
        refused(
            "TERM.SPILL: LF ends a chunk",
            "$POSTTransfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n$EVIL",
            "chunk is longer than its size",
        ),
        refused(
            "SPILL.TERM: two bytes end a chunk",
            "$POSTTransfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n$EVIL",
            "chunk is longer than its size",
        ),
        refused(
            "a target that is split",
            "GET /healthz\r\nX: y HTTP/1.1\r\nHost: a\r\n\r\n$EVIL",
            "malformed request line",
        ),
        refused(
            "a target that holds a request",
            "GET /healthz HTTP/1.1\r\nHost: a HTTP/1.1\r\nHost: b\r\n\r\n$EVIL",
            "more than one Host",
        ),
        refused(
            "a host that holds a port and a path",
            "GET /healthz HTTP/1.1\r\nHost: a:80@b\r\n\r\n$EVIL",
            "invalid Host",
        ),
        kept("an encoded line end in the target", "GET /healthz%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n", not_found()),
        refused(
            "data behind a GET",
            "$GETContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
            "more than one Content-Length",
        ),
        row(
            "data behind the body",
            "$GETContent-Length: 5\r\n\r\nhello, world /\r\n\r\n$EVIL",
            [alive(), bad("invalid method")],
            Fate::Closed,
        ),
    ]
}

/// The bytes of a request, what stands for something replaced; `number` marks what it tries to smuggle.
pub fn expand(request: &str, number: usize) -> Vec<u8> {
    let key = format!("X-API-Key: {API_KEY}\r\n");
    let evil = evil(number);
    let text = request
        .replace("$EVILLEN", &evil.len().to_string())
        .replace("$EVILHEX", &format!("{:x}", evil.len()))
        .replace("$EVIL", &evil)
        .replace("$GET", "GET /healthz HTTP/1.1\r\nHost: chat.test\r\n")
        .replace("$POST", &format!("POST /api/chat/rooms/{TABLE_ROOM}/messages HTTP/1.1\r\nHost: chat.test\r\n$KEY"))
        .replace("$KEY", &key)
        .replace("$JSON", r#"{"content":"x"}"#)
        .replace("$UPGRADE", &upgrade());
    repeated(&repeated(&text, "$X{", "x"), "$Y{", "Y: z\r\n").into_bytes()
}

/// `text` with each `sign`, a number and a brace replaced by that many of `unit`.
fn repeated(text: &str, sign: &str, unit: &str) -> String {
    let mut parts = text.split(sign);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (count, rest) = part.split_once('}').expect("a number in braces");
        out.push_str(&unit.repeat(count.parse().expect("a number")));
        out.push_str(rest);
    }
    out
}

/// The mark that a smuggled message of this row carries.
pub fn mark(number: usize) -> String {
    format!("smuggled-{number:04}")
}

fn evil(number: usize) -> String {
    let body = format!(r#"{{"content":"{}"}}"#, mark(number));
    format!(
        "POST /api/chat/rooms/{MARKED_ROOM}/messages HTTP/1.1\r\nHost: chat.test\r\nX-API-Key: {API_KEY}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn upgrade() -> String {
    let head = crate::client::upgrade_request(&format!("/ws?token={}", user_token("table")), &[]);
    String::from_utf8(head).expect("text").trim_end().to_owned() + "\r\n"
}
