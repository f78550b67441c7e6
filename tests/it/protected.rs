//! Protected mode: with `encrypt: off`, exactly those may command whom DESIGN, section 3, names.
//!
//! Other hosts are network namespaces, other users are other numbers (`network`).

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::fs::chown},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    net::{AddressFamily, SocketType, bind, connect, socket, sockopt},
    process::Signal,
};
use serde_json::Value;

use crate::{
    network::{LINK, NEAR_V4, NEAR_V6, Network, STRANGERS, as_user, for_everybody, is_root},
    sandbox::{Output, PATIENCE, SLEEPER, Sandbox, Wire, run, skip, wait_for},
    signing::{ENCRYPT, Which, pair},
};

const START: &str = r#"{"op":"start","child":"web"}"#;
const TRYSTART: &str = r#"{"op":"trystart","child":"web"}"#;
const CHECK: &str = r#"{"op":"check"}"#;

/// A user whom nothing names.
const STRANGER: u32 = STRANGERS + 1;
/// A user whom a test's `allow_local_users` names.
const FRIEND: u32 = STRANGERS + 2;
/// A user who has a server of his own.
const OWNER: u32 = STRANGERS + 3;

/// A server in `quiet` mode that knows `web`, which only a command starts.
fn server(settings: &str) -> Sandbox {
    let sandbox = Sandbox::start(settings);
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    sandbox
}

/// Whether tests can be others; says so when they cannot.
fn can_be_others() -> bool {
    if !is_root() {
        skip("only root can be somebody else");
    }
    is_root()
}

/// What a command is answered over a connection of its own: `ok`, or an error's code.
fn asked(address: SocketAddr, command: &str) -> String {
    let mut wire = Wire::connect(address);
    wire.ask(1, command);
    verdict(&wire.answer().1)
}

fn verdict(answer: &Value) -> String {
    match answer["error"]["code"].as_str() {
        Some(code) => code.to_owned(),
        None => {
            assert!(answer["ok"].is_object(), "{answer}");
            "ok".to_owned()
        }
    }
}

/// What a refused command is told.
fn refusal(address: SocketAddr, command: &str) -> String {
    let mut wire = Wire::connect(address);
    wire.ask(1, command);
    let (_, answer) = wire.answer();
    assert_eq!(verdict(&answer), "protected_mode", "{answer}");
    answer["error"]["message"].as_str().unwrap().to_owned()
}

/// Every kind of command, in an order that shows whether one of them was carried out.
const EVERYTHING: [&str; 9] = [
    r#"{"op":"check"}"#,
    r#"{"op":"check","child":"web"}"#,
    r#"{"op":"info"}"#,
    START,
    TRYSTART,
    r#"{"op":"restart","child":"web"}"#,
    r#"{"op":"stop","child":"web"}"#,
    r#"{"op":"start","all":true}"#,
    r#"{"op":"kill","stop_children":true}"#,
];

/// The server is as it was when it had been given no command: `web` never ran.
fn assert_untouched(sandbox: &Sandbox) {
    let row = sandbox.row("web").expect("it is known");
    assert_eq!(
        (&row["state"], &row["run"]),
        (&"stopped".into(), &Value::Null)
    );
    assert_eq!(
        (&row["hold"], sandbox.processes()),
        (&Value::Bool(false), vec![])
    );
}

fn at(address: impl Into<IpAddr>, sandbox: &Sandbox) -> SocketAddr {
    SocketAddr::new(address.into(), sandbox.address().port())
}

/// All the ways to this host by its loopback addresses.
fn loopbacks(sandbox: &Sandbox) -> [SocketAddr; 4] {
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    [
        at(Ipv4Addr::LOCALHOST, sandbox),
        at(Ipv4Addr::new(127, 0, 0, 2), sandbox),
        at(Ipv6Addr::LOCALHOST, sandbox),
        at(mapped, sandbox),
    ]
}

#[test]
fn another_user_of_this_host_may_nothing_whichever_way_he_comes() {
    // Its own network has IPv6 for certain.
    let Some(network) = Network::alone() else {
        return;
    };
    network.run(|| {
        let sandbox = server("listener_addr: '::'");
        for address in loopbacks(&sandbox) {
            for command in EVERYTHING {
                let verdict = as_user(STRANGER, || asked(address, command));
                assert_eq!(verdict, "protected_mode", "{address}: {command}");
            }
        }
        assert_untouched(&sandbox);
        for address in loopbacks(&sandbox) {
            assert_eq!(asked(address, CHECK), "ok", "root at {address}");
        }
        assert_eq!(asked(sandbox.address(), START), "ok");
    });
}

