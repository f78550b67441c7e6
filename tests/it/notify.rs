//! `ready: notify`: a child says itself when it is ready, what it does, and that it needs longer.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, thread};

use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, lives, pid_of, script, skip, stays, wait_for};

/// What a perl says first that speaks for itself: `speak TEXT` sends, `at NAME` waits at a gate. What
/// is not heard it says in `lost`.
const SPEAKER: &str = r#"
use Socket;
$SIG{ALRM} = sub { exit 3 }; alarm 300;
socket(S, AF_UNIX, SOCK_DGRAM, 0) or die;
my $to = sockaddr_un($ENV{NOTIFY_SOCKET});
sub speak { send(S, $_[0], 0, $to) or do { open(my $f, '>>', 'lost'); print $f "$_[0]: $!\n" } }
sub at { open(my $g, '<', $_[0]) or die; my $line = <$g>; }
"#;

const NOTIFY: &str = "ready: {notify: true, timeout: 1h}\n";

/// A child that does this in perl, in the sandbox's root.
fn speaker(sandbox: &Sandbox, name: &str, does: &str) -> String {
    let path = sandbox.root().join(format!("{name}.pl"));
    fs::write(&path, format!("{SPEAKER}{does};\nsleep 300 while 1;\n")).unwrap();
    let root = sandbox.root().display();
    format!("command: [perl, {}]\nworkdir: {root}\n", path.display())
}

/// The sockets that there are.
fn sockets(sandbox: &Sandbox) -> Vec<PathBuf> {
    let folder = sandbox.root().join("run/notify");
    let all = fs::read_dir(folder).into_iter().flatten();
    all.map(|entry| entry.unwrap().path()).collect()
}

fn status(sandbox: &Sandbox) -> Value {
    let answer = sandbox.json(&["check", "web"]);
    answer["children"][0]["details"]["status"].clone()
}

fn lost(sandbox: &Sandbox) -> String {
    fs::read_to_string(sandbox.root().join("lost")).unwrap_or_default()
}

#[test]
fn a_child_is_starting_until_it_says_that_it_is_ready() {
    let sandbox = Sandbox::start("mode: quiet");
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("systemd-notify").exists()) {
        return skip("`systemd-notify` is not there");
    }
    let gate = sandbox.gate("open");
    let says = "systemd-notify --status='reads its files'; echo said";
    let child = script(&format!(
        "{says}; {gate}; systemd-notify --ready --status=serves; exec sleep 300"
    ));
    sandbox.write("web.yml", &format!("{child}ready: notify\n"));
    sandbox.done(&["start", "web"]);
    wait_for("the status", PATIENCE, || {
        status(&sandbox) == "reads its files"
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["reason"]),
        (&json!("starting"), &json!("waits for `READY=1`"))
    );
    // It waits until what it has said was handled.
    let out = sandbox.log_dir().join("web.out");
    wait_for("the barrier", PATIENCE, || {
        fs::read_to_string(&out).is_ok_and(|text| text == "said\n")
    });
    sandbox.open_gate("open");
    sandbox.done(&["wait", "web", "--for", "ready"]);
    wait_for("the status", PATIENCE, || status(&sandbox) == "serves");
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
    let shown = sandbox.client(&["check", "web"]).stdout;
    assert!(
        shown.contains("status") && shown.contains("serves"),
        "{shown}"
    );
}

#[test]
fn a_reload_is_shown_until_it_is_over_and_an_end_that_is_announced_is_shown() {
    let sandbox = Sandbox::start("mode: quiet");
    for gate in ["reload", "over", "end"] {
        sandbox.gate(gate);
    }
    let does = "speak 'READY=1'; at 'reload'; speak qq{RELOADING=1\\nMONOTONIC_USEC=7}; at 'over'; \
                speak 'READY=1'; at 'end'; speak 'STOPPING=1'";
    let child = speaker(&sandbox, "web", does);
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "running");
    let is_said = |reason: Value| {
        wait_for(&reason.to_string(), PATIENCE, || {
            let row = sandbox.row("web").unwrap();
            assert_eq!(row["state"], "running");
            row["reason"] == reason
        });
    };
    sandbox.open_gate("reload");
    is_said(json!("reads its configuration again, as it says"));
    sandbox.open_gate("over");
    is_said(Value::Null);
    sandbox.open_gate("end");
    is_said(json!("ends by itself, as it says"));
}

