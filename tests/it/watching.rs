//! Watching (DESIGN 5): however a file comes, goes or changes, it is followed, once and whole.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::sandbox::{self, PATIENCE, Sandbox, skip, stays, wait_for};

const OLD: &str = "command: sleep 300\n";
const NEW: &str = "command: sleep 301\n";

/// Longer than the quiet second.
const QUIET_PASSED: Duration = Duration::from_millis(1_500);

fn runs(sandbox: &Sandbox, name: &str) -> i64 {
    sandbox.wait_state(name, "running")["pid"].as_i64().unwrap()
}

/// A server in `sync` mode with these children, all running.
fn with(names: &[&str]) -> Sandbox {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off");
    for name in names {
        sandbox.write(&format!("{name}.yml"), OLD);
    }
    sandbox.start_server();
    for name in names {
        runs(&sandbox, name);
    }
    sandbox
}

fn run_of(sandbox: &Sandbox, name: &str) -> i64 {
    sandbox.row(name).unwrap()["run"].as_i64().unwrap()
}

fn wait_command(sandbox: &Sandbox, name: &str, command: &str) {
    wait_for(&format!("`{name}` as `{command}`"), PATIENCE, || {
        sandbox.command_of(name) == command
    });
}

fn wait_status(sandbox: &Sandbox, name: &str, status: &str) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("`{name}` shown as {status}"), PATIENCE, || {
        row = sandbox.row(name).unwrap_or_default();
        row["config"]["status"] == status
    });
    row
}

/// Runs a tool to its successful end.
fn tool(sandbox: &Sandbox, dir: &Path, line: &[&str]) {
    let mut command = Command::new(line[0]);
    command
        .args(&line[1..])
        .current_dir(dir)
        .env("HOME", sandbox.root())
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    let output = sandbox::run(command);
    assert_eq!(output.code, 0, "{line:?}: {output:?}");
}

fn is_missing(tool: &str) -> bool {
    let missing = Command::new(tool).arg("--version").output().is_err();
    if missing {
        skip(&format!("`{tool}` is not installed"));
    }
    missing
}

/// Has a file edited from [`OLD`] to [`NEW`]: its child is restarted once, without a complaint,
/// and no other is touched.
fn assert_edit_is_one_restart(edit: impl Fn(&Sandbox, &Path)) {
    let sandbox = with(&["web", "other"]);
    let other = runs(&sandbox, "other");
    edit(&sandbox, &sandbox.loadpath().join("web.yml"));
    wait_command(&sandbox, "web", "sleep 301");
    // What came last is done; so would be what came before.
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(run_of(&sandbox, "web"), 2, "{}", sandbox.server_log());
    assert_eq!(runs(&sandbox, "other"), other);
    let log = sandbox.server_log();
    assert!(
        !log.contains(" WARN ") || !log.contains("bad file"),
        "{log}"
    );
    let info = sandbox.json(&["info"]);
    assert_eq!(info["counts"], json!({"running": 3}), "{info}");
    assert_eq!(info["faults"], json!([]), "{info}");
}

// Ways to write a file.

#[test]
fn a_file_written_in_place_is_followed() {
    assert_edit_is_one_restart(|_, file| fs::write(file, NEW).unwrap());
}

#[test]
fn a_file_renamed_into_place_is_followed() {
    assert_edit_is_one_restart(|sandbox, _| sandbox.write("web.yml", NEW));
}

#[test]
fn a_file_made_beside_it_and_renamed_is_followed() {
    assert_edit_is_one_restart(|_, file| {
        let beside = file.with_file_name(".web.yml.Xq3f1a");
        fs::write(&beside, NEW).unwrap();
        fs::rename(beside, file).unwrap();
    });
}

#[test]
fn a_file_that_is_removed_and_made_anew_is_followed() {
    assert_edit_is_one_restart(|_, file| {
        fs::remove_file(file).unwrap();
        fs::write(file, NEW).unwrap();
    });
}

#[test]
fn a_file_that_becomes_a_link_is_followed() {
    assert_edit_is_one_restart(|sandbox, file| {
        let real = sandbox.root().join("real.yml");
        fs::write(&real, NEW).unwrap();
        symlink(real, sandbox.root().join("link")).unwrap();
        fs::rename(sandbox.root().join("link"), file).unwrap();
    });
}

