//! A directory that is the server's for as long as it runs, whoever takes it away.
//!
//! - Everything goes through an open descriptor (`folder`), which a deleted or renamed directory
//!   keeps: what is written there then is found by nobody. So before anything is written it is
//!   seen whether the path still leads to the directory that is open.
//! - If it does not, the directory is made anew, or the one that stands there is taken, by the
//!   same checks as at the start; it is locked before anything is written to it, and each store
//!   then writes all that it knows into it. Where another server has it, nothing is written.
//! - In between the lock is gone with its file; the [`Claim`] keeps a second server out (I1).
//! - The `id` that children were started with is put back too: by it the next server finds them.
//!
//! Absent on purpose: noticing it by itself. It is seen at the next look, which is before each
//! record and with each listing.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    claim::{Claim, Claimed},
    error::JournalError,
    folder::{Contents, Folder, LOCK_RETRY, Lock, Medium, Shelf, Standing},
    identity,
};
use crate::{
    clock,
    passed::{self as take, Passed},
};

/// How often a name that somebody has who is none of us is tried again: a server that is just
/// ending is nobody for a moment.
const FOREIGN_TRIES_MAX: u32 = 3;

/// A handle on the directory; both stores may have one on the same.
#[derive(Debug, Clone)]
pub(super) struct Home {
    shared: Arc<Mutex<Place>>,
    /// Which making of the directory this handle has seen.
    seen: u64,
}

/// A directory on its way to the next program of an upgrade: its lock is never free in between.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HandedHome {
    path: PathBuf,
    dir: Passed,
    lock: Passed,
    /// The name that it is claimed by, if it is.
    claimed: String,
    claim: Option<Passed>,
    id: Option<String>,
}

impl HandedHome {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Every descriptor that goes over.
    pub(super) fn passed(&self) -> impl Iterator<Item = &Passed> {
        [&self.dir, &self.lock].into_iter().chain(&self.claim)
    }
}

/// The directory as it stands.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    folder: Arc<Folder>,
    lock: Lock,
    claim: Option<Claim>,
    /// How many times it was made anew.
    made: u64,
    /// The server's id, if it is kept here.
    id: Option<String>,
}

impl Home {
    /// Becomes the one server of a directory; waits `wait` for another to end.
    pub(super) fn own(folder: Folder, wait: Duration) -> Result<Self, JournalError> {
        let path = folder.dir_path().to_owned();
        let until = clock::mono() + wait;
        // First: who has it also has the directory when that was deleted, and the lock with it.
        let claim = claim(&folder, until)?;
        let lock = folder.lock(until - clock::mono())?;
        let place = Place {
            path,
            folder: Arc::new(folder),
            lock,
            claim,
            made: 0,
            id: None,
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(place)),
            seen: 0,
        })
    }

    /// The directory as it stands.
    pub(super) fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.place().folder)
    }

    /// The id is kept here from now on, also when the directory is made anew.
    pub(super) fn keep_id(&self, id: &str) {
        self.place().id = Some(id.to_owned());
    }

    /// The lock on the directory once more: until it is closed as well, nobody else gets it.
    pub(super) fn share_lock(&self) -> io::Result<OwnedFd> {
        self.place().lock.share()
    }

    /// Whether both are handles on one directory.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Lets go of it without letting anybody else have it. Both handles on one directory must be
    /// the last.
    pub(super) fn hand_over(self) -> io::Result<HandedHome> {
        let place = Arc::try_unwrap(self.shared);
        let place = place.map_err(|_| io::Error::other("the directory is still in use"))?;
        let place = place.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Itself and no copy, for which there may be no descriptor left.
        let folder = Arc::into_inner(place.folder)
            .ok_or_else(|| io::Error::other("the directory is still in use"))?;
        let (claimed, claim) = match place.claim.map(Claim::into_parts) {
            Some((name, socket)) => (name, Some(Passed::Held(socket))),
            None => (String::new(), None),
        };
        Ok(HandedHome {
            dir: Passed::Held(folder.into_descriptor()),
            path: place.path,
            lock: Passed::Held(place.lock.into()),
            claimed,
            claim,
            id: place.id,
        })
    }

    /// Becomes the one server of a directory in place of the program before.
    pub(super) fn take_over(handed: HandedHome, descriptor: take::Claim<'_>) -> io::Result<Self> {
        let claim = match handed.claim {
            Some(socket) => Some(Claim::from_parts(handed.claimed, socket.take(descriptor)?)),
            None => None,
        };
        let folder = Folder::take_over(handed.path.clone(), handed.dir.take(descriptor)?)?;
        let place = Place {
            path: handed.path,
            folder: Arc::new(folder),
            lock: handed.lock.take(descriptor)?.into(),
            claim,
            made: 0,
            id: handed.id,
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(place)),
            seen: 0,
        })
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        // Nothing is left half done under this lock.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn claim(folder: &Folder, until: crate::spec::Mono) -> Result<Option<Claim>, JournalError> {
    let mut foreign = 0;
    loop {
        match Claim::make(folder.dir_path()) {
            Claimed::Ours(claim) => return Ok(Some(claim)),
            Claimed::Unavailable => return Ok(None),
            Claimed::Foreign if foreign == FOREIGN_TRIES_MAX => {
                let dir = folder.dir_path().display();
                tracing::warn!(%dir, "another user has the name that this directory is claimed by");
                return Ok(None);
            }
            Claimed::Foreign => {
                foreign += 1;
                thread::sleep(LOCK_RETRY);
            }
            Claimed::Taken(pid) if clock::mono() >= until => {
                return Err(folder.in_use(Some(pid)));
            }
            Claimed::Taken(_) => thread::sleep(LOCK_RETRY),
        }
    }
}

