//! Records were lost: what is made of the runs that were found by their processes.
//!
//! - What is recorded wins over what was found: a run whose recorded process lives stays the
//!   child's run, and one whose end is recorded has ended.
//! - A run that the records do not know, or only as begun, is taken for the child's run. What it
//!   was started with is not known: until a good file of that name is seen it is described by what
//!   its process shows, and nothing is started, restarted or stopped by that. The first good file
//!   then counts as what it was started with, so that only a later change restarts it (`sync`).
//! - A run that lives, or may, and of which nobody can tell the process is in doubt (I1), and
//!   stays so for the servers that follow.
//! - An order without an answer is given up: its answer may be among what is lost.
//! - A process that hides whose it is, and executes the program of a child that is not found, may be
//!   that child: it is in doubt as well.
//! - Run numbers go on behind all that may have been used.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    State, Turn,
    child::Child,
    effect::Level,
    listing::{Content, Update},
    memory::{Memory, Remembered, RememberedRun},
    record::Record,
};
use crate::{
    command::ErrorCode,
    spec::{ChildName, RunId, Spec, Time},
};

/// A live run that was found by its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub child: ChildName,
    /// Which.
    pub run: RunId,
    /// What its process shows of what it was started with.
    pub spec: Arc<Spec>,
    /// Its process and that one's start time in ticks, if it can be told which one it is.
    pub process: Option<(i32, u64)>,
    /// When it began.
    pub at: Time,
}

/// A process that may be a child's and does not show whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// Its number.
    pub pid: i32,
    /// The file that it executes.
    pub program: PathBuf,
}

/// What is to be recorded of the children that may be one of these processes: each whose program
/// one of them executes, and of which no process is known.
#[must_use]
pub fn doubts(
    memory: &Memory,
    listing: &Update,
    hidden: &[Hidden],
    alive: &BTreeSet<ChildName>,
) -> Vec<Record> {
    let mut records = Vec::new();
    for (name, entry) in &listing.entries {
        let Some(Content::Good(spec)) = entry.as_ref().map(|entry| &entry.content) else {
            continue;
        };
        let program = spec
            .command
            .first()
            .map(Path::new)
            .and_then(Path::file_name);
        let may_be = |hidden: &&Hidden| hidden.program.file_name() == program;
        let remembered = memory.children.get(name);
        let last = remembered.and_then(|it| it.last.as_ref());
        let doubted = last.is_some_and(|last| last.end.is_none() && last.doubt.is_some());
        let Some(hidden) = hidden.iter().find(may_be) else {
            continue;
        };
        if alive.contains(name) || doubted {
            continue;
        }
        let used = [
            last.map(|last| last.run),
            remembered.and_then(|it| it.maybe_used),
            remembered.and_then(|it| it.reserved),
        ];
        let run = used.into_iter().flatten().max().unwrap_or(RunId(0)).next();
        let (child, spec) = (name.clone(), Arc::clone(spec));
        records.push(Record::Begun {
            child,
            run,
            spec,
            by: None,
            order: None,
        });
        records.push(Record::Doubted {
            child: name.clone(),
            run,
            why: format!(
                "records were lost, and process {}, which runs `{}`, does not show whose it is",
                hidden.pid,
                hidden.program.display()
            ),
        });
    }
    records
}

