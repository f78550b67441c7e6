//! A file that was closed is read, whatever became of the news of it.

use std::{
    fs,
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::atomic::{AtomicUsize, Ordering},
};

use notify::{EventHandler, RecommendedWatcher};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{
    super::{
        settle::{Hear, Writing},
        source::Handler,
        *,
    },
    bed::*,
};

/// A queue that never tells of a closing.
fn without_closings(mut handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
    let lossy = move |event: notify::Result<notify::Event>| {
        use notify::event::{AccessKind, AccessMode, EventKind};
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.as_ref().is_ok_and(|event| event.kind != closed) {
            handler.handle_event(event);
        }
    };
    source::inotify_with(lossy, hear)
}

/// Counts how often something was asked, and says whether this was one of the first times.
fn is_early(asked: &AtomicUsize, times: usize) -> bool {
    asked.fetch_add(1, Ordering::SeqCst) < times
}

/// Whether it is a child's file; server.yml of these tests is another.
fn is_childs(file: &File) -> bool {
    let mut bytes = [0; 8];
    let read = file.read_at(&mut bytes, 0);
    read.is_ok_and(|read| bytes[..read] == *b"command:")
}

#[test]
fn a_file_that_counts_as_open_a_little_longer_than_it_is_told_to_be_is_read() {
    // The kernel tells of a closing first and counts the writer out afterwards; ext4 writes a
    // truncated file to the disk in between.
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let plan = Plan {
        being_written: |file| is_childs(file) && is_early(&ASKED, 3),
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
}

#[test]
fn so_is_server_yml() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static EDITED: AtomicUsize = AtomicUsize::new(0);
    let plan = Plan {
        being_written: |_| EDITED.load(Ordering::SeqCst) > 0 && is_early(&ASKED, 3),
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    EDITED.store(1, Ordering::SeqCst);
    bed.write("server.yml", "changed");
    assert_eq!(bed.next(), Seen::ServerFile);
    assert!(ASKED.load(Ordering::SeqCst) > 3);
}

#[test]
fn a_file_whose_writer_has_it_open_under_another_name_is_read_when_that_is_closed() {
    let mut bed = Bed::new();
    // Its closing is told where that name stands.
    fs::create_dir(bed.path("elsewhere")).unwrap();
    let mut file = fs::File::create(bed.path("elsewhere/web")).unwrap();
    file.write_all(child("a").as_bytes()).unwrap();
    fs::hard_link(bed.path("elsewhere/web"), bed.path("conf/web.yml")).unwrap();
    bed.barrier();
    assert_eq!(bed.command("web"), None);
    drop(file);
    bed.until_runs("web", "a");
}

#[test]
fn where_there_are_leases_a_closing_that_is_not_told_is_seen() {
    let plan = Plan {
        open: without_closings,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    let mut file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    file.write_all(child("a").as_bytes()).unwrap();
    // The barrier's file comes by a rename, which needs no closing.
    bed.barrier();
    assert_eq!(bed.command("web"), None);
    drop(file);
    bed.until_runs("web", "a");
}

#[test]
fn where_there_are_none_it_is_seen_when_the_file_stayed_the_same_for_a_while() {
    let plan = Plan {
        open: without_closings,
        being_written: never_known,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
}

#[test]
fn a_file_whose_time_is_set_while_it_is_read_is_read_again_at_once() {
    // A write is told, and no closing: the reading and the setting of the time crossed.
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    fn sets_its_time(file: &File) -> bool {
        if is_childs(file) && is_early(&ASKED, 1) {
            let long_ago = file.metadata().unwrap().mtime() - 1_000_000;
            let times = Timestamps {
                last_access: Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_OMIT,
                },
                last_modification: Timespec {
                    tv_sec: long_ago,
                    tv_nsec: 0,
                },
            };
            futimens(file, &times).unwrap();
        }
        false
    }
    let mut watch = ByHand::new(sets_its_time, |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
    });
    assert_eq!(watch.listed(), ["a"]);
}

#[test]
fn a_file_that_is_changed_all_the_time_is_not_read_for_ever() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    fn grows(file: &File) -> bool {
        if is_childs(file) {
            ASKED.fetch_add(1, Ordering::SeqCst);
            let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"x").unwrap();
        }
        false
    }
    let mut watch = ByHand::new(grows, |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
    });
    assert!(watch.listed().is_empty());
    assert!(ASKED.load(Ordering::SeqCst) < 10);
    assert!(
        watch.lookout.next_timer().is_some(),
        "it is looked at again"
    );
}

/// A watch whose thread is the test's, which gives it hints of its own making.
pub(super) struct ByHand {
    pub(super) lookout: Lookout,
    pub(super) told: Receiver<Seen>,
    /// What was told last of the loadpaths.
    last: Update,
    pub(super) root: PathBuf,
    _keep: tempfile::TempDir,
}

