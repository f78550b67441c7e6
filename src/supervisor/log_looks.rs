//! What a run has said last, for those who waited for it in vain.
//!
//! A log belongs to its child: whatever stands there is opened without following a link at its end
//! and without waiting, must be a regular file, and is shown with nothing in it that a terminal
//! would obey. So much of its end is looked at and no more.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::Supervisor;
use crate::{
    command::Failure,
    reconcile::event::RequestId,
    spec::{Sink, Spec},
    trust::Shown,
};

/// How much of the end of a log is read.
const TAIL_BYTES_MAX: u64 = 8 * 1024;

/// How many of its last lines are shown.
const LINES_MAX: usize = 10;

/// How much of a line is shown, in characters.
const LINE_CHARS_MAX: usize = 500;

impl Supervisor {
    /// Adds to the core's refusal of a wait what the run has said last.
    pub(super) fn explain(&mut self, id: RequestId, mut failure: Failure, spec: &Arc<Spec>) {
        let Some(reply) = self.reply_to(id) else {
            return;
        };
        let logs = logs(spec);
        let read = self.looks.logs.look(move || Ok(last_words(&logs)));
        let unanswered = self.looks.logs.unanswered();
        tokio::spawn(async move {
            match read.await {
                Ok(Some(words)) => failure.message.push_str(&words),
                Ok(None) => {}
                Err(why) => failure
                    .message
                    .push_str(&format!("\nits log cannot be read: {why}")),
            }
            reply.send(Err(failure));
            drop(unanswered);
        });
    }
}

/// Where a run's words are, those first that most likely say what went wrong.
fn logs(spec: &Spec) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for sink in [&spec.stderr, &spec.stdout] {
        match sink {
            Sink::File { path, .. } if !paths.contains(path) => paths.push(path.clone()),
            Sink::File { .. } | Sink::Inherit => {}
        }
    }
    paths
}

/// The last lines of the first of these that has any.
fn last_words(logs: &[PathBuf]) -> Option<String> {
    logs.iter().find_map(|path| {
        let lines = last_lines(&tail(path).ok()?);
        let said = || format!("\nlast lines of {}:{lines}", Shown(path));
        (!lines.is_empty()).then(said)
    })
}

/// The end of a file, from the beginning of a line if there is one in it.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(CWD, path, flags | OFlags::NOCTTY, Mode::empty())?;
    let stat = fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let start = size.saturating_sub(TAIL_BYTES_MAX);
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    if start > 0
        && let Some(end) = bytes.iter().position(|byte| *byte == b'\n')
        && end + 1 < bytes.len()
    {
        bytes.drain(..=end);
    }
    Ok(bytes)
}

/// The last lines, each on one of its own and indented; nothing when there are none.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES_MAX)..];
    last.iter()
        .map(|line| format!("\n  {}", harmless(line)))
        .collect()
}

fn harmless(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    for c in line.trim_end().chars().take(LINE_CHARS_MAX) {
        match c {
            '\t' => shown.push_str("    "),
            '\'' | '"' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if line.chars().nth(LINE_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::symlink, net::UnixListener},
    };

    use rustix::fs::mkfifoat;

    use super::*;

    #[test]
    fn the_last_lines_are_shown_indented_and_drive_no_terminal() {
        let many: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let shown = last_lines(many.as_bytes());
        assert_eq!(shown.lines().count(), 1 + LINES_MAX);
        assert!(shown.starts_with("\n  line 21\n") && shown.ends_with("\n  line 30"));
        assert_eq!(last_lines(b"\n \n"), "");
        assert_eq!(
            last_lines(b"a\x1b[31m\tb\r\nit's \xff"),
            "\n  a\\u{1b}[31m    b\n  it's \u{fffd}"
        );
        let long = "x".repeat(3 * LINE_CHARS_MAX);
        assert_eq!(
            last_lines(long.as_bytes()).chars().count(),
            LINE_CHARS_MAX + 4
        );
    }

    #[test]
    fn of_a_long_log_only_whole_lines_of_its_end_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = format!("{}\n", "x".repeat(999));
        fs::write(&path, line.repeat(20)).unwrap();
        let read = tail(&path).unwrap();
        assert_eq!(read, line.repeat(8).into_bytes());
        fs::write(&path, "y".repeat(20_000)).unwrap();
        assert_eq!(tail(&path).unwrap(), "y".repeat(8 * 1024).into_bytes());
    }

    #[test]
    fn what_says_nothing_is_passed_over_and_what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("err"), "").unwrap();
        fs::write(at("out"), "hello\n").unwrap();
        let said = format!("\nlast lines of `{}`:\n  hello", at("out").display());
        assert_eq!(last_words(&[at("err"), at("out")]), Some(said));
        symlink(at("out"), at("link")).unwrap();
        mkfifoat(CWD, at("pipe"), Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let others = ["link", "pipe", "socket", "missing"].map(at);
        assert_eq!(last_words(&others), None);
        assert_eq!(last_words(&[dir.path().to_owned()]), None);
    }
}
