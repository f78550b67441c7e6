//! A datagram as sd_notify(3) has it, read: lines of `KEY=VALUE`, of which those that are known count.
//!
//! Whoever writes it may write anything: what is no line of that form, or has a value that makes no
//! sense, is passed over, and text for people becomes harmless here.

use std::time::Duration;

use crate::spec::Word;

/// What a datagram says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) words: Words,
    /// Whether the descriptor that came along is to be closed when all before it was handled.
    pub(super) barrier: bool,
}

/// What was said, of each kind the latest: however much is said, it is not much.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words(Vec<Word>);

impl Words {
    /// One more.
    pub(super) fn push(&mut self, word: Word) {
        let kind = std::mem::discriminant(&word);
        self.0.retain(|old| std::mem::discriminant(old) != kind);
        self.0.push(word);
    }

    /// All of another's, which came later.
    pub(super) fn extend(&mut self, later: Self) {
        for word in later.0 {
            self.push(word);
        }
    }

    /// In the order in which they were said.
    pub(super) fn into_vec(self) -> Vec<Word> {
        self.0
    }
}

impl Message {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut message = Self::default();
        let text = String::from_utf8_lossy(bytes);
        for line in text.split('\n') {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            if key == "BARRIER" {
                message.barrier = value == "1";
            } else if let Some(word) = word(key, value) {
                message.words.push(word);
            }
        }
        message
    }
}

fn word(key: &str, value: &str) -> Option<Word> {
    let yes = |word| (value == "1").then_some(word);
    match key {
        "READY" => yes(Word::Ready),
        "RELOADING" => yes(Word::Reloading),
        "STOPPING" => yes(Word::Stopping),
        "STATUS" => Some(Word::Status(harmless(value))),
        "WATCHDOG" if value == "trigger" => Some(Word::Ailing),
        "WATCHDOG" => yes(Word::Alive),
        "WATCHDOG_USEC" => micros(value).map(Word::Pace),
        "EXTEND_TIMEOUT_USEC" => micros(value).map(Word::Extend),
        "MAINPID" => Some(Word::Main(pid(value))),
        _ => None,
    }
}

/// The number of a process. Zero and less stand for groups, and for everybody.
fn pid(value: &str) -> Option<i32> {
    value.parse().ok().filter(|pid| *pid > 0)
}

/// A whole number of microseconds, more than none.
fn micros(value: &str) -> Option<Duration> {
    let micros: u64 = value.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros))
}

/// Text for people, of a length that they read, that moves no cursor and turns no line around.
fn harmless(text: &str) -> String {
    let shown = |c: char| match c {
        // Marks, embeddings, overrides and isolates of writing directions; separators of lines.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        '\u{2028}' | '\u{2029}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let text = text.trim_end_matches(['\r', '\0']);
    text.chars()
        .take(Word::STATUS_CHARS_MAX)
        .map(shown)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Word> {
        Message::read(text.as_bytes()).words.into_vec()
    }

    #[test]
    fn what_is_known_counts_and_all_else_is_passed_over() {
        let text = "READY=1\nMONOTONIC_USEC=7\nX_OWN=1\nSTATUS=up and about\nEXTEND_TIMEOUT_USEC=1500000\n";
        assert_eq!(
            words(text),
            [
                Word::Ready,
                Word::Status("up and about".to_owned()),
                Word::Extend(Duration::from_millis(1_500)),
            ]
        );
        for nothing in [
            "",
            "\n\n",
            "READY",
            "READY=",
            "READY=0",
            "READY=yes",
            " READY=1",
            "ready=1",
            "=1",
            "EXTEND_TIMEOUT_USEC=0",
            "EXTEND_TIMEOUT_USEC=-1",
            "EXTEND_TIMEOUT_USEC=1s",
            "EXTEND_TIMEOUT_USEC=99999999999999999999",
            "NOTIFY_SOCKET=/run/other",
            "FDSTORE=1",
        ] {
            assert_eq!(words(nothing), [], "{nothing:?}");
        }
        let watchdog = "WATCHDOG_USEC=2000000\nWATCHDOG=1\nWATCHDOG=trigger\nWATCHDOG=2";
        let pace = Word::Pace(Duration::from_secs(2));
        assert_eq!(words(watchdog), [pace, Word::Alive, Word::Ailing]);
        for (value, pid) in [
            ("7", Some(7)),
            ("1", Some(1)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("18446744073709551623", None),
            ("0", None),
            ("-1", None),
            ("-2147483648", None),
            ("", None),
            (" 7", None),
            ("7 ", None),
            ("0x7", None),
            ("seven", None),
        ] {
            assert_eq!(words(&format!("MAINPID={value}")), [Word::Main(pid)]);
        }
        assert!(Message::read(b"BARRIER=1").barrier);
        assert!(!Message::read(b"BARRIER=0").barrier);
    }

    #[test]
    fn of_each_kind_the_latest_counts_in_the_order_in_which_they_were_said() {
        let text = "READY=1\nRELOADING=1\nSTATUS=a\nREADY=1\nSTATUS=b";
        assert_eq!(
            words(text),
            [Word::Reloading, Word::Ready, Word::Status("b".to_owned())]
        );
        let many = "READY=1\nRELOADING=1\n".repeat(200);
        assert_eq!(words(&many), [Word::Ready, Word::Reloading]);
    }

    #[test]
    fn a_status_can_neither_move_the_cursor_nor_turn_a_line_nor_be_long() {
        let status = |text: &str| match words(&format!("STATUS={text}")).as_slice() {
            [Word::Status(text)] => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            status("a\u{1b}[2Jb\tc\u{7f}\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\u{fffd}"
        );
        assert_eq!(status("a\u{202e}b\u{2028}c"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(status("grün ✓\r"), "grün ✓");
        assert_eq!(status(&"x".repeat(4_000)).len(), Word::STATUS_CHARS_MAX);
        // What is behind a line break is a line of its own.
        assert_eq!(words("STATUS=a\nREADY=1").len(), 2);
        let lossy = Message::read(b"STATUS=\xff\xfe").words.into_vec();
        assert_eq!(lossy, [Word::Status("\u{fffd}\u{fffd}".to_owned())]);
    }
}
