//! Upgrades: the server replaces itself under its own pid, and nobody notices.
//!
//! Each sandbox has a program of its own, which its tests replace by what they like: the real one
//! again, one that cannot go on, or none at all.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    sandbox::{
        PATIENCE, SERVER, SLEEPER, Sandbox, Wire, lives, pid_of, script, status_of, wait_for,
        wait_lines,
    },
    signing::{Forge, Which},
};

const UPGRADE: &str = r#"{"op":"upgrade"}"#;

/// A server with a program of its own.
fn server(settings: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(settings).with_own_program();
    sandbox.start_server();
    sandbox
}

/// How often the log says that the server was upgraded.
fn upgrades(sandbox: &Sandbox) -> usize {
    sandbox
        .server_log()
        .matches("the server was upgraded")
        .count()
}

/// Puts a script where the server's program stands.
fn put_script(sandbox: &Sandbox, text: &str) {
    put_bytes(sandbox, format!("#!/bin/sh\n{text}\n").as_bytes(), 0o755);
}

fn put_bytes(sandbox: &Sandbox, bytes: &[u8], mode: u32) {
    let new = sandbox.root().join("bin/new");
    fs::write(&new, bytes).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, sandbox.program()).unwrap();
}

/// An upgrade is refused as `internal`, and everything is as before: the message.
fn refused(sandbox: &Sandbox) -> String {
    let (pid, web) = (sandbox.server_pid(), sandbox.row("web").unwrap());
    let message = sandbox.refused(&["upgrade"], "internal", 1);
    assert!(message.contains("the server was not upgraded"), "{message}");
    assert_eq!(sandbox.server_pid(), pid);
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    assert!(lives(pid_of(&web)));
    assert!(sandbox.server_log().contains("no upgrade"));
    message
}

/// Waits until the server's watch, which an upgrade waits for no longer than anybody, is there.
fn wait_watching(sandbox: &Sandbox) {
    wait_for("the watch", PATIENCE, || {
        sandbox.json(&["info"])["capabilities"]["watching"] == "inotify"
    });
}

/// Descriptors that the server has open, by what they lead to, but for the log.
fn descriptors(sandbox: &Sandbox) -> Vec<String> {
    let folder = format!("/proc/{}/fd", sandbox.server_pid());
    let mut all: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|link| {
            let text = link.display().to_string();
            text.split_once(':')
                .map_or(text.clone(), |(kind, _)| kind.to_owned())
        })
        .collect();
    all.sort();
    all
}

/// Nothing is left open that was not open before; of each kind there may be fewer.
fn no_more_descriptors(sandbox: &Sandbox, before: &[String]) {
    let count = |all: &[String], what: &String| all.iter().filter(|other| *other == what).count();
    let mut more = Vec::new();
    let none = || {
        let now = descriptors(sandbox);
        more.clone_from(&now);
        more.retain(|what| count(&now, what) > count(before, what));
        more.is_empty()
    };
    wait_for("no more descriptors than before", PATIENCE, none);
}

#[test]
fn the_server_is_another_program_under_the_same_pid_and_its_children_run_on() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.wait_run("web", 1);
    sandbox.done(&["upgrade"]);
    wait_watching(&sandbox);
    let before = descriptors(&sandbox);
    let started = sandbox.done(&["info"])["started_at"].clone();
    for count in 2..=4 {
        sandbox.put_program();
        let answer = sandbox.done(&["upgrade"]);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(answer["from"], version);
        assert_eq!(answer["to"], version);
        assert_eq!(answer["pid"], sandbox.server_pid());
        assert!(
            answer["message"]
                .as_str()
                .unwrap()
                .ends_with("1 child runs on")
        );
        assert_eq!(upgrades(&sandbox), count);
    }
    let now = sandbox.row("web").unwrap();
    for field in ["pid", "run", "started_at", "state"] {
        assert_eq!(now[field], web[field], "{field}");
    }
    assert_eq!(sandbox.done(&["info"])["started_at"], started);
    // What runs is what stands there, and not what stood there.
    let running = fs::read_link(format!("/proc/{}/exe", sandbox.server_pid())).unwrap();
    assert_eq!(running, sandbox.program());
    let name = status_of(sandbox.server_pid(), "Name").unwrap();
    assert_eq!(name, "supervisor-rs-s");
    no_more_descriptors(&sandbox, &before);
    // It is ours: its exit is told exactly.
    sandbox.write("once.yml", &script("exit 7"));
    let row = sandbox.wait_state("once", "exited");
    assert_eq!(row["exit"]["code"], 7);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn usr2_upgrades_too() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.wait_run("web", 1);
    sandbox.signal_server(Signal::USR2);
    wait_for("the upgrade", PATIENCE, || upgrades(&sandbox) == 1);
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    put_script(&sandbox, "exit 1");
    sandbox.signal_server(Signal::USR2);
    wait_for("the refusal", PATIENCE, || {
        sandbox
            .server_log()
            .contains("it fails with exit status: 1")
    });
    assert_eq!(upgrades(&sandbox), 1);
}

