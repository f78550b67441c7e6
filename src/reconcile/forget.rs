//! Children without a file: who is missed where, and how the table is kept within its bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    REMOVED_KEPT_MAX, State, Turn,
    child::{Belief, Child},
    effect::Effect,
    numbers::Used,
    planted::{Bug, planted},
    record::Record,
    suspects::Suspicion,
    timers::Timer,
};
use crate::spec::{ChildName, Mono};

/// Whose files are gone, by the loadpath they were in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Missing(BTreeMap<PathBuf, BTreeSet<ChildName>>);

impl Missing {
    pub(super) fn put(&mut self, home: &Path, name: &ChildName) {
        let names = self.0.entry(home.to_owned()).or_default();
        names.insert(name.clone());
    }

    pub(super) fn take_out(&mut self, home: &Path, name: &ChildName) {
        let Some(names) = self.0.get_mut(home) else {
            return;
        };
        names.remove(name);
        if names.is_empty() {
            self.0.remove(home);
        }
    }

    pub(super) fn of(&self, home: &Path) -> impl Iterator<Item = &ChildName> {
        self.0.get(home).into_iter().flatten()
    }
}

/// Children that are kept for their exits' sake alone, the oldest end first.
///
/// One in here may have become more than that meanwhile; it is looked at again before it goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Removed {
    ended: BTreeMap<ChildName, Mono>,
    order: BTreeSet<(Mono, ChildName)>,
}

impl Removed {
    fn put(&mut self, name: &ChildName, ended: Mono) {
        self.take_out(name);
        self.ended.insert(name.clone(), ended);
        self.order.insert((ended, name.clone()));
    }

    pub(super) fn take_out(&mut self, name: &ChildName) {
        if let Some(ended) = self.ended.remove(name) {
            self.order.remove(&(ended, name.clone()));
        }
    }

    fn take_oldest_above(&mut self, bound: usize) -> Option<ChildName> {
        if self.order.len() <= bound {
            return None;
        }
        let (_, name) = self.order.pop_first()?;
        self.ended.remove(&name);
        Some(name)
    }
}

impl State {
    /// Drops a child that nothing is known of and nothing waits for.
    pub(super) fn forget_if_idle(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get(name).filter(|it| is_idle(it)) else {
            return;
        };
        let ended = child.last.as_ref().map(|last| last.at.mono);
        // Whatever it is declared as next, it may live.
        let doubted = child.may_be_suspect().then_some(turn.now.mono);
        let Some(ended) = ended.or(doubted) else {
            self.drop_child(turn, name);
            return;
        };
        self.removed.put(name, ended);
        while let Some(oldest) = self.removed.take_oldest_above(REMOVED_KEPT_MAX) {
            if self.children.get(&oldest).is_some_and(is_idle) {
                self.drop_child(turn, &oldest);
            }
        }
    }

    fn drop_child(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.drop_child(name) else {
            return;
        };
        let used = Used {
            latest: child.highest(),
            reserved: child.reserved,
        };
        if !planted(Bug::NumbersForgotten) {
            self.numbers.keep(name.clone(), used);
        }
        if let Some(gone) = &child.gone {
            self.missing.take_out(&gone.home, name);
        }
        self.removed.take_out(name);
        self.timers.cancel(&Timer::Retry(name.clone()));
        if child.last.is_some() || child.suspicion != Suspicion::Open {
            let child = name.clone();
            turn.emit(Effect::Record {
                ticket: None,
                records: vec![Record::Forgotten { child }],
            });
        }
    }
}

/// Whether nothing but its past is left of a child.
fn is_idle(child: &Child) -> bool {
    let believed = child
        .gone
        .as_ref()
        .is_none_or(|gone| gone.belief == Belief::Confirmed);
    let awaited = child.job.is_some()
        || !child.queue.is_empty()
        || child.hook.is_some()
        || child.armed.is_some()
        || child.due.is_some()
        || child.retry.is_some();
    child.entry.is_none() && !child.is_live() && child.hold.is_none() && believed && !awaited
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChildName {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_end_is_forgotten_first_and_only_above_the_bound() {
        let mut removed = Removed::default();
        removed.put(&name("b"), Mono(2));
        removed.put(&name("a"), Mono(3));
        removed.put(&name("c"), Mono(9));
        removed.put(&name("c"), Mono(1));
        assert_eq!(removed.take_oldest_above(3), None);
        assert_eq!(removed.take_oldest_above(2), Some(name("c")));
        removed.take_out(&name("b"));
        assert_eq!(removed.take_oldest_above(0), Some(name("a")));
        assert_eq!(removed.take_oldest_above(0), None);
    }

    #[test]
    fn who_is_missed_is_known_by_place() {
        let mut missing = Missing::default();
        let (here, there) = (Path::new("/here"), Path::new("/there"));
        missing.put(here, &name("a"));
        missing.put(there, &name("b"));
        missing.take_out(here, &name("b"));
        assert_eq!(missing.of(here).count(), 1);
        missing.take_out(here, &name("a"));
        assert_eq!(missing.of(here).count(), 0);
        assert!(!missing.0.contains_key(here), "empty places are not kept");
    }
}
