//! Records were lost, and some processes do not show whose they are: each may be a child of which
//! nothing is known any more.
//!
//! - A child whose good file names the program of such a process is in doubt, and nothing starts
//!   it by itself (I1), whenever that file is first seen: at the start that found the loss, or
//!   when it becomes good much later.
//! - A child that lived at that start, or has begun a run since, is none of them (I1 again).
//! - A suspect is one until its process is gone, which the shell tells. Who was in doubt because of
//!   it alone is what it would have been without it: what its mode wants of it is done.
//! - A suspect is known by pid and start time, and written down until it is gone or the host is
//!   rebooted, whatever becomes of the server.
//!
//! Absent on purpose: programs that are known by another name than their file's, as those of
//! scripts and behind links from other folders are; files that were edited while no server lived, and name another
//! program than the one that hides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::Cause,
    child::Child,
    effect::Level,
    event::JobId,
    memory::Memory,
    planted::{Bug, planted},
    record::Record,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Spec},
};

/// How many suspects are kept one by one, each at the cost of a descriptor; past that, any child
/// may be one of the others.
pub const SUSPECTS_MAX: usize = 128;

/// What a process is called is cut to so many bytes (`/proc/PID/comm`).
const CALLED_LEN_MAX: usize = 15;

/// A process that may be a child's and does not show whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// Its number.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
    /// The file that it executes; where that is hidden too, what it is called, without a folder.
    pub program: String,
}

/// What is written down of suspects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sighting {
    /// Records were lost, and it was there.
    Seen(Suspect),
    /// Records were lost, and there were more than [`SUSPECTS_MAX`].
    TooMany,
    /// Its process is gone.
    Gone {
        /// Its number.
        pid: i32,
        /// When it began.
        start_ticks: u64,
    },
}

/// Whether a child may be a suspect.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suspicion {
    /// If its file names the program of one.
    #[default]
    Open,
    /// Its file has named this program, and nobody can tell.
    MayBe {
        /// The name of the program's file.
        program: String,
    },
    /// It is none: a process of it was known while they were there.
    Cleared,
}

/// All suspects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Suspects {
    /// The file that each executes, by number and start time.
    known: BTreeMap<(i32, u64), String>,
    /// There were more.
    too_many: bool,
}

impl Suspects {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && !self.too_many
    }

    /// Number and start time of each.
    pub fn processes(&self) -> impl Iterator<Item = (i32, u64)> {
        self.known.keys().copied()
    }

    /// Takes a sighting in; says whether that is news.
    fn take(&mut self, sighting: &Sighting) -> bool {
        match sighting {
            Sighting::Seen(suspect) => {
                let key = (suspect.pid, suspect.start_ticks);
                if self.known.contains_key(&key) {
                    return false;
                }
                if self.known.len() < SUSPECTS_MAX {
                    self.known.insert(key, suspect.program.clone());
                } else {
                    self.too_many = true;
                }
                true
            }
            Sighting::TooMany => {
                self.too_many = true;
                true
            }
            Sighting::Gone { pid, start_ticks } => {
                self.known.remove(&(*pid, *start_ticks)).is_some()
            }
        }
    }

    /// What speaks for it that a program of this name is one of them; `None` when it is not.
    fn evidence(&self, program: &str) -> Option<String> {
        let mut known = self.known.iter();
        let found = known.find(|(_, path)| may_run(path, program));
        match (found, self.too_many) {
            (Some(((pid, _), path)), _) => Some(format!(
                "records were lost, and process {pid}, which runs `{path}`, does not show whose it is"
            )),
            (None, true) => Some(format!(
                "records were lost, and more than {SUSPECTS_MAX} processes do not show whose they are"
            )),
            (None, false) => None,
        }
    }

    /// What is left of a suspicion.
    fn judge(&self, suspicion: &mut Suspicion) {
        let holds = match suspicion {
            Suspicion::Open => true,
            Suspicion::MayBe { program } => self.evidence(program).is_some(),
            Suspicion::Cleared => !self.is_empty(),
        };
        if !holds {
            *suspicion = Suspicion::Open;
        }
    }
}

