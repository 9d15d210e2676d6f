//! The one limit of splitting text into words: very long runs of whitespace.

/// The regular expressions of GPT-2 and Llama 3 step back through a run of whitespace, and the
/// library's engine gives up after a million steps. It then silently takes the rest of the text as
/// one word. Below this length that never happens.
const MAX_RUN: usize = 900_000;

/// Refuses a text that the library would split wrongly.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if text.len() <= MAX_RUN || longest(text) <= MAX_RUN {
        return Ok(());
    }
    Err(format!("whitespace without end; expected at most {MAX_RUN} characters in a row, got more"))
}

fn longest(text: &str) -> usize {
    let mut run = 0;
    let lengths = text.chars().map(|letter| {
        run = if letter.is_whitespace() { run + 1 } else { 0 };
        run
    });
    lengths.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_is_counted_in_a_row_and_in_characters() {
        assert_eq!(longest(""), 0);
        assert_eq!(longest("a b"), 1);
        assert_eq!(longest("  a \u{3000}\r\n b"), 5);
    }

    #[test]
    fn a_run_up_to_the_limit_is_fine() {
        assert!(check(&"\u{3000}".repeat(MAX_RUN)).is_ok());
        assert!(check(&"a ".repeat(MAX_RUN)).is_ok());
        assert!(check(&" ".repeat(MAX_RUN + 1)).is_err());
    }
}
