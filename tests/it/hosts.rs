//! One command, several servers: asked at once, answered in the order given.

#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use supervisor_rs::{clock, control::client::HELLO_TIME_MAX};

use crate::sandbox::{Output, PATIENCE, SLEEPER, Sandbox, dead_address, run, skip, wait_for};

/// A server that knows `web`.
fn server() -> Sandbox {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    sandbox
}

fn address(sandbox: &Sandbox) -> String {
    sandbox.address().to_string()
}

/// What takes connections and never says a word.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// What each host answered.
pub(crate) fn objects(output: &Output) -> Vec<Value> {
    let object = |line| serde_json::from_str(line).expect("an object a line");
    output.stdout.lines().map(object).collect()
}

/// Who answered, in that order.
pub(crate) fn hosts(output: &Output) -> Vec<String> {
    let host = |object: &Value| object["host"].as_str().unwrap().to_owned();
    objects(output).iter().map(host).collect()
}

fn unreachable(host: &str) -> String {
    format!(
        "{host}: error[unreachable]: cannot connect to `{host}`: {host}: Connection refused (os error 111)\n\
         hint: does supervisor-rs-server run there, and on that port?\n"
    )
}

#[test]
fn several_servers_answer_in_the_order_given() {
    let servers = [server(), server(), server()];
    let [a, b, c] = servers.each_ref().map(address);
    for order in [[&a, &b, &c], [&c, &a, &b], [&b, &c, &a]] {
        let line = order.map(String::as_str).join(",");
        let output = servers[0].client_as_given(&["trystart", "web", "--json", "on", &line]);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        assert_eq!(hosts(&output), order.map(String::clone));
    }
    for sandbox in &servers {
        assert_eq!(sandbox.row("web").unwrap()["run"], 3);
    }
}

#[test]
fn each_answer_for_people_says_whose_it_is() {
    let servers = [server(), server()];
    let [a, b] = servers.each_ref().map(address);
    let line = format!("{a} {b}");
    let mask = |text: &str| servers[1].mask(&text.replace(&a, "FIRST"));
    let started = servers[0].client_as_given(&["start", "web", "on", &line]);
    let words = "FIRST: `web` started: run 1, pid PID\nADDRESS: `web` started: run 1, pid PID\n";
    assert_eq!((started.code, mask(&started.stdout).as_str()), (0, words));
    assert_eq!(started.stderr, "");
    let again = servers[0].client_as_given(&["start", "web", "on", &line]);
    let words = "FIRST: error[already_running]: `web` is already running: run 1, pid PID\n\
                 ADDRESS: error[already_running]: `web` is already running: run 1, pid PID\n";
    assert_eq!((again.code, mask(&again.stderr).as_str()), (1, words));
    assert_eq!(again.stdout, "");
    let table = servers[0].client_as_given(&["check", "on", &line]);
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert_eq!((table.code, lines.len()), (0, 6), "{table:?}");
    assert_eq!((lines[0], lines[3]), (&*format!("{a}:"), &*format!("{b}:")));
    assert!(lines[1].starts_with("NAME  STATE"), "{table:?}");
    assert!(lines[5].starts_with("web   running"), "{table:?}");
}

#[test]
fn of_several_hosts_the_largest_exit_code_counts() {
    let (one, other) = (server(), server());
    let (a, b) = (address(&one), address(&other));
    let (_kept, dead) = dead_address();
    let dead = dead.to_string();
    assert_eq!(one.client(&["start", "web"]).code, 0);
    other.write("only.yml", SLEEPER);
    other.wait_state("only", "stopped");
    let code = |arguments: &[&str], hosts: &[&str]| {
        let hosts = hosts.join(",");
        one.client_as_given(&[arguments, &["on", &hosts]].concat())
            .code
    };
    assert_eq!(code(&["check"], &[&a, &b]), 0);
    // 0 and 3, 1 and 0, 5 and 3, 5 and 1, and what cannot be reached above all.
    assert_eq!(code(&["check", "web"], &[&a, &b]), 3);
    assert_eq!(code(&["check", "web"], &[&b, &a]), 3);
    assert_eq!(code(&["check", "only"], &[&a, &b]), 5);
    assert_eq!(code(&["start", "only"], &[&a, &b]), 5);
    assert_eq!(code(&["restart", "web"], &[&a, &b]), 1);
    assert_eq!(code(&["check"], &[&a, &dead, &b]), 7);
    assert_eq!(code(&["check", "only"], &[&dead, &a]), 7);
}

