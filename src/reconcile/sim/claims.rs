//! The sentences of DESIGN that the core decides, each a test; the I-numbers are DESIGN 11's.
//!
//! Every test tells a life in the words of the scripts (`script`) and looks at what the core
//! orders. Sections: 5 modes and removal, 7 hooks and repeat, 10 and 11 the rest. The table of
//! states of section 6 is in `cells`.

use super::script::Stage;

/// What must, and what must not, be in the text.
#[track_caller]
pub(super) fn expect(out: &str, there: &[&str], not_there: &[&str]) {
    for text in there {
        assert!(out.contains(text), "`{text}` is missing in:\n{out}");
    }
    for text in not_there {
        assert!(!out.contains(text), "`{text}` should not be in:\n{out}");
    }
}

/// Nothing is ordered at all.
#[track_caller]
pub(super) fn expect_nothing(out: &str) {
    assert!(!out.contains("    "), "something is ordered:\n{out}");
}

mod modes {
    use super::*;

    fn boot(options: &str) -> String {
        Stage::new().then(&format!(
            "file web v1\nfile db v1\nbad sick oh\nboot {options}"
        ))
    }

    #[test]
    fn a_quiet_server_starts_nothing() {
        expect(&boot("quiet"), &[], &["    start"]);
    }

    #[test]
    fn a_half_server_starts_the_children_in_startup_and_skips_missing_ones() {
        let out = boot("half startup web,nobody");
        expect(&out, &["start web run 1"], &["start db", "    log nobody"]);
    }

    #[test]
    fn a_half_server_calls_a_bad_startup_child_a_fault_and_goes_on() {
        let out = boot("half startup web,sick");
        expect(
            &out,
            &["start web run 1", "log WARN sick: bad file"],
            &["start sick"],
        );
    }

    #[test]
    fn a_full_server_starts_every_child() {
        let out = Stage::new().then("file web v1\nfile db v1\nboot full");
        expect(&out, &["start web run 1", "start db run 1"], &[]);
    }

    #[test]
    fn a_sync_server_starts_every_valid_child() {
        expect(
            &boot("sync"),
            &["start web run 1", "start db run 1"],
            &["start sick"],
        );
    }

    fn new_file(mode: &str) -> String {
        Stage::after(&format!("boot {mode}")).then("file web v1\nseen web")
    }

    #[test]
    fn a_new_file_waits_for_start_in_quiet_and_the_log_names_the_command() {
        let out = new_file("quiet");
        expect(
            &out,
            &["it waits for `start`: supervisor-rs-client start web"],
            &["    start"],
        );
    }

    #[test]
    fn a_new_file_is_started_in_half_if_it_is_in_startup() {
        expect(&new_file("half startup web"), &["start web run 1"], &[]);
        expect(&new_file("half startup db"), &[], &["start web"]);
    }

    #[test]
    fn a_new_file_is_started_in_full_and_sync() {
        expect(&new_file("full"), &["start web run 1"], &[]);
        expect(&new_file("sync"), &["start web run 1"], &[]);
    }

    #[test]
    fn a_changed_file_is_only_shown_outside_sync_and_the_next_start_uses_it() {
        for mode in ["quiet", "half startup web", "full"] {
            let mut stage = Stage::after(&format!("file web v1\nboot {mode}"));
            if mode == "quiet" {
                stage.then("request 1 start web");
            }
            let out = stage.then("file web v2\nseen web\nrequest 2 check web");
            expect(&out, &["web running run 1 config changed"], &["TERM"]);
            let out = stage.then("request 3 restart web\nexited web 0");
            expect(&out, &["start web run 2: `/bin/web v2`"], &[]);
        }
    }

    #[test]
    fn a_changed_file_restarts_its_child_in_sync_if_the_digest_changed() {
        let mut stage = Stage::after("file web v1\nboot sync");
        expect_nothing(&stage.then("file web v1\nseen web"));
        expect(
            &stage.then("file web v2\nseen web"),
            &["TERM to web run 1"],
            &[],
        );
    }

    #[test]
    fn a_removed_file_leaves_the_child_running_outside_sync() {
        for mode in ["quiet", "half startup web", "full"] {
            let mut stage = Stage::after(&format!("file web v1\nboot {mode}"));
            if mode == "quiet" {
                stage.then("request 1 start web");
            }
            let out = stage.then("gone web\nseen web\nadvance 2m\nrescan\nrequest 2 check web");
            expect(&out, &["web running run 1 config removed"], &["TERM"]);
        }
    }

    #[test]
    fn a_removed_file_stops_its_child_in_sync_with_its_posthook() {
        let mut stage =
            Stage::after("file web v1 posthook 'run tidy'\nboot sync\ngone web\nseen web");
        expect(
            &stage.then("advance 1s"),
            &["TERM to web run 1", "(file removed)"],
            &[],
        );
        expect(
            &stage.then("exited web 0"),
            &["run the hook of web: `tidy`"],
            &["held"],
        );
    }

    #[test]
    fn a_fresh_start_starts_what_ended_and_a_continued_one_does_not() {
        let life = "file web v1\nboot sync\nexited web 0";
        let out = Stage::after(life).then("crash\nboot sync continued");
        expect(&out, &[], &["    start"]);
        let out = Stage::after(life).then("request 1 kill\nboot sync");
        expect(&out, &["start web run 2"], &[]);
    }

    #[test]
    fn a_continued_start_starts_what_never_ran() {
        let out = Stage::after("boot sync\ncrash").then("file web v1\nboot sync continued");
        expect(&out, &["start web run 1"], &[]);
    }

    #[test]
    fn a_start_of_any_kind_takes_back_what_lives_and_starts_none_of_it_twice() {
        // I1, I2
        for (end, kind) in [("crash", "continued"), ("request 1 kill", "")] {
            let mut stage = Stage::after(&format!("file web v1\nboot sync\n{end}"));
            let out = stage.then(&format!("boot sync {kind}\nrequest 9 stop web"));
            expect(
                &out,
                &["web: taken back: pid 101", "TERM to web run 1"],
                &["    start"],
            );
        }
    }

