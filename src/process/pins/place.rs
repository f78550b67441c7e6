//! Where pidfds are pinned: a small tmpfs in a mount namespace of its own.
//!
//! - The namespace holds the tmpfs and nothing else: all that it was copied with is let go at
//!   once (`pivot_root`, then one lazy unmount), so no file system of the host is kept busy.
//! - It outlives us by what keeps it in the host's namespace ([`Anchor`]). One that is found there
//!   is entered only if it is not the one we are in, and ours: our directory lies in its root, on
//!   a tmpfs.
//! - A pin is a file, named by pid and start time, onto which a pidfd is mounted. Opening it
//!   gives a pidfd of the very process, whoever has its number by now.
//!
//! All of this is done on a thread of its own: a thread can be in another namespace than its
//! process only when it shares no root and working directory with it.
//!
//! Sources: mount_namespaces(7), unshare(2), setns(2), pivot_root(2), tmpfs(5).

#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FsWord, Mode, OFlags, fstat, fstatfs, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    process::{PidfdFlags, chdir, fchdir, geteuid, getpid, pidfd_open, pivot_root},
    thread::{CpuSet, UnshareFlags, sched_getaffinity, sched_setaffinity, unshare_unsafe},
};

use super::{
    super::info,
    PinName,
    anchor::Anchor,
    mounts::{
        DIRECTORY_FLAGS, Identity, PlaceError, identify, is_mounted, mount_file, refused,
        set_namespace, this_namespace,
    },
};

/// The directory in the namespace: by its name we know that the namespace is ours. What is in it
/// is part of a format: another server may find it.
const DIRECTORY: &str = "supervisor-rs-pins-1";

/// How much the tmpfs may hold: an inode a pin, and nothing in any file.
#[cfg(not(test))]
const TMPFS_OPTIONS: &CStr = c"mode=0700,size=64k,nr_inodes=65536";
#[cfg(test)]
const TMPFS_OPTIONS: &CStr = c"mode=0700,size=64k,nr_inodes=512";

/// `TMPFS_MAGIC`.
const TMPFS: FsWord = 0x0102_1994;

/// On how many processors a namespace is tried to be made.
const PROCESSORS_MAX: usize = 64;

/// A mount namespace with pins. Its thread is in it, and must stay on its own.
pub(super) struct Place {
    anchor: Anchor,
    /// The host's mount namespace, that is the one that the server is in.
    host: OwnedFd,
    /// That of the pins.
    own: OwnedFd,
    identity: Identity,
    /// [`DIRECTORY`], and the working directory of the thread.
    pins: OwnedFd,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.anchor).finish()
    }
}

impl Place {
    /// Takes the calling thread into the namespace that an earlier server left, or into a new
    /// one in which pinning works.
    pub(super) fn enter(runtime_dir: &Path) -> Result<Self, PlaceError> {
        let anchor = Anchor::open(runtime_dir)?;
        let host = this_namespace()?;
        // SAFETY: concerns nothing but root, working directory and umask of this thread.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(refused("leave the other threads"))?;
        match anchor.find()? {
            Some(own) => Self::enter_found(anchor, host, own),
            None => Self::make_newer(&anchor, &host),
        }
    }

    fn enter_found(anchor: Anchor, host: OwnedFd, own: OwnedFd) -> Result<Self, PlaceError> {
        let identity = identify(&own)?;
        if identity == identify(&host)? {
            return Err(anchor.not_ours());
        }
        let Some(pins) = enter_pins(&own)? else {
            // The thread ends with this, but it ends where it began.
            set_namespace(&host)?;
            return Err(anchor.not_ours());
        };
        Ok(Self {
            anchor,
            host,
            own,
            identity,
            pins,
        })
    }

    /// A namespace can be mounted only in an older one, for else two could keep each other. What
    /// is older the kernel (6.18) tells by numbers that each processor hands out by itself: if
    /// the server's came from a processor that is ahead, a new one must come from there too.
    fn make_newer(anchor: &Anchor, host: &OwnedFd) -> Result<Self, PlaceError> {
        let made = Self::make(anchor, host);
        let Err(PlaceError::Older) = made else {
            return made;
        };
        let allowed = sched_getaffinity(None).map_err(refused("look at the processors"))?;
        let numbers = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        let mut made = made;
        for number in numbers.take(PROCESSORS_MAX) {
            let mut one = CpuSet::new();
            one.set(number);
            // Of this thread alone.
            if sched_setaffinity(None, &one).is_err() {
                continue;
            }
            set_namespace(host)?;
            made = Self::make(anchor, host);
            let Err(PlaceError::Older) = made else {
                break;
            };
        }
        let _as_it_was = sched_setaffinity(None, &allowed);
        made
    }

