//! Chains of hooks: what would run before a start or after a stop, and whether that makes sense.
//!
//! A chain is looked at whole before anything of it runs. Each verb leads on along one hook: a
//! start or restart along the other child's prehook, a stop along its posthook. A child that
//! stands twice in a chain closes a cycle.

use std::collections::BTreeSet;

use super::{
    State, Turn,
    cause::{Cause, Origin},
    event::JobId,
    job::{HookWait, Step, Waiter},
    listing::Content,
    planted::{Bug, planted},
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Hook, Spec, Verb},
};

/// The longest chain of hooks; a longer one is refused like a cycle.
pub(super) const CHAIN_LEN_MAX: usize = 64;

/// A look along a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chain {
    /// It can run. The names in it.
    Good(BTreeSet<ChildName>),
    /// It cannot, as things are; the names whose files would have to change.
    Bad(Failure, BTreeSet<ChildName>),
}

impl State {
    /// Gives the order that a hook consists of; `parent` goes on when it is carried out.
    pub(super) fn order_hook(
        &mut self,
        turn: &mut Turn,
        parent: JobId,
        verb: Verb,
        target: &ChildName,
    ) {
        if self.would_wait_for_itself(parent, target) {
            let message = format!("`{verb} {target}` would wait for itself");
            let failure = Failure::new(ErrorCode::HookCycle, message);
            self.hook_done(turn, parent, Err(failure));
            return;
        }
        let waiter = Some(Waiter::Hook(parent));
        let asker = self.jobs.get(&parent).and_then(|it| it.by.asker.clone());
        let cause = Cause::Hook;
        let by = Origin { cause, asker };
        match (verb, self.jobs.get(&parent).map(|job| job.posthooks)) {
            // What is stopped on the way of stopping everything starts nothing either.
            (Verb::Stop, Some(posthooks)) => {
                self.stop(turn, target, by, posthooks, waiter);
            }
            (Verb::Start | Verb::Restart | Verb::Trystart | Verb::Stop, _) => {
                self.order(turn, target, verb, by, waiter);
            }
        }
        // Unless it is done already, say whom to wait for.
        let Some(child) = self.children.get(target) else {
            return;
        };
        let waits_here = |id: &JobId| {
            let job = self.jobs.get(id);
            job.is_some_and(|job| job.waiters.contains(&Waiter::Hook(parent)))
        };
        let Some(sub) = child
            .job
            .iter()
            .chain(&child.queue)
            .copied()
            .find(waits_here)
        else {
            return;
        };
        if let Some(job) = self.jobs.get_mut(&parent) {
            match &mut job.step {
                Step::Prehook(wait) | Step::Posthook(wait) => *wait = HookWait::Job(sub),
                Step::Queued
                | Step::Reading
                | Step::Depends
                | Step::Checking
                | Step::StoppingOld
                | Step::Recording
                | Step::Spawning
                | Step::Dependents
                | Step::Stopping
                | Step::Closing => {}
            }
        }
    }

    /// The hook that a job waited for has ended.
    pub(super) fn hook_done(&mut self, turn: &mut Turn, id: JobId, result: Result<(), Failure>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let result = if planted(Bug::HookFailureIgnored) {
            Ok(())
        } else {
            result
        };
        match (job.step, result) {
            (Step::Prehook(_), Ok(())) => self.after_prehook(turn, id),
            (Step::Prehook(_), Err(failure)) => {
                let hook = job.spec.as_ref().and_then(|spec| spec.prehook.as_ref());
                let hook = hook.map_or_else(String::new, |hook| format!(" `{hook}`"));
                let message = format!(
                    "the prehook{hook} of `{}` failed: {}",
                    job.child, failure.message
                );
                let told = [ErrorCode::HookCycle, ErrorCode::ShuttingDown];
                let code = failure.code;
                let code = if told.contains(&code) {
                    code
                } else {
                    ErrorCode::HookFailed
                };
                self.fail_start(turn, id, Failure::new(code, message));
            }
            (Step::Posthook(_), Ok(())) => self.close(turn, id),
            (Step::Posthook(_), Err(failure)) => self.posthook_failed(turn, id, &failure.message),
            (
                Step::Queued
                | Step::Reading
                | Step::Depends
                | Step::Checking
                | Step::StoppingOld
                | Step::Recording
                | Step::Spawning
                | Step::Dependents
                | Step::Stopping
                | Step::Closing,
                Ok(()) | Err(_),
            ) => {}
        }
    }

