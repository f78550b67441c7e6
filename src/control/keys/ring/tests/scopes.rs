//! Scopes beside keys: never ignored, whatever is wrong with them.

use super::*;

const CHECK: &str = "allow: [check, info]\n";

/// Whether the key may be used for `stop --all`, as one without a scope may.
fn is_almighty(key: &Key) -> bool {
    let from = "192.0.2.1".parse().unwrap();
    key.scope().permits(&Command::StopAll, from).is_ok()
}

/// Waits until the key is there again.
fn wait_for_key(bed: &Bed) -> Arc<Key> {
    wait_for("the key is used again", || bed.finds("deploy"));
    bed.find("deploy")
}

#[test]
fn a_scope_beside_a_key_limits_it() {
    for (key, scope) in [
        ("deploy.pem", "deploy.yml"),
        ("deploy.pem", "deploy.yaml"),
        ("deploy.pem", "deploy.pub.yml"),
        ("deploy.pub.pem", "deploy.yml"),
        ("deploy.pub.pem", "deploy.pub.yml"),
        ("deploy.pub.pem", "deploy.pub.yaml"),
    ] {
        let bed = Bed::new();
        bed.put(scope, CHECK);
        bed.put(key, pem());
        assert!(!is_almighty(&bed.find("deploy")), "{key} {scope}");
    }
}

#[test]
fn a_scope_that_appears_or_changes_makes_it_another_key() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let free = bed.find("deploy");
    bed.put("deploy.yml", CHECK);
    let limited = bed.find("deploy");
    assert!(is_almighty(&free) && !is_almighty(&limited));
    assert!(!bed.ring.is_current(&free) && bed.ring.is_current(&limited));
    bed.put("deploy.yml", "allow: [check]\n");
    assert!(!bed.ring.is_current(&limited));
    // Another text with the same meaning is the same scope.
    let limited = bed.find("deploy");
    bed.put("deploy.yml", "# ours\nallow:\n  - check\n");
    assert!(bed.ring.is_current(&limited));
}

#[test]
fn a_bad_scope_makes_its_key_unusable_and_all_its_faults_are_told() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let path = bed.put("deploy.yml", "alow: [check]\nfrom: [10.0.0.1/8]\n");
    let faults = bed.ring.refresh().faults;
    assert_eq!(
        faults[0],
        format!(
            "key `deploy` is not used: its scope `{}` has faults",
            path.display()
        )
    );
    assert!(faults[1].starts_with(&format!("{}:1:1: unknown key `alow`", path.display())));
    assert!(
        faults[2].ends_with("help: write `10.0.0.0/8`"),
        "{faults:?}"
    );
    assert_eq!(faults.len(), 3);
    assert_eq!(bed.why("deploy"), faults.join("\n"));
    bed.put("deploy.yml", CHECK);
    assert!(!is_almighty(&bed.find("deploy")));
}

#[test]
fn a_scope_that_lost_its_content_makes_its_key_unusable() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    for text in [
        "",
        "\n",
        "# allow: [check]\n",
        "allow:\n",
        "---\n",
        "null\n",
        "[]\n",
        "\0",
    ] {
        fs::write(bed.path("deploy.yml"), text).unwrap();
        assert!(!bed.finds("deploy"), "{text:?}");
    }
}

#[test]
fn a_scope_that_others_can_write_makes_its_key_unusable() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let path = bed.put("deploy.yml", CHECK);
    let key = bed.find("deploy");
    mode(&path, 0o666);
    let why = bed.why("deploy");
    assert!(
        why.starts_with("key `deploy` is not used: its scope: `"),
        "{why}"
    );
    assert!(why.contains("everybody may write the file"), "{why}");
    assert!(!bed.ring.is_current(&key));
    mode(&path, 0o644);
    assert!(bed.ring.is_current(&key));
}

#[test]
fn a_scope_of_somebody_else_makes_its_key_unusable() {
    if !as_root("giving a file away") {
        return;
    }
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let path = bed.put("deploy.yml", CHECK);
    chown(&path, Some(STRANGER), None).unwrap();
    assert!(bed.why("deploy").contains("the file belongs to `54321`"));
}

