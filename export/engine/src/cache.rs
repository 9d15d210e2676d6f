//! The KV cache: keys and values of the tokens seen so far, in pages that sequences share.
//!
//! A page holds some tokens of all layers and heads; `bitnet_kernels::attention` says what lies where in
//! the part of a head. Copies of a cache share its pages. A cache that writes into a page that others hold
//! gets a copy of it first, so no sequence sees another.

use std::sync::Arc;

use bitnet_format::ModelSpec;
use bitnet_kernels::attention::{Element, HeadLayout, HeadView, LANES, PAGE};
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
    shape: KvShape,
    pages: Pages,
}

/// What a cache is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KvShape {
    layers: usize,
    heads: usize,
    head: HeadLayout,
}

/// Each `[layers, heads, part of a head]`.
#[derive(Clone, Debug)]
enum Pages {
    F32(Vec<Arc<Vec<f32>>>),
    F16(Vec<Arc<Vec<f16>>>),
}

/// Keys and values of [`KvCache::PAGE`] neighbouring tokens, which several sequences may share.
#[derive(Clone, Debug)]
pub struct KvPage(SharedPage);

#[derive(Clone, Debug)]
enum SharedPage {
    F32(Arc<Vec<f32>>),
    F16(Arc<Vec<f16>>),
}

impl KvPage {
    /// How many caches and others hold this page.
    pub fn holders(&self) -> usize {
        match &self.0 {
            SharedPage::F32(page) => Arc::strong_count(page),
            SharedPage::F16(page) => Arc::strong_count(page),
        }
    }
}

impl KvShape {
    fn of(spec: &ModelSpec) -> Self {
        let head = HeadLayout { width: spec.head_dim };
        Self { layers: spec.num_hidden_layers, heads: spec.num_key_value_heads, head }
    }

    /// Elements of a layer in a page.
    fn layer(self) -> usize {
        self.heads * self.head.elements()
    }

    fn write<E: Element>(
        self,
        pages: &mut Vec<Arc<Vec<E>>>,
        (layer, position): (usize, usize),
        keys: &[f32],
        values: &[f32],
    ) {
        let (page, at) = (position / PAGE, position % PAGE);
        self.reserve(pages, position + 1);
        let HeadLayout { width } = self.head;
        let layer = layer * self.layer()..(layer + 1) * self.layer();
        let new = || keys.chunks_exact(width).zip(values.chunks_exact(width));
        // The last token of a known prompt is computed once more, for its logits. What its page holds
        // of it is the same to the bit, so that megabytes need not be copied for it.
        let is_shared = Arc::get_mut(&mut pages[page]).is_none();
        if is_shared && self.holds(&pages[page][layer.clone()], at, new()) {
            return;
        }
        // `make_mut` copies the page first if another sequence or the tree of prefixes holds it
        // too.
        let parts = Arc::make_mut(&mut pages[page])[layer].chunks_exact_mut(self.head.elements());
        for (part, (keys, values)) in parts.zip(new()) {
            // A key goes down a column of its block `[D, 16]`, a value along a row: see `pages`.
            let columns = part[self.head.keys(at / LANES)].chunks_exact_mut(LANES);
            for (column, key) in columns.zip(keys) {
                column[at % LANES] = E::nearest(*key);
            }
            for (place, value) in part[self.head.values(at..at + 1)].iter_mut().zip(values) {
                *place = E::nearest(*value);
            }
        }
    }

    /// Whether a layer of a page holds these keys and values of each head at token `at`.
    fn holds<'a, E: Element>(
        self,
        layer: &[E],
        at: usize,
        mut heads: impl Iterator<Item = (&'a [f32], &'a [f32])>,
    ) -> bool {
        let mut parts = layer.chunks_exact(self.head.elements());
        parts.all(|part| {
            let Some((keys, values)) = heads.next() else { return true };
            let mut columns = part[self.head.keys(at / LANES)].chunks_exact(LANES).zip(keys);
            let mut places = part[self.head.values(at..at + 1)].iter().zip(values);
            columns.all(|(column, key)| column[at % LANES].has_bits_of(E::nearest(*key)))
                && places.all(|(place, value)| place.has_bits_of(E::nearest(*value)))
        })
    }

    /// Adds pages for `len` tokens in all.
    fn reserve<E: Element>(self, pages: &mut Vec<Arc<Vec<E>>>, len: usize) {
        while pages.len() < len.div_ceil(PAGE) {
            // Blocks of keys are scored whole: keys that no token has written yet are read too, and
            // the scores of them are dropped.
            pages.push(Arc::new(E::zeros(self.layers * self.layer())));
        }
    }
}

/// One layer of a cache, as attention reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerView<'a, E> {
    pages: &'a [Arc<Vec<E>>],
    shape: KvShape,
    layer: usize,
    len: usize,
}

/// The same in either number format.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CachedLayer<'a> {
    F32(LayerView<'a, f32>),
    F16(LayerView<'a, f16>),
}

impl CachedLayer<'_> {
    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(layer) => layer.len(),
            Self::F16(layer) => layer.len(),
        }
    }
}

