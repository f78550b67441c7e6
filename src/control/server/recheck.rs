//! Looks at the ring of keys, one at a time, and what follows from them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{
    super::keys::{Changes, Ring},
    Shared,
};
use crate::telemetry;

/// Looks at the ring when asked to, off this thread and never two at a time.
#[derive(Debug)]
pub(super) struct Recheck {
    ring: Arc<Ring>,
    state: Arc<Mutex<State>>,
}

/// Whether somebody looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Looking,
    /// And was asked again since he began.
    LookingAndAsked,
}

impl Recheck {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self {
            ring,
            state: Arc::new(Mutex::new(State::Idle)),
        }
    }

    /// Whether nobody looks.
    pub(super) fn is_idle(&self) -> bool {
        *lock(&self.state) == State::Idle
    }

    pub(super) fn ask(&self, shared: &Arc<Shared>) {
        let mut state = lock(&self.state);
        *state = match *state {
            State::Idle => {
                let (ring, state) = (Arc::clone(&self.ring), Arc::clone(&self.state));
                // Who waits for the last request must not wait for a look.
                let shared = Arc::downgrade(shared);
                tokio::spawn(async move {
                    loop {
                        let ring = Arc::clone(&ring);
                        let changes = spawn_blocking(move || ring.refresh()).await;
                        let Some(shared) = shared.upgrade() else {
                            return;
                        };
                        match changes {
                            Ok(changes) => shared.take_changes(&changes),
                            Err(_) => error!("looking at the keys has panicked"),
                        }
                        let mut state = lock(&state);
                        match *state {
                            State::Idle | State::Looking => {
                                *state = State::Idle;
                                return;
                            }
                            State::LookingAndAsked => *state = State::Looking,
                        }
                    }
                });
                State::Looking
            }
            State::Looking | State::LookingAndAsked => State::LookingAndAsked,
        };
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn take_changes(&self, changes: &Changes) {
        // The first look of a program tells of every key there is.
        let gone = self.guests.find_keys(&changes.taken_up);
        if gone > 0 {
            info!(
                closed = gone,
                "connections of keys that went during an upgrade are closed"
            );
        }
        self.drop_keys(&changes.dropped);
        for key in &changes.dropped {
            let (name, fingerprint) = (key.name(), key.public().fingerprint());
            info!(key = %name, %fingerprint, path = %key.path().display(), "key dropped");
        }
        for key in &changes.taken_up {
            let (name, public) = (key.name(), key.public());
            info!(
                key = %name, bits = public.bits(), fingerprint = %public.fingerprint(),
                scoped = key.scope().limits().is_some(), path = %key.path().display(),
                "key taken up"
            );
        }
        for fault in &changes.new_faults {
            let detail = &*telemetry::on_one_line(fault);
            warn!(detail, "a key cannot be used");
        }
        for note in &changes.new_notes {
            info!(detail = note, "no keys there yet");
        }
        if changes.is_newly_empty && self.authority.encrypt() {
            warn!("there is no key, and `encrypt` is on: nobody can command this server");
        }
    }
}
