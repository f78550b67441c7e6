//! Upgrades in the simulator: the core is written down, read again and goes on as another would.

use std::{collections::BTreeSet, fs, path::Path};

use ciborium::Value;

use super::{
    files::NAMES,
    world::{Occurrence, World},
};
use crate::reconcile::{
    State,
    event::{Event, StartKind},
    listing::Scope,
};

/// Every how many events. No random number is drawn for it, so that a seed's life stays the same.
const EVERY: u64 = 37;

/// How many lives are looked at for what is written, and how many steps of each.
const LIVES: u64 = 60;
const STEPS: u64 = 60;

/// The core, as the next program of an upgrade has it.
fn handed_over(core: &State) -> Result<State, String> {
    let mut bytes = Vec::new();
    ciborium::into_writer(core, &mut bytes).map_err(|error| format!("not written: {error}"))?;
    ciborium::from_reader(bytes.as_slice()).map_err(|error| format!("not read: {error}"))
}

impl World {
    /// Nobody has to ask for it.
    pub(super) fn sometimes_hand_over_core(&mut self) {
        self.told_events += 1;
        if self.told_events.is_multiple_of(EVERY) {
            self.hand_over_core();
        }
    }

    /// Another program goes on, whose watcher has yet to read everything: until it has, it hears of
    /// nothing, and that may take.
    pub(super) fn upgrade(&mut self) {
        self.hand_over_core();
        self.report(Event::Unwatched);
        if !self.is_unwatched() {
            let span = match self.random.percent(50) {
                true => self.random.delay(),
                false => self.random.millis(0, 90_000),
            };
            self.unwatched_until = self.now.mono + span;
            self.plan(self.unwatched_until, Occurrence::LookAtAll(Scope::Whole));
        }
    }

    /// Whether the watcher is not there yet.
    pub(super) fn is_unwatched(&self) -> bool {
        self.now.mono < self.unwatched_until
    }

    /// What the watcher would do if it was there: what it is asked waits for it.
    pub(super) fn miss_out_on(&mut self, what: Occurrence) {
        match what {
            Occurrence::Notice(_) => {}
            what => self.plan(self.unwatched_until, what),
        }
    }

    /// Another program goes on with the core, and nothing may be lost on the way.
    pub(super) fn hand_over_core(&mut self) {
        match handed_over(&self.core) {
            Ok(core) if core == self.core => self.core = core,
            Ok(core) => self.checks.blame(|| {
                let (before, after) = (&self.core, &core);
                format!("an upgrade loses something: {before:?}\nbecomes {after:?}")
            }),
            Err(why) => self
                .checks
                .blame(|| format!("an upgrade loses the core: {why}")),
        }
    }
}

/// The names of fields and variants that are written. What is the key of a map is not one.
fn names(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Map(entries) => {
            for (key, value) in entries {
                if let Value::Text(text) = key
                    && !NAMES.contains(&text.as_str())
                    && !text.contains('/')
                {
                    found.insert(text.clone());
                }
                names(key, found);
                names(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| names(value, found)),
        Value::Tag(_, value) => names(value, found),
        _ => {}
    }
}

/// A program of another version must not take it for its own: so whoever changes it is told.
#[test]
fn what_the_core_hands_over_is_what_it_was_when_its_version_was_given() {
    let mut found = BTreeSet::new();
    for seed in 0..LIVES {
        let mut world = World::new(seed);
        world.boot(StartKind::Fresh);
        for step in 0..STEPS {
            world.come_up();
            match step % 3 {
                0 => world.act(),
                _ => world.advance(),
            }
            names(&Value::serialized(&world.core).unwrap(), &mut found);
        }
    }
    let found: String = found.iter().map(|name| format!("{name}\n")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/state.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, known,
        "what is handed over has changed: if a version with the one before was released, raise \
         `STATE_VERSION`; then UPDATE_SNAPSHOTS=1 cargo test --lib handover"
    );
}
