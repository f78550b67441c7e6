//! The server's command line, both help texts, and the client with fake servers behind it.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    thread,
};

use super::*;
use crate::{
    command::{CheckScope, Command},
    control::{client::Waits, host::Host},
};

fn server(words: &[&str]) -> Result<ServerArgs, Early> {
    let argv = ["supervisor-rs-server"].iter().chain(words);
    server_args(argv.map(OsString::from))
}

#[test]
fn the_server_reads_its_documented_arguments() {
    let plain = server(&[]).unwrap();
    assert_eq!(plain.config, Path::new("/tmp/server.yml"));
    assert_eq!(plain.task, ServerTask::Supervise { exit_with: None });
    assert_eq!(plain.log, LogArgs::default());

    let named = server(&[
        "./test/server.yml",
        "--log",
        "debug",
        "--log-format",
        "json",
    ])
    .unwrap();
    assert_eq!(named.config, PathBuf::from("./test/server.yml"));
    assert_eq!(named.log.filter.as_deref(), Some("debug"));
    assert_eq!(named.log.format, LogFormat::Json);

    let with = server(&["--exit-with", "web", "x.yml"]).unwrap();
    let exit_with = Some("web".parse().unwrap());
    assert_eq!(with.task, ServerTask::Supervise { exit_with });
    for wrong in [
        &["--exit-with", "all"][..],
        &["--exit-with", "a/b"],
        &["--exit-with"],
        &["--exit-with", "web", "--check"],
        &["--exit-with", "web", "--verify-audit"],
    ] {
        assert_eq!(server(wrong).unwrap_err().code, USAGE, "{wrong:?}");
    }

    for words in [&["--check", "x.yml"][..], &["x.yml", "--check"]] {
        let check = server(words).unwrap();
        assert_eq!(
            (check.task, check.config),
            (ServerTask::Check, "x.yml".into())
        );
    }
    assert_eq!(
        server(&["--check"]).unwrap().config,
        Path::new("/tmp/server.yml")
    );
}

#[test]
fn the_server_is_told_to_check_its_audit_trail() {
    let hash = "0123456789abcdef".repeat(4);
    let task = |words: &[&str]| server(words).unwrap().task;
    let noted = None;
    assert_eq!(task(&["--verify-audit"]), ServerTask::VerifyAudit { noted });
    let noted = Some(hash.parse().unwrap());
    assert_eq!(
        task(&["x.yml", "--verify-audit", "--audit-hash", &hash]),
        ServerTask::VerifyAudit { noted }
    );
    for words in [
        &["--audit-hash", &hash][..],
        &["--verify-audit", "--audit-hash", "abc"],
        &["--verify-audit", "--audit-hash"],
        &["--verify-audit", "--check"],
    ] {
        let early = server(words).unwrap_err();
        assert_eq!((early.code, early.to), (USAGE, Place::Err), "{words:?}");
    }
}

#[test]
fn what_the_server_does_not_know_is_a_usage_error() {
    for words in [
        &["a.yml", "b.yml"][..],
        &["--chekc"],
        &["--log-format", "xml"],
    ] {
        let early = server(words).unwrap_err();
        assert_eq!((early.code, early.to), (USAGE, Place::Err), "{words:?}");
    }
    let version = server(&["--version"]).unwrap_err();
    assert_eq!((version.code, version.to), (0, Place::Out));
    assert_eq!(
        version.text,
        concat!("supervisor-rs-server ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn both_help_texts_are_as_they_were_read_last() {
    let environment = Environment::default();
    let client = client_args(["x", "--help"].map(OsString::from), &environment);
    let server = server(&["--help"]).unwrap_err();
    crate::control::render::fixture("client-help.txt", &client.unwrap_err().text);
    crate::control::render::fixture("server-help.txt", &server.text);
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let plain = Environment::default();
    assert_eq!(plain.style(Stream::Terminal), Style::Colour);
    assert_eq!(plain.style(Stream::Other), Style::Plain);
    for (no_color, term) in [(Some("1".into()), None), (None, Some("dumb".into()))] {
        let environment = Environment {
            no_color,
            term,
            ..Environment::default()
        };
        assert_eq!(environment.style(Stream::Terminal), Style::Plain);
    }
}

/// A server that answers each of its connections with one line.
fn fake(answer: &'static str) -> Host {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let hello = r#"{"hello":{"protocol":1,"server":"s","id":"i","version":"1","encrypt":false,"nonce":"n","time":1}}"#;
        writeln!(stream, "{hello}").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        writeln!(stream, "{answer}").unwrap();
    });
    address.to_string().parse().unwrap()
}

fn ask(hosts: Vec<Host>, output: Output) -> Ask {
    Ask {
        ready_within: None,
        command: Command::Check {
            scope: CheckScope::Live,
        },
        hosts,
        output,
        log: LogArgs::default(),
    }
}

const NOTHING: &str = r#"{"id":1,"ok":{"op":"check","children":[],"others":0}}"#;
const BUSY: &str = r#"{"id":1,"error":{"code":"busy","message":"wait"}}"#;

#[test]
fn data_goes_to_one_stream_and_complaints_to_the_other() {
    let hosts = vec![fake(NOTHING), fake(BUSY), fake(NOTHING)];
    let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ask = ask(hosts, Output::Text);
    let code = carry_out(
        &ask,
        Waits::default(),
        &mut out,
        Style::Plain,
        &mut err,
        Style::Plain,
    );
    assert_eq!(code, 7);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        format!(
            "{}: no children are known\n{}: no children are known\n",
            names[0], names[2]
        )
    );
    assert_eq!(
        String::from_utf8(err).unwrap(),
        format!("{}: error[busy]: wait\n", names[1])
    );
}

#[test]
fn json_is_one_line_a_host_on_one_stream() {
    let hosts = vec![fake(BUSY), fake(NOTHING)];
    let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ask = ask(hosts, Output::Json);
    let code = carry_out(
        &ask,
        Waits::default(),
        &mut out,
        Style::Plain,
        &mut err,
        Style::Plain,
    );
    assert_eq!(code, 7);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        format!(
            "{{\"host\":\"{}\",\"ok\":false,\"op\":\"check\",\"error\":{{\"code\":\"busy\",\"message\":\"wait\"}}}}\n\
             {{\"host\":\"{}\",\"ok\":true,\"op\":\"check\",\"children\":[],\"others\":0}}\n",
            names[0], names[1]
        )
    );
    assert!(err.is_empty());
}

/// Takes nothing.
struct Broken(std::io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn a_closed_pipe_is_silent_and_keeps_no_command_from_a_host() {
    let mut err = Vec::new();
    let ask = ask(vec![fake(NOTHING), fake(BUSY)], Output::Json);
    let mut out = Broken(std::io::ErrorKind::BrokenPipe);
    let code = carry_out(
        &ask,
        Waits::default(),
        &mut out,
        Style::Plain,
        &mut err,
        Style::Plain,
    );
    assert_eq!((code, err.as_slice()), (7, &b""[..]));
}

#[test]
fn an_answer_that_cannot_be_printed_is_a_failure() {
    let mut err = Vec::new();
    let ask = ask(vec![fake(NOTHING)], Output::Text);
    let mut out = Broken(std::io::ErrorKind::StorageFull);
    let code = carry_out(
        &ask,
        Waits::default(),
        &mut out,
        Style::Plain,
        &mut err,
        Style::Plain,
    );
    assert_eq!(code, 1);
    assert!(
        String::from_utf8(err)
            .unwrap()
            .starts_with("error: cannot print the answer: ")
    );
}
