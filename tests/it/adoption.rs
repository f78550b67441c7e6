//! A server started again: it takes its live children back and never starts one twice.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, lives, pid_of, script, wait_for, wait_lines};

/// How often the server is killed and started again in one test.
const ROUNDS: u64 = 50;

/// What the server's log says since its latest start.
fn latest_log(sandbox: &Sandbox) -> String {
    let log = sandbox.server_log();
    let at = log.rfind("the server runs").unwrap();
    log[at..].to_owned()
}

#[test]
fn a_live_child_is_taken_back_as_it_was_however_the_server_ended() {
    for mode in ["quiet", "half\nstartup: [web]", "full", "sync"] {
        let mut sandbox = Sandbox::start(&format!("mode: {mode}"));
        sandbox.write("web.yml", SLEEPER);
        sandbox.client(&["start", "web"]);
        let before = sandbox.wait_state("web", "running");
        let processes = sandbox.processes();
        let ends: [fn(&mut Sandbox); 3] = [
            |sandbox| sandbox.kill_server(),
            |sandbox| assert_eq!(sandbox.stop_server(), 0),
            |sandbox| {
                sandbox.done(&["kill"]);
                assert_eq!(sandbox.wait_server(), 0);
            },
        ];
        for end in ends {
            end(&mut sandbox);
            assert_eq!(
                sandbox.processes(),
                processes,
                "{mode}: it runs on without a server"
            );
            sandbox.start_server();
            let after = sandbox.row("web").unwrap();
            for field in [
                "state",
                "pid",
                "run",
                "started_at",
                "config",
                "output",
                "hold",
                "exit",
            ] {
                assert_eq!(after[field], before[field], "{mode}: {field}");
            }
            assert!(after["uptime_ms"].as_u64() > before["uptime_ms"].as_u64());
            assert_eq!(
                sandbox.processes(),
                processes,
                "{mode}: nothing was started twice"
            );
            let log = latest_log(&sandbox);
            let words = format!(
                "child{{child=web run=1}}: taken back detail=\"pid {}\"",
                before["pid"]
            );
            assert!(log.contains(&words), "{log}");
            assert!(!log.contains("new file"), "{mode}: it is no news: {log}");
        }
    }
}

#[test]
fn what_was_taken_back_can_be_restarted_and_stopped_with_its_group() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let up = sandbox.root().join("up");
    let text = format!(
        "(trap '' TERM; exec sleep 300) & echo up >> {}; wait",
        up.display()
    );
    sandbox.write("web.yml", &script(&text));
    let old = sandbox.done(&["start", "web"])["pid"].clone();
    wait_lines(&up, 1);
    sandbox.restart_server();
    sandbox.refused(&["start", "web"], "already_running", 1);
    let answer = sandbox.done(&["restart", "web"]);
    assert_eq!(answer["run"], 2);
    wait_lines(&up, 2);
    wait_for("the old group's end", PATIENCE, || {
        sandbox
            .processes()
            .iter()
            .all(|process| json!(process.group) != old)
    });
    sandbox.restart_server();
    let answer = sandbox.done(&["stop", "web"]);
    assert_eq!((&answer["run"], &answer["op"]), (&json!(2), &json!("stop")));
    wait_for("the end of all", PATIENCE, || {
        sandbox.processes().is_empty()
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["hold"]),
        (&json!("stopped"), &json!(true))
    );
}

#[test]
fn its_output_goes_on_into_its_file_while_no_server_is_there() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write(
        "web.yml",
        &script("while :; do echo line; sleep 0.02; done"),
    );
    let log = sandbox.log_dir().join("web.out");
    wait_lines(&log, 3);
    sandbox.kill_server();
    let count = fs::read_to_string(&log).unwrap().lines().count();
    wait_lines(&log, count + 5);
    sandbox.start_server();
    let count = fs::read_to_string(&log).unwrap().lines().count();
    wait_lines(&log, count + 5);
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
}

#[test]
fn the_end_of_what_was_taken_back_is_noticed_at_once() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let pid = pid_of(&sandbox.wait_state("web", "running"));
    sandbox.restart_server();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_for("a line in the log", PATIENCE, || {
        latest_log(&sandbox).contains("child{child=web run=1}: ended")
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["run"]), (&json!("exited"), &json!(1)));
    assert!(row["exit"]["at"].is_string());
    // And again, now that nothing of it lives.
    sandbox.restart_server();
    assert_eq!(sandbox.row("web").unwrap()["exit"], row["exit"]);
}

