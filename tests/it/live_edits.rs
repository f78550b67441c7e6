//! Live edits of server.yml (DESIGN 3 and 5): applied at once, or shown, or refused whole.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, Sandbox, wait_for};

const OLD: &str = "command: sleep 300\n";
const NEW: &str = "command: sleep 301\n";
const SHORT: &str = "command: 'true'\n";

fn runs(sandbox: &Sandbox, name: &str) -> i64 {
    sandbox.wait_state(name, "running")["pid"].as_i64().unwrap()
}

fn wait_known(sandbox: &Sandbox, name: &str) {
    wait_for(name, PATIENCE, || sandbox.row(name).is_some());
}

fn wait_info(sandbox: &Sandbox, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    let mut info = Value::Null;
    wait_for(what, PATIENCE, || {
        info = sandbox.json(&["info"]);
        condition(&info)
    });
    info
}

fn wait_mode(sandbox: &Sandbox, mode: &str) -> Value {
    wait_info(sandbox, mode, |info| info["mode"] == mode)
}

fn assert_never_ran(sandbox: &Sandbox, name: &str) {
    let row = sandbox.row(name).unwrap();
    assert_eq!(row["state"], "stopped", "{row}");
    assert_eq!(row["run"], Value::Null, "{row}");
}

#[test]
fn a_child_added_to_startup_is_started_at_once_and_one_taken_out_runs_on() {
    let mut sandbox = Sandbox::new("mode: half\nstartup: [web]");
    for name in ["web", "db", "other"] {
        sandbox.write(&format!("{name}.yml"), OLD);
    }
    sandbox.start_server();
    let web = runs(&sandbox, "web");
    assert_never_ran(&sandbox, "db");
    sandbox.configure("mode: half\nstartup: [db, later]");
    assert_eq!(sandbox.wait_state("db", "running")["run"], 1);
    assert_eq!(sandbox.json(&["info"])["startup"], json!(["db", "later"]));
    sandbox.write("later.yml", OLD);
    assert_eq!(sandbox.wait_state("later", "running")["run"], 1);
    assert_eq!(runs(&sandbox, "web"), web);
    assert_never_ran(&sandbox, "other");
}

#[test]
fn being_in_startup_again_starts_nothing_that_ran_or_is_held() {
    let sandbox = &mut Sandbox::new("mode: half\nstartup: [job, web]");
    sandbox.write("job.yml", SHORT);
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    sandbox.wait_state("job", "exited");
    runs(sandbox, "web");
    assert_eq!(sandbox.json(&["stop", "web"])["ok"], true);
    sandbox.configure("mode: half\nstartup: []");
    wait_info(sandbox, "no startup", |info| info["startup"] == json!([]));
    sandbox.write("control.yml", OLD);
    sandbox.configure("mode: half\nstartup: [job, web, control]");
    runs(sandbox, "control");
    assert_eq!(sandbox.row("job").unwrap()["run"], 1);
    assert_eq!(sandbox.row("job").unwrap()["state"], "exited");
    assert_eq!(sandbox.row("web").unwrap()["state"], "stopped");
}

#[test]
fn the_files_of_an_added_loadpath_appear() {
    for (mode, state) in [("quiet", "stopped"), ("sync", "running")] {
        let mut sandbox = Sandbox::start(&format!("mode: {mode}"));
        sandbox.write("web.yml", OLD);
        wait_known(&sandbox, "web");
        let more = sandbox.root().join("more");
        fs::create_dir(&more).unwrap();
        sandbox.replace(&more.join("db.yml"), OLD);
        sandbox.configure(&format!("mode: {mode}\nloadpaths: [load, more]"));
        wait_known(&sandbox, "db");
        sandbox.wait_state("db", state);
        sandbox.wait_state("web", state);
        // It is watched like the other.
        sandbox.replace(&more.join("later.yml"), OLD);
        wait_known(&sandbox, "later");
        let loadpaths = sandbox.json(&["info"])["loadpaths"].clone();
        assert_eq!(loadpaths[1]["path"], more.to_str().unwrap());
        assert_eq!(loadpaths[1]["children"], 2);
    }
}

#[test]
fn a_loadpath_that_moves_to_another_place_in_one_edit_restarts_nothing() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    let web = runs(&sandbox, "web");
    let more = sandbox.root().join("more");
    fs::create_dir(&more).unwrap();
    sandbox.replace(&more.join("web.yml"), OLD);
    sandbox.replace(&more.join("control.yml"), OLD);
    sandbox.configure("mode: sync\nloadpaths: [more]");
    runs(&sandbox, "control");
    sandbox.signal_server(Signal::HUP);
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["pid"], web);
    assert_eq!(row["config"]["status"], "current", "{row}");
    assert_eq!(
        row["config"]["path"],
        more.join("web.yml").to_str().unwrap()
    );
}

