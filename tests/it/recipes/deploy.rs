//! Deployments: by git, and by a pipeline.

use std::fs;

use serde_json::{Value, json};

use super::{
    host::{Host, lacks},
    page::{Page, Step},
};
use crate::sandbox::{Output, PATIENCE, pid_of, wait_for};

/// Waits until a child's file is shown so, and returns its row.
fn wait_config(host: &Host, name: &str, status: &str) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("`{name}` shown as {status}"), PATIENCE, || {
        row = host.row(name).unwrap_or_default();
        row["config"]["status"] == status
    });
    row
}

/// Commits a file with this text (no text takes it away) in the clone that is pushed from.
fn push(host: &Host, clone: &str, name: &str, text: Option<&str>) {
    let edit = match text {
        Some(text) => format!("printf '{text}' > {name}; git add {name}"),
        None => format!("git rm --quiet {name}"),
    };
    let output = host.types(&format!(
        "cd {clone}\n{edit}\ngit commit --quiet -m change\ngit push --quiet origin HEAD:main"
    ));
    assert_eq!(output.code, 0, "{output:?}");
}

/// What holds of each commit, however it comes: another command, a bad file, one that goes.
fn deploys(host: &Host, clone: &str) {
    let first = pid_of(&host.wait_state("web", "running"));
    push(host, clone, "db.yml", Some("command: sleep 3000\\n"));
    let db = pid_of(&host.wait_state("db", "running"));
    push(host, clone, "web.yml", Some("command: sleep 2000\\n"));
    wait_for("the new command", PATIENCE, || {
        host.command_of("web") == "sleep 2000"
    });
    let web = pid_of(&host.wait_state("web", "running"));
    assert_ne!(web, first);

    push(host, clone, "web.yml", Some("comand: sleep 2000\\n"));
    wait_config(host, "web", "invalid");
    let told = host.client(&["check", "web"]).stdout;
    assert!(told.contains("did you mean `command`"), "{told}");
    assert_eq!(pid_of(&host.row("web").unwrap()), web, "it runs on");

    let reverted = host.types(&format!(
        "cd {clone}\ngit revert --no-edit HEAD\ngit push --quiet origin HEAD:main"
    ));
    assert_eq!(reverted.code, 0, "{reverted:?}");
    wait_config(host, "web", "current");
    assert_eq!(
        pid_of(&host.row("web").unwrap()),
        web,
        "nothing has changed"
    );

    push(host, clone, "web.yml", None);
    host.wait_state("web", "stopped");
    assert_eq!(
        pid_of(&host.row("db").unwrap()),
        db,
        "no other child was touched"
    );
}

pub(super) fn git_push(page: &Page) {
    if lacks(&["git"]) {
        return;
    }
    let host = Host::of(page);
    let said: String = page.steps.iter().map(|step| host.take(step)).collect();
    assert!(
        said.lines()
            .any(|line| line.contains("web") && line.contains("running")),
        "{said}"
    );
    deploys(&host, "/home/you/children");
}

pub(super) fn git_pull(page: &Page) {
    if lacks(&["git"]) {
        return;
    }
    let host = Host::of(page);
    let clone = host.root().join("clone").display().to_string();
    let made = host.types(&format!(
        "git init --quiet --bare --initial-branch=main /srv/upstream.git\n\
         git clone --quiet /srv/upstream.git {clone} 2>/dev/null\ncd {clone}\n\
         git checkout --quiet -B main"
    ));
    assert_eq!(made.code, 0, "{made:?}");
    push(&host, &clone, "web.yml", Some("command: sleep 1000\\n"));
    for step in &page.steps {
        host.take(step);
    }
    deploys(&host, &clone);
    let row = host.wait_run("pull", 3);
    assert_eq!(row["next"]["action"], "trystart");
    // A pull that fails changes nothing, and the next one follows.
    let output = host.types("mv /srv/upstream.git /srv/upstream.git.away");
    assert_eq!(output.code, 0, "{output:?}");
    wait_for("a pull that fails", PATIENCE, || {
        let history = host.json(&["check", "pull"])["children"][0]["history"].clone();
        history
            .as_array()
            .unwrap()
            .iter()
            .any(|run| run["exit"]["code"] == 1)
    });
    assert_eq!(host.row("db").unwrap()["state"], "running");
    let output = host.types("mv /srv/upstream.git.away /srv/upstream.git");
    assert_eq!(output.code, 0, "{output:?}");
    push(&host, &clone, "late.yml", Some("command: sleep 4000\\n"));
    host.wait_state("late", "running");
    host.done(&["stop", "pull"]);
}

