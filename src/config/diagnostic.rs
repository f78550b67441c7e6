//! A fault as a person sees it: where, what, and the way out.
//!
//! ```text
//! /etc/children/web.yml:2:1: unknown key `comand`
//!   |
//! 2 | comand: sleep 10
//!   | ^^^^^^
//! help: did you mean `command`?
//! ```
//!
//! Invariants: what is shown holds no control character and none that reorders or hides text,
//! whatever stood in the file or its name, so that a file can neither drive a terminal nor forge
//! a line of a log; no shown line of source is wider than [`SHOWN_COLUMNS`]; a column counts
//! characters, the caret stands under what a terminal shows of them.
//!
//! Absent on purpose: colour. A diagnostic is also an answer on the wire and a line in a log.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use unicode_width::UnicodeWidthChar as _;

use super::fault::Fault;

/// How many columns of a source line are shown; the rest is cut around the place.
const SHOWN_COLUMNS: usize = 100;

/// How many columns are shown before the place in a line that has to be cut.
const SHOWN_BEFORE: usize = 40;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// From 1; lines end with LF, CR LF or CR, as YAML has it.
    pub line: usize,
    /// From 1, in characters; a byte order mark is none.
    pub column: usize,
}

/// One fault of a file: where, what, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// Where in it; `None` when the fault is of the file as a whole.
    pub place: Option<Place>,
    /// The line of `place`, as it stands in the file, without its end.
    pub source_line: Option<String>,
    /// How many characters the fault spans on that line; at least 1.
    pub width: usize,
    /// What is wrong: one line, lower case, no full stop.
    pub message: String,
    /// What to do about it, when we know.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A fault of a file as a whole, such as one that cannot be read.
    #[must_use]
    pub fn of_file(path: &Path, message: impl Into<String>, help: Option<String>) -> Self {
        Self {
            path: path.to_owned(),
            place: None,
            source_line: None,
            width: 1,
            message: message.into(),
            help,
        }
    }
}

impl std::error::Error for Diagnostic {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.to_string_lossy();
        f.write_str(&shown(&path))?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", shown(&self.message))?;
        if let (Some(place), Some(source_line)) = (self.place, &self.source_line) {
            let number = place.line.to_string();
            let gutter = " ".repeat(number.len());
            let (text, caret) = excerpt(source_line, place.column, self.width);
            write!(f, "\n{gutter} |\n{number} |")?;
            if !text.is_empty() {
                write!(f, " {text}")?;
            }
            write!(f, "\n{gutter} | {caret}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {}", shown(help))?;
        }
        Ok(())
    }
}

/// The part of a line that is shown, and the carets to stand under it.
///
/// The work is bounded by what is shown, not by how long the line is.
fn excerpt(line: &str, column: usize, width: usize) -> (String, String) {
    // No character is shown in less than one column's worth of the room there is, so that a
    // pile of combining marks is cut like anything else.
    let room = |cell: &String| columns(cell).max(1);
    let far = (column - 1).saturating_sub(SHOWN_COLUMNS);
    let near = line.chars().skip(far).take(3 * SHOWN_COLUMNS);
    let cells: Vec<String> = near.map(shown_char).collect();
    let at = (column - 1 - far).min(cells.len());

    let mut from = 0;
    if far > 0 || cells.iter().map(room).sum::<usize>() > SHOWN_COLUMNS {
        from = at;
        let mut before = 0;
        while from > 0 && before + room(&cells[from - 1]) <= SHOWN_BEFORE {
            from -= 1;
            before += room(&cells[from]);
        }
    }
    let mut text = String::from(if far + from > 0 { "…" } else { "" });
    let mut left = SHOWN_COLUMNS - columns(&text);
    let mut caret = " ".repeat(columns(&text));
    let mut marked = 0;
    for (i, cell) in cells.iter().enumerate().skip(from) {
        if room(cell) > left {
            text.push('…');
            break;
        }
        left -= room(cell);
        text.push_str(cell);
        if i < at {
            caret.push_str(&" ".repeat(columns(cell)));
        } else if i - at < width {
            marked += columns(cell);
        }
    }
    caret.push_str(&"^".repeat(marked.max(1)));
    (text, caret)
}

/// How many columns a terminal gives to a text.
fn columns(text: &str) -> usize {
    text.chars().filter_map(char::width).sum()
}

/// A text as it is shown: on one line, and nothing in it that a terminal obeys.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(shown_char).collect()
}

fn shown_char(c: char) -> String {
    let mut shown = String::new();
    if c.is_control() {
        shown.extend(c.escape_debug());
    } else if hides_or_reorders(c) {
        // A `String` takes whatever is written.
        let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
    } else {
        shown.push(c);
    }
    shown
}

