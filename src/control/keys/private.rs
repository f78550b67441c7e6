//! A private key, read from its owner's file.
//!
//! - A file that anybody else can read or change is not used: the opened file is looked at, not
//!   its path, so that what was checked is what is read.
//! - What holds a secret is cleared from memory when it is dropped, and nothing of it is shown.
//! - What is taken can sign: it is tried once.
//!
//! Absent on purpose: passphrases (an agent and ssh are for those).
//!
//! Source: DESIGN, section 8; RFC 8017, appendix A.1.2; RFC 5208; open(2).

mod error;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
};

use jsonwebtoken::{Algorithm, EncodingKey};
use rsa::{
    RsaPrivateKey,
    pkcs1::{self, DecodeRsaPrivateKey},
    pkcs8::{PrivateKeyInfo, der::Decode},
};
use zeroize::Zeroizing;

pub use self::error::PrivateKeyError;
use super::{
    Fingerprint, KeyName,
    components::{Components, algorithm_name},
    pem::{Block, Pem},
};

/// The most bytes of a private key's file; one of 4096 bits has about 3300.
pub const PRIVATE_KEY_BYTES_MAX: u64 = 64 * 1024;

/// An RSA private key that commands are signed with.
///
/// Its `Debug` shows nothing that is secret.
#[derive(Debug)]
pub struct PrivateKey {
    name: KeyName,
    path: PathBuf,
    bits: u32,
    fingerprint: Fingerprint,
    /// Shows nothing of itself, and is cleared when it is dropped.
    encoding: EncodingKey,
}

impl PrivateKey {
    /// Reads a key file; its name is the file's, without `.pem`.
    ///
    /// # Errors
    ///
    /// [`PrivateKeyError`] when the file cannot be read, when others can read it, and for
    /// everything that is not one PKCS#1 or PKCS#8 block with an RSA key that is good enough.
    pub fn read(path: &Path) -> Result<Self, PrivateKeyError> {
        let name = match KeyName::of_file(path) {
            Some(Ok(name)) => name,
            Some(Err(fault)) => {
                return Err(PrivateKeyError::Name {
                    path: path.to_owned(),
                    fault,
                });
            }
            None => {
                return Err(PrivateKeyError::NotPemName {
                    path: path.to_owned(),
                });
            }
        };
        let file = open(path).map_err(|source| PrivateKeyError::open(path, source))?;
        check_access(path, &file)?;
        let bytes = content(path, file)?;
        Self::from_pem(name, path, &bytes)
    }

    /// Reads the content of a key file. The path is for messages.
    ///
    /// # Errors
    ///
    /// As [`PrivateKey::read`], but for what concerns the file itself.
    pub fn from_pem(name: KeyName, path: &Path, bytes: &[u8]) -> Result<Self, PrivateKeyError> {
        let own = || path.to_owned();
        let text =
            std::str::from_utf8(bytes).map_err(|_| PrivateKeyError::NotText { path: own() })?;
        let pem = Pem::parse(text).map_err(|source| PrivateKeyError::Pem {
            path: own(),
            source,
        })?;
        let block = only_private(path, &pem)?;
        let der = block.decode().map_err(|source| PrivateKeyError::Pem {
            path: own(),
            source,
        })?;
        let malformed = || PrivateKeyError::Malformed { path: own() };
        let key = match block.label {
            "PRIVATE KEY" => {
                let info = PrivateKeyInfo::from_der(&der).map_err(|_| malformed())?;
                if info.algorithm.oid != pkcs1::ALGORITHM_OID {
                    return Err(PrivateKeyError::NotRsa {
                        path: own(),
                        algorithm: algorithm_name(info.algorithm.oid),
                    });
                }
                info.private_key
            }
            _ => &der,
        };
        // The size first: the rest is arithmetic that takes long with huge numbers.
        let public = pkcs1::RsaPrivateKey::from_der(key)
            .map_err(|_| malformed())?
            .public_key();
        let public = Components::check(&public).map_err(|source| PrivateKeyError::Unfit {
            path: own(),
            source,
        })?;
        let inconsistent = || PrivateKeyError::Inconsistent { path: own() };
        RsaPrivateKey::from_pkcs1_der(key).map_err(|_| inconsistent())?;
        let encoding = EncodingKey::from_rsa_der(key);
        jsonwebtoken::crypto::sign(b"", &encoding, Algorithm::RS256).map_err(|_| inconsistent())?;
        Ok(Self {
            name,
            path: own(),
            bits: public.bits,
            fingerprint: public.fingerprint,
            encoding,
        })
    }

    /// What the server knows it as, when it has the public half under the same name.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The file it was read from, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bits its modulus has.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// That of its public half.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// What signs.
    pub(in crate::control) fn encoding(&self) -> &EncodingKey {
        &self.encoding
    }
}

/// The one private key among the blocks of a file; others, such as the certificate that some
/// programs put beside it, do not matter.
fn only_private<'a, 'b>(path: &Path, pem: &'b Pem<'a>) -> Result<&'b Block<'a>, PrivateKeyError> {
    let own = || path.to_owned();
    let mut private = pem
        .blocks
        .iter()
        .filter(|block| block.label.ends_with("PRIVATE KEY"));
    let Some(block) = private.next() else {
        let public = pem
            .blocks
            .iter()
            .any(|block| block.label.ends_with("PUBLIC KEY"));
        return Err(match public {
            true => PrivateKeyError::PublicKey { path: own() },
            false => PrivateKeyError::NoKey { path: own() },
        });
    };
    if private.next().is_some() {
        return Err(PrivateKeyError::SeveralKeys { path: own() });
    }
    match block.label {
        "ENCRYPTED PRIVATE KEY" => Err(PrivateKeyError::Encrypted { path: own() }),
        "RSA PRIVATE KEY" if block.is_encrypted() => {
            Err(PrivateKeyError::Encrypted { path: own() })
        }
        "OPENSSH PRIVATE KEY" => Err(PrivateKeyError::OpenSsh { path: own() }),
        "PRIVATE KEY" | "RSA PRIVATE KEY" => Ok(block),
        label => Err(PrivateKeyError::NotRsa {
            path: own(),
            algorithm: label
                .trim_end_matches(" PRIVATE KEY")
                .escape_debug()
                .to_string(),
        }),
    }
}

/// Opens without waiting for a writer, should it be a FIFO.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC,
    );
    options.open(path)
}

fn check_access(path: &Path, file: &File) -> Result<(), PrivateKeyError> {
    let own = || path.to_owned();
    let about = file.metadata().map_err(|source| PrivateKeyError::Read {
        path: own(),
        source,
    })?;
    if about.is_dir() {
        return Err(PrivateKeyError::Directory { path: own() });
    }
    if !about.is_file() {
        return Err(PrivateKeyError::NotAFile { path: own() });
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;

        // Not whose it is: with this mode nobody else but root can have opened it, and root may
        // well sign for a user, as with `sudo`.
        let mode = about.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PrivateKeyError::Mode { path: own(), mode });
        }
    }
    Ok(())
}

fn content(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, PrivateKeyError> {
    // All of it at once, and never moved: a copy left behind could hold part of a secret.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PRIVATE_KEY_BYTES_MAX as usize + 1));
    file.take(PRIVATE_KEY_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| PrivateKeyError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > PRIVATE_KEY_BYTES_MAX {
        return Err(PrivateKeyError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
