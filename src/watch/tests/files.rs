//! Files: how they are written, what is read, and what is left alone.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::fs::{FileType, Mode, mknodat};

use super::{super::*, bed::*};
use crate::{
    reconcile::listing::{Content, LoadpathState},
    trust::tests::as_root,
};

#[test]
fn the_first_listing_is_there_when_the_watch_begins() {
    let bed = Bed::with(Plan::default(), |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
        fs::write(root.join("conf/bad.yml"), "nonsense").unwrap();
        fs::write(root.join("conf/two.yml"), child("a")).unwrap();
        fs::write(root.join("conf/two.yaml"), child("b")).unwrap();
        for ignored in [".hid.yml", "web.yml~", "x.swp", "x.yml.tmp", "README"] {
            fs::write(root.join("conf").join(ignored), "?").unwrap();
        }
    });
    let names: Vec<&str> = bed.entries.keys().map(ChildName::as_str).collect();
    assert_eq!(names, ["bad", "two", "web"]);
    assert_eq!(bed.command("web"), Some("a"));
    assert!(bed.fault("bad").unwrap().contains("no command"));
    assert!(bed.is_conflict("two"));
    assert_eq!(
        bed.entries["two"].paths,
        [bed.path("conf/two.yaml"), bed.path("conf/two.yml")]
    );
    assert!(bed.is_ready() && bed.loadpaths[0].faults.is_empty());
    assert_eq!(bed.watch().capabilities(), Capabilities::Inotify);
}

#[test]
fn a_file_is_seen_when_it_comes_changes_and_goes() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.write("conf/web.yml", &child("b"));
    bed.until_runs("web", "b");
    fs::remove_file(bed.path("conf/web.yml")).unwrap();
    bed.until_gone("web");
    let touched = |seen: &Seen| matches!(seen, Seen::Listing(it) if it.scope == Scope::Touched);
    assert!(bed.told.iter().all(touched), "{:#?}", bed.told);
}

#[test]
fn a_partial_update_speaks_of_what_changed_alone() {
    let mut bed = Bed::new();
    bed.write("conf/a.yml", &child("a"));
    bed.write("conf/b.yml", &child("b"));
    bed.until_runs("b", "b");
    bed.told.clear();
    bed.write("conf/a.yml", &child("c"));
    bed.until_runs("a", "c");
    for seen in &bed.told {
        let Seen::Listing(update) = seen else {
            panic!("{seen:?}");
        };
        assert!(
            update
                .entries
                .iter()
                .all(|(child, _)| child.as_str() == "a")
        );
    }
}

#[test]
fn a_file_renamed_into_place_is_seen_and_so_is_one_renamed_away() {
    let mut bed = Bed::new();
    bed.write("conf/.web.yml.Xy12", &child("a"));
    bed.rename("conf/.web.yml.Xy12", "conf/web.yml");
    bed.until_runs("web", "a");
    bed.rename("conf/web.yml", "conf/api.yml");
    bed.until_runs("api", "a");
    bed.until_gone("web");
    assert_eq!(bed.entries["api"].paths, [bed.path("conf/api.yml")]);
}

#[test]
fn sed_in_place_is_one_change() {
    if !has("sed") {
        return;
    }
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    let done = Command::new("sed")
        .args(["-i", "s/a$/b/"])
        .arg(bed.path("conf/web.yml"))
        .status()
        .unwrap();
    assert!(done.success());
    bed.until_runs("web", "b");
    assert!(bed.told.iter().all(|seen| match seen {
        Seen::Listing(it) => it.entries.iter().all(|(_, entry)| entry.is_some()),
        Seen::Reread { .. }
        | Seen::ServerFile
        | Seen::Keys
        | Seen::Capabilities(_)
        | Seen::Rescanned { .. } => false,
    }));
}

#[test]
fn vims_way_of_writing_ends_in_the_new_text() {
    // Backup by rename, a new file, the backup removed; and a probe called `4913`.
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.write("conf/4913", "");
    fs::remove_file(bed.path("conf/4913")).unwrap();
    bed.rename("conf/web.yml", "conf/web.yml~");
    bed.write("conf/web.yml", &child("b"));
    fs::remove_file(bed.path("conf/web.yml~")).unwrap();
    bed.until_runs("web", "b");
    bed.barrier();
    assert_eq!(bed.entries.len(), 1);
}

#[test]
fn a_second_name_for_a_file_and_a_link_to_one_are_seen_at_once() {
    let mut bed = Bed::new();
    bed.write("web", &child("a"));
    fs::hard_link(bed.path("web"), bed.path("conf/hard.yml")).unwrap();
    bed.until_runs("hard", "a");
    symlink("../web", bed.path("conf/soft.yml")).unwrap();
    bed.until_runs("soft", "a");
    assert_eq!(bed.entries["soft"].paths, [bed.path("conf/soft.yml")]);
}

