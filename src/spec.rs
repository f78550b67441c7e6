//! The nouns: what a child is, what a run is, how one ends, and what time is.
//!
//! Everything here is a value: checked when it is made, compared and copied freely, and
//! the same whether it came from a file, from the wire or from a record on disk.
//!
//! Absent on purpose: reading files (`watch`), parsing (`config`), deciding (`reconcile`).

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    ops::{Add, Sub},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

mod circumstances;
mod depends;
mod probe;
mod stop;

pub use circumstances::Circumstances;
pub use depends::{Condition, Dependencies, Dependency};
pub use probe::{Endpoint, Health, Probe, Pulse, Ready, Sign, THIS_HOST, Word, log_pattern};
pub use stop::{NoSignal, SignalNumber, StopAct, StopPolicy, StopScope, StopStep};

/// The most characters a child's or a key's name may have.
pub const NAME_LEN_MAX: usize = 64;

/// Words of the command grammar: no child may be called one of these, in any case.
///
/// This list never grows, so that a name that is good today is good for ever.
pub const RESERVED_NAMES: [&str; 11] = [
    "all", "on", "with", "start", "restart", "trystart", "stop", "check", "info", "kill", "help",
];

/// A checked child name: 1 to 64 of `A-Z a-z 0-9 _ . @ -`, first a letter or digit, not reserved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChildName(Arc<str>);

/// Why a text is not a child name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("a child name must not be empty")]
    Empty,
    /// Longer than [`NAME_LEN_MAX`].
    #[error("a child name has at most {NAME_LEN_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// Does not begin with a letter or a digit.
    #[error("a child name begins with a letter or a digit, not with `{}`", .0.escape_debug())]
    BadStart(char),
    /// Holds a character that is not allowed.
    #[error("a child name is made of letters, digits and `_ . @ -`, not `{}`", .0.escape_debug())]
    BadChar(char),
    /// One of [`RESERVED_NAMES`].
    #[error("`{0}` is a word of the command line and cannot name a child")]
    Reserved(String),
}

impl ChildName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChildName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else {
            return Err(NameError::Empty);
        };
        let len = text.chars().count();
        if len > NAME_LEN_MAX {
            return Err(NameError::TooLong(len));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::BadStart(first));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '@' | '-');
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::BadChar(bad));
        }
        if RESERVED_NAMES
            .iter()
            .any(|word| word.eq_ignore_ascii_case(text))
        {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(Self(Arc::from(text)))
    }
}

impl TryFrom<String> for ChildName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<ChildName> for String {
    fn from(name: ChildName) -> Self {
        name.0.to_string()
    }
}

impl Borrow<str> for ChildName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The number of a child's run: from 1, per child, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl RunId {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An instant on the host's monotonic clock, in microseconds since boot (`CLOCK_MONOTONIC`).
///
/// It is the same clock for every process of one boot, so that a deadline written down by a
/// server that died means the same to the next one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Add<Duration> for Mono {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Mono {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// An instant on the wall clock, in milliseconds since 1970-01-01 UTC; may jump.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Wall(pub i64);

/// What both clocks showed at one moment. Deadlines use `mono`, people are shown `wall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Time {
    /// The monotonic clock.
    pub mono: Mono,
    /// The wall clock.
    pub wall: Wall,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It called `exit` with this status, 0 to 255.
    Code(i32),
    /// A signal ended it; the number as in `signal(7)`.
    Signal(i32),
    /// It ended while nobody could see how. Never guessed; counts as a failure.
    Unknown,
}

impl Exit {
    /// The exit code of whoever ends with it, as shells say it: 128 and the signal's number; 1 when
    /// it is not known.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code).unwrap_or(1),
            Self::Signal(number) => u8::try_from(number.saturating_add(128)).unwrap_or(1),
            Self::Unknown => 1,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "{name}"),
                None => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("unknown exit"),
        }
    }
}

/// The name of a signal number on Linux (x86, ARM and RISC-V share these), as `SIGTERM`.
#[must_use]
pub fn signal_name(number: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    NAMES
        .get(usize::try_from(number).ok()?.checked_sub(1)?)
        .copied()
}

/// A 128-bit fingerprint of a spec's meaning: equal meaning, equal digest.
///
/// Comments, key order, spelling of durations and the file's folder do not change it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a digest is 32 hexadecimal digits";
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return Err(WRONG);
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| WRONG)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| WRONG)?;
        }
        Ok(Self(bytes))
    }
}

/// A child's checked configuration. Made by `config` alone, so that one in hand is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The file it was read from, as listed (links unresolved). Not part of the digest.
    pub path: PathBuf,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// The working directory, absolute. The file's folder unless `workdir` says otherwise;
    /// only in the latter case part of the digest.
    pub workdir: PathBuf,
    /// Where standard output goes.
    pub stdout: Sink,
    /// Where standard error goes.
    pub stderr: Sink,
    /// A timer armed whenever a run begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
    /// Runs before each start and restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prehook: Option<Hook>,
    /// Runs when the child was stopped and stays down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub posthook: Option<Hook>,
    /// Whether and when a run that ended by itself is followed by another.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How a run is told to end.
    #[serde(default, skip_serializing_if = "StopPolicy::is_built_in")]
    pub stop: StopPolicy,
    /// When a run counts as running; `None`: as soon as its process lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// Whether a run that is ready still does its work; `None`: that is not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Whom it waits for before it starts, and how they have to be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: Dependencies,
    /// The fingerprint of all the above but `path`, and the places of dependencies.
    pub digest: Digest,
}

