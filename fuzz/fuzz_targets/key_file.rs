//! Whatever a key file holds, it is a key of the right size or refused in a few words.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::key_file::holds(bytes));
