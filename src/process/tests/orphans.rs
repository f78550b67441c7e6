//! Orphans that become our children. Each test is a process of its own.

use super::*;

/// The children of this process, zombies included.
pub(super) fn children() -> Vec<i32> {
    let own = std::process::id().cast_signed();
    identity::pids()
        .filter(|pid| identity::stat(*pid).is_ok_and(|stat| stat.parent == own))
        .collect()
}

/// Waits without anything to be told, until there are no children.
async fn until_childless(world: &mut World) {
    let gone = until("no children", || children().is_empty());
    tokio::select! {
        facts = world.processes.wait() => panic!("{facts:?}"),
        () = gone => {}
    }
}

#[test]
fn orphans_are_reaped_without_a_word() {
    let test = "process::tests::orphans::orphans_are_reaped_without_a_word";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        world.start("(sleep 0.05 & setsid sleep 0.02 & :) ; exit 6");
        assert_eq!(world.exit().await, Exit::Code(6));
        world.processes.reap(&web(), ONE, Leftovers::Leave);
        until_childless(&mut world).await;
        assert!(
            world.processes.left.is_empty(),
            "nor is their group kept in mind"
        );
    });
}

#[test]
fn reaping_orphans_takes_no_other_status() {
    let test = "process::tests::orphans::reaping_orphans_takes_no_other_status";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        for number in 0..60 {
            let spec = world.shell(&format!(
                "(: & sleep 0.0{} & :); exit {number}",
                number % 10
            ));
            let child = named(&format!("c{number}"));
            world.processes.start(&child, ONE, &spec, None).unwrap();
        }
        let mut told = BTreeMap::new();
        while told.len() < 60 {
            for fact in world.facts().await {
                let Fact::Exited { child, exit, .. } = fact else {
                    panic!("{fact:?}");
                };
                assert_eq!(told.insert(child, exit), None);
            }
        }
        for (child, exit) in &told {
            let number = child.as_str()[1..].parse().unwrap();
            assert_eq!(*exit, Exit::Code(number));
        }
        // All are kept: each has its status still.
        assert!(children().len() >= 60);
        for child in told.keys() {
            world.processes.reap(child, ONE, Leftovers::Leave);
        }
        until_childless(&mut world).await;
    });
}

#[test]
fn orphans_behind_a_kept_zombie_do_not_stay() {
    let test = "process::tests::orphans::orphans_behind_a_kept_zombie_do_not_stay";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        let kept = world.start("exit 9").pid;
        assert_eq!(world.exit().await, Exit::Code(9));
        let spec = world.shell(&format!("{}; echo done; exec sleep 100", orphans(100)));
        world
            .processes
            .start(&named("db"), ONE, &spec, None)
            .unwrap();
        world.says("out", "done").await;
        let two = until("two children", || children().len() == 2);
        tokio::select! {
            facts = world.processes.wait() => panic!("{facts:?}"),
            () = two => {}
        }
        assert_eq!(state(kept), Some('Z'), "and the kept one is kept");
        world.processes.reap(&web(), ONE, Leftovers::Kill(GROUP));
        world
            .processes
            .signal(&named("db"), ONE, Signal::Kill, GROUP);
        world.facts().await;
        world
            .processes
            .reap(&named("db"), ONE, Leftovers::Kill(GROUP));
        until_childless(&mut world).await;
    });
}

/// A script that makes that many, each of which outlives the shell it was started by.
fn orphans(count: usize) -> String {
    format!("i=0; while [ $i -lt {count} ]; do (sleep 0.2 & :); i=$((i+1)); done")
}

#[test]
#[expect(clippy::zombie_processes, reason = "that is what is reaped here")]
fn what_was_our_child_before_we_came_is_reaped_too() {
    let test = "process::tests::orphans::what_was_our_child_before_we_came_is_reaped_too";
    alone(test, &[], async {
        // As `sh -c 'something & exec server'` leaves it.
        let before = Command::new("/bin/sh")
            .args(["-c", "exit 1"])
            .spawn()
            .unwrap();
        let pid = before.id().cast_signed();
        until("it is a zombie", || state(pid) == Some('Z')).await;
        let mut world = World::of(Processes::new("server").unwrap());
        until_childless(&mut world).await;
    });
}

#[test]
fn a_flood_of_orphans_is_reaped_in_turns() {
    let test = "process::tests::orphans::a_flood_of_orphans_is_reaped_in_turns";
    alone(test, &[], async {
        let mut world = World::of(Processes::new("server").unwrap());
        // Nobody waits while they come.
        world.start(&format!("{}; exec sleep 100", orphans(300)));
        let own = std::process::id().cast_signed();
        until("they have come", || {
            let zombies = identity::pids().filter(|pid| {
                state(*pid) == Some('Z') && identity::stat(*pid).is_ok_and(|s| s.parent == own)
            });
            zombies.count() == 300
        })
        .await;
        const { assert!(300 > strays::STRAYS_PER_TURN_MAX) };
        let one_left = until("one child is left", || children().len() == 1);
        tokio::select! {
            facts = world.processes.wait() => panic!("{facts:?}"),
            () = one_left => {}
        }
    });
}
