//! Records that were cut, damaged, taken away or cannot be read (DESIGN 9, I1 and I2): the server
//! starts, what lives is found again, and nothing is started twice.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, lives, pid_of, skip, stays, wait_for};

/// With this variable set to `all`, every byte is cut off and flipped; with a number, every so
/// many-th; else a sample is.
const BYTES: &str = "DRILL_BYTES";

/// A child that outlives the whole of it.
const LONG_SLEEPER: &str = "command: [sleep, '100000']\n";

/// How many bytes of a sample lie between those at the borders of records.
const SAMPLE: usize = 10;

/// What the server's log says since its latest start.
fn log_since(sandbox: &Sandbox, from: usize) -> String {
    sandbox.server_log()[from..].to_owned()
}

/// The files of a directory, to be put back.
struct Saved {
    dir: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// Not what a server keeps its pins by, which is a mount.
fn is_record(path: &Path) -> bool {
    path.is_file() && !path.ends_with("pins")
}

impl Saved {
    fn of(dir: PathBuf) -> Self {
        let entries = fs::read_dir(&dir).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let files = paths.filter(|path| is_record(path));
        let files = files.map(|path| (path.clone(), fs::read(path).unwrap()));
        let files = files.collect();
        Self { dir, files }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.dir.join(name);
        let file = self.files.iter().find(|(file, _)| *file == path);
        file.unwrap().1.clone()
    }

    fn put_back(&self) {
        for entry in fs::read_dir(&self.dir).unwrap() {
            let path = entry.unwrap().path();
            if is_record(&path) {
                fs::remove_file(path).unwrap();
            }
        }
        for (path, bytes) in &self.files {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Where records begin and end in a file.
fn bounds(bytes: &[u8]) -> Vec<usize> {
    let header = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut bounds = vec![0, header];
    let mut at = header;
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().unwrap());
        at += 8 + usize::try_from(len).unwrap();
        bounds.push(at);
    }
    assert_eq!(at, bytes.len(), "a whole file");
    bounds
}

/// At which bytes a file is cut and flipped.
fn places(bytes: &[u8]) -> Vec<usize> {
    let step = match std::env::var(BYTES).as_deref() {
        Ok("all") => Some(1),
        Ok(number) => Some(number.parse().unwrap()),
        Err(_) => None,
    };
    if let Some(step) = step {
        return (0..bytes.len()).step_by(step).collect();
    }
    let around = |at: usize| [at.saturating_sub(1), at, at + 5];
    let mut places: BTreeSet<usize> = bounds(bytes).into_iter().flat_map(around).collect();
    places.extend((0..SAMPLE).map(|part| part * bytes.len() / SAMPLE));
    places.retain(|at| *at < bytes.len());
    places.into_iter().collect()
}

/// A file cut before this byte, and one with this byte flipped.
fn spoiled(whole: &[u8], at: usize) -> [(String, Vec<u8>); 2] {
    let mut flipped = whole.to_vec();
    flipped[at] ^= 0x20;
    [
        (format!("cut at {at}"), whole[..at].to_vec()),
        (format!("flipped at {at}"), flipped),
    ]
}

fn row_of<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    let row = rows.iter().find(|row| row["name"] == name);
    row.unwrap_or_else(|| panic!("`{name}` is forgotten: {rows:?}"))
}

fn rows(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.json(&["check", "--all"])["children"]
        .as_array()
        .unwrap()
        .clone()
}

/// Each child's processes are as many as before, and it is shown with the one it has, or as in
/// doubt.
fn assert_nothing_lost(sandbox: &Sandbox, pids: &[(&str, i32)], when: &str) {
    let rows = rows(sandbox);
    for (name, pid) in pids {
        let row = row_of(&rows, name);
        let reason = row["reason"].as_str().unwrap_or_default();
        let is_doubted = row["state"] == "failed" && reason.contains("whether it lives is not");
        let is_taken_back = row["state"] == "running" && row["pid"] == json!(pid);
        assert!(is_taken_back || is_doubted, "{when}: {row}");
    }
    let found: Vec<i32> = sandbox.processes().iter().map(|it| it.pid).collect();
    let mut expected: Vec<i32> = pids.iter().map(|(_, pid)| *pid).collect();
    expected.sort_unstable();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected, "{when}: doubled or lost");
}

