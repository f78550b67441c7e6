//! The client's command line: `COMMAND [NAME] [on HOST[,HOST…]]… [with KEY.pem]`.
//!
//! The words of this grammar may be in any case; names of children and hosts are as they are. A
//! command that ends the server (`kill`) takes no name, so that a slip cannot mean it.

mod command;
mod keygen;
mod sentence;
mod usage;

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;

use self::{
    command::{resolve_command, resolve_ready_within},
    keygen::resolve_keygen,
    sentence::{read_words, split_hosts},
    usage::KEYGEN,
};
pub use self::{keygen::Keygen, usage::UsageError};
use super::{Early, Environment, HELP_COLUMNS_MAX, LogArgs, LogFormat, Place, USAGE};
use crate::{
    command::Command,
    control::{
        client::{
            HOSTS_MAX,
            known_servers::ServerId,
            proof::{Downgrade, Strangers},
        },
        host::Host,
    },
};

/// A checked command line: what the client is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientTask {
    /// Give a command to servers.
    Ask {
        /// The command.
        ask: Ask,
        /// How it is given.
        proof: ProofArgs,
    },
    /// Make a pair of keys.
    Keygen(Keygen),
    /// Forget which servers were met.
    Forget(Forget),
}

impl ClientTask {
    /// How the client's own log is written.
    #[must_use]
    pub fn log(&self) -> &LogArgs {
        match self {
            Self::Ask { ask, .. } => &ask.log,
            Self::Keygen(keygen) => &keygen.log,
            Self::Forget(forget) => &forget.log,
        }
    }
}

/// How a command is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProofArgs {
    /// The key file it is signed with; unsigned without.
    pub key: Option<PathBuf>,
    /// The only server it is for.
    pub server_id: Option<ServerId>,
    /// What becomes of servers that were never met.
    pub strangers: Strangers,
    /// What becomes of servers that say they need no signature.
    pub downgrade: Downgrade,
}

/// Whom to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// The hosts, each known as something; never empty, none twice.
    pub hosts: Vec<Host>,
    /// How it is told.
    pub output: Output,
    /// How the client's own log is written.
    pub log: LogArgs,
}

/// A command, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// What is asked.
    pub command: Command,
    /// How long is waited until the run that it starts is ready; `None` is not at all.
    pub ready_within: Option<Duration>,
    /// Whom, in the order given; never empty, none twice.
    pub hosts: Vec<Host>,
    /// How the answers are printed.
    pub output: Output,
    /// How the client's own log is written.
    pub log: LogArgs,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

const USAGE_LINE: &str = "supervisor-rs-client COMMAND [NAME] [on HOST[,HOST…]]… [with KEY.pem]";

const COMMANDS_HELP: &str = "\
Commands (in any case):
  start NAME      start a child; releases it when it was stopped by order
  start all       release all children and start what the mode wants
  restart NAME    replace the run of a child that runs
  trystart NAME   restart it if it runs, else start it: for CI/CD
  stop NAME       stop a child, and keep it down until it is started by order
  stop all        stop every child
  check           the children with a live process; `check --all` shows the others too
  check NAME      everything known about one child
  why NAME        what ended its last run, what happens next and when
  wait NAME       until it is as `--for` says: running, ready or exited
  events [NAME]   what became of the children of late; with -f also what becomes of them
  info            the server itself
  kill            end the server; its children run on unless it is told otherwise
  upgrade         have the server replace itself by the program at its path; all goes on
  keygen NAME     make NAME.pem, which signs commands, and NAME.pub.pem for servers
  help            this text";

const AFTER_HELP: &str = "\
Hosts:
  An address or a name, with an optional port: 10.0.0.7, web1:33889, ::1, [::1]:33889.
  Several in one word are separated by commas or spaces, and `on` may be repeated. All are asked
  at once; the answers come in the order given. Without `on`: SUPERVISOR_RS_ON, else 127.0.0.1,
  then ::1. The port is 33889 unless given.
  ssh://[user@]host[:ssh-port][/[addr:]port] goes through the system's ssh, with its agent, keys
  and configuration; the server is asked at localhost:33889 there unless addr or port are given.

Keys:
  A server with `encrypt: on` takes signed commands only. NAME.pem signs; NAME.pub.pem goes into a
  directory of the server's pub_keys_path. Which server a signed command went to is written down
  in $XDG_STATE_HOME/supervisor-rs/known_servers, by default below ~/.local/state; another in its
  place is refused.

