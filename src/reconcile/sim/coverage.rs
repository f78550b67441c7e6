//! Which kinds of events have met a child in which state.

use std::collections::BTreeMap;

use crate::{
    command::Command,
    reconcile::{
        State,
        child::{Phase, Rung},
        event::Event,
        job::{HookWait, Step},
        listing::Scope,
    },
    spec::{ChildName, Verb},
};

/// What a child is doing: its phase, or the step of the order under way.
pub(super) const STATES: [&str; 22] = [
    "at rest",
    "failed",
    "backoff",
    "blocked",
    "held",
    "in doubt",
    "running",
    "starting",
    "stuck",
    "queued",
    "reading",
    "prehook order",
    "prehook program",
    "checking",
    "stopping the old run",
    "recording",
    "spawning",
    "stopping",
    "stopping, a later step",
    "stopping by KILL",
    "posthook",
    "closing",
];

/// What may happen to it.
pub(super) const KINDS: [&str; 23] = [
    "boot",
    "listing",
    "whole listing",
    "confirming listing",
    "reread",
    "settings",
    "spawned",
    "spawn failed",
    "preflight",
    "exited",
    "hook finished",
    "recorded",
    "start",
    "restart",
    "trystart",
    "stop",
    "stop all",
    "start all",
    "check",
    "wait",
    "kill",
    "shutdown",
    "deadline",
];

#[derive(Debug, Clone, Default)]
pub(super) struct Coverage {
    met: BTreeMap<(usize, usize), u64>,
}

