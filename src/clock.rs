//! The one place that reads a clock.
//!
//! Everything else is given a [`Time`]; that is what makes decisions repeatable.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::spec::{Mono, Time, Wall};

/// What both clocks show now.
#[must_use]
pub fn now() -> Time {
    Time {
        mono: mono(),
        wall: wall(),
    }
}

/// `CLOCK_MONOTONIC`, the clock that timers sleep on.
#[must_use]
pub fn mono() -> Mono {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_nsec / 1_000).unwrap_or(0);
    Mono(seconds * 1_000_000 + micros)
}

/// The wall clock; a host whose clock stands before 1970 is taken to stand at 1970.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the place the ban points to"
)]
pub fn wall() -> Wall {
    let span = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Wall(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
}
