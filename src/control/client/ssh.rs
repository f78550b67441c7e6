//! Reaching a server through the system's `ssh`: `ssh -W ADDRESS:PORT HOST`.
//!
//! ssh logs in by the user's own agent, keys and `~/.ssh/config`, and joins its standard input
//! and output with the server's port there. Both are one socket here, so that reading and
//! writing have bounds as over TCP.
//!
//! Invariants: no argument can be taken for an option (`--` stands before the host, and a host
//! never begins with `-`); ssh's own words are bounded, harmless and in the message when it
//! fails; the process is ended and reaped when this is dropped, whatever happened; without a
//! terminal, and for several hosts at once, ssh asks nothing.
//!
//! Absent on purpose: being or becoming a master for other sessions (`ControlMaster`): this ssh
//! ends with its answer, and would take the others along. A master that runs is used.
//!
//! Source: DESIGN, section 6; ssh(1), ssh_config(5).

use std::{
    ffi::OsString,
    io::{self, Read},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tracing::debug;

use super::{
    super::{
        host::{SSH_ADDRESS, SshHost},
        protocol::Refusal,
    },
    STACK_BYTES, Waits, failure,
};
use crate::{clock, command::ErrorCode};

/// How much of what ssh says is kept: the end of it.
const WORDS_BYTES_MAX: usize = 4 * 1024;

/// How many lines of it are shown: the last ones.
const WORDS_LINES_MAX: usize = 6;

/// How long ssh may take to end by itself after its connection did, or after TERM.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// How long its last words are waited for when it has ended: somebody it started may still hold
/// its standard error.
const WORDS_TIME_MAX: Duration = Duration::from_secs(2);

/// How often it is looked at while its end is waited for.
const END_LOOK: Duration = Duration::from_millis(5);

/// How ssh is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// The program; one without `/` is searched in `PATH`.
    pub program: OsString,
    /// Whether it may ask.
    pub prompts: Prompts,
}

/// Whether ssh may ask for passwords, or whether an unknown host may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompts {
    /// Somebody sits at a terminal, and this ssh is the only one that would ask there.
    Allowed,
    /// Nobody could answer.
    Never,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            program: "ssh".into(),
            prompts: Prompts::Never,
        }
    }
}

impl Ssh {
    /// How long until the server's hello: ssh has to log in first, and perhaps to be answered.
    pub(super) fn hello_wait(&self, waits: Waits) -> Duration {
        match self.prompts {
            Prompts::Allowed => waits.ssh_prompt,
            Prompts::Never => waits.ssh_hello,
        }
    }

    /// Starts ssh. Whether it reaches anybody is seen by the hello.
    pub(super) fn connect(&self, host: &SshHost, waits: Waits) -> Result<Tunnel, Refusal> {
        let cannot = |fault: io::Error| match fault.kind() {
            io::ErrorKind::NotFound => failure(
                ErrorCode::Unreachable,
                format!(
                    "cannot reach `{}`: `{}` is not installed, or not in `PATH`\n\
                     hint: install the OpenSSH client (`apt install openssh-client`, `dnf install \
                     openssh-clients`, `apk add openssh-client`)",
                    host.text,
                    self.program.display()
                ),
            ),
            _ => failure(
                ErrorCode::Unreachable,
                format!("cannot run `{}`: {fault}", self.program.display()),
            ),
        };
        let (stream, theirs) = UnixStream::pair().map_err(cannot)?;
        let input: OwnedFd = theirs.try_clone().map_err(cannot)?.into();
        let mut command = Command::new(&self.program);
        command
            .args(arguments(host, self.prompts, waits))
            .stdin(input)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(cannot)?;
        // It holds copies of the other end, which would keep ours from ever seeing an end.
        drop(command);
        let said = child.stderr.take();
        // Ended and reaped from here on, whatever goes wrong.
        let mut tunnel = Tunnel {
            stream,
            child,
            words: None,
            by_hand: by_hand(host),
        };
        tunnel.words = said.map(Words::collect).transpose().map_err(cannot)?;
        debug!(host = %host.text, pid = tunnel.child.id(), "ssh started");
        Ok(tunnel)
    }
}

/// ssh's arguments. What is given here goes before what `~/.ssh/config` says.
fn arguments(host: &SshHost, prompts: Prompts, waits: Waits) -> Vec<String> {
    let seconds = waits.ssh_connect.as_secs().max(1);
    let mut arguments = vec![
        "-o".to_owned(),
        format!("ConnectTimeout={seconds}"),
        "-o".to_owned(),
        "ControlMaster=no".to_owned(),
        // A host that dies is found out before the answer's own bound.
        "-o".to_owned(),
        "ServerAliveInterval=15".to_owned(),
        "-o".to_owned(),
        "ServerAliveCountMax=3".to_owned(),
    ];
    match prompts {
        Prompts::Allowed => {}
        Prompts::Never => arguments.extend(["-o".to_owned(), "BatchMode=yes".to_owned()]),
    }
    arguments.extend(login(host));
    arguments.extend(["-W".to_owned(), target(host)]);
    arguments.extend(["--".to_owned(), host.name.clone()]);
    arguments
}

