//! Golden scripts: the life of a change, written down so that a person can read it.
//!
//! A script (`fixtures/reconcile/*.script`) says what happens; the file beside it (`*.out`) says
//! what the core orders. What a shell does at once is done by itself: files are read again,
//! records are written, starts succeed. `UPDATE_SNAPSHOTS=1 cargo test --lib sim::script` writes
//! the `.out` files anew.
//!
//! | line | meaning |
//! |---|---|
//! | `boot MODE [continued] [startup A,B] [exit-with NAME] [rescan off]` | a server starts on the files and records there are |
//! | `file NAME VERSION [program NAME] [prehook "…"] [posthook "…"] [repeat ACTION SPAN] [restart WHEN] [max N SPAN] [depends NAME:CONDITION,…]` | a good file is written |
//! | `bad NAME WHY`, `conflict NAME`, `gone NAME` | it is made bad, there are two, it is removed |
//! | `seen NAME…` | the watcher reports these names |
//! | `whole`, `rescan` | the watcher reports everything; a rescan confirms |
//! | `unwatched` | nobody watches until the watcher reports everything |
//! | `loadpath ready`, `missing`, `swapped` | the directory is there, away, another one |
//! | `request N COMMAND` | a client asks, in the words of the command line |
//! | `forsaken N` | nobody hears the answer any more |
//! | `behind N EVENT` | whoever follows does not read: this event was not taken |
//! | `exited NAME CODE`, `exited NAME SIGNAL` | its process ends |
//! | `died NAME` | its process ends while no server runs |
//! | `says NAME WORD`, `said NAME RUN WORD` | the run says `ready`, `reloading`, `stopping`, `status TEXT`, `extend SPAN`, `alive`, `ailing`, `pace SPAN`, `wrote` or `logged`; an older one does |
//! | `hook NAME ok`, `hook NAME failed WHY` | the program of its hook ends |
//! | `hook NAME somehow`, `hook NAME gone` | nobody can tell how it ends; it ends while no server runs |
//! | `refuse haste`, `spawned` | starts take time from now on; the oldest has succeeded |
//! | `refuse quick disk`, `written` | records take time from now on; the oldest are on disk |
//! | `refuse quick look`, `looked` | files are read again late from now on; the oldest request to is answered |
//! | `refuse death`, `hook NAME stays` | a killed hook lives on from now on; its time to end is over |
//! | `settings MODE`, `startup A,B`, `no loadpaths` | server.yml is edited |
//! | `refuse spawn`, `refuse preflight`, `refuse records`, `refuse nothing` | what fails from now on |
//! | `advance SPAN` | time passes |
//! | `term`, `crash`, `reboot` | the server is told to end, is killed, the host starts anew |
//! | `hidden PID PROGRAM` | records were lost, and this process does not show whose it is |
//! | `unhidden PID` | that process is gone |
//! | `held NAME`, `begun NAME` | the last thing a server wrote before it was killed |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::files::name;
use crate::{
    command::{
        Answer, Asker, CheckScope, ChildEvent, Command, ErrorCode, Follow, Goal, KillChildren,
    },
    reconcile::{
        State,
        effect::{Effect, Leftovers, Level, Line, Signal},
        event::{
            Boot, Event, HookFailure, JobId, RequestId, Settings, SpawnFailure, StartKind, Ticket,
        },
        listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
        memory::Memory,
        program::{HookId, HookProgram},
        record::{Record, Store},
        suspects::{Sighting, Suspect},
    },
    spec::{
        ChildName, Circumstances, Condition, Dependencies, Dependency, Digest, Exit, Health, Hook,
        Mode, Mono, Probe, Pulse, Ready, Repeat, RestartLimit, RestartPolicy, RestartWhen, RunId,
        Sign, Sink, Spec, StopAct, StopPolicy, StopScope, StopStep, Time, Verb, Wall, Word,
        signal_name,
    },
};

const HOME: &str = "/srv";

/// A core and the little world around it.
pub(super) struct Stage {
    core: State,
    now: Time,
    settings: Settings,
    files: BTreeMap<ChildName, Entry>,
    loadpath: LoadpathState,
    memory: Memory,
    live: BTreeMap<ChildName, RunId>,
    hooks: BTreeMap<ChildName, HookId>,
    probes: BTreeMap<ChildName, JobId>,
    /// Starts that are not told yet.
    late: VecDeque<Event>,
    /// Who waits for a look at which files.
    looks: VecDeque<(JobId, BTreeSet<ChildName>)>,
    /// What is on its way to a slow disk.
    disk: VecDeque<(Option<Ticket>, Vec<Record>)>,
    refused: String,
    next_pid: i32,
    inbox: VecDeque<Event>,
    out: String,
}

