//! The client's side of the control protocol: several servers asked at once.
//!
//! A thread a host and blocking sockets, so that a short command starts and ends quickly. Answers
//! are handed on in the order the hosts were given, each as soon as all before it are there.
//! Every wait has a bound, so a dead host costs the others nothing but their place in the order,
//! and that for no longer than the bounds below.
//!
//! A server is not trusted: its lines are bounded, read leniently, and shown only after `render`
//! has made them harmless; it is signed for only after `proof` has looked at it.
//!
//! Reading order: this file, `conversation` (hello, request, answer), [`proof`] (who is told a
//! command, and how it is signed), [`known_servers`], [`ssh`].
//!
//! Absent on purpose: a line of text for people (`render`), and the command line (`cli`).

mod conversation;
pub mod known_servers;
pub mod proof;
pub mod ssh;
mod stream;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    ops::ControlFlow,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use serde_json::value::RawValue;
use tracing::debug;

use self::{conversation::Conversation, proof::Proof, ssh::Ssh, stream::Stream};
use super::{
    alive::keep_alive,
    host::{Host, PORT, TcpHost, known_as_address},
    protocol::{Fields, Refusal},
};
use crate::command::{Command, ErrorCode, Failure};

/// The most hosts of one command.
pub const HOSTS_MAX: usize = 1_024;

/// How long a name may take to be looked up.
pub const RESOLVE_TIME_MAX: Duration = Duration::from_secs(5);

/// How long connecting to one address may take.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// How many addresses of a name are tried, one after the other.
pub const ADDRESSES_MAX: usize = 3;

/// How long a server may take to greet.
pub const HELLO_TIME_MAX: Duration = Duration::from_secs(5);

/// How long ssh may take to connect, as its `ConnectTimeout`; whole seconds.
pub const SSH_CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a server behind ssh may take to greet: ssh logs in first.
pub const SSH_HELLO_TIME_MAX: Duration = Duration::from_secs(30);

/// The same where ssh may ask somebody for a password.
pub const SSH_PROMPT_TIME_MAX: Duration = Duration::from_secs(120);

/// How long `check` and `info` may take, and how much longer than its own time a `wait`.
pub const LOOK_TIME_MAX: Duration = Duration::from_secs(30);

/// How long any other command may take: it waits for hooks and for processes to end.
pub const ACT_TIME_MAX: Duration = Duration::from_secs(600);

/// How long an answer may be, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much of what hosts stream waits to be printed.
const HEARD_WAITING_MAX: usize = 256;

/// What a thread that asks one host may use of the stack.
const STACK_BYTES: usize = 1024 * 1024;

/// How long the client waits for what. The defaults are this module's constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// [`RESOLVE_TIME_MAX`].
    pub resolve: Duration,
    /// [`CONNECT_TIME_MAX`].
    pub connect: Duration,
    /// [`HELLO_TIME_MAX`].
    pub hello: Duration,
    /// [`SSH_CONNECT_TIME_MAX`].
    pub ssh_connect: Duration,
    /// [`SSH_HELLO_TIME_MAX`].
    pub ssh_hello: Duration,
    /// [`SSH_PROMPT_TIME_MAX`].
    pub ssh_prompt: Duration,
    /// [`LOOK_TIME_MAX`].
    pub look: Duration,
    /// [`ACT_TIME_MAX`].
    pub act: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            resolve: RESOLVE_TIME_MAX,
            connect: CONNECT_TIME_MAX,
            hello: HELLO_TIME_MAX,
            ssh_connect: SSH_CONNECT_TIME_MAX,
            ssh_hello: SSH_HELLO_TIME_MAX,
            ssh_prompt: SSH_PROMPT_TIME_MAX,
            look: LOOK_TIME_MAX,
            act: ACT_TIME_MAX,
        }
    }
}