#[test]
fn a_scope_that_cannot_be_read_makes_its_key_unusable() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let scope = bed.path("deploy.yml");
    fs::create_dir(&scope).unwrap();
    assert!(bed.why("deploy").contains("is a directory"));
    fs::remove_dir(&scope).unwrap();
    symlink("nowhere", &scope).unwrap();
    assert!(bed.why("deploy").contains("points to nothing"));
    fs::remove_file(&scope).unwrap();
    let large = format!("{CHECK}#{}", "x".repeat(config_bytes_max()));
    bed.put("deploy.yml", &large);
    assert!(bed.why("deploy").contains("is too large"));
    bed.put("deploy.yml", CHECK);
    if !rustix::process::geteuid().is_root() {
        mode(&scope, 0o000);
        assert!(bed.why("deploy").contains("permission denied"));
        mode(&scope, 0o644);
    }
    assert!(!is_almighty(&bed.find("deploy")));
}

fn config_bytes_max() -> usize {
    crate::config::KEY_SCOPE_BYTES_MAX
}

#[test]
fn a_scope_that_is_being_written_makes_its_key_unusable() {
    let mut bed = Bed::new();
    fn scopes_are(file: &fs::File) -> bool {
        let path = fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(file)
        ));
        path.unwrap().extension().is_some_and(|end| end == "yml")
    }
    bed.ring = Ring::new(vec![bed.dir.clone()], us()).with_writers_seen(scopes_are);
    bed.put("deploy.pem", pem());
    assert!(bed.finds("deploy"));
    bed.put("deploy.yml", CHECK);
    let why = bed.why("deploy");
    assert!(why.ends_with("deploy.yml` is being written"), "{why}");
}

#[test]
fn two_scopes_of_one_key_make_it_unusable_and_the_fault_names_both() {
    for (one, two) in [
        ("deploy.yaml", "deploy.yml"),
        ("deploy.pub.yml", "deploy.yml"),
        ("deploy.pub.yaml", "deploy.pub.yml"),
    ] {
        let bed = Bed::new();
        bed.put("deploy.pem", pem());
        let (one, two) = (bed.put(one, CHECK), bed.put(two, CHECK));
        let expected = format!(
            "key `deploy` is not used: it has several scopes: `{}`, `{}`\nhelp: keep one of them",
            one.display(),
            two.display()
        );
        assert_eq!(bed.why("deploy"), expected);
    }
}

#[test]
fn a_scope_in_another_directory_makes_its_key_unusable() {
    let mut bed = Bed::new();
    let other = bed.dir("other");
    bed.ring = Ring::new(vec![bed.dir.clone(), other.clone()], us());
    bed.put("deploy.pem", pem());
    put(&other, "deploy.yml", CHECK);
    let why = bed.why("deploy");
    assert!(why.contains("is not beside"), "{why}");
    bed.put("deploy.yml", CHECK);
    assert!(bed.why("deploy").contains("several scopes"));
    fs::remove_file(other.join("deploy.yml")).unwrap();
    assert!(!is_almighty(&bed.find("deploy")));
}

/// What was meant to limit a key must not be passed over.
#[test]
fn a_scope_whose_ending_is_in_capitals_is_one_too() {
    for file in ["deploy.YML", "deploy.Yaml", "deploy.pub.YAML"] {
        let bed = Bed::new();
        bed.put(file, "allow: [check]\n");
        bed.put("deploy.pem", pem());
        assert!(bed.find("deploy").scope().limits().is_some(), "{file}");
        bed.put("deploy.yml", "allow: [check]\n");
        assert!(bed.why("deploy").contains("several scopes"), "{file}");
    }
}

#[test]
fn a_scope_without_a_key_is_only_shown() {
    let bed = Bed::new();
    let path = bed.put("deploy.yml", "nonsense");
    bed.put("other.pem", pem());
    assert_eq!(
        bed.fault(),
        format!(
            "`{}` is the scope of no key: there is no `deploy.pem` and no `deploy.pub.pem` beside it",
            path.display()
        )
    );
    assert!(bed.finds("other") && !bed.finds("deploy"));
}

#[test]
fn a_scope_whose_name_gives_no_key_name_is_only_shown() {
    let bed = Bed::new();
    bed.put("a b.yml", CHECK);
    bed.put("other.pem", pem());
    assert!(bed.fault().contains("cannot stand in a key name"));
    assert!(bed.finds("other"));
}

