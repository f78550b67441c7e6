//! The core's part of `info`.

use std::collections::BTreeMap;

use super::{State, listing::LoadpathState};
use crate::{
    command::{InfoLoadpath, StateName},
    spec::{ChildName, Mode, OnExit},
};

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

impl State {
    /// What `info` tells.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut counts = BTreeMap::new();
        let known = self.children.iter().filter(|(_, child)| child.is_known());
        for (name, child) in known {
            let state: StateName = child.state(self.waits(name));
            *counts.entry(state.as_str().to_owned()).or_insert(0) += 1;
        }
        let loadpaths = self.loadpaths.iter().map(|loadpath| {
            let mine = |path: &std::path::PathBuf| path.parent() == Some(&loadpath.path);
            let declares = |child: &&super::child::Child| {
                child
                    .entry
                    .as_ref()
                    .is_some_and(|entry| entry.paths.iter().any(mine))
            };
            InfoLoadpath {
                path: loadpath.path.display().to_string(),
                state: match &loadpath.state {
                    LoadpathState::Ready { .. } => "ok".to_owned(),
                    LoadpathState::Missing => "missing".to_owned(),
                    LoadpathState::Unreadable(why) => why.clone(),
                },
                children: self.children.values().filter(declares).count(),
            }
        });
        Survey {
            mode: self.settings.mode,
            on_exit: self.settings.on_exit,
            startup: self.settings.startup.iter().cloned().collect(),
            loadpaths: loadpaths.collect(),
            faults: self.notes(),
            counts,
        }
    }
}