#[test]
fn a_record_of_live_runs_cut_or_flipped_at_any_byte_loses_no_child_and_doubles_none() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", LONG_SLEEPER);
    sandbox.write("db.yml", LONG_SLEEPER);
    let pids = ["web", "db"].map(|name| (name, pid_of(&sandbox.wait_state(name, "running"))));
    sandbox.done(&["restart", "db"]);
    let pids = pids.map(|(name, _)| (name, pid_of(&sandbox.row(name).unwrap())));
    sandbox.wait_processes(2);
    sandbox.kill_server();
    let saved = Saved::of(sandbox.root().join("run"));
    let journal = sandbox.root().join("run/runtime.journal");
    let whole = saved.bytes("runtime.journal");
    let mut rounds = 0;
    for at in places(&whole) {
        for (when, bytes) in spoiled(&whole, at) {
            saved.put_back();
            fs::write(&journal, bytes).unwrap();
            let from = sandbox.server_log().len();
            sandbox.start_server();
            assert_nothing_lost(&sandbox, &pids, &when);
            let log = log_since(&sandbox, from);
            assert!(log.contains("runtime.journal.corrupt-1"), "{when}: {log}");
            sandbox.kill_server();
            rounds += 1;
        }
    }
    // What stands beside it can be damaged as it likes.
    for name in ["runtime.length", "directories"] {
        let whole = saved.bytes(name);
        for at in (0..whole.len()).step_by(5) {
            for (when, bytes) in spoiled(&whole, at) {
                saved.put_back();
                fs::write(saved.dir.join(name), bytes).unwrap();
                sandbox.start_server();
                assert_nothing_lost(&sandbox, &pids, &format!("{name} {when}"));
                sandbox.kill_server();
                rounds += 1;
            }
        }
    }
    println!("{rounds} starts from a damaged record: 0 lost, 0 doubled");
    saved.put_back();
    sandbox.start_server();
    assert_nothing_lost(&sandbox, &pids, "as it was");
}

#[test]
fn holds_cut_or_flipped_at_any_byte_are_kept_or_their_loss_is_said() {
    let mut sandbox = Sandbox::start("mode: sync");
    for name in ["web", "db"] {
        sandbox.write(&format!("{name}.yml"), LONG_SLEEPER);
        sandbox.wait_state(name, "running");
    }
    sandbox.done(&["stop", "web"]);
    sandbox.done(&["stop", "db"]);
    // Its hold has ended: nothing that is lost may bring it back.
    sandbox.done(&["start", "web"]);
    let web = pid_of(&sandbox.row("web").unwrap());
    sandbox.wait_processes(1);
    sandbox.kill_server();
    let saved = ["run", "state"].map(|dir| Saved::of(sandbox.root().join(dir)));
    let journal = sandbox.root().join("state/state.journal");
    let whole = saved[1].bytes("state.journal");
    let mut rounds = 0;
    for at in places(&whole) {
        for (when, bytes) in spoiled(&whole, at) {
            for saved in &saved {
                saved.put_back();
            }
            fs::write(&journal, bytes).unwrap();
            let from = sandbox.server_log().len();
            sandbox.start_server();
            let log = log_since(&sandbox, from);
            let row = sandbox.row("web").unwrap();
            assert_eq!(
                (&row["state"], &row["pid"]),
                (&json!("running"), &json!(web)),
                "{when}"
            );
            assert!(log.contains("state.journal.corrupt-1"), "{when}: {log}");
            // Stopped by order in this boot: that is known from the other record as well.
            let row = sandbox.row("db").unwrap();
            assert_eq!(row["state"], "stopped", "{when}: {row}");
            assert!(lives(web), "{when}");
            assert_eq!(sandbox.processes().len(), 1, "{when}");
            sandbox.kill_server();
            rounds += 1;
        }
    }
    println!("{rounds} starts from damaged holds");
    sandbox.start_server();
}

/// A server that was killed while `web` ran, and its process.
fn killed(settings: &str) -> (Sandbox, i32) {
    let mut sandbox = Sandbox::start(settings);
    sandbox.write("web.yml", SLEEPER);
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
    sandbox.client(&["start", "web"]);
    let web = pid_of(&sandbox.wait_state("web", "running"));
    sandbox.wait_processes(1);
    sandbox.kill_server();
    (sandbox, web)
}

pub(crate) fn lose_run_dir(sandbox: &Sandbox) {
    sandbox.delete("run");
}

#[test]
fn a_runtime_directory_that_is_gone_with_all_its_records_is_rebuilt_from_what_lives() {
    let (mut sandbox, web) = killed("mode: sync");
    lose_run_dir(&sandbox);
    sandbox.start_server();
    assert_nothing_lost(&sandbox, &[("web", web)], "without the directory");
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["config"]["status"], "current");
    let reason = row["reason"].as_str().unwrap();
    let told = "records were lost: run 1 was found by its process, and its file is taken for \
                what it was started with";
    assert_eq!(reason, told);
    // It is as any other now, and a change of its file is one.
    sandbox.restart_server();
    assert_nothing_lost(&sandbox, &[("web", web)], "once more");
    sandbox.write("web.yml", "command: [sleep, '301']\n");
    wait_for("the next run", PATIENCE, || {
        sandbox
            .row("web")
            .is_some_and(|row| row["state"] == "running" && row["pid"] != json!(web))
    });
    // Of a block of reserved numbers nobody knows any more which ones were used.
    let run = sandbox.row("web").unwrap()["run"].as_u64().unwrap();
    assert!(run > 1_000, "{run}");
    sandbox.done(&["stop", "web"]);
}

