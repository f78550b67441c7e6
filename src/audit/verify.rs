//! The trail, checked: every file that is there, from the oldest line to the newest.
//!
//! - It takes no lock and writes nothing, so that a server may be writing meanwhile: all files are
//!   opened first, and the names are looked at once more until none has changed in between.
//! - A last line without an end is being written, or was when a server was killed: it is no break.
//! - The oldest line that is kept follows one that is not: that it does cannot be checked.
//! - What a server has kept aside counts as a break for as long as it lies there: somebody is to
//!   look at it and to take it away.
//! - That lines are missing at the end, or were changed in the last one, nothing in the trail can
//!   tell: only a hash that was noted elsewhere can.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    LINE_BYTES_MAX, NAME,
    chain::{Chain, Hash, Link},
    error::AuditError,
    place::{Dir, Identity},
};
use crate::command::Stamp;

/// How many breaks are told; those after them mostly follow from them.
const BREAKS_MAX: usize = 16;

/// How often files are opened again because their names have changed.
const LOOKS_MAX: usize = 16;

/// What a look at the whole trail found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// How many whole lines there are.
    pub lines: u64,
    /// How many files they stand in.
    pub files: usize,
    /// The time of the first and of the last line.
    pub span: Option<(Stamp, Stamp)>,
    /// The hash of the last line.
    pub last: Option<Hash>,
    /// What is not as a server has written it; none when the trail is whole.
    pub breaks: Vec<Break>,
    /// What is no break and yet may be good to know, each one line.
    pub notes: Vec<String>,
}

/// A place where the trail is not as a server has written it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// In which file, or directory.
    pub path: PathBuf,
    /// The line, from 1; `None` when it is about the whole of it.
    pub line: Option<u64>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No line of an audit trail.
    #[error("expected a line of the audit trail, found something else: {0}")]
    NotALine(String),
    /// Another number than the next one.
    #[error("expected `seq` {expected}, found {found}")]
    Seq {
        /// That of the line before and one.
        expected: u64,
        /// What the line says.
        found: u64,
    },
    /// The hash of another line than the one before.
    #[error("expected `prev` {expected}, the hash of the line before, found {found}")]
    Prev {
        /// The hash of the line before.
        expected: Hash,
        /// What the line says.
        found: Hash,
    },
    /// A first line that follows another, or one that follows none.
    #[error(
        "expected `prev` of 64 zeros in line 1 of all and in no other, found {found} with `seq` {seq}"
    )]
    First {
        /// The line's number.
        seq: u64,
        /// What the line says.
        found: Hash,
    },
    /// A file that is not the newest ends in the middle of a line.
    #[error("expected a line feed at the end of the file, found a line cut short")]
    Torn,
    /// A server has kept this aside.
    #[error(
        "found what was not written by the server, which has kept it aside\nhint: look into it, and move it out of the directory"
    )]
    Aside,
    /// No line has the hash that was noted.
    #[error(
        "expected a line with the noted hash {0}, found none: lines are missing at the end, or it is older than what is kept"
    )]
    Noted(Hash),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.fault)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some((first, last)), Some(hash)) = (self.span, self.last) else {
            return write!(f, "no audit yet");
        };
        let (lines, files) = (self.lines, self.files);
        let whole = match self.breaks.is_empty() {
            true => "whole",
            false => "broken",
        };
        let plural = if files == 1 { "file" } else { "files" };
        write!(
            f,
            "audit is {whole}: {lines} lines from {first} to {last} in {files} {plural}, \
             last hash {hash}"
        )
    }
}

/// Checks the trail in a directory: that of a server's `state_dir`. With `noted`, one of its lines
/// must have this hash.
///
/// # Errors
///
/// When it cannot be read. A break is no error: it stands in the verdict.
pub fn verify(state_dir: &Path, noted: Option<Hash>) -> Result<Verdict, AuditError> {
    let mut check = Check::new(noted);
    if let Some(dir) = Dir::look(state_dir)? {
        let opened = open_all(&dir)?;
        for name in &opened.aside {
            check.broken(dir.path(name), None, Fault::Aside);
        }
        let count = opened.files.len();
        for (index, (name, file)) in opened.files.into_iter().enumerate() {
            let age = match index + 1 == count && name == NAME {
                true => Age::Newest,
                false => Age::Older,
            };
            check.file(&dir, &name, file, age)?;
        }
    }
    if let (Some(noted), false) = (noted, check.is_found) {
        check.broken(state_dir.to_owned(), None, Fault::Noted(noted));
    }
    Ok(check.verdict)
}

/// The files of the trail, all open.
struct Opened {
    /// Oldest first, each with its name when it was opened.
    files: Vec<(String, File)>,
    /// The names of what was kept aside.
    aside: Vec<String>,
}