    #[test]
    fn a_start_tells_of_each_held_child_since_when_and_how_it_is_released() {
        let out = Stage::after("file web v1\nboot sync\nrequest 1 stop web\nexited web 0\ncrash")
            .then("boot sync continued");
        let line = "held: not started by itself: since 2023-11-14T22:13:20.000Z; \
                    `supervisor-rs-client start web` releases it";
        expect(&out, &[line], &["    start"]);
    }

    #[test]
    fn a_missing_loadpath_keeps_no_server_from_starting() {
        let out =
            Stage::new().then("loadpath missing\nboot full\nloadpath ready\nfile web v1\nwhole");
        expect(&out, &["cannot be read", "start web run 1"], &["end:"]);
    }

    #[test]
    fn the_same_listing_twice_does_nothing() {
        // I7
        let mut stage =
            Stage::after("file web v1\nfile db v1\nbad sick oh\nconflict two\nboot sync");
        expect_nothing(&stage.then("whole\nseen web db sick two\nrescan\nwhole"));
    }

    #[test]
    fn the_core_arms_no_deadline_for_a_new_or_changed_listing() {
        let mut stage = Stage::after("file web v1\nboot sync");
        assert_eq!(stage.deadline(), None);
        stage.then("file db v1\nseen db");
        assert_eq!(stage.deadline(), None, "for a new file");
        stage.then("refuse preflight\nfile db v2\nseen db");
        assert_eq!(stage.deadline(), None, "for a changed file");
        stage.then("settings quiet\nfile web v3\nbad job oh\nwhole");
        assert_eq!(stage.deadline(), None, "for a whole listing");
    }

    #[test]
    fn a_change_is_acted_upon_in_the_step_that_tells_of_it() {
        let out = Stage::after("boot sync").then("file web v1\nseen web");
        expect(&out, &["start web run 1"], &["advance", "at "]);
    }

    #[test]
    fn a_bad_file_stops_restarts_and_blocks_nothing() {
        // I6
        let mut stage = Stage::after("file web v1 restart always\nboot sync\nbad web oh\nseen web");
        expect(
            &stage.then("request 1 check web"),
            &["web running run 1 config invalid"],
            &[],
        );
        let out = stage.then("exited web 1\nadvance 500ms");
        expect(&out, &["start web run 2: `/bin/web v1`"], &[]);
        expect(
            &stage.then("file web v1 restart always\nseen web"),
            &[],
            &["TERM", "    start"],
        );
        expect(&stage.then("request 2 check web"), &["config current"], &[]);
    }

    #[test]
    fn a_bad_new_file_is_started_once_it_is_good() {
        for mode in ["sync", "full", "half startup web"] {
            let mut stage = Stage::after(&format!("boot {mode}\nbad web oh\nseen web"));
            expect(
                &stage.then("file web v1\nseen web"),
                &["start web run 1"],
                &[],
            );
        }
    }

    #[test]
    fn a_name_that_comes_back_with_the_digest_that_last_ran_is_not_new() {
        for mode in ["sync", "full"] {
            let mut stage = Stage::after(&format!("file web v1\nboot {mode}\nexited web 0"));
            stage.then("gone web\nseen web\nadvance 10s");
            expect(&stage.then("file web v1\nseen web"), &[], &["    start"]);
        }
    }

    #[test]
    fn a_new_content_that_never_ran_is_forgotten_once_the_file_is_what_last_ran() {
        for mode in ["sync", "full"] {
            let mut stage = Stage::after(&format!("file web v1\nboot {mode}\nexited web 0"));
            stage.then("gone web\nseen web\nadvance 10s");
            stage.then("file web v2 prehook 'start nobody'\nseen web");
            expect(&stage.then("file web v1\nseen web"), &[], &["    start"]);
            // Another content is as new as it was.
            let out = stage.then("gone web\nseen web\nadvance 10s\nfile web v3\nseen web");
            expect(&out, &["start web run 2"], &[]);
        }
    }

    #[test]
    fn a_name_that_was_away_for_longer_than_the_quiet_second_is_new() {
        let away = |span: &str| {
            let mut stage =
                Stage::after("file web v1\nboot full\nexited web 0\ngone web\nseen web");
            stage.then(&format!("advance {span}\nfile web v2\nseen web"))
        };
        expect(&away("1s"), &[], &["    start"]);
        expect(&away("1001ms"), &["start web run 2"], &[]);
    }

    #[test]
    fn what_ended_by_itself_stays_down_until_its_file_changes_in_sync() {
        let mut stage = Stage::after("file web v1\nboot sync\nexited web 0");
        expect(
            &stage.then("rescan\nadvance 1h\nwhole"),
            &[],
            &["    start"],
        );
        expect(
            &stage.then("file web v2\nseen web"),
            &["start web run 2: `/bin/web v2`"],
            &[],
        );
    }

    #[test]
    fn a_removed_child_whose_file_returns_is_started_in_sync() {
        let mut stage = Stage::after("file web v1\nboot sync\ngone web\nseen web\nadvance 1s");
        stage.then("exited web 0");
        expect(
            &stage.then("file web v1\nseen web"),
            &["start web run 2"],
            &[],
        );
    }

    #[test]
    fn settings_are_applied_at_once() {
        let mut stage = Stage::after("file web v1\nfile db v1\nboot quiet");
        expect(&stage.then("settings half"), &[], &["    start"]);
        expect(
            &stage.then("startup web"),
            &["start web run 1"],
            &["start db"],
        );
        expect(
            &stage.then("settings full"),
            &["start db run 1"],
            &["start web"],
        );
        stage.then("file db v2\nseen db\ngone web\nseen web\nadvance 2s");
        let out = stage.then("settings sync");
        expect(&out, &["TERM to db run 1", "TERM to web run 1"], &[]);
    }

