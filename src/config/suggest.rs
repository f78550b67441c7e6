//! The nearest of the words we know to one we do not: "did you mean".
//!
//! Absent on purpose: any guess that is acted upon. A suggestion is only ever shown.

use strsim::osa_distance;

/// Words longer than this are not compared: what we know is shorter by far.
const WORD_CHARS_MAX: usize = 32;

/// The word among `known` that was most likely meant by `word`, when one is near enough.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = folded(word)?;
    let len = word.chars().count();
    let wrong_max = (len / 3).clamp(1, 3);
    known
        .iter()
        .filter_map(|known| Some((osa_distance(&word, &folded(known)?), *known)))
        // A word of one or two letters is near to everything: only its case may differ.
        .filter(|(wrong, _)| *wrong == 0 || (len > 2 && *wrong <= wrong_max))
        .min_by_key(|(wrong, _)| *wrong)
        .map(|(_, known)| known)
}

/// The word without what people confuse most: case, and `-` with `_`.
fn folded(word: &str) -> Option<String> {
    let fold = |c: char| match c {
        '-' => '_',
        other => other.to_ascii_lowercase(),
    };
    let short = word.chars().nth(WORD_CHARS_MAX).is_none();
    short.then(|| word.chars().map(fold).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 6] = [
        "command",
        "output",
        "repeat",
        "restart",
        "hooks",
        "max_delay",
    ];

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        for (typed, meant) in [
            ("comand", "command"),
            ("commnad", "command"),
            ("Command", "command"),
            ("outputs", "output"),
            ("hook", "hooks"),
            ("max-delay", "max_delay"),
            ("MaxDelay", "max_delay"),
            ("repat", "repeat"),
        ] {
            assert_eq!(nearest(typed, &KNOWN), Some(meant), "{typed}");
        }
    }

    #[test]
    fn what_resembles_nothing_finds_nothing() {
        for typed in ["", "x", "zz", "environment", "ho", "\u{1f980}", "loadpaths"] {
            assert_eq!(nearest(typed, &KNOWN), None, "{typed}");
        }
    }

    #[test]
    fn a_word_of_megabytes_is_not_compared() {
        assert_eq!(nearest(&"c".repeat(1 << 20), &KNOWN), None);
    }
}
