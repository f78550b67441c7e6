//! The README: its session runs as printed, and its tables say what the programs say.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use supervisor_rs::{
    command::{ErrorCode, StateName},
    config::{child_keys, server_keys},
};

use crate::sandbox::{PATIENCE, Sandbox, run, wait_for};

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

/// The session's lines, in order, without their prompts.
fn session() -> Vec<String> {
    let text = readme();
    let at = text.find("<!-- session:").expect("the session");
    let lines = text[at..]
        .lines()
        .skip_while(|line| !line.starts_with("```"))
        .skip(1);
    let lines: Vec<String> = lines
        .take_while(|line| !line.starts_with("```"))
        .map(|line| line.strip_prefix("$ ").expect("a prompt").to_owned())
        .collect();
    assert_eq!(lines.len(), 10, "the session has ten lines");
    lines
}

/// The script that types the session: as printed, but for the directories and the port, which are
/// the sandbox's, and waiting for the server to answer.
fn script(settings: &str) -> String {
    let mut script = String::from("set -eu\n");
    for line in session() {
        let line = line.replace("listener_addr: 127.0.0.1\\n", settings);
        script.push_str(&line);
        script.push('\n');
        if line.ends_with('&') {
            script
                .push_str("until supervisor-rs-client info >/dev/null 2>&1; do sleep 0.05; done\n");
        }
        if line.ends_with("children/web.yml") {
            script.push_str("cat ~/sup/children/web.yml\n");
        }
    }
    script
}

#[test]
fn the_session_runs_as_printed() {
    let mut sandbox = Sandbox::new("");
    sandbox.expect_leftovers();
    let server = Path::new(env!("CARGO_BIN_EXE_supervisor-rs-server"));
    let programs = server.parent().expect("a folder").display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let root = sandbox.root().display().to_string();
    let address = sandbox.address();
    let settings = format!(
        "listener_addr: 127.0.0.1\\nlistener_port: {}\\nid: {}\\nstate_dir: {root}/state\\n\
         runtime_dir: {root}/run\\nlog_dir: {root}/logs\\n",
        address.port(),
        sandbox.id(),
    );
    let client = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor-rs-client"));
        command
            .args(arguments)
            .env("SUPERVISOR_RS_ON", address.to_string());
        run(command)
    };
    let mut bash = Command::new("bash");
    bash.args(["-c", &script(&settings)])
        .env("HOME", &root)
        .env("PATH", format!("{programs}:{path}"))
        .env("SUPERVISOR_RS_ON", address.to_string());
    let said = run(bash);
    assert_eq!(said.code, 0, "{said:?}");
    for part in [
        "web   running",
        "`web` restarted: run 2",
        "`web` stopped: run 2",
        "`web` started: run 3",
    ] {
        assert!(said.stdout.contains(part), "{part}\n{}", said.stdout);
    }
    wait_for("the removed child's end", PATIENCE, || {
        client(&["check", "web"]).stdout.contains("stopped")
    });
    let killed = client(&["kill"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    assert!(
        killed.stdout.contains("no child is left running"),
        "{killed:?}"
    );
}
