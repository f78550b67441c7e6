//! Starting a process: everything is opened and laid out first, then the child takes its steps.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::{DupFlags, Errno, dup3},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use super::{
    Descriptors, Owner, Parent, Phase, Process, Processes, Standard, Started,
    birth::{self, Birth, Entry},
    inherit::FIRST_OTHER,
    notify::{self, NotHeard},
    output::{self, OutputError, Outputs},
    program::{Program, ProgramError},
    signs,
    spawn::{SpawnError, Spawned},
    step::{Exec, PidVariable, Pointers, Step, Stream},
    strays,
};
use crate::spec::{ChildName, RunId, Spec};

/// How many steps a start has at most.
const STEPS: usize = 16;

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// I1.
    #[error("run {0} of it still lives")]
    StillLives(RunId),
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// An output.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The working directory is not there.
    #[error("working directory `{}` does not exist; hint: mkdir -p {}", .0.display(), .0.display())]
    NoWorkDir(PathBuf),
    /// The working directory is a file.
    #[error("working directory `{}` is not a directory", .0.display())]
    WorkDirIsFile(PathBuf),
    /// The working directory cannot be entered.
    #[error("working directory `{}` cannot be entered: {error}", .path.display())]
    WorkDir {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Too many processes.
    #[error(
        "no new process: {0}; hint: a limit of processes is reached (ulimit -u, TasksMax, pids.max)"
    )]
    TooManyProcesses(io::Error),
    /// Too many open files.
    #[error("no new process: {0}; hint: raise the server's limit of open files (ulimit -n)")]
    TooManyFiles(io::Error),
    /// No process for another reason.
    #[error("no new process: {0}")]
    NoProcess(io::Error),
    /// The child could not be prepared.
    #[error("preparing the process failed: {what}: {error}")]
    Prepare {
        /// What it was at.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// It did not write itself down, and so was not executed.
    #[error("its start cannot be recorded: {0}")]
    NotEntered(io::Error),
    /// It has something to say.
    #[error(transparent)]
    NotHeard(#[from] NotHeard),
    /// One program a child.
    #[error("another hook of it still lives")]
    HookStillLives,
    /// It was started, could not be watched, and was killed.
    #[error("the process was started but cannot be watched, and was killed: {0}")]
    NotWatched(io::Error),
}

/// What is to be executed.
pub(super) struct Launch<'a> {
    pub(super) argv: &'a [String],
    pub(super) workdir: &'a Path,
    pub(super) outputs: Outputs,
    /// `NAME=value`: the variable that says whose process this is.
    pub(super) mark: String,
    /// `NAME=value`: further ones.
    pub(super) more: Vec<String>,
    /// A descriptor that it is to have besides the three, and under which number.
    pub(super) shown: Option<(OwnedFd, RawFd)>,
    /// A variable that is to name its own number.
    pub(super) pid_variable: Option<&'static str>,
    /// How it writes itself down; `None`: it does not.
    pub(super) birth: Option<&'a Birth<'a>>,
    /// The list of processes of the cgroup that it joins.
    pub(super) cgroup: Option<OwnedFd>,
    /// What it outlives.
    pub(super) lifetime: Lifetime,
}

/// What a process outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// The server too.
    Own,
    /// It is killed when the server dies.
    Ours,
}

/// Why nothing was started: a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// It could not be written down.
    #[error("{0}")]
    NotRecorded(String),
    /// The program, its directory, its outputs or a process are not to be had.
    #[error("{0}")]
    Refused(String),
}

