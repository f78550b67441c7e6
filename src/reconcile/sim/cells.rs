//! The table of states of DESIGN 6, cell by cell: what each command does in each state; and the
//! sentences below it.

use super::{claims::expect, script::Stage};

/// How a child comes into each state of the table.
const STOPPED: &str = "file web v1\nboot quiet";
const HELD: &str = "file web v1\nboot sync\nrequest 1 stop web\nexited web 0";
const EXITED: &str = "file web v1\nboot quiet\nrequest 1 start web\nexited web 3";
const FAILED: &str = "file web v1\nboot quiet\nrefuse spawn\nrequest 1 start web\nrefuse nothing";
const PENDING: &str = "file web v1 prehook 'run warm'\nboot sync";
const BLOCKED: &str = "file web v1 prehook 'start db'\nboot sync";
const BACKOFF: &str = "file web v1 restart always\nboot sync\nexited web 1";
const STARTING: &str = "file web v1\nboot quiet\nrefuse haste\nrequest 1 start web\nrefuse nothing";
const RUNNING: &str = "file web v1\nboot sync";
const STOPPING: &str = "file web v1\nboot sync\nrequest 1 stop web";

fn command(state: &str, command: &str) -> (Stage, String) {
    let mut stage = Stage::after(state);
    let out = stage.then(&format!("request 7 {command} web"));
    (stage, out)
}

#[test]
fn each_state_is_called_by_its_name() {
    for (life, word) in [
        (STOPPED, "web stopped run -"),
        (HELD, "web stopped run 1"),
        (EXITED, "web exited run 1"),
        (FAILED, "web failed run 1"),
        (PENDING, "web pending run -"),
        (BLOCKED, "web pending run -"),
        (BACKOFF, "web backoff run 1"),
        (STARTING, "web starting run 1"),
        (RUNNING, "web running run 1"),
        (STOPPING, "web stopping run 1"),
    ] {
        expect(
            &Stage::after(life).then("request 9 check --all"),
            &[word],
            &[],
        );
    }
}

#[test]
fn start_starts_what_is_stopped_exited_or_failed() {
    for life in [STOPPED, HELD, EXITED, FAILED] {
        let (_, out) = command(life, "start");
        expect(&out, &["start web run", "answer 7: ok, `web` started"], &[]);
    }
}

#[test]
fn start_joins_the_wait_of_what_is_pending() {
    let (mut stage, out) = command(PENDING, "start");
    expect(&out, &[], &["answer 7", "run the hook"]);
    expect(
        &stage.then("hook web ok"),
        &["start web run 1", "answer 7: ok"],
        &["run 2"],
    );
}

#[test]
fn start_of_what_waits_for_a_file_tells_what_it_waits_for() {
    let (_, out) = command(BLOCKED, "start");
    expect(
        &out,
        &["answer 7: hook_failed", "`db` is unknown"],
        &["    start"],
    );
}

#[test]
fn start_starts_what_is_in_backoff_at_once() {
    let (stage, out) = command(BACKOFF, "start");
    expect(&out, &["start web run 2", "answer 7: ok"], &[]);
    assert_eq!(stage.deadline(), None, "the restart is not due any more");
}

#[test]
fn start_of_what_is_starting_or_running_is_already_running() {
    let (mut stage, out) = command(STARTING, "start");
    expect(&out, &[], &["answer 7"]);
    expect(
        &stage.then("spawned"),
        &["answer 1: ok", "answer 7: already_running"],
        &[],
    );
    let (_, out) = command(RUNNING, "start");
    expect(&out, &["answer 7: already_running"], &["    start"]);
}

#[test]
fn restart_of_what_does_not_run_is_not_running() {
    for life in [STOPPED, HELD, EXITED, FAILED, PENDING, BLOCKED] {
        let (_, out) = command(life, "restart");
        expect(&out, &["answer 7: not_running"], &["    start"]);
    }
}

#[test]
fn restart_starts_what_is_in_backoff_at_once() {
    let (_, out) = command(BACKOFF, "restart");
    expect(&out, &["start web run 2", "answer 7: ok"], &[]);
}

#[test]
fn restart_and_trystart_replace_what_is_starting_or_running() {
    for word in ["restart", "trystart"] {
        let (mut stage, _) = command(STARTING, word);
        let out = stage.then("spawned\nexited web 0");
        expect(
            &out,
            &["TERM to web run 1", "start web run 2", "answer 7: ok"],
            &[],
        );
        let (mut stage, out) = command(RUNNING, word);
        expect(&out, &["TERM to web run 1"], &["answer 7", "    start"]);
        expect(
            &stage.then("exited web 0"),
            &["start web run 2", "answer 7: ok"],
            &[],
        );
    }
}

