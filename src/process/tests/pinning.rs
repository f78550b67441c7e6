//! Pins: what of a run is known that ends while nobody of us lives.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::*;

/// More than the tmpfs has inodes for in tests.
const PINS_MAX: u64 = 512;

/// The lines of our mount table that concern a folder.
fn mounts(folder: &Path) -> Vec<String> {
    mounts_of("/proc/self/mountinfo", folder)
}

fn mounts_of(table: &str, folder: &Path) -> Vec<String> {
    let table = fs::read_to_string(table).unwrap();
    let folder = folder.to_str().unwrap();
    let concerns = |line: &&str| {
        line.split(' ')
            .nth(4)
            .is_some_and(|at| at.starts_with(folder))
    };
    table.lines().filter(concerns).map(str::to_owned).collect()
}

impl World {
    /// As if its server had died: nobody pins or takes away any more.
    fn lose_pins(&mut self) {
        assert!(
            !self.processes.pinned.is_empty(),
            "or all of it would be taken away"
        );
        self.processes.pins = Pins::none("gone");
    }

    fn pins(&self) -> String {
        self.processes.capabilities()["pins"].clone()
    }
}

/// A world that has pinned a run, which ended and was reaped while nobody pinned; its folder.
async fn ended_meanwhile(script: &str) -> Option<(World, Started)> {
    let mut before = World::pinning()?;
    let started = before.start(script);
    before.lose_pins();
    before.exit().await;
    before.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    Some((before, started))
}

#[tokio::test]
async fn the_exit_of_one_that_ended_and_was_reaped_meanwhile_is_exact() {
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 7", Exit::Code(7)),
        ("kill -KILL $$", Exit::Signal(9)),
    ] {
        let Some((before, started)) = ended_meanwhile(script).await else {
            return;
        };
        let mut world = World::new();
        world.pin_in(&before.path("run"));
        let Started { pid, start_ticks } = started;
        let adopt = |world: &mut World| world.processes.adopt(&web(), ONE, pid, start_ticks);
        assert_eq!(adopt(&mut world), Adoption::Gone(exit));
        world.processes.keep_only_pins_of([(pid, start_ticks)]);
        // Not on record yet: should this server die too, the next one can tell.
        assert_eq!(adopt(&mut world), Adoption::Gone(exit));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        assert_eq!(adopt(&mut world), Adoption::Gone(Exit::Unknown));
    }
}

#[tokio::test]
async fn a_pin_that_is_kept_for_the_end_is_not_on_record_tells_the_next_server() {
    let Some(mut before) = World::pinning() else {
        return;
    };
    let Started { pid, start_ticks } = before.start("exit 7");
    before.processes.keep_pin(&web(), ONE);
    let name = PinName { pid, start_ticks };
    assert!(
        before.processes.pins_kept.is_empty(),
        "nothing is done to one that lives"
    );
    before.exit().await;
    before.processes.keep_pin(&web(), ONE);
    before.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    assert!(before.processes.pins.find(name).is_some());
    let mut world = World::new();
    world.pin_in(&before.path("run"));
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Code(7)));
    before.processes.unpin_kept();
    assert!(before.processes.pins.find(name).is_none());
}

#[tokio::test]
async fn a_pin_is_of_the_very_process_whoever_has_its_number() {
    let Some((before, Started { pid, start_ticks })) = ended_meanwhile("exit 7").await else {
        return;
    };
    let mut world = World::new();
    world.pin_in(&before.path("run"));
    let another = world.processes.adopt(&web(), ONE, pid, start_ticks + 1);
    assert_eq!(another, Adoption::Gone(Exit::Unknown));
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Code(7)));
}

#[tokio::test]
async fn what_is_left_of_the_group_is_found_by_the_pin_and_cleared() {
    let script = "sleep 100 & echo $! > pid; exit 7";
    let Some(mut before) = World::pinning() else {
        return;
    };
    let Started { pid, start_ticks } = before.start(script);
    let member = before.pid("pid").await;
    before.lose_pins();
    before.exit().await;
    before.processes.reap(&web(), ONE, Leftovers::Leave);
    let mut world = World::new();
    world.pin_in(&before.path("run"));
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Code(7)));
    assert!(lives(member));
    world.processes.clear(&web(), remains(ONE));
    until("the member is gone", || !lives(member)).await;
}

