//! Whole commands, from the task to what is printed: with keys, with servers that were met, and
//! without any server.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    thread::{self, JoinHandle},
};

use serde_json::Value;

use super::*;
use crate::{
    cli::{Environment, client_args},
    control::{
        host::Host,
        keys::PublicKey,
        token::{Expected, Unverified},
    },
};

const ID: &str = "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";
const NONCE: &str = "q1dXxOZ6oJ2oM1n0y4m1c0m2T3l5b7f9h1j3k5l7n9o";
const TIME: i64 = 1_700_000_000;
const NOTHING: &str = r#"{"id":1,"ok":{"op":"check","children":[],"others":0}}"#;

/// A client's home.
struct Home(tempfile::TempDir);

#[derive(Debug)]
struct Said {
    code: u8,
    out: String,
    err: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With the pair `deploy`.
    fn with_key() -> Self {
        let home = Self::new();
        let said = home.run("keygen deploy --bits 2048");
        assert_eq!((said.code, said.err.as_str()), (0, ""));
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn known_servers(&self) -> PathBuf {
        self.path("state/supervisor-rs/known_servers")
    }

    fn known(&self) -> String {
        let text = fs::read_to_string(self.known_servers()).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.to_owned() + "\n").collect()
    }

    /// Does what a command line says; `KEY` in it is the key's path.
    fn run(&self, line: &str) -> Said {
        let line = line.replace("KEY", &self.path("deploy.pem").display().to_string());
        let words = shell_words::split(&line).unwrap();
        let argv = ["supervisor-rs-client".to_owned()].into_iter().chain(words);
        let task = client_args(argv.map(OsString::from), &Environment::default()).unwrap();
        let surroundings = Surroundings {
            waits: Waits::default(),
            ssh: Ssh::default(),
            known_servers: Some(self.known_servers()),
            folder: self.0.path().to_owned(),
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let streams = Streams {
            out: &mut out,
            out_style: Style::Plain,
            err: &mut err,
            err_style: Style::Plain,
        };
        let code = perform(&task, surroundings, streams);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replace(&self.0.path().display().to_string(), "HOME")
        };
        Said {
            code,
            out: text(out),
            err: text(err),
        }
    }
}

/// A server that greets so, and answers its only request so; the thread returns the request.
fn serve(encrypt: bool, id: &'static str, answer: &'static str) -> (Host, JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = listener.local_addr().unwrap().to_string().parse().unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(
            stream,
            r#"{{"hello":{{"protocol":1,"server":"s","id":"{id}","version":"1","encrypt":{encrypt},"nonce":"{NONCE}","time":{TIME}}}}}"#
        )
        .unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        if !line.is_empty() {
            writeln!(stream, "{answer}").unwrap();
        }
        line
    });
    (host, thread)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_pair_of_keys_is_made_and_what_to_do_with_it_said() {
    let home = Home::new();
    let said = home.run("keygen deploy --bits 2048");
    let pem = fs::read(home.path("deploy.pub.pem")).unwrap();
    let key = PublicKey::from_pem(&pem).unwrap();
    assert_eq!(
        said.out,
        format!(
            "private key  `HOME/deploy.pem` (mode 0600; it stays with you)\n\
             public key   `HOME/deploy.pub.pem`\n\
             fingerprint  {} (RSA, 2048 bits)\n\
             next: copy deploy.pub.pem into a directory of the server's `pub_keys_path`, then\n\
             \x20     supervisor-rs-client check on HOST with deploy.pem\n",
            key.fingerprint()
        )
    );
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(mode(&home.path("deploy.pem")), 0o600);
    let read = PrivateKey::read(&home.path("deploy.pem")).unwrap();
    assert_eq!(read.fingerprint(), key.fingerprint());
}

#[test]
fn a_pair_is_told_to_programs_as_one_object() {
    let home = Home::new();
    let said = home.run("KeyGen ci --bits 3072 --json");
    assert_eq!(said.out.lines().count(), 1);
    let made: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(made["ok"], true);
    assert_eq!(made["op"], "keygen");
    assert_eq!(made["name"], "ci");
    assert_eq!(made["bits"], 3072);
    assert_eq!(made["private"], "HOME/ci.pem");
    assert_eq!(made["public"], "HOME/ci.pub.pem");
    assert!(made["fingerprint"].as_str().unwrap().starts_with("SHA256:"));
}

