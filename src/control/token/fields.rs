//! Header and claims of a token as they are read: strictly.
//!
//! Each field once, however its name is spelled, none that is not known, each of one kind: text
//! is text, a number is an integer in decimal and nothing else. What is ignored (`jku` and the
//! like) is passed over whatever it holds, but stands there once at most too.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Unexpected, Visitor},
};

use super::{Expected, LEEWAY_S, LIFETIME_MAX_S, Part, TokenError, error::Shown};
use crate::{
    command::Command,
    control::{
        keys::KeyName,
        protocol::{CommandSeed, Word, bounded, echo, once},
    },
};

/// The largest integer that every JSON reader keeps exactly.
pub(super) const INTEGER_MAX: u64 = 1 << 53;

/// Header fields that would change where the key comes from, or what the payload is, were they
/// believed.
const IGNORED: [&str; 7] = ["jku", "jwk", "x5c", "x5u", "x5t", "x5t#S256", "cty"];

/// Header fields that must not be ignored.
const CRITICAL: [&str; 2] = ["crit", "b64"];

/// What is looked at in a header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) typ: String,
    pub(super) kid: String,
}

/// The claims.
#[derive(Debug)]
pub(super) struct Claims {
    iss: String,
    aud: String,
    nonce: String,
    iat: u64,
    exp: u64,
    nbf: Option<u64>,
    jti: String,
    pub(super) cmd: Command,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, TokenError> {
        let fields = object(Part::Header, bytes, HeaderVisitor)?;
        if let Some(field) = fields.critical {
            return Err(TokenError::Critical { field });
        }
        let missing = |field| TokenError::Missing {
            part: Part::Header,
            field,
        };
        Ok(Self {
            alg: fields.alg.ok_or_else(|| missing("alg"))?,
            typ: fields.typ.ok_or_else(|| missing("typ"))?,
            kid: fields.kid.ok_or_else(|| missing("kid"))?,
        })
    }
}

impl Claims {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, TokenError> {
        let fields = object(Part::Claims, bytes, ClaimsVisitor)?;
        let missing = |field| TokenError::Missing {
            part: Part::Claims,
            field,
        };
        Ok(Self {
            iss: fields.iss.ok_or_else(|| missing("iss"))?,
            aud: fields.aud.ok_or_else(|| missing("aud"))?,
            nonce: fields.nonce.ok_or_else(|| missing("nonce"))?,
            iat: fields.iat.ok_or_else(|| missing("iat"))?,
            exp: fields.exp.ok_or_else(|| missing("exp"))?,
            nbf: fields.nbf,
            jti: fields.jti.ok_or_else(|| missing("jti"))?,
            cmd: fields.cmd.ok_or_else(|| missing("cmd"))?,
        })
    }

    /// Whether they are right for a request.
    pub(super) fn check(
        &self,
        key_name: &KeyName,
        expected: &Expected<'_>,
    ) -> Result<(), TokenError> {
        if self.iss != key_name.as_str() {
            return Err(TokenError::Issuer {
                iss: Shown::of(&self.iss),
            });
        }
        if self.aud != expected.audience {
            return Err(TokenError::Audience {
                aud: Shown::of(&self.aud),
            });
        }
        if self.nonce != expected.nonce {
            return Err(TokenError::Nonce);
        }
        if self.jti != expected.id.to_string() {
            return Err(TokenError::Request {
                jti: Shown::of(&self.jti),
                id: expected.id,
            });
        }
        self.check_times(expected.now)
    }

    fn check_times(&self, now: i64) -> Result<(), TokenError> {
        let seconds = self
            .exp
            .checked_sub(self.iat)
            .ok_or(TokenError::Backwards)?;
        if seconds > LIFETIME_MAX_S {
            return Err(TokenError::Lifetime { seconds });
        }
        if let Some(seconds) = ahead(self.iat, now).filter(|seconds| *seconds > LEEWAY_S) {
            return Err(TokenError::Future { seconds });
        }
        let nbf = self.nbf.and_then(|nbf| ahead(nbf, now));
        if let Some(seconds) = nbf.filter(|seconds| *seconds > LEEWAY_S) {
            return Err(TokenError::NotYet { seconds });
        }
        match ahead(self.exp, now) {
            Some(_) => Ok(()),
            None => {
                let seconds = now.abs_diff(i64::try_from(self.exp).unwrap_or(i64::MAX));
                match seconds < LEEWAY_S {
                    true => Ok(()),
                    false => Err(TokenError::Expired { seconds }),
                }
            }
        }
    }
}

