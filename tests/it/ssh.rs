//! Servers reached through a real sshd: `ssh://[user@]host[:ssh-port][/[addr:]port]`.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use supervisor_rs::clock;

use crate::{
    hosts::{hosts, objects},
    network::is_root,
    sandbox::{Output, PATIENCE, SLEEPER, Sandbox, dead_address, pid_of, run, skip, wait_for},
    signing::Which,
    sshd::{Identity, Sshd},
};

/// What may go by until a refusal that asks nobody: logging in takes a moment.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A server that knows `web`, which only a command starts.
fn server(settings: &str) -> Sandbox {
    let sandbox = Sandbox::start(settings);
    knowing_web(sandbox)
}

fn knowing_web(sandbox: Sandbox) -> Sandbox {
    sandbox.write("web.yml", SLEEPER);
    wait_for("`web` known", PATIENCE, || {
        sandbox.server_log().contains("child=web")
    });
    sandbox
}

/// What one host answered.
fn object(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("no object: {output:?}"))
}

/// What is told of a host that cannot be reached: code and exit code are checked.
fn unreachable(output: &Output) -> String {
    assert_eq!((output.code, output.stdout.as_str()), (7, ""), "{output:?}");
    let words = output.stderr.strip_prefix("error[unreachable]: ");
    words.unwrap_or_else(|| panic!("{output:?}")).to_owned()
}

#[test]
fn a_server_is_commanded_through_ssh() {
    let sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let host = sshd.host(&sandbox);
    let started = sshd.client(&sandbox, &["start", "web", "on", &host]);
    assert_eq!(
        (started.code, started.stderr.as_str()),
        (0, ""),
        "{started:?}"
    );
    let pid = pid_of(&sandbox.row("web").unwrap());
    let words = format!("`web` started: run 1, pid {pid}\n");
    assert_eq!(started.stdout, words);
    let check = sshd.client(&sandbox, &["check", "--json", "on", &host]);
    let answer = object(&check);
    assert_eq!(
        (&answer["host"], check.code),
        (&Value::from(host.as_str()), 0)
    );
    assert_eq!(answer["children"][0]["pid"], pid);
    // Its refusals and their exit codes come through, too.
    let again = sshd.client(&sandbox, &["start", "web", "on", &host]);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(
        again.stderr.starts_with("error[already_running]: "),
        "{again:?}"
    );
    assert_eq!(sshd.client(&sandbox, &["check", "no", "on", &host]).code, 5);
    // `~/.ssh/config` says what the command line does not.
    let named = format!("ssh://web1/{}", sandbox.address().port());
    let stopped = sshd.client(&sandbox, &["stop", "web", "on", &named]);
    assert_eq!(
        (stopped.code, stopped.stderr.as_str()),
        (0, ""),
        "{stopped:?}"
    );
    assert_eq!(sandbox.row("web").unwrap()["hold"], true);
}

#[test]
fn what_ssh_is_called_with_is_this() {
    let sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let port = sandbox.address().port().to_string();
    let host = sshd.host(&sandbox);
    assert_eq!(sshd.client(&sandbox, &["check", "on", &host]).code, 0);
    let named = format!("ssh://web1/127.0.0.1:{port}");
    assert_eq!(sshd.client(&sandbox, &["check", "on", &named]).code, 0);
    let calls = sshd.calls();
    assert_eq!(calls.len(), 2);
    let ends = [
        (&calls[0], format!("localhost:{port}"), "127.0.0.1"),
        (&calls[1], format!("127.0.0.1:{port}"), "web1"),
    ];
    for (call, place, name) in ends {
        assert!(
            call.ends_with(&["-W".into(), place, "--".into(), name.into()]),
            "{call:?}"
        );
        // Nobody sits at a terminal here, so it must not ask.
        let batch = ["-o".to_owned(), "BatchMode=yes".to_owned()];
        assert!(call.windows(2).any(|pair| pair == batch), "{call:?}");
    }
    let has = |call: &[String], word: &str| call.iter().any(|argument| argument == word);
    assert!(has(&calls[0], "-p") && has(&calls[0], "-l"));
    assert!(!has(&calls[1], "-p") && !has(&calls[1], "-l"));
}