/// How servers are asked.
#[derive(Debug, Default)]
pub struct Manner {
    /// For how long.
    pub waits: Waits,
    /// With which key, and which servers.
    pub proof: Proof,
    /// Those behind ssh.
    pub ssh: Ssh,
    /// How long is waited, after a command that has started a run, until that is ready; `None` is
    /// not at all.
    pub ready_within: Option<Duration>,
}

/// Unsigned, and with the system's ssh.
impl From<Waits> for Manner {
    fn from(waits: Waits) -> Self {
        Self {
            waits,
            ..Self::default()
        }
    }
}

impl Manner {
    /// Several that ask at one terminal would take each other's answers.
    fn for_hosts(mut self, hosts: &[Host]) -> Self {
        let is_ssh = |host: &&Host| match host {
            Host::Ssh(_) => true,
            Host::ThisHost | Host::Tcp(_) => false,
        };
        if hosts.iter().filter(is_ssh).count() > 1 {
            self.ssh.prompts = ssh::Prompts::Never;
        }
        self
    }
}

/// What came of asking one host.
#[derive(Debug)]
pub struct HostAnswer {
    /// The host as it was given; without one, the address that was asked.
    pub host: String,
    /// The server's `ok` object, or a refusal: the server's or this client's own.
    pub outcome: Result<Fields, Refusal>,
}

/// Part of what a host streams before its answer.
#[derive(Debug)]
pub struct HostEvent {
    /// The host as it was given; without one, the address that was asked.
    pub host: String,
    /// The `event` object as it came.
    pub event: Box<RawValue>,
}

/// What is heard of a host.
#[derive(Debug)]
pub enum Heard {
    /// Part of a stream, as soon as it comes.
    Event(HostEvent),
    /// The answer, in the order of the hosts, and what a person should be warned of, which is no
    /// part of it.
    Answer(HostAnswer, Vec<String>),
}

