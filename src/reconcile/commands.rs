//! What clients ask: each request is answered exactly once (I5).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Awaited, State, Turn,
    cause::{Cause, Origin},
    child::Child,
    desired::{self, Want},
    effect::{Effect, Level},
    event::{BatchId, RequestId},
    job::{EndedRun, Job, Outcome, Posthooks, Success, Waiter},
    jobs::server_ends,
    orders::note_answered,
    record::{OrderId, Record, Wanted},
    waits::Wait,
};
use crate::{
    command::{
        Answer, Asker, CheckScope, Checked, Command, Done, Each, ErrorCode, ExitAt, Failure, Op,
        Stamp,
    },
    spec::{ChildName, Mode, RunId, Time, Verb},
};

/// How many slips of the finger still make one name another.
const SLIPS_MAX: usize = 2;

/// A client's `--all` under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Batch {
    what: Everything,
    /// Who waits for the answer; nobody after the death of the server that was asked.
    request: Option<RequestId>,
    asker: Arc<Asker>,
    /// Whose outcome is known.
    outcomes: BTreeMap<ChildName, crate::command::Outcome>,
    /// How many outcomes are not.
    missing: usize,
    /// Whose holds are released, and the orders to do so until that is on disk.
    releasing: BTreeMap<ChildName, Option<OrderId>>,
}

/// What an `--all` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Everything {
    /// `start --all`.
    Started,
    /// `stop --all`.
    Stopped,
}

impl State {
    pub(super) fn on_request(
        &mut self,
        turn: &mut Turn,
        id: RequestId,
        command: Command,
        asker: Arc<Asker>,
    ) {
        match command {
            Command::Child { verb, child } => {
                if self.ending.is_some() {
                    self.refuse_while_ending(turn, id);
                } else {
                    let waiter = Some(Waiter::Request(id, verb));
                    self.order(turn, &child, verb, Origin::command(asker), waiter);
                }
            }
            Command::StopAll if self.ending.is_some() => self.refuse_while_ending(turn, id),
            Command::StopAll => self.stop_all(turn, id, asker),
            Command::StartAll if self.ending.is_some() => self.refuse_while_ending(turn, id),
            Command::StartAll => self.start_all(turn, id, asker),
            Command::CheckOne(child) => self.recount(turn, id, child),
            Command::Why(child) => self.account(turn, id, child),
            Command::Wait {
                child,
                goal,
                run,
                time,
            } => {
                let wait = Wait {
                    child,
                    goal,
                    run,
                    time,
                    asker,
                    why: None,
                };
                self.begin_wait(turn, id, wait);
            }
            Command::Events {
                child,
                follow,
                last,
            } => self.tell_events(turn, id, (child, follow, last), asker),
            Command::Check { scope } => {
                let answer = Ok(Answer::Checked(self.check(scope, turn.now)));
                turn.emit(Effect::Reply { id, answer });
            }
            Command::Info => {
                turn.emit(Effect::Inform {
                    id,
                    survey: Box::new(self.survey()),
                });
            }
            Command::Kill(children) => {
                self.on_shutdown(turn, Some((id, children)), Some(asker));
            }
            Command::Upgrade => self.on_upgrade(turn, Some(id)),
        }
    }

    /// Tells everything about one child.
    fn recount(&self, turn: &mut Turn, id: RequestId, child: ChildName) {
        match self.check_one(&child, turn.now) {
            Ok(checked) => {
                let latest = self.children.get(&child).map_or(0, Child::highest);
                turn.emit(Effect::Recount {
                    id,
                    child,
                    latest: RunId(latest),
                    checked: Box::new(checked),
                });
            }
            Err(failure) => turn.emit(Effect::Reply {
                id,
                answer: Err(failure),
            }),
        }
    }

    pub(super) fn refuse_while_ending(&self, turn: &mut Turn, id: RequestId) {
        let answer = Err(server_ends());
        turn.emit(Effect::Reply { id, answer });
    }

    /// Answers the client that waited for a job.
    pub(super) fn answer(
        &self,
        turn: &mut Turn,
        id: RequestId,
        asked: Verb,
        job: &Job,
        outcome: Outcome,
    ) {
        let answer = outcome.map(|success| {
            let (pid, run) = match success {
                Success::Started { run, pid } => (Some(pid), Some(run)),
                Success::Stopped => (
                    job.ended.and_then(|ended| ended.pid),
                    job.ended.map(|ended| ended.id),
                ),
            };
            Answer::Done(Done {
                op: asked.into(),
                child: job.child.clone(),
                pid,
                run,
                exit: job.ended.map(|ended| ExitAt {
                    exit: ended.exit,
                    at: Stamp(ended.at.wall),
                }),
                message: message(job, success),
            })
        });
        turn.emit(Effect::Reply { id, answer });
    }

