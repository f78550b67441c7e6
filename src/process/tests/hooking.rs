//! Hooks' programs.

use super::*;

const JOB: JobId = JobId(1);

fn argv(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// A hook's answer, and nothing else.
async fn result(world: &mut World) -> Result<(), String> {
    match world.facts().await.as_slice() {
        [Fact::HookFinished { job: JOB, result }] => result.clone(),
        other => panic!("{other:?}"),
    }
}

fn run(world: &mut World, script: &str) {
    let spec = world.shell("exit 0");
    world
        .processes
        .run_hook(JOB, &web(), &argv(script), &spec)
        .unwrap();
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
    let spec = world.shell("exit 0");
    let error = world
        .processes
        .run_hook(JOB, &web(), &["./x".to_owned()], &spec)
        .unwrap_err();
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
    let hook = argv("echo hook");
    world.processes.run_hook(JOB, &web(), &hook, &spec).unwrap();
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
    world.processes.kill_hook(JobId(2));
    world.processes.kill_hook(JOB);
    world.processes.kill_hook(JOB);
    let error = result(&mut world).await.unwrap_err();
    assert!(error.ends_with("it was killed"), "{error}");
    world.processes.kill_hook(JOB);
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
    world.processes.kill_hook(JOB);
    // As if the time after KILL had passed before the end was seen.
    let hook = world.processes.hooks.get_mut(&JOB).unwrap();
    hook.expire();
    let facts = world.processes.expire_hooks();
    let [
        Fact::HookFinished {
            job: JOB,
            result: Err(why),
        },
    ] = facts.as_slice()
    else {
        panic!("{facts:?}");
    };
    assert!(why.ends_with("it was killed, and is not gone yet"), "{why}");
    // When it does end it is reaped without a word, which another one's end shows.
    world.start("exit 1");
    assert_eq!(world.exit().await, Exit::Code(1));
    until_reaped(&mut world).await;
}

async fn until_reaped(world: &mut World) {
    let deadline = clock::mono() + PATIENCE;
    while world.processes.processes.contains_key(&Owner::Hook(JOB)) {
        assert!(clock::mono() < deadline);
        let facts = tokio::time::timeout(PAUSE, world.processes.wait()).await;
        assert!(facts.is_err(), "{facts:?}");
    }
}

#[tokio::test]
async fn a_job_runs_one_hook() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    let spec = world.shell("exit 0");
    let error = world
        .processes
        .run_hook(JOB, &web(), &argv("exit 0"), &spec)
        .unwrap_err();
    assert!(error.ends_with("job 1 runs a hook already"), "{error}");
    world.processes.kill_hook(JOB);
    assert!(result(&mut world).await.is_err());
}

#[tokio::test]
async fn a_hook_is_no_run_of_its_child() {
    let mut world = World::new();
    run(&mut world, "sleep 100");
    world.processes.signal(&web(), ONE, Signal::Kill);
    world.start("exit 0");
    assert_eq!(world.exit().await, Exit::Code(0));
    assert!(world.processes.processes.contains_key(&Owner::Hook(JOB)));
}