#[test]
fn a_child_that_says_nothing_in_time_has_failed_and_who_waits_is_told() {
    let sandbox = Sandbox::start("mode: quiet");
    let child = script("echo up; exec sleep 300");
    let ready = "ready: {notify: true, timeout: 500ms}\n";
    sandbox.write("web.yml", &format!("{child}{ready}"));
    let answer = sandbox.client(&["start", "web", "--wait"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    let why = "not ready within 500ms: it has not said `READY=1`";
    assert!(answer.stderr.contains(why), "{answer:?}");
    let row = sandbox.wait_state("web", "failed");
    assert_eq!(row["reason"], why);
    let history = &sandbox.json(&["check", "web"])["children"][0]["history"];
    assert_eq!(history[0]["ended_by"]["cause"], "not_ready");
    // Who asks for more time has it.
    sandbox.gate("open");
    let does = "speak 'EXTEND_TIMEOUT_USEC=3600000000'; at 'open'; speak 'READY=1'";
    let child = speaker(&sandbox, "slow", does);
    sandbox.write("slow.yml", &format!("{child}{ready}"));
    sandbox.done(&["start", "slow"]);
    sandbox.done(&["wait", "web", "--for", "exited"]);
    let started = supervisor_rs::clock::mono();
    wait_for("the time to pass", PATIENCE, || {
        supervisor_rs::clock::mono() - started > std::time::Duration::from_millis(700)
    });
    assert_eq!(sandbox.row("slow").unwrap()["state"], "starting");
    sandbox.open_gate("open");
    sandbox.wait_state("slow", "running");
}

#[test]
fn a_stop_takes_as_long_as_the_child_asks_for() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.gate("open");
    let does = "$SIG{TERM} = sub { speak 'EXTEND_TIMEOUT_USEC=60000000'; at 'open'; exit 0 }; \
                speak 'READY=1'";
    let child = speaker(&sandbox, "web", does);
    sandbox.write(
        "web.yml",
        &format!("{child}{NOTIFY}stop: {{grace: 300ms}}\n"),
    );
    sandbox.done(&["start", "web", "--wait"]);
    let started = supervisor_rs::clock::mono();
    thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.client(&["stop", "web"]));
        wait_for("the grace to pass", PATIENCE, || {
            supervisor_rs::clock::mono() - started > std::time::Duration::from_millis(900)
        });
        assert_eq!(sandbox.row("web").unwrap()["state"], "stopping");
        sandbox.open_gate("open");
        assert_eq!(stop.join().unwrap().code, 0);
    });
    assert_eq!(sandbox.row("web").unwrap()["exit"]["code"], 0);
}

#[test]
fn a_word_that_no_server_heard_fails_nobody() {
    let mut sandbox = Sandbox::start("mode: quiet");
    for gate in ["first", "second"] {
        sandbox.gate(gate);
    }
    let does = "at 'first'; speak 'READY=1'; open(my $f, '>', 'told'); close $f; at 'second'; speak 'READY=1'";
    let child = speaker(&sandbox, "web", does);
    let ready = "ready: {notify: true, timeout: 1s}\n";
    sandbox.write("web.yml", &format!("{child}{ready}"));
    let pid = sandbox.done(&["start", "web"])["pid"].clone();
    sandbox.kill_server();
    sandbox.open_gate("first");
    wait_for("its word", PATIENCE, || {
        sandbox.root().join("told").exists()
    });
    assert!(lost(&sandbox).starts_with("READY=1: "), "nobody listens");
    sandbox.start_server();
    let reason = "waits for `READY=1`, which it may have said while no server lived";
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["reason"]),
        (&json!("starting"), &json!(reason))
    );
    let waited = sandbox.client(&["wait", "web", "--for", "ready", "--timeout", "1500ms"]);
    assert_eq!(waited.code, 7);
    assert!(waited.stderr.contains(reason), "{waited:?}");
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["pid"]), (&json!("starting"), &pid));
    assert!(
        sandbox
            .server_log()
            .contains("may have said that it is ready while no server lived")
    );
    sandbox.open_gate("second");
    sandbox.wait_state("web", "running");
    // What was ready stays so.
    sandbox.restart_server();
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

