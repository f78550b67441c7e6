//! The client's side of the control protocol: several servers asked at once.
//!
//! A thread a host and blocking sockets, so that a short command starts and ends quickly. Answers
//! are handed on in the order the hosts were given, each as soon as all before it are there.
//! Every wait has a bound, so a dead host costs the others nothing but their place in the order,
//! and that for no longer than the bounds below.
//!
//! A server is not trusted: its lines are bounded, read leniently, and shown only after `render`
//! has made them harmless.
//!
//! Absent on purpose: keys and ssh, which come with signed commands.

mod conversation;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tracing::debug;

use self::conversation::Conversation;
use super::{
    host::{Host, PORT, TcpHost},
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

/// How long `check` and `info` may take.
pub const LOOK_TIME_MAX: Duration = Duration::from_secs(30);

/// How long any other command may take: it waits for hooks and for processes to end.
pub const ACT_TIME_MAX: Duration = Duration::from_secs(600);

/// How long an answer may be, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

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
            look: LOOK_TIME_MAX,
            act: ACT_TIME_MAX,
        }
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

/// Asks all hosts at once and hands each answer on in the order of `hosts`.
pub fn ask_all(hosts: &[Host], command: &Command, waits: Waits, mut each: impl FnMut(HostAnswer)) {
    let command = Arc::new(command.clone());
    let (answers_in, answers) = mpsc::channel();
    for (place, host) in hosts.iter().enumerate() {
        let (host, command, answers_in) = (host.clone(), Arc::clone(&command), answers_in.clone());
        let named = host.to_string();
        let failed_in = answers_in.clone();
        let thread = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // An error means that nobody wants to know any more.
                let _ = answers_in.send((place, ask(&host, &command, waits)));
            });
        if let Err(fault) = thread {
            let message = format!("no thread to ask `{named}`: {fault}");
            let outcome = Err(Failure::new(ErrorCode::Internal, message).into());
            let host = named;
            let _ = failed_in.send((place, HostAnswer { host, outcome }));
        }
    }
    drop(answers_in);
    let mut early = BTreeMap::new();
    let mut next = 0;
    // Ends when every thread has answered; each does within its bounds.
    for (place, answer) in answers {
        early.insert(place, answer);
        while let Some(answer) = early.remove(&next) {
            next += 1;
            each(answer);
        }
    }
}

/// Asks one host.
fn ask(host: &Host, command: &Command, waits: Waits) -> HostAnswer {
    let mut name = host.to_string();
    let outcome = connect(host, waits).and_then(|(stream, address)| {
        debug!(%host, %address, "connected");
        if *host == Host::ThisHost {
            name = address.ip().to_string();
        }
        Conversation::new(stream, host).run(command, waits)
    });
    HostAnswer {
        host: name,
        outcome,
    }
}

fn failure(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Failure::new(code, message).into()
}

fn connect(host: &Host, waits: Waits) -> Result<(TcpStream, SocketAddr), Refusal> {
    let addresses = match host {
        Host::ThisHost => vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)),
        ],
        Host::Tcp(tcp) => resolve(tcp, waits.resolve)?,
        Host::Ssh(_) => {
            let message = "`ssh://` hosts are not supported by this version";
            return Err(failure(ErrorCode::BadRequest, message));
        }
    };
    let mut faults = Vec::new();
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        match connect_to(address, waits.connect) {
            Ok(stream) => return Ok((stream, address)),
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

/// Lets the system find out that a host died while its answer is waited for. Without it the wait
/// is longer, no more, so faults are passed over.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true);
    #[cfg(target_os = "linux")]
    {
        const QUIET: Duration = Duration::from_secs(15);
        const BETWEEN: Duration = Duration::from_secs(5);
        const PROBES: u32 = 3;
        let _ = sockopt::set_tcp_keepidle(stream, QUIET);
        let _ = sockopt::set_tcp_keepintvl(stream, BETWEEN);
        let _ = sockopt::set_tcp_keepcnt(stream, PROBES);
    }
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
