//! Servers and hosts that die at any moment, and disks that fail at any.

use super::*;

/// What was acknowledged is there, each once and in order, whatever else is.
#[track_caller]
fn assert_kept(bed: &Bed, acknowledged: &[u64]) {
    let runs = bed.runs();
    assert!(runs.is_sorted_by(|one, next| one < next), "{runs:?}");
    // The oldest files go.
    let oldest = runs.first().copied().unwrap_or(u64::MAX);
    let missing = |run: &&u64| **run >= oldest && !runs.contains(run);
    assert_eq!(acknowledged.iter().find(missing), None, "{runs:?}");
    let newest = acknowledged.last().copied().unwrap_or(0);
    assert!(runs.last().copied().unwrap_or(0) >= newest, "{runs:?}");
}

#[test]
fn a_file_cut_at_any_byte_goes_on_from_its_last_whole_line() {
    let bed = Bed::new();
    drop(bed.written(1..=4));
    let whole = fs::read(bed.newest()).unwrap();
    let before = lines_of(&bed.newest());
    let last_two: usize = before[3..].iter().map(|line| line.len() + 1).sum();
    for len in whole.len() - last_two..=whole.len() {
        fs::write(bed.newest(), &whole[..len]).unwrap();
        let kept = lines_of(&bed.newest());
        let kept_len: usize = kept.iter().map(|line| line.len() + 1).sum();
        drop(bed.written(9..=9));
        let after = bed.values();
        assert_eq!(after.len(), kept.len() + 2, "cut at {len}");
        assert_eq!(bed.lines()[..kept.len()], before[..kept.len()]);
        let opened = &after[kept.len()];
        assert_eq!(opened["because"], "started", "cut at {len}");
        let cut = opened["cut"].as_u64().unwrap_or(0);
        assert_eq!(cut, u64::try_from(len - kept_len).unwrap(), "cut at {len}");
        bed.assert_whole();
        fs::write(bed.newest(), &whole).unwrap();
    }
}

#[test]
fn a_file_cut_at_any_byte_is_no_break_to_who_checks_it() {
    let bed = Bed::new();
    drop(bed.written(1..=2));
    let whole = fs::read(bed.newest()).unwrap();
    for len in 0..=whole.len() {
        fs::write(bed.newest(), &whole[..len]).unwrap();
        let verdict = bed.assert_whole();
        let torn = len > 0 && whole[len - 1] != b'\n';
        assert_eq!(
            verdict.notes.len(),
            usize::from(torn),
            "{:?}",
            verdict.notes
        );
    }
}

#[test]
fn a_torn_first_line_and_an_empty_file_are_a_beginning() {
    for text in ["", "{\"seq\":1,\"ti"] {
        let bed = Bed::new();
        fs::create_dir(&bed.dir).unwrap();
        fs::write(bed.newest(), text).unwrap();
        drop(bed.written(1..=1));
        assert_eq!(bed.values()[0]["seq"], 1);
        assert_eq!(bed.assert_whole().lines, 2);
    }
}

/// Writes until the disk fails at its n-th change; returns what was acknowledged, and whether it
/// failed at all.
fn until_it_fails(keeper: &mut Keeper, changes: u64) -> (Vec<u64>, bool) {
    let mut acknowledged: Vec<u64> = (1..=8).collect();
    let mut failed = false;
    drill::full_after(changes);
    for number in 9..=14 {
        keeper.add(command(number));
        match keeper.try_write() {
            Ok(()) => acknowledged.push(number),
            Err(_) => failed = true,
        }
    }
    drill::well();
    (acknowledged, failed)
}

#[test]
fn a_server_that_dies_at_any_change_of_the_disk_loses_nothing_it_acknowledged() {
    for changes in 0.. {
        let bed = Bed::small();
        let mut keeper = bed.written(1..=8);
        let (acknowledged, failed) = until_it_fails(&mut keeper, changes);
        drop(keeper);
        bed.assert_whole();
        assert_kept(&bed, &acknowledged);
        drop(bed.written(20..=24));
        bed.assert_whole();
        assert_kept(&bed, &[20, 21, 22, 23, 24]);
        if !failed {
            assert!(changes > 20, "too few changes: {changes}");
            return;
        }
    }
}

