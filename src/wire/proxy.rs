//! What a proxy says about the client behind it: the PROXY header, versions 1 and 2, and `X-Forwarded-For`.
//!
//! The header is that of HAProxy's "The PROXY protocol", read strictly: what is not exactly in its form is refused, since
//! bytes that are not understood would otherwise become a request. Whether a peer may say anything is not known here.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use super::http::Status;

/// The longest line of version 1, with its line break.
const LINE_BYTES_MAX: usize = 107;
const LINE_BEGIN: &[u8] = b"PROXY ";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// In front of the addresses of version 2: signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// The longest header that is taken, with all that may stand behind the addresses.
pub const HEADER_BYTES_MAX: usize = 4096;

/// A whole PROXY header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProxyHeader {
    /// How many bytes it is long.
    pub bytes: usize,
    /// The client; `None` if the proxy speaks for itself, or does not know.
    pub client: Option<IpAddr>,
}

/// Reads the header that a stream begins with.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn parse_proxy_header(input: &[u8]) -> Result<Status<ProxyHeader>, &'static str> {
    let begins = |form: &[u8]| input.iter().zip(form).all(|(read, expected)| read == expected);
    if begins(LINE_BEGIN) {
        parse_line(input)
    } else if begins(SIGNATURE) {
        parse_binary(input)
    } else {
        Err("the stream does not begin with a PROXY header")
    }
}

fn parse_line(input: &[u8]) -> Result<Status<ProxyHeader>, &'static str> {
    let window = &input[..input.len().min(LINE_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() < LINE_BYTES_MAX { Ok(Status::Partial) } else { Err("the PROXY line is too long") };
    };
    let malformed = "the PROXY line is malformed";
    let line = str::from_utf8(&window[LINE_BEGIN.len()..end]).map_err(|_| malformed)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let client = match *fields.as_slice() {
        // What follows is to be ignored.
        ["UNKNOWN", ..] => None,
        ["TCP4", source, target, ref ports @ ..] => Some(IpAddr::V4(source_of::<Ipv4Addr>(source, target, ports)?)),
        ["TCP6", source, target, ref ports @ ..] => Some(IpAddr::V6(source_of::<Ipv6Addr>(source, target, ports)?)),
        _ => return Err(malformed),
    };
    Ok(Status::Complete(ProxyHeader { bytes: end + 2, client }))
}

/// The source, if all four fields are what they should be.
fn source_of<A: FromStr>(source: &str, target: &str, ports: &[&str]) -> Result<A, &'static str> {
    let is_port = |text: &&str| {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
        is_plain && text.parse::<u16>().is_ok()
    };
    match (source.parse(), target.parse::<A>()) {
        (Ok(source), Ok(_)) if ports.len() == 2 && ports.iter().all(is_port) => Ok(source),
        _ => Err("the addresses of the PROXY line are malformed"),
    }
}

fn parse_binary(input: &[u8]) -> Result<Status<ProxyHeader>, &'static str> {
    let Some(fixed) = input.first_chunk::<FIXED_BYTES>() else { return Ok(Status::Partial) };
    let [.., version_and_command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let bytes = FIXED_BYTES + length;
    if version_and_command >> 4 != 2 {
        return Err("the version of the PROXY header is not 1 or 2");
    }
    if bytes > HEADER_BYTES_MAX {
        return Err("the PROXY header is too long");
    }
    let Some(body) = input.get(FIXED_BYTES..bytes) else { return Ok(Status::Partial) };
    let short = "the PROXY header is too short for its addresses";
    let client = match (version_and_command & 0xf, family) {
        // LOCAL, and families that have no address of the Internet: the connection is from who it seems to be from.
        (0, _) | (1, 0x00 | 0x31) => None,
        (1, 0x11) if length >= 12 => body.first_chunk::<4>().map(|source| IpAddr::from(*source)),
        (1, 0x21) if length >= 36 => body.first_chunk::<16>().map(|source| IpAddr::from(*source)),
        (1, 0x11 | 0x21) => return Err(short),
        (1, _) => return Err("the PROXY header is not about a stream"),
        _ => return Err("the command of the PROXY header is neither LOCAL nor PROXY"),
    };
    Ok(Status::Complete(ProxyHeader { bytes, client }))
}

/// The client according to the elements of `X-Forwarded-For`, in their order: the rightmost address that is no trusted
/// proxy. Each proxy appends who it was asked by, so what stands to the left of that is only what the client claims.
/// Behind an element that is no address nothing can be known; then it is the proxy that wrote it. `None` if the field
/// says nothing.
pub fn forwarded_client<'a>(
    elements: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let mut client = None;
    for element in elements.rev() {
        let Some(address) = forwarded_address(element) else { break };
        client = Some(address);
        if !is_trusted(address) {
            break;
        }
    }
    client
}

