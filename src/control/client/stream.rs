//! A connection with a server, whatever carries it: bytes in and out, each within a time.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::ssh::Tunnel;

/// What carries a conversation.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Ssh(Tunnel),
}

impl Stream {
    /// As [`Read::read`]; `WouldBlock` or `TimedOut` when nothing came in this time, which is
    /// more than zero.
    pub(super) fn read(&mut self, into: &mut [u8], time: Duration) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.read(into)
            }
            Self::Ssh(tunnel) => {
                let stream = tunnel.stream();
                stream.set_read_timeout(Some(time))?;
                stream.read(into)
            }
        }
    }

    /// Writes all of it; each part that is taken may take this time.
    pub(super) fn send(&mut self, bytes: &[u8], time: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_write_timeout(Some(time))?;
                stream.write_all(bytes)
            }
            Self::Ssh(tunnel) => {
                let stream = tunnel.stream();
                stream.set_write_timeout(Some(time))?;
                stream.write_all(bytes)
            }
        }
    }
}