#[test]
fn another_user_is_told_his_number_and_the_ways_out() {
    if !can_be_others() {
        return;
    }
    let sandbox = server("");
    let words = as_user(STRANGER, || refusal(sandbox.address(), START));
    for part in [
        &*STRANGER.to_string(),
        "`allow_local_users`",
        "`encrypt: on`",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(!words.contains("allow_unsigned_remote"), "{words}");
    // One who has a name is told it.
    let words = as_user(1, || refusal(sandbox.address(), START));
    assert!(words.contains("daemon"), "{words}");
    assert_untouched(&sandbox);
}

/// Runs the real client as somebody.
fn client_as(uid: u32, sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let client = for_everybody(env!("CARGO_BIN_EXE_supervisor-rs-client"), sandbox.root());
    let address = sandbox.address().to_string();
    let mut command = Command::new("setpriv");
    command
        .args(become_user(uid))
        .arg(client)
        .args(arguments)
        .args(["on", &address])
        .env("NO_COLOR", "1")
        .env_remove("SUPERVISOR_RS_ON")
        .env_remove("SUPERVISOR_RS_KEY")
        .stdin(Stdio::null());
    run(command)
}

/// `setpriv`'s arguments for being somebody in no further group.
fn become_user(uid: u32) -> [String; 3] {
    [
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".to_owned(),
    ]
}

#[test]
fn the_client_of_another_user_ends_with_4() {
    if !can_be_others() {
        return;
    }
    let sandbox = server("");
    let output = client_as(STRANGER, &sandbox, &["start", "web"]);
    assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{output:?}");
    let words = "error[protected_mode]: ";
    assert!(output.stderr.starts_with(words), "{output:?}");
    assert_untouched(&sandbox);
    assert_eq!(client_as(0, &sandbox, &["start", "web"]).code, 0);
}

/// Waits until a user's command is answered so: an edit of server.yml is noticed in a moment.
fn wait_verdict(uid: u32, address: SocketAddr, wanted: &str) {
    wait_for(&format!("{wanted} for {uid}"), PATIENCE, || {
        as_user(uid, || asked(address, CHECK)) == wanted
    });
}

#[test]
fn allow_local_users_lets_in_exactly_those_named_and_live() {
    if !can_be_others() {
        return;
    }
    let mut sandbox = server("");
    let address = sandbox.address();
    wait_verdict(FRIEND, address, "protected_mode");

    // By number.
    sandbox.configure(&format!("allow_local_users: [{FRIEND}]"));
    wait_verdict(FRIEND, address, "ok");
    assert_eq!(
        as_user(STRANGER, || asked(address, CHECK)),
        "protected_mode"
    );
    assert_eq!(as_user(1, || asked(address, CHECK)), "protected_mode");
    assert_eq!(asked(address, CHECK), "ok", "root always");
    let mut kept = as_user(FRIEND, || Wire::connect(address));
    kept.ask(1, START);
    assert_eq!(verdict(&kept.answer().1), "ok");

    // By name, and not the number any more; what is open already is no exception.
    sandbox.configure("allow_local_users: [daemon]");
    wait_verdict(1, address, "ok");
    assert_eq!(as_user(FRIEND, || asked(address, CHECK)), "protected_mode");
    kept.ask(2, r#"{"op":"stop","child":"web"}"#);
    assert_eq!(verdict(&kept.answer().1), "protected_mode");

    // Both, and then nobody.
    sandbox.configure(&format!("allow_local_users: [daemon, {FRIEND}]"));
    wait_verdict(FRIEND, address, "ok");
    assert_eq!(as_user(1, || asked(address, CHECK)), "ok");
    sandbox.configure("");
    wait_verdict(1, address, "protected_mode");
    assert_eq!(as_user(FRIEND, || asked(address, CHECK)), "protected_mode");
    assert_eq!(asked(address, CHECK), "ok", "root always");
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
}

#[test]
fn who_may_locally_may_not_from_elsewhere_and_the_other_way_round() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        let settings = format!("listener_addr: 0.0.0.0\nallow_local_users: [{FRIEND}]");
        let mut sandbox = server(&settings);
        let outer = at(NEAR_V4.parse::<IpAddr>().unwrap(), &sandbox);
        let from_afar = |uid| far.run(|| as_user(uid, || asked(outer, CHECK)));
        assert_eq!(as_user(FRIEND, || asked(outer, CHECK)), "ok");
        // Root of another host is nobody here.
        for uid in [FRIEND, 0] {
            assert_eq!(from_afar(uid), "protected_mode", "{uid}");
        }
        sandbox.configure("listener_addr: 0.0.0.0\nallow_unsigned_remote: true");
        wait_for("other hosts let in", PATIENCE, || {
            from_afar(STRANGER) == "ok"
        });
        // Whom this host knows is held to what it says of him.
        assert_eq!(as_user(FRIEND, || asked(outer, CHECK)), "protected_mode");
    });
}