#[test]
fn a_line_cut_in_two_and_requests_in_a_row_go_over() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_run("web", 1);
    let mut half = sandbox.wire();
    half.send(r#"{"id":1,"comm"#);
    let mut row = sandbox.wire();
    let mut idle = sandbox.wire();
    idle.ask(1, r#"{"op":"check"}"#);
    idle.answer();
    for id in 1..=20 {
        row.ask(id, r#"{"op":"check","child":"web"}"#);
    }
    row.ask(21, UPGRADE);
    for id in 22..=40 {
        row.ask(id, r#"{"op":"check","child":"web"}"#);
    }
    let mut heard: Vec<u64> = (1..=40)
        .map(|_| {
            let (id, answer) = row.answer();
            assert!(answer["ok"].is_object(), "{answer}");
            id.unwrap()
        })
        .collect();
    heard.sort_unstable();
    assert_eq!(heard, (1..=40).collect::<Vec<u64>>());
    assert_eq!(upgrades(&sandbox), 1);
    half.send("and\":{\"op\":\"check\"}}\n");
    assert!(half.answer().1["ok"].is_object());
    // Ids increase across it too.
    idle.ask(1, r#"{"op":"check"}"#);
    assert_eq!(idle.answer().1["error"]["code"], "bad_request");
}

#[test]
fn a_prehook_a_stop_in_its_grace_a_hold_and_a_repeat_go_on() {
    let sandbox = server("mode: quiet");
    let gate = sandbox.gate("hook");
    let hooked = format!("{SLEEPER}hooks:\n  - prehook: run sh -c '{gate}'\n");
    sandbox.write("hooked.yml", &hooked);
    sandbox.write("slow.yml", &sandbox.slow_to_stop("stop"));
    sandbox.write("held.yml", SLEEPER);
    let ticks = sandbox.root().join("ticks");
    let tick = script(&format!("echo tick >> {}", ticks.display()));
    sandbox.write(
        "tick.yml",
        &format!("{tick}repeat:\n  action: start\n  seconds: 1\n"),
    );
    for name in ["slow", "held", "tick"] {
        sandbox.done(&["start", name]);
    }
    sandbox.done(&["stop", "held"]);
    let slow = sandbox.row("slow").unwrap();
    thread::scope(|scope| {
        let start = scope.spawn(|| sandbox.done(&["start", "hooked"]));
        let stop = scope.spawn(|| sandbox.done(&["stop", "slow"]));
        let hook = sandbox.wait_prehook("hooked");
        sandbox.wait_state("slow", "stopping");
        sandbox.done(&["upgrade"]);
        assert_eq!(sandbox.row("slow").unwrap()["pid"], slow["pid"]);
        assert_eq!(sandbox.row("hooked").unwrap()["state"], "pending");
        assert_eq!(sandbox.row("held").unwrap()["hold"], true);
        let count = fs::read_to_string(&ticks).unwrap().lines().count();
        wait_lines(&ticks, count + 2);
        let _ = hook;
        sandbox.open_gate("hook");
        sandbox.open_gate("stop");
        assert_eq!(start.join().unwrap()["run"], 1);
        assert_eq!(stop.join().unwrap()["pid"], slow["pid"]);
    });
    sandbox.done(&["stop", "tick"]);
    sandbox.done(&["stop", "hooked"]);
}

#[test]
fn an_end_while_the_server_is_replaced_is_told_exactly() {
    let sandbox = server("mode: quiet");
    for code in 1..=20 {
        let name = format!("c{code}");
        let gate = sandbox.gate(&name);
        sandbox.write(
            &format!("{name}.yml"),
            &script(&format!("{gate}\nexit {code}")),
        );
        sandbox.done(&["start", &name]);
    }
    thread::scope(|scope| {
        let upgrading = scope.spawn(|| sandbox.done(&["upgrade"]));
        for code in 1..=20 {
            sandbox.open_gate(&format!("c{code}"));
        }
        upgrading.join().unwrap();
    });
    for code in 1..=20 {
        let row = sandbox.wait_state(&format!("c{code}"), "exited");
        assert_eq!(row["exit"]["code"], code);
    }
}

/// Somebody who commands until told to stop: over one connection, and over new ones.
fn command(sandbox: &Sandbox, child: &str, over: &AtomicBool, done: &AtomicU64) {
    const ROW: u64 = 16;
    let mut stays = sandbox.wire();
    for id in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let ask = |wire: &mut Wire, id: u64, command: &str| {
            wire.ask(id, command);
            let (_, answer) = wire.answer();
            assert!(answer["ok"].is_object(), "{command}: {answer}");
            done.fetch_add(1, Ordering::Relaxed);
        };
        // A row of looks, and among them something that changes the child.
        let verb = if id % 2 == 0 { "start" } else { "stop" };
        let row: Vec<String> = (0..ROW)
            .map(|place| match place == ROW / 2 {
                true => format!(r#"{{"op":"{verb}","child":"{child}"}}"#),
                false => format!(r#"{{"op":"check","child":"{child}"}}"#),
            })
            .collect();
        for (place, command) in (0..ROW).zip(&row) {
            stays.ask(id * ROW + place, command);
        }
        for _ in 0..ROW {
            let (answered, answer) = stays.answer();
            assert!(answer["ok"].is_object(), "{answered:?}: {answer}");
            done.fetch_add(1, Ordering::Relaxed);
        }
        let mut comes = sandbox.wire();
        ask(&mut comes, 1, r#"{"op":"check"}"#);
    }
}

#[test]
fn under_two_hundred_commands_a_second_none_fails() {
    const PEOPLE: usize = 6;
    const UPGRADES: usize = 8;
    const PER_SECOND_MIN: u64 = 200;
    let sandbox = server("mode: quiet");
    let names: Vec<String> = (0..PEOPLE).map(|n| format!("c{n}")).collect();
    for name in names.iter().map(String::as_str).chain(["stays"]) {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        sandbox.done(&["start", name]);
    }
    let stays = sandbox.row("stays").unwrap();
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = supervisor_rs::clock::mono();
    thread::scope(|scope| {
        let people: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| command(&sandbox, name, &over, &done)))
            .collect();
        for _ in 0..UPGRADES {
            let before = done.load(Ordering::Relaxed);
            wait_for("commands between two upgrades", PATIENCE, || {
                done.load(Ordering::Relaxed) > before + 100
            });
            let answer = sandbox.client(&["--json", "upgrade"]);
            if answer.code != 0 {
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!(answer.code, 0, "{answer:?}");
        }
        over.store(true, Ordering::Relaxed);
        for person in people {
            person.join().expect("no command fails");
        }
    });
    let span = supervisor_rs::clock::mono() - begun;
    let done = done.load(Ordering::Relaxed);
    let per_second = u128::from(done) * 1_000 / span.as_millis().max(1);
    println!(
        "{done} commands in {span:?}: {per_second} a second, {UPGRADES} upgrades, none failed"
    );
    assert!(
        per_second >= u128::from(PER_SECOND_MIN),
        "only {per_second} a second"
    );
    assert_eq!(sandbox.row("stays").unwrap()["pid"], stays["pid"]);
    assert_eq!(upgrades(&sandbox), UPGRADES);
    sandbox.done(&["stop", "--all"]);
}

#[test]
fn signed_connections_and_their_nonces_go_over() {
    let mut sandbox =
        Sandbox::new("encrypt: on\npub_keys_path: [keys]\nmode: sync\n").with_own_program();
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &crate::signing::pair(Which::Deploy).public);
    sandbox.start_server();
    let mut wire = sandbox.wire();
    let ask = |wire: &mut Wire, id: u64, command: &str| {
        let token = Forge::new(&wire.hello, id, command).token();
        wire.send_token(id, &token);
    };
    ask(&mut wire, 1, r#"{"op":"check"}"#);
    assert!(wire.answer().1["ok"].is_object());
    for id in 2..=6 {
        ask(&mut wire, id, r#"{"op":"check"}"#);
    }
    ask(&mut wire, 7, UPGRADE);
    for id in 8..=20 {
        ask(&mut wire, id, r#"{"op":"check"}"#);
    }
    for _ in 2..=20 {
        let (id, answer) = wire.answer();
        assert!(answer["ok"].is_object(), "{id:?} {answer}");
    }
    assert_eq!(upgrades(&sandbox), 1);
    // The key that has signed before it ends the connection after it.
    fs::remove_file(sandbox.key_dir().join("deploy.pub.pem")).unwrap();
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (None, &Value::from("unauthorized"))
    );
    assert_eq!(wire.line(), None);
}

#[test]
fn a_program_that_cannot_go_on_changes_nothing_and_the_answer_says_why() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_run("web", 1);
    let says = |sandbox: &Sandbox, why: &str| {
        let message = refused(sandbox);
        assert!(message.contains(why), "{why}: {message}");
    };
    put_bytes(&sandbox, b"\x7fELF and then garbage", 0o755);
    says(&sandbox, "it does not start");
    put_bytes(&sandbox, b"", 0o644);
    says(&sandbox, "it does not start");
    put_script(&sandbox, "exit 1");
    says(&sandbox, "it fails with exit status: 1");
    put_script(&sandbox, "kill -9 $$");
    says(&sandbox, "it fails with signal: 9");
    // One of before: it takes the option for a wrong one.
    put_script(&sandbox, "echo \"unexpected argument $1\" >&2; exit 2");
    says(&sandbox, "it fails with exit status: 2");
    put_script(&sandbox, "echo supervisor-rs-server 0.8.4");
    says(&sandbox, "does not say what it reads");
    put_script(
        &sandbox,
        r#"echo '{"version":"99.0.0","reads_state":[999]}'"#,
    );
    says(
        &sandbox,
        "is version 99.0.0 and does not read the state of this server",
    );
    put_script(&sandbox, "exec sleep 1000");
    says(&sandbox, "it has not ended within 5s");
    put_bytes(&sandbox, &fs::read("/bin/true").unwrap(), 0o777);
    says(&sandbox, "chmod");
    fs::remove_file(sandbox.program()).unwrap();
    says(&sandbox, "does not exist");
    assert_eq!(upgrades(&sandbox), 0);
    sandbox.put_program();
    sandbox.done(&["upgrade"]);
}

#[test]
fn a_program_in_a_folder_that_others_may_write_is_not_trusted() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_run("web", 1);
    let bin = sandbox.program().parent().unwrap();
    fs::set_permissions(bin, fs::Permissions::from_mode(0o777)).unwrap();
    let message = refused(&sandbox);
    assert!(message.contains("chmod"), "{message}");
    fs::set_permissions(bin, fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.done(&["upgrade"]);
}

/// A program that says it can go on, and then is given something else than it was promised: the
/// real one, told of another version.
fn put_liar(sandbox: &Sandbox) {
    let text = format!(
        "[ \"$1\" = --reads-state ] && exec {SERVER} --reads-state\n\
         SUPERVISOR_RS_TAKEOVER=\"999 ${{SUPERVISOR_RS_TAKEOVER#* }}\"\n\
         export SUPERVISOR_RS_TAKEOVER\n\
         exec {SERVER} \"$@\""
    );
    put_script(sandbox, &text);
}

#[test]
fn one_that_passes_the_check_and_cannot_go_on_gives_the_server_back() {
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.done(&["start", "web"]);
    sandbox.write("held.yml", SLEEPER);
    sandbox.done(&["start", "held"]);
    sandbox.done(&["stop", "held"]);
    sandbox.done(&["upgrade"]);
    wait_watching(&sandbox);
    let before = descriptors(&sandbox);
    let mut wire = sandbox.wire();
    wire.send(r#"{"id":1,"comm"#);
    for _ in 0..2 {
        put_liar(&sandbox);
        let message = refused(&sandbox);
        assert!(
            message.contains("reads state of version 1 and was given version 999"),
            "{message}"
        );
        assert_eq!(upgrades(&sandbox), 1);
    }
    wire.send("and\":{\"op\":\"check\"}}\n");
    assert!(wire.answer().1["ok"].is_object());
    drop(wire);
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    assert_eq!(sandbox.row("held").unwrap()["hold"], true);
    no_more_descriptors(&sandbox, &before);
    sandbox.put_program();
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn a_program_that_vanishes_after_its_check_changes_nothing() {
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    // It is asked, and then nobody may execute it any more.
    let text = format!(
        "chmod 644 {}\nexec {SERVER} --reads-state",
        sandbox.program().display()
    );
    put_script(&sandbox, &text);
    let message = refused(&sandbox);
    assert!(message.contains("cannot be executed"), "{message}");
    sandbox.put_program();
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn no_second_server_gets_in_between() {
    let sandbox = server("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_run("web", 1);
    let other = sandbox.root().join("other.yml");
    let text = fs::read_to_string(sandbox.server_yml()).unwrap();
    let port = format!("listener_port: {}", sandbox.address().port());
    fs::write(&other, text.replace(&port, "listener_port: 0")).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let intruder = scope.spawn(|| {
            let mut tries = 0;
            while tries < 2 || !over.load(Ordering::Relaxed) {
                let output = sandbox.server_to_end(&[other.to_str().unwrap()]);
                assert_eq!(output.code, 7, "{output:?}");
                assert!(
                    output.stderr.contains("is in use by the server"),
                    "{output:?}"
                );
                tries += 1;
            }
        });
        for _ in 0..20 {
            if intruder.is_finished() {
                break;
            }
            sandbox.done(&["upgrade"]);
        }
        over.store(true, Ordering::Relaxed);
        intruder.join().expect("nobody gets in");
    });
}

#[test]
fn one_upgrade_at_a_time_and_none_while_the_server_ends() {
    let mut sandbox = server("mode: sync");
    let gate = sandbox.gate("check");
    put_script(&sandbox, &format!("{gate}\nexec {SERVER} --reads-state"));
    let mut first = sandbox.wire();
    first.ask(1, UPGRADE);
    wait_for("the check", PATIENCE, || {
        sandbox.server_log().contains("an upgrade begins")
    });
    sandbox.refused(&["upgrade"], "busy", 7);
    // The first is overtaken by the end.
    sandbox.signal_server(Signal::TERM);
    assert_eq!(first.answer().1["error"]["code"], "shutting_down");
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.open_gate("check");
}

#[test]
fn a_slow_reader_holds_nothing_up_and_gets_all_of_its_answers() {
    let sandbox = server("mode: quiet");
    for n in 0..50 {
        sandbox.write(&format!("child-with-a-rather-long-name-{n}.yml"), SLEEPER);
    }
    let mut slow = sandbox.wire();
    const REQUESTS: u64 = 400;
    for id in 1..=REQUESTS {
        slow.ask(id, r#"{"op":"check","all":true}"#);
    }
    sandbox.done(&["upgrade"]);
    for expected in 1..=REQUESTS {
        let (id, answer) = slow.answer();
        assert_eq!(id, Some(expected));
        assert!(answer["ok"].is_object(), "{answer}");
    }
}

#[test]
fn a_hup_that_comes_meanwhile_is_not_lost() {
    let sandbox = server("mode: sync");
    let count = |text: &str| sandbox.server_log().matches(text).count();
    let mut wire = sandbox.wire();
    for turn in 1..=10 {
        wire.ask(turn, UPGRADE);
        let turn = usize::try_from(turn).unwrap();
        wait_for("the exec", PATIENCE, || {
            count("the server replaces itself") == turn
        });
        sandbox.signal_server(Signal::HUP);
        wire.answer();
        wait_for("the look", PATIENCE, || {
            count("asked to look at everything again") == turn
        });
    }
}

#[test]
fn a_term_that_comes_meanwhile_is_not_lost_and_ends_it_in_order() {
    for _ in 0..5 {
        let mut sandbox = server("mode: sync");
        let mut wire = sandbox.wire();
        wire.ask(1, UPGRADE);
        wait_for("the exec", PATIENCE, || {
            sandbox.server_log().contains("the server replaces itself")
        });
        sandbox.signal_server(Signal::TERM);
        assert_eq!(sandbox.wait_server(), 0);
        assert!(sandbox.server_log().contains("the server ends"));
    }
}

#[test]
fn an_edit_of_server_yml_that_needs_a_restart_still_does_after_an_upgrade() {
    let mut sandbox = server("mode: quiet\nname: before\n");
    sandbox.configure("mode: sync\nname: after\n");
    wait_for("the edit", PATIENCE, || {
        sandbox.done(&["info"])["needs_restart"][0] == "name"
    });
    sandbox.done(&["upgrade"]);
    let info = sandbox.done(&["info"]);
    assert_eq!(info["needs_restart"], serde_json::json!(["name"]));
    assert_eq!(info["name"], "before");
    assert_eq!(info["mode"], "sync");
}

#[test]
fn what_an_upgrade_says_stands_in_the_audit_trail() {
    let sandbox = server("mode: quiet");
    sandbox.done(&["upgrade"]);
    let trail = fs::read_dir(sandbox.root().join("state")).unwrap();
    let text: String = trail
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_it = path.to_string_lossy().contains("audit");
            is_it.then(|| fs::read_to_string(path).ok())?
        })
        .collect();
    let line = text.lines().find(|line| line.contains(r#""op":"upgrade""#));
    let line: Value = serde_json::from_str(line.expect("a line")).unwrap();
    assert_eq!(line["outcome"], "ok", "{line}");
    let verified = sandbox.server_to_end(&[
        "--verify-audit",
        &sandbox.server_yml().display().to_string(),
    ]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[test]
fn what_does_not_come_to_rest_is_given_up_and_all_go_on() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.done(&["start", "web"]);
    let mut wire = sandbox.wire();
    wire.send(r#"{"id":1,"comm"#);
    let limit_files = |bytes| {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        let pid = Pid::from_raw(sandbox.server_pid());
        prlimit(pid, Resource::Fsize, limit).unwrap()
    };
    // As a full disk: a line of the audit trail waits for it, and must not be lost.
    let before = limit_files(Some(1));
    sandbox.refused(&["start", "web"], "already_running", 1);
    // Nor can the log be written.
    let message = sandbox.refused(&["upgrade"], "internal", 1);
    assert!(
        message.contains("the writing of the audit trail did not come to an end"),
        "{message}"
    );
    limit_files(before.current);
    wire.send("and\":{\"op\":\"check\"}}\n");
    assert!(wire.answer().1["ok"].is_object());
    sandbox.write("other.yml", SLEEPER);
    wait_for("the watch, which goes on", PATIENCE, || {
        sandbox.row("other").is_some()
    });
    wait_for("an upgrade when all is well", PATIENCE, || {
        sandbox.client(&["upgrade"]).code == 0
    });
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn what_neither_program_could_take_up_again_is_not_let_go_of() {
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    let trail = sandbox.root().join("state/audit.jsonl");
    fs::rename(&trail, trail.with_extension("aside")).unwrap();
    fs::create_dir(&trail).unwrap();
    let message = refused(&sandbox);
    assert!(message.contains("it is not a regular file"), "{message}");
    assert!(!sandbox.server_log().contains("the server replaces itself"));
    // The server puts it out of the way, and begins another.
    wait_for("an upgrade when all is well", PATIENCE, || {
        sandbox.client(&["upgrade"]).code == 0
    });
    sandbox.done(&["stop", "web"]);
}

#[test]
fn however_few_descriptors_are_left_the_server_goes_on() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.done(&["start", "web"]);
    let limit_files = |count| {
        let limit = Rlimit {
            current: count,
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let pid = Pid::from_raw(sandbox.server_pid());
        prlimit(pid, Resource::Nofile, limit).unwrap()
    };
    let said = || sandbox.server_log().matches("no upgrade").count() + upgrades(&sandbox);
    for left in 0..24 {
        let open = fs::read_dir(format!("/proc/{}/fd", sandbox.server_pid())).unwrap();
        let before = limit_files(Some(open.count() as u64 + left));
        let told = said();
        sandbox.signal_server(Signal::USR2);
        wait_for("what came of it", PATIENCE, || said() > told);
        limit_files(before.current);
        assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"], "{left}");
    }
    assert!(sandbox.server_log().contains("no upgrade"));
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn starts_are_as_cheap_after_an_upgrade_with_many_connections_as_before() {
    const CONNECTIONS: u64 = 200;
    let sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    // A start copies all descriptors up to the last of those that it needs, which are `/dev/null`.
    let last = || {
        let folder = format!("/proc/{}/fd", sandbox.server_pid());
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let null = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "/dev/null")
        };
        let numbers = entries.filter(null);
        let numbers = numbers.map(|entry| entry.file_name().to_string_lossy().parse::<u64>());
        numbers.map(Result::unwrap).max().unwrap()
    };
    let before = last();
    let wires: Vec<Wire> = (0..CONNECTIONS).map(|_| sandbox.wire()).collect();
    sandbox.done(&["upgrade"]);
    assert!(
        last() < before + CONNECTIONS / 2,
        "{} and before {before}",
        last()
    );
    drop(wires);
    sandbox.done(&["start", "web"]);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn no_upgrade_while_the_server_ends() {
    let mut sandbox = server("mode: quiet\non_exit: stop\n");
    sandbox.write("web.yml", &sandbox.slow_to_stop("gate"));
    sandbox.done(&["start", "web"]);
    sandbox.wait_output("web", "up");
    sandbox.signal_server(Signal::TERM);
    sandbox.wait_state("web", "stopping");
    sandbox.refused(&["upgrade"], "shutting_down", 1);
    sandbox.signal_server(Signal::USR2);
    wait_for("the refusal", PATIENCE, || {
        sandbox
            .server_log()
            .contains("the server ends and is not upgraded")
    });
    sandbox.open_gate("gate");
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(upgrades(&sandbox), 0);
}

#[test]
fn children_get_after_an_upgrade_what_they_got_before() {
    let sandbox = server("mode: quiet");
    let text = "env | grep -v ^SUPERVISOR_RS_RUN= | sort; ulimit -n; ulimit -Hn; \
                grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd | wc -l; echo end";
    sandbox.write("look.yml", &script(text));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let out = sandbox.log_dir().join("look.out");
        let _may_be_missing = fs::remove_file(&out);
        sandbox.done(&["start", "look"]);
        sandbox.wait_output("look", "end");
        sandbox.wait_state("look", "exited");
        seen.push(fs::read_to_string(&out).unwrap());
        sandbox.done(&["upgrade"]);
    }
    assert_eq!(seen[0], seen[1]);
    assert!(!seen[0].contains("SUPERVISOR_RS_TAKEOVER"));
}

#[test]
fn a_restart_that_is_due_and_children_of_a_server_that_died_go_on() {
    let mut sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.done(&["start", "web"]);
    sandbox.restart_server();
    let failing = format!(
        "{}restart:\n  when: always\n  delay: 1h\n",
        script("exit 3")
    );
    sandbox.write("failing.yml", &failing);
    sandbox.done(&["start", "failing"]);
    let due = sandbox.wait_state("failing", "backoff")["next"].clone();
    assert!(due["at"].is_string(), "{due}");
    sandbox.done(&["upgrade"]);
    assert_eq!(
        sandbox.row("failing").unwrap()["next"]["action"],
        due["action"]
    );
    assert_eq!(sandbox.row("failing").unwrap()["state"], "backoff");
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    // And one that dies after an upgrade leaves as much behind as one that never had any.
    sandbox.restart_server();
    assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
    assert!(!lives(pid_of(&web)));
    sandbox.done(&["stop", "failing"]);
}

#[test]
fn a_kill_at_any_instant_of_an_upgrade_loses_nothing() {
    const KILLS: u32 = 12;
    let mut sandbox = server("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let web = sandbox.done(&["start", "web"]);
    for turn in 0..KILLS {
        sandbox.signal_server(Signal::USR2);
        let said = ["an upgrade begins", "the server replaces itself"];
        let count = |text: &str| sandbox.server_log().matches(text).count();
        let (what, before) = (said[turn as usize % 2], count(said[turn as usize % 2]));
        let reached = || count(what) > before.saturating_sub(1);
        wait_for(what, PATIENCE, reached);
        // Somewhere on the way from there.
        thread::sleep(std::time::Duration::from_millis(u64::from(
            turn * turn % 23,
        )));
        sandbox.restart_server();
        assert_eq!(sandbox.row("web").unwrap()["pid"], web["pid"]);
        assert_eq!(sandbox.processes().len(), 1);
    }
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
}
