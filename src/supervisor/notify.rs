//! Tells the service manager that has started the server, as systemd may have, how the server is.
//!
//! - Nobody is told who did not ask: without `NOTIFY_SOCKET` nothing here does anything.
//! - It is ready when it answers, reloads from a HUP until everything was read again, and again
//!   while it is replaced by the next program, which keeps its pid and these variables.
//! - Telling never waits and never fails anything: who has gone is not told. What does not fit into
//!   a full queue is told later, and what is overtaken by then is not.
//! - Nothing ticks but the watchdog, and that only where it was asked for. It is the loop that
//!   answers for itself: one that is stuck falls silent.
//!
//! Absent on purpose: sockets of virtual machines (`vsock:`), the barrier, and `MAINPID`, since an
//! upgrade keeps the pid.
//! Sources: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) on `notify-reload`.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use crate::{
    clock,
    reconcile::{State, survey::Tally},
    spec::Mono,
};

/// The least time between two texts of what the server does: children may come and go quickly.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// When a queue that was full is tried again.
const UNSENT_PAUSE: Duration = Duration::from_millis(200);

/// Whom to tell, and what was told.
pub(super) struct Notify {
    /// `None` when nobody asked.
    to: Option<Receiver>,
    told: Told,
    status: Status,
    watchdog: Option<Watchdog>,
    /// What did not fit, the oldest first: of each kind the latest.
    unsent: Vec<String>,
    unsent_at: Option<Mono>,
    /// How often everything was to be read again.
    rescans: u64,
    /// The last of these, while it is under way.
    rescanning: Option<u64>,
}

/// What the receiver takes the server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

/// The text that people see beside the server's name.
#[derive(Debug, Default)]
struct Status {
    text: String,
    told_at: Option<Mono>,
    /// Whether it may not be true any more.
    old: bool,
}

impl Status {
    fn due(&self) -> Option<Mono> {
        let at = self.told_at.map_or(Mono(0), |at| at + STATUS_PAUSE);
        self.old.then_some(at)
    }
}

#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Mono,
}

