//! The public keys while the server runs.

use super::Supervisor;

impl Supervisor {
    /// Called when the watch tells that something in the directories of keys may have changed.
    pub(super) fn look_at_keys(&mut self) {
        // Nothing is kept of keys that could have become old.
    }
}