#[test]
fn a_server_of_an_ordinary_user_obeys_him_and_root_alone() {
    if !can_be_others() {
        return;
    }
    let sandbox = Sandbox::new("");
    let program = for_everybody(env!("CARGO_BIN_EXE_supervisor-rs-server"), sandbox.root());
    chown(sandbox.root(), Some(OWNER), Some(OWNER)).unwrap();
    let program = program.display().to_string();
    // The sandbox's own program may stand where only root gets.
    let script = ["sh", "-c", "exec \"$0\" \"$2\"", &program];
    let user = become_user(OWNER);
    let mut line = vec!["setpriv"];
    line.extend(user.iter().map(String::as_str));
    line.extend(script);
    let mut sandbox = sandbox.within(&line);
    sandbox.start_server();
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "stopped");
    let address = sandbox.address();
    for uid in [STRANGER, FRIEND, 1] {
        assert_eq!(
            as_user(uid, || asked(address, START)),
            "protected_mode",
            "{uid}"
        );
    }
    assert_untouched(&sandbox);
    assert_eq!(as_user(OWNER, || asked(address, START)), "ok");
    assert_eq!(sandbox.row("web").unwrap()["run"], 1, "root may, too");
    let pid = crate::sandbox::pid_of(&sandbox.row("web").unwrap());
    let uids = crate::sandbox::status_of(pid, "Uid").unwrap();
    assert!(uids.starts_with(&OWNER.to_string()), "{uids}");
}

#[test]
fn another_host_is_refused_and_told_the_fields() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        let sandbox = server("listener_addr: '::'");
        for address in [NEAR_V4, NEAR_V6] {
            let address = at(address.parse::<IpAddr>().unwrap(), &sandbox);
            for command in EVERYTHING {
                let verdict = far.run(|| asked(address, command));
                assert_eq!(verdict, "protected_mode", "{address}: {command}");
            }
            let words = far.run(|| refusal(address, START));
            for part in ["`allow_unsigned_remote", "`encrypt: on`"] {
                assert!(words.contains(part), "{part}: {words}");
            }
            let host = address.to_string();
            let arguments = ["start", "web", "on", &host];
            let output = far.run(|| sandbox.client_as_given(&arguments));
            assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{output:?}");
        }
        assert_untouched(&sandbox);
        assert_eq!(asked(sandbox.address(), START), "ok");
    });
}

#[test]
fn allow_unsigned_remote_lets_other_hosts_in_and_out_again_live() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        const LISTEN: &str = "listener_addr: '::'";
        let mut sandbox = server(LISTEN);
        let address = at(NEAR_V4.parse::<IpAddr>().unwrap(), &sandbox);
        let from_afar = |command| far.run(|| asked(address, command));
        assert_eq!(from_afar(START), "protected_mode");
        sandbox.configure(&format!("{LISTEN}\nallow_unsigned_remote: true"));
        wait_for("other hosts let in", PATIENCE, || from_afar(CHECK) == "ok");
        let six = at(NEAR_V6.parse::<IpAddr>().unwrap(), &sandbox);
        assert_eq!(far.run(|| asked(six, START)), "ok");
        let mut kept = far.run(|| Wire::connect(address));
        sandbox.configure(LISTEN);
        wait_for("other hosts kept out", PATIENCE, || {
            from_afar(CHECK) == "protected_mode"
        });
        kept.ask(1, r#"{"op":"stop","child":"web"}"#);
        assert_eq!(verdict(&kept.answer().1), "protected_mode");
        assert_eq!(sandbox.row("web").unwrap()["state"], "running");
    });
}

#[test]
fn this_host_is_this_host_under_its_outer_addresses_too() {
    let Some((near, _far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        let sandbox = server("listener_addr: '::'");
        for address in [NEAR_V4, NEAR_V6] {
            let address = at(address.parse::<IpAddr>().unwrap(), &sandbox);
            assert_eq!(asked(address, CHECK), "ok", "{address}");
            let verdict = as_user(STRANGER, || asked(address, START));
            assert_eq!(verdict, "protected_mode", "{address}");
        }
        assert_untouched(&sandbox);
        assert_eq!(asked(sandbox.address(), START), "ok");
    });
}

