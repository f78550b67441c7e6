//! What a server finds when it starts, and what becomes of the file while it runs.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::audit::AuditError;

fn refused(bed: &Bed) -> AuditError {
    let author = Author {
        version: VERSION.to_owned(),
        server: SERVER.to_owned(),
    };
    Trail::open(bed.dir.clone(), author, bed.limits).unwrap_err()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_first_line_says_that_a_server_has_opened_the_file() {
    let bed = Bed::new();
    bed.keeper().try_write().unwrap();
    assert_eq!((mode(&bed.dir), mode(&bed.newest())), (0o700, 0o600));
    let first = &bed.values()[0];
    assert_eq!(
        (&first["seq"], &first["because"]),
        (&1.into(), &"started".into())
    );
    assert_eq!(
        (&first["version"], &first["server"]),
        (&VERSION.into(), &SERVER.into())
    );
    assert_eq!(first["prev"], "0".repeat(64));
}

#[test]
fn the_next_server_goes_on_with_number_and_hash() {
    let bed = Bed::new();
    drop(bed.written(1..=2));
    drop(bed.written(3..=3));
    let values = bed.values();
    let seqs: Vec<_> = values.iter().map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=5).map(Some).collect::<Vec<_>>());
    assert_eq!(values[3]["event"], "opened");
    let lines = bed.lines();
    for (index, value) in values.iter().enumerate().skip(1) {
        assert_eq!(value["prev"], hash_of(&lines, index - 1).to_string());
    }
    bed.assert_whole();
}

#[test]
fn what_is_no_file_of_ours_keeps_the_server_from_starting() {
    let bed = Bed::new();
    fs::create_dir(&bed.dir).unwrap();
    let path = bed.newest();
    let target = bed.path("target");
    fs::write(&target, "theirs").unwrap();
    symlink(&target, &path).unwrap();
    let error = refused(&bed);
    assert!(matches!(error, AuditError::NotAFile { .. }), "{error}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(refused(&bed), AuditError::NotAFile { .. }));
    fs::remove_dir(&path).unwrap();
    let fifo = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, fifo).unwrap();
    assert!(matches!(refused(&bed), AuditError::NotAFile { .. }));
    fs::remove_file(&path).unwrap();
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    fs::write(&path, "").unwrap();
    std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
    assert!(matches!(refused(&bed), AuditError::NotAFile { .. }));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let bed = Bed::new();
    fs::create_dir(&bed.dir).unwrap();
    fs::set_permissions(&bed.dir, fs::Permissions::from_mode(0o777)).unwrap();
    let error = refused(&bed);
    assert!(
        matches!(error, AuditError::NotOurs { mode: 0o777, .. }),
        "{error}"
    );
    assert_eq!(bed.names(), [] as [&str; 0]);
}

#[test]
fn a_file_that_others_could_read_is_closed_to_them() {
    let bed = Bed::new();
    drop(bed.written(1..=1));
    fs::set_permissions(bed.newest(), fs::Permissions::from_mode(0o644)).unwrap();
    drop(bed.written(2..=2));
    assert_eq!(mode(&bed.newest()), 0o600);
}

#[test]
fn the_file_is_not_left_to_children() {
    let bed = Bed::new();
    let dir = crate::audit::place::Dir::own(&bed.dir).unwrap();
    let file = dir.create(NAME).unwrap();
    let flags = rustix::io::fcntl_getfd(&file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::APPEND));
}

/// The server finds a file with this content; it is kept aside as it is, and told.
#[track_caller]
fn assert_begins_anew(text: &[u8], why: &str) {
    let bed = Bed::new();
    fs::create_dir(&bed.dir).unwrap();
    fs::write(bed.newest(), text).unwrap();
    drop(bed.written(1..=1));
    assert_eq!(fs::read(bed.aside()).unwrap(), text);
    let first = &bed.values()[0];
    assert_eq!(
        (&first["seq"], &first["because"]),
        (&1.into(), &"broken".into())
    );
    assert_eq!(first["prev"], "0".repeat(64));
    let told = first["why"].as_str().unwrap();
    assert!(told.contains(why), "{told}");
    let aside = bed.aside();
    assert_eq!(first["aside"], aside.file_name().unwrap().to_str().unwrap());

    // It counts as a break until somebody has taken it away.
    let verdict = bed.assert_broken();
    assert_eq!(verdict.breaks.len(), 1, "{:?}", verdict.breaks);
    assert!(verdict.breaks[0].to_string().contains("kept it aside"));
    fs::remove_file(aside).unwrap();
    let verdict = bed.assert_whole();
    assert!(
        verdict.notes[0].contains("begins anew"),
        "{:?}",
        verdict.notes
    );
}

