//! `why NAME`: one screen of what ended the last run, what happens next, and how the file is.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    sandbox::{PATIENCE, SLEEPER, Sandbox, pass_over, remove_cgroups, script, wait_for},
    signing::Which,
};

/// What is said, with what no test can know masked.
fn why(sandbox: &Sandbox, name: &str) -> String {
    let output = sandbox.client(&["why", name]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    sandbox.mask(&output.stdout)
}

/// The row of this title, with those that belong to it.
fn row(screen: &str, title: &str) -> String {
    let lines = screen
        .lines()
        .skip_while(|line| line.trim_start().split("  ").next() != Some(title));
    let mine = |(index, line): &(usize, &str)| *index == 0 || line.starts_with("          ");
    let lines: Vec<&str> = lines
        .enumerate()
        .take_while(mine)
        .map(|(_, line)| line.trim())
        .collect();
    lines.join("\n")
}

#[test]
fn of_a_run_that_failed_it_says_how_and_when_the_next_begins() {
    let yaml = format!(
        "{}restart: {{when: on-failure, delay: 1h, jitter: 0}}\n",
        script("exit 3")
    );
    let sandbox = Sandbox::knowing(&[("web", &yaml)]);
    let before = why(&sandbox, "web");
    assert_eq!(
        row(&before, "before"),
        "before  no run of it has ended, as far as is known"
    );
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "backoff");
    let screen = why(&sandbox, "web");
    assert!(screen.starts_with("`web` is backoff\n"), "{screen}");
    let ended = row(&screen, "before");
    assert!(
        ended.starts_with("before  run 1 ended by itself at "),
        "{screen}"
    );
    assert!(ended.ends_with(": exit code 3"), "{screen}");
    let next = row(&screen, "next");
    assert!(next.starts_with("next    restart at "), "{screen}");
    assert!(next.contains(", by its restart policy"), "{screen}");
    assert_eq!(
        row(&screen, "file"),
        "file    `ROOT/load/web.yml` is in force"
    );
}

#[test]
fn of_a_child_that_was_stopped_it_says_by_which_key_from_where_and_what_releases_it() {
    let mut sandbox = Sandbox::signed("mode: sync");
    sandbox.private_key("deploy", Which::Deploy);
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_processes(1);
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
    let told = |sandbox: &Sandbox| sandbox.sign(&["why", "web"]).stdout;
    let screen = told(&sandbox);
    let ended = row(&screen, "before");
    assert!(
        ended.contains(" by order of key `deploy` from 127.0.0.1:"),
        "{screen}"
    );
    assert!(ended.ends_with(": SIGTERM"), "{screen}");
    let next = row(&screen, "next");
    assert!(
        next.starts_with("next    nothing: it is held since 20"),
        "{screen}"
    );
    assert!(
        next.ends_with("; `supervisor-rs-client start web` releases it"),
        "{screen}"
    );
    // Another server knows it too.
    sandbox.kill_server();
    sandbox.start_server();
    assert_eq!(row(&told(&sandbox), "before"), ended);
}

#[test]
fn of_a_run_that_was_not_ready_it_says_what_the_probe_said_last() {
    let ready = "ready: {exec: [test, -e, there], interval: 20ms, timeout: 300ms}\n";
    let sandbox = Sandbox::knowing(&[("web", &format!("{SLEEPER}{ready}"))]);
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "failed");
    let screen = why(&sandbox, "web");
    assert!(
        row(&screen, "before").contains(" because it was not ready in time: SIGTERM"),
        "{screen}"
    );
    assert_eq!(
        row(&screen, "reason"),
        "reason  not ready within 300ms: exec test -e there: exit code 1"
    );
    assert!(
        row(&screen, "next").starts_with("next    nothing: `supervisor-rs-client start web`"),
        "{screen}"
    );
}