#[test]
fn what_ended_while_no_server_was_there_stays_ended() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("other.yml", SLEEPER);
    let pid = pid_of(&sandbox.wait_state("web", "running"));
    sandbox.wait_state("other", "running");
    sandbox.kill_server();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    wait_for("its end", PATIENCE, || !lives(pid));
    sandbox.start_server();
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["state"], "exited");
    // It depends on the machine what is known of it (`exit_codes`); another than this is wrong.
    let exit = &row["exit"];
    let known = exit["signal"] == "SIGTERM" || exit["unknown"] == true;
    assert!(known, "{row}");
    assert_eq!((&row["run"], &row["pid"]), (&json!(1), &json!(null)));
    assert_eq!(sandbox.row("other").unwrap()["state"], "running");
    assert_eq!(sandbox.processes().len(), 1);
    assert_eq!(sandbox.done(&["start", "web"])["run"], 2);
}

#[test]
fn a_stop_under_way_is_gone_on_with() {
    let mut sandbox = Sandbox::start("mode: sync");
    let up = sandbox.root().join("up");
    let root = sandbox.root().display().to_string();
    // It ends half a second after TERM, whoever sent it.
    let text =
        format!("trap 'sleep 0.5; exit 0' TERM; echo up > {root}/up; while :; do sleep 0.05; done");
    sandbox.write("web.yml", &script(&text));
    wait_lines(&up, 1);
    let pid = pid_of(&sandbox.wait_state("web", "running"));
    let address = sandbox.address().to_string();
    thread::scope(|scope| {
        scope.spawn(|| sandbox.client_as_given(&["stop", "web", "on", &address]));
        sandbox.wait_state("web", "stopping");
        kill_process(Pid::from_raw(sandbox.server_pid()).unwrap(), Signal::KILL).unwrap();
    });
    sandbox.wait_server();
    sandbox.start_server();
    let row = sandbox.wait_state("web", "stopped");
    assert_eq!((&row["hold"], &row["run"]), (&json!(true), &json!(1)));
    assert!(!lives(pid));
    sandbox.restart_server();
    assert_eq!(
        sandbox.row("web").unwrap()["state"],
        "stopped",
        "held, and so not started"
    );
}

#[test]
fn a_stop_under_way_ends_the_whole_group_although_the_main_process_is_gone_already() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let (up, gate) = (sandbox.root().join("up"), sandbox.gate("gate"));
    // One of its group does not hear TERM; it ends itself when its gate is opened.
    let text = format!(
        "(trap '' TERM; echo up >> {up}; exec sleep 300) & trap '{gate}; exit 0' TERM; \
         echo up >> {up}; while :; do sleep 0.05; done",
        up = up.display()
    );
    sandbox.write("web.yml", &script(&text));
    let mut wire = sandbox.wire();
    sandbox.done(&["start", "web"]);
    wait_lines(&up, 2);
    let pid = pid_of(&sandbox.row("web").unwrap());
    wire.ask(1, r#"{"op":"stop","child":"web"}"#);
    sandbox.wait_state("web", "stopping");
    sandbox.kill_server();
    sandbox.open_gate("gate");
    wait_for("the main process's end", PATIENCE, || !lives(pid));
    assert_eq!(sandbox.processes().len(), 1, "the other one lives on");
    sandbox.start_server();
    sandbox.wait_state("web", "stopped");
    wait_for("the end of its group", PATIENCE, || {
        sandbox.processes().is_empty()
    });
}

#[test]
fn a_held_child_stays_held_and_the_log_says_since_when_and_what_releases_it() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "running");
    sandbox.done(&["stop", "web"]);
    let before = sandbox.row("web").unwrap();
    let ends: [fn(&mut Sandbox); 2] = [
        |sandbox| sandbox.kill_server(),
        |sandbox| assert_eq!(sandbox.stop_server(), 0),
    ];
    for end in ends {
        end(&mut sandbox);
        sandbox.start_server();
        let row = sandbox.row("web").unwrap();
        for field in ["state", "hold", "held_since", "exit", "run"] {
            assert_eq!(row[field], before[field], "{field}");
        }
        let log = latest_log(&sandbox);
        let words = format!(
            "since {}; `supervisor-rs-client start web` releases it",
            before["held_since"].as_str().unwrap()
        );
        assert!(
            log.contains("held: not started by itself") && log.contains(&words),
            "{log}"
        );
    }
    assert_eq!(sandbox.done(&["start", "web"])["run"], 2);
}

