//! The journal as its user sees it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{samples::*, *};
use crate::{clock, reconcile::memory::RememberedEnd, spec::RunId};

const ANSWER_WAIT: Duration = Duration::from_secs(20);

struct Bench {
    _temp: tempfile::TempDir,
    dirs: Dirs,
}

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            state_dir: temp.path().join("state"),
            runtime_dir: temp.path().join("state/run"),
        };
        Self { _temp: temp, dirs }
    }

    /// Waits, because a child that a parallel test is about to start may hold a copy of a
    /// descriptor, and so of a lock, for a moment.
    fn open(&self, boot: &str) -> Opened {
        open_waiting(&self.dirs, None, boot, LOCK_WAIT).unwrap()
    }

    fn runtime_file(&self) -> PathBuf {
        self.dirs.runtime_dir.join(RUNTIME_NAME)
    }

    fn state_file(&self) -> PathBuf {
        self.dirs.state_dir.join(STATE_NAME)
    }
}

/// The next answer; a deadline instead of a hanging test.
fn answer(journal: &mut Journal) -> (Ticket, Result<(), String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(ANSWER_WAIT, journal.committed().recv()).await })
        .unwrap()
        .unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0xff;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_first_start_is_fresh_and_empty() {
    let bench = Bench::new();
    let opened = bench.open("boot-1");
    assert_eq!(opened.memory, Memory::default());
    assert_eq!(opened.start, StartKind::Fresh);
    assert_eq!(opened.warnings, [""; 0]);
    assert!(!opened.journal.is_behind());
}

#[test]
fn a_server_that_was_killed_is_continued_with_all_it_wrote() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first.journal.append(&[begun("web", 1)]).unwrap();
    first.journal.append(&[started("web", 1)]).unwrap();
    first
        .journal
        .commit(Some(Ticket(7)), vec![held("db"), reserved("web", 64)]);
    assert_eq!(answer(&mut first.journal), (Ticket(7), Ok(())));
    let id = first.server_id.clone();
    // As killed: nothing said goodbye. The files are all that goes on.
    drop(first);

    let second = bench.open("boot-1");
    assert_eq!(second.start, StartKind::Continued);
    assert_eq!(second.server_id, id);
    assert_eq!(second.warnings, [""; 0]);
    let web = &second.memory.children[&name("web")];
    assert_eq!(web.last.as_ref().unwrap().process, Some((4242, 99)));
    assert_eq!(web.reserved, Some(RunId(64)));
    assert!(second.memory.children[&name("db")].held.is_some());
}

#[test]
fn an_end_by_order_makes_the_next_start_fresh_and_forgets_no_live_run() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first
        .journal
        .append(&[begun("web", 1), started("web", 1), Record::Closed])
        .unwrap();
    first.journal.close();

    let mut second = bench.open("boot-1");
    assert_eq!(second.start, StartKind::Fresh);
    assert!(second.memory.children[&name("web")].last.is_some());
    // The second server is killed: no end by order is left over from the first.
    second.journal.append(&[ended("web", 1)]).unwrap();
    drop(second);
    let third = bench.open("boot-1");
    assert_eq!(third.start, StartKind::Continued);
    let web = third.memory.children[&name("web")].last.clone().unwrap();
    assert!(matches!(web.end, Some(RememberedEnd::Exited { .. })));
}

#[test]
fn a_reboot_forgets_live_runs_and_keeps_holds_and_numbers() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first
        .journal
        .append(&[begun("web", 1), started("web", 1)])
        .unwrap();
    first
        .journal
        .commit(Some(Ticket(1)), vec![held("web"), reserved("web", 64)]);
    answer(&mut first.journal).1.unwrap();
    drop(first);

    for _ in 0..2 {
        let second = bench.open("boot-2");
        let web = &second.memory.children[&name("web")];
        assert_eq!(web.last, None);
        assert_eq!(web.reserved, Some(RunId(64)));
        assert!(web.held.is_some());
    }
    let bytes = fs::read(bench.runtime_file()).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("boot-1") && !text.contains("/bin/web"));
}

#[test]
fn a_reboot_is_a_fresh_start_and_a_crash_after_it_is_not() {
    let bench = Bench::new();
    assert_eq!(bench.open("boot-1").start, StartKind::Fresh);
    assert_eq!(bench.open("boot-1").start, StartKind::Continued);
    assert_eq!(bench.open("boot-2").start, StartKind::Fresh);
    assert_eq!(bench.open("boot-2").start, StartKind::Continued);
}

