//! server.yml while the server runs: its path is fixed, its content is not.
//!
//! An edit is looked at when the watcher hints at it and before every command that starts
//! something. A good one is applied at once, but for the fields that need a restart; a bad one
//! changes nothing and is shown. It is read by the same rules at the start and later: it must
//! belong to root or the server's user, whomever it names as trusted itself.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::Supervisor;
use crate::{
    clock,
    config::{self, ChildContext, Host, ServerSpec},
    journal::Dirs,
    process,
    reconcile::event::{Event, Settings},
    spec::ChildName,
    telemetry,
    trust::{self, Identity, Owners, TrustError, Way},
    watch::{self, WatchConfig},
};

/// The most of server.yml that is read, in bytes.
const SERVER_FILE_BYTES_MAX: u64 = config::SERVER_BYTES_MAX as u64;

/// How long after its last change what is read of it is sure to be told from a later change: more
/// than a tick of the coarsest file system we know of (FAT, 2 s).
const SURE_AFTER_MS: i64 = 2_500;

/// How often it is read in a row when it changes meanwhile.
const READ_ATTEMPTS_MAX: usize = 4;

/// Which file was looked at last, be it good or bad, for those who want to know whether it is still
/// the same. Shared with threads that have nothing else of the server.
#[derive(Debug)]
pub(super) struct LastLook {
    path: PathBuf,
    sight: Mutex<Sight>,
}

/// What was seen of it before it was read.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// `None` when there was none.
    identity: Option<Identity>,
    /// When it was looked at, in milliseconds since 1970.
    at_ms: i64,
}

impl Sight {
    fn of(path: &Path) -> Self {
        // The time first: whatever changes it later has a later one.
        let at_ms = clock::wall().0;
        Self {
            identity: identity_of(path),
            at_ms,
        }
    }

    /// Whether an equal identity means equal content.
    fn is_sure(&self) -> bool {
        self.identity.is_none_or(|identity| {
            let changed_ms = i64::try_from(identity.ctime_ns / 1_000_000).unwrap_or(i64::MAX);
            self.at_ms.saturating_sub(changed_ms) > SURE_AFTER_MS
        })
    }
}

impl LastLook {
    /// Whether there is nothing new to be seen.
    pub(super) fn is_current(&self) -> bool {
        let identity = identity_of(&self.path);
        let last = *self.lock();
        last.is_sure() && identity == last.identity
    }

    fn note(&self, sight: Sight) {
        *self.lock() = sight;
    }

