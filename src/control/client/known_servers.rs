//! `known_servers`: which server was met where, so that another in its place is noticed.
//!
//! A text file for people, too: `host:port id` a line, `#` begins a comment. Lines that are not
//! ours to change stay as they are, also those that cannot be read.
//!
//! Invariants: the file is replaced whole (written beside it, synced, renamed), so that a reader
//! never sees half of one; whoever writes holds a lock and reads afresh under it, so that no two
//! clients, and no two threads of one, lose each other's lines; every wait and size is bounded.
//!
//! Absent on purpose: deciding what a stranger or a changed server means (`proof`).
//!
//! Source: DESIGN, section 8; the XDG base directory specification; flock(2), rename(2).

mod lines;

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::fs::OFlags;

use self::lines::Lines;
use crate::{clock, trust::Shown};

/// The most bytes of the file that are read.
pub const KNOWN_SERVERS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How long another client's writing is waited for.
const LOCK_TIME_MAX: Duration = Duration::from_secs(10);

/// How often the lock is asked for.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// The folder below the state directory.
const FOLDER: &str = "supervisor-rs";

/// The file's name.
const FILE: &str = "known_servers";

/// A server's id: a UUID, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerId(Arc<str>);

/// A text is no server's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server's id is a UUID, such as `0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5`; `info` shows it")]
pub struct NotAServerId;

impl FromStr for ServerId {
    type Err = NotAServerId;

    fn from_str(text: &str) -> Result<Self, NotAServerId> {
        const DASHES: [usize; 4] = [8, 13, 18, 23];
        const CHARS: usize = 36;
        let is_right = |(at, byte): (usize, u8)| match DASHES.contains(&at) {
            true => byte == b'-',
            false => byte.is_ascii_hexdigit(),
        };
        match text.len() == CHARS && text.bytes().enumerate().all(is_right) {
            true => Ok(Self(text.to_ascii_lowercase().into())),
            false => Err(NotAServerId),
        }
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquaintance {
    /// This very server was met there.
    Known,
    /// None was met there.
    Stranger,
    /// Another was met there.
    Changed {
        /// That one.
        before: ServerId,
    },
}

/// Why the file cannot be read or written. Says all a person needs, its path included.
#[derive(Debug, thiserror::Error)]
pub enum KnownServersError {
    /// No directory for state.
    #[error(
        "there is no place for `known_servers`: neither `XDG_STATE_HOME` nor `HOME` names a \
         directory"
    )]
    NoPlace,
    /// It cannot be read.
    #[error("cannot read {}: {source}", Shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, a pipe, a device.
    #[error("cannot read {}: it is not a regular file", Shown(.0))]
    NotAFile(PathBuf),
    /// It is too large to be one of ours.
    #[error("cannot read {}: it has more than {KNOWN_SERVERS_BYTES_MAX} bytes", Shown(.0))]
    TooLarge(PathBuf),
    /// It cannot be written.
    #[error("cannot write {}: {source}", Shown(path))]
    Write {
        /// The file, or the folder it would stand in.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody has been writing for too long.
    #[error(
        "cannot write {}: another process has held {} for {time:?}",
        Shown(path),
        Shown(lock)
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Its lock.
        lock: PathBuf,
        /// How long that was waited for.
        time: Duration,
    },
}

/// Where the file stands. Variables that are not absolute are passed over, as their
/// specification asks.
#[must_use]
pub fn known_servers_path(xdg_state_home: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    let absolute = |text: &OsStr| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
    let state = match xdg_state_home.and_then(absolute) {
        Some(state) => state,
        None => home.and_then(absolute)?.join(".local/state"),
    };
    Some(state.join(FOLDER).join(FILE))
}

/// The file as it was read, and the way to write it.
#[derive(Debug, Clone)]
pub struct KnownServers {
    path: Option<PathBuf>,
    lines: Arc<Result<Lines, KnownServersError>>,
}

impl KnownServers {
    /// Reads the file once. One that is not there knows nobody.
    #[must_use]
    pub fn read(path: Option<PathBuf>) -> Self {
        let lines = match &path {
            Some(path) => read_lines(path),
            None => Err(KnownServersError::NoPlace),
        };
        let lines = Arc::new(lines);
        Self { path, lines }
    }

