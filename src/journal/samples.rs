//! Records for the tests of this folder.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    reconcile::{
        cause::Cause,
        program::{HookId, HookKind, HookProgram},
        record::{Record, Store},
        suspects::{Sighting, Suspect, Suspicion},
    },
    spec::{
        ChildName, Circumstances, Digest, Exit, Mono, OpenMode, Repeat, RestartPolicy, RunId, Sink,
        Spec, Time, Verb, Wall,
    },
};

/// Says that a test cannot run here; with `REQUIRE_ALL=1` that is a failure.
pub(super) fn skip(reason: &str) {
    println!("skipped: {reason}");
    let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "skipped although REQUIRE_ALL=1: {reason}");
}

pub(super) fn name(text: &str) -> ChildName {
    text.parse().unwrap()
}

pub(super) fn at(millis: u64) -> Time {
    Time {
        mono: Mono(millis * 1000),
        wall: Wall(i64::try_from(millis).unwrap()),
    }
}

pub(super) fn spec(child: &str, command: Vec<String>) -> Spec {
    Spec {
        path: PathBuf::from(format!("/srv/load/{child}.yml")),
        command,
        workdir: PathBuf::from("/srv/load"),
        stdout: Sink::Inherit,
        stderr: Sink::File {
            path: PathBuf::from(format!("/srv/logs/{child}.err")),
            mode: OpenMode::Append,
        },
        repeat: None,
        prehook: None,
        posthook: None,
        restart: RestartPolicy::default(),
        stop: crate::spec::StopPolicy::default(),
        ready: None,
        health: None,
        depends_on: crate::spec::Dependencies::new(),
        digest: Digest([7; 16]),
    }
}

pub(super) fn begun_with(child: &str, run: u64, command: Vec<String>) -> Record {
    Record::Begun {
        child: name(child),
        run: RunId(run),
        spec: Arc::new(spec(child, command)),
        by: None,
        order: None,
    }
}

pub(super) fn begun(child: &str, run: u64) -> Record {
    begun_with(child, run, vec!["/bin/web".to_owned()])
}

pub(super) fn started(child: &str, run: u64) -> Record {
    Record::Started {
        child: name(child),
        run: RunId(run),
        pid: 4242,
        start_ticks: 99,
        at: at(5),
    }
}

pub(super) fn ended(child: &str, run: u64) -> Record {
    Record::Ended {
        child: name(child),
        run: RunId(run),
        exit: Exit::Code(3),
        circumstances: Circumstances::default(),
        at: at(9),
        by: Some(Cause::Command),
        asker: None,
        restarts: 0,
    }
}

pub(super) fn held(child: &str) -> Record {
    Record::Held {
        child: name(child),
        since: Wall(1_700_000_000_000),
    }
}

pub(super) fn released(child: &str) -> Record {
    Record::Released { child: name(child) }
}

pub(super) fn reserved(child: &str, upto: u64) -> Record {
    Record::Reserved {
        child: name(child),
        upto: RunId(upto),
    }
}

/// One record of every kind.
pub(super) fn one_of_each() -> Vec<Record> {
    let mut all = runtime();
    all.extend([held("web"), released("web"), reserved("web", 64)]);
    all
}

/// One record of every kind that is kept in the runtime store.
pub(super) fn runtime() -> Vec<Record> {
    vec![
        Record::Opened {
            boot: "boot-1".to_owned(),
        },
        begun("web", 1),
        started("web", 1),
        Record::Stopping {
            child: name("web"),
            run: RunId(1),
            by: None,
        },
        ended("web", 1),
        begun("web", 2),
        Record::NotStarted {
            child: name("web"),
            run: RunId(2),
            why: "no such file: `/bin/\u{0}wéb`\n".to_owned(),
            at: at(11),
        },
        Record::Doubted {
            child: name("web"),
            run: RunId(2),
            why: "records were lost".to_owned(),
        },
        Record::Suspects(Sighting::Seen(Suspect {
            pid: 4244,
            start_ticks: 99,
            program: "/bin/web".to_owned(),
        })),
        Record::Suspicion {
            child: name("web"),
            is: Suspicion::MayBe {
                program: "web".to_owned(),
            },
        },
        Record::Armed {
            child: name("web"),
            run: RunId(1),
            repeat: Repeat {
                action: Verb::Restart,
                every: Duration::from_secs(5),
            },
            due: Mono(77),
        },
        Record::Disarmed { child: name("web") },
        Record::LoadpathSeen {
            path: PathBuf::from("/srv/load"),
            dev: 1,
            ino: 2,
        },
        Record::HookBegun {
            child: name("web"),
            hook: HookId(5),
            program: Arc::new(HookProgram {
                kind: HookKind::Posthook,
                argv: vec!["/bin/tell".to_owned(), "\"\n".to_owned()],
                workdir: PathBuf::from("/srv"),
            }),
        },
        Record::HookStarted {
            child: name("web"),
            hook: HookId(5),
            pid: 4_244,
            start_ticks: 99,
            at: at(12),
        },
        Record::HookEnded {
            child: name("web"),
            hook: HookId(5),
        },
        Record::Forgotten {
            child: name("gone"),
        },
        Record::Found {
            child: name("found"),
            run: RunId(3),
            spec: Arc::new(spec("found", vec!["/bin/found".to_owned()])),
            pid: 4243,
            start_ticks: 98,
            at: at(4),
        },
        Record::Matched {
            child: name("found"),
            run: RunId(3),
            spec: Arc::new(spec("found", vec!["/bin/found".to_owned()])),
        },
        Record::MaybeUsed {
            child: name("web"),
            upto: RunId(1_000),
        },
        Record::Closed,
    ]
}

/// What a server does in its life, of which each has numbers of its own: enough for its file to be
/// written anew several times.
pub(super) fn batches(store: Store, life: u64) -> Vec<Vec<Record>> {
    let mut all = Vec::new();
    for run in life * 100 + 1..life * 100 + 13 {
        for child in ["a", "b"] {
            match store {
                Store::Runtime => all.extend([
                    vec![begun(child, run)],
                    vec![started(child, run)],
                    vec![ended(child, run), Record::Closed],
                ]),
                Store::State => all.extend([
                    vec![held(child), reserved(child, run * 64)],
                    vec![released(child)],
                ]),
            }
        }
    }
    all
}

/// A directory that is ours alone, whatever mode new ones have by default.
pub(super) fn own_dir() -> tempfile::TempDir {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new()
        .permissions(mode)
        .tempdir()
        .unwrap()
}
