//! The server replaces itself by the program at its own path, under the same pid, and nobody
//! notices but by the version.
//!
//! In this order, each step bounded by a named time:
//!
//! 1. *Check*, on another thread, while all goes on: does that program start, and does it read
//!    this state? If not, nothing has changed, and the answer says why.
//! 2. *Park*: connections stop where they are, and nobody is taken in; the sockets stay open.
//! 3. *Settle*: what was asked is taken in, what is to be on disk gets there, and every other thread
//!    comes to rest. The loop goes on meanwhile: ends are told, timers fire, stops are climbed.
//! 4. *Leave*: all that is known and held open is written down (`handed`), and the program
//!    executed. Signals wait from here on.
//! 5. *Take over*: the next program goes on with it (`takeover`), or goes back.
//!
//! Up to the fourth step it can be given up, and then all goes on as before; what makes exec fail
//! itself does so too. A running child is no part of any of this.
//!
//! Absent on purpose: waiting for children, hooks or commands. They are carried over as they are.

use std::{
    future::pending,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    pin::Pin,
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout_at},
};

use self::{
    check::{CHECK_TIME_MAX, Checked, Unfit},
    handed::{Announced, Blank, Handed},
};
use super::{ServeError, Signals, Supervisor, audited::Waiting, authority};
use crate::{
    clock,
    command::{ErrorCode, Failure},
    control::server::NotParked,
    passed::Passed,
    process::{self, SignalsBlocked},
    reconcile::event::{Event, RequestId},
    spec::Mono,
};

mod check;
mod handed;
mod takeover;

pub use check::reads_state;
pub(super) use handed::{Caught, HandedWaiting};
pub use takeover::Takeover;

/// How much longer than the program itself its check may take: for the disk it stands on.
const CHECK_SLACK: Duration = Duration::from_secs(3);

/// How long it may take, once all are parked, until nothing is under way but what is carried over.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(5);

/// How often it is looked at whether that is so; no time runs but then.
const SETTLE_LOOK: Duration = Duration::from_millis(1);

/// How long threads that have come to their end may take to be gone: until then a signal may be
/// heard by one of them.
const THREADS_GONE_MAX: Duration = Duration::from_millis(200);

/// How long signals have that were caught just before they were blocked to be heard of.
const SIGNALS_HEARD: Duration = Duration::from_millis(2);

/// An upgrade, as far as it is.
#[derive(Default)]
pub(super) struct Upgrade {
    stage: Stage,
    /// A check that was given up on and whose thread has not come back.
    hung: Option<JoinHandle<Result<Checked, Unfit>>>,
}

/// How far.
#[derive(Default)]
enum Stage {
    /// There is none.
    #[default]
    Absent,
    Checking {
        asked: Option<RequestId>,
        check: JoinHandle<Result<Checked, Unfit>>,
        until: Instant,
    },
    Parking {
        asked: Option<RequestId>,
        checked: Checked,
        parked: Pin<Box<dyn Future<Output = Result<(), NotParked>> + Send>>,
    },
    Settling {
        asked: Option<RequestId>,
        checked: Checked,
        until: Mono,
        watch: WatchEnd,
    },
}

/// How far the end of the watch is, which is the last to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchEnd {
    Watching,
    Told,
    Ended,
}

/// What has happened to an upgrade.
pub(super) enum Progress {
    Checked(Result<Checked, String>),
    Hangs,
    Parked(Result<(), NotParked>),
    LookAgain,
}

impl Upgrade {
    /// What happens next. May be dropped at any time without losing anything.
    pub(super) async fn next(&mut self) -> Progress {
        match &mut self.stage {
            Stage::Absent => pending().await,
            Stage::Checking { check, until, .. } => match timeout_at(*until, check).await {
                Ok(checked) => Progress::Checked(outcome_of(checked)),
                Err(_) => Progress::Hangs,
            },
            Stage::Parking { parked, .. } => Progress::Parked(parked.await),
            Stage::Settling { .. } => {
                sleep(SETTLE_LOOK).await;
                Progress::LookAgain
            }
        }
    }

