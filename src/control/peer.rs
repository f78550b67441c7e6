//! Whose socket the other end of a connection is: a user of this host, or another host.
//!
//! The kernel is asked for the socket that mirrors ours, with both addresses and both ports
//! (`diag`, or where that is not to be had `table`), when the connection is taken in and before
//! anything is read from it. What it says is believed only if
//!
//! - it is about that very socket, and the socket is connected: not one that listens on the
//!   peer's port, nor one that is only trying to connect with the same ports;
//! - a process holds it. An orphan, closed by its process, and one in TIME-WAIT are reported as
//!   root's. They have no inode;
//! - our end is still connected after the kernel was asked. Were it not, the peer's addresses and
//!   ports could be somebody else's by then;
//! - the user's number is not the one that stands for all users that our user namespace has no
//!   number for (`/proc/sys/kernel/overflowuid`, 65534, which mostly is `nobody`'s too), unless
//!   it has a number for everyone (user_namespaces(7)).
//!
//! Whatever of this host is left is [`Origin::UnknownUser`], and so is who comes from this host
//! under an address other than the one it connects to: that is nobody's habit, and must pass
//! neither for another host nor, be it a proxy that shows its client's address, for its user.
//! A peer in another network namespace is another host, whatever machine it is on.
//!
//! The user is that of the process that made the socket (`fsuid`). A proxy, a forwarded port of
//! ssh's or a program with the set-user-id bit is thus who it runs as and not who uses it.
//!
//! Absent on purpose: who may command (`authority`).
//!
//! Sources: sock_diag(7), netlink(7), proc_net(5), tcp(7), user_namespaces(7); Linux,
//! net/ipv4/inet_diag.c.

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, task::spawn_blocking};

#[cfg(test)]
use crate::clock;

mod diag;
mod table;

use diag::Diag;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Origin {
    /// A process of this host; its user's number.
    User(u32),
    /// This host, but whose process it is cannot be told.
    UnknownUser,
    /// Another host.
    Remote,
}

/// The two ends of a connection, as the peer sees them. Addresses are canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
    /// The interface that a link-local address belongs to, else 0.
    interface: u32,
}

impl Ends {
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let interface = match peer {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(address) => address.scope_id(),
        };
        Self {
            peer: canonical(peer),
            local: canonical(local),
            interface,
        }
    }

    /// Whether the addresses alone say that both ends are on this host.
    fn are_here(&self) -> bool {
        is_loopback(self.peer.ip()) || self.peer.ip() == self.local.ip()
    }

    fn origin(&self, holder: Holder) -> Origin {
        match (holder, self.are_here()) {
            (Holder::User(uid), true) => Origin::User(uid),
            (Holder::User(_) | Holder::Nobody, false)
            | (Holder::Nobody | Holder::Missing, true) => Origin::UnknownUser,
            (Holder::Missing, false) => Origin::Remote,
        }
    }
}

/// Whether an address can only be that of a socket on this host.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// An address without what two spellings of one may differ in.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Who holds the socket at the peer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A process of this user.
    User(u32),
    /// There is one that nobody holds, or whose user cannot be told.
    Nobody,
    /// There is no such socket on this host.
    Missing,
}

/// The states in which a socket is connected and its process has not been told of an end:
/// ESTABLISHED, and FIN-WAIT-1 and -2 of who only reads any more (tcp_states.h).
const CONNECTED: [u8; 3] = [1, 4, 5];

/// A TCP socket of this host, as the kernel tells of it. Addresses are canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    state: u8,
    own: SocketAddr,
    other: SocketAddr,
    uid: u32,
    /// 0 when no process holds it.
    inode: u64,
}

impl Socket {
    fn is_peer_of(&self, ends: &Ends) -> bool {
        self.own == ends.peer && self.other == ends.local
    }

    /// Who holds it, if it is the one that is asked for.
    fn holder(&self, ends: &Ends) -> Holder {
        if !self.is_peer_of(ends) {
            return Holder::Missing;
        }
        match CONNECTED.contains(&self.state) && self.inode != 0 {
            true => Holder::User(self.uid),
            false => Holder::Nobody,
        }
    }
}

