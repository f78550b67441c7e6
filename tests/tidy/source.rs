//! Rust files, read as far as the rules need it: what is prose, what is code, what only tests
//! see, and which paths are used. No grammar: enough of one to be right about formatted code.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// A file of the tree.
pub(super) struct Source {
    /// From the root of the repository.
    pub(super) path: String,
    pub(super) text: String,
    /// The text with comments and strings blanked out.
    pub(super) code: String,
    /// The code with what only tests see blanked out as well.
    pub(super) live: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = blank_prose(text);
        let mut live = code.clone();
        for range in test_parts(&code) {
            blank(&mut live, range);
        }
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            live,
        }
    }

    /// Its place in the module tree; empty for the crate's root and the programs.
    pub(super) fn module(&self) -> Vec<&str> {
        let Some(inner) = self.path.strip_prefix("src/") else {
            return Vec::new();
        };
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        let inner = inner.strip_suffix("/mod").unwrap_or(inner);
        if inner == "lib" || inner.starts_with("bin/") {
            return Vec::new();
        }
        inner.split('/').collect()
    }

    pub(super) fn breach(&self, at: usize, what: &str) -> String {
        let line = self.text[..at].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }
}

/// The repository's Rust files. Modules that only tests see count as tests as a whole.
pub(super) fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        collect(&root.join(folder), &mut paths);
    }
    paths.sort();
    let mut all: Vec<Source> = paths
        .iter()
        .map(|path| {
            let name = path
                .strip_prefix(root)
                .ok()
                .and_then(Path::to_str)
                .expect("a file of the tree");
            Source::new(name, &fs::read_to_string(path).expect("UTF-8"))
        })
        .collect();
    exempt_test_modules(&mut all);
    all
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Blanks the files that are declared as `#[cfg(test)] mod name;`.
fn exempt_test_modules(all: &mut [Source]) {
    let mut exempt = BTreeSet::new();
    for source in all.iter() {
        for range in test_parts(&source.code) {
            let part = &source.code[range];
            if let Some(name) = part.split_once("mod ").map(|(_, rest)| rest)
                && let Some(name) = name.trim().strip_suffix(';')
            {
                let mut module = source.module();
                module.push(name.trim());
                exempt.insert(module.join("/"));
            }
        }
    }
    for source in all.iter_mut() {
        let module = source.module().join("/");
        let inside = |name: &String| {
            module == *name
                || module
                    .strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        if exempt.iter().any(inside) || source.path.starts_with("tests/") {
            let whole = 0..source.live.len();
            blank(&mut source.live, whole);
        }
    }
}

/// Overwrites with spaces; lines stay lines.
fn blank(text: &mut String, range: Range<usize>) {
    let blanked: String = text[range.clone()]
        .chars()
        .flat_map(|c| match c {
            '\n' => vec!['\n'],
            c => vec![' '; c.len_utf8()],
        })
        .collect();
    text.replace_range(range, &blanked);
}

/// Blanks comments, and what is inside string and character literals.
fn blank_prose(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = text.to_owned();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            at + comment_len(rest)
        } else if let Some(len) = literal_len(text, at) {
            at + len
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        blank(&mut code, at..end);
        at = end;
    }
    code
}

