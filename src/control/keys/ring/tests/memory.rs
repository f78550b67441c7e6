//! What is not read again, and what is although little tells that it changed.

use std::cell::Cell;

use super::*;

thread_local! {
    /// How many files were read on this thread.
    static READ: Cell<usize> = const { Cell::new(0) };
}

/// Asked before a file is read, and only then.
fn count(_: &fs::File) -> bool {
    READ.set(READ.get() + 1);
    false
}

/// How many files a look reads.
fn read_by(look: impl FnOnce()) -> usize {
    READ.set(0);
    look();
    READ.get()
}

/// A scoped key, and a ring that is soon sure of what it read.
fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.ring = Ring::new(vec![bed.dir.clone()], us()).with_writers_seen(count);
    bed.set(Bounds {
        sure_after_ms: 20,
        scope_quiet: LONG,
        ..Bounds::default()
    });
    bed.put("deploy.yml", "allow: [check]\n");
    bed.put("deploy.pem", pem());
    bed
}

fn wait_until_sure(bed: &Bed) {
    wait_for("nothing is read again", || {
        read_by(|| drop(bed.find("deploy"))) == 0
    });
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let bed = bed();
    assert_eq!(read_by(|| drop(bed.find("deploy"))), 2);
    wait_until_sure(&bed);
    assert_eq!(read_by(|| drop(bed.ring.refresh())), 0);
    assert_eq!(read_by(|| assert!(bed.is_unknown("other"))), 0);
    assert!(bed.ring.lock().folders[0].is_sure());
}

#[test]
fn what_was_read_just_after_it_changed_is_read_again() {
    let bed = Bed::new();
    let ring = Ring::new(vec![bed.dir.clone()], us()).with_writers_seen(count);
    bed.put("deploy.pem", pem());
    for _ in 0..3 {
        assert_eq!(read_by(|| drop(ring.find(&name("deploy")))), 1);
    }
}

#[test]
fn whatever_happens_to_a_key_that_was_not_read_for_long_is_noticed() {
    let bed = bed();
    let path = bed.path("deploy.pem");
    let changes: [(&str, &dyn Fn()); 6] = [
        ("replaced", &|| drop(bed.put("deploy.pem", other_pem()))),
        ("written in place", &|| {
            fs::write(&path, other_pem()).unwrap()
        }),
        ("removed", &|| bed.remove("deploy.pem")),
        ("renamed", &|| {
            fs::rename(&path, bed.path("other.pem")).unwrap()
        }),
        ("joined by another", &|| {
            drop(bed.put("deploy.pub.pem", pem()))
        }),
        ("opened to others", &|| mode(&path, 0o666)),
    ];
    for (what, change) in changes {
        bed.put("deploy.pem", pem());
        wait_until_sure(&bed);
        let key = bed.find("deploy");
        change();
        assert!(!bed.ring.is_current(&key), "{what}");
        for file in ["other.pem", "deploy.pub.pem"] {
            let _ = fs::remove_file(bed.path(file));
        }
    }
}

#[test]
fn whatever_happens_to_a_scope_that_was_not_read_for_long_is_noticed() {
    let bed = bed();
    let path = bed.path("deploy.yml");
    let changes: [(&str, &dyn Fn()); 6] = [
        ("replaced", &|| {
            drop(bed.put("deploy.yml", "allow: [stop]\n"))
        }),
        ("written in place", &|| {
            fs::write(&path, "allow: [info]\n").unwrap()
        }),
        ("emptied", &|| fs::write(&path, "").unwrap()),
        ("removed", &|| bed.remove("deploy.yml")),
        ("joined by another", &|| {
            drop(bed.put("deploy.yaml", "allow: [check]\n"))
        }),
        ("opened to others", &|| mode(&path, 0o666)),
    ];
    for (what, change) in changes {
        bed.put("deploy.yml", "allow: [check]\n");
        wait_until_sure(&bed);
        let key = bed.find("deploy");
        change();
        assert!(!bed.ring.is_current(&key), "{what}");
        let _ = fs::remove_file(bed.path("deploy.yaml"));
    }
}

#[test]
fn a_bad_key_that_did_not_change_is_not_read_again_and_stays_bad() {
    let bed = bed();
    bed.put("bad.pem", "nonsense");
    let why = bed.why("bad");
    wait_for("it is not read again", || {
        read_by(|| drop(bed.why("bad"))) == 0
    });
    assert_eq!(bed.why("bad"), why);
    bed.put("bad.pem", other_pem());
    assert!(bed.finds("bad"));
}

#[test]
fn a_file_that_takes_the_place_of_another_is_not_taken_for_it() {
    // The very file that was read as one key's is another's now: its faults name the right path.
    let bed = bed();
    bed.put("one.pem", "nonsense");
    assert!(bed.why("one").contains("one.pem"));
    fs::rename(bed.path("one.pem"), bed.path("one.pub.pem")).unwrap();
    assert!(bed.why("one").contains("one.pub.pem"));
}
