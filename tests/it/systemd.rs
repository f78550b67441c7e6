//! The unit file under the real systemd: as the first process of namespaces of its own it starts the
//! server by `dist/supervisor-rs.service`, hears what that says, and ends or restarts it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::sandbox::{
    LOOK, Output, PATIENCE, SERVER, SLEEPER, children_of, pass_over, remove_cgroups, run, wait_for,
};

const CLIENT: &str = env!("CARGO_BIN_EXE_supervisor-rs-client");
const SERVICE: &str = "supervisor-rs";

/// A machine whose first process is systemd.
struct Machine {
    dir: tempfile::TempDir,
    /// Where its processes are, a directory for each hierarchy that systemd uses.
    groups: Vec<PathBuf>,
    /// Whoever made the namespaces.
    outer: Child,
    /// Its first process, by its number here.
    init: i32,
}

impl Machine {
    /// One that is up and has the service started; `None` where there can be none.
    fn up(name: &str, settings: &str) -> Option<Self> {
        if !Path::new("/lib/systemd/systemd").exists() {
            return None;
        }
        let groups = groups(name)?;
        let dir = tempfile::tempdir().unwrap();
        let outer = begin(&dir, &groups, settings);
        let mut machine = Self {
            dir,
            groups,
            outer,
            init: 0,
        };
        machine.wait_init()?;
        let mut up = false;
        let deadline = supervisor_rs::clock::mono() + PATIENCE;
        while !up && machine.outer.try_wait().unwrap().is_none() {
            assert!(
                supervisor_rs::clock::mono() < deadline,
                "it does not come up"
            );
            up = machine.property("ActiveState") == "active";
            thread::sleep(LOOK);
        }
        up.then_some(machine)
    }

    /// The first process, once it is systemd.
    fn wait_init(&mut self) -> Option<()> {
        let outer = i32::try_from(self.outer.id()).unwrap();
        let is_systemd = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim_end() == "systemd")
        };
        loop {
            if let Some(init) = children_of(outer).into_iter().find(is_systemd) {
                self.init = init;
                return Some(());
            }
            if self.outer.try_wait().unwrap().is_some() {
                return None;
            }
            thread::sleep(LOOK);
        }
    }

    /// Runs a command there.
    fn run(&self, command: &[&str]) -> Output {
        let mut enter = Command::new("nsenter");
        let init = self.init.to_string();
        enter.args(["--target", &init]);
        enter.args(["--mount", "--pid", "--net", "--cgroup", "--root", "--wd=/"]);
        enter
            .args(command)
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        run(enter)
    }

    /// The same, which must succeed.
    fn done(&self, command: &[&str]) -> String {
        let output = self.run(command);
        let said = (&output.stdout, &output.stderr);
        assert_eq!(output.code, 0, "{command:?}: {said:?}\n{}", self.journal());
        output.stdout
    }

    fn systemctl(&self, verb: &str) {
        self.done(&["systemctl", verb, SERVICE]);
    }

    /// What systemd knows of the service.
    fn property(&self, name: &str) -> String {
        let property = format!("--property={name}");
        let shown = self.run(&["systemctl", "show", "--value", &property, SERVICE]);
        shown.stdout.trim().to_owned()
    }

    fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "--unit", SERVICE])
            .stdout
    }

    /// The server, by its number there.
    fn server(&self) -> String {
        self.property("MainPID")
    }

    /// Waits for another server than this one that is up.
    fn wait_other_than(&self, server: &str) -> String {
        let mut other = String::new();
        wait_for("another server", PATIENCE, || {
            other = self.server();
            other != server && other != "0" && self.property("ActiveState") == "active"
        });
        other
    }

    fn write(&self, name: &str, yaml: &str) {
        let text = format!("cat >/srv/children/{name}.part <<'END'\n{yaml}END\n");
        let moved = format!("mv /srv/children/{name}.part /srv/children/{name}");
        self.done(&["sh", "-c", &format!("{text}{moved}")]);
    }

    /// The pid and the run of a child, once it runs.
    fn wait_running(&self, child: &str) -> (i64, i64) {
        let mut found = None;
        wait_for(child, PATIENCE, || {
            let said = self.run(&["supervisor-rs-client", "check", child, "--json"]);
            let answer: Value = serde_json::from_str(said.stdout.trim()).unwrap_or_default();
            let row = &answer["children"][0];
            found = row["pid"].as_i64().zip(row["run"].as_i64());
            row["state"] == "running" && found.is_some()
        });
        found.unwrap()
    }

    fn lives(&self, pid: i64) -> bool {
        self.run(&["kill", "-0", &pid.to_string()]).code == 0
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process all of it goes: its processes, its mounts and its names.
        let _may_have_ended = self.outer.kill();
        let _reaped = self.outer.wait();
        remove_cgroups(&self.groups);
    }
}

