//! What a client may ask and what a server may answer: the words of the control plane.
//!
//! The shapes here are the contract of DESIGN sections 6 and 8: `serde` writes exactly what
//! stands on the wire and, with `host` and `ok` added by the client, in `--json`.
//!
//! Absent on purpose: frames, tokens and sockets (`control`), and every decision (`reconcile`).

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, Serializer};

mod child_event;
mod exit;
mod failure;
mod goal;
mod why;

pub use self::{
    child_event::{ChildEvent, Follow, Told},
    exit::{ExitAt, HowEnded},
    failure::{ErrorCode, Failure},
    goal::{Goal, WAIT_TIME, WAIT_TIME_MAX},
    why::Why,
};
use crate::spec::{ChildName, Circumstances, Condition, Digest, Mode, RunId, Verb, Wall};

/// A checked command, as the core carries it out. What `serde` writes of it is for the next program
/// of an upgrade, and not what stands on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// `start|restart|trystart|stop NAME`.
    Child {
        /// What to do.
        verb: Verb,
        /// With which child.
        child: ChildName,
    },
    /// `stop --all`.
    StopAll,
    /// `start --all`.
    StartAll,
    /// `check NAME`.
    CheckOne(ChildName),
    /// `why NAME`.
    Why(ChildName),
    /// `wait NAME --for …`.
    Wait {
        /// For which child.
        child: ChildName,
        /// What is waited for.
        goal: Goal,
        /// For which of its runs; without, for whichever comes.
        run: Option<RunId>,
        /// For how long.
        time: Duration,
    },
    /// `check`, or with `all: true` `check --all`.
    Check {
        /// Whether children without a live process are listed too.
        scope: CheckScope,
    },
    /// `events [NAME] [-f] [--tail N]`.
    Events {
        /// Of which child; without, of all.
        child: Option<ChildName>,
        /// Whether those to come are told too.
        follow: Follow,
        /// How many of those that have happened are told, at most; without, all that are kept.
        last: Option<u32>,
    },
    /// `info`.
    Info,
    /// `kill`, `kill --stop-children`.
    Kill(KillChildren),
    /// `upgrade`.
    Upgrade,
}

impl Command {
    /// The word that names this command on the wire.
    #[must_use]
    pub fn op(&self) -> Op {
        match self {
            Self::Child {
                verb: Verb::Start, ..
            }
            | Self::StartAll => Op::Start,
            Self::Child {
                verb: Verb::Restart,
                ..
            } => Op::Restart,
            Self::Child {
                verb: Verb::Trystart,
                ..
            } => Op::Trystart,
            Self::Child {
                verb: Verb::Stop, ..
            }
            | Self::StopAll => Op::Stop,
            Self::CheckOne(_) | Self::Check { .. } => Op::Check,
            Self::Why(_) => Op::Why,
            Self::Wait { .. } => Op::Wait,
            Self::Events { .. } => Op::Events,
            Self::Info => Op::Info,
            Self::Kill(_) => Op::Kill,
            Self::Upgrade => Op::Upgrade,
        }
    }
}

/// Whom `check` without a name lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckScope {
    /// Those with a live process; the others are counted.
    Live,
    /// All.
    All,
}

/// What `kill` does to children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillChildren {
    /// What `on_exit` says.
    AsConfigured,
    /// They are stopped first.
    Stop,
}

/// Who gave a command: what of him is kept with what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The name of the key that the command was signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The user of this host that gave it, by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Where it came from.
    #[serde(with = "address_as_text")]
    pub peer: SocketAddr,
}

/// Text in every format: what is flattened into another is read as if it were text.
mod address_as_text {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        address: &SocketAddr,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SocketAddr, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The name of a command on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is the word itself")]
pub enum Op {
    Start,
    Restart,
    Trystart,
    Stop,
    Check,
    Why,
    Wait,
    Events,
    Info,
    Kill,
    Upgrade,
}

impl Op {
    /// Every command.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Restart,
        Self::Trystart,
        Self::Stop,
        Self::Check,
        Self::Why,
        Self::Wait,
        Self::Events,
        Self::Info,
        Self::Kill,
        Self::Upgrade,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Trystart => "trystart",
            Self::Stop => "stop",
            Self::Check => "check",
            Self::Why => "why",
            Self::Wait => "wait",
            Self::Events => "events",
            Self::Info => "info",
            Self::Kill => "kill",
            Self::Upgrade => "upgrade",
        }
    }
}

impl From<Verb> for Op {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Start => Self::Start,
            Verb::Restart => Self::Restart,
            Verb::Trystart => Self::Trystart,
            Verb::Stop => Self::Stop,
        }
    }
}

/// The `ok` object of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To a command for one child, and to `wait`.
    Done(Done),
    /// To `stop --all` and `start --all`.
    Each(Each),
    /// To `check`.
    Checked(Checked),
    /// To `why`.
    Why(Box<Why>),
    /// To `events`, when there are no more.
    Told(Told),
    /// To `info`.
    Info(Box<Info>),
    /// To `kill`: the server's last words.
    Killed(Killed),
    /// To `upgrade`: what runs now.
    Upgraded(Upgraded),
}