    fn lock(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file, as it was last read and as it is in force.
pub(super) struct ServerFile {
    path: PathBuf,
    last_look: Arc<LastLook>,
    host: Host,
    /// What is in force: the last good content, with the fixed fields of the start.
    spec: ServerSpec,
    /// What was read last that was good.
    good: Vec<u8>,
    /// What was read last, good or not.
    bytes: Result<Vec<u8>, String>,
    /// What is wrong with that.
    faults: Vec<String>,
    /// Fields that were edited and need a restart.
    needs_restart: Vec<&'static str>,
}

impl ServerFile {
    /// Reads the file for the first time; `Err` holds every fault.
    pub(super) fn open(path: PathBuf, host: Host) -> Result<Self, Vec<String>> {
        let sight = Mutex::new(Sight::of(&path));
        let bytes = read(&path).map_err(|fault| vec![fault])?;
        let spec = parse(&path, &bytes, &host)?;
        check_users(&spec)?;
        let last_look = Arc::new(LastLook {
            path: path.clone(),
            sight,
        });
        Ok(Self {
            path,
            last_look,
            host,
            spec,
            good: bytes.clone(),
            bytes: Ok(bytes),
            faults: Vec::new(),
            needs_restart: Vec::new(),
        })
    }

    /// Goes on with what is in force. That it is read by another program may make it bad.
    pub(super) fn take_over(handed: HandedServerFile, host: Host) -> Result<Self, Vec<String>> {
        let HandedServerFile {
            path,
            fixed,
            good,
            bytes,
            faults,
        } = handed;
        let newer = parse(&path, &good, &host)?;
        let spec = fixed.within(newer.clone());
        // Whatever it looks like, it is looked at again.
        let sight = Sight {
            at_ms: i64::MIN,
            ..Sight::of(&path)
        };
        Ok(Self {
            last_look: Arc::new(LastLook {
                path: path.clone(),
                sight: Mutex::new(sight),
            }),
            path,
            host,
            needs_restart: spec.fixed_fields_that_differ(&newer),
            spec,
            good,
            bytes,
            faults,
        })
    }

    /// What the next program of an upgrade goes on with.
    pub(super) fn hand_over(self) -> HandedServerFile {
        HandedServerFile {
            path: self.path,
            fixed: FixedFields::of(&self.spec),
            good: self.good,
            bytes: self.bytes,
            faults: self.faults,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the directories in use are noted: it depends on this file's path alone.
    pub(super) fn place(&self) -> Option<PathBuf> {
        let canonical = self.path.canonicalize();
        let canonical = canonical.unwrap_or_else(|_| self.path.clone());
        config::default_runtime_dir(&canonical, &self.host)
    }

    /// The directories in use: they are fixed while the server runs.
    pub(super) fn dirs(&self) -> Dirs {
        Dirs {
            runtime_dir: self.spec.runtime_dir.clone(),
            state_dir: self.spec.state_dir.clone(),
        }
    }

    pub(super) fn last_look(&self) -> Arc<LastLook> {
        Arc::clone(&self.last_look)
    }

    pub(super) fn spec(&self) -> &ServerSpec {
        &self.spec
    }

    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    pub(super) fn needs_restart(&self) -> Vec<String> {
        self.needs_restart
            .iter()
            .map(|field| (*field).to_owned())
            .collect()
    }

    /// Who may own what is read of loadpaths and of keys; `Err` when one does not exist (any more).
    pub(super) fn owners(&self) -> Result<Owners, String> {
        users("trusted_owners", &self.spec.trusted_owners)
    }

    /// Who of this host may command without a signature; `Err` when one does not exist (any more).
    pub(super) fn local_users(&self) -> Result<Owners, String> {
        users("allow_local_users", &self.spec.allow_local_users)
    }

    /// What the core needs of it.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            mode: self.spec.mode,
            startup: self.spec.startup.clone(),
            on_exit: self.spec.on_exit,
            loadpaths: self.spec.loadpaths.clone(),
            rescan: self.spec.rescan,
        }
    }

    /// What the watcher needs of it; `Err` when an owner it names does not exist (any more).
    pub(super) fn watch_config(&self) -> Result<WatchConfig, String> {
        Ok(WatchConfig {
            loadpaths: self.spec.loadpaths.clone(),
            parse: parser(&self.spec, &self.host),
            owners: self.owners()?,
            key_dirs: self.spec.pub_keys_path.clone(),
            rescan: self.spec.rescan,
            server_file: self.path.clone(),
            server_owners: owners_of_server_file()?,
        })
    }

    /// Reads it again. Says whether something other than before is in force now.
    /// While somebody writes it, it is as before: the watcher tells when it is closed.
    fn refresh(&mut self) -> Refreshed {
        // Before it is read, so that what is put in its place meanwhile is another.
        let sight = Sight::of(&self.path);
        let Some(bytes) = read_whole(&self.path) else {
            return Refreshed::Same;
        };
        self.last_look.note(sight);
        if bytes == self.bytes {
            return Refreshed::Same;
        }
        self.bytes = bytes;
        let parsed = match &self.bytes {
            Ok(bytes) => parse(&self.path, bytes, &self.host),
            Err(fault) => Err(vec![fault.clone()]),
        };
        let parsed = parsed.and_then(|spec| check_users(&spec).map(|()| spec));
        match parsed {
            Err(faults) => {
                self.faults = faults;
                Refreshed::Bad
            }
            Ok(newer) => {
                self.faults.clear();
                self.needs_restart = self.spec.fixed_fields_that_differ(&newer);
                self.good = self.bytes.clone().unwrap_or_default();
                self.spec = FixedFields::of(&self.spec).within(newer);
                Refreshed::Good
            }
        }
    }
}

/// The file on its way to the next program of an upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HandedServerFile {
    path: PathBuf,
    fixed: FixedFields,
    good: Vec<u8>,
    bytes: Result<Vec<u8>, String>,
    faults: Vec<String>,
}

/// The fields that are as they were at the start, whatever is edited.
#[derive(Debug, Serialize, Deserialize)]
struct FixedFields {
    encrypt: bool,
    name: String,
    id: Option<String>,
    listener_addr: IpAddr,
    listener_port: u16,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    log_dir: PathBuf,
}

impl FixedFields {
    fn of(spec: &ServerSpec) -> Self {
        Self {
            encrypt: spec.encrypt,
            name: spec.name.clone(),
            id: spec.id.clone(),
            listener_addr: spec.listener_addr,
            listener_port: spec.listener_port,
            state_dir: spec.state_dir.clone(),
            runtime_dir: spec.runtime_dir.clone(),
            log_dir: spec.log_dir.clone(),
        }
    }