impl<'a, E> LayerView<'a, E> {
    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// One head.
    pub(crate) fn head(&self, head: usize) -> HeadView<'a, E> {
        let first = self.layer * self.shape.layer() + head * self.shape.head.elements();
        HeadView { pages: self.pages, first, layout: self.shape.head }
    }
}

impl KvCache {
    /// Tokens of a page.
    pub const PAGE: usize = PAGE;

    /// An empty context in f32 for a model of this shape.
    pub fn new(spec: &ModelSpec) -> Self {
        Self::with_precision(spec, CachePrecision::F32)
    }

    /// An empty context for a model of this shape.
    pub fn with_precision(spec: &ModelSpec, precision: CachePrecision) -> Self {
        let pages = match precision {
            CachePrecision::F32 => Pages::F32(Vec::new()),
            CachePrecision::F16 => Pages::F16(Vec::new()),
        };
        Self { len: 0, shape: KvShape::of(spec), pages }
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
        // A token that is no longer seen stays in its page until another takes its place.
        let pages = self.len.div_ceil(PAGE);
        match &mut self.pages {
            Pages::F32(all) => all.truncate(pages),
            Pages::F16(all) => all.truncate(pages),
        }
    }

    /// The first `len` tokens, in the same pages: what another sequence with the same beginning goes on
    /// from.
    #[must_use]
    pub fn prefix(&self, len: usize) -> Self {
        let mut prefix = self.clone();
        prefix.truncate(len);
        prefix
    }

    /// Bytes that `tokens` tokens take in a cache for a model of this shape, in whole pages.
    pub fn bytes_for(spec: &ModelSpec, precision: CachePrecision, tokens: usize) -> usize {
        tokens.div_ceil(PAGE) * PAGE * Self::bytes_a_token(spec, precision)
    }

    /// Bytes that the keys and values of one token take.
    pub fn bytes_a_token(spec: &ModelSpec, precision: CachePrecision) -> usize {
        let element = match precision {
            CachePrecision::F32 => size_of::<f32>(),
            CachePrecision::F16 => size_of::<f16>(),
        };
        let shape = KvShape::of(spec);
        shape.layers * shape.layer() / PAGE * element
    }

    /// Takes pages for `len` tokens in all, so that adding one allocates nothing. The system gives them
    /// memory only when a token comes.
    pub fn reserve(&mut self, len: usize) {
        match &mut self.pages {
            Pages::F32(pages) => self.shape.reserve(pages, len),
            Pages::F16(pages) => self.shape.reserve(pages, len),
        }
    }

    /// A page that holds tokens, by its index.
    pub fn page(&self, index: usize) -> Option<KvPage> {
        if index >= self.len.div_ceil(PAGE) {
            return None;
        }
        Some(KvPage(match &self.pages {
            Pages::F32(pages) => SharedPage::F32(Arc::clone(&pages[index])),
            Pages::F16(pages) => SharedPage::F16(Arc::clone(&pages[index])),
        }))
    }

    /// Puts a page in the place of one with the same tokens after the same beginning, or after the last,
    /// which is then full; `tokens` of it count.
    ///
    /// # Panics
    /// If the page belongs to a cache of another shape or precision, or there is no such place.
    pub fn share_page(&mut self, index: usize, page: KvPage, tokens: usize) {
        assert!(index * PAGE <= self.len && tokens <= PAGE, "no page is left out");
        let elements = self.shape.layers * self.shape.layer();
        match (&mut self.pages, page.0) {
            (Pages::F32(pages), SharedPage::F32(page)) => put(pages, index, page, elements),
            (Pages::F16(pages), SharedPage::F16(page)) => put(pages, index, page, elements),
            _ => panic!("a page of the same precision"),
        }
        self.len = self.len.max(index * PAGE + tokens);
    }

    /// Whether this cache was made for a model of that shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        self.shape == KvShape::of(spec)
    }

    /// Writes one token's keys and values, each `[heads · D]`, into a layer.
    pub(crate) fn write(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let place = (layer, position);
        match &mut self.pages {
            Pages::F32(pages) => self.shape.write(pages, place, keys, values),
            Pages::F16(pages) => self.shape.write(pages, place, keys, values),
        }
    }

    /// The first `len` tokens of a layer, all of which were written.
    pub(crate) fn layer(&self, layer: usize, len: usize) -> CachedLayer<'_> {
        let shape = self.shape;
        match &self.pages {
            Pages::F32(pages) => CachedLayer::F32(LayerView { pages, shape, layer, len }),
            Pages::F16(pages) => CachedLayer::F16(LayerView { pages, shape, layer, len }),
        }
    }

    /// States that every layer took `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        // Once for all layers, after the last: while layers write, `len` is still where this pass
        // begins.
        self.len += tokens;
    }
}

fn put<E>(pages: &mut Vec<Arc<Vec<E>>>, index: usize, page: Arc<Vec<E>>, elements: usize) {
    assert_eq!(page.len(), elements, "a page of the same shape");
    match pages.get_mut(index) {
        Some(place) => *place = page,
        None => pages.push(page),
    }
}
