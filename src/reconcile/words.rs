//! What a run says of itself: that it is ready, what it does, that something takes longer.
//!
//! - The socket by which it is said belongs to one run, so that what an older one says changes
//!   nothing (I4). Whoever says it for a run counts as the run.
//! - A run that is ready by its own word and was taken back while it was starting may have said so
//!   while no server lived. Nothing fails it for that: it stays `starting` until it says it again,
//!   or asks for more time, which shows that it has not.
//! - What it does is shown, and neither acted upon nor written down: the next server learns it anew.
//! - Its main process is the one that was started, whatever it names: with that one it ends, is
//!   stopped, and is found again by the next server. That it has named another is told once.
//! - A stop may be put off by the run that is stopped, and comes to its end all the same (I8):
//!   [`STOP_EXTENDED_MAX`].
//!
//! Source: sd_notify(3).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    child::{Phase, Run, Rung},
    effect::Level,
    planted::{Bug, planted},
    probes::Probed,
    timers::Timer,
};
use crate::spec::{ChildName, Health, Mono, Pulse, RunId, Sign, Word};

/// How long the steps of one stop may be put off, all together.
pub const STOP_EXTENDED_MAX: Duration = Duration::from_secs(10 * 60);

/// How much time a run may ask for at once.
const EXTEND_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a run may be silent at least that chooses itself how long that is.
const PACE_MIN: Duration = Duration::from_millis(10);

/// What the log is told of a run that names another main process.
pub(super) const MAIN_STAYS: &str =
    "`MAINPID` is passed over, and the main process stays what it was";

/// What a live run has said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    /// What it does, for people.
    pub(super) status: Option<String>,
    pub(super) doing: Doing,
    /// Within which time it says that it does its work, if it has chosen one.
    #[serde(default)]
    pub(super) pace: Option<Duration>,
    /// It has asked for more time while it was stopped; it has until then at most.
    pub(super) stop_until: Option<Mono>,
    #[serde(default)]
    pub(super) main: Main,
}

/// Whether the log was told already that a run has named another main process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Main {
    #[default]
    Unquestioned,
    Told,
}

/// What a run is at besides its work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Doing {
    #[default]
    Nothing,
    /// It reads its configuration again.
    Reloading,
    /// It ends by itself.
    Stopping,
}

impl State {
    /// A run has said something.
    pub(super) fn on_notified(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        id: RunId,
        words: Vec<Word>,
    ) {
        for word in words {
            let child = self.children.get_mut(name);
            let run = child.and_then(|child| child.run.as_mut());
            let mine = |run: &&mut Run| run.id == id || planted(Bug::WordOfAnyRun);
            let Some(run) = run.filter(mine).filter(|run| run.pid.is_some()) else {
                return;
            };
            match word {
                Word::Ready | Word::Wrote | Word::Logged => self.on_sign(turn, name, &word),
                Word::Reloading => run.said.doing = run.said.doing.reloading(),
                Word::Stopping => {
                    let before = std::mem::replace(&mut run.said.doing, Doing::Stopping);
                    if before != Doing::Stopping && run.phase == Phase::Running {
                        turn.log(Level::Info, name, "ends by itself, as it says")
                            .run = Some(id);
                    }
                }
                Word::Status(text) => run.said.status = Some(text).filter(|it| !it.is_empty()),
                Word::Extend(time) => self.extend(turn, name, time.min(EXTEND_MAX)),
                Word::Alive => self.on_alive(turn, name),
                Word::Ailing => self.on_ailing_said(turn, name),
                Word::Main(named) => self.on_main_named(turn, name, named),
                Word::Pace(time) => {
                    run.said.pace = Some(time.min(EXTEND_MAX));
                    self.on_alive(turn, name);
                }
            }
        }
    }

    /// A run has said or shown what may be what it is waited for.
    fn on_sign(&mut self, turn: &mut Turn, name: &ChildName, word: &Word) {
        let Some(run) = self.live_run(name) else {
            return;
        };
        if *word == Word::Ready {
            run.said.doing = run.said.doing.ready();
        }
        let sign = run.spec.ready.as_ref().map(|ready| &ready.sign);
        let counts = match sign {
            Some(Sign::Notify) => *word == Word::Ready,
            Some(Sign::Fd(_)) => *word == Word::Wrote,
            Some(Sign::Log(_)) => *word == Word::Logged,
            Some(Sign::Probe(_)) | None => false,
        };
        if run.is_starting() && (counts || planted(Bug::AnySignCounts)) {
            self.is_ready(turn, name);
        }
    }

    /// A run names its main process, which stays the one that was started.
    fn on_main_named(&mut self, turn: &mut Turn, name: &ChildName, named: Option<i32>) {
        let Some(run) = self.children.get_mut(name).and_then(|it| it.run.as_mut()) else {
            return;
        };
        let Some(pid) = run.pid.filter(|pid| named != Some(*pid)) else {
            return;
        };
        if planted(Bug::MainBelieved) {
            run.pid = named;
        }
        let before = std::mem::replace(&mut run.said.main, Main::Told);
        if before == Main::Told && !planted(Bug::MainToldAgain) {
            return;
        }
        let named = match named {
            Some(named) => format!("it names process {named}"),
            None => "it names no process".to_owned(),
        };
        let line = turn.log(Level::Warn, name, MAIN_STAYS);
        line.run = Some(run.id);
        line.detail = Some(format!(
            "{named}, and the run began with process {pid} and ends with it; help: have the program stay in the foreground"
        ));
    }

