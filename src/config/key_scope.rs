//! A key's scope (`NAME.yml` beside `NAME.pem`): which commands, which children, from where.
//!
//! Invariants: a field that is absent limits nothing, and one that is there and empty allows
//! nothing; whoever leaves a value out is told, because it cannot be known which he meant. A
//! pattern that no child's name can match, and a network that is not what it looks like, are
//! faults: somebody relies on what he believes to have written.
//!
//! Absent on purpose: files and trust, what becomes of a key whose scope is bad, and what the
//! fields mean for each command (`control::keys`).

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    str::Chars,
};

use glob::{MatchOptions, Pattern};
use ipnet::IpNet;

use super::{
    Diagnostic, KEY_SCOPE_BYTES_MAX,
    diagnostic::Source,
    fault::{Fault, Quoted, Words},
    node::Value,
    rules::{Checker, Field, Rule, Shape, rule},
    text_of,
};
use crate::{command::Op, spec::ChildName};

/// The most entries that any of the lists may have: each command is held against all of them.
const ENTRIES_MAX: usize = 256;

/// The most characters that a pattern may have.
const PATTERN_CHARS_MAX: usize = 256;

/// How many bits of an IPv6 address stand before the IPv4 address that is mapped into it.
const MAPPED_BITS: u8 = 96;

/// The commands, as they are called on the wire.
const OPS: Words = &[
    "start", "restart", "trystart", "stop", "check", "why", "wait", "events", "info", "kill",
    "upgrade",
];

/// What a key may be used for; `None` is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyScope {
    /// The commands, each once, in the order written.
    pub allow: Option<Vec<Op>>,
    /// Which children they may concern: those that any of these match.
    pub children: Option<Vec<ChildPattern>>,
    /// Where they may come from. IPv4 networks are IPv4's, however a socket may write the address.
    pub from: Option<Vec<IpNet>>,
}

/// A checked pattern over child names: `*`, `?`, `[a-z]` and `[!a-z]`, and upper case is not lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildPattern(Pattern);

impl ChildPattern {
    /// Whether this child is meant. Takes time in proportion to the name and the pattern.
    #[must_use]
    pub fn matches(&self, child: &ChildName) -> bool {
        let options = MatchOptions {
            case_sensitive: true,
            require_literal_separator: false,
            require_literal_leading_dot: false,
        };
        self.0.matches_with(child.as_str(), options)
    }
}

impl fmt::Display for ChildPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// The fields of a scope file.
const FIELDS: &[Rule<KeyScope>] = &[
    rule("allow", |c, f, scope| {
        scope.allow = entries(c, f, op, |op| op.as_str().to_owned());
    }),
    rule("children", |c, f, scope| {
        scope.children = entries(c, f, pattern, ToString::to_string);
    }),
    rule("from", |c, f, scope| {
        scope.from = entries(c, f, network, ToString::to_string);
    }),
];

/// Reads a key's scope file. `path` is where it is listed.
///
/// # Errors
///
/// Every fault of the file, in the order of their places.
pub fn key_scope(path: &Path, bytes: &[u8]) -> Result<KeyScope, Vec<Diagnostic>> {
    let text = text_of(path, bytes, KEY_SCOPE_BYTES_MAX)?;
    let mut checker = Checker::new(Source { path, text });
    let mut scope = KeyScope::default();
    let help = "write `allow: [check]`, or remove the file to let the key do everything";
    if let Some(root) = checker.root("a key's scope", help) {
        let shape = Shape {
            inside: None,
            elsewhere: &[],
        };
        checker.mapping(root.entries(), FIELDS, &shape, &mut scope);
    }
    if checker.has_faults() {
        return Err(checker.diagnostics());
    }
    Ok(scope)
}

