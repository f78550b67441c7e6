//! Bad input: every fault is told with its place and the way out, and harms nothing that runs.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use serde_json::Value;

use crate::sandbox::{Output, PATIENCE, Sandbox, run, skip, wait_for};

const WEB: &str = "command: [sleep, '300']\n";

fn check(sandbox: &Sandbox) -> Output {
    let path = sandbox.server_yml();
    sandbox.server_to_end(&["--check", path.to_str().expect("UTF-8")])
}

/// What `check NAME` says is wrong with the file of a child.
fn faults(sandbox: &Sandbox, name: &str) -> Option<String> {
    let answer = sandbox.json(&["check", name]);
    let faults = answer["children"][0]["faults"].as_array()?;
    let texts: Vec<&str> = faults.iter().filter_map(Value::as_str).collect();
    Some(texts.join("\n"))
}

/// Puts something into the loadpath of a server that runs `web`, waits until it is told as a
/// fault of the child `bad`, and sees that `web` was not disturbed.
fn fault_of(put: impl FnOnce(&Path)) -> String {
    let sandbox = Sandbox::start("mode: sync\nrescan: 1s");
    sandbox.write("web.yml", WEB);
    let before = sandbox.wait_state("web", "running");
    put(&sandbox.loadpath().join("bad.yml"));
    let mut told = String::new();
    wait_for("the fault", PATIENCE, || {
        told = match sandbox.row("bad") {
            Some(_) => faults(&sandbox, "bad").unwrap_or_default(),
            None => String::new(),
        };
        !told.is_empty()
    });
    let row = sandbox.row("bad").expect("it was there just now");
    assert_eq!(row["config"]["status"], "invalid", "{row}");
    assert_eq!(row["pid"], Value::Null, "{row}");
    let refused = sandbox.client(&["start", "bad"]);
    assert_eq!(refused.code, 6, "{refused:?}");
    let after = sandbox.wait_state("web", "running");
    assert_eq!(before["pid"], after["pid"]);
    told
}

#[test]
fn check_prints_every_fault_of_the_server_file_and_exits_6() {
    let sandbox = Sandbox::new("mode: ful\nstartupp: [a]\nrescan: soon");
    let output = check(&sandbox);
    assert_eq!(output.code, 6, "{output:?}");
    for part in [
        "server.yml:8:7: ",
        "did you mean `full`",
        "server.yml:9:1: unknown key `startupp`",
        "did you mean `startup`",
        "server.yml:10:9: ",
        "8 | mode: ful",
        "^^^",
    ] {
        assert!(output.stderr.contains(part), "{part}\n{}", output.stderr);
    }
    assert_eq!(output.stdout, "");
}

#[test]
fn check_prints_the_faults_of_all_children_at_once_and_exits_6() {
    let sandbox = Sandbox::new("mode: sync");
    sandbox.write("a.yml", "comand: x\n");
    sandbox.write(
        "b.yml",
        "command: x\nrepeat: {seconds: 0}\nhooks: []\nunknown: 1\n",
    );
    sandbox.write("good.yml", WEB);
    sandbox.write("twice.yml", WEB);
    sandbox.write("twice.yaml", WEB);
    sandbox.write("all.yml", WEB);
    let output = check(&sandbox);
    assert_eq!(output.code, 6, "{output:?}");
    for part in [
        "a.yml:1:1: ",
        "did you mean `command`",
        "b.yml:2:",
        "b.yml:4:1: unknown key `unknown`",
        "several files declare `twice`",
        "twice.yaml",
        "`all` is a word of the command line",
    ] {
        assert!(output.stderr.contains(part), "{part}\n{}", output.stderr);
    }
    assert!(!output.stderr.contains("good.yml"), "{}", output.stderr);
}

#[test]
fn check_of_what_is_good_says_nothing_and_exits_0() {
    let sandbox = Sandbox::new("mode: full");
    sandbox.write("good.yml", WEB);
    let output = check(&sandbox);
    let silent = Output {
        stdout: String::new(),
        stderr: String::new(),
        code: 0,
    };
    assert_eq!(output, silent);
    assert!(!sandbox.log_dir().exists(), "a check makes nothing");
}

