//! Hooks' programs: run to their end, within their time, and answered for once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Fact, Owner, Process, Processes, identity,
    output::Outputs,
    start::{Launch, StartError},
};
use crate::{
    clock,
    reconcile::event::JobId,
    spec::{ChildName, Exit, Mono, Spec},
};

/// How long a hook's program may run, in seconds; then its group is killed and it has failed.
pub const HOOK_SECONDS_MAX: u64 = 60;

/// How long a killed one may take to be gone, in seconds, before its failure is told without it.
const HOOK_END_SECONDS_MAX: u64 = 10;

/// A hook's program that is waited for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hook {
    /// When something is to be done about it.
    deadline: Mono,
    end: End,
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
}

impl Processes {
    /// Runs a program to its end in the working directory and environment of a child; what it
    /// writes is added to the child's outputs. [`Fact::HookFinished`] follows: it failed when its
    /// status is not 0, when a signal ended it, and when it takes longer than
    /// [`HOOK_SECONDS_MAX`]. What it leaves behind in its group is killed.
    ///
    /// # Errors
    /// Why it was not started, for a person who knows of which hook; no fact follows.
    pub fn run_hook(
        &mut self,
        job: JobId,
        child: &ChildName,
        argv: &[String],
        spec: &Spec,
    ) -> Result<(), String> {
        self.start_hook(job, child, argv, spec)
            .map_err(|error| error.to_string())?;
        let hook = Hook {
            deadline: clock::mono() + self.hook_time,
            end: End::Own,
        };
        self.hooks.insert(job, hook);
        Ok(())
    }

    fn start_hook(
        &mut self,
        job: JobId,
        child: &ChildName,
        argv: &[String],
        spec: &Spec,
    ) -> Result<(), StartError> {
        let owner = Owner::Hook(job);
        if self.processes.contains_key(&owner) {
            return Err(StartError::JobHasHook(job.0));
        }
        let launch = Launch {
            argv,
            workdir: &spec.workdir,
            outputs: Outputs::open(&spec.stdout, &spec.stderr)?.appending(),
            // Not the variable of a run: nobody may take a hook for one.
            tag: format!("{}={}", identity::HOOK_VARIABLE, self.hook_tag(child)),
            birth: None,
        };
        self.launch(&launch, owner).map(drop)
    }

    /// Kills a hook's program with its group. [`Fact::HookFinished`] still follows, as a failure.
    pub fn kill_hook(&mut self, job: JobId) {
        self.end_hook(job, End::Killed);
    }

    fn end_hook(&mut self, job: JobId, end: End) {
        let Some(hook) = self.hooks.get_mut(&job) else {
            tracing::debug!(job = job.0, "no such hook");
            return;
        };
        if hook.end != End::Own {
            return;
        }
        hook.end = end;
        hook.deadline = clock::mono() + Duration::from_secs(HOOK_END_SECONDS_MAX);
        if let Some(process) = self.processes.get(&Owner::Hook(job))
            && let Err(error) = self.send(process, libc::SIGKILL)
        {
            tracing::warn!(job = job.0, %error, "hook not killed");
        }
    }

    /// A hook's program has ended and was taken out of the table.
    pub(super) fn finish_hook(&mut self, job: JobId, process: Process, exit: Exit) -> Option<Fact> {
        // No run's tag, so that a search by environment finds nobody; then the group is what
        // our unreaped child stands for, and that suffices.
        self.kill_rest(&process, "");
        drop(self.release(process));
        let hook = self.hooks.remove(&job)?;
        let result = match (hook.end, exit) {
            (End::Own, Exit::Code(0)) => Ok(()),
            (End::Own, Exit::Code(_) | Exit::Signal(_) | Exit::Unknown) => Err(exit.to_string()),
            (End::TimedOut | End::Killed, _) => Err(hook.why(self.hook_time)),
        };
        Some(Fact::HookFinished { job, result })
    }

    /// Acts on hooks whose time is up.
    pub(super) fn expire_hooks(&mut self) -> Vec<Fact> {
        if self.hooks.is_empty() {
            return Vec::new();
        }
        let now = clock::mono();
        let due: Vec<JobId> = self
            .hooks
            .iter()
            .filter(|(_, hook)| hook.deadline <= now)
            .map(|(job, _)| *job)
            .collect();
        let mut facts = Vec::new();
        for job in due {
            match self.hooks.get(&job).map(|hook| hook.end) {
                Some(End::Own) => self.end_hook(job, End::TimedOut),
                // It cannot die (yet): whoever waits is told, and it is reaped when it can.
                Some(End::TimedOut | End::Killed) => {
                    if let Some(hook) = self.hooks.remove(&job) {
                        let result =
                            Err(format!("{}, and is not gone yet", hook.why(self.hook_time)));
                        facts.push(Fact::HookFinished { job, result });
                    }
                }
                None => {}
            }
        }
        facts
    }

    /// How long until something is to be done about a hook; `None` when there is none.
    pub(super) fn until_hook(&self) -> Option<Duration> {
        let deadline = self.hooks.values().map(|hook| hook.deadline).min()?;
        Some(deadline - clock::mono())
    }

    fn hook_tag(&self, child: &ChildName) -> String {
        format!("{}/{child}", self.server_id)
    }
}

impl Hook {
    fn why(&self, time: Duration) -> String {
        match self.end {
            End::Own => "it has not ended".to_owned(),
            End::TimedOut => format!(
                "it took longer than {} and was killed",
                humantime::format_duration(time)
            ),
            End::Killed => "it was killed".to_owned(),
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
