//! Attacks by a local user, by children, by peers and by a hostile environment: each is a claim.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;
use supervisor_rs::{
    clock,
    control::limits::{CONNECTIONS_PER_PEER_MAX, Limits, SERVER_FILES_MAX},
};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, hello, skip, wait_for};

/// For how long nothing may happen.
const WATCHED: Duration = Duration::from_secs(2);

/// How often each thread of a process gave up the processor by itself, by thread.
fn switches(pid: i32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("as prepared");
    let mut found: Vec<_> = tasks
        .flatten()
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).expect("as prepared");
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let name = task.file_name().to_string_lossy().into_owned();
            (
                name,
                line.expect("as prepared")
                    .trim()
                    .parse()
                    .expect("as prepared"),
            )
        })
        .collect();
    found.sort();
    found
}

/// Processor time of a process so far, in clock ticks (10 ms).
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("as prepared");
    let (_, rest) = stat.rsplit_once(')').expect("as prepared");
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().expect("as prepared")
        + fields[12].parse::<u64>().expect("as prepared")
}

/// Lets time pass; what is shown is that nothing happens in it.
fn observe(span: Duration) {
    let until = clock::mono() + span;
    while clock::mono() < until {
        thread::sleep(Duration::from_millis(50));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("as prepared");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("as prepared");
    stream
}

/// All that a peer says until it hangs up.
fn everything(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _reset = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("as prepared");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("as prepared").trim().trim_end_matches(" kB");
    kib.parse().expect("as prepared")
}

/// I9.
#[test]
fn a_server_with_sleeping_children_does_not_wake_up() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off");
    if !sandbox.is_undisturbed() {
        return skip("other tests make directories beside the server's: TMPDIR is not sticky");
    }
    for number in 0..50 {
        sandbox.write(&format!("c{number}.yml"), SLEEPER);
    }
    sandbox.start_server();
    wait_for("all children", PATIENCE, || sandbox.processes().len() == 50);
    let pid = sandbox.server_pid();
    // What the last client left is cleared away first.
    let mut before = switches(pid);
    wait_for("calm", PATIENCE, || {
        observe(Duration::from_millis(300));
        let now = switches(pid);
        std::mem::replace(&mut before, now.clone()) == now
    });
    observe(WATCHED);
    assert_eq!(switches(pid), before);
    let info = sandbox.json(&["info"]);
    assert_eq!(
        info["counts"]["running"].as_u64().unwrap_or(50),
        50,
        "{info}"
    );
    assert_ne!(switches(pid), before, "a command is seen by this measure");
    assert_eq!(sandbox.client(&["kill", "--stop-children"]).code, 0);
    sandbox.wait_server();
}

