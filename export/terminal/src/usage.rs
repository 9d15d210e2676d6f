//! A command line that clap does not accept, reported like every other error.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::facts::ErrorFacts;
use crate::report::{report_json, show};
use crate::{Stream, colours, printable};

/// The exit code of a command line that is not valid.
const USAGE: u8 = 2;

/// Prints what clap answers and returns the exit code; help and version are answers, not errors.
/// `suggestion` is what the user probably meant, where the program knows better than clap.
pub fn report_usage(error: &clap::Error, suggestion: Option<&str>) -> u8 {
    if !error.use_stderr() {
        // A closed stdout cannot be reported anywhere.
        let _ = error.print();
        return 0;
    }
    let plain = error.render().to_string();
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let misread = negative_value(error, &words);
    if let Some(meant) = suggestion.or(misread.as_deref()) {
        crate::report(meant, USAGE);
        return USAGE;
    }
    // Words of the command line come back in the message; clap's colours are escapes as well.
    let foreign = words.iter().any(|word| word.contains(char::is_control));
    let coloured = colours(Stream::Stderr) && !foreign;
    let shown = if coloured { error.render().ansi().to_string() } else { printable(&plain).into() };
    show(shown.trim_end());
    report_json(USAGE, vec![facts(error, &plain)]);
    USAGE
}

fn facts(error: &clap::Error, plain: &str) -> ErrorFacts {
    let plain = plain.strip_prefix("error: ").unwrap_or(plain);
    let paragraphs: Vec<_> = plain.split("\n\n").map(str::trim).collect();
    let tips = paragraphs.iter().filter_map(|text| text.strip_prefix("tip: "));
    let hint = tips.chain(["try --help"]).next().map(str::to_owned);
    let message = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "a command is missing".to_owned()
    } else {
        let lines: Vec<_> = paragraphs[0].lines().map(str::trim).collect();
        lines.join(" ")
    };
    ErrorFacts { message, field: argument(error), hint, ..ErrorFacts::default() }
}

/// A negative number where a flag takes none: clap reads it as a flag of its own.
fn negative_value(error: &clap::Error, words: &[String]) -> Option<String> {
    let unknown = argument(error).filter(|_| error.kind() == ErrorKind::UnknownArgument)?;
    let is_value = |pair: &&[String]| {
        let number = pair[1].starts_with(&unknown) && pair[1].parse::<f64>().is_ok();
        number && pair[0].starts_with("--")
    };
    let pair = words.windows(2).find(is_value)?;
    Some(format!("{}: expected a number that is not negative, got {}", pair[0], pair[1]))
}

/// The argument at fault.
fn argument(error: &clap::Error) -> Option<String> {
    let kinds = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand];
    let found = kinds.into_iter().find_map(|kind| error.get(kind))?;
    let words = match found {
        ContextValue::String(word) => word.clone(),
        ContextValue::Strings(words) => words.first()?.clone(),
        _ => return None,
    };
    // `--model <PATH>` is the argument and its value, `<MODEL|--model <MODEL>>` one with two forms.
    let mut parts = words.split(|c: char| c.is_whitespace() || "<>|".contains(c));
    let flag = parts.clone().find(|part| part.starts_with("--"));
    flag.or_else(|| parts.find(|part| !part.is_empty())).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command};

    fn refused(words: &[&str]) -> ErrorFacts {
        let command = Command::new("x")
            .arg(Arg::new("model").long("model").required(true).value_name("PATH"))
            .arg(Arg::new("n").long("n").value_parser(clap::value_parser!(u8)));
        let error = command.try_get_matches_from([&["x"], words].concat()).unwrap_err();
        facts(&error, &error.render().to_string())
    }

    #[test]
    fn a_negative_number_is_the_value_of_its_flag() {
        let words = ["x", "--model", "a", "--n", "-12"].map(str::to_owned);
        let command = Command::new("x")
            .arg(Arg::new("model").long("model"))
            .arg(Arg::new("n").long("n").value_parser(clap::value_parser!(u8)));
        let error = command.try_get_matches_from(&words).unwrap_err();
        let said = negative_value(&error, &words).unwrap();
        assert_eq!(said, "--n: expected a number that is not negative, got -12");
        assert_eq!(negative_value(&error, &words[..3]), None);
    }

    #[test]
    fn the_argument_at_fault_is_a_field() {
        for (words, field, said) in [
            (&[][..], "--model", "required arguments were not provided"),
            (&["--model", "a", "--n", "many"], "--n", "invalid value 'many'"),
            (&["--model", "a", "--modle", "b"], "--modle", "unexpected argument '--modle'"),
        ] {
            let facts = refused(words);
            assert_eq!(facts.field.as_deref(), Some(field), "{facts:?}");
            assert!(facts.message.contains(said), "{facts:?}");
            assert!(facts.hint.is_some() && !facts.message.contains("Usage"), "{facts:?}");
        }
        assert!(refused(&["--model", "a", "--modle", "b"]).hint.unwrap().contains("--model"));
    }
}
