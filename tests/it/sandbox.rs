//! A server of one's own: directories, a port, the two real programs, and nothing left behind.
//!
//! - All of a sandbox stands in one temporary directory; its server has an id of its own, and
//!   so all its children can be found by `SUPERVISOR_RS_RUN` in their environment.
//! - Conditions are waited for, with a deadline ([`wait_for`]); there are no bare sleeps.
//! - At the end every process of the sandbox is ended. One that belongs to no live run of the
//!   server, or outlived it, fails the test, unless [`Sandbox::expect_leftovers`] was called.
//! - What a server keeps its pins by is unmounted when the server was killed; a mount that stays
//!   fails the test.
//!
//! - [`Wire`] is a client by hand: lines out, lines in. [`Sandbox::mask`] takes out of a text what
//!   differs from run to run, so that whole answers can be compared.
//! - [`Sandbox::gate`] makes a child wait exactly as long as its test wants.
//!
//! Only processes started here are ever signalled, each by its own number.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use supervisor_rs::{clock, process::open_for_writing};

/// The real server.
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_supervisor-rs-server");

/// How long a condition is waited for before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// How often another port is tried when somebody took ours between choosing and listening.
const PORT_TRIES_MAX: u32 = 5;

/// The server's exit code for a port it cannot listen on.
const CANNOT_LISTEN: i32 = 7;

/// For how long a process must belong to no run to be left behind.
const STRAYS_WAIT: Duration = Duration::from_secs(2);

/// How long the hello of something that listens is waited for.
const HELLO_WAIT: Duration = Duration::from_secs(2);

/// A server, its directories and its children.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
    id: String,
    port: u16,
    settings: String,
    server: Option<Child>,
    /// What the server is started by: a program and its arguments, before the server's own.
    within: Vec<String>,
    leftovers: Leftovers,
    /// Where its server's program stands.
    program: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leftovers {
    Fail,
    Expected,
}

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The exit code, or 128 and the signal's number, as shells say it.
    pub(crate) code: i32,
}

/// A process of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) group: i32,
    pub(crate) command: String,
}

impl Sandbox {
    /// Directories and a `server.yml`; nothing runs yet. `settings` are further lines of
    /// `server.yml`, such as `mode: sync`; one such as `loadpaths: [elsewhere]` takes the place
    /// of the sandbox's own.
    pub(crate) fn new(settings: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("supervisor-rs-it-")
            .tempdir()
            .expect("a temporary directory");
        let sandbox = Self {
            id: new_id(dir.path()),
            dir,
            port: free_port(),
            settings: settings.to_owned(),
            server: None,
            within: Vec::new(),
            leftovers: Leftovers::Fail,
            program: SERVER.into(),
        };
        fs::create_dir(sandbox.loadpath()).expect("a loadpath");
        sandbox.write_settings();
        sandbox
    }

    /// One that runs in `quiet` mode, where nothing happens that nobody ordered, and has seen
    /// these children's files.
    pub(crate) fn knowing(children: &[(&str, &str)]) -> Self {
        let sandbox = Self::start("");
        for (name, yaml) in children {
            sandbox.write(&format!("{name}.yml"), yaml);
        }
        for (name, _) in children {
            wait_for(name, PATIENCE, || sandbox.row(name).is_some());
        }
        sandbox
    }

    /// A sandbox whose server answers.
    pub(crate) fn start(settings: &str) -> Self {
        let mut sandbox = Self::new(settings);
        sandbox.start_server();
        sandbox
    }

    /// The server will be started by this program, which must become it or wait for it.
    pub(crate) fn within(mut self, command: &[&str]) -> Self {
        self.within = command.iter().map(ToString::to_string).collect();
        self
    }

    /// The server will be started from a program that is this sandbox's own, and can be replaced.
    pub(crate) fn with_own_program(mut self) -> Self {
        let bin = self.root().join("bin");
        fs::create_dir(&bin).expect("a writable sandbox");
        self.program = bin.join("supervisor-rs-server");
        self.put_program();
        self
    }

    /// Puts the real program where this server's stands.
    pub(crate) fn put_program(&self) {
        let _may_be_missing = fs::remove_file(&self.program);
        if fs::hard_link(SERVER, &self.program).is_err() {
            let _alone = forking();
            fs::copy(SERVER, &self.program).expect("room for a program");
        }
    }

