//! The head of an HTTP/1.1 request: request line and header fields (RFC 9110, RFC 9112).
//!
//! Owns the strict reading of a head and the vocabulary that the other HTTP modules share. Knows nothing of sockets,
//! clocks, routes or the chat. The header fields are tokenized by `httparse`; what stands around it is stricter, because
//! whatever two parsers on one connection read differently is an opening for request smuggling.
//!
//! Invariants: the outcome depends on the bytes only, never on how they were split over calls; a call looks at each
//! byte that it has not seen once, and besides at no more than the request line; every refusal closes the connection.

use std::str;

use httparse::{EMPTY_HEADER, Header};
use memchr::{memchr, memchr_iter};

use super::body;

/// Longest request target in bytes; a longer one is answered 414.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Most header fields in a head; more are answered 431.
pub const HEADERS_MAX: usize = 100;

/// The methods that the server understands. A method is case-sensitive (RFC 9110 9.1).
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// A method still unfinished after so many bytes is none that we know.
const METHOD_BYTES_MAX: usize = 16;

/// The same where any method is read (RFC 9112 3 answers 501 to a longer one as well).
const ANY_METHOD_BYTES_MAX: usize = 64;

const NOT_IMPLEMENTED: Reject = Reject::with(501, "method not implemented");

/// Empty lines skipped before a request line (RFC 9112 2.2); some old clients send one behind a body.
const BLANK_LINES_MAX: usize = 4;

/// Whether the input holds the whole of what was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status<T> {
    /// All of it.
    Complete(T),
    /// Correct so far, but more bytes are needed.
    Partial,
}

/// A request that is refused because of its form. It is always answered with `Connection: close`, since what follows
/// on the connection can no longer be trusted to be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The HTTP status of the answer.
    pub status: u16,
    /// What was wrong, for the answer's body and the log; holds no byte of the peer.
    pub reason: &'static str,
}

impl Reject {
    /// 400, for whatever the grammar does not allow.
    pub const fn bad(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    /// A refusal with another status.
    pub const fn with(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// The header fields that the answer must carry: 426 names the protocol and the version that would be accepted
    /// (RFC 9110 15.5.22, RFC 6455 4.4), other refusals need none.
    pub const fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self.status {
            426 => &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            _ => &[],
        }
    }
}

/// How much of a request is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, blank lines before it and the empty line behind it included.
    pub header_bytes_max: usize,
    /// Bytes of the decoded body.
    pub body_bytes_max: usize,
    /// Which methods are read; any other is answered 501.
    pub methods: Methods,
}

/// The methods that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    /// `GET POST HEAD PUT PATCH DELETE OPTIONS`.
    Implemented,
    /// Whatever is a token, but `CONNECT`: a 2xx would make the connection a tunnel, so an origin server that is none
    /// answers 501, or 400 if the target is not host and port (RFC 9110 9.3.6).
    Any,
}

/// Owned result of the first pass over a head, kept while the body arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Bytes from the start of the input to the first byte of the body.
    pub head_len: usize,
    /// How the end of the body is found.
    pub body: BodyLength,
    /// The client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// The connection may carry another request after this one.
    pub keep_alive: bool,
}

/// How the end of a request's body is found (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Neither length nor coding was given: there is no body. A route that needs one answers 411.
    None,
    /// `Content-Length`, possibly 0, at most `body_bytes_max`.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A request line and its header fields, borrowed from the input.
#[derive(Clone, Debug)]
pub struct Head<'b> {
    /// One of those that [`Limits::methods`] admits.
    pub method: &'b str,
    /// The target in origin-form, not decoded: begins with `/`, or is `*` with `OPTIONS`. An absolute-form is reduced
    /// to this form, and then begins with `?` if the path was empty but a query was there. For `parse_target`.
    pub target: &'b str,
    /// Host and port of a target in absolute-form; it takes the place of the `Host` field (RFC 9112 3.2.2).
    pub authority: Option<&'b str>,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1 and what may come above it.
    pub minor_version: u8,
    headers: Vec<Header<'b>>,
}

