//! Keys: however they were made, wherever they lie, whenever they come and go.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    sandbox::{Output, PATIENCE, SLEEPER, Sandbox, Wire, run, skip, wait_for},
    signing::{ENCRYPT, Forge, Which, pair},
};

/// Runs openssl in a directory; `None` when there is no openssl.
fn openssl(dir: &Path, line: &str) -> Option<Output> {
    let found = Command::new("openssl").arg("version").output();
    if found.is_err() {
        skip("openssl is missing");
        return None;
    }
    let mut command = Command::new("openssl");
    command.args(line.split_whitespace()).current_dir(dir);
    let output = run(command);
    assert_eq!(output.code, 0, "openssl {line}: {output:?}");
    Some(output)
}

/// A private key made by openssl that only its owner can read.
fn genrsa(sandbox: &Sandbox, line: &str) -> Option<()> {
    openssl(sandbox.root(), line)?;
    let name = line
        .split_whitespace()
        .skip_while(|word| *word != "-out")
        .nth(1);
    let path = sandbox.root().join(name.expect("-out FILE"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    Some(())
}

/// A server that takes only signed commands and knows no key yet.
fn without_keys(settings: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(&format!("{ENCRYPT}{settings}"));
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.start_server();
    sandbox
}

fn with(sandbox: &Sandbox, key: &str, arguments: &[&str]) -> Output {
    let key = sandbox.root().join(key).display().to_string();
    sandbox.client(&[arguments, &["with", &key]].concat())
}

fn code(output: &Output) -> i32 {
    output.code
}

/// The connection has ended, after a word about why.
pub(crate) fn is_closed(wire: &mut Wire) {
    let parting = wire.value();
    assert_eq!(parting["id"], Value::Null, "{parting}");
    assert_eq!(parting["error"]["code"], "unauthorized", "{parting}");
    assert_eq!(wire.line(), None);
}

fn keys_in_info(info: &Value) -> Vec<String> {
    let keys = info["keys"].as_array().expect("a list");
    let name = |key: &Value| key["name"].as_str().expect("a name").to_owned();
    keys.iter().map(name).collect()
}

fn faults_in_info(info: &Value) -> String {
    info["faults"].to_string()
}

#[test]
fn the_originals_recipe_makes_a_key_that_commands() {
    let sandbox = without_keys("");
    let Some(()) = genrsa(&sandbox, "genrsa -out private.pem 4096") else {
        return;
    };
    let line = "rsa -in private.pem -outform PEM -pubout -out public.pem";
    openssl(sandbox.root(), line).unwrap();
    // As the document says: the public key goes into the server's directory under the name that
    // the private one has on the client's side.
    let public = sandbox.root().join("public.pem");
    fs::copy(public, sandbox.key_dir().join("private.pem")).unwrap();
    let output = with(&sandbox, "private.pem", &["info"]);
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn keys_of_every_size_and_form_that_openssl_makes_command() {
    let sandbox = without_keys("");
    for (name, bits, form) in [
        ("a", 2048, "-traditional"),
        ("b", 2048, ""),
        ("c", 3072, "-traditional"),
        ("d", 3072, ""),
        ("e", 4096, "-traditional"),
        ("f", 4096, ""),
    ] {
        let Some(()) = genrsa(&sandbox, &format!("genrsa {form} -out {name}.pem {bits}")) else {
            return;
        };
        let private = fs::read_to_string(sandbox.root().join(format!("{name}.pem"))).unwrap();
        let label = if form.is_empty() {
            "BEGIN PRIVATE"
        } else {
            "BEGIN RSA PRIVATE"
        };
        assert!(private.contains(label), "{private:.40}");
        for public in ["-pubout", "-RSAPublicKey_out"] {
            let line = format!("rsa -in {name}.pem {public} -out keys/{name}.pem");
            openssl(sandbox.root(), &line).unwrap();
            let output = with(&sandbox, &format!("{name}.pem"), &["--json", "info"]);
            assert_eq!(output.code, 0, "{name} {public}: {output:?}");
            let info: Value = serde_json::from_str(&output.stdout).unwrap();
            let key = info["keys"]
                .as_array()
                .unwrap()
                .iter()
                .find(|key| key["name"] == name);
            assert_eq!(key.unwrap()["bits"], bits);
        }
    }
}

#[test]
fn the_fingerprint_is_what_openssl_makes_of_the_key() {
    let sandbox = Sandbox::signed("");
    let der = openssl(
        sandbox.root(),
        "rsa -pubin -in keys/deploy.pub.pem -outform DER -out deploy.der",
    );
    if der.is_none() {
        return;
    }
    openssl(
        sandbox.root(),
        "dgst -sha256 -binary -out digest deploy.der",
    )
    .unwrap();
    let digest = fs::read(sandbox.root().join("digest")).unwrap();
    let expected = {
        use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    };
    let info = sandbox.signed_json(&["info"]);
    assert_eq!(info["keys"][0]["fingerprint"], json!(expected));
    // It was named when the key was taken up, with its size.
    let log = sandbox.server_log();
    let named = |line: &str| line.contains(&expected) && line.contains("2048");
    assert!(log.lines().any(named), "{log}");
}

#[test]
fn keygen_makes_both_halves_and_says_what_to_do_with_them() {
    let sandbox = without_keys("");
    for (name, bits) in [("ci", "2048"), ("me", "3072"), ("big", "4096")] {
        let output = sandbox.client_as_given(&["keygen", name, "--bits", bits]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stdout.contains("pub_keys_path"), "{output:?}");
        let private = sandbox.root().join(format!("{name}.pem"));
        let mode = fs::metadata(&private).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let file = format!("{name}.pub.pem");
        fs::copy(sandbox.root().join(&file), sandbox.key_dir().join(&file)).unwrap();
        let output = with(&sandbox, &format!("{name}.pem"), &["--json", "info"]);
        let info: Value = serde_json::from_str(&output.stdout).unwrap();
        assert!(keys_in_info(&info).contains(&name.to_owned()), "{info}");
    }
    // Nothing is ever overwritten.
    let before = fs::read(sandbox.root().join("ci.pem")).unwrap();
    let output = sandbox.client_as_given(&["keygen", "ci"]);
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("ci.pem"), "{output:?}");
    assert_eq!(fs::read(sandbox.root().join("ci.pem")).unwrap(), before);
    let entries = |path: &Path| fs::read_dir(path).unwrap().count();
    let before = entries(sandbox.root());
    for name in ["../x", "/tmp/x", "", "-x", "a b", &"x".repeat(65)] {
        let output = sandbox.client_as_given(&["keygen", name]);
        assert_eq!(output.code, 2, "{name}: {output:?}");
    }
    assert_eq!(entries(sandbox.root()), before);
}

#[test]
fn a_key_dropped_in_works_at_once_and_a_deleted_one_is_refused_at_once() {
    let sandbox = without_keys("");
    for _ in 0..5 {
        let mut wire = sandbox.wire();
        assert_eq!(
            wire.ask_signed(1, r#"{"op":"info"}"#)["error"]["code"],
            "unauthorized"
        );
        sandbox.admit("deploy", &pair(Which::Deploy).public);
        assert_eq!(wire.ask_signed(2, r#"{"op":"info"}"#)["ok"]["op"], "info");
        fs::remove_file(sandbox.key_dir().join("deploy.pub.pem")).unwrap();
        let mut wire = sandbox.wire();
        assert_eq!(
            wire.ask_signed(1, r#"{"op":"info"}"#)["error"]["code"],
            "unauthorized"
        );
    }
}

#[test]
fn what_a_deleted_key_had_open_is_closed() {
    let sandbox = Sandbox::signed("");
    sandbox.admit("other", &pair(Which::Other).public);
    let mut deploy = sandbox.wire();
    let mut other = sandbox.wire();
    assert_eq!(deploy.ask_signed(1, r#"{"op":"info"}"#)["ok"]["op"], "info");
    let token = |hello: &str, id| {
        Forge::new(hello, id, r#"{"op":"info"}"#)
            .signed_as("other", Which::Other)
            .token()
    };
    let right = token(&other.hello, 1);
    other.send_token(1, &right);
    assert_eq!(other.answer().1["ok"]["op"], "info");
    fs::remove_file(sandbox.key_dir().join("deploy.pub.pem")).unwrap();
    is_closed(&mut deploy);
    let right = token(&other.hello, 2);
    other.send_token(2, &right);
    assert_eq!(other.answer().1["ok"]["op"], "info");
}

#[test]
fn a_key_put_in_the_place_of_another_closes_what_that_had_open() {
    let sandbox = Sandbox::signed("");
    let mut deploy = sandbox.wire();
    assert_eq!(deploy.ask_signed(1, r#"{"op":"info"}"#)["ok"]["op"], "info");
    sandbox.admit("deploy", &pair(Which::Other).public);
    is_closed(&mut deploy);
    let mut wire = sandbox.wire();
    assert_eq!(
        wire.ask_signed(1, r#"{"op":"info"}"#)["error"]["code"],
        "unauthorized"
    );
    let forge = Forge::new(&wire.hello, 2, r#"{"op":"info"}"#);
    let token = forge.key(crate::signing::rsa(Which::Other)).token();
    wire.send_token(2, &token);
    assert_eq!(wire.answer().1["ok"]["op"], "info");
}

#[test]
fn keys_may_lie_in_several_directories_that_come_and_go_with_server_yml() {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys, more]\n");
    let more = sandbox.root().join("more");
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.start_server();
    // The second one is made later.
    fs::create_dir(&more).unwrap();
    sandbox.replace(&more.join("deploy.pem"), &pair(Which::Deploy).public);
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    // An edit of server.yml is in force at the next command.
    sandbox.configure("encrypt: on\npub_keys_path: [keys]\n");
    assert_eq!(sandbox.sign(&["info"]).code, 4);
    sandbox.configure("encrypt: on\npub_keys_path: [more]\n");
    assert_eq!(sandbox.sign(&["info"]).code, 0);
}

#[test]
fn two_files_with_one_key_name_are_both_refused() {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys, more]\n");
    let more = sandbox.root().join("more");
    for dir in [&sandbox.key_dir(), &more] {
        fs::create_dir(dir).unwrap();
    }
    sandbox.admit("watcher", &pair(Which::Other).public);
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    sandbox.start_server();
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    let watcher = |sandbox: &Sandbox| {
        let key = sandbox.private_key("watcher", Which::Other);
        let output = sandbox.client(&["--json", "info", "with", &key]);
        serde_json::from_str::<Value>(&output.stdout).unwrap()
    };
    // The same key twice is no better: which file counts nobody can say.
    let same = sandbox.key_dir().join("deploy.pem");
    for place in [&more.join("deploy.pem"), &same] {
        sandbox.replace(place, &pair(Which::Deploy).public);
        assert_eq!(code(&sandbox.sign(&["info"])), 4, "{}", place.display());
        let info = watcher(&sandbox);
        assert_eq!(keys_in_info(&info), ["watcher"]);
        let faults = faults_in_info(&info);
        assert!(faults.contains("keys/deploy.pub.pem"), "{faults}");
        assert!(faults.contains(&place.display().to_string()), "{faults}");
        fs::remove_file(place).unwrap();
        assert_eq!(sandbox.sign(&["info"]).code, 0);
    }
}

/// Shows that what stands in a key file is refused, that the fault is shown and tells `says`.
fn is_no_key(bytes: &str, says: &[&str]) {
    let sandbox = Sandbox::signed("");
    let path = sandbox.key_dir().join("other.pem");
    sandbox.replace(&path, bytes);
    let mut wire = sandbox.wire();
    let forge = Forge::new(&wire.hello, 1, r#"{"op":"info"}"#);
    wire.send_token(1, &forge.signed_as("other", Which::Other).token());
    assert_eq!(wire.answer().1["error"]["code"], "unauthorized");
    let info = sandbox.signed_json(&["info"]);
    assert_eq!(keys_in_info(&info), ["deploy"]);
    let faults = faults_in_info(&info);
    for word in [&[path.display().to_string().as_str()], says].concat() {
        assert!(faults.contains(word), "`{word}` is not in {faults}");
        assert!(
            sandbox.server_log().contains(word),
            "{word}: {}",
            sandbox.server_log()
        );
    }
}

#[test]
fn a_private_key_lying_in_pub_keys_path_is_refused_loudly() {
    is_no_key(&pair(Which::Other).private, &["private key"]);
    let sandbox = Sandbox::signed("");
    sandbox.replace(
        &sandbox.key_dir().join("other.pem"),
        &pair(Which::Other).private,
    );
    wait_for("a loud word", PATIENCE, || {
        let loud = |line: &str| line.contains("private key") && line.contains("ERROR");
        sandbox.server_log().lines().any(loud)
    });
}

#[test]
fn text_around_a_key_is_refused() {
    let public = &pair(Which::Other).public;
    is_no_key(&format!("a key of mine\n{public}"), &[]);
    is_no_key(&format!("{public}and more\n"), &[]);
}

#[test]
fn two_keys_in_one_file_are_refused() {
    let (one, two) = (&pair(Which::Other).public, &pair(Which::Deploy).public);
    is_no_key(&format!("{one}{two}"), &[]);
}

#[test]
fn an_empty_key_file_is_refused() {
    is_no_key("", &[]);
}

/// A key that openssl makes, as public PEM; `None` without openssl.
fn made(line: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    openssl(dir.path(), &line.replacen(' ', " -out key.pem ", 1))?;
    openssl(dir.path(), "pkey -in key.pem -pubout -out public.pem")?;
    Some(fs::read_to_string(dir.path().join("public.pem")).unwrap())
}

#[test]
fn a_key_of_1024_bits_is_refused() {
    if let Some(public) = made("genrsa 1024") {
        is_no_key(&public, &["1024", "2048"]);
    }
}

#[test]
fn a_key_of_8192_bits_is_refused() {
    // Making such a key takes minutes; what matters is its public half.
    let public = include_str!("../../fixtures/keys/8192-spki.pem");
    is_no_key(public, &["8192", "4096"]);
}

#[test]
fn a_key_with_exponent_3_is_refused() {
    if let Some(public) =
        made("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3")
    {
        is_no_key(&public, &["exponent"]);
    }
}

#[test]
fn a_key_that_is_not_rsa_is_refused() {
    if let Some(public) = made("genpkey -algorithm ED25519") {
        is_no_key(&public, &["RSA"]);
    }
    if let Some(public) = made("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256") {
        is_no_key(&public, &["RSA"]);
    }
}

#[test]
fn a_key_directory_that_others_can_write_gives_no_key() {
    let sandbox = Sandbox::signed("");
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    for mode in [0o777, 0o757, 0o1777] {
        fs::set_permissions(sandbox.key_dir(), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(sandbox.sign(&["info"]).code, 4, "{mode:o}");
        let log = sandbox.server_log();
        assert!(log.contains("chmod"), "{log}");
        fs::set_permissions(sandbox.key_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(sandbox.sign(&["info"]).code, 0, "{mode:o}");
    }
}

#[test]
fn a_key_file_that_others_can_write_is_no_key() {
    let sandbox = Sandbox::signed("");
    let path = sandbox.key_dir().join("deploy.pub.pem");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o646)).unwrap();
    assert_eq!(sandbox.sign(&["info"]).code, 4);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(sandbox.sign(&["info"]).code, 0);
}

#[test]
fn a_key_may_be_a_link_as_a_config_map_has_them_and_is_swapped_like_one() {
    let sandbox = without_keys("");
    let dir = sandbox.key_dir();
    for (version, which) in [("..1", Which::Deploy), ("..2", Which::Other)] {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("deploy.pem"), &pair(which).public).unwrap();
    }
    symlink("..1", dir.join("..data")).unwrap();
    symlink("..data/deploy.pem", dir.join("deploy.pem")).unwrap();
    let mut wire = sandbox.wire();
    assert_eq!(wire.ask_signed(1, r#"{"op":"info"}"#)["ok"]["op"], "info");
    symlink("..2", dir.join("..new")).unwrap();
    fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
    let mut late = sandbox.wire();
    assert_eq!(
        late.ask_signed(1, r#"{"op":"info"}"#)["error"]["code"],
        "unauthorized"
    );
    is_closed(&mut wire);
}

#[test]
fn what_is_no_key_file_is_passed_over() {
    let sandbox = Sandbox::signed("");
    for name in [
        ".deploy.pem",
        "deploy.pem~",
        "deploy.pem.swp",
        "README",
        "deploy.pub",
    ] {
        sandbox.replace(&sandbox.key_dir().join(name), "no key at all");
    }
    let info = sandbox.signed_json(&["info"]);
    assert_eq!(
        (keys_in_info(&info), &info["faults"]),
        (vec!["deploy".to_owned()], &json!([]))
    );
}

#[test]
fn a_server_without_a_key_runs_its_children_and_says_that_nobody_can_command_it() {
    let mut sandbox = Sandbox::new(&format!("{ENCRYPT}mode: sync"));
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    sandbox.wait_processes(1);
    wait_for("a word about it", PATIENCE, || {
        sandbox.server_log().contains("no key")
    });
    // The directory comes later, and the first key with it.
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    assert_eq!(
        sandbox.signed_json(&["check"])["children"][0]["name"],
        "web"
    );
    assert_eq!(sandbox.sign(&["kill", "--stop-children"]).code, 0);
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn a_check_of_the_files_tells_what_is_wrong_with_keys() {
    let sandbox = Sandbox::new(ENCRYPT);
    let path = sandbox.server_yml().display().to_string();
    let check = || sandbox.server_to_end(&["--check", &path]);
    // A directory and a key that are not there yet are no fault: a server starts without.
    let output = check();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.stderr.contains("note: there is no key"),
        "{output:?}"
    );
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    assert_eq!((check().code, check().stderr.as_str()), (0, ""));
    sandbox.admit("other", &pair(Which::Other).private);
    sandbox.replace(&sandbox.key_dir().join("deploy.yml"), "allow: [chek]\n");
    let output = check();
    assert_eq!(output.code, 6, "{output:?}");
    for part in [
        "keys/other.pub.pem",
        "private key",
        "deploy.yml:1:9",
        "did you mean `check`?",
    ] {
        assert!(output.stderr.contains(part), "{part}: {output:?}");
    }
}