    fn make(anchor: &Anchor, host: &OwnedFd) -> Result<Self, PlaceError> {
        // SAFETY: concerns nothing but this thread, as above.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(refused("make a mount namespace"))?;
        let own = this_namespace()?;
        let identity = identify(&own)?;
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).map_err(refused("make a mount namespace private"))?;
        // Onto any directory: it is about to be the root.
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let dir = anchor.runtime_dir();
        mount("supervisor-rs", dir, "tmpfs", flags, TMPFS_OPTIONS)
            .map_err(refused("mount a tmpfs"))?;
        chdir(dir).map_err(refused("enter the tmpfs"))?;
        mkdirat(CWD, DIRECTORY, Mode::RWXU).map_err(refused("make the directory of pins"))?;
        // The old root comes to lie on the new one, and is what `.` is then.
        pivot_root(".", ".").map_err(refused("change the root of a mount namespace"))?;
        unmount(".", UnmountFlags::DETACH).map_err(refused("let the host's mounts go"))?;
        // As a later server will. Where our root is not that of the namespace (chroot(2)), it is
        // not found.
        let pins = enter_pins(&own)?.ok_or_else(|| {
            refused("find the pins again")(io::Error::from(io::ErrorKind::NotFound))
        })?;
        let place = Self {
            anchor: anchor.try_clone()?,
            host: host.try_clone().map_err(refused("copy a descriptor"))?,
            own,
            identity,
            pins,
        };
        // Before anything shows in the host's mount table.
        place.try_out()?;
        place.within_host(|place| place.anchor.bind(&place.own))?;
        Ok(place)
    }

    /// Pins our own pidfd and looks whether it is one when it is opened again.
    fn try_out(&self) -> Result<(), PlaceError> {
        let pid = getpid();
        let name = PinName {
            pid: pid.as_raw_nonzero().get(),
            start_ticks: u64::MAX,
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(refused("open a pidfd"))?;
        self.pin(name, &pidfd).map_err(refused("pin a pidfd"))?;
        let again = self.find(name).map_err(refused("open a pin"));
        self.unpin(name).map_err(refused("take a pin away"))?;
        let told = info::pid(again?).map_err(refused("ask a pin for its process"))?;
        if told != name.pid {
            let error = io::Error::from(io::ErrorKind::InvalidData);
            return Err(refused("ask a pin for its process")(error));
        }
        Ok(())
    }

    /// By what the file at `runtime_dir/pins` is told from others.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Pins a process. One that is pinned already stays so.
    pub(super) fn pin(&self, name: PinName, pidfd: impl AsFd) -> io::Result<()> {
        let file = name.to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&self.pins, &file, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_made) => {}
            Err(Errno::EXIST) if is_mounted(&self.pins, &file) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let pinned = mount_file(pidfd, &self.pins, &file);
        if pinned.is_err() {
            let _as_it_was = unlinkat(&self.pins, &file, AtFlags::empty());
        }
        pinned
    }

    /// The pidfd of a pin.
    pub(super) fn find(&self, name: PinName) -> io::Result<OwnedFd> {
        let file = name.to_string();
        if !is_mounted(&self.pins, &file) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.pins, &file, flags, Mode::empty())?)
    }

    /// Takes a pin away, whatever of it is there.
    pub(super) fn unpin(&self, name: PinName) -> io::Result<()> {
        let file = name.to_string();
        // Of a path relative to the working directory, which is that of pins.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match unmount(file.as_str(), flags) {
            // The file is not there, or nothing is mounted onto it.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(&self.pins, &file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// All pins there are.
    pub(super) fn names(&self) -> io::Result<Vec<PinName>> {
        let readable = openat(
            &self.pins,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut names = Vec::new();
        for entry in Dir::new(readable)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok();
            names.extend(name.and_then(PinName::parse));
        }
        Ok(names)
    }

    /// Keeps the namespace at `runtime_dir/pins` again, after that was deleted or replaced.
    pub(super) fn rebind(&mut self) -> Result<(), PlaceError> {
        let anchor = self.within_host(|place| {
            // Where the directory was moved to.
            place.anchor.unbind(place.identity);
            let anchor = place.anchor.again()?;
            anchor.bind(&place.own)?;
            Ok(anchor)
        })?;
        self.anchor = anchor;
        Ok(())
    }

    /// Takes everything away, if there are no pins: the namespace ends with the last descriptor.
    pub(super) fn leave(self) -> Result<(), PlaceError> {
        let left = self.names().map_err(refused("list the pins"))?;
        if left.is_empty() {
            self.within_host(|place| {
                place.anchor.unbind(place.identity);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn within_host<T>(
        &self,
        what: impl FnOnce(&Self) -> Result<T, PlaceError>,
    ) -> Result<T, PlaceError> {
        set_namespace(&self.host)?;
        let result = what(self);
        self.go_back()?;
        result
    }

    fn go_back(&self) -> Result<(), PlaceError> {
        set_namespace(&self.own)?;
        fchdir(&self.pins).map_err(refused("enter the directory of pins"))
    }
}

/// Enters a namespace and in it the directory of pins; `None` when there is none of ours.
fn enter_pins(namespace: &OwnedFd) -> Result<Option<OwnedFd>, PlaceError> {
    set_namespace(namespace)?;
    let path = Path::new("/").join(DIRECTORY);
    let Ok(pins) = openat(CWD, path, DIRECTORY_FLAGS | OFlags::NOFOLLOW, Mode::empty()) else {
        return Ok(None);
    };
    let on_tmpfs = fstatfs(&pins).is_ok_and(|on| on.f_type == TMPFS);
    let is_own = fstat(&pins).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
    if !on_tmpfs || !is_own {
        return Ok(None);
    }
    fchdir(&pins).map_err(refused("enter the directory of pins"))?;
    Ok(Some(pins))
}
