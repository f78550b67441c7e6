//! How it is known that a run can do its work: what it says itself, or probes, once until it is
//! ready and then for its health.

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
    /// What shows it.
    #[serde(rename = "probe")]
    pub sign: Sign,
    /// How long that may take since the run began; then it has failed.
    pub timeout: Duration,
    /// How long after a probe that failed the next one follows.
    pub interval: Duration,
}

/// What shows that a run is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Sign {
    /// A probe that is tried until it succeeds.
    Probe(Probe),
    /// Its own word, `READY=1`, as sd_notify(3) says it.
    Notify,
    /// A line that it writes to this descriptor, which it begins with.
    Fd(u8),
    /// A line of its output that is like this regular expression.
    Log(String),
}

/// How large a compiled regular expression may be, and how much may be kept while one is used, in
/// bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// A regular expression for lines of output, which need not be UTF-8. It is matched in time that
/// grows with the line alone, whatever the expression is.
///
/// # Errors
///
/// It is none, or would be too large.
pub fn log_pattern(text: &str) -> Result<regex::bytes::Regex, regex::Error> {
    regex::bytes::RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .build()
}

/// What shows that a run still does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Pulse {
    /// A probe that is tried over and over.
    Probe(Probe),
    /// Its own word, `WATCHDOG=1`, as sd_watchdog_enabled(3) has it.
    Watchdog,
}

/// A sign as it stands in records: those of older servers know probes alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    Tcp(Endpoint),
    Http { at: Endpoint, path: String },
    Exec(Vec<String>),
    Notify,
    Fd(u8),
    Log(String),
    Watchdog,
}

impl From<Probe> for Written {
    fn from(probe: Probe) -> Self {
        match probe {
            Probe::Tcp(at) => Self::Tcp(at),
            Probe::Http { at, path } => Self::Http { at, path },
            Probe::Exec(argv) => Self::Exec(argv),
        }
    }
}

impl From<Sign> for Written {
    fn from(sign: Sign) -> Self {
        match sign {
            Sign::Probe(probe) => probe.into(),
            Sign::Notify => Self::Notify,
            Sign::Fd(number) => Self::Fd(number),
            Sign::Log(pattern) => Self::Log(pattern),
        }
    }
}

impl From<Pulse> for Written {
    fn from(pulse: Pulse) -> Self {
        match pulse {
            Pulse::Probe(probe) => probe.into(),
            Pulse::Watchdog => Self::Watchdog,
        }
    }
}

impl TryFrom<Written> for Sign {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Ok(match written {
            Written::Tcp(at) => Self::Probe(Probe::Tcp(at)),
            Written::Http { at, path } => Self::Probe(Probe::Http { at, path }),
            Written::Exec(argv) => Self::Probe(Probe::Exec(argv)),
            Written::Notify => Self::Notify,
            Written::Fd(number) => Self::Fd(number),
            Written::Log(pattern) => Self::Log(pattern),
            Written::Watchdog => return Err("no sign that a run is ready"),
        })
    }
}

impl TryFrom<Written> for Pulse {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Ok(match written {
            Written::Tcp(at) => Self::Probe(Probe::Tcp(at)),
            Written::Http { at, path } => Self::Probe(Probe::Http { at, path }),
            Written::Exec(argv) => Self::Probe(Probe::Exec(argv)),
            Written::Watchdog => Self::Watchdog,
            Written::Notify | Written::Fd(_) | Written::Log(_) => {
                return Err("no sign of a run's health");
            }
        })
    }
}

impl fmt::Display for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(probe) => probe.fmt(f),
            Self::Watchdog => f.write_str("`WATCHDOG=1`"),
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(probe) => probe.fmt(f),
            Self::Notify => f.write_str("`READY=1`"),
            Self::Fd(number) => write!(f, "a line on descriptor {number}"),
            Self::Log(pattern) => write!(f, "a line of its output like `{pattern}`"),
        }
    }
}

/// What a run says of itself, as sd_notify(3) has it, or shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It can do its work: for the first time, or again after `Reloading`.
    Ready,
    /// It reads its configuration again.
    Reloading,
    /// It is about to end.
    Stopping,
    /// What it does, for people: one line of [`Word::STATUS_CHARS_MAX`] at most, nothing but text.
    Status(String),
    /// It has written a line to the descriptor that is there for it.
    Wrote,
    /// It has written the line to its output that is waited for.
    Logged,
    /// What it is at takes longer: it will say more within this time.
    Extend(Duration),
    /// It does its work.
    Alive,
    /// It has found out that it does not do its work.
    Ailing,
    /// From now on it says within this time that it does its work.
    Pace(Duration),
    /// Its main process is this one, as it says; `None` is what cannot be the number of a process.
    Main(Option<i32>),
}

impl Word {
    /// How much of a status is kept.
    pub const STATUS_CHARS_MAX: usize = 256;
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
    /// What shows it.
    #[serde(rename = "probe")]
    pub pulse: Pulse,
    /// How long after a probe the next one follows, or within which a word does.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_written_as_the_probe_that_it_was_before_there_were_others() {
        let host = Some("::1".parse().unwrap());
        let at = Endpoint { host, port: 80 };
        let path = "/x".to_owned();
        for probe in [
            Probe::Tcp(at),
            Probe::Http { at, path },
            Probe::Exec(vec!["x".to_owned(), "y".to_owned()]),
        ] {
            let text = serde_json::to_string(&probe).unwrap();
            let sign = Sign::Probe(probe);
            assert_eq!(serde_json::to_string(&sign).unwrap(), text);
            assert_eq!(serde_json::from_str::<Sign>(&text).unwrap(), sign);
            let mut bytes = Vec::new();
            ciborium::into_writer(&sign, &mut bytes).unwrap();
            let read: Sign = ciborium::from_reader(bytes.as_slice()).unwrap();
            assert_eq!(read, sign);
        }
        assert_eq!(serde_json::to_string(&Sign::Notify).unwrap(), "\"notify\"");
    }
}
