//! Waiting for ends: every pidfd on one epoll instance, and orphans by the way.
//!
//! - A process is asked for once (`EPOLLONESHOT`): its zombie, which is kept, wakes nobody again.
//! - A pidfd can be readable while the status is not ours to have yet, because a tracer takes it
//!   first; such a process is looked at again at the next `SIGCHLD`.
//! - A process of another's is readable when it has ended. If its zombie tells us nothing, the
//!   pidfd will once it was reaped: then it is hung up, which is waited for, but not for ever.
//! - [`Processes::wait`] may be dropped at any await: what it took from the kernel is in the
//!   table by then, or in the facts that it returns without awaiting again.
//!
//! Sources: epoll(7), pidfd_open(2), waitid(2), ptrace(2).

#![allow(unsafe_code)]

use std::{
    future::pending,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    process::{WaitId, WaitIdOptions, WaitIdStatus, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Fact, Owner, Parent, Phase, Processes, StraysDue, identity,
    info::{self, ExitSource},
    strays::{self, HIDDEN_MAX, Outcome, Strays},
};
use crate::{
    clock,
    spec::{ChildName, Circumstances, Exit, RunId},
};

/// How many ends are told at once.
const EXITS_PER_TURN_MAX: usize = 256;

/// How long it is waited for that another reaps its child, whose zombie tells us nothing. Then
/// its exit counts as unknown.
pub(super) const REAPED_WAIT: Duration = Duration::from_secs(1);

/// Stands for a process in the kernel's answers; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(pub(super) u64);

/// All pidfds, behind one descriptor that the runtime knows of.
#[derive(Debug)]
pub(super) struct Exits {
    epoll: AsyncFd<OwnedFd>,
}

impl Exits {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: the descriptor belongs to the `AsyncFd` from here on, which never gives it
        // away and takes it off the runtime before it closes it.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE)? };
        Ok(Self { epoll })
    }

    /// Closing the pidfd ends it.
    pub(super) fn watch(&self, pidfd: &OwnedFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.0);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, pidfd, data, flags)?;
        Ok(())
    }

    /// Told whenever there is something new to read. Closing it ends it.
    pub(super) fn watch_always(&self, fd: &OwnedFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.0);
        epoll::add(
            &self.epoll,
            fd,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(())
    }

    /// Once more, when it is reaped: that is told whatever is asked for.
    fn watch_for_reaping(&self, pidfd: &OwnedFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.0);
        epoll::modify(&self.epoll, pidfd, data, epoll::EventFlags::ONESHOT)?;
        Ok(())
    }

    /// Whose process has ended, without waiting.
    fn take(&self) -> Vec<Token> {
        let mut events = Vec::with_capacity(EXITS_PER_TURN_MAX);
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let taken = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&at_once),
        );
        match taken {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "ends cannot be waited for"),
        }
        events.iter().map(|event| Token(event.data.u64())).collect()
    }

    /// Until something has ended that was not taken yet.
    async fn ready(&self) {
        match self.epoll.readable().await {
            // Cleared before what is there is taken: what comes later sets it again.
            Ok(mut ready) => ready.clear_ready(),
            // The runtime is going away.
            Err(_) => pending().await,
        }
    }
}

/// Whether the status of a child of ours tells of a core; that of another's is not asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CoreDump {
    Seen,
    Unseen,
}

/// How far a process has come.
enum Peek {
    Ended(Exit, CoreDump),
    NotYet,
    /// It has ended; how can be told only when it is reaped.
    Unreaped,
}

impl Processes {
    /// Waits until something has ended, and tells it: each end once, at least one of them.
    ///
    /// Orphans that became our children are reaped here without a word. May be dropped at any
    /// time without losing anything.
    pub async fn wait(&mut self) -> Vec<Fact> {
        loop {
            let facts = self.collect();
            if !facts.is_empty() {
                return facts;
            }
            if self.strays_due == Some(StraysDue::Now) || self.signs.has_news() {
                // A flood of orphans, or of output: others get their turn in between.
                tokio::task::yield_now().await;
                continue;
            }
            let due = sleep(self.until_due());
            tokio::select! {
                () = self.exits.ready() => {}
                changed = self.children_changed.recv() => {
                    if changed.is_some() && self.strays_due.is_none() {
                        self.strays_due = Some(StraysDue::Now);
                    }
                }
                () = due => {}
            }
        }
    }

    /// Everything that can be told now.
    fn collect(&mut self) -> Vec<Fact> {
        // Whoever asks has handled what was told before.
        self.ears.release_barriers();
        self.signs.release();
        let mut tokens = self.exits.take();
        let now = clock::mono();
        let due = self.unreaped.iter().filter(|(_, until)| **until <= now);
        tokens.extend(due.map(|(token, _)| *token));
        tokens.extend(std::mem::take(&mut self.unsettled));
        tokens.extend(self.ears.due());
        // What a run said before it ended is told before its end.
        tokens.sort_by_key(|token| !self.ears.hears(*token));
        let mut facts: Vec<Fact> = tokens
            .into_iter()
            .filter_map(|token| self.look_at(token))
            .collect();
        if self.strays_due.is_some() {
            self.reap_strays();
        }
        facts.append(&mut self.expire_hooks());
        facts.append(&mut self.expire_probes());
        facts.append(&mut self.signs.look());
        if facts.is_empty() {
            self.ears.release_barriers();
        }
        facts
    }

