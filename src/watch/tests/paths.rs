//! Loadpaths that come, go, move, are links, or are not to be trusted; and server.yml.

use std::{fs, io::Write, os::unix::fs::symlink, process::Command};

use super::{super::*, bed::*};
use crate::reconcile::listing::{Content, Entry, LoadpathState};

fn plan(loadpath: &'static str) -> Plan {
    Plan {
        loadpaths: vec![loadpath],
        ..Plan::default()
    }
}

/// Makes a directory with one child that runs `command`.
fn make(dir: &Path, command: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("web.yml"), child(command)).unwrap();
}

/// Sees that a change in the loadpath is still noticed.
fn alive(bed: &mut Bed, loadpath: &str) {
    bed.write(&format!("{loadpath}/alive.yml"), &child("alive"));
    bed.until_runs("alive", "alive");
    fs::remove_file(bed.path(loadpath).join("alive.yml")).unwrap();
    bed.until_gone("alive");
}

#[test]
fn a_loadpath_that_is_made_later_is_read_at_once() {
    let mut bed = Bed::with(plan("a/b/c"), |_| {});
    assert_eq!(*bed.state(), LoadpathState::Missing);
    fs::create_dir(bed.path("a")).unwrap();
    fs::create_dir(bed.path("a/b")).unwrap();
    make(&bed.path("a/b/c"), "one");
    bed.until_runs("web", "one");
    alive(&mut bed, "a/b/c");
}

#[test]
fn a_loadpath_that_is_moved_into_place_is_read_whole() {
    let mut bed = Bed::with(plan("late"), |root| make(&root.join("early"), "one"));
    bed.rename("early", "late");
    bed.until_runs("web", "one");
    alive(&mut bed, "late");
    bed.rename("late", "early");
    bed.until(|bed| *bed.state() == LoadpathState::Missing);
    assert!(bed.entries.is_empty());
    // What happens to it elsewhere is nothing to us; back in place it is.
    bed.write("early/web.yml", &child("two"));
    bed.rename("early", "late");
    bed.until_runs("web", "two");
    alive(&mut bed, "late");
}

#[test]
fn a_loadpath_moved_together_with_what_is_above_it_is_seen() {
    let mut bed = Bed::with(plan("app/x/conf"), |root| {
        make(&root.join("app/x/conf"), "one");
        make(&root.join("app.new/x/conf"), "two");
    });
    assert_eq!(bed.command("web"), Some("one"));
    bed.rename("app", "app.old");
    bed.rename("app.new", "app");
    bed.until_runs("web", "two");
    alive(&mut bed, "app/x/conf");
}

#[test]
fn a_loadpath_deleted_and_made_again_is_watched_again() {
    let mut bed = Bed::with(plan("conf"), |root| make(&root.join("conf"), "0"));
    for round in 1..=10 {
        fs::remove_dir_all(bed.path("conf")).unwrap();
        make(&bed.path("conf"), &round.to_string());
        bed.until_runs("web", &round.to_string());
        alive(&mut bed, "conf");
    }
    fs::remove_dir_all(bed.path("conf")).unwrap();
    bed.until(|bed| *bed.state() == LoadpathState::Missing);
    make(&bed.path("conf"), "end");
    bed.until_runs("web", "end");
}

#[test]
fn a_loadpath_that_is_a_link_is_followed_when_it_is_swapped() {
    let mut bed = Bed::with(plan("current"), |root| {
        make(&root.join("v1"), "one");
        make(&root.join("v2"), "two");
        symlink("v1", root.join("current")).unwrap();
    });
    assert_eq!(bed.command("web"), Some("one"));
    assert_eq!(bed.entries["web"].paths, [bed.path("current/web.yml")]);
    for (target, command) in [("v2", "two"), ("v1", "one"), ("v2", "two")] {
        bed.link(target, "current");
        bed.until_runs("web", command);
    }
    alive(&mut bed, "current");
    bed.write("v1/web.yml", &child("old"));
    bed.barrier_in("current");
    assert_eq!(bed.command("web"), Some("two"));
    fs::remove_file(bed.path("current")).unwrap();
    bed.until(|bed| *bed.state() == LoadpathState::Missing);
    symlink("v1", bed.path("current")).unwrap();
    bed.until_runs("web", "old");
}

