//! Every form of the client's grammar, and what is no form of it.

use super::*;
use crate::control::host::PORT;

fn ask_in(environment: &Environment, line: &str) -> Result<Ask, Early> {
    let words = shell_words::split(line).unwrap();
    let argv = ["supervisor-rs-client".to_owned()].into_iter().chain(words);
    client_args(argv.map(OsString::from), environment)
}

fn ask(line: &str) -> Ask {
    ask_in(&Environment::default(), line).unwrap_or_else(|early| panic!("{line}: {}", early.text))
}

fn wrong(line: &str) -> String {
    wrong_in(&Environment::default(), line)
}

fn wrong_in(environment: &Environment, line: &str) -> String {
    match ask_in(environment, line) {
        Ok(ask) => panic!("{line} was taken as {ask:?}"),
        Err(early) => {
            assert_eq!((early.code, early.to), (USAGE, Place::Err), "{line}");
            assert!(early.text.starts_with("error: "), "{line}: {}", early.text);
            assert!(early.text.ends_with('\n'));
            early.text
        }
    }
}

fn hosts(line: &str) -> Vec<String> {
    ask(line).hosts.iter().map(ToString::to_string).collect()
}

fn child(verb: Verb) -> Command {
    Command::Child {
        verb,
        child: "web".parse().unwrap(),
    }
}

#[test]
fn every_command_is_understood_in_any_case() {
    let live = Command::Check {
        scope: CheckScope::Live,
    };
    let all = Command::Check {
        scope: CheckScope::All,
    };
    let one = Command::CheckOne("web".parse().unwrap());
    for (line, command) in [
        ("start web", child(Verb::Start)),
        ("Restart web", child(Verb::Restart)),
        ("TRYSTART web", child(Verb::Trystart)),
        ("stop web", child(Verb::Stop)),
        ("stop all", Command::StopAll),
        ("Stop ALL", Command::StopAll),
        ("stop --all", Command::StopAll),
        ("stop -A", Command::StopAll),
        ("stop all --all", Command::StopAll),
        ("--all stop", Command::StopAll),
        ("start all", Command::StartAll),
        ("start --all", Command::StartAll),
        ("check", live.clone()),
        ("CHECK", live),
        ("check web", one),
        ("check -a", all.clone()),
        ("check --all", all.clone()),
        ("check -A", all.clone()),
        ("check all", all),
        ("info", Command::Info),
        ("kill", Command::Kill(KillChildren::AsConfigured)),
        ("kill --stop-children", Command::Kill(KillChildren::Stop)),
    ] {
        assert_eq!(ask(line).command, command, "{line}");
        assert_eq!(ask(line).hosts, [Host::ThisHost], "{line}");
        assert_eq!(ask(line).output, Output::Text, "{line}");
    }
    let upper = ask("start WEB").command;
    assert_ne!(upper, child(Verb::Start), "names are as they are");
}

