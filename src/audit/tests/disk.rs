//! A disk that takes nothing: what is kept, and what is said of the rest.

use super::*;
use crate::audit::writer::Kept;

#[test]
fn lines_that_cannot_be_written_are_kept_and_written_in_order() {
    let bed = Bed::forgetful();
    let mut keeper = bed.written(1..=2);
    drill::full_after(0);
    for number in 3..=9 {
        keeper.add(command(number));
        let error = keeper.try_write().unwrap_err().to_string();
        assert!(error.contains("audit.jsonl`: "), "{error}");
        assert!(error.contains("hint: free some space"), "{error}");
    }
    assert_eq!(bed.runs(), [1, 2]);
    assert_eq!(keeper.kept(), Kept::Some);
    bed.assert_whole();
    drill::well();
    write(&mut keeper, 10);
    assert_eq!(keeper.kept(), Kept::Nothing);
    assert_eq!(bed.runs(), (1..=10).collect::<Vec<_>>());
    bed.assert_whole();
}

#[test]
fn what_cannot_be_kept_is_counted_and_the_count_is_written() {
    let bed = Bed::forgetful();
    let mut keeper = bed.written(1..=1);
    drill::full_after(0);
    for number in 2..=20 {
        keeper.add(command(number));
        assert!(keeper.try_write().is_err());
    }
    drill::well();
    write(&mut keeper, 21);
    write(&mut keeper, 22);
    // Ten were kept; ten came after them, the last one of those too.
    let expected: Vec<u64> = (1..=11).chain([22]).collect();
    assert_eq!(bed.runs(), expected);
    let lost: Vec<Value> = all_values(&bed, "lost");
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0]["count"], 10);
    bed.assert_whole();
}

fn all_values(bed: &Bed, event: &str) -> Vec<Value> {
    let mut names = bed.names();
    names.sort_by(|one, next| next.cmp(one));
    let lines = names.iter().flat_map(|name| lines_of(&bed.path(name)));
    let values = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    values.filter(|value| value["event"] == event).collect()
}

#[test]
fn refusals_do_not_push_out_commands() {
    let bed = Bed::forgetful();
    let mut keeper = bed.written(1..=1);
    drill::full_after(0);
    for _ in 0..100 {
        keeper.add(refusal("no"));
    }
    for number in 2..=6 {
        keeper.add(command(number));
    }
    assert!(keeper.try_write().is_err());
    drill::well();
    keeper.try_write().unwrap();
    assert_eq!(bed.runs(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(all_values(&bed, "refused").len(), 5);
    assert_eq!(all_values(&bed, "lost")[0]["count"], 95);
    bed.assert_whole();
}

#[test]
fn half_a_line_on_a_full_disk_is_cut_off_at_once() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=1);
    let before = fs::read(bed.newest()).unwrap();
    keeper.add(command(2));
    // The write fails half way; that the cut fails too is made up for by the next attempt.
    drill::full_after(0);
    assert!(keeper.try_write().is_err());
    let torn = fs::read(bed.newest()).unwrap();
    assert!(torn.len() > before.len());
    assert!(torn.starts_with(&before));
    bed.assert_whole();
    drill::well();
    keeper.try_write().unwrap();
    assert_eq!(bed.runs(), [1, 2]);
    // That no cut is needed when nothing went wrong.
    let changes = drill::tried();
    write(&mut keeper, 3);
    assert_eq!(drill::tried() - changes, 2, "one write and one sync");
}

#[test]
fn what_waits_together_is_written_together() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=1);
    let before = drill::tried();
    for number in 2..=200 {
        keeper.add(command(number));
    }
    keeper.try_write().unwrap();
    assert_eq!(drill::tried() - before, 2, "one write and one sync");
    assert_eq!(bed.runs(), (1..=200).collect::<Vec<_>>());
    bed.assert_whole();
}

#[test]
fn more_than_a_batch_takes_several_writes() {
    let bed = Bed::new();
    let mut keeper = bed.written(1..=1);
    let before = drill::tried();
    for number in 2..=3_000 {
        keeper.add(command(number));
    }
    keeper.try_write().unwrap();
    assert!(drill::tried() - before >= 4);
    assert_eq!(bed.runs(), (1..=3_000).collect::<Vec<_>>());
    bed.assert_whole();
}
