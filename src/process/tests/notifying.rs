//! What runs say of themselves, and what they cannot do by saying it.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

use super::*;
use crate::spec::{Ready, Sign, Word};

/// How long it is waited for nothing.
const SILENCE: Duration = Duration::from_millis(100);

/// How much is too much to be heard in a turn.
const MANY: usize = 5_000;

impl World {
    fn hearing() -> Self {
        let mut world = Self::new();
        world.processes.listen_in(world.folder.path());
        world
    }

    fn speaker(&self, script: &str) -> Spec {
        Spec {
            ready: Some(Ready {
                sign: Sign::Notify,
                timeout: Ready::TIMEOUT,
                interval: Ready::INTERVAL,
            }),
            ..self.shell(script)
        }
    }

    /// Starts a run that can be heard; gives where.
    async fn start_speaker(&mut self, run: RunId) -> PathBuf {
        let file = format!("socket-{run}");
        let script = format!("echo $NOTIFY_SOCKET > {file}; exec sleep 300");
        let spec = self.speaker(&script);
        self.processes.start(&web(), run, &spec, None).unwrap();
        until("the socket's name", || self.read(&file).ends_with('\n')).await;
        self.read(&file).trim().into()
    }

    /// What is said next.
    async fn words(&mut self) -> Vec<Word> {
        match self.facts().await.as_slice() {
            [Fact::Notified { child, run, words }] if *child == web() && *run == ONE => {
                words.clone()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn hears_nothing(&mut self) {
        let told = tokio::time::timeout(SILENCE, self.processes.wait()).await;
        assert!(told.is_err(), "{told:?}");
    }
}

fn mouth(path: &std::path::Path) -> UnixDatagram {
    let mouth = UnixDatagram::unbound().unwrap();
    mouth.connect(path).unwrap();
    mouth
}

/// Sends a text with these descriptors.
fn send_with(mouth: &UnixDatagram, text: &str, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(mouth, &text, &mut control, SendFlags::empty()).unwrap();
}

/// Whether nobody has the other end of a pipe any more.
fn is_hung_up(reader: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(reader, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).unwrap() > 0
}

#[tokio::test]
async fn what_a_run_says_is_told_and_whose_word_it_is() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    mouth.send(b"STATUS=busy\nREADY=1\n").unwrap();
    let busy = Word::Status("busy".to_owned());
    assert_eq!(world.words().await, [busy, Word::Ready]);
    // Whatever it names, the socket says which run it is.
    mouth
        .send(b"NOTIFY_SOCKET=/run/other\nSUPERVISOR_RS_RUN=server/db/1\nSTOPPING=1")
        .unwrap();
    assert_eq!(world.words().await, [Word::Stopping]);
    mouth.send(b"X_NOTHING=1").unwrap();
    world.hears_nothing().await;
}

#[tokio::test]
async fn only_the_runs_user_can_write_to_its_socket() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    // Not for want of a way to it alone.
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(path.parent().unwrap(), open).unwrap();
    as_nobody(world.folder.path(), || {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let stranger = UnixDatagram::unbound().unwrap();
        let refused = stranger.send_to(b"READY=1", &path);
        let denied = refused.is_err_and(|it| it.kind() == io::ErrorKind::PermissionDenied);
        let own = fs::metadata(&path).is_ok_and(|it| {
            std::os::unix::fs::MetadataExt::uid(&it) == rustix::process::geteuid().as_raw()
        });
        assert!(denied || own);
    });
    world.hears_nothing().await;
}

#[tokio::test]
async fn a_datagram_that_is_too_long_is_passed_over_and_the_next_one_heard() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    let long = format!("READY=1\nSTATUS={}", "x".repeat(5_000));
    mouth.send(long.as_bytes()).unwrap();
    world.hears_nothing().await;
    mouth.send(b"RELOADING=1").unwrap();
    assert_eq!(world.words().await, [Word::Reloading]);
}

#[tokio::test]
async fn what_is_said_before_an_end_is_told_comes_before_it() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    let pid = world.process().pid;
    let number = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    until("its end", || !lives(pid)).await;
    // A daemon that was forked off speaks for the run as well.
    mouth
        .send(format!("MAINPID={}", i32::MAX).as_bytes())
        .unwrap();
    let facts = world.facts().await;
    let [
        Fact::Notified { words, .. },
        Fact::Exited {
            exit: Exit::Signal(9),
            ..
        },
    ] = facts.as_slice()
    else {
        panic!("{facts:?}")
    };
    assert_eq!(*words, [Word::Main(Some(i32::MAX))]);
}

