//! The table of children, which knows whom a step has touched.
//!
//! Whoever may have changed a child has had it in hand for that, so nobody has to remember to say
//! so. It is looked at by everybody; who is touched is known to the step alone, and nobody is when
//! that is over.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    ops::Deref,
};

use serde::{Deserialize, Serialize};

use super::child::Child;
use crate::spec::ChildName;

/// All children, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Table {
    all: BTreeMap<ChildName, Child>,
    #[serde(skip)]
    touched: BTreeSet<ChildName>,
    /// Those that were dropped in this step, as they were.
    #[serde(skip)]
    dropped: Vec<(ChildName, Child)>,
}

impl Deref for Table {
    type Target = BTreeMap<ChildName, Child>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<'a> IntoIterator for &'a Table {
    type Item = (&'a ChildName, &'a Child);
    type IntoIter = btree_map::Iter<'a, ChildName, Child>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl Table {
    pub(super) fn get_mut(&mut self, name: &ChildName) -> Option<&mut Child> {
        let child = self.all.get_mut(name)?;
        if !self.touched.contains(name) {
            self.touched.insert(name.clone());
        }
        Some(child)
    }

    /// The child of this name, made if it is not there.
    pub(super) fn enter(&mut self, name: &ChildName, make: impl FnOnce() -> Child) -> &mut Child {
        self.touched.insert(name.clone());
        self.all.entry(name.clone()).or_insert_with(make)
    }

    /// All of them, each of which counts as touched: for what concerns all.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ChildName, &mut Child)> {
        self.touched.extend(self.all.keys().cloned());
        self.all.iter_mut()
    }

    /// Takes a child out for good.
    pub(super) fn drop_child(&mut self, name: &ChildName) -> Option<&Child> {
        let gone = self.all.remove_entry(name)?;
        self.dropped.push(gone);
        self.dropped.last().map(|(_, child)| child)
    }

    /// Who was touched or dropped since this was last asked.
    pub(super) fn take_touched(&mut self) -> (BTreeSet<ChildName>, Vec<(ChildName, Child)>) {
        let touched = std::mem::take(&mut self.touched);
        (touched, std::mem::take(&mut self.dropped))
    }

    /// These were touched and dropped, and nobody has asked.
    pub(super) fn touch_again(
        &mut self,
        touched: BTreeSet<ChildName>,
        dropped: Vec<(ChildName, Child)>,
    ) {
        self.touched.extend(touched);
        self.dropped.extend(dropped);
    }

    /// A child, for what is only noted of it.
    pub(super) fn note(&mut self, name: &ChildName) -> Option<&mut Child> {
        self.all.get_mut(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChildName {
        text.parse().unwrap()
    }

    #[test]
    fn who_was_in_hand_is_touched_until_somebody_asks() {
        let mut table = Table::default();
        for text in ["a", "b", "c"] {
            table.enter(&name(text), Child::default);
        }
        assert_eq!(table.take_touched().0.len(), 3);
        assert!(table.get(&name("a")).is_some());
        assert!(table.note(&name("a")).is_some());
        assert!(table.get_mut(&name("z")).is_none());
        assert!(table.take_touched().0.is_empty());
        assert!(table.get_mut(&name("b")).is_some());
        assert!(table.drop_child(&name("c")).is_some());
        let (touched, dropped) = table.take_touched();
        assert_eq!(touched, BTreeSet::from([name("b")]));
        assert_eq!(dropped.len(), 1);
        assert_eq!(table.iter_mut().count(), 2);
        assert_eq!(table.take_touched().0.len(), 2);
        assert_eq!(table, {
            let mut alike = Table::default();
            alike.enter(&name("a"), Child::default);
            alike.enter(&name("b"), Child::default);
            alike.take_touched();
            alike
        });
    }
}
