//! Hooks' programs.

use super::*;
use crate::reconcile::program::{HookKind, HookProgram};

const HOOK: HookId = HookId(1);

fn argv(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// What these words are as the prehook of a child of this world.
pub(super) fn program(world: &World, argv: Vec<String>) -> HookProgram {
    HookProgram {
        kind: HookKind::Prehook,
        argv,
        workdir: world.folder.path().to_owned(),
    }
}

/// A hook's answer, and nothing else.
async fn result(world: &mut World) -> Result<(), String> {
    match world.facts().await.as_slice() {
        [
            Fact::HookFinished {
                hook: HOOK, result, ..
            },
        ] => result.clone().map_err(|failure| match failure {
            HookFailure::Failed(why) => why,
            HookFailure::NotRun(_) | HookFailure::NotGone(_) | HookFailure::Unknown => {
                panic!("{failure:?}")
            }
        }),
        other => panic!("{other:?}"),
    }
}

fn try_run(world: &mut World, hook: HookId, argv: Vec<String>) -> Result<Started, String> {
    let spec = world.shell("exit 0");
    let program = program(world, argv);
    world
        .processes
        .run_hook(&web(), hook, &program, &spec, None)
}

fn run(world: &mut World, script: &str) {
    try_run(world, HOOK, argv(script)).unwrap();
}

fn kill(world: &mut World) {
    world.processes.kill_hook(&web(), HOOK);
}

fn owner() -> Owner {
    Owner::Hook(web(), HOOK)
}

#[tokio::test]
async fn a_hook_that_ends_well_has_succeeded() {
    let mut world = World::new();
    run(
        &mut world,
        "pwd; echo oops >&2; cat; env | grep SUPERVISOR_RS_",
    );
    assert_eq!(world.processes.live_count(), 0, "it is no run");
    assert_eq!(result(&mut world).await, Ok(()));
    let folder = world.folder.path().canonicalize().unwrap();
    assert_eq!(
        world.read("out"),
        format!("{}\nSUPERVISOR_RS_HOOK=server/web\n", folder.display())
    );
    assert_eq!(world.read("err"), "oops\n");
    assert!(world.processes.owners.is_empty(), "and was reaped");
    assert!(world.processes.hooks.is_empty());
}

#[tokio::test]
async fn a_status_or_a_signal_is_a_failure() {
    for (script, end) in [("exit 3", "exit code 3"), ("kill -KILL $$", "SIGKILL")] {
        let mut world = World::new();
        run(&mut world, script);
        assert_eq!(result(&mut world).await, Err(end.to_owned()));
    }
}

#[tokio::test]
async fn one_that_cannot_be_run_says_so_at_once() {
    let mut world = World::new();
    let error = try_run(&mut world, HOOK, vec!["./x".to_owned()]).unwrap_err();
    assert!(error.starts_with("program `./x` not found in `"));
    assert!(world.processes.hooks.is_empty());
}

#[tokio::test]
async fn a_hook_empties_no_log() {
    let mut world = World::new();
    fs::write(world.path("out"), "old\n").unwrap();
    let mut spec = world.shell("exit 0");
    spec.stdout = Sink::File {
        path: world.path("out"),
        mode: OpenMode::Create,
    };
    let hook = program(&world, argv("echo hook"));
    let run = world.processes.run_hook(&web(), HOOK, &hook, &spec, None);
    run.unwrap();
    assert_eq!(result(&mut world).await, Ok(()));
    assert_eq!(world.read("out"), "old\nhook\n");
}

#[tokio::test]
async fn one_that_takes_too_long_is_killed_with_its_group() {
    let mut world = World::new();
    world.processes.hook_time = Duration::from_millis(200);
    run(&mut world, "trap '' TERM; sleep 100 & echo $! > pid; wait");
    let member = world.pid("pid").await;
    let error = result(&mut world).await.unwrap_err();
    assert!(
        error.ends_with("it took longer than 200ms and was killed"),
        "{error}"
    );
    until("its group is gone", || !lives(member)).await;
}

#[tokio::test]
async fn one_that_nobody_waits_for_is_killed_and_still_answered_for() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    world.processes.kill_hook(&web(), HookId(2));
    kill(&mut world);
    kill(&mut world);
    let error = result(&mut world).await.unwrap_err();
    assert!(error.ends_with("it was killed"), "{error}");
    kill(&mut world);
}

#[tokio::test]
async fn what_a_hook_leaves_behind_is_killed() {
    for mut world in [World::new(), World::old()] {
        run(&mut world, "sleep 100 & echo $! > pid");
        let member = world.pid("pid").await;
        assert_eq!(result(&mut world).await, Ok(()));
        until("it is gone", || !lives(member)).await;
    }
}

