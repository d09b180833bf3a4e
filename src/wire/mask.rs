//! Masking of WebSocket payloads (RFC 6455, section 5.3).
//!
//! Owns the one loop that touches every byte a client sends. Knows nothing about frames: whoever reads a payload in
//! several pieces turns the key between them with [`rotated`].

/// Masks or unmasks `payload` in place; the first byte meets `key[0]`. The operation is its own inverse.
pub fn apply(key: [u8; 4], payload: &mut [u8]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    // A word holds the key exactly twice, so the tail starts at `key[0]` again.
    for (byte, mask) in tail.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

/// The key as it applies `taken` bytes further into the same payload.
pub fn rotated(mut key: [u8; 4], taken: usize) -> [u8; 4] {
    key.rotate_left(taken % 4);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(key: [u8; 4], payload: &[u8]) -> Vec<u8> {
        (payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4])).collect()
    }

    #[test]
    fn every_short_length_at_every_alignment_agrees_with_the_naive_loop() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let source: Vec<u8> = (0..=255).collect();
        for start in 0..9 {
            for len in 0..80 {
                let mut buffer = source.clone();
                apply(key, &mut buffer[start..start + len]);
                assert_eq!(buffer[start..start + len], naive(key, &source[start..start + len]));
                assert_eq!(buffer[..start], source[..start]);
                assert_eq!(buffer[start + len..], source[start + len..]);
            }
        }
    }

    #[test]
    fn rotation_is_by_the_bytes_taken() {
        assert_eq!(rotated([1, 2, 3, 4], 0), [1, 2, 3, 4]);
        assert_eq!(rotated([1, 2, 3, 4], 1), [2, 3, 4, 1]);
        assert_eq!(rotated([1, 2, 3, 4], 7), [4, 1, 2, 3]);
        assert_eq!(rotated([1, 2, 3, 4], usize::MAX), [4, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn pieces_agree_with_the_naive_loop(
            key: [u8; 4],
            payload in prop::collection::vec(any::<u8>(), 0..600),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(payload.len() + 1);
            let mut masked = payload.clone();
            let (head, tail) = masked.split_at_mut(cut);
            apply(key, head);
            apply(rotated(key, cut), tail);
            prop_assert_eq!(&masked, &naive(key, &payload));
            apply(key, &mut masked);
            prop_assert_eq!(masked, payload);
        }
    }
}
