//! `server.yml` (DESIGN, section 3).
//!
//! Invariants: every path that comes out is absolute; `encrypt` on comes with at least one
//! directory of keys; what is empty where a value belongs is a fault and never a default, so that
//! a line that lost its value does not open a listener to the world.
//!
//! Absent on purpose: whether directories, users and addresses exist. That changes while the
//! server runs, and is found out when they are used.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::{
    Diagnostic, SERVER_BYTES_MAX,
    child::Defaults,
    diagnostic::{Source, Span},
    fault::Fault,
    node::Node,
    rules::{Checker, Shape},
    server_fields::{Draft, FIELDS},
    text_of,
};
use crate::spec::{ChildName, Mode, OnExit};

/// The TCP port of a server that names none.
pub const PORT_DEFAULT: u16 = 33_889;

/// How often loadpaths are re-read although nothing was reported, unless told otherwise.
pub const RESCAN_DEFAULT: Duration = Duration::from_secs(60);

/// How many bytes of the hash of its path tell one server's directories from another's.
const PATH_HASH_BYTES: usize = 8;

/// `server.yml`, checked, with every value in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    /// Directories of child files, absolute, links unresolved, each once, in the order written.
    pub loadpaths: Vec<PathBuf>,
    /// What the watcher does by itself.
    pub mode: Mode,
    /// The children to start in `half` mode.
    pub startup: BTreeSet<ChildName>,
    /// Whether only signed commands are accepted. Fixed until the next start.
    pub encrypt: bool,
    /// Directories of public keys, absolute; not empty when `encrypt` is on.
    pub pub_keys_path: Vec<PathBuf>,
    /// The address to listen on. Fixed until the next start.
    pub listener_addr: IpAddr,
    /// The TCP port to listen on; 0 lets the system choose. Fixed until the next start.
    pub listener_port: u16,
    /// How the server calls itself. Fixed until the next start.
    pub name: String,
    /// The server's id, a UUID in lower case, when the file gives one. Fixed until the next start.
    pub id: Option<String>,
    /// What must survive a reboot; absolute. Fixed until the next start.
    pub state_dir: PathBuf,
    /// What concerns live processes; absolute. Fixed until the next start.
    pub runtime_dir: PathBuf,
    /// Where children's output goes unless told otherwise; absolute. Fixed until the next start.
    pub log_dir: PathBuf,
    /// What the server's end means for children.
    pub on_exit: OnExit,
    /// With `encrypt` off: whether other hosts may command.
    pub allow_unsigned_remote: bool,
    /// With `encrypt` off: local users that may command, besides root and the server's own.
    pub allow_local_users: Vec<String>,
    /// Users that may own configuration and keys, besides root and the server's own.
    pub trusted_owners: Vec<String>,
    /// How often loadpaths are re-read although nothing was reported; `None` is never.
    pub rescan: Option<Duration>,
    /// Values for children that do not set them.
    pub defaults: Arc<Defaults>,
}

/// What the file's meaning depends on besides the file: facts of the host and the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Whether the server runs as root.
    pub root: bool,
    /// What the host calls itself.
    pub host_name: String,
    /// `$XDG_STATE_HOME`; one that is not absolute is passed over, as its specification asks.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`, likewise.
    pub home: Option<PathBuf>,
    /// Whether the server is PID 1.
    pub pid1: bool,
}

/// Keys that somebody may write into a child's file by mistake.
pub(super) const SERVER_KEYS: &[&str] = &[
    "loadpaths",
    "mode",
    "startup",
    "encrypt",
    "pub_keys_path",
    "listener_addr",
    "ipv6",
    "listener_port",
    "id",
    "state_dir",
    "runtime_dir",
    "log_dir",
    "on_exit",
    "allow_unsigned_remote",
    "allow_local_users",
    "trusted_owners",
    "rescan",
    "defaults",
];

/// Keys of a child's file that have no business at the root of `server.yml`.
const CHILD_KEYS: &[&str] = &["command"];

/// Keys that apply to every child only as defaults.
const DEFAULT_KEYS: &[&str] = &["output", "repeat", "hooks", "restart", "workdir"];

/// Reads `server.yml`.
///
/// `path` is absolute, as given, with links unresolved: relative paths begin in its folder.
/// `canonical` is the same file with links resolved: it tells this server's default directories
/// from another's.
///
/// # Errors
///
/// Every fault of the file, in the order of their places.
pub fn server(
    path: &Path,
    canonical: &Path,
    bytes: &[u8],
    host: &Host,
) -> Result<ServerSpec, Vec<Diagnostic>> {
    let text = text_of(path, bytes, SERVER_BYTES_MAX)?;
    let mut checker = Checker::new(Source { path, text });
    let spec = checker
        .root("server.yml", "loadpaths: [DIRECTORY]")
        .and_then(|root| read(&mut checker, &root, canonical, host));
    match spec {
        Some(spec) if !checker.has_faults() => Ok(spec),
        Some(_) | None => Err(checker.diagnostics()),
    }
}

