//! What the watch thread waits for: hints from the kernel's queue, orders from the shell, the clock.
//!
//! Hints are gathered in place (`settle`), so a flood of them cannot grow. Orders are as many as
//! the shell has commands under way, which the core bounds; giving one never blocks.

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{
    WatchConfig,
    settle::{Hints, Layout, News},
};
use crate::{
    clock,
    spec::{ChildName, Mono},
};

/// What the shell wants done.
pub(super) enum Order {
    /// Read these names now and answer.
    Reread {
        token: u64,
        names: BTreeSet<ChildName>,
    },
    /// Read everything and answer; it confirms what was seen before.
    Rescan { token: u64 },
    /// Watch something else from now on.
    Configure(Box<WatchConfig>),
}

/// What came in since the last time.
#[derive(Default)]
pub(super) struct Mail {
    pub(super) hints: Hints,
    pub(super) orders: VecDeque<Order>,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    layout: Layout,
    mail: Mail,
    closed: bool,
}

impl Inbox {
    /// Takes a hint; runs on the thread that reads the kernel's queue.
    pub(super) fn hint(&self, path: &Path, news: News) {
        let mut state = self.lock();
        let State { layout, mail, .. } = &mut *state;
        mail.hints.add(layout, path, news);
        if !mail.hints.is_empty() {
            self.arrived.notify_one();
        }
    }

    /// Hints were lost.
    pub(super) fn lose(&self) {
        self.lock().mail.hints.lose();
        self.arrived.notify_one();
    }

    /// Says what names mean from now on. What was gathered under other meanings is kept: it may
    /// tell that a file was closed, and a look too many does no harm.
    pub(super) fn lay_out(&self, layout: &Layout) {
        let mut state = self.lock();
        if state.layout != *layout {
            state.layout = layout.clone();
        }
    }

    /// Takes an order.
    pub(super) fn order(&self, order: Order) {
        let mut state = self.lock();
        let orders = &mut state.mail.orders;
        match (&order, orders.back_mut()) {
            // A rescan that has not begun yet serves both who asked.
            (Order::Rescan { .. }, Some(last @ Order::Rescan { .. })) => *last = order,
            (Order::Rescan { .. } | Order::Reread { .. } | Order::Configure(_), _) => {
                orders.push_back(order);
            }
        }
        self.arrived.notify_one();
    }

    /// Nothing more is wanted.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Something is wanted after all.
    pub(super) fn reopen(&self) {
        self.lock().closed = false;
        self.arrived.notify_one();
    }

    /// Waits until something came in or it is that late; `None` when nothing more is wanted.
    pub(super) fn wait(&self, until: Option<Mono>) -> Option<Mail> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if !state.mail.hints.is_empty() || !state.mail.orders.is_empty() {
                return Some(std::mem::take(&mut state.mail));
            }
            state = match until {
                None => self
                    .arrived
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let now = clock::mono();
                    if now >= until {
                        return Some(Mail::default());
                    }
                    let waited = self.arrived.wait_timeout(state, until - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Nothing in here can be left half done, so a panic elsewhere spoils nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;

    #[test]
    fn what_came_before_the_wait_is_there_at_once_and_only_once() {
        let inbox = Inbox::default();
        inbox.order(Order::Rescan { token: 1 });
        inbox.lose();
        let mail = inbox.wait(None).unwrap();
        assert!(mail.hints.lost);
        assert_eq!(mail.orders.len(), 1);
        let mail = inbox.wait(Some(clock::mono())).unwrap();
        assert!(mail.hints.is_empty() && mail.orders.is_empty());
    }

    #[test]
    fn two_rescans_that_have_not_begun_are_one() {
        let inbox = Inbox::default();
        inbox.order(Order::Rescan { token: 1 });
        inbox.order(Order::Rescan { token: 2 });
        let orders = inbox.wait(None).unwrap().orders;
        assert_eq!(orders.len(), 1);
        assert!(matches!(orders[0], Order::Rescan { token: 2 }));
    }

    #[test]
    fn orders_stay_in_order() {
        let inbox = Inbox::default();
        for token in 0..100 {
            let names = BTreeSet::new();
            inbox.order(Order::Reread { token, names });
        }
        let tokens: Vec<u64> = inbox
            .wait(None)
            .unwrap()
            .orders
            .into_iter()
            .filter_map(|order| match order {
                Order::Reread { token, .. } => Some(token),
                Order::Rescan { .. } | Order::Configure(_) => None,
            })
            .collect();
        assert_eq!(tokens, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn who_waits_is_woken_by_the_end() {
        let inbox = Arc::new(Inbox::default());
        let waits = Arc::clone(&inbox);
        let thread = thread::spawn(move || waits.wait(None).is_none());
        inbox.close();
        assert!(thread.join().unwrap());
    }

    #[test]
    fn what_came_before_an_end_that_was_taken_back_is_there() {
        let inbox = Inbox::default();
        inbox.order(Order::Rescan { token: 1 });
        inbox.close();
        inbox.lose();
        assert!(inbox.wait(None).is_none());
        inbox.reopen();
        let mail = inbox.wait(None).unwrap();
        assert!(mail.hints.lost);
        assert_eq!(mail.orders.len(), 1);
    }

    #[test]
    fn a_hint_about_nothing_of_ours_wakes_nobody() {
        let inbox = Inbox::default();
        inbox.hint(Path::new("/somewhere/else"), News::Closed);
        let soon = clock::mono() + Duration::from_millis(1);
        let mail = inbox.wait(Some(soon)).unwrap();
        assert!(mail.hints.is_empty());
        assert!(clock::mono() >= soon);
    }
}
