//! The directories that keys are taken from, and the way to them.

use super::*;

#[test]
fn a_key_directory_that_others_can_write_gives_no_key() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    for bits in [0o777, 0o1777, 0o757] {
        mode(&bed.dir, bits);
        let why = bed.why("deploy");
        assert!(
            why.starts_with("no key file has the name `deploy` where"),
            "{why}"
        );
        assert!(why.contains("may write the directory"), "{why}");
        assert!(!bed.ring.is_current(&key));
        let fault = bed.fault();
        assert!(fault.starts_with("no key is taken from `"), "{fault}");
        assert!(fault.contains("\nhelp: `chmod o-w "), "{fault}");
    }
    mode(&bed.dir, 0o755);
    assert!(bed.ring.is_current(&key));
    assert!(bed.ring.refresh().faults.is_empty());
}

#[test]
fn a_directory_on_the_way_that_others_can_write_gives_no_key() {
    let mut bed = Bed::new();
    let above = bed.dir("above");
    let dir = above.join("keys");
    fs::create_dir(&dir).unwrap();
    mode(&dir, 0o755);
    put(&dir, "deploy.pem", pem());
    bed.ring = Ring::new(vec![dir], us());
    assert!(bed.finds("deploy"));
    mode(&above, 0o777);
    assert!(!bed.finds("deploy"));
    mode(&above, 0o755);
    assert!(bed.finds("deploy"));
}

#[test]
fn a_key_directory_of_somebody_else_gives_no_key() {
    if !as_root("giving a directory away") {
        return;
    }
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    chown(&bed.dir, Some(STRANGER), None).unwrap();
    assert!(bed.fault().contains("the directory belongs to `54321`"));
    assert!(!bed.finds("deploy"));
}

#[test]
fn swapping_a_directory_link_is_noticed() {
    let mut bed = Bed::new();
    let (one, two) = (bed.dir("one"), bed.dir("two"));
    put(&one, "deploy.pem", pem());
    put(&two, "deploy.pem", other_pem());
    put(&two, "more.pem", pem());
    let link = bed.root.join("current");
    symlink("one", &link).unwrap();
    bed.ring = Ring::new(vec![link.clone()], us());
    let old = bed.find("deploy");
    assert_eq!(old.path(), link.join("deploy.pem"));
    symlink("two", bed.root.join("next")).unwrap();
    fs::rename(bed.root.join("next"), &link).unwrap();
    assert!(!bed.ring.is_current(&old));
    assert_eq!(
        bed.find("deploy").public().fingerprint(),
        &pair(1).fingerprint
    );
    assert!(bed.finds("more"));
}

#[test]
fn a_directory_that_is_replaced_by_another_is_noticed() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    assert!(bed.finds("deploy"));
    let other = bed.dir("other");
    put(&other, "release.pem", pem());
    fs::rename(&bed.dir, bed.root.join("old")).unwrap();
    fs::rename(&other, &bed.dir).unwrap();
    assert!(bed.is_unknown("deploy") && bed.finds("release"));
}

#[test]
fn a_directory_that_is_missing_is_noted_and_works_as_soon_as_it_is_there() {
    let mut bed = Bed::new();
    let later = bed.root.join("later");
    bed.ring = Ring::new(vec![bed.dir.clone(), later.clone()], us());
    bed.put("deploy.pem", pem());
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.taken_up), ["deploy"]);
    assert!(changes.faults.is_empty());
    let note = format!(
        "no key is taken from `{0}`: `{0}` does not exist",
        later.display()
    );
    assert_eq!(changes.notes, std::slice::from_ref(&note));
    assert_eq!(changes.new_notes, changes.notes);
    assert_eq!(bed.ring.survey().notes, [note]);
    assert!(bed.ring.refresh().new_notes.is_empty());
    fs::create_dir(&later).unwrap();
    mode(&later, 0o755);
    put(&later, "release.pem", pem());
    assert!(bed.finds("release"));
    assert!(bed.ring.refresh().notes.is_empty());
}

#[test]
fn a_directory_that_goes_takes_its_keys_along() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    fs::remove_dir_all(&bed.dir).unwrap();
    assert!(!bed.finds("deploy"));
    let changes = bed.ring.refresh();
    assert!(
        changes
            .dropped
            .iter()
            .any(|dropped| Arc::ptr_eq(dropped, &key))
    );
    assert!(bed.ring.survey().keys.is_empty());
}