#[test]
fn vim_is_followed_whether_it_writes_in_place_or_renames() {
    if is_missing("vim") {
        return;
    }
    for copy in ["yes", "no", "auto"] {
        assert_edit_is_one_restart(|sandbox, file| {
            let set = format!("+set backupcopy={copy} writebackup");
            let path = file.to_str().unwrap();
            let line = [
                "vim",
                "-u",
                "NONE",
                "-es",
                &set,
                "+%s/300/301/",
                "+wq",
                path,
            ];
            tool(sandbox, sandbox.root(), &line);
        });
    }
}

#[test]
fn ex_is_followed() {
    if is_missing("ex") {
        return;
    }
    assert_edit_is_one_restart(|sandbox, file| {
        let path = file.to_str().unwrap();
        tool(
            sandbox,
            sandbox.root(),
            &["ex", "-s", "+%s/300/301/", "+x", path],
        );
    });
}

#[test]
fn sed_in_place_is_followed() {
    if is_missing("sed") {
        return;
    }
    assert_edit_is_one_restart(|sandbox, file| {
        let path = file.to_str().unwrap();
        tool(sandbox, sandbox.root(), &["sed", "-i", "s/300/301/", path]);
    });
}

#[test]
fn rsync_is_followed_and_deletes() {
    if is_missing("rsync") {
        return;
    }
    for how in ["--whole-file", "--inplace"] {
        let sandbox = with(&["web", "other", "gone"]);
        let other = runs(&sandbox, "other");
        let from = sandbox.root().join("from");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("web.yml"), NEW).unwrap();
        fs::write(from.join("other.yml"), OLD).unwrap();
        fs::write(from.join("fresh.yml"), OLD).unwrap();
        let line = [
            "rsync",
            "-r",
            "--checksum",
            "--delete",
            how,
            "from/",
            "load/",
        ];
        tool(&sandbox, sandbox.root(), &line);
        wait_command(&sandbox, "web", "sleep 301");
        runs(&sandbox, "fresh");
        sandbox.wait_state("gone", "stopped");
        assert_eq!(runs(&sandbox, "other"), other);
        assert_eq!(run_of(&sandbox, "web"), 2, "{}", sandbox.server_log());
        assert!(!sandbox.server_log().contains("bad file"));
    }
}

// Files that are being written.

#[test]
fn a_valid_file_rewritten_a_few_bytes_at_a_time_never_disturbs_the_run() {
    let sandbox = with(&["web"]);
    let before = sandbox.row("web").unwrap();
    let text = "# rewritten slowly\ncommand: sleep 301\nrestart: never\n";
    let path = sandbox.loadpath().join("web.yml");
    let mut file = File::options()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    for (number, piece) in text.as_bytes().chunks(3).enumerate() {
        file.write_all(piece).unwrap();
        if number % 4 == 0 {
            // The watcher has been at work since.
            let control = format!("control{number}");
            sandbox.write(&format!("{control}.yml"), OLD);
            runs(&sandbox, &control);
        }
        if number % 6 == 0 {
            sandbox.signal_server(Signal::HUP);
        }
        let row = sandbox.row("web").unwrap();
        for field in ["pid", "run", "state", "config"] {
            assert_eq!(row[field], before[field], "after {number} pieces: {row}");
        }
        assert_eq!(row["faults"], Value::Null, "after {number} pieces: {row}");
    }
    // A command finds the last good one.
    assert_eq!(sandbox.json(&["restart", "web"])["run"], 2);
    assert_eq!(sandbox.command_of("web"), "sleep 300");
    stays("it runs on", QUIET_PASSED, || run_of(&sandbox, "web") == 2);
    drop(file);
    wait_command(&sandbox, "web", "sleep 301");
    assert_eq!(run_of(&sandbox, "web"), 3);
    let log = sandbox.server_log();
    assert!(!log.contains("bad file"), "{log}");
}

