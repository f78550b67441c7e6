//! The server ends with a child (`--exit-with`): with that one, for good, and with all others stopped.

use super::world::World;
use crate::{
    reconcile::{
        cause::Cause,
        effect::Effect,
        event::{Boot, StartKind},
        memory::RememberedEnd,
        record::Record,
    },
    spec::Exit,
};

impl World {
    /// The server ends with the child that it is to end with, and only then; and then it does.
    pub(super) fn check_mainstay(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Record { records, .. } = effect {
                self.note_mainstay(records);
            }
        }
        let Some(name) = self.exit_with.clone() else {
            return;
        };
        let Some(child) = self.core.children.get(&name) else {
            return;
        };
        let with = self.core.ending.as_ref().map(|ending| ending.with);
        let at_rest = child.run.is_none() && child.job.is_none() && child.retry.is_none();
        let waits = child.due.is_some() || !child.blocked.is_empty();
        let idle = at_rest && !waits && child.armed.is_none();
        let held = child.hold.is_some();
        let settled = !self.core.relisting && !child.doubt && !held;
        let known = self.checks.mainstay;
        match with {
            Some(Some(exit)) if !self.checks.ends_with_mainstay => {
                self.checks.ends_with_mainstay = true;
                self.checks.shutdowns += 1;
                self.note_end_order(true);
                // It may never have run, or have been started in vain after its end.
                let told = known.is_some_and(|told| told == exit) || exit == Exit::Unknown;
                if !at_rest || held || !told {
                    self.blame(|_| format!("the server ends with {name}: {exit}, {known:?}"));
                }
            }
            None => {
                if idle && settled && known.is_some() {
                    self.blame(|_| format!("{name} has ended for good, and the server goes on"));
                }
            }
            Some(_) => {}
        }
    }

    /// How the child has ended by itself with which the server is to end, as it is recorded.
    fn note_mainstay(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::Ended {
                    child, exit, by, ..
                } if Some(child) == self.exit_with.as_ref() => {
                    self.checks.mainstay = is_for_good(*by).then_some(*exit);
                }
                Record::Settled { child } if Some(child) == self.exit_with.as_ref() => {
                    self.checks.mainstay = None;
                }
                _other => {}
            }
        }
    }
}

/// Whether an end is the child's own doing, so that its policy decides what follows.
fn is_for_good(by: Option<Cause>) -> bool {
    by.is_none_or(|cause| cause == Cause::NotReady)
}

/// How the child has ended with which the server is to end, if the one before has left that to it.
pub(super) fn remembered_mainstay(boot: &Boot) -> Option<Exit> {
    let child = boot.memory.children.get(boot.exit_with.as_ref()?)?;
    let last = child.last.as_ref()?;
    match &last.end {
        Some(RememberedEnd::Exited { exit, by, .. })
            if is_for_good(by.as_ref().map(|by| by.cause))
                && boot.start == StartKind::Continued
                && !last.settled =>
        {
            Some(*exit)
        }
        Some(RememberedEnd::Exited { .. } | RememberedEnd::NotStarted { .. }) | None => None,
    }
}

mod claims {
    use super::super::{claims::expect, script::Stage};

    const END: &str = "end with ";

    fn after(options: &str) -> Stage {
        Stage::after(&format!(
            "file web v1 {options}\nfile db v1\nboot sync exit-with web"
        ))
    }

    #[test]
    fn the_others_are_stopped_and_the_server_ends_with_the_childs_exit() {
        let mut stage = after("");
        expect(&stage.then("exited db 5"), &["ended, exit code 5"], &[END]);
        let mut stage = after("");
        let out = stage.then("exited web 7");
        expect(&out, &["the server with it", "TERM to db run 1"], &[END]);
        let out = stage.then("exited db SIGTERM");
        expect(
            &out,
            &["end with exit code 7", "no child is left running"],
            &[],
        );
        let out = after("").then("exited web SIGSEGV\nexited db SIGTERM");
        expect(&out, &["end with SIGSEGV"], &[]);
    }

    #[test]
    fn what_its_policy_starts_again_has_not_ended_for_good() {
        let mut stage = after("restart on-failure max 1 1m");
        expect(&stage.then("exited web 1"), &["will be restarted"], &[END]);
        let out = stage.then("advance 1s\nexited web 2");
        expect(&out, &["given up", "TERM to db run 1"], &[END]);
        expect(&stage.then("exited db 0"), &["end with exit code 2"], &[]);
        let out = after("restart on-failure").then("exited web 0\nexited db 0");
        expect(&out, &["end with exit code 0"], &[]);
    }

    #[test]
    fn what_an_operator_stops_has_not_ended_by_itself() {
        let mut stage = after("");
        let out = stage.then("request 1 stop web\nexited web SIGTERM\nadvance 1m");
        expect(&out, &[], &[END, "TERM to db"]);
        let out = stage.then("request 2 start web\nexited web 3\nexited db 0");
        expect(&out, &["start web run 2", "end with exit code 3"], &[]);
        // Nor what waits for its restart.
        let mut stage = after("restart always");
        let out = stage.then("exited web 1\nrequest 1 stop web\nadvance 1m");
        expect(&out, &[], &[END, "TERM to db"]);
    }

    #[test]
    fn what_is_to_be_started_by_a_repeat_or_a_changed_file_has_not_ended_for_good() {
        let mut stage = after("repeat trystart 30s");
        expect(&stage.then("exited web 1"), &[], &[END, "TERM to db"]);
        expect(&stage.then("advance 30s"), &["start web run 2"], &[]);
        let mut stage = after("");
        let out = stage.then("file web v2\nseen web\nexited web SIGTERM");
        expect(&out, &["start web run 2"], &[END]);
    }

    #[test]
    fn what_goes_with_its_file_leaves_the_server_alone() {
        let mut stage = after("");
        let out =
            stage.then("gone web\nseen web\nadvance 2s\nrescan\nexited web SIGTERM\nadvance 2m");
        expect(&out, &["TERM to web run 1"], &[END, "TERM to db"]);
    }

    #[test]
    fn what_cannot_be_started_at_all_ends_the_server_too_unless_a_client_wanted_it() {
        let stage = "file web v1\nfile db v1\nrefuse spawn\nboot sync exit-with web";
        let out = Stage::new().then(stage);
        expect(&out, &["end with unknown exit"], &[]);
        let quiet = "file web v1\nboot quiet exit-with web\nrefuse spawn\nrequest 1 start web";
        expect(&Stage::new().then(quiet), &["could not be started"], &[END]);
    }

    #[test]
    fn a_server_that_dies_in_the_middle_of_it_leaves_it_to_the_next() {
        let mut stage = after("");
        let out = stage.then("exited web 7\ncrash\nboot sync continued exit-with web");
        expect(&out, &["TERM to db run 1"], &[]);
        expect(
            &stage.then("exited db SIGTERM"),
            &["end with exit code 7"],
            &[],
        );
        // A new beginning is one: nothing that ended before it counts.
        let mut stage = after("");
        stage.then("exited web 7\nexited db 0");
        let out = stage.then("boot quiet exit-with web");
        expect(&out, &[], &[END]);
    }

    #[test]
    fn an_end_by_order_is_no_end_with_the_child() {
        let out = after("").then("request 1 kill --stop-children\nexited web 9\nexited db 0");
        expect(&out, &["end: "], &[END]);
    }
}