#[test]
fn signed_commands_go_through_ssh_like_any_other() {
    let sandbox = knowing_web(Sandbox::signed(""));
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let (host, key) = (
        sshd.host(&sandbox),
        sandbox.private_key("deploy", Which::Deploy),
    );
    let unsigned = sshd.client(&sandbox, &["start", "web", "on", &host]);
    assert_eq!(
        (unsigned.code, unsigned.stdout.as_str()),
        (4, ""),
        "{unsigned:?}"
    );
    assert!(unsigned.stderr.contains("with KEY.pem"), "{unsigned:?}");
    let wrong = sandbox.private_key("other", Which::Other);
    let refused = sshd.client(&sandbox, &["start", "web", "on", &host, "with", &wrong]);
    assert_eq!(
        (refused.code, refused.stdout.as_str()),
        (4, ""),
        "{refused:?}"
    );
    let line = ["start", "web", "--json", "on", &host, "with", &key];
    let signed = sshd.client(&sandbox, &line);
    assert_eq!(
        (signed.code, &object(&signed)["run"]),
        (0, &1.into()),
        "{signed:?}"
    );
    // The server is known by what it is called from here, whoever logs in.
    let (_, login) = host.split_once('@').unwrap();
    let place = login.replace('/', "/localhost:");
    let state = sandbox
        .root()
        .join(".local/state/supervisor-rs/known_servers");
    let known = std::fs::read_to_string(state).unwrap();
    let line = format!("ssh://{place} {}", sandbox.id());
    assert!(known.lines().any(|known| known == line), "{line}: {known}");
}

#[test]
fn a_server_that_is_another_than_before_is_sent_nothing_through_ssh_either() {
    let sandbox = knowing_web(Sandbox::signed(""));
    let other = knowing_web(Sandbox::signed(""));
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let key = sandbox.private_key("deploy", Which::Deploy);
    let host = sshd.host(&sandbox);
    let known = sshd.client(&sandbox, &["check", "on", &host, "with", &key]);
    assert_eq!(known.code, 0, "{known:?}");
    let state = sandbox
        .root()
        .join(".local/state/supervisor-rs/known_servers");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace(sandbox.id(), other.id())).unwrap();
    let refused = sshd.client(
        &sandbox,
        &["start", "web", "--json", "on", &host, "with", &key],
    );
    let answer = object(&refused);
    assert_eq!(
        (refused.code, &answer["error"]["code"]),
        (4, &"server_changed".into())
    );
    assert_eq!(sshd.client(&sandbox, &["--forget", &host]).code, 0);
    let line = ["start", "web", "--json", "on", &host, "with", &key];
    assert_eq!(object(&sshd.client(&sandbox, &line))["run"], 1);
}

#[test]
fn several_hosts_are_asked_through_ssh_at_once_and_answer_in_order() {
    let servers = [server(""), server(""), server("")];
    let [one, two, three] = &servers;
    let Some(sshd) = Sshd::start(one, "") else {
        return;
    };
    let [a, b, c] = [one, two, three].map(|sandbox| sshd.host(sandbox));
    let tcp = two.address().to_string();
    let (_kept, dead) = dead_address();
    let (dead, port) = (dead.to_string(), dead.port().to_string());
    let nobody = sshd.host_with("web", &port).replace("web@", "");
    let order = [&c, &tcp, &a, &dead, &nobody, &b].map(String::as_str);
    let output = sshd.client(one, &["trystart", "web", "--json", "on", &order.join(",")]);
    assert_eq!(hosts(&output), order);
    assert_eq!((output.code, output.stderr.as_str()), (7, ""), "{output:?}");
    let done = objects(&output)
        .into_iter()
        .map(|object| object["ok"] == true);
    let expected = [true, true, true, false, false, true];
    assert_eq!(done.collect::<Vec<_>>(), expected);
    for (sandbox, run) in servers.iter().zip([1, 2, 1]) {
        assert_eq!(sandbox.row("web").unwrap()["run"], run);
    }
}

#[test]
fn many_hosts_at_once_through_ssh_leave_nothing_behind() {
    const HOSTS: usize = 8;
    let sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let port = sandbox.address().port();
    // Each is another host to the client.
    let host = |number| format!("ssh://{}/127.0.0.{number}:{port}", sshd.login());
    let line: Vec<String> = (1..=HOSTS).map(host).collect();
    let output = sshd.client(&sandbox, &["check", "--json", "on", &line.join(",")]);
    assert_eq!(hosts(&output), line);
    // Only 127.0.0.1 is listened on.
    let done = objects(&output)
        .iter()
        .filter(|object| object["ok"] == true)
        .count();
    assert_eq!((output.code, done), (7, 1), "{output:?}");
}

