//! Why a file is not a private key that is used, each with the way out.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::super::{KEY_NAME_CHARS_MAX, KeyNameError, PemError, UnfitKey};
use super::PRIVATE_KEY_BYTES_MAX;
use crate::trust::{Shown, quoted};

/// Why a file is not a private key that is used.
///
/// The first line says what is wrong with which file; further ones are hints.
#[derive(Debug, thiserror::Error)]
pub enum PrivateKeyError {
    /// Not called `*.pem`.
    #[error(
        "{} gives no key name: it does not end in `.pem`\n{}",
        Shown(path),
        naming()
    )]
    NotPemName {
        /// As given.
        path: PathBuf,
    },
    /// Called `*.pem`, but what is before it is no key name.
    #[error("{} gives no key name: {fault}\n{}", Shown(path), naming())]
    Name {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        fault: KeyNameError,
    },
    /// There is no such file.
    #[error(
        "there is no key file {}\nhint: `supervisor-rs-client keygen NAME` makes a new pair",
        Shown(path)
    )]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open the key file {}: {source}", Shown(path))]
    Open {
        /// As given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read the key file {}: {source}", Shown(path))]
    Read {
        /// As given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory.
    #[error(
        "{} is a directory, not a key file\nhint: `with` takes one file, such as {}",
        Shown(path),
        Shown(&path.join("NAME.pem"))
    )]
    Directory {
        /// As given.
        path: PathBuf,
    },
    /// A FIFO, a socket, a device.
    #[error("{} is not a regular file", Shown(path))]
    NotAFile {
        /// As given.
        path: PathBuf,
    },
    /// More than [`PRIVATE_KEY_BYTES_MAX`].
    #[error(
        "{} has more than {PRIVATE_KEY_BYTES_MAX} bytes, so it is no key file",
        Shown(path)
    )]
    TooLarge {
        /// As given.
        path: PathBuf,
    },
    /// Others can read or change it.
    #[error(
        "the key file {} can be used by others (mode {mode:04o}); it must be yours alone\n{}",
        Shown(path),
        closing(path)
    )]
    Mode {
        /// As given.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Bytes that are not text.
    #[error(
        "{} is not text; a key file is PEM, in ASCII\n\
         hint: `openssl pkey -inform DER -in {} -out KEY.pem` makes PEM of DER",
        Shown(path),
        quoted(path)
    )]
    NotText {
        /// As given.
        path: PathBuf,
    },
    /// PEM that is none.
    #[error("{} is damaged: {source}", Shown(path))]
    Pem {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        source: PemError,
    },
    /// No key in it.
    #[error(
        "{} holds no key: there is no line `-----BEGIN PRIVATE KEY-----` or \
         `-----BEGIN RSA PRIVATE KEY-----`",
        Shown(path)
    )]
    NoKey {
        /// As given.
        path: PathBuf,
    },
    /// Several keys.
    #[error(
        "{} holds more than one private key\nhint: give each key a file, and a name, of its own",
        Shown(path)
    )]
    SeveralKeys {
        /// As given.
        path: PathBuf,
    },
    /// The public half.
    #[error(
        "{} is a public key: it belongs into the server's `pub_keys_path`, and `with` takes the \
         private one\nhint: `with NAME.pem`, not `NAME.pub.pem`",
        Shown(path)
    )]
    PublicKey {
        /// As given.
        path: PathBuf,
    },
    /// Encrypted with a passphrase.
    #[error(
        "the key in {} is encrypted with a passphrase, and keys are used as they are\n\
         hint: `openssl rsa -in {} -out KEY.pem` asks for it and writes the key without; \
         or keep such keys in ssh's agent and go through ssh: `on ssh://HOST`",
        Shown(path),
        quoted(path)
    )]
    Encrypted {
        /// As given.
        path: PathBuf,
    },
    /// OpenSSH's own form.
    #[error(
        "{} is a key in OpenSSH's own form, not in PKCS#1 or PKCS#8\n\
         hint: `supervisor-rs-client keygen NAME` makes a new pair; of an RSA key, \
         `ssh-keygen -p -N '' -m PEM -f COPY` makes PKCS#1 (it rewrites the file: use a copy)",
        Shown(path)
    )]
    OpenSsh {
        /// As given.
        path: PathBuf,
    },
    /// A key for another algorithm.
    #[error(
        "{} holds an {algorithm} key; commands are signed with RSA keys (RS256) alone\n\
         hint: `supervisor-rs-client keygen NAME` makes one",
        Shown(path)
    )]
    NotRsa {
        /// As given.
        path: PathBuf,
        /// Which.
        algorithm: String,
    },
    /// Not the structure that the label promises.
    #[error(
        "{} is damaged: the block does not hold an RSA key\nhint: copy the file again, whole",
        Shown(path)
    )]
    Malformed {
        /// As given.
        path: PathBuf,
    },
    /// An RSA key that is not good enough.
    #[error("{} cannot be used: {source}", Shown(path))]
    Unfit {
        /// As given.
        path: PathBuf,
        /// Why not.
        source: UnfitKey,
    },
    /// Its numbers do not belong together.
    #[error(
        "{} is damaged: its numbers do not make a key\nhint: copy the file again, whole",
        Shown(path)
    )]
    Inconsistent {
        /// As given.
        path: PathBuf,
    },
}

impl PrivateKeyError {
    pub(super) fn open(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::IsADirectory => Self::Directory { path },
            // What opening a socket, or a FIFO without its other end, says.
            #[cfg(unix)]
            _ if source.raw_os_error() == Some(libc::ENXIO) => Self::NotAFile { path },
            _ => Self::Open { path, source },
        }
    }
}

/// How a file is closed to others; a public half is better left alone.
fn closing(path: &Path) -> String {
    let chmod = format!("`chmod 600 {}`", quoted(path));
    match path.as_os_str().as_encoded_bytes().ends_with(b".pub.pem") {
        true => format!(
            "hint: by its name it is the public half, and `with` takes the private one, \
             `NAME.pem`; if it is that one, {chmod}"
        ),
        false => format!("hint: {chmod}"),
    }
}

/// What a key file may be called.
fn naming() -> String {
    format!(
        "hint: a key file is called `NAME.pem`; NAME is what the server knows the key as: 1 to \
         {KEY_NAME_CHARS_MAX} letters, digits and `_ . @ -`, the first a letter or a digit"
    )
}