#[test]
fn peers_that_speak_garbage_are_told_and_cut_off() {
    let sandbox = Sandbox::start("mode: sync");
    let deep = "[".repeat(60_000);
    for line in [
        "GET / HTTP/1.1",
        "\u{16}\u{3}\u{1}",
        "null",
        "{}",
        &deep,
        r#"{"id":-1,"command":{"op":"info"}}"#,
        r#"{"id":1.0,"command":{"op":"info"}}"#,
        r#"{"id":18446744073709551616,"command":{"op":"info"}}"#,
        r#"{"id":1,"id":2,"command":{"op":"info"}}"#,
        r#"{"id":1,"command":{"op":"start","child":"../../etc/passwd"}}"#,
        r#"{"id":1,"command":{"op":"start","child":"a\u001b[2J"}}"#,
        r#"{"id":1,"command":{"op":"info","x":1}}"#,
    ] {
        let mut peer = connect(sandbox.address());
        // A second line that would end the server, were it read.
        let kill = r#"{"id":99,"command":{"op":"kill"}}"#;
        peer.write_all(format!("{line}\n{kill}\n").as_bytes())
            .unwrap();
        let said = everything(&mut peer);
        assert_eq!(said.lines().count(), 2, "{line:.40}: {said}");
        let answer: Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], "bad_request", "{line:.40}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    let biggest = r#"{"id":18446744073709551615,"command":{"op":"check"}}"#;
    let mut peer = connect(sandbox.address());
    peer.write_all(format!("{biggest}\n").as_bytes()).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(everything(&mut peer).contains(r#"{"id":18446744073709551615,"ok":"#));
}

#[test]
fn hundreds_of_silent_connections_keep_nobody_out() {
    let sandbox = Sandbox::start("mode: sync");
    let silent: Vec<TcpStream> = (0..400).map(|_| connect(sandbox.address())).collect();
    assert_eq!(sandbox.client(&["info"]).code, 0);
    drop(silent);
    assert_eq!(sandbox.client(&["check"]).code, 0);
}

const TOO_MANY: &str =
    r#"{"id":null,"error":{"code":"busy","message":"too many connections, try again later"}}"#;

/// As many connections as one peer may have, each with one command behind it.
fn idle_wires(sandbox: &Sandbox) -> Vec<Wire> {
    let mut wires: Vec<_> = (0..CONNECTIONS_PER_PEER_MAX)
        .map(|_| sandbox.wire())
        .collect();
    for wire in &mut wires {
        wire.ask(1, r#"{"op":"check"}"#);
        assert_eq!(wire.answer().0, Some(1));
    }
    wires
}

#[test]
fn connections_that_gave_one_command_and_fell_silent_keep_nobody_out() {
    let sandbox = Sandbox::start("mode: sync");
    let mut idle = idle_wires(&sandbox);
    for _ in 0..3 {
        let output = sandbox.client(&["info"]);
        assert_eq!(output.code, 0, "{output:?}");
    }
    // A client's slot is free again some time after its end, so that one to three made room.
    assert_eq!(idle[0].line().as_deref(), Some(TOO_MANY));
    assert_eq!(idle[0].line(), None, "a clean end");
    for wire in &mut idle[3..] {
        wire.ask(2, r#"{"op":"check"}"#);
        assert_eq!(wire.answer().0, Some(2));
    }
}

#[test]
fn connections_that_wait_for_an_answer_keep_their_slots() {
    let mut sandbox = Sandbox::new("mode: sync");
    let child = sandbox.slow_to_stop("end");
    sandbox.write("web.yml", &child);
    sandbox.start_server();
    sandbox.wait_output("web", "up");
    let mut waiting = idle_wires(&sandbox);
    for wire in &mut waiting {
        wire.ask(2, r#"{"op":"stop","child":"web"}"#);
    }
    let mut refused = sandbox.wire();
    assert_eq!(refused.hello, TOO_MANY);
    assert_eq!(refused.line(), None);
    let output = sandbox.client(&["check", "--json"]);
    let line = sandbox.mask(&output.stdout);
    let expected = "{\"host\":\"ADDRESS\",\"ok\":false,\"op\":\"check\",\"error\":{\"code\":\"busy\",\"message\":\"too many connections, try again later\"}}\n";
    assert_eq!((output.code, line.as_str()), (7, expected));
    sandbox.open_gate("end");
    for wire in &mut waiting {
        assert_eq!(wire.answer().1["ok"]["op"], "stop");
    }
    assert_eq!(sandbox.client(&["info"]).code, 0);
}

#[test]
fn peers_that_ask_for_everything_and_never_read_cost_little_memory() {
    let sandbox = Sandbox::new("mode: quiet\nrescan: off");
    for number in 0..300 {
        sandbox.write(
            &format!("a-child-with-a-rather-long-name-{number}.yml"),
            SLEEPER,
        );
    }
    let mut sandbox = sandbox;
    sandbox.start_server();
    let all = r#"{"op":"check","all":true}"#;
    let requests: String = (1..=64)
        .map(|id| format!("{{\"id\":{id},\"command\":{all}}}\n"))
        .collect();
    let before = memory_kib(sandbox.server_pid());
    let deaf: Vec<TcpStream> = (0..24)
        .map(|_| {
            let mut peer = connect(sandbox.address());
            peer.write_all(requests.as_bytes()).unwrap();
            peer
        })
        .collect();
    // All of them have been served as far as they let themselves be when another one is, which on
    // a busy machine can take longer than that one is patient.
    for _ in 0..3 {
        wait_for("another one's answer", PATIENCE, || {
            sandbox.client(&["check", "--all"]).code == 0
        });
    }
    let grown = memory_kib(sandbox.server_pid()).saturating_sub(before);
    assert!(grown < 48 * 1024, "grown by {grown} KiB");
    drop(deaf);
}

#[test]
fn commands_for_names_that_are_not_there_leave_nothing_behind() {
    let sandbox = Sandbox::start("mode: sync");
    let ask = |from: u64| {
        let mut peer = connect(sandbox.address());
        for id in from..from + 2_000 {
            let request = format!(
                "{{\"id\":{id},\"command\":{{\"op\":\"trystart\",\"child\":\"n{id}\"}}}}\n"
            );
            peer.write_all(request.as_bytes()).unwrap();
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let said = everything(&mut peer);
        assert_eq!(said.lines().count(), 2_001, "{said:.300}");
    };
    ask(1);
    let before = memory_kib(sandbox.server_pid());
    for round in 1..=5 {
        ask(round * 10_000);
    }
    let grown = memory_kib(sandbox.server_pid()).saturating_sub(before);
    assert!(grown < 4 * 1024, "grown by {grown} KiB");
    let checked = sandbox.json(&["check", "--all"]);
    assert_eq!(
        checked["children"].as_array().map(Vec::len),
        Some(0),
        "{checked}"
    );
}

/// A server that the sandbox does not know of; ended when its test ends, however that is.
struct Server(std::process::Child);

impl Server {
    fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().expect("a program"))
    }

    fn code(&mut self) -> Option<i32> {
        self.0.wait().expect("our child").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The server's command line, wrapped in a shell that prepares its surroundings first.
fn server_in(sandbox: &Sandbox, preparation: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{preparation}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_supervisor-rs-server")])
        .arg(sandbox.server_yml())
        .current_dir(sandbox.root())
        .env("HOME", sandbox.root())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Starts such a server, waits until it answers, and lets `act` see it; ends it with its children.
fn with_server_in(mut sandbox: Sandbox, preparation: &str, act: impl FnOnce(&Sandbox, i32)) {
    let mut server = Server::spawn(&mut server_in(&sandbox, preparation));
    let address = sandbox.address();
    let id = sandbox.id().to_owned();
    let mut early = None;
    wait_for("the server's hello", PATIENCE, || {
        early = server.0.try_wait().expect("as prepared");
        early.is_some() || hello(address).is_some_and(|hello| hello["id"] == *id)
    });
    assert_eq!(early, None, "it ended");
    sandbox.expect_leftovers();
    act(&sandbox, i32::try_from(server.0.id()).expect("as prepared"));
    let ended = sandbox.client(&["kill", "--stop-children"]);
    assert_eq!((ended.code, server.code()), (0, Some(0)), "{ended:?}");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_server_started_with_closed_standard_streams_gives_them_to_nobody() {
    let sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    with_server_in(sandbox, "exec 0<&- 1>&- 2>&-", |sandbox, pid| {
        sandbox.wait_state("web", "running");
        for fd in 0..=2 {
            let file = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
            assert_eq!(file.to_str(), Some("/dev/null"), "{fd}");
        }
    });
}

#[test]
fn a_low_soft_limit_of_open_files_is_raised_before_anything_is_opened() {
    let sandbox = Sandbox::new("mode: sync");
    for number in 0..20 {
        sandbox.write(&format!("c{number}.yml"), SLEEPER);
    }
    with_server_in(sandbox, "ulimit -Sn 8", |sandbox, _| {
        wait_for("all children", PATIENCE, || sandbox.processes().len() == 20);
    });
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named() {
    let sandbox = Sandbox::new("mode: sync");
    for limit in [8, 20, 95] {
        let mut server = server_in(&sandbox, &format!("ulimit -n {limit}"));
        let output = server.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("96 are needed at least"), "{limit}: {text}");
    }
}

#[test]
fn connections_cannot_use_up_the_descriptors_that_children_need() {
    let sandbox = Sandbox::new("mode: sync");
    with_server_in(sandbox, "ulimit -n 96", |sandbox, pid| {
        let crowd: Vec<TcpStream> = (0..200).map(|_| connect(sandbox.address())).collect();
        sandbox.write("web.yml", SLEEPER);
        wait_for("the child", PATIENCE, || !sandbox.processes().is_empty());
        let before = ticks(pid);
        observe(WATCHED);
        let used = ticks(pid) - before;
        assert!(used < 50, "{used} ticks of {WATCHED:?}: it spins");
        drop(crowd);
    });
}

/// Connects as fast as it can, half of the time with a command, and keeps the last of them.
fn crowd(address: SocketAddr, enough: &AtomicBool) {
    const KEPT: usize = 32;
    let mut kept = std::collections::VecDeque::new();
    for number in 0_u32.. {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        // An error means that the line of those who wait is full.
        if let Ok(mut stream) = TcpStream::connect(address) {
            if number.is_multiple_of(2) {
                let request = "{\"id\":1,\"command\":{\"op\":\"check\"}}\n";
                let _refused = stream.write_all(request.as_bytes());
            }
            kept.push_back(stream);
        }
        if kept.len() > KEPT {
            kept.pop_front();
        }
    }
}

#[test]
fn the_children_that_open_files_are_kept_for_start_beside_any_crowd() {
    const FILES: u64 = 96;
    const ROUNDS: usize = 4;
    let limits = Limits::for_open_files(FILES / 4);
    assert!(limits.children_beside(FILES) > 0);
    // This host is one peer, and has no more connections than one may.
    let peer = u64::try_from(limits.connections_per_peer_max).unwrap();
    let children = usize::try_from(FILES - SERVER_FILES_MAX - peer - 1).unwrap();
    let sandbox = Sandbox::new("mode: sync");
    let log = sandbox.root().join("crowded.log");
    let preparation = format!("ulimit -n {FILES}; exec 2>{}", log.display());
    with_server_in(sandbox, &preparation, |sandbox, _| {
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| crowd(sandbox.address(), &enough));
            }
            // In every round each file changes, so that each child is started again.
            for round in 0..ROUNDS {
                let command = format!("sleep {}", 300 + round);
                let child = format!("command: {command}\n");
                for number in 0..children {
                    sandbox.write(&format!("c{number}.yml"), &child);
                }
                let last = || {
                    let all = sandbox.processes();
                    all.len() == children
                        && all
                            .iter()
                            .all(|process| process.command.trim_end() == command)
                };
                let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    wait_for("all children", PATIENCE, last);
                }));
                if let Err(panic) = started {
                    enough.store(true, Ordering::Relaxed);
                    eprintln!("{}", fs::read_to_string(&log).unwrap());
                    std::panic::resume_unwind(panic);
                }
            }
            enough.store(true, Ordering::Relaxed);
        });
        let log = fs::read_to_string(&log).unwrap();
        assert!(!log.contains("Too many open files"), "{log}");
    });
}

#[test]
fn a_limit_of_file_size_fails_writes_and_does_not_end_the_server() {
    let sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    // One or half a KiB, as the shell counts.
    with_server_in(sandbox, "ulimit -f 1", |sandbox, _| {
        let mut refused = false;
        for _ in 0..10 {
            let started = sandbox.json(&["start", "web"]);
            refused |= started["ok"] == false;
            let _stopped = sandbox.json(&["stop", "web"]);
        }
        assert!(refused, "the limit was met");
        assert_eq!(sandbox.client(&["info"]).code, 0);
    });
}

#[test]
fn names_and_contents_of_files_cannot_forge_the_log_or_an_answer() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off");
    let evil = "x\n2026-01-01 INFO forged\u{1b}[2J\u{9b}31m\u{202e}.yml";
    sandbox.write(evil, SLEEPER);
    sandbox.write("bad.yml", "comm\u{202e}and: \"\u{9b}2J\"\n");
    sandbox.start_server();
    let checked = sandbox.client(&["check", "bad"]);
    let info = sandbox.client(&["info"]);
    let path = sandbox.server_yml();
    let listed = sandbox.server_to_end(&["--check", path.to_str().unwrap()]);
    assert_eq!(listed.code, 6, "{listed:?}");
    let mut texts = vec![sandbox.server_log(), listed.stderr];
    for output in [checked, info] {
        texts.extend([output.stdout, output.stderr]);
    }
    for text in texts {
        for harmful in ['\u{1b}', '\u{9b}', '\u{202e}', '\r'] {
            assert!(!text.contains(harmful), "{text:?}");
        }
        let forged = |line: &str| line.starts_with("2026-01-01 INFO forged");
        assert!(!text.lines().any(forged), "{text:?}");
    }
}