#[test]
fn a_second_server_is_refused_in_either_directory() {
    let bench = Bench::new();
    let first = bench.open("boot-1");
    let elsewhere = bench.dirs.state_dir.join("elsewhere");
    for dirs in [
        bench.dirs.clone(),
        Dirs {
            state_dir: elsewhere.clone(),
            ..bench.dirs.clone()
        },
        Dirs {
            runtime_dir: elsewhere,
            ..bench.dirs.clone()
        },
    ] {
        let error = open_waiting(&dirs, None, "boot-1", Duration::ZERO).unwrap_err();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(
            matches!(error, JournalError::InUse { holder: Holder::Server { pid }, .. } if pid == own),
            "{error}"
        );
    }
    drop(first);
    bench.open("boot-1");
}

#[test]
fn a_second_server_changes_nothing_before_it_is_refused() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first.journal.append(&[begun("web", 1)]).unwrap();
    let before = fs::read(bench.runtime_file()).unwrap();
    open_waiting(&bench.dirs, None, "boot-2", Duration::ZERO).unwrap_err();
    assert_eq!(fs::read(bench.runtime_file()).unwrap(), before);
}

#[test]
fn one_directory_may_be_both() {
    let bench = Bench::new();
    let dirs = Dirs {
        runtime_dir: bench.dirs.state_dir.clone(),
        state_dir: bench.dirs.state_dir.clone(),
    };
    let opened = open_waiting(&dirs, None, "boot-1", Duration::ZERO).unwrap();
    open_waiting(&dirs, None, "boot-1", Duration::ZERO).unwrap_err();
    drop(opened);
}

#[test]
fn damage_of_the_boots_name_loses_no_live_run() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first
        .journal
        .append(&[begun("web", 1), started("web", 1)])
        .unwrap();
    drop(first);
    // The first record, just after the header, is the one with the boot's name.
    flip(&bench.runtime_file(), frame::header().len() + 12);
    // As often as a server dies before it has found what lives.
    for _ in 0..2 {
        let mut second = bench.open("boot-1");
        assert_eq!(second.start, StartKind::Continued);
        assert!(second.memory.children[&name("web")].last.is_some());
        assert_eq!(second.warnings.len(), 1);
        assert!(second.warnings[0].contains("damaged"));
        assert!(second.records_lost);
        second.journal.owe(&[begun("db", 1)]);
    }
    bench.open("boot-1").journal.rebuild(&[]).unwrap();
    let third = bench.open("boot-1");
    assert_eq!(third.warnings, [""; 0]);
    assert_eq!(third.start, StartKind::Continued);
}

#[test]
fn live_runs_outlast_that_pid_1_is_hidden_and_shown_again() {
    let bench = Bench::new();
    let mut first = bench.open("b1 777");
    let live = [begun("web", 1), started("web", 1)];
    first.journal.append(&live).unwrap();
    drop(first);
    for boot in ["b1 pid:[1]", "b1 777 pid:[1]", "b1 pid:[1]", "b1 777"] {
        let next = bench.open(boot);
        assert_eq!(next.start, StartKind::Continued, "{boot}");
        assert!(next.memory.children[&name("web")].last.is_some(), "{boot}");
    }
    let container = bench.open("b1 778 pid:[1]");
    assert_eq!(container.start, StartKind::Fresh);
}

#[test]
fn damage_of_either_file_never_keeps_the_server_from_starting() {
    let noise: Vec<u8> = (0..9_000u32).map(|n| ((n * n) >> 3) as u8).collect();
    for garbage in [&b""[..], b"\n", b"{}", &[0; 5_000], &[0xff; 5_000], &noise] {
        let bench = Bench::new();
        bench.open("boot-1");
        fs::write(bench.runtime_file(), garbage).unwrap();
        fs::write(bench.state_file(), garbage).unwrap();
        let opened = bench.open("boot-1");
        assert_eq!(opened.memory.children.len(), 0);
        assert_eq!(opened.warnings.len(), 2);
        let mut opened = opened;
        assert!(opened.records_lost);
        opened.journal.rebuild(&[]).unwrap();
        drop(opened);
        let again = bench.open("boot-1");
        assert!(!again.records_lost);
        assert_eq!(again.warnings, [""; 0]);
        assert_eq!(again.start, StartKind::Continued);
    }
}