#[test]
fn a_link_in_the_middle_of_the_way_is_followed_when_it_is_swapped() {
    let mut bed = Bed::with(plan("one/two/conf"), |root| {
        make(&root.join("r1/conf"), "one");
        make(&root.join("r2/conf"), "two");
        fs::create_dir(root.join("one")).unwrap();
        symlink("../hop", root.join("one/two")).unwrap();
        symlink("r1", root.join("hop")).unwrap();
    });
    assert_eq!(bed.command("web"), Some("one"));
    bed.link("r2", "hop");
    bed.until_runs("web", "two");
    bed.link("../r1", "one/two");
    bed.until_runs("web", "one");
    alive(&mut bed, "one/two/conf");
}

/// A directory as a ConfigMap is mounted, in `conf`: two versions, and links through `..data`.
fn config_map(root: &Path) {
    for (version, command) in [("..2024_01", "one"), ("..2024_02", "two")] {
        let dir = root.join("conf").join(version);
        make(&dir, command);
        fs::write(dir.join("api.yml"), child(command)).unwrap();
    }
    symlink("..2024_01", root.join("conf/..data")).unwrap();
    symlink("..data/web.yml", root.join("conf/web.yml")).unwrap();
    symlink("..data/api.yml", root.join("conf/api.yml")).unwrap();
}

/// As the kubelet swaps it.
fn swap(conf: &Path, version: &str) {
    let _ = fs::remove_file(conf.join("..data_tmp"));
    symlink(version, conf.join("..data_tmp")).unwrap();
    fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
}

#[test]
fn a_look_that_a_swap_of_links_cuts_in_two_is_taken_again() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (_keep, root) = sandbox(Disk::Usual);
    config_map(&root);
    let conf = root.join("conf");
    let torn = Arc::new(AtomicBool::new(true));
    let mut config = config(&root, &Arc::default());
    config.parse = {
        let (torn, conf) = (Arc::clone(&torn), conf.clone());
        Arc::new(move |name, path, bytes| {
            // `api` is read first; what leads to `web` is swapped before that is read.
            if name.as_str() == "api" && torn.swap(false, Ordering::SeqCst) {
                let one = bytes == child("one").as_bytes();
                swap(&conf, if one { "..2024_02" } else { "..2024_01" });
            }
            parse(path, bytes, "")
        })
    };
    let commands = |update: &Update| -> Vec<String> {
        let content = |entry: &Option<Entry>| match &entry.as_ref().unwrap().content {
            Content::Good(spec) => spec.command[0].clone(),
            other => panic!("{other:?}"),
        };
        let entries = update.entries.iter();
        entries.map(|(_, entry)| content(entry)).collect()
    };
    let mut scanner = Scanner::new(&config, never_known);
    let update = scanner.whole(Scope::Whole, Respect::Nothing);
    assert_eq!(commands(&update), ["two", "two"]);
    // And a look that a hint about `..data` leads to: the second swap falls into it.
    swap(&conf, "..2024_01");
    torn.store(true, Ordering::SeqCst);
    let hint = [((0, "..data".into()), None)].into();
    let _same_as_before = scanner.touch(hint);
    assert!(!torn.load(Ordering::SeqCst), "the swap took place");
    let names = [name("api"), name("web")].into();
    assert_eq!(commands(&scanner.recall(&names)), ["two", "two"]);
}

#[test]
fn the_swap_of_a_config_map_is_seen_whole() {
    // As the kubelet does it: links through `..data`, which is renamed over.
    let mut bed = Bed::with(plan("conf"), |root| {
        config_map(root);
        fs::rename(root.join("conf/..2024_02"), root.join("next")).unwrap();
    });
    assert_eq!(bed.command("web"), Some("one"));
    fs::create_dir(bed.path("conf/..2024_02")).unwrap();
    bed.rename("next/web.yml", "conf/..2024_02/web.yml");
    bed.rename("next/api.yml", "conf/..2024_02/api.yml");
    swap(&bed.path("conf"), "..2024_02");
    fs::remove_dir_all(bed.path("conf/..2024_01")).unwrap();
    bed.until_runs("web", "two");
    bed.until_runs("api", "two");
    // Both are told at once: nothing in between was ever true.
    let both = |seen: &Seen| matches!(seen, Seen::Listing(it) if it.entries.len() == 2);
    assert!(bed.told.iter().any(both), "{:#?}", bed.told);
    fs::remove_file(bed.path("conf/..data")).unwrap();
    bed.until(|bed| {
        bed.fault("web")
            .is_some_and(|fault| fault.contains("points to nothing"))
    });
}

