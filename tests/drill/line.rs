//! A connection whose other end may be gone at any moment.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;
use supervisor_rs::{clock, spec::Mono};

use crate::clients::Shared;

/// How long a connection may take, and the hello.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The other end is gone.
#[derive(Debug)]
pub(crate) struct Gone;

/// A connection to the server that runs.
pub(crate) struct Line {
    stream: TcpStream,
    /// Which server it leads to.
    pub(crate) life: u64,
    /// What came and is no whole line yet.
    heard: Vec<u8>,
}

impl Line {
    /// Connects to the server that runs, if one does.
    pub(crate) fn open(shared: &Shared) -> Option<Self> {
        let server = shared.server()?;
        let (life, address) = server;
        let stream = TcpStream::connect_timeout(&address, CONNECT_MAX).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut line = Self {
            stream,
            life,
            heard: Vec::new(),
        };
        let hello = line.next(clock::mono() + CONNECT_MAX).ok()??;
        let is_same = shared.server() == Some(server);
        (is_same && hello["hello"].is_object()).then_some(line)
    }

    /// Sends.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), Gone> {
        self.stream.write_all(text.as_bytes()).map_err(|_| Gone)
    }

    /// The next line, as JSON; `None` when none has come by then.
    pub(crate) fn next(&mut self, until: Mono) -> Result<Option<Value>, Gone> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let rest = self.heard.split_off(end + 1);
                let line = std::mem::replace(&mut self.heard, rest);
                return Ok(Some(serde_json::from_slice(&line).expect("JSON")));
            }
            let left = until - clock::mono();
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(|_| Gone)?;
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Gone),
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(fault) => match fault.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(Gone),
                },
            }
        }
    }
}