#[test]
fn a_newer_format_is_left_alone_and_told() {
    let bench = Bench::new();
    bench.open("boot-1");
    let text = "supervisor-rs journal 2";
    let newer = format!("{text} {:08x}\nnew", crc32fast::hash(text.as_bytes()));
    fs::write(bench.state_file(), &newer).unwrap();
    let error = open_waiting(&bench.dirs, None, "boot-1", Duration::ZERO).unwrap_err();
    assert!(
        matches!(
            error,
            JournalError::NewerFormat {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read_to_string(bench.state_file()).unwrap(), newer);
}

#[test]
fn what_cannot_be_written_is_an_error_and_harms_nothing() {
    let bench = Bench::new();
    let mut opened = bench.open("boot-1");
    let journal = &mut opened.journal;
    let wrong = journal.append(&[held("web")]).unwrap_err();
    assert!(matches!(wrong, RecordError::Never { .. }), "{wrong}");
    journal.commit(Some(Ticket(1)), vec![begun("web", 1)]);
    assert!(answer(journal).1.is_err());
    journal.commit(None, vec![begun("web", 1)]);
    journal.commit(Some(Ticket(2)), vec![held("web")]);
    assert_eq!(answer(journal), (Ticket(2), Ok(())));
    journal.append(&[begun("web", 1)]).unwrap();
}

#[test]
fn records_of_both_stores_are_answered_once() {
    let bench = Bench::new();
    let mut opened = bench.open("boot-1");
    let journal = &mut opened.journal;
    journal
        .record(Some(Ticket(1)), vec![begun("web", 1), held("web")])
        .unwrap();
    assert_eq!(answer(journal), (Ticket(1), Ok(())));
    journal
        .record(Some(Ticket(2)), vec![started("web", 1)])
        .unwrap();
    assert_eq!(answer(journal), (Ticket(2), Ok(())));
    journal
        .record(Some(Ticket(3)), vec![released("web")])
        .unwrap();
    assert_eq!(answer(journal), (Ticket(3), Ok(())));
    journal.record(Some(Ticket(4)), vec![]).unwrap();
    assert_eq!(answer(journal), (Ticket(4), Ok(())));
    journal.record(None, vec![reserved("web", 9)]).unwrap();
    assert!(journal.committed().try_recv().is_err());
    drop(opened);
    let memory = bench.open("boot-1").memory;
    let web = &memory.children[&name("web")];
    assert_eq!(web.held, None);
    assert_eq!(web.reserved, Some(RunId(9)));
    assert!(web.last.as_ref().unwrap().process.is_some());
}

#[test]
fn a_ticket_is_refused_when_the_runtime_half_is() {
    let bench = Bench::new();
    let mut opened = bench.open("boot-1");
    let seen = Record::LoadpathSeen {
        path: {
            use std::os::unix::ffi::OsStringExt;
            PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]))
        },
        dev: 1,
        ino: 2,
    };
    let ticket = Some(Ticket(1));
    assert!(
        opened
            .journal
            .record(ticket, vec![seen, held("web")])
            .is_err()
    );
    assert!(answer(&mut opened.journal).1.is_err());
    drop(opened);
    assert_eq!(bench.open("boot-1").memory.children.len(), 0);
}

#[test]
fn closing_writes_what_was_handed_over_without_a_ticket() {
    let bench = Bench::new();
    let mut opened = bench.open("boot-1");
    for upto in 1..=500 {
        opened.journal.commit(None, vec![reserved("web", upto)]);
    }
    opened.journal.close();
    let memory = bench.open("boot-1").memory;
    assert_eq!(memory.children[&name("web")].reserved, Some(RunId(500)));
}

