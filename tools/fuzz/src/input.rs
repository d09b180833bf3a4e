//! Decisions read from a fuzzer's bytes. What is not there is 0, so every input is a valid one.

/// The bytes that are left.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Where a stream is cut: a count below 16 and so many sizes, of which 0 means an empty piece.
#[derive(Clone, Copy, Debug)]
pub struct Splits<'a>(&'a [u8]);

impl<'a> Splits<'a> {
    /// Reads the cuts from the input.
    pub fn read(input: &mut Input<'a>) -> Self {
        let count = input.below(16);
        Self(input.bytes(count))
    }

    /// The pieces of `stream`, of which the last is all that is left.
    pub fn pieces(self, stream: &[u8]) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(stream);
        let mut sizes = self.0.iter();
        std::iter::from_fn(move || {
            let stream = rest?;
            let Some(&size) = sizes.next() else { return rest.take() };
            let (piece, behind) = stream.split_at(usize::from(size).min(stream.len()));
            rest = Some(behind);
            Some(piece)
        })
    }
}
