//! The tiny world as a source of documents. The stories themselves come from `world`.

use super::source::Source;
use super::world::{self, Split, Telling};

/// The first `count` stories of a world. Held-out stories, for validation, share none with those
/// to train on.
pub fn world_documents(seed: u64, split: Split, telling: Telling, count: u64) -> Source {
    let part = match split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    };
    let told = match telling {
        Telling::General => "general",
        Telling::Hq => "hq",
    };
    let key = format!("tiny world {seed} {part} {told}");
    Source::generated(key, count, move |index| world::story(seed, split, telling, index).text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(source: &Source) -> String {
        source.fingerprint(&|| false).unwrap()
    }

    #[test]
    fn the_documents_are_the_stories() {
        let source = world_documents(3, Split::Train, Telling::General, 2);
        let texts: Vec<_> = source.documents().unwrap().map(|one| one.unwrap().text).collect();
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
