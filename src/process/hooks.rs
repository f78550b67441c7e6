//! Hooks' programs: run to their end, within their time, and answered for once.
//!
//! One that outlived its server is taken back by pid and start time, as a run is, and has what is
//! left of its time. How it ended is told exactly or as unknown, never guessed.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};

use super::{
    Birth, Fact, Owner, Parent, Phase, Process, Processes, Started,
    adopt::{Found, find},
    identity,
    output::Outputs,
    start::{Launch, Lifetime, StartError},
};
use crate::{
    clock,
    reconcile::{
        event::HookFailure,
        program::{HookId, HookProgram},
    },
    spec::{ChildName, Exit, Mono, Spec},
};

/// How long a hook's program may run, in seconds; then its group is killed and it has failed.
pub const HOOK_SECONDS_MAX: u64 = 60;

/// How long a killed one may take to be gone, in seconds, before its failure is told without it.
const HOOK_END_SECONDS_MAX: u64 = 10;

/// Whose program, and which.
pub(super) type HookKey = (ChildName, HookId);

/// A hook's program that is waited for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hook {
    /// When something is to be done about it.
    deadline: Mono,
    end: End,
    /// Its process, which could not be looked at: it is looked for again when its time is up.
    #[serde(default)]
    unseen: Option<Unseen>,
}

/// The pid and the start time, in clock ticks since boot, of a process without a pidfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Unseen {
    pid: i32,
    start_ticks: u64,
}

/// Why a hook ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    /// By itself.
    Own,
    /// Its time was up.
    TimedOut,
    /// Nobody waits for it any more.
    Killed,
    /// It was killed, does not end, and that was told.
    Stuck,
}

impl Processes {
    /// Runs a program to its end in the working directory and environment of a child; what it
    /// writes is added to the child's outputs. It writes itself down before it becomes its program,
    /// as `birth` says. [`Fact::HookFinished`] follows: it failed when its status is not 0, when a
    /// signal ended it, and when it takes longer than [`HOOK_SECONDS_MAX`]. What it leaves behind
    /// in its group is killed.
    ///
    /// # Errors
    /// Why it was not started, for a person who knows of which hook; no fact follows.
    pub fn run_hook(
        &mut self,
        child: &ChildName,
        hook: HookId,
        program: &HookProgram,
        spec: &Spec,
        birth: Option<&Birth<'_>>,
    ) -> Result<Started, String> {
        let key = (child.clone(), hook);
        let started = self
            .start_hook(&key, program, spec, birth)
            .map_err(|error| error.to_string())?;
        let hook = Hook {
            deadline: clock::mono() + self.hook_time,
            end: End::Own,
            unseen: None,
        };
        self.hooks.insert(key, hook);
        Ok(started)
    }

    fn start_hook(
        &mut self,
        key: &HookKey,
        program: &HookProgram,
        spec: &Spec,
        birth: Option<&Birth<'_>>,
    ) -> Result<Started, StartError> {
        let (child, hook) = key;
        if self.hooks.keys().any(|(other, _)| other == child) {
            return Err(StartError::HookStillLives);
        }
        let launch = Launch {
            argv: &program.argv,
            workdir: &program.workdir,
            outputs: Outputs::open(&spec.stdout, &spec.stderr)?.appending(),
            // Not the variable of a run: nobody may take a hook for one.
            mark: self.hook_mark(child),
            birth,
            cgroup: None,
            lifetime: Lifetime::Own,
            more: Vec::new(),
            pid_variable: None,
            shown: None,
        };
        self.launch(&launch, Owner::Hook(child.clone(), *hook))
    }

