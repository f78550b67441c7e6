//! Whether the program at the server's own path can go on with what this one knows.
//!
//! - The path is that of the program that was started, and fixed then: none comes over the wire,
//!   and one that was renamed over it is what an upgrade is for.
//! - It must belong to root or the server's user and be writable by nobody else, and so must all
//!   that leads to it (`trust`). The descriptor that was checked is the one that is executed.
//! - It is run with [`READS_STATE`] and must say that it reads this [`STATE_VERSION`]. A program that
//!   is older than upgrades does not know the option and says so by failing.
//!
//! Blocks, for a disk or for the program; nothing else waits for it.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::handed::Blank;
use crate::{
    audit::{self, AuditError},
    process::{self, NoAnswer},
    trust::{self, Owners, TrustError, Way},
};

/// The version of what is handed over (`handed`): another whenever an older or a newer program
/// could not make the same of it. State of another version is never read, only refused.
pub(crate) const STATE_VERSION: u32 = 1;

/// How long the program may take to say what it reads.
pub(super) const CHECK_TIME_MAX: Duration = Duration::from_secs(5);

/// The option that has a program say which state it reads.
pub(super) const READS_STATE: &str = "--reads-state";

/// The bits of a file's mode that say who may do what.
const MODE_BITS: u32 = 0o7777;

/// Those that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// What a program says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    version: String,
    reads_state: Vec<u32>,
}

/// What this program says when it is asked: one line.
#[must_use]
pub fn reads_state() -> String {
    let said = Said {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        reads_state: vec![STATE_VERSION],
    };
    serde_json::to_string(&said).expect("text and numbers can be written")
}

/// A program that can go on.
#[derive(Debug)]
pub(in crate::supervisor) struct Checked {
    /// Which: the descriptor that passed.
    pub(super) program: OwnedFd,
    /// Its version, as it says.
    pub(super) version: String,
    /// The program that runs here, for the way back.
    pub(super) own: OwnedFd,
    /// What the state is written to, empty as yet.
    pub(super) state: Blank,
}

/// Why a program cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// Anybody could have put it there, or nobody has.
    #[error("{0}")]
    Untrusted(#[from] TrustError),
    /// Others could write it.
    #[error(
        "`{path}` is not trusted: others than its owner may write it (mode {mode:04o})\nhint: chmod go-w {path}"
    )]
    Writable {
        /// Where it stands.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not say anything.
    #[error(
        "`{path}` cannot be asked what it reads: {why}\nhint: is it a supervisor-rs-server that knows `{READS_STATE}`?"
    )]
    NoAnswer {
        /// Where it stands.
        path: String,
        /// Why not.
        why: NoAnswer,
    },
    /// The system refused what the way there or back takes.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The audit trail could not be taken up again, by this program or another.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// It says something else.
    #[error(
        "`{path}` does not say what it reads\nhint: is it a supervisor-rs-server that knows `{READS_STATE}`?"
    )]
    Gibberish {
        /// Where it stands.
        path: String,
    },
    /// It reads other versions.
    #[error(
        "`{path}` is version {version} and does not read the state of this server (version {STATE_VERSION})\nhint: end the server and start the other one; children run on meanwhile"
    )]
    ReadsOther {
        /// Where it stands.
        path: String,
        /// Its version, as it says.
        version: String,
    },
}

/// Checks the program at this path, and what disks hold that any program must take up again.
pub(super) fn check_all(path: &Path, state_dir: &Path) -> Result<Checked, Unfit> {
    let checked = check(path)?;
    audit::check(state_dir)?;
    Ok(checked)
}

/// Checks the program at this path.
pub(super) fn check(path: &Path) -> Result<Checked, Unfit> {
    let shown = || path.display().to_string();
    let owners = Owners::new(&[])?;
    let program = trust::open(path, &owners, &mut Way::default())?.into_file();
    check_mode(&program, shown)?;
    let answer = process::ask(&program, &[READS_STATE], CHECK_TIME_MAX);
    let answer = answer.map_err(|why| Unfit::NoAnswer { path: shown(), why })?;
    let said: Said =
        serde_json::from_slice(&answer).map_err(|_| Unfit::Gibberish { path: shown() })?;
    let version = short(&said.version);
    if !said.reads_state.contains(&STATE_VERSION) {
        return Err(Unfit::ReadsOther {
            path: shown(),
            version,
        });
    }
    let system = |what| move |source| Unfit::System { what, source };
    // Now and not when all was let go of: where no descriptor is left, all goes on as before.
    Ok(Checked {
        program: program.into(),
        version,
        own: process::own_program().map_err(system("open the own program"))?,
        state: Blank::new().map_err(system("make a file for the state"))?,
    })
}

/// Nobody but its owner may write it: where a child's file may be open to the owner's own group,
/// what runs with all of the server's rights may not.
fn check_mode(program: &File, shown: impl Fn() -> String) -> Result<(), Unfit> {
    let bits = program.metadata().map(|seen| seen.mode() & MODE_BITS);
    match bits {
        Ok(mode) if mode & WRITABLE_BY_OTHERS == 0 => Ok(()),
        Ok(mode) => Err(Unfit::Writable {
            path: shown(),
            mode,
        }),
        Err(source) => Err(Unfit::System {
            what: "look at the program",
            source,
        }),
    }
}

/// A version that goes into messages: that a program says it makes it no shorter.
fn short(version: &str) -> String {
    const VERSION_CHARS_MAX: usize = 64;
    let chars = version.chars().take(VERSION_CHARS_MAX);
    chars.flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;

    fn program(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("server");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (temp, path)
    }

    fn refused(text: &str, mode: u32) -> String {
        let (_temp, path) = program(text, mode);
        check(&path).unwrap_err().to_string()
    }

    fn says(line: &str) -> String {
        format!("#!/bin/sh\n[ \"$1\" = {READS_STATE} ] && printf '%s' '{line}'\n")
    }

    #[test]
    fn what_this_program_says_of_itself_fits() {
        let (_temp, path) = program(&says(&reads_state()), 0o755);
        assert_eq!(check(&path).unwrap().version, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn one_that_reads_only_other_state_is_refused_by_its_version() {
        let other = STATE_VERSION + 1;
        let why = refused(
            &says(&format!(
                "{{\"version\":\"9.9\\n\",\"reads_state\":[{other}]}}"
            )),
            0o755,
        );
        assert!(why.contains("is version 9.9\\n and does not read"), "{why}");
    }

    #[test]
    fn one_that_says_something_else_is_refused() {
        for line in ["", "supervisor-rs-server 0.8", "{\"version\":\"1\"}", "[]"] {
            let why = refused(&says(line), 0o755);
            assert!(why.contains("does not say what it reads"), "{line}: {why}");
        }
    }

    #[test]
    fn one_that_others_may_write_is_not_even_run() {
        let temp = tempfile::tempdir().unwrap();
        let mark = temp.path().join("ran");
        let text = format!("#!/bin/sh\n: > '{}'\n", mark.display());
        for mode in [0o775, 0o757, 0o777] {
            let why = refused(&text, mode);
            assert!(why.contains("write"), "{why}");
        }
        assert!(!mark.exists());
    }

    #[test]
    fn one_that_is_not_there_is_refused() {
        assert!(check(Path::new("/nonexistent/server")).is_err());
    }
}
