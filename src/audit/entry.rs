//! What a line says, but for its number and the hash that ties it to the line before.
//!
//! Invariant: what becomes of an [`Entry`] is shorter than [`LINE_BYTES_MAX`], whatever is in it:
//! texts are cut, of many children the first are told and the others counted.
//!
//! [`LINE_BYTES_MAX`]: super::LINE_BYTES_MAX

use std::{fmt, net::SocketAddr};

use serde::{Serialize, Serializer};

use crate::{
    command::{
        Answer, Command, Done, Each, ErrorCode, Failure, KillChildren, Killed, Op, Stamp, Upgraded,
    },
    spec::{ChildName, RunId, Wall},
};

/// The most bytes of a message or a reason; each may take six in the file.
const TEXT_BYTES_MAX: usize = 1_024;

/// The most bytes of a name that comes from elsewhere, such as a key's or a server's.
const NAME_BYTES_MAX: usize = 128;

/// How many children of a command to all are told; the others are counted.
const CHILDREN_MAX: usize = 100;

/// One line to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub(super) at: Wall,
    pub(super) what: What,
}

impl Entry {
    /// A command that was carried out, or could not be.
    #[must_use]
    pub fn command(at: Wall, given: Given) -> Self {
        Self {
            at,
            what: What::Command(given),
        }
    }

    /// A request that was refused because of who made it.
    #[must_use]
    pub fn refused(at: Wall, refusal: Refusal) -> Self {
        Self {
            at,
            what: What::Refused(refusal),
        }
    }

    pub(super) fn is_refusal(&self) -> bool {
        match self.what {
            What::Refused(_) => true,
            What::Opened(_) | What::Command(_) | What::Lost(_) => false,
        }
    }
}

/// What a line can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum What {
    /// A server began to write this file.
    Opened(Opened),
    Command(Given),
    Refused(Refusal),
    /// Lines that could not be kept.
    Lost(Lost),
}

/// Who gave a command, by what entitled him.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub enum By {
    /// A key.
    Key {
        /// What it is called.
        #[serde(rename = "key", serialize_with = "short")]
        name: String,
        /// Which it is.
        #[serde(serialize_with = "short")]
        fingerprint: String,
    },
    /// A user of this host.
    User {
        /// The user's number.
        #[serde(rename = "user")]
        uid: u32,
    },
    /// Nothing but being able to connect (`allow_unsigned_remote`).
    Reach,
}

/// A command that was given and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Given {
    /// By whom.
    #[serde(flatten)]
    pub by: By,
    /// Where it came from.
    pub peer: SocketAddr,
    /// What was to be done.
    #[serde(flatten, serialize_with = "words")]
    pub command: Command,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A request that was refused because of who made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What the peer had shown, if it was believed.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// The key name that the peer claimed, whether or not it was believed.
    #[serde(
        serialize_with = "maybe_short",
        skip_serializing_if = "Option::is_none"
    )]
    pub claimed: Option<String>,
    /// Where it came from.
    pub peer: SocketAddr,
    /// What was asked, if that was read.
    #[serde(flatten, serialize_with = "maybe_words")]
    pub command: Option<Command>,
    /// What the peer was answered.
    #[serde(rename = "outcome")]
    pub code: ErrorCode,
    /// The reason, which the peer may not have been told.
    #[serde(serialize_with = "long")]
    pub why: String,
    /// How many refusals of this peer before this one are not told.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// What became of a command: `ok` or an error's code and message, and what it concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    outcome: Word,
    #[serde(serialize_with = "maybe_long", skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<One>,
    #[serde(skip_serializing_if = "is_zero")]
    children_more: u64,
}

impl Outcome {
    /// Of what was answered.
    #[must_use]
    pub fn of(answer: &Result<Answer, Failure>) -> Self {
        let mut outcome = Self {
            outcome: Word::Ok,
            message: None,
            run: None,
            pid: None,
            children: Vec::new(),
            children_more: 0,
        };
        match answer {
            Err(Failure { code, message }) => {
                outcome.outcome = Word::Error(*code);
                outcome.message = Some(cut(message, TEXT_BYTES_MAX).to_owned());
            }
            Ok(Answer::Done(Done { run, pid, .. })) => (outcome.run, outcome.pid) = (*run, *pid),
            Ok(Answer::Each(Each { children, .. })) => {
                outcome.tell(children.len(), children.iter().map(One::of_outcome));
            }
            Ok(Answer::Killed(Killed { children, .. })) => {
                let run_on = children.iter().map(|child| One {
                    name: child.name.clone(),
                    outcome: None,
                    run: Some(child.run),
                    pid: Some(child.pid),
                });
                outcome.tell(children.len(), run_on);
            }
            Ok(Answer::Upgraded(Upgraded { pid, .. })) => outcome.pid = Some(*pid),
            Ok(Answer::Checked(_) | Answer::Why(_) | Answer::Told(_) | Answer::Info(_)) => {}
        }
        outcome
    }

