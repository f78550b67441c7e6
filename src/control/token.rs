//! Tokens: a command, signed for one request of one connection to one server.
//!
//! A token is a JWS in compact form, RS256 and nothing else. The library under it checks the
//! signature and no more; what stands in header and claims is read and judged here, because it
//! looks neither at `crit`, `typ`, `iat`, `jti` nor at the lifetime, and takes fields it does not
//! know.
//!
//! - There is one way to write each part: canonical base64url, JSON without duplicate or unknown
//!   fields, plain integers. What is written otherwise is refused, also when it is signed.
//! - Header first, then signature, then claims: nothing of the claims is looked at before the
//!   signature is right, and no key before the header is.
//! - The checks are made in the same order whatever the token says, so that the log tells the
//!   first thing that is wrong. The peer is told none of it.
//!
//! Absent on purpose: clocks and files; which key has a name; whether a nonce or an id was used
//! before (a connection has one nonce, and its ids increase).
//!
//! Source: DESIGN, section 8; RFC 7515, RFC 7519, RFC 8725.

mod error;
mod fields;

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::Serialize;

pub use self::error::{Part, SignError, TokenError};
use self::{
    error::Shown,
    fields::{Claims, Header},
};
use super::{
    keys::{KeyName, PrivateKey, PublicKey},
    protocol::{LINE_BYTES_MAX, WireCommand},
};
use crate::command::Command;

/// The longest that a token may be good for, from `iat` to `exp`, in seconds.
pub const LIFETIME_MAX_S: u64 = 300;

/// By how much the clocks of signer and server may differ, in seconds.
pub const LEEWAY_S: u64 = 30;

/// What kind of token it is; a token made for anything else is not one of ours.
pub const TYP: &str = "supervisor-cmd+jwt";

/// The one algorithm.
const ALG: &str = "RS256";

/// How long a token that we sign is good for, in seconds.
const LIFETIME_S: u64 = 60;

/// The most bytes of a token: it comes in a request line.
const TOKEN_BYTES_MAX: usize = LINE_BYTES_MAX;

/// What a token has to say to be good for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The server's id, as its hello says it.
    pub audience: &'a str,
    /// The connection's nonce, as the hello says it.
    pub nonce: &'a str,
    /// The request's id.
    pub id: u64,
    /// The time, in seconds since 1970-01-01 UTC.
    pub now: i64,
}

/// A token whose header is in order, and of which nothing is believed yet.
pub struct Unverified<'a> {
    /// Header and claims as they were signed.
    signed: &'a str,
    signature: &'a str,
    claims: Vec<u8>,
    key_name: KeyName,
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified")
            .field("key_name", &self.key_name)
            .finish_non_exhaustive()
    }
}

impl<'a> Unverified<'a> {
    /// Divides a token and reads its header.
    ///
    /// # Errors
    ///
    /// [`TokenError`], when it is not three parts in canonical base64url, or its header is not
    /// exactly what DESIGN says.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong { bytes: token.len() });
        }
        let (header, claims, signature) = divide(token)?;
        let signed = &token[..header.len() + 1 + claims.len()];
        let header = decode(Part::Header, header)?;
        let claims = decode(Part::Claims, claims)?;
        decode(Part::Signature, signature)?;
        let header = Header::read(&header)?;
        if header.alg != ALG {
            return Err(TokenError::Algorithm {
                alg: Shown::of(&header.alg),
            });
        }
        if header.typ != TYP {
            return Err(TokenError::Type {
                typ: Shown::of(&header.typ),
            });
        }
        let key_name = header.kid.parse().map_err(TokenError::KeyName)?;
        Ok(Self {
            signed,
            signature,
            claims,
            key_name,
        })
    }

    /// The name of the key that it says it was signed with.
    #[must_use]
    pub fn key_name(&self) -> &KeyName {
        &self.key_name
    }

    /// The command, when the key's owner gave it for this request, and now.
    ///
    /// The key must be the one that is called [`Unverified::key_name`].
    ///
    /// # Errors
    ///
    /// [`TokenError`]: the signature is wrong, or a claim is missing or wrong.
    pub fn verify(&self, key: &PublicKey, expected: &Expected<'_>) -> Result<Command, TokenError> {
        let right = jsonwebtoken::crypto::verify(
            self.signature,
            self.signed.as_bytes(),
            key.decoding(),
            Algorithm::RS256,
        );
        // Only a key that is not RSA, and a signature that is not base64, are errors; there is
        // neither here.
        if !right.unwrap_or(false) {
            return Err(TokenError::Signature);
        }
        let claims = Claims::read(&self.claims)?;
        claims.check(&self.key_name, expected)?;
        Ok(claims.cmd)
    }
}

/// Signs a command.
///
/// # Errors
///
/// [`SignError`], when the time is none that can be written, or the key cannot sign.
pub fn sign(
    key: &PrivateKey,
    command: &Command,
    expected: &Expected<'_>,
) -> Result<String, SignError> {
    #[derive(Serialize)]
    struct WireHeader<'a> {
        alg: &'static str,
        typ: &'static str,
        kid: &'a KeyName,
    }
    #[derive(Serialize)]
    struct WireClaims<'a> {
        iss: &'a KeyName,
        aud: &'a str,
        nonce: &'a str,
        iat: u64,
        exp: u64,
        jti: String,
        cmd: WireCommand<'a>,
    }
    let time = SignError::Time { now: expected.now };
    let iat = u64::try_from(expected.now).map_err(|_| time)?;
    if iat > fields::INTEGER_MAX - LIFETIME_S {
        return Err(SignError::Time { now: expected.now });
    }
    let header = encode(&WireHeader {
        alg: ALG,
        typ: TYP,
        kid: key.name(),
    });
    let claims = encode(&WireClaims {
        iss: key.name(),
        aud: expected.audience,
        nonce: expected.nonce,
        iat,
        exp: iat + LIFETIME_S,
        jti: expected.id.to_string(),
        cmd: WireCommand(command),
    });
    let signed = format!("{header}.{claims}");
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key.encoding(), Algorithm::RS256)
        .map_err(SignError::Key)?;
    let token = format!("{signed}.{signature}");
    if token.len() > TOKEN_BYTES_MAX {
        return Err(SignError::TooLong { bytes: token.len() });
    }
    Ok(token)
}

/// Exactly three parts, none of them empty.
fn divide(token: &str) -> Result<(&str, &str, &str), TokenError> {
    let mut parts = token.splitn(4, '.');
    let (Some(header), Some(claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Parts);
    };
    for (part, text) in [
        (Part::Header, header),
        (Part::Claims, claims),
        (Part::Signature, signature),
    ] {
        if text.is_empty() {
            return Err(TokenError::Empty { part });
        }
    }
    Ok((header, claims, signature))
}

/// Base64url without padding, and with no bits left over that say anything.
fn decode(part: Part, text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| TokenError::Base64 { part })
}

fn encode<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_vec(value).expect("it has string keys and a `Vec` takes every byte");
    URL_SAFE_NO_PAD.encode(json)
}

#[cfg(test)]
mod tests;
