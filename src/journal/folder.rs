//! One of the server's directories: ours alone, locked for life, and the files in it.
//!
//! - The directory is opened once; all that follows goes through that descriptor, so that
//!   nobody can exchange it for another between a check and a use.
//! - It is refused when it is another user's or others can write to it. Inside such a
//!   directory nobody else can put anything, yet files are opened without following links and
//!   without waiting for a FIFO's other end.
//! - Nothing here notices that the directory was taken away: `home` does.
//! - The lock is `flock(2)` on the file `lock`, which the kernel drops with the last process
//!   that holds the descriptor, and so with the server (it is close-on-exec). That the file
//!   is still the one with that name is checked once it is locked. The pid in it is for
//!   people, and nothing is decided by it.
//!
//! [`Shelf`] and [`Medium`] are what the rest of the journal sees: a place for failing disks
//! in tests. Absent on purpose: what the files mean (`frame`, `log`).

use std::{
    fs::{DirBuilder, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Dir, FallocateFlags, FlockOperation, Mode, OFlags},
    io::{Errno, retry_on_intr},
};

use super::{error::JournalError, holder::Holder};
use crate::clock;

/// How long the end of another server is waited for before its lock counts as held.
pub const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often the lock is tried in that time. Only a start that meets a lock sleeps so.
pub(super) const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How many damaged files are kept aside in one directory, the latest ones.
pub(super) const CORRUPT_KEPT_MAX: usize = 4;

/// The most bytes of a file that are read; what is over counts as damaged.
pub(super) const READ_LEN_MAX: u64 = 1 << 30;

/// What stands in the names of damaged files that are kept.
const CORRUPT: &str = "corrupt";

/// What stands in the names of what could not be read.
const UNREADABLE: &str = "unreadable";

const LOCK_NAME: &str = "lock";
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const FILE_FLAGS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Whether a directory is the one that it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is, and the files in it are those that were opened.
    AsBefore,
    /// It is another one: nothing that was written is in it.
    Anew,
}

