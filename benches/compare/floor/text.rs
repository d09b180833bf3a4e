//! The little of JSON, HTTP and WebSocket that the floor reads and writes: searched for, never parsed.
//! It knows no connection.

use std::io::Write;

/// With its length a user takes 16 bytes.
const USER_BYTES: usize = 15;

/// A user's id as it stands in JSON, a string with its quotes or a number.
#[derive(Clone, Copy, Default)]
pub struct UserJson {
    bytes: [u8; USER_BYTES],
    len: u8,
}

impl UserJson {
    /// The id claimed by the token in the query, or a constant without one; nothing if it is too long.
    pub fn from_request(head: &[u8]) -> Option<Self> {
        let claims = find(head, b"token=")
            .and_then(|at| head[at..].split(|&byte| byte == b'.').nth(1))
            .map(base64_url)
            .unwrap_or_default();
        let json =
            json_field(&claims, b"\"userId\":").or_else(|| json_field(&claims, b"\"sub\":")).unwrap_or(b"\"nobody\"");
        let mut bytes = [0; USER_BYTES];
        bytes.get_mut(..json.len())?.copy_from_slice(json);
        Some(Self { bytes, len: json.len() as u8 })
    }

    pub fn json(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

pub fn begin(text: &mut Vec<u8>, kind: &[u8]) {
    text.clear();
    text.extend_from_slice(b"{\"type\":\"");
    text.extend_from_slice(kind);
    text.push(b'"');
}

pub fn begin_answer(text: &mut Vec<u8>, id: &[u8]) {
    text.clear();
    text.extend_from_slice(b"{\"id\":");
    text.extend_from_slice(id);
}

pub fn field(text: &mut Vec<u8>, name: &[u8], json: &[u8]) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name);
    text.extend_from_slice(b"\":");
    text.extend_from_slice(json);
}

pub fn field_text(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    field(text, name, b"\"");
    text.extend_from_slice(value);
    text.push(b'"');
}

pub fn end(text: &mut Vec<u8>, now_ms: u128) {
    // Writing to a vector does not fail.
    let _ = write!(text, ",\"timestamp\":{now_ms}}}");
}

pub fn push_frame(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        len @ ..126 => out.extend_from_slice(&[0x81, len as u8]),
        len @ ..65_536 => {
            out.extend_from_slice(&[0x81, 126]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.extend_from_slice(&[0x81, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(text);
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The JSON text behind `key`, which is given with quotes and colon; strings without escapes only.
pub fn json_field<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let value = &text[find(text, key)? + key.len()..];
    let len = if value.first() == Some(&b'"') {
        value[1..].iter().position(|&byte| byte == b'"')? + 2
    } else {
        value.iter().position(|&byte| byte == b',' || byte == b'}')?
    };
    Some(&value[..len])
}

/// The value of the header with this name, given in lower case; `head` ends with a line end.
pub fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        key.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

pub fn base64_url(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0_u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
