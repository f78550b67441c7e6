//! A process that writes itself down before it is its program.

use std::{fs::File, io::Write, os::fd::OwnedFd};

use rustix::fs::{FlockOperation, flock};

use super::*;

/// Text that is easily read, where a record would stand.
struct Book {
    file: OwnedFd,
    lock: OwnedFd,
}

impl Book {
    fn open(world: &World) -> Self {
        let open = |name| {
            let mut options = fs::OpenOptions::new();
            let file = options.append(true).create(true).open(world.path(name));
            OwnedFd::from(file.unwrap())
        };
        Self {
            file: open("book"),
            lock: open("lock"),
        }
    }

    fn birth(&self) -> Birth<'_> {
        Birth {
            file: self.file.as_fd(),
            lock: self.lock.as_fd(),
            text: [b"pid ", b" since ", b"\n"],
            prefix: |text| {
                let digit = b'0' + u8::try_from(text.len() % 10).unwrap_or(0);
                [digit, b' ', b' ', b' ', b' ', b' ', b' ', b' ']
            },
            never: b"never\n",
        }
    }
}

fn line(started: Started) -> String {
    let text = format!("pid {} since {}\n", started.pid, started.start_ticks);
    format!("{}       {text}", text.len() % 10)
}

#[tokio::test]
async fn a_run_is_on_record_before_its_program_can_do_anything() {
    let mut world = World::new();
    let book = Book::open(&world);
    // Whatever else writes there is not disturbed.
    File::from(book.file.try_clone().unwrap())
        .write_all(b"before\n")
        .unwrap();
    let spec = world.shell("cat book > seen; exec sleep 100");
    let birth = book.birth();
    let started = world
        .processes
        .start(&web(), ONE, &spec, Some(&birth))
        .unwrap();
    let stat = identity::stat(started.pid).unwrap();
    assert_eq!(started.start_ticks, stat.start_ticks);
    let expected = format!("before\n{}", line(started));
    world.says("seen", "since").await;
    assert_eq!(world.read("seen"), expected, "it finds itself written down");
    assert_eq!(world.read("book"), expected);
}

#[tokio::test]
async fn a_program_has_neither_the_record_nor_its_lock_open_any_more() {
    for descriptors in [Descriptors::All, Descriptors::Few] {
        let mut world = World::new();
        world.processes.descriptors = descriptors;
        let book = Book::open(&world);
        flock(&book.lock, FlockOperation::LockExclusive).unwrap();
        // `ls` has one of its own, for the directory.
        let spec = world.spec(&["/bin/ls", "/proc/self/fd"]);
        let birth = book.birth();
        world
            .processes
            .start(&web(), ONE, &spec, Some(&birth))
            .unwrap();
        assert_eq!(world.exit().await, Exit::Code(0));
        assert_eq!(world.read("out"), "0\n1\n2\n3\n", "{descriptors:?}");
        let standard = &world.processes.standard;
        for slot in [&standard.record, &standard.lock] {
            let to = fs::read_link(format!("/proc/self/fd/{}", slot.as_raw_fd())).unwrap();
            assert_eq!(to, PathBuf::from("/dev/null"));
        }
        // A file of tests that run beside this one may be copied by a start just now.
        drop(book.lock);
        let again = Book::open(&world);
        until("the lock is free", || {
            flock(&again.lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_takes_its_record_back() {
    let mut world = World::new();
    let book = Book::open(&world);
    // Found, and no program: what only exec can tell.
    fs::write(world.path("web"), "\u{7f}ELF").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.path("web"), mode).unwrap();
    let spec = world.spec(&["./web"]);
    let birth = book.birth();
    let error = world
        .processes
        .start(&web(), ONE, &spec, Some(&birth))
        .unwrap_err();
    assert!(matches!(error, NotStarted::Refused(_)), "{error}");
    let lines = world.read("book");
    let lines: Vec<&str> = lines.lines().collect();
    assert!(
        matches!(lines.as_slice(), [one, "never"] if one.contains("pid ")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn what_fails_before_leaves_no_record() {
    let mut world = World::new();
    let book = Book::open(&world);
    let mut spec = world.shell("exit 0");
    spec.workdir = world.path("missing");
    let birth = book.birth();
    world
        .processes
        .start(&web(), ONE, &spec, Some(&birth))
        .unwrap_err();
    assert_eq!(world.read("book"), "");
}

#[tokio::test]
async fn a_run_that_cannot_be_written_down_is_not_executed_i1() {
    let mut world = World::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let book = Book {
        file: full.into(),
        ..Book::open(&world)
    };
    let spec = world.shell("touch ran");
    let birth = book.birth();
    let error = world
        .processes
        .start(&web(), ONE, &spec, Some(&birth))
        .unwrap_err();
    assert!(
        matches!(&error, NotStarted::NotRecorded(why) if why.contains("No space left")),
        "{error}"
    );
    assert!(!world.path("ran").exists());
    assert_eq!(world.processes.live_count(), 0);
    // A limit of files' sizes (`ulimit -f`) and a record that is too long are told likewise.
    let long = [b'x'; 600];
    let book = Book::open(&world);
    let birth = Birth {
        text: [&long, b"", b""],
        ..book.birth()
    };
    let error = world
        .processes
        .start(&web(), ONE, &spec, Some(&birth))
        .unwrap_err();
    assert!(matches!(error, NotStarted::NotRecorded(_)), "{error}");
    assert!(!world.path("ran").exists());
    assert_eq!(world.read("book"), "");
}
