//! A request on its way to whoever carries it out, and its one answer on the way back (I5).

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::command::{Answer, Command, ErrorCode, Failure};

/// A command whose sender may give it.
#[derive(Debug)]
pub struct Asked {
    /// What is to be done.
    pub command: Command,
    /// Who asked.
    pub peer: SocketAddr,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The one answer to one request. Dropped without one, it sends `internal`.
#[derive(Debug)]
pub struct Reply {
    id: u64,
    to: Option<mpsc::Sender<Answered>>,
}

/// An answer on its way to the connection that waits for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) id: u64,
    pub(super) answer: Result<Answer, Failure>,
}

impl Reply {
    pub(super) fn new(id: u64, to: mpsc::Sender<Answered>) -> Self {
        Self { id, to: Some(to) }
    }

    /// Answers; if the client is gone, nobody hears it. Never waits.
    pub fn send(mut self, answer: Result<Answer, Failure>) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Result<Answer, Failure>) {
        if let Some(to) = self.to.take() {
            // Never full: the channel holds an answer to each request in flight. Closed means
            // that the client is gone.
            let _ = to.try_send(Answered {
                id: self.id,
                answer,
            });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.to.is_some() {
            self.deliver(Err(Failure::new(
                ErrorCode::Internal,
                "the command was given up without an answer; `check` shows what became of it",
            )));
        }
    }
}
