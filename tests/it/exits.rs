//! Ends: noticed when they happen, told with how and when, and no zombie stays.

use std::{process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::sandbox::{
    PATIENCE, Sandbox, children_of, millis, run, script, skip, status_of, wait_for, wait_lines,
};

/// How late an end may be noticed on a busy machine; nothing that polls is as fast.
const AT_ONCE: Duration = Duration::from_secs(1);

fn zombies_of(parent: i32) -> Vec<i32> {
    let is_zombie = |pid: &i32| status_of(*pid, "State").is_some_and(|s| s.starts_with('Z'));
    children_of(parent).into_iter().filter(is_zombie).collect()
}

#[test]
fn an_end_is_noticed_at_once_though_nobody_asks_and_kept_with_code_and_time() {
    let mut sandbox = Sandbox::start("mode: sync");
    let ended = sandbox.root().join("ended");
    let text = format!("sleep 0.2; date +%s%3N > {}; exit 3", ended.display());
    sandbox.write("job.yml", &script(&text));
    let at: i64 = wait_lines(&ended, 1)[0].parse().unwrap();
    wait_for("a line in the log", PATIENCE, || {
        sandbox
            .server_log()
            .contains("child{child=job run=1}: ended exit=\"exit code 3\"")
    });
    let row = sandbox.row("job").unwrap();
    assert_eq!(
        (&row["state"], &row["exit"]["code"]),
        (&json!("exited"), &json!(3))
    );
    assert_eq!(
        (&row["run"], &row["pid"], &row["hold"]),
        (&json!(1), &json!(null), &json!(false))
    );
    let noticed = millis(&row["exit"]["at"]);
    let late = noticed - at;
    assert!(
        (0..i64::try_from(AT_ONCE.as_millis()).unwrap()).contains(&late),
        "{late} ms"
    );
    assert!(millis(&row["started_at"]) + 200 <= noticed);

    let shown = sandbox.client(&["check", "-a"]);
    assert_eq!(shown.code, 0);
    assert!(shown.stdout.contains("code 3"), "{}", shown.stdout);
    let live = sandbox.json(&["check"]);
    assert_eq!(
        (&live["children"], &live["others"]),
        (&json!([]), &json!(1))
    );
    let one = sandbox.client(&["--json", "check", "job"]);
    let answer: Value = serde_json::from_str(&one.stdout).unwrap();
    assert_eq!((one.code, &answer["ok"]), (3, &json!(true)));
    assert_eq!(answer["children"][0]["exit"], row["exit"]);

    sandbox.restart_server();
    let kept = sandbox.row("job").unwrap();
    for field in ["state", "exit", "run", "started_at"] {
        assert_eq!(kept[field], row[field], "{field}");
    }
}

#[test]
fn an_end_by_a_signal_is_told_by_the_signals_name() {
    let sandbox = Sandbox::start("mode: sync");
    for signal in ["SEGV", "KILL", "USR1", "TERM", "ABRT"] {
        let name = format!("by-{signal}");
        let text = script(&format!("ulimit -c 0; kill -{signal} $$; sleep 300"));
        sandbox.write(&format!("{name}.yml"), &text);
        let exit = sandbox.wait_state(&name, "exited")["exit"].clone();
        assert_eq!(exit["signal"], format!("SIG{signal}"));
        assert_eq!(exit["code"], json!(null));
        assert!(exit["at"].is_string());
    }
    wait_for("the rests' end", PATIENCE, || {
        sandbox.processes().is_empty()
    });
}

#[test]
fn a_child_that_was_killed_by_somebody_else_is_noticed() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", "command: [sleep, '300']\n");
    let pid = sandbox.wait_state("web", "running")["pid"]
        .as_i64()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let row = sandbox.wait_state("web", "exited");
    assert_eq!(row["exit"]["signal"], "SIGKILL");
    assert_eq!(
        (&row["state"], &row["hold"]),
        (&json!("exited"), &json!(false))
    );
}

#[test]
fn no_zombie_stays_of_children_that_end_at_once() {
    let sandbox = Sandbox::start("mode: quiet");
    for number in 0..20 {
        let code = number % 3;
        sandbox.write(
            &format!("job{number}.yml"),
            &script(&format!("exit {code}")),
        );
    }
    wait_for("all files", PATIENCE, || {
        sandbox.json(&["check"])["others"] == json!(20)
    });
    for round in 1..=3 {
        for number in 0..20 {
            sandbox.done(&["start", &format!("job{number}")]);
        }
        let ended = || {
            let answer = sandbox.json(&["check", "--all"]);
            let rows = answer["children"].as_array().unwrap().clone();
            rows.iter()
                .all(|row| row["state"] == "exited" && row["run"] == round)
        };
        wait_for("all ends", PATIENCE, ended);
        let server = sandbox.server_pid();
        wait_for("no child at all", PATIENCE, || {
            children_of(server).is_empty()
        });
    }
    for number in 0..20 {
        let row = sandbox.row(&format!("job{number}")).unwrap();
        assert_eq!(row["exit"]["code"], number % 3);
    }
}