    /// Where the server's program stands.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Whether what other tests make beside this directory is no business of its server. It is
    /// not where everybody may make something, as in `/tmp`; in a directory of one's own it is.
    pub(crate) fn is_undisturbed(&self) -> bool {
        let around = self.root().parent().expect("not the root");
        let mode = fs::metadata(around).expect("it is there").permissions();
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o1000 != 0
    }

    /// The directory that holds everything.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The server's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where child files go.
    pub(crate) fn loadpath(&self) -> PathBuf {
        self.root().join("load")
    }

    /// Where children's output goes.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.root().join("logs")
    }

    /// The server's configuration file.
    pub(crate) fn server_yml(&self) -> PathBuf {
        self.root().join("server.yml")
    }

    /// `host:port` of the server, as the client wants it.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What the server wrote to its standard error, all its lives together.
    pub(crate) fn server_log(&self) -> String {
        let bytes = fs::read(self.server_log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Puts a child file into the loadpath as careful programs do: written elsewhere on the
    /// same disk, then renamed.
    pub(crate) fn write(&self, name: &str, yaml: &str) {
        self.replace(&self.loadpath().join(name), yaml);
    }

    /// Takes a child file away.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.loadpath().join(name)).expect("a child file");
    }

    /// Edits `server.yml`: other `settings` than those given first.
    pub(crate) fn configure(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
        self.write_settings();
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start_server(&mut self) {
        for _ in 0..PORT_TRIES_MAX {
            let server = self.spawn_server();
            self.server = Some(server);
            match self.wait_for_hello() {
                Ok(()) => return,
                Err(code) if code == CANNOT_LISTEN => {
                    self.port = free_port();
                    self.write_settings();
                }
                Err(code) => panic!("the server ended with {code}:\n{}", self.server_log()),
            }
        }
        panic!("found no free port:\n{}", self.server_log());
    }

    /// Starts the server and waits for nothing; [`Sandbox::wait_for_hello`] does.
    pub(crate) fn begin_server(&mut self) {
        self.server = Some(self.spawn_server());
    }

    /// Runs a server that is expected to end by itself.
    pub(crate) fn server_to_end(&self, arguments: &[&str]) -> Output {
        let mut command = program(env!("CARGO_BIN_EXE_supervisor-rs-server"), self.root());
        command.args(arguments);
        run(command)
    }

    /// The server's process.
    pub(crate) fn server_pid(&self) -> i32 {
        let server = self.server.as_ref().expect("a running server");
        Pid::from_child(server).as_raw_nonzero().get()
    }

    /// Kills the server, as a crash would.
    pub(crate) fn kill_server(&mut self) {
        self.signal_server(Signal::KILL);
        self.wait_server();
    }

    /// Kills the server and starts another.
    pub(crate) fn restart_server(&mut self) {
        self.kill_server();
        self.start_server();
    }

    /// Sends TERM, waits for the server's end and returns its exit code.
    pub(crate) fn stop_server(&mut self) -> i32 {
        self.signal_server(Signal::TERM);
        self.wait_server()
    }

    /// Waits for the server's end, which something else has caused; returns its exit code.
    pub(crate) fn wait_server(&mut self) -> i32 {
        // It stays ours until it has ended: a test that waits in vain ends it.
        let server = self.server.as_mut().expect("a running server");
        let what = "the server's end";
        let mut status = None;
        wait_for(what, PATIENCE, || {
            status = server.try_wait().expect("our child");
            status.is_some()
        });
        self.server = None;
        code_of(status.expect("waited for"))
    }

    /// Runs the client against this server: `on` is added.
    pub(crate) fn client(&self, arguments: &[&str]) -> Output {
        let address = self.address().to_string();
        self.client_as_given(&[arguments, &["on", &address]].concat())
    }

    /// Runs the client with just these arguments.
    pub(crate) fn client_as_given(&self, arguments: &[&str]) -> Output {
        run(self.client_command(arguments))
    }

    /// The client with just these arguments, not yet run.
    pub(crate) fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = program(env!("CARGO_BIN_EXE_supervisor-rs-client"), self.root());
        command.args(arguments);
        command
    }

    /// Runs lines in a shell, as a person who has just installed both programs, with this server as
    /// the one that the client asks.
    pub(crate) fn shell(&self, lines: &str) -> Output {
        let programs = Path::new(SERVER).parent().expect("a folder").display();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut bash = program("bash", self.root());
        bash.args(["-c", lines])
            .env("PATH", format!("{programs}:{path}:/usr/sbin:/sbin"))
            .env("SUPERVISOR_RS_ON", self.address().to_string());
        for variable in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            bash.env(format!("{variable}_NAME"), "somebody")
                .env(format!("{variable}_EMAIL"), "somebody@localhost");
        }
        bash.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null");
        run(bash)
    }

    /// A connection to this server.
    pub(crate) fn wire(&self) -> Wire {
        Wire::connect(self.address())
    }

    /// Runs the client with `--json` against this server, which must print one object.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.client(&[&["--json"], arguments].concat());
        assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
        serde_json::from_str(&output.stdout).expect("one JSON object")
    }

    /// Gives a command that must be carried out; returns the answer.
    pub(crate) fn done(&self, arguments: &[&str]) -> Value {
        let output = self.client(&[&["--json"], arguments].concat());
        let answer: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
        assert_eq!(
            (&answer["ok"], output.code),
            (&Value::Bool(true), 0),
            "{output:?}"
        );
        answer
    }

    /// Gives a command that must be refused with this code, and so the client must exit with
    /// that one; returns the message.
    pub(crate) fn refused(&self, arguments: &[&str], code: &str, exit: i32) -> String {
        let output = self.client(&[&["--json"], arguments].concat());
        let answer: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
        assert_eq!(answer["ok"], false, "{output:?}");
        assert_eq!(
            (answer["error"]["code"].as_str(), output.code),
            (Some(code), exit),
            "{output:?}"
        );
        answer["error"]["message"]
            .as_str()
            .expect("a message")
            .to_owned()
    }

    /// What `check --all` says of a child.
    pub(crate) fn row(&self, name: &str) -> Option<Value> {
        let output = self.look(&["--json", "check", "--all"]);
        assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
        let answer: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
        let rows = answer["children"].as_array()?.iter();
        rows.clone().find(|row| row["name"] == name).cloned()
    }

    /// Runs the client against this server, signing as `deploy` if it must.
    fn look(&self, arguments: &[&str]) -> Output {
        let hello = hello(self.address()).unwrap_or_default();
        match hello["encrypt"] == true {
            true => self.sign(arguments),
            false => self.client(arguments),
        }
    }

    /// Waits until a child's latest run has at least this number, and returns its row.
    pub(crate) fn wait_run(&self, name: &str, run: u64) -> Value {
        let mut row = Value::Null;
        wait_for(&format!("run {run} of `{name}`"), PATIENCE, || {
            row = self.row(name).unwrap_or_default();
            row["run"].as_u64().is_some_and(|latest| latest >= run)
        });
        row
    }

    /// Waits until a child is in a state, and returns its row.
    pub(crate) fn wait_state(&self, name: &str, state: &str) -> Value {
        let mut row = None;
        wait_for(&format!("`{name}` {state}"), PATIENCE, || {
            row = self.row(name).filter(|row| row["state"] == state);
            row.is_some()
        });
        row.expect("waited for")
    }

    /// The command line of a child's main process, arguments separated by spaces; empty when
    /// none lives.
    pub(crate) fn command_of(&self, name: &str) -> String {
        let pid = self.row(name).and_then(|row| row["pid"].as_i64());
        let line = pid.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        let line = String::from_utf8_lossy(&line.unwrap_or_default()).replace('\0', " ");
        line.trim_end().to_owned()
    }

    /// The processes that this sandbox's server has started and that still live, and theirs.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes_marked(&format!("SUPERVISOR_RS_RUN={}/", self.id))
    }

    /// Waits until a child's start waits for its prehook. (It is `pending` a moment earlier.)
    pub(crate) fn wait_prehook(&self, name: &str) -> Value {
        let mut row = None;
        wait_for(&format!("`{name}` waiting"), PATIENCE, || {
            let waits = |row: &Value| {
                let reason = row["reason"].as_str();
                reason.is_some_and(|reason| reason.starts_with("waits for prehook `"))
            };
            row = self.row(name).filter(waits);
            row.is_some()
        });
        row.expect("waited for")
    }

    /// Waits until a child has written this to its standard output.
    pub(crate) fn wait_output(&self, name: &str, text: &str) {
        let path = self.log_dir().join(format!("{name}.out"));
        wait_for(&format!("`{name}` saying `{text}`"), PATIENCE, || {
            fs::read_to_string(&path).is_ok_and(|output| output.contains(text))
        });
    }

    /// Makes a gate: shell words that wait there until [`Sandbox::open_gate`].
    pub(crate) fn gate(&self, name: &str) -> String {
        let path = self.root().join(name);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("a FIFO");
        format!("read opened < {}", path.display())
    }

    /// Waits until somebody waits at a gate, and lets them go on.
    pub(crate) fn open_gate(&self, name: &str) {
        let path = self.root().join(name);
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let open = || rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
        wait_for(&format!("somebody at gate `{name}`"), PATIENCE, || {
            // Without a reader a FIFO cannot be opened for writing.
            open().is_ok_and(|gate| rustix::io::write(&gate, b"\n").is_ok())
        });
    }

    /// A child that takes notice of TERM, and then ends when its gate is opened.
    pub(crate) fn slow_to_stop(&self, gate: &str) -> String {
        let wait = self.gate(gate);
        format!(
            "command: [sh, -c, \"trap '{wait}; exit 0' TERM; echo up; \
             while :; do sleep 0.2; done\"]\n"
        )
    }

    /// A text without what differs from run to run: this sandbox's places, and the numbers of
    /// processes, times and digests, each of which must look like one.
    pub(crate) fn mask(&self, text: &str) -> String {
        let root = self.root().display().to_string();
        let text = text
            .replace(&root, "ROOT")
            .replace(&self.address().to_string(), "ADDRESS")
            .replace(&self.id, "SERVER");
        mask(&text)
    }

    /// Waits until there are so many of them, and returns them: a process that has just been
    /// started shows its environment a moment after its program has begun.
    pub(crate) fn wait_processes(&self, count: usize) -> Vec<Process> {
        let mut found = Vec::new();
        wait_for(&format!("{count} processes"), PATIENCE, || {
            found = self.processes();
            found.len() == count
        });
        found
    }

    /// Where mounts are below the sandbox, the one that is on top first.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("a mount table");
        let at = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
        let mut mounts: Vec<PathBuf> = table.lines().filter_map(at).collect();
        mounts.retain(|path| path.starts_with(self.root()));
        mounts.reverse();
        mounts
    }

    /// Takes the mounts away that a server keeps its pins by, as a person does who is to delete
    /// its directory.
    pub(crate) fn unmount_pins(&self) {
        use rustix::mount::{UnmountFlags, unmount};
        let mut mounts = self.mounts();
        mounts.retain(|path| path.ends_with("pins"));
        for path in mounts {
            // The server may do the same at this moment.
            let _may_be_gone = unmount(&path, UnmountFlags::DETACH);
        }
    }

    /// Deletes one of the server's directories while it runs.
    pub(crate) fn delete(&self, name: &str) {
        self.unmount_pins();
        fs::remove_dir_all(self.root().join(name)).expect("a directory");
    }

    /// Processes may outlive the server or their run here: the test has seen to it.
    pub(crate) fn expect_leftovers(&mut self) {
        self.leftovers = Leftovers::Expected;
    }

    fn server_log_path(&self) -> PathBuf {
        self.root().join("server.log")
    }

    fn write_settings(&self) {
        let root = self.root().display();
        let own = [
            ("loadpaths", "[load]".to_owned()),
            ("listener_addr", Ipv4Addr::LOCALHOST.to_string()),
            ("listener_port", self.port.to_string()),
            ("id", self.id.clone()),
            ("state_dir", format!("{root}/state")),
            ("runtime_dir", format!("{root}/run")),
            ("log_dir", format!("{root}/logs")),
        ];
        let mut text = String::new();
        for (key, value) in own {
            let line = format!("{key}:");
            if !self.settings.lines().any(|own| own.starts_with(&line)) {
                text += &format!("{line} {value}\n");
            }
        }
        self.replace(&self.server_yml(), &(text + &self.settings + "\n"));
    }

    /// Puts a file there as careful programs do: written elsewhere on the same disk, then
    /// renamed.
    ///
    /// Another test that forks meanwhile holds the file open until it executes its program; a
    /// server would rightly take it for one that is being written.
    pub(crate) fn replace(&self, path: &Path, text: &str) {
        let _alone = forking();
        let temporary = self.root().join("being-written");
        fs::write(&temporary, text).expect("a writable sandbox");
        let file = File::open(&temporary).expect("a readable sandbox");
        wait_for("the file to be closed", PATIENCE, || {
            !open_for_writing(&file)
        });
        fs::rename(&temporary, path).expect("a writable sandbox");
    }

    fn spawn_server(&self) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.server_log_path())
            .expect("the server's log");
        let server = &self.program;
        let mut command = match self.within.split_first() {
            Some((outer, arguments)) => {
                let mut command = program(outer, self.root());
                command.args(arguments).arg(server);
                command
            }
            None => program(&server.display().to_string(), self.root()),
        };
        command
            .arg(self.server_yml())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        let _alone = forking();
        command.spawn().expect("the server's program")
    }

    /// Waits for a hello of this very server; `Err` is the exit code of one that ended.
    pub(crate) fn wait_for_hello(&mut self) -> Result<(), i32> {
        let (address, id) = (self.address(), self.id.clone());
        let server = self.server.as_mut().expect("just started");
        let mut ended = None;
        wait_for("the server's hello", PATIENCE, || {
            ended = server.try_wait().expect("our child");
            ended.is_some() || hello(address).is_some_and(|hello| hello["id"] == *id)
        });
        match ended {
            Some(status) => {
                self.server = None;
                Err(code_of(status))
            }
            None => Ok(()),
        }
    }

    /// Sends the server a signal.
    pub(crate) fn signal_server(&self, signal: Signal) {
        let server = self.server.as_ref().expect("a running server");
        kill_process(Pid::from_child(server), signal).expect("our child");
    }

    /// The groups of live runs, as the server sees them; none when it does not answer.
    fn live_groups(&mut self) -> Vec<i32> {
        let server = self.server.as_mut();
        let alive = server.is_some_and(|server| matches!(server.try_wait(), Ok(None)));
        if !alive {
            return Vec::new();
        }
        let output = self.look(&["--json", "check"]);
        let answer: Value = serde_json::from_str(output.stdout.trim()).unwrap_or_default();
        let rows = answer["children"].as_array().into_iter().flatten();
        rows.filter_map(|row| i32::try_from(row["pid"].as_i64()?).ok())
            .collect()
    }
}

