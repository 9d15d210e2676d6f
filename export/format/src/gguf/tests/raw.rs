//! Files put together by hand, with every lie a field can tell.

/// The parts of a file; sections hold whatever bytes they are given.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) magic: [u8; 4],
    pub(super) version: [u8; 4],
    pub(super) tensor_count: u64,
    pub(super) pair_count: u64,
    pub(super) pairs: Vec<u8>,
    pub(super) tensors: Vec<u8>,
    pub(super) alignment: usize,
    pub(super) data: Vec<u8>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3u32.to_le_bytes(),
            tensor_count: 0,
            pair_count: 0,
            pairs: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }
}

impl Raw {
    pub(super) fn pair(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        self.pair_count += 1;
        self.pairs.extend(text(key.as_bytes()));
        self.pairs.extend(type_id.to_le_bytes());
        self.pairs.extend(value);
        self
    }

    /// A tensor whose dimensions are in file order: the row length first.
    pub(super) fn tensor(mut self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Self {
        self.tensor_count += 1;
        self.tensors.extend(text(name.as_bytes()));
        self.tensors.extend((extents.len() as u32).to_le_bytes());
        self.tensors.extend(words(extents));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    pub(super) fn data(mut self, len: usize) -> Self {
        self.data = vec![0; len];
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = [self.magic, self.version].concat();
        out.extend(words(&[self.tensor_count, self.pair_count]));
        out.extend(&self.pairs);
        out.extend(&self.tensors);
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out.extend(&self.data);
        out
    }
}

/// A length and that many bytes.
pub(super) fn text(bytes: &[u8]) -> Vec<u8> {
    text_of_length(bytes.len() as u64, bytes)
}

/// A length and other bytes.
pub(super) fn text_of_length(length: u64, bytes: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), bytes].concat()
}

/// The value of an array pair: element type, count, elements.
pub(super) fn array(type_id: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&type_id.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

pub(super) fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
