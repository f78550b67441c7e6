//! The two real programs, run against each other: one module for each section of the README.
//!
//! Each test has a [`sandbox::Sandbox`] of its own and may run beside any other. A test whose
//! tool or right is missing says so (`sandbox::skip`) and, with `REQUIRE_ALL=1`, fails.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on is to fail, and says where"
)]

mod addresses;
mod adoption;
mod attacks;
mod audit;
mod bad_input;
mod commands;
mod container;
mod depends;
mod directories;
mod disk;
mod environment;
mod events;
mod exit_codes;
mod exits;
mod history;
mod hook_crashes;
mod hooks;
mod hosts;
mod json;
mod keys;
mod known_servers;
mod ladders;
mod leaf;
mod life;
mod live_edits;
mod modes;
mod moved;
mod network;
mod notify;
mod original;
mod probes;
mod protected;
mod queue;
mod readme;
mod recipes;
mod records_lost;
mod removal;
mod repeat;
mod restart;
mod sandbox;
mod scopes;
mod service;
mod shutdown;
mod signing;
mod ssh;
mod sshd;
mod states_table;
mod stopping;
mod stranger;
mod systemd;
mod tokens;
mod unit_file;
mod upgrade;
mod waits;
mod watching;
mod why;
mod wire;