/// What the core makes of a script.
pub(super) fn play(script: &str) -> String {
    Stage::new().then(script)
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            core: State::new(),
            now: Time {
                mono: Mono(0),
                wall: Wall(1_700_000_000_000),
            },
            settings: Settings::default(),
            files: BTreeMap::new(),
            loadpath: LoadpathState::Ready { dev: 1, ino: 1 },
            memory: Memory::default(),
            live: BTreeMap::new(),
            hooks: BTreeMap::new(),
            probes: BTreeMap::new(),
            late: VecDeque::new(),
            looks: VecDeque::new(),
            disk: VecDeque::new(),
            refused: "nothing".to_owned(),
            next_pid: 100,
            inbox: VecDeque::new(),
            out: String::new(),
        }
    }

    /// A stage on which this has happened already.
    pub(super) fn after(script: &str) -> Self {
        let mut stage = Self::new();
        stage.then(script);
        stage
    }

    /// Lets more happen; gives what came of it.
    pub(super) fn then(&mut self, script: &str) -> String {
        self.out.clear();
        for line in script.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                self.say(line);
                continue;
            }
            self.say(&format!("> {line}"));
            let words = shell_words::split(line).expect("the quotes of a script match");
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let deadline = self.core.next_deadline();
            self.act(&words);
            if self.core.next_deadline() != deadline {
                self.say_deadline();
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When the core wants to be woken.
    pub(super) fn deadline(&self) -> Option<Mono> {
        self.core.next_deadline()
    }

    fn say(&mut self, line: &str) {
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn say_deadline(&mut self) {
        let text = match self.core.next_deadline() {
            Some(at) => format!("    (next deadline at {})", clock(at)),
            None => "    (no deadline)".to_owned(),
        };
        self.say(&text);
    }

    fn act(&mut self, words: &[&str]) {
        match words {
            ["boot", mode, options @ ..] => self.boot(mode, options),
            ["file", child, version, options @ ..] => {
                let spec = spec(child, version, options);
                self.put(child, Content::Good(Arc::new(spec)), &[HOME]);
            }
            ["bad", child, why @ ..] => {
                let fault = format!("{HOME}/{child}.yml:1:1: {}", why.join(" "));
                self.put(child, Content::Bad(Arc::from([fault])), &[HOME]);
            }
            ["conflict", child] => self.put(child, Content::Conflict, &[HOME, "/srv/more"]),
            ["gone", child] => {
                self.files.remove(*child);
            }
            ["seen", names @ ..] => {
                let update = self.read(&names.iter().map(|text| name(text)).collect());
                self.tell(Event::Listing(update));
            }
            ["unwatched"] => self.tell(Event::Unwatched),
            ["whole"] => self.look(Scope::Whole),
            ["rescan"] => self.look(Scope::Confirming),
            ["loadpath", "ready"] => self.loadpath = LoadpathState::Ready { dev: 1, ino: 1 },
            ["loadpath", "missing"] => self.loadpath = LoadpathState::Missing,
            ["loadpath", "swapped"] => self.loadpath = LoadpathState::Ready { dev: 1, ino: 2 },
            ["request", id, command @ ..] => {
                let id = RequestId(id.parse().expect("a request has a number"));
                let peer = "192.0.2.1:7".parse().expect("an address");
                let asker = Asker {
                    key: Some("deploy".to_owned()),
                    user: None,
                    peer,
                };
                self.tell(Event::Request {
                    id,
                    command: command_of(command),
                    asker: Arc::new(asker),
                });
            }
            ["exited", child, how] => self.exit(child, how),
            ["died", child] => {
                self.live.remove(*child);
            }
            ["probe", child, "ok"] => self.probe_ends(child, Ok(())),
            ["probe", child, "failed", why @ ..] => self.probe_ends(child, Err(why.join(" "))),
            ["says", child, words @ ..] => {
                let run = *self.live.get(*child).expect("what speaks lives");
                self.says(child, run, words);
            }
            ["said", child, run, words @ ..] => {
                let run = RunId(run.parse().expect("a run has a number"));
                self.says(child, run, words);
            }
            ["hook", child, "gone"] => {
                self.hooks.remove(*child).expect("a hook's program runs");
            }
            ["hook", child, "somehow"] => self.hook_is(child, Err(HookFailure::Unknown)),
            ["hook", child, "ok"] => self.hook_ends(child, Ok(())),
            ["hook", child, "failed", why @ ..] => self.hook_ends(child, Err(why.join(" "))),
            ["spawned"] => {
                let event = self.late.pop_front().expect("a start is under way");
                self.tell(event);
            }
            ["settings", mode] => {
                self.settings.mode = mode_of(mode);
                self.tell(Event::Settings(self.settings.clone()));
                self.look(Scope::Whole);
            }
            ["startup", names] => {
                self.settings.startup = names.split(',').map(name).collect();
                self.tell(Event::Settings(self.settings.clone()));
                self.look(Scope::Whole);
            }
            ["no", "loadpaths"] => {
                self.settings.loadpaths.clear();
                self.tell(Event::Settings(self.settings.clone()));
                let update = Update {
                    scope: Scope::Whole,
                    loadpaths: Vec::new(),
                    entries: Vec::new(),
                };
                self.tell(Event::Listing(update));
            }
            ["reboot"] => {
                self.core = State::new();
                self.live.clear();
                self.hooks.clear();
                self.memory.forget_boot();
            }
            ["held", child] => {
                let (child, since) = (name(child), self.now.wall);
                self.memory.apply(&Record::Held { child, since });
            }
            ["hidden", pid, program] => {
                let sighting = Sighting::Seen(Suspect {
                    pid: pid.parse().expect("a process has a number"),
                    start_ticks: 1,
                    program: (*program).to_owned(),
                });
                self.memory.apply(&Record::Suspects(sighting));
            }
            ["unhidden", pid] => self.tell(Event::SuspectGone {
                pid: pid.parse().expect("a process has a number"),
                start_ticks: 1,
            }),
            ["begun", child] => {
                let Content::Good(spec) = &self.files[*child].content else {
                    panic!("a good file begins a run");
                };
                let (child, run, spec) = (name(child), RunId(1), Arc::clone(spec));
                self.memory.apply(&Record::Begun {
                    child,
                    run,
                    spec,
                    by: None,
                    order: None,
                });
            }
            ["written"] => {
                if let Some((ticket, records)) = self.disk.pop_front() {
                    self.write(ticket, &records);
                    self.drain();
                }
            }
            ["looked"] => {
                let (job, names) = self.looks.pop_front().expect("a look is awaited");
                let update = self.read(&names);
                self.tell(Event::Reread { job, update });
            }
            ["hook", child, "stays"] => {
                let hook = self.hooks[*child];
                let why = "it was killed, and is not gone yet".to_owned();
                self.tell(Event::HookFinished {
                    child: name(child),
                    hook,
                    result: Err(HookFailure::NotGone(why)),
                });
            }
            ["refuse", "quick", "look"] => self.refused = "look".to_owned(),
            ["refuse", what, ..] => self.refused = (*what).to_owned(),
            ["advance", text] => self.advance(span(text)),
            ["forsaken", id] => {
                let id = RequestId(id.parse().expect("a request has a number"));
                self.tell(Event::Forsaken { id });
            }
            ["behind", id, seq] => {
                let id = RequestId(id.parse().expect("a request has a number"));
                let seq = seq.parse().expect("an event has a number");
                self.tell(Event::FellBehind { id, seq });
            }
            ["term"] => self.tell(Event::Shutdown),
            ["crash"] => {
                self.core = State::new();
                self.inbox.clear();
                self.looks.clear();
                self.probes.clear();
            }
            other => panic!("no such line in a script: {other:?}"),
        }
    }

    fn boot(&mut self, mode: &str, options: &[&str]) {
        self.settings = Settings {
            mode: mode_of(mode),
            loadpaths: vec![PathBuf::from(HOME)],
            rescan: Some(Duration::from_secs(60)),
            ..Settings::default()
        };
        let mut start = StartKind::Fresh;
        let mut doubted = Vec::new();
        let mut exit_with = None;
        let mut rest = options;
        loop {
            rest = match rest {
                ["continued", rest @ ..] => {
                    start = StartKind::Continued;
                    rest
                }
                ["startup", names, rest @ ..] => {
                    self.settings.startup = names.split(',').map(name).collect();
                    rest
                }
                ["doubted", child, rest @ ..] => {
                    let why = "its record is damaged".to_owned();
                    doubted.push((name(child), RunId(1), why));
                    rest
                }
                ["exit-with", child, rest @ ..] => {
                    exit_with = Some(name(child));
                    rest
                }
                ["rescan", "off", rest @ ..] => {
                    self.settings.rescan = None;
                    rest
                }
                [] => break,
                other => panic!("no such option of a start: {other:?}"),
            };
        }
        self.memory.apply(&Record::Opened {
            boot: "boot".to_owned(),
        });
        let lives = |(child, run): (&ChildName, RunId)| self.live.get(child) == Some(&run);
        let ended = self.memory.children.iter().filter_map(|(child, it)| {
            let last = it.last.as_ref().filter(|last| last.end.is_none())?;
            last.process.filter(|_| !lives((child, last.run)))?;
            Some((child.clone(), last.run, Exit::Unknown))
        });
        let boot = Boot {
            start,
            settings: self.settings.clone(),
            memory: self.memory.clone(),
            ended: ended.collect(),
            doubted,
            hooks: self.hooks.clone().into_iter().collect(),
            listing: self.read_all(Scope::Whole),
            seed: 7,
            exit_with,
        };
        self.core = State::new();
        self.tell(Event::Boot(Box::new(boot)));
    }

    fn put(&mut self, child: &str, content: Content, homes: &[&str]) {
        let paths = homes
            .iter()
            .map(|home| PathBuf::from(format!("{home}/{child}.yml")));
        let paths = paths.collect();
        self.files.insert(name(child), Entry { paths, content });
    }

    fn read(&self, names: &BTreeSet<ChildName>) -> Update {
        let there = |name: &&ChildName| {
            matches!(self.loadpath, LoadpathState::Ready { .. })
                .then(|| self.files.get(*name))
                .flatten()
        };
        let entries = names
            .iter()
            .map(|name| (name.clone(), there(&name).cloned()))
            .collect();
        Update {
            scope: Scope::Touched,
            loadpaths: self.loadpaths(),
            entries,
        }
    }

    fn read_all(&self, scope: Scope) -> Update {
        let mut update = self.read(&self.files.keys().cloned().collect());
        update.entries.retain(|(_, entry)| entry.is_some());
        Update { scope, ..update }
    }

    fn loadpaths(&self) -> Vec<Loadpath> {
        let (path, state) = (PathBuf::from(HOME), self.loadpath.clone());
        vec![Loadpath {
            path,
            state,
            faults: Vec::new(),
        }]
    }

    fn look(&mut self, scope: Scope) {
        let update = self.read_all(scope);
        self.tell(Event::Listing(update));
    }

    fn exit(&mut self, child: &str, how: &str) {
        let exit = match how.parse() {
            Ok(code) => Exit::Code(code),
            Err(_) => Exit::Signal(
                (1..=31)
                    .find(|n| signal_name(*n) == Some(how))
                    .expect("an exit is a code or a signal"),
            ),
        };
        let run = *self.live.get(child).expect("what exits lives");
        self.tell(Event::Exited {
            child: name(child),
            run,
            exit,
            circumstances: Circumstances::default(),
        });
    }

    fn probe_ends(&mut self, child: &str, result: Result<(), String>) {
        let job = self.probes.remove(child).expect("a probe is under way");
        self.tell(Event::Probed { job, result });
    }

    fn says(&mut self, child: &str, run: RunId, words: &[&str]) {
        let word = match words {
            ["ready"] => Word::Ready,
            ["reloading"] => Word::Reloading,
            ["stopping"] => Word::Stopping,
            ["status", text] => Word::Status((*text).to_owned()),
            ["extend", time] => Word::Extend(span(time)),
            ["wrote"] => Word::Wrote,
            ["logged"] => Word::Logged,
            ["alive"] => Word::Alive,
            ["ailing"] => Word::Ailing,
            ["pace", time] => Word::Pace(span(time)),
            ["main", "nobody"] => Word::Main(None),
            ["main", pid] => Word::Main(Some(pid.parse().expect("a pid"))),
            other => panic!("no run says this: {other:?}"),
        };
        self.tell(Event::Notified {
            child: name(child),
            run,
            words: vec![word],
        });
    }

    fn hook_ends(&mut self, child: &str, result: Result<(), String>) {
        self.hook_is(child, result.map_err(HookFailure::Failed));
    }

    fn hook_is(&mut self, child: &str, result: Result<(), HookFailure>) {
        let hook = self.hooks.remove(child).expect("a hook's program runs");
        self.tell(Event::HookFinished {
            child: name(child),
            hook,
            result,
        });
    }

    fn advance(&mut self, span: Duration) {
        let until = self.now.mono + span;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= until) {
            self.pass(at - self.now.mono);
            let text = format!("  at {}", clock(at));
            self.say(&text);
            self.tell(Event::Deadline);
        }
        self.pass(until - self.now.mono);
    }

    fn pass(&mut self, span: Duration) {
        self.now.mono = self.now.mono + span;
        self.now.wall.0 += i64::try_from(span.as_millis()).expect("spans are short");
    }

    // The shell.

    fn tell(&mut self, event: Event) {
        self.inbox.push_back(event);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.inbox.pop_front() {
            for effect in self.core.step(event, self.now) {
                if let Some(text) = text_of(&effect) {
                    self.say(&format!("    {text}"));
                }
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record { ticket, records }
                if self.refused == "quick"
                    && records.iter().any(|it| it.store() == Store::State) =>
            {
                self.disk.push_back((ticket, records));
            }
            Effect::Record { ticket, records } => self.write(ticket, &records),
            Effect::Reread { job, names } => {
                if self.refused == "look" {
                    self.looks.push_back((job, names));
                    return;
                }
                let update = self.read(&names);
                self.inbox.push_back(Event::Reread { job, update });
            }
            Effect::Preflight { job, .. } => {
                let refused = self.refused == "preflight";
                let result = if refused {
                    Err("program not found".to_owned())
                } else {
                    Ok(())
                };
                self.inbox.push_back(Event::Preflight { job, result });
            }
            Effect::Spawn {
                child,
                run,
                spec,
                by,
                order,
                ..
            } => {
                self.memory.apply(&Record::Begun {
                    child: child.clone(),
                    run,
                    spec,
                    by: Some(by),
                    order,
                });
                self.spawn(child, run);
            }
            Effect::Reap { child, .. } => {
                self.live.remove(&child);
            }
            Effect::RunHook {
                child,
                hook,
                program,
                ..
            } => self.run_hook(child, hook, program),
            Effect::KillHook { .. } if self.refused == "death" => {}
            Effect::KillHook { child, hook } => {
                self.hooks.remove(&child);
                let result = Err(HookFailure::Failed("killed".to_owned()));
                self.inbox.push_back(Event::HookFinished {
                    child,
                    hook,
                    result,
                });
            }
            Effect::Probe { job, child, .. } => {
                self.probes.insert(child, job);
            }
            Effect::EndProbe { job } => self.probes.retain(|_, other| *other != job),
            Effect::Signal { .. }
            | Effect::Tell { .. }
            | Effect::Reply { .. }
            | Effect::Account { .. }
            | Effect::Explain { .. }
            | Effect::Log(_)
            | Effect::Inform { .. }
            | Effect::Recount { .. }
            | Effect::Upgrade { .. }
            | Effect::Exit { .. } => {}
        }
    }

    fn write(&mut self, ticket: Option<Ticket>, records: &[Record]) {
        let refused = self.refused == "records" && ticket.is_some();
        for record in records.iter().filter(|_| !refused) {
            self.memory.apply(record);
        }
        if let Some(ticket) = ticket {
            let result = if refused {
                Err("the disk is full".to_owned())
            } else {
                Ok(())
            };
            self.inbox.push_back(Event::Recorded { ticket, result });
        }
    }

    fn run_hook(&mut self, child: ChildName, hook: HookId, program: Arc<HookProgram>) {
        self.memory.apply(&Record::HookBegun {
            child: child.clone(),
            hook,
            program,
        });
        self.memory.apply(&Record::HookStarted {
            child: child.clone(),
            hook,
            pid: 99,
            start_ticks: 1,
            at: self.now,
        });
        self.hooks.insert(child, hook);
    }

    fn spawn(&mut self, child: ChildName, run: RunId) {
        let at = self.now;
        if self.refused == "spawn" {
            let why = "program not found".to_owned();
            let record = Record::NotStarted {
                child: child.clone(),
                run,
                why: why.clone(),
                at,
            };
            self.memory.apply(&record);
            let why = SpawnFailure::Refused(why);
            self.inbox.push_back(Event::SpawnFailed { child, run, why });
            return;
        }
        self.next_pid += 1;
        let pid = self.next_pid;
        self.live.insert(child.clone(), run);
        let started = Record::Started {
            child: child.clone(),
            run,
            pid,
            start_ticks: 1,
            at,
        };
        self.memory.apply(&started);
        let spawned = Event::Spawned { child, run, pid };
        if self.refused == "haste" {
            self.late.push_back(spawned);
        } else {
            self.inbox.push_back(spawned);
        }
    }
}

fn clock(at: Mono) -> String {
    format!("{}.{:03}s", at.0 / 1_000_000, at.0 / 1_000 % 1_000)
}

fn span(text: &str) -> Duration {
    humantime::parse_duration(text).expect("a span is written as `500ms`")
}

fn mode_of(text: &str) -> Mode {
    match text {
        "quiet" => Mode::Quiet,
        "half" => Mode::Half,
        "full" => Mode::Full,
        "sync" => Mode::Sync,
        other => panic!("no such mode: {other}"),
    }
}

fn verb(text: &str) -> Verb {
    match text {
        "start" => Verb::Start,
        "restart" => Verb::Restart,
        "trystart" => Verb::Trystart,
        "stop" => Verb::Stop,
        other => panic!("no such command: {other}"),
    }
}

fn command_of(words: &[&str]) -> Command {
    match words {
        ["stop", "--all"] => Command::StopAll,
        ["start", "--all"] => Command::StartAll,
        ["check"] => Command::Check {
            scope: CheckScope::Live,
        },
        ["check", "--all"] => Command::Check {
            scope: CheckScope::All,
        },
        ["info"] => Command::Info,
        ["check", child] => Command::CheckOne(name(child)),
        ["why", child] => Command::Why(name(child)),
        ["wait", child, goal, time, run @ ..] => Command::Wait {
            child: name(child),
            goal: Goal::ALL
                .into_iter()
                .find(|it| it.as_str() == *goal)
                .expect("running, ready or exited"),
            run: run
                .first()
                .map(|run| RunId(run.parse().expect("a run has a number"))),
            time: span(time),
        },
        ["events", rest @ ..] => {
            let (follow, rest) = match rest {
                [rest @ .., "-f"] => (Follow::Yes, rest),
                rest => (Follow::No, rest),
            };
            Command::Events {
                child: rest.first().map(|child| name(child)),
                follow,
                last: None,
            }
        }
        ["kill"] => Command::Kill(KillChildren::AsConfigured),
        ["kill", "--stop-children"] => Command::Kill(KillChildren::Stop),
        [word, child] => Command::Child {
            verb: verb(word),
            child: name(child),
        },
        other => panic!("no such command: {other:?}"),
    }
}

/// Such as `db:ready,migrate:completed`.
fn dependencies(child: &str, needs: &str) -> Dependencies {
    let needs = needs.split(',').enumerate().map(|(index, need)| {
        let (who, word) = need.split_once(':').expect("a name and a condition");
        let condition = Condition::ALL.into_iter().find(|it| it.as_str() == word);
        let it = Dependency {
            condition: condition.expect("started, ready or completed"),
            path: PathBuf::from(format!("{HOME}/{child}.yml")),
            line: index + 3,
            column: 3,
        };
        (name(who), it)
    });
    needs.collect()
}

pub(super) fn spec(child: &str, version: &str, options: &[&str]) -> Spec {
    let mut digest = [0_u8; 16];
    let text = format!("{version} {}", options.join(" "));
    for (i, byte) in text.bytes().enumerate() {
        let place = &mut digest[i % 16];
        *place = place.wrapping_mul(31).wrapping_add(byte);
    }
    let mut spec = Spec {
        path: PathBuf::from(format!("{HOME}/{child}.yml")),
        command: vec![format!("/bin/{child}"), version.to_owned()],
        workdir: PathBuf::from(HOME),
        stdout: Sink::Inherit,
        stderr: Sink::Inherit,
        repeat: None,
        prehook: None,
        posthook: None,
        restart: RestartPolicy {
            jitter_permille: 0,
            ..RestartPolicy::default()
        },
        stop: StopPolicy::default(),
        ready: None,
        health: None,
        depends_on: crate::spec::Dependencies::new(),
        digest: Digest(digest),
    };
    let mut rest = options;
    while !rest.is_empty() {
        rest = match rest {
            ["program", other, rest @ ..] => {
                spec.command[0] = format!("/bin/{other}");
                rest
            }
            ["prehook", text, rest @ ..] => {
                spec.prehook = Some(hook(text));
                rest
            }
            ["posthook", text, rest @ ..] => {
                spec.posthook = Some(hook(text));
                rest
            }
            ["repeat", action, every, rest @ ..] => {
                spec.repeat = Some(Repeat {
                    action: verb(action),
                    every: span(every),
                });
                rest
            }
            ["restart", when, rest @ ..] => {
                spec.restart.when = match *when {
                    "never" => RestartWhen::Never,
                    "on-failure" => RestartWhen::OnFailure,
                    "always" => RestartWhen::Always,
                    other => panic!("no such policy: {other}"),
                };
                rest
            }
            ["stop", act, wait, rest @ ..] => {
                spec.stop.steps.retain(|step| *step != StopStep::default());
                spec.stop.steps.push(StopStep {
                    act: match act.strip_prefix("run ") {
                        Some(line) => StopAct::Run(line.split(' ').map(str::to_owned).collect()),
                        None => StopAct::Signal(act.parse().expect("a signal")),
                    },
                    wait: span(wait),
                });
                rest
            }
            [
                "ready",
                sign @ ("notify" | "fd" | "log"),
                timeout,
                rest @ ..,
            ] => {
                spec.ready = Some(Ready {
                    sign: match *sign {
                        "fd" => Sign::Fd(3),
                        "log" => Sign::Log("up".to_owned()),
                        _ => Sign::Notify,
                    },
                    timeout: span(timeout),
                    interval: Ready::INTERVAL,
                });
                rest
            }
            ["depends", needs, rest @ ..] => {
                spec.depends_on = dependencies(child, needs);
                rest
            }
            ["ready", timeout, interval, rest @ ..] => {
                spec.ready = Some(Ready {
                    sign: Sign::Probe(Probe::Exec(vec!["probe".to_owned()])),
                    timeout: span(timeout),
                    interval: span(interval),
                });
                rest
            }
            ["health", "watchdog", failures, interval, rest @ ..] => {
                spec.health = Some(Health {
                    pulse: Pulse::Watchdog,
                    timeout: Health::TIMEOUT,
                    interval: span(interval),
                    failures: failures.parse().expect("a number"),
                });
                rest
            }
            ["health", failures, interval, rest @ ..] => {
                spec.health = Some(Health {
                    pulse: Pulse::Probe(Probe::Exec(vec!["probe".to_owned()])),
                    timeout: Health::TIMEOUT,
                    interval: span(interval),
                    failures: failures.parse().expect("a number"),
                });
                rest
            }
            ["scope", "tree", rest @ ..] => {
                spec.stop.scope = StopScope::Tree;
                rest
            }
            ["max", count, within, rest @ ..] => {
                let count = count.parse().expect("a limit is a number");
                spec.restart.max = Some(RestartLimit {
                    count,
                    within: span(within),
                });
                rest
            }
            other => panic!("no such option of a file: {other:?}"),
        };
    }
    spec
}

fn hook(text: &str) -> Hook {
    match text.split_once(' ') {
        Some(("run", program)) => Hook::Run(program.split(' ').map(str::to_owned).collect()),
        Some((word, child)) => Hook::Command {
            verb: verb(word),
            child: name(child),
        },
        None => panic!("no such hook: {text}"),
    }
}

/// An effect as a person would say it; what is answered at once by itself is left out.
fn text_of(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Record { records, .. } => {
            let records: Vec<String> = records.iter().map(record_text).collect();
            format!("write down: {}", records.join("; "))
        }
        Effect::Reread { names, .. } => {
            let names: Vec<&str> = names.iter().map(ChildName::as_str).collect();
            format!("read again: {}", names.join(", "))
        }
        Effect::Preflight { spec, .. } => format!("could `{}` start?", spec.command.join(" ")),
        Effect::Spawn {
            child, run, spec, ..
        } => {
            format!("start {child} run {run}: `{}`", spec.command.join(" "))
        }
        Effect::Signal {
            child,
            run,
            signal,
            scope,
        } => {
            let signal = match signal {
                Signal::Ask(signal) => signal.to_string(),
                Signal::Kill => "KILL".to_owned(),
            };
            let whole = match scope {
                StopScope::Group => "",
                StopScope::Tree => "all of ",
            };
            format!("{signal} to {whole}{child} run {run}")
        }
        Effect::Reap {
            child,
            run,
            leftovers,
        } => {
            let rest = match leftovers {
                Leftovers::Kill(StopScope::Group) => "and kill what is left of its group",
                Leftovers::Kill(StopScope::Tree) => "and kill what is left of its tree",
                Leftovers::Leave => "and leave the rest of its group",
            };
            format!("let {child} run {run} go, {rest}")
        }
        Effect::RunHook { child, program, .. } => {
            format!("run the hook of {child}: `{}`", program.argv.join(" "))
        }
        Effect::KillHook { .. } => "kill the hook's program".to_owned(),
        Effect::Probe {
            child,
            run,
            probe,
            time,
            ..
        } => {
            let time = humantime::format_duration(*time);
            format!("probe {child} run {run} for {time}: {probe}")
        }
        Effect::EndProbe { .. } => "give the probe up".to_owned(),
        Effect::Tell { id, events, answer } => {
            let mut lines: Vec<String> = Vec::new();
            lines.extend(events.iter().map(|event| event_text(*id, event)));
            lines.extend(answer.iter().map(|answer| {
                let answer = Ok(answer.clone());
                format!("answer {}: {}", id.0, answer_text(&answer))
            }));
            lines.join("\n    ")
        }
        Effect::Reply { id, answer } => format!("answer {}: {}", id.0, answer_text(answer)),
        Effect::Account { id, why, .. } => {
            // What has ended stands in the history, and so not here.
            let message = why.clone().told().message;
            let lines = message.lines().filter(|line| !line.starts_with("  before"));
            let lines: Vec<&str> = lines.collect();
            format!("answer {}: {}", id.0, lines.join("\n        "))
        }
        Effect::Explain { id, failure, .. } => {
            format!("answer {} with its last words: {failure}", id.0)
        }
        Effect::Log(line) => log_text(line),
        Effect::Inform { id, survey } => {
            let faults = survey.faults.join("\n");
            let faults = faults.lines().map(|line| format!("\n        {line}"));
            format!(
                "answer {} with a survey{}",
                id.0,
                faults.collect::<String>()
            )
        }
        Effect::Recount { id, checked, .. } => {
            let answer = Ok(Answer::Checked((**checked).clone()));
            format!("answer {}: {}", id.0, answer_text(&answer))
        }
        Effect::Upgrade { .. } => "replace the server".to_owned(),
        Effect::Exit { words, with } => match with {
            Some(exit) => format!("end with {exit}: {}", words.message),
            None => format!("end: {}", words.message),
        },
    })
}

