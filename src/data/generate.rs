//! The tiny world as a source of documents: plain stories, and lines of JSON with conversations
//! about stories and preferences. What is told in them comes from `world`.

use serde_json::json;

use super::source::Source;
use super::world::{self, Split, Telling};

/// The first `count` stories of a world. Held-out stories, for validation, share none with those
/// to train on.
pub fn world_documents(seed: u64, split: Split, telling: Telling, count: u64) -> Source {
    let told = match telling {
        Telling::General => "general",
        Telling::Hq => "hq",
        Telling::Plain => "plain",
    };
    let key = key(seed, split, told);
    Source::generated(key, count, move |index| world::story(seed, split, telling, index).text)
}

/// Conversations about stories: `{"messages": …}`.
pub fn world_lessons(seed: u64, split: Split, count: u64) -> Source {
    Source::generated(key(seed, split, "lessons"), count, move |index| {
        let lesson = world::lesson(seed, split, index);
        let mut messages = Vec::new();
        for (at, exchange) in lesson.exchanges.iter().enumerate() {
            let question = match at {
                0 => format!("{} {}", lesson.story, exchange.question),
                _ => exchange.question.clone(),
            };
            messages.push(json!({"role": "user", "content": question}));
            messages.push(json!({"role": "assistant", "content": exchange.answer}));
        }
        json!({"messages": messages}).to_string()
    })
}

/// Preferences about stories: `{"prompt": …, "chosen": …, "rejected": …}`.
pub fn world_preferences(seed: u64, split: Split, count: u64) -> Source {
    Source::generated(key(seed, split, "preferences"), count, move |index| {
        let told = world::preference(seed, split, index);
        let prompt = format!("{} {}", told.story, told.question);
        json!({"prompt": prompt, "chosen": told.chosen, "rejected": told.rejected}).to_string()
    })
}

fn key(seed: u64, split: Split, told: &str) -> String {
    let part = match split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    };
    format!("tiny world {seed} {part} {told}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::documents::Content;

    fn fingerprint(source: &Source) -> String {
        source.fingerprint(&|| false).unwrap()
    }

    #[test]
    fn the_documents_are_the_stories() {
        let source = world_documents(3, Split::Train, Telling::General, 2);
        let texts: Vec<_> =
            source.documents(Content::Text).unwrap().map(|one| one.unwrap().text).collect();
        let story = |index| world::story(3, Split::Train, Telling::General, index).text;
        assert_eq!(texts, [story(0), story(1)]);
    }

    #[test]
    fn every_choice_gives_other_documents_with_another_fingerprint() {
        let base = fingerprint(&world_documents(1, Split::Train, Telling::General, 5));
        assert_eq!(base, fingerprint(&world_documents(1, Split::Train, Telling::General, 5)));
        for other in [
            world_documents(2, Split::Train, Telling::General, 5),
            world_documents(1, Split::HeldOut, Telling::General, 5),
            world_documents(1, Split::Train, Telling::Hq, 5),
            world_documents(1, Split::Train, Telling::General, 6),
        ] {
            assert_ne!(base, fingerprint(&other));
        }
    }
}
