//! Where runs say what they do: a socket for each run that has something to say.
//!
//! - It is a datagram socket of its own in `runtime_dir`, bound before its run begins, and named to
//!   it by `NOTIFY_SOCKET`. Only the run's user may write to it (mode 0600): that is the credential,
//!   and the socket says whose word it is.
//! - Its name is made of the run's, so that the next server binds it again; an upgrade hands the
//!   descriptor on, with what waits in it. What is said while no server lives is lost.
//! - However much a run says, so much is read in a turn and no more, and then it has to wait; its
//!   datagrams are of bounded size; descriptors that come along are closed, the one of a barrier
//!   when all before it was handled.
//! - The file goes with the run, and what a dead server left with the next one.
//!
//! Sources: sd_notify(3), unix(7), recvmsg(2), the kernel's `unix_bind` for a socket's mode.

mod message;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileTypeExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, fchmod},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, recvmsg, socket_with,
    },
    process::{Uid, geteuid},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::message::{Message, Words};
use super::{Fact, Processes, wait::Token};
use crate::{
    clock,
    passed::{Claim, Passed},
    spec::{ChildName, Mono, Pulse, RunId, Sign, Spec},
};

/// Tells a run where it is heard.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Tells a run how long it may be silent, in microseconds.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";

/// Tells which process it is that may not be silent.
pub(super) const WATCHDOG_PID_VARIABLE: &str = "WATCHDOG_PID";

/// The folder of all sockets, in `runtime_dir`.
const FOLDER: &str = "notify";

/// How many digits a socket's name has: paths of sockets must be short.
const NAME_DIGITS: usize = 12;

/// How long the path of a socket may be, in bytes: what unix(7) has room for, less its NUL.
const PATH_BYTES_MAX: usize = 107;

/// How long a datagram may be, in bytes. A longer one is passed over.
const DATAGRAM_BYTES_MAX: usize = 4_096;

/// How many descriptors of a datagram are looked at; the kernel closes the others.
const DESCRIPTORS_MAX: usize = 4;

/// How many datagrams of a run are read in one turn.
const DATAGRAMS_PER_TURN_MAX: usize = 32;

/// How long a run has to wait that has said more than that. Its writes wait meanwhile.
const FLOOD_PAUSE: Duration = Duration::from_millis(50);

/// Why a run cannot be heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotHeard {
    /// Nobody has said where sockets may be.
    #[error("there is no place for what it says or shows")]
    NoPlace,
    /// Its output goes where nobody can read it.
    #[error(
        "no line of its output can show that it is ready: neither stream goes to a regular file; hint: give one of them a file with `output`"
    )]
    NoLog,
    /// The path is longer than that of a socket may be.
    #[error(
        "the path of its notify socket in `{}` would have {} bytes, and a socket's has {PATH_BYTES_MAX} at most; hint: give server.yml a shorter `runtime_dir`",
        .folder.display(), .len
    )]
    TooLong {
        /// Where all sockets are.
        folder: PathBuf,
        /// How many bytes.
        len: usize,
    },
    /// The kernel refuses.
    #[error("`{}`, by which it says or shows that it is ready, cannot be had: {error}", .path.display())]
    NotMade {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// All sockets.
#[derive(Debug, Default)]
pub(super) struct Ears {
    /// Where they are made.
    folder: Option<PathBuf>,
    ears: BTreeMap<(ChildName, RunId), Ear>,
    owners: BTreeMap<Token, (ChildName, RunId)>,
    /// Descriptors of barriers: closed when what was told is handled.
    barriers: Vec<OwnedFd>,
}

/// The socket of one run.
#[derive(Debug)]
struct Ear {
    socket: OwnedFd,
    token: Token,
    /// When it is read again: it had more to say than is heard at once.
    paused: Option<Mono>,
    complaints: Complaints,
}

/// Whether the log was told already that a run says what is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaints {
    None,
    Told,
}

/// A socket on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HandedEar {
    child: ChildName,
    run: RunId,
    socket: Passed,
}

impl HandedEar {
    pub(super) fn passed(&self) -> &Passed {
        &self.socket
    }
}

/// Whether a run has something to say.
fn speaks(spec: &Spec) -> bool {
    let ready = match spec.ready.as_ref().map(|ready| &ready.sign) {
        Some(Sign::Notify) => true,
        Some(Sign::Probe(_) | Sign::Fd(_) | Sign::Log(_)) | None => false,
    };
    ready || watchdog(spec).is_some()
}

/// How long a run may be silent at most, if it says itself that it does its work.
pub(super) fn watchdog(spec: &Spec) -> Option<Duration> {
    let health = spec.health.as_ref()?;
    match health.pulse {
        Pulse::Watchdog => Some(health.interval * health.failures),
        Pulse::Probe(_) => None,
    }
}

