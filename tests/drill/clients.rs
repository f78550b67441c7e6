//! Clients that command at random, each over a connection of its own, and all that they were
//! answered.
//!
//! They speak the protocol themselves (docs/PROTOCOL.md), many requests at a time. When the server
//! dies, so do their connections; each is made again when the next server answers.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde_json::Value;
use supervisor_rs::{clock, spec::Mono};

use crate::{
    children::{CHILDREN, DEAF, KEPT},
    line::{Gone, Line},
    random::Random,
    tally::Tally,
};

/// How many clients command at one time.
const CLIENTS: u64 = 3;

/// How many requests of one may be without an answer.
const IN_FLIGHT_MAX: usize = 24;

/// How many requests are sent at once, at most.
const BURST_MAX: u64 = 4;

/// One command in so many is about all children. While it is under way no other answer can be held
/// against what follows.
const ALL_ONE_IN: u64 = 400;

/// How long answers are read before more is sent, at most.
const LISTEN_MAX: Duration = Duration::from_millis(60);

/// How often a server that is not there is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Restart,
    Trystart,
    Stop,
}

/// All of them.
const VERBS: [Verb; 4] = [Verb::Start, Verb::Restart, Verb::Trystart, Verb::Stop];

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing was heard of it.
    Silence,
    /// It was carried out: by child, the run it tells of.
    Done(BTreeMap<String, u64>),
    /// It was refused, and changed nothing.
    Unchanged,
    /// It failed half way, or gave way to another.
    Failed,
}

/// A command that was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) verb: Verb,
    /// `None`: all.
    pub(crate) child: Option<&'static str>,
    /// Which server it was sent to: they are numbered.
    pub(crate) life: u64,
    /// Over which connection: the client's number and the connection's.
    pub(crate) connection: (u64, u64),
    /// Before it was sent.
    pub(crate) sent: Mono,
    /// When its answer had come.
    pub(crate) answered: Option<Mono>,
    pub(crate) outcome: Outcome,
}

impl Sent {
    /// One that is about to be sent.
    pub(crate) fn new(
        verb: Verb,
        child: Option<&'static str>,
        life: u64,
        connection: (u64, u64),
    ) -> Self {
        Self {
            verb,
            child,
            life,
            connection,
            sent: clock::mono(),
            answered: None,
            outcome: Outcome::Silence,
        }
    }

    /// As it is sent.
    pub(crate) fn command(&self) -> String {
        let op = match self.verb {
            Verb::Start => "start",
            Verb::Restart => "restart",
            Verb::Trystart => "trystart",
            Verb::Stop => "stop",
        };
        match self.child {
            Some(child) => format!(r#"{{"op":"{op}","child":"{child}"}}"#),
            None => format!(r#"{{"op":"{op}","all":true}}"#),
        }
    }

    /// Takes in what it was answered.
    pub(crate) fn hear(&mut self, answer: &Value) {
        self.answered = Some(clock::mono());
        self.outcome = outcome(answer);
    }

    /// Whether it is about this child.
    pub(crate) fn concerns(&self, child: &str) -> bool {
        self.child.is_none_or(|own| own == child)
    }

    /// Whether it was over before the other was sent, or comes before it in any case.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        let in_order = self.connection == other.connection
            && self.child.is_some()
            && self.child == other.child
            && self.sent < other.sent;
        self.life < other.life
            || self.answered.is_some_and(|answered| answered < other.sent)
            || self.life == other.life && in_order
    }
}

/// What clients and the drill share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The server that runs: its number and address.
    server: Mutex<Option<(u64, SocketAddr)>>,
    commands: Mutex<Vec<Sent>>,
    /// When servers were killed.
    kills: Mutex<Vec<Mono>>,
    /// How many requests were sent, and who waits for one.
    pulse: (Mutex<u64>, Condvar),
    over: AtomicBool,
    pub(crate) tally: Tally,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Tells of a server that runs, or that none does.
    pub(crate) fn publish(&self, server: Option<(u64, SocketAddr)>) {
        *locked(&self.server) = server;
    }

    /// The server that runs.
    pub(crate) fn server(&self) -> Option<(u64, SocketAddr)> {
        *locked(&self.server)
    }

    /// A server was killed just now.
    pub(crate) fn killed(&self) {
        self.publish(None);
        locked(&self.kills).push(clock::mono());
        self.tally.count("kills");
    }

    /// When servers were killed.
    pub(crate) fn kills(&self) -> Vec<Mono> {
        locked(&self.kills).clone()
    }

    /// Whether the drill has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// The drill has ended.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
    }

    /// All commands so far, in the order in which they were sent.
    pub(crate) fn commands(&self) -> MutexGuard<'_, Vec<Sent>> {
        locked(&self.commands)
    }

    /// Returns right after a command was sent, or when none was for that long.
    pub(crate) fn await_command(&self, longest: Duration) {
        let (count, changed) = &self.pulse;
        let guard = locked(count);
        let before = *guard;
        let _timed_out = changed
            .wait_timeout_while(guard, longest, |count| *count == before)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// The clients; they end when this is dropped.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Lets them command, as this user if one is given.
    pub(crate) fn begin(shared: &Arc<Shared>, seed: u64, user: Option<u32>) -> Self {
        let client = |number| {
            let shared = Arc::clone(shared);
            thread::spawn(move || {
                if let Some(user) = user {
                    become_user(user);
                }
                let mut client = Client {
                    random: Random::new(seed, 100 + number),
                    number,
                    connections: 0,
                    shared,
                };
                client.run();
            })
        };
        Self {
            shared: Arc::clone(shared),
            threads: (0..CLIENTS).map(client).collect(),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.end();
        for client in self.threads.drain(..) {
            let failed = client.join().is_err();
            assert!(!failed || thread::panicking(), "a client has failed");
        }
    }
}

/// This thread is somebody else from now on.
fn become_user(user: u32) {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[]).expect("root may");
    set_thread_res_gid(group, group, group).expect("root may");
    set_thread_res_uid(user, user, user).expect("root may");
}