Examples:
  supervisor-rs-client check
  supervisor-rs-client restart web on host1,host2
  supervisor-rs-client stop all on \"host1 host2\" --json
  supervisor-rs-client check web on [::1]:4000 || echo 'not running'
  supervisor-rs-client keygen deploy
  supervisor-rs-client trystart web --wait on host1,host2 with ~/.keys/deploy.pem
  supervisor-rs-client wait migrate --for exited --timeout 5m
  supervisor-rs-client events -f --json on host1,host2
  supervisor-rs-client check on ssh://ops@host1

Exit codes (of several hosts, the largest):
  0  done
  1  not done: already_running not_running hook_failed spawn_failed not_ready superseded
     too_large shutting_down internal
  2  wrong command line, bad_request
  3  check NAME: known, but without a live process
  4  unauthorized forbidden protected_mode server_changed
  5  unknown_child
  6  invalid_config conflict hook_cycle
  7  unreachable timeout busy

Environment:
  SUPERVISOR_RS_ON   hosts to ask when `on` is not given
  SUPERVISOR_RS_KEY  the key to sign with when `with` is not given
  XDG_STATE_HOME     where known_servers is kept; ~/.local/state when not given
  NO_COLOR           no colours, whatever it is set to
  RUST_LOG           what the client logs when --log is not given";

/// Commands one or several servers of supervisor-rs.
#[derive(Debug, Default, Parser)]
#[command(
    name = "supervisor-rs-client",
    version,
    max_term_width = HELP_COLUMNS_MAX,
    override_usage = USAGE_LINE,
    help_template = "{about}\n\nUsage: {usage}\n\n{before-help}Options:\n{options}{after-help}",
    before_help = COMMANDS_HELP,
    after_help = AFTER_HELP
)]
struct Flags {
    #[arg(hide = true)]
    words: Vec<String>,

    /// Hosts to ask, as `on`; may be repeated
    #[arg(short, long, value_name = "HOST[,HOST…]")]
    on: Vec<String>,

    /// The private key to sign with, as `with`
    #[arg(short = 'k', long = "with", value_name = "KEY.pem")]
    with: Vec<PathBuf>,

    /// Send the command unsigned to a server that says `encrypt: off`, although there is a key
    #[arg(long)]
    allow_unsigned: bool,

    /// Ask only the server with this id, whatever known_servers says
    #[arg(long, value_name = "UUID")]
    server_id: Option<String>,

    /// Give signed commands only to servers that are known already
    #[arg(long)]
    strict: bool,

    /// Forget which server is known there, and ask none
    #[arg(long, value_name = "HOST[,HOST…]")]
    forget: Vec<String>,

    /// With `start` and `stop`: every child. With `check`: those without a live process too
    #[arg(short = 'A', long)]
    all: bool,

    /// `--all`, with `check`
    #[arg(short = 'a')]
    all_rows: bool,

    /// With `kill`: stop the children first
    #[arg(long)]
    stop_children: bool,

    /// With `start`, `restart` and `trystart`: until the new run is ready, or has failed
    #[arg(long)]
    wait: bool,

    /// With `wait`: `running`, `ready` or `exited`
    #[arg(long = "for", value_name = "STATE")]
    goal: Option<String>,

    /// With `wait` and `--wait`: for how long, such as `90s`; `60s` unless given
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,

    /// With `events`: go on with what happens from now on, until interrupted
    #[arg(short, long)]
    follow: bool,

    /// With `events`: of what has happened so many at most
    #[arg(long, value_name = "COUNT")]
    tail: Option<String>,

    /// With `keygen`: 2048, 3072 or 4096 (the default)
    #[arg(long, value_name = "BITS")]
    bits: Option<String>,

    /// Print one JSON object a line and host
    #[arg(long)]
    json: bool,

    /// What the client itself logs to standard error, such as `debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// The form of that log: `text` or `json`
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    #[arg(hide_possible_values = true)]
    log_format: LogFormat,
}

