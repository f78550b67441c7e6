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
    keys::{CHILD_KEYS, DEFAULT_KEYS},
    node::Node,
    rules::{Checker, Rule, Shape},
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
    /// `$XDG_STATE_HOME`; one that is not absolute is passed over, as its specification asks,
    /// and so is one that is not UTF-8.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`, likewise.
    pub home: Option<PathBuf>,
    /// Whether the server is PID 1.
    pub pid1: bool,
}

/// The keys of `server.yml`, for whoever documents them.
pub fn server_keys() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(Rule::name)
}

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
        .root("server.yml", "it needs at least `loadpaths: [DIRECTORY]`")
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
    let given = |dir: &Option<(PathBuf, Span)>| dir.as_ref().map(|(path, _)| path.clone());
    let state_dir = given(&draft.state_dir).or_else(|| state_default(canonical, host))?;
    let runtime_default = || runtime_default(&state_dir, canonical, host);
    let runtime_dir = given(&draft.runtime_dir).unwrap_or_else(runtime_default);
    let log_dir = given(&draft.log_dir).unwrap_or_else(|| state_dir.join("logs"));
    Some((state_dir, runtime_dir, log_dir))
}

/// The state directory of a server.yml that names none.
fn state_default(canonical: &Path, host: &Host) -> Option<PathBuf> {
    let usable = |path: &PathBuf| path.is_absolute() && path.to_str().is_some();
    let absolute = |path: &Option<PathBuf>| path.clone().filter(usable);
    let base = if host.root {
        PathBuf::from("/var/lib")
    } else {
        absolute(&host.xdg_state_home)
            .or_else(|| Some(absolute(&host.home)?.join(".local/state")))?
    };
    Some(base.join("supervisor-rs").join(path_hash(canonical)))
}

fn runtime_default(state_dir: &Path, canonical: &Path, host: &Host) -> PathBuf {
    if host.root {
        Path::new("/run/supervisor-rs").join(path_hash(canonical))
    } else {
        state_dir.join("run")
    }
}