#[tokio::test]
async fn a_hook_that_cannot_die_is_answered_for_in_bounded_time_i8() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    kill(&mut world);
    // As if the time after KILL had passed before the end was seen.
    let hook = world.processes.hooks.get_mut(&(web(), HOOK)).unwrap();
    hook.expire();
    let facts = world.processes.expire_hooks();
    let [
        Fact::HookFinished {
            hook: HOOK,
            result: Err(HookFailure::NotGone(why)),
            ..
        },
    ] = facts.as_slice()
    else {
        panic!("{facts:?}");
    };
    assert!(why.ends_with("it was killed, and is not gone yet"), "{why}");
    // When it does end, that is told as well.
    let error = result(&mut world).await.unwrap_err();
    assert_eq!(error, "it was killed");
    assert!(!world.processes.processes.contains_key(&owner()));
    assert!(world.processes.hooks.is_empty());
}

#[tokio::test]
async fn a_child_runs_one_hook_at_a_time() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    for other in [HOOK, HookId(2)] {
        let error = try_run(&mut world, other, argv("exit 0")).unwrap_err();
        assert_eq!(error, "another hook of it still lives");
    }
    kill(&mut world);
    assert!(result(&mut world).await.is_err());
    run(&mut world, "exit 0");
    assert_eq!(result(&mut world).await, Ok(()));
}

#[tokio::test]
async fn a_hook_is_no_run_of_its_child() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    world.start("exit 0");
    assert_eq!(world.exit().await, Exit::Code(0));
    assert!(world.processes.processes.contains_key(&owner()));
}

/// Takes one back that an earlier server started so long ago.
fn take_back(world: &mut World, (pid, start_ticks): (i32, u64), ago: Duration) {
    let process = Started { pid, start_ticks };
    let began = Mono(clock::mono().0 - u64::try_from(ago.as_micros()).unwrap());
    let live = world.processes.adopt_hook(&web(), HOOK, process, began);
    assert!(live);
}

#[tokio::test]
async fn one_that_is_taken_back_is_answered_for_like_any_other() {
    for (script, end) in [
        ("read go < go", Ok(())),
        ("read go < go; exit 3", Err("exit code 3".to_owned())),
    ] {
        let mut world = World::new();
        rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
        let process = adopting::foreign(&mut world, script).await;
        take_back(&mut world, process, Duration::from_secs(1));
        let error = try_run(&mut world, HookId(2), argv("exit 0")).unwrap_err();
        assert_eq!(error, "another hook of it still lives");
        fs::write(world.path("go"), "go\n").unwrap();
        assert_eq!(result(&mut world).await, end);
        assert!(world.processes.hooks.is_empty());
    }
}

#[tokio::test]
async fn one_that_is_taken_back_has_what_is_left_of_its_time() {
    for mut world in [World::new(), World::old()] {
        let script = "trap '' TERM; sleep 100 & echo $! > member; wait";
        let process = adopting::foreign(&mut world, script).await;
        let (pid, member) = (process.0, world.pid("member").await);
        take_back(&mut world, process, Duration::from_secs(HOOK_SECONDS_MAX));
        let error = result(&mut world).await.unwrap_err();
        assert_eq!(error, "it took longer than 1m and was killed");
        until("its group is gone", || !lives(pid) && !lives(member)).await;
    }
}

#[tokio::test]
async fn one_that_is_not_there_any_more_is_not_taken_back() {
    let mut world = World::new();
    let own = identity::stat(std::process::id().cast_signed()).unwrap();
    for (pid, start_ticks) in [(i32::MAX, 1), (1, 1), (own.parent, own.start_ticks)] {
        let process = Started { pid, start_ticks };
        let now = clock::mono();
        assert!(!world.processes.adopt_hook(&web(), HOOK, process, now));
    }
    run(&mut world, "exit 0");
    assert_eq!(result(&mut world).await, Ok(()));
}

#[tokio::test]
async fn only_hooks_of_this_server_that_no_record_tells_of_are_killed() {
    let id = format!("lost-hooks-{}", std::process::id());
    let mut world = World::of(Processes::beside_others(&id).unwrap());
    run(&mut world, "exec sleep 100");
    world.start("exec sleep 100");
    let hook = &world.processes.processes[&owner()];
    let known = BTreeSet::from([(hook.pid, hook.start_ticks)]);
    assert_eq!(kill_unknown_hooks(&id, &known), []);
    assert_eq!(kill_unknown_hooks("another", &BTreeSet::new()), []);
    assert_eq!(kill_unknown_hooks(&id, &BTreeSet::new()), [web()]);
    assert_eq!(result(&mut world).await, Err("SIGKILL".to_owned()));
    assert_eq!(world.processes.live_count(), 1);
}