impl Sandbox {
    /// The processes that belong to no live run, as far as that can be told. A run may begin
    /// between the look at the runs and that at the processes: what is left behind stays so.
    fn strays(&mut self) -> Vec<Process> {
        let deadline = clock::mono() + STRAYS_WAIT;
        loop {
            let live = self.live_groups();
            let mut strays = self.processes();
            strays.retain(|process| !live.contains(&process.group));
            if strays.is_empty() || clock::mono() >= deadline {
                return strays;
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends every process of this sandbox; what is found while others end is ended too.
    fn end_all(&self) -> Result<(), Vec<Process>> {
        let deadline = clock::mono() + PATIENCE;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            if clock::mono() >= deadline {
                return Err(left);
            }
            for process in &left {
                if let Some(pid) = Pid::from_raw(process.pid) {
                    let _may_have_ended = kill_process(pid, Signal::KILL);
                }
            }
            thread::sleep(LOOK);
        }
    }
}

/// Where servers of root note their directories: each in a folder of its own, by the path of its
/// server.yml. (Those of others do so in their `HOME`, which is the sandbox.)
const NOTES: &str = "/run/supervisor-rs";

impl Sandbox {
    /// Removes the cgroups of this sandbox's runs, which outlive a server that was killed.
    fn remove_cgroups(&self) {
        let Some(home) = cgroups_of(self.id()) else {
            return;
        };
        let deadline = clock::mono() + PATIENCE;
        while home.exists() && clock::mono() < deadline {
            for place in fs::read_dir(&home).into_iter().flatten().flatten() {
                let _until_all_have_ended = fs::remove_dir(place.path());
            }
            let _until_it_is_empty = fs::remove_dir(&home);
            thread::sleep(LOOK);
        }
    }

    /// Takes away what servers of this sandbox have noted outside of it, and left when killed.
    fn take_notes_away(&self) {
        let root = format!("\"{}/", self.root().display());
        for entry in fs::read_dir(NOTES).into_iter().flatten().flatten() {
            let note = entry.path().join("directories");
            if fs::read_to_string(&note).is_ok_and(|text| text.contains(&root)) {
                let _best_effort = fs::remove_file(&note);
                let _unless_in_use = fs::remove_dir(entry.path());
            }
        }
        // Servers make it anew when they need it.
        let _unless_in_use = fs::remove_dir(NOTES);
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A test that has failed already is not to fail twice, which would end all others.
        let strays = match thread::panicking() || self.leftovers == Leftovers::Expected {
            true => Ok(Vec::new()),
            false => catch_unwind(AssertUnwindSafe(|| self.strays())),
        };
        if let Some(mut server) = self.server.take() {
            let _may_have_ended = server.kill();
            let _reaped = server.wait();
        }
        let ended = self.end_all();
        self.take_notes_away();
        self.unmount_pins();
        self.remove_cgroups();
        let mounts = self.mounts();
        let log = self.server_log();
        if thread::panicking() {
            println!("the server's log:\n{log}");
            return;
        }
        let strays = strays.unwrap_or_else(|panic| resume_unwind(panic));
        let none = strays.is_empty();
        assert!(none, "processes were left behind: {strays:#?}\n{log}");
        assert_eq!(ended, Ok(()), "processes cannot be ended\n{log}");
        assert!(
            mounts.is_empty(),
            "mounts were left behind: {mounts:?}\n{log}"
        );
    }
}

/// Waits until a condition holds; fails the test after the deadline, saying `what` did not.
pub(crate) fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = clock::mono() + within;
    while !condition() {
        let late = clock::mono() >= deadline;
        assert!(!late, "waited {within:?} in vain for {what}");
        thread::sleep(LOOK);
    }
}

/// Removes cgroups that a test has made, with those below them, once nobody is in them any more; fails
/// the test when one stays.
pub(crate) fn remove_cgroups(places: &[impl AsRef<Path>]) {
    for _ in 0..500 {
        let gone = |place: &Path| {
            remove_cgroup(place);
            !place.exists()
        };
        let left = places.iter().filter(|place| !gone(place.as_ref()));
        if left.count() == 0 {
            return;
        }
        thread::sleep(LOOK);
    }
    let places: Vec<&Path> = places.iter().map(AsRef::as_ref).collect();
    assert!(thread::panicking(), "cgroups were left behind: {places:?}");
}

fn remove_cgroup(place: &Path) {
    for below in fs::read_dir(place).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&below.path());
        }
    }
    let _until_it_is_empty = fs::remove_dir(place);
}

