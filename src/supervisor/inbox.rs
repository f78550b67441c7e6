//! Facts that the core has not been told yet, each with the time at which it became known.
//!
//! Times never go backward: a fact is stamped when it is put in, and taken out in that order. Its
//! bound is that of one turn of the loop, which empties it before it waits for more.

use std::collections::VecDeque;

use crate::{clock, reconcile::event::Event, spec::Time};

/// The queue between what happens and the core.
#[derive(Debug)]
pub(super) struct Inbox(VecDeque<(Time, Event)>);

impl Inbox {
    /// Puts in what has become known just now.
    pub(super) fn push_back(&mut self, event: Event) {
        self.push_back_at(clock::now(), event);
    }

    /// Puts in what became known, or was written down, at this time just past.
    pub(super) fn push_back_at(&mut self, at: Time, event: Event) {
        self.0.push_back((at, event));
    }

    /// Takes out what became known first.
    pub(super) fn pop_front(&mut self) -> Option<(Time, Event)> {
        self.0.pop_front()
    }
}

impl From<Event> for Inbox {
    fn from(first: Event) -> Self {
        Self(VecDeque::from([(clock::now(), first)]))
    }
}
