//! The client's command line: parse, call, exit code.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use supervisor_rs::{
    cli::{self, Early, Environment, LogArgs, LogFormat, Place, Stream},
    control::client::Waits,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let ask = match cli::client_args(std::env::args_os(), &environment) {
        Ok(ask) => ask,
        Err(early) => return early.finish(),
    };
    if let Err(fault) = log(&ask.log) {
        let text = format!("error: `--log` is not understood: {fault}\n");
        let (to, code) = (Place::Err, cli::USAGE);
        return Early { text, to, code }.finish();
    }
    let (mut out, mut err) = (stdout(), stderr());
    let out_style = environment.style(Stream::of(&out));
    let err_style = environment.style(Stream::of(&err));
    let waits = Waits::default();
    cli::carry_out(&ask, waits, &mut out, out_style, &mut err, err_style).into()
}

/// Writes the log to standard error, if one is asked for: what the client has to say it says
/// without one.
fn log(log: &LogArgs) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = match &log.filter {
        Some(filter) => EnvFilter::try_new(filter)?,
        None => match EnvFilter::try_from_default_env() {
            Ok(filter) => filter,
            // Not set, or meant for another program.
            Err(_) => return Ok(()),
        },
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