#[test]
fn a_scope_counts_for_the_key_of_its_very_name_alone() {
    let bed = Bed::new();
    for file in [
        "Deploy.yml",
        "deploy2.yml",
        ".deploy.yml",
        "deploy.yml~",
        "deploy.yml.bak",
    ] {
        bed.put(file, CHECK);
    }
    bed.put("deploy.pem", pem());
    assert!(is_almighty(&bed.find("deploy")));
}

#[test]
fn a_scope_that_vanishes_leaves_its_key_unusable_for_the_quiet_second() {
    let bed = Bed::new();
    bed.set_quiet(LONG);
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    let limited = bed.find("deploy");
    bed.remove("deploy.yml");
    let why = bed.why("deploy");
    assert!(why.contains("was there until a moment ago"), "{why}");
    assert!(!bed.ring.is_current(&limited));
    assert_eq!(bed.ring.refresh().faults, [why]);
    bed.set_quiet(SCOPE_QUIET);
    assert!(is_almighty(&wait_for_key(&bed)));
    assert!(bed.ring.refresh().faults.is_empty());
}

#[test]
fn an_editor_that_moves_the_scope_away_before_it_writes_it_anew_opens_nothing() {
    let bed = Bed::new();
    bed.set_quiet(LONG);
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    assert!(!is_almighty(&bed.find("deploy")));
    for _ in 0..20 {
        fs::rename(bed.path("deploy.yml"), bed.path("deploy.yml~")).unwrap();
        assert!(!bed.finds("deploy"));
        fs::write(bed.path("deploy.yml"), "").unwrap();
        assert!(!bed.finds("deploy"));
        fs::write(bed.path("deploy.yml"), CHECK).unwrap();
        assert!(!is_almighty(&bed.find("deploy")));
    }
}

#[test]
fn a_checkout_that_makes_the_key_anew_before_its_scope_opens_nothing() {
    let bed = Bed::new();
    bed.set_quiet(LONG);
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    assert!(!is_almighty(&bed.find("deploy")));
    bed.remove("deploy.pem");
    bed.remove("deploy.yml");
    assert!(!bed.finds("deploy"));
    bed.ring.refresh();
    bed.put("deploy.pem", pem());
    assert!(!bed.finds("deploy"));
    bed.put("deploy.yml", CHECK);
    assert!(!is_almighty(&bed.find("deploy")));
}

#[test]
fn a_scope_that_was_removed_long_before_the_look_is_believed_to_be_gone() {
    let bed = Bed::new();
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    bed.find("deploy");
    bed.remove("deploy.yml");
    // Nobody looks meanwhile: the directory itself says for how long it has been like this.
    let removed = clock::mono();
    wait_for("a second and more", || {
        clock::mono() - removed > Duration::from_millis(1_200)
    });
    assert!(is_almighty(&bed.find("deploy")));
}

#[test]
fn what_is_remembered_of_a_scope_is_forgotten_with_its_key() {
    let bed = Bed::new();
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    bed.find("deploy");
    bed.remove("deploy.pem");
    bed.remove("deploy.yml");
    wait_for("it is forgotten", || {
        bed.ring.refresh();
        bed.ring.lock().known.is_empty()
    });
}

#[test]
fn a_key_whose_scope_is_replaced_all_the_time_is_never_without_one() {
    let bed = Bed::new();
    bed.set_quiet(LONG);
    bed.put("deploy.yml", CHECK);
    bed.put("deploy.pem", pem());
    bed.find("deploy");
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut ways = (0..3).cycle();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                match ways.next().unwrap() {
                    0 => drop(bed.put("deploy.yml", "allow: [check]\n")),
                    1 => fs::write(bed.path("deploy.yml"), CHECK).unwrap(),
                    _ => {
                        bed.remove("deploy.yml");
                        thread::yield_now();
                        fs::write(bed.path("deploy.yml"), CHECK).unwrap();
                    }
                }
            }
        });
        for _ in 0..500 {
            if let Ok(key) = bed.ring.find(&name("deploy")) {
                assert!(!is_almighty(&key));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
