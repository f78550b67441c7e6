//! The files of the original's documentation, with the real programs.

use std::fs;

use crate::sandbox::Sandbox;

fn fixture(name: &str) -> String {
    let path = format!(
        "{}/fixtures/config/ok/original/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    fs::read_to_string(path).expect("a fixture")
}

/// Puts a child file of the original in place, with a program that exists here.
fn put(sandbox: &Sandbox, fixture_name: &str, name: &str) {
    let yaml = fixture(fixture_name).replace("/tmp/test", "sleep 300");
    assert!(yaml.contains("sleep"), "{yaml}");
    sandbox.write(name, &yaml);
}

#[test]
fn the_documented_child_runs_and_its_output_lies_in_the_log_directory() {
    let sandbox = Sandbox::start("mode: half\nstartup: [child1, child2, child3]");
    put(&sandbox, "child-repeat.yml", "child1.yml");
    let row = sandbox.wait_state("child1", "running");
    let stdout = sandbox.log_dir().join("aaaaaa");
    let stderr = sandbox.log_dir().join("nnnnn");
    assert_eq!(row["output"]["stdout"], stdout.to_str().expect("UTF-8"));
    assert_eq!(row["output"]["stderr"], stderr.to_str().expect("UTF-8"));
    assert_eq!(row["next"]["action"], "restart");
    assert!(stdout.exists() && stderr.exists());
}

#[test]
fn the_documented_hooks_start_what_they_name() {
    let sandbox = Sandbox::start("mode: quiet");
    put(&sandbox, "child-hooks.yml", "main.yml");
    sandbox.write("child.yml", "command: sleep 300\n");
    let started = sandbox.client(&["start", "main"]);
    assert_eq!(started.code, 0, "{started:?}");
    sandbox.wait_state("child", "running");
    sandbox.wait_state("main", "running");
}

#[test]
fn the_documented_demo_commands_work() {
    let sandbox = Sandbox::start("mode: quiet");
    put(&sandbox, "child.yml", "child0.yml");
    sandbox.write("child.yml", "command: sleep 300\n");
    for (words, code) in [
        (&["restart", "child0"][..], 1),
        (&["start", "child0"][..], 0),
        (&["restart", "child0"][..], 0),
        (&["trystart", "child0"][..], 0),
        (&["check"][..], 0),
        (&["info"][..], 0),
        (&["stop", "child0"][..], 0),
        (&["trystart", "child0"][..], 0),
        (&["stop", "all"][..], 0),
    ] {
        let output = sandbox.client(words);
        assert_eq!(output.code, code, "{words:?} {output:?}");
    }
    let killed = sandbox.client(&["kill"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    assert!(
        killed.stdout.contains("no child is left running"),
        "{killed:?}"
    );
}

#[test]
fn the_documented_server_files_pass_the_check() {
    let sandbox = Sandbox::new("");
    for name in [
        "server-keys.yml",
        "server-listener-ipv4.yml",
        "server-startup.yml",
        "server.yml",
    ] {
        let path = sandbox.root().join(name);
        // The documented loadpaths lie in the open; here they lie in the sandbox.
        let root = sandbox.root().display().to_string();
        let yaml = fixture(name).replace("/tmp/", &format!("{root}/"));
        fs::write(&path, yaml).expect("a writable sandbox");
        let output = sandbox.server_to_end(&["--check", path.to_str().expect("UTF-8")]);
        assert_eq!(output.code, 0, "{name}: {output:?}");
    }
}