#[test]
fn a_file_that_is_being_written_when_the_server_starts_disturbs_no_run() {
    for mode in ["sync", "full"] {
        let mut sandbox = Sandbox::start(&format!("mode: {mode}\nrescan: off"));
        sandbox.write("web.yml", OLD);
        let web = runs(&sandbox, "web");
        sandbox.kill_server();
        let path = sandbox.loadpath().join("web.yml");
        let mut file = File::options()
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        file.write_all(b"command: sleep").unwrap();
        let mut new = File::create(sandbox.loadpath().join("new.yml")).unwrap();
        new.write_all(b"comm").unwrap();
        sandbox.start_server();
        stays("it runs on", QUIET_PASSED, || {
            let row = sandbox.row("web").unwrap();
            row["state"] == "running" && row["pid"] == web
        });
        sandbox.signal_server(Signal::HUP);
        sandbox.write("control.yml", OLD);
        runs(&sandbox, "control");
        assert_eq!(runs(&sandbox, "web"), web, "{mode}");
        let info = sandbox.json(&["info"]);
        assert_eq!(info["counts"], json!({"running": 2}), "{mode}: {info}");
        file.write_all(b" 301\n").unwrap();
        new.write_all(b"and: sleep 300\n").unwrap();
        drop((file, new));
        runs(&sandbox, "new");
        if mode == "sync" {
            wait_command(&sandbox, "web", "sleep 301");
        } else {
            wait_status(&sandbox, "web", "changed");
        }
        assert!(!sandbox.server_log().contains("bad file"));
    }
}

#[test]
fn a_new_file_is_not_known_before_it_is_closed() {
    let sandbox = with(&[]);
    let path = sandbox.loadpath().join("web.yml");
    let mut file = File::create(&path).unwrap();
    for (number, piece) in OLD.as_bytes().chunks(5).enumerate() {
        file.write_all(piece).unwrap();
        let control = format!("control{number}");
        sandbox.write(&format!("{control}.yml"), OLD);
        runs(&sandbox, &control);
        assert_eq!(sandbox.row("web"), None, "after {number} pieces");
    }
    let unknown = sandbox.client(&["start", "web"]);
    assert_eq!(unknown.code, 5, "{unknown:?}");
    drop(file);
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert!(!sandbox.server_log().contains("bad file"));
}

#[test]
fn a_link_to_a_file_that_is_being_written_is_followed_once_that_is_closed() {
    // No hint tells of the closing: where the link leads is not watched. Any program that forks
    // while it writes a ConfigMap holds its files open a little longer than it means to.
    let sandbox = with(&["web"]);
    let elsewhere = directory(&sandbox, "elsewhere", &[]);
    let open = |name: &str| {
        let mut file = File::create(elsewhere.join(name)).unwrap();
        file.write_all(NEW.as_bytes()).unwrap();
        let link = sandbox.root().join("link");
        symlink(elsewhere.join(name), &link).unwrap();
        fs::rename(link, sandbox.loadpath().join(name)).unwrap();
        file
    };
    let files = (open("fresh.yml"), open("web.yml"));
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(sandbox.row("fresh"), None);
    assert_eq!(sandbox.command_of("web"), "sleep 300");
    drop(files);
    runs(&sandbox, "fresh");
    wait_command(&sandbox, "web", "sleep 301");
    assert!(!sandbox.server_log().contains("bad file"));
}

#[test]
fn a_file_held_open_without_an_end_keeps_nobody_else_waiting() {
    let sandbox = with(&["web"]);
    let _held = File::options()
        .append(true)
        .open(sandbox.loadpath().join("web.yml"))
        .unwrap();
    for number in 0..5 {
        let control = format!("control{number}");
        sandbox.write(&format!("{control}.yml"), OLD);
        runs(&sandbox, &control);
    }
    // Replaced, it is another file, which nobody holds open.
    sandbox.write("web.yml", NEW);
    wait_command(&sandbox, "web", "sleep 301");
}

#[test]
fn what_is_no_child_is_left_alone() {
    let sandbox = with(&["web"]);
    for name in [
        ".hidden.yml",
        "backup.yml~",
        ".web.yml.swp",
        "web.yml.tmp",
        "notes.txt",
        "4913",
    ] {
        fs::write(sandbox.loadpath().join(name), "comand: {\n").unwrap();
    }
    // Directories are not looked into.
    fs::create_dir(sandbox.loadpath().join("below")).unwrap();
    fs::write(sandbox.loadpath().join("below/deep.yml"), OLD).unwrap();
    let aside = sandbox.root().join("aside");
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("moved.yml"), OLD).unwrap();
    fs::rename(aside, sandbox.loadpath().join("moved-in")).unwrap();
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    let info = sandbox.json(&["info"]);
    assert_eq!(info["counts"], json!({"running": 2}), "{info}");
    assert_eq!(info["faults"], json!([]), "{info}");
}

