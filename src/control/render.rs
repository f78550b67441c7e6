//! Answers as people and programs read them: values in, text out.
//!
//! Pure. What a server says is shown leniently (a state this version does not know is shown as
//! it is spelled) and never trusted: control characters are made visible, so that no server
//! drives the reader's terminal, and no server can name another host in `--json`.
//!
//! Absent on purpose: writing anywhere, and finding out whether there is a terminal.
//!
//! Source: DESIGN, section 6; <https://no-color.org>.

mod check;
mod event;
mod history;
mod info;
mod table;

use serde::Serialize;
use serde_json::value::RawValue;

pub use self::event::{Events, event_json};
use self::table::{Paint, Table, clean, clean_lines, is_harmful};
use super::{
    client::HostAnswer,
    protocol::{Fields, Refusal},
};
use crate::command::{Command, Done, Each, Killed, Op, Told, Upgraded, Why};
use crate::spec::ChildName;

/// The exit code of a command that was done.
const DONE: u8 = 0;

/// The exit code of an error that this version does not know, and of anything else gone wrong.
pub const FAILED: u8 = 1;

/// The exit code of `check NAME` for a child without a live process.
const NOT_LIVE: u8 = 3;

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// With the colours of ECMA-48.
    Colour,
}

/// Whether an answer says whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// It is the only one.
    None,
    /// It is one of several.
    Host,
}

/// What is to be written where. Each is empty or ends with a line feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// Data, for standard output.
    pub out: String,
    /// Complaints, for standard error.
    pub err: String,
}

/// The exit code that one host's answer makes; of several hosts the largest counts.
#[must_use]
pub fn exit_code(command: &Command, answer: &HostAnswer) -> u8 {
    let fields = match &answer.outcome {
        Err(refusal) => return refusal.known_code().map_or(FAILED, |code| code.exit_code()),
        Ok(fields) => fields,
    };
    match command {
        Command::CheckOne(_) => match check::has_live_process(fields) {
            true => DONE,
            false => NOT_LIVE,
        },
        Command::StopAll | Command::StartAll => typed::<Each>(fields).map_or(DONE, |each| {
            let codes = each
                .children
                .iter()
                .filter_map(|child| child.error.as_ref());
            codes
                .map(|error| error.code.exit_code())
                .max()
                .unwrap_or(DONE)
        }),
        Command::Child { .. }
        | Command::Why(_)
        | Command::Wait { .. }
        | Command::Events { .. }
        | Command::Check { .. }
        | Command::Info
        | Command::Kill(_)
        | Command::Upgrade => DONE,
    }
}

/// One line of JSON, with its line feed; nothing after events that were all told.
#[must_use]
pub fn json(command: &Command, answer: &HostAnswer) -> String {
    if let (Command::Events { .. }, Ok(_)) = (command, &answer.outcome) {
        return String::new();
    }
    #[derive(Serialize)]
    struct Failed<'a> {
        host: &'a str,
        ok: bool,
        op: Op,
        #[serde(skip_serializing_if = "Option::is_none")]
        child: Option<&'a str>,
        error: &'a RawValue,
    }
    #[derive(Serialize)]
    struct Done<'a> {
        host: &'a str,
        ok: bool,
        #[serde(flatten, serialize_with = "but_for_ours")]
        fields: &'a Fields,
    }
    let host = &answer.host;
    let line = match &answer.outcome {
        Ok(fields) => serde_json::to_string(&Done {
            host,
            ok: true,
            fields,
        }),
        Err(refusal) => serde_json::to_string(&Failed {
            host,
            ok: false,
            op: command.op(),
            child: child_of(command),
            error: &refusal.raw,
        }),
    };
    let line = line.expect("string keys and JSON that was read before");
    harmless_json(&line) + "\n"
}

