//! Attention relations (`MiniLM`, arXiv 2002.10957 and 2012.15828): how alike the positions of a document are,
//! by the queries, the keys and the values of one block, in student and teacher.
//!
//! ```text
//! S = X·Xᵀ                                  X [n, w], the vectors of a document in one relation head
//! R[t] = Σ_{Q, K, V} mean over heads of KL(softmax(teacher's S[t]) ‖ softmax(S[t]))
//! ```
//!
//! In the form `cosine` every vector is divided by its length first, in the form `scaled` S by √w. Vectors
//! are what the projections gave, before norms of heads and rotary positions (as in arXiv 2510.13998);
//! every position sees every other of its document, later ones too. Models of other widths or numbers of
//! heads put their heads side by side and cut them again, into as many as both numbers are divisible by.
//! Only rows of trained tokens count.
//!
//! The `[n, n]` relations of one document exist at a time: their gradient is made on the way forward and
//! joins the graph as a factor of a difference that is exactly zero.

use std::ops::Range;

use bitnet_format::ModelSpec;
use burn::tensor::{Device, Tensor, TensorData, activation::log_softmax};

use crate::ops::untracked;
use crate::recipe::RelationForm;
use crate::train::stage::objective::TokenBatch;

/// Added to the square of a vector's length.
const LEAST_SQUARE: f64 = 1e-12;

/// A block whose projections are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationBlock {
    /// Its index, from 0.
    pub layer: usize,
    /// Heads of queries, keys and values.
    pub heads: [usize; 3],
    /// Width of a head.
    pub head_dim: usize,
}

impl RelationBlock {
    /// Block `layer` of a model.
    pub fn new(spec: &ModelSpec, layer: usize) -> Self {
        let keys = spec.num_key_value_heads;
        Self { layer, heads: [spec.num_attention_heads, keys, keys], head_dim: spec.head_dim }
    }

    /// Where queries, keys and values stand in the projections.
    fn parts(&self) -> [Range<usize>; 3] {
        let mut end = 0;
        self.heads.map(|heads| {
            let first = end;
            end += heads * self.head_dim;
            first..end
        })
    }
}

/// What is compared, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Relations {
    /// What the loss is multiplied with.
    pub weight: f64,
    /// How alike two positions are.
    pub form: RelationForm,
    /// The student's block.
    pub student: RelationBlock,
    /// The teacher's.
    pub teacher: RelationBlock,
}

impl Relations {
    /// `Σ weight · R` over the trained tokens, `[1]`, from the projections of both models `[B, T, …]`.
    pub fn loss(&self, own: Tensor<3>, theirs: &Tensor<3>, rows: &TokenBatch) -> Tensor<1> {
        let [batch, time, width] = own.dims();
        let values = untracked(own.clone());
        let wants_gradient = own.is_autodiff();
        let mut sum = Tensor::<1>::zeros([1], &values.device());
        let mut gradients = Vec::new();
        for document in documents(rows) {
            let part = |of: &Tensor<3>| {
                let width = of.dims()[2];
                let all = of.clone().reshape([batch * time, width]);
                all.narrow(0, document.start, document.len())
            };
            let weights = &rows.loss_mask[document.clone()];
            if weights.iter().all(|&weight| weight == 0.0) {
                gradients.push(Tensor::zeros([document.len(), width], &values.device()));
                continue;
            }
            let (x, y) = (part(&values), part(theirs));
            if !wants_gradient {
                sum = sum + self.divergence(&x, &y, weights);
                continue;
            }
            let x = x.autodiff().require_grad();
            let loss = self.divergence(&x, &y.autodiff(), weights);
            let mut grads = loss.backward();
            gradients.push(x.grad_remove(&mut grads).expect("the loss is made of it"));
            sum = sum + loss.inner();
        }
        if !wants_gradient {
            return sum;
        }
        let gradient = Tensor::cat(gradients, 0).reshape([batch, time, width]).autodiff();
        ((own.clone() - own.detach()) * gradient).sum() + sum.autodiff()
    }

    /// The divergence over one document: projections `[n, …]` of both, and the weight of each row.
    fn divergence(&self, x: &Tensor<2>, y: &Tensor<2>, weights: &[f32]) -> Tensor<1> {
        let device = x.device();
        let mut sum = Tensor::<1>::zeros([1], &device);
        let parts = self.student.parts().into_iter().zip(self.teacher.parts());
        for (which, (own, theirs)) in parts.enumerate() {
            let heads = common_heads(self.student.heads[which], self.teacher.heads[which]);
            let part = |of: &Tensor<2>, part: Range<usize>| {
                self.log_relations(of.clone().narrow(1, part.start, part.len()), heads)
            };
            let (student, teacher) = (part(x, own), part(y, theirs));
            let rows = (teacher.clone().exp() * (teacher - student)).sum_dim(2); // [heads, n, 1]
            sum = sum + (rows * of_rows(weights, &device)).sum() / heads as f64;
        }
        sum
    }

    /// `[n, W]` → logarithms of the relations of each head, `[heads, n, n]`
    fn log_relations(&self, x: Tensor<2>, heads: usize) -> Tensor<3> {
        let [count, width] = x.dims();
        let x = x.reshape([count, heads, width / heads]).swap_dims(0, 1);
        let (x, scale) = match self.form {
            RelationForm::Cosine => {
                let squares = (x.clone() * x.clone()).sum_dim(2);
                (x / (squares + LEAST_SQUARE).sqrt(), 1.0)
            }
            RelationForm::Scaled => (x, (width as f64 / heads as f64).sqrt().recip()),
        };
        log_softmax(x.clone().matmul(x.swap_dims(1, 2)) * scale, 2)
    }
}

/// The weights of a document's rows, for all heads.
fn of_rows(weights: &[f32], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(weights.to_vec(), [1, weights.len(), 1]), device)
}

/// Relation heads that both models' heads can be cut into.
fn common_heads(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_heads(b, a % b) }
}

/// The tokens of each document, of all rows in order.
fn documents(rows: &TokenBatch) -> Vec<Range<usize>> {
    let mut end = 0;
    let lengths = rows.documents.lengths().into_iter();
    lengths
        .map(|length| {
            let first = end;
            end += length;
            first..end
        })
        .collect()
}