#[test]
fn what_happened_to_files_while_no_server_was_there_is_made_up_for() {
    let mut sandbox = Sandbox::start("mode: sync");
    for name in ["same", "changed", "gone", "bad"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
    }
    let pid = |name: &str| pid_of(&sandbox.wait_state(name, "running"));
    let [same, _changed, gone, bad] = ["same", "changed", "gone", "bad"].map(pid);
    sandbox.kill_server();
    sandbox.write("changed.yml", "command: [sleep, '301']\n");
    sandbox.write("new.yml", SLEEPER);
    sandbox.write("bad.yml", "comand: sleep\n");
    sandbox.remove("gone.yml");
    sandbox.start_server();
    sandbox.wait_state("new", "running");
    wait_for("the changed one's restart", PATIENCE, || {
        let row = sandbox.row("changed").unwrap();
        (&row["run"], &row["state"]) == (&json!(2), &json!("running"))
    });
    sandbox.wait_state("gone", "stopped");
    assert!(!lives(gone));
    assert_eq!(pid_of(&sandbox.row("same").unwrap()), same);
    let row = sandbox.row("bad").unwrap();
    assert_eq!(
        (pid_of(&row), &row["config"]["status"]),
        (bad, &json!("invalid"))
    );
    assert_eq!(sandbox.processes().len(), 4);
}

#[test]
fn a_fresh_start_after_an_end_by_order_starts_what_is_neither_running_nor_held() {
    let mut sandbox = Sandbox::start("mode: sync");
    for name in ["live", "held", "dead"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        sandbox.wait_state(name, "running");
    }
    sandbox.done(&["stop", "held"]);
    let dead = pid_of(&sandbox.row("dead").unwrap());
    kill_process(Pid::from_raw(dead).unwrap(), Signal::KILL).unwrap();
    sandbox.wait_state("dead", "exited");
    sandbox.restart_server();
    assert_eq!(
        sandbox.row("dead").unwrap()["state"],
        "exited",
        "after a crash it stays ended"
    );
    assert_eq!(sandbox.stop_server(), 0);
    sandbox.start_server();
    assert_eq!(sandbox.wait_state("dead", "running")["run"], 2);
    assert_eq!(sandbox.row("live").unwrap()["run"], 1);
    assert_eq!(sandbox.row("held").unwrap()["state"], "stopped");
    assert_eq!(sandbox.processes().len(), 2);
}

#[test]
fn run_numbers_are_never_used_again() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let log = sandbox.root().join("log");
    let job = script(&format!("echo $SUPERVISOR_RS_RUN >> {}", log.display()));
    sandbox.write("job.yml", &job);
    let mut count = 0;
    let mut start = |sandbox: &Sandbox| {
        let run = sandbox.done(&["start", "job"])["run"].as_u64().unwrap();
        sandbox.wait_state("job", "exited");
        count += 1;
        let line = wait_lines(&log, count).pop().unwrap();
        assert!(line.ends_with(&format!("/job/{run}")), "{line}");
        run
    };
    let mut runs = Vec::new();
    for round in 0..3 {
        runs.push(start(&sandbox));
        runs.push(start(&sandbox));
        match round {
            0 => sandbox.kill_server(),
            1 => assert_eq!(sandbox.stop_server(), 0),
            _ => {
                sandbox.done(&["kill"]);
                sandbox.wait_server();
            }
        }
        sandbox.start_server();
    }
    // What is removed and comes back goes on counting.
    sandbox.remove("job.yml");
    wait_for("its removal", PATIENCE, || {
        sandbox
            .row("job")
            .is_none_or(|row| row["config"]["status"] == "removed")
    });
    sandbox.restart_server();
    sandbox.write("job.yml", &job);
    runs.push(start(&sandbox));
    // Without the records of this boot, as after a reboot.
    assert_eq!(sandbox.stop_server(), 0);
    fs::remove_dir_all(sandbox.root().join("run")).unwrap();
    sandbox.start_server();
    runs.push(start(&sandbox));
    assert!(runs.windows(2).all(|pair| pair[0] < pair[1]), "{runs:?}");
}

