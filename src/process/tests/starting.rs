//! Starting: what a child gets, and what is said when it cannot be started.

use std::{
    os::{
        fd::AsRawFd,
        unix::fs::{PermissionsExt, symlink},
    },
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;

fn create(path: PathBuf) -> Sink {
    Sink::File {
        path,
        mode: OpenMode::Create,
    }
}

fn script(world: &World, name: &str, text: &[u8], mode: u32) {
    fs::write(world.path(name), text).unwrap();
    fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn codes_and_signals_are_told_as_they_were() {
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 3", Exit::Code(3)),
        ("exit 255", Exit::Code(255)),
        ("kill -KILL $$", Exit::Signal(9)),
        ("kill -TERM $$", Exit::Signal(15)),
    ] {
        let mut world = World::new();
        world.start(script);
        assert_eq!(world.exit().await, exit, "{script}");
    }
}

#[tokio::test]
async fn a_child_leads_a_group_and_is_known_by_its_start_time() {
    let mut world = World::new();
    let started = world.start("sleep 100");
    let stat = identity::stat(started.pid).unwrap();
    assert_eq!(stat.group, started.pid);
    assert_eq!(stat.start_ticks, started.start_ticks);
    assert_eq!(world.processes.live_count(), 1);
}

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let mut world = World::new();
    let argv = ["/usr/bin/printf", "[%s]", "a b", "", "$HOME 'x'", "é\n"];
    let spec = world.spec(&argv);
    world.processes.start(&web(), ONE, &spec, None).unwrap();
    assert_eq!(world.exit().await, Exit::Code(0));
    assert_eq!(world.read("out"), "[a b][][$HOME 'x'][é\n]");
}

#[test]
fn a_child_gets_three_descriptors_and_no_more() {
    let test = "process::tests::starting::a_child_gets_three_descriptors_and_no_more";
    alone(test, &[], async {
        for descriptors in [Descriptors::All, Descriptors::Few] {
            let mut world = World::of(Processes::new("server").unwrap());
            // One that lies low, one that lies high.
            let low = rustix::io::dup(&world.processes.standard.null).unwrap();
            let high = rustix::io::fcntl_dupfd_cloexec(&low, 500).unwrap();
            match descriptors {
                // As if they had been inherited.
                Descriptors::All => drop(Processes::new("server").unwrap()),
                // As if somebody had forgotten the flag.
                Descriptors::Few => {
                    for fd in [&low, &high] {
                        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
                    }
                }
            }
            world.processes.descriptors = descriptors;
            world.start("ls /proc/$$/fd; readlink /proc/$$/fd/0");
            assert_eq!(world.exit().await, Exit::Code(0));
            assert_eq!(world.read("out"), "0\n1\n2\n/dev/null\n", "{descriptors:?}");
        }
    });
}

#[tokio::test]
async fn the_servers_descriptors_are_the_same_after_a_start() {
    let mut world = World::new();
    let target = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let standard = &world.processes.standard;
    let fds = [
        0,
        1,
        2,
        standard.null.as_raw_fd(),
        standard.slots[0].as_raw_fd(),
        standard.slots[1].as_raw_fd(),
    ];
    let before = fds.map(target);
    assert_eq!(before[3..], ["/dev/null"; 3].map(PathBuf::from));
    world.start("exit 0");
    assert_eq!(fds.map(target), before);
    let mut spec = world.spec(&["./missing"]);
    spec.stdout = create(world.path("other"));
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap_err()
        .to_string();
    assert_eq!(fds.map(target), before, "and after one that failed");
}

#[tokio::test]
async fn a_child_begins_with_a_clean_mask_and_default_dispositions() {
    let mut world = World::new();
    // The test process ignores SIGPIPE, as every Rust program does; here it blocks some more.
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are initialised by the calls, and concern this thread alone.
    #[allow(unsafe_code)]
    unsafe {
        let mut some = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(some.as_mut_ptr());
        libc::sigaddset(some.as_mut_ptr(), libc::SIGUSR1);
        libc::sigaddset(some.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, some.as_ptr(), before.as_mut_ptr());
    }
    let spec = world.spec(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    world.processes.start(&web(), ONE, &spec, None).unwrap();
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    // SAFETY: puts back what the call above has written.
    #[allow(unsafe_code)]
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
    }
    assert_eq!(world.exit().await, Exit::Code(0));
    let none = "0000000000000000";
    assert_eq!(
        world.read("out"),
        format!("SigBlk:\t{none}\nSigIgn:\t{none}\n")
    );
    let mask = own.lines().find(|line| line.starts_with("SigBlk")).unwrap();
    assert_eq!(
        mask, "SigBlk:\t0000000000004200",
        "the thread's mask is as it was"
    );
}

