//! The client's command line: parse, call, exit code.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use supervisor_rs::{
    cli::{self, Early, Environment, Place, Stream, Streams, Surroundings},
    telemetry::{self, Unasked},
};

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let task = match cli::client_args(std::env::args_os(), &environment) {
        Ok(task) => task,
        Err(early) => return early.finish(),
    };
    let filter = task.log().filter.as_deref();
    if let Err(error) = telemetry::init(filter, task.log().format, Unasked::Nothing) {
        let text = format!("error: {error}\n");
        let (to, code) = (Place::Err, cli::USAGE);
        return Early { text, to, code }.finish();
    }
    let (mut out, mut err) = (stdout(), stderr());
    let streams = Streams {
        out_style: environment.style(Stream::of(&out)),
        err_style: environment.style(Stream::of(&err)),
        out: &mut out,
        err: &mut err,
    };
    cli::perform(&task, Surroundings::of_process(), streams).into()
}
