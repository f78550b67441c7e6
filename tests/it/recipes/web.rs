//! Web servers: nginx, and Python's.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::json;
use supervisor_rs::clock;

use super::{
    host::{Host, lacks, titled},
    page::Page,
};
use crate::sandbox::{PATIENCE, lives, skip, wait_for};

/// A request without an end: nginx waits for the rest of it.
struct Request(BufReader<TcpStream>);

impl Request {
    fn begin(host: &Host) -> Self {
        let port = host.here("8080").parse::<u16>().expect("a port");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("nginx");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n").unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends the rest, and returns the first line of the answer.
    fn end(mut self) -> String {
        self.0.get_mut().write_all(b"\r\n").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }
}

/// Whether nginx can be run here as the page has it.
pub(super) fn lacks_nginx() -> bool {
    if !geteuid().is_root() {
        skip("nginx of Debian's package writes where only root may");
        return true;
    }
    lacks(&["nginx", "curl"])
}

/// The workers of an nginx that will take requests.
fn workers(master: i32) -> Vec<i32> {
    let mut workers = titled(master, "worker process");
    workers.sort_unstable();
    workers
}

fn get(host: &Host, path: &str) -> String {
    let output = host.types(&format!("curl -sS http://127.0.0.1:8080{path}"));
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout
}

pub(super) fn nginx(page: &Page) {
    if lacks_nginx() {
        return;
    }
    let mut host = Host::of(page);
    let (reload, before) = page.steps.split_last().expect("steps");
    let said: String = before.iter().map(|step| host.take(step)).collect();
    assert!(said.ends_with("<h1>It works</h1>\n"), "{said}");
    let master = host.ready("web");
    let first = workers(master);
    assert_eq!(first.len(), 2);

    // HUP: other workers with another configuration, and the same run.
    host.put("/srv/web/site/index.html", "<h1>Still</h1>\n");
    let conf = page
        .file("/srv/web/nginx.conf")
        .replace("return 204", "return 299");
    host.put("/srv/web/nginx.conf", &conf);
    host.take(reload);
    wait_for("other workers", PATIENCE, || {
        let now = workers(master);
        now.len() == 2 && !now.iter().any(|pid| first.contains(pid))
    });
    let status = host.types("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/healthz");
    assert_eq!(status.stdout, "299");
    let row = host.row("web").unwrap();
    assert_eq!((&row["run"], &row["pid"]), (&json!(1), &json!(master)));

    // A fault keeps the old one serving, and is told.
    host.put("/srv/web/nginx.conf", "daemon off;\nnonsense;\n");
    let refused = host.refused(&["restart", "web"], "hook_failed", 1);
    assert!(refused.contains("nginx -t"), "{refused}");
    let said = fs::read_to_string(host.log_dir().join("web.err")).unwrap();
    assert!(said.contains("unknown directive \"nonsense\""), "{said}");
    assert_eq!(host.row("web").unwrap()["pid"], master);
    assert_eq!(get(&host, "/"), "<h1>Still</h1>\n");

    // QUIT lets what has begun end, and then all are gone.
    let request = Request::begin(&host);
    wait_for("the request to be taken", PATIENCE, || {
        // The queue of the listener is empty once a worker has it.
        get(&host, "/") == "<h1>Still</h1>\n"
    });
    host.note("web");
    let all = host.note("web");
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| host.done(&["stop", "web"]));
        host.wait_state("web", "stopping");
        assert_eq!(request.end(), "HTTP/1.1 200 OK\r\n");
        let answer = stop.join().unwrap();
        assert_eq!(answer["exit"]["code"], 0, "{answer}");
    });
    assert!(!all.iter().any(|pid| lives(*pid)), "{all:?}");
}

#[test]
fn nginx_goes_on_while_its_server_is_killed_and_all_of_it_ends_with_a_stop_of_either_scope() {
    if lacks_nginx() {
        return;
    }
    let page = Page::read("nginx");
    for scope in ["group", "tree"] {
        let mut host = Host::of(&page);
        for step in &page.steps[..2] {
            host.take(step);
        }
        let child = page.file("/etc/supervisor-rs/children/web.yml");
        let stop = format!("stop:\n  scope: {scope}\n");
        host.put(
            "/etc/supervisor-rs/children/web.yml",
            &child.replace("stop:\n", &stop),
        );
        host.wait_run("web", 1);
        let master = host.ready("web");
        let first = workers(master);
        let request = Request::begin(&host);
        host.restart_server();
        assert_eq!(host.ready("web"), master);
        assert_eq!(workers(master), first);
        assert_eq!(request.end(), "HTTP/1.1 200 OK\r\n");
        let answer = host.stop_whole("web");
        assert_eq!(answer["exit"]["code"], 0, "{answer}");
    }
}

pub(super) fn http_server(page: &Page) {
    if lacks(&["python3", "curl"]) {
        return;
    }
    let mut host = Host::follow(page);
    let first = host.ready("files");
    // A slow answer is forgiven: it goes on before three probes have failed.
    let pid = Pid::from_raw(first).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let reason = |host: &Host| {
        let row = host.row("files").unwrap_or_default();
        row["reason"].as_str().unwrap_or_default().to_owned()
    };
    wait_for("a probe that fails", PATIENCE, || {
        reason(&host).contains("1 of 3")
    });
    kill_process(pid, Signal::CONT).unwrap();
    wait_for("health", PATIENCE, || reason(&host).is_empty());
    assert_eq!(host.ready("files"), first);

    kill_process(pid, Signal::STOP).unwrap();
    let begun = clock::mono();
    let row = host.wait_run("files", 2);
    let took = clock::mono() - begun;
    // Three probes, each given up after a second, and two intervals between them.
    assert!(took > Duration::from_secs(5), "{took:?}");
    host.wait_state("files", "running");
    let history = &host.json(&["check", "files"])["children"][0]["history"];
    assert_eq!(history[1]["ended_by"]["cause"], "unhealthy", "{history}");
    assert_eq!(history[1]["exit"]["signal"], "SIGTERM", "{history}");
    assert!(!lives(first));
    assert_eq!(row["run"], 2);
    let why = host.client(&["why", "files"]);
    assert!(
        why.stdout.contains("because it failed its health probe"),
        "{why:?}"
    );
    assert_eq!(
        fs::read_to_string(host.here("/srv/files/hello.txt")).unwrap(),
        host.types("curl -fsS http://127.0.0.1:8000/hello.txt")
            .stdout
    );
}
