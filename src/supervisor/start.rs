//! The order of a start: configuration, state, what lives, the port, the listing, the core.
//!
//! Whatever can refuse the start comes before anything is changed; what lives is taken back
//! before anything is started.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    End, Fixed, LOOKS_WAITING_MAX, Outcome, REFUSALS_WAITING_MAX, REQUESTS_WAITING_MAX, Signals,
    Supervisor, audited, authority,
    inbox::Inbox,
    is_on_terminal,
    key_looks::KeyLooks,
    looks::FileLooks,
    moved::{self, Moved},
    notify::Notify,
    rebuild,
    server_file::{BEING_WRITTEN, ServerFile},
    upgrade::{self, Takeover, Upgrade},
};
use crate::{
    audit::{Audit, AuditError},
    clock,
    config::Host,
    control::{
        asked::{Asked, Refused},
        keys::{Ring, RingSurvey},
        server::{Control, Look},
    },
    journal::{self, Journal, JournalError, Opened, Place},
    probe::Probes,
    process::{self, Adoption, Processes, Started},
    reconcile::{
        self, State,
        effect::Remains,
        event::{Boot, Event, StartKind},
        listing::LoadpathState,
        memory::{Memory, RememberedEnd},
        program::HookId,
        record::Record,
        remembered::RememberedHook,
    },
    spec::{ChildName, Exit, RunId, Spec, Time},
    watch::{Seen, Watch, WatchConfig},
};

/// The fewest open files a server can work with: its own, a few connections, a few children.
const OPEN_FILES_MIN: u64 = 96;

/// Of all files that may be open, connections get one in so many: children need the rest.
pub(super) const FILES_PER_CONNECTION: u64 = 4;

/// How many threads wait for disks, or check signatures, at one time.
const BLOCKING_THREADS_MAX: usize = 8;

/// How long they are waited for at the end.
const BLOCKED_TIME_MAX: Duration = Duration::from_secs(1);

/// Why the server did not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// server.yml, or in `full` mode a child's file, is bad: every fault as a whole diagnostic.
    #[error("{}", .0.join("\n"))]
    BadConfig(Vec<String>),
    /// Its address is taken or cannot be had.
    #[error(
        "cannot listen on {address}: {source}{}", listen_hint(.source)
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Another server uses its state.
    #[error("{0}")]
    InUse(JournalError),
    /// Its state cannot be used.
    #[error("{0}")]
    State(JournalError),
    /// Its directories were edited while something lives that only the old ones tell of.
    #[error("{0}")]
    Moved(Moved),
    /// Its audit trail cannot be used or read.
    #[error("{0}")]
    Audit(AuditError),
    /// It may open too few files.
    #[error(
        "cannot work with {max} open files, {OPEN_FILES_MIN} are needed at least\nhint: raise the hard limit (`ulimit -Hn`, `LimitNOFILE=`)"
    )]
    TooFewFiles {
        /// How many.
        max: u64,
    },
    /// The system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl ServeError {
    /// The server's exit code: DESIGN, section 6.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadConfig(_) | Self::Moved(_) => 6,
            Self::Listen { .. } | Self::InUse(_) => 7,
            Self::State(_) | Self::Audit(_) | Self::TooFewFiles { .. } | Self::System { .. } => 1,
        }
    }

    pub(super) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// What to do about an address that cannot be had; nothing when it is not about the address.
fn listen_hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::AddrInUse => {
            "\nhint: is another server running there? see `listener_addr` and `listener_port` in server.yml"
        }
        ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => {
            "\nhint: see `listener_addr` and `listener_port` in server.yml"
        }
        _ => "",
    }
}

/// Runs a server with this configuration until it ends as asked, or with the child `exit_with`.
///
/// With `takeover`, it goes on with what another program has handed to it instead.
///
/// # Errors
///
/// What kept it from starting.
pub fn serve(
    path: &Path,
    exit_with: Option<&ChildName>,
    takeover: Option<&Takeover>,
) -> Result<End, ServeError> {
    let arrived = match takeover.map(|takeover| (takeover, takeover.read())) {
        None => None,
        Some((_, Ok(arrived))) => Some(arrived),
        Some((takeover, Err(why))) => return Err(takeover.give_back(&why)),
    };
    // Where there is a program to go back to, that one goes on.
    let refuse = |error: ServeError| match takeover {
        Some(takeover) => takeover.give_back(&error.to_string()),
        None => error,
    };
    let max = process::open_files_max();
    // Who goes on has worked with so many until now, and so would whoever it went back to.
    if max < OPEN_FILES_MIN && takeover.is_none() {
        return Err(ServeError::TooFewFiles { max });
    }
    let runtime = event_loop().map_err(refuse)?;
    let served = runtime.block_on(async {
        let signals = Signals::new().map_err(ServeError::system("listen to signals"));
        let mut signals = signals.map_err(refuse)?;
        let mut supervisor = match (takeover, arrived) {
            (Some(takeover), Some(arrived)) => {
                arrived.go_on().map_err(|why| takeover.give_back(&why))?
            }
            (_, _) => start(path, exit_with)?,
        };
        loop {
            match supervisor.run(&mut signals).await? {
                Outcome::Ended(ended) => return Ok(ended),
                Outcome::Leaving(leaving) => supervisor = leaving.go(&mut signals).await?,
            }
        }
    });
    // A thread that waits for a disk which does not answer must not keep the server from ending.
    runtime.shutdown_timeout(BLOCKED_TIME_MAX);
    served
}