    /// Whether there is anything to be had of the watch.
    pub(super) fn hears_watch(&self) -> bool {
        match &self.stage {
            Stage::Settling { watch, .. } => *watch != WatchEnd::Ended,
            Stage::Absent | Stage::Checking { .. } | Stage::Parking { .. } => true,
        }
    }

    /// The watch has ended; says whether it was told to.
    pub(super) fn watch_has_ended(&mut self) -> bool {
        match &mut self.stage {
            Stage::Settling { watch, .. } if *watch == WatchEnd::Told => {
                *watch = WatchEnd::Ended;
                true
            }
            Stage::Settling { .. }
            | Stage::Absent
            | Stage::Checking { .. }
            | Stage::Parking { .. } => false,
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self.stage, Stage::Absent)
    }
}

fn outcome_of(checked: Result<Result<Checked, Unfit>, JoinError>) -> Result<Checked, String> {
    match checked {
        Ok(checked) => checked.map_err(|unfit| unfit.to_string()),
        Err(_) => Err("checking the program has panicked".to_owned()),
    }
}

/// Where the program stands that this server was started from. Looked up at the start: what is
/// renamed over it later is no longer what runs.
pub(super) fn own_binary() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|error| {
        tracing::warn!(%error, "where the server's program stands is not known");
        PathBuf::from("/proc/self/exe")
    })
}

impl Supervisor {
    /// Begins an upgrade, unless one is under way.
    pub(super) fn begin_upgrade(&mut self, asked: Option<RequestId>) {
        let hangs = |check: &JoinHandle<_>| !check.is_finished();
        let busy = match (self.upgrade.is_absent(), &self.upgrade.hung) {
            (false, _) => Some("another upgrade is under way"),
            (true, Some(check)) if hangs(check) => {
                Some("the check of an earlier upgrade has not come to its end")
            }
            (true, Some(_) | None) => None,
        };
        if let Some(why) = busy {
            return self.tell_failure(asked, Failure::new(ErrorCode::Busy, why));
        }
        tracing::info!(program = %self.binary.display(), "an upgrade begins");
        let binary = self.binary.clone();
        let state_dir = self.server_file.spec().state_dir.clone();
        self.upgrade = Upgrade {
            stage: Stage::Checking {
                asked,
                check: spawn_blocking(move || check::check_all(&binary, &state_dir)),
                until: Instant::now() + CHECK_TIME_MAX + CHECK_SLACK,
            },
            hung: None,
        };
    }

    /// Takes an upgrade a step further.
    pub(super) fn go_on_upgrading(&mut self, progress: Progress) {
        let stage = std::mem::take(&mut self.upgrade.stage);
        match (stage, progress) {
            (Stage::Checking { asked, .. }, Progress::Checked(Ok(checked))) => {
                if let Err(why) = self.could_begin_again() {
                    return self.give_up(asked, &why);
                }
                let parked = Box::pin(self.control.park());
                self.upgrade.stage = Stage::Parking {
                    asked,
                    checked,
                    parked,
                };
            }
            (Stage::Checking { asked, .. }, Progress::Checked(Err(why))) => {
                self.give_up(asked, &why);
            }
            (Stage::Checking { asked, check, .. }, Progress::Hangs) => {
                self.upgrade.hung = Some(check);
                let binary = self.binary.display();
                let why = format!("`{binary}` cannot be checked: its disk does not answer");
                self.give_up(asked, &why);
            }
            (Stage::Parking { asked, checked, .. }, Progress::Parked(Ok(()))) => {
                self.upgrade.stage = Stage::Settling {
                    asked,
                    checked,
                    until: clock::mono() + SETTLE_TIME_MAX,
                    watch: WatchEnd::Watching,
                };
            }
            (Stage::Parking { asked, .. }, Progress::Parked(Err(why))) => {
                self.give_up(asked, &why.to_string());
            }
            (
                stage @ (Stage::Absent
                | Stage::Checking { .. }
                | Stage::Parking { .. }
                | Stage::Settling { .. }),
                Progress::Checked(_) | Progress::Hangs | Progress::Parked(_) | Progress::LookAgain,
            ) => self.upgrade.stage = stage,
        }
    }

