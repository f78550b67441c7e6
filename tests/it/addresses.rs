//! Where a server listens and by which names and addresses it is found: IPv4, IPv6 and both.
//!
//! Each test has a network of its own, so the usual port is free, IPv6 is there, and nothing
//! that listens everywhere is seen from outside.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use supervisor_rs::{
    clock,
    control::{
        client::{ADDRESSES_MAX, CONNECT_TIME_MAX},
        host::PORT,
    },
};

use crate::{
    network::{FAR_V6, LINK, NEAR_V4, NEAR_V6, Network, ip},
    sandbox::{Output, PATIENCE, Sandbox, run, wait_for},
};

/// A server whose file has just these lines about where it listens.
fn server(lines: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(lines);
    if !lines.contains("listener_addr:") {
        // Nothing is to be said of it, not even what sandboxes say.
        let own = format!("listener_addr: {}\n", sandbox.address().ip());
        let text = fs::read_to_string(sandbox.server_yml()).unwrap();
        sandbox.replace(&sandbox.server_yml(), &text.replacen(&own, "", 1));
    }
    sandbox.begin_server();
    sandbox
}

/// Which of these addresses answer: `name` must be that server.
fn answering<'a>(sandbox: &Sandbox, hosts: &[&'a str]) -> Vec<&'a str> {
    let port = sandbox.address().port();
    let answers = |host: &&&str| {
        let place = format!("{host}:{port}");
        let output = sandbox.client_as_given(&["info", "--json", "on", &place]);
        match output.code {
            0 => {
                let info: Value = serde_json::from_str(&output.stdout).expect("an object");
                assert_eq!(info["id"], sandbox.id(), "{output:?}");
                true
            }
            7 => false,
            other => panic!("{host}: {other}: {output:?}"),
        }
    };
    hosts.iter().filter(answers).copied().collect()
}

const V4: &str = "127.0.0.1";
const V6: &str = "[::1]";
const MAPPED: &str = "[::ffff:127.0.0.1]";
const OTHER_V4: &str = "127.0.0.2";
const OUTER_V4: &str = "10.77.0.9";
const OUTER_V6: &str = "[fd00:77::9]";

/// Gives this thread's network addresses beside those of loopback.
fn outer_addresses() {
    ip(&["addr", "add", &format!("{OUTER_V4}/32"), "dev", "lo"]);
    let bare = OUTER_V6.trim_matches(['[', ']']);
    ip(&["addr", "add", &format!("{bare}/128"), "dev", "lo", "nodad"]);
}

#[test]
fn a_server_is_found_where_its_file_says_and_nowhere_else() {
    let Some(network) = Network::alone() else {
        return;
    };
    let all = [V4, MAPPED, OTHER_V4, OUTER_V4, V6, OUTER_V6];
    let every_v4 = [V4, MAPPED, OTHER_V4, OUTER_V4];
    network.run(|| {
        outer_addresses();
        for (lines, listener, expected) in [
            ("", "0.0.0.0", &every_v4[..]),
            ("ipv6: false", "0.0.0.0", &every_v4),
            ("ipv6: true", "[::]", &all),
            ("listener_addr: '::'", "[::]", &all),
            ("listener_addr: '::1'", "[::1]", &[V6]),
            ("listener_addr: 127.0.0.1", "127.0.0.1", &[V4, MAPPED]),
            ("listener_addr: 127.0.0.2", "127.0.0.2", &[OTHER_V4]),
            ("listener_addr: 'fd00:77::9'", OUTER_V6, &[OUTER_V6]),
            // `ipv6` counts when nothing else is said.
            (
                "listener_addr: 127.0.0.1\nipv6: true",
                "127.0.0.1",
                &[V4, MAPPED],
            ),
            ("listener_addr: '::1'\nipv6: false", "[::1]", &[V6]),
        ] {
            let mut sandbox = server(lines);
            wait_for(lines, PATIENCE, || {
                answering(&sandbox, &expected[..1]) == expected[..1]
            });
            assert_eq!(answering(&sandbox, &all), expected, "{lines}");
            let port = sandbox.address().port();
            let place = format!("{}:{port}", expected[0]);
            let info = sandbox.client_as_given(&["info", "--json", "on", &place]);
            let info: Value = serde_json::from_str(&info.stdout).unwrap();
            assert_eq!(info["listener"], format!("{listener}:{port}"), "{lines}");
            let killed = sandbox.client_as_given(&["kill", "on", &place]);
            assert_eq!(killed.code, 0, "{killed:?}");
            assert_eq!(sandbox.wait_server(), 0);
        }
    });
}