/// A name that is short, and that of one run alone.
pub(super) fn name(child: &ChildName, run: RunId) -> String {
    let digest = Sha256::digest(format!("{child}/{run}"));
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    let mut name: String = digits.collect();
    name.truncate(NAME_DIGITS);
    name
}

impl Ears {
    /// Where a run's socket is, or would be.
    fn path(&self, child: &ChildName, run: RunId) -> Result<PathBuf, NotHeard> {
        Ok(self.place()?.join(name(child, run)))
    }

    /// The folder of all sockets, if theirs is a path that a socket may have.
    fn place(&self) -> Result<&Path, NotHeard> {
        let folder = self.folder.as_deref().ok_or(NotHeard::NoPlace)?;
        let len = folder.as_os_str().len() + "/".len() + NAME_DIGITS;
        match len > PATH_BYTES_MAX {
            true => Err(NotHeard::TooLong {
                folder: folder.to_owned(),
                len,
            }),
            false => Ok(folder),
        }
    }

    /// The folder of all that runs say or show.
    pub(super) fn folder(&self) -> Result<&Path, NotHeard> {
        self.folder.as_deref().ok_or(NotHeard::NoPlace)
    }

    /// Whether a run of this could be heard.
    pub(super) fn check(&self, spec: &Spec) -> Result<(), NotHeard> {
        match speaks(spec) {
            true => self.place().map(drop),
            false => Ok(()),
        }
    }

    /// Closes a run's socket and takes its name away. Nothing there is nothing done.
    pub(super) fn close(&mut self, child: &ChildName, run: RunId) {
        let Some(ear) = self.ears.remove(&(child.clone(), run)) else {
            return;
        };
        self.owners.remove(&ear.token);
        if let Ok(path) = self.path(child, run) {
            let _may_be_gone = fs::remove_file(path);
        }
    }

    /// When a run that had to wait is heard again; `None` when none waits.
    pub(super) fn until_due(&self) -> Option<Duration> {
        let paused = self.ears.values().filter_map(|ear| ear.paused);
        paused.min().map(|at| at - clock::mono())
    }

    /// What was told is handled by now: whoever waits for that is told so.
    pub(super) fn release_barriers(&mut self) {
        self.barriers.clear();
    }

    /// Those that had to wait long enough.
    pub(super) fn due(&self) -> Vec<Token> {
        let now = clock::mono();
        let due = |ear: &&Ear| ear.paused.is_some_and(|at| at <= now);
        self.ears
            .values()
            .filter(due)
            .map(|ear| ear.token)
            .collect()
    }

    /// Whether this stands for a socket of ours.
    pub(super) fn hears(&self, token: Token) -> bool {
        self.owners.contains_key(&token)
    }

    /// What a socket has to tell; `None` when it is no socket of ours.
    pub(super) fn listen(&mut self, token: Token) -> Option<Option<Fact>> {
        let (child, run) = self.owners.get(&token)?.clone();
        let ear = self.ears.get_mut(&(child.clone(), run))?;
        let mut words = Words::default();
        ear.paused = None;
        for _ in 0..DATAGRAMS_PER_TURN_MAX {
            match ear.next(&child, run, &mut self.barriers) {
                Some(message) => words.extend(message.words),
                None => return Some(told(child, run, words)),
            }
        }
        ear.paused = Some(clock::mono() + FLOOD_PAUSE);
        Some(told(child, run, words))
    }
}

fn told(child: ChildName, run: RunId, words: Words) -> Option<Fact> {
    let words = words.into_vec();
    (!words.is_empty()).then_some(Fact::Notified { child, run, words })
}

impl Ear {
    /// The next datagram; `None` when there is none.
    fn next(
        &mut self,
        child: &ChildName,
        run: RunId,
        barriers: &mut Vec<OwnedFd>,
    ) -> Option<Message> {
        let mut bytes = [0_u8; DATAGRAM_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut slice = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut slice, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(error) => {
                    tracing::warn!(%child, %run, %error, "its notify socket cannot be read");
                    return None;
                }
            }
        };
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            // Nothing else is asked for.
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                descriptors.extend(sent);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            self.complain(child, run);
            return Some(Message::default());
        }
        let message = Message::read(bytes.get(..received.bytes).unwrap_or(&[]));
        if message.barrier && descriptors.len() == 1 {
            barriers.append(&mut descriptors);
        }
        // All others are closed here.
        Some(message)
    }

    fn complain(&mut self, child: &ChildName, run: RunId) {
        match self.complaints {
            Complaints::Told => {}
            Complaints::None => tracing::warn!(
                %child, %run, max = DATAGRAM_BYTES_MAX,
                "what it says is too long and is passed over, now and from now on"
            ),
        }
        self.complaints = Complaints::Told;
    }
}