    #[test]
    fn the_same_settings_twice_do_nothing() {
        let mut stage = Stage::after("file web v1\nboot sync\nexited web 0");
        expect_nothing(&stage.then("settings sync"));
    }

    #[test]
    fn what_failed_to_start_by_itself_is_not_tried_again_before_its_file_changes() {
        let mut stage = Stage::after("refuse spawn\nfile web v1\nboot sync");
        expect(&stage.then("request 1 check --all"), &["web failed"], &[]);
        expect(
            &stage.then("whole\nrescan\nadvance 1h"),
            &[],
            &["    start"],
        );
        expect(
            &stage.then("refuse nothing\nfile web v2\nseen web"),
            &["start web run 2"],
            &[],
        );
    }

    #[test]
    fn a_new_content_that_came_while_the_old_was_tried_is_tried_as_well() {
        let mut stage = Stage::after("file web v1 prehook 'run warm'\nboot sync");
        stage.then("file web v2 prehook 'run warm'\nseen web");
        let out = stage.then("hook web failed oh");
        expect(&out, &["run the hook of web: `warm`"], &[]);
        expect(
            &stage.then("hook web ok"),
            &["start web run 1: `/bin/web v2`"],
            &[],
        );
    }
}

mod removals {
    use super::*;

    #[test]
    fn gone_waits_for_the_quiet_second_and_back_in_time_changes_nothing() {
        let mut stage = Stage::after("file web v1\nboot sync\ngone web\nseen web");
        expect(&stage.then("advance 999ms"), &[], &["TERM"]);
        expect(
            &stage.then("file web v1\nseen web\nadvance 1m"),
            &[],
            &["TERM", "    start"],
        );
        assert_eq!(stage.deadline(), None, "I9");
    }

    #[test]
    fn further_changes_prolong_the_quiet_second_up_to_a_bound() {
        let mut stage = Stage::after("file web v1\nfile db v1\nboot sync\ngone web\nseen web");
        let mut out = String::new();
        for version in 0..60 {
            out = stage.then(&format!("advance 500ms\nbad db {version}\nseen db"));
            if out.contains("TERM to web") {
                assert!(
                    (58..=59).contains(&version),
                    "after {version} halves of a second"
                );
                return;
            }
        }
        panic!("a restless loadpath keeps a removed child for ever:\n{out}");
    }

    #[test]
    fn a_loadpath_that_is_missing_never_means_stop_everything_in_it() {
        let mut stage = Stage::after("file web v1\nboot sync\nloadpath missing\nwhole");
        expect(&stage.then("advance 5m\nrescan\nrescan"), &[], &["TERM"]);
        expect(&stage.then("request 1 check"), &["web running"], &[]);
    }

    #[test]
    fn a_loadpath_that_is_empty_and_another_inode_never_means_stop_everything_in_it() {
        let mut stage = Stage::after("file web v1\nboot sync\ngone web\nloadpath swapped\nwhole");
        expect(&stage.then("advance 5m\nrescan\nrescan"), &[], &["TERM"]);
    }

    #[test]
    fn an_emptied_loadpath_of_the_same_inode_is_believed() {
        let mut stage = Stage::after("file web v1\nboot sync\ngone web\nwhole");
        expect(&stage.then("advance 1s"), &["TERM to web run 1"], &[]);
    }

    #[test]
    fn another_directory_with_files_in_it_is_believed() {
        let mut stage = Stage::after("file web v1\nfile db v1\nboot sync");
        stage.then("gone web\nloadpath swapped\nwhole");
        expect(
            &stage.then("advance 1s"),
            &["TERM to web run 1"],
            &["TERM to db"],
        );
    }

    #[test]
    fn a_missing_loadpath_that_returns_without_a_file_removes_it_after_the_quiet_second() {
        let mut stage = Stage::after("file web v1\nfile db v1\nboot sync\nloadpath missing\nwhole");
        stage.then("advance 1m\ngone web\nloadpath ready\nwhole");
        expect(
            &stage.then("advance 1s"),
            &["TERM to web run 1"],
            &["TERM to db"],
        );
    }

    fn three_of_five(options: &str) -> Stage {
        let files = "file a v1\nfile b v1\nfile c v1\nfile d v1\nfile e v1";
        let gone = "gone a\ngone b\ngone c\nwhole\nadvance 1s";
        Stage::after(&format!("{files}\nboot sync {options}\n{gone}"))
    }

    #[test]
    fn more_than_half_at_once_waits_for_the_next_rescan() {
        let mut stage = three_of_five("");
        expect(&stage.then("advance 1h\nwhole"), &[], &["TERM"]);
        expect(
            &stage.then("request 1 check a"),
            &["a running run 1 config removed"],
            &[],
        );
        let out = stage.then("rescan");
        expect(
            &out,
            &["TERM to a run 1", "TERM to b run 1", "TERM to c run 1"],
            &["TERM to d"],
        );
    }

    #[test]
    fn more_than_half_at_once_waits_for_a_minute_where_rescans_are_off() {
        let mut stage = three_of_five("rescan off");
        expect(&stage.then("advance 59999ms"), &[], &["TERM"]);
        expect(&stage.then("advance 1ms"), &["TERM to a run 1"], &[]);
    }

    #[test]
    fn what_returns_before_the_rescan_is_not_stopped_by_it() {
        let mut stage = three_of_five("");
        let out = stage.then("file a v1\nseen a\nrescan");
        expect(&out, &["TERM to b run 1"], &["TERM to a"]);
    }

    #[test]
    fn fewer_than_three_or_not_more_than_half_are_believed() {
        let mut stage = Stage::after("file a v1\nfile b v1\nboot sync\ngone a\ngone b\nwhole");
        expect(&stage.then("advance 1s"), &["TERM to a", "TERM to b"], &[]);
        let files = "file a v1\nfile b v1\nfile c v1\nfile d v1\nfile e v1\nfile f v1\nboot sync";
        let mut stage = Stage::after(&format!("{files}\ngone a\ngone b\ngone c\nwhole"));
        expect(
            &stage.then("advance 1s"),
            &["TERM to a", "TERM to b", "TERM to c"],
            &[],
        );
    }

