//! The house rules that a machine can check, read off the source tree itself.
//!
//! Layers and purity are what makes the core provable, sizes are what keeps it readable; see
//! ARCHITECTURE.md. Comments and strings are taken out first, so that rules may be written
//! about; parts under `#[cfg(test)]` are exempt where a rule says so. Each rule is itself
//! tested against a breach of it.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;

use source::{Source, is_word, part_end, paths, test_parts, tree, word_at};

/// The most lines of code, without tests, comments and blank lines, that a file may have.
const FILE_LINES_MAX: usize = 600;

/// The most lines that a function may have.
const FUNCTION_LINES_MAX: usize = 70;

/// The layers, lowest first; a file imports lower ones and its own folder.
const LAYERS: [&[&str]; 5] = [
    &["spec", "error"],
    &["command"],
    &[
        "config",
        "reconcile",
        "control::protocol",
        "clock",
        "trust",
        "passed",
        "telemetry",
    ],
    &["watch", "process", "probe", "journal", "control", "audit"],
    &["supervisor", "cli"],
];

/// Above every layer: the crate's root and the programs.
const ROOT: usize = LAYERS.len();

/// From this layer on a file may import its own layer too.
const SEES_ALL: usize = 4;

/// The one import besides: the log writes what the core says.
const EXCEPTION: (&str, &str) = ("telemetry", "reconcile::effect");

/// What is pure: no clock, file, socket, thread, environment or hash order.
const PURE: [&str; 5] = [
    "src/spec",
    "src/command",
    "src/reconcile",
    "src/config",
    "src/control/protocol",
];
/// Addresses are values: `std::net` is refused where it opens or asks something.
const IMPURE_PATHS: [&str; 21] = [
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::net::self",
    "std::env",
    "std::process",
    "std::io",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::os::fd",
    "std::os::linux",
    "std::os::unix::fs",
    "std::os::unix::net",
    "std::os::unix::process",
    "tokio",
    "rand",
    "rustix",
    "libc",
];
const IMPURE_WORDS: [&str; 4] = ["Instant", "SystemTime", "HashMap", "HashSet"];
const IMPURE_CALLS: [&str; 6] = [
    ".exists(",
    ".try_exists(",
    ".canonicalize(",
    ".metadata(",
    ".read_dir(",
    ".read_link(",
];

/// Where `unsafe` may stand.
const UNSAFE_HOME: &str = "src/process/";

const INVARIANTS_HOME: &str = "src/reconcile/mod.rs";
const INVARIANTS_MAX: usize = 10;

fn layer_of(module: &[&str]) -> Option<usize> {
    let Some(first) = module.first() else {
        return Some(ROOT);
    };
    let two = module
        .iter()
        .take(2)
        .copied()
        .collect::<Vec<_>>()
        .join("::");
    LAYERS
        .iter()
        .position(|names| names.contains(&two.as_str()))
        .or_else(|| LAYERS.iter().position(|names| names.contains(first)))
}

/// The module of this crate that a path leads to, if it leads to one.
fn target<'a>(from: &Source, path: &'a [String]) -> Option<Vec<&'a str>> {
    let supers = path
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let skipped = match path.first().map(String::as_str) {
        Some("crate" | "supervisor_rs") => 1,
        Some("super") if supers >= from.module().len() => supers,
        Some(_) | None => return None,
    };
    Some(path[skipped..].iter().map(String::as_str).collect())
}