#[test]
fn an_address_with_its_zone_is_a_host() {
    let Some((near, far)) = Network::linked() else {
        return;
    };
    near.run(|| {
        ip(&["addr", "add", "fe80::77/64", "dev", LINK, "nodad"]);
        let sandbox = Sandbox::start("listener_addr: '::'\nallow_unsigned_remote: true");
        let port = sandbox.address().port();
        for host in [
            format!("[fe80::77%{LINK}]:{port}"),
            format!("[{NEAR_V6}]:{port}"),
            format!("{NEAR_V4}:{port}"),
        ] {
            let arguments = ["check", "--json", "on", &host];
            for output in [
                sandbox.client_as_given(&arguments),
                far.run(|| sandbox.client_as_given(&arguments)),
            ] {
                assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
            }
        }
        // Without the zone nobody knows which link is meant.
        let host = format!("[fe80::77]:{port}");
        assert_eq!(sandbox.client_as_given(&["check", "on", &host]).code, 7);
    });
}

// Ports that are taken

#[test]
fn a_port_that_is_taken_ends_the_server_with_7_and_its_address() {
    let Some(network) = Network::alone() else {
        return;
    };
    network.run(|| {
        for (first, second, place) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0", "0.0.0.0"),
            ("'::'", "'::1'", "[::1]"),
            ("'::'", "'::'", "[::]"),
            ("'::'", "127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "'::'", "[::]"),
        ] {
            let one = Sandbox::start(&format!("listener_addr: {first}"));
            let port = one.address().port();
            let settings = format!("listener_addr: {second}\nlistener_port: {port}");
            let other = Sandbox::new(&settings);
            let path = other.server_yml();
            let output = other.server_to_end(&[path.to_str().unwrap()]);
            let words = format!(
                "cannot listen on {place}:{port}: Address already in use (os error 98)\n\
                 hint: is another server running there? see `listener_addr` and `listener_port` \
                 in server.yml\n"
            );
            assert_eq!(output.code, 7, "{first}, {second}: {output:?}");
            assert!(output.stderr.ends_with(&words), "{output:?}");
            // The one that was there is not disturbed.
            assert_eq!(one.client(&["check"]).code, 0);
        }
    });
}

#[test]
fn an_address_that_is_not_this_hosts_ends_the_server_with_7_and_the_address() {
    let Some(network) = Network::alone() else {
        return;
    };
    network.run(|| {
        for (address, place) in [
            ("192.0.2.1", "192.0.2.1"),
            ("'2001:db8::1'", "[2001:db8::1]"),
        ] {
            let sandbox = Sandbox::new(&format!("listener_addr: {address}"));
            let path = sandbox.server_yml();
            let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
            let port = sandbox.address().port();
            let words = format!(
                "cannot listen on {place}:{port}: Cannot assign requested address (os error 99)\n\
                 hint: see `listener_addr` and `listener_port` in server.yml\n"
            );
            assert_eq!(output.code, 7, "{output:?}");
            assert!(output.stderr.ends_with(&words), "{output:?}");
        }
    });
}

// Names