#[test]
fn link_local_addresses_are_told_apart_like_any_other() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        let sandbox = server("listener_addr: '::'");
        let (own, index) = link_local();
        let (_, far_index) = far.run(link_local);
        let port = sandbox.address().port();
        let place = |index| SocketAddr::from(std::net::SocketAddrV6::new(own, port, 0, index));
        assert_eq!(asked(place(index), CHECK), "ok");
        let stranger = as_user(STRANGER, || asked(place(index), START));
        assert_eq!(stranger, "protected_mode");
        let verdict = far.run(|| asked(place(far_index), START));
        assert_eq!(verdict, "protected_mode");
        assert_untouched(&sandbox);
    });
}

/// The link-local address of this thread's network, once it may be used, and its link's number.
fn link_local() -> (Ipv6Addr, u32) {
    let mut found = None;
    wait_for("a link-local address", PATIENCE, || {
        let arguments = [
            "-6",
            "-o",
            "addr",
            "show",
            "dev",
            LINK,
            "scope",
            "link",
            "-tentative",
        ];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_ascii_whitespace();
        let index = words.next().and_then(|word| word.strip_suffix(':'));
        let address = text
            .split_ascii_whitespace()
            .find(|word| word.starts_with("fe80:"));
        found = index.zip(address).map(|(index, address)| {
            let (address, _) = address.split_once('/').expect("a prefix length");
            (address.parse().unwrap(), index.parse().unwrap())
        });
        found.is_some()
    });
    found.expect("waited for")
}

// Who signs

#[test]
fn a_signed_command_is_taken_from_whoever_sends_it_whatever_encrypt_says() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        for (settings, unsigned) in [
            (ENCRYPT, "unauthorized"),
            ("encrypt: off\npub_keys_path: [keys]\n", "protected_mode"),
        ] {
            let mut sandbox = Sandbox::new(&format!("listener_addr: '::'\n{settings}"));
            fs::create_dir(sandbox.key_dir()).unwrap();
            sandbox.admit("deploy", &pair(Which::Deploy).public);
            sandbox.write("web.yml", SLEEPER);
            sandbox.start_server();
            for (run, address) in [NEAR_V4, NEAR_V6].into_iter().enumerate() {
                let address = at(address.parse::<IpAddr>().unwrap(), &sandbox);
                let outside = || asked(address, START);
                assert_eq!(far.run(outside), unsigned, "{settings}: {address}");
                assert_eq!(
                    as_user(STRANGER, outside),
                    unsigned,
                    "{settings}: {address}"
                );
                let signed = |command: &str| Wire::connect(address).ask_signed(1, command);
                let from_afar = far.run(|| signed(TRYSTART));
                let run = 2 * run + 1;
                assert_eq!(from_afar["ok"]["run"], run, "{settings}: {from_afar}");
                let stranger = as_user(STRANGER, || signed(TRYSTART));
                assert_eq!(stranger["ok"]["run"], run + 1, "{settings}: {stranger}");
            }
        }
    });
}

#[test]
fn the_client_commands_another_host_by_its_key() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        let sandbox = Sandbox::signed("listener_addr: '::'");
        sandbox.write("web.yml", SLEEPER);
        let key = sandbox.private_key("deploy", Which::Deploy);
        for (run, address) in [NEAR_V4, NEAR_V6].into_iter().enumerate() {
            let host = at(address.parse::<IpAddr>().unwrap(), &sandbox).to_string();
            let unsigned = far.run(|| sandbox.client_as_given(&["start", "web", "on", &host]));
            assert_eq!((unsigned.code, unsigned.stdout.as_str()), (4, ""));
            let line = ["trystart", "web", "--json", "on", &host, "with", &key];
            let signed = far.run(|| sandbox.client_as_given(&line));
            let answer: Value = serde_json::from_str(&signed.stdout).unwrap();
            assert_eq!(
                (signed.code, &answer["run"]),
                (0, &(run + 1).into()),
                "{signed:?}"
            );
        }
    });
}

// Who is gone before he is looked at

/// How often each way of leaving is tried: more would be told `busy` for their failures.
const TRIES: u32 = 300;

/// How many connections are kept open by who keeps them.
const KEPT: usize = 50;

/// How somebody leaves who has just sent a command.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// His socket is nobody's from then on.
    Close,
    /// As `close`, once he has said that nothing more will come.
    Finish,
    /// As a process that is killed with something unread in its socket.
    Reset,
    /// He keeps it, and only says that nothing more will come.
    Half,
}