#[test]
fn a_dead_host_keeps_no_other_from_its_command() {
    let servers = [server(), server()];
    let [a, b] = servers.each_ref().map(address);
    let (_kept, dead) = dead_address();
    let dead = dead.to_string();
    let line = format!("{dead},{a},{b}");
    let began = clock::mono();
    let output = servers[0].client_as_given(&["start", "web", "on", &line]);
    assert!(clock::mono() - began < HELLO_TIME_MAX, "{output:?}");
    assert_eq!(
        (output.code, output.stderr.clone()),
        (7, unreachable(&dead))
    );
    assert_eq!(output.stdout.lines().count(), 2);
    let json = servers[0].client_as_given(&["check", "web", "--json", "on", &line]);
    let objects = objects(&json);
    assert_eq!(hosts(&json), [dead.clone(), a, b]);
    assert_eq!(objects[0]["error"]["code"], "unreachable");
    assert_eq!(objects[0]["child"], "web");
    assert!(objects[1..].iter().all(|object| object["ok"] == true));
    assert_eq!((json.code, json.stderr.as_str()), (7, ""));
}

/// A client at work, whose answers are read as they come.
struct Asking {
    client: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Asking {
    fn new(mut command: Command) -> Self {
        let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap());
        Self { client, lines }
    }

    fn object(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no object: {line:?}"))
    }

    fn is_at_work(&mut self) -> bool {
        self.client.try_wait().unwrap().is_none()
    }

    fn code(mut self) -> Option<i32> {
        self.client.wait().unwrap().code()
    }
}

#[test]
fn a_host_that_never_answers_delays_nobody_beyond_its_own_bound() {
    let sandbox = server();
    let (_listener, silent) = silent();
    let live = address(&sandbox);

    // Before it: printed at once, while the other is still waited for.
    let line = format!("{live},{silent}");
    let began = clock::mono();
    let mut asking = Asking::new(sandbox.client_command(&["start", "web", "--json", "on", &line]));
    assert_eq!(asking.object()["run"], 1);
    assert!(asking.is_at_work());
    assert!(clock::mono() - began < HELLO_TIME_MAX);
    let failed = asking.object();
    assert_eq!(failed["host"], silent.as_str());
    assert_eq!(failed["error"]["code"], "timeout");
    assert_eq!(asking.code(), Some(7));
    let took = clock::mono() - began;
    assert!(
        (HELLO_TIME_MAX..HELLO_TIME_MAX * 3).contains(&took),
        "{took:?}"
    );

    // Behind it: carried out at once, printed in its turn.
    let line = format!("{silent},{live}");
    let mut asking =
        Asking::new(sandbox.client_command(&["restart", "web", "--json", "on", &line]));
    wait_for("the restart", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == 2
    });
    assert!(asking.is_at_work());
    assert_eq!(asking.object()["error"]["code"], "timeout");
    assert_eq!(asking.object()["run"], 2);
    assert_eq!(asking.code(), Some(7));
}

#[test]
fn what_is_no_server_of_ours_is_unreachable_and_said_to_be_none() {
    let sandbox = Sandbox::new("");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let stranger = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").unwrap();
    });
    let output = sandbox.client_as_given(&["check", "on", &host]);
    stranger.join().unwrap();
    let words =
        format!("error[unreachable]: what listens at `{host}` is no supervisor-rs-server: ");
    assert_eq!((output.code, output.stdout.as_str()), (7, ""));
    assert!(output.stderr.starts_with(&words), "{output:?}");
}

