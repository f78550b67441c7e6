//! The client's command line: parse, call, exit code.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use supervisor_rs::{
    cli::{self, Environment, LogArgs, LogFormat, Stream},
    control::client::Waits,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let ask = match cli::client_args(std::env::args_os(), &environment) {
        Ok(ask) => ask,
        Err(early) => return early.finish(),
    };
    log(&ask.log);
    let (mut out, mut err) = (stdout(), stderr());
    let out_style = environment.style(Stream::of(&out));
    let err_style = environment.style(Stream::of(&err));
    let waits = Waits::default();
    cli::carry_out(&ask, waits, &mut out, out_style, &mut err, err_style).into()
}

/// Writes the log to standard error, if one is asked for: what the client has to say it says
/// without one.
fn log(log: &LogArgs) {
    let filter = match &log.filter {
        Some(filter) => EnvFilter::try_new(filter).ok(),
        None => EnvFilter::try_from_default_env().ok(),
    };
    let Some(filter) = filter else {
        return;
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
