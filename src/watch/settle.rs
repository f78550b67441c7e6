//! From hints to what must be read: pure bookkeeping between the kernel's news and the scanner.
//!
//! Hints are gathered until somebody takes them, so that a thousand of them about one file cost
//! one look. They are never counted on: what they lead to is a look at what is there, and when
//! there are too many of them everything is looked at.
//!
//! Absent on purpose: any delay. A hint is acted on at once; a file that is still being written
//! is recognised by that, not by waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::trust::{Inode, Step, Way};

/// How many files are remembered one by one before everything is read instead.
pub(super) const HINTS_MAX: usize = 4096;

/// What a hint says happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It appeared, other than by being renamed.
    Created,
    /// Somebody opened it, perhaps to read.
    Opened,
    /// It was written, and may be written on; or only its time was set.
    Written,
    /// Somebody who could write it closed it.
    Closed,
    /// It was renamed to or from here, or removed.
    Replaced,
    /// Something else, such as its mode.
    Touched,
}

/// What hints say about whether somebody still writes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// It was made and not closed since, unless it is a link or came whole.
    Begun,
    /// It was written and not closed since.
    Open,
    /// Nobody does.
    Done,
    /// Nobody did, then somebody opened it, perhaps to read.
    Reopened,
}

/// Which directories are watched, and what each name in them means to us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Layout {
    dirs: BTreeMap<PathBuf, Watched>,
}

/// A directory as it was when its watch was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    inode: Inode,
    need: Need,
    /// Which loadpaths it is.
    loadpaths: BTreeSet<usize>,
    /// Whether keys stand in it.
    keys: Keys,
    /// Names that lead further.
    ways: BTreeSet<OsString>,
    /// The last name on the way to server.yml.
    server: BTreeSet<OsString>,
}

impl Watched {
    fn hear(&self) -> Hear {
        match (self.loadpaths.is_empty(), self.keys) {
            (false, _) => Hear::Files,
            (true, Keys::Here) => Hear::Contents,
            (true, Keys::Elsewhere) => Hear::Names,
        }
    }
}

/// Whether a directory is one of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Whatever happens to anything in it is news.
    Here,
    /// It is not.
    Elsewhere,
}

/// How much the watch of a directory matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It lies above what matters: its watch tells when all below is moved away as one.
    Extra,
    /// Files, links or the way's end are there.
    Must,
}

/// What is to be heard of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hear {
    /// What comes, goes, is closed after writing or given to somebody else. In a directory such
    /// as `/etc`, on the way or with server.yml in it, files are opened with every program that
    /// starts on this host, and that is to wake nobody (I9).
    Names,
    /// That, and what is written into files that are still open: a key is to be refused as soon
    /// as it is overwritten or cut short, closed or not.
    Contents,
    /// That, and what else is done to files while they are open.
    Files,
}

/// A directory to be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: PathBuf,
    pub(super) need: Need,
    pub(super) hear: Hear,
}

/// Whether a way led to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    There,
    Early,
}

/// One loadpath, or directory of keys, as it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// What was looked up, as far as it went.
    pub(super) way: Way,
    /// Where it led, without links.
    pub(super) dir: Option<(PathBuf, Inode)>,
}

impl Layout {
    /// What must be watched to see every change of these loadpaths, of these directories of keys
    /// and of server.yml.
    pub(super) fn of(loadpaths: &[Found], keys: &[Found], server: &Way) -> Self {
        let mut layout = Self::default();
        // One watch an inode: the kernel has no more, and names its events by the last path.
        let mut paths = BTreeMap::new();
        for (index, found) in loadpaths.iter().enumerate() {
            if let Some(dir) = layout.add_found(found, &mut paths) {
                dir.loadpaths.insert(index);
            }
        }
        for found in keys {
            if let Some(dir) = layout.add_found(found, &mut paths) {
                dir.need = Need::Must;
                dir.keys = Keys::Here;
            }
        }
        if let Some((last, before)) = server.steps.split_last() {
            layout.add_way(before, &mut paths, Ended::There);
            let dir = layout.dir(&last.dir, last.inode, &mut paths);
            dir.need = Need::Must;
            dir.server.insert(last.name.clone());
            if last.link {
                dir.ways.insert(last.name.clone());
            }
        }
        layout
    }

