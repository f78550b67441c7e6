//! Whatever server.yml says, it is a whole configuration or its faults are shown in their places.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::server_yml::holds(bytes));
