//! Every form of the client's grammar, and what is no form of it.

use super::*;
use crate::{
    command::{CheckScope, Follow, Goal, KillChildren},
    control::{host::PORT, keys::Bits},
    spec::Verb,
};

fn task_in(environment: &Environment, line: &str) -> Result<ClientTask, Early> {
    let words = shell_words::split(line).unwrap();
    let argv = ["supervisor-rs-client".to_owned()].into_iter().chain(words);
    client_args(argv.map(OsString::from), environment)
}

fn task(line: &str) -> ClientTask {
    task_in(&Environment::default(), line).unwrap_or_else(|early| panic!("{line}: {}", early.text))
}

fn both_in(environment: &Environment, line: &str) -> Result<(Ask, ProofArgs), Early> {
    task_in(environment, line).map(|task| match task {
        ClientTask::Ask { ask, proof } => (ask, proof),
        ClientTask::Keygen(_) | ClientTask::Forget(_) => panic!("{line}: {task:?}"),
    })
}

fn ask_in(environment: &Environment, line: &str) -> Result<Ask, Early> {
    both_in(environment, line).map(|(ask, _)| ask)
}

fn proof(line: &str) -> ProofArgs {
    both_in(&Environment::default(), line).unwrap().1
}

fn ask(line: &str) -> Ask {
    ask_in(&Environment::default(), line).unwrap_or_else(|early| panic!("{line}: {}", early.text))
}

fn wrong(line: &str) -> String {
    wrong_in(&Environment::default(), line)
}

