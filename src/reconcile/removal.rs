//! The listing taken in: what is new, what changed, and when "gone" is believed.
//!
//! New and changed files are acted upon at once. A file that is gone waits: for the quiet second,
//! and where too many went at once or a loadpath was taken out, for a confirming listing too. A
//! loadpath that is missing, unreadable, or empty in another place than before takes nothing away.
//! While nobody watches, nothing is judged: it may be back already.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    CONFIRM_WITHOUT_RESCAN, QUIET, QUIET_MAX, State, Turn,
    cause::Cause,
    child::{Belief, Child, Gone},
    effect::{Effect, Level},
    listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
    planted::{Bug, planted},
    record::Record,
    timers::Timer,
};
use crate::spec::{ChildName, Mode};

/// So many children gone at once are never too many.
const MANY_MIN: usize = 3;

impl State {
    pub(super) fn on_listing(&mut self, turn: &mut Turn, update: Update) {
        let Update {
            scope,
            loadpaths,
            entries,
        } = update;
        if scope != Scope::Touched {
            self.on_watched(turn);
        }
        self.take_loadpaths(turn, loadpaths);
        let mut mentioned = BTreeSet::new();
        let mut changed = false;
        for (name, entry) in entries {
            if scope != Scope::Touched {
                mentioned.insert(name.clone());
            }
            changed |= self.take_entry(turn, &name, entry);
        }
        if scope != Scope::Touched {
            let unmentioned: Vec<ChildName> = self
                .children
                .iter()
                .filter(|(name, child)| child.entry.is_some() && !mentioned.contains(*name))
                .map(|(name, _)| name.clone())
                .collect();
            for name in unmentioned {
                changed |= self.take_entry(turn, &name, None);
            }
        }
        for home in std::mem::take(&mut turn.returned) {
            self.rest_if_complete(&home);
        }
        if scope != Scope::Touched {
            self.on_relisted(turn);
        }
        if changed {
            self.prolong_quiet(turn);
        }
        self.note_places(turn);
        if scope == Scope::Confirming {
            self.confirm_removals(turn);
        }
    }

    /// Nobody watches: no time runs by which a file would count as gone.
    pub(super) fn on_unwatched(&mut self) {
        self.unwatched = true;
        if planted(Bug::RemovalJudgedUnwatched) {
            return;
        }
        for home in self.restless.keys() {
            self.timers.cancel(&Timer::Quiet(home.clone()));
        }
        self.timers.cancel(&Timer::Confirm);
    }

    /// All was read while somebody watches. What passed before was no quiet: nobody listened.
    fn on_watched(&mut self, turn: &mut Turn) {
        if !std::mem::take(&mut self.unwatched) {
            return;
        }
        for home in std::mem::take(&mut self.restless).into_keys() {
            self.expect_quiet(turn, &home);
        }
        self.expect_confirmation(turn);
    }

    fn take_loadpaths(&mut self, turn: &mut Turn, loadpaths: Vec<Loadpath>) {
        if loadpaths == self.loadpaths {
            return;
        }
        for loadpath in &loadpaths {
            let before = self
                .loadpaths
                .iter()
                .find(|known| known.path == loadpath.path);
            if before.map(|known| &known.state) == Some(&loadpath.state) {
                continue;
            }
            let fault = match &loadpath.state {
                LoadpathState::Ready { .. } => None,
                LoadpathState::Missing => Some("it does not exist (yet)".to_owned()),
                LoadpathState::Unreadable(why) => Some(why.clone()),
            };
            if let Some(why) = fault {
                let what = "loadpath cannot be read; what runs runs on";
                let detail = format!("`{}`: {why}", loadpath.path.display());
                turn.log_of_all(Level::Warn, what).detail = Some(detail);
            }
        }
        self.loadpaths = loadpaths;
        self.expect_confirmation(turn);
        self.lose_faith();
        // A loadpath that is back may make a removal believable that was not.
        let homes: BTreeSet<PathBuf> = self
            .children
            .values()
            .filter_map(|child| child.gone.as_ref())
            .filter(|gone| gone.belief == Belief::Seen)
            .map(|gone| gone.home.clone())
            .collect();
        for home in homes {
            self.expect_quiet(turn, &home);
        }
    }

