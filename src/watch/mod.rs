//! Watches the loadpaths, server.yml and the directories of keys, and says what stands in the first
//! of these.
//!
//! One thread owns everything here. It waits for hints (`inbox`, `source`), makes out what they
//! are about (`settle`), reads that (`scan`), and tells the shell what it found. Hints are never
//! believed: the listing is what was read. So that nothing falls between a hint and a look:
//!
//! - Whenever watches are put up, everything is read afterwards.
//! - A change of anything on the way to a loadpath has all watches put up anew.
//! - Lost hints, a rescan and a HUP have everything read.
//!
//! With nothing to do it sleeps; its only timers are the rescan, one while directories change as
//! fast as they are watched, and one while a file is being written (I9): that its closing is told is not counted on (`again`). A file that did not change
//! is not opened. Gathered hints have a bound (`settle`); what is told waits in a bounded queue,
//! and while that is full hints go on being gathered.
//!
//! Absent on purpose: reading server.yml and keys, which is for those who use them; what a change
//! means (`reconcile`), what a file says (`config`, given as [`Parse`]), and whether somebody
//! writes a file (`process`, given as [`BeingWritten`]).
//! Sources: inotify(7), fcntl(2) on leases.

mod again;
mod awaited;
mod inbox;
mod loaded;
mod name;
mod reader;
mod scan;
mod server_file;
mod settle;
mod source;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use self::{
    inbox::{Inbox, Mail, Order},
    loaded::Respect,
    scan::{Partial, Scanner, find},
    server_file::{Look, ServerFile},
    settle::{Hints, Layout},
    source::{Open, Source},
};
pub use self::{reader::CHILD_FILE_BYTES_MAX, source::Capabilities};
use crate::{
    clock,
    reconcile::listing::{Scope, Update},
    spec::{ChildName, Mono, Spec},
    trust::{Owners, Way},
};

/// How much may be told and not yet taken.
const SEEN_MAX: usize = 64;

/// How often watches are put up in a row when the directories change while that is done. Then
/// what there is is told, and they are put up again.
const INSTALL_ATTEMPTS_MAX: usize = 4;

/// When they are put up again then. Not at once: where identities never stay the same, as on some
/// file systems in user space, that would have no end.
const INSTALL_PAUSE: Duration = Duration::from_millis(100);

/// How often everything is read when nothing tells of changes and `rescan` is `off`.
const RESCAN_WITHOUT_HINTS: Duration = Duration::from_secs(60);

/// Makes a spec of a child file's bytes; the path is as listed. `Err` holds whole diagnostics.
pub type Parse = Arc<dyn Fn(&ChildName, &Path, &[u8]) -> Result<Spec, Vec<String>> + Send + Sync>;

/// Whether somebody has this file open for writing; `false` when that cannot be told.
pub type BeingWritten = fn(&File) -> bool;

/// What is watched, and how it is read.
#[derive(Clone)]
pub struct WatchConfig {
    /// Absolute, in the order configured.
    pub loadpaths: Vec<PathBuf>,
    /// How child files are read. Another one than before has all of them read again.
    pub parse: Parse,
    /// Who may own what is read of loadpaths.
    pub owners: Owners,
    /// Directories of keys, absolute; their owners are the loadpaths'. They may not exist yet.
    pub key_dirs: Vec<PathBuf>,
    /// How often everything is read although nothing was told; `None` is never.
    pub rescan: Option<Duration>,
    /// The path of server.yml, absolute.
    pub server_file: PathBuf,
    /// Who may own server.yml: whoever reads it goes by the same.
    pub server_owners: Owners,
}

/// What the watch tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// The loadpaths were read, in whole or in part.
    Listing(Update),
    /// The answer to [`Watch::reread`].
    Reread {
        /// Which.
        token: u64,
        /// Each of the names; scope `Touched`.
        update: Update,
    },
    /// server.yml may have changed since this was last told: read it. Told once at the start too,
    /// since it may have changed before it was watched, and whenever everything was read; not while
    /// somebody writes it.
    ServerFile,
    /// Something in a directory of keys, such a directory itself, or what leads to it may have
    /// changed since this was last told: look at them. Told once at the start too, whenever
    /// everything was read, and when the directories are others than before; never when there are
    /// none. Each change is told when it is made, so a file may be found half written; that it
    /// was completed is told as well. What a link in such a directory leads to elsewhere is not
    /// watched.
    Keys,
    /// Changes are noticed in another way than before, or than could be said when the watch began.
    Capabilities(Capabilities),
    /// The answer to [`Watch::rescan`]: everything was read, and what was found is told by now. Of
    /// several that were asked for before it began the last alone is answered.
    Rescanned {
        /// Which.
        token: u64,
    },
}