#[test]
fn trystart_starts_what_does_not_run() {
    for life in [STOPPED, HELD, EXITED, FAILED, BACKOFF] {
        let (_, out) = command(life, "trystart");
        expect(&out, &["start web run", "answer 7: ok, `web` started"], &[]);
    }
}

#[test]
fn trystart_joins_the_wait_and_is_answered_by_its_own_name() {
    let (mut stage, out) = command(PENDING, "trystart");
    expect(&out, &[], &["answer 7"]);
    expect(
        &stage.then("hook web ok"),
        &["start web run 1", "answer 7: ok"],
        &[],
    );
}

#[test]
fn stop_of_what_is_stopped_exited_or_failed_is_not_running() {
    for life in [STOPPED, HELD, EXITED, FAILED] {
        let (mut stage, out) = command(life, "stop");
        expect(&out, &["answer 7: not_running"], &["held"]);
        let hold = if life == HELD {
            "hold true"
        } else {
            "hold false"
        };
        expect(&stage.then("request 9 check --all"), &[hold], &[]);
    }
}

#[test]
fn stop_of_what_ended_with_a_repeat_armed_cancels_that_and_holds() {
    let life = "file web v1 repeat trystart 5s\nboot sync\nexited web 0";
    let (mut stage, out) = command(life, "stop");
    expect(
        &out,
        &["nothing is armed for web", "web is held", "answer 7: ok"],
        &[],
    );
    expect(&stage.then("advance 1h"), &[], &["    start"]);
}

#[test]
fn stop_cancels_what_is_pending_and_holds() {
    for life in [PENDING, BLOCKED] {
        let (mut stage, out) = command(life, "stop");
        expect(&out, &["web is held", "answer 7: ok"], &[]);
        let out = stage.then("file db v1\nseen db\nwhole\nadvance 1h\nrequest 9 check --all");
        expect(&out, &["web stopped", "hold true"], &["start web"]);
    }
}

#[test]
fn stop_cancels_a_restart_that_is_due_and_holds() {
    let (mut stage, out) = command(BACKOFF, "stop");
    expect(&out, &["web is held", "answer 7: ok"], &[]);
    expect(&stage.then("advance 1h"), &[], &["    start"]);
}

#[test]
fn stop_stops_what_is_starting_or_running_and_holds() {
    let (mut stage, out) = command(STARTING, "stop");
    expect(
        &out,
        &["answer 1: superseded", "web is held"],
        &["answer 7", "TERM"],
    );
    expect(
        &stage.then("spawned"),
        &["TERM to web run 1"],
        &["answer 7"],
    );
    expect(
        &stage.then("exited web 0"),
        &["answer 7: ok, `web` stopped"],
        &[],
    );
    let (mut stage, out) = command(RUNNING, "stop");
    expect(&out, &["web is held", "TERM to web run 1"], &["answer 7"]);
    expect(
        &stage.then("exited web 0"),
        &["answer 7: ok, `web` stopped"],
        &[],
    );
}

#[test]
fn a_second_stop_joins_the_first() {
    let (mut stage, out) = command(STOPPING, "stop");
    expect(&out, &[], &["TERM", "answer"]);
    expect(
        &stage.then("exited web 0"),
        &["answer 1: ok", "answer 7: ok"],
        &[],
    );
}

#[test]
fn a_start_behind_a_stop_finds_the_child_stopped() {
    let (mut stage, out) = command(STOPPING, "start");
    expect(&out, &[], &["answer 7"]);
    let out = stage.then("exited web 0");
    expect(
        &out,
        &["answer 1: ok", "start web run 2", "answer 7: ok"],
        &[],
    );
}

#[test]
fn a_stop_overtakes_what_is_queued() {
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 restart web\nrequest 2 trystart web\nrequest 3 start web");
    let out = stage.then("request 4 stop web");
    let overtaken = [
        "answer 1: superseded",
        "answer 2: superseded",
        "answer 3: superseded",
    ];
    expect(&out, &overtaken, &["answer 4"]);
    expect(
        &stage.then("exited web 0"),
        &["answer 4: ok"],
        &["    start"],
    );
}

