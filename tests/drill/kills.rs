//! The kill drill: a server is killed at random instants while much happens, again and again, and
//! nothing may be lost by it.

use std::{collections::BTreeMap, hint, sync::Arc, thread, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use supervisor_rs::clock;

use crate::{
    bed::{Bed, STRANGER, User, have},
    children::{CHILDREN, DEAF, EDITED, GONE, KEPT},
    clients::{Clients, Sent, Shared, Verb},
    judge::{Exits, Judge, Seen},
    line::Line,
    look::{PIDFD, Row, capabilities, check, check_one, exits, kinds_open, mounts, zombies_of},
    random::Random,
    reaper,
    sandbox::{PATIENCE, Process, skip, wait_for},
    tally::Fault,
    watcher::Watcher,
};

/// How many kills there are unless `DRILL_KILLS` says so.
const KILLS: u64 = 50;

/// How many for a server of another user.
const KILLS_OF_OTHERS: u64 = 15;

/// How long a server that answers lives at most, once it was looked at.
const LIFE_MAX: Duration = Duration::from_millis(100);

/// How much longer some live.
const LONG_LIFE_MAX: Duration = Duration::from_millis(1_600);

/// How long one that is killed before it answers lives at most.
const BIRTH_MAX: Duration = Duration::from_millis(60);

/// How soon after something happened it is killed, at most.
const SOON: Duration = Duration::from_millis(8);

/// How long there is none, at most.
const GAP_MAX: Duration = Duration::from_millis(30);

/// What is shorter is not slept but spun, to be exact.
const SPIN: Duration = Duration::from_millis(1);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(15);

/// How long it may take until all is at rest.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// How long all must be at rest at the end.
const REST: Duration = Duration::from_millis(300);

/// How long the end of all may take after `stop --all` was answered.
const STOP_MAX: Duration = Duration::from_secs(15);

/// The states in which nothing is due.
const AT_REST: [&str; 3] = ["stopped", "exited", "failed"];

/// What the drill itself commands: mostly what is not refused.
const OWN_VERBS: [Verb; 5] = [
    Verb::Trystart,
    Verb::Trystart,
    Verb::Restart,
    Verb::Stop,
    Verb::Stop,
];

/// No client's connection.
const OWN_CONNECTION: (u64, u64) = (u64::MAX, 0);

/// What a drill does.
struct Plan {
    kills: u64,
    seed: u64,
    user: User,
}

struct Drill {
    bed: Bed,
    /// What a server has open that nothing runs under, before there was any kill.
    at_rest: BTreeMap<String, usize>,
    random: Random,
    shared: Arc<Shared>,
    judge: Arc<Judge>,
    /// How many servers there were that answered.
    life: u64,
    edition: u64,
}

/// Sleeps, and spins the last bit, so that microseconds count.
fn pause(span: Duration) {
    let until = clock::mono() + span;
    if span > SPIN {
        thread::sleep(span - SPIN);
    }
    while clock::mono() < until {
        hint::spin_loop();
    }
}

impl Drill {
    fn prepare(plan: &Plan) -> Self {
        reaper::begin();
        let mut bed = Bed::new("mode: sync\nrescan: 1s", plan.user);
        bed.sandbox.start_server();
        let exits = exits_told(&bed);
        let judge = Judge::new(bed.sandbox.root(), bed.sandbox.id(), exits);
        Self {
            bed,
            at_rest: BTreeMap::new(),
            random: Random::new(plan.seed, 1),
            shared: Arc::default(),
            judge: Arc::new(judge),
            life: 1,
            edition: 0,
        }
    }

    fn act(&self, what: String) {
        self.shared.tally.action(what);
    }

    /// Declares all children, and sees what a server has open that knows them all.
    fn populate(&mut self) {
        for child in &CHILDREN {
            self.bed.declare(child.name, 0);
        }
        let mut wire = self.bed.sandbox.wire();
        let mut id = 0;
        wait_for("a run of each", PATIENCE, || {
            id += 1;
            let rows = check(&mut wire, id);
            CHILDREN
                .iter()
                .all(|child| rows.get(child.name).is_some_and(|row| row.run.is_some()))
        });
        self.stop_all();
        self.bed.sandbox.restart_server();
        self.at_rest = open_at_rest(self.bed.sandbox.server_pid());
        let mut wire = self.bed.sandbox.wire();
        wire.ask(1, r#"{"op":"start","all":true}"#);
        let (_, answer) = wire.answer();
        assert!(answer["ok"].is_object(), "{answer}");
    }

    /// One life of the server, to its violent end.
    fn round(&mut self) {
        if self.random.percent(15) {
            self.bed.sandbox.begin_server();
            let span = self.random.up_to(BIRTH_MAX);
            self.act(format!("kill: {span:?} after its start"));
            pause(span);
        } else {
            self.start();
            self.live();
        }
        self.bed.sandbox.kill_server();
        self.shared.killed();
        if self.random.percent(40) {
            self.disturb();
        }
        pause(self.random.up_to(GAP_MAX));
    }

    /// Starts the server and judges what it knows.
    fn start(&mut self) {
        let leaders = self.judge.leaders(&self.shared);
        self.bed.sandbox.start_server();
        self.life += 1;
        self.act(format!("life {} begins", self.life));
        let asked = clock::mono();
        let mut wire = self.bed.sandbox.wire();
        let rows = check(&mut wire, 1);
        let mut seen = Seen {
            leaders,
            asked,
            rows,
        };
        self.judge.start(&self.shared, self.life, &seen);
        // Once more with who lives now: what was started meanwhile is known, too.
        seen.leaders = self.judge.leaders(&self.shared);
        seen.asked = clock::mono();
        seen.rows = check(&mut wire, 2);
        self.judge.start(&self.shared, self.life, &seen);
        for (id, child) in (3..).zip(&CHILDREN) {
            wire.ask(id, &check_one(child.name));
            self.judge
                .ended(&self.shared, child.name, &exits(&wire.value()));
        }
        let server = (self.life, self.bed.sandbox.address());
        self.shared.publish(Some(server));
    }

    /// Lets the server live until the instant in which it is to die.
    fn live(&mut self) {
        if self.random.percent(6) {
            // Long enough for repeats, and for a file that is gone.
            pause(self.random.up_to(LONG_LIFE_MAX));
        }
        match self.random.below(6) {
            0 => {
                let span = self.random.up_to(LIFE_MAX);
                self.act(format!("kill: after {span:?}"));
                pause(span);
                return;
            }
            1 => {
                pause(self.random.up_to(LIFE_MAX));
                self.disturb();
            }
            2 | 3 => {
                pause(self.random.up_to(LIFE_MAX));
                self.shared.await_command(LIFE_MAX);
            }
            _ => {
                pause(self.random.up_to(LIFE_MAX));
                self.command();
            }
        }
        let span = self.random.soon(SOON);
        self.act(format!("kill: {span:?} after that"));
        pause(span);
    }

    /// Gives a command to the one child that nobody else commands, and waits for the answer.
    fn command(&mut self) {
        let Some(mut line) = Line::open(&self.shared) else {
            return;
        };
        let verb = *self.random.pick(&OWN_VERBS);
        let mut sent = Sent::new(verb, Some(KEPT), self.life, OWN_CONNECTION);
        self.act(format!("drill: {}", sent.command()));
        let request = format!("{{\"id\":1,\"command\":{}}}\n", sent.command());
        // The server lives until this thread kills it.
        line.write(&request).expect("a server that reads");
        let answer = line
            .next(clock::mono() + PATIENCE)
            .expect("a server that lives");
        sent.hear(&answer.expect("an answer"));
        self.act(format!("drill: {:?}", sent.outcome));
        self.shared.tally.count("commands sent");
        self.shared.tally.count("commands answered");
        self.shared.commands().push(sent);
    }

    /// Edits, removes or brings back a file, or kills a child.
    fn disturb(&mut self) {
        self.edition += 1;
        match self.random.below(5) {
            0 | 1 => {
                self.act(format!("edit {EDITED}: {}", self.edition));
                self.bed.declare(EDITED, self.edition);
            }
            2 if self.bed.is_declared(GONE) => {
                self.act(format!("remove {GONE}"));
                self.bed.sandbox.remove(&format!("{GONE}.yml"));
            }
            2 => {
                self.act(format!("bring {GONE} back"));
                self.bed.declare(GONE, self.edition / 20);
            }
            3 => {
                self.act(format!("break {EDITED}"));
                self.bed
                    .sandbox
                    .write(&format!("{EDITED}.yml"), "comand: nothing\n");
            }
            _ => self.kill_child(None),
        }
        self.shared.tally.count("edits and kills of children");
    }

    /// Kills a child's main process: this one's, or anybody's.
    fn kill_child(&mut self, name: Option<&str>) {
        let mut leaders = self.judge.leaders(&self.shared);
        leaders.retain(|leader| name.is_none_or(|name| name == leader.child));
        if leaders.is_empty() {
            return;
        }
        let leader = self.random.pick(&leaders).clone();
        let pid = Pid::from_raw(leader.pid).expect("a pid");
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        // The number may be another's by now.
        if leader.lives() {
            self.act(format!("KILL {leader:?}"));
            self.judge.kill(&leader);
            let _may_have_ended = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Stops everything and counts what is left.
    fn finish(&mut self) {
        self.start();
        self.stop_all();
        let server = self.bed.sandbox.server_pid();
        let rest = || zombies_of(server).is_empty();
        await_or(SETTLED_WITHIN, rest);
        for zombie in zombies_of(server) {
            self.shared
                .tally
                .fault(Fault::Zombie, format!("process {zombie}"));
        }
        // For what may be left of an adopted run's group one descriptor may be kept.
        self.count_descriptors(CHILDREN.len());
        self.bed.sandbox.restart_server();
        self.count_descriptors(0);
        assert_eq!(self.bed.sandbox.stop_server(), 0);
        for mount in mounts(self.bed.sandbox.root()) {
            self.shared.tally.fault(Fault::Mount, mount);
        }
        self.judge.end(&self.shared);
    }

    /// Stops all children. One that does not hear TERM is killed, so that nobody waits.
    fn stop_all(&mut self) {
        let mut wire = self.bed.sandbox.wire();
        wire.ask(1, r#"{"op":"stop","all":true}"#);
        self.kill_child(Some(DEAF));
        let (_, answer) = wire.answer();
        assert!(answer["ok"].is_object(), "{answer}");
        await_or(STOP_MAX, || self.left().is_empty());
        let rows = check(&mut wire, 2);
        self.judge.rows(&self.shared, self.life, &rows);
        let at_rest = |row: &Row| row.pid.is_none() && AT_REST.contains(&&*row.state);
        for (name, row) in rows.iter().filter(|(_, row)| !at_rest(row)) {
            let what = format!("{name} is not at rest: {row:?}");
            self.shared.tally.fault(Fault::LeftBehind, what);
        }
        // Nothing begins by itself any more.
        thread::sleep(REST);
        for left in self.left() {
            self.shared
                .tally
                .fault(Fault::LeftBehind, format!("{left:?}"));
        }
        self.bed.sandbox.expect_leftovers();
    }

    /// The processes that should have been ended when everything was stopped.
    fn left(&self) -> Vec<Process> {
        let mut left = self.bed.sandbox.processes();
        left.retain(|process| !self.judge.is_spared(process.group));
        left
    }

    /// What the server has open now, when all is at rest, against what one had before any kill;
    /// and so many descriptors of processes.
    fn count_descriptors(&self, pidfds: usize) {
        let server = self.bed.sandbox.server_pid();
        let most = |kind: &str| {
            let before = self.at_rest.get(kind).copied().unwrap_or(0);
            // A file of its own it may open only when it needs it, and then keep.
            let own = usize::from(kind.starts_with('/'));
            before.max(own) + if kind == PIDFD { pidfds } else { 0 }
        };
        let more = || {
            let mut more = kinds_open(server);
            more.retain(|kind, count| *count > most(kind));
            more
        };
        await_or(SETTLED_WITHIN, || more().is_empty());
        for (kind, count) in more() {
            let before = self.at_rest.get(&kind);
            let what = format!("the server has {count} times {kind}, before {before:?}");
            self.shared.tally.fault(Fault::Descriptor, what);
        }
    }

    /// Says what was counted; fails if anything is wrong.
    fn judge(&self, plan: &Plan) {
        let tally = &self.shared.tally;
        let heading = format!("kill drill: seed {}, {:?}", plan.seed, plan.user);
        println!("{heading}\n{}", tally.table());
        let complaint = tally.complaint();
        let again = format!("DRILL_SEED={} DRILL_KILLS={}", plan.seed, plan.kills);
        assert!(complaint.is_empty(), "{again}\n{complaint}");
        // It did what it says.
        for (what, least) in [
            ("kills", plan.kills),
            ("commands answered", plan.kills),
            ("acknowledged commands looked at", plan.kills / 25),
            ("exits compared", plan.kills),
            ("log lines", plan.kills * 10),
        ] {
            let count = tally.counted(what);
            assert!(count >= least, "{what}: {count}, at least {least}; {again}");
        }
    }
}

/// Waits for a condition, but not for ever.
fn await_or(longest: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = clock::mono() + longest;
    while !condition() && clock::mono() < deadline {
        thread::sleep(LOOK);
    }
}

/// What a server has open when nothing happens: the same at several looks.
fn open_at_rest(server: i32) -> BTreeMap<String, usize> {
    let mut before = kinds_open(server);
    let mut same = 0;
    wait_for("a server at rest", PATIENCE, || {
        let now = kinds_open(server);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 10
    });
    before
}

/// Which exits this machine can tell, by what the server says of it.
fn exits_told(bed: &Bed) -> Exits {
    let capabilities = capabilities(bed.sandbox.address());
    match capabilities.get("pins").map(String::as_str) {
        Some("yes") => Exits::Pinned,
        Some(_) | None => Exits::KnownToTheirServer,
    }
}

/// Kills a server so many times, and says what came of it.
fn drill(plan: &Plan) {
    println!("DRILL_SEED={} DRILL_KILLS={}", plan.seed, plan.kills);
    let mut drill = Drill::prepare(plan);
    drill.populate();
    drill.bed.sandbox.kill_server();
    let clients = match plan.user {
        User::Own => Clients::begin(&drill.shared, plan.seed, None),
        User::Other(uid) => Clients::begin(&drill.shared, plan.seed, Some(uid)),
    };
    let watcher = Watcher::begin(&drill.shared, &drill.judge);
    for _ in 0..plan.kills {
        drill.round();
    }
    drop(clients);
    drop(watcher);
    drill.finish();
    drill.judge(plan);
}

/// A number that the environment gives, if it does.
fn given(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

fn plan(kills: u64, user: User) -> Plan {
    Plan {
        kills: given("DRILL_KILLS").map_or(kills, |given| given * kills / KILLS),
        seed: given("DRILL_SEED").unwrap_or_else(|| clock::now().wall.0.unsigned_abs()),
        user,
    }
}

#[test]
fn kills_at_random_instants_lose_nothing() {
    if have(&["perl"]) {
        drill(&plan(KILLS, User::Own));
    }
}

#[test]
fn kills_lose_nothing_where_the_server_is_not_root() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can be somebody else");
    }
    if have(&["perl", "setpriv"]) {
        drill(&plan(KILLS_OF_OTHERS, User::Other(STRANGER)));
    }
}
