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
    depends::{self, Need},
    diagnostic::{Source, Span},
    digest,
    fault::LifeFault,
    hooks::{self, Hooks},
    keys::SERVER_KEYS,
    output::{self, Output, Stream},
    probe, restart,
    rules::{Checker, Field, Rule, Shape, rule},
    stop, text_of,
};
use crate::spec::{ChildName, Health, Ready, Repeat, RestartPolicy, Spec, StopPolicy};

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
    stop: Option<StopPolicy>,
    ready: Option<Option<Ready>>,
    health: Option<Option<Health>>,
    depends_on: Option<Vec<Need>>,
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
    rule("stop", |c, f, fields| fields.stop = stop::policy(c, f)),
    rule("ready", |c, f, fields| fields.ready = probe::ready(c, f)),
    rule("health", |c, f, fields| fields.health = probe::health(c, f)),
    rule("depends_on", |c, f, fields| {
        fields.depends_on = depends::depends_on(c, f)
    }),
    rule("workdir", |c, f, fields| fields.workdir = c.directory(f)),
];

/// The keys of a child's file, for whoever documents them.
pub fn child_keys() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(Rule::name)
}

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
    if let Some(needs) = &own.depends_on {
        depends::check_self(&mut checker, needs, name);
    }
    match own.command.clone() {
        Some(command) if !checker.has_faults() => {
            let spec = assemble(name, path, command, &own, context);
            if output::is_readable(&spec) {
                return Ok(spec);
            }
            let start = Span { start: 0, end: 0 };
            checker.fault(start, LifeFault::NothingLogged);
            Err(checker.diagnostics())
        }
        Some(_) | None => Err(checker.diagnostics()),
    }
}