fn read(
    checker: &mut Checker<'_>,
    root: &Node,
    canonical: &Path,
    host: &Host,
) -> Option<ServerSpec> {
    let mut draft = Draft::default();
    let elsewhere = [
        (CHILD_KEYS, "each child's own file"),
        (DEFAULT_KEYS, "`defaults`"),
    ];
    let shape = Shape {
        inside: None,
        elsewhere: &elsewhere,
    };
    checker.mapping(root.entries(), FIELDS, &shape, &mut draft);
    checker.require(
        root,
        "loadpaths",
        "add `loadpaths:` and a list of directories",
    );
    if draft.encrypt == Some(true) && draft.pub_keys_path.as_ref().is_none_or(Vec::is_empty) {
        checker.fault(draft.encrypt_at, Fault::NoKeys);
    }
    directories_are_distinct(checker, &draft);
    let directories = directories(&draft, canonical, host);
    if directories.is_none() {
        checker.fault(root.head(), Fault::NoHome);
    }
    let (state_dir, runtime_dir, log_dir) = directories?;
    let any: IpAddr = match draft.ipv6 {
        Some(true) => Ipv6Addr::UNSPECIFIED.into(),
        Some(false) | None => Ipv4Addr::UNSPECIFIED.into(),
    };
    Some(ServerSpec {
        loadpaths: draft.loadpaths.unwrap_or_default(),
        mode: draft.mode.unwrap_or_default(),
        startup: draft.startup,
        encrypt: draft.encrypt.unwrap_or(false),
        pub_keys_path: draft.pub_keys_path.unwrap_or_default(),
        listener_addr: draft.listener_addr.unwrap_or(any),
        listener_port: draft.listener_port.unwrap_or(PORT_DEFAULT),
        name: draft.name.unwrap_or_else(|| host.host_name.clone()),
        id: draft.id,
        state_dir,
        runtime_dir,
        log_dir,
        on_exit: draft.on_exit.unwrap_or(if host.pid1 {
            OnExit::Stop
        } else {
            OnExit::Leave
        }),
        allow_unsigned_remote: draft.allow_unsigned_remote.unwrap_or(false),
        allow_local_users: draft.allow_local_users.unwrap_or_default(),
        trusted_owners: draft.trusted_owners.unwrap_or_default(),
        rescan: draft.rescan.unwrap_or(Some(RESCAN_DEFAULT)),
        defaults: Arc::new(draft.defaults.unwrap_or_default()),
    })
}

impl ServerSpec {
    /// The fields that are fixed while the server runs and differ in a newer reading.
    #[must_use]
    pub fn fixed_fields_that_differ(&self, newer: &Self) -> Vec<&'static str> {
        let fields = [
            ("encrypt", self.encrypt != newer.encrypt),
            ("name", self.name != newer.name),
            ("id", self.id != newer.id),
            ("listener_addr", self.listener_addr != newer.listener_addr),
            ("listener_port", self.listener_port != newer.listener_port),
            ("state_dir", self.state_dir != newer.state_dir),
            ("runtime_dir", self.runtime_dir != newer.runtime_dir),
            ("log_dir", self.log_dir != newer.log_dir),
        ];
        fields
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(name, _)| name)
            .collect()
    }
}

/// The three directories; `None` when nothing says where state goes.
fn directories(
    draft: &Draft,
    canonical: &Path,
    host: &Host,
) -> Option<(PathBuf, PathBuf, PathBuf)> {
    let own = path_hash(canonical);
    let given = |dir: &Option<(PathBuf, Span)>| dir.as_ref().map(|(path, _)| path.clone());
    let state_default = || {
        let absolute = |path: &Option<PathBuf>| path.clone().filter(|path| path.is_absolute());
        let base = if host.root {
            PathBuf::from("/var/lib")
        } else {
            absolute(&host.xdg_state_home)
                .or_else(|| Some(absolute(&host.home)?.join(".local/state")))?
        };
        Some(base.join("supervisor-rs").join(&own))
    };
    let state_dir = given(&draft.state_dir).or_else(state_default)?;
    let runtime_default = if host.root {
        Path::new("/run/supervisor-rs").join(&own)
    } else {
        state_dir.join("run")
    };
    let runtime_dir = given(&draft.runtime_dir).unwrap_or(runtime_default);
    let log_dir = given(&draft.log_dir).unwrap_or_else(|| state_dir.join("logs"));
    Some((state_dir, runtime_dir, log_dir))
}

/// The first hexadecimal digits of the hash of a path.
fn path_hash(path: &Path) -> String {
    let hash = Sha256::digest(path.as_os_str().as_bytes());
    hash.iter()
        .take(PATH_HASH_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A log file must not be able to overwrite a record, nor a record be taken for a child.
fn directories_are_distinct(checker: &mut Checker<'_>, draft: &Draft) {
    let dirs = [
        ("state_dir", &draft.state_dir),
        ("runtime_dir", &draft.runtime_dir),
        ("log_dir", &draft.log_dir),
    ];
    for (i, (other, dir)) in dirs.iter().enumerate() {
        let Some((path, span)) = dir else { continue };
        let mut before = dirs.iter().take(i);
        let same = before.find(|(_, dir)| dir.as_ref().is_some_and(|(before, _)| before == path));
        let a_loadpath = draft
            .loadpaths
            .iter()
            .flatten()
            .any(|loadpath| loadpath == path);
        let one = match same {
            Some((one, _)) => one,
            None if a_loadpath => "loadpaths",
            None => continue,
        };
        checker.fault(*span, Fault::SameDirectory { one, other });
    }
}
