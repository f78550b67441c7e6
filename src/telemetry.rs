//! The log of both programs: lines on standard error that nothing can stop a program with.
//!
//! - A closed, full or stalled standard error costs lines, never the server: before each
//!   piece the descriptor is asked whether it takes one. What was lost is counted, and told
//!   with the next line that gets through. Children share the descriptor with
//!   `output: inherit`, which is why it is not simply made non-blocking.
//! - Data stands in fields, where control characters are escaped: what a file or a peer
//!   says cannot forge a line or move a terminal's cursor.
//! - The filter is `--log`, else `RUST_LOG`, else what the program says; syntax as
//!   `tracing_subscriber`'s `EnvFilter`.
//!
//! Absent on purpose: log files, rotation and syslog (whoever runs the server has one), and
//! deciding what is said (`reconcile` says it in a [`Line`]).
//!
//! Sources: poll(2), pipe(7) (`PIPE_BUF`), <https://no-color.org>.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt::MakeWriter};

use crate::reconcile::effect::{Level, Line};

/// The most bytes written at once: what `poll(2)` says of a pipe holds for this many.
const PIECE_LEN: usize = 4096;

/// How long a reader that does not read is waited for, in milliseconds, once; then lines are
/// dropped without waiting until it reads again.
const STALL_MS_MAX: i64 = 50;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged when neither `--log` nor `RUST_LOG` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unasked {
    /// What an operator should know: the server's log.
    Info,
    /// Nothing: what the client has to say it says without a log.
    Nothing,
}

impl Unasked {
    /// As a filter.
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Nothing => "off",
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `--log` is not a filter.
    #[error(
        "`{filter}` is not a log filter: {reason}\nhint: such as `info` or `supervisor_rs=debug`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This process has a log already.
    #[error("the log is set up already")]
    Twice,
}

/// Sets up the log of this process; to be called once.
///
/// `filter` is `--log`. A faulty `RUST_LOG` is told in the log and not used: what stands in
/// an environment never keeps a program from its work.
///
/// # Errors
///
/// A faulty `filter`, or a second call.
pub fn init(
    filter: Option<&str>,
    format: LogFormat,
    unasked: Unasked,
) -> Result<(), TelemetryError> {
    let variable = std::env::var("RUST_LOG").ok();
    let (filter, unusable) = choose(filter, variable.as_deref(), unasked)?;
    if filter.max_level_hint() == Some(LevelFilter::OFF) {
        return Ok(());
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(wants_colour())
        // It complains with `eprintln!`, which panics when standard error is what is broken.
        .log_internal_errors(false)
        .with_writer(Stderr);
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|_| TelemetryError::Twice)?;
    if let Some(reason) = unusable {
        tracing::warn!(reason, "RUST_LOG is not a log filter and is not used");
    }
    Ok(())
}

/// Writes a line of the core, inside a span `child{child run}` when it is about a child.
///
/// The span's field is not called `name`, because in JSON the span's own name is.
pub fn log(line: &Line) {
    let span = match &line.child {
        Some(child) => {
            let run = line.run.map(|run| run.0);
            tracing::error_span!("child", %child, run)
        }
        None => tracing::Span::none(),
    };
    let _inside = span.enter();
    let cause = line.cause.map(|cause| cause.as_str());
    let exit = line.exit.map(|exit| exit.to_string());
    let detail = line.detail.as_deref().map(on_one_line);
    let detail = detail.as_deref();
    match line.level {
        Level::Info => tracing::info!(cause, exit, detail, "{}", line.what),
        Level::Warn => tracing::warn!(cause, exit, detail, "{}", line.what),
        Level::Error => tracing::error!(cause, exit, detail, "{}", line.what),
    }
}

/// A diagnostic as a log has it: without the excerpt of the file, whose place is told anyway,
/// and without the line feeds that would be escaped.
#[must_use]
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains('\n') {
        return Cow::Borrowed(text);
    }
    let mut joined = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !is_excerpt(line)) {
        if !joined.is_empty() {
            joined.push_str(if joined.ends_with(':') { " " } else { "; " });
        }
        joined.push_str(line.trim());
    }
    Cow::Owned(joined)
}

/// Whether it is a line of a file as a diagnostic shows it (`12 | ouput: x`), or its caret.
fn is_excerpt(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit());
    rest.len() < line.len() && rest.starts_with('|')
}

/// The filter, and why the variable could not be it.
fn choose(
    argument: Option<&str>,
    variable: Option<&str>,
    unasked: Unasked,
) -> Result<(EnvFilter, Option<String>), TelemetryError> {
    if let Some(filter) = argument {
        let parsed = EnvFilter::builder().parse(filter);
        let parsed = parsed.map_err(|error| TelemetryError::Filter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })?;
        return Ok((parsed, None));
    }
    let variable = variable.filter(|text| !text.trim().is_empty());
    match variable.map(|text| EnvFilter::builder().parse(text)) {
        Some(Ok(filter)) => Ok((filter, None)),
        Some(Err(error)) => Ok((EnvFilter::new(unasked.as_str()), Some(error.to_string()))),
        None => Ok((EnvFilter::new(unasked.as_str()), None)),
    }
}

fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !refused
}

/// Makes writers to standard error.
#[derive(Debug, Clone, Copy)]
struct Stderr;

/// What was lost on standard error so far and not told yet.
static STDERR_LOST: Lost = Lost::new();

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Outlet<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Outlet {
            to: io::stderr(),
            lost: &STDERR_LOST,
        }
    }
}

/// How many lines are lost.
#[derive(Debug)]
struct Lost(AtomicU64);

impl Lost {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// A way out that takes lines or loses them, and never fails or waits for long.
#[derive(Debug)]
struct Outlet<W> {
    to: W,
    lost: &'static Lost,
}

impl<W: AsFd + Write> Outlet<W> {
    /// Whether a piece can be written without waiting.
    fn is_ready(&self, wait_ms: i64) -> bool {
        is_ready(self.to.as_fd(), wait_ms)
    }

    fn line(&mut self, line: &[u8]) {
        let lost = self.lost.0.load(Ordering::Relaxed);
        let wait_ms = if lost == 0 { STALL_MS_MAX } else { 0 };
        if !self.is_ready(wait_ms) {
            self.lost.0.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if lost > 0 {
            let told = format!("({lost} log lines were lost: nobody read them)\n");
            if self.to.write_all(told.as_bytes()).is_ok() {
                self.lost.0.fetch_sub(lost, Ordering::Relaxed);
            }
        }
        for piece in line.chunks(PIECE_LEN) {
            let written = self.is_ready(STALL_MS_MAX) && self.to.write_all(piece).is_ok();
            if !written {
                self.lost.0.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl<W: AsFd + Write> Write for Outlet<W> {
    /// One call is one line: the formatter hands over whole ones.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a piece can be written without waiting. A signal cuts the wait short: it must never be
/// taken for readiness, or the write would wait for as long as nobody reads.
fn is_ready(fd: BorrowedFd<'_>, wait_ms: i64) -> bool {
    let can_write = |wait_ms: i64| {
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: wait_ms * 1_000_000,
        };
        let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
        let ready = poll(&mut fds, Some(&wait))?;
        Ok(ready > 0 && fds[0].revents().contains(PollFlags::OUT))
    };
    match can_write(wait_ms) {
        // A look without a wait is not interrupted.
        Err(Errno::INTR) => can_write(0) == Ok(true),
        looked => looked == Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read,
        os::fd::OwnedFd,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::{
        clock,
        reconcile::cause::Cause,
        spec::{Exit, RunId},
    };

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(line: &Line, format: LogFormat) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("info"))
            .with_target(false)
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        match format {
            LogFormat::Text => tracing::subscriber::with_default(builder.finish(), || log(line)),
            LogFormat::Json => {
                let json = builder.json().flatten_event(true).with_span_list(false);
                tracing::subscriber::with_default(json.finish(), || log(line));
            }
        }
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn line() -> Line {
        Line {
            level: Level::Warn,
            child: Some("web".parse().unwrap()),
            run: Some(RunId(3)),
            what: "run ended",
            cause: Some(Cause::Command),
            exit: Some(Exit::Signal(9)),
            detail: Some("was asked to".to_owned()),
        }
    }

    #[test]
    fn a_line_is_a_constant_message_with_its_data_in_fields() {
        assert_eq!(
            logged(&line(), LogFormat::Text),
            " WARN child{child=web run=3}: run ended cause=\"command\" exit=\"SIGKILL\" \
             detail=\"was asked to\"\n"
        );
    }

    #[test]
    fn what_a_line_does_not_say_is_not_there() {
        let bare = Line {
            level: Level::Info,
            child: None,
            run: None,
            what: "nothing to do",
            cause: None,
            exit: None,
            detail: None,
        };
        assert_eq!(logged(&bare, LogFormat::Text), " INFO nothing to do\n");
    }

    #[test]
    fn a_json_line_is_one_object_with_the_same_fields() {
        let text = logged(&line(), LogFormat::Json);
        assert_eq!(text.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["level"], "WARN");
        assert_eq!(json["message"], "run ended");
        assert_eq!(json["cause"], "command");
        assert_eq!(json["exit"], "SIGKILL");
        assert_eq!(json["detail"], "was asked to");
        assert_eq!(json["span"]["child"], "web");
        assert_eq!(json["span"]["run"], 3);
    }

    #[test]
    fn a_detail_cannot_forge_a_line_or_reach_the_terminal() {
        let mut forged = line();
        forged.detail = Some("x\n INFO all is well \u{1b}[2J\r\u{9b}31m".to_owned());
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(&forged, format);
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(text.ends_with('\n'));
            assert!(!text.trim_end().contains(['\u{1b}', '\r']), "{text:?}");
        }
    }

    #[test]
    fn a_diagnostic_is_told_without_its_excerpt() {
        let mut bad = line();
        bad.detail = Some(
            "/c/web.yml:12:1: unknown key `ouput`\n   |\n12 | ouput: x\n   | ^^^^^\n\
             help: did you mean `output`?\n/c/web.yml: | is no excerpt"
                .to_owned(),
        );
        let said = "/c/web.yml:12:1: unknown key `ouput`; help: did you mean `output`?; \
                    /c/web.yml: | is no excerpt";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(&bad, format);
            assert!(text.contains(said), "{text}");
        }
        assert_eq!(
            on_one_line("several files declare `a`:\n  /x\n  /y"),
            "several files declare `a`: /x; /y"
        );
        assert_eq!(on_one_line("one line"), "one line");
    }

    #[test]
    fn the_argument_wins_over_the_variable_and_the_program_has_the_last_word() {
        let chosen = |argument, variable| choose(argument, variable, Unasked::Info).unwrap();
        assert_eq!(chosen(Some("debug"), Some("trace")).0.to_string(), "debug");
        assert_eq!(chosen(None, Some("trace")).0.to_string(), "trace");
        assert_eq!(chosen(None, None).0.to_string(), "info");
        assert_eq!(chosen(None, Some(" ")).0.to_string(), "info");
        let quiet = |variable| choose(None, variable, Unasked::Nothing).unwrap().0;
        assert_eq!(quiet(None).max_level_hint(), Some(LevelFilter::OFF));
        assert_eq!(
            quiet(Some("a=b=c")).max_level_hint(),
            Some(LevelFilter::OFF)
        );
        assert_eq!(quiet(Some("debug")).to_string(), "debug");
    }

    #[test]
    fn a_faulty_argument_is_an_error_and_a_faulty_variable_is_not() {
        let error = choose(Some("a=b=c"), None, Unasked::Info).unwrap_err();
        assert!(error.to_string().starts_with("`a=b=c` is not a log filter"));
        let (filter, unusable) = choose(None, Some("a=b=c"), Unasked::Info).unwrap();
        assert_eq!(filter.to_string(), "info");
        assert!(unusable.is_some());
    }

    /// A pipe's two ends and an outlet into it.
    fn pipe() -> (File, Outlet<File>) {
        let (reader, writer): (OwnedFd, OwnedFd) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let lost: &'static Lost = Box::leak(Box::new(Lost::new()));
        let outlet = Outlet {
            to: File::from(writer),
            lost,
        };
        (File::from(reader), outlet)
    }

    #[test]
    fn a_closed_standard_error_costs_lines_and_nothing_else() {
        let (reader, mut outlet) = pipe();
        drop(reader);
        for _ in 0..3 {
            assert_eq!(outlet.write(b"line\n").unwrap(), 5);
        }
        assert_eq!(outlet.lost.0.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_hardly_time_and_is_told_how_many() {
        let (mut reader, mut outlet) = pipe();
        let line = [b"x".repeat(PIECE_LEN - 1), b"\n".to_vec()].concat();
        let begun = clock::mono();
        let lines = 1_000;
        for _ in 0..lines {
            outlet.write_all(&line).unwrap();
        }
        let took = clock::mono() - begun;
        assert!(took.as_secs() < 10, "{took:?}");
        let lost = outlet.lost.0.load(Ordering::Relaxed);
        assert!((1..lines).contains(&lost), "{lost}");

        let kept = usize::try_from(lines - lost).unwrap() * line.len();
        reader.read_exact(&mut vec![0; kept]).unwrap();
        outlet.write_all(b"again\n").unwrap();
        let told = format!("({lost} log lines were lost: nobody read them)\nagain\n");
        let mut read = vec![0; told.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), told);
        assert_eq!(outlet.lost.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_signal_is_not_taken_for_a_reader() {
        let (_reader, mut outlet) = pipe();
        while outlet.is_ready(0) {
            outlet.to.write_all(&[0; PIECE_LEN]).unwrap();
        }
        // A poll that a signal interrupts may only ever be answered by another look.
        let fd = outlet.to.as_fd();
        assert!(!is_ready(fd, 0));
        assert!(!is_ready(fd, STALL_MS_MAX));
    }

    #[test]
    fn a_line_longer_than_a_pipe_does_not_wait_for_ever() {
        let (_reader, mut outlet) = pipe();
        let begun = clock::mono();
        outlet.write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert!((clock::mono() - begun).as_secs() < 10);
        assert_eq!(outlet.lost.0.load(Ordering::Relaxed), 1);
    }
}