#[test]
fn a_file_that_no_child_can_be_called_after_is_a_fault_that_goes_with_it() {
    let sandbox = with(&["web"]);
    sandbox.write("restart.yml", OLD);
    let mut faults = Value::Null;
    wait_for("the fault", PATIENCE, || {
        faults = sandbox.json(&["info"])["faults"].clone();
        faults != json!([])
    });
    assert!(
        faults[0].as_str().unwrap().contains("restart.yml"),
        "{faults}"
    );
    sandbox.remove("restart.yml");
    wait_for("no fault", PATIENCE, || {
        sandbox.json(&["info"])["faults"] == json!([])
    });
}

// git

/// How often the branches are changed.
const FLIPS: usize = 50;

/// A repository that is the loadpath: on branch `old` all is [`OLD`], on `new` `differs` is
/// [`NEW`], `words` says the same in other words, and `more` is there too.
fn repository(sandbox: &Sandbox) -> PathBuf {
    let load = sandbox.loadpath();
    let git = |line: &[&str]| {
        let who = [
            "-c",
            "user.name=tester",
            "-c",
            "user.email=tester@localhost",
        ];
        tool(sandbox, &load, &[&["git"], &who[..], line].concat());
    };
    git(&["init", "--quiet", "--initial-branch=old"]);
    for name in ["same", "words", "differs"] {
        sandbox.write(&format!("{name}.yml"), OLD);
    }
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message=old"]);
    git(&["checkout", "--quiet", "-b", "new"]);
    sandbox.write("differs.yml", NEW);
    sandbox.write("words.yml", "# the same\ncommand: [sleep, '300']\n");
    sandbox.write("more.yml", OLD);
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message=new"]);
    git(&["checkout", "--quiet", "old"]);
    load
}

fn checkout(sandbox: &Sandbox, load: &Path, branch: &str) {
    tool(sandbox, load, &["git", "checkout", "--quiet", branch]);
}

#[test]
fn git_checkout_to_and_fro_restarts_only_what_differs() {
    if is_missing("git") {
        return;
    }
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off");
    let load = repository(&sandbox);
    sandbox.start_server();
    for name in ["same", "words", "differs"] {
        runs(&sandbox, name);
    }
    let before = (runs(&sandbox, "same"), runs(&sandbox, "words"));
    for flip in 0..FLIPS {
        let (branch, command) = [("new", "sleep 301"), ("old", "sleep 300")][flip % 2];
        checkout(&sandbox, &load, branch);
        wait_command(&sandbox, "differs", command);
    }
    assert_eq!(run_of(&sandbox, "differs"), 1 + FLIPS as i64);
    let after = (runs(&sandbox, "same"), runs(&sandbox, "words"));
    assert_eq!(after, before);
    sandbox.wait_state("more", "stopped");
    let log = sandbox.server_log();
    assert!(!log.contains("bad file"), "{log}");
    assert!(!log.contains("two files"), "{log}");
}

#[test]
fn git_checkout_to_and_fro_without_a_pause_ends_where_the_last_one_did() {
    if is_missing("git") {
        return;
    }
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off");
    let load = repository(&sandbox);
    sandbox.start_server();
    let before = (runs(&sandbox, "same"), runs(&sandbox, "words"));
    runs(&sandbox, "differs");
    for flip in 0..=FLIPS {
        checkout(&sandbox, &load, ["new", "old"][flip % 2]);
    }
    wait_command(&sandbox, "differs", "sleep 301");
    runs(&sandbox, "more");
    assert!(run_of(&sandbox, "differs") <= 2 + FLIPS as i64);
    let after = (runs(&sandbox, "same"), runs(&sandbox, "words"));
    assert_eq!(after, before);
    assert!(!sandbox.server_log().contains("bad file"));
}

// Directories that move.

/// A directory with these files in it.
fn directory(sandbox: &Sandbox, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = sandbox.root().join(name);
    fs::create_dir(&dir).unwrap();
    for (file, text) in files {
        fs::write(dir.join(file), text).unwrap();
    }
    dir
}

