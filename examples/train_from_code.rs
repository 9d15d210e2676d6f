//! Training from code: builds a model, trains it on text and saves a folder that every command reads.
use std::path::Path;

use bitnet_text::{Tokenizer, train_bpe};
use bitnet_train::checkpoint::{FolderParts, write_model};
use bitnet_train::data::{
    CacheRequest, DocumentSource, EpochPlan, LoaderSettings, LongDocuments, SequencePlan,
    TokenCache,
};
use bitnet_train::train::{
    AdamW, AdamWSettings, CrossEntropy, StepRates, StepSettings, batch_of, optimizer_step,
};
use bitnet_train::{device, model::LanguageModel, train::GradAccumulator};

fn main() -> anyhow::Result<()> {
    let text: Vec<String> = fs_err::read_to_string("README.md")?.lines().map(Into::into).collect();
    let json = train_bpe(text.clone().into_iter(), 320)?;
    let tokenizer = Tokenizer::from_bytes(Path::new("tokenizer.json"), &json)?;
    let source = DocumentSource::in_memory("readme", text);
    let (scratch, out) =
        (std::env::temp_dir().join("train-from-code"), Path::new("runs/from-code"));
    let cache = TokenCache::open_or_build(&CacheRequest::new(&scratch, &source, &tokenizer))?;
    let rows = LoaderSettings { seed: 1, seq_len: 64, policy: LongDocuments::Split };
    let spec = toml::from_str(
        "hidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nvocab_size = 320\n\
         num_attention_heads = 2\nnum_key_value_heads = 1",
    )?;
    let device = device::open("flex")?;
    let mut model = LanguageModel::initial(&spec, 1, &device);
    let mut optimizer = AdamW::for_model(&spec, AdamWSettings::default(), &device);
    for epoch in 0..20 {
        let plan = SequencePlan::new(&cache, rows, "train", epoch);
        let batch = batch_of(&(0..plan.items()).map(|row| plan.item(row)).collect::<Vec<_>>());
        let sum = GradAccumulator::of(&model, &CrossEntropy, &[batch], &device);
        let rates = StepRates { learning_rate: 3e-3, weight_decay: 0.1 };
        let (next, report) =
            optimizer_step(sum, model, &mut optimizer, StepSettings::default(), rates);
        model = next;
        eprintln!("epoch {epoch}: loss {:.3}", report.loss);
    }
    fs_err::create_dir_all(out)?;
    let parts = FolderParts {
        spec: &spec,
        tokenizer: Some(&tokenizer),
        chat: None,
        generation: None,
        adapter: None,
    };
    write_model(out, parts, &model, None)?;
    Ok(())
}
