//! I5, the second half: an answer is sent only after what it says is true and recorded.

use super::{checks::Asked, world::World};
use crate::{
    command::{Answer, Checked, Command, Done, ErrorCode, Failure, Op},
    reconcile::{
        KILL_WAIT, QUEUE_LEN_MAX,
        child::{Child, Phase},
        listing::Content,
    },
    spec::{ChildName, Verb},
};

impl World {
    pub(super) fn check_answer(&mut self, asked: &Asked, answer: &Result<Answer, Failure>) {
        if let Command::Wait { .. } = asked.command {
            return self.check_waited(asked, answer);
        }
        if let Command::Events { .. } = asked.command {
            return self.check_followed(asked, answer);
        }
        match answer {
            Ok(Answer::Done(done)) => self.check_done(asked, done),
            Ok(Answer::Each(each)) => {
                if each.op != asked.command.op() {
                    self.blame(|_| {
                        format!(
                            "I5: {:?} is answered as {}",
                            asked.command,
                            each.op.as_str()
                        )
                    });
                }
                for outcome in each.children.iter().filter(|outcome| outcome.ok) {
                    // Somebody may have started it again while the others were being stopped.
                    let run = outcome.run.filter(|_| each.op == Op::Stop);
                    let process =
                        run.and_then(|run| self.processes.get(&(outcome.name.clone(), run)));
                    if process.is_some() {
                        self.blame(|_| {
                            format!("I5: {} is told to be stopped and lives", outcome.name)
                        });
                    }
                }
            }
            Ok(Answer::Checked(checked)) => self.check_checked(checked),
            Ok(
                Answer::Why(_)
                | Answer::Told(_)
                | Answer::Info(_)
                | Answer::Killed(_)
                | Answer::Upgraded(_),
            ) => {}
            Err(failure) => self.check_refused(asked, failure),
        }
    }

    fn check_done(&mut self, asked: &Asked, done: &Done) {
        let Command::Child { verb, child } = &asked.command else {
            self.blame(|_| format!("I5: {:?} is answered by {done:?}", asked.command));
            return;
        };
        if done.op != Op::from(*verb) || done.child != *child {
            self.blame(|_| format!("I5: `{verb} {child}` is answered as {done:?}"));
        }
        match verb {
            Verb::Stop => self.check_stopped(asked, child),
            Verb::Start | Verb::Restart | Verb::Trystart => {
                let Some(run) = done.run else {
                    self.blame(|_| format!("I5: `{verb} {child}` tells no run"));
                    return;
                };
                let process = self.processes.get(&(child.clone(), run));
                let recorded = process.is_some_and(|process| process.recorded);
                if !recorded || process.map(|process| process.pid) != done.pid {
                    self.blame(|_| format!("I5: {child} run {run} is told and was not started"));
                }
                let held = self
                    .memory
                    .children
                    .get(child)
                    .is_some_and(|it| it.held.is_some());
                if held {
                    self.blame(|_| {
                        format!("I5: {child} is told to be started and is held on disk")
                    });
                }
            }
        }
    }

    pub(super) fn check_stopped(&mut self, asked: &Asked, child: &ChildName) {
        let lives = self
            .processes
            .iter()
            .any(|((name, _), process)| name == child && process.recorded);
        let core = self.core.children.get(child);
        let core_held = core.is_some_and(|it| it.hold.is_some());
        // Something later in the same step may have begun already.
        let wrong = lives && core.is_none_or(|it| it.run.is_some());
        if wrong {
            self.blame(|_| format!("I5: {child} is told to be stopped and lives"));
        }
        let memory = self.memory.children.get(child);
        let held = memory.is_some_and(|it| it.held.is_some());
        let released = self
            .checks
            .open
            .values()
            .any(|other| other.at >= asked.at && matches!(other.command, Command::StartAll));
        if !held && !released && core_held {
            self.blame(|_| format!("I5: {child} is told to be held and that is not on disk"));
        }
        if self
            .core
            .children
            .get(child)
            .is_some_and(Child::is_in_doubt)
        {
            return;
        }
        let memory = self.memory.children.get(child);
        let remembered = memory.and_then(|it| it.last.as_ref());
        if remembered.is_some_and(|last| last.process.is_some() && last.end.is_none()) {
            self.blame(|_| format!("I5: the end of {child} is told and not on disk"));
        }
    }

