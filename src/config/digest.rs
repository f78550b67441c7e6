//! The fingerprint of a spec's meaning.
//!
//! Invariants: equal meaning, equal digest, however it was written; the canonical form cannot be
//! read in two ways, because every part carries its length; a field at its built-in value leaves
//! no trace, so that a version with more fields gives the files of today the digests of today. An
//! upgrade must not restart what it does not change.
//!
//! Absent on purpose: `path` and the folder (a loadpath may be a link that is swapped), and any
//! notion of security. Who writes a file decides its digest anyway.

use std::{os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use sha2::{Digest as _, Sha256};

use crate::spec::{
    Digest, Health, Hook, OpenMode, Probe, Pulse, Ready, Repeat, RestartLimit, RestartPolicy,
    RestartWhen, Sign, Sink, Spec, StopAct, StopPolicy, StopStep,
};

/// What stands in a spec whose digest is not reckoned yet.
pub(super) const NONE: Digest = Digest([0; 16]);

/// Tells this canonical form from any other that may follow.
const FORM: &[u8] = b"supervisor-rs spec 1";

/// The fingerprint of a spec; `workdir` when it was set and not the file's folder by default.
pub(super) fn of(spec: &Spec, workdir: Option<&Path>) -> Digest {
    let mut form = Form(Sha256::new());
    form.part(FORM);
    form.field("command", spec.command.iter().map(String::as_bytes));
    if let Some(workdir) = workdir {
        form.field("workdir", [workdir.as_os_str().as_bytes()]);
    }
    form.sink("stdout", &spec.stdout);
    form.sink("stderr", &spec.stderr);
    if let Some(Repeat { action, every }) = &spec.repeat {
        form.field("repeat", [action.as_str().as_bytes(), &nanos(*every)]);
    }
    form.hook("prehook", spec.prehook.as_ref());
    form.hook("posthook", spec.posthook.as_ref());
    form.restart(&spec.restart);
    form.stop(&spec.stop);
    if let Some(Ready {
        sign,
        timeout,
        interval,
    }) = &spec.ready
    {
        match sign {
            Sign::Probe(probe) => form.probe("ready", probe),
            Sign::Notify => form.field("ready", [&b"notify"[..]]),
            Sign::Fd(number) => form.field("ready", [&b"fd"[..], &[*number]]),
            Sign::Log(pattern) => form.field("ready", [&b"log"[..], pattern.as_bytes()]),
        }
        form.field("ready.times", [&nanos(*timeout)[..], &nanos(*interval)[..]]);
    }
    if let Some(Health {
        pulse,
        interval,
        timeout,
        failures,
    }) = &spec.health
    {
        match pulse {
            Pulse::Probe(probe) => form.probe("health", probe),
            Pulse::Watchdog => form.field("health", [&b"watchdog"[..]]),
        }
        let times = [&nanos(*timeout)[..], &nanos(*interval)[..]];
        form.field("health.times", times);
        form.field("health.failures", [&failures.to_le_bytes()[..]]);
    }
    if !spec.depends_on.is_empty() {
        let parts = spec.depends_on.iter().flat_map(|(name, dependency)| {
            let condition = dependency.condition.as_str();
            [name.as_str().as_bytes(), condition.as_bytes()]
        });
        let parts: Vec<&[u8]> = parts.collect();
        form.field("depends_on", parts);
    }
    let mut digest = NONE;
    for (byte, hashed) in digest.0.iter_mut().zip(form.0.finalize()) {
        *byte = hashed;
    }
    digest
}

/// The canonical form, on its way into the hash.
struct Form(Sha256);

impl Form {
    /// Eight bytes of length, then the bytes.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// A name, how many parts its value has, and these.
    fn field<'b>(
        &mut self,
        name: &str,
        parts: impl IntoIterator<Item = &'b [u8], IntoIter: ExactSizeIterator>,
    ) {
        let parts = parts.into_iter();
        self.part(name.as_bytes());
        self.0.update((parts.len() as u64).to_le_bytes());
        for part in parts {
            self.part(part);
        }
    }

    fn sink(&mut self, name: &str, sink: &Sink) {
        match sink {
            Sink::Inherit => self.field(name, [b"inherit".as_slice()]),
            Sink::File { path, mode } => {
                let mode: &[u8] = match mode {
                    OpenMode::Create => b"create",
                    OpenMode::Append => b"append",
                };
                self.field(name, [b"file", path.as_os_str().as_bytes(), mode]);
            }
        }
    }

    fn hook(&mut self, name: &str, hook: Option<&Hook>) {
        match hook {
            None => {}
            Some(Hook::Command { verb, child }) => {
                self.field(
                    name,
                    [
                        b"command",
                        verb.as_str().as_bytes(),
                        child.as_str().as_bytes(),
                    ],
                );
            }
            Some(Hook::Run(argv)) => {
                let argv = argv.iter().map(String::as_bytes);
                let parts: Vec<&[u8]> = [b"run".as_slice()].into_iter().chain(argv).collect();
                self.field(name, parts);
            }
        }
    }

    /// Each field that is not as built in.
    fn restart(&mut self, policy: &RestartPolicy) {
        let RestartPolicy {
            when,
            delay,
            factor_permille,
            max_delay,
            jitter_permille,
            reset_after,
            max,
            success,
            never_on,
        } = policy;
        let built_in = RestartPolicy::default();
        let when: &[u8] = match when {
            RestartWhen::Never => b"never",
            RestartWhen::OnFailure => b"on-failure",
            RestartWhen::Always => b"always",
        };
        let mut field = |name, changed: bool, parts: &[&[u8]]| {
            if changed {
                self.field(name, parts.iter().copied());
            }
        };
        field("restart.when", policy.when != built_in.when, &[when]);
        field("restart.delay", *delay != built_in.delay, &[&nanos(*delay)]);
        field(
            "restart.factor",
            *factor_permille != built_in.factor_permille,
            &[&factor_permille.to_le_bytes()],
        );
        field(
            "restart.max_delay",
            *max_delay != built_in.max_delay,
            &[&nanos(*max_delay)],
        );
        field(
            "restart.jitter",
            *jitter_permille != built_in.jitter_permille,
            &[&jitter_permille.to_le_bytes()],
        );
        field(
            "restart.reset_after",
            *reset_after != built_in.reset_after,
            &[&nanos(*reset_after)],
        );
        if let Some(RestartLimit { count, within }) = max {
            field(
                "restart.max",
                true,
                &[&count.to_le_bytes(), &nanos(*within)],
            );
        }
        for (name, codes, built_in) in [
            ("restart.success", success, &built_in.success),
            ("restart.never_on", never_on, &built_in.never_on),
        ] {
            let bytes: Vec<[u8; 4]> = codes.iter().map(|code| code.to_le_bytes()).collect();
            let parts: Vec<&[u8]> = bytes.iter().map(<[u8; 4]>::as_slice).collect();
            field(name, codes != built_in, &parts);
        }
    }
}

