//! The end of a file: where its chain goes on, or why it cannot.
//!
//! - A last line without its line feed was being written when a server was killed, and nobody
//!   was answered because of it: it is left out.
//! - A last whole line that is no line of a chain, or does not fit the line before it, was not
//!   written by a server: such a file is not added to.
//!
//! Only the end is read, however long the file is: what stands before it is checked by `verify`.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    BATCH_BYTES_MAX, LINE_BYTES_MAX,
    chain::{Chain, Link},
};

/// The last two lines, and what may be left of a write.
const WINDOW_BYTES: usize = BATCH_BYTES_MAX + 2 * LINE_BYTES_MAX;

/// What a file ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// A line that the chain goes on from.
    Sound(Chain, Extent),
    /// It holds no line.
    Empty(Extent),
    /// Something that no server has written; why, for a person.
    Broken(String),
}

/// How far a file reaches, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Its whole lines.
    pub(super) len: u64,
    /// What is behind them.
    pub(super) torn: u64,
}

/// Reads the end of a file.
///
/// # Errors
///
/// The system's.
pub(super) fn read(file: &File) -> io::Result<Tail> {
    let len = file.metadata()?.len();
    let window = len.min(as_u64(WINDOW_BYTES));
    let begin = len - window;
    let mut bytes = vec![0; usize::try_from(window).unwrap_or(WINDOW_BYTES)];
    file.read_exact_at(&mut bytes, begin)?;
    Ok(of(&bytes, begin))
}

/// What these bytes say, which are the last ones of a file and begin there in it.
fn of(bytes: &[u8], begin: u64) -> Tail {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |feed| feed + 1);
    let torn = bytes.len() - whole;
    if torn > BATCH_BYTES_MAX {
        return Tail::Broken(format!("its last {torn} bytes are no line"));
    }
    let extent = Extent {
        len: begin + as_u64(whole),
        torn: as_u64(torn),
    };
    let Some(before_feed) = whole.checked_sub(1) else {
        return Tail::Empty(extent);
    };
    let (before, last) = split(&bytes[..before_feed]);
    if last.len() >= LINE_BYTES_MAX {
        return Tail::Broken("its last line is too long".to_owned());
    }
    let link = match Link::read(last) {
        Ok(link) => link,
        Err(why) => return Tail::Broken(format!("its last line cannot be read: {why}")),
    };
    if let Some(before) = before {
        let (_, before) = split(before);
        if !Link::read(before).is_ok_and(|first| fits(&link, &Chain::after(&first, before))) {
            return Tail::Broken("its last line does not fit the one before".to_owned());
        }
    }
    Tail::Sound(Chain::after(&link, last), extent)
}

/// Whether a line is the next one of a chain.
pub(super) fn fits(link: &Link, chain: &Chain) -> bool {
    chain.seq.checked_add(1) == Some(link.seq) && link.prev == chain.last
}

/// The last line, and what is before its line feed.
fn split(bytes: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(feed) => (Some(&bytes[..feed]), &bytes[feed + 1..]),
        None => (None, bytes),
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