/// Rewrites a file a few bytes at a time and looks what is told meanwhile.
fn rewrite_slowly(plan: Plan) {
    let mut bed = Bed::with(plan, |root| {
        fs::write(root.join("conf/web.yml"), child("old")).unwrap();
    });
    let mut file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    for byte in child("new").as_bytes() {
        file.write_all(&[*byte]).unwrap();
        bed.barrier();
        assert!(bed.told.is_empty(), "{:#?}", bed.told);
        assert_eq!(bed.command("web"), Some("old"));
    }
    drop(file);
    bed.until_runs("web", "new");
}

#[test]
fn a_file_being_rewritten_is_neither_read_nor_complained_about() {
    rewrite_slowly(Plan::default());
}

#[test]
fn so_it_is_where_there_are_no_leases() {
    rewrite_slowly(Plan {
        being_written: never_known,
        ..Plan::default()
    });
}

/// Makes a file a few bytes at a time and looks what is told meanwhile.
fn write_slowly(plan: Plan) {
    let mut bed = Bed::with(plan, |_| {});
    let mut file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    bed.barrier();
    for byte in child("new").as_bytes() {
        file.write_all(&[*byte]).unwrap();
        bed.barrier();
        assert!(bed.told.is_empty(), "{:#?}", bed.told);
    }
    drop(file);
    bed.until_runs("web", "new");
}

#[test]
fn a_new_file_is_not_listed_before_it_is_closed() {
    write_slowly(Plan::default());
}

#[test]
fn nor_is_it_where_there_are_no_leases() {
    write_slowly(Plan {
        being_written: never_known,
        ..Plan::default()
    });
}

#[test]
fn a_rescan_and_an_order_leave_a_file_alone_that_is_being_written() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("old"));
    bed.until_runs("web", "old");
    let mut file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    file.write_all(b"comm").unwrap();
    bed.rescan();
    assert_eq!(bed.command("web"), Some("old"));
    bed.reread(&["web"]);
    assert_eq!(bed.command("web"), Some("old"));
    file.write_all(b"and: new\n").unwrap();
    drop(file);
    bed.until_runs("web", "new");
}

#[test]
fn a_file_left_open_by_one_writer_is_not_read_when_another_closes_it() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("old"));
    bed.until_runs("web", "old");
    let mut slow = fs::File::create(bed.path("conf/web.yml")).unwrap();
    slow.write_all(b"comm").unwrap();
    drop(
        fs::OpenOptions::new()
            .append(true)
            .open(bed.path("conf/web.yml"))
            .unwrap(),
    );
    bed.barrier();
    assert_eq!(bed.command("web"), Some("old"));
    slow.write_all(b"and: new\n").unwrap();
    drop(slow);
    bed.until_runs("web", "new");
}

#[test]
fn a_file_that_was_removed_and_is_written_anew_is_what_it_was_until_closed() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("old"));
    bed.until_runs("web", "old");
    fs::remove_file(bed.path("conf/web.yml")).unwrap();
    bed.until_gone("web");
    let mut file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    file.write_all(b"comm").unwrap();
    bed.reread(&["web"]);
    assert_eq!(bed.command("web"), Some("old"));
    file.write_all(b"and: new\n").unwrap();
    drop(file);
    bed.until_runs("web", "new");
}

#[test]
fn what_was_removed_is_forgotten_when_its_absence_is_confirmed() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("old"));
    bed.until_runs("web", "old");
    fs::remove_file(bed.path("conf/web.yml")).unwrap();
    bed.until_gone("web");
    bed.rescan();
    let file = fs::File::create(bed.path("conf/web.yml")).unwrap();
    bed.reread(&["web"]);
    assert_eq!(bed.command("web"), None);
    drop(file);
}

#[test]
fn a_file_whose_time_is_set_after_it_was_closed_is_read() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    let mut bed = Bed::with(
        Plan {
            being_written: never_known,
            ..Plan::default()
        },
        |_| {},
    );
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 1_000_000,
            tv_nsec: 0,
        },
    };
    for round in 0..200 {
        // The kernel tells of this as it does of a write.
        bed.write("conf/web.yml", &child(&round.to_string()));
        utimensat(CWD, bed.path("conf/web.yml"), &times, AtFlags::empty()).unwrap();
    }
    bed.until_runs("web", "199");
}

#[test]
fn a_file_that_we_may_not_read_is_a_fault_until_we_may() {
    if rustix::process::geteuid().is_root() {
        println!("skipped: root may read everything");
        return;
    }
    let mut bed = Bed::new();
    bed.write("tmp", &child("a"));
    bed.mode("tmp", 0o000);
    bed.rename("tmp", "conf/web.yml");
    bed.until(|bed| bed.fault("web").is_some());
    assert!(bed.fault("web").unwrap().contains("permission denied"));
    bed.mode("conf/web.yml", 0o600);
    bed.until_runs("web", "a");
}