/// Asks all hosts at once and hands on what they stream as it comes, and each answer in the order of
/// `hosts`, until all have answered or nobody wants to hear more.
pub fn ask_all(
    hosts: &[Host],
    command: &Command,
    manner: impl Into<Manner>,
    mut each: impl FnMut(Heard) -> ControlFlow<()>,
) {
    let command = Arc::new(command.clone());
    let manner = Arc::new(manner.into().for_hosts(hosts));
    // Whoever prints slowly has the servers wait, and not this memory grow.
    let (heard_in, heard) = mpsc::sync_channel(HEARD_WAITING_MAX);
    let mut early = BTreeMap::new();
    for (place, host) in hosts.iter().enumerate() {
        let (command, manner) = (Arc::clone(&command), Arc::clone(&manner));
        let (host, heard_in) = (host.clone(), heard_in.clone());
        let named = host.to_string();
        let thread = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut warnings = Vec::new();
                let event = |event| heard_in.send((place, Heard::Event(event))).is_ok();
                let answer = ask(&host, &command, &manner, &mut warnings, &event);
                // An error means that nobody wants to know any more.
                let _ = heard_in.send((place, Heard::Answer(answer, warnings)));
            });
        if let Err(fault) = thread {
            let message = format!("no thread to ask `{named}`: {fault}");
            let outcome = Err(failure(ErrorCode::Internal, message));
            let host = named;
            early.insert(place, (HostAnswer { host, outcome }, Vec::new()));
        }
    }
    drop(heard_in);
    let mut next = 0;
    loop {
        while let Some((answer, warnings)) = early.remove(&next) {
            next += 1;
            if each(Heard::Answer(answer, warnings)).is_break() {
                return;
            }
        }
        // Ends when every thread has answered; each does within its bounds, if it has any.
        match heard.recv() {
            Ok((place, Heard::Answer(answer, warnings))) => {
                early.insert(place, (answer, warnings));
            }
            Ok((_, event @ Heard::Event(_))) => {
                if each(event).is_break() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Asks one host. `event` takes what it streams, and says whether anybody wants to hear more.
fn ask(
    host: &Host,
    command: &Command,
    manner: &Manner,
    warnings: &mut Vec<String>,
    event: &dyn Fn(HostEvent) -> bool,
) -> HostAnswer {
    let (host, outcome) = match connect(host, manner) {
        Ok(Connected {
            stream,
            host,
            place,
        }) => {
            let conversation = Conversation::new(stream, &host, &place, manner);
            let outcome = conversation.run(command, warnings, event);
            (host, outcome)
        }
        Err(refusal) => (host.to_string(), Err(refusal)),
    };
    HostAnswer { host, outcome }
}

fn failure(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Failure::new(code, message).into()
}

/// A connection, and whom with.
struct Connected {
    stream: Stream,
    /// The host as it was given; without one, the address.
    host: String,
    /// What the server there is known as.
    place: String,
}

fn connect(host: &Host, manner: &Manner) -> Result<Connected, Refusal> {
    match host {
        Host::ThisHost => {
            let addresses = vec![
                SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)),
            ];
            let (stream, address) = connect_to_one(host, addresses, manner.waits)?;
            Ok(Connected {
                stream: Stream::Tcp(stream),
                host: address.ip().to_string(),
                place: known_as_address(address),
            })
        }
        Host::Tcp(tcp) => {
            let addresses = resolve(tcp, manner.waits.resolve)?;
            let (stream, _) = connect_to_one(host, addresses, manner.waits)?;
            Ok(Connected {
                stream: Stream::Tcp(stream),
                host: tcp.text.clone(),
                place: tcp.known_as(),
            })
        }
        Host::Ssh(behind) => Ok(Connected {
            stream: Stream::Ssh(manner.ssh.connect(behind, manner.waits)?),
            host: behind.text.clone(),
            place: behind.known_as(),
        }),
    }
}

/// Connects with the first address that takes the connection.
fn connect_to_one(
    host: &Host,
    addresses: Vec<SocketAddr>,
    waits: Waits,
) -> Result<(TcpStream, SocketAddr), Refusal> {
    let mut faults = Vec::new();
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        match connect_to(address, waits.connect) {
            Ok(stream) => {
                debug!(%host, %address, "connected");
                return Ok((stream, address));
            }
            Err(fault) => faults.push(format!("{address}: {fault}")),
        }
    }
    let message = format!(
        "cannot connect to `{host}`: {}\nhint: does supervisor-rs-server run there, and on that port?",
        faults.join("; ")
    );
    Err(failure(ErrorCode::Unreachable, message))
}

fn connect_to(address: SocketAddr, time: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, time)?;
    // Where nobody listens, a socket that happens to be given the very port it asks for is
    // connected with itself (the usual port is one of those the system gives).
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}

fn resolve(host: &TcpHost, time: Duration) -> Result<Vec<SocketAddr>, Refusal> {
    if let Ok(address) = host.name.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, host.port)]);
    }
    let (found_in, found) = mpsc::channel();
    let (name, port) = (host.name.clone(), host.port);
    // The system's look-up knows no bound; a thread that is too late is left behind.
    let look_up = move || {
        let addresses = (name.as_str(), port).to_socket_addrs();
        let _ = found_in.send(addresses.map(Iterator::collect::<Vec<_>>));
    };
    let thread = thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(look_up);
    let found = match thread {
        Ok(_) => found.recv_timeout(time),
        Err(fault) => Ok(Err(fault)),
    };
    match found {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err(failure(
            ErrorCode::Unreachable,
            format!("`{}` has no address", host.name),
        )),
        Ok(Err(fault)) => Err(failure(
            ErrorCode::Unreachable,
            format!("cannot look `{}` up: {fault}", host.name),
        )),
        Err(_) => Err(failure(
            ErrorCode::Unreachable,
            format!("cannot look `{}` up within {time:?}", host.name),
        )),
    }
}

#[cfg(test)]
mod tests;
