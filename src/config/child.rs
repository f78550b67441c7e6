//! A child file (DESIGN, section 4), and the same fields as `defaults` of `server.yml`.
//!
//! Invariants: a spec that comes out names a program, has absolute paths throughout, and an
//! output that was given relatively lies in `log_dir`. A field that stands in the child's file
//! wins whole over the default of that field, even when it is empty.
//!
//! Absent on purpose: hook cycles, which only the core sees (it knows the other children), and
//! whether the program exists, which only a start finds out.

use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    CHILD_BYTES_MAX, Diagnostic,
    diagnostic::Source,
    digest,
    fault::{Fault, Words},
    node::Value,
    restart,
    rules::{Checker, DURATION_MAX, Field, Rule, Shape, unexpanded},
    server::SERVER_KEYS,
    text_of,
};
use crate::spec::{ChildName, Hook, OpenMode, Repeat, RestartPolicy, Sink, Spec, Verb};

/// The word that stands for the server's own streams.
const INHERIT: &str = "inherit";

/// Links on every Linux; a child's file is opened without following links.
const STREAM_LINKS: [&str; 3] = ["/dev/stdout", "/dev/stderr", "/dev/stdin"];

/// The one field that every child has and that has no default.
const COMMAND: &str = "command";

const VERBS: Words = &["start", "restart", "trystart", "stop"];
const HOOK_WORDS: Words = &["start", "restart", "trystart", "stop", "run"];
const OPEN_MODES: Words = &["create", "append"];

/// What a child's file does not say but its meaning depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildContext {
    /// Where output goes unless told otherwise; absolute.
    pub log_dir: PathBuf,
    /// Values for fields the file does not have.
    pub defaults: Arc<Defaults>,
    /// Whether the server is PID 1: then output is inherited unless told otherwise.
    pub pid1: bool,
}

/// Checked values for the fields that a child's file does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Defaults(Fields);

/// The fields of a child as one file gives them; `None` when it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fields {
    command: Option<Vec<String>>,
    workdir: Option<PathBuf>,
    output: Option<Output>,
    /// The inner `None` is a `repeat:` with nothing in it.
    repeat: Option<Option<Repeat>>,
    hooks: Option<Hooks>,
    restart: Option<RestartPolicy>,
}

/// What `output` says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Output {
    Inherit,
    Files {
        stdout: Option<OutputFile>,
        stderr: Option<OutputFile>,
    },
}

/// An output file; a relative path lies in `log_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OutputFile {
    path: PathBuf,
    mode: OpenMode,
}

/// What `hooks` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Hooks {
    prehook: Option<Hook>,
    posthook: Option<Hook>,
}

/// The fields of a child's file, first the one that has no default. To add one: a line here, a rule below, a line in `assemble`
/// and one in `digest`.
const FIELDS: &[Rule<Fields>] = &[
    Rule {
        key: COMMAND,
        name: COMMAND,
        check: command,
    },
    Rule {
        key: "output",
        name: "output",
        check: output,
    },
    Rule {
        key: "repeat",
        name: "repeat",
        check: repeat,
    },
    Rule {
        key: "hooks",
        name: "hooks",
        check: hooks,
    },
    Rule {
        key: "restart",
        name: "restart",
        check: restart_policy,
    },
    Rule {
        key: "workdir",
        name: "workdir",
        check: workdir,
    },
];

/// Reads a child's file.
///
/// `path` is where it is listed, absolute and with links unresolved: relative paths begin in its
/// folder.
///
/// # Errors
///
/// Every fault of the file, in the order of their places.
pub fn child(
    name: &ChildName,
    path: &Path,
    bytes: &[u8],
    context: &ChildContext,
) -> Result<Spec, Vec<Diagnostic>> {
    let text = text_of(path, bytes, CHILD_BYTES_MAX)?;
    let mut checker = Checker::new(Source { path, text });
    let own = fields(&mut checker);
    match own.command.clone() {
        Some(command) if !checker.has_faults() => Ok(assemble(name, path, command, &own, context)),
        Some(_) | None => Err(checker.diagnostics()),
    }
}