#[test]
fn a_whole_directory_moved_in_out_and_in_is_followed() {
    let sandbox = Sandbox::new("mode: sync\nrescan: off");
    fs::remove_dir(sandbox.loadpath()).unwrap();
    let mut sandbox = sandbox;
    sandbox.start_server();
    let files = [("web.yml", OLD), ("db.yml", OLD), ("same.yml", OLD)];
    let first = directory(&sandbox, "first", &files);
    fs::rename(&first, sandbox.loadpath()).unwrap();
    let same = runs(&sandbox, "same");
    let web = runs(&sandbox, "web");
    runs(&sandbox, "db");

    // Out: nothing is stopped.
    fs::rename(sandbox.loadpath(), &first).unwrap();
    wait_status(&sandbox, "web", "removed");
    stays("all run on", QUIET_PASSED, || {
        sandbox.json(&["info"])["counts"] == json!({"running": 3})
    });

    // Another in: what it says holds.
    let files = [("web.yml", NEW), ("same.yml", OLD), ("fresh.yml", OLD)];
    let second = directory(&sandbox, "second", &files);
    fs::rename(&second, sandbox.loadpath()).unwrap();
    wait_command(&sandbox, "web", "sleep 301");
    runs(&sandbox, "fresh");
    sandbox.wait_state("db", "stopped");
    assert_eq!(runs(&sandbox, "same"), same);
    assert_ne!(runs(&sandbox, "web"), web);

    // And the first again, at once: it is watched as the second was.
    fs::rename(sandbox.loadpath(), &second).unwrap();
    fs::rename(&first, sandbox.loadpath()).unwrap();
    wait_command(&sandbox, "web", "sleep 300");
    runs(&sandbox, "db");
    assert_eq!(runs(&sandbox, "same"), same);
    sandbox.write("web.yml", NEW);
    wait_command(&sandbox, "web", "sleep 301");
    // What happens in the one that was moved away is nothing to us.
    fs::write(second.join("away.yml"), OLD).unwrap();
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(sandbox.row("away"), None);
}

#[test]
fn a_directory_above_the_loadpath_that_is_moved_is_followed() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [above/conf/children]");
    let above = sandbox.root().join("above");
    let children = above.join("conf/children");
    fs::create_dir_all(&children).unwrap();
    fs::write(children.join("web.yml"), OLD).unwrap();
    sandbox.start_server();
    let web = runs(&sandbox, "web");
    let aside = sandbox.root().join("aside");
    fs::rename(&above, &aside).unwrap();
    wait_status(&sandbox, "web", "removed");
    fs::create_dir_all(&children).unwrap();
    sandbox.replace(&children.join("web.yml"), OLD);
    wait_status(&sandbox, "web", "current");
    assert_eq!(runs(&sandbox, "web"), web);
    sandbox.replace(&children.join("web.yml"), NEW);
    wait_command(&sandbox, "web", "sleep 301");
    fs::remove_dir_all(&above).unwrap();
    fs::rename(&aside, &above).unwrap();
    wait_command(&sandbox, "web", "sleep 300");
}

/// `..data` is swapped for another directory, as the kubelet does it.
fn swap_data(load: &Path, number: usize, files: &[(&str, &str)]) {
    let name = format!("..2026_01_01_{number}");
    let dir = load.join(&name);
    fs::create_dir(&dir).unwrap();
    for (file, text) in files {
        fs::write(dir.join(file), text).unwrap();
    }
    let old = fs::read_link(load.join("..data")).ok();
    symlink(&name, load.join("..data_tmp")).unwrap();
    fs::rename(load.join("..data_tmp"), load.join("..data")).unwrap();
    for (file, _) in files {
        let _there_already = symlink(format!("..data/{file}"), load.join(file));
    }
    if let Some(old) = old {
        for entry in fs::read_dir(load.join(&old)).unwrap() {
            let file = entry.unwrap().file_name();
            if !load.join("..data").join(&file).exists() {
                fs::remove_file(load.join(&file)).unwrap();
            }
        }
        fs::remove_dir_all(load.join(old)).unwrap();
    }
}

#[test]
fn a_config_map_swapped_by_its_data_link_is_followed() {
    let sandbox = Sandbox::start("mode: sync\nrescan: off");
    let load = sandbox.loadpath();
    swap_data(
        &load,
        0,
        &[("web.yml", OLD), ("same.yml", OLD), ("gone.yml", OLD)],
    );
    runs(&sandbox, "web");
    runs(&sandbox, "gone");
    let same = runs(&sandbox, "same");
    for number in 1..=10 {
        let text = [OLD, NEW][number % 2];
        swap_data(&load, number, &[("web.yml", text), ("same.yml", OLD)]);
        wait_command(&sandbox, "web", ["sleep 300", "sleep 301"][number % 2]);
    }
    assert_eq!(run_of(&sandbox, "web"), 11);
    assert_eq!(runs(&sandbox, "same"), same);
    sandbox.wait_state("gone", "stopped");
    swap_data(
        &load,
        11,
        &[("web.yml", OLD), ("same.yml", OLD), ("fresh.yml", OLD)],
    );
    runs(&sandbox, "fresh");
    // But for the link that led nowhere until it was removed, nothing was wrong.
    let log = sandbox.server_log();
    let mut bad = log.lines().filter(|line| line.contains("bad file"));
    assert!(bad.all(|line| line.contains("child=gone")), "{log}");
}

