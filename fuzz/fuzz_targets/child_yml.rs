//! Whatever a child's file says, it is a whole spec or its faults are shown in their places.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::child_yml::holds(bytes));