#[tokio::test]
async fn a_child_gets_the_limit_of_open_files_that_the_server_was_started_with() {
    let mut world = World::new();
    world.processes.inheritance.file_limit.rlim_cur = 77;
    world.start("ulimit -Sn");
    assert_eq!(world.exit().await, Exit::Code(0));
    assert_eq!(world.read("out"), "77\n");
}

#[tokio::test]
async fn a_child_has_the_servers_umask() {
    let mut world = World::new();
    world.start("umask; exec grep ^Umask /proc/$PPID/status");
    assert_eq!(world.exit().await, Exit::Code(0));
    let said = world.read("out");
    let (child, server) = said.split_once("\nUmask:\t").unwrap();
    assert_eq!(child, server.trim_end());
}

#[test]
fn variables_of_the_server_do_not_reach_a_child() {
    let given = [
        ("NOTIFY_SOCKET", "x"),
        ("LISTEN_FDS", "1"),
        ("WATCHDOG_USEC", "1"),
        ("SUPERVISOR_RS_RUN", "forged/web/9"),
        ("SUPERVISOR_RS_KEY", "x"),
        ("KEPT", "a=b c"),
    ];
    let test = "process::tests::starting::variables_of_the_server_do_not_reach_a_child";
    alone(test, &given, async {
        let mut world = World::of(Processes::new("server").unwrap());
        let spec = world.spec(&["env"]);
        world
            .processes
            .start(&web(), RunId(7), &spec, None)
            .unwrap();
        world.facts().await;
        let said = world.read("out");
        let names: Vec<_> = said
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        assert_eq!(names[0], ("SUPERVISOR_RS_RUN", "server/web/7"));
        assert!(names.contains(&("KEPT", "a=b c")));
        for (name, _) in &names[1..] {
            assert!(!name.starts_with("SUPERVISOR_RS_"), "{name}");
            assert!(!name.starts_with("LISTEN_"), "{name}");
            assert!(!name.starts_with("WATCHDOG_"), "{name}");
            assert_ne!(*name, "NOTIFY_SOCKET");
        }
        world
            .processes
            .reap(&web(), RunId(7), Leftovers::Kill(GROUP));
    });
}

#[tokio::test]
async fn a_program_is_found_as_execvp_finds_it() {
    let mut world = World::new();
    fs::create_dir(world.path("bin")).unwrap();
    script(&world, "bin/tool", b"#!/bin/sh\necho \"$0 $PWD\"\n", 0o755);
    world.processes.inheritance.path = Some("/nowhere:bin".into());
    let folder = world.folder.path().canonicalize().unwrap();
    for (program, shown) in [("tool", "bin/tool"), ("./bin/tool", "./bin/tool")] {
        let spec = world.spec(&[program]);
        world.processes.start(&web(), ONE, &spec, None).unwrap();
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        let said = world.read("out");
        let last = said.lines().last().unwrap();
        assert_eq!(last, format!("{shown} {}", folder.display()));
    }
}

#[tokio::test]
async fn both_streams_may_share_a_file_and_overlap_nowhere() {
    let mut world = World::new();
    let mut spec = world.shell("echo one; echo two >&2; echo three");
    spec.stderr = spec.stdout.clone();
    world.processes.start(&web(), ONE, &spec, None).unwrap();
    assert_eq!(world.exit().await, Exit::Code(0));
    assert_eq!(world.read("out"), "one\ntwo\nthree\n");
}

#[tokio::test]
async fn append_adds_and_create_begins_anew() {
    let mut world = World::new();
    for expected in ["new\n", "new\nnew\n"] {
        world.start("echo new");
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        assert_eq!(world.read("out"), expected);
    }
    // Many times: what a child writes at once must not be what is cut off.
    for _ in 0..50 {
        let mut spec = world.spec(&["/bin/echo", "newest"]);
        spec.stdout = create(world.path("out"));
        world.processes.start(&web(), ONE, &spec, None).unwrap();
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        assert_eq!(world.read("out"), "newest\n");
    }
}

