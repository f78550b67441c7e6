//! A stranger's client: in another language, with another library, from the protocol page alone.

use std::process::Command;

use crate::{
    sandbox::{SLEEPER, Sandbox, run, skip},
    signing::Which,
};

const PAGE: &str = include_str!("../../docs/PROTOCOL.md");

/// The page's client that signs.
fn page_client() -> &'static str {
    let is_signing = |code: &&str| code.contains("jwt.encode");
    let blocks = PAGE.split("```python\n").skip(1);
    let mut blocks = blocks.filter_map(|rest| rest.split_once("```").map(|(code, _)| code));
    blocks.find(is_signing).expect("a client that signs")
}

/// A Python that has PyJWT: what `.ci/run` has prepared, or one of those that are there.
fn python() -> Option<String> {
    let prepared = std::env::var("SUPERVISOR_RS_TEST_PYTHON").ok();
    let there = ["python3", "/usr/bin/python3"].map(str::to_owned);
    prepared.into_iter().chain(there).find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import jwt, cryptography"]);
        probe.output().is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_signing_client_on_the_protocol_page_works_at_the_first_try() {
    let Some(python) = python() else {
        return skip("no python with PyJWT and cryptography");
    };
    let sandbox = Sandbox::signed("mode: sync");
    sandbox.private_key("deploy", Which::Deploy);
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_processes(1);
    let code = page_client().replace("33889", &sandbox.address().port().to_string());
    let client = |code: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", code]).current_dir(sandbox.root());
        run(command)
    };
    let output = client(&code);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let restarted = "{'op': 'restart', 'child': 'web', 'pid': ";
    assert!(output.stdout.starts_with(restarted), "{output:?}");
    // The same client under another name is told what every other is that is not right.
    let output = client(&code.replace("\"deploy\", open", "\"nobody\", open"));
    assert!(
        output.stdout.contains("'code': 'unauthorized'"),
        "{output:?}"
    );
}
