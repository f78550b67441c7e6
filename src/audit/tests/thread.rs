//! The thread: what it answers, when, and what bounds it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use super::*;
use crate::audit::{AUDIT_COMMANDS_MAX, AUDIT_REFUSALS_MAX, Audit};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(bed: &Bed) -> Audit {
    Audit::open_within(bed.dir.clone(), VERSION, SERVER, bed.limits).unwrap()
}

fn flush(audit: &Audit) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(audit.flush());
}

/// Hands a line over; its answer tells its number.
fn record(audit: &Audit, number: u64, answers: &mpsc::Sender<u64>) {
    let answers = answers.clone();
    let room = audit.room().expect("room");
    let answer = move || answers.send(number).unwrap_or_default();
    audit.record(room, command(number), answer);
}

#[test]
fn an_answer_is_given_when_its_line_is_in_the_file() {
    let bed = Bed::new();
    let audit = open(&bed);
    let (tell, told) = mpsc::channel();
    for number in 1..=50 {
        let (tell, path) = (tell.clone(), bed.newest());
        let answer = move || tell.send(runs_of(&path)).unwrap();
        audit.record(audit.room().unwrap(), command(number), answer);
        let runs = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(runs, (1..=number).collect::<Vec<_>>());
    }
    assert_eq!(audit.fault(), None);
}

#[test]
fn lines_and_answers_come_in_the_order_of_what_was_done() {
    let bed = Bed::small();
    let audit = open(&bed);
    let (tell, told) = mpsc::channel();
    for number in 1..=300 {
        record(&audit, number, &tell);
    }
    drop(audit);
    drop(tell);
    assert_eq!(
        told.iter().collect::<Vec<_>>(),
        (1..=300).collect::<Vec<_>>()
    );
    let runs = bed.runs();
    assert_eq!(*runs.last().unwrap(), 300);
    assert!(runs.is_sorted_by(|one, next| one + 1 == *next), "{runs:?}");
    bed.assert_whole();
}

#[test]
fn a_server_that_starts_is_told_though_nobody_commands() {
    let bed = Bed::new();
    drop(open(&bed));
    drop(open(&bed));
    let events: Vec<_> = bed
        .values()
        .iter()
        .map(|line| line["event"].clone())
        .collect();
    assert_eq!(events, ["opened", "opened"]);
    bed.assert_whole();
}

#[test]
fn a_file_moved_after_the_last_line_is_told_at_the_end_so_that_the_chain_goes_on() {
    for made in [false, true] {
        let bed = Bed::new();
        let audit = open(&bed);
        let (tell, told) = mpsc::channel();
        record(&audit, 1, &tell);
        told.recv_timeout(PATIENCE).unwrap();
        fs::rename(bed.newest(), bed.path("elsewhere")).unwrap();
        if made {
            fs::write(bed.newest(), "").unwrap();
        }
        drop(audit);
        drop(open(&bed));
        let values = bed.values();
        let seqs: Vec<_> = values.iter().map(|line| line["seq"].as_u64()).collect();
        assert_eq!(seqs, [Some(3), Some(4)]);
        let last = hash_of(&lines_of(&bed.path("elsewhere")), 1);
        assert_eq!(values[0]["prev"], last.to_string());
    }
}

#[test]
fn flushing_waits_for_what_was_handed_over_before() {
    let bed = Bed::new();
    let audit = open(&bed);
    audit.note(refusal("one"));
    flush(&audit);
    assert_eq!(bed.lines().len(), 2);
}

#[test]
fn a_command_is_answered_though_the_disk_takes_nothing_and_its_line_comes_later() {
    let bed = Bed::new();
    let audit = open(&bed);
    flush(&audit);
    fs::remove_dir_all(&bed.dir).unwrap();
    fs::write(&bed.dir, "in the way").unwrap();
    let (tell, told) = mpsc::channel();
    for number in 1..=3 {
        record(&audit, number, &tell);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(number));
    }
    let fault = audit.fault().expect("a fault");
    assert!(
        fault.contains("and 3 lines of it are kept: cannot use directory"),
        "{fault}"
    );
    assert!(!fault.contains('\n'), "{fault}");
    fs::remove_file(&bed.dir).unwrap();
    record(&audit, 4, &tell);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(4));
    assert_eq!(audit.fault(), None);
    assert_eq!(bed.runs(), [1, 2, 3, 4]);
    bed.assert_whole();
}

