//! The BitNet b1.58 transformer as Burn modules. It reads like the paper (arXiv 2504.12285, §2) and
//! knows nothing of data, files or training.
//!
//! - `BitLinear`: ternary weights (absmean), 8-bit activations (per-token absmax), straight-through;
//! - `RMSNorm` before each half of a block and before its output projection (sub-norms);
//! - rotary positions in half-split pairs, grouped-query attention, a gated feed-forward half;
//! - as configuration what Llama and Qwen differ by: no sub-norms, biases of queries, keys and values, norms
//!   of each head's queries and keys, scaled rotary frequencies, dense matrices;
//! - as configuration too, scales of rows or of groups of weights, and inputs that stay floats;
//! - embedding and head stay full precision, tied or not, unless the configuration says ternary;
//! - several documents share a sequence: positions restart, attention stays inside a document.
//!
//! Shape letters: `B` batch, `T` time, `C` model width, `H` heads, `D` head width, `F` FFN width,
//! `V` vocabulary. Matrices are `[out, in]`. Field names are Hugging Face's, so a module path plus
//! `.weight` is the tensor's name in a file.

mod attention;
mod bit_linear;
mod forward_graph;
mod fresh;
mod live;
mod loaded;
mod logits;
mod low_rank;
mod mlp;
mod norm;
mod parameters;
mod rope;
mod segments;
mod source;
mod stored_values;
mod streamed;
mod sub_norms;
mod width;

pub use attention::Attention;
pub use bit_linear::{BitLinear, LinearWeight};
pub use forward_graph::{ActivationMemory, ForwardGraph, GradientSink};
pub use fresh::FreshModel;
pub(crate) use live::LiveModel;
pub use loaded::Head;
pub(crate) use loaded::{LoadedTensor, LoadedTensors, LoadedValues, host_ids};
pub use logits::{argmax, target_log_probs, token_logits};
pub use low_rank::LowRankFactors;
pub(crate) use low_rank::{factor_index, is_factor, parameter_table};
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub(crate) use parameters::parameter_count;
pub use parameters::{freeze, gradients, named_values, replace_values, take_values, values};
pub use segments::SegmentStarts;
pub(crate) use source::{NewAdapter, set_factors};
pub use streamed::{HiddenStates, streamed_hidden};
pub use width::WidthRatio;

use std::sync::Arc;

use bitnet_format::adapter::{AdapterKind, LowRankFactor};
use bitnet_format::group::{ActivationForm, EmbeddingForm};
use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use bitnet_kernels::Operands;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use crate::host::to_host;
use crate::latents::{Latents, MatrixStorage};
use crate::model::attention::AttentionContext;
use crate::model::rope::RopeTable;
use crate::ops::{self, FactorValues, HeadOperand, OpBackend, RoundingCounts};

/// A causal language model: transformer and head.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Everything up to the final norm.
    pub model: Transformer,
    /// The head when it is not tied to the embedding.
    pub lm_head: Option<Head>,
    #[module(skip)]
    backend: OpBackend,
    #[module(skip)]
    activations: ActivationMemory,
    /// The matrices that are not tensors, in the order of the parameters.
    #[module(skip)]
    outside: Arc<[Option<Latents>]>,
    #[module(skip)]
    table: Arc<[TensorEntry]>,
    /// The scale of a latent adapter.
    #[module(skip)]
    merge_scale: Option<f32>,
    /// Whether the head reads 8-bit activations.
    #[module(skip)]
    reads_codes: bool,
}

/// What a forward pass gives to a loss.
#[derive(Clone, Debug)]
pub struct ForwardOutputs {
    /// Hidden states after the final norm, `[B, T, C]`.
    pub hidden: Tensor<3>,
    /// Queries, keys and values of a block that was asked for, `[B, T, (H + 2 KV)·D]`, as its projections
    /// gave them.
    pub projections: Option<Tensor<3>>,
}