impl Processes {
    /// Starts a run in a process group of its own. It writes itself down before it becomes its
    /// program, as `birth` says.
    ///
    /// Blocks until the program was executed and is pinned: well below a millisecond, a few when
    /// its file is open for writing, when killed processes of the run before are still going or
    /// when much is being unpinned.
    ///
    /// # Errors
    /// [`NotStarted`]. Nothing runs then, and no output was truncated.
    pub fn start(
        &mut self,
        child: &ChildName,
        run: RunId,
        spec: &Spec,
        birth: Option<&Birth<'_>>,
    ) -> Result<Started, NotStarted> {
        self.try_start(child, run, spec, birth).map_err(|error| {
            let why = format!("cannot start `{child}`: {error}");
            match error {
                StartError::NotEntered(_) => NotStarted::NotRecorded(why),
                StartError::StillLives(_)
                | StartError::Program(_)
                | StartError::Output(_)
                | StartError::NoWorkDir(_)
                | StartError::WorkDirIsFile(_)
                | StartError::WorkDir { .. }
                | StartError::TooManyProcesses(_)
                | StartError::TooManyFiles(_)
                | StartError::NoProcess(_)
                | StartError::Prepare { .. }
                | StartError::NotHeard(_)
                | StartError::HookStillLives
                | StartError::NotWatched(_) => NotStarted::Refused(why),
            }
        })
    }

    fn try_start(
        &mut self,
        child: &ChildName,
        run: RunId,
        spec: &Spec,
        birth: Option<&Birth<'_>>,
    ) -> Result<Started, StartError> {
        if let Some(live) = self.live_run(child) {
            return Err(StartError::StillLives(live));
        }
        self.await_killed(child);
        let outputs = Outputs::open(&spec.stdout, &spec.stderr)?;
        let shown = self.await_sign(child, run, spec, &outputs)?;
        let more = self.hear(child, run, spec).inspect_err(|_| {
            self.signs.close(child, run);
        })?;
        let launch = Launch {
            more,
            shown,
            pid_variable: notify::watchdog(spec).map(|_| notify::WATCHDOG_PID_VARIABLE),
            argv: &spec.command,
            workdir: &spec.workdir,
            outputs,
            cgroup: self.cgroups.make(child, run),
            lifetime: Lifetime::Own,
            mark: self.run_mark(child, run),
            birth,
        };
        let started = self.launch(&launch, Owner::Run(child.clone(), run));
        match started {
            Ok(started) => {
                self.cgroups.confirm(child, run, started.pid);
                self.pin(child, run, started);
            }
            Err(_) => {
                self.ears.close(child, run);
                self.signs.close(child, run);
                self.prune_cgroups(child);
            }
        }
        started
    }

    /// Whether a spec could be started now, as far as can be told without starting it. Makes
    /// nothing, truncates nothing.
    ///
    /// # Errors
    /// The sentence that [`Processes::start`] would say.
    pub fn preflight(&self, spec: &Spec) -> Result<(), String> {
        self.try_preflight(spec).map_err(|error| {
            let name = spec.path.file_stem().unwrap_or_default();
            format!("cannot start `{}`: {error}", name.to_string_lossy())
        })
    }

    fn try_preflight(&self, spec: &Spec) -> Result<(), StartError> {
        output::check(&spec.stdout)?;
        output::check(&spec.stderr)?;
        self.ears.check(spec)?;
        signs::check(spec)?;
        check_workdir(&spec.workdir)?;
        for argument in &spec.command {
            c_string(argument, &spec.command)?;
        }
        let path = self.inheritance.path.as_deref();
        Program::new(name(&spec.command), &spec.workdir, path)?.check()?;
        Ok(())
    }

    /// Starts what was laid out, watches it and enters it.
    pub(super) fn launch(
        &mut self,
        launch: &Launch<'_>,
        owner: Owner,
    ) -> Result<Started, StartError> {
        let token = self.next_token();
        // Locked until the new pid is in it: nobody may take the child for a stray before.
        let mut started = strays::started();
        let Spawned {
            pid,
            pidfd,
            start_ticks,
        } = self.execute(launch)?;
        if let Err(error) = self.exits.watch(&pidfd, token) {
            end_at_once(&pidfd);
            return Err(StartError::NotWatched(error));
        }
        started.insert(pid);
        drop(started);
        let process = Process {
            pid,
            start_ticks,
            pidfd,
            token,
            parent: Parent::Us,
            phase: Phase::Live,
        };
        self.enter(owner, process);
        Ok(Started { pid, start_ticks })
    }

