//! A public key, read from the text of its file.
//!
//! - A file holds one key and nothing else: what stands in `pub_keys_path` is what commands are
//!   taken from, so there must be no two ways of reading it.
//! - A private key is refused before anything else is said about the file, whatever is around it.
//! - What is taken here, the check of signatures takes too.
//!
//! Absent on purpose: files (their trust check, and which of them count) and names.
//!
//! Source: DESIGN, section 8; RFC 5280, section 4.1.2.7; RFC 8017, appendix A.1.1.

use jsonwebtoken::DecodingKey;
use rsa::{
    pkcs1,
    pkcs8::{
        PrivateKeyInfo, SubjectPublicKeyInfoRef,
        der::{self, Decode},
    },
};

use super::{
    Fingerprint,
    components::{BITS_MAX, Components, UnfitKey, algorithm_name},
    pem::{Block, Pem, PemError},
};
use crate::control::protocol::echo;

/// The most bytes of a public key's file.
pub const PUBLIC_KEY_BYTES_MAX: u64 = 16 * 1024;

/// An RSA public key that signatures are checked with.
#[derive(Debug, Clone)]
pub struct PublicKey {
    bits: u32,
    fingerprint: Fingerprint,
    decoding: DecodingKey,
}

/// Why a file is not a public key that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Nothing but white space.
    #[error("the file is empty\nhint: {TO_PUBLIC}")]
    Empty,
    /// More than [`PUBLIC_KEY_BYTES_MAX`].
    #[error(
        "the file has more than {PUBLIC_KEY_BYTES_MAX} bytes; a public key of {BITS_MAX} bits has \
         about 800"
    )]
    TooLarge,
    /// A private key, of whatever kind.
    #[error(
        "THIS IS A PRIVATE KEY, and a private key does not belong here: whoever can read this \
         file can give every command\n\
         hint: remove the file, treat the key as compromised and make another; what belongs here \
         is the public half: `openssl rsa -in KEY.pem -pubout -out KEY.pub.pem`"
    )]
    PrivateKey,
    /// Bytes that are not text.
    #[error("the file is not text; a public key is a PEM file in ASCII\nhint: {TO_PUBLIC}")]
    NotText,
    /// A line as `authorized_keys` has it, or SSH's own form of a public key.
    #[error(
        "this is a public key in the form of OpenSSH\n\
         hint: `ssh-keygen -e -m PKCS8 -f KEY.pub > KEY.pub.pem` makes a PEM file of it"
    )]
    OpenSsh,
    /// A certificate or a request for one.
    #[error(
        "this is a certificate, not a public key\n\
         hint: `openssl x509 -in CERT.pem -noout -pubkey` shows the key that is in it"
    )]
    Certificate,
    /// Text without a block.
    #[error("there is no line `-----BEGIN PUBLIC KEY-----`\nhint: {TO_PUBLIC}")]
    NoBlock,
    /// A block and more.
    #[error(
        "there is text around the block, in line {line}; the file must hold one key and nothing \
         else\nhint: remove that text"
    )]
    TextAround {
        /// The first such line, from 1.
        line: usize,
    },
    /// More than one block.
    #[error(
        "there is a second block in line {line}; the file must hold one key and nothing else\n\
         hint: give each key a file, and a name, of its own"
    )]
    SecondBlock {
        /// Where it begins, from 1.
        line: usize,
    },
    /// A block of another kind.
    #[error("this is a block `{label}`, not `PUBLIC KEY` or `RSA PUBLIC KEY`\nhint: {TO_PUBLIC}")]
    Label {
        /// What it is called, escaped and cut.
        label: String,
    },
    /// PEM that is none.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Not the structure that the label promises.
    #[error("the block does not hold what `{label}` says: {source}\nhint: {TO_PUBLIC}")]
    Malformed {
        /// The label.
        label: &'static str,
        /// What is wrong.
        source: der::Error,
    },
    /// A key and more bytes after it, in the same block.
    #[error("there are more bytes in the block, after the key\nhint: {TO_PUBLIC}")]
    TrailingBytes,
    /// A key for another algorithm.
    #[error(
        "this is an {algorithm} key; commands are signed with RSA keys (RS256) alone\n\
         hint: make one: `supervisor-rs-client keygen NAME`"
    )]
    NotRsa {
        /// Which.
        algorithm: String,
    },
    /// An RSA key that is not good enough.
    #[error(transparent)]
    Unfit(#[from] UnfitKey),
}

