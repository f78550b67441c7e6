//! A claim on a directory's name, which holds although the directory is taken away.
//!
//! - The lock is on a file, so that whoever deletes the directory deletes the lock: a second
//!   server would make both anew and never learn of the first. A claim is a socket bound to an
//!   abstract name (`unix(7)`), which no file system knows and the kernel drops with the process.
//! - The name tells the user, the mount namespace and the directory's path, so that servers in
//!   containers do not meet although they share a network.
//! - Anybody may bind such a name. Only a socket that our own user has made and that a process of
//!   our own user has counts; a stranger's costs us this protection, never the start.
//!
//! It adds to the lock and never stands for it: two servers in two network namespaces, or in two
//! mount namespaces, are kept apart by the lock alone.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
};
use sha2::{Digest as _, Sha256};

/// How many bytes of the path's hash are in the name.
const HASH_LEN: usize = 16;

/// A name that is ours until this value goes.
#[derive(Debug)]
pub(super) struct Claim {
    name: String,
    _socket: OwnedFd,
}

/// What came of claiming a name.
#[derive(Debug)]
pub(super) enum Claimed {
    /// It is ours.
    Ours(Claim),
    /// A process of our user has it: the pid.
    Taken(i32),
    /// No process of our user has it: a stranger, or one that is just ending.
    Foreign,
    /// There are no such names here.
    Unavailable,
}

impl Claim {
    /// Claims a directory, which exists.
    pub(super) fn make(dir: &Path) -> Claimed {
        match name_of(dir) {
            Ok(name) => Self::bind(name),
            Err(_) => Claimed::Unavailable,
        }
    }

    /// The name and the socket that has it, for the next program of an upgrade.
    pub(super) fn into_parts(self) -> (String, OwnedFd) {
        (self.name, self._socket)
    }

    /// Goes on with a claim that the program before has made.
    pub(super) fn from_parts(name: String, socket: OwnedFd) -> Self {
        Self {
            name,
            _socket: socket,
        }
    }

    /// Whether this is the claim on that directory.
    pub(super) fn is_on(&self, dir: &Path) -> bool {
        name_of(dir).is_ok_and(|name| name == self.name)
    }

    fn bind(name: String) -> Claimed {
        let bound = SocketAddrUnix::new_abstract_name(name.as_bytes()).and_then(|address| {
            let flags = SocketFlags::CLOEXEC;
            // Nothing can connect to it or send it anything: it is not listening.
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&socket, &address).map(|()| socket)
        });
        match bound {
            Ok(socket) => Claimed::Ours(Self {
                name,
                _socket: socket,
            }),
            Err(Errno::ADDRINUSE) => match holder(&name, rustix::process::geteuid().as_raw()) {
                Some(pid) => Claimed::Taken(pid),
                None => Claimed::Foreign,
            },
            Err(_) => Claimed::Unavailable,
        }
    }
}

fn name_of(dir: &Path) -> io::Result<String> {
    let path = dir.canonicalize()?;
    let namespace = fs::read_link("/proc/self/ns/mnt")?;
    let mut hasher = Sha256::new();
    hasher.update(namespace.as_os_str().as_bytes());
    hasher.update([0]);
    hasher.update(path.as_os_str().as_bytes());
    let euid = rustix::process::geteuid().as_raw();
    let mut name = format!("supervisor-rs/{euid}/");
    for byte in &hasher.finalize()[..HASH_LEN] {
        name.push_str(&format!("{byte:02x}"));
    }
    Ok(name)
}

