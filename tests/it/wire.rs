//! The protocol, spoken by hand: `docs/PROTOCOL.md` line by line, and what an attacker would send.

#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
};

use serde_json::Value;
use supervisor_rs::{
    clock,
    control::limits::{CONNECTIONS_PER_PEER_MAX, FIRST_REQUEST_TIME_MAX, IN_FLIGHT_MAX},
};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, mask, run, skip, wait_for};

/// The longest request line, its line feed not counted.
const LINE_BYTES_MAX: usize = 65_536;

/// A server with `web` running, for whoever would like to end it.
fn target() -> Sandbox {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox
}

/// A running child that takes notice of TERM and ends when gate `end` is opened.
fn slow() -> Sandbox {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", &sandbox.slow_to_stop("end"));
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_output("web", "up");
    sandbox
}

const STOP: &str = r#"{"op":"stop","child":"web"}"#;
const CHECK: &str = r#"{"op":"check","child":"web"}"#;

#[track_caller]
fn assert_unharmed(sandbox: &Sandbox) {
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["run"]), (&"running".into(), &1.into()));
}

#[test]
fn the_server_speaks_first_and_each_connection_has_a_nonce_of_its_own() {
    let sandbox = Sandbox::start("name: front");
    let hello = sandbox.wire().hello;
    let value: Value = serde_json::from_str(&hello).unwrap();
    let nonce = value["hello"]["nonce"].as_str().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        r#"{{"hello":{{"protocol":1,"server":"front","id":"SERVER","version":"{version}","encrypt":false,"nonce":"{nonce}","time":SECONDS}}}}"#
    );
    assert_eq!(sandbox.mask(&hello), expected);
    let base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(nonce.len() == 43 && nonce.chars().all(base64url), "{nonce}");
    let now = clock::wall().0 / 1_000;
    let told = value["hello"]["time"].as_i64().unwrap();
    assert!((now - 5..=now).contains(&told), "{told} at {now}");
    let mut nonces: Vec<String> = (0..20).map(|_| sandbox.wire().hello).collect();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), 20);
}

