//! Rewrites the two things of `transformers`' Jinja that the template engine lacks, on the same
//! lines, so that errors name the line of the file:
//!
//! ```text
//! {% generation %}…{% endgeneration %}   →   {% filter generation %}…{% endfilter %}
//! '(%s)' % message.role                  →   '(%s)'|format(message.role)
//! ```

/// `source` for the template engine.
pub(super) fn rewrite(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(begin) = rest.find('{') {
        let (plain, tail) = rest.split_at(begin);
        out += plain;
        let tag = tag_length(tail);
        let (inside, after) = tail.split_at(tag);
        if inside.starts_with("{%") {
            out += &percent(&generation(inside));
            if tag_name(inside) == "raw" {
                // Nothing in there is a tag but its end: it is text, and stays as it is.
                let length = raw_length(after);
                out += &after[..length];
                rest = &after[length..];
                continue;
            }
        } else if inside.starts_with("{{") {
            out += &percent(inside);
        } else {
            out += inside;
        }
        rest = after;
    }
    out + rest
}

/// The bytes of the tag, expression or comment that `text` begins with; one for a lone brace.
fn tag_length(text: &str) -> usize {
    match text.as_bytes().get(1) {
        Some(b'#') => text.find("#}").map_or(text.len(), |at| at + 2),
        Some(b'%') => 2 + balanced_length(&text[2..], &["%}"]),
        Some(b'{') => 2 + balanced_length(&text[2..], &["}}"]),
        _ => 1,
    }
}

/// The bytes up to the first of `ends` outside of strings and inner brackets. Two braces may end a
/// dictionary and not the expression around it: `{{ {'a': {}} }}`.
fn balanced_length(text: &str, ends: &[&str]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while at < text.len() {
        let here = &text[at..];
        if depth == 0
            && let Some(end) = ends.iter().find(|end| here.starts_with(**end))
        {
            return at + end.len();
        }
        match here.as_bytes()[0] {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += unit_length(here);
    }
    text.len()
}

/// The bytes of the quoted string or the letter that `text` begins with.
fn unit_length(text: &str) -> usize {
    match text.as_bytes()[0] {
        b'\'' | b'"' => string_length(text),
        _ => char_length(text),
    }
}

/// What stands in a tag, without its marks.
fn tag_name(tag: &str) -> &str {
    let name = tag.trim_start_matches("{%").trim_end_matches("%}");
    name.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim()
}

/// The bytes before the tag that ends a `raw` block; all where none does.
fn raw_length(text: &str) -> usize {
    let mut tags = text.match_indices("{%").map(|(at, _)| at);
    tags.find(|at| ends_raw(&text[at + 2..])).unwrap_or(text.len())
}

/// Whether the tag is `endraw` that `text` is behind the beginning of.
fn ends_raw(text: &str) -> bool {
    let name = text.trim_start_matches(['-', '+']).trim_start();
    let end = name.strip_prefix("endraw").map(str::trim_start);
    end.is_some_and(|end| end.trim_start_matches(['-', '+']).starts_with("%}"))
}

/// A `generation` tag as a `filter` tag; any other as it is.
fn generation(tag: &str) -> String {
    match tag_name(tag) {
        "generation" => tag.replacen("generation", "filter generation", 1),
        "endgeneration" => tag.replacen("endgeneration", "endfilter", 1),
        _ => tag.to_owned(),
    }
}

/// Every `'text' % value` of a tag as a call of the filter `format`.
fn percent(tag: &str) -> String {
    let (mut out, mut at) = (String::with_capacity(tag.len()), 0);
    while at < tag.len() {
        let here = &tag[at..];
        // Strings whole: a `%` or a bracket inside of one is text.
        let length = unit_length(here);
        out += &here[..length];
        at += length;
        if length < 2 || !here.starts_with(['\'', '"']) {
            continue;
        }
        let spaces = tag[at..].len() - tag[at..].trim_start().len();
        let operator = &tag[at + spaces..];
        if operator.starts_with('%') && !operator.starts_with("%}") {
            let value = operator[1..].trim_start();
            let length = operand_length(value);
            let (operand, _) = value.split_at(length);
            // A tuple is the list of values.
            let is_group = operand.starts_with('(') && group_length(operand) == length;
            let arguments = if is_group { operand.to_owned() } else { format!("({operand})") };
            // A filter binds no less tightly than `%`, so nothing around it needs brackets. The
            // value is rewritten too: it may hold another `%`.
            out += "|format";
            out += &percent(&arguments);
            at = tag.len() - value.len() + length;
        }
    }
    out
}

/// The bytes of a value with what follows it directly: attributes, subscripts, calls, filters.
fn operand_length(text: &str) -> usize {
    let mut at = match text.as_bytes().first() {
        Some(b'\'' | b'"') => string_length(text),
        Some(b'(' | b'[' | b'{') => group_length(text),
        _ => name_length(text),
    };
    loop {
        let spaces = text[at..].len() - text[at..].trim_start().len();
        let next = at + spaces;
        at = match text.as_bytes().get(next) {
            Some(b'[' | b'(') => next + group_length(&text[next..]),
            Some(b'.' | b'|') => {
                let name = text[next + 1..].trim_start();
                text.len() - name.len() + name_length(name)
            }
            _ => return at,
        };
    }
}

fn name_length(text: &str) -> usize {
    text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len())
}