    /// Why nothing can be known, if that is so.
    #[must_use]
    pub fn fault(&self) -> Option<&KnownServersError> {
        self.lines.as_ref().as_ref().err()
    }

    /// What a person should hear about the file before it is used.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        match (self.lines.as_ref(), &self.path) {
            (Err(fault), _) => vec![format!(
                "{fault}\nhint: whether a server is the one that was met before cannot be told \
                 now; `--server-id UUID` can, and `--strict` refuses to go on"
            )],
            (Ok(lines), Some(path)) => lines.faults(path),
            (Ok(_), None) => Vec::new(),
        }
    }

    /// What is known of the server at a place; the reason when nothing can be.
    pub fn look(&self, place: &str, id: &ServerId) -> Result<Acquaintance, &KnownServersError> {
        let lines = self.lines.as_ref().as_ref()?;
        Ok(lines.look(place, id))
    }

    /// Writes a server down that is a stranger; returns what it was found to be under the lock,
    /// for another client may have been there first. Nothing is written but for a stranger.
    ///
    /// # Errors
    ///
    /// [`KnownServersError`]; the file is as it was.
    pub fn record(&self, place: &str, id: &ServerId) -> Result<Acquaintance, KnownServersError> {
        let path = self.path.as_deref().ok_or(KnownServersError::NoPlace)?;
        let _held = Lock::take(path, LOCK_TIME_MAX)?;
        let mut lines = read_lines(path)?;
        let found = lines.look(place, id);
        if found == Acquaintance::Stranger {
            lines.add(place, id);
            replace(path, lines.bytes())?;
        }
        Ok(found)
    }

    /// Takes out what is known of the servers at these places; returns the ids of each, none
    /// when nothing was known there.
    ///
    /// # Errors
    ///
    /// [`KnownServersError`]; the file is as it was.
    pub fn forget(path: &Path, places: &[String]) -> Result<Vec<Vec<ServerId>>, KnownServersError> {
        let knows = |lines: &Lines| places.iter().any(|place| lines.knows(place));
        // Neither folder nor lock is made where there is nothing to forget.
        if !knows(&read_lines(path)?) {
            return Ok(places.iter().map(|_| Vec::new()).collect());
        }
        let _held = Lock::take(path, LOCK_TIME_MAX)?;
        let mut lines = read_lines(path)?;
        let forgotten = places.iter().map(|place| lines.remove(place)).collect();
        replace(path, lines.bytes())?;
        Ok(forgotten)
    }
}

fn read_lines(path: &Path) -> Result<Lines, KnownServersError> {
    let fault = |source| KnownServersError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe in its place must not keep the client waiting for a writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Lines::default()),
        Err(source) => return Err(fault(source)),
    };
    if !file.metadata().map_err(fault)?.is_file() {
        return Err(KnownServersError::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    let read = file
        .take(KNOWN_SERVERS_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fault)?;
    if read as u64 > KNOWN_SERVERS_BYTES_MAX {
        return Err(KnownServersError::TooLarge(path.to_owned()));
    }
    Ok(Lines::parse(bytes))
}

/// The right to write, until it is dropped.
///
/// A file of its own: the file itself is replaced, and whoever holds the old one locked holds
/// nothing. It stays where it is, for the same reason.
#[derive(Debug)]
struct Lock {
    _file: File,
}

impl Lock {
    fn take(path: &Path, time: Duration) -> Result<Self, KnownServersError> {
        let lock = beside(path, ".lock");
        let fault = |path: &Path, source| KnownServersError::Write {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| fault(folder, source))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(&lock)
            .map_err(|source| fault(&lock, source))?;
        let deadline = clock::mono() + time;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(source)) => return Err(fault(&lock, source)),
                Err(TryLockError::WouldBlock) if (deadline - clock::mono()).is_zero() => {
                    let path = path.to_owned();
                    return Err(KnownServersError::Locked { path, lock, time });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_LOOK),
            }
        }
    }
}

/// Replaces the file whole; the lock is held.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), KnownServersError> {
    // A link to where somebody keeps such files stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let written = beside(&target, ".tmp");
    let write = || {
        // What is left of a client that was killed.
        match fs::remove_file(&written) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&written)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&written, &target)
    };
    write().map_err(|source| {
        // The fault above is what matters.
        let _ = fs::remove_file(&written);
        let path = path.to_owned();
        KnownServersError::Write { path, source }
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
