//! What people and machines do to the fake world: edits, commands, signals, accidents.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use super::{
    files::{DirState, File, HOMES, NAMES, name},
    world::{Occurrence, RESCAN, Weather, World},
};
use crate::{
    command::{Asker, CheckScope, Command, KillChildren},
    reconcile::{
        QUEUE_LEN_MAX,
        child::{Child, Phase, Rung},
        event::{Event, RequestId},
        listing::Scope,
    },
    spec::{ChildName, Exit, Mode, OnExit, Verb},
};

impl World {
    /// Does something.
    pub(super) fn act(&mut self) {
        match self.random.below(100) {
            0..=26 => self.edit_files(),
            27 => self.tell(Event::Shutdown),
            28..=60 => self.command(),
            61..=66 => self.edit_settings(),
            67..=72 => self.look_again(),
            73..=80 => self.somebody_dies(),
            81..=88 => self.tell_stale(),
            89 => self.flood(),
            90..=93 if self.weather == Weather::Rough => self.plan_crash(),
            94..=95 if self.weather == Weather::Rough => self.crash_now(),
            96 if self.weather == Weather::Rough => self.reboot(),
            97 => self.tell(Event::Shutdown),
            _ => self.advance(),
        }
    }

    pub(super) fn some_name(&mut self) -> ChildName {
        name(self.random.pick::<&str>(&NAMES))
    }