#[test]
fn of_what_runs_it_says_so_and_of_a_file_what_is_wrong_with_it() {
    let sandbox = Sandbox::knowing(&[("why", SLEEPER)]);
    sandbox.done(&["start", "why"]);
    sandbox.done(&["restart", "why"]);
    sandbox.write("why.yml", "command: [sleep, '300']\nnothing: 1\n");
    wait_for("the fault", PATIENCE, || {
        sandbox.row("why").unwrap()["config"]["status"] == "invalid"
    });
    let answer = sandbox.done(&["why", "why"]);
    assert_eq!(
        (&answer["op"], &answer["state"]),
        (&json!("why"), &json!("running"))
    );
    assert_eq!(answer["ended"]["run"], 1);
    assert_eq!(answer["ended"]["ended_by"]["cause"], "command");
    let next = answer["next"].as_str().unwrap();
    assert!(next.starts_with("nothing: it runs since 20"), "{answer}");
    let config = answer["config"].as_str().unwrap();
    assert!(
        config.contains("is bad, and the last good one stays in force"),
        "{answer}"
    );
    assert!(config.contains("unknown key `nothing`"), "{answer}");
    let told = sandbox.refused(&["why", "wyh"], "unknown_child", 5);
    assert!(told.contains("did you mean `why`?"), "{told}");
    let output = sandbox.client(&["why"]);
    assert_eq!(output.code, 2, "{output:?}");
}

/// What this shell may write of a core, and where the kernel would.
fn cores_are_dumped() -> bool {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mut limits = limits.lines();
    let hard = limits.find_map(|line| {
        line.strip_prefix("Max core file size")?
            .split_whitespace()
            .nth(1)
    });
    !pattern.trim().is_empty() && hard != Some("0")
}

#[test]
fn of_a_core_that_was_dumped_it_says_so_also_after_a_crash_of_the_server() {
    if !cores_are_dumped() {
        return pass_over("no core is dumped here");
    }
    let text = "ulimit -c unlimited; kill -SEGV $$";
    let mut sandbox = Sandbox::knowing(&[]);
    let workdir = format!("workdir: {}\n", sandbox.root().display());
    sandbox.write("web.yml", &format!("{}{workdir}", script(text)));
    wait_for("the file", PATIENCE, || sandbox.row("web").is_some());
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "exited");
    let screen = why(&sandbox, "web");
    assert!(
        screen.contains(": SIGSEGV, which was not sent by the server\n"),
        "{screen}"
    );
    assert!(
        screen.contains(" its core was dumped: core(5) says where to\n"),
        "{screen}"
    );
    let run = sandbox.json(&["check", "web"])["children"][0]["history"][0].clone();
    assert_eq!(run["core_dumped"], true, "{run}");
    sandbox.kill_server();
    sandbox.start_server();
    assert_eq!(why(&sandbox, "web"), screen);
}

/// A cgroup whose processes may use so much and no more; removed at the end.
struct Narrow(PathBuf);

impl Narrow {
    fn made() -> Option<Self> {
        let name = format!("supervisor-rs-it-{}-narrow", std::process::id());
        let top = PathBuf::from("/sys/fs/cgroup");
        for (hierarchy, limit) in [("memory", "memory.limit_in_bytes"), ("", "memory.max")] {
            let place = top.join(hierarchy).join(&name);
            if fs::create_dir(&place).is_ok() {
                let narrow = Self(place);
                if fs::write(narrow.0.join(limit), "100M").is_ok() {
                    return Some(narrow);
                }
            }
        }
        None
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        remove_cgroups(&[self.0.as_path()]);
    }
}

#[test]
fn of_a_run_that_the_kernel_killed_for_want_of_memory_it_says_so() {
    let Some(narrow) = Narrow::made() else {
        return pass_over("no memory can be limited here");
    };
    let enter = format!(
        "echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"",
        narrow.0.display()
    );
    let mut sandbox = Sandbox::new("mode: quiet").within(&["sh", "-c", &enter]);
    // It remembers all of a line, and this one has no end.
    sandbox.write("web.yml", "command: [tail, /dev/zero]\n");
    sandbox.write("db.yml", SLEEPER);
    sandbox.start_server();
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "exited");
    let run = sandbox.json(&["check", "web"])["children"][0]["history"][0].clone();
    assert_eq!(run["exit"], json!({"signal": "SIGKILL"}), "{run}");
    assert_eq!(run["out_of_memory"], true, "{run}");
    let screen = why(&sandbox, "web");
    assert!(
        screen.contains("killed for want of memory at that time"),
        "{screen}"
    );
    // Whom somebody else has killed had memory enough.
    sandbox.done(&["start", "db"]);
    let pid = crate::sandbox::pid_of(&sandbox.wait_state("db", "running"));
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    sandbox.wait_state("db", "exited");
    let run = sandbox.json(&["check", "db"])["children"][0]["history"][0].clone();
    assert_eq!(run["exit"], json!({"signal": "SIGKILL"}), "{run}");
    assert_eq!(run.get("out_of_memory"), None, "{run}");
    drop(sandbox);
    drop(narrow);
}