#[test]
fn a_file_that_ends_with_no_line_of_ours_is_kept_aside_and_the_chain_begins_anew() {
    let bed = Bed::new();
    drop(bed.written(1..=2));
    let good = fs::read(bed.newest()).unwrap();
    assert_begins_anew(&[&good[..], b"hello\n"].concat(), "cannot be read");
    assert_begins_anew(&[&good[..], b"\n"].concat(), "cannot be read");
    assert_begins_anew(b"null\n", "cannot be read");
    let lines = bed.lines();
    let twice = format!("{0}\n{0}\n", lines[1]);
    assert_begins_anew(twice.as_bytes(), "does not fit the one before");
    let changed = format!("{}\n{}\n", lines[0].replace("1.2.3", "1.2.4"), lines[1]);
    assert_begins_anew(changed.as_bytes(), "does not fit the one before");
    let after_garbage = format!("garbage\n{}\n", lines[1]);
    assert_begins_anew(after_garbage.as_bytes(), "does not fit the one before");
    assert_begins_anew(&vec![b'x'; 1 << 20], "are no line");
    let long = [vec![b'x'; 100_000], b"\n".to_vec()].concat();
    assert_begins_anew(&long, "too long");
}

#[test]
fn a_chain_that_begins_anew_behind_older_files_is_told_and_no_other_is() {
    let bed = Bed::small();
    drop(bed.written(1..=6));
    let good = fs::read(bed.newest()).unwrap();
    fs::write(bed.newest(), [&good[..], b"x\n"].concat()).unwrap();
    drop(bed.written(7..=7));
    bed.assert_broken();
    fs::remove_file(bed.aside()).unwrap();
    let verdict = bed.assert_whole();
    assert_eq!(verdict.notes.len(), 1, "{:?}", verdict.notes);
    // Without saying so, a new beginning is a break.
    let lines: Vec<String> = bed.lines();
    let silent = lines[0].replace("\"broken\"", "\"started\"");
    fs::write(bed.newest(), silent + "\n").unwrap();
    bed.assert_broken();
    // And so it is in the middle of a file.
    fs::write(
        bed.newest(),
        [&good[..], lines[0].as_bytes(), b"\n"].concat(),
    )
    .unwrap();
    bed.assert_broken();
}

#[test]
fn a_rotated_file_that_is_broken_is_left_where_it_is() {
    let bed = Bed::small();
    drop(bed.written(1..=6));
    fs::write(bed.path("audit.jsonl.1"), "broken\n").unwrap();
    fs::remove_file(bed.newest()).unwrap();
    drop(bed.written(7..=7));
    let first = &bed.values()[0];
    assert_eq!(
        (&first["seq"], &first["because"]),
        (&1.into(), &"broken".into())
    );
    assert!(first["why"].as_str().unwrap().contains("audit.jsonl.1"));
    assert_eq!(
        fs::read_to_string(bed.path("audit.jsonl.1")).unwrap(),
        "broken\n"
    );
    bed.assert_broken();
}

// While it runs

/// The next line is in a file that begins by saying why; the chain goes on.
#[track_caller]
fn assert_goes_on(bed: &Bed, keeper: &mut Keeper, because: &str) -> Value {
    let last = bed.runs().last().copied().unwrap_or(0);
    write(keeper, 100);
    write(keeper, 101);
    let values = bed.values();
    let events: Vec<_> = values.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["opened", "command", "command"], "after {last}");
    assert_eq!(values[0]["because"], because);
    assert!(values[0]["seq"].as_u64().unwrap() > 1, "{values:?}");
    values[0].clone()
}

