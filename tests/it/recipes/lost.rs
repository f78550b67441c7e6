//! Records that are lost while real programs run: most write a title over their environment, which
//! says whose they are.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{data::lacks_postgres, host::Host, page::Page, web::lacks_nginx};
use crate::{
    records_lost::lose_run_dir,
    sandbox::{PATIENCE, lives, wait_for},
};

/// Follows a page, kills the server, loses its records and starts another: the first `name` runs on.
fn lose(page: &str, name: &str) -> (Host, i32, u64) {
    let mut host = Host::follow(&Page::read(page));
    let main = host.ready(name);
    let before = run_of(&host, name);
    host.kill_server();
    lose_run_dir(&host);
    host.start_server();
    (host, main, before)
}

/// It ends by this signal, and then another may begin.
fn another_begins(mut host: Host, name: &str, main: i32, before: u64, end: Signal) {
    assert!(lives(main), "nobody is harmed");
    kill_process(Pid::from_raw(main).unwrap(), end).unwrap();
    wait_for("its end", PATIENCE, || !lives(main));
    host.wait_run(name, before + 1);
    assert_ne!(host.ready(name), main);
    host.stop_whole(name);
}

/// A second `name` is not even tried beside the first.
fn runs_once(page: &str, name: &str, end: Signal) {
    let (host, main, before) = lose(page, name);
    let row = host.row(name).unwrap();
    let told = row["reason"].as_str().unwrap_or_default();
    // Other tests may have one too, which is doubted as well until it ends.
    let doubt = "records were lost, and process ";
    assert!(row["state"] == "failed" && told.starts_with(doubt), "{row}");
    assert_eq!(row["pid"], Value::Null, "{row}");
    another_begins(host, name, main, before, end);
}

fn run_of(host: &Host, name: &str) -> u64 {
    let row: Value = host.row(name).unwrap();
    row["run"].as_u64().unwrap()
}

#[test]
fn no_second_nginx_is_started_beside_one_that_nobody_knows() {
    if !lacks_nginx() {
        runs_once("nginx", "web", Signal::QUIT);
    }
}

#[test]
fn no_second_redis_is_started_beside_one_that_nobody_knows() {
    if !super::host::lacks(&["redis-server", "redis-cli"]) {
        runs_once("redis", "cache", Signal::TERM);
    }
}

/// What `setpriv` has made another user's cannot be told from a stranger's.
#[test]
fn postgres_keeps_a_second_from_its_data_when_nobody_knows_of_the_first() {
    if lacks_postgres() {
        return;
    }
    let (host, main, _) = lose("postgres", "db");
    let log = host.log_dir().join("db.err");
    wait_for("a second one's refusal", PATIENCE, || {
        fs::read_to_string(&log)
            .is_ok_and(|text| text.contains("\"postmaster.pid\" already exists"))
    });
    let before = run_of(&host, "db");
    another_begins(host, "db", main, before, Signal::INT);
}
