//! Requests as the server reads them: strictly.
//!
//! A line is exactly a request or it is a [`BadRequest`] that says why not. What a peer nests
//! deeper than the two levels of a request is refused at the first bracket, so that depth costs
//! nothing, and what a message repeats of a peer's text is short and escaped.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::{
    command::{CheckScope, Command, Follow, Goal, KillChildren, Op, WAIT_TIME, WAIT_TIME_MAX},
    spec::{ChildName, RunId, Verb},
};

/// A line from a client that is a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub id: u64,
    /// What it asks.
    pub body: Body,
}

/// What a request holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A command as it is.
    Command(Command),
    /// A signed command, not looked at yet.
    Token(String),
}

/// Why a line is not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// The line's id, when it could be made out beyond doubt.
    pub id: Option<u64>,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a request line, without its line feed.
///
/// # Errors
///
/// [`BadRequest`] for every line that is not exactly a request.
pub fn parse_request(line: &[u8]) -> Result<Request, BadRequest> {
    let text = std::str::from_utf8(line).map_err(|fault| BadRequest {
        id: None,
        message: format!(
            "the line is not UTF-8: byte {} is wrong",
            fault.valid_up_to() + 1
        ),
    })?;
    serde_json::from_str(text).map_err(|fault| BadRequest {
        id: id_of(text),
        message: match fault.classify() {
            serde_json::error::Category::Data => format!("not a request: {}", bounded(&fault)),
            serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof
            | serde_json::error::Category::Io => format!(
                "not a request: {}; a request is one line of JSON such as \
                 {{\"id\":1,\"command\":{{\"op\":\"check\"}}}}",
                bounded(&fault)
            ),
        },
    })
}

