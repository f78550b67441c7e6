//! The life of a server and a child, once through: the shortest proof that all parts meet.

use crate::sandbox::{Sandbox, hello, skip};

const WEB: &str = "command: [sleep, '300']\n";

/// Whether the programs do anything yet.
fn is_built(sandbox: &Sandbox) -> bool {
    let output = sandbox.server_to_end(&["--version"]);
    output.code == 0 && output.stdout.contains(env!("CARGO_PKG_VERSION"))
}

#[test]
fn a_file_becomes_a_process_that_outlives_its_server_and_ends_by_order() {
    let mut sandbox = Sandbox::new("mode: sync");
    if !is_built(&sandbox) {
        return skip("the server's program does nothing yet");
    }
    sandbox.start_server();
    assert_eq!(hello(sandbox.address()).unwrap()["protocol"], 1);
    sandbox.write("web.yml", WEB);
    let row = sandbox.wait_state("web", "running");
    let output = row["output"]["stdout"].as_str().unwrap();
    assert_eq!(output, sandbox.log_dir().join("web.out").to_str().unwrap());
    let found = sandbox.processes();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(row["pid"], found[0].pid);
    assert_eq!(found[0].group, found[0].pid);

    let first = sandbox.server_pid();
    sandbox.restart_server();
    assert_ne!(sandbox.server_pid(), first);
    assert_eq!(sandbox.wait_state("web", "running")["pid"], found[0].pid);
    assert_eq!(sandbox.processes(), found);

    sandbox.remove("web.yml");
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.processes(), []);

    sandbox.configure("mode: quiet");
    let unknown = sandbox.client(&["start", "nobody"]);
    assert_eq!(unknown.code, 5, "{unknown:?}");
    assert_eq!(sandbox.stop_server(), 0);
}

#[test]
fn children_that_are_left_run_on_when_their_server_ends() {
    let mut sandbox = Sandbox::new("mode: sync");
    if !is_built(&sandbox) {
        return skip("the server's program does nothing yet");
    }
    sandbox.start_server();
    sandbox.write("web.yml", WEB);
    sandbox.wait_state("web", "running");
    assert_eq!(sandbox.stop_server(), 0);
    assert_eq!(sandbox.processes().len(), 1);
    sandbox.expect_leftovers();
}

#[test]
fn a_server_without_a_usable_file_says_so_and_ends() {
    let sandbox = Sandbox::new("mode: upside-down");
    if !is_built(&sandbox) {
        return skip("the server's program does nothing yet");
    }
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
    assert_eq!(output.code, 6, "{output:?}");
    assert!(output.stderr.contains("server.yml:"), "{output:?}");
    let ended = Sandbox::start("").client(&["kill"]);
    assert_eq!(ended.code, 0, "{ended:?}");
}