impl Form {
    fn probe(&mut self, name: &str, probe: &Probe) {
        match probe {
            Probe::Tcp(at) => self.field(name, [&b"tcp"[..], at.to_string().as_bytes()]),
            Probe::Http { at, path } => {
                let at = at.to_string();
                self.field(name, [&b"http"[..], at.as_bytes(), path.as_bytes()]);
            }
            Probe::Exec(argv) => {
                let argv = argv.iter().map(String::as_bytes);
                let parts: Vec<&[u8]> = [&b"exec"[..]].into_iter().chain(argv).collect();
                self.field(name, parts);
            }
        }
    }

    fn stop(&mut self, policy: &StopPolicy) {
        let StopPolicy { steps, scope } = policy;
        let built_in = StopPolicy::default();
        if *steps != built_in.steps {
            self.field(
                "stop.steps",
                [(steps.len() as u64).to_le_bytes().as_slice()],
            );
            for StopStep { act, wait } in steps {
                let wait = nanos(*wait);
                match act {
                    StopAct::Signal(signal) => {
                        let number = signal.number().to_le_bytes();
                        self.field("stop.signal", [&wait[..], &number[..]]);
                    }
                    StopAct::Run(argv) => {
                        let argv = argv.iter().map(String::as_bytes);
                        let parts: Vec<&[u8]> = std::iter::once(&wait[..]).chain(argv).collect();
                        self.field("stop.command", parts);
                    }
                }
            }
        }
        if *scope != built_in.scope {
            self.field("stop.scope", [scope.as_str().as_bytes()]);
        }
    }
}