/// The bytes up to the bracket that closes the first one.
fn group_length(text: &str) -> usize {
    1 + balanced_length(&text[1..], &["}", ")", "]"])
}

/// The bytes of the quoted string that `text` begins with.
fn string_length(text: &str) -> usize {
    let quote = text.as_bytes()[0];
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn char_length(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generation_becomes_a_filter_with_the_same_whitespace_control() {
        for (source, expected) in [
            ("{% generation %}x{% endgeneration %}", "{% filter generation %}x{% endfilter %}"),
            (
                "{%- generation -%}\nx{%+ endgeneration -%}",
                "{%- filter generation -%}\nx{%+ endfilter -%}",
            ),
            (
                "{# {% generation %} #}{{ '{% generation %}' }}",
                "{# {% generation %} #}{{ '{% generation %}' }}",
            ),
            ("{% set generation = 1 %}", "{% set generation = 1 %}"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn text_in_a_raw_block_stays() {
        for (source, expected) in [
            (
                "{% raw %}{% generation %}{{ '%s' % a }}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{{ '%s' % a }}{% endraw %}{% filter generation %}",
            ),
            (
                "{%- raw -%} {{ ' {%+endraw-%}{{ '%s' % a }}",
                "{%- raw -%} {{ ' {%+endraw-%}{{ '%s'|format(a) }}",
            ),
            ("{% raw %}{{ '%s' % a }}", "{% raw %}{{ '%s' % a }}"),
            ("{% raw %}{% endraw", "{% raw %}{% endraw"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn a_text_with_a_percent_sign_is_formatted() {
        for (source, expected) in [
            ("{{ '%s' % a }}", "{{ '%s'|format(a) }}"),
            (
                "{{ 'x' ~ \"%s\" % a.b['c']|upper ~ 'y' }}",
                "{{ 'x' ~ \"%s\"|format(a.b['c']|upper) ~ 'y' }}",
            ),
            ("{{ '%s %d' % (a, b) }}", "{{ '%s %d'|format(a, b) }}"),
            ("{% if '%s' % f(')') == '%' %}", "{% if '%s'|format(f(')')) == '%' %}"),
            ("{%- set x = 'a' %}", "{%- set x = 'a' %}"),
            ("{%- set x = 'a' -%}", "{%- set x = 'a' -%}"),
            ("{{ 5 % 2 }}", "{{ 5 % 2 }}"),
            ("{{ {'a': {}} }}%", "{{ {'a': {}} }}%"),
            ("{{ '%s' % ('%s' % a) }}", "{{ '%s'|format('%s'|format(a)) }}"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_plain_text_stays(text in "[{}%'\"\\\\#() a.|ä\n-]{0,40}") {
            let _ = rewrite(&text);
            let plain = text.replace('{', "");
            prop_assert_eq!(rewrite(&plain), plain);
        }
    }
}
