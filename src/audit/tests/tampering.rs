//! What somebody else has done to the files, and what a check says of it.

use super::*;
use crate::audit::Fault;

/// A trail of six lines, and its lines.
fn six() -> (Bed, Vec<String>) {
    let bed = Bed::new();
    drop(bed.written(1..=5));
    let lines = bed.lines();
    assert_eq!(lines.len(), 6);
    (bed, lines)
}

fn put(bed: &Bed, lines: &[String]) {
    fs::write(bed.newest(), lines.join("\n") + "\n").unwrap();
}

/// The line and the words of the first break.
fn first_break(bed: &Bed) -> (Option<u64>, String) {
    let verdict = bed.assert_broken();
    let first = &verdict.breaks[0];
    assert!(verdict.to_string().starts_with("audit is broken: "));
    (first.line, first.to_string())
}

#[test]
fn a_whole_trail_is_told_in_one_line() {
    let (bed, lines) = six();
    let verdict = bed.assert_whole();
    assert_eq!(verdict.notes, [] as [&str; 0]);
    let hash = hash_of(&lines, 5);
    let first = serde_json::from_str::<Value>(&lines[0]).unwrap();
    let told = format!(
        "audit is whole: 6 lines from {} to 2023-11-14T22:13:20.123Z in 1 file, last hash {hash}",
        first["time"].as_str().unwrap()
    );
    assert_eq!(verdict.to_string(), told);
}

#[test]
fn no_trail_at_all_is_no_break() {
    let bed = Bed::new();
    assert_eq!(bed.assert_whole().to_string(), "no audit yet");
    fs::create_dir(&bed.dir).unwrap();
    assert_eq!(bed.assert_whole().to_string(), "no audit yet");
    fs::write(bed.newest(), "").unwrap();
    assert_eq!(bed.assert_whole().to_string(), "no audit yet");
}

#[test]
fn a_check_writes_nothing() {
    let (bed, _) = six();
    fs::write(bed.path("audit.jsonl.broken-x"), "").unwrap();
    let before = (bed.names(), fs::read(bed.newest()).unwrap());
    bed.assert_broken();
    assert_eq!((bed.names(), fs::read(bed.newest()).unwrap()), before);
    assert!(verify(&bed.path("nowhere"), None).is_ok());
    assert!(!bed.path("nowhere").exists());
}

#[test]
fn any_byte_that_is_changed_before_the_last_line_is_noticed() {
    let (bed, lines) = six();
    let whole = fs::read(bed.newest()).unwrap();
    let before_last = whole.len() - lines[5].len() - 1;
    for at in 0..before_last {
        let mut changed = whole.clone();
        changed[at] = if whole[at] == b'0' { b'1' } else { b'0' };
        fs::write(bed.newest(), changed).unwrap();
        bed.assert_broken();
    }
}

#[test]
fn a_changed_line_is_found_by_the_one_after_it() {
    let (bed, mut lines) = six();
    lines[2] = lines[2].replace("\"user\":1000", "\"user\":1001");
    put(&bed, &lines);
    let (line, told) = first_break(&bed);
    assert_eq!(line, Some(4));
    let found = Hash::of(lines[2].replace("1001", "1000").as_bytes());
    let expected = format!(
        "{}:4: expected `prev` {}, the hash of the line before, found {found}",
        bed.newest().display(),
        hash_of(&lines, 2)
    );
    assert_eq!(told, expected);
}

#[test]
fn a_deleted_line_is_noticed() {
    for index in 1..5 {
        let (bed, mut lines) = six();
        lines.remove(index);
        put(&bed, &lines);
        let (line, told) = first_break(&bed);
        assert_eq!(line, Some(u64::try_from(index).unwrap() + 1));
        let seqs = format!("expected `seq` {}, found {}", index + 1, index + 2);
        assert!(told.ends_with(&seqs), "{told}");
    }
}

#[test]
fn swapped_and_repeated_lines_are_noticed() {
    for index in 0..5 {
        let (bed, mut lines) = six();
        lines.swap(index, index + 1);
        put(&bed, &lines);
        bed.assert_broken();
        lines.swap(index, index + 1);
        lines.insert(index, lines[index].clone());
        put(&bed, &lines);
        bed.assert_broken();
    }
}

#[test]
fn an_inserted_line_is_noticed_however_well_it_is_made() {
    for index in 0..6 {
        let (bed, mut lines) = six();
        // One that follows the line before as it should, in place of the right one.
        let other = Bed::new();
        put_dir(&other, &lines[..index]);
        drop(other.written(77..=77));
        let forged = other.lines()[index].clone();
        lines.insert(index, forged);
        put(&bed, &lines);
        bed.assert_broken();
        let blank = String::new();
        lines[index] = blank;
        put(&bed, &lines);
        bed.assert_broken();
    }
}

fn put_dir(bed: &Bed, lines: &[String]) {
    fs::create_dir(&bed.dir).unwrap();
    if !lines.is_empty() {
        put(bed, lines);
    }
}

