//! Files that were cut, taken away or cannot be read: seen, said, kept aside, and gone on from.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::{samples::*, *};

struct Bench {
    _temp: tempfile::TempDir,
    dirs: Dirs,
}

impl Bench {
    fn new() -> Self {
        let temp = samples::own_dir();
        let dirs = Dirs {
            state_dir: temp.path().join("state"),
            runtime_dir: temp.path().join("run"),
        };
        Self { _temp: temp, dirs }
    }

    fn open(&self) -> Opened {
        open_waiting(&self.dirs, None, "boot-1", LOCK_WAIT).unwrap()
    }

    fn runtime(&self, name: &str) -> PathBuf {
        self.dirs.runtime_dir.join(name)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dirs.state_dir.join(name)
    }

    /// A server that was killed when `web` ran and `db` was held.
    fn killed() -> Self {
        let bench = Self::new();
        let mut opened = bench.open();
        let journal = &mut opened.journal;
        for record in [begun("web", 1), started("web", 1), begun("db", 1)] {
            journal.append(&[record]).unwrap();
        }
        journal.commit(None, vec![held("db")]);
        journal.commit(None, vec![reserved("db", 64)]);
        opened.journal.close();
        bench
    }
}

/// Where each record ends, the header first.
fn bounds(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).unwrap();
    let mut at = frame::header().len();
    let mut bounds = vec![at];
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().unwrap());
        at += 8 + usize::try_from(len).unwrap();
        bounds.push(at);
    }
    assert_eq!(at, bytes.len());
    bounds
}

#[test]
fn a_file_cut_anywhere_between_records_too_is_seen_kept_and_said() {
    let bench = Bench::killed();
    let whole = fs::read(bench.runtime(RUNTIME_NAME)).unwrap();
    let mark = fs::read(bench.runtime("runtime.length")).unwrap();
    let bounds = bounds(&bench.runtime(RUNTIME_NAME));
    assert!(bounds.len() > 4);
    for cut in 0..whole.len() {
        fs::write(bench.runtime(RUNTIME_NAME), &whole[..cut]).unwrap();
        fs::write(bench.runtime("runtime.length"), &mark).unwrap();
        let opened = bench.open();
        assert!(opened.records_lost, "cut at {cut}");
        let [warning] = opened.warnings.as_slice() else {
            panic!("cut at {cut}: {:?}", opened.warnings);
        };
        assert!(warning.contains("runtime.journal.corrupt-"), "{warning}");
        if bounds.contains(&cut) {
            assert!(warning.contains("was cut"), "{warning}");
        }
    }
    let kept = fs::read_dir(&bench.dirs.runtime_dir).unwrap().count();
    assert!(kept <= 3 + folder::CORRUPT_KEPT_MAX, "{kept}");
}

#[test]
fn a_state_file_cut_between_records_is_said_and_loses_no_more_than_was_cut() {
    let bench = Bench::killed();
    let bounds = bounds(&bench.state(STATE_NAME));
    let whole = fs::read(bench.state(STATE_NAME)).unwrap();
    let cut = bounds[bounds.len() - 2];
    fs::write(bench.state(STATE_NAME), &whole[..cut]).unwrap();
    let opened = bench.open();
    assert!(!opened.records_lost, "of live processes all is known");
    assert_eq!(opened.warnings.len(), 1);
    assert!(opened.warnings[0].contains("state.journal` was cut"));
    let db = &opened.memory.children[&name("db")];
    assert!(db.held.is_some());
    assert_eq!(db.reserved, None);
    drop(opened);
    assert_eq!(bench.open().warnings, [""; 0]);
    let kept = fs::read(bench.state("state.journal.corrupt-1")).unwrap();
    assert_eq!(kept, whole[..cut]);
}

#[test]
fn a_missing_file_of_which_the_mark_tells_is_a_loss_and_a_first_start_is_none() {
    let bench = Bench::killed();
    fs::remove_file(bench.runtime(RUNTIME_NAME)).unwrap();
    for _ in 0..2 {
        let opened = bench.open();
        assert!(opened.records_lost);
        assert!(opened.warnings[0].contains("is missing"), "{opened:?}");
    }
    bench.open().journal.rebuild(&[begun("web", 1)]).unwrap();
    let opened = bench.open();
    assert!(!opened.records_lost);
    assert!(opened.memory.children.contains_key(&name("web")));
}

#[test]
fn a_mark_that_is_behind_damaged_or_missing_tells_of_no_loss() {
    let bench = Bench::killed();
    let mark = bench.runtime("runtime.length");
    for spoil in [
        |mark: &Path| fs::remove_file(mark).unwrap(),
        |mark: &Path| fs::write(mark, "short").unwrap(),
        |mark: &Path| {
            let mut bytes = fs::read(mark).unwrap();
            bytes[2] ^= 1;
            fs::write(mark, bytes).unwrap();
        },
        |mark: &Path| {
            fs::remove_file(mark).unwrap();
            fs::create_dir(mark).unwrap();
        },
    ] {
        spoil(&mark);
        let opened = bench.open();
        assert!(!opened.records_lost);
        assert_eq!(opened.warnings, [""; 0]);
        assert_eq!(opened.memory.children.len(), 2);
    }
    fs::remove_dir(&mark).unwrap();
    // Written by a child of a server that was killed before it could note the new length.
    bench.open();
    let mut bytes = fs::read(bench.runtime(RUNTIME_NAME)).unwrap();
    frame::encode(&started("db", 1), &mut bytes).unwrap();
    fs::write(bench.runtime(RUNTIME_NAME), &bytes).unwrap();
    let opened = bench.open();
    assert!(!opened.records_lost);
    let db = opened.memory.children[&name("db")].last.as_ref().unwrap();
    assert_eq!(db.process, Some((4242, 99)));
    drop(opened);
    // And one that was torn while it wrote.
    let mut torn = fs::read(bench.runtime(RUNTIME_NAME)).unwrap();
    let sound = torn.len();
    frame::encode(&ended("db", 1), &mut torn).unwrap();
    fs::write(bench.runtime(RUNTIME_NAME), &torn[..sound + 20]).unwrap();
    let opened = bench.open();
    assert!(!opened.records_lost);
    assert!(opened.warnings[0].contains("its 20 bytes were cut off"));
}

