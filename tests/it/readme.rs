//! The README: its session runs as printed, and its tables say what the programs say.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use supervisor_rs::{
    command::{ErrorCode, StateName},
    config::{child_keys, server_keys},
};

use crate::sandbox::{Output, PATIENCE, Sandbox, skip, wait_for};

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).expect("the README")
}

/// The rows of the table behind a marker: the first cell's words in backticks, and the others.
fn table(marker: &str) -> Vec<(String, String)> {
    let text = readme();
    let marker = format!("<!-- table: {marker};");
    let at = text.find(&marker).unwrap_or_else(|| panic!("no {marker}"));
    text[at..]
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let (first, rest) = line[1..].split_once('|').expect("two cells");
            (
                first.trim().trim_matches('`').to_owned(),
                rest.trim().to_owned(),
            )
        })
        .collect()
}

fn firsts(marker: &str) -> BTreeSet<String> {
    table(marker).into_iter().map(|(first, _)| first).collect()
}

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// The words in backticks of a text.
fn quoted(text: &str) -> BTreeSet<String> {
    set(text.split('`').skip(1).step_by(2))
}

#[test]
fn the_table_of_server_fields_names_just_those_that_exist() {
    assert_eq!(firsts("server fields"), set(server_keys()));
}

#[test]
fn the_table_of_child_fields_names_just_those_that_exist() {
    assert_eq!(firsts("child fields"), set(child_keys()));
}

#[test]
fn the_table_of_states_names_just_those_that_exist() {
    let states = [
        StateName::Pending,
        StateName::Starting,
        StateName::Running,
        StateName::Stopping,
        StateName::Exited,
        StateName::Backoff,
        StateName::Failed,
        StateName::Stopped,
    ];
    assert_eq!(firsts("states"), set(states.map(StateName::as_str)));
}

#[test]
fn the_table_of_exit_codes_names_each_error_at_its_code() {
    let table = table("exit codes");
    for code in ErrorCode::ALL {
        let exit = code.exit_code().to_string();
        let row = table
            .iter()
            .find(|(first, _)| *first == exit)
            .expect("a row");
        assert!(
            quoted(&row.1).contains(code.as_str()),
            "{code} is not at {exit}"
        );
    }
    let named: BTreeSet<String> = table.iter().flat_map(|(_, rest)| quoted(rest)).collect();
    let codes = set(ErrorCode::ALL.map(ErrorCode::as_str));
    let others: Vec<_> = named.difference(&codes).collect();
    assert_eq!(others, ["check NAME"]);
}

#[test]
fn the_table_of_commands_names_just_those_of_the_help() {
    let sandbox = Sandbox::new("");
    let help = sandbox.client_as_given(&["--help"]);
    assert_eq!(help.code, 0, "{help:?}");
    for (first, _) in table("commands") {
        let word = first.split_whitespace().next().expect("a word");
        let named = help
            .stdout
            .lines()
            .any(|line| line.trim_start().starts_with(word));
        assert!(named, "`{word}` is not in the help:\n{}", help.stdout);
    }
}

/// The lines of a session that must have so many, in order, without their prompts.
fn session(name: &str, count: usize) -> Vec<String> {
    let text = readme();
    let marker = format!("<!-- {name}:");
    let at = text
        .find(&marker)
        .unwrap_or_else(|| panic!("no session {name}"));
    let lines = text[at..]
        .lines()
        .skip_while(|line| !line.starts_with("```"))
        .skip(1);
    let lines: Vec<String> = lines
        .take_while(|line| !line.starts_with("```"))
        .map(|line| line.strip_prefix("$ ").expect("a prompt").to_owned())
        .collect();
    assert_eq!(lines.len(), count, "the lines of the session {name}");
    lines
}

/// The script that types a session: as printed, and waiting where a person would, until the server
/// answers and the child runs; one that takes signed commands only refuses, with code 4.
fn script(lines: &[String]) -> String {
    let mut script = String::from("set -eu\n");
    for line in lines {
        script.push_str(line);
        script.push('\n');
        if line.ends_with('&') {
            script.push_str(
                "until supervisor-rs-client check web >/dev/null 2>&1 || [ $? = 4 ]; do sleep 0.05; \
                 done\n",
            );
        }
    }
    script
}

