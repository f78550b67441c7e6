//! What runs show in files: a line on a descriptor of theirs, or a line of their output.
//!
//! - The descriptor is a file of the run's own in `runtime_dir`, to which everything is added, so
//!   that a run may write although no server lives, and the next one finds what it wrote.
//! - Output is read from where it ended when the run began, which is noted beside it for the next
//!   server. A file that is emptied meanwhile is read from its beginning again. Where several runs
//!   write to one file, a line of any of them counts.
//! - Nothing is polled: inotify tells that something was written. However much it is, so much of it
//!   is read in a turn and no more, and so much of a line is looked at.
//! - What was shown is looked for no longer, and its files go when that is handled; else with the run.
//!
//! Absent on purpose: following an output whose name was given to another file; the run writes to
//! the one that it has open.
//!
//! Sources: inotify(7), the kernel's `/proc/self/fd`; s6's convention of a descriptor for readiness.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use regex::bytes::Regex;
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, inotify, open},
    io::{Errno, pread},
};
use serde::{Deserialize, Serialize};

use super::{
    Fact, Owner, Processes,
    notify::{NotHeard, make_folder, name},
    output::Outputs,
    step::Stream,
    wait::Token,
};
use crate::spec::{ChildName, RunId, Sign, Sink, Spec, Word, log_pattern};

/// How much of a run's files is read in one turn, in bytes.
const BYTES_PER_TURN_MAX: usize = 256 * 1024;

/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// How much of a line is looked at, in bytes.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// How much the kernel tells at once, in bytes: of files by themselves it names none.
const EVENT_BYTES: usize = 4 * 1024;

/// The file behind a run's descriptor.
const LINE_SUFFIX: &str = "fd";

/// Where a run's output ended when it began.
const NOTE_SUFFIX: &str = "log";

type Key = (ChildName, RunId);

/// Everything that is waited for.
#[derive(Debug, Default)]
pub(super) struct Signs {
    queue: Option<(OwnedFd, Token)>,
    awaited: BTreeMap<Key, Awaited>,
    /// By watch.
    watches: BTreeMap<i32, BTreeSet<Key>>,
    /// Who is to be looked at.
    news: BTreeSet<Key>,
    /// Files of those who have shown what was waited for.
    done: Vec<PathBuf>,
}

/// What is waited for of one run.
#[derive(Debug)]
struct Awaited {
    what: What,
    files: Vec<Followed>,
    /// What it is, for the next program.
    handed: HandedSign,
    /// What goes with it.
    own: PathBuf,
}

#[derive(Debug)]
enum What {
    /// Any line.
    Line,
    /// One like this.
    Match(Regex),
}

/// A file that is read as it grows.
#[derive(Debug)]
struct Followed {
    file: OwnedFd,
    watch: i32,
    offset: u64,
    /// What there is of the line that has not come to its end, up to [`LINE_BYTES_MAX`].
    line: Vec<u8>,
}

/// What a look at a run has shown.
enum Look {
    Shown,
    Nothing,
    /// There is more to read.
    More,
}

/// A sign on its way to the next program, which reads the files again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HandedSign {
    child: ChildName,
    run: RunId,
    sign: Sign,
    sinks: [Sink; 2],
}

impl What {
    fn is(&self, line: &[u8]) -> bool {
        match self {
            Self::Line => true,
            Self::Match(pattern) => pattern.is_match(line.strip_suffix(b"\r").unwrap_or(line)),
        }
    }

    fn word(&self) -> Word {
        match self {
            Self::Line => Word::Wrote,
            Self::Match(_) => Word::Logged,
        }
    }
}

impl Followed {
    /// Reads on.
    fn look(&mut self, what: &What) -> io::Result<Look> {
        let size = u64::try_from(fstat(&self.file)?.st_size).unwrap_or(0);
        if size < self.offset {
            // Somebody has emptied it.
            self.offset = 0;
            self.line.clear();
        }
        let mut bytes = [0_u8; READ_BYTES];
        for _ in 0..BYTES_PER_TURN_MAX / READ_BYTES {
            let count = match pread(&self.file, &mut bytes, self.offset) {
                Ok(0) => return Ok(Look::Nothing),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.offset += u64::try_from(count).unwrap_or(0);
            if self.take(bytes.get(..count).unwrap_or(&[]), what) {
                return Ok(Look::Shown);
            }
        }
        Ok(Look::More)
    }

    /// Whether one of the lines that end in these bytes is what is waited for.
    fn take(&mut self, bytes: &[u8], what: &What) -> bool {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            self.keep(line);
            let shown = what.is(&self.line);
            self.line.clear();
            if shown {
                return true;
            }
            rest = behind.get(1..).unwrap_or(&[]);
        }
        self.keep(rest);
        false
    }

