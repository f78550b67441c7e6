//! What people read: messages and diagnostics.

use supervisor_rs::config::Diagnostic;

/// The most characters of a message of one line.
const MESSAGE_CHARS_MAX: usize = 600;

/// The most characters of a diagnostic: its message, a line of source, carets, and a help line.
const DIAGNOSTIC_CHARS_MAX: usize = 2_000;

/// The most diagnostics of one file.
const DIAGNOSTICS_MAX: usize = 60;

/// The most lines of a diagnostic: message, three of the excerpt, help.
const DIAGNOSTIC_LINES_MAX: usize = 5;

/// A message for a peer or the log: it says something, is short, and drives no terminal.
pub fn is_message(message: &str) {
    assert!(!message.is_empty());
    let chars = message.chars().count();
    assert!(chars <= MESSAGE_CHARS_MAX, "{chars}: {message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

/// As [`is_message`], of several lines.
pub fn is_message_of_lines(message: &str) {
    assert!(!message.is_empty());
    message.lines().for_each(is_message);
}

/// Every fault of a file stands in it, and can be shown.
pub fn are_diagnostics(bytes: &[u8], diagnostics: &[Diagnostic]) {
    assert!(!diagnostics.is_empty());
    assert!(diagnostics.len() <= DIAGNOSTICS_MAX);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let lines = lines_of(&text);
    for diagnostic in diagnostics {
        if let Some(place) = diagnostic.place {
            assert!(
                (1..=lines.len()).contains(&place.line),
                "line {} of {}: {}",
                place.line,
                lines.len(),
                diagnostic.message
            );
            let line = lines[place.line - 1];
            assert_eq!(diagnostic.source_line.as_deref(), Some(line));
            let after_last = line.chars().count() + 1;
            assert!((1..=after_last).contains(&place.column), "{diagnostic:?}");
            assert!(diagnostic.width >= 1);
            let beyond = (place.column - 1 + diagnostic.width).saturating_sub(after_last - 1);
            assert!(beyond == 0 || diagnostic.width == 1, "{diagnostic:?}");
        }
        // What stands in it is made harmless when it is shown.
        assert!(diagnostic.message.chars().count() <= MESSAGE_CHARS_MAX);
        let shown = diagnostic.to_string();
        assert!(shown.chars().count() <= DIAGNOSTIC_CHARS_MAX, "{shown}");
        assert!(shown.lines().count() <= DIAGNOSTIC_LINES_MAX, "{shown}");
        let drives = |c: char| c.is_control() && c != '\n';
        assert!(!shown.contains(drives), "{shown:?}");
    }
}

/// The lines of a text, without their ends, as YAML has them; the one after the last end counts.
fn lines_of(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r']) {
        lines.push(&rest[..end]);
        let length = if rest[end..].starts_with("\r\n") {
            2
        } else {
            1
        };
        rest = &rest[end + length..];
    }
    lines.push(rest);
    lines
}

/// The same text after a byte order mark; `None` when it has one, or may become too long.
pub fn marked(bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    let fits = bytes.len() + MARK.len() <= bytes_max;
    (fits && !bytes.starts_with(MARK)).then(|| [MARK, bytes].concat())
}
