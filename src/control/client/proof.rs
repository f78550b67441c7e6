//! Before a command is sent: is this the server that is meant, and how is the command given?
//!
//! A signed command is sent to a server only that is the one known there, or pinned, or met for
//! the first time; and a key that was given is never passed over because a server, or somebody on
//! the way to it, says that it needs none. What a hello says is checked before it is signed.
//!
//! A token is good for the server and the connection whose hello it was made from, and for
//! nothing else. It does not show through whom it went: a false server at this address can hand
//! on the hello of a true one elsewhere, and the token back to it. That is what `known_servers`
//! and `--server-id` are against, since the id shown is then another's; against somebody who was
//! there at the first contact, or between all the time, ssh is.
//!
//! Source: DESIGN, section 8; docs/PROTOCOL.md.

use serde::Serialize;

use super::{
    super::{
        keys::PrivateKey,
        protocol::{self, Hello, Refusal},
        token::{self, Expected},
    },
    failure,
    known_servers::{Acquaintance, KnownServers, KnownServersError, ServerId},
};
use crate::{
    command::{Command, ErrorCode},
    trust::Shown,
};

/// The most characters of a nonce that is signed.
const NONCE_CHARS_MAX: usize = 128;

/// The last second of the year 9999: a clock that says more is none.
const TIME_MAX: i64 = 253_402_300_799;

/// How commands are given, and to whom.
#[derive(Debug, Default)]
pub struct Proof {
    /// The key, and what goes with it; unsigned without.
    pub signing: Option<Signing>,
    /// The only server that is to be told anything (`--server-id`).
    pub server_id: Option<ServerId>,
}

/// What commands are signed with, and for whom.
#[derive(Debug)]
pub struct Signing {
    /// The key.
    pub key: PrivateKey,
    /// The servers that were met before.
    pub known: KnownServers,
    /// What a server is that was never met.
    pub strangers: Strangers,
    /// What becomes of a command for a server that asks for no signature.
    pub downgrade: Downgrade,
}

/// What is done about a server that signed commands never went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strangers {
    /// It is written down and told the command.
    #[default]
    Recorded,
    /// It is told nothing (`--strict`).
    Refused,
}

/// What is done about a server that says `encrypt: off` although there is a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Downgrade {
    /// It is told nothing.
    #[default]
    Refused,
    /// It is told the command unsigned (`--allow-unsigned`).
    Allowed,
}

/// Who is talked with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met<'a> {
    /// The host as it was given.
    pub(super) host: &'a str,
    /// What it is known as.
    pub(super) place: &'a str,
    /// What it greeted with.
    pub(super) hello: &'a Hello,
}

/// Whether a request went out signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signed {
    Yes,
    No,
}

impl Proof {
    /// The line that gives a command to this server, or why it is given none. Writes a stranger
    /// down; what a person should hear of that is added to the warnings.
    pub(super) fn request(
        &self,
        met: Met<'_>,
        id: u64,
        command: &Command,
        warnings: &mut Vec<String>,
    ) -> Result<(Vec<u8>, Signed), Refusal> {
        self.check_pin(met)?;
        let plain = || {
            let mut line = Vec::new();
            protocol::write_request(&mut line, id, command);
            (line, Signed::No)
        };
        let Some(signing) = &self.signing else {
            return match met.hello.encrypt {
                true => Err(key_missing(met)),
                false => Ok(plain()),
            };
        };
        let server = checked(met)?;
        self.check_known(signing, met, &server, warnings)?;
        if !met.hello.encrypt {
            return match signing.downgrade {
                Downgrade::Refused => Err(downgraded(met, signing)),
                Downgrade::Allowed => Ok(plain()),
            };
        }
        self.record(signing, met, &server, warnings)?;
        let expected = Expected {
            audience: &met.hello.id,
            nonce: &met.hello.nonce,
            id,
            // The server's clock, so that this host's need not agree.
            now: met.hello.time,
        };
        let token = token::sign(&signing.key, command, &expected).map_err(|fault| {
            let path = Shown(signing.key.path());
            let message = format!("cannot sign with {path}: {fault}");
            failure(ErrorCode::Internal, message)
        })?;
        Ok((token_line(id, &token), Signed::Yes))
    }

    fn check_pin(&self, met: Met<'_>) -> Result<(), Refusal> {
        let Some(pinned) = &self.server_id else {
            return Ok(());
        };
        if checked_id(met)? == *pinned {
            return Ok(());
        }
        let message = format!(
            "`{}` is the server {}, not {pinned} as `--server-id` asks; nothing was sent\n\
             hint: `supervisor-rs-client info` on that host shows its id",
            met.host, met.hello.id
        );
        Err(failure(ErrorCode::ServerChanged, message))
    }

    fn check_known(
        &self,
        signing: &Signing,
        met: Met<'_>,
        server: &ServerId,
        warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        let found = signing.known.look(met.place, server);
        match (found, &self.server_id, signing.strangers) {
            (Ok(Acquaintance::Known), _, _) => Ok(()),
            (Ok(Acquaintance::Changed { before }), Some(_), _) => {
                warnings.push(format!(
                    "`{}` was another server before ({before}); this one is the one that \
                     `--server-id` asks for, and is not written down\n\
                     hint: `supervisor-rs-client --forget {}` forgets the other",
                    met.host, met.place
                ));
                Ok(())
            }
            (Ok(Acquaintance::Changed { before }), None, _) => Err(changed(met, &before, server)),
            (Ok(Acquaintance::Stranger) | Err(_), Some(_), _)
            | (Ok(Acquaintance::Stranger), None, Strangers::Recorded) => Ok(()),
            (Ok(Acquaintance::Stranger), None, Strangers::Refused) => Err(stranger(met, server)),
            // Warned of once, where the file was read.
            (Err(_), None, Strangers::Recorded) => Ok(()),
            (Err(fault), None, Strangers::Refused) => Err(unknowable(met, fault)),
        }
    }