#[test]
fn a_client_with_closed_streams_or_a_full_disk_ends_with_a_code_and_no_panic() {
    let sandbox = Sandbox::start("mode: sync");
    let client = env!("CARGO_BIN_EXE_supervisor-rs-client");
    let address = sandbox.address();
    for (redirection, code) in [("0<&- 1>&- 2>&-", 0), (">/dev/full", 1), ("2>/dev/full", 0)] {
        let script = format!("exec {client} info on {address} {redirection}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{redirection}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn garbage_in_the_environment_keeps_no_server_from_starting() {
    use std::os::unix::ffi::OsStrExt;
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let mut server = server_in(&sandbox, "true");
    server
        .env("RUST_LOG", std::ffi::OsStr::from_bytes(b"\xff=[[{"))
        .env("HUGE", "x".repeat(100_000))
        .env("XDG_STATE_HOME", "relative");
    let mut server = Server::spawn(&mut server);
    wait_for("the child", PATIENCE, || !sandbox.processes().is_empty());
    sandbox.expect_leftovers();
    assert_eq!(sandbox.client(&["kill", "--stop-children"]).code, 0);
    assert_eq!(server.code(), Some(0));
}

/// What a test puts on a small disk at most, in KiB, should it be larger than believed.
const FILL_KIB_MAX: usize = 1024;

/// Fills a file system of 64 KiB that only the server sees; refuses any other.
fn fill(dir: &std::path::Path) {
    use rustix::fs::statfs;
    const TMPFS: i64 = 0x0102_1994;
    let found = statfs(dir).expect("as prepared");
    let bytes = u64::try_from(found.f_bsize).expect("as prepared") * found.f_blocks;
    assert_eq!(found.f_type, TMPFS, "{dir:?} is a real disk");
    assert!(bytes <= 64 * 1024, "{dir:?} has {bytes} bytes");
    let mut file = fs::File::create(dir.join("fill")).expect("as prepared");
    for _ in 0..FILL_KIB_MAX {
        if file.write_all(&[0; 1024]).is_err() {
            return;
        }
    }
    panic!("{dir:?} does not get full");
}

#[test]
fn a_full_disk_starts_nothing_unrecorded_and_still_stops_what_runs() {
    let mut sandbox = Sandbox::new("mode: quiet\nrescan: off");
    sandbox.write("one.yml", SLEEPER);
    sandbox.write("two.yml", SLEEPER);
    let run = sandbox.root().join("run");
    fs::create_dir(&run).unwrap();
    let mount = format!("mount -t tmpfs -o size=64k,mode=700 none {}", run.display());
    let probe = Command::new("unshare")
        .args(["-m", "sh", "-c", &mount])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip("no right to mount, or no `unshare`");
    }
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_supervisor-rs-server"))
        .arg(sandbox.server_yml())
        .current_dir(sandbox.root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut server = Server::spawn(&mut command);
    let address = sandbox.address();
    wait_for("the hello", PATIENCE, || hello(address).is_some());
    sandbox.expect_leftovers();
    let inside = |path: &std::path::Path| {
        let path = path.strip_prefix("/").unwrap();
        std::path::PathBuf::from(format!("/proc/{}/root", server.0.id())).join(path)
    };
    let small = inside(&run);
    assert_eq!(sandbox.json(&["start", "one"])["ok"], true);
    fill(&small);

    // The last page of a file that is there already is not full yet.
    let mut refused = Value::Null;
    for _ in 0..40 {
        refused = sandbox.json(&["start", "two"]);
        if refused["ok"] == false {
            break;
        }
        let _stopped = sandbox.json(&["stop", "two"]);
    }
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("No space left"), "{refused}");
    assert_eq!(
        sandbox.processes().len(),
        1,
        "nothing was started unrecorded"
    );
    let stopped = sandbox.json(&["stop", "one"]);
    assert_eq!(sandbox.processes(), [], "{stopped}");

    fs::remove_file(small.join("fill")).unwrap();
    assert_eq!(sandbox.json(&["start", "two"])["ok"], true);
    assert_eq!(sandbox.client(&["kill", "--stop-children"]).code, 0);
    assert_eq!(server.code(), Some(0));
    assert_eq!(sandbox.processes(), []);
}
