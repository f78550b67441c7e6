//! Children that leave the table: what nothing is known of, and the oldest of what has no file.
//!
//! Their run numbers stay known (`numbers`), since none may be used twice.

use super::{
    REMOVED_KEPT_MAX, State, Turn,
    child::{Belief, Child},
    numbers::Used,
    planted::{Bug, planted},
    record::Record,
    timers::Timer,
};
use crate::spec::ChildName;

impl State {
    /// Drops a child that nothing is known of and nothing waits for.
    pub(super) fn forget_if_idle(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get(name) else {
            return;
        };
        let awaited = child.job.is_some() || !child.queue.is_empty() || child.armed.is_some();
        let believed = child
            .gone
            .as_ref()
            .is_none_or(|gone| gone.belief == Belief::Confirmed);
        if child.entry.is_some() || child.is_live() || child.hold.is_some() || awaited || !believed
        {
            return;
        }
        if child.last.is_none() {
            self.drop_child(turn, name);
        } else {
            self.forget_oldest(turn);
        }
    }

    /// Keeps the number of children without a file within its bound.
    fn forget_oldest(&mut self, turn: &mut Turn) {
        let removed = || {
            self.children.iter().filter(|(_, child)| {
                let idle = child.job.is_none() && child.armed.is_none() && child.retry.is_none();
                child.entry.is_none() && !child.is_live() && child.hold.is_none() && idle
            })
        };
        if removed().count() <= REMOVED_KEPT_MAX {
            return;
        }
        let ended = |child: &Child| child.last.as_ref().map(|last| last.at.mono);
        let oldest = removed()
            .min_by_key(|(_, child)| ended(child))
            .map(|(name, _)| name.clone());
        if let Some(name) = oldest {
            self.drop_child(turn, &name);
        }
    }

    fn drop_child(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.remove(name) else {
            return;
        };
        let used = Used {
            latest: child.latest,
            reserved: child.reserved,
        };
        if !planted(Bug::NumbersForgotten) {
            self.numbers.keep(name.clone(), used);
        }
        if child.last.is_some() {
            let child = name.clone();
            turn.record(Record::Forgotten { child });
        }
        self.timers.cancel(&Timer::Retry(name.clone()));
    }
}
