//! Commands of a connection that were handed over, and their answers.
//!
//! Of commands with large answers only a few are in flight, of each kind; the next is held back
//! until an answer was taken away.

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Life, shutting_down};
use crate::{
    command::{Command, ErrorCode, Failure, Follow},
    control::{
        asked::{Answered, Asked, Issuer, Reply, Said},
        authority::Authorised,
        keys::KeyName,
        protocol,
    },
};

/// A request that is not answered yet.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) id: u64,
    size: AnswerSize,
}

/// A command that waits until the answer to another of its kind was taken away.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) id: u64,
    pub(super) authorised: Authorised,
}

/// How large an answer can get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum AnswerSize {
    /// A few lines.
    Small,
    /// It grows with the number of children or of faults, and costs its sender nothing to ask for.
    Large(Kind),
}

/// Commands with large answers, as far as they wait for one another: what is answered at once
/// does not wait for what takes its time, nor a stop for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Look,
    StartAll,
    StopAll,
    Kill,
}

impl AnswerSize {
    fn of(command: &Command) -> Self {
        match command {
            Command::Check { .. }
            | Command::Info
            | Command::Events {
                follow: Follow::No, ..
            } => Self::Large(Kind::Look),
            Command::StartAll => Self::Large(Kind::StartAll),
            Command::StopAll => Self::Large(Kind::StopAll),
            Command::Kill(_) => Self::Large(Kind::Kill),
            Command::CheckOne(_)
            | Command::Why(_)
            | Command::Wait { .. }
            // What waits of it for the connection is bounded by itself.
            | Command::Events {
                follow: Follow::Yes, ..
            }
            | Command::Child { .. }
            | Command::Upgrade => Self::Small,
        }
    }
}

impl Life {
    /// Hands a command over, or holds it back while too many large answers of its kind are not
    /// taken away.
    pub(super) fn hand_over(&mut self, id: u64, authorised: Authorised) {
        let size = AnswerSize::of(&authorised.command);
        let alike = self.in_flight.iter().filter(|waiting| waiting.size == size);
        if size != AnswerSize::Small && alike.count() >= self.shared.limits.looks_in_flight_max {
            self.held = Some(Held { id, authorised });
            return;
        }
        if self.in_flight.len() >= self.shared.limits.in_flight_max {
            let message = format!(
                "more than {} requests of this connection are not answered yet",
                self.in_flight.len()
            );
            let failure = Failure::new(ErrorCode::Busy, message);
            return protocol::write_failure(&mut self.outbox, Some(id), &failure);
        }
        match self.shared.requests.try_reserve() {
            Ok(slot) => {
                self.in_flight.push(Waiting { id, size });
                let Authorised {
                    command,
                    credential,
                } = authorised;
                debug!(
                    peer = %self.peer.address, key = credential.key_name().map(KeyName::as_str), id,
                    op = command.op().as_str(), "request taken"
                );
                slot.send(Asked {
                    command,
                    issuer: Issuer {
                        peer: self.peer.address,
                        credential,
                    },
                    reply: Reply::new(self.arrival, id, self.answers_in.clone()),
                });
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                let failure = Failure::new(ErrorCode::Busy, "too many commands wait, try again");
                protocol::write_failure(&mut self.outbox, Some(id), &failure);
            }
            Err(mpsc::error::TrySendError::Closed(())) => {
                protocol::write_failure(&mut self.outbox, Some(id), &shutting_down());
            }
        }
    }

    pub(super) fn take_answers(&mut self) {
        for Answered { id, said } in self.batch.drain(..) {
            let Some(index) = self.in_flight.iter().position(|waiting| waiting.id == id) else {
                continue;
            };
            match said {
                Said::Event(line) => self.outbox.extend_from_slice(&line.bytes),
                Said::Final(answer) => {
                    self.in_flight.swap_remove(index);
                    protocol::write_answer(&mut self.outbox, id, &answer);
                }
            }
        }
        self.rest(self.shared.limits.idle_time_max);
    }
}
