//! Keys and values of the tokens seen so far, in f32, growing as needed.

use bitnet_format::ModelSpec;

/// The context of one sequence.
///
/// Invariant: every layer holds keys and values for exactly `len` tokens between two calls.
#[derive(Clone, Debug)]
pub struct KvCache {
    width: usize,
    len: usize,
    layers: Vec<LayerCache>,
}

/// Keys (already turned by RoPE) and values of one layer, each `[T, kv heads · D]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl KvCache {
    /// An empty context for a model of this shape.
    pub fn new(spec: &ModelSpec) -> Self {
        let layers = vec![LayerCache::default(); spec.num_hidden_layers];
        Self { width: spec.key_value_width(), len: 0, layers }
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
        for layer in &mut self.layers {
            layer.keys.truncate(self.len * self.width);
            layer.values.truncate(self.len * self.width);
        }
    }

    /// The layers, for a model of this shape.
    pub(crate) fn layers_of(&mut self, spec: &ModelSpec) -> &mut [LayerCache] {
        let shape = (spec.num_hidden_layers, spec.key_value_width());
        assert_eq!((self.layers.len(), self.width), shape, "a cache made for this model");
        &mut self.layers
    }

    /// States that every layer took `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