/// A list of what one check makes of each entry; the same entry twice is a fault.
fn entries<T>(
    checker: &mut Checker<'_>,
    field: Field<'_>,
    check: fn(&mut Checker<'_>, Field<'_>) -> Option<T>,
    written: fn(&T) -> String,
) -> Option<Vec<T>> {
    if field.is_nothing() {
        let fault = Fault::Form {
            field: field.name,
            wanted: "a list",
            found: field.node.kind(),
            help: Some("write `[]` to allow nothing, or remove the line to allow everything"),
        };
        checker.fault(field.span(), fault);
        return None;
    }
    let mut seen = BTreeSet::new();
    if let Value::List(items) = &field.node.value
        && items.len() > ENTRIES_MAX
    {
        let (field_name, max) = (field.name, ENTRIES_MAX);
        checker.fault(
            field.key_span(),
            Fault::TooManyEntries {
                field: field_name,
                max,
            },
        );
        return None;
    }
    checker.each(field, |checker, item| {
        let value = check(checker, item)?;
        let text = written(&value);
        let found = Quoted::from(text.as_str());
        if !seen.insert(text) {
            let field = item.name;
            checker.fault(item.span(), Fault::ListedTwice { field, found });
            return None;
        }
        Some(value)
    })
}

fn op(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Op> {
    let word = checker.word(field, OPS)?;
    Op::ALL.into_iter().find(|op| op.as_str() == word)
}

fn pattern(checker: &mut Checker<'_>, field: Field<'_>) -> Option<ChildPattern> {
    let text = checker.line(field)?;
    let pattern = parse_pattern(field.name, text);
    pattern
        .map_err(|fault| checker.fault(field.span(), fault))
        .ok()
}

fn parse_pattern(field: &'static str, text: &str) -> Result<ChildPattern, Fault> {
    let wrong = |why: String, help: &'static str| Fault::Pattern {
        field,
        found: text.into(),
        why,
        help,
    };
    if text.chars().count() > PATTERN_CHARS_MAX {
        let max = PATTERN_CHARS_MAX;
        return Err(Fault::LongText { field, max });
    }
    if !text.contains(['*', '?', '[', ']', '!', '^', '{', '}', ',']) {
        let name: Result<ChildName, _> = text.parse();
        name.map_err(|source| Fault::ChildName { field, source })?;
    }
    if text.contains("**") {
        let why = "it has two `*` in a row".to_owned();
        return Err(wrong(
            why,
            "write one: it stands for any number of characters",
        ));
    }
    let mut chars: Vec<char> = Vec::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' | '?' => {}
            '[' => {
                let set = take_set(&mut rest);
                let set = set.ok_or_else(|| {
                    let why = "a `[` begins a set that does not end".to_owned();
                    wrong(why, "close it with `]`, such as in `web-[0-9]`")
                })?;
                if let Some(range) = backward_range(&set) {
                    let why = format!("the range `{range}` runs backwards");
                    return Err(wrong(why, "write the lower end first"));
                }
                chars.extend(set);
            }
            other => chars.push(other),
        }
    }
    if let Some(odd) = chars.into_iter().find(|c| !is_of_a_name(*c)) {
        let help = match odd {
            '!' => "a pattern says what is allowed; `[!a-z]` stands for one other character",
            '^' => "write `[!a-z]` for one character that is none of these",
            '{' | '}' | ',' => "write each alternative as an entry of its own",
            _ => {
                "names are made of letters, digits and `_ . @ -`; `*`, `?` and `[a-z]` stand for some"
            }
        };
        return Err(wrong(format!("no child's name holds `{odd}`"), help));
    }
    let pattern = Pattern::new(text)
        .map_err(|error| wrong(error.msg.to_owned(), "such as `web-*` or `web-[0-9]`"))?;
    Ok(ChildPattern(pattern))
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '@' | '-')
}

/// What stands in a set, less its brackets and the `!` that negates it; `None` when it has no end.
fn take_set(rest: &mut Chars<'_>) -> Option<Vec<char>> {
    let mut set = Vec::new();
    let mut first = rest.next()?;
    if first == '!' {
        first = rest.next()?;
    }
    // A `]` that stands first does not end the set.
    set.push(first);
    loop {
        match rest.next()? {
            ']' => return Some(set),
            c => set.push(c),
        }
    }
}

/// A range that holds nothing, such as `9-0`. In `[!9-0]` it would let everything through.
fn backward_range(mut set: &[char]) -> Option<String> {
    loop {
        match set {
            [low, '-', high, ..] if low > high => return Some(format!("{low}-{high}")),
            [_, '-', _, rest @ ..] | [_, rest @ ..] => set = rest,
            [] => return None,
        }
    }
}

