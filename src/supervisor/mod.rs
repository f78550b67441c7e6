//! The one place that knows all organs: wait for a fact, let the core decide, do what it orders.
//!
//! One task owns the core, the processes and the journal, so there are no locks. Effects are
//! performed in the order given; what they come to is told to the core as further events before
//! anything else is waited for. Nothing is decided here.
//!
//! Absent on purpose: policy of any kind (`reconcile`), parsing (`config`), sockets (`control`).

mod audited;
mod authority;
mod history_looks;
mod inbox;
mod key_looks;
mod log_looks;
mod looks;
mod moved;
mod notify;
mod perform;
mod rebuild;
mod server_file;
mod start;
mod upgrade;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal as SignalStream, SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

pub use self::{
    audited::verify_audit,
    moved::Moved,
    start::{Checked, ServeError, check, serve},
    upgrade::{Takeover, reads_state},
};
use self::{
    audited::{Waiting, note_refusal},
    inbox::Inbox,
    key_looks::KeyLooks,
    looks::FileLooks,
    notify::Notify,
    server_file::{BEING_WRITTEN, ServerFile},
    upgrade::{Caught, Leaving, Upgrade},
};
use crate::{
    audit::Audit,
    clock,
    command::Killed,
    control::{
        asked::{Asked, Refused},
        keys::Ring,
        server::{Control, Look},
    },
    journal::{self, Journal},
    probe::Probes,
    process::{Fact, Processes, Started},
    reconcile::{
        State,
        event::{Event, JobId, RequestId},
    },
    spec::{ChildName, Exit, Mono, Time},
    watch::{Seen, Watch, WatchConfig},
};

/// How many requests may wait for the loop; past that `control` answers `busy`.
const REQUESTS_WAITING_MAX: usize = 1_024;
/// How many connections may wait for a look at server.yml; past that `control` answers `busy`.
const LOOKS_WAITING_MAX: usize = 256;
/// How many refusals may wait for the loop; past that `control` counts them.
const REFUSALS_WAITING_MAX: usize = 256;
/// How often records that could not be written are tried again; no time runs while none are owed.
const RECORDS_RETRY: Duration = Duration::from_secs(5);
/// How long a watch whose thread has died is waited with: it may die of the same again.
const WATCH_AGAIN_PAUSE: Duration = Duration::from_secs(1);
/// What is said of the watch until it has looked at everything for the first time.
const NOT_WATCHING_YET: &str = "not yet: the loadpaths are being read for the first time";
/// How many waiting requests are taken in one turn of the loop.
const REQUESTS_PER_TURN_MAX: usize = 64;

/// A running server.
struct Supervisor {
    core: State,
    processes: Processes,
    probes: Probes,
    journal: Journal,
    watch: Watch,
    seen: mpsc::Receiver<Seen>,
    /// The public keys; each look at them is off this thread.
    ring: Arc<Ring>,
    key_looks: KeyLooks,
    looks: FileLooks,
    control: Control,
    asked: mpsc::Receiver<Asked>,
    /// Who waits for a look at server.yml before a key is used.
    looked_for: mpsc::Receiver<Look>,
    /// Requests that were refused because of who made them.
    refused: mpsc::Receiver<Refused>,
    audit: Audit,
    /// Who waits for which answer.
    waiting: BTreeMap<RequestId, Waiting>,
    next_request: u64,
    server_file: ServerFile,
    fixed: Fixed,
    /// Names that are being read again, and for which job.
    rereads: BTreeMap<JobId, BTreeSet<ChildName>>,
    /// What is watched, and how it is read.
    watch_config: WatchConfig,
    /// When another watch takes the place of one that has ended.
    watch_again_at: Option<Mono>,
    /// What effects came to and the core has not been told yet.
    inbox: Inbox,
    /// When records that could not be written are tried again.
    retry: Option<Mono>,
    /// How the server ends, once the core has ended.
    ended: Option<End>,
    /// What the watcher last said of itself.
    watching: String,
    /// Where the program stands that this server was started from.
    binary: PathBuf,
    upgrade: Upgrade,
    /// Whoever has started the server may want to hear how it is.
    notify: Notify,
}

/// How the loop has ended.
enum Outcome {
    /// Everything is done.
    Ended(End),
    /// Another program is to go on.
    Leaving(Leaving),
}

/// A server that has ended as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// What it said last.
    pub words: Killed,
    /// The exit of the child with which it was to end, if that is why it has.
    pub with: Option<Exit>,
}

impl End {
    /// The server's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.with.map_or(0, Exit::code)
    }
}

