//! Where hints come from: the kernel's queue, through `notify`.
//!
//! - All watches are taken down before they are put up again. A watch is on an inode while
//!   `notify` knows it by a path; after a directory was replaced it would report the old one
//!   under the new one's name, and forget the new one when the old one's end is reported.
//! - The handler only passes things on: a panic in it would end `notify`'s thread unseen.
//! - When `notify`'s thread is gone we take another, or rescan instead.
//!
//! Absent on purpose: recursion, and `notify`'s own polling (the scanner knows what to look at).
//! Source: inotify(7).

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use notify::{
    Config, ErrorKind, Event, EventHandler, EventKind, EventKindMask, RecommendedWatcher,
    RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use rustix::io::Errno;

use super::{
    inbox::Inbox,
    settle::{Hear, Need, News, Wanted},
};
use crate::trust::Shown;

/// How often a queue is opened in a row when the thread that reads it dies.
const OPEN_ATTEMPTS_MAX: usize = 2;

/// How changes are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capabilities {
    /// The kernel tells about all of them at once.
    Inotify,
    /// It does so but for some directories, which are seen at the next rescan.
    Partly {
        /// The first such directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// All are seen at the next rescan.
    RescanOnly {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inotify => f.write_str("inotify"),
            Self::Partly { path, why } => {
                write!(f, "inotify, but {} by rescan only: {why}", Shown(path))
            }
            Self::RescanOnly { why } => write!(f, "rescan only: {why}"),
        }
    }
}

/// Passes on what the kernel says.
pub(super) struct Handler(Arc<Inbox>);

impl EventHandler for Handler {
    fn handle_event(&mut self, event: notify::Result<Event>) {
        let Ok(event) = event else {
            return self.0.lose();
        };
        if event.need_rescan() {
            return self.0.lose();
        }
        if let Some(news) = news_of(event.kind) {
            for path in &event.paths {
                self.0.hint(path, news);
            }
        }
    }
}

fn news_of(kind: EventKind) -> Option<News> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(News::Closed),
        EventKind::Access(AccessKind::Open(_)) => Some(News::Opened),
        // Reading changes nothing, and we do it ourselves.
        EventKind::Access(_) => None,
        EventKind::Create(_) => Some(News::Created),
        EventKind::Modify(ModifyKind::Data(_)) => Some(News::Written),
        // Each half was told on its own.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => Some(News::Replaced),
        EventKind::Modify(_) | EventKind::Any | EventKind::Other => Some(News::Touched),
    }
}

/// Opens a queue of hints; a function so that a test can refuse.
pub(super) type Open = fn(Handler, Hear) -> notify::Result<RecommendedWatcher>;

/// A queue of the kernel's.
pub(super) fn inotify(handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
    inotify_with(handler, hear)
}

pub(super) fn inotify_with(
    handler: impl EventHandler,
    hear: Hear,
) -> notify::Result<RecommendedWatcher> {
    let kinds = match hear {
        Hear::Names => {
            EventKindMask::CREATE
                | EventKindMask::REMOVE
                | EventKindMask::MODIFY_NAME
                | EventKindMask::MODIFY_META
                | EventKindMask::ACCESS_CLOSE
        }
        Hear::Contents => {
            EventKindMask::ALL - EventKindMask::ACCESS_CLOSE_NOWRITE - EventKindMask::ACCESS_OPEN
        }
        Hear::Files => EventKindMask::ALL - EventKindMask::ACCESS_CLOSE_NOWRITE,
    };
    RecommendedWatcher::new(handler, Config::default().with_event_kinds(kinds))
}

/// All watches, in a queue for each kind of news, since a queue is told the same of everything
/// that it watches.
pub(super) struct Source {
    files: Queue,
    contents: Queue,
    names: Queue,
}

impl Source {
    pub(super) fn new(open: Open, inbox: &Arc<Inbox>) -> Self {
        Self {
            files: Queue::new(open, Hear::Files, inbox),
            contents: Queue::new(open, Hear::Contents, inbox),
            names: Queue::new(open, Hear::Names, inbox),
        }
    }

