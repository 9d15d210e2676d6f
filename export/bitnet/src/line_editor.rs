//! One line typed on a terminal: editing with the usual keys, and a history of earlier lines.
//!
//! `console` reads the keys. It was chosen over a whole readline, because those that can be had
//! change features of `libc`, with which everything else would be compiled a second time.

use std::io::{self, Write};

use console::{Key, Term, measure_text_width};

/// A line being typed, and the lines before it.
#[derive(Debug, Default)]
pub(crate) struct LineEditor {
    text: Vec<char>,
    /// Where the next character goes.
    cursor: usize,
    history: Vec<String>,
    /// The entry of the history that is shown; its length for the new line.
    shown: usize,
    /// What was typed before an entry of the history was shown.
    draft: String,
}

/// What a key led to.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    /// The line may have changed.
    More,
    /// It is finished.
    Line(String),
    /// The end of the input.
    End,
}

impl LineEditor {
    /// Reads a line; `None` at the end of the input (Ctrl-D). Ctrl-C raises its signal.
    pub(crate) fn read_line(&mut self, prompt: &str) -> io::Result<Option<String>> {
        let mut terminal = Term::stdout();
        self.begin();
        loop {
            self.draw(&mut terminal, prompt)?;
            let pressed = match terminal.read_key() {
                Ok(key) => self.press(key),
                // Ctrl-C, if the program still lives.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Pressed::More,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Pressed::End,
                Err(error) => return Err(error),
            };
            if pressed != Pressed::More {
                writeln!(terminal)?;
            }
            match pressed {
                Pressed::More => {}
                Pressed::Line(line) => return Ok(Some(line)),
                Pressed::End => return Ok(None),
            }
        }
    }

    fn begin(&mut self) {
        self.show("");
        self.draft.clear();
        self.shown = self.history.len();
    }

    /// Draws the line again, as much of it as one row of the terminal holds.
    fn draw(&self, terminal: &mut Term, prompt: &str) -> io::Result<()> {
        let columns = usize::from(terminal.size().1).saturating_sub(prompt.len() + 1).max(1);
        let (seen, before) = self.visible(columns);
        // To the start of the row, erase it, write: one row, so that nothing has to be counted
        // upwards.
        write!(terminal, "\r\u{1b}[K{prompt}{seen}")?;
        let back = measure_text_width(&seen) - before;
        if back > 0 {
            write!(terminal, "\u{1b}[{back}D")?;
        }
        terminal.flush()
    }

    /// The part of the line around the cursor that fits, and its columns before the cursor.
    fn visible(&self, columns: usize) -> (String, usize) {
        let width = |text: &[char]| measure_text_width(&text.iter().collect::<String>());
        let mut start = 0;
        // By columns and not by characters: wide ones take two, accents none.
        while width(&self.text[start..self.cursor]) > columns {
            start += 1;
        }
        let mut end = self.text.len();
        while end > self.cursor && width(&self.text[start..end]) > columns {
            end -= 1;
        }
        (self.text[start..end].iter().collect(), width(&self.text[start..self.cursor]))
    }

    fn press(&mut self, key: Key) -> Pressed {
        match key {
            Key::Enter => return self.finish(),
            // Ctrl-D
            Key::Char('\u{4}') if self.text.is_empty() => return Pressed::End,
            Key::ArrowLeft | Key::Char('\u{2}') => self.cursor = self.cursor.saturating_sub(1),
            Key::ArrowRight | Key::Char('\u{6}') => {
                self.cursor = (self.cursor + 1).min(self.text.len());
            }
            Key::Home | Key::Char('\u{1}') => self.cursor = 0,
            Key::End | Key::Char('\u{5}') => self.cursor = self.text.len(),
            Key::Backspace => self.remove(self.cursor.saturating_sub(1)..self.cursor),
            Key::Del | Key::Char('\u{4}') => {
                self.remove(self.cursor..(self.cursor + 1).min(self.text.len()));
            }
            // Ctrl-U, Ctrl-K, Ctrl-W
            Key::Char('\u{15}') => self.remove(0..self.cursor),
            Key::Char('\u{b}') => self.remove(self.cursor..self.text.len()),
            Key::Char('\u{17}') => self.remove(self.word_start()..self.cursor),
            Key::ArrowUp | Key::Char('\u{10}') => self.recall(self.shown.saturating_sub(1)),
            Key::ArrowDown | Key::Char('\u{e}') => {
                self.recall((self.shown + 1).min(self.history.len()));
            }
            Key::Tab => self.insert(' '),
            Key::Char(letter) if !letter.is_control() => self.insert(letter),
            _ => {}
        }
        Pressed::More
    }

