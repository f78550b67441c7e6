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
    Digest, Hook, OpenMode, Repeat, RestartLimit, RestartPolicy, RestartWhen, Sink, Spec,
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

fn nanos(span: Duration) -> [u8; 16] {
    span.as_nanos().to_le_bytes()
}
