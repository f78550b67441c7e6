//! Signed requests of a connection: gathered, checked together, handed over in their order.
//!
//! While there are any, nothing else is taken up, so they are no more than what fits into the read
//! buffer. A connection that is given up takes its tokens with it: none is carried out, and none
//! is checked whose turn has not come.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::Arc,
};

use super::{Life, Stage};
use crate::{
    command::{ErrorCode, Failure},
    control::{
        authority::{self, Batch, Denial, Genuine, Unproven, Verification, Verified},
        guests::SignIn,
        limits::{KEYS_PER_CONNECTION_MAX, VERIFY_BATCH_MAX, VERIFY_FIRST_MAX},
        protocol,
    },
};

/// Signed requests that are read and not handed over.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// Their tokens, in the order in which they were read.
    gathered: Vec<(u64, String)>,
    /// Those that are being checked; none is gathered meanwhile.
    checking: Option<Verification>,
    /// What was checked and waits for its turn.
    checked: VecDeque<Verified>,
    /// The tokens of all of them: another program that goes on with the connection checks anew.
    tokens: BTreeMap<u64, String>,
}

impl Signed {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.checking.is_none() && self.checked.is_empty()
    }

    /// Whether another one may be gathered, up to so many, or anything else be taken up if there
    /// is none.
    pub(super) fn takes_more(&self, max: usize) -> bool {
        self.gathered.len() < max && self.checking.is_none() && self.checked.is_empty()
    }

    pub(super) fn gather(&mut self, id: u64, token: String) {
        self.tokens.insert(id, token.clone());
        self.gathered.push((id, token));
    }

    /// Those that another program did not get to.
    pub(super) fn taken_over(tokens: BTreeMap<u64, String>) -> Self {
        Self {
            gathered: tokens.clone().into_iter().collect(),
            tokens,
            ..Self::default()
        }
    }

    /// What is not handed over, in the order in which it was read: ids increase.
    pub(super) fn into_tokens(self) -> BTreeMap<u64, String> {
        self.tokens
    }

    /// Those that were being checked, once they are. May be given up and taken up again.
    pub(super) async fn checked(&mut self) -> Vec<Verified> {
        let Some(checking) = &mut self.checking else {
            return pending().await;
        };
        let verified = checking.done().await;
        // Nothing is waited for from here on.
        self.checking = None;
        verified
    }

    /// Forgets all of them, and gives their ids.
    pub(super) fn give_up(&mut self) -> Vec<u64> {
        let Self {
            gathered,
            checking,
            checked,
            tokens: _,
        } = std::mem::take(self);
        let gathered = gathered.into_iter().map(|(id, _)| id);
        let checking = checking.iter().flat_map(Verification::ids).copied();
        let checked = checked.iter().map(|verified| verified.id);
        checked.chain(checking).chain(gathered).collect()
    }
}

impl Life {
    /// How many signed requests are checked together.
    pub(super) fn batch_max(&self) -> usize {
        match self.standing.is_silent() {
            true => VERIFY_FIRST_MAX,
            false => VERIFY_BATCH_MAX,
        }
    }

    /// Begins to check what was gathered.
    pub(super) fn check_signed(&mut self) {
        if self.signed.gathered.is_empty() {
            return;
        }
        let batch = Batch {
            nonce: Arc::clone(&self.nonce),
            requests: std::mem::take(&mut self.signed.gathered),
        };
        self.standing.work();
        self.signed.checking = Some(self.shared.tokens.verify(batch));
    }

    /// Takes what was checked. Keys are noted all at once: what is dropped while its command waits
    /// for its turn ends the connection.
    pub(super) fn take_verified(&mut self, verified: Vec<Verified>) {
        for Verified { id, result } in verified {
            let result = result.and_then(|genuine| {
                let noted = self.standing.uses(&genuine.key);
                noted.map(|()| genuine).map_err(|_| {
                    let message =
                        format!("more than {KEYS_PER_CONNECTION_MAX} keys sign on this connection");
                    Unproven::Unknown(Failure::new(ErrorCode::Busy, message))
                })
            });
            self.signed.checked.push_back(Verified { id, result });
        }
        self.hand_over_signed();
    }

    /// Hands over what was checked, as far as nothing is held back.
    pub(super) fn hand_over_signed(&mut self) {
        while self.held.is_none()
            && let Some(Verified { id, result }) = self.signed.checked.pop_front()
        {
            self.signed.tokens.remove(&id);
            match result {
                Ok(genuine) => self.take_genuine(id, genuine),
                Err(Unproven::Denied(denial)) => self.deny(id, *denial),
                Err(Unproven::Unknown(failure)) => {
                    protocol::write_failure(&mut self.outbox, Some(id), &failure);
                }
            }
        }
    }

    fn take_genuine(&mut self, id: u64, Genuine { command, key }: Genuine) {
        if self.shared.guests.is_dropped(&key) {
            let why = "the key was dropped while the token was checked";
            let denial = Denial::of_token(Some(key.name().clone()), why.to_owned());
            return self.deny(id, *denial);
        }
        let authorised = match authority::signed(&key, command, self.peer.address.ip()) {
            Ok(authorised) => authorised,
            Err(denial) => return self.deny(id, *denial),
        };
        match self.shared.guests.sign_in(self.arrival, key.name()) {
            SignIn::Welcome => self.take_command(id, authorised),
            SignIn::TooMany => {
                let message = format!(
                    "too many connections under key `{}`, try again later",
                    key.name()
                );
                let failure = Failure::new(ErrorCode::Busy, message);
                protocol::write_failure(&mut self.outbox, Some(id), &failure);
                self.stage = Stage::Refused;
            }
        }
    }
}
