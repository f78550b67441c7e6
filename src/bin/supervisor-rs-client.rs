//! The client's command line: parse, call, exit code.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use supervisor_rs::{
    cli::{self, Early, Environment, Place, Stream},
    control::client::Waits,
    telemetry::{self, Unasked},
};

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let ask = match cli::client_args(std::env::args_os(), &environment) {
        Ok(ask) => ask,
        Err(early) => return early.finish(),
    };
    let filter = ask.log.filter.as_deref();
    if let Err(error) = telemetry::init(filter, ask.log.format, Unasked::Nothing) {
        let text = format!("error: {error}\n");
        let (to, code) = (Place::Err, cli::USAGE);
        return Early { text, to, code }.finish();
    }
    let (mut out, mut err) = (stdout(), stderr());
    let out_style = environment.style(Stream::of(&out));
    let err_style = environment.style(Stream::of(&err));
    let waits = Waits::default();
    cli::carry_out(&ask, waits, &mut out, out_style, &mut err, err_style).into()
}
