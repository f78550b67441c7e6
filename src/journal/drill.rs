//! Disks that fail, power that goes: every step of a store's life, cut off or refused.

use std::{
    io,
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    folder::{Contents, Folder, Medium, Shelf, Standing},
    log::{AppendError, Durability, Log},
    samples,
};
use crate::reconcile::{
    memory::Memory,
    record::{Record, Store},
};

pub(super) const NAME: &str = "test.journal";
const MARK: &str = "test.length";

/// How the disk behaves. Every operation that changes it counts.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// How many operations were tried.
    pub(super) operations: u64,
    /// From which operation on everything fails for ever, the first write half way.
    pub(super) power_until: Option<u64>,
    /// Which operations fail, the writes among them half way.
    pub(super) refuses: std::ops::Range<u64>,
    /// How many bytes fit on it.
    pub(super) space: Option<u64>,
    /// Whether syncs fail.
    pub(super) sync_fails: bool,
    /// Whether files cannot be cut.
    pub(super) truncate_fails: bool,
    /// Every other write is interrupted and every write takes at most this many bytes.
    pub(super) sip: Option<usize>,
    interrupted: bool,
}

pub(super) type Shared = Arc<Mutex<Disk>>;

pub(super) struct FaultyShelf {
    pub(super) inner: Folder,
    pub(super) disk: Shared,
}

struct FaultyFile {
    inner: Box<dyn Medium>,
    /// How many bytes are kept free behind its end.
    reserved: u64,
    disk: Shared,
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Disk {
    fn operation(&mut self) -> io::Result<()> {
        let this = self.operations;
        self.operations += 1;
        let dead = self.power_until.is_some_and(|until| this >= until);
        if dead || self.refuses.contains(&this) {
            return Err(full());
        }
        Ok(())
    }

    fn is_first_dead(&self) -> bool {
        self.power_until == Some(self.operations - 1)
    }
}

impl FaultyShelf {
    pub(super) fn new(path: &std::path::Path) -> (Self, Shared) {
        let disk = Shared::default();
        let inner = Folder::open(path).unwrap();
        let shelf = Self {
            inner,
            disk: Arc::clone(&disk),
        };
        (shelf, disk)
    }

    fn wrap(&self, inner: Box<dyn Medium>) -> Box<dyn Medium> {
        Box::new(FaultyFile {
            inner,
            reserved: 0,
            disk: Arc::clone(&self.disk),
        })
    }

    fn operation(&self) -> io::Result<()> {
        self.disk.lock().unwrap().operation()
    }
}

impl Shelf for FaultyShelf {
    fn stand(&mut self) -> io::Result<Standing> {
        self.inner.stand()
    }

    fn read(&self, name: &str) -> io::Result<Option<Contents>> {
        let read = self.inner.read(name)?;
        Ok(read.map(|Contents { file, bytes }| Contents {
            file: file.map(|file| self.wrap(file)),
            bytes,
        }))
    }

