//! Keys and values of the tokens seen so far, in f32, growing as needed, laid out as attention
//! reads them (`bitnet_kernels::attention`).

use bitnet_format::ModelSpec;
use bitnet_kernels::attention::{HeadView, LANES};

/// The context of one sequence.
///
/// Invariant: every layer holds keys and values for exactly `len` tokens between two calls.
#[derive(Clone, Debug)]
pub struct KvCache {
    len: usize,
    layers: Vec<LayerCache>,
}

/// Keys (already turned by RoPE) and values of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    heads: usize,
    width: usize,
    /// Blocks of sixteen tokens: `[blocks, heads, D, 16]`.
    keys: Vec<f32>,
    /// `[T, heads, padded D]`
    values: Vec<f32>,
}

impl LayerCache {
    pub(crate) fn new(heads: usize, width: usize) -> Self {
        Self { heads, width, keys: Vec::new(), values: Vec::new() }
    }

    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.values.len() / self.token()
    }

    /// Appends one token's keys and values, each `[heads · D]`.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        let (block, lane) = (self.len() / LANES, self.len() % LANES);
        let start = block * self.block();
        self.keys.resize(self.keys.len().max(start + self.block()), 0.0);
        for (column, key) in self.keys[start..].chunks_exact_mut(LANES).zip(keys) {
            column[lane] = *key;
        }
        let padding = self.width.next_multiple_of(LANES) - self.width;
        for value in values.chunks_exact(self.width) {
            self.values.extend_from_slice(value);
            self.values.extend(std::iter::repeat_n(0.0, padding));
        }
    }

    /// One head, as attention reads it.
    pub(crate) fn head(&self, head: usize) -> HeadView<'_> {
        let padded = self.width.next_multiple_of(LANES);
        let keys = self.keys.get(head * LANES * self.width..).unwrap_or_default();
        let values = self.values.get(head * padded..).unwrap_or_default();
        let (block, token, width) = (self.block(), self.token(), self.width);
        HeadView { keys, block, values, token, width }
    }

    /// Floats of a block of keys.
    fn block(&self) -> usize {
        LANES * self.heads * self.width
    }

    /// Floats of a token's values.
    fn token(&self) -> usize {
        self.heads * self.width.next_multiple_of(LANES)
    }

    /// A key that is no longer seen stays in its block until another takes its place.
    fn truncate(&mut self, len: usize) {
        self.values.truncate(len * self.token());
        self.keys.truncate(len.div_ceil(LANES) * self.block());
    }
}

impl KvCache {
    /// An empty context for a model of this shape.
    pub fn new(spec: &ModelSpec) -> Self {
        let layer = LayerCache::new(spec.num_key_value_heads, spec.head_dim);
        Self { len: 0, layers: vec![layer; spec.num_hidden_layers] }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.layers.iter_mut().for_each(|layer| layer.truncate(self.len));
    }

    /// The layers, for a model of this shape.
    pub(crate) fn layers_of(&mut self, spec: &ModelSpec) -> &mut [LayerCache] {
        let fits = |layer: &LayerCache| {
            (layer.heads, layer.width) == (spec.num_key_value_heads, spec.head_dim)
        };
        let layers = self.layers.len() == spec.num_hidden_layers;
        assert!(layers && self.layers.iter().all(fits), "a cache made for this model");
        &mut self.layers
    }

    /// States that every layer took `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