    /// Watches these directories, all anew, and no others.
    pub(super) fn watch(&mut self, dirs: &[Wanted]) -> Capabilities {
        let files = self.files.watch(dirs);
        let others = [self.contents.watch(dirs), self.names.watch(dirs)];
        let queues = [&self.files, &self.contents, &self.names];
        let none = files.is_err() || queues.iter().all(|queue| queue.watched.is_empty());
        let lacks = [files].into_iter().chain(others);
        let mut lacks = lacks.filter_map(|watched| watched.unwrap_or_else(Some));
        match lacks.next() {
            None => Capabilities::Inotify,
            Some(Lack { why, .. }) if none => Capabilities::RescanOnly { why },
            Some(Lack { path, why }) => Capabilities::Partly { path, why },
        }
    }
}

/// A directory that is not watched, the first of them.
struct Lack {
    path: PathBuf,
    why: String,
}

/// A queue and its watches.
struct Queue {
    open: Open,
    hear: Hear,
    inbox: Arc<Inbox>,
    watcher: Option<RecommendedWatcher>,
    watched: Vec<PathBuf>,
}

impl Queue {
    fn new(open: Open, hear: Hear, inbox: &Arc<Inbox>) -> Self {
        Self {
            open,
            hear,
            inbox: Arc::clone(inbox),
            watcher: None,
            watched: Vec::new(),
        }
    }

    /// Watches those of these directories that are its own; tells which one it could not.
    ///
    /// # Errors
    /// There is no queue, so that none of them is watched.
    fn watch(&mut self, dirs: &[Wanted]) -> Result<Option<Lack>, Lack> {
        let own: Vec<&Wanted> = dirs.iter().filter(|dir| dir.hear == self.hear).collect();
        let Some(first) = own.first() else {
            self.close();
            return Ok(None);
        };
        let none = |why| Lack {
            path: first.path.clone(),
            why,
        };
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let mut watcher = self.take().map_err(|error| none(why(&error)))?;
            let old = std::mem::take(&mut self.watched);
            let lack = install(&mut watcher, &old, &own);
            // Its thread answers, so it is there.
            if watcher.watched_paths().is_ok() {
                self.watcher = Some(watcher);
                self.watched = own.iter().map(|dir| dir.path.clone()).collect();
                return Ok(lack);
            }
            // Its thread is gone; dropping it would call that thread once more.
            std::mem::forget(watcher);
        }
        let why = "the thread that reads the kernel's queue does not stay alive".to_owned();
        Err(none(why))
    }

    /// The queue, opened now when there is none: what was used up may be free again.
    fn take(&mut self) -> notify::Result<RecommendedWatcher> {
        match self.watcher.take() {
            Some(watcher) => Ok(watcher),
            None => (self.open)(Handler(Arc::clone(&self.inbox)), self.hear),
        }
    }

    fn close(&mut self) {
        self.watched.clear();
        let watcher = self.watcher.take();
        // Its thread may be gone, and it calls that thread once more.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

fn install(watcher: &mut RecommendedWatcher, old: &[PathBuf], new: &[&Wanted]) -> Option<Lack> {
    for path in old {
        // It may be gone already: `notify` forgets what was removed.
        let _ = watcher.unwatch(path);
    }
    let mut first = None;
    for Wanted { path, need, .. } in new {
        let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) else {
            continue;
        };
        let lacking = match (&error.kind, need) {
            (ErrorKind::MaxFilesWatch, _) => true,
            // What went away meanwhile is seen when the way is walked again.
            (ErrorKind::PathNotFound, _) | (_, Need::Extra) => false,
            (_, Need::Must) => true,
        };
        if lacking {
            first.get_or_insert_with(|| Lack {
                path: path.clone(),
                why: why(&error),
            });
        }
    }
    first
}