#[test]
fn touching_a_file_or_writing_the_same_again_tells_nothing() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.told.clear();
    bed.write("conf/web.yml", &child("a"));
    bed.mode("conf/web.yml", 0o600);
    bed.write("conf/web.yml.tmp", &child("a"));
    bed.rename("conf/web.yml.tmp", "conf/web.yml");
    bed.barrier();
    assert!(bed.told.is_empty(), "{:#?}", bed.told);
}

#[test]
fn two_files_of_one_name_conflict_until_one_is_gone() {
    let mut bed = Bed::with(
        Plan {
            loadpaths: vec!["conf", "more"],
            ..Plan::default()
        },
        |root| fs::create_dir(root.join("more")).unwrap(),
    );
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.write("more/web.yaml", &child("b"));
    bed.until(|bed| bed.is_conflict("web"));
    assert_eq!(
        bed.entries["web"].paths,
        [bed.path("conf/web.yml"), bed.path("more/web.yaml")]
    );
    fs::remove_file(bed.path("conf/web.yml")).unwrap();
    bed.until_runs("web", "b");
    bed.write("more/web.yml", &child("c"));
    bed.until(|bed| bed.is_conflict("web"));
    fs::remove_file(bed.path("more/web.yaml")).unwrap();
    bed.until_runs("web", "c");
}

#[test]
fn one_directory_under_two_names_is_all_conflicts() {
    let mut bed = Bed::with(
        Plan {
            loadpaths: vec!["conf", "again"],
            ..Plan::default()
        },
        |root| symlink("conf", root.join("again")).unwrap(),
    );
    bed.write("conf/web.yml", &child("a"));
    bed.until(|bed| bed.is_conflict("web"));
    fs::remove_file(bed.path("again")).unwrap();
    bed.until_runs("web", "a");
    bed.write("conf/web.yml", &child("b"));
    bed.until_runs("web", "b");
}

#[test]
fn what_is_no_file_is_a_fault_and_never_a_hang() {
    let mut bed = Bed::new();
    fs::create_dir(bed.path("conf/dir.yml")).unwrap();
    let rw = Mode::from_raw_mode(0o600);
    mknodat(
        rustix::fs::CWD,
        bed.path("conf/fifo.yml"),
        FileType::Fifo,
        rw,
        0,
    )
    .unwrap();
    symlink("nowhere", bed.path("conf/dangling.yml")).unwrap();
    symlink("loop.yml", bed.path("conf/loop.yml")).unwrap();
    symlink("/dev/zero", bed.path("conf/zero.yml")).unwrap();
    bed.until(|bed| bed.entries.len() == 5);
    for (child, words) in [
        ("dir", "is a directory, not a regular file"),
        ("fifo", "is a FIFO, not a regular file"),
        ("dangling", "points to nothing"),
        ("loop", "more than 40 links"),
        ("zero", "is a device, not a regular file"),
    ] {
        let fault = bed.fault(child).unwrap();
        assert!(fault.contains(words), "{child}: {fault}");
    }
    fs::remove_dir(bed.path("conf/dir.yml")).unwrap();
    bed.write("conf/dir.yml", &child("a"));
    bed.until_runs("dir", "a");
}

#[test]
fn a_hundred_megabytes_are_a_fault_and_are_not_read() {
    let mut bed = Bed::new();
    let file = fs::File::create(bed.path("conf/big.yml")).unwrap();
    file.set_len(100 << 20).unwrap();
    drop(file);
    bed.until(|bed| bed.entries.contains_key("big"));
    assert!(bed.fault("big").unwrap().contains("too large"));
    assert_eq!(bed.parses(), 0);
}

#[test]
fn a_file_that_others_may_write_is_a_fault_until_it_is_put_right() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    bed.mode("conf/web.yml", 0o666);
    bed.until(|bed| bed.fault("web").is_some());
    let fault = bed.fault("web").unwrap();
    let help = format!("help: `chmod o-w {}`", bed.path("conf/web.yml").display());
    assert!(fault.ends_with(&help), "{fault}");
    bed.mode("conf/web.yml", 0o644);
    bed.until_runs("web", "a");
}

#[test]
fn a_strangers_file_is_a_fault_until_it_is_given_to_us() {
    if !as_root("a file of somebody else's") {
        return;
    }
    let mut bed = Bed::new();
    bed.write("web.tmp", &child("evil"));
    std::os::unix::fs::chown(bed.path("web.tmp"), Some(54_321), None).unwrap();
    bed.rename("web.tmp", "conf/web.yml");
    bed.until(|bed| bed.fault("web").is_some());
    assert!(bed.fault("web").unwrap().contains("uid 54321"));
    assert_eq!(bed.parses(), 0);
    std::os::unix::fs::chown(bed.path("conf/web.yml"), Some(0), None).unwrap();
    bed.until_runs("web", "evil");
}

