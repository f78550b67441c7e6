//! What a child writes down of itself between clone and exec: nobody has to live to tell of it.
//!
//! - It adds one record, its number and start time, to the record of live runs, in one write at
//!   the end of the file (`O_APPEND`), and only then becomes its program. A program that cannot be
//!   executed adds a second one, that says so.
//! - It keeps a copy of the lock on that record until exec, which closes it. So whoever gets the
//!   lock after the server died knows that every run which was executed is on record, and that
//!   none is still about to be (I1, I2).
//! - The text around the two numbers, and how records stand in the file, come from outside
//!   ([`Birth`]): here numbers are put in and bytes are written.
//!
//! Everything in here that runs in the child keeps to the rules of `spawn`.
//!
//! Sources: open(2) `O_APPEND`, flock(2), proc_pid_stat(5), signal-safety(7).

#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

/// How many bytes stand before a record's text in the file.
pub const PREFIX_BYTES: usize = 8;

/// The longest record that a child writes of itself, in bytes: a name has 64 at most, each number
/// 20, and the rest is some hundred.
const RECORD_BYTES_MAX: usize = 512;

/// How much of `/proc/self/stat` is read, in bytes: up to field 22 it has some 300 at most.
const STAT_BYTES: usize = 1024;

/// How a run is written down by its own process.
#[derive(Debug, Clone, Copy)]
pub struct Birth<'a> {
    /// The record of live runs, open for adding.
    pub file: BorrowedFd<'a>,
    /// The lock on it.
    pub lock: BorrowedFd<'a>,
    /// The record's text: before the pid, between it and the start time in clock ticks since
    /// boot, and after that.
    pub text: [&'a [u8]; 3],
    /// What stands before a record's text in the file. Called in the child: it must not allocate,
    /// lock, index or panic.
    pub prefix: fn(&[u8]) -> [u8; PREFIX_BYTES],
    /// The whole record, prefix included, of a program that could not be executed.
    pub never: &'a [u8],
}

/// A birth as it is done: with the descriptor that the file has in the child.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) file: RawFd,
    pub(super) birth: &'a Birth<'a>,
}

impl Entry<'_> {
    /// Runs in the child: adds its record. The error is an errno; what was written of it is cut
    /// off by whoever reads it next.
    pub(super) fn write(&self, start_ticks: u64) -> Result<(), c_int> {
        let [before, between, after] = self.birth.text;
        let mut record = Bytes::<RECORD_BYTES_MAX>::new();
        // SAFETY: getpid(2) touches no memory and cannot fail.
        let pid = unsafe { libc::getpid() };
        record.put(before)?;
        record.number(u64::from(pid.unsigned_abs()))?;
        record.put(between)?;
        record.number(start_ticks)?;
        record.put(after)?;
        let mut whole = Bytes::<{ RECORD_BYTES_MAX + PREFIX_BYTES }>::new();
        whole.put(&(self.birth.prefix)(record.written()))?;
        whole.put(record.written())?;
        write(self.file, whole.written())
    }

    /// Runs in the child: says that its program could not be executed. The server says it better
    /// if it lives.
    pub(super) fn withdraw(&self) {
        let _best_effort = write(self.file, self.birth.never);
    }
}

/// Runs in the child: when it started, in clock ticks since boot. The error is an errno.
pub(super) fn own_start_ticks() -> Result<u64, c_int> {
    let mut text = [0_u8; STAT_BYTES];
    // SAFETY: the path ends with NUL, and the buffer is as long as is said; the descriptor is this
    // process's own, whose table is not shared any more.
    let read = unsafe {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let file = libc::open(c"/proc/self/stat".as_ptr(), flags);
        if file == -1 {
            return Err(*libc::__errno_location());
        }
        let read = libc::read(file, text.as_mut_ptr().cast::<c_void>(), text.len());
        libc::close(file);
        read
    };
    let read = usize::try_from(read).map_err(|_| libc::EIO)?;
    text.get(..read).and_then(start_ticks).ok_or(libc::EBADMSG)
}

/// Field 22. The second field is a program's name in parentheses and may hold anything, so that we
/// count from the last parenthesis.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    const FIELDS_AFTER_NAME: usize = 19;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let after = stat.get(end + 2..)?;
    let field = after.split(|byte| *byte == b' ').nth(FIELDS_AFTER_NAME)?;
    let digit = |ticks: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        ticks.checked_mul(10)?.checked_add(digit)
    };
    (!field.is_empty()).then_some(())?;
    field.iter().try_fold(0, digit)
}