    /// Adds the way to a directory, and the directory when it is there.
    fn add_found(
        &mut self,
        found: &Found,
        paths: &mut BTreeMap<Inode, PathBuf>,
    ) -> Option<&mut Watched> {
        let ended = match found.dir {
            Some(_) => Ended::There,
            None => Ended::Early,
        };
        self.add_way(&found.way.steps, paths, ended);
        let (path, inode) = found.dir.as_ref()?;
        Some(self.dir(path, *inode, paths))
    }

    /// Directories that everybody puts things into are watched only when the way ends there or a
    /// link stands there: they are noisy, and nobody but their owner renames what we use.
    fn add_way(&mut self, steps: &[Step], paths: &mut BTreeMap<Inode, PathBuf>, ended: Ended) {
        let last = steps.len().saturating_sub(1);
        for (index, step) in steps.iter().enumerate() {
            let end = ended == Ended::Early && index == last;
            if step.link || end || !step.shared {
                let dir = self.dir(&step.dir, step.inode, paths);
                if step.link || end {
                    dir.need = Need::Must;
                }
                dir.ways.insert(step.name.clone());
            }
        }
    }

    fn dir(
        &mut self,
        path: &Path,
        inode: Inode,
        paths: &mut BTreeMap<Inode, PathBuf>,
    ) -> &mut Watched {
        let path = paths.entry(inode).or_insert_with(|| path.to_owned());
        self.dirs.entry(path.clone()).or_insert_with(|| Watched {
            inode,
            need: Need::Extra,
            loadpaths: BTreeSet::new(),
            keys: Keys::Elsewhere,
            ways: BTreeSet::new(),
            server: BTreeSet::new(),
        })
    }

    /// Every directory to be watched.
    pub(super) fn dirs(&self) -> impl Iterator<Item = Wanted> {
        self.dirs.iter().map(|(path, watched)| Wanted {
            path: path.clone(),
            need: watched.need,
            hear: watched.hear(),
        })
    }
}

/// What hints amount to since they were last taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// Names in loadpaths, by the loadpath's place in the configuration.
    pub(super) files: BTreeMap<(usize, OsString), Option<Writing>>,
    /// Something on the way changed: everything is to be found and read anew.
    pub(super) moved: bool,
    /// Hints were lost: everything is to be read.
    pub(super) lost: bool,
    /// server.yml may have changed.
    pub(super) server: bool,
    /// Something in a directory of keys changed.
    pub(super) keys: bool,
}

impl Hints {
    /// Takes a hint into account.
    pub(super) fn add(&mut self, layout: &Layout, path: &Path, news: News) {
        if news != News::Opened && layout.dirs.contains_key(path) {
            self.moved = true;
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let Some(dir) = layout.dirs.get(parent) else {
            return;
        };
        self.keys |= news != News::Opened && dir.keys == Keys::Here;
        match news {
            News::Opened => {}
            News::Written => self.moved |= dir.ways.contains(name),
            News::Created | News::Closed | News::Replaced | News::Touched => {
                self.moved |= dir.ways.contains(name);
                self.server |= dir.server.contains(name);
            }
        }
        for loadpath in &dir.loadpaths {
            self.add_file(*loadpath, name, news);
        }
    }

    fn add_file(&mut self, loadpath: usize, name: &OsStr, news: News) {
        if self.lost {
            return;
        }
        let file = (loadpath, name.to_owned());
        if news == News::Opened {
            // Opening alone changes nothing; it only tells a write through an open file from a
            // change by name.
            if let Some(writing @ Some(Writing::Done)) = self.files.get_mut(&file) {
                *writing = Some(Writing::Reopened);
            }
            return;
        }
        let writing = self.files.entry(file).or_default();
        *writing = match (news, *writing) {
            (News::Created, _) => Some(Writing::Begun),
            // Nobody has it open: its time was set, as after `cp -p`, and no close will follow.
            (News::Written, Some(Writing::Done)) => Some(Writing::Done),
            (News::Written, _) => Some(Writing::Open),
            (News::Closed | News::Replaced, _) => Some(Writing::Done),
            (News::Touched | News::Opened, before) => before,
        };
        if self.files.len() > HINTS_MAX {
            self.lose();
        }
    }

    /// Hints were lost.
    pub(super) fn lose(&mut self) {
        self.lost = true;
        self.server = true;
        self.files.clear();
    }

    /// Whether nothing happened.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            files,
            moved,
            lost,
            server,
            keys,
        } = self;
        files.is_empty() && !moved && !lost && !server && !keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(ino: u64) -> Inode {
        Inode { dev: 1, ino }
    }