impl ByHand {
    pub(super) fn new(being_written: BeingWritten, prepare: impl FnOnce(&Path)) -> Self {
        let open: Open = |_, _| Err(notify::Error::generic("by hand"));
        Self::with(being_written, open, prepare)
    }

    fn with(being_written: BeingWritten, open: Open, prepare: impl FnOnce(&Path)) -> Self {
        let (keep, root) = sandbox(Disk::Usual);
        prepare(&root);
        let config = config(&root, &Arc::default());
        let (mut lookout, told) = Lookout::new(config, being_written, open, &[]);
        let last = lookout.begin();
        // Without a queue it would rescan.
        lookout.rescan_at = None;
        Self {
            lookout,
            told,
            last,
            root,
            _keep: keep,
        }
    }

    /// Gives hints of `web.yml` and takes what they lead to.
    fn hint(&mut self, writing: Writing) {
        self.settle(writing, Hints::default());
    }

    /// Gives such a hint together with one that the directory changed.
    fn hint_and_move(&mut self, writing: Writing) {
        let moved = Hints {
            moved: true,
            ..Hints::default()
        };
        self.settle(writing, moved);
    }

    fn settle(&mut self, writing: Writing, mut hints: Hints) {
        let file = (0, "web.yml".into());
        hints.files.insert(file, Some(writing));
        assert!(self.lookout.settle(hints).is_ok());
        self.take();
    }

    fn take(&mut self) {
        while let Ok(seen) = self.told.try_recv() {
            if let Seen::Listing(update) = seen {
                self.last = update;
            }
        }
    }

    /// What the good children run.
    fn listed(&mut self) -> Vec<String> {
        use crate::reconcile::listing::Content;
        let entries = self.last.entries.iter();
        let contents = entries.filter_map(|(_, entry)| Some(&entry.as_ref()?.content));
        contents
            .filter_map(|content| match content {
                Content::Good(spec) => Some(spec.command[0].clone()),
                Content::Bad(_) | Content::Conflict => None,
            })
            .collect()
    }
}

#[test]
fn a_closing_told_together_with_a_change_of_the_directory_is_heeded() {
    for being_written in [open_for_writing_by_us, never_known] {
        let mut watch = ByHand::new(being_written, |_| {});
        let mut file = fs::File::create(watch.root.join("conf/web.yml")).unwrap();
        watch.hint(Writing::Begun);
        watch.hint(Writing::Open);
        assert!(watch.listed().is_empty());
        file.write_all(child("a").as_bytes()).unwrap();
        drop(file);
        watch.hint_and_move(Writing::Done);
        assert_eq!(watch.listed(), ["a"]);
        assert_eq!(watch.lookout.next_timer(), None);
    }
}

#[test]
fn a_directory_that_was_away_comes_back_without_what_hints_said_of_it() {
    // Its files were closed while it was away, and nothing told of that.
    let mut watch = ByHand::new(never_known, |_| {});
    let (conf, aside) = (watch.root.join("conf"), watch.root.join("aside"));
    fs::write(conf.join("web.yml"), child("a")).unwrap();
    watch.hint(Writing::Open);
    assert!(watch.listed().is_empty());
    fs::rename(&conf, &aside).unwrap();
    watch.hint_and_move(Writing::Reopened);
    watch.hint(Writing::Open);
    assert_eq!(
        watch.lookout.next_timer(),
        None,
        "there is nothing to look at"
    );
    fs::rename(&aside, &conf).unwrap();
    watch.hint_and_move(Writing::Begun);
    assert_eq!(watch.listed(), ["a"]);
}

#[test]
fn a_directory_that_changes_as_often_as_watches_are_put_up_is_watched_in_the_end() {
    static ROOT: Mutex<Option<PathBuf>> = Mutex::new(None);
    static CHANGES: AtomicUsize = AtomicUsize::new(0);
    /// Takes the loadpath away or brings it back each time the watches are about to be put up,
    /// and has no queue until the last time.
    fn changes(handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
        if hear == Hear::Files {
            return source::inotify(handler, hear);
        }
        let root = ROOT.lock().unwrap().clone().unwrap();
        let (conf, aside) = (root.join("conf"), root.join("aside"));
        let change = CHANGES.fetch_add(1, Ordering::SeqCst);
        if change.is_multiple_of(2) {
            fs::rename(conf, aside).unwrap();
        } else {
            fs::rename(aside, conf).unwrap();
        }
        if change + 1 < INSTALL_ATTEMPTS_MAX {
            return Err(notify::Error::generic("not yet"));
        }
        source::inotify(handler, hear)
    }
    let plan = Plan {
        open: changes,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |root| {
        *ROOT.lock().unwrap() = Some(root.to_owned());
    });
    assert!(bed.is_ready());
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    assert_eq!(CHANGES.load(Ordering::SeqCst), INSTALL_ATTEMPTS_MAX);
}

