//! Finds stop texts across token borders. Text that may begin a stop text is held back until it is
//! certain.

/// The stop texts of one answer.
#[derive(Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
    reached: Option<String>,
}

impl StopTexts {
    /// Waits for any of `stops`; an empty one is never reached.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), reached: None }
    }

    /// Adds `text`; returns what can be shown now and whether a stop text was reached.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let places = self.stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        // The first in the text, not the first in the list.
        if let Some((end, stop)) = places.min_by_key(|(at, _)| *at) {
            self.reached = Some(stop.clone());
            let shown = self.held[..end].to_owned();
            self.held.clear();
            return (shown, true);
        }
        let kept = self.possible_beginning();
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The stop text that was reached.
    pub fn reached(&self) -> Option<&str> {
        self.reached.as_deref()
    }

    /// The text still held back, which turned out to begin no stop text.
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest suffix of the held text that is a prefix of a stop text.
    fn possible_beginning(&self) -> usize {
        let ends = self.held.char_indices().map(|(at, _)| &self.held[at..]);
        let begins = |end: &&str| self.stops.iter().any(|stop| stop.starts_with(end));
        ends.into_iter().find(begins).map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], parts: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut texts = StopTexts::new(stops);
        let mut all = String::new();
        for part in parts {
            let (text, stopped) = texts.push(part);
            all += &text;
            if stopped {
                return (all, true);
            }
        }
        (all + &texts.finish(), false)
    }

    #[test]
    fn a_stop_text_is_found_wherever_tokens_end() {
        for parts in
            [&["one\nUser: two"][..], &["one", "\nUs", "er:", " two"], &["one\n", "User: "]]
        {
            assert_eq!(shown(&["\nUser:"], parts), ("one".to_owned(), true), "{parts:?}");
        }
        assert_eq!(shown(&["b", "ab"], &["xa", "b"]), ("x".to_owned(), true), "the first to begin");
    }

    #[test]
    fn what_only_looks_like_the_beginning_of_one_is_shown() {
        assert_eq!(shown(&["\nUser:"], &["a\n", "Us", "e it"]), ("a\nUse it".to_owned(), false));
        assert_eq!(shown(&["ééx"], &["é", "é", "y", "é"]), ("ééyé".to_owned(), false));
        assert_eq!(shown(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn nothing_is_held_longer_than_needed() {
        let stops = vec!["##".to_owned()];
        let mut texts = StopTexts::new(stops);
        assert_eq!(texts.push("a#"), ("a".to_owned(), false));
        assert_eq!(texts.push("b"), ("#b".to_owned(), false));
        assert_eq!(texts.reached(), None);
        assert!(texts.push("##").1);
        assert_eq!(texts.reached(), Some("##"));
    }
}