    fn keep(&mut self, more: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        self.line.extend(more.iter().take(room));
    }
}

/// Whether a run shows something in a file until it is ready.
fn shows(spec: &Spec) -> Option<&Sign> {
    let sign = spec.ready.as_ref().map(|ready| &ready.sign)?;
    match sign {
        Sign::Fd(_) | Sign::Log(_) => Some(sign),
        Sign::Probe(_) | Sign::Notify => None,
    }
}

/// Whether the outputs of this can be read, as far as they are there.
///
/// # Errors
/// None of them can.
pub(super) fn check(spec: &Spec) -> Result<(), NotHeard> {
    let Some(Sign::Log(_)) = shows(spec) else {
        return Ok(());
    };
    let can_be = |sink: &Sink| match sink {
        Sink::Inherit => false,
        Sink::File { path, .. } => path.symlink_metadata().map_or(true, |it| it.is_file()),
    };
    match can_be(&spec.stdout) || can_be(&spec.stderr) {
        true => Ok(()),
        false => Err(NotHeard::NoLog),
    }
}

/// A file's device and inode, and its length; `None` of anything else than a regular one.
fn regular(file: &OwnedFd) -> io::Result<Option<((u64, u64), u64)>> {
    let stat = fstat(file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(is_regular.then_some(((stat.st_dev, stat.st_ino), len)))
}

fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(open(path, flags, Mode::empty())?)
}

/// The file behind a descriptor, whatever its name is by now.
fn reopen(number: RawFd) -> io::Result<OwnedFd> {
    open_to_read(Path::new(&format!("/proc/self/fd/{number}")))
}

