//! What people are shown of a child.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    State,
    child::{Child, Phase, Run, Rung},
    job::Step,
    listing::{Content, LoadpathState},
    survey::{Survey, Tally},
    words::Doing,
};
use crate::{
    command::{
        ConfigStatus, ExitAt, InfoLoadpath, Next, Row, RowConfig, RowOutput, Stamp, StateName,
    },
    spec::{ChildName, Mono, Sink, Spec, StopAct, Time, Verb, Wall},
};

impl State {
    /// One child as a row.
    pub(super) fn row(&self, name: &ChildName, child: &Child, now: Time) -> Row {
        let state = child.state(self.start_under_way(name));
        let run = child.run.as_ref();
        let last = child.last.as_ref();
        let started = run
            .map(|run| run.started)
            .or_else(|| last.and_then(|last| last.started));
        let exit = last.filter(|_| run.is_none()).and_then(|last| {
            Some(ExitAt {
                exit: last.exit?,
                at: Stamp(last.at.wall),
            })
        });
        let spec = run.map(|run| &run.spec).or(child.in_force());
        let spec = spec.or_else(|| last.map(|last| &last.spec));
        Row {
            name: name.clone(),
            state,
            pid: run.and_then(|run| run.pid),
            run: run.map(|run| run.id).or_else(|| last.map(|last| last.id)),
            started_at: started.map(|time| Stamp(time.wall)),
            uptime_ms: run.map(|run| millis(now.mono - run.started.mono)),
            restarts: child.streak.restarts,
            hold: child.hold.is_some(),
            config: config(child, spec.map(AsRef::as_ref)),
            output: RowOutput {
                stdout: spec.map(|spec| sink(&spec.stdout)),
                stderr: spec.map(|spec| sink(&spec.stderr)),
            },
            exit,
            reason: self.reason(name, child, state),
            next: next(child, now),
            held_since: child.hold.map(Stamp),
            faults: match child.entry.as_ref().map(|entry| &entry.content) {
                Some(Content::Bad(faults)) => faults.to_vec(),
                Some(Content::Good(spec)) => self.graph_faults(name, spec),
                Some(Content::Conflict) | None => Vec::new(),
            },
            depends_on: Vec::new(),
            details: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// What only `check NAME` shows.
    pub(super) fn add_details(&self, row: &mut Row, name: &ChildName, child: &Child) {
        let spec = child.run.as_ref().map(|run| &run.spec).or(child.in_force());
        let Some(spec) = spec else { return };
        row.depends_on = self.rows_of_dependencies(spec);
        let mut add = |title: &str, text: String| {
            row.details.insert(title.to_owned(), text);
        };
        add("command", shell_words::join(&spec.command));
        add("workdir", spec.workdir.display().to_string());
        if let Some(hook) = &spec.prehook {
            add("prehook", hook.to_string());
        }
        if let Some(hook) = &spec.posthook {
            add("posthook", hook.to_string());
        }
        if let Some(repeat) = &spec.repeat {
            let every = humantime::format_duration(repeat.every);
            add("repeat", format!("{} every {every}", repeat.action));
        }
        if let Some(ready) = &spec.ready {
            let time = humantime::format_duration(ready.timeout);
            add("ready", format!("{} within {time}", ready.sign));
        }
        if let Some(health) = &spec.health {
            let every = humantime::format_duration(health.interval);
            add("health", format!("{} every {every}", health.pulse));
        }
        if !spec.stop.is_built_in() {
            add("stop", spec.stop.to_string());
        }
        let said = child.run.as_ref().map(|run| &run.said);
        if let Some(status) = said.and_then(|said| said.status.as_ref()) {
            add("status", status.clone());
        }
        let waiting = child.queue.len();
        if waiting > 0 {
            add("queue", format!("{waiting} commands wait for `{name}`"));
        }
    }

    /// How many children live, and how many have failed.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (name, child) in &self.children {
            if child.is_live() {
                tally.live += 1;
            } else if child.state(self.start_under_way(name)) == StateName::Failed {
                tally.failed += 1;
            }
        }
        tally
    }

