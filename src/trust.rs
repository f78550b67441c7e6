//! The trust check: opens files and directories that only trusted users can have made or changed.
//!
//! Whoever can write configuration runs code here. So the way to it is walked by ourselves, one
//! part after the other from the root, links included, and each directory and link on it must
//! belong to a trusted user and be writable by nobody else; then the very descriptor that was
//! checked is read. Nothing is looked up by its whole path, so nothing can be put in its place
//! between the look and the use.
//!
//! - A link's owner counts, its mode means nothing.
//! - The owner's primary group may write (user private groups), unless an access control list
//!   lets in others; everybody never may.
//! - A sticky directory is good on the way, because what stands in it is checked itself and can
//!   be renamed by its owner alone. A file there must have one name only: a hard link to
//!   somebody's file is still theirs, but anybody may have put it there.
//! - On a read-only mount the mode bits do not count.
//! - Nothing that is looked at can hang us: FIFOs and devices are never opened.
//!
//! Absent on purpose: whether anything is there at all to be trusted (`watch`), what it means
//! (`config`). Sources: path_resolution(7), open(2), symlink(7), statvfs(3), acl(5).

mod error;
mod owners;
mod walk;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    ffi::{CStr, OsStr, OsString},
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat},
    io::Errno,
};

use self::walk::{Found, Place, Role, Walk, system};
pub use self::{
    error::{Kind, Shown, TrustError, Writers, quoted},
    owners::Owners,
    walk::{Step, Way},
};

/// How often something that was replaced while it was looked at is looked at again.
const ATTEMPTS_MAX: u32 = 4;

/// How much of a file is made room for before its size is believed.
const READ_BYTES_FIRST_MAX: u64 = 64 << 10;

/// Which file or directory it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    /// Its device.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
}

/// Which file it is and whether it was changed: two equal ones are the same bytes, unless it
/// was written twice within one tick of the file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Which file.
    pub inode: Inode,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, in nanoseconds since 1970; anybody who owns it may set it.
    pub mtime_ns: i128,
    /// When it was written, renamed, given away or had its mode changed, in nanoseconds since
    /// 1970; nobody can set it.
    pub ctime_ns: i128,
}

impl From<&Stat> for Inode {
    fn from(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
        }
    }
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: i128| i128::from(seconds) * 1_000_000_000 + nanos;
        Self {
            inode: Inode::from(stat),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec.into()),
            ctime_ns: nanos(stat.st_ctime, stat.st_ctime_nsec.into()),
        }
    }
}

/// A file's content, and which file that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Of the descriptor it was read from, and still the same after the last byte was read.
    pub identity: Identity,
}

/// Opens a file, checks it and the way to it, and reads it to its end.
///
/// # Errors
///
/// It is not there, not to be trusted, not a regular file, larger than `bytes_max`, changes all
/// the time, or cannot be read.
pub fn open_file(path: &Path, owners: &Owners, bytes_max: u64) -> Result<Trusted, TrustError> {
    again(|| open(path, owners, &mut Way::default())?.read(bytes_max))
}

/// Opens a file and checks it and the way to it, without reading it.
///
/// `way` is what was looked up on the way, as far as it went, when it fails too.
///
/// # Errors
///
/// As [`open_file`].
pub fn open(path: &Path, owners: &Owners, way: &mut Way) -> Result<TrustedFile, TrustError> {
    again(|| {
        way.steps.clear();
        TrustedFile::from_found(Walk::from_root(path, owners, way)?, owners)
    })
}

/// Opens a directory and checks it and the way to it. A sticky directory that others may write
/// is refused: whatever appears in it was put there by anybody.
///
/// # Errors
///
/// It is not there, not to be trusted, not a directory, or cannot be opened.
pub fn open_dir(path: &Path, owners: &Owners) -> Result<TrustedDir, TrustError> {
    open_dir_along(path, owners, &mut Way::default())
}

/// As [`open_dir`]; `way` is what was looked up on the way, as far as it went, when it fails too.
///
/// # Errors
///
/// As [`open_dir`].
pub fn open_dir_along(
    path: &Path,
    owners: &Owners,
    way: &mut Way,
) -> Result<TrustedDir, TrustError> {
    way.steps.clear();
    match Walk::from_root(path, owners, way)? {
        Found::Dir(place) => {
            walk::check(
                owners,
                Kind::Directory,
                &place.path,
                &place.stat,
                place.fd.as_fd(),
                Role::End,
            )?;
            Ok(TrustedDir {
                place: Arc::new(place),
            })
        }
        Found::Other { stat, path, .. } => Err(TrustError::NotDirectory {
            path,
            kind: FileType::from_raw_mode(stat.st_mode).into(),
        }),
    }
}

fn again<T>(mut attempt: impl FnMut() -> Result<T, TrustError>) -> Result<T, TrustError> {
    let mut result = attempt();
    for _ in 1..ATTEMPTS_MAX {
        if !matches!(result, Err(TrustError::Changing { .. })) {
            break;
        }
        result = attempt();
    }
    result
}

/// A directory that passed the check, held open.
#[derive(Debug, Clone)]
pub struct TrustedDir {
    place: Arc<Place>,
}

impl TrustedDir {
    /// Which directory.
    #[must_use]
    pub fn inode(&self) -> Inode {
        Inode::from(&self.place.stat)
    }

