//! What answers look like: snapshots in `fixtures/cli`, and what an evil server can make of it.

use serde_json::{Value, json};

use super::*;
use crate::{
    command::{CheckScope, ErrorCode, Failure, KillChildren},
    control::protocol::{ServerLine, parse_server_line},
    spec::Verb,
};

fn answer(ok: &str) -> HostAnswer {
    let line = format!("{{\"id\":1,\"ok\":{ok}}}");
    let Ok(ServerLine::Ok { fields, .. }) = parse_server_line(line.as_bytes()) else {
        panic!("{ok}");
    };
    HostAnswer {
        host: "web1:33889".to_owned(),
        outcome: Ok(fields),
    }
}

fn refused(code: ErrorCode, message: &str) -> HostAnswer {
    HostAnswer {
        host: "web1".to_owned(),
        outcome: Err(Failure::new(code, message).into()),
    }
}

fn child(verb: Verb) -> Command {
    Command::Child {
        verb,
        child: "web".parse().unwrap(),
    }
}

fn check_one() -> Command {
    Command::CheckOne("web".parse().unwrap())
}

const LIVE: Command = Command::Check {
    scope: CheckScope::Live,
};

/// The answers in `fixtures/cli/*.json`, each with the command it answers.
fn snapshots() -> Vec<(&'static str, Command)> {
    vec![
        ("check", LIVE),
        (
            "check-all",
            Command::Check {
                scope: CheckScope::All,
            },
        ),
        ("check-none", LIVE),
        ("check-unknown-state", LIVE),
        ("check-one-running", check_one()),
        ("check-one-down", check_one()),
        ("check-one-conflict", check_one()),
        ("info", Command::Info),
        ("info-unknown-shape", Command::Info),
        ("start", child(Verb::Start)),
        ("stop-all", Command::StopAll),
        ("kill", Command::Kill(KillChildren::AsConfigured)),
        ("upgrade", Command::Upgrade),
    ]
}

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cli")
}

/// The answer in a fixture, on one line as it would come.
fn recorded(name: &str) -> String {
    let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    text.lines().map(str::trim_start).collect()
}

#[test]
fn answers_look_as_they_were_read_last() {
    for (name, command) in snapshots() {
        let answer = answer(&recorded(name));
        let alone = text(&command, &answer, Heading::None, Style::Plain);
        assert_eq!(alone.err, "", "{name}");
        fixture(&format!("{name}.txt"), &alone.out);
    }
    let answer = answer(&recorded("check-all"));
    let many = text(&LIVE, &answer, Heading::Host, Style::Colour).out;
    fixture("check-all.colour.txt", &many.replace('\u{1b}', "␛"));
}

#[test]
fn a_table_says_what_is_wrong_and_leaves_the_way_out_to_the_answer_for_one() {
    let row = |name: &str, status: &str, reason: &str| json!({"name": name, "state": "failed", "config": {"status": status}, "reason": reason});
    let shown = |rows: Value| {
        let ok = json!({"op": "check", "children": rows, "others": 0}).to_string();
        text(&LIVE, &answer(&ok), Heading::None, Style::Plain).out
    };
    let table = shown(json!([
        row("web", "current", "cannot start: no `x`; hint: make it"),
        row("two", "conflict", "r")
    ]));
    assert_eq!(
        table,
        "NAME  STATE   RESTARTS  CONFIG    NOTE\n\
         web   failed  0         current   cannot start: no `x`\n\
         two   failed  0         conflict  r; several files have this name\n\
         `check two` shows what is wrong with its file\n"
    );
    let sound = shown(json!([row("web", "current", "r")]));
    assert!(!sound.contains("`check "), "{sound}");
}

#[test]
fn no_line_ends_with_a_space() {
    for (name, command) in snapshots() {
        let shown = text(
            &command,
            &answer(&recorded(name)),
            Heading::Host,
            Style::Plain,
        );
        for line in shown.out.lines() {
            assert_eq!(line, line.trim_end(), "{name}");
        }
    }
}

