//! Refusals, told: to the log and to the audit trail, as much of them as is of use.
//!
//! What is told by itself and what is only counted is decided in `failures`. What was counted is
//! told with the peer's next refusal that is told, and at the latest [`LEFT_OUT_TIME_MAX`] after
//! it began to be counted, or with the end of the server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::sleep,
};
use tracing::warn;

use super::super::{
    asked::{Credential, Refused},
    failures::{Failures, Patience},
    keys::KeyName,
    limits::LEFT_OUT_TIME_MAX,
    roster::PeerKey,
};
use crate::{clock, command::ErrorCode, telemetry};

/// A refusal, and for whom it counts.
#[derive(Debug)]
pub(in crate::control) struct Refusal<'a> {
    /// Whose connection it is, by its origin.
    pub(in crate::control) peer: &'a PeerKey,
    pub(in crate::control) refused: Refused,
}

/// Tells refusals. Shared by all connections; never locked while anything is waited for.
#[derive(Debug)]
pub(in crate::control) struct Refusals {
    state: Mutex<State>,
    audit: mpsc::Sender<Refused>,
}

#[derive(Debug)]
struct State {
    failures: Failures,
    /// Whether somebody sleeps who will tell what was left out.
    teller: Teller,
    /// How many did not get into the audit trail since one last did.
    unaudited: u64,
}

/// What is counted, on its way to the next program of an upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::control) struct HandedRefusals {
    failures: Failures,
    unaudited: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Teller {
    Absent,
    Asleep,
}

impl Refusals {
    pub(in crate::control) fn new(failures_max: u32, audit: mpsc::Sender<Refused>) -> Arc<Self> {
        let state = State {
            failures: Failures::new(failures_max),
            teller: Teller::Absent,
            unaudited: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            audit,
        })
    }

    /// Goes on counting where the program before has stopped. Must be called within a tokio
    /// runtime.
    pub(in crate::control) fn take_over(
        handed: HandedRefusals,
        audit: mpsc::Sender<Refused>,
    ) -> Arc<Self> {
        let state = State {
            failures: handed.failures,
            // There may be something to be told; that there is nothing costs one look.
            teller: Teller::Asleep,
            unaudited: handed.unaudited,
        };
        let refusals = Arc::new(Self {
            state: Mutex::new(state),
            audit,
        });
        tokio::spawn(tell_later(Arc::downgrade(&refusals)));
        refusals
    }

    /// What the next program counts on from.
    pub(in crate::control) fn hand_over(&self) -> HandedRefusals {
        let state = self.lock();
        HandedRefusals {
            failures: state.failures.clone(),
            unaudited: state.unaudited,
        }
    }

    /// Takes note of a refusal, and says how the peer is to be met. Who has shown his key counts
    /// under its name, and patience with him has no end. Must be called within a tokio runtime.
    pub(in crate::control) fn take(self: &Arc<Self>, refusal: Refusal<'_>) -> Patience {
        let Refusal { peer, mut refused } = refusal;
        let now = clock::mono();
        let mut state = self.lock();
        let (peer, patience) = match &refused.credential {
            Some(Credential::Key { name, .. }) => (PeerKey::Key(name.clone()), Patience::Left),
            Some(Credential::User(_) | Credential::Reach) | None => {
                (peer.clone(), state.failures.fail(peer, now))
            }
        };
        match patience {
            Patience::Left => {}
            Patience::Exhausted => refused.code = ErrorCode::Busy,
        }
        let told = state.failures.refuse(&peer, refused, now);
        if told.is_empty() && state.teller == Teller::Absent {
            state.teller = Teller::Asleep;
            tokio::spawn(tell_later(Arc::downgrade(self)));
        }
        for refused in told {
            self.tell(&mut state, refused);
        }
        patience
    }

    /// Tells what was only counted so far.
    pub(in crate::control) fn tell_left_out(&self) {
        let mut state = self.lock();
        state.teller = Teller::Absent;
        for refused in state.failures.left_out(clock::mono()) {
            self.tell(&mut state, refused);
        }
    }

    fn tell(&self, state: &mut State, refused: Refused) {
        let key = refused.claimed.as_ref().map(KeyName::as_str);
        let why = &*telemetry::on_one_line(&refused.why);
        warn!(
            peer = %refused.peer, key, code = %refused.code, why,
            more = (refused.more > 0).then_some(refused.more), "request refused"
        );
        let count = refused.more.saturating_add(1);
        match self.audit.try_send(refused) {
            Ok(()) => {
                let missing = std::mem::take(&mut state.unaudited);
                if missing > 0 {
                    warn!(
                        missing,
                        "refusals are missing in the audit trail, which was behind"
                    );
                }
            }
            Err(TrySendError::Full(_)) => {
                state.unaudited = state.unaudited.saturating_add(count);
            }
            // The server ends.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts are whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One task for all peers.
async fn tell_later(refusals: Weak<Refusals>) {
    sleep(LEFT_OUT_TIME_MAX).await;
    // With the server gone, there is nobody left to tell.
    if let Some(refusals) = refusals.upgrade() {
        refusals.tell_left_out();
    }
}