    /// What went from a loadpath that is itself not to be had now is not believed any more.
    fn lose_faith(&mut self) {
        let away = |state: &LoadpathState| match state {
            LoadpathState::Ready { .. } => false,
            LoadpathState::Missing | LoadpathState::Unreadable(_) => true,
        };
        let away: Vec<&Loadpath> = self.loadpaths.iter().filter(|it| away(&it.state)).collect();
        if away.is_empty() {
            return;
        }
        let is_away = |child: &Child| {
            let gone = child.gone.as_ref();
            gone.is_some_and(|gone| away.iter().any(|loadpath| loadpath.path == gone.home))
        };
        let mine = self.children.iter().filter(|(_, child)| is_away(child));
        let names: Vec<ChildName> = mine.map(|(name, _)| name.clone()).collect();
        for name in names {
            let child = self.children.get_mut(&name);
            if let Some(gone) = child.and_then(|child| child.gone.as_mut()) {
                gone.belief = Belief::Seen;
            }
        }
    }

    /// Takes in what one name stands for now; says whether that is a change (I7).
    fn take_entry(&mut self, turn: &mut Turn, name: &ChildName, entry: Option<Entry>) -> bool {
        let known = self.children.get(name);
        let same = known.and_then(|child| child.entry.as_ref()) == entry.as_ref();
        if same && !planted(Bug::SameListingActs) {
            return false;
        }
        self.unblock(turn, name);
        match entry {
            None => self.take_absence(turn, name),
            Some(entry) => self.take_presence(turn, name, entry),
        }
        turn.unsettle(name);
        true
    }

    fn take_presence(&mut self, turn: &mut Turn, name: &ChildName, entry: Entry) {
        let quiet_mode = self.settings.mode == Mode::Quiet;
        let child = self.enter(name);
        let is_new = match &child.gone {
            Some(gone) => turn.now.mono - gone.since > QUIET,
            None => child.entry.is_none(),
        };
        let back_in = child.gone.take().map(|gone| gone.home);
        let mut as_it_was = false;
        let detail = match &entry.content {
            Content::Good(spec) => {
                as_it_was = child.take_good(spec, is_new);
                None
            }
            Content::Bad(faults) => {
                child.fresh |= is_new && child.run.is_none() && child.last.is_none();
                Some(faults.join("\n"))
            }
            Content::Conflict => {
                child.fresh |= is_new && child.run.is_none() && child.last.is_none();
                let paths: Vec<String> = entry
                    .paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                Some(paths.join(" and "))
            }
        };
        let waits = is_new && quiet_mode && child.run.is_none();
        let what = match (&entry.content, is_new, waits) {
            (Content::Good(_), true, true) => "new file; it waits for `start`",
            (Content::Good(_), true, false) => "new file",
            (Content::Good(_), false, _) if as_it_was => "file is as it was",
            (Content::Good(_), false, _) => "file changed",
            (Content::Bad(_), ..) => "bad file; nothing is changed by it",
            (Content::Conflict, ..) => "two files with one name; neither is used",
        };
        let level = match entry.content {
            Content::Good(_) => Level::Info,
            Content::Bad(_) | Content::Conflict => Level::Warn,
        };
        child.entry = Some(entry);
        Self::match_found(turn, name, child);
        // A good file is no news because a server that starts has not seen it before.
        if turn.cause != Cause::Boot || level != Level::Info || waits {
            turn.log(level, name, what).detail = if waits && level == Level::Info {
                Some(format!("supervisor-rs-client start {name}"))
            } else {
                detail
            };
        }
        self.suspect(turn, name);
        self.removed.take_out(name);
        if let Some(home) = back_in {
            self.missing.take_out(&home, name);
            turn.returned.insert(home);
        }
    }

    /// Nothing is missed in a loadpath any more: there is nothing to wait for (I9).
    fn rest_if_complete(&mut self, home: &Path) {
        let seen = |(_, gone): (&ChildName, &Gone)| gone.belief == Belief::Seen;
        if !self.gone_from(home).any(seen) {
            self.restless.remove(home);
            self.timers.cancel(&Timer::Quiet(home.to_owned()));
        }
    }

    fn take_absence(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(entry) = child.entry.take() else {
            return;
        };
        let home = home_of(&entry);
        turn.log(Level::Info, name, "file is gone");
        self.lose(turn, name, home);
    }

