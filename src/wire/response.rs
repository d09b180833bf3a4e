//! The answers of HTTP/1.1, written straight into the connection's output (RFC 9112 4 and 6).
//!
//! Owns the framing of an answer: status line, `Content-Length`, `Connection`, and which answers have no body. Knows
//! nothing of routes or of the form of a body, and reads no clock. RFC 9110 6.6.1 requires `Date` of an origin server
//! that has a clock, and the server has one even though this layer has not; so the date comes in as a value, which the
//! caller renews once a second. An interim or switching answer (1xx) need not carry it and does not.
//!
//! Invariant: nothing in a field's value can end its line.

use std::str;

/// Asks the client to go on with the body (RFC 9110 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A final answer.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// 200 to 599.
    pub status: u16,
    /// Fields besides those that the writer owns: `Content-Length`, `Content-Type`, `Connection`, `Date`. A field
    /// with a control character in its value is left out, since it could split the answer in two.
    pub headers: &'a [(&'a str, &'a str)],
    /// Left out together with the body, where the status allows none.
    pub content_type: Option<&'a str>,
    /// The time of the answer.
    pub date: Option<&'a HttpDate>,
    /// Empty for none.
    pub body: &'a [u8],
}

/// Appends `response`. `head_only` answers `HEAD`: as `GET` would be answered, without the body. `Connection` is
/// always written, because an HTTP/1.0 client that asked to be kept must be told, and one of HTTP/1.1 may be.
pub fn put_response(out: &mut Vec<u8>, response: &Response<'_>, keep_alive: bool, head_only: bool) {
    // RFC 9112 6.3: these never have a body, whatever their fields say.
    let bodiless = matches!(response.status, 100..=199 | 204 | 304);
    let body = if bodiless || head_only { &[][..] } else { response.body };
    let fields: usize = response.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    out.reserve(256 + fields + body.len());

    out.extend_from_slice(b"HTTP/1.1 ");
    put_decimal(out, usize::from(response.status));
    out.push(b' ');
    out.extend_from_slice(reason_phrase(response.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut upgradable = false;
    for (name, value) in response.headers {
        upgradable |= name.eq_ignore_ascii_case("upgrade");
        put_field(out, name, value);
    }
    if let Some(date) = response.date {
        put_field(out, "Date", date.as_str());
    }
    if !bodiless {
        if let Some(content_type) = response.content_type {
            put_field(out, "Content-Type", content_type);
        }
        out.extend_from_slice(b"Content-Length: ");
        put_decimal(out, response.body.len());
        out.extend_from_slice(b"\r\n");
    }
    // Who sends Upgrade must name it in Connection (RFC 9110 7.8), also in a 426.
    out.extend_from_slice(match (keep_alive, upgradable) {
        (true, false) => b"Connection: keep-alive\r\n\r\n".as_slice(),
        (true, true) => b"Connection: keep-alive, Upgrade\r\n\r\n",
        (false, false) => b"Connection: close\r\n\r\n",
        (false, true) => b"Connection: close, Upgrade\r\n\r\n",
    });
    out.extend_from_slice(body);
}

/// Appends the answer that makes the connection a WebSocket (RFC 6455 4.2.2). `protocol` is the subprotocol selected
/// among those offered, `extensions` what of them was agreed.
pub fn put_switching_protocols(out: &mut Vec<u8>, accept: &str, protocol: Option<&str>, extensions: Option<&str>) {
    out.reserve(160 + protocol.map_or(0, str::len) + extensions.map_or(0, |value| value.len() + 32));
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    put_field(out, "Sec-WebSocket-Accept", accept);
    if let Some(protocol) = protocol {
        put_field(out, "Sec-WebSocket-Protocol", protocol);
    }
    if let Some(extensions) = extensions {
        put_field(out, "Sec-WebSocket-Extensions", extensions);
    }
    out.extend_from_slice(b"\r\n");
}

/// A time in the fixed format of RFC 9110 5.6.7, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; 29]);

impl HttpDate {
    /// From wall-clock milliseconds since 1970; a time beyond the year 9999 becomes its end.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        const LAST_SECOND: u64 = 253_402_300_799;
        let seconds = (unix_ms / 1000).min(LAST_SECOND);
        let days = seconds / 86_400;
        let (year, month, day) = civil_date(days);
        // 1970 began on a Thursday.
        let weekday = pick("ThuFriSatSunMonTueWed", days % 7);
        let month = pick("JanFebMarAprMayJunJulAugSepOctNovDec", month - 1);

        let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        text[0..3].copy_from_slice(weekday);
        text[5..7].copy_from_slice(&two_digits(day));
        text[8..11].copy_from_slice(month);
        text[12..14].copy_from_slice(&two_digits(year / 100));
        text[14..16].copy_from_slice(&two_digits(year % 100));
        text[17..19].copy_from_slice(&two_digits(seconds / 3600 % 24));
        text[20..22].copy_from_slice(&two_digits(seconds / 60 % 60));
        text[23..25].copy_from_slice(&two_digits(seconds % 60));
        Self(text)
    }

    /// The 29 characters.
    pub fn as_str(&self) -> &str {
        // Only ASCII was written.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Year, month from 1 and day from 1 of a count of days since 1970 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms"): years begin in March, so that the leap day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// The name at `index` among names of three letters.
fn pick(names: &'static str, index: u64) -> &'static [u8] {
    names.as_bytes().chunks_exact(3).nth(usize::try_from(index).unwrap_or(0)).unwrap_or(b"Thu")
}

/// `number` is below 100.
fn two_digits(number: u64) -> [u8; 2] {
    [ascii_digit(number / 10), ascii_digit(number)]
}

fn ascii_digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

fn put_field(out: &mut Vec<u8>, name: &str, value: &str) {
    if value.bytes().any(|byte| byte.is_ascii_control()) {
        return;
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_decimal(out: &mut Vec<u8>, number: usize) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut rest = number as u64;
    loop {
        start -= 1;
        digits[start] = ascii_digit(rest);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// The text behind the status; empty, which the grammar allows, for a status that the server does not use.
const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::Reject;
    use super::*;

    fn written(response: &Response<'_>, keep_alive: bool, head_only: bool) -> String {
        let mut out = Vec::new();
        put_response(&mut out, response, keep_alive, head_only);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn responses() {
        let created = Response {
            status: 201,
            headers: &[("Vary", "Origin"), ("X-Split", "a\r\nSet-Cookie: b")],
            content_type: Some("application/json"),
            date: Some(&HttpDate::from_unix_ms(784_111_777_999)),
            body: b"{\"id\":\"1\"}",
        };
        let head = "HTTP/1.1 201 Created\r\nVary: Origin\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
            Content-Type: application/json\r\nContent-Length: 10\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(written(&created, true, false), format!("{head}{{\"id\":\"1\"}}"));
        assert_eq!(written(&created, true, true), head);

        let bodiless = "HTTP/1.1 204 No Content\r\nVary: Origin\r\nConnection: close\r\n\r\n";
        let response = Response { status: 204, date: None, ..created };
        assert_eq!(written(&response, false, false), bodiless);

        let reject = Reject::with(426, "other version");
        let response =
            Response { status: reject.status, headers: reject.headers(), content_type: None, date: None, body: b"" };
        assert_eq!(
            written(&response, false, false),
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Content-Length: 0\r\nConnection: close, Upgrade\r\n\r\n"
        );
    }

    #[test]
    fn switching() {
        let mut out = Vec::new();
        put_switching_protocols(&mut out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", Some("sizland.v1"), None);
        assert_eq!(
            str::from_utf8(&out),
            Ok("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: sizland.v1\r\n\r\n")
        );
    }

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (u64::MAX / 1000, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(HttpDate::from_unix_ms(seconds * 1000).as_str(), expected);
        }
    }

    #[test]
    fn decimals() {
        for number in [0, 9, 10, 65_536, usize::MAX] {
            let mut out = Vec::new();
            put_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out), Ok(number.to_string()));
        }
    }
}