/// Where a server with this id, started from here, makes cgroups for its runs, if it can.
pub(crate) fn cgroups_of(id: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(
        Path::new(point)
            .join(below)
            .join(format!("supervisor-rs-{id}")),
    )
}

/// The children of a process, zombies included.
pub(crate) fn children_of(parent: i32) -> Vec<i32> {
    let parent = parent.to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| status_of(*pid, "PPid").as_ref() == Some(&parent))
        .collect()
}

/// A child that does nothing, for long.
pub(crate) const SLEEPER: &str = "command: [sleep, '300']\n";

/// The process of a row.
pub(crate) fn pid_of(row: &Value) -> i32 {
    i32::try_from(row["pid"].as_i64().expect("it lives")).expect("a pid")
}

/// A time of an answer, in milliseconds since 1970.
pub(crate) fn millis(stamp: &Value) -> i64 {
    millis_of(stamp.as_str().expect("a time"))
}

/// As [`millis`], of a text.
pub(crate) fn millis_of(stamp: &str) -> i64 {
    let time = humantime::parse_rfc3339(stamp).expect("RFC 3339");
    let span = time
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(span.as_millis()).expect("not that late")
}

/// The `command` line of a child that is a shell script.
pub(crate) fn script(text: &str) -> String {
    let quoted = json!(text);
    format!("command: [sh, -c, {quoted}]\n")
}

