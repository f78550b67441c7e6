//! Reading one child file, and telling whether it must be read at all.
//!
//! - Identities rest on the file system's clock, which ticks: a file that was changed just before
//!   it was read is not believed to be unchanged, and is read again at the next look.
//! - What is wrong with a file and lies in the file itself is looked at again when the file
//!   changes; what lies elsewhere is looked at again each time.
//! - A file that changes while it is read is read again at once: setting its time or its mode
//!   after it was closed is such a change, and no closing follows.

use std::{ffi::OsStr, path::Path, sync::Arc};

use rustix::{fs::FileType, io::Errno};

use super::{
    BeingWritten, Parse,
    awaited::{Claim, Witness},
};
use crate::{
    clock,
    reconcile::listing::Content,
    spec::ChildName,
    trust::{Identity, Links, Owners, TrustError, TrustedDir},
};

/// The most bytes of a child file that are read.
pub const CHILD_FILE_BYTES_MAX: u64 = 1 << 20;

/// A file changed this shortly before it was read may change again without a trace: file
/// systems keep the time of the last tick of the kernel's clock, which ticks every 10 ms or more
/// often.
const RACY_MS: i64 = 20;

/// How often a file is read in a row that changes meanwhile.
const READ_ATTEMPTS_MAX: u32 = 4;

/// What a file is read with.
pub(super) struct Reader {
    pub(super) parse: Parse,
    pub(super) owners: Owners,
    pub(super) being_written: BeingWritten,
    pub(super) files_max: usize,
}

/// Which file was read, when that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Print {
    /// What stands in the directory.
    here: Identity,
    /// What it leads to, when it is a link.
    pub(super) there: Option<Identity>,
}

/// How a look at a file ended.
pub(super) enum Look {
    /// It is not there.
    Gone,
    /// Somebody writes it, says this witness.
    Written(Witness),
    /// This is what it says; `sure` when an equal print means equal content.
    Read { content: Content, sure: bool },
}

/// It changed while it was read.
struct Changing;

/// Whether a file may have been changed after a look at this moment, in milliseconds since 1970,
/// without its identity telling.
pub(super) fn is_racy(identity: &Identity, now_ms: i64) -> bool {
    let ctime_ms = i64::try_from(identity.ctime_ns / 1_000_000).unwrap_or(i64::MAX);
    now_ms.saturating_sub(ctime_ms) <= RACY_MS
}

impl Print {
    /// `None` when there is nothing of that name.
    pub(super) fn of(dir: &TrustedDir, file: &OsStr) -> Result<Option<Self>, Errno> {
        let Some(here) = dir.stat(file, Links::Keep)? else {
            return Ok(None);
        };
        let link = FileType::from_raw_mode(here.st_mode) == FileType::Symlink;
        let here = Identity::from(&here);
        let there = match link {
            false => None,
            // A link to nothing is what it is.
            true => match dir.stat(file, Links::Follow) {
                Ok(Some(stat)) => Some(Identity::from(&stat)),
                Ok(None) | Err(_) => Some(here),
            },
        };
        Ok(Some(Self { here, there }))
    }

    /// Of a file that is no link.
    #[cfg(test)]
    pub(super) fn of_file(here: Identity) -> Self {
        Self { here, there: None }
    }

    /// Whether it was changed long enough before this moment, in milliseconds since 1970.
    fn is_settled(&self, now_ms: i64) -> bool {
        let settled = |identity: &Identity| !is_racy(identity, now_ms);
        settled(&self.here) && self.there.as_ref().is_none_or(settled)
    }
}

impl Reader {
    /// Opens it, checks it, and reads it unless somebody writes it. `print` is what stood there
    /// just before, `claim` what else is known of it.
    pub(super) fn read(
        &self,
        dir: &TrustedDir,
        file: &OsStr,
        child: &ChildName,
        path: &Path,
        print: Option<Print>,
        claim: Claim,
    ) -> Look {
        match claim {
            Claim::Open => self.ask(dir, file),
            Claim::None => {
                for _ in 0..READ_ATTEMPTS_MAX {
                    if let Ok(look) = self.read_once(dir, file, child, path, print) {
                        return look;
                    }
                }
                Look::Written(Witness::Change)
            }
        }
    }