/// The fields of a child's file; a missing or faulty one is `None`, and told.
fn fields(checker: &mut Checker<'_>) -> Fields {
    let mut own = Fields::default();
    let Some(root) = checker.root("a child file", "command: PROGRAM") else {
        return own;
    };
    let entries = root.entries();
    let shape = Shape {
        inside: None,
        elsewhere: &[(SERVER_KEYS, "server.yml")],
    };
    checker.mapping(entries, FIELDS, &shape, &mut own);
    if !entries.iter().any(|entry| entry.key == COMMAND) {
        let help = "add `command:` and the program with its arguments";
        checker.fault(
            root.head(),
            Fault::Missing {
                field: COMMAND,
                help,
            },
        );
    }
    own
}

/// `defaults` of `server.yml`.
pub(super) fn defaults(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Defaults> {
    let entries = checker.entries(field, None)?;
    let (command, rules) = FIELDS.split_first()?;
    let place = "each child's own file";
    let shape = Shape {
        inside: Some("defaults"),
        elsewhere: &[(&[command.key], place)],
    };
    let mut fields = Fields::default();
    checker.mapping(entries, rules, &shape, &mut fields);
    Some(Defaults(fields))
}

/// A spec of what the file says, what the defaults say, and what is built in.
fn assemble(
    name: &ChildName,
    path: &Path,
    command: Vec<String>,
    own: &Fields,
    context: &ChildContext,
) -> Spec {
    let Defaults(default) = &*context.defaults;
    let workdir = own.workdir.as_ref().or(default.workdir.as_ref());
    let output = own.output.as_ref().or(default.output.as_ref());
    let hooks = own
        .hooks
        .as_ref()
        .or(default.hooks.as_ref())
        .cloned()
        .unwrap_or_default();
    let (stdout, stderr) = match output {
        Some(Output::Inherit) => (Sink::Inherit, Sink::Inherit),
        Some(Output::Files { stdout, stderr }) => (
            sink(stdout.as_ref(), name, "out", context),
            sink(stderr.as_ref(), name, "err", context),
        ),
        None => (
            sink(None, name, "out", context),
            sink(None, name, "err", context),
        ),
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut spec = Spec {
        path: path.to_owned(),
        command,
        workdir: workdir.map_or(folder, PathBuf::as_path).to_owned(),
        stdout,
        stderr,
        repeat: own.repeat.or(default.repeat).flatten(),
        prehook: hooks.prehook,
        posthook: hooks.posthook,
        restart: own
            .restart
            .as_ref()
            .or(default.restart.as_ref())
            .cloned()
            .unwrap_or_default(),
        digest: digest::EMPTY,
    };
    spec.digest = digest::of(&spec, workdir.map(PathBuf::as_path));
    spec
}

/// Where one stream goes: as the file says, or as is built in.
fn sink(
    file: Option<&OutputFile>,
    name: &ChildName,
    extension: &str,
    context: &ChildContext,
) -> Sink {
    match file {
        Some(file) => Sink::File {
            path: context.log_dir.join(&file.path),
            mode: file.mode,
        },
        None if context.pid1 => Sink::Inherit,
        None => Sink::File {
            path: context.log_dir.join(format!("{name}.{extension}")),
            mode: OpenMode::Append,
        },
    }
}

fn command(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    let argv = match &field.node.value {
        Value::List(items) => {
            let argv = checker.each(field, Checker::argument);
            argv.filter(|argv| argv.len() == items.len())
        }
        Value::Scalar { .. } => checker
            .text(field)
            .and_then(|text| checker.words(field, text)),
        Value::Mapping(_) => {
            checker.form(
                field,
                "a text or a list",
                Some("put a command that holds `: ` in quotes"),
            );
            None
        }
    };
    draft.command = argv.filter(|argv| checker.names_a_program(field, argv));
}

fn workdir(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    draft.workdir = checker.directory(field);
}

fn restart_policy(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    draft.restart = restart::policy(checker, field);
}

impl Checker<'_> {
    fn argument(&mut self, field: Field<'_>) -> Option<String> {
        self.text(field).map(str::to_owned)
    }

    /// A command line, split by the shell's quoting rules.
    fn words(&mut self, field: Field<'_>, text: &str) -> Option<Vec<String>> {
        match shell_words::split(text) {
            Ok(words) => Some(words),
            Err(source) => {
                self.fault(
                    field.span(),
                    Fault::Quotes {
                        field: field.name,
                        source,
                    },
                );
                None
            }
        }
    }

    /// Whether a command line has a program that could exist.
    fn names_a_program(&mut self, field: Field<'_>, argv: &[String]) -> bool {
        let Some(program) = argv.first().filter(|program| !program.trim().is_empty()) else {
            self.fault(field.span(), Fault::NoProgram { field: field.name });
            return false;
        };
        if let Some(found) = unexpanded(program) {
            self.fault(
                field.span(),
                Fault::Home {
                    field: field.name,
                    found: found.into(),
                },
            );
            return false;
        }
        true
    }
}

/// One entry of `output`.
#[derive(Default)]
struct OutputEntry {
    /// Whether the key is there; the path, unless it was faulty.
    stdout: Option<Option<PathBuf>>,
    stderr: Option<Option<PathBuf>>,
    mode: OpenMode,
}

const OUTPUT_FIELDS: &[Rule<OutputEntry>] = &[
    Rule {
        key: "stdout",
        name: "output.stdout",
        check: |checker, field, entry| entry.stdout = Some(output_path(checker, field)),
    },
    Rule {
        key: "stderr",
        name: "output.stderr",
        check: |checker, field, entry| entry.stderr = Some(output_path(checker, field)),
    },
    Rule {
        key: "mode",
        name: "output.mode",
        check: |checker, field, entry| {
            entry.mode = match checker.word(field, OPEN_MODES) {
                Some("create") => OpenMode::Create,
                Some(_) | None => OpenMode::Append,
            }
        },
    },
];

fn output(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    if let Value::Scalar { text, .. } = &field.node.value
        && !field.is_nothing()
    {
        if text == INHERIT {
            draft.output = Some(Output::Inherit);
        } else {
            let help =
                "write `output: inherit`, or a list of `- stdout: FILE` and `- stderr: FILE`";
            checker.form(field, "a list or `inherit`", Some(help));
        }
        return;
    }
    let help = "write a list: `- stdout: FILE`, its `mode:` below it";
    let Some(items) = checker.list(field, Some(help)) else {
        return;
    };
    let (mut stdout, mut stderr) = (None, None);
    for item in items {
        let item = field.item(item);
        let Some(entries) = checker.entries(item, Some("write `- stdout: FILE`")) else {
            continue;
        };
        let mut entry = OutputEntry::default();
        checker.mapping(entries, OUTPUT_FIELDS, &Shape::of("output"), &mut entry);
        let (stream, name, path) = match (entry.stdout, entry.stderr) {
            (Some(path), None) => (&mut stdout, "output.stdout", path),
            (None, Some(path)) => (&mut stderr, "output.stderr", path),
            (Some(_), Some(_)) => {
                checker.fault(item.span(), Fault::OutputBothStreams);
                continue;
            }
            (None, None) => {
                checker.fault(item.span(), Fault::OutputNoStream);
                continue;
            }
        };
        if stream.is_some() {
            let help = "a stream goes to one file: keep one of the entries";
            checker.fault(item.span(), Fault::Second { field: name, help });
        }
        *stream = Some(path.map(|path| OutputFile {
            path,
            mode: entry.mode,
        }));
    }
    let (stdout, stderr) = (stdout.flatten(), stderr.flatten());
    draft.output = Some(Output::Files { stdout, stderr });
}

/// A file for a stream: absolute, or relative and inside of `log_dir`.
fn output_path(checker: &mut Checker<'_>, field: Field<'_>) -> Option<PathBuf> {
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

/// What `repeat` says so far.
#[derive(Default)]
struct RepeatDraft {
    action: Option<Verb>,
    every: Option<Duration>,
    seconds_given: bool,
}

const REPEAT_FIELDS: &[Rule<RepeatDraft>] = &[
    Rule {
        key: "action",
        name: "repeat.action",
        check: |checker, field, draft| {
            // Empty is `restart`, as documented.
            if !field.is_nothing() && !field.is_empty_text() {
                draft.action = checker.word(field, VERBS).and_then(verb);
            }
        },
    },
    Rule {
        key: "seconds",
        name: "repeat.seconds",
        check: |checker, field, draft| {
            draft.seconds_given = true;
            draft.every = checker
                .whole(field, 1..=DURATION_MAX.as_secs())
                .map(Duration::from_secs);
        },
    },
];

fn repeat(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    let help = "write `action:` and `seconds:` below it, indented";
    let Some(entries) = checker.entries(field, Some(help)) else {
        return;
    };
    let mut repeat = RepeatDraft::default();
    checker.mapping(entries, REPEAT_FIELDS, &Shape::of("repeat"), &mut repeat);
    if !entries.is_empty() && !repeat.seconds_given {
        let help = "add `seconds:` and a whole number, below `repeat:`";
        checker.fault(
            field.key_span(),
            Fault::Missing {
                field: "repeat.seconds",
                help,
            },
        );
    }
    let action = repeat.action.unwrap_or(Verb::Restart);
    draft.repeat = Some(repeat.every.map(|every| Repeat { action, every }));
}

fn verb(word: &str) -> Option<Verb> {
    let all = [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop];
    all.into_iter().find(|verb| verb.as_str() == word)
}

/// What `hooks` says so far: whether the key was there; the hook, unless it was faulty.
#[derive(Default)]
struct HooksDraft {
    prehook: Option<Option<Hook>>,
    posthook: Option<Option<Hook>>,
}

const HOOKS_FIELDS: &[Rule<HooksDraft>] = &[
    Rule {
        key: "prehook",
        name: "prehook",
        check: |checker, field, draft| hook(checker, field, &mut draft.prehook),
    },
    Rule {
        key: "posthook",
        name: "posthook",
        check: |checker, field, draft| hook(checker, field, &mut draft.posthook),
    },
];

fn hooks(checker: &mut Checker<'_>, field: Field<'_>, draft: &mut Fields) {
    let help = "write a list: `- prehook: start CHILD`";
    let Some(items) = checker.list(field, Some(help)) else {
        return;
    };
    let mut hooks = HooksDraft::default();
    for item in items {
        let item = field.item(item);
        match &item.node.value {
            Value::Mapping(entries) => {
                checker.mapping(entries, HOOKS_FIELDS, &Shape::of("hooks"), &mut hooks);
            }
            Value::Scalar { .. } | Value::List(_) => {
                checker.form(item, "entries such as `- prehook: start CHILD`", None)
            }
        }
    }
    let (prehook, posthook) = (hooks.prehook.flatten(), hooks.posthook.flatten());
    draft.hooks = Some(Hooks { prehook, posthook });
}

fn hook(checker: &mut Checker<'_>, field: Field<'_>, place: &mut Option<Option<Hook>>) {
    if place.is_some() {
        let help = "a child has one hook of a kind: to do more, write `run` and a script";
        checker.fault(
            field.key_span(),
            Fault::Second {
                field: field.name,
                help,
            },
        );
    }
    *place = Some(
        checker
            .text(field)
            .and_then(|text| hook_of(checker, field, text)),
    );
}

/// `"<command> <child>"` or `"run <command line>"`.
fn hook_of(checker: &mut Checker<'_>, field: Field<'_>, text: &str) -> Option<Hook> {
    let (word, rest) = match text.trim().split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text.trim(), ""),
    };
    if word == "run" {
        let argv = checker.words(field, rest)?;
        return checker
            .names_a_program(field, &argv)
            .then_some(Hook::Run(argv));
    }
    let one_word = !rest.is_empty() && !rest.contains(char::is_whitespace);
    let fault = match verb(word) {
        Some(verb) if one_word => match rest.parse() {
            Ok(child) => return Some(Hook::Command { verb, child }),
            Err(source) => Fault::ChildName {
                field: field.name,
                source,
            },
        },
        None if one_word => Fault::Word {
            field: field.name,
            words: HOOK_WORDS,
            found: word.into(),
        },
        Some(_) | None => Fault::HookForm {
            field: field.name,
            found: text.into(),
        },
    };
    checker.fault(field.span(), fault);
    None
}