/// Waits until a file holds as many whole lines, and returns all of them.
pub(crate) fn wait_lines(path: &Path, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    wait_for(
        &format!("{count} lines in {}", path.display()),
        PATIENCE,
        || {
            let text = fs::read_to_string(path).unwrap_or_default();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            lines = whole.lines().map(str::to_owned).collect();
            lines.len() >= count
        },
    );
    lines
}

/// A field of `/proc/PID/status`; `None` when there is no such process.
pub(crate) fn status_of(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| *name == field)?;
    Some(value.trim().to_owned())
}

/// Whether a process lives: it is there and no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    status_of(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// An address that nobody listens on, and nobody will while the first part is kept.
pub(crate) fn dead_address() -> (rustix::fd::OwnedFd, SocketAddr) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    bind(&socket, &any).expect("a free port");
    let address = getsockname(&socket).expect("a bound socket");
    let address = SocketAddr::try_from(address).expect("an IPv4 address");
    (socket, address)
}

/// Fails the test if a condition does not hold all the time, for that long.
pub(crate) fn stays(what: &str, so_long: Duration, mut condition: impl FnMut() -> bool) {
    let until = clock::mono() + so_long;
    while clock::mono() < until {
        assert!(condition(), "not so for {so_long:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Says that a test cannot run here and why; with `REQUIRE_ALL=1` that is a failure.
pub(crate) fn skip(reason: &str) {
    println!("skipped: {reason}");
    let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "skipped although REQUIRE_ALL=1: {reason}");
}

/// Says that a test has nothing to look at here, which no right or tool would change: that is no
/// failure, whatever is required.
pub(crate) fn pass_over(reason: &str) {
    println!("passed over: {reason}");
}

/// A client by hand.
pub(crate) struct Wire {
    lines: BufReader<TcpStream>,
    /// What the server said first.
    pub(crate) hello: String,
}

impl Wire {
    /// Connects and hears the hello, or what is said in its place.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect_timeout(&address, HELLO_WAIT).expect("a listener"))
    }

    /// As [`Wire::connect`], over a connection that is there.
    pub(crate) fn on(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let mut wire = Self {
            lines: BufReader::new(stream),
            hello: String::new(),
        };
        wire.hello = wire.line().expect("a first line");
        wire
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let mut stream = self.lines.get_ref();
        stream
            .write_all(bytes.as_ref())
            .expect("a server that reads");
    }

    /// Sends bytes, and says whether the server was still there to take them.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        let mut stream = self.lines.get_ref();
        stream.write_all(bytes).is_ok()
    }

    /// Sends a request; `command` is its JSON.
    pub(crate) fn ask(&mut self, id: u64, command: &str) {
        self.send(format!("{{\"id\":{id},\"command\":{command}}}\n"));
    }

    /// The next line as it is, whichever request it answers.
    pub(crate) fn value(&mut self) -> Value {
        let line = self.line().expect("a line in time");
        serde_json::from_str(&line).expect("one JSON object")
    }

    /// The next line, without its line feed; `None` at the end of the connection.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => {
                assert_eq!(line.pop(), Some('\n'), "a line cut short: {line}");
                Some(line)
            }
            Err(fault) if fault.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(fault) => panic!("no line: {fault}"),
        }
    }

    /// The next answer: its id and what it says.
    pub(crate) fn answer(&mut self) -> (Option<u64>, Value) {
        let line = self.line().expect("an answer");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        (value["id"].as_u64(), value)
    }

    /// Closes the sending half: no more requests will come.
    pub(crate) fn finish(&self) {
        let shut = self.lines.get_ref().shutdown(std::net::Shutdown::Write);
        shut.expect("a connection");
    }
}