#[test]
fn a_loadpath_that_is_a_link_may_be_swapped() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [link]");
    let one = directory(
        &sandbox,
        "one",
        &[("web.yml", OLD), ("same.yml", OLD), ("gone.yml", OLD)],
    );
    let two = directory(&sandbox, "two", &[("web.yml", NEW), ("same.yml", OLD)]);
    // Two links deep: `link` leads to `current`, which leads to one of them.
    let swap = |to: &Path| {
        let temporary = sandbox.root().join("current_tmp");
        symlink(to, &temporary).unwrap();
        fs::rename(temporary, sandbox.root().join("current")).unwrap();
    };
    swap(&one);
    symlink("current", sandbox.root().join("link")).unwrap();
    let link = sandbox.root().join("link");
    sandbox.start_server();
    runs(&sandbox, "gone");
    let same = sandbox.wait_state("same", "running");
    // Paths are told as configured.
    let path = link.join("same.yml");
    assert_eq!(same["config"]["path"], path.to_str().unwrap());
    runs(&sandbox, "web");
    let swap = |to: &Path| {
        let temporary = sandbox.root().join("current_tmp");
        symlink(to, &temporary).unwrap();
        fs::rename(temporary, sandbox.root().join("current")).unwrap();
    };
    for flip in 0..10 {
        swap([&two, &one][flip % 2]);
        wait_command(&sandbox, "web", ["sleep 301", "sleep 300"][flip % 2]);
    }
    assert_eq!(run_of(&sandbox, "web"), 11);
    assert_eq!(sandbox.row("same").unwrap()["pid"], same["pid"]);

    // The outer link too; and the last one is what is watched.
    let temporary = sandbox.root().join("link_tmp");
    symlink(&two, &temporary).unwrap();
    fs::rename(&temporary, &link).unwrap();
    wait_command(&sandbox, "web", "sleep 301");
    sandbox.wait_state("gone", "stopped");
    sandbox.replace(&two.join("web.yml"), OLD);
    wait_command(&sandbox, "web", "sleep 300");
    sandbox.replace(&one.join("elsewhere.yml"), OLD);
    sandbox.replace(&two.join("control.yml"), OLD);
    runs(&sandbox, "control");
    assert_eq!(sandbox.row("elsewhere"), None);
    // A link that leads nowhere is a loadpath that is missing.
    symlink("nowhere", &temporary).unwrap();
    fs::rename(&temporary, &link).unwrap();
    wait_status(&sandbox, "web", "removed");
    stays("they run on", QUIET_PASSED, || {
        sandbox.row("web").unwrap()["state"] == "running"
    });
    assert_eq!(sandbox.row("same").unwrap()["pid"], same["pid"]);
}

#[test]
fn a_loadpath_created_later_is_followed_from_then_on() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [a/b/c]");
    sandbox.start_server();
    let mut path = sandbox.root().to_owned();
    for part in ["a", "b", "c"] {
        path.push(part);
        fs::create_dir(&path).unwrap();
    }
    fs::write(path.join("web.yml"), OLD).unwrap();
    runs(&sandbox, "web");
    sandbox.replace(&path.join("web.yml"), NEW);
    wait_command(&sandbox, "web", "sleep 301");
    fs::remove_file(path.join("web.yml")).unwrap();
    sandbox.wait_state("web", "stopped");
}