struct Client {
    random: Random,
    number: u64,
    /// How many connections it has made.
    connections: u64,
    shared: Arc<Shared>,
}

/// A connection and what was asked on it.
struct Connection {
    line: Line,
    next_id: u64,
    /// Where a request stands among the commands; `None` for one that changes nothing.
    in_flight: BTreeMap<u64, Option<usize>>,
}

impl Client {
    fn run(&mut self) {
        while !self.shared.is_over() {
            match self.connect() {
                // However it ends, the next one begins anew.
                Some(mut connection) => while self.turn(&mut connection).is_ok() {},
                None => thread::sleep(LOOK),
            }
        }
    }

    fn connect(&mut self) -> Option<Connection> {
        self.connections += 1;
        Some(Connection {
            line: Line::open(&self.shared)?,
            next_id: 0,
            in_flight: BTreeMap::new(),
        })
    }

    /// Sends some requests and listens for a while.
    fn turn(&mut self, connection: &mut Connection) -> Result<(), Gone> {
        if self.shared.is_over() {
            return Err(Gone);
        }
        for _ in 0..=self.random.below(BURST_MAX) {
            if connection.in_flight.len() < IN_FLIGHT_MAX {
                self.send(connection)?;
            }
        }
        let until = clock::mono() + self.random.up_to(LISTEN_MAX);
        while let Some(answer) = connection.line.next(until)? {
            self.hear(connection, &answer)?;
        }
        Ok(())
    }

    fn send(&mut self, connection: &mut Connection) -> Result<(), Gone> {
        connection.next_id += 1;
        let id = connection.next_id;
        let (command, sent) = self.choose(connection.line.life);
        let index = sent.map(|sent| {
            let mut commands = self.shared.commands();
            commands.push(sent);
            commands.len() - 1
        });
        connection.in_flight.insert(id, index);
        let line = format!("{{\"id\":{id},\"command\":{command}}}\n");
        self.shared
            .tally
            .action(format!("client {}: {command}", self.number));
        let sent = connection.line.write(&line);
        let (count, changed) = &self.shared.pulse;
        *locked(count) += 1;
        changed.notify_all();
        self.shared.tally.count("commands sent");
        sent
    }

    /// A command as JSON, and what is kept of it when it changes something.
    fn choose(&mut self, life: u64) -> (String, Option<Sent>) {
        let mut child = self.random.pick(&CHILDREN).name;
        if child == KEPT {
            child = DEAF;
        }
        if self.random.percent(10) {
            return (format!(r#"{{"op":"check","child":"{child}"}}"#), None);
        }
        let mut verb = *self.random.pick(&VERBS);
        let mut child = Some(child);
        if self.random.below(ALL_ONE_IN) == 0 {
            child = None;
            verb = if self.random.percent(80) {
                Verb::Start
            } else {
                Verb::Stop
            };
        }
        // Its stop takes ten seconds, unless somebody kills it.
        if child == Some(DEAF) && self.random.percent(90) {
            verb = Verb::Start;
        }
        let sent = Sent::new(verb, child, life, (self.number, self.connections));
        (sent.command(), Some(sent))
    }

    fn hear(&self, connection: &mut Connection, answer: &Value) -> Result<(), Gone> {
        let Some(id) = answer["id"].as_u64() else {
            // It stands for the whole connection, which ends.
            return Err(Gone);
        };
        let index = connection.in_flight.remove(&id);
        let index = index.unwrap_or_else(|| panic!("nobody asked: {answer}"));
        self.shared.tally.count("commands answered");
        let Some(index) = index else { return Ok(()) };
        self.shared.commands()[index].hear(answer);
        Ok(())
    }
}

fn outcome(answer: &Value) -> Outcome {
    if let Some(code) = answer["error"]["code"].as_str() {
        return match code {
            "already_running" | "not_running" | "busy" => Outcome::Unchanged,
            "superseded" | "hook_failed" | "spawn_failed" | "timeout" | "internal"
            | "shutting_down" | "unknown_child" | "invalid_config" => Outcome::Failed,
            _ => panic!("no client expects this: {answer}"),
        };
    }
    let answer = &answer["ok"];
    let run = |value: &Value| value["run"].as_u64().unwrap_or(0);
    let mut done = BTreeMap::new();
    if let Some(name) = answer["child"].as_str() {
        done.insert(name.to_owned(), run(answer));
    }
    let all = answer["children"].as_array().into_iter().flatten();
    for one in all.filter(|one| one["ok"] == true) {
        done.insert(one["name"].as_str().expect("a name").to_owned(), run(one));
    }
    Outcome::Done(done)
}
