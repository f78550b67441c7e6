//! Jobs that come and go, and children that wait for each other.

use std::fs;

use serde_json::Value;

use super::{
    host::{Host, lacks},
    page::Page,
};
use crate::sandbox::{PATIENCE, millis, pid_of, wait_for, wait_lines};

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

/// A field of the latest run of a child, in milliseconds since 1970.
fn latest(host: &Host, name: &str, field: &str) -> i64 {
    let child = &host.json(&["check", name])["children"][0];
    millis(&child["history"][0][field])
}

pub(super) fn order(page: &Page) {
    if lacks(&["redis-server", "redis-cli", "python3"]) {
        return;
    }
    let mut host = Host::of(page);
    let (typed, files) = page.steps.split_last().expect("steps");
    // In the wrong order: nobody begins before those that it waits for.
    for step in files.iter().rev() {
        host.take(step);
    }
    host.ready("app");
    host.ready("db");
    let began = |name| latest(&host, name, "started_at");
    assert!(began("db") <= began("migrate"));
    assert!(latest(&host, "migrate", "ended_at") <= began("app"));
    let said = host.take(typed);
    assert!(said.contains("\n2\n"), "{said}");
    assert!(latest(&host, "app", "ended_at") <= latest(&host, "db", "ended_at"));

    host.done(&["start", "--all"]);
    host.ready("db");
    let app = host.ready("app");
    // A migration that fails harms nobody who runs, and lets nobody begin.
    let path = "/etc/supervisor-rs/children/migrate.yml";
    let good = page.file(path);
    host.put(path, &good.replace("set schema 2", "nonsense"));
    host.wait_run("migrate", 2);
    host.wait_state("migrate", "exited");
    assert_eq!(pid_of(&host.row("app").unwrap()), app);
    host.done(&["stop", "app"]);
    let told = host.refused(&["start", "app"], "dependency_failed", 1);
    assert!(told.contains("migrate"), "{told}");
    let row = host.wait_state("app", "pending");
    assert!(row["reason"].as_str().unwrap().contains("migrate"), "{row}");
    host.put(path, &good.replace("schema 2", "schema 3"));
    host.ready("app");
    assert_eq!(host.types("redis-cli -e -p 6380 get schema").stdout, "3\n");
}