    /// Writes a stranger down before it is told anything.
    fn record(
        &self,
        signing: &Signing,
        met: Met<'_>,
        server: &ServerId,
        warnings: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        match signing.known.look(met.place, server) {
            Ok(Acquaintance::Stranger) => {}
            Ok(Acquaintance::Known | Acquaintance::Changed { .. }) | Err(_) => return Ok(()),
        }
        match (signing.known.record(met.place, server), &self.server_id) {
            (Ok(Acquaintance::Stranger | Acquaintance::Known), _)
            | (Ok(Acquaintance::Changed { .. }), Some(_)) => Ok(()),
            (Ok(Acquaintance::Changed { before }), None) => Err(changed(met, &before, server)),
            (Err(fault), _) => {
                warnings.push(format!(
                    "the server at `{}` is not written down: {fault}",
                    met.host
                ));
                Ok(())
            }
        }
    }

    /// Adds to a refusal of a signed command what there is to mend.
    pub(super) fn explain(&self, refusal: Refusal, signed: Signed) -> Refusal {
        let (Some(signing), Signed::Yes) = (&self.signing, signed) else {
            return refusal;
        };
        if refusal.known_code() != Some(ErrorCode::Unauthorized) {
            return refusal;
        }
        let key = &signing.key;
        let message = format!(
            "{}\nsigned as `{name}` with {}, fingerprint {}\n\
             hint: the server needs this key's public half as `{name}.pem` or `{name}.pub.pem` in \
             a directory of its `pub_keys_path`; its log has the reason",
            refusal.message,
            Shown(key.path()),
            key.fingerprint(),
            name = key.name(),
        );
        failure(ErrorCode::Unauthorized, message)
    }
}

fn token_line(id: u64, token: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        id: u64,
        token: &'a str,
    }
    let mut line = serde_json::to_vec(&Line { id, token }).expect("a number and a string are JSON");
    line.push(b'\n');
    line
}

/// What of the hello goes into a token, checked: nobody makes this client sign anything else.
fn checked(met: Met<'_>) -> Result<ServerId, Refusal> {
    let id = checked_id(met)?;
    let nonce = &met.hello.nonce;
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if nonce.is_empty() || nonce.len() > NONCE_CHARS_MAX || !nonce.bytes().all(is_base64url) {
        let why = format!("its nonce is not 1 to {NONCE_CHARS_MAX} characters of base64url");
        return Err(odd_hello(met, &why));
    }
    if !(0..=TIME_MAX).contains(&met.hello.time) {
        return Err(odd_hello(met, "its time is none"));
    }
    Ok(id)
}

fn checked_id(met: Met<'_>) -> Result<ServerId, Refusal> {
    let id = met.hello.id.parse();
    id.map_err(|_| odd_hello(met, "its id is not a UUID"))
}

fn odd_hello(met: Met<'_>, why: &str) -> Refusal {
    let host = met.host;
    let message = format!("`{host}` does not greet as a supervisor-rs-server: {why}");
    failure(ErrorCode::Unreachable, message)
}

fn key_missing(met: Met<'_>) -> Refusal {
    let message = format!(
        "`{}` takes only signed commands (`encrypt: on`): `with KEY.pem` is missing\n\
         hint: `SUPERVISOR_RS_KEY` names a key for all commands; `supervisor-rs-client keygen \
         NAME` makes one",
        met.host
    );
    failure(ErrorCode::Unauthorized, message)
}

fn downgraded(met: Met<'_>, signing: &Signing) -> Refusal {
    let message = format!(
        "`{}` says that it takes unsigned commands (`encrypt: off`), but a key was given ({}); \
         nothing was sent\n\
         hint: this may be somebody on the way who wants a command without its signature; set \
         `encrypt: on` in its server.yml and start it anew, or send the command unsigned: with \
         `--allow-unsigned`, or without a key (`with`, `SUPERVISOR_RS_KEY`)",
        met.host,
        Shown(signing.key.path())
    );
    failure(ErrorCode::Unauthorized, message)
}

fn changed(met: Met<'_>, before: &ServerId, now: &ServerId) -> Refusal {
    let message = format!(
        "another server than before listens at `{}`: it was {before}, now it is {now}; nothing \
         was sent\n\
         hint: if it was set up anew, `supervisor-rs-client --forget {}` lets it in (a fixed `id` \
         in its server.yml spares this); if not, somebody stands in its place: \
         `supervisor-rs-client info` on that host shows its id",
        met.host, met.place
    );
    failure(ErrorCode::ServerChanged, message)
}

fn stranger(met: Met<'_>, server: &ServerId) -> Refusal {
    let message = format!(
        "the server at `{}` is not known, and `--strict` was given; nothing was sent\n\
         hint: it calls itself {server}: if `supervisor-rs-client info` on that host says the \
         same, `--server-id {server}` lets it in and writes it down",
        met.host
    );
    failure(ErrorCode::ServerChanged, message)
}

fn unknowable(met: Met<'_>, fault: &KnownServersError) -> Refusal {
    let message = format!(
        "whether the server at `{}` is known cannot be told, and `--strict` was given; nothing \
         was sent: {fault}\n\
         hint: `--server-id UUID` needs no `known_servers`",
        met.host
    );
    failure(ErrorCode::ServerChanged, message)
}

#[cfg(test)]
mod tests;
