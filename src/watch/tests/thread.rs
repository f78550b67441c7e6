//! The thread: its orders, its timer, its end, and what it does without hints.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use super::{super::*, bed::*};
use crate::trust::tests::as_root;

fn refused() -> Plan {
    Plan {
        open: |_, _| {
            Err(notify::Error::io(std::io::Error::from(
                rustix::io::Errno::MFILE,
            )))
        },
        ..Plan::default()
    }
}

#[test]
fn a_rescan_is_told_even_when_nothing_changed() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    for _ in 0..3 {
        bed.told.clear();
        bed.rescan();
        let Some(Seen::Listing(update)) = bed.told.first() else {
            panic!("{:#?}", bed.told);
        };
        assert_eq!((update.scope, update.entries.len()), (Scope::Confirming, 1));
    }
}

#[test]
fn without_hints_changes_are_seen_by_rescan_and_that_is_said() {
    let plan = Plan {
        rescan: Some(Duration::from_millis(50)),
        ..refused()
    };
    let mut bed = Bed::with(plan, |_| {});
    let text = bed.watch().capabilities().to_string();
    assert!(text.starts_with("rescan only: "), "{text}");
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
    fs::remove_dir_all(bed.path("conf")).unwrap();
    bed.until(|bed| !bed.is_ready());
    bed.write("server.yml", "changed");
    bed.until(|bed| bed.told.contains(&Seen::ServerFile));
    let confirming = |seen: &Seen| match seen {
        Seen::Listing(update) => update.scope == Scope::Confirming,
        Seen::Reread { .. }
        | Seen::ServerFile
        | Seen::Keys
        | Seen::Capabilities(_)
        | Seen::Rescanned { .. } => true,
    };
    assert!(bed.told.iter().all(confirming), "{:#?}", bed.told);
}

#[test]
fn hints_that_are_to_be_had_again_are_used_again_and_that_is_told() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static FREE: AtomicBool = AtomicBool::new(false);
    let plan = Plan {
        open: |handler, hear| match FREE.load(Ordering::SeqCst) {
            true => source::inotify(handler, hear),
            false => Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
        },
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    FREE.store(true, Ordering::SeqCst);
    bed.rescan();
    let told = Seen::Capabilities(Capabilities::Inotify);
    assert!(bed.told.contains(&told), "{:#?}", bed.told);
    assert_eq!(bed.watch().capabilities(), Capabilities::Inotify);
    bed.write("conf/web.yml", &child("a"));
    bed.until_runs("web", "a");
}

#[test]
fn the_timer_rescans_and_no_timer_does_not() {
    let plan = Plan {
        rescan: Some(Duration::from_millis(20)),
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    let confirming =
        |seen: &Seen| matches!(seen, Seen::Listing(it) if it.scope == Scope::Confirming);
    for _ in 0..3 {
        assert!(confirming(&bed.next()));
        assert_eq!(bed.next(), Seen::ServerFile);
    }
    let config = WatchConfig {
        rescan: None,
        ..bed.config.clone()
    };
    bed.watch().configure(config);
    let whole = |seen: &Seen| matches!(seen, Seen::Listing(it) if it.scope == Scope::Whole);
    while !whole(&bed.next()) {}
    bed.until_server_file();
    bed.told.clear();
    // A few of its former periods.
    let until = clock::mono() + Duration::from_millis(100);
    while clock::mono() < until {
        bed.barrier();
    }
    assert!(bed.told.is_empty(), "{:#?}", bed.told);
}

#[test]
fn orders_are_answered_in_the_order_they_were_given() {
    let mut bed = Bed::new();
    for token in 0..50 {
        bed.watch().reread(token, [name("web")].into());
        if token % 10 == 0 {
            bed.watch().rescan(0);
        }
    }
    let mut tokens = Vec::new();
    while tokens.len() < 50 {
        if let Seen::Reread { token, .. } = bed.next() {
            tokens.push(token);
        }
    }
    assert_eq!(tokens, (0..50).collect::<Vec<_>>());
}

#[test]
fn an_order_that_finds_the_loadpath_elsewhere_reads_it_there() {
    let mut bed = Bed::with(refused(), |_| {});
    bed.rename("conf", "old");
    fs::create_dir(bed.path("conf")).unwrap();
    bed.write("conf/web.yml", &child("new"));
    let update = bed.reread(&["web"]);
    assert!(update.entries[0].1.is_some());
    let first = bed.told.first();
    assert!(
        matches!(first, Some(Seen::Listing(it)) if it.scope == Scope::Whole),
        "{first:#?}"
    );
}

#[test]
fn another_configuration_is_read_whole() {
    let mut bed = Bed::with(Plan::default(), |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
        fs::create_dir(root.join("more")).unwrap();
        fs::write(root.join("more/api.yml"), child("b")).unwrap();
    });
    bed.until_sure();
    let parsed = bed.parses();
    let mut config = WatchConfig {
        loadpaths: vec![bed.path("more"), bed.path("conf")],
        ..bed.config.clone()
    };
    bed.watch().configure(config.clone());
    bed.until_runs("api", "b");
    assert_eq!(bed.command("web"), Some("a"));
    assert_eq!(bed.loadpaths[0].path, bed.path("more"));
    // What was known is not read again.
    assert_eq!(bed.parses(), parsed + 1);
    bed.write("more/new.yml", &child("c"));
    bed.until_runs("new", "c");
    // Other defaults: everything is.
    config.parse = parser(&bed.parses, "defaults");
    bed.watch().configure(config.clone());
    bed.until(|bed| {
        bed.entries.values().all(|entry| match &entry.content {
            crate::reconcile::listing::Content::Good(spec) => spec.command[1] == "defaults",
            crate::reconcile::listing::Content::Bad(_)
            | crate::reconcile::listing::Content::Conflict => false,
        })
    });
    assert_eq!(bed.entries.len(), 3);
    // A loadpath that was taken out is listed no more and watched no more.
    config.loadpaths = vec![bed.path("more")];
    bed.watch().configure(config);
    bed.until_gone("web");
    bed.until_server_file();
    bed.told.clear();
    bed.write("conf/web.yml", &child("z"));
    bed.barrier_in("more");
    assert!(bed.told.is_empty(), "{:#?}", bed.told);
}

