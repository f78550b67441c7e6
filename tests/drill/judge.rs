//! Compares what is with what must be: at each start of the server, and when all has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use supervisor_rs::spec::Mono;

use crate::{
    children::{self, CHILDREN, DEAF, Ledger},
    clients::{Outcome, Sent, Shared, Verb},
    look::{Leader, Row, descriptors, doubles, leaders},
    reaper::{self, End},
    sandbox::millis_of,
    tally::Fault,
};

/// How the server says that it does not know what became of a run.
const DOUBT: &str = "whether it lives is not known";

/// How far apart two tellings of one time may be, in milliseconds: the wall clock is not steady.
const CLOCK_MS: u64 = 250;

/// A child and a run of it.
type Run = (String, u64);

/// Which exits of runs this machine can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exits {
    /// All of them, once the server that has started a run has pinned it.
    Pinned,
    /// Those of runs that end while the server lives that has started them.
    KnownToTheirServer,
}

/// How long after the start of a process its pin is there for certain, and how exact that start is
/// known, in microseconds.
const PINNED_AFTER: u64 = 150_000;

/// A clock tick of `/proc/PID/stat`, in microseconds.
const TICK: u64 = 10_000;

/// What was seen, to be compared with what is seen later.
#[derive(Debug)]
pub(crate) struct Judge {
    root: PathBuf,
    server_id: String,
    exits: Exits,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Process and start of each run.
    runs: BTreeMap<Run, (i32, String)>,
    /// How each ended, as the server told.
    exits: BTreeMap<Run, String>,
    /// When the repeat that each has armed is due, in milliseconds since 1970.
    repeats: BTreeMap<Run, i64>,
    /// Start times of processes, by run.
    ticks: BTreeMap<Run, (i32, u64)>,
    /// Those of which the server said that it does not know.
    doubted: BTreeSet<Run>,
    /// Those that the drill has killed.
    killed: BTreeSet<Run>,
    /// Commands of which it was seen that they are kept, so that none is counted twice.
    kept: BTreeSet<(Mono, (u64, u64))>,
}

impl Memory {
    /// Remembers what is told of a run; says what was told otherwise before.
    fn change(&mut self, run: &Run, row: &Row) -> Option<String> {
        if let Some(pid) = row.pid {
            let now = (pid, row.started_at.clone());
            let before = self.runs.entry(run.clone()).or_insert_with(|| now.clone());
            if *before != now {
                return Some(format!("was process {before:?}, is {now:?}"));
            }
            // In another state it is a restart's delay, or what a stop leaves.
            let armed = row.next.as_ref().filter(|_| row.state == "running");
            if let Some((action, at)) = armed {
                let due = millis_of(at);
                let before = *self.repeats.entry(run.clone()).or_insert(due);
                if before.abs_diff(due) > CLOCK_MS {
                    return Some(format!("{action} was due at {before}, is at {due}"));
                }
            }
        }
        self.end(run, row.exit.as_ref()?)
    }

    /// As [`Memory::change`], of how a run has ended.
    fn end(&mut self, run: &Run, exit: &str) -> Option<String> {
        let before = self.exits.insert(run.clone(), exit.to_owned());
        let before = before.filter(|before| before != exit)?;
        Some(format!("had ended with {before}, now with {exit}"))
    }
}

/// What is looked at once the server answers.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Before the server was asked.
    pub(crate) leaders: Vec<Leader>,
    /// When it was asked.
    pub(crate) asked: Mono,
    pub(crate) rows: BTreeMap<String, Row>,
}

