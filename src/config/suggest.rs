//! The nearest of the words we know to one we do not: "did you mean".
//!
//! Absent on purpose: any guess that is acted upon. A suggestion is only ever shown.
//!
//! Source: the optimal string alignment distance, as in Boytsov, "Indexing methods for
//! approximate dictionary searching" (2011), section 2.

/// Words longer than this are not compared: what we know is shorter by far.
const WORD_CHARS_MAX: usize = 32;

/// The word among `known` that was most likely meant by `word`, when one is near enough.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = folded(word)?;
    let wrong_max = (word.len() / 3).clamp(1, 3);
    known
        .iter()
        .filter_map(|known| Some((distance(&word, &folded(known)?), *known)))
        // A word of one or two letters is near to everything: only its case may differ.
        .filter(|(wrong, _)| *wrong == 0 || (word.len() > 2 && *wrong <= wrong_max))
        .min_by_key(|(wrong, _)| *wrong)
        .map(|(_, known)| known)
}

/// The word without what people confuse most: case, and `-` with `_`.
fn folded(word: &str) -> Option<Vec<char>> {
    let fold = |c: char| match c {
        '-' => '_',
        other => other.to_ascii_lowercase(),
    };
    let folded: Vec<char> = word.chars().take(WORD_CHARS_MAX + 1).map(fold).collect();
    (folded.len() <= WORD_CHARS_MAX).then_some(folded)
}

/// How many insertions, deletions, replacements and swaps of neighbours lead from `a` to `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut two_above = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(x != y);
            row[j + 1] = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && a[i - 1] == *y && b[j - 1] == *x;
            if swapped {
                row[j + 1] = row[j + 1].min(two_above[j - 1] + 1);
            }
        }
        two_above = above;
        above = row;
    }
    above[b.len()]
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

    #[test]
    fn distances_are_those_of_the_book() {
        let of = |a: &str, b: &str| {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            distance(&a, &b)
        };
        assert_eq!(of("", ""), 0);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("ab", "ba"), 1);
        assert_eq!(of("ca", "abc"), 3);
    }
}