    fn step(dir: &str, ino: u64, name: &str) -> Step {
        Step {
            dir: dir.into(),
            inode: inode(ino),
            shared: dir == "/tmp",
            name: name.into(),
            link: name.starts_with("link"),
        }
    }

    fn found(steps: Vec<Step>, dir: Option<(&str, u64)>) -> Found {
        Found {
            way: Way { steps },
            dir: dir.map(|(path, ino)| (path.into(), inode(ino))),
        }
    }

    fn layout() -> Layout {
        let srv = || vec![step("/", 1, "srv"), step("/srv", 2, "conf")];
        let loadpath = found(srv(), Some(("/srv/conf", 3)));
        let mut server = srv();
        server.push(step("/srv/conf", 3, "server.yml"));
        Layout::of(&[loadpath], &[], &Way { steps: server })
    }

    fn hints(news: &[(&str, News)]) -> Hints {
        let layout = layout();
        let mut hints = Hints::default();
        for (path, news) in news {
            hints.add(&layout, Path::new(path), *news);
        }
        hints
    }

    fn dirs(layout: &Layout) -> Vec<String> {
        let text = |dir: Wanted| dir.path.to_string_lossy().into_owned();
        layout.dirs().map(text).collect()
    }

    fn writing(news: &[News]) -> Option<Writing> {
        let news: Vec<_> = news
            .iter()
            .map(|news| ("/srv/conf/web.yml", *news))
            .collect();
        let hints = hints(&news);
        assert_eq!(hints.files.len(), 1);
        hints.files[&(0, "web.yml".into())]
    }

    #[test]
    fn nothing_in_nothing_out() {
        assert!(hints(&[]).is_empty());
    }

    #[test]
    fn a_thousand_hints_about_a_file_are_one_look() {
        let hints = hints(&[("/srv/conf/web.yml", News::Closed); 1000]);
        assert_eq!(hints.files.len(), 1);
        assert!(!hints.moved && !hints.lost && !hints.server);
    }

    #[test]
    fn the_last_word_tells_whether_a_file_is_still_written() {
        use News::{Closed, Created, Opened, Replaced, Touched, Written};
        assert_eq!(writing(&[Created]), Some(Writing::Begun));
        assert_eq!(writing(&[Created, Written]), Some(Writing::Open));
        assert_eq!(writing(&[Created, Written, Closed]), Some(Writing::Done));
        assert_eq!(writing(&[Closed, Opened, Written]), Some(Writing::Open));
        assert_eq!(
            writing(&[Closed, Opened, Written, Closed]),
            Some(Writing::Done)
        );
        assert_eq!(writing(&[Written, Replaced]), Some(Writing::Done));
        assert_eq!(writing(&[Written, Touched]), Some(Writing::Open));
        assert_eq!(writing(&[Touched]), None);
    }

    #[test]
    fn a_time_set_after_the_close_does_not_look_like_a_writer() {
        use News::{Closed, Opened, Written};
        assert_eq!(
            writing(&[Opened, Written, Closed, Written]),
            Some(Writing::Done)
        );
    }