/// A handle on the watch; when the last one is dropped, the watch ends.
#[derive(Clone)]
pub struct Watch {
    handle: Arc<Handle>,
}

struct Handle {
    inbox: Arc<Inbox>,
    capabilities: Arc<Mutex<Capabilities>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl Watch {
    /// Puts up the watches and reads everything once; then a thread of its own watches on.
    ///
    /// The receiver ends only when that thread does, which it does only with the last handle.
    #[must_use]
    pub fn start(
        config: WatchConfig,
        being_written: BeingWritten,
    ) -> (Self, Update, Receiver<Seen>) {
        Self::start_with(config, being_written, source::inotify)
    }

    /// As [`Watch::start`], where these ran last: that is taken to stand in their files as long
    /// as somebody is writing these and they cannot be read.
    #[must_use]
    pub fn resume(
        config: WatchConfig,
        being_written: BeingWritten,
        ran: &[Arc<Spec>],
    ) -> (Self, Update, Receiver<Seen>) {
        Self::resume_with(config, being_written, source::inotify, ran)
    }

    /// As [`Watch::resume`], and waits for nothing: putting up the watches and reading everything
    /// the first time is the thread's too, however long a loadpath takes to answer. Then a listing
    /// with [`Scope::Whole`] is told, which is the first of all, and how changes are noticed.
    #[must_use]
    pub fn resume_apart(
        config: WatchConfig,
        being_written: BeingWritten,
        ran: &[Arc<Spec>],
    ) -> (Self, Receiver<Seen>) {
        let (lookout, seen) = Lookout::new(config, being_written, source::inotify, ran);
        (lookout.go(First::Due), seen)
    }

    fn start_with(
        config: WatchConfig,
        being_written: BeingWritten,
        open: Open,
    ) -> (Self, Update, Receiver<Seen>) {
        Self::resume_with(config, being_written, open, &[])
    }

    fn resume_with(
        config: WatchConfig,
        being_written: BeingWritten,
        open: Open,
        ran: &[Arc<Spec>],
    ) -> (Self, Update, Receiver<Seen>) {
        let (mut lookout, seen) = Lookout::new(config, being_written, open, ran);
        let first = lookout.begin();
        (lookout.go(First::Taken), first, seen)
    }

    /// Reads these names now; answered by [`Seen::Reread`], in the order asked.
    pub fn reread(&self, token: u64, names: BTreeSet<ChildName>) {
        self.handle.inbox.order(Order::Reread { token, names });
    }

    /// Reads everything now; told with [`Scope::Confirming`], and then by [`Seen::Rescanned`].
    pub fn rescan(&self, token: u64) {
        self.handle.inbox.order(Order::Rescan { token });
    }

    /// Watches this from now on, and reads everything; told with [`Scope::Whole`].
    pub fn configure(&self, config: WatchConfig) {
        let config = Box::new(config);
        self.handle.inbox.order(Order::Configure(config));
    }

    /// Ends the watch; the receiver is at its end when its thread is.
    pub fn close(&self) {
        self.handle.inbox.close();
    }

    /// Goes on with a watch that was told to end and has not come to it: its thread, which may wait
    /// for a loadpath, needs no other in its place. If it has ended, it stays so.
    pub fn reopen(&self) {
        self.handle.inbox.reopen();
    }

    /// How changes are noticed now.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        let capabilities = self.handle.capabilities.lock();
        capabilities.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Nobody listens any more.
struct Deaf;

/// The first look at everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// It was taken, and is known.
    Taken,
    /// It is the thread's.
    Due,
}

/// What the watch thread owns.
struct Lookout {
    config: WatchConfig,
    being_written: BeingWritten,
    inbox: Arc<Inbox>,
    source: Source,
    scanner: Scanner,
    server: ServerFile,
    /// The way to server.yml that is watched.
    watched_way: Way,
    seen: Sender<Seen>,
    capabilities: Arc<Mutex<Capabilities>>,
    /// What the capabilities were when they were last told, if they were.
    told: Option<Capabilities>,
    rescan_at: Option<Mono>,
    /// When watches are put up again that were overtaken by changes.
    install_at: Option<Mono>,
}

impl Lookout {
    fn new(
        config: WatchConfig,
        being_written: BeingWritten,
        open: Open,
        ran: &[Arc<Spec>],
    ) -> (Self, Receiver<Seen>) {
        let inbox = Arc::new(Inbox::default());
        let (seen, receiver) = channel(SEEN_MAX);
        let mut lookout = Self {
            scanner: Scanner::new(&config, being_written),
            server: ServerFile::new(config.server_file.clone()),
            watched_way: Way::default(),
            config,
            being_written,
            source: Source::new(open, &inbox),
            inbox,
            seen,
            capabilities: Arc::new(Mutex::new(Capabilities::Inotify)),
            told: None,
            rescan_at: None,
            install_at: None,
        };
        lookout.scanner.remember(ran);
        (lookout, receiver)
    }