#[test]
fn a_loadpath_deleted_and_made_again_is_followed_and_stops_nothing_by_being_away() {
    let sandbox = with(&["web", "db", "same"]);
    let (web, db, same) = (
        runs(&sandbox, "web"),
        runs(&sandbox, "db"),
        runs(&sandbox, "same"),
    );
    for round in 0..3 {
        fs::remove_dir_all(sandbox.loadpath()).unwrap();
        wait_status(&sandbox, "same", "removed");
        if round == 0 {
            stays("all run on", QUIET_PASSED, || {
                sandbox.json(&["info"])["counts"] == json!({"running": 3})
            });
        }
        fs::create_dir(sandbox.loadpath()).unwrap();
        for name in ["web", "db", "same"] {
            sandbox.write(&format!("{name}.yml"), OLD);
        }
        for name in ["web", "db", "same"] {
            wait_status(&sandbox, name, "current");
        }
    }
    let after = (
        runs(&sandbox, "web"),
        runs(&sandbox, "db"),
        runs(&sandbox, "same"),
    );
    assert_eq!(after, (web, db, same));
    sandbox.write("web.yml", NEW);
    wait_command(&sandbox, "web", "sleep 301");
    sandbox.remove("db.yml");
    sandbox.wait_state("db", "stopped");
    assert_eq!(runs(&sandbox, "same"), same);
}

/// How often the threads of the server went to sleep since it started: whoever does nothing has
/// not been woken in between.
fn naps(sandbox: &Sandbox) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", sandbox.server_pid())).unwrap();
    let mut naps = Vec::new();
    for task in tasks {
        let path = task.unwrap().path();
        let status = fs::read_to_string(path.join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"));
        naps.push((path.display().to_string(), line.unwrap().to_owned()));
    }
    naps.sort();
    naps
}

#[test]
fn with_nothing_to_do_the_server_does_nothing() {
    // I9; what is on the way to its end, such as the last client's connection, is waited for.
    let sandbox = with(&["web", "db"]);
    if !sandbox.is_undisturbed() {
        return skip("other tests make directories beside the server's: TMPDIR is not sticky");
    }
    // As in /etc, where every program that starts reads something.
    let noise = sandbox.root().join("noise");
    fs::write(&noise, "").unwrap();
    let mut before = naps(&sandbox);
    wait_for("a second of rest", PATIENCE, || {
        let until = supervisor_rs::clock::mono() + Duration::from_secs(1);
        let mut rests = true;
        while rests && supervisor_rs::clock::mono() < until {
            std::thread::sleep(Duration::from_millis(50));
            let now = naps(&sandbox);
            rests = now == before;
            before = now;
        }
        rests
    });
    stays("it rests", 2 * QUIET_PASSED, || {
        fs::read(&noise).unwrap();
        naps(&sandbox) == before
    });
    fs::write(sandbox.loadpath().join("web.yml"), NEW).unwrap();
    wait_for("it to wake", PATIENCE, || naps(&sandbox) != before);
    wait_command(&sandbox, "web", "sleep 301");
}

// Hints that are lost.

/// How many files are written at once: more hints than the kernel keeps.
const FLOOD: usize = 40_000;

#[test]
fn forty_thousand_files_written_at_once_lose_no_change() {
    let sandbox = with(&["changed", "gone", "same"]);
    let same = runs(&sandbox, "same");
    // The kernel's queue is full before the first hint is read.
    sandbox.signal_server(Signal::STOP);
    for number in 0..FLOOD {
        File::create(sandbox.loadpath().join(format!("{number}.tmp"))).unwrap();
    }
    sandbox.write("changed.yml", NEW);
    sandbox.write("fresh.yml", OLD);
    sandbox.remove("gone.yml");
    sandbox.signal_server(Signal::CONT);
    wait_command(&sandbox, "changed", "sleep 301");
    runs(&sandbox, "fresh");
    sandbox.wait_state("gone", "stopped");
    assert_eq!(runs(&sandbox, "same"), same);
    assert_eq!(run_of(&sandbox, "changed"), 2);

    // And what is told after the flood is heard again, with the flood going on.
    for number in 0..FLOOD {
        fs::remove_file(sandbox.loadpath().join(format!("{number}.tmp"))).unwrap();
        if number == FLOOD / 2 {
            sandbox.write("changed.yml", OLD);
        }
    }
    wait_command(&sandbox, "changed", "sleep 300");
    assert_eq!(run_of(&sandbox, "changed"), 3);
    assert_eq!(runs(&sandbox, "same"), same);
    assert_eq!(
        sandbox.json(&["info"])["capabilities"]["watching"],
        "inotify"
    );
}