#[test]
fn a_key_that_is_there_is_not_overwritten() {
    let home = Home::with_key();
    let before = fs::read(home.path("deploy.pem")).unwrap();
    for output in ["", " --json"] {
        let said = home.run(&format!("keygen deploy --bits 2048{output}"));
        assert_eq!((said.code, said.out.as_str()), (FAILED, ""));
        let words = "error: `HOME/deploy.pem` is there already";
        assert!(said.err.starts_with(words), "{said:?}");
    }
    assert_eq!(fs::read(home.path("deploy.pem")).unwrap(), before);
}

#[test]
fn a_command_is_signed_for_the_server_that_greeted_and_the_server_written_down() {
    let home = Home::with_key();
    let (host, server) = serve(true, ID, NOTHING);
    let said = home.run(&format!("check on {host} with KEY"));
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    assert_eq!(said.out, "no children are known\n");
    assert_eq!(home.known(), format!("{host} {ID}\n"));
    let request: Value = serde_json::from_str(&server.join().unwrap()).unwrap();
    let token = request["token"].as_str().unwrap();
    let pem = fs::read(home.path("deploy.pub.pem")).unwrap();
    let expected = Expected {
        audience: ID,
        nonce: NONCE,
        id: 1,
        now: TIME,
    };
    let key = PublicKey::from_pem(&pem).unwrap();
    let token = Unverified::parse(token).unwrap();
    let command = token.verify(&key, &expected).unwrap();
    let check = crate::command::CheckScope::Live;
    assert_eq!(command, crate::command::Command::Check { scope: check });
}

#[test]
fn several_hosts_are_signed_for_at_once_and_all_written_down() {
    let home = Home::with_key();
    let servers: Vec<_> = (0..8).map(|_| serve(true, ID, NOTHING)).collect();
    let hosts: Vec<String> = servers.iter().map(|(host, _)| host.to_string()).collect();
    let said = home.run(&format!("check on {} with KEY", hosts.join(",")));
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    for host in &hosts {
        assert!(home.known().contains(&format!("{host} {ID}\n")), "{host}");
    }
    assert_eq!(home.known().lines().count(), hosts.len());
    for (_, server) in servers {
        assert!(server.join().unwrap().contains("\"token\""));
    }
}

#[test]
fn a_server_in_anothers_place_is_sent_nothing_until_the_other_is_forgotten() {
    let home = Home::with_key();
    let (host, server) = serve(true, OTHER, NOTHING);
    let known = home.known_servers();
    fs::create_dir_all(known.parent().unwrap()).unwrap();
    fs::write(&known, format!("{host} {ID}\n")).unwrap();
    let said = home.run(&format!("check on {host} with KEY"));
    assert_eq!((said.code, said.out.as_str()), (4, ""));
    assert!(said.err.starts_with("error[server_changed]: "), "{said:?}");
    assert_eq!(server.join().unwrap(), "");
    let forget = format!("supervisor-rs-client --forget {host}");
    assert!(said.err.contains(&forget), "{said:?}");

    let said = home.run(&format!("--forget {host}"));
    assert_eq!(said.out, format!("forgot the server at `{host}`: {ID}\n"));
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(home.known(), "");
    let said = home.run(&format!("--forget {host}"));
    assert_eq!((said.code, said.out.as_str()), (FAILED, ""));
    assert_eq!(said.err, format!("no server is known at `{host}`\n"));
}