    /// Takes the first look.
    fn begin(&mut self) -> Update {
        self.told = Some(self.install());
        let first = self.scanner.whole(Scope::Whole, Respect::Nothing);
        self.look_at_server_file();
        self.plan_install();
        self.set_timer();
        first
    }

    /// Goes on in a thread.
    fn go(mut self, first: First) -> Watch {
        let handle = Arc::new(Handle {
            inbox: Arc::clone(&self.inbox),
            capabilities: Arc::clone(&self.capabilities),
        });
        let thread = thread::Builder::new().name("watch".to_owned());
        if let Err(error) = thread.spawn(move || self.run(first)) {
            // The receiver is at its end now, which tells the shell the same.
            tracing::error!(%error, "cannot start the watch thread");
        }
        Watch { handle }
    }

    fn run(&mut self, first: First) {
        let begun = match first {
            First::Taken => self.tell_at_first(),
            First::Due => self.whole(Scope::Whole, Respect::Nothing),
        };
        if begun.is_err() {
            return;
        }
        self.scanner.forget();
        while let Some(mail) = self.inbox.wait(self.next_timer()) {
            if self.attend(mail).is_err() {
                return;
            }
        }
    }

    fn tell_at_first(&self) -> Result<(), Deaf> {
        self.tell(Seen::ServerFile)?;
        self.tell_of_keys()
    }

    fn attend(&mut self, mail: Mail) -> Result<(), Deaf> {
        self.settle(mail.hints)?;
        for order in mail.orders {
            match order {
                Order::Reread { token, names } => self.reread(token, &names)?,
                Order::Rescan { token } => {
                    self.rescan()?;
                    self.tell(Seen::Rescanned { token })?;
                }
                Order::Configure(config) => self.configure(*config)?,
            }
        }
        let due = self.due(clock::mono());
        self.settle(due)?;
        if self.install_at.is_some_and(|at| clock::mono() >= at) {
            self.whole(Scope::Whole, Respect::Hints)?;
        }
        match self.rescan_at {
            Some(at) if clock::mono() >= at => self.rescan(),
            Some(_) | None => Ok(()),
        }
    }

    fn settle(&mut self, hints: Hints) -> Result<(), Deaf> {
        let Hints {
            files,
            moved,
            lost,
            server,
            keys,
        } = hints;
        if lost {
            return self.whole(Scope::Whole, Respect::Nothing);
        }
        if moved {
            self.scanner.heed(&files);
            return self.whole(Scope::Whole, Respect::Hints);
        }
        if keys {
            self.tell_of_keys()?;
        }
        if !files.is_empty() {
            match self.scanner.touch(files) {
                Partial::Read(update) => self.tell(Seen::Listing(update))?,
                Partial::Same => {}
                Partial::Elsewhere => return self.whole(Scope::Whole, Respect::Hints),
            }
        }
        if server {
            self.look_at_server()
        } else {
            Ok(())
        }
    }

    fn reread(&mut self, token: u64, names: &BTreeSet<ChildName>) -> Result<(), Deaf> {
        let update = match self.scanner.reread(names) {
            Partial::Read(update) => update,
            Partial::Same => self.scanner.recall(names),
            Partial::Elsewhere => {
                self.whole(Scope::Whole, Respect::Nothing)?;
                match self.scanner.reread(names) {
                    Partial::Read(update) => update,
                    Partial::Same | Partial::Elsewhere => self.scanner.recall(names),
                }
            }
        };
        self.tell(Seen::Reread { token, update })
    }

    fn rescan(&mut self) -> Result<(), Deaf> {
        self.whole(Scope::Confirming, Respect::Nothing)?;
        self.set_timer();
        Ok(())
    }

    fn configure(&mut self, config: WatchConfig) -> Result<(), Deaf> {
        self.scanner.configure(&config);
        if self.config.server_file != config.server_file {
            self.server = ServerFile::new(config.server_file.clone());
        }
        let old = std::mem::replace(&mut self.config, config);
        self.whole(Scope::Whole, Respect::Hints)?;
        if self.config.rescan != old.rescan {
            self.set_timer();
        }
        if self.config.key_dirs.is_empty() && !old.key_dirs.is_empty() {
            // The last ones were taken out.
            return self.tell(Seen::Keys);
        }
        Ok(())
    }