#[test]
fn a_found_run_whose_file_is_gone_is_shown_as_its_process_shows_itself_and_not_stopped() {
    let (mut sandbox, web) = killed("mode: sync\nrescan: 1s");
    lose_run_dir(&sandbox);
    sandbox.remove("web.yml");
    sandbox.write("other.yml", SLEEPER);
    sandbox.start_server();
    sandbox.wait_state("other", "running");
    let row = sandbox.row("web").unwrap();
    assert_eq!(pid_of(&row), web);
    assert_eq!(row["config"]["status"], "removed");
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.contains("is shown as that shows itself"), "{reason}");
    // Longer than the quiet second and a rescan: elsewhere it would be stopped.
    stays("web lives", Duration::from_millis(3_500), || lives(web));
    sandbox.write("web.yml", SLEEPER);
    wait_for("its file", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "current"
    });
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), web);
    sandbox.done(&["stop", "web"]);
    assert!(!lives(web));
}

#[test]
fn what_stands_in_the_place_of_a_record_is_moved_away_and_the_server_starts() {
    let (mut sandbox, web) = killed("mode: sync");
    for name in ["run/runtime.journal", "state/state.journal", "state/id"] {
        let path = sandbox.root().join(name);
        let _missing = fs::remove_file(&path);
        fs::create_dir(path).unwrap();
    }
    sandbox.start_server();
    assert_nothing_lost(
        &sandbox,
        &[("web", web)],
        "with directories in their places",
    );
    for name in ["run/runtime.journal", "state/state.journal"] {
        assert!(sandbox.root().join(format!("{name}.unreadable-1")).is_dir());
    }
    sandbox.done(&["restart", "web"]);
    sandbox.done(&["stop", "web"]);
    sandbox.restart_server();
    assert_eq!(sandbox.row("web").unwrap()["hold"], true);
}

#[test]
fn a_record_of_a_newer_format_is_left_alone_and_refuses_the_start() {
    let (mut sandbox, web) = killed("mode: sync");
    let journal = sandbox.root().join("run/runtime.journal");
    let whole = fs::read(&journal).unwrap();
    let text = "supervisor-rs journal 9";
    let newer = format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()));
    fs::write(&journal, &newer).unwrap();
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.stderr.contains("hint: run the newer version"),
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(&journal).unwrap(), newer);
    fs::write(&journal, whole).unwrap();
    sandbox.start_server();
    assert_nothing_lost(&sandbox, &[("web", web)], "put back");
}

fn sleep_program() -> PathBuf {
    let places = ["/usr/bin/sleep", "/bin/sleep"].map(Path::new);
    let found = places.into_iter().find(|path| path.exists()).unwrap();
    found.canonicalize().unwrap()
}

