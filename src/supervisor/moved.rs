//! Directories that were edited in server.yml while runs live that are recorded in the old ones.
//!
//! The new ones know nothing of them: they would be started a second time (I1) and forgotten (I2).

use std::path::{Path, PathBuf};

use crate::{
    journal::{self, Dirs, JournalError, Place, RecordedRun},
    process,
};

/// How many children are named in a message.
const NAMED_MAX: usize = 5;

/// What was edited, and what runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Which field, where it led, and where it leads.
    fields: Vec<(&'static str, PathBuf, PathBuf)>,
    /// Where the runs are recorded.
    runtime_dir: PathBuf,
    live: Vec<RecordedRun>,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (field, old, new)) in self.fields.iter().enumerate() {
            let and = if at > 0 { ", and " } else { "" };
            let (old, new) = (old.display(), new.display());
            write!(f, "{and}`{field}` was `{old}` and is `{new}` now")?;
        }
        let runtime_dir = self.runtime_dir.display();
        write!(f, ", while children run on that `{runtime_dir}` tells of: ")?;
        for (at, run) in self.live.iter().take(NAMED_MAX).enumerate() {
            let and = if at > 0 { ", " } else { "" };
            write!(f, "{and}`{}` (pid {})", run.child, run.pid)?;
        }
        if self.live.len() > NAMED_MAX {
            write!(f, " and {} more", self.live.len() - NAMED_MAX)?;
        }
        f.write_str("\nhint: with ")?;
        for (at, (field, old, _)) in self.fields.iter().enumerate() {
            let and = if at > 0 { " and " } else { "" };
            write!(f, "{and}`{field}: {}`", old.display())?;
        }
        f.write_str(
            " in server.yml it starts and takes them back; to move, stop them there first \
             (`supervisor-rs-client kill --stop-children`)",
        )
    }
}

/// Whether server.yml names other directories than an earlier server of it had, which left
/// something running. Nothing is changed by looking.
///
/// # Errors
///
/// Somebody has those other directories: a server, or the child of one that died and that has not
/// written itself down yet.
pub(super) fn find(
    dirs: &Dirs,
    default: Option<&Path>,
    boot: &str,
) -> Result<Option<Moved>, JournalError> {
    for place in journal::places(dirs, default) {
        if let Some(moved) = from(&place, dirs, boot)? {
            return Ok(Some(moved));
        }
    }
    Ok(None)
}

fn from(place: &Place, dirs: &Dirs, boot: &str) -> Result<Option<Moved>, JournalError> {
    let fields = [
        ("state_dir", &place.state_dir, &dirs.state_dir),
        ("runtime_dir", &place.runtime_dir, &dirs.runtime_dir),
    ];
    // What is not there any more was moved, or holds nothing.
    let edited = |(_, old, new): &(&str, &PathBuf, &PathBuf)| {
        old != new && old.is_dir() && !journal::is_same_dir(old, new)
    };
    let fields: Vec<_> = fields
        .into_iter()
        .filter(edited)
        .map(|(field, old, new)| (field, old.clone(), new.clone()))
        .collect();
    if fields.is_empty() {
        return Ok(None);
    }
    if place.boot == boot {
        // What is about to be executed there is on record only then (I1).
        journal::await_end(&place.dirs())?;
    }
    let mut live = place.recorded_runs(boot);
    live.retain(|run| process::is_alive(run.pid, run.start_ticks));
    let moved = (!live.is_empty()).then(|| Moved {
        fields,
        runtime_dir: place.runtime_dir.clone(),
        live,
    });
    Ok(moved)
}
