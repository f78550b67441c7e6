//! Jobs that come and go.

use std::fs;

use serde_json::Value;

use super::{host::Host, page::Page};
use crate::sandbox::{PATIENCE, wait_for, wait_lines};

pub(super) fn periodic(page: &Page) {
    let mut host = Host::of(page);
    let said: String = page.steps.iter().map(|step| host.take(step)).collect();
    assert!(said.contains("backup"), "{said}");
    let done = host.place("/srv/backup/done");
    wait_lines(&done, 2);
    host.restart_server();
    let lines = wait_lines(&done, 3);
    let mut sorted = lines.clone();
    sorted.sort();
    assert_eq!(lines, sorted, "times");

    // One that takes long is left alone.
    let script = page.file("/srv/backup/backup");
    let gate = host.gate("gate");
    host.put("/srv/backup/backup", &format!("{script}{gate}\n"));
    let run = host.wait_state("backup", "running")["run"]
        .as_u64()
        .unwrap();
    let missed = |row: &Value| row["next"]["at"].as_str().map(str::to_owned);
    let first = missed(&host.row("backup").unwrap());
    wait_for("a firing that finds it running", PATIENCE, || {
        missed(&host.row("backup").unwrap()) > first
    });
    assert_eq!(host.row("backup").unwrap()["run"], run);
    host.open_gate("gate");

    // One that fails is tried three times more.
    host.put(
        "/srv/backup/backup",
        "#!/bin/sh\necho x >> /srv/backup/failed\nexit 1\n",
    );
    wait_lines(&host.place("/srv/backup/failed"), 4);
    let row = host.wait_state("backup", "failed");
    assert_eq!(row["next"]["action"], "start", "the next hour comes: {row}");
    let before = fs::read_to_string(host.here("/srv/backup/failed")).unwrap();
    wait_lines(
        &host.place("/srv/backup/failed"),
        before.lines().count() + 1,
    );
    host.done(&["stop", "backup"]);
    let row = host.row("backup").unwrap();
    assert_eq!(row["next"], Value::Null, "{row}");
}