/// The lines of the first session, but for the directories and the port, which are the sandbox's.
fn first_session(sandbox: &Sandbox) -> Vec<String> {
    let root = sandbox.root().display();
    let settings = format!(
        "listener_addr: 127.0.0.1\\nlistener_port: {}\\nid: {}\\nstate_dir: {root}/state\\n\
         runtime_dir: {root}/run\\nlog_dir: {root}/logs\\n",
        sandbox.address().port(),
        sandbox.id(),
    );
    let lines = session("session", 10);
    let lines = lines.iter();
    lines
        .map(|line| line.replace("listener_addr: 127.0.0.1\\n", &settings))
        .collect()
}

/// Types lines in the sandbox, as a person who has just installed both programs.
fn type_in(sandbox: &Sandbox, lines: &[String]) -> Output {
    let said = sandbox.shell(&script(lines));
    assert_eq!(said.code, 0, "{said:?}");
    said
}

#[test]
fn the_session_runs_as_printed() {
    let mut sandbox = Sandbox::new("");
    sandbox.expect_leftovers();
    let said = type_in(&sandbox, &first_session(&sandbox));
    for part in [
        "web   running",
        "`web` restarted: run 2",
        "`web` stopped: run 2",
        "`web` started: run 3",
    ] {
        assert!(said.stdout.contains(part), "{part}\n{}", said.stdout);
    }
    wait_for("the removed child's end", PATIENCE, || {
        sandbox.client(&["check", "web"]).stdout.contains("stopped")
    });
    let killed = sandbox.client(&["kill"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    assert!(
        killed.stdout.contains("no child is left running"),
        "{killed:?}"
    );
}

#[test]
fn the_session_with_keys_runs_as_printed_after_the_first() {
    if Command::new("openssl").arg("version").output().is_err() {
        return skip("openssl is missing");
    }
    let mut sandbox = Sandbox::new("");
    sandbox.expect_leftovers();
    type_in(&sandbox, &first_session(&sandbox)[..5]);
    // Keys of 4096 bits only take longer to make.
    let shorter = |line: String| {
        line.replace("keygen deploy ", "keygen deploy --bits 2048 ")
            .replace("-out ci.pem 4096", "-out ci.pem 2048")
    };
    let lines: Vec<String> = session("keys", 12).into_iter().map(shorter).collect();
    assert_eq!(lines.join("\n").matches("2048").count(), 2, "{lines:?}");
    let said = type_in(&sandbox, &lines);
    let rows = said.stdout.matches("web   running").count();
    assert_eq!(rows, 2, "{said:?}");
    // From now on it is as the page says.
    let with = |arguments: &[&str], key: &str| {
        let key = sandbox.root().join(key).display().to_string();
        sandbox.client(&[arguments, &["with", &key]].concat())
    };
    assert_eq!(sandbox.client(&["check"]).code, 4);
    let forbidden = with(&["restart", "web"], "ci.pem");
    assert_eq!(forbidden.code, 4, "{forbidden:?}");
    assert!(
        forbidden.stderr.contains("error[forbidden]"),
        "{forbidden:?}"
    );
    assert_eq!(with(&["trystart", "web"], "ci.pem").code, 0);
    let info = with(&["info"], "deploy.pem");
    for key in ["deploy (2048 bits, SHA256:", "ci (2048 bits, SHA256:"] {
        assert!(info.stdout.contains(key), "{info:?}");
    }
    let server_yml = sandbox.root().join("sup/server.yml").display().to_string();
    let audit = sandbox.server_to_end(&["--verify-audit", &server_yml]);
    assert!(audit.stdout.starts_with("audit is whole: "), "{audit:?}");
    let killed = with(&["kill", "--stop-children"], "deploy.pem");
    assert_eq!(killed.code, 0, "{killed:?}");
}