    #[test]
    fn opening_is_no_news_by_itself() {
        for path in [
            "/srv/conf/web.yml",
            "/srv/conf/server.yml",
            "/srv/conf",
            "/srv",
        ] {
            assert!(hints(&[(path, News::Opened)]).is_empty(), "{path}");
        }
    }

    #[test]
    fn a_change_on_the_way_or_of_the_directory_itself_means_all_is_found_anew() {
        assert!(hints(&[("/srv", News::Replaced)]).moved);
        assert!(hints(&[("/srv/conf", News::Replaced)]).moved);
        assert!(hints(&[("/srv/conf", News::Touched)]).moved);
    }

    #[test]
    fn what_stands_beside_the_way_is_nothing_to_us() {
        assert!(hints(&[("/home", News::Replaced), ("/srv/other", News::Created)]).is_empty());
        assert!(hints(&[("/var/web.yml", News::Closed), ("/", News::Closed)]).moved);
        assert!(hints(&[("/var/web.yml", News::Closed)]).is_empty());
    }

    #[test]
    fn server_yml_counts_once_it_is_closed() {
        assert!(!hints(&[("/srv/conf/server.yml", News::Written)]).server);
        assert!(hints(&[("/srv/conf/server.yml", News::Closed)]).server);
        assert!(hints(&[("/srv/conf/server.yml", News::Replaced)]).server);
    }

    #[test]
    fn too_many_files_are_all_files() {
        let layout = layout();
        let mut hints = Hints::default();
        for n in 0..HINTS_MAX {
            hints.add(
                &layout,
                &PathBuf::from(format!("/srv/conf/{n}.yml")),
                News::Closed,
            );
        }
        assert!(!hints.lost && hints.files.len() == HINTS_MAX);
        hints.add(&layout, Path::new("/srv/conf/more.yml"), News::Closed);
        assert!(hints.lost && hints.files.is_empty());
        hints.add(&layout, Path::new("/srv/conf/more.yml"), News::Closed);
        assert!(hints.files.is_empty());
    }

    #[test]
    fn every_directory_on_the_way_is_watched() {
        assert_eq!(dirs(&layout()), ["/", "/srv", "/srv/conf"]);
    }

    #[test]
    fn a_shared_directory_is_watched_only_where_a_link_stands_or_the_way_ends() {
        let server = Way::default();
        let way = || vec![step("/tmp", 5, "x")];
        let there = Layout::of(&[found(way(), Some(("/tmp/x", 6)))], &[], &server);
        assert_eq!(dirs(&there), ["/tmp/x"]);
        let missing = Layout::of(&[found(way(), None)], &[], &server);
        assert_eq!(dirs(&missing), ["/tmp"]);
        let link = vec![step("/tmp", 5, "link"), step("/tmp", 5, "x")];
        let linked = Layout::of(&[found(link, Some(("/tmp/x", 6)))], &[], &server);
        assert_eq!(dirs(&linked), ["/tmp", "/tmp/x"]);
        let mut hints = Hints::default();
        hints.add(&linked, Path::new("/tmp/x"), News::Touched);
        hints.add(&linked, Path::new("/tmp/other"), News::Replaced);
        assert!(hints.moved && hints.files.is_empty());
    }

    #[test]
    fn one_directory_under_two_paths_is_watched_once_for_both() {
        let one = found(vec![step("/", 1, "a")], Some(("/a", 9)));
        let two = found(vec![step("/", 1, "b")], Some(("/b", 9)));
        let layout = Layout::of(&[one, two], &[], &Way::default());
        assert_eq!(dirs(&layout), ["/", "/a"]);
        let mut hints = Hints::default();
        hints.add(&layout, Path::new("/a/web.yml"), News::Closed);
        let names: Vec<usize> = hints.files.keys().map(|(index, _)| *index).collect();
        assert_eq!(names, [0, 1]);
    }