#[test]
fn another_mode_is_in_force_at_once() {
    let mut sandbox = Sandbox::new("mode: quiet");
    for name in ["web", "job", "held", "changed", "gone"] {
        let yaml = if name == "job" { SHORT } else { OLD };
        sandbox.write(&format!("{name}.yml"), yaml);
    }
    sandbox.start_server();
    for name in ["job", "held", "changed", "gone"] {
        assert_eq!(sandbox.json(&["start", name])["run"], 1);
    }
    assert_eq!(sandbox.json(&["stop", "held"])["ok"], true);
    sandbox.wait_state("job", "exited");
    sandbox.write("changed.yml", NEW);
    sandbox.remove("gone.yml");
    for (name, status) in [("changed", "changed"), ("gone", "removed")] {
        wait_for(status, PATIENCE, || {
            sandbox.row(name).unwrap()["config"]["status"] == status
        });
    }

    // From quiet to full: what never ran is started, and nothing else happens.
    sandbox.configure("mode: full");
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert_eq!(sandbox.json(&["info"])["mode"], "full");
    assert_eq!(sandbox.row("job").unwrap()["state"], "exited");
    assert_eq!(sandbox.row("held").unwrap()["state"], "stopped");
    assert_eq!(sandbox.command_of("changed"), "sleep 300");
    assert_eq!(sandbox.row("gone").unwrap()["state"], "running");

    // To sync: what changed is restarted, what is gone is stopped.
    sandbox.configure("mode: sync");
    wait_for("the changed one", PATIENCE, || {
        sandbox.command_of("changed") == "sleep 301"
    });
    sandbox.wait_state("gone", "stopped");
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
    assert_eq!(sandbox.row("job").unwrap()["run"], 1);
    assert_eq!(sandbox.row("held").unwrap()["run"], 1);

    // And back: a file that goes stops nothing any more.
    sandbox.configure("mode: quiet");
    wait_mode(&sandbox, "quiet");
    sandbox.remove("web.yml");
    wait_for("removed", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "removed"
    });
    sandbox.write("new.yml", OLD);
    wait_known(&sandbox, "new");
    assert_never_ran(&sandbox, "new");
    sandbox.signal_server(Signal::HUP);
    assert_eq!(sandbox.json(&["start", "new"])["run"], 1);
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

#[test]
fn full_in_a_live_edit_is_not_refused_for_a_bad_file() {
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", OLD);
    sandbox.write("bad.yml", "comand: x\n");
    sandbox.start_server();
    sandbox.configure("mode: full");
    runs(&sandbox, "web");
    let bad = sandbox.row("bad").unwrap();
    assert_eq!(bad["config"]["status"], "invalid", "{bad}");
}

#[test]
fn other_defaults_change_the_children_that_use_them_and_no_others() {
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("uses.yml", OLD);
    sandbox.write("own.yml", &format!("{OLD}restart: always\n"));
    sandbox.write("ended.yml", SHORT);
    sandbox.start_server();
    let uses = sandbox.wait_state("uses", "running");
    let own = sandbox.wait_state("own", "running");
    sandbox.wait_state("ended", "exited");
    sandbox.configure("mode: sync\ndefaults: {restart: on-failure}");
    wait_for("the second run", PATIENCE, || {
        let row = sandbox.row("uses").unwrap();
        row["run"] == 2 && row["state"] == "running"
    });
    let after = sandbox.row("uses").unwrap();
    assert_ne!(after["config"]["digest"], uses["config"]["digest"]);
    assert_eq!(after["config"]["status"], "current");
    // What had ended is due again too: it is another one now.
    wait_for("the second run", PATIENCE, || {
        let row = sandbox.row("ended").unwrap();
        row["run"] == 2 && row["state"] == "exited"
    });
    assert_eq!(sandbox.row("own").unwrap()["pid"], own["pid"]);
    assert_eq!(sandbox.row("own").unwrap()["config"], own["config"]);

    // Defaults that change nothing restart nothing.
    sandbox.configure("mode: sync\ndefaults: {restart: {when: on-failure}}\nstartup: [x]");
    wait_info(&sandbox, "the edit", |info| info["startup"] == json!(["x"]));
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(sandbox.row("uses").unwrap()["run"], 2);
}

