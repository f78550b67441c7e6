//! One socket's user by sock_diag(7): one request with both addresses, one answer; no dump.
//!
//! The answer is there when the request was sent, so nothing is waited for. Bytes are read with
//! their bounds checked; an answer that is not from the kernel, or not to the last request, is
//! passed over.
//!
//! Sources: sock_diag(7), netlink(7), <linux/netlink.h>, <linux/inet_diag.h>.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto,
        netlink::{self, SocketAddrNetlink},
        recvfrom, sendto, socket_with,
    },
};

use super::{Ends, Holder, Socket, canonical};

/// `SOCK_DIAG_BY_FAMILY`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `NLMSG_ERROR`.
const NLMSG_ERROR: u16 = 2;
/// `INET_DIAG_NOCOOKIE`.
const INET_DIAG_NOCOOKIE: u32 = !0;
/// Every state.
const ANY_STATE: u32 = !0;
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;

/// The size of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// The size of `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;
/// The size of `struct inet_diag_msg`; attributes may follow.
const ANSWER_BYTES: usize = 72;

/// Room for an answer; the longest that comes without extensions has about 200 bytes.
const ROOM_BYTES: usize = 4 * 1024;

/// How many messages are looked at for the answer to one request.
const MESSAGES_MAX: usize = 8;

/// The loopback interface's number, in each network namespace.
const LOOPBACK_INTERFACE: u32 = 1;

/// The kernel, as far as it tells of sockets.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    /// The number of the last request.
    sequence: u32,
}

/// What the kernel said to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    This(Socket),
    /// An error of its own.
    Error(Errno),
}

impl Diag {
    /// # Errors
    ///
    /// There is no netlink here, or not for us.
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for a socket that listens, to see whether anything is told: that a socket does not
    /// exist and that the kernel cannot tell of any is one and the same error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn try_out(&mut self, listener: SocketAddr) -> Result<(), Errno> {
        let (address, nowhere): (IpAddr, IpAddr) = match listener.ip() {
            IpAddr::V4(address) if address.is_unspecified() => {
                (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into())
            }
            IpAddr::V4(address) => (address.into(), Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(address) if address.is_unspecified() => {
                (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into())
            }
            IpAddr::V6(address) => (address.into(), Ipv6Addr::UNSPECIFIED.into()),
        };
        let ends = Ends {
            peer: SocketAddr::new(address, listener.port()),
            local: SocketAddr::new(nowhere, 0),
            interface: Ends::new(listener, listener).interface,
        };
        match self.ask(&ends, ends.interface)? {
            Said::This(socket) if socket.state == LISTEN && socket.inode != 0 => Ok(()),
            Said::This(_) => Err(Errno::BADMSG),
            Said::Error(errno) => Err(errno),
        }
    }

    /// Who holds the peer's socket. What cannot be found out is held by nobody.
    pub(super) fn holder(&mut self, ends: &Ends) -> Holder {
        // A socket that is bound to an interface is found under that alone.
        for interface in [ends.interface, LOOPBACK_INTERFACE] {
            match self.ask(ends, interface) {
                Ok(Said::This(socket)) => match socket.holder(ends) {
                    Holder::Missing => {}
                    found @ (Holder::User(_) | Holder::Nobody) => return found,
                },
                Ok(Said::Error(Errno::NOENT)) => {}
                Ok(Said::Error(_)) | Err(_) => return Holder::Nobody,
            }
        }
        Holder::Missing
    }

    fn ask(&mut self, ends: &Ends, interface: u32) -> Result<Said, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(self.sequence, ends, interface);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &request, SendFlags::DONTWAIT, &kernel)?;
        let mut room = [0; ROOM_BYTES];
        for _ in 0..MESSAGES_MAX {
            let (_, count, from) = recvfrom(&self.socket, &mut room, RecvFlags::DONTWAIT)?;
            let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            let message = room.get(..count).ok_or(Errno::MSGSIZE)?;
            if let Some(said) = read(message, self.sequence)? {
                return Ok(said);
            }
        }
        Err(Errno::BADMSG)
    }
}