fn wrong_in(environment: &Environment, line: &str) -> String {
    match task_in(environment, line) {
        Ok(task) => panic!("{line} was taken as {task:?}"),
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
        ("upgrade", Command::Upgrade),
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
fn what_is_waited_for_and_for_how_long_is_chosen_by_options() {
    let wait = |goal, seconds| Command::Wait {
        child: "web".parse().unwrap(),
        goal,
        run: None,
        time: Duration::from_secs(seconds),
    };
    for (line, command) in [
        ("wait web --for ready", wait(Goal::Ready, 60)),
        ("WAIT web --for=Running", wait(Goal::Running, 60)),
        (
            "wait --for exited web --timeout 2m",
            wait(Goal::Exited, 120),
        ),
        ("wait web --for ready --timeout 0s", wait(Goal::Ready, 0)),
        (
            "wait web --for ready --timeout 24h",
            wait(Goal::Ready, 86_400),
        ),
    ] {
        assert_eq!(ask(line).command, command, "{line}");
        assert_eq!(ask(line).ready_within, None, "{line}");
    }
    for (line, seconds) in [
        ("start web --wait", 60),
        ("start --wait web", 60),
        ("restart web --wait --timeout 90s", 90),
        ("--timeout=1h trystart web on a --wait", 3_600),
    ] {
        let within = Some(Duration::from_secs(seconds));
        assert_eq!(ask(line).ready_within, within, "{line}");
    }
    assert_eq!(ask("start web").ready_within, None);
    for (line, says) in [
        ("wait", "`wait` needs the name of a child: `wait NAME`"),
        ("wait all --for ready", "there is no `wait all`"),
        ("wait --all --for ready", "`--all` does not go with `wait`"),
        ("wait web", "`wait NAME --for running|ready|exited`"),
        ("wait web --for up", "running|ready|exited, not `up`"),
        (
            "wait web --for ready --wait",
            "`--wait` does not go with `wait`",
        ),
        ("start web --for ready", "`--for` does not go with `start`"),
        ("start web --timeout 5s", "`--timeout` is for `wait NAME`"),
        ("check --timeout 5s", "`--timeout` is for `wait NAME`"),
        ("start web --wait --timeout soon", "`soon` is no time"),
        ("start web --wait --timeout 5", "write it as `90s`"),
        ("start web --wait --timeout 25h", "at most 1day"),
        ("start --all --wait", "`start NAME --wait`"),
        ("restart all --wait", "there is no `restart all`"),
        ("stop web --wait", "`--wait` does not go with `stop`"),
        ("check web --wait", "`--wait` does not go with `check`"),
        ("info --wait", "`--wait` does not go with `info`"),
        ("kill --wait", "`--wait` does not go with `kill`"),
        ("keygen a --wait", "`--wait` does not go with `keygen`"),
        ("--forget a --timeout 5s", "`--forget` stands alone"),
    ] {
        assert!(wrong(line).contains(says), "{line}: {}", wrong(line));
    }
}

#[test]
fn events_are_asked_for_of_one_child_or_all() {
    let events = |child: Option<&str>, follow, last| Command::Events {
        child: child.map(|name| name.parse().unwrap()),
        follow,
        last,
    };
    for (line, command) in [
        ("events", events(None, Follow::No, None)),
        ("events all", events(None, Follow::No, None)),
        ("EVENTS web on a", events(Some("web"), Follow::No, None)),
        (
            "events events -f",
            events(Some("events"), Follow::Yes, None),
        ),
        (
            "events --follow --tail 0",
            events(None, Follow::Yes, Some(0)),
        ),
        (
            "-f events --tail=7 on a",
            events(None, Follow::Yes, Some(7)),
        ),
    ] {
        assert_eq!(ask(line).command, command, "{line}");
    }
    for (line, says) in [
        ("events --tail x", "`x` is no number of events"),
        ("events --tail=-1", "`-1` is no number of events"),
        ("events --all", "`--all` does not go with `events`"),
        ("events --wait", "`--wait` does not go with `events`"),
        ("check -f", "`--follow` does not go with `check`"),
        ("check --tail 1", "`--tail` does not go with `check`"),
        ("web events", "the command comes first: `events web`"),
        ("event", "did you mean `events`?"),
        ("keygen a -f", "`--follow` does not go with `keygen`"),
    ] {
        assert!(wrong(line).contains(says), "{line}: {}", wrong(line));
    }
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
fn a_key_may_be_given_in_every_documented_form_and_once_only() {
    for line in [
        "check with k.pem",
        "check web WITH k.pem",
        "check on a With k.pem",
        "check with k.pem on a",
        "check -k k.pem",
        "-kk.pem check",
        "check --with k.pem",
        "check --with=k.pem",
    ] {
        assert_eq!(proof(line).key, Some("k.pem".into()), "{line}");
    }
    assert_eq!(proof("check").key, None);
    assert_eq!(proof("check with /A/b.pem").key, Some("/A/b.pem".into()));
    for line in [
        "check with a with b",
        "check with a -k b",
        "check -k a -k b",
        "check with a with a",
    ] {
        assert!(wrong(line).contains("one key, not with 2"), "{line}");
    }
    for line in ["check with", "check with on a", "check on a with with b"] {
        assert!(wrong(line).contains("`with KEY.pem`"), "{line}");
    }
}

#[test]
fn the_environment_names_a_key_when_the_line_does_not() {
    let environment = Environment {
        key: Some("/keys/k.pem".into()),
        ..Environment::default()
    };
    let key = |line| both_in(&environment, line).unwrap().1.key;
    assert_eq!(key("check"), Some("/keys/k.pem".into()));
    assert_eq!(key("check with l.pem"), Some("l.pem".into()));
    assert_eq!(key("check --strict"), Some("/keys/k.pem".into()));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        // A path need not be text.
        let path = OsString::from_vec(b"/keys/\xff.pem".to_vec());
        let environment = Environment {
            key: Some(path.clone()),
            ..Environment::default()
        };
        let (_, proof) = both_in(&environment, "check").unwrap();
        assert_eq!(proof.key, Some(path.into()));
    }
}

#[test]
fn what_servers_are_told_a_command_is_chosen_by_options() {
    const ID: &str = "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5";
    assert_eq!(proof("check"), ProofArgs::default());
    assert_eq!(proof("check with k --strict").strangers, Strangers::Refused);
    assert_eq!(
        proof("check with k --allow-unsigned").downgrade,
        Downgrade::Allowed
    );
    // Scripts may say so whether or not they have a key.
    assert_eq!(
        proof("check --allow-unsigned").downgrade,
        Downgrade::Allowed
    );
    let line = format!("check on a --server-id {}", ID.to_uppercase());
    assert_eq!(proof(&line).server_id, Some(ID.parse().unwrap()));
    assert_eq!(proof(&format!("check on a,A --server-id={ID}")).key, None);
    for (line, says) in [
        ("check --strict".to_owned(), "`with KEY.pem` is missing"),
        ("check --server-id x".to_owned(), "a server's id is a UUID"),
        ("check --server-id ''".to_owned(), "a server's id is a UUID"),
        (
            format!("check on a,b --server-id {ID}"),
            "the id of one server, but 2 hosts are asked",
        ),
        (
            format!("check --server-id {ID} --server-id {ID}"),
            "cannot be used multiple times",
        ),
    ] {
        assert!(wrong(&line).contains(says), "{line}: {}", wrong(&line));
    }
}

#[test]
fn hosts_behind_ssh_are_hosts() {
    assert_eq!(
        hosts("check on ssh://me@host:22/4000,SSH://h"),
        ["ssh://me@host:22/4000", "SSH://h"]
    );
    assert_eq!(
        hosts("check on ssh://h,ssh://H/,ssh://h/33889"),
        ["ssh://h"]
    );
    for line in [
        "check on ssh://-oProxyCommand=x",
        "check on=-x",
        "check on '-oProxyCommand=x'",
        "check --on=-oProxyCommand=x",
        "check -o-oProxyCommand=x",
    ] {
        wrong(line);
    }
    assert!(wrong("check on ssh://-oProxyCommand=x").contains("begins with `-`"));
}

#[test]
fn keygen_takes_a_name_and_nothing_of_a_server() {
    let keygen = |line: &str| match task(line) {
        ClientTask::Keygen(keygen) => keygen,
        other => panic!("{line}: {other:?}"),
    };
    for line in [
        "keygen deploy",
        "KeyGen deploy",
        "--bits 4096 keygen deploy",
    ] {
        let made = keygen(line);
        assert_eq!((made.name.as_str(), made.bits), ("deploy", Bits::B4096));
        assert_eq!(made.output, Output::Text);
    }
    assert_eq!(keygen("keygen d --bits 2048").bits, Bits::B2048);
    assert_eq!(keygen("keygen d --bits=3072 --json").output, Output::Json);
    // What it is called is the key's business, not that of children.
    assert_eq!(keygen("keygen all").name.as_str(), "all");
    assert_eq!(keygen("keygen a@b.c --log debug").name.as_str(), "a@b.c");
    for (line, says) in [
        ("keygen", "`keygen NAME`"),
        ("keygen on", "needs a host"),
        ("keygen a b", "unexpected word `b`"),
        ("keygen ../a", "`/` cannot stand in a key name"),
        ("keygen /a", "current directory"),
        ("keygen ''", "a key name must not be empty"),
        ("keygen .a", "begins with a letter or digit"),
        ("keygen deploy.pem", "did you mean `keygen deploy`?"),
        ("keygen deploy.pub", "did you mean `keygen deploy`?"),
        ("keygen deploy.pub.pem", "did you mean `keygen deploy`?"),
        ("keygen a --bits 1024", "not with `1024`"),
        ("keygen a --bits ''", "2048, 3072 or 4096 bits"),
        ("keygen a on b", "`on` does not go with `keygen`"),
        ("keygen a --on b", "`--on` does not go with `keygen`"),
        ("keygen a with k", "`with` does not go with `keygen`"),
        ("keygen a -k k", "`--with` does not go with `keygen`"),
        ("keygen a --all", "`--all` does not go with `keygen`"),
        ("keygen a --strict", "`--strict` does not go with `keygen`"),
        ("keygen a --stop-children", "does not go with `keygen`"),
        ("keygen a --allow-unsigned", "does not go with `keygen`"),
        ("check --bits 2048", "`--bits` does not go with `check`"),
        ("keygne a", "did you mean `keygen`?"),
        ("genkey a", "did you mean `keygen`?"),
    ] {
        assert!(wrong(line).contains(says), "{line}: {}", wrong(line));
    }
    let environment = Environment {
        on: Some("a".into()),
        key: Some("k".into()),
        ..Environment::default()
    };
    assert!(task_in(&environment, "keygen d").is_ok());
}

#[test]
fn to_forget_takes_hosts_and_no_command() {
    let forgets = |line: &str| match task(line) {
        ClientTask::Forget(forget) => forget
            .hosts
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(forgets("--forget a"), ["a"]);
    assert_eq!(forgets("--forget a,b --forget c --json"), ["a", "b", "c"]);
    assert_eq!(forgets("--forget 'a b' --forget A:33889"), ["a", "b"]);
    assert_eq!(forgets("--forget ssh://h/localhost:33889").len(), 1);
    for line in [
        "check --forget a",
        "--forget a on b",
        "--forget a --on b",
        "--forget a -k k",
        "--forget a --strict",
        "--forget a --all",
        "--forget a --bits 2048",
        "keygen x --forget a",
    ] {
        assert!(wrong(line).contains("`--forget` stands alone"), "{line}");
    }
    assert!(wrong("--forget ','").contains("`--forget` needs a host"));
    assert!(wrong("--forget a:b").contains("is not a port"));
    assert!(wrong("--forget").contains("--forget"));
    assert!(wrong("forget a").contains("did you mean `--forget`?"));
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
    let said = wrong("kill --hard");
    assert!(
        said.contains("unexpected argument '--hard' found"),
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
        "--forget '\u{1b}[2J'",
        "keygen '\u{1b}[2J'",
        "keygen a --bits '\u{1b}[2J'",
        "check --server-id '\u{1b}[2J'",
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
        let early = task_in(&Environment::default(), line).unwrap_err();
        assert_eq!((early.code, early.to), (0, Place::Out), "{line}");
        assert!(early.text.contains("\nCommands (in any case):\n"), "{line}");
        assert!(early.text.ends_with('\n'), "{line}");
    }
    let early = task_in(&Environment::default(), "--version").unwrap_err();
    assert_eq!(
        early.text,
        concat!("supervisor-rs-client ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
