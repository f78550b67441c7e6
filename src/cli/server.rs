//! The server's command line.

use std::{ffi::OsString, path::PathBuf};

use clap::Parser;

use super::{Early, HELP_COLUMNS_MAX, LogArgs, LogFormat};
use crate::{audit::Hash, spec::ChildName};

/// The server file when none is named.
pub const CONFIG_DEFAULT: &str = "/tmp/server.yml";

/// What the server was started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerArgs {
    /// The server file, as it was given.
    pub config: PathBuf,
    /// What is to be done with it.
    pub task: ServerTask,
    /// How the log is written.
    pub log: LogArgs,
}

/// What a server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerTask {
    /// It supervises.
    Supervise {
        /// The child with which it ends.
        exit_with: Option<ChildName>,
    },
    /// It prints what is wrong with the server file and every child file and key, and ends.
    Check,
    /// It checks the audit trail of the server that has this server file, and ends.
    VerifyAudit {
        /// A hash that one of its lines must have.
        noted: Option<Hash>,
    },
    /// It says which state it can go on with, and ends: a server asks so before an upgrade.
    ReadsState,
}

const AFTER_HELP: &str = "\
Examples:
  supervisor-rs-server /etc/supervisor-rs/server.yml
  supervisor-rs-server --check /etc/supervisor-rs/server.yml
  supervisor-rs-server --verify-audit /etc/supervisor-rs/server.yml
  supervisor-rs-server --exit-with web /etc/supervisor-rs/server.yml

A first server.yml:
  loadpaths:
    - ./children
  mode: sync

Signals:
  TERM, INT  end; children run on unless `on_exit: stop`
  HUP        read the loadpaths again now
  USR2       replace the server by the program at its path; children run on

Exit codes:
  0  ended as asked, nothing wrong with --check, or --verify-audit found no break
  2  wrong command line
  6  bad configuration
  7  cannot listen, or its state is in use
  1  anything else
  that of the child, when --exit-with names one and it has ended

Environment:
  RUST_LOG   what is logged when --log is not given";

/// Supervises processes, each described by one YAML file in a watched directory.
#[derive(Debug, Parser)]
#[command(
    name = "supervisor-rs-server",
    version,
    max_term_width = HELP_COLUMNS_MAX,
    after_help = AFTER_HELP
)]
struct Flags {
    /// The server file
    #[arg(value_name = "SERVER.yml", default_value = CONFIG_DEFAULT)]
    config: PathBuf,

    /// Print what is wrong with the server file, every child file and every key, and end:
    /// nothing and code 0 when all is well
    #[arg(long)]
    check: bool,

    /// Check the audit trail of the server that has this server file, running or not, and end:
    /// its extent, its last hash and code 0 when it is whole, each break and code 1 when it is not
    #[arg(long, conflicts_with = "check")]
    verify_audit: bool,

    /// A hash noted earlier that --verify-audit must find: lines missing at the end show in no
    /// other way
    #[arg(long, value_name = "HASH", requires = "verify_audit")]
    audit_hash: Option<Hash>,

    /// Print which state this program can go on with, and end
    #[arg(long, hide = true, conflicts_with_all = ["check", "verify_audit"])]
    reads_state: bool,

    /// End as soon as this child has ended by itself for good, with its exit code (128 and the
    /// number of a signal that ended it), after stopping all others
    #[arg(long, value_name = "NAME", conflicts_with_all = ["check", "verify_audit"])]
    exit_with: Option<ChildName>,

    /// What is logged to standard error, such as `debug` or `warn,supervisor_rs::watch=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// The form of the log: `text` or `json`
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    #[arg(hide_possible_values = true)]
    log_format: LogFormat,
}

/// Reads the server's command line, the program's own name first.
///
/// # Errors
///
/// [`Early`] when help, the version or something impossible was asked for.
pub fn server_args(argv: impl IntoIterator<Item = OsString>) -> Result<ServerArgs, Early> {
    let flags = Flags::try_parse_from(argv)?;
    Ok(ServerArgs {
        config: flags.config,
        task: match (flags.check, flags.verify_audit) {
            _ if flags.reads_state => ServerTask::ReadsState,
            (true, _) => ServerTask::Check,
            (false, true) => ServerTask::VerifyAudit {
                noted: flags.audit_hash,
            },
            (false, false) => ServerTask::Supervise {
                exit_with: flags.exit_with,
            },
        },
        log: LogArgs {
            filter: flags.log,
            format: flags.log_format,
        },
    })
}