fn comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of the string or character literal that begins here.
fn literal_len(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at..];
    let in_word = text[..at].ends_with(is_word);
    let unprefixed = match in_word {
        true => rest,
        false => rest.trim_start_matches(['b', 'c']),
    };
    let prefix = rest.len() - unprefixed.len();
    if let Some(raw) = unprefixed.strip_prefix('r')
        && !in_word
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = &raw[hashes + 1..];
            let end = body
                .find(&close)
                .map_or(body.len(), |end| end + close.len());
            return Some(prefix + 1 + hashes + 1 + end);
        }
    }
    let quote = unprefixed.chars().next()?;
    if quote != '"' && quote != '\'' {
        return None;
    }
    let body = &unprefixed[1..];
    if quote == '\'' && !body.starts_with('\\') && body.chars().nth(1) != Some('\'') {
        // A lifetime.
        return None;
    }
    let mut escaped = false;
    for (end, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(prefix + 1 + end + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where a word stands in code.
pub(super) fn word_at(code: &str, word: &str) -> Vec<usize> {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| !code[..*at].ends_with(is_word))
        .filter(|at| !code[at + word.len()..].starts_with(is_word))
        .collect()
}

/// What stands under `#[cfg(test)]`: items, fields, variants, arms and statements.
pub(super) fn test_parts(code: &str) -> Vec<Range<usize>> {
    const MARK: &str = "#[cfg(test)]";
    let starts = code.match_indices(MARK).map(|(at, _)| at);
    starts
        .map(|at| at..part_end(code, at + MARK.len()))
        .collect()
}

pub(super) fn part_end(code: &str, from: usize) -> usize {
    const ITEMS: [&str; 18] = [
        "fn",
        "mod",
        "use",
        "struct",
        "enum",
        "impl",
        "const",
        "static",
        "type",
        "trait",
        "macro_rules",
        "let",
        "if",
        "match",
        "unsafe",
        "async",
        "extern",
        "for",
    ];
    let mut start = from;
    while code[start..].trim_start().starts_with("#[") {
        start += code[start..].find(']').map_or(0, |end| end + 1);
    }
    let mut words = code[start..]
        .split(|c: char| !is_word(c))
        .filter(|word| !word.is_empty() && !["pub", "crate", "super", "in"].contains(word));
    let is_item = words.next().is_some_and(|word| ITEMS.contains(&word));
    let mut depth = 0;
    for (at, c) in code[start..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth == 0 && is_item {
                    return start + at + 1;
                }
            }
            ';' if depth == 0 => return start + at + 1,
            ',' if depth == 0 && !is_item => return start + at + 1,
            _ => {}
        }
        if depth < 0 {
            return start + at;
        }
    }
    code.len()
}

/// Every path in the code, `use` groups written out, with where it stands.
pub(super) fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = tokens[at].1.starts_with(is_word) && (at == 0 || tokens[at - 1].1 != "::");
        if starts {
            at = path(&tokens, at, &mut Vec::new(), &mut found).max(at + 1);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path from `at`, behind `prefix`; returns where it ends.
fn path(
    tokens: &[(usize, &str)],
    mut at: usize,
    prefix: &mut Vec<String>,
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |(_, text)| *text);
    let depth = prefix.len();
    let place = tokens[at].0;
    while token(at).starts_with(is_word) {
        prefix.push(token(at).to_owned());
        at += 1;
        if token(at) != "::" || !(token(at + 1).starts_with(is_word) || token(at + 1) == "{") {
            found.push((place, prefix.clone()));
            prefix.truncate(depth);
            return at;
        }
        at += 1;
    }
    // A group.
    at += 1;
    while at < tokens.len() && token(at) != "}" {
        if token(at).starts_with(is_word) || token(at) == "{" {
            at = path(tokens, at, prefix, found);
            if token(at) == "as" {
                at += 2;
            }
        } else {
            at += 1;
        }
    }
    prefix.truncate(depth);
    at + 1
}

fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        let rest = &code[at..];
        let len = if is_word(c) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        if !c.is_whitespace() {
            found.push((at, &rest[..len]));
        }
        at += len;
    }
    found
}

#[test]
fn test_parts_end_where_the_item_ends() {
    let live = |text: &str| Source::new("src/x.rs", text).live.replace(' ', "");
    assert_eq!(
        live("#[cfg(test)] mod tests { fn a() {} } fn b() {}"),
        "fnb(){}"
    );
    assert_eq!(live("#[cfg(test)] mod tests; fn b() {}"), "fnb(){}");
    assert_eq!(
        live("#[cfg(test)] #[allow(x)] fn a(x: [u8; 2]) { y; } c"),
        "c"
    );
    assert_eq!(
        live("struct A { #[cfg(test)] bug: Option<u8>, b: u8 }"),
        "structA{b:u8}"
    );
    assert_eq!(live("enum A { B, #[cfg(test)] C { d: u8 } }"), "enumA{B,}");
    assert_eq!(live("{ #[cfg(test)] if a { return; } b }"), "{b}");
}

#[test]
fn use_groups_are_written_out() {
    let code = "use crate::{a::{self, b as c, d::*}, e}; fn f() { std::fs::read::<X>(y::Z) }";
    let all: Vec<String> = paths(code)
        .into_iter()
        .map(|(_, path)| path.join("::"))
        .collect();
    for expected in [
        "crate::a::self",
        "crate::a::b",
        "crate::a::d",
        "crate::e",
        "std::fs::read",
        "y::Z",
    ] {
        assert!(
            all.iter().any(|path| path == expected),
            "{expected}: {all:?}"
        );
    }
}
