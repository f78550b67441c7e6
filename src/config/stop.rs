//! `stop`: how a run is told to end, as one signal, as a mapping or as a ladder of steps.
//!
//! Whatever is written, KILL comes last: a ladder says so itself, so that nobody takes it for one
//! that waits for ever.
//!
//! Absent on purpose: what `tree` can reach, which depends on the machine (`process`).

use std::{ops::RangeInclusive, time::Duration};

use super::{
    command,
    fault::{LifeFault, Words},
    node::{Node, Value},
    rules::{Checker, Field, Rule, Shape, rule},
};
use crate::spec::{SignalNumber, StopAct, StopPolicy, StopScope, StopStep};

const SCOPES: Words = &["group", "tree"];

/// What comes last, whatever else is done.
const THEN: Words = &["KILL"];

/// A step without time is one that is not waited for.
const WAITS: RangeInclusive<Duration> = Duration::ZERO..=StopPolicy::WAIT_MAX;

const LADDER_HELP: &str = "such as `[{signal: INT, wait: 5s}, {signal: TERM, wait: 5s}, KILL]`";

/// The policy as far as it was written.
#[derive(Default)]
struct Draft {
    signal: Option<SignalNumber>,
    grace: Option<Duration>,
    command: Option<Vec<String>>,
    ladder: Option<Vec<StopStep>>,
    scope: Option<StopScope>,
}

const FIELDS: &[Rule<Draft>] = &[
    rule("stop.signal", |c, f, draft| draft.signal = signal(c, f)),
    rule("stop.grace", |c, f, draft| {
        draft.grace = c.duration(f, WAITS)
    }),
    rule("stop.then", |c, f, _| {
        c.word(f, THEN);
    }),
    rule("stop.command", |c, f, draft| {
        draft.command = command::argv(c, f)
    }),
    rule("stop.ladder", |c, f, draft| draft.ladder = ladder(c, f)),
    rule("stop.scope", |c, f, draft| draft.scope = scope(c, f)),
];

/// Fields that say in one step what a ladder says in several.
const ONE_STEP: [&str; 4] = ["signal", "grace", "then", "command"];

/// Reads `stop`; `None` when a fault was told.
pub(super) fn policy(checker: &mut Checker<'_>, field: Field<'_>) -> Option<StopPolicy> {
    let mut draft = Draft::default();
    match &field.node.value {
        Value::Scalar { .. } => draft.signal = Some(signal(checker, field)?),
        Value::List(_) => draft.ladder = Some(ladder(checker, field)?),
        Value::Mapping(entries) => {
            checker.mapping(entries, FIELDS, &Shape::of("stop"), &mut draft);
            let both = ONE_STEP.into_iter().find_map(|key| field.span_of(key));
            if let (Some(_), Some(at)) = (field.span_of("ladder"), both) {
                checker.fault(at, LifeFault::StopBoth);
            }
        }
    }
    Some(draft.policy())
}

impl Draft {
    fn policy(self) -> StopPolicy {
        let wait = self.grace.unwrap_or(StopPolicy::WAIT);
        let run = self.command.map(StopAct::Run);
        let signal = StopAct::Signal(self.signal.unwrap_or(SignalNumber::TERM));
        let kills = self.signal == Some(SignalNumber::KILL);
        let steps = self.ladder.unwrap_or_else(|| {
            let acts = run.into_iter().chain((!kills).then_some(signal));
            acts.map(|act| StopStep { act, wait }).collect()
        });
        StopPolicy {
            steps,
            scope: self.scope.unwrap_or_default(),
        }
    }
}

fn scope(checker: &mut Checker<'_>, field: Field<'_>) -> Option<StopScope> {
    let word = checker.word(field, SCOPES)?;
    Some(if word == StopScope::Tree.as_str() {
        StopScope::Tree
    } else {
        StopScope::Group
    })
}

/// A signal that tells a program something.
fn signal(checker: &mut Checker<'_>, field: Field<'_>) -> Option<SignalNumber> {
    let text = checker.text(field)?;
    let found = text.into();
    let name = field.name;
    let fault = match text.parse::<SignalNumber>() {
        Ok(signal) if signal.is_job_control() => {
            LifeFault::SignalTellsNothing { field: name, found }
        }
        Ok(signal) => return Some(signal),
        Err(_) => LifeFault::Signal { field: name, found },
    };
    checker.fault(field.span(), fault);
    None
}

/// One step of a ladder as far as it was written.
#[derive(Default)]
struct StepDraft {
    signal: Option<Option<SignalNumber>>,
    command: Option<Option<Vec<String>>>,
    wait: Option<Duration>,
}

const STEP_FIELDS: &[Rule<StepDraft>] = &[
    rule("stop.signal", |c, f, draft| {
        draft.signal = Some(signal(c, f))
    }),
    rule("stop.command", |c, f, draft| {
        draft.command = Some(command::argv(c, f))
    }),
    rule("stop.wait", |c, f, draft| draft.wait = c.duration(f, WAITS)),
];