#[test]
fn what_no_file_should_be_is_moved_away_and_the_server_starts() {
    type Spoiler = (&'static str, fn(&Path));
    let spoilers: [Spoiler; 4] = [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a link", |path| symlink("/etc/passwd", path).unwrap()),
        ("a socket", |path| {
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }),
        ("a link into nothing", |path| {
            symlink("/nowhere/at/all", path).unwrap();
        }),
    ];
    for (what, spoil) in spoilers {
        let bench = Bench::killed();
        for path in [bench.runtime(RUNTIME_NAME), bench.state(STATE_NAME)] {
            fs::remove_file(&path).unwrap();
            spoil(&path);
        }
        // Of the loss nothing else tells.
        fs::remove_file(bench.runtime("runtime.length")).unwrap();
        let opened = bench.open();
        assert!(opened.records_lost, "{what}");
        assert_eq!(opened.memory.children.len(), 0);
        assert_eq!(opened.warnings.len(), 2, "{what}");
        for (warning, name) in opened.warnings.iter().zip([RUNTIME_NAME, STATE_NAME]) {
            let kept = format!("{name}.unreadable-1`");
            assert!(
                warning.contains(&kept) && !warning.contains('\n'),
                "{warning}"
            );
        }
        assert!(fs::symlink_metadata(bench.runtime("runtime.journal.unreadable-1")).is_ok());
        drop(opened);
        // It died before it had found what lives.
        let mut opened = bench.open();
        assert!(opened.records_lost, "{what}");
        opened.journal.rebuild(&[begun("web", 1)]).unwrap();
        drop(opened);
        let opened = bench.open();
        assert_eq!(
            (opened.warnings.as_slice(), opened.records_lost),
            (&[][..], false)
        );
        assert_eq!(opened.memory.children.len(), 1);
    }
}

#[test]
fn what_is_moved_away_is_kept_in_a_bounded_number() {
    let bench = Bench::killed();
    for round in 1..=folder::CORRUPT_KEPT_MAX + 3 {
        let path = bench.state(STATE_NAME);
        fs::remove_file(&path).unwrap();
        symlink("/nowhere", &path).unwrap();
        let opened = bench.open();
        assert!(opened.warnings[0].contains(&format!("unreadable-{round}`")));
    }
    let kept = fs::read_dir(&bench.dirs.state_dir).unwrap();
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains(".unreadable-")
    });
    assert_eq!(kept.count(), folder::CORRUPT_KEPT_MAX);
}

/// Runs a body without root's rights, to whom rights are no obstacle, in a folder of its own.
fn without_roots_rights(body: impl FnOnce(Bench) + Send) {
    use rustix::{
        fs::Uid,
        thread::{set_thread_groups, set_thread_res_uid},
    };
    let bench = Bench::new();
    if !rustix::process::geteuid().is_root() {
        return body(bench);
    }
    let nobody = Uid::from_raw(65534);
    rustix::fs::chown(bench._temp.path(), Some(nobody), None).unwrap();
    // Of one thread alone, unlike the C library's functions.
    let thread = || {
        set_thread_groups(&[]).unwrap();
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        body(bench);
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap());
}

#[test]
fn a_file_of_ours_without_our_right_to_read_it_is_given_it_back() {
    without_roots_rights(|bench| {
        let mut first = bench.open();
        first.journal.append(&[begun("web", 1)]).unwrap();
        drop(first);
        let path = bench.runtime(RUNTIME_NAME);
        let none = fs::Permissions::from_mode(0o000);
        fs::set_permissions(&path, none).unwrap();
        assert!(fs::read(&path).is_err());
        let opened = bench.open();
        assert!(!opened.records_lost);
        assert_eq!(opened.warnings, [""; 0]);
        assert_eq!(opened.memory.children.len(), 1);
    });
}

#[test]
fn a_newer_format_is_no_damage_for_it_tells_of_live_runs() {
    let bench = Bench::killed();
    let text = "supervisor-rs journal 9";
    let newer = format!("{text} {:08x}\nnew", crc32fast::hash(text.as_bytes()));
    fs::write(bench.runtime(RUNTIME_NAME), &newer).unwrap();
    let error = open_waiting(&bench.dirs, None, "boot-1", Duration::ZERO).unwrap_err();
    assert!(
        matches!(error, JournalError::NewerFormat { found: 9, .. }),
        "{error}"
    );
    assert_eq!(
        fs::read_to_string(bench.runtime(RUNTIME_NAME)).unwrap(),
        newer
    );
}

#[test]
fn a_loss_of_another_boots_records_is_no_loss_of_live_runs() {
    let bench = Bench::killed();
    let path = bench.runtime(RUNTIME_NAME);
    let bounds = bounds(&path);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..bounds[2]]).unwrap();
    let opened = open_waiting(&bench.dirs, None, "boot-2", LOCK_WAIT).unwrap();
    assert!(!opened.records_lost);
    assert_eq!(opened.start, StartKind::Fresh);
}
