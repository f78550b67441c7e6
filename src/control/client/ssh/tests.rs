//! The client behind an ssh that is played (`fixtures/cli/fake-ssh`): each host is a play.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
};

use rustix::process::test_kill_process;

use super::{
    super::{Manner, tests::ask_in_order},
    *,
};
use crate::{
    command::{CheckScope, Command as Asked},
    control::{host::Host, protocol::Fields},
};

const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cli/fake-ssh");

const PATIENCE: Duration = Duration::from_secs(20);

fn waits() -> Waits {
    Waits {
        ssh_hello: PATIENCE,
        ssh_prompt: PATIENCE,
        look: PATIENCE,
        ..Waits::default()
    }
}

fn manner(waits: Waits) -> Manner {
    Manner {
        waits,
        ssh: Ssh {
            program: FAKE.into(),
            prompts: Prompts::Never,
        },
        ..Manner::default()
    }
}

fn ask_in(manner: Manner, hosts: &[&str]) -> Vec<Result<Fields, Refusal>> {
    let hosts: Vec<Host> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    let check = Asked::Check {
        scope: CheckScope::Live,
    };
    let mut outcomes = Vec::new();
    ask_in_order(&hosts, &check, manner, |answer, _| {
        outcomes.push(answer.outcome);
    });
    outcomes
}

/// The code and the message with which a host is not reached.
fn refused_in(manner: Manner, host: &str) -> (String, String) {
    match ask_in(manner, &[host]).remove(0) {
        Ok(fields) => panic!("{host}: {}", fields.object()),
        Err(refusal) => (refusal.code, refusal.message),
    }
}

fn refused(host: &str) -> (String, String) {
    refused_in(manner(waits()), host)
}

fn ssh_host(text: &str) -> SshHost {
    match text.parse() {
        Ok(Host::Ssh(host)) => host,
        other => panic!("{text}: {other:?}"),
    }
}

/// A server for some connections, one after the other.
fn serve(connections: usize) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = r#"{"hello":{"protocol":1,"server":"s","id":"i","version":"1.0.0","encrypt":false,"nonce":"n","time":1}}"#;
            writeln!(stream, "{hello}").unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            assert_eq!(line, "{\"id\":1,\"command\":{\"op\":\"check\"}}\n");
            writeln!(stream, "{{\"id\":1,\"ok\":{{\"op\":\"check\"}}}}").unwrap();
        }
    });
    (port, thread)
}