/// Opens all files as they were named at one moment.
fn open_all(dir: &Dir) -> Result<Opened, AuditError> {
    for _ in 0..LOOKS_MAX {
        let names = dir.names()?;
        let mut files = Vec::new();
        let mut identities: BTreeMap<String, Identity> = BTreeMap::new();
        for name in in_order(&names) {
            // One that is gone by now is missed below.
            if let Some(file) = dir.read(&name)? {
                let metadata = file.metadata();
                let metadata = metadata.map_err(|error| dir.failed("look at", &name, error))?;
                identities.insert(name.clone(), (metadata.dev(), metadata.ino()));
                files.push((name, file));
            }
        }
        if named_now(dir)? == identities {
            let prefix = format!("{NAME}.broken-");
            let mut aside = names;
            aside.retain(|name| name.starts_with(&prefix));
            aside.sort();
            return Ok(Opened { files, aside });
        }
    }
    Err(AuditError::Changing { dir: dir.path("") })
}

/// Which file has which name.
fn named_now(dir: &Dir) -> Result<BTreeMap<String, Identity>, AuditError> {
    let mut identities = BTreeMap::new();
    for name in in_order(&dir.names()?) {
        if let Some(named) = dir.named(&name)? {
            identities.insert(name, named.identity);
        }
    }
    Ok(identities)
}

/// The names of files with lines, the oldest first: the one with the highest number.
fn in_order(names: &[String]) -> Vec<String> {
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    let rotated = numbers.into_iter().rev().map(super::place::rotated);
    let newest = names.iter().filter(|name| *name == NAME).cloned();
    rotated.chain(newest).collect()
}

/// The number behind the name, as a server writes it.
fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(NAME)?.strip_prefix('.')?;
    let number = digits.parse().ok()?;
    (super::place::rotated(number) == name).then_some(number)
}

/// Whether a server may be writing to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Newest,
    Older,
}

/// How far the check is.
struct Check {
    verdict: Verdict,
    /// Behind the last line that could be read.
    chain: Option<Chain>,
    noted: Option<Hash>,
    /// Whether a line has the noted hash.
    is_found: bool,
}

impl Check {
    fn new(noted: Option<Hash>) -> Self {
        Self {
            verdict: Verdict::default(),
            chain: None,
            noted,
            is_found: false,
        }
    }

    fn broken(&mut self, path: PathBuf, line: Option<u64>, fault: Fault) {
        if self.verdict.breaks.len() < BREAKS_MAX {
            self.verdict.breaks.push(Break { path, line, fault });
        }
    }

    fn file(&mut self, dir: &Dir, name: &str, file: File, age: Age) -> Result<(), AuditError> {
        self.verdict.files += 1;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        let mut number = 0;
        let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        loop {
            line.clear();
            let mut limited = (&mut reader).take(limit);
            let read = limited.read_until(b'\n', &mut line);
            if read.map_err(|error| dir.failed("read", name, error))? == 0 {
                return Ok(());
            }
            number += 1;
            let path = || dir.path(name);
            if line.pop_if(|byte| *byte == b'\n').is_some() {
                self.line(path(), number, &line);
            } else if line.len() == LINE_BYTES_MAX {
                let fault = Fault::NotALine(format!("more than {LINE_BYTES_MAX} bytes"));
                self.broken(path(), Some(number), fault);
                reader
                    .skip_until(b'\n')
                    .map_err(|error| dir.failed("read", name, error))?;
            } else {
                match age {
                    Age::Older => self.broken(path(), Some(number), Fault::Torn),
                    Age::Newest => self.verdict.notes.push(format!(
                        "the last line of `{}` has no end: it is being written, or a server was \
                         killed while it wrote it; it does not count",
                        path().display()
                    )),
                }
                return Ok(());
            }
        }
    }

    fn line(&mut self, path: PathBuf, number: u64, line: &[u8]) {
        self.verdict.lines += 1;
        let link = match Link::read(line) {
            Ok(link) => link,
            Err(why) => return self.broken(path, Some(number), Fault::NotALine(why)),
        };
        let begins_anew = link.is_first() && link.says_broken() && number == 1;
        if begins_anew {
            let aside = link.aside.as_deref().unwrap_or("another file");
            self.verdict.notes.push(format!(
                "the chain begins anew in `{}`, for what was there was broken; it was kept as \
                 `{}`",
                path.display(),
                aside.escape_debug()
            ));
        }
        match self.chain {
            _ if begins_anew => {}
            None if link.seq == 1 || link.prev == Hash::NONE => {
                if !link.is_first() {
                    let (seq, found) = (link.seq, link.prev);
                    self.broken(path, Some(number), Fault::First { seq, found });
                }
            }
            None => self.verdict.notes.push(format!(
                "the lines before number {} are not kept: the first one here cannot be checked \
                 against them",
                link.seq
            )),
            Some(chain) => {
                let (seq, last) = (chain.seq.saturating_add(1), chain.last);
                if link.seq != seq {
                    let (expected, found) = (seq, link.seq);
                    self.broken(path, Some(number), Fault::Seq { expected, found });
                } else if link.prev != last {
                    let (expected, found) = (last, link.prev);
                    self.broken(path, Some(number), Fault::Prev { expected, found });
                }
            }
        }
        let chain = Chain::after(&link, line);
        self.chain = Some(chain);
        self.is_found |= self.noted == Some(chain.last);
        let first = self.verdict.span.map_or(link.time, |(first, _)| first);
        self.verdict.span = Some((first, link.time));
        self.verdict.last = Some(chain.last);
    }
}
