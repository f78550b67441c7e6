//! The wire, from both ends and from an attacker's.

use super::*;
use crate::{
    command::{ChildEvent, ErrorCode, Follow, Goal, Op, WAIT_TIME},
    spec::{RunId, Verb},
};

fn bad(line: &str) -> BadRequest {
    match parse_request(line.as_bytes()) {
        Ok(request) => panic!("{line} was taken as {request:?}"),
        Err(bad) => bad,
    }
}

fn command(object: &str) -> Command {
    let line = format!(r#"{{"id":1,"command":{object}}}"#);
    match parse_request(line.as_bytes()) {
        Ok(Request {
            id: 1,
            body: Body::Command(command),
        }) => command,
        other => panic!("{line} was taken as {other:?}"),
    }
}

fn child(verb: Verb) -> Command {
    Command::Child {
        verb,
        child: "web".parse().unwrap(),
    }
}

fn wait(goal: Goal, run: Option<RunId>) -> Command {
    Command::Wait {
        child: "web".parse().unwrap(),
        goal,
        run,
        time: WAIT_TIME,
    }
}

fn every_command() -> Vec<(Command, &'static str)> {
    vec![
        (child(Verb::Start), r#"{"op":"start","child":"web"}"#),
        (child(Verb::Restart), r#"{"op":"restart","child":"web"}"#),
        (child(Verb::Trystart), r#"{"op":"trystart","child":"web"}"#),
        (child(Verb::Stop), r#"{"op":"stop","child":"web"}"#),
        (Command::StopAll, r#"{"op":"stop","all":true}"#),
        (Command::StartAll, r#"{"op":"start","all":true}"#),
        (
            Command::CheckOne("web".parse().unwrap()),
            r#"{"op":"check","child":"web"}"#,
        ),
        (
            Command::Check {
                scope: CheckScope::Live,
            },
            r#"{"op":"check"}"#,
        ),
        (
            Command::Check {
                scope: CheckScope::All,
            },
            r#"{"op":"check","all":true}"#,
        ),
        (
            wait(Goal::Exited, None),
            r#"{"op":"wait","child":"web","for":"exited","timeout_ms":60000}"#,
        ),
        (
            wait(Goal::Ready, Some(RunId(4))),
            r#"{"op":"wait","child":"web","for":"ready","run":4,"timeout_ms":60000}"#,
        ),
        (
            Command::Events {
                child: None,
                follow: Follow::No,
                last: None,
            },
            r#"{"op":"events"}"#,
        ),
        (
            Command::Events {
                child: Some("web".parse().unwrap()),
                follow: Follow::Yes,
                last: Some(0),
            },
            r#"{"op":"events","child":"web","follow":true,"last":0}"#,
        ),
        (Command::Info, r#"{"op":"info"}"#),
        (Command::Upgrade, r#"{"op":"upgrade"}"#),
        (
            Command::Kill(KillChildren::AsConfigured),
            r#"{"op":"kill"}"#,
        ),
        (
            Command::Kill(KillChildren::Stop),
            r#"{"op":"kill","stop_children":true}"#,
        ),
    ]
}

#[test]
fn every_command_is_written_and_read_as_the_contract_says() {
    for (value, object) in every_command() {
        assert_eq!(serde_json::to_string(&WireCommand(&value)).unwrap(), object);
        assert_eq!(command(object), value);
        let mut line = Vec::new();
        write_request(&mut line, 7, &value);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            format!("{{\"id\":7,\"command\":{object}}}\n")
        );
    }
}

#[test]
fn fields_may_come_in_any_order_with_any_white_space_and_escapes() {
    let line =
        b" { \"command\" : {\"child\":\"w\\u0065b\", \"\\u006fp\":\"start\"} ,\t\"id\":5 }\r";
    assert_eq!(
        parse_request(line).unwrap(),
        Request {
            id: 5,
            body: Body::Command(child(Verb::Start))
        }
    );
}

#[test]
fn optional_fields_may_be_given_their_default() {
    assert_eq!(
        command(r#"{"op":"check","all":false}"#),
        Command::Check {
            scope: CheckScope::Live
        }
    );
    assert_eq!(
        command(r#"{"op":"kill","stop_children":false}"#),
        Command::Kill(KillChildren::AsConfigured)
    );
    assert_eq!(
        command(r#"{"op":"wait","child":"web","for":"ready"}"#),
        wait(Goal::Ready, None)
    );
    assert_eq!(
        command(r#"{"op":"check","child":"web","all":true}"#),
        Command::CheckOne("web".parse().unwrap())
    );
}

#[test]
fn a_token_is_told_apart_from_a_command() {
    assert_eq!(
        parse_request(br#"{"id":3,"token":"a.b.c"}"#).unwrap().body,
        Body::Token("a.b.c".to_owned())
    );
}

#[test]
fn what_is_wrong_with_a_frame_is_said() {
    for (line, id, says) in [
        ("", None, "EOF"),
        ("{", None, "EOF"),
        ("null", None, "invalid type: null"),
        ("[1,{\"op\":\"info\"}]", None, "invalid type: sequence"),
        ("\"x\"", None, "invalid type: string"),
        ("{}", None, "`id` is missing"),
        (r#"{"id":1}"#, Some(1), "`command` or `token` is missing"),
        (r#"{"command":{"op":"info"}}"#, None, "`id` is missing"),
        (
            r#"{"id":1,"command":{"op":"info"},"token":"x"}"#,
            Some(1),
            "not both",
        ),
        (
            r#"{"id":1,"command":{"op":"info"},"extra":1}"#,
            Some(1),
            "unknown field `extra`",
        ),
        (
            r#"{"id":1,"command":{"op":"info"}} {"id":2}"#,
            None,
            "trailing",
        ),
        (r#"{"id":1,"token":7}"#, Some(1), "expected a string"),
        (
            r#"{"id":1,"command":[]}"#,
            Some(1),
            "expected a command object",
        ),
        (
            r#"{"id":1,"command":"info"}"#,
            Some(1),
            "expected a command object",
        ),
    ] {
        let bad = bad(line);
        assert_eq!(bad.id, id, "{line}");
        assert!(bad.message.contains(says), "{line}: {}", bad.message);
    }
}

#[test]
fn what_is_wrong_with_a_command_is_said() {
    for (object, says) in [
        ("{}", "`op` is missing"),
        (r#"{"op":"explode"}"#, "unknown op `explode`"),
        (r#"{"op":"START","child":"web"}"#, "unknown op `START`"),
        (r#"{"op":"help"}"#, "unknown op"),
        (r#"{"op":{"start":null}}"#, "expected a string"),
        (r#"{"op":1}"#, "expected a string"),
        (r#"{"op":"start"}"#, "needs `child` or `all`"),
        (r#"{"op":"start","all":false}"#, "needs `child` or `all`"),
        (r#"{"op":"stop","child":"web","all":true}"#, "not both"),
        (r#"{"op":"restart","all":true}"#, "has no field `all`"),
        (r#"{"op":"restart"}"#, "needs `child`"),
        (r#"{"op":"info","child":"web"}"#, "takes neither"),
        (r#"{"op":"kill","child":"web"}"#, "takes neither"),
        (
            r#"{"op":"stop","child":"web","stop_children":true}"#,
            "no field `stop_children`",
        ),
        (r#"{"op":"check","child":null}"#, "expected a string"),
        (r#"{"op":"check","all":null}"#, "expected a boolean"),
        (r#"{"op":"check","all":1}"#, "expected a boolean"),
        (r#"{"op":"check","all":"true"}"#, "expected a boolean"),
        (r#"{"op":"start","child":"../etc"}"#, "not a child name"),
        (r#"{"op":"start","child":"all"}"#, "not a child name"),
        (r#"{"op":"start","child":""}"#, "not a child name"),
        (r#"{"op":"start","child":"web\u0000"}"#, "not a child name"),
        (
            r#"{"op":"start","child":"web","force":true}"#,
            "unknown field `force`",
        ),
        (r#"{"op":"wait","for":"ready"}"#, "needs `child`"),
        (r#"{"op":"wait","child":"web"}"#, "needs `for`"),
        (r#"{"op":"wait","child":"web","for":"READY"}"#, "`READY`"),
        (r#"{"op":"wait","child":"web","for":null}"#, "a string"),
        (
            r#"{"op":"wait","child":"web","for":"ready","all":true}"#,
            "has no field `all`",
        ),
        (
            r#"{"op":"wait","child":"web","for":"ready","run":0}"#,
            "from 1",
        ),
        (
            r#"{"op":"wait","child":"web","for":"ready","run":null}"#,
            "invalid type: null",
        ),
        (
            r#"{"op":"wait","child":"web","for":"ready","timeout_ms":1.5}"#,
            "floating point",
        ),
        (
            r#"{"op":"wait","child":"web","for":"ready","timeout_ms":86400001}"#,
            "at most 86400000",
        ),
        (
            r#"{"op":"start","child":"web","for":"ready"}"#,
            "`start` has no field `for`",
        ),
        (r#"{"op":"info","run":1}"#, "`info` has no field `run`"),
        (r#"{"op":"why"}"#, "`why` needs `child`"),
        (
            r#"{"op":"why","child":"web","all":true}"#,
            "`why` has no field `all`",
        ),
        (
            r#"{"op":"events","all":true}"#,
            "`events` has no field `all`",
        ),
        (r#"{"op":"events","follow":1}"#, "invalid type"),
        (r#"{"op":"events","last":-1}"#, "invalid value"),
        (
            r#"{"op":"check","follow":true}"#,
            "`check` has no field `follow`",
        ),
        (r#"{"op":"wait","last":1}"#, "`wait` has no field `last`"),
        (
            r#"{"op":"check","child":"web","timeout_ms":1}"#,
            "has no field `timeout_ms`",
        ),
    ] {
        let bad = bad(&format!(r#"{{"id":9,"command":{object}}}"#));
        assert_eq!(bad.id, Some(9), "{object}");
        assert!(bad.message.contains(says), "{object}: {}", bad.message);
    }
}

#[test]
fn a_field_that_stands_there_twice_is_refused() {
    for (line, id) in [
        (r#"{"id":1,"id":2,"command":{"op":"info"}}"#, None),
        (r#"{"id":1,"i\u0064":1,"command":{"op":"info"}}"#, None),
        (
            r#"{"id":1,"command":{"op":"info"},"command":{"op":"kill"}}"#,
            Some(1),
        ),
        (r#"{"id":1,"command":{"op":"info","op":"kill"}}"#, Some(1)),
        (
            r#"{"id":1,"command":{"op":"stop","child":"a","child":"b"}}"#,
            Some(1),
        ),
        (r#"{"id":1,"token":"a","token":"b"}"#, Some(1)),
        (
            r#"{"id":1,"command":{"op":"kill","stop_children":false,"stop_children":true}}"#,
            Some(1),
        ),
    ] {
        let bad = bad(line);
        assert_eq!(bad.id, id, "{line}");
        assert!(bad.message.contains("twice"), "{line}: {}", bad.message);
    }
}

#[test]
fn an_id_is_a_whole_number_of_64_bits() {
    for id in [
        "-1",
        "-0",
        "1.0",
        "1e3",
        "0x1",
        "01",
        "18446744073709551616",
        "1e400",
        "99999999999999999999999999999999999999",
        "\"1\"",
        "null",
        "true",
        "[1]",
        "NaN",
    ] {
        let bad = bad(&format!(r#"{{"id":{id},"command":{{"op":"info"}}}}"#));
        assert_eq!(bad.id, None, "{id}");
    }
    let most = format!(r#"{{"id":{},"command":{{"op":"info"}}}}"#, u64::MAX);
    assert_eq!(parse_request(most.as_bytes()).unwrap().id, u64::MAX);
}

#[test]
fn nesting_is_refused_wherever_it_stands() {
    for open in ["[", "{\"a\":", "{\"op\":"] {
        let deep = open.repeat(LINE_BYTES_MAX / open.len() - 20);
        for line in [
            deep.clone(),
            format!("{{\"id\":{deep}"),
            format!("{{\"id\":1,\"command\":{deep}"),
            format!("{{\"id\":1,\"command\":{{\"op\":{deep}"),
            format!("{{\"id\":1,\"x\":{deep}"),
        ] {
            assert_eq!(bad(&line).id, None);
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    for line in [
        &b"\xff\xfe"[..],
        b"{\"id\":1,\"token\":\"\xc3\x28\"}",
        b"{\"id\":1,\"token\":\"\xed\xa0\x80\"}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let bad = parse_request(line).unwrap_err();
        assert_eq!(bad.id, None);
    }
    assert!(parse_request(b"{\"id\":1\0,\"command\":{\"op\":\"info\"}}").is_err());
    assert!(parse_request(b"{\"id\":1,\"token\":\"\0\"}").is_err());
    assert!(parse_request(b"{\"id\":1,\"token\":\"\\ud800\"}").is_err());
    assert!(parse_request(b"\xef\xbb\xbf{\"id\":1,\"command\":{\"op\":\"info\"}}").is_err());
}

#[test]
fn a_message_repeats_little_of_what_it_refuses_and_escapes_it() {
    let long = "x".repeat(60_000);
    for line in [
        format!(r#"{{"id":1,"{long}":1}}"#),
        format!(r#"{{"id":1,"command":{{"op":"{long}"}}}}"#),
        format!(r#"{{"id":1,"command":{{"op":"start","child":"{long}"}}}}"#),
    ] {
        assert!(bad(&line).message.len() < 400, "{}", bad(&line).message);
    }
    let colours = bad(r#"{"id":1,"command":{"op":"\u001b[2J"}}"#).message;
    assert!(!colours.contains('\u{1b}'), "{colours:?}");
}

#[test]
fn a_message_repeats_little_of_a_string_that_stands_where_something_else_should() {
    let long = "\u{7}\u{202e}é".repeat(9_000);
    let text = serde_json::to_string(&long).unwrap();
    for line in [
        text.clone(),
        format!("{{\"id\":{text}}}"),
        format!("{{\"id\":1,\"command\":{text}}}"),
        format!("{{\"id\":1,\"command\":{{\"op\":\"stop\",\"all\":{text}}}}}"),
    ] {
        let message = bad(&line).message;
        assert!(message.chars().count() < 400, "{message}");
        assert!(!message.contains(['\u{7}', '\u{202e}']), "{message:?}");
    }
}

#[test]
fn a_web_page_cannot_speak_this_protocol() {
    for line in [
        "POST / HTTP/1.1\r",
        "GET /?{\"id\":1} HTTP/1.1\r",
        "Host: localhost:33889\r",
        "\r",
    ] {
        let bad = bad(line);
        assert_eq!(bad.id, None);
        assert!(bad.message.contains("not a request"), "{}", bad.message);
    }
}

#[test]
fn answers_are_written_as_the_contract_says() {
    let mut out = Vec::new();
    let done = crate::command::Done {
        op: Op::Start,
        child: "web".parse().unwrap(),
        pid: Some(123),
        run: Some(RunId(4)),
        exit: None,
        message: "line\nbreak".to_owned(),
    };
    write_answer(&mut out, 1, &Ok(Answer::Done(done)));
    write_answer(&mut out, 2, &Err(Failure::new(ErrorCode::NotRunning, "no")));
    write_failure(&mut out, None, &Failure::new(ErrorCode::BadRequest, "bad"));
    assert_eq!(
        String::from_utf8(out).unwrap(),
        concat!(
            r#"{"id":1,"ok":{"op":"start","child":"web","pid":123,"run":4,"message":"line\nbreak"}}"#,
            "\n",
            r#"{"id":2,"error":{"code":"not_running","message":"no"}}"#,
            "\n",
            r#"{"id":null,"error":{"code":"bad_request","message":"bad"}}"#,
            "\n",
        )
    );
}

#[test]
fn a_hello_survives_the_wire_and_may_have_grown() {
    let hello = Hello {
        protocol: PROTOCOL,
        server: "web1".to_owned(),
        id: "0b6e".to_owned(),
        version: "1.0.0".to_owned(),
        encrypt: false,
        nonce: "AAAA".to_owned(),
        time: 1_700_000_000,
    };
    let mut out = Vec::new();
    write_hello(&mut out, &hello);
    assert_eq!(
        String::from_utf8(out.clone()).unwrap(),
        concat!(
            r#"{"hello":{"protocol":1,"server":"web1","id":"0b6e","version":"1.0.0","#,
            r#""encrypt":false,"nonce":"AAAA","time":1700000000}}"#,
            "\n"
        )
    );
    let grown = String::from_utf8(out)
        .unwrap()
        .replace("\"time\"", "\"motd\":{\"deep\":[1]},\"time\"");
    match parse_server_line(grown.as_bytes()).unwrap() {
        ServerLine::Hello(read) => assert_eq!(read, hello),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_is_handed_on_field_by_field_in_its_order() {
    let line =
        br#"{"id":1,"ok":{"op":"start","z":1.50,"a":{"b":[1,2]},"big":123456789012345678901}}"#;
    let ServerLine::Ok { id: 1, fields } = parse_server_line(line).unwrap() else {
        panic!("no answer");
    };
    assert_eq!(
        fields.object(),
        r#"{"op":"start","z":1.50,"a":{"b":[1,2]},"big":123456789012345678901}"#
    );
}

#[test]
fn a_refusal_with_an_unknown_code_is_still_a_refusal() {
    let line = br#"{"id":1,"error":{"code":"too_wet","message":"rain","more":1}}"#;
    let ServerLine::Error {
        id: Some(1),
        refusal,
    } = parse_server_line(line).unwrap()
    else {
        panic!("no refusal");
    };
    assert_eq!(
        (refusal.code.as_str(), refusal.known_code()),
        ("too_wet", None)
    );
    assert_eq!(
        refusal.raw.get(),
        r#"{"code":"too_wet","message":"rain","more":1}"#
    );
    for code in ErrorCode::ALL {
        let refusal = Refusal::from(Failure::new(code, "x"));
        assert_eq!(refusal.known_code(), Some(code));
    }
}

#[test]
fn lines_that_no_server_says_are_refused() {
    let many: String = (0..2_000).map(|n| format!(r#""k{n}":1,"#)).collect();
    for line in [
        "",
        "SSH-2.0-OpenSSH_9.6",
        "HTTP/1.1 400 Bad Request",
        "{}",
        "[]",
        "null",
        r#"{"hello":{}}"#,
        r#"{"hello":{"protocol":1}}"#,
        r#"{"ok":{"op":"info"}}"#,
        r#"{"id":1,"ok":[]}"#,
        r#"{"id":1,"ok":{"op":"info","op":"kill"}}"#,
        r#"{"id":1,"error":{"message":"no code"}}"#,
        r#"{"id":1,"error":"x"}"#,
        r#"{"id":-1,"ok":{}}"#,
        &format!(r#"{{"id":1,"ok":{{{many}"z":1}}}}"#),
        &format!(r#"{{"id":1,"ok":{{"deep":{}"#, "[".repeat(100_000)),
    ] {
        assert!(parse_server_line(line.as_bytes()).is_err(), "{line:.80}");
    }
}

const PAGE: &str = include_str!("../../../docs/PROTOCOL.md");

#[test]
fn every_line_of_the_protocol_page_is_one_that_is_spoken() {
    let mut ops = std::collections::BTreeSet::new();
    let mut asked = None;
    for line in PAGE.lines() {
        if let Some(line) = line.strip_prefix("C: ") {
            let request = parse_request(line.as_bytes());
            let request = request.unwrap_or_else(|bad| panic!("{line}: {bad}"));
            asked = Some(request.id);
        } else if let Some(line) = line.strip_prefix("S: ") {
            match parse_server_line(line.as_bytes()) {
                Ok(ServerLine::Ok { id, fields }) => {
                    assert_eq!(Some(id), asked, "{line}");
                    ops.insert(assert_is_the_contract(&fields.object()));
                }
                Ok(ServerLine::Error { id, refusal }) => {
                    assert!(refusal.known_code().is_some(), "{line}");
                    assert!(id.is_none() || id == asked, "{line}");
                }
                Ok(ServerLine::Event { id, event }) => {
                    assert_eq!(Some(id), asked, "{line}");
                    let read: ChildEvent = serde_json::from_str(event.get()).unwrap();
                    assert_eq!(serde_json::to_string(&read).unwrap(), event.get());
                }
                Ok(ServerLine::Hello(hello)) => assert_eq!(hello.nonce.len(), 43),
                other => panic!("{line}: {other:?}"),
            }
        }
    }
    assert_eq!(ops.len(), Op::ALL.len(), "{ops:?}");
}

/// An answer on the page has just the fields that are written, in their order. Returns its op.
fn assert_is_the_contract(ok: &str) -> String {
    use crate::command::{Checked, Done, Each, Info, Killed, Told, Upgraded, Why};
    let value: serde_json::Value = serde_json::from_str(ok).unwrap();
    let op = value["op"].as_str().unwrap().to_owned();
    let each = value.get("children").is_some();
    let answer = match (op.as_str(), each) {
        ("check", _) => Answer::Checked(serde_json::from_str::<Checked>(ok).unwrap()),
        ("why", _) => Answer::Why(Box::new(serde_json::from_str::<Why>(ok).unwrap())),
        ("events", _) => Answer::Told(serde_json::from_str::<Told>(ok).unwrap()),
        ("info", _) => Answer::Info(Box::new(serde_json::from_str::<Info>(ok).unwrap())),
        ("kill", _) => Answer::Killed(serde_json::from_str::<Killed>(ok).unwrap()),
        ("upgrade", _) => Answer::Upgraded(serde_json::from_str::<Upgraded>(ok).unwrap()),
        (_, true) => Answer::Each(serde_json::from_str::<Each>(ok).unwrap()),
        (_, false) => Answer::Done(serde_json::from_str::<Done>(ok).unwrap()),
    };
    assert_eq!(serde_json::to_string(&answer).unwrap(), ok);
    op
}

#[test]
fn the_protocol_page_knows_every_code_and_its_exit_code() {
    for code in ErrorCode::ALL {
        let row = format!("| `{code}` | {} |", code.exit_code());
        assert!(PAGE.contains(&row), "{row}");
    }
}
