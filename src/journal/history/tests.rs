//! Histories on disk: kept short, told once, damaged, in the way, too many.

use std::{fs, io::Write as _};

use super::{super::samples, *};
use crate::{
    reconcile::{
        cause::{Cause, Origin},
        past::PastEnd,
    },
    spec::{Circumstances, Digest, Exit, Wall},
};

fn name(text: &str) -> ChildName {
    text.parse().unwrap()
}

fn run(number: u64, end: Option<PastEnd>) -> PastRun {
    PastRun {
        run: RunId(number),
        digest: Digest([1; 16]),
        started: Some(Wall(1)),
        started_by: Some(Origin::from(Cause::Boot)),
        end,
    }
}

fn over(number: u64) -> PastRun {
    let end = PastEnd::Exited {
        exit: Exit::Code(3),
        circumstances: Circumstances::default(),
        at: Some(Wall(2)),
        by: None,
    };
    run(number, Some(end))
}

struct Bed {
    temp: tempfile::TempDir,
    files: Files,
}

impl Bed {
    fn new() -> Self {
        let temp = samples::own_dir();
        let folder = Folder::open(temp.path()).unwrap();
        let home = Home::own(folder, super::super::LOCK_WAIT).unwrap();
        let files = Files::new(home);
        Self { temp, files }
    }

    fn write(&mut self, child: &str, runs: impl IntoIterator<Item = PastRun>) -> Written {
        let runs: Runs = runs.into_iter().map(|past| (past.run, past)).collect();
        self.files.write(vec![(name(child), runs)])
    }

    fn read(&self, child: &str) -> Vec<PastRun> {
        Histories::of(self.temp.path()).read(&name(child)).unwrap()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.temp.path().join("history").join(file)
    }
}

fn numbers(runs: &[PastRun]) -> Vec<u64> {
    runs.iter().map(|past| past.run.0).collect()
}

#[test]
fn the_latest_runs_are_kept_and_the_file_stays_short() {
    let mut bed = Bed::new();
    for number in 1..=100 {
        let written = bed.write("web", [run(number, None)]);
        assert_eq!(written.noted, [], "it is not over");
        let written = bed.write("web", [over(number)]);
        assert_eq!(written.noted, [(name("web"), RunId(number))]);
        let bytes = fs::read(bed.path("web.journal")).unwrap();
        assert!(read(&bytes).unwrap().records <= RECORDS_MAX);
    }
    let kept = bed.read("web");
    let latest = kept.len().saturating_sub(HISTORY_LEN_MAX);
    assert_eq!(numbers(&kept[latest..]), (81..=100).collect::<Vec<_>>());
    assert!(kept.iter().all(|past| past.end.is_some()));
}

#[test]
fn a_run_that_is_handed_over_again_is_told_once_and_costs_no_room() {
    let mut bed = Bed::new();
    bed.write("web", [over(1), over(2)]);
    let len = fs::metadata(bed.path("web.journal")).unwrap().len();
    let written = bed.write("web", [over(1), over(2)]);
    assert_eq!(written.noted, [(name("web"), RunId(2))]);
    // That it lived is no news either.
    bed.write("web", [run(2, None)]);
    assert_eq!(fs::metadata(bed.path("web.journal")).unwrap().len(), len);
    assert_eq!(bed.read("web"), [over(1), over(2)]);
}

#[test]
fn a_torn_end_is_cut_and_a_damaged_file_is_kept_aside() {
    let mut bed = Bed::new();
    bed.write("web", [over(1), over(2)]);
    let path = bed.path("web.journal");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(numbers(&bed.read("web")), [1]);
    bed.write("web", [over(3)]);
    assert_eq!(numbers(&bed.read("web")), [1, 3]);
    let mut flipped = whole.clone();
    flipped[frame::header().len() + 12] ^= 1;
    fs::write(&path, &flipped).unwrap();
    assert_eq!(numbers(&bed.read("web")), [2]);
    let written = bed.write("web", [over(4)]);
    assert!(written.error.is_none());
    assert_eq!(numbers(&bed.read("web")), [2, 4]);
    assert_eq!(
        fs::read(bed.path("web.journal.corrupt-1")).unwrap(),
        flipped
    );
}

/// What a later version may write.
fn newer() -> String {
    let text = "supervisor-rs journal 2";
    let crc = crc32fast::hash(text.as_bytes());
    format!("{text} {crc:08x}\n")
}

#[test]
fn a_newer_file_is_kept_aside_as_it_is_and_the_history_begun_anew() {
    let mut bed = Bed::new();
    bed.write("web", [over(1)]);
    fs::write(bed.path("web.journal"), newer()).unwrap();
    let written = bed.write("web", [over(2)]);
    assert!(written.error.is_none());
    assert_eq!(written.noted, [(name("web"), RunId(2))]);
    assert_eq!(bed.read("web"), [over(2)]);
    let kept = fs::read(bed.path("web.journal.unreadable-1")).unwrap();
    assert_eq!(kept, newer().as_bytes());
}

#[test]
fn what_stands_in_the_place_of_a_history_is_kept_aside_and_no_other_waits_for_it() {
    for spoil in [
        |path: &Path| fs::create_dir(path).unwrap(),
        |path: &Path| std::os::unix::fs::symlink("/dev/null", path).unwrap(),
        |path: &Path| fs::write(path, newer()).unwrap(),
    ] {
        let mut bed = Bed::new();
        bed.write("web", [over(1)]);
        spoil(&bed.path("aaa.journal"));
        let batch = ["aaa", "web"].map(|child| (name(child), Runs::from([(RunId(2), over(2))])));
        let written = bed.files.write(batch.into());
        assert!(written.error.is_none() && written.left.is_empty());
        assert_eq!(written.refused, []);
        assert_eq!(written.noted.len(), 2);
        assert_eq!(bed.read("aaa"), [over(2)]);
        assert_eq!(bed.read("web"), [over(1), over(2)]);
        let kept = bed.path("aaa.journal.unreadable-1");
        assert!(kept.symlink_metadata().is_ok());
    }
}

