//! A real sshd on a loopback port, and an `ssh` that knows it.
//!
//! - [`Sshd`] has keys, a configuration and a log of its own in its sandbox's directory. As root it
//!   runs with a `/run` of its own, since it wants a directory there, which is thus never made.
//! - [`Sshd::command`] is the client as somebody runs it whose `~/.ssh` knows that sshd: `ssh`
//!   reads what the account's real home has, whatever `HOME` says, so a program of that name comes
//!   first in `PATH` which hands its own arguments on to the real one, after `-F`. It writes them
//!   down, too: [`Sshd::calls`].
//! - What was started by such a client carries a mark in its environment: [`Sshd::left`].
//!
//! Sources: sshd(8), sshd_config(5), ssh_config(5), ssh-agent(1).

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    network::is_root,
    sandbox::{
        Output, PATIENCE, Process, Sandbox, free_port, processes_marked, run, skip, wait_for,
    },
};

/// Where sshd is that is not in an ordinary user's `PATH`.
const SSHD: &str = "/usr/sbin/sshd";

/// How often another port is tried when somebody took ours between choosing and listening.
const PORT_TRIES_MAX: u32 = 5;

/// What marks the processes of a client, in their environment.
const MARK: &str = "SSH_OF_SUPERVISOR_RS_TEST";

/// A real sshd, and who may log in there.
pub(crate) struct Sshd {
    dir: PathBuf,
    user: String,
    port: u16,
    server: Child,
    agent: Option<Child>,
}

/// What the user's ssh shows when it logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A key in a file.
    File,
    /// A key that only the agent has.
    Agent,
    /// A key in a file, which that sshd does not know.
    Wrong,
    /// A key in a file that only a passphrase opens.
    Locked,
}

