//! Directories of keys: that something changed is told, whatever it was and wherever on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
};

use notify::{EventHandler, RecommendedWatcher};

use super::{
    super::{settle::Hear, source::Handler, *},
    bed::*,
    closing::ByHand,
};

/// What was heard to be deleted, in any of the tests' directories.
static DELETED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A queue that notes what it hears to be deleted once that was passed on.
fn noting(mut handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
    let noting = move |event: notify::Result<notify::Event>| {
        let deleted = match &event {
            Ok(event) if event.kind.is_remove() => event.paths.clone(),
            Ok(_) | Err(_) => Vec::new(),
        };
        handler.handle_event(event);
        DELETED.lock().unwrap().extend(deleted);
    };
    source::inotify_with(noting, hear)
}

fn plan(keys: &'static str) -> Plan {
    Plan {
        key_dirs: vec![keys],
        open: noting,
        ..Plan::default()
    }
}

/// A bed with the directory `keys` and one key in it.
fn bed() -> Bed {
    Bed::with(plan("keys"), |root| make(&root.join("keys")))
}

/// Makes a directory with one key.
fn make(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("deploy.pem"), "key").unwrap();
}

impl Bed {
    /// Does this and waits until it is told that keys may have changed.
    fn told_after(&mut self, change: impl FnOnce(&Self)) {
        self.settle();
        change(self);
        self.until(|bed| bed.told.contains(&Seen::Keys));
    }

    /// Waits until all that was done so far has been told; what is told from then on is of what
    /// is done from then on.
    fn settle(&mut self) {
        let dirs = self.config.key_dirs.iter();
        let found = dirs.filter_map(|dir| find(dir, &self.config.owners).dir);
        let mut dirs: Vec<PathBuf> = found.map(|(dir, _)| dir).collect();
        dirs.push(self.root.clone());
        // Each queue is read in order, so what was done before has been passed on when this has.
        for dir in dirs {
            let deadline = clock::mono() + PATIENCE;
            while !hears_of_a_deletion(&dir) {
                assert!(clock::mono() < deadline, "{}", dir.display());
            }
        }
        self.barrier();
        self.told.clear();
    }

    /// Sees that a change in a directory of keys is still noticed.
    fn keys_alive(&mut self, dir: &str) {
        self.told_after(|bed| bed.write(&format!("{dir}/alive.pem"), "key"));
        self.told_after(|bed| fs::remove_file(bed.path(dir).join("alive.pem")).unwrap());
    }
}