    pub(super) fn check_refused(&mut self, asked: &Asked, failure: &Failure) {
        let Command::Child { verb, child } = &asked.command else {
            return;
        };
        let core = self.core.children.get(child);
        let live = core.is_some_and(Child::is_live);
        let stands = self.checks.view.get(child).map(|entry| &entry.content);
        // Its file may say so no more.
        let spec = core.and_then(Child::in_force);
        let depends = spec.is_some_and(|spec| !spec.depends_on.is_empty())
            || core.is_some_and(|it| it.due.is_some())
            || self.checks.depending.waited.contains(child);
        let wrong = match failure.code {
            ErrorCode::AlreadyRunning => !live || *verb != Verb::Start,
            ErrorCode::NotRunning => {
                // What the same step begins after the answer is not held against it.
                let begun = core.and_then(|it| it.run.as_ref()).map(|run| run.phase);
                (live && begun != Some(Phase::Spawning))
                    || !matches!(verb, Verb::Restart | Verb::Stop)
                    // A restart that this very step made due came after the answer.
                    || (self.checks.in_backoff.contains(child)
                        && core.is_some_and(|it| it.job.is_none() && it.retry.is_some()))
            }
            ErrorCode::UnknownChild => stands.is_some(),
            ErrorCode::InvalidConfig => match stands {
                Some(Content::Bad(_)) => false,
                Some(Content::Good(spec)) => self.core.graph_faults(child, spec).is_empty(),
                Some(Content::Conflict) | None => true,
            },
            ErrorCode::DependencyFailed => !depends,
            ErrorCode::Timeout if depends && !core.is_some_and(Child::is_stopping) => false,
            ErrorCode::Conflict => !matches!(stands, Some(Content::Conflict)),
            ErrorCode::Busy => core.is_none_or(|it| it.queue.len() < QUEUE_LEN_MAX),
            ErrorCode::ShuttingDown => self.core.ending.is_none(),
            ErrorCode::Timeout => {
                let stopping = core
                    .and_then(|it| it.run.as_ref())
                    .filter(|run| matches!(run.phase, Phase::Stopping { .. }));
                let process = stopping.and_then(|run| self.processes.get(&(child.clone(), run.id)));
                let patient = process.and_then(|it| it.kill_at);
                patient.is_none_or(|at| self.now.mono - at < KILL_WAIT)
            }
            ErrorCode::HookFailed
            | ErrorCode::SpawnFailed
            | ErrorCode::Superseded
            | ErrorCode::Internal
            | ErrorCode::HookCycle => false,
            ErrorCode::TooLarge
            | ErrorCode::NotReady
            | ErrorCode::BadRequest
            | ErrorCode::Unauthorized
            | ErrorCode::Forbidden
            | ErrorCode::ProtectedMode
            | ErrorCode::ServerChanged
            | ErrorCode::Unreachable => true,
        };
        if wrong {
            self.blame(|_| format!("I5: `{verb} {child}` is refused wrongly: {failure}"));
        }
    }

    pub(super) fn check_checked(&mut self, checked: &Checked) {
        for row in &checked.children {
            let run = self
                .core
                .children
                .get(&row.name)
                .and_then(|it| it.run.as_ref());
            let shown = run.and_then(|run| run.pid);
            let real = run.and_then(|run| self.processes.get(&(row.name.clone(), run.id)));
            let real = real.map(|process| process.pid);
            if row.pid != shown {
                self.blame(|_| format!("I5: the row of {} shows a wrong process", row.name));
            }
            // Whatever a run says of it.
            if row.pid.is_some() && real.is_some() && real != row.pid {
                self.blame(|_| format!("I1: another process counts as {}", row.name));
            }
        }
    }
}
