//! `events`: what becomes of children, kept and as it happens.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, ChildStdout, Stdio},
    thread,
};

use rustix::{
    net::{AddressFamily, SocketType, connect, socket, sockopt::set_socket_recv_buffer_size},
    process::{Signal, kill_process},
};
use serde_json::{Value, json};

use crate::{
    sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, pid_of, script, wait_for},
    signing::{Forge, Which, pair},
};

/// A client that follows, and its lines.
struct Follower {
    client: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn begin(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let on = sandbox.address().to_string();
        Self::begin_as_given(
            sandbox,
            &[&["events", "-f"], arguments, &["on", &on]].concat(),
        )
    }

    fn begin_as_given(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let mut command = sandbox.client_command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = command.spawn().unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap());
        Self { client, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn event(&mut self) -> Value {
        let line = self.line();
        let object: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        object["event"].clone()
    }

    /// Reads until a child is in this state.
    fn until(&mut self, child: &str, state: &str) -> Value {
        loop {
            let event = self.event();
            assert!(event.is_object(), "the end before {child} is {state}");
            if event["child"] == child && event["state"] == state {
                return event;
            }
        }
    }

    /// Its end: what was left of its output, its complaints and its exit code.
    fn end(mut self) -> (String, String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        let mut complaints = String::new();
        let mut stderr = self.client.stderr.take().unwrap();
        stderr.read_to_string(&mut complaints).unwrap();
        (rest, complaints, self.client.wait().unwrap().code())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _may_have_ended = self.client.kill();
        let _reaped = self.client.wait();
    }
}

/// What a child's events say, each as `state run`.
fn told(events: &[Value]) -> Vec<String> {
    let one = |event: &Value| {
        let run = event["run"]
            .as_u64()
            .map_or(String::new(), |run| format!(" {run}"));
        format!("{}{run}", event["state"].as_str().unwrap())
    };
    events.iter().map(one).collect()
}

fn kept(sandbox: &Sandbox, arguments: &[&str]) -> Vec<Value> {
    let output = sandbox.client(&[&["--json", "events"], arguments].concat());
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    let event = |line: &str| {
        let object: Value = serde_json::from_str(line).unwrap();
        assert_eq!(object.as_object().unwrap().len(), 2, "{line}");
        object["event"].clone()
    };
    output.stdout.lines().map(event).collect()
}

#[test]
fn what_became_of_a_child_is_kept_with_causes_and_who_asked() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER), ("job", &script("exit 4"))]);
    let nothing = sandbox.client(&["events"]);
    assert_eq!(
        (nothing.stdout.as_str(), nothing.code),
        ("no event is kept\n", 0)
    );
    let pid = pid_of(&sandbox.done(&["start", "web"]));
    sandbox.done(&["start", "job"]);
    sandbox.wait_state("job", "exited");
    sandbox.done(&["stop", "web"]);
    let web = kept(&sandbox, &["web"]);
    assert_eq!(
        told(&web),
        [
            "pending",
            "starting 1",
            "running 1",
            "stopping 1",
            "stopped 1"
        ]
    );
    for event in &web {
        assert_eq!(event["cause"], "command", "{event}");
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(event["asker"]["user"], uid, "{event}");
    }
    assert_eq!(web[2]["pid"], pid);
    assert_eq!(web[4]["exit"], json!({"signal": "SIGTERM"}));
    let job = kept(&sandbox, &["job"]);
    assert_eq!(job.last().unwrap()["exit"], json!({"code": 4}));
    assert_eq!(told(&job).last().unwrap(), "exited 1");
    let all = kept(&sandbox, &[]);
    let numbers: Vec<u64> = all.iter().map(|it| it["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(all.len(), web.len() + job.len());
    let last = kept(&sandbox, &["--tail", "1"]);
    assert_eq!(last, all[all.len() - 1..]);
    let told = sandbox.client(&["events", "wbe"]);
    assert_eq!(told.code, 5, "{told:?}");
    assert!(told.stderr.contains("did you mean `web`?"), "{told:?}");
}

#[test]
fn events_are_lines_of_text_for_people() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    sandbox.write("web.yml", "command: [sleep, '300']\nnothing: 1\n");
    sandbox.wait_state("web", "running");
    wait_for("the fault", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "invalid"
    });
    let output = sandbox.client(&["events", "web", "--tail", "2"]);
    let text = sandbox.mask(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let pid = pid_of(&sandbox.row("web").unwrap());
    let begun = format!("  web       running   run 1, pid {pid} (command, user ");
    assert!(
        output.stdout.lines().next().unwrap().contains(&begun),
        "{output:?}"
    );
    assert!(
        lines[1].contains(", file invalid (") && lines[1].contains("unknown key `nothing`"),
        "{text}"
    );
}

