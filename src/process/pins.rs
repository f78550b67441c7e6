//! Pins: what keeps the exit of a run that ends while no server lives.
//!
//! The kernel keeps how a process ended with its pidfd's inode (`info`), and that for as long as
//! somebody has the inode. A descriptor goes with the server; a mount does not. So each run's
//! pidfd is mounted in a namespace of its own ([`place`]), which the next server enters.
//!
//! - A pin is made when a run starts or is taken back, and taken away once its exit is on record.
//!   What a server finds that belongs to no run without an end is swept.
//! - A start waits for its pin, but never longer than [`PIN_WAIT`]; it is made all the same then,
//!   a little later. A run without a pin is none the worse: its exit may be unknown one day.
//! - Where pins cannot be had there are none, and `info` says why.
//! - All is taken away when the last pin is gone and the server ends in order.
//!
//! One thread owns all of it, since only a thread by itself can be in another mount namespace.
//! Requests to it stand in one bounded queue, in order.
//!
//! Absent on purpose: deciding anything by a pin that is not there.

use std::{
    collections::BTreeSet,
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{ExitSource, Owner, Phase, Processes, Started};
use crate::spec::{ChildName, RunId};

mod anchor;
mod mounts;
mod place;

use mounts::Identity;
use place::Place;

/// How long a start waits for its pin, which takes well below a millisecond.
const PIN_WAIT: Duration = Duration::from_millis(10);

/// How long a server that starts or ends waits for the thread, which has nothing to wait for.
const THREAD_WAIT: Duration = Duration::from_secs(2);

/// How many requests wait at most; what comes on top is not pinned, or swept by a later server.
const REQUESTS_MAX: usize = 4_096;

/// Which process a pin is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct PinName {
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
}

impl fmt::Display for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start_ticks)
    }
}

impl PinName {
    fn parse(text: &str) -> Option<Self> {
        let (pid, start_ticks) = text.split_once('-')?;
        Some(Self {
            pid: pid.parse().ok()?,
            start_ticks: start_ticks.parse().ok()?,
        })
    }
}

/// All pins, as far as there are any.
#[derive(Debug)]
pub(super) struct Pins {
    /// Why there are none, or why the latest could not be made.
    fault: Arc<Mutex<Option<String>>>,
    keeper: Option<Keeper>,
}

/// The thread and how it is reached.
#[derive(Debug)]
struct Keeper {
    requests: SyncSender<Request>,
    /// Hears nothing, and is hung up when the thread has ended.
    ended: Receiver<()>,
    /// `runtime_dir/pins`, and what must stand there.
    path: PathBuf,
    identity: Identity,
}

enum Request {
    Pin(PinName, OwnedFd, SyncSender<()>),
    Find(PinName, SyncSender<Option<OwnedFd>>),
    Unpin(PinName),
    KeepOnly(BTreeSet<PinName>),
    Rebind,
}

impl Pins {
    /// No pins, for this reason.
    pub(super) fn none(why: &str) -> Self {
        Self {
            fault: Arc::new(Mutex::new(Some(why.to_owned()))),
            keeper: None,
        }
    }

    /// Finds the pins of an earlier server with this directory, or makes room for new ones.
    pub(super) fn keep_in(runtime_dir: &Path) -> Self {
        let fault = Arc::new(Mutex::new(None));
        let keeper = Keeper::start(runtime_dir, Arc::clone(&fault));
        let keeper = keeper
            .inspect_err(|why| {
                tracing::debug!(why, "exits are not pinned");
                set(&fault, Some(why.clone()));
            })
            .ok();
        Self { fault, keeper }
    }

    /// As `info` shows it.
    pub(super) fn describe(&self) -> String {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &*fault {
            None => "yes".to_owned(),
            Some(why) => format!("no: {why}"),
        }
    }

    /// Pins a process; waits until it is, or for [`PIN_WAIT`].
    pub(super) fn pin(&self, name: PinName, pidfd: &OwnedFd) {
        let Some(keeper) = &self.keeper else { return };
        if !keeper.stands() {
            keeper.send(Request::Rebind);
        }
        let Ok(pidfd) = pidfd.try_clone() else { return };
        let (pinned, answer) = mpsc::sync_channel(1);
        if keeper.send(Request::Pin(name, pidfd, pinned))
            && answer.recv_timeout(PIN_WAIT) == Err(RecvTimeoutError::Timeout)
        {
            tracing::debug!(pid = name.pid, "its pin is late");
        }
    }

    /// The pidfd that was pinned under this name, if one was.
    pub(super) fn find(&mut self, name: PinName) -> Option<OwnedFd> {
        let keeper = self.keeper.as_ref()?;
        let (found, answer) = mpsc::sync_channel(1);
        keeper.send(Request::Find(name, found));
        match answer.recv_timeout(THREAD_WAIT) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Nor is it waited for again.
                set(
                    &self.fault,
                    Some(format!("its thread does not answer: {error}")),
                );
                self.keeper = None;
                None
            }
        }
    }

    fn unpin(&self, name: PinName) {
        if let Some(keeper) = &self.keeper {
            keeper.send(Request::Unpin(name));
        }
    }

    /// Takes all other pins away.
    pub(super) fn keep_only(&self, names: BTreeSet<PinName>) {
        if let Some(keeper) = &self.keeper {
            keeper.send(Request::KeepOnly(names));
        }
    }
}

