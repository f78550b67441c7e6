//! Taking back what an earlier server has started.

use std::{
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
};

use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::*;

/// A process that leads a group and is not our child; its parent does not reap it.
pub(super) async fn foreign(world: &mut World, script: &str) -> (i32, u64) {
    fs::write(world.path("script"), script).unwrap();
    let spec = world.shell(&actor("parent"));
    world
        .processes
        .start(&named("old"), ONE, &spec, None)
        .unwrap();
    let pid = world.pid("pid").await;
    (pid, identity::stat(pid).unwrap().start_ticks)
}

/// A process that is in no group that a world knows of; it ends with the test.
struct Outsider(OwnedFd);

impl Outsider {
    fn of(pid: i32) -> Self {
        let pid = identity::number(pid).unwrap();
        Self(pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
    }
}

#[tokio::test]
async fn a_live_process_is_taken_back_and_its_end_is_told() {
    for mut world in [World::new(), World::old()] {
        let (pid, ticks) = foreign(&mut world, "sleep 100 & echo $! > member; wait").await;
        let member = world.pid("member").await;
        let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
        assert_eq!(adoption, Adoption::Live);
        assert_eq!(world.process().parent, Parent::Other);
        assert_eq!(world.processes.live_count(), 2);
        let spec = world.shell("exit 0");
        world
            .processes
            .start(&web(), RunId(2), &spec, None)
            .unwrap_err()
            .to_string();
        world.processes.signal(&web(), ONE, TERM, GROUP);
        // Its zombie is there, so that the exit is known.
        assert_eq!(world.exit().await, Exit::Signal(15));
        until("its group is gone too", || !lives(member)).await;
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        world
            .processes
            .start(&web(), RunId(2), &spec, None)
            .unwrap();
    }
}

#[tokio::test]
async fn the_exit_of_a_zombie_of_another_is_read() {
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 3", Exit::Code(3)),
        ("kill -KILL $$", Exit::Signal(9)),
    ] {
        let mut world = World::new();
        let (pid, ticks) = foreign(&mut world, script).await;
        until("it is a zombie", || state(pid) == Some('Z')).await;
        let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
        assert_eq!(adoption, Adoption::Gone(exit));
        assert_eq!(world.processes.live_count(), 1, "its parent alone");
    }
}

/// Takes a process back that belongs to another user, so that its zombie tells us nothing, ends
/// it with 7, and sees that nothing is told before it is reaped. Its parent reaps it when there
/// is a file `reap` in the folder.
fn with_an_unseen_zombie(then: impl AsyncFnOnce(&mut World, &Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        return skip("not root, and so no other user's processes to take back");
    }
    if ExitSource::detect() == ExitSource::ZombieStatus {
        return skip("this kernel's pidfds do not tell of exits");
    }
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    runtime().block_on(async {
        let mut starter = World::new();
        let script = "while [ ! -e go ]; do sleep 0.01; done; exit 7";
        let (pid, ticks) = foreign(&mut starter, script).await;
        let folder = starter.folder.path().to_owned();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        as_nobody(&folder, || {
            runtime().block_on(async {
                let mut world = World::new();
                let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
                assert_eq!(adoption, Adoption::Live);
                fs::write(folder.join("go"), "").unwrap();
                until("its end", || !lives(pid)).await;
                assert_eq!(identity::exit_of_zombie(pid, ticks), Exit::Unknown);
                // Dropped while it waits, as the loop does it.
                nothing_is_told(&mut world).await;
                assert_eq!(world.processes.unreaped.len(), 1);
                then(&mut world, &folder).await;
                assert!(world.processes.unreaped.is_empty());
                world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
            });
        });
    });
}

async fn nothing_is_told(world: &mut World) {
    let moment = Duration::from_millis(50);
    let told = tokio::time::timeout(moment, world.processes.wait()).await;
    assert!(told.is_err(), "{told:?}");
}

/// As if it had been waited for so long that it is reaped.
fn wait_no_longer(world: &mut World) {
    for until in world.processes.unreaped.values_mut() {
        *until = Mono(0);
    }
}

#[test]
fn the_exit_that_no_zombie_shows_is_exact_once_it_is_reaped() {
    with_an_unseen_zombie(async |world, folder| {
        // However slow this machine is, it is not the end of the wait that tells.
        for until in world.processes.unreaped.values_mut() {
            *until = clock::mono() + PATIENCE * 3;
        }
        fs::write(folder.join("reap"), "").unwrap();
        assert_eq!(world.exit().await, Exit::Code(7));
    });
}

