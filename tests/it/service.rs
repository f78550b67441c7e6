//! The server as a service of somebody else: what it tells the service manager.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use rustix::process::Signal;
use supervisor_rs::clock;

use crate::sandbox::{PATIENCE, Sandbox, script, status_of, stays, wait_for};

/// How long the watchdog of these tests waits for the server: half of it is an answer.
const WATCHDOG: Duration = Duration::from_millis(600);
/// How long it is listened that nothing is said.
const SILENCE: Duration = Duration::from_millis(1_500);

/// Whoever has started the server, and listens.
struct Manager {
    socket: UnixDatagram,
    /// All that was said so far.
    heard: Vec<String>,
}

impl Manager {
    fn at(sandbox: &Sandbox) -> Self {
        Self::on(UnixDatagram::bind(sandbox.root().join("notify")).unwrap())
    }

    fn on(socket: UnixDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        let heard = Vec::new();
        Self { socket, heard }
    }

    /// Takes in what was said since.
    fn listen(&mut self) -> &[String] {
        let mut bytes = [0; 4096];
        let from = self.heard.len();
        while let Ok(count) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
            self.heard.push(text);
        }
        &self.heard[from..]
    }

    /// Waits until this is said, and gives all that was said from now until then.
    fn until(&mut self, text: &str) -> Vec<String> {
        let from = self.heard.len();
        wait_for(&format!("`{text}`"), PATIENCE, || {
            self.listen();
            self.heard[from..].iter().any(|said| said == text)
        });
        self.heard[from..].to_vec()
    }

    fn count(&mut self, text: &str) -> usize {
        self.listen();
        self.heard.iter().filter(|said| *said == text).count()
    }
}

/// A server that was started by somebody who wants to hear of it, and these variables besides.
fn told(settings: &str, variables: &str) -> (Sandbox, Manager) {
    let sandbox = Sandbox::new(settings);
    let socket = sandbox.root().join("notify");
    // `$$` is the server's own number: the shell becomes it.
    let wrapper = format!(
        "NOTIFY_SOCKET={} {variables} exec \"$0\" \"$@\"",
        socket.display()
    );
    let manager = Manager::at(&sandbox);
    (sandbox.within(&["sh", "-c", &wrapper]), manager)
}

#[test]
fn it_is_ready_when_it_answers_and_says_how_many_children_run() {
    let (mut sandbox, mut manager) = told("mode: sync", "");
    let seen = sandbox.root().join("seen");
    let text = format!("echo \"<$NOTIFY_SOCKET>\" > {}; sleep 300", seen.display());
    sandbox.write("web.yml", &script(&text));
    sandbox.start_server();
    assert!(manager.until("READY=1").contains(&"READY=1".to_owned()));
    if !manager.heard.contains(&"STATUS=1 child runs".to_owned()) {
        manager.until("STATUS=1 child runs");
    }
    sandbox.write("db.yml", "command: [sleep, '300']\n");
    manager.until("STATUS=2 children run");
    sandbox.write("bad.yml", "command: /not/there\n");
    manager.until("STATUS=2 children run, 1 failed");
    wait_for("the child's line", PATIENCE, || seen.exists());
    assert_eq!(
        fs::read_to_string(&seen).unwrap(),
        "<>\n",
        "its own socket is no child's"
    );
    // What has not changed is not told, and nothing ticks.
    stays("silence", SILENCE, || manager.listen().is_empty());
    sandbox.expect_leftovers();
    assert_eq!(sandbox.stop_server(), 0);
    let last = manager.until("STOPPING=1");
    assert_eq!(last.len(), 1, "{last:?}");
    assert_eq!(manager.count("READY=1"), 1);
}

#[test]
fn a_hup_reads_everything_again_and_is_done_when_that_is() {
    let (mut sandbox, mut manager) = told("mode: quiet\nrescan: off", "");
    sandbox.start_server();
    manager.until("READY=1");
    for round in 1..=3 {
        let before = clock::mono().0;
        let name = format!("child{round}");
        sandbox.write(&format!("{name}.yml"), "command: [sleep, '300']\n");
        sandbox.signal_server(Signal::HUP);
        let said = manager.until("READY=1");
        let reloading = said.iter().find(|text| text.starts_with("RELOADING=1"));
        let since = reloading.and_then(|text| text.split_once("\nMONOTONIC_USEC="));
        let since: u64 = since.unwrap().1.parse().unwrap();
        assert!(
            (before..=clock::mono().0).contains(&since),
            "systemd compares it with the time of its own HUP: {since}"
        );
        let row = sandbox.row(&name).expect("it was read before READY");
        assert_eq!(row["state"], "stopped");
    }
    // An edit of server.yml is applied by it too.
    sandbox.configure("mode: sync\nrescan: off");
    sandbox.signal_server(Signal::HUP);
    manager.until("READY=1");
    assert_eq!(sandbox.json(&["info"])["mode"], "sync");
}