    /// Takes back a hook's program that an earlier server started at `began`, if it is there: its
    /// end is told as that of any other. What is left of its group is killed if it is not.
    pub fn adopt_hook(
        &mut self,
        child: &ChildName,
        hook: HookId,
        process: Started,
        began: Mono,
    ) -> bool {
        let key = (child.clone(), hook);
        let Started { pid, start_ticks } = process;
        let unseen = match self.see_hook(&key, pid, start_ticks) {
            Ok(Sight::Seen) => None,
            Ok(Sight::Gone) => return false,
            Err(error) => {
                tracing::error!(%child, pid, %error, "a hook cannot be looked at");
                Some(Unseen { pid, start_ticks })
            }
        };
        let most = clock::mono() + self.hook_time;
        let hook = Hook {
            deadline: most.min(began + self.hook_time),
            end: End::Own,
            unseen,
        };
        self.hooks.insert(key, hook);
        true
    }

    /// Looks for a recorded process and watches it.
    fn see_hook(&mut self, key: &HookKey, pid: i32, start_ticks: u64) -> std::io::Result<Sight> {
        match find(pid, start_ticks)? {
            Found::Process(pidfd) => self.watch_hook(key, pid, start_ticks, pidfd)?,
            // Its number was given away, so its group is empty.
            Found::Another => return Ok(Sight::Gone),
            Found::Nobody => {
                identity::kill_members(pid, &self.hook_mark(&key.0));
                return Ok(Sight::Gone);
            }
        }
        Ok(Sight::Seen)
    }