/// The steps before KILL, which must stand at the end.
fn ladder(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Vec<StopStep>> {
    let items = checker.list(field, Some(LADDER_HELP))?;
    let Some((last, before)) = items.split_last().filter(|(last, _)| is_kill(last)) else {
        let at = items
            .last()
            .map_or(field.span(), |item| field.item(item).head());
        checker.fault(at, LifeFault::LadderWithoutKill { help: LADDER_HELP });
        return None;
    };
    if before.len() > StopPolicy::STEPS_MAX {
        let at = field.item(last).span();
        let max = StopPolicy::STEPS_MAX;
        checker.fault(at, LifeFault::LadderTooLong { max });
    }
    let steps: Vec<StopStep> = before
        .iter()
        .filter_map(|item| step(checker, field.item(item)))
        .collect();
    (steps.len() == before.len()).then_some(steps)
}

/// Whether it is `KILL`, or `{signal: KILL}`.
fn is_kill(item: &Node) -> bool {
    let text = |node: &Node| match &node.value {
        Value::Scalar { text, .. } => text.parse() == Ok(SignalNumber::KILL),
        Value::List(_) | Value::Mapping(_) => false,
    };
    match item.entries() {
        [] => text(item),
        [only] => only.key == "signal" && text(&only.node),
        [_, _, ..] => false,
    }
}

fn step(checker: &mut Checker<'_>, item: Field<'_>) -> Option<StopStep> {
    if is_kill(item.node) {
        checker.fault(item.head(), LifeFault::LadderAfterKill);
        return None;
    }
    let (act, wait) = match &item.node.value {
        Value::Scalar { .. } => (StopAct::Signal(signal(checker, item)?), None),
        Value::List(_) => {
            checker.form(item, "steps", Some(LADDER_HELP));
            return None;
        }
        Value::Mapping(entries) => {
            let mut draft = StepDraft::default();
            checker.mapping(entries, STEP_FIELDS, &Shape::of("stop"), &mut draft);
            let act = match (draft.signal, draft.command) {
                (Some(signal), None) => StopAct::Signal(signal?),
                (None, Some(command)) => StopAct::Run(command?),
                (None, None) | (Some(_), Some(_)) => {
                    checker.fault(item.head(), LifeFault::LadderStep);
                    return None;
                }
            };
            (act, draft.wait)
        }
    };
    if act == StopAct::Signal(SignalNumber::KILL) {
        checker.fault(item.head(), LifeFault::LadderAfterKill);
        return None;
    }
    let wait = wait.unwrap_or(StopPolicy::WAIT);
    Some(StopStep { act, wait })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::child::tests::read;

    fn policy(text: &str) -> StopPolicy {
        read(&format!("command: x\nstop: {text}\n")).stop
    }

    fn signal(name: &str, seconds: u64) -> StopStep {
        StopStep {
            act: StopAct::Signal(name.parse().expect("a signal")),
            wait: Duration::from_secs(seconds),
        }
    }

    fn run(argv: &[&str], seconds: u64) -> StopStep {
        StopStep {
            act: StopAct::Run(argv.iter().map(|word| (*word).to_owned()).collect()),
            wait: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn what_is_built_in_may_be_written_down() {
        for text in [
            "TERM",
            "SIGTERM",
            "{}",
            "{signal: TERM, grace: 10s, then: KILL}",
            "{signal: term, scope: group}",
            "[TERM, KILL]",
            "[{signal: TERM, wait: 10s}, KILL]",
            "{ladder: [{signal: TERM}, {signal: KILL}]}",
        ] {
            assert_eq!(policy(text), StopPolicy::default(), "{text}");
        }
        assert!(read("command: x\n").stop.is_built_in());
    }

    #[test]
    fn a_ladder_is_climbed_in_its_order() {
        let ladder = policy("[{signal: INT, wait: 5s}, {signal: TERM, wait: 0s}, KILL]");
        assert_eq!(ladder.steps, [signal("INT", 5), signal("TERM", 0)]);
        let with_command = "[{command: nginx -s quit, wait: 1m}, QUIT, KILL]";
        let expected = [run(&["nginx", "-s", "quit"], 60), signal("QUIT", 10)];
        assert_eq!(policy(with_command).steps, expected);
        let tree = policy("{ladder: [INT, KILL], scope: tree}");
        assert_eq!(tree.steps, [signal("INT", 10)]);
        assert_eq!(tree.scope, StopScope::Tree);
    }

    #[test]
    fn a_command_is_followed_by_a_signal_like_any_other() {
        let expected = [run(&["web", "quit"], 5), signal("TERM", 5)];
        assert_eq!(policy("{command: web quit, grace: 5s}").steps, expected);
        let expected = [run(&["web", "quit"], 10), signal("INT", 10)];
        assert_eq!(
            policy("{signal: INT, command: [web, quit]}").steps,
            expected
        );
    }

    #[test]
    fn kill_alone_gives_no_time() {
        for text in ["KILL", "{signal: KILL}", "[KILL]"] {
            assert_eq!(policy(text).steps, [], "{text}");
        }
        assert_eq!(
            policy("{signal: KILL, command: x}").steps,
            [run(&["x"], 10)]
        );
    }
}