/// The fields of a child's file; a missing or faulty one is `None`, and told.
fn own_fields(checker: &mut Checker<'_>) -> Fields {
    let mut own = Fields::default();
    if let Some(root) = checker.root("a child file", "it needs at least `command: PROGRAM`") {
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
    let stop = own.stop.as_ref().or(default.stop.as_ref());
    let needs = own.depends_on.as_ref().or(default.depends_on.as_ref());
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
        stop: stop.cloned().unwrap_or_default(),
        ready: own.ready.clone().or(default.ready.clone()).flatten(),
        health: own.health.clone().or(default.health.clone()).flatten(),
        depends_on: depends::dependencies(needs, name),
        digest: digest::NONE,
    };
    spec.digest = digest::of(&spec, workdir.map(PathBuf::as_path));
    spec
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{Host, server},
        spec::{Hook, OpenMode, RestartWhen, Sink, Verb},
    };

    const PATH: &str = "/srv/children/web.yml";

    pub(in crate::config) fn context() -> ChildContext {
        ChildContext {
            log_dir: PathBuf::from("/logs"),
            defaults: Arc::default(),
            pid1: false,
        }
    }

    fn pid1() -> ChildContext {
        ChildContext {
            pid1: true,
            ..context()
        }
    }

    /// A context with these lines as `defaults`.
    pub(in crate::config) fn with_defaults(lines: &str) -> ChildContext {
        let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!("loadpaths: [/srv/children]\ndefaults:\n{lines}");
        let host = Host {
            root: true,
            host_name: "alpha".to_owned(),
            xdg_state_home: None,
            home: None,
            pid1: false,
        };
        let path = Path::new("/etc/supervisor/server.yml");
        let spec = server(path, path, text.as_bytes(), &host).expect("a good server.yml");
        ChildContext {
            defaults: spec.defaults,
            ..context()
        }
    }

    pub(in crate::config) fn read_in(text: &str, context: &ChildContext) -> Spec {
        let name = "web".parse().expect("a name");
        child(&name, Path::new(PATH), text.as_bytes(), context).unwrap_or_else(|faults| {
            let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
            panic!("{text}: {}", told.join("\n"))
        })
    }

    pub(in crate::config) fn read(text: &str) -> Spec {
        read_in(text, &context())
    }

    fn file(path: &str, mode: OpenMode) -> Sink {
        Sink::File {
            path: PathBuf::from(path),
            mode,
        }
    }

    #[test]
    fn a_command_alone_is_a_whole_child() {
        let spec = read("command: sleep 10\n");
        assert_eq!(spec.path, Path::new(PATH));
        assert_eq!(spec.command, ["sleep", "10"]);
        assert_eq!(spec.workdir, Path::new("/srv/children"));
        assert_eq!(spec.stdout, file("/logs/web.out", OpenMode::Append));
        assert_eq!(spec.stderr, file("/logs/web.err", OpenMode::Append));
        assert_eq!(
            (spec.repeat, spec.prehook, spec.posthook),
            (None, None, None)
        );
        assert_eq!(spec.restart, RestartPolicy::default());
    }

    #[test]
    fn a_command_is_split_as_a_shell_would_and_no_shell_runs() {
        for (text, argv) in [
            (
                "sh -c 'echo \"a b\"; exit'",
                vec!["sh", "-c", "echo \"a b\"; exit"],
            ),
            (
                "\"web --name 'two words'\"",
                vec!["web", "--name", "two words"],
            ),
            (">\n  web\n  --port 80\n", vec!["web", "--port", "80"]),
            ("|\n  web \\\n  --port 80\n", vec!["web", "--port", "80"]),
            ("echo $USER && ls *", vec!["echo", "$USER", "&&", "ls", "*"]),
            ("web ''", vec!["web", ""]),
            ("[web, '', a b]", vec!["web", "", "a b"]),
            ("true", vec!["true"]),
        ] {
            assert_eq!(read(&format!("command: {text}\n")).command, argv, "{text}");
        }
    }

    #[test]
    fn arguments_stay_exactly_as_typed() {
        let spec = read("command: [sleep, 010, 1.10, 0x1F, yes, on, 1_000, 2024-01-01]\n");
        let expected = [
            "sleep",
            "010",
            "1.10",
            "0x1F",
            "yes",
            "on",
            "1_000",
            "2024-01-01",
        ];
        assert_eq!(spec.command, expected);
    }

    #[test]
    fn relative_output_lies_in_log_dir_and_absolute_where_it_says() {
        let spec =
            read("command: x\noutput:\n- stdout: ./a//b.log\n  mode: create\n- stderr: /var/x\n");
        assert_eq!(spec.stdout, file("/logs/a/b.log", OpenMode::Create));
        assert_eq!(spec.stderr, file("/var/x", OpenMode::Append));
    }

    #[test]
    fn a_stream_without_an_entry_has_its_built_in_file() {
        let spec = read("command: x\noutput:\n- stderr: e\n");
        assert_eq!(spec.stdout, file("/logs/web.out", OpenMode::Append));
        assert_eq!(spec.stderr, file("/logs/e", OpenMode::Append));
        assert_eq!(read("command: x\noutput:\n"), read("command: x\n"));
    }

    #[test]
    fn output_inherits_when_told_to_and_as_pid_1_unless_told_otherwise() {
        let spec = read("command: x\noutput: inherit\n");
        assert_eq!((spec.stdout, spec.stderr), (Sink::Inherit, Sink::Inherit));
        let spec = read_in("command: x\n", &pid1());
        assert_eq!((spec.stdout, spec.stderr), (Sink::Inherit, Sink::Inherit));
        let spec = read_in("command: x\noutput:\n- stdout: a\n", &pid1());
        assert_eq!(spec.stdout, file("/logs/a", OpenMode::Append));
        assert_eq!(spec.stderr, Sink::Inherit);
    }

    #[test]
    fn a_path_may_climb_as_long_as_it_stays_inside_of_log_dir() {
        let spec = read("command: x\noutput:\n- stdout: a/../b\n- stderr: ...\n");
        assert_eq!(spec.stdout, file("/logs/a/../b", OpenMode::Append));
        assert_eq!(spec.stderr, file("/logs/...", OpenMode::Append));
    }

    #[test]
    fn workdir_is_the_files_folder_or_relative_to_it_or_absolute() {
        for (given, expected) in [
            ("/opt/web/", "/opt/web"),
            ("web", "/srv/children/web"),
            (".", "/srv/children"),
            ("../web", "/srv/children/../web"),
        ] {
            let spec = read(&format!("command: x\nworkdir: {given}\n"));
            assert_eq!(spec.workdir, Path::new(expected));
        }
    }

    #[test]
    fn repeat_has_restart_for_an_action_left_empty() {
        for action in [
            "",
            "action:",
            "action: ''",
            "action: null",
            "action: restart",
        ] {
            let spec = read(&format!("command: x\nrepeat:\n  {action}\n  seconds: 5\n"));
            let every = Duration::from_secs(5);
            assert_eq!(
                spec.repeat,
                Some(Repeat {
                    action: Verb::Restart,
                    every
                }),
                "{action}"
            );
        }
        let spec = read("command: x\nrepeat: {action: stop, seconds: 1}\n");
        assert_eq!(spec.repeat.map(|repeat| repeat.action), Some(Verb::Stop));
    }

    #[test]
    fn hooks_are_commands_to_children_or_programs() {
        let spec =
            read("command: x\nhooks:\n- prehook: trystart  db.1\n- posthook: run sh -c 'a b'\n");
        let child = "db.1".parse().expect("a name");
        assert_eq!(
            spec.prehook,
            Some(Hook::Command {
                verb: Verb::Trystart,
                child
            })
        );
        let argv = ["sh", "-c", "a b"].map(str::to_owned).to_vec();
        assert_eq!(spec.posthook, Some(Hook::Run(argv)));
        // Both in one entry mean the same as in two.
        let spec = read("command: x\nhooks:\n- prehook: start a\n  posthook: stop a\n");
        assert!(spec.prehook.is_some() && spec.posthook.is_some());
    }

    #[test]
    fn a_childs_own_field_wins_whole_over_the_default() {
        let context = with_defaults(
            "output:\n- stdout: d.out\n- stderr: d.err\nrestart: {when: always, delay: 9s}\n\
             repeat: {seconds: 9}\nhooks:\n- prehook: start a\n- posthook: stop a\nworkdir: run",
        );
        let spec = read_in("command: x\n", &context);
        assert_eq!(spec.stdout, file("/logs/d.out", OpenMode::Append));
        assert_eq!(spec.stderr, file("/logs/d.err", OpenMode::Append));
        assert_eq!(spec.restart.when, RestartWhen::Always);
        assert_eq!(spec.restart.delay, Duration::from_secs(9));
        assert_eq!(
            spec.repeat.map(|repeat| repeat.every),
            Some(Duration::from_secs(9))
        );
        assert!(spec.prehook.is_some() && spec.posthook.is_some());
        // Relative to the file it stands in: server.yml.
        assert_eq!(spec.workdir, Path::new("/etc/supervisor/run"));

        let own = "command: x\noutput:\n- stdout: own\nrestart: on-failure\n\
                   hooks:\n- prehook: start b\nworkdir: .\nrepeat: {seconds: 1}\n";
        let spec = read_in(own, &context);
        assert_eq!(spec.stdout, file("/logs/own", OpenMode::Append));
        assert_eq!(spec.stderr, file("/logs/web.err", OpenMode::Append));
        assert_eq!(spec.restart.delay, RestartPolicy::default().delay);
        assert_eq!(spec.posthook, None);
        assert_eq!(spec.workdir, Path::new("/srv/children"));
    }

    #[test]
    fn an_empty_collection_takes_the_default_away() {
        let context =
            with_defaults("output: inherit\nrepeat: {seconds: 9}\nhooks:\n- prehook: start a");
        let spec = read_in("command: x\noutput:\nrepeat:\nhooks:\n", &context);
        assert_eq!(spec.stdout, file("/logs/web.out", OpenMode::Append));
        assert_eq!((spec.repeat, spec.prehook), (None, None));
    }

    #[test]
    fn defaults_that_are_empty_change_nothing() {
        for lines in ["", "x-note: mine"] {
            assert_eq!(
                read_in("command: x\n", &with_defaults(lines)),
                read("command: x\n")
            );
        }
    }

    #[test]
    fn keys_of_ones_own_are_ignored_whatever_is_in_them() {
        let plain = read("command: x\n");
        assert_eq!(
            read("x-a: {command: y}\ncommand: x\nx-: [1, {z: 2}]\n"),
            plain
        );
        assert_eq!(read("x-a: &a [x]\ncommand: *a\n").command, ["x"]);
    }

    #[test]
    fn the_first_field_is_the_one_without_a_default() {
        assert_eq!(FIELDS.first().map(Rule::key), Some(COMMAND));
    }
}