fn nanos(span: Duration) -> [u8; 16] {
    span.as_nanos().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

    use super::*;
    use crate::config::{
        ChildContext, child,
        child::tests::{context, read},
    };

    fn digest(text: &str) -> Digest {
        read(text).digest
    }

    fn digest_at(path: &str, text: &str, context: &ChildContext) -> Digest {
        let name = "web".parse().expect("a name");
        let spec = child(&name, Path::new(path), text.as_bytes(), context);
        spec.expect("a good file").digest
    }

    #[test]
    fn spelling_does_not_change_it() {
        let same = [
            "command: sleep 10\nrestart: {when: always, delay: 5s}\nrepeat: {seconds: 7}\n",
            "# a comment\nrepeat:\n  seconds: 7 # too\n  action: restart\nrestart:\n  delay: 5000ms\n  when: always\ncommand: [sleep, '10']\n",
            "command: \"sleep '10'\"\r\nrestart: {delay: 0.5s 4500ms, when: always}\r\nrepeat: {seconds: 7, action: }\r\n",
            "\u{feff}x-a: 1\ncommand: >\n  sleep\n  10\nrestart: {when: always, delay: 5s, factor: 2.000, success: [0, 0]}\nrepeat: {seconds: 7}\nhooks: []\noutput:\n",
            "x-c: &c [sleep, 10]\ncommand: *c\nrestart: {when: always, delay: 5s}\nrepeat: {seconds: 7}\noutput:\n- stdout: ./web.out\n- stderr: web.err\n  mode: append\n",
        ];
        for text in same {
            assert_eq!(digest(text), digest(same[0]), "{text}");
        }
    }

    #[test]
    fn every_change_of_meaning_changes_it() {
        let all = [
            "command: sleep 10",
            "command: sleep 1 0",
            "command: [sleep 10]",
            "command: ['sleep', '10', '']",
            "command: sleep 10\nworkdir: .",
            "command: sleep 10\nworkdir: /x",
            "command: sleep 10\noutput: inherit",
            "command: sleep 10\noutput: [{stdout: a}]",
            "command: sleep 10\noutput: [{stderr: a}]",
            "command: sleep 10\noutput: [{stdout: a, mode: create}]",
            "command: sleep 10\noutput: [{stdout: a}, {stderr: a}]",
            "command: sleep 10\nrepeat: {seconds: 5}",
            "command: sleep 10\nrepeat: {seconds: 6}",
            "command: sleep 10\nrepeat: {seconds: 5, action: start}",
            "command: sleep 10\nhooks: [{prehook: start a}]",
            "command: sleep 10\nhooks: [{prehook: stop a}]",
            "command: sleep 10\nhooks: [{prehook: start b}]",
            "command: sleep 10\nhooks: [{posthook: start a}]",
            "command: sleep 10\nhooks: [{prehook: run start a}]",
            "command: sleep 10\nhooks: [{prehook: run 'start a'}]",
            "command: sleep 10\nhooks: [{prehook: run command start a}]",
            "command: sleep 10\nrestart: always",
            "command: sleep 10\nrestart: on-failure",
            "command: sleep 10\nrestart: {when: always, delay: 1s}",
            "command: sleep 10\nrestart: {when: always, factor: 3}",
            "command: sleep 10\nrestart: {when: always, max_delay: 1s}",
            "command: sleep 10\nrestart: {when: always, jitter: 0}",
            "command: sleep 10\nrestart: {when: always, reset_after: 1s}",
            "command: sleep 10\nrestart: {when: always, max: 1 in 5s}",
            "command: sleep 10\nrestart: {when: always, max: 5 in 1s}",
            "command: sleep 10\nrestart: {when: always, success: []}",
            "command: sleep 10\nrestart: {when: always, success: [0, 1]}",
            "command: sleep 10\nrestart: {when: always, never_on: [0]}",
            "command: sleep 10\nrestart: {when: always, never_on: [1]}",
            "command: sleep 10\nrestart: {when: always, never_on: [0, 1]}",
            "command: sleep 10\nstop: INT",
            "command: sleep 10\nstop: KILL",
            "command: sleep 10\nstop: {grace: 1s}",
            "command: sleep 10\nstop: {grace: 1s, signal: INT}",
            "command: sleep 10\nstop: {scope: tree}",
            "command: sleep 10\nstop: {command: x}",
            "command: sleep 10\nstop: {command: x y}",
            "command: sleep 10\nstop: {command: [x y]}",
            "command: sleep 10\nstop: [{command: x}, KILL]",
            "command: sleep 10\nstop: [INT, TERM, KILL]",
            "command: sleep 10\nstop: [TERM, INT, KILL]",
            "command: sleep 10\nready: {tcp: 80}",
            "command: sleep 10\nready: {tcp: 81}",
            "command: sleep 10\nready: {tcp: '127.0.0.1:80'}",
            "command: sleep 10\nready: {http: 'http://localhost:80'}",
            "command: sleep 10\nready: {http: 'http://localhost:80/x'}",
            "command: sleep 10\nready: {exec: x}",
            "command: sleep 10\nready: {exec: x, timeout: 1s}",
            "command: sleep 10\nready: notify",
            "command: sleep 10\nready: {fd: 3}",
            "command: sleep 10\nready: {fd: 4}",
            "command: sleep 10\nready: {log: up}",
            "command: sleep 10\nready: {log: ready}",
            "command: sleep 10\nready: {notify: true, timeout: 1s}",
            "command: sleep 10\nready: {exec: notify}",
            "command: sleep 10\nready: {exec: x, interval: 1s}",
            "command: sleep 10\nhealth: {exec: x}",
            "command: sleep 10\nhealth: watchdog",
            "command: sleep 10\nhealth: {watchdog: true, failures: 2}",
            "command: sleep 10\nhealth: {exec: x, failures: 2}",
            "command: sleep 10\nhealth: {exec: x, timeout: 2s}",
            "command: sleep 10\nhealth: {exec: x, interval: 2s}",
            "command: sleep 10\ndepends_on: {a: ready}",
            "command: sleep 10\ndepends_on: {a: started}",
            "command: sleep 10\ndepends_on: {b: ready}",
            "command: sleep 10\ndepends_on: {a: ready, b: ready}",
        ];
        let mut seen = BTreeMap::new();
        for text in all {
            if let Some(other) = seen.insert(digest(&format!("{text}\n")), text) {
                panic!("one digest for two meanings:\n{other}\n{text}");
            }
        }
    }

    #[test]
    fn arguments_cannot_be_shifted_into_one_another() {
        let mut seen = BTreeMap::new();
        // Every way to cut "aaaa" into arguments.
        for cuts in 0..8_u32 {
            let mut argv = vec![String::new()];
            for i in 0..4_u32 {
                argv.last_mut().expect("one").push('a');
                if i < 3 && cuts & (1 << i) != 0 {
                    argv.push(String::new());
                }
            }
            let text = format!("command: [{}]\n", argv.join(", "));
            assert_eq!(seen.insert(digest(&text), argv), None);
        }
    }

    #[test]
    fn the_files_folder_is_not_part_of_it_but_an_explicit_workdir_is() {
        let context = context();
        let at = |path, text| digest_at(path, text, &context);
        let implicit = "command: x\n";
        assert_eq!(at("/a/web.yml", implicit), at("/b/web.yml", implicit));
        assert_eq!(at("/a/web.yml", implicit), at("/a/web.yaml", implicit));
        let relative = "command: x\nworkdir: run\n";
        assert_ne!(at("/a/web.yml", relative), at("/b/web.yml", relative));
        let absolute = "command: x\nworkdir: /run\n";
        assert_eq!(at("/a/web.yml", absolute), at("/b/web.yml", absolute));
        let folder = "command: x\nworkdir: ./\n";
        assert_eq!(
            at("/a/web.yml", folder),
            at("/b/web.yml", "command: x\nworkdir: /a\n")
        );
        assert_eq!(
            at("/a/web.yml", relative),
            at("/a/web.yml", "command: x\nworkdir: /a/run\n")
        );
    }

    #[test]
    fn where_output_goes_is_part_of_it() {
        let other = ChildContext {
            log_dir: PathBuf::from("/other"),
            ..context()
        };
        let text = "command: x\n";
        assert_ne!(
            digest_at("/a/web.yml", text, &context()),
            digest_at("/a/web.yml", text, &other)
        );
        let text = "command: x\noutput: inherit\n";
        assert_eq!(
            digest_at("/a/web.yml", text, &context()),
            digest_at("/a/web.yml", text, &other)
        );
    }

    #[test]
    fn a_value_counts_the_same_whether_it_is_a_default_or_the_childs_own() {
        let mut context = context();
        let host = crate::config::Host {
            root: true,
            host_name: "alpha".to_owned(),
            xdg_state_home: None,
            home: None,
            pid1: false,
        };
        let own = "command: x\nrestart: {when: always, delay: 9s}\noutput: inherit\nworkdir: /w\n";
        let apart = digest_at("/a/web.yml", own, &context);
        let text = "loadpaths: [/a]\ndefaults: {restart: {when: always, delay: 9s}, output: inherit, workdir: /w}\n";
        let path = Path::new("/etc/server.yml");
        let server = crate::config::server(path, path, text.as_bytes(), &host).expect("good");
        context.defaults = Arc::clone(&server.defaults);
        assert_eq!(digest_at("/a/web.yml", "command: x\n", &context), apart);
        assert_eq!(digest_at("/a/web.yml", own, &context), apart);
    }

    /// Live records hold digests: one that changed between versions would restart the child.
    #[test]
    fn the_digests_of_files_do_not_change_between_versions() {
        for (text, expected) in [
            ("command: sleep 10\n", "a54090bd32acdfc358596194e4ce6c76"),
            (
                "command: [web, --port, 80]\nworkdir: /w\noutput: inherit\nrepeat: {seconds: 5}\n\
                 hooks: [{prehook: start db}, {posthook: run true}]\n\
                 restart: {when: on-failure, delay: 1s, max: 3 in 1m, never_on: [78]}\n",
                "be7ff43da5ef926c59a41b4c454be14d",
            ),
        ] {
            assert_eq!(digest(text).to_string(), expected, "{text}");
        }
    }
}