fn breaches_of_layers(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let module = source.module();
    let Some(own) = layer_of(&module) else {
        return vec![source.breach(
            0,
            "has no layer: give it one in tests/tidy.rs and src/lib.rs",
        )];
    };
    if own >= SEES_ALL {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for (at, path) in paths(&source.live) {
        let Some(target) = target(source, &path).filter(|target| !target.is_empty()) else {
            continue;
        };
        let lower = layer_of(&target).is_some_and(|layer| layer < own);
        let same_folder = target.first() == module.first();
        let excepted =
            module.join("::") == EXCEPTION.0 && target.join("::").starts_with(EXCEPTION.1);
        if !(lower || same_folder || excepted) {
            let what = format!(
                "`{}` is not in a lower layer or its own folder",
                path.join("::")
            );
            breaches.push(source.breach(at, &what));
        }
    }
    // The protocol is pure although its folder is an organ.
    if module.starts_with(&["control", "protocol"]) {
        for (at, path) in paths(&source.live) {
            let sibling = path.first().is_some_and(|first| first == "super") && module.len() == 2
                || target(source, &path).is_some_and(|target| {
                    target.first() == Some(&"control") && target.get(1) != Some(&"protocol")
                });
            if sibling {
                let what = format!("`{}`: the protocol knows no organ", path.join("::"));
                breaches.push(source.breach(at, &what));
            }
        }
    }
    breaches
}

fn breaches_of_purity(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|pure| source.path.starts_with(pure)) {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for (at, path) in paths(&source.live) {
        let path = path.join("::");
        let within = |impure: &&&str| {
            path.strip_prefix(**impure)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        if path.contains("::")
            && let Some(impure) = IMPURE_PATHS.iter().find(within)
        {
            breaches.push(source.breach(at, &format!("`{impure}` in pure code")));
        }
    }
    for word in IMPURE_WORDS {
        for at in word_at(&source.live, word) {
            breaches.push(source.breach(at, &format!("`{word}` in pure code")));
        }
    }
    for call in IMPURE_CALLS {
        for (at, _) in source.live.match_indices(call) {
            breaches.push(source.breach(at, &format!("`{call}…)` in pure code")));
        }
    }
    breaches
}

fn breaches_of_size(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = source.live.lines().filter(|line| !line.trim().is_empty());
    let count = lines.count();
    if count > FILE_LINES_MAX {
        let what = format!("{count} lines of code, at most {FILE_LINES_MAX}: split it");
        breaches.push(source.breach(0, &what));
    }
    for at in word_at(&source.live, "fn") {
        let end = part_end(&source.live, at);
        let lines = source.live[at..end].matches('\n').count() + 1;
        let is_item = source.live[at + 2..].trim_start().starts_with(is_word);
        if is_item && lines > FUNCTION_LINES_MAX {
            let what = format!("a function of {lines} lines, at most {FUNCTION_LINES_MAX}");
            breaches.push(source.breach(at, &what));
        }
    }
    breaches
}

fn breaches_of_head(source: &Source) -> Vec<String> {
    match source.text.starts_with("//! ") {
        true => Vec::new(),
        false => vec![source.breach(0, "does not begin with a `//!` head")],
    }
}

/// What stands nowhere, or only in one place.
fn breaches_of_bans(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    let banned = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    for text in banned {
        for (at, _) in source.code.match_indices(text) {
            if !source.code[..at].ends_with(is_word) {
                breaches.push(source.breach(at, &format!("`{text}`")));
            }
        }
    }
    if !source.path.starts_with(UNSAFE_HOME) {
        for at in word_at(&source.code, "unsafe") {
            breaches.push(source.breach(at, &format!("`unsafe` outside {UNSAFE_HOME}")));
        }
    }
    if source.path.starts_with("src/reconcile/") {
        for at in word_at(&source.live, "_") {
            let after = source.live[at + 1..].trim_start();
            let before = source.live[..at].trim_end();
            let arm = after.starts_with("=>") || after.starts_with("if ");
            if arm && before.ends_with(['{', ',', '}', '|']) {
                breaches.push(source.breach(at, "a `_` arm in the core"));
            }
        }
    }
    breaches
}

/// The invariants that are written down and that no test cites.
fn uncited(all: &[Source]) -> Vec<String> {
    let Some(home) = all.iter().find(|source| source.path == INVARIANTS_HOME) else {
        return Vec::new();
    };
    let stated = (1..=INVARIANTS_MAX)
        .map(|number| format!("I{number}"))
        .filter(|name| !word_at(&home.text, name).is_empty());
    stated
        .filter(|name| !all.iter().any(|source| cites(source, name)))
        .map(|name| format!("{INVARIANTS_HOME}: `{name}` is cited by no test"))
        .collect()
}

/// Whether a test part of this file names the invariant, in prose or in a test's name.
fn cites(source: &Source, name: &str) -> bool {
    let in_name = format!("_{}_", name.to_lowercase());
    let only_tests = source.live.trim().is_empty();
    let says = |part: &str| !word_at(part, name).is_empty() || part.contains(&in_name);
    if only_tests {
        return says(&source.text);
    }
    let mut parts = test_parts(&source.code).into_iter();
    parts.any(|part| says(&source.text[part]))
}

fn assert_none(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

fn check(rule: impl Fn(&Source) -> Vec<String>) {
    let all = tree();
    assert!(all.len() > 10, "the tree was not found");
    assert_none(&all.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn files_import_lower_layers_and_their_own_folder() {
    check(breaches_of_layers);
}

#[test]
fn the_core_the_configuration_and_the_protocol_are_pure() {
    check(breaches_of_purity);
}

#[test]
fn files_and_functions_are_short() {
    check(breaches_of_size);
}

#[test]
fn every_module_says_what_it_is_for() {
    check(breaches_of_head);
}

#[test]
fn nothing_is_unfinished_unsafe_or_ignored() {
    check(breaches_of_bans);
}

#[test]
fn every_invariant_is_cited_by_a_test() {
    assert_none(&uncited(&tree()));
}

/// The keys of a section of Cargo.toml.
fn manifest_keys(manifest: &str, section: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != section)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .collect()
}

#[test]
fn architecture_says_why_each_dependency_is_there_and_of_no_other() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect(name);
    let page = read("ARCHITECTURE.md");
    let table = page.split("| crate | why |").nth(1).expect("the table");
    let told: BTreeSet<String> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split(','))
        .map(|name| name.split('(').next().unwrap_or_default().trim().to_owned())
        .collect();
    assert_eq!(told, manifest_keys(&read("Cargo.toml"), "[dependencies]"));
}

#[test]
fn every_place_that_architecture_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the page");
    let places = page.split('`').skip(1).step_by(2);
    let places = places.filter(|place| place.starts_with("src/") || place.starts_with("tests/"));
    let missing: Vec<String> = places
        .filter(|place| !root.join(place).exists())
        .map(|place| format!("ARCHITECTURE.md names `{place}`"))
        .collect();
    assert_none(&missing);
}

// ---- README: its tables against the code belong here ----

// ---- the rules, tested against breaches of them ----

fn found(rule: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn prose_is_told_from_code() {
    let text = r####"
        // todo!() in a comment
        /* dbg!(1) /* nested */ dbg!(2) */
        let a = "todo!() \" dbg!()"; let b = r#"dbg!(" ")"#; let c = b"dbg!()";
        let d = '"'; let e: &'static str = "\\"; let f = '\''; let g = b'"'; let h = b"dbg!()";
    "####;
    assert_eq!(found(breaches_of_bans, "src/x.rs", text), 0);
    assert_eq!(
        found(breaches_of_bans, "src/x.rs", "fn f<'a>() { dbg!(1) }"),
        1
    );
    let hidden = "let a = '\"'; todo!(); let b = '\"';";
    assert_eq!(found(breaches_of_bans, "src/x.rs", hidden), 1);
}

#[test]
fn an_import_of_an_organ_by_an_organ_is_found() {
    let rule = breaches_of_layers;
    let journal = "src/journal/mod.rs";
    assert_eq!(found(rule, journal, "use crate::watch::Scan;"), 1);
    assert_eq!(
        found(rule, journal, "use crate::{clock, process::{A, B}};"),
        2
    );
    assert_eq!(found(rule, journal, "fn f() { super::watch::scan() }"), 1);
    assert_eq!(
        found(rule, "src/journal/log.rs", "use super::super::watch::A;"),
        1
    );
    assert_eq!(found(rule, "src/journal/log.rs", "use super::frame::A;"), 0);
    assert_eq!(
        found(
            rule,
            journal,
            "use crate::{spec::A, reconcile::B, journal::C};"
        ),
        0
    );
    assert_eq!(
        found(rule, journal, "#[cfg(test)] mod t { use crate::watch::A; }"),
        0
    );
    assert_eq!(found(rule, "src/spec.rs", "use crate::clock;"), 1);
    assert_eq!(
        found(rule, "src/config/raw.rs", "use crate::reconcile::A;"),
        1
    );
    assert_eq!(
        found(
            rule,
            "src/telemetry.rs",
            "use crate::reconcile::effect::Line;"
        ),
        0
    );
    assert_eq!(
        found(rule, "src/telemetry.rs", "use crate::reconcile::event::E;"),
        1
    );
    assert_eq!(
        found(rule, "src/supervisor.rs", "use crate::{watch, cli};"),
        0
    );
    assert_eq!(
        found(rule, "src/supervisor/start.rs", "use crate::{watch, cli};"),
        0
    );
    assert_eq!(
        found(rule, "src/bin/x.rs", "use supervisor_rs::{watch, cli};"),
        0
    );
    assert_eq!(found(rule, "src/helpers.rs", ""), 1);
    let protocol = "src/control/protocol.rs";
    assert_eq!(
        found(rule, protocol, "use crate::{command::A, spec::B};"),
        0
    );
    assert_eq!(found(rule, protocol, "use crate::control::server::A;"), 1);
    assert_eq!(found(rule, protocol, "use super::server::A;"), 1);
    assert_eq!(
        found(rule, "src/control/server.rs", "use super::protocol::A;"),
        0
    );
}

#[test]
fn impurity_is_found_however_it_is_spelled() {
    let rule = breaches_of_purity;
    for impure in [
        "use std::fs;",
        "use std::{path::Path, io::Read};",
        "use std::sync::{Arc, Mutex};",
        "use std::net::{IpAddr, ToSocketAddrs};",
        "fn f() { std::env::var(a) }",
        "use tokio::sync::mpsc;",
        "use std::time::Instant;",
        "fn f(x: &HashMap<A, B>) {}",
        "fn f(p: &Path) { p.exists() }",
    ] {
        for path in [
            "src/reconcile/child.rs",
            "src/config/mod.rs",
            "src/control/protocol.rs",
        ] {
            assert_eq!(found(rule, path, impure), 1, "{impure}");
        }
        assert_eq!(found(rule, "src/watch/mod.rs", impure), 0, "{impure}");
        let tested = format!("#[cfg(test)] mod tests {{ {impure} }}");
        assert_eq!(found(rule, "src/config/mod.rs", &tested), 0, "{impure}");
    }
    let pure =
        "use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc, time::Duration};";
    assert_eq!(found(rule, "src/config/mod.rs", pure), 0);
}

#[test]
fn a_long_file_and_a_long_function_are_found() {
    let rule = breaches_of_size;
    let long = format!("fn a() {{\n{}}}\n", "b();\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(found(rule, "src/x.rs", &long), 1);
    assert_eq!(found(rule, "src/x.rs", &format!("#[cfg(test)]\n{long}")), 0);
    let many = "const A: u8 = 1;\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(found(rule, "src/x.rs", &many), 1);
    let commented = "// why\n\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(found(rule, "src/x.rs", &commented), 0);
}

#[test]
fn bans_are_found_where_they_hold() {
    let rule = breaches_of_bans;
    let arm = "match a { B => c, _ => d }";
    assert_eq!(found(rule, "src/reconcile/mod.rs", arm), 1);
    assert_eq!(
        found(
            rule,
            "src/reconcile/mod.rs",
            "match a { B => {} _ if c => d }"
        ),
        1
    );
    assert_eq!(
        found(
            rule,
            "src/reconcile/mod.rs",
            "match a { (B, _) => c, D(_) => e }"
        ),
        0
    );
    assert_eq!(found(rule, "src/watch/mod.rs", arm), 0);
    assert_eq!(found(rule, "src/process/x.rs", "unsafe { f() }"), 0);
    assert_eq!(found(rule, "src/watch/mod.rs", "unsafe { f() }"), 1);
    assert_eq!(found(rule, "tests/it/x.rs", "#[ignore] fn f() {}"), 1);
    assert_eq!(found(breaches_of_head, "src/x.rs", "use a;"), 1);
    assert_eq!(found(breaches_of_head, "src/x.rs", "//! Why.\n"), 0);
}

#[test]
fn an_invariant_without_a_test_is_found() {
    let home = Source::new(INVARIANTS_HOME, "//! - I1 one\n//! - I4 four\nfn a() {}");
    let test = Source::new(
        "src/reconcile/child.rs",
        "fn a() {} #[cfg(test)] mod t { /* I4 */ }",
    );
    let talk = Source::new("src/reconcile/event.rs", "//! I1\nfn a() {}");
    assert_eq!(uncited(&[home, test, talk]).len(), 1);
    let silent = Source::new(INVARIANTS_HOME, "//! Not written yet.");
    assert_eq!(uncited(&[silent]).len(), 0);
}