#[test]
fn nothing_is_lost_that_is_said_while_the_server_is_upgraded() {
    let mut sandbox = Sandbox::new("mode: quiet").with_own_program();
    sandbox.start_server();
    sandbox.gate("open");
    // It never stops talking, and says once that it is ready.
    let does = "my $n = 0; my $stop = 0; \
        my $pid = fork(); if (!$pid) { at 'open'; speak 'READY=1'; exit 0 } \
        until (-e 'enough') { $n++; speak qq{STATUS=$n}; select(undef, undef, undef, 0.001) } \
        open(my $f, '>', 'last'); print $f $n; close $f;";
    let child = speaker(&sandbox, "web", does);
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    sandbox.done(&["start", "web"]);
    wait_for("a status", PATIENCE, || status(&sandbox) != Value::Null);
    thread::scope(|scope| {
        let ready = scope.spawn(|| sandbox.open_gate("open"));
        sandbox.done(&["upgrade"]);
        ready.join().unwrap();
    });
    sandbox.wait_state("web", "running");
    sandbox.done(&["upgrade"]);
    fs::write(sandbox.root().join("enough"), "").unwrap();
    let last = sandbox.root().join("last");
    wait_for("its last word", PATIENCE, || {
        fs::read_to_string(&last).is_ok_and(|text| !text.is_empty() && status(&sandbox) == text)
    });
    assert_eq!(lost(&sandbox), "", "it was heard at every instant");
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

#[test]
fn a_socket_is_its_users_and_goes_with_its_run() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let child = speaker(&sandbox, "web", "speak 'READY=1'");
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    sandbox.write("plain.yml", &script("env > env; exec sleep 300"));
    sandbox.done(&["start", "web", "--wait"]);
    sandbox.done(&["start", "plain"]);
    let all = sockets(&sandbox);
    assert_eq!(all.len(), 1);
    let mode = fs::metadata(&all[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    wait_for("its environment", PATIENCE, || {
        let text = fs::read_to_string(sandbox.loadpath().join("env")).unwrap_or_default();
        text.contains("SUPERVISOR_RS_RUN=")
    });
    let environment = fs::read_to_string(sandbox.loadpath().join("env")).unwrap();
    assert!(
        !environment.contains("NOTIFY_SOCKET"),
        "who says nothing needs none"
    );
    // Another run has another.
    sandbox.done(&["restart", "web", "--wait"]);
    let next = sockets(&sandbox);
    assert!(next.len() == 1 && next != all, "{next:?}");
    // One that ends while no server lives leaves nothing behind.
    let pid = pid_of(&sandbox.row("web").unwrap());
    sandbox.kill_server();
    let number = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    wait_for("its end", PATIENCE, || !lives(pid));
    assert_eq!(sockets(&sandbox), next);
    sandbox.start_server();
    assert_eq!(sockets(&sandbox), Vec::<PathBuf>::new());
}

#[test]
fn a_child_that_names_another_main_process_keeps_its_own_and_the_log_says_so_once() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("db.yml", SLEEPER);
    sandbox.done(&["start", "db"]);
    let db = pid_of(&sandbox.row("db").unwrap());
    let server = sandbox.json(&["info"])["pid"].clone();
    let stranger = std::process::id();
    for gate in ["own", "end", "over"] {
        sandbox.gate(gate);
    }
    let others = format!("{db} {server} {stranger} 0 1 -1 99999999999999999999 2147483647");
    let does = format!(
        "speak qq{{MAINPID=$$\\nSTATUS=own}}; at 'own'; \
         for (qw({others})) {{ speak qq{{MAINPID=$_\\nSTATUS=$_}}; \
         until (-e qq{{after$_}}) {{ select(undef, undef, undef, 0.01) }} }} \
         my $pid = fork(); if (!$pid) {{ at 'over'; exit 0 }} \
         open(my $f, '>', 'fork'); print $f $pid; close $f; \
         speak qq{{MAINPID=$pid\\nREADY=1}}; at 'end'; speak qq{{MAINPID=$pid}}; exit 3"
    );
    let child = speaker(&sandbox, "web", &does);
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    let pid = sandbox.done(&["start", "web"])["pid"].clone();
    let warning = "`MAINPID` is passed over, and the main process stays what it was";
    let told = |sandbox: &Sandbox| sandbox.server_log().matches(warning).count();
    wait_for("its own", PATIENCE, || status(&sandbox) == "own");
    assert_eq!(told(&sandbox), 0);
    sandbox.open_gate("own");
    for other in others.split(' ') {
        wait_for(other, PATIENCE, || status(&sandbox) == other);
        assert_eq!(told(&sandbox), 1, "{}", sandbox.server_log());
        assert_eq!(sandbox.row("web").unwrap()["pid"], pid);
        fs::write(sandbox.root().join(format!("after{other}")), "").unwrap();
    }
    sandbox.wait_state("web", "running");
    assert_eq!(told(&sandbox), 1, "{}", sandbox.server_log());
    assert_eq!(sandbox.row("web").unwrap()["pid"], pid);
    // The next server finds the process that was started, and not one that was named.
    sandbox.restart_server();
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["pid"]), (&json!("running"), &pid));
    // It says so and is gone, as a daemon's parent does, and was heard all the same.
    sandbox.open_gate("end");
    let row = sandbox.wait_state("web", "exited");
    assert_eq!(
        (&row["pid"], &row["exit"]["code"]),
        (&Value::Null, &json!(3))
    );
    assert_eq!(told(&sandbox), 2, "{}", sandbox.server_log());
    let own = format!("and the run began with process {pid} and ends with it");
    assert!(sandbox.server_log().contains(&own));
    assert_eq!(pid_of(&sandbox.row("db").unwrap()), db);
    // The one that it named was left alone.
    let fork = fs::read_to_string(sandbox.root().join("fork")).unwrap();
    let fork = fork.parse().unwrap();
    assert!(lives(fork));
    sandbox.open_gate("over");
    wait_for("its end", PATIENCE, || !lives(fork));
}