    /// Begins to doubt that a child is still declared.
    pub(super) fn lose(&mut self, turn: &mut Turn, name: &ChildName, home: PathBuf) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let since = turn.now.mono;
        let before = child.gone.take();
        child.gone = Some(Gone {
            since,
            home: home.clone(),
            belief: if planted(Bug::RemovalBelievedAtOnce) {
                Belief::Confirmed
            } else {
                Belief::Seen
            },
        });
        if let Some(before) = before {
            self.missing.take_out(&before.home, name);
        }
        self.missing.put(&home, name);
        self.restless.entry(home.clone()).or_insert(since);
        self.expect_quiet(turn, &home);
    }

    /// (Re)starts the quiet second of a loadpath, within the bound of its restlessness.
    fn expect_quiet(&mut self, turn: &mut Turn, home: &Path) {
        let now = turn.now.mono;
        let first = *self.restless.entry(home.to_owned()).or_insert(now);
        if self.unwatched {
            return;
        }
        let at = (now + QUIET).min(first + QUIET_MAX).max(now);
        self.timers.set(Timer::Quiet(home.to_owned()), at);
    }

    /// Something changed: where files are gone, the quiet second begins anew.
    fn prolong_quiet(&mut self, turn: &mut Turn) {
        let homes: Vec<PathBuf> = self.restless.keys().cloned().collect();
        for home in homes {
            self.expect_quiet(turn, &home);
        }
    }

    /// A loadpath was quiet for long enough: what is gone from it is judged.
    pub(super) fn on_quiet(&mut self, turn: &mut Turn, home: &Path) {
        self.restless.remove(home);
        if !self.is_believable(home) {
            return;
        }
        let gone: Vec<ChildName> = self
            .gone_from(home)
            .filter(|(_, gone)| gone.belief == Belief::Seen)
            .map(|(name, _)| name.clone())
            .collect();
        let stay = self.children.values().filter(|child| {
            child
                .entry
                .as_ref()
                .is_some_and(|entry| entry.paths.iter().any(|p| p.parent() == Some(home)))
        });
        let stay = stay.count();
        let configured = self.settings.loadpaths.iter().any(|path| path == home);
        // What went before and is doubted still went with it.
        let doubted = |(_, gone): &(&ChildName, &Gone)| gone.belief == Belief::Doubted;
        let went = gone.len() + self.gone_from(home).filter(doubted).count();
        let many = went >= MANY_MIN && went > stay && !planted(Bug::MassRemovalBelieved);
        let belief = if many || !configured {
            Belief::Doubted
        } else {
            Belief::Confirmed
        };
        if belief == Belief::Doubted && self.settings.mode == Mode::Sync && !gone.is_empty() {
            let what = "many files went at once; nothing is stopped until a rescan confirms it";
            let detail = format!("{} of `{}`", gone.len(), home.display());
            turn.log_of_all(Level::Warn, what).detail = Some(detail);
        }
        for name in gone {
            self.believe(turn, &name, belief);
        }
        self.expect_confirmation(turn);
    }

    /// Where no rescan will confirm what is doubted, time has to.
    pub(super) fn expect_confirmation(&mut self, turn: &mut Turn) {
        let doubted = |child: &Child| {
            let belief = child.gone.as_ref().map(|gone| gone.belief);
            belief == Some(Belief::Doubted)
        };
        if self.settings.rescan.is_some() || self.unwatched {
            self.timers.cancel(&Timer::Confirm);
        } else if !self.timers.is_armed(&Timer::Confirm) && self.children.values().any(doubted) {
            let at = turn.now.mono + CONFIRM_WITHOUT_RESCAN;
            self.timers.set(Timer::Confirm, at);
        }
    }

    fn believe(&mut self, turn: &mut Turn, name: &ChildName, belief: Belief) {
        let sync = self.settings.mode == Mode::Sync;
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if let Some(gone) = &mut child.gone {
            gone.belief = belief;
        }
        if belief == Belief::Confirmed {
            if sync && !child.is_live() {
                self.cancel_due(turn, name);
            }
            self.forget_due(turn, name, None);
            turn.unsettle(name);
        }
    }

    /// A confirming listing came, or what stands in for it: what is still gone is gone.
    pub(super) fn confirm_removals(&mut self, turn: &mut Turn) {
        let doubted: Vec<(ChildName, PathBuf)> = self
            .children
            .iter()
            .filter_map(|(name, child)| Some((name, child.gone.as_ref()?)))
            .filter(|(_, gone)| gone.belief == Belief::Doubted)
            .map(|(name, gone)| (name.clone(), gone.home.clone()))
            .collect();
        for (name, home) in doubted {
            if self.is_believable(&home) {
                self.believe(turn, &name, Belief::Confirmed);
            }
        }
    }

    /// Whether what a loadpath does not show may count as gone.
    fn is_believable(&self, home: &Path) -> bool {
        let Some(loadpath) = self.loadpaths.iter().find(|loadpath| loadpath.path == home) else {
            // It was taken out of server.yml: that is an order, not an accident.
            return !self.settings.loadpaths.iter().any(|path| path == home);
        };
        match loadpath.state {
            LoadpathState::Ready { dev, ino } => {
                self.has_files(home) || self.seen.get(home).is_none_or(|seen| *seen == (dev, ino))
            }
            LoadpathState::Missing | LoadpathState::Unreadable(_) => false,
        }
    }

    fn has_files(&self, home: &Path) -> bool {
        self.children.values().any(|child| {
            let paths = child.entry.as_ref().map_or(&[][..], |entry| &entry.paths);
            paths.iter().any(|path| path.parent() == Some(home))
        })
    }

    /// Remembers where each loadpath stands while it has files in it.
    fn note_places(&mut self, turn: &mut Turn) {
        let mut records = Vec::new();
        for loadpath in &self.loadpaths {
            let LoadpathState::Ready { dev, ino } = loadpath.state else {
                continue;
            };
            let path = &loadpath.path;
            if self.seen.get(path) != Some(&(dev, ino)) && self.has_files(path) {
                records.push(Record::LoadpathSeen {
                    path: path.clone(),
                    dev,
                    ino,
                });
            }
        }
        for record in &records {
            if let Record::LoadpathSeen { path, dev, ino } = record {
                self.seen.insert(path.clone(), (*dev, *ino));
                // What was not believed of an empty directory is believed of this one.
                if self
                    .gone_from(path)
                    .any(|(_, gone)| gone.belief == Belief::Seen)
                {
                    self.expect_quiet(turn, path);
                }
            }
        }
        if !records.is_empty() {
            self.expect_confirmation(turn);
            turn.emit(Effect::Record {
                ticket: None,
                records,
            });
        }
    }

    fn gone_from(&self, home: &Path) -> impl Iterator<Item = (&ChildName, &Gone)> {
        self.missing.of(home).filter_map(|name| {
            let gone = self.children.get(name)?.gone.as_ref()?;
            Some((name, gone))
        })
    }

    /// What an operator should know that concerns no single child.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for loadpath in &self.loadpaths {
            let path = loadpath.path.display();
            match &loadpath.state {
                LoadpathState::Ready { .. } => {
                    if !self.is_believable(&loadpath.path) {
                        notes.push(format!(
                            "loadpath `{path}` is empty and is not the directory it was: nothing \
                             of it is stopped"
                        ));
                    }
                }
                LoadpathState::Missing => notes.push(format!("loadpath `{path}` does not exist")),
                LoadpathState::Unreadable(why) => {
                    notes.push(format!("loadpath `{path}` cannot be read: {why}"));
                }
            }
            notes.extend(loadpath.faults.iter().cloned());
        }
        let doubted = |child: &&Child| {
            let belief = child.gone.as_ref().map(|gone| gone.belief);
            belief == Some(Belief::Doubted) && child.is_live()
        };
        let doubted = self.children.values().filter(doubted).count();
        if doubted > 0 && self.settings.mode == Mode::Sync {
            notes.push(format!(
                "{doubted} running children lost their files at once: they are stopped when the \
                 next rescan (or a HUP) finds the files still gone"
            ));
        }
        notes
    }
}

/// The loadpath that an entry belongs to: its (first) file's folder.
fn home_of(entry: &Entry) -> PathBuf {
    let parent = entry.paths.first().and_then(|path| path.parent());
    parent.unwrap_or(Path::new("/")).to_owned()
}