    fn tell(&mut self, count: usize, children: impl Iterator<Item = One>) {
        self.children = children.take(CHILDREN_MAX).collect();
        let more = count - self.children.len();
        self.children_more = u64::try_from(more).unwrap_or(u64::MAX);
    }
}

/// One child of a command to all, or one that runs on after `kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct One {
    name: ChildName,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Word>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
}

impl One {
    fn of_outcome(child: &crate::command::Outcome) -> Self {
        let word = match &child.error {
            Some(failure) => Word::Error(failure.code),
            None => Word::Ok,
        };
        Self {
            name: child.name.clone(),
            outcome: Some(word),
            run: child.run,
            pid: child.pid,
        }
    }
}

/// `ok` or an error's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Ok,
    Error(ErrorCode),
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ok => serializer.serialize_str("ok"),
            Self::Error(code) => serializer.serialize_str(code.as_str()),
        }
    }
}

/// The beginning of a server's lines, or of another file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Opened {
    /// Of the server.
    #[serde(serialize_with = "short")]
    pub(super) version: String,
    /// Its id.
    #[serde(serialize_with = "short")]
    pub(super) server: String,
    pub(super) because: Because,
    /// What is wrong with the file that was there.
    #[serde(serialize_with = "maybe_long", skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    /// The name under which it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) aside: Option<String>,
    /// How many bytes of a line without an end were cut off.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) cut: u64,
}

/// Why a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Because {
    /// The server starts.
    Started,
    /// The server starts, and what it found is broken: the chain begins anew.
    Broken,
    /// The file has no name any more.
    Deleted,
    /// The file has another name now.
    Moved,
    /// Something else stands in its place.
    Replaced,
    /// Somebody else wrote to it or cut it.
    Changed,
}

/// Its word in the trail.
impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Lines that could not be kept while the disk took none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Lost {
    pub(super) count: u64,
    /// The time of the first of them.
    #[serde(serialize_with = "stamp")]
    pub(super) since: Wall,
    /// The time of the last of them.
    #[serde(serialize_with = "stamp")]
    pub(super) until: Wall,
}

impl Lost {
    /// One more line is lost.
    pub(super) fn add(lost: &mut Option<Self>, at: Wall) {
        let lost = lost.get_or_insert(Self {
            count: 0,
            since: at,
            until: at,
        });
        lost.count = lost.count.saturating_add(1);
        lost.until = at;
    }

    /// All that was lost on two sides.
    pub(super) fn join(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self {
                count: one.count.saturating_add(other.count),
                since: one.since.min(other.since),
                until: one.until.max(other.until),
            }),
            (lost, None) | (None, lost) => lost,
        }
    }
}

/// A command as it stands on the wire.
#[derive(Debug, Serialize)]
struct Words<'a> {
    op: Op,
    #[serde(skip_serializing_if = "Option::is_none")]
    child: Option<&'a ChildName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_children: Option<bool>,
}

fn words<S: Serializer>(command: &Command, serializer: S) -> Result<S::Ok, S::Error> {
    let (child, all, stop_children) = match command {
        Command::Child { child, .. }
        | Command::CheckOne(child)
        | Command::Why(child)
        | Command::Wait { child, .. } => (Some(child), None, None),
        Command::Events { child, .. } => (child.as_ref(), None, None),
        Command::StopAll | Command::StartAll => (None, Some(true), None),
        Command::Check { .. } | Command::Info | Command::Upgrade => (None, None, None),
        Command::Kill(KillChildren::AsConfigured) => (None, None, Some(false)),
        Command::Kill(KillChildren::Stop) => (None, None, Some(true)),
    };
    let op = command.op();
    let words = Words {
        op,
        child,
        all,
        stop_children,
    };
    words.serialize(serializer)
}

fn maybe_words<S: Serializer>(command: &Option<Command>, serializer: S) -> Result<S::Ok, S::Error> {
    match command {
        Some(command) => words(command, serializer),
        None => serializer.serialize_none(),
    }
}

fn long<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cut(text, TEXT_BYTES_MAX))
}

fn maybe_long<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    long(text.as_deref().unwrap_or_default(), serializer)
}

fn short<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cut(text, NAME_BYTES_MAX))
}

fn maybe_short<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    short(text.as_deref().unwrap_or_default(), serializer)
}

fn stamp<S: Serializer>(at: &Wall, serializer: S) -> Result<S::Ok, S::Error> {
    Stamp(*at).serialize(serializer)
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
