//! A directory with a watch on it, and what the watch said.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{runtime, time::timeout};

use super::super::*;
use crate::{
    reconcile::listing::{Content, Entry, Loadpath, LoadpathState},
    spec::{Digest, RestartPolicy, Sink},
};

/// How long anything may take to be seen.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Bed {
    _keep: TempDir,
    pub(super) root: PathBuf,
    pub(super) config: WatchConfig,
    /// How many files were parsed.
    pub(super) parses: Arc<AtomicUsize>,
    pub(super) watch: Option<Watch>,
    pub(super) seen: Receiver<Seen>,
    /// The listing as what was told amounts to.
    pub(super) entries: BTreeMap<ChildName, Entry>,
    pub(super) loadpaths: Vec<Loadpath>,
    /// Everything that was told, but for the barriers' own.
    pub(super) told: Vec<Seen>,
    barriers: usize,
    runtime: runtime::Runtime,
}

/// What a bed is made with.
pub(super) struct Plan {
    /// Relative to the bed.
    pub(super) loadpaths: Vec<&'static str>,
    /// Directories of keys, relative to the bed.
    pub(super) key_dirs: Vec<&'static str>,
    pub(super) being_written: BeingWritten,
    pub(super) rescan: Option<Duration>,
    pub(super) open: Open,
    /// Where the bed's directory is made.
    pub(super) on: Disk,
}

/// Where files are made.
#[derive(Clone, Copy)]
pub(super) enum Disk {
    /// Where temporary files usually are.
    Usual,
    /// In memory, where there is such a place: many files are made faster there.
    Memory,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            loadpaths: vec!["conf"],
            key_dirs: Vec::new(),
            being_written: open_for_writing_by_us,
            rescan: None,
            open: source::inotify,
            on: Disk::Usual,
        }
    }
}

/// Whether this process has the file open for writing: part of what a lease tells.
pub(super) fn open_for_writing_by_us(file: &File) -> bool {
    is_open_for_writing(file, Path::new("/proc/self"))
}

/// Whether any process that we may look into has: what a lease tells, but slowly.
pub(super) fn open_for_writing_by_anybody(file: &File) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .any(|entry| is_open_for_writing(file, &entry.path()))
}

fn is_open_for_writing(file: &File, process: &Path) -> bool {
    let here = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let Ok(fds) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    fds.filter_map(Result::ok).any(|fd| {
        let same = fs::metadata(fd.path())
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (here.dev(), here.ino()));
        same && opened_for_writing(&process.join("fdinfo").join(fd.file_name()))
    })
}

fn opened_for_writing(info: &Path) -> bool {
    let info = fs::read_to_string(info).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

/// What is known where there are no leases.
pub(super) fn never_known(_: &File) -> bool {
    false
}

pub(super) fn name(text: &str) -> ChildName {
    text.parse().unwrap()
}

/// `command: WORDS` is good; anything else is not.
pub(super) fn parse(path: &Path, bytes: &[u8], defaults: &str) -> Result<Spec, Vec<String>> {
    let text = String::from_utf8_lossy(bytes);
    let Some(command) = text
        .strip_prefix("command: ")
        .and_then(|text| text.strip_suffix('\n'))
    else {
        return Err(vec![format!("{}: no command in {text:?}", path.display())]);
    };
    Ok(Spec {
        path: path.to_owned(),
        command: vec![command.to_owned(), defaults.to_owned()],
        workdir: PathBuf::from("/"),
        stdout: Sink::Inherit,
        stderr: Sink::Inherit,
        repeat: None,
        prehook: None,
        posthook: None,
        restart: RestartPolicy::default(),
        stop: crate::spec::StopPolicy::default(),
        ready: None,
        health: None,
        depends_on: crate::spec::Dependencies::new(),
        digest: Digest([0; 16]),
    })
}

pub(super) fn parser(parses: &Arc<AtomicUsize>, defaults: &'static str) -> Parse {
    let parses = Arc::clone(parses);
    Arc::new(move |_, path, bytes| {
        parses.fetch_add(1, Ordering::SeqCst);
        parse(path, bytes, defaults)
    })
}

/// The text of a child file that runs this.
pub(super) fn child(command: &str) -> String {
    format!("command: {command}\n")
}

/// Whether a program is there to be used; says so when it is not.
pub(super) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("REQUIRE_ALL").is_none(), "no `{program}`");
        println!("skipped: there is no `{program}` here");
    }
    found
}

