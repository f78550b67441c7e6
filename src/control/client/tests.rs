//! The client against servers that do not behave.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    thread::JoinHandle,
};

use super::*;
use crate::command::{CheckScope, Follow};

const HELLO: &str = r#"{"hello":{"protocol":1,"server":"s","id":"i","version":"1.0.0","encrypt":false,"nonce":"n","time":1700000000}}"#;

/// Short enough for a test, long enough for a machine under load.
const SHORT: Waits = Waits {
    resolve: Duration::from_secs(20),
    connect: Duration::from_secs(5),
    hello: Duration::from_millis(400),
    ssh_connect: Duration::from_secs(5),
    ssh_hello: Duration::from_millis(400),
    ssh_prompt: Duration::from_millis(400),
    look: Duration::from_millis(400),
    act: Duration::from_millis(400),
};

const LONG: Waits = Waits {
    resolve: Duration::from_secs(20),
    connect: Duration::from_secs(20),
    hello: Duration::from_secs(20),
    ssh_connect: Duration::from_secs(20),
    ssh_hello: Duration::from_secs(20),
    ssh_prompt: Duration::from_secs(20),
    look: Duration::from_secs(20),
    act: Duration::from_secs(20),
};

/// Serves one connection.
fn serve(script: impl FnOnce(TcpStream) + Send + 'static) -> (Host, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string().parse().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        script(stream);
    });
    (host, thread)
}

/// Waits for the client to hang up.
fn hang_on(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn request(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// Asks, and takes the answers alone.
pub(super) fn ask_in_order(
    hosts: &[Host],
    command: &Command,
    manner: impl Into<Manner>,
    mut each: impl FnMut(HostAnswer, Vec<String>),
) {
    ask_all(hosts, command, manner, |heard| {
        if let Heard::Answer(answer, warnings) = heard {
            each(answer, warnings);
        }
        ControlFlow::Continue(())
    });
}

fn check() -> Command {
    Command::Check {
        scope: CheckScope::Live,
    }
}

fn ask_one(
    waits: Waits,
    script: impl FnOnce(TcpStream) + Send + 'static,
) -> Result<Fields, Refusal> {
    let (host, thread) = serve(script);
    let mut outcome = None;
    ask_in_order(&[host], &check(), waits, |answer, _| {
        outcome = Some(answer.outcome);
    });
    thread.join().unwrap();
    outcome.unwrap()
}

fn code(outcome: Result<Fields, Refusal>) -> (String, String) {
    match outcome {
        Ok(fields) => panic!("{}", fields.object()),
        Err(refusal) => (refusal.code, refusal.message),
    }
}

#[test]
fn a_command_is_asked_as_the_protocol_says_and_its_answer_handed_on() {
    let outcome = ask_one(LONG, |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        assert_eq!(
            request(&stream),
            "{\"id\":1,\"command\":{\"op\":\"check\"}}\n"
        );
        stream
            .write_all(b"{\"id\":1,\"event\":{}}\n{\"id\":1,\"ok\":{\"op\":")
            .unwrap();
        stream.write_all(b"\"check\",\"new\":1}}\n").unwrap();
    });
    assert_eq!(outcome.unwrap().object(), r#"{"op":"check","new":1}"#);
}

#[test]
fn a_refusal_is_handed_on() {
    let outcome = ask_one(LONG, |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        request(&stream);
        let answer = r#"{"id":1,"error":{"code":"unknown_child","message":"no"}}"#;
        writeln!(stream, "{answer}").unwrap();
    });
    assert_eq!(code(outcome), ("unknown_child".to_owned(), "no".to_owned()));
}

#[test]
fn a_server_that_is_full_is_busy() {
    let outcome = ask_one(LONG, |mut stream| {
        let refusal = r#"{"id":null,"error":{"code":"busy","message":"too many"}}"#;
        writeln!(stream, "{refusal}").unwrap();
    });
    assert_eq!(code(outcome).0, "busy");
}

#[test]
fn what_is_no_server_is_unreachable() {
    for greeting in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "{}\n",
        "\n",
        "\u{0}\u{1b}[2J\n",
        "{\"hello\":{\"protocol\":1}}\n",
        "{\"id\":1,\"ok\":{}}\n",
        "{\"hello\":",
        "",
    ] {
        let outcome = ask_one(LONG, move |mut stream| {
            stream.write_all(greeting.as_bytes()).unwrap();
        });
        let (code, message) = code(outcome);
        assert_eq!(code, "unreachable", "{greeting:?}");
        assert!(message.contains("no supervisor-rs-server"), "{message}");
    }
}

