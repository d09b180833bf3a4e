//! The body of an HTTP/1.1 request: how its end is found, and the chunked coding (RFC 9112 6 and 7).
//!
//! Owns what decides where one request ends and the next begins. Knows nothing of sockets, buffers' owners or routes.
//! Anything that another parser on the way might read differently is refused, never repaired.
//!
//! Invariants: of `Content-Length` and `Transfer-Encoding` at most one counts; the decoder gives the same result for
//! every split of its input, never hands out more than the limit, and never consumes a byte behind the body.

use std::str;

use super::http::{BodyLength, Framing, Head, Limits, Reject, is_token, is_token_byte};

/// Bytes between a chunk's size and the end of its line.
const EXTENSION_BYTES_MAX: usize = 256;

/// Bytes of chunk extensions over a whole body; without it, chunks of one byte could carry them at 256 to 1.
const EXTENSIONS_BYTES_MAX: usize = 16 * 1024;

/// Bytes of all trailer lines together.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Hexadecimal digits of a chunk size, leading zeros included.
const SIZE_DIGITS_MAX: u8 = 16;

/// Decides how the request is delimited. `raw` is the head's bytes from the start of the input.
pub(super) fn framing(head: &Head<'_>, raw: &[u8], limits: &Limits) -> Result<Framing, Reject> {
    let coding = transfer_encoding(head, raw)?;
    let length = content_length(head)?;
    let body = match (coding, length) {
        (Coding::None, None) => BodyLength::None,
        (Coding::None, Some(length)) => match usize::try_from(length) {
            Ok(length) if length <= limits.body_bytes_max => BodyLength::Length(length),
            _ => return Err(Reject::with(413, "request body too large")),
        },
        (_, Some(_)) => {
            return Err(Reject::bad("both Content-Length and Transfer-Encoding are present"));
        }
        (Coding::Chunked, None) => BodyLength::Chunked,
        (Coding::Unknown, None) => {
            return Err(Reject::with(501, "transfer coding not implemented"));
        }
    };
    let awaits = expects_continue(head)?;
    Ok(Framing {
        head_len: raw.len(),
        body,
        expect_continue: awaits && !matches!(body, BodyLength::None | BodyLength::Length(0)),
        keep_alive: keep_alive(head),
    })
}

enum Coding {
    None,
    Chunked,
    /// Well-formed and ending in `chunked`, with something before it that we do not implement.
    Unknown,
}

fn transfer_encoding(head: &Head<'_>, raw: &[u8]) -> Result<Coding, Reject> {
    let mut codings = 0;
    let mut chunked = 0;
    let mut ends_in_chunked = false;
    for value in head.header_values("transfer-encoding") {
        if !stands_plainly(raw, value) {
            return Err(Reject::bad("malformed Transfer-Encoding"));
        }
        for coding in value.split(|byte| *byte == b',') {
            let coding = coding.trim_ascii();
            let name = coding.split(|byte| *byte == b';').next().unwrap_or(coding);
            if !is_token(name.trim_ascii()) {
                return Err(Reject::bad("malformed Transfer-Encoding"));
            }
            ends_in_chunked = coding.eq_ignore_ascii_case(b"chunked");
            chunked += usize::from(ends_in_chunked);
            codings += 1;
        }
    }
    if codings == 0 {
        return Ok(Coding::None);
    }
    if head.minor_version == 0 {
        return Err(Reject::bad("Transfer-Encoding in HTTP/1.0"));
    }
    if !ends_in_chunked || chunked != 1 {
        return Err(Reject::bad("Transfer-Encoding must end in one chunked"));
    }
    Ok(if codings == 1 { Coding::Chunked } else { Coding::Unknown })
}

/// Whether nothing but one optional space stands around the value. More is legal, but a parser on the way that does
/// not trim it would not see `chunked`, and no client has a reason to send it.
fn stands_plainly(raw: &[u8], value: &[u8]) -> bool {
    let Some(start) = value.as_ptr().addr().checked_sub(raw.as_ptr().addr()) else {
        return false;
    };
    let Some((before, rest)) = raw.split_at_checked(start) else {
        return false;
    };
    (before.ends_with(b":") || before.ends_with(b": "))
        && rest.get(value.len()..).is_some_and(|behind| behind.starts_with(b"\r\n"))
}

/// One field of digits only. Two equal ones may be merged by the grammar (RFC 9110 8.6); they are refused all the same.
fn content_length(head: &Head<'_>) -> Result<Option<u64>, Reject> {
    let mut values = head.header_values("content-length");
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Reject::bad("more than one Content-Length"));
    }
    // The integer parser would take a plus sign.
    let digits = value.iter().all(u8::is_ascii_digit);
    let length = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    match length {
        Some(length) if digits => Ok(Some(length)),
        _ => Err(Reject::bad("invalid Content-Length")),
    }
}

/// RFC 9110 10.1.1: an HTTP/1.0 client cannot be asked to go on, so there the field is ignored.
fn expects_continue(head: &Head<'_>) -> Result<bool, Reject> {
    if head.minor_version == 0 {
        return Ok(false);
    }
    let mut awaits = false;
    for expectation in head.list("expect") {
        if !expectation.eq_ignore_ascii_case(b"100-continue") {
            return Err(Reject::with(417, "expectation cannot be met"));
        }
        awaits = true;
    }
    Ok(awaits)
}

/// RFC 9112 9.3; `close` wins over `keep-alive`.
fn keep_alive(head: &Head<'_>) -> bool {
    !head.list_has("connection", "close") && (head.minor_version == 1 || head.list_has("connection", "keep-alive"))
}

