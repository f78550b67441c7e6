//! Asking a program something: it is run to its end within a time, and what it prints is read.
//!
//! Blocks, so it is called on a thread of its own. Whatever the program does, it is killed with its
//! group when its time is up, and it has nothing of the server's but a clean environment.
//!
//! The program is a descriptor, which is its standard input: so a script's interpreter can open it,
//! and no number has to stay open.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::{inherit, strays};
use crate::{clock, spec::Mono};

/// How much of what it prints is read, in bytes.
const SAID_BYTES_MAX: usize = 4 << 10;

/// How long a killed one may take to be gone.
const GONE_TIME_MAX: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It cannot be executed.
    #[error("it does not start: {0}")]
    NotStarted(io::Error),
    /// It takes too long.
    #[error("it has not ended within {0:?}")]
    Hangs(Duration),
    /// It has failed.
    #[error("it fails with {0}")]
    Failed(ExitStatus),
    /// It is not known how it ended.
    #[error("it cannot be waited for: {0}")]
    Lost(io::Error),
}

/// Runs a program and gives what it prints to its standard output.
///
/// # Errors
///
/// [`NoAnswer`].
pub fn ask(program: &File, arguments: &[&str], time_max: Duration) -> Result<Vec<u8>, NoAnswer> {
    let until = clock::mono() + time_max;
    let mut child = start(program, arguments).map_err(NoAnswer::NotStarted)?;
    let mut said = Vec::new();
    let watched = pidfd_of(&child);
    let ended = match &watched {
        Ok(pidfd) => {
            read_until(&mut child, &mut said, until);
            is_ready(pidfd, until)
        }
        Err(_) => false,
    };
    if !ended {
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            let _gone_already = kill_process_group(pid, Signal::KILL);
        }
        if let Ok(pidfd) = &watched {
            is_ready(pidfd, clock::mono() + GONE_TIME_MAX);
        }
    }
    // Locked for both: its number may be given to the next child at once.
    let mut started = strays::started();
    let status = child.try_wait();
    started.remove(&child.id().cast_signed());
    drop(started);
    match (watched, ended, status) {
        (Err(error), _, _) | (Ok(_), true, Err(error)) => Err(NoAnswer::Lost(error)),
        (Ok(_), false, _) | (Ok(_), true, Ok(None)) => Err(NoAnswer::Hangs(time_max)),
        (Ok(_), true, Ok(Some(status))) if status.success() => Ok(said),
        (Ok(_), true, Ok(Some(status))) => Err(NoAnswer::Failed(status)),
    }
}

fn start(program: &File, arguments: &[&str]) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/fd/0");
    command
        .arg0("supervisor-rs-server")
        .args(arguments)
        .env_clear()
        .envs(inherit::passed_on())
        .stdin(Stdio::from(program.try_clone()?))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    let being_started = strays::BeingStarted::begin();
    let child = command.spawn()?;
    strays::started().insert(child.id().cast_signed());
    drop(being_started);
    Ok(child)
}

fn pidfd_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Reads until there is no more to be read, or more than anybody wants, or it is late.
fn read_until(child: &mut Child, said: &mut Vec<u8>, until: Mono) {
    let Some(mut stdout) = child.stdout.take() else {
        return;
    };
    let mut buffer = [0; 512];
    while said.len() < SAID_BYTES_MAX && is_ready(&stdout, until) {
        match stdout.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Waits until there is something to be had of it; says whether there is.
fn is_ready(fd: &impl AsFd, until: Mono) -> bool {
    loop {
        let left = until - clock::mono();
        let Ok(left) = Timespec::try_from(left) else {
            return false;
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const TIME_MAX: Duration = Duration::from_secs(20);

    fn script(text: &str) -> (tempfile::TempDir, File) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("program");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let file = File::open(path).unwrap();
        (temp, file)
    }

    #[test]
    fn what_a_program_prints_is_its_answer() {
        let (_temp, file) = script("#!/bin/sh\necho \"got $1\"; echo no >&2\n");
        assert_eq!(ask(&file, &["it"], TIME_MAX).unwrap(), b"got it\n");
    }

    #[test]
    fn one_that_fails_is_garbage_or_hangs_gives_none() {
        let (_temp, fails) = script("#!/bin/sh\necho fine; exit 3\n");
        let error = ask(&fails, &[], TIME_MAX).unwrap_err();
        assert!(matches!(&error, NoAnswer::Failed(status) if status.code() == Some(3)));
        let (_temp, garbage) = script("\0garbage");
        let error = ask(&garbage, &[], TIME_MAX).unwrap_err();
        assert!(matches!(error, NoAnswer::NotStarted(_)), "{error}");
        let (_temp, hangs) = script("#!/bin/sh\necho fine; exec sleep 1000\n");
        let time_max = Duration::from_millis(300);
        let error = ask(&hangs, &[], time_max).unwrap_err();
        assert!(matches!(error, NoAnswer::Hangs(_)), "{error}");
    }

    #[test]
    fn one_that_floods_is_not_listened_to_for_ever() {
        let (_temp, floods) = script("#!/bin/sh\nexec yes\n");
        let time_max = Duration::from_millis(500);
        assert!(ask(&floods, &[], time_max).is_err());
    }
}
