//! Which files are keys, and when.

use super::*;

#[test]
fn a_key_that_is_dropped_in_works_at_once() {
    let bed = Bed::new();
    assert!(bed.is_unknown("deploy"));
    let path = bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    assert_eq!(key.name(), &name("deploy"));
    assert_eq!(key.path(), path);
    assert_eq!(key.public().bits(), 2048);
    assert_eq!(key.public().fingerprint(), &pair(0).fingerprint);
    assert_eq!(key.scope(), &Scope::everything());
}

#[test]
fn a_key_that_did_not_change_is_the_same_at_each_look() {
    let bed = Bed::new();
    bed.put("deploy.pub.pem", pem());
    let key = bed.find("deploy");
    for _ in 0..3 {
        assert!(Arc::ptr_eq(&key, &bed.find("deploy")));
        bed.ring.refresh();
    }
    assert!(bed.ring.is_current(&key));
    // The same content written anew is the same key.
    bed.put("deploy.pub.pem", pem());
    assert!(Arc::ptr_eq(&key, &bed.find("deploy")));
}

#[test]
fn a_deleted_key_is_refused_at_the_next_look() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    bed.remove("deploy.pem");
    assert!(bed.is_unknown("deploy"));
    assert!(!bed.ring.is_current(&key));
    bed.put("deploy.pem", pem());
    assert!(bed.ring.is_current(&key));
}

#[test]
fn a_renamed_key_has_its_new_name_alone() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    fs::rename(bed.path("deploy.pem"), bed.path("release.pem")).unwrap();
    assert!(bed.is_unknown("deploy") && bed.finds("release"));
    assert!(!bed.ring.is_current(&key));
    fs::rename(bed.path("release.pem"), bed.path("release.pem.off")).unwrap();
    assert!(bed.is_unknown("release"));
}

#[test]
fn a_key_that_was_replaced_is_another_key() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let old = bed.find("deploy");
    bed.put("deploy.pem", other_pem());
    let new = bed.find("deploy");
    assert_eq!(new.public().fingerprint(), &pair(1).fingerprint);
    assert!(!bed.ring.is_current(&old) && bed.ring.is_current(&new));
}

#[test]
fn a_key_that_is_written_in_place_within_one_tick_of_the_clock_is_read_again() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    for round in 0..50 {
        let which = round % 2;
        // Of the same size, the same inode, and most likely of the same time.
        fs::write(bed.path("deploy.pem"), &pair(which).public_pem).unwrap();
        let key = bed.find("deploy");
        assert_eq!(key.public().fingerprint(), &pair(which).fingerprint);
    }
}

#[test]
fn a_key_whose_old_time_was_set_back_is_read_again() {
    let bed = Bed::new();
    let path = bed.put("deploy.pem", pem());
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    bed.find("deploy");
    fs::write(&path, other_pem()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    let key = bed.find("deploy");
    assert_eq!(key.public().fingerprint(), &pair(1).fingerprint);
}

#[test]
fn a_key_that_others_can_write_is_refused_at_once() {
    let bed = Bed::new();
    let path = bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    mode(&path, 0o666);
    let why = bed.why("deploy");
    assert!(why.starts_with("key `deploy` is not used: `"), "{why}");
    assert!(
        why.contains("everybody may write the file (mode 0666"),
        "{why}"
    );
    assert!(why.contains("\nhelp: `chmod o-w "), "{why}");
    assert!(!bed.ring.is_current(&key));
    mode(&path, 0o644);
    assert!(bed.ring.is_current(&key));
}

#[test]
fn a_key_that_was_given_to_somebody_else_is_refused_at_once() {
    if !as_root("giving a file away") {
        return;
    }
    let bed = Bed::new();
    let path = bed.put("deploy.pem", pem());
    assert!(bed.finds("deploy"));
    chown(&path, Some(STRANGER), None).unwrap();
    let why = bed.why("deploy");
    assert!(why.contains("the file belongs to `54321`"), "{why}");
    assert!(why.contains("`trusted_owners: [54321]`"), "{why}");
    let owners = Owners::new(&[STRANGER.to_string()]).unwrap();
    bed.ring.configure(vec![bed.dir.clone()], owners);
    assert!(bed.finds("deploy"));
}

#[test]
fn a_private_key_that_lies_there_is_refused_loudly() {
    let bed = Bed::new();
    bed.put("deploy.pem", &pair(0).private_pem);
    bed.put("other.pem", pem());
    let fault = bed.fault();
    assert!(fault.starts_with("key `deploy` is not used: `"), "{fault}");
    assert!(
        fault.contains("PRIVATE KEY") && fault.contains("hint:"),
        "{fault}"
    );
    assert!(
        !fault.contains("-----BEGIN") && !fault.contains("MII"),
        "{fault}"
    );
    assert!(!bed.finds("deploy") && bed.finds("other"));
    assert_eq!(bed.why("deploy"), fault);
}

#[test]
fn a_private_key_and_its_public_half_side_by_side_give_no_key() {
    // Both are called `deploy`, as `keygen` names them.
    let bed = Bed::new();
    bed.put("deploy.pem", &pair(0).private_pem);
    bed.put("deploy.pub.pem", pem());
    assert!(bed.why("deploy").contains("several files have its name"));
}

#[test]
fn two_files_with_one_key_name_give_no_key_and_the_fault_names_both() {
    let bed = Bed::new();
    let one = bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    let two = bed.put("deploy.pub.pem", pem());
    let expected = format!(
        "key `deploy` is not used: several files have its name: `{}`, `{}`\n\
         help: keep one of them, or give the others another name",
        one.display(),
        two.display()
    );
    assert_eq!(bed.why("deploy"), expected);
    assert_eq!(bed.fault(), expected);
    assert!(!bed.ring.is_current(&key));
    bed.remove("deploy.pub.pem");
    assert!(bed.ring.is_current(&key));
}

#[test]
fn even_a_bad_second_file_of_a_name_makes_the_key_unusable() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    bed.put("deploy.pub.pem", "");
    assert!(!bed.finds("deploy"));
}

