//! `hooks` and `repeat`: the commands that a child gives rather than gets.
//!
//! Absent on purpose: whether the other child exists and whether hooks go in a circle. Only the
//! core knows all children, and it looks at each start.

use std::time::Duration;

use super::{
    command,
    fault::{Fault, Words},
    node::Value,
    rules::{Checker, Field, Rule, Shape, rule},
    values::DURATION_MAX,
};
use crate::spec::{Hook, Repeat, Verb};

const VERBS: Words = &["start", "restart", "trystart", "stop"];

/// The words a hook may begin with: the verbs, and what runs a program.
const HOOK_WORDS: Words = &["start", "restart", "trystart", "stop", RUN];

const RUN: &str = "run";

/// What `hooks` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hooks {
    pub(super) prehook: Option<Hook>,
    pub(super) posthook: Option<Hook>,
}

/// Whether the key was there; the hook, unless it was faulty.
#[derive(Default)]
struct HooksDraft {
    prehook: Option<Option<Hook>>,
    posthook: Option<Option<Hook>>,
}

const HOOKS_FIELDS: &[Rule<HooksDraft>] = &[
    rule("prehook", |c, f, draft| hook(c, f, &mut draft.prehook)),
    rule("posthook", |c, f, draft| hook(c, f, &mut draft.posthook)),
];

/// `hooks`: a list with at most one hook of each kind.
pub(super) fn hooks(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Hooks> {
    let items = checker.list(field, Some("write a list: `- prehook: start CHILD`"))?;
    let mut draft = HooksDraft::default();
    for item in items {
        let item = field.item(item);
        match &item.node.value {
            Value::Mapping(entries) => {
                checker.mapping(entries, HOOKS_FIELDS, &Shape::of("hooks"), &mut draft);
            }
            Value::Scalar { .. } | Value::List(_) => {
                checker.form(item, "entries such as `- prehook: start CHILD`", None);
            }
        }
    }
    let (prehook, posthook) = (draft.prehook.flatten(), draft.posthook.flatten());
    Some(Hooks { prehook, posthook })
}

fn hook(checker: &mut Checker<'_>, field: Field<'_>, place: &mut Option<Option<Hook>>) {
    if place.is_some() {
        let help = "a child has one hook of a kind: to do more, write `run` and a script";
        checker.fault(
            field.key_span(),
            Fault::Second {
                field: field.name,
                help,
            },
        );
    }
    let text = checker.text(field);
    *place = Some(text.and_then(|text| hook_of(checker, field, text)));
}

/// `"<command> <child>"` or `"run <command line>"`.
fn hook_of(checker: &mut Checker<'_>, field: Field<'_>, text: &str) -> Option<Hook> {
    let text = text.trim();
    let (word, rest) = match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text, ""),
    };
    if word == RUN {
        return command::line(checker, field, rest).map(Hook::Run);
    }
    let one_word = !rest.is_empty() && !rest.contains(char::is_whitespace);
    let name = field.name;
    let fault = match verb(word) {
        Some(verb) if one_word => match rest.parse() {
            Ok(child) => return Some(Hook::Command { verb, child }),
            Err(source) => Fault::ChildName {
                field: name,
                source,
            },
        },
        None if one_word => {
            let found = word.into();
            Fault::Word {
                field: name,
                words: HOOK_WORDS,
                found,
            }
        }
        Some(_) | None => Fault::HookForm {
            field: name,
            found: text.into(),
        },
    };
    checker.fault(field.span(), fault);
    None
}

fn verb(word: &str) -> Option<Verb> {
    let all = [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop];
    all.into_iter().find(|verb| verb.as_str() == word)
}

/// What `repeat` says so far.
#[derive(Default)]
struct RepeatDraft {
    action: Option<Verb>,
    /// Whether the key was there; the interval, unless it was faulty.
    seconds: Option<Option<Duration>>,
}

const REPEAT_FIELDS: &[Rule<RepeatDraft>] = &[
    rule("repeat.action", |c, f, draft| draft.action = action(c, f)),
    rule("repeat.seconds", |c, f, draft| {
        draft.seconds = Some(seconds(c, f))
    }),
];

/// `repeat`: an action and its interval; with nothing in it, none.
pub(super) fn repeat(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Option<Repeat>> {
    let help = "write `action:` and `seconds:` below it, indented";
    let entries = checker.entries(field, Some(help))?;
    let mut draft = RepeatDraft::default();
    checker.mapping(entries, REPEAT_FIELDS, &Shape::of("repeat"), &mut draft);
    if !entries.is_empty() && draft.seconds.is_none() {
        let help = "add `seconds:` and a whole number, below `repeat:`";
        checker.fault(
            field.key_span(),
            Fault::Missing {
                field: "repeat.seconds",
                help,
            },
        );
    }
    let action = draft.action.unwrap_or(Verb::Restart);
    Some(
        draft
            .seconds
            .flatten()
            .map(|every| Repeat { action, every }),
    )
}

/// `None` when it is left empty, which means the default, as documented; or faulty, and told.
fn action(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Verb> {
    if field.is_nothing() || field.is_empty_text() {
        return None;
    }
    checker.word(field, VERBS).and_then(verb)
}

fn seconds(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Duration> {
    checker
        .whole(field, 1..=DURATION_MAX.as_secs())
        .map(Duration::from_secs)
}