    /// Whether the file itself says what hints say of it: that it is being written. What is wrong
    /// with such a file is no news yet.
    fn ask(&self, dir: &TrustedDir, file: &OsStr) -> Look {
        match dir.open(file, &self.owners) {
            Ok(opened) if (self.being_written)(opened.file()) => Look::Written(Witness::Lease),
            Err(TrustError::Missing { .. }) => Look::Gone,
            Ok(_) | Err(_) => Look::Written(Witness::Hints),
        }
    }

    fn read_once(
        &self,
        dir: &TrustedDir,
        file: &OsStr,
        child: &ChildName,
        path: &Path,
        print: Option<Print>,
    ) -> Result<Look, Changing> {
        // Read before the file is: what changes it later has a later time, or is within the tick.
        let now_ms = clock::wall().0;
        let settled = print.is_some_and(|print| print.is_settled(now_ms));
        let opened = match dir.open(file, &self.owners) {
            Ok(opened) => opened,
            Err(error) => return Self::fault(error, settled, print),
        };
        if (self.being_written)(opened.file()) {
            return Ok(Look::Written(Witness::Lease));
        }
        let identity = opened.identity();
        let trusted = match opened.read(CHILD_FILE_BYTES_MAX) {
            Ok(trusted) => trusted,
            Err(error) => return Self::fault(error, settled, print),
        };
        let content = match (self.parse)(child, path, &trusted.bytes) {
            Ok(spec) => Content::Good(Arc::new(spec)),
            Err(faults) => Content::Bad(faults.into()),
        };
        // It may have been replaced between the look and the opening.
        let same = print.is_some_and(|print| print.there.unwrap_or(print.here) == identity);
        let sure = settled && same;
        Ok(Look::Read { content, sure })
    }

    fn fault(error: TrustError, settled: bool, print: Option<Print>) -> Result<Look, Changing> {
        let sure = match &error {
            TrustError::Missing { .. } => return Ok(Look::Gone),
            TrustError::Changing { .. } => return Err(Changing),
            // Somebody holds a lease on it.
            TrustError::System {
                errno: Errno::AGAIN,
                ..
            } => return Ok(Look::Written(Witness::Change)),
            // What is wrong lies in the file itself, so righting it changes the file.
            TrustError::NotRegular { .. }
            | TrustError::TooLarge { .. }
            | TrustError::Owner { .. }
            | TrustError::Writable { .. } => {
                settled && print.is_some_and(|print| print.there.is_none())
            }
            TrustError::NotAbsolute { .. }
            | TrustError::Dangling { .. }
            | TrustError::Links { .. }
            | TrustError::Deep { .. }
            | TrustError::NotDirectory { .. }
            | TrustError::Crowded { .. }
            | TrustError::HardLinks { .. }
            | TrustError::System { .. }
            | TrustError::UnknownUser { .. }
            | TrustError::Passwd { .. } => false,
        };
        let content = Content::Bad([error.to_string()].into());
        Ok(Look::Read { content, sure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Inode;

    fn identity(ctime_ms: i64) -> Identity {
        Identity {
            inode: Inode { dev: 1, ino: 2 },
            size: 3,
            mtime_ns: 0,
            ctime_ns: i128::from(ctime_ms) * 1_000_000,
        }
    }

    #[test]
    fn a_file_is_racy_for_a_tick_after_it_was_changed() {
        assert!(is_racy(&identity(1000), 1000));
        assert!(is_racy(&identity(1000), 1000 + RACY_MS));
        assert!(!is_racy(&identity(1000), 1001 + RACY_MS));
    }

    #[test]
    fn a_file_from_the_future_is_never_sure() {
        // The clock was set back, or the file is another machine's.
        assert!(is_racy(&identity(50_000), 1000));
        assert!(is_racy(&identity(i64::MAX), 1000));
    }

    #[test]
    fn a_link_is_as_racy_as_what_it_leads_to() {
        let print = |there| Print {
            here: identity(0),
            there,
        };
        assert!(print(None).is_settled(1000));
        assert!(print(Some(identity(900))).is_settled(1000));
        assert!(!print(Some(identity(999))).is_settled(1000));
    }
}