    fn execute(&mut self, launch: &Launch<'_>) -> Result<Spawned, StartError> {
        let strings: Vec<CString> = launch
            .argv
            .iter()
            .map(|argument| c_string(argument, launch.argv))
            .collect::<Result<_, _>>()?;
        let own: Vec<CString> = std::iter::once(&launch.mark)
            .chain(&launch.more)
            .map(|variable| c_string(variable, launch.argv))
            .collect::<Result<_, _>>()?;
        let workdir =
            CString::new(launch.workdir.as_os_str().as_bytes()).map_err(|_| nul(launch.argv))?;
        let path = self.inheritance.path.as_deref();
        let program = Program::new(name(launch.argv), launch.workdir, path)?;
        if launch.outputs.truncated().next().is_some() {
            // A log is emptied only for a run that is all but certain to begin.
            check_workdir(launch.workdir)?;
            program.check()?;
        }
        let number = launch.pid_variable.map(PidVariable::new);
        let exec = Exec {
            candidates: &program.candidates,
            arguments: Pointers::new(strings.iter().map(CString::as_c_str)),
            // Ours first, so that whoever looks for it need not read much.
            environment: Pointers::with(
                own.iter()
                    .chain(&self.inheritance.environment)
                    .map(CString::as_c_str),
                number.as_ref(),
            ),
        };
        let result = match self.standard.fill_slots(launch) {
            Ok(()) => {
                let mut steps = self.standard.steps(self.descriptors, launch);
                steps.push(Step::FileLimit(self.inheritance.file_limit));
                steps.push(Step::WorkDir(&workdir));
                steps.extend(number.as_ref().map(Step::Number));
                steps.extend(self.standard.entry(launch));
                // A log is emptied for a run that is on record.
                steps.extend(launch.outputs.truncated().map(Step::Truncate));
                steps.push(Step::ClearMask);
                steps.push(Step::Exec(exec));
                self.spawner
                    .spawn(&steps)
                    .map_err(|error| explain(error, &steps, &program, launch.workdir))
            }
            Err(error) => Err(StartError::TooManyFiles(error.into())),
        };
        self.standard.empty_slots();
        result
    }
}

impl Standard {
    /// Puts what a start needs where it is copied from.
    fn fill_slots(&mut self, launch: &Launch<'_>) -> Result<(), Errno> {
        for ((file, _), slot) in launch.outputs.files().zip(&mut self.slots) {
            dup3(file, slot, DupFlags::CLOEXEC)?;
        }
        if let Some(birth) = launch.birth {
            dup3(birth.file, &mut self.record, DupFlags::CLOEXEC)?;
            dup3(birth.lock, &mut self.lock, DupFlags::CLOEXEC)?;
        }
        if let Some((shown, _)) = &launch.shown {
            dup3(shown, &mut self.shown, DupFlags::CLOEXEC)?;
        }
        if let Some(cgroup) = &launch.cgroup {
            dup3(cgroup, &mut self.cgroup, DupFlags::CLOEXEC)?;
        }
        Ok(())
    }