    /// Where it was found, without any links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// What this name stands for, itself or behind links; `None` when for nothing.
    ///
    /// Nothing is checked: what is seen here only tells whether another look is due.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn stat(&self, name: &OsStr, links: Links) -> Result<Option<Stat>, Errno> {
        let flags = match links {
            Links::Follow => rustix::fs::AtFlags::empty(),
            Links::Keep => rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        };
        match rustix::fs::statat(&self.place.fd, name, flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a file that stands here, and checks it and whatever links lead to it.
    ///
    /// # Errors
    ///
    /// As [`open_file`].
    pub fn open(&self, name: &OsStr, owners: &Owners) -> Result<TrustedFile, TrustError> {
        again(|| {
            let mut way = Way::default();
            let found = Walk::from_place(Arc::clone(&self.place), name, owners, &mut way)?;
            TrustedFile::from_found(found, owners)
        })
    }

    /// The names of everything that stands here, in no order; `None` when the directory itself
    /// was removed meanwhile.
    ///
    /// `keep` says which ones are wanted; there may be `names_max` of them.
    ///
    /// # Errors
    ///
    /// The directory cannot be read, or there are more.
    pub fn names(
        &self,
        names_max: usize,
        keep: impl Fn(&OsStr) -> bool,
    ) -> Result<Option<Vec<OsString>>, TrustError> {
        const HERE: &CStr = c".";
        let fail = |errno| system(&self.place.path, "read the directory", errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&self.place.fd, HERE, flags, Mode::empty()).map_err(fail)?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") || !keep(name) {
                continue;
            }
            if names.len() == names_max {
                return Err(TrustError::Crowded {
                    path: self.place.path.clone(),
                    names_max,
                });
            }
            names.push(name.to_owned());
        }
        // A removed directory reads as an empty one; it must not pass for that.
        let removed = fstat(&self.place.fd).map_err(fail)?.st_nlink == 0;
        Ok((!removed).then_some(names))
    }
}

/// Whether a link is looked at itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What it leads to is looked at.
    Follow,
    /// It is.
    Keep,
}

/// A regular file that passed the check, open for reading.
#[derive(Debug)]
pub struct TrustedFile {
    file: File,
    path: std::path::PathBuf,
    identity: Identity,
}

impl TrustedFile {
    /// The descriptor that passed.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    fn from_found(found: Found, owners: &Owners) -> Result<Self, TrustError> {
        let (parent, name, seen, path) = match found {
            Found::Dir(place) => {
                return Err(TrustError::NotRegular {
                    path: place.path,
                    kind: Kind::Directory,
                });
            }
            Found::Other {
                parent,
                name,
                stat,
                path,
            } => (parent, name, stat, path),
        };
        let kind = FileType::from_raw_mode(seen.st_mode);
        if kind != FileType::RegularFile {
            let kind = kind.into();
            return Err(TrustError::NotRegular { path, kind });
        }
        // NONBLOCK and NOCTTY: it may have been replaced by a FIFO or a terminal since.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd: OwnedFd = match openat(&parent.fd, &name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => {
                return Err(TrustError::Changing { path });
            }
            Err(errno) => return Err(system(&path, "open", errno)),
        };
        let stat = fstat(&fd).map_err(|errno| system(&path, "look at", errno))?;
        if Inode::from(&stat) != Inode::from(&seen) {
            return Err(TrustError::Changing { path });
        }
        walk::check(owners, Kind::File, &path, &stat, fd.as_fd(), Role::End)?;
        // A file that was removed since it was opened has no name at all, which is no fault.
        if parent.is_shared() && stat.st_nlink > 1 {
            #[allow(clippy::useless_conversion, reason = "on some machines it is a u32")]
            let links = u64::from(stat.st_nlink);
            return Err(TrustError::HardLinks { path, links });
        }
        Ok(Self {
            file: File::from(fd),
            path,
            identity: Identity::from(&stat),
        })
    }

    /// The open file: for looking whether somebody writes it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file, as it was when it was opened.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Reads it to its end.
    ///
    /// # Errors
    ///
    /// It has more than `bytes_max`, was written meanwhile, or cannot be read.
    pub fn read(self, bytes_max: u64) -> Result<Trusted, TrustError> {
        let too_large = |path, bytes| TrustError::TooLarge {
            path,
            bytes,
            bytes_max,
        };
        let size = self.identity.size;
        if size > bytes_max {
            return Err(too_large(self.path, size));
        }
        let first = usize::try_from(size.min(READ_BYTES_FIRST_MAX) + 1).unwrap_or(0);
        let mut bytes = Vec::with_capacity(first);
        let fail = |errno: Option<i32>| {
            let errno = errno.map_or(Errno::IO, Errno::from_raw_os_error);
            system(&self.path, "read", errno)
        };
        (&self.file)
            .take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| fail(error.raw_os_error()))?;
        let read = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if read > bytes_max {
            return Err(too_large(self.path, read));
        }
        let stat = fstat(&self.file).map_err(|errno| fail(Some(errno.raw_os_error())))?;
        let identity = Identity::from(&stat);
        if identity.size != size || identity.mtime_ns != self.identity.mtime_ns {
            return Err(TrustError::Changing { path: self.path });
        }
        Ok(Trusted {
            bytes,
            identity: self.identity,
        })
    }
}