#[test]
fn json_is_what_the_contract_says() {
    let started = answer(r#"{"op":"start","child":"web","pid":123,"run":4,"message":"m"}"#);
    assert_eq!(
        json(&child(Verb::Start), &started),
        concat!(
            r#"{"host":"web1:33889","ok":true,"op":"start","child":"web","#,
            r#""pid":123,"run":4,"message":"m"}"#,
            "\n"
        )
    );
    assert_eq!(
        json(&child(Verb::Restart), &refused(ErrorCode::NotRunning, "no")),
        concat!(
            r#"{"host":"web1","ok":false,"op":"restart","child":"web","#,
            r#""error":{"code":"not_running","message":"no"}}"#,
            "\n"
        )
    );
    let stop_all = json(&Command::StopAll, &refused(ErrorCode::Busy, "no"));
    assert!(
        serde_json::from_str::<Value>(&stop_all)
            .unwrap()
            .get("child")
            .is_none()
    );
}

#[test]
fn a_server_cannot_speak_for_another_host_or_twice() {
    let evil = answer(r#"{"host":"other","ok":false,"op":"info","x":{"host":1}}"#);
    assert_eq!(
        json(&Command::Info, &evil),
        "{\"host\":\"web1:33889\",\"ok\":true,\"op\":\"info\",\"x\":{\"host\":1}}\n"
    );
}

#[test]
fn a_server_cannot_drive_the_terminal_by_json() {
    let raw = "\u{9b}2J\u{7f}\u{85}\u{202e}\u{2066}\u{200f}é𝄞";
    let evil = answer(&format!(r#"{{"op":"info","{raw}":{{"x":["{raw}"]}}}}"#));
    let line = json(&Command::Info, &evil);
    let harmful = |c: char| c != '\n' && super::table::is_harmful(c);
    assert!(!line.contains(harmful), "{line:?}");
    let read: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(read[raw]["x"][0], raw, "it still means the same");
}

#[test]
fn a_server_cannot_drive_the_terminal() {
    let evil = "\\u001b]0;x\\u0007\\r\\u009b2J\\u202e";
    let row = |name: &str| {
        format!(
            r#"{{"name":"{name}","state":"{name}","pid":1,"run":1,"started_at":"{name}",
            "uptime_ms":1,"restarts":0,"hold":true,"config":{{"path":"{name}","digest":"{name}",
            "status":"{name}","paths":["{name}"]}},"output":{{"stdout":"{name}","stderr":"{name}"}},
            "exit":{{"signal":"{name}","at":"{name}"}},"reason":"{name}","held_since":"{name}",
            "next":{{"action":"{name}","at":"{name}"}},"faults":["{name}"],
            "details":{{"{name}":"{name}"}}}}"#
        )
        .replace('\n', " ")
    };
    let checked = format!(
        r#"{{"op":"check","children":[{}],"others":1,"notes":["{evil}"]}}"#,
        row(evil)
    );
    let done = format!(r#"{{"op":"start","child":"web","message":"{evil}"}}"#);
    let odd = format!(r#"{{"{evil}":"{evil}"}}"#);
    let each = format!(
        r#"{{"op":"stop","message":"{evil}","children":[{{"name":"web","ok":false,"note":"{evil}",
        "error":{{"code":"timeout","message":"{evil}"}}}}]}}"#
    )
    .replace('\n', " ");
    let mut shown = Vec::new();
    for (ok, commands) in [
        (&checked, vec![LIVE, check_one()]),
        (&done, vec![child(Verb::Start)]),
        (&each, vec![Command::StopAll]),
        (
            &odd,
            vec![LIVE, check_one(), Command::Info, Command::StopAll],
        ),
    ] {
        for command in commands {
            shown.push(text(&command, &answer(ok), Heading::Host, Style::Plain).out);
        }
    }
    let line = format!(r#"{{"id":1,"error":{{"code":"{evil}","message":"{evil}"}}}}"#);
    let Ok(ServerLine::Error { refusal, .. }) = parse_server_line(line.as_bytes()) else {
        panic!("{line}");
    };
    let refusal = HostAnswer {
        host: "\u{1b}".to_owned(),
        outcome: Err(refusal),
    };
    shown.push(text(&Command::Info, &refusal, Heading::Host, Style::Plain).err);
    for text in shown {
        let harmful = text
            .chars()
            .find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(harmful, None, "{text:?}");
    }
}

