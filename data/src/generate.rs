//! The synthetic-stories dataset (`bitnet-stories`) as a source of documents.

use bitnet_stories::{Split, StoryStyle, dialogue, preference, story};

use super::source::DocumentSource;

/// The first `count` stories of a style.
pub fn generated_stories(seed: u64, split: Split, style: StoryStyle, count: u64) -> DocumentSource {
    let name = match style {
        StoryStyle::General => "general",
        StoryStyle::Hq => "hq",
        StoryStyle::Plain => "plain",
    };
    let key = key(seed, split, name);
    DocumentSource::generated(key, count, move |index| story(seed, split, style, index).text)
}

/// Dialogues about stories: `{"messages": …}`.
pub fn generated_dialogues(seed: u64, split: Split, count: u64) -> DocumentSource {
    let key = key(seed, split, "dialogues");
    DocumentSource::generated(key, count, move |index| dialogue(seed, split, index).to_json_line())
}

/// Preferences about stories: `{"prompt": …, "chosen": …, "rejected": …}`.
pub fn generated_preferences(seed: u64, split: Split, count: u64) -> DocumentSource {
    let key = key(seed, split, "pairs");
    DocumentSource::generated(key, count, move |index| {
        preference(seed, split, index).to_json_line()
    })
}

/// Identifies the documents in the names of cache files. It keeps its old words, so that caches
/// stay valid; documents that change take other words.
fn key(seed: u64, split: Split, name: &str) -> String {
    let split = match split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    };
    format!("tiny world {seed} {split} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{DocumentFormat, RowContent};

    fn fingerprint(source: &DocumentSource) -> String {
        source.fingerprint(&|| false).unwrap()
    }

    #[test]
    fn the_documents_are_the_stories() {
        let source = generated_stories(3, Split::Train, StoryStyle::General, 2);
        let texts: Vec<_> = source
            .documents(DocumentFormat::Text)
            .unwrap()
            .map(|one| one.unwrap().content)
            .collect();
        let story =
            |index| RowContent::Text(story(3, Split::Train, StoryStyle::General, index).text);
        assert_eq!(texts, [story(0), story(1)]);
    }

    #[test]
    fn every_choice_gives_other_documents_with_another_fingerprint() {
        let base = fingerprint(&generated_stories(1, Split::Train, StoryStyle::General, 5));
        assert_eq!(base, fingerprint(&generated_stories(1, Split::Train, StoryStyle::General, 5)));
        for other in [
            generated_stories(2, Split::Train, StoryStyle::General, 5),
            generated_stories(1, Split::HeldOut, StoryStyle::General, 5),
            generated_stories(1, Split::Train, StoryStyle::Hq, 5),
            generated_stories(1, Split::Train, StoryStyle::General, 6),
        ] {
            assert_ne!(base, fingerprint(&other));
        }
    }
}
