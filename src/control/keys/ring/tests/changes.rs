//! What was taken up, dropped and found wrong: each is told, and told once.

use super::*;

#[test]
fn keys_that_come_and_go_are_told_once() {
    let bed = Bed::new();
    assert!(bed.ring.refresh().taken_up.is_empty());
    bed.put("b.pem", pem());
    bed.put("a.pem", other_pem());
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.taken_up), ["a", "b"]);
    let again = bed.ring.refresh();
    assert!(again.taken_up.is_empty() && again.dropped.is_empty());
    bed.remove("a.pem");
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.dropped), ["a"]);
    assert_eq!(names(&bed.ring.survey().keys), ["b"]);
    assert!(bed.ring.refresh().dropped.is_empty());
}

#[test]
fn what_a_search_finds_is_told_by_the_next_refresh_and_once() {
    let bed = Bed::new();
    bed.ring.refresh();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    bed.find("deploy");
    let changes = bed.ring.refresh();
    assert!(matches!(changes.taken_up.as_slice(), [one] if Arc::ptr_eq(one, &key)));
    bed.remove("deploy.pem");
    assert!(!bed.finds("deploy"));
    let changes = bed.ring.refresh();
    assert!(changes.taken_up.is_empty());
    assert!(matches!(changes.dropped.as_slice(), [one] if Arc::ptr_eq(one, &key)));
    assert!(bed.ring.refresh().dropped.is_empty());
}

#[test]
fn a_key_that_was_used_and_went_between_two_refreshes_is_told_as_both() {
    let bed = Bed::new();
    bed.ring.refresh();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    bed.remove("deploy.pem");
    let changes = bed.ring.refresh();
    assert!(Arc::ptr_eq(&changes.taken_up[0], &key));
    assert!(Arc::ptr_eq(&changes.dropped[0], &key));
}

#[test]
fn a_replaced_key_and_a_changed_scope_are_told_as_dropped_and_taken_up() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let one = bed.ring.refresh().taken_up.remove(0);
    bed.put("deploy.pem", other_pem());
    let changes = bed.ring.refresh();
    let two = Arc::clone(&changes.taken_up[0]);
    assert!(Arc::ptr_eq(&changes.dropped[0], &one) && !two.is_same(&one));
    bed.put("deploy.yml", "allow: [check]\n");
    let changes = bed.ring.refresh();
    assert!(Arc::ptr_eq(&changes.dropped[0], &two) && !changes.taken_up[0].is_same(&two));
}

#[test]
fn a_key_that_only_moved_to_another_directory_is_no_news() {
    let mut bed = Bed::new();
    let other = bed.dir("other");
    bed.ring = Ring::new(vec![bed.dir.clone(), other.clone()], us());
    bed.put("deploy.pem", pem());
    let key = bed.ring.refresh().taken_up.remove(0);
    fs::rename(bed.path("deploy.pem"), other.join("deploy.pub.pem")).unwrap();
    let changes = bed.ring.refresh();
    assert!(changes.taken_up.is_empty() && changes.dropped.is_empty());
    assert!(bed.ring.is_current(&key));
    assert_eq!(bed.find("deploy").path(), other.join("deploy.pub.pem"));
}

#[test]
fn a_key_that_becomes_bad_is_dropped_and_its_fault_is_new_once() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    bed.ring.refresh();
    bed.put("deploy.pem", "nonsense");
    let changes = bed.ring.refresh();
    assert_eq!(names(&changes.dropped), ["deploy"]);
    assert_eq!(changes.new_faults, changes.faults);
    assert_eq!(changes.faults.len(), 1);
    let again = bed.ring.refresh();
    assert!(again.new_faults.is_empty());
    assert_eq!(again.faults, changes.faults);
    assert_eq!(bed.ring.survey().faults, changes.faults);
    bed.put("deploy.pem", pem());
    let changes = bed.ring.refresh();
    assert!(changes.faults.is_empty() && changes.new_faults.is_empty());
    // The same fault again, later, is news again.
    bed.put("deploy.pem", "nonsense");
    assert_eq!(bed.ring.refresh().new_faults.len(), 1);
}

#[test]
fn a_survey_looks_at_nothing_itself() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    assert!(bed.ring.survey().keys.is_empty());
    bed.ring.refresh();
    bed.remove("deploy.pem");
    assert_eq!(names(&bed.ring.survey().keys), ["deploy"]);
}

#[test]
fn no_more_faults_are_told_than_the_limit() {
    let bed = Bed::new();
    for number in 0..FAULTS_TOLD_MAX + 7 {
        fs::write(bed.path(&format!("k{number}.pem")), "").unwrap();
    }
    let faults = bed.ring.refresh().faults;
    assert_eq!(faults.len(), FAULTS_TOLD_MAX + 1);
    assert_eq!(
        faults[FAULTS_TOLD_MAX],
        "7 more faults of keys are not shown"
    );
}

#[test]
fn changes_that_nobody_asks_for_do_not_pile_up_without_bound() {
    let bed = Bed::new();
    bed.put("deploy.pem", pem());
    let key = bed.find("deploy");
    bed.ring.lock().untold.dropped = vec![Arc::clone(&key); UNTOLD_MAX];
    assert_eq!(
        bed.ring.find(&name("deploy")).unwrap_err(),
        Missing::Untold {
            name: name("deploy")
        }
    );
    assert_eq!(bed.ring.refresh().dropped.len(), UNTOLD_MAX);
    assert!(bed.finds("deploy"));
}

#[test]
fn many_threads_see_one_ring() {
    let bed = Bed::new();
    for number in 0..10 {
        bed.put(&format!("k{number}.pem"), pem());
    }
    thread::scope(|scope| {
        for number in 0..10 {
            let bed = &bed;
            scope.spawn(move || {
                for _ in 0..50 {
                    assert!(bed.finds(&format!("k{number}")));
                }
            });
        }
    });
    assert_eq!(bed.ring.refresh().taken_up.len(), 10);
}