/// Takes process numbers, times, spans and digests out of a text.
pub(crate) fn mask(text: &str) -> String {
    const NUMBERS: [(&str, &str); 5] = [
        ("\"pid\":", "PID"),
        ("pid ", "PID"),
        ("process ", "PID"),
        ("\"uptime_ms\":", "MS"),
        ("\"time\":", "SECONDS"),
    ];
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let number = NUMBERS.iter().find_map(|(before, word)| {
            let after = rest.strip_prefix(before)?;
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            (digits > 0).then(|| (*before, *word, &after[digits..]))
        });
        let digest = rest.strip_prefix("\"digest\":\"").filter(|after| {
            let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            after.bytes().take_while(hex).count() == 32
        });
        if let Some((before, word, after)) = number {
            masked.push_str(before);
            masked.push_str(word);
            rest = after;
        } else if let Some(after) = digest {
            masked.push_str("\"digest\":\"DIGEST");
            rest = &after[32..];
        } else if is_stamp(rest) {
            masked.push_str("TIME");
            rest = &rest[STAMP.len()..];
        } else {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    masked
}

/// RFC 3339, UTC, milliseconds: `0` is any digit.
const STAMP: &str = "0000-00-00T00:00:00.000Z";

fn is_stamp(text: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| match form {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    text.len() >= STAMP.len() && text.bytes().zip(STAMP.bytes()).all(fits)
}

/// The hello of whatever listens there.
pub(crate) fn hello(address: SocketAddr) -> Option<Value> {
    let stream = TcpStream::connect_timeout(&address, HELLO_WAIT).ok()?;
    stream.set_read_timeout(Some(HELLO_WAIT)).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let message: Value = serde_json::from_str(&line).ok()?;
    message.get("hello").cloned()
}

/// Held while a child file is written and while a process is made. Between fork and exec that
/// has whatever is open here, and a file that somebody has open for writing is not read: a
/// `start` right after the writing would not know the child.
fn forking() -> MutexGuard<'static, ()> {
    static FORKING: Mutex<()> = Mutex::new(());
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program to its end, with a deadline.
pub(crate) fn run(mut command: Command) -> Output {
    let capture = || tempfile::tempfile().expect("a temporary file");
    let (stdout, stderr) = (capture(), capture());
    command
        .stdout(stdout.try_clone().expect("a descriptor"))
        .stderr(stderr.try_clone().expect("a descriptor"));
    let mut child = {
        let _alone = forking();
        command.spawn().expect("a program")
    };
    let deadline = clock::mono() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if clock::mono() >= deadline {
            let _may_have_ended = child.kill();
            let _reaped = child.wait();
            panic!("still running after {PATIENCE:?}: {command:?}");
        }
        thread::sleep(LOOK);
    };
    Output {
        stdout: read_back(stdout),
        stderr: read_back(stderr),
        code: code_of(status),
    }
}

fn read_back(mut file: File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().expect("a temporary file");
    file.read_to_end(&mut bytes).expect("a temporary file");
    String::from_utf8(bytes).expect("UTF-8")
}

/// One of our programs, in an environment that says nothing of the machine's user.
fn program(path: &str, home: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .stdin(Stdio::null())
        .current_dir(home)
        .env("HOME", home)
        .env("NO_COLOR", "1");
    let foreign = [
        "RUST_LOG",
        "SUPERVISOR_RS_ON",
        "SUPERVISOR_RS_KEY",
        "SUPERVISOR_RS_RUN",
        "XDG_STATE_HOME",
        "XDG_RUNTIME_DIR",
    ];
    for name in foreign {
        command.env_remove(name);
    }
    command
}

fn code_of(status: ExitStatus) -> i32 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).expect("it ended")
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A UUID that no other sandbox has: the temporary directory's name is unique on this
/// machine, and the clock tells later ones apart.
fn new_id(dir: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (dir, std::process::id(), clock::mono(), salt).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (hash(0), hash(1));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// The live processes with this text at the beginning of a variable in their environment.
pub(crate) fn processes_marked(mark: &str) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| process_marked(pid, mark)).collect()
}

