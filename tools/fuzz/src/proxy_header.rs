//! What proxies say about clients: whole or in pieces the same, never longer than it may be, and only addresses that stand
//! in it.
//!
//! Input: one byte for what it is, then a stream that begins with a PROXY header, or the value of `X-Forwarded-For`.

use std::net::{IpAddr, Ipv4Addr};

use sizland_chat::wire::http::Status;
use sizland_chat::wire::proxy::{HEADER_BYTES_MAX, ProxyHeader, forwarded_client, parse_proxy_header};

/// Reads the header, or the field.
pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => check_header(data),
        1 => check_header(&[b"PROXY ", data].concat()),
        2 => check_header(&[b"\r\n\r\n\0\r\nQUIT\n", data].concat()),
        _ => check_forwarded(data),
    }
}

fn check_header(stream: &[u8]) {
    let whole = parse_proxy_header(stream);
    match &whole {
        Ok(Status::Complete(header)) => {
            assert!((1..=HEADER_BYTES_MAX).contains(&header.bytes) && header.bytes <= stream.len());
            // What stands behind it changes nothing, and without its last byte it is not whole.
            assert_eq!(complete(&stream[..header.bytes]), Some(*header));
            assert!(matches!(parse_proxy_header(&stream[..header.bytes - 1]), Ok(Status::Partial)));
            check_client(&stream[..header.bytes], header.client);
        }
        Ok(Status::Partial) => assert!(stream.len() < HEADER_BYTES_MAX, "nobody is waited for without end"),
        Err(reason) => assert!(!reason.is_empty()),
    }
    // Once refused, no further byte makes it good, and once whole it stays so.
    for end in 0..stream.len().min(300) {
        match parse_proxy_header(&stream[..end]) {
            Ok(Status::Partial) => {}
            Ok(Status::Complete(header)) => {
                assert_eq!(complete(stream), Some(header));
                break;
            }
            Err(_) => {
                assert!(whole.is_err());
                break;
            }
        }
    }
}

fn complete(stream: &[u8]) -> Option<ProxyHeader> {
    match parse_proxy_header(stream) {
        Ok(Status::Complete(header)) => Some(header),
        _ => None,
    }
}

/// The client stands in the header, as text or as bytes.
fn check_client(header: &[u8], client: Option<IpAddr>) {
    let Some(client) = client else { return };
    if header.starts_with(b"PROXY ") {
        let line = String::from_utf8_lossy(header);
        assert_eq!(line.split(' ').nth(2).and_then(|source| source.parse().ok()), Some(client), "{line}");
    } else {
        match client {
            IpAddr::V4(address) => assert_eq!(header[16..20], address.octets()),
            IpAddr::V6(address) => assert_eq!(header[16..32], address.octets()),
        }
    }
}

/// Proxies are those in 10.0.0.0/8.
fn check_forwarded(value: &[u8]) {
    let is_trusted = |address: IpAddr| matches!(address, IpAddr::V4(address) if address.octets()[0] == 10);
    let client = |value: &[u8]| forwarded_client(value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii), is_trusted);
    let found = client(value);
    assert!(found.is_none_or(|address| address == address.to_canonical()));
    // What a client claims stands to the left, and is looked at only if all who are to the right are trusted.
    let spoofed = [b"203.0.113.9, ".as_slice(), value].concat();
    let changed = client(&spoofed) != found;
    assert!(!changed || found.is_none_or(is_trusted), "{}", value.escape_ascii());
    let appended = [value, b", 198.51.100.7"].concat();
    assert_eq!(client(&appended), Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7))));
}