/// A network with an `/etc/hosts` of its own, which `sandbox` keeps.
fn named(sandbox: &Sandbox, hosts: &str) -> Option<Network> {
    let path = sandbox.root().join("hosts");
    fs::write(&path, hosts).unwrap();
    let mount = format!("mount --bind {} /etc/hosts", path.display());
    Network::prepared(&format!("mount --make-rprivate / && {mount}"))
}

/// Runs the client where that `/etc/hosts` is seen.
fn client_in(network: &Network, sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let entrance = network.entrance();
    let mut command = Command::new(&entrance[0]);
    command
        .args(&entrance[1..])
        .arg(env!("CARGO_BIN_EXE_supervisor-rs-client"))
        .args(arguments)
        .env("HOME", sandbox.root())
        .env("NO_COLOR", "1")
        .env_remove("SUPERVISOR_RS_ON")
        .env_remove("SUPERVISOR_RS_KEY")
        .stdin(Stdio::null());
    run(command)
}

/// Those of a name's addresses that could not be connected to, as the message tells of them.
fn faults(output: &Output) -> Vec<String> {
    let answer: Value = serde_json::from_str(&output.stdout).expect("an object");
    assert_eq!(answer["error"]["code"], "unreachable", "{output:?}");
    let message = answer["error"]["message"].as_str().unwrap();
    let (_, list) = message.split_once("`: ").expect("a list");
    let (list, _) = list.split_once('\n').expect("a hint");
    list.split("; ").map(str::to_owned).collect()
}

#[test]
fn of_several_addresses_of_a_name_those_that_are_dead_are_passed_over() {
    let here = Sandbox::new("");
    let hosts = "127.0.0.1 localhost\n::1 localhost\n\
                 127.0.0.9 dead-first\n127.0.0.3 dead-first\n\
                 127.0.0.3 dead-last\n127.0.0.9 dead-last\n\
                 ::1 both\n127.0.0.3 both\n\
                 127.0.0.3 one\n";
    let Some(network) = named(&here, hosts) else {
        return;
    };
    network.run(|| {
        let mut sandbox = server("listener_addr: 127.0.0.3");
        let port = sandbox.address().port();
        let place = |name| format!("{name}:{port}");
        let on = |name| client_in(&network, &here, &["check", "--json", "on", &place(name)]);
        wait_for("the server", PATIENCE, || on("one").code == 0);
        for name in ["dead-first", "dead-last", "both"] {
            let output = on(name);
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
            let answer: Value = serde_json::from_str(&output.stdout).unwrap();
            assert_eq!(answer["host"], place(name), "as it was given");
        }
        let killed = client_in(&network, &here, &["kill", "on", &place("dead-first")]);
        assert_eq!((killed.code, sandbox.wait_server()), (0, 0), "{killed:?}");
        let refused = "Connection refused (os error 111)";
        let output = on("dead-first");
        assert_eq!(output.code, 7, "{output:?}");
        let both = ["127.0.0.9", "127.0.0.3"].map(|at| format!("{at}:{port}: {refused}"));
        assert_eq!(faults(&output), both);
    });
}

#[test]
fn localhost_is_the_server_of_either_family() {
    let here = Sandbox::new("");
    let Some(network) = named(&here, "127.0.0.1 localhost\n::1 localhost\n") else {
        return;
    };
    network.run(|| {
        for address in ["127.0.0.1", "'::1'", "'::'", "0.0.0.0"] {
            let mut sandbox = server(&format!("listener_addr: {address}"));
            let place = format!("localhost:{}", sandbox.address().port());
            wait_for(address, PATIENCE, || {
                client_in(&network, &here, &["check", "on", &place]).code == 0
            });
            let killed = client_in(&network, &here, &["kill", "on", &place]);
            assert_eq!((killed.code, sandbox.wait_server()), (0, 0), "{killed:?}");
        }
    });
}

