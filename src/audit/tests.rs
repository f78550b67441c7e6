//! The trail on real files: what is written, what is found again, and what is noticed.

pub(super) mod drill;

mod crash;
mod disk;
mod lines;
mod opening;
mod tampering;
mod thread;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    By, Entry, Given, Hash, Limits, NAME, Outcome, Refusal, Verdict,
    trail::{Author, Trail},
    verify,
    writer::Keeper,
};
use crate::{
    command::{Answer, Command, Done, ErrorCode, Op},
    spec::{RunId, Verb, Wall},
};

const VERSION: &str = "1.2.3";
const SERVER: &str = "11111111-2222-4333-8444-555555555555";
/// 2023-11-14T22:13:20.123Z
const AT: Wall = Wall(1_700_000_000_123);

/// A directory for a trail.
struct Bed {
    _temp: tempfile::TempDir,
    dir: PathBuf,
    limits: Limits,
}

impl Bed {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        Self {
            dir: temp.path().join("state"),
            _temp: temp,
            limits: Limits::default(),
        }
    }

    /// One whose files hold a few lines each.
    fn small() -> Self {
        let limits = Limits {
            file_bytes_max: 900,
            files_max: 3,
            ..Limits::default()
        };
        Self {
            limits,
            ..Self::new()
        }
    }

    /// One that keeps few lines while its disk takes none.
    fn forgetful() -> Self {
        let limits = Limits {
            behind_max: 10,
            ..Limits::default()
        };
        Self {
            limits,
            ..Self::new()
        }
    }

    /// A trail as it is when a server starts.
    fn keeper(&self) -> Keeper {
        let author = Author {
            version: VERSION.to_owned(),
            server: SERVER.to_owned(),
        };
        let trail = Trail::open(self.dir.clone(), author, self.limits).unwrap();
        Keeper::new(trail, self.limits.behind_max)
    }

    /// One that has written a line for each of these numbers, one after the other.
    fn written(&self, numbers: std::ops::RangeInclusive<u64>) -> Keeper {
        let mut keeper = self.keeper();
        for number in numbers {
            write(&mut keeper, number);
        }
        keeper
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn newest(&self) -> PathBuf {
        self.path(NAME)
    }

    /// The whole lines of the newest file.
    fn lines(&self) -> Vec<String> {
        lines_of(&self.newest())
    }

    fn values(&self) -> Vec<Value> {
        let lines = self.lines();
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The runs that all files tell of, oldest first.
    fn runs(&self) -> Vec<u64> {
        let mut runs = Vec::new();
        for number in (1..=20).rev() {
            runs.extend(runs_of(&self.path(&format!("{NAME}.{number}"))));
        }
        runs.extend(runs_of(&self.newest()));
        runs
    }

    /// The names in the directory, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The one file that is kept aside.
    fn aside(&self) -> PathBuf {
        let mut names = self.names();
        names.retain(|name| name.starts_with("audit.jsonl.broken-"));
        assert_eq!(names.len(), 1, "{names:?}");
        self.path(&names[0])
    }

    fn verdict(&self) -> Verdict {
        verify(&self.dir, None).unwrap()
    }

    #[track_caller]
    fn assert_whole(&self) -> Verdict {
        let verdict = self.verdict();
        assert_eq!(verdict.breaks, [], "{:?}", self.lines());
        verdict
    }

    #[track_caller]
    fn assert_broken(&self) -> Verdict {
        let verdict = self.verdict();
        assert_ne!(verdict.breaks, [], "{:?}", self.lines());
        verdict
    }
}

fn lines_of(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(str::to_owned).collect()
}

fn runs_of(path: &Path) -> Vec<u64> {
    let lines = lines_of(path);
    let run = |line: &String| serde_json::from_str::<Value>(line).unwrap()["run"].as_u64();
    lines.iter().filter_map(run).collect()
}

/// Writes a line and is sure that it is on disk.
#[track_caller]
fn write(keeper: &mut Keeper, number: u64) {
    keeper.add(command(number));
    keeper.try_write().unwrap();
}

/// The line of a start whose run has this number.
fn command(number: u64) -> Entry {
    let outcome = Outcome::of(&Ok(Answer::Done(Done {
        op: Op::Start,
        child: "web".parse().unwrap(),
        pid: Some(4711),
        run: Some(RunId(number)),
        exit: None,
        message: "`web` was started".to_owned(),
    })));
    given(start("web"), outcome)
}

fn start(child: &str) -> Command {
    Command::Child {
        verb: Verb::Start,
        child: child.parse().unwrap(),
    }
}

fn given(command: Command, outcome: Outcome) -> Entry {
    let given = Given {
        by: By::User { uid: 1000 },
        peer: "127.0.0.1:50000".parse().unwrap(),
        command,
        outcome,
    };
    Entry::command(AT, given)
}

fn refusal(why: &str) -> Entry {
    let refusal = Refusal {
        by: None,
        claimed: None,
        peer: "192.0.2.1:4".parse().unwrap(),
        command: None,
        code: ErrorCode::Unauthorized,
        why: why.to_owned(),
        more: 0,
    };
    Entry::refused(AT, refusal)
}

fn skip(reason: &str) {
    println!("skipped: {reason}");
    let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "skipped although REQUIRE_ALL=1: {reason}");
}

/// The hash of a line as its number in the newest file, from 0.
fn hash_of(lines: &[String], index: usize) -> Hash {
    Hash::of(lines[index].as_bytes())
}
