//! The server as somebody's child: of a container, of systemd.

use std::{fs, path::Path, process::Command};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    host::{Host, lacks},
    page::Page,
};
use crate::sandbox::{SERVER, Sandbox, children_of, pass_over, pid_of, run, skip, status_of};

/// A PID namespace of its own, as a container has.
const CONTAINER: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The options of the server that the image of a page starts.
fn options(page: &Page) -> Vec<String> {
    let image = page.file("/srv/app/Dockerfile");
    let line = image
        .lines()
        .find_map(|line| line.strip_prefix("ENTRYPOINT "));
    let mut words: Vec<String> =
        serde_json::from_str(line.expect("an entry point")).expect("a list");
    assert_eq!(
        words.pop().as_deref(),
        Some("/etc/supervisor-rs/server.yml")
    );
    assert_eq!(words.remove(0), "supervisor-rs-server");
    words
}

/// A container, in which the page's children run.
fn contained(page: &Page) -> Host {
    let start = format!("exec \"$0\" {} \"$@\"", options(page).join(" "));
    let within = [&CONTAINER[..], &["sh", "-c", &start]].concat();
    let place = |sandbox: Sandbox| sandbox.within(&within);
    // The children's files are part of the image: they are there before the server.
    let mut host = Host::before(page, place);
    for step in &page.steps {
        host.take(step);
    }
    host.start_server();
    host.wait_state("web", "running");
    host.wait_state("mail", "running");
    host
}

/// The server, as it is numbered outside.
fn server(host: &Host) -> i32 {
    let inner = children_of(host.server_pid());
    assert_eq!(inner.len(), 1);
    inner[0]
}

/// The process of a child, as it is numbered outside.
fn outside(host: &Host, name: &str) -> Pid {
    let inside = pid_of(&host.row(name).unwrap()).to_string();
    let mut children = children_of(server(host));
    children.retain(|pid| {
        let numbers = status_of(*pid, "NSpid").unwrap_or_default();
        numbers.split_whitespace().last() == Some(&inside)
    });
    assert_eq!(children.len(), 1);
    Pid::from_raw(children[0]).expect("no zero")
}

pub(super) fn container(page: &Page) {
    if lacks(&["unshare", "python3"]) {
        return;
    }
    let mut trial = Command::new(CONTAINER[0]);
    trial.args(&CONTAINER[1..]).arg("true");
    if !trial.output().is_ok_and(|output| output.status.success()) {
        return skip("`unshare --pid` is not permitted");
    }
    // It ends with `web`, and in the way of `web`.
    let mut host = contained(page);
    kill_process(outside(&host, "web"), Signal::KILL).unwrap();
    assert_eq!(host.wait_server(), 128 + 9);
    assert_eq!(host.processes(), []);

    // The end of another is none of its.
    let mut host = contained(page);
    kill_process(outside(&host, "mail"), Signal::KILL).unwrap();
    host.wait_run("mail", 2);
    host.wait_state("mail", "running");
    let told = host.types("supervisor-rs-client check").stdout;
    assert!(told.contains("web") && told.contains("mail"), "{told}");
    // `docker stop`.
    kill_process(Pid::from_raw(server(&host)).unwrap(), Signal::TERM).unwrap();
    assert_eq!(host.wait_server(), 0);
    assert_eq!(host.processes(), []);
    assert!(
        host.server_log().contains("Serving HTTP on"),
        "what children say is what the container says"
    );
}

/// The project's own folder.
fn project(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(super) fn systemd(page: &Page) {
    // Its commands name what there is.
    let typed = page.text.split("```sh\n").nth(1).unwrap();
    let typed = typed.split("```").next().unwrap();
    let words = typed.split_whitespace();
    let sources: Vec<&str> = words.filter(|word| word.starts_with("dist/")).collect();
    assert_eq!(sources, ["dist/supervisor-rs.service"]);
    assert!(project(sources[0]).exists());
    let unit = fs::read_to_string(project(sources[0])).unwrap();
    for line in ["KillMode=process", "Restart=always"] {
        assert!(
            !page.text.contains(line) || unit.lines().any(|own| own == line),
            "{line}"
        );
    }
    let config = typed
        .lines()
        .find(|line| line.starts_with("printf"))
        .unwrap();
    let place = "/etc/supervisor-rs/server.yml";
    assert!(unit.contains(&format!("supervisor-rs-server {place}\n")));
    let sandbox = Sandbox::new("");
    let here = config.replace(place, "own.yml");
    let checked = format!("set -e\n{here}\nmkdir children\nsupervisor-rs-server --check own.yml");
    let output = sandbox.shell(&checked);
    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{output:?}");

    // systemd takes the unit with what the page adds to it, and would say what is wrong.
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("systemd-analyze").exists()) {
        return pass_over("`systemd-analyze` is not there");
    }
    let own = page.file("/etc/systemd/system/supervisor-rs.service.d/override.conf");
    let said = verify(&sandbox, &unit, own);
    assert!(!said.contains("supervisor-rs"), "{said}");
    let said = verify(
        &sandbox,
        &unit,
        &own.replace("TimeoutStopSec", "TimeoutStopsSec"),
    );
    assert!(
        said.contains("TimeoutStopsSec"),
        "it is not read at all: {said}"
    );
}

/// What systemd says of a unit with an addition.
fn verify(sandbox: &Sandbox, unit: &str, addition: &str) -> String {
    let installed = "/usr/local/bin/supervisor-rs-server";
    let place = sandbox.root().join("supervisor-rs.service");
    fs::write(&place, unit.replace(installed, SERVER)).unwrap();
    let additions = sandbox.root().join("supervisor-rs.service.d");
    fs::create_dir_all(&additions).unwrap();
    fs::write(additions.join("override.conf"), addition).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(&place);
    let output = run(command);
    output.stdout + &output.stderr
}
