//! The restart policy as a function: what follows a run that ended by itself.
//!
//! Growing delays with a cap and jitter, forgotten after a good run; giving up when there were
//! too many. The jitter comes from a number the caller gives, so that a seed repeats it.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use crate::spec::{Exit, Mono, RestartLimit, RestartPolicy, RestartWhen};

/// The most restarts that are remembered to judge `max: N in T`.
const RESTARTS_REMEMBERED_MAX: usize = RestartLimit::COUNT_MAX as usize;

/// The shortest delay after an attempt that came to no run: it may fail at once, for ever.
pub(super) const NEVER_RAN_DELAY_MIN: Duration = Duration::from_millis(100);

/// What a child's restarts have been of late.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Streak {
    /// Restarts by policy since the child was last started by order; shown to people.
    pub(super) restarts: u64,
    /// How often the delay has grown already.
    grown: u32,
    /// When the last restarts were, as far as `max` needs them.
    recent: VecDeque<Mono>,
}

/// What follows an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: the policy does not ask for a restart after this end.
    Rest,
    /// A restart after this long; zero is at once.
    After(Duration),
    /// No further restart, and why.
    GiveUp(String),
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// A run of this length ended like this.
    Ran(Exit, Duration),
    /// A run was ended because it was not ready in time.
    NotReady,
    /// There was no run: the program could not be started, or a prehook failed.
    NeverRan,
}

impl Attempt {
    /// What a run's end is to its policy; `None` when it was ordered to end.
    pub(super) fn ended(by: Option<Cause>, exit: Exit, lived: Duration) -> Option<Self> {
        match by {
            None => Some(Self::Ran(exit, lived)),
            Some(Cause::NotReady) => Some(Self::NotReady),
            Some(_) => None,
        }
    }
}

impl Streak {
    /// A streak that is known to have had this many restarts already.
    pub(super) fn resumed(restarts: u64) -> Self {
        let grown = u32::try_from(restarts).unwrap_or(u32::MAX);
        Self {
            restarts,
            grown,
            recent: VecDeque::new(),
        }
    }

    /// Notes a run that began by policy.
    pub(super) fn restarted(&mut self) {
        self.restarts += 1;
    }

    /// Notes that a restart by policy is attempted, whatever comes of it.
    pub(super) fn attempted(&mut self, policy: &RestartPolicy, now: Mono) {
        if policy.max.is_some() {
            self.recent.push_back(now);
            // An older one cannot decide any more: the largest limit is met without it.
            if self.recent.len() > RESTARTS_REMEMBERED_MAX {
                self.recent.pop_front();
            }
        }
    }

    /// Decides what follows, and grows or forgets the delay. `random` is any number.
    pub(super) fn judge(
        &mut self,
        policy: &RestartPolicy,
        attempt: Attempt,
        now: Mono,
        random: u64,
    ) -> Verdict {
        if !wants_restart(policy, attempt) {
            return Verdict::Rest;
        }
        if let Some(limit) = policy.max {
            while self
                .recent
                .front()
                .is_some_and(|at| now - *at > limit.within)
            {
                self.recent.pop_front();
            }
            if self.recent.len() >= usize::try_from(limit.count).unwrap_or(usize::MAX) {
                return Verdict::GiveUp(format!(
                    "given up after {} restarts in {}",
                    self.recent.len(),
                    humantime::format_duration(limit.within)
                ));
            }
        }
        if matches!(attempt, Attempt::Ran(_, lived) if lived > policy.reset_after) {
            self.grown = 0;
            return Verdict::After(Duration::ZERO);
        }
        let least = match attempt {
            Attempt::Ran(..) | Attempt::NotReady => Duration::ZERO,
            Attempt::NeverRan => NEVER_RAN_DELAY_MIN,
        };
        let delay = delay(policy, least, self.grown);
        self.grown = self.grown.saturating_add(1);
        Verdict::After(spread(delay, policy.jitter_permille, random).max(least))
    }
}

