//! What keeps the namespace of the pins when nobody is in it: its file, mounted where the next
//! server finds it.
//!
//! - The nsfs file of the namespace is mounted onto `runtime_dir/pins`: that is one line in the
//!   host's mount table, however many pins there are. Such a file cannot be mounted where other
//!   namespaces would get a copy (`EINVAL`), as they do where mounts are shared: then the empty
//!   file is first mounted onto itself and made private, which is a second line.
//! - What stands there is used only if it is the file of a mount namespace, and the directory is
//!   ours alone. Anything else is left alone, and nothing is pinned.
//! - The directory is held open: whoever moves it moves the mount, and it is found there.
//!
//! All of this is done in the host's mount namespace, that is the one that the server is in.
//!
//! Sources: mount_namespaces(7), unshare(1) on shared mounts, ioctl_nsfs(2).

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, FsWord, Mode, OFlags, fstat, fstatfs, openat, statat, unlinkat},
    io::Errno,
    mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
        move_mount, open_tree, unmount,
    },
    process::geteuid,
};

use super::mounts::{
    DIRECTORY_FLAGS, Identity, PlaceError, identify, identity, is_mounted, mount_file, refused,
};

/// The name in `runtime_dir`.
pub(super) const NAME: &str = "pins";

/// `NSFS_MAGIC`.
const NSFS: FsWord = 0x6e73_6673;

/// `NS_GET_NSTYPE`: `_IO(0xb7, 3)`.
const GET_NSTYPE: libc::Ioctl = libc::_IO(0xb7, 3);

/// How many mounts of ours stand on top of each other at most: two, and what a server left that
/// died between one and the other.
const MOUNTS_MAX: usize = 4;

/// `runtime_dir`, as it was found.
#[derive(Debug)]
pub(super) struct Anchor {
    runtime_dir: PathBuf,
    home: OwnedFd,
}

impl Anchor {
    /// Opens the directory, which must be ours alone: what is in it is believed.
    pub(super) fn open(runtime_dir: &Path) -> Result<Self, PlaceError> {
        let home = openat(CWD, runtime_dir, DIRECTORY_FLAGS, Mode::empty())
            .map_err(refused("open the runtime directory"))?;
        let stat = fstat(&home).map_err(refused("look at the runtime directory"))?;
        let writable = Mode::WGRP | Mode::WOTH;
        if stat.st_uid != geteuid().as_raw()
            || Mode::from_raw_mode(stat.st_mode).intersects(writable)
        {
            return Err(PlaceError::NotOurs(runtime_dir.to_owned()));
        }
        Ok(Self {
            runtime_dir: runtime_dir.to_owned(),
            home,
        })
    }

    /// Another handle on the same.
    pub(super) fn try_clone(&self) -> Result<Self, PlaceError> {
        Ok(Self {
            runtime_dir: self.runtime_dir.clone(),
            home: self
                .home
                .try_clone()
                .map_err(refused("copy a descriptor"))?,
        })
    }

    /// The directory as it is found by path now.
    pub(super) fn again(&self) -> Result<Self, PlaceError> {
        Self::open(&self.runtime_dir)
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// What is said of anything else that stands there.
    pub(super) fn not_ours(&self) -> PlaceError {
        PlaceError::NotOurs(self.runtime_dir.join(NAME))
    }

    /// The mount namespace that is kept here; `None` when nothing is mounted.
    pub(super) fn find(&self) -> Result<Option<OwnedFd>, PlaceError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let found = match openat(&self.home, NAME, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.not_ours()),
            Err(error) => return Err(refused("open the file `pins`")(error)),
        };
        if fstatfs(&found).is_ok_and(|on| on.f_type == NSFS) {
            // SAFETY: the descriptor is open, and the request takes no argument.
            let kind = unsafe { libc::ioctl(found.as_raw_fd(), GET_NSTYPE) };
            return match kind == libc::CLONE_NEWNS {
                true => Ok(Some(found)),
                false => Err(self.not_ours()),
            };
        }
        // What is left when the mount is gone, as after a reboot: our empty file.
        let stat = fstat(&found).map_err(refused("look at the file `pins`"))?;
        let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
        match is_file && stat.st_size == 0 && stat.st_uid == geteuid().as_raw() {
            true => Ok(None),
            false => Err(self.not_ours()),
        }
    }

    /// Keeps this namespace, if nothing else stands there.
    pub(super) fn bind(&self, own: &OwnedFd) -> Result<(), PlaceError> {
        if let Some(found) = self.find()? {
            return match identify(&found)? == identify(own)? {
                true => Ok(()),
                false => Err(self.not_ours()),
            };
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(&self.home, NAME, flags, Mode::RUSR | Mode::WUSR)
            .map_err(refused("make the file `pins`"))?;
        let bound = self.bind_onto_file(own);
        if bound.is_err() {
            let _as_it_was = unlinkat(&self.home, NAME, AtFlags::empty());
        }
        bound
    }

    fn bind_onto_file(&self, own: &OwnedFd) -> Result<(), PlaceError> {
        match self.mount_namespace(own) {
            Err(PlaceError::Refused { what: _, error })
                if error.kind() == io::ErrorKind::InvalidInput => {}
            result => return result,
        }
        // Others would get a copy: not of a mount that is private.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let itself = open_tree(&self.home, NAME, flags).map_err(refused("open the file `pins`"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&itself, "", &self.home, NAME, flags)
            .map_err(refused("mount the file `pins`"))?;
        let bound = mount_change(self.path(), MountPropagationFlags::PRIVATE)
            .map_err(refused("make the file `pins` private"))
            .and_then(|()| self.mount_namespace(own));
        if bound.is_err() {
            let _as_it_was = unmount(self.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        bound
    }

    fn mount_namespace(&self, own: &OwnedFd) -> Result<(), PlaceError> {
        mount_file(own, &self.home, NAME).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => PlaceError::Older,
            Some(_) | None => refused("mount the namespace")(error),
        })
    }

    /// Lets this namespace go, if it is the one that is kept here.
    pub(super) fn unbind(&self, own: Identity) {
        let stands = statat(&self.home, NAME, AtFlags::SYMLINK_NOFOLLOW);
        if !stands.is_ok_and(|stat| identity(&stat) == own) {
            return;
        }
        for _ in 0..MOUNTS_MAX {
            if !is_mounted(&self.home, NAME) {
                break;
            }
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            if let Err(error) = unmount(self.path(), flags) {
                tracing::warn!(%error, path = %self.path().display(), "a mount stays");
                return;
            }
        }
        let _may_be_gone = unlinkat(&self.home, NAME, AtFlags::empty());
    }

    /// `runtime_dir/pins`, wherever that directory is by now.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{NAME}", self.home.as_raw_fd()))
    }
}
