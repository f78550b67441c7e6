//! Whatever a key's scope says, it is a whole scope or its faults are shown in their places.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::key_scope::holds(bytes));
