//! The file that is written to: taken up where it ends, added to, rotated.
//!
//! - Adding is all or nothing. After a write or a sync that failed the file is cut back to its
//!   last good length before anything else is added, and the chain is where it was.
//! - Before each batch it is seen whether the name still leads to the open file, and whether the
//!   file is as long as it was left. If not, another is begun by a line that says so; the chain
//!   goes on. An empty file that somebody made there, as log rotation does, is taken; anything
//!   else in the way is renamed, never overwritten.
//! - Rotation moves names only, the oldest first, so that dying between any two steps loses at
//!   most a number: the next rotation closes the gap. The chain is found at the end of the
//!   youngest file that has a line.
//! - A file that ends with what no server has written is renamed at the start, and the chain
//!   begins anew: nothing can be said to follow it.
//!
//! Absent on purpose: keeping what could not be written (`writer`).

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    BATCH_BYTES_MAX, Limits, NAME,
    chain::Chain,
    entry::{Because, Entry, Opened, What},
    error::AuditError,
    place::{self, Dir, Identity, Named, rotated},
    tail::{self, Extent, Tail},
};
use crate::{clock, command::Stamp, spec::Wall};

/// How many beginnings may wait to be told while the disk takes nothing.
const OPENED_MAX: usize = 8;

/// How many names are tried for a file that is kept aside.
const ASIDE_TRIES_MAX: u32 = 100;

/// How often in a row a write may be interrupted.
const INTERRUPTIONS_MAX: u32 = 100;

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Author {
    pub(super) version: String,
    /// The server's id.
    pub(super) server: String,
}

/// The trail, as its one writer has it.
#[derive(Debug)]
pub(super) struct Trail {
    dir: PathBuf,
    limits: Limits,
    author: Author,
    chain: Chain,
    hold: Hold,
    /// Beginnings that are not written yet: the first lines of the next batch.
    opened: VecDeque<(Wall, Opened)>,
}

/// What is known of the file.
#[derive(Debug)]
enum Hold {
    /// Nothing yet, not even where the chain goes on.
    Unread,
    /// There is none to add to; the chain is known.
    None,
    Open(Current),
}

#[derive(Debug)]
struct Current {
    file: File,
    identity: Identity,
    /// How far it reaches that is known to be good, in bytes.
    len: u64,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There is nothing behind the good length.
    Clean,
    /// Something of ours may be there that must be cut off first.
    Torn,
}

impl Trail {
    /// Finds out where the chain goes on; the first batch will begin with a line that says that
    /// a server has started.
    ///
    /// # Errors
    ///
    /// That something stands there that must not be used. What the disk says is no error yet: it
    /// is tried again with the first batch.
    pub(super) fn open(dir: PathBuf, author: Author, limits: Limits) -> Result<Self, AuditError> {
        let mut trail = Self {
            dir,
            limits,
            author,
            chain: Chain::NEW,
            hold: Hold::Unread,
            opened: VecDeque::new(),
        };
        let taken_up = trail.take_up();
        Self::unless_forbidden(taken_up)?;
        Ok(trail)
    }

