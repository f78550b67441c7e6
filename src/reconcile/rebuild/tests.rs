//! What is made of runs that were found, at the next start and after it.

use std::path::PathBuf;

use super::*;
use crate::{
    reconcile::{
        effect::Effect,
        event::{Boot, Event, Settings, StartKind},
        listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
        record::{OrderId, Store, Wanted},
    },
    spec::{Circumstances, Digest, Exit, Mode, Mono, RestartPolicy, Sink, Wall},
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
        stop: crate::spec::StopPolicy::default(),
        ready: None,
        health: None,
        depends_on: crate::spec::Dependencies::new(),
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
        circumstances: Circumstances::default(),
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
        hooks: Vec::new(),
        listing: listing(content),
        seed: 1,
        exit_with: None,
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
        | Effect::Probe { .. }
        | Effect::EndProbe { .. }
        | Effect::Tell { .. }
        | Effect::Reply { .. }
        | Effect::Account { .. }
        | Effect::Explain { .. }
        | Effect::Inform { .. }
        | Effect::Recount { .. }
        | Effect::Upgrade { .. }
        | Effect::Exit { .. } => true,
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
        let recorded = effects.iter().filter(
            |effect| matches!(effect, Effect::Record { records, .. } if records.contains(&matched)),
        );
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

#[test]
fn what_a_fresh_start_made_of_a_run_in_doubt_is_void_once_its_end_is_seen() {
    let doubted = Record::Doubted {
        child: web(),
        run: RunId(3),
        why: "records were lost".to_owned(),
    };
    let ended = Record::Ended {
        child: web(),
        run: RunId(3),
        exit: Exit::Code(0),
        circumstances: Circumstances::default(),
        at: at(6),
        by: None,
        asker: None,
        restarts: 0,
    };
    let renewed = Record::Renewed { child: web() };
    let late = [
        begun(3),
        doubted,
        renewed.clone(),
        started(3, 70),
        ended.clone(),
    ];
    let in_order = [begun(3), started(3, 70), ended, renewed];
    for (records, expected) in [(&late[..], false), (&in_order, true)] {
        let once = memory(records);
        let again = memory(&once.records(Store::Runtime));
        for memory in [once, again] {
            let last = memory.children[&web()].last.clone().unwrap();
            assert_eq!((last.renewed, last.settled), (expected, expected));
        }
    }
}
