//! Why the audit trail cannot be written or read.

use std::{io, path::PathBuf};

/// Why the audit trail cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Its directory cannot be made, opened or examined.
    #[error("cannot use directory `{}`: {source}", .dir.display())]
    Dir {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its directory is not the server's alone: the owner and the permission bits.
    #[error(
        "cannot use directory `{}`: it belongs to user {owner} and has mode {mode:04o}; \
         hint: it must be the server's own, and nobody else may write to it",
        .dir.display()
    )]
    NotOurs {
        /// Which.
        dir: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Something that is no regular file of the server's user stands in its place.
    #[error(
        "cannot use `{}`: it is not a regular file of this server's user; \
         hint: move it away and start again",
        .path.display()
    )]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be opened, read, written or renamed.
    #[error("cannot {what} `{}`: {source}{}", .path.display(), space_hint(.source))]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Files change their names faster than they can be opened.
    #[error("cannot read the audit trail in `{}`: its files change all the time", .dir.display())]
    Changing {
        /// Where.
        dir: PathBuf,
    },
    /// No thread could be started.
    #[error("cannot start the thread that writes the audit trail: {0}")]
    Thread(io::Error),
}

/// What to do about a file system that takes nothing.
fn space_hint(source: &io::Error) -> &'static str {
    use io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull => "; hint: free some space there (`df -h`, `df -i`)",
        ErrorKind::QuotaExceeded => "; hint: the quota of the server's user is used up",
        ErrorKind::ReadOnlyFilesystem => "; hint: its file system is mounted read-only",
        _ => "",
    }
}
