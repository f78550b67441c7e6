//! Why the journal could not be opened. Damage is never among the reasons.

use std::{io, path::PathBuf};

use rustix::io::Errno;

use super::holder::Holder;

/// Why the server cannot keep records, and so cannot start.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The directory could not be created, opened or examined.
    #[error("cannot use directory `{}`: {source}", .dir.display())]
    Dir {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory belongs to another user.
    #[error(
        "cannot use directory `{}`: it belongs to user {owner}, and the server runs as user {euid}\n\
         hint: `chown {euid} {}`, or name another directory in server.yml",
        .dir.display(), .dir.display()
    )]
    NotOurs {
        /// Which.
        dir: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The server's effective user id.
        euid: u32,
    },
    /// Others than the owner can write to the directory.
    #[error(
        "cannot use directory `{}`: others can write to it (mode {mode:04o})\n\
         hint: `chmod 0700 {}`",
        .dir.display(), .dir.display()
    )]
    WritableByOthers {
        /// Which.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another server uses the directory, or what it has left.
    #[error("directory `{}` is in use by {holder}\nhint: {}", .dir.display(), .holder.hint())]
    InUse {
        /// Which.
        dir: PathBuf,
        /// By whom.
        holder: Holder,
    },
    /// A file in the directory could not be opened, read or written.
    #[error("cannot use `{}`: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that is no regular file of ours stands where a file should be.
    #[error(
        "cannot use `{}`: it is not a regular file of this server's user\n\
         hint: move it away and start again",
        .path.display()
    )]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// The file was written by a later version of this program.
    #[error(
        "cannot read `{}`: it has format {found}, and this version knows formats up to {known}\n\
         hint: run the newer version, or move the file away, which forgets what it holds",
        .path.display()
    )]
    NewerFormat {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// No thread could be started.
    #[error("cannot start the thread that writes the state: {0}")]
    Thread(io::Error),
    /// No random number could be had for a new server id.
    #[error("cannot make a server id: {0}")]
    Random(io::Error),
}

/// Why records are not on disk.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Their file could not be written.
    #[error("cannot write `{}`: {source}{}", .path.display(), space_hint(.source))]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// They are such as can never be written there.
    #[error("cannot write to `{}`: {why}", .path.display())]
    Never {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What to do about a file system that takes nothing.
fn space_hint(source: &io::Error) -> &'static str {
    use io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull => "; hint: free some space there (`df -h`, `df -i`) and try again",
        ErrorKind::QuotaExceeded => "; hint: the quota of the server's user is used up",
        ErrorKind::ReadOnlyFilesystem => "; hint: its file system is mounted read-only",
        _ => "",
    }
}

impl JournalError {
    /// What it means that a file could not be opened.
    pub(super) fn of_file(path: PathBuf, source: io::Error) -> Self {
        // `InvalidData`: the folder's own verdict; the others: what `open(2)` says of links,
        // directories and sockets.
        let odd = source.kind() == io::ErrorKind::InvalidData
            || [Errno::LOOP, Errno::ISDIR, Errno::NXIO]
                .iter()
                .any(|errno| source.raw_os_error() == Some(errno.raw_os_error()));
        if odd {
            Self::NotAFile { path }
        } else {
            Self::File { path, source }
        }
    }
}