#[tokio::test]
async fn a_start_that_fails_empties_no_log() {
    let mut world = World::new();
    fs::write(world.path("out"), "old").unwrap();
    script(&world, "plain", b"echo\n", 0o755);
    let mut missing = world.spec(&["./missing"]);
    let mut lost = world.spec(&["/bin/true"]);
    let mut plain = world.spec(&["./plain"]);
    lost.workdir = world.path("nowhere");
    for spec in [&mut missing, &mut lost, &mut plain] {
        spec.stdout = create(world.path("out"));
        world
            .processes
            .start(&web(), ONE, spec, None)
            .unwrap_err()
            .to_string();
        world.processes.preflight(spec).unwrap_err();
        assert_eq!(world.read("out"), "old");
    }
    let mut good = world.spec(&["/bin/true"]);
    good.stdout = create(world.path("out"));
    world.processes.preflight(&good).unwrap();
    assert_eq!(
        world.read("out"),
        "old",
        "nor does a preflight that succeeds"
    );
}

/// Preflight and start must say the same.
fn refusal(world: &mut World, spec: &Spec) -> String {
    let said = world
        .processes
        .start(&web(), ONE, spec, None)
        .unwrap_err()
        .to_string();
    let expected = world.processes.preflight(spec).unwrap_err();
    assert_eq!(said, expected);
    assert_eq!(world.processes.live_count(), 0);
    assert!(world.processes.owners.is_empty());
    said
}

#[tokio::test]
async fn each_refusal_is_a_sentence_with_a_way_out() {
    let mut world = World::new();
    let at = world.folder.path().display().to_string();
    script(&world, "closed", b"#!/bin/sh\n", 0o644);
    script(&world, "plain", b"echo\n", 0o755);
    script(&world, "empty", b"", 0o755);
    script(&world, "lost", b"#!/no/such/shell\n", 0o755);
    let spec = world.spec(&["./x"]);
    assert_eq!(
        refusal(&mut world, &spec),
        format!(
            "cannot start `web`: program `./x` not found in `{at}`; hint: a program with `/` is relative to the working directory"
        )
    );
    let spec = world.spec(&["no-such-program"]);
    assert!(refusal(&mut world, &spec).contains("program `no-such-program` not found in PATH `"));
    let spec = world.spec(&["./closed"]);
    assert!(refusal(&mut world, &spec).ends_with(&format!("hint: chmod +x {at}/closed")));
    let spec = world.spec(&["./plain"]);
    assert!(refusal(&mut world, &spec).ends_with("hint: let its first line be `#!/bin/sh`"));
    let spec = world.spec(&["./empty"]);
    assert!(refusal(&mut world, &spec).ends_with("is empty"));
    let spec = world.spec(&["./lost"]);
    assert!(refusal(&mut world, &spec).contains("needs `/no/such/shell`, which is not there"));
    let spec = world.spec(&["./"]);
    assert!(refusal(&mut world, &spec).ends_with("is a directory, not a file"));
    let spec = world.spec(&["/bin/true", "a\0b"]);
    assert!(refusal(&mut world, &spec).ends_with("holds a NUL byte"));
    let mut spec = world.spec(&["/bin/true"]);
    spec.workdir = world.path("nowhere");
    assert_eq!(
        refusal(&mut world, &spec),
        format!(
            "cannot start `web`: working directory `{at}/nowhere` does not exist; hint: mkdir -p {at}/nowhere"
        )
    );
    spec.workdir = world.path("plain");
    assert!(refusal(&mut world, &spec).ends_with("is not a directory"));
    let mut spec = world.spec(&["/bin/true"]);
    spec.stderr = create(world.path("a/log"));
    assert!(refusal(&mut world, &spec).contains(&format!("hint: mkdir -p {at}/a")));
    symlink("/etc/passwd", world.path("link")).unwrap();
    spec.stderr = create(world.path("link"));
    assert!(refusal(&mut world, &spec).contains("is a symbolic link, which is not followed"));
}