#[tokio::test]
async fn one_that_lives_is_taken_back_by_its_pin_and_told_of_once() {
    let Some(mut before) = World::pinning() else {
        return;
    };
    let script = "while [ ! -e go ]; do sleep 0.01; done; exit 8";
    let Started { pid, start_ticks } = before.start(script);
    before.lose_pins();
    let mut world = World::new();
    world.pin_in(&before.path("run"));
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Live);
    fs::write(before.path("go"), "").unwrap();
    assert_eq!(world.exit().await, Exit::Code(8));
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
}

#[tokio::test]
async fn the_mount_table_gains_one_line_for_all_and_none_when_all_is_done() {
    let Some(mut world) = World::pinning() else {
        return;
    };
    let folder = world.folder.path().to_owned();
    let kept = mounts(&folder);
    let [line] = kept.as_slice() else {
        panic!("{kept:?}");
    };
    assert!(
        line.contains("/run/pins ") && line.contains(" nsfs "),
        "{line}"
    );
    for number in 0..20 {
        let spec = world.shell("exec sleep 100");
        let child = named(&format!("c{number}"));
        world.processes.start(&child, ONE, &spec, None).unwrap();
    }
    assert_eq!(mounts(&folder), kept);
    world.processes.pins.keep_only(BTreeSet::new());
    world.processes.pins = Pins::none("gone");
    assert_eq!(mounts(&folder), [""; 0]);
    assert!(!world.path("run/pins").exists());
}

#[tokio::test]
async fn pins_of_runs_whose_end_is_on_record_are_swept() {
    let Some(mut before) = World::pinning() else {
        return;
    };
    let kept = before.start("exec sleep 100");
    let spec = before.shell("exec sleep 100");
    let other = before
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    before.lose_pins();
    let mut world = World::new();
    world.pin_in(&before.path("run"));
    world
        .processes
        .keep_only_pins_of([(kept.pid, kept.start_ticks)]);
    let mut is_pinned = |started: Started| {
        let Started { pid, start_ticks } = started;
        world
            .processes
            .pins
            .find(PinName { pid, start_ticks })
            .is_some()
    };
    assert_eq!((is_pinned(kept), is_pinned(other)), (true, false));
}