/// The answer to `upgrade`: the server has replaced itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// Always `upgrade`.
    pub op: Op,
    /// The version that ran before.
    pub from: String,
    /// The version that runs now.
    pub to: String,
    /// Its process, which is the same as before.
    pub pid: i32,
    /// One line for a person.
    pub message: String,
}

/// What was done with one child, or what was waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The command.
    pub op: Op,
    /// The child.
    pub child: ChildName,
    /// The new run's process, or the one that was stopped, or is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The new run, or the one that was stopped, or is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// How the run ended that was stopped, or waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitAt>,
    /// One or more lines for a person.
    pub message: String,
}

/// What was done with each of several children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Each {
    /// The command.
    pub op: Op,
    /// One outcome a child, in the order of their names.
    pub children: Vec<Outcome>,
    /// One line for a person.
    pub message: String,
}

/// One child's part of [`Each`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The child.
    pub name: ChildName,
    /// Whether it was done.
    pub ok: bool,
    /// The process that was started or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The run that was started or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What else is to be told, such as a posthook that was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The answer to `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Always `check`.
    pub op: Op,
    /// The child asked for, when one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<ChildName>,
    /// One row a child, in the order of their names.
    pub children: Vec<Row>,
    /// How many known children are not among the rows.
    pub others: usize,
    /// What concerns no single child: loadpaths that cannot be read, removals that wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A child's state as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    /// Due, waits for something.
    Pending,
    /// Being started.
    Starting,
    /// Has a live process.
    Running,
    /// Was told to end.
    Stopping,
    /// Ended by itself.
    Exited,
    /// A restart is due at a known time.
    Backoff,
    /// Could not be started, or was given up.
    Failed,
    /// Nothing due: never run, or stopped by order.
    Stopped,
}

impl StateName {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// How a child's file stands to what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigStatus {
    /// What ran last is what the file says, or nothing ran yet.
    Current,
    /// The file says something else than what ran last; the next start uses it.
    Changed,
    /// The file is faulty; the last good one stays.
    Invalid,
    /// There is no file any more.
    Removed,
    /// Two files have this name.
    Conflict,
    /// The file was tried and did not come up (rollback).
    Rejected,
}

impl ConfigStatus {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Changed => "changed",
            Self::Invalid => "invalid",
            Self::Removed => "removed",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
        }
    }
}

/// One child in the answer to `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The child.
    pub name: ChildName,
    /// Its state.
    pub state: StateName,
    /// The live process.
    pub pid: Option<i32>,
    /// The live run, else the last one.
    pub run: Option<RunId>,
    /// When that run began.
    pub started_at: Option<Stamp>,
    /// How long the live run has lived, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// How often its restart policy started it again since it was last started by order.
    pub restarts: u64,
    /// Whether an operator's `stop` keeps it down.
    pub hold: bool,
    /// Its file.
    pub config: RowConfig,
    /// Where its output goes.
    pub output: RowOutput,
    /// How its last run ended; null while one lives or before the first.
    pub exit: Option<ExitAt>,
    /// What it waits for, why it failed, or what an operator should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When something is next due by itself: a restart or a repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// Since when it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_since: Option<Stamp>,
    /// Everything wrong with its file, each fault as a whole diagnostic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// Whom it depends on, in the order of their names; only `check NAME` shows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<RowDependency>,
    /// More that only `check NAME` shows, by title.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    /// Its latest runs, the newest first; only `check NAME` shows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryRun>,
}

/// A child on which another depends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDependency {
    /// Which.
    pub name: ChildName,
    /// How it has to be.
    pub condition: Condition,
    /// Whether it is.
    pub met: bool,
}

/// One run in the history of a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRun {
    /// Which.
    pub run: RunId,
    /// The digest of what ran.
    pub digest: Digest,
    /// When it began; absent when it never had a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Stamp>,
    /// Why it was begun, and who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_by: Option<GivenBy>,
    /// When it ended; absent while it lives, and when nobody saw it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Stamp>,
    /// How it ended; absent while it lives, and when it never had a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<HowEnded>,
    /// What else was seen of it: `core_dumped`, `out_of_memory`.
    #[serde(flatten)]
    pub circumstances: Circumstances,
    /// Why it was ended, and who asked; absent when it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<GivenBy>,
    /// Why it never had a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why something was done to a child, and who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenBy {
    /// A word such as `command`, `policy` or `boot`; there may come more of them.
    pub cause: String,
    /// Who asked.
    #[serde(flatten)]
    pub asker: Option<Asker>,
}

/// Something that is due by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// What will be done.
    pub action: Verb,
    /// When.
    pub at: Stamp,
}