/// Processes of these children, as `NAME/RUN` in their environment tells, each group once.
fn groups(sandbox: &Sandbox) -> Vec<(String, i32)> {
    let mut found: BTreeSet<(String, i32)> = BTreeSet::new();
    for process in sandbox.processes() {
        let Ok(environment) = fs::read(format!("/proc/{}/environ", process.group)) else {
            continue;
        };
        let text = String::from_utf8_lossy(&environment).into_owned();
        let tag = text
            .split('\0')
            .find_map(|v| v.strip_prefix("SUPERVISOR_RS_RUN="));
        let name = tag.and_then(|tag| tag.split('/').nth(1));
        if let Some(name) = name {
            found.insert((name.to_owned(), process.group));
        }
    }
    found.into_iter().collect()
}

#[test]
fn fifty_crashes_of_the_server_lose_no_child_and_start_none_twice() {
    let mut sandbox = Sandbox::start("mode: sync");
    let root = sandbox.root().display().to_string();
    let sleepers = ["a", "b", "c", "d"];
    for name in sleepers {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
    }
    // It notes its run, and whether another one lives beside it.
    let crash = script(&format!(
        "mkdir {root}/lock || echo overlap >> {root}/overlaps\n\
         echo $SUPERVISOR_RS_RUN >> {root}/runs\n\
         sleep 0.03; rmdir {root}/lock; exit 1"
    ));
    let policy = "restart: {when: always, delay: 5ms, factor: 1, max_delay: 5ms}\n";
    sandbox.write("crash.yml", &format!("{crash}{policy}"));
    for name in sleepers {
        sandbox.wait_state(name, "running");
    }
    let pids = sleepers.map(|name| pid_of(&sandbox.row(name).unwrap()));
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            // Some way into its life, a different one each time.
            thread::sleep(Duration::from_millis(round));
        }
        sandbox.restart_server();
        let found = groups(&sandbox);
        for (name, pid) in sleepers.iter().zip(pids) {
            let own: Vec<i32> = found
                .iter()
                .filter(|(n, _)| n == name)
                .map(|(_, g)| *g)
                .collect();
            assert_eq!(own, [pid], "round {round}");
        }
        assert!(
            found.iter().filter(|(name, _)| name == "crash").count() <= 1,
            "{found:?}"
        );
    }
    for (name, pid) in sleepers.iter().zip(pids) {
        let row = sandbox.row(name).unwrap();
        assert_eq!((pid_of(&row), &row["run"]), (pid, &json!(1)));
    }
    // The crashing one still crashes and is restarted: nothing is in doubt, whenever it died.
    let before = sandbox.row("crash").unwrap()["run"].as_u64().unwrap();
    wait_for("two more runs", PATIENCE, || {
        sandbox.row("crash").unwrap()["run"].as_u64().unwrap() >= before + 2
    });
    sandbox.done(&["stop", "crash"]);
    let runs = fs::read_to_string(sandbox.root().join("runs")).unwrap();
    let runs: Vec<&str> = runs.lines().collect();
    let distinct: BTreeSet<&&str> = runs.iter().collect();
    assert_eq!(
        distinct.len(),
        runs.len(),
        "a run number was used twice: {runs:?}"
    );
    assert!(
        !sandbox.root().join("overlaps").exists(),
        "two lived at once"
    );
}

#[test]
fn crashes_in_the_midst_of_starting_start_nothing_twice() {
    const CHILDREN: usize = 40;
    const CRASHES: usize = 8;
    let mut sandbox = Sandbox::new("mode: sync");
    for number in 0..CHILDREN {
        sandbox.write(&format!("child{number}.yml"), SLEEPER);
    }
    for crash in 1..=CRASHES {
        sandbox.begin_server();
        let started = || sandbox.server_log().matches("}: started ").count();
        while started() < crash * 4 {
            thread::yield_now();
        }
        sandbox.kill_server();
    }
    sandbox.start_server();
    let mut rows = Vec::new();
    // None is in doubt: what was executed is on record, and what was not is still due.
    wait_for("all children", PATIENCE, || {
        let answer = sandbox.json(&["check", "--all"]);
        rows.clone_from(answer["children"].as_array().unwrap());
        rows.iter().filter(|row| row["state"] == "running").count() == CHILDREN
    });
    let found = groups(&sandbox);
    let names: BTreeSet<&String> = found.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), found.len(), "one run a child: {found:?}");
    for row in rows.iter().filter(|row| row["state"] == "running") {
        let own = (row["name"].as_str().unwrap().to_owned(), pid_of(row));
        assert!(found.contains(&own), "{own:?}");
    }
    assert_eq!(found.len(), CHILDREN);
}
