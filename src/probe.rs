//! Probes over the network: whether something answers there, told once and within its time.
//!
//! A probe is a task that holds one socket. It is given up by its number, and nothing of it is heard
//! any more then. What was asked is kept until it is answered, so that another program of this
//! server can ask it again.
//!
//! Only addresses are connected to: looking up a name may take as long as it likes, and threads for
//! that are few.
//!
//! Absent on purpose: programs (`process`); TLS, for which there are programs; redirects.
//!
//! Source: RFC 9112 for the status line.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};

use crate::{reconcile::event::JobId, spec::Endpoint};

/// How many results may wait to be heard; more wait in their tasks.
const RESULTS_MAX: usize = 64;

/// The most bytes of an answer that are read for its first line.
const STATUS_LINE_BYTES_MAX: usize = 1_024;

/// What HTTP counts as good: success, and another place to look.
const GOOD: std::ops::RangeInclusive<u16> = 200..=399;

/// What is asked of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Does somebody take connections there?
    Tcp(Endpoint),
    /// Is a GET of this path answered well there?
    Http {
        /// Where.
        at: Endpoint,
        /// Which path.
        path: String,
    },
}

/// Questions without an answer, for the next program of an upgrade.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HandedProbes(BTreeMap<JobId, (Question, Duration)>);

/// All probes under way.
#[derive(Debug)]
pub struct Probes {
    asked: BTreeMap<JobId, (Question, Duration, AbortHandle)>,
    told: mpsc::Sender<(JobId, Result<(), String>)>,
    results: mpsc::Receiver<(JobId, Result<(), String>)>,
}

impl Default for Probes {
    fn default() -> Self {
        let (told, results) = mpsc::channel(RESULTS_MAX);
        Self {
            asked: BTreeMap::new(),
            told,
            results,
        }
    }
}

impl Probes {
    /// Asks; the result is told by [`Probes::next`] within `time`, unless it is given up. To be
    /// called within a tokio runtime.
    pub fn ask(&mut self, job: JobId, question: Question, time: Duration) {
        let told = self.told.clone();
        let asked = question.clone();
        let task = tokio::spawn(async move {
            let answer = timeout(time, answer(&asked)).await;
            let result = answer.unwrap_or_else(|_| {
                let time = humantime::format_duration(time);
                Err(format!("no answer within {time}"))
            });
            // The server that asked is gone otherwise.
            let _ = told.send((job, result)).await;
        });
        let before = self
            .asked
            .insert(job, (question, time, task.abort_handle()));
        debug_assert!(before.is_none(), "one question a number");
    }

    /// Nobody waits for it any more.
    pub fn give_up(&mut self, job: JobId) {
        if let Some((.., task)) = self.asked.remove(&job) {
            task.abort();
        }
    }

    /// The next result; pending while there is none. Can be given up without losing one.
    pub async fn next(&mut self) -> (JobId, Result<(), String>) {
        loop {
            match self.results.recv().await {
                Some((job, result)) if self.asked.remove(&job).is_some() => return (job, result),
                // It was given up when it had been told already.
                Some(_) => {}
                // Never: we hold a sender ourselves.
                None => std::future::pending().await,
            }
        }
    }

    /// Gives all of them up, to be asked again by the next program.
    #[must_use]
    pub fn hand_over(&mut self) -> HandedProbes {
        let asked = std::mem::take(&mut self.asked).into_iter();
        let asked = asked.map(|(job, (question, time, task))| {
            task.abort();
            (job, (question, time))
        });
        HandedProbes(asked.collect())
    }

    /// Asks again what the program before had no answer to. To be called within a tokio runtime.
    #[must_use]
    pub fn taken_over(handed: HandedProbes) -> Self {
        let mut probes = Self::default();
        for (job, (question, time)) in handed.0 {
            probes.ask(job, question, time);
        }
        probes
    }
}

async fn answer(question: &Question) -> Result<(), String> {
    match question {
        Question::Tcp(at) => connect(*at).await.map(drop),
        Question::Http { at, path } => {
            let stream = connect(*at).await?;
            let status = get(stream, *at, path).await?;
            match GOOD.contains(&status) {
                true => Ok(()),
                false => Err(format!("status {status}")),
            }
        }
    }
}

/// Connects to an address, or to this host by whichever of its two it listens on.
async fn connect(at: Endpoint) -> Result<TcpStream, String> {
    let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let one = at.host.map(|host| [host]);
    let hosts: &[IpAddr] = one.as_ref().map_or(&both, |one| one);
    let mut first = None;
    for host in hosts {
        match TcpStream::connect(SocketAddr::from((*host, at.port))).await {
            Ok(stream) => return Ok(stream),
            Err(error) => _ = first.get_or_insert(error),
        }
    }
    let why = first.map_or_else(|| "no address".to_owned(), |error| plain(&error));
    Err(why)
}

/// An error without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

/// The status of the answer to a GET.
async fn get(mut stream: TcpStream, at: Endpoint, path: &str) -> Result<u16, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: supervisor-rs\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| plain(&error))?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES_MAX {
        let read = stream.read_buf(&mut line).await;
        if read.map_err(|error| plain(&error))? == 0 {
            break;
        }
    }
    status(&line).ok_or_else(|| match line.is_empty() {
        true => "the connection was closed without an answer".to_owned(),
        false => "its answer is not HTTP".to_owned(),
    })
}

/// The status in the first line of an answer: `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.strip_prefix("HTTP/1.")?.split_ascii_whitespace();
    words.next()?;
    let status = words.next()?;
    let digits = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| status.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
