//! Whatever stands in a file of records, what is read is a part of what was written.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::record_file::holds(bytes));