    #[test]
    fn a_link_that_is_server_yml_leads_further() {
        let steps = vec![step("/etc", 4, "link.yml"), step("/etc", 4, "real.yml")];
        let layout = Layout::of(&[], &[], &Way { steps });
        let mut hints = Hints::default();
        hints.add(&layout, Path::new("/etc/link.yml"), News::Replaced);
        assert!(hints.moved);
        let mut hints = Hints::default();
        hints.add(&layout, Path::new("/etc/real.yml"), News::Replaced);
        assert!(hints.server && !hints.moved);
    }

    /// Keys in `/etc/keys`, and a loadpath that is a directory of keys too.
    fn with_keys() -> Layout {
        let keys = found(
            vec![step("/", 1, "etc"), step("/etc", 2, "keys")],
            Some(("/etc/keys", 3)),
        );
        let both = found(
            vec![step("/", 1, "srv"), step("/srv", 4, "both")],
            Some(("/srv/both", 5)),
        );
        let dirs = [keys, both];
        Layout::of(&dirs[1..], &dirs, &Way::default())
    }

    fn hear(layout: &Layout, path: &str) -> (Need, Hear) {
        let dir = layout.dirs().find(|dir| dir.path == Path::new(path));
        let dir = dir.unwrap();
        (dir.need, dir.hear)
    }

    #[test]
    fn a_directory_of_keys_is_heard_of_when_it_is_written_but_not_when_it_is_read() {
        let layout = with_keys();
        assert_eq!(hear(&layout, "/etc/keys"), (Need::Must, Hear::Contents));
        assert_eq!(hear(&layout, "/srv/both"), (Need::Must, Hear::Files));
        assert_eq!(hear(&layout, "/etc"), (Need::Extra, Hear::Names));
        for path in ["/etc/keys/a.pem", "/srv/both/a.pem"] {
            let mut hints = Hints::default();
            hints.add(&layout, Path::new(path), News::Opened);
            assert!(hints.is_empty(), "{path}");
        }
    }

    #[test]
    fn whatever_happens_in_a_directory_of_keys_is_told_once() {
        let layout = with_keys();
        for news in [
            News::Created,
            News::Written,
            News::Closed,
            News::Replaced,
            News::Touched,
        ] {
            let mut hints = Hints::default();
            for n in 0..HINTS_MAX * 2 {
                let path = PathBuf::from(format!("/etc/keys/{n}.pem"));
                hints.add(&layout, &path, news);
            }
            let keys = true;
            let only = Hints {
                keys,
                ..Hints::default()
            };
            assert_eq!(hints, only, "{news:?}");
        }
    }

    #[test]
    fn a_loadpath_that_holds_keys_is_both() {
        let mut hints = Hints::default();
        hints.add(&with_keys(), Path::new("/srv/both/a.pem"), News::Closed);
        assert!(hints.keys && hints.files.len() == 1 && !hints.moved);
    }

    #[test]
    fn what_leads_to_keys_is_found_anew_when_it_changes() {
        for (path, moved) in [
            ("/etc", true),
            ("/etc/keys", true),
            ("/etc/passwd", false),
            ("/keys", false),
        ] {
            let mut hints = Hints::default();
            hints.add(&with_keys(), Path::new(path), News::Replaced);
            assert_eq!(hints.moved, moved, "{path}");
            assert!(!hints.keys && hints.files.is_empty(), "{path}");
        }
    }

    #[test]
    fn keys_that_are_not_there_yet_are_awaited_where_the_way_ends() {
        let way = vec![step("/tmp", 5, "keys")];
        let layout = Layout::of(&[], &[found(way, None)], &Way::default());
        assert_eq!(dirs(&layout), ["/tmp"]);
        assert_eq!(hear(&layout, "/tmp"), (Need::Must, Hear::Names));
        let mut hints = Hints::default();
        hints.add(&layout, Path::new("/tmp/keys"), News::Created);
        assert!(hints.moved);
    }
}
