//! What children have of their server, and a server that is killed before it is ready.

use std::{fs, os::unix::fs::MetadataExt, path::Path, thread, time::Duration};

use rustix::fs::{FlockOperation, flock};

use crate::{
    look::{Leader, descriptors, leaders},
    random::Random,
    reaper,
    sandbox::{PATIENCE, SLEEPER, Sandbox, wait_for},
};

/// How many children there are.
const CHILDREN: usize = 12;

/// How often a server is killed at its very start.
const KILLS: u32 = 60;

/// A server is ready after about as long.
const START_MAX: Duration = Duration::from_millis(60);

/// Declares sleepers, all at once.
fn declare(sandbox: &Sandbox) {
    for number in 0..CHILDREN {
        sandbox.write(&format!("child{number}.yml"), SLEEPER);
    }
}

/// Waits until each has a process, and returns these.
fn all_run(sandbox: &Sandbox) -> Vec<Leader> {
    let mut found = Vec::new();
    wait_for("a process of each child", PATIENCE, || {
        found = leaders(sandbox.id());
        found.len() == CHILDREN
    });
    found
}

/// Who has a lock on a file, as the kernel tells.
fn holders(file: &Path) -> Vec<String> {
    let inode = fs::metadata(file).unwrap().ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let fields = locks
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`
    let ours = fields.filter(|fields| {
        fields.get(1) == Some(&"FLOCK")
            && fields.get(5).and_then(|place| place.rsplit(':').next()) == Some(&inode)
    });
    ours.map(|fields| fields[4].to_owned()).collect()
}

#[test]
fn children_have_nothing_of_their_servers_open_and_keep_no_lock_of_it() {
    reaper::begin();
    let mut sandbox = Sandbox::start("mode: sync");
    declare(&sandbox);
    let found = all_run(&sandbox);
    for leader in &found {
        let open: Vec<i32> = descriptors(leader.pid)
            .into_iter()
            .map(|(number, _)| number)
            .collect();
        assert_eq!(open, [0, 1, 2], "{leader:?}: {:?}", descriptors(leader.pid));
    }
    let locks = ["run", "state"].map(|dir| sandbox.root().join(dir).join("lock"));
    let server = sandbox.server_pid().to_string();
    for lock in &locks {
        assert_eq!(holders(lock), [server.as_str()], "{}", lock.display());
    }
    sandbox.kill_server();
    for lock in &locks {
        let file = fs::File::open(lock).unwrap();
        let taken = flock(&file, FlockOperation::NonBlockingLockExclusive);
        assert!(
            taken.is_ok(),
            "{}: {taken:?}, {:?}",
            lock.display(),
            holders(lock)
        );
    }
    sandbox.start_server();
    assert_eq!(all_run(&sandbox), found);
}

#[test]
fn a_server_killed_at_its_very_start_again_and_again_leaves_a_state_that_starts() {
    reaper::begin();
    let mut sandbox = Sandbox::new("mode: sync");
    declare(&sandbox);
    let mut random = Random::new(4, 0);
    for _ in 0..KILLS {
        sandbox.begin_server();
        thread::sleep(random.up_to(START_MAX));
        sandbox.kill_server();
    }
    sandbox.start_server();
    let found = all_run(&sandbox);
    for number in 0..CHILDREN {
        let name = format!("child{number}");
        let row = sandbox.wait_state(&name, "running");
        let own = found.iter().find(|leader| leader.child == name).unwrap();
        assert_eq!(
            (row["pid"].as_i64(), row["run"].as_u64()),
            (Some(own.pid.into()), Some(own.run))
        );
    }
    // And again, from the same state: nothing of it was torn.
    sandbox.restart_server();
    assert_eq!(all_run(&sandbox), found);
}
