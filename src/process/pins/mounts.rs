//! Mount namespaces and what is mounted in them, by descriptors: the calls, and how they fail.
//!
//! Sources: mount_namespaces(7), setns(2), open_tree(2), move_mount(2), statx(2); `may_copy_tree` in
//! `fs/namespace.c` for what may be mounted that is not in the caller's namespace: pidfds, and the
//! files of namespaces.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat, StatxAttributes, StatxFlags, fstat, openat, statx},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// How directories are held that are only ways to what is in them.
pub(super) const DIRECTORY_FLAGS: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Why there are no pins.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// Something was refused.
    #[error("{what}: {error}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It cannot be kept.
    #[error("mount the namespace: the kernel takes it for an older one than the server's own")]
    Older,
    /// Something else is there.
    #[error("what stands at `{}` is none of ours", .0.display())]
    NotOurs(PathBuf),
}

/// Says what was to be done.
pub(super) fn refused<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> PlaceError {
    move |error| PlaceError::Refused {
        what,
        error: error.into(),
    }
}

/// By what a file is told from all others.
pub(super) type Identity = (u64, u64);

pub(super) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The mount namespace of this thread.
pub(super) fn this_namespace() -> Result<OwnedFd, PlaceError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, "/proc/thread-self/ns/mnt", flags, Mode::empty())
        .map_err(refused("open the mount namespace"))
}

/// Root and working directory are then the root of the namespace.
pub(super) fn set_namespace(namespace: &OwnedFd) -> Result<(), PlaceError> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(refused("enter a mount namespace"))
}

/// By what a namespace is told from all others.
pub(super) fn identify(namespace: &OwnedFd) -> Result<Identity, PlaceError> {
    let stat = fstat(namespace).map_err(refused("look at a mount namespace"))?;
    Ok(identity(&stat))
}

/// Mounts the file of a descriptor onto one in a directory.
pub(super) fn mount_file(file: impl AsFd, dir: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(file, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", dir, name, flags)?)
}

/// Whether something is mounted onto a file.
pub(super) fn is_mounted(dir: &OwnedFd, name: &str) -> bool {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
