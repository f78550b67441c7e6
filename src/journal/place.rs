//! Where a server keeps its records, noted where its next start looks: directories that were
//! edited in server.yml while recorded runs live are found by it.
//!
//! ```text
//! directories = JSON of a Place, " ", crc32 of it in 8 hex digits, "\n"
//! ```
//!
//! - The note stands in the state directory, in the runtime directory, and in a place that depends
//!   on nothing but server.yml's path. So it is found whichever of the two was edited, or both.
//! - It is believed in a directory that is ours alone and as a file of ours, like all else.
//! - It goes when a server ends with nothing left running. A note that is out of date does no
//!   harm: what counts is the record that it leads to.
//!
//! Absent on purpose: whether a recorded process lives (`process`), and what follows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Dirs, JournalError, LOCK_WAIT, RUNTIME_NAME,
    folder::{Folder, READ_LEN_MAX, Shelf},
    frame,
    identity::is_same_boot,
};
use crate::{
    reconcile::memory::Memory,
    spec::{ChildName, RunId},
};

const NAME: &str = "directories";
const TEMPORARY: &str = "directories.new";

/// The longest note, in bytes: two paths and two short texts.
const LEN_MAX: u64 = 16 << 10;

/// What a server notes of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its `state_dir`.
    pub state_dir: PathBuf,
    /// Its `runtime_dir`.
    pub runtime_dir: PathBuf,
    /// The boot that it ran in.
    pub boot: String,
    /// Its id.
    pub id: String,
}

/// A run that is recorded as live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRun {
    /// Whose.
    pub child: ChildName,
    /// Which.
    pub run: RunId,
    /// Its process.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Place {
    /// The directories as they were.
    #[must_use]
    pub fn dirs(&self) -> Dirs {
        Dirs {
            runtime_dir: self.runtime_dir.clone(),
            state_dir: self.state_dir.clone(),
        }
    }

    /// What is recorded as live in this boot there, read without owning it. Nothing when there are
    /// no records, or none of this boot.
    #[must_use]
    pub fn recorded_runs(&self, boot: &str) -> Vec<RecordedRun> {
        let Some(bytes) = read(&self.runtime_dir, RUNTIME_NAME, READ_LEN_MAX) else {
            return Vec::new();
        };
        let Ok(scan) = frame::scan(&bytes) else {
            return Vec::new();
        };
        let mut memory = Memory::default();
        for record in &scan.records {
            memory.apply(record);
        }
        let recorded = memory.boot.as_deref();
        if !recorded.is_some_and(|recorded| is_same_boot(recorded, boot)) {
            return Vec::new();
        }
        let live = memory.children.into_iter().filter_map(|(child, it)| {
            let last = it.last.filter(|last| last.end.is_none())?;
            let (pid, start_ticks) = last.process?;
            Some(RecordedRun {
                child,
                run: last.run,
                pid,
                start_ticks,
            })
        });
        live.collect()
    }
}

/// What earlier servers have noted where a start with these directories looks, each once.
#[must_use]
pub fn places(dirs: &Dirs, default: Option<&Path>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for folder in folders(dirs, default) {
        let noted = read(folder, NAME, LEN_MAX).and_then(|bytes| decode(&bytes));
        if let Some(place) = noted.filter(|place| !places.contains(place)) {
            places.push(place);
        }
    }
    places
}

/// Notes where this server keeps its records; what went wrong, each a line for the log.
#[must_use]
pub fn note_place(place: &Place, default: Option<&Path>) -> Vec<String> {
    let dirs = place.dirs();
    let mut warnings = Vec::new();
    for folder in folders(&dirs, default) {
        if let Err(error) = write(folder, place) {
            let file = folder.join(NAME);
            warnings.push(format!("cannot write `{}`: {error}", file.display()));
        }
    }
    warnings
}

/// Takes the notes away: nothing runs that they could lead to.
pub fn forget_place(dirs: &Dirs, default: Option<&Path>) {
    for path in folders(dirs, default) {
        let Some(folder) = existing(path) else {
            continue;
        };
        let _best_effort = folder.remove(NAME);
        if *path != dirs.state_dir && *path != dirs.runtime_dir {
            // Made for the note alone, unless somebody has put something into it.
            let _best_effort = fs::remove_dir(path);
        }
    }
}