/// A request for the socket at the peer's end.
fn request(sequence: u32, ends: &Ends, interface: u32) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
    let family = match ends.peer {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let length = u32::try_from(bytes.len()).expect("72 is a `u32`");
    let family = u8::try_from(family.as_raw()).expect("both families are below 256");
    let protocol = u8::try_from(ipproto::TCP.as_raw().get()).expect("TCP is 6");
    let (source, destination) = (octets(ends.peer.ip()), octets(ends.local.ip()));
    let parts: [&[u8]; 14] = [
        &length.to_ne_bytes(),
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &NLM_F_REQUEST.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        // To the kernel; no extension and no padding after family and protocol.
        &0_u32.to_ne_bytes(),
        &[family, protocol, 0, 0],
        &ANY_STATE.to_ne_bytes(),
        &ends.peer.port().to_be_bytes(),
        &ends.local.port().to_be_bytes(),
        &source,
        &destination,
        &interface.to_ne_bytes(),
        &INET_DIAG_NOCOOKIE.to_ne_bytes(),
        &INET_DIAG_NOCOOKIE.to_ne_bytes(),
    ];
    let mut rest = &mut bytes[..];
    for part in parts {
        let (head, tail) = rest.split_at_mut(part.len());
        head.copy_from_slice(part);
        rest = tail;
    }
    bytes
}

/// An address as it stands in a request: network order, filled up with zeros.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Bytes of a message, by their places.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn at<const N: usize>(&self, place: usize) -> Result<[u8; N], Errno> {
        let bytes = self.0.get(place..place + N).ok_or(Errno::BADMSG)?;
        bytes.try_into().map_err(|_| Errno::BADMSG)
    }

    fn u16_at(&self, place: usize) -> Result<u16, Errno> {
        self.at(place).map(u16::from_ne_bytes)
    }

    fn u32_at(&self, place: usize) -> Result<u32, Errno> {
        self.at(place).map(u32::from_ne_bytes)
    }

    /// A `struct inet_diag_sockid`'s port and address.
    fn address_at(&self, family: u8, port: usize, address: usize) -> Result<SocketAddr, Errno> {
        let ip: IpAddr = match AddressFamily::from_raw(family.into()) {
            AddressFamily::INET => self.at::<4>(address)?.into(),
            AddressFamily::INET6 => self.at::<16>(address)?.into(),
            _ => return Err(Errno::AFNOSUPPORT),
        };
        let port = u16::from_be_bytes(self.at(port)?);
        Ok(canonical(SocketAddr::new(ip, port)))
    }
}

/// What a message says; `None` when it is not the answer to this request.
///
/// # Errors
///
/// `EBADMSG`: it is too short for what it says it is.
fn read(message: &[u8], sequence: u32) -> Result<Option<Said>, Errno> {
    let header = Bytes(message);
    let length = usize::try_from(header.u32_at(0)?).map_err(|_| Errno::BADMSG)?;
    if length < HEADER_BYTES {
        return Err(Errno::BADMSG);
    }
    let body = message.get(HEADER_BYTES..length).ok_or(Errno::BADMSG)?;
    if header.u32_at(8)? != sequence {
        return Ok(None);
    }
    let body = Bytes(body);
    match header.u16_at(4)? {
        NLMSG_ERROR => {
            let code = i32::from_ne_bytes(body.at(0)?);
            let errno = code.checked_neg().filter(|code| *code > 0);
            let errno = errno.map_or(Errno::BADMSG, Errno::from_raw_os_error);
            Ok(Some(Said::Error(errno)))
        }
        SOCK_DIAG_BY_FAMILY => {
            let body = Bytes(body.0.get(..ANSWER_BYTES).ok_or(Errno::BADMSG)?);
            let [family, state] = body.at(0)?;
            Ok(Some(Said::This(Socket {
                state,
                own: body.address_at(family, 4, 8)?,
                other: body.address_at(family, 6, 24)?,
                uid: body.u32_at(64)?,
                inode: body.u32_at(68)?.into(),
            })))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