#[test]
fn directories_swept_away_while_in_use_are_made_anew_with_all_that_is_known() {
    for nested in [false, true] {
        let mut bench = Bench::new();
        if !nested {
            bench.dirs.runtime_dir = bench._temp.path().join("run");
        }
        let mut first = bench.open("boot-1");
        let journal = &mut first.journal;
        journal
            .append(&[begun("web", 1), started("web", 1)])
            .unwrap();
        journal.commit(Some(Ticket(1)), vec![held("db"), reserved("web", 64)]);
        assert_eq!(answer(journal), (Ticket(1), Ok(())));
        fs::remove_dir_all(&bench.dirs.state_dir).unwrap();
        if !nested {
            fs::remove_dir_all(&bench.dirs.runtime_dir).unwrap();
        }

        // I1: nobody else may begin, neither before they are there again nor after.
        for _ in 0..2 {
            let error = open_waiting(&bench.dirs, None, "boot-1", Duration::ZERO).unwrap_err();
            assert!(matches!(error, JournalError::InUse { .. }), "{error}");
            first.journal.append(&[begun("late", 1)]).unwrap();
        }
        assert!(!first.journal.is_behind());
        let id = first.server_id.clone();
        drop(first);
        let second = bench.open("boot-1");
        assert_eq!(second.start, StartKind::Continued);
        assert_eq!(second.warnings, [""; 0]);
        assert_eq!(second.server_id, id);
        let web = &second.memory.children[&name("web")];
        assert_eq!(web.last.as_ref().unwrap().process, Some((4242, 99)));
        assert_eq!(web.reserved, Some(RunId(64)));
        assert!(second.memory.children[&name("db")].held.is_some());
        assert!(second.memory.children[&name("late")].last.is_some());
    }
}

#[test]
fn a_directory_that_was_replaced_by_an_old_copy_of_it_is_written_anew() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first.journal.append(&[begun("old", 1)]).unwrap();
    let copy = bench._temp.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&copy, mode).unwrap();
    fs::copy(bench.runtime_file(), copy.join(RUNTIME_NAME)).unwrap();
    first
        .journal
        .append(&[ended("old", 1), begun("new", 1)])
        .unwrap();
    fs::rename(&bench.dirs.runtime_dir, bench._temp.path().join("away")).unwrap();
    fs::rename(&copy, &bench.dirs.runtime_dir).unwrap();
    first.journal.catch_up().unwrap();
    drop(first);
    let memory = bench.open("boot-1").memory;
    let old = memory.children[&name("old")].last.as_ref().unwrap();
    assert!(matches!(old.end, Some(RememberedEnd::Exited { .. })));
    assert!(memory.children.contains_key(&name("new")));
}

#[test]
fn looking_finds_what_was_deleted_without_anything_to_write() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    first.journal.append(&[begun("web", 1)]).unwrap();
    fs::remove_file(bench.dirs.state_dir.join("id")).unwrap();
    first.journal.catch_up().unwrap();
    let id = bench.dirs.state_dir.join("id");
    let is_back = || fs::read_to_string(&id).is_ok_and(|id| id.trim() == first.server_id);
    let deadline = clock::mono() + ANSWER_WAIT;
    while !is_back() {
        assert!(clock::mono() < deadline, "the thread puts the id back");
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::remove_dir_all(&bench.dirs.state_dir).unwrap();
    first.journal.catch_up().unwrap();
    assert!(bench.runtime_file().exists());
    let whole = fs::read(bench.runtime_file()).unwrap();
    first.journal.catch_up().unwrap();
    assert_eq!(fs::read(bench.runtime_file()).unwrap(), whole);
}

#[test]
fn a_directory_that_cannot_be_had_again_refuses_what_begins_and_owes_the_rest() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1");
    let journal = &mut first.journal;
    journal.append(&[begun("web", 1)]).unwrap();
    fs::remove_dir_all(&bench.dirs.runtime_dir).unwrap();
    fs::write(&bench.dirs.runtime_dir, "in the way").unwrap();
    let error = journal
        .append(&[begun("other", 1)])
        .unwrap_err()
        .to_string();
    let file = bench.runtime_file();
    assert!(error.starts_with(&format!("cannot write `{}`: ", file.display())));
    assert!(journal.append(&[ended("web", 1)]).is_err());
    assert!(journal.is_behind());
    assert!(journal.catch_up().is_err());
    fs::remove_file(&bench.dirs.runtime_dir).unwrap();
    journal.catch_up().unwrap();
    assert!(!journal.is_behind());
    drop(first);
    let memory = bench.open("boot-1").memory;
    assert!(!memory.children.contains_key(&name("other")));
    let web = memory.children[&name("web")].last.as_ref().unwrap();
    assert!(web.end.is_some());
}

#[test]
fn a_full_disk_is_told_with_the_file_the_reason_and_a_hint() {
    let error = RecordError::File {
        path: PathBuf::from("/r/runtime.journal"),
        source: std::io::Error::from_raw_os_error(28),
    };
    assert_eq!(
        error.to_string(),
        "cannot write `/r/runtime.journal`: No space left on device (os error 28); \
         hint: free some space there (`df -h`, `df -i`) and try again"
    );
}

