//! What is wrong with a token: for the server's log, and never for the peer.

use std::fmt;

use super::{super::keys::KeyNameError, LEEWAY_S, LIFETIME_MAX_S, TOKEN_BYTES_MAX};
use crate::control::protocol::echo;

/// A part of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first.
    Header,
    /// The second.
    Claims,
    /// The third.
    Signature,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Claims => "claims",
            Self::Signature => "signature",
        })
    }
}

/// A text that the peer wrote, escaped and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    pub(super) fn of(text: &str) -> Self {
        Self(echo(text))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a token is refused.
///
/// The peer is told none of it. Nothing of the token is in it but short, escaped pieces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than a request line.
    #[error("the token has {bytes} bytes, at most {TOKEN_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Fewer or more than three parts.
    #[error("the token has not exactly three parts")]
    Parts,
    /// A part with nothing in it.
    #[error("the token's {part} is empty")]
    Empty {
        /// Which.
        part: Part,
    },
    /// Not base64url without padding, or not in its canonical form.
    #[error("the token's {part} is not canonical base64url without padding")]
    Base64 {
        /// Which.
        part: Part,
    },
    /// Not an object with the fields that belong there, each once and of the right kind.
    #[error("the token's {part} is not as it should be: {why}")]
    Json {
        /// Which.
        part: Part,
        /// What is wrong.
        why: String,
    },
    /// A field is not there.
    #[error("`{field}` is missing in the token's {part}")]
    Missing {
        /// Where.
        part: Part,
        /// Which.
        field: &'static str,
    },
    /// `crit` or `b64`: it demands to be read in another way.
    #[error("the token's header has `{field}`, which is not supported")]
    Critical {
        /// Which.
        field: &'static str,
    },
    /// Not RS256.
    #[error("the token's `alg` is `{alg}`, not `RS256`")]
    Algorithm {
        /// What it says.
        alg: Shown,
    },
    /// A token for something else.
    #[error("the token's `typ` is `{typ}`, not `supervisor-cmd+jwt`")]
    Type {
        /// What it says.
        typ: Shown,
    },
    /// `kid` is no key name.
    #[error("the token's `kid` is no key name: {0}")]
    KeyName(KeyNameError),
    /// The key did not make the signature, or not over this.
    #[error("the token's signature is wrong")]
    Signature,
    /// `iss` is not `kid`.
    #[error("the token's `iss` is `{iss}`, not its key's name")]
    Issuer {
        /// What it says.
        iss: Shown,
    },
    /// It is for another server.
    #[error("the token's `aud` is `{aud}`, which is not this server's id")]
    Audience {
        /// What it says.
        aud: Shown,
    },
    /// It is for another connection.
    #[error("the token's `nonce` is not this connection's")]
    Nonce,
    /// It is for another request.
    #[error("the token's `jti` is `{jti}`, but the request's id is {id}")]
    Request {
        /// What it says.
        jti: Shown,
        /// The request's id.
        id: u64,
    },
    /// It ends before it was signed.
    #[error("the token's `exp` is before its `iat`")]
    Backwards,
    /// It would be good for too long.
    #[error("the token is good for {seconds} s, at most {LIFETIME_MAX_S} are allowed")]
    Lifetime {
        /// From `iat` to `exp`.
        seconds: u64,
    },
    /// It was signed in the future.
    #[error(
        "the token's `iat` is {seconds} s ahead, at most {LEEWAY_S} are allowed; times are \
         computed from the hello's `time`"
    )]
    Future {
        /// By how much.
        seconds: u64,
    },
    /// It is not good yet.
    #[error("the token's `nbf` is {seconds} s ahead, at most {LEEWAY_S} are allowed")]
    NotYet {
        /// By how much.
        seconds: u64,
    },
    /// It is no longer good.
    #[error("the token's `exp` was {seconds} s ago, less than {LEEWAY_S} are allowed")]
    Expired {
        /// Since when.
        seconds: u64,
    },
}

/// Why a command cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The server's clock, which times are computed from, is out of any range.
    #[error("cannot sign the command: the server's clock says {now} s since 1970")]
    Time {
        /// What it says.
        now: i64,
    },
    /// The signature failed.
    #[error("cannot sign the command: {0}")]
    Key(jsonwebtoken::errors::Error),
    /// The server's id or nonce is too long for a request line.
    #[error("cannot sign the command: the token has {bytes} bytes, more than a request may have")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
}