    fn stop_all(&mut self, turn: &mut Turn, request: RequestId, asker: Arc<Asker>) {
        let due = |name: &ChildName, child: &Child| {
            child.is_live() || child.is_due(self.start_under_way(name))
        };
        let names: Vec<ChildName> = self
            .children
            .iter()
            .filter(|(name, child)| due(name, child))
            .map(|(name, _)| name.clone())
            .collect();
        let id = BatchId(self.number());
        let by = Origin::command(Arc::clone(&asker));
        let mut batch = Batch::new(Everything::Stopped, Some(request), asker);
        batch.missing = names.len();
        self.batches.insert(id, batch);
        let all: BTreeSet<ChildName> = names.iter().cloned().collect();
        let jobs = names.into_iter().map(|name| {
            let after = self.to_end_before(&name, &all);
            let mut job = Job::new(name, Verb::Stop, by.clone(), Some(Waiter::Batch(id)));
            job.posthooks = Posthooks::StartingNothing;
            job.after = after;
            job
        });
        let mut jobs: Vec<Job> = jobs.collect();
        self.note_all_asked(turn, &mut jobs);
        for job in jobs {
            self.place_stop(turn, job);
        }
        self.end_batch_if_done(turn, id);
    }

    fn start_all(&mut self, turn: &mut Turn, request: RequestId, asker: Arc<Asker>) {
        let held = self
            .children
            .iter()
            .filter(|(_, child)| child.hold.is_some());
        let held: Vec<ChildName> = held.map(|(name, _)| name.clone()).collect();
        let mut releasing = BTreeMap::new();
        let mut asked = Vec::new();
        for child in held {
            // What is written down for another is done for both.
            if self.is_being_released(&child) {
                releasing.insert(child, None);
                continue;
            }
            let order = OrderId(self.number());
            releasing.insert(child.clone(), Some(order));
            asked.push(Record::Asked {
                child,
                order,
                wanted: Wanted::Release,
                over: None,
                asker: Arc::clone(&asker),
            });
        }
        if !asked.is_empty() {
            turn.emit(Effect::Record {
                ticket: None,
                records: asked,
            });
        }
        self.release(turn, Batch::starting(Some(request), asker), releasing);
    }

    /// Releases holds, then starts what the mode wants.
    pub(super) fn release(
        &mut self,
        turn: &mut Turn,
        mut batch: Batch,
        releasing: BTreeMap<ChildName, Option<OrderId>>,
    ) {
        let id = BatchId(self.number());
        if releasing.is_empty() {
            self.batches.insert(id, batch);
            self.start_released(turn, id);
            return;
        }
        let released = |child: &ChildName| Record::Released {
            child: child.clone(),
        };
        let records: Vec<Record> = releasing.keys().map(released).collect();
        batch.releasing = releasing;
        batch.missing = 1;
        self.batches.insert(id, batch);
        let ticket = self.ticket(Awaited::Batch(id));
        turn.emit(Effect::Record {
            ticket: Some(ticket),
            records,
        });
    }

    pub(super) fn batch_saw_record(
        &mut self,
        turn: &mut Turn,
        id: BatchId,
        result: Result<(), String>,
    ) {
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        let releasing = batch.releasing.clone();
        for order in batch.releasing.values_mut() {
            *order = None;
        }
        if let Err(why) = result {
            let request = batch.request;
            self.batches.remove(&id);
            let message = format!("no hold was released, for it could not be recorded: {why}");
            for (name, order) in orders(&releasing) {
                note_answered(turn, name, order, Some(ErrorCode::Internal));
            }
            let failure = Failure::new(ErrorCode::Internal, message);
            match request {
                Some(id) => turn.emit(Effect::Reply {
                    id,
                    answer: Err(failure),
                }),
                None => {
                    let what = "a `start --all` that a dead server had taken is not carried out";
                    turn.log_of_all(Level::Warn, what).detail = Some(failure.message);
                }
            }
            return;
        }
        batch.missing = 0;
        for name in releasing.keys() {
            if let Some(child) = self.children.get_mut(name) {
                child.hold = None;
                child.fresh = !child.is_live();
                child.tried = None;
            }
            turn.log(Level::Info, name, "released");
            self.unblock(turn, name);
        }
        self.start_released(turn, id);
        // After the orders to start: until they are written down this one stands for them.
        for (name, order) in orders(&releasing) {
            note_answered(turn, name, order, None);
        }
    }