    /// Also of one that has ended: its end is told at once then, as exactly as it can be known.
    fn watch_hook(
        &mut self,
        (child, hook): &HookKey,
        pid: i32,
        start_ticks: u64,
        pidfd: OwnedFd,
    ) -> std::io::Result<()> {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let parent = match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(_) => Parent::Us,
            Err(_) => Parent::Other,
        };
        let token = self.next_token();
        self.exits.watch(&pidfd, token)?;
        let process = Process {
            pid,
            start_ticks,
            pidfd,
            token,
            parent,
            phase: Phase::Live,
        };
        self.enter(Owner::Hook(child.clone(), *hook), process);
        Ok(())
    }

    /// Kills a hook's program with its group. [`Fact::HookFinished`] still follows, as a failure.
    pub fn kill_hook(&mut self, child: &ChildName, hook: HookId) {
        self.end_hook(&(child.clone(), hook), End::Killed);
    }

    fn end_hook(&mut self, key: &HookKey, end: End) {
        let Some(hook) = self.hooks.get_mut(key) else {
            tracing::debug!(child = %key.0, hook = key.1.0, "no such hook");
            return;
        };
        if hook.end != End::Own {
            return;
        }
        hook.end = end;
        if hook.unseen.is_some() {
            // Looked for first, at once.
            hook.deadline = clock::mono();
            return;
        }
        self.strike(key);
    }

    fn strike(&mut self, key: &HookKey) {
        if let Some(hook) = self.hooks.get_mut(key) {
            hook.deadline = clock::mono() + Duration::from_secs(HOOK_END_SECONDS_MAX);
        }
        let owner = Owner::Hook(key.0.clone(), key.1);
        if let Some(process) = self.processes.get(&owner)
            && let Err(error) = self.send(process, libc::SIGKILL)
        {
            tracing::warn!(child = %key.0, %error, "hook not killed");
        }
    }

    /// A hook's program has ended and was taken out of the table.
    pub(super) fn finish_hook(
        &mut self,
        key: &HookKey,
        process: Process,
        exit: Exit,
    ) -> Option<Fact> {
        self.kill_rest(&process, &self.hook_mark(&key.0));
        let parent = process.parent;
        drop(self.release(process));
        let hook = self.hooks.remove(key)?;
        let result = match (hook.end, exit, parent) {
            (End::Own, Exit::Code(0), _) => Ok(()),
            (End::Own, Exit::Unknown, Parent::Other) => Err(HookFailure::Unknown),
            (End::Own, Exit::Code(_) | Exit::Signal(_) | Exit::Unknown, _) => {
                Err(HookFailure::Failed(exit.to_string()))
            }
            (End::TimedOut | End::Killed | End::Stuck, ..) => {
                Err(HookFailure::Failed(hook.why(self.hook_time)))
            }
        };
        Some(told(key, result))
    }

    /// Acts on hooks whose time is up.
    pub(super) fn expire_hooks(&mut self) -> Vec<Fact> {
        if self.hooks.is_empty() {
            return Vec::new();
        }
        let now = clock::mono();
        let due: Vec<HookKey> = self
            .hooks
            .iter()
            .filter(|(_, hook)| hook.due().is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        due.iter().filter_map(|key| self.expire_hook(key)).collect()
    }

    fn expire_hook(&mut self, key: &HookKey) -> Option<Fact> {
        if let Some(unseen) = self.hooks.get(key)?.unseen {
            return self.look_for_hook(key, unseen);
        }
        match self.hooks.get(key)?.end {
            End::Own => {
                self.end_hook(key, End::TimedOut);
                None
            }
            End::TimedOut | End::Killed => {
                let why = self.hooks.get(key)?.why(self.hook_time);
                self.tell_stuck(key, format!("{why}, and is not gone yet"))
            }
            End::Stuck => None,
        }
    }

    /// Looks again for one that could not be looked at, to kill it.
    fn look_for_hook(&mut self, key: &HookKey, unseen: Unseen) -> Option<Fact> {
        let Unseen { pid, start_ticks } = unseen;
        match self.see_hook(key, pid, start_ticks) {
            Ok(Sight::Seen) => {
                let hook = self.hooks.get_mut(key)?;
                hook.unseen = None;
                if hook.end != End::Killed {
                    hook.end = End::TimedOut;
                }
                self.strike(key);
                None
            }
            Ok(Sight::Gone) => {
                self.hooks.remove(key);
                Some(told(key, Err(HookFailure::Failed(NOT_KNOWN.to_owned()))))
            }
            Err(error) => {
                let told_before = self.hooks.get(key)?.end == End::Stuck;
                let why = format!("process {pid} of it cannot be looked at: {error}");
                let fact = self.tell_stuck(key, why);
                fact.filter(|_| !told_before)
            }
        }
    }

    /// Whoever waits is told; it is reaped when it can be.
    fn tell_stuck(&mut self, key: &HookKey, why: String) -> Option<Fact> {
        let hook = self.hooks.get_mut(key)?;
        hook.end = End::Stuck;
        hook.deadline = clock::mono() + Duration::from_secs(HOOK_END_SECONDS_MAX);
        Some(told(key, Err(HookFailure::NotGone(why))))
    }

    /// How long until something is to be done about a hook; `None` when there is none.
    pub(super) fn until_hook(&self) -> Option<Duration> {
        let deadline = self.hooks.values().filter_map(Hook::due).min()?;
        Some(deadline - clock::mono())
    }
}

/// How a process ended that nobody could wait for.
pub(super) const NOT_KNOWN: &str = "how it ended is not known";

/// Whether a recorded process is there.
enum Sight {
    Seen,
    Gone,
}

fn told((child, hook): &HookKey, result: Result<(), HookFailure>) -> Fact {
    Fact::HookFinished {
        child: child.clone(),
        hook: *hook,
        result,
    }
}

impl Hook {
    /// When something is to be done about it, if anything is.
    fn due(&self) -> Option<Mono> {
        match (self.end, self.unseen) {
            (End::Stuck, None) => None,
            (End::Own | End::TimedOut | End::Killed | End::Stuck, _) => Some(self.deadline),
        }
    }

    fn why(&self, time: Duration) -> String {
        match self.end {
            End::Own => "it has not ended".to_owned(),
            End::TimedOut => format!(
                "it took longer than {} and was killed",
                humantime::format_duration(time)
            ),
            End::Killed | End::Stuck => "it was killed".to_owned(),
        }
    }
}

#[cfg(test)]
impl Hook {
    /// As if its time had passed.
    pub(super) fn expire(&mut self) {
        self.deadline = Mono(0);
    }
}