#[test]
fn a_missing_end_is_noticed_by_a_hash_that_was_noted() {
    let (bed, mut lines) = six();
    let noted = bed.verdict().last.unwrap();
    assert_eq!(verify(&bed.dir, Some(noted)).unwrap().breaks, []);
    let mut keeper = bed.keeper();
    write(&mut keeper, 6);
    assert_eq!(verify(&bed.dir, Some(noted)).unwrap().breaks, []);
    lines.pop();
    put(&bed, &lines);
    bed.assert_whole();
    let verdict = verify(&bed.dir, Some(noted)).unwrap();
    assert_eq!(verdict.breaks.len(), 1);
    assert_eq!(verdict.breaks[0].fault, Fault::Noted(noted));
    // Of no trail at all too.
    fs::remove_dir_all(&bed.dir).unwrap();
    assert_ne!(verify(&bed.dir, Some(noted)).unwrap().breaks, []);
}

#[test]
fn a_line_that_was_changed_last_is_noticed_by_a_hash_that_was_noted() {
    let (bed, mut lines) = six();
    let noted = bed.verdict().last.unwrap();
    lines[5] = lines[5].replace("\"ok\"", "\"no\"");
    put(&bed, &lines);
    assert_ne!(verify(&bed.dir, Some(noted)).unwrap().breaks, []);
}

#[test]
fn a_missing_file_between_two_is_noticed() {
    let bed = Bed::small();
    drop(bed.written(1..=14));
    bed.assert_whole();
    fs::remove_file(bed.path("audit.jsonl.1")).unwrap();
    let (line, told) = first_break(&bed);
    assert_eq!(line, Some(1));
    assert!(told.contains("audit.jsonl:1: expected `seq` "), "{told}");
}

#[test]
fn a_first_line_that_is_none_is_noticed() {
    let (bed, lines) = six();
    let zeros = "0".repeat(64);
    let hash = hash_of(&lines, 0).to_string();
    for forged in [
        lines[0].replace(&zeros, &hash),
        lines[0].replace("\"seq\":1,", "\"seq\":2,"),
        lines[1].replace(&hash, &zeros),
    ] {
        put(&bed, &[forged]);
        let told = first_break(&bed).1;
        assert!(told.contains("64 zeros in line 1 of all"), "{told}");
    }
}

#[test]
fn a_rotated_file_that_ends_within_a_line_is_noticed() {
    let bed = Bed::small();
    drop(bed.written(1..=8));
    let path = bed.path("audit.jsonl.1");
    let torn = [&fs::read(&path).unwrap()[..], b"{"].concat();
    fs::write(&path, torn).unwrap();
    let told = first_break(&bed).1;
    assert!(told.ends_with("found a line cut short"), "{told}");
}

#[test]
fn what_is_no_line_is_noticed_and_never_read_whole() {
    let (bed, lines) = six();
    let endless = "x".repeat(3 << 20);
    for odd in ["", "null", "[]", "{}", "\u{0}", "{\"seq\":3}", &endless] {
        let mut lines = lines.clone();
        lines.insert(2, odd.to_owned());
        put(&bed, &lines);
        let verdict = bed.assert_broken();
        // The lines around it are read, and fit.
        let numbers: Vec<_> = verdict.breaks.iter().map(|it| it.line).collect();
        assert_eq!(numbers, [Some(3)], "{odd:.10}: {:?}", verdict.breaks);
    }
    fs::write(bed.newest(), [0xff, 0xfe, b'\n']).unwrap();
    bed.assert_broken();
}

#[test]
fn breaks_are_told_in_a_bounded_number() {
    let bed = Bed::new();
    fs::create_dir(&bed.dir).unwrap();
    fs::write(bed.newest(), "x\n".repeat(10_000)).unwrap();
    let verdict = bed.assert_broken();
    assert_eq!((verdict.breaks.len(), verdict.lines), (16, 10_000));
}

#[test]
fn links_and_other_things_are_not_read() {
    let (bed, _) = six();
    let elsewhere = bed.path("elsewhere");
    fs::rename(bed.newest(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, bed.newest()).unwrap();
    let error = verify(&bed.dir, None).unwrap_err().to_string();
    assert!(error.contains("is not a regular file"), "{error}");
    fs::remove_file(bed.newest()).unwrap();
    fs::create_dir(bed.newest()).unwrap();
    assert!(verify(&bed.dir, None).is_err());
}

#[test]
fn other_names_are_none_of_the_trail() {
    let (bed, lines) = six();
    for name in [
        "audit.jsonl~",
        "audit.jsonl.01",
        "audit.jsonl.+1",
        "audit.jsonl.x",
        "audit.jsonl.1.gz",
        "xaudit.jsonl",
    ] {
        fs::write(bed.path(name), &lines[3]).unwrap();
    }
    bed.assert_whole();
}