impl Keeper {
    fn start(runtime_dir: &Path, fault: Arc<Mutex<Option<String>>>) -> Result<Self, String> {
        let runtime_dir = std::path::absolute(runtime_dir).map_err(|error| error.to_string())?;
        let path = runtime_dir.join(anchor::NAME);
        let (requests, asked) = mpsc::sync_channel(REQUESTS_MAX);
        let (ready, entered) = mpsc::sync_channel(1);
        let (ending, ended) = mpsc::sync_channel(0);
        let body = move || {
            let _ending: SyncSender<()> = ending;
            let place = Place::enter(&runtime_dir)
                .map(|place| (place.identity(), place))
                .map_err(|error| error.to_string());
            match place {
                Ok((identity, place)) => {
                    if ready.send(Ok(identity)).is_ok() {
                        keep(place, &asked, &fault);
                    }
                }
                Err(why) => {
                    let _heard = ready.send(Err(why));
                }
            }
        };
        thread::Builder::new()
            .name("pins".to_owned())
            .spawn(body)
            .map_err(|error| format!("no thread for it: {error}"))?;
        let identity = match entered.recv_timeout(THREAD_WAIT) {
            Ok(result) => result?,
            Err(_) => return Err("its thread does not answer".to_owned()),
        };
        Ok(Self {
            requests,
            ended,
            path,
            identity,
        })
    }

    /// Whether a later server would find the pins.
    fn stands(&self) -> bool {
        rustix::fs::lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity)
    }

    /// Whether the request will be heard.
    fn send(&self, request: Request) -> bool {
        match self.requests.try_send(request) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("too much waits to be pinned");
                false
            }
            // It said why.
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else {
            return;
        };
        drop(keeper.requests);
        if keeper.ended.recv_timeout(THREAD_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("what is pinned could not be seen to");
        }
    }
}

/// The thread's life: until nobody can ask any more.
fn keep(mut place: Place, asked: &Receiver<Request>, fault: &Mutex<Option<String>>) {
    // Why a later server would not find the pins.
    let mut unkept = None;
    for request in asked {
        match request {
            Request::Pin(name, pidfd, pinned) => {
                let failed = place.pin(name, &pidfd).err();
                let failed = failed.map(|error| format!("pin a process: {error}"));
                set(fault, failed.or_else(|| unkept.clone()));
                let _waits_no_more = pinned.try_send(());
            }
            Request::Find(name, found) => {
                let _waits_no_more = found.try_send(place.find(name).ok());
            }
            Request::Unpin(name) => unpin(&place, name),
            Request::KeepOnly(names) => {
                let there = place.names().unwrap_or_default().into_iter();
                for name in there.filter(|name| !names.contains(name)) {
                    unpin(&place, name);
                }
            }
            Request::Rebind => unkept = place.rebind().err().map(|error| error.to_string()),
        }
    }
    if let Err(error) = place.leave() {
        tracing::warn!(%error, "what pinned exits stays behind");
    }
}

fn unpin(place: &Place, name: PinName) {
    if let Err(error) = place.unpin(name) {
        tracing::warn!(pid = name.pid, %error, "a pin stays");
    }
}

fn set(fault: &Mutex<Option<String>>, why: Option<String>) {
    *fault.lock().unwrap_or_else(PoisonError::into_inner) = why;
}

impl Processes {
    /// From now on each run is pinned, by what is kept in this directory of ours. What an earlier
    /// server has pinned there is found.
    pub fn keep_pins_in(&mut self, runtime_dir: &Path) {
        self.pins = match self.exit_source {
            ExitSource::PidfdInfo => Pins::keep_in(runtime_dir),
            ExitSource::ZombieStatus => Pins::none("this kernel keeps no exits"),
        };
    }

    /// Takes the pins of all other processes away than these, each a pid and a start time: those
    /// whose end is not on record.
    pub fn keep_only_pins_of(&mut self, processes: impl IntoIterator<Item = (i32, u64)>) {
        let names = processes
            .into_iter()
            .map(|(pid, start_ticks)| PinName { pid, start_ticks });
        self.pins.keep_only(names.collect());
    }

    /// Pins a run that lives.
    pub(super) fn pin(&mut self, child: &ChildName, run: RunId, started: Started) {
        let Started { pid, start_ticks } = started;
        let name = PinName { pid, start_ticks };
        if let Some(process) = self.processes.get(&Owner::Run(child.clone(), run)) {
            self.pins.pin(name, &process.pidfd);
            self.pinned.insert((child.clone(), run), name);
        }
    }

    /// Keeps the pin of a run that is about to be let go until [`Processes::unpin_kept`]: its end
    /// is not on record, and should this server die, the next one is told it by the pin.
    pub fn keep_pin(&mut self, child: &ChildName, run: RunId) {
        let name = self.pin_to_go(child, run);
        self.pins_kept.extend(name);
    }

    /// Takes the pins away that were kept: all that has ended is on record.
    pub fn unpin_kept(&mut self) {
        for name in std::mem::take(&mut self.pins_kept) {
            self.pins.unpin(name);
        }
    }

    /// Takes the pin of a run away that has ended, and whose end is on record.
    pub(super) fn unpin(&mut self, child: &ChildName, run: RunId) {
        if let Some(name) = self.pin_to_go(child, run) {
            self.pins.unpin(name);
        }
    }

    /// The pin of a run that has ended, which is no longer the run's.
    fn pin_to_go(&mut self, child: &ChildName, run: RunId) -> Option<PinName> {
        let process = self.processes.get(&Owner::Run(child.clone(), run));
        match process.is_some_and(|process| process.phase == Phase::Live) {
            true => None,
            false => self.pinned.remove(&(child.clone(), run)),
        }
    }
}