/// An address, which some proxies write with the port, and IPv6 then in brackets.
fn forwarded_address(element: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(element).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let with_port = text.parse::<core::net::SocketAddr>().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    with_port.ok().or_else(in_brackets).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(input: &[u8]) -> (usize, Option<String>) {
        match parse_proxy_header(input) {
            Ok(Status::Complete(header)) => (header.bytes, header.client.map(|client| client.to_string())),
            other => panic!("{:?}: {other:?}", input.escape_ascii().to_string()),
        }
    }

    /// A header of version 2.
    fn binary(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([version_and_command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn lines_of_version_1() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Some("192.0.2.1")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255")),
            ("PROXY TCP6 2001:db8::1 ::1 0 1\r\n", Some("2001:db8::1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        ] {
            let input = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(complete(input.as_bytes()), (line.len(), client.map(str::to_owned)), "{line}");
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        assert_eq!(complete(longest.as_bytes()), (LINE_BYTES_MAX, None));
    }

    #[test]
    fn headers_of_version_2() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 1, 2, 1, 2];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        let with_more = [&four[..], &[4, 0, 3, 1, 2, 3]].concat();
        for (header, client) in [
            (binary(0x21, 0x11, &four), Some("192.0.2.1")),
            (binary(0x21, 0x11, &with_more), Some("192.0.2.1")),
            (binary(0x21, 0x21, &six), Some("2001:db8::")),
            (binary(0x20, 0x11, &four), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x20, 0x00, &[0; HEADER_BYTES_MAX - FIXED_BYTES]), None),
        ] {
            let input = [&header[..], b"\x16\x03\x01"].concat();
            assert_eq!(complete(&input), (header.len(), client.map(str::to_owned)), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_shows() {
        let wrong_version = binary(0x11, 0x11, &[0; 12]);
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        let too_long_binary = binary(0x21, 0x11, &[0; HEADER_BYTES_MAX - FIXED_BYTES + 1]);
        for bad in [
            &b"G"[..],
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01",
            b"\r\nx",
            b"PROXY_",
            b"PROXY \r\n",
            b"PROXY TCP4\r\n",
            b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xff\r\n",
            b"PROXY UNKNOWNX\r\n",
            too_long.as_bytes(),
            &wrong_version,
            &too_long_binary,
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x21, 0x12, &[0; 12]),
            &binary(0x21, 0x99, &[0; 12]),
            &binary(0x22, 0x11, &[0; 12]),
        ] {
            assert!(parse_proxy_header(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn the_client_is_the_rightmost_that_no_trusted_proxy_is() {
        let is_trusted = |address: IpAddr| address.to_string().starts_with("10.") || address.to_string() == "::1";
        for (field, client) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("198.51.100.9, 192.0.2.1, 10.0.0.2", Some("192.0.2.1")),
            ("6.6.6.6,192.0.2.1", Some("192.0.2.1")),
            ("10.0.0.3, 10.0.0.2", Some("10.0.0.3")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]:443, ::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("6.6.6.6, unknown, 10.0.0.2", Some("10.0.0.2")),
            ("6.6.6.6, _hidden", None),
            ("6.6.6.6 7.7.7.7", None),
            ("", None),
        ] {
            let found = forwarded_client(field.split(',').map(|one| one.trim().as_bytes()), is_trusted);
            assert_eq!(found.map(|address| address.to_string()).as_deref(), client, "{field}");
        }
    }

    fn header() -> impl Strategy<Value = Vec<u8>> {
        let line = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u16>(), any::<u16>()).prop_map(|(a, b, from, to)| {
            format!("PROXY TCP4 {} {} {from} {to}\r\n", Ipv4Addr::from(a), Ipv4Addr::from(b)).into_bytes()
        });
        let family = prop_oneof![Just(0x11), Just(0x21), Just(0x00), Just(0x31)];
        let body = prop::collection::vec(any::<u8>(), 36..300);
        prop_oneof![
            line,
            (0x20_u8..0x22, family, body).prop_map(|(command, family, body)| binary(command, family, &body))
        ]
    }

    proptest! {
        #[test]
        fn a_header_that_comes_in_parts_is_partial_until_it_is_whole(header in header(), more in any::<[u8; 4]>()) {
            for length in 0..header.len() {
                prop_assert_eq!(parse_proxy_header(&header[..length]), Ok(Status::Partial));
            }
            let whole = parse_proxy_header(&header);
            prop_assert!(matches!(whole, Ok(Status::Complete(found)) if found.bytes == header.len()));
            prop_assert_eq!(whole, parse_proxy_header(&[&header[..], &more].concat()));
        }

        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..300), form in 0_usize..3) {
            let begin = [&b""[..], LINE_BEGIN, &SIGNATURE[..]][form];
            let input = [begin, &bytes[..]].concat();
            if let Ok(Status::Complete(header)) = parse_proxy_header(&input) {
                prop_assert!(header.bytes <= input.len() && header.bytes <= HEADER_BYTES_MAX);
            }
        }
    }
}
