//! The server in a cgroup that was handed over to it: it sits in a leaf, beside those of its runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use rustix::fs::{XattrFlags, setxattr};

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, pass_over, pid_of, remove_cgroups, skip, wait_for,
};

/// How systemd marks a cgroup that is handed over.
const MARK: &str = "user.delegate";
const LEAF: &str = "supervisor-rs-server";

/// A cgroup as a service manager makes one for a service; removed at the end.
struct Unit {
    place: PathBuf,
    /// Who else is in it.
    beside: Vec<Child>,
}

impl Unit {
    /// One below the root of all, if that can be.
    fn made(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let point = Path::new(mount.split(' ').nth(4)?);
        let place = point.join(format!("supervisor-rs-it-{}-{name}", std::process::id()));
        fs::create_dir(&place).ok()?;
        let beside = Vec::new();
        Some(Self { place, beside })
    }

    /// One that is marked as handed over.
    fn delegated(name: &str) -> Option<Self> {
        let unit = Self::made(name)?;
        setxattr(&unit.place, MARK, b"1", XattrFlags::empty()).ok()?;
        Some(unit)
    }

    /// A server that is started in it, whenever it is started.
    fn sandbox(&self) -> Sandbox {
        self.sandbox_within("")
    }

    /// The same, by this program.
    fn sandbox_within(&self, outer: &str) -> Sandbox {
        self.sandbox_in(&self.place, outer)
    }

    /// The same, in this cgroup of the unit.
    fn sandbox_in(&self, place: &Path, outer: &str) -> Sandbox {
        let procs = place.join("cgroup.procs");
        let enter = format!("echo 0 > {} && exec {outer} \"$0\" \"$@\"", procs.display());
        Sandbox::new("mode: quiet")
            .within(&["sh", "-c", &enter])
            .with_own_program()
    }

    fn enter(&mut self, mut command: Command) {
        let child = command.spawn().unwrap();
        fs::write(self.place.join("cgroup.procs"), child.id().to_string()).unwrap();
        self.beside.push(child);
    }

    /// Where a process is, below this unit; `None` when it is elsewhere.
    fn place_of(&self, pid: i32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let name = self.place.file_name()?.to_str()?;
        let (_, below) = path.split_once(name)?;
        Some(below.trim_start_matches('/').to_owned())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        for child in &mut self.beside {
            let _may_have_ended = child.kill();
            let _reaped = child.wait();
        }
        remove_cgroups(&[self.place.as_path()]);
    }
}

#[test]
fn a_server_moves_into_a_leaf_and_its_runs_stay_beside_it_whatever_happens_to_it() {
    let Some(unit) = Unit::delegated("whole") else {
        return pass_over("no cgroup of version 2 can be made here");
    };
    let mut sandbox = unit.sandbox();
    let home = format!("supervisor-rs-{}", sandbox.id());
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("db.yml", SLEEPER);
    sandbox.start_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), LEAF);
    sandbox.done(&["start", "web"]);
    let web = pid_of(&sandbox.row("web").unwrap());
    assert_eq!(unit.place_of(web).unwrap(), format!("{home}/web.1"));
    // That is what the leaf is for: the unit itself is free of processes.
    let controllers = fs::read_to_string(unit.place.join("cgroup.controllers")).unwrap();
    if let Some(one) = controllers.split_whitespace().next() {
        for place in [unit.place.clone(), unit.place.join(&home)] {
            let passed_on = place.join("cgroup.subtree_control");
            fs::write(&passed_on, format!("+{one}")).unwrap();
        }
        let switched_off = [unit.place.join(&home), unit.place.clone()];
        for place in switched_off {
            fs::write(place.join("cgroup.subtree_control"), format!("-{one}")).unwrap();
        }
    }

    // Whoever starts it again after a crash puts it where the first one was.
    sandbox.restart_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), LEAF);
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    // The next program is where the one before was.
    sandbox.done(&["upgrade"]);
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), LEAF);
    sandbox.done(&["start", "db"]);
    let db = pid_of(&sandbox.row("db").unwrap());
    assert_eq!(unit.place_of(db).unwrap(), format!("{home}/db.1"));
    sandbox.done(&["stop", "--all"]);
    wait_for("the cgroups' end", PATIENCE, || {
        !unit.place.join(&home).exists()
    });
    assert_eq!(sandbox.stop_server(), 0);
}

#[test]
fn a_server_that_is_started_in_its_leaf_has_its_runs_beside_it() {
    let Some(unit) = Unit::delegated("subgroup") else {
        return pass_over("no cgroup of version 2 can be made here");
    };
    // As systemd does with `DelegateSubgroup=`.
    let leaf = unit.place.join(LEAF);
    fs::create_dir(&leaf).unwrap();
    let mut sandbox = unit.sandbox_in(&leaf, "");
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), LEAF);
    sandbox.done(&["start", "web"]);
    let web = pid_of(&sandbox.row("web").unwrap());
    let home = format!("supervisor-rs-{}", sandbox.id());
    assert_eq!(unit.place_of(web).unwrap(), format!("{home}/web.1"));
    sandbox.done(&["kill", "--stop-children"]);
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn a_server_in_a_container_moves_into_a_leaf_of_the_containers_cgroup() {
    let Some(unit) = Unit::made("container") else {
        return pass_over("no cgroup of version 2 can be made here");
    };
    let point = unit.place.parent().unwrap().display().to_string();
    let script = format!("umount {point} && mount -t cgroup2 none {point} && exec \"$0\" \"$@\"");
    let mut trial = Command::new("unshare");
    trial.args(["--mount", "--cgroup", "sh", "-c", &script, "true"]);
    if trial
        .output()
        .map_or(true, |output| !output.status.success())
    {
        return skip("no right to mount, or no `unshare`");
    }
    let outer = format!(
        "unshare --mount --cgroup sh -c '{}'",
        script.replace('\'', "'\\''")
    );
    let mut sandbox = unit.sandbox_within(&outer);
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), LEAF);
    sandbox.done(&["start", "web"]);
    let web = pid_of(&sandbox.row("web").unwrap());
    let home = format!("supervisor-rs-{}", sandbox.id());
    assert_eq!(unit.place_of(web).unwrap(), format!("{home}/web.1"));
    sandbox.done(&["kill", "--stop-children"]);
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn a_server_stays_where_it_is_in_a_cgroup_that_nobody_has_handed_over() {
    let Some(unit) = Unit::made("plain") else {
        return pass_over("no cgroup of version 2 can be made here");
    };
    let mut sandbox = unit.sandbox();
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), "");
    sandbox.done(&["start", "web"]);
    let web = pid_of(&sandbox.row("web").unwrap());
    let home = format!("supervisor-rs-{}", sandbox.id());
    assert_eq!(unit.place_of(web).unwrap(), format!("{home}/web.1"));
    sandbox.done(&["kill", "--stop-children"]);
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn a_server_stays_where_it_is_when_somebody_is_beside_it() {
    let Some(mut unit) = Unit::delegated("shared") else {
        return pass_over("no cgroup of version 2 can be made here");
    };
    let mut other = Command::new("sleep");
    other.arg("300");
    unit.enter(other);
    let mut sandbox = unit.sandbox();
    sandbox.start_server();
    assert_eq!(unit.place_of(sandbox.server_pid()).unwrap(), "");
    assert!(!unit.place.join(LEAF).exists());
    assert_eq!(sandbox.stop_server(), 0);
}