    fn open_over(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        self.operation()?;
        Ok(self.wrap(self.inner.open_over(name)?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        self.operation()?;
        Ok(self.wrap(self.inner.create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operation()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operation()?;
        self.inner.remove(name)
    }

    /// Really syncing would only take time: the host of a test does not lose power.
    fn sync(&self) -> io::Result<()> {
        self.operation()
    }

    fn set_aside(&self, name: &str, bytes: &[u8]) -> io::Result<String> {
        self.operation()?;
        self.inner.set_aside(name, bytes)
    }

    fn move_aside(&self, name: &str) -> io::Result<String> {
        self.operation()?;
        self.inner.move_aside(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
}

impl Medium for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.disk.lock().unwrap();
        let half = bytes.len() / 2;
        if let Err(error) = disk.operation() {
            let dead_before = disk.power_until.is_some() && !disk.is_first_dead();
            if !dead_before && half > 0 {
                self.inner.write(&bytes[..half])?;
            }
            return Err(error);
        }
        let mut len = bytes.len();
        if let Some(space) = &mut disk.space {
            let room = self.reserved + *space;
            if room == 0 {
                return Err(full());
            }
            len = len.min(usize::try_from(room).unwrap());
            let kept = self.reserved.min(len as u64);
            self.reserved -= kept;
            *space -= len as u64 - kept;
        }
        if let Some(sip) = disk.sip {
            disk.interrupted = !disk.interrupted;
            if disk.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            len = len.min(sip);
        }
        self.inner.write(&bytes[..len])
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.operation()?;
        if disk.sync_fails {
            return Err(io::Error::other("the disk is ill"));
        }
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.operation()?;
        if disk.truncate_fails {
            return Err(io::Error::other("the disk is ill"));
        }
        if let Some(space) = &mut disk.space {
            *space += std::mem::take(&mut self.reserved);
        }
        drop(disk);
        self.inner.truncate(len)
    }

    fn reserve(&mut self, _len: u64, room: u64) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        disk.operation()?;
        let more = room.saturating_sub(self.reserved);
        if let Some(space) = &mut disk.space {
            *space = space.checked_sub(more).ok_or_else(full)?;
        }
        self.reserved += more;
        Ok(())
    }

    fn is_linked(&self) -> io::Result<bool> {
        self.inner.is_linked()
    }

    fn read_from(&self, len: u64) -> io::Result<Vec<u8>> {
        self.inner.read_from(len)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }

    fn write_over(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        if let Err(error) = disk.operation() {
            let dead_before = disk.power_until.is_some() && !disk.is_first_dead();
            if !dead_before {
                self.inner.write_over(&bytes[..bytes.len() / 2])?;
            }
            return Err(error);
        }
        self.inner.write_over(bytes)
    }
}

struct Bench {
    temp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let temp = samples::own_dir();
        Self { temp }
    }

    fn open(&self, store: Store) -> (Log, Shared, Option<String>) {
        let (shelf, disk) = FaultyShelf::new(self.temp.path());
        let durability = match store {
            Store::Runtime => Durability::Server,
            Store::State => Durability::Host,
        };
        let found = Log::open(store, durability, NAME, Box::new(shelf)).unwrap();
        (found.log, disk, found.warning)
    }

    /// What the next server would find.
    fn reopened(&self, store: Store) -> Memory {
        self.open(store).0.memory().clone()
    }

    fn file(&self) -> PathBuf {
        self.temp.path().join(NAME)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.temp.path()).unwrap();
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Memory {
    let mut memory = Memory::default();
    for record in records {
        memory.apply(record);
    }
    memory
}

/// What a store says of a memory, which is all that its next reader can know.
fn essence(memory: &Memory, store: Store) -> Vec<Record> {
    memory.records(store)
}

const STORES: [Store; 2] = [Store::Runtime, Store::State];

#[test]
fn power_that_goes_at_any_step_loses_nothing_that_was_reported_written() {
    for store in STORES {
        let batches = samples::batches(store, 0);
        let mut cut_at = 0;
        loop {
            let bench = Bench::new();
            let (mut log, disk, _) = bench.open(store);
            disk.lock().unwrap().power_until = Some(cut_at);
            let written = batches
                .iter()
                .take_while(|batch| log.append(batch).is_ok())
                .count();
            drop(log);
            let reported = batches[..written].iter().flatten();
            let found = essence(&bench.reopened(store), store);
            let under_way = batches.get(written).map_or(&[][..], Vec::as_slice);
            let possible = (0..=under_way.len()).any(|some| {
                let records = reported.clone().chain(&under_way[..some]);
                essence(&fold(records), store) == found
            });
            assert!(possible, "{store:?}, power cut at step {cut_at}: {found:?}");
            if written == batches.len() {
                break;
            }
            cut_at += 1;
        }
        assert!(cut_at > batches.len() as u64);
    }
}

#[test]
fn refusals_at_any_step_leave_a_store_that_works_again_and_says_the_truth() {
    for store in STORES {
        let batches = samples::batches(store, 0);
        for length in [1, 2, 7] {
            for from in 0..70 {
                let bench = Bench::new();
                let (mut log, disk, _) = bench.open(store);
                disk.lock().unwrap().refuses = from..from + length;
                let mut truth = Memory::default();
                for batch in &batches {
                    let begins = |record: &Record| matches!(record, Record::Begun { .. });
                    match log.append(batch) {
                        Ok(()) => {}
                        Err(AppendError::Io(_)) if batch.iter().any(begins) => continue,
                        Err(AppendError::Io(_)) => log.owe(batch),
                        Err(error) => panic!("{error}"),
                    }
                    for record in batch {
                        truth.apply(record);
                    }
                }
                let when = format!("{store:?}, steps {from} to {}", from + length);
                log.catch_up().expect(&when);
                assert_eq!(log.memory(), &truth, "{when}");
                drop(log);
                let found = bench.reopened(store);
                assert_eq!(essence(&found, store), essence(&truth, store), "{when}");
                assert_eq!(bench.names(), [NAME, MARK], "{when}");
            }
        }
    }
}

#[test]
fn a_full_disk_takes_whole_batches_or_none() {
    for space in 0..400 {
        let bench = Bench::new();
        let (mut log, disk, _) = bench.open(Store::State);
        log.append(&[samples::held("first")]).unwrap();
        let before = std::fs::read(bench.file()).unwrap();
        disk.lock().unwrap().space = Some(space);
        let batch = [samples::held("a"), samples::held("b")];
        if log.append(&batch).is_err() {
            assert_eq!(std::fs::read(bench.file()).unwrap(), before, "{space}");
        }
        disk.lock().unwrap().space = None;
        log.append(&batch).unwrap();
        let found = bench.reopened(Store::State);
        let names: Vec<_> = found.children.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "b", "first"]);
    }
}

#[test]
fn a_run_begins_only_with_room_for_its_end_which_a_full_disk_cannot_take_away() {
    let names: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
    for space in (0..30_000).step_by(997) {
        let bench = Bench::new();
        let (mut log, disk, _) = bench.open(Store::Runtime);
        disk.lock().unwrap().space = Some(space);
        let begins = |name: &&String| log.append(&[samples::begun(name, 1)]).is_ok();
        let begun: Vec<&String> = names.iter().take_while(begins).collect();
        // Somebody else takes what is left.
        disk.lock().unwrap().space = Some(0);
        for name in &begun {
            let batch = [samples::started(name, 1), samples::ended(name, 1)];
            log.append(&batch).expect("there is room for it");
        }
        drop(log);
        let found = bench.reopened(Store::Runtime);
        assert_eq!(found.children.len(), begun.len(), "{space}");
        for child in found.children.values() {
            assert!(child.last.as_ref().unwrap().end.is_some(), "{space}");
        }
    }
}

#[test]
fn an_end_that_cannot_be_written_is_owed_and_stands_before_the_next_run_begins() {
    let bench = Bench::new();
    let (mut log, disk, _) = bench.open(Store::Runtime);
    log.append(&[samples::begun("a", 1), samples::started("a", 1)])
        .unwrap();
    let ended = [samples::ended("a", 1)];
    {
        let mut disk = disk.lock().unwrap();
        disk.refuses = disk.operations..u64::MAX;
    }
    assert!(log.append(&ended).is_err());
    log.owe(&ended);
    // I1: the next run cannot begin while the end of the last one is in no file.
    assert!(log.append(&[samples::begun("a", 2)]).is_err());
    assert!(log.is_behind());
    disk.lock().unwrap().refuses = 0..0;
    log.append(&[samples::begun("b", 1)]).unwrap();
    let expected = fold(&[
        samples::begun("a", 1),
        samples::started("a", 1),
        samples::ended("a", 1),
        samples::begun("b", 1),
    ]);
    assert_eq!(bench.reopened(Store::Runtime), expected);
}

#[test]
fn interrupted_and_partial_writes_are_carried_on() {
    let bench = Bench::new();
    let (mut log, disk, _) = bench.open(Store::Runtime);
    disk.lock().unwrap().sip = Some(3);
    log.append(&samples::runtime()).unwrap();
    assert_eq!(bench.reopened(Store::Runtime), fold(&samples::runtime()));
}

#[test]
fn a_disk_that_takes_nothing_and_says_nothing_is_given_up_in_the_end() {
    let bench = Bench::new();
    let (mut log, disk, _) = bench.open(Store::Runtime);
    disk.lock().unwrap().sip = Some(0);
    let error = log.append(&samples::runtime()).unwrap_err();
    assert!(matches!(error, AppendError::Io(_)));
    disk.lock().unwrap().sip = None;
    log.append(&samples::runtime()).unwrap();
    assert_eq!(bench.reopened(Store::Runtime), fold(&samples::runtime()));
}

#[test]
fn after_a_failed_sync_the_file_is_written_anew_before_anything_is_called_written() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let (mut log, disk, _) = bench.open(Store::State);
    log.append(&[samples::held("a")]).unwrap();
    let inode = std::fs::metadata(bench.file()).unwrap().ino();
    disk.lock().unwrap().sync_fails = true;
    for _ in 0..3 {
        assert!(log.append(&[samples::held("b")]).is_err());
        let found = bench.reopened(Store::State);
        assert_eq!(found, fold(&[samples::held("a")]));
    }
    disk.lock().unwrap().sync_fails = false;
    log.append(&[samples::held("c")]).unwrap();
    assert_ne!(std::fs::metadata(bench.file()).unwrap().ino(), inode);
    let found = bench.reopened(Store::State);
    assert_eq!(found, fold(&[samples::held("a"), samples::held("c")]));
}

#[test]
fn a_file_that_cannot_be_cut_back_is_never_added_to_again() {
    let bench = Bench::new();
    let (mut log, disk, _) = bench.open(Store::Runtime);
    log.append(&[samples::begun("a", 1)]).unwrap();
    {
        let mut disk = disk.lock().unwrap();
        disk.truncate_fails = true;
        // The first sees to the room, the second writes.
        disk.refuses = disk.operations + 1..disk.operations + 2;
    }
    assert!(log.append(&[samples::begun("b", 1)]).is_err());
    assert!(log.is_behind());
    log.append(&[samples::begun("c", 1)]).unwrap();
    let (log, _, warning) = bench.open(Store::Runtime);
    assert_eq!(warning, None);
    let expected = fold(&[samples::begun("a", 1), samples::begun("c", 1)]);
    assert_eq!(log.memory(), &expected);
}

#[test]
fn a_deleted_or_replaced_file_is_written_anew() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    log.append(&[samples::begun("a", 1)]).unwrap();
    std::fs::remove_file(bench.file()).unwrap();
    log.append(&[samples::started("a", 1)]).unwrap();
    let expected = fold(&[samples::begun("a", 1), samples::started("a", 1)]);
    assert_eq!(bench.reopened(Store::Runtime), expected);