impl Coverage {
    /// Notes an event that the core is about to be told, for each child it concerns.
    pub(super) fn note(&mut self, core: &State, event: &Event) {
        let kind = kind(event);
        let concerned = concerned(core, event);
        for name in core.children.keys() {
            if concerned.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            for state in states(core, name) {
                *self.met.entry((state, kind)).or_insert(0) += 1;
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (pair, times) in &other.met {
            *self.met.entry(*pair).or_insert(0) += times;
        }
    }

    pub(super) fn times(&self, state: usize, kind: usize) -> u64 {
        self.met.get(&(state, kind)).copied().unwrap_or(0)
    }
}

fn place(names: &[&str], what: &str) -> usize {
    names
        .iter()
        .position(|name| *name == what)
        .expect("it is in the list")
}

/// The child an event is about, when it is about one.
fn concerned(core: &State, event: &Event) -> Option<ChildName> {
    let of_job = |id| {
        core.jobs
            .get(&id)
            .map(|job: &crate::reconcile::job::Job| job.child.clone())
    };
    // What is about nobody that is known concerns nobody.
    let nobody = || "no-such-child".parse().ok();
    match event {
        Event::Spawned { child, .. }
        | Event::SpawnFailed { child, .. }
        | Event::Exited { child, .. }
        | Event::Notified { child, .. }
        | Event::Request {
            command:
                Command::Child { child, .. }
                | Command::CheckOne(child)
                | Command::Why(child)
                | Command::Wait { child, .. },
            ..
        } => Some(child.clone()),
        // With no order under way it concerns nobody.
        Event::HookFinished { child, .. } => {
            let job = core.children.get(child).and_then(|it| it.job);
            job.map(|_| child.clone()).or_else(nobody)
        }
        Event::Reread { job, .. } | Event::Preflight { job, .. } => of_job(*job).or_else(nobody),
        Event::Probed { job, .. } => {
            let probed = |child: &crate::reconcile::child::Child| {
                let run = child.run.as_ref();
                run.is_some_and(|run| [run.probed.probe, run.stopper].contains(&Some(*job)))
            };
            let found = core.children.iter().find(|(_, child)| probed(child));
            found.map(|(name, _)| name.clone()).or_else(nobody)
        }
        Event::Recorded { ticket, .. } => match core.tickets.get(ticket) {
            Some(crate::reconcile::Awaited::Job(id)) => of_job(*id).or_else(nobody),
            Some(crate::reconcile::Awaited::Batch(_)) => None,
            None => nobody(),
        },
        Event::Boot(_)
        | Event::Listing(_)
        | Event::Unwatched
        | Event::Settings(_)
        | Event::SuspectGone { .. }
        | Event::Request { .. }
        | Event::Forsaken { .. }
        | Event::FellBehind { .. }
        | Event::Shutdown
        | Event::Upgrade
        | Event::Deadline => None,
    }
}

fn kind(event: &Event) -> usize {
    let text = match event {
        Event::Boot(_) => "boot",
        Event::Listing(update) => match update.scope {
            Scope::Touched => "listing",
            Scope::Whole => "whole listing",
            Scope::Confirming => "confirming listing",
        },
        Event::Reread { .. } => "reread",
        Event::Settings(_) => "settings",
        Event::Spawned { .. } => "spawned",
        Event::SpawnFailed { .. } => "spawn failed",
        Event::Preflight { .. } => "preflight",
        Event::Exited { .. } => "exited",
        Event::HookFinished { .. } => "hook finished",
        Event::Recorded { .. } => "recorded",
        // Another word of a program that somebody waits for.
        Event::Probed { .. } => "hook finished",
        Event::Notified { .. } => "deadline",
        Event::Request { command, .. } => match command {
            Command::Child {
                verb: Verb::Start, ..
            } => "start",
            Command::Child {
                verb: Verb::Restart,
                ..
            } => "restart",
            Command::Child {
                verb: Verb::Trystart,
                ..
            } => "trystart",
            Command::Child {
                verb: Verb::Stop, ..
            } => "stop",
            Command::StopAll => "stop all",
            Command::StartAll => "start all",
            Command::CheckOne(_)
            | Command::Why(_)
            | Command::Events { .. }
            | Command::Check { .. }
            | Command::Info
            | Command::Upgrade => "check",
            Command::Wait { .. } => "wait",
            Command::Kill(_) => "kill",
        },
        Event::Shutdown => "shutdown",
        Event::Unwatched
        | Event::SuspectGone { .. }
        | Event::Forsaken { .. }
        | Event::FellBehind { .. }
        | Event::Upgrade
        | Event::Deadline => "deadline",
    };
    place(&KINDS, text)
}

fn states(core: &State, name: &ChildName) -> Vec<usize> {
    let Some(child) = core.children.get(name) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    match child.run.as_ref().map(|run| run.phase) {
        None if child.job.is_none() => {
            let text = if child.is_in_doubt() {
                "in doubt"
            } else if child.hold.is_some() {
                "held"
            } else if !child.blocked.is_empty() {
                "blocked"
            } else if child.retry.is_some() {
                "backoff"
            } else if child.failure.is_some() {
                "failed"
            } else {
                "at rest"
            };
            all.push(text);
        }
        None | Some(Phase::Spawning) => {}
        Some(Phase::Running) => all.push(match child.run.as_ref() {
            Some(run) if run.is_starting() => "starting",
            Some(_) | None => "running",
        }),
        Some(Phase::Stopping {
            rung: Rung::Step(0),
            ..
        }) => all.push("stopping"),
        Some(Phase::Stopping {
            rung: Rung::Step(_),
            ..
        }) => all.push("stopping, a later step"),
        Some(Phase::Stopping {
            rung: Rung::Kill, ..
        }) => all.push("stopping by KILL"),
        Some(Phase::Stopping {
            rung: Rung::Stuck, ..
        }) => all.push("stuck"),
    }
    if !child.queue.is_empty() {
        all.push("queued");
    }
    if let Some(job) = child.job.and_then(|id| core.jobs.get(&id)) {
        match job.step {
            Step::Queued | Step::Dependents | Step::Stopping => {}
            Step::Reading => all.push("reading"),
            // Orders for others are awaited by both.
            Step::Depends => all.push("prehook order"),
            Step::Prehook(HookWait::Job(_)) => all.push("prehook order"),
            Step::Prehook(HookWait::Program | HookWait::Gone) => all.push("prehook program"),
            Step::Checking => all.push("checking"),
            Step::StoppingOld => all.push("stopping the old run"),
            Step::Recording => all.push("recording"),
            Step::Spawning => all.push("spawning"),
            Step::Posthook(_) => all.push("posthook"),
            Step::Closing => all.push("closing"),
        }
    }
    all.iter().map(|text| place(&STATES, text)).collect()
}
