//! What can be wrong with the client's command line, and what was probably meant.

use crate::{
    command::{Goal, Op, WAIT_TIME_MAX},
    control::{
        client::{HOSTS_MAX, known_servers::NotAServerId},
        host::HostError,
        keys::{BitsError, KeyName, KeyNameError},
    },
    spec::NameError,
};

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Nothing to do.
    #[error("a command is missing")]
    NoCommand,
    /// No command of ours.
    #[error("there is no command `{}`{}", .word.escape_debug(), did_you_mean(.nearest))]
    UnknownCommand {
        /// What was typed.
        word: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// A name where the command belongs.
    #[error("the command comes first: `{} {}`", .command.as_str(), .name.escape_debug())]
    Turned {
        /// The command, which stands second.
        command: Op,
        /// The name.
        name: String,
    },
    /// A command for one child without one.
    #[error(
        "`{word}` needs the name of a child: `{word} NAME`{all}",
        word = .0.as_str(),
        all = if takes_all(*.0) { format!(", or `{} --all`", .0.as_str()) } else { String::new() }
    )]
    NameMissing(Op),
    /// A name that no child has.
    #[error("{0}")]
    Name(#[from] NameError),
    /// `restart all`, `trystart all`, `why all` and `wait all`.
    #[error("`{word}` takes one child, there is no `{word} all`", word = .0.as_str())]
    NoAll(Op),
    /// `wait` without what for.
    #[error("`wait` needs to know what for: `wait NAME --for {}`", goals())]
    GoalMissing,
    /// `--for` something else.
    #[error("`--for` is one of {}, not `{}`", goals(), .0.escape_debug())]
    Goal(String),
    /// `start --all --wait`.
    #[error("`--wait` waits for one child: `start NAME --wait`")]
    WaitForAll,
    /// `--timeout` with nothing that it is for.
    #[error("`--timeout` is for `wait NAME` and for `--wait`, and neither is there")]
    TimeoutAlone,
    /// `--timeout` that is no span.
    #[error("`--timeout`: `{}` is no time; write it as `90s` or `5m`", .0.escape_debug())]
    Timeout(String),
    /// `--timeout` of more than a day.
    #[error("`--timeout`: at most {}", humantime::format_duration(WAIT_TIME_MAX))]
    TimeoutTooLong,
    /// `--tail` that is no number.
    #[error("`--tail`: `{}` is no number of events", .0.escape_debug())]
    Tail(String),
    /// A command that concerns the server, with a name.
    #[error("`{}` takes no name{}", .command.as_str(), instead_of_name(*.command, .name))]
    NameUnwanted {
        /// The command.
        command: Op,
        /// The name.
        name: String,
    },
    /// A name and `--all`.
    #[error(
        "`{0}` takes a name or all, not both: `{0} {1}` or `{0} --all`",
        .command.as_str(),
        .name.escape_debug()
    )]
    NameAndAll {
        /// The command.
        command: Op,
        /// The name.
        name: String,
    },
    /// A word too many.
    #[error(
        "unexpected word `{}`; the form is `COMMAND [NAME] [on HOST,HOST] [with KEY.pem]`, with \
         several hosts in one word",
        .0.escape_debug()
    )]
    Unexpected(String),
    /// An option of another command.
    #[error("`{flag}` does not go with `{command}`{}", did_you_mean(.instead))]
    Flag {
        /// The option, or the word.
        flag: &'static str,
        /// The command, or the option that stands for one.
        command: &'static str,
        /// What may have been meant.
        instead: Option<&'static str>,
    },
    /// `on` and nothing after it.
    #[error("`on` needs a host: `on HOST[,HOST…]`")]
    HostMissing,
    /// A host that is none.
    #[error("{0}")]
    Host(#[from] HostError),
    /// More hosts than are asked at once.
    #[error("at most {HOSTS_MAX} hosts are asked at once, these are {0}")]
    TooManyHosts(usize),
    /// `with` and nothing after it.
    #[error("`with` needs a key: `with KEY.pem`")]
    KeyMissing,
    /// More than one key.
    #[error("a command is signed with one key, not with {0}: one `with KEY.pem` only")]
    KeyTwice(usize),
    /// `--strict` without a key.
    #[error("`--strict` is about signed commands, and there is no key: `with KEY.pem` is missing")]
    StrictUnsigned,
    /// `--server-id` without an id.
    #[error("`--server-id`: {0}")]
    ServerId(#[from] NotAServerId),
    /// One id for several servers.
    #[error("`--server-id` is the id of one server, but {0} hosts are asked")]
    ServerIdOfMany(usize),
    /// `--forget` and nothing after it.
    #[error("`--forget` needs a host: `--forget HOST[,HOST…]`")]
    ForgetMissing,
    /// `--forget` and a command.
    #[error("`--forget` stands alone: `supervisor-rs-client --forget HOST[,HOST…]` asks no server")]
    ForgetAndCommand,
    /// `keygen` and nothing after it.
    #[error("`keygen` needs a name for the key: `keygen NAME`")]
    KeygenNameMissing,
    /// A name that no key has.
    #[error(
        "`{}` cannot name a key: {fault}\n\
         hint: its two files are written into the current directory",
        .name.escape_debug()
    )]
    KeyName {
        /// What was typed.
        name: String,
        /// What is wrong with it.
        fault: KeyNameError,
    },
    /// The name of a file where that of a key belongs.
    #[error(
        "`keygen` takes a name and makes two files of it, `NAME.pem` and `NAME.pub.pem`; did you \
         mean `keygen {0}`?"
    )]
    KeyFile(KeyName),
    /// `--bits` with another number.
    #[error("`--bits`: {0}")]
    Bits(#[from] BitsError),
    /// A variable that is no text.
    #[error("`{0}` in the environment is not UTF-8")]
    Environment(&'static str),
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map_or(String::new(), |word| format!("; did you mean `{word}`?"))
}

fn instead_of_name(command: Op, name: &str) -> String {
    let name = name.escape_debug();
    match command {
        Op::Kill => format!(": it ends the server; did you mean `stop {name}`?"),
        Op::Upgrade => format!(": it replaces the server; did you mean `restart {name}`?"),
        Op::Info
        | Op::Start
        | Op::Restart
        | Op::Trystart
        | Op::Stop
        | Op::Check
        | Op::Why
        | Op::Wait
        | Op::Events => format!("; did you mean `check {name}`?"),
    }
}

fn takes_all(command: Op) -> bool {
    match command {
        Op::Start | Op::Stop | Op::Check => true,
        Op::Restart
        | Op::Trystart
        | Op::Why
        | Op::Wait
        | Op::Events
        | Op::Info
        | Op::Kill
        | Op::Upgrade => false,
    }
}

fn goals() -> String {
    Goal::ALL.map(Goal::as_str).join("|")
}

/// The command that asks no server.
pub(super) const KEYGEN: &str = "keygen";

/// How many slips of the finger still make one word another.
const SLIPS_MAX: usize = 2;

/// The command that was probably meant.
pub(super) fn nearest_command(word: &str) -> Option<&'static str> {
    const OTHERS: [(&str, &str); 20] = [
        ("status", "check"),
        ("list", "check"),
        ("ls", "check"),
        ("ps", "check"),
        ("show", "check"),
        ("follow", "events"),
        ("log", "events"),
        ("reexec", "upgrade"),
        ("reload", "restart"),
        ("run", "start"),
        ("up", "start"),
        ("down", "stop"),
        ("shutdown", "kill"),
        ("quit", "kill"),
        ("exit", "kill"),
        ("tryrestart", "trystart"),
        ("version", "--version"),
        ("forget", "--forget"),
        ("genkey", "keygen"),
        ("key", "keygen"),
    ];
    let word = word.to_ascii_lowercase();
    if let Some((_, command)) = OTHERS.into_iter().find(|(other, _)| *other == word) {
        return Some(command);
    }
    Op::ALL
        .into_iter()
        .map(Op::as_str)
        .chain([KEYGEN, "help"])
        .map(|command| (strsim::damerau_levenshtein(&word, command), command))
        .filter(|(slips, command)| *slips <= SLIPS_MAX && *slips < command.len() - 1)
        // Of two as near, the one that begins alike: the first letter is seldom the slip.
        .min_by_key(|(slips, command)| (*slips, command.chars().next() != word.chars().next()))
        .map(|(_, command)| command)
}
