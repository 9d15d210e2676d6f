//! Text in a page: whatever comes from a file is text and never markup.

/// `text` as the content of an element or of an attribute in double quotes. Control characters that
/// HTML forbids become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            // A reference to one of these is an error in HTML too, so there is nothing to escape it
            // to.
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A table; cells are text, those of `numbers` are aligned to the right.
pub(crate) fn html_table(headings: &[&str], rows: &[Vec<String>], numbers: bool) -> String {
    let heading = |text: &&str| format!("<th scope=col>{}</th>", escape(text));
    let cell = |(at, text): (usize, &String)| match (at, numbers) {
        (0, _) => format!("<th scope=row>{}</th>", escape(text)),
        (_, true) => format!("<td class=n>{}</td>", escape(text)),
        _ => format!("<td>{}</td>", escape(text)),
    };
    let row = |row: &Vec<String>| {
        format!("<tr>{}</tr>\n", row.iter().enumerate().map(cell).collect::<String>())
    };
    let head = match headings {
        [] => String::new(),
        _ => {
            format!("<thead><tr>{}</tr></thead>", headings.iter().map(heading).collect::<String>())
        }
    };
    let body: String = rows.iter().map(row).collect();
    format!("<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>")
}

/// A section of the page; nothing where there is nothing to say.
pub(crate) fn section(title: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    format!("<section><h2>{}</h2>\n{body}</section>\n", escape(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(
            escape("<a href=\"x\" b='y'>&\u{1b}"),
            "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}"
        );
        let table = html_table(&["<b>"], &[vec!["<i>".into(), "1".into()]], true);
        assert!(table.contains("&lt;b&gt;") && table.contains("&lt;i&gt;"));
        assert!(!table.contains("<i>") && section("x", "").is_empty());
    }
}