/// Decodes one chunked body (RFC 9112 7.1), split in any way over calls.
///
/// Trailer fields are checked like header fields and dropped (RFC 9110 6.5.1). After an error or the end of the body
/// the decoder is of no further use.
#[derive(Clone, Debug, Default)]
pub struct ChunkedDecoder {
    state: State,
    /// What is left of the chunk under way; while its size is read, the size so far.
    remaining: u64,
    /// Bytes handed out so far.
    decoded: usize,
    digits: u8,
    /// Bytes of the extension on this line.
    line_extension: usize,
    /// Bytes of extensions in the whole body.
    extensions: usize,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// Whitespace behind the size, which only an extension may follow.
    BeforeExtension,
    /// Behind a semicolon: the name of the extension must begin.
    ExtensionStart,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Done,
}

impl ChunkedDecoder {
    /// A decoder at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes what `input` holds and appends it to `out`. Returns the bytes consumed, which end with the body, and
    /// whether the body is complete; while it is not, all of `input` is consumed. The limit counts decoded bytes.
    ///
    /// # Errors
    /// 413 as soon as a size leads above `body_bytes_max`, 431 for too many trailer bytes, 400 for bad syntax.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>, body_bytes_max: usize) -> Result<(usize, bool), Reject> {
        let mut rest = input;
        while self.state != State::Done {
            if self.state == State::Data {
                rest = self.take_data(rest, out);
                if self.state == State::Data {
                    break;
                }
            }
            let Some((byte, behind)) = rest.split_first() else {
                break;
            };
            rest = behind;
            self.state = self.step(*byte, body_bytes_max)?;
        }
        Ok((input.len() - rest.len(), self.state == State::Done))
    }

    fn take_data<'i>(&mut self, input: &'i [u8], out: &mut Vec<u8>) -> &'i [u8] {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let (data, rest) = input.split_at(wanted.min(input.len()));
        out.extend_from_slice(data);
        self.decoded += data.len();
        self.remaining -= data.len() as u64;
        if self.remaining == 0 {
            self.state = State::DataReturn;
        }
        rest
    }

    /// Takes one byte that is not data and returns the state behind it.
    fn step(&mut self, byte: u8, body_bytes_max: usize) -> Result<State, Reject> {
        match (self.state, byte) {
            (State::Size, _) => self.size(byte, body_bytes_max),
            (State::BeforeExtension | State::ExtensionStart | State::Extension, _) => self.extension(byte),
            (State::SizeLineFeed, b'\n') => Ok(self.after_size()),
            (State::DataReturn, b'\r') => Ok(State::DataLineFeed),
            (State::DataLineFeed, b'\n') => {
                self.digits = 0;
                Ok(State::Size)
            }
            (State::TrailerStart, b'\r') => Ok(State::LastLineFeed),
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => self.trailer(byte),
            (State::TrailerLineFeed, b'\n') => Ok(State::TrailerStart),
            (State::LastLineFeed, b'\n') => Ok(State::Done),
            (State::DataReturn | State::DataLineFeed, _) => Err(Reject::bad("chunk is longer than its size")),
            (_, _) => Err(Reject::bad("malformed line end in chunked body")),
        }
    }

    fn size(&mut self, byte: u8, body_bytes_max: usize) -> Result<State, Reject> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return match byte {
                _ if self.digits == 0 => Err(Reject::bad("invalid chunk size")),
                b'\r' => Ok(State::SizeLineFeed),
                b';' | b' ' | b'\t' => {
                    self.line_extension = 0;
                    self.state = State::BeforeExtension;
                    self.extension(byte)
                }
                _ => Err(Reject::bad("invalid chunk size")),
            };
        };
        if self.digits == SIZE_DIGITS_MAX {
            return Err(Reject::bad("chunk size has too many digits"));
        }
        self.digits += 1;
        self.remaining = (self.remaining << 4) | u64::from(digit);
        let allowed = body_bytes_max.saturating_sub(self.decoded) as u64;
        if self.remaining > allowed {
            return Err(Reject::with(413, "request body too large"));
        }
        Ok(State::Size)
    }

    fn extension(&mut self, byte: u8) -> Result<State, Reject> {
        self.line_extension += 1;
        self.extensions += 1;
        let blank = matches!(byte, b' ' | b'\t');
        match (self.state, byte) {
            (State::Extension, b'\r') => Ok(State::SizeLineFeed),
            _ if self.line_extension > EXTENSION_BYTES_MAX || self.extensions > EXTENSIONS_BYTES_MAX => {
                Err(Reject::bad("chunk extension too long"))
            }
            (State::BeforeExtension, b';') => Ok(State::ExtensionStart),
            (State::BeforeExtension | State::ExtensionStart, _) if blank => Ok(self.state),
            (State::ExtensionStart, _) if is_token_byte(byte) => Ok(State::Extension),
            (State::Extension, _) if is_field_byte(byte) => Ok(State::Extension),
            _ => Err(Reject::bad("malformed chunk extension")),
        }
    }

    fn after_size(&mut self) -> State {
        if self.remaining == 0 { State::TrailerStart } else { State::Data }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, Reject> {
        self.trailers += 1;
        if self.trailers > TRAILER_BYTES_MAX {
            return Err(Reject::with(431, "trailers too large"));
        }
        match (self.state, byte) {
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLineFeed),
            (State::TrailerValue, _) if is_field_byte(byte) => Ok(State::TrailerValue),
            _ => Err(Reject::bad("malformed trailer")),
        }
    }
}

/// What may stand in a field value: visible, space, tab, or above ASCII.
const fn is_field_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}
