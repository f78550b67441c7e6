//! Configuration from the outside: files of `fixtures/config` against what they must mean, and
//! bad ones against the whole diagnostics that people see.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test config` writes the snapshots anew; read the diff.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use supervisor_rs::{
    config::{ChildContext, Diagnostic, Host, ServerSpec, child, server},
    spec::{Hook, Mode, OpenMode, Repeat, RestartPolicy, Sink, Spec, Verb},
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config")
}

fn host() -> Host {
    Host {
        root: true,
        host_name: "alpha".to_owned(),
        xdg_state_home: None,
        home: Some(PathBuf::from("/root")),
        pid1: false,
    }
}

fn context() -> ChildContext {
    ChildContext {
        log_dir: PathBuf::from("/logs"),
        defaults: Arc::default(),
        pid1: false,
    }
}

fn read_server(bytes: &[u8]) -> Result<ServerSpec, Vec<Diagnostic>> {
    let path = Path::new("/tmp/server.yml");
    server(path, path, bytes, &host())
}

fn read_child(bytes: &[u8]) -> Result<Spec, Vec<Diagnostic>> {
    let name = "web".parse().expect("a name");
    child(&name, Path::new("/tmp/client/web.yml"), bytes, &context())
}

/// The files of a folder that end in `.yml`, sorted.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fixtures().join(folder)).expect("the folder of fixtures");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect();
    files.sort();
    files
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .expect("a name")
        .to_string_lossy()
        .into_owned()
}

fn original(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(format!("ok/original/{name}.yml"))).expect("a fixture")
}

/// What a bad file of the fixtures tells, under a path that is the same on every machine.
fn faults_of(path: &Path, bytes: &[u8]) -> Vec<Diagnostic> {
    let (name, file) = (stem(path), path.file_name().expect("a name"));
    if name.starts_with("child-") {
        let shown = Path::new("/etc/children").join(file);
        let web = "web".parse().expect("a name");
        child(&web, &shown, bytes, &context()).expect_err(&name)
    } else {
        let shown = Path::new("/etc").join(file);
        server(&shown, &shown, bytes, &host()).expect_err(&name)
    }
}

fn all(diagnostics: &[Diagnostic]) -> String {
    let blocks: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    blocks.join("\n\n") + "\n"
}

#[test]
fn every_bad_file_is_told_exactly_as_its_snapshot_shows() {
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let mut wrong = Vec::new();
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        let name = stem(&path);
        let faults = faults_of(&path, &bytes);
        let told = all(&faults);
        let snapshot = path.with_extension("stderr");
        if update {
            fs::write(&snapshot, told).expect("a snapshot is written");
        } else if fs::read_to_string(&snapshot).ok().as_ref() != Some(&told) {
            wrong.push(format!("{name} now tells:\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_snapshot_has_its_file_and_every_file_names_its_kind() {
    let known: BTreeSet<String> = files("bad").iter().map(|path| stem(path)).collect();
    for name in &known {
        let kind = name.starts_with("child-") || name.starts_with("server-");
        assert!(kind, "{name} is neither a child nor a server file");
    }
    for entry in fs::read_dir(fixtures().join("bad")).expect("fixtures") {
        let path = entry.expect("an entry").path();
        assert!(
            known.contains(&stem(&path)),
            "{} is an orphan",
            path.display()
        );
    }
}

#[test]
fn every_fault_of_a_fixture_has_a_place_and_its_line_is_the_files() {
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        let text = String::from_utf8_lossy(&bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines: Vec<&str> = text
            .split('\n')
            .map(|line| line.trim_end_matches('\r'))
            .collect();
        for fault in faults_of(&path, &bytes) {
            let name = path.display();
            if fault.message.ends_with("more faults are not shown") {
                continue;
            }
            let place = fault.place.unwrap_or_else(|| panic!("{name}: {fault}"));
            let line = fault.source_line.as_deref().expect("a line");
            assert_eq!(line, lines[place.line - 1], "{name}");
            assert!(
                place.column <= line.chars().count() + 1,
                "{name}: {place:?}"
            );
            assert!(
                fault.width >= 1 && fault.width <= line.chars().count().max(1),
                "{name}"
            );
        }
    }
}

#[test]
fn messages_are_one_line_in_lower_case_without_a_full_stop() {
    for path in files("bad") {
        let bytes = fs::read(&path).expect("a fixture");
        for fault in faults_of(&path, &bytes) {
            for text in [Some(&fault.message), fault.help.as_ref()]
                .into_iter()
                .flatten()
            {
                let first = text.chars().next().expect("a text");
                assert!(!first.is_uppercase() || text.starts_with("YAML"), "{text}");
                assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
                assert!(text.chars().count() < 400, "{text}");
            }
        }
    }
}
