//! The core's part of `info`.

use std::collections::BTreeMap;

use crate::{
    command::InfoLoadpath,
    spec::{ChildName, Mode, OnExit},
};

/// How many children are in which plight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Their processes live, or are being made.
    pub live: usize,
    /// They could not be started, or were given up.
    pub failed: usize,
}

/// What the core knows that `info` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The mode in force.
    pub mode: Mode,
    /// What the server's end means for children.
    pub on_exit: OnExit,
    /// The startup list.
    pub startup: Vec<ChildName>,
    /// The loadpaths and how they are.
    pub loadpaths: Vec<InfoLoadpath>,
    /// Faults that concern no single child, and faults of children's files.
    pub faults: Vec<String>,
    /// How many children are in which state.
    pub counts: BTreeMap<String, usize>,
}