/// What is to be recorded of the runs that were found. `alive` are the children whose recorded
/// process lives.
#[must_use]
pub fn records(memory: &Memory, found: &[Found], alive: &BTreeSet<ChildName>) -> Vec<Record> {
    let mut records = Vec::new();
    let names: BTreeSet<&ChildName> = found.iter().map(|found| &found.child).collect();
    for name in names {
        let own = found.iter().filter(|found| found.child == *name);
        // Of an older run only what it has left can live: a new one begins when it has ended.
        let Some(latest) = own.max_by_key(|found| found.run) else {
            continue;
        };
        let remembered = memory.children.get(name);
        let last = remembered.and_then(|remembered| remembered.last.as_ref());
        if !alive.contains(name) {
            found_run(&mut records, last, latest);
        }
    }
    for (name, remembered) in &memory.children {
        records.extend(orders_given_up(name, remembered));
        if let Some(upto) = remembered.reserved {
            // Of a reserved block it is not known any more which numbers were used.
            let child = name.clone();
            records.push(Record::MaybeUsed { child, upto });
        }
        let Some(last) = &remembered.last else {
            continue;
        };
        let told = |record: &Record| record.is_about(name, last.run);
        let newer = |found: &Found| found.child == *name && found.run > last.run;
        if last.is_open() && !records.iter().any(told) && !found.iter().any(newer) {
            records.push(Record::Doubted {
                child: name.clone(),
                run: last.run,
                why: format!(
                    "records were lost, and run {} may have been started",
                    last.run
                ),
            });
        }
    }
    records
}

/// The orders of a child that are not taken up: whether they were carried out is among what is
/// lost, and a second time nothing is stopped or restarted.
fn orders_given_up(name: &ChildName, remembered: &Remembered) -> Vec<Record> {
    let orders = remembered.orders.iter();
    let given_up = orders.map(|asked| Record::Answered {
        child: name.clone(),
        order: asked.order,
        failure: Some(ErrorCode::Internal),
    });
    given_up.collect()
}

fn found_run(records: &mut Vec<Record>, last: Option<&RememberedRun>, found: &Found) {
    let (child, run) = (found.child.clone(), found.run);
    let known = last.filter(|last| last.run >= run);
    match (known, found.process) {
        (Some(last), _) if last.run > run || !last.is_open() => {}
        (Some(_), Some((pid, start_ticks))) => records.push(Record::Started {
            child,
            run,
            pid,
            start_ticks,
            at: found.at,
        }),
        (None, Some((pid, start_ticks))) => records.push(Record::Found {
            child,
            run,
            spec: Arc::clone(&found.spec),
            pid,
            start_ticks,
            at: found.at,
        }),
        (known, None) => {
            if known.is_none() {
                records.push(Record::Begun {
                    child: child.clone(),
                    run,
                    spec: Arc::clone(&found.spec),
                    by: None,
                    order: None,
                });
            }
            let why = format!("records were lost, and which process is run {run} cannot be told");
            records.push(Record::Doubted { child, run, why });
        }
    }
}

impl State {
    /// Tells of a run that was taken back as what its process shows.
    pub(super) fn tell_found(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(run) = child.run.as_ref().filter(|run| run.found) else {
            return;
        };
        child.good = None;
        child.note = Some(format!(
            "records were lost: run {} was found by its process, and is shown as that shows itself",
            run.id
        ));
        let line = turn.log(Level::Warn, name, "found by its process");
        line.run = child.run.as_ref().map(|run| run.id);
    }

