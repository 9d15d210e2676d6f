//! Training forward and engine over the same written file: the packed folders of the fixtures,
//! against transformers' offline reader and against each other.

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::StoredModel;
use bitnet_format::convert::hf::write_packed;
use bitnet_train::model::{LanguageModel, SegmentStarts, token_logits};
use burn::tensor::Device;

use super::sets::{self, check, host, ids, largest_difference};

#[test]
fn golden_training_forward_over_packed_codes() {
    let device = Device::flex();
    for set in sets::with("packed/expected.safetensors") {
        let folder = StoredModel::open(&set.dir.join("packed")).unwrap();
        let model = LanguageModel::read(&folder, &device).unwrap();
        let file = set.file("forward.safetensors");
        let shape = file.shape("input_ids");
        let shape = [shape[0], shape[1]];
        let tokens = ids(&file.ints("input_ids"), shape, &device);
        let hidden = model.forward(tokens, &SegmentStarts::whole_rows(shape[0], shape[1]));
        let found = host(token_logits(hidden.flatten(0, 1), model.head()));
        let expected =
            set.file("packed/expected.safetensors").floats("logits_autobitlinear_offline_f32");
        check(&set, "packed logits, training forward", largest_difference(&found, &expected), 1e-4);
    }
}

#[test]
fn golden_engine_agrees_with_the_training_forward_on_our_own_export() {
    let device = Device::flex();
    let threads = ThreadPool::new(1).unwrap();
    for set in sets::with("model.safetensors") {
        let out = tempfile::tempdir().unwrap();
        let master = set.file("model.safetensors");
        write_packed(out.path(), &set.spec(), |entry| master.0.floats(&entry.name, &entry.shape))
            .unwrap();
        let engine = Model::load(out.path()).unwrap();
        let reference =
            LanguageModel::read(&StoredModel::open(out.path()).unwrap(), &device).unwrap();
        let file = set.file("forward.safetensors");
        let width = file.shape("input_ids")[1];
        for row in file.ints("input_ids").chunks(width) {
            let tokens: Vec<u32> = row.iter().map(|&id| id as u32).collect();
            let mut workspace = Workspace::new(&threads);
            let found =
                engine.forward_all(&mut workspace, &mut engine.new_cache(), &tokens).unwrap();
            let hidden = reference
                .forward(ids(row, [1, width], &device), &SegmentStarts::whole_rows(1, width));
            let expected = host(token_logits(hidden.flatten(0, 1), reference.head()));
            let error = largest_difference(found, &expected);
            check(&set, "engine against training forward", error, 1e-4);
        }
    }
}