impl<'b> Head<'b> {
    /// The value of the first field of that name, in any case, without the whitespace around it.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.header_values(name).next()
    }

    /// As `header`; `None` also if the value is not UTF-8.
    pub fn header_str(&self, name: &str) -> Option<&'b str> {
        self.header(name).and_then(|value| str::from_utf8(value).ok())
    }

    /// The values of all fields of that name, in the order received.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// All fields as (name, value), in the order received.
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.headers.iter().map(|header| (header.name, header.value))
    }

    /// The elements of a comma-separated field, over all its lines, without empty ones (RFC 9110 5.6.1).
    pub fn list(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.header_values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether a comma-separated field has that element, in any case.
    pub fn list_has(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The host that was asked for, with its port if one was given; `None` only in HTTP/1.0.
    pub fn host(&self) -> Option<&'b str> {
        self.authority.or_else(|| self.header_str("host"))
    }
}

/// Reads the head at the start of `input`.
///
/// `scanned` lets a head that arrives slowly cost linear work: the caller keeps it between calls for the same request
/// and sets it to 0 for the next one, since what it counts is not checked again. It stays valid after `Complete`, so a
/// second pass over the same head skips the search for its end.
///
/// # Errors
/// 400 for bad syntax and ambiguous framing, 413 for a declared body above the limit, 414 for a long target, 417 for
/// an unknown expectation, 431 for a head above the limits, 501 for an unknown method or coding, 505 for an unknown version.
pub fn parse_head<'b>(
    input: &'b [u8],
    scanned: &mut usize,
    limits: &Limits,
) -> Result<Status<(Head<'b>, Framing)>, Reject> {
    let window = &input[..input.len().min(limits.header_bytes_max)];
    let start = blank_lines(window);
    let from = (*scanned).clamp(start, window.len());
    let scan = scan(window, start, from);
    let seen = &window[start..scan.checked];

    // The request line is judged before what comes behind it, so that the answer does not depend on how much has arrived.
    let line_end = memchr(b'\r', seen);
    let request = match line_end {
        None => {
            check_unfinished(seen, limits.methods)?;
            None
        }
        Some(end) if start + end >= from || scan.end.is_some() => {
            Some((RequestLine::parse(&seen[..end], limits.methods)?, end + 2))
        }
        Some(_) => None,
    };
    if let Some(reject) = scan.offence {
        return Err(reject);
    }
    let (Some((line, line_len)), Some(end)) = (request, scan.end) else {
        *scanned = scan.checked;
        if window.len() < limits.header_bytes_max {
            return Ok(Status::Partial);
        }
        return Err(over_limit(seen));
    };
    // The empty line is left to be seen again: it is what a second pass recognizes the end by.
    *scanned = end - 2;

    let head = Head {
        method: line.method,
        target: line.target,
        authority: line.authority,
        minor_version: line.minor_version,
        headers: parse_fields(&window[start + line_len..end])?,
    };
    check_host(&head)?;
    let framing = body::framing(&head, &window[..end], limits)?;
    Ok(Status::Complete((head, framing)))
}

/// Whether a request, of which perhaps only a part is there or is valid, is a HEAD: its refusal has no content either
/// (RFC 9110 9.3.2).
pub fn is_head(input: &[u8]) -> bool {
    input[blank_lines(input)..].starts_with(b"HEAD ")
}

/// What the search for the end of the head found.
struct Scan {
    /// Bytes known to be good: up to the offence, to a CR whose LF has not come, or to the end of the head.
    checked: usize,
    /// The first byte behind the empty line.
    end: Option<usize>,
    offence: Option<Reject>,
}

impl Scan {
    fn offence(checked: usize, reason: &'static str) -> Self {
        Self { checked, end: None, offence: Some(Reject::bad(reason)) }
    }
}