#[test]
fn a_refusal_names_its_code_and_with_several_hosts_its_host() {
    let refusal = refused(
        ErrorCode::NotRunning,
        "`web` is not running\nhint: start it",
    );
    let alone = text(&child(Verb::Stop), &refusal, Heading::None, Style::Plain);
    assert_eq!(
        alone,
        Shown {
            out: String::new(),
            err: "error[not_running]: `web` is not running\nhint: start it\n".to_owned()
        }
    );
    let one_of_many = text(&child(Verb::Stop), &refusal, Heading::Host, Style::Plain);
    assert!(one_of_many.err.starts_with("web1: error[not_running]: "));
}

#[test]
fn a_short_answer_stands_beside_its_host_and_a_long_one_below() {
    let short = answer(r#"{"op":"start","child":"web","message":"web started"}"#);
    assert_eq!(
        text(&child(Verb::Start), &short, Heading::Host, Style::Plain).out,
        "web1:33889: web started\n"
    );
    let long = answer(r#"{"op":"start","child":"web","message":"web started\ntwice"}"#);
    assert_eq!(
        text(&child(Verb::Start), &long, Heading::Host, Style::Plain).out,
        "web1:33889:\nweb started\ntwice\n"
    );
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    for code in ErrorCode::ALL {
        assert_eq!(
            exit_code(&Command::Info, &refused(code, "x")),
            code.exit_code()
        );
    }
    let line = br#"{"id":1,"error":{"code":"from_the_future","message":"x"}}"#;
    let Ok(ServerLine::Error { refusal, .. }) = parse_server_line(line) else {
        panic!("no refusal");
    };
    let unknown = HostAnswer {
        host: "h".to_owned(),
        outcome: Err(refusal),
    };
    assert_eq!(exit_code(&Command::Info, &unknown), 1);

    let row = |pid: Value| {
        let row = json!({"name": "web", "state": "x", "pid": pid});
        answer(&json!({"op": "check", "children": [row], "others": 0}).to_string())
    };
    assert_eq!(exit_code(&check_one(), &row(json!(7))), 0);
    assert_eq!(exit_code(&check_one(), &row(Value::Null)), 3);
    assert_eq!(exit_code(&LIVE, &row(Value::Null)), 0);

    let each = |error: Value| {
        let children =
            json!([{"name": "a", "ok": true}, {"name": "b", "ok": false, "error": error}]);
        answer(&json!({"op": "stop", "children": children, "message": "m"}).to_string())
    };
    let timeout = json!({"code": "timeout", "message": "m"});
    assert_eq!(exit_code(&Command::StopAll, &each(timeout)), 7);
    assert_eq!(exit_code(&Command::StopAll, &answer(&recorded("start"))), 0);
}

#[test]
fn an_answer_of_an_unknown_shape_is_shown_and_never_a_panic() {
    for ok in [
        "{}",
        r#"{"op":"check"}"#,
        r#"{"op":"check","children":7}"#,
        r#"{"op":"check","children":[7]}"#,
        r#"{"op":"check","children":[],"others":-1}"#,
        r#"{"op":"check","children":[{"name":1}]}"#,
        r#"{"message":{"deep":[1,2,3]}}"#,
    ] {
        for command in [
            LIVE,
            check_one(),
            Command::Info,
            Command::StopAll,
            Command::Kill(KillChildren::Stop),
            child(Verb::Start),
        ] {
            let shown = text(&command, &answer(ok), Heading::Host, Style::Colour);
            assert!(shown.out.ends_with('\n'), "{ok}");
            assert!(json(&command, &answer(ok)).ends_with('\n'));
            assert!(exit_code(&command, &answer(ok)) <= 7);
        }
    }
}