#[test]
fn the_exit_of_one_that_nobody_reaps_is_unknown_in_the_end_and_told_once() {
    with_an_unseen_zombie(async |world, folder| {
        wait_no_longer(world);
        assert_eq!(world.exit().await, Exit::Unknown);
        fs::write(folder.join("reap"), "").unwrap();
        until("it is reaped", || folder.join("reaped").exists()).await;
        nothing_is_told(world).await;
    });
}

#[test]
fn one_that_ended_unseen_before_it_was_taken_back_is_told_once_it_is_reaped() {
    with_an_unseen_zombie(async |world, folder| {
        let process = world.process();
        let (pid, ticks) = (process.pid, process.start_ticks);
        let mut later = World::new();
        let adoption = later.processes.adopt(&web(), ONE, pid, ticks);
        assert_eq!(adoption, Adoption::Live, "of which the end is told");
        nothing_is_told(&mut later).await;
        fs::write(folder.join("reap"), "").unwrap();
        until("it is reaped", || folder.join("reaped").exists()).await;
        for world in [&mut later, world] {
            assert_eq!(world.exit().await, Exit::Code(7));
        }
        later.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    });
}

#[tokio::test]
async fn the_exit_of_one_that_another_reaps_at_once_is_exact_where_the_kernel_tells() {
    for source in [ExitSource::detect(), ExitSource::ZombieStatus] {
        let mut world = World::new();
        world.processes.exit_source = source;
        let script = "while [ ! -e go ]; do sleep 0.01; done; exit 7";
        let (pid, ticks) = foreign(&mut world, script).await;
        let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
        assert_eq!(adoption, Adoption::Live);
        fs::write(world.path("reap"), "").unwrap();
        fs::write(world.path("go"), "").unwrap();
        until("it is reaped", || world.path("reaped").exists()).await;
        let told = match source {
            ExitSource::PidfdInfo => Exit::Code(7),
            ExitSource::ZombieStatus => Exit::Unknown,
        };
        assert_eq!(world.exit().await, told);
        nothing_is_told(&mut world).await;
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    }
}

#[tokio::test]
async fn a_zombies_status_is_told_once_though_it_is_reaped_later() {
    let mut world = World::new();
    let (pid, ticks) = foreign(&mut world, "while [ ! -e go ]; do sleep 0.01; done; exit 7").await;
    let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
    assert_eq!(adoption, Adoption::Live);
    fs::write(world.path("go"), "").unwrap();
    assert_eq!(world.exit().await, Exit::Code(7));
    fs::write(world.path("reap"), "").unwrap();
    until("it is reaped", || world.path("reaped").exists()).await;
    nothing_is_told(&mut world).await;
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
}

#[tokio::test]
async fn one_that_is_gone_is_gone() {
    let mut world = World::new();
    let Started { pid, start_ticks } = world.start("exit 0");
    assert_eq!(world.exit().await, Exit::Code(0));
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Unknown));
    assert!(world.processes.left.is_empty());
}

#[tokio::test]
async fn a_number_that_was_used_again_is_nobody_of_ours() {
    let mut world = World::new();
    let (pid, ticks) = foreign(&mut world, "sleep 100").await;
    let adoption = world.processes.adopt(&web(), ONE, pid, ticks - 1);
    assert_eq!(adoption, Adoption::Gone(Exit::Unknown));
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    world.processes.clear(&web(), remains(ONE));
    assert!(lives(pid));
    // End it as what it is.
    world.processes.adopt(&web(), ONE, pid, ticks);
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    world.exit().await;
}

#[tokio::test]
async fn a_forged_record_makes_nobody_a_victim() {
    let mut world = World::new();
    let own = std::process::id().cast_signed();
    let ticks = identity::stat(own).unwrap().start_ticks;
    let first = identity::stat(1).map_or(0, |stat| stat.start_ticks);
    for (pid, ticks) in [
        (0, 0),
        (1, first),
        (-1, 0),
        (-own, 0),
        (i32::MIN, 0),
        (own, ticks),
    ] {
        let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
        assert_eq!(adoption, Adoption::Gone(Exit::Unknown), "{pid}");
        world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        world.processes.clear(&web(), remains(ONE));
    }
    assert!(world.processes.left.is_empty());
    for group in [0, 1, -1, i32::MIN] {
        assert!(group::signal_number(group, 0).is_err(), "{group}");
    }
}

#[tokio::test]
async fn a_thread_is_no_process() {
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let (id, ids) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        id.send(rustix::thread::gettid()).unwrap();
        receive.recv().unwrap_err();
    });
    let pid = ids.recv().unwrap().as_raw_nonzero().get();
    let ticks = identity::stat(pid).unwrap().start_ticks;
    let mut world = World::new();
    let adoption = world.processes.adopt(&web(), ONE, pid, ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Unknown));
    drop(send);
    thread.join().unwrap();
}

