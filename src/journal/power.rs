//! A file system that exists in memory alone and crashes: what was not synced may be lost, kept in
//! part, or kept while what was written before it is lost; names likewise.
//!
//! - The process dies at any operation: all that it has done stays, the last write perhaps in part.
//! - The host dies at any operation: of a file stands what was synced and any of the later writes,
//!   each whole, torn, or as zeroes; of the names what was synced and any of the later changes.
//!
//! Whatever of that comes, a store is read again without a fault of ours, holds what was reported,
//! and tells of no loss where there was none.

use std::{
    collections::BTreeMap,
    io,
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    folder::{Contents, Medium, Shelf, Standing},
    log::{Durability, Found, Log},
    samples,
};
use crate::reconcile::{
    memory::Memory,
    record::{Record, Store},
};

const NAME: &str = "test.journal";

/// How many histories are tried in which the host dies.
const SEEDS: u64 = 400;

/// How often the host dies in one history.
const CRASHES: usize = 4;

type Inode = usize;

/// A change of a file that is not on the disk yet.
#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Cut { len: usize },
}

#[derive(Debug, Clone, Default)]
struct Node {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Default)]
struct Disk {
    nodes: Vec<Node>,
    names: BTreeMap<String, Inode>,
    durable_names: BTreeMap<String, Inode>,
    /// Names that were given and taken since: `None` is taken.
    pending_names: Vec<(String, Option<Inode>)>,
    /// How many operations are left until the crash.
    left: u64,
    random: u64,
}

/// What a crash takes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    Process,
    Host,
}

impl Disk {
    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound).unwrap();
        usize::try_from((z ^ (z >> 31)) % bound).unwrap()
    }

    /// One more operation: `false` for the one that the crash interrupts, an error for all after.
    fn operation(&mut self) -> io::Result<bool> {
        match self.left {
            0 => Err(io::Error::other("the server is dead")),
            1 => {
                self.left = 0;
                Ok(false)
            }
            _ => {
                self.left -= 1;
                Ok(true)
            }
        }
    }

    /// As [`Disk::operation`], for one that is of no use half done.
    fn whole_operation(&mut self) -> io::Result<()> {
        let died = || io::Error::other("the server dies in it");
        self.operation()?.then_some(()).ok_or_else(died)
    }

    fn name(&mut self, name: &str, inode: Option<Inode>) {
        match inode {
            Some(inode) => self.names.insert(name.to_owned(), inode),
            None => self.names.remove(name),
        };
        self.pending_names.push((name.to_owned(), inode));
    }

    fn change(&mut self, inode: Inode, change: Change) {
        let node = &mut self.nodes[inode];
        change.apply(&mut node.seen);
        node.pending.push(change);
    }

    /// What stands there after the crash.
    fn crash(&mut self, crash: Crash) {
        if crash == Crash::Host {
            self.lose_power();
        }
        for node in &mut self.nodes {
            node.durable.clone_from(&node.seen);
            node.pending.clear();
        }
        self.durable_names = self.names.clone();
        self.pending_names.clear();
    }

    fn lose_power(&mut self) {
        for inode in 0..self.nodes.len() {
            let pending = std::mem::take(&mut self.nodes[inode].pending);
            let mut bytes = std::mem::take(&mut self.nodes[inode].durable);
            for mut change in pending {
                match self.below(5) {
                    0 => continue,
                    1 => {
                        if let Change::Write { bytes, .. } = &mut change {
                            let torn = self.below(bytes.len() + 1);
                            bytes.truncate(torn);
                        }
                    }
                    2 => {
                        if let Change::Write { bytes, .. } = &mut change {
                            bytes.fill(0);
                        }
                    }
                    _ => {}
                }
                change.apply(&mut bytes);
            }
            self.nodes[inode].seen = bytes;
        }
        let mut names = std::mem::take(&mut self.durable_names);
        for (name, inode) in std::mem::take(&mut self.pending_names) {
            if self.below(2) == 0 {
                continue;
            }
            match inode {
                Some(inode) => names.insert(name, inode),
                None => names.remove(&name),
            };
        }
        self.names = names;
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { bytes, .. } if bytes.is_empty() => {}
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                to.resize(to.len().max(end), 0);
                to[*at..end].copy_from_slice(bytes);
            }
            Self::Cut { len } => to.truncate(*len),
        }
    }
}

#[derive(Clone)]
struct Bench(Arc<Mutex<Disk>>);