fn event_loop() -> Result<tokio::runtime::Runtime, ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .on_thread_start(process::hear_no_signals)
        .build()
        .map_err(ServeError::system("make the event loop"))
}

/// What looking at a configuration found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Every fault of server.yml, of the loadpaths, of every child's file and of the keys, each as
    /// a whole diagnostic.
    pub faults: Vec<String>,
    /// What is no fault and yet may not be meant, each one line.
    pub notes: Vec<String>,
}

/// Looks at server.yml and all it leads to; nothing is started or written.
#[must_use]
pub fn check(path: &Path) -> Checked {
    let faulty = |faults| Checked {
        faults,
        notes: Vec::new(),
    };
    let server_file = match open_server_file(path) {
        Ok(server_file) => server_file,
        Err(faults) => return faulty(faults),
    };
    let config = match server_file.watch_config() {
        Ok(config) => config,
        Err(fault) => return faulty(vec![fault]),
    };
    let (_watch, listing, _seen) = Watch::start(config, BEING_WRITTEN);
    let mut checked = Checked::default();
    for loadpath in &listing.loadpaths {
        match &loadpath.state {
            LoadpathState::Ready { .. } => {}
            LoadpathState::Missing => checked.notes.push(format!(
                "loadpath `{}` does not exist yet",
                loadpath.path.display()
            )),
            LoadpathState::Unreadable(why) => checked.faults.push(why.clone()),
        }
    }
    checked.faults.extend(reconcile::faults(&listing));
    match authority::survey_keys(&server_file) {
        Ok(RingSurvey {
            keys: _,
            faults,
            notes,
        }) => {
            checked.faults.extend(faults);
            checked.notes.extend(notes);
        }
        Err(fault) => checked.faults.push(fault),
    }
    checked
}

pub(super) fn open_server_file(path: &Path) -> Result<ServerFile, Vec<String>> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    ServerFile::open(absolute, host())
}

/// How many may wait to be taken in, as far as the system lets them (`net.core.somaxconn`). Who
/// finds the line full tries again only after a second.
const WAITING_TO_CONNECT_MAX: i32 = 4_096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // It listens already, for a line of the standard library's choice; listening again makes it
    // longer.
    rustix::net::listen(&listener, WAITING_TO_CONNECT_MAX)?;
    Ok(listener)
}

fn start(path: &Path, exit_with: Option<&ChildName>) -> Result<Supervisor, ServeError> {
    let started = clock::now();
    let server_file = open_server_file(path).map_err(ServeError::BadConfig)?;
    let spec = server_file.spec();
    let address = SocketAddr::new(spec.listener_addr, spec.listener_port);
    let listener = listen(address).map_err(|source| ServeError::Listen { address, source })?;
    let (dirs, place) = (server_file.dirs(), server_file.place());
    let boot = journal::boot_identity().map_err(ServeError::system("tell this boot"))?;
    if let Some(moved) = moved::find(&dirs, place.as_deref(), &boot).map_err(refused)? {
        return Err(ServeError::Moved(moved));
    }
    let mut opened = journal::open(&dirs, spec.id.as_deref(), &boot).map_err(refused)?;
    journal::own_dir(&spec.log_dir).map_err(ServeError::State)?;
    for warning in &opened.warnings {
        tracing::warn!("{warning}");
    }
    if opened.holds_lost {
        rebuild::release_overtaken(&mut opened);
    }
    if opened.records_lost {
        rebuild::look_for_runs(&mut opened);
    }
    if opened.start == StartKind::Continued {
        process::end_stray_probes(&opened.server_id);
    }
    match start_with(&server_file, exit_with, &listener, &mut opened, started) {
        Ok(ready) => {
            let noted = Place {
                state_dir: dirs.state_dir,
                runtime_dir: dirs.runtime_dir,
                boot,
                id: opened.server_id,
            };
            for warning in journal::note_place(&noted, place.as_deref()) {
                tracing::warn!("{warning}");
            }
            Ok(ready.into_supervisor(server_file, opened.journal))
        }
        Err(error) if opened.records_lost && opened.journal.is_behind() => {
            // What lives was not looked for to the end: the next start must see the loss.
            drop(opened.journal);
            Err(error)
        }
        Err(error) => {
            // Nothing was started: the next start is still the fresh one.
            if opened.start == StartKind::Fresh
                && let Err(error) = opened.journal.append(&[Record::Closed])
            {
                tracing::warn!(%error, "the state could not be closed");
            }
            opened.journal.close();
            Err(error)
        }
    }
}