#[test]
fn the_servers_address_beyond_ssh_may_be_given() {
    let mut sandbox = Sandbox::new("listener_addr: 127.0.0.2");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    sandbox.begin_server();
    let port = sandbox.address().port();
    let host = format!("ssh://{}/127.0.0.2:{port}", sshd.login());
    wait_for("the server", PATIENCE, || {
        sshd.client(&sandbox, &["check", "on", &host]).code == 0
    });
    // Where nothing is said, it is that host's `localhost`.
    let local = sshd.client(&sandbox, &["check", "on", &sshd.host(&sandbox)]);
    let words = unreachable(&local);
    assert!(words.contains("Connection refused"), "{words}");
    let killed = sshd.client(&sandbox, &["kill", "on", &host]);
    assert_eq!((killed.code, sandbox.wait_server()), (0, 0), "{killed:?}");
    if TcpListener::bind(("::1", 0)).is_err() {
        return skip("this machine has no IPv6");
    }
    let mut six = Sandbox::new("listener_addr: '::1'");
    six.begin_server();
    let port = six.address().port();
    let host = format!("ssh://{}/[::1]:{port}", sshd.login());
    wait_for(&host, PATIENCE, || {
        sshd.client(&sandbox, &["check", "on", &host]).code == 0
    });
    assert_eq!(sshd.client(&sandbox, &["kill", "on", &host]).code, 0);
    assert_eq!(six.wait_server(), 0);
}

// What goes wrong

