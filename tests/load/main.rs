//! Load and abuse of the real server, in a program of its own: what is measured here must not share
//! the machine with the tests of `tests/it`.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on is to fail, and says where"
)]

#[path = "../it/network.rs"]
#[allow(dead_code, reason = "the tests of `tests/it` use all of it")]
mod network;
#[path = "../it/sandbox.rs"]
#[allow(dead_code, reason = "the tests of `tests/it` use all of it")]
mod sandbox;
mod siege;
#[path = "../it/signing.rs"]
#[allow(dead_code, reason = "the tests of `tests/it` use all of it")]
mod signing;
