//! The vocabulary: names, places, nouns and adjectives that a scene can use. All other words are in
//! `templates`.

/// The pronouns of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gender {
    She,
    He,
}

impl Gender {
    pub(crate) const fn subject(self) -> &'static str {
        match self {
            Self::She => "she",
            Self::He => "he",
        }
    }

    pub(crate) const fn object(self) -> &'static str {
        match self {
            Self::She => "her",
            Self::He => "him",
        }
    }

    pub(crate) const fn possessive(self) -> &'static str {
        match self {
            Self::She => "her",
            Self::He => "his",
        }
    }
}

/// Names, each with one gender for good, so that pronouns can be learnt.
pub(crate) const NAMES: &[(&str, Gender)] = &[
    ("Mia", Gender::She),
    ("Anna", Gender::She),
    ("Lily", Gender::She),
    ("Rosa", Gender::She),
    ("Ella", Gender::She),
    ("Nina", Gender::She),
    ("Sue", Gender::She),
    ("Kate", Gender::She),
    ("Zoe", Gender::She),
    ("Jane", Gender::She),
    ("Tom", Gender::He),
    ("Ben", Gender::He),
    ("Max", Gender::He),
    ("Leo", Gender::He),
    ("Sam", Gender::He),
    ("Finn", Gender::He),
    ("Jack", Gender::He),
    ("Paul", Gender::He),
    ("Tim", Gender::He),
    ("Hugo", Gender::He),
];

/// What a person may be besides a girl or a boy.
pub(crate) const ANIMALS: &[&str] =
    &["rabbit", "fox", "bear", "mouse", "dog", "cat", "duck", "goat", "pig", "hen"];

/// What a person is like.
pub(crate) const NATURES: &[&str] =
    &["little", "kind", "clever", "brave", "friendly", "young", "quiet", "merry"];

/// Places, all of them places one is *in*, so that one answer form fits every place.
pub(crate) const PLACES: &[&str] = &[
    "garden", "kitchen", "park", "barn", "forest", "yard", "shop", "field", "school", "library",
    "meadow", "castle", "cave", "tent", "hall", "cellar",
];

/// Containers, and whether they have a lid that opens and closes.
pub(crate) const CONTAINERS: &[(&str, bool)] = &[
    ("box", true),
    ("bag", false),
    ("chest", true),
    ("trunk", true),
    ("case", true),
    ("basket", false),
    ("bucket", false),
    ("pot", false),
];

/// Colours. None begins with a vowel sound, so a first mention always takes "a".
pub(crate) const COLOURS: &[&str] =
    &["red", "green", "yellow", "blue", "white", "black", "brown", "pink", "grey", "purple"];

/// The colours at the head of [`COLOURS`] that fruit may have.
pub(crate) const FRUIT_COLOURS: usize = 3;

/// Things one can hold, and whether they are fruit.
pub(crate) const THINGS: &[(&str, bool)] = &[
    ("key", false),
    ("ball", false),
    ("ring", false),
    ("cup", false),
    ("book", false),
    ("hat", false),
    ("kite", false),
    ("doll", false),
    ("drum", false),
    ("bell", false),
    ("scarf", false),
    ("shell", false),
    ("stone", false),
    ("pen", false),
    ("spoon", false),
    ("flute", false),
    ("lamp", false),
    ("plate", false),
    ("boat", false),
    ("ribbon", false),
    ("button", false),
    ("brush", false),
    ("coat", false),
    ("apple", true),
    ("pear", true),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_colour_or_nature_needs_the_article_an() {
        let words = COLOURS.iter().chain(NATURES);
        assert!(words.into_iter().all(|word| !word.starts_with(['a', 'e', 'i', 'o', 'u'])));
    }

    #[test]
    fn no_word_stands_for_two_things() {
        let mut words: Vec<&str> = PLACES.iter().chain(ANIMALS).copied().collect();
        words.extend(THINGS.iter().chain(CONTAINERS).map(|(noun, _)| noun));
        words.extend(NAMES.iter().map(|(name, _)| name));
        let total = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), total);
    }
}
