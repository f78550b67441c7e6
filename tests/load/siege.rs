//! Load and abuse: whoever floods a server, others are served within a second all the while,
//! its memory stays bounded, what is over a limit is told `busy`, and all is well afterwards.
//!
//! - A [`Siege`] is what attackers do to one server until it is over. They are other users of this
//!   host if tests can be others, so that they are other peers than who is to be served.
//! - [`endure`] has somebody served meanwhile: again and again, over new connections and over one
//!   that stays. What is measured is the server's time: that in which the machine had no processor
//!   for it, or for who asks, is taken out ([`Waited`]).
//! - [`Before`] is what a server was like before, and must be like again.
//!
//! Random bytes come from a seed that is told, so that what they find can be found again.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
    process::{Resource, Rlimit, Signal, getrlimit, setrlimit},
};
use serde_json::Value;
use supervisor_rs::{
    clock,
    control::limits::{
        AUDITED_REFUSALS_PER_PEER_MAX, CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX,
        FAILURES_PER_PEER_MAX,
    },
};

use crate::{
    network::{STRANGERS, as_user, is_root},
    sandbox::{Output, PATIENCE, SLEEPER, Sandbox, Wire, pid_of, skip, status_of, wait_for},
    signing::{Forge, Which, pair, rsa},
};

/// Within what others are served, whatever happens.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

/// How often somebody is served during a siege.
const ROUNDS: usize = 25;

/// What the server may have in memory that is its own, in KiB.
const MEMORY_KIB_MAX: u64 = 64 * 1024;

/// How much more of it than before it may keep, in KiB.
const MEMORY_KEPT_KIB_MAX: u64 = 24 * 1024;

/// How long the server's log may get by what attackers do, in bytes.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

const CHECK_WEB: &str = r#"{"op":"check","child":"web"}"#;
const CHECK_ALL: &str = r#"{"op":"check","all":true}"#;
const INFO: &str = r#"{"op":"info"}"#;

// Who attacks

/// What is done to a server until it is over.
struct Siege {
    address: SocketAddr,
    over: AtomicBool,
    /// How often something was done to it.
    blows: AtomicUsize,
    /// How often it said `busy`.
    busy: AtomicUsize,
}

/// Sieges come one at a time, so that none is measured beside another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a siege, whatever happens: attackers are waited for.
struct Over<'a>(&'a Siege);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// What an attacker does, told apart from others of his kind by a number.
type Attack = fn(&Siege, u32);

/// How long an attacker waits for the server.
const ATTACKERS_PATIENCE: Duration = Duration::from_secs(1);

impl Siege {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            over: AtomicBool::new(false),
            blows: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn blow(&self) {
        self.blows.fetch_add(1, Ordering::Relaxed);
    }

    /// `None` when it is not to be had now.
    fn connect(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, ATTACKERS_PATIENCE).ok()?;
        stream.set_read_timeout(Some(ATTACKERS_PATIENCE)).ok()?;
        stream.set_write_timeout(Some(ATTACKERS_PATIENCE)).ok()?;
        Some(stream)
    }

    /// Takes note of what the server has said.
    fn hear(&self, words: &[u8]) {
        let text = String::from_utf8_lossy(words);
        let busy = text.matches("\"code\":\"busy\"").count();
        self.busy.fetch_add(busy, Ordering::Relaxed);
    }
}

/// A small generator of numbers that look random.
struct Random(u64);