#[tokio::test]
async fn our_own_zombie_keeps_its_exit_until_it_is_reaped() {
    let mut before = World::new();
    let Started { pid, start_ticks } = before.start("exit 5");
    assert_eq!(before.exit().await, Exit::Code(5));
    let mut world = World::new();
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Code(5)));
    assert_eq!(state(pid), Some('Z'));
    assert_eq!(world.processes.live_count(), 0);
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    assert_eq!(state(pid), None);
}

#[tokio::test]
async fn a_live_child_of_ours_is_taken_back_with_its_exit() {
    let mut before = World::new();
    let Started { pid, start_ticks } =
        before.start("while [ ! -e go ]; do sleep 0.01; done; exit 8");
    let mut world = World::new();
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Live);
    fs::write(before.path("go"), "").unwrap();
    assert_eq!(world.exit().await, Exit::Code(8));
}

#[tokio::test]
async fn a_second_live_run_is_in_doubt_i1() {
    let mut world = World::new();
    let Started { pid, start_ticks } = world.start("sleep 100");
    let adoption = world.processes.adopt(&web(), RunId(2), pid, start_ticks);
    let Adoption::Doubt(why) = adoption else {
        panic!("{adoption:?}");
    };
    assert_eq!(why, "another run of `web` lives");
}

#[tokio::test]
async fn what_is_left_of_a_run_before_is_found_and_cleared() {
    let mut before = World::new();
    let Started { pid, start_ticks } = before.start("sleep 100 & echo $! > pid");
    let member = before.pid("pid").await;
    assert_eq!(before.exit().await, Exit::Code(0));
    before.processes.reap(&web(), ONE, Leftovers::Leave);
    let mut world = World::new();
    let adoption = world.processes.adopt(&web(), ONE, pid, start_ticks);
    assert_eq!(adoption, Adoption::Gone(Exit::Unknown));
    assert!(lives(member));
    world.processes.clear(&web(), remains(ONE));
    until("the member is gone", || !lives(member)).await;
}

#[tokio::test]
async fn a_run_is_found_by_its_environment_and_what_it_started_is_not_taken_for_it() {
    // An id of its own: runs are found by it, and other tests have a `web` too.
    let id = format!("finder-{}", std::process::id());
    let mut world = World::of(Processes::beside_others(&id).unwrap());
    let id = world.processes.server_id.clone();
    assert_eq!(find_run(&id, &web(), ONE), None);
    // A daemon in a session of its own, and a job in a group of its own: not by the shell's job
    // control, which a terminal suspends. The job is younger by several ticks of the clock that
    // tells which one is the oldest.
    fs::write(world.path("script"), "exec sleep 100").unwrap();
    let parent = actor("parent");
    let script = format!("setsid sleep 100 & echo $! > daemon; sleep 0.1; {parent}");
    let started = world.start(&script);
    let _daemon = Outsider::of(world.pid("daemon").await);
    let _job = Outsider::of(world.pid("pid").await);
    assert_eq!(find_run(&id, &web(), ONE), Some(started));
    assert_eq!(find_run(&id, &web(), RunId(2)), None);
    assert_eq!(find_run(&id, &named("we"), ONE), None);
    assert_eq!(find_run("another", &web(), ONE), None);
}

/// As in a container that a process entered from outside: its session, and perhaps its group,
/// is led by a process that has no number here, so that both read as 0.
#[test]
fn sessions_and_groups_that_are_led_from_outside_the_namespace_are_no_obstacle() {
    let mut script = String::from("set -e\n");
    for test in [
        "adopting::a_run_is_found_by_its_environment_and_what_it_started_is_not_taken_for_it",
        "adopting::a_live_child_of_ours_is_taken_back_with_its_exit",
        "stopping::a_leader_that_left_its_group_is_reached_all_the_same",
    ] {
        script += &format!("\"$0\" --exact process::tests::{test} --test-threads=1\n");
    }
    let user: &[&str] = match rustix::process::geteuid().is_root() {
        true => &[],
        false => &["--user", "--map-root-user"],
    };
    let output = Command::new("unshare")
        .args(user)
        .args(["--pid", "--fork", "--mount-proc"])
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // Not asked for by REQUIRE_ALL: within some containers not even root may do this.
    if errors.starts_with("unshare:") {
        eprintln!("skipped: no namespaces can be made here: {errors}");
        return;
    }
    assert!(output.status.success(), "{text}\n{errors}");
    assert_eq!(text.matches("1 passed").count(), 3, "{text}");
}

