//! One file of a key: opened and checked at each look, read when it may have changed.
//!
//! What was read is kept with the identity it was read under. An equal identity is believed only
//! when the last change was long enough before the reading: file systems keep the times of files
//! in ticks, and two changes within one look like one.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    clock,
    trust::{Identity, Owners, TrustError, TrustedDir},
};

/// How long after its last change what is read of a file is sure to be told from a later change:
/// more than a tick of the coarsest file system we know of (FAT, 2 s).
pub(super) const SURE_AFTER_MS: i64 = 2_500;

/// How often a file that changes meanwhile is read in a row.
const READ_ATTEMPTS_MAX: usize = 4;

/// Whether somebody has a file open for writing; `false` also when that cannot be known.
pub type BeingWritten = fn(&File) -> bool;

/// What a file's bytes mean, or everything that is wrong with them.
pub(super) type Parse<T> = fn(&Path, &[u8]) -> Result<T, Vec<String>>;

/// Where a file stands.
pub(super) struct Place<'a> {
    pub(super) dir: &'a TrustedDir,
    pub(super) file: &'a OsStr,
    /// As it is shown: under the directory as it was configured.
    pub(super) path: PathBuf,
}

/// How a file is read.
pub(super) struct Reading<'a, T> {
    pub(super) owners: &'a Owners,
    pub(super) being_written: Option<BeingWritten>,
    pub(super) bytes_max: u64,
    /// [`SURE_AFTER_MS`].
    pub(super) sure_after_ms: i64,
    pub(super) parse: Parse<T>,
}

/// What a file said when it was last read.
#[derive(Debug)]
pub(super) struct Remembered<T> {
    path: PathBuf,
    identity: Identity,
    /// Whether an equal identity means equal content.
    sure: bool,
    digest: [u8; 32],
    pub(super) value: Result<T, Vec<String>>,
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// It is not there any more.
    #[error("{} is gone", crate::trust::Shown(.0))]
    Gone(PathBuf),
    /// Somebody writes it.
    #[error("{} is being written", crate::trust::Shown(.0))]
    BeingWritten(PathBuf),
    /// It did not pass the check.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Whether what is read at this moment (milliseconds since 1970), under this identity, is sure to
/// be told from a later change.
pub(super) fn is_sure(identity: &Identity, now_ms: i64, sure_after_ms: i64) -> bool {
    let changed_ms = i64::try_from(identity.ctime_ns / 1_000_000).unwrap_or(i64::MAX);
    now_ms.saturating_sub(changed_ms) > sure_after_ms
}

impl<T> Reading<'_, T> {
    /// Opens and checks the file, and reads it unless `memory` is of the very same.
    pub(super) fn read(
        &self,
        place: &Place<'_>,
        memory: Option<Remembered<T>>,
    ) -> Result<Remembered<T>, Unreadable> {
        let memory = memory.filter(|memory| memory.path == place.path);
        let mut attempts = 1..READ_ATTEMPTS_MAX;
        loop {
            // Before it is opened: whatever changes it later has a later time.
            let now_ms = clock::wall().0;
            let opened = match place.dir.open(place.file, self.owners) {
                Ok(opened) => opened,
                Err(TrustError::Missing { .. }) => {
                    return Err(Unreadable::Gone(place.path.clone()));
                }
                Err(error) => return Err(error.into()),
            };
            let identity = opened.identity();
            let same = |memory: &Remembered<T>| memory.sure && memory.identity == identity;
            match memory {
                Some(memory) if same(&memory) => return Ok(memory),
                Some(_) | None => {}
            }
            if self.being_written.is_some_and(|ask| ask(opened.file())) {
                return Err(Unreadable::BeingWritten(place.path.clone()));
            }
            let bytes = match opened.read(self.bytes_max) {
                Ok(trusted) => trusted.bytes,
                Err(TrustError::Changing { .. }) if attempts.next().is_some() => continue,
                Err(error) => return Err(error.into()),
            };
            let digest = Sha256::digest(&bytes).into();
            let value = match memory {
                Some(memory) if memory.digest == digest => memory.value,
                Some(_) | None => (self.parse)(&place.path, &bytes),
            };
            return Ok(Remembered {
                path: place.path.clone(),
                identity,
                sure: is_sure(&identity, now_ms, self.sure_after_ms),
                digest,
                value,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Inode;

    #[test]
    fn a_change_is_sure_to_be_told_from_a_later_one_only_after_a_while() {
        let identity = |ctime_ms: i64| Identity {
            inode: Inode { dev: 1, ino: 2 },
            size: 3,
            mtime_ns: 0,
            ctime_ns: i128::from(ctime_ms) * 1_000_000,
        };
        assert!(!is_sure(&identity(10_000), 10_000, SURE_AFTER_MS));
        assert!(!is_sure(&identity(10_000), 12_000, SURE_AFTER_MS));
        assert!(is_sure(&identity(10_000), 13_000, SURE_AFTER_MS));
        // The clock was set back, or the file is another machine's.
        assert!(!is_sure(&identity(50_000), 10_000, SURE_AFTER_MS));
        assert!(!is_sure(&identity(i64::MAX), 10_000, SURE_AFTER_MS));
    }
}
