//! The simulator: the core against a fake world, some thousands of lives of it.
//!
//! A seed decides everything: the files, what people do, how long things take, what fails, and
//! where the server is killed. After each step the checks compare what the core ordered and
//! answered with what the world knows (I1 to I9); at the end the world goes quiet and the core
//! has to come to rest with what should run running. A seed that fails prints itself and its
//! history; `SIM_SEED=… cargo test --lib sim::replay -- --nocapture` shows it again.
//!
//! Absent on purpose: real files, processes, clocks and threads.

mod actions;
mod answers;
mod cells;
mod checks;
mod claims;
mod coverage;
mod depends;
mod files;
mod following;
mod handover;
mod hooks;
mod mainstay;
mod probing;
mod quiet;
mod random;
mod script;
mod suspects;
mod waiting;
mod words;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

use self::{
    coverage::Coverage,
    world::{Weather, World},
};
use super::{
    event::StartKind,
    planted::{ALL, Bug, plant},
};

/// How many lives are lived.
const SEEDS: u64 = 2_000;

/// How many are lived until one must have shown a planted bug: most do early, some are rare.
const HUNT_SEEDS: u64 = 8_000;

/// How many rows of seeds may be lived until every pair of state and event was met.
const SEED_ROUNDS_MAX: u64 = 4;
/// How many times something happens in each before the world goes quiet.
const STEPS: u64 = 200;
/// How many lives are lived as often as they have effects, with a crash at each.
const SEEDS_CRASHED: u64 = 8;
/// How many times something happens in those.
const STEPS_CRASHED: u64 = 60;

/// What went wrong in one life, and how it came to that.
struct Failed {
    seed: u64,
    why: String,
    history: Vec<String>,
}

impl Failed {
    fn text(&self) -> String {
        let (seed, why) = (self.seed, &self.why);
        format!(
            "{}\nseed {seed}: {why}\nreplay: SIM_SEED={seed} cargo test --lib sim::replay -- --nocapture",
            self.history.join("\n")
        )
    }
}

/// Lives the life of a seed.
fn live(seed: u64, history: Option<Vec<String>>) -> (World, Option<String>) {
    let mut world = World::new(seed);
    world.history = history;
    live_on(world, STEPS)
}

/// Lives a life of so many steps.
fn live_on(mut world: World, steps: u64) -> (World, Option<String>) {
    let lived = catch_unwind(AssertUnwindSafe(|| {
        world.boot(StartKind::Fresh);
        for _ in 0..steps {
            if world.checks.fault.is_some() {
                return;
            }
            world.come_up();
            // Much is tried in the states that are seldom and short.
            let chance = if world.somebody_is_stuck() { 75 } else { 35 };
            if world.random.percent(chance) {
                world.act();
            } else {
                world.advance();
            }
        }
        if world.checks.fault.is_none() {
            world.go_quiet();
        }
    }));
    let why = match lived {
        Ok(()) => world.checks.fault.take(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(
                text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default(),
            )
        }
    };
    (world, why)
}

fn run(seed: u64) -> Result<Coverage, String> {
    let (world, why) = live(seed, None);
    if why.is_none() {
        return Ok(world.coverage);
    }
    let (mut world, why) = live(seed, Some(Vec::new()));
    let why = why.unwrap_or_else(|| "it is not the same twice".to_owned());
    let history = world.history.take().unwrap_or_default();
    Err(Failed { seed, why, history }.text())
}

/// Lives one quarter of all lives, once for all tests that ask.
fn quarter(n: u64) -> &'static Coverage {
    static LIVED: [OnceLock<Result<Coverage, String>>; 4] = [const { OnceLock::new() }; 4];
    let place = usize::try_from(n).expect("there are four");
    let lived = LIVED[place].get_or_init(|| {
        let mut all = Coverage::default();
        for seed in n * SEEDS / 4..(n + 1) * SEEDS / 4 {
            all.add(&run(seed)?);
        }
        Ok(all)
    });
    match lived {
        Ok(coverage) => coverage,
        Err(text) => panic!("{text}"),
    }
}

#[test]
fn replay() {
    let Some(seed) = std::env::var("SIM_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    else {
        println!("nothing to replay: set SIM_SEED");
        return;
    };
    let (mut world, why) = live(seed, Some(Vec::new()));
    println!("{}", world.history.take().unwrap_or_default().join("\n"));
    if let Some(why) = why {
        panic!("seed {seed}: {why}");
    }
}

#[test]
fn seeds_first_quarter() {
    quarter(0);
}

#[test]
fn seeds_second_quarter() {
    quarter(1);
}

#[test]
fn seeds_third_quarter() {
    quarter(2);
}

#[test]
fn seeds_fourth_quarter() {
    quarter(3);
}