/// By how many seconds a time is after now; `None` when it is not.
fn ahead(time: u64, now: i64) -> Option<u64> {
    let time = i64::try_from(time).unwrap_or(i64::MAX);
    (time > now).then(|| time.abs_diff(now))
}

/// Reads one JSON object and nothing else.
fn object<'de, V: Visitor<'de>>(
    part: Part,
    bytes: &'de [u8],
    visitor: V,
) -> Result<V::Value, TokenError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TokenError::Json {
        part,
        why: "it is not UTF-8".to_owned(),
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let value = json.deserialize_map(visitor);
    value
        .and_then(|value| json.end().map(|()| value))
        .map_err(|fault| TokenError::Json {
            part,
            why: bounded(&fault),
        })
}

#[derive(Default)]
struct HeaderFields {
    alg: Option<String>,
    typ: Option<String>,
    kid: Option<String>,
    critical: Option<&'static str>,
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `alg`, `typ` and `kid`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderFields, A::Error> {
        let mut fields = HeaderFields::default();
        let mut ignored = [None; IGNORED.len()];
        let mut critical = [None; CRITICAL.len()];
        while let Some(Word(key)) = map.next_key()? {
            let place = |names: &[&str]| names.iter().position(|name| *name == key);
            match &*key {
                "alg" => text(&mut fields.alg, "alg", &mut map)?,
                "typ" => text(&mut fields.typ, "typ", &mut map)?,
                "kid" => text(&mut fields.kid, "kid", &mut map)?,
                other => {
                    let slot = match (place(&IGNORED), place(&CRITICAL)) {
                        (Some(index), _) => &mut ignored[index],
                        (None, Some(index)) => {
                            fields.critical = fields.critical.or(Some(CRITICAL[index]));
                            &mut critical[index]
                        }
                        (None, None) => return Err(unknown(other)),
                    };
                    once(slot, other)?;
                    *slot = Some(map.next_value::<IgnoredAny>()?);
                }
            }
        }
        Ok(fields)
    }
}

#[derive(Default)]
struct ClaimFields {
    iss: Option<String>,
    aud: Option<String>,
    nonce: Option<String>,
    iat: Option<u64>,
    exp: Option<u64>,
    nbf: Option<u64>,
    jti: Option<String>,
    cmd: Option<Command>,
}

struct ClaimsVisitor;

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = ClaimFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ClaimFields, A::Error> {
        let mut fields = ClaimFields::default();
        while let Some(Word(key)) = map.next_key()? {
            match &*key {
                "iss" => text(&mut fields.iss, "iss", &mut map)?,
                "aud" => text(&mut fields.aud, "aud", &mut map)?,
                "nonce" => text(&mut fields.nonce, "nonce", &mut map)?,
                "jti" => text(&mut fields.jti, "jti", &mut map)?,
                "iat" => integer(&mut fields.iat, "iat", &mut map)?,
                "exp" => integer(&mut fields.exp, "exp", &mut map)?,
                "nbf" => integer(&mut fields.nbf, "nbf", &mut map)?,
                "cmd" => {
                    once(&fields.cmd, "cmd")?;
                    fields.cmd = Some(map.next_value_seed(CommandSeed)?);
                }
                other => return Err(unknown(other)),
            }
        }
        Ok(fields)
    }
}

fn text<'de, A: MapAccess<'de>>(
    slot: &mut Option<String>,
    key: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    once(slot, key)?;
    *slot = Some(map.next_value_seed(Text(key))?);
    Ok(())
}

fn integer<'de, A: MapAccess<'de>>(
    slot: &mut Option<u64>,
    key: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    once(slot, key)?;
    *slot = Some(map.next_value_seed(Integer(key))?);
    Ok(())
}

fn unknown<E: serde::de::Error>(field: &str) -> E {
    E::custom(format_args!("unknown field `{}`", echo(field)))
}

/// A text, for the field of this name.
struct Text<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string as `{}`", self.0)
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// A plain integer up to [`INTEGER_MAX`], for the field of this name. Floats and negative numbers
/// are another type; so is what is too large for 64 bits.
struct Integer<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Integer<'_> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl Visitor<'_> for Integer<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from 0 to 2^53 as `{}`", self.0)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        if number > INTEGER_MAX {
            return Err(E::invalid_value(Unexpected::Unsigned(number), &self));
        }
        Ok(number)
    }
}