/// What does not change while the server runs.
struct Fixed {
    name: String,
    id: String,
    listener: SocketAddr,
    started: Time,
    /// Whether INT comes from a person at a terminal.
    on_terminal: bool,
}

/// The signals the server listens to.
struct Signals {
    /// Never heard of again: that it is listened to is what makes a write beyond the limit of a
    /// file's size (`ulimit -f`) fail instead of ending the server.
    _file_size: SignalStream,
    term: SignalStream,
    interrupt: SignalStream,
    hangup: SignalStream,
    upgrade: SignalStream,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// Those that were caught and not acted upon; new ones are blocked by now. Takes so long.
    async fn heard(&mut self, time: Duration) -> Caught {
        let mut caught = Caught::default();
        let until = clock::mono() + time;
        loop {
            tokio::select! {
                // The time last: however late it is, what was caught is heard.
                biased;
                Some(()) = self.term.recv() => caught.term = true,
                Some(()) = self.interrupt.recv() => caught.interrupt = true,
                Some(()) = self.hangup.recv() => caught.hangup = true,
                Some(()) = self.upgrade.recv() => caught.upgrade = true,
                () = sleep_till(Some(until)) => return caught,
            }
        }
    }
}

impl Supervisor {
    /// Runs until the core says that everything is done, or another program is to go on.
    async fn run(mut self, signals: &mut Signals) -> Result<Outcome, ServeError> {
        let mut interrupted = false;
        loop {
            self.drain();
            self.notify.tell(&self.core, clock::mono());
            if self.is_ready_to_leave() {
                return self.leave().await.map(Outcome::Leaving);
            }
            if let Some(ended) = self.ended.take() {
                self.end(&ended.words, interrupted).await;
                return Ok(Outcome::Ended(ended));
            }
            let deadline = self.core.next_deadline();
            let retry = self.next_retry();
            tokio::select! {
                facts = self.processes.wait() => self.take_facts(facts),
                (job, result) = self.probes.next() => {
                    self.inbox.push_back(Event::Probed { job, result });
                }
                Some((ticket, result)) = self.journal.committed().recv() => {
                    self.inbox.push_back(Event::Recorded { ticket, result });
                }
                seen = self.seen.recv(), if self.hears_watch() => match seen {
                    Some(seen) => self.take_seen(seen),
                    None => self.lose_watch(),
                },
                () = sleep_till(self.watch_again_at) => self.watch_again(),
                progress = self.upgrade.next() => self.go_on_upgrading(progress),
                Some(asked) = self.asked.recv() => self.take_asked(asked),
                Some(look) = self.looked_for.recv() => self.look_for(look),
                Some(refused) = self.refused.recv() => note_refusal(&self.audit, refused),
                () = sleep_till(deadline) => self.inbox.push_back(Event::Deadline),
                () = sleep_till(retry) => self.catch_up(),
                () = sleep_till(self.notify.next()) => {}
                Some(()) = signals.term.recv() => self.inbox.push_back(Event::Shutdown),
                Some(()) = signals.interrupt.recv() => {
                    interrupted = true;
                    self.inbox.push_back(Event::Shutdown);
                }
                Some(()) = signals.hangup.recv() => self.look_at_everything(),
                Some(()) = signals.upgrade.recv() => self.inbox.push_back(Event::Upgrade),
            }
        }
    }

    fn look_at_everything(&mut self) {
        tracing::info!("asked to look at everything again");
        self.look_at_server_file();
        self.control.recheck_keys();
        self.watch.rescan(self.notify.rescan());
    }