#[test]
fn hosts_may_be_given_in_every_documented_form() {
    for line in [
        "restart web on a,b",
        "restart web ON 'a, b'",
        "restart web on 'a b'",
        "restart web on a, b",
        "restart web on a ,b",
        "restart web on a , b",
        "restart web on a on b",
        "restart web On 'a,,b,'",
        "restart web --on a,b",
        "restart web -o a -o b",
        "restart web -oa --on=b",
        "restart web on a -o b",
        "-o a,b restart web",
        "restart web on a on b on a",
        "restart web on a on b on A:33889",
    ] {
        assert_eq!(hosts(line), ["a", "b"], "{line}");
        assert_eq!(ask(line).command, child(Verb::Restart), "{line}");
    }
    assert_eq!(
        hosts("check on [::1]:4000,::1,10.0.0.1:1,localhost"),
        ["[::1]:4000", "::1", "10.0.0.1:1", "localhost"]
    );
    match &ask("check on ::1").hosts[..] {
        [Host::Tcp(host)] => assert_eq!((host.name.as_str(), host.port), ("::1", PORT)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_environment_names_hosts_when_the_line_does_not() {
    let environment = Environment {
        on: Some("a, b".into()),
        ..Environment::default()
    };
    let named = |line| -> Vec<String> {
        let ask = ask_in(&environment, line).unwrap();
        ask.hosts.iter().map(ToString::to_string).collect()
    };
    assert_eq!(named("check"), ["a", "b"]);
    assert_eq!(named("check on c"), ["c"]);
    let bad = |on: &str| Environment {
        on: Some(on.into()),
        ..Environment::default()
    };
    assert!(wrong_in(&bad("-x"), "check").contains("begins with `-`"));
    assert!(wrong_in(&bad(" , "), "check").contains("needs a host"));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        let environment = Environment {
            on: Some(OsString::from_vec(vec![0xff])),
            ..Environment::default()
        };
        assert!(wrong_in(&environment, "check").contains("`SUPERVISOR_RS_ON`"));
    }
}

#[test]
fn keys_are_understood_and_said_to_be_unsupported() {
    for line in [
        "check with k.pem",
        "check on a WITH k.pem",
        "check -k k.pem",
        "check --with=k",
    ] {
        assert!(
            wrong(line).contains("not supported by this version"),
            "{line}"
        );
    }
    for line in [
        "check with a with b",
        "check with a -k b",
        "check -k a -k b",
    ] {
        assert!(wrong(line).contains("one key"), "{line}");
    }
    assert!(wrong("check with").contains("needs a key"));
    assert!(wrong("check with on a").contains("needs a key"));
    let environment = Environment {
        key: Some("k.pem".into()),
        ..Environment::default()
    };
    assert!(wrong_in(&environment, "check").contains("`SUPERVISOR_RS_KEY`"));
}

#[test]
fn ssh_hosts_are_understood_and_said_to_be_unsupported() {
    assert!(wrong("check on ssh://me@host:22/4000").contains("not supported by this version"));
    assert!(wrong("check on ssh://-oProxyCommand=x").contains("begins with `-`"));
}

#[test]
fn a_wrong_line_shows_the_nearest_right_form() {
    for (line, says) in [
        ("", "a command is missing"),
        ("on localhost", "a command is missing"),
        ("restrat web", "did you mean `restart`?"),
        ("Chekc", "did you mean `check`?"),
        ("status", "did you mean `check`?"),
        ("reload web", "did you mean `restart`?"),
        ("rstart web", "did you mean `restart`?"),
        ("sart web", "did you mean `start`?"),
        ("web", "there is no command `web`"),
        ("web restart", "the command comes first: `restart web`"),
        ("web STOP on a", "the command comes first: `stop web`"),
        ("status start", "did you mean `check`?"),
        ("start", "`start NAME`, or `start --all`"),
        ("restart", "`restart NAME`"),
        ("start on host", "`start NAME`"),
        ("restart all", "there is no `restart all`"),
        ("trystart all", "there is no `trystart all`"),
        ("kill web", "did you mean `stop web`?"),
        ("info web", "did you mean `check web`?"),
        ("kill all", "takes no name"),
        ("stop web --all", "a name or all, not both"),
        ("check web -a", "a name or all, not both"),
        ("stop -a", "did you mean `--all`?"),
        ("kill --all", "did you mean `--stop-children`?"),
        ("restart --all", "`--all` does not go with `restart`"),
        ("stop --stop-children web", "does not go with `stop`"),
        ("start web db", "unexpected word `db`"),
        ("start web on a b", "unexpected word `b`"),
        ("start on a web", "unexpected word `web`"),
        ("check on", "`on HOST[,HOST…]`"),
        ("check on on a", "`on HOST[,HOST…]`"),
        ("check on ','", "`on HOST[,HOST…]`"),
        ("check on a:b", "is not a port"),
        ("check on 'a;b'", "cannot stand in a name"),
        ("start ../x", "a child name begins with a letter"),
        ("start help", "cannot name a child"),
        ("check --jsn", "'--json'"),
        ("check on -x", "unexpected argument '-x'"),
        ("check --on=-x", "begins with `-`"),
        ("check --log-format xml", "invalid value 'xml'"),
    ] {
        assert!(wrong(line).contains(says), "{line}: {}", wrong(line));
    }
}

#[test]
fn an_unknown_option_is_not_advised_to_stand_as_a_word() {
    let said = wrong("kill --force");
    assert!(
        said.contains("unexpected argument '--force' found"),
        "{said}"
    );
    assert!(!said.contains("tip:"), "{said}");
}

#[test]
fn a_wrong_line_cannot_drive_the_terminal() {
    for line in [
        "'\u{1b}[2J' stop",
        "'\u{1b}[2J'",
        "start web '\u{1b}[2J'",
        "kill '\u{1b}[2J'",
        "stop '\u{1b}[2J' --all",
        "start '\u{1b}[2J'",
        "check on '\u{1b}[2J'",
        "check on 'ssh://\u{1b}[2J'",
    ] {
        assert!(!wrong(line).contains('\u{1b}'), "{:?}", wrong(line));
    }
}

#[test]
fn more_hosts_than_can_be_asked_are_refused() {
    let many: Vec<String> = (0..=HOSTS_MAX).map(|n| format!("h{n}")).collect();
    assert!(wrong(&format!("check on {}", many.join(","))).contains("at most 1024"));
    assert_eq!(
        hosts(&format!("check on {}", many[1..].join(","))).len(),
        HOSTS_MAX
    );
}

#[test]
fn output_and_log_are_chosen_by_options() {
    let ask = ask("check --json --log debug --log-format json");
    assert_eq!(ask.output, Output::Json);
    assert_eq!(
        ask.log,
        LogArgs {
            filter: Some("debug".to_owned()),
            format: LogFormat::Json
        }
    );
}

#[test]
fn help_and_version_are_answers_not_errors() {
    for line in [
        "help",
        "HELP",
        "help start",
        "--help",
        "-h",
        "start web --help",
    ] {
        let early = ask_in(&Environment::default(), line).unwrap_err();
        assert_eq!((early.code, early.to), (0, Place::Out), "{line}");
        assert!(early.text.contains("\nCommands (in any case):\n"), "{line}");
        assert!(early.text.ends_with('\n'), "{line}");
    }
    let early = ask_in(&Environment::default(), "--version").unwrap_err();
    assert_eq!(
        early.text,
        concat!("supervisor-rs-client ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