fn write(file: RawFd, bytes: &[u8]) -> Result<(), c_int> {
    // SAFETY: the bytes are as long as is said; the descriptor is one that was prepared.
    let written = unsafe { libc::write(file, bytes.as_ptr().cast::<c_void>(), bytes.len()) };
    match usize::try_from(written) {
        Ok(written) if written == bytes.len() => Ok(()),
        // A part of it: no room for the rest.
        Ok(_) => Err(libc::ENOSPC),
        // SAFETY: the location is this thread's, and always there.
        Err(_) => Err(unsafe { *libc::__errno_location() }),
    }
}

/// Bytes on the stack, with an end.
struct Bytes<const LEN: usize> {
    bytes: [u8; LEN],
    len: usize,
}

impl<const LEN: usize> Bytes<LEN> {
    fn new() -> Self {
        Self {
            bytes: [0; LEN],
            len: 0,
        }
    }

    fn put(&mut self, more: &[u8]) -> Result<(), c_int> {
        let end = self.len.saturating_add(more.len());
        let room = self.bytes.get_mut(self.len..end).ok_or(libc::E2BIG)?;
        for (to, from) in room.iter_mut().zip(more) {
            *to = *from;
        }
        self.len = end;
        Ok(())
    }

    fn number(&mut self, number: u64) -> Result<(), c_int> {
        const DIGITS_MAX: usize = 20;
        let mut digits = [b'0'; DIGITS_MAX];
        let mut rest = number;
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            used += 1;
            if rest == 0 {
                break;
            }
        }
        self.put(digits.get(DIGITS_MAX - used..).unwrap_or(&[]))
    }

    fn written(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// The descriptors above 2 that are none of `kept`, as ranges from first to last.
pub(super) fn all_but(kept: &[BorrowedFd<'_>]) -> Vec<(u32, u32)> {
    const FIRST: u32 = super::inherit::FIRST_OTHER.cast_unsigned();
    let mut kept: Vec<u32> = kept
        .iter()
        .map(|fd| fd.as_raw_fd().cast_unsigned())
        .collect();
    kept.sort_unstable();
    let mut ranges = Vec::with_capacity(kept.len() + 1);
    let mut from = FIRST;
    for fd in kept {
        if fd > from {
            ranges.push((from, fd - 1));
        }
        from = from.max(fd + 1);
    }
    ranges.push((from, u32::MAX));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_as_people_write_it() {
        for number in [0, 7, 10, 4_194_304, u64::MAX] {
            let mut bytes = Bytes::<64>::new();
            bytes.number(number).unwrap();
            assert_eq!(bytes.written(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_of_it_is_kept() {
        let mut bytes = Bytes::<4>::new();
        bytes.put(b"abc").unwrap();
        assert_eq!(bytes.put(b"de"), Err(libc::E2BIG));
        assert_eq!(bytes.number(42), Err(libc::E2BIG));
        assert_eq!(bytes.written(), b"abc");
    }

    #[test]
    fn we_started_when_proc_says_so_whatever_a_program_is_called() {
        let own = super::super::identity::stat(std::process::id().cast_signed()).unwrap();
        assert_eq!(own_start_ticks(), Ok(own.start_ticks));
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        for name in ["sh", ") S 1 1", "a\nb", "x) ("] {
            let line = format!("9 ({name}) S {}\n", fields.join(" "));
            assert_eq!(start_ticks(line.as_bytes()), Some(22), "{name:?}");
        }
        for wrong in ["", "9 (sh)", "9 (sh) S 1 2", "no parenthesis at all"] {
            assert_eq!(start_ticks(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_kept_is_in_no_range_that_is_closed() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (low, high) = match reader.as_raw_fd() < writer.as_raw_fd() {
            true => (&reader, &writer),
            false => (&writer, &reader),
        };
        let (a, b) = (
            low.as_raw_fd().cast_unsigned(),
            high.as_raw_fd().cast_unsigned(),
        );
        use std::os::fd::AsFd;
        let ranges = all_but(&[high.as_fd(), low.as_fd()]);
        let closed = |fd: u32| ranges.iter().any(|(from, to)| (*from..=*to).contains(&fd));
        assert!(!closed(2) && !closed(a) && !closed(b));
        for other in (3..b + 10).filter(|fd| *fd != a && *fd != b) {
            assert!(closed(other), "{other}");
        }
        assert_eq!(all_but(&[]), [(3, u32::MAX)]);
    }
}