    /// What `info` tells.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut counts = BTreeMap::new();
        let known = self.children.iter().filter(|(_, child)| child.is_known());
        for (name, child) in known {
            let state = child.state(self.start_under_way(name));
            *counts.entry(state.as_str().to_owned()).or_insert(0) += 1;
        }
        let loadpaths = self.loadpaths.iter().map(|loadpath| {
            let mine = |path: &PathBuf| path.parent() == Some(&loadpath.path);
            let declares = |child: &&Child| {
                child
                    .entry
                    .as_ref()
                    .is_some_and(|entry| entry.paths.iter().any(mine))
            };
            InfoLoadpath {
                path: loadpath.path.display().to_string(),
                state: match &loadpath.state {
                    LoadpathState::Ready { .. } => "ok".to_owned(),
                    LoadpathState::Missing => "missing".to_owned(),
                    LoadpathState::Unreadable(why) => why.clone(),
                },
                children: self.children.values().filter(declares).count(),
            }
        });
        Survey {
            mode: self.settings.mode,
            on_exit: self.settings.on_exit,
            startup: self.settings.startup.iter().cloned().collect(),
            loadpaths: loadpaths.collect(),
            faults: [self.notes(), self.all_graph_faults()].concat(),
            counts,
        }
    }

    /// What a child waits for, or why it is as it is.
    fn reason(&self, name: &ChildName, child: &Child, state: StateName) -> Option<String> {
        match state {
            StateName::Pending => Some(self.pending_reason(name, child)),
            StateName::Stopping => Some(stopping_reason(child)),
            StateName::Failed | StateName::Backoff => self
                .suspicion_of(name, child)
                .or_else(|| child.failure.clone()),
            StateName::Starting | StateName::Running => {
                if let Some(why) = self.put_off_reason(child) {
                    return Some(why);
                }
                let run = child.run.as_ref();
                let probed = run.and_then(probed_reason);
                let doing = run.and_then(|run| doing_reason(run.said.doing));
                probed.or(doing).or_else(|| child.note.clone())
            }
            StateName::Exited | StateName::Stopped => child.note.clone(),
        }
    }

    /// For whose end a stop waits.
    fn put_off_reason(&self, child: &Child) -> Option<String> {
        let job = self.jobs.get(&child.job?)?;
        let names: Vec<String> = job.after.keys().map(|it| format!("`{it}`")).collect();
        (job.step == Step::Dependents)
            .then(|| format!("is stopped after what depends on it: {}", names.join(", ")))
    }

    fn pending_reason(&self, name: &ChildName, child: &Child) -> String {
        let job = child.job.and_then(|id| self.jobs.get(&id));
        match job.map(|job| (job.step, job)) {
            Some((Step::Prehook(_), job)) => {
                let hook = job.spec.as_ref().and_then(|spec| spec.prehook.as_ref());
                hook.map_or_else(
                    || "waits for its prehook".to_owned(),
                    |hook| format!("waits for prehook `{hook}`"),
                )
            }
            Some((Step::Depends, _)) => self.awaited(name),
            None if child.due.is_some() => self.awaited(name),
            Some((Step::Recording, _)) => "waits for the disk".to_owned(),
            Some((
                Step::Queued
                | Step::Reading
                | Step::Checking
                | Step::StoppingOld
                | Step::Spawning
                | Step::Dependents
                | Step::Stopping
                | Step::Posthook(_)
                | Step::Closing,
                _,
            )) => "is about to start".to_owned(),
            None => {
                let names: Vec<&str> = child
                    .blocked
                    .iter()
                    .filter(|blocker| *blocker != name)
                    .map(ChildName::as_str)
                    .collect();
                let why = child.failure.clone().unwrap_or_default();
                format!("waits for {}: {why}", names.join(", "))
            }
        }
    }
}

