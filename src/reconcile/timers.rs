//! Deadlines as data: what is due when, and nothing that ticks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::event::RequestId;
use crate::spec::{ChildName, Mono};

/// What a deadline is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Timer {
    /// The next rung of a stop: KILL, or giving up.
    Ladder(ChildName),
    /// A restart by policy.
    Retry(ChildName),
    /// The end of the time in which a run has to become ready.
    Ready(ChildName),
    /// The next probe of a run.
    Probe(ChildName),
    /// A repeat.
    Repeat(ChildName),
    /// The quiet second of a loadpath.
    Quiet(PathBuf),
    /// Stands in for the rescan that confirms removals where rescans are off.
    Confirm,
    /// The end of the time for which an order waits for what its child depends on.
    Dependencies(ChildName),
    /// The end of a wait's time.
    Wait(RequestId),
}

/// All deadlines, each at most once per [`Timer`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Timers {
    at: BTreeMap<Timer, Mono>,
    order: BTreeSet<(Mono, Timer)>,
}

impl Timers {
    /// Arms a timer, in place of an earlier deadline of the same.
    pub(super) fn set(&mut self, timer: Timer, at: Mono) {
        self.cancel(&timer);
        self.order.insert((at, timer.clone()));
        self.at.insert(timer, at);
    }

    /// Disarms a timer; none armed is fine.
    pub(super) fn cancel(&mut self, timer: &Timer) {
        if let Some(at) = self.at.remove(timer) {
            self.order.remove(&(at, timer.clone()));
        }
    }

    /// What is armed.
    #[cfg(test)]
    pub(super) fn armed(&self) -> impl Iterator<Item = &Timer> {
        self.at.keys()
    }

    /// When it is due, if it is armed.
    pub(super) fn due(&self, timer: &Timer) -> Option<Mono> {
        self.at.get(timer).copied()
    }

    /// Whether it is armed.
    pub(super) fn is_armed(&self, timer: &Timer) -> bool {
        self.at.contains_key(timer)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Mono> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the earliest timer that is due.
    pub(super) fn take_due(&mut self, now: Mono) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.at.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_once() {
        let mut timers = Timers::default();
        let name = |text: &str| text.parse::<ChildName>().unwrap();
        timers.set(Timer::Retry(name("a")), Mono(5));
        timers.set(Timer::Retry(name("b")), Mono(3));
        timers.set(Timer::Retry(name("a")), Mono(2));
        timers.set(Timer::Confirm, Mono(1));
        timers.cancel(&Timer::Confirm);
        assert_eq!(timers.next(), Some(Mono(2)));
        assert_eq!(timers.take_due(Mono(1)), None);
        assert_eq!(timers.take_due(Mono(9)), Some(Timer::Retry(name("a"))));
        assert_eq!(timers.take_due(Mono(9)), Some(Timer::Retry(name("b"))));
        assert_eq!(timers.take_due(Mono(9)), None);
        assert_eq!(timers.next(), None);
    }
}