    #[test]
    fn a_loadpath_taken_out_of_the_configuration_waits_for_the_next_rescan() {
        let mut stage = Stage::after("file web v1\nboot sync");
        expect(&stage.then("no loadpaths\nadvance 2m"), &[], &["TERM"]);
        let out = stage.then("gone web\nrescan");
        expect(&out, &["TERM to web run 1"], &[]);
    }

    #[test]
    fn what_went_while_no_server_watched_waits_for_the_quiet_second_too() {
        let mut stage = Stage::after("file web v1\nfile db v1\nboot sync\ncrash\ngone web");
        expect(
            &stage.then("boot sync continued\nadvance 999ms"),
            &[],
            &["TERM"],
        );
        expect(
            &stage.then("advance 1ms"),
            &["TERM to web run 1"],
            &["TERM to db"],
        );
    }

    #[test]
    fn a_restart_that_is_due_dies_with_the_file_in_sync() {
        let mut stage = Stage::after("file web v1 restart always\nboot sync\nexited web 1");
        stage.then("advance 500ms\nexited web 1\nadvance 1s\nexited web 1");
        let out = stage.then("gone web\nseen web\nadvance 1h");
        expect(&out, &["at 2.500s"], &["    start", "TERM"]);
    }
}

mod hooks {
    use super::*;

    #[test]
    fn a_prehook_runs_before_starts_restarts_and_automatic_ones() {
        let file = "file web v1 prehook 'run warm' restart always";
        let mut stage = Stage::after(file);
        expect(
            &stage.then("boot sync"),
            &["run the hook of web"],
            &["    start"],
        );
        expect(&stage.then("hook web ok"), &["start web run 1"], &[]);
        expect(
            &stage.then("request 1 restart web"),
            &["run the hook of web"],
            &["TERM"],
        );
        expect(
            &stage.then("hook web ok\nexited web 0"),
            &["start web run 2"],
            &[],
        );
        expect(
            &stage.then("exited web 1\nadvance 500ms"),
            &["run the hook of web"],
            &["    start"],
        );
        expect(&stage.then("hook web ok"), &["start web run 3"], &[]);
    }

    #[test]
    fn a_posthook_runs_after_a_stop_and_not_between_the_halves_of_a_restart() {
        let mut stage = Stage::after("file web v1 posthook 'run tidy'\nboot sync");
        let out = stage.then("request 1 restart web\nexited web 0");
        expect(&out, &["start web run 2"], &["run the hook"]);
        let out = stage.then("request 2 stop web\nexited web 0");
        expect(&out, &["run the hook of web"], &["answer 2"]);
        expect(&stage.then("hook web ok"), &["answer 2: ok"], &[]);
    }

    #[test]
    fn no_posthook_runs_after_a_child_that_ended_by_itself() {
        let mut stage = Stage::after("file web v1 posthook 'run tidy'\nboot sync");
        expect(&stage.then("exited web 0"), &[], &["run the hook"]);
    }

    #[test]
    fn start_of_what_runs_and_stop_of_what_does_not_count_as_done() {
        let mut stage = Stage::after("file db v1\nboot sync");
        let out = stage.then("file web v1 prehook 'start db'\nseen web");
        expect(&out, &["start web run 1"], &[]);
        stage.then("request 1 stop db\nexited db 0");
        let out = stage.then("file job v1 prehook 'stop db'\nseen job");
        expect(&out, &["start job run 1"], &[]);
    }

    #[test]
    fn restart_of_what_does_not_run_is_a_failed_hook() {
        let mut stage =
            Stage::after("file db v1\nboot quiet\nfile web v1 prehook 'restart db'\nseen web");
        expect(
            &stage.then("request 1 start web"),
            &["answer 1: hook_failed"],
            &["    start"],
        );
    }

    #[test]
    fn chains_run_one_by_one_the_deepest_first() {
        let mut stage = Stage::after(
            "file a v1 prehook 'start b'\nfile b v1 prehook 'start c'\nfile c v1\nboot quiet",
        );
        let out = stage.then("request 1 start a");
        let at = |text: &str| out.find(text).expect(text);
        assert!(at("start c run 1") < at("start b run 1"), "{out}");
        assert!(at("start b run 1") < at("start a run 1"), "{out}");
    }

    #[test]
    fn a_cycle_is_refused_before_anything_runs_and_told_whole() {
        let mut stage = Stage::after(
            "file a v1 prehook 'start b'\nfile b v1 prehook 'start c'\n\
             file c v1 prehook 'start a'\nboot quiet",
        );
        let out = stage.then("request 1 start a");
        let circle = "a -> start b -> start c -> start a";
        expect(&out, &["answer 1: hook_cycle", circle], &["    start"]);
    }

    #[test]
    fn a_chain_through_an_unknown_bad_or_conflicting_child_is_refused_before_anything_runs() {
        for (make, what) in [
            ("", "unknown"),
            ("bad c oh", "a bad file"),
            ("conflict c", "several files"),
        ] {
            let mut stage = Stage::after(&format!(
                "file a v1 prehook 'start b'\nfile b v1 prehook 'start c'\n{make}\nboot quiet"
            ));
            let out = stage.then("request 1 start a");
            expect(
                &out,
                &["hook_failed", what, "a -> start b -> start c"],
                &["    start"],
            );
        }
    }

    #[test]
    fn a_chain_longer_than_the_bound_is_refused() {
        let mut script = String::new();
        for n in 0..80 {
            script.push_str(&format!("file c{n} v1 prehook 'start c{}'\n", n + 1));
        }
        let mut stage = Stage::after(&format!("{script}file c80 v1\nboot quiet"));
        let out = stage.then("request 1 start c0");
        expect(
            &out,
            &["answer 1: hook_cycle", "more than 64 hooks"],
            &["    start"],
        );
    }

