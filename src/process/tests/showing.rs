//! What runs show in files: on a descriptor of theirs, in their output.

use std::{
    io::{Seek, Write},
    os::unix::fs::PermissionsExt,
};

use super::*;
use crate::spec::{OpenMode, Ready, Sign, Word};

/// How long it is waited for nothing.
const SILENCE: Duration = Duration::from_millis(100);

impl World {
    fn showing(&mut self, sign: Sign, script: &str) -> Spec {
        self.processes.listen_in(self.folder.path());
        Spec {
            ready: Some(Ready {
                sign,
                timeout: Ready::TIMEOUT,
                interval: Ready::INTERVAL,
            }),
            ..self.shell(script)
        }
    }

    fn start_one(&mut self, spec: &Spec) -> Started {
        self.processes.start(&web(), ONE, spec, None).unwrap()
    }

    async fn shown(&mut self) -> Vec<Word> {
        match self.facts().await.as_slice() {
            [Fact::Notified { child, run, words }] if *child == web() && *run == ONE => {
                words.clone()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn shows_nothing(&mut self) {
        let told = tokio::time::timeout(SILENCE, self.processes.wait()).await;
        assert!(told.is_err(), "{told:?}");
    }

    fn files(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.path("notify")).into_iter().flatten();
        all.map(|entry| entry.unwrap().path()).collect()
    }

    fn append(&self, name: &str, bytes: &[u8]) {
        let file = fs::OpenOptions::new().append(true).open(self.path(name));
        file.unwrap().write_all(bytes).unwrap();
    }

    /// As another server finds it after a crash.
    fn take_back(&mut self, spec: &Spec) {
        let (pid, start_ticks) = (self.process().pid, self.process().start_ticks);
        self.processes = Processes::beside_others("server").unwrap();
        self.processes.listen_in(self.folder.path());
        let taken = self.processes.adopt(&web(), ONE, pid, start_ticks);
        assert_eq!(taken, Adoption::Live);
        self.processes.await_sign_again(&web(), ONE, spec);
    }
}

fn log(pattern: &str) -> Sign {
    Sign::Log(pattern.to_owned())
}

#[tokio::test]
async fn a_line_on_its_descriptor_shows_a_run_ready_and_nothing_else_is_left_open_in_it() {
    let mut world = World::new();
    let script =
        "ls -l /proc/self/fd > fds; printf half >&5; read go < go; echo >&5; exec sleep 300";
    let spec = world.showing(Sign::Fd(5), script);
    rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
    world.start_one(&spec);
    let files = world.files();
    assert_eq!(files.len(), 1);
    assert_eq!(
        fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777,
        0o600
    );
    until("half a line", || fs::read(&files[0]).unwrap() == b"half").await;
    world.shows_nothing().await;
    let fds = world.read("fds");
    let numbers: Vec<i32> = fds
        .lines()
        .filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next()?.parse().ok())
        .collect();
    // `ls` has the directory open, too.
    assert_eq!(numbers, [0, 1, 2, 3, 5], "{fds}");
    fs::write(world.path("go"), "go\n").unwrap();
    assert_eq!(world.shown().await, [Word::Wrote]);
    world.shows_nothing().await;
    assert_eq!(
        world.files(),
        Vec::<PathBuf>::new(),
        "it has served its time"
    );
}

#[tokio::test]
async fn a_line_that_was_written_while_no_server_lived_is_found() {
    let mut world = World::new();
    let spec = world.showing(Sign::Fd(3), "echo >&3; exec 3>&-; exec sleep 300");
    world.start_one(&spec);
    let files = world.files();
    until("the line", || fs::read(&files[0]).unwrap() == b"\n").await;
    world.take_back(&spec);
    assert_eq!(world.files(), files);
    assert_eq!(world.shown().await, [Word::Wrote]);
}

#[tokio::test]
async fn a_whole_line_of_this_runs_output_counts_and_none_from_before() {
    let mut world = World::new();
    fs::write(world.path("out"), "up\n").unwrap();
    let spec = world.showing(log("^up$"), "exec sleep 300");
    world.start_one(&spec);
    world.shows_nothing().await;
    world.append("out", b"not up\nu");
    world.append("out", b"p");
    world.shows_nothing().await;
    world.append("out", b"\r\n");
    assert_eq!(world.shown().await, [Word::Logged]);
    // Either stream will do, and text that is none.
    let spec = world.showing(log("up"), "exec sleep 300");
    let second = world.processes.start(&named("db"), ONE, &spec, None);
    second.unwrap();
    world.append("err", b"\xff\xfe up \xff\n");
    match world.facts().await.as_slice() {
        [Fact::Notified { child, .. }] => assert_eq!(*child, named("db")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_is_emptied_is_read_from_its_beginning() {
    let mut world = World::new();
    let old = "old\n".repeat(100);
    fs::write(world.path("out"), &old).unwrap();
    let mut spec = world.showing(log("^new$"), "echo first; exec sleep 300");
    world.start_one(&spec);
    world.says("out", "first").await;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(world.path("out"))
        .unwrap();
    file.set_len(0).unwrap();
    file.rewind().unwrap();
    world.shows_nothing().await;
    world.append("out", b"new\n");
    assert_eq!(world.shown().await, [Word::Logged]);
    // By the run itself too.
    fs::write(world.path("out"), "new\n").unwrap();
    if let Sink::File { mode, .. } = &mut spec.stdout {
        *mode = OpenMode::Create;
    }
    world
        .processes
        .start(&named("db"), ONE, &spec, None)
        .unwrap();
    world.shows_nothing().await;
    world.append("out", b"new\n");
    assert!(matches!(
        world.facts().await.as_slice(),
        [Fact::Notified { .. }]
    ));
}

#[tokio::test]
async fn a_line_without_end_is_kept_in_part_and_keeps_nobody_waiting() {
    let mut world = World::new();
    let spec = world.showing(log("up"), "exec sleep 300");
    world.start_one(&spec);
    let other = world.shell("exit 7");
    for _ in 0..64 {
        world.append("out", &[b'x'; 128 * 1024]);
    }
    world
        .processes
        .start(&named("db"), ONE, &other, None)
        .unwrap();
    match world.facts().await.as_slice() {
        [Fact::Exited { child, exit, .. }] => {
            assert_eq!((child, *exit), (&named("db"), Exit::Code(7)));
        }
        other => panic!("{other:?}"),
    }
    world.append("out", b"up\nup\n");
    assert_eq!(world.shown().await, [Word::Logged]);
}

#[tokio::test]
async fn an_expression_that_would_be_exponential_elsewhere_takes_its_line_and_no_more() {
    let mut world = World::new();
    let spec = world.showing(log("^(a+)+(a|a)*$"), "exec sleep 300");
    world.start_one(&spec);
    let begun = clock::mono();
    let mut line = vec![b'a'; 10_000];
    line.extend(b"!\n");
    for _ in 0..20 {
        world.append("out", &line);
    }
    world.append("out", b"aaa\n");
    assert_eq!(world.shown().await, [Word::Logged]);
    assert!(clock::mono() - begun < PATIENCE / 2);
}

#[tokio::test]
async fn what_was_logged_while_no_server_lived_is_found_under_its_new_name_too() {
    for moved in [false, true] {
        let mut world = World::new();
        fs::write(world.path("out"), "up\n").unwrap();
        let spec = world.showing(
            log("^up$"),
            "echo begun; read go < go; echo up; exec sleep 300",
        );
        rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
        world.start_one(&spec);
        world.says("out", "begun").await;
        world.shows_nothing().await;
        if moved {
            fs::rename(world.path("out"), world.path("out.1")).unwrap();
            fs::write(world.path("out"), "up\n").unwrap();
        }
        world.take_back(&spec);
        world.shows_nothing().await;
        fs::write(world.path("go"), "go\n").unwrap();
        assert_eq!(world.shown().await, [Word::Logged]);
    }
}

#[tokio::test]
async fn another_program_goes_on_waiting() {
    for sign in [Sign::Fd(3), log("up")] {
        let mut world = World::new();
        let script = "read go < go; echo >&3; echo up; exec sleep 300";
        let spec = world.showing(sign, script);
        rustix::fs::mkfifoat(rustix::fs::CWD, world.path("go"), Mode::RUSR | Mode::WUSR).unwrap();
        world.start_one(&spec);
        let folder = world.folder.path().to_owned();
        assert_eq!(world.hand_over_hearing(&folder), []);
        world.shows_nothing().await;
        fs::write(world.path("go"), "go\n").unwrap();
        assert_eq!(world.shown().await.len(), 1);
    }
}

#[tokio::test]
async fn output_that_cannot_be_read_is_told_before_anything_is_done() {
    let mut world = World::new();
    let mut spec = world.showing(log("up"), "exec sleep 300");
    spec.stdout = Sink::Inherit;
    spec.stderr = Sink::File {
        path: "/dev/null".into(),
        mode: OpenMode::Append,
    };
    let why = world.processes.preflight(&spec).unwrap_err();
    assert!(
        why.contains("neither stream goes to a regular file; hint: "),
        "{why}"
    );
    let refused = world.processes.start(&web(), ONE, &spec, None).unwrap_err();
    assert_eq!(refused, NotStarted::Refused(why));
    assert_eq!(world.files(), Vec::<PathBuf>::new());
}