/// The same JSON without characters that drive a terminal or turn text around. JSON has such
/// characters in strings only, where an escape means the same.
fn harmless_json(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if is_harmful(c) {
            // All of them lie in the first plane, so that one escape does.
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The server's fields without those that are the client's to fill.
fn but_for_ours<S: serde::Serializer>(fields: &Fields, serializer: S) -> Result<S::Ok, S::Error> {
    let ours = |key: &str| matches!(key, "host" | "ok");
    let theirs = fields.0.iter().filter(|(key, _)| !ours(key));
    serializer.collect_map(theirs.map(|(key, value)| (key, value)))
}

fn child_of(command: &Command) -> Option<&str> {
    match command {
        Command::Child { child, .. }
        | Command::CheckOne(child)
        | Command::Why(child)
        | Command::Wait { child, .. } => Some(child.as_str()),
        Command::Events { child, .. } => child.as_ref().map(ChildName::as_str),
        Command::StopAll
        | Command::StartAll
        | Command::Check { .. }
        | Command::Info
        | Command::Kill(_)
        | Command::Upgrade => None,
    }
}

/// Text for a person.
#[must_use]
pub fn text(command: &Command, answer: &HostAnswer, heading: Heading, style: Style) -> Shown {
    let paint = Paint(style);
    match &answer.outcome {
        Ok(fields) if events_were_told(command, fields) => Shown::default(),
        Ok(fields) => Shown {
            out: headed(answer, heading, paint, done_text(command, fields, paint)),
            err: String::new(),
        },
        Err(refusal) => Shown {
            out: String::new(),
            err: refusal_text(answer, refusal, heading, paint),
        },
    }
}

/// Whether all there is to say was said before the answer.
fn events_were_told(command: &Command, fields: &Fields) -> bool {
    let some_were = || typed::<Told>(fields).is_some_and(|told| told.count > 0);
    matches!(command, Command::Events { .. }) && some_were()
}

fn done_text(command: &Command, fields: &Fields, paint: Paint) -> String {
    let shown = match command {
        Command::Child { .. } | Command::Wait { .. } => {
            typed::<Done>(fields).map(|done| clean_lines(&done.message))
        }
        Command::StopAll | Command::StartAll => typed(fields).map(|each| each_text(&each, paint)),
        Command::CheckOne(_) => check::one(fields, paint),
        Command::Check { .. } => check::many(fields, paint),
        Command::Why(_) => typed::<Why>(fields).map(|why| clean_lines(&why.message)),
        Command::Events { .. } => typed::<Told>(fields).map(|told| clean_lines(&told.message)),
        Command::Info => info::info(fields, paint),
        Command::Kill(_) => typed(fields).map(|killed| killed_text(&killed, paint)),
        Command::Upgrade => typed::<Upgraded>(fields).map(|done| clean_lines(&done.message)),
    };
    let mut shown = shown.unwrap_or_else(|| as_it_came(fields));
    if !shown.ends_with('\n') {
        shown.push('\n');
    }
    shown
}

/// The answer in the shape this version knows; `None` when it has another.
fn typed<T: serde::de::DeserializeOwned>(fields: &Fields) -> Option<T> {
    serde_json::from_str(&fields.object()).ok()
}

/// An answer of a shape that this version does not know: its fields, one a line.
fn as_it_came(fields: &Fields) -> String {
    let mut table = Table::keys();
    for (key, value) in &fields.0 {
        table.row([clean(key), clean(value.get())]);
    }
    table.text(Paint(Style::Plain))
}

fn each_text(each: &Each, paint: Paint) -> String {
    let mut text = clean_lines(&each.message);
    if each.children.is_empty() {
        return text;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut table = Table::headed(["NAME", "RESULT", "PID", "RUN", "NOTE"]);
    for child in &each.children {
        let result = match (&child.error, child.ok) {
            (Some(error), _) => error.code.as_str(),
            (None, true) => "ok",
            (None, false) => "failed",
        };
        let why = child.error.as_ref().map(|error| error.message.as_str());
        let note: Vec<&str> = why.into_iter().chain(child.note.as_deref()).collect();
        table.row([
            child.name.to_string(),
            result.to_owned(),
            child.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            child.run.map(|run| run.to_string()).unwrap_or_default(),
            clean(&note.join("; ")),
        ]);
    }
    text + &table.text(paint)
}

fn killed_text(killed: &Killed, paint: Paint) -> String {
    let mut text = clean_lines(&killed.message);
    if killed.children.is_empty() {
        return text;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut table = Table::headed(["NAME", "PID", "RUN"]);
    for child in &killed.children {
        table.row([
            child.name.to_string(),
            child.pid.to_string(),
            child.run.to_string(),
        ]);
    }
    text + &table.text(paint)
}

/// Puts the host before a short answer and above a long one.
fn headed(answer: &HostAnswer, heading: Heading, paint: Paint, text: String) -> String {
    match heading {
        Heading::None => text,
        Heading::Host => {
            let host = paint.strong(&clean(&answer.host));
            let between = if text.lines().count() == 1 { ' ' } else { '\n' };
            format!("{host}:{between}{text}")
        }
    }
}

fn refusal_text(answer: &HostAnswer, refusal: &Refusal, heading: Heading, paint: Paint) -> String {
    let host = match heading {
        Heading::None => String::new(),
        Heading::Host => format!("{}: ", paint.strong(&clean(&answer.host))),
    };
    let label = paint.bad(&format!("error[{}]", clean(&refusal.code)));
    format!("{host}{label}: {}\n", clean_lines(&refusal.message))
}

/// Compares with a file of `fixtures/cli`, or writes it when `UPDATE_SNAPSHOTS` is set.
#[cfg(test)]
pub(crate) fn fixture(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/cli")
        .join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        there, text,
        "fixtures/cli/{name} differs; if the new text is right, run with UPDATE_SNAPSHOTS=1"
    );
}

#[cfg(test)]
mod tests;
