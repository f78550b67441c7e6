//! Looks at what is: processes, descriptors and mounts as the kernel shows them, and children as
//! the server does.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use serde_json::Value;

use crate::sandbox::Wire;

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) is_zombie: bool,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) start_ticks: u64,
}

/// `None` when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// All processes there are.
pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// The main process of a run: it leads its group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leader {
    pub(crate) child: String,
    pub(crate) run: u64,
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

impl Leader {
    /// Whether it lives still, and is the same.
    pub(crate) fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|stat| !stat.is_zombie && stat.start_ticks == self.start_ticks)
    }
}

/// The main processes that live of the children of this server, in no order of time.
pub(crate) fn leaders(server_id: &str) -> Vec<Leader> {
    let mark = format!("SUPERVISOR_RS_RUN={server_id}/");
    pids()
        .into_iter()
        .filter_map(|pid| leader(pid, &mark))
        .collect()
}

fn leader(pid: i32, mark: &str) -> Option<Leader> {
    let stat = stat(pid).filter(|stat| stat.group == pid && !stat.is_zombie)?;
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let tag = variables.find_map(|variable| variable.strip_prefix(mark.as_bytes()))?;
    let (child, run) = std::str::from_utf8(tag).ok()?.split_once('/')?;
    let leader = Leader {
        child: child.to_owned(),
        run: run.parse().ok()?,
        pid,
        start_ticks: stat.start_ticks,
    };
    leader.lives().then_some(leader)
}

/// Those of which two of one child lived at one moment: each was seen alive, and lives still when
/// all of them had been seen.
pub(crate) fn doubles(leaders: &[Leader]) -> Vec<&Leader> {
    let mut by_child: BTreeMap<&str, Vec<&Leader>> = BTreeMap::new();
    for leader in leaders {
        by_child.entry(&leader.child).or_default().push(leader);
    }
    by_child.retain(|_, several| several.len() > 1);
    for several in by_child.values_mut() {
        several.retain(|leader| leader.lives());
    }
    let doubled = by_child.into_values().filter(|several| several.len() > 1);
    doubled.flatten().collect()
}

/// What a process has open: number and what it leads to.
pub(crate) fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut found: Vec<(i32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let place = fs::read_link(entry.path()).ok()?;
            Some((number, place.display().to_string()))
        })
        .collect();
    found.sort();
    found
}

/// What a descriptor of a process leads to.
pub(crate) const PIDFD: &str = "anon_inode:[pidfd]";

/// Whether this is a descriptor of a process: one that was opened through a pin leads to `/`.
fn is_pidfd(pid: i32, number: i32) -> bool {
    let told = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
    told.is_ok_and(|told| told.lines().any(|line| line.starts_with("Pid:")))
}

