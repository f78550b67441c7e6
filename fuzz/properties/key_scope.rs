//! Whatever a key's scope says, it is a whole scope or its faults are shown in their places.
//!
//! - A pattern matches the names that a plain reading of it matches, and no others.
//! - A network holds its own first address, and nothing of it lies outside of the bits it names.
//! - It is the same when the file begins with a byte order mark.
//! - Each fault lies within the file and is shown in a few lines.

use std::path::Path;

use supervisor_rs::{
    config::{KEY_SCOPE_BYTES_MAX, KeyScope, key_scope},
    spec::ChildName,
};

/// Panics when one of the properties does not hold.
pub fn holds(bytes: &[u8]) {
    let read = |bytes: &[u8]| key_scope(Path::new("/etc/keys/deploy.yml"), bytes);
    let result = read(bytes);
    match &result {
        Ok(scope) => is_whole(scope),
        Err(faults) => super::text::are_diagnostics(bytes, faults),
    }
    if let Some(marked) = super::text::marked(bytes, KEY_SCOPE_BYTES_MAX) {
        assert_eq!(read(&marked), result);
    }
}

fn is_whole(scope: &KeyScope) {
    let long = "a".repeat(64);
    let names = ["a", "Z", "web", "web-1", "web-10", "a.b_c@d-e", &long];
    for pattern in scope.children.iter().flatten() {
        let written: Vec<char> = pattern.to_string().chars().collect();
        for name in names {
            let chars: Vec<char> = name.chars().collect();
            let child: ChildName = name.parse().expect("a name");
            assert_eq!(
                pattern.matches(&child),
                matches(&written, &chars),
                "{pattern} {name}"
            );
        }
    }
    for network in scope.from.iter().flatten() {
        assert_eq!(network.addr(), network.network());
        assert!(network.contains(&network.addr()) && network.contains(&network.broadcast()));
        let mapped = network.addr().to_canonical();
        assert_eq!(mapped.is_ipv4(), network.addr().is_ipv4(), "{network}");
    }
}

/// Whether a pattern matches a name: the set of places in the pattern that may have been reached,
/// character by character.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let parts = parts(pattern);
    // Reached without a further character: past each `*`.
    let past_stars = |reached: &mut Vec<bool>| {
        for (at, part) in parts.iter().enumerate() {
            if reached[at] && matches!(part, Part::Any) {
                reached[at + 1] = true;
            }
        }
    };
    let mut reached = vec![false; parts.len() + 1];
    reached[0] = true;
    past_stars(&mut reached);
    for c in name {
        let mut next = vec![false; parts.len() + 1];
        for (at, part) in parts.iter().enumerate().filter(|(at, _)| reached[*at]) {
            match part {
                Part::Any => next[at] = true,
                Part::One => next[at + 1] = true,
                Part::Char(one) => next[at + 1] |= one == c,
                Part::Set { negated, ranges } => {
                    let inside = ranges.iter().any(|(low, high)| (low..=high).contains(&c));
                    next[at + 1] |= inside != *negated;
                }
            }
        }
        past_stars(&mut next);
        reached = next;
    }
    reached[parts.len()]
}

enum Part {
    Any,
    One,
    Char(char),
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

fn parts(pattern: &[char]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < pattern.len() {
        at += 1;
        parts.push(match pattern[at - 1] {
            '*' => Part::Any,
            '?' => Part::One,
            '[' => {
                let negated = pattern[at] == '!';
                at += usize::from(negated);
                // A `]` that stands first is one of the set.
                let rest = &pattern[at + 1..];
                let end = at + 1 + rest.iter().position(|c| *c == ']').expect("an end");
                let set = &pattern[at..end];
                at = end + 1;
                let ranges = ranges(set);
                Part::Set { negated, ranges }
            }
            c => Part::Char(c),
        });
    }
    parts
}

fn ranges(mut set: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    while let [first, rest @ ..] = set {
        if let ['-', high, after @ ..] = rest {
            ranges.push((*first, *high));
            set = after;
        } else {
            ranges.push((*first, *first));
            set = rest;
        }
    }
    ranges
}
