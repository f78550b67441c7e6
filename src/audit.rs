//! The audit trail: who commanded what, and who was refused, on disk before anybody is answered.
//!
//! `state_dir/audit.jsonl` has one line of JSON for each command that changes something, for each
//! refusal, and for each beginning of the file; `docs/AUDIT.md` is its description for people.
//!
//! - Each line carries its number and the SHA-256 of the line before (`chain`), across rotations
//!   and across servers, so that a line that was changed, taken out, put in or moved is found
//!   (`verify`).
//! - A line is on disk before the answer it tells of is sent. Who hands lines over never waits
//!   for the disk: one thread writes all that has gathered at once, then gives the answers
//!   (`writer`).
//! - Lines stand in the order in which they were handed over.
//! - A disk that takes nothing holds up no answer: what was done is answered truthfully, its line
//!   is kept and written later, in its place. What does not fit into [`AUDIT_BEHIND_MAX`] is
//!   counted, and the count is written.
//! - Nothing that stands in the file's place is ever overwritten or deleted: what is not ours is
//!   kept aside. Only a line that was not written to its end is cut off.
//! - Everything is printable ASCII, whatever a peer sent: nothing breaks a line or reaches a
//!   terminal.
//!
//! Reading order: `entry` (what a line says), `chain` (how lines hang together), `place` (files),
//! `tail` (where a chain goes on), `trail` (the file and its rotation), `writer`, [`verify()`].
//!
//! Absent on purpose: deciding what is told and who may command (whoever calls), and protection
//! against those who can write to `state_dir`: they can write the whole chain anew. Against them
//! helps only a hash that is noted elsewhere.

mod chain;
mod entry;
mod error;
mod place;
mod tail;
mod trail;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::{
    chain::{Hash, NotAHash},
    entry::{By, Entry, Given, Outcome, Refusal},
    error::AuditError,
    verify::{Break, Fault, Verdict, verify},
    writer::{Audit, Room},
};

/// Sees whether a server could take up the trail in this directory now; another may be writing to
/// it. Nothing is written.
///
/// # Errors
///
/// That something stands there that must not be used.
pub fn check(state_dir: &Path) -> Result<(), AuditError> {
    trail::Trail::check(state_dir)
}

/// The most bytes of one file before the next is begun.
pub const AUDIT_FILE_BYTES_MAX: u64 = 16 << 20;

/// How many older files are kept: `audit.jsonl.1`, the youngest, to `audit.jsonl.8`.
pub const AUDIT_FILES_MAX: u32 = 8;

/// The most lines that are kept while the disk takes none. Refusals have half of that, so that
/// who is let in nowhere cannot push out what was commanded.
pub const AUDIT_BEHIND_MAX: usize = 8_192;

/// The most commands whose line may be owed at one time: those under way and those that wait for
/// the disk.
pub const AUDIT_COMMANDS_MAX: usize = 4_096;

/// The most refusals that wait for the thread; those beyond are counted.
pub const AUDIT_REFUSALS_MAX: usize = 1_024;

// What waits fits into an empty memory, so that nothing is lost while the disk is well.
const _: () = assert!(AUDIT_COMMANDS_MAX + AUDIT_REFUSALS_MAX <= AUDIT_BEHIND_MAX);
const _: () = assert!(AUDIT_REFUSALS_MAX <= AUDIT_BEHIND_MAX / 2);

/// The most bytes of a line, its line feed included: far beyond what one can hold.
const LINE_BYTES_MAX: usize = 32 << 10;

/// The most bytes that are written and synced at once. No more than that can be left of a write
/// that was cut short.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// The name of the file that is written to; older ones have a number behind it.
const NAME: &str = "audit.jsonl";

/// How large files get and how many are kept: the constants of this module, but for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// [`AUDIT_FILE_BYTES_MAX`].
    file_bytes_max: u64,
    /// [`AUDIT_FILES_MAX`].
    files_max: u32,
    /// [`AUDIT_BEHIND_MAX`].
    behind_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes_max: AUDIT_FILE_BYTES_MAX,
            files_max: AUDIT_FILES_MAX,
            behind_max: AUDIT_BEHIND_MAX,
        }
    }
}
