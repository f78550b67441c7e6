//! What others' configuration becomes here.

use super::{
    host::{Host, lacks},
    page::Page,
};

pub(super) fn follow(page: &Page) {
    if lacks(&["python3", "curl"]) {
        return;
    }
    let mut host = Host::of(page);
    let made = host.types("mkdir -p /srv/app /var/log");
    assert_eq!(made.code, 0, "{made:?}");
    for step in &page.steps {
        host.take(step);
    }
    host.ready("web");
    host.ready("api");
    host.wait_output("api", "port 3000 ['--fast']");
    let environment = std::fs::read(format!("/proc/{}/environ", host.ready("web"))).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(
        environment.contains("\0STAGE=production\0")
            || environment.starts_with("STAGE=production\0")
    );
    // Both streams lie where the page says, and `check NAME` names the file.
    let log = host.here("/var/log/web.log");
    crate::sandbox::wait_for("the log", crate::sandbox::PATIENCE, || {
        host.types("curl -sS http://127.0.0.1:8080/ >/dev/null");
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("GET / HTTP"))
    });
    assert!(host.client(&["check", "web"]).stdout.contains(&log));
    let answer = host.stop_whole("web");
    assert_eq!(answer["exit"]["code"], 0, "INT ends it well: {answer}");
    // What is named in the tables is there.
    for word in ["restart", "stop", "output", "ready", "repeat", "hooks"] {
        assert!(
            supervisor_rs::config::child_keys().any(|key| key == word),
            "{word}"
        );
    }
}