/// Makes and deletes a file here and waits for the news; `false` when there is none for a while,
/// be it that the watch was just being put up.
fn hears_of_a_deletion(dir: &Path) -> bool {
    let file = tempfile::NamedTempFile::new_in(dir).unwrap();
    let path = file.path().to_owned();
    drop(file);
    let until = clock::mono() + Duration::from_millis(200);
    while clock::mono() < until {
        if DELETED.lock().unwrap().remove(&path) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_key_that_is_dropped_in_by_a_rename_is_told() {
    let mut bed = bed();
    bed.write("new.pem", "key");
    bed.told_after(|bed| bed.rename("new.pem", "keys/new.pem"));
}

#[test]
fn a_key_that_is_written_is_told() {
    let mut bed = bed();
    bed.told_after(|bed| bed.write("keys/new.pem", "key"));
}

#[test]
fn a_link_or_a_second_name_of_a_key_is_told() {
    let mut bed = bed();
    bed.told_after(|bed| symlink("deploy.pem", bed.path("keys/link.pem")).unwrap());
    bed.told_after(|bed| {
        fs::hard_link(bed.path("keys/deploy.pem"), bed.path("keys/hard.pem")).unwrap();
    });
}

#[test]
fn a_key_that_is_deleted_renamed_or_moved_away_is_told() {
    let mut bed = bed();
    bed.told_after(|bed| bed.rename("keys/deploy.pem", "keys/other.pem"));
    bed.told_after(|bed| bed.rename("keys/other.pem", "keys/other.off"));
    bed.told_after(|bed| bed.rename("keys/other.off", "other.off"));
    bed.told_after(|bed| bed.rename("other.off", "keys/deploy.pem"));
    bed.told_after(|bed| fs::remove_file(bed.path("keys/deploy.pem")).unwrap());
}

#[test]
fn a_key_that_others_may_write_from_now_on_is_told() {
    let mut bed = bed();
    bed.told_after(|bed| bed.mode("keys/deploy.pem", 0o666));
    bed.told_after(|bed| bed.mode("keys/deploy.pem", 0o644));
}

#[test]
fn a_key_that_is_overwritten_is_told_before_it_is_closed_and_after() {
    let mut bed = bed();
    let path = bed.path("keys/deploy.pem");
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    bed.told_after(|_| file.write_all(b"yek").unwrap());
    bed.told_after(|_| drop(file));
}

#[test]
fn a_key_that_is_cut_short_is_told_though_it_stays_open() {
    let mut bed = bed();
    let path = bed.path("keys/deploy.pem");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    bed.told_after(|_| file.set_len(0).unwrap());
    drop(file);
}

#[test]
fn a_directory_of_keys_that_is_made_later_is_told_and_watched() {
    let mut bed = Bed::with(plan("a/b/keys"), |_| {});
    bed.told_after(|bed| fs::create_dir(bed.path("a")).unwrap());
    bed.told_after(|bed| fs::create_dir(bed.path("a/b")).unwrap());
    bed.told_after(|bed| fs::create_dir(bed.path("a/b/keys")).unwrap());
    bed.keys_alive("a/b/keys");
}

#[test]
fn so_is_one_that_is_moved_into_place_and_away_again() {
    let mut bed = Bed::with(plan("late"), |root| make(&root.join("early")));
    bed.told_after(|bed| bed.rename("early", "late"));
    bed.keys_alive("late");
    bed.told_after(|bed| bed.rename("late", "early"));
    bed.told_after(|bed| bed.rename("early", "late"));
    bed.keys_alive("late");
}

#[test]
fn so_is_one_that_is_deleted_and_made_again() {
    let mut bed = bed();
    for _ in 0..5 {
        bed.told_after(|bed| fs::remove_dir_all(bed.path("keys")).unwrap());
        bed.told_after(|bed| make(&bed.path("keys")));
        bed.keys_alive("keys");
    }
}

#[test]
fn so_is_one_that_takes_the_place_of_another() {
    let mut bed = Bed::with(plan("app/keys"), |root| {
        make(&root.join("app/keys"));
        make(&root.join("app.new/keys"));
        fs::create_dir(root.join("other")).unwrap();
    });
    bed.told_after(|bed| {
        bed.rename("app", "app.old");
        bed.rename("app.new", "app");
    });
    bed.keys_alive("app/keys");
    bed.told_after(|bed| {
        bed.rename("app/keys", "aside");
        bed.rename("other", "app/keys");
    });
    bed.keys_alive("app/keys");
}

#[test]
fn what_happens_in_a_directory_that_was_replaced_is_no_news() {
    let mut bed = bed();
    bed.told_after(|bed| {
        bed.rename("keys", "old");
        make(&bed.path("keys"));
    });
    bed.settle();
    bed.write("old/new.pem", "key");
    fs::remove_file(bed.path("old/deploy.pem")).unwrap();
    bed.barrier();
    assert!(!bed.told.contains(&Seen::Keys), "{:#?}", bed.told);
    bed.keys_alive("keys");
}

#[test]
fn a_link_on_the_way_to_keys_is_followed_when_it_is_swapped() {
    let mut bed = Bed::with(plan("one/hop/keys"), |root| {
        make(&root.join("r1/keys"));
        make(&root.join("r2/keys"));
        fs::create_dir(root.join("one")).unwrap();
        symlink("../hop", root.join("one/hop")).unwrap();
        symlink("r1", root.join("hop")).unwrap();
    });
    bed.keys_alive("r1/keys");
    bed.told_after(|bed| bed.link("r2", "hop"));
    bed.keys_alive("r2/keys");
    bed.told_after(|bed| bed.link("../r1", "one/hop"));
    bed.keys_alive("r1/keys");
    bed.told_after(|bed| fs::remove_file(bed.path("one/hop")).unwrap());
    bed.told_after(|bed| symlink("../r2", bed.path("one/hop")).unwrap());
    bed.keys_alive("r2/keys");
}

#[test]
fn a_directory_of_keys_that_is_a_link_is_followed_when_it_is_swapped() {
    let mut bed = Bed::with(plan("current"), |root| {
        make(&root.join("v1"));
        make(&root.join("v2"));
        symlink("v1", root.join("current")).unwrap();
    });
    for target in ["v2", "v1", "v2"] {
        bed.told_after(|bed| bed.link(target, "current"));
        bed.keys_alive(target);
    }
}

#[test]
fn the_swap_of_a_secret_in_a_cluster_is_told() {
    let mut bed = Bed::with(plan("keys"), |root| {
        make(&root.join("keys/..1"));
        make(&root.join("keys/..2"));
        symlink("..1", root.join("keys/..data")).unwrap();
        symlink("..data/deploy.pem", root.join("keys/deploy.pem")).unwrap();
    });
    bed.told_after(|bed| bed.link("..2", "keys/..data"));
}

#[test]
fn directories_that_others_may_write_are_told_of_when_that_begins_and_ends() {
    let mut bed = Bed::with(plan("up/keys"), |root| make(&root.join("up/keys")));
    for dir in ["up", "up/keys"] {
        bed.told_after(|bed| bed.mode(dir, 0o777));
        bed.told_after(|bed| bed.mode(dir, 0o755));
        bed.keys_alive("up/keys");
    }
}

#[test]
fn a_file_where_keys_should_be_is_told_of_until_it_is_a_directory() {
    let mut bed = Bed::with(plan("keys"), |root| {
        fs::write(root.join("keys"), "a file").unwrap();
    });
    bed.told_after(|bed| fs::remove_file(bed.path("keys")).unwrap());
    bed.told_after(|bed| make(&bed.path("keys")));
    bed.keys_alive("keys");
}

#[test]
fn what_stands_beside_keys_is_nothing_to_them() {
    let mut bed = bed();
    bed.settle();
    bed.write("keys.old", "");
    fs::create_dir(bed.path("keys.d")).unwrap();
    bed.write("keys.d/new.pem", "key");
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.barrier();
    assert!(!bed.told.contains(&Seen::Keys), "{:#?}", bed.told);
}

#[test]
fn keys_that_change_have_no_loadpath_read_and_no_server_yml() {
    let mut bed = bed();
    bed.told_after(|bed| bed.write("keys/new.pem", "key"));
    let keys = |seen: &Seen| *seen == Seen::Keys;
    assert!(bed.told.iter().all(keys), "{:#?}", bed.told);
}

#[test]
fn keys_may_lie_in_several_places() {
    let plan = Plan {
        key_dirs: vec!["keys", "more/keys", "keys/below"],
        ..plan("keys")
    };
    let mut bed = Bed::with(plan, |root| make(&root.join("keys")));
    bed.keys_alive("keys");
    bed.told_after(|bed| make(&bed.path("more/keys")));
    bed.told_after(|bed| make(&bed.path("keys/below")));
    for dir in ["keys", "more/keys", "keys/below"] {
        bed.keys_alive(dir);
    }
}

#[test]
fn a_loadpath_may_hold_keys() {
    let mut bed = Bed::with(plan("conf"), |_| {});
    for command in ["a", "b"] {
        bed.told.clear();
        bed.write("conf/web.yml", &child(command));
        bed.until_runs("web", command);
        bed.until(|bed| bed.told.contains(&Seen::Keys));
    }
}

#[test]
fn a_rescan_tells_of_keys_even_when_nothing_changed() {
    let mut bed = bed();
    for _ in 0..3 {
        bed.settle();
        bed.rescan();
        assert_eq!(bed.told.first(), Some(&Seen::Keys), "{:#?}", bed.told);
        let keys = bed.told.iter().filter(|seen| **seen == Seen::Keys);
        assert_eq!(keys.count(), 1);
    }
}

#[test]
fn without_directories_of_keys_nothing_is_told_of_them() {
    let mut bed = Bed::new();
    bed.rescan();
    bed.rename("conf", "old");
    bed.until(|bed| !bed.is_ready());
    bed.until_server_file();
    assert!(!bed.told.contains(&Seen::Keys), "{:#?}", bed.told);
}

#[test]
fn other_directories_of_keys_are_told_and_watched_from_then_on() {
    let mut bed = bed();
    make(&bed.path("more"));
    let config = |keys: &[&str], bed: &Bed| WatchConfig {
        key_dirs: keys.iter().map(|path| bed.path(path)).collect(),
        ..bed.config.clone()
    };
    let other = config(&["more"], &bed);
    bed.told_after(|bed| bed.watch().configure(other.clone()));
    bed.config = other;
    bed.keys_alive("more");
    bed.settle();
    bed.write("keys/new.pem", "key");
    bed.barrier();
    assert!(!bed.told.contains(&Seen::Keys), "{:#?}", bed.told);
    let none = config(&[], &bed);
    bed.told_after(|bed| bed.watch().configure(none.clone()));
    bed.config = none.clone();
    bed.settle();
    bed.watch().configure(none);
    bed.until_server_file();
    assert!(!bed.told.contains(&Seen::Keys), "{:#?}", bed.told);
}

#[test]
fn without_hints_keys_are_told_of_at_each_rescan() {
    let plan = Plan {
        rescan: Some(Duration::from_millis(20)),
        open: |_, _| Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
        ..plan("keys")
    };
    let mut bed = Bed::with(plan, |_| {});
    for _ in 0..3 {
        bed.told.clear();
        bed.until(|bed| bed.told.contains(&Seen::Keys));
    }
}

#[test]
fn what_was_lost_in_an_overflow_is_told() {
    /// A queue in which each deletion among keys drowns.
    fn overflows(mut handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
        let lossy = move |event: notify::Result<notify::Event>| {
            let lost = event.as_ref().is_ok_and(|event| event.kind.is_remove());
            if hear == Hear::Contents && lost {
                let flag = notify::event::Flag::Rescan;
                let overflow = notify::Event::new(notify::EventKind::Other).set_flag(flag);
                return handler.handle_event(Ok(overflow));
            }
            handler.handle_event(event);
        };
        source::inotify_with(lossy, hear)
    }
    let plan = Plan {
        open: overflows,
        ..plan("keys")
    };
    let mut bed = Bed::with(plan, |root| make(&root.join("keys")));
    fs::remove_file(bed.path("keys/deploy.pem")).unwrap();
    bed.until(|bed| bed.told.contains(&Seen::Keys));
    let whole = |seen: &Seen| matches!(seen, Seen::Listing(it) if it.scope == Scope::Whole);
    bed.until(|bed| bed.told.iter().any(whole));
}

/// What the shell would have in hand: all keys, with what they say.
fn read(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let path = entry.path();
        Some((path.clone(), fs::read(path).ok()?))
    };
    files.filter_map(read).collect()
}

#[test]
fn whoever_reads_keys_when_told_ends_with_what_is_there() {
    for seed in 0..10_u64 {
        let mut bed = bed();
        let (keys, aside) = (bed.path("keys"), bed.path("aside"));
        let mut known = read(&keys);
        for round in 0..100_u64 {
            let n = (seed * 7919 + round * 104_729) % 11;
            let file = keys.join(format!("k{}.pem", n % 3));
            // What cannot be done is not.
            let _ = match n {
                0..=3 => fs::write(&file, round.to_string()),
                4 | 5 => fs::remove_file(&file),
                6 => fs::rename(&file, keys.join("k0.pem")),
                7 => fs::rename(&keys, &aside),
                8 => fs::rename(&aside, &keys),
                9 => fs::remove_dir_all(&keys).and_then(|()| fs::create_dir(&keys)),
                _ => fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)),
            };
        }
        let _ = fs::create_dir(&keys);
        let deadline = clock::mono() + PATIENCE;
        while known != read(&keys) {
            assert!(clock::mono() < deadline, "seed {seed}: {known:#?}");
            if bed.next() == Seen::Keys {
                known = read(&keys);
            }
        }
    }
}

#[test]
fn a_burst_is_told_once_however_much_of_it_there_is() {
    let mut watch = ByHand::new(never_known, |root| make(&root.join("keys")));
    watch.lookout.config.key_dirs = vec![watch.root.join("keys")];
    watch.lookout.install();
    let (keys, none) = (true, Hints::default);
    let told = |watch: &mut ByHand, hints: Hints| {
        assert!(watch.lookout.settle(hints).is_ok());
        let told = std::iter::from_fn(|| watch.told.try_recv().ok());
        told.filter(|seen| *seen == Seen::Keys).count()
    };
    assert_eq!(told(&mut watch, Hints { keys, ..none() }), 1);
    let (moved, lost) = (true, true);
    let with = |hints| Hints { keys, ..hints };
    assert_eq!(told(&mut watch, with(Hints { moved, ..none() })), 1);
    assert_eq!(told(&mut watch, with(Hints { lost, ..none() })), 1);
    assert_eq!(told(&mut watch, none()), 0);
    assert_eq!(watch.lookout.next_timer(), None);
}