#[test]
fn a_name_that_no_child_can_have_is_a_fault_of_the_loadpath() {
    let mut bed = Bed::new();
    bed.write("conf/all.yml", &child("a"));
    bed.until(|bed| !bed.loadpaths[0].faults.is_empty());
    let fault = &bed.loadpaths[0].faults[0];
    assert!(fault.contains("word of the command line"), "{fault}");
    assert!(bed.entries.is_empty());
    bed.rename("conf/all.yml", "conf/every.yml");
    bed.until_runs("every", "a");
    bed.until(|bed| bed.loadpaths[0].faults.is_empty());
}

#[test]
fn faults_of_a_loadpath_are_counted_beyond_a_hundred() {
    let bed = Bed::with(Plan::default(), |root| {
        for n in 0..130 {
            fs::write(root.join(format!("conf/-{n}.yml")), "").unwrap();
        }
    });
    let faults = &bed.loadpaths[0].faults;
    assert_eq!(faults.len(), 101);
    assert!(faults[100].starts_with("30 more files"), "{}", faults[100]);
}

#[test]
fn more_files_than_are_ever_listed_are_a_fault_and_not_an_empty_loadpath() {
    let (_keep, root) = sandbox(Disk::Usual);
    for n in 0..5 {
        fs::write(root.join(format!("conf/{n}.yml")), child("a")).unwrap();
    }
    let config = config(&root, &Arc::default());
    let mut scanner = Scanner::new(&config, never_known);
    scanner.set_files_max(5);
    assert_eq!(
        scanner.whole(Scope::Whole, Respect::Nothing).entries.len(),
        5
    );
    scanner.set_files_max(4);
    let update = scanner.whole(Scope::Whole, Respect::Nothing);
    assert!(update.entries.is_empty());
    match &update.loadpaths[0].state {
        LoadpathState::Unreadable(why) => assert!(why.contains("more than 4 files"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_unchanged_file_is_opened_or_parsed_again() {
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    fn counted(_: &File) -> bool {
        OPENED.fetch_add(1, Ordering::SeqCst);
        false
    }
    let plan = Plan {
        being_written: counted,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |root| {
        for n in 0..100 {
            fs::write(root.join(format!("conf/{n}.yml")), child("a")).unwrap();
        }
        symlink("0.yml", root.join("conf/link.yml")).unwrap();
        fs::write(root.join("conf/bad.yml"), "nonsense").unwrap();
    });
    bed.until_sure();
    // An answer comes after all of the rescan, the look at server.yml included.
    bed.reread(&["none"]);
    let (opened, parsed) = (OPENED.load(Ordering::SeqCst), bed.parses());
    bed.rescan();
    bed.reread(&["0", "link", "bad"]);
    // One look at server.yml belongs to each rescan.
    assert_eq!(OPENED.load(Ordering::SeqCst), opened + 1);
    assert_eq!(bed.parses(), parsed);
    bed.write("conf/7.yml", &child("b"));
    bed.until_runs("7", "b");
    assert_eq!(bed.parses(), parsed + 1);
}

#[test]
fn unchanged_entries_share_what_was_parsed() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    let Content::Good(one) = bed.entries["web"].content.clone() else {
        panic!("good");
    };
    bed.write("conf/web.yml", &child("a"));
    bed.rescan();
    let Content::Good(other) = &bed.entries["web"].content else {
        panic!("good");
    };
    assert!(Arc::ptr_eq(&one, other));
}

#[test]
fn a_file_changed_within_a_tick_of_its_reading_is_read_again_at_the_next_look() {
    // The same size, and a time that may be the same: only the second look can tell.
    let mut bed = Bed::with(
        Plan {
            open: |_, _| Err(notify::Error::generic("no hints in this test")),
            ..Plan::default()
        },
        |_| {},
    );
    for round in 0..50 {
        let text = format!("{round:03}");
        bed.write("conf/web.yml", &child(&text));
        bed.rescan();
        assert_eq!(bed.command("web"), Some(text.as_str()));
    }
}

#[test]
fn an_order_to_read_answers_for_each_name() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.write("conf/two.yml", &child("a"));
    bed.write("conf/two.yaml", &child("a"));
    let update = bed.reread(&["web", "two", "none"]);
    assert_eq!(update.scope, Scope::Touched);
    let found: Vec<_> = update
        .entries
        .iter()
        .map(|(name, entry)| (name.as_str(), entry.as_ref().map(|entry| entry.paths.len())))
        .collect();
    assert_eq!(found, [("none", None), ("two", Some(2)), ("web", Some(1))]);
}