/// `None` for a process without the mark, and for one that has ended, zombies included.
fn process_marked(pid: i32, mark: &str) -> Option<Process> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let environment = fs::read(proc.join("environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find(|variable| variable.starts_with(mark.as_bytes()))?;
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let group = after_name.split_ascii_whitespace().nth(2)?.parse().ok()?;
    let command = fs::read(proc.join("cmdline")).ok()?;
    Some(Process {
        pid,
        group,
        command: String::from_utf8_lossy(&command).replace('\0', " "),
    })
}

#[test]
fn a_mask_takes_out_what_differs_and_nothing_else() {
    let text = r#"{"pid":12,"run":3,"at":"2023-11-14T22:13:20.123Z","uptime_ms":4,"digest":"5f0c1d2e3a4b5c6d7e8f90a1b2c3d4e5"}"#;
    let masked = r#"{"pid":PID,"run":3,"at":"TIME","uptime_ms":MS,"digest":"DIGEST"}"#;
    assert_eq!(mask(text), masked);
    for as_it_is in [
        r#""pid":null"#,
        r#""uptime_ms":-1"#,
        r#""digest":"5f""#,
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.123",
    ] {
        assert_eq!(mask(as_it_is), as_it_is);
    }
}

#[test]
fn a_process_is_found_by_its_mark_and_by_no_other() {
    let sandbox = Sandbox::new("");
    let mut sleeper = Command::new("sleep")
        .arg("300")
        .env("SUPERVISOR_RS_RUN", format!("{}/web/1", sandbox.id))
        .spawn()
        .unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    // Between fork and exec it has its parent's environment still.
    wait_for("the mark", PATIENCE, || !sandbox.processes().is_empty());
    let found = sandbox.processes();
    assert_eq!(found[0].pid, pid);
    assert!(found[0].command.starts_with("sleep 300"), "{found:?}");
    assert_eq!(Sandbox::new("").processes(), []);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_process_left_behind_fails_its_test_and_is_ended() {
    let sandbox = Sandbox::new("");
    let mut sleeper = Command::new("sleep")
        .arg("300")
        .env("SUPERVISOR_RS_RUN", format!("{}/web/1", sandbox.id))
        .spawn()
        .unwrap();
    wait_for("the mark", PATIENCE, || !sandbox.processes().is_empty());
    let root = sandbox.root().to_owned();
    let dropped = thread::spawn(move || drop(sandbox)).join();
    let words = *dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(words.contains("left behind"), "{words}");
    assert_eq!(code_of(sleeper.wait().unwrap()), 128 + 9);
    assert!(!root.exists());
}

#[test]
fn a_program_that_ran_is_told_whole() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; exit 3"]);
    let expected = Output {
        stdout: "out\n".to_owned(),
        stderr: "err\n".to_owned(),
        code: 3,
    };
    assert_eq!(run(command), expected);
}