impl Place {
    fn stand(&mut self) -> Result<(), JournalError> {
        if !self.folder.stands() {
            self.make_anew()?;
        } else if !self.folder.is_locked_by(&self.lock) {
            self.lock = self.folder.lock(Duration::ZERO)?;
            tracing::warn!(dir = %self.path.display(), "the lock was deleted and is made anew");
        }
        if let Some(id) = &self.id {
            // Of a disk that is full the next record speaks.
            let _best_effort = identity::keep_if_missing(&self.folder, id);
        }
        Ok(())
    }

    fn make_anew(&mut self) -> Result<(), JournalError> {
        let folder = Folder::open(&self.path)?;
        if !matches!(&self.claim, Some(claim) if claim.is_on(&self.path)) {
            self.claim = claim(&folder, clock::mono())?.or(self.claim.take());
        }
        self.lock = folder.lock(Duration::ZERO)?;
        self.folder = Arc::new(folder);
        self.made += 1;
        tracing::warn!(
            dir = %self.path.display(),
            "the directory was deleted or replaced: what is known is written anew"
        );
        Ok(())
    }
}

impl Shelf for Home {
    fn stand(&mut self) -> io::Result<Standing> {
        let made = {
            let mut place = self.place();
            // It becomes part of a message of one line, as those about files are.
            let one_line = |error: JournalError| error.to_string().replace('\n', "; ");
            place
                .stand()
                .map_err(|error| io::Error::other(one_line(error)))?;
            place.made
        };
        if made == self.seen {
            return Ok(Standing::AsBefore);
        }
        self.seen = made;
        Ok(Standing::Anew)
    }

    fn read(&self, name: &str) -> io::Result<Option<Contents>> {
        self.folder().read(name)
    }

