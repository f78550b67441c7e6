//! Connections whose other end has died without a word.
//!
//! Where an answer may take a day, the system has to find out: without this a wait for it is longer,
//! no more, so faults are passed over.
//!
//! Source: tcp(7).

use std::{os::fd::AsFd, time::Duration};

use rustix::net::sockopt;

const QUIET: Duration = Duration::from_secs(15);
const BETWEEN: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Has the system ask now and then whether the other end is there; if it is not, the connection
/// fails.
pub(super) fn keep_alive(stream: impl AsFd) {
    let _ = sockopt::set_socket_keepalive(&stream, true);
    #[cfg(target_os = "linux")]
    {
        let _ = sockopt::set_tcp_keepidle(&stream, QUIET);
        let _ = sockopt::set_tcp_keepintvl(&stream, BETWEEN);
        let _ = sockopt::set_tcp_keepcnt(&stream, PROBES);
    }
}
