//! Processes go over to another program, which here is the same one with nothing but what it was
//! given.

use super::*;
use crate::process::handover::HandedProcesses;

impl World {
    /// Through what is written down, but for the descriptors.
    fn hand_over(&mut self) -> Vec<Fact> {
        self.hand_over_to(Processes::beside_others("server").unwrap())
    }

    /// The next program hears runs where this one did.
    pub(super) fn hand_over_hearing(&mut self, runtime_dir: &std::path::Path) -> Vec<Fact> {
        let mut fresh = Processes::beside_others("server").unwrap();
        fresh.listen_in(runtime_dir);
        self.hand_over_to(fresh)
    }

    fn hand_over_to(&mut self, fresh: Processes) -> Vec<Fact> {
        let handed = std::mem::replace(&mut self.processes, fresh).hand_over();
        let mut bytes = Vec::new();
        ciborium::into_writer(&handed, &mut bytes).unwrap();
        let read: HandedProcesses = ciborium::from_reader(bytes.as_slice()).unwrap();
        let copies: std::collections::BTreeMap<_, _> = handed
            .passed()
            .map(|passed| passed.held().unwrap())
            .map(|fd| {
                (
                    std::os::fd::AsRawFd::as_raw_fd(&fd),
                    fd.try_clone_to_owned().unwrap(),
                )
            })
            .collect();
        self.processes
            .take_over(read, &|number| copies[&number].try_clone())
    }
}

#[tokio::test]
async fn a_run_goes_on_and_its_exit_is_told_exactly() {
    let mut world = World::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
    world.start("read go < go; exit 9");
    let before = world.process().pid;
    assert_eq!(world.hand_over(), []);
    assert_eq!(world.process().pid, before);
    assert_eq!(world.processes.live_count(), 1);
    let again = world
        .processes
        .start(&web(), RunId(2), &world.shell("exit"), None);
    assert!(again.is_err(), "I1");
    world.processes.signal(&web(), ONE, TERM, GROUP);
    assert_eq!(world.exit().await, Exit::Signal(libc::SIGTERM));
}

#[tokio::test]
async fn an_end_that_nobody_was_told_of_is_told_and_one_that_was_told_is_not() {
    let mut world = World::new();
    let started = world.start("exit 5");
    until("a zombie", || state(started.pid) == Some('Z')).await;
    assert_eq!(world.hand_over(), []);
    assert_eq!(world.exit().await, Exit::Code(5));
    assert_eq!(world.hand_over(), []);
    let told = tokio::time::timeout(Duration::from_millis(50), world.processes.wait()).await;
    assert!(told.is_err(), "{told:?}");
    // It is kept until it is on record, here too.
    assert!(identity::stat(started.pid).is_ok());
    world.processes.reap(&web(), ONE, Leftovers::Leave);
    assert!(identity::stat(started.pid).is_err());
}

#[tokio::test]
async fn a_hook_runs_on_within_its_time() {
    let mut world = World::new();
    let spec = world.shell("exit");
    let argv = ["/bin/sh", "-c", "read go < go"].map(str::to_owned);
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
    for job in [1, 2] {
        let hook = HookId(job);
        let program = hooking::program(&world, argv.to_vec());
        let run = world
            .processes
            .run_hook(&web(), hook, &program, &spec, None);
        run.unwrap();
        assert_eq!(world.hand_over(), []);
        let (result, how) = match hook.0 {
            1 => {
                fs::write(world.path("go"), "go\n").unwrap();
                (true, "by itself")
            }
            _ => {
                let key = (web(), hook);
                world.processes.hooks.get_mut(&key).unwrap().expire();
                (false, "when its time is up")
            }
        };
        match world.facts().await.as_slice() {
            [
                Fact::HookFinished {
                    hook: of,
                    result: r,
                    ..
                },
            ] if *of == hook => {
                assert_eq!(r.is_ok(), result, "{how}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_left_of_a_group_is_still_found() {
    let mut world = World::new();
    world.start("sleep 1000 & echo $! > pid; exit 0");
    let rest = world.pid("pid").await;
    world.exit().await;
    world.processes.reap(&web(), ONE, Leftovers::Leave);
    assert_eq!(world.hand_over(), []);
    assert!(lives(rest));
    world.processes.clear(&web(), remains(ONE));
    until("it is gone", || {
        state(rest).is_none_or(|state| state == 'Z')
    })
    .await;
}

#[tokio::test]
async fn a_process_whose_descriptor_is_lost_is_found_by_its_number_and_start() {
    let mut world = World::new();
    world.start("exec sleep 1000");
    let fresh = Processes::beside_others("server").unwrap();
    let handed = std::mem::replace(&mut world.processes, fresh).hand_over();
    let null = || Ok(std::fs::File::open("/dev/null").unwrap().into());
    let mut bytes = Vec::new();
    ciborium::into_writer(&handed, &mut bytes).unwrap();
    drop(handed);
    let read: HandedProcesses = ciborium::from_reader(bytes.as_slice()).unwrap();
    assert_eq!(world.processes.take_over(read, &|_| null()), []);
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    assert_eq!(world.exit().await, Exit::Signal(libc::SIGKILL));
}

#[tokio::test]
async fn children_copy_few_descriptors_again_once_low_numbers_are_free() {
    let mut world = World::new();
    let high = i32::try_from(open_files_max().min(20_000) / 2).unwrap();
    let raise = |fd: &mut OwnedFd| *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, high).unwrap();
    let standard = &mut world.processes.standard;
    let own = [&mut standard.null, &mut standard.record, &mut standard.lock];
    own.into_iter().chain(&mut standard.slots).for_each(raise);
    world.processes.take_low_numbers();
    let standard = &world.processes.standard;
    let own = [&standard.null, &standard.record, &standard.lock];
    for fd in own.into_iter().chain(&standard.slots) {
        assert!(fd.as_raw_fd() < high, "{standard:?}");
    }
    world.start("exit 7");
    assert_eq!(world.exit().await, Exit::Code(7));
}
