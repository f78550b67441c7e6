//! The server's command line: parse, call, exit code.
fn main() {}