/// Embedding, blocks and final norm.
#[derive(Module, Debug)]
pub struct Transformer {
    /// Token embedding.
    pub embed_tokens: Head,
    /// The blocks, first to last.
    pub layers: Vec<Block>,
    /// Final norm.
    pub norm: RmsNorm,
    #[module(skip)]
    rope: RopeTable,
}

/// One transformer block.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Norm before the feed-forward half.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward half.
    pub mlp: Mlp,
}

impl LanguageModel {
    /// Builds a model whose tensors come from `source`, called once for each entry of the tensor
    /// table; values are in row-major order. It computes in f32 with the operations that suit
    /// `device`.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn from_source<E>(
        spec: &ModelSpec,
        device: &Device,
        source: impl FnMut(&TensorEntry) -> Result<(Vec<f32>, LinearWeight), E>,
    ) -> Result<Self, E> {
        Self::with_storage(spec, device, None.into(), source)
    }

    /// [`LanguageModel::from_source`] with its matrices kept as `storage` says.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn with_storage<E>(
        spec: &ModelSpec,
        device: &Device,
        storage: MatrixStorage<'_>,
        mut source: impl FnMut(&TensorEntry) -> Result<(Vec<f32>, LinearWeight), E>,
    ) -> Result<Self, E> {
        Self::from_loaded(spec, device, |index, entry| {
            let (values, form) = source(entry)?;
            Ok((LoadedValues::new(entry, values, storage.format(index)), form))
        })
    }

    /// A model without an adapter; `source` gets the entries of the tensor table with their numbers.
    fn from_loaded<E>(
        spec: &ModelSpec,
        device: &Device,
        mut source: impl FnMut(usize, &TensorEntry) -> Result<(LoadedValues, LinearWeight), E>,
    ) -> Result<Self, E> {
        let mut tensors = Vec::new();
        for (index, entry) in tensor_table(spec).into_iter().enumerate() {
            let (values, form) = source(index, &entry)?;
            tensors.push(LoadedTensor { entry, values, form, adapter: None });
        }
        Ok(Self::assemble(spec, tensors, device))
    }

    fn assemble(spec: &ModelSpec, tensors: Vec<LoadedTensor>, device: &Device) -> Self {
        let mut outside = Vec::new();
        let mut adapted = Vec::new();
        let (mut rank, mut merge_scale) = (0, None);
        for tensor in &tensors {
            outside.push(match &tensor.values {
                LoadedValues::Outside(latents) => Some(latents.clone()),
                LoadedValues::Tensor(_) => None,
            });
            if let Some(factors) = &tensor.adapter {
                // A and B follow their matrix in the parameter table, and `outside` has its order.
                outside.extend([None, None]);
                adapted.push(tensor.entry.clone());
                rank = factors.rank(&tensor.entry);
                merge_scale = (factors.kind == AdapterKind::Latent).then_some(factors.scale);
            }
        }
        // `ops::bit_linear_outside` knows one quantiser and would use it for every model.
        let is_computed = !spec.quantise || spec.has_b158_quantiser();
        assert!(
            is_computed || outside.iter().all(Option::is_none),
            "latents outside of tensors are quantised as in BitNet b1.58"
        );
        let (outside, table) = (outside.into(), parameter_table(spec, &adapted, rank).into());
        let tensors = &mut LoadedTensors::new(tensors, spec, device);
        // Each module takes the next tensors: these calls keep the order of the table.
        let embed_tokens = tensors.head();
        let layers = (0..spec.num_hidden_layers).map(|_| Block::assemble(spec, tensors)).collect();
        let norm = tensors.norm();
        let rope = RopeTable::new(spec);
        let model = Transformer { embed_tokens, layers, norm, rope };
        let lm_head = (!spec.tie_word_embeddings).then(|| tensors.head());
        let backend = OpBackend::of(device, Operands::F32);
        let activations = ActivationMemory::default();
        let reads_codes = head_reads_codes(spec);
        Self { model, lm_head, backend, activations, outside, table, merge_scale, reads_codes }
    }

    /// Its parameters in the order in which modules are visited: the tensor table, and the factors of
    /// an adapter after their matrices.
    pub(crate) fn table(&self) -> &[TensorEntry] {
        &self.table
    }

    /// The latents that entry `index` of the parameter table is quantised from; `values` are all
    /// [`values`] of this model.
    pub(crate) fn latents(&self, index: usize, values: &[Tensor<1>]) -> Vec<f32> {
        let host = |index: usize| to_host(values[index].clone());
        let Some(latents) = &self.outside[index] else { return host(index) };
        match self.merge_scale {
            // Under a latent adapter the latents that are quantised are the merged ones.
            Some(scale) if self.table.get(index + 1).is_some_and(is_factor) => {
                let [a, b] = LowRankFactor::BOTH.map(|factor| host(factor_index(index, factor)));
                let factors = FactorValues { a, b, scale };
                ops::merged(latents, &factors, self.backend.kernel).0
            }
            _ => latents.read().all(),
        }
    }

    /// Whether it has the factors of a latent adapter.
    pub(crate) fn merges_factors(&self) -> bool {
        self.merge_scale.is_some()
    }

    /// The matrices that are not tensors, in the order of the parameters, `None` for all others.
    pub fn outside(&self) -> &[Option<Latents>] {
        &self.outside
    }

    /// The same model with another [`OpBackend`], one that runs on the model's device.
    #[must_use]
    pub fn with_backend(self, backend: OpBackend) -> Self {
        Self { backend, ..self }
    }

    /// How its operations are computed.
    pub fn backend(&self) -> OpBackend {
        self.backend
    }

    /// What 8-bit gradients lost since they were cleared, layer by layer.
    pub(crate) fn rounding_counts(&self) -> impl Iterator<Item = (&'static str, &RoundingCounts)> {
        self.model.layers.iter().flat_map(|Block { self_attn, mlp, .. }| {
            [
                ("q_proj", &*self_attn.q_proj.rounding),
                ("k_proj", &*self_attn.k_proj.rounding),
                ("v_proj", &*self_attn.v_proj.rounding),
                ("o_proj", &*self_attn.o_proj.rounding),
                ("gate_proj", &*mlp.gate_proj.rounding),
                ("up_proj", &*mlp.up_proj.rounding),
                ("down_proj", &*mlp.down_proj.rounding),
            ]
        })
    }

    /// Lets those counts begin again.
    pub(crate) fn clear_rounding_counts(&self) {
        self.rounding_counts().for_each(|(_, counts)| counts.clear());
    }

    /// The same model, whose recorded forward passes keep this much in memory.
    #[must_use]
    pub fn with_activations(self, activations: ActivationMemory) -> Self {
        Self { activations, ..self }
    }

    /// `tokens [B, T]` → hidden states after the final norm `[B, T, C]`, as the head reads them: a ternary
    /// one may read 8-bit codes.
    pub fn forward(&self, tokens: Tensor<2, Int>, segments: &SegmentStarts) -> Tensor<3> {
        self.forward_showing(tokens, segments, None).hidden
    }

    /// The same, with what the projections of block `shown` gave.
    pub fn forward_showing(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
        shown: Option<usize>,
    ) -> ForwardOutputs {
        let transformer = &self.model;
        let context = transformer.attention_context(segments);
        let mut projections = None;
        let mut x = transformer.embed(tokens, self.backend);
        for (index, layer) in transformer.layers.iter().enumerate() {
            // A block in two halves, so that a loss can see queries, keys and values between them.
            let qkv = layer.project(x.clone(), self.backend);
            if shown == Some(index) {
                projections = Some(qkv.clone());
            }
            x = layer.mix(x, qkv, &context, self.backend);
        }
        ForwardOutputs { hidden: self.final_norm(x), projections }
    }

    /// The last block's output as the head reads it.
    fn final_norm(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = self.model.norm.forward(x, self.backend);
        if !self.reads_codes {
            return hidden;
        }
        // Losses multiply floats, so the codes that a ternary head reads are dequantised here.
        // While λ < 1 they are blended in as in the layers.
        let quantised = ops::fake_quantise_activations(hidden.clone());
        ops::blend(self.backend.lambda, hidden, quantised)
    }

    /// The residual stream after the embedding and after each block, the last one normalised:
    /// `num_hidden_layers + 1` tensors `[B, T, C]`, as Hugging Face's `hidden_states`.
    pub fn hidden_states(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
    ) -> Vec<Tensor<3>> {
        let context = self.model.attention_context(segments);
        let mut states = self.model.residuals(tokens, &context, self.backend);
        let last = states.pop().expect("residuals start with the embedding");
        // Not `final_norm`: what a head reads may be quantised, a hidden state is not.
        states.push(self.model.norm.forward(last, self.backend));
        states
    }

    /// The head's matrix `[V, C]`, the embedding when tied; that of its ternary weights where it has them.
    pub fn head(&self) -> Tensor<2> {
        self.head_module().matrix(self.backend)
    }

    /// The same as the operations of losses take it.
    pub(crate) fn head_operand(&self) -> HeadOperand<'_> {
        let head = self.head_module();
        HeadOperand { tensor: head.operand(self.backend), outside: head.outside() }
    }

    /// The head, or the embedding when tied.
    pub(crate) fn head_module(&self) -> &Head {
        self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens)
    }

    /// The device it computes on.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }
}