    /// Puts up the watches anew, and reads everything after that.
    fn whole(&mut self, scope: Scope, respect: Respect) -> Result<(), Deaf> {
        let now = self.install();
        // Before what takes longer: a key that is gone may have something open.
        self.tell_of_keys()?;
        let update = self.scanner.whole(scope, respect);
        self.tell(Seen::Listing(update))?;
        if self.told.as_ref() != Some(&now) {
            self.told = Some(now.clone());
            self.set_timer();
            self.tell(Seen::Capabilities(now))?;
        }
        let look = self.look_at_server_file();
        self.plan_install();
        self.tell_of_server_file(look)
    }

    fn tell_of_keys(&self) -> Result<(), Deaf> {
        match self.config.key_dirs.as_slice() {
            [] => Ok(()),
            [_, ..] => self.tell(Seen::Keys),
        }
    }

    fn look_at_server_file(&mut self) -> Look {
        let owners = &self.config.server_owners;
        self.server.look(owners, self.being_written)
    }

    fn tell_of_server_file(&self, look: Look) -> Result<(), Deaf> {
        match look {
            Look::Whole => self.tell(Seen::ServerFile),
            Look::BeingWritten => Ok(()),
        }
    }

    fn look_at_server(&mut self) -> Result<(), Deaf> {
        let look = self.look_at_server_file();
        self.tell_of_server_file(look)?;
        if self.is_server_elsewhere() {
            return self.whole(Scope::Whole, Respect::Hints);
        }
        Ok(())
    }

    /// Whether the last look at server.yml went another way than the one that is watched. Asked
    /// after each look: one that comes after the watches may be the first to see a directory.
    fn is_server_elsewhere(&self) -> bool {
        *self.server.way() != self.watched_way
    }

    /// Has watches put up again soon when the look that follows them shows that they are old.
    fn plan_install(&mut self) {
        if self.is_server_elsewhere() {
            self.install_at.get_or_insert(clock::mono() + INSTALL_PAUSE);
        }
    }

    /// Watches what is to be watched, until that is what there is.
    fn install(&mut self) -> Capabilities {
        self.install_at = None;
        let mut installed = None;
        let mut capabilities = Capabilities::Inotify;
        for _ in 0..INSTALL_ATTEMPTS_MAX {
            self.server.find(&self.config.server_owners);
            self.watched_way.clone_from(self.server.way());
            let keys = self.config.key_dirs.iter();
            let keys: Vec<_> = keys.map(|dir| find(dir, &self.config.owners)).collect();
            let layout = Layout::of(&self.scanner.find(), &keys, &self.watched_way);
            if installed.as_ref() == Some(&layout) {
                return self.share(capabilities);
            }
            // Meanings first: a hint about a name without one is dropped.
            self.inbox.lay_out(&layout);
            let dirs: Vec<_> = layout.dirs().collect();
            capabilities = self.source.watch(&dirs);
            installed = Some(layout);
        }
        // The last change may have come before the watch that would have told of it.
        self.install_at = Some(clock::mono() + INSTALL_PAUSE);
        self.share(capabilities)
    }

    fn share(&self, capabilities: Capabilities) -> Capabilities {
        let shared = &self.capabilities;
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = capabilities.clone();
        capabilities
    }

    fn set_timer(&mut self) {
        let without_hints = match self.told {
            None | Some(Capabilities::Inotify) => None,
            Some(Capabilities::Partly { .. } | Capabilities::RescanOnly { .. }) => {
                Some(RESCAN_WITHOUT_HINTS)
            }
        };
        let every = self.config.rescan.or(without_hints);
        self.rescan_at = every.map(|every| clock::mono() + every);
    }

    /// What is to be looked at again now, because it was being written.
    fn due(&mut self, now: Mono) -> Hints {
        let server = self.server.next_look();
        Hints {
            files: self.scanner.due(now),
            server: server.is_some_and(|at| now >= at),
            ..Hints::default()
        }
    }

    fn next_timer(&self) -> Option<Mono> {
        let looks = [self.scanner.next_look(), self.server.next_look()];
        let timers = looks.into_iter().chain([self.rescan_at, self.install_at]);
        timers.flatten().min()
    }

    fn tell(&self, seen: Seen) -> Result<(), Deaf> {
        self.seen.blocking_send(seen).map_err(|_| Deaf)
    }
}
