//! The KV cache: keys and values of the tokens seen so far, laid out as attention reads them.
//!
//! Keys of a head lie transposed in blocks of sixteen tokens, so that one vector holds one element of
//! sixteen keys; values lie token after token, padded to whole vectors:
//!
//! ```text
//! keys    block 0: [ k₀[0] … k₁₅[0] | k₀[1] … k₁₅[1] | … | k₀[D-1] … k₁₅[D-1] ]  block 1: …
//! values  [ v₀[0] … v₀[D-1] pad ] [ v₁[0] … v₁[D-1] pad ] …
//! ```
//!
//! A new token writes one lane of the last key block and appends one row of values.

use bitnet_format::ModelSpec;
use bitnet_kernels::attention::{Element, HeadView, LANES};
use half::f16;

/// The number format of cached keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePrecision {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to half precision: half the memory, and logits that differ a little.
    F16,
}

/// The context of one sequence.
///
/// Invariant: every layer holds keys and values for exactly `len` tokens between two calls.
#[derive(Clone, Debug)]
pub struct KvCache {
    len: usize,
    layers: Vec<LayerCache>,
}

/// Keys (rotated already) and values of one layer.
#[derive(Clone, Debug)]
pub(crate) enum LayerCache {
    F32(KvBuffer<f32>),
    F16(KvBuffer<f16>),
}

/// Keys and values of some heads, each in one linear stream.
#[derive(Clone, Debug)]
pub(crate) struct KvBuffer<E> {
    len: usize,
    width: usize,
    heads: Vec<HeadBuffer<E>>,
}

#[derive(Clone, Debug)]
struct HeadBuffer<E> {
    /// `[blocks, D, 16]`
    keys: Vec<E>,
    /// `[T, padded D]`
    values: Vec<E>,
}

impl<E: Element> KvBuffer<E> {
    pub(crate) fn new(heads: usize, width: usize) -> Self {
        let head = HeadBuffer { keys: Vec::new(), values: Vec::new() };
        Self { len: 0, width, heads: vec![head; heads] }
    }

    /// Number of cached tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends one token's keys and values, each `[heads · D]`.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        let zero = E::nearest(0.0);
        let (block, lane) = (self.len / LANES, self.len % LANES);
        let (values_end, keys_end) = ((self.len + 1) * self.padded(), (block + 1) * self.block());
        let width = self.width;
        let new = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (head, (keys, values)) in self.heads.iter_mut().zip(new) {
            head.keys.resize(keys_end, zero);
            let columns = head.keys[block * LANES * width..].chunks_exact_mut(LANES);
            for (column, key) in columns.zip(keys) {
                column[lane] = E::nearest(*key);
            }
            head.values.extend(values.iter().map(|value| E::nearest(*value)));
            head.values.resize(values_end, zero);
        }
        self.len += 1;
    }

    /// One head, as attention reads it.
    pub(crate) fn head(&self, head: usize) -> HeadView<'_, E> {
        let HeadBuffer { keys, values } = &self.heads[head];
        HeadView { keys, values, width: self.width }
    }

    /// Elements of a block of keys.
    fn block(&self) -> usize {
        LANES * self.width
    }

    /// Elements of a token's values.
    fn padded(&self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    /// A key that is no longer seen stays in its block until another takes its place.
    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let (keys, values) = (self.len.div_ceil(LANES) * self.block(), self.len * self.padded());
        for head in &mut self.heads {
            head.keys.truncate(keys);
            head.values.truncate(values);
        }
    }

    /// A copy of the first `len` tokens, with no more memory than they take.
    fn prefix(&self, len: usize) -> Self {
        let len = self.len.min(len);
        let (keys, values) = (len.div_ceil(LANES) * self.block(), len * self.padded());
        let first = |head: &HeadBuffer<E>| HeadBuffer {
            keys: head.keys[..keys].to_vec(),
            values: head.values[..values].to_vec(),
        };
        Self { len, width: self.width, heads: self.heads.iter().map(first).collect() }
    }

    fn shrink_to(&mut self, len: usize) {
        let (keys, values) = (len.div_ceil(LANES) * self.block(), len * self.padded());
        for head in &mut self.heads {
            head.keys.shrink_to(keys);
            head.values.shrink_to(values);
        }
    }

    fn reserve(&mut self, len: usize) {
        let (keys, values) = (len.div_ceil(LANES) * self.block(), len * self.padded());
        for head in &mut self.heads {
            head.keys.reserve_exact(keys.saturating_sub(head.keys.len()));
            head.values.reserve_exact(values.saturating_sub(head.values.len()));
        }
    }
}