/// What a start needs besides its configuration and its state.
struct Ready {
    boot: Boot,
    processes: Processes,
    watch: Watch,
    watch_config: WatchConfig,
    seen: mpsc::Receiver<Seen>,
    audit: Audit,
    ring: Arc<Ring>,
    control: Control,
    asked: mpsc::Receiver<Asked>,
    looked_for: mpsc::Receiver<Look>,
    refused: mpsc::Receiver<Refused>,
    fixed: Fixed,
}

fn start_with(
    server_file: &ServerFile,
    exit_with: Option<&ChildName>,
    listener: &TcpListener,
    opened: &mut Opened,
    started: Time,
) -> Result<Ready, ServeError> {
    let spec = server_file.spec();
    let listen = |source| ServeError::Listen {
        address: SocketAddr::new(spec.listener_addr, spec.listener_port),
        source,
    };
    let mut processes =
        Processes::new(&opened.server_id).map_err(ServeError::system("prepare for processes"))?;
    let (ended, doubted) = adopt(&mut processes, &opened.memory, &spec.runtime_dir);
    let config = server_file
        .watch_config()
        .map_err(|fault| ServeError::BadConfig(vec![fault]))?;
    let ran = have_run(&opened.memory);
    let (watch, listing, seen) = Watch::resume(config.clone(), BEING_WRITTEN, &ran);
    rebuild::doubt_hidden(opened);
    let boot = Boot {
        start: opened.start,
        settings: server_file.settings(),
        memory: opened.memory.clone(),
        ended,
        doubted,
        hooks: adopt_hooks(&mut processes, &opened.memory),
        listing,
        seed: seed(),
        exit_with: exit_with.cloned(),
    };
    may_start(&boot)?;
    let fixed = Fixed {
        name: spec.name.clone(),
        id: opened.server_id.clone(),
        listener: listener.local_addr().map_err(listen)?,
        started,
        on_terminal: is_on_terminal(),
    };
    let audit = audited::open(&spec.state_dir, &opened.server_id)?;
    let (requests, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
    let (looks, looked_for) = mpsc::channel(LOOKS_WAITING_MAX);
    let (refusals, refused) = mpsc::channel(REFUSALS_WAITING_MAX);
    let listeners = vec![listener.try_clone().map_err(listen)?];
    let control = authority::control_config(server_file, &fixed, listeners, looks, refusals)?;
    let ring = Arc::clone(&control.ring);
    let control = Control::start(control, requests).map_err(listen)?;
    control.recheck_keys();
    tracing::info!(
        name = fixed.name, id = fixed.id, listener = %fixed.listener, mode = %spec.mode,
        pid = std::process::id(), "the server runs"
    );
    Ok(Ready {
        boot,
        processes,
        watch,
        watch_config: config,
        seen,
        audit,
        ring,
        control,
        asked,
        looked_for,
        refused,
        fixed,
    })
}

/// Whether what was found lets the server start.
fn may_start(boot: &Boot) -> Result<(), ServeError> {
    let faults = reconcile::refusal(boot);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(ServeError::BadConfig(faults)),
    }
}

impl Ready {
    fn into_supervisor(mut self, server_file: ServerFile, journal: Journal) -> Supervisor {
        let suspects = self.boot.memory.suspects.processes();
        let gone = self.processes.watch_suspects(suspects);
        let mut supervisor = Supervisor {
            core: State::new(),
            processes: self.processes,
            journal,
            watching: self.watch.capabilities().to_string(),
            watch: self.watch,
            seen: self.seen,
            audit: self.audit,
            key_looks: KeyLooks::new(Arc::clone(&self.ring)),
            looks: FileLooks::new(),
            ring: self.ring,
            control: self.control,
            asked: self.asked,
            looked_for: self.looked_for,
            refused: self.refused,
            waiting: BTreeMap::new(),
            next_request: 0,
            rereads: BTreeMap::new(),
            probes: Probes::default(),
            watch_config: self.watch_config,
            watch_again_at: None,
            server_file,
            fixed: self.fixed,
            inbox: Inbox::from(Event::Boot(Box::new(self.boot))),
            retry: None,
            ended: None,
            binary: upgrade::own_binary(),
            upgrade: Upgrade::default(),
            notify: Notify::of_process(),
        };
        supervisor.take_facts(gone);
        supervisor
    }
}

