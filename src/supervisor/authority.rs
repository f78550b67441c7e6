//! Who may command, as server.yml says it: what the control plane is told of it, at the start and
//! whenever it is edited.
//!
//! Before a key is used, the connection asks whether server.yml is still the file that was read
//! last, and if not has it looked at here: a directory of keys that was taken out of it a moment
//! ago lets nobody in.
//!
//! Absent on purpose: judging anybody (`control`).

use std::{net::TcpListener, sync::Arc};

use tokio::sync::mpsc;

use super::{
    Fixed, Supervisor,
    server_file::{BEING_WRITTEN, LastLook, ServerFile},
    start::{FILES_PER_CONNECTION, ServeError},
};
use crate::{
    command::{Answer, Info, InfoKey},
    control::{
        asked::{Refused, Reply},
        keys::{Key, Ring, RingSurvey},
        limits::Limits,
        server::{ConfigCheck, ControlConfig, Look, Policy},
    },
    process,
};

impl ConfigCheck for LastLook {
    fn is_current(&self) -> bool {
        LastLook::is_current(self)
    }
}

/// What the control plane is started with.
pub(super) fn control_config(
    server_file: &ServerFile,
    fixed: &Fixed,
    listeners: Vec<TcpListener>,
    looks: mpsc::Sender<Look>,
    refusals: mpsc::Sender<Refused>,
) -> Result<ControlConfig, ServeError> {
    let bad = |fault| ServeError::BadConfig(vec![fault]);
    let ring = ring(server_file).map_err(bad)?;
    Ok(ControlConfig {
        listeners,
        name: fixed.name.clone(),
        id: fixed.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        policy: policy(server_file).map_err(bad)?,
        ring: Arc::new(ring),
        config: server_file.last_look(),
        looks,
        refusals,
        limits: Limits::for_open_files(process::open_files_max() / FILES_PER_CONNECTION),
    })
}

fn ring(server_file: &ServerFile) -> Result<Ring, String> {
    let dirs = server_file.spec().pub_keys_path.clone();
    Ok(Ring::new(dirs, server_file.owners()?).with_writers_seen(BEING_WRITTEN))
}

/// What a server with this server.yml would find of keys.
pub(super) fn survey_keys(server_file: &ServerFile) -> Result<RingSurvey, String> {
    let mut found = ring(server_file)?.look();
    if found.keys.is_empty() && server_file.spec().encrypt {
        let note = "there is no key, and `encrypt` is on: nobody could command this server";
        found.notes.push(note.to_owned());
    }
    Ok(found)
}

/// Why the control plane could not be started again with this server.yml, if so.
pub(super) fn check(server_file: &ServerFile) -> Result<(), String> {
    policy(server_file)?;
    ring(server_file)?;
    Ok(())
}

fn policy(server_file: &ServerFile) -> Result<Policy, String> {
    let spec = server_file.spec();
    Ok(Policy {
        encrypt: spec.encrypt,
        allow_unsigned_remote: spec.allow_unsigned_remote,
        local_users: server_file.local_users()?,
    })
}

impl Supervisor {
    /// Applies what server.yml says of keys and users from now on.
    pub(super) fn apply_authority(&mut self) {
        let file = &self.server_file;
        match (policy(file), file.owners()) {
            (Ok(policy), Ok(owners)) => {
                self.control.configure(policy);
                self.ring
                    .configure(file.spec().pub_keys_path.clone(), owners);
                self.control.recheck_keys();
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "those may command who could before");
            }
        }
    }

    /// Looks at server.yml for a connection that is about to use a key.
    pub(super) fn look_for(&mut self, look: Look) {
        self.look_at_server_file();
        // An error means that the connection is gone.
        let _ = look.send(());
    }

    /// Answers `info` with the keys that there are now, which takes a look at the disk.
    pub(super) fn inform_of_keys(&self, mut info: Box<Info>, reply: Reply) {
        self.key_looks.ask(move |seen| {
            match seen {
                Ok(RingSurvey {
                    keys,
                    faults,
                    notes: _,
                }) => {
                    info.keys = keys.iter().map(|key| of_key(key)).collect();
                    info.faults.extend(faults.iter().cloned());
                }
                Err(why) => info.faults.push(why.to_string()),
            }
            reply.send(Ok(Answer::Info(info)));
        });
    }
}

fn of_key(key: &Key) -> InfoKey {
    InfoKey {
        name: key.name().to_string(),
        path: key.path().display().to_string(),
        bits: key.public().bits(),
        fingerprint: key.public().fingerprint().to_string(),
        scope: key.scope_path().map(|path| path.display().to_string()),
    }
}