/// How many of which kind a process has open: sockets and pipes are told without their number.
pub(crate) fn kinds_open(pid: i32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for (number, mut place) in descriptors(pid) {
        if place == "/" && is_pidfd(pid, number) {
            place = PIDFD.to_owned();
        }
        let numbered = place
            .split_once(":[")
            .filter(|(kind, _)| *kind != "anon_inode");
        let kind = numbered.map_or(place.clone(), |(kind, _)| kind.to_owned());
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

/// Where something is mounted at or below this folder.
pub(crate) fn mounts(below: &Path) -> Vec<String> {
    let below = below.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.filter(|point| point.starts_with(&below));
    points.map(str::to_owned).collect()
}

/// The zombies that this process should have reaped.
pub(crate) fn zombies_of(parent: i32) -> Vec<i32> {
    let mut pids = pids();
    pids.retain(|pid| stat(*pid).is_some_and(|stat| stat.is_zombie && stat.parent == parent));
    pids
}

/// What the server says of one child.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) state: String,
    pub(crate) pid: Option<i32>,
    pub(crate) run: Option<u64>,
    pub(crate) started_at: String,
    pub(crate) is_held: bool,
    pub(crate) exit: Option<String>,
    pub(crate) reason: String,
    /// What its repeat is about to do, and when.
    pub(crate) next: Option<(String, String)>,
}

impl Row {
    /// Reads one of `children`.
    fn read(value: &Value) -> (String, Self) {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let pid = value["pid"].as_i64();
        let next = &value["next"];
        let word = |key: &str| next[key].as_str().unwrap_or_default().to_owned();
        let row = Self {
            state: text("state"),
            pid: pid.map(|pid| i32::try_from(pid).expect("a pid")),
            run: value["run"].as_u64(),
            started_at: text("started_at"),
            is_held: value["hold"] == true,
            exit: Some(&value["exit"])
                .filter(|exit| exit.is_object())
                .map(exit),
            reason: text("reason"),
            next: next.as_object().map(|_| (word("action"), word("at"))),
        };
        (text("name"), row)
    }
}

/// An exit in a word: `code 3`, `SIGTERM`, `unknown`.
pub(crate) fn exit(value: &Value) -> String {
    match (value["code"].as_i64(), value["signal"].as_str()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => signal.to_owned(),
        (None, None) => "unknown".to_owned(),
    }
}

/// What is asked to be told of all children.
pub(crate) const CHECK: &str = r#"{"op":"check","all":true}"#;

/// All children, as the server answered.
pub(crate) fn rows(answer: &Value) -> BTreeMap<String, Row> {
    let rows = answer["ok"]["children"].as_array();
    let rows = rows.unwrap_or_else(|| panic!("no children: {answer}"));
    rows.iter().map(Row::read).collect()
}

/// All children, as the server tells.
pub(crate) fn check(wire: &mut Wire, id: u64) -> BTreeMap<String, Row> {
    wire.ask(id, CHECK);
    rows(&wire.value())
}

/// What is asked to be told of one child.
pub(crate) fn check_one(child: &str) -> String {
    format!(r#"{{"op":"check","child":"{child}"}}"#)
}

/// How runs of one child have ended, as the server answered [`check_one`]: the last one, and those
/// before it as far as it tells.
pub(crate) fn exits(answer: &Value) -> BTreeMap<u64, String> {
    let mut exits = BTreeMap::new();
    let rows = answer["ok"]["children"].as_array().into_iter().flatten();
    for row in rows {
        let earlier = row["history"].as_array().into_iter().flatten();
        for told in earlier.chain([row]) {
            if let (Some(run), true) = (told["run"].as_u64(), told["exit"].is_object()) {
                exits.insert(run, exit(&told["exit"]));
            }
        }
    }
    exits
}

/// What the machine gives, as `info` tells it.
pub(crate) fn capabilities(address: SocketAddr) -> BTreeMap<String, String> {
    let mut wire = Wire::connect(address);
    wire.ask(1, r#"{"op":"info"}"#);
    let (_, answer) = wire.answer();
    let all = answer["ok"]["capabilities"].as_object().expect("an object");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter()
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

#[test]
fn two_that_live_at_once_are_found_and_a_dead_one_is_not() {
    use std::{os::unix::process::CommandExt, process::Command};

    use crate::sandbox::{PATIENCE, Sandbox, wait_for};

    let sandbox = Sandbox::new("");
    let start = |run: u64| {
        let mut command = Command::new("sleep");
        command.arg("300").process_group(0);
        command.env("SUPERVISOR_RS_RUN", format!("{}/web/{run}", sandbox.id()));
        command.spawn().unwrap()
    };
    let mut both = [start(1), start(2)];
    wait_for("both", PATIENCE, || leaders(sandbox.id()).len() == 2);
    let seen = leaders(sandbox.id());
    assert_eq!(doubles(&seen).len(), 2, "{seen:?}");
    both[0].kill().unwrap();
    wait_for("its end", PATIENCE, || leaders(sandbox.id()).len() == 1);
    assert_eq!(doubles(&seen), Vec::<&Leader>::new());
    for mut one in both {
        let _may_have_ended = one.kill();
        // In a group of its own it is reaped like an orphan, if somebody does that.
        let _may_be_reaped = one.wait();
    }
}