fn refused(error: JournalError) -> ServeError {
    match error {
        JournalError::InUse { .. } => ServeError::InUse(error),
        JournalError::Dir { .. }
        | JournalError::NotOurs { .. }
        | JournalError::WritableByOthers { .. }
        | JournalError::File { .. }
        | JournalError::NotAFile { .. }
        | JournalError::NewerFormat { .. }
        | JournalError::Thread(_)
        | JournalError::Random(_) => ServeError::State(error),
    }
}

/// What the children were that have run.
fn have_run(memory: &Memory) -> Vec<Arc<Spec>> {
    let children = memory.children.values();
    children
        .filter_map(|child| Some(Arc::clone(&child.last.as_ref()?.spec)))
        .collect()
}

/// A run that is no more, and how it ended.
type Ended = (ChildName, RunId, Exit);
/// A run of which nobody can tell, and why.
type Doubted = (ChildName, RunId, String);

/// Takes back what the records call live; says of which runs nothing lives, and how they ended.
fn adopt(
    processes: &mut Processes,
    memory: &Memory,
    runtime_dir: &Path,
) -> (Vec<Ended>, Vec<Doubted>) {
    // First: what was pinned there tells how those ended that are gone.
    processes.keep_pins_in(runtime_dir);
    processes.use_cgroups();
    processes.listen_in(runtime_dir);
    let (mut ended, mut doubted) = (Vec::new(), Vec::new());
    for (child, remembered) in &memory.children {
        let Some(last) = &remembered.last else {
            continue;
        };
        let Some((pid, start_ticks)) = last.process else {
            continue;
        };
        if let Some(end) = &last.end {
            // Only so that what is left of its group is found before the next run begins.
            let _gone = processes.adopt(child, last.run, pid, start_ticks);
            match end {
                // A server that died right after the record of its end has left the rest to us.
                RememberedEnd::Exited { by: Some(_), .. } => {
                    let (run, scope) = (last.run, last.spec.stop.scope);
                    processes.clear(child, Remains { run, scope });
                }
                RememberedEnd::Exited { by: None, .. } | RememberedEnd::NotStarted { .. } => {}
            }
            continue;
        }
        match processes.adopt(child, last.run, pid, start_ticks) {
            Adoption::Live => {
                processes.hear_again(child, last.run, &last.spec);
                if !last.ready {
                    processes.await_sign_again(child, last.run, &last.spec);
                }
            }
            Adoption::Gone(exit) => ended.push((child.clone(), last.run, exit)),
            Adoption::Doubt(why) => doubted.push((child.clone(), last.run, why)),
        }
    }
    processes.keep_only_pins_of(unended(memory));
    processes.forget_others_ears();
    (ended, doubted)
}

/// Takes back the hooks' programs that live.
fn adopt_hooks(processes: &mut Processes, memory: &Memory) -> Vec<(ChildName, HookId)> {
    let mut live = Vec::new();
    for (child, remembered) in &memory.children {
        let Some(RememberedHook { hook, process, .. }) = &remembered.hook else {
            continue;
        };
        let Some((pid, start_ticks, at)) = *process else {
            continue;
        };
        let process = Started { pid, start_ticks };
        if processes.adopt_hook(child, *hook, process, at.mono) {
            live.push((child.clone(), *hook));
        }
    }
    live
}

/// The processes of runs whose end is not on record.
fn unended(memory: &Memory) -> impl Iterator<Item = (i32, u64)> {
    let last = memory.children.values().filter_map(|it| it.last.as_ref());
    last.filter(|last| last.end.is_none())
        .filter_map(|last| last.process)
}

/// A seed for the jitter of delays; where the kernel has none to give yet, the clock will do.
fn seed() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        Ok(_) | Err(_) => clock::mono().0,
    }
}

/// What the configuration must know of this host and this process.
pub(super) fn host() -> Host {
    let path = |name: &str| {
        let value: OsString = env::var_os(name)?;
        Some(PathBuf::from(value)).filter(|path| path.is_absolute())
    };
    let host_name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    Host {
        root: rustix::process::geteuid().is_root(),
        host_name,
        xdg_state_home: path("XDG_STATE_HOME"),
        home: path("HOME"),
        pid1: std::process::id() == 1,
    }
}