    /// Tells the core everything that is known, and does what it orders, until both are quiet.
    fn drain(&mut self) {
        while let Some((at, event)) = self.inbox.pop_front() {
            self.notify.note_news();
            let effects = self.core.step(event, at);
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    fn take_facts(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            self.inbox.push_back(match fact {
                Fact::Exited {
                    child,
                    run,
                    exit,
                    circumstances,
                } => Event::Exited {
                    child,
                    run,
                    exit,
                    circumstances,
                },
                Fact::Probed { job, result } => Event::Probed { job, result },
                Fact::Notified { child, run, words } => Event::Notified { child, run, words },
                Fact::HookFinished {
                    child,
                    hook,
                    result,
                } => Event::HookFinished {
                    child,
                    hook,
                    result,
                },
                Fact::SuspectGone(Started { pid, start_ticks }) => {
                    Event::SuspectGone { pid, start_ticks }
                }
            });
        }
    }

    fn take_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Listing(update) => {
                self.catch_up();
                self.inbox.push_back(Event::Listing(update));
            }
            Seen::Reread { token, update } => {
                self.rereads.remove(&JobId(token));
                self.inbox.push_back(Event::Reread {
                    job: JobId(token),
                    update,
                });
            }
            Seen::ServerFile => self.look_at_server_file(),
            Seen::Keys => self.control.recheck_keys(),
            Seen::Capabilities(watching) => self.watching = watching.to_string(),
            Seen::Rescanned { token } => self.notify.rescanned(token),
        }
    }

    /// Whether there is anything to be had of the watch.
    fn hears_watch(&self) -> bool {
        self.upgrade.hears_watch() && self.watch_again_at.is_none()
    }

    /// The watch has ended: as it was told, or for a reason that nobody knows.
    fn lose_watch(&mut self) {
        if self.upgrade.watch_has_ended() {
            return;
        }
        tracing::error!("the watch on the loadpaths has ended and is put up again");
        self.watching = NOT_WATCHING_YET.to_owned();
        self.watch_again_at = Some(clock::mono() + WATCH_AGAIN_PAUSE);
        self.inbox.push_back(Event::Unwatched);
    }

    /// Another watch takes the place of one that has ended, and what that was asked is asked again.
    fn watch_again(&mut self) {
        self.watch_again_at = None;
        // It would be told to end at once.
        if self.upgrade.watch_has_ended() {
            return;
        }
        let config = self.watch_config.clone();
        let known: Vec<_> = self.core.known_specs().map(Arc::clone).collect();
        (self.watch, self.seen) = Watch::resume_apart(config, BEING_WRITTEN, &known);
        self.watching = NOT_WATCHING_YET.to_owned();
        self.inbox.push_back(Event::Unwatched);
        self.reread_again();
    }

    /// Asks a new watch what the one before was asked and has not said.
    fn reread_again(&self) {
        for (job, names) in &self.rereads {
            self.watch.reread(job.0, names.clone());
        }
        if let Some(token) = self.notify.rescanning() {
            self.watch.rescan(token);
        }
    }

    /// When to try again what could not be written: not put off by what else happens. When all is
    /// written, what was kept for want of that goes.
    fn next_retry(&mut self) -> Option<Mono> {
        if self.journal.is_behind() {
            let again = || clock::mono() + RECORDS_RETRY;
            self.retry.get_or_insert_with(again);
        } else {
            self.retry = None;
            self.processes.unpin_kept();
        }
        self.retry
    }

    /// Tries again what could not be written when the disk was full, and puts back the server's
    /// directories if somebody has deleted them.
    fn catch_up(&mut self) {
        self.retry = None;
        if let Err(error) = self.journal.catch_up() {
            tracing::error!(%error, "records still cannot be written");
        }
    }

    /// Takes a request and those that wait behind it, as far as a turn goes.
    fn take_asked(&mut self, first: Asked) {
        self.take_request(first);
        for _ in 1..REQUESTS_PER_TURN_MAX {
            let Ok(next) = self.asked.try_recv() else {
                return;
            };
            self.take_request(next);
        }
    }

    /// Lets lines and records reach the disk and answers their clients, then says goodbye.
    async fn end(mut self, words: &Killed, interrupted: bool) {
        for child in &words.children {
            tracing::info!(child = %child.name, pid = child.pid, "runs on");
        }
        tracing::info!(children = words.children.len(), "the server ends");
        // The last answer is sent when its line is written.
        self.audit.flush().await;
        self.control.close().await;
        while let Ok(refused) = self.refused.try_recv() {
            note_refusal(&self.audit, refused);
        }
        // Before the journal's lock goes: the next server writes to the same trail, and finds
        // either all of what keeps the exits of those who run on or nothing.
        drop(self.audit);
        drop(self.processes);
        if words.children.is_empty() && self.core.suspects().is_empty() {
            let place = self.server_file.place();
            journal::forget_place(&self.server_file.dirs(), place.as_deref());
        }
        self.journal.close();
        if interrupted && self.fixed.on_terminal {
            say_goodbye(words);
        }
    }
}

/// Tells the person at the terminal what runs on, and how to end it.
fn say_goodbye(words: &Killed) {
    let mut err = std::io::stderr().lock();
    for child in &words.children {
        let (name, pid) = (&child.name, child.pid);
        let line = format!("`{name}` runs on: pid {pid}; `kill -- -{pid}` ends it");
        if writeln!(err, "{line}").is_err() {
            return;
        }
    }
}

/// Sleeps until a time on the monotonic clock, or for ever.
async fn sleep_till(deadline: Option<Mono>) {
    match deadline {
        Some(at) => {
            // tokio's timers tick in milliseconds and never fire early.
            let span = at - clock::mono();
            sleep(span).await;
        }
        None => std::future::pending().await,
    }
}

fn is_on_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
