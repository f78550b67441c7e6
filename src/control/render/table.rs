//! Aligned columns, colours, and making foreign text harmless.

use super::Style;

/// Puts colour on text, or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub(super) Style);

impl Paint {
    pub(super) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self.0 {
            Style::Colour if !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Style::Colour | Style::Plain => text.to_owned(),
        }
    }

    /// A cell whose word tells good from bad at a glance; other words stay as they are.
    pub(super) fn word(self, cell: &str) -> String {
        let word = cell.split([' ', ',']).next().unwrap_or_default();
        match word {
            "running" | "ok" => self.paint("32", cell),
            "pending" | "starting" | "stopping" | "backoff" | "changed" => self.paint("33", cell),
            "failed" | "invalid" | "conflict" | "rejected" | "removed" | "error" => {
                self.paint("31", cell)
            }
            _ => cell.to_owned(),
        }
    }
}

/// Text without control characters: they are shown as escapes.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// Control characters, and those that turn the direction of text around (Unicode TR 36).
pub(super) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// As [`clean`], but lines stay lines, and spaces at the end go.
pub(super) fn clean_lines(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().split('\n').map(clean).collect();
    lines.join("\n")
}

/// What stands between two columns.
const GAP: &str = "  ";

/// Rows of cells, aligned. A column that is empty in every row is left out.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    head: Option<[&'static str; N]>,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn headed(head: [&'static str; N]) -> Self {
        Self {
            head: Some(head),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    pub(super) fn text(&self, paint: Paint) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            let widest = cells.max().unwrap_or(0);
            match (widest, &self.head) {
                (0, _) | (_, None) => widest,
                (_, Some(head)) => widest.max(head[column].len()),
            }
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let mut text = String::new();
        if let Some(head) = &self.head {
            let strong = |cell: &str| paint.strong(cell);
            line(&mut text, &widths, head.map(str::to_owned), strong);
        }
        for row in &self.rows {
            line(&mut text, &widths, row.clone(), |cell| paint.word(cell));
        }
        text
    }
}

impl Table<2> {
    /// Names and values, without a head.
    pub(super) fn keys() -> Self {
        Self {
            head: None,
            rows: Vec::new(),
        }
    }

    /// A value of several lines stands under its first; one that is empty is left out.
    pub(super) fn key(&mut self, key: &str, value: &str) {
        for (index, part) in value.lines().enumerate() {
            let key = if index == 0 { key } else { "" };
            self.row([key.to_owned(), part.to_owned()]);
        }
    }
}

fn line<const N: usize>(
    text: &mut String,
    widths: &[usize; N],
    cells: [String; N],
    paint: impl Fn(&str) -> String,
) {
    let mut pad = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        if *width == 0 {
            continue;
        }
        if !cell.is_empty() {
            text.push_str(&pad);
            text.push_str(&paint(cell));
            pad.clear();
        }
        pad.push_str(&" ".repeat(width.saturating_sub(cell.chars().count())));
        pad.push_str(GAP);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::headed(["NAME", "EMPTY", "N"]);
        table.row(["a".to_owned(), String::new(), "1".to_owned()]);
        table.row(["longer".to_owned(), String::new(), String::new()]);
        assert_eq!(
            table.text(Paint(Style::Plain)),
            "NAME    N\na       1\nlonger\n"
        );
    }

    #[test]
    fn colour_changes_no_column() {
        let mut table = Table::headed(["NAME", "STATE", "PID"]);
        table.row(["web".to_owned(), "running".to_owned(), "12".to_owned()]);
        table.row(["db".to_owned(), "unheard-of".to_owned(), "3".to_owned()]);
        let plain = table.text(Paint(Style::Plain));
        let coloured = table.text(Paint(Style::Colour));
        let mut stripped = coloured.clone();
        for code in ["1", "32", "0"] {
            stripped = stripped.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_ne!(coloured, plain);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn foreign_text_cannot_drive_a_terminal() {
        let evil = "a\u{1b}]0;title\u{7}b\rc\u{9b}2J\u{7f}\u{202e}\td";
        let cleaned = clean(evil);
        assert!(!cleaned.chars().any(is_harmful), "{cleaned:?}");
        assert_eq!(clean_lines("a\nb\u{8}\n\n"), "a\nb\\u{8}");
        assert_eq!(clean("grün – ok"), "grün – ok");
    }
}