/// The id of a line that is JSON and has exactly one, whatever else is wrong with it.
fn id_of(text: &str) -> Option<u64> {
    struct IdVisitor;
    impl<'de> Visitor<'de> for IdVisitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with an id")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
            let mut id = None;
            while let Some(Word(key)) = map.next_key()? {
                if key == "id" {
                    once(&id, "id")?;
                    id = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            id.ok_or_else(|| A::Error::missing_field("id"))
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let id = json.deserialize_map(IdVisitor).ok()?;
    json.end().ok()?;
    Some(id)
}

/// A key or a word of the grammar: borrowed from the line unless it was written with escapes.
pub(crate) struct Word<'de>(pub(crate) Cow<'de, str>);

impl<'de> Deserialize<'de> for Word<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor;
        impl<'de> Visitor<'de> for WordVisitor {
            type Value = Word<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Word<'de>, E> {
                Ok(Word(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(WordVisitor)
    }
}

/// How much of a peer's text a message repeats, in characters.
const ECHO_CHARS_MAX: usize = 40;

/// A peer's text, escaped and cut, for a message.
pub(crate) fn echo(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(ECHO_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(ECHO_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The most characters of what JSON's reader says; a string that stands where something else
/// should is repeated by it whole.
const WHY_CHARS_MAX: usize = 200;

/// What JSON's reader says, escaped where it is not yet, and cut.
pub(crate) fn bounded(fault: &serde_json::Error) -> String {
    let fault = fault.to_string();
    let mut shown = String::new();
    for c in fault.chars().take(WHY_CHARS_MAX) {
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if fault.chars().nth(WHY_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Refuses a second value for a key.
pub(crate) fn once<T, E: serde::de::Error>(slot: &Option<T>, key: &str) -> Result<(), E> {
    match slot {
        None => Ok(()),
        Some(_) => Err(E::custom(format_args!("`{key}` stands there twice"))),
    }
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RequestVisitor)
    }
}

struct RequestVisitor;

impl<'de> Visitor<'de> for RequestVisitor {
    type Value = Request;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `id` and `command` or `token`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request, A::Error> {
        let (mut id, mut command, mut token) = (None, None, None);
        while let Some(Word(key)) = map.next_key()? {
            match &*key {
                "id" => {
                    once(&id, "id")?;
                    id = Some(map.next_value()?);
                }
                "command" => {
                    once(&command, "command")?;
                    command = Some(map.next_value_seed(CommandSeed)?);
                }
                "token" => {
                    once(&token, "token")?;
                    token = Some(map.next_value::<String>()?);
                }
                other => {
                    return Err(A::Error::custom(format_args!(
                        "unknown field `{}`, a request has `id` and `command` or `token`",
                        echo(other)
                    )));
                }
            }
        }
        let id = id.ok_or_else(|| A::Error::custom("`id` is missing"))?;
        let body = match (command, token) {
            (Some(command), None) => Body::Command(command),
            (None, Some(token)) => Body::Token(token),
            (None, None) => return Err(A::Error::custom("`command` or `token` is missing")),
            (Some(_), Some(_)) => {
                return Err(A::Error::custom("either `command` or `token`, not both"));
            }
        };
        Ok(Request { id, body })
    }
}

/// Reads a command object; what a token's `cmd` claim holds is read by the same rules.
pub(crate) struct CommandSeed;

impl<'de> DeserializeSeed<'de> for CommandSeed {
    type Value = Command;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Command, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for CommandSeed {
    type Value = Command;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command object with an `op`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Command, A::Error> {
        let mut fields = CommandFields::default();
        while let Some(Word(key)) = map.next_key()? {
            match &*key {
                "op" => {
                    once(&fields.op, "op")?;
                    fields.op = Some(parse_op(&map.next_value::<Word<'_>>()?.0)?);
                }
                "child" => {
                    once(&fields.child, "child")?;
                    let name = map.next_value::<Word<'_>>()?;
                    fields.child = Some(name.0.parse().map_err(|fault| {
                        A::Error::custom(format_args!(
                            "`{}` is not a child name: {fault}",
                            echo(&name.0)
                        ))
                    })?);
                }
                "all" => {
                    once(&fields.all, "all")?;
                    fields.all = Some(map.next_value()?);
                }
                "stop_children" => {
                    once(&fields.stop_children, "stop_children")?;
                    fields.stop_children = Some(map.next_value()?);
                }
                "for" => {
                    once(&fields.goal, "for")?;
                    fields.goal = Some(parse_goal(&map.next_value::<Word<'_>>()?.0)?);
                }
                "run" => {
                    once(&fields.run, "run")?;
                    fields.run = Some(map.next_value()?);
                }
                "timeout_ms" => {
                    once(&fields.timeout_ms, "timeout_ms")?;
                    fields.timeout_ms = Some(map.next_value()?);
                }
                "follow" => {
                    once(&fields.follow, "follow")?;
                    fields.follow = Some(map.next_value()?);
                }
                "last" => {
                    once(&fields.last, "last")?;
                    fields.last = Some(map.next_value()?);
                }
                other => {
                    return Err(A::Error::custom(format_args!(
                        "unknown field `{}` in the command",
                        echo(other)
                    )));
                }
            }
        }
        fields.command().map_err(A::Error::custom)
    }
}

fn parse_op<E: serde::de::Error>(word: &str) -> Result<Op, E> {
    Op::ALL
        .into_iter()
        .find(|op| op.as_str() == word)
        .ok_or_else(|| {
            E::custom(format_args!(
                "unknown op `{}`, expected one of start, restart, trystart, stop, check, why, wait, \
                 events, info, kill, upgrade",
                echo(word)
            ))
        })
}

fn parse_goal<E: serde::de::Error>(word: &str) -> Result<Goal, E> {
    let found = Goal::ALL.into_iter().find(|goal| goal.as_str() == word);
    found.ok_or_else(|| {
        E::custom(format_args!(
            "nobody waits for `{}`, expected one of running, ready, exited",
            echo(word)
        ))
    })
}

/// The fields of a command object before they are understood together.
#[derive(Default)]
struct CommandFields {
    op: Option<Op>,
    child: Option<ChildName>,
    all: Option<bool>,
    stop_children: Option<bool>,
    goal: Option<Goal>,
    run: Option<RunId>,
    timeout_ms: Option<u64>,
    follow: Option<bool>,
    last: Option<u32>,
}

impl CommandFields {
    fn command(self) -> Result<Command, String> {
        let op = self.op.ok_or("`op` is missing")?;
        if self.stop_children.is_some() && op != Op::Kill {
            return Err(format!("`{}` has no field `stop_children`", op.as_str()));
        }
        let of_one = [
            ("for", self.goal.is_some(), Op::Wait),
            ("run", self.run.is_some(), Op::Wait),
            ("timeout_ms", self.timeout_ms.is_some(), Op::Wait),
            ("follow", self.follow.is_some(), Op::Events),
            ("last", self.last.is_some(), Op::Events),
        ];
        let is_foreign = |(_, given, whose): &(&str, bool, Op)| *given && op != *whose;
        if let Some((field, ..)) = of_one.into_iter().find(is_foreign) {
            return Err(format!("`{}` has no field `{field}`", op.as_str()));
        }
        match op {
            Op::Start => self.child_or_all(Verb::Start, Command::StartAll),
            Op::Stop => self.child_or_all(Verb::Stop, Command::StopAll),
            Op::Restart => self.one_child(Verb::Restart),
            Op::Trystart => self.one_child(Verb::Trystart),
            Op::Check => Ok(match (self.child, self.all) {
                (Some(child), _) => Command::CheckOne(child),
                (None, Some(true)) => Command::Check {
                    scope: CheckScope::All,
                },
                (None, Some(false) | None) => Command::Check {
                    scope: CheckScope::Live,
                },
            }),
            Op::Why => match (self.child, self.all) {
                (Some(child), None) => Ok(Command::Why(child)),
                (_, Some(_)) => Err("`why` has no field `all`".to_owned()),
                (None, None) => Err("`why` needs `child`".to_owned()),
            },
            Op::Wait => self.wait(),
            Op::Events if self.all.is_some() => Err("`events` has no field `all`".to_owned()),
            Op::Events => Ok(Command::Events {
                child: self.child,
                follow: match self.follow {
                    Some(true) => Follow::Yes,
                    Some(false) | None => Follow::No,
                },
                last: self.last,
            }),
            Op::Info => self.alone(op, Command::Info),
            Op::Kill => {
                let children = match self.stop_children {
                    Some(true) => KillChildren::Stop,
                    Some(false) | None => KillChildren::AsConfigured,
                };
                self.alone(op, Command::Kill(children))
            }
            Op::Upgrade => self.alone(op, Command::Upgrade),
        }
    }

    fn child_or_all(self, verb: Verb, all: Command) -> Result<Command, String> {
        match (self.child, self.all) {
            (Some(child), None) => Ok(Command::Child { verb, child }),
            (None, Some(true)) => Ok(all),
            (Some(_), Some(_)) => Err(format!("`{verb}` takes `child` or `all`, not both")),
            (None, Some(false) | None) => Err(format!("`{verb}` needs `child` or `all`: true")),
        }
    }

    fn one_child(self, verb: Verb) -> Result<Command, String> {
        match (self.child, self.all) {
            (Some(child), None) => Ok(Command::Child { verb, child }),
            (_, Some(_)) => Err(format!("`{verb}` has no field `all`")),
            (None, None) => Err(format!("`{verb}` needs `child`")),
        }
    }

    fn wait(self) -> Result<Command, String> {
        if self.all.is_some() {
            return Err("`wait` has no field `all`".to_owned());
        }
        let child = self.child.ok_or("`wait` needs `child`")?;
        if self.run == Some(RunId(0)) {
            return Err("`run` is a whole number from 1".to_owned());
        }
        let goal = self.goal.ok_or("`wait` needs `for`")?;
        let time = self.timeout_ms.map_or(WAIT_TIME, Duration::from_millis);
        if time > WAIT_TIME_MAX {
            let most = WAIT_TIME_MAX.as_millis();
            return Err(format!("`timeout_ms` is at most {most}, a day"));
        }
        Ok(Command::Wait {
            child,
            goal,
            run: self.run,
            time,
        })
    }

    fn alone(self, op: Op, command: Command) -> Result<Command, String> {
        if self.child.is_some() || self.all.is_some() {
            return Err(format!("`{}` takes neither `child` nor `all`", op.as_str()));
        }
        Ok(command)
    }
}
