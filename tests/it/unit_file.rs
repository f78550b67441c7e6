//! The unit file for systemd: it is whole, and systemd takes it.

use std::{fs, path::Path, process::Command};

use crate::sandbox::{Sandbox, pass_over, run};

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/supervisor-rs.service");
    fs::read_to_string(path).expect("the unit file")
}

#[test]
fn the_unit_file_says_what_a_supervisor_needs() {
    let unit = unit();
    let lines: Vec<&str> = unit
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let mut section = "";
    for line in &lines {
        match line.strip_prefix('[') {
            Some(name) => section = name.trim_end_matches(']'),
            None => assert!(line.contains('='), "[{section}] {line}"),
        }
    }
    for needed in [
        "Type=notify",
        "NotifyAccess=main",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "WatchdogSec=30s",
        "Restart=always",
        "KillMode=process",
        "Delegate=yes",
        "OOMPolicy=continue",
        "TasksMax=infinity",
        "LimitNOFILE=1024:1048576",
        "RuntimeDirectory=supervisor-rs",
        "RuntimeDirectoryPreserve=yes",
        "StateDirectory=supervisor-rs",
        "WantedBy=multi-user.target",
    ] {
        assert!(lines.contains(&needed), "{needed}");
    }
}

#[test]
fn systemd_takes_the_unit_file_as_it_is() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("systemd-analyze").exists()) {
        return pass_over("`systemd-analyze` is not there");
    }
    let sandbox = Sandbox::new("").with_own_program();
    let place = sandbox.root().join("supervisor-rs.service");
    // It looks whether the program is there.
    let own = sandbox.program().display().to_string();
    let installed = "/usr/local/bin/supervisor-rs-server";
    let unit = unit();
    assert!(unit.contains(&format!("ExecStart={installed} ")));
    fs::write(&place, unit.replace(installed, &own)).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(&place);
    let output = run(command);
    let said = format!("{}{}", output.stdout, output.stderr);
    // What it says of other units of this machine is not ours.
    let ours = |line: &&str| line.contains("supervisor-rs");
    let ours: Vec<&str> = said.lines().filter(ours).collect();
    assert_eq!(ours, Vec::<&str>::new(), "{said}");
    assert_eq!(output.code, 0, "{said}");
}
