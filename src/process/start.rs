//! Starting a process: everything is opened and laid out first, then the child takes its steps.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
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
    Descriptors, Owner, Parent, Phase, Process, Processes, Standard, Started, identity,
    inherit::FIRST_OTHER,
    output::{self, OutputError, Outputs},
    program::{Program, ProgramError},
    spawn::{SpawnError, Spawned},
    step::{Exec, Pointers, Step, Stream},
    strays,
};
use crate::spec::{ChildName, RunId, Spec};

/// How many steps a start has at most.
const STEPS: usize = 14;

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
    /// One program a job.
    #[error("job {0} runs a hook already")]
    JobHasHook(u64),
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
    pub(super) tag: String,
}

impl Processes {
    /// Starts a run in a process group of its own.
    ///
    /// Blocks until the program was executed: well below a millisecond, a few when its file is
    /// open for writing or when killed processes of the run before are still going.
    ///
    /// # Errors
    /// A sentence for a person. Nothing runs then, and no output was truncated.
    pub fn start(&mut self, child: &ChildName, run: RunId, spec: &Spec) -> Result<Started, String> {
        self.try_start(child, run, spec)
            .map_err(|error| format!("cannot start `{child}`: {error}"))
    }

    fn try_start(
        &mut self,
        child: &ChildName,
        run: RunId,
        spec: &Spec,
    ) -> Result<Started, StartError> {
        if let Some(live) = self.live_run(child) {
            return Err(StartError::StillLives(live));
        }
        self.await_killed(child);
        let launch = Launch {
            argv: &spec.command,
            workdir: &spec.workdir,
            outputs: Outputs::open(&spec.stdout, &spec.stderr)?,
            tag: format!("{}={}", identity::RUN_VARIABLE, self.run_tag(child, run)),
        };
        self.launch(&launch, Owner::Run(child.clone(), run))
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
        let Spawned { pid, pidfd } = self.execute(launch)?;
        let watched = identity::stat(pid).and_then(|stat| {
            self.exits.watch(&pidfd, token)?;
            Ok(stat.start_ticks)
        });
        let start_ticks = match watched {
            Ok(start_ticks) => start_ticks,
            Err(error) => {
                end_at_once(&pidfd);
                return Err(StartError::NotWatched(error));
            }
        };
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
        let tag = c_string(&launch.tag, launch.argv)?;
        let workdir =
            CString::new(launch.workdir.as_os_str().as_bytes()).map_err(|_| nul(launch.argv))?;
        let path = self.inheritance.path.as_deref();
        let program = Program::new(name(launch.argv), launch.workdir, path)?;
        if launch.outputs.truncated().next().is_some() {
            // A log is emptied only for a run that is all but certain to begin.
            check_workdir(launch.workdir)?;
            program.check()?;
        }
        let exec = Exec {
            candidates: &program.candidates,
            arguments: Pointers::new(strings.iter().map(CString::as_c_str)),
            // Ours first, so that whoever looks for it need not read much.
            environment: Pointers::new(
                std::iter::once(&tag)
                    .chain(&self.inheritance.environment)
                    .map(CString::as_c_str),
            ),
        };
        let slots = &mut self.standard.slots;
        let filled = launch
            .outputs
            .files()
            .zip(slots.iter_mut())
            .try_for_each(|((file, _), slot)| dup3(file, slot, DupFlags::CLOEXEC));
        let result = match filled {
            Ok(()) => {
                let mut steps = self.standard.steps(self.descriptors, &launch.outputs);
                steps.push(Step::FileLimit(self.inheritance.file_limit));
                steps.push(Step::WorkDir(&workdir));
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
    /// The steps up to where the child has its three descriptors and nothing else of ours.
    fn steps(&self, descriptors: Descriptors, outputs: &Outputs) -> Vec<Step<'_>> {
        let mut steps = Vec::with_capacity(STEPS);
        let own = std::iter::once(&self.null).chain(&self.slots);
        let last = own.map(AsRawFd::as_raw_fd).max().unwrap_or(FIRST_OTHER);
        match descriptors {
            Descriptors::Few => steps.push(Step::ForgetAbove(last)),
            Descriptors::All => {}
        }
        steps.push(Step::OwnGroup);
        steps.push(Step::DefaultSignals);
        steps.push(Step::Stdio(self.null.as_fd(), Stream::Input));
        for ((_, stream), slot) in outputs.files().zip(&self.slots) {
            steps.push(Step::Stdio(slot.as_fd(), stream));
        }
        match descriptors {
            Descriptors::Few => steps.push(Step::CloseRest),
            Descriptors::All => {}
        }
        steps
    }

    /// Lets go of the files: whoever asks whether a log is in use hears of its child alone.
    fn empty_slots(&mut self) {
        for slot in &mut self.slots {
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
