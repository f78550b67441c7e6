//! Records were lost: the server looks for what lives, and writes it down before anything else.
//!
//! What follows from what is found is decided by `reconcile::rebuild`.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::{
    clock,
    journal::Opened,
    process::{self, FoundProcess, FoundRun, HiddenProcess, Started},
    reconcile::{
        rebuild::{self, Found},
        record::Record,
        suspects::{self, Sighting, Suspect},
    },
    spec::{ChildName, Digest, OpenMode, RestartPolicy, Sink, Spec, Time, Wall},
};

/// Looks for the live runs that the records do not tell of any more (I1, I2). Hooks' programs that
/// they do not tell of are killed: whose orders they were is lost, and a second one must not run
/// beside.
pub(super) fn look_for_runs(opened: &mut Opened) {
    for child in process::kill_unknown_hooks(&opened.server_id, &known_hooks(opened)) {
        tracing::warn!(%child, "a hook that no record tells of any more is killed");
    }
    let found: Vec<Found> = process::find_runs(&opened.server_id)
        .into_iter()
        .map(found)
        .collect();
    let alive = alive(opened);
    let records = rebuild::records(&opened.memory, &found, &alive);
    for record in &records {
        opened.memory.apply(record);
        tell(record);
    }
    tracing::warn!(
        found = found.len(),
        "records of live processes were lost: those that live were looked for"
    );
    // Written by `doubt_hidden`: a server that dies before that leaves the loss to be seen.
    opened.journal.owe(&records);
}

/// If records were lost, has nothing started of which a process may live that does not show whose
/// it is (I1). What was found is written down then, in one step, and the loss with it is over.
pub(super) fn doubt_hidden(opened: &mut Opened) {
    if !opened.records_lost {
        return;
    }
    let hidden = process::find_hidden().into_iter().map(suspect);
    let records = suspects::records(&opened.memory, hidden.collect());
    for record in &records {
        opened.memory.apply(record);
        tell(record);
    }
    if let Err(error) = opened.journal.rebuild(&records) {
        tracing::error!(%error, "a record could not be written");
    }
}

/// Takes back holds whose end was lost: what was started after them must not be stopped now.
pub(super) fn release_overtaken(opened: &mut Opened) {
    for child in opened.memory.overtaken_holds() {
        tracing::warn!(%child, "a hold that its live run came after is taken for released");
        let released = Record::Released { child };
        opened.memory.apply(&released);
        opened.journal.commit(None, vec![released]);
    }
}

fn suspect(process: HiddenProcess) -> Suspect {
    let Started { pid, start_ticks } = process.started;
    Suspect {
        pid,
        start_ticks,
        // No child's file names a program that is not text.
        program: process.program.to_string_lossy().into_owned(),
    }
}

/// The recorded processes of hooks: pids and start times.
fn known_hooks(opened: &Opened) -> BTreeSet<(i32, u64)> {
    let children = opened.memory.children.values();
    let hooks = children.filter_map(|child| child.hook.as_ref()?.process);
    hooks
        .map(|(pid, start_ticks, _)| (pid, start_ticks))
        .collect()
}

/// The children whose recorded process lives.
fn alive(opened: &Opened) -> BTreeSet<ChildName> {
    let lives = |(name, child): (&ChildName, &crate::reconcile::memory::Remembered)| {
        let last = child.last.as_ref().filter(|last| last.end.is_none())?;
        let (pid, start_ticks) = last.process?;
        process::is_alive(pid, start_ticks).then(|| name.clone())
    };
    opened.memory.children.iter().filter_map(lives).collect()
}

fn tell(record: &Record) {
    match record {
        Record::Started {
            child, run, pid, ..
        }
        | Record::Found {
            child, run, pid, ..
        } => tracing::warn!(%child, %run, pid, "found by its environment"),
        Record::Answered { child, .. } => tracing::warn!(
            %child,
            "a command that a dead server had taken is given up: whether it was carried out is lost"
        ),
        Record::Doubted { child, run, why } => tracing::error!(%child, %run, why, "in doubt"),
        Record::Suspects(Sighting::Seen(Suspect { pid, program, .. })) => tracing::warn!(
            pid,
            program,
            "a process does not show whose it is: a child of this program may be it"
        ),
        Record::Suspects(Sighting::TooMany) => tracing::error!(
            "too many processes do not show whose they are: any child may be one of them"
        ),
        Record::Suspects(Sighting::Gone { .. })
        | Record::Suspicion { .. }
        | Record::Opened { .. }
        | Record::Closed
        | Record::Begun { .. }
        | Record::Matched { .. }
        | Record::MaybeUsed { .. }
        | Record::Ready { .. }
        | Record::NotStarted { .. }
        | Record::Stopping { .. }
        | Record::Replacing { .. }
        | Record::Ended { .. }
        | Record::GivenUp { .. }
        | Record::Renewed { .. }
        | Record::Settled { .. }
        | Record::Armed { .. }
        | Record::Disarmed { .. }
        | Record::Asked { .. }
        | Record::Over { .. }
        | Record::Noted { .. }
        | Record::HookBegun { .. }
        | Record::HookStarted { .. }
        | Record::HookEnded { .. }
        | Record::LoadpathSeen { .. }
        | Record::Held { .. }
        | Record::Released { .. }
        | Record::Reserved { .. }
        | Record::Forgotten { .. } => {}
    }
}

fn found(run: FoundRun) -> Found {
    let FoundRun {
        child,
        run,
        process,
    } = run;
    let now = clock::now();
    let at = process.as_ref().map_or(now, |process| {
        let age = process.age;
        let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        Time {
            mono: crate::spec::Mono(now.mono.0.saturating_sub(micros(age))),
            wall: Wall(now.wall.0.saturating_sub(millis)),
        }
    });
    let started = process.as_ref().map(|process| process.started);
    Found {
        spec: Arc::new(shown(&child, process)),
        child,
        run,
        process: started.map(|started| (started.pid, started.start_ticks)),
        at,
    }
}

fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What a process shows of what it was started with.
fn shown(child: &ChildName, process: Option<FoundProcess>) -> Spec {
    let (command, workdir, stdout, stderr) = match process {
        Some(process) => (
            process.command,
            process.workdir,
            process.stdout,
            process.stderr,
        ),
        None => (vec![child.to_string()], PathBuf::from("/"), None, None),
    };
    let sink = |path: Option<PathBuf>| match path {
        Some(path) => Sink::File {
            path,
            mode: OpenMode::Append,
        },
        None => Sink::Inherit,
    };
    let mut hasher = Sha256::new();
    for word in &command {
        hasher.update(word.as_bytes());
        hasher.update([0]);
    }
    hasher.update(workdir.as_os_str().as_encoded_bytes());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize()[..16]);
    Spec {
        path: workdir.join(format!("{child}.yml")),
        command,
        workdir,
        stdout: sink(stdout),
        stderr: sink(stderr),
        repeat: None,
        prehook: None,
        posthook: None,
        restart: RestartPolicy::default(),
        stop: crate::spec::StopPolicy::default(),
        ready: None,
        health: None,
        depends_on: crate::spec::Dependencies::new(),
        digest: Digest(digest),
    }
}