/// Where it is told.
struct Receiver {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Receiver {
    /// What `NOTIFY_SOCKET` names: a path, or an abstract name behind an `@`.
    fn named(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
            [b'/', ..] => SocketAddr::from_pathname(name),
            _ => Err(io::Error::other(
                "it is neither a path nor an abstract name",
            )),
        }?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    fn tell(&self, text: &str) -> io::Result<()> {
        let sent = self.socket.send_to_addr(text.as_bytes(), &self.address);
        sent.map(|_| ())
    }
}

impl Notify {
    /// As whoever has started this process wants it.
    pub(super) fn of_process() -> Self {
        let variable = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let to = variable("NOTIFY_SOCKET").and_then(|name| {
            let receiver = Receiver::named(&name).inspect_err(|error| {
                tracing::debug!(%error, "`NOTIFY_SOCKET` cannot be used");
            });
            receiver.ok()
        });
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let ours = variable("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        Self::new(to, limit.map(Duration::from_micros))
    }

    /// As the program before has left it, which said that it reloads; with the rescan whose end it
    /// has not seen.
    pub(super) fn taken_over(rescanning: Option<u64>) -> Self {
        Self {
            told: Told::Reloading,
            rescans: rescanning.unwrap_or_default(),
            rescanning,
            ..Self::of_process()
        }
    }

    fn new(to: Option<Receiver>, limit: Option<Duration>) -> Self {
        let watchdog = limit.filter(|_| to.is_some()).map(|limit| Watchdog {
            every: limit / 2,
            next: Mono(0),
        });
        Self {
            to,
            told: Told::Nothing,
            status: Status {
                old: true,
                ..Status::default()
            },
            watchdog,
            unsent: Vec::new(),
            unsent_at: None,
            rescans: 0,
            rescanning: None,
        }
    }

    /// Something has happened that the text may tell of.
    pub(super) fn note_news(&mut self) {
        self.status.old = self.to.is_some();
    }

    /// Everything is to be read again; gives the number that the end of it is to be told by.
    pub(super) fn rescan(&mut self) -> u64 {
        self.rescans += 1;
        self.rescanning = Some(self.rescans);
        self.reload();
        self.rescans
    }

    /// Everything was read again.
    pub(super) fn rescanned(&mut self, number: u64) {
        self.rescanning = self.rescanning.filter(|last| *last != number);
    }

    /// Of a rescan that was asked for, and whose end was not told.
    pub(super) fn rescanning(&self) -> Option<u64> {
        self.rescanning
    }

    /// What follows is no time to be asked much.
    pub(super) fn reload(&mut self) {
        if self.told != Told::Stopping {
            let now = clock::mono();
            self.told = Told::Reloading;
            self.say(format!("RELOADING=1\nMONOTONIC_USEC={}", now.0), now);
        }
    }

    /// Says what is to be said by now.
    pub(super) fn tell(&mut self, core: &State, now: Mono) {
        if self.to.is_none() {
            return;
        }
        self.send(now);
        match (self.told, core.is_ending()) {
            (Told::Nothing | Told::Ready | Told::Reloading, true) => {
                self.told = Told::Stopping;
                self.say("STOPPING=1".to_owned(), now);
            }
            (Told::Nothing | Told::Reloading, false) if self.rescanning.is_none() => {
                self.told = Told::Ready;
                self.say("READY=1".to_owned(), now);
            }
            (Told::Nothing | Told::Ready | Told::Reloading | Told::Stopping, _) => {}
        }
        if self.status.due().is_some_and(|at| now >= at) {
            self.status.old = false;
            let text = status(core.tally());
            if text != self.status.text {
                self.say(format!("STATUS={text}"), now);
                self.status.text = text;
                self.status.told_at = Some(now);
            }
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|it| now >= it.next) {
            watchdog.next = now + watchdog.every;
            self.say("WATCHDOG=1".to_owned(), now);
        }
    }

    /// When there is something to say next, whatever happens until then.
    pub(super) fn next(&self) -> Option<Mono> {
        let watchdog = self.watchdog.as_ref().map(|it| it.next);
        let times = [watchdog, self.unsent_at, self.status.due()];
        let next = times.into_iter().flatten().min();
        next.filter(|_| self.to.is_some())
    }

    fn say(&mut self, text: String, now: Mono) {
        let kind = |text: &str| text.split('=').next().map(str::to_owned);
        self.unsent.retain(|old| kind(old) != kind(&text));
        self.unsent.push(text);
        self.send(now);
    }

    fn send(&mut self, now: Mono) {
        self.unsent_at = None;
        let Some(to) = &self.to else {
            return self.unsent.clear();
        };
        while let Some(text) = self.unsent.first() {
            match to.tell(text) {
                Ok(()) => {}
                Err(error) if is_full(&error) => {
                    self.unsent_at = Some(now + UNSENT_PAUSE);
                    return;
                }
                Err(error) => tracing::debug!(%error, "the service manager is not told"),
            }
            self.unsent.remove(0);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    let no_buffers = error.raw_os_error() == Some(libc::ENOBUFS);
    error.kind() == io::ErrorKind::WouldBlock || no_buffers
}

/// What the server does, on one line.
fn status(tally: Tally) -> String {
    let run = match tally.live {
        0 => "no child runs".to_owned(),
        1 => "1 child runs".to_owned(),
        live => format!("{live} children run"),
    };
    match tally.failed {
        0 => run,
        failed => format!("{run}, {failed} failed"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;

    use super::*;

    /// More datagrams than any queue takes.
    const MANY: u64 = 10_000;

    fn ear() -> (tempfile::TempDir, UnixDatagram, Notify) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        ear.set_nonblocking(true).unwrap();
        let to = Receiver::named(path.as_os_str()).unwrap();
        (dir, ear, Notify::new(Some(to), None))
    }

    fn heard(ear: &UnixDatagram) -> Vec<String> {
        let mut heard = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(count) = ear.recv(&mut bytes) {
            heard.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
        heard
    }

    #[test]
    fn it_is_ready_once_and_ready_again_when_the_last_rescan_is_done() {
        let (_dir, ear, mut notify) = ear();
        let (core, now) = (State::new(), Mono(1));
        notify.tell(&core, now);
        notify.tell(&core, now);
        assert_eq!(heard(&ear), ["READY=1", "STATUS=no child runs"]);
        assert_eq!(notify.next(), None, "nothing ticks");
        let (first, second) = (notify.rescan(), notify.rescan());
        let reloading = heard(&ear);
        assert_eq!(reloading.len(), 2);
        assert!(reloading[1].starts_with("RELOADING=1\nMONOTONIC_USEC="));
        notify.rescanned(first);
        notify.tell(&core, now);
        assert!(heard(&ear).is_empty(), "the second is under way");
        notify.rescanned(second);
        notify.tell(&core, now);
        assert_eq!(heard(&ear), ["READY=1"]);
    }

    #[test]
    fn a_text_that_is_the_same_is_not_told_and_one_that_changes_not_at_every_change() {
        let (_dir, ear, mut notify) = ear();
        let core = State::new();
        notify.tell(&core, Mono(1));
        assert_eq!(heard(&ear).len(), 2);
        notify.status.text = "else".to_owned();
        notify.note_news();
        notify.tell(&core, Mono(2));
        assert!(heard(&ear).is_empty());
        let due = Mono(1) + STATUS_PAUSE;
        assert_eq!(notify.next(), Some(due));
        notify.tell(&core, due);
        assert_eq!(heard(&ear), ["STATUS=no child runs"]);
        notify.note_news();
        notify.tell(&core, due + STATUS_PAUSE);
        assert!(heard(&ear).is_empty());
        assert_eq!(notify.next(), None);
    }

    #[test]
    fn the_watchdog_is_answered_at_half_of_its_time() {
        let (_dir, ear, mut notify) = ear();
        let limit = Duration::from_secs(10);
        notify = Notify::new(notify.to, Some(limit));
        let core = State::new();
        let begun = Mono(1_000_000);
        notify.tell(&core, begun);
        assert_eq!(heard(&ear).last().unwrap(), "WATCHDOG=1");
        let half = begun + limit / 2;
        assert_eq!(notify.next(), Some(half));
        notify.tell(&core, begun + limit / 4);
        assert!(heard(&ear).is_empty());
        notify.tell(&core, half);
        assert_eq!(heard(&ear), ["WATCHDOG=1"]);
    }

    #[test]
    fn who_does_not_read_keeps_nobody_waiting_and_is_told_the_latest_later() {
        let (_dir, ear, mut notify) = ear();
        let core = State::new();
        for _ in 0..MANY {
            notify.rescan();
        }
        assert_eq!(notify.unsent.len(), 1, "of each kind the latest");
        let last = notify.rescans;
        notify.rescanned(last);
        let now = clock::mono();
        notify.tell(&core, now);
        assert_eq!(notify.next(), Some(now + UNSENT_PAUSE));
        assert!(heard(&ear).iter().all(|it| it.starts_with("RELOADING=1")));
        notify.tell(&core, now);
        let late = heard(&ear);
        let kinds: Vec<&str> = late.iter().filter_map(|it| it.split('=').next()).collect();
        assert_eq!(kinds, ["RELOADING", "READY", "STATUS"]);
        assert_eq!(notify.next(), None);
    }

    #[test]
    fn who_has_gone_is_not_told_and_nothing_is_kept_for_him() {
        let (dir, ear, mut notify) = ear();
        drop((dir, ear));
        notify.tell(&State::new(), Mono(1));
        assert_eq!((notify.unsent.len(), notify.next()), (0, None));
        let mut nobody = Notify::new(None, Some(Duration::from_secs(1)));
        nobody.tell(&State::new(), Mono(1));
        nobody.note_news();
        nobody.rescan();
        assert_eq!((nobody.unsent.len(), nobody.next()), (0, None));
    }

    #[test]
    fn an_abstract_name_is_found_and_what_is_no_name_refused() {
        let name = format!("supervisor-rs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let ear = UnixDatagram::bind_addr(&address).unwrap();
        let to = Receiver::named(OsStr::new(&format!("@{name}"))).unwrap();
        to.tell("READY=1").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(ear.recv(&mut bytes).unwrap(), "READY=1".len());
        let long = format!("/{}", "x".repeat(200));
        for wrong in ["vsock:2:1234", "relative", "", &long] {
            assert!(Receiver::named(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_text_counts_as_people_do() {
        let text = |live, failed| status(Tally { live, failed });
        assert_eq!(text(0, 0), "no child runs");
        assert_eq!(text(1, 0), "1 child runs");
        assert_eq!(text(7, 1), "7 children run, 1 failed");
    }
}