/// Makes a cgroup for a machine in each hierarchy that its systemd will use.
fn groups(name: &str) -> Option<Vec<PathBuf>> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = match top.join("unified").is_dir() {
        true => vec![top.join("unified"), top.join("systemd")],
        false => vec![top.to_owned()],
    };
    let mut made = Vec::new();
    for hierarchy in hierarchies {
        let place = hierarchy.join(format!("supervisor-rs-it-{}-{name}", std::process::id()));
        if !hierarchy.join("cgroup.procs").exists() || fs::create_dir(&place).is_err() {
            remove_cgroups(&made);
            return None;
        }
        made.push(place);
    }
    Some(made)
}

fn begin(dir: &tempfile::TempDir, groups: &[PathBuf], settings: &str) -> Child {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = dir.path().join("machine");
    let server_yml = dir.path().join("server.yml");
    fs::create_dir(&place).unwrap();
    fs::write(
        &server_yml,
        format!("loadpaths: [/srv/children]\n{settings}\n"),
    )
    .unwrap();
    let enter: String = groups
        .iter()
        .map(|group| format!("echo 0 >{}/cgroup.procs && ", group.display()))
        .collect();
    let apart =
        "exec unshare --mount --pid --fork --kill-child --net --uts --ipc --cgroup sh \"$@\"";
    let said = fs::File::create(dir.path().join("said")).unwrap();
    Command::new("sh")
        .args(["-c", &format!("{enter}{apart}"), "sh"])
        .arg(tree.join("tests/it/systemd/machine.sh"))
        .args([&place, Path::new(SERVER), Path::new(CLIENT)])
        .args([&tree.join("dist/supervisor-rs.service"), &server_yml])
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap()
}

#[test]
fn under_systemd_children_outlive_a_server_that_is_killed_stopped_reloaded_or_stuck() {
    let Some(machine) = Machine::up("whole", "mode: sync") else {
        return pass_over("systemd cannot be run in namespaces here");
    };
    machine.write("web.yml", SLEEPER);
    let web = machine.wait_running("web");
    wait_for("the word of it", PATIENCE, || {
        machine.property("StatusText") == "1 child runs"
    });
    let first = machine.server();
    machine.done(&["kill", "-KILL", &first]);
    let second = machine.wait_other_than(&first);
    assert_eq!(machine.wait_running("web"), web, "after a kill");
    machine.systemctl("reload");
    assert_eq!(machine.server(), second, "a reload replaces nobody");
    machine.systemctl("stop");
    assert!(machine.lives(web.0), "`KillMode=process`");
    machine.systemctl("start");
    let third = machine.server();
    assert_eq!(machine.wait_running("web"), web, "after a stop and a start");
    machine.done(&["supervisor-rs-client", "kill"]);
    let fourth = machine.wait_other_than(&third);
    assert_eq!(machine.wait_running("web"), web, "after an end by order");
    // The watchdog ends who does not say that he lives.
    machine.done(&["kill", "-STOP", &fourth]);
    let fifth = machine.wait_other_than(&fourth);
    assert_eq!(machine.wait_running("web"), web, "after it was stuck");
    let upgraded = machine.done(&["supervisor-rs-client", "upgrade"]);
    assert_eq!(machine.server(), fifth, "{upgraded}");
    assert_eq!(machine.wait_running("web"), web, "after an upgrade");
    machine.done(&["supervisor-rs-client", "stop", "web"]);
    assert!(!machine.lives(web.0));
    assert_eq!(machine.property("ActiveState"), "active");
}

#[test]
fn under_systemd_a_stop_of_the_unit_stops_children_where_on_exit_says_so() {
    let Some(machine) = Machine::up("stop", "mode: sync\non_exit: stop") else {
        return pass_over("systemd cannot be run in namespaces here");
    };
    let bye = "command: [sh, -c, 'trap \"echo bye >/srv/bye; exit\" TERM; while :; do sleep 0.1; done']\n";
    machine.write("web.yml", bye);
    let (pid, _) = machine.wait_running("web");
    machine.systemctl("stop");
    assert!(!machine.lives(pid));
    assert_eq!(machine.done(&["cat", "/srv/bye"]), "bye\n");
    assert_eq!(machine.property("Result"), "success");
}

/// Without this the tests above might be passed over where they can run.
#[test]
fn a_machine_that_cannot_be_made_leaves_nothing() {
    let Some(groups) = groups("none") else {
        return pass_over("no cgroup can be made here");
    };
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("machine")).unwrap();
    let outer = Command::new("false").spawn().unwrap();
    let mut machine = Machine {
        dir,
        groups: groups.clone(),
        outer,
        init: 0,
    };
    assert_eq!(machine.wait_init(), None);
    let place = machine.dir.path().to_owned();
    drop(machine);
    assert!(groups.iter().all(|group| !group.exists()));
    wait_for("the directory's end", Duration::from_secs(1), || {
        !place.exists()
    });
}
