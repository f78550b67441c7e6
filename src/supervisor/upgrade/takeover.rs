//! The program that goes on: it takes up everything that the one before knew and held open.
//!
//! - Nothing is answered, started or signalled before all is taken up; until then it can go back.
//! - The next program works with copies of the descriptors, so that the ones that it was given are
//!   still there when it has to go back. Pidfds, of which there may be too many for that, it takes
//!   last, when nothing can fail any more.
//! - Whoever goes on, for good or because the other could not, says what came of it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{
    super::{
        Fixed, LOOKS_WAITING_MAX, NOT_WATCHING_YET, REFUSALS_WAITING_MAX, REQUESTS_WAITING_MAX,
        ServeError, Supervisor, audited, authority,
        inbox::Inbox,
        is_on_terminal,
        key_looks::KeyLooks,
        looks::FileLooks,
        notify::Notify,
        server_file::{BEING_WRITTEN, HandedServerFile, ServerFile},
        start::host,
    },
    Upgrade,
    check::STATE_VERSION,
    handed::{Announced, Blank, Handed},
};
use crate::{
    command::{Answer, ErrorCode, Failure, Op, Upgraded},
    control::{
        asked::{Asked, Refused},
        keys::Ring,
        server::{Control, HandedControl, Look},
    },
    journal,
    passed::{Claim, Passed},
    probe::Probes,
    process::{self, Fact, Processes},
    reconcile::event::{Event, RequestId},
    watch::{Watch, WatchConfig},
};

/// How many descriptors are kept in reserve for the part that must not fail.
const SPARE_DESCRIPTORS: usize = 8;

/// What a program is to go on with that was told so.
#[derive(Debug)]
pub struct Takeover(Announced);

impl Takeover {
    /// What this program was told when it was executed; `None` when it is a start like any other.
    #[must_use]
    pub fn announced() -> Option<Self> {
        Announced::of_process().map(Self)
    }

    /// Becomes the program before again, which answers why. Returns only if that cannot be.
    pub fn give_back(&self, why: &str) -> ServeError {
        let error = match &self.0 {
            Announced::Onward { state, back, .. } => {
                let numbers = read(*state)
                    .map(|handed| numbers(&handed))
                    .unwrap_or_default();
                let announced = Announced::Back {
                    state: *state,
                    why: why.to_owned(),
                };
                let _blocked = process::SignalsBlocked::now();
                let kept = numbers.into_iter().chain([*state]);
                let kept: Vec<RawFd> = kept.filter(|fd| process::is_open(*fd)).collect();
                let arguments = std::env::args_os().collect();
                process::become_program(*back, arguments, announced.environment(), &kept)
            }
            // There is nothing behind it.
            Announced::Back { .. } => io::Error::other(why.to_owned()),
        };
        tracing::error!(why, %error, "an upgrade has failed, and there is no way back");
        ServeError::System {
            what: "go on after an upgrade",
            source: error,
        }
    }

    /// Reads what the program before has written.
    pub(in crate::supervisor) fn read(&self) -> Result<Arrived, String> {
        let (state, outcome) = match &self.0 {
            Announced::Onward { version, .. } if *version != STATE_VERSION => {
                return Err(format!(
                    "the program that was started reads state of version {STATE_VERSION} and was \
                     given version {version}"
                ));
            }
            Announced::Onward { state, .. } => (*state, Ok(())),
            Announced::Back { state, why } => (*state, Err(why.clone())),
        };
        let handed = read(state).map_err(|error| format!("the state cannot be read: {error}"))?;
        process::resume_file_limit(handed.processes.file_limit());
        let given = numbers(&handed);
        Ok(Arrived {
            handed,
            outcome,
            state,
            given,
        })
    }
}

fn read(state: RawFd) -> io::Result<Handed> {
    Handed::read(process::inherited(state)?)
}

fn numbers(handed: &Handed) -> Vec<RawFd> {
    let number = |passed: &Passed| match passed {
        Passed::Held(fd) => fd.as_raw_fd(),
        Passed::Announced(number) => *number,
    };
    handed.passed().map(number).collect()
}