    /// With everything else as it stands there.
    fn within(self, spec: ServerSpec) -> ServerSpec {
        ServerSpec {
            encrypt: self.encrypt,
            name: self.name,
            id: self.id,
            listener_addr: self.listener_addr,
            listener_port: self.listener_port,
            state_dir: self.state_dir,
            runtime_dir: self.runtime_dir,
            log_dir: self.log_dir,
            ..spec
        }
    }
}

/// What reading server.yml again came to.
enum Refreshed {
    Same,
    Good,
    Bad,
}

impl Supervisor {
    /// Looks at server.yml, and applies it if it is another good one.
    pub(super) fn look_at_server_file(&mut self) {
        match self.server_file.refresh() {
            Refreshed::Same => {}
            Refreshed::Bad => {
                for fault in self.server_file.faults() {
                    let detail = &*telemetry::on_one_line(fault);
                    tracing::warn!(detail, "server.yml is bad and changes nothing");
                }
            }
            Refreshed::Good => {
                tracing::info!("server.yml was edited and is in force");
                let fields = self.server_file.needs_restart();
                if !fields.is_empty() {
                    tracing::warn!(fields = fields.join(", "), "needs a restart");
                }
                self.apply_authority();
                match self.server_file.watch_config() {
                    Ok(config) => {
                        self.watch_config = config.clone();
                        self.watch.configure(config);
                        self.inbox
                            .push_back(Event::Settings(self.server_file.settings()));
                    }
                    Err(error) => tracing::warn!(%error, "children are looked after as before"),
                }
            }
        }
    }
}

/// Root, the server's own user, and those whom a field names.
fn users(field: &str, names: &[String]) -> Result<Owners, String> {
    Owners::new(names).map_err(|error| format!("`{field}`: {error}"))
}

/// Whether all users that it names exist.
fn check_users(spec: &ServerSpec) -> Result<(), Vec<String>> {
    let owners = users("trusted_owners", &spec.trusted_owners);
    let local = users("allow_local_users", &spec.allow_local_users);
    let faults: Vec<String> = [owners, local]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults),
    }
}

/// Whom server.yml may belong to: the owners it names itself cannot make it trusted, at a start
/// and later alike. Else an edit that is in force could be refused at the next start.
fn owners_of_server_file() -> Result<Owners, String> {
    Owners::new(&[]).map_err(|error| error.to_string())
}

fn identity_of(path: &Path) -> Option<Identity> {
    let stat = rustix::fs::stat(path).ok()?;
    Some(Identity::from(&stat))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let owners = owners_of_server_file()?;
    let file = trust::open_file(path, &owners, SERVER_FILE_BYTES_MAX);
    file.map(|file| file.bytes)
        .map_err(|error| error.of_server_file())
}

/// As [`read`]; `None` when somebody has the file open for writing, or changes it all the time.
fn read_whole(path: &Path) -> Option<Result<Vec<u8>, String>> {
    let owners = match owners_of_server_file() {
        Ok(owners) => owners,
        Err(fault) => return Some(Err(fault)),
    };
    for _ in 0..READ_ATTEMPTS_MAX {
        let read = match trust::open(path, &owners, &mut Way::default()) {
            Ok(file) if BEING_WRITTEN(file.file()) => return None,
            Ok(file) => file.read(SERVER_FILE_BYTES_MAX),
            Err(error) => Err(error),
        };
        return match read {
            Ok(file) => Some(Ok(file.bytes)),
            // Be it that its time was set, after which nothing is told any more.
            Err(TrustError::Changing { .. }) => continue,
            // It is known which file it is: there is nothing to be named.
            Err(error) if error.is_missing() => Some(Err(error.to_string())),
            Err(error) => Some(Err(error.of_server_file())),
        };
    }
    None
}

fn parse(path: &Path, bytes: &[u8], host: &Host) -> Result<ServerSpec, Vec<String>> {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let parsed = config::server(path, &canonical, bytes, host);
    parsed.map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

/// How child files are read under this server.yml.
fn parser(spec: &ServerSpec, host: &Host) -> watch::Parse {
    let context = ChildContext {
        log_dir: spec.log_dir.clone(),
        defaults: Arc::clone(&spec.defaults),
        pid1: host.pid1,
    };
    Arc::new(move |name: &ChildName, path: &Path, bytes: &[u8]| {
        let parsed = config::child(name, path, bytes, &context);
        parsed.map_err(|faults| faults.iter().map(ToString::to_string).collect())
    })
}

/// Whether somebody has a file open for writing; told to the watcher, which may not ask itself.
pub(super) const BEING_WRITTEN: watch::BeingWritten = process::open_for_writing;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Two edits within a tick of the file system's clock look like one: what was read after the
    /// first says nothing of the second, which may have taken a directory of keys out.
    #[test]
    fn what_was_edited_a_moment_before_it_was_read_is_looked_at_again() {
        let keep = tempfile::tempdir().unwrap();
        let path = keep.path().join("server.yml");
        fs::write(&path, "pub_keys_path: [a]").unwrap();
        let last = LastLook {
            path: path.clone(),
            sight: Mutex::new(Sight::of(&path)),
        };
        assert!(!last.is_current());
        let sight = Sight::of(&path);
        let at = |at_ms| last.note(Sight { at_ms, ..sight });
        at(sight.at_ms + 2 * SURE_AFTER_MS);
        assert!(last.is_current());
        at(sight.at_ms - 2 * SURE_AFTER_MS);
        assert!(!last.is_current(), "the clock was set back");
        fs::remove_file(&path).unwrap();
        assert!(!last.is_current());
        last.note(Sight::of(&path));
        assert!(last.is_current(), "there is nothing that could be another");
        fs::write(&path, "").unwrap();
        assert!(!last.is_current());
    }
}