#[test]
fn a_history_that_cannot_be_written_is_passed_over_and_the_disk_is_not_blamed() {
    let mut bed = Bed::new();
    // It is in the way of the new file.
    let obstacle = bed.path("aaa.journal.new");
    fs::create_dir_all(&obstacle).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(bed.temp.path().join("history"), private).unwrap();
    let batch = ["aaa", "web"].map(|child| (name(child), Runs::from([(RunId(1), over(1))])));
    let written = bed.files.write(batch.clone().into());
    assert!(written.error.is_none());
    assert_eq!(written.refused, batch[..1]);
    assert_eq!(written.noted, [(name("web"), RunId(1))]);
    fs::remove_dir(&obstacle).unwrap();
    let written = bed.files.write(written.refused);
    assert_eq!(written.noted, [(name("aaa"), RunId(1))]);
}

#[test]
fn runs_that_are_put_off_wait_again_with_the_next_one_or_in_time() {
    let mut queue = Queue::default();
    let runs = Runs::from([(RunId(1), over(1))]);
    queue.refuse(name("web"), runs.clone());
    queue.retry_refused();
    assert!(queue.waiting.is_empty(), "it is not time");
    queue.note(name("web"), RunId(1));
    assert!(queue.noted.is_empty(), "it is told again");
    queue.put(&name("web"), over(2));
    assert_eq!(queue.waiting[&name("web")].len(), 2);
    assert!(queue.refused.is_empty());
    queue.refuse(name("web"), runs.clone());
    assert_eq!(queue.waiting[&name("web")].len(), 2, "it waits already");
    queue.refuse(name("db"), runs);
    queue.retry_at = Some(clock::mono());
    queue.retry_refused();
    assert_eq!(queue.waiting.len(), 2);
    assert!(queue.refused.is_empty() && queue.retry_at.is_none());
}

/// Waits until the history is quiet.
fn await_quiet(history: &History) {
    let deadline = clock::mono() + std::time::Duration::from_secs(10);
    while !history.is_quiet() {
        assert!(clock::mono() < deadline, "it is never quiet");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn what_is_only_tried_again_keeps_nobody_waiting() {
    let mut bed = Bed::new();
    bed.write("web", [over(1)]);
    fs::create_dir(bed.path("aaa.journal.new")).unwrap();
    let mut history = History::start(bed.files.state_dir.clone()).unwrap();
    history.put(&name("aaa"), over(1));
    history.put(&name("web"), over(2));
    await_quiet(&history);
    assert_eq!(
        history.take_noted(),
        [(name("web"), RunId(2))].into_iter().collect()
    );
    // Nor does a disk that takes nothing.
    fs::remove_dir_all(bed.temp.path().join("history")).unwrap();
    fs::write(bed.temp.path().join("history"), "in the way").unwrap();
    history.put(&name("web"), over(3));
    await_quiet(&history);
    history.finish();
    assert!(history.take_noted().is_empty());
}

#[test]
fn of_too_many_names_the_oldest_go() {
    let mut bed = Bed::new();
    for n in 0..NAMES_MAX + 3 {
        let child = format!("c{n}");
        assert!(bed.write(&child, [over(1)]).error.is_none());
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(n as u64);
        let file = fs::File::open(bed.path(&format!("{child}.journal"))).unwrap();
        file.set_modified(then).unwrap();
    }
    let files = bed.files.files().unwrap();
    assert_eq!(files.len(), NAMES_MAX);
    assert_eq!(bed.read("c0"), []);
    assert_eq!(numbers(&bed.read("c3")), [1]);
}

#[test]
fn what_waits_is_the_latest_of_each_child() {
    let mut queue = Queue::default();
    for number in 1..=30 {
        queue.put(&name("web"), run(number, None));
        queue.put(&name("web"), over(number));
        queue.put(&name("web"), run(number, None));
    }
    let waiting: Vec<_> = queue.waiting[&name("web")].values().cloned().collect();
    assert_eq!(numbers(&waiting), (11..=30).collect::<Vec<_>>());
    assert!(waiting.iter().all(|past| past.end.is_some()));
}

#[test]
fn all_that_was_handed_over_is_written_before_the_end() {
    let temp = samples::own_dir();
    let folder = Folder::open(temp.path()).unwrap();
    let home = Home::own(folder, super::super::LOCK_WAIT).unwrap();
    let mut history = History::start(home).unwrap();
    for n in 0..200 {
        history.put(&name(&format!("c{}", n % 10)), over(n));
    }
    history.finish();
    let noted = history.take_noted();
    assert_eq!(noted.len(), 10);
    assert_eq!(noted[&name("c9")], RunId(199));
    let read = Histories::of(temp.path()).read(&name("c9")).unwrap();
    assert_eq!(
        numbers(&read),
        (0..20).map(|n| n * 10 + 9).collect::<Vec<_>>()
    );
}

#[test]
fn a_directory_that_cannot_be_written_keeps_what_is_handed_over() {
    let mut bed = Bed::new();
    let mut file = fs::File::create(bed.temp.path().join("history")).unwrap();
    file.write_all(b"in the way").unwrap();
    let written = bed.write("web", [over(1)]);
    assert!(written.error.is_some());
    assert_eq!(written.left.len(), 1);
    fs::remove_file(bed.temp.path().join("history")).unwrap();
    assert!(bed.write("web", [over(1)]).error.is_none());
    assert_eq!(bed.read("web"), [over(1)]);
}
