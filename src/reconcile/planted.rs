//! Bugs that tests plant to see whether the simulator bites.
//!
//! Each switch stands where the real decision is. Outside tests the question is a constant, so
//! that nothing of it is left in a release.

/// A mistake somebody might make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    RunIdUnchecked,
}

#[cfg(not(test))]
pub(super) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
pub(super) use tests::{plant, planted};

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or digs it out.
    pub(in crate::reconcile) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(in crate::reconcile) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}