#[test]
fn names_and_ipv6_addresses_are_hosts() {
    let sandbox = server();
    let port = sandbox.address().port();
    let host = format!("localhost:{port}");
    let output = sandbox.client_as_given(&["check", "--json", "on", &host]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    assert_eq!(hosts(&output), [host]);
    let nowhere = sandbox.client_as_given(&["check", "--json", "on", "nowhere.invalid"]);
    assert_eq!(
        (nowhere.code, nowhere.stderr.as_str()),
        (7, ""),
        "{nowhere:?}"
    );
    assert_eq!(objects(&nowhere)[0]["error"]["code"], "unreachable");

    let Ok(listener) = TcpListener::bind(("::1", 0)) else {
        return skip("this machine has no IPv6");
    };
    drop(listener);
    let mut sandbox = Sandbox::new("listener_addr: '::1'");
    let host = format!("[::1]:{}", sandbox.address().port());
    let server = Server::start(&mut sandbox, &[]);
    wait_for("the server on ::1", PATIENCE, || {
        sandbox.client_as_given(&["check", "on", &host]).code == 0
    });
    let output = sandbox.client_as_given(&["kill", "--json", "on", &host]);
    assert_eq!((output.code, hosts(&output)), (0, vec![host]));
    assert_eq!(server.code(), Some(0));
}

/// A server that the sandbox cannot reach by itself.
struct Server(Child);

impl Server {
    fn start(sandbox: &mut Sandbox, wrapper: &[&str]) -> Self {
        let program = env!("CARGO_BIN_EXE_supervisor-rs-server");
        let path = sandbox.server_yml();
        let line = [wrapper, &[program]].concat();
        let log = std::fs::File::create(sandbox.root().join("server.log")).unwrap();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).arg(path).stdin(Stdio::null());
        Self(command.stderr(log).spawn().unwrap())
    }

    fn code(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn without_a_host_this_one_is_asked_by_ipv4_and_then_by_ipv6() {
    // A network of its own: the usual port of this machine may be taken, or be somebody's.
    let wrapper = [
        "unshare",
        "--net",
        "sh",
        "-c",
        "ip link set lo up && exec \"$0\" \"$@\"",
    ];
    let mut probe = Command::new(wrapper[0]);
    probe.args(&wrapper[1..]).arg("true").stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        return skip("a network namespace needs root, `unshare` and `ip`");
    }
    for (listens, port, answers) in [
        ("127.0.0.1", "33889", "127.0.0.1"),
        ("'::1'", "33889", "::1"),
    ] {
        let mut sandbox = Sandbox::new(&format!("listener_addr: {listens}\nlistener_port: {port}"));
        let server = Server::start(&mut sandbox, &wrapper);
        let pid = server.0.id().to_string();
        let client = |arguments: &[&str]| {
            let client = sandbox.client_command(arguments);
            let mut command = Command::new("nsenter");
            command
                .args(["--target", &pid, "--net"])
                .arg(client.get_program());
            command.args(client.get_args());
            command
                .env_remove("SUPERVISOR_RS_ON")
                .env_remove("SUPERVISOR_RS_KEY");
            run(command)
        };
        wait_for("the server in its network", PATIENCE, || {
            client(&["check"]).code == 0
        });
        for (arguments, host) in [
            (&["check", "--json"][..], answers),
            // The usual port is the usual one for hosts that are named, too.
            (&["check", "--json", "on", answers], answers),
        ] {
            let output = client(arguments);
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
            assert_eq!(hosts(&output), [host]);
        }
        let killed = client(&["kill"]);
        assert_eq!(killed.code, 0, "{killed:?}");
        assert_eq!(server.code(), Some(0));
    }
    let nobody = Sandbox::new("");
    let client = nobody.client_command(&["check"]);
    let mut command = Command::new("unshare");
    command
        .args(&wrapper[1..])
        .arg(client.get_program())
        .args(client.get_args());
    command
        .env_remove("SUPERVISOR_RS_ON")
        .env_remove("SUPERVISOR_RS_KEY");
    let output = run(command);
    let words = "error[unreachable]: cannot connect to `127.0.0.1`: \
                 127.0.0.1:33889: Connection refused (os error 111); \
                 [::1]:33889: Connection refused (os error 111)\n\
                 hint: does supervisor-rs-server run there, and on that port?\n";
    assert_eq!((output.code, output.stderr.as_str()), (7, words));
}

#[test]
fn a_hundred_hosts_are_asked_at_once() {
    const HOSTS: usize = 100;
    let silent: Vec<(TcpListener, String)> = (0..HOSTS).map(|_| silent()).collect();
    let names: Vec<&str> = silent.iter().map(|(_, name)| name.as_str()).collect();
    let began = clock::mono();
    let output = Sandbox::new("").client_as_given(&["check", "--json", "on", &names.join(",")]);
    let took = clock::mono() - began;
    assert_eq!((output.code, output.stderr.as_str()), (7, ""));
    assert_eq!(hosts(&output), names);
    // One after the other they would take minutes.
    assert!(took < HELLO_TIME_MAX + Duration::from_secs(15), "{took:?}");
}