#[test]
fn who_may_not_log_in_is_told_so_in_sshs_words() {
    let sandbox = server("");
    let Some(mut sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    for identity in [Identity::Wrong, Identity::Locked] {
        sshd.identify(identity);
        let began = clock::mono();
        let output = sshd.client(&sandbox, &["start", "web", "on", &sshd.host(&sandbox)]);
        assert!(clock::mono() - began < AT_ONCE, "{output:?}");
        let words = unreachable(&output);
        assert!(words.contains("Permission denied (publickey)"), "{words}");
        assert!(words.contains("hint: "), "{words}");
    }
    sshd.identify(Identity::File);
    let output = sshd.client(&sandbox, &["start", "web", "on", &sshd.host(&sandbox)]);
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn a_key_that_only_the_agent_has_is_used() {
    let sandbox = server("");
    let Some(mut sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    sshd.identify(Identity::Agent);
    let output = sshd.client(&sandbox, &["start", "web", "on", &sshd.host(&sandbox)]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
}

#[test]
fn a_host_that_ssh_does_not_know_is_refused_at_once_and_unasked() {
    let sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let ask = || {
        let began = clock::mono();
        let output = sshd.client(&sandbox, &["start", "web", "on", &sshd.host(&sandbox)]);
        assert!(clock::mono() - began < AT_ONCE, "{output:?}");
        unreachable(&output)
    };
    sshd.forget();
    let words = ask();
    assert!(words.contains("Host key verification failed"), "{words}");
    sshd.know_wrongly();
    let words = ask();
    assert!(words.contains("Host key verification failed"), "{words}");
    assert_eq!(sandbox.row("web").unwrap()["run"], Value::Null);
    sshd.know();
    assert_eq!(
        sshd.client(&sandbox, &["check", "on", &sshd.host(&sandbox)])
            .code,
        0
    );
}

#[test]
fn an_sshd_that_forwards_nothing_is_told_of() {
    let sandbox = server("");
    for settings in ["AllowTcpForwarding no", "PermitOpen 127.0.0.1:9"] {
        let Some(sshd) = Sshd::start(&sandbox, settings) else {
            return;
        };
        let output = sshd.client(&sandbox, &["check", "on", &sshd.host(&sandbox)]);
        let words = unreachable(&output);
        assert!(words.contains("administratively prohibited"), "{words}");
        drop(sshd);
        std::fs::remove_dir_all(sandbox.root().join("ssh")).unwrap();
    }
}

#[test]
fn a_server_that_does_not_run_beyond_ssh_is_told_of() {
    let sandbox = Sandbox::new("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let output = sshd.client(&sandbox, &["check", "on", &sshd.host(&sandbox)]);
    let words = unreachable(&output);
    assert!(words.contains("Connection refused"), "{words}");
    // Nor does anybody else who listens there pass for one.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let stranger = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        // Until the other side is gone.
        let _ = stream.read(&mut [0; 64]);
    });
    let host = format!("ssh://{}/127.0.0.1:{port}", sshd.login());
    let words = unreachable(&sshd.client(&sandbox, &["check", "on", &host]));
    assert!(words.contains("is no supervisor-rs-server"), "{words}");
    stranger.join().unwrap();
}

#[test]
fn an_sshd_that_does_not_run_is_told_of_in_sshs_words() {
    let sandbox = Sandbox::new("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let (_kept, dead) = dead_address();
    let host = format!(
        "ssh://127.0.0.1:{}/{}",
        dead.port(),
        sandbox.address().port()
    );
    let words = unreachable(&sshd.client(&sandbox, &["check", "on", &host]));
    assert!(words.contains("Connection refused"), "{words}");
    let nowhere = sshd.client(&sandbox, &["check", "on", "ssh://nowhere.invalid"]);
    let words = unreachable(&nowhere);
    assert!(words.contains("nowhere.invalid"), "{words}");
}

#[test]
fn nothing_in_a_host_becomes_an_option_of_ssh() {
    let sandbox = Sandbox::new("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let proof = sandbox.root().join("proof");
    let command = format!("-oProxyCommand=touch$IFS{}", proof.display());
    for host in [
        format!("ssh://{command}"),
        format!("ssh://{command}/1"),
        format!("ssh://{command}@127.0.0.1"),
        format!("ssh://root@{command}"),
        "ssh://-lroot".to_owned(),
        "ssh://-V".to_owned(),
        "ssh://127.0.0.1/-V:1".to_owned(),
        "ssh://127.0.0.1:-1".to_owned(),
        "ssh://root@-V@127.0.0.1".to_owned(),
        "ssh://127.0.0.1 -V".to_owned(),
        "ssh://$(id)".to_owned(),
        "ssh://a;id".to_owned(),
        "ssh://a%00b".to_owned(),
        "-V".to_owned(),
        "127.0.0.1,-V".to_owned(),
    ] {
        let output = sshd.client(&sandbox, &["check", &format!("--on={host}")]);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:?}");
    }
    assert_eq!(
        sshd.calls(),
        Vec::<Vec<String>>::new(),
        "ssh was never called"
    );
    assert!(!proof.exists());
}

#[test]
fn a_missing_ssh_is_told_and_how_to_get_it() {
    let sandbox = server("");
    let empty = sandbox.root().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let live = sandbox.address().to_string();
    let line = format!("ssh://127.0.0.1/1,{live}");
    let mut command = sandbox.client_command(&["check", "--json", "on", &line]);
    command.env("PATH", &empty);
    let output = run(command);
    // The others are asked all the same.
    assert_eq!(hosts(&output), ["ssh://127.0.0.1/1", &live]);
    assert_eq!((output.code, output.stderr.as_str()), (7, ""), "{output:?}");
    let answers = objects(&output);
    assert_eq!(answers[0]["error"]["code"], "unreachable");
    let message = answers[0]["error"]["message"].as_str().unwrap();
    for part in ["`ssh` is not installed", "`PATH`", "hint: "] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(answers[1]["ok"], true);
    // One that cannot be executed is as good as none.
    let file = empty.join("ssh");
    sandbox.replace(&file, "#!/bin/sh\n");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = sandbox.client_command(&["check", "on", "ssh://127.0.0.1/1"]);
    command.env("PATH", &empty);
    let words = unreachable(&run(command));
    assert!(words.contains("`ssh`"), "{words}");
}

// Who is root there, and who is not

#[test]
fn who_logs_in_as_another_user_commands_as_that_user() {
    if !is_root() {
        return skip("only root's sshd lets others in");
    }
    let mut sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    let host = sshd.host_with("daemon", &sandbox.address().port().to_string());
    let output = sshd.client(&sandbox, &["start", "web", "on", &host]);
    assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{output:?}");
    assert!(
        output.stderr.contains("error[protected_mode]: "),
        "{output:?}"
    );
    assert!(output.stderr.contains("daemon"), "{output:?}");
    sandbox.configure("allow_local_users: [daemon]");
    wait_for("`daemon` let in", PATIENCE, || {
        sshd.client(&sandbox, &["check", "on", &host]).code == 0
    });
    assert_eq!(
        sshd.client(&sandbox, &["start", "web", "on", &host]).code,
        0
    );
}

// Nothing is left behind

/// A client that waits for its answer through ssh: `web` stops when `gate` is opened.
fn waiting(sandbox: &Sandbox, sshd: &Sshd) -> Child {
    let mut command = sshd.command(sandbox, &["stop", "web", "on", &sshd.host(sandbox)]);
    let client = command
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sandbox.wait_state("web", "stopping");
    assert!(sshd.left().len() >= 2, "the client and its ssh");
    client
}

fn slow() -> (Sandbox, Option<Sshd>) {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", &sandbox.slow_to_stop("gate"));
    sandbox.wait_state("web", "running");
    crate::sandbox::wait_lines(&sandbox.log_dir().join("web.out"), 1);
    let sshd = Sshd::start(&sandbox, "");
    (sandbox, sshd)
}

#[test]
fn an_ssh_whose_client_is_killed_ends_by_itself() {
    let (sandbox, Some(sshd)) = slow() else {
        return;
    };
    let mut client = waiting(&sandbox, &sshd);
    client.kill().unwrap();
    client.wait().unwrap();
    // The command is carried out, and with its answer the connection ends.
    sandbox.open_gate("gate");
    sandbox.wait_state("web", "stopped");
    wait_for("ssh's end", PATIENCE, || sshd.left().is_empty());
}

#[test]
fn a_client_that_is_interrupted_takes_its_ssh_along() {
    let (sandbox, Some(sshd)) = slow() else {
        return;
    };
    let mut client = waiting(&sandbox, &sshd);
    let group = Pid::from_child(&client);
    // As a terminal does: to all that stand there.
    kill_process_group(group, Signal::INT).unwrap();
    client.wait().unwrap();
    wait_for("ssh's end", PATIENCE, || sshd.left().is_empty());
    sandbox.open_gate("gate");
    sandbox.wait_state("web", "stopped");
}

#[test]
fn an_ssh_that_ends_amid_the_answer_is_told_of() {
    let (sandbox, Some(sshd)) = slow() else {
        return;
    };
    let command = sshd.command(&sandbox, &["stop", "web", "on", &sshd.host(&sandbox)]);
    let client = thread::scope(|scope| {
        let client = scope.spawn(move || run(command));
        sandbox.wait_state("web", "stopping");
        let ssh = sshd
            .left()
            .into_iter()
            .find(|process| process.command.contains(" -W "));
        let pid = Pid::from_raw(ssh.expect("an ssh").pid).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        client.join().unwrap()
    });
    let words = unreachable(&client);
    assert!(
        words.contains("the command may have been carried out"),
        "{words}"
    );
    sandbox.open_gate("gate");
    sandbox.wait_state("web", "stopped");
    assert_eq!(sshd.left(), []);
}

// At a terminal

#[test]
fn at_a_terminal_ssh_may_ask_whether_it_is_to_trust_a_host() {
    let sandbox = server("");
    let Some(sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    sshd.forget();
    let client = sshd.command(&sandbox, &["start", "web", "on", &sshd.host(&sandbox)]);
    let mut line = vec![client.get_program().to_str().unwrap().to_owned()];
    line.extend(
        client
            .get_args()
            .map(|word| word.to_str().unwrap().to_owned()),
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line.join(" "), "/dev/null"]);
    for (name, value) in client.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return skip("`script` is not installed, so there is no terminal");
    };
    let mut said = Vec::new();
    let mut terminal = child.stdout.take().unwrap();
    while !String::from_utf8_lossy(&said).contains("continue connecting") {
        let mut chunk = [0; 256];
        let count = terminal.read(&mut chunk).unwrap();
        said.extend_from_slice(&chunk[..count]);
        assert!(count > 0, "{:?}", String::from_utf8_lossy(&said));
    }
    child.stdin.as_mut().unwrap().write_all(b"yes\n").unwrap();
    terminal.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("`web` started: run 1"), "{said}");
    assert_eq!(sshd.left(), []);
}
