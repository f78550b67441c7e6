//! Whether somebody has a file open for writing right now.
//!
//! The kernel grants a read lease only while nobody has the file open for writing, so asking for
//! one and giving it back at once is the question. Nothing is waited for and nobody is watched.
//!
//! A writer that opens the file in the instant between the two waits for us, and the kernel tells
//! us by a signal. That would be `SIGIO`, which ends a process that does not expect it; we ask
//! for `SIGURG` instead, which does nothing unless somebody handles it. The kernel falls back to
//! `SIGIO` for queued (real-time) signals only, which `SIGURG` is not.
//!
//! Leases are refused on network file systems and on files of others (without `CAP_LEASE`): then
//! the answer is "no", and the caller's other means must do.
//!
//! Sources: fcntl(2), "Leases" and `F_SETSIG`.

#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd};

/// `F_SETSIG` of the kernel, which the `libc` crate lacks for Linux.
const F_SETSIG: libc::c_int = 10;

/// Whether somebody has this file open for writing. `file` must be open for reading alone.
///
/// "No" also when that cannot be known here.
#[must_use]
pub fn open_for_writing(file: &File) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: both calls concern this descriptor alone, which `file` keeps open.
    let lease = unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) == -1 {
            return false;
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    if lease == -1 {
        return io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    }
    // SAFETY: as above. Were it refused, closing the file would still end the lease.
    unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    false
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write, thread};

    use super::*;

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert!(open_for_writing(&reader), "the test itself has it open");
        let path = file.into_temp_path();
        assert!(!open_for_writing(&reader));
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert!(open_for_writing(&reader));
        drop(writer);
        assert!(!open_for_writing(&reader));
    }

    #[test]
    fn other_readers_are_no_writers() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let _other = File::open(&path).unwrap();
        assert!(!open_for_writing(&File::open(&path).unwrap()));
    }

    #[test]
    fn what_cannot_be_leased_is_not_open_for_writing() {
        assert!(!open_for_writing(&File::open("/dev/null").unwrap()));
        assert!(!open_for_writing(&File::open("/proc/self/stat").unwrap()));
        assert!(!open_for_writing(&File::open("/").unwrap()));
    }

    #[test]
    fn a_writer_that_comes_while_we_ask_neither_kills_us_nor_waits_long() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let reader = File::open(&path).unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..2_000 {
                    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                    file.write_all(b"x").unwrap();
                }
            });
            while !writer.is_finished() {
                let _ = open_for_writing(&reader);
            }
        });
        assert_eq!(path.metadata().unwrap().len(), 2_000);
        assert!(!open_for_writing(&reader));
    }
}