#[test]
fn a_start_that_a_stop_overtakes_and_the_system_refuses_leaves_nothing_failed() {
    let mut stage = Stage::after("file web v1\nboot quiet\nrefuse haste\nrequest 1 start web");
    let out = stage.then("request 2 stop web\nspawned\nexited web 0\nrequest 3 check --all");
    expect(&out, &["answer 2: ok", "web stopped"], &[]);
}

#[test]
fn commands_are_carried_out_one_at_a_time_in_order_of_arrival() {
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 restart web\nrequest 2 restart web");
    let out = stage.then("exited web 0");
    expect(&out, &["answer 1: ok", "TERM to web run 2"], &["answer 2"]);
    expect(
        &stage.then("exited web 0"),
        &["start web run 3", "answer 2: ok"],
        &[],
    );
}

#[test]
fn what_does_not_fit_into_the_queue_is_busy() {
    // I8
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 restart web");
    for id in 2..18 {
        expect(
            &stage.then(&format!("request {id} start web")),
            &[],
            &["answer"],
        );
    }
    expect(
        &stage.then("request 18 start web"),
        &["answer 18: busy"],
        &[],
    );
    expect(
        &stage.then("request 19 stop web"),
        &["answer 17: superseded"],
        &["busy"],
    );
}

#[test]
fn only_a_clients_stop_sets_a_hold() {
    let hook = "file db v1\nboot sync\nfile web v1 prehook 'stop db'\nseen web\nexited db 0";
    let repeat = "file db v1 repeat stop 5s\nboot sync\nadvance 5s\nexited db 0";
    let removal = "file db v1\nboot sync\ngone db\nseen db\nadvance 1s\nexited db 0";
    for life in [hook, repeat, removal] {
        let out = Stage::after(life).then("request 9 check --all");
        expect(&out, &["db stopped", "hold false"], &[]);
    }
    let out = Stage::after(RUNNING).then("request 1 kill --stop-children\nexited web 0");
    expect(&out, &["answer 1: ok"], &["held"]);
}

#[test]
fn success_of_start_means_started_and_not_that_it_lives() {
    let (mut stage, out) = command(STOPPED, "start");
    expect(&out, &["answer 7: ok"], &[]);
    expect(
        &stage.then("exited web 1\nrequest 8 check --all"),
        &["web exited"],
        &[],
    );
}

#[test]
fn start_that_the_system_refuses_is_spawn_failed() {
    let mut stage = Stage::after(STOPPED);
    let out = stage.then("refuse spawn\nrequest 7 start web");
    expect(&out, &["answer 7: spawn_failed: program not found"], &[]);
}

#[test]
fn restart_looks_whether_the_new_run_can_start_before_it_stops_the_old_one() {
    let mut stage = Stage::after(RUNNING);
    let out = stage.then("refuse preflight\nrequest 7 restart web");
    expect(
        &out,
        &["answer 7: spawn_failed", "what ran runs on"],
        &["TERM"],
    );
}

#[test]
fn unknown_bad_and_conflicting_names_are_refused() {
    let mut stage = Stage::after("bad sick oh\nconflict two\nboot quiet");
    for word in ["start", "restart", "trystart"] {
        let out = stage.then(&format!("request 1 {word} nobody"));
        expect(&out, &["answer 1: unknown_child"], &[]);
    }
    expect(
        &stage.then("request 1 stop nobody"),
        &["answer 1: unknown_child"],
        &[],
    );
    expect(
        &stage.then("request 1 check nobody"),
        &["answer 1: unknown_child"],
        &[],
    );
    for word in ["start", "trystart"] {
        let out = stage.then(&format!("request 1 {word} sick\nrequest 2 {word} two"));
        expect(
            &out,
            &["answer 1: invalid_config", "answer 2: conflict"],
            &[],
        );
    }
}

#[test]
fn a_name_that_was_only_asked_for_leaves_nothing_behind() {
    let mut stage = Stage::after("boot quiet");
    stage.then("request 1 start nobody\nrequest 2 stop nobody");
    expect(
        &stage.then("request 3 check --all"),
        &["answer 3: ok, 0 more"],
        &["nobody"],
    );
}

#[test]
fn a_stop_that_overtakes_the_start_of_an_unknown_name_holds_nobody() {
    // Or typing errors would fill the table and the disk.
    let mut stage = Stage::after("boot quiet\nrefuse quick look");
    let out = stage.then("request 1 start nobody\nrequest 2 stop nobody");
    expect(
        &out,
        &["answer 1: superseded", "answer 2: unknown_child"],
        &["held"],
    );
    expect(
        &stage.then("request 3 check --all"),
        &["answer 3: ok, 0 more"],
        &["nobody"],
    );
}

