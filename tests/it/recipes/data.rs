//! Programs that keep data: redis and PostgreSQL.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::geteuid;
use supervisor_rs::clock;

use super::{
    host::{Host, lacks, titled},
    page::Page,
};
use crate::sandbox::{PATIENCE, lives, skip, wait_for};

/// A connection to redis.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(host: &Host) -> Self {
        let port = host.here("6379").parse::<u16>().expect("a port");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("redis");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, command: &str) -> String {
        let line = format!("{command}\r\n");
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

pub(super) fn redis(page: &Page) {
    if lacks(&["redis-server", "redis-cli"]) {
        return;
    }
    let mut host = Host::of(page);
    let said: String = page.steps.iter().map(|step| host.take(step)).collect();
    assert!(said.contains("`cache` is ready: run 2"), "{said}");
    assert!(said.ends_with("\nhello\n"), "it has saved its data: {said}");
    let pid = host.ready("cache");
    let told = host.client(&["check", "cache"]).stdout;
    assert!(told.contains("Ready to accept connections"), "{told}");

    // A crash of our server is none of a client's business.
    let mut client = Redis::connect(&host);
    assert_eq!(client.ask("SET more data"), "+OK");
    let id = client.ask("CLIENT ID");
    host.restart_server();
    assert_eq!(host.ready("cache"), pid);
    assert_eq!(client.ask("CLIENT ID"), id);

    // Its data is on disk when a stop has been answered, and was not before.
    let dump = host.here("/srv/cache/dump.rdb");
    fs::remove_file(&dump).unwrap();
    let answer = host.stop_whole("cache");
    assert_eq!(answer["exit"]["code"], 0, "{answer}");
    assert!(fs::metadata(&dump).unwrap().len() > 0);
    host.done(&["start", "cache", "--wait"]);
    host.note("cache");
    let mut client = Redis::connect(&host);
    assert_eq!(client.ask("EXISTS greeting more"), ":2");
}

#[test]
fn redis_is_not_ready_while_it_still_reads_its_data() {
    if lacks(&["redis-server", "redis-cli"]) {
        return;
    }
    let page = Page::read("redis");
    let mut host = Host::of(&page);
    // Three milliseconds for each key: more than four seconds in all.
    let conf = page.file("/srv/cache/redis.conf");
    let child = page.file("/etc/supervisor-rs/children/cache.yml");
    host.put("/srv/cache/redis.conf", conf);
    host.put("/etc/supervisor-rs/children/cache.yml", child);
    host.ready("cache");
    let mut client = Redis::connect(&host);
    for key in 0..1_500 {
        assert_eq!(client.ask(&format!("SET key{key} value")), "+OK");
    }
    let slow = format!("{conf}key-load-delay 3000\nloading-process-events-interval-bytes 1024\n");
    host.put("/srv/cache/redis.conf", &slow);
    let begun = clock::mono();
    host.done(&["restart", "cache"]);
    host.note("cache");
    wait_for("the port", PATIENCE, || {
        let port = host.here("6379");
        TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()
    });
    let answer = Redis::connect(&host).ask("PING");
    assert!(answer.starts_with("-LOADING"), "{answer}");
    assert_eq!(host.row("cache").unwrap()["state"], "starting");
    host.ready("cache");
    assert!(clock::mono() - begun > Duration::from_secs(1));
    assert_eq!(Redis::connect(&host).ask("PING"), "+PONG");
}

/// Whether PostgreSQL can be run here.
pub(super) fn lacks_postgres() -> bool {
    if lacks(&["/usr/lib/postgresql/15", "setpriv", "psql"]) {
        return true;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let there = users.lines().any(|line| line.starts_with("postgres:"));
    if geteuid().is_root() && !there {
        skip("there is no user `postgres`");
        return true;
    }
    false
}

/// A session of PostgreSQL, which lasts.
struct Session {
    psql: Child,
    answers: BufReader<ChildStdout>,
}

impl Session {
    fn open(host: &Host) -> Self {
        let line = host.here(
            "exec setpriv --reuid postgres --regid postgres --init-groups psql -qAtX -h /srv/db -p \
             5432 postgres",
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &line])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut psql = bash.spawn().expect("bash");
        let answers = BufReader::new(psql.stdout.take().expect("a pipe"));
        Self { psql, answers }
    }

    /// Says something that has one line for an answer.
    fn ask(&mut self, query: &str) -> String {
        let input = self.psql.stdin.as_mut().expect("a pipe");
        writeln!(input, "{query};").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _may_have_ended = self.psql.kill();
        let _reaped = self.psql.wait();
    }
}

/// What PostgreSQL has said since it said so much.
fn said_since(host: &Host, length: usize) -> String {
    let log = fs::read_to_string(host.log_dir().join("db.err")).unwrap();
    log[length..].to_owned()
}

/// Stops it, with sessions that are open, and looks whether that was a fast shutdown.
fn stop_fast(host: &mut Host) {
    let mut session = Session::open(host);
    session.ask(
        "create table if not exists kept (n int); begin; insert into kept values (1); select 1",
    );
    let before = said_since(host, 0).len();
    let answer = host.stop_whole("db");
    assert_eq!(answer["exit"]["code"], 0, "{answer}");
    let said = said_since(host, before);
    for part in [
        "received fast shutdown request",
        "database system is shut down",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("immediate shutdown"), "{said}");
}

/// Starts it again, and looks whether it had to recover.
fn start_clean(host: &mut Host) {
    let before = said_since(host, 0).len();
    host.done(&["start", "db", "--wait"]);
    host.note("db");
    let said = said_since(host, before);
    assert!(said.contains("database system was shut down at"), "{said}");
    assert!(!said.contains("not properly shut down"), "{said}");
    let rows = Session::open(host).ask("select count(*) from kept");
    assert_eq!(rows, "0", "the transaction was rolled back");
}

pub(super) fn postgres(page: &Page) {
    if lacks_postgres() {
        return;
    }
    let mut host = Host::of(page);
    let said: String = page.steps.iter().map(|step| host.take(step)).collect();
    assert!(said.contains("PostgreSQL 1"), "{said}");
    let pid = host.ready("db");
    assert_eq!(
        titled(pid, "setpriv"),
        Vec::<i32>::new(),
        "it became the program"
    );
    assert!(!titled(pid, "checkpointer").is_empty());

    // A crash of our server is none of a session's business.
    let mut session = Session::open(&host);
    let backend = session.ask("select pg_backend_pid()");
    host.restart_server();
    assert_eq!(host.ready("db"), pid);
    assert_eq!(session.ask("select pg_backend_pid()"), backend);
    assert!(lives(backend.parse().unwrap()));

    stop_fast(&mut host);
    start_clean(&mut host);
    // With all of it told at once it ends as well.
    let path = "/etc/supervisor-rs/children/db.yml";
    let tree = page.file(path).replace("stop:\n", "stop:\n  scope: tree\n");
    host.put(path, &tree);
    host.wait_run("db", 3);
    host.ready("db");
    stop_fast(&mut host);
    start_clean(&mut host);
    // A PostgreSQL that is killed leaves its shared memory behind.
    host.stop_whole("db");
}