#[test]
fn a_disk_that_fails_at_any_change_and_recovers_loses_nothing_at_all() {
    for changes in 0.. {
        let bed = Bed::small();
        let mut keeper = bed.written(1..=8);
        let (_, failed) = until_it_fails(&mut keeper, changes);
        keeper.try_write().unwrap();
        write(&mut keeper, 15);
        let all: Vec<u64> = (1..=15).collect();
        bed.assert_whole();
        assert_kept(&bed, &all);
        if !failed {
            return;
        }
    }
}

#[test]
fn a_server_that_starts_on_a_disk_that_fails_goes_on_where_the_chain_was() {
    for changes in 0..8 {
        let bed = Bed::new();
        drop(bed.written(1..=3));
        let torn = [&fs::read(bed.newest()).unwrap()[..], b"{\"seq\""].concat();
        fs::write(bed.newest(), torn).unwrap();
        drill::full_after(changes);
        let mut keeper = bed.keeper();
        keeper.add(command(4));
        let _may_fail = keeper.try_write();
        drill::well();
        keeper.try_write().unwrap();
        assert_eq!(bed.runs(), [1, 2, 3, 4]);
        bed.assert_whole();
    }
}

#[test]
fn rotation_keeps_the_chain_and_so_many_files() {
    let bed = Bed::small();
    let mut keeper = bed.keeper();
    for number in 1..=40 {
        write(&mut keeper, number);
        bed.assert_whole();
    }
    let names = [
        "audit.jsonl",
        "audit.jsonl.1",
        "audit.jsonl.2",
        "audit.jsonl.3",
    ];
    assert_eq!(bed.names(), names);
    for name in names {
        let len = fs::metadata(bed.path(name)).unwrap().len();
        assert!(len <= bed.limits.file_bytes_max, "{name} has {len} bytes");
    }
    let runs = bed.runs();
    assert_eq!(*runs.last().unwrap(), 40);
    assert!(runs.is_sorted_by(|one, next| one + 1 == *next), "{runs:?}");
    let verdict = bed.verdict();
    assert_eq!(verdict.files, 4);
    assert_eq!(
        verdict.notes.len(),
        1,
        "the oldest follows one that is gone"
    );
    // Many at once go into as many files.
    for number in 41..=48 {
        keeper.add(command(number));
    }
    keeper.try_write().unwrap();
    assert_eq!(*bed.runs().last().unwrap(), 48);
    bed.assert_whole();
}

/// As if a server had died while it rotated: so many of the renames are done.
fn rotate_by_hand(bed: &Bed, renames: usize) {
    let steps = [
        ("audit.jsonl.2", "audit.jsonl.3"),
        ("audit.jsonl.1", "audit.jsonl.2"),
        ("audit.jsonl", "audit.jsonl.1"),
    ];
    for (from, to) in &steps[..renames] {
        fs::rename(bed.path(from), bed.path(to)).unwrap();
    }
}

/// A trail of three files, of which the newest has so many lines that the next one is too much.
fn three_files() -> (Bed, Vec<u64>) {
    let bed = Bed::small();
    let mut keeper = bed.keeper();
    let mut number = 0;
    while !bed.path("audit.jsonl.2").exists() || bed.lines().len() < 2 {
        number += 1;
        write(&mut keeper, number);
    }
    assert_eq!(bed.names().len(), 3);
    (bed, (1..=number).collect())
}

#[test]
fn a_server_that_died_between_any_two_renames_is_followed_by_one_that_goes_on() {
    for renames in 0..=3 {
        for made in [false, true] {
            let (bed, before) = three_files();
            rotate_by_hand(&bed, renames);
            if made && renames == 3 {
                fs::write(bed.newest(), "").unwrap();
            }
            assert_eq!(bed.runs(), before);
            bed.assert_whole();
            drop(bed.written(100..=100));
            let after = [&before[..], &[100]].concat();
            assert!(after.ends_with(&bed.runs()), "{:?}", bed.runs());
            bed.assert_whole();
        }
    }
}

#[test]
fn a_gap_in_the_numbers_of_files_is_closed_by_the_next_rotation() {
    let (bed, before) = three_files();
    rotate_by_hand(&bed, 2);
    let third = fs::read(bed.path("audit.jsonl.3")).unwrap();
    let mut keeper = bed.keeper();
    while !bed.path("audit.jsonl.1").exists() {
        write(&mut keeper, 100);
    }
    assert_eq!(bed.names().len(), 4);
    assert_eq!(fs::read(bed.path("audit.jsonl.3")).unwrap(), third);
    assert_eq!(bed.runs()[..before.len()], before);
    bed.assert_whole();
}
