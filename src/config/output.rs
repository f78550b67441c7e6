//! `output`: where a child's two streams go.
//!
//! Invariants: a relative path lies in `log_dir` and cannot climb out of it, at its end or on the
//! way; a path that could only name a directory, or a link that every host has, is refused here
//! rather than at each start.

use std::path::{Component, Path, PathBuf};

use super::{
    child::ChildContext,
    fault::{Fault, Words},
    node::Value,
    rules::{Checker, Field, Rule, Shape, rule},
};
use crate::spec::{ChildName, OpenMode, Sign, Sink, Spec};

/// The word that stands for the server's own streams.
const INHERIT: &str = "inherit";

/// Links on every Linux; a child's file is opened without following a link at its end.
const STREAM_LINKS: [&str; 3] = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];

const OPEN_MODES: Words = &["create", "append"];

/// What `output` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Both streams are the server's own.
    Inherit,
    /// Each goes to its file; to the built-in one when there is none.
    Files {
        /// For standard output.
        stdout: Option<OutputFile>,
        /// For standard error.
        stderr: Option<OutputFile>,
    },
}

/// An output file; a relative path lies in `log_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputFile {
    path: PathBuf,
    mode: OpenMode,
}

/// One of a child's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// The field that names it.
    fn field(self) -> &'static str {
        match self {
            Self::Stdout => "output.stdout",
            Self::Stderr => "output.stderr",
        }
    }

    /// What its built-in file is called after the child's name.
    fn extension(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
        }
    }
}

/// Where one stream goes: as the file says, or as is built in.
pub(super) fn sink(
    output: Option<&Output>,
    stream: Stream,
    name: &ChildName,
    context: &ChildContext,
) -> Sink {
    let file = match (output, stream) {
        (Some(Output::Inherit), _) => return Sink::Inherit,
        (Some(Output::Files { stdout, .. }), Stream::Stdout) => stdout.as_ref(),
        (Some(Output::Files { stderr, .. }), Stream::Stderr) => stderr.as_ref(),
        (None, _) => None,
    };
    match file {
        Some(OutputFile { path, mode }) => {
            let path = context.log_dir.join(path);
            Sink::File { path, mode: *mode }
        }
        None if context.pid1 => Sink::Inherit,
        None => {
            let path = context
                .log_dir
                .join(format!("{name}.{}", stream.extension()));
            Sink::File {
                path,
                mode: OpenMode::Append,
            }
        }
    }
}

/// One entry of the list.
#[derive(Default)]
struct Draft {
    /// Whether the key is there; the path, unless it was faulty.
    stdout: Option<Option<PathBuf>>,
    stderr: Option<Option<PathBuf>>,
    mode: OpenMode,
}

const FIELDS: &[Rule<Draft>] = &[
    rule("output.stdout", |c, f, draft| {
        draft.stdout = Some(file(c, f))
    }),
    rule("output.stderr", |c, f, draft| {
        draft.stderr = Some(file(c, f))
    }),
    rule("output.mode", |c, f, draft| {
        draft.mode = mode(c, f).unwrap_or_default()
    }),
];

/// `output`: the word `inherit`, or a list of files.
pub(super) fn output(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Output> {
    if let Value::Scalar { text, .. } = &field.node.value
        && !field.is_nothing()
    {
        if text == INHERIT {
            return Some(Output::Inherit);
        }
        let help = "write `output: inherit`, or a list of `- stdout: FILE` and `- stderr: FILE`";
        checker.form(field, "a list or `inherit`", Some(help));
        return None;
    }
    let help = "write a list: `- stdout: FILE`, its `mode:` below it";
    let items = checker.list(field, Some(help))?;
    let (mut stdout, mut stderr) = (None, None);
    for item in items {
        let item = field.item(item);
        let Some((stream, file)) = entry(checker, item) else {
            continue;
        };
        let place = match stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        if place.is_some() {
            let help = "a stream goes to one file: keep one of the entries";
            checker.fault(
                item.head(),
                Fault::Second {
                    field: stream.field(),
                    help,
                },
            );
        }
        *place = Some(file);
    }
    let (stdout, stderr) = (stdout.flatten(), stderr.flatten());
    Some(Output::Files { stdout, stderr })
}

/// An entry of the list: which stream, and its file unless that was faulty.
fn entry(checker: &mut Checker<'_>, item: Field<'_>) -> Option<(Stream, Option<OutputFile>)> {
    let entries = checker.entries(item, Some("write `- stdout: FILE`"))?;
    let mut draft = Draft::default();
    checker.mapping(entries, FIELDS, &Shape::of("output"), &mut draft);
    let (stream, path) = match (draft.stdout, draft.stderr) {
        (Some(path), None) => (Stream::Stdout, path),
        (None, Some(path)) => (Stream::Stderr, path),
        (Some(_), Some(_)) => {
            checker.fault(item.head(), Fault::OutputBothStreams);
            return None;
        }
        (None, None) => {
            checker.fault(item.head(), Fault::OutputNoStream);
            return None;
        }
    };
    let mode = draft.mode;
    Some((stream, path.map(|path| OutputFile { path, mode })))
}

fn mode(checker: &mut Checker<'_>, field: Field<'_>) -> Option<OpenMode> {
    let word = checker.word(field, OPEN_MODES)?;
    Some(if word == "create" {
        OpenMode::Create
    } else {
        OpenMode::Append
    })
}

/// A file for a stream: absolute, or relative and inside of `log_dir`.
fn file(checker: &mut Checker<'_>, field: Field<'_>) -> Option<PathBuf> {
    let path = checker.path(field)?;
    let text = checker.line(field)?;
    let quoted = text.into();
    let fault = if text == INHERIT || STREAM_LINKS.iter().any(|link| path == Path::new(link)) {
        Fault::OutputServers { path: quoted }
    } else if path.is_relative() && climbs(&path) {
        Fault::OutputClimbs { path: quoted }
    } else if text.ends_with('/') || text.ends_with("/.") || path.file_name().is_none() {
        Fault::OutputDirectory { path: quoted }
    } else {
        return Some(path);
    };
    checker.fault(field.span(), fault);
    None
}

/// Whether a relative path leaves the directory it begins in, at its end or on the way.
fn climbs(path: &Path) -> bool {
    let mut depth = 0_usize;
    for part in path.components() {
        depth = match part {
            Component::ParentDir => match depth.checked_sub(1) {
                Some(depth) => depth,
                None => return true,
            },
            Component::Normal(_) => depth + 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => depth,
        };
    }
    false
}

/// Whether there is output to be read where a line of it shows that a run is ready.
pub(super) fn is_readable(spec: &Spec) -> bool {
    let sign = spec.ready.as_ref().map(|ready| &ready.sign);
    match sign {
        Some(Sign::Log(_)) => {
            let sinks = [&spec.stdout, &spec.stderr];
            sinks.into_iter().any(|sink| *sink != Sink::Inherit)
        }
        Some(Sign::Probe(_) | Sign::Notify | Sign::Fd(_)) | None => true,
    }
}