/// How to come by a file that is taken.
const TO_PUBLIC: &str = "`openssl rsa -in KEY.pem -pubout -out KEY.pub.pem` makes the public \
                         half of a key, `supervisor-rs-client keygen NAME` a whole new pair";

/// What is looked for in a file that may hold a private key in whatever form.
const PRIVATE_MARKS: [&[u8]; 2] = [b"PRIVATE KEY", b"PuTTY-User-Key-File"];

/// What a public key of OpenSSH begins with.
const OPENSSH_MARKS: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-", "---- BEGIN SSH2 "];

impl PublicKey {
    /// Reads the content of a key file.
    ///
    /// # Errors
    ///
    /// [`PublicKeyError`] for everything but one SPKI or PKCS#1 block with an RSA key that is
    /// good enough, and white space around it.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        if bytes.len() as u64 > PUBLIC_KEY_BYTES_MAX {
            return Err(PublicKeyError::TooLarge);
        }
        if has_private_mark(bytes) || is_private(bytes) {
            return Err(PublicKeyError::PrivateKey);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PublicKeyError::NotText)?;
        if text.trim_ascii().is_empty() {
            return Err(PublicKeyError::Empty);
        }
        let block = only_block(text)?;
        let der = block.decode()?;
        if is_private(&der) {
            return Err(PublicKeyError::PrivateKey);
        }
        let key = match block.label {
            "PUBLIC KEY" => from_spki(&der)?,
            "RSA PUBLIC KEY" => from_pkcs1("RSA PUBLIC KEY", &der)?,
            label if label.contains("CERTIFICATE") => return Err(PublicKeyError::Certificate),
            label => {
                return Err(PublicKeyError::Label { label: echo(label) });
            }
        };
        Ok(Self {
            bits: key.bits,
            fingerprint: key.fingerprint,
            decoding: DecodingKey::from_rsa_der(&key.pkcs1),
        })
    }

    /// How many bits its modulus has.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Which key it is; the same for both forms of a key.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// What checks signatures.
    pub(in crate::control) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}

/// The one block of a text that holds nothing else.
fn only_block(text: &str) -> Result<Block<'_>, PublicKeyError> {
    if OPENSSH_MARKS
        .iter()
        .any(|mark| text.trim_ascii_start().starts_with(mark))
    {
        return Err(PublicKeyError::OpenSsh);
    }
    let pem = Pem::parse(text)?;
    let mut blocks = pem.blocks.into_iter();
    match (blocks.next(), blocks.next(), pem.text_at) {
        (None, _, _) => Err(PublicKeyError::NoBlock),
        (Some(_), Some(second), _) => Err(PublicKeyError::SecondBlock { line: second.line }),
        (Some(_), None, Some(line)) => Err(PublicKeyError::TextAround { line }),
        (Some(block), None, None) => Ok(block),
    }
}

fn from_spki(der: &[u8]) -> Result<Components, PublicKeyError> {
    const LABEL: &str = "PUBLIC KEY";
    let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|source| malformed(LABEL, source))?;
    if spki.algorithm.oid != pkcs1::ALGORITHM_OID {
        return Err(PublicKeyError::NotRsa {
            algorithm: algorithm_name(spki.algorithm.oid),
        });
    }
    if spki.algorithm != pkcs1::ALGORITHM_ID {
        return Err(malformed(LABEL, der::Tag::Null.value_error()));
    }
    let key = spki
        .subject_public_key
        .as_bytes()
        .ok_or_else(|| malformed(LABEL, der::Tag::BitString.value_error()))?;
    from_pkcs1(LABEL, key)
}

fn from_pkcs1(label: &'static str, der: &[u8]) -> Result<Components, PublicKeyError> {
    let key = pkcs1::RsaPublicKey::from_der(der).map_err(|source| malformed(label, source))?;
    Ok(Components::check(&key)?)
}

fn malformed(label: &'static str, source: der::Error) -> PublicKeyError {
    match source.kind() {
        der::ErrorKind::TrailingData { .. } => PublicKeyError::TrailingBytes,
        _ => PublicKeyError::Malformed { label, source },
    }
}

/// Whether this is a private key in DER, whatever it was called.
fn is_private(der: &[u8]) -> bool {
    PrivateKeyInfo::from_der(der).is_ok() || pkcs1::RsaPrivateKey::from_der(der).is_ok()
}

/// Whether a private key is announced; the zeros of UTF-16 do not hide it.
fn has_private_mark(bytes: &[u8]) -> bool {
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    PRIVATE_MARKS
        .iter()
        .any(|mark| text.windows(mark.len()).any(|window| window == *mark))
}

#[cfg(test)]
mod tests;