/// What has come from the program before.
pub(in crate::supervisor) struct Arrived {
    handed: Handed,
    /// `Err` is why the next program could not go on.
    outcome: Result<(), String>,
    /// Where the state is.
    state: RawFd,
    /// The numbers of all other descriptors that were left open.
    given: Vec<RawFd>,
}

impl Arrived {
    /// Goes on. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Why it cannot; then nothing was said or done, and the descriptors are still there.
    pub(in crate::supervisor) fn go_on(self) -> Result<Supervisor, String> {
        let Self {
            handed,
            outcome,
            state,
            given,
        } = self;
        let of_processes: Vec<RawFd> = handed
            .processes
            .passed()
            .filter_map(|passed| match passed {
                Passed::Held(_) => None,
                Passed::Announced(number) => Some(*number),
            })
            .collect();
        // Who came back has nobody to leave them to, and may have none to spare.
        let claim = match &outcome {
            Ok(()) => process::inherited,
            Err(_) => process::inherited_itself,
        };
        let copied = outcome.is_ok();
        // Of what it borrows nothing is used after a panic: this process becomes another program.
        let taken = catch_unwind(AssertUnwindSafe(|| go_on(handed, outcome, &claim)));
        let mut supervisor = match taken {
            Ok(taken) => taken.map_err(|error| error.to_string())?,
            Err(_) => return Err("the program that was started has panicked".to_owned()),
        };
        // What was copied has served its time.
        let is_left = |number: &RawFd| copied && !of_processes.contains(number);
        for number in given.into_iter().filter(is_left).chain([state]) {
            drop(process::inherited_itself(number));
        }
        supervisor.processes.take_low_numbers();
        Ok(supervisor)
    }
}

/// Goes on with all of it.
///
/// # Errors
///
/// Why it cannot. Nothing was said or done by then.
pub(super) fn go_on(
    handed: Handed,
    outcome: Result<(), String>,
    claim: Claim<'_>,
) -> Result<Supervisor, ServeError> {
    // They were for the way here and the way back.
    drop((handed.own.take(claim), handed.next.take(claim)));
    let (server_file, config) = configured(handed.server_file)?;
    let journal = journal::take_over(handed.journal, claim).map_err(ServeError::State)?;
    let audit = audited::open(&server_file.spec().state_dir, &handed.id)?;
    let spec = server_file.spec();
    let mut fixed = Fixed {
        name: handed.name,
        id: handed.id,
        listener: (spec.listener_addr, spec.listener_port).into(),
        started: handed.started,
        on_terminal: is_on_terminal(),
    };
    let heard = hear_again(&server_file, &mut fixed, handed.control, claim)?;
    let spare = spare(&outcome)?;
    // The last that may fail, for from now on signals are heard: who goes back must not have any.
    let mut processes =
        Processes::new(&fixed.id).map_err(ServeError::system("prepare for processes"))?;
    // From here on nothing fails.
    drop(spare);
    set_up(&mut processes, &server_file, handed.process_name.as_deref());
    let lost = processes.take_over(handed.processes, &process::inherited_itself);
    heard.control.recheck_keys();
    // Nobody waits for what may hang: until it has looked, what the core knows is what there is.
    // It takes descriptors meanwhile, of which there may be few until here.
    let known: Vec<_> = handed.core.known_specs().map(Arc::clone).collect();
    let (watch, seen) = Watch::resume_apart(config.clone(), BEING_WRITTEN, &known);
    let probes = Probes::taken_over(handed.probes);
    let mut supervisor = Supervisor {
        core: handed.core,
        processes,
        journal,
        watching: NOT_WATCHING_YET.to_owned(),
        watch,
        seen,
        audit,
        key_looks: KeyLooks::new(Arc::clone(&heard.ring)),
        looks: FileLooks::new(),
        ring: heard.ring,
        control: heard.control,
        asked: heard.asked,
        looked_for: heard.looked_for,
        refused: heard.refused,
        waiting: BTreeMap::new(),
        next_request: handed.next_request,
        rereads: handed.rereads,
        probes,
        watch_config: config,
        watch_again_at: None,
        server_file,
        fixed,
        inbox: Inbox::from(Event::Unwatched),
        retry: None,
        ended: None,
        binary: handed.binary,
        upgrade: Upgrade::default(),
        notify: Notify::taken_over(handed.rescanning),
    };
    supervisor.reread_again();
    supervisor.wait_again(handed.waiting);
    supervisor.tell_ends(lost);
    supervisor.take_caught(handed.signals);
    supervisor.tell_outcome(handed.asked, &handed.version, outcome);
    Ok(supervisor)
}