#[test]
fn a_loadpath_that_others_may_write_is_a_fault_until_it_is_put_right() {
    let mut bed = Bed::with(plan("conf"), |root| make(&root.join("conf"), "one"));
    bed.mode("conf", 0o777);
    bed.until(|bed| matches!(bed.state(), LoadpathState::Unreadable(_)));
    assert!(bed.entries.is_empty());
    match bed.state() {
        LoadpathState::Unreadable(why) => {
            let help = format!("help: `chmod o-w {}`", bed.path("conf").display());
            assert!(why.ends_with(&help), "{why}");
        }
        other => panic!("{other:?}"),
    }
    // A file that comes meanwhile is not read.
    bed.write("conf/evil.yml", &child("evil"));
    let parsed = bed.parses();
    bed.rescan();
    assert!(bed.entries.is_empty() && bed.parses() == parsed);
    bed.mode("conf", 0o755);
    bed.until_runs("web", "one");
    bed.until_runs("evil", "evil");
}

#[test]
fn a_directory_above_that_others_may_write_is_a_fault_until_it_is_put_right() {
    let mut bed = Bed::with(plan("up/mid/conf"), |root| {
        make(&root.join("up/mid/conf"), "one");
    });
    bed.mode("up", 0o777);
    bed.until(|bed| matches!(bed.state(), LoadpathState::Unreadable(_)));
    bed.mode("up", 0o755);
    bed.until_runs("web", "one");
    alive(&mut bed, "up/mid/conf");
}

#[test]
fn a_sticky_directory_that_all_may_write_is_no_loadpath() {
    let bed = Bed::with(plan("conf"), |root| {
        use std::os::unix::fs::PermissionsExt;
        make(&root.join("conf"), "one");
        fs::set_permissions(root.join("conf"), fs::Permissions::from_mode(0o1777)).unwrap();
    });
    assert!(matches!(bed.state(), LoadpathState::Unreadable(_)));
    assert!(bed.entries.is_empty() && bed.parses() == 0);
}

#[test]
fn links_in_a_circle_and_files_are_no_loadpaths_until_they_are_directories() {
    let mut bed = Bed::with(plan("conf"), |root| {
        fs::remove_dir(root.join("conf")).unwrap();
        symlink("conf", root.join("conf")).unwrap();
    });
    assert!(matches!(bed.state(), LoadpathState::Unreadable(_)));
    fs::remove_file(bed.path("conf")).unwrap();
    bed.until(|bed| *bed.state() == LoadpathState::Missing);
    bed.write("conf", "a file");
    bed.until(|bed| matches!(bed.state(), LoadpathState::Unreadable(_)));
    fs::remove_file(bed.path("conf")).unwrap();
    make(&bed.path("conf"), "one");
    bed.until_runs("web", "one");
}

#[test]
fn a_loadpath_that_went_away_and_came_back_is_not_parsed_again() {
    let mut bed = Bed::with(plan("conf"), |root| make(&root.join("conf"), "one"));
    bed.until_sure();
    let parsed = bed.parses();
    bed.rename("conf", "away");
    bed.until(|bed| *bed.state() == LoadpathState::Missing);
    bed.rename("away", "conf");
    bed.until_runs("web", "one");
    assert_eq!(bed.parses(), parsed);
}

#[test]
fn a_loadpath_says_which_directory_it_is() {
    use std::os::unix::fs::MetadataExt;
    let mut bed = Bed::with(plan("conf"), |root| make(&root.join("conf"), "one"));
    let meta = fs::metadata(bed.path("conf")).unwrap();
    let (dev, ino) = (meta.dev(), meta.ino());
    assert_eq!(*bed.state(), LoadpathState::Ready { dev, ino });
    make(&bed.path("other"), "two");
    let ino = fs::metadata(bed.path("other")).unwrap().ino();
    bed.rename("conf", "away");
    bed.rename("other", "conf");
    bed.until_runs("web", "two");
    assert_eq!(*bed.state(), LoadpathState::Ready { dev, ino });
}

