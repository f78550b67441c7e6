//! A child file (DESIGN, section 4), and the same fields as `defaults` of `server.yml`.
//!
//! Invariants: a spec that comes out names a program, has absolute paths throughout, and an
//! output that was given relatively lies in `log_dir`. A field that stands in the child's file
//! wins whole over the default of that field, even when it is empty.
//!
//! Absent on purpose: hook cycles, which only the core sees (it knows the other children), and
//! whether the program exists, which only a start finds out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CHILD_BYTES_MAX, Diagnostic, command,
    diagnostic::Source,
    digest,
    hooks::{self, Hooks},
    output::{self, Output, Stream},
    restart,
    rules::{Checker, Field, Rule, Shape, rule},
    server::SERVER_KEYS,
    text_of,
};
use crate::spec::{ChildName, Repeat, RestartPolicy, Spec};

/// The one field that every child has and that has no default.
const COMMAND: &str = "command";

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
struct Fields {
    command: Option<Vec<String>>,
    workdir: Option<PathBuf>,
    output: Option<Output>,
    /// The inner `None` is a `repeat:` with nothing in it.
    repeat: Option<Option<Repeat>>,
    hooks: Option<Hooks>,
    restart: Option<RestartPolicy>,
}

/// The fields of a child's file, first the one that has no default.
///
/// To add one: a line here with its rule, one in `assemble`, and one in `digest`.
const FIELDS: &[Rule<Fields>] = &[
    rule(COMMAND, |c, f, fields| fields.command = command::argv(c, f)),
    rule("output", |c, f, fields| {
        fields.output = output::output(c, f)
    }),
    rule("repeat", |c, f, fields| fields.repeat = hooks::repeat(c, f)),
    rule("hooks", |c, f, fields| fields.hooks = hooks::hooks(c, f)),
    rule("restart", |c, f, fields| {
        fields.restart = restart::policy(c, f)
    }),
    rule("workdir", |c, f, fields| fields.workdir = c.directory(f)),
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
    let own = own_fields(&mut checker);
    match own.command.clone() {
        Some(command) if !checker.has_faults() => Ok(assemble(name, path, command, &own, context)),
        Some(_) | None => Err(checker.diagnostics()),
    }
}

/// The fields of a child's file; a missing or faulty one is `None`, and told.
fn own_fields(checker: &mut Checker<'_>) -> Fields {
    let mut own = Fields::default();
    if let Some(root) = checker.root("a child file", "command: PROGRAM") {
        let elsewhere = &[(SERVER_KEYS, "server.yml")];
        let shape = Shape {
            inside: None,
            elsewhere,
        };
        checker.mapping(root.entries(), FIELDS, &shape, &mut own);
        checker.require(
            &root,
            COMMAND,
            "add `command:` and the program with its arguments",
        );
    }
    own
}

/// `defaults` of `server.yml`.
pub(super) fn defaults(checker: &mut Checker<'_>, field: Field<'_>) -> Option<Defaults> {
    let entries = checker.entries(field, None)?;
    let (command, rules) = FIELDS.split_first()?;
    let elsewhere: &[(&[&str], &str)] = &[(&[command.key()], "each child's own file")];
    let shape = Shape {
        inside: Some(field.name),
        elsewhere,
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
    let restart = own.restart.as_ref().or(default.restart.as_ref());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut spec = Spec {
        path: path.to_owned(),
        command,
        workdir: workdir.map_or(folder, PathBuf::as_path).to_owned(),
        stdout: output::sink(output, Stream::Stdout, name, context),
        stderr: output::sink(output, Stream::Stderr, name, context),
        repeat: own.repeat.or(default.repeat).flatten(),
        prehook: hooks.prehook,
        posthook: hooks.posthook,
        restart: restart.cloned().unwrap_or_default(),
        digest: digest::NONE,
    };
    spec.digest = digest::of(&spec, workdir.map(PathBuf::as_path));
    spec
}