    /// How long until something is to be done although nothing has happened; `None` is never.
    fn until_due(&self) -> Option<Duration> {
        let strays = match self.strays_due {
            Some(StraysDue::Hidden(deadline)) => Some(deadline - clock::mono()),
            Some(StraysDue::Now) | None => None,
        };
        let unreaped = self.unreaped.values().min();
        let unreaped = unreaped.map(|until| *until - clock::mono());
        let due = [self.until_hook(), self.until_probe(), strays, unreaped];
        due.into_iter()
            .chain([self.ears.until_due()])
            .flatten()
            .min()
    }

    fn look_at(&mut self, token: Token) -> Option<Fact> {
        if let Some(told) = self.ears.listen(token) {
            return told;
        }
        if self.signs.listen(token) {
            return None;
        }
        // If it is no suspect, it is not there any more: reaped since.
        let Some(owner) = self.owners.get(&token).cloned() else {
            return self.suspect_gone(token);
        };
        let (exit, core) = match self.peek(&owner)? {
            Peek::Ended(exit, core) => (exit, core),
            Peek::NotYet => {
                self.unsettled.insert(token);
                return None;
            }
            Peek::Unreaped => (self.await_reaping(&owner, token)?, CoreDump::Unseen),
        };
        self.unreaped.remove(&token);
        self.processes.get_mut(&owner)?.phase = Phase::Ended;
        match owner {
            Owner::Run(child, run) => {
                let out_of_memory = self.is_for_memory(&child, run, exit);
                Some(Fact::Exited {
                    child,
                    run,
                    exit,
                    circumstances: Circumstances {
                        core_dumped: core == CoreDump::Seen,
                        out_of_memory,
                    },
                })
            }
            Owner::Hook(ref child, hook) => {
                let process = self.take_ended(&owner)?;
                self.finish_hook(&(child.clone(), hook), process, exit)
            }
            Owner::Probe(job) => {
                let process = self.take_ended(&owner)?;
                self.finish_probe(job, process, exit)
            }
        }
    }

    /// Whether the kernel has killed a run for want of memory, as far as that is counted.
    fn is_for_memory(&mut self, child: &ChildName, run: RunId, exit: Exit) -> bool {
        let rose = self.memory_kills.rose();
        match self.cgroups.memory_kills(child, run) {
            Some(count) => count > 0,
            None => rose && exit == Exit::Signal(libc::SIGKILL),
        }
    }

    fn peek(&self, owner: &Owner) -> Option<Peek> {
        let process = self.processes.get(owner)?;
        match process.phase {
            Phase::Live => {}
            Phase::Ended => return None,
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(process.pidfd.as_fd()), options);
        Some(match (status, process.parent) {
            (Ok(Some(status)), _) => {
                let core = match status.dumped() {
                    true => CoreDump::Seen,
                    false => CoreDump::Unseen,
                };
                Peek::Ended(exit(&status), core)
            }
            (Ok(None), _) | (Err(Errno::INTR), _) => Peek::NotYet,
            (Err(_), Parent::Other) => {
                match self.exit_of_other(&process.pidfd, process.pid, process.start_ticks) {
                    Some(exit) => Peek::Ended(exit, CoreDump::Unseen),
                    None => Peek::Unreaped,
                }
            }
            (Err(error), Parent::Us) => {
                tracing::error!(pid = process.pid, %error, "a status is lost");
                Peek::Ended(Exit::Unknown, CoreDump::Unseen)
            }
        })
    }

    /// How a process of another's ended; `None` when that can be told once it is reaped.
    pub(super) fn exit_of_other(
        &self,
        pidfd: &OwnedFd,
        pid: i32,
        start_ticks: u64,
    ) -> Option<Exit> {
        match self.exit_source {
            ExitSource::PidfdInfo => info::exit(pidfd)
                .or_else(|| known(identity::exit_of_zombie(pid, start_ticks)))
                // It was reaped just then.
                .or_else(|| info::exit(pidfd)),
            ExitSource::ZombieStatus => Some(identity::exit_of_zombie(pid, start_ticks)),
        }
    }

    /// Sees to it that a process is looked at again when it is reaped. `Some` when that has been
    /// waited for long enough, or cannot be.
    fn await_reaping(&mut self, owner: &Owner, token: Token) -> Option<Exit> {
        let now = clock::mono();
        match self.unreaped.get(&token) {
            Some(until) if *until <= now => return Some(Exit::Unknown),
            Some(_) => {}
            None => {
                self.unreaped.insert(token, now + REAPED_WAIT);
            }
        }
        let process = self.processes.get(owner)?;
        match self.exits.watch_for_reaping(&process.pidfd, token) {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(pid = process.pid, %error, "its reaping cannot be waited for");
                Some(Exit::Unknown)
            }
        }
    }

    /// Reaps orphans, as far as that is due.
    pub(super) fn reap_strays(&mut self) {
        match self.strays {
            Strays::Reap => {}
            #[cfg(test)]
            Strays::LeaveAlone => {
                self.strays_due = None;
                return;
            }
        }
        let now = clock::mono();
        let outcome = match self.strays_due {
            Some(StraysDue::Hidden(deadline)) if now < deadline => return,
            Some(StraysDue::Hidden(_)) => strays::reap_all(),
            Some(StraysDue::Now) | None => strays::reap_first(),
        };
        self.strays_due = match outcome {
            Outcome::Clear => None,
            Outcome::More => Some(StraysDue::Now),
            Outcome::Hidden => Some(StraysDue::Hidden(now + HIDDEN_MAX)),
        };
        if !self.left.is_empty() {
            self.prune_all();
        }
    }
}

/// A status as waitid(2) has it.
pub(super) fn exit(status: &WaitIdStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

fn known(exit: Exit) -> Option<Exit> {
    match exit {
        Exit::Code(_) | Exit::Signal(_) => Some(exit),
        Exit::Unknown => None,
    }
}

async fn sleep(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => pending().await,
    }
}