fn network(checker: &mut Checker<'_>, field: Field<'_>) -> Option<IpNet> {
    let text = checker.text(field)?;
    let network = parse_network(field.name, text);
    network
        .map_err(|fault| checker.fault(field.span(), fault))
        .ok()
}

fn parse_network(field: &'static str, text: &str) -> Result<IpNet, Fault> {
    let wrong = || Fault::Network {
        field,
        found: text.into(),
        help: network_help(text),
    };
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    // The parser of `ipnet` reads `010.0.0.1`, which means 8.0.0.1 to others.
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits = match bits {
        Some(bits) => prefix_len(bits).ok_or_else(wrong)?,
        None if address.is_ipv4() => 32,
        None => 128,
    };
    let network = IpNet::new(address, bits).map_err(|_| wrong())?;
    let corrected = canonical(network);
    if corrected != network {
        let why = if corrected.addr().is_ipv4() == address.is_ipv4() {
            "is not the first address of its network"
        } else {
            "is an IPv4 network that is mapped into IPv6: peers are compared as IPv4"
        };
        return Err(Fault::NotTheNetwork {
            field,
            found: text.into(),
            why,
            corrected: shown(corrected),
        });
    }
    Ok(network)
}

/// A number of bits, in decimal digits alone.
fn prefix_len(text: &str) -> Option<u8> {
    let leading_zero = text.len() > 1 && text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !leading_zero).then(|| text.parse().ok())?
}

/// The network as peers are compared with it: no host bits, and IPv4 as IPv4.
fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    let IpNet::V6(six) = network else {
        return network;
    };
    let mapped = six.addr().to_ipv4_mapped();
    let bits = six.prefix_len().checked_sub(MAPPED_BITS);
    match mapped.zip(bits) {
        Some((address, bits)) => IpNet::new(address.into(), bits).unwrap_or(network),
        None => network,
    }
}

