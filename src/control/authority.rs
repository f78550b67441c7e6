//! Who may command: the one place where a request becomes a command that is carried out.
//!
//! As long as commands cannot be signed: with `encrypt: on` nobody, otherwise whoever connects
//! from this host. A refused request never reaches the core.
//!
//! Absent on purpose: keys and tokens, the peer socket's user, `allow_unsigned_remote` and
//! `allow_local_users`; each comes as one more condition of [`authorise`].
//!
//! Source: DESIGN, section 3 (protected mode) and section 8.

use std::net::{IpAddr, SocketAddr};

use super::protocol::Body;
use crate::command::{Command, ErrorCode, Failure};

/// Whether the server takes commands that nobody signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsigned {
    /// From this host (`encrypt: off`).
    Local,
    /// Never (`encrypt: on`).
    Never,
}

/// One text for every reason, so that a peer learns nothing from it.
const UNAUTHORIZED: &str = "the command is not signed by a key that this server knows";

/// The command of a request, if its sender may give it.
///
/// # Errors
///
/// `unauthorized` or `protected_mode`.
pub(super) fn authorise(
    unsigned: Unsigned,
    peer: SocketAddr,
    body: Body,
) -> Result<Command, Failure> {
    match (body, unsigned) {
        (Body::Token(_), _) | (Body::Command(_), Unsigned::Never) => {
            Err(Failure::new(ErrorCode::Unauthorized, UNAUTHORIZED))
        }
        (Body::Command(command), Unsigned::Local) => {
            if is_this_host(peer.ip()) {
                Ok(command)
            } else {
                Err(Failure::new(
                    ErrorCode::ProtectedMode,
                    "unsigned commands are taken from this host only, not from another\n\
                     hint: set `encrypt: on` and `pub_keys_path` in server.yml and sign commands, \
                     or connect from the host itself; `allow_unsigned_remote` is not supported yet",
                ))
            }
        }
    }
}

/// Whether an address can only be that of a socket on this host.
pub(super) fn is_this_host(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(unsigned: Unsigned, peer: &str, body: Body) -> Option<ErrorCode> {
        authorise(unsigned, SocketAddr::new(peer.parse().unwrap(), 1), body)
            .err()
            .map(|failure| failure.code)
    }

    #[test]
    fn unsigned_commands_are_for_this_host_alone() {
        let asks = |peer| code(Unsigned::Local, peer, Body::Command(Command::Info));
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(asks(here), None, "{here}");
        }
        for elsewhere in [
            "192.0.2.1",
            "10.0.0.1",
            "0.0.0.0",
            "2001:db8::1",
            "fe80::1",
            "::ffff:192.0.2.1",
            "::127.0.0.1",
        ] {
            assert_eq!(
                asks(elsewhere),
                Some(ErrorCode::ProtectedMode),
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn with_encrypt_on_nothing_unsigned_is_taken() {
        for peer in ["127.0.0.1", "192.0.2.1"] {
            assert_eq!(
                code(Unsigned::Never, peer, Body::Command(Command::Info)),
                Some(ErrorCode::Unauthorized)
            );
        }
    }

    #[test]
    fn a_token_opens_nothing_yet() {
        for unsigned in [Unsigned::Local, Unsigned::Never] {
            assert_eq!(
                code(unsigned, "127.0.0.1", Body::Token("a.b.c".to_owned())),
                Some(ErrorCode::Unauthorized)
            );
        }
    }
}