#[test]
fn a_greeting_without_end_is_not_read_without_end() {
    let outcome = ask_one(LONG, |mut stream| {
        let chunk = [b'x'; 4096];
        while stream.write_all(&chunk).is_ok() {}
    });
    assert!(code(outcome).1.contains("longer than"));
}

#[test]
fn a_silent_server_is_a_timeout_before_and_after_its_hello() {
    let (early, message) = code(ask_one(SHORT, hang_on));
    assert_eq!(early, "timeout");
    assert!(message.contains("does not greet"), "{message}");
    let (late, message) = code(ask_one(SHORT, |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        hang_on(stream);
    }));
    assert_eq!(late, "timeout");
    assert!(message.contains("may have been carried out"), "{message}");
}

#[test]
fn a_server_that_drips_does_not_stretch_the_time() {
    let outcome = ask_one(SHORT, |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!(code(outcome).0, "timeout");
}

#[test]
fn what_goes_wrong_after_the_command_says_that_it_may_have_been_done() {
    for answer in [
        "",
        "{\"id\":1,\"ok\":{\"op\":\"check\"",
        "garbage\n",
        "{\"id\":2,\"ok\":{}}\n",
        "{\"id\":1,\"ok\":{\"op\":\"check\",\"op\":\"kill\"}}\n",
        "{\"hello\":{\"protocol\":1,\"server\":\"s\",\"id\":\"i\",\"version\":\"1\",\"encrypt\":false,\"nonce\":\"n\",\"time\":1}}\n",
    ] {
        let outcome = ask_one(LONG, move |mut stream| {
            writeln!(stream, "{HELLO}").unwrap();
            request(&stream);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let (code, message) = code(outcome);
        assert_eq!(code, "unreachable", "{answer}");
        assert!(message.contains("may have been carried out"), "{message}");
    }
}

#[test]
fn another_protocol_is_told_apart() {
    let outcome = ask_one(LONG, |mut stream| {
        writeln!(
            stream,
            "{}",
            HELLO.replace("\"protocol\":1", "\"protocol\":2")
        )
        .unwrap();
    });
    assert!(code(outcome).1.contains("speaks protocol 2"));
}

#[test]
fn nothing_unsigned_is_sent_to_a_server_that_takes_only_signed_commands() {
    let outcome = ask_one(LONG, |mut stream| {
        writeln!(
            stream,
            "{}",
            HELLO.replace("\"encrypt\":false", "\"encrypt\":true")
        )
        .unwrap();
        let mut sent = Vec::new();
        stream.read_to_end(&mut sent).unwrap();
        assert!(sent.is_empty());
    });
    let (code, message) = code(outcome);
    assert_eq!(code, "unauthorized");
    assert!(message.contains("`with KEY.pem` is missing"), "{message}");
}

#[test]
fn a_port_where_nobody_listens_is_unreachable() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host: Host = listener.local_addr().unwrap().to_string().parse().unwrap();
    drop(listener);
    let mut codes = Vec::new();
    ask_in_order(&[host], &check(), SHORT, |answer, _| {
        codes.push(code(answer.outcome).0)
    });
    assert_eq!(codes, ["unreachable"]);
}

#[test]
fn a_name_that_nobody_has_is_unreachable() {
    let host: Host = "no-such-host.invalid".parse().unwrap();
    let mut messages = Vec::new();
    ask_in_order(&[host], &check(), SHORT, |answer, _| {
        messages.push(code(answer.outcome))
    });
    assert_eq!(messages[0].0, "unreachable");
    assert!(
        messages[0].1.contains("`no-such-host.invalid`"),
        "{messages:?}"
    );
}

#[test]
fn a_name_with_several_addresses_is_tried_at_each() {
    // Where `localhost` is ::1 first, that is refused and 127.0.0.1 tried next.
    let (host, thread) = serve(|mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        request(&stream);
        stream.write_all(b"{\"id\":1,\"ok\":{}}\n").unwrap();
    });
    let Host::Tcp(host) = host else {
        panic!("not TCP");
    };
    let named: Host = format!("localhost:{}", host.port).parse().unwrap();
    let mut answers = Vec::new();
    ask_in_order(&[named], &check(), LONG, |answer, _| answers.push(answer));
    assert!(answers[0].outcome.is_ok(), "{answers:?}");
    assert_eq!(answers[0].host, format!("localhost:{}", host.port));
    thread.join().unwrap();
}

#[test]
fn hosts_are_asked_at_once_and_handed_on_in_their_order() {
    // The first server answers only once the second was asked, so that one after the other
    // would never end well.
    let (asked_in, asked) = mpsc::channel();
    let (first, first_thread) = serve(move |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        request(&stream);
        asked.recv_timeout(Duration::from_secs(20)).unwrap();
        stream.write_all(b"{\"id\":1,\"ok\":{}}\n").unwrap();
    });
    let (second, second_thread) = serve(move |mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        request(&stream);
        asked_in.send(()).unwrap();
        stream.write_all(b"{\"id\":1,\"ok\":{}}\n").unwrap();
    });
    let expected = [first.to_string(), second.to_string()];
    let mut order = Vec::new();
    ask_in_order(&[first, second], &check(), LONG, |answer, _| {
        assert!(answer.outcome.is_ok(), "{answer:?}");
        order.push(answer.host);
    });
    assert_eq!(order, expected);
    first_thread.join().unwrap();
    second_thread.join().unwrap();
}