#[test]
fn a_child_may_be_called_as_the_command_is() {
    let sandbox = Sandbox::knowing(&[("events", SLEEPER)]);
    sandbox.done(&["start", "events"]);
    assert_eq!(kept(&sandbox, &["events"]).len(), 3);
    assert_eq!(kept(&sandbox, &[]).len(), 3);
    let answer = sandbox.done(&["check", "events"]);
    assert_eq!(answer["child"], "events");
}

#[test]
fn who_follows_hears_of_each_change_when_it_happens_until_the_server_ends() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER), ("db", SLEEPER)]);
    sandbox.done(&["start", "db"]);
    let mut all = Follower::begin(&sandbox, &["--json"]);
    let mut web = Follower::begin(&sandbox, &["web", "--json", "--tail", "0"]);
    all.until("db", "running");
    // So that both follow before the first event.
    wait_for("both followers", PATIENCE, || connections(&sandbox) == 2);
    let pid = pid_of(&sandbox.done(&["start", "web"]));
    let running = all.until("web", "running");
    assert_eq!(
        (&running["pid"], &running["cause"]),
        (&json!(pid), &json!("command"))
    );
    kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let exited = all.until("web", "exited");
    assert_eq!(exited["exit"], json!({"signal": "SIGKILL"}));
    assert_eq!(exited.get("cause"), None, "nobody ordered it: {exited}");
    let heard: Vec<Value> = (0..4).map(|_| web.event()).collect();
    assert_eq!(
        told(&heard),
        ["pending", "starting 1", "running 1", "exited 1"]
    );
    sandbox.client(&["kill", "--stop-children"]);
    assert_eq!(sandbox.wait_server(), 0);
    let stopped = all.until("db", "stopped");
    assert_eq!(stopped["cause"], "shutdown");
    let (rest, complaints, code) = web.end();
    assert_eq!((complaints.as_str(), code), ("", Some(1)));
    let last: Value = serde_json::from_str(rest.trim()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down", "{rest}");
    let (_, _, code) = all.end();
    assert_eq!(code, Some(1));
}

/// How many connections the server has.
fn connections(sandbox: &Sandbox) -> usize {
    let port = sandbox.address().port();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let here = format!(":{port:04X} ");
    let established = |line: &&str| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1).unwrap_or_default();
        format!("{local} ").ends_with(&here) && fields.nth(1) == Some("01")
    };
    table.lines().filter(established).count()
}

#[test]
fn who_follows_goes_on_across_an_upgrade() {
    let mut sandbox = Sandbox::new("").with_own_program();
    sandbox.start_server();
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    let mut follower = Follower::begin(&sandbox, &["--json"]);
    sandbox.done(&["start", "web"]);
    let before = follower.until("web", "running")["seq"].as_u64().unwrap();
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
    let stopping = follower.until("web", "stopping")["seq"].as_u64().unwrap();
    assert_eq!(stopping, before + 1, "nothing is told twice, or left out");
    follower.until("web", "stopped");
    assert_eq!(kept(&sandbox, &["web"]).len(), 5);
}

#[test]
fn after_a_crash_it_begins_anew_with_what_was_found() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER), ("db", SLEEPER)]);
    let pid = pid_of(&sandbox.done(&["start", "web"]));
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"events","follow":true}"#);
    for _ in 0..3 {
        assert_eq!(wire.value()["event"]["child"], "web");
    }
    sandbox.kill_server();
    assert_eq!(wire.line(), None);
    sandbox.start_server();
    let events = kept(&sandbox, &[]);
    assert_eq!(told(&events), ["running 1"]);
    assert_eq!(events[0]["pid"], pid);
    assert_eq!(events[0]["cause"], "command");
    let detail = events[0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("taken back, began 20"), "{detail}");
}

#[test]
fn several_hosts_are_followed_at_once() {
    let sandboxes = [0, 1].map(|_| Sandbox::knowing(&[("web", SLEEPER)]));
    let addresses = sandboxes.each_ref().map(|it| it.address().to_string());
    let on = addresses.join(",");
    let mut follower = Follower::begin_as_given(&sandboxes[0], &["events", "--follow", "on", &on]);
    // The second of them first: nobody waits for the first.
    for (sandbox, address) in sandboxes.iter().zip(&addresses).rev() {
        sandbox.done(&["start", "web"]);
        for _ in 0..3 {
            let line = follower.line();
            assert!(line.starts_with(&format!("{address}: 20")), "{line}");
            assert!(line.contains("  web       "), "{line}");
        }
    }
    // Who goes leaves nothing behind, and is not missed.
    kill_process(
        rustix::process::Pid::from_child(&follower.client),
        Signal::INT,
    )
    .unwrap();
    let (rest, complaints, code) = follower.end();
    assert_eq!((rest.as_str(), complaints.as_str(), code), ("", "", None));
    for sandbox in &sandboxes {
        sandbox.done(&["restart", "web"]);
    }
}