    fn some_home(&mut self) -> &'static str {
        HOMES[usize::from(self.random.percent(25))]
    }

    // Files.

    pub(super) fn edit_files(&mut self) {
        let home = self.some_home();
        let who = self.some_name();
        let mut touched = BTreeSet::from([who.clone()]);
        match self.random.below(20) {
            0..=7 => self.write(home, &who),
            8..=9 => {
                let version = self.files.version();
                self.dir(home).files.insert(who, File::Bad(version));
            }
            10..=12 => {
                self.dir(home).files.remove(&who);
            }
            13..=14 => self.flip(home, &who),
            15 => touched = self.remove_many(home),
            16 => {
                let state = match self.dir(home).state {
                    DirState::Ready => {
                        *self.random.pick(&[DirState::Missing, DirState::Unreadable])
                    }
                    DirState::Missing | DirState::Unreadable => DirState::Ready,
                };
                self.dir(home).state = state;
            }
            17 => {
                // Another directory takes its place, empty or with the same content.
                let version = self.files.version();
                let empty = self.random.percent(50);
                let dir = self.dir(home);
                dir.ino = 1_000 + version;
                touched = dir.files.keys().cloned().collect();
                if empty {
                    dir.files.clear();
                }
            }
            18 => {
                self.write(HOMES[0], &who);
                self.write(HOMES[1], &who);
            }
            _ => {
                // Somebody tidies up: one file a name.
                let first: BTreeSet<ChildName> = self.dir(HOMES[0]).files.keys().cloned().collect();
                let second = self.dir(HOMES[1]);
                touched.extend(second.files.keys().cloned());
                second.files.retain(|name, _| !first.contains(name));
            }
        }
        self.hint(touched);
    }

    fn dir(&mut self, home: &str) -> &mut super::files::Dir {
        self.files
            .dirs
            .get_mut(Path::new(home))
            .expect("both homes are there")
    }

    /// A checkout to another branch and back: gone and there again, the same or not.
    fn flip(&mut self, home: &str, who: &ChildName) {
        let Some(before) = self.dir(home).files.remove(who) else {
            return;
        };
        if self.random.percent(50) {
            self.hint(BTreeSet::from([who.clone()]));
            let span = self.random.millis(0, 900);
            self.pass_with_events(span);
        }
        self.dir(home).files.insert(who.clone(), before);
        if self.random.percent(30) {
            self.write(home, who);
        }
    }

    /// Time passes, and what happens in it happens.
    pub(super) fn pass_with_events(&mut self, span: Duration) {
        let until = self.now.mono + span;
        for _ in 0..1_000 {
            if self.next_at().is_none_or(|at| at > until) {
                break;
            }
            self.advance();
        }
        self.pass(until - self.now.mono);
    }

    fn remove_many(&mut self, home: &str) -> BTreeSet<ChildName> {
        let names: Vec<ChildName> = self.dir(home).files.keys().cloned().collect();
        let keep = self.random.below(3);
        let gone: BTreeSet<ChildName> = names
            .into_iter()
            .skip(usize::try_from(keep).unwrap_or(0))
            .collect();
        self.dir(home).files.retain(|name, _| !gone.contains(name));
        gone
    }

    /// The watcher hears of it, mostly.
    fn hint(&mut self, names: BTreeSet<ChildName>) {
        let span = self.random.delay();
        match self.random.below(20) {
            0..=14 => self.plan_in(span, Occurrence::Notice(names)),
            15..=16 => {
                for name in names {
                    self.plan_in(span, Occurrence::Notice(BTreeSet::from([name])));
                }
            }
            17 => self.look_at_all(Scope::Whole),
            // Lost: the rescan makes up for it.
            _ => {}
        }
    }

    fn look_again(&mut self) {
        let scope = *self
            .random
            .pick(&[Scope::Whole, Scope::Whole, Scope::Confirming]);
        self.look_at_all(scope);
    }

    fn edit_settings(&mut self) {
        let mut settings = self.settings.clone();
        match self.random.below(6) {
            0..=1 => {
                settings.mode = *self.random.pick(&[
                    Mode::Sync,
                    Mode::Sync,
                    Mode::Full,
                    Mode::Half,
                    Mode::Quiet,
                ]);
            }
            2 => {
                let who = self.some_name();
                if !settings.startup.remove(&who) {
                    settings.startup.insert(who);
                }
            }
            3 => {
                settings.loadpaths = match settings.loadpaths.len() {
                    1 => HOMES.iter().map(std::path::PathBuf::from).collect(),
                    _ => vec![HOMES[0].into()],
                };
            }
            4 => {
                settings.rescan = if settings.rescan.is_some() {
                    None
                } else {
                    Some(RESCAN)
                }
            }
            _ => settings.on_exit = *self.random.pick(&[OnExit::Leave, OnExit::Stop]),
        }
        let rescans = settings.rescan.is_some() && self.settings.rescan.is_none();
        self.settings = settings.clone();
        self.report(Event::Settings(settings));
        self.look_at_all(Scope::Whole);
        if rescans {
            self.plan_in(RESCAN, Occurrence::Rescan);
        }
    }

    // Commands.

    pub(super) fn request(&mut self, command: Command) {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let peer = "192.0.2.1:7".parse().expect("an address");
        let asker = Arc::new(Asker {
            key: None,
            user: Some(7),
            peer,
        });
        self.tell(Event::Request { id, command, asker });
    }

    pub(super) fn somebody_is_stuck(&self) -> bool {
        self.core.children.values().any(|child| {
            let phase = child.run.as_ref().map(|run| run.phase);
            matches!(
                phase,
                Some(Phase::Stopping {
                    rung: Rung::Stuck,
                    ..
                })
            )
        })
    }

    /// Somebody in a state that is seldom and short, where there is one.
    pub(super) fn somebody_busy(&mut self) -> Option<ChildName> {
        let stuck = |child: &&Child| {
            let phase = child.run.as_ref().map(|run| run.phase);
            matches!(
                phase,
                Some(Phase::Stopping {
                    rung: Rung::Kill | Rung::Stuck,
                    ..
                })
            )
        };
        let busy =
            |child: &&Child| child.is_stopping() || child.job.is_some() || child.is_in_doubt();
        let children = &self.core.children;
        let mut names: Vec<&ChildName> = children
            .iter()
            .filter(|(_, it)| stuck(it))
            .map(|(name, _)| name)
            .collect();
        if names.is_empty() {
            names = children
                .iter()
                .filter(|(_, it)| busy(it))
                .map(|(name, _)| name)
                .collect();
        }
        if names.is_empty() {
            return None;
        }
        Some((*self.random.pick(&names)).clone())
    }

    fn command(&mut self) {
        let child = match self.random.below(100) {
            0..=2 => name("nobody"),
            3..=40 => self.somebody_busy().unwrap_or_else(|| self.some_name()),
            _ => self.some_name(),
        };
        let command = match self.random.below(40) {
            0..=8 => Command::Child {
                verb: Verb::Start,
                child,
            },
            9..=14 => Command::Child {
                verb: Verb::Restart,
                child,
            },
            15..=20 => Command::Child {
                verb: Verb::Trystart,
                child,
            },
            21..=29 => Command::Child {
                verb: Verb::Stop,
                child,
            },
            30..=31 => Command::StopAll,
            32..=33 => Command::StartAll,
            34 => Command::CheckOne(child),
            35 => Command::Why(child),
            36 => Command::Check {
                scope: CheckScope::Live,
            },
            37 => Command::Check {
                scope: CheckScope::All,
            },
            // No number is drawn for which, so that a seed's life stays the same.
            38 if self.next_request.is_multiple_of(2) => Command::Upgrade,
            38 => Command::Info,
            _ => Command::Kill(
                *self
                    .random
                    .pick(&[KillChildren::AsConfigured, KillChildren::Stop]),
            ),
        };
        self.request(command);
        self.sometimes_wait();
        self.sometimes_follow();
    }

    /// More commands for one child than may wait.
    fn flood(&mut self) {
        let child = self.some_name();
        for _ in 0..QUEUE_LEN_MAX + 4 {
            let verb =
                *self
                    .random
                    .pick(&[Verb::Trystart, Verb::Trystart, Verb::Start, Verb::Restart]);
            self.request(Command::Child {
                verb,
                child: child.clone(),
            });
        }
    }

    fn somebody_dies(&mut self) {
        let keys: Vec<_> = self.processes.keys().cloned().collect();
        if keys.is_empty() {
            return self.advance();
        }
        let key = self.random.pick(&keys).clone();
        let exit = *self
            .random
            .pick(&[Exit::Code(0), Exit::Code(1), Exit::Signal(9)]);
        let span = self.random.delay();
        self.end_in(key, span, exit);
    }
}