#[tokio::test]
async fn what_only_the_kernel_knows_is_explained_too() {
    let mut world = World::new();
    script(&world, "noise", b"\x01\x02\x03\x00\xff", 0o755);
    script(&world, "elf", b"\x7fELF\x02\x01\x01\0nonsense", 0o755);
    let long = "x".repeat(200_000);
    for (argv, said) in [
        (vec!["./noise"], "does not begin with `#!`"),
        (vec!["./elf"], "that this machine cannot run"),
        (vec!["/bin/true", &long], "together are too long"),
    ] {
        let spec = world.spec(&argv);
        world.processes.preflight(&spec).unwrap();
        let error = world
            .processes
            .start(&web(), ONE, &spec, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_program_that_is_being_written_is_said_to_be_busy() {
    let mut world = World::new();
    fs::copy("/bin/true", world.path("tool")).unwrap();
    let spec = world.spec(&["./tool"]);
    let writer = fs::OpenOptions::new()
        .append(true)
        .open(world.path("tool"))
        .unwrap();
    let error = world
        .processes
        .start(&web(), ONE, &spec, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("is open for writing; hint: "), "{error}");
    drop(writer);
    // Other tests of this process may have been forked off with it still open.
    until("it can be started", || {
        world.processes.start(&web(), ONE, &spec, None).is_ok()
    })
    .await;
    assert_eq!(world.exit().await, Exit::Code(0));
}

#[test]
fn a_program_written_a_moment_ago_is_waited_for() {
    let test = "process::tests::starting::a_program_written_a_moment_ago_is_waited_for";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        fs::copy("/bin/true", world.path("tool")).unwrap();
        let spec = world.spec(&["./tool"]);
        let path = world.path("tool");
        until("a start waits for its program", || {
            let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
            let is_over = AtomicBool::new(false);
            // Closes it as soon as there is a child, which has met it open then. It may be seen
            // too late; then we try again.
            let close = || {
                while orphans::children().is_empty() && !is_over.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                drop(writer);
            };
            let result = std::thread::scope(|scope| {
                scope.spawn(close);
                let result = world.processes.start(&web(), ONE, &spec, None);
                is_over.store(true, Ordering::SeqCst);
                result
            });
            result.is_ok()
        })
        .await;
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    });
}

#[test]
fn an_inherited_mask_is_emptied() {
    let test = "process::tests::starting::an_inherited_mask_is_emptied";
    alone(test, &[], async {
        step::set_mask(&u64::MAX, std::ptr::null_mut());
        let _processes = Processes::new("server").unwrap();
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("\nSigBlk:\t0000000000000000\n"), "{status}");
    });
}

#[tokio::test]
async fn two_runs_of_a_child_never_live_at_once_i1() {
    let mut world = World::new();
    world.start("sleep 100");
    let spec = world.shell("exit 0");
    let error = world
        .processes
        .start(&web(), RunId(2), &spec, None)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "cannot start `web`: run 1 of it still lives");
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    let mut told = 0;
    while told < 2 {
        told += world.facts().await.len();
    }
    world
        .processes
        .start(&web(), RunId(2), &spec, None)
        .unwrap();
}

#[test]
fn many_starts_leak_no_descriptor_and_no_zombie() {
    let test = "process::tests::starting::many_starts_leak_no_descriptor_and_no_zombie";
    alone(test, &[], async {
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        let mut world = World::of(Processes::new("server").unwrap());
        let before = descriptors();
        for round in 1..=4 {
            for number in 0..50 {
                let child = named(&format!("c{number}"));
                let spec = world.shell("exit 0");
                world
                    .processes
                    .start(&child, RunId(round), &spec, None)
                    .unwrap();
                let bad = world.spec(&["./missing"]);
                let other = named(&format!("bad{number}"));
                world
                    .processes
                    .start(&other, RunId(round), &bad, None)
                    .unwrap_err();
            }
            let mut left = 50;
            while left > 0 {
                for fact in world.facts().await {
                    let Fact::Exited {
                        child, run, exit, ..
                    } = fact
                    else {
                        panic!("{fact:?}");
                    };
                    assert_eq!((run, exit), (RunId(round), Exit::Code(0)));
                    world.processes.reap(&child, run, Leftovers::Kill(GROUP));
                    left -= 1;
                }
            }
        }
        assert_eq!(descriptors(), before);
        assert_eq!(orphans::children(), Vec::<i32>::new());
        assert!(world.processes.owners.is_empty());
        assert!(world.processes.left.is_empty());
        assert!(strays::started().is_empty());
    });
}