fn event_text(id: RequestId, event: &ChildEvent) -> String {
    let json = |value: &ChildEvent| serde_json::to_string(value).expect("it is written");
    let mut event = event.clone();
    let seq = event.seq;
    event.asker = None;
    // The names, times and numbers stand in the lines around it.
    let text = json(&event).replace(&format!("\"seq\":{seq},\"at\":\"{}\",", event.at), "");
    format!("tell {} event {seq}: {text}", id.0)
}

fn answer_text(answer: &Result<Answer, crate::command::Failure>) -> String {
    let indent = |text: &str| text.replace('\n', "\n        ");
    match answer {
        Ok(Answer::Done(done)) => format!("ok, {}", indent(&done.message)),
        Ok(Answer::Each(each)) => {
            let mut text = format!("ok, {}", each.message);
            for child in &each.children {
                let error = child.error.as_ref().map(ToString::to_string);
                let how = error
                    .or_else(|| child.note.clone())
                    .unwrap_or_else(|| "done".to_owned());
                let _ = write!(text, "\n        {}: {}", child.name, indent(&how));
            }
            text
        }
        Ok(Answer::Checked(checked)) => {
            let mut text = format!("ok, {} more", checked.others);
            for row in &checked.children {
                let reason = row.reason.as_deref().unwrap_or("-");
                let _ = write!(
                    text,
                    "\n        {} {} run {} config {} hold {}: {}",
                    row.name,
                    row.state.as_str(),
                    row.run.map_or("-".to_owned(), |run| run.to_string()),
                    row.config.status.as_str(),
                    row.hold,
                    indent(reason)
                );
            }
            text
        }
        Ok(Answer::Why(why)) => indent(&why.message),
        Ok(Answer::Told(told)) => format!("ok, {}", told.message),
        Ok(Answer::Info(_)) => "ok".to_owned(),
        Ok(Answer::Upgraded(upgraded)) => format!("ok, {}", upgraded.message),
        Ok(Answer::Killed(killed)) => format!("ok, {}", indent(&killed.message)),
        Err(failure) => indent(&failure.to_string()),
    }
}