#[test]
fn a_forged_environment_makes_no_stranger_a_child() {
    const STRANGER: u32 = 12_345;
    if !rustix::process::geteuid().is_root() {
        return skip("running programs as another user needs root");
    }
    let (mut sandbox, web) = killed("mode: sync");
    let program = sandbox.root().join("set-uid-sleep");
    fs::copy(sleep_program(), &program).unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(&program, 0o4755);
    mode(sandbox.root(), 0o711);
    let mut forged: Vec<_> = [program, sleep_program()]
        .iter()
        .map(|program| {
            let tag = format!("{}/web/77", sandbox.id());
            let mut command = Command::new(program);
            command.arg("300").uid(STRANGER).process_group(0);
            command.env("SUPERVISOR_RS_RUN", tag).spawn().unwrap()
        })
        .collect();
    mode(sandbox.root(), 0o700);
    lose_run_dir(&sandbox);
    sandbox.start_server();
    let row = sandbox.row("web").unwrap();
    assert_eq!((pid_of(&row), &row["run"]), (web, &json!(1)));
    for process in &mut forged {
        assert!(process.try_wait().unwrap().is_none(), "nobody is harmed");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

const PERL: &str = "/usr/bin/perl";

/// A `sync` server that was killed, its records, and a child that has written over its environment
/// and lives.
struct Hidden {
    sandbox: Sandbox,
    web: i32,
    /// The child's file.
    file: String,
    /// What each run of it makes.
    up: PathBuf,
}

impl Hidden {
    fn lost() -> Self {
        let sandbox = Sandbox::start("mode: sync\nrescan: 1s");
        let up = sandbox.root().join("up");
        let script = format!(
            "$0 = 'x' x 100_000; open(F, '>', '{}'); close(F); sleep 300",
            up.display()
        );
        // By a name of its own: others of this user's processes may hide as well.
        let program = sandbox.root().join(format!("perl-{}", sandbox.id()));
        fs::copy(PERL, &program).unwrap();
        let file = format!("command: {}\n", json!([program, "-e", script]));
        sandbox.write("web.yml", &file);
        let web = pid_of(&sandbox.wait_state("web", "running"));
        wait_for("its title", PATIENCE, || up.exists());
        let mut hidden = Self {
            sandbox,
            web,
            file,
            up,
        };
        hidden.sandbox.kill_server();
        fs::remove_file(&hidden.up).unwrap();
        lose_run_dir(&hidden.sandbox);
        hidden
    }

    fn is_in_doubt(&self) -> bool {
        let Some(row) = self.sandbox.row("web") else {
            return false;
        };
        let reason = row["reason"].as_str().unwrap_or_default();
        let told = format!("records were lost, and process {}, which runs `", self.web);
        row["state"] == "failed" && reason.starts_with(&told)
    }

    fn assert_in_doubt(&self) {
        assert!(self.is_in_doubt(), "{:?}", self.sandbox.row("web"));
        assert!(lives(self.web), "nobody is harmed");
        assert!(!self.up.exists(), "nothing was started in its place");
    }

    fn end(&self) {
        kill_process(Pid::from_raw(self.web).unwrap(), Signal::KILL).unwrap();
    }

    /// It cannot be found by its environment at the end.
    fn stop(self) {
        wait_for("its title", PATIENCE, || self.up.exists());
        self.sandbox.done(&["stop", "web"]);
    }
}

#[test]
fn a_child_that_has_written_over_its_environment_is_not_started_twice() {
    if !Path::new(PERL).exists() {
        return skip("no `perl`, which writes its title over its environment");
    }
    let mut hidden = Hidden::lost();
    for _ in 0..2 {
        hidden.sandbox.start_server();
        hidden.assert_in_doubt();
        hidden.sandbox.kill_server();
    }
    // It ends while no server lives: then what the mode wants is done.
    hidden.end();
    hidden.sandbox.start_server();
    let row = hidden.sandbox.wait_state("web", "running");
    assert_ne!(pid_of(&row), hidden.web);
    hidden.stop();
}

#[test]
fn a_file_that_becomes_good_after_records_were_lost_starts_nothing_beside_what_may_be_its_child() {
    if !Path::new(PERL).exists() {
        return skip("no `perl`, which writes its title over its environment");
    }
    let mut hidden = Hidden::lost();
    hidden.sandbox.write("web.yml", "command: [\n");
    hidden.sandbox.start_server();
    hidden.sandbox.restart_server();
    hidden.sandbox.write("web.yml", &hidden.file);
    wait_for("the doubt", PATIENCE, || hidden.is_in_doubt());
    // Longer than the quiet second and a rescan.
    stays("it is not started", Duration::from_millis(2_500), || {
        hidden.is_in_doubt() && !hidden.up.exists()
    });
    // Not by the servers that follow either, nor by a program that takes its place.
    hidden.sandbox.kill_server();
    hidden.sandbox.start_server();
    hidden.assert_in_doubt();
    hidden.sandbox.done(&["upgrade"]);
    hidden.assert_in_doubt();
    // It ends, and that is seen.
    hidden.end();
    let row = hidden.sandbox.wait_state("web", "running");
    assert_ne!(pid_of(&row), hidden.web);
    let log = hidden.sandbox.server_log();
    assert!(log.contains("in doubt no more"), "{log}");
    hidden.stop();
}

#[test]
fn an_operator_starts_what_may_be_hidden_at_his_own_word() {
    if !Path::new(PERL).exists() {
        return skip("no `perl`, which writes its title over its environment");
    }
    let mut hidden = Hidden::lost();
    hidden.sandbox.start_server();
    hidden.assert_in_doubt();
    hidden.sandbox.done(&["start", "web"]);
    let row = hidden.sandbox.wait_state("web", "running");
    assert_ne!(pid_of(&row), hidden.web);
    assert!(lives(hidden.web), "it is not his whom nobody knows");
    hidden.end();
    hidden.stop();
}

#[test]
fn what_ended_while_records_were_lost_is_started_by_its_mode_as_if_new() {
    let (mut sandbox, web) = killed("mode: sync");
    kill_process(Pid::from_raw(web).unwrap(), Signal::KILL).unwrap();
    wait_for("its end", PATIENCE, || !lives(web));
    lose_run_dir(&sandbox);
    sandbox.start_server();
    let row = sandbox.wait_state("web", "running");
    assert_ne!(pid_of(&row), web);
    assert!(row["run"].as_u64().unwrap() > 1_000, "{row}");
    assert_eq!(sandbox.wait_processes(1).len(), 1);
}