/// An open file that records are added to.
pub(super) trait Medium: Send {
    /// As `write(2)`: may write a part. Always at the end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Returns when what was written survives the host.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to this many bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Sees to it that so many bytes fit behind this length, whatever becomes of the disk; the
    /// length stays as it is.
    fn reserve(&mut self, len: u64, room: u64) -> io::Result<()>;
    /// Whether the file still has a name.
    fn is_linked(&self) -> io::Result<bool>;
    /// What stands behind this length.
    fn read_from(&self, len: u64) -> io::Result<Vec<u8>>;
    /// For whoever else is to add to it.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Writes these few bytes over the first ones of a file from [`Shelf::open_over`].
    fn write_over(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// A file as it was found.
pub(super) struct Contents {
    /// For adding to it; `None` where nothing can be written (a read-only file system).
    pub(super) file: Option<Box<dyn Medium>>,
    /// All of it.
    pub(super) bytes: Vec<u8>,
}

/// A directory with files in it.
pub(super) trait Shelf: Send {
    /// Sees to it that what is written here is found by whoever looks for it by path.
    fn stand(&mut self) -> io::Result<Standing>;
    /// Opens an existing file for adding, and reads all of it.
    fn read(&self, name: &str) -> io::Result<Option<Contents>>;
    /// Opens a file whose first bytes are written over, made if it is missing.
    fn open_over(&self, name: &str) -> io::Result<Box<dyn Medium>>;
    /// Makes an empty file, in place of what had the name.
    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>>;
    /// Gives a file another name, in place of what had that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns when the names survive the host.
    fn sync(&self) -> io::Result<()>;
    /// Keeps a damaged file under another name as well, and says which.
    fn set_aside(&self, name: &str, bytes: &[u8]) -> io::Result<String>;
    /// Gives what cannot be read another name, whatever it is, and says which.
    fn move_aside(&self, name: &str) -> io::Result<String>;
    /// The path of a file, for messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A directory of the server.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    dir: OwnedFd,
    /// Device and inode.
    identity: (u64, u64),
}

/// The right to be the one that writes to a directory; ends with this value.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl From<OwnedFd> for Lock {
    /// Of a lock that the program before has taken: it belongs to the open file, whoever has that.
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> Self {
        lock.file.into()
    }
}

impl Folder {
    /// Opens the directory, made with mode 0700 if it is missing, and sees that it is ours.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |source: io::Error| JournalError::Dir {
            dir: path.to_owned(),
            source,
        };
        make_dirs(path).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| failed(e.into()))?;
        check_owner(path, stat.st_uid, stat.st_mode & 0o7777)?;
        Ok(Self {
            path: path.to_owned(),
            dir,
            identity: (stat.st_dev, stat.st_ino),
        })
    }

    /// Goes on with a directory that the program before has opened and checked.
    pub(super) fn take_over(path: PathBuf, dir: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&dir)?;
        Ok(Self {
            path,
            dir,
            identity: (stat.st_dev, stat.st_ino),
        })
    }

    /// Its descriptor, for the next program of an upgrade.
    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.dir
    }

    /// Whether both are one directory, by whatever names.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Where it was opened.
    pub(super) fn dir_path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads here. Where that cannot be told it is taken to: what is open
    /// can be written to all the same.
    pub(super) fn stands(&self) -> bool {
        match rustix::fs::stat(&self.path) {
            Ok(stat) => (stat.st_dev, stat.st_ino) == self.identity,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
            Err(_) => true,
        }
    }

    /// Whether this lock is the one that others would meet here.
    pub(super) fn is_locked_by(&self, lock: &Lock) -> bool {
        self.has_name(&lock.file, LOCK_NAME)
    }

    /// Becomes the one that writes here; waits `wait` for another to end.
    pub(super) fn lock(&self, wait: Duration) -> Result<Lock, JournalError> {
        let deadline = clock::mono() + wait;
        loop {
            let mut file = self.open_lock()?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.has_name(&file, LOCK_NAME) => {
                    // A full disk must not keep the server from starting.
                    let _for_people = file
                        .set_len(0)
                        .and_then(|()| writeln!(file, "{}", std::process::id()));
                    return Ok(Lock { file });
                }
                Ok(()) | Err(Errno::INTR | Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(self.file_error(LOCK_NAME, errno.into())),
            }
            if clock::mono() >= deadline {
                return Err(self.in_use(noted(&mut file)));
            }
            drop(file);
            thread::sleep(LOCK_RETRY);
        }
    }

    /// Names who uses the directory; `noted` tells of a server that may be it.
    pub(super) fn in_use(&self, noted: Option<i32>) -> JournalError {
        let lock = rustix::fs::statat(&self.dir, LOCK_NAME, AtFlags::SYMLINK_NOFOLLOW);
        let holder = match (lock, noted) {
            (Ok(lock), noted) => Holder::of((lock.st_dev, lock.st_ino), noted),
            (Err(_), Some(pid)) => Holder::Server { pid },
            (Err(_), None) => Holder::Unknown,
        };
        JournalError::InUse {
            dir: self.path.clone(),
            holder,
        }
    }

    fn open_lock(&self) -> Result<File, JournalError> {
        let opened = match self.open_file(LOCK_NAME, OFlags::RDWR | OFlags::CREATE) {
            // What is there can be locked all the same.
            Err(error) if is(&error, Errno::ROFS) => self.open_file(LOCK_NAME, OFlags::RDONLY),
            opened => opened,
        };
        opened.map_err(|source| self.file_error(LOCK_NAME, source))
    }

    /// Reads a small file whole; `None` when there is none.
    pub(super) fn read_small(&self, name: &str, len_max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open_file(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(len_max).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// What went wrong with a file here.
    pub(super) fn file_error(&self, name: &str, source: io::Error) -> JournalError {
        JournalError::of_file(self.path.join(name), source)
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let fd = rustix::fs::openat(&self.dir, name, flags | FILE_FLAGS, PRIVATE_FILE)?;
        let file = File::from(fd);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Specs hold what children are told in confidence; a backup may have opened it up.
        if metadata.mode() & 0o077 != 0 {
            match rustix::fs::fchmod(&file, PRIVATE_FILE) {
                Ok(()) | Err(Errno::ROFS) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(file)
    }

    /// Gives our user its rights to a file of ours back.
    fn permit(&self, name: &str) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        if !is_file || stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // In our own directory nobody else can exchange it meanwhile.
        Ok(rustix::fs::chmodat(
            &self.dir,
            name,
            PRIVATE_FILE,
            AtFlags::empty(),
        )?)
    }

    /// Whether this file is still the one of that name.
    fn has_name(&self, file: &File, name: &str) -> bool {
        let (Ok(open), Ok(named)) = (
            rustix::fs::fstat(file),
            rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW),
        ) else {
            return false;
        };
        (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino)
    }

    /// The numbers of the files that are kept of this name, sorted.
    fn kept_numbers(&self, name: &str, why: &str) -> io::Result<Vec<u32>> {
        let prefix = format!("{name}.{why}-");
        let mut numbers = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let file_name = entry.file_name().to_str().ok();
            let number = file_name.and_then(|text| text.strip_prefix(&prefix));
            numbers.extend(number.and_then(|text| text.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl Shelf for Folder {
    /// An open directory stays what it is.
    fn stand(&mut self) -> io::Result<Standing> {
        Ok(Standing::AsBefore)
    }

    fn read(&self, name: &str) -> io::Result<Option<Contents>> {
        let adding = OFlags::RDWR | OFlags::APPEND;
        let opened = match self.open_file(name, adding) {
            // Ours, and somebody has taken our rights to it: what it says is worth more.
            Err(error) if is(&error, Errno::ACCESS) => {
                self.permit(name)?;
                self.open_file(name, adding)
            }
            opened => opened,
        };
        let (file, writable) = match opened {
            Ok(file) => (file, true),
            Err(error) if is(&error, Errno::ROFS) => (self.open_file(name, OFlags::RDONLY)?, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        (&file).take(READ_LEN_MAX).read_to_end(&mut bytes)?;
        let file = writable.then(|| Box::new(file) as Box<dyn Medium>);
        Ok(Some(Contents { file, bytes }))
    }

    fn open_over(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        Ok(Box::new(
            self.open_file(name, OFlags::WRONLY | OFlags::CREATE)?,
        ))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        // Not truncated in place: the old file may be kept under another name as well.
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        Ok(Box::new(self.open_file(name, flags)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    fn set_aside(&self, name: &str, bytes: &[u8]) -> io::Result<String> {
        let numbers = self.kept_numbers(name, CORRUPT)?;
        let aside = |number: u32| format!("{name}.{CORRUPT}-{number}");
        let damaged = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(last) = numbers.last() {
            // A server that could not write a new file since has kept this one already.
            let kept = rustix::fs::statat(&self.dir, aside(*last), AtFlags::SYMLINK_NOFOLLOW)?;
            if (kept.st_dev, kept.st_ino) == (damaged.st_dev, damaged.st_ino) {
                return Ok(aside(*last));
            }
        }
        let kept = aside(numbers.last().map_or(1, |last| last.saturating_add(1)));
        // A second name needs no space; the damaged file is never written to again.
        let linked = rustix::fs::linkat(&self.dir, name, &self.dir, &kept, AtFlags::empty());
        if linked.is_err() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            self.open_file(&kept, flags)?.write_all(bytes)?;
        }
        let over = (numbers.len() + 1).saturating_sub(CORRUPT_KEPT_MAX);
        for number in numbers.into_iter().take(over) {
            self.remove(&aside(number))?;
        }
        Ok(kept)
    }

    fn move_aside(&self, name: &str) -> io::Result<String> {
        let numbers = self.kept_numbers(name, UNREADABLE)?;
        let aside = |number: u32| format!("{name}.{UNREADABLE}-{number}");
        let kept = aside(numbers.last().map_or(1, |last| last.saturating_add(1)));
        self.rename(name, &kept)?;
        let over = (numbers.len() + 1).saturating_sub(CORRUPT_KEPT_MAX);
        for number in numbers.into_iter().take(over) {
            // A directory stays: it is not ours to empty.
            let _best_effort = self.remove(&aside(number));
        }
        Ok(kept)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Medium for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn reserve(&mut self, len: u64, room: u64) -> io::Result<()> {
        // On tmpfs any signal interrupts it, in older kernels at least.
        let keep_free = || rustix::fs::fallocate(&*self, FallocateFlags::KEEP_SIZE, len, room);
        promised(retry_on_intr(keep_free))
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }

    fn read_from(&self, len: u64) -> io::Result<Vec<u8>> {
        let more = self.metadata()?.len().saturating_sub(len);
        let mut bytes = vec![0; usize::try_from(more).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, len)?;
        Ok(bytes)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn write_over(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, 0)
    }
}

impl Lock {
    /// The same lock once more, for a process that is to keep it for a while.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// What an attempt to keep room free means: that none can be promised, be it by this file system
/// or to this process, says nothing of the disk.
fn promised(kept: rustix::io::Result<()>) -> io::Result<()> {
    match kept {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// How often a directory is made whose parent somebody takes away meanwhile, because it was empty.
const MAKE_TRIES_MAX: usize = 3;

fn make_dirs(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAKE_TRIES_MAX => {}
            made => return made,
        }
    }
}

fn check_owner(path: &Path, owner: u32, mode: u32) -> Result<(), JournalError> {
    let euid = rustix::process::geteuid().as_raw();
    if owner != euid {
        return Err(JournalError::NotOurs {
            dir: path.to_owned(),
            owner,
            euid,
        });
    }
    if mode & 0o022 != 0 {
        return Err(JournalError::WritableByOthers {
            dir: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// The pid that the lock's holder left.
fn noted(file: &mut File) -> Option<i32> {
    const PID_LEN_MAX: u64 = 16;
    let mut text = String::new();
    file.take(PID_LEN_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::{super::samples, *};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn folder() -> (tempfile::TempDir, PathBuf, Folder) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("deep/state");
        let folder = Folder::open(&path).unwrap();
        (temp, path, folder)
    }

    fn write(folder: &Folder, name: &str, bytes: &[u8]) {
        let mut file = folder.create(name).unwrap();
        assert_eq!(file.write(bytes).unwrap(), bytes.len());
    }

    #[test]
    fn directories_and_files_are_for_the_owner_alone() {
        let (_temp, path, folder) = folder();
        write(&folder, "journal", b"x");
        let _lock = folder.lock(Duration::ZERO).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path.join("journal")), 0o600);
        assert_eq!(mode(&path.join("lock")), 0o600);
    }

    #[test]
    fn only_a_disk_that_takes_nothing_refuses_room_not_one_that_promises_none() {
        let (_temp, path, folder) = folder();
        let mut file = folder.create("journal").unwrap();
        file.reserve(0, 4096).unwrap();
        assert_eq!(fs::metadata(path.join("journal")).unwrap().len(), 0);
        // A sandbox's filter of system calls says `EPERM`.
        for errno in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::PERM] {
            assert!(promised(Err(errno)).is_ok(), "{errno}");
        }
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::ROFS] {
            assert!(promised(Err(errno)).is_err(), "{errno}");
        }
    }

    #[test]
    fn a_file_that_was_opened_up_is_closed_again() {
        let (_temp, path, folder) = folder();
        write(&folder, "journal", b"x");
        fs::set_permissions(path.join("journal"), fs::Permissions::from_mode(0o666)).unwrap();
        let Contents { bytes, .. } = folder.read("journal").unwrap().unwrap();
        assert_eq!(bytes, b"x");
        assert_eq!(mode(&path.join("journal")), 0o600);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        for bits in [0o720, 0o702, 0o777, 0o1777] {
            fs::set_permissions(temp.path(), fs::Permissions::from_mode(bits)).unwrap();
            let error = Folder::open(temp.path()).unwrap_err();
            assert!(
                matches!(error, JournalError::WritableByOthers { mode, .. } if mode == bits),
                "{error}"
            );
        }
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Folder::open(temp.path()).unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return samples::skip("only root can give a directory away");
        }
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(temp.path(), Some(12345), None).unwrap();
        let error = Folder::open(temp.path()).unwrap_err();
        assert!(
            matches!(error, JournalError::NotOurs { owner: 12345, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return samples::skip("only root can give a file away");
        }
        let (_temp, path, folder) = folder();
        write(&folder, "journal", b"x");
        std::os::unix::fs::chown(path.join("journal"), Some(12345), None).unwrap();
        let error = folder.read("journal").err().unwrap();
        let error = folder.file_error("journal", error);
        assert!(matches!(error, JournalError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn what_stands_in_a_directorys_place_is_an_error_that_names_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        fs::write(&path, "a file").unwrap();
        let error = Folder::open(&path).unwrap_err();
        assert!(matches!(error, JournalError::Dir { .. }));
        assert!(error.to_string().contains("state"), "{error}");
    }

    #[test]
    fn links_fifos_and_directories_in_place_of_files_are_refused_without_waiting() {
        let (temp, path, folder) = folder();
        let target = temp.path().join("precious");
        fs::write(&target, "precious").unwrap();
        symlink(&target, path.join("link")).unwrap();
        symlink(temp.path().join("nowhere"), path.join("dangling")).unwrap();
        let fifo = path.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            PRIVATE_FILE,
            0,
        )
        .unwrap();
        fs::create_dir(path.join("dir")).unwrap();
        for name in ["link", "dangling", "fifo", "dir"] {
            let error = folder.read(name).err().unwrap();
            let error = folder.file_error(name, error);
            assert!(
                matches!(error, JournalError::NotAFile { .. }),
                "{name}: {error}"
            );
        }
        symlink(&target, path.join(LOCK_NAME)).unwrap();
        let error = folder.lock(Duration::ZERO).unwrap_err();
        assert!(matches!(error, JournalError::NotAFile { .. }), "{error}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn a_second_server_is_told_who_the_first_is() {
        let (_temp, path, folder) = folder();
        let first = folder.lock(Duration::ZERO).unwrap();
        // Another open file description, as another process would have.
        let second = Folder::open(&path).unwrap();
        let wait = LOCK_RETRY * 3;
        let asked = clock::mono();
        let error = second.lock(wait).unwrap_err();
        assert!(clock::mono() - asked >= wait);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(&error, JournalError::InUse { dir, holder: Holder::Server { pid } } if *dir == path && *pid == own),
            "{error}"
        );
        drop(first);
        second.lock(LOCK_WAIT).unwrap();
    }

    #[test]
    fn the_end_of_the_first_server_is_waited_for() {
        let (_temp, path, folder) = folder();
        let first = folder.lock(Duration::ZERO).unwrap();
        let second = Folder::open(&path).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = thread::spawn(move || {
            tell.send(()).unwrap();
            second.lock(LOCK_WAIT).map(drop)
        });
        told.recv().unwrap();
        drop(first);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_lock_on_a_file_that_lost_its_name_is_no_lock() {
        let (_temp, path, folder) = folder();
        let file = folder
            .open_file(LOCK_NAME, OFlags::RDWR | OFlags::CREATE)
            .unwrap();
        assert!(folder.has_name(&file, LOCK_NAME));
        fs::remove_file(path.join(LOCK_NAME)).unwrap();
        assert!(!folder.has_name(&file, LOCK_NAME));
        fs::write(path.join(LOCK_NAME), "").unwrap();
        assert!(!folder.has_name(&file, LOCK_NAME));
    }

    #[test]
    fn garbage_in_the_lock_file_does_not_hide_who_has_it() {
        let (_temp, path, folder) = folder();
        let _first = folder.lock(Duration::ZERO).unwrap();
        fs::write(path.join(LOCK_NAME), [0xff, 0xfe, b'9']).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let error = Folder::open(&path)
            .unwrap()
            .lock(Duration::ZERO)
            .unwrap_err();
        assert!(
            matches!(&error, JournalError::InUse { holder: Holder::Server { pid }, .. } if *pid == own),
            "{error}"
        );
    }

    #[test]
    fn the_lock_is_not_left_to_children() {
        let (_temp, _path, folder) = folder();
        let lock = folder.lock(Duration::ZERO).unwrap();
        let flags = rustix::io::fcntl_getfd(&lock.file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let flags = rustix::io::fcntl_getfd(&folder.dir).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn damaged_files_are_kept_aside_in_a_bounded_number() {
        let (_temp, path, folder) = folder();
        for round in 1..=CORRUPT_KEPT_MAX + 3 {
            write(&folder, "journal", round.to_string().as_bytes());
            let kept = folder.set_aside("journal", b"unused").unwrap();
            assert_eq!(kept, format!("journal.corrupt-{round}"));
            // Seen again before anything new was written: nothing more is kept.
            assert_eq!(folder.set_aside("journal", b"unused").unwrap(), kept);
        }
        assert_eq!(
            folder.kept_numbers("journal", CORRUPT).unwrap(),
            [4, 5, 6, 7]
        );
        let last = fs::read_to_string(path.join("journal.corrupt-7")).unwrap();
        assert_eq!(last, "7");
    }

    #[test]
    fn writing_a_file_anew_leaves_the_one_kept_aside_alone() {
        let (_temp, path, folder) = folder();
        write(&folder, "journal", b"damaged");
        folder.set_aside("journal", b"damaged").unwrap();
        write(&folder, "journal", b"new");
        let kept = fs::read_to_string(path.join("journal.corrupt-1")).unwrap();
        assert_eq!(kept, "damaged");
    }

    #[test]
    fn one_directory_under_two_names_is_one() {
        let (temp, path, folder) = folder();
        symlink(&path, temp.path().join("alias")).unwrap();
        let alias = Folder::open(&temp.path().join("alias")).unwrap();
        assert!(folder.is_same(&alias));
        let other = Folder::open(&temp.path().join("other")).unwrap();
        assert!(!folder.is_same(&other));
    }
}