#[tokio::test]
async fn thousands_of_datagrams_keep_nobody_waiting() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let other = world.shell("exit 7");
    let sent = Arc::new(AtomicBool::new(false));
    let all = Arc::clone(&sent);
    let flood = std::thread::spawn(move || {
        let mouth = mouth(&path);
        let said = |n| mouth.send(format!("STATUS={n}\nREADY=1").as_bytes());
        all.store((0..MANY).all(|n| said(n).is_ok()), Relaxed);
    });
    let mut turns = 0;
    let exit = loop {
        let facts = world.facts().await;
        turns += 1;
        if turns == 3 {
            let db = world.processes.start(&named("db"), ONE, &other, None);
            db.unwrap();
        }
        let mut exit = None;
        for fact in &facts {
            match fact {
                Fact::Notified { words, .. } => assert_eq!(words.len(), 2, "{words:?}"),
                Fact::Exited {
                    child, exit: how, ..
                } if *child == named("db") => exit = Some(*how),
                other => panic!("{other:?}"),
            }
        }
        if let Some(exit) = exit {
            break exit;
        }
    };
    assert_eq!(exit, Exit::Code(7));
    assert!(!sent.load(Relaxed), "the flood goes on");
    // Nobody listens any more.
    world.processes.ears.close(&web(), ONE);
    flood.join().unwrap();
    assert!(!sent.load(Relaxed));
}

#[tokio::test]
async fn descriptors_that_come_along_are_closed() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let copies = (0..12).map(|_| writer.try_clone().unwrap());
    let mut all: Vec<OwnedFd> = copies.collect();
    all.push(writer);
    send_with(&mouth, "READY=1", &all);
    drop(all);
    assert_eq!(world.words().await, [Word::Ready]);
    assert!(is_hung_up(&reader));
    // Nor does a barrier hold more than one, or one of a datagram that is too long.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let two = [writer.try_clone().unwrap(), writer];
    send_with(&mouth, "BARRIER=1\nREADY=1", &two);
    drop(two);
    assert_eq!(world.words().await, [Word::Ready]);
    assert!(is_hung_up(&reader));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    send_with(&mouth, &"x".repeat(5_000), &[writer]);
    world.hears_nothing().await;
    assert!(is_hung_up(&reader));
}

#[tokio::test]
async fn a_barrier_is_passed_when_all_before_it_was_handled() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    mouth.send(b"READY=1").unwrap();
    send_with(&mouth, "BARRIER=1", &[writer]);
    assert_eq!(world.words().await, [Word::Ready]);
    assert!(!is_hung_up(&reader), "it was told, and is not handled yet");
    world.hears_nothing().await;
    assert!(is_hung_up(&reader));
    // With nothing before it, it is passed at once.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    send_with(&mouth, "BARRIER=1", &[writer]);
    world.hears_nothing().await;
    assert!(is_hung_up(&reader));
}

#[tokio::test]
async fn a_socket_goes_with_its_run_and_what_is_left_of_others_with_the_next_server() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let folder = path.parent().unwrap().to_owned();
    fs::write(folder.join("0123456789ab"), "").unwrap();
    world.processes.forget_others_ears();
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    assert_eq!(left, [path]);
    world.processes.signal(&web(), ONE, Signal::Kill, GROUP);
    world.exit().await;
    world.processes.reap(&web(), ONE, Leftovers::Leave);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    let missing = Spec {
        command: vec!["/no/such/program".to_owned()],
        ..world.speaker("")
    };
    assert!(
        world
            .processes
            .start(&web(), RunId(2), &missing, None)
            .is_err()
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[tokio::test]
async fn a_run_that_is_taken_back_is_heard_by_the_name_that_it_knows() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let spec = world.speaker("");
    // As after a crash: the name is there, and nobody listens.
    let Started { pid, start_ticks } = Started {
        pid: world.process().pid,
        start_ticks: world.process().start_ticks,
    };
    let before = std::mem::replace(
        &mut world.processes,
        Processes::beside_others("server").unwrap(),
    );
    drop(before);
    let unheard = UnixDatagram::unbound().unwrap().send_to(b"READY=1", &path);
    assert!(unheard.is_err());
    world.processes.listen_in(world.folder.path());
    assert_eq!(
        world.processes.adopt(&web(), ONE, pid, start_ticks),
        Adoption::Live
    );
    world.processes.hear_again(&web(), ONE, &spec);
    mouth(&path).send(b"READY=1").unwrap();
    assert_eq!(world.words().await, [Word::Ready]);
}

#[tokio::test]
async fn nothing_that_was_said_is_lost_on_the_way_to_another_program() {
    let mut world = World::hearing();
    let path = world.start_speaker(ONE).await;
    let mouth = mouth(&path);
    mouth.send(b"READY=1").unwrap();
    let folder = world.folder.path().to_owned();
    assert_eq!(world.hand_over_hearing(&folder), []);
    mouth.send(b"STATUS=later").unwrap();
    assert_eq!(
        world.words().await,
        [Word::Ready, Word::Status("later".to_owned())]
    );
}

#[tokio::test]
async fn a_runtime_dir_that_is_too_long_is_told_before_anything_is_done() {
    let mut world = World::new();
    let long = world.path(&"x".repeat(100));
    fs::create_dir(&long).unwrap();
    world.processes.listen_in(&long);
    let spec = world.speaker("exit");
    let why = world.processes.preflight(&spec).unwrap_err();
    assert!(
        why.contains("bytes, and a socket's has 107 at most; hint: "),
        "{why}"
    );
    let refused = world.processes.start(&web(), ONE, &spec, None).unwrap_err();
    assert_eq!(NotStarted::Refused(why), refused);
    // Who has nothing to say is not concerned.
    let silent = world.shell("exit");
    assert_eq!(world.processes.preflight(&silent), Ok(()));
}