    fn open_over(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        self.folder().open_over(name)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        self.folder().create(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.folder().rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.folder().remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.folder().sync()
    }

    fn set_aside(&self, name: &str, bytes: &[u8]) -> io::Result<String> {
        self.folder().set_aside(name, bytes)
    }

    fn move_aside(&self, name: &str) -> io::Result<String> {
        self.folder().move_aside(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place().path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::{
        super::{folder::LOCK_WAIT, holder::Holder, samples},
        *,
    };

    fn home() -> (tempfile::TempDir, PathBuf, Home) {
        let temp = samples::own_dir();
        let path = temp.path().join("deep/state");
        let home = Home::own(Folder::open(&path).unwrap(), LOCK_WAIT).unwrap();
        (temp, path, home)
    }

    fn second(path: &Path) -> JournalError {
        Home::own(Folder::open(path).unwrap(), Duration::ZERO).unwrap_err()
    }

    #[test]
    fn a_directory_that_stands_is_left_alone() {
        let (_temp, path, mut home) = home();
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(home.stand().unwrap(), Standing::AsBefore);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_deleted_directory_is_made_anew_private_and_locked() {
        let (temp, path, mut home) = home();
        home.keep_id("11111111-2222-4333-8444-555555555555");
        let mut other = home.clone();
        fs::remove_dir_all(temp.path().join("deep")).unwrap();
        assert_eq!(home.stand().unwrap(), Standing::Anew);
        assert_eq!(home.stand().unwrap(), Standing::AsBefore);
        assert_eq!(other.stand().unwrap(), Standing::Anew, "each is told");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let id = fs::read_to_string(path.join("id")).unwrap();
        assert_eq!(id, "11111111-2222-4333-8444-555555555555\n");
        // The lock itself, not only the claim.
        let error = Folder::open(&path)
            .unwrap()
            .lock(Duration::ZERO)
            .unwrap_err();
        assert!(matches!(error, JournalError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_second_server_is_refused_while_the_directory_is_deleted_or_moved_away() {
        let (temp, path, mut home) = home();
        let own = i32::try_from(std::process::id()).unwrap();
        fs::remove_dir_all(&path).unwrap();
        // I1: it has made the directory, and could have locked it.
        let error = second(&path);
        assert!(
            matches!(error, JournalError::InUse { holder: Holder::Server { pid }, .. } if pid == own),
            "{error}"
        );
        assert_eq!(home.stand().unwrap(), Standing::Anew);
        fs::rename(&path, temp.path().join("elsewhere")).unwrap();
        assert!(matches!(second(&path), JournalError::InUse { .. }));
        assert_eq!(home.stand().unwrap(), Standing::Anew);
    }

    #[test]
    fn a_deleted_lock_is_made_anew_where_it_was() {
        let (_temp, path, mut home) = home();
        fs::remove_file(path.join("lock")).unwrap();
        assert!(matches!(second(&path), JournalError::InUse { .. }));
        assert_eq!(home.stand().unwrap(), Standing::AsBefore);
        let again = Folder::open(&path).unwrap();
        assert!(again.lock(Duration::ZERO).is_err());
    }

    #[test]
    fn a_directory_that_another_server_has_locked_is_not_written_to() {
        let (_temp, path, mut home) = home();
        fs::remove_dir_all(&path).unwrap();
        // As from another mount namespace, where the claim is another.
        let other = Folder::open(&path).unwrap();
        let lock = other.lock(Duration::ZERO).unwrap();
        let error = home.stand().unwrap_err();
        assert!(error.to_string().contains("is in use by"), "{error}");
        drop(lock);
        wait_for(|| home.stand().is_ok());
        assert_eq!(home.folder().dir_path(), path);
    }

    #[test]
    fn what_strangers_put_in_its_place_is_refused_and_followed_nowhere() {
        let (temp, path, mut home) = home();
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let error = home.stand().unwrap_err();
        assert!(error.to_string().contains("others can write"), "{error}");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(home.stand().is_err());
        fs::remove_file(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            let theirs = temp.path().join("theirs");
            fs::create_dir(&theirs).unwrap();
            std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
            std::os::unix::fs::symlink(&theirs, &path).unwrap();
            let error = home.stand().unwrap_err();
            assert!(error.to_string().contains("belongs to user"), "{error}");
            assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(home.stand().unwrap(), Standing::Anew);
    }

    /// A child that a parallel test is about to start may hold a copy of a lock for a moment.
    fn wait_for(mut condition: impl FnMut() -> bool) {
        let until = clock::mono() + LOCK_WAIT;
        while !condition() {
            assert!(clock::mono() < until);
            thread::sleep(LOCK_RETRY);
        }
    }
}