#[test]
fn other_defaults_are_shown_as_a_change_where_nothing_is_restarted() {
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    assert_eq!(sandbox.json(&["start", "web"])["run"], 1);
    sandbox.configure("mode: quiet\ndefaults: {workdir: /}");
    wait_for("changed", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
    sandbox.configure("mode: quiet");
    wait_for("current", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "current"
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
}

#[test]
fn an_edit_is_looked_at_before_a_command_that_starts_something() {
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    for (number, dir) in ["/", "/usr", "/tmp"].into_iter().enumerate() {
        sandbox.configure(&format!("mode: quiet\ndefaults: {{workdir: {dir}}}"));
        let pid = sandbox.json(&["trystart", "web"])["pid"].clone();
        let there = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(there.to_str(), Some(dir), "run {}", number + 1);
    }
}

#[test]
fn a_broken_edit_changes_nothing_and_is_shown_until_it_is_mended() {
    let mut sandbox = Sandbox::new("mode: sync\nstartup: [web]");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    let web = runs(&sandbox, "web");
    let before = sandbox.json(&["info"]);
    assert_eq!(before["faults"], json!([]));
    sandbox
        .configure("mode: quiet\nstartup: []\nloadpaths: [elsewhere]\nmood: bad\non_exit: maybe");
    let info = wait_info(&sandbox, "the faults", |info| info["faults"] != json!([]));
    let faults = info["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{faults:#?}");
    let path = sandbox.server_yml();
    for (fault, what) in faults.iter().zip(["mood", "maybe"]) {
        let fault = fault.as_str().unwrap();
        assert!(fault.starts_with(path.to_str().unwrap()), "{fault}");
        assert!(fault.contains(what), "{fault}");
        assert!(fault.contains('^'), "{fault}");
    }
    for field in ["mode", "startup", "loadpaths", "needs_restart"] {
        assert_eq!(info[field], before[field], "{field}");
    }
    let shown = sandbox.client(&["info"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("mood"), "{shown:?}");
    let log = sandbox.server_log();
    assert!(log.contains("changes nothing"), "{log}");
    assert!(log.contains("mood"), "{log}");
    assert_eq!(log.matches("not `maybe`").count(), 1, "told once: {log}");

    // The last good one is in force.
    sandbox.write("later.yml", OLD);
    runs(&sandbox, "later");
    assert_eq!(runs(&sandbox, "web"), web);

    sandbox.configure("mode: sync\nstartup: [web]");
    let mended = wait_info(&sandbox, "no fault", |info| info["faults"] == json!([]));
    assert_eq!(mended["mode"], "sync");
    assert_eq!(runs(&sandbox, "web"), web);
}

#[test]
fn a_server_yml_that_is_gone_or_not_to_be_trusted_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    let web = runs(&sandbox, "web");
    fs::remove_file(sandbox.server_yml()).unwrap();
    let info = wait_info(&sandbox, "the fault", |info| info["faults"] != json!([]));
    assert_eq!(info["mode"], "sync");
    sandbox.configure("mode: quiet");
    wait_mode(&sandbox, "quiet");
    assert_eq!(sandbox.json(&["info"])["faults"], json!([]));

    // Anybody could have written this one.
    let path = sandbox.server_yml();
    let evil = fs::read_to_string(&path).unwrap().replace("quiet", "sync");
    let new = sandbox.root().join("evil.yml");
    fs::write(&new, evil).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o666)).unwrap();
    fs::rename(&new, &path).unwrap();
    let info = wait_info(&sandbox, "the fault", |info| info["faults"] != json!([]));
    assert_eq!(info["mode"], "quiet");
    let fault = info["faults"][0].as_str().unwrap();
    assert!(fault.contains("chmod"), "{fault}");
    // Its mode is mended, and so is the fault.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    wait_mode(&sandbox, "sync");
    assert_eq!(sandbox.json(&["info"])["faults"], json!([]));
    assert_eq!(runs(&sandbox, "web"), web);
}

#[test]
fn a_server_yml_that_is_being_written_is_not_read_before_it_is_closed() {
    use std::io::Write;
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    let whole = fs::read_to_string(sandbox.server_yml()).unwrap();
    let whole = whole.replace("quiet", "sync");
    let mut file = fs::File::options()
        .write(true)
        .truncate(true)
        .open(sandbox.server_yml())
        .unwrap();
    for (number, piece) in whole.as_bytes().chunks(16).enumerate() {
        file.write_all(piece).unwrap();
        sandbox.write(&format!("n{number}.yml"), OLD);
        wait_known(&sandbox, &format!("n{number}"));
        // Neither is it looked at before a command, nor when a HUP asks for it.
        let started = sandbox.json(&["start", &format!("n{number}")]);
        assert_eq!(started["ok"], true, "{started}");
        sandbox.signal_server(Signal::HUP);
        let info = sandbox.json(&["info"]);
        assert_eq!(info["mode"], "quiet");
        assert_eq!(info["faults"], json!([]), "nothing is wrong yet");
    }
    drop(file);
    runs(&sandbox, "web");
    assert!(!sandbox.server_log().contains("changes nothing"));
    sandbox.configure("mode: quiet");
}