fn deploy(host: &Host) -> Output {
    host.types("sh /srv/release/deploy")
}

pub(super) fn ci(page: &Page) {
    let mut host = Host::of(page);
    let said: String = page.steps.iter().map(|step| host.take(step)).collect();
    assert!(said.ends_with("deployed\n"), "{said}");
    let first = pid_of(&host.wait_state("web", "running"));
    assert_eq!(deploy(&host).code, 0, "it restarts what runs");
    let second = pid_of(&host.wait_state("web", "running"));
    assert_ne!(first, second);

    // A fault in the file.
    let Some(Step::Write { text: good, .. }) = page
        .steps
        .iter()
        .find(|step| matches!(step, Step::Write { path, .. } if path == "/srv/release/web.yml"))
    else {
        panic!("no web.yml");
    };
    host.put("/srv/release/web.yml", &good.replace("ready:", "raedy:"));
    let output = deploy(&host);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stdout.ends_with("what ran runs on\n"), "{output:?}");
    assert!(output.stderr.contains("did you mean `ready`"), "{output:?}");
    assert_eq!(pid_of(&host.row("web").unwrap()), second);

    // A run that does not become ready, and says why.
    fs::remove_file(host.here("/srv/release/works")).unwrap();
    let says = good.replace("sleep 1000", "sh -c 'echo no database >&2; sleep 1000'");
    host.put("/srv/release/web.yml", &says);
    let output = deploy(&host);
    assert_eq!(output.code, 1, "{output:?}");
    for part in ["not ready within", "exit code 1", "  no database"] {
        assert!(output.stderr.contains(part), "{output:?}");
    }
    assert!(output.stdout.ends_with("stand above\n"), "{output:?}");

    // Nobody who answers.
    host.kill_server();
    let output = deploy(&host);
    assert_eq!(output.code, 7, "{output:?}");
    host.start_server();
}

#[test]
fn the_key_of_the_pipeline_may_do_what_its_script_does_and_no_more() {
    let page = Page::read("ci");
    let mut host = Host::of(&page);
    let keys = host.root().join("keys");
    fs::create_dir(&keys).unwrap();
    let made = host.types("supervisor-rs-client keygen ci --bits 2048");
    assert_eq!(made.code, 0, "{made:?}");
    fs::rename(host.root().join("ci.pub.pem"), keys.join("ci.pub.pem")).unwrap();
    host.replace(&keys.join("ci.yml"), page.file("/srv/release/ci.yml"));
    let settings = page.file("/etc/supervisor-rs/server.yml");
    host.kill_server();
    host.configure(&format!("{settings}encrypt: on\npub_keys_path: [keys]\n"));
    host.start_server();
    for step in &page.steps[..3] {
        host.take(step);
    }
    let key = format!("export SUPERVISOR_RS_KEY={}/ci.pem", host.root().display());
    let signed = |line: &str| host.types(&format!("{key}\n{line}"));
    let output = signed("touch /srv/release/works; sh /srv/release/deploy");
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(signed("supervisor-rs-client check web").code, 0);
    for line in ["stop web", "kill", "trystart db"] {
        let output = signed(&format!("supervisor-rs-client {line}"));
        assert_eq!(output.code, 4, "{output:?}");
    }
    assert_eq!(deploy(&host).code, 4, "without the key");
    let row =
        &serde_json::from_str::<Value>(&signed("supervisor-rs-client --json check web").stdout)
            .unwrap()["children"][0];
    assert_eq!(row["state"], json!("running"));
    // Nobody here has a key that may stop it.
    host.expect_leftovers();
}
