//! `restart`: a word, or the policy in full.
//!
//! Numbers with decimals are kept in thousandths, so that a policy compares and hashes exactly.
//!
//! Absent on purpose: when a restart is due; the core reckons that.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use super::{
    fault::{Fault, Words},
    node::{Kind, Value},
    rules::{Checker, Field, Rule, Shape, rule},
    values::{DURATION_MAX, parse_duration},
};
use crate::spec::{RestartLimit, RestartPolicy, RestartWhen};

const WHEN: Words = &["never", "on-failure", "always"];

/// Shorter than this is as good as none, and would let a failing child use up the host.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// A factor of 1 keeps the delay as it is; beyond 1000 the second delay is the cap anyway.
const FACTOR: RangeInclusive<u32> = 1_000..=1_000_000;

/// From none to as much again.
const JITTER: RangeInclusive<u32> = 0..=1_000;

/// The statuses a process can exit with.
const EXIT_CODES: RangeInclusive<u64> = 0..=255;

/// What stands between count and duration in `max`.
const WITHIN: &str = " in ";

/// The policy as far as it was written.
#[derive(Default)]
struct Draft {
    when: Option<RestartWhen>,
    delay: Option<Duration>,
    factor: Option<u32>,
    max_delay: Option<Duration>,
    jitter: Option<u32>,
    reset_after: Option<Duration>,
    max: Option<RestartLimit>,
    success: Option<Vec<i32>>,
    never_on: Option<Vec<i32>>,
}

const FIELDS: &[Rule<Draft>] = &[
    rule("restart.when", |c, f, draft| draft.when = when(c, f)),
    rule("restart.delay", |c, f, draft| {
        draft.delay = c.duration(f, DELAY_MIN..=DURATION_MAX)
    }),
    rule("restart.factor", |c, f, draft| {
        draft.factor = c.permille(f, FACTOR)
    }),
    rule("restart.max_delay", |c, f, draft| {
        draft.max_delay = c.duration(f, DELAY_MIN..=DURATION_MAX)
    }),
    rule("restart.jitter", |c, f, draft| {
        draft.jitter = c.permille(f, JITTER)
    }),
    rule("restart.reset_after", |c, f, draft| {
        draft.reset_after = c.duration(f, DELAY_MIN..=DURATION_MAX)
    }),
    rule("restart.max", |c, f, draft| draft.max = limit(c, f)),
    rule("restart.success", |c, f, draft| draft.success = codes(c, f)),
    rule("restart.never_on", |c, f, draft| {
        draft.never_on = codes(c, f)
    }),
];

/// Reads `restart`; `None` when a fault was told.
pub(super) fn policy(checker: &mut Checker<'_>, field: Field<'_>) -> Option<RestartPolicy> {
    match &field.node.value {
        Value::Scalar { .. } => Some(RestartPolicy {
            when: when(checker, field)?,
            ..RestartPolicy::default()
        }),
        Value::List(_) => {
            checker.form(
                field,
                "a word or a mapping",
                Some("such as `restart: on-failure`"),
            );
            None
        }
        Value::Mapping(entries) => {
            let mut draft = Draft::default();
            checker.mapping(entries, FIELDS, &Shape::of("restart"), &mut draft);
            if !entries.iter().any(|entry| entry.key == "when") {
                let help = "add `when:` and one of never, on-failure, always";
                checker.fault(
                    field.key_span(),
                    Fault::Missing {
                        field: "restart.when",
                        help,
                    },
                );
            }
            finish(checker, field, draft)
        }
    }
}

/// Fills in what was not written.
fn finish(checker: &mut Checker<'_>, field: Field<'_>, draft: Draft) -> Option<RestartPolicy> {
    let built_in = RestartPolicy::default();
    let delay = draft.delay.unwrap_or(built_in.delay);
    if draft.max_delay.is_some_and(|max_delay| max_delay < delay) {
        let at = field.span_of("max_delay").unwrap_or(field.span());
        checker.fault(at, Fault::MaxDelayBelowDelay);
    }
    Some(RestartPolicy {
        when: draft.when?,
        delay,
        factor_permille: draft.factor.unwrap_or(built_in.factor_permille),
        // A long delay without a cap of its own is its own cap.
        max_delay: draft.max_delay.unwrap_or(built_in.max_delay.max(delay)),
        jitter_permille: draft.jitter.unwrap_or(built_in.jitter_permille),
        reset_after: draft.reset_after.unwrap_or(built_in.reset_after),
        max: draft.max,
        success: draft.success.unwrap_or(built_in.success),
        never_on: draft.never_on.unwrap_or(built_in.never_on),
    })
}

