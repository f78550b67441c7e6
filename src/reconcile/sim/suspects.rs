//! Lost records in the simulator: processes that live, and do not show whose they are.

use super::{
    claims::expect,
    files::File,
    script::Stage,
    world::{Occurrence, RunKey, Weather, World},
};
use crate::{
    reconcile::{
        event::Event,
        suspects::{self, Suspect},
    },
    spec::ChildName,
};

/// How likely the records of a child are lost at a crash, in percent.
const LOST: u64 = 4;
/// How likely when its file cannot be used: it may become good later.
const LOST_WITH_FILE: u64 = 50;

impl World {
    /// While no server lives, records are damaged: what ran of some children is not known any more,
    /// and their processes hide.
    pub(super) fn sometimes_lose_records(&mut self) {
        if self.weather != Weather::Rough {
            return;
        }
        let known = |key: &&RunKey| {
            let process = self.processes.get(*key);
            let remembered = self.memory.children.get(&key.0);
            let last = remembered.and_then(|it| it.last.as_ref());
            process.is_some_and(|it| it.recorded && it.exit.is_none())
                && last.is_some_and(|it| it.run == key.1 && it.process.is_some())
        };
        let live: Vec<RunKey> = self.processes.keys().filter(known).cloned().collect();
        let mut hidden = Vec::new();
        for (child, run) in live {
            let likely = if self.has_good_file(&child) {
                LOST
            } else {
                LOST_WITH_FILE
            };
            if self.random.percent(likely) {
                hidden.extend(self.hide(child, run));
            }
        }
        for record in suspects::records(&self.memory, hidden) {
            self.memory.apply(&record);
        }
    }

    fn hide(&mut self, child: ChildName, run: crate::spec::RunId) -> Option<Suspect> {
        self.checks.lose_records(&child);
        let remembered = self.memory.children.get_mut(&child)?;
        remembered.last = None;
        remembered.armed = None;
        remembered.orders.clear();
        self.told(|_| format!("            (the records of {child} are lost, and it hides)"));
        let process = self.processes.get_mut(&(child, run))?;
        process.recorded = false;
        Some(Suspect {
            pid: process.pid,
            start_ticks: 1,
            program: process.spec.command[0].clone(),
        })
    }

    fn has_good_file(&self, child: &ChildName) -> bool {
        let files = self.files.dirs.values().map(|dir| dir.files.get(child));
        let files: Vec<&File> = files.flatten().collect();
        matches!(files.as_slice(), [File::Good(_)])
    }

    pub(super) fn is_suspect(&self, pid: i32) -> bool {
        let mut known = self.memory.suspects.processes();
        known.any(|(suspect, _)| suspect == pid)
    }

    /// Whether a process of this program lives and hides whose it is.
    pub(super) fn hides(&self, program: &str) -> bool {
        let mut hidden = self.processes.values().filter(|it| !it.recorded);
        hidden.any(|it| it.spec.command[0].ends_with(&format!("/{program}")))
    }

    pub(super) fn tell_unhidden(&mut self, pid: i32) {
        if self.is_suspect(pid) {
            let start_ticks = 1;
            let gone = Event::SuspectGone { pid, start_ticks };
            let span = self.random.delay();
            self.plan_in(span, Occurrence::Tell(gone));
        }
    }

    /// Those that ended while no server lived.
    pub(super) fn tell_gone_suspects(&mut self) {
        let lives = |pid: i32| self.processes.values().any(|it| it.pid == pid);
        let known = self.memory.suspects.processes().map(|(pid, _)| pid);
        let gone: Vec<i32> = known.filter(|pid| !lives(*pid)).collect();
        for pid in gone {
            self.tell_unhidden(pid);
        }
    }
}

// The sentences that hold of them, in the words of the scripts.

/// A server that was killed while `web` ran, whose records are lost.
fn lost(before: &str) -> Stage {
    Stage::after(&format!("{before}\nhidden 80 /usr/bin/web"))
}

const DOUBT: &str = "log ERROR web: in doubt, and so not started";