    #[test]
    fn a_prehook_does_not_start_a_held_child() {
        // I3
        let mut stage = Stage::after("file db v1\nboot sync\nrequest 1 stop db\nexited db 0");
        let out = stage.then("file web v1 prehook 'start db'\nseen web\nrequest 2 start web");
        expect(
            &out,
            &["answer 2: hook_failed", "`db` is held"],
            &["    start"],
        );
    }

    #[test]
    fn a_prehook_does_not_restart_a_held_child_that_does_not_end_either() {
        // I3: held, and still stopping
        let mut stage = Stage::after("file db v1\nboot sync\nrequest 1 stop db\nadvance 20s");
        stage.then("file web v1 prehook 'trystart db'\nseen web");
        expect(
            &stage.then("request 2 start web"),
            &["answer 2: hook_failed"],
            &["KILL"],
        );
        expect(&stage.then("exited db SIGKILL"), &[], &["    start"]);
    }

    #[test]
    fn who_waits_for_a_held_child_starts_when_that_is_released() {
        let mut stage = Stage::after("file db v1\nboot sync\nrequest 1 stop db\nexited db 0");
        let out = stage.then("file web v1 prehook 'start db'\nseen web\nrequest 2 check --all");
        expect(&out, &["web pending"], &[]);
        expect(
            &stage.then("request 3 start db"),
            &["start db run 2", "start web run 1"],
            &[],
        );
    }

    #[test]
    fn a_whole_chain_waits_for_the_held_child_at_its_end() {
        let mut stage = Stage::after("file c v1\nboot sync\nrequest 1 stop c\nexited c 0");
        stage.then("file b v1 prehook 'start c'\nfile a v1 prehook 'start b'\nseen b\nseen a");
        let out = stage.then("request 2 start c");
        expect(
            &out,
            &["start c run 2", "start b run 1", "start a run 1"],
            &[],
        );
    }

    #[test]
    fn who_waits_for_a_file_starts_when_that_is_good() {
        let mut stage = Stage::after("bad db oh\nfile web v1 prehook 'start db'\nboot sync");
        expect(&stage.then("request 1 check --all"), &["web pending"], &[]);
        expect(
            &stage.then("file db v1\nseen db"),
            &["start db run 1", "start web run 1"],
            &[],
        );
    }

    #[test]
    fn a_failed_prehook_means_not_started_and_the_old_run_stays() {
        // I6
        let mut stage = Stage::after("file web v1\nboot sync\nfile web v1 prehook 'run warm'");
        let out = stage.then("request 1 restart web\nhook web failed exit code 1");
        expect(&out, &["answer 1: hook_failed", "exit code 1"], &["TERM"]);
        expect(
            &stage.then("request 2 check web"),
            &["web running run 1"],
            &[],
        );
    }

    #[test]
    fn a_failed_posthook_is_told_and_the_stop_stands() {
        let mut stage = Stage::after("file web v1 posthook 'run tidy'\nboot sync");
        let out = stage.then("request 1 stop web\nexited web 0\nhook web failed exit code 1");
        expect(&out, &["answer 1: ok", "posthook failed: exit code 1"], &[]);
        expect(
            &stage.then("request 2 check --all"),
            &["web stopped", "hold true"],
            &[],
        );
    }

    #[test]
    fn stop_all_runs_no_posthook_that_starts_something_and_names_it() {
        let mut stage = Stage::after("file db v1\nfile web v1 posthook 'start db'\nboot quiet");
        stage.then("request 1 start web");
        let out = stage.then("request 2 stop --all\nexited web 0");
        expect(
            &out,
            &["posthook `start db` was skipped"],
            &["start db run"],
        );
    }

    #[test]
    fn stop_all_starts_nothing_by_a_posthook_of_what_a_posthook_stops() {
        let mut stage = Stage::after(
            "file c v1\nfile b v1 posthook 'start c'\nfile a v1 posthook 'stop b'\nboot quiet",
        );
        stage.then("request 1 start a");
        stage.then("request 2 stop --all");
        let out = stage.then("request 3 start b\nexited a 0\nexited b 0");
        expect(&out, &["answer 2: ok"], &["start c run"]);
    }

    #[test]
    fn stop_all_that_joins_a_stop_keeps_its_posthook_from_starting_something() {
        let mut stage = Stage::after("file db v1\nfile web v1 posthook 'start db'\nboot quiet");
        stage.then("request 1 start web\nrequest 2 stop web\nrequest 3 stop --all");
        expect(
            &stage.then("exited web 0"),
            &["was skipped", "answer 3: ok"],
            &["start db run"],
        );
    }

    #[test]
    fn the_end_of_the_server_runs_no_posthook_that_starts_something_and_names_it() {
        let mut stage = Stage::after("file db v1\nfile web v1 posthook 'start db'\nboot quiet");
        stage.then("request 1 start web\nrequest 2 kill --stop-children");
        let out = stage.then("exited web 0");
        expect(
            &out,
            &["answer 2: ok", "posthook `start db` was skipped"],
            &["start db run"],
        );
    }

    #[test]
    fn a_posthook_that_stops_somebody_is_done_at_the_end_too() {
        let mut stage = Stage::after("file db v1\nfile web v1 posthook 'stop db'\nboot sync");
        let out = stage.then("request 2 kill --stop-children\nexited web 0\nexited db 0");
        expect(&out, &["answer 2: ok"], &["posthook failed"]);
    }

    #[test]
    fn a_stop_by_a_hook_cancels_what_is_due_and_holds_nobody() {
        let mut stage =
            Stage::after("file db v1 prehook 'run slow'\nfile web v1 prehook 'stop db'");
        let out = stage.then("boot sync");
        expect(
            &out,
            &["kill the hook's program", "start web run 1"],
            &["held", "start db"],
        );
        expect(
            &stage.then("whole\nrescan\nrequest 1 check --all"),
            &["db stopped"],
            &["start db"],
        );
        expect(&stage.then("file db v2\nseen db"), &["start db run 1"], &[]);
    }