fn when(checker: &mut Checker<'_>, field: Field<'_>) -> Option<RestartWhen> {
    checker.word(field, WHEN).map(|word| match word {
        "always" => RestartWhen::Always,
        "on-failure" => RestartWhen::OnFailure,
        _ => RestartWhen::Never,
    })
}

/// `10 in 5m`.
fn limit(checker: &mut Checker<'_>, field: Field<'_>) -> Option<RestartLimit> {
    let text = checker.text(field)?;
    let limit = text.split_once(WITHIN).and_then(|(count, within)| {
        let count = count.trim().parse().ok().filter(|count| *count > 0)?;
        let within = parse_duration(within).ok()?;
        (DELAY_MIN..=DURATION_MAX)
            .contains(&within)
            .then_some(RestartLimit { count, within })
    });
    let found = text.into();
    let fault = match limit {
        None => Fault::RestartMax { found },
        // More could not be remembered: the limit would never be met.
        Some(limit) if limit.count > RestartLimit::COUNT_MAX => Fault::RestartCount {
            found,
            max: RestartLimit::COUNT_MAX,
        },
        Some(limit) => return Some(limit),
    };
    checker.fault(field.span(), fault);
    None
}

/// A list of exit codes, sorted, each once: neither order nor repetition means anything.
fn codes(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Vec<i32>> {
    if field.node.kind() == Kind::Nothing {
        // Nothing would be a success: too much to conclude from a value that was left out.
        checker.fault(field.span(), Fault::NoValue { field: field.name });
        return None;
    }
    let codes = checker.each(field, |checker, item| {
        checker
            .whole(item, EXIT_CODES)
            .and_then(|code| i32::try_from(code).ok())
    })?;
    Some(
        codes
            .into_iter()
            .collect::<BTreeSet<i32>>()
            .into_iter()
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::child::tests::read;

    fn policy(text: &str) -> RestartPolicy {
        read(&format!("command: x\nrestart: {text}\n")).restart
    }

    #[test]
    fn a_word_is_the_policy_with_all_else_as_built_in() {
        for (word, when) in [
            ("never", RestartWhen::Never),
            ("on-failure", RestartWhen::OnFailure),
            ("always", RestartWhen::Always),
        ] {
            let expected = RestartPolicy {
                when,
                ..RestartPolicy::default()
            };
            assert_eq!(policy(word), expected);
            assert_eq!(policy(&format!("{{when: {word}}}")), expected);
        }
    }

    #[test]
    fn the_full_form_sets_every_field() {
        let text = "{when: on-failure, delay: 1s, factor: 1.5, max_delay: 30s, jitter: 0.1, \
                    reset_after: 10m, max: 10 in 5m, success: [3, 0, 3], never_on: [78]}";
        let expected = RestartPolicy {
            when: RestartWhen::OnFailure,
            delay: Duration::from_secs(1),
            factor_permille: 1_500,
            max_delay: Duration::from_secs(30),
            jitter_permille: 100,
            reset_after: Duration::from_secs(600),
            max: Some(RestartLimit {
                count: 10,
                within: Duration::from_secs(300),
            }),
            success: vec![0, 3],
            never_on: vec![78],
        };
        assert_eq!(policy(text), expected);
    }

    #[test]
    fn the_documented_full_form_is_what_is_built_in() {
        let text = "{when: never, delay: 500ms, factor: 2, max_delay: 60s, jitter: 0.2, \
                    reset_after: 60s, success: [0], never_on: []}";
        assert_eq!(policy(text), RestartPolicy::default());
    }

    #[test]
    fn a_delay_longer_than_the_built_in_cap_is_its_own_cap() {
        let policy = policy("{when: always, delay: 5m}");
        assert_eq!(policy.max_delay, Duration::from_secs(300));
    }

    #[test]
    fn no_exit_code_at_all_may_be_a_success_when_said_so() {
        assert_eq!(
            policy("{when: on-failure, success: []}").success,
            Vec::<i32>::new()
        );
    }
}