/// A user namespace of the server's own, in which so many inotify things may be had. Nobody
/// else's are touched.
fn limited(what: &str, number: u32) -> Option<[String; 7]> {
    let script = format!("echo {number} > /proc/sys/user/max_inotify_{what} && exec \"$@\"");
    let line = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        &script,
        "server",
    ];
    let mut probe = Command::new(line[0]);
    probe.args(&line[1..]).arg("true");
    let works = probe.output().is_ok_and(|output| output.status.success());
    // Other users' directories above ours belong to nobody in there.
    if !works || !rustix::process::geteuid().is_root() {
        skip("no user namespace with limits of its own can be had");
        return None;
    }
    Some(line.map(str::to_owned))
}

/// Changes the limits of the server's user namespace.
fn set_limit(sandbox: &Sandbox, what: &str, number: u32) {
    let pid = sandbox.server_pid().to_string();
    let script = format!("echo {number} > /proc/sys/user/max_inotify_{what}");
    let line = ["nsenter", "--user", "--target", &pid, "sh", "-c", &script];
    tool(sandbox, sandbox.root(), &line);
}

fn watching(sandbox: &Sandbox) -> String {
    let info = sandbox.json(&["info"]);
    info["capabilities"]["watching"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn without_inotify_instances_the_rescan_notices_and_info_says_so() {
    let Some(through) = limited("instances", 0) else {
        return;
    };
    let through = through.each_ref().map(String::as_str);
    let mut sandbox = Sandbox::new("mode: sync\nrescan: 1s").within(&through);
    sandbox.write("web.yml", OLD);
    sandbox.write("gone.yml", OLD);
    sandbox.start_server();
    runs(&sandbox, "web");
    let said = watching(&sandbox);
    assert!(said.starts_with("rescan only: inotify instances"), "{said}");
    assert!(said.contains("fs.inotify.max_user_instances"), "{said}");
    let shown = sandbox.client(&["info"]).stdout;
    assert!(shown.contains(&said), "{shown}");

    // All is noticed nevertheless: a new file, a change, a removal, an edit of server.yml.
    sandbox.write("fresh.yml", OLD);
    runs(&sandbox, "fresh");
    sandbox.write("web.yml", NEW);
    wait_command(&sandbox, "web", "sleep 301");
    sandbox.remove("gone.yml");
    sandbox.wait_state("gone", "stopped");
    sandbox.configure("mode: sync\nrescan: 1s\nstartup: [x]");
    wait_for("the edit", PATIENCE, || {
        sandbox.json(&["info"])["startup"] == json!(["x"])
    });

    // What was used up and is free again is taken.
    set_limit(&sandbox, "instances", 10);
    wait_for("inotify", PATIENCE, || watching(&sandbox) == "inotify");
    sandbox.configure("mode: sync\nrescan: off");
    sandbox.write("web.yml", OLD);
    wait_command(&sandbox, "web", "sleep 300");
}

#[test]
fn without_inotify_watches_the_rescan_notices_and_info_says_so() {
    let Some(through) = limited("watches", 0) else {
        return;
    };
    let through = through.each_ref().map(String::as_str);
    let mut sandbox = Sandbox::new("mode: sync\nrescan: 1s").within(&through);
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    runs(&sandbox, "web");
    let said = watching(&sandbox);
    assert!(said.contains("by rescan only: inotify watches"), "{said}");
    assert!(said.contains("fs.inotify.max_user_watches"), "{said}");
    sandbox.write("web.yml", NEW);
    wait_command(&sandbox, "web", "sleep 301");
    set_limit(&sandbox, "watches", 100);
    wait_for("inotify", PATIENCE, || watching(&sandbox) == "inotify");
}

#[test]
fn without_inotify_and_with_rescan_off_a_hup_still_reads_everything() {
    let Some(through) = limited("instances", 0) else {
        return;
    };
    let through = through.each_ref().map(String::as_str);
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off").within(&through);
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    runs(&sandbox, "web");
    sandbox.write("web.yml", NEW);
    sandbox.write("fresh.yml", OLD);
    assert_eq!(sandbox.row("fresh"), None);
    sandbox.signal_server(Signal::HUP);
    wait_command(&sandbox, "web", "sleep 301");
    runs(&sandbox, "fresh");
    // A command looks at its own file.
    sandbox.write("web.yml", OLD);
    assert_eq!(sandbox.json(&["restart", "web"])["run"], 3);
    assert_eq!(sandbox.command_of("web"), "sleep 300");
    sandbox.write("later.yml", OLD);
    assert_eq!(sandbox.json(&["start", "later"])["ok"], true);
}