    #[test]
    fn an_overtaken_start_lets_go_of_what_it_had_its_hook_wait_for() {
        let mut stage = Stage::after(
            "file db v1 prehook 'run slow'\nfile web v1 prehook 'start db'\nboot quiet",
        );
        stage.then("request 1 start web");
        let out = stage.then("request 2 stop web");
        expect(
            &out,
            &[
                "kill the hook's program",
                "answer 1: superseded",
                "answer 2: ok",
            ],
            &[],
        );
        expect(
            &stage.then("request 3 check --all"),
            &["db stopped", "web stopped"],
            &[],
        );
    }

    #[test]
    fn an_overtaken_start_leaves_what_others_wait_for() {
        let mut stage = Stage::after(
            "file db v1 prehook 'run slow'\nfile web v1 prehook 'start db'\nboot quiet",
        );
        stage.then("request 1 start web\nrequest 2 start db\nrequest 3 stop web");
        expect(
            &stage.then("hook db ok"),
            &["answer 2: ok, `db` started"],
            &[],
        );
    }
}

mod repeats {
    use super::*;

    #[test]
    fn any_run_arms_the_timer_whatever_began_it() {
        let mut stage = Stage::after("file job v1 repeat trystart 5s restart always");
        expect(&stage.then("boot sync"), &["job run 1 armed"], &[]);
        expect(
            &stage.then("request 1 restart job\nexited job 0"),
            &["job run 2 armed"],
            &[],
        );
        expect(
            &stage.then("exited job 1\nadvance 500ms"),
            &["job run 3 armed"],
            &[],
        );
    }

    #[test]
    fn it_fires_only_for_the_latest_run_and_never_while_held() {
        // I3, I4
        let mut stage = Stage::after("file job v1 repeat trystart 5s\nboot sync");
        stage.then("request 1 stop job\nexited job 0");
        expect(&stage.then("advance 1h"), &[], &["    start"]);
        assert_eq!(stage.deadline(), None);
    }

    #[test]
    fn start_that_finds_the_child_running_is_skipped_and_armed_again() {
        let mut stage = Stage::after("file job v1 repeat start 5s\nboot sync");
        let out = stage.then("advance 5s");
        expect(&out, &["job run 1 armed `start` for 10.000s"], &["TERM"]);
    }

    #[test]
    fn start_and_trystart_run_an_ended_run_again() {
        for action in ["start", "trystart"] {
            let mut stage = Stage::after(&format!("file job v1 repeat {action} 5s\nboot sync"));
            expect(
                &stage.then("exited job 0\nadvance 5s"),
                &["start job run 2"],
                &[],
            );
        }
    }

    #[test]
    fn an_armed_action_fires_once_although_repeat_was_deleted_and_then_none_is_armed() {
        let mut stage =
            Stage::after("file job v1 repeat restart 5s\nboot quiet\nrequest 1 start job");
        stage.then("file job v2\nseen job");
        let out = stage.then("advance 5s\nexited job 0");
        expect(&out, &["start job run 2"], &["armed `"]);
        assert_eq!(stage.deadline(), None);
    }

    #[test]
    fn a_changed_interval_counts_from_the_next_arming() {
        let mut stage =
            Stage::after("file job v1 repeat start 5s\nboot quiet\nrequest 1 start job");
        stage.then("file job v2 repeat start 60s\nseen job");
        expect(
            &stage.then("advance 5s"),
            &["armed `start` for 65.000s"],
            &[],
        );
    }

    #[test]
    fn a_firing_that_meets_a_bad_file_a_conflict_or_a_failed_hook_arms_again() {
        for fault in [
            "bad job oh",
            "conflict job",
            "file job v2 repeat restart 5s prehook 'start x'",
        ] {
            let mut stage =
                Stage::after("file job v1 repeat restart 5s\nboot quiet\nrequest 1 start job");
            let out = stage.then(&format!("{fault}\nseen job\nadvance 5s"));
            expect(
                &out,
                &["repeat changed nothing", "armed `restart` for 10.000s"],
                &["TERM"],
            );
        }
    }

    #[test]
    fn a_repeated_stop_does_not_arm_again_and_holds_nobody() {
        let mut stage = Stage::after("file job v1 repeat stop 5s\nboot sync");
        let out = stage.then("advance 5s\nexited job 0");
        expect(
            &out,
            &["TERM to job run 1", "nothing is armed for job"],
            &["held"],
        );
        assert_eq!(stage.deadline(), None);
    }

    #[test]
    fn a_stop_that_overtakes_a_start_leaves_no_timer_armed() {
        let mut stage = Stage::after("file job v1 repeat trystart 5s\nfile web v1\nboot quiet");
        stage.then("refuse haste\nrequest 1 start job\nfile web v2 prehook 'stop job'");
        let out = stage.then("request 2 start web\nspawned");
        expect(&out, &["TERM to job run 1"], &["armed `"]);
        stage.then("exited job 0\nadvance 1h");
        expect(&stage.then("request 3 check job"), &["job stopped"], &[]);
    }

    #[test]
    fn a_timer_outlives_the_server_and_what_it_missed_fires_at_once() {
        let mut stage =
            Stage::after("file job v1 repeat trystart 5s\nboot sync\nexited job 0\ncrash");
        stage.then("advance 7s");
        expect(
            &stage.then("boot sync continued"),
            &["start job run 2"],
            &[],
        );
    }

    #[test]
    fn a_firing_cut_off_by_a_crash_fires_again() {
        let mut stage = Stage::after(
            "file job v1 repeat trystart 5s prehook 'run warm'\nboot sync\nhook job ok",
        );
        stage.then("exited job 0\nadvance 5s\ncrash\nhook job gone");
        expect(
            &stage.then("boot sync continued"),
            &["run the hook of job"],
            &[],
        );
    }