impl Judge {
    pub(crate) fn new(root: &Path, server_id: &str, exits: Exits) -> Self {
        Self {
            root: root.to_owned(),
            server_id: server_id.to_owned(),
            exits,
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main processes that live; two of one child are a fault.
    pub(crate) fn leaders(&self, shared: &Shared) -> Vec<Leader> {
        let leaders = leaders(&self.server_id);
        shared.tally.count("looks at all processes");
        for double in doubles(&leaders) {
            let what = format!("{double:?} beside another run");
            shared.tally.fault(Fault::Doubled, what);
        }
        let mut memory = self.memory();
        for leader in &leaders {
            let run = (leader.child.clone(), leader.run);
            memory.ticks.insert(run, (leader.pid, leader.start_ticks));
        }
        leaders
    }

    /// What the server tells of the runs of one child that have ended.
    pub(crate) fn ended(&self, shared: &Shared, child: &str, exits: &BTreeMap<u64, String>) {
        let mut memory = self.memory();
        for (run, exit) in exits {
            if let Some(what) = memory.end(&(child.to_owned(), *run), exit) {
                shared
                    .tally
                    .fault(Fault::Changed, format!("run {run} of {child}: {what}"));
            }
        }
    }

    /// Whether this is the group of a run that ended by itself: what is left of such a one lives
    /// until the next run begins.
    pub(crate) fn is_spared(&self, group: i32) -> bool {
        let memory = self.memory();
        CHILDREN.iter().any(|child| {
            let ledger = Ledger::read(&self.root, child.name);
            let mut of_group = ledger
                .begun
                .iter()
                .filter(|(_, pids)| pids.contains(&group));
            of_group.any(|(run, _)| {
                let run = (child.name.to_owned(), *run);
                ledger.codes.contains_key(&run.1) || memory.killed.contains(&run)
            })
        })
    }

    /// The drill is about to kill this one.
    pub(crate) fn kill(&self, leader: &Leader) {
        let run = (leader.child.clone(), leader.run);
        self.memory().killed.insert(run);
    }

    /// Judges what a server that has just come up knows.
    pub(crate) fn start(&self, shared: &Shared, life: u64, seen: &Seen) {
        self.lost(shared, seen);
        self.open(shared, seen);
        self.rows(shared, life, &seen.rows);
        for child in &CHILDREN {
            self.acknowledged(shared, child.name, seen);
        }
    }

    /// Whoever lived before the server was asked, lives still, and is not what it tells of.
    fn lost(&self, shared: &Shared, seen: &Seen) {
        for leader in &seen.leaders {
            let known = seen.rows.get(&leader.child);
            let known = known.is_some_and(|row| row.pid == Some(leader.pid));
            if !known && leader.lives() {
                let row = seen.rows.get(&leader.child);
                let what = format!("{leader:?} lives, and the server says {row:?}");
                shared.tally.fault(Fault::Lost, what);
            }
        }
    }

    /// A child has nothing of its server's open: besides the three only files that it opened
    /// itself, its notes and what perl is made of.
    fn open(&self, shared: &Shared, seen: &Seen) {
        let own = [children::notes(&self.root), self.root.join("child.pl")];
        for leader in &seen.leaders {
            for (number, place) in descriptors(leader.pid) {
                let path = Path::new(&place);
                let is_own = path.is_absolute() && !path.starts_with(&self.root)
                    || own.iter().any(|own| path.starts_with(own));
                if number > 2 && !is_own && leader.lives() {
                    let what = format!("{leader:?} has {number} -> {place}");
                    shared.tally.fault(Fault::Descriptor, what);
                }
            }
        }
    }

    /// What the server tells at any time: of one run always the same.
    pub(crate) fn rows(&self, shared: &Shared, life: u64, rows: &BTreeMap<String, Row>) {
        let mut memory = self.memory();
        for (name, row) in rows {
            let Some(number) = row.run else { continue };
            let run = (name.clone(), number);
            if row.reason.contains(DOUBT) && memory.doubted.insert(run.clone()) {
                let fault = format!("life {life}: {name}: {row:?}");
                shared.tally.fault(Fault::InDoubt, fault);
            }
            if let Some(what) = memory.change(&run, row) {
                let what = format!("life {life}: {run:?}: {what}");
                shared.tally.fault(Fault::Changed, what);
            }
        }
    }

    /// What the last command for a child was answered must be so still, when nothing else was
    /// asked of it since, or may be under way.
    fn acknowledged(&self, shared: &Shared, child: &str, seen: &Seen) {
        let commands = shared.commands();
        let concerning = commands.iter().rev();
        let mut concerning =
            concerning.filter(|sent| sent.concerns(child) && sent.outcome != Outcome::Unchanged);
        let Some(last) = concerning.next() else {
            return;
        };
        let same_life = concerning.take_while(|sent| sent.life == last.life);
        let alone = same_life.into_iter().all(|sent| sent.precedes(last));
        let before = last.answered.is_some_and(|answered| answered < seen.asked);
        let Outcome::Done(done) = &last.outcome else {
            return;
        };
        let (Some(run), true, true) = (done.get(child), alone, before) else {
            return;
        };
        if !self.memory().kept.insert((last.sent, last.connection)) {
            return;
        }
        shared.tally.count("acknowledged commands looked at");
        let row = seen.rows.get(child);
        let is_kept = row.is_some_and(|row| is_kept(last, *run, row));
        if !is_kept {
            let what = format!("{child}: {last:?}, now {row:?}");
            shared.tally.fault(Fault::CommandLost, what);
        }
    }
}

fn is_kept(sent: &Sent, run: u64, row: &Row) -> bool {
    match sent.verb {
        Verb::Stop => row.is_held && row.pid.is_none(),
        Verb::Start | Verb::Restart | Verb::Trystart => {
            !row.is_held && row.run.is_some_and(|latest| latest >= run)
        }
    }
}

impl Judge {
    /// When nothing runs any more: what each child wrote down against what the server told, and
    /// against its log.
    pub(crate) fn end(&self, shared: &Shared) {
        for child in &CHILDREN {
            let ledger = Ledger::read(&self.root, child.name);
            let begun = ledger.begun.values().map(|pids| pids.len() as u64).sum();
            shared.tally.add("runs", begun);
            for (run, pids) in &ledger.begun {
                if pids.len() > 1 {
                    let what = format!("run {run} of {} has begun as {pids:?}", child.name);
                    shared.tally.fault(Fault::Doubled, what);
                }
            }
            for fault in &ledger.faults {
                let what = format!("{}: {fault}", child.name);
                shared.tally.fault(Fault::Blocked, what);
            }
            self.exits(shared, child.name, &ledger);
            self.started(shared, child.name, &ledger);
            self.lines(shared, child.name, &ledger);
        }
    }

    fn exits(&self, shared: &Shared, child: &str, ledger: &Ledger) {
        let memory = self.memory();
        let of_child = memory.exits.iter().filter(|((name, _), _)| name == child);
        for (run, told) in of_child {
            shared.tally.count("exits compared");
            let ticks = memory.ticks.get(run);
            let end = ticks.and_then(|(pid, ticks)| reaper::end_of(*pid, *ticks));
            let code = ledger.codes.get(&run.1);
            if told == "unknown" {
                shared.tally.count("exits unknown");
                if !self.may_be_unknown(shared, ticks.copied()) {
                    let what = format!("{run:?} wrote {code:?} and ended with {end:?}");
                    shared.tally.fault(Fault::UnknownExit, what);
                }
                continue;
            }
            let is_true = match (code, end) {
                (Some(code), _) => *told == format!("code {code}"),
                (None, Some(End::Signal(signal))) => *told == name_of(signal),
                (None, Some(End::Code(code))) => *told == format!("code {code}"),
                (None, None) => told == "SIGTERM" || told == "SIGKILL" && child == DEAF,
            };
            // It may have been killed between its last word and its end.
            let is_true = is_true || told == "SIGKILL" && memory.killed.contains(run);
            if !is_true {
                let what = format!("{run:?} is told as {told}, wrote {code:?}, was {end:?}");
                shared.tally.fault(Fault::WrongExit, what);
            }
        }
    }

    /// Whether this machine could not tell how a process has ended.
    fn may_be_unknown(&self, shared: &Shared, process: Option<(i32, u64)>) -> bool {
        let Some((pid, start_ticks)) = process else {
            // It was over before anybody had seen it.
            return true;
        };
        // Who was never an orphan was reaped by the server that had started it.
        let was_orphan = reaper::end_of(pid, start_ticks).is_some() || !reaper::is_at_work();
        let began = start_ticks * TICK;
        let before_its_pin = shared
            .kills()
            .iter()
            .any(|kill| began.abs_diff(kill.0) < PINNED_AFTER);
        match self.exits {
            Exits::Pinned => was_orphan && before_its_pin,
            Exits::KnownToTheirServer => was_orphan,
        }
    }

    /// What was told to have been started has been, unless it was killed in its first moments.
    fn started(&self, shared: &Shared, child: &str, ledger: &Ledger) {
        for ((name, run), (pid, _)) in &self.memory().runs {
            if name != child {
                continue;
            }
            let wrong = ledger.begun.get(run).is_some_and(|pids| pids != &[*pid]);
            if wrong {
                let begun = ledger.begun.get(run);
                let what = format!("run {run} of {child} was told as {pid}, and was {begun:?}");
                shared.tally.fault(Fault::Changed, what);
            }
        }
    }

    /// The lines of each run are all there, once, in order.
    fn lines(&self, shared: &Shared, child: &str, ledger: &Ledger) {
        let log = self.root.join("logs").join(format!("{child}.out"));
        let log = fs::read_to_string(log).unwrap_or_default();
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        let mut count = 0;
        for line in log.lines() {
            count += 1;
            let mut words = line.split(' ');
            let name = words.next();
            let mut number = || words.next()?.parse::<u64>().ok();
            let (Some(run), Some(number)) = (number(), number()) else {
                let what = format!("{child}: `{line}` was never written");
                shared.tally.fault(Fault::LineLost, what);
                continue;
            };
            let before = last.insert(run, number).unwrap_or(0);
            if name != Some(child) || number > before + 1 {
                let what = format!("{child}: `{line}` follows line {before} of its run");
                shared.tally.fault(Fault::LineLost, what);
            } else if number <= before {
                let what = format!("{child}: `{line}` follows line {before} of its run");
                shared.tally.fault(Fault::LineDoubled, what);
            }
        }
        shared.tally.add("log lines", count);
        for (run, claimed) in &ledger.claims {
            let there = last.get(run).copied().unwrap_or(0);
            if there < *claimed {
                let what = format!("{child}: run {run} wrote {claimed} lines, {there} are there");
                shared.tally.fault(Fault::LineLost, what);
            }
        }
    }
}

/// As the server calls it.
fn name_of(signal: i32) -> &'static str {
    match signal {
        9 => "SIGKILL",
        15 => "SIGTERM",
        _ => "another signal",
    }
}

#[test]
fn a_line_that_is_missing_or_there_twice_and_a_wrong_exit_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    children::prepare(root);
    fs::create_dir(root.join("logs")).unwrap();
    let write = |path: &str, text: &str| fs::write(root.join(path), text).unwrap();
    let judge = Judge::new(root, "server", Exits::KnownToTheirServer);
    let faults = |judge: &Judge| {
        let shared = Shared::default();
        judge.end(&shared);
        shared.tally.complaint()
    };
    write("notes/plain.ledger", "begin 1 10\nend 1 3 2\nbegin 2 11\n");
    write(
        "notes/plain.claims",
        &format!("{:15}\n{:15}\n{:15}\n", "", 2, 1),
    );
    write("logs/plain.out", "plain 1 1\nplain 2 1\nplain 1 2\n");
    judge.ended(
        &Shared::default(),
        "plain",
        &BTreeMap::from([(1, "code 3".to_owned())]),
    );
    assert_eq!(faults(&judge), "");
    write("logs/plain.out", "plain 1 1\nplain 2 1\n");
    assert!(faults(&judge).starts_with("LineLost: "));
    write("logs/plain.out", "plain 1 2\nplain 2 1\n");
    assert!(faults(&judge).starts_with("LineLost: "));
    write(
        "logs/plain.out",
        "plain 1 1\nplain 1 2\nplain 2 1\nplain 2 1\n",
    );
    assert!(faults(&judge).starts_with("LineDoubled: "));
    write("logs/plain.out", "plain 1 1\nplain 1 2\nplain 2 1\n");
    write("notes/plain.ledger", "begin 1 10\nend 1 4 2\nbegin 2 11\n");
    assert!(faults(&judge).starts_with("WrongExit: "));
    write(
        "notes/plain.ledger",
        "begin 1 10\nend 1 3 2\nbegin 2 11\nbegin 2 12\n",
    );
    assert!(faults(&judge).starts_with("Doubled: "));
    write(
        "notes/plain.ledger",
        "begin 1 10\nend 1 3 2\nbegin 2 11\nfault 2 output: EIO\n",
    );
    assert!(faults(&judge).starts_with("Blocked: "));
}