/// Whether the policy asks for a restart after this end at all.
fn wants_restart(policy: &RestartPolicy, attempt: Attempt) -> bool {
    let failed = match attempt {
        Attempt::Ran(Exit::Code(code), _) => {
            if policy.never_on.contains(&code) {
                return false;
            }
            !policy.success.contains(&code)
        }
        Attempt::Ran(Exit::Signal(_) | Exit::Unknown, _)
        | Attempt::NotReady
        | Attempt::NeverRan => true,
    };
    match policy.when {
        RestartWhen::Never => false,
        RestartWhen::OnFailure => failed,
        RestartWhen::Always => true,
    }
}

/// The delay after it has grown so often from at least this, before jitter.
fn delay(policy: &RestartPolicy, least: Duration, grown: u32) -> Duration {
    // 64 doublings of a microsecond pass any cap; a factor of 1 needs no more rounds either.
    const ROUNDS_MAX: u32 = 64;
    let cap = policy.max_delay.max(least);
    let mut delay = policy.delay.max(least).min(cap);
    for _ in 0..grown.min(ROUNDS_MAX) {
        delay = delay.saturating_mul(policy.factor_permille) / 1_000;
        if delay >= cap {
            return cap;
        }
    }
    delay
}

/// Spreads a delay evenly over `delay ± delay × jitter`.
fn spread(delay: Duration, jitter_permille: u32, random: u64) -> Duration {
    let width = delay * jitter_permille.min(1_000) / 1_000;
    let width_micros = u64::try_from(width.as_micros()).unwrap_or(u64::MAX / 2);
    match random.checked_rem(width_micros.saturating_mul(2).saturating_add(1)) {
        Some(offset) => (delay - width) + Duration::from_micros(offset),
        None => delay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn policy(when: RestartWhen) -> RestartPolicy {
        RestartPolicy {
            when,
            jitter_permille: 0,
            ..RestartPolicy::default()
        }
    }

    fn delays(policy: &RestartPolicy, count: usize) -> Vec<Duration> {
        let mut streak = Streak::default();
        let mut verdict = || streak.judge(policy, Attempt::Ran(Exit::Code(1), SHORT), Mono(0), 0);
        (0..count)
            .map(|_| match verdict() {
                Verdict::After(delay) => delay,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn delays_grow_to_the_cap() {
        let millis: Vec<u128> = delays(&policy(RestartWhen::Always), 10)
            .iter()
            .map(Duration::as_millis)
            .collect();
        let expected = [
            500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000,
        ];
        assert_eq!(millis, expected);
    }

    #[test]
    fn a_factor_of_one_never_grows() {
        let policy = RestartPolicy {
            factor_permille: 1_000,
            ..policy(RestartWhen::Always)
        };
        assert!(
            delays(&policy, 100)
                .iter()
                .all(|delay| *delay == policy.delay)
        );
    }

    #[test]
    fn a_run_longer_than_reset_after_is_restarted_at_once_and_forgives() {
        let policy = policy(RestartWhen::Always);
        let mut streak = Streak::resumed(5);
        let long = Attempt::Ran(Exit::Code(1), policy.reset_after + SHORT);
        assert_eq!(
            streak.judge(&policy, long, Mono(0), 0),
            Verdict::After(Duration::ZERO)
        );
        let short = Attempt::Ran(Exit::Code(1), SHORT);
        assert_eq!(
            streak.judge(&policy, short, Mono(0), 0),
            Verdict::After(policy.delay)
        );
        let exact = Attempt::Ran(Exit::Code(1), policy.reset_after);
        assert_ne!(
            streak.judge(&policy, exact, Mono(0), 0),
            Verdict::After(Duration::ZERO)
        );
    }

    #[test]
    fn which_ends_ask_for_a_restart() {
        let wants = |when, attempt| {
            let policy = RestartPolicy {
                success: vec![0, 3],
                never_on: vec![78],
                ..policy(when)
            };
            Streak::default().judge(&policy, attempt, Mono(0), 0) != Verdict::Rest
        };
        let code = |code| Attempt::Ran(Exit::Code(code), SHORT);
        use RestartWhen::{Always, Never, OnFailure};
        for (attempt, on_failure, always) in [
            (code(0), false, true),
            (code(3), false, true),
            (code(1), true, true),
            (code(78), false, false),
            (Attempt::Ran(Exit::Signal(15), SHORT), true, true),
            (Attempt::Ran(Exit::Unknown, SHORT), true, true),
            (Attempt::NeverRan, true, true),
        ] {
            assert!(!wants(Never, attempt), "{attempt:?}");
            assert_eq!(wants(OnFailure, attempt), on_failure, "{attempt:?}");
            assert_eq!(wants(Always, attempt), always, "{attempt:?}");
        }
    }

    #[test]
    fn gives_up_after_too_many_within_the_span_and_not_before() {
        let limit = RestartLimit {
            count: 3,
            within: Duration::from_secs(10),
        };
        let policy = RestartPolicy {
            max: Some(limit),
            ..policy(RestartWhen::Always)
        };
        let mut streak = Streak::default();
        let crash = Attempt::Ran(Exit::Code(1), SHORT);
        for second in 0..3 {
            let now = Mono(second * 1_000_000);
            assert!(matches!(
                streak.judge(&policy, crash, now, 0),
                Verdict::After(_)
            ));
            streak.attempted(&policy, now);
        }
        let Verdict::GiveUp(why) = streak.judge(&policy, crash, Mono(3_000_000), 0) else {
            panic!("not given up");
        };
        assert_eq!(why, "given up after 3 restarts in 10s");
        // Ten seconds after the first of them there is room for one more.
        assert!(matches!(
            streak.judge(&policy, crash, Mono(10_500_000), 0),
            Verdict::After(_)
        ));
    }

    #[test]
    fn the_largest_limit_there_is_is_met() {
        let limit = RestartLimit {
            count: RestartLimit::COUNT_MAX,
            within: Duration::from_secs(3_600),
        };
        let policy = RestartPolicy {
            max: Some(limit),
            ..policy(RestartWhen::Always)
        };
        let mut streak = Streak::default();
        let crash = Attempt::Ran(Exit::Code(1), SHORT);
        for _ in 0..RestartLimit::COUNT_MAX {
            let verdict = streak.judge(&policy, crash, Mono(0), 0);
            assert!(matches!(verdict, Verdict::After(_)), "{verdict:?}");
            streak.attempted(&policy, Mono(0));
        }
        let verdict = streak.judge(&policy, crash, Mono(0), 0);
        assert!(matches!(verdict, Verdict::GiveUp(_)), "{verdict:?}");
    }

    #[test]
    fn attempts_that_come_to_no_run_grow_apart_even_where_the_delay_is_nothing() {
        let policy = RestartPolicy {
            delay: Duration::ZERO,
            ..policy(RestartWhen::Always)
        };
        let mut streak = Streak::default();
        let millis: Vec<u128> = (0..4)
            .map(
                |_| match streak.judge(&policy, Attempt::NeverRan, Mono(0), 0) {
                    Verdict::After(delay) => delay.as_millis(),
                    other => panic!("{other:?}"),
                },
            )
            .collect();
        assert_eq!(millis, [100, 200, 400, 800]);
    }

    #[test]
    fn jitter_stays_within_its_share_and_reaches_both_sides() {
        let delay = Duration::from_secs(1);
        let spreads: Vec<Duration> = (0..1_000_u64)
            .map(|n| spread(delay, 200, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        assert!(
            spreads
                .iter()
                .all(|d| (800..=1_200).contains(&d.as_millis()))
        );
        assert!(spreads.iter().any(|d| d.as_millis() < 900));
        assert!(spreads.iter().any(|d| d.as_millis() > 1_100));
        assert_eq!(spread(Duration::ZERO, 1_000, 7), Duration::ZERO);
    }
}