    #[test]
    fn a_firing_cut_off_by_the_end_of_the_server_fires_at_the_next_start() {
        let mut stage = Stage::after("file job v1 repeat restart 5s\nboot sync");
        stage.then("file job v1 repeat restart 5s prehook 'run warm'\nadvance 5s\nrequest 1 kill");
        expect(&stage.then("boot quiet"), &["read again: job"], &[]);
    }
}

mod programs {
    use super::*;

    /// A server that was killed while the prehook of a client's start ran.
    fn killed_within_prehook(file: &str) -> Stage {
        let script = format!("file web v1 {file}\nboot quiet\nrequest 1 start web\ncrash");
        Stage::after(&script)
    }

    #[test]
    fn a_hook_that_outlived_its_server_is_gone_on_with() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        let out = stage.then("boot quiet continued");
        expect(&out, &["taken back", "goes on"], &["run the hook", "kill"]);
        let out = stage.then("hook web ok");
        expect(&out, &["the hook of web is over", "start web run 1"], &[]);
    }

    #[test]
    fn how_it_ended_counts_whoever_saw_it_begin() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        stage.then("boot quiet continued");
        let out = stage.then("hook web failed exit code 3");
        expect(&out, &["is hook_failed", "exit code 3"], &["start web run"]);
    }

    #[test]
    fn how_it_ended_counts_for_an_order_that_is_on_its_way_to_it() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        stage.then("refuse quick look\nboot quiet continued\nhook web ok\nrefuse nothing");
        let out = stage.then("looked");
        expect(&out, &["start web run 1"], &["run the hook"]);
    }

    #[test]
    fn one_that_ended_while_no_server_lived_is_run_again() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        let out = stage.then("hook web gone\nboot quiet continued");
        let both = ["the hook of web is over", "run the hook of web"];
        expect(&out, &both, &["start web run"]);
    }

    #[test]
    fn one_that_ended_as_nobody_can_tell_is_run_again() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        stage.then("boot quiet continued");
        let out = stage.then("hook web somehow");
        let both = ["the hook of web is over", "run the hook of web"];
        expect(&out, &both, &["start web run"]);
        expect(&stage.then("hook web ok"), &["start web run 1"], &[]);
    }

    #[test]
    fn another_hook_begins_only_when_the_one_before_is_gone() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        let out = stage.then("file web v1 prehook 'run warm down'\nboot quiet continued");
        let order = [
            "kill the hook",
            "is over",
            "run the hook of web: `warm down`",
        ];
        expect(&out, &order, &["start web run"]);
        let at = order.map(|words| out.find(words));
        assert!(at.is_sorted(), "{out}");
    }

    #[test]
    fn a_stop_kills_the_prehook_of_a_dead_server() {
        let mut stage = Stage::after("file web v1 prehook 'run warm up'\nboot sync\ncrash");
        stage.then("file web v1 restart always prehook 'run warm up'");
        let out = stage.then("boot quiet continued\nrequest 1 stop web");
        let there = ["taken back", "kill the hook", "not_running"];
        expect(&out, &there, &["run the hook"]);
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        let out = stage.then("refuse quick look\nboot quiet continued\nrequest 2 stop web");
        expect(&out, &["kill the hook", "answer 2: ok"], &["start web run"]);
    }

    #[test]
    fn what_ran_for_a_life_that_ended_by_order_is_killed() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        expect(&stage.then("boot quiet"), &["kill the hook"], &["goes on"]);
    }

    #[test]
    fn one_that_cannot_die_fails_what_waits_for_it_and_nothing_begins_beside_it() {
        let mut stage = killed_within_prehook("prehook 'run warm up'");
        let script = "refuse death\nfile web v1 prehook 'run warm down'\nboot quiet continued";
        let out = stage.then(script);
        expect(&out, &["kill the hook"], &["run the hook"]);
        let out = stage.then("hook web stays\nrequest 2 start web");
        let both = ["is hook_failed", "answer 2: hook_failed", "is not gone yet"];
        expect(&out, &both, &["run the hook"]);
        let out = stage.then("hook web failed SIGKILL\nrequest 3 start web");
        expect(&out, &["run the hook of web: `warm down`"], &[]);
    }
}

mod policies {
    use super::*;

    #[test]
    fn a_crash_during_an_operators_restart_that_fails_is_not_forgotten() {
        let mut stage = Stage::after("file web v1 restart always\nboot quiet\nrequest 1 start web");
        stage.then("file web v2 restart always prehook 'run warm'\nrequest 2 restart web");
        stage.then("exited web 1");
        let out = stage.then("hook web failed oh\nadvance 1s");
        expect(&out, &["answer 2: hook_failed", "run the hook of web"], &[]);
    }

    #[test]
    fn who_was_given_up_stays_so_when_the_server_is_killed() {
        let mut stage =
            Stage::after("file web v1 restart always max 1 1m\nboot sync\nexited web 1");
        stage.then("advance 500ms\nexited web 1\ncrash");
        let out = stage.then("boot sync continued\nadvance 1h\nrequest 1 check --all");
        expect(
            &out,
            &["web failed", "given up after 1 restarts"],
            &["    start"],
        );
    }

    #[test]
    fn a_restart_that_is_due_is_due_after_a_crash_and_not_after_an_end_by_order() {
        let life = "file web v1 restart always\nboot quiet\nrequest 1 start web\nexited web 1";
        let mut stage = Stage::after(life);
        expect(
            &stage.then("crash\nboot quiet continued\nadvance 1s"),
            &["start web run 2"],
            &[],
        );
        let mut stage = Stage::after(life);
        stage.then("request 2 kill\nboot quiet");
        expect(&stage.then("advance 1h"), &[], &["    start"]);
        expect(
            &stage.then("crash\nboot quiet continued\nadvance 1h"),
            &[],
            &["    start"],
        );
    }

    #[test]
    fn attempts_that_cannot_be_made_count_towards_giving_up() {
        let mut stage =
            Stage::after("file web v1 restart always max 2 1h\nboot sync\nrefuse spawn");
        let out = stage.then("exited web 1\nadvance 10m");
        expect(&out, &["given up after 2 restarts in 1h"], &[]);
        assert_eq!(stage.deadline(), None, "I9");
    }

