//! Tokens, checked off the core's thread, a few at a time.
//!
//! A connection hands over the tokens that it has read, a [`Batch`], and reads nothing more until
//! it has been told of each what it is worth. No more than [`VERIFICATIONS_MAX`] batches are
//! checked at the same time, in the order in which they came; so a flood of bad tokens costs as
//! many threads, and who comes after it waits for no more than one batch of each connection, which
//! is a single token of those that have shown nothing yet ([`VERIFY_FIRST_MAX`]).
//!
//! [`VERIFY_FIRST_MAX`]: super::super::limits::VERIFY_FIRST_MAX
//!
//! Before a key is used server.yml is looked at: `pub_keys_path` may be another by now. What has
//! to be looked at again is the supervisor's to look at, and is waited for within
//! [`Limits::look_time_max`](super::super::limits::Limits).
//!
//! A batch whose connection is gone is not checked, or its outcome is forgotten. So is one that
//! takes too long, because a disk of keys does not answer: it is answered `busy`, and nothing of it
//! is carried out, whatever is found in the end.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use tracing::error;

use super::{
    super::{
        connection::shutting_down,
        keys::{Key, Ring},
        limits::{VERIFICATIONS_MAX, VERIFY_BATCH_MAX},
        token::{Expected, Unverified},
    },
    ConfigCheck, Denial,
};
use crate::{
    clock,
    command::{Command, ErrorCode, Failure},
};

/// Asks the supervisor to look at server.yml again; sent to when it has, and what it says is in
/// force.
pub type Look = oneshot::Sender<()>;

/// How much of a reason is kept, in characters.
const WHY_CHARS_MAX: usize = 1_000;

/// What checks tokens.
#[derive(Debug)]
pub(in crate::control) struct Tokens {
    pub(in crate::control) ring: Arc<Ring>,
    /// The server's id, whom tokens are for.
    pub(in crate::control) audience: String,
    pub(in crate::control) config: Arc<dyn ConfigCheck>,
    pub(in crate::control) looks: mpsc::Sender<Look>,
    pub(in crate::control) look_time_max: Duration,
    pub(in crate::control) verify_time_max: Duration,
    pub(in crate::control) turns: Arc<Semaphore>,
}

/// Signed requests of one connection, in the order in which they were read.
#[derive(Debug)]
pub(in crate::control) struct Batch {
    /// The connection's.
    pub(in crate::control) nonce: Arc<str>,
    /// Ids, and the token of each.
    pub(in crate::control) requests: Vec<(u64, String)>,
}

/// What a signed request is worth.
#[derive(Debug)]
pub(in crate::control) struct Verified {
    pub(in crate::control) id: u64,
    pub(in crate::control) result: Result<Genuine, Unproven>,
}

/// A command whose signature is right.
#[derive(Debug)]
pub(in crate::control) struct Genuine {
    pub(in crate::control) command: Command,
    pub(in crate::control) key: Arc<Key>,
}

/// Why a command is not taken for genuine.
#[derive(Debug)]
pub(in crate::control) enum Unproven {
    /// It is not.
    Denied(Box<Denial>),
    /// It could not be found out.
    Unknown(Failure),
}

/// A batch that is being checked. Dropped, it is not checked if that has not begun.
#[derive(Debug)]
pub(in crate::control) struct Verification {
    ids: Vec<u64>,
    task: JoinHandle<Vec<Verified>>,
}

impl Verification {
    /// The ids of the requests.
    pub(in crate::control) fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// What they are worth, in their order. May be given up and taken up again until it has said
    /// so.
    pub(in crate::control) async fn done(&mut self) -> Vec<Verified> {
        match (&mut self.task).await {
            Ok(verified) => verified,
            Err(_) => unknown(&self.ids, &unchecked()),
        }
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn unknown(ids: &[u64], failure: &Failure) -> Vec<Verified> {
    let unknown = |id: &u64| Verified {
        id: *id,
        result: Err(Unproven::Unknown(failure.clone())),
    };
    ids.iter().map(unknown).collect()
}

impl Tokens {
    pub(in crate::control) fn turns() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(VERIFICATIONS_MAX))
    }