#[test]
fn a_child_that_may_hide_is_in_doubt_until_that_process_is_gone() {
    // I1
    let mut stage = lost("file web v1\nfile db v1");
    let out = stage.then("boot sync continued\nrequest 1 check --all");
    expect(&out, &[DOUBT, "start db run 1"], &["    start web run"]);
    expect(&out, &["process 80, which runs `/usr/bin/web`"], &[]);
    // For the servers that follow, and whatever its file says then.
    let out = stage.then("crash\nfile web v2\nboot sync continued\nterm\nboot sync\nrescan");
    expect(&out, &[DOUBT], &["    start web run"]);
    // Not for ever.
    let out = stage.then("unhidden 80");
    expect(&out, &["web: in doubt no more", "start web run 1"], &[]);
    let out = stage.then("exited web 0\nfile web v3\nseen web");
    expect(&out, &["start web run 2"], &[DOUBT]);
}

#[test]
fn a_file_that_becomes_good_later_is_no_reason_to_start_what_may_live() {
    // I1
    for before in ["bad web oh", "conflict web", ""] {
        let mut stage = lost(before);
        stage.then("boot sync continued\ncrash\nboot sync continued");
        let out = stage.then("file web v1\nseen web\nrescan\nadvance 1m");
        expect(&out, &[DOUBT], &["    start web run"]);
        let out = stage.then("crash\nboot sync continued\nunhidden 80");
        expect(&out, &[DOUBT, "start web run 1"], &[]);
    }
}

#[test]
fn a_file_that_names_the_program_of_a_suspect_later_is_one_too_many() {
    // I1
    let mut stage = Stage::after("file web v1\nhidden 80 /bin/db\nboot quiet continued");
    let out = stage.then("file web v2 program db\nseen web\nsettings sync");
    expect(&out, &[DOUBT], &["    start web run"]);
    // And stays one, for its process may be of the time when it did.
    let out = stage.then("file web v3\nseen web\ncrash\nboot sync continued");
    expect(&out, &[DOUBT], &["    start web run"]);
    expect(&stage.then("unhidden 80"), &["start web run 1"], &[]);
}

#[test]
fn who_lives_or_has_run_since_is_no_suspect() {
    let mut stage = Stage::after("file web v1\nboot sync\ncrash\nhidden 80 /bin/web");
    let out = stage.then("boot sync continued\nexited web 0\nfile web v2\nseen web");
    expect(&out, &["start web run 2"], &[DOUBT]);
    let out = stage.then("crash\ndied web\nboot sync continued\nfile web v3\nseen web");
    expect(&out, &["start web run 3"], &[DOUBT]);
    // Another loss is another matter.
    let out = stage.then("crash\ndied web\nhidden 81 /bin/web\nfile web v4\nboot sync continued");
    expect(&out, &[DOUBT], &["    start web run"]);
}

#[test]
fn an_operator_starts_what_may_hide_when_he_could_know_of_it() {
    let mut stage = lost("bad web oh");
    stage.then("boot sync continued");
    // What is read for his order brings it about: nobody has told him.
    let out = stage.then("file web v1\nrequest 1 start web");
    expect(&out, &[DOUBT, "spawn_failed"], &["    start web run"]);
    let out = stage.then("request 2 start web");
    expect(&out, &["start web run 1"], &[]);
    let out = stage.then("exited web 0\nfile web v2\nseen web\nunhidden 80");
    expect(&out, &["start web run 2"], &[DOUBT, "in doubt no more"]);
}

#[test]
fn who_waits_for_a_child_that_may_hide_goes_on_when_it_does_not() {
    let mut stage = lost("file web v1\nfile db v1 prehook 'start web'");
    let out = stage.then("boot sync continued");
    expect(&out, &[DOUBT], &["    start db", "    start web run"]);
    let out = stage.then("unhidden 80");
    expect(&out, &["start web run 1", "start db run 1"], &[]);
    // Or when an operator says so.
    let mut stage = lost("file web v1\nfile db v1 prehook 'start web'");
    let out = stage.then("boot sync continued\nrequest 1 start web");
    expect(&out, &["start web run 1", "start db run 1"], &[]);
}

#[test]
fn a_stop_of_what_may_hide_keeps_it_from_being_started_later() {
    // I3
    let mut stage = lost("file web v1");
    stage.then("boot sync continued");
    expect(&stage.then("request 1 stop web"), &["web is held"], &[]);
    let out = stage.then("unhidden 80\nrescan");
    expect(&out, &["in doubt no more"], &["    start web run"]);
}
