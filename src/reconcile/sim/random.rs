//! Numbers that look random and that a seed repeats: `SplitMix64` (Steele, Lea and Flood, 2014).

use std::time::Duration;

#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is more than zero.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Happens so many times in a hundred.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let n = u64::try_from(from.len()).expect("a list of choices is short");
        &from[usize::try_from(self.below(n)).expect("it is below a length")]
    }

    /// A span between two, in milliseconds, the last one included.
    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1_000 + self.below((to - from) * 1_000 + 1))
    }

    /// Mostly nothing, sometimes a little: what a busy machine takes for small things.
    pub(super) fn delay(&mut self) -> Duration {
        if self.percent(60) {
            Duration::ZERO
        } else {
            self.millis(0, 40)
        }
    }
}