    /// How the child writes itself down.
    fn entry<'a>(&self, launch: &Launch<'a>) -> Option<Step<'a>> {
        let birth = launch.birth?;
        let file = self.record.as_raw_fd();
        Some(Step::Enter(Entry { file, birth }))
    }

    /// The steps up to where the child has its three descriptors and, until exec, what it needs to
    /// write itself down, and knows when it was started.
    fn steps(&self, descriptors: Descriptors, launch: &Launch<'_>) -> Vec<Step<'_>> {
        let outputs = &launch.outputs;
        let mut steps = Vec::with_capacity(STEPS);
        let own = [
            &self.null,
            &self.record,
            &self.lock,
            &self.cgroup,
            &self.shown,
        ];
        let own = own.into_iter().chain(&self.slots);
        let last = own.map(AsRawFd::as_raw_fd).max().unwrap_or(FIRST_OTHER);
        match descriptors {
            Descriptors::Few => steps.push(Step::ForgetAbove(last)),
            Descriptors::All => {}
        }
        steps.extend(
            launch
                .cgroup
                .as_ref()
                .map(|_| Step::Join(self.cgroup.as_fd())),
        );
        match launch.lifetime {
            Lifetime::Own => {}
            Lifetime::Ours => steps.push(Step::DieWith(std::process::id().cast_signed())),
        }
        steps.push(Step::OwnGroup);
        steps.push(Step::DefaultSignals);
        steps.push(Step::Stdio(self.null.as_fd(), Stream::Input));
        for ((_, stream), slot) in outputs.files().zip(&self.slots) {
            steps.push(Step::Stdio(slot.as_fd(), stream));
        }
        match descriptors {
            Descriptors::Few => {
                let written = [self.record.as_fd(), self.lock.as_fd()];
                let written = launch.birth.map(|_| written).into_iter().flatten();
                let shown = launch.shown.as_ref().map(|_| self.shown.as_fd());
                let kept: Vec<_> = written.chain(shown).collect();
                steps.push(Step::CloseRest(birth::all_but(&kept)));
            }
            Descriptors::All => {}
        }
        // Before the limit of open files, which may be as low as three.
        if let Some((_, number)) = &launch.shown {
            steps.push(Step::Descriptor(self.shown.as_fd(), *number));
        }
        steps.push(Step::Identify);
        steps
    }

    /// Lets go of the files: whoever asks whether a log is in use hears of its child alone.
    fn empty_slots(&mut self) {
        let birth = [
            &mut self.record,
            &mut self.lock,
            &mut self.cgroup,
            &mut self.shown,
        ];
        for slot in self.slots.iter_mut().chain(birth) {
            if let Err(error) = dup3(&self.null, slot, DupFlags::CLOEXEC) {
                tracing::warn!(%error, "an output stays open");
            }
        }
    }
}

/// Kills and reaps a child that nobody has heard of yet.
fn end_at_once(pidfd: &OwnedFd) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let end = WaitIdOptions::EXITED;
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), end) {}
}

fn explain(
    error: SpawnError,
    steps: &[Step<'_>],
    program: &Program<'_>,
    workdir: &Path,
) -> StartError {
    match error {
        SpawnError::Clone(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => StartError::TooManyProcesses(error),
            Some(libc::EMFILE | libc::ENFILE) => StartError::TooManyFiles(error),
            Some(_) | None => StartError::NoProcess(error),
        },
        SpawnError::Step {
            step,
            error,
            candidate,
        } => match steps.get(step) {
            Some(Step::Exec(_)) => program.explain(error, candidate).into(),
            Some(Step::WorkDir(_)) => no_workdir(workdir, error),
            Some(Step::Enter(_)) => StartError::NotEntered(error),
            Some(step) => StartError::Prepare {
                what: step.what(),
                error,
            },
            None => StartError::NoProcess(error),
        },
    }
}

fn check_workdir(workdir: &Path) -> Result<(), StartError> {
    let metadata = workdir
        .metadata()
        .map_err(|error| no_workdir(workdir, error))?;
    if !metadata.is_dir() {
        return Err(StartError::WorkDirIsFile(workdir.to_owned()));
    }
    accessat(CWD, workdir, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| no_workdir(workdir, error.into()))
}

fn no_workdir(workdir: &Path, error: io::Error) -> StartError {
    let path = workdir.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => StartError::NoWorkDir(path),
        io::ErrorKind::NotADirectory => StartError::WorkDirIsFile(path),
        _ => StartError::WorkDir { path, error },
    }
}

/// The first word; a spec has one.
fn name(argv: &[String]) -> &str {
    argv.first().map_or("", String::as_str)
}

fn c_string(text: &str, argv: &[String]) -> Result<CString, ProgramError> {
    CString::new(text).map_err(|_| nul(argv))
}

fn nul(argv: &[String]) -> ProgramError {
    ProgramError::Nul {
        program: name(argv).escape_debug().to_string(),
    }
}
