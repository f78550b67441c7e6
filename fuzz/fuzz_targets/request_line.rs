//! Whatever a line from a client is, it is read rightly or refused in a few words.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::request_line::holds(bytes));