#[test]
fn a_checkout_to_and_fro_ends_in_what_is_checked_out() {
    if !has("git") {
        return;
    }
    let plan = Plan {
        being_written: open_for_writing_by_anybody,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    let git = |args: &[&str]| {
        let run = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-C"])
            .arg(bed.path("conf"))
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    };
    let conf = bed.path("conf");
    let write = |file: &str, command: &str| fs::write(conf.join(file), child(command)).unwrap();
    git(&["init", "-q", "-b", "one"]);
    write("web.yml", "one");
    write("same.yml", "same");
    write("only.yml", "only");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["checkout", "-q", "-b", "two"]);
    write("web.yml", "two");
    git(&["rm", "-q", "only.yml"]);
    git(&["commit", "-q", "-a", "-m", "two"]);
    let mut flips = Vec::new();
    for _ in 0..25 {
        for branch in ["one", "two"] {
            git(&["checkout", "-q", branch]);
            flips.push(branch);
        }
    }
    assert_eq!(flips.len(), 50);
    bed.until_runs("same", "same");
    bed.until_runs("web", "two");
    bed.barrier();
    assert_eq!(bed.command("web"), Some("two"));
    assert!(!bed.entries.contains_key("only"));
    for seen in &bed.told {
        if let Seen::Listing(update) = seen {
            for (_, entry) in &update.entries {
                let bad = entry.as_ref().is_some_and(|entry| {
                    matches!(entry.content, crate::reconcile::listing::Content::Bad(_))
                });
                assert!(!bad, "a half-written file was read: {update:#?}");
            }
        }
    }
}

#[test]
fn server_yml_is_told_of_however_it_is_changed() {
    let mut bed = Bed::new();
    bed.write("server.yml", "mode: half\n");
    assert_eq!(bed.next(), Seen::ServerFile);
    bed.write("server.new", "mode: full\n");
    bed.rename("server.new", "server.yml");
    assert_eq!(bed.next(), Seen::ServerFile);
    fs::remove_file(bed.path("server.yml")).unwrap();
    assert_eq!(bed.next(), Seen::ServerFile);
    bed.write("server.yml", "mode: sync\n");
    assert_eq!(bed.next(), Seen::ServerFile);
    bed.mode("server.yml", 0o666);
    assert_eq!(bed.next(), Seen::ServerFile);
}

#[test]
fn server_yml_is_not_told_of_before_it_is_closed() {
    let mut bed = Bed::new();
    let mut file = fs::File::create(bed.path("server.yml")).unwrap();
    for byte in b"mode: half" {
        file.write_all(&[*byte]).unwrap();
    }
    bed.barrier();
    assert!(bed.told.is_empty(), "{:#?}", bed.told);
    drop(file);
    assert_eq!(bed.next(), Seen::ServerFile);
}

#[test]
fn what_stands_beside_server_yml_is_nothing_to_it() {
    let mut bed = Bed::new();
    bed.write("server.yml~", "");
    bed.write("other.yml", "");
    fs::create_dir(bed.path("dir")).unwrap();
    bed.barrier();
    assert!(bed.told.is_empty(), "{:#?}", bed.told);
}

#[test]
fn server_yml_that_is_a_link_is_told_of_when_any_part_of_it_changes() {
    let mut bed = Bed::with(Plan::default(), |root| {
        fs::create_dir(root.join("v1")).unwrap();
        fs::create_dir(root.join("v2")).unwrap();
        fs::write(root.join("v1/s.yml"), "one").unwrap();
        fs::write(root.join("v2/s.yml"), "two").unwrap();
        symlink("v1", root.join("cur")).unwrap();
        fs::remove_file(root.join("server.yml")).unwrap();
        symlink("cur/s.yml", root.join("server.yml")).unwrap();
    });
    let told = Bed::until_server_file;
    bed.link("v2", "cur");
    told(&mut bed);
    bed.write("v2/s.yml", "three");
    told(&mut bed);
    bed.link("v1/s.yml", "server.yml");
    told(&mut bed);
    bed.write("v1/s.yml", "four");
    told(&mut bed);
    fs::remove_dir_all(bed.path("v1")).unwrap();
    told(&mut bed);
    fs::create_dir(bed.path("v1")).unwrap();
    bed.write("v1/s.yml", "five");
    told(&mut bed);
}

#[test]
fn a_server_yml_that_is_the_folder_of_loadpaths_is_both() {
    let mut bed = Bed::with(plan("."), |_| {});
    // `server.yml` stands in a loadpath here, so it is a (bad) child file as well.
    assert!(bed.fault("server").is_some());
    bed.write("server.yml", &child("x"));
    bed.until_runs("server", "x");
    bed.until(|bed| bed.told.contains(&Seen::ServerFile));
}
