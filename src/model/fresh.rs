//! The random values of a new model: each tensor has a stream of its own, keyed by seed and name.

use std::cell::RefCell;
use std::ops::Range;

use bitnet_format::{FormatError, ModelSpec, TensorEntry, TensorRole, TensorSource, TensorView};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::random;

/// The values of one tensor of a new model.
pub(super) fn draw(spec: &ModelSpec, entry: &TensorEntry, seed: u64) -> Vec<f32> {
    Stream::of(entry, seed).draw(spec, entry, entry.elements())
}

/// The random values of one tensor, in its order.
struct Stream {
    name: String,
    drawn: usize,
    random: ChaCha8Rng,
}

impl Stream {
    fn of(entry: &TensorEntry, seed: u64) -> Self {
        let random = random::keyed(seed, &entry.name, 0, 0);
        Self { name: entry.name.clone(), drawn: 0, random }
    }

    fn draw(&mut self, spec: &ModelSpec, entry: &TensorEntry, count: usize) -> Vec<f32> {
        self.drawn += count;
        let range = match entry.role {
            TensorRole::Norm => return vec![1.0; count],
            TensorRole::Bias => return vec![0.0; count],
            TensorRole::Embedding => spec.embedding_initializer_range,
            TensorRole::Linear(_) | TensorRole::Head => spec.initializer_range,
        };
        let normal = Normal::new(0.0, range as f32).expect("a spec's ranges are finite");
        normal.sample_iter(&mut self.random).take(count).collect()
    }
}

/// The values of [a new model](crate::model::LanguageModel::initial) as a source to convert, never in memory as a whole.
pub struct FreshModel {
    spec: ModelSpec,
    seed: u64,
    /// The tensor that is being read, and how far: reading on draws nothing twice.
    stream: RefCell<Option<Stream>>,
}

impl FreshModel {
    /// A fresh model of this shape.
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        Self { spec, seed, stream: RefCell::new(None) }
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
}

impl TensorSource for FreshModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let width = entry.row_length();
        let (start, count) = (rows.start * width, rows.len() * width);
        let mut open = self.stream.borrow_mut();
        // A read that does not go on where the last one ended begins anew and drops what lies
        // before: how many random bits a normal number takes is not known ahead.
        let here = open.take().filter(|open| open.name == entry.name && open.drawn == start);
        let mut stream = here.unwrap_or_else(|| {
            let mut stream = Stream::of(entry, self.seed);
            stream.draw(&self.spec, entry, start);
            stream
        });
        let values = stream.draw(&self.spec, entry, count);
        *open = Some(stream);
        Ok(TensorView::floats(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_format::tensor_table;

    #[test]
    fn a_fresh_model_read_in_parts_is_the_initial_one() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10",
        )
        .unwrap();
        let fresh = FreshModel::new(spec.clone(), 3);
        for entry in tensor_table(&spec) {
            let whole = draw(&spec, &entry, 3);
            let (rows, width) = (entry.shape[0], entry.elements() / entry.shape[0]);
            for range in [0..2, 2..rows, 1..4] {
                let part = fresh.rows(&entry, range.clone()).unwrap();
                assert_eq!(part, whole[range.start * width..range.end * width], "{}", entry.name);
            }
        }
    }
}