/// A network as it is written: that of one address is the address.
fn shown(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

fn network_help(text: &str) -> &'static str {
    let address = text.split('/').next().unwrap_or_default();
    if address.eq_ignore_ascii_case("localhost") {
        "write `127.0.0.1` and `::1`, each as an entry of its own"
    } else if text.starts_with('[') {
        "write it without the brackets"
    } else if text.parse::<SocketAddr>().is_ok() {
        "write it without the port"
    } else if address.contains('*') || address.contains('-') {
        "write a network, such as `10.0.0.0/8`"
    } else {
        "such as `10.0.0.0/8`, `192.0.2.7` or `2001:db8::/32`; a name is not looked up"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> KeyScope {
        key_scope(Path::new("/keys/deploy.yml"), text.as_bytes()).unwrap_or_else(|faults| {
            let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
            panic!("{text}: {}", told.join("\n"))
        })
    }

    fn is_refused(text: &str) -> bool {
        key_scope(Path::new("/keys/deploy.yml"), text.as_bytes()).is_err()
    }

    fn matches(pattern: &str, child: &str) -> bool {
        let pattern = parse_pattern("children", pattern).unwrap();
        pattern.matches(&child.parse().unwrap())
    }

    #[test]
    fn what_is_absent_limits_nothing_and_what_is_empty_allows_nothing() {
        assert_eq!(read("x-note: nothing\n"), KeyScope::default());
        assert_eq!(read("{}"), KeyScope::default());
        let nothing = read("allow: []\nchildren: []\nfrom: []\n");
        assert_eq!(nothing.allow, Some(Vec::new()));
        assert_eq!(nothing.children, Some(Vec::new()));
        assert_eq!(nothing.from, Some(Vec::new()));
    }

    #[test]
    fn a_value_that_was_left_out_is_a_fault_and_never_everything() {
        for text in [
            "",
            "#",
            "allow:",
            "children:",
            "from: ~",
            "allow: null",
            "~",
            "---",
        ] {
            assert!(is_refused(text), "{text:?}");
        }
    }

    #[test]
    fn every_command_can_be_allowed() {
        let all: Vec<&str> = Op::ALL.iter().map(|op| op.as_str()).collect();
        assert_eq!(OPS, all);
        let scope = read(&format!("allow: [{}]\n", all.join(", ")));
        assert_eq!(scope.allow, Some(Op::ALL.to_vec()));
    }

    #[test]
    fn a_pattern_matches_whole_names_in_their_case() {
        for (pattern, child) in [
            ("web-*", "web-1"),
            ("web-*", "web-"),
            ("web-?", "web-1"),
            ("*", "a"),
            ("*.*", "a.b"),
            ("web-[0-9]", "web-7"),
            ("web-[!0-9]", "web-x"),
            ("web-[a-]", "web--"),
            ("a@b_c.d", "a@b_c.d"),
        ] {
            assert!(matches(pattern, child), "{pattern} {child}");
        }
        for (pattern, child) in [
            ("web-*", "Web-1"),
            ("web-*", "web"),
            ("web-*", "my-web-1"),
            ("web", "web-1"),
            ("web-?", "web-10"),
            ("web-[0-9]", "web-x"),
            ("web.1", "web-1"),
        ] {
            assert!(!matches(pattern, child), "{pattern} {child}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_matched_in_no_time() {
        let child = "a".repeat(64);
        for unit in ["*a", "a*", "*?", "*[!b]"] {
            let many = unit.repeat(PATTERN_CHARS_MAX / unit.len() - 1);
            assert!(!matches(&format!("{many}b"), &child), "{unit}");
        }
        assert!(matches(&"*a".repeat(60), &child));
    }

    #[test]
    fn whatever_the_check_of_patterns_lets_through_can_be_compiled() {
        const PARTS: [&str; 9] = ["a", "*", "?", "[", "]", "!", "-", "z", "9"];
        for number in 0..9_u32.pow(5) {
            let text: String = (0..5)
                .map(|place| PARTS[(number / 9_u32.pow(place) % 9) as usize])
                .collect();
            match parse_pattern("children", &text) {
                Ok(_) => assert!(Pattern::new(&text).is_ok(), "{text}"),
                Err(Fault::Pattern { why, .. }) => {
                    let ours = ["two `*`", "does not end", "backwards", "no child's name"];
                    assert!(ours.iter().any(|part| why.contains(part)), "{text}: {why}");
                }
                Err(other) => assert!(matches!(other, Fault::ChildName { .. }), "{text}"),
            }
        }
    }

    #[test]
    fn a_set_that_would_let_everything_through_is_refused() {
        for text in ["[!z-a]", "[!b-a]*", "x[9-0]", "[a-c9-0]", "[]-+]"] {
            assert!(is_refused(&format!("children: ['{text}']\n")), "{text}");
        }
    }

    #[test]
    fn an_address_alone_is_a_network_of_one() {
        let from = read("from: [192.0.2.7, '::1', 10.0.0.0/8, '2001:db8::/32', 0.0.0.0/0]\n").from;
        let from: Vec<String> = from.unwrap().iter().map(ToString::to_string).collect();
        let expected = [
            "192.0.2.7/32",
            "::1/128",
            "10.0.0.0/8",
            "2001:db8::/32",
            "0.0.0.0/0",
        ];
        assert_eq!(from, expected);
    }

    #[test]
    fn a_network_that_could_be_read_in_two_ways_is_refused() {
        for text in [
            "10.0.0.1/8",
            "010.0.0.0/8",
            "0x0a.0.0.0/8",
            "167772160",
            "10",
            "10.0/8",
            "10.0.0.0/ 8",
            "::ffff:10.0.0.0/104",
            "::ffff:0:0/96",
            "10.0.0.0/8/8",
            "/8",
            "10.0.0.0/256",
            "1::/129",
        ] {
            assert!(is_refused(&format!("from: ['{text}']\n")), "{text}");
        }
    }

    #[test]
    fn no_list_has_more_entries_than_are_looked_through_for_a_command() {
        let list = |count: usize| {
            let items: String = (0..count).map(|i| format!("- web-{i}\n")).collect();
            format!("children:\n{items}")
        };
        assert!(!is_refused(&list(ENTRIES_MAX)));
        assert!(is_refused(&list(ENTRIES_MAX + 1)));
    }
}
