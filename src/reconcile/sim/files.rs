//! The files of the fake world: loadpaths, what stands in them, and what a watcher reports of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::random::Random;
use crate::{
    reconcile::{
        event::Settings,
        listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
    },
    spec::{
        ChildName, Digest, Health, Hook, Probe, Pulse, Ready, Repeat, RestartLimit, RestartPolicy,
        RestartWhen, Sign, SignalNumber, Sink, Spec, StopAct, StopPolicy, StopScope, StopStep,
        Verb,
    },
};

pub(super) const NAMES: [&str; 7] = ["cache", "cron", "db", "job", "mail", "proxy", "web"];
pub(super) const HOMES: [&str; 2] = ["/l1", "/l2"];

pub(super) fn name(text: &str) -> ChildName {
    text.parse().expect("the simulator's names are good")
}

/// A directory that is, or is not, there.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    pub(super) state: DirState,
    pub(super) ino: u64,
    pub(super) files: BTreeMap<ChildName, File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirState {
    Ready,
    Missing,
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum File {
    Good(Arc<Spec>),
    Bad(u64),
}

#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dirs: BTreeMap<PathBuf, Dir>,
    pub(super) next_version: u64,
}

impl Files {
    pub(super) fn new() -> Self {
        let dir = |(i, home): (usize, &&str)| {
            let ino = 100 + u64::try_from(i).expect("there are two");
            let files = BTreeMap::new();
            let state = DirState::Ready;
            (PathBuf::from(home), Dir { state, ino, files })
        };
        Self {
            dirs: HOMES.iter().enumerate().map(dir).collect(),
            next_version: 1,
        }
    }

    pub(super) fn version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version
    }

    /// What a watcher that looks now reports.
    pub(super) fn snapshot(
        &self,
        settings: &Settings,
        scope: Scope,
        names: Option<&BTreeSet<ChildName>>,
    ) -> Update {
        let mut loadpaths = Vec::new();
        let mut found: BTreeMap<ChildName, Vec<(PathBuf, &File)>> = BTreeMap::new();
        for path in &settings.loadpaths {
            let dir = &self.dirs[path];
            let state = match dir.state {
                DirState::Ready => LoadpathState::Ready {
                    dev: 1,
                    ino: dir.ino,
                },
                DirState::Missing => LoadpathState::Missing,
                DirState::Unreadable => LoadpathState::Unreadable("permission denied".to_owned()),
            };
            if dir.state == DirState::Ready {
                for (name, file) in &dir.files {
                    let path = path.join(format!("{name}.yml"));
                    found.entry(name.clone()).or_default().push((path, file));
                }
            }
            let faults = Vec::new();
            loadpaths.push(Loadpath {
                path: path.clone(),
                state,
                faults,
            });
        }
        let mut entries: Vec<(ChildName, Option<Entry>)> = Vec::new();
        match names {
            None => entries.extend(found.iter().map(|(name, at)| (name.clone(), entry(at)))),
            Some(names) => {
                for name in names {
                    let at = found.get(name).map_or(&[][..], |at| at);
                    entries.push((name.clone(), entry(at)));
                }
            }
        }
        Update {
            scope,
            loadpaths,
            entries,
        }
    }
}

fn entry(at: &[(PathBuf, &File)]) -> Option<Entry> {
    let paths: Vec<PathBuf> = at.iter().map(|(path, _)| path.clone()).collect();
    let content = match at {
        [] => return None,
        [(_, File::Good(spec))] => Content::Good(Arc::clone(spec)),
        [(path, File::Bad(version))] => {
            let fault = format!("{}:1:1: fault {version}", path.display());
            Content::Bad(Arc::from([fault]))
        }
        [_, _, ..] => Content::Conflict,
    };
    Some(Entry { paths, content })
}

/// The program of a child; some children have the same.
fn program(name: &ChildName) -> String {
    format!("/bin/{}", &name.as_str()[..1])
}

