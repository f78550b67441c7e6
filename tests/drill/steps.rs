//! A server is killed between any two system calls of a start, a stop or a restart.
//!
//! Nothing here is left to chance: it is traced by ptrace(2), the child that it makes too until
//! that is its program, and killed at a step whose number the test chooses, one after the other
//! until the command is answered before it. `cargo test` takes some of them, and
//!
//! ```text
//! DRILL_STRIDE=1 cargo test --test drill steps
//! ```
//!
//! takes all.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use supervisor_rs::clock;

use crate::{
    bed::have,
    look::leaders,
    reaper,
    sandbox::{PATIENCE, Sandbox, Wire, skip, wait_for},
};

const TRACER: &str = include_str!("kill_at_step.py");

/// Of so many steps one is taken, unless `DRILL_STRIDE` says otherwise.
const STRIDE: u64 = 29;

/// No command takes as many steps.
const STEPS_MAX: u64 = 5_000;

/// How many looks must show the same.
const SETTLED_LOOKS: u32 = 4;

/// How often an answer is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// A child that ends at TERM, and with it one of its group that does not.
const WEB: &str = "command: [sh, -c, \"(trap '' TERM; exec sleep 300) & exec sleep 300\"]\n";

/// Whoever traces the server.
struct Tracer {
    process: Child,
    lines: Receiver<String>,
}

impl Tracer {
    /// `None` when it may not trace.
    fn new(sandbox: &Sandbox, step: u64) -> Option<Self> {
        let script = sandbox.root().join("kill_at_step.py");
        fs::write(&script, TRACER).unwrap();
        let mut process = Command::new("python3")
            .arg(script)
            .args([sandbox.server_pid().to_string(), step.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines(process.stdout.take().unwrap());
        let tracer = Self { process, lines };
        let is_ready = tracer
            .lines
            .recv_timeout(PATIENCE)
            .is_ok_and(|line| line == "ready");
        is_ready.then_some(tracer)
    }

    /// Whether it has killed the server.
    fn has_killed(&self) -> bool {
        self.lines
            .try_recv()
            .is_ok_and(|line| line.starts_with("killed "))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Whoever is traced goes on.
        let _may_have_ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    // It ends with the output.
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _nobody_listens = sender.send(line);
        }
    });
    lines
}

/// What a command came to. The server is dead then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// The server was killed at this step.
    Killed(u64),
    /// It was answered before, and the server was killed then.
    Answered,
}

/// Gives a command and kills the server at a step of it; `None` when it may not be traced.
fn kill_at(sandbox: &mut Sandbox, op: &str, step: u64) -> Option<Came> {
    let mut wire = Wire::connect(sandbox.address());
    let tracer = Tracer::new(sandbox, step)?;
    wire.ask(1, &json!({"op": op, "child": "web"}).to_string());
    let heard = hear(wire);
    let mut came = None;
    wait_for("an answer or a kill", PATIENCE, || {
        if tracer.has_killed() {
            came = Some(Came::Killed(step));
        } else if let Ok(answer) = heard.recv_timeout(LOOK) {
            // Without one the connection ended: the tracer is about to say why.
            came = answer.map(|_| Came::Answered);
        }
        came.is_some()
    });
    drop(tracer);
    sandbox.kill_server();
    came
}

/// The answer, or that the connection has ended.
fn hear(mut wire: Wire) -> Receiver<Option<Value>> {
    let (sender, heard) = channel();
    thread::spawn(move || {
        let line = wire.line();
        let answer = line.map(|line| serde_json::from_str(&line).expect("JSON"));
        let _nobody_listens = sender.send(answer);
    });
    heard
}

/// Waits until nothing is under way with `web`, and returns its row. It has one main process when
/// it runs, and none when it does not; whoever else lives is of that one's group.
fn settled(sandbox: &Sandbox) -> Value {
    let mut row = Value::Null;
    let mut looks = 0;
    wait_for("`web` at rest", PATIENCE, || {
        // What a dead server was asked may be carried out only now.
        let before = row["run"].take();
        row = sandbox.row("web").unwrap();
        let is_same = row["run"] == before && is_settled(sandbox, &row);
        looks = if is_same { looks + 1 } else { 0 };
        looks >= SETTLED_LOOKS
    });
    assert_ne!(row["state"], "failed", "{row}");
    row
}

fn is_settled(sandbox: &Sandbox, row: &Value) -> bool {
    let state = row["state"].as_str().unwrap();
    let mains = leaders(sandbox.id());
    let mains: Vec<i64> = mains.iter().map(|main| main.pid.into()).collect();
    let expected: Vec<i64> = row["pid"].as_i64().into_iter().collect();
    let all = sandbox.processes();
    ["running", "stopped", "exited", "failed"].contains(&state)
        && mains == expected
        && all.iter().all(|one| mains.contains(&one.group.into()))
}

/// A number that the environment gives, or another.
fn number(name: &str, unless_given: u64) -> u64 {
    match std::env::var(name) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => unless_given,
    }
}

/// Kills a server at steps of a command; `from` is the command that leads to where it begins.
/// `judge` is told at which step, or that the command was answered before, and sees what was and
/// what came of it.
fn drill(op: &str, from: &str, judge: impl Fn(Came, &Value, &Value)) {
    reaper::begin();
    if !have(&["python3"]) {
        return;
    }
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", WEB);
    sandbox.wait_state("web", "stopped");
    let stride = number("DRILL_STRIDE", STRIDE).max(1);
    // Other ones each time.
    let first = 1 + number("DRILL_SEED", clock::mono().0) % stride;
    let mut kills = 0;
    for step in (first..STEPS_MAX).step_by(usize::try_from(stride).expect("small")) {
        // It may be there already.
        sandbox.client(&[from, "web"]);
        let before = settled(&sandbox);
        let Some(came) = kill_at(&mut sandbox, op, step) else {
            return skip("no right to trace a process");
        };
        sandbox.start_server();
        judge(came, &before, &settled(&sandbox));
        kills += 1;
        if came == Came::Answered {
            println!("{op}: answered before step {step}; {kills} kills, from {first} by {stride}");
            return;
        }
    }
    panic!("{op} takes more than {STEPS_MAX} steps");
}

fn run(row: &Value) -> u64 {
    row["run"].as_u64().unwrap_or(0)
}

#[test]
fn a_server_killed_between_any_two_steps_of_a_start_starts_once_or_not_at_all() {
    drill("start", "stop", |came, before, after| {
        let is_new = run(after) > run(before);
        let expected = if is_new { "running" } else { "stopped" };
        assert_eq!(after["state"], expected, "{came:?}: {before} {after}");
        assert!(is_new || came != Came::Answered, "{before} {after}");
    });
}

#[test]
fn a_server_killed_between_any_two_steps_of_a_stop_stops_and_holds_or_has_not_begun() {
    drill("stop", "start", |came, before, after| {
        assert_eq!(run(before), run(after), "{came:?}: {before} {after}");
        let is_held = after["hold"] == true;
        let expected = if is_held { "stopped" } else { "running" };
        assert_eq!(after["state"], expected, "{came:?}: {before} {after}");
        assert!(is_held || came != Came::Answered, "{before} {after}");
    });
}

#[test]
fn a_server_killed_between_any_two_steps_of_a_restart_leaves_one_running() {
    drill("restart", "start", |came, before, after| {
        assert_eq!(after["state"], "running", "{came:?}: {before} {after}");
        let is_new = run(after) > run(before);
        assert_eq!(
            is_new,
            before["pid"] != after["pid"],
            "{came:?}: {before} {after}"
        );
        assert!(is_new || came != Came::Answered, "{before} {after}");
    });
}