/// Walks the lines from `from` to the end of the head and refuses what may stand nowhere in one.
fn scan(window: &[u8], start: usize, from: usize) -> Scan {
    let mut position = from;
    loop {
        let rest = &window[position..];
        let begins = position > start && window[position - 1] == b'\n';
        if begins && matches!(rest.first(), Some(b' ' | b'\t')) {
            return Scan::offence(position, "line folding is not allowed");
        }
        let text_len = text_len(rest);
        let text_end = position + text_len;
        match &rest[text_len..] {
            [] | [b'\r'] => {
                return Scan { checked: text_end, end: None, offence: None };
            }
            [b'\r', b'\n', ..] => position = text_end + 2,
            [b'\r', ..] => {
                return Scan::offence(text_end, "carriage return without line feed");
            }
            [b'\n', ..] => {
                return Scan::offence(text_end, "line feed without carriage return");
            }
            [..] => return Scan::offence(text_end, "control character in head"),
        }
        if begins && text_len == 0 {
            return Scan { checked: position, end: Some(position), offence: None };
        }
    }
}

/// Bytes before the first control character other than HTAB.
fn text_len(bytes: &[u8]) -> usize {
    const BLOCK: usize = 16;
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    // A block is looked at as a whole, without an early exit, so that this compiles to vector instructions.
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let is_text = |block: &&[u8; BLOCK]| !block.iter().fold(false, |found, byte| found | is_control(byte));
    let skipped = blocks.iter().take_while(is_text).count() * BLOCK;
    let rest = &bytes[skipped..];
    skipped + rest.iter().position(is_control).unwrap_or(rest.len())
}

/// Bytes taken by the empty lines before the request line.
fn blank_lines(window: &[u8]) -> usize {
    let mut start = 0;
    while start < 2 * BLANK_LINES_MAX && window[start..].starts_with(b"\r\n") {
        start += 2;
    }
    start
}

/// The answer to a head that fills the limit without having ended.
fn over_limit(seen: &[u8]) -> Reject {
    let target_unfinished = memchr(b'\r', seen).is_none() && memchr_iter(b' ', seen).count() < 2;
    if target_unfinished {
        return Reject::with(414, "request target too long");
    }
    Reject::with(431, "request head too large")
}

struct RequestLine<'b> {
    method: &'b str,
    target: &'b str,
    authority: Option<&'b str>,
    minor_version: u8,
}

impl<'b> RequestLine<'b> {
    /// `line` is without its CRLF.
    fn parse(line: &'b [u8], methods: Methods) -> Result<Self, Reject> {
        let malformed = Reject::bad("malformed request line");
        let method = method(line, methods)?.ok_or(malformed)?;
        let rest = &line[method.len() + 1..];
        let target = target(rest)?.ok_or(malformed)?;
        let version = &rest[target.len() + 1..];

        if !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
            return Err(Reject::bad("invalid character in request target"));
        }
        let minor_version = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            // A higher minor version is read as the highest that we know (RFC 9110 2.5).
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => 1,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Reject::with(505, "HTTP version not supported"));
            }
            _ => return Err(Reject::bad("malformed HTTP version")),
        };
        let target = str::from_utf8(target).map_err(|_| malformed)?;
        let (authority, target) = origin_form(method, target)?;
        Ok(Self { method, target, authority, minor_version })
    }
}

/// Refuses a request line whose end has not come as soon as no continuation could be accepted.
fn check_unfinished(line: &[u8], methods: Methods) -> Result<(), Reject> {
    if let Some(method) = method(line, methods)? {
        target(&line[method.len() + 1..])?;
    }
    Ok(())
}

/// The method, once the space behind it is there.
fn method(line: &[u8], methods: Methods) -> Result<Option<&str>, Reject> {
    let bytes_max = if methods == Methods::Any { ANY_METHOD_BYTES_MAX } else { METHOD_BYTES_MAX };
    for (index, byte) in line.iter().enumerate().take(bytes_max + 1) {
        if *byte == b' ' && index > 0 {
            let method = str::from_utf8(&line[..index]).map_err(|_| Reject::bad("invalid method"))?;
            let is_read = methods == Methods::Any || METHODS.contains(&method);
            return if is_read { Ok(Some(method)) } else { Err(NOT_IMPLEMENTED) };
        }
        if !is_token_byte(*byte) {
            return Err(Reject::bad("invalid method"));
        }
    }
    if line.len() > bytes_max {
        return Err(NOT_IMPLEMENTED);
    }
    Ok(None)
}

