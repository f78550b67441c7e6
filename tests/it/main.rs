//! The two real programs, run against each other: one module for each section of the README.
//!
//! Each test has a [`sandbox::Sandbox`] of its own and may run beside any other. A test whose
//! tool or right is missing says so (`sandbox::skip`) and, with `REQUIRE_ALL=1`, fails.

mod life;
mod sandbox;