    /// Follows the chain that begins with this hook of this child.
    pub(super) fn chain(&self, first: &ChildName, hook: Option<&Hook>) -> Chain {
        let mut names = BTreeSet::from([first.clone()]);
        let mut text = first.to_string();
        let mut hook = hook.cloned();
        while let Some(Hook::Command { verb, child }) = hook {
            text = format!("{text} -> {verb} {child}");
            if !names.insert(child.clone()) {
                let message = format!("the hooks run in a circle: {text}");
                return Chain::Bad(Failure::new(ErrorCode::HookCycle, message), names);
            }
            if names.len() > CHAIN_LEN_MAX {
                let message = format!("more than {CHAIN_LEN_MAX} hooks in a chain: {text}");
                return Chain::Bad(Failure::new(ErrorCode::HookCycle, message), names);
            }
            hook = match self.chain_link(&child, verb) {
                Ok(spec) => next_hook(spec, verb).cloned(),
                Err(what) => {
                    let message = format!("`{child}` is {what}, in the chain of hooks {text}");
                    return Chain::Bad(Failure::new(ErrorCode::HookFailed, message), names);
                }
            };
        }
        Chain::Good(names)
    }

    /// The spec whose hook continues a chain, or what is wrong with that child.
    fn chain_link(&self, child: &ChildName, verb: Verb) -> Result<&Spec, &'static str> {
        let found = self.children.get(child);
        // What runs can be stopped whatever became of its file.
        if verb == Verb::Stop
            && let Some(run) = found.and_then(|child| child.run.as_ref())
        {
            return Ok(&run.spec);
        }
        match found
            .and_then(|child| child.entry.as_ref())
            .map(|entry| &entry.content)
        {
            Some(Content::Good(spec)) => Ok(spec),
            Some(Content::Bad(_)) => Err("declared by a bad file"),
            Some(Content::Conflict) => Err("declared by several files"),
            None => Err("unknown"),
        }
    }

    /// Whether making `parent` wait for an order to `target` would never end: what `target` is
    /// busy with waits, directly or not, for `parent` itself.
    pub(super) fn would_wait_for_itself(&self, parent: JobId, target: &ChildName) -> bool {
        let ancestors = self.ancestors(parent);
        let mut seen = BTreeSet::new();
        let mut next: Vec<JobId> = self.job_of(target).into_iter().collect();
        while let Some(id) = next.pop() {
            if ancestors.contains(&id) {
                return true;
            }
            if seen.insert(id) {
                next.extend(self.waits_for(id));
            }
        }
        false
    }

    /// A job and all that wait for it through hooks.
    fn ancestors(&self, id: JobId) -> BTreeSet<JobId> {
        let mut all = BTreeSet::new();
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            if !all.insert(id) {
                continue;
            }
            let Some(job) = self.jobs.get(&id) else {
                continue;
            };
            next.extend(job.waiters.iter().filter_map(Waiter::hook));
        }
        all
    }

    /// The jobs that must end before this one can go on.
    fn waits_for(&self, id: JobId) -> Vec<JobId> {
        let Some(job) = self.jobs.get(&id) else {
            return Vec::new();
        };
        match job.step {
            Step::Queued => self.job_of(&job.child).into_iter().collect(),
            Step::Depends => self.starts_awaited_by(job),
            Step::Prehook(HookWait::Job(sub)) | Step::Posthook(HookWait::Job(sub)) => vec![sub],
            Step::Prehook(HookWait::Program | HookWait::Gone)
            | Step::Posthook(HookWait::Program | HookWait::Gone)
            | Step::Reading
            | Step::Checking
            | Step::StoppingOld
            | Step::Recording
            | Step::Spawning
            | Step::Dependents
            | Step::Stopping
            | Step::Closing => Vec::new(),
        }
    }
}

/// The hook that a command to a child with this spec leads on to.
fn next_hook(spec: &Spec, verb: Verb) -> Option<&Hook> {
    match verb {
        Verb::Start | Verb::Restart | Verb::Trystart => spec.prehook.as_ref(),
        Verb::Stop => spec.posthook.as_ref(),
    }
}