#[test]
fn check_tells_of_loadpaths_that_are_missing_and_fails_on_those_that_cannot_be_used() {
    let sandbox = Sandbox::new("mode: sync");
    let load = sandbox.loadpath();
    fs::remove_dir(&load).expect("an empty loadpath");
    let output = check(&sandbox);
    let note = format!("note: loadpath `{}` does not exist yet\n", load.display());
    assert_eq!((output.code, output.stderr), (0, note));

    fs::create_dir(&load).expect("a loadpath");
    fs::set_permissions(&load, Permissions::from_mode(0o777)).expect("it is ours");
    let output = check(&sandbox);
    assert_eq!(output.code, 6, "{output:?}");
    let fault = format!("`{}` is not trusted: everybody may write", load.display());
    assert!(output.stderr.starts_with(&fault), "{}", output.stderr);

    fs::remove_dir(&load).expect("an empty loadpath");
    fs::write(&load, "").expect("a file in its place");
    let output = check(&sandbox);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(
        output.stderr.contains("is a file, not a directory"),
        "{}",
        output.stderr
    );
}

#[test]
fn a_server_file_that_is_not_there_or_not_ours_says_what_to_do() {
    let sandbox = Sandbox::new("mode: sync\ntrusted_owners: [12345]");
    let nowhere = sandbox.root().join("nowhere.yml");
    let said = |path: &Path| {
        let output = sandbox.server_to_end(&["--check", path.to_str().expect("UTF-8")]);
        assert_eq!(output.code, 6, "{output:?}");
        output.stderr
    };
    assert_eq!(
        said(&nowhere),
        format!(
            "`{}` does not exist\nhelp: name the server file: `supervisor-rs-server SERVER.yml`\n",
            nowhere.display()
        )
    );
    let root = sandbox.root();
    assert_eq!(
        said(root),
        format!(
            "`{0}` is a directory, not a regular file\nhelp: name the file in it, such as `{0}/server.yml`\n",
            root.display()
        )
    );
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    // It names this owner as trusted, but nobody has any reason to believe it.
    let path = sandbox.server_yml();
    std::os::unix::fs::chown(&path, Some(12345), None).expect("we are root");
    let told = said(&path);
    let help = format!("\nhelp: `chown root {}`\n", path.display());
    assert!(told.ends_with(&help), "{told}");
}

#[test]
fn a_server_file_that_is_bad_or_missing_keeps_the_server_from_starting() {
    let sandbox = Sandbox::new("mode: nonsense");
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().expect("UTF-8")]);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(
        output.stderr.contains("server.yml:8:7: "),
        "{}",
        output.stderr
    );

    let nowhere = sandbox.root().join("nowhere.yml");
    let output = sandbox.server_to_end(&[nowhere.to_str().expect("UTF-8")]);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stderr.contains("nowhere.yml"), "{}", output.stderr);
}

#[test]
fn a_directory_named_like_a_child_is_a_fault() {
    let told = fault_of(|path| fs::create_dir(path).expect("a directory"));
    assert!(told.contains("directory"), "{told}");
}

#[test]
fn a_dangling_link_is_a_fault() {
    let told = fault_of(|path| symlink("nowhere", path).expect("a link"));
    assert!(told.contains("bad.yml"), "{told}");
}

#[test]
fn a_loop_of_links_is_a_fault() {
    let told = fault_of(|path| symlink("bad.yml", path).expect("a link"));
    assert!(told.contains("link"), "{told}");
}

#[test]
fn a_fifo_is_a_fault_and_hangs_nobody() {
    let told = fault_of(|path| {
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("a FIFO");
    });
    assert!(told.contains("bad.yml"), "{told}");
}

#[test]
fn an_empty_file_is_a_fault() {
    let told = fault_of(|path| fs::write(path, "").expect("a file"));
    assert!(told.contains("bad.yml"), "{told}");
}

#[test]
fn text_that_is_not_utf_8_is_a_fault() {
    let told = fault_of(|path| fs::write(path, b"command: \xff\xfe\n").expect("a file"));
    assert!(told.contains("UTF-8"), "{told}");
}

#[test]
fn a_file_of_100_megabytes_is_a_fault_and_is_not_read_whole() {
    let told = fault_of(|path| {
        let mut file = File::create(path).expect("a file");
        file.write_all(b"command: x # ").expect("a disk");
        file.set_len(100 << 20).expect("a disk");
    });
    assert!(told.contains("large") || told.contains("bytes"), "{told}");
}