fn log_text(line: &Line) -> String {
    let level = match line.level {
        Level::Info => "log",
        Level::Warn => "log WARN",
        Level::Error => "log ERROR",
    };
    let child = line
        .child
        .as_ref()
        .map_or(String::new(), |child| format!(" {child}:"));
    let exit = line.exit.map_or(String::new(), |exit| format!(", {exit}"));
    let cause = line
        .cause
        .map_or(String::new(), |cause| format!(" ({})", cause.as_str()));
    let detail = line
        .detail
        .as_ref()
        .map_or(String::new(), |text| format!(": {text}"));
    let text = format!("{level}{child} {}{exit}{cause}{detail}", line.what);
    text.replace('\n', "\n        ")
}

fn record_text(record: &Record) -> String {
    match record {
        Record::Held { child, .. } => format!("{child} is held"),
        Record::Released { child } => format!("{child} is released"),
        Record::Reserved { child, upto } => format!("{child} may use numbers up to {upto}"),
        Record::Stopping { child, run, .. } => format!("{child} run {run} is being stopped"),
        Record::Replacing { child, run } => format!("{child} run {run} is being replaced"),
        Record::Ended {
            child, run, exit, ..
        } => format!("{child} run {run} ended, {exit}"),
        Record::Ready { child, run } => format!("{child} run {run} is ready"),
        Record::GivenUp { child, run, .. } => format!("{child} is given up after run {run}"),
        Record::Doubted { child, run, .. } => format!("{child} run {run} is in doubt"),
        Record::Suspects(sighting) => format!("suspects: {sighting:?}"),
        Record::Suspicion { child, is } => format!("{child} as a suspect: {is:?}"),
        Record::Found { child, run, .. } => format!("run {run} of {child} was found"),
        Record::Matched { child, run, .. } => format!("run {run} of {child} is of its file"),
        Record::MaybeUsed { child, upto } => format!("{child} may have had runs up to {upto}"),
        Record::Renewed { child } => format!("{child} is as if it had never run"),
        Record::Settled { child } => format!("nothing is due for {child} any more"),
        Record::Armed {
            child,
            run,
            repeat,
            due,
        } => {
            format!(
                "{child} run {run} armed `{}` for {}",
                repeat.action,
                clock(*due)
            )
        }
        Record::Disarmed { child } => format!("nothing is armed for {child}"),
        Record::Asked {
            child,
            order,
            wanted,
            ..
        } => format!("order {} for {child}, {wanted:?}", order.0),
        Record::Answered {
            child,
            order,
            failure,
        } => {
            let how = failure.map_or("done with", ErrorCode::as_str);
            format!("order {} for {child} is {how}", order.0)
        }
        Record::Over { child, past } => format!("{child} run {} is over", past.run),
        Record::Noted { child, upto } => format!("{child} is noted up to run {upto}"),
        Record::LoadpathSeen { path, ino, .. } => {
            format!("{} has files and is inode {ino}", path.display())
        }
        Record::HookEnded { child, .. } => format!("the hook of {child} is over"),
        Record::Forgotten { child } => format!("{child} is forgotten"),
        Record::Closed => "the server ended by order".to_owned(),
        Record::Opened { .. }
        | Record::Begun { .. }
        | Record::HookBegun { .. }
        | Record::HookStarted { .. }
        | Record::Started { .. }
        | Record::NotStarted { .. } => format!("{record:?}"),
    }
}

#[test]
fn scripts_say_what_they_said() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reconcile");
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the scripts are there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|end| end == "script"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 13, "scripts are missing: {paths:?}");
    for path in paths {
        let script = std::fs::read_to_string(&path).expect("it can be read");
        let out = play(&script);
        let golden = path.with_extension("out");
        if update {
            std::fs::write(&golden, &out).expect("it can be written");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(out, expected, "{}: see UPDATE_SNAPSHOTS=1", path.display());
    }
}
