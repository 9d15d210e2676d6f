//! Loads a checked `tokenizer.json` with the `tokenizers` library.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::PostProcessorWrapper;

use crate::error::TextError;

/// Loads and tests a file, without truncation, padding and post-processor.
pub(crate) fn load(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer, TextError> {
    // The library panics on some malformed parts, on some only at first use.
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
        // What would change ids behind the caller's back goes: truncation, padding, tokens put
        // around.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        inner.with_post_processor(None::<PostProcessorWrapper>);
        // The name misleads: with `true`, text that spells a special token stays text.
        inner.set_encode_special_tokens(true);
        // Letters, a space, a digit, a sign and a line end: every part of a pattern runs once.
        let trial = inner.encode_fast("A trial: 1\n", false)?;
        inner.decode(trial.get_ids(), true)?;
        Ok::<_, tokenizers::Error>(inner)
    }));
    match loaded {
        Ok(inner) => inner.map_err(|error| TextError::load(path, error.to_string())),
        Err(panic) => Err(TextError::load(path, panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let owned = panic.downcast_ref::<String>().cloned();
    let text = owned.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "the tokenizers library panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use crate::Tokenizer;
    use crate::test_tokenizers::{special, tiny};
    use serde_json::{Value, json};
    use std::path::Path;

    fn refuse(file: &Value) -> String {
        let bytes = file.to_string().into_bytes();
        Tokenizer::from_bytes(Path::new("t.json"), &bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_panic_of_the_library_while_loading_is_an_error() {
        let mut file = tiny();
        file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
        let text = refuse(&file);
        assert!(text.starts_with("t.json: cannot be loaded: Precompiled"), "{text}");
    }

    #[test]
    fn a_panic_of_the_library_at_first_use_is_an_error_of_loading() {
        let mut file = tiny();
        file["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0});
        let text = refuse(&file);
        assert!(text.starts_with("t.json: cannot be loaded: chunk size"), "{text}");
    }

    #[test]
    fn what_the_library_refuses_is_an_error() {
        let mut file = tiny();
        file["version"] = json!("2.0");
        let text = refuse(&file);
        assert!(text.starts_with("t.json: cannot be loaded: Unknown tokenizer version"), "{text}");
    }

    #[test]
    fn an_added_token_after_a_gap_is_refused() {
        let mut file = tiny();
        file["added_tokens"][0]["id"] = json!(5);
        file["post_processor"] = Value::Null;
        assert_eq!(
            refuse(&file),
            "t.json [added_tokens \"<|end_of_text|>\"]: \
             ids must follow without a gap; expected 3, got 5"
        );
    }

    #[test]
    fn a_special_token_that_text_can_become_is_refused() {
        let mut file = tiny();
        file["added_tokens"][0] = special(1, "b");
        file["post_processor"] = Value::Null;
        assert_eq!(
            refuse(&file),
            "t.json [added_tokens \"b\"]: plain text becomes this special token; expected none to"
        );
    }
}