    let planted = bench.temp.path().join("planted");
    std::fs::write(&planted, "planted").unwrap();
    std::fs::rename(&planted, bench.file()).unwrap();
    log.append(&[samples::ended("a", 1)]).unwrap();
    let mut expected = expected;
    expected.apply(&samples::ended("a", 1));
    assert_eq!(bench.reopened(Store::Runtime), expected);
}

#[test]
fn a_store_stays_short_however_long_it_is_used() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    let mut longest = 0;
    for run in 1..=2_000 {
        log.append(&[samples::begun("a", run), samples::ended("a", run)])
            .unwrap();
        longest = longest.max(std::fs::metadata(bench.file()).unwrap().len());
    }
    assert!(longest < 16 << 10, "{longest}");
    let both = |run| [samples::begun("a", run), samples::ended("a", run)];
    let expected = fold(&(1..=2_000).flat_map(both).collect::<Vec<_>>());
    assert_eq!(bench.reopened(Store::Runtime), expected);
}

#[test]
fn each_leftover_of_a_rewrite_is_removed_and_the_named_file_counts() {
    let old = [samples::begun("old", 1)];
    let temporary = format!("{NAME}.new");
    // Died before the new file had anything, half way, and just before the rename.
    for leftover in [
        &b""[..],
        b"supervisor-rs jour",
        b"supervisor-rs journal 1 x\n",
    ] {
        let bench = Bench::new();
        bench.open(Store::Runtime).0.append(&old).unwrap();
        std::fs::write(bench.temp.path().join(&temporary), leftover).unwrap();
        let (mut log, _, warning) = bench.open(Store::Runtime);
        assert_eq!(warning, None);
        assert_eq!(log.memory(), &fold(&old));
        assert_eq!(bench.names(), [NAME, MARK]);
        log.append(&[samples::ended("old", 1)]).unwrap();
    }
    // Died before the very first file had its name.
    let bench = Bench::new();
    std::fs::write(bench.temp.path().join(&temporary), "half").unwrap();
    assert_eq!(bench.reopened(Store::Runtime), Memory::default());
}