impl LayerCache {
    fn new(precision: CachePrecision, heads: usize, width: usize) -> Self {
        match precision {
            CachePrecision::F32 => Self::F32(KvBuffer::new(heads, width)),
            CachePrecision::F16 => Self::F16(KvBuffer::new(heads, width)),
        }
    }

    /// Appends one token's keys and values, each `[heads · D]`.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        match self {
            Self::F32(buffer) => buffer.push(keys, values),
            Self::F16(buffer) => buffer.push(keys, values),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::F32(buffer) => buffer.truncate(len),
            Self::F16(buffer) => buffer.truncate(len),
        }
    }

    fn prefix(&self, len: usize) -> Self {
        match self {
            Self::F32(buffer) => Self::F32(buffer.prefix(len)),
            Self::F16(buffer) => Self::F16(buffer.prefix(len)),
        }
    }

    fn reserve(&mut self, len: usize) {
        match self {
            Self::F32(buffer) => buffer.reserve(len),
            Self::F16(buffer) => buffer.reserve(len),
        }
    }

    fn shrink_to(&mut self, len: usize) {
        match self {
            Self::F32(buffer) => buffer.shrink_to(len),
            Self::F16(buffer) => buffer.shrink_to(len),
        }
    }

    fn fits(&self, spec: &ModelSpec) -> bool {
        let shape = match self {
            Self::F32(buffer) => (buffer.heads.len(), buffer.width),
            Self::F16(buffer) => (buffer.heads.len(), buffer.width),
        };
        shape == (spec.num_key_value_heads, spec.head_dim)
    }
}

impl KvCache {
    /// An empty context in f32 for a model of this shape.
    pub fn new(spec: &ModelSpec) -> Self {
        Self::with_precision(spec, CachePrecision::F32)
    }

    /// An empty context for a model of this shape.
    pub fn with_precision(spec: &ModelSpec, precision: CachePrecision) -> Self {
        let layer = LayerCache::new(precision, spec.num_key_value_heads, spec.head_dim);
        Self { len: 0, layers: vec![layer; spec.num_hidden_layers] }
    }

    /// Number of cached tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.layers.iter_mut().for_each(|layer| layer.truncate(self.len));
    }

    /// A copy of the first `len` tokens: what another sequence with the same beginning goes on from.
    #[must_use]
    pub fn prefix(&self, len: usize) -> Self {
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.prefix(len)).collect();
        Self { len: self.len.min(len), layers }
    }

    /// Bytes that `tokens` tokens take in a cache for a model of this shape.
    pub fn bytes_for(spec: &ModelSpec, precision: CachePrecision, tokens: usize) -> usize {
        let element = match precision {
            CachePrecision::F32 => size_of::<f32>(),
            CachePrecision::F16 => size_of::<f16>(),
        };
        let (keys, values) = (spec.head_dim, spec.head_dim.next_multiple_of(LANES));
        let elements = tokens.next_multiple_of(LANES) * keys + tokens * values;
        elements * element * spec.num_key_value_heads * spec.num_hidden_layers
    }

    /// Reserves memory for `len` tokens in all, so that adding one allocates nothing. Pages are touched
    /// only when a token comes.
    pub fn reserve(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.reserve(len));
    }

    /// Gives back memory that was reserved for more than `len` tokens and is not used.
    pub fn shrink_to(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.shrink_to(len));
    }

    /// Whether this cache was made for a model of that shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        self.layers.len() == spec.num_hidden_layers
            && self.layers.iter().all(|layer| layer.fits(spec))
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// States that every layer took `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