    /// A good file is seen: if its child's run was found by its process, this is what it was
    /// started with, as far as anybody knows.
    pub(super) fn match_found(turn: &mut Turn, name: &ChildName, child: &mut Child) {
        let Some(listed) = child.listed().map(Arc::clone) else {
            return;
        };
        let Some(run) = child.run.as_mut().filter(|run| run.found) else {
            return;
        };
        run.found = false;
        run.spec = Arc::clone(&listed);
        child.note = Some(format!(
            "records were lost: run {} was found by its process, and its file is taken for what \
             it was started with",
            run.id
        ));
        turn.record(Record::Matched {
            child: name.clone(),
            run: run.id,
            spec: listed,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        reconcile::{
            effect::Effect,
            event::{Boot, Event, Settings, StartKind},
            listing::{Entry, Loadpath, LoadpathState, Scope},
            record::{OrderId, Store, Wanted},
        },
        spec::{Digest, Exit, Mode, Mono, RestartPolicy, Sink, Wall},
    };

    const HOME: &str = "/load";

    fn web() -> ChildName {
        "web".parse().unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time {
            mono: Mono(seconds * 1_000_000),
            wall: Wall(i64::try_from(seconds).unwrap() * 1_000),
        }
    }

    fn spec(digest: u8) -> Arc<Spec> {
        Arc::new(Spec {
            path: PathBuf::from(format!("{HOME}/web.yml")),
            command: vec!["/bin/web".to_owned()],
            workdir: PathBuf::from(HOME),
            stdout: Sink::Inherit,
            stderr: Sink::Inherit,
            repeat: None,
            prehook: None,
            posthook: None,
            restart: RestartPolicy::default(),
            digest: Digest([digest; 16]),
        })
    }

    fn found(run: u64, process: Option<(i32, u64)>) -> Found {
        Found {
            child: web(),
            run: RunId(run),
            spec: spec(99),
            process,
            at: at(5),
        }
    }

    fn begun(run: u64) -> Record {
        Record::Begun {
            child: web(),
            run: RunId(run),
            spec: spec(1),
            by: None,
            order: None,
        }
    }

    fn started(run: u64, pid: i32) -> Record {
        Record::Started {
            child: web(),
            run: RunId(run),
            pid,
            start_ticks: 7,
            at: at(5),
        }
    }

    fn memory(records: &[Record]) -> Memory {
        let mut memory = Memory::default();
        for record in records {
            memory.apply(record);
        }
        memory
    }

    /// What is recorded, applied; the fold must be the same when it is read again.
    fn rebuilt(before: &[Record], found: &[Found], alive: &[ChildName]) -> (Vec<Record>, Memory) {
        let mut memory = memory(before);
        let alive = alive.iter().cloned().collect();
        let records = records(&memory, found, &alive);
        for record in &records {
            memory.apply(record);
        }
        let mut whole = memory.records(Store::Runtime);
        whole.extend(memory.records(Store::State));
        assert_eq!(
            self::memory(&whole).records(Store::Runtime),
            memory.records(Store::Runtime)
        );
        (records, memory)
    }

    #[test]
    fn a_run_that_no_record_knows_becomes_the_childs_run() {
        for before in [&[][..], &[begun(1), started(1, 70)]] {
            let (_, memory) = rebuilt(before, &[found(4, Some((80, 7)))], &[]);
            let last = memory.children[&web()].last.clone().unwrap();
            assert_eq!((last.run, last.process), (RunId(4), Some((80, 7))));
            assert!(last.found);
        }
    }

    #[test]
    fn an_order_that_may_have_been_carried_out_is_not_carried_out_again() {
        let asked = Record::Asked {
            child: web(),
            order: OrderId(3),
            wanted: Wanted::Restart,
            over: Some(RunId(3)),
            asker: Arc::new(crate::command::Asker {
                key: None,
                user: Some(0),
                peer: "192.0.2.1:7".parse().unwrap(),
            }),
        };
        let (_, memory) = rebuilt(&[asked], &[found(4, Some((80, 7)))], &[]);
        assert_eq!(memory.children[&web()].orders, []);
    }

    #[test]
    fn what_is_recorded_wins_over_what_is_found() {
        let ended = Record::Ended {
            child: web(),
            run: RunId(2),
            exit: Exit::Code(0),
            at: at(6),
            by: None,
            asker: None,
            restarts: 0,
        };
        for (before, run, alive) in [
            // The recorded process lives: whoever else says so does not count.
            (vec![begun(2), started(2, 70)], 3, vec![web()]),
            (vec![begun(2), started(2, 70)], 2, vec![web()]),
            // Its end is recorded: only what it has left can live.
            (vec![begun(2), started(2, 70), ended.clone()], 2, vec![]),
            (vec![begun(2), started(2, 70), ended], 1, vec![]),
        ] {
            let (records, _) = rebuilt(&before, &[found(run, Some((80, 7)))], &alive);
            assert_eq!(records, [], "{before:?} {run}");
        }
    }

    #[test]
    fn a_run_that_was_begun_is_found_or_in_doubt_for_good() {
        let (records, memory) = rebuilt(&[begun(3)], &[found(3, Some((80, 7)))], &[]);
        assert_eq!(records, [started(3, 80)]);
        let last = memory.children[&web()].last.clone().unwrap();
        assert!(!last.found, "what it was started with is recorded");
        for found in [vec![], vec![found(3, None)], vec![found(4, None)]] {
            let (_, memory) = rebuilt(&[begun(3)], &found, &[]);
            let last = memory.children[&web()].last.clone().unwrap();
            assert!(last.doubt.is_some() && last.process.is_none(), "{found:?}");
            assert_eq!(last.run.0, found.first().map_or(3, |found| found.run.0));
        }
    }

    fn listing(content: Option<Content>) -> Update {
        let entry = content.map(|content| Entry {
            paths: vec![PathBuf::from(format!("{HOME}/web.yml"))],
            content,
        });
        Update {
            scope: Scope::Whole,
            loadpaths: vec![Loadpath {
                path: PathBuf::from(HOME),
                state: LoadpathState::Ready { dev: 1, ino: 2 },
                faults: Vec::new(),
            }],
            entries: entry
                .map(|entry| (web(), Some(entry)))
                .into_iter()
                .collect(),
        }
    }

    fn good(digest: u8) -> Option<Content> {
        Some(Content::Good(spec(digest)))
    }

    fn bad() -> Option<Content> {
        Some(Content::Bad(Arc::from(["bad".to_owned()])))
    }

    /// A `sync` server that starts with these records and this listing after a loss.
    fn booted(memory: Memory, content: Option<Content>) -> (State, Vec<Effect>) {
        let mut state = State::new();
        let boot = Boot {
            start: StartKind::Continued,
            settings: Settings {
                mode: Mode::Sync,
                loadpaths: vec![PathBuf::from(HOME)],
                ..Settings::default()
            },
            memory,
            ended: Vec::new(),
            doubted: Vec::new(),
            listing: listing(content),
            seed: 1,
        };
        let effects = state.step(Event::Boot(Box::new(boot)), at(10));
        (state, effects)
    }

    /// Whether a job was begun: a restart, a start or a stop.
    fn acts(effects: &[Effect]) -> bool {
        let acts = |effect: &&Effect| match effect {
            Effect::Log(_) | Effect::Record { .. } => false,
            Effect::Reread { .. }
            | Effect::Preflight { .. }
            | Effect::Spawn { .. }
            | Effect::Signal { .. }
            | Effect::Reap { .. }
            | Effect::RunHook { .. }
            | Effect::KillHook { .. }
            | Effect::Reply { .. }
            | Effect::Inform { .. }
            | Effect::Recount { .. }
            | Effect::Upgrade { .. }
            | Effect::Exit(_) => true,
        };
        effects.iter().any(|effect| acts(&effect))
    }

    fn one_found() -> Memory {
        rebuilt(&[], &[found(4, Some((80, 7)))], &[]).1
    }

    #[test]
    fn the_first_good_file_counts_as_what_it_was_started_with() {
        for first in [good(1), bad(), None] {
            let (mut state, mut effects) = booted(one_found(), first.clone());
            assert!(!acts(&effects), "{effects:?}");
            let later = [listing(first), listing(good(1)), listing(good(1))];
            for (second, update) in (11..).zip(later) {
                let more = state.step(Event::Listing(update), at(second));
                assert!(!acts(&more), "{more:?}");
                effects.extend(more);
            }
            let matched = Record::Matched {
                child: web(),
                run: RunId(4),
                spec: spec(1),
            };
            let recorded = effects.iter().filter(|effect| {
                matches!(effect, Effect::Record { records, .. } if records.contains(&matched))
            });
            assert_eq!(recorded.count(), 1);
            // And from now on a change is a change.
            let effects = state.step(Event::Listing(listing(good(2))), at(20));
            assert!(acts(&effects), "{effects:?}");
        }
    }

    #[test]
    fn what_has_no_file_is_not_stopped_because_records_were_lost() {
        let (mut state, effects) = booted(one_found(), None);
        assert!(!acts(&effects), "{effects:?}");
        for second in 11..200 {
            let mut update = listing(None);
            update.scope = Scope::Confirming;
            let mut effects = state.step(Event::Listing(update), at(second));
            effects.extend(state.step(Event::Deadline, at(second)));
            assert!(!acts(&effects), "{effects:?}");
        }
    }

    #[test]
    fn a_child_in_doubt_is_not_started_and_says_so() {
        let doubted = rebuilt(&[begun(3)], &[], &[]).1;
        let (state, effects) = booted(doubted, good(1));
        assert!(!acts(&effects), "{effects:?}");
        let child = &state.children[&web()];
        let why = child.failure.clone().unwrap();
        assert!(why.contains("records were lost"), "{why}");
        assert!(why.contains("whether it lives is not known"), "{why}");
    }

    #[test]
    fn a_child_that_may_be_a_process_that_hides_itself_is_in_doubt_for_good() {
        let hidden = |program: &str| Hidden {
            pid: 80,
            program: PathBuf::from(program),
        };
        let reserved = Record::Reserved {
            child: web(),
            upto: RunId(1_000),
        };
        let doubts = |before: &[Record], program: &str, alive: &[ChildName]| {
            let alive = alive.iter().cloned().collect();
            super::doubts(
                &memory(before),
                &listing(good(1)),
                &[hidden(program)],
                &alive,
            )
        };
        assert_eq!(doubts(&[], "/bin/other", &[]), []);
        assert_eq!(doubts(&[], "/bin/web", &[web()]), []);
        let records = doubts(&[reserved], "/usr/bin/web", &[]);
        let memory = memory(&records);
        let last = memory.children[&web()].last.clone().unwrap();
        assert_eq!(last.run, RunId(1_001));
        let (state, effects) = booted(memory.clone(), good(1));
        assert!(!acts(&effects), "{effects:?}");
        let why = state.children[&web()].failure.clone().unwrap();
        assert!(
            why.contains("process 80, which runs `/usr/bin/web`"),
            "{why}"
        );
        let (_, effects) = booted(memory, good(2));
        assert!(!acts(&effects), "another file is no answer: {effects:?}");
        assert_eq!(doubts(&records, "/usr/bin/web", &[]), []);
    }

    #[test]
    fn numbers_go_on_behind_all_that_may_have_been_used() {
        let reserved = |upto| Record::Reserved {
            child: web(),
            upto: RunId(upto),
        };
        for (records, expected) in [
            // Of a reserved block it is not known any more which numbers were used.
            (vec![reserved(1_000)], 1_001),
            (vec![reserved(1_000), begun(7), started(7, 70)], 1_001),
            // The record of the block is lost as well.
            (vec![begun(7), started(7, 70)], 8),
        ] {
            let (_, rebuilt) = rebuilt(&records, &[], &[]);
            // For the servers that follow too.
            let mut again = memory(&rebuilt.records(Store::Runtime));
            for record in rebuilt.records(Store::State) {
                again.apply(&record);
            }
            for memory in [rebuilt, again] {
                let (state, _) = booted(memory, good(1));
                assert_eq!(state.children[&web()].highest() + 1, expected);
            }
        }
    }

    #[test]
    fn a_hold_that_its_live_run_came_after_was_released() {
        let held = |seconds| Record::Held {
            child: web(),
            since: at(seconds).wall,
        };
        let live = [begun(1), started(1, 70)];
        let overtaken = |hold| memory(&[&live[..], &[hold]].concat()).overtaken_holds();
        assert_eq!(overtaken(held(4)), [web()]);
        assert_eq!(overtaken(held(6)), []);
        assert_eq!(memory(&[held(4)]).overtaken_holds(), []);
    }
}