fn login(host: &SshHost) -> Vec<String> {
    let port = host.ssh_port.iter();
    let user = host.user.iter();
    port.flat_map(|port| ["-p".to_owned(), port.to_string()])
        .chain(user.flat_map(|user| ["-l".to_owned(), user.clone()]))
        .collect()
}

/// Where the server listens, as `-W` takes it.
fn target(host: &SshHost) -> String {
    let address = host.address.as_deref().unwrap_or(SSH_ADDRESS);
    match address.contains(':') {
        true => format!("[{address}]:{}", host.port),
        false => format!("{address}:{}", host.port),
    }
}

/// What a person would type to see whether ssh gets there; a host has no character that a shell
/// would take for more.
fn by_hand(host: &SshHost) -> String {
    let mut words = vec!["ssh".to_owned()];
    words.extend(login(host));
    words.extend([host.name.clone(), "true".to_owned()]);
    words.join(" ")
}

/// A connection through an ssh that runs.
#[derive(Debug)]
pub(super) struct Tunnel {
    stream: UnixStream,
    child: Child,
    words: Option<Words>,
    by_hand: String,
}

impl Tunnel {
    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Why there is no connection any more, in ssh's words; `None` when ssh has nothing against
    /// it, so that the server must have hung up.
    pub(super) fn fault(&mut self) -> Option<String> {
        let ended = self.wait(END_TIME_MAX);
        if let (Some(_), Some(words)) = (ended, &self.words) {
            words.wait(WORDS_TIME_MAX);
        }
        let words = self.said();
        match ended {
            Some(status) if status.success() => None,
            Some(status) => Some(match words.is_empty() {
                true => format!("ssh ended with {status} and said nothing"),
                false => words,
            }),
            None => Some(words).filter(|words| !words.is_empty()),
        }
    }

    /// What ssh has said until now.
    pub(super) fn said(&self) -> String {
        self.words.as_ref().map_or(String::new(), Words::text)
    }

    /// What to try by hand.
    pub(super) fn by_hand(&self) -> &str {
        &self.by_hand
    }

    /// Waits for its end, no longer than this.
    fn wait(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = clock::mono() + time;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if !(deadline - clock::mono()).is_zero() => thread::sleep(END_LOOK),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Tunnel {
    /// TERM first: ssh then puts a terminal right whose echo it had turned off, and ends what it
    /// had started itself, such as a `ProxyCommand`.
    fn drop(&mut self) {
        if self.wait(Duration::ZERO).is_some() {
            return;
        }
        // Its far end is told that nothing more comes.
        let _ = self.stream.shutdown(Shutdown::Both);
        // It has not been reaped, so the number is still its own.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if self.wait(END_TIME_MAX).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What ssh says on its standard error, read as it comes so that ssh never waits for it.
#[derive(Debug)]
struct Words {
    tail: Arc<Mutex<Vec<u8>>>,
    /// Closed when all has been read.
    end: mpsc::Receiver<()>,
}

impl Words {
    fn collect(mut from: ChildStderr) -> io::Result<Self> {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let (end_in, end) = mpsc::channel();
        let into = Arc::clone(&tail);
        // It ends with the last process that holds this end; when that is not ssh but a daemon it
        // started, the thread is left behind.
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut chunk = [0; 1024];
                loop {
                    let count = match from.read(&mut chunk) {
                        Ok(count @ 1..) => count,
                        Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
                        Ok(0) | Err(_) => break,
                    };
                    let mut tail = into.lock().unwrap_or_else(PoisonError::into_inner);
                    tail.extend_from_slice(&chunk[..count]);
                    let over = tail.len().saturating_sub(WORDS_BYTES_MAX);
                    tail.drain(..over);
                }
                drop(end_in);
            })?;
        Ok(Self { tail, end })
    }

    fn wait(&self, time: Duration) {
        // Nothing is ever sent: this is its end, or it is too late.
        let _ = self.end.recv_timeout(time);
    }

    /// Its last lines, without anything that could drive a terminal.
    fn text(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let harmless =
            |line: &str| -> String { line.chars().filter(|c| !c.is_control()).collect() };
        let lines: Vec<String> = text
            .lines()
            .map(|line| harmless(line).trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(WORDS_LINES_MAX)..].join("\n")
    }
}

#[cfg(test)]
mod tests;