#[test]
fn stop_all_stops_and_holds_everybody_and_is_never_refused() {
    let mut stage = Stage::after("boot sync");
    expect(&stage.then("request 1 stop --all"), &["answer 1: ok"], &[]);
    let mut stage = Stage::after("file a v1\nfile b v1 restart always\nboot sync\nexited b 1");
    let out = stage.then("request 1 stop --all");
    expect(
        &out,
        &["a is held", "b is held", "TERM to a run 1"],
        &["answer 1"],
    );
    expect(
        &stage.then("exited a 0"),
        &["answer 1: ok, 2 stopped and held"],
        &[],
    );
}

#[test]
fn start_all_releases_all_holds_and_starts_what_the_mode_wants() {
    let life = "file a v1\nfile b v1\nboot half startup a\nrequest 1 start b\n\
                request 2 stop --all\nexited a 0\nexited b 0";
    let out = Stage::after(life).then("request 3 start --all");
    let released = [
        "a is released; b is released",
        "start a run 2",
        "released: a, b",
    ];
    expect(&out, &released, &["start b"]);
}

#[test]
fn a_stop_overtakes_the_releases_of_start_all() {
    // I3: the release is on its way to the disk when the stop comes
    let mut stage = Stage::after("file a v1 posthook 'run x'\nboot sync\nrequest 1 stop a");
    stage.then("exited a 0\nrefuse quick disk\nrequest 2 start --all\nrequest 3 stop a");
    let out = stage.then("hook a ok\nwritten\nwritten\nrequest 4 check --all");
    expect(&out, &["hold true"], &["    start"]);
}

#[test]
fn a_start_that_a_hook_overtakes_takes_its_release_back() {
    // I3: on disk as in memory
    let mut stage = Stage::after("file a v1\nboot sync\nrequest 1 stop a\nexited a 0");
    stage.then("refuse quick disk\nrequest 2 start a\nfile b v1 prehook 'stop a'");
    let out = stage.then("seen b\nwritten\nwritten\nwritten\ncrash\nboot sync continued");
    expect(&out, &["answer 2: superseded", "a: held"], &["start a run"]);
}

#[test]
fn kill_names_who_runs_on() {
    let out = Stage::after(RUNNING).then("request 1 kill");
    expect(
        &out,
        &["1 child runs on", "the server ended by order"],
        &["TERM"],
    );
}

#[test]
fn kill_with_stop_children_ends_a_start_under_way_first() {
    let mut stage = Stage::after("file web v1\nboot quiet\nrefuse quick disk\nrequest 1 start web");
    let out = stage.then("request 2 kill --stop-children\nwritten");
    expect(
        &out,
        &["answer 1: shutting_down", "answer 2: ok"],
        &["    start"],
    );
}

#[test]
fn while_the_server_ends_commands_are_refused() {
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 kill --stop-children");
    let out = stage.then("request 2 start web\nrequest 3 stop web\nrequest 4 stop --all");
    let refused = ["2: shutting_down", "3: shutting_down", "4: shutting_down"];
    expect(&out, &refused, &[]);
}

#[test]
fn a_second_order_to_end_spends_no_more_grace() {
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 kill --stop-children");
    expect(&stage.then("term"), &["KILL to web run 1"], &[]);
}

#[test]
fn a_process_that_survives_kill_is_told_and_left_to_the_next_start() {
    // I8
    let mut stage = Stage::after(RUNNING);
    stage.then("request 1 kill --stop-children");
    let out = stage.then("advance 20s");
    expect(
        &out,
        &["KILL to web run 1", "answer 1: ok", "1 child runs on"],
        &[],
    );
}

#[test]
fn every_stop_leads_to_term_grace_kill_and_an_answer() {
    // I8
    let (mut stage, out) = command(RUNNING, "stop");
    expect(&out, &["TERM"], &["KILL"]);
    expect(&stage.then("advance 9999ms"), &[], &["KILL"]);
    expect(&stage.then("advance 1ms"), &["KILL"], &["answer"]);
    expect(&stage.then("advance 9999ms"), &[], &["answer"]);
    expect(&stage.then("advance 1ms"), &["answer 7: timeout"], &[]);
    expect(&stage.then("request 8 check web"), &["web stopping"], &[]);
    assert_eq!(
        stage.deadline(),
        None,
        "I9: its end is waited for without a tick"
    );
}