/// The runtime directory of a `server.yml` that names no directory: a place that depends on
/// nothing but the file's path. `None` when nothing says where it is.
#[must_use]
pub fn default_runtime_dir(canonical: &Path, host: &Host) -> Option<PathBuf> {
    if host.root {
        return Some(runtime_default(Path::new("/"), canonical, host));
    }
    let state_dir = state_default(canonical, host)?;
    Some(runtime_default(&state_dir, canonical, host))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Host {
        Host {
            root: true,
            host_name: "alpha".to_owned(),
            xdg_state_home: None,
            home: Some(PathBuf::from("/root")),
            pid1: false,
        }
    }

    fn user() -> Host {
        Host {
            root: false,
            home: Some(PathBuf::from("/home/bob")),
            ..root()
        }
    }

    fn read_in(text: &str, host: &Host) -> Result<ServerSpec, Vec<Diagnostic>> {
        let text = format!("loadpaths: [/c]\n{text}\n");
        let path = Path::new("/etc/supervisor/server.yml");
        server(path, path, text.as_bytes(), host)
    }

    fn read(text: &str) -> ServerSpec {
        read_in(text, &root()).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
    }

    /// The hash of `/etc/supervisor/server.yml`, by `sha256sum`.
    const HASH: &str = "615bc8d432384314";

    #[test]
    fn loadpaths_alone_are_a_whole_file_and_the_rest_is_as_documented() {
        let expected = ServerSpec {
            loadpaths: vec![PathBuf::from("/c")],
            mode: Mode::Quiet,
            startup: BTreeSet::new(),
            encrypt: false,
            pub_keys_path: Vec::new(),
            listener_addr: IpAddr::from([0, 0, 0, 0]),
            listener_port: 33_889,
            name: "alpha".to_owned(),
            id: None,
            state_dir: Path::new("/var/lib/supervisor-rs").join(HASH),
            runtime_dir: Path::new("/run/supervisor-rs").join(HASH),
            log_dir: Path::new("/var/lib/supervisor-rs").join(HASH).join("logs"),
            on_exit: OnExit::Leave,
            allow_unsigned_remote: false,
            allow_local_users: Vec::new(),
            trusted_owners: Vec::new(),
            rescan: Some(Duration::from_secs(60)),
            defaults: Arc::default(),
        };
        assert_eq!(read(""), expected);
    }

    #[test]
    fn state_lies_where_the_users_rights_and_environment_say() {
        let dirs = |host: &Host| {
            let spec = read_in("", host).expect("good");
            (spec.state_dir, spec.runtime_dir, spec.log_dir)
        };
        let state = Path::new("/home/bob/.local/state/supervisor-rs").join(HASH);
        let expected = (state.clone(), state.join("run"), state.join("logs"));
        assert_eq!(dirs(&user()), expected);
        let relative = Host {
            xdg_state_home: Some("state".into()),
            ..user()
        };
        assert_eq!(dirs(&relative), expected);
        let xdg = Host {
            xdg_state_home: Some("/x".into()),
            ..user()
        };
        assert_eq!(dirs(&xdg).0, Path::new("/x/supervisor-rs").join(HASH));
        // Root's own environment does not move the state of the host's server.
        let root_xdg = Host {
            xdg_state_home: Some("/x".into()),
            ..root()
        };
        assert_eq!(dirs(&root_xdg), dirs(&root()));
    }

    #[test]
    fn without_a_home_the_state_needs_a_place_in_the_file() {
        for home in [None, Some(PathBuf::from("relative"))] {
            let host = Host { home, ..user() };
            let faults = read_in("", &host).expect_err("no place");
            assert_eq!(faults.len(), 1);
            assert!(
                faults[0]
                    .help
                    .as_deref()
                    .is_some_and(|help| help.contains("state_dir"))
            );
            let spec = read_in("state_dir: /s", &host).expect("good");
            assert_eq!(spec.runtime_dir, Path::new("/s/run"));
            assert_eq!(spec.log_dir, Path::new("/s/logs"));
        }
    }

    #[test]
    fn two_servers_never_share_a_default_directory() {
        let of = |canonical: &str| {
            let path = Path::new("/tmp/server.yml");
            let spec = server(path, Path::new(canonical), b"loadpaths: [/c]\n", &root());
            spec.expect("good").state_dir
        };
        assert_ne!(of("/a/server.yml"), of("/b/server.yml"));
        assert_eq!(of("/a/server.yml"), of("/a/server.yml"));
    }

    #[test]
    fn relative_paths_begin_in_the_files_folder_as_written() {
        let spec = read(
            "encrypt: on\npub_keys_path: [keys]\nlog_dir: ../log\nstate_dir: ./s\nruntime_dir: /r/",
        );
        assert_eq!(spec.pub_keys_path, [Path::new("/etc/supervisor/keys")]);
        assert_eq!(spec.log_dir, Path::new("/etc/supervisor/../log"));
        assert_eq!(spec.state_dir, Path::new("/etc/supervisor/s"));
        assert_eq!(spec.runtime_dir, Path::new("/r"));
    }

    #[test]
    fn encrypt_is_on_or_off_quoted_or_not_or_a_boolean() {
        for (text, expected) in [
            ("on", true),
            ("\"on\"", true),
            ("'on'", true),
            ("On", true),
            ("true", true),
            ("yes", true),
            ("off", false),
            ("\"off\"", false),
            ("false", false),
            ("no", false),
        ] {
            let spec = read(&format!("encrypt: {text}\npub_keys_path: [/k]"));
            assert_eq!(spec.encrypt, expected, "{text}");
        }
    }

    #[test]
    fn nothing_that_is_not_plainly_off_turns_encrypt_off() {
        for text in [
            "",
            "~",
            "null",
            "\"Off\"",
            "\"false\"",
            "''",
            "0",
            "[]",
            "{}",
            "[off]",
            "of",
            "oui",
        ] {
            let text = format!("encrypt: {text}\npub_keys_path: [/k]");
            assert!(read_in(&text, &root()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_value_never_opens_the_listener_or_the_gate() {
        for key in [
            "listener_addr",
            "listener_port",
            "allow_unsigned_remote",
            "ipv6",
            "mode",
            "id",
        ] {
            for nothing in ["", "~", "null"] {
                let text = format!("{key}: {nothing}");
                assert!(read_in(&text, &root()).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn the_listener_is_where_the_file_says() {
        let addr = |text: &str| read(text).listener_addr.to_string();
        assert_eq!(addr(""), "0.0.0.0");
        assert_eq!(addr("ipv6: true"), "::");
        assert_eq!(addr("ipv6: false"), "0.0.0.0");
        assert_eq!(addr("listener_addr: 127.0.0.1\nipv6: true"), "127.0.0.1");
        assert_eq!(addr("listener_addr: ::1"), "::1");
        assert_eq!(addr("listener_addr: \"::1\""), "::1");
        assert_eq!(read("listener_port: 0").listener_port, 0);
        assert_eq!(read("listener_port: 65535").listener_port, 65_535);
    }

    #[test]
    fn children_outlive_the_server_unless_it_is_pid_1_or_told_to_stop_them() {
        let pid1 = Host {
            pid1: true,
            ..root()
        };
        assert_eq!(read("").on_exit, OnExit::Leave);
        assert_eq!(read("on_exit: stop").on_exit, OnExit::Stop);
        assert_eq!(read_in("", &pid1).expect("good").on_exit, OnExit::Stop);
        assert_eq!(
            read_in("on_exit: leave", &pid1).expect("good").on_exit,
            OnExit::Leave
        );
    }

    #[test]
    fn the_other_fields_are_read_as_written() {
        let spec = read(
            "mode: sync\nstartup: [b, a, b]\nname: beta\nid: 0191D9A5-7C3E-7B1D-9A3F-000000000001\n\
             allow_unsigned_remote: true\nallow_local_users: [bob, 1000]\ntrusted_owners: [git]\n\
             rescan: 5m\nx-note: mine",
        );
        assert_eq!(spec.mode, Mode::Sync);
        let names: Vec<String> = spec.startup.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(spec.name, "beta");
        assert_eq!(
            spec.id.as_deref(),
            Some("0191d9a5-7c3e-7b1d-9a3f-000000000001")
        );
        assert!(spec.allow_unsigned_remote);
        assert_eq!(spec.allow_local_users, ["bob", "1000"]);
        assert_eq!(spec.trusted_owners, ["git"]);
        assert_eq!(spec.rescan, Some(Duration::from_secs(300)));
        for off in ["off", "\"off\""] {
            assert_eq!(read(&format!("rescan: {off}")).rescan, None);
        }
    }

    #[test]
    fn empty_lists_are_lists_with_nothing_in_them() {
        let spec =
            read("startup:\npub_keys_path:\nallow_local_users:\ntrusted_owners: []\ndefaults:");
        assert_eq!(spec, read(""));
    }

    #[test]
    fn only_what_is_fixed_while_the_server_runs_needs_a_restart() {
        let old = read("");
        let live = "mode: sync\nstartup: [a]\npub_keys_path: [/k]\non_exit: stop\nrescan: off\n\
                    allow_unsigned_remote: true\nallow_local_users: [a]\ntrusted_owners: [b]\n\
                    defaults: {output: inherit}";
        assert_eq!(
            old.fixed_fields_that_differ(&read(live)),
            Vec::<&str>::new()
        );
        let fixed = "encrypt: on\npub_keys_path: [/k]\nname: n\nid: 0191d9a5-7c3e-7b1d-9a3f-000000000001\n\
                     listener_addr: ::1\nlistener_port: 1\nstate_dir: /s\nruntime_dir: /r\nlog_dir: /l";
        let all = [
            "encrypt",
            "name",
            "id",
            "listener_addr",
            "listener_port",
            "state_dir",
            "runtime_dir",
            "log_dir",
        ];
        assert_eq!(old.fixed_fields_that_differ(&read(fixed)), all);
        assert_eq!(
            old.fixed_fields_that_differ(&read("state_dir: /s")),
            ["state_dir", "log_dir"]
        );
    }

    #[test]
    fn a_path_that_no_record_could_hold_is_a_fault() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
        let path = Path::new(OsStr::from_bytes(b"/tmp/\xff/server.yml"));
        let faults = server(path, path, b"loadpaths: [c]\n", &root()).expect_err("not UTF-8");
        assert_eq!(faults[0].message, "the file's own path is not UTF-8");
        let home = Some(PathBuf::from(OsStr::from_bytes(b"/\xff")));
        assert!(read_in("", &Host { home, ..user() }).is_err());
    }
}