/// Whether a suspect that shows this of itself may run a program of this name.
fn may_run(shown: &str, program: &str) -> bool {
    match shown.rsplit_once('/') {
        Some((_, name)) => name == program,
        None if shown.len() == CALLED_LEN_MAX => program.starts_with(shown),
        None => shown == program,
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// The name of the program that a child's file names.
fn program_of(spec: &Spec) -> &str {
    spec.command
        .first()
        .map_or("", |program| file_name(program))
}

/// What is to be recorded of the processes that were found to hide whose they are, but for those
/// that the records know.
#[must_use]
pub fn records(memory: &Memory, hidden: Vec<Suspect>) -> Vec<Record> {
    let last = memory.children.values().filter_map(|it| it.last.as_ref());
    let live = last.filter(|last| last.end.is_none());
    let known: Vec<(i32, u64)> = live.filter_map(|last| last.process).collect();
    let mut hidden = hidden;
    hidden.retain(|it| !known.contains(&(it.pid, it.start_ticks)));
    let more = hidden.len() > SUSPECTS_MAX;
    hidden.truncate(SUSPECTS_MAX);
    let seen = hidden.into_iter().map(Sighting::Seen);
    let all = seen.chain(more.then_some(Sighting::TooMany));
    all.map(Record::Suspects).collect()
}

impl Memory {
    /// Takes a sighting in, and what follows for the children.
    pub(super) fn sight(&mut self, sighting: &Sighting) {
        let news = self.suspects.take(sighting);
        for child in self.children.values_mut() {
            match sighting {
                Sighting::Seen(_) | Sighting::TooMany => {
                    // What began before may be a run that was lost since.
                    if news && child.suspicion == Suspicion::Cleared {
                        child.suspicion = Suspicion::Open;
                    }
                }
                Sighting::Gone { .. } => self.suspects.judge(&mut child.suspicion),
            }
        }
    }

    /// The shortest list of records that amounts to the suspects; before those of the children.
    pub(super) fn sightings(&self) -> impl Iterator<Item = Record> {
        let known = self.suspects.known.iter();
        let seen = known.map(|((pid, start_ticks), program)| {
            Sighting::Seen(Suspect {
                pid: *pid,
                start_ticks: *start_ticks,
                program: program.clone(),
            })
        });
        let more = self.suspects.too_many.then_some(Sighting::TooMany);
        seen.chain(more).map(Record::Suspects)
    }
}

impl State {
    /// The suspects, for whoever has to see when they are gone.
    #[must_use]
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Before anything is judged by its file: who lives now is no suspect.
    pub(super) fn clear_the_live(&mut self, turn: &mut Turn) {
        let names: Vec<ChildName> = self.children.keys().cloned().collect();
        for name in names {
            if self.is_live(&name) {
                self.clear(turn, &name);
            }
            self.tell_suspicion(turn, &name);
        }
    }

    /// A process of this child is known.
    pub(super) fn clear(&mut self, turn: &mut Turn, name: &ChildName) {
        if self.suspects.is_empty() {
            return;
        }
        let doubted = self.children.get(name).is_some_and(Child::may_be_suspect);
        self.note_suspicion(turn, name, Suspicion::Cleared);
        if doubted {
            self.unblock(turn, name);
        }
    }

    fn note_suspicion(&mut self, turn: &mut Turn, name: &ChildName, suspicion: Suspicion) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if child.suspicion != suspicion {
            child.suspicion = suspicion.clone();
            turn.record(Record::Suspicion {
                child: name.clone(),
                is: suspicion,
            });
        }
    }

    fn tell_suspicion(&self, turn: &mut Turn, name: &ChildName) {
        let child = self.children.get(name);
        if let Some(why) = child.and_then(|child| self.suspicion_of(name, child)) {
            turn.log(Level::Error, name, "in doubt, and so not started")
                .detail = Some(why);
        }
    }

    /// A child's file says something else: may the child be a suspect?
    pub(super) fn suspect(&mut self, turn: &mut Turn, name: &ChildName) {
        if planted(Bug::SuspectsForgotten) && turn.cause != Cause::Boot {
            return;
        }
        let Some(child) = self.children.get(name) else {
            return;
        };
        // Whose process is known, or known not to be, is told otherwise.
        if child.is_live() || child.doubt || child.suspicion != Suspicion::Open {
            return;
        }
        let Some(program) = child.listed().map(|spec| program_of(spec)) else {
            return;
        };
        if self.suspects.evidence(program).is_some() {
            let program = program.to_owned();
            self.note_suspicion(turn, name, Suspicion::MayBe { program });
            self.tell_suspicion(turn, name);
        }
    }

    /// The process of a suspect is gone: it was nobody's, or its run is over.
    pub(super) fn on_suspect_gone(&mut self, turn: &mut Turn, pid: i32, start_ticks: u64) {
        let gone = Sighting::Gone { pid, start_ticks };
        if planted(Bug::SuspectGoneIgnored) || !self.suspects.take(&gone) {
            return;
        }
        turn.record(Record::Suspects(gone));
        let mut released = Vec::new();
        for (name, child) in self.children.iter_mut() {
            let before = child.is_in_doubt();
            self.suspects.judge(&mut child.suspicion);
            if before && !child.is_in_doubt() {
                released.push(name.clone());
            }
        }
        for name in released {
            let line = turn.log(Level::Warn, &name, "in doubt no more");
            line.detail = Some(format!("process {pid}, which it may have been, is gone"));
            // Its file may name another program by now.
            self.suspect(turn, &name);
            self.unblock(turn, &name);
            turn.unsettle(&name);
        }
    }

    /// Why a child may be a suspect, for people; `None` when that is not so.
    pub(super) fn suspicion_of(&self, name: &ChildName, child: &Child) -> Option<String> {
        let Suspicion::MayBe { program } = &child.suspicion else {
            return None;
        };
        let evidence = self.suspects.evidence(program)?;
        Some(format!(
            "{evidence}; it may be `{name}`, and so whether it lives is not known\nhint: \
             when that process has ended, the mode decides; if it is another's, \
             `supervisor-rs-client start {name}`"
        ))
    }

    /// Why a child is in doubt, for people.
    pub(super) fn doubt_of(&self, name: &ChildName) -> Option<String> {
        let child = self
            .children
            .get(name)
            .filter(|child| child.is_in_doubt())?;
        let why = self.suspicion_of(name, child);
        why.or_else(|| Some(child.failure.clone().unwrap_or_default()))
    }

    /// Refuses a start of a child in doubt, unless an operator ordered it who could know of that.
    pub(super) fn is_refused_in_doubt(&mut self, turn: &mut Turn, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return false;
        };
        if job.despite_doubt || planted(Bug::DoubtIgnored) || self.is_live(&job.child) {
            return false;
        }
        let Some(why) = self.doubt_of(&job.child) else {
            return false;
        };
        let code = match job.by.cause {
            Cause::Command => ErrorCode::SpawnFailed,
            Cause::Policy
            | Cause::NotReady
            | Cause::Unhealthy
            | Cause::Boot
            | Cause::New
            | Cause::Changed
            | Cause::Settings
            | Cause::Hook
            | Cause::Repeat
            | Cause::Dependency
            | Cause::Removed
            | Cause::Shutdown
            | Cause::Reboot => ErrorCode::HookFailed,
        };
        let cause = job.by.cause;
        if let Some(child) = self.children.get_mut(&job.child) {
            if cause == Cause::Policy {
                // It stays due.
                child.retry = Some(turn.now.mono);
            }
            if child.may_be_suspect() {
                self.block_parents(id);
            }
        }
        self.finish(turn, id, Err(Failure::new(code, why)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::record::Store;

    fn suspect(pid: i32) -> Suspect {
        Suspect {
            pid,
            start_ticks: 7,
            program: format!("/bin/p{pid}"),
        }
    }

    fn web() -> ChildName {
        "web".parse().unwrap()
    }

    fn suspicion(is: Suspicion) -> Record {
        Record::Suspicion { child: web(), is }
    }

    fn may_be(program: &str) -> Suspicion {
        let program = program.to_owned();
        Suspicion::MayBe { program }
    }

    fn memory(records: &[Record]) -> Memory {
        let mut memory = Memory::default();
        records.iter().for_each(|record| memory.apply(record));
        let mut again = Memory::default();
        for record in memory.records(Store::Runtime) {
            again.apply(&record);
        }
        again.children.entry(web()).or_default();
        memory.children.entry(web()).or_default();
        assert_eq!(memory, again, "compaction");
        memory
    }

    fn seen(pid: i32) -> Record {
        Record::Suspects(Sighting::Seen(suspect(pid)))
    }

    fn gone(pid: i32, start_ticks: u64) -> Record {
        Record::Suspects(Sighting::Gone { pid, start_ticks })
    }

    #[test]
    fn a_suspicion_lasts_as_long_as_there_is_evidence() {
        let of = |records: &[Record]| memory(records).children[&web()].suspicion.clone();
        let doubted = [seen(1), seen(2), suspicion(may_be("p1"))];
        assert_eq!(of(&doubted), may_be("p1"));
        let and = |more: &[Record]| of(&[&doubted[..], more].concat());
        assert_eq!(and(&[gone(2, 7)]), may_be("p1"));
        assert_eq!(and(&[gone(1, 8)]), may_be("p1"), "another process");
        assert_eq!(and(&[gone(1, 7)]), Suspicion::Open);
        // What was known of earlier ones says nothing of those that are found after another loss.
        let cleared = [seen(1), suspicion(Suspicion::Cleared)];
        let and = |more: &[Record]| of(&[&cleared[..], more].concat());
        assert_eq!(and(&[seen(1)]), Suspicion::Cleared);
        assert_eq!(and(&[seen(2)]), Suspicion::Open);
        assert_eq!(and(&[gone(1, 7)]), Suspicion::Open, "nothing is left of it");
    }

    #[test]
    fn a_suspect_runs_the_program_that_it_shows() {
        assert!(may_run("/bin/web", "web"));
        assert!(!may_run("/bin/web", "web2"));
        // It shows what it is called and nothing else.
        assert!(may_run("web", "web"));
        assert!(!may_run("web", "web2"));
        assert!(may_run("a-long-name-of-", "a-long-name-of-a-program"));
    }

    #[test]
    fn suspects_are_void_after_a_reboot() {
        let mut memory = memory(&[seen(1), suspicion(may_be("p1"))]);
        memory.forget_boot();
        assert!(memory.suspects.is_empty());
        assert_eq!(memory.children[&web()].suspicion, Suspicion::Open);
    }

    #[test]
    fn of_too_many_suspects_any_child_may_be_one_and_no_more_are_kept() {
        let many = i32::try_from(SUSPECTS_MAX).unwrap() + 1;
        let hidden: Vec<Suspect> = (0..many).map(suspect).collect();
        let few = hidden[1..].to_vec();
        let after = |hidden| memory(&records(&Memory::default(), hidden)).suspects;
        assert_eq!(after(few).evidence("other"), None);
        let suspects = after(hidden);
        assert_eq!(suspects.known.len(), SUSPECTS_MAX);
        let why = suspects.evidence("other").unwrap();
        assert!(why.contains("more than 128 processes"), "{why}");
        let why = suspects.evidence("p5").unwrap();
        assert!(why.contains("process 5, which runs `/bin/p5`"), "{why}");
        // Those of several losses count together.
        let each: Vec<Record> = (0..many).map(seen).collect();
        assert_eq!(memory(&each).suspects, suspects);
    }
}