#[test]
fn a_child_that_never_stops_talking_keeps_nobody_waiting_and_fills_no_log() {
    let sandbox = Sandbox::start("mode: quiet");
    let does = "my $n = 0; while (1) { $n++; speak qq{READY=1\\nSTATUS=$n\\nRELOADING=1}; speak 'x' x 6000 }";
    let child = speaker(&sandbox, "web", does);
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    sandbox.write("db.yml", SLEEPER);
    sandbox.done(&["start", "web", "--wait"]);
    let first = status(&sandbox);
    for _ in 0..20 {
        sandbox.done(&["trystart", "db"]);
    }
    wait_for("another word", PATIENCE, || status(&sandbox) != first);
    let log = sandbox.server_log();
    let about = |line: &&str| line.contains("web") || line.contains("too long");
    assert!(log.lines().filter(about).count() < 12, "{log}");
    assert_eq!(log.matches("too long").count(), 1);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn a_child_that_falls_silent_is_replaced_and_one_that_says_that_it_is_ill_at_once() {
    let sandbox = Sandbox::start("mode: quiet");
    let does = "open(my $f, '>', 'watchdog'); print $f qq{$ENV{WATCHDOG_USEC} $ENV{WATCHDOG_PID} $$}; \
        close $f; speak 'READY=1'; \
        until (-e 'silent') { speak 'WATCHDOG=1'; select(undef, undef, undef, 0.05) }";
    let child = speaker(&sandbox, "web", does);
    let health = "health: {watchdog: true, interval: 1500ms, failures: 2}\n";
    sandbox.write("web.yml", &format!("{child}{NOTIFY}{health}"));
    sandbox.done(&["start", "web", "--wait"]);
    let first = pid_of(&sandbox.row("web").unwrap());
    let told = fs::read_to_string(sandbox.root().join("watchdog")).unwrap();
    assert_eq!(told, format!("3000000 {first} {first}"));
    stays("it is heard", std::time::Duration::from_secs(4), || {
        sandbox.row("web").unwrap()["run"] == json!(1)
    });
    let silent = sandbox.root().join("silent");
    fs::write(&silent, "").unwrap();
    wait_for("another run", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == json!(2)
    });
    fs::remove_file(&silent).unwrap();
    let history = &sandbox.json(&["check", "web"])["children"][0]["history"];
    assert_eq!(history[1]["ended_by"]["cause"], "unhealthy");
    // Without a word that it is ready it is running at once; its health counts all the same.
    sandbox.gate("ill");
    let child = speaker(&sandbox, "ill", "at 'ill'; speak 'WATCHDOG=trigger'");
    sandbox.write(
        "ill.yml",
        &format!("{child}health: {{watchdog: true, interval: 1h}}\n"),
    );
    sandbox.done(&["start", "ill"]);
    assert_eq!(sandbox.row("ill").unwrap()["state"], "running");
    sandbox.open_gate("ill");
    wait_for("another run", PATIENCE, || {
        sandbox.row("ill").unwrap()["run"] == json!(2)
    });
}