#[test]
fn the_loop_answers_the_watchdog_and_falls_silent_when_it_is_stuck() {
    let micros = WATCHDOG.as_micros();
    let variables = format!("WATCHDOG_USEC={micros} WATCHDOG_PID=$$");
    let (mut sandbox, mut manager) = told("mode: quiet", &variables);
    sandbox.start_server();
    let begun = clock::mono();
    wait_for("answers", PATIENCE, || manager.count("WATCHDOG=1") >= 4);
    let took = clock::mono() - begun;
    assert!(took >= WATCHDOG, "no more often than needed: {took:?}");
    sandbox.signal_server(Signal::STOP);
    let pid = sandbox.server_pid();
    wait_for("the stop", PATIENCE, || {
        status_of(pid, "State").is_some_and(|state| state.starts_with('T'))
    });
    manager.listen();
    stays("silence", SILENCE, || manager.listen().is_empty());
    sandbox.signal_server(Signal::CONT);
    manager.until("WATCHDOG=1");
    assert_eq!(sandbox.stop_server(), 0);
}

#[test]
fn a_watchdog_that_is_another_process_is_not_answered() {
    let variables = "WATCHDOG_USEC=100000 WATCHDOG_PID=1";
    let (mut sandbox, mut manager) = told("mode: quiet", variables);
    sandbox.start_server();
    manager.until("READY=1");
    let none = || manager.count("WATCHDOG=1") == 0;
    stays("no answer", SILENCE, none);
    assert_eq!(sandbox.stop_server(), 0);
}

#[test]
fn an_upgrade_is_told_as_a_reload_and_the_next_program_goes_on_telling() {
    let micros = WATCHDOG.as_micros();
    let variables = format!("WATCHDOG_USEC={micros} WATCHDOG_PID=$$");
    let (sandbox, mut manager) = told("mode: sync", &variables);
    let mut sandbox = sandbox.with_own_program();
    sandbox.write("web.yml", "command: [sleep, '300']\n");
    sandbox.start_server();
    manager.until("READY=1");
    sandbox.wait_state("web", "running");
    let pid = sandbox.server_pid();
    for _ in 0..2 {
        sandbox.done(&["upgrade"]);
        let said = manager.until("READY=1");
        let kinds: Vec<&str> = said
            .iter()
            .map(|text| text.split('=').next().unwrap())
            .filter(|kind| ["RELOADING", "READY", "STOPPING"].contains(kind))
            .collect();
        assert_eq!(kinds, ["RELOADING", "READY"], "{said:?}");
        if !said.contains(&"STATUS=1 child runs".to_owned()) {
            manager.until("STATUS=1 child runs");
        }
        manager.until("WATCHDOG=1");
        assert_eq!(sandbox.json(&["info"])["pid"], pid);
    }
    // Both at once: what the one program has begun to read, the next one reads.
    sandbox.signal_server(Signal::HUP);
    sandbox.done(&["upgrade"]);
    sandbox.write("db.yml", "command: [sleep, '300']\n");
    manager.until("STATUS=2 children run");
    let is_state = |text: &&String| text.starts_with("READY") || text.starts_with("RELOADING");
    assert_eq!(manager.heard.iter().rfind(is_state).unwrap(), "READY=1");
    sandbox.expect_leftovers();
    assert_eq!(sandbox.stop_server(), 0);
    manager.until("STOPPING=1");
}

#[test]
fn who_does_not_listen_or_has_gone_keeps_nobody_waiting() {
    // Somebody who never reads, with the smallest of queues.
    let (mut sandbox, manager) = told("mode: quiet", "WATCHDOG_USEC=2000 WATCHDOG_PID=$$");
    sandbox.start_server();
    for _ in 0..50 {
        sandbox.signal_server(Signal::HUP);
        assert_eq!(sandbox.json(&["check"])["ok"], true);
    }
    drop(manager);
    fs::remove_file(sandbox.root().join("notify")).unwrap();
    sandbox.signal_server(Signal::HUP);
    assert_eq!(sandbox.json(&["check"])["ok"], true);
    assert_eq!(sandbox.stop_server(), 0);
    // Nobody ever; and a place that makes no sense.
    for value in ["/nowhere/notify", "nonsense", ""] {
        let variable = format!("NOTIFY_SOCKET={value}");
        let mut sandbox = Sandbox::new("mode: quiet").within(&["env", &variable]);
        sandbox.start_server();
        assert_eq!(sandbox.stop_server(), 0, "{value}");
    }
}

#[test]
fn an_abstract_socket_is_told_as_well() {
    let sandbox = Sandbox::new("mode: quiet");
    let name = format!("supervisor-rs-it-{}", sandbox.id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut manager = Manager::on(UnixDatagram::bind_addr(&address).unwrap());
    let variable = format!("NOTIFY_SOCKET=@{name}");
    let mut sandbox = sandbox.within(&["env", &variable]);
    sandbox.start_server();
    manager.until("READY=1");
    assert_eq!(sandbox.stop_server(), 0);
    manager.until("STOPPING=1");
}