/// Whoever configures is the core's thread, and what he takes out may be the very disk.
#[test]
fn other_directories_do_not_wait_for_a_disk_that_does_not_answer() {
    static DISK: Mutex<()> = Mutex::new(());
    static ASKED: Mutex<Option<mpsc::Sender<()>>> = Mutex::new(None);
    fn hangs(_: &fs::File) -> bool {
        if let Some(asked) = ASKED.lock().unwrap().take() {
            asked.send(()).unwrap();
        }
        drop(DISK.lock().unwrap());
        false
    }
    let mut bed = Bed::new();
    bed.put("deploy.pem", pem());
    let other = bed.dir("other");
    put(&other, "release.pem", other_pem());
    let ring = Ring::new(vec![bed.dir.clone()], us()).with_writers_seen(hangs);
    bed.ring = ring;
    let (asked_in, asked) = mpsc::channel();
    *ASKED.lock().unwrap() = Some(asked_in);
    let disk = DISK.lock().unwrap();
    thread::scope(|scope| {
        let bed = &bed;
        let look = scope.spawn(|| bed.ring.find(&name("deploy")).map(drop));
        asked.recv_timeout(TIME_MAX).unwrap();
        let (done_in, done) = mpsc::channel();
        scope.spawn(move || {
            bed.ring.configure(vec![other], us());
            done_in.send(()).unwrap();
        });
        let done = done.recv_timeout(Duration::from_secs(5));
        drop(disk);
        assert_eq!(done, Ok(()));
        assert_eq!(look.join().unwrap(), Ok(()));
    });
    assert!(bed.is_unknown("deploy") && bed.finds("release"));
    assert_eq!(names(&bed.ring.refresh().dropped), ["deploy"]);
}

#[test]
fn what_is_no_directory_or_not_absolute_is_a_fault() {
    let mut bed = Bed::new();
    let file = bed.put("file", "");
    bed.ring = Ring::new(vec![file, PathBuf::from("keys")], us());
    let faults = bed.ring.refresh().faults;
    assert!(
        faults[0].contains("is a file, not a directory"),
        "{faults:?}"
    );
    assert!(faults[1].contains("is not absolute"), "{faults:?}");
}

#[test]
fn keys_of_several_directories_are_known_and_a_bad_one_harms_only_its_own() {
    let mut bed = Bed::new();
    let (good, bad) = (bed.dir("good"), bed.dir("bad"));
    bed.ring = Ring::new(vec![bed.dir.clone(), bad.clone(), good.clone()], us());
    bed.put("a.pem", pem());
    put(&bad, "b.pem", pem());
    put(&good, "c.pem", other_pem());
    mode(&bad, 0o777);
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.taken_up), ["a", "c"]);
    assert_eq!(changes.faults.len(), 1);
    assert!(bed.why("b").contains("no key is taken from"));
    mode(&bad, 0o755);
    assert_eq!(names(&bed.ring.refresh().taken_up), ["b"]);
    assert_eq!(names(&bed.ring.survey().keys), ["a", "b", "c"]);
}

#[test]
fn one_name_in_two_directories_gives_no_key() {
    let mut bed = Bed::new();
    let other = bed.dir("other");
    bed.ring = Ring::new(vec![bed.dir.clone(), other.clone()], us());
    bed.put("deploy.pem", pem());
    assert!(bed.finds("deploy"));
    let two = put(&other, "deploy.pub.pem", other_pem());
    let why = bed.why("deploy");
    assert!(why.contains("several files have its name"), "{why}");
    assert!(
        why.contains(&*bed.path("deploy.pem").to_string_lossy()),
        "{why}"
    );
    assert!(why.contains(&*two.to_string_lossy()), "{why}");
}

#[test]
fn one_directory_under_two_paths_is_taken_once() {
    let mut bed = Bed::new();
    let link = bed.root.join("link");
    symlink("keys", &link).unwrap();
    bed.put("deploy.pem", pem());
    bed.ring = Ring::new(vec![bed.dir.clone(), link], us());
    assert_eq!(bed.find("deploy").path(), bed.path("deploy.pem"));
    assert!(bed.fault().contains("is the same directory as"));
}

#[test]
fn a_directory_with_too_many_files_gives_no_key() {
    let bed = Bed::new();
    bed.set(Bounds {
        files_max: 3,
        ..Bounds::default()
    });
    for file in ["a.pem", "b.pem", "README"] {
        bed.put(file, pem());
    }
    assert!(bed.finds("a"));
    bed.put("c.txt", "");
    let why = bed.why("a");
    assert!(why.contains("holds more than 3 files"), "{why}");
    bed.remove("c.txt");
    assert!(bed.finds("a"));
}

#[test]
fn no_more_directories_than_the_limit_are_looked_into() {
    let mut bed = Bed::new();
    let mut dirs: Vec<PathBuf> = (0..KEY_DIRS_MAX)
        .map(|i| bed.dir(&format!("d{i}")))
        .collect();
    dirs.push(bed.dir.clone());
    bed.put("deploy.pem", pem());
    put(&dirs[KEY_DIRS_MAX - 1], "last.pem", pem());
    bed.ring = Ring::new(dirs, us());
    assert!(bed.finds("last") && !bed.finds("deploy"));
    assert!(bed.fault().contains("the directories after it"));
}

#[test]
fn directories_that_are_configured_anew_are_looked_into_at_the_next_look() {
    let bed = Bed::new();
    let other = bed.dir("other");
    bed.put("deploy.pem", pem());
    put(&other, "release.pem", pem());
    let key = bed.find("deploy");
    bed.ring.configure(vec![other.clone()], us());
    assert!(!bed.ring.is_current(&key) && bed.finds("release"));
    bed.ring.configure(vec![bed.dir.clone(), other], us());
    assert!(bed.ring.is_current(&key));
    bed.ring.configure(Vec::new(), us());
    assert!(bed.is_unknown("deploy") && bed.is_unknown("release"));
}