/// How the kernel is asked.
#[derive(Debug)]
enum Source {
    Diag(Diag),
    Table,
    /// Not at all, and why.
    None(String),
}

/// Tells users by their sockets.
#[derive(Debug)]
pub(super) struct Users {
    source: Source,
    /// The number that stands for users who have none; `None` when everyone has one.
    overflow: Option<u32>,
}

impl Users {
    /// Finds out how to ask; `listener` is a socket of ours that can be asked for as a trial.
    pub(super) fn new(listener: Option<SocketAddr>) -> Self {
        let diag = Diag::open().and_then(|mut diag| match listener {
            Some(listener) => diag.try_out(listener).map(|()| diag),
            None => Ok(diag),
        });
        let source = match diag {
            Ok(diag) => Source::Diag(diag),
            Err(fault) => match File::open(table::TCP) {
                Ok(_) => Source::Table,
                Err(also) => Source::None(format!("sock_diag: {fault}; {}: {also}", table::TCP)),
            },
        };
        Self {
            source,
            overflow: overflow_uid(),
        }
    }

    /// How users are told, for people.
    pub(super) fn told_by(&self) -> String {
        match &self.source {
            Source::Diag(_) => "sock_diag".to_owned(),
            Source::Table => table::TCP.to_owned(),
            Source::None(why) => format!("none: {why}"),
        }
    }

    /// Where an accepted connection comes from. Waits for nothing but, where the kernel can only
    /// be asked by its table, for that to be read.
    pub(super) async fn origin(&mut self, stream: &TcpStream, peer: SocketAddr) -> Origin {
        let Ok(local) = stream.local_addr() else {
            return Origin::UnknownUser;
        };
        let ends = Ends::new(peer, local);
        let holder = match &mut self.source {
            Source::Diag(diag) => diag.holder(&ends),
            // Reading the table is too much to do for whoever connects from anywhere.
            Source::Table if !ends.are_here() => Holder::Missing,
            Source::Table => spawn_blocking(move || table::holder(&ends))
                .await
                .unwrap_or(Holder::Nobody),
            Source::None(_) => Holder::Missing,
        };
        if stream.peer_addr().is_err() {
            return Origin::UnknownUser;
        }
        ends.origin(self.believed(holder))
    }

    fn believed(&self, holder: Holder) -> Holder {
        match holder {
            Holder::User(uid) if self.overflow == Some(uid) => Holder::Nobody,
            Holder::User(_) | Holder::Nobody | Holder::Missing => holder,
        }
    }
}

/// How the system's number for users without one is known when it cannot be read.
const OVERFLOW_UID: u32 = 65_534;

/// How many users there can be: the last number is none.
const USERS_MAX: u64 = u32::MAX as u64;

/// The most that is read of a small file under `/proc`.
const SMALL_BYTES_MAX: u64 = 64 * 1024;

/// The number that stands for users who have none in our user namespace, if there can be such.
fn overflow_uid() -> Option<u32> {
    let map = read_small("/proc/self/uid_map").unwrap_or_default();
    if maps_everyone(&map) {
        return None;
    }
    let text = read_small("/proc/sys/kernel/overflowuid");
    let uid = text.and_then(|text| text.trim().parse().ok());
    Some(uid.unwrap_or(OVERFLOW_UID))
}

/// Whether a `uid_map` gives every user a number.
fn maps_everyone(map: &str) -> bool {
    let count = |line: &str| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok();
    // Ranges do not overlap.
    map.lines().filter_map(count).sum::<u64>() >= USERS_MAX
}

fn read_small(path: &str) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(SMALL_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Waits until nobody holds the peer's socket. That of a test may be held by another test's child
/// for the moment between fork and exec.
#[cfg(test)]
pub(super) fn wait_until_nobody_holds(peer: SocketAddr, local: SocketAddr) {
    let deadline = clock::mono() + std::time::Duration::from_secs(20);
    while let Holder::User(_) = table::holder(&Ends::new(peer, local)) {
        assert!(clock::mono() < deadline, "somebody holds the socket");
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests;