#[test]
fn no_more_addresses_of_a_name_are_tried_than_said() {
    let here = Sandbox::new("");
    let mut hosts = String::new();
    for number in 1..=ADDRESSES_MAX + 2 {
        hosts += &format!("127.0.1.{number} many\n");
    }
    let Some(network) = named(&here, &hosts) else {
        return;
    };
    let output = client_in(&network, &here, &["check", "--json", "on", "many"]);
    assert_eq!((output.code, faults(&output).len()), (7, ADDRESSES_MAX));
}

#[test]
fn an_address_that_says_nothing_costs_its_bound_and_no_more() {
    let here = Sandbox::new("");
    // `fd00:77::2` is on the link, and nobody has it.
    let Some(network) = named(&here, &format!("{FAR_V6} quiet\n127.0.0.3 quiet\n")) else {
        return;
    };
    network.run(|| {
        ip(&["link", "add", LINK, "type", "veth", "peer", "name", "end"]);
        ip(&["link", "set", LINK, "up"]);
        ip(&["link", "set", "end", "up"]);
        ip(&[
            "addr",
            "add",
            &format!("{NEAR_V6}/64"),
            "dev",
            LINK,
            "nodad",
        ]);
        let sandbox = server("listener_addr: 127.0.0.3");
        let port = sandbox.address().port();
        let (alive, quiet) = (format!("127.0.0.3:{port}"), format!("quiet:{port}"));
        wait_for("the server", PATIENCE, || {
            sandbox.client_as_given(&["check", "on", &alive]).code == 0
        });
        let began = clock::mono();
        let output = client_in(&network, &here, &["check", "on", &quiet]);
        let took = clock::mono() - began;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
        assert!(took < CONNECT_TIME_MAX + Duration::from_secs(5), "{took:?}");
        let killed = sandbox.client_as_given(&["kill", "on", &alive]);
        assert_eq!(killed.code, 0, "{killed:?}");
    });
}

#[test]
fn a_name_that_nobody_knows_is_unreachable_and_said_so() {
    let here = Sandbox::new("");
    let Some(network) = named(&here, "127.0.0.1 localhost\n") else {
        return;
    };
    let output = client_in(&network, &here, &["check", "on", "nobody.example"]);
    assert_eq!((output.code, output.stdout.as_str()), (7, ""));
    let words = "error[unreachable]: cannot look `nobody.example` up";
    assert!(output.stderr.starts_with(words), "{output:?}");
}

// No IPv6

#[test]
fn a_host_without_ipv6_serves_and_is_asked_by_ipv4() {
    let Some(network) = Network::prepared("ip -6 addr flush dev lo") else {
        return;
    };
    network.run(|| {
        // What listens on both families does for the one there is.
        let usual = format!("listener_port: {PORT}");
        let mut sandbox = server(&format!("listener_addr: '::'\n{usual}"));
        wait_for("the server", PATIENCE, || {
            sandbox.client_as_given(&["check"]).code == 0
        });
        let output = sandbox.client_as_given(&["check", "--json"]);
        let answer: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!((output.code, &answer["host"]), (0, &V4.into()));
        assert_eq!(sandbox.client_as_given(&["kill"]).code, 0);
        assert_eq!(sandbox.wait_server(), 0);

        let output = sandbox.client_as_given(&["check", "--json"]);
        let faults = faults(&output);
        assert_eq!((output.code, faults.len()), (7, 2), "{output:?}");
        assert!(faults[0].starts_with("127.0.0.1:33889: "), "{faults:?}");
        assert!(faults[1].starts_with("[::1]:33889: "), "{faults:?}");

        let alone = Sandbox::new("listener_addr: '::1'");
        let path = alone.server_yml();
        let output = alone.server_to_end(&[path.to_str().unwrap()]);
        let place = format!("cannot listen on [::1]:{}: ", alone.address().port());
        assert_eq!(output.code, 7, "{output:?}");
        assert!(output.stderr.contains(&place), "{output:?}");
    });
}