#[test]
fn an_edit_of_what_is_fixed_is_shown_as_needing_a_restart() {
    let mut sandbox = Sandbox::start("mode: quiet\nname: first");
    let before = sandbox.json(&["info"]);
    assert_eq!(before["needs_restart"], json!([]));
    let root = sandbox.root().display().to_string();
    let keys = sandbox.root().join("keys");
    fs::create_dir(&keys).unwrap();
    sandbox.configure(
        "mode: sync\nname: second\nid: 00000000-0000-4000-8000-000000000001\nencrypt: on\n\
         pub_keys_path: [keys]\nlistener_addr: 127.0.0.2\nlistener_port: 1\nstate_dir: s\n\
         runtime_dir: r\nlog_dir: l",
    );
    // What is not fixed is in force.
    let info = wait_mode(&sandbox, "sync");
    let fixed = json!([
        "encrypt",
        "name",
        "id",
        "listener_addr",
        "listener_port",
        "state_dir",
        "runtime_dir",
        "log_dir"
    ]);
    assert_eq!(info["needs_restart"], fixed);
    for field in [
        "name",
        "id",
        "encrypt",
        "listener",
        "state_dir",
        "runtime_dir",
        "log_dir",
    ] {
        assert_eq!(info[field], before[field], "{field}");
    }
    assert_eq!(info["name"], "first");
    assert_eq!(info["log_dir"], format!("{root}/logs"));
    let shown = sandbox.client(&["info"]).stdout;
    let line = shown.lines().find(|line| line.contains("needs a restart"));
    assert!(line.unwrap().contains("encrypt, name, id"), "{shown}");
    assert!(sandbox.server_log().contains("needs a restart"));
    sandbox.write("web.yml", OLD);
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["output"]["stdout"], format!("{root}/logs/web.out"));

    // Undone, nothing needs a restart any more; done, it is in force after one.
    sandbox.configure("mode: sync\nname: first");
    wait_info(&sandbox, "nothing", |info| {
        info["needs_restart"] == json!([])
    });
    sandbox.configure("mode: sync\nname: third");
    wait_info(&sandbox, "the name", |info| {
        info["needs_restart"] == json!(["name"])
    });
    sandbox.restart_server();
    let info = sandbox.json(&["info"]);
    assert_eq!(info["name"], "third");
    assert_eq!(info["needs_restart"], json!([]));
}

#[test]
fn on_exit_can_be_edited_while_the_server_runs() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    runs(&sandbox, "web");
    assert_eq!(sandbox.json(&["info"])["on_exit"], "leave");
    sandbox.configure("mode: sync\non_exit: stop");
    wait_info(&sandbox, "stop", |info| info["on_exit"] == "stop");
    assert_eq!(sandbox.stop_server(), 0);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn rescan_can_be_edited_while_the_server_runs() {
    // A file system without hints is not to be had here, but a removal that waits for a rescan.
    let mut sandbox = Sandbox::start("mode: sync\nrescan: off");
    for name in ["one", "two", "three"] {
        sandbox.write(&format!("{name}.yml"), OLD);
        runs(&sandbox, name);
    }
    for name in ["one", "two", "three"] {
        sandbox.remove(&format!("{name}.yml"));
    }
    wait_for("the doubt", PATIENCE, || {
        sandbox.json(&["check"])["notes"] != Value::Null
    });
    sandbox.configure("mode: sync\nrescan: 1s");
    for name in ["one", "two", "three"] {
        sandbox.wait_state(name, "stopped");
    }
}

#[test]
fn an_edit_of_several_fields_takes_effect_as_one() {
    let mut sandbox = Sandbox::new("mode: quiet\nloadpaths: [load, more]");
    let more = sandbox.root().join("more");
    fs::create_dir(&more).unwrap();
    sandbox.write("web.yml", OLD);
    sandbox.replace(&more.join("leaves.yml"), OLD);
    sandbox.start_server();
    // What is started by the new mode is started with the new defaults,
    sandbox.configure("mode: sync\nloadpaths: [load]\ndefaults: {workdir: /usr}");
    let row = sandbox.wait_state("web", "running");
    let there = fs::read_link(format!("/proc/{}/cwd", row["pid"])).unwrap();
    assert_eq!(there.to_str(), Some("/usr"));
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["run"], 1, "{row}");
    // what is in no loadpath any more is not,
    assert!(!sandbox.server_log().contains("child=leaves run="));
    // and what the new defaults change is left alone by the new mode.
    sandbox.configure("mode: half\ndefaults: {workdir: /tmp}");
    wait_mode(&sandbox, "half");
    wait_for("changed", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
    assert_eq!(sandbox.row("web").unwrap()["pid"], row["pid"]);
}