#[test]
fn a_leftover_that_cannot_be_removed_does_not_stop_the_store() {
    let bench = Bench::new();
    let planted = bench.temp.path().join(format!("{NAME}.new"));
    std::fs::create_dir(&planted).unwrap();
    let (mut log, _, _) = bench.open(Store::Runtime);
    assert!(log.append(&[samples::begun("a", 1)]).is_err());
    std::fs::remove_dir(&planted).unwrap();
    log.append(&[samples::begun("a", 1)]).unwrap();
}

#[test]
fn a_torn_tail_is_cut_and_the_file_added_to() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    log.append(&[samples::begun("a", 1)]).unwrap();
    let sound = std::fs::read(bench.file()).unwrap();
    let mut torn = sound.clone();
    torn.extend(b"\x80\0\0\0tor");
    std::fs::write(bench.file(), &torn).unwrap();
    let (mut log, _, warning) = bench.open(Store::Runtime);
    let warning = warning.unwrap();
    assert!(warning.contains("its 7 bytes were cut off"), "{warning}");
    assert_eq!(std::fs::read(bench.file()).unwrap(), sound);
    log.append(&[samples::started("a", 1)]).unwrap();
    let expected = fold(&[samples::begun("a", 1), samples::started("a", 1)]);
    assert_eq!(bench.reopened(Store::Runtime), expected);
    assert_eq!(bench.names(), [NAME, MARK]);
}