/// What probes of a run are about, if somebody should know.
fn probed_reason(run: &Run) -> Option<String> {
    let why = run.probed.why.as_ref();
    match (&run.spec.ready, &run.spec.health) {
        (Some(ready), _) if run.is_starting() => {
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            let unheard = match run.probed.unheard {
                true => ", which it may have said while no server lived",
                false => "",
            };
            Some(format!("waits for {}{unheard}{why}", ready.sign))
        }
        (_, Some(health)) if run.probed.failures > 0 => {
            let (failures, most) = (run.probed.failures, health.failures);
            let why = why?;
            Some(format!(
                "{} failed, {failures} of {most}: {why}",
                health.pulse
            ))
        }
        (Some(_) | None, Some(_) | None) => None,
    }
}

/// What a run is at, as it says.
fn doing_reason(doing: Doing) -> Option<String> {
    let text = match doing {
        Doing::Nothing => return None,
        Doing::Reloading => "reads its configuration again, as it says",
        Doing::Stopping => "ends by itself, as it says",
    };
    Some(text.to_owned())
}

fn stopping_reason(child: &Child) -> String {
    let Some(run) = &child.run else {
        return String::new();
    };
    let pid = run.pid.unwrap_or_default();
    match run.phase {
        Phase::Stopping {
            rung: Rung::Step(step),
            ..
        } => match run.spec.stop.steps.get(step).map(|step| &step.act) {
            Some(StopAct::Signal(signal)) => format!("{signal} was sent to process {pid}"),
            Some(act @ StopAct::Run(_)) => format!("{act} was run to stop process {pid}"),
            None => format!("process {pid} is being stopped"),
        },
        Phase::Stopping {
            rung: Rung::Kill, ..
        } => format!("KILL was sent to process {pid}"),
        Phase::Stopping {
            rung: Rung::Stuck, ..
        } => {
            format!("process {pid} does not end although it was killed")
        }
        Phase::Spawning | Phase::Running => String::new(),
    }
}

/// How a child's file stands to what runs, or ran last.
pub(super) fn config_status(child: &Child) -> ConfigStatus {
    let ran = child.ran_digest();
    let listed = child.listed().map(|spec| spec.digest);
    match child.entry.as_ref().map(|entry| &entry.content) {
        None => ConfigStatus::Removed,
        Some(Content::Bad(_)) => ConfigStatus::Invalid,
        Some(Content::Conflict) => ConfigStatus::Conflict,
        Some(Content::Good(_)) if ran.is_some() && ran != listed => ConfigStatus::Changed,
        Some(Content::Good(_)) => ConfigStatus::Current,
    }
}

fn config(child: &Child, spec: Option<&Spec>) -> RowConfig {
    let ran = child.ran_digest();
    let listed = child.listed().map(|spec| spec.digest);
    let status = config_status(child);
    let paths: Vec<String> = child.entry.as_ref().map_or_else(Vec::new, |entry| {
        entry
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    });
    let path = paths
        .first()
        .cloned()
        .or_else(|| spec.map(|spec| spec.path.display().to_string()));
    let paths = if paths.len() > 1 { paths } else { Vec::new() };
    RowConfig {
        path,
        digest: ran.or(listed),
        status,
        paths,
    }
}

fn sink(sink: &Sink) -> String {
    match sink {
        Sink::Inherit => "inherit".to_owned(),
        Sink::File { path, .. } => path.display().to_string(),
    }
}

fn next(child: &Child, now: Time) -> Option<Next> {
    let at = |due: Mono| {
        let ahead = i64::try_from((due - now.mono).as_millis()).unwrap_or(i64::MAX);
        Stamp(Wall(now.wall.0.saturating_add(ahead)))
    };
    if let Some(due) = child.retry.filter(|_| child.run.is_none()) {
        return Some(Next {
            action: Verb::Restart,
            at: at(due),
        });
    }
    child.armed.map(|armed| Next {
        action: armed.repeat.action,
        at: at(armed.due),
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