/// Whether the input of the head is quantised to 8 bits.
fn head_reads_codes(spec: &ModelSpec) -> bool {
    let is_ternary = spec.quantise && spec.embedding == EmbeddingForm::Ternary;
    is_ternary && spec.activations == ActivationForm::Int8
}

impl Transformer {
    fn attention_context(&self, segments: &SegmentStarts) -> AttentionContext {
        AttentionContext::new(segments, &self.rope)
    }

    /// The residual stream after the embedding and after each block.
    fn residuals(
        &self,
        tokens: Tensor<2, Int>,
        context: &AttentionContext,
        backend: OpBackend,
    ) -> Vec<Tensor<3>> {
        let mut states = vec![self.embed(tokens, backend)];
        for (index, layer) in self.layers.iter().enumerate() {
            states.push(layer.forward(states[index].clone(), context, backend));
        }
        states
    }

    fn embed(&self, tokens: Tensor<2, Int>, backend: OpBackend) -> Tensor<3> {
        let [batch, time] = tokens.dims();
        // `[B, T]` → `[B·T]`: a lookup takes a flat list of ids and gives `[B·T, C]`.
        let rows = self.embed_tokens.rows(tokens.reshape([batch * time]), backend);
        let width = rows.dims()[1];
        rows.reshape([batch, time, width])
    }
}

impl Block {
    fn assemble(spec: &ModelSpec, tensors: &mut LoadedTensors) -> Self {
        Self {
            input_layernorm: tensors.norm(),
            self_attn: Attention::assemble(spec, tensors),
            post_attention_layernorm: tensors.norm(),
            mlp: Mlp::assemble(spec, tensors),
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    fn forward(&self, x: Tensor<3>, context: &AttentionContext, backend: OpBackend) -> Tensor<3> {
        let qkv = self.project(x.clone(), backend);
        self.mix(x, qkv, context, backend)
    }

    /// Queries, keys and values: `x [B, T, C]` → `[B, T, (H + 2 KV)·D]`
    fn project(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        self.self_attn.project(self.input_layernorm.forward(x, backend), backend)
    }

    /// The rest of the block: `x [B, T, C]` and its projections → `[B, T, C]`
    fn mix(
        &self,
        x: Tensor<3>,
        qkv: Tensor<3>,
        context: &AttentionContext,
        backend: OpBackend,
    ) -> Tensor<3> {
        let x = x + self.self_attn.mix(qkv, context, backend);
        let normed = self.post_attention_layernorm.forward(x.clone(), backend);
        x + self.mlp.forward(normed, backend)
    }
}