/// The process of a user that has the name: `proc(5)` tells the socket's inode, and each
/// process its descriptors.
fn holder(name: &str, uid: u32) -> Option<i32> {
    let sockets = fs::read("/proc/net/unix").ok()?;
    let sockets = String::from_utf8_lossy(&sockets);
    let inodes: BTreeSet<&str> = sockets
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(6);
            let inode = fields.next()?;
            (fields.next()?.strip_prefix('@')? == name).then_some(inode)
        })
        .collect();
    // A name may have line feeds in it, so that a stranger can write lines of his own; he cannot
    // take one away.
    let [inode] = *Vec::from_iter(inodes) else {
        return None;
    };
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let is_theirs = entry.metadata().ok()?.uid() == uid;
        let mut descriptors = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        // Also who has made it: a stranger may start a program of ours that keeps his descriptors
        // open (`su` and others that are set-uid), or send them to one that takes them.
        let has = |descriptor: fs::DirEntry| {
            let path = descriptor.path();
            let is_it = fs::read_link(&path).is_ok_and(|to| to.as_os_str() == link.as_str());
            is_it && fs::metadata(&path).is_ok_and(|socket| socket.uid() == uid)
        };
        (is_theirs && descriptors.any(has)).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    #[test]
    fn a_claim_holds_although_its_directory_is_deleted_and_made_again() {
        let temp = samples::own_dir();
        let dir = temp.path().join("state");
        fs::create_dir(&dir).unwrap();
        let Claimed::Ours(claim) = Claim::make(&dir) else {
            panic!("nobody else knows this directory");
        };
        fs::remove_dir(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        assert!(claim.is_on(&dir));
        // Another test that forks just now has a copy of the descriptor for a moment.
        assert!(matches!(Claim::make(&dir), Claimed::Taken(_)));
        assert!(!claim.is_on(temp.path()));
        drop(claim);
    }

    #[test]
    fn two_names_of_one_directory_are_one_claim_and_two_directories_are_two() {
        let temp = samples::own_dir();
        let (dir, alias) = (temp.path().join("state"), temp.path().join("alias"));
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(&dir, &alias).unwrap();
        let first = Claim::make(&dir);
        assert!(matches!(first, Claimed::Ours(_)));
        assert!(matches!(Claim::make(&alias), Claimed::Taken(_)));
        assert!(matches!(Claim::make(temp.path()), Claimed::Ours(_)));
    }

    #[test]
    fn a_name_that_no_process_of_the_user_has_bound_does_not_count() {
        let temp = samples::own_dir();
        let Claimed::Ours(claim) = Claim::make(temp.path()) else {
            panic!("nobody else knows this directory");
        };
        let euid = rustix::process::geteuid().as_raw();
        assert!(holder(&claim.name, euid).is_some());
        assert_eq!(holder(&claim.name, euid + 1), None);
        assert_eq!(holder("supervisor-rs/nobody", euid), None);
    }

    fn bound(name: &[u8]) -> OwnedFd {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new_abstract_name(name).unwrap()).unwrap();
        socket
    }

    #[test]
    fn a_name_that_says_whose_another_one_is_is_not_believed() {
        let temp = samples::own_dir();
        let Claimed::Ours(claim) = Claim::make(temp.path()) else {
            panic!("nobody else knows this directory");
        };
        let any = bound(format!("{}/any", claim.name).as_bytes());
        let inode = rustix::fs::fstat(&any).unwrap().st_ino;
        let forged = format!("\n0: 2 0 0 1 1 {inode} @{}", claim.name);
        assert!(matches!(Claim::make(temp.path()), Claimed::Taken(_)));
        let _forged = bound(forged.as_bytes());
        assert!(matches!(Claim::make(temp.path()), Claimed::Foreign));
    }

    #[test]
    fn names_that_are_no_text_are_passed_over() {
        let temp = samples::own_dir();
        let Claimed::Ours(claim) = Claim::make(temp.path()) else {
            panic!("nobody else knows this directory");
        };
        let _odd = bound(&[claim.name.as_bytes(), &[0xff]].concat());
        assert!(matches!(Claim::make(temp.path()), Claimed::Taken(_)));
    }

    #[test]
    fn a_strangers_socket_does_not_count_though_a_process_of_the_user_has_it_open() {
        if !rustix::process::geteuid().is_root() {
            return samples::skip("giving a socket to another user needs root");
        }
        let temp = samples::own_dir();
        let Claimed::Ours(claim) = Claim::make(temp.path()) else {
            panic!("nobody else knows this directory");
        };
        // As `su` has it that a stranger has started with it.
        let stranger = rustix::process::Uid::from_raw(12345);
        rustix::fs::fchown(&claim._socket, Some(stranger), None).unwrap();
        assert!(matches!(Claim::make(temp.path()), Claimed::Foreign));
    }
}
