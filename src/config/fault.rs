//! Every way a configuration can be wrong, as data; text and help are made from it here.
//!
//! Messages are lower case without a full stop; what the file says stands in backticks and is
//! cut, so that a fault of a huge value is still a line.
//!
//! Absent on purpose: where the fault is. A `Fault` and a span make a `Diagnostic`.

mod life;

use std::time::Duration;

pub(super) use self::life::LifeFault;

use super::{node::Kind, suggest::nearest};
use crate::spec::NameError;

/// The most characters of a file's own text that a message repeats.
const QUOTED_CHARS_MAX: usize = 60;

/// A text from the file, cut to what a message can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quoted(String);

impl From<&str> for Quoted {
    fn from(text: &str) -> Self {
        let mut cut: String = text.chars().take(QUOTED_CHARS_MAX).collect();
        if cut.len() < text.len() {
            cut.push('…');
        }
        Self(cut)
    }
}

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

/// The words a field takes.
pub(super) type Words = &'static [&'static str];

/// One way a configuration can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    // Of the text.
    #[error("the file has more than {max} bytes")]
    TooLarge { max: usize },
    #[error("the file's own path is not UTF-8")]
    PathNotUtf8,
    #[error("not UTF-8: byte 0x{byte:02x}")]
    NotUtf8 { byte: u8 },
    #[error("not valid YAML: {why}")]
    Yaml {
        why: String,
        help: Option<&'static str>,
    },
    #[error("nested more than {max} levels deep")]
    TooDeep { max: usize },
    #[error("more than {max} values, counting what aliases repeat")]
    TooManyNodes { max: usize },
    #[error("more than {max} bytes of text, counting what aliases repeat")]
    TooMuchText { max: usize },
    #[error("an alias inside of what it repeats")]
    AliasInItself,
    #[error("a second document begins here")]
    SeveralDocuments,
    #[error("tags have no meaning here")]
    Tag,
    #[error("`{{` or `[` cannot be a key")]
    KeyNotText,
    #[error("duplicate key {key}")]
    DuplicateKey { key: Quoted, first_line: usize },

    // Of a mapping.
    #[error("{what} has nothing in it")]
    EmptyFile {
        what: &'static str,
        help: &'static str,
    },
    #[error("{what} is made of lines of `key: value`, not of {found}")]
    NotAMapping { what: &'static str, found: Kind },
    #[error("unknown key {key}{}", inside.map(|i| format!(" in `{i}`")).unwrap_or_default())]
    UnknownKey {
        key: Quoted,
        inside: Option<&'static str>,
        near: Option<&'static str>,
        known: Vec<&'static str>,
        belongs: Option<&'static str>,
    },
    #[error("`<<` is not read: aliases repeat values, not keys")]
    MergeKey,
    #[error("`{field}` is missing")]
    Missing {
        field: &'static str,
        help: &'static str,
    },

    // Of a value's form.
    #[error("`{field}` has no value")]
    NoValue { field: &'static str },
    #[error("`{field}` takes {wanted}, not {found}")]
    Form {
        field: &'static str,
        wanted: &'static str,
        found: Kind,
        help: Option<&'static str>,
    },
    #[error("`{field}` is one of {}, not {found}", listed(words))]
    Word {
        field: &'static str,
        words: Words,
        found: Quoted,
    },
    #[error("`{field}` takes a whole number from {min} to {max}, not {found}")]
    Whole {
        field: &'static str,
        min: u64,
        max: u64,
        found: Quoted,
        help: Option<String>,
    },
    #[error("`{field}` takes a number from {} to {} with at most three decimals, not {found}", min / 1000, max / 1000)]
    Decimal {
        field: &'static str,
        min: u32,
        max: u32,
        found: Quoted,
    },
    #[error("`{field}` takes a duration, not {found}: {why}")]
    Duration {
        field: &'static str,
        found: Quoted,
        why: String,
        help: String,
    },
    #[error("`{field}` takes a duration from {} to {}, not {found}", humantime::format_duration(*min), humantime::format_duration(*max))]
    DurationRange {
        field: &'static str,
        found: Quoted,
        min: Duration,
        max: Duration,
    },
    #[error("`{field}` holds a {}", if *.c == '\0' { "NUL, which no program or file name can" } else { "control character" })]
    Control { field: &'static str, c: char },
    #[error("`{field}` has an empty text")]
    EmptyText { field: &'static str },
    #[error("`{field}` has more than {max} characters")]
    LongText { field: &'static str, max: usize },
    #[error("{found} is not expanded in `{field}`")]
    Home { field: &'static str, found: Quoted },

    // Of a child's fields.
    #[error("`{field}` cannot be split into words: {source}")]
    Quotes {
        field: &'static str,
        source: shell_words::ParseError,
    },
    #[error("`{field}` names no program")]
    NoProgram { field: &'static str },
    #[error("an entry of `output` has neither `stdout` nor `stderr`")]
    OutputNoStream,
    #[error("an entry of `output` is for one stream, not both")]
    OutputBothStreams,
    #[error("`{field}` has a second entry")]
    Second {
        field: &'static str,
        help: &'static str,
    },
    #[error("{path} leads out of `log_dir`")]
    OutputClimbs { path: Quoted },
    #[error("{path} names a directory, not a file")]
    OutputDirectory { path: Quoted },
    #[error("{path} is not a file that can be opened for a child")]
    OutputServers { path: Quoted },
    #[error("`{field}` is \"<command> <child>\" or \"run <command line>\", not {found}")]
    HookForm { field: &'static str, found: Quoted },
    #[error("`{field}` names no child: {source}")]
    ChildName {
        field: &'static str,
        source: NameError,
    },
    #[error("`restart.max` is \"<count> in <duration>\", not {found}")]
    RestartMax { found: Quoted },
    #[error("`restart.max` counts up to {max} restarts, not {found}")]
    RestartCount { found: Quoted, max: u32 },
    #[error("`restart.max_delay` is shorter than `restart.delay`")]
    MaxDelayBelowDelay,

    // Of how a child is stopped and looked at.
    #[error(transparent)]
    Life(#[from] LifeFault),

    // Of the server's fields.
    #[error("{found} is listed twice in `{field}`")]
    ListedTwice { field: &'static str, found: Quoted },
    #[error("`{field}` takes an IP address, not {found}")]
    Address {
        found: Quoted,
        field: &'static str,
        help: &'static str,
    },
    #[error("`id` takes a UUID, not {found}")]
    Uuid { found: Quoted },
    #[error("`{field}` takes names of users, not {found}")]
    UserName { field: &'static str, found: Quoted },
    #[error("`encrypt` is on, but `pub_keys_path` names no directory of keys")]
    NoKeys,
    #[error("`{one}` and `{other}` are the same directory")]
    SameDirectory {
        one: &'static str,
        other: &'static str,
    },
    #[error("there is no place for state: neither `XDG_STATE_HOME` nor `HOME` names a directory")]
    NoHome,

    // Of a key's scope.
    #[error("`{field}` has more than {max} entries")]
    TooManyEntries { field: &'static str, max: usize },
    #[error("`{field}` takes patterns over names of children, not {found}: {why}")]
    Pattern {
        field: &'static str,
        found: Quoted,
        why: String,
        help: &'static str,
    },
    #[error("`{field}` takes an address or a network, not {found}")]
    Network {
        field: &'static str,
        found: Quoted,
        help: &'static str,
    },
    #[error("`{field}`: {found} {why}")]
    NotTheNetwork {
        field: &'static str,
        found: Quoted,
        why: &'static str,
        corrected: String,
    },

    #[error("{count} more faults are not shown")]
    More { count: usize },
}

/// "`a`, `b` or `c`", with commas alone when there are many.
fn listed(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

impl Fault {
    /// The way out, when we know it.
    pub(super) fn help(&self) -> Option<String> {
        let fixed = match self {
            Self::Yaml { help, .. } | Self::Form { help, .. } => return help.map(str::to_owned),
            Self::UnknownKey {
                near,
                known,
                belongs,
                ..
            } => return Some(unknown_key_help(*near, known, *belongs)),
            Self::Word { words, found, .. } => return word_help(words, found),
            Self::Whole { help, .. } => return help.clone(),
            Self::Duration { help, .. } => return Some(help.clone()),
            Self::NotTheNetwork { corrected, .. } => return Some(format!("write `{corrected}`")),
            Self::DuplicateKey { first_line, .. } => return Some(duplicate_key_help(*first_line)),
            Self::NoValue { .. } => "write a value, or remove the line",
            Self::EmptyFile { help, .. }
            | Self::Missing { help, .. }
            | Self::Second { help, .. }
            | Self::Address { help, .. }
            | Self::Pattern { help, .. }
            | Self::Network { help, .. } => help,
            Self::TooLarge { .. } => "is this the file you meant?",
            Self::PathNotUtf8 => "answers and records are text: rename the file or its folder",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::TooManyNodes { .. } | Self::TooMuchText { .. } => "write fewer aliases (`*name`)",
            Self::MergeKey => "`defaults` in server.yml holds what children share",
            Self::SeveralDocuments => {
                "a file holds one document: remove the `---` and what follows"
            }
            Self::Tag => "remove the `!…`; put the value in quotes if it begins with `!`",
            Self::KeyNotText => "put a value that begins with `{` or `[` in quotes",
            Self::Home { .. } => "no `~` and no `$HOME` here: write the path in full",
            Self::Quotes { .. } => {
                "close the quote; one that stands for itself is written `\\'` or `\\\"`"
            }
            Self::OutputNoStream => "write `- stdout: FILE` or `- stderr: FILE`",
            Self::OutputBothStreams => "write two entries, each with a `-` and its own `mode`",
            Self::OutputClimbs { .. } => "write a file outside of `log_dir` as an absolute path",
            Self::OutputDirectory { .. } => "add the name of a file",
            Self::OutputServers { .. } => {
                "to share the server's own streams write `output: inherit`"
            }
            Self::HookForm { .. } => {
                "such as `start db`; the commands are start, restart, trystart, stop"
            }
            Self::RestartMax { .. } => "such as `max: 10 in 5m`",
            Self::RestartCount { .. } => "write a smaller count and a shorter span",
            Self::MaxDelayBelowDelay => "raise `max_delay` or lower `delay`",
            Self::Life(fault) => fault.help(),
            Self::Uuid { .. } => "`uuidgen` makes one, or remove the line: one is made and kept",
            Self::UserName { .. } => "write names as they stand in /etc/passwd",
            Self::NoKeys => "add `pub_keys_path`: without a key nobody could command this server",
            Self::ListedTwice { .. } => "keep one of the two",
            Self::SameDirectory { .. } => "give each a directory of its own",
            Self::NoHome => "set `state_dir`",
            Self::TooManyEntries { .. } => "use fewer, wider ones",
            Self::TooDeep { .. }
            | Self::NotAMapping { .. }
            | Self::AliasInItself
            | Self::Decimal { .. }
            | Self::DurationRange { .. }
            | Self::Control { .. }
            | Self::EmptyText { .. }
            | Self::LongText { .. }
            | Self::NoProgram { .. }
            | Self::ChildName { .. }
            | Self::More { .. } => return None,
        };
        Some(fixed.to_owned())
    }
}

fn word_help(words: Words, found: &Quoted) -> Option<String> {
    nearest(&found.0, words).map(|near| format!("did you mean `{near}`?"))
}

fn duplicate_key_help(first_line: usize) -> String {
    format!("it stands on line {first_line} already: keep one of the two")
}

fn unknown_key_help(near: Option<&str>, known: &[&str], belongs: Option<&str>) -> String {
    match (near, belongs) {
        (_, Some(belongs)) => format!("this key belongs in {belongs}"),
        (Some(near), None) => format!("did you mean `{near}`?"),
        (None, None) => format!(
            "the keys are {}; those that begin with `x-` are ignored",
            listed(known)
        ),
    }
}