#[test]
fn a_line_on_a_descriptor_shows_a_child_ready_also_while_no_server_lives() {
    let mut sandbox = Sandbox::new("mode: quiet").with_own_program();
    sandbox.start_server();
    let (first, second) = (sandbox.gate("first"), sandbox.gate("second"));
    let ready = "ready: {fd: 3, timeout: 1h}\n";
    let child = |gate: &str| script(&format!("{gate}; echo >&3; exec sleep 300"));
    sandbox.write("web.yml", &format!("{}{ready}", child(&first)));
    sandbox.write("db.yml", &format!("{}{ready}", child(&second)));
    for name in ["web", "db"] {
        sandbox.done(&["start", name]);
        let row = sandbox.row(name).unwrap();
        assert_eq!(row["reason"], "waits for a line on descriptor 3");
    }
    sandbox.done(&["upgrade"]);
    assert_eq!(sandbox.row("web").unwrap()["state"], "starting");
    sandbox.open_gate("first");
    sandbox.wait_state("web", "running");
    assert_eq!(sandbox.row("db").unwrap()["state"], "starting");
    sandbox.kill_server();
    sandbox.open_gate("second");
    let folder = sandbox.root().join("run/notify");
    let written = |path: PathBuf| fs::read(path).is_ok_and(|text| text == b"\n");
    wait_for("the line", PATIENCE, || {
        let mut all = fs::read_dir(&folder).unwrap();
        all.any(|entry| written(entry.unwrap().path()))
    });
    sandbox.start_server();
    sandbox.wait_state("db", "running");
    wait_for("nothing is left", PATIENCE, || sockets(&sandbox).is_empty());
    // What is not written in time has failed.
    let late = "ready: {fd: 4, timeout: 300ms}\n";
    sandbox.write("late.yml", &format!("{}{late}", script("exec sleep 300")));
    sandbox.done(&["start", "late"]);
    let row = sandbox.wait_state("late", "failed");
    let why = "not ready within 300ms: not seen: a line on descriptor 4";
    assert_eq!(row["reason"], why);
}

#[test]
fn a_line_of_its_output_shows_a_child_ready_also_while_no_server_lives() {
    let mut sandbox = Sandbox::new("mode: quiet").with_own_program();
    sandbox.start_server();
    let gate = sandbox.gate("open");
    let child = script(&format!(
        "echo begun; {gate}; echo ready in 5 ms; exec sleep 300"
    ));
    let ready = "ready: {log: '^ready in \\d+ ms$', timeout: 1h}\n";
    sandbox.write("web.yml", &format!("{child}{ready}"));
    for _ in 0..2 {
        // What an earlier run has said is none of this one's.
        sandbox.done(&["trystart", "web"]);
        let row = sandbox.row("web").unwrap();
        let reason = r"waits for a line of its output like `^ready in \d+ ms$`";
        assert_eq!(
            (&row["state"], &row["reason"]),
            (&json!("starting"), &json!(reason))
        );
        sandbox.open_gate("open");
        sandbox.wait_state("web", "running");
    }
    sandbox.done(&["restart", "web"]);
    sandbox.done(&["upgrade"]);
    sandbox.kill_server();
    sandbox.open_gate("open");
    let out = sandbox.log_dir().join("web.out");
    wait_for("its word", PATIENCE, || {
        fs::read_to_string(&out).is_ok_and(|text| text.matches("ready in").count() == 3)
    });
    sandbox.start_server();
    sandbox.wait_state("web", "running");
    sandbox.write(
        "null.yml",
        &format!("{SLEEPER}output: [{{stdout: /dev/null}}, {{stderr: /dev/null}}]\n{ready}"),
    );
    let refused = sandbox.client(&["start", "null"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused
            .stderr
            .contains("neither stream goes to a regular file"),
        "{refused:?}"
    );
}

#[test]
fn a_status_is_harmless_and_bounded() {
    let sandbox = Sandbox::start("mode: quiet");
    let does = "speak qq{STATUS=a\\e[2J\\e]0;x\\ab\\rc\\nREADY=1}";
    let child = speaker(&sandbox, "web", does);
    sandbox.write("web.yml", &format!("{child}{NOTIFY}"));
    sandbox.done(&["start", "web", "--wait"]);
    assert_eq!(
        status(&sandbox),
        "a\u{fffd}[2J\u{fffd}]0;x\u{fffd}b\u{fffd}c"
    );
    let shown = sandbox.client(&["check", "web"]).stdout;
    assert!(!shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn a_runtime_dir_that_is_too_long_for_a_socket_is_told_before_anything_is_stopped() {
    let mut sandbox = Sandbox::new("");
    let long = sandbox.root().join("x".repeat(80));
    sandbox.configure(&format!("mode: quiet\nruntime_dir: {}", long.display()));
    sandbox.start_server();
    sandbox.write("web.yml", SLEEPER);
    let pid = sandbox.done(&["start", "web"])["pid"].clone();
    sandbox.write("web.yml", &format!("{SLEEPER}ready: notify\n"));
    let refused = sandbox.client(&["restart", "web"]);
    assert_eq!(refused.code, 1);
    let hint = "hint: give server.yml a shorter `runtime_dir`";
    assert!(refused.stderr.contains(hint), "{refused:?}");
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["pid"]), (&json!("running"), &pid));
    sandbox.done(&["stop", "web"]);
    assert_eq!(sandbox.stop_server(), 0);
}