/// Waits, up to [`LOCK_WAIT`] each, until no server has one of these directories. Those that do
/// not exist are nobody's.
///
/// # Errors
///
/// [`JournalError::InUse`], or what keeps one from being looked at.
pub fn await_end(dirs: &Dirs) -> Result<(), JournalError> {
    for path in folders(dirs, None) {
        if let Some(folder) = existing(path) {
            folder.lock(LOCK_WAIT).map(drop)?;
        }
    }
    Ok(())
}

/// Whether two paths lead to one directory; one that does not exist is another.
#[must_use]
pub fn is_same_dir(one: &Path, other: &Path) -> bool {
    let identity = |path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    match (identity(one), identity(other)) {
        (Ok(one), Ok(other)) => one == other,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

fn folders<'a>(dirs: &'a Dirs, default: Option<&'a Path>) -> Vec<&'a Path> {
    let mut folders = vec![dirs.state_dir.as_path()];
    for path in [Some(dirs.runtime_dir.as_path()), default] {
        if let Some(path) = path.filter(|path| !folders.contains(path)) {
            folders.push(path);
        }
    }
    folders
}

/// A directory of ours, if it is there.
fn existing(path: &Path) -> Option<Folder> {
    let is_dir = fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
    is_dir.then(|| Folder::open(path).ok())?
}

fn read(folder: &Path, name: &str, len_max: u64) -> Option<Vec<u8>> {
    existing(folder)?.read_small(name, len_max).ok()?
}

fn write(folder: &Path, place: &Place) -> io::Result<()> {
    let folder = Folder::open(folder).map_err(|error| {
        let text = error.to_string();
        io::Error::other(text.lines().next().unwrap_or_default().to_owned())
    })?;
    let line = encode(place).map_err(io::Error::other)?;
    let mut file = folder.create(TEMPORARY)?;
    let written = file.write(line.as_bytes()).and_then(|written| {
        let whole = written == line.len();
        whole.then_some(()).ok_or(io::ErrorKind::WriteZero.into())
    });
    let renamed = written.and_then(|()| folder.rename(TEMPORARY, NAME));
    if renamed.is_err() {
        let _best_effort = folder.remove(TEMPORARY);
    }
    renamed
}

fn encode(place: &Place) -> serde_json::Result<String> {
    let json = serde_json::to_string(place)?;
    let crc = crc32fast::hash(json.as_bytes());
    Ok(format!("{json} {crc:08x}\n"))
}

fn decode(bytes: &[u8]) -> Option<Place> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (json, crc) = text.rsplit_once(' ')?;
    let sound = format!("{:08x}", crc32fast::hash(json.as_bytes())) == crc;
    sound.then(|| serde_json::from_str(json).ok())?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::{
        super::{LOCK_WAIT, open_waiting, samples},
        *,
    };

    struct Bench {
        temp: tempfile::TempDir,
        place: Place,
        default: PathBuf,
    }

    impl Bench {
        /// A server that has noted where it is.
        fn new() -> Self {
            let temp = samples::own_dir();
            let place = Place {
                state_dir: temp.path().join("state"),
                runtime_dir: temp.path().join("run"),
                boot: "boot-1".to_owned(),
                id: "id".to_owned(),
            };
            let default = temp.path().join("default/deep");
            let bench = Self {
                temp,
                place,
                default,
            };
            assert_eq!(note_place(&bench.place, Some(&bench.default)), [""; 0]);
            bench
        }

        fn other(&self, name: &str) -> PathBuf {
            self.temp.path().join(name)
        }

        fn found(&self, dirs: &Dirs) -> Vec<Place> {
            places(dirs, Some(&self.default))
        }
    }

    #[test]
    fn it_is_found_whichever_directory_was_edited_and_nothing_is_made_by_looking() {
        let bench = Bench::new();
        let here = bench.place.dirs();
        let elsewhere = Dirs {
            state_dir: bench.other("new-state"),
            runtime_dir: bench.other("new-run"),
        };
        for dirs in [
            here.clone(),
            elsewhere.clone(),
            Dirs {
                state_dir: here.state_dir.clone(),
                ..elsewhere.clone()
            },
            Dirs {
                runtime_dir: here.runtime_dir.clone(),
                ..elsewhere.clone()
            },
        ] {
            assert_eq!(bench.found(&dirs), vec![bench.place.clone()], "{dirs:?}");
        }
        fs::remove_dir_all(&bench.default).unwrap();
        assert_eq!(bench.found(&elsewhere), []);
        assert!(!elsewhere.state_dir.exists() && !bench.default.exists());
    }

    #[test]
    fn what_strangers_could_have_written_is_not_believed() {
        let bench = Bench::new();
        let dirs = Dirs {
            state_dir: bench.other("new-state"),
            runtime_dir: bench.other("new-run"),
        };
        let mode = |mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(&bench.default, mode).unwrap();
        };
        mode(0o777);
        assert_eq!(bench.found(&dirs), []);
        mode(0o700);
        let note = bench.default.join(NAME);
        let text = fs::read_to_string(&note).unwrap();
        fs::write(&note, text.replace("boot-1", "boot-2")).unwrap();
        assert_eq!(bench.found(&dirs), [], "its checksum tells");
        let away = bench.other("away");
        fs::write(&away, &text).unwrap();
        fs::remove_file(&note).unwrap();
        symlink(&away, &note).unwrap();
        assert_eq!(bench.found(&dirs), [], "links are not followed");
        fs::remove_file(&note).unwrap();
        fs::write(&note, &text).unwrap();
        assert_eq!(bench.found(&dirs).len(), 1);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&note, Some(12345), None).unwrap();
            assert_eq!(bench.found(&dirs), []);
            std::os::unix::fs::chown(&note, Some(0), None).unwrap();
            std::os::unix::fs::chown(&bench.default, Some(12345), None).unwrap();
            assert_eq!(bench.found(&dirs), []);
        }
    }

    #[test]
    fn it_goes_with_the_directory_that_was_made_for_it() {
        let bench = Bench::new();
        let dirs = bench.place.dirs();
        forget_place(&dirs, Some(&bench.default));
        assert_eq!(bench.found(&dirs), []);
        assert!(!bench.default.exists());
        assert!(dirs.state_dir.exists() && dirs.runtime_dir.exists());
        forget_place(&dirs, Some(&bench.default));
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_said_and_the_others_are() {
        let mut bench = Bench::new();
        bench.default = bench.other("file/in/the/way");
        fs::write(bench.other("file"), "").unwrap();
        let warnings = note_place(&bench.place, Some(&bench.default));
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("/file/in/the/way/directories`"),
            "{warnings:?}"
        );
        assert_eq!(bench.found(&bench.place.dirs()).len(), 1);
    }

    #[test]
    fn recorded_runs_are_read_without_owning_them() {
        let bench = Bench::new();
        let dirs = bench.place.dirs();
        let mut opened = open_waiting(&dirs, None, "boot-1", LOCK_WAIT).unwrap();
        for record in [
            samples::begun("web", 3),
            samples::started("web", 3),
            samples::begun("late", 1),
            samples::begun("done", 1),
            samples::started("done", 1),
            samples::ended("done", 1),
        ] {
            opened.journal.append(&[record]).unwrap();
        }
        let expected = RecordedRun {
            child: samples::name("web"),
            run: RunId(3),
            pid: 4242,
            start_ticks: 99,
        };
        // The other server has them still.
        assert_eq!(bench.place.recorded_runs("boot-1"), [expected]);
        assert_eq!(bench.place.recorded_runs("boot-2"), []);
        let gone = Place {
            runtime_dir: bench.other("gone"),
            ..bench.place.clone()
        };
        assert_eq!(gone.recorded_runs("boot-1"), []);
        assert!(!gone.runtime_dir.exists());
    }

    #[test]
    fn a_note_cut_or_flipped_at_any_byte_says_nothing() {
        let place = Bench::new().place;
        let whole = encode(&place).unwrap().into_bytes();
        assert_eq!(decode(&whole), Some(place));
        for at in 0..whole.len() {
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 0x20;
            assert_eq!(decode(&flipped), None, "flipped at {at}");
        }
    }
}
