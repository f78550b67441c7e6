//! Both command lines: words in, checked values out.
//!
//! Two stages: the words are recorded as they were typed, then resolved by pure functions into
//! something that cannot be wrong. What cannot be resolved is a usage error (exit code 2) that
//! shows the nearest right form.
//!
//! Absent on purpose: doing anything; what the environment and the terminal are is handed in.

mod client;
mod console;
mod server;

use std::ffi::OsString;

pub use self::{
    client::{Ask, ClientTask, Forget, Keygen, Output, ProofArgs, UsageError, client_args},
    console::{Streams, Surroundings, carry_out, perform},
    server::{CONFIG_DEFAULT, ServerArgs, ServerTask, server_args},
};
use crate::control::render::Style;
pub use crate::telemetry::LogFormat;

/// The exit code of a wrong command line.
pub const USAGE: u8 = 2;

/// What the environment says that matters to a command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `SUPERVISOR_RS_ON`: hosts to ask when none are given.
    pub on: Option<OsString>,
    /// `SUPERVISOR_RS_KEY`: the key to sign with when none is given.
    pub key: Option<OsString>,
    /// `NO_COLOR`.
    pub no_color: Option<OsString>,
    /// `TERM`.
    pub term: Option<OsString>,
}

impl Environment {
    /// The environment of this process. A variable that is empty counts as not set.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            on: variable("SUPERVISOR_RS_ON"),
            key: variable("SUPERVISOR_RS_KEY"),
            no_color: variable("NO_COLOR"),
            term: variable("TERM"),
        }
    }

    /// How text looks on a stream.
    #[must_use]
    pub fn style(&self, stream: Stream) -> Style {
        let dumb = self.term.as_deref().is_some_and(|term| term == "dumb");
        match stream {
            Stream::Terminal if self.no_color.is_none() && !dumb => Style::Colour,
            Stream::Terminal | Stream::Other => Style::Plain,
        }
    }
}

/// What a stream is connected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A terminal.
    Terminal,
    /// A file, a pipe, anything else.
    Other,
}

impl Stream {
    /// What this stream of the process is.
    #[must_use]
    pub fn of(stream: &impl std::io::IsTerminal) -> Self {
        match stream.is_terminal() {
            true => Self::Terminal,
            false => Self::Other,
        }
    }
}

/// How the program's own log is written, to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogArgs {
    /// What is logged, as in `RUST_LOG`, which it overrides.
    pub filter: Option<String>,
    /// In which form.
    pub format: LogFormat,
}

/// The end of a program before it did anything: help, a version or a usage error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Early {
    /// What is to be printed, with its last line feed.
    pub text: String,
    /// To standard output when asked for, else to standard error.
    pub to: Place,
    /// The exit code.
    pub code: u8,
}

/// One of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Early {
    /// Prints the text; a stream that takes nothing is no reason to fail otherwise.
    #[must_use]
    pub fn finish(&self) -> std::process::ExitCode {
        use std::io::Write;
        let _ = match self.to {
            Place::Out => std::io::stdout().write_all(self.text.as_bytes()),
            Place::Err => std::io::stderr().write_all(self.text.as_bytes()),
        };
        self.code.into()
    }
}

impl From<clap::Error> for Early {
    fn from(mut fault: clap::Error) -> Self {
        // The advice to write an unknown option after `--`: no word of ours begins with `-`.
        fault.remove(clap::error::ContextKind::Suggested);
        let wrong = fault.use_stderr();
        Self {
            text: fault.render().to_string(),
            to: if wrong { Place::Err } else { Place::Out },
            code: if wrong { USAGE } else { 0 },
        }
    }
}

/// How wide help is at most, in columns.
const HELP_COLUMNS_MAX: usize = 100;

#[cfg(test)]
mod tests;
