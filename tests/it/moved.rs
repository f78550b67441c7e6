//! Directories edited in server.yml while children run that only the old ones tell of (DESIGN 3).

use std::fs;

use crate::sandbox::{Output, PATIENCE, SLEEPER, Sandbox, lives, pid_of, wait_for};

/// The server's exit code for a bad configuration.
const BAD_CONFIG: i32 = 6;

/// `web` runs and no server does.
fn left(settings: &str) -> (Sandbox, i32) {
    let sandbox = Sandbox::start(settings);
    sandbox.write("web.yml", SLEEPER);
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
    sandbox.client(&["start", "web"]);
    let web = pid_of(&sandbox.wait_state("web", "running"));
    sandbox.wait_processes(1);
    (sandbox, web)
}

fn refused_start(sandbox: &Sandbox) -> Output {
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
    assert_eq!(output.code, BAD_CONFIG, "{output:?}");
    output
}

#[test]
fn edited_directories_refuse_the_start_while_what_they_knew_of_runs() {
    let (mut sandbox, web) = left("mode: sync");
    let root = sandbox.root().display().to_string();
    sandbox.kill_server();
    for fields in [
        &["state_dir"][..],
        &["runtime_dir"],
        &["state_dir", "runtime_dir"],
    ] {
        let mut settings = "mode: sync".to_owned();
        for field in fields {
            settings += &format!("\n{field}: {root}/new/{field}");
        }
        sandbox.configure(&settings);
        let output = refused_start(&sandbox);
        let old = |field: &str| match field {
            "state_dir" => format!("{root}/state"),
            _ => format!("{root}/run"),
        };
        let was: Vec<String> = fields
            .iter()
            .map(|field| {
                format!(
                    "`{field}` was `{}` and is `{root}/new/{field}` now",
                    old(field)
                )
            })
            .collect();
        let with: Vec<String> = fields
            .iter()
            .map(|field| format!("`{field}: {}`", old(field)))
            .collect();
        let expected = format!(
            "{}, while children run on that `{root}/run` tells of: `web` (pid {web})\n\
             hint: with {} in server.yml it starts and takes them back; to move, stop them there \
             first (`supervisor-rs-client kill --stop-children`)\n",
            was.join(", and "),
            with.join(" and "),
        );
        assert_eq!(output.stderr, expected);
        assert!(!sandbox.root().join("new").exists(), "nothing was made");
        assert!(lives(web));
    }
    sandbox.configure("mode: sync");
    sandbox.start_server();
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    sandbox.wait_processes(1);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn directories_may_be_edited_when_nothing_runs_on() {
    let (mut sandbox, web) = left("mode: sync");
    let root = sandbox.root().display().to_string();
    let elsewhere = format!("mode: sync\nstate_dir: {root}/new/s\nruntime_dir: {root}/new/r");
    sandbox.configure(&elsewhere);
    // An edit alone harms nobody: the running server keeps its directories.
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    assert_eq!(sandbox.stop_server(), 0);
    refused_start(&sandbox);
    sandbox.configure("mode: sync");
    sandbox.start_server();
    sandbox.configure(&elsewhere);
    sandbox.done(&["kill", "--stop-children"]);
    sandbox.wait_server();
    assert!(!lives(web));
    sandbox.start_server();
    let new = pid_of(&sandbox.wait_state("web", "running"));
    // Back again: it is the other way round now.
    sandbox.kill_server();
    sandbox.configure("mode: sync");
    let output = refused_start(&sandbox);
    assert!(
        output.stderr.contains(&format!("`{root}/new/r`")),
        "{output:?}"
    );
    assert!(lives(new));
    sandbox.configure(&elsewhere);
    sandbox.start_server();
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), new);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn a_directory_that_was_moved_with_all_that_is_in_it_may_be_named_anew() {
    let (mut sandbox, web) = left("mode: sync");
    let root = sandbox.root().display().to_string();
    sandbox.kill_server();
    fs::rename(sandbox.root().join("run"), sandbox.root().join("run2")).unwrap();
    fs::rename(sandbox.root().join("state"), sandbox.root().join("state2")).unwrap();
    sandbox.configure(&format!(
        "mode: sync\nstate_dir: {root}/state2\nruntime_dir: {root}/run2"
    ));
    sandbox.start_server();
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    // And by another name of the same directory.
    sandbox.kill_server();
    std::os::unix::fs::symlink("run2", sandbox.root().join("run3")).unwrap();
    sandbox.configure(&format!(
        "mode: sync\nstate_dir: {root}/state2\nruntime_dir: {root}/run3"
    ));
    sandbox.start_server();
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn what_had_ended_meanwhile_is_no_reason_to_refuse() {
    let (mut sandbox, web) = left("mode: quiet");
    let root = sandbox.root().display().to_string();
    sandbox.kill_server();
    let pid = rustix::process::Pid::from_raw(web).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("its end", PATIENCE, || !lives(web));
    sandbox.configure(&format!("mode: quiet\nruntime_dir: {root}/run2"));
    sandbox.start_server();
    assert!(sandbox.root().join("run2/runtime.journal").exists());
}

#[test]
fn a_server_that_ends_with_nothing_running_leaves_no_note() {
    let (mut sandbox, web) = left("mode: sync");
    let note = |dir: &str| sandbox.root().join(dir).join("directories");
    let notes = [note("state"), note("run")];
    assert!(notes.iter().all(|note| note.exists()));
    assert_eq!(sandbox.stop_server(), 0);
    assert!(notes.iter().all(|note| note.exists()), "web runs on");
    sandbox.start_server();
    sandbox.done(&["kill", "--stop-children"]);
    sandbox.wait_server();
    assert!(!lives(web));
    assert!(notes.iter().all(|note| !note.exists()));
}