    /// A run says that it does its work.
    fn on_alive(&mut self, turn: &mut Turn, name: &ChildName) {
        let run = self.live_run(name).filter(|run| !run.is_starting());
        if run.is_none_or(|run| run.watchdog().is_none()) || planted(Bug::WatchdogUnheard) {
            return;
        }
        self.is_healthy(turn, name);
        self.look_at_health(turn, name);
    }

    /// A run says that it does not do its work: no further sign is waited for.
    fn on_ailing_said(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(run) = self.live_run(name) else {
            return;
        };
        let Some(most) = run.watchdog().map(|health| health.failures) else {
            return;
        };
        run.probed.failures = most.saturating_sub(1);
        self.is_ailing(turn, name, "it says so: `WATCHDOG=trigger`".to_owned());
    }

    /// A run has not said in time that it does its work.
    pub(super) fn on_silence(&mut self, turn: &mut Turn, name: &ChildName) {
        let run = self.live_run(name).filter(|run| !run.is_starting());
        let Some(interval) = run.and_then(|run| run.health_interval()) else {
            return;
        };
        self.look_at_health(turn, name);
        let interval = humantime::format_duration(interval);
        self.is_ailing(turn, name, format!("not said within {interval}"));
    }

    /// What a run is at takes longer: becoming ready, or a step of its stop.
    fn extend(&mut self, turn: &mut Turn, name: &ChildName, time: Duration) {
        let until = turn.now.mono + time;
        let Some(run) = self.children.get_mut(name).and_then(|it| it.run.as_mut()) else {
            return;
        };
        let (timer, until) = match run.phase {
            Phase::Running if run.is_starting() => {
                let Probed {
                    awaited,
                    unheard,
                    asked_for,
                    ..
                } = &mut run.probed;
                // Who asks for more time has not said that he is ready.
                let before = awaited.filter(|_| !*unheard);
                if before.is_some_and(|before| before >= until) {
                    return;
                }
                *unheard = false;
                *asked_for = Some(time);
                *awaited = Some(until);
                (Timer::Ready(name.clone()), until)
            }
            Phase::Stopping {
                rung: Rung::Step(_),
                ..
            } => {
                let last = turn.now.mono + STOP_EXTENDED_MAX;
                let last = *run.said.stop_until.get_or_insert(last);
                let until = match planted(Bug::StopPutOffForEver) {
                    true => until,
                    false => until.min(last),
                };
                (Timer::Ladder(name.clone()), until)
            }
            Phase::Stopping {
                rung: Rung::Kill | Rung::Stuck,
                ..
            }
            | Phase::Spawning
            | Phase::Running => return,
        };
        if self.timers.due(&timer).is_none_or(|due| due < until) {
            self.timers.set(timer, until);
        }
    }

    /// Goes on waiting for a run that was starting when its server died.
    pub(super) fn await_ready_again(&mut self, turn: &mut Turn, name: &ChildName) {
        self.look_for_ready(turn, name);
        let Some(run) = self.live_run(name) else {
            return;
        };
        let sign = run.spec.ready.as_ref().map(|ready| &ready.sign);
        match sign {
            Some(Sign::Notify) if !planted(Bug::UnheardFails) => {}
            Some(Sign::Notify | Sign::Probe(_) | Sign::Fd(_) | Sign::Log(_)) | None => return,
        }
        run.probed.unheard = true;
        let id = run.id;
        self.timers.cancel(&Timer::Ready(name.clone()));
        let what = "may have said that it is ready while no server lived";
        let line = turn.log(Level::Warn, name, what);
        line.run = Some(id);
        let wait = "it is `starting` until it says so again, however long that takes";
        line.detail = Some(wait.to_owned());
    }
}

impl Run {
    /// How its health is shown, if by its own word.
    pub(super) fn watchdog(&self) -> Option<&Health> {
        let health = self.spec.health.as_ref();
        health.filter(|health| health.pulse == Pulse::Watchdog)
    }

    /// How long after a sign of its health the next one is due.
    pub(super) fn health_interval(&self) -> Option<Duration> {
        let health = self.spec.health.as_ref()?;
        let chosen = self.said.pace.filter(|_| self.watchdog().is_some());
        let each = |all: Duration| (all / health.failures.max(1)).max(PACE_MIN);
        Some(chosen.map_or(health.interval, each))
    }
}

impl Doing {
    fn reloading(self) -> Self {
        match self {
            Self::Nothing | Self::Reloading => Self::Reloading,
            Self::Stopping => Self::Stopping,
        }
    }

    fn ready(self) -> Self {
        match self {
            Self::Nothing | Self::Reloading => Self::Nothing,
            Self::Stopping => Self::Stopping,
        }
    }
}
