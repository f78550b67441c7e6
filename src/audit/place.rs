//! The directory that the trail stands in, and its files.
//!
//! - Who writes opens the directory anew for each batch, so that one that was deleted or replaced
//!   is noticed; it is made if it is missing, and refused when it is not ours alone. Everything
//!   else goes through its descriptor.
//! - Files are opened without following links and without waiting for a FIFO's other end, and
//!   must be regular; those that are written to must be ours, and are closed to others.
//! - Who only checks the trail makes nothing and owns nothing ([`Dir::look`]).
//!
//! Sources: open(2), rename(2), fsync(2).

use std::{
    fs::{DirBuilder, File},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use super::{NAME, error::AuditError};

const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const FILE_FLAGS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Device and inode.
pub(super) type Identity = (u64, u64);

/// The name of the file that was moved away so many files ago.
pub(super) fn rotated(number: u32) -> String {
    format!("{NAME}.{number}")
}

/// What has a name, links unresolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) identity: Identity,
    /// In bytes.
    pub(super) len: u64,
    /// Whether it is a regular file of ours.
    pub(super) is_ours: bool,
}

/// The directory, open.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    dir: OwnedFd,
}

impl Dir {
    /// Opens it for reading alone; `None` when there is none.
    pub(super) fn look(path: &Path) -> Result<Option<Self>, AuditError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => Ok(Some(Self {
                path: path.to_owned(),
                dir,
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(AuditError::Dir {
                dir: path.to_owned(),
                source: errno.into(),
            }),
        }
    }

    /// Opens it for writing: made with mode 0700 if it is missing, and ours alone.
    pub(super) fn own(path: &Path) -> Result<Self, AuditError> {
        let failed = |source: io::Error| AuditError::Dir {
            dir: path.to_owned(),
            source,
        };
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(failed)?;
        let Some(dir) = Self::look(path)? else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let stat = rustix::fs::fstat(&dir.dir).map_err(|errno| failed(errno.into()))?;
        let mode = stat.st_mode & 0o7777;
        if stat.st_uid != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
            return Err(AuditError::NotOurs {
                dir: path.to_owned(),
                owner: stat.st_uid,
                mode,
            });
        }
        Ok(dir)
    }

    /// What has this name; `None` when nothing has.
    pub(super) fn named(&self, name: &str) -> Result<Option<Named>, AuditError> {
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Named {
                identity: (stat.st_dev, stat.st_ino),
                len: u64::try_from(stat.st_size).unwrap_or(0),
                is_ours: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    && stat.st_uid == rustix::process::geteuid().as_raw(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at", name, errno.into())),
        }
    }

    /// Opens a regular file for reading, whoever owns it; `None` when there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<File>, AuditError> {
        let file = self.open(name, OFlags::RDONLY)?;
        file.map(|(file, _owner)| Ok(file)).transpose()
    }

    /// Opens a file of ours for reading and adding; `None` when there is none.
    pub(super) fn append(&self, name: &str) -> Result<Option<File>, AuditError> {
        match self.open(name, OFlags::RDWR | OFlags::APPEND)? {
            Some((file, owner)) => self.ours(name, file, owner).map(Some),
            None => Ok(None),
        }
    }

    /// Makes a file for adding; there must be none of that name.
    pub(super) fn create(&self, name: &str) -> Result<File, AuditError> {
        operation().map_err(|source| self.failed("create", name, source))?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        match self.open(name, flags)? {
            Some((file, owner)) => self.ours(name, file, owner),
            None => Err(self.failed("create", name, io::ErrorKind::NotFound.into())),
        }
    }

    /// Gives a file another name, in place of what had that name.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), AuditError> {
        operation()
            .and_then(|()| Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?))
            .map_err(|source| self.failed("rename", from, source))
    }

    /// Returns when the names survive the host.
    pub(super) fn sync(&self) -> Result<(), AuditError> {
        operation()
            .and_then(|()| Ok(rustix::fs::fsync(&self.dir)?))
            .map_err(|source| AuditError::Dir {
                dir: self.path.clone(),
                source,
            })
    }

    /// The names of all files of the trail, those kept aside too.
    pub(super) fn names(&self) -> Result<Vec<String>, AuditError> {
        let failed = |errno: Errno| AuditError::Dir {
            dir: self.path.clone(),
            source: errno.into(),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_str().ok();
            names.extend(
                name.filter(|name| name.starts_with(NAME))
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// The path of a file, for people.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn failed(&self, what: &'static str, name: &str, source: io::Error) -> AuditError {
        AuditError::File {
            what,
            path: self.path(name),
            source,
        }
    }

    /// Opens a regular file, and tells its owner and its mode.
    fn open(&self, name: &str, flags: OFlags) -> Result<Option<(File, Owner)>, AuditError> {
        let not_a_file = || AuditError::NotAFile {
            path: self.path(name),
        };
        match rustix::fs::openat(&self.dir, name, flags | FILE_FLAGS, PRIVATE_FILE) {
            Ok(file) => {
                let file = File::from(file);
                let metadata = file.metadata();
                let metadata = metadata.map_err(|error| self.failed("look at", name, error))?;
                if !metadata.is_file() {
                    return Err(not_a_file());
                }
                let owner = Owner {
                    uid: metadata.uid(),
                    mode: metadata.mode(),
                };
                Ok(Some((file, owner)))
            }
            Err(Errno::NOENT) => Ok(None),
            // What `open(2)` says of links, directories and sockets.
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => Err(not_a_file()),
            Err(errno) => Err(self.failed("open", name, errno.into())),
        }
    }

    /// A file that is written to is ours, and nobody else's to read.
    fn ours(&self, name: &str, file: File, owner: Owner) -> Result<File, AuditError> {
        if owner.uid != rustix::process::geteuid().as_raw() {
            return Err(AuditError::NotAFile {
                path: self.path(name),
            });
        }
        if owner.mode & 0o077 != 0 {
            rustix::fs::fchmod(&file, PRIVATE_FILE)
                .map_err(|errno| self.failed("close to others", name, errno.into()))?;
        }
        Ok(file)
    }
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    mode: u32,
}

/// As `write(2)`: may write a part.
pub(super) fn write(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    if let Err(error) = operation() {
        // The disk of a test that takes no more has taken half of it.
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(error);
    }
    file.write(bytes)
}

/// Returns when what was written survives the host.
pub(super) fn sync(file: &File) -> io::Result<()> {
    operation()?;
    file.sync_data()
}

/// Cuts a file to this many bytes.
pub(super) fn cut(file: &File, len: u64) -> io::Result<()> {
    operation()?;
    file.set_len(len)
}

/// Each change of the disk comes through here first, so that tests can have any of them fail;
/// outside of tests none does.
fn operation() -> io::Result<()> {
    #[cfg(test)]
    super::tests::drill::operation()?;
    Ok(())
}