#[test]
fn an_alias_bomb_is_a_fault() {
    let mut yaml = String::from("x-a0: &a0 [z, z, z, z, z, z, z, z, z]\n");
    for level in 1..20 {
        let (of, alias) = (level - 1, format!("*a{}", level - 1));
        let row = [alias.as_str(); 9].join(", ");
        yaml.push_str(&format!("x-a{level}: &a{level} [{row}] # of a{of}\n"));
    }
    yaml.push_str("command: *a19\n");
    let told = fault_of(|path| fs::write(path, &yaml).expect("a file"));
    assert!(told.contains("bad.yml"), "{told}");
}

#[test]
fn a_hundred_thousand_brackets_are_a_fault() {
    // Within the size of a child file, nested far too deep; over it, too large.
    let deep = format!("command: {}", "[".repeat(60_000));
    let told = fault_of(|path| fs::write(path, &deep).expect("a file"));
    assert!(told.contains("bad.yml"), "{told}");
    let long = format!("command: {}", "[".repeat(100_000));
    let told = fault_of(|path| fs::write(path, &long).expect("a file"));
    assert!(told.contains("bad.yml"), "{told}");
}

#[test]
fn a_file_that_others_can_write_is_not_used_and_the_way_out_is_told() {
    let told = fault_of(|path| {
        let aside = path.with_extension("tmp");
        fs::write(&aside, WEB).expect("a file");
        fs::set_permissions(&aside, Permissions::from_mode(0o666)).expect("its owner");
        fs::rename(&aside, path).expect("a rename");
    });
    assert!(told.contains("chmod"), "{told}");
}

#[test]
fn a_file_of_a_stranger_is_not_used_and_the_way_out_is_told() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let told = fault_of(|path| {
        let aside = path.with_extension("tmp");
        fs::write(&aside, WEB).expect("a file");
        std::os::unix::fs::chown(&aside, Some(65_534), None).expect("root");
        fs::rename(&aside, path).expect("a rename");
    });
    assert!(
        told.contains("chown") && told.contains("trusted_owners"),
        "{told}"
    );
}

#[test]
fn a_loadpath_that_others_can_write_is_not_read_and_stops_nothing() {
    let sandbox = Sandbox::start("mode: sync\nrescan: 1s");
    sandbox.write("web.yml", WEB);
    let before = sandbox.wait_state("web", "running");
    let mode = |mode| {
        let permissions = Permissions::from_mode(mode);
        fs::set_permissions(sandbox.loadpath(), permissions).expect("its owner");
    };
    mode(0o777);
    wait_for("the fault", PATIENCE, || {
        let notes = sandbox.json(&["check"])["notes"].to_string();
        notes.contains("cannot be read") && notes.contains("chmod")
    });
    // Longer than the quiet second, shown by a rescan that comes later.
    wait_for("a rescan", PATIENCE, || {
        let row = sandbox.row("web").expect("it runs");
        row["uptime_ms"].as_u64().expect("a live run") > 2_500
    });
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["pid"], before["pid"]);
    mode(0o755);
    wait_for("the fault's end", PATIENCE, || {
        sandbox.json(&["check"])["notes"] == Value::Null
            && sandbox.row("web").expect("it runs")["config"]["status"] == "current"
    });
    assert_eq!(sandbox.wait_state("web", "running")["pid"], before["pid"]);
}

#[test]
fn a_server_file_that_others_can_write_keeps_the_server_from_starting() {
    let sandbox = Sandbox::new("mode: sync");
    let path = sandbox.server_yml();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("its owner");
    let output = sandbox.server_to_end(&[path.to_str().expect("UTF-8")]);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stderr.contains("chmod"), "{}", output.stderr);
}

#[test]
fn a_server_file_is_not_made_trusted_by_what_it_says_itself() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let sandbox = Sandbox::new("mode: sync\ntrusted_owners: [nobody]");
    let path = sandbox.server_yml();
    std::os::unix::fs::chown(&path, Some(65_534), None).expect("root");
    let output = sandbox.server_to_end(&[path.to_str().expect("UTF-8")]);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stderr.contains("chown"), "{}", output.stderr);
}

