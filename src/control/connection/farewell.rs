//! How a connection ends: because somebody else needs its slot, with the server or its key, or by
//! itself.
//!
//! Who is asked to make room looks once more at what has arrived, in the socket too: a command
//! that is there is carried out, and the connection stays. Otherwise it says `busy`, hangs up, and
//! reads nothing more, so that what a client sends just then is never carried out and never
//! answered: being told `busy` means that nothing was done. Half a line is no command.
//!
//! A connection is ended with its key too, at once and whatever it is at: what it was answered and
//! has not read yet may be lost, but nothing that it asked for is.
//!
//! A socket that is closed with something unread in it is reset, and a reset may overtake what was
//! written; so nothing is left unread. Answers that the peer has not read yet reach it all the
//! same: the system sends them before the end.
//!
//! Sources: tcp(7), RFC 1122 section 4.2.2.13.

use std::io;

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};

use super::{Life, READ_BYTES_MIN, Stage};
use crate::{
    command::{ErrorCode, Failure},
    control::protocol,
};

/// How much of what a refused peer still sends is thrown away before it is reset.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Somebody else needs the slot of a connection. It answers only if it stays; otherwise this is
/// dropped when its socket is closed.
#[derive(Debug)]
pub(in crate::control) struct MakeRoom(pub(in crate::control) oneshot::Sender<Stays>);

/// Why a connection is ended whatever it is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum End {
    /// The server ends.
    Closing,
    /// A key that has signed on it is one no more.
    KeyDropped,
    /// It stops where it is: another program may go on with it.
    Parking,
}

/// The answer of a connection that has work to do and does not make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct Stays;

impl Life {
    /// Whether a command is under way here, or an answer not handed to the system yet; what has
    /// arrived by now counts. Who was never let command has none.
    pub(super) fn has_work(&mut self) -> bool {
        while self.stage == Stage::Reading && self.is_idle() {
            match self.receive() {
                Received::Bytes => self.take_lines(),
                Received::End => self.stage = Stage::Ended,
                Received::Nothing => break,
            }
        }
        !self.standing.is_silent() && !self.is_idle()
    }

    /// Nothing to hand over, to wait for or to write.
    fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
            && self.held.is_none()
            && self.signed.is_empty()
            && self.outbox.is_empty()
    }

    /// Takes what stands in the socket, without waiting. Past the runtime, which may not have
    /// heard of it yet and then says that there is nothing.
    fn receive(&mut self) -> Received {
        self.inbox.reserve(READ_BYTES_MIN);
        let buffer = spare_capacity(&mut self.inbox);
        match recv(&self.stream, buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Received::End,
            Ok(_) => Received::Bytes,
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    /// Says why and hangs up. It must be gone at once: what its socket does not take now is not
    /// written.
    pub(super) fn hang_up(&mut self, why: &Failure) {
        protocol::write_failure(&mut self.outbox, None, why);
        let rest = &self.outbox[self.sent..];
        // An error means that it has gone by itself, or that it does not read.
        let _ = send(
            &self.stream,
            rest,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
        let _ = shutdown(&self.stream, Shutdown::Write);
        let mut thrown = 0;
        while thrown < LINGER_BYTES_MAX {
            self.inbox.clear();
            match self.receive() {
                Received::Bytes => thrown += self.inbox.len(),
                Received::End | Received::Nothing => break,
            }
        }
    }

    /// Ends it with the server: what was answered is written, what was not is refused.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        while let Ok(answered) = self.answers.try_recv() {
            self.batch.push(answered);
        }
        self.take_answers();
        let unanswered = std::mem::take(&mut self.in_flight);
        let unanswered = unanswered.into_iter().map(|waiting| waiting.id);
        let held = self.held.take().map(|held| held.id);
        for id in unanswered.chain(held).chain(self.signed.give_up()) {
            protocol::write_failure(&mut self.outbox, Some(id), &shutting_down());
        }
        self.flush().await?;
        self.stream.shutdown().await
    }

    /// Ends the connection so that what was written arrives: what a refused peer still sends is
    /// thrown away unseen for a moment.
    pub(super) async fn part(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        if self.stage != Stage::Refused {
            return Ok(());
        }
        let (stream, inbox) = (&mut self.stream, &mut self.inbox);
        let throw_away = async {
            let mut thrown = 0;
            while thrown < LINGER_BYTES_MAX {
                inbox.clear();
                inbox.reserve(READ_BYTES_MIN);
                match stream.read_buf(inbox).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => thrown += count,
                }
            }
        };
        // The time being over is as good an end as any.
        let _ = timeout(self.shared.limits.linger_time_max, throw_away).await;
        Ok(())
    }
}

/// What a look at the socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// Something, into the inbox.
    Bytes,
    /// There will be nothing more.
    End,
    /// Nothing is there.
    Nothing,
}

pub(in crate::control) fn shutting_down() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the server is shutting down")
}

/// What a connection is told whose key is one no more.
pub(super) fn key_dropped() -> Failure {
    let message = "a key that has signed on this connection is not known any more";
    Failure::new(ErrorCode::Unauthorized, message)
}

/// What a connection is told that is not let in or has to go.
pub(in crate::control) fn too_many() -> Failure {
    Failure::new(ErrorCode::Busy, "too many connections, try again later")
}