/// Characters that show a text as another than it is (CVE-2021-42574), or break its line.
fn hides_or_reorders(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A stretch of a text, in bytes: from `start` up to, but without, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A file's text and where it came from: turns spans into places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    /// Without a byte order mark.
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// A fault at a span of this text.
    pub(super) fn diagnostic(&self, span: Span, fault: &Fault) -> Diagnostic {
        let (line, line_span) = self.line_of(span.start);
        let text = &self.text[line_span.start..line_span.end];
        let start = self.boundary(span.start).min(line_span.end);
        let end = self.boundary(span.end).clamp(start, line_span.end);
        let chars = |from, to| self.text[from..to].chars().count();
        Diagnostic {
            path: self.path.to_owned(),
            place: Some(Place {
                line,
                column: chars(line_span.start, start) + 1,
            }),
            source_line: Some(text.to_owned()),
            width: chars(start, end).max(1),
            message: fault.to_string(),
            help: fault.help(),
        }
    }

    /// Where a span begins.
    pub(super) fn place(&self, span: Span) -> Place {
        let (line, line_span) = self.line_of(span.start);
        let start = self.boundary(span.start).min(line_span.end);
        let column = self.text[line_span.start..start].chars().count() + 1;
        Place { line, column }
    }

    /// The line, from 1, that a byte stands in.
    pub(super) fn line_number(&self, at: usize) -> usize {
        self.line_of(at).0
    }

    /// The number of the line a byte stands in, and the line's span without its end.
    fn line_of(&self, at: usize) -> (usize, Span) {
        let at = self.boundary(at);
        let bytes = self.text.as_bytes();
        let (mut line, mut start) = (1, 0);
        for (i, byte) in bytes[..at].iter().enumerate() {
            let ends = match byte {
                b'\n' => true,
                b'\r' => bytes.get(i + 1) != Some(&b'\n'),
                _ => false,
            };
            if ends {
                (line, start) = (line + 1, i + 1);
            }
        }
        let len = bytes[start..]
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r'))
            .unwrap_or(bytes.len() - start);
        let end = start + len;
        (line, Span { start, end })
    }

    /// The nearest character boundary at or before a byte of the text.
    fn boundary(&self, at: usize) -> usize {
        (0..=at.min(self.text.len()))
            .rev()
            .find(|i| self.text.is_char_boundary(*i))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, start: usize, end: usize) -> Diagnostic {
        let source = Source {
            path: Path::new("/c/web.yml"),
            text,
        };
        source.diagnostic(Span { start, end }, &Fault::SeveralDocuments)
    }

    fn place(text: &str, at_byte: usize) -> (usize, usize) {
        let place = at(text, at_byte, at_byte + 1).place.expect("has a place");
        (place.line, place.column)
    }

    #[test]
    fn columns_count_characters_and_lines_end_as_yaml_says() {
        assert_eq!(place("ab\ncd", 3), (2, 1));
        assert_eq!(place("ab\r\ncd", 4), (2, 1));
        assert_eq!(place("ab\rcd", 3), (2, 1));
        assert_eq!(place("é: x", 2), (1, 2));
        assert_eq!(place("🦀🦀: x", 8), (1, 3));
        assert_eq!(place("", 0), (1, 1));
        assert_eq!(place("ab\n", 3), (2, 1));
    }

    #[test]
    fn a_place_outside_the_text_or_inside_a_character_is_moved_to_the_nearest() {
        assert_eq!(place("ab", 99), (1, 3));
        assert_eq!(place("🦀", 2), (1, 1));
        assert_eq!(at("ab", 5, 2).width, 1);
    }

    #[test]
    fn the_caret_stands_under_the_place_after_wide_characters() {
        let text = at("名前: wrong", 8, 13).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "1 | 名前: wrong");
        // Two characters of two columns each, a colon and a space.
        assert_eq!(lines[3], "  |       ^^^^^");
    }

    #[test]
    fn the_caret_stands_under_the_place_after_a_tab() {
        let text = at("a:\tb", 3, 4).to_string();
        assert!(text.contains("1 | a:\\tb\n  |     ^"), "{text}");
    }

    #[test]
    fn nothing_in_a_file_or_its_name_drives_the_terminal() {
        let diagnostic = Diagnostic {
            path: PathBuf::from("/c/\u{1b}[2Jx\n.yml"),
            place: Some(Place { line: 1, column: 1 }),
            source_line: Some("\u{1b}]0;owned\u{7}\u{202e}\u{9b}31m".to_owned()),
            width: 1,
            message: "unknown key `\u{1b}[31m\n`".to_owned(),
            help: Some("\u{2066}x\r".to_owned()),
        };
        let text = diagnostic.to_string();
        let bad = |c: char| (c.is_control() && c != '\n') || hides_or_reorders(c);
        assert!(!text.contains(bad), "{text:?}");
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}BAD{}", "x".repeat(5_000), "y".repeat(5_000));
        let text = at(&line, 5_000, 5_003).to_string();
        for line in text.lines().skip(1) {
            assert!(columns(line) <= SHOWN_COLUMNS + 6, "{line}");
        }
        let lines: Vec<&str> = text.lines().collect();
        let caret = lines[3].find('^').expect("a caret");
        let shown: String = lines[2].chars().skip(caret).take(3).collect();
        assert_eq!(shown, "BAD");
        assert!(lines[2].starts_with("1 | …") && lines[2].ends_with('…'));
    }

    #[test]
    fn a_long_line_of_wide_characters_is_cut_in_time_and_in_width() {
        let line = "名".repeat(20_000);
        let text = at(&line, 30_000, 60_000).to_string();
        for line in text.lines().skip(1) {
            assert!(columns(line) <= SHOWN_COLUMNS + 6, "{line}");
        }
    }

    #[test]
    fn a_pile_of_combining_marks_is_cut_like_anything_else() {
        let line = format!("a{}: x", "\u{301}".repeat(30_000));
        for start in [0, 1, 30_000, 60_001] {
            let text = at(&line, start, 60_000).to_string();
            assert!(text.chars().count() < 600, "{}", text.chars().count());
        }
    }

    #[test]
    fn a_fault_of_the_whole_file_is_one_line_and_its_help() {
        let path = Path::new("/c/web.yml");
        let text = Diagnostic::of_file(path, "too large", Some("shrink it".to_owned()));
        assert_eq!(text.to_string(), "/c/web.yml: too large\nhelp: shrink it");
    }
}
