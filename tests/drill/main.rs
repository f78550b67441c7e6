//! Drills with the real programs: the server is killed at any instant, and nothing is lost by it.
//!
//! - `kills`: a server is killed again and again under random commands, edits and exits, and all
//!   that must not happen is counted. `cargo test` kills it 50 times; a thousand times it is
//!
//!   ```text
//!   DRILL_KILLS=1000 cargo test --release --test drill kills_at_random -- --nocapture
//!   ```
//!
//!   and `DRILL_SEED` chooses the same once more, as far as that can be: what the machine does
//!   meanwhile nobody chooses.
//! - `pre_exec`: the server is killed while a child is not yet its program, for as long as the test
//!   wants (fanotify).
//! - `hung`: a server is upgraded while a loadpath does not answer (fanotify).
//! - `steps`: the server is killed between any two system calls of a start, a stop and a restart
//!   (ptrace).
//! - `hygiene`: what children have of their server, and a server that is killed at its very start.
//!
//! All stands in a [`sandbox::Sandbox`], as the tests of `tests/it` do. Orphans are taken in here
//! (`reaper`), which is why this is a program of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on is to fail, and says where"
)]

mod bed;
mod children;
mod clients;
mod hold;
mod hung;
mod hygiene;
mod judge;
mod kills;
mod line;
mod look;
mod pre_exec;
mod random;
mod reaper;
#[path = "../it/sandbox.rs"]
#[allow(dead_code, reason = "the tests of `tests/it` use all of it")]
mod sandbox;
mod steps;
mod tally;
mod watcher;
