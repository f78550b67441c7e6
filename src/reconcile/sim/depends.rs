//! Who depends on whom in the fake world, and whether starts and stops keep to it.
//!
//! What a condition means is reckoned here from processes and records, not asked of the core. No
//! random numbers are drawn: who depends on whom follows from the version of a file.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    files::{NAMES, name},
    world::{RunKey, World},
};
use crate::{
    command::Command,
    reconcile::{
        DEPENDENCIES_TIME,
        cause::Cause,
        child::{Child, Phase, Rung},
        effect::Effect,
        event::{JobId, StartKind},
        job::{Job, Posthooks, Step},
        listing::Content,
        memory::RememberedEnd,
        record::{Record, Wanted},
    },
    spec::{ChildName, Condition, Dependencies, Dependency, Exit, Mono, Spec, Verb},
};

/// How late an order may be told that its time is up.
const LATENESS: std::time::Duration = std::time::Duration::from_secs(5);

/// Whom a version of a file makes its child depend on: most on nobody, a few on who is not there.
pub(super) fn dependencies(home: &str, owner: &ChildName, version: u64) -> Dependencies {
    let mut mixed = version.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut pick = |from: usize| {
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        usize::try_from(mixed >> 33).expect("it has 31 bits") % from
    };
    let mut all = Dependencies::new();
    let count = match pick(10) {
        0..=5 => 0,
        6..=8 => 1,
        _ => 2,
    };
    for _ in 0..count {
        let who = match pick(16) {
            0 => "nobody",
            _ => NAMES[pick(NAMES.len())],
        };
        let condition = Condition::ALL[pick(Condition::ALL.len())];
        if who != owner.as_str() {
            let path = PathBuf::from(format!("{home}/{owner}.yml"));
            let (line, column) = (1, 1);
            let it = Dependency {
                condition,
                path,
                line,
                column,
            };
            all.insert(name(who), it);
        }
    }
    all
}

/// What the books say of who depends on whom.
#[derive(Debug, Default)]
pub(super) struct Depending {
    /// The orders that wait for others, and since when.
    waiting: std::collections::BTreeMap<JobId, Mono>,
    /// The orders that do not wait for others any more.
    passed: BTreeSet<JobId>,
    /// Who has waited for others.
    pub(super) waited: BTreeSet<ChildName>,
    /// The runs that lived when everything was told to stop.
    stopped: BTreeSet<RunKey>,
    /// Who was due by a client's order when the server died.
    owed: BTreeSet<ChildName>,
}

impl Depending {
    pub(super) fn server_died(&mut self) {
        self.waiting.clear();
        self.passed.clear();
    }

    pub(super) fn lose_records(&mut self, child: &ChildName) {
        self.owed.remove(child);
    }
}

/// Whether an order has come past the wait for others.
fn is_past(job: &Job) -> bool {
    match job.step {
        Step::Prehook(_)
        | Step::Checking
        | Step::StoppingOld
        | Step::Recording
        | Step::Spawning => job.starts(),
        Step::Queued
        | Step::Reading
        | Step::Depends
        | Step::Dependents
        | Step::Stopping
        | Step::Posthook(_)
        | Step::Closing => false,
    }
}

impl World {
    /// Whether one is as it has to be, by what was told, is on record, and is being written down.
    fn is_really(&self, who: &ChildName, condition: Condition, effects: &[Effect]) -> bool {
        let last = self
            .memory
            .children
            .get(who)
            .and_then(|it| it.last.as_ref());
        let Some(last) = last else { return false };
        let records = effects.iter().filter_map(|effect| match effect {
            Effect::Record { records, .. } => Some(records),
            _other => None,
        });
        let mut ready = last.ready || last.spec.ready.is_none();
        let mut end = match &last.end {
            Some(RememberedEnd::Exited { exit, by, .. }) => Some((*exit, by.is_some())),
            Some(RememberedEnd::NotStarted { .. }) => Some((Exit::Unknown, true)),
            None => None,
        };
        for record in records.flatten() {
            match record {
                Record::Ready { child, run } if child == who && *run == last.run => ready = true,
                Record::Ended {
                    child,
                    run,
                    exit,
                    by,
                    ..
                } if child == who && *run == last.run => end = Some((*exit, by.is_some())),
                _other => {}
            }
        }
        let process = self.processes.get(&(who.clone(), last.run));
        let told = process.is_some_and(|it| it.recorded && it.stop_at.is_none());
        let lives = told && end.is_none() && !last.stopping;
        match condition {
            Condition::Started => lives,
            Condition::Ready => lives && ready,
            Condition::Completed => end.is_some_and(|(exit, ordered)| match exit {
                Exit::Code(code) => !ordered && last.spec.restart.success.contains(&code),
                Exit::Signal(_) | Exit::Unknown => false,
            }),
        }
    }

