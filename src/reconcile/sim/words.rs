//! What runs say of themselves in the fake world, whether somebody hears it or not.

use std::time::Duration;

use super::world::{Occurrence, Process, RunKey, Weather, World};
use crate::{
    reconcile::event::Event,
    spec::{Mono, Pulse, Sign, Word},
};

/// How many words a run says by chance.
const WORDS: u64 = 5;

/// What shows a run ready by itself, if that does.
fn shown(sign: &Sign) -> Option<Word> {
    match sign {
        Sign::Notify => Some(Word::Ready),
        Sign::Fd(_) => Some(Word::Wrote),
        Sign::Log(_) => Some(Word::Logged),
        Sign::Probe(_) => None,
    }
}

impl World {
    /// Settles what a run that has begun will say, and when.
    pub(super) fn plan_words(&mut self, key: &RunKey) {
        let Some(process) = self.processes.get(key) else {
            return;
        };
        let (ill, spec) = (process.showing.ill, process.spec.clone());
        let health = spec.health.as_ref();
        if let Some(health) = health.filter(|health| health.pulse == Pulse::Watchdog) {
            let key = key.clone();
            self.plan_in(health.interval / 2, Occurrence::Says(key, Word::Alive));
        }
        let ready = spec.ready.as_ref();
        let Some((ready, shown)) = ready.and_then(|it| Some((it, shown(&it.sign)?))) else {
            return;
        };
        let rough = self.weather == Weather::Rough;
        if !(rough && ill) {
            let span = match rough && self.random.percent(40) {
                true => self.random.millis(0, 25_000),
                false => self.random.delay().min(ready.timeout / 2),
            };
            self.plan_in(span, Occurrence::Says(key.clone(), shown));
        }
        for _ in 0..self.random.below(WORDS) {
            let span = self.random.millis(0, 40_000);
            let word = self.some_word();
            self.plan_in(span, Occurrence::Says(key.clone(), word));
        }
    }

    /// What is said while no server lives is lost, and what is written is not.
    pub(super) fn says_unheard(&mut self, key: &RunKey, word: &Word) {
        if let Some(process) = self.processes.get_mut(key) {
            let ready = process.spec.ready.as_ref();
            let sign = ready.and_then(|ready| shown(&ready.sign));
            let written = [Word::Wrote, Word::Logged].contains(word);
            process.showing.lasts |= written && sign.as_ref() == Some(word);
        }
    }

    /// The next server finds what was written.
    pub(super) fn find_what_lasts(&mut self) {
        let lasts = self.processes.iter().filter(|(_, it)| it.showing.lasts);
        let signs = lasts.filter_map(|(key, it)| {
            let ready = it.spec.ready.as_ref()?;
            Some((key.clone(), shown(&ready.sign)?))
        });
        for (key, word) in signs.collect::<Vec<_>>() {
            let span = self.random.delay();
            self.plan_in(span, Occurrence::Says(key, word));
        }
    }

    fn some_word(&mut self) -> Word {
        match self.random.below(10) {
            0 => Word::Ready,
            8 => Word::Wrote,
            6 => Word::Ailing,
            7 => Word::Pace(self.random.millis(500, 20_000)),
            1 => Word::Reloading,
            // Itself, another's process, nobody, or nonsense.
            9 => Word::Main(self.some_pid()),
            2 => Word::Status("busy".to_owned()),
            3 => Word::Stopping,
            _ => Word::Extend(self.random.millis(1, 20_000)),
        }
    }