#[test]
fn nobody_reading_the_lines_is_no_fault() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    let mut follower = Follower::begin(&sandbox, &["--json"]);
    assert_eq!(follower.event()["state"], "pending");
    let Follower { client, lines } = &mut follower;
    drop(std::mem::replace(lines, {
        let mut other = std::process::Command::new("true");
        let mut other = other.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(other.stdout.take().unwrap());
        other.wait().unwrap();
        lines
    }));
    let mut ended = None;
    wait_for("the client's end", PATIENCE, || {
        sandbox.done(&["restart", "web"]);
        ended = client.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0));
    let mut complaints = String::new();
    let mut stderr = client.stderr.take().unwrap();
    stderr.read_to_string(&mut complaints).unwrap();
    assert_eq!(complaints, "");
}

/// A connection whose client's side takes in very little.
fn narrow(address: SocketAddr) -> Wire {
    let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_recv_buffer_size(&stream, 4_096).unwrap();
    connect(
        &stream,
        &SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
    )
    .unwrap();
    Wire::on(TcpStream::from(stream))
}

#[test]
fn a_follower_that_does_not_read_harms_nobody_and_is_told_no_lie() {
    const STREAMS: u64 = 15;
    const RESTARTS: u64 = 150;
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    let mut deaf = narrow(sandbox.address());
    for id in 1..=STREAMS {
        deaf.ask(id, r#"{"op":"events","follow":true,"last":0}"#);
    }
    let mut good = sandbox.wire();
    good.ask(1, r#"{"op":"events","follow":true,"last":0}"#);
    thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut last = 0;
            loop {
                let event = good.value()["event"].clone();
                let seq = event["seq"].as_u64().unwrap();
                assert!(last == 0 || seq == last + 1, "{seq} after {last}");
                last = seq;
                if event["state"] == "running" && event["run"] == RESTARTS + 1 {
                    return last;
                }
            }
        });
        let mut commander = sandbox.wire();
        for id in 1..=RESTARTS {
            commander.ask(id, r#"{"op":"restart","child":"web"}"#);
            let (_, answer) = commander.answer();
            assert!(answer["ok"].is_object(), "{answer}");
        }
        listener.join().unwrap()
    });
    // What it reads now, each stream without a gap, up to the end that it is told or that comes.
    let mut latest = [0_u64; STREAMS as usize + 1];
    let mut told = 0;
    deaf.ask(100, r#"{"op":"check"}"#);
    while let Some(line) = deaf.line() {
        let line: Value = serde_json::from_str(&line).unwrap();
        let id = line["id"].as_u64().unwrap();
        if id == 100 {
            break;
        }
        let latest = &mut latest[usize::try_from(id).unwrap()];
        match line["event"]["seq"].as_u64() {
            Some(seq) => {
                assert!(*latest == 0 || seq == *latest + 1, "{seq} after {latest}");
                *latest = seq;
                told += 1;
            }
            None => assert_eq!(line["error"]["code"], "busy", "{line}"),
        }
    }
    assert!(told > 0);
}

#[test]
fn a_key_hears_of_the_children_of_its_scope_alone() {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys]\nmode: sync\n");
    std::fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    sandbox.admit("ci", &pair(Which::Other).public);
    let scope = sandbox.key_dir().join("ci.yml");
    sandbox.replace(&scope, "allow: [events]\nchildren: [web]\n");
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("db.yml", SLEEPER);
    sandbox.start_server();
    sandbox.wait_processes(2);
    let ask = |command: &str| {
        let mut wire = sandbox.wire();
        let forge = Forge::new(&wire.hello, 1, command);
        wire.send_token(1, &forge.signed_as("ci", Which::Other).token());
        wire
    };
    let mut wire = ask(r#"{"op":"events","child":"web","follow":true}"#);
    for state in ["pending", "starting", "running"] {
        let event = wire.value()["event"].clone();
        assert_eq!(
            (&event["child"], &event["state"]),
            (&json!("web"), &json!(state))
        );
    }
    for command in [
        r#"{"op":"events","child":"db"}"#,
        r#"{"op":"events"}"#,
        r#"{"op":"events","follow":true}"#,
        r#"{"op":"check","child":"web"}"#,
    ] {
        let (_, answer) = ask(command).answer();
        assert_eq!(answer["error"]["code"], "forbidden", "{command}: {answer}");
    }
    // A key that is gone hears no more.
    std::fs::remove_file(sandbox.key_dir().join("ci.pub.pem"))
        .or_else(|_| std::fs::remove_file(sandbox.key_dir().join("ci.pem")))
        .unwrap();
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (None, &json!("unauthorized"))
    );
    assert_eq!(wire.line(), None);
    // What only asks leaves no line in the audit trail; what was refused does.
    let trail = std::fs::read_to_string(sandbox.root().join("state/audit.jsonl")).unwrap();
    let refused = trail
        .lines()
        .filter(|line| line.contains(r#""op":"events""#));
    assert!(refused.clone().count() <= 3, "{trail}");
    assert!(
        refused.clone().all(|line| line.contains("forbidden")),
        "{trail}"
    );
}
