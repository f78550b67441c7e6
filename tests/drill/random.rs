//! Chance from a seed: SplitMix64, so that the same seed chooses the same.

use std::time::Duration;

/// Where chance comes from.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A source of its own for each `stream` of one seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end - 1`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True so many times of a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.below(u64::try_from(from.len()).expect("few"));
        &from[usize::try_from(index).expect("few")]
    }

    /// Up to this long, evenly, in microseconds.
    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).expect("short");
        Duration::from_micros(self.below(micros + 1))
    }

    /// Up to this long, short spans as often as long ones: each power of two is as likely.
    pub(crate) fn soon(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).expect("short").max(1);
        let powers = u64::from(micros.ilog2()) + 1;
        let most = micros >> self.below(powers);
        Duration::from_micros(self.below(most + 1))
    }
}

#[test]
fn a_seed_chooses_the_same_again_and_each_stream_something_else() {
    let some = |seed, stream| {
        let mut random = Random::new(seed, stream);
        (0..8).map(|_| random.below(1_000_000)).collect::<Vec<_>>()
    };
    assert_eq!(some(1, 1), some(1, 1));
    assert_ne!(some(1, 1), some(1, 2));
    assert_ne!(some(1, 1), some(2, 1));
    let longest = Duration::from_millis(5);
    let mut random = Random::new(7, 0);
    let spans: Vec<Duration> = (0..500).map(|_| random.soon(longest)).collect();
    assert!(spans.iter().all(|span| *span <= longest));
    let short = spans.iter().filter(|span| span.as_micros() < 100).count();
    assert!((100..450).contains(&short), "{short}");
}