#[test]
fn orphans_that_come_to_the_server_are_reaped_and_steal_nobodys_exit() {
    let sandbox = Sandbox::start("mode: quiet");
    let done = sandbox.root().join("done");
    // Fifty processes whose parents end before them, while the child itself lives.
    let text = format!(
        "n=0; while [ $n -lt 50 ]; do n=$((n+1)); (sleep 0.2 &); done; echo done > {}; sleep 0.7; exit 9",
        done.display()
    );
    sandbox.write("mother.yml", &script(&text));
    sandbox.write("web.yml", "command: [sleep, '300']\n");
    sandbox.done(&["start", "web"]);
    sandbox.done(&["start", "mother"]);
    let server = sandbox.server_pid();
    wait_for("orphans", PATIENCE, || children_of(server).len() > 2);
    wait_lines(&done, 1);
    assert_eq!(sandbox.wait_state("mother", "exited")["exit"]["code"], 9);
    wait_for("the reaping of all", PATIENCE, || {
        children_of(server).len() == 1
    });
    assert!(zombies_of(server).is_empty());
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

/// Whether PID namespaces can be made here.
fn has_namespaces() -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return false;
    };
    if !std::env::split_paths(&path).any(|dir| dir.join("unshare").exists()) {
        return false;
    }
    let mut attempt = Command::new("unshare");
    attempt.args(["--pid", "--fork", "--mount-proc", "true"]);
    run(attempt).code == 0
}

/// A server that is PID 1 of a PID namespace of its own; its settings end with `settings`.
fn as_pid_1(settings: &str) -> (Sandbox, i32) {
    let outer = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut sandbox = Sandbox::new(settings).within(&outer);
    sandbox.start_server();
    let inner = children_of(sandbox.server_pid());
    assert_eq!(inner.len(), 1);
    let numbers = status_of(inner[0], "NSpid").unwrap();
    assert!(numbers.ends_with("\t1"), "it is PID 1 there: {numbers}");
    (sandbox, inner[0])
}

#[test]
fn as_pid_1_it_reaps_everything_and_stops_its_children_at_the_end() {
    if !has_namespaces() {
        return skip("`unshare --pid` is not there or not permitted");
    }
    let (mut sandbox, server) = as_pid_1("mode: sync");
    assert_eq!(sandbox.json(&["info"])["on_exit"], "stop");
    assert_eq!(sandbox.json(&["info"])["pid"], 1);
    let root = sandbox.root().display().to_string();
    let daemon = format!("setsid sh -c \"echo up > {root}/daemon; sleep 0.3\"");
    let text = format!("({daemon} &); trap 'echo bye; exit 0' TERM; echo hello; sleep 300 & wait");
    sandbox.write("web.yml", &script(&text));
    let row = sandbox.wait_state("web", "running");
    assert_eq!(
        row["output"],
        json!({"stdout": "inherit", "stderr": "inherit"})
    );
    wait_lines(&sandbox.root().join("daemon"), 1);
    wait_for("the daemon's reaping", PATIENCE, || {
        children_of(server).len() == 1
    });
    sandbox.write("job.yml", &script("exit 4"));
    assert_eq!(sandbox.wait_state("job", "exited")["exit"]["code"], 4);
    wait_for("the job's reaping", PATIENCE, || {
        children_of(server).len() == 1
    });
    assert!(zombies_of(server).is_empty());

    kill_process(Pid::from_raw(server).unwrap(), Signal::TERM).unwrap();
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(sandbox.processes(), []);
    let log = sandbox.server_log();
    let at = |text: &str| {
        log.find(text)
            .unwrap_or_else(|| panic!("no `{text}` in {log}"))
    };
    assert!(
        at("\nhello\n") < at("\nbye\n"),
        "it was asked to end, not killed: {log}"
    );
    assert!(at("\nbye\n") < at("the server ends"));
}

#[test]
fn as_pid_1_its_next_start_is_a_fresh_one_for_nothing_outlived_it() {
    if !has_namespaces() {
        return skip("`unshare --pid` is not there or not permitted");
    }
    let (mut sandbox, _server) = as_pid_1("mode: sync");
    sandbox.write("web.yml", "command: [sleep, '300']\n");
    sandbox.wait_state("web", "running");
    // KILL of PID 1 takes the namespace with it: nothing lives, whatever the records say.
    sandbox.kill_server();
    wait_for("the namespace's end", PATIENCE, || {
        sandbox.processes().is_empty()
    });
    sandbox.start_server();
    let row = sandbox.wait_state("web", "running");
    assert!(row["run"].as_u64().unwrap() > 1, "no number is used again");
    assert_eq!(sandbox.processes().len(), 1);
    sandbox.done(&["kill"]);
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(
        sandbox.processes(),
        [],
        "`kill` too stops them where `on_exit` is `stop`"
    );
}