/// Where the outputs ended when a run began: device, inode and length, one a line.
fn read_note(path: &Path) -> io::Result<Vec<((u64, u64), u64)>> {
    let text = fs::read_to_string(path)?;
    let line = |line: &str| {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        Some(((next()?, next()?), next()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

impl Signs {
    /// Nobody waits for this run any more. Nothing there is nothing done.
    pub(super) fn close(&mut self, child: &ChildName, run: RunId) {
        if let Some(own) = self.look_away(&(child.clone(), run)) {
            let _may_be_gone = fs::remove_file(own);
        }
    }

    /// What was told is handled by now.
    pub(super) fn release(&mut self) {
        for path in self.done.drain(..) {
            let _may_be_gone = fs::remove_file(path);
        }
    }

    /// Of which runs something is awaited.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Key> {
        self.awaited.keys()
    }

    /// Whether somebody is to be looked at.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    fn look_away(&mut self, key: &Key) -> Option<PathBuf> {
        let awaited = self.awaited.remove(key)?;
        self.news.remove(key);
        for followed in &awaited.files {
            let Some(others) = self.watches.get_mut(&followed.watch) else {
                continue;
            };
            others.remove(key);
            if others.is_empty() {
                self.watches.remove(&followed.watch);
                if let Some((queue, _)) = &self.queue {
                    let _may_be_gone = inotify::remove_watch(queue, followed.watch);
                }
            }
        }
        Some(awaited.own)
    }

    /// Takes in what was written to; says whether it was this that had news.
    pub(super) fn listen(&mut self, token: Token) -> bool {
        let Some((queue, _)) = self.queue.as_ref().filter(|(_, own)| *own == token) else {
            return false;
        };
        let mut space = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = inotify::Reader::new(queue, &mut space);
        // What is told has an end: whoever is told of is not told of again before it is read.
        while let Ok(event) = events.next() {
            match self.watches.get(&event.wd()) {
                Some(keys) => self.news.extend(keys.iter().cloned()),
                // More has happened than there was room to tell of, or a watch is gone.
                None => self.news.extend(self.awaited.keys().cloned()),
            }
        }
        true
    }

    /// Looks at those with news; gives what they have shown.
    pub(super) fn look(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for key in std::mem::take(&mut self.news) {
            let Some(awaited) = self.awaited.get_mut(&key) else {
                continue;
            };
            let (child, run) = key.clone();
            match awaited.look() {
                Ok(Look::Nothing) => {}
                Ok(Look::More) => {
                    self.news.insert(key);
                }
                Ok(Look::Shown) => {
                    let words = vec![awaited.what.word()];
                    facts.push(Fact::Notified { child, run, words });
                    let own = self.look_away(&key);
                    self.done.extend(own);
                }
                Err(error) => {
                    tracing::error!(%child, %run, %error, "what shows it ready cannot be read");
                }
            }
        }
        facts
    }
}

impl Awaited {
    fn look(&mut self) -> io::Result<Look> {
        let mut more = Look::Nothing;
        for file in &mut self.files {
            match file.look(&self.what)? {
                Look::Nothing => {}
                Look::Shown => return Ok(Look::Shown),
                Look::More => more = Look::More,
            }
        }
        Ok(more)
    }
}

impl Processes {
    /// Waits for what a run that is about to begin will show; gives the descriptor that it is to
    /// have, and under which number.
    pub(super) fn await_sign(
        &mut self,
        child: &ChildName,
        run: RunId,
        spec: &Spec,
        outputs: &Outputs,
    ) -> Result<Option<(OwnedFd, RawFd)>, NotHeard> {
        let Some(sign) = shows(spec) else {
            return Ok(None);
        };
        let (path, what) = self.prepare(child, run, sign)?;
        let not_made = |error| NotHeard::NotMade {
            path: path.clone(),
            error,
        };
        let _may_be_gone = fs::remove_file(&path);
        let (files, given) = match sign {
            Sign::Fd(number) => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::APPEND
                    | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = open(&path, flags, mode).map_err(|error| not_made(error.into()))?;
                let reader = open_to_read(&path).map_err(not_made)?;
                (vec![(reader, 0)], Some((file, RawFd::from(*number))))
            }
            Sign::Log(_) => {
                let files = ends(outputs).map_err(not_made)?;
                if files.is_empty() {
                    return Err(NotHeard::NoLog);
                }
                let note: String = files
                    .iter()
                    .map(|(_, ((dev, ino), at))| format!("{dev} {ino} {at}\n"))
                    .collect();
                fs::write(&path, note).map_err(not_made)?;
                let files = files.into_iter().map(|(file, (_, at))| (file, at));
                (files.collect(), None)
            }
            Sign::Probe(_) | Sign::Notify => return Ok(None),
        };
        let handed = HandedSign {
            child: child.clone(),
            run,
            sign: sign.clone(),
            sinks: [spec.stdout.clone(), spec.stderr.clone()],
        };
        self.follow(handed, what, files, path.clone())
            .map_err(not_made)?;
        Ok(given)
    }

    /// Goes on waiting for what a run that was taken back will show, or has shown already.
    pub fn await_sign_again(&mut self, child: &ChildName, run: RunId, spec: &Spec) {
        let Some(sign) = shows(spec) else {
            return;
        };
        self.follow_again(HandedSign {
            child: child.clone(),
            run,
            sign: sign.clone(),
            sinks: [spec.stdout.clone(), spec.stderr.clone()],
        });
    }

    /// Goes on with what the program before has waited for, or a dead server.
    pub(super) fn follow_again(&mut self, handed: HandedSign) {
        let (child, run) = (handed.child.clone(), handed.run);
        let begun = self
            .prepare(&child, run, &handed.sign)
            .map_err(io::Error::other)
            .and_then(|(path, what)| {
                let files = match &handed.sign {
                    Sign::Fd(_) => vec![(open_to_read(&path)?, 0)],
                    Sign::Log(_) => self.outputs_again(&handed, &read_note(&path)?)?,
                    Sign::Probe(_) | Sign::Notify => Vec::new(),
                };
                self.follow(handed, what, files, path)
            });
        if let Err(error) = begun {
            tracing::error!(%child, %run, %error, "what shows it ready cannot be read any more");
        }
    }

    fn prepare(
        &self,
        child: &ChildName,
        run: RunId,
        sign: &Sign,
    ) -> Result<(PathBuf, What), NotHeard> {
        let folder = self.ears.folder()?;
        let (suffix, what) = match sign {
            Sign::Log(text) => {
                let pattern = log_pattern(text).map_err(|_| NotHeard::NoLog)?;
                (NOTE_SUFFIX, What::Match(pattern))
            }
            Sign::Fd(_) | Sign::Probe(_) | Sign::Notify => (LINE_SUFFIX, What::Line),
        };
        let path = folder.join(format!("{}.{suffix}", name(child, run)));
        let not_made = |error| NotHeard::NotMade {
            path: path.clone(),
            error,
        };
        make_folder(folder).map_err(not_made)?;
        Ok((path, what))
    }

    /// The outputs of a run that runs already, and where they ended when it began.
    fn outputs_again(
        &self,
        handed: &HandedSign,
        note: &[((u64, u64), u64)],
    ) -> io::Result<Vec<(OwnedFd, u64)>> {
        let owner = Owner::Run(handed.child.clone(), handed.run);
        let pid = self.processes.get(&owner).map(|process| process.pid);
        let mut files = Vec::new();
        for (sink, number) in handed.sinks.iter().zip(1..) {
            let Sink::File { path, .. } = sink else {
                continue;
            };
            let held = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/fd/{number}")));
            for path in [Some(path.clone()), held].into_iter().flatten() {
                let Ok(file) = open_to_read(&path) else {
                    continue;
                };
                let Some((id, _)) = regular(&file)? else {
                    continue;
                };
                if let Some((_, at)) = note.iter().find(|(known, _)| *known == id) {
                    files.push((file, *at));
                    break;
                }
            }
        }
        match files.is_empty() {
            true => Err(io::Error::other("its output is not where it was")),
            false => Ok(files),
        }
    }

    fn follow(
        &mut self,
        handed: HandedSign,
        what: What,
        files: Vec<(OwnedFd, u64)>,
        own: PathBuf,
    ) -> io::Result<()> {
        let key = (handed.child.clone(), handed.run);
        if self.signs.queue.is_none() {
            let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
            let queue = inotify::init(flags)?;
            let token = self.next_token();
            self.exits.watch_always(&queue, token)?;
            self.signs.queue = Some((queue, token));
        }
        let Some((queue, _)) = &self.signs.queue else {
            return Ok(());
        };
        let mut followed = Vec::new();
        for (file, offset) in files {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let watch = inotify::add_watch(queue, path, inotify::WatchFlags::MODIFY)?;
            self.signs
                .watches
                .entry(watch)
                .or_default()
                .insert(key.clone());
            followed.push(Followed {
                file,
                watch,
                offset,
                line: Vec::new(),
            });
        }
        let awaited = Awaited {
            what,
            files: followed,
            handed,
            own,
        };
        self.signs.awaited.insert(key.clone(), awaited);
        // What was written before it was watched.
        self.signs.news.insert(key);
        Ok(())
    }

    /// All that is waited for, for the next program.
    pub(super) fn hand_over_signs(signs: Signs) -> Vec<HandedSign> {
        let awaited = signs.awaited.into_values();
        awaited.map(|awaited| awaited.handed).collect()
    }
}

/// The files of a run that is about to begin: what is there of them is none of its.
#[expect(clippy::type_complexity, reason = "it is read where it is made")]
fn ends(outputs: &Outputs) -> io::Result<Vec<(OwnedFd, ((u64, u64), u64))>> {
    let truncated: Vec<Stream> = outputs.truncated().collect();
    let mut files: Vec<(OwnedFd, ((u64, u64), u64))> = Vec::new();
    for (fd, stream) in outputs.files() {
        let file = reopen(fd.as_raw_fd())?;
        let Some((id, len)) = regular(&file)? else {
            continue;
        };
        if files.iter().any(|(_, (known, _))| *known == id) {
            continue;
        }
        let at = match truncated.contains(&stream) {
            true => 0,
            false => len,
        };
        files.push((file, (id, at)));
    }
    Ok(files)
}