#[test]
fn a_key_name_never_becomes_a_path() {
    let bed = Bed::new();
    let elsewhere = bed.dir("elsewhere");
    put(&elsewhere, "deploy.pem", pem());
    bed.put("mine.pem", pem());
    for text in [
        "../elsewhere/deploy",
        "/etc/deploy",
        "./mine",
        "mine\0",
        "",
        ".",
        "..",
    ] {
        assert!(text.parse::<KeyName>().is_err(), "{text:?}");
    }
    // What is a name, and also a part of another file's.
    for text in [
        "mine.pem",
        "mine.pub",
        "Mine",
        "MINE",
        "min",
        "keys",
        "elsewhere",
        "mine.",
    ] {
        assert!(bed.is_unknown(text), "{text}");
    }
    assert!(bed.finds("mine"));
}

#[test]
fn a_name_of_nothing_leaves_no_trace() {
    let bed = Bed::new();
    for number in 0..1_000 {
        assert!(bed.is_unknown(&format!("key-{number}")));
    }
    assert!(bed.ring.lock().known.is_empty());
}

#[test]
fn only_files_that_are_called_pem_are_keys() {
    let bed = Bed::new();
    for file in [
        ".deploy.pem",
        "deploy.pem~",
        "deploy.pem.swp",
        "deploy.PEM",
        "deploy.pub",
        "deploy.key",
        "deploy",
        "README.md",
        "..data",
    ] {
        bed.put(file, pem());
    }
    let changes = bed.ring.refresh();
    assert!(
        changes.taken_up.is_empty() && changes.faults.is_empty(),
        "{changes:?}"
    );
}

#[test]
fn a_file_whose_name_gives_no_key_name_is_a_fault() {
    let bed = Bed::new();
    bed.put("-k.pem", pem());
    bed.put("a b.pem", pem());
    bed.put(&format!("{}.pem", "x".repeat(65)), pem());
    bed.put("b\u{1b}[2J.pem", pem());
    bed.put("good.pem", pem());
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.taken_up), ["good"]);
    assert_eq!(changes.faults.len(), 4);
    for fault in &changes.faults {
        assert!(
            fault.contains("is not used: ") && fault.contains("\nhelp: "),
            "{fault}"
        );
        assert!(!fault.contains('\u{1b}'), "{fault:?}");
    }
}

