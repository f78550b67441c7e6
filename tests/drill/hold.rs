//! Holds others back in the middle of a system call, by fanotify(7): the kernel asks whether one file
//! may be opened or executed, and waits for the answer for as long as the test wants.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{
    bed::have,
    look::stat,
    sandbox::{PATIENCE, Sandbox, skip},
};

const HOLDER: &str = include_str!("hold.py");

/// What is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The execution of a file, by a process that is killed when the test fails.
    Execute,
    /// The opening of a file.
    Open,
}

/// Holds back whoever does that with one file.
pub(crate) struct Holder {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    deed: Deed,
    /// Who was held, and since when it runs.
    held: Vec<(i32, u64)>,
}

impl Holder {
    /// `None`, having said so, where that cannot be.
    pub(crate) fn new(sandbox: &Sandbox, deed: Deed, file: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("only root may hold back others");
            return None;
        }
        if !have(&["python3"]) {
            return None;
        }
        let script = sandbox.root().join("hold.py");
        fs::write(&script, HOLDER).unwrap();
        let word = match deed {
            Deed::Execute => "execute",
            Deed::Open => "open",
        };
        let mut process = Command::new("python3")
            .arg(script)
            .arg(word)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        // It ends with the holder's output.
        thread::spawn(move || {
            for line in output.lines() {
                let _nobody_listens = sender.send(line.unwrap());
            }
        });
        let input = process.stdin.take().unwrap();
        let holder = Self {
            process,
            input,
            lines,
            deed,
            held: Vec::new(),
        };
        match holder.lines.recv_timeout(PATIENCE) {
            Ok(line) => assert_eq!(line, "ready"),
            Err(RecvTimeoutError::Disconnected) => {
                skip("this kernel has no fanotify(7) that asks for permissions");
                return None;
            }
            Err(RecvTimeoutError::Timeout) => panic!("not ready"),
        }
        Some(holder)
    }

    /// Waits until somebody is held, and says who.
    pub(crate) fn held(&mut self) -> i32 {
        let line = self.lines.recv_timeout(PATIENCE).unwrap();
        let pid = line.strip_prefix("held ").unwrap().parse().unwrap();
        self.held.push((pid, stat(pid).unwrap().start_ticks));
        pid
    }

    /// Lets all go that are held.
    pub(crate) fn let_go(&mut self) {
        self.input.write_all(b"go\n").unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The kernel lets go whoever is held when nobody is left to answer.
        let _may_have_ended = self.process.kill();
        let _reaped = self.process.wait();
        if thread::panicking() && self.deed == Deed::Execute {
            for (pid, start_ticks) in &self.held {
                end(*pid, *start_ticks);
            }
        }
    }
}

/// Kills a process, if it is still the one that began then.
pub(crate) fn end(pid: i32, start_ticks: u64) {
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else {
        return;
    };
    if stat(pid).is_some_and(|stat| stat.start_ticks == start_ticks) {
        let _may_have_ended = pidfd_send_signal(pidfd, Signal::KILL);
    }
}
