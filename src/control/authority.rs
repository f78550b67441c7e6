//! Who may command: the one place where a request becomes a command that is carried out.
//!
//! - A signed command is judged by its signature, its key's place in the ring and the key's
//!   scope, whatever `encrypt` says (`tokens` checks signatures, off the core's thread).
//! - An unsigned command is refused where `encrypt` is on. Elsewhere it is taken from root, the
//!   server's own user and those of `allow_local_users`, each by the socket it comes from
//!   (`peer`), and from other hosts only with `allow_unsigned_remote`.
//! - A peer that has not shown who he is learns nothing but the one text of `unauthorized`, or
//!   which fields of server.yml would let him in. The log and the audit trail have the reason
//!   (`refusals`).
//!
//! The rules in force can be replaced at any time, and count for the next command. A refused
//! request never reaches the core.
//!
//! Source: DESIGN, section 3 (protected mode) and section 8; I10.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};

use super::{
    asked::Credential,
    keys::{Key, KeyName},
    peer::Origin,
};
use crate::{
    command::{Command, ErrorCode, Failure},
    trust::Owners,
};

mod refusals;
mod tokens;

pub(super) use refusals::{HandedRefusals, Refusal, Refusals};
pub use tokens::Look;
pub(super) use tokens::{Batch, Genuine, Tokens, Unproven, Verification, Verified};

/// Who may command, as server.yml says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `encrypt`: whether only signed commands are taken.
    pub encrypt: bool,
    /// `allow_unsigned_remote`: whether other hosts may command without a signature.
    pub allow_unsigned_remote: bool,
    /// `allow_local_users`, beside root and the server's own user, who always may.
    pub local_users: Owners,
}

/// Whether what stands in server.yml is what is in force.
///
/// Asked before each use of a key, on a thread that may wait for the disk.
pub trait ConfigCheck: fmt::Debug + Send + Sync {
    /// Whether server.yml is, by its look, the file that was last looked at, be it good or bad.
    fn is_current(&self) -> bool;
}

/// One text for every reason, so that a peer learns nothing from it.
pub(super) const UNAUTHORIZED: &str = "the command is not signed by a key that this server knows";

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    /// What was shown, when it can be believed.
    pub(super) credential: Option<Credential>,
    /// The key name that a token claimed.
    pub(super) claimed: Option<KeyName>,
    /// What was asked, if that was read.
    pub(super) command: Option<Command>,
    /// For the peer.
    pub(super) failure: Failure,
    /// For the log.
    pub(super) why: String,
}

impl Denial {
    /// Of a token. Its reason is for the log alone.
    pub(super) fn of_token(claimed: Option<KeyName>, why: String) -> Box<Self> {
        Box::new(Self {
            credential: None,
            claimed,
            command: None,
            failure: Failure::new(ErrorCode::Unauthorized, UNAUTHORIZED),
            why,
        })
    }
}

/// A command that its sender may give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Authorised {
    pub(super) command: Command,
    pub(super) credential: Credential,
}

/// The rules in force, shared by all connections. Never locked while anything is waited for.
#[derive(Debug)]
pub(super) struct Authority(RwLock<Arc<Policy>>);

impl Authority {
    pub(super) fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    /// From now on these rules hold.
    pub(super) fn configure(&self, policy: Policy) {
        // What is only ever replaced as a whole is whole after any panic.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether only signed commands are taken.
    pub(super) fn encrypt(&self) -> bool {
        self.policy().encrypt
    }

    /// Judges a command that nobody signed.
    ///
    /// # Errors
    ///
    /// `unauthorized` or `protected_mode`.
    pub(super) fn unsigned(
        &self,
        origin: Origin,
        command: Command,
    ) -> Result<Authorised, Box<Denial>> {
        let policy = self.policy();
        let credential = match policy.unsigned(origin) {
            Ok(credential) => credential,
            Err(failure) => {
                return Err(Box::new(Denial {
                    credential: match origin {
                        Origin::User(uid) => Some(Credential::User(uid)),
                        Origin::UnknownUser | Origin::Remote => None,
                    },
                    claimed: None,
                    command: Some(command),
                    why: match failure.code == ErrorCode::Unauthorized {
                        true => "the command is not signed and `encrypt` is on".to_owned(),
                        false => failure
                            .message
                            .lines()
                            .next()
                            .unwrap_or_default()
                            .to_owned(),
                    },
                    failure,
                }));
            }
        };
        Ok(Authorised {
            command,
            credential,
        })
    }
}

/// What every refusal of protected mode ends with.
const SIGN: &str = "set `encrypt: on` and `pub_keys_path` in server.yml and sign commands";

impl Policy {
    fn unsigned(&self, origin: Origin) -> Result<Credential, Failure> {
        if self.encrypt {
            return Err(Failure::new(ErrorCode::Unauthorized, UNAUTHORIZED));
        }
        let message = match origin {
            Origin::User(uid) if self.local_users.trusts(uid) => {
                return Ok(Credential::User(uid));
            }
            Origin::Remote if self.allow_unsigned_remote => return Ok(Credential::Reach),
            Origin::User(uid) => {
                let name = self.local_users.name(uid);
                let user = match name.parse() == Ok(uid) {
                    true => format!("user {uid}"),
                    false => format!("`{name}` (user {uid})"),
                };
                format!(
                    "unsigned commands are not taken from {user} of this host\n\
                     hint: add `{name}` to `allow_local_users` in server.yml, or {SIGN}"
                )
            }
            Origin::UnknownUser => format!(
                "unsigned commands are taken from users of this host that can be told, and whose \
                 connection this is cannot be told\n\
                 hint: `peer users` of `info` says how users are told, `allow_local_users` who may \
                 command; else {SIGN}"
            ),
            Origin::Remote => format!(
                "unsigned commands are taken from this host only, not from another\n\
                 hint: {SIGN}, or connect from the host itself, as through ssh; \
                 `allow_unsigned_remote: true` lets every host command that can connect"
            ),
        };
        Err(Failure::new(ErrorCode::ProtectedMode, message))
    }
}

/// Judges a command that was signed with this key.
///
/// # Errors
///
/// `forbidden`, as the key's scope says.
pub(super) fn signed(key: &Key, command: Command, from: IpAddr) -> Result<Authorised, Box<Denial>> {
    let credential = Credential::Key {
        name: key.name().clone(),
        fingerprint: key.public().fingerprint().clone(),
    };
    match key.scope().permits(&command, from) {
        Ok(()) => Ok(Authorised {
            command,
            credential,
        }),
        Err(forbidden) => Err(Box::new(Denial {
            credential: Some(credential),
            claimed: Some(key.name().clone()),
            command: Some(command),
            why: forbidden.to_string(),
            failure: Failure::new(ErrorCode::Forbidden, forbidden.to_string()),
        })),
    }
}

#[cfg(test)]
mod tests;