/// What a watch on such a directory as [`sandbox`] makes is told to do.
pub(super) fn config(root: &Path, parses: &Arc<AtomicUsize>) -> WatchConfig {
    WatchConfig {
        loadpaths: vec![root.join("conf")],
        parse: parser(parses, ""),
        owners: Owners::new(&[]).unwrap(),
        key_dirs: Vec::new(),
        rescan: None,
        server_file: root.join("server.yml"),
        server_owners: Owners::new(&[]).unwrap(),
    }
}

/// Makes the bed's directory with the loadpath `conf` in it.
pub(super) fn sandbox(on: Disk) -> (TempDir, PathBuf) {
    let keep = match on {
        Disk::Usual => tempfile::tempdir(),
        Disk::Memory => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
    };
    let keep = keep.unwrap();
    let root = keep.path().canonicalize().unwrap();
    fs::create_dir(root.join("conf")).unwrap();
    let server = root.join("server.yml");
    fs::write(&server, "mode: sync\n").unwrap();
    // A file that was written just now is told of twice, and most tests are not about that.
    let written_ms = fs::metadata(&server).unwrap().ctime_nsec() / 1_000_000;
    let written_ms = fs::metadata(&server).unwrap().ctime() * 1000 + written_ms;
    while clock::wall().0 - written_ms < 50 {
        std::thread::yield_now();
    }
    (keep, root)
}

impl Bed {
    pub(super) fn new() -> Self {
        Self::with(Plan::default(), |_| {})
    }

    /// `prepare` is given the bed's directory before the watch begins.
    pub(super) fn with(plan: Plan, prepare: impl FnOnce(&Path)) -> Self {
        let (keep, root) = sandbox(plan.on);
        prepare(&root);
        let parses = Arc::new(AtomicUsize::new(0));
        let config = WatchConfig {
            loadpaths: plan.loadpaths.iter().map(|path| root.join(path)).collect(),
            key_dirs: plan.key_dirs.iter().map(|path| root.join(path)).collect(),
            rescan: plan.rescan,
            ..config(&root, &parses)
        };
        let (watch, first, seen) = Watch::start_with(config.clone(), plan.being_written, plan.open);
        assert_eq!(first.scope, Scope::Whole);
        let mut bed = Self::on((keep, root), config, parses, (watch, seen));
        bed.apply(&first);
        // Told once at the start.
        assert_eq!(bed.next(), Seen::ServerFile);
        if !plan.key_dirs.is_empty() {
            assert_eq!(bed.next(), Seen::Keys);
        }
        bed.told.clear();
        bed
    }

    /// A bed with a watch that was begun already.
    pub(super) fn on(
        (keep, root): (TempDir, PathBuf),
        config: WatchConfig,
        parses: Arc<AtomicUsize>,
        (watch, seen): (Watch, Receiver<Seen>),
    ) -> Self {
        Self {
            _keep: keep,
            root,
            config,
            parses,
            watch: Some(watch),
            seen,
            entries: BTreeMap::new(),
            loadpaths: Vec::new(),
            told: Vec::new(),
            barriers: 0,
            runtime: runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
        }
    }

    pub(super) fn watch(&self) -> &Watch {
        self.watch.as_ref().unwrap()
    }

    fn apply(&mut self, update: &Update) {
        self.loadpaths.clone_from(&update.loadpaths);
        match update.scope {
            Scope::Touched => {}
            Scope::Whole | Scope::Confirming => self.entries.clear(),
        }
        for (name, entry) in &update.entries {
            match entry {
                Some(entry) => self.entries.insert(name.clone(), entry.clone()),
                None => self.entries.remove(name),
            };
        }
    }

    /// Waits for what is told next.
    pub(super) fn next(&mut self) -> Seen {
        let seen = self
            .runtime
            .block_on(async { timeout(PATIENCE, self.seen.recv()).await })
            .unwrap_or_else(|_| panic!("nothing is told; so far: {:#?}", self.told))
            .expect("the watch thread lives");
        match &seen {
            Seen::Listing(update) | Seen::Reread { update, .. } => self.apply(update),
            Seen::ServerFile | Seen::Keys | Seen::Capabilities(_) | Seen::Rescanned { .. } => {}
        }
        self.told.push(seen.clone());
        seen
    }