struct Open {
    bench: Bench,
    inode: Inode,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            random: seed,
            ..Disk::default()
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// A server that dies after so many operations.
    fn open(&self, store: Store, until: u64) -> Found {
        self.with(|disk| disk.left = until);
        let durability = match store {
            Store::Runtime => Durability::Server,
            Store::State => Durability::Host,
        };
        Log::open(store, durability, NAME, Box::new(self.clone())).unwrap()
    }

    fn file(&self, inode: Inode) -> Box<dyn Medium> {
        let bench = self.clone();
        Box::new(Open { bench, inode })
    }
}

impl Shelf for Bench {
    fn stand(&mut self) -> io::Result<Standing> {
        Ok(Standing::AsBefore)
    }

    fn read(&self, name: &str) -> io::Result<Option<Contents>> {
        let inode = self.with(|disk| disk.names.get(name).copied());
        Ok(inode.map(|inode| Contents {
            file: Some(self.file(inode)),
            bytes: self.with(|disk| disk.nodes[inode].seen.clone()),
        }))
    }

    fn open_over(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        let there = self.with(|disk| disk.names.get(name).copied());
        match there {
            Some(inode) => Ok(self.file(inode)),
            None => self.create(name),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        let inode = self.with(|disk| {
            disk.operation()?;
            disk.nodes.push(Node::default());
            let inode = disk.nodes.len() - 1;
            disk.name(name, Some(inode));
            Ok::<_, io::Error>(inode)
        })?;
        Ok(self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|disk| {
            disk.operation()?;
            let inode = disk
                .names
                .get(from)
                .copied()
                .ok_or(io::ErrorKind::NotFound)?;
            disk.name(to, Some(inode));
            disk.name(from, None);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|disk| {
            if disk.names.contains_key(name) {
                disk.operation()?;
                disk.name(name, None);
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|disk| {
            disk.whole_operation()?;
            disk.durable_names = disk.names.clone();
            disk.pending_names.clear();
            Ok(())
        })
    }

    fn set_aside(&self, name: &str, _bytes: &[u8]) -> io::Result<String> {
        Ok(format!("{name}.corrupt-1"))
    }

    fn move_aside(&self, name: &str) -> io::Result<String> {
        let kept = format!("{name}.unreadable-1");
        self.rename(name, &kept)?;
        Ok(kept)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }
}

impl Medium for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bench.with(|disk| {
            let whole = disk.operation()?;
            let len = match whole {
                true => bytes.len(),
                false => disk.below(bytes.len() + 1),
            };
            let at = disk.nodes[self.inode].seen.len();
            let bytes = bytes[..len].to_vec();
            disk.change(self.inode, Change::Write { at, bytes });
            Ok(len)
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.bench.with(|disk| {
            disk.whole_operation()?;
            let node = &mut disk.nodes[self.inode];
            node.durable.clone_from(&node.seen);
            node.pending.clear();
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.bench.with(|disk| {
            disk.operation()?;
            let len = usize::try_from(len).unwrap();
            disk.change(self.inode, Change::Cut { len });
            Ok(())
        })
    }

    fn reserve(&mut self, _len: u64, _room: u64) -> io::Result<()> {
        self.bench.with(Disk::operation).map(drop)
    }

    fn is_linked(&self) -> io::Result<bool> {
        let inode = self.inode;
        Ok(self
            .bench
            .with(|disk| disk.names.values().any(|named| *named == inode)))
    }

    fn read_from(&self, len: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(len).unwrap();
        let seen = self.bench.with(|disk| disk.nodes[self.inode].seen.clone());
        Ok(seen.get(len..).unwrap_or_default().to_vec())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        unreachable!("no process adds to a simulated file")
    }

    fn write_over(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bench.with(|disk| {
            let whole = disk.operation()?;
            let len = match whole {
                true => bytes.len(),
                false => disk.below(bytes.len() + 1),
            };
            let bytes = bytes[..len].to_vec();
            disk.change(self.inode, Change::Write { at: 0, bytes });
            Ok(())
        })
    }
}

fn folded(mut memory: Memory, records: &[Record]) -> Memory {
    for record in records {
        memory.apply(record);
    }
    memory
}

/// One life of a server that dies in it: what may be found afterwards, best known first.
fn live(found: Found, batches: &[Vec<Record>]) -> (Vec<Memory>, bool) {
    let mut log = found.log;
    let mut truth = log.memory().clone();
    for batch in batches {
        if log.append(batch).is_err() {
            // Any of what was under way, each record by itself.
            let subsets = 0..1_usize << batch.len();
            let possible = subsets.map(|subset| {
                let some = batch.iter().enumerate();
                let some = some.filter(|(at, _)| subset & (1 << at) != 0);
                let some: Vec<Record> = some.map(|(_, record)| record.clone()).collect();
                folded(truth.clone(), &some)
            });
            return (possible.collect(), true);
        }
        truth = folded(truth, batch);
    }
    (vec![truth], false)
}

fn is_one_of(found: &Memory, possible: &[Memory], store: Store) -> bool {
    let said = found.records(store);
    possible.iter().any(|memory| memory.records(store) == said)
}

#[test]
fn a_process_that_dies_at_any_operation_loses_nothing_and_tells_of_no_loss() {
    for store in [Store::Runtime, Store::State] {
        let batches = samples::batches(store, 0);
        for until in 1.. {
            let bench = Bench::new(until);
            let (possible, died) = live(bench.open(store, until), &batches);
            bench.with(|disk| disk.crash(Crash::Process));
            let found = bench.open(store, u64::MAX);
            let when = format!("{store:?}, dead at operation {until}");
            assert!(!found.records_lost, "{when}: {:?}", found.warning);
            assert!(is_one_of(found.log.memory(), &possible, store), "{when}");
            if !died {
                assert!(until > 100, "every operation was tried");
                break;
            }
        }
    }
}

#[test]
fn a_host_that_dies_at_any_operation_keeps_what_was_reported_to_be_on_disk() {
    let store = Store::State;
    for seed in 0..SEEDS {
        let bench = Bench::new(seed);
        let mut possible = vec![Memory::default()];
        for life in 0..CRASHES {
            let until = bench.with(|disk| 1 + disk.below(260)) as u64;
            let found = bench.open(store, until);
            let when = format!("seed {seed}, life {life}, dead at operation {until}");
            assert!(is_one_of(found.log.memory(), &possible, store), "{when}");
            let warning = found.warning.clone().unwrap_or_default();
            let false_alarm = warning.contains("was cut:") || warning.contains("is missing");
            assert!(!false_alarm, "{when}: {warning}");
            (possible, _) = live(found, &samples::batches(store, life as u64));
            bench.with(|disk| disk.crash(Crash::Host));
        }
    }
}

#[test]
fn records_of_live_processes_that_a_host_took_with_it_are_read_without_a_fault() {
    let store = Store::Runtime;
    for seed in 0..SEEDS {
        let bench = Bench::new(seed);
        for life in 0..CRASHES {
            let until = bench.with(|disk| 1 + disk.below(400)) as u64;
            let mut found = bench.open(store, until);
            // Another boot, of which they tell nothing.
            found.log.forget_boot();
            let _of_no_use = live(found, &samples::batches(store, life as u64));
            bench.with(|disk| disk.crash(Crash::Host));
        }
        let mut log = bench.open(store, u64::MAX).log;
        log.append(&[samples::begun("late", 1)]).unwrap();
        let found = bench.open(store, u64::MAX);
        assert!(
            found
                .log
                .memory()
                .children
                .contains_key(&samples::name("late"))
        );
    }
}

#[test]
fn the_simulated_disk_loses_what_was_not_synced() {
    let lost = (0..64).filter(|seed| {
        let bench = Bench::new(*seed);
        bench.with(|disk| disk.left = u64::MAX);
        let mut file = bench.create("file").unwrap();
        file.write(b"synced").unwrap();
        file.sync().unwrap();
        bench.sync().unwrap();
        file.write(b"not synced").unwrap();
        bench.with(|disk| disk.crash(Crash::Host));
        let bytes = bench.read("file").unwrap().unwrap().bytes;
        assert!(bytes.starts_with(b"synced"));
        bytes != b"syncednot synced"
    });
    let lost = lost.count();
    assert!((8..60).contains(&lost), "{lost}");
    let nameless = (0..64).filter(|seed| {
        let bench = Bench::new(*seed);
        bench.with(|disk| disk.left = u64::MAX);
        bench.create("file").unwrap();
        bench.with(|disk| disk.crash(Crash::Host));
        bench.read("file").unwrap().is_none()
    });
    assert!((8..56).contains(&nameless.count()));
}