    /// Whether this program could take up again what it is about to let go of: else neither the
    /// next one nor this one could go on.
    fn could_begin_again(&self) -> Result<(), String> {
        self.server_file.watch_config()?;
        authority::check(&self.server_file)
    }

    /// Whether the server can leave now: nothing is under way but what is carried over. Gives up
    /// an upgrade that an end overtakes, or that does not come to it.
    pub(super) fn is_ready_to_leave(&mut self) -> bool {
        if !self.upgrade.is_absent() && self.core.is_ending() {
            let stage = std::mem::take(&mut self.upgrade.stage);
            self.undo(&stage);
            let failure = Failure::new(
                ErrorCode::ShuttingDown,
                "the server ends and is not upgraded",
            );
            self.tell_failure(stage.asked(), failure);
            return false;
        }
        let Stage::Settling { until, watch, .. } = &self.upgrade.stage else {
            return false;
        };
        let (until, watch) = (*until, *watch);
        match (self.under_way(), watch) {
            (None, WatchEnd::Ended) => return true,
            (None, WatchEnd::Watching) => {
                self.watch.close();
                self.inbox.push_back(Event::Unwatched);
                if let Stage::Settling { watch, .. } = &mut self.upgrade.stage {
                    *watch = WatchEnd::Told;
                }
            }
            (None, WatchEnd::Told) | (Some(_), _) => {}
        }
        if clock::mono() >= until {
            let what = self.under_way().unwrap_or("a look at the loadpaths");
            let stage = std::mem::take(&mut self.upgrade.stage);
            self.undo(&stage);
            let why = format!("{what} did not come to an end within {SETTLE_TIME_MAX:?}");
            self.give_up(stage.asked(), &why);
        }
        false
    }

    /// What must come to an end before the server can leave.
    fn under_way(&self) -> Option<&'static str> {
        let channels = self.asked.is_empty() && self.looked_for.is_empty();
        [
            (
                channels && self.refused.is_empty(),
                "the taking in of requests",
            ),
            (self.journal.is_quiet(), "the writing of the state"),
            (self.audit.is_quiet(), "the writing of the audit trail"),
            (self.key_looks.is_idle(), "a look at the keys"),
            (self.looks.histories.is_idle(), "a look at a history"),
            (self.looks.logs.is_idle(), "a look at a log"),
            (self.control.is_quiet(), "the check of a signature"),
        ]
        .into_iter()
        .find_map(|(is_done, what)| (!is_done).then_some(what))
    }

    /// All goes on as before.
    fn undo(&mut self, stage: &Stage) {
        match stage {
            Stage::Absent | Stage::Checking { .. } => {}
            Stage::Parking { .. } => self.control.unpark(),
            Stage::Settling { watch, .. } => {
                self.control.unpark();
                match watch {
                    WatchEnd::Watching => {}
                    // Its thread waits for a loadpath: another would wait beside it.
                    WatchEnd::Told => {
                        self.watch.reopen();
                        self.watch.configure(self.watch_config.clone());
                    }
                    WatchEnd::Ended => self.watch_again(),
                }
            }
        }
    }

    fn give_up(&mut self, asked: Option<RequestId>, why: &str) {
        let message = format!("the server was not upgraded: {why}");
        self.tell_failure(asked, Failure::new(ErrorCode::Internal, message));
    }

    /// Says that there was no upgrade.
    pub(super) fn tell_failure(&mut self, asked: Option<RequestId>, failure: Failure) {
        let why = &*crate::telemetry::on_one_line(&failure.message);
        tracing::error!(why, "no upgrade");
        if let Some(id) = asked {
            self.answer(id, Err(failure));
        }
    }

    /// Acts on signals that came while nobody could.
    pub(super) fn take_caught(&mut self, caught: Caught) {
        let Caught {
            term,
            interrupt,
            hangup,
            upgrade,
        } = caught;
        if hangup {
            self.look_at_everything();
        }
        if upgrade {
            self.inbox.push_back(Event::Upgrade);
        }
        if term || interrupt {
            self.inbox.push_back(Event::Shutdown);
        }
    }

    /// Lets go of everything, to be executed as another program.
    pub(super) async fn leave(mut self) -> Result<Leaving, ServeError> {
        let stage = std::mem::take(&mut self.upgrade.stage);
        let Stage::Settling { asked, checked, .. } = stage else {
            unreachable!("it was settled just now");
        };
        self.notify.reload();
        // Its answers are given by now: they are in the connections' queues.
        drop(self.audit);
        let waiting = self
            .waiting
            .into_iter()
            .map(|(id, waiting)| waiting.hand_over(id));
        let waiting: Vec<HandedWaiting> = waiting.collect();
        let control = self.control.hand_over().await;
        let control = control.map_err(ServeError::system("let go of connections"))?;
        let journal = self.journal.pass_on();
        let journal = journal.map_err(ServeError::system("let go of the state"))?;
        let handed = Handed {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            asked,
            process_name: process::own_name(),
            binary: self.binary,
            own: Passed::Held(checked.own),
            next: Passed::Held(checked.program),
            core: self.core,
            server_file: self.server_file.hand_over(),
            name: self.fixed.name,
            id: self.fixed.id,
            started: self.fixed.started,
            processes: self.processes.hand_over(),
            journal,
            control,
            waiting,
            next_request: self.next_request,
            rereads: self.rereads,
            probes: self.probes.hand_over(),
            rescanning: self.notify.rescanning(),
            signals: Caught::default(),
        };
        let connections = handed.control.connections();
        tracing::info!(
            to = checked.version,
            connections,
            "the server replaces itself"
        );
        Ok(Leaving {
            handed: Box::new(handed),
            state: checked.state,
        })
    }
}