/// Reads the client's command line, the program's own name first.
///
/// # Errors
///
/// [`Early`] when help, the version or something impossible was asked for.
pub fn client_args(
    argv: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<ClientTask, Early> {
    let flags = Flags::try_parse_from(argv)?;
    let is_help = |word: &String| word.eq_ignore_ascii_case("help");
    if flags.words.first().is_some_and(is_help) {
        let help = <Flags as clap::CommandFactory>::command().render_help();
        return Err(Early {
            text: help.to_string(),
            to: Place::Out,
            code: 0,
        });
    }
    resolve(flags, environment).map_err(|fault| Early {
        text: format!(
            "error: {fault}\n\nUsage: {USAGE_LINE}\n\nFor more information, try '--help'.\n"
        ),
        to: Place::Err,
        code: USAGE,
    })
}

fn resolve(flags: Flags, environment: &Environment) -> Result<ClientTask, UsageError> {
    if !flags.forget.is_empty() {
        return resolve_forget(flags).map(ClientTask::Forget);
    }
    let mut sentence = read_words(&flags.words)?;
    for hosts in &flags.on {
        sentence.hosts.extend(split_hosts(hosts)?);
    }
    sentence.keys.extend_from_slice(&flags.with);
    if sentence.command.eq_ignore_ascii_case(KEYGEN) {
        return resolve_keygen(&sentence, flags).map(ClientTask::Keygen);
    }
    let command = resolve_command(&sentence, &flags)?;
    let ready_within = resolve_ready_within(&command, &flags)?;
    let mut words = sentence.hosts;
    if let (true, Some(default)) = (words.is_empty(), environment.on.as_deref()) {
        let text = default
            .to_str()
            .ok_or(UsageError::Environment("SUPERVISOR_RS_ON"))?;
        words = split_hosts(text)?;
    }
    let hosts = match words.is_empty() {
        true => vec![Host::ThisHost],
        false => resolve_hosts(words)?,
    };
    let proof = resolve_proof(
        &flags,
        &sentence.keys,
        environment.key.as_deref(),
        hosts.len(),
    )?;
    let ask = Ask {
        command,
        ready_within,
        hosts,
        output: flags.output(),
        log: flags.into_log(),
    };
    Ok(ClientTask::Ask { ask, proof })
}

impl Flags {
    /// Those given that only a command for servers takes.
    fn foreign(&self) -> Vec<&'static str> {
        let given = [
            ("--on", !self.on.is_empty()),
            ("--with", !self.with.is_empty()),
            ("--allow-unsigned", self.allow_unsigned),
            ("--server-id", self.server_id.is_some()),
            ("--strict", self.strict),
            ("--all", self.all || self.all_rows),
            ("--stop-children", self.stop_children),
            ("--wait", self.wait),
            ("--for", self.goal.is_some()),
            ("--timeout", self.timeout.is_some()),
            ("--follow", self.follow),
            ("--tail", self.tail.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag).collect()
    }

    fn output(&self) -> Output {
        match self.json {
            true => Output::Json,
            false => Output::Text,
        }
    }

    fn into_log(self) -> LogArgs {
        LogArgs {
            filter: self.log,
            format: self.log_format,
        }
    }
}

fn resolve_proof(
    flags: &Flags,
    keys: &[PathBuf],
    default: Option<&OsStr>,
    hosts: usize,
) -> Result<ProofArgs, UsageError> {
    let key = match keys {
        [] => default.map(PathBuf::from),
        [key] => Some(key.clone()),
        _ => return Err(UsageError::KeyTwice(keys.len())),
    };
    let server_id: Option<ServerId> = match &flags.server_id {
        Some(_) if hosts > 1 => return Err(UsageError::ServerIdOfMany(hosts)),
        Some(text) => Some(text.parse()?),
        None => None,
    };
    let strangers = match (flags.strict, &key) {
        (true, None) => return Err(UsageError::StrictUnsigned),
        (true, Some(_)) => Strangers::Refused,
        (false, _) => Strangers::Recorded,
    };
    let downgrade = match flags.allow_unsigned {
        true => Downgrade::Allowed,
        false => Downgrade::Refused,
    };
    Ok(ProofArgs {
        key,
        server_id,
        strangers,
        downgrade,
    })
}

fn resolve_forget(flags: Flags) -> Result<Forget, UsageError> {
    let is_more = !flags.words.is_empty() || flags.bits.is_some() || !flags.foreign().is_empty();
    if is_more {
        return Err(UsageError::ForgetAndCommand);
    }
    let mut words = Vec::new();
    for hosts in &flags.forget {
        words.extend(split_hosts(hosts).map_err(|_| UsageError::ForgetMissing)?);
    }
    Ok(Forget {
        hosts: resolve_hosts(words)?,
        output: flags.output(),
        log: flags.into_log(),
    })
}

fn resolve_hosts(words: Vec<String>) -> Result<Vec<Host>, UsageError> {
    if words.len() > HOSTS_MAX {
        return Err(UsageError::TooManyHosts(words.len()));
    }
    let mut hosts: Vec<Host> = Vec::with_capacity(words.len());
    for word in words {
        let host: Host = word.parse()?;
        // A command is given to a host once, however often the host is named.
        if !hosts.iter().any(|there| is_same(there, &host)) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// The same place, however it is written.
fn is_same(one: &Host, other: &Host) -> bool {
    one.known_as() == other.known_as()
}

#[cfg(test)]
mod tests;