fn why(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => {
            "inotify watches are used up; hint: raise `fs.inotify.max_user_watches`".to_owned()
        }
        ErrorKind::Io(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
            "inotify instances or open files are used up; hint: raise \
             `fs.inotify.max_user_instances`"
                .to_owned()
        }
        ErrorKind::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "permission denied".to_owned()
        }
        ErrorKind::Io(error) => error.to_string(),
        ErrorKind::PathNotFound => "not there".to_owned(),
        ErrorKind::Generic(_) | ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => {
            error.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind};

    use super::*;

    fn files(path: PathBuf, need: Need) -> Wanted {
        let hear = Hear::Files;
        Wanted { path, need, hear }
    }

    fn names(path: PathBuf) -> Wanted {
        let (need, hear) = (Need::Extra, Hear::Names);
        Wanted { path, need, hear }
    }

    /// What was heard, in any of the tests' directories.
    static HEARD: std::sync::Mutex<Vec<Event>> = std::sync::Mutex::new(Vec::new());

    /// A source that only notes what it hears.
    fn noting() -> Source {
        fn noting(_: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
            let tell = |event: notify::Result<Event>| HEARD.lock().unwrap().push(event.unwrap());
            inotify_with(tell, hear)
        }
        Source::new(noting, &Arc::default())
    }

    /// Waits for the first news of anything in this directory.
    fn first_heard(dir: &std::path::Path) -> EventKind {
        let first = || {
            let heard = HEARD.lock().unwrap();
            let about = |event: &&Event| event.paths.iter().any(|path| path.starts_with(dir));
            heard.iter().find(about).map(|event| event.kind)
        };
        let until = crate::clock::mono() + std::time::Duration::from_secs(10);
        loop {
            if let Some(kind) = first() {
                return kind;
            }
            assert!(crate::clock::mono() < until);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn files_that_are_opened_read_and_written_on_the_way_wake_nobody() {
        use notify::event::CreateKind::File;
        let dir = tempfile::tempdir().unwrap();
        let (way, noisy) = (dir.path().to_owned(), dir.path().join("passwd"));
        std::fs::write(&noisy, "").unwrap();
        let mut source = noting();
        assert_eq!(source.watch(&[names(way)]), Capabilities::Inotify);
        std::fs::read(&noisy).unwrap();
        let mut open = std::fs::File::create(&noisy).unwrap();
        std::io::Write::write_all(&mut open, b"root").unwrap();
        // The first that is heard is what came after all that.
        std::fs::write(dir.path().join("new"), "").unwrap();
        assert_eq!(first_heard(dir.path()), EventKind::Create(File));
    }

    #[test]
    fn keys_that_are_opened_and_read_wake_nobody_and_those_that_are_written_do() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("deploy.pem");
        std::fs::write(&key, "key").unwrap();
        let mut source = noting();
        let keys = Wanted {
            hear: Hear::Contents,
            ..files(dir.path().to_owned(), Need::Must)
        };
        assert_eq!(source.watch(&[keys]), Capabilities::Inotify);
        std::fs::read(&key).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let open = std::fs::OpenOptions::new().append(true).open(&key).unwrap();
        std::io::Write::write_all(&mut &open, b"x").unwrap();
        // Still open: the first that is heard is the write.
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert_eq!(first_heard(dir.path()), written);
    }

    #[test]
    fn keys_that_cannot_be_watched_are_named_and_the_rest_is_heard_of_at_once() {
        fn without_keys(handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
            match hear {
                Hear::Contents => Err(notify::Error::new(ErrorKind::MaxFilesWatch)),
                Hear::Names | Hear::Files => inotify(handler, hear),
            }
        }
        let (loadpath, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut source = Source::new(without_keys, &Arc::default());
        let keys = Wanted {
            hear: Hear::Contents,
            ..files(keys.path().to_owned(), Need::Must)
        };
        let loadpath = files(loadpath.path().to_owned(), Need::Must);
        let both = source.watch(&[loadpath, keys.clone()]);
        assert!(matches!(&both, Capabilities::Partly { path, .. } if *path == keys.path));
        let alone = source.watch(&[keys]);
        assert!(matches!(alone, Capabilities::RescanOnly { .. }));
    }

    #[test]
    fn reading_is_no_news() {
        for kind in [AccessKind::Close(AccessMode::Read), AccessKind::Read] {
            assert_eq!(news_of(EventKind::Access(kind)), None);
        }
    }

    #[test]
    fn each_kind_of_event_is_its_news() {
        let closed = AccessKind::Close(AccessMode::Write);
        for (kind, news) in [
            (EventKind::Access(closed), News::Closed),
            (
                EventKind::Access(AccessKind::Open(AccessMode::Any)),
                News::Opened,
            ),
            (EventKind::Create(CreateKind::File), News::Created),
            (
                EventKind::Modify(ModifyKind::Data(DataChange::Any)),
                News::Written,
            ),
            (
                EventKind::Modify(ModifyKind::Name(RenameMode::To)),
                News::Replaced,
            ),
            (
                EventKind::Modify(ModifyKind::Name(RenameMode::From)),
                News::Replaced,
            ),
            (
                EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)),
                News::Touched,
            ),
            (EventKind::Remove(RemoveKind::File), News::Replaced),
        ] {
            assert_eq!(news_of(kind), Some(news));
        }
    }

    #[test]
    fn an_overflow_and_an_error_mean_that_hints_were_lost() {
        let overflow = Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan));
        let error = Err(notify::Error::generic("broken"));
        for event in [overflow, error] {
            let inbox = Arc::new(Inbox::default());
            Handler(Arc::clone(&inbox)).handle_event(event);
            assert!(inbox.wait(None).unwrap().hints.lost);
        }
    }

    #[test]
    fn a_queue_that_cannot_be_had_says_which_limit_it_was() {
        fn refuse(_: Handler, _: Hear) -> notify::Result<RecommendedWatcher> {
            let error = io::Error::from(Errno::MFILE);
            Err(notify::Error::io(error))
        }
        let mut source = Source::new(refuse, &Arc::default());
        let text = source.watch(&[files("/".into(), Need::Must)]).to_string();
        assert!(text.starts_with("rescan only: inotify instances"), "{text}");
        assert!(text.contains("fs.inotify.max_user_instances"), "{text}");
    }

    #[test]
    fn a_queue_that_is_free_again_is_taken() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static FREE: AtomicBool = AtomicBool::new(false);
        fn maybe(handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
            if FREE.load(Ordering::SeqCst) {
                return inotify(handler, hear);
            }
            Err(notify::Error::new(ErrorKind::MaxFilesWatch))
        }
        let dir = tempfile::tempdir().unwrap();
        let mut source = Source::new(maybe, &Arc::default());
        let dirs = [files(dir.path().to_owned(), Need::Must)];
        assert!(matches!(
            source.watch(&dirs),
            Capabilities::RescanOnly { .. }
        ));
        FREE.store(true, Ordering::SeqCst);
        assert_eq!(source.watch(&dirs), Capabilities::Inotify);
    }

    #[test]
    fn a_directory_that_is_not_there_is_no_lack_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = Source::new(inotify, &Arc::default());
        let gone = dir.path().join("gone");
        assert_eq!(
            source.watch(&[files(gone, Need::Must)]),
            Capabilities::Inotify
        );
    }

    #[test]
    fn a_thread_that_died_is_replaced() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        fn dies_first(handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
            if OPENED.fetch_add(1, Ordering::SeqCst) == 0 {
                let dies = |_| std::panic::resume_unwind(Box::new("dies"));
                return RecommendedWatcher::new(dies, Config::default());
            }
            inotify(handler, hear)
        }
        let dir = tempfile::tempdir().unwrap();
        let inbox = Arc::new(Inbox::default());
        let mut source = Source::new(dies_first, &inbox);
        let dirs = [files(dir.path().to_owned(), Need::Must)];
        assert_eq!(source.watch(&dirs), Capabilities::Inotify);
        let until = crate::clock::mono() + std::time::Duration::from_secs(10);
        // It dies at the first event, some time after it.
        while OPENED.load(Ordering::SeqCst) < 2 {
            assert!(crate::clock::mono() < until);
            std::fs::write(dir.path().join("x"), "").unwrap();
            assert_eq!(source.watch(&dirs), Capabilities::Inotify);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_watched_is_named_when_it_matters() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below = file.path().join("below");
        let mut source = Source::new(inotify, &Arc::default());
        assert_eq!(
            source.watch(&[files(below.clone(), Need::Extra)]),
            Capabilities::Inotify
        );
        let text = source
            .watch(&[files(below.clone(), Need::Must)])
            .to_string();
        assert!(
            text.starts_with(&format!("inotify, but `{}` by rescan", below.display())),
            "{text}"
        );
    }
}