    /// Whether a `start --all` has sent the release of this child to the disk.
    pub(super) fn is_being_released(&self, name: &ChildName) -> bool {
        let mut batches = self.batches.values();
        batches.any(|batch| batch.releasing.contains_key(name))
    }

    /// A stop overtakes a `start --all` whose releases are on their way to the disk.
    pub(super) fn keep_from_release(&mut self, turn: &mut Turn, name: &ChildName) {
        for batch in self.batches.values_mut() {
            if let Some(Some(order)) = batch.releasing.remove(name) {
                note_answered(turn, name, order, Some(ErrorCode::Superseded));
            }
        }
    }

    /// Starts what the mode wants now that nothing is held.
    fn start_released(&mut self, turn: &mut Turn, id: BatchId) {
        let wanted = |(name, child): (&ChildName, &Child)| {
            let idle = child.job.is_none();
            let want = desired::want(name, child, &self.settings, Cause::New);
            (idle && matches!(want, Want::Start(_))).then(|| name.clone())
        };
        let names: Vec<ChildName> = self.children.iter().filter_map(wanted).collect();
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        batch.missing = names.len();
        // It is not to start later for having been released now.
        for name in batch.releasing.keys() {
            if let Some(child) = self.children.get_mut(name) {
                child.fresh = child.run.is_none() && child.last.is_none();
            }
        }
        let by = Origin::command(Arc::clone(&batch.asker));
        for name in &names {
            let waiter = Some(Waiter::Batch(id));
            self.order(turn, name, Verb::Start, by.clone(), waiter);
        }
        self.end_batch_if_done(turn, id);
    }

    /// One child of a batch is done.
    pub(super) fn batch_saw(&mut self, turn: &mut Turn, id: BatchId, job: &Job, outcome: Outcome) {
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        let (pid, run) = match &outcome {
            Ok(Success::Started { run, pid }) => (Some(*pid), Some(*run)),
            Ok(Success::Stopped) => (
                job.ended.and_then(|ended| ended.pid),
                job.ended.map(|ended| ended.id),
            ),
            Err(_) => (None, None),
        };
        let row = crate::command::Outcome {
            name: job.child.clone(),
            ok: outcome.is_ok(),
            pid,
            run,
            error: outcome.err(),
            note: (!job.notes.is_empty()).then(|| job.notes.join("\n")),
        };
        batch.outcomes.insert(job.child.clone(), row);
        batch.missing = batch.missing.saturating_sub(1);
        self.end_batch_if_done(turn, id);
    }

    fn end_batch_if_done(&mut self, turn: &mut Turn, id: BatchId) {
        if self.batches.get(&id).is_none_or(|batch| batch.missing > 0) {
            return;
        }
        if let Some(batch) = self.batches.remove(&id)
            && let Some(id) = batch.request
        {
            let message = batch.message(self.settings.mode);
            let children = batch.outcomes.into_values().collect();
            let op = match batch.what {
                Everything::Started => Op::Start,
                Everything::Stopped => Op::Stop,
            };
            let answer = Ok(Answer::Each(Each {
                op,
                children,
                message,
            }));
            turn.emit(Effect::Reply { id, answer });
        }
    }

    fn check(&self, scope: CheckScope, now: Time) -> Checked {
        let shown = |child: &Child| match scope {
            CheckScope::Live => child.is_live(),
            CheckScope::All => child.is_known(),
        };
        let known = self
            .children
            .values()
            .filter(|child| child.is_known())
            .count();
        let rows = self.children.iter().filter(|(_, child)| shown(child));
        let children: Vec<_> = rows
            .map(|(name, child)| self.row(name, child, now))
            .collect();
        let others = known.saturating_sub(children.len());
        Checked {
            op: Op::Check,
            child: None,
            children,
            others,
            notes: self.notes(),
        }
    }

    fn check_one(&self, name: &ChildName, now: Time) -> Result<Checked, Failure> {
        let found = self.children.get(name).filter(|child| child.is_known());
        let child = found.ok_or_else(|| self.unknown(name))?;
        let mut row = self.row(name, child, now);
        self.add_details(&mut row, name, child);
        Ok(Checked {
            op: Op::Check,
            child: Some(name.clone()),
            children: vec![row],
            others: 0,
            notes: Vec::new(),
        })
    }