#[test]
fn what_is_kept_is_written_by_itself_when_the_disk_is_well_again() {
    let bed = Bed::new();
    let audit = open(&bed);
    flush(&audit);
    fs::remove_dir_all(&bed.dir).unwrap();
    fs::write(&bed.dir, "in the way").unwrap();
    let (tell, told) = mpsc::channel();
    record(&audit, 1, &tell);
    told.recv_timeout(PATIENCE).unwrap();
    fs::remove_file(&bed.dir).unwrap();
    let deadline = crate::clock::mono() + PATIENCE;
    while audit.fault().is_some() {
        assert!(crate::clock::mono() < deadline);
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(bed.runs(), [1]);
}

/// A thread that is held up in an answer, and how to let it go on.
fn held_up(audit: &Audit) -> mpsc::Sender<()> {
    let (go, gone) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let answer = move || {
        tell.send(()).unwrap();
        let _dropped = gone.recv();
    };
    audit.record(audit.room().unwrap(), command(1), answer);
    told.recv_timeout(PATIENCE).unwrap();
    go
}

#[test]
fn room_for_commands_is_bounded_and_comes_back_with_the_answers() {
    let bed = Bed::new();
    let audit = open(&bed);
    let go = held_up(&audit);
    let (tell, told) = mpsc::channel();
    // One is held by the command that is being answered.
    for number in 2..=u64::try_from(AUDIT_COMMANDS_MAX).unwrap() {
        record(&audit, number, &tell);
    }
    assert!(audit.room().is_none());
    drop(go);
    for _ in 2..=AUDIT_COMMANDS_MAX {
        told.recv_timeout(PATIENCE).unwrap();
    }
    flush(&audit);
    assert!(audit.room().is_some());
    assert_eq!(bed.runs().len(), AUDIT_COMMANDS_MAX);
    bed.assert_whole();
}

#[test]
fn refusals_beyond_the_bound_are_counted_and_the_count_is_written() {
    let bed = Bed::new();
    let audit = open(&bed);
    let go = held_up(&audit);
    for _ in 0..AUDIT_REFUSALS_MAX + 7 {
        audit.note(refusal("no"));
    }
    assert!(audit.room().is_some(), "commands have room of their own");
    drop(go);
    drop(audit);
    let values = bed.values();
    let refused = values.iter().filter(|line| line["event"] == "refused");
    assert_eq!(refused.count(), AUDIT_REFUSALS_MAX);
    assert_eq!(values.last().unwrap()["event"], "lost");
    assert_eq!(values.last().unwrap()["count"], 7);
    bed.assert_whole();
}

#[test]
fn after_a_panic_every_answer_is_given_all_the_same() {
    let bed = Bed::new();
    let audit = open(&bed);
    let go = held_up(&audit);
    let (tell, told) = mpsc::channel();
    let panic = || panic!("planted, so that the thread panics");
    audit.record(audit.room().unwrap(), command(2), panic);
    record(&audit, 3, &tell);
    drop(go);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(3));
    record(&audit, 4, &tell);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(4));
    flush(&audit);
    assert!(audit.fault().unwrap().contains("has panicked"));
    drop(audit);
    bed.assert_whole();
}

#[test]
fn a_check_beside_a_server_that_writes_and_rotates_finds_no_break() {
    let bed = Bed::small();
    let ended = Arc::new(AtomicBool::new(false));
    let audit = open(&bed);
    let writer = thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                number += 1;
                let (tell, told) = mpsc::channel();
                record(&audit, number, &tell);
                told.recv_timeout(PATIENCE).unwrap();
            }
        }
    });
    let found = Mutex::new(0);
    for _ in 0..200 {
        // Files may change their names faster than a slow machine can open them all.
        if let Ok(verdict) = verify(&bed.dir, None) {
            assert_eq!(verdict.breaks, []);
            *found.lock().unwrap() += 1;
        }
    }
    ended.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(*found.lock().unwrap() > 0);
    bed.assert_whole();
}