/// Lives the life of a seed with the server killed at this of its effects, beside all else that
/// happens in it. `None`: it has not so many.
fn live_killed_at(
    seed: u64,
    effect: u64,
    history: Option<Vec<String>>,
) -> Option<(World, Option<String>)> {
    let mut world = World::new(seed);
    world.history = history;
    world.weather = Weather::Rough;
    world.crash_on = Some(effect);
    let (world, why) = live_on(world, STEPS_CRASHED);
    (world.effects >= effect).then_some((world, why))
}

/// As many seeds as `SIM_CRASHES` says; by default as many as are lived in some seconds.
#[test]
fn a_crash_at_every_effect_of_a_life_is_survived() {
    let asked = std::env::var("SIM_CRASHES").ok();
    let seeds = asked.and_then(|text| text.parse().ok());
    for seed in 0..seeds.unwrap_or(SEEDS_CRASHED) {
        let mut effect = 1;
        while let Some((_, why)) = live_killed_at(seed, effect, None) {
            if why.is_some() {
                let again = live_killed_at(seed, effect, Some(Vec::new()));
                let history = again.and_then(|(mut world, _)| world.history.take());
                println!("{}", history.unwrap_or_default().join("\n"));
                panic!("seed {seed}, killed at effect {effect}: {why:?}");
            }
            effect += 1;
        }
    }
}

/// Lives lives until one shows the bug.
fn hunt(bug: Bug) -> Option<(u64, String)> {
    plant(Some(bug));
    let found = (0..HUNT_SEEDS).find_map(|seed| Some((seed, live(seed, None).1?)));
    plant(None);
    found
}

fn hunt_all(bugs: &[Bug]) {
    let mut missed = Vec::new();
    for bug in bugs {
        match hunt(*bug) {
            Some((seed, why)) => {
                println!(
                    "{bug:?}: seed {seed}: {}",
                    why.lines().next().unwrap_or_default()
                );
            }
            None => missed.push(bug),
        }
    }
    assert!(
        missed.is_empty(),
        "not caught within {HUNT_SEEDS} seeds: {missed:?}"
    );
}

#[test]
fn every_planted_bug_is_caught_first_half() {
    hunt_all(&ALL[..ALL.len() / 2]);
}

#[test]
fn every_planted_bug_is_caught_second_half() {
    hunt_all(&ALL[ALL.len() / 2..]);
}

/// How many of so many seeds fail, by what is wrong: a look at the whole while bugs are hunted,
/// as `SIM_SURVEY=10000 cargo test --lib sim::survey -- --nocapture`.
#[test]
fn survey() {
    let Some(count) = std::env::var("SIM_SURVEY")
        .ok()
        .and_then(|text| text.parse().ok())
    else {
        return;
    };
    let mut kinds: std::collections::BTreeMap<String, (u64, u64)> =
        std::collections::BTreeMap::new();
    for seed in 0..count {
        if let (_, Some(why)) = live(seed, None) {
            let mut kind = why.lines().next().unwrap_or_default().to_owned();
            for text in files::NAMES {
                kind = kind.replace(text, "NAME");
            }
            kind.retain(|c| !c.is_ascii_digit());
            kinds.entry(kind).or_insert((0, seed)).0 += 1;
        }
    }
    for (kind, (count, seed)) in kinds {
        println!("{count:>5} x {kind} (seed {seed})");
    }
}

/// Pairs that cannot be, and why.
fn impossible(state: &str, kind: &str) -> Option<&'static str> {
    let at_rest = [
        "at rest", "failed", "backoff", "blocked", "held", "in doubt",
    ];
    let answers = ["reread", "preflight", "hook finished"];
    if kind == "boot" {
        return Some("it is the first event: nobody is in the table");
    }
    if at_rest.contains(&state) && answers.contains(&kind) {
        return Some("it answers an order, and none is under way");
    }
    None
}

/// What a row of seeds met that it should not have, or did not meet and should have.
fn unlike_expected(all: &Coverage) -> Vec<String> {
    let mut wrong = Vec::new();
    for (state, state_name) in coverage::STATES.iter().enumerate() {
        for (kind, kind_name) in coverage::KINDS.iter().enumerate() {
            let times = all.times(state, kind);
            match impossible(state_name, kind_name) {
                None if times == 0 => {
                    wrong.push(format!("never met: {kind_name} while {state_name}"));
                }
                Some(why) if times > 0 => {
                    wrong.push(format!(
                        "met although `{why}`: {kind_name} while {state_name}"
                    ));
                }
                Some(_) | None => {}
            }
        }
    }
    wrong
}

#[test]
fn every_pair_of_state_and_event_is_met() {
    let mut all = Coverage::default();
    for n in 0..4 {
        all.add(quarter(n));
    }
    // The rarest pairs come once in a thousand lives: any change of the core shuffles them.
    for round in 1..SEED_ROUNDS_MAX {
        if unlike_expected(&all).is_empty() {
            return;
        }
        for seed in round * SEEDS..(round + 1) * SEEDS {
            all.add(&run(seed).unwrap_or_else(|text| panic!("{text}")));
        }
    }
    let wrong = unlike_expected(&all);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
