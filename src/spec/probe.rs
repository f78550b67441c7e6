//! How it is known that a run can do its work: probes, once until it is ready and then for its
//! health.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What this host calls itself.
pub const THIS_HOST: &str = "localhost";

/// When a run counts as running and not as starting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What is tried until it succeeds.
    pub probe: Probe,
    /// How long that may take since the run began; then it has failed.
    pub timeout: Duration,
    /// How long after a probe that failed the next one follows.
    pub interval: Duration,
}

impl Ready {
    /// The time that a run has unless told otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(60);
    /// The pause between probes unless told otherwise.
    pub const INTERVAL: Duration = Duration::from_millis(500);
}

/// Whether a run that is ready still does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is tried over and over.
    pub probe: Probe,
    /// How long after a probe the next one follows.
    pub interval: Duration,
    /// How long a probe may take; then it has failed.
    pub timeout: Duration,
    /// How many in a row have to fail; at least 1.
    pub failures: u32,
}

impl Health {
    /// The pause between probes unless told otherwise.
    pub const INTERVAL: Duration = Duration::from_secs(10);
    /// The time of a probe unless told otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(5);
    /// How many have to fail unless told otherwise.
    pub const FAILURES: u32 = 3;
}

/// Something that succeeds when a run can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Connecting to this port.
    Tcp(Endpoint),
    /// A GET that is answered with a status from 200 to 399.
    Http {
        /// Where.
        at: Endpoint,
        /// What is asked for, query included; begins with `/`.
        path: String,
    },
    /// A program that ends with status 0; never empty.
    Exec(Vec<String>),
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp {at}"),
            Self::Http { at, path } => write!(f, "http://{at}{path}"),
            Self::Exec(argv) => write!(f, "exec {}", shell_words::join(argv)),
        }
    }
}

/// An address and a port to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Which host; `None` is this one, by whichever address it listens on.
    pub host: Option<IpAddr>,
    /// Its TCP port, never 0.
    pub port: u16,
}

/// `localhost:8080`, `[::1]:8080`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(host) => SocketAddr::from((host, self.port)).fmt(f),
            None => write!(f, "{THIS_HOST}:{}", self.port),
        }
    }
}