#[test]
fn answers_hold_what_json_shows_less_host_and_ok() {
    let sandbox = target();
    let mut wire = sandbox.wire();
    for (id, (command, arguments)) in (1..).zip([
        (r#"{"op":"check"}"#, &["check"][..]),
        (r#"{"op":"check","all":true}"#, &["check", "--all"]),
        (CHECK, &["check", "web"]),
        (r#"{"op":"info"}"#, &["info"]),
    ]) {
        wire.ask(id, command);
        let line = sandbox.mask(&wire.line().unwrap());
        let output = sandbox.client(&[arguments, &["--json"]].concat());
        let json = sandbox.mask(output.stdout.trim_end());
        let rest = json
            .strip_prefix(r#"{"host":"ADDRESS","ok":true,"#)
            .unwrap();
        assert_eq!(line, format!(r#"{{"id":{id},"ok":{{{rest}}}"#));
    }
}

#[test]
fn ids_need_only_increase() {
    let sandbox = target();
    let mut wire = sandbox.wire();
    for id in [0, 1, 7, 8, u64::MAX - 1, u64::MAX] {
        wire.ask(id, CHECK);
        assert_eq!(wire.answer().0, Some(id));
    }
    for (first, second) in [(5, 5), (5, 4), (1, 0)] {
        let mut wire = sandbox.wire();
        wire.ask(first, CHECK);
        wire.ask(second, STOP);
        let expected = format!(
            r#"{{"id":{second},"error":{{"code":"bad_request","message":"ids increase on a connection: {second} after {first}"}}}}"#
        );
        // In any order: the check is answered by another part of the server.
        let lines = [wire.line().unwrap(), wire.line().unwrap()];
        assert!(lines.contains(&expected), "{lines:?}");
        let check = format!(r#"{{"id":{first},"ok":{{"op":"check""#);
        assert!(
            lines.iter().any(|line| line.starts_with(&check)),
            "{lines:?}"
        );
        assert_eq!(wire.line(), None);
    }
    assert_unharmed(&sandbox);
}

#[test]
fn the_first_line_that_is_no_request_is_answered_and_nothing_after_it_is_read() {
    let sandbox = target();
    let stop = format!("{{\"id\":9,\"command\":{STOP}}}\n");
    let (deep, long) = ("[".repeat(50_000), "a".repeat(65));
    for (line, id) in [
        ("", None),
        (" ", None),
        ("null", None),
        ("{}", None),
        ("[]", None),
        ("stop web", None),
        ("GET / HTTP/1.1\r", None),
        (r#"{"id":1}"#, Some(1)),
        (r#"{"id":2,"command":{"op":"reboot"}}"#, Some(2)),
        (r#"{"id":2,"command":{"op":"STOP","child":"web"}}"#, Some(2)),
        (
            r#"{"id":2,"command":{"op":"stop","child":"web","force":true}}"#,
            Some(2),
        ),
        (
            r#"{"id":2,"command":{"op":"stop","child":"web","all":true}}"#,
            Some(2),
        ),
        (r#"{"id":2,"command":{"op":"stop","all":false}}"#, Some(2)),
        (r#"{"id":2,"command":{"op":"restart","all":true}}"#, Some(2)),
        (r#"{"id":2,"command":{"op":"stop","child":null}}"#, Some(2)),
        (r#"{"id":2,"command":{"op":"stop","child":"all"}}"#, Some(2)),
        (
            r#"{"id":2,"command":{"op":"stop","child":"../web"}}"#,
            Some(2),
        ),
        (
            &format!(r#"{{"id":2,"command":{{"op":"stop","child":"{long}"}}}}"#),
            Some(2),
        ),
        (r#"{"id":2,"command":{"op":"kill","child":"web"}}"#, Some(2)),
        (
            r#"{"id":2,"command":{"op":"kill","stop_children":1}}"#,
            Some(2),
        ),
        (
            r#"{"id":2,"command":{"op":"stop","child":"web"},"host":"x"}"#,
            Some(2),
        ),
        (
            r#"{"id":2,"command":{"op":"check"},"token":"a.b.c"}"#,
            Some(2),
        ),
        (
            r#"{"id":2,"id":3,"command":{"op":"stop","child":"web"}}"#,
            None,
        ),
        (
            r#"{"id":2,"command":{"op":"stop","op":"stop","child":"web"}}"#,
            Some(2),
        ),
        (r#"{"id":-1,"command":{"op":"stop","child":"web"}}"#, None),
        (r#"{"id":1.5,"command":{"op":"stop","child":"web"}}"#, None),
        (r#"{"id":1e3,"command":{"op":"stop","child":"web"}}"#, None),
        (r#"{"id":"1","command":{"op":"stop","child":"web"}}"#, None),
        (
            r#"{"id":18446744073709551616,"command":{"op":"stop","child":"web"}}"#,
            None,
        ),
        (r#"{"id":1,"command":{"op":"stop","child":"web"}} {}"#, None),
        (&deep, None),
    ] {
        let mut wire = sandbox.wire();
        wire.send(format!("{line}\n{stop}{stop}"));
        let (answered, answer) = wire.answer();
        assert_eq!(answered, id, "{line}: {answer}");
        assert_eq!(answer["error"]["code"], "bad_request", "{line}: {answer}");
        assert!(answer.get("ok").is_none());
        assert_eq!(wire.line(), None, "{line}");
    }
    let mut wire = sandbox.wire();
    wire.send(
        [
            b"{\"id\":1,\"command\":{\"op\":\"stop\",\"child\":\"\xff\"}}\n",
            stop.as_bytes(),
        ]
        .concat(),
    );
    let answer = wire.line().unwrap();
    let expected = r#"{"id":null,"error":{"code":"bad_request","message":"the line is not UTF-8: byte 41 is wrong"}}"#;
    assert_eq!(answer, expected);
    assert_eq!(wire.line(), None);
    assert_unharmed(&sandbox);
}

#[test]
fn what_was_asked_before_a_bad_line_is_still_answered() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    wire.ask(1, STOP);
    wire.send("nonsense\n");
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (None, &"bad_request".into())
    );
    sandbox.open_gate("end");
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["op"]), (Some(1), &"stop".into()));
    assert_eq!(wire.line(), None);
}

#[test]
fn a_web_pages_post_never_reaches_its_body() {
    let sandbox = target();
    let body = format!("{{\"id\":1,\"command\":{STOP}}}\n");
    let post = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{body}",
        sandbox.address(),
        body.len()
    );
    // At once, and in two parts as browsers send it.
    for parts in [
        vec![post.as_str()],
        post.split_inclusive("\r\n\r\n").collect(),
    ] {
        let mut stream = TcpStream::connect(sandbox.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for part in parts {
            // The server may have hung up by the second part.
            let _may_be_closed = stream.write_all(part.as_bytes());
        }
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        let lines: Vec<&str> = heard.lines().collect();
        assert_eq!(lines.len(), 2, "{heard}");
        assert!(
            lines[1].starts_with(r#"{"id":null,"error":{"code":"bad_request","#),
            "{heard}"
        );
    }
    assert_unharmed(&sandbox);
}

#[test]
fn a_line_may_have_65536_bytes_and_one_more_is_too_large() {
    let sandbox = target();
    let padded = |bytes: usize, id: u64, command: &str| {
        let request = format!("{{\"id\":{id},\"command\":{command}}}");
        format!("{request}{}\n", " ".repeat(bytes - request.len()))
    };
    let mut wire = sandbox.wire();
    wire.send(padded(LINE_BYTES_MAX, 1, CHECK));
    assert_eq!(wire.answer().0, Some(1));
    wire.send(padded(LINE_BYTES_MAX + 1, 2, STOP));
    let expected =
        r#"{"id":null,"error":{"code":"too_large","message":"a line has at most 65536 bytes"}}"#;
    assert_eq!(wire.line().as_deref(), Some(expected));
    assert_eq!(wire.line(), None);
    // Without a line feed it is too large as soon as it is.
    let mut wire = sandbox.wire();
    wire.send(vec![b' '; LINE_BYTES_MAX + 1]);
    assert_eq!(wire.line().as_deref(), Some(expected));
    assert_unharmed(&sandbox);
}

#[test]
fn requests_are_pipelined_and_answered_as_they_are_done() {
    let sandbox = slow();
    sandbox.write("other.yml", SLEEPER);
    sandbox.wait_state("other", "stopped");
    let mut wire = sandbox.wire();
    wire.send(format!(
        "{{\"id\":1,\"command\":{STOP}}}\n\
         {{\"id\":2,\"command\":{CHECK}}}\n\
         {{\"id\":3,\"command\":{{\"op\":\"start\",\"child\":\"other\"}}}}\n\
         {{\"id\":4,\"command\":{{\"op\":\"start\",\"child\":\"web\"}}}}\r\n"
    ));
    // The stop takes as long as it takes; what concerns others is not kept waiting by it.
    let mut early = [wire.answer(), wire.answer()];
    early.sort_by_key(|(id, _)| *id);
    assert_eq!(early[0].0, Some(2));
    assert_eq!(early[0].1["ok"]["children"][0]["state"], "stopping");
    assert_eq!(early[1].0, Some(3));
    assert_eq!(
        early[1].1["ok"]["message"].as_str().unwrap()[..7],
        *"`other`"
    );
    sandbox.open_gate("end");
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["op"]), (Some(1), &"stop".into()));
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["run"]), (Some(4), &2.into()));
}

#[test]
fn a_client_that_will_send_no_more_still_reads_its_answers() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    wire.ask(1, STOP);
    wire.finish();
    sandbox.wait_state("web", "stopping");
    sandbox.open_gate("end");
    assert_eq!(wire.answer().1["ok"]["op"], "stop");
    assert_eq!(wire.line(), None);
}

#[test]
fn a_line_without_its_line_feed_is_no_request() {
    let sandbox = target();
    let mut wire = sandbox.wire();
    wire.ask(1, CHECK);
    wire.send(format!("{{\"id\":2,\"command\":{STOP}}}"));
    wire.finish();
    assert_eq!(wire.answer().0, Some(1));
    assert_eq!(wire.line(), None);
    assert_unharmed(&sandbox);
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let sandbox = target();
    let mut wire = sandbox.wire();
    for byte in format!("{{\"id\":1,\"command\":{CHECK}}}\n").bytes() {
        wire.send([byte]);
    }
    assert_eq!(wire.answer().0, Some(1));
}

#[test]
fn more_requests_of_a_connection_than_may_wait_are_busy_one_by_one() {
    let sandbox = slow();
    let mut wire = sandbox.wire();
    let max = IN_FLIGHT_MAX as u64;
    for id in 1..=max + 2 {
        wire.ask(id, STOP);
    }
    for id in [max + 1, max + 2] {
        let expected = format!(
            r#"{{"id":{id},"error":{{"code":"busy","message":"more than {max} requests of this connection are not answered yet"}}}}"#
        );
        assert_eq!(wire.line(), Some(expected));
    }
    // Another connection is not concerned.
    assert_eq!(sandbox.client(&["check", "web"]).code, 0);
    sandbox.open_gate("end");
    for _ in 1..=max {
        assert_eq!(wire.answer().1["ok"]["op"], "stop");
    }
    wire.ask(max + 3, CHECK);
    assert_eq!(wire.answer().0, Some(max + 3));
}

const TOO_MANY: &str =
    r#"{"id":null,"error":{"code":"busy","message":"too many connections, try again later"}}"#;

#[test]
fn who_says_nothing_makes_room_for_who_comes() {
    let sandbox = target();
    let mut silent: Vec<Wire> = (0..CONNECTIONS_PER_PEER_MAX)
        .map(|_| sandbox.wire())
        .collect();
    let mut newcomer = sandbox.wire();
    newcomer.ask(1, CHECK);
    assert_eq!(newcomer.answer().0, Some(1));
    assert_eq!(silent[0].line().as_deref(), Some(TOO_MANY));
    assert_eq!(silent[0].line(), None);
    silent[1].ask(1, CHECK);
    assert_eq!(silent[1].answer().0, Some(1));
}

#[test]
fn a_connection_that_never_asks_is_told_timeout_and_closed() {
    let sandbox = Sandbox::start("");
    let began = clock::mono();
    let mut wire = sandbox.wire();
    let expected = r#"{"id":null,"error":{"code":"timeout","message":"no request for too long"}}"#;
    assert_eq!(wire.line().as_deref(), Some(expected));
    assert_eq!(wire.line(), None);
    assert!(clock::mono() - began >= FIRST_REQUEST_TIME_MAX);
}

const UNAUTHORIZED: &str = r#""error":{"code":"unauthorized","message":"the command is not signed by a key that this server knows"}}"#;

#[test]
fn with_encrypt_on_no_unsigned_command_is_taken_and_the_client_says_what_is_missing() {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys]\nmode: sync");
    fs::create_dir(sandbox.root().join("keys")).unwrap();
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    wait_for("the child", PATIENCE, || !sandbox.processes().is_empty());
    let mut wire = sandbox.wire();
    assert!(wire.hello.contains(r#""encrypt":true"#), "{}", wire.hello);
    for (id, op) in (1..).zip(["check", "info", "kill"]) {
        wire.ask(id, &format!(r#"{{"op":"{op}"}}"#));
        assert_eq!(wire.line(), Some(format!(r#"{{"id":{id},{UNAUTHORIZED}"#)));
    }
    wire.send("{\"id\":9,\"token\":\"a.b.c\"}\n");
    assert_eq!(wire.line(), Some(format!(r#"{{"id":9,{UNAUTHORIZED}"#)));
    let output = sandbox.client(&["kill"]);
    let words = "error[unauthorized]: `ADDRESS` takes only signed commands (`encrypt: on`): \
                 `with KEY.pem` is missing\nhint: `SUPERVISOR_RS_KEY` names a key for all \
                 commands; `supervisor-rs-client keygen NAME` makes one\n";
    assert_eq!(
        (output.code, sandbox.mask(&output.stderr).as_str()),
        (4, words)
    );
    assert_eq!(output.stdout, "");
    assert_eq!(sandbox.processes().len(), 1);
    // Nobody can be asked who lives, so that the sandbox cannot tell it from a stray.
    sandbox.expect_leftovers();
}

#[test]
fn a_token_is_unauthorized_where_commands_are_not_signed() {
    let sandbox = target();
    let mut wire = sandbox.wire();
    wire.send("{\"id\":1,\"token\":\"a.b.c\"}\n");
    assert_eq!(wire.line(), Some(format!(r#"{{"id":1,{UNAUTHORIZED}"#)));
    wire.ask(2, CHECK);
    assert_eq!(wire.answer().0, Some(2));
    assert_unharmed(&sandbox);
}

/// An address of this machine that is not a loopback one.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent: only a route is chosen.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn this_host_commands_under_an_address_of_it_that_is_not_loopback() {
    let Some(address) = outer_address() else {
        return skip("this machine has no address but loopback");
    };
    let sandbox = Sandbox::start("listener_addr: 0.0.0.0");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    let outer = SocketAddr::new(address, sandbox.address().port());
    let mut wire = Wire::connect(outer);
    wire.ask(1, r#"{"op":"start","child":"web"}"#);
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["run"]), (Some(1), &1.into()), "{answer}");
    let host = outer.to_string();
    let output = sandbox.client_as_given(&["stop", "web", "on", &host]);
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn while_the_server_ends_commands_are_told_shutting_down_and_looks_are_still_answered() {
    let mut sandbox = slow();
    sandbox.write("other.yml", SLEEPER);
    sandbox.wait_state("other", "stopped");
    let mut killer = sandbox.wire();
    killer.ask(1, r#"{"op":"kill","stop_children":true}"#);
    sandbox.wait_state("web", "stopping");
    for arguments in [
        &["start", "other"][..],
        &["stop", "web"],
        &["stop", "--all"],
        &["start", "--all"],
    ] {
        let output = sandbox.client(arguments);
        let words = "error[shutting_down]: the server is ending\n";
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (1, words),
            "{arguments:?}"
        );
        assert_eq!(output.stdout, "");
    }
    assert_eq!(sandbox.client(&["check", "web"]).code, 0);
    assert_eq!(sandbox.client(&["info"]).code, 0);
    // A second `kill` hears the same last words.
    let mut second = sandbox.wire();
    second.ask(1, r#"{"op":"kill"}"#);
    second.ask(2, CHECK);
    assert_eq!(second.answer().0, Some(2));
    sandbox.open_gate("end");
    let expected = r#"{"id":1,"ok":{"op":"kill","children":[],"message":"the server ends; no child is left running"}}"#;
    for wire in [&mut killer, &mut second] {
        assert_eq!(wire.line().as_deref(), Some(expected));
        assert_eq!(wire.line(), None);
    }
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_start_that_waits_when_the_server_ends_is_told_shutting_down() {
    let mut sandbox = Sandbox::start("");
    let wait = sandbox.gate("hook");
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}hooks:\n  - prehook: run sh -c '{wait}'\n"),
    );
    sandbox.wait_state("web", "stopped");
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"web"}"#);
    sandbox.wait_prehook("web");
    assert_eq!(sandbox.client(&["kill"]).code, 0);
    let expected = r#"{"id":1,"error":{"code":"shutting_down","message":"the server is ending"}}"#;
    assert_eq!(wire.line().as_deref(), Some(expected));
    assert_eq!(wire.line(), None);
    assert_eq!(sandbox.wait_server(), 0);
    wait_for("the hook's end", PATIENCE, || {
        sandbox.processes().is_empty()
    });
}

// The page that strangers write clients by

const PAGE: &str = include_str!("../../docs/PROTOCOL.md");

/// One transcript of the page: the heading it stands under, which of that, and its lines.
struct Transcript {
    heading: &'static str,
    number: usize,
    lines: Vec<&'static str>,
}

fn transcripts() -> Vec<Transcript> {
    let mut all: Vec<Transcript> = Vec::new();
    let (mut heading, mut number, mut open) = ("", 0, false);
    for line in PAGE.lines() {
        if let Some(text) = line.strip_prefix('#') {
            (heading, number) = (text.trim_start_matches('#').trim(), 0);
        }
        let spoken = line.starts_with("S: ") || line.starts_with("C: ");
        if spoken && !open {
            number += 1;
            let lines = Vec::new();
            all.push(Transcript {
                heading,
                number,
                lines,
            });
        }
        if spoken && let Some(transcript) = all.last_mut() {
            transcript.lines.push(line);
        }
        open = spoken;
    }
    all
}

/// The world in which a transcript takes place.
fn world(transcript: &Transcript) -> Sandbox {
    let web = "command: [sleep, '300']\n";
    let run_often = |sandbox: &Sandbox, times: u32| {
        sandbox.write("web.yml", web);
        sandbox.wait_state("web", "stopped");
        for _ in 0..times {
            assert_eq!(sandbox.client(&["trystart", "web"]).code, 0);
        }
    };
    match (transcript.heading, transcript.number) {
        ("In short", 1) => {
            let sandbox = Sandbox::start("name: web1");
            run_often(&sandbox, 4);
            sandbox
        }
        ("start, restart, trystart, stop of one child", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 3);
            assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
            sandbox
        }
        ("wait", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 4);
            sandbox
        }
        ("events" | "why", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 1);
            assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
            sandbox
        }
        ("start and stop of all", 1) => {
            let sandbox = Sandbox::start("mode: sync");
            sandbox.write("db.yml", web);
            let mail = sandbox.loadpath().join("mail");
            let sleep = ["/bin/sleep", "/usr/bin/sleep"];
            let sleep = sleep.iter().find(|path| fs::exists(path).unwrap_or(false));
            fs::copy(sleep.expect("sleep"), &mail).unwrap();
            let yaml = "command: ./mail 300\nhooks: [posthook: start db]\n";
            sandbox.write("mail.yml", yaml);
            sandbox.wait_state("db", "running");
            sandbox.wait_state("mail", "running");
            fs::remove_file(mail).unwrap();
            sandbox
        }
        ("check", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 4);
            sandbox.write("db.yml", web);
            sandbox.wait_state("db", "stopped");
            assert_eq!(sandbox.client(&["start", "db"]).code, 0);
            assert_eq!(sandbox.client(&["stop", "db"]).code, 0);
            sandbox.write("db.yml", "command: [sleep, '600']\noutput: inherit\n");
            wait_for("the change", PATIENCE, || {
                sandbox.row("db").unwrap()["config"]["status"] == "changed"
            });
            sandbox
        }
        ("check", 2) => Sandbox::start("loadpaths: [missing]"),
        ("info", 1) => {
            let mut sandbox = Sandbox::new("name: web1\nmode: sync\npub_keys_path: [keys]");
            fs::create_dir(sandbox.key_dir()).unwrap();
            let key = include_str!("../../fixtures/keys/2048-spki.pem");
            sandbox.replace(&sandbox.key_dir().join("ci.pem"), key);
            sandbox.replace(&sandbox.key_dir().join("ci.yml"), "allow: [check]\n");
            for name in ["a", "b"] {
                sandbox.write(&format!("{name}.yml"), web);
            }
            sandbox.write("c.yml", "command: 'false'\n");
            sandbox.start_server();
            sandbox.wait_state("b", "running");
            sandbox.wait_state("c", "exited");
            sandbox
        }
        ("kill", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 4);
            sandbox
        }
        ("kill", 2) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 1);
            sandbox
        }
        ("upgrade", 1) => {
            let sandbox = Sandbox::start("");
            run_often(&sandbox, 1);
            sandbox
        }
        ("Who may command", 1) => {
            let sandbox = Sandbox::new("name: web1\nencrypt: on\npub_keys_path: [keys]");
            fs::create_dir(sandbox.root().join("keys")).unwrap();
            let mut sandbox = sandbox;
            sandbox.start_server();
            sandbox
        }
        ("Signed commands", 1) => Sandbox::start(""),
        (heading, number) => panic!("transcript {number} of `{heading}` has no world"),
    }
}

/// The page's places and numbers, masked as those of a sandbox are.
fn masked_page(line: &str) -> String {
    let mut line = line.to_owned();
    for (there, here) in [
        ("127.0.0.1:33889", "ADDRESS"),
        ("0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5", "SERVER"),
        ("/etc/sup/children", "ROOT/load"),
        ("/etc/sup", "ROOT"),
        ("/var/lib/supervisor-rs/logs", "ROOT/logs"),
        ("/var/lib/supervisor-rs", "ROOT/state"),
        ("/run/supervisor-rs", "ROOT/run"),
    ] {
        line = line.replace(there, here);
    }
    mask(&line)
}

/// Masks what no test can know: the nonce, the version, what this machine gives, who asks here.
fn unknowable(line: &str) -> String {
    let mut line = line.to_owned();
    for (before, after) in [
        ("\"nonce\":\"", "\""),
        ("\"version\":\"", "\""),
        ("\"from\":\"", "\""),
        ("\"to\":\"", "\""),
        ("was upgraded from ", ";"),
        ("\"fingerprint\":\"", "\""),
        ("\"capabilities\":{", "}"),
        ("\"peer\":\"", "\""),
        ("\"user\":", ","),
        (" of user ", " "),
        (" from 127.0.0.1:", ":"),
    ] {
        let mut parts = line.split(before);
        let mut masked = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (_, tail) = part.split_once(after).expect("its end");
            masked += &format!("{before}…{after}{tail}");
        }
        line = masked;
    }
    line
}

#[test]
fn every_transcript_of_the_protocol_page_is_what_a_real_server_says() {
    let mut wrong = Vec::new();
    let mut spoken = 0;
    for transcript in transcripts() {
        if transcript.heading == "Refusals without a hello" {
            // Needs more connections than it is worth here; it has a test of its own.
            assert_eq!(transcript.lines, [format!("S: {TOO_MANY}")]);
            continue;
        }
        let mut sandbox = world(&transcript);
        let mut wire = sandbox.wire();
        let mut heard = Vec::new();
        for line in &transcript.lines {
            if let Some(request) = line.strip_prefix("C: ") {
                wire.send(format!("{request}\n"));
            } else if line.starts_with("S: {\"hello\"") {
                heard.push(wire.hello.clone());
            } else {
                heard.push(wire.line().expect("an answer"));
            }
        }
        let said = transcript
            .lines
            .iter()
            .filter_map(|line| line.strip_prefix("S: "));
        for (said, heard) in said.zip(&heard) {
            spoken += 1;
            let expected = unknowable(&masked_page(said));
            let found = unknowable(&sandbox.mask(heard));
            if expected != found {
                wrong.push(format!("page:   {expected}\nserver: {found}"));
            }
        }
        let ended = transcript.heading == "kill";
        if ended {
            assert_eq!(sandbox.wait_server(), 0);
            sandbox.expect_leftovers();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let all = PAGE.lines().filter(|line| line.starts_with("S: "));
    assert_eq!(spoken + 1, all.count());
}

#[test]
fn the_client_on_the_protocol_page_works() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("python3 is not installed");
    }
    let sandbox = target();
    let (_, rest) = PAGE.split_once("```python\n").expect("a client");
    let (code, _) = rest.split_once("```").expect("its end");
    assert!(code.contains("33889"));
    let code = code.replace("33889", &sandbox.address().port().to_string());
    let mut command = Command::new("python3");
    command.args(["-c", &code]);
    let output = run(command);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let start = "{'op': 'check', 'children': [{'name': 'web', 'state': 'running', 'pid': ";
    assert!(output.stdout.starts_with(start), "{output:?}");
}

// A disk that is full

/// How many stops and starts may fit into the last page of a full disk.
const ROUNDS_MAX: usize = 400;

#[test]
fn what_cannot_be_written_down_is_answered_internal_and_works_again_later() {
    let sandbox = Sandbox::new("");
    let state = sandbox.root().join("state");
    fs::create_dir(&state).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    // A disk of its own, as small as can be, that nobody sees but this server.
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=700 none {} && exec \"$0\" \"$@\"",
        state.display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &script];
    let mut probe = Command::new(wrapper[0]);
    probe.args(&wrapper[1..]).arg("true");
    if !run(probe).code.eq(&0) {
        return skip("a file system cannot be mounted without root");
    }
    let mut sandbox = sandbox.within(&wrapper);
    sandbox.start_server();
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);

    let there = format!(
        "/proc/{}/root{}/fill",
        sandbox.server_pid(),
        state.display()
    );
    let mut fill = fs::File::create(&there).unwrap();
    while fill.write_all(&[0; 4096]).is_ok() {}
    // The last page of the records takes a few more of them.
    let mut refused = None;
    for _ in 0..ROUNDS_MAX {
        for verb in ["stop", "start"] {
            let output = sandbox.client(&[verb, "web"]);
            if output.code != 0 {
                refused.get_or_insert((verb, output));
            }
        }
        if refused.is_some() {
            break;
        }
    }
    let (verb, output) = refused.expect("a full disk");
    assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:?}");
    let words = match verb {
        "stop" => "error[internal]: `web` is stopped, but its hold could not be recorded: ",
        _ => "error[internal]: `web` was not started, for it could not be recorded: ",
    };
    assert!(output.stderr.starts_with(words), "{output:?}");
    assert!(
        output.stderr.contains("No space left on device"),
        "{output:?}"
    );
    let before = sandbox.row("web").unwrap();

    drop(fill);
    fs::remove_file(there).unwrap();
    assert_eq!(sandbox.client(&["trystart", "web"]).code, 0, "{before}");
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    assert_eq!(sandbox.row("web").unwrap()["hold"], true);
}