    fn finish(&mut self) -> Pressed {
        let line: String = self.text.iter().collect();
        // As shells do: no empty lines, and none twice in a row.
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
        }
        Pressed::Line(line)
    }

    fn insert(&mut self, letter: char) {
        self.text.insert(self.cursor, letter);
        self.cursor += 1;
    }

    fn remove(&mut self, range: std::ops::Range<usize>) {
        self.cursor = range.start;
        self.text.drain(range);
    }

    /// Where the word before the cursor begins.
    fn word_start(&self) -> usize {
        let before = &self.text[..self.cursor];
        let end = before.iter().rposition(|letter| !letter.is_whitespace()).map_or(0, |at| at + 1);
        before[..end].iter().rposition(|letter| letter.is_whitespace()).map_or(0, |at| at + 1)
    }

    /// Shows an entry of the history, or the new line after it.
    fn recall(&mut self, entry: usize) {
        // Leaving the new line: it comes back behind the last entry.
        if self.shown == self.history.len() {
            self.draft = self.text.iter().collect();
        }
        self.shown = entry;
        let line = self.history.get(entry).unwrap_or(&self.draft).clone();
        self.show(&line);
    }

    fn show(&mut self, line: &str) {
        self.text = line.chars().collect();
        self.cursor = self.text.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line after these keys; letters are typed.
    fn typed(editor: &mut LineEditor, keys: impl IntoIterator<Item = Key>) -> String {
        editor.begin();
        for key in keys {
            assert_eq!(editor.press(key), Pressed::More);
        }
        let Pressed::Line(line) = editor.press(Key::Enter) else { panic!("a line") };
        line
    }

    fn letters(text: &str) -> impl Iterator<Item = Key> {
        text.chars().map(Key::Char)
    }

    #[test]
    fn a_line_is_edited_where_the_cursor_is() {
        let mut editor = LineEditor::default();
        let keys = letters("whre ist it").chain([Key::Home, Key::ArrowRight, Key::ArrowRight]);
        let keys = keys.chain(letters("e")).chain([Key::End]);
        let keys = keys.chain(std::iter::repeat_n(Key::ArrowLeft, 3)).chain([Key::Backspace]);
        assert_eq!(typed(&mut editor, keys), "where is it");
        let keys = letters("one two three ").chain([Key::Char('\u{17}'), Key::Char('\u{17}')]);
        assert_eq!(typed(&mut editor, keys), "one ");
        let keys = letters("äöü").chain([Key::ArrowLeft, Key::Char('\u{15}'), Key::Del]);
        assert_eq!(typed(&mut editor, keys), "");
    }

    #[test]
    fn earlier_lines_come_back_and_the_new_one_is_kept() {
        let mut editor = LineEditor::default();
        for line in ["first", "second", "second", " "] {
            typed(&mut editor, letters(line));
        }
        assert_eq!(editor.history, ["first", "second"]);
        let up = |count| std::iter::repeat_n(Key::ArrowUp, count);
        assert_eq!(typed(&mut editor, up(9)), "first");
        assert_eq!(typed(&mut editor, up(1).chain(letters("!"))), "first!");
        let keys = letters("new").chain(up(2)).chain([Key::ArrowDown, Key::ArrowDown]);
        assert_eq!(typed(&mut editor, keys), "new");
    }

    #[test]
    fn escape_sequences_and_control_characters_never_enter_a_line() {
        let mut editor = LineEditor::default();
        let keys = [Key::UnknownEscSeq(vec!['[', '5']), Key::Escape, Key::Char('\u{7}')];
        assert_eq!(typed(&mut editor, keys), "");
        editor.begin();
        assert_eq!(editor.press(Key::Char('\u{4}')), Pressed::End);
    }

    #[test]
    fn a_long_line_is_shown_around_the_cursor() {
        let mut editor = LineEditor::default();
        editor.show("0123456789");
        assert_eq!(editor.visible(20), ("0123456789".to_owned(), 10));
        assert_eq!(editor.visible(4), ("6789".to_owned(), 4));
        editor.cursor = 2;
        assert_eq!(editor.visible(4), ("0123".to_owned(), 2));
        editor.show("日本語");
        assert_eq!(editor.visible(5), ("本語".to_owned(), 4));
    }
}
