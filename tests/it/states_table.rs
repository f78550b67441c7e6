//! The table of states, each cell a test; what overtakes, what joins, what waits in line.
//!
//! `starting` has no row of its own here: between the order to spawn and its outcome the server
//! takes no command. (The core's own tests have it.)

#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use serde_json::Value;

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, wait_for};

/// A server with `web` in this state. In `quiet` mode nothing happens that nobody ordered.
fn with(yaml: &str) -> Sandbox {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", yaml);
    sandbox.wait_state("web", "stopped");
    sandbox
}

fn stopped() -> Sandbox {
    with(SLEEPER)
}

fn held() -> Sandbox {
    let sandbox = running();
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    assert_eq!(sandbox.wait_state("web", "stopped")["hold"], true);
    sandbox
}

/// Its first run has ended; later ones live.
fn exited() -> Sandbox {
    let sandbox = with("command: [sh, -c, 'test -e again && exec sleep 300; exit 3']\n");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let row = sandbox.wait_state("web", "exited");
    assert_eq!(row["exit"]["code"], 3);
    let again = sandbox.loadpath().join("again");
    std::fs::write(again, "").unwrap();
    sandbox
}

/// Its program was missing, and is there now.
fn failed() -> Sandbox {
    let sandbox = with("command: ./program\n");
    assert_eq!(sandbox.client(&["start", "web"]).code, 1);
    sandbox.wait_state("web", "failed");
    let sleep = ["/bin/sleep", "/usr/bin/sleep"];
    let sleep = sleep
        .iter()
        .find(|path| std::path::Path::new(path).exists());
    let script = format!("#!/bin/sh\nexec {} 300\n", sleep.expect("sleep"));
    let program = sandbox.loadpath().join("program");
    std::fs::write(&program, script).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    sandbox
}

/// A start waits for its prehook until gate `hook` is opened; its client waits on the wire.
fn pending() -> (Sandbox, Wire) {
    let sandbox = Sandbox::start("");
    let wait = sandbox.gate("hook");
    let hook = format!("hooks:\n  - prehook: run sh -c '{wait}'\n");
    sandbox.write("web.yml", &format!("{SLEEPER}{hook}"));
    sandbox.wait_state("web", "stopped");
    let mut first = sandbox.wire();
    first.ask(1, START);
    let row = sandbox.wait_prehook("web");
    assert_eq!(row["state"], "pending");
    (sandbox, first)
}

/// A restart is due in an hour.
fn backoff() -> Sandbox {
    let sandbox = with(
        "command: [sh, -c, 'test -e again && exec sleep 300; exit 3']\n\
         restart: {when: always, delay: 1h, max_delay: 1h, jitter: 0, reset_after: 1h}\n",
    );
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let row = sandbox.wait_state("web", "backoff");
    assert_eq!(row["next"]["action"], "restart", "{row}");
    std::fs::write(sandbox.loadpath().join("again"), "").unwrap();
    sandbox
}

fn running() -> Sandbox {
    let sandbox = with(SLEEPER);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_state("web", "running");
    sandbox
}

const START: &str = r#"{"op":"start","child":"web"}"#;
const RESTART: &str = r#"{"op":"restart","child":"web"}"#;
const TRYSTART: &str = r#"{"op":"trystart","child":"web"}"#;
const STOP: &str = r#"{"op":"stop","child":"web"}"#;

/// Gives a command for `web`: the exit code, and the answer without what differs.
fn give(sandbox: &Sandbox, verb: &str) -> (i32, String) {
    let output = sandbox.client(&[verb, "web", "--json"]);
    assert_eq!(output.stderr, "", "{output:?}");
    (output.code, sandbox.mask(output.stdout.trim_end()))
}

