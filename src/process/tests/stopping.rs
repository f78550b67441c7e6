//! Signals, ends, and what is left of a group.

use super::*;
use crate::process::stop::Fate;

/// The ways to signal groups that this machine has.
fn worlds() -> [World; 2] {
    [World::new(), World::old()]
}

#[tokio::test]
async fn term_ends_a_child_and_its_whole_group() {
    for mut world in worlds() {
        world.start("sleep 100 & echo $! > pid; wait");
        let grandchild = world.pid("pid").await;
        world.processes.signal(&web(), ONE, TERM, GROUP);
        assert_eq!(world.exit().await, Exit::Signal(15));
        until("the grandchild is gone", || !lives(grandchild)).await;
    }
}

#[tokio::test]
async fn a_child_that_ignores_term_is_ended_by_kill() {
    for mut world in worlds() {
        world.start("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        world.says("out", "ready").await;
        world.processes.signal(&web(), ONE, TERM, GROUP);
        world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
        assert_eq!(world.exit().await, Exit::Signal(9));
    }
}

#[tokio::test]
async fn a_stopped_child_hears_of_term() {
    for mut world in worlds() {
        let script = "trap 'echo bye; exit 7' TERM; sleep 100 & echo ready; wait";
        let pid = world.start(script).pid;
        world.says("out", "ready").await;
        world
            .processes
            .send(world.process(), libc::SIGSTOP)
            .unwrap();
        until("it is stopped", || state(pid) == Some('T')).await;
        world.processes.signal(&web(), ONE, TERM, GROUP);
        assert_eq!(world.exit().await, Exit::Code(7));
        world.says("out", "bye").await;
    }
}

#[tokio::test]
async fn a_leader_that_left_its_group_is_reached_all_the_same() {
    for mut world in worlds() {
        let spec = world.shell(&actor("deserter"));
        let pid = world.processes.start(&web(), ONE, &spec, None).unwrap().pid;
        until("it has left", || world.read("deserted") == "yes").await;
        assert_ne!(identity::stat(pid).unwrap().group, pid);
        world.processes.signal(&web(), ONE, TERM, GROUP);
        assert_eq!(world.exit().await, Exit::Signal(15));
    }
}

#[tokio::test]
async fn a_signal_for_another_run_reaches_nobody_i4() {
    let mut world = World::new();
    let pid = world.start("sleep 100").pid;
    for (child, run) in [(web(), RunId(2)), (web(), RunId(0)), (named("db"), ONE)] {
        world.processes.signal(&child, run, Signal::Kill, GROUP);
        world.processes.reap(&child, run, Leftovers::Kill(GROUP));
        world.processes.clear(&child, remains(run));
    }
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    world.processes.clear(&web(), remains(ONE));
    assert!(lives(pid), "and a live run is neither reaped nor cleared");
    assert_eq!(world.processes.live_count(), 1);
}

#[tokio::test]
async fn an_exit_is_told_once_and_kept_until_it_is_reaped_i2() {
    let mut world = World::new();
    let pid = world.start("exit 4").pid;
    assert_eq!(world.exit().await, Exit::Code(4));
    assert_eq!(state(pid), Some('Z'));
    assert_eq!(world.processes.live_count(), 0);
    // Another child's end shows that the first one's is not told again.
    let spec = world.shell("exit 5");
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    assert_eq!(
        world.facts().await,
        [Fact::Exited {
            child: named("db"),
            run: ONE,
            exit: Exit::Code(5),
            circumstances: Circumstances::default(),
        }]
    );
    assert_eq!(state(pid), Some('Z'));
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
    assert_eq!(state(pid), None);
    world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
}

#[tokio::test]
async fn reaping_kills_the_rest_of_the_group() {
    for mut world in worlds() {
        world.start("sleep 100 & echo $! > pid");
        let grandchild = world.pid("pid").await;
        assert_eq!(world.exit().await, Exit::Code(0));
        assert!(lives(grandchild));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        until("the grandchild is gone", || !lives(grandchild)).await;
    }
}

#[tokio::test]
async fn what_is_left_is_killed_when_it_is_to_be_cleared() {
    for mut world in worlds() {
        world.start("sleep 100 & echo $! > pid");
        let grandchild = world.pid("pid").await;
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Leave);
        assert!(lives(grandchild), "it may live on");
        world.processes.clear(&web(), remains(RunId(2)));
        assert!(lives(grandchild), "another run's order does not concern it");
        world.processes.clear(&web(), remains(ONE));
        until("the grandchild is gone", || !lives(grandchild)).await;
        world.processes.clear(&web(), remains(ONE));
    }
}

