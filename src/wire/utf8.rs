//! UTF-8 validation, whole or chunk by chunk.
//!
//! Owns the rule that a byte which can no longer become part of valid UTF-8 is reported with the chunk that brings it.
//! Keeps at most the three bytes of a character cut by the end of a chunk, and no text.

/// Whether `bytes` are UTF-8 from beginning to end.
pub fn is_valid(bytes: &[u8]) -> bool {
    // Most chat messages are short and ASCII, and below 64 bytes simdutf8 has no fast path for these.
    (bytes.len() < 64 && bytes.is_ascii()) || simdutf8::basic::from_utf8(bytes).is_ok()
}

/// The bytes seen so far are no prefix of any UTF-8 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Validates a text that arrives in chunks.
///
/// Call [`push`](Self::push) for each chunk, then ask [`is_complete`](Self::is_complete) at the end of the text. After
/// an error the validator is of no further use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    /// The beginning of a character that the last chunk cut.
    carry: [u8; 3],
    carried: u8,
}

impl Validator {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// [`Invalid`] as soon as no continuation could make the text valid.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Invalid> {
        let rest = if self.carried == 0 { chunk } else { self.complete_carry(chunk)? };
        let Err(error) = simdutf8::compat::from_utf8(rest) else {
            return Ok(());
        };
        if error.error_len().is_some() {
            return Err(Invalid);
        }
        self.keep(rest.get(error.valid_up_to()..).unwrap_or_default())
    }

    /// Whether the text may end here, that is, not within a character.
    pub fn is_complete(&self) -> bool {
        self.carried == 0
    }

    /// Finishes the carried character as far as `chunk` reaches; returns what follows it.
    fn complete_carry<'a>(&mut self, chunk: &'a [u8]) -> Result<&'a [u8], Invalid> {
        let mut character = [0; 4];
        let carried = usize::from(self.carried).min(self.carry.len());
        let width = match self.carry[0] {
            0xf0.. => 4,
            0xe0.. => 3,
            _ => 2,
        };
        let (head, rest) = chunk.split_at(chunk.len().min(width - carried));
        let len = carried + head.len();
        character[..carried].copy_from_slice(&self.carry[..carried]);
        character[carried..len].copy_from_slice(head);
        match std::str::from_utf8(&character[..len]) {
            Ok(_) => self.carried = 0,
            Err(error) if error.error_len().is_some() => return Err(Invalid),
            Err(_) => self.keep(&character[..len])?,
        }
        Ok(rest)
    }

    fn keep(&mut self, beginning: &[u8]) -> Result<(), Invalid> {
        let carry = self.carry.get_mut(..beginning.len()).ok_or(Invalid)?;
        carry.copy_from_slice(beginning);
        self.carried = beginning.len() as u8;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The index of the first byte at which byte-wise validation fails.
    fn failing_byte(bytes: &[u8]) -> Option<usize> {
        let mut validator = Validator::default();
        bytes.iter().position(|byte| validator.push(&[*byte]).is_err())
    }

    #[test]
    fn a_prefix_is_accepted_exactly_when_some_character_begins_with_it() {
        let mut prefixes = HashSet::new();
        for character in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            prefixes.extend((1..=bytes.len().min(3)).map(|len| bytes[..len].to_vec()));
        }
        let interesting = [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff];
        for a in 0x80..=0xff {
            assert_eq!(failing_byte(&[a]).is_none(), prefixes.contains(&vec![a]));
            for b in (0..=0xff).filter(|_| prefixes.contains(&vec![a])) {
                let known = prefixes.contains(&vec![a, b]);
                assert_eq!(failing_byte(&[a, b]).is_none(), known, "{a:x} {b:x}");
                for c in interesting.into_iter().filter(|_| known && a >= 0xe0) {
                    let known = prefixes.contains(&vec![a, b, c]);
                    assert_eq!(failing_byte(&[a, b, c]).is_none(), known, "{a:x} {b:x} {c:x}");
                }
            }
        }
    }

    #[test]
    fn the_byte_that_breaks_the_text_is_the_one_that_fails() {
        for (bytes, expected) in [
            (&b"plain"[..], None),
            ("äöü €uro \u{10ffff}".as_bytes(), None),
            (b"ab\xff", Some(2)),
            (b"\xc0\xaf", Some(0)),
            (b"\xe0\x80\x80", Some(1)),
            (b"\xed\xa0\x80", Some(1)),
            (b"\xf4\x90\x80\x80", Some(1)),
            (b"\xf5", Some(0)),
            (b"\xf0\x9f\x98x", Some(3)),
            (b"\x80", Some(0)),
        ] {
            assert_eq!(failing_byte(bytes), expected, "{bytes:x?}");
            assert_eq!(is_valid(bytes), expected.is_none());
        }
    }

    #[test]
    fn a_text_may_not_end_within_a_character() {
        let mut validator = Validator::default();
        for (chunk, complete) in
            [(&b"a\xf0"[..], false), (b"", false), (b"\x9f\x98", false), (b"\x80b\xc3", false), (b"\xa4", true)]
        {
            assert_eq!(validator.push(chunk), Ok(()));
            assert_eq!(validator.is_complete(), complete, "{chunk:x?}");
        }
    }

    fn text_or_noise() -> impl Strategy<Value = Vec<u8>> {
        let noise = prop::collection::vec(any::<u8>(), 0..4);
        (any::<String>(), noise, any::<String>())
            .prop_map(|(head, noise, tail)| [head.as_bytes(), &noise, tail.as_bytes()].concat())
    }

    proptest! {
        #[test]
        fn any_chunks_agree_with_std(bytes in text_or_noise(), sizes in prop::collection::vec(0usize..9, 1..40)) {
            let mut validator = Validator::default();
            let mut rest = &bytes[..];
            let mut sizes = sizes.into_iter();
            let mut valid = true;
            while valid && !rest.is_empty() {
                let (chunk, tail) = rest.split_at(sizes.next().unwrap_or(rest.len()).min(rest.len()));
                valid = validator.push(chunk).is_ok();
                rest = tail;
            }
            prop_assert_eq!(valid && validator.is_complete(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
