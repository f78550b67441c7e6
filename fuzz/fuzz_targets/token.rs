//! Whatever a token says, it gives a command only if it was signed and says what it must.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::token::holds(bytes));