    /// Waits until what was told amounts to this.
    pub(super) fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = clock::mono() + PATIENCE;
        while !done(self) {
            assert!(clock::mono() < deadline, "{:#?}", self.entries);
            self.next();
        }
    }

    /// Waits until everything that was done before has been looked at: a file that is made now
    /// is seen after that.
    pub(super) fn barrier(&mut self) {
        self.barrier_in("conf");
    }

    pub(super) fn barrier_in(&mut self, loadpath: &str) {
        self.barriers += 1;
        let file = format!("barrier-{}.yml", self.barriers);
        let barrier = name(&format!("barrier-{}", self.barriers));
        let path = self.root.join(loadpath).join(file);
        fs::write(self.root.join("barrier"), child("barrier")).unwrap();
        fs::rename(self.root.join("barrier"), &path).unwrap();
        self.until(|bed| bed.entries.contains_key(&barrier));
        fs::remove_file(&path).unwrap();
        self.until(|bed| !bed.entries.contains_key(&barrier));
        self.told.retain(|seen| match seen {
            Seen::Listing(update) => {
                update.scope != Scope::Touched
                    || update.entries.iter().any(|(name, _)| *name != barrier)
            }
            Seen::Reread { .. }
            | Seen::ServerFile
            | Seen::Keys
            | Seen::Capabilities(_)
            | Seen::Rescanned { .. } => true,
        });
    }

    /// Reads everything as HUP has it done, and waits for that.
    pub(super) fn rescan(&mut self) {
        self.watch().rescan(0);
        let confirming = |seen: &Seen| matches!(seen, Seen::Listing(update) if update.scope == Scope::Confirming);
        while !confirming(&self.next()) {}
        self.until_server_file();
        while self.next() != (Seen::Rescanned { token: 0 }) {}
    }

    /// Waits until it is told that server.yml is to be read, as it is after everything was read.
    pub(super) fn until_server_file(&mut self) {
        while self.next() != Seen::ServerFile {}
    }

    pub(super) fn reread(&mut self, names: &[&str]) -> Update {
        let names = names.iter().map(|text| name(text)).collect();
        self.watch().reread(1, names);
        loop {
            if let Seen::Reread { update, .. } = self.next() {
                return update;
            }
        }
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Writes a file and closes it.
    pub(super) fn write(&self, relative: &str, text: &str) {
        fs::write(self.path(relative), text).unwrap();
    }

    pub(super) fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub(super) fn mode(&self, relative: &str, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(self.path(relative), mode).unwrap();
    }

    /// Puts a link in place of whatever is there, as `ln -sfn` with a rename does.
    pub(super) fn link(&self, target: &str, relative: &str) {
        std::os::unix::fs::symlink(target, self.path("link-tmp")).unwrap();
        self.rename("link-tmp", relative);
    }

    /// What a good child runs.
    pub(super) fn command(&self, child: &str) -> Option<&str> {
        match &self.entries.get(child)?.content {
            Content::Good(spec) => Some(&spec.command[0]),
            Content::Bad(_) | Content::Conflict => None,
        }
    }

    /// What is wrong with a bad one.
    pub(super) fn fault(&self, child: &str) -> Option<String> {
        match &self.entries.get(child)?.content {
            Content::Bad(faults) => Some(faults.join("\n")),
            Content::Good(_) | Content::Conflict => None,
        }
    }

    pub(super) fn is_conflict(&self, child: &str) -> bool {
        self.entries
            .get(child)
            .is_some_and(|entry| entry.content == Content::Conflict)
    }

    /// Waits until the child runs this.
    pub(super) fn until_runs(&mut self, child: &str, command: &str) {
        self.until(|bed| bed.command(child) == Some(command));
    }

    pub(super) fn until_gone(&mut self, child: &str) {
        self.until(|bed| !bed.entries.contains_key(child));
    }

    pub(super) fn state(&self) -> &LoadpathState {
        &self.loadpaths[0].state
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state(), LoadpathState::Ready { .. })
    }

    pub(super) fn parses(&self) -> usize {
        self.parses.load(Ordering::SeqCst)
    }

    /// Rescans until nothing is read any more: until every file's time is past.
    pub(super) fn until_sure(&mut self) {
        let deadline = clock::mono() + PATIENCE;
        loop {
            let before = self.parses();
            self.rescan();
            if self.parses() == before {
                return;
            }
            assert!(clock::mono() < deadline);
        }
    }
}