#[test]
fn an_edit_that_belongs_to_a_trusted_owner_is_refused_as_a_start_with_it_would_be() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let sandbox = Sandbox::start("mode: quiet\ntrusted_owners: [nobody]");
    let path = sandbox.server_yml();
    let edited = fs::read_to_string(&path).expect("the file");
    let edited = edited.replace("mode: quiet", "mode: sync");
    let theirs = sandbox.root().join("theirs");
    fs::write(&theirs, edited).expect("a writable sandbox");
    chown(&theirs, Some(65_534), None).expect("root");
    fs::rename(&theirs, &path).expect("a writable sandbox");

    let mut info = sandbox.json(&["info"]);
    wait_for("the fault", PATIENCE, || {
        info = sandbox.json(&["info"]);
        info["faults"] != serde_json::json!([])
    });
    assert_eq!(info["mode"], "quiet");
    let fault = info["faults"][0].as_str().expect("a text").to_owned();
    let help = format!("\nhelp: `chown root {}`", path.display());
    assert!(fault.ends_with(&help), "{fault}");
    // The next start says the very same.
    let output = sandbox.server_to_end(&["--check", path.to_str().expect("UTF-8")]);
    assert_eq!((output.code, output.stderr), (6, format!("{fault}\n")));

    chown(&path, Some(0), None).expect("root");
    wait_for("the edit", PATIENCE, || {
        info = sandbox.json(&["info"]);
        info["mode"] == "sync"
    });
    assert_eq!(info["faults"], serde_json::json!([]));
}

#[test]
fn a_server_file_that_is_no_longer_trusted_is_told_of_and_so_is_its_mending() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a directory away");
    }
    let sandbox = Sandbox::start("mode: quiet\ntrusted_owners: [nobody]");
    let is_told = || sandbox.json(&["info"])["faults"] != serde_json::json!([]);
    // What was written a moment ago is told of whatever is seen.
    let written = fs::metadata(sandbox.server_yml()).and_then(|file| file.modified());
    let written = written.expect("it is there");
    wait_for("a file that is not new", PATIENCE, || {
        written.elapsed().is_ok_and(|age| age.as_millis() > 100)
    });
    // Its owner may own what is in loadpaths, and not what server.yml lies in.
    for _ in 0..2 {
        chown(sandbox.root(), Some(65_534), None).expect("root");
        wait_for("the fault", PATIENCE, is_told);
        chown(sandbox.root(), Some(0), None).expect("root");
        wait_for("its end", PATIENCE, || !is_told());
    }
}

#[test]
fn a_bad_edit_leaves_the_run_and_its_spec_and_its_fault_goes_when_mended() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", WEB);
    let before = sandbox.wait_state("web", "running");
    sandbox.write("web.yml", "command: [sleep\n");
    wait_for("the fault", PATIENCE, || {
        sandbox.row("web").expect("it runs")["config"]["status"] == "invalid"
    });
    for verb in ["restart", "trystart"] {
        let refused = sandbox.client(&[verb, "web"]);
        assert_eq!(refused.code, 6, "{refused:?}");
        assert!(refused.stderr.contains("web.yml:"), "{refused:?}");
    }
    sandbox.write("web.yml", WEB);
    wait_for("the fault's end", PATIENCE, || {
        sandbox.row("web").expect("it runs")["config"]["status"] == "current"
    });
    let after = sandbox.wait_state("web", "running");
    assert_eq!(
        (&before["pid"], &before["run"]),
        (&after["pid"], &after["run"])
    );
}

#[test]
fn the_demo_has_no_faults() {
    let sandbox = Sandbox::new("");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo/server.yml");
    let output = sandbox.server_to_end(&["--check", demo.to_str().expect("UTF-8")]);
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn a_check_of_a_closed_standard_error_is_silent() {
    let sandbox = Sandbox::new("mode: nonsense");
    let mut command = std::process::Command::new("sh");
    let script = format!(
        "{} --check {} 2>&-",
        env!("CARGO_BIN_EXE_supervisor-rs-server"),
        sandbox.server_yml().display()
    );
    command.args(["-c", &script]);
    assert_eq!(run(command).code, 6);
}