#[test]
fn what_is_forgotten_is_told_to_programs_as_one_object_a_host() {
    let home = Home::new();
    let known = home.known_servers();
    fs::create_dir_all(known.parent().unwrap()).unwrap();
    fs::write(&known, format!("web1:33889 {ID}\n# kept\nx:1 {OTHER}\n")).unwrap();
    let said = home.run("--json --forget WEB1,db");
    assert_eq!(
        said.out,
        format!(
            "{{\"host\":\"WEB1\",\"ok\":true,\"op\":\"forget\",\"known_as\":\"web1:33889\",\"ids\":[\"{ID}\"]}}\n\
             {{\"host\":\"db\",\"ok\":true,\"op\":\"forget\",\"known_as\":\"db:33889\",\"ids\":[]}}\n"
        )
    );
    assert_eq!((said.code, said.err.as_str()), (FAILED, ""));
    let kept = fs::read_to_string(known).unwrap();
    assert_eq!(kept, format!("# kept\nx:1 {OTHER}\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_to_forget_in() {
    let home = Home::new();
    fs::create_dir_all(home.known_servers()).unwrap();
    let said = home.run("--forget web1");
    assert_eq!((said.code, said.out.as_str()), (FAILED, ""));
    assert_eq!(
        said.err,
        "error: cannot read `HOME/state/supervisor-rs/known_servers`: it is not a regular file\n"
    );
}

#[test]
fn a_bad_key_is_told_once_and_nobody_asked() {
    let home = Home::with_key();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let key = home.path("deploy.pem");
    let hosts = format!("{address},localhost:{}", address.port());
    let refused = |says: &str| {
        for output in ["", "--json"] {
            let said = home.run(&format!("check on {hosts} with KEY {output}"));
            assert_eq!((said.code, said.out.as_str()), (USAGE, ""), "{said:?}");
            assert_eq!(said.err.matches("error").count(), 1, "{said:?}");
            assert!(said.err.starts_with("error: "), "{said:?}");
            assert!(said.err.contains(says), "{said:?}");
        }
    };
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    refused("chmod 600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "no key").unwrap();
    refused("deploy.pem");
    fs::remove_file(&key).unwrap();
    refused("there is no key file");
    assert!(listener.accept().is_err(), "nobody was asked");
}

#[test]
fn what_is_odd_about_known_servers_is_said_once_for_all_hosts_and_hinders_nothing() {
    let home = Home::with_key();
    fs::create_dir_all(home.known_servers()).unwrap();
    let servers = [serve(true, ID, NOTHING), serve(true, ID, NOTHING)];
    let [a, b] = [&servers[0].0, &servers[1].0];
    let said = home.run(&format!("check --json on {a},{b} with KEY"));
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out.lines().count(), 2);
    assert_eq!(said.err.matches("warning: ").count(), 1, "{said:?}");
    for (_, server) in servers {
        assert!(server.join().unwrap().contains("\"token\""));
    }
    let (host, server) = serve(true, ID, NOTHING);
    let said = home.run(&format!("check on {host} with KEY --strict"));
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(server.join().unwrap(), "");
}

#[test]
fn without_a_key_nothing_is_known_or_written_down() {
    let home = Home::new();
    fs::create_dir_all(home.known_servers()).unwrap();
    let (host, server) = serve(false, "i", NOTHING);
    let said = home.run(&format!("check on {host}"));
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(server.join().unwrap().contains("\"command\""));
}

#[test]
fn a_server_that_claims_to_need_no_signature_gets_a_command_only_if_that_is_allowed() {
    let home = Home::with_key();
    let (host, server) = serve(false, ID, NOTHING);
    let said = home.run(&format!("check on {host} with KEY"));
    assert_eq!((said.code, said.out.as_str()), (4, ""));
    assert!(said.err.contains("`--allow-unsigned`"), "{said:?}");
    assert_eq!(server.join().unwrap(), "");
    let (host, server) = serve(false, ID, NOTHING);
    let said = home.run(&format!("check on {host} with KEY --allow-unsigned"));
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(server.join().unwrap().contains("\"command\""));
    assert_eq!(home.known(), "");
}

#[test]
fn a_key_that_the_server_refuses_is_told_with_what_to_mend() {
    let home = Home::with_key();
    let refusal = r#"{"id":1,"error":{"code":"unauthorized","message":"not signed"}}"#;
    let (host, server) = serve(true, ID, refusal);
    let said = home.run(&format!("check on {host} with KEY"));
    let pem = fs::read(home.path("deploy.pub.pem")).unwrap();
    let fingerprint = PublicKey::from_pem(&pem).unwrap().fingerprint().to_string();
    assert_eq!(
        said.err,
        format!(
            "error[unauthorized]: not signed\n\
             signed as `deploy` with `HOME/deploy.pem`, fingerprint {fingerprint}\n\
             hint: the server needs this key's public half as `deploy.pem` or `deploy.pub.pem` \
             in a directory of its `pub_keys_path`; its log has the reason\n"
        )
    );
    assert_eq!((said.code, said.out.as_str()), (4, ""));
    server.join().unwrap();
}