/// What a start does too before anything is taken back.
fn set_up(processes: &mut Processes, server_file: &ServerFile, process_name: Option<&str>) {
    processes.keep_pins_in(&server_file.spec().runtime_dir);
    processes.use_cgroups();
    processes.listen_in(&server_file.spec().runtime_dir);
    if let Some(name) = process_name {
        process::call_self(name);
    }
}

/// Descriptors that are let go of before what must not fail for want of one: a child's pidfd that
/// cannot be looked at is a child lost.
fn spare(outcome: &Result<(), String>) -> Result<Vec<Blank>, ServeError> {
    // Who came back has nobody to go back to, and two more than it has left with.
    if outcome.is_err() {
        return Ok(Vec::new());
    }
    let all: io::Result<Vec<Blank>> = (0..SPARE_DESCRIPTORS).map(|_| Blank::new()).collect();
    all.map_err(ServeError::system("keep descriptors in reserve"))
}

/// The configuration, and what is watched because of it.
fn configured(handed: HandedServerFile) -> Result<(ServerFile, WatchConfig), ServeError> {
    let server_file = ServerFile::take_over(handed, host()).map_err(ServeError::BadConfig)?;
    let config = server_file.watch_config();
    let config = config.map_err(|fault| ServeError::BadConfig(vec![fault]))?;
    Ok((server_file, config))
}

/// The control plane, and what comes from it.
struct Heard {
    control: Control,
    ring: Arc<Ring>,
    asked: mpsc::Receiver<Asked>,
    looked_for: mpsc::Receiver<Look>,
    refused: mpsc::Receiver<Refused>,
}

fn hear_again(
    server_file: &ServerFile,
    fixed: &mut Fixed,
    handed: HandedControl,
    claim: Claim<'_>,
) -> Result<Heard, ServeError> {
    let (requests, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
    let (looks, looked_for) = mpsc::channel(LOOKS_WAITING_MAX);
    let (refusals, refused) = mpsc::channel(REFUSALS_WAITING_MAX);
    let config = authority::control_config(server_file, fixed, Vec::new(), looks, refusals)?;
    let ring = Arc::clone(&config.ring);
    let control = Control::take_over(config, handed, requests, claim)
        .map_err(ServeError::system("go on with connections"))?;
    if let Some(address) = control.addresses().first() {
        fixed.listener = *address;
    }
    Ok(Heard {
        control,
        ring,
        asked,
        looked_for,
        refused,
    })
}

impl Supervisor {
    /// Tells of the processes whose end nothing will tell, and watches the suspects again.
    fn tell_ends(&mut self, lost: Vec<Fact>) {
        self.take_facts(lost);
        let suspects = self.core.suspects().processes();
        let gone = self.processes.watch_suspects(suspects);
        self.take_facts(gone);
    }

    /// Says what came of an upgrade, as the program that goes on.
    fn tell_outcome(
        &mut self,
        asked: Option<RequestId>,
        before: &str,
        outcome: Result<(), String>,
    ) {
        let now = env!("CARGO_PKG_VERSION");
        match outcome {
            Ok(()) => {
                let pid = std::process::id();
                tracing::info!(from = before, to = now, pid, "the server was upgraded");
                let children = self.processes.live_count();
                let children = match children {
                    1 => "1 child runs on".to_owned(),
                    count => format!("{count} children run on"),
                };
                let message = format!("the server was upgraded from {before} to {now}; {children}");
                if let Some(id) = asked {
                    let upgraded = Upgraded {
                        op: Op::Upgrade,
                        from: before.to_owned(),
                        to: now.to_owned(),
                        pid: pid.cast_signed(),
                        message,
                    };
                    self.answer(id, Ok(Answer::Upgraded(upgraded)));
                }
            }
            Err(why) => {
                let message = format!("the server was not upgraded: {why}");
                self.tell_failure(asked, Failure::new(ErrorCode::Internal, message));
            }
        }
    }
}
