//! What a line looks like.

use super::{super::chain::Chain, *};
use crate::{
    audit::{
        LINE_BYTES_MAX,
        entry::{Because, Lost, Opened, What},
    },
    command::{CheckScope, Each, Failure, KillChildren, Killed, Survivor},
};

/// The line of an entry that follows no other, without what all lines have.
fn line(entry: &Entry) -> String {
    let whole = whole_line(entry);
    let head = r#"{"seq":1,"time":"2023-11-14T22:13:20.123Z","#;
    let tail = format!(",\"prev\":\"{}\"}}\n", "0".repeat(64));
    let middle = whole.strip_prefix(head).expect("the same head");
    middle
        .strip_suffix(&tail)
        .expect("the same tail")
        .to_owned()
}

fn whole_line(entry: &Entry) -> String {
    let mut bytes = Vec::new();
    Chain::NEW.clone().add(entry, &mut bytes);
    String::from_utf8(bytes).unwrap()
}

fn by(by: By) -> Entry {
    let given = Given {
        by,
        peer: "[2001:db8::1]:50000".parse().unwrap(),
        command: start("web"),
        outcome: Outcome::of(&Err(Failure::new(ErrorCode::Conflict, "two\nfiles"))),
    };
    Entry::command(AT, given)
}

#[test]
fn a_command_tells_who_where_what_and_how_it_ended_in_this_order() {
    assert_eq!(
        line(&command(7)),
        r#""event":"command","by":"user","user":1000,"peer":"127.0.0.1:50000","op":"start","child":"web","outcome":"ok","run":7,"pid":4711"#
    );
    let outcome = r#""peer":"[2001:db8::1]:50000","op":"start","child":"web","outcome":"conflict","message":"two\nfiles""#;
    let key = By::Key {
        name: "deploy".to_owned(),
        fingerprint: "SHA256:abc+/".to_owned(),
    };
    assert_eq!(
        line(&by(key)),
        format!(
            r#""event":"command","by":"key","key":"deploy","fingerprint":"SHA256:abc+/",{outcome}"#
        )
    );
    assert_eq!(
        line(&by(By::Reach)),
        format!(r#""event":"command","by":"reach",{outcome}"#)
    );
}

#[test]
fn each_command_is_told_as_it_stands_on_the_wire() {
    let child = |verb| Command::Child {
        verb,
        child: "web".parse().unwrap(),
    };
    for (command, words) in [
        (child(Verb::Restart), r#""op":"restart","child":"web""#),
        (child(Verb::Trystart), r#""op":"trystart","child":"web""#),
        (child(Verb::Stop), r#""op":"stop","child":"web""#),
        (Command::StopAll, r#""op":"stop","all":true"#),
        (Command::StartAll, r#""op":"start","all":true"#),
        (Command::Info, r#""op":"info""#),
        (Command::Upgrade, r#""op":"upgrade""#),
        (
            Command::Check {
                scope: CheckScope::All,
            },
            r#""op":"check""#,
        ),
        (
            Command::CheckOne("web".parse().unwrap()),
            r#""op":"check","child":"web""#,
        ),
        (
            Command::Kill(KillChildren::AsConfigured),
            r#""op":"kill","stop_children":false"#,
        ),
        (
            Command::Kill(KillChildren::Stop),
            r#""op":"kill","stop_children":true"#,
        ),
    ] {
        let failure = Failure::new(ErrorCode::Busy, "");
        let told = line(&given(command, Outcome::of(&Err(failure))));
        let around = r#""peer":"127.0.0.1:50000","#;
        let after = r#","outcome":"busy","message":"""#;
        assert!(told.ends_with(&format!("{around}{words}{after}")), "{told}");
    }
}

fn each(count: u64) -> Outcome {
    let child = |number| crate::command::Outcome {
        name: format!("c{number}").parse().unwrap(),
        ok: number != 2,
        pid: Some(10),
        run: Some(RunId(number)),
        error: (number == 2).then(|| Failure::new(ErrorCode::Timeout, "slow")),
        note: None,
    };
    Outcome::of(&Ok(Answer::Each(Each {
        op: Op::Stop,
        children: (1..=count).map(child).collect(),
        message: String::new(),
    })))
}

#[test]
fn commands_to_all_tell_each_child_and_last_words_those_that_run_on() {
    let told = line(&given(Command::StopAll, each(2)));
    let children = r#""outcome":"ok","children":[{"name":"c1","outcome":"ok","run":1,"pid":10},{"name":"c2","outcome":"timeout","run":2,"pid":10}]"#;
    assert!(told.ends_with(children), "{told}");
    let told = line(&given(Command::StopAll, each(1_000)));
    assert!(told.ends_with(r#""children_more":900"#), "{told}");
    let words = Outcome::of(&Ok(Answer::Killed(Killed {
        op: Op::Kill,
        children: vec![Survivor {
            name: "web".parse().unwrap(),
            pid: 12,
            run: RunId(3),
        }],
        message: String::new(),
    })));
    let told = line(&given(Command::Kill(KillChildren::AsConfigured), words));
    let children = r#""outcome":"ok","children":[{"name":"web","run":3,"pid":12}]"#;
    assert!(told.ends_with(children), "{told}");
}

#[test]
fn a_refusal_tells_what_is_known_and_how_many_more_there_were() {
    assert_eq!(
        line(&refusal("a bad signature")),
        r#""event":"refused","peer":"192.0.2.1:4","outcome":"unauthorized","why":"a bad signature""#
    );
    let refusal = Refusal {
        by: Some(By::User { uid: 7 }),
        claimed: Some("deploy".to_owned()),
        peer: "127.0.0.1:4".parse().unwrap(),
        command: Some(Command::StopAll),
        code: ErrorCode::Forbidden,
        why: "no".to_owned(),
        more: 812,
    };
    assert_eq!(
        line(&Entry::refused(AT, refusal)),
        r#""event":"refused","by":"user","user":7,"claimed":"deploy","peer":"127.0.0.1:4","op":"stop","all":true,"outcome":"forbidden","why":"no","more":812"#
    );
}

fn opened(because: Because) -> Opened {
    Opened {
        version: VERSION.to_owned(),
        server: SERVER.to_owned(),
        because,
        why: None,
        aside: None,
        cut: 0,
    }
}

#[test]
fn a_beginning_and_a_loss_are_told_too() {
    let entry = |what| Entry { at: AT, what };
    let plain = opened(Because::Started);
    assert_eq!(
        line(&entry(What::Opened(plain.clone()))),
        r#""event":"opened","version":"1.2.3","server":"11111111-2222-4333-8444-555555555555","because":"started""#
    );
    let broken = Opened {
        because: Because::Broken,
        why: Some("bad".to_owned()),
        aside: Some("audit.jsonl.broken-x".to_owned()),
        cut: 3,
        ..plain
    };
    let told = line(&entry(What::Opened(broken)));
    let tail = r#""because":"broken","why":"bad","aside":"audit.jsonl.broken-x","cut":3"#;
    assert!(told.ends_with(tail), "{told}");
    let mut lost = None;
    Lost::add(&mut lost, AT);
    Lost::add(&mut lost, Wall(AT.0 + 1));
    assert_eq!(
        line(&entry(What::Lost(lost.unwrap()))),
        r#""event":"lost","count":2,"since":"2023-11-14T22:13:20.123Z","until":"2023-11-14T22:13:20.124Z""#
    );
}

#[test]
fn nothing_that_a_peer_sends_breaks_a_line_or_reaches_a_terminal() {
    let nasty = "a\nb\r\"\\\u{0}\u{1b}[2J\u{7f}\u{85}\u{9b}2J\u{2028}\u{202e}\u{e9}\u{1f600}{}";
    let entry = refusal(nasty);
    let told = whole_line(&entry);
    let (text, rest) = told.split_once('\n').unwrap();
    assert_eq!(rest, "");
    assert!(
        text.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "{text}"
    );
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["why"], nasty);
}

#[test]
fn the_longest_line_is_shorter_than_the_bound() {
    // Four bytes that take twelve, and a control that takes six.
    for long in ["\u{1f600}".repeat(10_000), "\u{1}".repeat(10_000)] {
        let failure = Failure::new(ErrorCode::ProtectedMode, long.clone());
        let by = By::Key {
            name: long.clone(),
            fingerprint: long.clone(),
        };
        let refusal = Refusal {
            by: Some(by),
            claimed: Some(long.clone()),
            peer: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535"
                .parse()
                .unwrap(),
            command: Some(start(&"x".repeat(64))),
            code: failure.code,
            why: long.clone(),
            more: u64::MAX,
        };
        let opened = Opened {
            version: long.clone(),
            server: long.clone(),
            why: Some(long.clone()),
            cut: u64::MAX,
            ..opened(Because::Replaced)
        };
        let what = What::Opened(opened);
        for entry in [
            given(start("web"), Outcome::of(&Err(failure))),
            Entry::refused(AT, refusal),
            Entry { at: AT, what },
        ] {
            assert!(whole_line(&entry).len() < LINE_BYTES_MAX / 2);
        }
    }
    let child = crate::command::Outcome {
        name: "x".repeat(64).parse().unwrap(),
        ok: false,
        pid: Some(i32::MIN),
        run: Some(RunId(u64::MAX)),
        error: Some(Failure::new(ErrorCode::AlreadyRunning, "x".repeat(10_000))),
        note: Some("x".repeat(10_000)),
    };
    let all = Each {
        op: Op::Stop,
        children: vec![child; 10_000],
        message: "x".repeat(10_000),
    };
    let told = whole_line(&given(
        Command::StopAll,
        Outcome::of(&Ok(Answer::Each(all))),
    ));
    assert!(told.len() < LINE_BYTES_MAX, "{}", told.len());
}
