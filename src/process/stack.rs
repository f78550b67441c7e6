//! The stack that a starting child runs on until it calls `execve`.
//!
//! One mapping with a guard below it, made once and used for every start: the parent waits
//! until the child has left it (`CLONE_VFORK`), so two children are never on it at once.
//!
//! Sources: clone(2), mmap(2).

#![allow(unsafe_code)]

use std::{ffi::c_void, io, ptr};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// What the child may use, in bytes; only pages that are touched cost memory.
const STACK_BYTES: usize = 64 * 1024;

/// The size of the guard, in bytes: the largest page of the machines we run on.
const GUARD_BYTES: usize = 64 * 1024;

/// A mapped stack. Freed when dropped.
#[derive(Debug)]
pub(super) struct Stack {
    base: *mut c_void,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is bound to no thread.
unsafe impl Send for Stack {}

impl Stack {
    /// Maps a stack with its guard.
    ///
    /// # Errors
    /// What mmap(2) and mprotect(2) say: no memory, or too many mappings.
    pub(super) fn new() -> io::Result<Self> {
        let len = GUARD_BYTES + STACK_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags)? };
        let stack = Self { base, len };
        // SAFETY: the range lies within the mapping that was made just now.
        unsafe {
            mprotect(
                base.cast::<u8>().add(GUARD_BYTES).cast(),
                STACK_BYTES,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )?;
        }
        Ok(stack)
    }

    /// The highest address: stacks grow down on every machine we run on. Page-aligned.
    pub(super) fn top(&mut self) -> *mut c_void {
        // SAFETY: one past the end of the mapping is still a pointer into the allocation.
        unsafe { self.base.cast::<u8>().add(self.len).cast() }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody runs on it: a child leaves it before the call
        // that started it returns. A failure leaks 64 KiB of address space and nothing else.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