    /// Only what must not be used is an error.
    fn unless_forbidden(seen: Result<(), AuditError>) -> Result<(), AuditError> {
        match seen {
            Err(error @ (AuditError::NotAFile { .. } | AuditError::NotOurs { .. })) => Err(error),
            Err(
                error @ (AuditError::Dir { .. }
                | AuditError::File { .. }
                | AuditError::Changing { .. }
                | AuditError::Thread(_)),
            ) => {
                tracing::warn!(%error, "the audit trail cannot be read yet");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Sees whether [`Trail::open`] would find something that must not be used. Writes nothing.
    ///
    /// # Errors
    ///
    /// That it would.
    pub(super) fn check(dir: &Path) -> Result<(), AuditError> {
        Self::unless_forbidden(Dir::own(dir).and_then(|dir| dir.append(NAME)).map(drop))
    }

    /// Whether something waits to be written besides what is handed over.
    pub(super) fn has_news(&self) -> bool {
        !self.opened.is_empty() || matches!(self.hold, Hold::Unread)
    }

    /// Sees whether the file is as it was left; if not, there is something to be written.
    ///
    /// # Errors
    ///
    /// When that cannot be seen.
    pub(super) fn look(&mut self) -> Result<(), AuditError> {
        let dir = Dir::own(&self.dir)?;
        self.stand(&dir)
    }

    /// Writes the first of these entries, as many as go together, to disk; says how many. All or
    /// nothing: after an error none of them is there.
    ///
    /// # Errors
    ///
    /// Why they are not on disk.
    pub(super) fn append(&mut self, entries: &VecDeque<Entry>) -> Result<usize, AuditError> {
        if matches!(self.hold, Hold::Unread) {
            self.take_up()?;
        }
        let dir = Dir::own(&self.dir)?;
        self.stand(&dir)?;
        let file_bytes_max = self.limits.file_bytes_max;
        let mut current = match std::mem::replace(&mut self.hold, Hold::None) {
            Hold::Open(current) => current,
            Hold::None | Hold::Unread => self.begin(&dir)?,
        };
        let (bytes, chain, taken) = self.render(entries);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if current.len > 0 && current.len.saturating_add(len) > file_bytes_max {
            if let Err(error) = self.rotate(&dir) {
                self.hold = Hold::Open(current);
                return Err(error);
            }
            current = self.begin(&dir)?;
        }
        let written = current.write(&bytes, len);
        self.hold = Hold::Open(current);
        written.map_err(|source| dir.failed("write", NAME, source))?;
        self.chain = chain;
        self.opened.clear();
        Ok(taken)
    }

    /// As many lines as go together, what waits here first; the chain behind them, and how many
    /// of the entries they are.
    fn render(&self, entries: &VecDeque<Entry>) -> (Vec<u8>, Chain, usize) {
        let file_bytes_max = usize::try_from(self.limits.file_bytes_max).unwrap_or(usize::MAX);
        let bytes_max = BATCH_BYTES_MAX.min(file_bytes_max);
        let mut chain = self.chain;
        let mut bytes = Vec::new();
        for (at, opened) in &self.opened {
            let what = What::Opened(opened.clone());
            chain.add(&Entry { at: *at, what }, &mut bytes);
        }
        let mut taken = 0;
        for entry in entries {
            let (begin, before) = (bytes.len(), chain);
            chain.add(entry, &mut bytes);
            if bytes.len() > bytes_max && begin > 0 {
                bytes.truncate(begin);
                chain = before;
                break;
            }
            taken += 1;
        }
        (bytes, chain, taken)
    }

    /// Reads where the chain goes on, and takes up the file if there is a good one.
    fn take_up(&mut self) -> Result<(), AuditError> {
        let dir = Dir::own(&self.dir)?;
        let mut broken = None;
        let mut cut = 0;
        match dir.append(NAME)? {
            None => match chain_of_rotated(&dir, self.limits.files_max)? {
                Ok(chain) => (self.chain, self.hold) = (chain, Hold::None),
                Err(why) => broken = Some(why),
            },
            Some(file) => {
                let failed = |source| dir.failed("read", NAME, source);
                let metadata = file.metadata().map_err(failed)?;
                let identity = (metadata.dev(), metadata.ino());
                let (chain, extent) = match tail::read(&file).map_err(failed)? {
                    Tail::Sound(chain, extent) => (Ok(chain), extent),
                    Tail::Empty(extent) => (chain_of_rotated(&dir, self.limits.files_max)?, extent),
                    Tail::Broken(why) => (Err(why), Extent { len: 0, torn: 0 }),
                };
                match chain {
                    Ok(chain) => {
                        cut = extent.torn;
                        self.chain = chain;
                        self.hold = Hold::Open(Current {
                            file,
                            identity,
                            len: extent.len,
                            end: if cut > 0 { End::Torn } else { End::Clean },
                        });
                    }
                    Err(why) => broken = Some(why),
                }
            }
        }
        if cut > 0 {
            tracing::warn!(
                bytes = cut,
                "the last line of the audit trail was not written to its end and is cut off"
            );
        }
        let because = match broken {
            Some(_) => Because::Broken,
            None => Because::Started,
        };
        if let Some(why) = &broken {
            tracing::error!(%why, "the audit trail is broken: it is kept aside, and begins anew");
            (self.chain, self.hold) = (Chain::NEW, Hold::None);
        }
        self.tell(because, broken, cut);
        Ok(())
    }

    /// Sees whether the open file is still the one of that name, and as it was left.
    fn stand(&mut self, dir: &Dir) -> Result<(), AuditError> {
        let Hold::Open(current) = &mut self.hold else {
            return Ok(());
        };
        let failed = |source| dir.failed("look at", NAME, source);
        let named = dir.named(NAME)?;
        let metadata = current.file.metadata().map_err(failed)?;
        let because = match named {
            Some(named) if named.identity == current.identity => match current.end {
                End::Clean if metadata.len() == current.len => return Ok(()),
                End::Torn if metadata.len() >= current.len => {
                    let cut = current.cut();
                    return cut.map_err(|source| dir.failed("cut back", NAME, source));
                }
                End::Clean | End::Torn => Because::Changed,
            },
            Some(_) => Because::Replaced,
            None if metadata.nlink() == 0 => Because::Deleted,
            None => Because::Moved,
        };
        self.hold = Hold::None;
        tracing::warn!(
            %because,
            "the audit trail is not as it was left: another file is begun"
        );
        self.tell(because, None, 0);
        Ok(())
    }

    /// Begins a file. What has its name is renamed, unless it is an empty file of ours.
    fn begin(&mut self, dir: &Dir) -> Result<Current, AuditError> {
        let file = match dir.named(NAME)? {
            Some(Named {
                is_ours: true,
                len: 0,
                ..
            }) => dir.append(NAME)?,
            Some(_) => {
                self.set_aside(dir)?;
                None
            }
            None => None,
        };
        let file = match file {
            Some(file) => file,
            None => dir.create(NAME)?,
        };
        let metadata = file.metadata();
        let metadata = metadata.map_err(|source| dir.failed("look at", NAME, source))?;
        dir.sync()?;
        Ok(Current {
            file,
            identity: (metadata.dev(), metadata.ino()),
            len: 0,
            end: End::Clean,
        })
    }

    /// Gives what stands in the file's place another name, and has the next line tell it.
    fn set_aside(&mut self, dir: &Dir) -> Result<(), AuditError> {
        let time = Stamp(clock::wall()).to_string();
        let time = time.replace(['-', ':'], "");
        let plain = format!("{NAME}.broken-{time}");
        let mut aside = plain.clone();
        for number in 1..=ASIDE_TRIES_MAX {
            if dir.named(&aside)?.is_none() {
                break;
            }
            aside = format!("{plain}-{number}");
        }
        dir.rename(NAME, &aside)?;
        tracing::warn!(%aside, "what stood in the place of the audit trail is kept aside");
        let is_told = |(_, opened): &(Wall, Opened)| opened.aside.is_some();
        if self.opened.back().is_none_or(is_told) {
            self.tell(Because::Replaced, None, 0);
        }
        if let Some((_, opened)) = self.opened.back_mut() {
            opened.aside.get_or_insert(aside);
        }
        Ok(())
    }

    /// Has the next batch begin with a line that says why a file was opened.
    fn tell(&mut self, because: Because, why: Option<String>, cut: u64) {
        if self.opened.len() >= OPENED_MAX {
            return;
        }
        let opened = Opened {
            version: self.author.version.clone(),
            server: self.author.server.clone(),
            because,
            why,
            aside: None,
            cut,
        };
        self.opened.push_back((clock::wall(), opened));
    }

    /// Moves each file to the next number, as far as there is no gap; the oldest goes.
    fn rotate(&self, dir: &Dir) -> Result<(), AuditError> {
        let mut free = self.limits.files_max;
        for number in 1..self.limits.files_max {
            if dir.named(&rotated(number))?.is_none() {
                free = number;
                break;
            }
        }
        for number in (1..free).rev() {
            dir.rename(&rotated(number), &rotated(number + 1))?;
        }
        dir.rename(NAME, &rotated(1))
    }
}

/// Where the chain goes on when the newest file has no line: at the end of the youngest other
/// that has one. `Err` says why that one is broken.
fn chain_of_rotated(dir: &Dir, files_max: u32) -> Result<Result<Chain, String>, AuditError> {
    for number in 1..=files_max {
        let name = rotated(number);
        let Some(file) = dir.read(&name)? else {
            continue;
        };
        match tail::read(&file).map_err(|source| dir.failed("read", &name, source))? {
            Tail::Sound(chain, _) => return Ok(Ok(chain)),
            Tail::Empty(_) => {}
            Tail::Broken(why) => return Ok(Err(format!("`{name}`: {why}"))),
        }
    }
    Ok(Ok(Chain::NEW))
}

impl Current {
    /// Adds these bytes, all or none.
    fn write(&mut self, bytes: &[u8], len: u64) -> io::Result<()> {
        if self.end == End::Torn {
            self.cut()?;
        }
        let written = self.write_and_sync(bytes);
        match written {
            Ok(()) => self.len += len,
            Err(_) => {
                self.end = End::Torn;
                // What fails here is done before the next write.
                let _later = self.cut();
            }
        }
        written
    }

    fn write_and_sync(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        let mut interruptions = 0;
        while !rest.is_empty() {
            match place::write(&mut self.file, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted
                        && interruptions < INTERRUPTIONS_MAX =>
                {
                    interruptions += 1;
                }
                Err(error) => return Err(error),
            }
        }
        place::sync(&self.file)
    }

    /// Takes off what is behind the good length.
    fn cut(&mut self) -> io::Result<()> {
        place::cut(&self.file, self.len)?;
        self.end = End::Clean;
        Ok(())
    }
}