#[test]
fn a_command_and_its_answer_pass_through_ssh() {
    let (port, thread) = serve(1);
    let outcomes = ask_in(manner(waits()), &[&format!("ssh://forwards/{port}")]);
    assert_eq!(outcomes[0].as_ref().unwrap().object(), r#"{"op":"check"}"#);
    thread.join().unwrap();
}

#[test]
fn several_hosts_are_reached_at_once_each_through_its_own_ssh() {
    let (port, thread) = serve(3);
    let hosts = [22, 23, 24].map(|ssh| format!("ssh://me@forwards:{ssh}/{port}"));
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let outcomes = ask_in(manner(waits()), &hosts);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(outcomes.len(), 3);
    thread.join().unwrap();
}

#[test]
fn ssh_is_run_with_its_options_before_and_the_host_after_the_dashes() {
    const ALWAYS: &str = "-o ConnectTimeout=10 -o ControlMaster=no -o ServerAliveInterval=15 \
                          -o ServerAliveCountMax=3";
    const NEVER: &str = "-o BatchMode=yes";
    for (host, prompts, rest) in [
        (
            "ssh://web1",
            Prompts::Never,
            "-o BatchMode=yes -W localhost:33889 -- web1",
        ),
        ("ssh://web1", Prompts::Allowed, "-W localhost:33889 -- web1"),
        (
            "ssh://me@web1:2222/10.0.0.5:4000",
            Prompts::Allowed,
            "-p 2222 -l me -W 10.0.0.5:4000 -- web1",
        ),
        (
            "ssh://[::1]:22/[fe80::1%eth0]:7",
            Prompts::Allowed,
            "-p 22 -W [fe80::1%eth0]:7 -- ::1",
        ),
    ] {
        let line = arguments(&ssh_host(host), prompts, waits()).join(" ");
        assert_eq!(line, format!("{ALWAYS} {rest}"), "{host}");
        assert_eq!(line.contains(NEVER), prompts == Prompts::Never);
    }
    let (_, message) = refused("ssh://me@arguments:2222/10.0.0.5:4000");
    let words = format!("{ALWAYS} {NEVER} -p 2222 -l me -W 10.0.0.5:4000 -- arguments");
    assert!(message.contains(&words), "{message}");
}

#[test]
fn no_host_no_user_and_no_address_can_be_an_option() {
    for text in [
        "ssh://-oProxyCommand=x",
        "ssh://-oProxyCommand=x/1",
        "ssh://-l@host",
        "ssh://me@-host",
        "ssh://host/-oProxyCommand=x",
        "ssh://host:-1",
        "ssh://host -oProxyCommand=x",
        "ssh://a@b -W x@host",
        "ssh://$(x)",
        "ssh://host/`x`",
        "ssh://host\n",
    ] {
        assert!(text.parse::<Host>().is_err(), "{text:?}");
    }
}

#[test]
fn at_a_terminal_ssh_may_ask_for_one_host_and_not_for_several() {
    let may = || Manner {
        ssh: Ssh {
            program: FAKE.into(),
            prompts: Prompts::Allowed,
        },
        ..manner(waits())
    };
    let (_, alone) = refused_in(may(), "ssh://arguments");
    assert!(!alone.contains("BatchMode"), "{alone}");
    for outcome in ask_in(may(), &["ssh://arguments", "ssh://arguments:2"]) {
        let message = outcome.unwrap_err().message;
        assert!(message.contains("-o BatchMode=yes"), "{message}");
    }
    let asked = Ssh {
        prompts: Prompts::Allowed,
        ..Ssh::default()
    };
    let waits = Waits::default();
    assert_eq!(asked.hello_wait(waits), waits.ssh_prompt);
    assert_eq!(Ssh::default().hello_wait(waits), waits.ssh_hello);
}

#[test]
fn a_missing_ssh_is_told_with_how_to_get_it() {
    let without = Manner {
        ssh: Ssh {
            program: "/nonexistent/ssh".into(),
            prompts: Prompts::Never,
        },
        ..manner(waits())
    };
    let (code, message) = refused_in(without, "ssh://web1");
    assert_eq!(code, "unreachable");
    let words = "cannot reach `ssh://web1`: `/nonexistent/ssh` is not installed, or not in `PATH`\n\
                 hint: install the OpenSSH client (";
    assert!(message.starts_with(words), "{message}");
}

#[test]
fn an_ssh_that_cannot_be_run_is_told() {
    let folder = Manner {
        ssh: Ssh {
            program: "/".into(),
            prompts: Prompts::Never,
        },
        ..manner(waits())
    };
    let (code, message) = refused_in(folder, "ssh://web1");
    assert_eq!(code, "unreachable");
    assert!(message.starts_with("cannot run `/`: "), "{message}");
}

#[test]
fn what_ssh_says_when_it_fails_is_in_the_message_and_drives_no_terminal() {
    let (code, message) = refused("ssh://me@refuses:2222/4000");
    assert_eq!(code, "unreachable");
    assert_eq!(
        message,
        "cannot reach `ssh://me@refuses:2222/4000` through ssh: \
         channel 0: open failed: connect failed: Connection refused\n\
         ]0;ownedstdio forwarding failed\n\
         hint: does `ssh -p 2222 -l me refuses true` get through by hand, and does \
         supervisor-rs-server run there, on that port?"
    );
    let (code, message) = refused("ssh://mute");
    assert_eq!(code, "unreachable");
    assert!(
        message.contains("ssh ended with exit status: 255 and said nothing"),
        "{message}"
    );
    let (_, message) = refused("ssh://signal");
    assert!(message.contains("ssh ended with signal: 9"), "{message}");
}

#[test]
fn ssh_is_never_kept_waiting_for_its_words_to_be_read_and_they_are_bounded() {
    let (_, message) = refused("ssh://floods");
    assert!(message.contains("\nthe last word\n"), "{message}");
    assert!(message.len() < 2 * WORDS_BYTES_MAX, "{}", message.len());
}

#[test]
fn somebody_who_outlives_ssh_and_holds_its_standard_error_is_not_waited_for() {
    let began = clock::mono();
    let (_, message) = refused("ssh://daemon");
    let took = clock::mono() - began;
    kill_process(process(&message), Signal::KILL).unwrap();
    assert!(message.contains("through ssh: pid "), "{message}");
    assert!(took < PATIENCE, "{took:?}");
}

#[test]
fn a_server_that_hangs_up_behind_ssh_is_no_server() {
    let (code, message) = refused("ssh://gone");
    assert_eq!(code, "unreachable");
    assert!(message.contains("is no supervisor-rs-server"), "{message}");
}

#[test]
fn a_connection_that_ends_after_the_command_says_that_it_may_have_been_done() {
    let (code, message) = refused("ssh://greets");
    assert_eq!(code, "unreachable");
    assert_eq!(
        message,
        "no answer from `ssh://greets`: the connection was closed; ssh says: \
         {\"id\":1,\"command\":{\"op\":\"check\"}}\n\
         Connection to greets closed by remote host.\n\
         hint: the command may have been carried out, `check` tells"
    );
}

/// The process that a play told of.
fn process(message: &str) -> Pid {
    let number = message.split("pid ").nth(1).unwrap();
    let number = number.split_whitespace().next().unwrap();
    Pid::from_raw(number.parse().unwrap()).unwrap()
}

#[test]
fn an_ssh_that_hangs_is_a_timeout_and_leaves_no_process_behind() {
    let short = Waits {
        ssh_hello: Duration::from_secs(3),
        ..waits()
    };
    let began = clock::mono();
    let outcomes = ask_in(manner(short), &["ssh://obeys", "ssh://hangs"]);
    assert!(clock::mono() - began < PATIENCE);
    for (outcome, host) in outcomes.into_iter().zip(["ssh://obeys", "ssh://hangs"]) {
        let Refusal { code, message, .. } = outcome.unwrap_err();
        assert_eq!(code, "timeout");
        let words =
            format!("`{host}` does not greet through ssh: nothing within 3s; ssh says: pid ");
        assert!(message.starts_with(&words), "{message}");
        // Reaped before the answer was handed on: not even a zombie has the number.
        assert!(test_kill_process(process(&message)).is_err(), "{host}");
    }
}

#[test]
fn the_ssh_of_a_command_that_was_answered_is_gone_too() {
    let (port, thread) = serve(1);
    let host = ssh_host(&format!("ssh://forwards/{port}"));
    let mut tunnel = manner(waits()).ssh.connect(&host, waits()).unwrap();
    let pid = Pid::from_child(&tunnel.child);
    let stream = tunnel.stream().try_clone().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    (&stream)
        .write_all(b"{\"id\":1,\"command\":{\"op\":\"check\"}}\n")
        .unwrap();
    reader.read_line(&mut String::new()).unwrap();
    thread.join().unwrap();
    drop(tunnel);
    assert!(test_kill_process(pid).is_err());
}