#[tokio::test]
async fn a_directory_that_is_moved_away_or_unmounted_gets_its_mount_again_with_the_next_run() {
    let Some(mut world) = World::pinning() else {
        return;
    };
    let folder = world.folder.path().to_owned();
    let start = |world: &mut World, name: &str| {
        let spec = world.shell("exec sleep 100");
        world
            .processes
            .start(&named(name), ONE, &spec, None)
            .unwrap()
    };
    let first = start(&mut world, "first");
    fs::rename(world.path("run"), world.path("elsewhere")).unwrap();
    let private = fs::Permissions::from_mode(0o700);
    fs::create_dir(world.path("run")).unwrap();
    fs::set_permissions(world.path("run"), private).unwrap();
    start(&mut world, "second");
    // A start does not wait for it for ever.
    until("the mount where it belongs", || {
        let kept = mounts(&folder);
        kept.len() == 1 && kept[0].contains("/run/pins ")
    })
    .await;
    rustix::mount::unmount(world.path("run/pins"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(mounts(&folder), [""; 0]);
    start(&mut world, "third");
    until("the mount again", || mounts(&folder).len() == 1).await;
    // It is the one namespace all the time.
    let Started { pid, start_ticks } = first;
    assert!(
        world
            .processes
            .pins
            .find(PinName { pid, start_ticks })
            .is_some()
    );
    assert_eq!(world.pins(), "yes");
}

#[tokio::test]
async fn a_directory_of_strangers_in_its_place_is_not_mounted_to_and_info_says_so() {
    let Some(mut world) = World::pinning() else {
        return;
    };
    let folder = world.folder.path().to_owned();
    fs::rename(world.path("run"), world.path("elsewhere")).unwrap();
    fs::create_dir(world.path("run")).unwrap();
    let run = world.path("run");
    let mode = |mode| fs::set_permissions(&run, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    let why = format!(
        "no: what stands at `{}` is none of ours",
        world.path("run").display()
    );
    let spec = world.shell("exec sleep 100");
    world.processes.start(&web(), ONE, &spec, None).unwrap();
    until("it is told", || world.pins() == why).await;
    assert_eq!(mounts(&folder), [""; 0]);
    mode(0o700);
    fs::write(run.join("pins"), "a file").unwrap();
    world
        .processes
        .start(&named("text"), ONE, &spec, None)
        .unwrap();
    let why = format!(
        "no: what stands at `{}/pins` is none of ours",
        run.display()
    );
    until("it is told", || world.pins() == why).await;
    assert_eq!(fs::read_to_string(run.join("pins")).unwrap(), "a file");
    fs::remove_file(run.join("pins")).unwrap();
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    until("it is kept again", || world.pins() == "yes").await;
    assert_eq!(mounts(&folder).len(), 1);
}

#[tokio::test]
async fn what_stands_there_and_is_not_ours_is_left_alone() {
    if World::pinning().is_none() {
        return;
    }
    let unmount = |path: &Path| {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    for kind in ["directory", "link", "text", "host", "net", "open"] {
        let mut world = World::new();
        let run = world.path("run");
        let pins = run.join("pins");
        fs::create_dir(&run).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
        let bind = |from: &str| {
            fs::write(&pins, "").unwrap();
            rustix::mount::mount_bind(from, &pins)
        };
        match kind {
            "directory" => fs::create_dir(&pins).unwrap(),
            "link" => std::os::unix::fs::symlink("/proc/self/ns/mnt", &pins).unwrap(),
            "text" => fs::write(&pins, "a file").unwrap(),
            // A namespace cannot be mounted into itself.
            "host" => assert!(bind("/proc/self/ns/mnt").is_err()),
            "net" => bind("/proc/self/ns/net").unwrap(),
            _ => fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap(),
        }
        let before = mounts(world.folder.path());
        let inode = fs::symlink_metadata(&pins).map(|it| it.ino()).ok();
        world.processes.keep_pins_in(&run);
        match kind {
            // An empty file, as a reboot leaves it.
            "host" => assert_eq!(world.pins(), "yes"),
            _ => {
                let told = world.pins();
                assert!(told.starts_with("no: "), "{kind}: {told}");
                assert_eq!(mounts(world.folder.path()), before, "{kind}");
                assert_eq!(fs::symlink_metadata(&pins).map(|it| it.ino()).ok(), inode);
                let started = world.start("exec sleep 100");
                assert!(lives(started.pid), "{kind}");
            }
        }
        if kind == "net" {
            unmount(&pins);
        }
    }
}

#[tokio::test]
async fn a_full_tmpfs_keeps_no_run_from_starting_and_says_so() {
    let Some(mut world) = World::pinning() else {
        return;
    };
    let own = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    for start_ticks in 0..PINS_MAX {
        let name = PinName {
            pid: 1,
            start_ticks,
        };
        world.processes.pins.pin(name, &pidfd);
    }
    let started = world.start("exec sleep 100");
    assert!(lives(started.pid));
    let told = world.pins();
    assert!(
        told.starts_with("no: pin a process: No space left"),
        "{told}"
    );
    world.processes.pins.keep_only(BTreeSet::new());
    let spec = world.shell("exec sleep 100");
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    // The pin is late: there is much to take away before.
    until("it is pinned", || world.pins() == "yes").await;
}

#[test]
fn without_rights_nothing_is_pinned_and_runs_start_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    as_nobody(folder.path(), || {
        let pins = Pins::keep_in(folder.path());
        let told = pins.describe();
        assert!(told.starts_with("no: make a mount namespace: "), "{told}");
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_kernel_that_keeps_no_exits_is_not_asked_to_pin() {
    let mut world = World::new();
    world.processes.exit_source = ExitSource::ZombieStatus;
    world.pin_in(&world.path("run"));
    assert_eq!(world.pins(), "no: this kernel keeps no exits");
    assert!(!world.path("run/pins").exists());
}

/// Where pins can be kept by hand: a folder and its `run`.
fn a_place() -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    let told = Pins::keep_in(&run).describe();
    if told != "yes" {
        skip(&format!("exits cannot be pinned here: {told}"));
        return None;
    }
    Some((folder, run))
}

/// Does something on a thread in a copy of our mount namespace.
fn in_a_copy(body: impl FnOnce() + Send) {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let thread = || {
        #[expect(
            unsafe_code,
            reason = "a thread leaves the mount namespace of the tests"
        )]
        // SAFETY: concerns this thread alone, on which nothing else of the tests runs.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
        body();
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap());
}

/// As on hosts with systemd, where each mount shows in the namespaces of other services too.
#[test]
fn where_mounts_are_shared_with_other_namespaces_two_lines_are_needed_and_none_is_left_anywhere() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    let Some((folder, run)) = a_place() else {
        return;
    };
    in_a_copy(|| {
        let shared = MountPropagationFlags::REC | MountPropagationFlags::SHARED;
        mount_change("/", shared).unwrap();
        let mut other = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "unchanged",
                "sh",
                "-c",
                "echo; cat",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 1];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut line).unwrap();
        let there = format!("/proc/{}/mountinfo", other.id());
        for _ in 0..2 {
            let pins = Pins::keep_in(&run);
            assert_eq!(pins.describe(), "yes");
            let kept = mounts_of("/proc/thread-self/mountinfo", folder.path());
            assert_eq!(kept.len(), 2, "{kept:?}");
            assert!(kept[1].contains(" nsfs "), "{kept:?}");
            let copies = mounts_of(&there, folder.path());
            let is_kept = copies.iter().any(|line| line.contains(" nsfs "));
            assert!(!is_kept, "{copies:?}");
            drop(pins);
            for table in ["/proc/thread-self/mountinfo", &there] {
                assert_eq!(mounts_of(table, folder.path()), [""; 0], "{table}");
            }
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    });
}

#[test]
fn whichever_processor_made_the_servers_namespace_one_is_made_that_is_newer() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Some((folder, run)) = a_place() else {
        return;
    };
    let allowed = sched_getaffinity(None).unwrap();
    for number in (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)) {
        let mut one = CpuSet::new();
        one.set(number);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A thread has its maker's.
                sched_setaffinity(None, &one).unwrap();
                in_a_copy(|| {
                    sched_setaffinity(None, &allowed).unwrap();
                    for _ in 0..4 {
                        let pins = Pins::keep_in(&run);
                        assert_eq!(pins.describe(), "yes", "{number}");
                        drop(pins);
                        let left = mounts_of("/proc/thread-self/mountinfo", folder.path());
                        assert_eq!(left, [""; 0]);
                    }
                });
            });
        });
    }
}

/// Prints what it costs: `cargo test --lib pins_cost -- --nocapture`.
#[tokio::test]
async fn pins_cost_a_start_little() {
    const PINS: u32 = 200;
    let Some(mut world) = World::pinning() else {
        return;
    };
    let started = world.start("exec sleep 100");
    let pidfd = world.process().pidfd.try_clone().unwrap();
    let mut spans: Vec<Duration> = (0..PINS)
        .map(|number| {
            let name = PinName {
                pid: started.pid,
                start_ticks: number.into(),
            };
            let begun = clock::mono();
            world.processes.pins.pin(name, &pidfd);
            clock::mono() - begun
        })
        .collect();
    spans.sort();
    let at = |percent: usize| spans[(spans.len() - 1) * percent / 100];
    println!(
        "a pin: {:?} median, {:?} 95 %, {:?} at most",
        at(50),
        at(95),
        at(100)
    );
    assert!(at(50) < Duration::from_millis(5), "{spans:?}");
}