#[test]
fn a_host_that_hangs_delays_no_answer_before_it() {
    let (release, hold) = mpsc::channel::<()>();
    let (good, good_thread) = serve(|mut stream| {
        writeln!(stream, "{HELLO}").unwrap();
        request(&stream);
        stream.write_all(b"{\"id\":1,\"ok\":{}}\n").unwrap();
    });
    let (hanging, hanging_thread) = serve(move |stream| {
        let _ = hold.recv_timeout(Duration::from_secs(20));
        drop(stream);
    });
    let mut seen = 0;
    ask_in_order(&[good, hanging], &check(), LONG, |answer, _| {
        seen += 1;
        match seen {
            // The second server hangs on until the first answer was handed on.
            1 => {
                assert!(answer.outcome.is_ok());
                release.send(()).unwrap();
            }
            _ => assert!(answer.outcome.is_err()),
        }
    });
    assert_eq!(seen, 2);
    good_thread.join().unwrap();
    hanging_thread.join().unwrap();
}

/// What comes of `start web --wait` when a server answers the start so, and then the wait so.
fn start_and_wait(start: &'static str, wait: &'static str) -> Result<Fields, Refusal> {
    let (host, thread) = serve(move |mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        writeln!(stream, "{HELLO}").unwrap();
        let asked = lines.next().unwrap().unwrap();
        assert_eq!(asked, r#"{"id":1,"command":{"op":"start","child":"web"}}"#);
        writeln!(stream, "{start}").unwrap();
        if wait.is_empty() {
            return;
        }
        let asked = lines.next().unwrap().unwrap();
        assert_eq!(
            asked,
            r#"{"id":2,"command":{"op":"wait","child":"web","for":"ready","run":4,"timeout_ms":7000}}"#
        );
        writeln!(stream, "{wait}").unwrap();
    });
    let command = Command::Child {
        verb: crate::spec::Verb::Start,
        child: "web".parse().unwrap(),
    };
    let manner = Manner {
        ready_within: Some(Duration::from_secs(7)),
        ..Manner::from(LONG)
    };
    let mut outcome = None;
    ask_in_order(&[host], &command, manner, |answer, _| {
        outcome = Some(answer.outcome);
    });
    thread.join().unwrap();
    outcome.unwrap()
}

