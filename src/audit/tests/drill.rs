//! A disk that fails at any change of it, for the thread of one test.

use std::{cell::Cell, io};

thread_local! {
    /// How many changes it still takes; `None`: any number.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    /// How many changes were tried.
    static TRIED: Cell<u64> = const { Cell::new(0) };
}

/// What a change of the disk comes to.
pub(in crate::audit) fn operation() -> io::Result<()> {
    TRIED.set(TRIED.get() + 1);
    match LEFT.get() {
        None => Ok(()),
        Some(0) => Err(io::ErrorKind::StorageFull.into()),
        Some(left) => {
            LEFT.set(Some(left - 1));
            Ok(())
        }
    }
}

/// From now on it takes so many changes and no more.
pub(super) fn full_after(changes: u64) {
    LEFT.set(Some(changes));
}

/// It takes all again.
pub(super) fn well() {
    LEFT.set(None);
}

/// How many changes were tried so far.
pub(super) fn tried() -> u64 {
    TRIED.get()
}