    fn some_pid(&mut self) -> Option<i32> {
        let above = u64::try_from(self.next_pid).unwrap_or_default() + 2;
        let pid = self.random.below(above);
        i32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    /// What is told to end may ask for more time, over and over.
    pub(super) fn plan_delays(&mut self, key: &RunKey) {
        let listens = |sign: &Sign| *sign == Sign::Notify;
        let process = self.processes.get(key);
        let ready = process.and_then(|it| it.spec.ready.as_ref());
        if ready.is_some_and(|ready| listens(&ready.sign)) && self.random.percent(30) {
            let span = self.random.delay();
            let time = self.random.millis(1_000, 400_000);
            let word = Word::Extend(time);
            self.plan_in(span, Occurrence::Says(key.clone(), word));
        }
    }

    /// A run says something. Who is dead hears nothing.
    pub(super) fn says(&mut self, key: RunKey, word: Word) {
        let now = self.now.mono;
        let lives = |it: &Process| it.exit.is_none();
        if self.ended || !self.processes.get(&key).is_some_and(lives) {
            // What is left of a run may go on speaking for it.
            let ((child, run), words) = (key, vec![word]);
            return self.tell_again(Event::Notified { child, run, words });
        }
        // It cannot be heard before its start is told.
        if let Some(start) = self.told_to_start(&key) {
            return self.plan(start, Occurrence::Says(key, word));
        }
        let silent = self.is_silent(&key);
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let showing = &mut process.showing;
        let ready = process.spec.ready.as_ref();
        if ready.and_then(|ready| shown(&ready.sign)).as_ref() == Some(&word) {
            showing.told_ready = true;
            showing.lasts |= word != Word::Ready;
        }
        match &word {
            Word::Ready | Word::Wrote | Word::Logged => {}
            Word::Extend(time) if process.stop_at.is_some() => {
                process.put_off = true;
                let again = (*time - *time / 8).max(Duration::from_secs(1));
                let stubborn = process.temper.term.is_none();
                if stubborn {
                    self.plan_in(again, Occurrence::Says(key.clone(), word.clone()));
                }
            }
            Word::Extend(time) if !showing.ready => {
                showing.unheard = false;
                showing.asked_until = showing.asked_until.max(Some(now + *time));
            }
            Word::Alive | Word::Pace(_) => {
                // Whoever is to replace it may be on his way.
                showing.given_up |= silent;
                showing.alive_at = Some(now);
                let health = process.spec.health.as_ref();
                let interval = health.map(|health| health.interval);
                if let Word::Pace(time) = &word {
                    showing.pace = Some(*time);
                } else if let Some(interval) = interval {
                    // One that is ill falls silent now and then.
                    let pause = match process.showing.ill && self.random.percent(30) {
                        true => interval * 8,
                        false => interval / 2,
                    };
                    let again = Occurrence::Says(key.clone(), Word::Alive);
                    self.plan_in(pause, again);
                }
            }
            Word::Ailing => showing.given_up = true,
            Word::Main(named) => {
                // One that names another does so again.
                if *named != Some(process.pid) && self.random.percent(50) {
                    let span = self.random.delay();
                    self.plan_in(span, Occurrence::Says(key.clone(), word.clone()));
                }
            }
            Word::Extend(_) | Word::Reloading | Word::Stopping | Word::Status(_) => {}
        }
        let (child, run) = key;
        let words = vec![word];
        self.tell(Event::Notified { child, run, words });
    }

    /// Whether a run has been silent for so long that it is taken for ill.
    pub(super) fn is_silent(&self, key: &RunKey) -> bool {
        let Some(process) = self.processes.get(key) else {
            return true;
        };
        let showing = &process.showing;
        let health = process.spec.health.as_ref();
        let Some(health) = health.filter(|it| it.pulse == Pulse::Watchdog) else {
            return false;
        };
        let each = showing.pace.map(|pace| pace / health.failures);
        let each = each.unwrap_or(health.interval);
        let since = showing.alive_at.unwrap_or(showing.since);
        self.now.mono - since >= each * health.failures
    }

    /// Whether a run that was told to be late may be by now.
    pub(super) fn is_late(&self, key: &RunKey, timeout: Duration) -> bool {
        let Some(process) = self.processes.get(key) else {
            return true;
        };
        let showing = &process.showing;
        let asked: Option<Mono> = showing.asked_until;
        let over = asked.is_none_or(|until| self.now.mono >= until);
        let counts = asked.is_some() || self.now.mono - showing.since >= timeout;
        over && counts && !showing.unheard
    }
}