fn ok(op: &str, run: u32, rest: &str) -> (i32, String) {
    let start = format!(r#"{{"host":"ADDRESS","ok":true,"op":"{op}","child":"web","pid":PID,"#);
    (0, format!(r#"{start}"run":{run},{rest}}}"#))
}

fn started(op: &str, run: u32) -> (i32, String) {
    let rest = format!(r#""message":"`web` started: run {run}, pid PID""#);
    ok(op, run, &rest)
}

/// The old run ended by TERM.
fn replaced(op: &str, run: u32) -> (i32, String) {
    let old = run - 1;
    let rest = format!(
        r#""exit":{{"signal":"SIGTERM","at":"TIME"}},"message":"`web` restarted: run {run}, pid PID (before: run {old}, pid PID, SIGTERM)""#
    );
    ok(op, run, &rest)
}

fn ended(run: u32) -> (i32, String) {
    ended_by(run, r#""signal":"SIGTERM""#, "SIGTERM")
}

fn ended_unseen(run: u32) -> (i32, String) {
    ended_by(run, r#""unknown":true"#, "unknown exit")
}

fn ended_by(run: u32, exit: &str, words: &str) -> (i32, String) {
    let rest = format!(
        r#""exit":{{{exit},"at":"TIME"}},"message":"`web` stopped: run {run}, pid PID, {words}""#
    );
    ok("stop", run, &rest)
}

fn cancelled() -> (i32, String) {
    let answer = r#"{"host":"ADDRESS","ok":true,"op":"stop","child":"web","message":"`web` did not run; what was due is cancelled"}"#;
    (0, answer.to_owned())
}

fn refused(op: &str, code: &str, message: &str) -> (i32, String) {
    let answer = format!(
        r#"{{"host":"ADDRESS","ok":false,"op":"{op}","child":"web","error":{{"code":"{code}","message":"{message}"}}}}"#
    );
    (1, answer)
}

fn restart_refused() -> (i32, String) {
    let message = r"`web` is not running\nhint: `start web` starts it, `trystart web` does either";
    refused("restart", "not_running", message)
}

fn stop_refused() -> (i32, String) {
    refused("stop", "not_running", "`web` is not running")
}

/// Asserts what `check` says of `web` after a command.
#[track_caller]
fn then(sandbox: &Sandbox, state: &str, run: Option<u32>, hold: Hold) {
    let row = sandbox.row("web").unwrap();
    let found = (&row["state"], &row["run"], &row["hold"]);
    let held = Value::from(hold == Hold::Held);
    assert_eq!(found, (&state.into(), &run.into(), &held), "{row}");
    let live = usize::from(state == "running");
    sandbox.wait_processes(live);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Free,
    Held,
}
use Hold::{Free, Held};

#[test]
fn start_starts_a_stopped_child() {
    let sandbox = stopped();
    assert_eq!(give(&sandbox, "start"), started("start", 1));
    then(&sandbox, "running", Some(1), Free);
}

#[test]
fn start_starts_a_held_child_and_releases_it() {
    let sandbox = held();
    assert_eq!(give(&sandbox, "start"), started("start", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn start_starts_an_exited_child() {
    let sandbox = exited();
    assert_eq!(give(&sandbox, "start"), started("start", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn start_starts_a_failed_child() {
    let sandbox = failed();
    assert_eq!(give(&sandbox, "start"), started("start", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn start_joins_the_wait_of_a_pending_child() {
    joins_the_wait("start", START);
}

#[test]
fn start_starts_a_child_in_backoff_at_once() {
    let sandbox = backoff();
    assert_eq!(give(&sandbox, "start"), started("start", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn start_is_refused_for_a_running_child() {
    let sandbox = running();
    let message = "`web` is already running: run 1, pid PID";
    let expected = refused("start", "already_running", message);
    assert_eq!(give(&sandbox, "start"), expected);
    then(&sandbox, "running", Some(1), Free);
}

#[test]
fn restart_is_refused_for_a_stopped_child() {
    let sandbox = stopped();
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    then(&sandbox, "stopped", None, Free);
}

#[test]
fn restart_is_refused_for_a_held_child_which_stays_held() {
    let sandbox = held();
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    then(&sandbox, "stopped", Some(1), Held);
}

#[test]
fn restart_is_refused_for_an_exited_child() {
    let sandbox = exited();
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    then(&sandbox, "exited", Some(1), Free);
}

#[test]
fn restart_is_refused_for_a_failed_child() {
    let sandbox = failed();
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    then(&sandbox, "failed", Some(1), Free);
}

#[test]
fn restart_is_refused_for_a_pending_child_which_goes_on_waiting() {
    let (sandbox, mut first) = pending();
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    assert_eq!(sandbox.row("web").unwrap()["state"], "pending");
    sandbox.open_gate("hook");
    assert_eq!(first.answer().1["ok"]["run"], 1);
    then(&sandbox, "running", Some(1), Free);
}

#[test]
fn restart_starts_a_child_in_backoff_at_once() {
    let sandbox = backoff();
    assert_eq!(give(&sandbox, "restart"), started("restart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn restart_replaces_the_run_of_a_running_child() {
    let sandbox = running();
    assert_eq!(give(&sandbox, "restart"), replaced("restart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn trystart_starts_a_stopped_child() {
    let sandbox = stopped();
    assert_eq!(give(&sandbox, "trystart"), started("trystart", 1));
    then(&sandbox, "running", Some(1), Free);
}

#[test]
fn trystart_starts_a_held_child_and_releases_it() {
    let sandbox = held();
    assert_eq!(give(&sandbox, "trystart"), started("trystart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn trystart_starts_an_exited_child() {
    let sandbox = exited();
    assert_eq!(give(&sandbox, "trystart"), started("trystart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn trystart_starts_a_failed_child() {
    let sandbox = failed();
    assert_eq!(give(&sandbox, "trystart"), started("trystart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn trystart_joins_the_wait_of_a_pending_child() {
    joins_the_wait("trystart", TRYSTART);
}

#[test]
fn trystart_starts_a_child_in_backoff_at_once() {
    let sandbox = backoff();
    assert_eq!(give(&sandbox, "trystart"), started("trystart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn trystart_replaces_the_run_of_a_running_child() {
    let sandbox = running();
    assert_eq!(give(&sandbox, "trystart"), replaced("trystart", 2));
    then(&sandbox, "running", Some(2), Free);
}

#[test]
fn stop_is_refused_for_a_stopped_child() {
    let sandbox = stopped();
    assert_eq!(give(&sandbox, "stop"), stop_refused());
    then(&sandbox, "stopped", None, Free);
}

#[test]
fn stop_is_refused_for_a_held_child_which_stays_held() {
    let sandbox = held();
    assert_eq!(give(&sandbox, "stop"), stop_refused());
    then(&sandbox, "stopped", Some(1), Held);
}

#[test]
fn stop_is_refused_for_an_exited_child() {
    let sandbox = exited();
    assert_eq!(give(&sandbox, "stop"), stop_refused());
    then(&sandbox, "exited", Some(1), Free);
}

#[test]
fn stop_is_refused_for_a_failed_child() {
    let sandbox = failed();
    assert_eq!(give(&sandbox, "stop"), stop_refused());
    then(&sandbox, "failed", Some(1), Free);
}

#[test]
fn stop_cancels_the_armed_repeat_of_an_exited_child_and_holds_it() {
    let sandbox = with("command: 'true'\nrepeat:\n  action: start\n  seconds: 3600\n");
    assert_eq!(give(&sandbox, "start"), started("start", 1));
    assert_eq!(
        sandbox.wait_state("web", "exited")["next"]["action"],
        "start"
    );
    assert_eq!(give(&sandbox, "stop"), cancelled());
    then(&sandbox, "stopped", Some(1), Held);
    assert_eq!(sandbox.row("web").unwrap().get("next"), None);
    assert_eq!(give(&sandbox, "stop"), stop_refused());
}

#[test]
fn stop_cancels_a_pending_start_which_is_superseded_and_holds_the_child() {
    let (sandbox, mut first) = pending();
    assert_eq!(give(&sandbox, "stop"), cancelled());
    let answer = sandbox.mask(&first.line().unwrap());
    assert_eq!(answer, superseded(1));
    then(&sandbox, "stopped", None, Held);
    // The hook's program is ended too: nobody waits at the gate any more.
    wait_for("the hook's end", PATIENCE, || {
        sandbox.processes().is_empty()
    });
}

#[test]
fn stop_cancels_a_backoff_and_holds_the_child() {
    let sandbox = backoff();
    assert_eq!(give(&sandbox, "stop"), cancelled());
    then(&sandbox, "stopped", Some(1), Held);
    assert_eq!(sandbox.row("web").unwrap().get("next"), None);
}

#[test]
fn stop_stops_a_running_child_and_holds_it() {
    let sandbox = running();
    assert_eq!(give(&sandbox, "stop"), ended(1));
    then(&sandbox, "stopped", Some(1), Held);
}

/// A second start of a child that waits for its prehook gets the same run as the first.
fn joins_the_wait(verb: &str, command: &str) {
    let (sandbox, mut first) = pending();
    let mut second = sandbox.wire();
    second.ask(1, command);
    // Answered in order on one connection, so the join has been taken by then.
    second.ask(2, r#"{"op":"check","child":"web"}"#);
    let (id, row) = second.answer();
    assert_eq!(id, Some(2), "{row}");
    assert_eq!(row["ok"]["children"][0]["state"], "pending");
    sandbox.open_gate("hook");
    let answer = |op: &str| {
        format!(
            r#"{{"id":1,"ok":{{"op":"{op}","child":"web","pid":PID,"run":1,"message":"`web` started: run 1, pid PID"}}}}"#
        )
    };
    assert_eq!(sandbox.mask(&first.line().unwrap()), answer("start"));
    assert_eq!(sandbox.mask(&second.line().unwrap()), answer(verb));
    then(&sandbox, "running", Some(1), Free);
}

fn superseded(id: u64) -> String {
    format!(
        r#"{{"id":{id},"error":{{"code":"superseded","message":"a `stop` of `web` overtook this command"}}}}"#
    )
}

/// A running child that ends only when gate `end` is opened after TERM.
fn slow() -> Sandbox {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", &sandbox.slow_to_stop("end"));
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_output("web", "up");
    sandbox
}

#[test]
fn stop_overtakes_a_restart_whose_client_is_told_superseded_and_exits_with_1() {
    let sandbox = slow();
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| give(&sandbox, "restart"));
        sandbox.wait_state("web", "stopping");
        let mut stop = sandbox.wire();
        stop.ask(1, STOP);
        // The restart is answered before the old run has ended.
        let message = "a `stop` of `web` overtook this command";
        let expected = refused("restart", "superseded", message);
        assert_eq!(restart.join().unwrap(), expected);
        assert_eq!(sandbox.row("web").unwrap()["state"], "stopping");
        sandbox.open_gate("end");
        let answer = r#"{"id":1,"ok":{"op":"stop","child":"web","pid":PID,"run":1,"exit":{"code":0,"at":"TIME"},"message":"`web` stopped: run 1, pid PID, exit code 0"}}"#;
        assert_eq!(sandbox.mask(&stop.line().unwrap()), answer);
    });
    then(&sandbox, "stopped", Some(1), Held);
}

#[test]
fn stop_overtakes_all_that_wait_in_line() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    wire.ask(1, RESTART);
    wire.ask(2, START);
    wire.ask(3, TRYSTART);
    wire.ask(4, STOP);
    let mut lines: Vec<String> = (0..3).map(|_| wire.line().unwrap()).collect();
    lines.sort();
    assert_eq!(lines, [superseded(1), superseded(2), superseded(3)]);
    sandbox.open_gate("end");
    assert_eq!(wire.answer().1["ok"]["op"], "stop");
    then(&sandbox, "stopped", Some(1), Held);
}

#[test]
fn a_second_stop_joins_the_first() {
    let sandbox = slow();
    let (mut first, mut second) = (sandbox.wire(), sandbox.wire());
    first.ask(1, STOP);
    sandbox.wait_state("web", "stopping");
    second.ask(7, STOP);
    second.ask(8, r#"{"op":"check","child":"web"}"#);
    assert_eq!(second.answer().0, Some(8));
    sandbox.open_gate("end");
    let answer = |id: u64| {
        format!(
            r#"{{"id":{id},"ok":{{"op":"stop","child":"web","pid":PID,"run":1,"exit":{{"code":0,"at":"TIME"}},"message":"`web` stopped: run 1, pid PID, exit code 0"}}}}"#
        )
    };
    assert_eq!(sandbox.mask(&first.line().unwrap()), answer(1));
    assert_eq!(sandbox.mask(&second.line().unwrap()), answer(7));
    then(&sandbox, "stopped", Some(1), Held);
}

#[test]
fn a_start_behind_a_stop_waits_for_its_end_and_releases_the_child() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    wire.ask(1, STOP);
    wire.ask(2, START);
    let row = sandbox.wait_state("web", "stopping");
    assert_eq!(row["hold"], true);
    let reason = sandbox.mask(row["reason"].as_str().unwrap());
    assert_eq!(reason, "TERM was sent to process PID");
    sandbox.open_gate("end");
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["op"]), (Some(1), &"stop".into()));
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["run"]), (Some(2), &2.into()), "{answer}");
    let row = sandbox.row("web").unwrap();
    let found = (&row["state"], &row["run"], &row["hold"]);
    assert_eq!(found, (&"running".into(), &2.into(), &false.into()));
}

#[test]
fn commands_for_one_child_are_carried_out_in_order_each_on_the_state_it_finds() {
    let sandbox = stopped();
    let mut wire = sandbox.wire();
    let commands = [START, START, RESTART, TRYSTART, START, RESTART];
    let outcomes = ["1", "already_running", "2", "3", "already_running", "4"];
    for (id, command) in (1..).zip(commands) {
        wire.ask(id, command);
    }
    for (id, expected) in (1..).zip(outcomes) {
        let (answered, answer) = wire.answer();
        let found = match answer["error"]["code"].as_str() {
            Some(code) => code.to_owned(),
            None => answer["ok"]["run"].to_string(),
        };
        assert_eq!((answered, found.as_str()), (Some(id), expected), "{answer}");
    }
}

#[test]
fn the_line_of_a_child_is_bounded_and_then_it_is_busy_while_others_are_not() {
    const QUEUE: u64 = supervisor_rs::reconcile::QUEUE_LEN_MAX as u64;
    let sandbox = slow();
    sandbox.write("other.yml", SLEEPER);
    sandbox.wait_state("other", "stopped");
    let mut wire = sandbox.wire();
    wire.ask(1, RESTART);
    sandbox.wait_state("web", "stopping");
    for id in 2..QUEUE + 2 {
        wire.ask(id, START);
    }
    let full = sandbox.client(&["check", "web"]);
    let waiting = format!("queue     {QUEUE} commands wait for `web`");
    assert!(full.stdout.contains(&waiting), "{full:?}");

    let (code, answer) = give(&sandbox, "start");
    let message = format!("{QUEUE} commands wait for `web` already; try again");
    assert_eq!((7, refused("start", "busy", &message).1), (code, answer));
    let other = sandbox.client(&["start", "other"]);
    assert_eq!(other.code, 0, "{other:?}");

    sandbox.open_gate("end");
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["run"]), (Some(1), &2.into()), "{answer}");
    for expected in 2..QUEUE + 2 {
        let (id, answer) = wire.answer();
        let code = &answer["error"]["code"];
        assert_eq!((id, code), (Some(expected), &"already_running".into()));
    }
}

#[test]
fn a_command_that_was_taken_is_carried_out_although_its_client_is_gone() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    wire.ask(1, RESTART);
    sandbox.wait_state("web", "stopping");
    drop(wire);
    sandbox.open_gate("end");
    assert_eq!(sandbox.wait_state("web", "running")["run"], 2);
}

#[test]
fn a_restart_that_has_stopped_the_old_run_goes_on_although_the_server_is_to_end() {
    let mut sandbox = slow();
    let (mut restart, mut kill) = (sandbox.wire(), sandbox.wire());
    restart.ask(1, RESTART);
    sandbox.wait_state("web", "stopping");
    kill.ask(1, r#"{"op":"kill"}"#);
    kill.ask(2, r#"{"op":"check"}"#);
    assert_eq!(kill.answer().0, Some(2));
    sandbox.open_gate("end");
    assert_eq!(restart.answer().1["ok"]["run"], 2);
    let words = r#"{"id":1,"ok":{"op":"kill","children":[{"name":"web","pid":PID,"run":2}],"message":"the server ends; 1 child runs on, and the next start takes it back"}}"#;
    assert_eq!(sandbox.mask(&kill.line().unwrap()), words);
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.start_server();
    assert_eq!(sandbox.row("web").unwrap()["run"], 2);
}

#[test]
fn a_start_and_a_stop_at_once_leave_nothing_running_however_they_meet() {
    const ROUNDS: u64 = 100;
    let sandbox = stopped();
    let mut wire = sandbox.wire();
    let mut overtaken = 0;
    for round in 0..ROUNDS {
        let (start, stop) = (2 * round, 2 * round + 1);
        wire.send(format!(
            "{{\"id\":{start},\"command\":{START}}}\n{{\"id\":{stop},\"command\":{STOP}}}\n"
        ));
        let mut answers = [wire.answer(), wire.answer()];
        answers.sort_by_key(|(id, _)| *id);
        let [(first, started), (second, stopped)] = &answers;
        assert_eq!((*first, *second), (Some(start), Some(stop)));
        assert_eq!(stopped["ok"]["op"], "stop", "{stopped}");
        if started["error"]["code"] == "superseded" {
            overtaken += 1;
        } else {
            assert_eq!(started["ok"]["op"], "start", "{started}");
        }
        assert_eq!(sandbox.processes(), [], "round {round}");
        let hold = &sandbox.row("web").unwrap()["hold"];
        assert_eq!(hold, true, "round {round}");
    }
    println!("{overtaken} of {ROUNDS} starts were overtaken");
}

#[test]
fn many_clients_at_once_are_all_answered_and_never_run_two() {
    const CLIENTS: usize = 60;
    let sandbox = stopped();
    let mut wires: Vec<Wire> = (0..CLIENTS).map(|_| sandbox.wire()).collect();
    for wire in &mut wires {
        wire.ask(1, TRYSTART);
    }
    let mut runs = Vec::new();
    for wire in &mut wires {
        let (id, answer) = wire.answer();
        assert_eq!(id, Some(1));
        match answer["error"]["code"].as_str() {
            Some(code) => assert_eq!(code, "busy", "{answer}"),
            None => runs.push(answer["ok"]["run"].as_u64().unwrap()),
        }
        let live = sandbox.processes();
        assert!(live.len() <= 1, "{live:?}");
    }
    runs.sort_unstable();
    // Each that was carried out has a run of its own, and none was left out.
    let expected: Vec<u64> = (1..=runs.len() as u64).collect();
    assert_eq!(runs, expected);
    then(&sandbox, "running", u32::try_from(runs.len()).ok(), Free);
}

#[test]
fn an_answered_stop_survives_the_death_of_the_server_at_that_very_moment() {
    const ROUNDS: u32 = 5;
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    for run in 1..=ROUNDS {
        sandbox.wait_state("web", "running");
        let stopped = give(&sandbox, "stop");
        // From the second round on the child is init's, and may be reaped before we look.
        if run == 1 || stopped != ended_unseen(run) {
            assert_eq!(stopped, ended(run));
        }
        sandbox.restart_server();
        let row = sandbox.row("web").unwrap();
        assert_eq!(
            (&row["state"], &row["hold"]),
            (&"stopped".into(), &true.into())
        );
        assert_eq!(give(&sandbox, "start"), started("start", run + 1));
        sandbox.restart_server();
        then(&sandbox, "running", Some(run + 1), Free);
    }
}

#[test]
fn an_operators_start_joins_one_that_the_server_began_by_itself() {
    let sandbox = Sandbox::start("mode: sync");
    let wait = sandbox.gate("hook");
    let hook = format!("hooks:\n  - prehook: run sh -c '{wait}'\n");
    sandbox.write("web.yml", &format!("{SLEEPER}{hook}"));
    sandbox.wait_prehook("web");
    let mut wire = sandbox.wire();
    wire.ask(1, START);
    wire.ask(2, r#"{"op":"check","child":"web"}"#);
    assert_eq!(wire.answer().0, Some(2));
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    sandbox.open_gate("hook");
    let answer = r#"{"id":1,"ok":{"op":"start","child":"web","pid":PID,"run":1,"message":"`web` started: run 1, pid PID"}}"#;
    assert_eq!(sandbox.mask(&wire.line().unwrap()), answer);
    then(&sandbox, "running", Some(1), Free);
}

#[test]
fn a_child_that_waits_for_one_that_is_missing_starts_with_it_unless_it_is_stopped() {
    let sandbox = Sandbox::start("mode: sync");
    let yaml = format!("{SLEEPER}hooks: [prehook: start db]\n");
    sandbox.write("web.yml", &yaml);
    sandbox.wait_state("web", "pending");
    // There is no start under way that could be joined: an operator is told at once.
    for verb in ["start", "trystart"] {
        let message = "`db` is unknown, in the chain of hooks web -> start db";
        assert_eq!(give(&sandbox, verb), refused(verb, "hook_failed", message));
        assert_eq!(sandbox.row("web").unwrap()["state"], "pending");
    }
    assert_eq!(give(&sandbox, "restart"), restart_refused());
    sandbox.write("db.yml", SLEEPER);
    sandbox.wait_state("web", "running");
    assert_eq!(sandbox.row("db").unwrap()["state"], "running");

    let other = Sandbox::start("mode: sync");
    other.write("web.yml", &yaml);
    other.wait_state("web", "pending");
    assert_eq!(give(&other, "stop"), cancelled());
    other.write("db.yml", SLEEPER);
    other.wait_state("db", "running");
    then_of(&other, "web", "stopped", Held);
}

#[track_caller]
fn then_of(sandbox: &Sandbox, name: &str, state: &str, hold: Hold) {
    let row = sandbox.row(name).unwrap();
    let held = Value::from(hold == Hold::Held);
    let found = (&row["state"], &row["hold"]);
    assert_eq!(found, (&state.into(), &held), "{row}");
}
