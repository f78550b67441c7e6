//! Run numbers of children that nothing else is known of: none is ever used twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::ChildName;

/// How many names are remembered one by one; past that, a new name's numbers begin behind all of
/// the forgotten ones.
pub(super) const NUMBERS_KEPT_MAX: usize = 10_000;

/// The numbers a child's runs had, and those that are reserved on disk for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Used {
    /// The number of the latest run.
    pub(super) latest: u64,
    /// The last number that is reserved on disk.
    pub(super) reserved: u64,
}

/// The numbers of children that are not in the table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Numbers {
    kept: BTreeMap<ChildName, Used>,
    /// No forgotten name has used a higher number.
    floor: u64,
}

impl Numbers {
    /// Keeps the numbers of a child that leaves the table.
    pub(super) fn keep(&mut self, name: ChildName, used: Used) {
        if used == Used::default() {
            return;
        }
        self.kept.insert(name, used);
        if self.kept.len() > NUMBERS_KEPT_MAX
            && let Some((_, used)) = self.kept.pop_first()
        {
            self.floor = self.floor.max(used.latest);
        }
    }

    /// Gives the numbers of a child that comes into the table.
    pub(super) fn take(&mut self, name: &ChildName) -> Used {
        let floor = Used {
            latest: self.floor,
            reserved: 0,
        };
        self.kept.remove(name).unwrap_or(floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_comes_back_goes_on_counting() {
        let mut numbers = Numbers::default();
        let web: ChildName = "web".parse().unwrap();
        let used = Used {
            latest: 7,
            reserved: 1_000,
        };
        numbers.keep(web.clone(), used);
        assert_eq!(numbers.take(&web), used);
        assert_eq!(numbers.take(&web), Used::default());
    }

    #[test]
    fn numbers_of_forgotten_names_are_not_used_again_either() {
        let mut numbers = Numbers::default();
        for n in 0..=u64::try_from(NUMBERS_KEPT_MAX).unwrap() {
            let name: ChildName = format!("c{n:06}").parse().unwrap();
            numbers.keep(
                name,
                Used {
                    latest: n + 3,
                    reserved: 0,
                },
            );
        }
        assert_eq!(numbers.kept.len(), NUMBERS_KEPT_MAX);
        let first: ChildName = "c000000".parse().unwrap();
        assert_eq!(numbers.take(&first).latest, 3);
        let second: ChildName = "c000001".parse().unwrap();
        assert_eq!(numbers.take(&second).latest, 4);
    }
}