    fn lacks<'s>(&self, spec: &'s Spec, effects: &[Effect]) -> Option<&'s ChildName> {
        let mut needs = spec.depends_on.iter();
        let lacked = needs.find(|(who, it)| !self.is_really(who, it.condition, effects));
        lacked.map(|(who, _)| who)
    }

    /// Nobody goes on while what he depends on is not there, and nobody waits for who cannot come.
    pub(super) fn check_waiting(&mut self, effects: &[Effect]) {
        let mut wrong = None;
        let (mut waiting, mut passed) = (Vec::new(), Vec::new());
        for (id, job) in &self.core.jobs {
            let Some(spec) = job.spec.as_ref().filter(|it| !it.depends_on.is_empty()) else {
                continue;
            };
            let owner = &job.child;
            if job.step == Step::Depends && !self.checks.depending.waiting.contains_key(id) {
                waiting.push((*id, owner.clone()));
                if let Some(why) = self.cannot_come(owner, spec) {
                    wrong = Some(format!("{owner} waits for what cannot come: {why}"));
                }
            }
            if is_past(job) && !self.checks.depending.passed.contains(id) {
                passed.push(*id);
                if let Some(who) = self.lacks(spec, effects) {
                    wrong = Some(format!("{owner} goes on without {who}"));
                }
            }
        }
        let now = self.now.mono;
        let books = &mut self.checks.depending;
        books
            .waited
            .extend(waiting.iter().map(|(_, owner)| owner.clone()));
        books
            .waiting
            .extend(waiting.into_iter().map(|(id, _)| (id, now)));
        books.passed.extend(passed);
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    /// Who is declared nowhere, or depends on this one himself.
    fn cannot_come(&self, owner: &ChildName, spec: &Spec) -> Option<String> {
        spec.depends_on.keys().find_map(|who| {
            let entry = self.checks.view.get(who);
            let core = self.core.children.get(who);
            let lives = self.processes.keys().any(|(name, _)| name == who)
                || core.is_some_and(Child::is_live);
            match entry.map(|entry| &entry.content) {
                None if !lives => Some(format!("{who} is unknown")),
                Some(Content::Good(other)) if other.depends_on.contains_key(owner) => {
                    Some(format!("{who} depends on {owner}"))
                }
                Some(_) | None => None,
            }
        })
    }

    /// What holds between steps.
    pub(super) fn after_depends(&mut self) {
        let now = self.now.mono;
        let mut wrong = None;
        for (id, since) in &self.checks.depending.waiting {
            let waits = self.core.jobs.get(id).map(|job| job.step) == Some(Step::Depends);
            if waits && now - *since > DEPENDENCIES_TIME + LATENESS {
                wrong = Some(format!("I8: order {} waits for others without end", id.0));
            }
        }
        for (who, child) in &self.core.children {
            if child.due.is_some() != self.core.due.contains(who) {
                wrong = Some(format!("whether {who} is due is not clear"));
            }
            let Some(spec) = self.due_now(who, child) else {
                continue;
            };
            let idle = |who: &ChildName| {
                let it = self.core.children.get(who);
                it.is_some_and(|it| {
                    let told = it
                        .run
                        .as_ref()
                        .is_none_or(|run| run.phase == Phase::Running);
                    // What a stop has settled may or may not count as completed.
                    let last = self
                        .memory
                        .children
                        .get(who)
                        .and_then(|it| it.last.as_ref());
                    let settled = last.is_some_and(|last| last.settled);
                    it.job.is_none() && told && !it.fresh && !settled
                })
            };
            if spec.depends_on.keys().all(idle) && self.lacks(spec, &[]).is_none() {
                wrong = Some(format!(
                    "{who} has all that it waits for, and does not start"
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    /// What a child starts from as soon as it can, if nothing else keeps it from that.
    fn due_now<'s>(&'s self, who: &ChildName, child: &'s Child) -> Option<&'s Spec> {
        let due = child.due.as_ref()?;
        let free = child.job.is_none() && self.core.ending.is_none() && !child.is_in_doubt();
        let held = child.hold.is_some() && due.by.cause != Cause::Command;
        let Content::Good(spec) = &self.checks.view.get(who)?.content else {
            return None;
        };
        let good = self.core.graph_faults(who, spec).is_empty();
        (free && !held && good).then_some(spec)
    }

    /// Everything that lives is told to stop.
    pub(super) fn note_stopped_all(&mut self) {
        let live = self.core.children.iter();
        let live = live.filter_map(|(who, it)| Some((who.clone(), it.run.as_ref()?.id)));
        self.checks.depending.stopped.extend(live);
    }

    /// Who is stopped with all others is told after those that depend on him have ended.
    pub(super) fn check_stop_order(&mut self, key: &RunKey, cause: Cause) {
        let begun = self
            .processes
            .get(key)
            .is_none_or(|it| it.stop_at.is_some());
        let hooked = self.checks.stop_targets.contains(&key.0);
        let alone = self.checks.open.values().any(|asked| match &asked.command {
            Command::Child { verb, child } => *verb != Verb::Start && *child == key.0,
            _other => false,
        });
        let alone = alone || self.checks.is_taken(&key.0, |it| it == Wanted::Stop);
        if begun || hooked || alone || self.checks.shutdowns > 1 {
            return;
        }
        let job = self.core.children.get(&key.0).and_then(|it| it.job);
        let job = job.and_then(|id| self.core.jobs.get(&id));
        let of_all = job.is_some_and(|job| job.posthooks == Posthooks::StartingNothing);
        let of_all = match cause {
            Cause::Shutdown => true,
            Cause::Command => of_all && self.core.ending.is_none(),
            _other => false,
        };
        if !of_all || !self.checks.depending.stopped.contains(key) {
            return;
        }
        let circle = self.core.needs_of(&key.0);
        let still = self.processes.iter().find(|((who, run), process)| {
            let live = self.core.children.get(who).and_then(|it| it.run.as_ref());
            let stuck = live.is_none_or(|live| {
                let stuck = match live.phase {
                    Phase::Stopping { rung, .. } => rung == Rung::Stuck,
                    Phase::Spawning | Phase::Running => false,
                };
                live.id != *run || stuck
            });
            let goes = self.checks.is_held(who)
                || cause == Cause::Shutdown
                || self.checks.is_taken(who, |it| it == Wanted::StopAsOneOfAll);
            let both = self.checks.depending.stopped.contains(&(who.clone(), *run));
            let needs = process.spec.depends_on.contains_key(&key.0) && !circle.contains(who);
            needs && both && goes && !stuck && process.exit.is_none()
        });
        if let Some(((who, _), _)) = still {
            let wrong = format!("{} is stopped before {who}, which depends on it", key.0);
            self.blame(|_| wrong);
        }
    }

    /// The server dies: who was due by a client's order is due for the next.
    pub(super) fn note_due(&mut self) {
        let due = |(who, child): (&ChildName, &Child)| {
            let due = child.due.as_ref()?;
            (due.by.cause == Cause::Command && !child.is_live()).then(|| who.clone())
        };
        let owed = self.core.children.iter().filter_map(due).collect();
        self.checks.depending.owed = owed;
    }

    /// What was due for one server by a client's order is due for the next.
    pub(super) fn check_due_kept(&mut self) {
        let owed = std::mem::take(&mut self.checks.depending.owed);
        if self.start == StartKind::Fresh {
            return;
        }
        for who in owed {
            let child = self.core.children.get(&who);
            let kept = |child: &Child| {
                child.job.is_some() || child.due.is_some() || child.is_live() || child.is_in_doubt()
            };
            if !self.ended && !child.is_some_and(kept) {
                self.blame(|_| format!("{who} was due, and that is forgotten"));
            }
        }
    }
}

mod claims {
    use super::super::{claims::expect, script::Stage};

    const CHAIN: &str = "file web v1 depends db:ready\nfile db v1\n";

    #[test]
    fn both_files_changed_replace_the_one_that_is_depended_on_first_whatever_their_names() {
        for (first, second) in [("db", "web"), ("zoo", "ape")] {
            let life =
                format!("file {second} v1 depends {first}:ready\nfile {first} v1 ready 10s 1s");
            let mut stage = Stage::after(&format!("{life}\nboot sync\nprobe {first} ok"));
            let out = stage.then(&format!(
                "file {second} v2 depends {first}:ready\nfile {first} v2 ready 10s 1s\n\
                 seen {first} {second}"
            ));
            expect(
                &out,
                &[&format!("TERM to {first} run 1")],
                &[&format!("TERM to {second} run 1")],
            );
            let out = stage.then(&format!("exited {first} 0"));
            expect(&out, &[&format!("start {first} run 2")], &["TERM to"]);
            let out = stage.then(&format!("probe {first} ok"));
            expect(&out, &[&format!("TERM to {second} run 1")], &[]);
        }
    }

    #[test]
    fn a_held_one_is_not_started_for_another_and_its_start_releases_both() {
        let mut stage = Stage::after(&format!("{CHAIN}boot quiet\nrequest 1 start db"));
        stage.then("request 2 stop db\nexited db 0");
        let out = stage.then("request 3 start web");
        expect(
            &out,
            &[
                "answer 3: dependency_failed",
                "`web` -> `db`: `db` is held by an operator's `stop`",
                "starts by itself",
            ],
            &["    start"],
        );
        expect(
            &stage.then("request 4 check web"),
            &["web pending run -"],
            &[],
        );
        let out = stage.then("request 5 start db");
        expect(&out, &["start db run 2", "start web run 1"], &[]);
    }

    #[test]
    fn each_is_brought_up_once_an_order_and_not_in_a_loop() {
        let mut stage = Stage::after(&format!("{CHAIN}boot quiet\nrefuse spawn"));
        let out = stage.then("request 1 start web\nadvance 10m");
        expect(&out, &["answer 1: dependency_failed"], &[]);
        assert_eq!(out.matches("start db run").count(), 1, "{out}");
        let out = stage.then("request 2 start web");
        assert_eq!(out.matches("start db run").count(), 1, "{out}");
    }

    #[test]
    fn a_stop_takes_back_what_waits_and_holds_it() {
        let mut stage = Stage::after("file web v1 depends job:completed\nfile job v1\nboot sync");
        let out = stage.then("request 1 stop web");
        expect(&out, &["answer 1: ok", "web is held"], &[]);
        let out = stage.then("exited job 0\nrequest 2 check web");
        expect(&out, &["web stopped run -"], &["start web"]);
        // The same when nobody's order waits any more.
        let mut stage = Stage::after("file web v1 depends job:completed\nfile job v1\nboot sync");
        stage.then("exited job 3\nrequest 1 stop web");
        let out = stage.then("request 2 start job\nexited job 0\nrequest 3 check web");
        expect(&out, &["web stopped run -"], &["start web"]);
    }

    #[test]
    fn restarts_by_policy_and_repeats_wait_likewise() {
        let files = "file web v1 restart always depends db:started\nfile db v1\n";
        let mut stage = Stage::after(&format!("{files}boot sync\nexited db 3"));
        let out = stage.then("exited web 1\nadvance 1s");
        expect(&out, &["start db run 2", "start web run 2"], &[]);
        let mut stage = Stage::after(&format!("{files}boot sync\nrequest 1 stop db\nexited db 3"));
        let out = stage.then("exited web 1\nadvance 10m\nrequest 2 check web");
        expect(&out, &["web pending run 1"], &["start web run 2"]);
        let out = stage.then("crash\nboot sync continued\nadvance 1s\nrequest 3 start db");
        expect(&out, &["start db run 2", "start web run 2"], &[]);
    }

    #[test]
    fn a_hook_is_told_and_whoever_it_was_for_starts_later() {
        let files = "file top v1 prehook 'start web'\nfile web v1 depends job:completed\n\
                     file job v1\n";
        let mut stage = Stage::after(&format!("{files}boot half startup top"));
        let out = stage.then("exited job 1");
        expect(&out, &["log WARN top: not started"], &["start top"]);
        let out = stage.then("request 1 start job\nexited job 0");
        expect(&out, &["start web run 1", "start top run 1"], &[]);
    }

    #[test]
    fn what_a_fresh_start_finds_completed_is_done_again() {
        let files = "file web v1 depends job:completed\nfile job v1\n";
        let mut stage = Stage::after(&format!(
            "{files}boot quiet\nrequest 1 start web\nexited job 0"
        ));
        stage.then("request 2 kill --stop-children\nexited web 0");
        let out = stage.then("boot quiet\nrequest 3 start web");
        expect(&out, &["start job run 2"], &["    start web"]);
        // And what a server finds that goes on is not.
        let mut stage = Stage::after(&format!(
            "{files}boot quiet\nrequest 1 start web\nexited job 0"
        ));
        stage.then("request 2 stop web\nexited web 0\ncrash\nboot quiet continued");
        let out = stage.then("request 3 start web");
        expect(&out, &["start web run 2"], &["    start job"]);
    }

    #[test]
    fn removed_together_they_are_stopped_in_order_and_one_alone_at_once() {
        let files = "file web v1 depends db:ready\nfile db v1\nfile other v1\n";
        let mut stage = Stage::after(&format!("{files}boot sync\ngone web\ngone db\nseen web db"));
        let out = stage.then("advance 1s");
        expect(&out, &["TERM to web run 1"], &["TERM to db"]);
        expect(&stage.then("exited web 0"), &["TERM to db run 1"], &[]);
        let mut stage = Stage::after(&format!("{files}boot sync\ngone db\nseen db"));
        expect(
            &stage.then("advance 1s"),
            &["TERM to db run 1"],
            &["TERM to web"],
        );
    }

    #[test]
    fn a_stop_of_one_alone_does_not_wait_for_a_stop_of_all() {
        let mut stage = Stage::after(&format!("{CHAIN}boot sync\nrequest 1 stop --all"));
        let out = stage.then("request 2 stop db");
        expect(&out, &["TERM to db run 1"], &[]);
    }

    #[test]
    fn what_ends_before_its_turn_to_be_stopped_stays_down() {
        let files = "file web v1 depends db:ready\nfile db v1 restart always\n";
        let mut stage = Stage::after(&format!("{files}boot sync\nrequest 1 stop --all"));
        let out = stage.then("exited db 1\nexited web 0\nadvance 1m");
        expect(&out, &["answer 1: ok"], &["start db"]);
    }

    #[test]
    fn a_second_order_to_end_kills_who_waits_for_his_turn() {
        let files = format!("{CHAIN}boot sync\nrequest 1 kill --stop-children\n");
        let out = Stage::after(&files).then("term");
        expect(&out, &["KILL to web run 1", "KILL to db run 1"], &[]);
    }

    #[test]
    fn nobody_waits_in_a_circle_of_what_runs_when_all_are_stopped() {
        let files = "file web v1 depends db:started\nfile db v1\nboot sync\n";
        let mut stage = Stage::after(files);
        stage.then("file web v2\nseen web\nexited web 0");
        stage.then("file db v2 depends web:started\nseen db\nexited db 0");
        let out = stage.then("request 1 stop --all");
        expect(&out, &["TERM to db run 2"], &["TERM to web"]);
        expect(&stage.then("exited db 0"), &["TERM to web run 2"], &[]);
    }

    #[test]
    fn a_full_server_refuses_circles_and_unknown_names_with_all_other_faults() {
        use std::{path::PathBuf, sync::Arc};

        use crate::reconcile::{
            boot::faults,
            listing::{Content, Entry, Scope, Update},
        };

        let entry = |child: &str, needs: &str| {
            let spec = super::super::script::spec(child, "v1", &["depends", needs]);
            let content = Content::Good(Arc::new(spec));
            let paths = vec![PathBuf::from(format!("/srv/{child}.yml"))];
            (super::name(child), Some(Entry { paths, content }))
        };
        let update = Update {
            scope: Scope::Whole,
            loadpaths: Vec::new(),
            entries: vec![
                entry("a", "b:ready,lost:ready"),
                entry("b", "c:started"),
                entry("c", "a:completed"),
                entry("d", "a:ready"),
            ],
        };
        let told: Vec<String> = faults(&update)
            .iter()
            .map(|fault| fault.lines().next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            told,
            [
                "/srv/a.yml:3:3: `a` depends on itself: a -> b -> c -> a",
                "/srv/a.yml:4:3: `a` depends on `lost`, and no file declares that",
                "/srv/b.yml:3:3: `b` depends on itself: b -> c -> a -> b",
                "/srv/c.yml:3:3: `c` depends on itself: c -> a -> b -> c",
            ]
        );
    }
}
