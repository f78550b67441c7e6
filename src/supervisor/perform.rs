//! Effects, performed: each arm does one thing and reports what it came to.

use std::{collections::BTreeSet, io, os::fd::AsFd, sync::Arc, time::Duration};

use super::{End, Supervisor};
use crate::{
    clock,
    command::{Info, Op, Stamp},
    journal::{self, Newborn},
    probe::Question,
    process::{Birth, NotStarted, PREFIX_BYTES, Processes, Started},
    reconcile::{
        effect::{Effect, Remains},
        event::{Event, HookFailure, JobId, RequestId, SpawnFailure, Ticket},
        program::{HookId, HookProgram},
        record::Record,
        survey::Survey,
    },
    spec::{ChildName, Probe, RunId, Spec, Time},
    telemetry,
};

// The process organ writes what the journal reads.
const _: () = assert!(PREFIX_BYTES == journal::PREFIX_LEN);

/// Why there is no new process.
enum NotBorn<E> {
    /// What it needs to write itself down is not to be had.
    NoSlip(String),
    /// It was not started.
    Refused(E),
}

impl Supervisor {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record { ticket, records } => self.record(ticket, records),
            Effect::Reread { job, names } => self.reread(job, names),
            Effect::Preflight { .. }
            | Effect::Spawn { .. }
            | Effect::Signal { .. }
            | Effect::Reap { .. }
            | Effect::RunHook { .. }
            | Effect::KillHook { .. }
            | Effect::Probe { .. }
            | Effect::EndProbe { .. } => self.perform_on_processes(effect),
            Effect::Tell { id, events, answer } => self.tell(id, &events, answer),
            Effect::Reply { id, answer } => self.answer(id, answer),
            Effect::Recount {
                id,
                child,
                latest,
                checked,
            } => self.recount(id, &child, latest, checked),
            Effect::Account { id, latest, why } => self.account(id, latest, why),
            Effect::Explain { id, failure, spec } => self.explain(id, failure, &spec),
            Effect::Inform { id, survey } => self.inform(id, *survey),
            Effect::Log(line) => telemetry::log(&line),
            Effect::Upgrade { asked } => self.begin_upgrade(asked),
            Effect::Exit { words, with } => self.ended = Some(End { words, with }),
        }
    }

    /// What concerns processes, and whether they do their work.
    fn perform_on_processes(&mut self, effect: Effect) {
        match effect {
            Effect::Preflight { job, spec } => {
                self.keep_log_dir();
                let result = self.processes.preflight(&spec);
                self.inbox.push_back(Event::Preflight { job, result });
            }
            Effect::Spawn {
                child,
                run,
                spec,
                clear,
                by,
                order,
            } => {
                let begun = Record::Begun {
                    child: child.clone(),
                    run,
                    spec: Arc::clone(&spec),
                    by: Some(by),
                    order,
                };
                self.spawn(child, run, &spec, clear, begun);
            }
            Effect::Signal {
                child,
                run,
                signal,
                scope,
            } => self.processes.signal(&child, run, signal, scope),
            Effect::Reap {
                child,
                run,
                leftovers,
            } => {
                self.keep_pin_if_behind(&child, run);
                self.processes.reap(&child, run, leftovers);
            }
            Effect::RunHook {
                child,
                hook,
                program,
                spec,
            } => self.begin_hook(child, hook, program, &spec),
            Effect::KillHook { child, hook } => self.processes.kill_hook(&child, hook),
            Effect::Probe {
                job,
                child,
                run: _,
                probe,
                time,
                spec,
            } => self.probe(job, &child, probe, time, &spec),
            Effect::EndProbe { job } => {
                self.probes.give_up(job);
                self.processes.end_probe(job);
            }
            Effect::Record { .. }
            | Effect::Reread { .. }
            | Effect::Tell { .. }
            | Effect::Reply { .. }
            | Effect::Recount { .. }
            | Effect::Account { .. }
            | Effect::Explain { .. }
            | Effect::Inform { .. }
            | Effect::Log(_)
            | Effect::Upgrade { .. }
            | Effect::Exit { .. } => {}
        }
    }

    fn begin_hook(
        &mut self,
        child: ChildName,
        hook: HookId,
        program: Arc<HookProgram>,
        spec: &Spec,
    ) {
        if let Err(why) = self.run_hook(&child, hook, program, spec) {
            self.inbox.push_back(Event::HookFinished {
                child,
                hook,
                result: Err(HookFailure::NotRun(why)),
            });
        }
    }

    /// Has the network asked or a program run whether a run can do its work.
    fn probe(&mut self, job: JobId, child: &ChildName, probe: Probe, time: Duration, spec: &Spec) {
        match probe {
            Probe::Tcp(at) => self.probes.ask(job, Question::Tcp(at), time),
            Probe::Http { at, path } => {
                let question = Question::Http { at, path };
                self.probes.ask(job, question, time);
            }
            Probe::Exec(argv) => {
                let begun = self.processes.run_probe(job, child, &argv, spec, time);
                if let Err(why) = begun {
                    let result = Err(why);
                    self.inbox.push_back(Event::Probed { job, result });
                }
            }
        }
    }

    /// Hands records to the journal, which answers the ticket in its time.
    fn record(&mut self, ticket: Option<Ticket>, records: Vec<Record>) {
        if let Err(error) = self.journal.record(ticket, records) {
            tracing::error!(%error, "a record could not be written");
        }
    }

    /// Writes to the runtime store. What cannot be written is told, and never ends anything.
    fn append(&mut self, records: &[Record]) -> Result<(), String> {
        self.journal.append(records).map_err(|error| {
            tracing::error!(%error, "a record could not be written");
            error.to_string()
        })
    }

    /// Has the exit of a run outlive this server as long as its end may not be on record.
    fn keep_pin_if_behind(&mut self, child: &ChildName, run: RunId) {
        if self.journal.is_behind() {
            self.processes.keep_pin(child, run);
        }
    }

    /// Makes the directory for logs anew when it was deleted: it is the server's, and a start
    /// would fail for want of it. What stands there is left as it is.
    fn keep_log_dir(&self) {
        let log_dir = &self.server_file.spec().log_dir;
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if !log_dir
            .symlink_metadata()
            .is_err_and(|error| missing(&error))
        {
            return;
        }
        match journal::own_dir(log_dir) {
            Ok(()) => {
                let dir = log_dir.display();
                tracing::warn!(%dir, "the directory for logs was deleted and is made anew");
            }
            Err(error) => tracing::error!(%error, "the directory for logs cannot be made anew"),
        }
    }

    fn reread(&mut self, job: JobId, names: BTreeSet<ChildName>) {
        self.look_at_server_file();
        self.rereads.insert(job, names.clone());
        self.watch.reread(job.0, names);
    }

    /// Begins a run. The record that it is about to begin comes first, then the process adds that it
    /// lives, before it becomes its program: one that nothing tells of could be started twice (I1).
    fn spawn(
        &mut self,
        child: ChildName,
        run: RunId,
        spec: &Arc<Spec>,
        clear: Option<Remains>,
        begun: Record,
    ) {
        if let Some(older) = clear {
            self.keep_pin_if_behind(&child, older.run);
            self.processes.clear(&child, older);
        }
        if let Err(why) = self.append(&[begun]) {
            let why = format!("`{child}` was not started, for it could not be recorded: {why}");
            let why = SpawnFailure::NotRecorded(why);
            self.inbox.push_back(Event::SpawnFailed { child, run, why });
            return;
        }
        self.keep_log_dir();
        // It began when its record says that it did, to a later server too.
        let at = clock::now();
        let newborn = Newborn::Run(&child, run);
        let started = self.bear(newborn, at, |processes, birth| {
            processes.start(&child, run, spec, Some(birth))
        });
        match started {
            Ok(Started { pid, .. }) => {
                self.inbox
                    .push_back_at(at, Event::Spawned { child, run, pid });
            }
            Err(NotBorn::NoSlip(why)) => {
                let why = NotStarted::NotRecorded(format!("cannot start `{child}`: {why}"));
                self.not_started(child, run, why);
            }
            Err(NotBorn::Refused(why)) => self.not_started(child, run, why),
        }
    }

    /// Begins a hook's program, in the same order as a run (I2).
    fn run_hook(
        &mut self,
        child: &ChildName,
        hook: HookId,
        program: Arc<HookProgram>,
        spec: &Spec,
    ) -> Result<(), String> {
        let begun = Record::HookBegun {
            child: child.clone(),
            hook,
            program: Arc::clone(&program),
        };
        self.append(&[begun])
            .map_err(|why| format!("its start cannot be recorded: {why}"))?;
        self.keep_log_dir();
        let newborn = Newborn::Hook(child, hook);
        let started = self.bear(newborn, clock::now(), |processes, birth| {
            processes.run_hook(child, hook, &program, spec, Some(birth))
        });
        started.map(drop).map_err(|not_born| {
            let child = child.clone();
            let _told = self.append(&[Record::HookEnded { child, hook }]);
            let (NotBorn::NoSlip(why) | NotBorn::Refused(why)) = not_born;
            why
        })
    }

    /// Makes a process that writes itself down, and sees to it that it is written down.
    fn bear<E>(
        &mut self,
        newborn: Newborn<'_>,
        at: Time,
        start: impl FnOnce(&mut Processes, &Birth<'_>) -> Result<Started, E>,
    ) -> Result<Started, NotBorn<E>> {
        let started = self.try_bear(newborn, at, start);
        let written = self.journal.take_in().unwrap_or_else(|error| {
            tracing::error!(%error, "what a new process has written down cannot be read");
            Vec::new()
        });
        if let Ok(Started { pid, start_ticks }) = &started {
            let record = newborn.started(*pid, *start_ticks, at);
            if !written.contains(&record) {
                // Failing is told in the log; the process lives and is in the table (I2).
                let _told = self.append(&[record]);
            }
        }
        started
    }

    fn try_bear<E>(
        &mut self,
        newborn: Newborn<'_>,
        at: Time,
        start: impl FnOnce(&mut Processes, &Birth<'_>) -> Result<Started, E>,
    ) -> Result<Started, NotBorn<E>> {
        let slip = self
            .journal
            .slip(newborn, at)
            .map_err(|error| NotBorn::NoSlip(format!("its start cannot be recorded: {error}")))?;
        let [before, between, after] = &slip.text;
        let birth = Birth {
            file: slip.file,
            lock: slip.lock.as_fd(),
            text: [before, between, after],
            prefix: slip.prefix,
            never: &slip.never,
        };
        start(&mut self.processes, &birth).map_err(NotBorn::Refused)
    }

    fn not_started(&mut self, child: ChildName, run: RunId, why: NotStarted) {
        let (NotStarted::NotRecorded(text) | NotStarted::Refused(text)) = &why;
        let record = Record::NotStarted {
            child: child.clone(),
            run,
            why: text.clone(),
            at: clock::now(),
        };
        let _told = self.append(&[record]);
        let why = match why {
            NotStarted::NotRecorded(why) => SpawnFailure::NotRecorded(why),
            NotStarted::Refused(why) => SpawnFailure::Refused(why),
        };
        self.inbox.push_back(Event::SpawnFailed { child, run, why });
    }

    /// Adds to the core's part of `info` what only the shell knows.
    fn inform(&mut self, id: RequestId, survey: Survey) {
        let Some(reply) = self.reply_to(id) else {
            return;
        };
        let now = clock::now();
        let spec = self.server_file.spec();
        let mut faults = survey.faults;
        faults.extend(self.server_file.faults().iter().cloned());
        faults.extend(self.audit.fault());
        let mut capabilities = self.processes.capabilities();
        capabilities.insert("watching".to_owned(), self.watching.clone());
        let users = self.control.users_told_by();
        capabilities.insert("peer users".to_owned(), users.to_owned());
        let uptime = now.mono - self.fixed.started.mono;
        let info = Info {
            op: Op::Info,
            name: self.fixed.name.clone(),
            id: self.fixed.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            mode: survey.mode,
            on_exit: survey.on_exit,
            encrypt: spec.encrypt,
            keys: Vec::new(),
            listener: self.fixed.listener.to_string(),
            config: self.server_file.path().display().to_string(),
            loadpaths: survey.loadpaths,
            startup: survey.startup,
            state_dir: spec.state_dir.display().to_string(),
            runtime_dir: spec.runtime_dir.display().to_string(),
            log_dir: spec.log_dir.display().to_string(),
            faults,
            needs_restart: self.server_file.needs_restart(),
            capabilities,
            started_at: Stamp(self.fixed.started.wall),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            counts: survey.counts,
        };
        self.inform_of_keys(Box::new(info), reply);
    }
}