#[test]
fn a_run_is_waited_for_on_the_connection_on_which_it_was_started() {
    const STARTED: &str = r#"{"id":1,"ok":{"op":"start","child":"web","pid":7,"run":4,"message":"`web` started\na note","new":1}}"#;
    let ready =
        r#"{"id":2,"ok":{"op":"wait","child":"web","pid":7,"run":4,"message":"`web` is ready"}}"#;
    let done = start_and_wait(STARTED, ready).unwrap().object();
    assert_eq!(
        done,
        r#"{"op":"start","child":"web","pid":7,"run":4,"message":"`web` is ready\na note","new":1}"#
    );
    let failed = r#"{"id":2,"error":{"code":"not_ready","message":"no"}}"#;
    let refusal = start_and_wait(STARTED, failed).unwrap_err();
    assert_eq!(
        (refusal.code.as_str(), refusal.message.as_str()),
        ("not_ready", "no")
    );
    // A server that does not know `wait`, and one that is gone.
    let unknown = r#"{"id":2,"error":{"code":"bad_request","message":"unknown op `wait`"}}"#;
    for (start, wait, code) in [
        (STARTED, unknown, "bad_request"),
        (STARTED, "", "unreachable"),
        (
            r#"{"id":1,"ok":{"op":"start","message":"done"}}"#,
            "",
            "unreachable",
        ),
    ] {
        let refusal = start_and_wait(start, wait).unwrap_err();
        assert_eq!(refusal.code, code);
        let message = refusal.message;
        assert!(
            message.contains("the command itself was carried out"),
            "{message}"
        );
    }
    let refused = r#"{"id":1,"error":{"code":"already_running","message":"it runs"}}"#;
    let refusal = start_and_wait(refused, "").unwrap_err();
    assert_eq!(refusal.message, "it runs");
}

#[test]
fn what_is_streamed_comes_at_once_and_the_answer_last_for_as_long_as_somebody_wants_it() {
    let line = |text: &str| format!("{text}\n").into_bytes();
    let stream = move |mut stream: TcpStream| {
        writeln!(stream, "{HELLO}").unwrap();
        let asked = request(&stream);
        assert_eq!(
            asked,
            "{\"id\":1,\"command\":{\"op\":\"events\",\"follow\":true}}\n"
        );
        for number in 1..=3 {
            let event = format!(r#"{{"id":1,"event":{{"seq":{number},"new":[1]}}}}"#);
            stream.write_all(&line(&event)).unwrap();
        }
        let error = r#"{"id":1,"error":{"code":"shutting_down","message":"it ends"}}"#;
        // Whoever wants no more is gone by now.
        let _ = stream.write_all(&line(error));
        hang_on(stream);
    };
    let command = Command::Events {
        child: None,
        follow: Follow::Yes,
        last: None,
    };
    for wanted in [usize::MAX, 2] {
        let (host, thread) = serve(stream);
        let mut told = Vec::new();
        ask_all(&[host], &command, SHORT, |heard| {
            told.push(match heard {
                Heard::Event(HostEvent { event, .. }) => event.get().to_owned(),
                Heard::Answer(answer, _) => answer.outcome.unwrap_err().code,
            });
            match told.len() == wanted {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        let one = |number: u64| format!(r#"{{"seq":{number},"new":[1]}}"#);
        let all = [one(1), one(2), one(3), "shutting_down".to_owned()];
        assert_eq!(told, all[..wanted.min(4)]);
        thread.join().unwrap();
    }
}
