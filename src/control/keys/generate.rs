//! Making a pair of keys, and writing it into two files.
//!
//! - The private half is nobody else's from the first moment: its file is created with its mode.
//! - Nothing is overwritten, and either both files are there afterwards or neither is.
//!
//! Source: DESIGN, section 8; FIPS 186-5, appendix A.1; open(2), fsync(2).

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
    rand_core::{OsRng, RngCore},
};
use zeroize::Zeroizing;

use super::{Fingerprint, KeyName};
use crate::trust::Shown;

/// A new pair of keys.
pub struct KeyPair {
    /// The private half, PKCS#8.
    pub private_pem: Zeroizing<String>,
    /// The public half, SPKI.
    pub public_pem: String,
    /// Which it is.
    pub fingerprint: Fingerprint,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// How many bits a new key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bits {
    /// 2048: about as strong as 112 bits of a secret.
    B2048,
    /// 3072: as 128 bits.
    B3072,
    /// 4096: as about 140 bits.
    #[default]
    B4096,
}

impl Bits {
    /// Every number that may be asked for.
    pub const ALL: [Self; 3] = [Self::B2048, Self::B3072, Self::B4096];

    /// The number.
    #[must_use]
    pub fn count(self) -> u32 {
        match self {
            Self::B2048 => 2048,
            Self::B3072 => 3072,
            Self::B4096 => 4096,
        }
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count().fmt(f)
    }
}

/// Not a number of bits that a key is made with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key is made with 2048, 3072 or 4096 bits, not with `{}`", .0.escape_debug())]
pub struct BitsError(String);

impl FromStr for Bits {
    type Err = BitsError;

    fn from_str(text: &str) -> Result<Self, BitsError> {
        Self::ALL
            .into_iter()
            .find(|bits| bits.to_string() == text)
            .ok_or_else(|| BitsError(text.to_owned()))
    }
}

/// Why there is no new pair of keys.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The system gives no random bytes.
    #[error("cannot make a key: the system gives no random bytes: {0}")]
    Random(rsa::rand_core::Error),
    /// The arithmetic failed.
    #[error("cannot make a key: {0}")]
    Rsa(rsa::Error),
    /// The key cannot be encoded.
    #[error("cannot make a key: it cannot be encoded: {0}")]
    Encode(rsa::pkcs8::Error),
    /// `NAME.pub`, whose private half would be taken for the public half of `NAME`.
    #[error(
        "a pair cannot be called `{name}`: its private half would be called as the public half \
         of another\nhint: leave `.pub` out"
    )]
    Name {
        /// As given.
        name: KeyName,
    },
    /// A file is there already.
    #[error(
        "{} is there already, and keys are not overwritten\nhint: use another name, or move it away",
        Shown(path)
    )]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// A file cannot be created or written.
    #[error("cannot write {}: {source}", Shown(path))]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The files of a new pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `NAME.pem`, mode 0600: for the client.
    pub private: PathBuf,
    /// `NAME.pub.pem`, mode 0644: for `pub_keys_path` of servers.
    pub public: PathBuf,
}

/// Makes a pair of keys, which takes seconds with many bits.
///
/// # Errors
///
/// [`GenerateError`], when the system gives no random bytes.
pub fn generate(bits: Bits) -> Result<KeyPair, GenerateError> {
    // Asked once before, because what follows would panic.
    OsRng
        .try_fill_bytes(&mut [0; 32])
        .map_err(GenerateError::Random)?;
    let private =
        RsaPrivateKey::new(&mut OsRng, bits.count() as usize).map_err(GenerateError::Rsa)?;
    let public = private.to_public_key();
    let private_pem = private
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(GenerateError::Encode)?;
    let spki = public
        .to_public_key_der()
        .map_err(|fault| GenerateError::Encode(fault.into()))?;
    let public_pem = spki
        .to_pem("PUBLIC KEY", LineEnding::LF)
        .map_err(|fault| GenerateError::Encode(fault.into()))?;
    Ok(KeyPair {
        private_pem,
        public_pem,
        fingerprint: Fingerprint::of_spki(spki.as_bytes()),
    })
}

/// Writes `NAME.pem` and `NAME.pub.pem` into a folder; they are on disk when it returns.
///
/// # Errors
///
/// [`GenerateError`] when one of them is there already or cannot be written; then neither was
/// made, and what was there is as it was.
pub fn write_pair(folder: &Path, name: &KeyName, pair: &KeyPair) -> Result<Written, GenerateError> {
    if name.as_str().ends_with(".pub") {
        return Err(GenerateError::Name { name: name.clone() });
    }
    let private = folder.join(format!("{name}.pem"));
    let public = folder.join(format!("{name}.pub.pem"));
    for path in [&private, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(GenerateError::Exists { path: path.clone() });
        }
    }
    let mut private_file = NewFile::create(private, Access::Owner)?;
    let mut public_file = NewFile::create(public, Access::AllRead)?;
    private_file.write(pair.private_pem.as_bytes())?;
    public_file.write(pair.public_pem.as_bytes())?;
    sync(folder)?;
    Ok(Written {
        private: private_file.keep(),
        public: public_file.keep(),
    })
}

/// Who may use a file.
#[derive(Clone, Copy)]
enum Access {
    Owner,
    AllRead,
}

/// A file that was created here, and goes again unless it is kept.
struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    fn create(path: PathBuf, access: Access) -> Result<Self, GenerateError> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, access.mode());
        match options.open(&path) {
            Ok(file) => {
                let new = Self {
                    path,
                    file,
                    kept: false,
                };
                new.allow(access)?;
                Ok(new)
            }
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                Err(GenerateError::Exists { path })
            }
            Err(source) => Err(GenerateError::Write { path, source }),
        }
    }

    /// Sets the mode, of which the umask may have taken bits away.
    #[cfg(unix)]
    fn allow(&self, access: Access) -> Result<(), GenerateError> {
        use std::os::unix::fs::PermissionsExt as _;

        let mode = fs::Permissions::from_mode(access.mode());
        let set = self.file.set_permissions(mode);
        set.map_err(|source| self.failed(source))
    }

    #[cfg(not(unix))]
    fn allow(&self, _access: Access) -> Result<(), GenerateError> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), GenerateError> {
        let written = self.file.write_all(bytes);
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> GenerateError {
        GenerateError::Write {
            path: self.path.clone(),
            source,
        }
    }

    fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // What made it fail is told; an empty file that stays is refused by every reader.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::AllRead => 0o644,
        }
    }
}

/// Makes the names of new files last.
fn sync(folder: &Path) -> Result<(), GenerateError> {
    // An empty path is the working directory.
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| GenerateError::Write {
            path: folder.to_owned(),
            source,
        })?;
    Ok(())
}

#[cfg(test)]
mod tests;