impl Spec {
    /// The folder the file stands in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// Where one of a child's output streams goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// Into the server's own stream.
    Inherit,
    /// Into a file.
    File {
        /// Absolute.
        path: PathBuf,
        /// What a start does to what is there already.
        mode: OpenMode,
    },
}

/// What a start does to an output file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenMode {
    /// Truncate it.
    Create,
    /// Add to its end.
    #[default]
    Append,
}

/// One of the four commands that hooks and repeat may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Start what does not run.
    Start,
    /// Replace what runs.
    Restart,
    /// Replace what runs, start what does not.
    Trystart,
    /// Stop what runs.
    Stop,
}

impl Verb {
    /// The word as typed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Trystart => "trystart",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A timer that gives a command some time after a run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// What is done when it fires.
    pub action: Verb,
    /// How long after the run began; more than zero.
    pub every: Duration,
}

/// What runs before a start or after a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// A command to another child.
    Command {
        /// What to do.
        verb: Verb,
        /// To whom.
        child: ChildName,
    },
    /// A program run to its end; never empty.
    Run(Vec<String>),
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { verb, child } => write!(f, "{verb} {child}"),
            Self::Run(argv) => write!(f, "run {}", shell_words::join(argv)),
        }
    }
}

/// When a run that ended by itself is followed by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// Never, as documented since the original.
    #[default]
    Never,
    /// When it failed: a code outside `success`, a signal, or an unknown end.
    OnFailure,
    /// Whatever its end was.
    Always,
}

/// The restart policy: whether, how soon, and when to give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which ends.
    pub when: RestartWhen,
    /// The first delay.
    pub delay: Duration,
    /// What each further delay is multiplied by, in thousandths; at least 1000.
    pub factor_permille: u32,
    /// What no delay exceeds (before jitter).
    pub max_delay: Duration,
    /// How far a delay is spread to both sides, in thousandths; at most 1000.
    pub jitter_permille: u32,
    /// A run that lived longer than this is forgiven: its restart is immediate and the
    /// delays begin anew.
    pub reset_after: Duration,
    /// When to give up; `None` is never.
    pub max: Option<RestartLimit>,
    /// Exit codes that are no failure.
    pub success: Vec<i32>,
    /// Exit codes after which it is never restarted.
    pub never_on: Vec<i32>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            when: RestartWhen::Never,
            delay: Duration::from_millis(500),
            factor_permille: 2000,
            max_delay: Duration::from_secs(60),
            jitter_permille: 200,
            reset_after: Duration::from_secs(60),
            max: None,
            success: vec![0],
            never_on: Vec::new(),
        }
    }
}

/// At most `count` restarts within `within`, then the child is `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartLimit {
    /// How many restarts; 1 to [`RestartLimit::COUNT_MAX`].
    pub count: u32,
    /// Within how long.
    pub within: Duration,
}

impl RestartLimit {
    /// The most restarts that can be counted: each is remembered until it is `within` ago.
    pub const COUNT_MAX: u32 = 1_000;
}

/// What the watcher does by itself (DESIGN, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing: files wait for `start`.
    #[default]
    Quiet,
    /// Starts the children of the startup list.
    Half,
    /// Starts every child.
    Full,
    /// Keeps what runs equal to what the files say.
    Sync,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet",
            Self::Half => "half",
            Self::Full => "full",
            Self::Sync => "sync",
        })
    }
}

/// What the server's end means for children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// They run on.
    #[default]
    Leave,
    /// They are stopped first.
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_passed_on_as_shells_do() {
        for (exit, code) in [
            (Exit::Code(0), 0),
            (Exit::Code(255), 255),
            (Exit::Signal(15), 143),
            (Exit::Unknown, 1),
            (Exit::Code(-1), 1),
            (Exit::Signal(i32::MAX), 1),
        ] {
            assert_eq!(exit.code(), code, "{exit}");
        }
    }

    #[test]
    fn names_are_checked_where_they_are_made() {
        for good in [
            "a",
            "0",
            "web",
            "web.v2",
            "web@1",
            "A_b-c.d",
            &"x".repeat(64),
        ] {
            assert!(good.parse::<ChildName>().is_ok(), "{good}");
        }
        assert_eq!("".parse::<ChildName>(), Err(NameError::Empty));
        assert_eq!(
            "x".repeat(65).parse::<ChildName>(),
            Err(NameError::TooLong(65))
        );
        assert_eq!(".a".parse::<ChildName>(), Err(NameError::BadStart('.')));
        assert_eq!("-a".parse::<ChildName>(), Err(NameError::BadStart('-')));
        assert_eq!("a/b".parse::<ChildName>(), Err(NameError::BadChar('/')));
        assert_eq!("a b".parse::<ChildName>(), Err(NameError::BadChar(' ')));
        assert_eq!("aé".parse::<ChildName>(), Err(NameError::BadChar('é')));
        for word in RESERVED_NAMES {
            let upper = word.to_uppercase();
            assert_eq!(
                upper.parse::<ChildName>(),
                Err(NameError::Reserved(upper.clone()))
            );
        }
    }

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Digest([0xab; 16]);
        assert_eq!(Digest::try_from(digest.to_string()), Ok(digest));
        assert!(Digest::try_from("xyz".to_owned()).is_err());
        assert!(Digest::try_from("é".repeat(16)).is_err());
    }

    #[test]
    fn signals_have_their_names() {
        assert_eq!(signal_name(9), Some("SIGKILL"));
        assert_eq!(signal_name(15), Some("SIGTERM"));
        assert_eq!(signal_name(0), None);
        assert_eq!(signal_name(-1), None);
        assert_eq!(Exit::Signal(64).to_string(), "signal 64");
    }
}