#[test]
fn a_deleted_file_is_made_anew_and_its_lines_are_missed() {
    let bed = Bed::small();
    let mut keeper = bed.written(1..=6);
    fs::remove_file(bed.newest()).unwrap();
    assert_goes_on(&bed, &mut keeper, "deleted");
    let verdict = bed.assert_broken();
    assert!(verdict.breaks[0].to_string().contains("expected `seq`"));
}

#[test]
fn a_deleted_directory_is_made_anew() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=2);
    fs::remove_dir_all(&bed.dir).unwrap();
    assert_goes_on(&bed, &mut keeper, "deleted");
    assert_eq!((mode(&bed.dir), mode(&bed.newest())), (0o700, 0o600));
    let verdict = bed.assert_whole();
    assert!(
        verdict.notes[0].contains("are not kept"),
        "{:?}",
        verdict.notes
    );
}

#[test]
fn a_file_moved_by_log_rotation_is_followed_by_another() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=2);
    fs::rename(bed.newest(), bed.path("audit.jsonl.1")).unwrap();
    let moved = assert_goes_on(&bed, &mut keeper, "moved");
    assert_eq!(moved.get("aside"), None);
    assert_eq!(bed.assert_whole().files, 2);
    // And so with an empty file made in its place.
    fs::rename(bed.path("audit.jsonl.1"), bed.path("audit.jsonl.2")).unwrap();
    fs::rename(bed.newest(), bed.path("audit.jsonl.1")).unwrap();
    fs::write(bed.newest(), "").unwrap();
    fs::set_permissions(bed.newest(), fs::Permissions::from_mode(0o666)).unwrap();
    let moved = assert_goes_on(&bed, &mut keeper, "replaced");
    assert_eq!(moved.get("aside"), None);
    assert_eq!(mode(&bed.newest()), 0o600);
    assert_eq!(bed.assert_whole().files, 3);
}

#[test]
fn a_file_put_in_its_place_is_kept_aside() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=2);
    let copy = fs::read(bed.newest()).unwrap();
    fs::write(bed.path("copy"), &copy).unwrap();
    fs::rename(bed.path("copy"), bed.newest()).unwrap();
    let opened = assert_goes_on(&bed, &mut keeper, "replaced");
    assert_eq!(fs::read(bed.aside()).unwrap(), copy);
    assert_eq!(
        opened["aside"],
        bed.aside().file_name().unwrap().to_str().unwrap()
    );
    bed.assert_broken();
}

#[test]
fn a_link_put_in_its_place_is_followed_nowhere() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=2);
    let target = bed.path("target");
    fs::write(&target, "").unwrap();
    fs::remove_file(bed.newest()).unwrap();
    symlink(&target, bed.newest()).unwrap();
    assert_goes_on(&bed, &mut keeper, "replaced");
    assert_eq!(fs::read_to_string(&target).unwrap(), "");
    assert!(bed.aside().is_symlink());
}

#[test]
fn a_file_that_somebody_else_wrote_to_is_kept_aside() {
    for change in [
        |path: &Path| fs::write(path, [&fs::read(path).unwrap()[..], b"{}\n"].concat()).unwrap(),
        |path: &Path| fs::write(path, &fs::read(path).unwrap()[..7]).unwrap(),
    ] {
        let bed = Bed::new();
        let mut keeper = bed.written(1..=2);
        change(&bed.newest());
        let changed = fs::read(bed.newest()).unwrap();
        assert_goes_on(&bed, &mut keeper, "changed");
        assert_eq!(fs::read(bed.aside()).unwrap(), changed);
        bed.assert_broken();
    }
}

#[test]
fn many_files_kept_aside_in_one_moment_are_all_kept() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=1);
    for number in 0..20 {
        fs::write(bed.newest(), number.to_string()).unwrap();
        write(&mut keeper, number + 2);
    }
    let names = bed.names();
    assert_eq!(names.len(), 21, "{names:?}");
}