#[tokio::test]
async fn nothing_is_kept_of_a_group_that_is_empty() {
    for mut world in worlds() {
        world.start("exit 0");
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Leave);
        assert!(world.processes.left.is_empty());
    }
}

#[tokio::test]
async fn a_search_for_the_rest_harms_no_stranger() {
    let mut world = World::old();
    // Same group, another run; same run, another group.
    world.start(
        "SUPERVISOR_RS_RUN=server/web/2 sleep 100 & echo $! > forged; sleep 100 & echo $! > pid",
    );
    let (forged, member) = (world.pid("forged").await, world.pid("pid").await);
    // Until it has executed it is what the shell is: one of this run.
    until("the forger is forged", || {
        let environment = fs::read(format!("/proc/{forged}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains("=server/web/2")
    })
    .await;
    let spec = world.shell("SUPERVISOR_RS_RUN=server/web/1 exec sleep 100");
    let stranger = world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap()
        .pid;
    assert_eq!(world.exit().await, Exit::Code(0));
    world.processes.reap(&web(), ONE, Leftovers::Leave);
    world.processes.clear(&web(), remains(ONE));
    until("the member is gone", || !lives(member)).await;
    assert!(lives(forged) && lives(stranger));
    // End it as what it says it is.
    identity::kill_members(
        identity::stat(forged).unwrap().group,
        "SUPERVISOR_RS_RUN=server/web/2",
    );
    until("the forger is gone", || !lives(forged)).await;
}

#[tokio::test]
async fn a_start_does_not_wait_for_ever_for_what_was_killed() {
    let mut world = World::new();
    world.start("sleep 100 & echo $! > pid");
    let grandchild = world.pid("pid").await;
    assert_eq!(world.exit().await, Exit::Code(0));
    world.processes.reap(&web(), ONE, Leftovers::Leave);
    // As if it could not die.
    let left = world.processes.left.get_mut(&(web(), ONE)).unwrap();
    left.fate = Fate::Killed;
    let spec = world.shell("exit 0");
    world
        .processes
        .start(&web(), RunId(2), &spec, None)
        .unwrap();
    assert!(lives(grandchild));
}

#[test]
fn what_was_killed_is_forgotten_when_it_is_gone() {
    let test = "process::tests::stopping::what_was_killed_is_forgotten_when_it_is_gone";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        world.start("sleep 100 & echo $! > pid");
        let grandchild = world.pid("pid").await;
        assert_eq!(world.exit().await, Exit::Code(0));
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        until("it is gone", || !lives(grandchild)).await;
        let spec = world.shell("exit 0");
        world
            .processes
            .start(&web(), RunId(2), &spec, None)
            .unwrap();
        assert!(world.processes.left.is_empty());
        assert_eq!(state(grandchild), None, "and was reaped by the way");
    });
}

#[tokio::test]
async fn an_end_is_not_lost_when_waiting_is_given_up() {
    let mut world = World::new();
    let count = 40;
    for number in 0..count {
        let spec = world.shell("sleep 0.02; exit 3");
        let child = named(&format!("c{number}"));
        world.processes.start(&child, ONE, &spec, None).unwrap();
    }
    let mut told = Vec::new();
    let deadline = clock::mono() + PATIENCE;
    while told.len() < count {
        assert!(clock::mono() < deadline, "{} of {count}", told.len());
        // Given up at once, nearly always.
        let span = Duration::from_micros(50);
        if let Ok(facts) = tokio::time::timeout(span, world.processes.wait()).await {
            told.extend(facts);
        }
    }
    told.sort_by_key(|fact| format!("{fact:?}"));
    told.dedup();
    assert_eq!(told.len(), count, "each once");
    assert!(told.iter().all(|fact| matches!(
        fact,
        Fact::Exited {
            exit: Exit::Code(3),
            ..
        }
    )));
}

#[tokio::test]
async fn more_ends_at_once_than_a_turn_tells_are_all_told() {
    let mut world = World::new();
    let count = 300;
    let spec = world.spec(&["/bin/true"]);
    for number in 0..count {
        let child = named(&format!("c{number}"));
        world.processes.start(&child, ONE, &spec, None).unwrap();
    }
    let mut told = 0;
    while told < count {
        told += world.facts().await.len();
    }
    assert_eq!(told, count);
    assert_eq!(world.processes.live_count(), 0);
}
