//! The way to a file: from the root, one part after the other, each checked before the next.
//!
//! Every directory is held by a descriptor (`O_PATH`) when the next name is looked up in it, and
//! links are read from the descriptor that was checked. What was looked up where is written down
//! as a [`Way`], so that whoever wants to know when it changes can watch these places.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{
        FileType, Mode, OFlags, Stat, StatVfsMountFlags, fstat, fstatvfs, getxattr, open, openat,
        readlinkat,
    },
    io::Errno,
};

use super::{Inode, Kind, Owners, TrustError, Writers};

/// How many links are followed on one way, as the kernel does.
pub(super) const LINKS_MAX: u32 = 40;

/// How many parts a way may have, those of its links included.
pub(super) const STEPS_MAX: u32 = 1024;

const STICKY: u32 = 0o1000;
const GROUP_WRITE: u32 = 0o020;
const OTHER_WRITE: u32 = 0o002;

/// Where access control lists are kept; absent when the mode bits say everything.
const ACL: &str = "system.posix_acl_access";

/// What was looked up on the way to something, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// Each name in its directory. When the walk failed, the last one is where.
    pub steps: Vec<Step>,
}

/// One name, looked up in one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The directory, without any links.
    pub dir: PathBuf,
    /// Which directory that was.
    pub inode: Inode,
    /// Whether it is one that everybody may put things into, such as `/tmp`.
    pub shared: bool,
    /// The name.
    pub name: OsString,
    /// Whether the name stands for a link.
    pub link: bool,
}

/// A directory that passed the check.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) stat: Stat,
}

impl Place {
    /// Whether others than its owner may put things here.
    pub(super) fn is_shared(&self) -> bool {
        self.stat.st_mode & STICKY != 0 && self.stat.st_mode & (GROUP_WRITE | OTHER_WRITE) != 0
    }
}

/// What a path led to, all links followed.
pub(super) enum Found {
    Dir(Place),
    /// Anything that is not a directory. Not opened, not checked itself.
    Other {
        parent: Arc<Place>,
        name: OsString,
        stat: Stat,
        path: PathBuf,
    },
}

/// What a directory is looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It leads further: sticky will do.
    OnTheWay,
    /// It is what we were looking for.
    End,
}

pub(super) struct Walk<'a> {
    owners: &'a Owners,
    way: &'a mut Way,
    /// What is still to be looked up, first to last.
    rest: VecDeque<Part>,
    links: u32,
    last_link: Option<PathBuf>,
}