    /// Begins to check a batch. Must be called within a tokio runtime.
    pub(in crate::control) fn verify(self: &Arc<Self>, batch: Batch) -> Verification {
        debug_assert!(batch.requests.len() <= VERIFY_BATCH_MAX);
        Verification {
            ids: batch.requests.iter().map(|(id, _)| *id).collect(),
            task: tokio::spawn(Arc::clone(self).check_in_time(batch)),
        }
    }

    async fn check_in_time(self: Arc<Self>, batch: Batch) -> Vec<Verified> {
        let ids: Vec<u64> = batch.requests.iter().map(|(id, _)| *id).collect();
        let time_max = self.verify_time_max;
        match timeout(time_max, self.check(batch)).await {
            Ok(verified) => verified,
            Err(_) => {
                // Which disk it is, `info` tells those who may know.
                let message = format!(
                    "the token could not be checked within {time_max:?}, and its command is not \
                     carried out, try again"
                );
                unknown(&ids, &Failure::new(ErrorCode::Busy, message))
            }
        }
    }

    /// The turn is kept until the thread is done, also if the connection is gone meanwhile.
    async fn check(self: Arc<Self>, batch: Batch) -> Vec<Verified> {
        let ids: Vec<u64> = batch.requests.iter().map(|(id, _)| *id).collect();
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.expect("nobody closes it");
        let tokens = Arc::clone(&self);
        let checked = on_thread(move || match tokens.config.is_current() {
            true => Ok(tokens.verify_all(batch, turn)),
            false => Err((batch, turn)),
        });
        let (batch, turn) = match checked.await {
            Ok(Ok(verified)) => return verified,
            Ok(Err(outdated)) => outdated,
            Err(failure) => return unknown(&ids, &failure),
        };
        if let Err(failure) = self.look().await {
            return unknown(&ids, &failure);
        }
        // Were it asked again whether server.yml is current, who edits it all the time would keep
        // everybody out.
        let checked = on_thread(move || self.verify_all(batch, turn)).await;
        checked.unwrap_or_else(|failure| unknown(&ids, &failure))
    }

    /// Has server.yml looked at again.
    async fn look(&self) -> Result<(), Failure> {
        let (look, looked) = oneshot::channel();
        let behind = |what| {
            let message = format!("server.yml was edited and {what}, try again");
            Failure::new(ErrorCode::Busy, message)
        };
        match self.looks.try_send(look) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(behind("too many wait for a look at it"));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(shutting_down()),
        }
        match timeout(self.look_time_max, looked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(shutting_down()),
            Err(_) => Err(behind("is not looked at yet")),
        }
    }

    /// Blocks. The turn is over then.
    fn verify_all(&self, batch: Batch, _turn: OwnedSemaphorePermit) -> Vec<Verified> {
        let Batch { nonce, requests } = batch;
        let verified = requests.into_iter().map(|(id, token)| {
            let result = self.verify_one(id, &token, &nonce);
            Verified {
                id,
                result: result.map_err(Unproven::Denied),
            }
        });
        verified.collect()
    }

    fn verify_one(&self, id: u64, token: &str, nonce: &str) -> Result<Genuine, Box<Denial>> {
        let denied = |claimed, why: String| {
            Denial::of_token(claimed, why.chars().take(WHY_CHARS_MAX).collect())
        };
        let unverified = Unverified::parse(token).map_err(|why| denied(None, why.to_string()))?;
        let name = unverified.key_name();
        let known = |why: String| denied(Some(name.clone()), why);
        let key = self.ring.find(name).map_err(|why| known(why.to_string()))?;
        let expected = Expected {
            audience: &self.audience,
            nonce,
            id,
            now: clock::wall().0.div_euclid(1_000),
        };
        let command = unverified.verify(key.public(), &expected);
        let command = command.map_err(|why| known(why.to_string()))?;
        Ok(Genuine { command, key })
    }
}

async fn on_thread<T: Send + 'static>(
    check: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    spawn_blocking(check).await.map_err(|_| {
        error!("checking tokens has panicked");
        unchecked()
    })
}

fn unchecked() -> Failure {
    Failure::new(ErrorCode::Internal, "the token could not be checked")
}
