//! The BitNet b1.58 transformer as Burn modules. This room reads like the paper and knows nothing
//! of data, files or training.
//!
//! Notable features (arXiv 2504.12285, §2; `bitnet-b158` §1.3):
//! - `BitLinear`: ternary weights (absmean), 8-bit activations (per-token absmax), straight-through;
//! - no biases; `RMSNorm` before every block half and again before each output projection (sub-norms);
//! - rotary positions in half-split pairs, grouped-query attention, a gated feed-forward half;
//! - embedding and head stay full precision, tied or not;
//! - several documents share a row: positions restart, attention never crosses a boundary.
//!
//! Shape letters: `B` batch, `T` time, `C` model width, `H` heads, `D` head width, `F` FFN width,
//! `V` vocabulary. Matrices are `[out, in]`. Field names are Hugging Face's, so a module path plus
//! `.weight` is the tensor's name in a file.

mod attention;
mod bit_linear;
mod documents;
mod loss;
mod mlp;
mod norm;
mod parameters;
mod recording;
mod rope;
mod source;
mod streamed;

pub use attention::Attention;
pub use bit_linear::{BitLinear, Weight};
pub use documents::Documents;
pub use loss::{likeliest, target_log_probs, token_logits};
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub use parameters::{gradients, named_values, replace_values, take_values, values};
pub use recording::{Activations, Recording};
pub use source::FreshModel;
pub use streamed::streamed_logits;

use bitnet_format::{ModelSpec, Role, TensorEntry, tensor_table};
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::model::attention::AttentionContext;
use crate::model::rope::RopeTable;
use crate::ops::Compute;

/// A causal language model: transformer and head.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Everything up to the final norm.
    pub model: Transformer,
    /// The head when it is not tied to the embedding.
    pub lm_head: Option<Head>,
    #[module(skip)]
    compute: Compute,
    #[module(skip)]
    activations: Activations,
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

/// A full-precision `[V, C]` matrix: the embedding, the head, or both.
#[derive(Module, Debug)]
pub struct Head {
    /// `[V, C]`
    pub weight: Param<Tensor<2>>,
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
    /// Builds a model whose tensors come from `source`, one call for each entry of the tensor
    /// table with its values in row-major order.
    ///
    /// # Errors
    /// Whatever `source` reports.
    pub fn from_source<E>(
        spec: &ModelSpec,
        device: &Device,
        mut source: impl FnMut(&TensorEntry) -> Result<(Vec<f32>, Weight), E>,
    ) -> Result<Self, E> {
        let table = tensor_table(spec);
        let mut tensors = Vec::with_capacity(table.len());
        for entry in table {
            let (values, form) = source(&entry)?;
            tensors.push(Loaded {
                data: TensorData::new(values, entry.shape.clone()),
                form,
                entry,
            });
        }
        Ok(Self::assemble(spec, &mut Parts { tensors: tensors.into_iter(), device }))
    }

    fn assemble(spec: &ModelSpec, parts: &mut Parts) -> Self {
        let embed_tokens = parts.head();
        let layers = (0..spec.num_hidden_layers).map(|_| Block::assemble(spec, parts)).collect();
        let norm = parts.norm(spec);
        let rope = RopeTable::new(spec);
        let model = Transformer { embed_tokens, layers, norm, rope };
        let lm_head = (!spec.tie_word_embeddings).then(|| parts.head());
        let (compute, activations) = (Compute::default(), Activations::default());
        Self { model, lm_head, compute, activations }
    }

    /// The same model, computed otherwise.
    #[must_use]
    pub fn computed_by(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// How it is computed.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The same model, keeping something else in memory when it is recorded.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// `tokens [B, T]` → hidden states after the final norm `[B, T, C]`
    pub fn forward(&self, tokens: Tensor<2, Int>, documents: &Documents) -> Tensor<3> {
        self.model.forward(tokens, documents, self.compute)
    }

    /// The head's matrix `[V, C]`, the embedding when tied.
    pub fn head(&self) -> Tensor<2> {
        self.lm_head.as_ref().unwrap_or(&self.model.embed_tokens).weight.val()
    }
}

impl Transformer {
    /// `tokens [B, T]` → `[B, T, C]`
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        documents: &Documents,
        compute: Compute,
    ) -> Tensor<3> {
        let mut x = self.embed(tokens);
        let context = AttentionContext::new(documents, &self.rope);
        for layer in &self.layers {
            x = layer.forward(x, &context, compute);
        }
        self.norm.forward(x, compute)
    }

    /// The residual stream after the embedding and after each block, the last one normalised:
    /// `num_hidden_layers + 1` tensors `[B, T, C]`, as Hugging Face's `hidden_states`.
    pub fn hidden_states(&self, tokens: Tensor<2, Int>, documents: &Documents) -> Vec<Tensor<3>> {
        let (context, compute) = (AttentionContext::new(documents, &self.rope), Compute::default());
        let mut states = self.residuals(tokens, &context, compute);
        let last = states.pop().expect("the embedding is there");
        states.push(self.norm.forward(last, compute));
        states
    }

    /// The residual stream after the embedding and after each block.
    fn residuals(
        &self,
        tokens: Tensor<2, Int>,
        context: &AttentionContext,
        compute: Compute,
    ) -> Vec<Tensor<3>> {
        let mut states = vec![self.embed(tokens)];
        for layer in &self.layers {
            let last = states.last().expect("the embedding is there").clone();
            states.push(layer.forward(last, context, compute));
        }
        states
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = tokens.dims();
        let table = self.embed_tokens.weight.val();
        let width = table.dims()[1];
        table.select(0, tokens.reshape([batch * time])).reshape([batch, time, width])
    }
}

impl Block {
    fn assemble(spec: &ModelSpec, parts: &mut Parts) -> Self {
        Self {
            input_layernorm: parts.norm(spec),
            self_attn: Attention::assemble(spec, parts),
            post_attention_layernorm: parts.norm(spec),
            mlp: Mlp::assemble(spec, parts),
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    fn forward(&self, x: Tensor<3>, context: &AttentionContext, compute: Compute) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone(), compute);
        let x = x + self.self_attn.forward(normed, context, compute);
        let normed = self.post_attention_layernorm.forward(x.clone(), compute);
        x + self.mlp.forward(normed, compute)
    }
}

/// A tensor read from somewhere, on its way into a module.
struct Loaded {
    entry: TensorEntry,
    data: TensorData,
    form: Weight,
}

/// The tensors of a model in table order, handed out to the modules as they are built.
pub(crate) struct Parts<'a> {
    tensors: std::vec::IntoIter<Loaded>,
    device: &'a Device,
}

impl Parts<'_> {
    fn next(&mut self) -> Loaded {
        self.tensors.next().expect("modules are built in the order of the tensor table")
    }

    fn head(&mut self) -> Head {
        let part = self.next();
        assert!(matches!(part.entry.role, Role::Embedding | Role::Head), "{}", part.entry.name);
        Head { weight: Param::from_data(part.data, self.device) }
    }

    fn norm(&mut self, spec: &ModelSpec) -> RmsNorm {
        let part = self.next();
        assert!(part.entry.role == Role::Norm, "{}", part.entry.name);
        RmsNorm::new(Param::from_data(part.data, self.device), spec.rms_norm_eps)
    }

    fn linear(&mut self) -> BitLinear {
        let part = self.next();
        assert!(matches!(part.entry.role, Role::Linear(_)), "{}", part.entry.name);
        BitLinear::new(Param::from_data(part.data, self.device), part.form)
    }
}