#[test]
fn the_fixed_id_wins() {
    let bench = Bench::new();
    let fixed = "11111111-2222-4333-8444-555555555555";
    let opened = open_waiting(&bench.dirs, Some(fixed), "boot-1", Duration::ZERO).unwrap();
    assert_eq!(opened.server_id, fixed);
}

/// What a process does between clone and exec.
fn write_oneself(slip: &Slip<'_>, bytes: impl Fn(Vec<u8>) -> Vec<u8>) {
    let [before, between, after] = &slip.text;
    let text = [before, b"4242".as_slice(), between, b"99", after].concat();
    let bytes = bytes([(slip.prefix)(&text).as_slice(), &text].concat());
    assert_eq!(rustix::io::write(slip.file, &bytes).unwrap(), bytes.len());
}

#[test]
fn what_a_process_writes_of_itself_is_a_record_like_any_other() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1").journal;
    for run in 1..=60 {
        // Enough for the file to be written anew in between.
        first.append(&[begun("web", run)]).unwrap();
        let slip = first
            .slip(Newborn::Run(&name("web"), RunId(run)), at(5))
            .unwrap();
        write_oneself(&slip, |bytes| bytes);
        drop(slip);
        let written = first.take_in().unwrap();
        assert_eq!(written, [started("web", run)]);
        assert_eq!(first.take_in().unwrap(), []);
    }
    drop(first);
    let second = bench.open("boot-1");
    assert_eq!(second.warnings, [""; 0]);
    let last = second.memory.children[&name("web")].last.clone().unwrap();
    assert_eq!((last.run, last.process), (RunId(60), Some((4242, 99))));
}

#[test]
fn what_a_process_wrote_before_its_server_read_it_is_found_by_the_next_one() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1").journal;
    first.append(&[begun("web", 1)]).unwrap();
    let slip = first
        .slip(Newborn::Run(&name("web"), RunId(1)), at(10))
        .unwrap();
    write_oneself(&slip, |bytes| bytes);
    let never = rustix::io::write(slip.file, &slip.never).unwrap();
    assert_eq!(never, slip.never.len());
    drop(slip);
    drop(first);
    let second = bench.open("boot-1");
    assert_eq!(second.warnings, [""; 0]);
    let last = second.memory.children[&name("web")].last.clone().unwrap();
    assert_eq!(last.process, Some((4242, 99)));
    let end = last.end.unwrap();
    assert!(matches!(end, RememberedEnd::NotStarted { .. }), "{end:?}");
}

#[test]
fn what_a_process_did_not_write_to_its_end_is_cut_off_and_what_follows_is_whole() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1").journal;
    first.append(&[begun("web", 1)]).unwrap();
    let slip = first
        .slip(Newborn::Run(&name("web"), RunId(1)), at(10))
        .unwrap();
    write_oneself(&slip, |bytes| bytes[..bytes.len() / 2].to_vec());
    drop(slip);
    assert_eq!(first.take_in().unwrap(), []);
    first.append(&[begun("db", 1)]).unwrap();
    drop(first);
    let second = bench.open("boot-1");
    assert_eq!(second.warnings, [""; 0]);
    assert!(!second.records_lost);
    let process = |child| {
        second.memory.children[&name(child)]
            .last
            .as_ref()
            .unwrap()
            .process
    };
    assert_eq!((process("web"), process("db")), (None, None));
}

#[test]
fn who_is_about_to_be_executed_keeps_the_next_server_out_until_then() {
    let bench = Bench::new();
    let mut first = bench.open("boot-1").journal;
    first.append(&[begun("web", 1)]).unwrap();
    let slip = first
        .slip(Newborn::Run(&name("web"), RunId(1)), at(10))
        .unwrap();
    let lock = slip.lock.try_clone().unwrap();
    drop(slip);
    drop(first);
    // I1: whether it becomes a process is not on record yet.
    let error = open_waiting(&bench.dirs, None, "boot-1", Duration::ZERO).unwrap_err();
    assert!(
        matches!(&error, JournalError::InUse { dir, .. } if *dir == bench.dirs.runtime_dir),
        "{error}"
    );
    drop(lock);
    bench.open("boot-1");
}
