//! Many files, many changes, and races: in the end the listing is what is there.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use notify::{EventHandler, RecommendedWatcher};

use super::{
    super::{settle::Hear, source::Handler, *},
    bed::*,
};
use crate::reconcile::listing::{Content, Entry};

/// A small generator of numbers, so that a failing seed can be tried again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX constants; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Does one thing to the tree; what cannot be done is not.
fn disturb(root: &Path, random: &mut Random) {
    let n = random.below(5);
    let file = root.join("conf").join(format!("c{n}.yml"));
    let text = child(&random.below(1000).to_string());
    let (conf, aside) = (root.join("conf"), root.join("aside"));
    let _ = match random.below(14) {
        0..=3 => fs::write(&file, text),
        4 => fs::write(root.join("tmp"), text).and_then(|()| fs::rename(root.join("tmp"), &file)),
        5 | 6 => fs::remove_file(&file),
        7 => fs::rename(
            &file,
            root.join("conf").join(format!("c{}.yml", random.below(5))),
        ),
        8 => fs::rename(&conf, &aside),
        9 | 10 => fs::rename(&aside, &conf),
        11 => fs::remove_dir_all(&conf).and_then(|()| fs::create_dir(&conf)),
        12 => symlink("c0.yml", &file),
        _ => fs::set_permissions(&file, fs::Permissions::from_mode(0o644)),
    };
}

/// What a watch that begins now would list.
fn truth(bed: &Bed) -> Vec<(ChildName, Option<Entry>)> {
    let mut scanner = Scanner::new(&bed.config, never_known);
    scanner.whole(Scope::Whole, Respect::Nothing).entries
}

#[test]
fn whatever_is_done_the_listing_ends_as_what_is_there() {
    for seed in 0..20 {
        let mut bed = Bed::new();
        let mut random = Random(seed);
        let root = bed.root.clone();
        for _ in 0..150 {
            disturb(&root, &mut random);
        }
        let _ = fs::create_dir(root.join("conf"));
        let wanted = truth(&bed);
        let listed = |bed: &Bed| -> Vec<_> {
            let entries = bed.entries.iter();
            entries
                .map(|(name, entry)| (name.clone(), Some(entry.clone())))
                .collect()
        };
        let deadline = clock::mono() + PATIENCE;
        while listed(&bed) != wanted || !bed.is_ready() {
            assert!(clock::mono() < deadline, "seed {seed}: {wanted:#?}");
            bed.next();
        }
        // And it stays so: nothing that was told late says otherwise.
        bed.barrier();
        assert_eq!(listed(&bed), wanted, "seed {seed}");
    }
}

/// While this is held, the kernel's queue is not read.
static GATE: Mutex<()> = Mutex::new(());

/// A queue that is read only while [`GATE`] is free.
fn gated(mut handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
    let gated = move |event| {
        let _free = GATE.lock().unwrap();
        handler.handle_event(event);
    };
    source::inotify_with(gated, hear)
}

#[test]
fn forty_thousand_files_written_while_the_queue_overflows_are_all_listed() {
    const COUNT: usize = 40_000;
    let plan = Plan {
        being_written: never_known,
        open: gated,
        on: Disk::Memory,
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |_| {});
    let closed = GATE.lock().unwrap();
    for n in 0..COUNT {
        bed.write(&format!("conf/n{n}.yml"), "command: x\n");
    }
    drop(closed);
    bed.until(|bed| bed.entries.len() == COUNT);
    assert!(
        bed.entries
            .values()
            .all(|entry| matches!(entry.content, Content::Good(_)))
    );
    let whole = |seen: &Seen| matches!(seen, Seen::Listing(it) if it.scope == Scope::Whole);
    assert!(bed.told.iter().any(whole), "the queue did not overflow");
    // One file costs one look again, and what was lost is not missed.
    let parsed = bed.parses();
    bed.until_sure();
    bed.write("conf/n7.yml", &child("changed"));
    bed.until_runs("n7", "changed");
    fs::remove_file(bed.path("conf/n8.yml")).unwrap();
    bed.until_gone("n8");
    assert!(bed.parses() <= parsed + COUNT / 2);
}

#[test]
fn what_was_removed_while_the_queue_overflowed_is_gone() {
    fn overflows(mut handler: Handler, hear: Hear) -> notify::Result<RecommendedWatcher> {
        let mut first = true;
        let lossy = move |event: notify::Result<notify::Event>| {
            // The first removal is lost, as in an overflow.
            let lost = first && event.as_ref().is_ok_and(|event| event.kind.is_remove());
            if lost {
                first = false;
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
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |root| {
        fs::write(root.join("conf/web.yml"), child("a")).unwrap();
    });
    fs::remove_file(bed.path("conf/web.yml")).unwrap();
    bed.until_gone("web");
}

#[test]
fn a_file_replaced_all_the_time_is_always_whole_and_always_there() {
    let mut bed = Bed::new();
    bed.write("conf/web.yml", &child("0"));
    bed.until_runs("web", "0");
    bed.told.clear();
    for round in 1..=2_000 {
        bed.write("conf/.new", &child(&round.to_string()));
        bed.rename("conf/.new", "conf/web.yml");
    }
    bed.until_runs("web", "2000");
    for seen in &bed.told {
        let Seen::Listing(update) = seen else {
            panic!("{seen:?}");
        };
        for (_, entry) in &update.entries {
            let good = entry
                .as_ref()
                .map(|entry| matches!(entry.content, Content::Good(_)));
            assert_eq!(good, Some(true), "{update:#?}");
        }
    }
}

#[test]
fn a_loadpath_swapped_all_the_time_is_never_half_of_one() {
    // `one` and `two` stand on both sides and always say the same.
    let plan = Plan {
        loadpaths: vec!["current"],
        ..Plan::default()
    };
    let mut bed = Bed::with(plan, |root| {
        for side in ["a", "b"] {
            fs::create_dir(root.join(side)).unwrap();
            for file in ["one.yml", "two.yml"] {
                fs::write(root.join(side).join(file), child(side)).unwrap();
            }
        }
        symlink("a", root.join("current")).unwrap();
    });
    for _ in 0..200 {
        bed.link("b", "current");
        bed.link("a", "current");
    }
    bed.link("b", "current");
    bed.until(|bed| bed.command("one") == Some("b") && bed.command("two") == Some("b"));
    for seen in &bed.told {
        let Seen::Listing(update) = seen else {
            continue;
        };
        let sides: BTreeSet<&str> = update
            .entries
            .iter()
            .filter_map(|(_, entry)| match &entry.as_ref()?.content {
                Content::Good(spec) => Some(spec.command[0].as_str()),
                Content::Bad(_) | Content::Conflict => None,
            })
            .collect();
        assert_eq!((sides.len(), update.entries.len()), (1, 2), "{update:#?}");
    }
}
