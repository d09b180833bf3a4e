//! Frames of ours, as a client reads them.

/// The first byte and the payload of the frame at the start, once it is whole, and what is behind it.
pub fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, short], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match short {
        0..126 => (usize::from(short), rest),
        126 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (u16::from_be_bytes(length).into(), rest)
        }
        127 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(length)).ok()?, rest)
        }
        _ => panic!("a server does not mask"),
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    Some((first, payload, rest))
}