/// The target at the start of `rest`, once the space behind it is there; it may be empty, which no form allows.
fn target(rest: &[u8]) -> Result<Option<&[u8]>, Reject> {
    let within = &rest[..rest.len().min(TARGET_BYTES_MAX + 1)];
    match memchr(b' ', within) {
        Some(end) => Ok(Some(&rest[..end])),
        None if within.len() > TARGET_BYTES_MAX => Err(Reject::with(414, "request target too long")),
        None => Ok(None),
    }
}

/// Splits an absolute-form into authority and origin-form (RFC 9112 3.2).
fn origin_form<'b>(method: &str, target: &'b str) -> Result<(Option<&'b str>, &'b str), Reject> {
    if method == "CONNECT" {
        let has_port = target.contains(':') && target.ends_with(|last: char| last.is_ascii_digit());
        let is_authority = is_host(target.as_bytes()) && has_port;
        return Err(if is_authority { NOT_IMPLEMENTED } else { Reject::bad("CONNECT needs host and port") });
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((None, target));
    }
    let rest = ["http://", "https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let rest = rest.ok_or(Reject::bad("request target must begin with a slash"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !is_host(authority.as_bytes()) {
        return Err(Reject::bad("invalid host in request target"));
    }
    match path {
        "" if method == "OPTIONS" => Ok((Some(authority), "*")),
        "" => Ok((Some(authority), "/")),
        _ => Ok((Some(authority), path)),
    }
}

/// `block` is everything behind the request line, the empty line included.
fn parse_fields(block: &[u8]) -> Result<Vec<Header<'_>>, Reject> {
    let count = memchr_iter(b'\n', block).count().saturating_sub(1);
    if count > HEADERS_MAX {
        return Err(Reject::with(431, "too many header fields"));
    }
    let mut headers = vec![EMPTY_HEADER; count];
    match httparse::parse_headers(block, &mut headers) {
        Ok(httparse::Status::Complete(_)) => Ok(headers),
        Err(httparse::Error::HeaderName) => Err(Reject::bad("invalid header name")),
        Err(httparse::Error::HeaderValue) => Err(Reject::bad("invalid header value")),
        Ok(httparse::Status::Partial) | Err(_) => Err(Reject::bad("malformed header")),
    }
}

/// One valid `Host`, which HTTP/1.0 may leave out (RFC 9112 3.2).
fn check_host(head: &Head<'_>) -> Result<(), Reject> {
    let mut values = head.header_values("host");
    match (values.next(), values.next()) {
        (Some(host), None) if is_host(host) => Ok(()),
        (Some(_), None) => Err(Reject::bad("invalid Host")),
        (Some(_), Some(_)) => Err(Reject::bad("more than one Host")),
        (None, _) if head.minor_version == 0 => Ok(()),
        (None, _) => Err(Reject::bad("missing Host")),
    }
}

/// `uri-host [ ":" port ]` (RFC 3986 3.2.2), not empty. A comma is grammatical in a name, but in practice it is what
/// a proxy makes of two `Host` fields, so it is refused; and so is a percent sign, since no host here needs one.
fn is_host(value: &[u8]) -> bool {
    let (valid, port) = if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', rest) else {
            return false;
        };
        let address = &rest[..end];
        let valid = memchr(b':', address).is_some()
            && address.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        (valid, &rest[end + 1..])
    } else {
        let (name, port) = value.split_at(memchr(b':', value).unwrap_or(value.len()));
        let valid = !name.is_empty() && name.iter().all(|byte| is_name_byte(*byte));
        (valid, port)
    };
    valid && is_port(port)
}

/// `unreserved` and `sub-delims` of RFC 3986, without the comma.
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte,
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~'
        | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=')
}

/// Nothing, or a colon and a number of at most 65535, or a colon alone, which the grammar allows.
fn is_port(port: &[u8]) -> bool {
    let Some(digits) = port.strip_prefix(b":") else {
        return port.is_empty();
    };
    let number = str::from_utf8(digits).unwrap_or("-");
    digits.is_empty() || (digits.iter().all(u8::is_ascii_digit) && number.parse::<u16>().is_ok())
}

/// `tchar` of RFC 9110 5.6.2.
pub(super) const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z'
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// `token` of RFC 9110 5.6.2.
pub(super) fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| is_token_byte(*byte))
}
