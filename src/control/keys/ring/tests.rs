//! The ring over real directories, against what an attacker, an editor and a hurried operator do.

mod changes;
mod dirs;
mod files;
mod memory;
mod scopes;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::*;
use crate::{
    command::Command,
    control::keys::{Bits, KeyPair, generate},
    trust::tests::as_root,
};

/// A user that owns nothing here.
const STRANGER: u32 = 54_321;

/// How long anything may take that takes a second at most.
const TIME_MAX: Duration = Duration::from_secs(20);

fn pair(which: usize) -> &'static KeyPair {
    static PAIRS: OnceLock<[KeyPair; 2]> = OnceLock::new();
    let pairs = PAIRS.get_or_init(|| [(); 2].map(|()| generate(Bits::B2048).unwrap()));
    &pairs[which]
}

/// The text of a public key's file.
fn pem() -> &'static str {
    &pair(0).public_pem
}

/// That of another.
fn other_pem() -> &'static str {
    &pair(1).public_pem
}

/// Directories of keys, and a ring over the first of them.
struct Bed {
    _keep: TempDir,
    root: PathBuf,
    dir: PathBuf,
    ring: Ring,
}

impl Bed {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = keep.path().canonicalize().unwrap();
        let dir = root.join("keys");
        fs::create_dir(&dir).unwrap();
        mode(&dir, 0o755);
        let ring = Ring::new(vec![dir.clone()], us());
        Self {
            _keep: keep,
            root,
            dir,
            ring,
        }
    }

    /// Another directory beside the first, which the ring does not know yet.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        fs::create_dir(&dir).unwrap();
        mode(&dir, 0o755);
        dir
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Writes a file in one stroke, as whoever knows what he does.
    fn put(&self, file: &str, text: &str) -> PathBuf {
        put(&self.dir, file, text)
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    fn finds(&self, key: &str) -> bool {
        self.ring.find(&name(key)).is_ok()
    }

    fn find(&self, key: &str) -> Arc<Key> {
        let found = self.ring.find(&name(key));
        found.unwrap_or_else(|missing| panic!("{missing}"))
    }

    /// Why there is no such key.
    fn why(&self, key: &str) -> String {
        match self.ring.find(&name(key)) {
            Ok(found) => panic!("{found:?}"),
            Err(missing) => missing.to_string(),
        }
    }

    fn is_unknown(&self, key: &str) -> bool {
        let found = self.ring.find(&name(key));
        matches!(found, Err(Missing::Unknown { faults, .. }) if faults.is_empty())
    }

    /// The only fault there is.
    fn fault(&self) -> String {
        let mut faults = self.ring.refresh().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.remove(0)
    }

    /// How long a scope must have been gone until that is believed.
    fn set_quiet(&self, quiet: Duration) {
        self.ring.lock().bounds.scope_quiet = quiet;
    }

    /// Has the ring forget what it knows, and look with these bounds from now on.
    fn set(&self, bounds: Bounds) {
        let mut inner = self.ring.lock();
        inner.bounds = bounds;
        inner.folders.clear();
        drop(inner);
        self.ring.configure(vec![self.dir.clone()], us());
    }
}

/// A span that does not pass during a test.
const LONG: Duration = Duration::from_secs(3_600);

fn us() -> Owners {
    Owners::new(&[]).unwrap()
}

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn put(dir: &Path, file: &str, text: &str) -> PathBuf {
    let path = dir.join(file);
    let new = dir.join(format!(".{file}.new"));
    fs::write(&new, text).unwrap();
    mode(&new, 0o644);
    fs::rename(&new, &path).unwrap();
    path
}

fn names(keys: &[Arc<Key>]) -> Vec<&str> {
    keys.iter().map(|key| key.name().as_str()).collect()
}

/// Waits until it is so.
fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let start = clock::mono();
    while !is() {
        assert!(clock::mono() - start < TIME_MAX, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}