#[test]
fn a_damaged_file_is_kept_aside_and_the_rest_of_it_used() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    log.append(&[samples::begun("a", 1), samples::begun("b", 1)])
        .unwrap();
    let mut damaged = std::fs::read(bench.file()).unwrap();
    let at = damaged.len() - 10;
    damaged[at] ^= 1;
    log.append(&[samples::begun("c", 1)]).unwrap();
    let whole = std::fs::read(bench.file()).unwrap();
    damaged.extend(&whole[damaged.len()..]);
    std::fs::write(bench.file(), &damaged).unwrap();

    let (mut log, _, warning) = bench.open(Store::Runtime);
    let warning = warning.unwrap();
    assert!(warning.contains("damaged in 1 place(s)"), "{warning}");
    assert!(warning.contains("test.journal.corrupt-1"), "{warning}");
    let left = [samples::begun("a", 1), samples::begun("c", 1)];
    assert_eq!(log.memory(), &fold(&left));
    assert!(log.is_behind());
    log.append(&[samples::started("c", 1)]).unwrap();
    let kept = bench.temp.path().join("test.journal.corrupt-1");
    assert_eq!(std::fs::read(kept).unwrap(), damaged);
    let (log, _, warning) = bench.open(Store::Runtime);
    assert_eq!(warning, None);
    assert_eq!(log.memory().children.len(), 2);
}

#[test]
fn a_file_cut_or_flipped_at_any_byte_still_opens_and_takes_records() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    log.append(&samples::runtime()).unwrap();
    let whole = std::fs::read(bench.file()).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x20;
        for bytes in [&whole[..at], &flipped] {
            std::fs::write(bench.file(), bytes).unwrap();
            let (mut log, _, _) = bench.open(Store::Runtime);
            log.append(&[samples::begun("late", 1)]).unwrap();
            let (log, _, warning) = bench.open(Store::Runtime);
            assert_eq!(warning, None, "byte {at}");
            let late = samples::name("late");
            assert!(log.memory().children.contains_key(&late), "byte {at}");
        }
    }
}

#[test]
fn records_of_the_other_store_are_refused() {
    let bench = Bench::new();
    let (mut log, _, _) = bench.open(Store::Runtime);
    let error = log.append(&[samples::held("a")]).unwrap_err();
    assert!(matches!(error, AppendError::WrongStore(Store::Runtime)));
    assert_eq!(log.memory(), &Memory::default());
}