/// The process of one run, if it is found.
fn find_run(id: &str, child: &ChildName, run: RunId) -> Option<Started> {
    let found = runs_of(id, child).into_iter();
    let mut found = found.filter(|found| found.run == run);
    found.next()?.process.map(|process| process.started)
}

/// The runs of one child that are found.
fn runs_of(id: &str, child: &ChildName) -> Vec<FoundRun> {
    let mut found = find_runs(id);
    found.retain(|found| found.child == *child);
    found
}

#[tokio::test]
async fn all_runs_are_found_with_what_their_processes_show() {
    let id = format!("found-{}", std::process::id());
    let mut world = World::of(Processes::beside_others(&id).unwrap());
    let id = world.processes.server_id.clone();
    assert_eq!(find_runs(&id), []);
    let started = world.start("exec sleep 100");
    let found = || runs_of(&id, &web()).into_iter().find_map(|run| run.process);
    until("it has become its program", || {
        found().is_some_and(|process| process.command == ["sleep", "100"])
    })
    .await;
    let [run] = <[FoundRun; 1]>::try_from(runs_of(&id, &web())).unwrap();
    assert_eq!(run.run, ONE);
    let process = run.process.unwrap();
    assert_eq!(process.started, started);
    assert!(process.age < Duration::from_secs(60), "{process:?}");
    let spec = world.spec(&["sleep"]);
    assert_eq!(process.workdir, spec.workdir.canonicalize().unwrap());
    assert!(is_alive(started.pid, started.start_ticks));
    assert!(!is_alive(started.pid, started.start_ticks + 1));
    for other in ["", "foun", &format!("{id}/web"), "another"] {
        assert_eq!(find_runs(other), []);
    }
}

/// As from a stranger's shell: the environment says what he wants, and the program is ours.
#[test]
fn a_set_uid_program_that_a_stranger_has_started_is_not_believed() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    const STRANGER: u32 = 12_345;
    if !crate::trust::tests::as_root("running a program as another user") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let all = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(temp.path(), all(0o755)).unwrap();
    let program = temp.path().join("sleep");
    let found = ["/usr/bin/sleep", "/bin/sleep"].map(PathBuf::from);
    let sleep = found.iter().find(|path| path.exists()).unwrap();
    fs::copy(sleep.canonicalize().unwrap(), &program).unwrap();
    let id = format!("forged-{}", std::process::id());
    let mut forged = Vec::new();
    for (run, mode, uid) in [(1, 0o4755, STRANGER), (2, 0o755, STRANGER), (3, 0o755, 0)] {
        fs::set_permissions(&program, all(mode)).unwrap();
        let mut command = Command::new(&program);
        command.arg("300").uid(uid).process_group(0);
        command.env(identity::RUN_VARIABLE, format!("{id}/web/{run}"));
        forged.push(command.spawn().unwrap());
        // It has become its program before that is changed: spawning waits for that.
    }
    let set_uid = forged[0].id();
    let status = fs::read_to_string(format!("/proc/{set_uid}/status")).unwrap();
    let is_effective = status.contains(&format!("Uid:\t{STRANGER}\t0\t0\t0"));
    let found = runs_of(&id, &web());
    let one = RunId(1);
    let by_number = find_run(&id, &web(), one);
    for mut process in forged {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // A file system that is mounted `nosuid` shows less.
    if !is_effective {
        return eprintln!("skipped: no set-uid programs in the temporary directory");
    }
    assert_eq!(by_number, None);
    let runs: Vec<RunId> = found.iter().map(|found| found.run).collect();
    assert_eq!(
        runs,
        [RunId(3)],
        "only the one that is ours in every respect"
    );
}

#[tokio::test]
async fn that_a_suspect_is_gone_is_told_once() {
    let mut world = World::new();
    let (pid, start_ticks) = foreign(&mut world, "sleep 100").await;
    let suspect = Started { pid, start_ticks };
    let another = Started {
        start_ticks: start_ticks + 1,
        ..suspect
    };
    let both = [suspect, another].map(|it| (it.pid, it.start_ticks));
    let gone = world.processes.watch_suspects(both.into_iter());
    assert_eq!(gone, [Fact::SuspectGone(another)], "known by its start");
    drop(Outsider::of(pid));
    assert_eq!(
        world.processes.wait().await,
        [Fact::SuspectGone(suspect)],
        "its zombie is nobody's run"
    );
    let none = tokio::time::timeout(Duration::from_millis(100), world.processes.wait());
    assert!(none.await.is_err(), "told once");
}
