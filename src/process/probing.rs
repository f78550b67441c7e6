//! Programs that see whether a run can do its work: run to their end within their time, answered for
//! once, and never left behind.
//!
//! What they write goes nowhere, and nothing of them is recorded: they end with the server's thread
//! that started them, what they have started is found by its mark and ended by the next server, and
//! that one asks again.
//!
//! Source: PR_SET_PDEATHSIG(2const).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Fact, Owner, Process, Processes, identity,
    output::Outputs,
    start::{Launch, Lifetime, StartError},
};
use crate::{
    clock,
    reconcile::event::JobId,
    spec::{ChildName, Exit, Mono, OpenMode, Sink, Spec},
};

/// Tells a probe, and the command of a stop, the main process of the run that it is about.
const MAIN_VARIABLE: &str = "MAINPID";

/// Where nothing is kept.
const NULL: &str = "/dev/null";

/// A probe's program that runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProbeProgram {
    /// When it is killed.
    deadline: Mono,
    /// How long it had.
    time: Duration,
    state: ProbeState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ProbeState {
    /// Its end is waited for.
    Awaited,
    /// Its time was up: that was told, and it is about to be gone.
    Told,
}

/// Ends what the probes of a dead server have left behind.
pub fn end_stray_probes(server_id: &str) {
    identity::kill_marked(identity::PROBE_VARIABLE, &format!("{server_id}/"));
}

impl Processes {
    /// Runs a program in the working directory and environment of a child, with the main process of
    /// its live run as `MAINPID`. [`Fact::Probed`] follows
    /// within `time`, unless it is ended before: it failed when its status is not 0, when a signal
    /// ended it, and when its time was up; then it is killed with its group.
    ///
    /// # Errors
    /// Why it was not started, for a person who knows of which probe; no fact follows.
    pub fn run_probe(
        &mut self,
        job: JobId,
        child: &ChildName,
        argv: &[String],
        spec: &Spec,
        time: Duration,
    ) -> Result<(), String> {
        let nowhere = Sink::File {
            path: NULL.into(),
            mode: OpenMode::Append,
        };
        let main = self.main_process(child);
        let start = |processes: &mut Self| -> Result<(), StartError> {
            let launch = Launch {
                argv,
                workdir: &spec.workdir,
                outputs: Outputs::open(&nowhere, &nowhere)?,
                // Not the variable of a run: nobody may take a probe for one.
                mark: format!(
                    "{}={}/{child}",
                    identity::PROBE_VARIABLE,
                    processes.server_id
                ),
                birth: None,
                cgroup: None,
                lifetime: Lifetime::Ours,
                pid_variable: None,
                shown: None,
                more: main
                    .map(|pid| format!("{MAIN_VARIABLE}={pid}"))
                    .into_iter()
                    .collect(),
            };
            processes.launch(&launch, Owner::Probe(job)).map(drop)
        };
        start(self).map_err(|error| error.to_string())?;
        let program = ProbeProgram {
            deadline: clock::mono() + time,
            time,
            state: ProbeState::Awaited,
        };
        self.probes.insert(job, program);
        Ok(())
    }

    /// The main process of a child's live run.
    fn main_process(&self, child: &ChildName) -> Option<i32> {
        let owner = Owner::Run(child.clone(), self.live_run(child)?);
        self.processes.get(&owner).map(|process| process.pid)
    }

    /// Kills a probe's program with its group: nobody waits for it any more, and no fact follows.
    pub fn end_probe(&mut self, job: JobId) {
        if let Some(program) = self.probes.get_mut(&job) {
            program.state = ProbeState::Told;
            self.kill_probe(job);
        }
    }

    fn kill_probe(&self, job: JobId) {
        if let Some(process) = self.processes.get(&Owner::Probe(job))
            && let Err(error) = self.send(process, libc::SIGKILL)
        {
            tracing::warn!(job = job.0, %error, "a probe was not killed");
        }
    }

    /// A probe's program has ended and was taken out of the table.
    pub(super) fn finish_probe(
        &mut self,
        job: JobId,
        process: Process,
        exit: Exit,
    ) -> Option<Fact> {
        self.kill_rest(&process, "");
        drop(self.release(process));
        let program = self.probes.remove(&job)?;
        let result = match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => Err(exit.to_string()),
        };
        match program.state {
            ProbeState::Awaited => Some(Fact::Probed { job, result }),
            ProbeState::Told => None,
        }
    }

    /// Tells of those whose time is up, and kills them.
    pub(super) fn expire_probes(&mut self) -> Vec<Fact> {
        let now = clock::mono();
        let mut facts = Vec::new();
        let mut late = Vec::new();
        for (job, program) in &mut self.probes {
            if program.state == ProbeState::Awaited && program.deadline <= now {
                program.state = ProbeState::Told;
                late.push(*job);
                let time = humantime::format_duration(program.time);
                facts.push(Fact::Probed {
                    job: *job,
                    result: Err(format!("no end within {time}")),
                });
            }
        }
        for job in late {
            self.kill_probe(job);
        }
        facts
    }

    /// How long until the time of one is up; `None` when none runs.
    pub(super) fn until_probe(&self) -> Option<Duration> {
        let awaited = self.probes.values();
        let awaited = awaited.filter(|program| program.state == ProbeState::Awaited);
        let deadline = awaited.map(|program| program.deadline).min()?;
        Some(deadline - clock::mono())
    }
}