impl Random {
    fn new(seed: u32) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ u64::from(seed) << 17 ^ u64::from(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Bytes that mean nothing, with line feeds in between.
fn random_bytes(siege: &Siege, number: u32) {
    let mut random = Random::new(number);
    while siege.goes_on() {
        let Some(mut stream) = siege.connect() else {
            continue;
        };
        siege.blow();
        let count = usize::try_from(random.next() % 6_000).expect("small");
        let bytes = random.bytes(count);
        // An error means that it has hung up already, which is its good right.
        let _ = stream
            .write_all(&bytes)
            .and_then(|()| stream.write_all(b"\n"));
        let mut said = Vec::new();
        let _ = stream.take(64 * 1024).read_to_end(&mut said);
        siege.hear(&said);
    }
}

/// Requests but for their last byte, on as many connections as it can have.
fn half_lines(siege: &Siege, _: u32) {
    const HELD: usize = 200;
    let mut held: VecDeque<TcpStream> = VecDeque::new();
    while siege.goes_on() {
        let Some(mut stream) = siege.connect() else {
            continue;
        };
        siege.blow();
        let _ =
            stream.write_all(b"{\"id\":1,\"command\":{\"op\":\"kill\",\"stop_children\":true}}");
        held.push_back(stream);
        if held.len() > HELD {
            let oldest = held.pop_front().expect("there are some");
            siege.hear(&what_it_said(&oldest));
        }
        // As fast as somebody types who means it, with two hundred hands.
        thread::sleep(Duration::from_millis(1));
    }
}

/// What has come by now, without waiting.
fn what_it_said(stream: &TcpStream) -> Vec<u8> {
    let mut said = vec![0; 4096];
    let _ = stream.set_nonblocking(true);
    let count = { stream }.read(&mut said).unwrap_or(0);
    said.truncate(count);
    said
}

/// Tokens that somebody else signed, many at once, as fast as they are answered.
fn bad_tokens(siege: &Siege, number: u32) {
    const AT_ONCE: u64 = 32;
    while siege.goes_on() {
        let Some(mut stream) = siege.connect() else {
            continue;
        };
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut hello = String::new();
        if lines.read_line(&mut hello).is_err() || !hello.contains("\"hello\"") {
            siege.hear(hello.as_bytes());
            continue;
        }
        // Right in all but the signature, which is the last to be seen.
        let token = Forge::new(&hello, 1, INFO).key(rsa(Which::Other)).token();
        let requests: String = (1..=AT_ONCE)
            .map(|id| format!("{{\"id\":{id},\"token\":\"{token}\"}}\n"))
            .collect();
        siege.blow();
        if stream.write_all(requests.as_bytes()).is_err() {
            continue;
        }
        for _ in 0..AT_ONCE {
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(1..) => siege.hear(line.as_bytes()),
                Ok(0) | Err(_) => break,
            }
        }
        // Each of them leaves the machine some of its time.
        thread::sleep(Duration::from_millis(u64::from(number % 5)));
    }
}

/// Asks for long answers by a right key, and does not read them, or so slowly that it is as good.
fn slow_reading(siege: &Siege, number: u32) {
    const HELD: usize = 12;
    let mut held = Vec::new();
    while siege.goes_on() {
        if held.len() < HELD {
            held.extend(long_answers(siege));
        }
        for stream in &mut held {
            // Every second one reads, a little at a time.
            if number.is_multiple_of(2) {
                siege.hear(&what_it_said(stream));
            }
        }
        // The machine can make so many answers, and something else beside them.
        thread::sleep(Duration::from_millis(100));
    }
}

fn long_answers(siege: &Siege) -> Option<TcpStream> {
    let mut stream = siege.connect()?;
    sockopt::set_socket_recv_buffer_size(&stream, 4096).ok()?;
    let mut lines = BufReader::with_capacity(1024, stream.try_clone().ok()?);
    let mut hello = String::new();
    lines.read_line(&mut hello).ok()?;
    if !hello.contains("\"hello\"") {
        siege.hear(hello.as_bytes());
        return None;
    }
    siege.blow();
    for id in 1..=8 {
        let command = if id % 2 == 0 { INFO } else { CHECK_ALL };
        let token = Forge::new(&hello, id, command)
            .header("kid", READER)
            .claim("iss", READER)
            .key(rsa(Which::Other))
            .token();
        let request = format!("{{\"id\":{id},\"token\":\"{token}\"}}\n");
        stream.write_all(request.as_bytes()).ok()?;
    }
    Some(stream)
}

/// The key of those who read slowly.
const READER: &str = "\"reader\"";

/// How many connections each of those has who only keeps them.
const IDLE_EACH: usize = 100;

/// Connections and nothing more, all at once.
fn silence(siege: &Siege, _: u32) {
    let mut held = Vec::new();
    while siege.goes_on() {
        if held.len() < IDLE_EACH {
            if let Some(stream) = siege.connect() {
                siege.blow();
                held.push(stream);
            }
            continue;
        }
        for stream in &held {
            siege.hear(&what_it_said(stream));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Commands of somebody who may not give any, unsigned.
fn unsigned_commands(siege: &Siege, number: u32) {
    while siege.goes_on() {
        let Some(mut stream) = siege.connect() else {
            continue;
        };
        siege.blow();
        let requests: String = (1..=100)
            .map(|id| format!("{{\"id\":{id},\"command\":{{\"op\":\"stop\",\"all\":true}}}}\n"))
            .collect();
        let _ = stream.write_all(requests.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.take(256 * 1024).read_to_end(&mut said);
        siege.hear(&said);
        thread::sleep(Duration::from_millis(u64::from(number % 5)));
    }
}

// Who is served meanwhile

/// How long threads had to wait for a processor until now: of whoever asks, and of the server.
///
/// The machine is small and does other things. What it does not run cannot serve, and cannot ask.
struct Waited {
    own: Duration,
    server: BTreeMap<OsString, Duration>,
}

impl Waited {
    fn now(server: i32) -> Self {
        let tasks = fs::read_dir(format!("/proc/{server}/task")).expect("a live server");
        Self {
            own: waited(Path::new("/proc/thread-self")),
            server: tasks
                .flatten()
                .map(|task| (task.file_name(), waited(&task.path())))
                .collect(),
        }
    }

    /// How much longer than before: who asks, the server's own thread, and of those that work for
    /// it the one that had to wait longest.
    fn since(&self, before: &Self, server: i32) -> Duration {
        let main = OsString::from(server.to_string());
        let longer = |(task, now): (&OsString, &Duration)| {
            now.saturating_sub(before.server.get(task).copied().unwrap_or_default())
        };
        let mains = self.server.get_key_value(&main).map(longer);
        let others = self.server.iter().filter(|(task, _)| **task != main);
        self.own - before.own
            + mains.unwrap_or_default()
            + others.map(longer).max().unwrap_or_default()
    }
}

/// How long a task was ready to run and did not (proc_pid_schedstat, the second number).
fn waited(task: &Path) -> Duration {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let nanos = text.split_ascii_whitespace().nth(1);
    Duration::from_nanos(nanos.and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// Has somebody served; each step of it is told when all of them take too long.
fn in_time<T>(sandbox: &Sandbox, steps: impl FnOnce(&mut Steps) -> T) -> T {
    within(SERVED_WITHIN, sandbox, steps)
}

/// As [`in_time`], and the time is this.
fn within<T>(time: Duration, sandbox: &Sandbox, steps: impl FnOnce(&mut Steps) -> T) -> T {
    let server = sandbox.server_pid();
    let (before, began) = (Waited::now(server), clock::mono());
    let mut taken = Steps(Vec::new());
    let value = steps(&mut taken);
    let took = clock::mono() - began;
    let waited = Waited::now(server).since(&before, server);
    assert!(
        took.saturating_sub(waited) < time,
        "served after {took:?}, {waited:?} of it without a processor: {taken:?}"
    );
    value
}

/// Until when a siege goes on.
#[derive(Debug, Clone, Copy)]
struct Enough {
    blows: usize,
    busy: usize,
}

/// How somebody asks who is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Signed,
    Unsigned,
}

impl Asking {
    /// Asks for a short answer.
    fn ask(self, wire: &mut Wire, id: u64) -> Value {
        match self {
            Self::Signed => wire.ask_signed(id, CHECK_WEB),
            Self::Unsigned => {
                wire.ask(id, CHECK_WEB);
                wire.answer().1
            }
        }
    }

    /// The client's answer for people.
    fn client(self, sandbox: &Sandbox, arguments: &[&str]) -> Output {
        match self {
            Self::Signed => sandbox.sign(arguments),
            Self::Unsigned => sandbox.client(arguments),
        }
    }
}

/// How long each step took.
#[derive(Debug)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn take<T>(&mut self, name: &'static str, step: impl FnOnce() -> T) -> T {
        let began = clock::mono();
        let value = step();
        self.0.push((name, clock::mono() - began));
        value
    }
}

/// Has somebody served [`ROUNDS`] times while attackers do this, and until that is enough.
fn endure(sandbox: &Sandbox, asking: Asking, attacks: &[(Attack, u32)], enough: Enough) {
    let _alone = alone();
    let siege = Siege::new(sandbox.address());
    let siege = &siege;
    thread::scope(|scope| {
        let _over = Over(siege);
        for (number, (attack, count)) in (0..).zip(attacks) {
            for attacker in 0..*count {
                let uid = STRANGERS + 100 + 100 * number + attacker;
                scope.spawn(move || match is_root() {
                    true => as_user(uid, || attack(siege, attacker)),
                    false => attack(siege, attacker),
                });
            }
        }
        wait_for("the first blow", PATIENCE, || {
            siege.blows.load(Ordering::Relaxed) > 0
        });
        let mut kept = sandbox.wire();
        let mut memory_kib = 0;
        let deadline = clock::mono() + PATIENCE;
        for (id, round) in (1..).zip(0..) {
            let blows = siege.blows.load(Ordering::Relaxed);
            let busy = siege.busy.load(Ordering::Relaxed);
            let done = blows >= enough.blows && busy >= enough.busy;
            if round >= ROUNDS && (done || clock::mono() > deadline) {
                assert!(
                    done,
                    "{blows} blows, {busy} times `busy`: less than {enough:?}"
                );
                break;
            }
            let answer = in_time(sandbox, |steps| {
                steps.take("an answer", || asking.ask(&mut kept, id))
            });
            assert_eq!(answer["ok"]["child"], "web", "{answer}");
            let answer = in_time(sandbox, |steps| {
                let stream = steps.take("to connect", || TcpStream::connect(sandbox.address()));
                let mut wire = steps.take("the hello", || Wire::on(stream.expect("a listener")));
                steps.take("the answer", || asking.ask(&mut wire, 1))
            });
            assert_eq!(answer["ok"]["child"], "web", "{answer}");
            if round % 10 == 0 {
                let output = asking.client(sandbox, &["check", "web"]);
                assert_eq!(output.code, 0, "{output:?}");
            }
            memory_kib = memory_kib.max(memory(sandbox));
            thread::sleep(Duration::from_millis(20));
        }
        assert!(memory_kib < MEMORY_KIB_MAX, "{memory_kib} KiB");
        println!("memory at most: {memory_kib} KiB");
    });
}

// What must be as before

/// What the server has in memory that is its own, in KiB.
fn memory(sandbox: &Sandbox) -> u64 {
    let text = status_of(sandbox.server_pid(), "RssAnon").expect("a live server");
    let number = text.split_ascii_whitespace().next().expect("a number");
    number.parse().expect("a number")
}

fn open_files(sandbox: &Sandbox) -> usize {
    fs::read_dir(format!("/proc/{}/fd", sandbox.server_pid()))
        .expect("a live server")
        .count()
}

/// What a server was like before anything was done to it.
struct Before {
    asking: Asking,
    row: Value,
    files: usize,
    memory_kib: u64,
}

impl Before {
    fn of(sandbox: &Sandbox, asking: Asking) -> Self {
        Self {
            asking,
            row: web(sandbox, asking),
            files: wait_for_files(sandbox),
            memory_kib: memory(sandbox),
        }
    }

    /// All is well again: everybody has gone, others come in, and nothing was done to a child.
    fn assert_again(&self, sandbox: &Sandbox) {
        wait_for("all connections gone", PATIENCE, || {
            open_files(sandbox) <= self.files
        });
        for _ in 0..2 * CONNECTIONS_MAX {
            assert!(sandbox.wire().hello.contains("\"hello\""));
        }
        let mut many: Vec<Wire> = (1..CONNECTIONS_PER_PEER_MAX)
            .map(|_| sandbox.wire())
            .collect();
        for wire in &mut many {
            let answer = self.asking.ask(wire, 1);
            assert_eq!(answer["ok"]["child"], "web", "{answer}");
        }
        drop(many);
        let row = web(sandbox, self.asking);
        for field in ["pid", "run", "state", "restarts", "hold", "started_at"] {
            assert_eq!(row[field], self.row[field], "{field}");
        }
        assert!(crate::sandbox::lives(pid_of(&row)));
        wait_for("all connections gone", PATIENCE, || {
            open_files(sandbox) <= self.files
        });
        let memory_kib = memory(sandbox);
        let kept = memory_kib.saturating_sub(self.memory_kib);
        println!("memory before: {} KiB, kept: {kept} KiB", self.memory_kib);
        assert!(kept < MEMORY_KEPT_KIB_MAX, "{kept} KiB more than before");
        for file in ["server.log", "state/audit.jsonl"] {
            let length = fs::metadata(sandbox.root().join(file)).unwrap().len();
            assert!(length < LOG_BYTES_MAX, "{file}: {length} bytes");
        }
        let log = sandbox.server_log();
        assert!(!log.contains("panicked"), "{log}");
        // And the client finds it as ever.
        assert_eq!(self.asking.client(sandbox, &["restart", "web"]).code, 0);
    }
}

fn web(sandbox: &Sandbox, asking: Asking) -> Value {
    let output = asking.client(sandbox, &["--json", "check", "web"]);
    let answer: Value = serde_json::from_str(&output.stdout).expect("an object");
    answer["children"][0].clone()
}

/// How many files it has open when nobody is connected.
fn wait_for_files(sandbox: &Sandbox) -> usize {
    let mut files = open_files(sandbox);
    crate::sandbox::stays("as many open files", Duration::from_millis(100), || {
        files = files.min(open_files(sandbox));
        true
    });
    files
}

/// A server with a child that runs, which takes only signed commands.
fn server() -> Sandbox {
    started(Sandbox::signed(""), Asking::Signed)
}

fn started(sandbox: Sandbox, asking: Asking) -> Sandbox {
    sandbox.write("web.yml", SLEEPER);
    wait_for("`web`", PATIENCE, || {
        asking.client(&sandbox, &["start", "web"]).code == 0
    });
    sandbox
}

#[test]
fn beside_random_bytes_others_are_served() {
    let sandbox = server();
    let before = Before::of(&sandbox, Asking::Signed);
    endure(
        &sandbox,
        Asking::Signed,
        &[(random_bytes, 3)],
        Enough {
            blows: 300,
            busy: 0,
        },
    );
    before.assert_again(&sandbox);
}

#[test]
fn beside_half_lines_others_are_served() {
    let sandbox = server();
    let before = Before::of(&sandbox, Asking::Signed);
    // Three of them hold more than there are places; who makes room is told so.
    let enough = Enough {
        blows: 1_000,
        busy: 300,
    };
    endure(&sandbox, Asking::Signed, &[(half_lines, 3)], enough);
    before.assert_again(&sandbox);
}

#[test]
fn beside_a_flood_of_bad_tokens_others_are_served() {
    let sandbox = server();
    let before = Before::of(&sandbox, Asking::Signed);
    let attackers = 20;
    // Who fails too often is told so.
    let enough = Enough {
        blows: 500,
        busy: 100,
    };
    endure(&sandbox, Asking::Signed, &[(bad_tokens, attackers)], enough);
    before.assert_again(&sandbox);
    let told = sandbox.server_log().matches("request refused").count();
    // Each of them a burst, and then one a second with the number of those that were left out.
    let each = AUDITED_REFUSALS_PER_PEER_MAX + 2 * PATIENCE.as_secs() as u32;
    let most = usize::try_from(attackers * each).unwrap();
    assert!((1..=most).contains(&told), "{told} lines");
}

#[test]
fn beside_two_thousand_silent_connections_others_are_served() {
    const ALL: usize = 2_000;
    if !may_open(ALL + 1_000) {
        return skip("tests may not open enough files");
    }
    let sandbox = server();
    let before = Before::of(&sandbox, Asking::Signed);
    let attackers = u32::try_from(ALL / IDLE_EACH).unwrap();
    let enough = Enough {
        blows: ALL,
        busy: ALL - CONNECTIONS_MAX,
    };
    endure(&sandbox, Asking::Signed, &[(silence, attackers)], enough);
    before.assert_again(&sandbox);
    for _ in 0..ALL {
        assert!(sandbox.wire().hello.contains("\"hello\""));
    }
}

/// Lets this process open so many files, as far as it may.
fn may_open(files: usize) -> bool {
    let files = u64::try_from(files).expect("few");
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return true;
    }
    let raised = Rlimit {
        current: Some(files),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).is_ok()
}

/// As many other children, and as many faults of as many files.
const CHILDREN: usize = 300;

/// A server whose answers are long.
fn wordy(asking: Asking, settings: &str) -> Sandbox {
    let sandbox = match asking {
        Asking::Signed => {
            let sandbox = Sandbox::signed(settings);
            sandbox.admit("reader", &pair(Which::Other).public);
            sandbox
        }
        Asking::Unsigned => Sandbox::start(settings),
    };
    let faulty = "comand: x\nhooks: 3\nrepeat: often\noutput: nowhere\n";
    // Nobody minds if one of them is read half written: it is read again.
    for number in 0..CHILDREN {
        for (kind, text) in [("child", SLEEPER), ("bad", faulty)] {
            let path = sandbox.loadpath().join(format!("{kind}-{number}.yml"));
            fs::write(path, text).expect("a writable sandbox");
        }
    }
    wait_for("all children", PATIENCE, || {
        let output = asking.client(&sandbox, &["--json", "check", "--all"]);
        let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let children = answer["children"].as_array().map_or(0, Vec::len);
        children >= 2 * CHILDREN
    });
    started(sandbox, asking)
}

#[test]
fn beside_slow_readers_of_long_answers_others_are_served() {
    let sandbox = wordy(Asking::Signed, "");
    let before = Before::of(&sandbox, Asking::Signed);
    endure(
        &sandbox,
        Asking::Signed,
        &[(slow_reading, 4)],
        Enough { blows: 48, busy: 0 },
    );
    before.assert_again(&sandbox);
}

#[test]
fn beside_all_of_it_at_once_others_are_served() {
    let sandbox = wordy(Asking::Signed, "");
    let before = Before::of(&sandbox, Asking::Signed);
    let attacks: [(Attack, u32); 6] = [
        (random_bytes, 2),
        (half_lines, 2),
        (bad_tokens, 4),
        (silence, 4),
        (slow_reading, 4),
        (unsigned_commands, 2),
    ];
    let enough = Enough {
        blows: 1_000,
        busy: 100,
    };
    endure(&sandbox, Asking::Signed, &attacks, enough);
    before.assert_again(&sandbox);
}

#[test]
fn where_commands_are_not_signed_other_users_keep_nobody_from_being_served() {
    if !is_root() {
        return skip("only root can be somebody else");
    }
    let sandbox = started(Sandbox::start(""), Asking::Unsigned);
    let before = Before::of(&sandbox, Asking::Unsigned);
    let attacks: [(Attack, u32); 5] = [
        (random_bytes, 2),
        (half_lines, 2),
        (bad_tokens, 2),
        (silence, 4),
        (unsigned_commands, 4),
    ];
    let enough = Enough {
        blows: 1_000,
        busy: 100,
    };
    endure(&sandbox, Asking::Unsigned, &attacks, enough);
    before.assert_again(&sandbox);
}

#[test]
fn who_is_rightly_signed_is_served_beside_failures_from_his_own_address() {
    let sandbox = server();
    let address = sandbox.address();
    let failures = FAILURES_PER_PEER_MAX + 200;
    // The same user as who is to be served.
    let _alone = alone();
    let siege = Siege::new(address);
    thread::scope(|scope| {
        let _over = Over(&siege);
        for number in 0..20 {
            let siege = &siege;
            scope.spawn(move || bad_tokens(siege, number));
        }
        let wanted = usize::try_from(failures).unwrap() / 32;
        wait_for("failures", PATIENCE, || {
            siege.blows.load(Ordering::Relaxed) > wanted && siege.busy.load(Ordering::Relaxed) > 0
        });
        for _ in 0..ROUNDS {
            let answer = sandbox.wire().ask_signed(1, CHECK_WEB);
            assert_eq!(answer["ok"]["child"], "web", "{answer}");
            assert_eq!(sandbox.sign(&["check", "web"]).code, 0);
        }
    });
}

/// How many connect while the server has no time for them.
const CROWD: usize = 400;

#[test]
fn a_crowd_at_the_door_keeps_nobody_waiting_for_another_try() {
    // When the line of those who wait is full, the system tries again after a second.
    const TIME_MAX: Duration = Duration::from_millis(700);
    let sandbox = server();
    let before = Before::of(&sandbox, Asking::Signed);
    sandbox.signal_server(Signal::STOP);
    let crowd: Vec<OwnedFd> = (0..CROWD)
        .map(|_| begin_to_connect(sandbox.address()))
        .collect();
    let (wire, answer) = within(TIME_MAX, &sandbox, |steps| {
        let last = TcpStream::from(begin_to_connect(sandbox.address()));
        sandbox.signal_server(Signal::CONT);
        let mut wire = steps.take("the hello", || Wire::on(last));
        let answer = steps.take("the answer", || wire.ask_signed(1, CHECK_WEB));
        (wire, answer)
    });
    assert_eq!(answer["ok"]["child"], "web", "{answer}");
    drop((crowd, wire));
    before.assert_again(&sandbox);
}

/// A socket that is on its way there; whoever reads from it waits until it has arrived.
fn begin_to_connect(to: SocketAddr) -> OwnedFd {
    let (family, flags) = (AddressFamily::INET, SocketFlags::NONBLOCK);
    let socket = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(fault) => panic!("{fault}"),
    }
    rustix::io::ioctl_fionbio(&socket, false).expect("a socket");
    socket
}