/// A child's file in a [`Row`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowConfig {
    /// The file, or what was the file.
    pub path: Option<String>,
    /// The digest of the live run's spec, else of the last good one.
    pub digest: Option<Digest>,
    /// How the file stands to what runs.
    pub status: ConfigStatus,
    /// All files of that name, when there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// A child's output in a [`Row`]: absolute paths, or `inherit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOutput {
    /// Standard output.
    pub stdout: Option<String>,
    /// Standard error.
    pub stderr: Option<String>,
}

/// The answer to `info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Always `info`.
    pub op: Op,
    /// What the server calls itself.
    pub name: String,
    /// Its id, a UUID.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: i32,
    /// The mode in force.
    pub mode: Mode,
    /// What its end means for children.
    pub on_exit: crate::spec::OnExit,
    /// Whether only signed commands are accepted.
    pub encrypt: bool,
    /// The public keys that it knows, and that may sign commands.
    #[serde(default)]
    pub keys: Vec<InfoKey>,
    /// The address it listens on.
    pub listener: String,
    /// The file it was started with.
    pub config: String,
    /// The loadpaths in force, and how they are.
    pub loadpaths: Vec<InfoLoadpath>,
    /// The startup list.
    pub startup: Vec<ChildName>,
    /// Where it keeps what survives a reboot.
    pub state_dir: String,
    /// Where it keeps what concerns live processes.
    pub runtime_dir: String,
    /// Where children's output goes unless told otherwise.
    pub log_dir: String,
    /// What is wrong with server.yml, loadpaths, keys and file names, each as a whole diagnostic.
    pub faults: Vec<String>,
    /// Fields of server.yml that were edited and need a restart.
    pub needs_restart: Vec<String>,
    /// What this machine gives, by name.
    pub capabilities: BTreeMap<String, String>,
    /// When this server started.
    pub started_at: Stamp,
    /// How long ago that was, in milliseconds.
    pub uptime_ms: u64,
    /// How many children are in which state.
    pub counts: BTreeMap<String, usize>,
}

/// A loadpath in [`Info`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoLoadpath {
    /// As configured, absolute.
    pub path: String,
    /// `ok`, or what is wrong.
    pub state: String,
    /// How many children it declares.
    pub children: usize,
}

/// A public key in [`Info`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoKey {
    /// Its name, which commands are signed as.
    pub name: String,
    /// Its file.
    pub path: String,
    /// How long its modulus is.
    pub bits: u32,
    /// SHA-256 over its SubjectPublicKeyInfo.
    pub fingerprint: String,
    /// The file that says what it may do; absent when it may do all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// The answer to `kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    /// Always `kill`.
    pub op: Op,
    /// The children that run on.
    pub children: Vec<Survivor>,
    /// The last words.
    pub message: String,
}

/// A child that runs on after the server's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// The child.
    pub name: ChildName,
    /// Its process, which also is its process group.
    pub pid: i32,
    /// Its run.
    pub run: RunId,
}

/// A wall clock time, written as RFC 3339 UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub Wall);

/// The last millisecond of the year 9999, which is the last that RFC 3339 can write; a clock or a
/// record that says more must not keep an answer from being written.
const STAMP_MS_MAX: u64 = 253_402_300_799_999;

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.0).unwrap_or(0);
        let since_epoch = Duration::from_millis(millis.min(STAMP_MS_MAX));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        let span = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self(Wall(
            i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
        )))
    }
}

#[cfg(test)]
impl Command {
    /// Every command there is, with `child` where one names a child.
    pub(crate) fn every(child: &str) -> Vec<Self> {
        let child: ChildName = child.parse().expect("a child name");
        let verbs = [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop];
        let of_child = verbs.map(|verb| Self::Child {
            verb,
            child: child.clone(),
        });
        let scopes = [CheckScope::Live, CheckScope::All];
        let kills = [KillChildren::AsConfigured, KillChildren::Stop];
        let wait = |goal| Self::Wait {
            child: child.clone(),
            goal,
            run: Some(RunId(4)),
            time: WAIT_TIME,
        };
        let waits = Goal::ALL.map(wait);
        let events = |child| Self::Events {
            child,
            follow: Follow::Yes,
            last: Some(10),
        };
        let events = [events(None), events(Some(child.clone()))];
        let others = [
            Self::CheckOne(child.clone()),
            Self::Why(child),
            Self::StartAll,
            Self::StopAll,
            Self::Info,
            Self::Upgrade,
        ];
        let mut every = of_child.to_vec();
        every.extend(others);
        every.extend(waits);
        every.extend(events);
        every.extend(scopes.map(|scope| Self::Check { scope }));
        every.extend(kills.map(Self::Kill));
        every
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Exit;

    #[test]
    fn no_clock_keeps_an_answer_from_being_written() {
        for (wall, text) in [
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
            (-1, "1970-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            let at = Stamp(Wall(wall));
            assert_eq!(at.to_string(), text);
            assert!(
                serde_json::to_string(&ExitAt {
                    exit: Exit::Unknown,
                    at
                })
                .is_ok()
            );
        }
    }

    #[test]
    fn error_codes_are_spelled_the_same_everywhere() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
            assert!((1..=7).contains(&code.exit_code()));
        }
    }
}