#[test]
fn a_directory_that_is_never_the_same_twice_is_watched_again_after_a_pause() {
    static ROOT: Mutex<Option<PathBuf>> = Mutex::new(None);
    fn changes(_: Handler, _: Hear) -> notify::Result<RecommendedWatcher> {
        let conf = ROOT.lock().unwrap().clone().unwrap().join("conf");
        let other = conf.with_extension("other");
        // The old one is there still, so that the new one has another number.
        fs::create_dir(&other).unwrap();
        let aside = tempfile::tempdir_in(conf.parent().unwrap()).unwrap().keep();
        fs::rename(&conf, aside.join("old")).unwrap();
        fs::rename(other, conf).unwrap();
        Err(notify::Error::generic("never"))
    }
    let watch = ByHand::with(never_known, changes, |root| {
        *ROOT.lock().unwrap() = Some(root.to_owned());
    });
    let at_once = watch.lookout.inbox.wait(Some(clock::mono())).unwrap();
    assert!(at_once.hints.is_empty());
    assert!(watch.lookout.next_timer().is_some());
}

#[test]
fn an_order_waits_a_moment_for_a_file_that_is_about_to_be_closed() {
    // Another program that forks while it writes holds it until it executes.
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let plan = Plan {
        open: |_, _| Err(notify::Error::generic("no hints in this test")),
        being_written: |file| is_childs(file) && is_early(&ASKED, 3),
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    bed.write("conf/web.yml", &child("a"));
    bed.reread(&["web"]);
    assert_eq!(bed.command("web"), Some("a"));
}

#[test]
fn an_order_does_not_wait_for_a_file_that_stays_open() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    fn open_for_ever(file: &File) -> bool {
        is_childs(file) && {
            ASKED.fetch_add(1, Ordering::SeqCst);
            true
        }
    }
    let mut watch = ByHand::new(open_for_ever, |_| {});
    fs::write(watch.root.join("conf/web.yml"), child("a")).unwrap();
    let names = [name("web")].into();
    assert!(watch.lookout.reread(1, &names).is_ok());
    assert!(matches!(watch.told.try_recv(), Ok(Seen::Reread { .. })));
    assert_eq!(ASKED.load(Ordering::SeqCst), 4);
    assert!(watch.lookout.next_timer().is_some());
}

#[test]
fn with_no_file_being_written_there_is_no_timer() {
    let mut watch = ByHand::new(open_for_writing_by_us, |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
    });
    assert_eq!(watch.lookout.next_timer(), None);
    watch.hint(Writing::Open);
    assert!(watch.lookout.next_timer().is_some());
    fs::remove_file(watch.root.join("conf/web.yml")).unwrap();
    watch.hint(Writing::Done);
    assert!(watch.listed().is_empty());
    assert_eq!(watch.lookout.next_timer(), None);
}

#[test]
fn a_directory_that_the_look_after_the_watches_is_the_first_to_see_is_watched() {
    let mut watch = ByHand::new(never_known, |root| {
        fs::remove_file(root.join("server.yml")).unwrap();
        std::os::unix::fs::symlink("v1/s.yml", root.join("server.yml")).unwrap();
    });
    watch.lookout.install();
    fs::create_dir(watch.root.join("v1")).unwrap();
    // As at the end of a whole reading, before the hint of the directory is taken.
    watch.lookout.look_at_server_file();
    let hints = Hints {
        server: true,
        ..Hints::default()
    };
    assert!(watch.lookout.settle(hints).is_ok());
    let v1 = watch.root.join("v1");
    let is_watched = |layout: Layout| layout.dirs().any(|dir| dir.path == v1);
    assert!(is_watched(Layout::of(&[], &[], &watch.lookout.watched_way)));
    assert!(!watch.lookout.is_server_elsewhere());
    watch.take();
}

#[test]
fn so_it_is_when_no_hint_tells_of_it() {
    let mut watch = ByHand::new(never_known, |_| {});
    assert_eq!(watch.lookout.install_at, None);
    // As if it had come after the watches.
    watch.lookout.watched_way = Way::default();
    watch.lookout.plan_install();
    let at = watch.lookout.install_at.unwrap();
    assert!(watch.lookout.next_timer().unwrap() <= at);
}

#[test]
fn server_yml_is_told_of_after_each_look_though_it_looks_as_before() {
    // Whoever reads it does so later, and may have found what came and went in between.
    let mut watch = ByHand::new(never_known, |_| {});
    let none = Hints::default;
    let [server, moved, lost] = [true; 3];
    for hints in [
        Hints { server, ..none() },
        Hints { moved, ..none() },
        Hints { lost, ..none() },
    ] {
        assert!(watch.lookout.settle(hints).is_ok());
        let told = std::iter::from_fn(|| watch.told.try_recv().ok());
        assert_eq!(told.last(), Some(Seen::ServerFile));
    }
}
