//! The children of a drill, and what they wrote down about themselves.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The program that all of them run.
const PROGRAM: &str = include_str!("child.pl");

/// What one child is.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its name.
    pub(crate) name: &'static str,
    /// What `child.pl` does.
    kind: &'static str,
    /// What its file says besides the command.
    rest: &'static str,
}

/// One that does not hear TERM; only KILL ends it.
pub(crate) const DEAF: &str = "deaf";
/// The one that only the drill itself commands, so that each answer can be held to what follows.
pub(crate) const KEPT: &str = "kept";
/// The one whose file is edited.
pub(crate) const EDITED: &str = "edited";
/// The one whose file goes and comes back.
pub(crate) const GONE: &str = "gone";

/// All of them.
pub(crate) const CHILDREN: [Child; 13] = [
    Child {
        name: "always",
        kind: "write",
        rest: "restart: {when: always, delay: 10ms, factor: 1, max_delay: 10ms}\n",
    },
    Child {
        name: "plain",
        kind: "write",
        rest: "",
    },
    Child {
        name: "grace",
        kind: "grace",
        rest: "restart: {when: always, delay: 10ms, factor: 1, max_delay: 10ms}\n",
    },
    Child {
        name: DEAF,
        kind: "deaf",
        rest: "",
    },
    Child {
        name: "brief",
        kind: "brief",
        rest: "restart: {when: always, delay: 5ms, factor: 1, max_delay: 5ms}\n",
    },
    Child {
        name: "fail",
        kind: "fail",
        rest: "restart: {when: on-failure, delay: 20ms, factor: 1, max_delay: 20ms}\n",
    },
    Child {
        name: "job",
        kind: "job",
        rest: "repeat: {action: trystart, seconds: 1}\n",
    },
    Child {
        name: "tick",
        kind: "write",
        rest: "repeat: {action: restart, seconds: 1}\n",
    },
    Child {
        name: "hooked",
        kind: "write",
        rest: "hooks:\n- prehook: run sleep 0.02\n- posthook: run sleep 0.02\n",
    },
    Child {
        name: KEPT,
        kind: "write",
        rest: "restart: {when: always, delay: 10ms, factor: 1, max_delay: 10ms}\n",
    },
    Child {
        name: EDITED,
        kind: "write",
        rest: "",
    },
    Child {
        name: GONE,
        kind: "write",
        rest: "",
    },
    Child {
        name: "family",
        kind: "family",
        rest: "restart: {when: always, delay: 10ms, factor: 1, max_delay: 10ms}\n",
    },
];

impl Child {
    /// The one with this name.
    pub(crate) fn named(name: &str) -> &'static Self {
        let mut all = CHILDREN.iter();
        all.find(|child| child.name == name).expect("a child")
    }

    /// Its file; another edition means another digest.
    pub(crate) fn yaml(&self, root: &Path, edition: u64) -> String {
        let Self { name, kind, rest } = self;
        let (program, notes) = (root.join("child.pl"), notes(root));
        let (program, notes) = (program.display(), notes.display());
        format!("command: [perl, {program}, {notes}, {name}, {kind}, 'edition {edition}']\n{rest}")
    }
}

/// Where the children write down what they do.
pub(crate) fn notes(root: &Path) -> PathBuf {
    root.join("notes")
}

/// Puts the program and the files for notes there.
pub(crate) fn prepare(root: &Path) {
    fs::write(root.join("child.pl"), PROGRAM).expect("a writable sandbox");
    fs::create_dir(notes(root)).expect("a folder for notes");
    for child in &CHILDREN {
        for kind in ["ledger", "claims"] {
            let path = notes(root).join(format!("{}.{kind}", child.name));
            fs::write(path, "").expect("a writable sandbox");
        }
    }
}

/// What the runs of one child have written down, by run.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Their processes: more than one means that a number was used twice.
    pub(crate) begun: BTreeMap<u64, Vec<i32>>,
    /// The codes they were about to end with.
    pub(crate) codes: BTreeMap<u64, i32>,
    /// What went wrong for them.
    pub(crate) faults: Vec<String>,
    /// The last line that each says it has written.
    pub(crate) claims: BTreeMap<u64, u64>,
}

impl Ledger {
    /// Reads what there is by now.
    pub(crate) fn read(root: &Path, child: &str) -> Self {
        let mut ledger = Self::default();
        let path = |kind| notes(root).join(format!("{child}.{kind}"));
        let text = fs::read_to_string(path("ledger")).expect("a ledger");
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            ledger.take(line);
        }
        let claims = fs::read(path("claims")).expect("claims");
        for (run, claim) in (0..).zip(claims.chunks_exact(16)) {
            let text = String::from_utf8_lossy(claim);
            if let Ok(line) = text.trim().parse() {
                ledger.claims.insert(run, line);
            }
        }
        ledger
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let parsed = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
        let run = parsed(1).and_then(|run| u64::try_from(run).ok());
        let value = parsed(2).and_then(|value| i32::try_from(value).ok());
        match (words.first(), run, value) {
            (Some(&"begin"), Some(run), Some(pid)) => {
                self.begun.entry(run).or_default().push(pid);
            }
            (Some(&"end"), Some(run), Some(code)) => {
                self.codes.insert(run, code);
            }
            _ => self.faults.push(line.to_owned()),
        }
    }
}