enum Part {
    Root,
    Up,
    Name(OsString),
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = Part> {
    path.components().filter_map(|part| match part {
        Component::RootDir => Some(Part::Root),
        Component::ParentDir => Some(Part::Up),
        Component::Normal(name) => Some(Part::Name(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    })
}

pub(super) fn system(path: &Path, action: &'static str, errno: Errno) -> TrustError {
    TrustError::System {
        path: path.to_owned(),
        action,
        errno,
    }
}

impl<'a> Walk<'a> {
    /// Walks an absolute path.
    pub(super) fn from_root(
        path: &Path,
        owners: &'a Owners,
        way: &'a mut Way,
    ) -> Result<Found, TrustError> {
        if !path.is_absolute() {
            let path = path.to_owned();
            return Err(TrustError::NotAbsolute { path });
        }
        let walk = Walk {
            owners,
            way,
            rest: parts(path).collect(),
            links: 0,
            last_link: None,
        };
        let root = Arc::new(walk.root()?);
        walk.run(root, path)
    }

    /// Walks one name that stands in a directory.
    pub(super) fn from_place(
        place: Arc<Place>,
        name: &OsStr,
        owners: &'a Owners,
        way: &'a mut Way,
    ) -> Result<Found, TrustError> {
        let whole = place.path.join(name);
        let walk = Walk {
            owners,
            way,
            rest: VecDeque::from([Part::Name(name.to_owned())]),
            links: 0,
            last_link: None,
        };
        walk.run(place, &whole)
    }

    fn run(mut self, mut at: Arc<Place>, whole: &Path) -> Result<Found, TrustError> {
        for _ in 0..STEPS_MAX {
            match self.rest.pop_front() {
                None => return self.arrive(at),
                Some(Part::Root) => at = Arc::new(self.root()?),
                Some(Part::Up) => {
                    let path = at.path.parent().unwrap_or(Path::new("/")).to_owned();
                    at = Arc::new(self.enter(Some(&at), OsStr::new(".."), path)?);
                }
                Some(Part::Name(name)) => match self.step(&at, name, whole)? {
                    Stepped::Link => {}
                    Stepped::Into(place) => at = Arc::new(place),
                    Stepped::Other(found) => return Ok(found),
                },
            }
        }
        Err(TrustError::Deep {
            path: whole.to_owned(),
            steps_max: STEPS_MAX,
        })
    }

    /// The end of the way is a directory that others may hold too (`from_place`), so it is opened
    /// once more if need be.
    fn arrive(&self, at: Arc<Place>) -> Result<Found, TrustError> {
        match Arc::try_unwrap(at) {
            Ok(place) => Ok(Found::Dir(place)),
            Err(at) => Ok(Found::Dir(self.enter(
                Some(&at),
                OsStr::new("."),
                at.path.clone(),
            )?)),
        }
    }

    fn step(
        &mut self,
        at: &Arc<Place>,
        name: OsString,
        whole: &Path,
    ) -> Result<Stepped, TrustError> {
        let path = at.path.join(&name);
        self.way.steps.push(Step {
            dir: at.path.clone(),
            inode: Inode::from(&at.stat),
            shared: at.is_shared(),
            name: name.clone(),
            link: false,
        });
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(&at.fd, &name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(self.missing(path)),
            Err(errno) => return Err(system(&path, "look at", errno)),
        };
        let stat = fstat(&fd).map_err(|errno| system(&path, "look at", errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                if let Some(step) = self.way.steps.last_mut() {
                    step.link = true;
                }
                self.follow(&fd, &stat, path, whole)?;
                Ok(Stepped::Link)
            }
            FileType::Directory => {
                let owners = self.owners;
                let (kind, role) = (Kind::Directory, Role::OnTheWay);
                check(owners, kind, &path, &stat, fd.as_fd(), role)?;
                Ok(Stepped::Into(Place { fd, path, stat }))
            }
            kind if !self.rest.is_empty() => Err(TrustError::NotDirectory {
                path,
                kind: kind.into(),
            }),
            _ => Ok(Stepped::Other(Found::Other {
                parent: Arc::clone(at),
                name,
                stat,
                path,
            })),
        }
    }

    fn follow(
        &mut self,
        fd: &OwnedFd,
        stat: &Stat,
        path: PathBuf,
        whole: &Path,
    ) -> Result<(), TrustError> {
        let (kind, role) = (Kind::Link, Role::OnTheWay);
        check(self.owners, kind, &path, stat, fd.as_fd(), role)?;
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(TrustError::Links {
                path: whole.to_owned(),
                links_max: LINKS_MAX,
            });
        }
        let target = readlinkat(fd, c"", Vec::new())
            .map_err(|errno| system(&path, "read the link", errno))?;
        for part in parts(Path::new(OsStr::from_bytes(target.to_bytes()))).rev() {
            self.rest.push_front(part);
        }
        self.last_link = Some(path);
        Ok(())
    }

    fn missing(&self, path: PathBuf) -> TrustError {
        match &self.last_link {
            Some(link) => TrustError::Dangling {
                link: link.clone(),
                path,
            },
            None => TrustError::Missing { path },
        }
    }

    fn root(&self) -> Result<Place, TrustError> {
        self.enter(None, OsStr::new("/"), PathBuf::from("/"))
    }

    /// Opens a directory that is known to be one: the root, a parent, or the same again.
    fn enter(
        &self,
        from: Option<&Place>,
        name: &OsStr,
        path: PathBuf,
    ) -> Result<Place, TrustError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match from {
            Some(place) => openat(&place.fd, name, flags, Mode::empty()),
            None => open(name, flags, Mode::empty()),
        };
        let fd = opened.map_err(|errno| system(&path, "look at", errno))?;
        let stat = fstat(&fd).map_err(|errno| system(&path, "look at", errno))?;
        let (kind, role) = (Kind::Directory, Role::OnTheWay);
        check(self.owners, kind, &path, &stat, fd.as_fd(), role)?;
        Ok(Place { fd, path, stat })
    }
}

enum Stepped {
    Link,
    Into(Place),
    Other(Found),
}

/// Whether this one thing, which `fd` holds and `stat` describes, is to be trusted.
pub(super) fn check(
    owners: &Owners,
    kind: Kind,
    path: &Path,
    stat: &Stat,
    fd: BorrowedFd<'_>,
    role: Role,
) -> Result<(), TrustError> {
    let uid = stat.st_uid;
    if !owners.trusts(uid) {
        return Err(TrustError::Owner {
            path: path.to_owned(),
            kind,
            uid,
            user: owners.name(uid),
            own_name: owners.own_name(),
        });
    }
    let mode = stat.st_mode & 0o7777;
    let sticky = kind == Kind::Directory && role == Role::OnTheWay && mode & STICKY != 0;
    if kind == Kind::Link || sticky {
        return Ok(());
    }
    let Some(by) = writers(owners, stat, fd) else {
        return Ok(());
    };
    let vfs = fstatvfs(fd).map_err(|errno| system(path, "look at the mount of", errno))?;
    if vfs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    Err(TrustError::Writable {
        path: path.to_owned(),
        kind,
        mode,
        user: owners.name(uid),
        by,
    })
}

fn writers(owners: &Owners, stat: &Stat, fd: BorrowedFd<'_>) -> Option<Writers> {
    let gid = stat.st_gid;
    let group = stat.st_mode & GROUP_WRITE != 0;
    let primary = owners.primary_group(stat.st_uid) == Some(gid);
    let others = stat.st_mode & OTHER_WRITE != 0;
    match (group && !primary, others) {
        (true, true) => Some(Writers::Both { gid }),
        (true, false) => Some(Writers::Group { gid }),
        (false, true) => Some(Writers::Others),
        // With a list the group bits are only its mask.
        (false, false) => (group && has_acl(fd)).then_some(Writers::List),
    }
}

/// Whether there is a list; when that cannot be found out, there may be one.
fn has_acl(fd: BorrowedFd<'_>) -> bool {
    // An O_PATH descriptor has no attributes of its own.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut size_only = [0u8; 0];
    match getxattr(path, ACL, &mut size_only) {
        Ok(_) => true,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
        Err(_) => true,
    }
}
