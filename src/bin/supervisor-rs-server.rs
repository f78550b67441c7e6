//! The server's command line: parse, call, exit code.

use std::{io::Write, process::ExitCode};

use supervisor_rs::{
    audit::Hash,
    cli::{self, ServerArgs, ServerTask, USAGE},
    spec::ChildName,
    supervisor::{self, Takeover},
    telemetry::{self, Unasked},
};

/// Something in the configuration is bad.
const BAD_CONFIG: u8 = 6;
/// The audit trail is broken, or cannot be told.
const AUDIT_BROKEN: u8 = 1;

fn main() -> ExitCode {
    // Before anything that may fail: then there is a program to go back to.
    let takeover = Takeover::announced();
    let args = match (cli::server_args(std::env::args_os()), &takeover) {
        (Ok(args), _) => args,
        (Err(_), Some(takeover)) => return give_back(takeover, "it takes another command line"),
        (Err(early), None) => return early.finish(),
    };
    let filter = args.log.filter.as_deref();
    match (
        telemetry::init(filter, args.log.format, Unasked::Info),
        &takeover,
    ) {
        (Ok(()), _) => {}
        (Err(error), Some(takeover)) => return give_back(takeover, &error.to_string()),
        (Err(error), None) => {
            complain(&error.to_string());
            return USAGE.into();
        }
    }
    match &args.task {
        ServerTask::ReadsState => {
            let told = writeln!(std::io::stdout().lock(), "{}", supervisor::reads_state());
            told.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        ServerTask::Check => check(&args),
        ServerTask::VerifyAudit { noted } => verify_audit(&args, *noted),
        ServerTask::Supervise { exit_with } => {
            supervise(&args, exit_with.as_ref(), takeover.as_ref())
        }
    }
}

fn check(args: &ServerArgs) -> ExitCode {
    let checked = supervisor::check(&args.config);
    for note in &checked.notes {
        complain(&format!("note: {note}"));
    }
    for fault in &checked.faults {
        complain(fault);
    }
    if checked.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        BAD_CONFIG.into()
    }
}

fn verify_audit(args: &ServerArgs, noted: Option<Hash>) -> ExitCode {
    let verdict = match supervisor::verify_audit(&args.config, noted) {
        Ok(verdict) => verdict,
        Err(error) => {
            complain(&error.to_string());
            return error.exit_code().into();
        }
    };
    for note in &verdict.notes {
        complain(&format!("note: {note}"));
    }
    for fault in &verdict.breaks {
        complain(&fault.to_string());
    }
    let told = writeln!(std::io::stdout().lock(), "{verdict}");
    match (verdict.breaks.is_empty(), told) {
        (true, Ok(())) => ExitCode::SUCCESS,
        // A check whose answer did not get through has found nothing.
        (true, Err(_)) | (false, _) => AUDIT_BROKEN.into(),
    }
}

fn give_back(takeover: &Takeover, why: &str) -> ExitCode {
    let error = takeover.give_back(&format!("the program that was started cannot go on: {why}"));
    complain(&error.to_string());
    error.exit_code().into()
}

fn supervise(
    args: &ServerArgs,
    exit_with: Option<&ChildName>,
    takeover: Option<&Takeover>,
) -> ExitCode {
    match supervisor::serve(&args.config, exit_with, takeover) {
        Ok(ended) => ended.exit_code().into(),
        Err(error) => {
            complain(&error.to_string());
            error.exit_code().into()
        }
    }
}

/// Tells a person; that nobody may be there to read it is no reason to end otherwise.
fn complain(text: &str) {
    let _unread = writeln!(std::io::stderr().lock(), "{text}");
}
