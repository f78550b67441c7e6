//! One socket's user by the table of all, `/proc/net/tcp` and `tcp6`, where there is no sock_diag.
//!
//! Source: proc_net(5); Linux, net/ipv4/tcp_ipv4.c and net/ipv6/tcp_ipv6.c.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
};

use super::{Ends, Holder, Socket, canonical};

/// The table of IPv4 sockets.
pub(super) const TCP: &str = "/proc/net/tcp";
/// The table of IPv6 sockets, also of those that speak with IPv4 ones.
const TCP6: &str = "/proc/net/tcp6";

/// The most of a table that is read, in bytes: about 100,000 sockets.
const TABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The most of a line that is looked at, in bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// Who holds the peer's socket. What cannot be found out is held by nobody.
pub(super) fn holder(ends: &Ends) -> Holder {
    let tables: &[&str] = match ends.peer {
        SocketAddr::V4(_) => &[TCP, TCP6],
        SocketAddr::V6(_) => &[TCP6],
    };
    for table in tables {
        let Ok(file) = File::open(table) else {
            continue;
        };
        match search(BufReader::new(file), ends) {
            Holder::Missing => {}
            found @ (Holder::User(_) | Holder::Nobody) => return found,
        }
    }
    Holder::Missing
}

/// Looks for the socket in a table. A table is not of one moment: the socket may stand there
/// twice, as it was and as it is.
fn search(table: impl BufRead, ends: &Ends) -> Holder {
    let mut table = table.take(TABLE_BYTES_MAX);
    let mut found = Holder::Missing;
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut table)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => return found,
            Ok(_) => {}
            Err(_) => return Holder::Nobody,
        }
        let socket = std::str::from_utf8(&line).ok().and_then(socket);
        match socket.map_or(Holder::Missing, |socket| socket.holder(ends)) {
            Holder::Missing => {}
            Holder::Nobody => found = Holder::Nobody,
            user @ Holder::User(_) => return user,
        }
    }
}

/// A line of a table; `None` for its head, and for what is none.
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let own = address(fields.nth(1)?)?;
    let other = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket {
        state,
        own,
        other,
        uid,
        inode,
    })
}

/// `0100007F:1F90`: words of 32 bits as numbers of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match address.len() {
        8 => word(address)?.into(),
        32 => {
            let mut octets = [0; 16];
            for (index, octets) in octets.chunks_mut(4).enumerate() {
                octets.copy_from_slice(&word(address.get(index * 8..index * 8 + 8)?)?);
            }
            octets.into()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests;