impl Stage {
    fn asked(&self) -> Option<RequestId> {
        match self {
            Self::Absent => None,
            Self::Checking { asked, .. }
            | Self::Parking { asked, .. }
            | Self::Settling { asked, .. } => *asked,
        }
    }
}

/// A server that has let go of everything.
pub(super) struct Leaving {
    handed: Box<Handed>,
    /// Where it is to be written.
    state: Blank,
}

impl Leaving {
    /// Becomes the next program. Comes back only if it cannot, and goes on then.
    ///
    /// # Errors
    ///
    /// It cannot go on either.
    pub(super) async fn go(self, signals: &mut Signals) -> Result<Supervisor, ServeError> {
        let Self { mut handed, state } = self;
        let blocked = SignalsBlocked::now();
        let until = clock::mono() + THREADS_GONE_MAX;
        while process::others_hear_signals() && clock::mono() < until {
            sleep(SETTLE_LOOK).await;
        }
        handed.signals = signals.heard(SIGNALS_HEARD).await;
        let why = match become_next(&handed, state) {
            Ok(never) => match never {},
            Err(error) => format!("the program cannot be executed: {error}"),
        };
        drop(blocked);
        takeover::go_on(*handed, Err(why), &process::inherited_itself)
    }
}

fn become_next(handed: &Handed, state: Blank) -> std::io::Result<std::convert::Infallible> {
    let state = handed.write(state)?;
    let (Some(own), Some(next)) = (handed.own.held(), handed.next.held()) else {
        return Err(std::io::Error::other("the programs are not held"));
    };
    let announced = Announced::onward(&state, own.as_raw_fd());
    let held = handed.passed().filter_map(Passed::held);
    let kept = held.chain([state.as_fd()]).map(|fd| fd.as_raw_fd());
    let kept: Vec<_> = kept.collect();
    let arguments = std::env::args_os().collect();
    let next = next.as_raw_fd();
    let error = process::become_program(next, arguments, announced.environment(), &kept);
    Err(error)
}

impl Waiting {
    fn hand_over(self, id: RequestId) -> HandedWaiting {
        let (reply, audited) = self.into_parts();
        HandedWaiting {
            id,
            reply: reply.hand_over(),
            audited,
        }
    }
}