/// A child's file with some content; the version alone makes its digest.
pub(super) fn spec(random: &mut Random, home: &str, name: &ChildName, version: u64) -> Arc<Spec> {
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&version.to_be_bytes());
    let stem = name.as_str().as_bytes();
    let len = stem.len().min(8);
    digest[8..8 + len].copy_from_slice(&stem[..len]);
    Arc::new(Spec {
        path: PathBuf::from(format!("{home}/{name}.yml")),
        command: vec![program(name), version.to_string()],
        workdir: PathBuf::from(home),
        stdout: Sink::Inherit,
        stderr: Sink::Inherit,
        repeat: repeat(random),
        prehook: random.percent(25).then(|| hook(random, "pre", name)),
        posthook: random.percent(25).then(|| hook(random, "post", name)),
        restart: policy(random),
        stop: stop(random, name),
        ready: ready(random, version),
        health: health(random, version),
        depends_on: super::depends::dependencies(home, name, version),
        digest: Digest(digest),
    })
}

fn stop(random: &mut Random, owner: &ChildName) -> StopPolicy {
    if random.percent(60) {
        return StopPolicy::default();
    }
    let steps = (0..random.below(4)).map(|_| StopStep {
        act: match random.below(4) {
            0 => StopAct::Run(vec!["stop".to_owned(), owner.to_string()]),
            1 => StopAct::Signal("INT".parse().expect("a signal")),
            _ => StopAct::Signal(SignalNumber::TERM),
        },
        wait: random.millis(0, 10_000),
    });
    StopPolicy {
        steps: steps.collect(),
        scope: *random.pick(&[StopScope::Group, StopScope::Tree]),
    }
}

fn probe() -> Probe {
    Probe::Exec(vec!["probe".to_owned()])
}

/// Of the version, so that no number is drawn for it.
fn sign(version: u64) -> Sign {
    match version % 6 {
        0 | 2 => Sign::Probe(probe()),
        1 => Sign::Fd(3),
        3 => Sign::Log("up".to_owned()),
        _ => Sign::Notify,
    }
}

fn ready(random: &mut Random, version: u64) -> Option<Ready> {
    random.percent(30).then(|| Ready {
        sign: sign(version),
        timeout: random.millis(1_000, 20_000),
        interval: random.millis(50, 2_000),
    })
}

fn pulse(version: u64) -> Pulse {
    match version % 4 {
        0 | 1 => Pulse::Probe(probe()),
        _ => Pulse::Watchdog,
    }
}

fn health(random: &mut Random, version: u64) -> Option<Health> {
    random.percent(20).then(|| Health {
        pulse: pulse(version),
        interval: random.millis(1_000, 20_000),
        timeout: random.millis(100, 5_000),
        failures: 1 + u32::try_from(random.below(3)).expect("it is small"),
    })
}

fn repeat(random: &mut Random) -> Option<Repeat> {
    random.percent(15).then(|| Repeat {
        action: *random.pick(&[
            Verb::Start,
            Verb::Restart,
            Verb::Trystart,
            Verb::Trystart,
            Verb::Stop,
        ]),
        every: random.millis(500, 40_000),
    })
}

fn hook(random: &mut Random, kind: &str, owner: &ChildName) -> Hook {
    if random.percent(50) {
        return Hook::Run(vec![kind.to_owned(), owner.to_string()]);
    }
    let verb = *random.pick(&[
        Verb::Start,
        Verb::Start,
        Verb::Restart,
        Verb::Trystart,
        Verb::Stop,
    ]);
    Hook::Command {
        verb,
        child: name(random.pick::<&str>(&NAMES)),
    }
}

fn policy(random: &mut Random) -> RestartPolicy {
    let when = *random.pick(&[
        RestartWhen::Never,
        RestartWhen::Never,
        RestartWhen::OnFailure,
        RestartWhen::Always,
    ]);
    let max = random.percent(30).then(|| RestartLimit {
        count: 1 + u32::try_from(random.below(4)).expect("it is small"),
        within: random.millis(1_000, 60_000),
    });
    RestartPolicy {
        when,
        delay: *random.pick(&[
            Duration::ZERO,
            Duration::from_millis(1),
            Duration::from_millis(500),
            Duration::from_secs(5),
        ]),
        reset_after: *random.pick(&[Duration::from_secs(5), Duration::from_secs(60)]),
        max,
        never_on: if random.percent(20) {
            vec![78]
        } else {
            Vec::new()
        },
        ..RestartPolicy::default()
    }
}