#[test]
fn what_is_no_file_gives_no_key_and_hangs_nobody() {
    let bed = Bed::new();
    fs::create_dir(bed.path("dir.pem")).unwrap();
    symlink("nothing", bed.path("dangling.pem")).unwrap();
    symlink("round.pem", bed.path("round.pem")).unwrap();
    symlink("/dev/zero", bed.path("zero.pem")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, bed.path("fifo.pem"), fifo, mode, 0).unwrap();
    for (key, why) in [
        ("dir", "is a directory, not a regular file"),
        ("dangling", "points to nothing"),
        ("round", "leads through more than"),
        ("zero", "is a device"),
        ("fifo", "is a FIFO"),
    ] {
        assert!(bed.why(key).contains(why), "{}", bed.why(key));
    }
    assert_eq!(bed.ring.refresh().faults.len(), 5);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let bed = Bed::new();
    bed.put("deploy.pem", &format!("{}{}", pem(), " ".repeat(1 << 20)));
    assert!(
        bed.why("deploy").contains("is too large"),
        "{}",
        bed.why("deploy")
    );
}

#[test]
fn a_key_that_is_half_written_is_a_fault_until_it_is_whole() {
    let bed = Bed::new();
    for len in [0, 1, 27, 100, pem().len() / 2] {
        fs::write(bed.path("deploy.pem"), &pem()[..len]).unwrap();
        assert!(!bed.finds("deploy"), "{len}");
        assert_eq!(bed.ring.refresh().faults.len(), 1);
    }
    fs::write(bed.path("deploy.pem"), pem()).unwrap();
    assert!(bed.finds("deploy"));
    assert!(bed.ring.refresh().faults.is_empty());
}

#[test]
fn a_key_that_somebody_has_open_for_writing_is_not_taken_up_until_he_closes_it() {
    let mut bed = Bed::new();
    fn by_name(file: &fs::File) -> bool {
        let path = fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(file)
        ));
        path.unwrap().with_extension("busy").exists()
    }
    bed.ring = Ring::new(vec![bed.dir.clone()], us()).with_writers_seen(by_name);
    bed.put("deploy.pem", pem());
    bed.put("deploy.busy", "");
    assert!(bed.why("deploy").ends_with("deploy.pem` is being written"));
    bed.remove("deploy.busy");
    assert!(bed.finds("deploy"));
}

#[test]
fn a_link_to_a_key_counts_as_long_as_its_whole_way_is_trusted() {
    let bed = Bed::new();
    let store = bed.dir("store");
    put(&store, "one", pem());
    put(&store, "two", other_pem());
    symlink("../store/one", bed.path("deploy.pem")).unwrap();
    let key = bed.find("deploy");
    assert_eq!(key.path(), bed.path("deploy.pem"));
    mode(&store, 0o777);
    assert!(bed.why("deploy").contains("may write the directory"));
    mode(&store, 0o755);
    assert!(bed.ring.is_current(&key));
    // Another content behind the same link.
    put(&store, "one", other_pem());
    assert!(!bed.ring.is_current(&key));
    fs::remove_file(store.join("one")).unwrap();
    assert!(bed.why("deploy").contains("points to nothing"));
}

#[test]
fn a_swap_of_the_directory_behind_all_links_is_noticed() {
    // As a ConfigMap is mounted: `deploy.pem -> ..data/deploy.pem`, `..data -> ..1`.
    let bed = Bed::new();
    for (dir, text) in [("..1", pem()), ("..2", other_pem())] {
        fs::create_dir(bed.path(dir)).unwrap();
        put(&bed.path(dir), "deploy.pem", text);
    }
    symlink("..1", bed.path("..data")).unwrap();
    symlink("..data/deploy.pem", bed.path("deploy.pem")).unwrap();
    let old = bed.find("deploy");
    symlink("..2", bed.path("..data_tmp")).unwrap();
    fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    assert!(!bed.ring.is_current(&old));
    let new = bed.find("deploy");
    assert_eq!(new.public().fingerprint(), &pair(1).fingerprint);
}

#[test]
fn a_key_being_replaced_all_the_time_is_always_one_or_the_other() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut which = [1, 0].into_iter().cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bed.put("deploy.pem", &pair(which.next().unwrap()).public_pem);
                thread::yield_now();
            }
        });
        for _ in 0..300 {
            match bed.ring.find(&name("deploy")) {
                Ok(key) => assert!(
                    [0, 1]
                        .map(|which| &pair(which).fingerprint)
                        .contains(&key.public().fingerprint())
                ),
                // The directory or the file changed faster than it was looked at.
                Err(missing) => assert!(
                    ["changes faster", "is gone", "no key file"]
                        .iter()
                        .any(|why| missing.to_string().contains(why)),
                    "{missing}"
                ),
            }
            bed.ring.refresh();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(bed.finds("deploy"));
}