    /// The refusal of a name that nothing is known of.
    pub(super) fn unknown(&self, name: &ChildName) -> Failure {
        let live = self.is_live(name);
        let message = if live {
            format!("no file declares `{name}` any more; what runs of it runs on")
        } else {
            let places: Vec<String> = self
                .settings
                .loadpaths
                .iter()
                .map(|path| format!("`{}/{name}.yml`", path.display()))
                .collect();
            let hint = match self.nearest(name) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None if places.is_empty() => "no loadpaths are configured".to_owned(),
                None => format!("a child is a file: {}", places.join(" or ")),
            };
            format!("there is no child `{name}`\nhint: {hint}")
        };
        Failure::new(ErrorCode::UnknownChild, message)
    }

    /// The known child whose name was most likely meant by this one.
    fn nearest(&self, name: &ChildName) -> Option<&ChildName> {
        // The file's name, where the child's belongs.
        let file = name.as_str();
        let stem = file.strip_suffix(".yml").or(file.strip_suffix(".yaml"));
        let is_stem = |(known, child): &(&ChildName, &Child)| {
            stem.is_some_and(|stem| known.as_str() == stem) && child.is_known()
        };
        if let Some((declared, _)) = self.children.iter().find(is_stem) {
            return Some(declared);
        }
        let slips_max = SLIPS_MAX.min(name.as_str().len() / 2);
        let known = self.children.iter().filter(|(_, child)| child.is_known());
        let typed = name.as_str().to_ascii_lowercase();
        let slips =
            |known: &ChildName| strsim::osa_distance(&typed, &known.as_str().to_ascii_lowercase());
        known
            .map(|(known, _)| (slips(known), known))
            .filter(|(slips, _)| *slips <= slips_max)
            .min_by_key(|(slips, _)| *slips)
            .map(|(_, known)| known)
    }
}

fn orders(
    releasing: &BTreeMap<ChildName, Option<OrderId>>,
) -> impl Iterator<Item = (&ChildName, OrderId)> {
    let orders = releasing.iter();
    orders.filter_map(|(name, order)| Some((name, (*order)?)))
}

impl Batch {
    fn new(what: Everything, request: Option<RequestId>, asker: Arc<Asker>) -> Self {
        Self {
            what,
            request,
            asker,
            outcomes: BTreeMap::new(),
            missing: 0,
            releasing: BTreeMap::new(),
        }
    }

    /// A `start --all`.
    pub(super) fn starting(request: Option<RequestId>, asker: Arc<Asker>) -> Self {
        Self::new(Everything::Started, request, asker)
    }

    fn message(&self, mode: Mode) -> String {
        let done = self.outcomes.values().filter(|outcome| outcome.ok).count();
        let failed = self.outcomes.len() - done;
        let mut message = match (self.what, self.outcomes.is_empty()) {
            (Everything::Stopped, true) => "nothing runs and nothing is due".to_owned(),
            (Everything::Stopped, false) => format!("{done} stopped and held"),
            (Everything::Started, true) => format!("nothing to start in mode `{mode}`"),
            (Everything::Started, false) => format!("{done} started"),
        };
        if failed > 0 {
            message = format!("{message}, {failed} not");
        }
        if !self.releasing.is_empty() {
            let names: Vec<&str> = self.releasing.keys().map(ChildName::as_str).collect();
            message = format!("{message}; released: {}", names.join(", "));
        }
        message
    }
}

/// What a person is told of a job that ended well.
fn message(job: &Job, success: Success) -> String {
    let name = &job.child;
    let was = |ended: EndedRun| {
        let pid = ended
            .pid
            .map_or(String::new(), |pid| format!(", pid {pid}"));
        format!("run {}{pid}, {}", ended.id, ended.exit)
    };
    let first = match (success, job.ended) {
        (Success::Started { run, pid }, None) => format!("`{name}` started: run {run}, pid {pid}"),
        (Success::Started { run, pid }, Some(ended)) => {
            format!(
                "`{name}` restarted: run {run}, pid {pid} (before: {})",
                was(ended)
            )
        }
        (Success::Stopped, Some(ended)) => format!("`{name}` stopped: {}", was(ended)),
        (Success::Stopped, None) => format!("`{name}` did not run; what was due is cancelled"),
    };
    let mut lines = vec![first];
    lines.extend(job.notes.iter().cloned());
    lines.join("\n")
}
