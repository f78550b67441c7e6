//! Histories on disk: kept short, told once, damaged, in the way, too many.

use std::{fs, io::Write as _};

use super::{super::samples, *};
use crate::{
    reconcile::{
        cause::{Cause, Origin},
        past::PastEnd,
    },
    spec::{Digest, Exit, Wall},
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

#[test]
fn a_newer_file_is_left_alone_and_told() {
    let mut bed = Bed::new();
    bed.write("web", [over(1)]);
    let text = "supervisor-rs journal 2";
    let crc = crc32fast::hash(text.as_bytes());
    let newer = format!("{text} {crc:08x}\n");
    fs::write(bed.path("web.journal"), &newer).unwrap();
    let written = bed.write("web", [over(2)]);
    assert!(written.error.is_some());
    assert_eq!(written.noted, []);
    assert_eq!(written.left.len(), 1);
    let found = fs::read(bed.path("web.journal")).unwrap();
    assert_eq!(found, newer.as_bytes());
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