#[test]
fn other_owners_have_everything_checked_again() {
    if !as_root("a file of somebody else's") {
        return;
    }
    let mut bed = Bed::with(Plan::default(), |root| {
        let web = root.join("conf/web.yml");
        fs::write(&web, child("a")).unwrap();
        fs::set_permissions(&web, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&web, Some(54_321), None).unwrap();
    });
    assert!(bed.fault("web").is_some());
    bed.until_sure();
    let config = WatchConfig {
        owners: Owners::new(&["54321".to_owned()]).unwrap(),
        ..bed.config.clone()
    };
    bed.watch().configure(config);
    bed.until_runs("web", "a");
    bed.watch().configure(bed.config.clone());
    bed.until(|bed| bed.fault("web").is_some());
}

#[test]
fn another_server_file_is_watched_from_then_on() {
    let mut bed = Bed::new();
    bed.write("other.yml", "");
    let config = WatchConfig {
        server_file: bed.path("other.yml"),
        ..bed.config.clone()
    };
    bed.watch().configure(config);
    bed.until_server_file();
    bed.told.clear();
    bed.write("server.yml", "nobody cares");
    bed.barrier();
    let told = bed
        .told
        .iter()
        .filter(|seen| **seen == Seen::ServerFile)
        .count();
    bed.write("other.yml", "changed");
    bed.until(|bed| {
        bed.told
            .iter()
            .filter(|seen| **seen == Seen::ServerFile)
            .count()
            > told
    });
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let mut bed = Bed::new();
    let watch = bed.watch.take().unwrap();
    let other = watch.clone();
    drop(watch);
    other.rescan(9);
    assert!(matches!(bed.next(), Seen::Listing(_)));
    assert_eq!(bed.next(), Seen::ServerFile);
    assert_eq!(bed.next(), Seen::Rescanned { token: 9 });
    drop(other);
    let end = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, bed.seen.recv()).await });
    assert_eq!(end.unwrap(), None);
}

#[test]
fn a_shell_that_does_not_listen_for_a_while_misses_nothing_in_the_end() {
    let mut bed = Bed::new();
    // Far more changes than the queue holds, each a listing of its own if it is told.
    for round in 0..SEEN_MAX * 8 {
        bed.write(
            &format!("conf/c{}.yml", round % 7),
            &child(&round.to_string()),
        );
        bed.watch().reread(0, [name("c0")].into());
    }
    let last = |n: usize| (0..SEEN_MAX * 8).rev().find(|round| round % 7 == n);
    for n in 0..7 {
        let command = last(n).unwrap().to_string();
        bed.until_runs(&format!("c{n}"), &command);
    }
}