/// A socket that only this user, and root, can write to.
fn make(path: &Path, owner: Uid) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    // Before it has a name, which then has this mode from the beginning.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let address = SocketAddrUnix::new(path)?;
    if path
        .symlink_metadata()
        .is_ok_and(|it| it.file_type().is_socket())
    {
        fs::remove_file(path)?;
    }
    bind(&socket, &address)?;
    if owner != geteuid() {
        rustix::fs::chownat(
            CWD,
            path,
            Some(owner),
            None,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(socket)
}

/// Makes the folder if it is not there; what stands there in its place is left as it is.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Processes {
    /// Lets runs be heard, in this `runtime_dir`. Before anything is started or taken back.
    pub fn listen_in(&mut self, runtime_dir: &Path) {
        self.ears.folder = Some(runtime_dir.join(FOLDER));
    }

    /// Lets a run that is about to begin be heard, if it has something to say: what its environment
    /// says of that.
    pub(super) fn hear(
        &mut self,
        child: &ChildName,
        run: RunId,
        spec: &Spec,
    ) -> Result<Vec<String>, NotHeard> {
        if !speaks(spec) {
            return Ok(Vec::new());
        }
        let path = self.ears.path(child, run)?;
        let not_made = |error| NotHeard::NotMade {
            path: path.clone(),
            error,
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder).map_err(not_made)?;
        // Children run as the server's user.
        let socket = make(&path, geteuid()).map_err(not_made)?;
        self.enter_ear(child, run, socket).map_err(not_made)?;
        let watchdog = watchdog(spec);
        let watchdog = watchdog.map(|time| format!("{WATCHDOG_VARIABLE}={}", time.as_micros()));
        let socket = format!("{VARIABLE}={}", path.display());
        Ok([socket].into_iter().chain(watchdog).collect())
    }

    /// Hears a run that was taken back, by the name that it knows.
    pub fn hear_again(&mut self, child: &ChildName, run: RunId, spec: &Spec) {
        if let Err(error) = self.hear(child, run, spec) {
            tracing::error!(%child, %run, %error, "it cannot be heard any more");
        }
    }

    fn enter_ear(&mut self, child: &ChildName, run: RunId, socket: OwnedFd) -> io::Result<()> {
        let token = self.next_token();
        self.exits.watch_always(&socket, token)?;
        let ear = Ear {
            socket,
            token,
            paused: None,
            complaints: Complaints::None,
        };
        let key = (child.clone(), run);
        self.ears.owners.insert(token, key.clone());
        if let Some(before) = self.ears.ears.insert(key, ear) {
            self.ears.owners.remove(&before.token);
        }
        Ok(())
    }

    /// Removes what a dead server has left of runs that are not there any more.
    pub fn forget_others_ears(&self) {
        let Some(folder) = &self.ears.folder else {
            return;
        };
        let mine = self.ears.ears.keys().chain(self.signs.runs());
        let mine: Vec<String> = mine.map(|(child, run)| name(child, *run)).collect();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_mine = |name: &str| mine.iter().any(|mine| name.starts_with(mine));
            if !entry.file_name().to_str().is_some_and(is_mine) {
                let _may_be_gone = fs::remove_file(entry.path());
            }
        }
    }

    /// All sockets, for the next program.
    pub(super) fn hand_over_ears(ears: Ears) -> Vec<HandedEar> {
        let handed = |((child, run), ear): ((ChildName, RunId), Ear)| HandedEar {
            child,
            run,
            socket: Passed::Held(ear.socket),
        };
        ears.ears.into_iter().map(handed).collect()
    }

    /// Goes on hearing a run. A socket that did not come through is bound again.
    pub(super) fn take_over_ear(&mut self, handed: HandedEar, claim: Claim<'_>) {
        let HandedEar { child, run, socket } = handed;
        let Ok(path) = self.ears.path(&child, run) else {
            return;
        };
        let passed = socket.take(claim).ok().filter(|fd| is_named(fd, &path));
        let socket = match passed {
            Some(socket) => Ok(socket),
            None => make(&path, geteuid()),
        };
        let entered = socket.and_then(|socket| self.enter_ear(&child, run, socket));
        if let Err(error) = entered {
            tracing::error!(%child, %run, %error, "it cannot be heard any more");
        }
    }
}

/// Whether a descriptor is the socket of this name.
fn is_named(socket: &OwnedFd, path: &Path) -> bool {
    let address = getsockname(socket).ok();
    let address = address.and_then(|address| SocketAddrUnix::try_from(address).ok());
    let name = address.as_ref().and_then(SocketAddrUnix::path_bytes);
    name == Some(path.as_os_str().as_encoded_bytes())
}