impl Sshd {
    /// One that a user's ssh knows by its key, and who knows the user; these are further lines of
    /// its configuration. `None`, having said so, where there is none.
    pub(crate) fn start(sandbox: &Sandbox, settings: &str) -> Option<Self> {
        if !Path::new(SSHD).exists() {
            skip("openssh-server is not installed");
            return None;
        }
        let dir = sandbox.root().join("ssh");
        fs::create_dir_all(dir.join("bin")).expect("a writable sandbox");
        // A stranger's login reads it, too.
        for dir in [sandbox.root(), &dir] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("our own");
        }
        for (key, passphrase) in [
            ("host", ""),
            ("user", ""),
            ("wrong", ""),
            ("locked", "open"),
        ] {
            let path = dir.join(key);
            let arguments = ["-q", "-t", "ed25519", "-C", key, "-N", passphrase, "-f"];
            let output = run_in(
                &dir,
                "ssh-keygen",
                &[&arguments[..], &[text(&path)]].concat(),
            );
            assert_eq!(output.code, 0, "{output:?}");
        }
        let known = ["user.pub", "locked.pub"].map(|key| fs::read(dir.join(key)).expect("made"));
        fs::write(dir.join("authorized_keys"), known.concat()).expect("a writable sandbox");
        let id = run_in(&dir, "id", &["-un"]);
        let Some((server, port)) = listen(&dir, settings) else {
            skip(&format!("sshd does not run here: {}", log_in(&dir)));
            return None;
        };
        let mut sshd = Self {
            user: id.stdout.trim().to_owned(),
            port,
            server,
            agent: None,
            dir,
        };
        sshd.write_program(sandbox);
        sshd.know();
        sshd.identify(Identity::File);
        Some(sshd)
    }

    /// The program that stands for `ssh` in the client's `PATH`.
    fn write_program(&self, sandbox: &Sandbox) {
        let real = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join("ssh"))
            .find(|path| path.exists())
            .expect("openssh-server comes with `ssh`");
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" '' >> '{}'\nexec '{}' -F '{}' \"$@\"\n",
            self.dir.join("calls").display(),
            real.display(),
            self.dir.join("config").display(),
        );
        let path = self.dir.join("bin/ssh");
        sandbox.replace(&path, &script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own");
    }

    /// Has the user's ssh know the host's key.
    pub(crate) fn know(&self) {
        let key = fs::read_to_string(self.dir.join("host.pub")).expect("made");
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.dir.join("known_hosts"), line).expect("a writable sandbox");
    }

    /// Has the user's ssh know the host by another key than it has.
    pub(crate) fn know_wrongly(&self) {
        let key = fs::read_to_string(self.dir.join("wrong.pub")).expect("made");
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.dir.join("known_hosts"), line).expect("a writable sandbox");
    }

    /// Has the user's ssh know no host.
    pub(crate) fn forget(&self) {
        fs::write(self.dir.join("known_hosts"), "").expect("a writable sandbox");
    }

    /// What the user logs in by from now on.
    pub(crate) fn identify(&mut self, identity: Identity) {
        let place = |name| self.dir.join(name).display().to_string();
        let key = match identity {
            Identity::File => place("user"),
            Identity::Agent => "none".to_owned(),
            Identity::Wrong => place("wrong"),
            Identity::Locked => place("locked"),
        };
        let agent = match identity {
            Identity::Agent => place("agent"),
            Identity::File | Identity::Wrong | Identity::Locked => "none".to_owned(),
        };
        let config = format!(
            "Host web1\n    HostName 127.0.0.1\n    Port {port}\n    User {user}\n\
             Host *\n    IdentityFile {key}\n    IdentityAgent {agent}\n    \
             UserKnownHostsFile {known}\n    GlobalKnownHostsFile none\n    \
             UpdateHostKeys no\n",
            port = self.port,
            user = self.user,
            known = place("known_hosts"),
        );
        fs::write(self.dir.join("config"), config).expect("a writable sandbox");
        if identity == Identity::Agent && self.agent.is_none() {
            self.start_agent();
        }
    }

    fn start_agent(&mut self) {
        let socket = self.dir.join("agent");
        let agent = Command::new("ssh-agent")
            .args(["-D", "-a", text(&socket)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("openssh-client is installed");
        self.agent = Some(agent);
        wait_for("the agent", PATIENCE, || socket.exists());
        let mut add = Command::new("ssh-add");
        add.args(["-q", text(&self.dir.join("user"))])
            .env("SSH_AUTH_SOCK", &socket)
            .stdin(Stdio::null());
        wait_for("the agent's key", PATIENCE, || {
            add.status().is_ok_and(|status| status.success())
        });
    }

    /// How this server is called from outside by who goes through this sshd.
    pub(crate) fn host(&self, sandbox: &Sandbox) -> String {
        self.host_with(&self.user, &sandbox.address().port().to_string())
    }

    /// As [`Sshd::host`], as another user and to another place.
    pub(crate) fn host_with(&self, user: &str, place: &str) -> String {
        format!("ssh://{user}@127.0.0.1:{}/{place}", self.port)
    }

    /// What is to come after `ssh://` to get there.
    pub(crate) fn login(&self) -> String {
        format!("{}@127.0.0.1:{}", self.user, self.port)
    }

    /// The client, run by who knows this sshd.
    pub(crate) fn command(&self, sandbox: &Sandbox, arguments: &[&str]) -> Command {
        let mut command = sandbox.client_command(arguments);
        let path = env::var_os("PATH").unwrap_or_default();
        let mut dirs = vec![self.dir.join("bin")];
        dirs.extend(env::split_paths(&path));
        command
            .env("PATH", env::join_paths(dirs).expect("a usable PATH"))
            .env(MARK, self.mark())
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("SSH_ASKPASS")
            .env_remove("DISPLAY");
        command
    }

    /// Runs the client to its end; none of its processes may be left then.
    pub(crate) fn client(&self, sandbox: &Sandbox, arguments: &[&str]) -> Output {
        let output = run(self.command(sandbox, arguments));
        assert_eq!(self.left(), [], "{output:?}");
        output
    }

    fn mark(&self) -> String {
        self.dir.display().to_string()
    }

    /// The processes that clients have started and that still live, and they themselves.
    pub(crate) fn left(&self) -> Vec<Process> {
        processes_marked(&format!("{MARK}={}", self.mark()))
    }

    /// The arguments `ssh` was called with, each time.
    pub(crate) fn calls(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let calls = text.split_terminator("\n\n");
        calls
            .map(|call| call.lines().map(str::to_owned).collect())
            .collect()
    }

    /// What sshd has said.
    pub(crate) fn log(&self) -> String {
        log_in(&self.dir)
    }

    /// Its own address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Logins end with their clients; a client that a failed test left does not.
        for process in self.left() {
            if let Some(pid) = rustix::process::Pid::from_raw(process.pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for child in std::iter::once(&mut self.server).chain(&mut self.agent) {
            let _may_have_ended = child.kill();
            let _reaped = child.wait();
        }
        if std::thread::panicking() {
            println!("sshd's log:\n{}", self.log());
        }
    }
}

/// Starts sshd, and waits until it listens; `None` if it ends.
fn listen(dir: &Path, settings: &str) -> Option<(Child, u16)> {
    let config = dir.join("sshd_config");
    for _ in 0..PORT_TRIES_MAX {
        let port = free_port();
        fs::write(&config, configuration(dir, port, settings)).expect("a writable sandbox");
        let log = fs::File::create(dir.join("log")).expect("a writable sandbox");
        let mut command = match is_root() {
            true => Command::new("unshare"),
            false => Command::new(SSHD),
        };
        if is_root() {
            command.args(["--mount", "sh", "-c", OWN_RUN, SSHD]);
        }
        command
            .args(["-D", "-e", "-f", text(&config)])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut server = command.spawn().expect("`unshare` or sshd");
        let mut ended = None;
        wait_for("sshd", PATIENCE, || {
            ended = server.try_wait().expect("our child");
            ended.is_some() || log_in(dir).contains("Server listening on")
        });
        if ended.is_none() {
            return Some((server, port));
        }
    }
    None
}

/// Gives a program a `/run` that nobody else sees, with the directory that root's sshd wants.
const OWN_RUN: &str = "mount --make-rprivate / && mount -t tmpfs -o mode=755 none /run && \
                       mkdir /run/sshd && exec \"$0\" \"$@\"";

fn configuration(dir: &Path, port: u16, settings: &str) -> String {
    let place = |name| dir.join(name).display().to_string();
    format!(
        "{settings}\n\
         Port {port}\n\
         ListenAddress 127.0.0.1\n\
         HostKey {}\n\
         AuthorizedKeysFile {}\n\
         PidFile none\n\
         UsePAM no\n\
         StrictModes no\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\n\
         MaxStartups 100\n\
         UseDNS no\n",
        place("host"),
        place("authorized_keys"),
    )
}

fn log_in(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a sandbox's path is UTF-8")
}

fn run_in(dir: &Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null());
    run(command)
}

#[test]
fn this_sshd_lets_in_who_it_knows_and_nobody_else() {
    let sandbox = Sandbox::new("");
    let Some(mut sshd) = Sshd::start(&sandbox, "") else {
        return;
    };
    assert!(TcpStream::connect(sshd.address()).is_ok());
    let login = |sshd: &Sshd| {
        let ssh = sshd.dir.join("bin/ssh");
        run_in(
            &sshd.dir,
            text(&ssh),
            &["-o", "BatchMode=yes", "web1", "echo in"],
        )
    };
    for (identity, code) in [
        (Identity::File, 0),
        (Identity::Wrong, 255),
        (Identity::Agent, 0),
        (Identity::Locked, 255),
    ] {
        sshd.identify(identity);
        let output = login(&sshd);
        assert_eq!(output.code, code, "{identity:?}: {output:?}");
        assert_eq!(output.stdout == "in\n", code == 0, "{output:?}");
    }
    assert_eq!(sshd.calls().len(), 4);
    assert_eq!(sshd.calls()[3], ["-o", "BatchMode=yes", "web1", "echo in"]);
}