    #[test]
    fn a_hook_that_stops_the_child_ends_its_backoff() {
        let mut stage = Stage::after("file web v1 restart always\nboot sync\nexited web 1");
        stage.then("file db v1 prehook 'stop web'\nseen db");
        expect(&stage.then("advance 1h"), &[], &["start web"]);
    }
}

mod records {
    use super::*;

    #[test]
    fn of_removed_children_the_oldest_are_forgotten_and_count_on_when_they_return() {
        // I8: the table is bounded
        let bound = crate::reconcile::REMOVED_KEPT_MAX;
        let each = |what: &str, end: &str| -> String {
            (0..bound + 2)
                .map(|n| format!("{what} c{n} {end}\nadvance 1ms\n"))
                .collect()
        };
        let mut stage = Stage::after(&format!("{}boot sync", each("file", "v1")));
        stage.then(&each("exited", "0"));
        stage.then(&format!("{}whole\nadvance 1s\nrescan", each("gone", "")));
        let out = stage.then("request 1 check --all");
        expect(
            &out,
            &["c2 exited", "c1000 exited"],
            &["c0 exited", "c1 exited"],
        );
        let out = stage.then("file c0 v1\nseen c0");
        expect(&out, &["start c0 run 2"], &[]);
    }

    #[test]
    fn nothing_is_started_that_could_not_be_written_down() {
        let mut stage = Stage::after("file web v1\nboot quiet\nrefuse records");
        expect(
            &stage.then("request 1 start web"),
            &["answer 1: internal"],
            &["    start"],
        );
    }

    #[test]
    fn a_stop_whose_hold_is_not_on_disk_says_so() {
        // I5
        let mut stage = Stage::after("file web v1\nboot sync\nrefuse records");
        let out = stage.then("request 1 stop web\nexited web 0");
        expect(
            &out,
            &["answer 1: internal", "hold could not be recorded"],
            &["ok, `web`"],
        );
    }

    #[test]
    fn run_numbers_go_on_where_the_file_comes_back_after_a_reboot() {
        // A loadpath that is mounted late: the child is unknown at first.
        let mut stage = Stage::after("file web v1\nboot sync\nreboot\nloadpath missing\nboot sync");
        let out = stage.then("loadpath ready\nwhole");
        expect(&out, &["start web run 1001"], &[]);
    }

    #[test]
    fn a_promised_hold_is_kept_by_the_next_server() {
        // I8: the server was killed after it wrote the hold down and before it sent TERM
        let mut stage = Stage::after("file web v1\nboot sync\nheld web\ncrash");
        let out = stage.then("boot sync continued");
        expect(&out, &["TERM to web run 1"], &[]);
        expect(&stage.then("exited web 0\nwhole"), &[], &["    start"]);
    }

    #[test]
    fn a_child_in_doubt_is_started_by_an_operator_alone() {
        // I1: a damaged record tells of its beginning and not of its process
        let mut stage = Stage::after(
            "file web v1\nboot quiet\nbegun web\ncrash\nboot sync continued doubted web",
        );
        let out =
            stage.then("whole\nfile db v1 prehook 'start web'\nseen db\nrequest 1 start --all");
        expect(&out, &[], &["start web run", "start db run"]);
        expect(
            &stage.then("request 2 start web"),
            &["start web run 2"],
            &[],
        );
    }

    #[test]
    fn what_a_fresh_start_had_not_begun_is_begun_by_the_one_after_a_crash() {
        let life = "file web v1 prehook 'run x'\nboot sync\nhook web ok\nexited web 0\nterm";
        let mut stage = Stage::after(life);
        // Killed during the prehook, twice.
        stage.then("boot sync\ncrash\nboot sync continued\ncrash");
        let out = stage.then("boot sync continued\nhook web ok");
        expect(&out, &["start web run 2"], &[]);
        // What had begun had begun: an end of its own stays one.
        let mut stage = Stage::after(life);
        stage.then("boot sync\nhook web ok\nexited web 0\ncrash");
        let out = stage.then("boot sync continued\nadvance 1s");
        expect(&out, &[], &["run hook", "start web run"]);
        // I3: who stopped it meanwhile is obeyed, also when the hold is gone.
        let mut stage = Stage::after(life);
        stage.then("boot quiet\nrequest 1 stop web\nwritten\ncrash");
        let out = stage.then("boot sync continued\nadvance 1s");
        expect(&out, &[], &["run hook", "start web run"]);
    }

    #[test]
    fn a_run_that_was_never_executed_is_still_due() {
        // I1: what is executed has written itself down before
        let life = "file web v1\nboot quiet\nbegun web\ncrash";
        let out = Stage::after(life).then("boot quiet continued\nadvance 1s");
        expect(&out, &["start web run 2"], &["in doubt"]);
        // However many servers die before it has begun.
        let mut stage = Stage::after(life);
        stage.then("refuse quick look\nboot quiet continued\nadvance 1s\ncrash");
        let out = stage.then("refuse nothing\nboot quiet continued\nadvance 1s");
        expect(&out, &["start web run 2"], &[]);
        // An operator may have cancelled it meanwhile.
        let mut stage = Stage::after(life);
        stage.then("refuse quick look\nboot quiet continued\nadvance 1s\nrequest 1 stop web");
        stage.then("written\nrequest 2 start --all\nwritten\nwritten\ncrash");
        let out = stage.then("refuse nothing\nboot quiet continued\nadvance 1s");
        expect(&out, &[], &["start web run"]);
        // After a reboot, or an end by order, the mode alone decides.
        let out = Stage::after(life).then("boot quiet\nadvance 1s");
        expect(&out, &[], &["start web run"]);
        // I3
        let held = "file web v1\nboot quiet\nheld web\nbegun web\ncrash";
        let out = Stage::after(held).then("boot sync continued\nadvance 1s");
        expect(&out, &[], &["start web run"]);
    }
}