/// Sends a command, whatever it is answered, and leaves; what must be kept is returned.
fn send_and_leave(address: SocketAddr, leaving: Leaving) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).expect("a listener");
    let request = format!("{{\"id\":1,\"command\":{START}}}\n");
    // An error means that he was told to go already.
    let _ = stream.write_all(request.as_bytes());
    match leaving {
        Leaving::Close => None,
        Leaving::Finish => {
            let _ = stream.shutdown(Shutdown::Write);
            None
        }
        Leaving::Reset => {
            let at_once = Some(Duration::ZERO);
            sockopt::set_socket_linger(&stream, at_once).expect("a socket");
            None
        }
        Leaving::Half => {
            let _ = stream.shutdown(Shutdown::Write);
            Some(stream)
        }
    }
}

/// How many files a process has open.
fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a live process")
        .count()
}

/// Waits until the server has ended the connections of all who have left.
fn wait_alone(sandbox: &Sandbox, files: usize) {
    wait_for("the end of all connections", PATIENCE, || {
        open_files(sandbox.server_pid()) <= files
    });
}

#[test]
fn who_leaves_at_once_is_not_taken_for_root() {
    if !can_be_others() {
        return;
    }
    let sandbox = server("");
    let address = sandbox.address();
    let files = open_files(sandbox.server_pid());
    for leaving in [
        Leaving::Close,
        Leaving::Finish,
        Leaving::Reset,
        Leaving::Half,
    ] {
        as_user(STRANGER, || {
            let mut kept = Vec::new();
            for _ in 0..TRIES {
                kept.extend(send_and_leave(address, leaving));
                kept.truncate(KEPT);
            }
        });
        wait_alone(&sandbox, files);
        assert_untouched(&sandbox);
    }
    assert_eq!(asked(address, START), "ok");
}

/// A connection from a given port of this host.
fn from_port(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    sockopt::set_socket_reuseaddr(&socket, true).expect("a socket");
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    bind(&socket, &own).expect("a port of our own network");
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

#[test]
fn who_leaves_his_port_to_root_before_he_is_looked_at_is_not_taken_for_root() {
    // Ports of its own: nobody else takes them.
    let Some(network) = Network::alone() else {
        return;
    };
    network.run(|| {
        const PORTS: std::ops::Range<u16> = 20_000..20_020;
        let sandbox = server("");
        let address = sandbox.address();
        let files = open_files(sandbox.server_pid());
        // It is busy, for so long as this takes.
        sandbox.signal_server(Signal::STOP);
        as_user(STRANGER, || {
            for port in PORTS {
                let mut stream = from_port(port, address).unwrap();
                let request = format!("{{\"id\":1,\"command\":{START}}}\n");
                stream.write_all(request.as_bytes()).unwrap();
                let at_once = Some(Duration::ZERO);
                sockopt::set_socket_linger(&stream, at_once).unwrap();
            }
        });
        // Who comes before the stranger's end has been heard of is turned away.
        let root = |port| (0..10).find_map(|_| from_port(port, address).ok());
        let roots: Vec<TcpStream> = PORTS.filter_map(root).collect();
        assert!(!roots.is_empty());
        sandbox.signal_server(Signal::CONT);
        assert_eq!(asked(address, CHECK), "ok");
        drop(roots);
        wait_alone(&sandbox, files);
        assert_untouched(&sandbox);
        assert_eq!(asked(address, START), "ok");
    });
}

#[test]
fn a_socket_that_was_handed_on_is_its_makers() {
    if !can_be_others() {
        return;
    }
    let sandbox = server("");
    let address = sandbox.address();
    let request = format!("{{\"id\":1,\"command\":{START}}}\n");
    // From a stranger to a program of root's: root does not lend his name to it.
    let stream = as_user(STRANGER, || TcpStream::connect(address).unwrap());
    let mut wire = Wire::on(stream.try_clone().unwrap());
    let status = Command::new("sh")
        .args(["-c", "printf %s \"$0\"", &request])
        .stdout(OwnedFd::from(stream))
        .status();
    assert!(status.unwrap().success());
    assert_eq!(verdict(&wire.answer().1), "protected_mode");
    // And to a child of his own, who then leaves.
    let files = open_files(sandbox.server_pid());
    let mut child = as_user(STRANGER, || {
        let stream = TcpStream::connect(address).unwrap();
        Command::new("sh")
            .args(["-c", "printf %s \"$0\"", &request])
            .stdout(OwnedFd::from(stream))
            .spawn()
            .unwrap()
    });
    assert!(child.wait().unwrap().success());
    wait_alone(&sandbox, files);
    assert_untouched(&sandbox);
    assert_eq!(asked(address, START), "ok");
}
